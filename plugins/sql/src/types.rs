//! What a column of each type is called, what it holds unchanged, and what it holds in place of a value that it would
//! change. One file a dialect, because their types have little in common: SQLite keeps nearly any value in any column,
//! PostgreSQL refuses what is not of the column's type.
//!
//! Reading and writing cannot disagree about what a column keeps: [`keep`] reads back each cell that it makes.

mod postgres;
mod sqlite;

use std::borrow::Cow;

use larder_guest::{Dialect, SqlValue};
use larder_model::{FieldType, json, json::Member, number};
use serde_json::{Number, Value};

pub(crate) use postgres::{after, has_nul, timestamp};
pub(crate) use sqlite::looks_numeric;

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Key,
    Field(FieldType),
}

/// A column for one member.
#[derive(Debug)]
pub(crate) struct Column {
    /// Of the member, and of the column.
    pub(crate) name: String,
    /// What stands before the value in the text of an entity.
    pub(crate) member: String,
    pub(crate) kind: Kind,
    /// In characters.
    pub(crate) max_length: Option<u32>,
    /// The longest text that indexes of the column take, in bytes.
    pub(crate) indexed_bytes_max: Option<usize>,
    /// Holds what 64 bits hold.
    pub(crate) is_wide: bool,
    pub(crate) not_null: bool,
}

impl Column {
    /// The type, as it stands in the DDL and as the catalog compares it.
    pub(crate) fn sql_type(&self, dialect: Dialect) -> String {
        let ty = match self.kind {
            Kind::Key => FieldType::Text,
            Kind::Field(ty) => ty,
        };
        match (ty, self.max_length) {
            (FieldType::Text, Some(length)) if dialect == Dialect::Sqlite || length <= postgres::LENGTH_MAX => {
                format!("VARCHAR({length})")
            }
            (FieldType::Text | FieldType::Json, _) => "TEXT".to_owned(),
            (FieldType::Integer, _) if self.is_wide => "BIGINT".to_owned(),
            (FieldType::Integer, _) => "INTEGER".to_owned(),
            (FieldType::Number, _) => "DOUBLE PRECISION".to_owned(),
            (FieldType::Boolean, _) => "BOOLEAN".to_owned(),
            (FieldType::Timestamp, _) => "TIMESTAMP".to_owned(),
        }
    }

    /// Whether the column is compared as text.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Key | Kind::Field(FieldType::Text))
    }
}

/// What the DDL says behind the type of a column that holds text: by code point, as the contract compares.
pub(crate) fn collation(dialect: Dialect) -> &'static str {
    match dialect {
        // By bytes, unless somebody says otherwise.
        Dialect::Sqlite => "",
        Dialect::Postgres => " COLLATE \"C\"",
    }
}

/// The type of the column for the members that no column holds.
pub(crate) fn extra_type(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite => "TEXT",
        // Not `jsonb`, which writes numbers anew.
        Dialect::Postgres => "JSON",
    }
}

/// The column in a list of what is selected, as [`fetched`] takes it.
pub(crate) fn selected(dialect: Dialect, name: &str, kind: Option<Kind>) -> String {
    match (dialect, kind) {
        (Dialect::Postgres, Some(Kind::Field(FieldType::Timestamp))) => format!("{name}::text"),
        _ => name.to_owned(),
    }
}

/// What follows the placeholder of a value of this column.
pub(crate) fn cast(dialect: Dialect, kind: Option<Kind>) -> &'static str {
    match (dialect, kind) {
        (Dialect::Postgres, Some(Kind::Field(FieldType::Timestamp))) => "::text::timestamp",
        _ => "",
    }
}

/// What follows the placeholder of a value that the column is compared with. It may be of any size, where the column's own
/// type is a smaller one.
pub(crate) fn compared_cast(dialect: Dialect, kind: Kind) -> &'static str {
    match (dialect, kind) {
        (Dialect::Postgres, Kind::Field(FieldType::Integer)) => "::bigint",
        (dialect, kind) => cast(dialect, Some(kind)),
    }
}

/// A cell that is to be sent: a text may be the entity's own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell<'a> {
    Text(Cow<'a, str>),
    Other(SqlValue),
}

impl From<Cell<'_>> for SqlValue {
    fn from(cell: Cell<'_>) -> SqlValue {
        match cell {
            Cell::Text(text) => SqlValue::Text(text.into_owned()),
            Cell::Other(value) => value,
        }
    }
}

/// What a cell makes of a value.
pub(crate) struct Kept<'a> {
    pub(crate) cell: Cell<'a>,
    /// The value, where the cell does not give it back.
    pub(crate) lost: Option<Value>,
}

