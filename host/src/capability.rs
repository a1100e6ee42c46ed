//! What the host lends a plugin, and only what its store was granted: a linker per store holds nothing else, so that a
//! component that imports more does not load.
//!
//! Each module holds one capability in plain Rust; here they meet the contract's imports. Nothing of an outer path, an
//! address or a password passes: the host opens the directory or the database, and the plugin gets "the" one.

// Public inside a private module: the generated bindings name their handles.
pub mod dynamodb;
pub mod faults;
pub mod files;
pub(crate) mod http;
pub(crate) mod network;
mod revision;
pub mod sql;

use std::path::PathBuf;
use std::time::Duration;

use larder_model::{Collection, Error as ContractError, ErrorKind};
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker, Resource, ResourceTableError};

use crate::config::{Grants, HostName, SqlGrant, Store, TlsMode};
use crate::error::{Error, Result};
use crate::plugin::bindings::{StrategyPre, error_into, isolation_from_option, types};
use crate::plugin::bindings::{dynamodb as wit_dynamodb, files as wit_files, sql as wit_sql};
use crate::plugin::instance::State;
use crate::plugin::{Capability, Plugin};
use crate::text::one_line;
use dynamodb::{Attribute, Tables};
use files::{Directory, FileStat, Lock, LockMode, Replacement};
use http::Origins;
use network::{Hosts, Refusal};
use revision::Revision;
use sql::{Connections, Database, Dialect, Packed, Rows, SqlValue, Transaction};

/// What one store borrows. Clones are the same loan.
#[derive(Clone, Default)]
pub(crate) struct Lent {
    pub(crate) files: Option<Directory>,
    pub(crate) sql: Option<Database>,
    pub(crate) dynamodb: Option<Tables>,
    pub(crate) tcp: Option<Hosts>,
    pub(crate) http: Option<Origins>,
    /// Where that is, for a person.
    places: Vec<PathBuf>,
    /// The same of a server.
    server: Option<String>,
    /// The same of tables.
    tables: Option<String>,
    /// The same of a network.
    hosts: Option<String>,
}

/// Tells whether what was lent is as it was, without reading it.
pub(crate) enum Watch {
    Directory(Directory, Revision),
    Database(sql::Watch),
}

impl Watch {
    /// False where it cannot tell.
    pub(crate) async fn saw_no_change(&mut self) -> bool {
        match self {
            Watch::Directory(directory, before) => directory.revision().await.is_some_and(|now| now == *before),
            Watch::Database(watch) => watch.saw_no_change().await,
        }
    }
}

impl Lent {
    /// Whether what is used is somewhere else, so that who waits for it leaves the processor to others.
    pub(crate) fn is_remote(&self) -> bool {
        self.server.is_some() || self.tables.is_some() || self.hosts.is_some()
    }

    /// A watch over all that is lent, where that is one directory or the file of a database, and somebody can tell whether
    /// it changes.
    pub(crate) async fn watch(&self) -> Option<Watch> {
        if self.is_remote() {
            return None;
        }
        match (&self.files, &self.sql) {
            (Some(directory), None) => {
                let revision = directory.revision().await?;
                Some(Watch::Directory(directory.clone(), revision))
            }
            (None, Some(database)) => database.watch().await.map(Watch::Database),
            _ => None,
        }
    }

