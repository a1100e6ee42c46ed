//! Engines that answer as DynamoDB does, to be thrown away: a free port, fresh data, and an end that comes with the process
//! that started them, however that ends. And requests to them as another program would send them ([`call`]).
//!
//! The engine is `dynoxide`, a child of this process and no part of it: a hostile expression may abort it, and tests kill
//! it. What it does not know, Application Auto Scaling, `moto` answers.
//!
//! Beside each server runs a watchdog, a shell whose standard input is a pipe from here: nobody else holds the other end,
//! so that the pipe closes with this process, by Ctrl-C and SIGKILL too, and the watchdog then kills the server and
//! removes its folder.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Where the tests find the engine that was started for them.
pub const URL_VARIABLE: &str = "LARDER_TEST_DYNAMODB";
/// The engine's program, for tests that need one of their own.
pub const PROGRAM_VARIABLE: &str = "LARDER_TEST_DYNAMODB_BIN";
/// Where the tests find Application Auto Scaling.
pub const SCALING_URL_VARIABLE: &str = "LARDER_TEST_MOTO";

/// The region that everything is said to be in.
pub const REGION: &str = "us-east-1";
/// Credentials, which nobody checks, and what keeps the SDK from looking for others where a test takes these away.
pub const CREDENTIALS: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "test"),
    ("AWS_SECRET_ACCESS_KEY", "test"),
    ("AWS_REGION", REGION),
    ("AWS_EC2_METADATA_DISABLED", "true"),
];

/// How the folders of servers begin, in the folder of temporary files.
const PREFIX: &str = "larder-engine-";
/// A folder of the system's whose files lie in memory.
const MEMORY_FOLDER: &str = "/dev/shm";
/// The engine is ready within milliseconds; Python has much to read first.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// For one answer. A request that makes a table with indexes is the slowest.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// Somebody else may take a port between the look for a free one and its use.
const PORTS_TRIED: usize = 5;
/// Of the log, shown where the server does not start.
const LOG_LINES_SHOWN: usize = 40;

/// Ends the server (`$1`) and removes its folder (`$2`) unless it is told to leave before its input ends.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
read -r word && exit 0
kill -s KILL "$1" 2> /dev/null
rm -rf "$2"
"#;

/// Where the engine keeps its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// They are gone with the engine's process.
    Memory,
    /// They outlive the engine's process, also where it is killed. Not a power cut: the file lies in memory where the
    /// system has a folder for that, because the engine has each item on the disk before it goes on to the next.
    File,
}

/// An engine that answers as DynamoDB does. Dropped, it is stopped and gone.
#[derive(Debug)]
pub struct Engine {
    program: PathBuf,
    storage: Storage,
    server: Server,
}

impl Engine {
    /// Starts one with this program of `dynoxide`, without tables.
    pub fn start(program: &Path, storage: Storage) -> Result<Engine> {
        let mut engine = Engine { program: program.to_path_buf(), storage, server: Server::new(storage)? };
        engine.start_again()?;
        Ok(engine)
    }

    /// Starts it where it was killed, on the port that clients know, with the tables that it had if they lie in a file.
    pub fn start_again(&mut self) -> Result<()> {
        let Engine { program, storage, server } = self;
        let file = server.folder.join("tables.db");
        server.run(|port| {
            let mut command = Command::new(&*program);
            command.args(["serve", "--host", "127.0.0.1", "--port", &port.to_string()]);
            if *storage == Storage::File {
                command.arg("--db-path").arg(&file);
            }
            command
        })
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.server.wait()
    }

    /// The port on the loopback interface.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Its process, none where it was killed.
    pub fn process(&self) -> Option<u32> {
        self.server.running.as_ref().map(|running| running.server.id())
    }

    /// What `endpoint_url` names.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// What it wrote about itself.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// What tests need to know of it: names of environment variables and their values.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        [(URL_VARIABLE, self.url()), (PROGRAM_VARIABLE, self.program.display().to_string())]
    }
}

/// A server that answers as Application Auto Scaling does. Dropped, it is stopped and gone.
#[derive(Debug)]
pub struct Scaling {
    server: Server,
}

