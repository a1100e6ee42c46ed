//! What one plugin may use, and the tally of it. `docs/configuration.md` lists every limit with its reason.
//!
//! A limit that is hit ends the call: [`Exceeded`] says which one it was, so that the trap that follows becomes an error
//! that names it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use larder_model::ErrorKind;
use wasmtime::ResourceLimiter;
use wasmtime::component::ResourceTableError;

use crate::config::PluginSettings;
use crate::error::Kind;

/// Memory of all instances of a host together.
#[derive(Debug, Default)]
pub(crate) struct MemoryTotal(AtomicUsize);

/// What bounds the plugins of a host.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) settings: PluginSettings,
    pub(crate) memory_total: Arc<MemoryTotal>,
}

/// The limits of one instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) memory_bytes_max: usize,
    pub(crate) memory_total_bytes_max: usize,
    pub(crate) table_elements_max: usize,
    pub(crate) core_instances_max: usize,
    pub(crate) handles_max: usize,
    pub(crate) host_calls_max: u64,
    pub(crate) call_bytes_max: usize,
    pub(crate) log_bytes_max: usize,
}

impl Limits {
    /// Of an instance that only describes itself. It is not one of a store, so its limits are no settings: they hold what
    /// the largest interpreters need to start.
    pub(crate) const DESCRIBING: Limits = Limits {
        memory_bytes_max: 256 << 20,
        memory_total_bytes_max: 256 << 20,
        table_elements_max: 1_000_000,
        core_instances_max: 10_000,
        handles_max: 1000,
        host_calls_max: 1000,
        call_bytes_max: 16 << 20,
        log_bytes_max: 4096,
    };
}

impl From<&PluginSettings> for Limits {
    fn from(settings: &PluginSettings) -> Self {
        Limits {
            memory_bytes_max: settings.memory_bytes_max,
            memory_total_bytes_max: settings.memory_total_bytes_max,
            table_elements_max: settings.table_elements_max,
            core_instances_max: settings.core_instances_max,
            handles_max: settings.handles_max,
            host_calls_max: settings.host_calls_max,
            call_bytes_max: settings.call_bytes_max,
            log_bytes_max: settings.log_bytes_max,
        }
    }
}

/// The limit that a call hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// With what the instance would have had.
    Memory(usize),
    /// With what all instances would have had.
    MemoryTotal(usize),
    TableElements,
    CoreInstances,
    Handles,
    HostCalls,
    CallBytes,
}

impl Exceeded {
    /// A trap where the plugin can be told to do with less, `limit-exceeded` where the data or the neighbours may be why.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Exceeded::Memory(_) | Exceeded::TableElements | Exceeded::CoreInstances => Kind::Trap,
            Exceeded::MemoryTotal(_) | Exceeded::Handles | Exceeded::HostCalls | Exceeded::CallBytes => {
                Kind::Contract(ErrorKind::LimitExceeded)
            }
        }
    }

    /// What the plugin did, between its name and the operation's.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Exceeded::Memory(_) => "ran out of memory",
            Exceeded::MemoryTotal(_) => "found no memory left",
            Exceeded::TableElements => "filled its tables",
            Exceeded::CoreInstances => "is made of too many parts",
            Exceeded::Handles => "held too much",
            Exceeded::HostCalls => "used its capabilities too often",
            Exceeded::CallBytes => "moved too much",
        }
    }

    /// The figures.
    pub(crate) fn why(self, limits: &Limits) -> String {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        match self {
            Exceeded::Memory(bytes) => {
                format!("it wanted {} MiB and may have {} MiB", mib(bytes), mib(limits.memory_bytes_max))
            }
            Exceeded::MemoryTotal(bytes) => format!(
                "all instances together would have {} MiB and may have {} MiB",
                mib(bytes),
                mib(limits.memory_total_bytes_max)
            ),
            Exceeded::TableElements => {
                format!("its tables may have {} elements together", limits.table_elements_max)
            }
            Exceeded::CoreInstances => {
                format!("it may have {} core instances, memories and tables each", limits.core_instances_max)
            }
            Exceeded::Handles => format!("an instance may hold {} handles", limits.handles_max),
            Exceeded::HostCalls => format!("one call may use them {} times", limits.host_calls_max),
            Exceeded::CallBytes => format!("at most {} MiB cross at once", mib(limits.call_bytes_max)),
        }
    }

    /// What to do about it.
    pub(crate) fn hint(self) -> String {
        let key = match self {
            Exceeded::Memory(_) => "memory_mb_max",
            Exceeded::MemoryTotal(_) => "memory_total_mb_max",
            Exceeded::TableElements => "table_elements_max",
            Exceeded::CoreInstances => "core_instances_max",
            Exceeded::Handles => "handles_max",
            Exceeded::HostCalls => "host_calls_max",
            Exceeded::CallBytes => "call_mb_max",
        };
        format!("raise `plugins.{key}` in the configuration if the data needs it")
    }
}

/// Counts what one instance uses, over all of its memories and tables.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) limits: Limits,
    memory_bytes: usize,
    memory_total: Arc<MemoryTotal>,
    /// The last growth, which the system may still refuse.
    memory_added: usize,
    table_elements: usize,
    host_calls: u64,
    exceeded: Option<Exceeded>,
}

