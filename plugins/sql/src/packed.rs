//! Many rows of SQLite in one piece of memory, as `copy-out` of the capability gives them. A bulk read pays for each row that
//! crosses from the database, and for each cell of it; in one piece they cost a fraction. A server sends rows one by one in
//! any case, so PostgreSQL is asked for rows.

use larder_guest::SqlValue;
use larder_model::{Entity, Error, ErrorKind, FieldType, Result, json};

use crate::{row, schema::Table, types::Kind};

/// The entities of the rows.
///
/// # Errors
/// Those of [`row::entity`]; `internal` where the rows are torn.
pub(crate) fn entities(table: &Table, packed: &[u8]) -> Result<Vec<Entity>> {
    let mut cells = Cells(packed);
    let mut row = Vec::with_capacity(table.width());
    let mut entities = Vec::new();
    let mut body_bytes = 256;
    while !cells.0.is_empty() {
        row.clear();
        for _ in 0..table.width() {
            row.push(
                cells.next().ok_or_else(|| Error::new(ErrorKind::Internal, "the rows that were copied are torn"))?,
            );
        }
        let entity = match plain(table, &row, body_bytes) {
            Some(entity) => entity,
            None => row::entity(table, &row.drain(..).map(SqlValue::from).collect::<Vec<_>>())?,
        };
        // Most are about as large as the one before.
        body_bytes = entity.body.len() + 16;
        entities.push(entity);
    }
    Ok(entities)
}

/// The entity of a row, written without its cells being made, where its columns say all and hold what JSON has a word for.
fn plain(table: &Table, row: &[Cell<'_>], body_bytes: usize) -> Option<Entity> {
    let [columns @ .., Cell::Null, Cell::Null] = row else { return None };
    let Some(Cell::Text(id)) = columns.first() else { return None };
    let needs_cell = |kind: Kind, cell: &Cell<'_>| {
        matches!(
            (kind, cell),
            (Kind::Field(FieldType::Json | FieldType::Boolean), Cell::Text(_) | Cell::Integer(_))
                | (_, Cell::Number(_) | Cell::Blob(_))
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
            Cell::Number(_) | Cell::Blob(_) => return None,
            Cell::Text(text) => {
                row::begin(&mut body, &column.member);
                if !json::write_plain_text(text, &mut body) {
                    json::write_text(std::str::from_utf8(text).ok()?, &mut body);
                }
            }
            Cell::Integer(value) => {
                if table.version == Some(position) {
                    version = u64::try_from(*value).unwrap_or(0);
                }
                row::begin(&mut body, &column.member);
                serde_json::to_writer(&mut body, value).expect("a vector cannot fail");
            }
        }
    }
    body.push(b'}');
    // All texts at once.
    std::str::from_utf8(&body).ok()?;
    Some(Entity { id: std::str::from_utf8(id).ok()?.to_owned(), version, body })
}

/// One cell.
enum Cell<'a> {
    Null,
    /// As it is stored.
    Text(&'a [u8]),
    Integer(i64),
    Number(f64),
    Blob(&'a [u8]),
}

/// As it would come in a row of its own.
impl From<Cell<'_>> for SqlValue {
    fn from(cell: Cell<'_>) -> SqlValue {
        match cell {
            Cell::Null => SqlValue::Null,
            // One that is no UTF-8 was made by hand.
            Cell::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => SqlValue::Text(text.to_owned()),
                Err(_) => SqlValue::Blob(text.to_vec()),
            },
            Cell::Integer(integer) => SqlValue::Integer(integer),
            Cell::Number(number) => SqlValue::Number(number),
            Cell::Blob(bytes) => SqlValue::Blob(bytes.to_vec()),
        }
    }
}

/// The cells that are left.
struct Cells<'a>(&'a [u8]);

impl<'a> Cells<'a> {
    /// None where what is left is no cell.
    fn next(&mut self) -> Option<Cell<'a>> {
        let (kind, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(match kind {
            b'n' => Cell::Null,
            b'i' => Cell::Integer(i64::from_le_bytes(self.fixed()?)),
            b'f' => Cell::Number(f64::from_le_bytes(self.fixed()?)),
            b't' => Cell::Text(self.bytes()?),
            b'b' => Cell::Blob(self.bytes()?),
            _ => return None,
        })
    }

    fn fixed<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.fixed()?);
        let (bytes, rest) = self.0.split_at_checked(length as usize)?;
        self.0 = rest;
        Some(bytes)
    }
}
