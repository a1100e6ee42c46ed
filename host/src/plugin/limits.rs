//! What one plugin may use, and the tally of it.

use wasmtime::ResourceLimiter;

/// Wasm tables a component may grow, in elements: a Rust or C component needs thousands, an interpreter tens of thousands.
const TABLE_ELEMENTS_MAX: usize = 1_000_000;
/// Core instances, memories and tables of one component: `componentize-py` makes about 30.
const INSTANCES_MAX: usize = 200;

/// Counts the memory of one instance, over all of its linear memories.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) memory_bytes_max: usize,
    memory_bytes: usize,
    /// The size that was asked for when the bound was hit, so that the trap that follows can be explained.
    pub(crate) memory_refused_bytes: Option<usize>,
}

impl Limits {
    pub(crate) fn new(memory_bytes_max: usize) -> Self {
        Limits { memory_bytes_max, memory_bytes: 0, memory_refused_bytes: None }
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.memory_bytes + desired.saturating_sub(current);
        if total > self.memory_bytes_max {
            self.memory_refused_bytes = Some(total);
            return Err(wasmtime::Error::msg("out of memory"));
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        INSTANCES_MAX
    }
}