impl Scaling {
    /// Starts one with this `moto_server`.
    pub fn start(program: &Path) -> Result<Scaling> {
        let mut server = Server::new(Storage::Memory)?;
        server.run(|port| {
            let mut command = Command::new(program);
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            command
        })?;
        Ok(Scaling { server })
    }

    /// What `AWS_ENDPOINT_URL_APPLICATION_AUTO_SCALING` names.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// What tests need to know of it.
    pub fn variables(&self) -> [(&'static str, String); 1] {
        [(SCALING_URL_VARIABLE, self.url())]
    }
}

/// A server's process, its watchdog and its folder.
#[derive(Debug)]
struct Server {
    folder: PathBuf,
    /// 0 before it was started for the first time.
    port: u16,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    server: Child,
    watchdog: Child,
}

impl Server {
    fn new(storage: Storage) -> Result<Server> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX);
        let folder = match storage {
            Storage::File => builder.tempdir_in(MEMORY_FOLDER).or_else(|_| builder.tempdir()),
            Storage::Memory => builder.tempdir(),
        };
        let folder = folder.context("there is no folder for a server")?;
        Ok(Server { folder: folder.keep(), port: 0, running: None })
    }

    /// Runs it on a port and waits until it answers there.
    fn run(&mut self, command: impl Fn(u16) -> Command) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let is_new = self.port == 0;
        for attempt in 1.. {
            if is_new {
                self.port = free_port()?;
            }
            match self.run_once(command(self.port)) {
                Ok(()) => break,
                Err(error) if attempt < PORTS_TRIED && format!("{error:#}").contains("ddress already in use") => {
                    sleep(Duration::from_millis(300));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn run_once(&mut self, mut command: Command) -> Result<()> {
        let name = command.get_program().display().to_string();
        let log = OpenOptions::new().create(true).append(true).open(self.folder.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir(&self.folder);
        // Ctrl-C in a terminal is for who started this, and must not reach the server beside it.
        let server = command.process_group(0).spawn().with_context(|| format!("{name} cannot be run"))?;
        let mut watchdog = Command::new("sh");
        watchdog.args(["-c", WATCHDOG, "sh", &server.id().to_string()]).arg(&self.folder);
        watchdog.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let watchdog = watchdog.current_dir("/").spawn().context("the server's watchdog cannot be run")?;
        let running = self.running.insert(Running { server, watchdog });

        let started = Instant::now();
        let ended = loop {
            // Before the look at the port, where somebody else might answer.
            if let Some(status) = running.server.try_wait()? {
                break format!("ended with {status}");
            }
            if answers(self.port) {
                return Ok(());
            }
            if started.elapsed() > START_TIME_MAX {
                break format!("does not answer after {} s", START_TIME_MAX.as_secs());
            }
            sleep(Duration::from_millis(2));
        };
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n  ");
        self.kill();
        bail!("{name} {ended}; its log ends:\n  {shown}")
    }

    fn kill(&mut self) {
        let Some(Running { mut server, mut watchdog }) = self.running.take() else { return };
        // It may have ended.
        let _ = server.kill();
        let _ = server.wait();
        // Only now: until the server has ended, it is the watchdog's to end.
        if let Some(mut input) = watchdog.stdin.take() {
            let _ = input.write_all(b"leave\n");
        }
        let _ = watchdog.wait();
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        match &mut self.running {
            Some(running) => running.server.wait().context("the server cannot be waited for"),
            None => bail!("the server does not run"),
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn log(&self) -> String {
        fs::read(self.folder.join("log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        // Nothing of it is needed any more.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("there is no free port")?;
    Ok(listener.local_addr()?.port())
}

/// Whether somebody speaks HTTP there.
fn answers(port: u16) -> bool {
    exchange(&format!("127.0.0.1:{port}"), "GET", &[], "").is_ok()
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status of HTTP.
    pub status: u16,
    /// The service's word, without what stands before the `#`: `ResourceNotFoundException`.
    pub kind: String,
    /// The service's sentence.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({}): {}", self.kind, self.status, self.message)
    }
}

impl std::error::Error for Refusal {}

/// An operation of DynamoDB, as another program would call it at this URL: `ListTables` and so on, in the service's notation.
/// Panics where nothing answers.
pub fn call(url: &str, operation: &str, input: &Value) -> std::result::Result<Value, Refusal> {
    request(url, "dynamodb", &format!("DynamoDB_20120810.{operation}"), "application/x-amz-json-1.0", input)
}

/// The same of Application Auto Scaling.
pub fn call_scaling(url: &str, operation: &str, input: &Value) -> std::result::Result<Value, Refusal> {
    let target = format!("AnyScaleFrontendService.{operation}");
    request(url, "application-autoscaling", &target, "application/x-amz-json-1.1", input)
}

/// Deletes the tables whose names begin with this, where the engine still answers.
pub fn delete_tables(url: &str, prefix: &str) {
    let Some(address) = url.strip_prefix("http://") else { return };
    if TcpStream::connect(address).is_err() {
        return;
    }
    for name in tables(url).into_iter().filter(|name| name.starts_with(prefix)) {
        let _ = call(url, "DeleteTable", &serde_json::json!({"TableName": name}));
    }
}

/// The names of all tables.
pub fn tables(url: &str) -> Vec<String> {
    let (mut names, mut start) = (Vec::new(), Value::Null);
    loop {
        let mut input = serde_json::json!({"Limit": 100});
        if start != Value::Null {
            input["ExclusiveStartTableName"] = start;
        }
        let Ok(mut page) = call(url, "ListTables", &input) else { return names };
        let found = page["TableNames"].as_array().into_iter().flatten();
        names.extend(found.filter_map(Value::as_str).map(str::to_owned));
        start = page["LastEvaluatedTableName"].take();
        if start == Value::Null {
            return names;
        }
    }
}

fn request(
    url: &str,
    service: &str,
    target: &str,
    content: &str,
    input: &Value,
) -> std::result::Result<Value, Refusal> {
    let address = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url} is no http://HOST:PORT"));
    // Of the usual form; nobody checks the signature.
    let signature = format!(
        "AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/{service}/aws4_request, SignedHeaders=host;x-amz-date, \
         Signature={}",
        "0".repeat(64)
    );
    let headers = [
        ("X-Amz-Target", target),
        ("X-Amz-Date", "20260101T000000Z"),
        ("Content-Type", content),
        ("Authorization", &signature),
    ];
    let (status, text) = exchange(address, "POST", &headers, &input.to_string())
        .unwrap_or_else(|error| panic!("{target} has no answer: {error:#}"));
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    if status == 200 {
        return Ok(answer);
    }
    let word = |name: &str| answer[name].as_str().map(str::to_owned);
    let kind = word("__type").unwrap_or_default();
    Err(Refusal {
        status,
        kind: kind.rsplit('#').next().unwrap_or_default().to_owned(),
        message: word("message").or_else(|| word("Message")).unwrap_or(text),
    })
}

/// One request on a connection of its own: the status and the body of the answer.
fn exchange(address: &str, method: &str, headers: &[(&str, &str)], body: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    let mut head = format!("{method} / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no body")?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).context("the answer is no HTTP")?;
    let head = head.to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        bail!("the answer comes in chunks");
    }
    Ok((status.parse()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_that_is_told_to_leave_leaves_the_folder_and_one_that_is_not_removes_it() {
        for (word, is_kept) in [("leave\n", true), ("", false)] {
            let folder = tempfile::tempdir().unwrap();
            // A process that has nothing to do with the folder stands for the server.
            let mut server = Command::new("sleep").arg("60").spawn().unwrap();
            let mut watchdog = Command::new("sh");
            watchdog.args(["-c", WATCHDOG, "sh", &server.id().to_string()]).arg(folder.path());
            let mut watchdog = watchdog.stdin(Stdio::piped()).spawn().unwrap();
            watchdog.stdin.take().unwrap().write_all(word.as_bytes()).unwrap();
            watchdog.wait().unwrap();
            assert_eq!(folder.path().exists(), is_kept);
            if is_kept {
                assert!(server.try_wait().unwrap().is_none());
                server.kill().unwrap();
            }
            server.wait().unwrap();
        }
    }
}
