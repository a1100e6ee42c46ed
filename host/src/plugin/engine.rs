//! One wasmtime engine for the process: how components are compiled, where compiled code is kept, and the clock that
//! lets the host take back the processor from a plugin that does not give it up.

use std::cell::Cell;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use wasmtime::Config;
use wasmtime::component::Component;

use super::compiled;
use crate::error::{Error, Result};

/// How long a plugin computes before it has to let others have their turn.
const FIRST_TURN: Duration = Duration::from_millis(2);
/// How long, about, it computes each time after that, until it waits for something. Whoever shares a thread with it waits for
/// so long each time that it has to wait at all, which may be a dozen times in one call of a database. Each turn costs a few
/// microseconds.
const TURN: Duration = Duration::from_micros(250);
/// For how many turns they stay short when none computes any more: one that waits for a moment is soon back.
const TURNS_KEPT_SHORT: u32 = 8;
/// A tick that comes sooner after a call got its thread ends no turn: most of those were due while the call waited.
const TURN_MIN: Duration = Duration::from_micros(125);
/// What a turn counts for at most, where the thread was taken away in it.
const TURN_MAX: Duration = Duration::from_micros(500);
/// Calls, of all engines, that are past their first turn and compute, or would if they had a thread. One that waits for a
/// database does not.
static COMPUTING: AtomicUsize = AtomicUsize::new(0);
/// Whether turns are short now, because there are some, or were a moment ago.
static ARE_SHORT: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// When the call that has this thread got it.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    /// Whether the call that had this thread last would go on if it had it.
    static IS_READY: Cell<bool> = const { Cell::new(false) };
}

/// At a tick: whether the call that has this thread has to let others have their turn.
pub(crate) fn yields() -> bool {
    let yields = BEGAN.get().is_none_or(|began| began.elapsed() >= TURN_MIN);
    IS_READY.set(yields);
    yields
}

/// The time that a call has computed. While there is one that goes on computing after its first turn, turns are short.
#[derive(Debug, Default)]
pub(crate) struct Computed {
    time: Duration,
    counted: Option<Counted>,
}

impl Computed {
    /// Runs a turn. Gives what it comes to, and what the call has computed with it.
    pub(crate) fn turn<T>(&mut self, work: impl FnOnce() -> T) -> (T, Duration) {
        if self.counted.is_none() && self.time >= FIRST_TURN / 2 {
            self.counted = Some(Counted::new());
        }
        let longest = if ARE_SHORT.load(Ordering::Relaxed) { TURN_MAX } else { FIRST_TURN };
        let began = Instant::now();
        BEGAN.set(Some(began));
        IS_READY.set(false);
        let result = work();
        if !IS_READY.get() {
            self.counted = None;
        }
        self.time += began.elapsed().min(longest);
        (result, self.time)
    }
}

/// One that is counted in [`COMPUTING`].
#[derive(Debug)]
struct Counted;

impl Counted {
    fn new() -> Counted {
        COMPUTING.fetch_add(1, Ordering::Relaxed);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COMPUTING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Stack of a plugin: serde_json at a depth of 64 needs a small part of it. Not a setting: it is the engine's.
const STACK_BYTES_MAX: usize = 1 << 20;

/// wasmtime's engine, and where what it compiled is kept.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    wasmtime: wasmtime::Engine,
    /// See [`compiled`].
    compiled: Option<Arc<Path>>,
}

impl Deref for Engine {
    type Target = wasmtime::Engine;

    fn deref(&self) -> &wasmtime::Engine {
        &self.wasmtime
    }
}

impl Engine {
    /// The component that these bytes are, which have this SHA-256.
    pub(crate) fn component(&self, bytes: &[u8], sha256: &str) -> wasmtime::Result<Component> {
        match &self.compiled {
            Some(folder) => compiled::component(self, folder, bytes, sha256),
            None => Component::from_binary(self, bytes),
        }
    }
}

/// Makes the engine. What it compiles is kept in `compiled`.
pub(crate) fn new(compiled: Option<&Path>) -> Result<Engine> {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        // No plugin needs component-model async yet, and a call costs half as much without it.
        .concurrency_support(false)
        .epoch_interruption(true)
        .wasm_memory64(false)
        .max_wasm_stack(STACK_BYTES_MAX)
        .async_stack_size(STACK_BYTES_MAX + (1 << 20));
    let engine =
        wasmtime::Engine::new(&config).map_err(|error| Error::refused("cannot start wasmtime").caused_by(error))?;
    let weak = engine.weak();
    std::thread::Builder::new()
        .name("larder-epoch".into())
        .spawn(move || {
            let mut turns_left: u32 = 0;
            while let Some(engine) = weak.upgrade() {
                turns_left = match COMPUTING.load(Ordering::Relaxed) {
                    0 => turns_left.saturating_sub(1),
                    _ => TURNS_KEPT_SHORT,
                };
                let are_short = turns_left > 0;
                ARE_SHORT.store(are_short, Ordering::Relaxed);
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(if are_short { TURN } else { FIRST_TURN });
            }
        })
        .map_err(|error| Error::refused("cannot start the epoch thread").caused_by(error))?;
    Ok(Engine { wasmtime: engine, compiled: compiled.map(Arc::from) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_to_yield_still_computes_and_one_that_waits_does_not() {
        let mut computed = Computed::default();
        while computed.time < FIRST_TURN / 2 {
            computed.turn(|| std::thread::sleep(TURN_MAX));
            assert!(computed.counted.is_none(), "its first turn is a long one");
        }
        let (has_to_yield, _) = computed.turn(|| {
            std::thread::sleep(TURN_MIN);
            yields()
        });
        assert!(has_to_yield && computed.counted.is_some());
        computed.turn(|| ());
        assert!(computed.counted.is_none());
    }
}
