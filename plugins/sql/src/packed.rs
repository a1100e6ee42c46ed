//! Many rows of SQLite in one cell. A bulk read pays for each row that crosses from the database, and for each cell of it;
//! as one JSON text that SQLite makes and [`unpack`] reads, they cost half. A server sends rows faster than it makes such a
//! text of them, so PostgreSQL is asked for rows.
//!
//! The text holds a list a row. SQLite writes a double there with 15 digits, which are two too few: where a column can
//! hold one, it comes as a list of one text with 17.

use std::fmt;

use larder_guest::SqlValue;
use larder_model::{Error, FieldType, Result};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

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
    let mut cells = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let rows = Rows { width: table.width(), cells: &mut cells };
    rows.deserialize(&mut deserializer).and_then(|()| deserializer.end()).map_err(|_| broken())?;
    Ok(cells)
}

/// Reads the list of rows.
struct Rows<'a> {
    width: usize,
    cells: &'a mut Vec<SqlValue>,
}

impl<'de> DeserializeSeed<'de> for Rows<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> std::result::Result<(), A::Error> {
        while rows.next_element_seed(Row { width: self.width, cells: self.cells })?.is_some() {}
        Ok(())
    }
}

/// Reads one row.
struct Row<'a> {
    width: usize,
    cells: &'a mut Vec<SqlValue>,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a row of {} cells", self.width)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> std::result::Result<(), A::Error> {
        let start = self.cells.len();
        while let Some(Cell(cell)) = row.next_element()? {
            self.cells.push(cell);
        }
        let len = self.cells.len() - start;
        if len == self.width { Ok(()) } else { Err(A::Error::invalid_length(len, &self)) }
    }
}

/// One cell. A number that is no integer of 64 bits is none that [`select`] asks for.
struct Cell(SqlValue);

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Cell, D::Error> {
        deserializer.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

impl<'de> Visitor<'de> for CellVisitor {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a text, an integer, or a list of a double as text")
    }

    fn visit_unit<E>(self) -> std::result::Result<Cell, E> {
        Ok(Cell(SqlValue::Null))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Cell, E> {
        Ok(Cell(SqlValue::Text(text.to_owned())))
    }

    fn visit_i64<E>(self, integer: i64) -> std::result::Result<Cell, E> {
        Ok(Cell(SqlValue::Integer(integer)))
    }

    fn visit_u64<E: serde::de::Error>(self, integer: u64) -> std::result::Result<Cell, E> {
        let integer = i64::try_from(integer).map_err(|_| E::invalid_value(Unexpected::Unsigned(integer), &self))?;
        Ok(Cell(SqlValue::Integer(integer)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut double: A) -> std::result::Result<Cell, A::Error> {
        let text: String = double.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        match (text.parse(), double.next_element::<IgnoredAny>()?) {
            (Ok(number), None) => Ok(Cell(SqlValue::Number(number))),
            _ => Err(A::Error::invalid_value(Unexpected::Str(&text), &self)),
        }
    }
}
