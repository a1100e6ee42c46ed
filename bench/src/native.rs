//! Lends a strategy in this process what a component is lent: the host's own capabilities, with a function call where the component has the
//! boundary. What a plugin's call waits for, it waits for on its thread here too.

use std::cell::{Cell, RefCell};

use larder::bare::{self, Database, Directory};
use larder::config::Config;
use larder_guest::{
    Connections, Dialect, FileStat, Files, LockMode, Packed, Rows, Sql, SqlTransaction, SqlValue, Strategy,
};
use larder_model::{Isolation, Result};
use tokio::runtime::Handle;

thread_local! {
    /// As a component finds what it is lent without being told, so does what is made with `Default` on this thread.
    static DIRECTORY: Cell<Option<Directory>> = const { Cell::new(None) };
    static DATABASE: Cell<Option<Database>> = const { Cell::new(None) };
}

/// Opens a store of the configuration natively. The database that it was lent is to be closed at the end.
pub(crate) fn open<S: Strategy>(config: &Config, store: &str) -> anyhow::Result<(S, Option<Database>)> {
    let store = config.store(Some(store))?;
    let (directory, database) = bare::lend(config, &store)?;
    DIRECTORY.set(directory);
    DATABASE.set(database.clone());
    let section = serde_json::Value::Object(store.section).to_string();
    let (strategy, _) = S::open(&section, config.collections().to_vec())?;
    Ok((strategy, database))
}

/// The host's `files`.
pub(crate) struct NativeFiles(Directory);

impl Default for NativeFiles {
    fn default() -> Self {
        NativeFiles(DIRECTORY.take().expect("a directory was lent"))
    }
}

fn stat_in(stat: bare::FileStat) -> FileStat {
    FileStat { size: stat.size, generation: stat.generation }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    Handle::current().block_on(future)
}

impl Files for NativeFiles {
    type Lock = bare::Lock;
    type Replacement = RefCell<bare::Replacement>;

    fn try_acquire(&self, name: &str, mode: LockMode) -> Result<Option<Self::Lock>> {
        let mode = match mode {
            LockMode::Shared => bare::LockMode::Shared,
            LockMode::Exclusive => bare::LockMode::Exclusive,
        };
        wait(self.0.try_acquire(name, mode))
    }

    fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        Ok(wait(self.0.stat(path))?.map(stat_in))
    }

    fn read(&self, path: &str, offset: u64, max_bytes: u32) -> Result<Option<Vec<u8>>> {
        wait(self.0.read(path, offset, max_bytes))
    }

    fn append(&self, path: &str, data: &[u8]) -> Result<FileStat> {
        wait(self.0.append(path, data.to_vec())).map(stat_in)
    }

    fn sync(&self, path: &str) -> Result<()> {
        wait(self.0.sync(path))
    }

    fn truncate(&self, path: &str, size: u64) -> Result<()> {
        wait(self.0.truncate(path, size))
    }

    fn remove(&self, path: &str) -> Result<bool> {
        wait(self.0.remove(path))
    }

    fn entries(&self, prefix: &str) -> Result<Vec<(String, FileStat)>> {
        let entries = wait(self.0.entries(prefix))?;
        Ok(entries.into_iter().map(|(name, stat)| (name, stat_in(stat))).collect())
    }

    fn free_space(&self) -> Result<u64> {
        wait(self.0.free_space())
    }

    fn replace(&self, path: &str) -> Result<Self::Replacement> {
        Ok(RefCell::new(self.0.replacement(path)))
    }

    fn replacement_write(&self, replacement: &Self::Replacement, data: &[u8]) -> Result<()> {
        wait(replacement.borrow_mut().write(data.to_vec()))
    }

    fn replacement_commit(
        &self,
        replacement: Self::Replacement,
        keep_old_as: Option<&str>,
        durable: bool,
    ) -> Result<FileStat> {
        wait(replacement.into_inner().commit(keep_old_as, durable)).map(stat_in)
    }
}

/// The host's `sql`.
pub(crate) struct NativeSql(Database);

