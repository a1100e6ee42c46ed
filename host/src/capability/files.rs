//! The `files` capability: the one directory that a store was granted, and no way out of it.
//!
//! `wit/files.wit` says what each function means. This file knows nothing of WebAssembly: paths, names and bytes come
//! from a plugin and are hostile, so every path is checked, every file is opened without blocking and must be a regular
//! one, and every call is bounded. Messages name the path that the plugin gave, never where the directory lies.
//!
//! Work of microseconds runs where it is called; a blocking thread would cost more than it saves. Syncs, listings and
//! larger transfers run on blocking threads. Files that are used again and again stay open (`kept`).

mod kept;
mod times;

use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    fs::File,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    io::{self, ErrorKind as Io, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::Revision;
use cap_std::{
    ambient_authority,
    fs::{Dir, Metadata, MetadataExt, OpenOptions, OpenOptionsExt, PermissionsExt},
};
use kept::{Kept, Opened, Purpose, is_regular};
use larder_model::json::quoted;
use larder_model::{Error, ErrorKind, Result, Retry};
use rustix::{
    buffer::spare_capacity,
    fs::{AtFlags, FlockOperation, OFlags, Stat},
    io::Errno,
};
use times::{FineTimes, mark_changed};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout_at},
};

/// The most that one `read` brings, whatever was asked for: the bytes are held here and in the plugin at once.
const READ_BYTES_MAX: u32 = 64 << 20;
/// Transfers up to these sizes run where they are called. To read what memory holds takes less time than a blocking thread
/// takes to wake; a write also makes pages.
const INLINE_READ_BYTES_MAX: usize = 256 << 10;
const INLINE_WRITE_BYTES_MAX: usize = 64 << 10;
/// The most that `entries` lists.
const ENTRIES_MAX: usize = 10_000;
/// The most names that `entries` looks at, so that a directory that is no store's cannot fill the memory.
const NAMES_MAX: usize = 1_000_000;
/// Locks and replacements that a plugin may hold at once; each is an open file.
const HANDLES_MAX: usize = 64;
/// The longest path taken; the kernel's own bound.
const PATH_BYTES_MAX: usize = 4096;
/// How often a file that was removed between the look at it and an append is made again.
const APPEND_ATTEMPTS_MAX: u32 = 4;
/// How often a lock file that was replaced between open and lock is opened again.
const LOCK_ATTEMPTS_MAX: u32 = 16;
/// So long, whoever is first in the queue for a lock looks at it without pause: most are held for less.
const LOCK_SPIN: Duration = Duration::from_micros(100);
/// Then it pauses between two looks for a fixed part of what it has waited already, within these bounds.
const LOCK_PAUSE_PART: u32 = 16;
const LOCK_PAUSE_MIN: Duration = Duration::from_micros(50);
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(10);
/// Pauses below this are slept through on a blocking thread: the runtime's clock ticks in milliseconds.
const LOCK_PAUSE_COARSE_MIN: Duration = Duration::from_millis(2);
/// What the turnstile of a lock file is called.
const TURNSTILE_SUFFIX: &str = ".turn";
/// What an unfinished replacement is called: `.<document>.<pid>-<random>.tmp`.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// A file's size, and a value that changes whenever its identity, size or times do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// In bytes.
    pub size: u64,
    /// See `wit/files.wit`.
    pub generation: u64,
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Beside other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

/// The granted directory. Clones are the same grant: they share its locks' reserve and its bound on handles.
///
/// The directory need not exist: until the first write makes it, there are no files in it.
#[derive(Debug, Clone)]
pub struct Directory(Arc<Inner>, Arc<Borrower>);

/// What is of one instance alone.
#[derive(Debug, Default)]
struct Borrower {
    /// The lock files that it holds.
    held: Mutex<Vec<Weak<LockedFile>>>,
    /// The call that it is in, by a number that no other call has; 0 where nobody says.
    call: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    opened: Mutex<Option<Arc<Dir>>>,
    /// The lock that was refused last, which [`Directory::wait_for_lock`] waits for.
    wanted: Mutex<Option<(String, LockMode)>>,
    /// The lock that was waited for, until the plugin's next try takes it.
    reserve: Mutex<Option<(String, LockMode, Lock)>>,
    /// One at a time queues for a turnstile, on a thread that nothing can interrupt.
    queue: Arc<tokio::sync::Mutex<()>>,
    handles: Arc<Semaphore>,
    kept: Arc<Kept>,
    /// Calls that began, of all instances.
    calls: AtomicU64,
    fine_times: FineTimes,
    /// Folders with names that are not durable yet, because `append` made a file or `remove` took one away.
    unsynced_folders: Mutex<HashSet<PathBuf>>,
    /// Folders in which what crashed processes left was looked for.
    swept_folders: Mutex<HashSet<PathBuf>>,
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    /// None where the directory cannot be written to and has no lock file. Work that goes on holds it too.
    file: Option<Arc<LockedFile>>,
    _handle: OwnedSemaphorePermit,
}

/// A file with a lock on it, which is let go when this is dropped. The file may stay open for the next lock.
#[derive(Debug)]
struct LockedFile {
    opened: Option<Opened>,
    kept: Weak<Kept>,
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take()
            && let Some(kept) = self.kept.upgrade()
            && rustix::fs::flock(&opened.file, FlockOperation::Unlock).is_ok()
        {
            kept.put(opened);
        }
    }
}

/// A new document beside the old one. Dropped without [`Replacement::commit`], it leaves nothing.
#[derive(Debug)]
pub struct Replacement {
    directory: Directory,
    path: String,
    state: State,
}

/// Nothing is made before the first write, because the contract's constructor cannot fail.
#[derive(Debug)]
enum State {
    New,
    Open(Temporary),
    /// A write failed: what is there is not what the plugin wrote.
    Failed(Error),
}

/// A file that is removed unless it was renamed. Its lock says that its maker lives.
#[derive(Debug)]
struct Temporary {
    dir: Arc<Dir>,
    /// The document, with links followed, and the folder it lies in.
    target: PathBuf,
    name: PathBuf,
    file: File,
    renamed: bool,
    _handle: OwnedSemaphorePermit,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // There is nobody to tell; the next replacement in this folder sweeps what stayed.
            let _ = self.dir.remove_file(&self.name);
        }
    }
}

