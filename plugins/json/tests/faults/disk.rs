//! [`Disk`]: a real directory as the host lends it, in which a chosen call goes wrong in a chosen way.
//!
//! Each function of `Files` is a call, and calls are counted. A call that goes wrong may have had no effect, a part of
//! it, or all of it; then it is answered with an error, or the process dies, or the power fails. After a power failure the
//! directory is what had been made durable, with more or less of what had not: bytes that were appended and not
//! synced are gone, half there, or zeros; a file that was removed is back, unless the directory was synced since.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write as _},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    rc::Rc,
    time::SystemTime,
};

use larder_guest::{FileStat, Files, LockMode};
use larder_model::{Error, ErrorKind, Result, Retry};
use tempfile::TempDir;

/// A directory for a store; in memory where this machine has such a file system. Nothing that is tested here hangs on the
/// medium, and a disk that is waited for at every rename would take most of the time.
pub fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

/// What unfinished replacements end with, as the host names them.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// One call of a function of `Files`.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its name in the contract.
    pub function: &'static str,
    pub path: String,
    /// How many bytes it writes.
    pub bytes: usize,
}

impl Call {
    /// Whether it changes what is on the disk.
    pub fn writes(&self) -> bool {
        !["try-acquire", "stat", "read", "entries", "free-space"].contains(&self.function)
    }
}

/// What goes wrong in a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// What the call does before it goes wrong.
    pub does: Effect,
    pub then: Then,
}

/// How much of its effect a call has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Effect {
    Nothing,
    /// So many bytes are written; of a commit, the old document was kept and the new one did not take its place.
    Part(usize),
    Everything,
}

/// How the call ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Then {
    /// With an error; the next call works again.
    Error,
    /// With an error, and so does every call that writes, until [`Disk::mend`].
    Outage,
    /// Somebody else holds the lock.
    Busy,
    /// Not at all: the process dies.
    Death,
    /// Not at all: the power fails.
    PowerCut(Lost),
}

/// What becomes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lost {
    /// All of it is gone.
    All,
    /// Of what was appended, half is there.
    Half,
    /// What was appended has its length, and zeros for content.
    Content,
}

/// `Files` over a real directory. Clones are the same.
#[derive(Clone, Default)]
pub struct Disk(Rc<RefCell<World>>);

#[derive(Default)]
struct World {
    root: PathBuf,
    calls: Vec<Call>,
    /// The call, from 0, and what goes wrong in it.
    fault: Option<(usize, Fault)>,
    is_out: bool,
    is_dead: bool,
    is_harmless: bool,
    has_failed: bool,
    /// Bytes that can still be written.
    space: Option<usize>,
    /// The files as they would be after a power failure that loses everything else.
    durable: BTreeMap<String, Vec<u8>>,
}

pub struct Replacement {
    disk: Disk,
    path: String,
    temporary: PathBuf,
    file: File,
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // Nobody is left to do it for a process that died.
        if !self.disk.is_dead() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Disk {
    /// The directory `root`, in which nothing goes wrong.
    pub fn new(root: &Path) -> Disk {
        Disk::with_fault(root, None)
    }

    pub fn with_fault(root: &Path, fault: Option<(usize, Fault)>) -> Disk {
        Disk(Rc::new(RefCell::new(World { root: root.to_owned(), fault, ..World::default() })))
    }

    /// Calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.0.borrow().calls.clone()
    }

    /// Whether the process died in a call.
    pub fn is_dead(&self) -> bool {
        self.0.borrow().is_dead
    }

    /// Whether the power failed when there was nothing to lose: then it was a death as any other.
    pub fn is_harmless(&self) -> bool {
        self.0.borrow().is_harmless
    }

