//! How a file's times tell one state of it from the next, though the kernel's clock for them ticks in milliseconds.
//!
//! What was seen of a file counts for what is there as long as its number, size and times are the same. So whoever
//! changes one gives it a time of its own. Since Linux 6.13 some file systems do that by themselves: a change of a file
//! whose times somebody has seen gets a time finer than the tick. Whether this is such a kernel shows in the time that it
//! gave to a change, and which file system it is, in the list of mounts. There an append is two system calls less, of which
//! one, setting a time, costs as much as the append.

use std::{fs, fs::File, sync::Mutex, time::SystemTime};

use rustix::fs::Stat;

use super::locked;

/// Those that have had such times since there are any.
const FINE_FILE_SYSTEMS: [&str; 4] = ["ext4", "xfs", "tmpfs", "btrfs"];

/// Gives the file a time finer than the kernel's tick, where this process may set it.
pub(super) fn mark_changed(file: &File) {
    let _ = file.set_modified(SystemTime::now());
}

/// Whether times are fine by themselves, by the device that was asked for last.
#[derive(Debug, Default)]
pub(super) struct FineTimes(Mutex<Option<(u64, bool)>>);

impl FineTimes {
    /// Whether a file that was changed just now, and then looked at, is one of which every change that follows a look gets
    /// a time of its own. False where that does not show.
    pub(super) fn are_those_of(&self, changed: &Stat) -> bool {
        if !is_between_ticks(changed) {
            return false;
        }
        let device = changed.st_dev;
        let mut known = locked(&self.0);
        match *known {
            Some((of, are_fine)) if of == device => are_fine,
            _ => {
                let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
                let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
                let are_fine = file_system(&mounts, major, minor).is_some_and(|it| FINE_FILE_SYSTEMS.contains(&it));
                *known = Some((device, are_fine));
                are_fine
            }
        }
    }
}

/// Whether the kernel gave the change a time that its clock of ticks did not show.
// How wide the system's numbers are differs from one to the next.
#[allow(clippy::unnecessary_cast)]
#[cfg(target_os = "linux")]
fn is_between_ticks(changed: &Stat) -> bool {
    use rustix::time::{ClockId, clock_gettime};
    let [tick, now] = [ClockId::RealtimeCoarse, ClockId::Realtime].map(|clock| {
        let time = clock_gettime(clock);
        (time.tv_sec, time.tv_nsec)
    });
    let change = (changed.st_ctime as i64, changed.st_ctime_nsec as i64);
    // Later than now would be by a clock that was put back, or by another machine's.
    tick < change && change <= now
}

#[cfg(not(target_os = "linux"))]
fn is_between_ticks(_changed: &Stat) -> bool {
    false
}

/// What is mounted as a device, in the form of `/proc/self/mountinfo`:
/// `36 35 98:0 /root /mount rw,noatime master:1 - ext4 /dev/root rw`.
fn file_system(mounts: &str, major: u32, minor: u32) -> Option<&str> {
    let device = format!("{major}:{minor}");
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&device))?;
    line.split_once(" - ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_found_by_its_device() {
        let mounts = "24 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      25 24 0:5 / /dev rw - devtmpfs devtmpfs rw\n\
                      26 24 0:50 / /a\\040b rw shared:2 master:1 - nfs4 server:/a rw\n";
        assert_eq!(file_system(mounts, 253, 0), Some("ext4"));
        assert_eq!(file_system(mounts, 0, 50), Some("nfs4"));
        assert_eq!(file_system(mounts, 0, 5), Some("devtmpfs"));
        assert_eq!(file_system(mounts, 53, 0), None);
        assert_eq!(file_system("", 0, 5), None);
    }
}
