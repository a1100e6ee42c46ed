//! How many requests of one store may be under way: as many as come, until the service turns some away; then half of those
//! that were, and one more for each round that goes well.
//!
//! Pauses alone spread the requests of each caller. Who loads in bulk has many callers, all of which come back.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// More than this are never under way.
const REQUESTS_MAX: u32 = 64;
/// What was sent before the bound was lowered may still be turned away, and lowers it no further.
const SETTLING_TIME: Duration = Duration::from_millis(100);

/// Shared by all callers of a store.
pub(super) struct Pace {
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    requests_max: u32,
    under_way: u32,
    /// Since the bound last changed.
    went_well: u32,
    lowered: Option<Instant>,
}

/// A request under way. Dropped, it has ended.
pub(super) struct Turn<'a>(&'a Pace);

impl Pace {
    pub(super) fn new() -> Pace {
        let state = State { requests_max: REQUESTS_MAX, under_way: 0, went_well: 0, lowered: None };
        Pace { state: Mutex::new(state), freed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another request may be sent.
    pub(super) async fn turn(&self) -> Turn<'_> {
        loop {
            let freed = self.freed.notified();
            {
                let mut state = self.state();
                if state.under_way < state.requests_max {
                    state.under_way += 1;
                    return Turn(self);
                }
            }
            freed.await;
        }
    }

    /// The service turned a request away, or a part of it.
    pub(super) fn throttled(&self) {
        let mut state = self.state();
        state.went_well = 0;
        if state.lowered.is_none_or(|since| since.elapsed() >= SETTLING_TIME) {
            // Where fewer are under way than may be, the bound is not what kept them back.
            state.requests_max = (state.requests_max.min(state.under_way.max(1)) / 2).max(1);
            state.lowered = Some(Instant::now());
        }
    }

    /// The service answered.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        if state.requests_max == REQUESTS_MAX {
            return;
        }
        state.went_well += 1;
        if state.went_well >= state.requests_max {
            state.requests_max += 1;
            state.went_well = 0;
            self.freed.notify_one();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn throttling_halves_what_may_be_under_way_and_answers_widen_it_again() {
        let pace = Pace::new();
        let mut turns = Vec::new();
        for _ in 0..8 {
            turns.push(pace.turn().await);
        }
        // All that were sent together are turned away together.
        (0..8).for_each(|_| pace.throttled());
        assert_eq!(pace.state().requests_max, 4);
        turns.truncate(4);
        let wait = SETTLING_TIME;
        assert!(tokio::time::timeout(wait, pace.turn()).await.is_err(), "a fifth has to wait");
        turns.pop();
        let fourth = pace.turn().await;
        pace.throttled();
        assert_eq!(pace.state().requests_max, 2);
        drop((turns, fourth));
        for _ in 0..2 + 3 {
            pace.answered();
        }
        assert_eq!(pace.state().requests_max, 4);
        for _ in 0..10_000 {
            pace.answered();
        }
        assert_eq!(pace.state().requests_max, REQUESTS_MAX);
    }

    #[tokio::test]
    async fn one_request_may_always_be_under_way() {
        let pace = Pace::new();
        for _ in 0..7 {
            let turn = pace.turn().await;
            pace.throttled();
            tokio::time::sleep(SETTLING_TIME).await;
            drop(turn);
        }
        assert_eq!(pace.state().requests_max, 1);
        drop(pace.turn().await);
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_whoever_ends() {
        let pace = Pace::new();
        let turn = pace.turn().await;
        pace.throttled();
        let waiting = async {
            for _ in 0..100 {
                drop(pace.turn().await);
                tokio::task::yield_now().await;
            }
        };
        let ending = async {
            tokio::task::yield_now().await;
            drop(turn);
        };
        let many = async { tokio::join!(waiting, ending) };
        tokio::time::timeout(Duration::from_secs(10), many).await.expect("nobody waits for ever");
    }
}
