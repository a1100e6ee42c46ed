//! The configuration: what a person wrote becomes values that are resolved and valid.
//!
//! The text is parsed, `${NAME}` is expanded (`environment`), names and values are held against the JSON Schema of the
//! whole file (`schema`), which is derived from the types in `written`, and `resolve` turns those into what this
//! module gives out. Nothing is validated again after that.
//!
//! Invariants: only this module reads environment variables and looks at paths outside a grant; only `resolve` branches
//! on a strategy's name; no message and no `Debug` of a type in here holds a password.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_model::Collection;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::plugin::Capability;

mod collections;
mod environment;
pub(crate) mod network;
mod resolve;
mod schema;
mod show;
#[cfg(test)]
mod tests;
pub(crate) mod trial;
mod written;

pub use network::{Endpoint, HostName, HttpGrant, Origin, TcpGrant};
pub use schema::{check_section, schema};

/// The file that is read where neither a flag nor the environment names one.
const DEFAULT_FILE: &str = "larder.json";
/// Names the configuration where no flag does.
const CONFIG_VARIABLE: &str = "LARDER_CONFIG";
/// Names the plugins directory where no flag does.
const PLUGINS_VARIABLE: &str = "LARDER_PLUGINS";
/// A configuration is written by hand; what is larger is some other file.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// A configuration, resolved and valid.
#[derive(Clone)]
pub struct Config {
    /// What `larder migrate` does unless it is told otherwise.
    pub migration: MigrationSettings,
    /// Where plugins are and what bounds them.
    pub plugins: PluginSettings,
    /// The file, where it came from one.
    path: Option<PathBuf>,
    base_dir: PathBuf,
    default_store: String,
    /// Every store that can be named, the default one first.
    stores: Vec<Store>,
    /// Built-in strategies that have no section: they can be named all the same, and have their defaults.
    implied: Vec<Store>,
    collections: Vec<Collection>,
    warnings: Vec<String>,
    /// As written, variables unexpanded: what [`Config::show`] starts from.
    written: Value,
}

/// One configured place: a strategy and its section, under a name.
#[derive(Clone)]
pub struct Store {
    /// What `--store` says.
    pub name: String,
    /// The strategy, which is the stem of the plugin's file.
    pub strategy: String,
    /// The section as the plugin sees it: what a capability is made from has been taken out.
    pub section: Map<String, Value>,
    /// What the plugin may borrow.
    pub grants: Grants,
    /// Where the store is described, as a key path: a grant that is missing would be written there, as `grants`.
    pub location: String,
}

/// What one store may borrow from the host, and how far it reaches.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grants {
    /// A directory.
    pub files: Option<FilesGrant>,
    /// A database.
    pub sql: Option<SqlGrant>,
    /// Tables in DynamoDB.
    pub dynamodb: Option<DynamodbGrant>,
    /// Hosts to connect to.
    pub tcp: Option<TcpGrant>,
    /// Origins to send requests to.
    pub http: Option<HttpGrant>,
}

/// A directory with all that is in it.
#[derive(Debug, Clone, PartialEq)]
pub struct FilesGrant {
    /// Absolute; it may not exist yet.
    pub directory: PathBuf,
}

/// One database.
#[derive(Debug, Clone, PartialEq)]
pub enum SqlGrant {
    /// A file.
    Sqlite {
        /// Absolute; it may not exist yet.
        path: PathBuf,
        /// How connections are kept.
        pool: Pool,
    },
    /// On a server.
    Postgresql(Server),
}

/// A database of a PostgreSQL server. Shown, it is host, port and database.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// A name, an address, or the folder of a Unix socket.
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// The database's name.
    pub name: String,
    /// Who connects.
    pub username: String,
    /// Empty where the server asks for none.
    pub password: Secret,
    /// Whether and how the connection is encrypted.
    pub tls_mode: TlsMode,
    /// The file of the certificate authorities that are believed; the system's where there is none.
    pub root_certificate: Option<PathBuf>,
    /// Whether a user may connect who can do more on the server than use databases.
    pub allow_superuser: bool,
    /// How connections are kept.
    pub pool: Pool,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.port, self.name)
    }
}

