//! The configuration as it is written. The JSON Schema of the file is derived from these types: their doc comments are
//! the descriptions that `larder config schema` and docs/configuration.md give, and `Default` holds the defaults.
//!
//! No type in here has a `Debug`, because passwords are still plain text.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest that anything may be told to wait, in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;

/// The configuration of larder. Every key has a default, so `{}` is a configuration.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Document {
    /// For editors: where the JSON Schema of this file is. Not read.
    #[serde(rename = "$schema", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(super) schema: Option<String>,
    /// Where entities are stored.
    pub(super) storage: Storage,
    /// What `larder migrate` does unless it is told otherwise.
    pub(super) migration: Migration,
    /// Where plugins are and what bounds them.
    pub(super) plugins: Plugins,
}

/// Where entities are stored.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("patternProperties" = { "^[A-Za-z0-9][A-Za-z0-9_-]*_strategy$": { "type": "object" } }))]
pub(super) struct Storage {
    /// The store that is used where none is named: a strategy, with its section beside this key, or a name from `stores`.
    #[schemars(length(min = 1))]
    pub(super) strategy: String,
    /// JSON documents in a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "JsonStrategy")]
    pub(super) json_strategy: Option<JsonStrategy>,
    /// Tables in SQLite or PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SqlStrategy")]
    pub(super) sql_strategy: Option<SqlStrategy>,
    /// Tables in DynamoDB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DynamodbStrategy")]
    pub(super) dynamodb_strategy: Option<DynamodbStrategy>,
    /// What the strategy that `strategy` names may borrow, where it is neither json, sql nor dynamodb: those get what their section says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Grants")]
    pub(super) grants: Option<Grants>,
    /// More stores, by name.
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    pub(super) stores: Ordered<NamedStore>,
    /// More collections by name, or other definitions of `templates`, `requests` and `machines`, each replaced as a whole.
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    pub(super) collections: Ordered<DeclaredCollection>,
}

impl Default for Storage {
    fn default() -> Self {
        Storage {
            strategy: "json".to_owned(),
            json_strategy: None,
            sql_strategy: None,
            dynamodb_strategy: None,
            grants: None,
            stores: Ordered::default(),
            collections: Ordered::default(),
        }
    }
}

/// A store under a name: a strategy and its section.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("patternProperties" = { "^[A-Za-z0-9][A-Za-z0-9_-]*_strategy$": { "type": "object" } }))]
pub(super) struct NamedStore {
    /// Its strategy: `json`, `sql`, `dynamodb`, or the stem of a plugin's file.
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"))]
    pub(super) strategy: String,
    /// As `storage.json_strategy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "JsonStrategy")]
    pub(super) json_strategy: Option<JsonStrategy>,
    /// As `storage.sql_strategy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SqlStrategy")]
    pub(super) sql_strategy: Option<SqlStrategy>,
    /// As `storage.dynamodb_strategy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DynamodbStrategy")]
    pub(super) dynamodb_strategy: Option<DynamodbStrategy>,
    /// As `storage.grants`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Grants")]
    pub(super) grants: Option<Grants>,
}

/// What a store may borrow from the host.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Grants {
    /// One directory with all that is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "FilesGrant")]
    pub(super) files: Option<FilesGrant>,
    /// One database: the keys of `storage.sql_strategy` without `constraints`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "sql_grant")]
    pub(super) sql: Option<SqlStrategy>,
    /// Tables in DynamoDB with one prefix: the keys of `storage.dynamodb_strategy` from `region` to `auto_scaling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "dynamodb_grant")]
    pub(super) dynamodb: Option<DynamodbStrategy>,
    /// TCP connections to hosts that are named. Nothing listens, and there is no UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "TcpGrant")]
    pub(super) tcp: Option<TcpGrant>,
    /// HTTP requests to origins that are named. Redirections are answers: nothing follows them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HttpGrant")]
    pub(super) http: Option<HttpGrant>,
}

