//! PostgreSQL through sqlx: a pool of connections to one database of a server.
//!
//! Nothing is connected before it is used. A connection is set up once (deadline of statements, how texts are read) and
//! looked at once: who could read files of the server or make programs run there is not let in, unless the configuration
//! says so, because then a plugin could too. [`guard`] judges each text.
//!
//! Every statement is prepared, which is how the server takes one and no more, and says of which type each parameter is.
//! Prepared ones stay with their connection.
//!
//! An idle connection whose server went away shows only when it is used. What had no effect is then done once more on a
//! new one, so that a restart of the server is seen by nobody who was not in a transaction.

mod guard;
#[cfg(test)]
mod tests;
mod values;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use guard::{Purpose, Refusal};
use larder_model::{Error, ErrorKind, Isolation, Result, Retry};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Either, Executor, Row, SqlSafeStr, Statement,
    postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSslMode},
};

use super::{
    Connections, Rows, SqlValue,
    pool::{self, Bounds, Connector},
    texts::CheckedTexts,
    unsynced::Unsynced,
};

type Lease = pool::Lease<Server>;
type Pool = pool::Pool<Server>;

/// Prepared statements that a connection keeps.
const STATEMENTS_KEPT_MAX: usize = 128;

/// What a cell costs beside its content, in the reply.
const CELL_BYTES: usize = 16;

/// The server ends a statement that takes too long. Past that, with this to spare, it hangs, or the network does.
const GRACE: Duration = Duration::from_secs(5);

/// How long closing may take: the server is told, where it listens.
const GOODBYE: Duration = Duration::from_millis(500);

/// Whoever loads locks what is there, so that no more is asked of the isolation. The tables grow under it: a plan that was
/// made while they were empty, and kept, would read all of them at each batch.
const BEGIN_BULK: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off; \
                          SET LOCAL plan_cache_mode = force_custom_plan";

/// How the connection is encrypted, and whom it takes for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Where the database is, and how connections to it are kept.
#[derive(Clone)]
pub(crate) struct PostgresSettings {
    /// A name, an address, or the folder of a Unix socket.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The database.
    pub(crate) name: String,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) encryption: Encryption,
    /// The file of the certificate authorities that are believed; the system's where there is none.
    pub(crate) root_certificate: Option<std::path::PathBuf>,
    /// Whether a user may connect who can do more on the server than use databases.
    pub(crate) allow_superuser: bool,
    /// Connections that are kept.
    pub(crate) pool_size: u32,
    /// More of them under load, closed soon after.
    pub(crate) max_overflow: u32,
    /// For one statement, waiting for locks included.
    pub(crate) timeout: Duration,
    /// For a free connection.
    pub(crate) pool_timeout: Duration,
    /// The age at which a connection is replaced; none for never.
    pub(crate) pool_recycle: Option<Duration>,
    /// Whether prepared statements are kept.
    pub(crate) query_cache: bool,
}

/// The database on a server.
pub(super) struct Store {
    settings: PostgresSettings,
    /// None after it was closed, until it is used again.
    pool: Mutex<Option<Pool>>,
    checked: Mutex<CheckedTexts<Purpose>>,
    unsynced: Unsynced,
}

impl Store {
    pub(super) fn new(settings: PostgresSettings) -> Store {
        Store { settings, pool: Mutex::default(), checked: Mutex::default(), unsynced: Unsynced::default() }
    }

    fn pool(&self) -> Pool {
        let mut pool = self.pool.lock().expect("nothing panics while it holds this lock");
        pool.get_or_insert_with(|| Pool::new(Server::new(&self.settings), self.bounds(), "the database")).clone()
    }

    fn bounds(&self) -> Bounds {
        let PostgresSettings { pool_size, max_overflow, pool_timeout, pool_recycle, .. } = self.settings;
        Bounds { kept: pool_size.max(1), overflow: max_overflow, timeout: pool_timeout, recycle: pool_recycle }
    }

    pub(super) fn pool_timeout(&self) -> Duration {
        self.settings.pool_timeout
    }

    pub(super) fn connections(&self) -> Connections {
        let pool = self.pool.lock().expect("nothing panics while it holds this lock");
        pool.as_ref().map_or_else(|| self.bounds().connections(), Pool::connections)
    }

