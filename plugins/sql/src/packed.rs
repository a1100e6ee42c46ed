//! Many rows of SQLite in one cell. A bulk read pays for each row that crosses from the database, and for each cell of it;
//! as one JSON text that SQLite makes and [`unpack`] reads, they cost half. A server sends rows faster than it makes such a
//! text of them, so PostgreSQL is asked for rows.
//!
//! The text holds a list a row. SQLite writes a double there with 15 digits, which are two too few: where a column can
//! hold one, it comes as a list of one text with 17.

use larder_guest::SqlValue;
use larder_model::{Error, FieldType, Result};
use serde_json::Value;

use crate::{
    database::quote,
    schema::{EXACT, EXTRA, Table},
    types::Kind,
};

/// The rows of `FROM` and what follows, as one cell. No row at all is an empty list.
pub(crate) fn select(table: &Table, rest: &str) -> String {
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
        for cell in row {
            cells.push(match cell {
                Value::Null => SqlValue::Null,
                Value::String(text) => SqlValue::Text(text),
                Value::Number(number) => number.as_i64().map(SqlValue::Integer).ok_or_else(broken)?,
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
