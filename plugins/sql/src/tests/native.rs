//! The databases as a plugin sees them, without a host around: every call blocks. What the host's guard does beside this
//! is tested there.

mod postgres;
mod sqlite;

use larder_guest::{Connections, Dialect, Packed, Rows, Sql, SqlTransaction, SqlValue};
use larder_model::{Isolation, Result};

/// Where a test happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Sqlite,
    Postgres,
}

/// A database with nothing in it, which goes with its last clone.
#[derive(Clone)]
pub(super) enum Native {
    Sqlite(sqlite::Native),
    Postgres(postgres::Native),
}

impl Native {
    pub(super) fn new(place: Place) -> Native {
        match place {
            Place::Sqlite => Native::Sqlite(sqlite::Native::new()),
            Place::Postgres => Native::Postgres(postgres::Native::new()),
        }
    }

    /// The file of SQLite, for somebody who may only read it.
    pub(super) fn read_only(&self) -> Native {
        match self {
            Native::Sqlite(inner) => Native::Sqlite(inner.read_only()),
            Native::Postgres(_) => panic!("PostgreSQL has no file"),
        }
    }

    /// Puts something else in the place of SQLite's file.
    pub(super) fn overwrite(&self, bytes: &[u8]) {
        match self {
            Native::Sqlite(inner) => inner.overwrite(bytes),
            Native::Postgres(_) => panic!("PostgreSQL has no file"),
        }
    }
}

/// Calls the same of whichever it is.
macro_rules! each {
    ($self:expr, $inner:ident => $call:expr) => {
        match $self {
            Native::Sqlite($inner) => $call,
            Native::Postgres($inner) => $call,
        }
    };
    (transaction $self:expr, $inner:ident => $call:expr) => {
        match $self {
            NativeTransaction::Sqlite($inner) => $call,
            NativeTransaction::Postgres($inner) => $call,
        }
    };
}

impl Sql for Native {
    type Transaction = NativeTransaction;

    fn dialect(&self) -> Dialect {
        each!(self, inner => inner.dialect())
    }

    fn size(&self) -> Result<Option<u64>> {
        each!(self, inner => inner.size())
    }

    fn free_space(&self) -> Result<Option<u64>> {
        each!(self, inner => inner.free_space())
    }

    fn connections(&self) -> Connections {
        each!(self, inner => inner.connections())
    }

    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        each!(self, inner => inner.query(text, params, max_bytes))
    }

    fn copy_out(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Packed> {
        each!(self, inner => inner.copy_out(text, params, max_bytes))
    }

    fn begin(&self, isolation: Option<Isolation>, read_only: bool) -> Result<NativeTransaction> {
        Ok(match self {
            Native::Sqlite(inner) => NativeTransaction::Sqlite(inner.begin(isolation, read_only)?),
            Native::Postgres(inner) => NativeTransaction::Postgres(inner.begin(isolation, read_only)?),
        })
    }

    fn begin_bulk(&self) -> Result<NativeTransaction> {
        Ok(match self {
            Native::Sqlite(inner) => NativeTransaction::Sqlite(inner.begin_bulk()?),
            Native::Postgres(inner) => NativeTransaction::Postgres(inner.begin_bulk()?),
        })
    }

    fn sync(&self) -> Result<()> {
        each!(self, inner => inner.sync())
    }
}

pub(super) enum NativeTransaction {
    Sqlite(sqlite::NativeTransaction),
    Postgres(postgres::NativeTransaction),
}

impl SqlTransaction for NativeTransaction {
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        each!(transaction self, inner => inner.query(text, params, max_bytes))
    }

    fn attempt(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        each!(transaction self, inner => inner.attempt(text, params, max_bytes))
    }

    fn copy_in(&self, table: &str, columns: &[&str], data: &[u8]) -> Result<u64> {
        each!(transaction self, inner => inner.copy_in(table, columns, data))
    }

    fn commit(self) -> Result<()> {
        each!(transaction self, inner => inner.commit())
    }

    fn rollback(self) -> Result<()> {
        each!(transaction self, inner => inner.rollback())
    }
}