    /// Bytes of the database.
    pub(super) async fn size(&self) -> Result<Option<u64>> {
        let rows = self.query("SELECT pg_database_size(current_database())", Vec::new(), CELL_BYTES as u32).await?;
        Ok(match rows.cells.first() {
            Some(SqlValue::Integer(bytes)) => u64::try_from(*bytes).ok(),
            _ => None,
        })
    }

    /// Closes every connection.
    pub(super) async fn close(&self) {
        let pool = self.pool.lock().expect("nothing panics while it holds this lock").take();
        if let Some(pool) = pool {
            pool.close().await;
        }
    }

    /// Runs one statement by itself.
    pub(super) async fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        let (text, purpose) = self.check(text)?;
        let mut lease = self.pool().lease().await?;
        let again = (purpose == Purpose::Read && lease.is_used).then(|| params.clone());
        let mut rows = self.run(&mut lease, Arc::clone(&text), purpose, params, max_bytes).await;
        if let (Err(_), true, Some(params)) = (&rows, lease.broken, again) {
            lease.give_back();
            self.pool().forget_idle();
            lease = self.pool().lease().await?;
            rows = self.run(&mut lease, text, purpose, params, max_bytes).await;
        }
        lease.give_back();
        rows
    }

    pub(super) async fn begin(
        self: &Arc<Self>,
        isolation: Option<Isolation>,
        read_only: bool,
        statement_time: Option<Duration>,
    ) -> Result<Transaction> {
        let text = match (isolation, read_only) {
            (Some(Isolation::ReadCommitted), false) => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            (Some(Isolation::ReadCommitted), true) => "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY",
            (Some(Isolation::RepeatableRead), false) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE",
            (Some(Isolation::RepeatableRead), true) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            // The strongest, unless somebody says what is enough.
            (Some(Isolation::Serializable) | None, false) => "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
            (Some(Isolation::Serializable) | None, true) => "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
        };
        let mut transaction = self.begin_with(text, false).await?;
        if let Some(time) = statement_time {
            transaction.lease.statement_time = Some(time);
            let text = format!("SET LOCAL statement_timeout = {}", milliseconds(time));
            self.command(&mut transaction.lease, &text).await?;
        }
        Ok(transaction)
    }

    /// Begins one whose commit does not wait for the disk.
    pub(super) async fn begin_bulk(self: &Arc<Self>) -> Result<Transaction> {
        self.begin_with(BEGIN_BULK, true).await
    }

    async fn begin_with(self: &Arc<Self>, text: &'static str, bulk: bool) -> Result<Transaction> {
        let mut lease = self.pool().lease().await?;
        // From here on whoever drops the lease rolls back, this future too.
        lease.in_transaction = true;
        if let Err(error) = self.command(&mut lease, text).await {
            if !(lease.broken && lease.is_used) {
                return Err(error);
            }
            lease.give_back();
            self.pool().forget_idle();
            lease = self.pool().lease().await?;
            lease.in_transaction = true;
            self.command(&mut lease, text).await?;
        }
        Ok(Transaction { store: Arc::clone(self), lease, failed: false, bulk })
    }

    /// Puts on the disk what bulk transactions wrote: a commit that waits for its own record waits for all before it.
    pub(super) async fn sync(self: &Arc<Self>) -> Result<()> {
        let Some(commits) = self.unsynced.waiting() else { return Ok(()) };
        let synced = async {
            let mut lease = self.pool().lease().await?;
            let text = "BEGIN; SET LOCAL synchronous_commit = on; \
                        SELECT pg_logical_emit_message(true, 'larder', 'sync'); COMMIT";
            let result = self.command(&mut lease, text).await;
            lease.in_transaction = result.is_err();
            lease.give_back();
            result
        };
        synced.await?;
        self.unsynced.note_synced(commits);
        Ok(())
    }

    /// The text as sqlx takes it, and what it is for.
    fn check(&self, text: &str) -> Result<(Arc<str>, Purpose)> {
        let mut checked = self.checked.lock().expect("nothing panics while it holds this lock");
        if let Some(known) = checked.get(text) {
            return Ok(known);
        }
        match guard::check(text) {
            Ok(purpose) => Ok(checked.insert(text, purpose)),
            Err(Refusal::Denied(what)) => {
                Err(Error::new(ErrorKind::Denied, format!("a statement may not do this: {what}")))
            }
            Err(Refusal::Invalid(message)) => Err(Error::invalid(message)),
        }
    }

    /// Runs a statement that was checked.
    async fn run(
        &self,
        lease: &mut Lease,
        text: Arc<str>,
        purpose: Purpose,
        params: Vec<SqlValue>,
        max_bytes: u32,
    ) -> Result<Rows> {
        let in_transaction = lease.in_transaction;
        let running = async |connection: &mut PgConnection| {
            let statement =
                connection.prepare_with(AssertSqlSafe(text).into_sql_str(), &[]).await.map_err(Fault::Sqlx)?;
            let types = match statement.parameters() {
                Some(Either::Left(types)) => types,
                _ => &[],
            };
            let arguments = values::arguments(params, types).map_err(Fault::Contract)?;
            read(connection, statement.query_with(arguments), max_bytes as usize).await
        };
        self.bounded(lease, running).await.map_err(|fault| match fault {
            Fault::Contract(error) => error,
            Fault::Sqlx(error) => {
                let mut error = translate(error);
                // A transaction that was not committed is rolled back.
                if error.kind == ErrorKind::Unavailable && purpose == Purpose::Write && !in_transaction {
                    error.retry = Retry::UnknownOutcome;
                }
                error
            }
        })
    }

    /// Runs the host's own statements.
    async fn command(&self, lease: &mut Lease, text: &str) -> Result<()> {
        let running = async |connection: &mut PgConnection| {
            connection.execute(AssertSqlSafe(text.to_owned())).await.map(drop).map_err(Fault::Sqlx)
        };
        self.bounded(lease, running).await.map_err(|fault| match fault {
            Fault::Contract(error) => error,
            Fault::Sqlx(error) => translate(error),
        })
    }

    /// Work on a connection, which is not used again where that broke off.
    async fn bounded<T>(
        &self,
        lease: &mut Lease,
        work: impl AsyncFnOnce(&mut PgConnection) -> std::result::Result<T, Fault>,
    ) -> std::result::Result<T, Fault> {
        let limit = lease.statement_time.unwrap_or(self.settings.timeout).saturating_add(GRACE);
        // Whoever drops this future leaves a connection that is in the middle of something.
        let was_broken = std::mem::replace(&mut lease.broken, true);
        let result = tokio::time::timeout(limit, work(lease.connection())).await;
        match result {
            Ok(result) => {
                lease.broken = was_broken
                    || result
                        .as_ref()
                        .is_err_and(|fault| matches!(fault, Fault::Sqlx(error) if breaks_connection(error)));
                result
            }
            Err(_) => Err(Fault::Contract(took_too_long())),
        }
    }
}