    /// Makes the capabilities that the grants describe. Nothing is opened before it is used.
    ///
    /// A statement is given up before the call that sent it is, so that whoever called learns why.
    ///
    /// # Errors
    /// Where requests are to be encrypted, and the system knows no authority that signs certificates.
    pub(crate) fn new(grants: &Grants, collections: &[Collection], call_timeout: Duration) -> Result<Lent> {
        let timeout = call_timeout * 4 / 5;
        let file = match &grants.sql {
            Some(SqlGrant::Sqlite { path, .. }) => Some(path.clone()),
            _ => None,
        };
        let server = match &grants.sql {
            Some(SqlGrant::Postgresql(server)) => Some(server.to_string()),
            _ => None,
        };
        let http = grants.http.as_ref().map(|grant| Origins::new(grant, timeout)).transpose().map_err(|error| {
            Error::config("no certificate authorities of the system can be read")
                .caused_by(error)
                .hint("install them (`ca-certificates`), or name a file of them in SSL_CERT_FILE")
        })?;
        Ok(Lent {
            places: grants.files.iter().map(|grant| grant.directory.clone()).chain(file).collect(),
            files: grants.files.as_ref().map(|grant| Directory::new(&grant.directory)),
            sql: grants.sql.as_ref().map(|grant| database(grant, timeout)),
            dynamodb: grants.dynamodb.as_ref().map(|grant| {
                let names = collections.iter().map(|collection| collection.name.clone());
                Tables::new(grant.clone(), names.collect(), timeout)
            }),
            tcp: grants.tcp.as_ref().map(|grant| Hosts::new(grant.endpoints.clone(), grant.private)),
            http,
            server,
            tables: grants.dynamodb.as_ref().map(ToString::to_string),
            hosts: (grants.tcp.is_some() || grants.http.is_some()).then(|| {
                let hosts = grants.places().filter(|(it, _)| matches!(it, Capability::Tcp | Capability::Http));
                hosts.map(|(_, place)| place).collect::<Vec<_>>().join(", ")
            }),
        })
    }

    /// Resolves every name that was granted, so that what cannot be meant is told before a plugin meets it. A name that
    /// nobody knows at the moment may be known later.
    pub(crate) async fn check_names(&self, store: &Store) -> Result<()> {
        let http = self.http.as_ref().map(Origins::hosts);
        let grants = [(Capability::Tcp, self.tcp.as_ref()), (Capability::Http, http)];
        let names = grants.into_iter().filter_map(|(capability, hosts)| Some((capability, hosts?)));
        let lookups = names.flat_map(|(capability, hosts)| {
            let look_up = move |name: HostName| async move { (capability, hosts.resolve(&name).await, name) };
            hosts.names().into_iter().map(look_up)
        });
        for (capability, found, name) in futures_util::future::join_all(lookups).await {
            if let Err(Refusal::Prohibited(address)) = found {
                let grant = format!("{}.grants.{}", store.location, capability.name());
                return Err(Error::config(format!(
                    "`{grant}`: the name {name} leads to {address}, and a name may lead to public addresses alone"
                ))
                .hint(format!(
                    "if that is meant, name the address itself, or set `{grant}.private` for addresses of this machine and \
                     of private networks"
                )));
            }
        }
        Ok(())
    }

    /// What a person can do about a plugin's error that comes from what was lent: the plugin knows no path to tell of.
    pub(crate) fn advice(&self, error: &ContractError) -> Option<String> {
        if let (Some(server), ErrorKind::Unavailable) = (&self.server, error.kind) {
            return Some(format!(
                "the store is the database {server}: see that the server runs, lets that user in and has such a database"
            ));
        }
        match (&self.tables, error.kind) {
            (Some(tables), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                return Some(format!(
                    "the store is the tables {tables}: see that region and endpoint are right and can be reached, and that \
                     `larder stores prepare` has made the tables"
                ));
            }
            (Some(tables), ErrorKind::Denied) => {
                return Some(format!(
                    "the store is the tables {tables}: see that the profile or the environment gives credentials, and \
                     that they may use these tables"
                ));
            }
            (Some(tables), ErrorKind::Throttled) => {
                return Some(format!("the store is the tables {tables}: raise their capacities, or let them scale"));
            }
            _ => {}
        }
        if let (Some(hosts), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Denied) =
            (&self.hosts, error.kind)
        {
            return Some(format!(
                "the store may reach {hosts} and nothing else: see that this is what it needs, and answers"
            ));
        }
        let is_full = error.kind == ErrorKind::LimitExceeded && error.message.contains("disk");
        let place = self.places.first().filter(|_| is_full)?;
        Some(format!("make room where {} is", place.display()))
    }

    /// Gives everything back in order.
    pub(crate) async fn close(&self) {
        if let Some(database) = &self.sql {
            database.close().await;
        }
    }
}

