//! Processes that work on a store, whom tests listen to and kill: runs of `tests/worker.rs`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};

use crate::support::{Folder, plugins};

/// A running one. Dropped, it is killed.
pub struct Worker {
    child: Child,
    lines: Receiver<String>,
}

impl Worker {
    /// Starts one on a store of the folder's configuration.
    pub fn start(folder: &Folder, store: &str, work: &[&str]) -> Worker {
        Worker::start_with(folder, &plugins(), store, work)
    }

    /// The same with the plugins in `directory`.
    pub fn start_with(folder: &Folder, directory: &Path, store: &str, work: &[&str]) -> Worker {
        let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
        command.arg(folder.path()).arg(store).args(work).env("LARDER_TEST_PLUGINS", directory);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the worker starts");
        let stdout = child.stdout.take().expect("a pipe");
        let (told, lines) = mpsc::channel();
        // What it told before its end is read however it ends.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    break;
                }
            }
        });
        Worker { child, lines }
    }

    /// Its next line; none once it ended.
    pub fn next(&mut self) -> Option<String> {
        self.lines.recv().ok()
    }

    /// A line that it told already.
    pub fn told(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Kills it at once, as a crash would, and gives the lines that nobody has taken.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().expect("it can be killed");
        let status = self.child.wait().expect("it ends");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "it ended by itself: {status}");
        self.lines.iter().collect()
    }

    /// Waits for its end, which has to be a good one, and gives the lines that nobody has taken.
    #[track_caller]
    pub fn finish(mut self) -> Vec<String> {
        let lines = self.lines.iter().collect();
        let status: ExitStatus = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
        lines
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