/// What went wrong, before it is told in the contract's words.
enum Fault {
    Sqlx(sqlx::Error),
    Contract(Error),
}

/// An open transaction.
pub(super) struct Transaction {
    store: Arc<Store>,
    lease: Lease,
    /// A statement failed: the server takes nothing but the end.
    failed: bool,
    bulk: bool,
}

impl Transaction {
    pub(super) async fn query(&mut self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.usable()?;
        let (text, purpose) = self.store.check(text)?;
        let result = self.store.run(&mut self.lease, text, purpose, params, max_bytes).await;
        self.failed = result.is_err();
        result
    }

    pub(super) async fn attempt(&mut self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.usable()?;
        let (text, purpose) = self.store.check(text)?;
        self.failed = true;
        self.store.command(&mut self.lease, "SAVEPOINT larder").await?;
        let result = self.store.run(&mut self.lease, text, purpose, params, max_bytes).await;
        let end = match &result {
            Ok(_) => "RELEASE SAVEPOINT larder",
            Err(_) => "ROLLBACK TO SAVEPOINT larder; RELEASE SAVEPOINT larder",
        };
        if self.lease.broken {
            return result;
        }
        self.store.command(&mut self.lease, end).await?;
        // Such a transaction cannot get any further, whatever is undone of it.
        self.failed = result.as_ref().is_err_and(|error| error.kind == ErrorKind::VersionConflict);
        result
    }