fn database(grant: &SqlGrant, timeout_max: Duration) -> Database {
    match grant {
        SqlGrant::Sqlite { path, pool } => Database::open_sqlite(sql::SqliteSettings {
            path: path.clone(),
            pool_size: pool.size,
            max_overflow: pool.max_overflow,
            timeout: pool.timeout.min(timeout_max),
            pool_timeout: pool.pool_timeout.min(timeout_max),
            pool_recycle: pool.pool_recycle,
            query_cache: pool.query_cache,
        }),
        SqlGrant::Postgresql(server) => Database::open_postgres(sql::PostgresSettings {
            host: server.host.clone(),
            port: server.port,
            name: server.name.clone(),
            username: server.username.clone(),
            password: server.password.expose().to_owned(),
            encryption: match server.tls_mode {
                TlsMode::Disable => sql::Encryption::Disable,
                TlsMode::Allow => sql::Encryption::Allow,
                TlsMode::Prefer => sql::Encryption::Prefer,
                TlsMode::Require => sql::Encryption::Require,
                TlsMode::VerifyCa => sql::Encryption::VerifyCa,
                TlsMode::VerifyFull => sql::Encryption::VerifyFull,
            },
            root_certificate: server.root_certificate.clone(),
            allow_superuser: server.allow_superuser,
            pool_size: server.pool.size,
            max_overflow: server.pool.max_overflow,
            timeout: server.pool.timeout.min(timeout_max),
            pool_timeout: server.pool.pool_timeout.min(timeout_max),
            pool_recycle: server.pool.pool_recycle,
            query_cache: server.pool.query_cache,
        }),
    }
}

/// Links a plugin with what its store was granted, where `faulty` with what can go wrong.
pub(crate) fn link(engine: &Engine, plugin: &Plugin, store: &Store, faulty: bool) -> Result<StrategyPre<State>> {
    for wanted in &plugin.wants {
        let granted = match wanted {
            Capability::Files => store.grants.files.is_some(),
            Capability::Sql => store.grants.sql.is_some(),
            Capability::Dynamodb => store.grants.dynamodb.is_some(),
            Capability::Tcp => store.grants.tcp.is_some(),
            Capability::Http => store.grants.http.is_some(),
        };
        if !granted {
            return Err(Error::refused(format!(
                "plugin `{}` wants the capability `{}`, which store `{}` was not granted",
                plugin.name,
                wanted.name(),
                store.name
            ))
            .hint(format!("if you trust it, add {} to `{}`", wanted.grant_example(), store.location)));
        }
    }
    let linker = if faulty { faults::link_interfaces } else { link_interfaces };
    let linked =
        linker(engine, &plugin.wants).and_then(|linker| StrategyPre::new(linker.instantiate_pre(&plugin.component)?));
    linked.map_err(|error| {
        Error::refused(format!("plugin `{}` does not link", plugin.name))
            .caused_by(one_line(&error.root_cause().to_string()))
            .hint("`larder plugins inspect` shows what it imports")
    })
}

/// WASI, which holds no directory, argument or variable, and the interfaces of these capabilities. Sockets are always
/// there, because standard libraries import them whether they are used or not; where no host was granted, each use is denied.
pub(crate) fn link_interfaces(engine: &Engine, capabilities: &[Capability]) -> wasmtime::Result<Linker<State>> {
    let mut linker: Linker<State> = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    network::add_name_lookup(&mut linker)?;
    for capability in capabilities {
        match capability {
            Capability::Files => wit_files::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?,
            Capability::Sql => wit_sql::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?,
            Capability::Dynamodb => {
                wit_dynamodb::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
            }
            Capability::Tcp => {}
            Capability::Http => wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?,
        }
    }
    Ok(linker)
}

type Answer<T> = wasmtime::Result<std::result::Result<T, types::Error>>;

/// A contract error is an answer, not a trap.
fn answer<T>(result: larder_model::Result<T>) -> Answer<T> {
    Ok(result.map_err(error_into))
}

