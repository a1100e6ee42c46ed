//! What tells one state of a store from the next without reading it: the files that hold it, each by its number, size and
//! times. There is none for what lies elsewhere, and none while a file was changed a moment ago: the clock of a file system
//! may give the next change the same time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt as _};
use rustix::fs::{AtFlags, OFlags, Stat};
use rustix::io::Errno;

/// The longest that a file system's clock stands still: FAT's ticks every two seconds.
const TICK_MAX: Duration = Duration::from_secs(2);

/// To look at more files than this takes about as long as to read them.
const FILES_MAX: usize = 1_000;
/// Folders in folders.
const DEPTH_MAX: usize = 8;

/// The state of some files. What two that are equal were taken of has the same content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Revision(BTreeMap<PathBuf, FileState>);

/// Device, number and size of a file, and the times at which its content and anything of it were changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileState {
    file: (u64, u64),
    size: u64,
    times: [(i64, i64); 2],
}

impl FileState {
    /// None where the next change might not show.
    // How wide the system's numbers are differs from one to the next.
    #[allow(clippy::unnecessary_cast)]
    fn of(stat: &Stat) -> Option<FileState> {
        let file = (stat.st_dev as u64, stat.st_ino as u64);
        let size = stat.st_size as u64;
        // A change of an empty file shows in its size, and a lock file is opened time and again.
        if size == 0 {
            return Some(FileState { file, size, times: Default::default() });
        }
        let times =
            [(stat.st_mtime as i64, stat.st_mtime_nsec as i64), (stat.st_ctime as i64, stat.st_ctime_nsec as i64)];
        let settled = SystemTime::now().checked_sub(TICK_MAX)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let is_settled = times.iter().all(|(seconds, _)| *seconds < settled.as_secs() as i64);
        is_settled.then_some(FileState { file, size, times })
    }
}

impl Revision {
    /// Of all that lies in a directory.
    pub(super) fn of_directory(dir: &Dir) -> Option<Revision> {
        let mut revision = Revision::default();
        revision.add_folder(dir, Path::new("."), 0)?;
        Some(revision)
    }

    fn add_folder(&mut self, dir: &Dir, folder: &Path, depth: usize) -> Option<()> {
        for entry in dir.read_dir(folder).ok()? {
            let entry = entry.ok()?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                if depth == DEPTH_MAX {
                    return None;
                }
                self.add_folder(dir, &path, depth + 1)?;
                continue;
            }
            // What a link leads to is in here too, or is out of reach. A file is opened, because that is when a file system
            // of the network looks again.
            let stat = if kind.is_file() {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
                rustix::fs::fstat(dir.open_with(&path, &options).ok()?)
            } else {
                rustix::fs::statat(dir, &path, AtFlags::SYMLINK_NOFOLLOW)
            };
            self.add(path, &stat.ok()?)?;
        }
        Some(())
    }

    /// Of files of which some may not be there. They are not opened: by closing a file, a process loses the locks that
    /// SQLite holds on it.
    pub(super) fn of_files(paths: impl IntoIterator<Item = PathBuf>) -> Option<Revision> {
        let mut revision = Revision::default();
        for path in paths {
            match rustix::fs::stat(&path) {
                Ok(stat) => revision.add(path, &stat)?,
                Err(Errno::NOENT) => {}
                Err(_) => return None,
            }
        }
        Some(revision)
    }

    fn add(&mut self, path: PathBuf, stat: &Stat) -> Option<()> {
        if self.0.len() == FILES_MAX {
            return None;
        }
        self.0.insert(path, FileState::of(stat)?);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, FileTimes};

    use cap_std::ambient_authority;

    use super::*;

    fn of(folder: &tempfile::TempDir) -> Option<Revision> {
        Revision::of_directory(&Dir::open_ambient_dir(folder.path(), ambient_authority()).unwrap())
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

    #[test]
    fn files_that_are_not_there_count_too() {
        let folder = folder();
        settle();
        let (file, log) = (folder.path().join("inner/document"), folder.path().join("log"));
        let before = Revision::of_files([file.clone(), log.clone()]);
        assert_eq!(before, Revision::of_files([file.clone()]));
        fs::write(&log, "").unwrap();
        let after = Revision::of_files([file, log]);
        assert!(after.is_some() && after != before);
    }
}
