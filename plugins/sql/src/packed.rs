//! Many rows of SQLite in one cell. A bulk read pays for each row that crosses from the database, and for each cell of it;
//! as one JSON text that SQLite makes and [`entities`] reads, they cost half. A server sends rows faster than it makes such a
//! text of them, so PostgreSQL is asked for rows.
//!
//! The text holds a list a row. SQLite writes a double there with 15 digits, which are two too few: where a column can
//! hold one, it comes as a list of one text with 17.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use larder_guest::SqlValue;
use larder_model::{Entity, FieldType, Result};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::{
    database::quote,
    row,
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

/// The entities of the rows; none where the text cannot be read.
///
/// # Errors
/// Those of [`row::entity`].
pub(crate) fn entities(table: &Table, packed: &[SqlValue]) -> Result<Option<Vec<Entity>>> {
    let [SqlValue::Text(text)] = packed else { return Ok(None) };
    let mut entities = Ok(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read = Rows { table, entities: &mut entities }.deserialize(&mut deserializer);
    let read = read.and_then(|()| deserializer.end());
    let entities = entities?;
    Ok(read.is_ok().then_some(entities))
}

/// The entity of a row, written without its cells being made, where its columns say all and hold what JSON has a word for.
fn plain(table: &Table, row: &[Cell<'_>], body_bytes: usize) -> Option<Entity> {
    let [columns @ .., Cell::Null, Cell::Null] = row else { return None };
    let Some(Cell::Text(id)) = columns.first() else { return None };
    let needs_cell = |kind: Kind, cell: &Cell<'_>| {
        matches!(
            (kind, cell),
            (Kind::Field(FieldType::Json | FieldType::Boolean), Cell::Text(_) | Cell::Integer(_))
                | (_, Cell::Number(_))
        )
    };
    if table.columns.iter().zip(columns).any(|(column, cell)| needs_cell(column.kind, cell)) {
        return None;
    }
    let mut body = Vec::with_capacity(body_bytes);
    let mut version = 0;
    for (position, (column, cell)) in table.columns.iter().zip(columns).enumerate() {
        match cell {
            Cell::Null => {}
            Cell::Number(_) => return None,
            Cell::Text(text) => {
                row::begin(&mut body, &column.member);
                match text {
                    // Nothing in it needed an escape.
                    Cow::Borrowed(text) => {
                        body.push(b'"');
                        body.extend_from_slice(text.as_bytes());
                        body.push(b'"');
                    }
                    Cow::Owned(text) => row::write_text(&mut body, text),
                }
            }
            Cell::Integer(value) => {
                if table.version == Some(position) {
                    version = u64::try_from(*value).unwrap_or(0);
                }
                row::begin(&mut body, &column.member);
                write!(body, "{value}").expect("a vector cannot fail");
            }
        }
    }
    body.push(b'}');
    Some(Entity { id: id.clone().into_owned(), version, body })
}

/// Reads the list of rows. What is wrong with one is left in its place, and ends the reading.
struct Rows<'a> {
    table: &'a Table,
    entities: &'a mut Result<Vec<Entity>>,
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
        let Rows { table, entities } = self;
        let mut row = Vec::with_capacity(table.width());
        let mut body_bytes = 256;
        while rows.next_element_seed(Row { width: table.width(), cells: &mut row })?.is_some() {
            let entity = match plain(table, &row, body_bytes) {
                Some(entity) => Ok(entity),
                None => row::entity(table, &row.drain(..).map(SqlValue::from).collect::<Vec<_>>()),
            };
            match (entities.as_mut(), entity) {
                (Ok(entities), Ok(entity)) => {
                    // Most are about as large as the one before.
                    body_bytes = entity.body.len() + 16;
                    entities.push(entity);
                }
                (_, Err(error)) => {
                    *entities = Err(error);
                    return Err(A::Error::custom("a row is no entity"));
                }
                (Err(_), Ok(_)) => {}
            }
            row.clear();
        }
        Ok(())
    }
}

/// Reads one row.
struct Row<'a, 'de> {
    width: usize,
    cells: &'a mut Vec<Cell<'de>>,
}

impl<'de> DeserializeSeed<'de> for Row<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Row<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a row of {} cells", self.width)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> std::result::Result<(), A::Error> {
        while let Some(cell) = row.next_element()? {
            self.cells.push(cell);
        }
        let len = self.cells.len();
        if len == self.width { Ok(()) } else { Err(A::Error::invalid_length(len, &self)) }
    }
}

/// One cell. A number that is no integer of 64 bits is none that [`select`] asks for.
enum Cell<'a> {
    Null,
    Text(Cow<'a, str>),
    Integer(i64),
    Number(f64),
}

/// As it would come in a row of its own.
impl From<Cell<'_>> for SqlValue {
    fn from(cell: Cell<'_>) -> SqlValue {
        match cell {
            Cell::Null => SqlValue::Null,
            Cell::Text(text) => SqlValue::Text(text.into_owned()),
            Cell::Integer(integer) => SqlValue::Integer(integer),
            Cell::Number(number) => SqlValue::Number(number),
        }
    }
}

impl<'de> Deserialize<'de> for Cell<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Cell<'de>, D::Error> {
        deserializer.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

impl<'de> Visitor<'de> for CellVisitor {
    type Value = Cell<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a text, an integer, or a list of a double as text")
    }

    fn visit_unit<E>(self) -> std::result::Result<Cell<'de>, E> {
        Ok(Cell::Null)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Cell<'de>, E> {
        Ok(Cell::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Cell<'de>, E> {
        Ok(Cell::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_i64<E>(self, integer: i64) -> std::result::Result<Cell<'de>, E> {
        Ok(Cell::Integer(integer))
    }

    fn visit_u64<E: serde::de::Error>(self, integer: u64) -> std::result::Result<Cell<'de>, E> {
        let integer = i64::try_from(integer).map_err(|_| E::invalid_value(Unexpected::Unsigned(integer), &self))?;
        Ok(Cell::Integer(integer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut double: A) -> std::result::Result<Cell<'de>, A::Error> {
        let text: String = double.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        match (text.parse(), double.next_element::<IgnoredAny>()?) {
            (Ok(number), None) => Ok(Cell::Number(number)),
            _ => Err(A::Error::invalid_value(Unexpected::Str(&text), &self)),
        }
    }
}