impl Tally {
    pub(crate) fn new(limits: Limits, memory_total: Arc<MemoryTotal>) -> Self {
        Tally {
            limits,
            memory_bytes: 0,
            memory_total,
            memory_added: 0,
            table_elements: 0,
            host_calls: 0,
            exceeded: None,
        }
    }

    /// What a call may use again in each call.
    pub(crate) fn begin_call(&mut self) {
        self.host_calls = 0;
    }

    /// Counts a use of a capability.
    pub(crate) fn count_host_call(&mut self) -> wasmtime::Result<()> {
        self.host_calls += 1;
        if self.host_calls > self.limits.host_calls_max {
            return self.refuse(Exceeded::HostCalls);
        }
        Ok(())
    }

    /// The limit that made a call fail with this error.
    pub(crate) fn exceeded(&self, error: &wasmtime::Error) -> Option<Exceeded> {
        // Wasmtime tells its own two by text alone.
        let reason = || error.root_cause().to_string();
        let is_full = || matches!(error.downcast_ref(), Some(ResourceTableError::Full));
        self.exceeded
            .or_else(|| is_full().then_some(Exceeded::Handles))
            .or_else(|| reason().contains("fuel allocated for hostcalls").then_some(Exceeded::CallBytes))
            .or_else(|| reason().starts_with("resource limit exceeded: ").then_some(Exceeded::CoreInstances))
    }

    fn refuse<T>(&mut self, exceeded: Exceeded) -> wasmtime::Result<T> {
        self.exceeded = Some(exceeded);
        Err(wasmtime::Error::msg(exceeded.what()))
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.memory_total.0.fetch_sub(self.memory_bytes, Ordering::Relaxed);
    }
}

impl ResourceLimiter for Tally {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.memory_added = 0;
        let added = desired.saturating_sub(current);
        let bytes = self.memory_bytes.saturating_add(added);
        if bytes > self.limits.memory_bytes_max {
            return self.refuse(Exceeded::Memory(bytes));
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let total = self.memory_total.0.fetch_add(added, Ordering::Relaxed).saturating_add(added);
        if total > self.limits.memory_total_bytes_max {
            self.memory_total.0.fetch_sub(added, Ordering::Relaxed);
            return self.refuse(Exceeded::MemoryTotal(total));
        }
        self.memory_bytes = bytes;
        self.memory_added = added;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_bytes -= self.memory_added;
        self.memory_total.0.fetch_sub(self.memory_added, Ordering::Relaxed);
        self.memory_added = 0;
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let elements = self.table_elements.saturating_add(desired.saturating_sub(current));
        if elements > self.limits.table_elements_max {
            return self.refuse(Exceeded::TableElements);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.table_elements = elements;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.limits.core_instances_max
    }

    fn memories(&self) -> usize {
        self.limits.core_instances_max
    }

    fn tables(&self) -> usize {
        self.limits.core_instances_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn memory_counts_over_all_memories_and_instances_and_is_given_back() {
        let limits = Limits { memory_bytes_max: 3 * MIB, memory_total_bytes_max: 5 * MIB, ..Limits::DESCRIBING };
        let total = Arc::<MemoryTotal>::default();
        let mut first = Tally::new(limits, total.clone());
        // Two memories of one instance.
        assert!(first.memory_growing(0, MIB, None).unwrap());
        assert!(first.memory_growing(0, 2 * MIB, None).unwrap());
        let error = first.memory_growing(2 * MIB, 3 * MIB, None).unwrap_err();
        assert_eq!(first.exceeded(&error), Some(Exceeded::Memory(4 * MIB)));
        // Beyond its own maximum a memory does not grow, and that is no error.
        assert!(!first.memory_growing(MIB, MIB, Some(0)).unwrap());

        let mut second = Tally::new(limits, total.clone());
        assert!(second.memory_growing(0, 2 * MIB, None).unwrap());
        let error = second.memory_growing(2 * MIB, 3 * MIB, None).unwrap_err();
        assert_eq!(second.exceeded(&error), Some(Exceeded::MemoryTotal(6 * MIB)));
        // What the system refused was not taken, and is given back once.
        drop(first);
        assert!(second.memory_growing(2 * MIB, 3 * MIB, None).unwrap());
        for _ in 0..2 {
            second.memory_grow_failed(wasmtime::Error::msg("no memory")).unwrap();
            assert_eq!(total.0.load(Ordering::Relaxed), 2 * MIB);
        }
        drop(second);
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn elements_count_over_all_tables_and_uses_of_capabilities_from_call_to_call() {
        let limits = Limits { table_elements_max: 10, host_calls_max: 2, ..Limits::DESCRIBING };
        let mut tally = Tally::new(limits, Arc::default());
        assert!(tally.table_growing(0, 6, None).unwrap());
        assert!(tally.table_growing(0, 4, None).unwrap());
        let error = tally.table_growing(4, 5, None).unwrap_err();
        assert_eq!(tally.exceeded(&error), Some(Exceeded::TableElements));

        let mut tally = Tally::new(limits, Arc::default());
        for _ in 0..2 {
            tally.begin_call();
            tally.count_host_call().unwrap();
            tally.count_host_call().unwrap();
        }
        let error = tally.count_host_call().unwrap_err();
        assert_eq!(tally.exceeded(&error), Some(Exceeded::HostCalls));
    }
}
