//! PostgreSQL clusters to be thrown away: found programs, fresh data, a free port, and an end that comes with the process
//! that started them, however that ends.
//!
//! The server is a child of this process. Beside it runs a watchdog, a shell whose standard input is a pipe from here:
//! nobody else holds the other end, so that the pipe closes with this process, by Ctrl-C and SIGKILL too, and the watchdog
//! then ends the server and removes its folder. Where the watchdog was killed as well, the next cluster that is started
//! on this machine does it ([`remove_stale`]).
//!
//! PostgreSQL does not run as the superuser. For `root` it runs as the user `postgres`, which its packages make.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

/// A role that may make databases, and is no superuser, as an administrator would give it to Larder.
pub const ROLE: &str = "larder";
/// What `initdb` makes: the role that may do everything.
pub const SUPERUSER: &str = "postgres";

/// Where the tests find the cluster that was started for them: the URL of [`ROLE`].
pub const URL_VARIABLE: &str = "LARDER_TEST_POSTGRES";
/// The URL of [`SUPERUSER`].
pub const SUPERUSER_URL_VARIABLE: &str = "LARDER_TEST_POSTGRES_SUPERUSER";
/// The folder of PostgreSQL's programs, for tests that need a cluster of their own.
pub const PROGRAMS_VARIABLE: &str = "LARDER_TEST_POSTGRES_BIN";

/// How the folders of clusters begin, in the folder of temporary files.
const PREFIX: &str = "larder-postgres-";
/// What the server's log says when it can be used; in this language, because the cluster's locale is `C`.
const READY: &str = "database system is ready to accept connections";
const START_TIME_MAX: Duration = Duration::from_secs(60);
const STOP_TIME_MAX: Duration = Duration::from_secs(30);
/// Somebody else may take a port between the look for a free one and its use.
const PORTS_TRIED: usize = 5;
/// Of the log, shown where the server does not start.
const LOG_LINES_SHOWN: usize = 40;

/// Ends the server (`$1`) and removes its folder (`$2`) unless it is told to leave before its input ends.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
read -r word && exit 0
kill -s QUIT "$1" 2> /dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" 2> /dev/null || break; sleep 0.3; done
rm -rf "$2"
"#;

/// Makes a disk of its own for the data (`$1` is the folder, `$2` the bytes, `$3` and `$4` user and group), in a
/// namespace that goes away with the server.
const SMALL_DISK: &str = r#"
folder=$1 bytes=$2 user=$3 group=$4; shift 4
mount -t tmpfs -o "size=$bytes,mode=0700,uid=$user,gid=$group" tmpfs "$folder/disk" || exit 1
cp -a "$folder/data/." "$folder/disk/" || exit 1
exec setpriv --reuid="$user" --regid="$group" --clear-groups -- "$@"
"#;

/// What a cluster may be asked to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether a commit is on the disk before it is acknowledged, as it has to be where that is measured.
    pub fsync: bool,
    /// Clients at once.
    pub connections_max: u32,
    /// The data lies on a disk of this size. For `root` alone.
    pub disk_bytes_max: Option<u64>,
    /// More lines of `postgresql.conf`: name and value.
    pub parameters: Vec<(&'static str, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { fsync: false, connections_max: 200, disk_bytes_max: None, parameters: Vec::new() }
    }
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Transactions are rolled back and everything is written (`fast`).
    Orderly,
    /// The server drops everything and recovers at its next start (`immediate`).
    Immediate,
    /// The server and the processes of its clients are killed.
    Killed,
}

/// A cluster. Dropped, it is stopped and gone.
#[derive(Debug)]
pub struct Cluster {
    programs: PathBuf,
    settings: Settings,
    user: Option<User>,
    folder: PathBuf,
    port: u16,
    password: String,
    superuser_password: String,
    running: Option<Running>,
}

/// Whom the server runs as, where that is not whoever started it.
#[derive(Debug, Clone, Copy)]
struct User {
    id: u32,
    group: u32,
}

#[derive(Debug)]
struct Running {
    server: Child,
    watchdog: Child,
}

/// The folder with `initdb`, `postgres` and `pg_ctl`: on the path, where Debian's packages put them, or where `pg_config`
/// says; of several the newest.
pub fn find_programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut packaged: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let folder = entry.ok()?.path();
            Some((folder.file_name()?.to_str()?.parse().ok()?, folder.join("bin")))
        })
        .collect();
    packaged.sort();
    folders.extend(packaged.into_iter().rev().map(|(_, folder)| folder));
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output()
        && let Ok(folder) = String::from_utf8(output.stdout)
    {
        folders.push(folder.trim().into());
    }
    let has_all = |folder: &PathBuf| ["initdb", "postgres", "pg_ctl"].iter().all(|name| folder.join(name).is_file());
    folders.into_iter().find(has_all)
}