/// One directory with all that is in it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FilesGrant {
    /// The directory, relative to the working directory. It may not hold the configuration, plugins or the state of migrations.
    #[schemars(length(min = 1))]
    pub(super) directory: String,
}

/// TCP connections to hosts that are named.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TcpGrant {
    /// Hosts with their ports, as `cache.example.org:6379`, `10.0.0.5:6379` or `[2001:db8::5]:6379`.
    #[schemars(length(min = 1))]
    pub(super) allow: Vec<String>,
    /// Names may lead to this machine and to private addresses. An address that `allow` has itself, and `localhost`, need no leave.
    #[serde(default)]
    pub(super) private: bool,
}

/// HTTP requests to origins that are named.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpGrant {
    /// Origins, as `https://api.example.org` or `http://127.0.0.1:8080`.
    #[schemars(length(min = 1))]
    pub(super) allow: Vec<String>,
    /// As `storage.grants.tcp.private`.
    #[serde(default)]
    pub(super) private: bool,
}

/// The database's part of a SQL strategy's section: a plugin's own settings are in its own section.
fn sql_grant(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<SqlStrategy>();
    if let Some(properties) = schema.get_mut("properties").and_then(|properties| properties.as_object_mut()) {
        properties.shift_remove("constraints");
    }
    schema
}

/// The tables' part of a DynamoDB strategy's section.
fn dynamodb_grant(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<DynamodbStrategy>();
    if let Some(properties) = schema.get_mut("properties").and_then(|properties| properties.as_object_mut()) {
        properties.shift_remove("consistent_reads");
        properties.shift_remove("load_in_transactions");
        properties.shift_remove("enable_dax");
    }
    schema
}

/// JSON documents in a directory. What has no default of its own here is the plugin's business, and only what is written
/// reaches it; `extend` tells the plugin's default.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct JsonStrategy {
    /// `single_file`: one document of collections, each an object of id and entity. `split_files`: one document a collection.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "StorageType", extend("default" = "single_file"))]
    pub(super) storage_type: Option<StorageType>,
    /// The directory of the documents, relative to the working directory.
    #[schemars(length(min = 1))]
    pub(super) base_path: String,
    /// Names of the documents in that directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Filenames")]
    pub(super) filenames: Option<Filenames>,
    /// Commits go to a journal beside the documents, and are folded into them when it has outgrown its bound and when the store is closed. With `false`, each commit replaces the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool", extend("default" = true))]
    pub(super) journal: Option<bool>,
    /// Documents are written with gzip, under names that end in `.gz`. Both forms are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool", extend("default" = false))]
    pub(super) enable_compression: Option<bool>,
    /// Entities that are kept parsed in memory, each of at most 64 KiB. Of all others only the id and the place are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(max = 10_000_000), extend("default" = 1000))]
    pub(super) cache_size: Option<u32>,
    /// Bytes that the journal may have before it is folded. It may always become as large as the documents, so that a save costs the same whatever their size.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(max = 1_073_741_824), extend("default" = 64_000))]
    pub(super) write_buffer_size: Option<u32>,
    /// A write is on the disk before it is acknowledged. With `false`, a crash of the machine may take the last writes along, but never a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool", extend("default" = true))]
    pub(super) sync_writes: Option<bool>,
    /// A document that is replaced is kept as a backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool", extend("default" = true))]
    pub(super) backup_enabled: Option<bool>,
    /// Earlier documents that are kept; the oldest go first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(max = 10_000), extend("default" = 5))]
    pub(super) backup_count: Option<u32>,
}

