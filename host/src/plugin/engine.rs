//! One wasmtime engine for the process: how components are compiled, where compiled code is kept, and the clock that
//! lets the host take back the processor from a plugin that does not give it up.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub(crate) use wasmtime::Engine;
use wasmtime::{Cache, CacheConfig, Config};

use crate::error::{Error, Result};

/// How long a plugin computes before it has to let others have their turn.
const FIRST_TURN: Duration = Duration::from_millis(2);
/// How long it computes each time after that. Whoever shares a thread with it waits for so long each time that it has to
/// wait at all, which may be a dozen times in one call of a database. Each turn costs a few microseconds.
const TURN: Duration = Duration::from_micros(250);
/// What a turn counts for at most, where the thread was taken away in it.
const TURN_MAX: Duration = Duration::from_micros(500);
/// Calls, of all engines, that are past their first turn.
static COMPUTING: AtomicUsize = AtomicUsize::new(0);

/// The time that a call has computed. While there is one that is past its first turn, turns are short.
#[derive(Debug, Default)]
pub(crate) struct Computed {
    time: Duration,
    is_counted: bool,
}

impl Computed {
    /// Adds a turn. Gives what that makes.
    pub(crate) fn add(&mut self, turn: Duration) -> Duration {
        self.time += turn.min(if self.is_counted { TURN_MAX } else { FIRST_TURN });
        if !self.is_counted && self.time >= FIRST_TURN / 2 {
            self.is_counted = true;
            COMPUTING.fetch_add(1, Ordering::Relaxed);
        }
        self.time
    }
}

impl Drop for Computed {
    fn drop(&mut self) {
        if self.is_counted {
            COMPUTING.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Stack of a plugin: serde_json at a depth of 64 needs a small part of it. Not a setting: it is the engine's.
const STACK_BYTES_MAX: usize = 1 << 20;

/// Makes the engine. `cache_directory` keeps compiled code by the content of the component: compiling takes 100 ms and
/// loading 0.2 ms.
pub(crate) fn new(cache_directory: Option<&Path>) -> Result<Engine> {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        // No plugin needs component-model async yet, and a call costs half as much without it.
        .concurrency_support(false)
        .epoch_interruption(true)
        .wasm_memory64(false)
        .max_wasm_stack(STACK_BYTES_MAX)
        .async_stack_size(STACK_BYTES_MAX + (1 << 20));
    if let Some(directory) = cache_directory {
        let mut cache = CacheConfig::new();
        cache.with_directory(directory);
        // Without a cache everything works, only slower: a read-only home is no reason to fail.
        config.cache(Cache::new(cache).ok());
    }
    let engine = Engine::new(&config).map_err(|error| Error::refused("cannot start wasmtime").caused_by(error))?;
    let weak = engine.weak();
    std::thread::Builder::new()
        .name("larder-epoch".into())
        .spawn(move || {
            while let Some(engine) = weak.upgrade() {
                engine.increment_epoch();
                drop(engine);
                let is_computing = COMPUTING.load(Ordering::Relaxed) > 0;
                std::thread::sleep(if is_computing { TURN } else { FIRST_TURN });
            }
        })
        .map_err(|error| Error::refused("cannot start the epoch thread").caused_by(error))?;
    Ok(engine)
}
