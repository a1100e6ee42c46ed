//! The capability `sql`: one database, opened, pooled and guarded by the host. `wit/sql.wit` specifies it.
//!
//! Text comes from a plugin and is taken for hostile: what leads out of the database, changes the connection or ends the
//! host's transaction is denied. What is said here is common to every dialect; a dialect is one variant of [`Backend`]
//! and [`Begun`], and a module: [`sqlite`], [`postgres`].

mod pool;
mod postgres;
mod sqlite;
#[cfg(test)]
mod tests;
mod texts;
mod unsynced;

use std::{sync::Arc, time::Duration};

use larder_model::{Error, ErrorKind, Isolation, Result};

pub(crate) use postgres::{Encryption, PostgresSettings};
pub(crate) use sqlite::{SqliteSettings, Watch};

/// Which SQL the database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// In a file.
    Sqlite,
    /// On a server.
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
    /// JSON text for a database that has such a type.
    Json(String),
    /// Decimal text for a database that has such a type.
    Decimal(String),
}

/// What a statement answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Their names, in order; empty where no row came back.
    pub columns: Vec<String>,
    /// Row by row.
    pub cells: Vec<SqlValue>,
    /// Rows changed.
    pub affected: u64,
    /// Cut at the bound.
    pub more: bool,
}

/// Rows in one piece.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    /// Row by row, cell by cell, as `wit/sql.wit` tells.
    pub cells: Vec<u8>,
    /// Cut at the bound.
    pub more: bool,
}

/// Connections to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// One database. Clones share its connections.
#[derive(Clone)]
pub struct Database {
    backend: Backend,
    /// How long a statement of a transaction may take, in place of the database's own `timeout`.
    pub(crate) statement_time: Option<Duration>,
}

#[derive(Clone)]
enum Backend {
    Sqlite(Arc<sqlite::Store>),
    Postgres(Arc<postgres::Store>),
}

impl Database {
    /// Opens nothing before it is used: not even the file has to exist.
    pub(crate) fn open_sqlite(settings: SqliteSettings) -> Database {
        Database { backend: Backend::Sqlite(Arc::new(sqlite::Store::new(settings))), statement_time: None }
    }

    /// Connects to nothing before it is used.
    pub(crate) fn open_postgres(settings: PostgresSettings) -> Database {
        Database { backend: Backend::Postgres(Arc::new(postgres::Store::new(settings))), statement_time: None }
    }

