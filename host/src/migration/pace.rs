//! How fast a migration goes: no faster than it was told to, and slower where a store asks for that.

use std::future::Future;
use std::time::Duration;

use larder_model::ErrorKind;
use tokio::time::Instant;

use crate::error::{Error, Result};

/// The first wait after `throttled`; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// Calls that are made again before a store that goes on throttling is an error: some two minutes of waiting.
const ATTEMPTS_MAX: u32 = 12;

/// Waits that grow, for a store that says it is asked for too much.
pub(super) struct Patience {
    wait: Duration,
    attempts: u32,
}

impl Patience {
    pub(super) fn new() -> Patience {
        Patience { wait: FIRST_WAIT, attempts: 1 }
    }

    /// Waits after `throttled`, so that the call can be made again. Any other error, or one too many, is given back.
    pub(super) async fn after(&mut self, error: Error) -> Result<()> {
        if !error.is(ErrorKind::Throttled) || self.attempts == ATTEMPTS_MAX {
            return Err(error);
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(WAIT_MAX);
        self.attempts += 1;
        Ok(())
    }
}

/// Makes a call that may be made twice, and again after a while where it was throttled.
pub(super) async fn patiently<T, F: Future<Output = Result<T>>>(mut call: impl FnMut() -> F) -> Result<T> {
    let mut patience = Patience::new();
    loop {
        match call().await {
            Ok(value) => return Ok(value),
            Err(error) => patience.after(error).await?,
        }
    }
}

/// Lets so many entities a second pass, evenly: what was not used is not saved up.
pub(super) struct Limiter {
    per_second: Option<u32>,
    next: Instant,
}

impl Limiter {
    pub(super) fn new(per_second: Option<u32>) -> Limiter {
        Limiter { per_second, next: Instant::now() }
    }

    /// How many may pass at once. A second's worth, so that nobody waits for longer than a second.
    pub(super) fn at_once(&self, wanted: u32) -> u32 {
        wanted.min(self.per_second.unwrap_or(u32::MAX)).max(1)
    }

    /// Waits until `count` more may pass.
    pub(super) async fn pass(&mut self, count: usize) {
        let Some(per_second) = self.per_second else { return };
        tokio::time::sleep_until(self.next).await;
        self.next =
            self.next.max(Instant::now()) + Duration::from_secs_f64(count as f64 / f64::from(per_second.max(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_throttled_call_is_made_again_and_another_error_is_not() {
        for (kind, calls_expected) in [(ErrorKind::Throttled, 2), (ErrorKind::Unavailable, 1)] {
            let mut calls = 0;
            let ended = patiently(|| {
                calls += 1;
                std::future::ready(if calls < 2 { Err(Error::contract(kind, "too much")) } else { Ok(()) })
            });
            assert_eq!(ended.await.is_ok(), kind == ErrorKind::Throttled);
            assert_eq!(calls, calls_expected);
        }
    }

    #[tokio::test]
    async fn who_throttles_for_ever_is_an_error_in_the_end() {
        let mut patience = Patience { wait: Duration::from_nanos(1), attempts: 1 };
        let throttled = || Error::contract(ErrorKind::Throttled, "too much");
        for _ in 1..ATTEMPTS_MAX {
            patience.after(throttled()).await.unwrap();
        }
        assert!(patience.after(throttled()).await.unwrap_err().is(ErrorKind::Throttled));
    }

    #[tokio::test]
    async fn a_limit_is_kept_and_no_limit_waits_for_nothing() {
        let mut limiter = Limiter::new(Some(1000));
        assert_eq!((limiter.at_once(5000), limiter.at_once(10)), (1000, 10));
        let since = Instant::now();
        for _ in 0..4 {
            limiter.pass(50).await;
        }
        assert!(since.elapsed() >= Duration::from_millis(150), "{:?}", since.elapsed());
        assert_eq!(Limiter::new(None).at_once(5000), 5000);
    }
}