impl Default for JsonStrategy {
    fn default() -> Self {
        JsonStrategy {
            storage_type: None,
            base_path: "data".to_owned(),
            filenames: None,
            journal: None,
            enable_compression: None,
            cache_size: None,
            write_buffer_size: None,
            sync_writes: None,
            backup_enabled: None,
            backup_count: None,
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StorageType {
    SingleFile,
    SplitFiles,
}

/// Names of documents.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Filenames {
    /// The document with `single_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1), extend("default" = "request_database.json"))]
    pub(super) single_file: Option<String>,
    /// The document of each collection with `split_files`; `<collection>.json` where it is not named.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) split_files: BTreeMap<String, String>,
}

/// Tables in SQLite or PostgreSQL.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SqlStrategy {
    /// `sqlite` or `postgresql`.
    #[serde(rename = "type")]
    pub(super) database: DatabaseType,
    /// SQLite: the file, relative to the working directory; `request_database.db` where it is not named. PostgreSQL: the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(super) name: Option<String>,
    /// PostgreSQL's host: a name, an address, or the folder of a Unix socket; `localhost` where it is empty.
    pub(super) host: String,
    /// PostgreSQL's port; 5432 where it is 0.
    pub(super) port: u16,
    /// PostgreSQL's user.
    pub(super) username: String,
    /// The user's password.
    pub(super) password: String,
    /// How the connection to PostgreSQL is encrypted: `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`.
    pub(super) ssl_mode: SslMode,
    /// The file of the certificate authorities that `verify-ca` and `verify-full` believe, in PEM form; those of the system where it is empty.
    pub(super) ssl_root_cert: String,
    /// Let a PostgreSQL user connect who is a superuser or may use files and programs of the server. What a plugin sends is sent in that user's name.
    pub(super) allow_superuser: bool,
    /// Connections that are kept.
    #[schemars(range(min = 1, max = 1000))]
    pub(super) pool_size: u32,
    /// Connections that are opened beyond `pool_size` under load, and closed after a second without use.
    #[schemars(range(max = 1000))]
    pub(super) max_overflow: u32,
    /// Seconds to wait for a free connection.
    #[schemars(range(min = 0, max = SECONDS_MAX))]
    pub(super) pool_timeout: f64,
    /// Seconds after which a connection is replaced by a new one; 0 for never.
    #[schemars(range(min = 0, max = 31_536_000))]
    pub(super) pool_recycle: f64,
    /// Prepared statements are kept with their connection.
    pub(super) enable_query_cache: bool,
    /// Seconds that a statement may take.
    #[schemars(range(max = SECONDS_MAX), extend("exclusiveMinimum" = 0))]
    pub(super) timeout: f64,
    /// `strict`: tables with NOT NULL, lengths and foreign keys. `relaxed`: columns, primary key and indexes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Constraints", extend("default" = "strict"))]
    pub(super) constraints: Option<Constraints>,
}

impl Default for SqlStrategy {
    fn default() -> Self {
        SqlStrategy {
            database: DatabaseType::Sqlite,
            name: None,
            host: String::new(),
            port: 0,
            username: String::new(),
            password: String::new(),
            ssl_mode: SslMode::Prefer,
            ssl_root_cert: String::new(),
            allow_superuser: false,
            pool_size: 5,
            max_overflow: 10,
            pool_timeout: 30.0,
            pool_recycle: 3600.0,
            enable_query_cache: true,
            timeout: 30.0,
            constraints: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum DatabaseType {
    Sqlite,
    Postgresql,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Constraints {
    Strict,
    Relaxed,
}

/// Tables in DynamoDB.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DynamodbStrategy {
    /// The region; where it is not named, the AWS profile or environment says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(super) region: Option<String>,
    /// The AWS profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(super) profile: Option<String>,
    /// Another endpoint than the region's, as `http://localhost:8000`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = r"^https?://[^/@\s]+(/[^@\s]*)?$"))]
    pub(super) endpoint_url: Option<String>,
    /// Tables are named `<prefix>_<collection>`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.-]{1,100}$"))]
    pub(super) table_prefix: String,
    /// `PAY_PER_REQUEST` or `PROVISIONED`; where it is not named, `PROVISIONED` with auto scaling and `PAY_PER_REQUEST` without.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BillingMode")]
    pub(super) billing_mode: Option<BillingMode>,
    /// Read units a second of each table and index, where they are provisioned.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) read_capacity: u32,
    /// Write units a second of each table and index, where they are provisioned.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) write_capacity: u32,
    /// Whether provisioned units follow the load: `true`, `false`, or an object that says how far.
    pub(super) auto_scaling: AutoScaling,
    /// `get` and `query` on a table see every write that was acknowledged before.
    pub(super) consistent_reads: bool,
    /// Bulk loads put what is new in transactions, on a condition and at twice the write units; otherwise they look first.
    pub(super) load_in_transactions: bool,
    /// Accepted, with a warning: there is no DAX client, so reads go to DynamoDB.
    pub(super) enable_dax: bool,
}

impl Default for DynamodbStrategy {
    fn default() -> Self {
        DynamodbStrategy {
            region: None,
            profile: None,
            endpoint_url: None,
            table_prefix: "hostfactory".to_owned(),
            billing_mode: None,
            read_capacity: 5,
            write_capacity: 5,
            auto_scaling: AutoScaling { enabled: false, ..AutoScaling::default() },
            consistent_reads: false,
            load_in_transactions: false,
            enable_dax: false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum BillingMode {
    PayPerRequest,
    Provisioned,
}

/// Auto scaling, written as a boolean or as an object.
pub(super) struct AutoScaling {
    pub(super) enabled: bool,
    pub(super) bounds: AutoScalingBounds,
}

/// How far auto scaling goes.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AutoScalingBounds {
    /// Whether there is auto scaling.
    pub(super) enabled: bool,
    /// Least read units a second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) min_read_capacity: u32,
    /// Most read units a second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_read_capacity: u32,
    /// Least write units a second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) min_write_capacity: u32,
    /// Most write units a second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_write_capacity: u32,
    /// Percent of the provisioned units that should be in use: DynamoDB takes 20 to 90.
    #[schemars(range(min = 20, max = 90))]
    pub(super) target_utilization: u32,
}

impl Default for AutoScalingBounds {
    fn default() -> Self {
        AutoScalingBounds {
            enabled: true,
            min_read_capacity: 1,
            max_read_capacity: 100,
            min_write_capacity: 1,
            max_write_capacity: 100,
            target_utilization: 70,
        }
    }
}

/// What `larder migrate` does unless it is told otherwise.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Migration {
    /// Entities in one batch.
    #[schemars(range(min = 1, max = 100_000))]
    pub(super) batch_size: u32,
    /// A backup of the source is made before anything is written.
    pub(super) create_backup: bool,
    /// Where backups go, relative to the working directory: a folder, or a file where the name ends in `.json`.
    #[schemars(length(min = 1))]
    pub(super) backup_location: String,
    /// Source and target are compared at the end.
    pub(super) validate_after_migration: bool,
    /// Entities that were verified are removed from the source, each by its version; files and tables stay.
    pub(super) cleanup_source: bool,
    /// Parts of a collection that are copied side by side.
    #[schemars(range(min = 1, max = 64))]
    pub(super) parallel_workers: u32,
}

impl Default for Migration {
    fn default() -> Self {
        Migration {
            batch_size: 1000,
            create_backup: true,
            backup_location: "backups/".to_owned(),
            validate_after_migration: true,
            cleanup_source: false,
            parallel_workers: 4,
        }
    }
}

/// Where plugins are and what bounds them.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Plugins {
    /// The directory of the plugins, relative to this file; where it is not named, the folder `plugins` beside the executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(super) directory: Option<String>,
    /// Memory of one instance, in MiB: enough for a JSON store of 100 MB.
    #[schemars(range(min = 16, max = 4096))]
    pub(super) memory_mb_max: u32,
    /// Memory of all instances of the process together, in MiB.
    #[schemars(range(min = 16, max = 1_048_576))]
    pub(super) memory_total_mb_max: u32,
    /// Size of a component's file, in MiB: those from Python and JavaScript have 13 to 18.
    #[schemars(range(min = 1, max = 1024))]
    pub(super) component_mb_max: u32,
    /// Functions of a component, over all of its modules: those that come with larder have some 1,000, those from JavaScript up to 20,000.
    #[schemars(range(min = 100, max = 1_000_000))]
    pub(super) functions_max: u32,
    /// Seconds that one call may take, what it waits for included: a large document takes its time to load.
    #[schemars(range(max = SECONDS_MAX), extend("exclusiveMinimum" = 0))]
    pub(super) call_timeout: f64,
    /// Seconds that a plugin may compute in one call. What it waits for does not count.
    #[schemars(range(max = SECONDS_MAX), extend("exclusiveMinimum" = 0))]
    pub(super) cpu_timeout: f64,
    /// Seconds from the beginning of a transaction to its end; after that it is rolled back.
    #[schemars(range(max = SECONDS_MAX), extend("exclusiveMinimum" = 0))]
    pub(super) transaction_timeout: f64,
    /// Entities that the host reads to answer one query that no index answers.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(super) max_scanned_entities: u32,
    /// Pages in which one query, or one segment of a scan, may come.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(super) pages_max: u32,
    /// Entities, ids or writes in one call or its reply.
    #[schemars(range(min = 1000, max = 10_000_000))]
    pub(super) call_entities_max: u32,
    /// Size of a call, and of its reply, in MiB; and of what crosses with one use of a capability.
    #[schemars(range(min = 1, max = 2048))]
    pub(super) call_mb_max: u32,
    /// Uses of capabilities in one call.
    #[schemars(range(min = 100, max = 1_000_000_000))]
    pub(super) host_calls_max: u32,
    /// Locks, files being replaced and transactions that an instance holds at once.
    #[schemars(range(min = 16, max = 1_000_000))]
    pub(super) handles_max: u32,
    /// Elements in all tables of an instance, which WebAssembly keeps references to functions in.
    #[schemars(range(min = 1000, max = 100_000_000))]
    pub(super) table_elements_max: u32,
    /// Core instances that a component is made of, and as many memories and as many tables.
    #[schemars(range(min = 10, max = 10_000))]
    pub(super) core_instances_max: u32,
    /// Of what a plugin prints in one call, the last KiB, which are kept to explain a trap. The rest is dropped and counted.
    #[schemars(range(min = 1, max = 1024))]
    pub(super) log_kb_max: u32,
    /// Instances of one store that run side by side, where its strategy keeps no state in memory and it was lent no database.
    #[schemars(range(min = 1, max = 1000))]
    pub(super) store_instances_max: u32,
    /// Traps after which a store's plugin is not called any more until it is loaded again; 0 for never.
    #[schemars(range(max = 1_000_000))]
    pub(super) traps_max: u32,
    /// Seconds in which they come, with no call between them that succeeds.
    #[schemars(range(max = SECONDS_MAX), extend("exclusiveMinimum" = 0))]
    pub(super) traps_window: f64,
}

impl Default for Plugins {
    fn default() -> Self {
        Plugins {
            directory: None,
            memory_mb_max: 1024,
            memory_total_mb_max: 8192,
            component_mb_max: 64,
            functions_max: 50_000,
            call_timeout: 30.0,
            cpu_timeout: 20.0,
            transaction_timeout: 30.0,
            max_scanned_entities: 1_000_000,
            pages_max: 1_000_000,
            call_entities_max: 1_000_000,
            call_mb_max: 256,
            host_calls_max: 1_000_000,
            handles_max: 1000,
            table_elements_max: 1_000_000,
            core_instances_max: 200,
            log_kb_max: 4,
            store_instances_max: 32,
            traps_max: 5,
            traps_window: 60.0,
        }
    }
}

/// A collection: what identifies its entities, what writes stamp, and what a strategy with a schema makes of it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredCollection {
    /// The member that holds an entity's id.
    #[schemars(length(min = 1))]
    pub(super) key: String,
    /// The member that holds an entity's version.
    #[serde(default = "default_version")]
    #[schemars(length(min = 1))]
    pub(super) version: String,
    /// The member that holds the time of the first save; `false` or `null` for none.
    #[serde(default)]
    #[schemars(extend("default" = "created_at"))]
    pub(super) created_at: Stamp,
    /// The member that holds the time of the last write; `false` or `null` for none.
    #[serde(default)]
    #[schemars(extend("default" = "updated_at"))]
    pub(super) updated_at: Stamp,
    /// Whether an entity that has no member for the time of the last write is given one. `machines` are not, unless they are declared anew.
    #[serde(default = "yes")]
    pub(super) adds_updated_at: bool,
    /// Top-level members with a type, in the order of a table's columns. Entities may have others.
    #[serde(default)]
    pub(super) fields: Ordered<DeclaredField>,
    /// Indexes by name: the members they are over, most significant first.
    #[serde(default)]
    pub(super) indexes: Ordered<Vec<String>>,
    /// Fields that hold the id of an entity of another collection, and that collection.
    #[serde(default)]
    pub(super) references: Ordered<String>,
}

fn yes() -> bool {
    true
}

fn default_version() -> String {
    "version".to_owned()
}

/// A top-level member with a type.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredField {
    /// `text`, `integer`, `number`, `boolean`, `timestamp` or `json`.
    #[serde(rename = "type")]
    pub(super) ty: DeclaredType,
    /// It must be there and not null.
    #[serde(default)]
    pub(super) required: bool,
    /// Of a text, in characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 1, max = 10_485_760))]
    pub(super) max_length: Option<u32>,
}

#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum DeclaredType {
    Text,
    Integer,
    Number,
    Boolean,
    Timestamp,
    Json,
}

/// The name of a member that a write stamps.
#[derive(Clone, Default)]
pub(super) enum Stamp {
    /// The usual name.
    #[default]
    Usual,
    /// Another.
    Named(String),
    /// Writes do not stamp it.
    Off,
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Stamp::Usual => serializer.serialize_bool(true),
            Stamp::Named(name) => serializer.serialize_str(name),
            Stamp::Off => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StampVisitor;
        impl Visitor<'_> for StampVisitor {
            type Value = Stamp;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name, a boolean or null")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Stamp, E> {
                Ok(if on { Stamp::Usual } else { Stamp::Off })
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Stamp, E> {
                Ok(Stamp::Named(name.to_owned()))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Stamp, E> {
                Ok(Stamp::Off)
            }
        }
        deserializer.deserialize_any(StampVisitor)
    }
}