/// The value as a cell of the column. It is no `null`, which is NULL in no column.
pub(crate) fn keep<'a>(dialect: Dialect, column: &Column, value: Member<'a>) -> Kept<'a> {
    let value = match value {
        Member::Text(text) => {
            let keeps = match dialect {
                Dialect::Sqlite => sqlite::keeps_text(column.kind, &text),
                Dialect::Postgres => postgres::keeps_text(column, &text),
            };
            if keeps {
                return Kept { cell: Cell::Text(text), lost: None };
            }
            Value::String(text.into_owned())
        }
        Member::Other(value) => value,
    };
    if let (Dialect::Sqlite, Some(integer)) = (dialect, sqlite::kept_integer(column.kind, &value)) {
        return Kept { cell: Cell::Other(SqlValue::Integer(integer)), lost: None };
    }
    let cell = match dialect {
        Dialect::Sqlite => sqlite::nearest(column.kind, &value),
        Dialect::Postgres => postgres::nearest(column, &value),
    };
    let is_kept = cell != SqlValue::Null && read(column.kind, &cell).is_some_and(|read| json::equal(&read, &value));
    Kept { cell: Cell::Other(cell), lost: (!is_kept).then_some(value) }
}

/// What a cell of a reply is in the forms that [`keep`] makes.
pub(crate) fn fetched(dialect: Dialect, kind: Kind, cell: &SqlValue) -> Cow<'_, SqlValue> {
    match (dialect, kind, cell) {
        (Dialect::Postgres, Kind::Field(FieldType::Timestamp), SqlValue::Text(text)) => {
            Cow::Owned(SqlValue::Text(postgres::fetched_timestamp(text)))
        }
        _ => Cow::Borrowed(cell),
    }
}

/// What a cell means in such a column; none for what is no JSON.
pub(crate) fn read(kind: Kind, cell: &SqlValue) -> Option<Value> {
    match (kind, cell) {
        (Kind::Field(FieldType::Boolean), SqlValue::Integer(value @ (0 | 1))) => Some(Value::Bool(*value == 1)),
        // Somebody may have put any text there by hand.
        (Kind::Field(FieldType::Json), SqlValue::Text(text)) => {
            Some(json::parse(text.as_bytes()).unwrap_or_else(|_| Value::String(text.clone())))
        }
        (_, cell) => read_plain(cell),
    }
}

/// What a cell is, whatever its column.
pub(crate) fn read_plain(cell: &SqlValue) -> Option<Value> {
    match cell {
        SqlValue::Null => Some(Value::Null),
        SqlValue::Boolean(value) => Some(Value::Bool(*value)),
        SqlValue::Integer(value) => Some(Value::from(*value)),
        SqlValue::Number(value) if value.is_finite() => Some(number_value(double_text(*value))),
        SqlValue::Text(text) => Some(Value::String(text.clone())),
        SqlValue::Json(text) => json::parse(text.as_bytes()).ok(),
        SqlValue::Decimal(text) if number::is_valid(text) => Some(number_value(text.clone())),
        SqlValue::Number(_) | SqlValue::Blob(_) | SqlValue::Decimal(_) => None,
    }
}

fn number_value(text: String) -> Value {
    Value::Number(Number::from_string_unchecked(text))
}

/// The cell that such a column has for a value that [`read`] gave.
pub(crate) fn unread(dialect: Dialect, kind: Kind, value: &Value) -> SqlValue {
    match (value, dialect) {
        (Value::Null, _) => SqlValue::Null,
        (Value::Bool(value), Dialect::Sqlite) => SqlValue::Integer((*value).into()),
        (Value::Bool(value), Dialect::Postgres) => SqlValue::Boolean(*value),
        (Value::Number(number), _) => match number.as_str().parse() {
            Ok(integer) if kind != Kind::Field(FieldType::Number) => SqlValue::Integer(integer),
            _ => SqlValue::Number(nearest_double(number.as_str())),
        },
        (Value::String(text), _) => SqlValue::Text(text.clone()),
        (value, _) => SqlValue::Text(value.to_string()),
    }
}

/// The integer that a number is, however it is spelt.
pub(crate) fn integer(text: &str) -> Option<i64> {
    let canonical = number::canonical(text);
    match canonical.split_once('e') {
        None => canonical.parse().ok(),
        Some((digits, exponent)) => {
            let zeros = exponent.parse::<u32>().ok()?;
            digits.parse::<i64>().ok()?.checked_mul(10_i64.checked_pow(zeros)?)
        }
    }
}

/// The nearest double that is finite. It has no negative zero: SQLite does not keep that.
pub(crate) fn nearest_double(text: &str) -> f64 {
    let double: f64 = text.parse().unwrap_or(0.0);
    double.clamp(f64::MIN, f64::MAX) + 0.0
}

/// A double as JSON: the shortest text that is read back as it, never spelt as an integer.
pub(crate) fn double_text(double: f64) -> String {
    format!("{double:?}")
}