/// A handle that the table has no room for is an answer too.
fn keep<T, U: 'static>(kept: Result<T, ResourceTableError>) -> larder_model::Result<T> {
    kept.map_err(|_| {
        let kind = std::any::type_name::<U>().rsplit("::").next().unwrap_or_default().to_lowercase();
        ContractError::new(ErrorKind::LimitExceeded, format!("too many open handles for another {kind}"))
    })
}

impl types::Host for State {}

impl State {
    /// There is one wherever the interface is linked, because both follow from the same grant. Whoever asks uses it once.
    fn directory(&mut self) -> wasmtime::Result<&Directory> {
        self.count_host_call()?;
        self.files.as_ref().ok_or_else(|| wasmtime::Error::msg("no directory was granted"))
    }

    fn database(&mut self) -> wasmtime::Result<Database> {
        self.count_host_call()?;
        self.sql.clone().ok_or_else(|| wasmtime::Error::msg("no database was granted"))
    }

    fn tables(&mut self) -> wasmtime::Result<&Tables> {
        self.count_host_call()?;
        self.dynamodb.as_ref().ok_or_else(|| wasmtime::Error::msg("no tables were granted"))
    }
}

fn file_stat_into(stat: FileStat) -> wit_files::FileStat {
    wit_files::FileStat { size: stat.size, generation: stat.generation }
}

impl wit_files::Host for State {
    async fn try_acquire(&mut self, name: String, mode: wit_files::LockMode) -> Answer<Option<Resource<Lock>>> {
        let mode = match mode {
            wit_files::LockMode::Shared => LockMode::Shared,
            wit_files::LockMode::Exclusive => LockMode::Exclusive,
        };
        let lock = match self.directory()?.try_acquire(&name, mode).await {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(Ok(None)),
            Err(error) => return answer(Err(error)),
        };
        answer(keep::<_, Lock>(self.table.push(lock)).map(Some))
    }

    async fn stat(&mut self, path: String) -> Answer<Option<wit_files::FileStat>> {
        answer(self.directory()?.stat(&path).await.map(|stat| stat.map(file_stat_into)))
    }

    async fn read(&mut self, path: String, offset: u64, max_bytes: u32) -> Answer<Option<Vec<u8>>> {
        answer(self.directory()?.read(&path, offset, max_bytes).await)
    }

    async fn append(&mut self, path: String, data: Vec<u8>) -> Answer<wit_files::FileStat> {
        answer(self.directory()?.append(&path, data).await.map(file_stat_into))
    }

    async fn sync(&mut self, path: String) -> Answer<()> {
        answer(self.directory()?.sync(&path).await)
    }

    async fn truncate(&mut self, path: String, size: u64) -> Answer<()> {
        answer(self.directory()?.truncate(&path, size).await)
    }

    async fn remove(&mut self, path: String) -> Answer<bool> {
        answer(self.directory()?.remove(&path).await)
    }

    async fn entries(&mut self, prefix: String) -> Answer<Vec<(String, wit_files::FileStat)>> {
        let entries = self.directory()?.entries(&prefix).await;
        answer(entries.map(|it| it.into_iter().map(|(path, stat)| (path, file_stat_into(stat))).collect()))
    }

    async fn free_space(&mut self) -> Answer<u64> {
        answer(self.directory()?.free_space().await)
    }
}

impl wit_files::HostLock for State {
    async fn drop(&mut self, lock: Resource<Lock>) -> wasmtime::Result<()> {
        self.table.delete(lock)?;
        Ok(())
    }
}

impl wit_files::HostReplacement for State {
    async fn new(&mut self, path: String) -> wasmtime::Result<Resource<Replacement>> {
        let replacement = self.directory()?.replacement(&path);
        Ok(self.table.push(replacement)?)
    }

    async fn write(&mut self, replacement: Resource<Replacement>, data: Vec<u8>) -> Answer<()> {
        self.count_host_call()?;
        answer(self.table.get_mut(&replacement)?.write(data).await)
    }

