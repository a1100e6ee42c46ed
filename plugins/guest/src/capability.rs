//! The capabilities as Rust traits. `wit/files.wit` and `wit/sql.wit` specify each function.

use larder_model::{Isolation, Result};

/// A file as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// In bytes.
    pub size: u64,
    /// Changes whenever the file's identity, size or times do.
    pub generation: u64,
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Beside other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

/// The one directory that the store was granted.
#[allow(missing_docs)]
pub trait Files {
    /// Held until dropped.
    type Lock;
    /// A new document beside the old one; dropped, it leaves nothing.
    type Replacement;

    /// None where somebody else holds it: answer [`larder_model::ErrorKind::Busy`].
    fn try_acquire(&self, name: &str, mode: LockMode) -> Result<Option<Self::Lock>>;
    fn stat(&self, path: &str) -> Result<Option<FileStat>>;
    fn read(&self, path: &str, offset: u64, max_bytes: u32) -> Result<Option<Vec<u8>>>;
    fn append(&self, path: &str, data: &[u8]) -> Result<FileStat>;
    fn sync(&self, path: &str) -> Result<()>;
    fn truncate(&self, path: &str, size: u64) -> Result<()>;
    fn remove(&self, path: &str) -> Result<bool>;
    fn entries(&self, prefix: &str) -> Result<Vec<(String, FileStat)>>;
    fn free_space(&self) -> Result<u64>;
    fn replace(&self, path: &str) -> Result<Self::Replacement>;
    fn replacement_write(&self, replacement: &Self::Replacement, data: &[u8]) -> Result<()>;
    fn replacement_commit(
        &self,
        replacement: Self::Replacement,
        keep_old_as: Option<&str>,
        durable: bool,
    ) -> Result<FileStat>;
}

/// Which SQL the database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dialect {
    Sqlite,
    Postgres,
}

/// A cell or a parameter.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum SqlValue {
    Null,
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    Blob(Vec<u8>),
    Json(String),
    Decimal(String),
}

/// What a statement answered.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Their names, in order.
    pub columns: Vec<String>,
    /// Row by row.
    pub cells: Vec<SqlValue>,
    /// Rows changed.
    pub affected: u64,
    /// Cut at the bound.
    pub more: bool,
}

/// The host's connections to the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// Those that there are.
    pub open: u32,
    /// Of those, the ones that nobody uses right now.
    pub idle: u32,
    /// How many are kept.
    pub kept: u32,
    /// How many there may be under load.
    pub max: u32,
}

/// The one database that the store was granted.
#[allow(missing_docs)]
pub trait Sql {
    type Transaction: SqlTransaction;

    fn dialect(&self) -> Dialect;
    fn size(&self) -> Result<Option<u64>>;
    fn free_space(&self) -> Result<Option<u64>>;
    fn connections(&self) -> Connections;
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows>;
    fn begin(&self, isolation: Option<Isolation>, read_only: bool) -> Result<Self::Transaction>;
    fn begin_bulk(&self) -> Result<Self::Transaction>;
    fn sync(&self) -> Result<()>;
}

/// An open transaction; dropped, it is rolled back.
#[allow(missing_docs)]
pub trait SqlTransaction {
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows>;
    fn attempt(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows>;
    fn copy_in(&self, table: &str, columns: &[&str], data: &[u8]) -> Result<u64>;
    fn commit(self) -> Result<()>;
    fn rollback(self) -> Result<()>;
}