    pub(super) async fn copy_in(&mut self, table: &str, columns: &[String], data: Vec<u8>) -> Result<u64> {
        self.usable()?;
        let quoted = |name: &str| match name.contains('\0') {
            true => Err(Error::invalid("a name holds a NUL character")),
            false => Ok(format!("\"{}\"", name.replace('"', "\"\""))),
        };
        let columns = columns.iter().map(|column| quoted(column)).collect::<Result<Vec<_>>>()?;
        let text = format!("COPY {} ({}) FROM STDIN", quoted(table)?, columns.join(", "));
        self.failed = true;
        let copying = async |connection: &mut PgConnection| {
            let mut copy = connection.copy_in_raw(&text).await.map_err(Fault::Sqlx)?;
            copy.send(data).await.map_err(Fault::Sqlx)?;
            copy.finish().await.map_err(Fault::Sqlx)
        };
        let copied = self.store.bounded(&mut self.lease, copying).await.map_err(|fault| match fault {
            Fault::Contract(error) => error,
            Fault::Sqlx(error) => translate(error),
        });
        self.failed = copied.is_err();
        copied
    }

    fn usable(&self) -> Result<()> {
        match self.failed {
            false => Ok(()),
            true => Err(Error::invalid("the transaction was ended by an earlier error, and can only be rolled back")),
        }
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        // The server would answer a commit of it with a rollback, and call that a success.
        if let Err(error) = self.usable() {
            self.lease.roll_back().await;
            self.lease.give_back();
            return Err(error);
        }
        let committing = self.bulk.then(|| self.store.unsynced.committing());
        let committed = self.store.command(&mut self.lease, "COMMIT").await;
        drop(committing);
        match committed {
            Ok(()) => {
                self.lease.in_transaction = false;
                self.lease.statement_time = None;
                self.lease.give_back();
                Ok(())
            }
            Err(mut error) => {
                if self.lease.broken {
                    error.retry = Retry::UnknownOutcome;
                } else {
                    // A commit that fails has rolled back.
                    self.lease.in_transaction = false;
                }
                self.lease.give_back();
                Err(error)
            }
        }
    }

    pub(super) async fn rollback(mut self) -> Result<()> {
        self.lease.roll_back().await;
        self.lease.statement_time = None;
        self.lease.give_back();
        Ok(())
    }
}

/// Makes connections.
struct Server {
    options: PgConnectOptions,
    setup: String,
    allow_superuser: bool,
}

impl Server {
    fn new(settings: &PostgresSettings) -> Server {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&settings.host)
            .port(settings.port)
            .database(&settings.name)
            .username(&settings.username)
            .password(&settings.password)
            .application_name("larder")
            .ssl_mode(match settings.encryption {
                Encryption::Disable => PgSslMode::Disable,
                Encryption::Allow => PgSslMode::Allow,
                Encryption::Prefer => PgSslMode::Prefer,
                Encryption::Require => PgSslMode::Require,
                Encryption::VerifyCa => PgSslMode::VerifyCa,
                Encryption::VerifyFull => PgSslMode::VerifyFull,
            })
            // One has to stay, because a statement is prepared first and then run.
            .statement_cache_capacity(if settings.query_cache { STATEMENTS_KEPT_MAX } else { 1 })
            .disable_statement_logging();
        if let Some(file) = &settings.root_certificate {
            options = options.ssl_root_cert(file);
        }
        // What the user or the database may have been given as its own default does not count here.
        let setup = format!(
            "SET statement_timeout = {}; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
             SET standard_conforming_strings = on; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; \
             SET TimeZone = 'UTC'; SET bytea_output = 'hex'; SET xmloption = 'content'; \
             SET default_transaction_deferrable = off; SET synchronous_commit = on; \
             SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3",
            milliseconds(settings.timeout)
        );
        Server { options, setup, allow_superuser: settings.allow_superuser }
    }
}

impl Connector for Server {
    type Connection = PgConnection;

    async fn connect(&self) -> Result<PgConnection> {
        let mut connection = PgConnection::connect_with(&self.options).await.map_err(not_connected)?;
        connection.execute(AssertSqlSafe(self.setup.clone())).await.map_err(translate)?;
        if !self.allow_superuser {
            refuse_powerful(&mut connection).await?;
        }
        Ok(connection)
    }

    async fn roll_back(connection: &mut PgConnection) -> bool {
        matches!(tokio::time::timeout(GRACE, connection.execute("ROLLBACK")).await, Ok(Ok(_)))
    }

    /// A server that is not told writes a line into its log.
    async fn close(connection: PgConnection) {
        let _ = tokio::time::timeout(GOODBYE, connection.close()).await;
    }
}