impl JsonSchema for Stamp {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Stamp".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "boolean", "null"], "minLength": 1 })
    }
}

impl Default for AutoScaling {
    fn default() -> Self {
        AutoScaling { enabled: true, bounds: AutoScalingBounds::default() }
    }
}

impl Serialize for AutoScaling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(self.enabled)
    }
}

impl<'de> Deserialize<'de> for AutoScaling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AutoScalingVisitor;
        impl<'de> Visitor<'de> for AutoScalingVisitor {
            type Value = AutoScaling;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a boolean or an object")
            }
            fn visit_bool<E: de::Error>(self, enabled: bool) -> Result<AutoScaling, E> {
                Ok(AutoScaling { enabled, bounds: AutoScalingBounds::default() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AutoScaling, A::Error> {
                let bounds = AutoScalingBounds::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(AutoScaling { enabled: bounds.enabled, bounds })
            }
        }
        deserializer.deserialize_any(AutoScalingVisitor)
    }
}

impl JsonSchema for AutoScaling {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AutoScaling".into()
    }
    /// The object's schema, which says nothing of a boolean: one schema gives better messages than a choice of two.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = AutoScalingBounds::json_schema(generator);
        schema.insert("type".to_owned(), serde_json::json!(["boolean", "object"]));
        schema
    }
}

/// A JSON object whose names are free, in the order they were written.
pub(super) struct Ordered<T>(pub(super) Vec<(String, T)>);

impl<T> Ordered<T> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Ordered(Vec::new())
    }
}

impl<T: Serialize> Serialize for Ordered<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OrderedVisitor<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for OrderedVisitor<T> {
            type Value = Ordered<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(OrderedVisitor(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Ordered<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Map_of_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, T>::json_schema(generator)
    }
}
