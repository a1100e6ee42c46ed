//! One wasmtime engine for the process: how components are compiled, where compiled code is kept, and the clock that
//! lets the host take back the processor from a plugin that does not give it up.

use std::path::Path;
use std::time::Duration;

pub(crate) use wasmtime::Engine;
use wasmtime::{Cache, CacheConfig, Config};

use crate::error::{Error, Result};

/// How often a running plugin is made to yield, so that a deadline can end it. A hundred times a second is far below
/// what can be measured in throughput.
const EPOCH_TICK: Duration = Duration::from_millis(10);
/// Stack of a plugin: serde_json at a depth of 64 needs a small part of it.
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
                std::thread::sleep(EPOCH_TICK);
            }
        })
        .map_err(|error| Error::refused("cannot start the epoch thread").caused_by(error))?;
    Ok(engine)
}