/// Refuses a user who can do more than use databases: what a plugin sends would be sent in their name.
async fn refuse_powerful(connection: &mut PgConnection) -> Result<()> {
    let text = "SELECT CASE WHEN rolsuper THEN 'is a superuser' ELSE (\
                    SELECT 'is a member of ' || other.rolname FROM pg_catalog.pg_roles AS other \
                    WHERE other.rolname IN \
                        ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program') \
                    AND pg_catalog.pg_has_role(session_user, other.oid, 'MEMBER') LIMIT 1) END \
                FROM pg_catalog.pg_roles WHERE rolname = session_user";
    let row = connection.fetch_one(text).await.map_err(translate)?;
    match row.try_get::<Option<String>, _>(0).map_err(translate)? {
        None => Ok(()),
        Some(what) => Err(Error::new(
            ErrorKind::Denied,
            format!(
                "the user that PostgreSQL is connected to with {what}, so that a plugin could reach files and programs of \
                 the server: name a user without that, or set `allow_superuser` if you trust every plugin of the store"
            ),
        )),
    }
}

/// The rows until they reach `max_bytes`, but at least one. Those that come after it are read and forgotten: the server
/// sends them all.
async fn read(
    connection: &mut PgConnection,
    query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    max_bytes: usize,
) -> std::result::Result<Rows, Fault> {
    let mut stream = connection.fetch_many(query);
    let mut rows = Rows::default();
    let mut bytes = 0;
    let mut unread = None;
    while let Some(step) = stream.next().await {
        match step.map_err(Fault::Sqlx)? {
            Either::Left(done) => rows.affected += done.rows_affected(),
            Either::Right(_) if bytes >= max_bytes || unread.is_some() => rows.more |= max_bytes > 0,
            Either::Right(row) => {
                if rows.columns.is_empty() {
                    rows.columns = row.columns().iter().map(|column| sqlx::Column::name(column).to_owned()).collect();
                }
                match values::decode(&row, &mut rows.cells) {
                    Ok(size) => bytes += size + CELL_BYTES * row.len(),
                    // The rest has to be read all the same, so that the connection can be used again.
                    Err(error) => unread = Some(error),
                }
            }
        }
    }
    match unread {
        None => Ok(rows),
        Some(error) => Err(Fault::Contract(error)),
    }
}

/// As the server takes it.
fn milliseconds(time: Duration) -> u128 {
    time.as_millis().clamp(1, i32::MAX as u128)
}

fn took_too_long() -> Error {
    Error { retry: Retry::Safe, ..Error::new(ErrorKind::Timeout, "a statement took longer than `timeout` allows") }
}

/// Whether the connection is of no use after this.
fn breaks_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let error = error.downcast_ref::<PgDatabaseError>();
            // The server ends it (57P01 to 57P05, 08…), or it holds a plan for a table that was altered.
            error.code().starts_with("57P") || error.code().starts_with("08") || is_outdated(error)
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_) => false,
        _ => true,
    }
}

/// A prepared statement whose table was altered since.
fn is_outdated(error: &PgDatabaseError) -> bool {
    error.code() == "0A000" && error.routine() == Some("RevalidateCachedQuery")
}

/// Why there is no connection. No message holds a host, a user or a password: the plugin is told it too.
fn not_connected(error: sqlx::Error) -> Error {
    let unavailable = |message: String, retry| Error { retry, ..Error::new(ErrorKind::Unavailable, message) };
    match error {
        sqlx::Error::Database(error) => {
            let error = error.downcast_ref::<PgDatabaseError>();
            match error.code() {
                "28P01" | "28000" => {
                    unavailable("PostgreSQL refuses the user or the password".to_owned(), Retry::Never)
                }
                "3D000" => unavailable("PostgreSQL has no database of that name".to_owned(), Retry::Never),
                "53300" => unavailable("PostgreSQL has no connection left (max_connections)".to_owned(), Retry::Safe),
                "57P03" => unavailable("PostgreSQL is starting or stopping".to_owned(), Retry::Safe),
                "42501" => {
                    unavailable("PostgreSQL does not let the user connect to the database".to_owned(), Retry::Never)
                }
                code => unavailable(format!("PostgreSQL refuses the connection ({code})"), Retry::Safe),
            }
        }
        // What the other side says of itself is not believed.
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => unavailable(
            "PostgreSQL's certificate is none that `ssl_mode` and `ssl_root_cert` ask for".to_owned(),
            Retry::Never,
        ),
        sqlx::Error::Io(error) => unavailable(format!("PostgreSQL cannot be reached: {}", error.kind()), Retry::Safe),
        // Why not may have the host's name in it, or the path of a certificate.
        sqlx::Error::Tls(_) => unavailable(
            "the connection to PostgreSQL cannot be encrypted as `ssl_mode` and `ssl_root_cert` ask: does the server \
             support TLS?"
                .to_owned(),
            Retry::Never,
        ),
        sqlx::Error::Configuration(_) => {
            Error::invalid("the connection to PostgreSQL cannot be made as it is described")
        }
        _ => unavailable("PostgreSQL broke the connection off while it was made".to_owned(), Retry::Safe),
    }
}