/// Tables in DynamoDB: those of one prefix, and how they are made. Shown, it is where they are.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamodbGrant {
    /// None where the AWS profile or the environment says it.
    pub region: Option<String>,
    /// None for the usual one.
    pub profile: Option<String>,
    /// None for the region's.
    pub endpoint_url: Option<String>,
    /// Tables are named `<prefix>_<collection>`.
    pub table_prefix: String,
    /// Of each table and index that is made; none where they are paid by request.
    pub provisioned: Option<Provisioned>,
    /// How these units follow the load, none where they do not.
    pub auto_scaling: Option<AutoScaling>,
}

impl fmt::Display for DynamodbGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}_…`", self.table_prefix)?;
        match &self.region {
            Some(region) => write!(f, " in the region `{region}`")?,
            None => write!(f, " in the region that the AWS profile or AWS_REGION names")?,
        }
        if let Some(endpoint) = &self.endpoint_url {
            write!(f, " at {endpoint}")?;
        }
        match &self.profile {
            Some(profile) => write!(f, " with the AWS profile `{profile}`"),
            None => Ok(()),
        }
    }
}

/// Units a second, each at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Provisioned {
    pub read: u32,
    pub write: u32,
}

/// Between which bounds units follow the load.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct AutoScaling {
    pub read_min: u32,
    pub read_max: u32,
    pub write_min: u32,
    pub write_max: u32,
    /// Percent of the units that should be in use.
    pub target_utilization: u32,
}

/// How connections to one database are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Connections that are kept, at least 1.
    pub size: u32,
    /// More of them under load, closed after a second without use.
    pub max_overflow: u32,
    /// For one statement.
    pub timeout: Duration,
    /// For a free connection.
    pub pool_timeout: Duration,
    /// The age at which a connection is replaced; none for never.
    pub pool_recycle: Option<Duration>,
    /// Whether prepared statements are kept.
    pub query_cache: bool,
}

/// PostgreSQL's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TlsMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Text that no message, log line or dump shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What `larder migrate` does unless it is told otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct MigrationSettings {
    /// Entities in one batch, at least 1.
    pub batch_size: u32,
    /// Whether the source is backed up first.
    pub create_backup: bool,
    /// Absolute: a folder, or a file where it ends in `.json`.
    pub backup_location: PathBuf,
    /// Whether source and target are compared at the end.
    pub validate_after_migration: bool,
    /// Whether what was verified is removed from the source.
    pub cleanup_source: bool,
    /// Parts of a collection that are copied side by side, 1 to 64.
    pub parallel_workers: u32,
}

/// Where plugins are and what bounds them.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginSettings {
    /// Absolute; where the configuration names none, [`Config::plugins_directory`] says where plugins are.
    pub directory: Option<PathBuf>,
    /// Memory of one instance.
    pub memory_bytes_max: usize,
    /// Memory of all instances of a host together.
    pub memory_total_bytes_max: usize,
    /// Size of a component's file.
    pub component_bytes_max: u64,
    /// Functions of a component.
    pub functions_max: u64,
    /// From a call's start to its end, waiting for locks and capabilities included.
    pub call_timeout: Duration,
    /// Of a call, the time that the plugin itself computes.
    pub cpu_timeout: Duration,
    /// From `begin` to the end of a transaction.
    pub transaction_timeout: Duration,
    /// Entities the host reads to answer one query that no index answers.
    pub scanned_entities_max: u64,
    /// Pages of one query, or of one segment of a scan.
    pub pages_max: u64,
    /// Entities, ids or writes in one call or its reply.
    pub call_entities_max: usize,
    /// What crosses in one call, in either direction, and with one use of a capability.
    pub call_bytes_max: usize,
    /// Uses of capabilities in one call.
    pub host_calls_max: u64,
    /// Locks, files being replaced and transactions that an instance holds at once.
    pub handles_max: usize,
    /// Elements in all tables of an instance.
    pub table_elements_max: usize,
    /// Core instances of a component, and as many memories and as many tables.
    pub core_instances_max: usize,
    /// What is kept of that which a plugin prints.
    pub log_bytes_max: usize,
    /// Instances of one store that run side by side.
    pub store_instances_max: usize,
    /// Traps after which a store's plugin is not called any more; 0 for never.
    pub traps_max: u32,
    /// In which they come.
    pub traps_window: Duration,
}

impl Config {
    /// Reads the configuration: `path`, else what `LARDER_CONFIG` names, else `larder.json` in the working directory.
    pub fn load(path: Option<&Path>) -> Result<Config> {
        let named = path.map(Path::to_path_buf).or_else(|| environment::path(CONFIG_VARIABLE));
        let path = absolute(named.as_deref().unwrap_or(Path::new(DEFAULT_FILE)))?;
        let shown = path.display();
        let text = match std::fs::metadata(&path).and_then(|metadata| match metadata.len() {
            0..=CONFIG_BYTES_MAX => std::fs::read(&path),
            _ => Err(std::io::Error::other(format!("it is larger than {CONFIG_BYTES_MAX} bytes"))),
        }) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::config(format!("there is no configuration file {shown}")).hint(format!(
                    "name one with --config or {CONFIG_VARIABLE}, or write {DEFAULT_FILE}, for example \
                     {{\"storage\": {{\"strategy\": \"json\", \"json_strategy\": {{\"base_path\": \"data\"}}}}}}"
                )));
            }
            Err(error) => {
                return Err(Error::config(format!("the configuration file {shown} cannot be read")).caused_by(error));
            }
        };
        let base_dir = path.parent().unwrap_or(&path).to_path_buf();
        parse(&text)
            .and_then(|value| resolve::config(value, &base_dir, Some(path.clone()), &environment::variable))
            .map_err(|error| error.context(format!("the configuration {shown} is not valid")))
    }

    /// A configuration from JSON text. `base_dir` stands for the folder of the file.
    pub fn from_text(text: &str, base_dir: &Path) -> Result<Config> {
        Config::from_value(parse(text.as_bytes())?, base_dir)
    }

    /// A configuration from a JSON value. `base_dir` stands for the folder of the file.
    pub fn from_value(value: Value, base_dir: &Path) -> Result<Config> {
        resolve::config(value, &absolute(base_dir)?, None, &environment::variable)
    }

    /// The store of that name: one of `storage.stores`, or a strategy for its section under `storage`. Without a name, the
    /// one that `storage.strategy` says.
    pub fn store(&self, name: Option<&str>) -> Result<Store> {
        let name = name.unwrap_or(&self.default_store);
        if let Some(store) = self.stores.iter().chain(&self.implied).find(|store| store.name == name) {
            return Ok(store.clone());
        }
        let known: Vec<&str> = self.stores.iter().chain(&self.implied).map(|store| store.name.as_str()).collect();
        let known = schema::nearest_first(name, &known).join("`, `");
        Err(Error::config(format!("there is no store `{name}`"))
            .hint(format!("the stores are `{known}`; more are described in `storage.stores`")))
    }

    /// Every store that the configuration describes, the default one first.
    pub fn stores(&self) -> Vec<Store> {
        self.stores.clone()
    }

    /// The built-in collections, then those that the configuration adds.
    pub fn collections(&self) -> &[Collection] {
        &self.collections
    }

    /// Sentences that whoever uses this configuration should read.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The file that was read, none where the configuration was made from a value.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Where migrations keep their state: `.larder` beside the configuration.
    pub fn state_directory(&self) -> PathBuf {
        resolve::state_directory(&self.base_dir)
    }

    /// Where the plugins that may be loaded are pinned: `plugins.lock` beside the configuration.
    pub fn plugins_lock(&self) -> PathBuf {
        resolve::plugins_lock(&self.base_dir)
    }

    /// Where plugins are: `flag`, else what `LARDER_PLUGINS` names, else `plugins.directory`, else the folder `plugins`
    /// beside the executable. An error where a store was granted that place.
    pub fn plugins_directory(&self, flag: Option<&Path>) -> Result<PathBuf> {
        let directory = match flag {
            Some(flag) => absolute(flag)?,
            None => default_plugins_directory(self.plugins.directory.as_deref())?,
        };
        for store in &self.stores {
            store.check_apart_from_plugins(&directory)?;
        }
        Ok(directory)
    }

    /// The whole configuration as JSON, with defaults filled in. Variables stay unexpanded, secrets are `"***"`.
    pub fn show(&self) -> Value {
        show::config(self)
    }
}

/// Where compiled plugins are kept between runs, none where this user has no place for that. No store is granted it: what
/// is there is run without another look.
pub fn compile_cache_directory() -> Option<PathBuf> {
    let home = || environment::path("HOME");
    let caches = if cfg!(windows) {
        environment::path("LOCALAPPDATA")
    } else {
        // A relative path is invalid there, as the XDG specification has it.
        environment::path("XDG_CACHE_HOME").filter(|path| path.is_absolute()).or_else(|| Some(home()?.join(".cache")))
    };
    Some(caches.filter(|path| path.is_absolute())?.join("larder").join("compiled"))
}

/// Where plugins are without a flag. `configured` is absolute.
fn default_plugins_directory(configured: Option<&Path>) -> Result<PathBuf> {
    if let Some(directory) = environment::path(PLUGINS_VARIABLE) {
        return absolute(&directory);
    }
    if let Some(directory) = configured {
        return Ok(directory.to_path_buf());
    }
    let executable = std::env::current_exe()
        .map_err(|error| Error::config("the folder of this program cannot be told").caused_by(error))?;
    Ok(executable.with_file_name("plugins"))
}

/// `path` from the root, as the working directory is now.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::config(format!("the path `{}` cannot be used", path.display())).caused_by(error))
}

fn parse(text: &[u8]) -> Result<Value> {
    larder_model::json::parse(text).map_err(|error| Error::config(error.message))
}

impl Store {
    /// That what it is lent is not where plugins are. For a store that is implied, this is known only when it is named.
    pub(crate) fn check_apart_from_plugins(&self, directory: &Path) -> Result<()> {
        resolve::check_apart(self, "plugins", directory)
    }

    /// Whether what it is granted can be there: a path that leads through a file is a mistake that a plugin, which sees no
    /// path, could not name.
    pub fn check_paths(&self) -> Result<()> {
        let database = match &self.grants.sql {
            Some(SqlGrant::Sqlite { path, .. }) => path.parent(),
            _ => None,
        };
        let directory = self.grants.files.as_ref().map(|grant| grant.directory.as_path());
        for folder in directory.into_iter().chain(database) {
            let nearest = folder.ancestors().find(|folder| folder.exists());
            if let Some(file) = nearest.filter(|nearest| !nearest.is_dir()) {
                return Err(Error::config(format!(
                    "store `{}` is to be in the folder {}, but {} is a file",
                    self.name,
                    folder.display(),
                    file.display()
                ))
                .hint(format!("name another folder in `{}`, or move the file away", self.location)));
            }
        }
        Ok(())
    }

    /// What place it is and how that is read, for a person to compare with another: no secrets.
    pub fn identity(&self) -> String {
        let places: Vec<String> = self.grants.places().map(|(_, place)| place).collect();
        format!("{} in {} with {}", self.strategy, places.join(", "), show::without_secrets(&self.section))
    }

    /// Whether both are one place: what is written to the one is then in the other. A table is the same whatever a section
    /// says of it; documents of two layouts may share a directory, and two stores may share a server.
    pub fn is_same_place(&self, other: &Store) -> bool {
        let has_database = |grants: &Grants| grants.sql.is_some() || grants.dynamodb.is_some();
        let shares_database = has_database(&self.grants) && self.grants.overlap(&other.grants);
        let shares_files =
            self.grants.files.as_ref().map(FilesGrant::settled) == other.grants.files.as_ref().map(FilesGrant::settled);
        let shares_rest = self.section == other.section
            && !has_database(&self.grants)
            && !has_database(&other.grants)
            && match self.grants.endpoints().next() {
                Some(_) => self.grants.shares_endpoint(&other.grants),
                None => shares_files && other.grants.endpoints().next().is_none(),
            };
        self.strategy == other.strategy && (shares_database || shares_rest)
    }
}

impl Grants {
    /// Where it leads, for a person: each capability that is lent, with a place.
    pub fn places(&self) -> impl Iterator<Item = (Capability, String)> {
        // All of them, so that a new one is thought of here.
        let Grants { files, sql, dynamodb, tcp, http } = self;
        let files = files.iter().map(|grant| grant.directory.display().to_string());
        let sql = sql.iter().map(|grant| match grant {
            SqlGrant::Sqlite { path, .. } => path.display().to_string(),
            SqlGrant::Postgresql(server) => server.to_string(),
        });
        let dynamodb = dynamodb.iter().map(DynamodbGrant::to_string);
        let hosts = tcp.iter().flat_map(|grant| &grant.endpoints).map(Endpoint::to_string);
        let origins = http.iter().flat_map(|grant| &grant.origins).map(Origin::to_string);
        let files = files.map(|place| (Capability::Files, place));
        let sql = sql.map(|place| (Capability::Sql, place));
        let dynamodb = dynamodb.map(|place| (Capability::Dynamodb, place));
        let hosts = hosts.map(|place| (Capability::Tcp, place));
        let origins = origins.map(|place| (Capability::Http, place));
        files.chain(sql).chain(dynamodb).chain(hosts).chain(origins)
    }

    /// Whether something is lent with both.
    pub fn overlap(&self, other: &Grants) -> bool {
        let files = match (&self.files, &other.files) {
            (Some(one), Some(other)) => {
                let (one, other) = (one.settled(), other.settled());
                one.starts_with(&other) || other.starts_with(&one)
            }
            _ => false,
        };
        let sql = match (&self.sql, &other.sql) {
            (Some(SqlGrant::Sqlite { path: one, .. }), Some(SqlGrant::Sqlite { path: other, .. })) => {
                resolve::settled(one) == resolve::settled(other)
            }
            (Some(SqlGrant::Postgresql(one)), Some(SqlGrant::Postgresql(other))) => {
                (&one.host, one.port, &one.name) == (&other.host, other.port, &other.name)
            }
            _ => false,
        };
        let dynamodb = match (&self.dynamodb, &other.dynamodb) {
            (Some(one), Some(other)) => {
                (&one.region, &one.profile, &one.endpoint_url, &one.table_prefix)
                    == (&other.region, &other.profile, &other.endpoint_url, &other.table_prefix)
            }
            _ => false,
        };
        files || sql || dynamodb || self.shares_endpoint(other)
    }

    /// The hosts that are reached by either protocol.
    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        let tcp = self.tcp.iter().flat_map(|grant| &grant.endpoints);
        let http = self.http.iter().flat_map(|grant| &grant.origins).map(|origin| &origin.endpoint);
        tcp.chain(http)
    }

    fn shares_endpoint(&self, other: &Grants) -> bool {
        self.endpoints().any(|one| other.endpoints().any(|other| one == other))
    }
}

impl FilesGrant {
    /// The directory with its links followed, as far as it exists.
    fn settled(&self) -> PathBuf {
        resolve::settled(&self.directory)
    }
}

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for whoever opens the connection.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("name", &self.name)
            .field("strategy", &self.strategy)
            .field("section", &show::without_secrets(&self.section))
            .field("grants", &self.grants)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({})", self.show())
    }
}