impl Directory {
    /// The directory at `path`, which is resolved with the process' own rights and touched by the first use.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Directory(
            Arc::new(Inner {
                path: path.into(),
                opened: Mutex::default(),
                wanted: Mutex::default(),
                reserve: Mutex::default(),
                queue: Arc::default(),
                handles: Arc::new(Semaphore::new(HANDLES_MAX)),
                kept: Arc::default(),
                calls: AtomicU64::new(0),
                fine_times: FineTimes::default(),
                unsynced_folders: Mutex::default(),
                swept_folders: Mutex::default(),
            }),
            Arc::default(),
        )
    }

    /// The same grant for an instance of its own: what the locks of one are held for is nothing to another.
    pub fn for_instance(&self) -> Self {
        Directory(self.0.clone(), Arc::default())
    }

    /// Says that another call of the plugin begins, in which nothing was looked at yet. Where nobody says so, each use of a
    /// file looks at its path.
    pub fn begin_call(&self) {
        self.1.call.store(self.0.calls.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn call(&self) -> u64 {
        self.1.call.load(Ordering::Relaxed)
    }

    fn note_held(&self, lock: Lock) -> Lock {
        let mut held = locked(&self.1.held);
        held.retain(|file| file.strong_count() > 0);
        held.extend(lock.file.as_ref().map(Arc::downgrade));
        lock
    }

    /// Runs work on a blocking thread, where it goes on when whoever waits for it goes away: at the end of a call's time,
    /// say. So until its end it holds every lock that its instance held, or it would write over what the next holder of
    /// a lock wrote.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let held: Vec<Arc<LockedFile>> = locked(&self.1.held).iter().filter_map(Weak::upgrade).collect();
        let guarded = move || {
            let result = work();
            drop(held);
            result
        };
        match tokio::task::spawn_blocking(guarded).await {
            Ok(result) => result,
            Err(error) => Err(Error::new(ErrorKind::Internal, format!("file work was broken off: {error}"))),
        }
    }

    /// `files.try-acquire`: none where another open of the lock file holds it. What was refused is remembered for
    /// [`Self::wait_for_lock`].
    ///
    /// Where the directory cannot be written to, or does not exist, and has no lock file, a shared lock is granted
    /// without one: there is nothing to lock then, and a reader must not need the right to write. A process that may
    /// write there is not kept out by it.
    pub async fn try_acquire(&self, name: &str, mode: LockMode) -> Result<Option<Lock>> {
        check_path(name)?;
        let reserve = locked(&self.0.reserve).take();
        if let Some((reserved, reserved_mode, lock)) = reserve
            && reserved == name
            && reserved_mode == mode
        {
            return Ok(Some(self.note_held(lock)));
        }
        let handle = self.handle()?;
        let turnstile = format!("{name}{TURNSTILE_SUFFIX}");
        // Newcomers pass the turnstile side by side; one that waits holds it alone, and they queue behind it.
        let passed = self.lock_file(&turnstile, mode, LockMode::Shared)?;
        let held = match &passed {
            Attempt::Held(_) | Attempt::NoFile => self.lock_file(name, mode, mode)?,
            Attempt::Refused => Attempt::Refused,
        };
        drop(passed);
        match held {
            Attempt::Held(file) => Ok(Some(self.note_held(Lock { file: Some(Arc::new(file)), _handle: handle }))),
            Attempt::NoFile => Ok(Some(Lock { file: None, _handle: handle })),
            Attempt::Refused => {
                *locked(&self.0.wanted) = Some((name.to_string(), mode));
                Ok(None)
            }
        }
    }

    /// Waits until the lock that [`Self::try_acquire`] refused last is free, and keeps it for the next try with the
    /// same name and mode; any other try, and [`Self::release_reserve`], let it go. Waiters come one after the other,
    /// and before whoever tries later.
    ///
    /// # Errors
    /// `timeout` at the deadline.
    pub async fn wait_for_lock(&self, deadline: Instant) -> Result<()> {
        let Some((name, mode)) = locked(&self.0.wanted).take() else {
            // Busy without a lock: something inside the plugin is in use. There is nothing to wait for but time.
            tokio::time::sleep_until(deadline.min(Instant::now() + LOCK_PAUSE_MAX)).await;
            return if Instant::now() < deadline {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::Timeout, "the store is still in use by another call"))
            };
        };
        let handle = self.handle()?;
        let late = || {
            let message = format!("the lock file {name} is held by another process");
            Error { retry: Retry::Safe, ..Error::new(ErrorKind::Timeout, message) }
        };
        let turn = timeout_at(deadline, self.take_turn(&name, mode)).await.map_err(|_| late())??;
        let file = timeout_at(deadline, self.poll_lock(&name, mode, mode)).await.map_err(|_| late())??;
        drop(turn);
        *locked(&self.0.reserve) = Some((name, mode, Lock { file: file.map(Arc::new), _handle: handle }));
        Ok(())
    }

    /// Lets go of a lock that was waited for and not taken.
    pub fn release_reserve(&self) {
        *locked(&self.0.reserve) = None;
        *locked(&self.0.wanted) = None;
    }

    /// The turnstile of a lock, held alone: whoever has it is first in the queue.
    ///
    /// The queue is the kernel's, which is fair, costs nothing while it stands still, and forgets whoever dies. But
    /// nothing calls a thread back that stands in it: one whose caller was given up stays until its turn and passes it
    /// on. That is soon, since those in front have deadlines too; and it is one thread, since others of this grant queue
    /// behind it. The lock itself, which somebody may hold for ever, nobody waits for like this.
    async fn take_turn(&self, name: &str, purpose: LockMode) -> Result<Option<LockedFile>> {
        let turnstile = format!("{name}{TURNSTILE_SUFFIX}");
        let place = self.0.queue.clone().lock_owned().await;
        match self.lock_file(&turnstile, purpose, LockMode::Exclusive)? {
            Attempt::Held(file) => return Ok(Some(file)),
            Attempt::NoFile => return Ok(None),
            Attempt::Refused => {}
        }
        if let Some(opened) = self.open_lock_file(&turnstile, purpose)? {
            let (sender, receiver) = oneshot::channel();
            let queue = move || {
                let locked =
                    rustix::io::retry_on_intr(|| rustix::fs::flock(&opened.file, FlockOperation::LockExclusive));
                // Closing it, where nobody takes it, lets the lock go.
                let _ = sender.send(locked.map(|()| opened));
                drop(place);
            };
            // Not one of the runtime's threads, whose end a program waits for.
            let _ = thread::Builder::new().name("lock queue".to_string()).spawn(queue);
            if let Ok(Ok(opened)) = receiver.await
                && self.is_at(&turnstile, &opened)?
            {
                return Ok(Some(self.locked_file(opened)));
            }
        }
        // There is no such queue here, or the turnstile was replaced.
        self.poll_lock(&turnstile, purpose, LockMode::Exclusive).await
    }

    /// Looks at a lock until it is free.
    async fn poll_lock(&self, name: &str, purpose: LockMode, mode: LockMode) -> Result<Option<LockedFile>> {
        let begun = Instant::now();
        loop {
            match self.lock_file(name, purpose, mode)? {
                Attempt::Held(file) => return Ok(Some(file)),
                Attempt::NoFile => return Ok(None),
                Attempt::Refused => {}
            }
            let waited = begun.elapsed();
            let pause = (waited / LOCK_PAUSE_PART).clamp(LOCK_PAUSE_MIN, LOCK_PAUSE_MAX);
            if waited < LOCK_SPIN {
                tokio::task::yield_now().await;
            } else if pause < LOCK_PAUSE_COARSE_MIN {
                let _ = tokio::task::spawn_blocking(move || thread::sleep(pause)).await;
            } else {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// One try. `purpose` is what the caller's lock is for: only shared ones do without the right to write.
    fn lock_file(&self, name: &str, purpose: LockMode, mode: LockMode) -> Result<Attempt> {
        let operation = match mode {
            LockMode::Shared => FlockOperation::NonBlockingLockShared,
            LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        for _ in 0..LOCK_ATTEMPTS_MAX {
            let Some(opened) = self.open_lock_file(name, purpose)? else { return Ok(Attempt::NoFile) };
            let is_locked = match rustix::fs::flock(&opened.file, operation) {
                Ok(()) => true,
                Err(Errno::WOULDBLOCK) => false,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(io_error(name, &errno.into())),
            };
            // A lock on a file that was removed or replaced meanwhile would exclude nobody, and tells nothing of who
            // holds the one that is there.
            if self.is_at(name, &opened)? {
                if is_locked {
                    return Ok(Attempt::Held(self.locked_file(opened)));
                }
                self.0.kept.put(opened);
                return Ok(Attempt::Refused);
            }
            self.0.kept.forget(name);
        }
        Err(Error::new(ErrorKind::Unavailable, format!("the lock file {name} is replaced again and again")))
    }

    fn locked_file(&self, opened: Opened) -> LockedFile {
        LockedFile { opened: Some(opened), kept: Arc::downgrade(&self.0.kept) }
    }

    /// A lock file with no lock on it, and for this caller alone. It may be one that was kept open: whether it is the
    /// one that is there is to be looked at when it is locked.
    fn open_lock_file(&self, name: &str, purpose: LockMode) -> Result<Option<Opened>> {
        if let Some(opened) = self.0.kept.take(name, Purpose::Lock).or_else(|| self.open_directly(name, Purpose::Lock))
        {
            return Ok(Some(opened));
        }
        if purpose == LockMode::Shared && self.dir()?.is_none() {
            return Ok(None);
        }
        let made = self.dir_for_writing().and_then(|dir| {
            make_parents(&dir, name)?;
            open_regular(&dir, name, OpenOptions::new().read(true).write(true).create(true))
        });
        match made {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if purpose == LockMode::Shared && error.kind == ErrorKind::Denied => match self.dir()? {
                Some(dir) => absent_is_none(open_regular(&dir, name, OpenOptions::new().read(true))),
                None => Ok(None),
            },
            Err(error) => Err(error),
        }
    }

    /// `files.stat`.
    pub async fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        check_path(path)?;
        if let Some(seen) = self.look(path) {
            return Ok(seen.as_ref().map(stat_of));
        }
        match self.metadata(path)? {
            Some(metadata) if metadata.is_file() => Ok(Some(stat_of_metadata(&metadata))),
            Some(_) => Err(not_regular(path)),
            None => Ok(None),
        }
    }

    /// `files.read`: at most [`READ_BYTES_MAX`] a call.
    pub async fn read(&self, path: &str, offset: u64, max_bytes: u32) -> Result<Option<Vec<u8>>> {
        check_path(path)?;
        // Where more is asked for than was seen, it may be there now.
        let end = offset.saturating_add(max_bytes.into());
        let opened = match self.0.kept.take_seen(path, Purpose::Read, self.call(), end) {
            Some(opened) => Some(opened),
            None => self.open_to_read(path)?,
        };
        let Some(opened) = opened else { return Ok(None) };
        let left = (opened.stat.st_size as u64).saturating_sub(offset);
        let wanted = left.min(max_bytes.min(READ_BYTES_MAX).into()) as usize;
        let name = path.to_string();
        let read = move || {
            let bytes = read_up_to(&opened.file, offset, wanted).map_err(|error| io_error(&name, &error))?;
            Ok((opened, bytes))
        };
        let (opened, bytes) = if wanted <= INLINE_READ_BYTES_MAX { read()? } else { self.blocking(read).await? };
        self.0.kept.put(opened);
        Ok(Some(bytes))
    }

    /// `files.append`.
    pub async fn append(&self, path: &str, data: Vec<u8>) -> Result<FileStat> {
        check_path(path)?;
        let mut seen = self.0.kept.take_seen(path, Purpose::Write, self.call(), 0);
        let mut data = data;
        for _ in 0..APPEND_ATTEMPTS_MAX {
            let mut opened = match seen.take() {
                Some(opened) => opened,
                None => self.open_to_append(path)?,
            };
            let name = path.to_string();
            let small = data.len() <= INLINE_WRITE_BYTES_MAX;
            let append = move || {
                (&opened.file).write_all(&data).map_err(|error| io_error(&name, &error))?;
                if !opened.is_timed_finely {
                    mark_changed(&opened.file);
                }
                opened.stat = rustix::fs::fstat(&opened.file).map_err(|errno| io_error(&name, &errno.into()))?;
                Ok((opened, data))
            };
            let mut appended = if small { append()? } else { self.blocking(append).await? };
            let opened = &mut appended.0;
            // Removed or replaced since the look: what was appended is nowhere.
            if opened.stat.st_nlink > 0 {
                opened.is_timed_finely = opened.is_timed_finely || self.0.fine_times.are_those_of(&opened.stat);
                let stat = stat_of(&opened.stat);
                self.0.kept.put(appended.0);
                return Ok(stat);
            }
            appended.0.close();
            data = appended.1;
        }
        let message = format!("{path} is removed as soon as it is written to");
        Err(Error { retry: Retry::UnknownOutcome, ..Error::new(ErrorKind::Unavailable, message) })
    }

    /// `files.sync`: the file, and its name where that is new.
    pub async fn sync(&self, path: &str) -> Result<()> {
        check_path(path)?;
        let opened = self.open_to_read(path)?.ok_or_else(|| no_file(path))?;
        let dir = self.dir()?.ok_or_else(|| no_file(path))?;
        let folder = folder_of(path);
        let folder_too = locked(&self.0.unsynced_folders).contains(&folder);
        let name = path.to_string();
        let synced = folder.clone();
        let sync = move || {
            opened.file.sync_data().map_err(|error| io_error(&name, &error))?;
            if folder_too {
                sync_folder(&dir, &synced)?;
            }
            Ok(opened)
        };
        self.0.kept.put(self.blocking(sync).await?);
        if folder_too {
            locked(&self.0.unsynced_folders).remove(&folder);
        }
        Ok(())
    }

    /// `files.truncate`.
    pub async fn truncate(&self, path: &str, size: u64) -> Result<()> {
        check_path(path)?;
        let opened = match self.reopen(path, Purpose::Write) {
            Some(opened) => opened,
            None => {
                let dir = self.dir()?.ok_or_else(|| no_file(path))?;
                open_regular(&dir, path, OpenOptions::new().write(true))?
            }
        };
        opened.file.set_len(size).map_err(|error| io_error(path, &error))?;
        mark_changed(&opened.file);
        self.0.kept.put(opened);
        Ok(())
    }

    /// `files.remove`. Of a link, the link is removed.
    pub async fn remove(&self, path: &str) -> Result<bool> {
        check_path(path)?;
        let Some(dir) = self.dir()? else { return Ok(false) };
        let Some(metadata) = absent_is_none(dir.symlink_metadata(path).map_err(|error| io_error(path, &error)))? else {
            return Ok(false);
        };
        if !metadata.is_file() && !metadata.is_symlink() {
            return Err(not_regular(path));
        }
        let removed = dir.remove_file(path).map_err(|error| io_error(path, &error));
        self.0.kept.forget(path);
        locked(&self.0.unsynced_folders).insert(folder_of(path));
        Ok(absent_is_none(removed)?.is_some())
    }

    /// `files.entries`. Unfinished replacements are not listed: they are no documents, and are swept when their maker
    /// is gone.
    pub async fn entries(&self, prefix: &str) -> Result<Vec<(String, FileStat)>> {
        let (folder, name_prefix) = match prefix.rsplit_once('/') {
            Some((folder, name_prefix)) => {
                check_path(folder)?;
                (folder.to_string(), name_prefix.to_string())
            }
            None => (String::new(), prefix.to_string()),
        };
        if prefix.contains('\0') || prefix.len() > PATH_BYTES_MAX {
            return Err(Error::invalid("the prefix is no path"));
        }
        let Some(dir) = self.dir()? else { return Ok(Vec::new()) };
        self.blocking(move || list(&dir, &folder, &name_prefix)).await
    }

    /// Of all that lies in the directory, see [`Revision`].
    pub(crate) async fn revision(&self) -> Option<Revision> {
        let dir = self.dir().ok()??;
        self.blocking(move || Ok(Revision::of(&dir))).await.ok()?
    }

    /// `files.free-space`.
    pub async fn free_space(&self) -> Result<u64> {
        let unknown = |errno: Errno| io_error("the directory", &errno.into());
        if let Some(dir) = self.dir()? {
            let space = rustix::fs::fstatvfs(&*dir).map_err(unknown)?;
            return Ok(space.f_bavail.saturating_mul(space.f_frsize));
        }
        // It will be made below the nearest folder that exists.
        let absolute = std::path::absolute(&self.0.path).map_err(|error| io_error("the directory", &error))?;
        for folder in absolute.ancestors().skip(1) {
            match rustix::fs::statvfs(folder) {
                Ok(space) => return Ok(space.f_bavail.saturating_mul(space.f_frsize)),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(unknown(errno)),
            }
        }
        Err(unknown(Errno::NOENT))
    }

    /// `files.replacement`: whatever is wrong with `path`, the first write or the commit says.
    pub fn replacement(&self, path: &str) -> Replacement {
        Replacement { directory: self.clone(), path: path.to_string(), state: State::New }
    }

    /// One look at a path: a regular file that lies in the directory itself, or that there is none. None where that does
    /// not tell: a link, something else, folders on the way, a directory that is not open or was removed.
    ///
    /// A file that is found shows that the directory is still there: in one that was removed nothing lies.
    fn glance(&self, path: &str) -> Option<Option<Stat>> {
        let dir = self.directly(path)?;
        match rustix::fs::statat(&*dir, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => is_regular(&stat).then_some(Some(stat)),
            Err(Errno::NOENT) => exists(&dir).then_some(None),
            Err(_) => None,
        }
    }

    /// A glance that counts for what follows in this call. Where it does not tell, nothing that was seen counts.
    fn look(&self, path: &str) -> Option<Option<Stat>> {
        let seen = self.glance(path);
        self.0.kept.see(path, seen.as_ref().and_then(Option::as_ref), self.call());
        seen
    }

    /// The directory as it was opened last, for a path that is the name of something in it. Such a name, not followed
    /// where it is a link, leads nowhere else.
    fn directly(&self, path: &str) -> Option<Arc<Dir>> {
        if path.contains('/') { None } else { locked(&self.0.opened).clone() }
    }

    fn open_directly(&self, path: &str, purpose: Purpose) -> Option<Opened> {
        Opened::in_directory(&*self.directly(path)?, path, purpose)
    }

    /// Whether the path leads to this very file.
    fn is_at(&self, path: &str, opened: &Opened) -> Result<bool> {
        if let Some(seen) = self.glance(path) {
            return Ok(seen.is_some_and(|there| opened.is(&there)));
        }
        let number = (opened.stat.st_dev, opened.stat.st_ino);
        Ok(self.metadata(path)?.is_some_and(|there| (there.dev(), there.ino()) == number))
    }

    /// The file at a path, if it was kept open or can be opened without further ado.
    fn reopen(&self, path: &str, purpose: Purpose) -> Option<Opened> {
        while let Some(mut opened) = self.0.kept.take(path, purpose) {
            match self.look(path) {
                Some(Some(there)) if opened.is(&there) => {
                    opened.see(there, self.call());
                    return Some(opened);
                }
                _ => opened.close(),
            }
        }
        // To open it is a look, too.
        let opened = self.open_directly(path, purpose);
        self.0.kept.see(path, opened.as_ref().map(|opened| &opened.stat), self.call());
        opened
    }

    fn open_to_read(&self, path: &str) -> Result<Option<Opened>> {
        if let Some(opened) = self.reopen(path, Purpose::Read) {
            return Ok(Some(opened));
        }
        let Some(dir) = self.dir()? else { return Ok(None) };
        absent_is_none(open_regular(&dir, path, OpenOptions::new().read(true)))
    }

    fn open_to_append(&self, path: &str) -> Result<Opened> {
        if let Some(opened) = self.reopen(path, Purpose::Write) {
            return Ok(opened);
        }
        let dir = self.dir_for_writing()?;
        make_parents(&dir, path)?;
        let is_new = absent_is_none(dir.symlink_metadata(path).map_err(|error| io_error(path, &error)))?.is_none();
        let opened = open_regular(&dir, path, OpenOptions::new().read(true).append(true).create(true))?;
        if is_new {
            locked(&self.0.unsynced_folders).insert(folder_of(path));
        }
        Ok(opened)
    }

    /// The directory, where it exists. One that was removed meanwhile is looked for again under its path.
    fn dir(&self) -> Result<Option<Arc<Dir>>> {
        let mut opened = locked(&self.0.opened);
        if let Some(dir) = &*opened
            && exists(dir)
        {
            return Ok(Some(dir.clone()));
        }
        *opened = match Dir::open_ambient_dir(&self.0.path, ambient_authority()) {
            Ok(dir) => Some(Arc::new(dir)),
            Err(error) if error.kind() == Io::NotFound => None,
            Err(error) => return Err(io_error("the directory", &error)),
        };
        Ok(opened.clone())
    }

    fn dir_for_writing(&self) -> Result<Arc<Dir>> {
        if let Some(dir) = self.dir()? {
            return Ok(dir);
        }
        let failed = |error: io::Error| io_error("the directory", &error);
        let absolute = std::path::absolute(&self.0.path).map_err(failed)?;
        let missing: Vec<_> = absolute.ancestors().take_while(|folder| !folder.exists()).collect();
        Dir::create_ambient_dir_all(&absolute, ambient_authority()).map_err(failed)?;
        for folder in missing {
            // A directory that a crash takes away would take what was acknowledged in it along.
            if let Some(parent) = folder.parent() {
                File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
            }
        }
        self.dir()?
            .ok_or_else(|| Error::new(ErrorKind::Unavailable, "the directory was removed as soon as it was made"))
    }

    fn metadata(&self, path: &str) -> Result<Option<Metadata>> {
        match self.dir()? {
            Some(dir) => absent_is_none(dir.metadata(path).map_err(|error| io_error(path, &error))),
            None => Ok(None),
        }
    }

    fn handle(&self) -> Result<OwnedSemaphorePermit> {
        self.0.handles.clone().try_acquire_owned().map_err(|_| {
            let message = format!("more than {HANDLES_MAX} locks and replacements at once");
            Error::new(ErrorKind::LimitExceeded, message)
        })
    }

    fn open_temporary(&self, path: &str) -> Result<Temporary> {
        check_path(path)?;
        let handle = self.handle()?;
        let dir = self.dir_for_writing()?;
        make_parents(&dir, path)?;
        let failed = |error: io::Error| io_error(path, &error);
        // A rename would put a file in the place of a link; the document that the link names is replaced instead.
        let mut target = PathBuf::from(path);
        let mut old = absent_is_none(dir.symlink_metadata(path).map_err(failed))?;
        if old.as_ref().is_some_and(Metadata::is_symlink) {
            target = dir.canonicalize(path).map_err(failed)?;
            old = Some(dir.symlink_metadata(&target).map_err(failed)?);
        }
        if old.as_ref().is_some_and(|metadata| !metadata.is_file()) {
            return Err(not_regular(path));
        }
        let folder = target.parent().map(Path::to_path_buf).unwrap_or_default();
        if locked(&self.0.swept_folders).insert(folder.clone()) {
            sweep(&dir, &folder);
        }
        let document = target.file_name().unwrap_or_default().to_string_lossy();
        let unguessable = RandomState::new().hash_one(std::process::id());
        let name = folder.join(format!(".{document}.{}-{unguessable:016x}{TEMPORARY_SUFFIX}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        if old.is_some() {
            // Nobody may read it before it has the old document's permissions.
            options.mode(0o600);
        }
        let file = dir.open_with(&name, &options).map_err(failed)?.into_std();
        let temporary = Temporary { dir, target, name, file, renamed: false, _handle: handle };
        temporary.file.try_lock().map_err(|error| failed(error.into()))?;
        if let Some(old) = old {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(old.permissions().mode() & 0o7777);
            temporary.file.set_permissions(permissions).map_err(failed)?;
        }
        Ok(temporary)
    }
}

impl Replacement {
    /// Appends to the new document.
    pub async fn write(&mut self, data: Vec<u8>) -> Result<()> {
        let mut temporary = self.take_open()?;
        let path = self.path.clone();
        let small = data.len() <= INLINE_WRITE_BYTES_MAX;
        let write = move || match temporary.file.write_all(&data) {
            Ok(()) => Ok(temporary),
            Err(error) => Err(io_error(&path, &error)),
        };
        let written = if small { write() } else { self.directory.blocking(write).await };
        match written {
            Ok(temporary) => {
                self.state = State::Open(temporary);
                Ok(())
            }
            Err(error) => {
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }

    /// Puts it in the old document's place, which keeps existing as `keep_old_as` where that is given.
    pub async fn commit(mut self, keep_old_as: Option<&str>, durable: bool) -> Result<FileStat> {
        if let Some(name) = keep_old_as {
            check_path(name)?;
        }
        let temporary = self.take_open()?;
        let path = std::mem::take(&mut self.path);
        let keep_old_as = keep_old_as.map(str::to_string);
        self.directory.0.kept.forget(&path);
        self.directory.blocking(move || commit(temporary, &path, keep_old_as.as_deref(), durable)).await
    }

    /// The open file, made where this is the first use. What goes wrong while it is out leaves the state failed.
    fn take_open(&mut self) -> Result<Temporary> {
        let unfinished = Error::new(ErrorKind::Internal, "a write of the new document did not end");
        match std::mem::replace(&mut self.state, State::Failed(unfinished)) {
            State::Open(temporary) => Ok(temporary),
            State::New => self.directory.open_temporary(&self.path).inspect_err(|error| {
                self.state = State::Failed(error.clone());
            }),
            State::Failed(error) => {
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }
}

fn commit(mut temporary: Temporary, path: &str, keep_old_as: Option<&str>, durable: bool) -> Result<FileStat> {
    let failed = |error: io::Error| io_error(path, &error);
    // The kernel's file times tick in milliseconds, and inode numbers are used again: without this, two commits of one
    // size in one tick could look alike to another process.
    mark_changed(&temporary.file);
    if durable {
        temporary.file.sync_all().map_err(failed)?;
    }
    if let Some(keep_old_as) = keep_old_as {
        keep(&temporary, keep_old_as, durable)?;
    }
    let Temporary { dir, name, target, .. } = &temporary;
    if let Err(error) = dir.rename(name, dir, target) {
        if let Some(keep_old_as) = keep_old_as {
            let _ = dir.remove_file(keep_old_as);
        }
        return Err(failed(error));
    }
    temporary.renamed = true;
    // From here on the new document is what everybody sees, though a crash could still bring the old one back.
    let sync_and_stat = || {
        if durable {
            sync_folder(&temporary.dir, temporary.target.parent().unwrap_or(Path::new("")))?;
        }
        stat_of_file(&temporary.file, path)
    };
    sync_and_stat().map_err(|error| Error { retry: Retry::UnknownOutcome, ..error })
}

/// Gives the old document a second name, or copies it where the file system has no hard links. Never overwrites.
fn keep(temporary: &Temporary, keep_old_as: &str, durable: bool) -> Result<()> {
    let Temporary { dir, target, .. } = temporary;
    make_parents(dir, keep_old_as)?;
    let failed = |error: io::Error| io_error(keep_old_as, &error);
    match dir.hard_link(target, dir, keep_old_as) {
        Err(error) if error.kind() == Io::NotFound => Ok(()),
        Err(error) if links_are_refused(&error) => {
            let mut old = dir.open(target).map_err(failed)?;
            let mut copy = dir
                .open_with(keep_old_as, OpenOptions::new().write(true).create_new(true).mode(0o600))
                .map_err(failed)?;
            let copied = io::copy(&mut old, &mut copy)
                .and_then(|_| if durable { copy.sync_all() } else { Ok(()) })
                .and_then(|()| copy.set_permissions(old.metadata()?.permissions()));
            copied.map_err(|error| {
                let _ = dir.remove_file(keep_old_as);
                failed(error)
            })
        }
        linked => linked.map_err(failed),
    }
}

fn links_are_refused(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK].into_iter().any(|refusal| errno == Some(refusal))
}

enum Attempt {
    Held(LockedFile),
    Refused,
    NoFile,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// cap-std keeps every path inside; this refuses early, and by name, what it would refuse or read differently.
fn check_path(path: &str) -> Result<()> {
    let denied = |message: String| Err(Error::new(ErrorKind::Denied, message));
    if path.is_empty() || path.contains('\0') || path.len() > PATH_BYTES_MAX {
        return Err(Error::invalid("a path is 1 to 4096 bytes without NUL"));
    }
    if path.starts_with('/') {
        return denied(format!("{} is not relative to the store's directory", quoted(path)));
    }
    for part in path.split('/') {
        match part {
            ".." => return denied(format!("{} leads out of the store's directory", quoted(path))),
            "" | "." => return Err(Error::invalid(format!("{} has an empty part", quoted(path)))),
            _ => {}
        }
    }
    Ok(())
}

fn folder_of(path: &str) -> PathBuf {
    Path::new(path).parent().map(Path::to_path_buf).unwrap_or_default()
}

fn make_parents(dir: &Dir, path: &str) -> Result<()> {
    let folder = folder_of(path);
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    match dir.create_dir_all(&folder) {
        // A link, perhaps one that leads out: what is done next says so.
        Err(error) if error.kind() == Io::AlreadyExists => Ok(()),
        made => made.map_err(|error| io_error(path, &error)),
    }
}

fn sync_folder(dir: &Dir, folder: &Path) -> Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    // Opened as a file: cap-std opens folders for looking up names only, and those cannot be synced.
    dir.open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io_error("the directory", &error))
}

/// Opens without waiting for the other end of a FIFO or for a device, and takes regular files only.
fn open_regular(dir: &Dir, path: &str, options: &mut OpenOptions) -> Result<Opened> {
    options.custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = dir.open_with(path, options).map_err(|error| io_error(path, &error))?.into_std();
    let stat = rustix::fs::fstat(&file).map_err(|errno| io_error(path, &errno.into()))?;
    if is_regular(&stat) { Ok(Opened::once(file, stat)) } else { Err(not_regular(path)) }
}

fn read_up_to(file: &File, offset: u64, wanted: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(wanted);
    while bytes.len() < wanted {
        let from = offset + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), from) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    bytes.truncate(wanted);
    Ok(bytes)
}

fn list(dir: &Dir, folder: &str, name_prefix: &str) -> Result<Vec<(String, FileStat)>> {
    let failed = |error: io::Error| io_error(if folder.is_empty() { "the directory" } else { folder }, &error);
    let read = if folder.is_empty() { dir.entries() } else { dir.read_dir(folder) };
    let Some(read) = absent_is_none(read.map_err(failed))? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in read {
        // A name that is not UTF-8 cannot be asked for, so it is not listed.
        let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
        if name.starts_with(name_prefix) && !is_temporary(&name) {
            names.push(name);
        }
        if names.len() > NAMES_MAX {
            return Err(Error::new(ErrorKind::LimitExceeded, format!("more than {NAMES_MAX} files")));
        }
    }
    names.sort_unstable();
    let mut entries = Vec::new();
    for name in names {
        let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        // A link that leads outside, and what was removed since, is no regular file here.
        if let Ok(metadata) = dir.metadata(&path)
            && metadata.is_file()
        {
            entries.push((path, stat_of_metadata(&metadata)));
        }
        if entries.len() == ENTRIES_MAX {
            break;
        }
    }
    Ok(entries)
}

/// `.<document>.<pid>-<16 hex digits>.tmp`
fn is_temporary(name: &str) -> bool {
    let Some((_, maker)) = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(TEMPORARY_SUFFIX))
        .and_then(|name| name.rsplit_once('.'))
    else {
        return false;
    };
    maker.split_once('-').is_some_and(|(pid, random)| {
        !pid.is_empty()
            && pid.bytes().all(|byte| byte.is_ascii_digit())
            && random.len() == 16
            && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Removes what processes that died left unfinished: whoever lives holds a lock on its own. Failures are left to the
/// next sweep.
fn sweep(dir: &Dir, folder: &Path) {
    let read = if folder.as_os_str().is_empty() { dir.entries() } else { dir.read_dir(folder) };
    for entry in read.into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !is_temporary(&name) {
            continue;
        }
        let path = folder.join(name);
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        if let Ok(file) = dir.open_with(&path, &options)
            && file.into_std().try_lock().is_ok()
        {
            let _ = dir.remove_file(&path);
        }
    }
}

/// Nothing can be made any more in a directory that was removed, and nothing lies there.
fn exists(dir: &Dir) -> bool {
    rustix::fs::fstat(dir).is_ok_and(|stat| stat.st_nlink > 0)
}

fn stat_of_file(file: &File, path: &str) -> Result<FileStat> {
    rustix::fs::fstat(file).map(|stat| stat_of(&stat)).map_err(|errno| io_error(path, &errno.into()))
}

// How wide the system's numbers are differs from one to the next.
#[allow(clippy::unnecessary_cast)]
fn stat_of(stat: &Stat) -> FileStat {
    let times = [stat.st_mtime as i64, stat.st_mtime_nsec as i64, stat.st_ctime as i64, stat.st_ctime_nsec as i64];
    file_stat(stat.st_dev as u64, stat.st_ino as u64, stat.st_size as u64, times)
}

fn stat_of_metadata(metadata: &Metadata) -> FileStat {
    let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
    file_stat(metadata.dev(), metadata.ino(), metadata.size(), times)
}

fn file_stat(device: u64, inode: u64, size: u64, times: [i64; 4]) -> FileStat {
    let mut hasher = DefaultHasher::new();
    (device, inode, size, times).hash(&mut hasher);
    FileStat { size, generation: hasher.finish() }
}

fn not_regular(path: &str) -> Error {
    Error::invalid(format!("{path} is not a regular file"))
}

fn no_file(path: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no file {path}"))
}

fn absent_is_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The one place where the system's errors become the contract's.
fn io_error(path: &str, error: &io::Error) -> Error {
    match Errno::from_io_error(error) {
        // cap-std answers an attempt to leave with an error of its own, which no system call made.
        None if error.kind() == Io::PermissionDenied => {
            return Error::new(ErrorKind::Denied, format!("{path} leads out of the store's directory"));
        }
        // No one reads the FIFO, or there is no device or no socket behind the name.
        Some(Errno::NXIO | Errno::NODEV) => return not_regular(path),
        Some(Errno::LOOP) => return Error::invalid(format!("{path} is a link that leads back to itself")),
        Some(Errno::MFILE | Errno::NFILE) => {
            return Error::new(ErrorKind::Unavailable, format!("{path} cannot be opened: too many open files"));
        }
        _ => {}
    }
    let (kind, what) = match error.kind() {
        Io::NotFound => return no_file(path),
        Io::AlreadyExists => (ErrorKind::AlreadyExists, "exists already"),
        Io::PermissionDenied => (ErrorKind::Denied, "is not accessible: permission denied"),
        Io::ReadOnlyFilesystem => (ErrorKind::Denied, "cannot be written: the file system is read-only"),
        Io::StorageFull => (ErrorKind::LimitExceeded, "cannot be written: the disk is full"),
        Io::QuotaExceeded => (ErrorKind::LimitExceeded, "cannot be written: the disk quota is used up"),
        Io::FileTooLarge => (ErrorKind::LimitExceeded, "cannot be written: the file is too large for its file system"),
        Io::NotADirectory | Io::IsADirectory => return not_regular(path),
        Io::InvalidFilename | Io::InvalidInput => (ErrorKind::InvalidArgument, "is no name that the file system takes"),
        _ => return Error::new(ErrorKind::Unavailable, format!("{path} cannot be used: {}", error.kind())),
    };
    Error::new(kind, format!("{path} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    fn store() -> (tempfile::TempDir, Directory) {
        let outer = tempfile::tempdir().unwrap();
        let directory = Directory::new(outer.path().join("store"));
        (outer, directory)
    }

    async fn put(directory: &Directory, path: &str, text: &str, keep_old_as: Option<&str>) -> Result<FileStat> {
        let mut replacement = directory.replacement(path);
        replacement.write(text.as_bytes().to_vec()).await?;
        replacement.commit(keep_old_as, true).await
    }

    async fn text(directory: &Directory, path: &str) -> Option<String> {
        directory.read(path, 0, u32::MAX).await.unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn in_ms(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[tokio::test]
    async fn a_directory_that_does_not_exist_reads_as_empty_and_is_made_by_the_first_write() {
        let (outer, directory) = store();
        assert_eq!(directory.stat("a").await.unwrap(), None);
        assert_eq!(directory.read("a", 0, 10).await.unwrap(), None);
        assert_eq!(directory.entries("").await.unwrap(), []);
        assert!(!directory.remove("a").await.unwrap());
        assert!(directory.free_space().await.unwrap() > 0);
        assert!(directory.try_acquire("lock", LockMode::Shared).await.unwrap().is_some());
        assert!(!outer.path().join("store").exists());
        directory.append("folder/a", b"one".to_vec()).await.unwrap();
        assert_eq!(directory.append("folder/a", b"two".to_vec()).await.unwrap().size, 6);
        directory.sync("folder/a").await.unwrap();
        assert_eq!(text(&directory, "folder/a").await.unwrap(), "onetwo");
        assert_eq!(directory.read("folder/a", 2, 3).await.unwrap().unwrap(), b"etw");
        assert_eq!(directory.read("folder/a", 9, 3).await.unwrap().unwrap(), b"");
        directory.truncate("folder/a", 1).await.unwrap();
        assert_eq!(text(&directory, "folder/a").await.unwrap(), "o");
        let entries = directory.entries("folder/").await.unwrap();
        assert_eq!(
            entries.iter().map(|(path, stat)| (path.as_str(), stat.size)).collect::<Vec<_>>(),
            [("folder/a", 1)]
        );
        assert!(directory.remove("folder/a").await.unwrap());
    }

    #[tokio::test]
    async fn no_path_leads_out() {
        let (outer, directory) = store();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        directory.append("inside", b"x".to_vec()).await.unwrap();
        symlink(outer.path().join("secret"), outer.path().join("store/absolute")).unwrap();
        symlink("../secret", outer.path().join("store/relative")).unwrap();
        symlink("..", outer.path().join("store/up")).unwrap();
        let absolute = outer.path().join("secret").to_str().unwrap().to_owned();
        for path in ["../secret", "a/../../secret", "absolute", "relative", "up/secret", &absolute] {
            let answers = [
                directory.read(path, 0, 10).await.err(),
                directory.stat(path).await.err(),
                directory.append(path, b"x".to_vec()).await.err(),
                directory.truncate(path, 0).await.err(),
                directory.sync(path).await.err(),
                directory.try_acquire(path, LockMode::Exclusive).await.err(),
                put(&directory, path, "x", None).await.err(),
            ];
            for (i, error) in answers.into_iter().enumerate() {
                let error = error.unwrap_or_else(|| panic!("function {i} took {path}"));
                assert_eq!(error.kind, ErrorKind::Denied, "{i} {path}: {error}");
                assert!(path == absolute || !error.message.contains(outer.path().to_str().unwrap()), "{error}");
            }
            assert!(put(&directory, "inside", "y", Some(path)).await.is_err(), "{path}");
        }
        assert_eq!(fs::read(outer.path().join("secret")).unwrap(), b"secret");
        assert_eq!(text(&directory, "inside").await.unwrap(), "x");
        let listed: Vec<_> = directory.entries("").await.unwrap().into_iter().map(|(path, _)| path).collect();
        assert!(listed.iter().all(|path| path == "inside" || path.ends_with(TURNSTILE_SUFFIX)), "{listed:?}");
        for path in ["", "a\0b", "a//b", "./a", "a/", &"a".repeat(PATH_BYTES_MAX + 1), &"a".repeat(300)] {
            let error = directory.append(path, b"x".to_vec()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{path}: {error}");
        }
    }

    #[tokio::test]
    async fn what_is_no_regular_file_is_refused_at_once() {
        let (outer, directory) = store();
        directory.append("a", b"x".to_vec()).await.unwrap();
        let store = Dir::open_ambient_dir(outer.path().join("store"), ambient_authority()).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(&store, "fifo", rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(outer.path().join("store/socket")).unwrap();
        store.create_dir("folder").unwrap();
        let work = async {
            for path in ["fifo", "socket", "folder"] {
                let answers = [
                    directory.read(path, 0, 10).await.err(),
                    directory.stat(path).await.err(),
                    directory.append(path, b"x".to_vec()).await.err(),
                    directory.truncate(path, 0).await.err(),
                    directory.sync(path).await.err(),
                    directory.remove(path).await.err(),
                    directory.try_acquire(path, LockMode::Exclusive).await.err(),
                    put(&directory, path, "x", None).await.err(),
                ];
                for (i, error) in answers.into_iter().enumerate() {
                    let error = error.unwrap_or_else(|| panic!("function {i} took {path}"));
                    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{i} {path}: {error}");
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), work).await.unwrap();
    }

    #[tokio::test]
    async fn a_replacement_keeps_permissions_and_the_old_document_and_overwrites_no_backup() {
        let (outer, directory) = store();
        let first = put(&directory, "doc", "one", Some("bak-1")).await.unwrap();
        assert_eq!(directory.stat("bak-1").await.unwrap(), None, "there was no old document");
        let path = outer.path().join("store/doc");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        let second = put(&directory, "doc", "two", Some("bak-1")).await.unwrap();
        assert_ne!(first.generation, second.generation);
        assert_eq!(directory.stat("doc").await.unwrap(), Some(second));
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o777, 0o640);
        assert_eq!(text(&directory, "bak-1").await.unwrap(), "one");
        let taken = put(&directory, "doc", "three", Some("bak-1")).await.unwrap_err();
        assert_eq!(taken.kind, ErrorKind::AlreadyExists);
        assert_eq!(text(&directory, "doc").await.unwrap(), "two");
        assert_eq!(fs::read_dir(outer.path().join("store")).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_replacement_that_is_dropped_leaves_nothing() {
        let (outer, directory) = store();
        let mut replacement = directory.replacement("doc");
        replacement.write(vec![b'x'; 3 * INLINE_WRITE_BYTES_MAX]).await.unwrap();
        assert_eq!(fs::read_dir(outer.path().join("store")).unwrap().count(), 1);
        assert_eq!(directory.entries("").await.unwrap(), []);
        drop(replacement);
        assert_eq!(fs::read_dir(outer.path().join("store")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_swept_and_what_a_living_one_writes_is_not() {
        let (outer, directory) = store();
        let mut living = directory.replacement("doc");
        living.write(b"living".to_vec()).await.unwrap();
        let left = outer.path().join("store/.doc.123-0123456789abcdef.tmp");
        fs::write(&left, "half").unwrap();
        fs::write(outer.path().join("store/.mine.tmp"), "a file of its own").unwrap();
        let other = Directory::new(outer.path().join("store"));
        put(&other, "doc", "other", None).await.unwrap();
        assert!(!left.exists());
        living.commit(None, false).await.unwrap();
        assert_eq!(text(&other, "doc").await.unwrap(), "living");
        assert_eq!(text(&other, ".mine.tmp").await.unwrap(), "a file of its own");
    }

    #[tokio::test]
    async fn a_document_behind_a_link_is_replaced_where_it_lies() {
        let (outer, directory) = store();
        put(&directory, "real/doc", "one", None).await.unwrap();
        symlink("real/doc", outer.path().join("store/link")).unwrap();
        put(&directory, "link", "two", Some("bak")).await.unwrap();
        assert!(fs::symlink_metadata(outer.path().join("store/link")).unwrap().is_symlink());
        assert_eq!(text(&directory, "real/doc").await.unwrap(), "two");
        assert_eq!(text(&directory, "bak").await.unwrap(), "one");
    }

    #[tokio::test]
    async fn two_opens_of_one_directory_exclude_each_other() {
        let (outer, one) = store();
        let two = Directory::new(outer.path().join("store"));
        let held = one.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap();
        assert!(two.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
        assert!(two.try_acquire("lock", LockMode::Shared).await.unwrap().is_none());
        let error = two.wait_for_lock(in_ms(20)).await.unwrap_err();
        assert_eq!((error.kind, error.message.contains("lock")), (ErrorKind::Timeout, true));
        drop(held);
        let shared = two.try_acquire("lock", LockMode::Shared).await.unwrap().unwrap();
        let beside = one.try_acquire("lock", LockMode::Shared).await.unwrap().unwrap();
        assert!(one.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
        drop((shared, beside));
        assert!(one.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_lock_that_was_waited_for_is_kept_for_the_next_try() {
        let (outer, one) = store();
        let two = Directory::new(outer.path().join("store"));
        let held = one.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap();
        assert!(two.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
        let release = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(held);
        };
        let (waited, ()) = tokio::join!(two.wait_for_lock(in_ms(5_000)), release);
        waited.unwrap();
        assert!(one.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none(), "it is in reserve");
        let taken = two.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap();
        assert!(one.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
        drop(taken);
        assert!(one.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn a_writer_gets_its_turn_among_readers_that_never_pause() {
        let (outer, writer) = store();
        drop(writer.try_acquire("lock", LockMode::Exclusive).await.unwrap());
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let reader = Directory::new(outer.path().join("store"));
                let stop = stop.clone();
                tokio::spawn(async move {
                    let mut held = None;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        // The next lock is taken before the last one is let go, so that readers alone leave no gap.
                        let Some(next) = reader.try_acquire("lock", LockMode::Shared).await.unwrap() else {
                            drop(held.take());
                            reader.wait_for_lock(in_ms(10_000)).await.unwrap();
                            continue;
                        };
                        tokio::time::sleep(Duration::from_micros(300)).await;
                        held = Some(next);
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            while writer.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none() {
                writer.wait_for_lock(in_ms(5_000)).await.unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for reader in readers {
            reader.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_lock_file_that_was_replaced_excludes_all_the_same() {
        let (outer, one) = store();
        let two = Directory::new(outer.path().join("store"));
        for file in ["lock", "lock.turn"] {
            for directory in [&one, &two, &one, &two] {
                drop(directory.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap());
            }
            let old = one.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap();
            assert!(two.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
            fs::remove_file(outer.path().join("store").join(file)).unwrap();
            if file == "lock" {
                // Who holds the old file keeps nobody out of the new one.
                let new = two.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap();
                drop(old);
                assert!(one.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
                drop(new);
            }
        }
        for directory in [&one, &two] {
            drop(directory.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap());
            fs::remove_file(outer.path().join("store/lock")).unwrap();
            let _held = directory.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap();
            for other in [&one, &two] {
                assert!(other.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
            }
        }
    }

    /// Uses the files so often that they are kept open.
    async fn warm(directory: &Directory) {
        for _ in 0..2 {
            drop(directory.try_acquire("doc.lock", LockMode::Exclusive).await.unwrap().unwrap());
            directory.append("doc", b"warm".to_vec()).await.unwrap();
            directory.read("read-only", 0, 1).await.unwrap();
        }
        let kept = [("doc", Purpose::Write), ("read-only", Purpose::Read), ("doc.lock", Purpose::Lock)];
        for (name, purpose) in kept {
            directory.0.kept.put(directory.0.kept.take(name, purpose).unwrap_or_else(|| panic!("{name} is not kept")));
        }
    }

    #[tokio::test]
    async fn what_replaced_a_file_that_is_kept_open_is_seen_at_once() {
        let (outer, directory) = store();
        let store = outer.path().join("store");
        fs::create_dir(&store).unwrap();
        for round in 0..3 {
            fs::write(store.join("read-only"), "old").unwrap();
            warm(&directory).await;
            for name in ["doc", "read-only"] {
                let old = directory.stat(name).await.unwrap().unwrap();
                fs::write(store.join("new"), format!("new {round}")).unwrap();
                fs::hard_link(store.join(name), store.join("backup")).unwrap();
                fs::rename(store.join("new"), store.join(name)).unwrap();
                assert_eq!(text(&directory, name).await.unwrap(), format!("new {round}"));
                assert_ne!(directory.stat(name).await.unwrap().unwrap().generation, old.generation);
                fs::remove_file(store.join("backup")).unwrap();
            }
            warm(&directory).await;
            fs::rename(store.join("doc"), store.join("aside")).unwrap();
            let before = fs::read(store.join("aside")).unwrap();
            assert!(directory.truncate("doc", 0).await.is_err());
            assert!(directory.sync("doc").await.is_err());
            assert_eq!(text(&directory, "doc").await, None);
            assert_eq!(directory.stat("doc").await.unwrap(), None);
            directory.append("doc", b"anew".to_vec()).await.unwrap();
            assert_eq!(fs::read(store.join("doc")).unwrap(), b"anew");
            assert_eq!(fs::read(store.join("aside")).unwrap(), before, "round {round}");
        }
    }

    #[tokio::test]
    async fn one_look_serves_a_call_and_the_next_call_looks_again() {
        let (outer, directory) = store();
        let store = outer.path().join("store");
        let replace = |text: &str| {
            fs::write(store.join("new"), text).unwrap();
            fs::rename(store.join("new"), store.join("doc")).unwrap();
        };
        let look = async || {
            directory.append("doc", Vec::new()).await.unwrap();
            directory.begin_call();
            directory.stat("doc").await.unwrap()
        };
        let read = async |max_bytes| directory.read("doc", 0, max_bytes).await.unwrap().unwrap();
        directory.append("doc", b"one".to_vec()).await.unwrap();

        assert_eq!(look().await.unwrap().size, 3);
        replace("two");
        assert_eq!(read(3).await, b"one", "this is what was seen");
        assert_eq!(read(4).await, b"two", "more was asked for than was seen");
        replace("three");
        directory.begin_call();
        assert_eq!(read(3).await, b"thr", "nothing was looked at in this call");
        let (other, _) = (directory.for_instance(), look().await);
        replace("four");
        other.begin_call();
        assert_eq!(other.read("doc", 0, 3).await.unwrap().unwrap(), b"fou", "this call is another one's");

        // What was replaced or removed since the look is not appended to.
        look().await;
        replace("five");
        assert_eq!(directory.append("doc", b"!".to_vec()).await.unwrap().size, 5);
        assert_eq!(fs::read(store.join("doc")).unwrap(), b"five!");
        look().await;
        fs::remove_file(store.join("doc")).unwrap();
        assert_eq!(directory.append("doc", b"anew".to_vec()).await.unwrap().size, 4);
        assert_eq!(fs::read(store.join("doc")).unwrap(), b"anew");
        look().await;
        replace("six");
        directory.truncate("doc", 2).await.unwrap();
        assert_eq!(fs::read(store.join("doc")).unwrap(), b"si");
    }

    #[tokio::test]
    async fn what_the_last_look_of_a_call_found_is_what_is_read() {
        let (outer, directory) = store();
        let store = outer.path().join("store");
        fs::create_dir(&store).unwrap();
        let replace = |text: &str| {
            fs::write(store.join("new"), text).unwrap();
            fs::rename(store.join("new"), store.join("doc")).unwrap();
        };
        let size = async || directory.stat("doc").await.unwrap().map(|stat| stat.size);
        let read = async |max_bytes| directory.read("doc", 0, max_bytes).await.unwrap();
        assert_eq!(size().await, None, "which opens the directory: files are kept from here on");
        // Kept to be appended to, or only to be read.
        for is_appended_to in [true, false] {
            replace("journal");
            if is_appended_to {
                directory.append("doc", Vec::new()).await.unwrap();
            } else {
                read(7).await.unwrap();
            }
            directory.begin_call();
            assert_eq!(size().await, Some(7));
            assert_eq!(read(7).await.unwrap(), b"journal");
            replace("next");
            assert_eq!(size().await, Some(4));
            assert_eq!(read(4).await.unwrap(), b"next", "the call has seen that this is another file");
            fs::remove_file(store.join("doc")).unwrap();
            assert_eq!(size().await, None);
            assert_eq!(read(4).await, None, "the call has seen that there is none");

            // What was opened is what was seen, though nobody asked for its size.
            replace("journal");
            read(7).await.unwrap();
            assert_eq!(size().await, Some(7));
            replace("next");
            directory.append("doc", b"!".to_vec()).await.unwrap();
            assert_eq!(read(5).await.unwrap(), b"next!");
        }
    }

    #[tokio::test]
    async fn an_edit_of_what_was_just_appended_is_seen_though_the_size_is_the_same() {
        let (outer, directory) = store();
        let path = outer.path().join("store/doc");
        for i in 0..200_u32 {
            directory.begin_call();
            directory.stat("doc").await.unwrap();
            let appended = directory.append("doc", vec![b'a'; 3]).await.unwrap();
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"b", u64::from(i)).unwrap();
            assert_ne!(directory.stat("doc").await.unwrap(), Some(appended), "append {i}");
        }
    }

    #[tokio::test]
    async fn what_took_the_place_of_a_file_that_is_kept_open_is_refused_like_anything_else() {
        let (outer, directory) = store();
        let store = outer.path().join("store");
        let open = Dir::open_ambient_dir(outer.path(), ambient_authority()).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        for (kind, expected) in [
            ("link outside", ErrorKind::Denied),
            ("fifo", ErrorKind::InvalidArgument),
            ("folder", ErrorKind::InvalidArgument),
        ] {
            directory.append("read-only", b"x".to_vec()).await.unwrap();
            warm(&directory).await;
            for name in ["doc", "read-only", "doc.lock"] {
                // The very file, reached in another way: its number alone would let it pass.
                fs::rename(store.join(name), outer.path().join(name)).unwrap();
                match kind {
                    "link outside" => symlink(outer.path().join(name), store.join(name)).unwrap(),
                    "fifo" => {
                        let path = format!("store/{name}");
                        rustix::fs::mknodat(&open, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
                    }
                    _ => fs::create_dir(store.join(name)).unwrap(),
                }
            }
            let answers = [
                directory.read("doc", 0, 10).await.err(),
                directory.read("read-only", 0, 10).await.err(),
                directory.stat("doc").await.err(),
                directory.append("doc", b"x".to_vec()).await.err(),
                directory.truncate("doc", 0).await.err(),
                directory.sync("doc").await.err(),
                directory.sync("read-only").await.err(),
                directory.try_acquire("doc.lock", LockMode::Exclusive).await.err(),
            ];
            for (i, error) in answers.into_iter().enumerate() {
                let error = error.unwrap_or_else(|| panic!("function {i} took a {kind}"));
                assert_eq!(error.kind, expected, "{i} {kind}: {error}");
            }
            for name in ["doc", "read-only", "doc.lock"] {
                assert!(fs::remove_file(store.join(name)).or_else(|_| fs::remove_dir(store.join(name))).is_ok());
                fs::remove_file(outer.path().join(name)).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_was_closed_to_others_is_opened_anew() {
        let (outer, directory) = store();
        directory.append("doc", b"x".to_vec()).await.unwrap();
        directory.read("doc", 0, 1).await.unwrap();
        let opened = directory.reopen("doc", Purpose::Read).expect("it is kept");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        fs::set_permissions(outer.path().join("store/doc"), mode).unwrap();
        assert!(!opened.is(&directory.glance("doc").unwrap().unwrap()));
        assert!(directory.is_at("doc", &directory.open_directly("doc", Purpose::Read).unwrap()).unwrap());
    }

    #[tokio::test]
    async fn a_link_inside_leads_to_the_same_file_and_the_same_generation() {
        let (outer, directory) = store();
        let appended = directory.append("doc", b"x".to_vec()).await.unwrap();
        symlink("doc", outer.path().join("store/link")).unwrap();
        symlink("doc.lock", outer.path().join("store/link.lock")).unwrap();
        for _ in 0..3 {
            for path in ["doc", "link"] {
                assert_eq!(directory.stat(path).await.unwrap(), Some(appended));
                assert_eq!(text(&directory, path).await.unwrap(), "x");
            }
            let listed = directory.entries("").await.unwrap();
            assert_eq!(listed.into_iter().find(|(path, _)| path == "link"), Some(("link".to_string(), appended)));
            let held = directory.try_acquire("doc.lock", LockMode::Exclusive).await.unwrap().unwrap();
            assert!(directory.try_acquire("link.lock", LockMode::Exclusive).await.unwrap().is_none());
            drop(held);
            assert!(directory.try_acquire("link.lock", LockMode::Exclusive).await.unwrap().is_some());
        }
        assert_eq!(directory.append("link", b"y".to_vec()).await.unwrap().size, 2);
        assert_eq!(text(&directory, "doc").await.unwrap(), "xy");
    }

    /// The files that this process has open in a directory, as they are called, and what the system says of deleted ones.
    #[cfg(target_os = "linux")]
    fn open_in(folder: &Path) -> Vec<String> {
        let links = fs::read_dir("/proc/self/fd").unwrap();
        let names = links.flatten().flat_map(|link| fs::read_link(link.path()));
        let inside = |path: PathBuf| Some(path.strip_prefix(folder).ok()?.to_str()?.to_string());
        names.filter_map(inside).filter(|name| !name.is_empty()).collect()
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn few_files_stay_open_and_not_for_long_nor_after_their_directory() {
        let (outer, directory) = store();
        let store = outer.path().join("store");
        for i in 0..3 * kept::KEPT_MAX {
            directory.append(&format!("doc-{i}"), b"x".to_vec()).await.unwrap();
            directory.read(&format!("doc-{i}"), 0, 1).await.unwrap();
            drop(directory.try_acquire(&format!("lock-{i}"), LockMode::Exclusive).await.unwrap().unwrap());
        }
        let open = open_in(&store);
        assert!((1..=kept::KEPT_MAX).contains(&open.len()), "{open:?}");
        directory.append("read-only", b"x".to_vec()).await.unwrap();
        warm(&directory).await;
        fs::remove_file(store.join("doc")).unwrap();
        assert!(open_in(&store).contains(&"doc (deleted)".to_string()));
        until("closing", || open_in(&store).is_empty()).await;
        warm(&directory).await;
        assert!(!open_in(&store).is_empty());
        drop(directory);
        assert_eq!(open_in(&store), Vec::<String>::new());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_large_file_that_was_replaced_or_removed_is_closed() {
        let (outer, directory) = store();
        let store = outer.path().join("store");
        let large = vec![b'x'; 2 << 20];
        for way in ["replaced here", "replaced by others", "removed here"] {
            directory.append("doc", large.clone()).await.unwrap();
            directory.read("doc", 0, 1).await.unwrap();
            assert_eq!(open_in(&store), ["doc"]);
            match way {
                "replaced here" => drop(put(&directory, "doc", "new", None).await.unwrap()),
                "removed here" => assert!(directory.remove("doc").await.unwrap()),
                _ => {
                    fs::write(store.join("new"), "new").unwrap();
                    fs::rename(store.join("new"), store.join("doc")).unwrap();
                    directory.read("doc", 0, 1).await.unwrap();
                }
            }
            let there = directory.glance("doc").flatten();
            while let Some(kept) = directory.0.kept.take("doc", Purpose::Read) {
                assert!(there.is_some_and(|there| kept.is(&there)), "{way}: the old one is kept");
            }
            until("closing", || !open_in(&store).iter().any(|name| name.ends_with("(deleted)"))).await;
            directory.remove("doc").await.unwrap();
        }
    }

    /// How many wait in the kernel's queue for a lock on this file. Each stands further to the right than the one before
    /// it; a line that comes twice is one that moved while the list was read.
    #[cfg(target_os = "linux")]
    fn queue_length(file: &Path) -> usize {
        let inode = format!(":{} ", std::os::unix::fs::MetadataExt::ino(&fs::metadata(file).unwrap()));
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let waiting = locks.lines().filter(|line| line.contains("->") && line.contains(&inode));
        waiting.filter_map(|line| line.split_once(':')).map(|(_, waiter)| waiter).collect::<HashSet<_>>().len()
    }

    /// Looks until something has happened that takes no time to speak of.
    async fn until(what: &str, has_happened: impl Fn() -> bool) {
        let deadline = in_ms(60_000);
        while !has_happened() {
            assert!(Instant::now() < deadline, "{what} does not happen");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn waiters_come_in_the_order_they_queued() {
        let (outer, holder) = store();
        let store = outer.path().join("store");
        let held = holder.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for i in 0..8 {
            let (waiter, order) = (Directory::new(&store), order.clone());
            let turnstile = store.join("lock.turn");
            waiters.push(tokio::spawn(async move {
                assert!(waiter.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
                waiter.wait_for_lock(in_ms(60_000)).await.unwrap();
                let lock = waiter.try_acquire("lock", LockMode::Exclusive).await.unwrap().expect("the reserve");
                locked(&order).push(i);
                drop(lock);
            }));
            // The first has the turnstile, and the others stand in its queue.
            let is_held = || File::open(&turnstile).is_ok_and(|file| file.try_lock().is_err());
            until("queueing", || is_held() && queue_length(&turnstile) >= i).await;
        }
        drop(held);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*locked(&order), (0..8).collect::<Vec<_>>());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_waiter_that_was_given_up_keeps_neither_the_lock_nor_a_thread() {
        let (outer, waiter) = store();
        let store = outer.path().join("store");
        let other = Directory::new(&store);
        let held = other.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap();
        // Somebody is first in the queue and does not move.
        let turnstile = File::open(store.join("lock.turn")).unwrap();
        turnstile.lock().unwrap();
        for _ in 0..3 {
            assert!(waiter.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
            assert_eq!(waiter.wait_for_lock(in_ms(20)).await.unwrap_err().kind, ErrorKind::Timeout);
        }
        assert!(queue_length(&store.join("lock.turn")) <= 1, "one thread, however often it was given up");
        drop((held, turnstile));
        while other.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none() {
            other.wait_for_lock(in_ms(60_000)).await.unwrap();
        }
        until("the end of the thread", || waiter.0.queue.try_lock().is_ok()).await;
        let lock = waiter.try_acquire("lock", LockMode::Exclusive).await.unwrap();
        assert!(lock.is_some(), "the other let it go, and nobody else is there");
    }

    #[tokio::test]
    async fn handles_are_bounded_and_come_back() {
        let (_outer, directory) = store();
        let mut held = Vec::new();
        for i in 0..HANDLES_MAX {
            held.push(directory.try_acquire(&format!("lock-{i}"), LockMode::Exclusive).await.unwrap().unwrap());
        }
        let error = directory.try_acquire("one-more", LockMode::Exclusive).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::LimitExceeded);
        held.pop();
        assert!(directory.try_acquire("one-more", LockMode::Exclusive).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn every_change_changes_the_generation() {
        let (_outer, directory) = store();
        let mut seen = HashSet::new();
        for i in 0..200 {
            let mut replacement = directory.replacement("doc");
            replacement.write(format!("{i:03}").into_bytes()).await.unwrap();
            assert!(seen.insert(replacement.commit(None, false).await.unwrap().generation), "replacement {i}");
        }
        for i in 0..200 {
            directory.truncate("doc", 0).await.unwrap();
            let stat = directory.append("doc", format!("{i:03}").into_bytes()).await.unwrap();
            assert!(seen.insert(stat.generation), "append {i}");
        }
    }

    #[tokio::test]
    async fn a_directory_that_was_removed_is_looked_for_again() {
        let (outer, directory) = store();
        put(&directory, "doc", "one", None).await.unwrap();
        fs::remove_dir_all(outer.path().join("store")).unwrap();
        assert_eq!(text(&directory, "doc").await, None);
        put(&directory, "doc", "two", None).await.unwrap();
        assert_eq!(fs::read(outer.path().join("store/doc")).unwrap(), b"two");
        // Made again by somebody else, while files of the old one are kept open.
        let store = outer.path().join("store");
        directory.append("read-only", b"old".to_vec()).await.unwrap();
        warm(&directory).await;
        fs::remove_dir_all(&store).unwrap();
        fs::create_dir(&store).unwrap();
        fs::write(store.join("read-only"), "newer").unwrap();
        assert_eq!(directory.stat("read-only").await.unwrap().expect("the new one").size, 5);
        let held = Directory::new(&store).try_acquire("doc.lock", LockMode::Exclusive).await.unwrap().unwrap();
        assert!(directory.try_acquire("doc.lock", LockMode::Exclusive).await.unwrap().is_none());
        drop(held);
        assert_eq!(directory.stat("doc").await.unwrap(), None);
        fs::write(store.join("read-only"), "new").unwrap();
        assert_eq!(text(&directory, "read-only").await.unwrap(), "new");
        directory.append("doc", b"three".to_vec()).await.unwrap();
        assert_eq!(fs::read(store.join("doc")).unwrap(), b"three");
    }

    #[test]
    fn a_full_disk_is_a_limit_and_names_the_file() {
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            let error = io_error("doc", &errno.into());
            assert_eq!(error.kind, ErrorKind::LimitExceeded);
            assert!(error.message.starts_with("doc cannot be written"), "{error}");
        }
        assert_eq!(io_error("doc", &Errno::ROFS.into()).kind, ErrorKind::Denied);
        assert_eq!(io_error("doc", &Errno::ACCESS.into()).kind, ErrorKind::Denied);
        assert_eq!(io_error("doc", &Errno::IO.into()).kind, ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn what_goes_on_after_its_caller_went_away_keeps_the_lock_until_its_end() {
        let (_outer, directory) = store();
        directory.append("doc", b"old".to_vec()).await.unwrap();
        for round in 0..20 {
            let (one, two) = (directory.for_instance(), directory.for_instance());
            let lock = one.try_acquire("lock", LockMode::Exclusive).await.unwrap().expect("nobody holds it");
            let mut replacement = one.replacement("doc");
            let text = format!("{round:>9}").repeat(1 << 16);
            replacement.write(text.clone().into_bytes()).await.unwrap();
            // Asked once, and given up: the work has begun, and on a slow day even ended.
            let _ = tokio::time::timeout(Duration::ZERO, replacement.commit(None, true)).await;
            drop(lock);

            let deadline = Instant::now() + Duration::from_secs(10);
            while two.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none() {
                two.wait_for_lock(deadline).await.unwrap();
            }
            let size = two.stat("doc").await.unwrap().expect("a document").size;
            assert_eq!(size, text.len() as u64, "round {round}");
            let found = two.read("doc", 0, 9).await.unwrap().expect("a document");
            assert_eq!(found, text.as_bytes()[..9], "round {round}: the lock was free before the document was there");
        }
    }
}
