//! SQLite: a file in a folder of its own.
#![allow(unsafe_code)]

use std::{cell::RefCell, ffi::c_int, fs, ptr, slice, sync::Arc};

use futures_util::StreamExt;
use larder_guest::{Connections, Dialect, Packed, Rows, Sql, SqlTransaction, SqlValue};
use larder_model::{Error, ErrorKind, Isolation, Result};
use libsqlite3_sys as ffi;
use sqlx::{
    Arguments, AssertSqlSafe, Column, Decode, Either, Executor, Row, Sqlite, SqliteConnection, SqlitePool, TypeInfo,
    ValueRef,
    sqlite::{SqliteArguments, SqliteConnectOptions, SqlitePoolOptions, SqliteRow},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const FILE: &str = "test.db";

#[derive(Clone)]
pub(crate) struct Native {
    directory: Arc<TempDir>,
    pool: SqlitePool,
    runtime: Arc<Runtime>,
}

impl Native {
    pub(super) fn new() -> Native {
        Native::over(Arc::new(TempDir::new().unwrap()), false)
    }

    /// The same file, as somebody has it who may not write it.
    pub(super) fn read_only(&self) -> Native {
        Native::over(Arc::clone(&self.directory), true)
    }

    pub(super) fn overwrite(&self, bytes: &[u8]) {
        fs::write(self.directory.path().join(FILE), bytes).unwrap();
    }

    fn over(directory: Arc<TempDir>, read_only: bool) -> Native {
        let path = directory.path().join(FILE);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(!read_only)
            .read_only(read_only)
            .foreign_keys(true);
        let runtime = Arc::new(Runtime::new().unwrap());
        let pool = SqlitePoolOptions::new().max_connections(4).after_connect(|connection, _| {
            Box::pin(async move {
                add_crc32(connection.lock_handle().await?.as_raw_handle().as_ptr());
                Ok(())
            })
        });
        let pool = runtime.block_on(async { pool.connect_lazy_with(options) });
        Native { directory, pool, runtime }
    }
}

/// The function that the host's connections have.
fn add_crc32(connection: *mut ffi::sqlite3) {
    unsafe extern "C" fn crc32(context: *mut ffi::sqlite3_context, _: c_int, values: *mut *mut ffi::sqlite3_value) {
        // SAFETY: SQLite calls it with one value, whose text is there until the value is used again.
        unsafe {
            let text = ffi::sqlite3_value_text(*values);
            if text.is_null() {
                return ffi::sqlite3_result_null(context);
            }
            let bytes = slice::from_raw_parts(text, ffi::sqlite3_value_bytes(*values) as usize);
            ffi::sqlite3_result_int64(context, i64::from(crc32fast::hash(bytes)));
        }
    }
    let (flags, nothing) = (ffi::SQLITE_UTF8 | ffi::SQLITE_DETERMINISTIC, ptr::null_mut());
    // SAFETY: an open connection that is locked, and a function that lives for ever.
    let code = unsafe {
        let name = c"crc32".as_ptr();
        ffi::sqlite3_create_function_v2(connection, name, 1, flags, nothing, Some(crc32), None, None, None)
    };
    assert_eq!(code, ffi::SQLITE_OK);
}

impl Sql for Native {
    type Transaction = NativeTransaction;

    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    fn size(&self) -> Result<Option<u64>> {
        Ok(Some(fs::metadata(self.directory.path().join(FILE)).map_or(0, |metadata| metadata.len())))
    }

    fn free_space(&self) -> Result<Option<u64>> {
        Ok(Some(1 << 30))
    }

    fn connections(&self) -> Connections {
        Connections::default()
    }

    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.runtime.block_on(async {
            let mut connection = self.pool.acquire().await.unwrap();
            let rows = run(&mut connection, text, params, max_bytes).await;
            connection.return_to_pool().await;
            rows
        })
    }

    fn copy_out(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Packed> {
        let mut cells = Vec::new();
        let pack = |row: &SqliteRow| {
            for i in 0..row.len() {
                let (kind, bytes) = match cell(row, i) {
                    SqlValue::Null => (b'n', Vec::new()),
                    SqlValue::Integer(value) => (b'i', value.to_le_bytes().to_vec()),
                    SqlValue::Number(value) => (b'f', value.to_le_bytes().to_vec()),
                    SqlValue::Text(text) => (b't', text.into_bytes()),
                    // A text that is no UTF-8 is one here.
                    SqlValue::Blob(bytes) => {
                        let is_text = row.try_get_raw(i).unwrap().type_info().name() == "TEXT";
                        (if is_text { b't' } else { b'b' }, bytes)
                    }
                    other => panic!("SQLite holds no {other:?}"),
                };
                cells.push(kind);
                if matches!(kind, b't' | b'b') {
                    cells.extend((bytes.len() as u32).to_le_bytes());
                }
                cells.extend(bytes);
            }
            cells.len()
        };
        let more = self.runtime.block_on(async {
            let mut connection = self.pool.acquire().await.unwrap();
            let more = each_row(&mut connection, text, params, max_bytes, pack, |_| {}).await;
            connection.return_to_pool().await;
            more
        })?;
        Ok(Packed { cells, more })
    }

    fn begin(&self, _isolation: Option<Isolation>, read_only: bool) -> Result<NativeTransaction> {
        let begin = if read_only { "BEGIN DEFERRED" } else { "BEGIN IMMEDIATE" };
        let begun = self.runtime.block_on(async {
            if !read_only {
                let _ = self.pool.execute("PRAGMA journal_mode = WAL").await;
            }
            self.pool.begin_with(begin).await
        });
        let inner = begun.map_err(translate)?;
        Ok(NativeTransaction { inner: RefCell::new(Some(inner)), runtime: Arc::clone(&self.runtime) })
    }

    /// Here every transaction is durable when it ends.
    fn begin_bulk(&self) -> Result<NativeTransaction> {
        self.begin(None, false)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

pub(crate) struct NativeTransaction {
    /// Taken when it ends.
    inner: RefCell<Option<sqlx::Transaction<'static, Sqlite>>>,
    runtime: Arc<Runtime>,
}

/// The next cell of the rows of a `copy-in`.
fn packed_cell(data: &mut &[u8]) -> SqlValue {
    let mut take = |count: usize| {
        let (taken, rest) = data.split_at(count);
        *data = rest;
        taken
    };
    match take(1) {
        b"n" => SqlValue::Null,
        b"i" => SqlValue::Integer(i64::from_le_bytes(take(8).try_into().unwrap())),
        b"f" => SqlValue::Number(f64::from_le_bytes(take(8).try_into().unwrap())),
        b"t" => {
            let length = u32::from_le_bytes(take(4).try_into().unwrap());
            SqlValue::Text(String::from_utf8(take(length as usize).to_vec()).unwrap())
        }
        kind => panic!("a column that we make holds no {kind:?}"),
    }
}

impl SqlTransaction for NativeTransaction {
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        let mut inner = self.inner.borrow_mut();
        self.runtime.block_on(run(inner.as_mut().unwrap(), text, params, max_bytes))
    }

    fn attempt(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.query(text, params, max_bytes)
    }

    fn copy_in(&self, table: &str, columns: &[&str], mut data: &[u8]) -> Result<u64> {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let names: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
        let places = vec!["?"; columns.len()].join(", ");
        let text = format!("INSERT INTO {} ({}) VALUES ({places})", quoted(table), names.join(", "));
        let mut count = 0;
        while !data.is_empty() {
            let cells = columns.iter().map(|_| packed_cell(&mut data)).collect();
            self.query(&text, cells, 0)?;
            count += 1;
        }
        Ok(count)
    }

    fn commit(self) -> Result<()> {
        self.runtime.block_on(self.inner.take().unwrap().commit()).map_err(translate)
    }

    fn rollback(self) -> Result<()> {
        self.runtime.block_on(self.inner.take().unwrap().rollback()).map_err(translate)
    }
}

impl Drop for NativeTransaction {
    fn drop(&mut self) {
        let inner = self.inner.take();
        self.runtime.block_on(async { drop(inner) });
    }
}

async fn run(connection: &mut SqliteConnection, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
    let (mut columns, mut cells, mut bytes, mut affected) = (Vec::new(), Vec::new(), 0, 0);
    let take = |row: &SqliteRow| {
        columns = row.columns().iter().map(|column| column.name().to_owned()).collect();
        for i in 0..row.len() {
            let cell = cell(row, i);
            bytes += match &cell {
                SqlValue::Text(text) => 16 + text.len(),
                _ => 16,
            };
            cells.push(cell);
        }
        bytes
    };
    let more = each_row(connection, text, params, max_bytes, take, |rows| affected += rows).await?;
    Ok(Rows { columns, cells, affected, more })
}

/// Gives the rows to `take`, which says how many bytes they came to, until those are too many; answers whether there are more.
async fn each_row(
    connection: &mut SqliteConnection,
    text: &str,
    params: Vec<SqlValue>,
    max_bytes: u32,
    mut take: impl FnMut(&SqliteRow) -> usize,
    mut affected: impl FnMut(u64),
) -> Result<bool> {
    let mut arguments = SqliteArguments::default();
    for param in params {
        match param {
            SqlValue::Null => arguments.add(None::<i64>),
            SqlValue::Boolean(value) => arguments.add(i64::from(value)),
            SqlValue::Integer(value) => arguments.add(value),
            SqlValue::Number(value) => arguments.add(value),
            SqlValue::Text(text) | SqlValue::Json(text) | SqlValue::Decimal(text) => arguments.add(text),
            SqlValue::Blob(bytes) => arguments.add(bytes),
        }
        .unwrap();
    }
    let mut steps = connection.fetch_many(sqlx::query_with(AssertSqlSafe(text.to_owned()), arguments));
    let mut bytes = 0;
    while let Some(step) = steps.next().await {
        match step.map_err(translate)? {
            Either::Left(done) => affected(done.rows_affected()),
            Either::Right(_) if bytes >= max_bytes as usize => return Ok(true),
            Either::Right(row) => bytes = take(&row),
        }
    }
    Ok(false)
}

fn cell(row: &SqliteRow, i: usize) -> SqlValue {
    let raw = row.try_get_raw(i).unwrap();
    if raw.is_null() {
        return SqlValue::Null;
    }
    match raw.type_info().name() {
        "INTEGER" => SqlValue::Integer(Decode::<Sqlite>::decode(raw).unwrap()),
        "REAL" => SqlValue::Number(Decode::<Sqlite>::decode(raw).unwrap()),
        "TEXT" => match String::from_utf8(<&[u8] as Decode<Sqlite>>::decode(raw).unwrap().to_vec()) {
            Ok(text) => SqlValue::Text(text),
            Err(error) => SqlValue::Blob(error.into_bytes()),
        },
        _ => SqlValue::Blob(Decode::<Sqlite>::decode(raw).unwrap()),
    }
}

/// As the host answers, where the strategy makes a difference.
fn translate(error: sqlx::Error) -> Error {
    let sqlx::Error::Database(error) = error else { panic!("{error}") };
    let kind = match error.code().unwrap().parse::<i32>().unwrap() {
        1555 | 2067 => ErrorKind::AlreadyExists,
        code if code & 0xff == 19 => ErrorKind::Rejected,
        1 => ErrorKind::InvalidArgument,
        8 => ErrorKind::Denied,
        26 => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, error.message())
}
