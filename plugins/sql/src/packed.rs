//! Many rows in one cell. A bulk read pays for each row that crosses from the database, and for each cell of it; as one
//! JSON text that the database makes and [`unpack`] reads, they cost half.
//!
//! The text holds a list a row. SQLite writes a double there with 15 digits, which are two too few: where a column can
//! hold one, it comes as a list of one text with 17. PostgreSQL writes as many as it takes.

use larder_guest::{Dialect, SqlValue};
use larder_model::{Error, FieldType, Result};
use serde_json::Value;

use crate::{
    database::quote,
    schema::{EXACT, EXTRA, Table},
    types::Kind,
};

/// The rows of `FROM` and what follows, as one cell. No row at all is an empty list.
pub(crate) fn select(table: &Table, rest: &str) -> String {
    match table.dialect {
        Dialect::Sqlite => sqlite(table, rest),
        Dialect::Postgres => postgres(table, rest),
    }
}

fn sqlite(table: &Table, rest: &str) -> String {
    let mut cells = Vec::with_capacity(table.width());
    for column in &table.columns {
        let name = quote(&column.name);
        // A column of text makes text of a number.
        let is_text = matches!(column.kind, Kind::Key | Kind::Field(FieldType::Text | FieldType::Json));
        cells.push(match is_text {
            true => name,
            false => format!("iif(typeof({name}) = 'real', json_array(format('%!.17g', {name})), {name})"),
        });
    }
    cells.extend([quote(EXTRA), quote(EXACT)]);
    format!("SELECT json_group_array(json_array({})) FROM (SELECT {}{rest})", cells.join(", "), table.select)
}

fn postgres(table: &Table, rest: &str) -> String {
    // As a text, which JSON in it would be read as JSON.
    let cells: Vec<String> = table
        .columns
        .iter()
        .map(|column| quote(&column.name))
        .chain([format!("{}::text", quote(EXTRA)), quote(EXACT)])
        .collect();
    format!(
        "SELECT coalesce(json_agg(json_build_array({})), '[]')::text FROM (SELECT {}{rest}) AS \"rows\"",
        cells.join(", "),
        table.select
    )
}

/// The cells of the rows, row by row, as they would come one by one.
pub(crate) fn unpack(table: &Table, packed: &[SqlValue]) -> Result<Vec<SqlValue>> {
    let broken =
        || Error::corrupt(format!("`{}`: the database answers with rows that cannot be read", table.collection.name));
    let [SqlValue::Text(text)] = packed else { return Err(broken()) };
    let rows: Vec<Vec<Value>> = serde_json::from_str(text).map_err(|_| broken())?;
    let mut cells = Vec::with_capacity(rows.len() * table.width());
    for row in rows {
        if row.len() != table.width() {
            return Err(broken());
        }
        for (position, cell) in row.into_iter().enumerate() {
            let is_double = table.dialect == Dialect::Postgres
                && table.columns.get(position).is_some_and(|column| column.kind == Kind::Field(FieldType::Number));
            cells.push(match cell {
                Value::Null => SqlValue::Null,
                // What is no number in JSON: NaN and the infinite ones.
                Value::String(text) if is_double => SqlValue::Number(text.parse().map_err(|_| broken())?),
                Value::String(text) => SqlValue::Text(text),
                Value::Number(number) if is_double => SqlValue::Number(number.as_str().parse().map_err(|_| broken())?),
                Value::Number(number) => number.as_i64().map(SqlValue::Integer).ok_or_else(broken)?,
                Value::Bool(value) if table.dialect == Dialect::Postgres => SqlValue::Boolean(value),
                Value::Array(double) => match double.as_slice() {
                    [Value::String(text)] => SqlValue::Number(text.parse().map_err(|_| broken())?),
                    _ => return Err(broken()),
                },
                Value::Bool(_) | Value::Object(_) => return Err(broken()),
            });
        }
    }
    Ok(cells)
}
