//! The `files` capability: the one directory that a store was granted, and no way out of it.
//!
//! `wit/files.wit` says what each function means. This file knows nothing of WebAssembly: paths, names and bytes come
//! from a plugin and are hostile, so every path is checked, every file is opened without blocking and must be a regular
//! one, and every call is bounded. Messages name the path that the plugin gave, never where the directory lies.
//!
//! Work of microseconds runs where it is called; a blocking thread would cost more than it saves. Syncs, listings and
//! larger transfers run on blocking threads.

use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    fs::{File, TryLockError},
    hash::{BuildHasher, Hash, Hasher, RandomState},
    io::{self, ErrorKind as Io, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, SystemTime},
};

use cap_std::{
    ambient_authority,
    fs::{Dir, Metadata, MetadataExt, OpenOptions, OpenOptionsExt, PermissionsExt},
};
use larder_model::json::quoted;
use larder_model::{Error, ErrorKind, Result, Retry};
use rustix::{fs::OFlags, io::Errno};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// The most that one `read` brings, whatever was asked for: the bytes are held here and in the plugin at once.
const READ_BYTES_MAX: u32 = 64 << 20;
/// Transfers up to this size run where they are called.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// The most that `entries` lists.
const ENTRIES_MAX: usize = 10_000;
/// The most names that `entries` looks at, so that a directory that is no store's cannot fill the memory.
const NAMES_MAX: usize = 1_000_000;
/// Locks and replacements that a plugin may hold at once; each is an open file.
const HANDLES_MAX: usize = 64;
/// The longest path taken; the kernel's own bound.
const PATH_BYTES_MAX: usize = 4096;
/// How often a lock file that was replaced between open and lock is opened again.
const LOCK_ATTEMPTS_MAX: u32 = 16;
/// Back-off between two looks at a lock that another process holds.
const LOCK_POLL_MIN: Duration = Duration::from_micros(200);
const LOCK_POLL_MAX: Duration = Duration::from_millis(10);
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
pub struct Directory(Arc<Inner>, Held);

