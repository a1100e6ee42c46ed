//! Files that stay open from one use to the next, because opening and closing one costs more than a short read, an
//! append or a lock.
//!
//! A kept file proves nothing by itself: whoever takes one looks at its path, and uses it only where the very same file
//! lies there, with the same owner and permissions. While it is open, no other file can get its number. A look serves the
//! call of a plugin, which looks at a file before it reads it or appends to it, until the same call looks at that path
//! again; the next call looks again. What is in use is not in here, so two users never share an open file, and with it its
//! lock. Few are kept, and none that nobody used for a second: a document that was deleted or replaced must not occupy the
//! disk, nor a file system its mount.

use std::{
    fs::File,
    mem,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use cap_std::fs::Dir;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use tokio::{runtime::Handle, task::AbortHandle};

use super::locked;

/// Enough for a lock with its turnstile, and for the documents of several collections with what lies beside them.
pub(super) const KEPT_MAX: usize = 16;
/// A file that was not used for so long is closed, at the latest after twice the time.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(1);
/// A deleted file of this size is closed aside: the last who closes it waits until the disk has its blocks back.
const CLOSE_ASIDE_BYTES_MIN: u64 = 1 << 20;

/// What a file was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    /// Reading too, and appending.
    Write,
    /// A lock is of the open file, so a file that is locked serves nothing else.
    Lock,
}

impl Purpose {
    fn flags(self) -> OFlags {
        let access = match self {
            Purpose::Read => OFlags::RDONLY,
            Purpose::Write => OFlags::RDWR | OFlags::APPEND,
            Purpose::Lock => OFlags::RDWR,
        };
        // Without waiting for the other end of a FIFO or for a device.
        access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
    }

    /// A file that was opened for this can be used for `wanted`.
    fn serves(self, wanted: Purpose) -> bool {
        self == wanted || (self, wanted) == (Purpose::Write, Purpose::Read)
    }
}

/// An open regular file.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    /// As it was when it was opened, or at the last look at its path.
    pub(super) stat: Stat,
    /// In which call that was; 0 where it does not count for one.
    seen_in: u64,
    /// Whether the kernel is known to tell every change of this file from the one before by its time.
    pub(super) is_timed_finely: bool,
    /// What it is kept as. None where links or folders lie on the way to it: one look would not show that it is still
    /// there.
    kept_as: Option<(String, Purpose)>,
}

impl Opened {
    /// A file that is closed after its use.
    pub(super) fn once(file: File, stat: Stat) -> Self {
        Opened { file, stat, seen_in: 0, is_timed_finely: false, kept_as: None }
    }

    /// Opens a regular file that lies in the directory itself. None where it is something else, a link or nothing, or
    /// cannot be opened: the full way says what is the matter.
    pub(super) fn in_directory(dir: &Dir, name: &str, purpose: Purpose) -> Option<Self> {
        let flags = purpose.flags() | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?);
        let stat = rustix::fs::fstat(&file).ok().filter(is_regular)?;
        Some(Opened { kept_as: Some((name.to_string(), purpose)), ..Opened::once(file, stat) })
    }

    /// Whether this is what was looked at, and would still be opened by whoever was let in before.
    pub(super) fn is(&self, there: &Stat) -> bool {
        let identity = |stat: &Stat| (stat.st_dev, stat.st_ino, stat.st_mode, stat.st_uid, stat.st_gid);
        identity(&self.stat) == identity(there)
    }

    /// Notes a look at its path, which found it there.
    pub(super) fn see(&mut self, there: Stat, call: u64) {
        self.stat = there;
        self.seen_in = call;
    }

    /// Notes a look at its path, which found something else there, or nothing.
    pub(super) fn miss(&mut self) {
        self.seen_in = 0;
    }

    /// Whether it was found at its path in this call, and by the last look in it.
    pub(super) fn was_seen_in(&self, call: u64) -> bool {
        call != 0 && self.seen_in == call
    }

    /// Closes it without making the caller wait for the disk.
    pub(super) fn close(self) {
        let is_deleted = |stat: Stat| stat.st_nlink == 0 && stat.st_size as u64 >= CLOSE_ASIDE_BYTES_MIN;
        if rustix::fs::fstat(&self.file).is_ok_and(is_deleted)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(self));
        }
    }
}

