//! PostgreSQL: a database of its own on the server that the environment names, and gone with the last handle on it.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::StreamExt;
use larder_guest::{Connections, Dialect, Packed, Rows, Sql, SqlTransaction, SqlValue};
use larder_model::{Error, ErrorKind, Isolation, Result, Retry};
use sqlx::{
    AssertSqlSafe, Column, Connection, Decode, Either, Encode, Executor, PgConnection, Postgres, Row, SqlSafeStr,
    Statement, Type, TypeInfo, ValueRef,
    encode::IsNull,
    postgres::{PgArgumentBuffer, PgArguments, PgConnectOptions, PgDatabaseError, PgRow, PgTypeInfo},
    types::BigDecimal,
};
use tokio::runtime::Runtime;

const VARIABLE: &str = "LARDER_TEST_POSTGRES";

static DATABASES: AtomicU64 = AtomicU64::new(0);

/// The server that tests run on.
pub(crate) struct Server(String);

impl Server {
    pub(crate) fn get() -> Server {
        Server(std::env::var(VARIABLE).unwrap_or_else(|_| {
            panic!("{VARIABLE} is not set: run the tests with `cargo xtask test`, which starts PostgreSQL")
        }))
    }

    fn options(&self, database: Option<&str>) -> PgConnectOptions {
        let options: PgConnectOptions = self.0.parse().unwrap_or_else(|error| panic!("{VARIABLE}: {error}"));
        match database {
            Some(database) => options.database(database),
            None => options,
        }
    }
}

/// Takes the database away at the end.
struct Database {
    name: String,
    runtime: Arc<Runtime>,
    idle: Mutex<Vec<PgConnection>>,
}

impl Database {
    fn run(runtime: &Runtime, text: String) {
        runtime.block_on(async {
            let mut connection = PgConnection::connect_with(&Server::get().options(None)).await.unwrap();
            connection.execute(AssertSqlSafe(text)).await.unwrap();
            connection.close().await.unwrap();
        });
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.idle.get_mut().unwrap().clear();
        if !std::thread::panicking() {
            Database::run(&self.runtime, format!("DROP DATABASE \"{}\" WITH (FORCE)", self.name));
        }
    }
}

#[derive(Clone)]
pub(crate) struct Native {
    database: Arc<Database>,
}

impl Native {
    pub(super) fn new() -> Native {
        let runtime = Arc::new(Runtime::new().unwrap());
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let name = format!("larder_sql_{}_{number}", std::process::id());
        Database::run(&runtime, format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)"));
        Database::run(&runtime, format!("CREATE DATABASE \"{name}\""));
        Native { database: Arc::new(Database { name, runtime, idle: Mutex::default() }) }
    }

    fn lease(&self) -> Result<Lease> {
        let idle = self.database.idle.lock().unwrap().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.database.runtime.block_on(async {
                let options = Server::get().options(Some(&self.database.name));
                let mut connection = PgConnection::connect_with(&options).await.unwrap();
                connection
                    .execute("SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET statement_timeout = 20000")
                    .await
                    .unwrap();
                connection
            }),
        };
        Ok(Lease { database: Arc::clone(&self.database), connection: Some(connection) })
    }

    fn begin_with(&self, text: &'static str) -> Result<NativeTransaction> {
        let mut lease = self.lease()?;
        lease.command(text)?;
        Ok(NativeTransaction { lease: RefCell::new(lease), is_open: true, failed: false.into() })
    }
}

/// A connection, which goes back when it is dropped.
struct Lease {
    database: Arc<Database>,
    connection: Option<PgConnection>,
}

impl Lease {
    fn command(&mut self, text: &'static str) -> Result<()> {
        let connection = self.connection.as_mut().unwrap();
        self.database.runtime.block_on(connection.execute(text)).map(drop).map_err(translate)
    }

    fn query(&mut self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        let connection = self.connection.as_mut().unwrap();
        self.database.runtime.block_on(run(connection, text, params, max_bytes))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.database.idle.lock().unwrap().extend(self.connection.take());
    }
}

impl Sql for Native {
    type Transaction = NativeTransaction;

    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    fn size(&self) -> Result<Option<u64>> {
        let rows = self.query("SELECT pg_database_size(current_database())", Vec::new(), 64)?;
        match rows.cells[0] {
            SqlValue::Integer(bytes) => Ok(Some(bytes as u64)),
            _ => Ok(None),
        }
    }

    fn free_space(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn connections(&self) -> Connections {
        Connections { open: 2, idle: 1, kept: 3, max: 5 }
    }

    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.lease()?.query(text, params, max_bytes)
    }