impl Cluster {
    /// Makes a cluster with the programs in this folder, and starts it.
    pub fn start(programs: &Path, settings: Settings) -> Result<Cluster> {
        remove_stale();
        let user = server_user()?;
        if settings.disk_bytes_max.is_some() && user.is_none() {
            bail!("only root can make a disk of its own for a cluster");
        }
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir().context("there is no folder for a cluster")?;
        let mut cluster = Cluster {
            programs: programs.to_path_buf(),
            settings,
            user,
            folder: folder.keep(),
            port: 0,
            password: random_word()?,
            superuser_password: random_word()?,
            running: None,
        };
        // Removed with the cluster from here on.
        cluster.make()?;
        cluster.start_again()?;
        Ok(cluster)
    }

    /// Starts it where it was stopped: the same data, on the port that clients know.
    pub fn start_again(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let is_new = self.port == 0;
        for attempt in 1.. {
            if is_new {
                self.port = free_port()?;
            }
            match self.run() {
                Ok(()) => break,
                Err(error) if attempt < PORTS_TRIED && error.to_string().contains("Address already in use") => {
                    sleep(Duration::from_millis(300));
                }
                // Processes of a server that was killed may still hold its memory.
                Err(error) if attempt < PORTS_TRIED && error.to_string().contains("shared memory block") => {
                    sleep(Duration::from_millis(300));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Stops it and keeps its data.
    pub fn stop(&mut self, how: Stop) -> Result<()> {
        let Some(Running { mut server, mut watchdog }) = self.running.take() else { return Ok(()) };
        let id = server.id().to_string();
        let (signal, mut processes) = match how {
            Stop::Orderly => ("INT", vec![id]),
            Stop::Immediate => ("QUIT", vec![id]),
            Stop::Killed => {
                let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
                let mut all = vec![id];
                all.extend(children.split_whitespace().map(str::to_owned));
                ("KILL", all)
            }
        };
        // The server's own processes may have ended since they were listed.
        let server_process = processes.remove(0);
        signal_processes(signal, &[server_process])?;
        let _ = signal_processes(signal, &processes);
        let ended = wait(&mut server, STOP_TIME_MAX);
        if ended.is_none() {
            let _ = server.kill();
            let _ = server.wait();
        }
        // Only now: until the server has ended, it is the watchdog's to end.
        if let Some(mut input) = watchdog.stdin.take() {
            let _ = input.write_all(b"leave\n");
        }
        let _ = watchdog.wait();
        if ended.is_none() {
            bail!("the server did not stop within {} s and was killed", STOP_TIME_MAX.as_secs());
        }
        Ok(())
    }

    /// Waits until the server ends by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        match &mut self.running {
            Some(running) => running.server.wait().context("the server cannot be waited for"),
            None => bail!("the server does not run"),
        }
    }

    /// The port on the loopback interface.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The password of [`ROLE`].
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The URL of a database for [`ROLE`].
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// The URL of a database for [`SUPERUSER`].
    pub fn superuser_url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{}@127.0.0.1:{}/{database}", self.superuser_password, self.port)
    }

    /// What tests need to know of it: names of environment variables and their values.
    pub fn variables(&self) -> [(&'static str, String); 3] {
        [
            (URL_VARIABLE, self.url("postgres")),
            (SUPERUSER_URL_VARIABLE, self.superuser_url("postgres")),
            (PROGRAMS_VARIABLE, self.programs.display().to_string()),
        ]
    }

    /// The certificate that the server shows, for `127.0.0.1` and `localhost`, which nobody but itself has signed.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("data/server.crt")
    }

    /// What the server wrote about itself.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Makes the data: a cluster with both roles, settings and a certificate.
    fn make(&self) -> Result<()> {
        fs::write(self.folder.join("owner"), process_identity(std::process::id()).unwrap_or_default())?;
        fs::set_permissions(&self.folder, Permissions::from_mode(0o700))?;
        fs::create_dir(self.folder.join("disk"))?;
        self.give(&self.folder)?;
        self.write("password", &self.superuser_password)?;
        let initdb = |more: &[&str]| {
            let mut command = self.program("initdb");
            command.args(["--username", SUPERUSER, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]);
            command.args(["--no-sync", "--pgdata"]).arg(self.data()).args(more);
            if self.settings.disk_bytes_max.is_some() {
                // A server that cannot write its log ahead ends. What is to be seen is one that cannot write its tables.
                command.arg("--waldir").arg(self.folder.join("wal"));
            }
            finish(command.arg("--pwfile").arg(self.folder.join("password")), "")
        };
        // A language's order of text, as most databases have, which is not the order that Larder promises. Before
        // version 15, and where the server was built without the library, there is none of these.
        if initdb(&["--locale-provider", "icu", "--icu-locale", "en"]).is_err() {
            let _ = fs::remove_dir_all(self.data());
            initdb(&[])?;
        }
        fs::remove_file(self.folder.join("password"))?;
        self.make_certificate()?;

        let on = |it: bool| if it { "on" } else { "off" }.to_owned();
        let mut parameters = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            // Only by password, and only over the loopback interface.
            ("unix_socket_directories", String::new()),
            ("max_connections", self.settings.connections_max.to_string()),
            ("fsync", on(self.settings.fsync)),
            ("full_page_writes", on(self.settings.fsync)),
            ("ssl", "on".to_owned()),
            ("lc_messages", "C".to_owned()),
        ];
        parameters.extend(self.settings.parameters.clone());
        let lines: String = parameters.iter().map(|(name, value)| format!("{name} = '{value}'\n")).collect();
        OpenOptions::new().append(true).open(self.data().join("postgresql.conf"))?.write_all(lines.as_bytes())?;

        // The server's own mode for this, which needs no password and shows none to those who list processes.
        // `DROP DATABASE … WITH (FORCE)` is refused a role that may not end the server's own vacuum, should one be there.
        let role = format!(
            "CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{}'\nGRANT pg_signal_backend TO {ROLE}\n",
            self.password
        );
        finish(self.program("postgres").args(["--single", "-D"]).arg(self.data()).arg("postgres"), &role)
    }