    /// Whether a call went wrong since this was asked last.
    pub fn has_failed(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().has_failed)
    }

    /// Ends an outage.
    pub fn mend(&self) {
        self.0.borrow_mut().is_out = false;
    }

    /// Bounds what can still be written; removals make no room.
    pub fn set_space(&self, bytes: Option<usize>) {
        self.0.borrow_mut().space = bytes;
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.borrow().root.join(path)
    }

    /// One call, whose effect is `run`.
    fn call<T>(
        &self,
        function: &'static str,
        path: &str,
        bytes: usize,
        run: impl FnOnce(Effect) -> Result<T>,
    ) -> Result<T> {
        let call = Call { function, path: path.to_owned(), bytes };
        let writes = call.writes();
        let fault = {
            let mut world = self.0.borrow_mut();
            if world.is_dead {
                return Err(Error::new(ErrorKind::Internal, "the process is dead"));
            }
            let number = world.calls.len();
            world.calls.push(call);
            if world.is_out && writes {
                return Err(fault_of(function, path));
            }
            world.fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault)
        };
        let Some(Fault { does, then }) = fault else { return self.within_space(bytes, path, run) };
        self.0.borrow_mut().has_failed = true;
        if does != Effect::Nothing {
            run(does)?;
        }
        let mut world = self.0.borrow_mut();
        match then {
            Then::Error => {}
            Then::Busy => unreachable!("`try_acquire` sees to it"),
            Then::Outage => world.is_out = true,
            Then::Death => world.is_dead = true,
            Then::PowerCut(lost) => {
                world.is_dead = true;
                world.is_harmless = !world.lose(lost);
            }
        }
        // The host says so of the one call where it knows.
        let retry = match (function, does) {
            ("replacement.commit", Effect::Everything) => Retry::UnknownOutcome,
            _ => Retry::Safe,
        };
        Err(Error { retry, ..fault_of(function, path) })
    }

    fn within_space<T>(&self, bytes: usize, path: &str, run: impl FnOnce(Effect) -> Result<T>) -> Result<T> {
        let left = self.0.borrow().space;
        let Some(left) = left.filter(|_| bytes > 0) else { return run(Effect::Everything) };
        self.0.borrow_mut().space = Some(left.saturating_sub(bytes));
        if bytes <= left {
            return run(Effect::Everything);
        }
        self.0.borrow_mut().has_failed = true;
        run(Effect::Part(left))?;
        Err(Error::new(ErrorKind::LimitExceeded, format!("{path} cannot be written: the disk is full")))
    }

    fn now_durable(&self, path: &str) {
        let content = fs::read(self.path(path)).expect("it was just written");
        self.0.borrow_mut().durable.insert(path.to_owned(), content);
    }

    fn open(&self, path: &str) -> Result<Option<File>> {
        absent_is_none(File::open(self.path(path)))
    }
}

impl World {
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        // What locks are held on is not content.
        names.retain(|name| !name.ends_with(".lock"));
        names.sort();
        names
    }

    /// The power fails; says whether something was lost.
    fn lose(&self, lost: Lost) -> bool {
        let mut changed = Vec::new();
        for name in self.names() {
            let content = fs::read(self.root.join(&name)).unwrap();
            let durable = self.durable.get(&name);
            let kept = durable.map_or(&[][..], Vec::as_slice);
            let grown = content.strip_prefix(kept).map_or(0, <[u8]>::len);
            match lost {
                Lost::All if durable.is_none_or(|durable| *durable != content) => {
                    changed.push((name, durable.cloned()))
                }
                Lost::Half if grown > 0 => changed.push((name, Some(content[..kept.len() + grown / 2].to_vec()))),
                Lost::Content if grown > 0 => changed.push((name, Some([kept, &vec![0; grown]].concat()))),
                _ => {}
            }
        }
        if lost == Lost::All {
            let is_gone = |name: &&String| !self.root.join(name).exists();
            let back = self.durable.keys().filter(is_gone);
            changed.extend(back.map(|name| (name.clone(), Some(self.durable[name].clone()))));
        }
        for (name, content) in &changed {
            let path = self.root.join(name);
            match content {
                Some(content) => fs::write(path, content).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
        }
        // Nobody looks at what an unfinished replacement holds.
        changed.iter().any(|(name, _)| !name.ends_with(TEMPORARY_SUFFIX))
    }
}

impl Files for Disk {
    type Lock = File;
    type Replacement = Replacement;

