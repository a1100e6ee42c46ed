//! Rows in the form in which a database takes many of them. PostgreSQL has the text form of COPY: a line a row, tabs between
//! cells, `\N` for NULL. For SQLite the host takes cells that say what they are, as `wit/sql.wit` tells.

use std::io::Write;

use larder_guest::{Dialect, SqlValue};

use crate::types::Cell;

/// Appends one row.
pub(crate) fn row(dialect: Dialect, cells: &[Cell<'_>], out: &mut Vec<u8>) {
    match dialect {
        Dialect::Sqlite => cells.iter().for_each(|cell| typed(cell, out)),
        Dialect::Postgres => line(cells, out),
    }
}

fn typed(cell: &Cell<'_>, out: &mut Vec<u8>) {
    let mut fixed = |kind: u8, bytes: [u8; 8]| {
        out.push(kind);
        out.extend_from_slice(&bytes);
    };
    match cell {
        Cell::Other(SqlValue::Integer(value)) => fixed(b'i', value.to_le_bytes()),
        Cell::Other(SqlValue::Boolean(value)) => fixed(b'i', i64::from(*value).to_le_bytes()),
        Cell::Other(SqlValue::Number(value)) => fixed(b'f', value.to_le_bytes()),
        Cell::Other(SqlValue::Null) => out.push(b'n'),
        Cell::Other(SqlValue::Blob(bytes)) => sized(b'b', bytes, out),
        Cell::Other(SqlValue::Text(text) | SqlValue::Json(text) | SqlValue::Decimal(text)) => {
            sized(b't', text.as_bytes(), out);
        }
        Cell::Text(text) => sized(b't', text.as_bytes(), out),
    }
}

fn sized(kind: u8, bytes: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(bytes.len()).expect("an entity has fewer bytes");
    out.push(kind);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn line(cells: &[Cell<'_>], out: &mut Vec<u8>) {
    for (i, cell) in cells.iter().enumerate() {
        if i > 0 {
            out.push(b'\t');
        }
        let value = match cell {
            Cell::Text(text) => {
                escape(text.as_bytes(), out);
                continue;
            }
            Cell::Other(value) => value,
        };
        let written = match value {
            SqlValue::Null => write!(out, "\\N"),
            SqlValue::Boolean(value) => write!(out, "{}", if *value { 't' } else { 'f' }),
            SqlValue::Integer(value) => write!(out, "{value}"),
            // The shortest text that the server reads as this number.
            SqlValue::Number(value) => write!(out, "{value:?}"),
            SqlValue::Text(text) | SqlValue::Json(text) | SqlValue::Decimal(text) => {
                escape(text.as_bytes(), out);
                Ok(())
            }
            // A column that we make holds none.
            SqlValue::Blob(bytes) => {
                out.extend_from_slice(b"\\\\x");
                bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
            }
        };
        written.expect("a vector cannot fail");
    }
    out.push(b'\n');
}

fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r')) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\t' => b"\\t",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            _ => b"\\\\",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_whatever_is_in_it() {
        let cells = [
            SqlValue::Text("a\tb\nc\rd\\N\\.é".to_owned()),
            SqlValue::Null,
            SqlValue::Text("\\N".to_owned()),
            SqlValue::Boolean(true),
            SqlValue::Integer(-5),
            SqlValue::Number(1e300),
            SqlValue::Text(String::new()),
        ];
        let mut out = Vec::new();
        line(&cells.map(Cell::Other), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "a\\tb\\nc\\rd\\\\N\\\\.é\t\\N\t\\\\N\tt\t-5\t1e300\t\n");
    }
}