    fn make_certificate(&self) -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        command.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
        // A certificate of a server, signed by itself: who checks it wants it to be no authority.
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        let [key, certificate] = ["server.key", "server.crt"].map(|name| self.data().join(name));
        finish(command.arg("-keyout").arg(&key).arg("-out").arg(&certificate), "")
            .context("there is no certificate for the cluster: is `openssl` installed?")?;
        fs::set_permissions(&key, Permissions::from_mode(0o600))?;
        self.give(&key)?;
        self.give(&certificate)
    }

    /// Runs the server and waits until it can be used.
    fn run(&mut self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let seen = self.log().len();
        let mut command = match self.settings.disk_bytes_max.zip(self.user) {
            None => self.program("postgres"),
            Some((bytes, user)) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", SMALL_DISK, "sh"]).arg(&self.folder);
                command.args([bytes.to_string(), user.id.to_string(), user.group.to_string()]);
                command.arg(self.programs.join("postgres"));
                command
            }
        };
        let data = if self.settings.disk_bytes_max.is_some() { self.folder.join("disk") } else { self.data() };
        command.arg("-D").arg(data).args(["-p", &self.port.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C in a terminal is for who started this, and must not reach the server beside it.
        let server = command.current_dir("/").process_group(0).spawn().context("the server cannot be run")?;
        let mut watchdog = Command::new("sh");
        watchdog.args(["-c", WATCHDOG, "sh", &server.id().to_string()]).arg(&self.folder);
        watchdog.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let watchdog = watchdog.current_dir("/").spawn().context("the server's watchdog cannot be run")?;
        let running = self.running.insert(Running { server, watchdog });

        let started = Instant::now();
        let ended = loop {
            let log = fs::read(self.folder.join("log")).unwrap_or_default();
            let said = String::from_utf8_lossy(&log[seen.min(log.len())..]).into_owned();
            if said.contains(READY) {
                return Ok(());
            }
            if let Some(status) = running.server.try_wait()? {
                break format!("ended with {status}");
            }
            if started.elapsed() > START_TIME_MAX {
                break format!("is not ready after {} s", START_TIME_MAX.as_secs());
            }
            sleep(Duration::from_millis(20));
        };
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n  ");
        let _ = self.stop(Stop::Immediate);
        bail!("PostgreSQL {ended}; its log ends:\n  {shown}")
    }

    /// One of PostgreSQL's programs, as who may run it.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        if let Some(user) = self.user {
            command.uid(user.id).gid(user.group);
        }
        // The folder that this process works in may be closed to the other user. Messages are read by programs.
        command.current_dir("/").env("LC_ALL", "C").env_remove("PGDATA").env_remove("PGPORT");
        command
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        self.give(&path)
    }

    fn give(&self, path: &Path) -> Result<()> {
        let Some(user) = self.user else { return Ok(()) };
        chown(path, Some(user.id), Some(user.group)).with_context(|| format!("cannot give {} away", path.display()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nothing of it is needed any more.
        let _ = self.stop(Stop::Immediate);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes the clusters whose owners have died without a watchdog. What cannot be removed now is left for another time.
pub fn remove_stale() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let folder = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_stale(&folder).unwrap_or(false) {
            let server = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap_or_default();
            let server = server.lines().next().unwrap_or_default();
            // The number may belong to another process by now.
            let command_line = fs::read(format!("/proc/{server}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command_line).contains(&*folder.to_string_lossy()) {
                let _ = signal_processes("QUIT", &[server.to_owned()]);
            }
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

fn is_stale(folder: &Path) -> std::io::Result<bool> {
    // One that was made a moment ago may have no owner yet.
    let age = SystemTime::now().duration_since(fs::metadata(folder)?.modified()?).unwrap_or_default();
    let owner = fs::read_to_string(folder.join("owner")).unwrap_or_default();
    let id = owner.split(' ').next().and_then(|id| id.parse().ok());
    Ok(match id {
        Some(id) => process_identity(id).is_some_and(|identity| identity != owner) || !is_alive(id),
        None => age > Duration::from_secs(600),
    })
}

fn is_alive(id: u32) -> bool {
    // Where there is no such file system nobody is taken for dead.
    !Path::new("/proc/self").exists() || Path::new(&format!("/proc/{id}")).exists()
}

/// A process's number and when it started, since numbers are given out again.
fn process_identity(id: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name stands in brackets and may hold anything.
    let started = stat.rsplit(')').next()?.split_whitespace().nth(19)?;
    Some(format!("{id} {started}"))
}

/// Whether this process is the superuser's, who alone can make a disk for a cluster.
pub fn is_superuser() -> bool {
    server_user().is_ok_and(|user| user.is_some())
}

/// Whom a server has to run as: `postgres` for the superuser, nobody else otherwise.
fn server_user() -> Result<Option<User>> {
    let id = |arguments: &[&str]| -> Result<u32> {
        let output = Command::new("id").args(arguments).output().context("`id` cannot be run")?;
        let text = String::from_utf8(output.stdout)?;
        text.trim().parse().context("PostgreSQL does not run as root, and there is no user `postgres`")
    };
    if id(&["-u"])? != 0 {
        return Ok(None);
    }
    Ok(Some(User { id: id(&["-u", "postgres"])?, group: id(&["-g", "postgres"])? }))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("there is no free port")?;
    Ok(listener.local_addr()?.port())
}

fn random_word() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn signal_processes(signal: &str, processes: &[String]) -> Result<()> {
    if processes.is_empty() {
        return Ok(());
    }
    // A shell's own, since not every machine has the program.
    let output = Command::new("sh")
        .args(["-c", r#"signal=$1; shift; kill -s "$signal" "$@""#, "sh", signal])
        .args(processes)
        .output()?;
    if !output.status.success() {
        bail!("cannot send {signal}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Waits for a child, for so long.
fn wait(child: &mut Child, time: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < time {
        match child.try_wait() {
            Ok(None) => sleep(Duration::from_millis(10)),
            Ok(Some(status)) => return Some(status),
            Err(_) => return None,
        }
    }
    None
}

/// Runs a program to its end, which has to be a success; otherwise shows what it printed.
fn finish(command: &mut Command, input: &str) -> Result<()> {
    let name = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} cannot be run"))?;
    // A program that ends without reading says why.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let printed = [output.stdout, output.stderr].concat();
        bail!("{name} failed: {}\n{}", output.status, String::from_utf8_lossy(&printed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let id = std::process::id();
        let identity = process_identity(id).unwrap();
        assert_eq!(process_identity(id), Some(identity.clone()));
        let folder = tempfile::tempdir().unwrap();
        let owned_by = |owner: &str| {
            fs::write(folder.path().join("owner"), owner).unwrap();
            is_stale(folder.path()).unwrap()
        };
        assert!(!owned_by(&identity));
        assert!(owned_by(&format!("{id} 1")));
        assert!(owned_by("4194305 1"), "no process has a number above the kernel's largest");
        assert!(!owned_by(""));
    }
}