    async fn commit(
        &mut self,
        replacement: Resource<Replacement>,
        keep_old_as: Option<String>,
        durable: bool,
    ) -> Answer<wit_files::FileStat> {
        self.count_host_call()?;
        let replacement = self.table.delete(replacement)?;
        answer(replacement.commit(keep_old_as.as_deref(), durable).await.map(file_stat_into))
    }

    async fn drop(&mut self, replacement: Resource<Replacement>) -> wasmtime::Result<()> {
        self.table.delete(replacement)?;
        Ok(())
    }
}

fn value_from(value: wit_sql::Value) -> SqlValue {
    match value {
        wit_sql::Value::Null => SqlValue::Null,
        wit_sql::Value::Boolean(value) => SqlValue::Boolean(value),
        wit_sql::Value::Integer(value) => SqlValue::Integer(value),
        wit_sql::Value::Number(value) => SqlValue::Number(value),
        wit_sql::Value::Text(value) => SqlValue::Text(value),
        wit_sql::Value::Blob(value) => SqlValue::Blob(value),
        wit_sql::Value::Json(value) => SqlValue::Json(value),
        wit_sql::Value::Decimal(value) => SqlValue::Decimal(value),
    }
}

fn value_into(value: SqlValue) -> wit_sql::Value {
    match value {
        SqlValue::Null => wit_sql::Value::Null,
        SqlValue::Boolean(value) => wit_sql::Value::Boolean(value),
        SqlValue::Integer(value) => wit_sql::Value::Integer(value),
        SqlValue::Number(value) => wit_sql::Value::Number(value),
        SqlValue::Text(value) => wit_sql::Value::Text(value),
        SqlValue::Blob(value) => wit_sql::Value::Blob(value),
        SqlValue::Json(value) => wit_sql::Value::Json(value),
        SqlValue::Decimal(value) => wit_sql::Value::Decimal(value),
    }
}

fn rows_into(rows: Rows) -> wit_sql::Rows {
    wit_sql::Rows {
        columns: rows.columns,
        cells: rows.cells.into_iter().map(value_into).collect(),
        affected: rows.affected,
        more: rows.more,
    }
}

fn params_from(params: Vec<wit_sql::Value>) -> Vec<SqlValue> {
    params.into_iter().map(value_from).collect()
}

impl wit_sql::Host for State {
    async fn get_dialect(&mut self) -> wasmtime::Result<wit_sql::Dialect> {
        Ok(match self.database()?.dialect() {
            Dialect::Sqlite => wit_sql::Dialect::Sqlite,
            Dialect::Postgres => wit_sql::Dialect::Postgres,
        })
    }

    async fn size(&mut self) -> Answer<Option<u64>> {
        answer(self.database()?.size().await)
    }

    async fn free_space(&mut self) -> Answer<Option<u64>> {
        answer(self.database()?.free_space().await)
    }

    async fn get_connections(&mut self) -> wasmtime::Result<wit_sql::Connections> {
        let Connections { open, idle, kept, max } = self.database()?.connections();
        Ok(wit_sql::Connections { open, idle, kept, max })
    }

    async fn query(&mut self, statement: wit_sql::Statement, max_bytes: u32) -> Answer<wit_sql::Rows> {
        let max_bytes = max_bytes.min(self.call_bytes_max());
        let params = params_from(statement.params);
        answer(self.database()?.query(&statement.text, params, max_bytes).await.map(rows_into))
    }

    async fn copy_out(&mut self, statement: wit_sql::Statement, max_bytes: u32) -> Answer<wit_sql::Packed> {
        let max_bytes = max_bytes.min(self.call_bytes_max());
        let params = params_from(statement.params);
        let packed = self.database()?.copy_out(&statement.text, params, max_bytes).await;
        answer(packed.map(|Packed { cells, more }| wit_sql::Packed { cells, more }))
    }

    async fn begin(&mut self, isolation: Option<types::Isolation>, read_only: bool) -> Answer<Resource<Transaction>> {
        let begun = self.database()?.begin(isolation_from_option(isolation), read_only).await;
        answer(begun.and_then(|transaction| keep::<_, Transaction>(self.table.push(transaction))))
    }