    /// Which SQL it speaks.
    pub fn dialect(&self) -> Dialect {
        match &self.backend {
            Backend::Sqlite(_) => Dialect::Sqlite,
            Backend::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Bytes of the database.
    pub async fn size(&self) -> Result<Option<u64>> {
        match &self.backend {
            Backend::Sqlite(store) => store.size().map(Some),
            Backend::Postgres(store) => store.size().await,
        }
    }

    /// Where the database is a file that is there: what tells whether anybody commits to it from here on.
    pub(crate) async fn watch(&self) -> Option<Watch> {
        match &self.backend {
            Backend::Sqlite(store) => store.watch().await.ok().flatten(),
            Backend::Postgres(_) => None,
        }
    }

    /// Bytes that are free where the database lies, none where that is another machine's to tell.
    pub async fn free_space(&self) -> Result<Option<u64>> {
        match &self.backend {
            Backend::Sqlite(store) => store.free_space().map(Some),
            Backend::Postgres(_) => Ok(None),
        }
    }

    /// Its connections.
    pub fn connections(&self) -> Connections {
        match &self.backend {
            Backend::Sqlite(store) => store.connections(),
            Backend::Postgres(store) => store.connections(),
        }
    }

    /// How long a call waits for a connection.
    pub(crate) fn pool_timeout(&self) -> Duration {
        match &self.backend {
            Backend::Sqlite(store) => store.pool_timeout(),
            Backend::Postgres(store) => store.pool_timeout(),
        }
    }

    /// Closes every connection, in order: what lies in a log goes to the database. It opens again when it is used.
    pub async fn close(&self) {
        match &self.backend {
            Backend::Sqlite(store) => store.close().await,
            Backend::Postgres(store) => store.close().await,
        }
    }

    /// Runs one statement by itself.
    pub async fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        match &self.backend {
            Backend::Sqlite(store) => store.query(text, params, max_bytes).await,
            Backend::Postgres(store) => store.query(text, params, max_bytes).await,
        }
    }

    /// Runs a statement that only reads, and gives its rows in one piece.
    pub async fn copy_out(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Packed> {
        match &self.backend {
            Backend::Sqlite(store) => store.copy_out(text, params, max_bytes).await,
            Backend::Postgres(_) => {
                Err(Error::new(ErrorKind::Unsupported, "rows of PostgreSQL are not copied out: query them"))
            }
        }
    }

    /// Begins a transaction. SQLite serves every isolation by its only one, serializable.
    pub async fn begin(&self, isolation: Option<Isolation>, read_only: bool) -> Result<Transaction> {
        match &self.backend {
            Backend::Sqlite(store) => {
                Ok(Transaction(Begun::Sqlite(store.begin(read_only, self.statement_time).await?)))
            }
            Backend::Postgres(store) => {
                Ok(Transaction(Begun::Postgres(store.begin(isolation, read_only, self.statement_time).await?)))
            }
        }
    }

    /// Begins a transaction that writes, and that is durable after [`Database::sync`].
    pub async fn begin_bulk(&self) -> Result<Transaction> {
        match &self.backend {
            Backend::Sqlite(store) => Ok(Transaction(Begun::Sqlite(store.begin_bulk()))),
            Backend::Postgres(store) => Ok(Transaction(Begun::Postgres(store.begin_bulk().await?))),
        }
    }

    /// Makes bulk transactions durable that were committed.
    pub async fn sync(&self) -> Result<()> {
        match &self.backend {
            Backend::Sqlite(store) => store.sync().await,
            Backend::Postgres(store) => store.sync().await,
        }
    }
}

/// An open transaction. Dropped without an end, it is rolled back.
pub struct Transaction(Begun);

enum Begun {
    Sqlite(sqlite::Transaction),
    Postgres(postgres::Transaction),
}

impl Transaction {
    /// Runs one statement inside. After an error that ended the transaction in the database it can only be rolled back.
    pub async fn query(&mut self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        match &mut self.0 {
            Begun::Sqlite(transaction) => transaction.query(text, params, max_bytes).await,
            Begun::Postgres(transaction) => transaction.query(text, params, max_bytes).await,
        }
    }

    /// As [`Transaction::query`]; a statement that fails is undone alone.
    pub async fn attempt(&mut self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        match &mut self.0 {
            Begun::Sqlite(transaction) => transaction.query(text, params, max_bytes).await,
            Begun::Postgres(transaction) => transaction.attempt(text, params, max_bytes).await,
        }
    }

    /// Appends rows to a table, in the form that `wit/sql.wit` tells.
    pub async fn copy_in(&mut self, table: &str, columns: &[String], data: Vec<u8>) -> Result<u64> {
        match &mut self.0 {
            Begun::Sqlite(transaction) => transaction.copy_in(table, columns, data).await,
            Begun::Postgres(transaction) => transaction.copy_in(table, columns, data).await,
        }
    }

    /// Makes its changes durable.
    pub async fn commit(self) -> Result<()> {
        match self.0 {
            Begun::Sqlite(transaction) => transaction.commit().await,
            Begun::Postgres(transaction) => transaction.commit().await,
        }
    }

    /// Undoes its changes.
    pub async fn rollback(self) -> Result<()> {
        match self.0 {
            Begun::Sqlite(transaction) => transaction.rollback().await,
            Begun::Postgres(transaction) => transaction.rollback().await,
        }
    }
}