/// The one place where errors of sqlx on an open connection become the contract's.
fn translate(error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(error) => from_postgres(error.downcast_ref::<PgDatabaseError>()),
        sqlx::Error::Io(error) => Error {
            retry: Retry::Safe,
            ..Error::new(ErrorKind::Unavailable, format!("the connection to PostgreSQL broke off: {}", error.kind()))
        },
        sqlx::Error::Encode(error) => Error::invalid(format!("a parameter cannot be sent: {error}")),
        sqlx::Error::Protocol(message) if message.contains("too many arguments") => {
            Error::new(ErrorKind::LimitExceeded, "a statement has at most 65,535 parameters")
        }
        sqlx::Error::Protocol(message) => {
            Error { retry: Retry::Safe, ..Error::new(ErrorKind::Unavailable, format!("PostgreSQL: {message}")) }
        }
        // Others may tell of the server what a plugin is not to know.
        _ => {
            Error { retry: Retry::Safe, ..Error::new(ErrorKind::Unavailable, "the connection to PostgreSQL broke off") }
        }
    }
}

/// SQLSTATE codes. The messages name tables, columns and constraints.
fn from_postgres(error: &PgDatabaseError) -> Error {
    let (code, message) = (error.code(), error.message());
    if is_outdated(error) {
        let message = "a table was altered by somebody else meanwhile";
        return Error { retry: Retry::Safe, ..Error::new(ErrorKind::Unavailable, message) };
    }
    let (kind, retry) = match (code.get(..2).unwrap_or_default(), code) {
        (_, "23505") => (ErrorKind::AlreadyExists, Retry::Never),
        ("23", _) | (_, "22001" | "22003" | "22008" | "22021" | "22P05") => (ErrorKind::Rejected, Retry::Never),
        (_, "40001" | "40P01") => (ErrorKind::VersionConflict, Retry::Safe),
        (_, "40003") => (ErrorKind::Unavailable, Retry::UnknownOutcome),
        (_, "57014") => return took_too_long(),
        (_, "55P03" | "25P03" | "25P04") => (ErrorKind::Timeout, Retry::Safe),
        ("53", "53100" | "53200" | "53400") | ("54", _) => (ErrorKind::LimitExceeded, Retry::Never),
        ("08" | "53" | "57" | "58", _) => (ErrorKind::Unavailable, Retry::Safe),
        (_, "25006" | "42501") | ("28", _) => (ErrorKind::Denied, Retry::Never),
        (_, "0A000") => (ErrorKind::Unsupported, Retry::Never),
        ("XX", "XX001" | "XX002") => (ErrorKind::Corrupt, Retry::Never),
        ("0A" | "22" | "25" | "26" | "2F" | "34" | "3F" | "42" | "44" | "55", _) => {
            (ErrorKind::InvalidArgument, Retry::Never)
        }
        _ => (ErrorKind::Internal, Retry::Never),
    };
    let message = match kind {
        ErrorKind::InvalidArgument => format!("the database refused a statement: {message}"),
        ErrorKind::Internal => format!("PostgreSQL: {message} ({code})"),
        // Of a connection, and of who connects: what the server says names hosts and users.
        _ if code.starts_with("08") || code.starts_with("28") => {
            format!("PostgreSQL refuses or loses the connection ({code})")
        }
        _ => message.to_owned(),
    };
    Error { retry, ..Error::new(kind, message) }
}