    async fn begin_bulk(&mut self) -> Answer<Resource<Transaction>> {
        let begun = self.database()?.begin_bulk().await;
        answer(begun.and_then(|transaction| keep::<_, Transaction>(self.table.push(transaction))))
    }

    async fn sync(&mut self) -> Answer<()> {
        answer(self.database()?.sync().await)
    }
}

impl wit_sql::HostTransaction for State {
    async fn query(
        &mut self,
        transaction: Resource<Transaction>,
        statement: wit_sql::Statement,
        max_bytes: u32,
    ) -> Answer<wit_sql::Rows> {
        self.count_host_call()?;
        let max_bytes = max_bytes.min(self.call_bytes_max());
        let params = params_from(statement.params);
        answer(self.table.get_mut(&transaction)?.query(&statement.text, params, max_bytes).await.map(rows_into))
    }

    async fn attempt(
        &mut self,
        transaction: Resource<Transaction>,
        statement: wit_sql::Statement,
        max_bytes: u32,
    ) -> Answer<wit_sql::Rows> {
        self.count_host_call()?;
        let max_bytes = max_bytes.min(self.call_bytes_max());
        let params = params_from(statement.params);
        answer(self.table.get_mut(&transaction)?.attempt(&statement.text, params, max_bytes).await.map(rows_into))
    }

    async fn copy_in(
        &mut self,
        transaction: Resource<Transaction>,
        table: String,
        columns: Vec<String>,
        data: Vec<u8>,
    ) -> Answer<u64> {
        self.count_host_call()?;
        answer(self.table.get_mut(&transaction)?.copy_in(&table, &columns, data).await)
    }

    async fn commit(&mut self, transaction: Resource<Transaction>) -> Answer<()> {
        self.count_host_call()?;
        answer(self.table.delete(transaction)?.commit().await)
    }

    async fn rollback(&mut self, transaction: Resource<Transaction>) -> Answer<()> {
        self.count_host_call()?;
        answer(self.table.delete(transaction)?.rollback().await)
    }

    async fn drop(&mut self, transaction: Resource<Transaction>) -> wasmtime::Result<()> {
        self.table.delete(transaction)?;
        Ok(())
    }
}

fn attribute_from(attribute: wit_dynamodb::Attribute) -> Attribute {
    match attribute {
        wit_dynamodb::Attribute::Text(text) => Attribute::Text(text),
        wit_dynamodb::Attribute::Number(text) => Attribute::Number(text),
        wit_dynamodb::Attribute::Boolean(value) => Attribute::Boolean(value),
        wit_dynamodb::Attribute::Null => Attribute::Null,
        wit_dynamodb::Attribute::Binary(bytes) => Attribute::Binary(bytes),
        wit_dynamodb::Attribute::Document(text) => Attribute::Document(text),
    }
}

fn attribute_into(attribute: Attribute) -> wit_dynamodb::Attribute {
    match attribute {
        Attribute::Text(text) => wit_dynamodb::Attribute::Text(text),
        Attribute::Number(text) => wit_dynamodb::Attribute::Number(text),
        Attribute::Boolean(value) => wit_dynamodb::Attribute::Boolean(value),
        Attribute::Null => wit_dynamodb::Attribute::Null,
        Attribute::Binary(bytes) => wit_dynamodb::Attribute::Binary(bytes),
        Attribute::Document(text) => wit_dynamodb::Attribute::Document(text),
    }
}

fn item_from(item: wit_dynamodb::Item) -> dynamodb::Item {
    item.into_iter().map(|(name, attribute)| (name, attribute_from(attribute))).collect()
}

fn item_into(item: dynamodb::Item) -> wit_dynamodb::Item {
    item.into_iter().map(|(name, attribute)| (name, attribute_into(attribute))).collect()
}

fn expression_from(expression: wit_dynamodb::Expression) -> dynamodb::Expression {
    let wit_dynamodb::Expression { text, names, values } = expression;
    dynamodb::Expression { text, names, values: item_from(values) }
}

