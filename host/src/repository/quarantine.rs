//! A plugin that traps again and again is not called any more: each trap costs a new instance, and whoever waits for an
//! answer gets none. The store it fails at then answers at once with what happened, until the plugin is loaded again.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::{Repository, Store, locked};
use crate::config::PluginSettings;
use crate::error::{Error, Kind, Result};

/// The traps of one store since its plugin last answered. Two flags spare those who answer the mutex.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    is_suspect: AtomicBool,
    is_closed: AtomicBool,
    traps: Mutex<Traps>,
}

#[derive(Debug, Default)]
struct Traps {
    at: VecDeque<Instant>,
    last: Option<Error>,
}

impl Quarantine {
    fn note_trap(&self, error: &Error, settings: &PluginSettings) {
        if settings.traps_max == 0 {
            return;
        }
        let mut traps = locked(&self.traps);
        let now = Instant::now();
        while traps.at.front().is_some_and(|at| now.duration_since(*at) > settings.traps_window) {
            traps.at.pop_front();
        }
        traps.at.push_back(now);
        traps.last = Some(error.clone());
        self.is_suspect.store(true, Ordering::Relaxed);
        if traps.at.len() >= settings.traps_max as usize {
            self.is_closed.store(true, Ordering::Relaxed);
        }
    }

    fn note_answer(&self) {
        // What is closed stays closed: a call that began before may still end well.
        if self.is_suspect.load(Ordering::Relaxed) && !self.is_closed.load(Ordering::Relaxed) {
            self.lift();
        }
    }

    pub(super) fn lift(&self) {
        let mut traps = locked(&self.traps);
        *traps = Traps::default();
        self.is_suspect.store(false, Ordering::Relaxed);
        self.is_closed.store(false, Ordering::Relaxed);
    }
}

impl Store {
    /// An error where the plugin is in quarantine.
    pub(super) fn check_quarantine(&self) -> Result<()> {
        if !self.quarantine.is_closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let last = locked(&self.quarantine.traps).last.clone();
        let message = format!(
            "store `{}` does not call plugin `{}` any more: it failed {} times within {} s, and no call between them ended well",
            self.name,
            self.strategy,
            self.settings.traps_max,
            self.settings.traps_window.as_secs_f64()
        );
        let error = Error::new(Kind::Trap, message)
            .hint("load the plugin again, best another version of it; `plugins.traps_max` is how often it may fail");
        Err(match last {
            Some(last) => last.causes.into_iter().fold(error.caused_by(last.message), Error::caused_by),
            None => error,
        })
    }

    /// The plugin trapped, or did more than it may.
    pub(super) fn note_trap(&self, error: &Error) {
        self.quarantine.note_trap(error, &self.settings);
    }

    /// The plugin answered, be it with an error.
    pub(super) fn note_answer(&self) {
        self.quarantine.note_answer();
    }
}

impl Repository {
    /// Whether the plugin trapped so often that the store does not call it any more: `plugins.traps_max` times within
    /// `plugins.traps_window`, with no call between them that was answered. Every call is [`Kind::Trap`] then, at once.
    pub fn is_quarantined(&self) -> bool {
        self.store.quarantine.is_closed.load(Ordering::Relaxed)
    }

    /// Has the plugin called again, with its traps forgotten. A store that is opened anew begins without any.
    pub fn lift_quarantine(&self) {
        self.store.quarantine.lift();
    }
}
