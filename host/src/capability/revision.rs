//! What tells one state of a directory from the next without reading it: each file's number, size and times. There is none
//! while a file was changed a moment ago, because the clock of a file system may give the next change the same time, and
//! none where the system does not tell what a file server knows.
//!
//! No file is opened for it: a database may lie in the directory, and by closing its file a process loses the locks that
//! SQLite holds on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cap_std::fs::Dir;

/// The longest that a file system's clock stands still; FAT's ticks every two seconds.
const TICK_MAX: Duration = Duration::from_secs(2);

/// To look at more files than this takes about as long as to read them.
const FILES_MAX: usize = 1_000;
/// Folders in folders.
const DEPTH_MAX: usize = 8;

/// The state of all files in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Revision(BTreeMap<PathBuf, FileState>);

/// Device, number and size of a file, and the times at which its content and anything of it were changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileState {
    device: (u32, u32),
    number: u64,
    size: u64,
    times: [(i64, u32); 2],
}

impl FileState {
    /// Of what lies there, and not of what a link leads to: that is in the directory too, or out of reach.
    #[cfg(target_os = "linux")]
    fn look(dir: &Dir, path: &Path) -> Option<FileState> {
        use rustix::fs::{AtFlags, StatxFlags, statx};
        // A file system of the network asks its server.
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
        let stat = statx(dir, path, flags, StatxFlags::BASIC_STATS).ok()?;
        let times = [stat.stx_mtime, stat.stx_ctime].map(|time| (time.tv_sec, time.tv_nsec));
        Some(FileState {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            number: stat.stx_ino,
            size: stat.stx_size,
            times,
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn look(_dir: &Dir, _path: &Path) -> Option<FileState> {
        None
    }

    /// None where the next change might not show.
    fn settled(self) -> Option<FileState> {
        // A change of an empty file shows in its size, and a lock file is opened time and again.
        if self.size == 0 {
            return Some(FileState { times: Default::default(), ..self });
        }
        let settled = SystemTime::now().checked_sub(TICK_MAX)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let is_settled = self.times.iter().all(|(seconds, _)| *seconds < settled.as_secs() as i64);
        is_settled.then_some(self)
    }
}

impl Revision {
    pub(super) fn of(dir: &Dir) -> Option<Revision> {
        let mut revision = Revision::default();
        revision.add(dir, Path::new("."), 0)?;
        Some(revision)
    }

    fn add(&mut self, dir: &Dir, folder: &Path, depth: usize) -> Option<()> {
        for entry in dir.read_dir(folder).ok()? {
            let entry = entry.ok()?;
            let path = folder.join(entry.file_name());
            match entry.file_type().ok()?.is_dir() {
                true if depth == DEPTH_MAX => return None,
                true => self.add(dir, &path, depth + 1)?,
                false if self.0.len() == FILES_MAX => return None,
                false => {
                    let state = FileState::look(dir, &path)?.settled()?;
                    self.0.insert(path, state);
                }
            }
        }
        Some(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs::{self, FileTimes};

    use cap_std::ambient_authority;

    use super::*;

    fn of(folder: &tempfile::TempDir) -> Option<Revision> {
        Revision::of(&Dir::open_ambient_dir(folder.path(), ambient_authority()).unwrap())
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        fs::write(folder.path().join("inner/document"), "one").unwrap();
        folder
    }

    /// Until the clock has gone on by more than the coarsest tick.
    fn settle() {
        std::thread::sleep(TICK_MAX + Duration::from_secs(1));
    }

    #[test]
    fn what_was_changed_a_moment_ago_has_none() {
        let folder = folder();
        assert_eq!(of(&folder), None);
        settle();
        let settled = of(&folder).expect("a revision");
        assert_eq!(of(&folder), Some(settled));
    }

    #[test]
    fn every_change_shows() {
        let (folder, other) = (folder(), folder());
        let file = folder.path().join("inner/document");
        settle();
        let before = of(&folder);
        assert!(before.is_some() && of(&other) != before);

        // Of the same length, and dated back.
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "two").unwrap();
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_times(FileTimes::new().set_modified(modified))
            .unwrap();
        assert_eq!(of(&folder), None);
        settle();
        let changed = of(&folder);
        assert!(changed.is_some() && changed != before);

        // An old file in its place, a further one, a link, and one less.
        fs::rename(other.path().join("inner/document"), &file).unwrap();
        settle();
        let replaced = of(&folder);
        assert!(replaced.is_some() && replaced != changed);
        fs::write(folder.path().join("lock"), "").unwrap();
        let added = of(&folder);
        assert!(added.is_some() && added != replaced);
        std::os::unix::fs::symlink("inner/document", folder.path().join("link")).unwrap();
        settle();
        assert!(of(&folder).is_some() && of(&folder) != added);
        fs::remove_file(folder.path().join("link")).unwrap();
        fs::remove_file(folder.path().join("lock")).unwrap();
        assert_eq!(of(&folder), replaced);
        fs::remove_file(&file).unwrap();
        assert_eq!(of(&folder), Some(Revision::default()));
    }

    #[test]
    fn of_very_many_files_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        (0..FILES_MAX).for_each(|i| fs::write(folder.path().join(i.to_string()), "").unwrap());
        assert!(of(&folder).is_some());
        fs::write(folder.path().join("one more"), "").unwrap();
        assert_eq!(of(&folder), None);
    }
}
