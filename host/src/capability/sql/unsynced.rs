//! Commits that did not wait for the disk, counted, so that who syncs knows what its sync was for: one that is made while the
//! disk is at work is not taken for one that is on it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Of one database.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    committed: AtomicU64,
    /// As many of them as are known to be on the disk.
    synced: AtomicU64,
    has_failed: AtomicBool,
}

/// A commit under way. However it ends, and also where nobody waits for its end, it is taken for one: to sync once too often
/// does no harm.
pub(super) struct Committing<'a>(&'a Unsynced);

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.0.note();
    }
}

impl Unsynced {
    /// One more was committed, or may have been.
    pub(super) fn note(&self) {
        self.committed.fetch_add(1, Ordering::AcqRel);
    }

    /// To be dropped before anybody is told that it is committed.
    pub(super) fn committing(&self) -> Committing<'_> {
        Committing(self)
    }

    /// A sync failed of which nobody is told a second time: the system forgets what it could not write.
    pub(super) fn note_failed(&self) {
        self.has_failed.store(true, Ordering::Release);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// How many a sync that begins now is for; none where all are on the disk.
    pub(super) fn waiting(&self) -> Option<u64> {
        let committed = self.committed.load(Ordering::Acquire);
        (committed > self.synced.load(Ordering::Acquire)).then_some(committed)
    }

    /// A sync that was for so many has ended well.
    pub(super) fn note_synced(&self, commits: u64) {
        self.synced.fetch_max(commits, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_during_a_sync_waits_for_the_next_one() {
        let unsynced = Unsynced::default();
        assert_eq!(unsynced.waiting(), None);
        unsynced.note();
        let first = unsynced.waiting().unwrap();
        // Until it has ended, another one may not be told that all is on the disk.
        assert_eq!(unsynced.waiting(), Some(first));
        unsynced.note();
        unsynced.note_synced(first);
        let second = unsynced.waiting().unwrap();
        unsynced.note_synced(second);
        drop(unsynced.committing());
        let third = unsynced.waiting().unwrap();
        unsynced.note_synced(third);
        // One that began before and ends later takes nothing back.
        unsynced.note_synced(first);
        assert_eq!(unsynced.waiting(), None);
    }
}