fn key_schema_from(key: wit_dynamodb::KeySchema) -> dynamodb::KeySchema {
    dynamodb::KeySchema { hash: key.hash, range: key.range }
}

fn key_schema_into(key: dynamodb::KeySchema) -> wit_dynamodb::KeySchema {
    wit_dynamodb::KeySchema { hash: key.hash, range: key.range }
}

fn capacity_into(capacity: dynamodb::Capacity) -> wit_dynamodb::Capacity {
    wit_dynamodb::Capacity { read: capacity.read, write: capacity.write }
}

fn table_status_into(status: dynamodb::TableStatus) -> wit_dynamodb::TableStatus {
    let indexes = status.indexes.into_iter().map(|index| wit_dynamodb::IndexStatus {
        name: index.name,
        status: index.status,
        key: key_schema_into(index.key),
        holds_whole_items: index.holds_whole_items,
        capacity: index.capacity.map(capacity_into),
    });
    wit_dynamodb::TableStatus {
        name: status.name,
        status: status.status,
        key: key_schema_into(status.key),
        indexes: indexes.collect(),
        capacity: status.capacity.map(capacity_into),
        items: status.items,
        bytes: status.bytes,
        scaling: status.scaling,
    }
}

fn action_from(action: wit_dynamodb::Action) -> dynamodb::Action {
    match action {
        wit_dynamodb::Action::Put(put) => dynamodb::Action::Put {
            collection: put.collection,
            item: item_from(put.item),
            condition: put.condition.map(expression_from),
        },
        wit_dynamodb::Action::Delete(delete) => dynamodb::Action::Delete {
            collection: delete.collection,
            key: item_from(delete.key),
            condition: delete.condition.map(expression_from),
        },
        wit_dynamodb::Action::Check(check) => dynamodb::Action::Check {
            collection: check.collection,
            key: item_from(check.key),
            condition: expression_from(check.condition),
        },
    }
}

fn written_into(written: dynamodb::Written) -> wit_dynamodb::Written {
    match written {
        dynamodb::Written::Done => wit_dynamodb::Written::Done,
        dynamodb::Written::Refused(item) => wit_dynamodb::Written::Refused(item.map(item_into)),
    }
}

fn item_page_into(page: dynamodb::ItemPage) -> wit_dynamodb::ItemPage {
    wit_dynamodb::ItemPage {
        items: page.items.into_iter().map(item_into).collect(),
        count: page.count,
        last_key: page.last_key.map(item_into),
        read_units: page.read_units,
    }
}

impl wit_dynamodb::Host for State {
    async fn prepare_table(
        &mut self,
        spec: wit_dynamodb::TableSpec,
        dry_run: bool,
        extend: bool,
    ) -> Answer<Vec<String>> {
        let spec = dynamodb::TableSpec {
            collection: spec.collection,
            key: key_schema_from(spec.key),
            indexes: spec.indexes.into_iter().map(|index| (index.name, key_schema_from(index.key))).collect(),
        };
        answer(self.tables()?.prepare_table(&spec, dry_run, extend).await)
    }

    async fn describe_table(&mut self, collection: String) -> Answer<Option<wit_dynamodb::TableStatus>> {
        answer(self.tables()?.describe_table(&collection).await.map(|status| status.map(table_status_into)))
    }

    async fn list_collections(&mut self) -> Answer<Vec<String>> {
        answer(self.tables()?.list_collections().await)
    }

    async fn get_items(
        &mut self,
        collection: String,
        keys: Vec<wit_dynamodb::Item>,
        consistent: bool,
    ) -> Answer<Vec<Option<wit_dynamodb::Item>>> {
        let keys = keys.into_iter().map(item_from).collect();
        let found = self.tables()?.get_items(&collection, keys, consistent).await;
        answer(found.map(|items| items.into_iter().map(|item| item.map(item_into)).collect()))
    }

    async fn write_items(
        &mut self,
        actions: Vec<wit_dynamodb::Action>,
    ) -> Answer<Vec<std::result::Result<wit_dynamodb::Written, types::Error>>> {
        let written = self.tables()?.write_items(actions.into_iter().map(action_from).collect()).await;
        let one = |written: larder_model::Result<_>| written.map(written_into).map_err(error_into);
        answer(written.map(|all| all.into_iter().map(one).collect()))
    }