pub(super) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// The files that are open and not in use, those that were used last at the end.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Idle>);

#[derive(Debug, Default)]
struct Idle {
    files: Vec<KeptFile>,
    /// The task that closes what nobody uses. It ends when nothing is left.
    closer: Option<AbortHandle>,
}

#[derive(Debug)]
struct KeptFile {
    opened: Opened,
    name: String,
    purpose: Purpose,
    /// Since the closer came by.
    was_used: bool,
}

impl Kept {
    /// One that was kept under this name, for its new user alone.
    pub(super) fn take(&self, name: &str, purpose: Purpose) -> Option<Opened> {
        self.take_where(name, purpose, |_| true)
    }

    /// The same of those that were found at their path in this call, with so many bytes.
    pub(super) fn take_seen(&self, name: &str, purpose: Purpose, call: u64, bytes_min: u64) -> Option<Opened> {
        let is_wanted = |opened: &Opened| opened.was_seen_in(call) && opened.stat.st_size as u64 >= bytes_min;
        self.take_where(name, purpose, is_wanted)
    }

    fn take_where(&self, name: &str, purpose: Purpose, is_wanted: impl Fn(&Opened) -> bool) -> Option<Opened> {
        let mut idle = locked(&self.0);
        let is_meant = |kept: &KeptFile| kept.purpose.serves(purpose) && kept.name == name && is_wanted(&kept.opened);
        let index = idle.files.iter().rposition(is_meant)?;
        let KeptFile { opened, name, purpose, .. } = idle.files.remove(index);
        Some(Opened { kept_as: Some((name, purpose)), ..opened })
    }

    /// Notes what a look at a path found. What is kept under this name and is that was seen. What is not counts as seen no
    /// longer, though an earlier look of the same call had found it: or whoever just learned of a new file would be given
    /// the bytes of the one before it.
    pub(super) fn see(&self, name: &str, there: Option<&Stat>, call: u64) {
        let mut idle = locked(&self.0);
        for kept in idle.files.iter_mut().filter(|kept| kept.name == name && kept.purpose != Purpose::Lock) {
            match there {
                Some(there) if kept.opened.is(there) => kept.opened.see(*there, call),
                _ => kept.opened.miss(),
            }
        }
    }

    /// Keeps a file for its next use, if it can be kept. Locks on it must have been let go.
    pub(super) fn put(self: &Arc<Self>, mut opened: Opened) {
        let (Some((name, purpose)), Ok(runtime)) = (opened.kept_as.take(), Handle::try_current()) else {
            return opened.close();
        };
        let excess = {
            let mut idle = locked(&self.0);
            let excess = (idle.files.len() >= KEPT_MAX).then(|| idle.files.remove(0));
            idle.files.push(KeptFile { opened, name, purpose, was_used: true });
            // A closer that ended with its runtime closes nothing more.
            if idle.closer.as_ref().is_none_or(AbortHandle::is_finished) {
                idle.closer = Some(runtime.spawn(close_idle(Arc::downgrade(self))).abort_handle());
            }
            excess
        };
        if let Some(excess) = excess {
            excess.opened.close();
        }
    }

    /// Closes what is kept under this name.
    pub(super) fn forget(&self, name: &str) {
        self.close_unless(|kept| kept.name != name);
    }

    fn close_unless(&self, mut is_kept_on: impl FnMut(&mut KeptFile) -> bool) {
        let closed: Vec<_> = {
            let mut idle = locked(&self.0);
            idle.files.extract_if(.., |kept| !is_kept_on(kept)).collect()
        };
        closed.into_iter().for_each(|kept| kept.opened.close());
    }
}

async fn close_idle(kept: Weak<Kept>) {
    loop {
        tokio::time::sleep(IDLE_MAX).await;
        let Some(kept) = kept.upgrade() else { return };
        kept.close_unless(|kept| mem::take(&mut kept.was_used));
        let mut idle = locked(&kept.0);
        if idle.files.is_empty() {
            idle.closer = None;
            return;
        }
    }
}
