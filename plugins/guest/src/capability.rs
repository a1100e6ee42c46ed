//! The capabilities as Rust traits. `wit/files.wit`, `wit/sql.wit` and
//! `wit/dynamodb.wit` specify each function.

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

/// Rows in one piece, in the form that `wit/sql.wit` tells.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// Row by row, cell by cell.
    pub cells: Vec<u8>,
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
    fn copy_out(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Packed>;
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

/// A value in DynamoDB.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Text(String),
    /// Decimal text.
    Number(String),
    Boolean(bool),
    Null,
    Binary(Vec<u8>),
    /// A list, a map or a set in the service's notation.
    Document(String),
}

/// Attributes by name; no name comes twice.
pub type Item = Vec<(String, Attribute)>;

/// An expression with what its placeholders stand for.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Expression {
    pub text: String,
    /// With `#` before them.
    pub names: Vec<(String, String)>,
    /// With `:` before them.
    pub values: Item,
}

/// The attributes of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct KeySchema {
    pub hash: String,
    pub range: Option<String>,
}

/// A table as it should be: its collection, its key, and its indexes with their names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TableSpec {
    pub collection: String,
    pub key: KeySchema,
    pub indexes: Vec<(String, KeySchema)>,
}

/// Units a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Capacity {
    pub read: u64,
    pub write: u64,
}

/// An index as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct IndexStatus {
    pub name: String,
    pub status: String,
    pub key: KeySchema,
    pub holds_whole_items: bool,
    pub capacity: Option<Capacity>,
}

/// A table as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TableStatus {
    pub name: String,
    pub status: String,
    pub key: KeySchema,
    pub indexes: Vec<IndexStatus>,
    pub capacity: Option<Capacity>,
    pub items: u64,
    pub bytes: u64,
    pub scaling: Vec<String>,
}

/// What is to be done with one item.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum ItemAction {
    Put { collection: String, item: Item, condition: Option<Expression> },
    Delete { collection: String, key: Item, condition: Option<Expression> },
    Check { collection: String, key: Item, condition: Expression },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Written {
    /// It took effect.
    Done,
    /// The condition did not hold of this item, or of none.
    Refused(Option<Item>),
}

/// What a query looks for.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ItemQuery {
    pub collection: String,
    pub index: Option<String>,
    pub key: Expression,
    pub filter: Option<Expression>,
    pub start: Option<Item>,
    pub limit: u32,
    pub descending: bool,
    pub consistent: bool,
    pub count_only: bool,
}

/// What a scan looks for.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ItemScan {
    pub collection: String,
    pub segments: u32,
    pub filter: Option<Expression>,
    pub limit: u32,
    pub consistent: bool,
    pub count_only: bool,
}

/// Part of what a query or a scan found.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct ItemPage {
    pub items: Vec<Item>,
    pub count: u32,
    pub last_key: Option<Item>,
    pub read_units: f64,
}

/// The tables that the store was granted.
#[allow(missing_docs)]
pub trait Dynamodb {
    fn prepare_table(&self, spec: &TableSpec, dry_run: bool, extend: bool) -> Result<Vec<String>>;
    fn describe_table(&self, collection: &str) -> Result<Option<TableStatus>>;
    fn list_collections(&self) -> Result<Vec<String>>;
    fn get_items(&self, collection: &str, keys: Vec<Item>, consistent: bool) -> Result<Vec<Option<Item>>>;
    fn write_items(&self, actions: Vec<ItemAction>) -> Result<Vec<Result<Written>>>;
    fn put_batch(&self, collection: &str, items: Vec<Item>) -> Result<()>;
    fn put_new(&self, collection: &str, key: &str, items: Vec<Item>) -> Result<Vec<bool>>;
    fn transact(&self, actions: Vec<ItemAction>, token: &str) -> Result<Vec<Written>>;
    fn query(&self, query: ItemQuery) -> Result<ItemPage>;
    /// Segments by number, each with the key behind which it begins.
    fn scan(&self, scan: ItemScan, segments: Vec<(u32, Option<Item>)>) -> Result<Vec<ItemPage>>;
}
