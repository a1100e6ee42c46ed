//! Where things are, and how a test gets a folder, a store and a run of the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use larder::config::Config;
use larder::host::Host;
use larder::repository::Repository;
use serde_json::{Map, Value};
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

use crate::databases::{Database, apart};
use crate::tables::Tables;

fn built(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run the tests with `cargo xtask test`, which builds what they need"),
    }
}

/// The folder of the strategies that the project ships.
pub fn plugins() -> PathBuf {
    built("LARDER_TEST_PLUGINS")
}

/// The folder of the components in `tests/guests`.
pub fn guests() -> PathBuf {
    built("LARDER_TEST_GUESTS")
}

/// The program.
pub fn program() -> PathBuf {
    built("LARDER_TEST_BIN")
}

/// The members of a JSON object, every digit kept.
#[track_caller]
pub fn object(text: impl AsRef<[u8]>) -> Map<String, Value> {
    larder_model::json::parse_object(text.as_ref())
        .unwrap_or_else(|error| panic!("{error} in {}", String::from_utf8_lossy(text.as_ref())))
}

/// Whether two texts are the same JSON object, by the exact value of each number.
#[track_caller]
pub fn assert_same_object(found: impl AsRef<[u8]>, expected: impl AsRef<[u8]>) {
    let (found, expected) = (found.as_ref(), expected.as_ref());
    assert!(
        larder_model::json::equal_objects(&object(found), &object(expected)),
        "found    {}\nexpected {}",
        String::from_utf8_lossy(found),
        String::from_utf8_lossy(expected)
    );
}

/// What stands for a database that a test has no use for.
const NO_DATABASE: &str = r#""host": "127.0.0.1", "port": 1, "name": "none", "username": "nobody""#;

/// What stands for tables that a test has no use for.
const NO_TABLES: &str = r#""endpoint_url": "http://127.0.0.1:1", "region": "us-east-1""#;

/// A working folder with a configuration; removed at the end of the test.
pub struct Folder {
    directory: TempDir,
    databases: Vec<Database>,
    /// Gone with it.
    _tables: Vec<Tables>,
}

impl Folder {
    /// A folder whose `larder.json` is `config`. Relative paths in it are absolute here, because the tests of one process share
    /// a working directory: `@` stands for the folder.
    pub fn new(config: &str) -> Folder {
        Folder::with_databases(config, &[])
    }

    /// A folder for one of the stores in `config`: `postgres_strict` has the database `~strict~`, and so on. Where it is
    /// `dynamodb` it has the tables `~tables~`, and is prepared.
    pub fn for_store(config: &str, store: &str) -> Folder {
        if store != "dynamodb" {
            return Folder::with_databases(config, store.strip_prefix("postgres_").as_slice());
        }
        let folder = Folder::with_services(config, &[], &[""]);
        folder.prepare(store);
        folder
    }

    /// A folder with databases of PostgreSQL, which are gone with it. In the configuration `~NAME~` stands for what
    /// `sql_strategy` says of one beside its type; of those that are not named here, nothing that could be opened.
    pub fn with_databases(config: &str, names: &[&str]) -> Folder {
        Folder::with_services(config, names, &[])
    }

    /// The same with tables of DynamoDB, for which `~tables NAME~` stands, and `~tables~` for those without a name. They come
    /// to be when they are prepared, and are gone with the folder.
    pub fn with_services(config: &str, names: &[&str], tables: &[&str]) -> Folder {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let root = directory.path().to_str().expect("a UTF-8 path").to_owned();
        let mut config = config.replace('@', &root);
        let databases: Vec<Database> = names.iter().map(|name| Database::new(name)).collect();
        for (name, database) in names.iter().zip(&databases) {
            config = config.replace(&format!("~{name}~"), &database.members());
        }
        let made: Vec<Tables> = tables.iter().map(|name| Tables::new(name)).collect();
        for (name, tables) in tables.iter().zip(&made) {
            let marker = format!("tables {name}");
            config = config.replace(&format!("~{}~", marker.trim_end()), &tables.members());
        }
        let parts: Vec<&str> = config.split('~').collect();
        let parts = parts.iter().enumerate().map(|(n, part)| match (n % 2, part.starts_with("tables")) {
            (0, _) => part,
            (_, true) => NO_TABLES,
            (_, false) => NO_DATABASE,
        });
        let config: String = parts.collect();
        let folder = Folder { directory, databases, _tables: made };
        folder.write("larder.json", config);
        folder
    }

    /// Its databases of PostgreSQL, in the order in which they were named.
    pub fn databases(&self) -> &[Database] {
        &self.databases
    }

    /// Makes what a store needs before it can be read.
    pub fn prepare(&self, store: &str) {
        let (host, store) = (self.host(), store.to_owned());
        apart(async move {
            let repository = host.open(Some(&store)).await.expect("a store that opens");
            repository.prepare(false, false).await.expect("a store that can be prepared");
        });
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file in it, and the folders above the file.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder");
        std::fs::write(path, content).expect("a file");
    }

    /// Reads a file in it.
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The names of what lies in one of its folders, sorted; none where the folder is not there.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path().join(path)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    /// Whether there is such a file or folder in it.
    pub fn has(&self, path: &str) -> bool {
        self.path().join(path).exists()
    }

    /// A connection of the test's own to an SQLite database in it, as another program would open one.
    pub async fn sqlite(&self, path: &str) -> SqliteConnection {
        let path = self.path().join(path);
        assert!(path.is_file(), "there is no database {}", path.display());
        SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.expect("a database")
    }

    /// A host for its configuration, with the shipped plugins.
    pub fn host(&self) -> Host {
        self.host_with(&plugins())
    }

    /// A host for its configuration, with the plugins in `directory`.
    pub fn host_with(&self, directory: &Path) -> Host {
        let config = Config::load(Some(&self.path().join("larder.json"))).expect("a valid configuration");
        Host::new(config, Some(directory)).expect("a host")
    }

    /// Opens a store of its configuration.
    pub async fn open(&self, store: &str) -> Repository {
        self.host().open(Some(store)).await.expect("a store that opens")
    }

    /// Runs the program in it.
    pub fn larder(&self, arguments: &[&str]) -> Run {
        self.larder_with(arguments, "")
    }

    /// Runs the program in it with something to read.
    pub fn larder_with(&self, arguments: &[&str], input: &str) -> Run {
        run_with(self.command(arguments), input)
    }

    /// The program, to be run in it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.current_dir(self.path()).args(arguments).env_remove("LARDER_CONFIG").env("LARDER_PLUGINS", plugins());
        command
    }
}

/// Runs a command with something to read.
pub fn run_with(mut command: Command, input: &str) -> Run {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // The program may end without reading.
    let _ = std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), input.as_bytes());
    Run::new(child.wait_with_output().expect("the program ends"))
}

/// What a run of the program came to.
#[derive(Debug)]
pub struct Run {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    fn new(output: Output) -> Run {
        Run {
            code: output.status.code().expect("an exit code"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// The run, which must have ended with this code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Run {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }
}