    fn try_acquire(&self, name: &str, mode: LockMode) -> Result<Option<File>> {
        let is_busy = {
            let mut world = self.0.borrow_mut();
            let number = world.calls.len();
            let is_busy = world.fault.is_some_and(|(at, fault)| at == number && fault.then == Then::Busy);
            if is_busy {
                world.has_failed = true;
                world.calls.push(Call { function: "try-acquire", path: name.to_owned(), bytes: 0 });
            }
            is_busy && !world.is_dead
        };
        if is_busy {
            return Ok(None);
        }
        self.call("try-acquire", name, 0, |_| {
            let path = self.path(name);
            fs::create_dir_all(path.parent().expect("the root at least")).map_err(error)?;
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(error)?;
            let tried = match mode {
                LockMode::Shared => file.try_lock_shared(),
                LockMode::Exclusive => file.try_lock(),
            };
            match tried {
                Ok(()) => Ok(Some(file)),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(failed)) => Err(error(failed)),
            }
        })
    }

    fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        self.call("stat", path, 0, |_| Ok(absent_is_none(fs::metadata(self.path(path)))?.map(|it| stat_of(&it))))
    }

    fn read(&self, path: &str, offset: u64, max_bytes: u32) -> Result<Option<Vec<u8>>> {
        self.call("read", path, 0, |_| {
            let Some(file) = self.open(path)? else { return Ok(None) };
            let left = file.metadata().map_err(error)?.len().saturating_sub(offset);
            let mut bytes = vec![0; left.min(max_bytes.into()) as usize];
            file.read_exact_at(&mut bytes, offset).map_err(error)?;
            Ok(Some(bytes))
        })
    }

    fn append(&self, path: &str, data: &[u8]) -> Result<FileStat> {
        self.call("append", path, data.len(), |does| {
            let mut file = OpenOptions::new().create(true).append(true).open(self.path(path)).map_err(error)?;
            file.write_all(does.part_of(data)).map_err(error)?;
            file.set_modified(SystemTime::now()).map_err(error)?;
            stat_of_file(&file)
        })
    }

    fn sync(&self, path: &str) -> Result<()> {
        self.call("sync", path, 0, |_| {
            File::open(self.path(path)).map_err(error)?;
            self.now_durable(path);
            Ok(())
        })
    }

    fn truncate(&self, path: &str, size: u64) -> Result<()> {
        self.call("truncate", path, 0, |_| {
            let file = OpenOptions::new().write(true).open(self.path(path)).map_err(error)?;
            file.set_len(size).map_err(error)?;
            file.set_modified(SystemTime::now()).map_err(error)
        })
    }

    fn remove(&self, path: &str) -> Result<bool> {
        self.call("remove", path, 0, |_| Ok(absent_is_none(fs::remove_file(self.path(path)))?.is_some()))
    }

    fn entries(&self, prefix: &str) -> Result<Vec<(String, FileStat)>> {
        self.call("entries", prefix, 0, |_| {
            let mut entries = Vec::new();
            let names = self.0.borrow().names();
            for name in names {
                if name.starts_with(prefix)
                    && !name.ends_with(TEMPORARY_SUFFIX)
                    && let Some(metadata) = absent_is_none(fs::metadata(self.path(&name)))?
                {
                    entries.push((name, stat_of(&metadata)));
                }
            }
            Ok(entries)
        })
    }

    fn free_space(&self) -> Result<u64> {
        self.call("free-space", "", 0, |_| Ok(self.0.borrow().space.map_or(1 << 30, |space| space as u64)))
    }

    fn replace(&self, path: &str) -> Result<Replacement> {
        self.call("replacement.constructor", path, 0, |_| {
            let number = self.0.borrow().calls.len();
            let temporary = self.path(&format!(".{path}.{number}{TEMPORARY_SUFFIX}"));
            fs::create_dir_all(temporary.parent().expect("the root at least")).map_err(error)?;
            let file = File::create(&temporary).map_err(error)?;
            Ok(Replacement { disk: self.clone(), path: path.to_owned(), temporary, file })
        })
    }

    fn replacement_write(&self, replacement: &Replacement, data: &[u8]) -> Result<()> {
        self.call("replacement.write", &replacement.path, data.len(), |does| {
            (&replacement.file).write_all(does.part_of(data)).map_err(error)
        })
    }

    fn replacement_commit(
        &self,
        replacement: Replacement,
        keep_old_as: Option<&str>,
        durable: bool,
    ) -> Result<FileStat> {
        self.call("replacement.commit", &replacement.path, 0, |does| {
            let path = self.path(&replacement.path);
            replacement.file.set_modified(SystemTime::now()).map_err(error)?;
            if let Some(name) = keep_old_as
                && path.exists()
            {
                fs::hard_link(&path, self.path(name)).map_err(error)?;
            }
            if does == Effect::Everything {
                fs::rename(&replacement.temporary, &path).map_err(error)?;
                if durable {
                    // Its content, and whatever happened to names of the directory.
                    self.now_durable(&replacement.path);
                    let World { root, durable, .. } = &mut *self.0.borrow_mut();
                    if let Some(name) = keep_old_as
                        && let Ok(content) = fs::read(root.join(name))
                    {
                        durable.insert(name.to_owned(), content);
                    }
                    durable.retain(|name, _| root.join(name).exists());
                }
            }
            stat_of_file(&replacement.file)
        })
    }
}

impl Effect {
    fn part_of(self, data: &[u8]) -> &[u8] {
        match self {
            Effect::Nothing => &[],
            Effect::Part(bytes) => &data[..bytes.min(data.len())],
            Effect::Everything => data,
        }
    }
}

fn fault_of(function: &str, path: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{path} cannot be used: {function} failed"))
}

fn error(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, error.to_string())
}

fn absent_is_none<T>(result: io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(failed) => Err(error(failed)),
    }
}

fn stat_of_file(file: &File) -> Result<FileStat> {
    file.metadata().map(|metadata| stat_of(&metadata)).map_err(error)
}

fn stat_of(metadata: &Metadata) -> FileStat {
    let mut hasher = DefaultHasher::new();
    (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime_nsec()).hash(&mut hasher);
    FileStat { size: metadata.len(), generation: hasher.finish() }
}