    async fn put_batch(&mut self, collection: String, items: Vec<wit_dynamodb::Item>) -> Answer<()> {
        answer(self.tables()?.put_batch(&collection, items.into_iter().map(item_from).collect()).await)
    }

    async fn put_new(&mut self, collection: String, key: String, items: Vec<wit_dynamodb::Item>) -> Answer<Vec<bool>> {
        answer(self.tables()?.put_new(&collection, &key, items.into_iter().map(item_from).collect()).await)
    }

    async fn transact(
        &mut self,
        actions: Vec<wit_dynamodb::Action>,
        token: String,
    ) -> Answer<Vec<wit_dynamodb::Written>> {
        let written = self.tables()?.transact(actions.into_iter().map(action_from).collect(), &token).await;
        answer(written.map(|all| all.into_iter().map(written_into).collect()))
    }

    async fn query(&mut self, query: wit_dynamodb::ItemQuery) -> Answer<wit_dynamodb::ItemPage> {
        let query = dynamodb::ItemQuery {
            collection: query.collection,
            index: query.index,
            key: expression_from(query.key),
            filter: query.filter.map(expression_from),
            start: query.start.map(item_from),
            limit: query.limit,
            descending: query.descending,
            consistent: query.consistent,
            count_only: query.count_only,
        };
        answer(self.tables()?.query(query).await.map(item_page_into))
    }

    async fn scan(
        &mut self,
        scan: wit_dynamodb::ItemScan,
        segments: Vec<wit_dynamodb::Segment>,
    ) -> Answer<Vec<wit_dynamodb::ItemPage>> {
        let scan = dynamodb::ItemScan {
            collection: scan.collection,
            segments: scan.segments,
            filter: scan.filter.map(expression_from),
            limit: scan.limit,
            consistent: scan.consistent,
            count_only: scan.count_only,
        };
        let segments = segments.into_iter().map(|it| (it.number, it.start.map(item_from))).collect();
        answer(self.tables()?.scan(scan, segments).await.map(|pages| pages.into_iter().map(item_page_into).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::config::{Config, Endpoint};

    #[tokio::test]
    async fn a_granted_name_that_leads_where_names_may_not_is_told_when_the_store_is_opened() {
        let text = r#"{"storage": {"strategy": "kv", "grants": {"tcp": {"allow": ["cache.example.org:6379"]}}}}"#;
        let store = Config::from_text(text, std::path::Path::new(".")).unwrap().store(None).unwrap();
        let cache = Endpoint { host: HostName::Name("cache.example.org".into()), port: 6379 };
        let lent =
            |look_up| Lent { tcp: Some(Hosts::with_lookup(vec![cache.clone()], false, look_up)), ..Lent::default() };
        let inside = lent(|_| Box::pin(async { Ok(vec![IpAddr::from([10, 0, 0, 7])]) }));
        let error = inside.check_names(&store).await.unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Config);
        assert!(
            error.message.contains("`storage.grants.tcp`: the name cache.example.org leads to 10.0.0.7"),
            "{error:?}"
        );
        assert!(error.hint.unwrap().contains("`storage.grants.tcp.private`"));
        let public = lent(|_| Box::pin(async { Ok(vec![IpAddr::from([8, 8, 8, 8])]) }));
        public.check_names(&store).await.unwrap();
        assert!(public.tcp.unwrap().allow_connection(([8, 8, 8, 8], 6379).into()), "what was resolved is known");
        let grants = Lent::new(&store.grants, &[], Duration::from_secs(1)).unwrap();
        let advice = grants.advice(&ContractError::new(ErrorKind::Unavailable, "no answer")).unwrap();
        assert!(advice.starts_with("the store may reach cache.example.org:6379 and nothing else"), "{advice}");
        // Who cannot be asked now may answer later.
        lent(|_| Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) })).check_names(&store).await.unwrap();
    }
}