/// The lock files that one instance holds.
type Held = Arc<Mutex<Vec<Weak<File>>>>;

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    opened: Mutex<Option<Arc<Dir>>>,
    /// The lock that was refused last, which [`Directory::wait_for_lock`] waits for.
    wanted: Mutex<Option<(String, LockMode)>>,
    /// The lock that was waited for, until the plugin's next try takes it.
    reserve: Mutex<Option<(String, LockMode, Lock)>>,
    handles: Arc<Semaphore>,
    /// Folders with names that are not durable yet, because `append` made a file or `remove` took one away.
    unsynced_folders: Mutex<HashSet<PathBuf>>,
    /// Folders in which what crashed processes left was looked for.
    swept_folders: Mutex<HashSet<PathBuf>>,
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    /// None where the directory cannot be written to and has no lock file. Work that goes on holds it too.
    file: Option<Arc<File>>,
    _handle: OwnedSemaphorePermit,
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
                handles: Arc::new(Semaphore::new(HANDLES_MAX)),
                unsynced_folders: Mutex::default(),
                swept_folders: Mutex::default(),
            }),
            Held::default(),
        )
    }

    /// The same grant for an instance of its own: what the locks of one are held for is nothing to another.
    pub fn for_instance(&self) -> Self {
        Directory(self.0.clone(), Held::default())
    }

    fn note_held(&self, lock: Lock) -> Lock {
        let mut held = locked(&self.1);
        held.retain(|file| file.strong_count() > 0);
        held.extend(lock.file.as_ref().map(Arc::downgrade));
        lock
    }

    /// Runs work on a blocking thread, where it goes on when whoever waits for it goes away: at the end of a call's time,
    /// say. So until its end it holds every lock that its instance held, or it would write over what the next holder of
    /// a lock wrote.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let held: Vec<Arc<File>> = locked(&self.1).iter().filter_map(Weak::upgrade).collect();
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
            tokio::time::sleep_until(deadline.min(Instant::now() + LOCK_POLL_MAX)).await;
            return if Instant::now() < deadline {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::Timeout, "the store is still in use by another call"))
            };
        };
        let handle = self.handle()?;
        let turnstile = format!("{name}{TURNSTILE_SUFFIX}");
        let turn = self.poll_lock(&turnstile, mode, LockMode::Exclusive, deadline, &name).await?;
        let file = self.poll_lock(&name, mode, mode, deadline, &name).await?;
        drop(turn);
        *locked(&self.0.reserve) = Some((name, mode, Lock { file: file.map(Arc::new), _handle: handle }));
        Ok(())
    }

    /// Lets go of a lock that was waited for and not taken.
    pub fn release_reserve(&self) {
        *locked(&self.0.reserve) = None;
        *locked(&self.0.wanted) = None;
    }

    async fn poll_lock(
        &self,
        file_name: &str,
        purpose: LockMode,
        mode: LockMode,
        deadline: Instant,
        name: &str,
    ) -> Result<Option<File>> {
        let mut pause = LOCK_POLL_MIN;
        loop {
            match self.lock_file(file_name, purpose, mode)? {
                Attempt::Held(file) => return Ok(Some(file)),
                Attempt::NoFile => return Ok(None),
                Attempt::Refused => {}
            }
            let now = Instant::now();
            if now >= deadline {
                let message = format!("the lock file {name} is held by another process");
                return Err(Error { retry: Retry::Safe, ..Error::new(ErrorKind::Timeout, message) });
            }
            tokio::time::sleep_until(deadline.min(now + pause)).await;
            pause = (pause * 3 / 2).min(LOCK_POLL_MAX);
        }
    }

    /// One try. `purpose` is what the caller's lock is for: only shared ones do without the right to write.
    fn lock_file(&self, name: &str, purpose: LockMode, mode: LockMode) -> Result<Attempt> {
        for _ in 0..LOCK_ATTEMPTS_MAX {
            let file = match self.open_lock_file(name, purpose)? {
                Some(file) => file,
                None => return Ok(Attempt::NoFile),
            };
            let tried = match mode {
                LockMode::Shared => file.try_lock_shared(),
                LockMode::Exclusive => file.try_lock(),
            };
            match tried {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Attempt::Refused),
                Err(TryLockError::Error(error)) => return Err(io_error(name, &error)),
            }
            // A lock on a file that was removed or replaced meanwhile would exclude nobody.
            let locked_file = Metadata::from_file(&file).map_err(|error| io_error(name, &error))?;
            if let Some(there) = self.metadata(name)?
                && (there.dev(), there.ino()) == (locked_file.dev(), locked_file.ino())
            {
                return Ok(Attempt::Held(file));
            }
        }
        Err(Error::new(ErrorKind::Unavailable, format!("the lock file {name} is replaced again and again")))
    }

    fn open_lock_file(&self, name: &str, purpose: LockMode) -> Result<Option<File>> {
        if purpose == LockMode::Shared && self.dir()?.is_none() {
            return Ok(None);
        }
        let made = self.dir_for_writing().and_then(|dir| {
            make_parents(&dir, name)?;
            open_regular(&dir, name, OpenOptions::new().read(true).write(true).create(true))
        });
        match made {
            Ok(file) => Ok(Some(file)),
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
        match self.metadata(path)? {
            Some(metadata) if metadata.is_file() => Ok(Some(stat_of(&metadata))),
            Some(_) => Err(not_regular(path)),
            None => Ok(None),
        }
    }

    /// `files.read`: at most [`READ_BYTES_MAX`] a call.
    pub async fn read(&self, path: &str, offset: u64, max_bytes: u32) -> Result<Option<Vec<u8>>> {
        check_path(path)?;
        let Some(dir) = self.dir()? else { return Ok(None) };
        let Some(file) = absent_is_none(open_regular(&dir, path, OpenOptions::new().read(true)))? else {
            return Ok(None);
        };
        let size = file.metadata().map_err(|error| io_error(path, &error))?.len();
        let wanted = size.saturating_sub(offset).min(max_bytes.min(READ_BYTES_MAX).into()) as usize;
        let name = path.to_string();
        let read = move || read_up_to(&file, offset, wanted).map_err(|error| io_error(&name, &error));
        if wanted <= INLINE_BYTES_MAX { read().map(Some) } else { self.blocking(read).await.map(Some) }
    }

    /// `files.append`.
    pub async fn append(&self, path: &str, data: Vec<u8>) -> Result<FileStat> {
        check_path(path)?;
        let dir = self.dir_for_writing()?;
        make_parents(&dir, path)?;
        let is_new = absent_is_none(dir.symlink_metadata(path).map_err(|error| io_error(path, &error)))?.is_none();
        let file = open_regular(&dir, path, OpenOptions::new().read(true).append(true).create(true))?;
        if is_new {
            locked(&self.0.unsynced_folders).insert(folder_of(path));
        }
        let name = path.to_string();
        let small = data.len() <= INLINE_BYTES_MAX;
        let append = move || {
            (&file).write_all(&data).map_err(|error| io_error(&name, &error))?;
            mark_changed(&file);
            stat_of_file(&file, &name)
        };
        if small { append() } else { self.blocking(append).await }
    }

    /// `files.sync`: the file, and its name where that is new.
    pub async fn sync(&self, path: &str) -> Result<()> {
        check_path(path)?;
        let dir = self.dir()?.ok_or_else(|| no_file(path))?;
        let file = open_regular(&dir, path, OpenOptions::new().read(true))?;
        let folder = folder_of(path);
        let folder_too = locked(&self.0.unsynced_folders).contains(&folder);
        let name = path.to_string();
        let synced = folder.clone();
        self.blocking(move || {
            file.sync_data().map_err(|error| io_error(&name, &error))?;
            if folder_too { sync_folder(&dir, &synced) } else { Ok(()) }
        })
        .await?;
        if folder_too {
            locked(&self.0.unsynced_folders).remove(&folder);
        }
        Ok(())
    }

    /// `files.truncate`.
    pub async fn truncate(&self, path: &str, size: u64) -> Result<()> {
        check_path(path)?;
        let dir = self.dir()?.ok_or_else(|| no_file(path))?;
        let file = open_regular(&dir, path, OpenOptions::new().write(true))?;
        file.set_len(size).map_err(|error| io_error(path, &error))?;
        mark_changed(&file);
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

    /// The directory, where it exists. One that was removed meanwhile is looked for again under its path.
    fn dir(&self) -> Result<Option<Arc<Dir>>> {
        let mut opened = locked(&self.0.opened);
        if let Some(dir) = &*opened
            && dir.dir_metadata().is_ok_and(|metadata| metadata.nlink() > 0)
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
        let small = data.len() <= INLINE_BYTES_MAX;
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
    Held(File),
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
fn open_regular(dir: &Dir, path: &str, options: &mut OpenOptions) -> Result<File> {
    options.custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = dir.open_with(path, options).map_err(|error| io_error(path, &error))?;
    if !file.metadata().map_err(|error| io_error(path, &error))?.is_file() {
        return Err(not_regular(path));
    }
    Ok(file.into_std())
}

fn read_up_to(file: &File, offset: u64, wanted: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; wanted];
    let mut filled = 0;
    while filled < wanted {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == Io::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Gives the file a time finer than the kernel's tick, where this process may set it.
fn mark_changed(file: &File) {
    let _ = file.set_modified(SystemTime::now());
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
            entries.push((path, stat_of(&metadata)));
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

fn stat_of_file(file: &File, path: &str) -> Result<FileStat> {
    Metadata::from_file(file).map(|metadata| stat_of(&metadata)).map_err(|error| io_error(path, &error))
}

fn stat_of(metadata: &Metadata) -> FileStat {
    let mut hasher = DefaultHasher::new();
    let times = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
    (metadata.dev(), metadata.ino(), metadata.size(), times).hash(&mut hasher);
    FileStat { size: metadata.size(), generation: hasher.finish() }
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
        replacement.write(vec![b'x'; 3 * INLINE_BYTES_MAX]).await.unwrap();
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
        drop(one.try_acquire("lock", LockMode::Exclusive).await.unwrap());
        fs::remove_file(outer.path().join("store/lock")).unwrap();
        let _held = one.try_acquire("lock", LockMode::Exclusive).await.unwrap().unwrap();
        assert!(two.try_acquire("lock", LockMode::Exclusive).await.unwrap().is_none());
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