/// Its transactions.
pub(crate) struct NativeTransaction(RefCell<bare::Transaction>);

impl Default for NativeSql {
    fn default() -> Self {
        NativeSql(DATABASE.take().expect("a database was lent"))
    }
}

impl Sql for NativeSql {
    type Transaction = NativeTransaction;

    fn dialect(&self) -> Dialect {
        match self.0.dialect() {
            bare::Dialect::Sqlite => Dialect::Sqlite,
            bare::Dialect::Postgres => Dialect::Postgres,
        }
    }

    fn size(&self) -> Result<Option<u64>> {
        wait(self.0.size())
    }

    fn free_space(&self) -> Result<Option<u64>> {
        wait(self.0.free_space())
    }

    fn connections(&self) -> Connections {
        let bare::Connections { open, idle, kept, max } = self.0.connections();
        Connections { open, idle, kept, max }
    }

    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        wait(self.0.query(text, params_out(params), max_bytes)).map(rows_in)
    }

    fn copy_out(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Packed> {
        let packed = wait(self.0.copy_out(text, params_out(params), max_bytes))?;
        Ok(Packed { cells: packed.cells, more: packed.more })
    }

    fn begin(&self, isolation: Option<Isolation>, read_only: bool) -> Result<NativeTransaction> {
        wait(self.0.begin(isolation, read_only)).map(|begun| NativeTransaction(RefCell::new(begun)))
    }

    fn begin_bulk(&self) -> Result<NativeTransaction> {
        wait(self.0.begin_bulk()).map(|begun| NativeTransaction(RefCell::new(begun)))
    }

    fn sync(&self) -> Result<()> {
        wait(self.0.sync())
    }
}

impl SqlTransaction for NativeTransaction {
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        wait(self.0.borrow_mut().query(text, params_out(params), max_bytes)).map(rows_in)
    }

    fn attempt(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        wait(self.0.borrow_mut().attempt(text, params_out(params), max_bytes)).map(rows_in)
    }

    fn copy_in(&self, table: &str, columns: &[&str], data: &[u8]) -> Result<u64> {
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        wait(self.0.borrow_mut().copy_in(table, &columns, data.to_vec()))
    }

    fn commit(self) -> Result<()> {
        wait(self.0.into_inner().commit())
    }

    fn rollback(self) -> Result<()> {
        wait(self.0.into_inner().rollback())
    }
}

fn params_out(params: Vec<SqlValue>) -> Vec<bare::SqlValue> {
    let out = |value| match value {
        SqlValue::Null => bare::SqlValue::Null,
        SqlValue::Boolean(value) => bare::SqlValue::Boolean(value),
        SqlValue::Integer(value) => bare::SqlValue::Integer(value),
        SqlValue::Number(value) => bare::SqlValue::Number(value),
        SqlValue::Text(value) => bare::SqlValue::Text(value),
        SqlValue::Blob(value) => bare::SqlValue::Blob(value),
        SqlValue::Json(value) => bare::SqlValue::Json(value),
        SqlValue::Decimal(value) => bare::SqlValue::Decimal(value),
    };
    params.into_iter().map(out).collect()
}

fn rows_in(rows: bare::Rows) -> Rows {
    let value_in = |value| match value {
        bare::SqlValue::Null => SqlValue::Null,
        bare::SqlValue::Boolean(value) => SqlValue::Boolean(value),
        bare::SqlValue::Integer(value) => SqlValue::Integer(value),
        bare::SqlValue::Number(value) => SqlValue::Number(value),
        bare::SqlValue::Text(value) => SqlValue::Text(value),
        bare::SqlValue::Blob(value) => SqlValue::Blob(value),
        bare::SqlValue::Json(value) => SqlValue::Json(value),
        bare::SqlValue::Decimal(value) => SqlValue::Decimal(value),
    };
    let cells = rows.cells.into_iter().map(value_in).collect();
    Rows { columns: rows.columns, cells, affected: rows.affected, more: rows.more }
}
