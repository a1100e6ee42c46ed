//! A database to ask: by itself, or inside a transaction. What reads and writes rows need not know which.

use larder_guest::{Dialect, Packed, Rows, Sql, SqlTransaction, SqlValue};
use larder_model::{Error, ErrorKind, Result};

/// The largest reply that is asked for at once.
pub(crate) const REPLY_BYTES_MAX: u32 = 8 << 20;

/// Runs statements.
pub(crate) trait Database {
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows>;

    /// A statement that fails is undone alone, which on PostgreSQL takes two more questions.
    fn attempt(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows>;

    /// Many rows of SQLite in one piece; only outside of a transaction.
    fn copy_out(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Packed>;

    /// Only inside a transaction. A bulk load of SQLite may append the rows with what comes next.
    fn copy_in(&self, table: &str, columns: &[&str], data: &[u8]) -> Result<u64>;
}

/// Each statement by itself.
pub(crate) struct Alone<'a, S>(pub(crate) &'a S);

impl<S: Sql> Database for Alone<'_, S> {
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.0.query(text, params, max_bytes)
    }

    fn attempt(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.0.query(text, params, max_bytes)
    }

    fn copy_out(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Packed> {
        self.0.copy_out(text, params, max_bytes)
    }

    fn copy_in(&self, _table: &str, _columns: &[&str], _data: &[u8]) -> Result<u64> {
        Err(Error::new(ErrorKind::Unsupported, "rows are copied into a table in a transaction only"))
    }
}

/// All of one transaction.
pub(crate) struct Inside<'a, T>(pub(crate) &'a T);

impl<T: SqlTransaction> Database for Inside<'_, T> {
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.0.query(text, params, max_bytes)
    }

    fn attempt(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        self.0.attempt(text, params, max_bytes)
    }

    fn copy_out(&self, _text: &str, _params: Vec<SqlValue>, _max_bytes: u32) -> Result<Packed> {
        Err(Error::new(ErrorKind::Unsupported, "rows are copied out of a table outside of transactions only"))
    }

    fn copy_in(&self, table: &str, columns: &[&str], data: &[u8]) -> Result<u64> {
        self.0.copy_in(table, columns, data)
    }
}

/// Asks for few rows and gives them one by one. What is asked for is never cut off.
pub(crate) fn list(
    database: &dyn Database,
    text: &str,
    params: Vec<SqlValue>,
) -> Result<Vec<std::vec::IntoIter<SqlValue>>> {
    let rows = database.query(text, params, REPLY_BYTES_MAX)?;
    if rows.more {
        return Err(Error::new(ErrorKind::LimitExceeded, "the database has too many tables or columns to list"));
    }
    let width = rows.columns.len().max(1);
    let mut cells = rows.cells.into_iter();
    let count = cells.len() / width;
    Ok((0..count).map(|_| cells.by_ref().take(width).collect::<Vec<_>>().into_iter()).collect())
}

/// A cell that should be a text; empty for anything else.
pub(crate) fn text(cell: Option<SqlValue>) -> String {
    match cell {
        Some(SqlValue::Text(text)) => text,
        _ => String::new(),
    }
}

/// Whether a cell is neither NULL nor false nor 0.
pub(crate) fn is_true(cell: Option<SqlValue>) -> bool {
    !matches!(cell, None | Some(SqlValue::Null | SqlValue::Boolean(false) | SqlValue::Integer(0)))
}

/// The number that a statement answers with.
pub(crate) fn integer(cell: Option<&SqlValue>) -> Result<u64> {
    match cell {
        Some(SqlValue::Integer(value)) => Ok(u64::try_from(*value).unwrap_or(0)),
        _ => Err(Error::new(ErrorKind::Internal, "the database did not answer with a number")),
    }
}

/// A name as SQL text.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL text, for what cannot be a parameter. Neither dialect knows an escape in it beside the doubled quote.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A statement in the making: parameters are numbered as the dialect wants them.
pub(crate) struct Statement {
    pub(crate) text: String,
    pub(crate) params: Vec<SqlValue>,
    dialect: Dialect,
}

impl Statement {
    pub(crate) fn new(dialect: Dialect, text: impl Into<String>) -> Statement {
        Statement { text: text.into(), params: Vec::new(), dialect }
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Statement {
        self.text.push_str(text);
        self
    }

    pub(crate) fn param(&mut self, value: SqlValue) -> &mut Statement {
        self.params.push(value);
        push_placeholder(&mut self.text, self.dialect, self.params.len());
        self
    }

    /// `(?, ?)`
    pub(crate) fn list(&mut self, values: impl IntoIterator<Item = SqlValue>) -> &mut Statement {
        for (i, value) in values.into_iter().enumerate() {
            self.text(if i == 0 { "(" } else { ", " }).param(value);
        }
        self.text(")")
    }

    pub(crate) fn run(self, database: &dyn Database, max_bytes: u32) -> Result<Rows> {
        database.query(&self.text, self.params, max_bytes)
    }
}

pub(crate) fn push_placeholder(text: &mut String, dialect: Dialect, number: usize) {
    match dialect {
        // Without a number: SQLite looks numbered ones up one by one, which for thousands takes longer than the rest.
        Dialect::Sqlite => text.push('?'),
        Dialect::Postgres => text.push_str(&format!("${number}")),
    }
}