    fn copy_out(&self, _text: &str, _params: Vec<SqlValue>, _max_bytes: u32) -> Result<Packed> {
        Err(Error::new(ErrorKind::Unsupported, "rows of PostgreSQL are queried"))
    }

    fn begin(&self, isolation: Option<Isolation>, read_only: bool) -> Result<NativeTransaction> {
        self.begin_with(match (isolation, read_only) {
            (Some(Isolation::ReadCommitted), false) => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            (Some(Isolation::ReadCommitted), true) => "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY",
            (Some(Isolation::RepeatableRead), false) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE",
            (Some(Isolation::RepeatableRead), true) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            (Some(Isolation::Serializable), false) => "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
            (Some(Isolation::Serializable), true) => "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            (None, _) => panic!("the strategy has to say which isolation it wants"),
        })
    }

    fn begin_bulk(&self) -> Result<NativeTransaction> {
        self.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off")
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

pub(crate) struct NativeTransaction {
    lease: RefCell<Lease>,
    is_open: bool,
    /// A statement failed: nothing but the end can come.
    failed: std::cell::Cell<bool>,
}

impl NativeTransaction {
    fn usable(&self) -> Result<()> {
        match self.failed.get() {
            false => Ok(()),
            true => Err(Error::invalid("the transaction was ended by an earlier error, and can only be rolled back")),
        }
    }
}

impl SqlTransaction for NativeTransaction {
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.usable()?;
        let result = self.lease.borrow_mut().query(text, params, max_bytes);
        self.failed.set(result.is_err());
        result
    }

    fn attempt(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.usable()?;
        let mut lease = self.lease.borrow_mut();
        lease.command("SAVEPOINT larder")?;
        let result = lease.query(text, params, max_bytes);
        lease.command(match &result {
            Ok(_) => "RELEASE SAVEPOINT larder",
            Err(_) => "ROLLBACK TO SAVEPOINT larder; RELEASE SAVEPOINT larder",
        })?;
        self.failed.set(result.as_ref().is_err_and(|error| error.kind == ErrorKind::VersionConflict));
        result
    }

    fn copy_in(&self, table: &str, columns: &[&str], data: &[u8]) -> Result<u64> {
        self.usable()?;
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let names: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
        let text = format!("COPY {} ({}) FROM STDIN", quoted(table), names.join(", "));
        let mut lease = self.lease.borrow_mut();
        let Lease { database, connection } = &mut *lease;
        let copied = database.runtime.block_on(async {
            let mut copy = connection.as_mut().unwrap().copy_in_raw(&text).await?;
            copy.send(data).await?;
            copy.finish().await
        });
        self.failed.set(copied.is_err());
        copied.map_err(translate)
    }

    fn commit(mut self) -> Result<()> {
        self.usable()?;
        self.is_open = false;
        self.lease.get_mut().command("COMMIT")
    }

    fn rollback(mut self) -> Result<()> {
        self.is_open = false;
        self.lease.get_mut().command("ROLLBACK")
    }
}

impl Drop for NativeTransaction {
    fn drop(&mut self) {
        if self.is_open {
            let _ = self.lease.get_mut().command("ROLLBACK");
        }
    }
}

async fn run(connection: &mut PgConnection, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
    let text = AssertSqlSafe(text.to_owned()).into_sql_str();
    let statement = connection.prepare_with(text, &[]).await.map_err(translate)?;
    let types = match statement.parameters() {
        Some(Either::Left(types)) => types,
        _ => &[],
    };
    if params.len() != types.len() {
        return Err(Error::invalid(format!("{} parameters for {}", params.len(), types.len())));
    }
    let mut arguments = PgArguments::default();
    for (param, ty) in params.into_iter().zip(types) {
        let bytes = encode(param, ty)?;
        sqlx::Arguments::add(&mut arguments, Raw { ty: ty.clone(), bytes }).unwrap();
    }
    let mut steps = connection.fetch_many(statement.query_with(arguments));
    let (mut rows, mut bytes) = (Rows::default(), 0);
    while let Some(step) = steps.next().await {
        match step.map_err(translate)? {
            Either::Left(done) => rows.affected += done.rows_affected(),
            Either::Right(_) if bytes >= max_bytes as usize => rows.more |= max_bytes > 0,
            Either::Right(row) => {
                rows.columns = row.columns().iter().map(|column| column.name().to_owned()).collect();
                for i in 0..row.len() {
                    let cell = cell(&row, i)?;
                    bytes += match &cell {
                        SqlValue::Text(text) | SqlValue::Json(text) => 16 + text.len(),
                        _ => 16,
                    };
                    rows.cells.push(cell);
                }
            }
        }
    }
    Ok(rows)
}

/// A value as it is sent; none for NULL.
struct Raw {
    ty: PgTypeInfo,
    bytes: Option<Vec<u8>>,
}

impl Type<Postgres> for Raw {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Raw {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> std::result::Result<IsNull, sqlx::error::BoxDynError> {
        let Some(bytes) = &self.bytes else { return Ok(IsNull::Yes) };
        buffer.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.ty.clone())
    }
}

const TEXTS: [&str; 5] = ["TEXT", "VARCHAR", "NAME", "CHAR", "\"CHAR\""];

/// As the host does: each value has to fit the type that the statement gives the parameter.
fn encode(value: SqlValue, ty: &PgTypeInfo) -> Result<Option<Vec<u8>>> {
    let out_of_range = |_| Error::new(ErrorKind::Rejected, "a number is out of range");
    Ok(Some(match (value, ty.name()) {
        (SqlValue::Null, _) => return Ok(None),
        (SqlValue::Boolean(value), "BOOL") => vec![value.into()],
        (SqlValue::Integer(value), "INT4") => i32::try_from(value).map_err(out_of_range)?.to_be_bytes().to_vec(),
        (SqlValue::Integer(value), "INT8") => value.to_be_bytes().to_vec(),
        (SqlValue::Number(value), "FLOAT8") => value.to_be_bytes().to_vec(),
        (SqlValue::Json(text) | SqlValue::Text(text), "JSON") => text.into_bytes(),
        (SqlValue::Text(text), name) if TEXTS.contains(&name) => match text.contains('\0') {
            true => return Err(Error::new(ErrorKind::Rejected, "PostgreSQL's text has no NUL character")),
            false => text.into_bytes(),
        },
        (value, name) => return Err(Error::invalid(format!("{value:?} is given where the statement takes {name}"))),
    }))
}

fn cell(row: &PgRow, i: usize) -> Result<SqlValue> {
    let raw = row.try_get_raw(i).unwrap();
    if raw.is_null() {
        return Ok(SqlValue::Null);
    }
    let ty = raw.type_info().into_owned();
    Ok(match ty.name() {
        "BOOL" => SqlValue::Boolean(Decode::<Postgres>::decode(raw).unwrap()),
        "INT2" => SqlValue::Integer(<i16 as Decode<Postgres>>::decode(raw).unwrap().into()),
        "INT4" => SqlValue::Integer(<i32 as Decode<Postgres>>::decode(raw).unwrap().into()),
        "INT8" => SqlValue::Integer(Decode::<Postgres>::decode(raw).unwrap()),
        "FLOAT8" => SqlValue::Number(Decode::<Postgres>::decode(raw).unwrap()),
        "JSON" => SqlValue::Json(String::from_utf8(raw.as_bytes().unwrap().to_vec()).unwrap()),
        "BYTEA" => SqlValue::Blob(raw.as_bytes().unwrap().to_vec()),
        "NUMERIC" => SqlValue::Decimal(<BigDecimal as Decode<Postgres>>::decode(raw).unwrap().to_plain_string()),
        name if TEXTS.contains(&name) => SqlValue::Text(String::from_utf8(raw.as_bytes().unwrap().to_vec()).unwrap()),
        name => {
            let message = format!("column `{}` has the type {name}, which is not read", row.columns()[i].name());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
    })
}

/// As the host answers, where the strategy makes a difference.
fn translate(error: sqlx::Error) -> Error {
    let sqlx::Error::Database(error) = error else { panic!("{error}") };
    let error = error.downcast_ref::<PgDatabaseError>();
    let (code, message) = (error.code(), error.message());
    let (kind, retry) = match (&code[..2], code) {
        (_, "23505") => (ErrorKind::AlreadyExists, Retry::Never),
        ("23", _) | (_, "22001" | "22003" | "22008" | "22021" | "22P05") => (ErrorKind::Rejected, Retry::Never),
        (_, "40001" | "40P01") => (ErrorKind::VersionConflict, Retry::Safe),
        (_, "57014") => (ErrorKind::Timeout, Retry::Safe),
        ("54", _) => (ErrorKind::LimitExceeded, Retry::Never),
        (_, "25006" | "42501") => (ErrorKind::Denied, Retry::Never),
        ("0A" | "22" | "25" | "26" | "3F" | "42", _) => (ErrorKind::InvalidArgument, Retry::Never),
        _ => (ErrorKind::Internal, Retry::Never),
    };
    Error { retry, ..Error::new(kind, format!("{message} ({code})")) }
}
