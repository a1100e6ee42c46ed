//! Rows in the text form of PostgreSQL's COPY: a line a row, tabs between cells, `\N` for NULL.

use std::io::Write;

use larder_guest::SqlValue;

/// Appends one row.
pub(crate) fn line(cells: &[SqlValue], out: &mut Vec<u8>) {
    for (i, cell) in cells.iter().enumerate() {
        if i > 0 {
            out.push(b'\t');
        }
        let written = match cell {
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
        line(&cells, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "a\\tb\\nc\\rd\\\\N\\\\.é\t\\N\t\\\\N\tt\t-5\t1e300\t\n");
    }
}
