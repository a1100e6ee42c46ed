//! Entities as rows. A column holds a value where it gives back the same value; where it would change it, the column gets
//! the nearest that it can hold, and the value itself goes to [`EXACT`]. A column that somebody changed by hand is right
//! whatever stands beside it.

use std::io::Write as _;

use larder_guest::{Dialect, SqlValue};
use larder_model::{Entity, Error, FieldType, Result, entity, json, json::Member, json::Members, number};
use serde_json::{Map, Value};

use crate::{
    schema::{EXACT, EXTRA, Table},
    types::{self, Cell, Kind},
};

/// The entity's row: one cell for each column, then the members and values that none holds.
pub(crate) fn cells<'a>(table: &Table, entity: Members<'a>) -> Vec<Cell<'a>> {
    let mut cells = Vec::with_capacity(table.width());
    cells.extend(table.columns.iter().map(|_| Cell::Other(SqlValue::Null)));
    let (mut extra, mut exact) = (Map::new(), Map::new());
    let mut turn = 0;
    for (name, value) in entity {
        // Members often come in the order of the columns.
        let is_next = table.columns.get(turn).is_some_and(|column| json::is_same(&column.name, &name));
        let position = if is_next { Some(turn) } else { table.position(&name) };
        turn = position.map_or(turn, |position| position + 1);
        let Some(position) = position else {
            let (name, value) = (name.into_owned(), Value::from(value));
            // An error of the server for whoever looks into it there.
            if table.dialect == Dialect::Postgres && (name.contains('\0') || types::has_nul(&value)) {
                exact.insert(name, Value::Object(Map::from_iter([("value".to_owned(), value)])));
            } else {
                extra.insert(name, value);
            }
            continue;
        };
        // NULL is how a column says that the member is absent.
        if let Member::Other(Value::Null) = value {
            extra.insert(name.into_owned(), Value::Null);
            continue;
        }
        let kept = types::keep(table.dialect, &table.columns[position], value);
        if let Some(value) = kept.lost {
            let cell = SqlValue::from(kept.cell);
            let column = types::read_plain(&cell).unwrap_or(Value::Null);
            let entry = Map::from_iter([("value".to_owned(), value), ("column".to_owned(), column)]);
            exact.insert(name.into_owned(), Value::Object(entry));
            cells[position] = Cell::Other(cell);
        } else {
            cells[position] = kept.cell;
        }
    }
    cells.push(Cell::Other(object(&extra)));
    cells.push(Cell::Other(object(&exact)));
    cells
}

fn object(map: &Map<String, Value>) -> SqlValue {
    match map.is_empty() {
        true => SqlValue::Null,
        false => SqlValue::Text(utf8(json::to_vec(map))),
    }
}

fn utf8(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("JSON is written in UTF-8")
}

/// Whether a column still holds what was recorded beside it. An integer and a double of one value are one thing to a
/// column.
fn is_recorded(cell: &SqlValue, recorded: &Value) -> bool {
    match (types::read_plain(cell), recorded) {
        (Some(Value::Number(cell)), Value::Number(recorded)) => {
            number::compare(cell.as_str(), recorded.as_str()).is_eq()
        }
        (Some(cell), recorded) => cell == *recorded,
        (None, _) => false,
    }
}

/// The entity of a row, as it crosses the contract. The cells are in the order of [`Table::select`].
pub(crate) fn entity(table: &Table, row: &[SqlValue]) -> Result<Entity> {
    let [columns @ .., extra, exact] = row else {
        return Err(Error::corrupt(format!("`{}`: a row without columns", table.collection.name)));
    };
    let SqlValue::Text(id) = &columns[0] else {
        return Err(Error::corrupt(format!(
            "`{}`: there is a row whose key `{}` is not a text",
            table.collection.name, table.collection.key
        )));
    };
    let corrupt = |column: &str, problem: &str| {
        Error::corrupt(format!("`{}`: column `{column}` of `{id}` holds {problem}", table.collection.name))
    };
    let own = |column: &str, cell: &SqlValue| match cell {
        SqlValue::Null => Ok(Map::new()),
        // A value stands one level deeper in its entry than in the entity.
        SqlValue::Text(text) | SqlValue::Json(text) => {
            json::parse_wrapping(text.as_bytes(), 1).map_err(|_| corrupt(column, "no JSON object"))
        }
        _ => Err(corrupt(column, "no JSON object")),
    };
    let (mut extra, mut exact) = (own(EXTRA, extra)?, own(EXACT, exact)?);

    let mut body = Vec::with_capacity(256);
    let mut version = 0;
    for (position, (column, cell)) in table.columns.iter().zip(columns).enumerate() {
        let cell = &*types::fetched(table.dialect, column.kind, cell);
        let is_version = table.version == Some(position);
        let mut member = |value: &Value| {
            if is_version {
                let stamped = Map::from_iter([(column.name.clone(), value.clone())]);
                version = entity::version_of(&table.collection, &stamped);
            }
            self::member(&mut body, &column.member, value);
        };
        // `null`, or a member from before the column.
        let beside = taken(&mut extra, &column.name);
        if let Some(entry) = taken(&mut exact, &column.name) {
            // Without a record it is from before the column.
            let recorded = entry.get("column").unwrap_or(&Value::Null);
            let Some(value) = entry.get("value") else {
                return Err(corrupt(EXACT, &format!("something else than a value for `{}`", column.name)));
            };
            if is_recorded(cell, recorded) {
                member(value);
                continue;
            }
        }
        match (column.kind, cell) {
            (_, SqlValue::Null) => {
                if let Some(value) = beside {
                    member(&value);
                }
            }
            (Kind::Field(FieldType::Json | FieldType::Boolean), _) => {
                member(&types::read(column.kind, cell).ok_or_else(|| corrupt(&column.name, "what is no JSON"))?);
            }
            (_, SqlValue::Text(text)) => {
                begin(&mut body, &column.member);
                json::write_text(text, &mut body);
            }
            (_, SqlValue::Integer(value)) => {
                if is_version {
                    version = u64::try_from(*value).unwrap_or(0);
                }
                begin(&mut body, &column.member);
                write!(body, "{value}").expect("a vector cannot fail");
            }
            (_, cell) => {
                member(&types::read_plain(cell).ok_or_else(|| corrupt(&column.name, "what is no JSON"))?);
            }
        }
    }
    // What no column is for, unless somebody has put a member of that name to the others since.
    for (name, entry) in exact.iter().filter(|(_, entry)| entry.get("column").is_none()) {
        let Some(value) = entry.get("value") else {
            return Err(corrupt(EXACT, &format!("something else than a value for `{name}`")));
        };
        if !extra.contains_key(name) {
            member(&mut body, &self::name(name), value);
        }
    }
    for (name, value) in &extra {
        member(&mut body, &self::name(name), value);
    }
    body.push(b'}');
    Ok(Entity { id: id.clone(), version, body })
}

/// What stood under the name. Most rows have nothing beside their columns.
fn taken(map: &mut Map<String, Value>, name: &str) -> Option<Value> {
    if map.is_empty() { None } else { map.shift_remove(name) }
}

/// A member's name as it stands before its value.
pub(crate) fn name(name: &str) -> String {
    let mut text = Vec::new();
    json::write_text(name, &mut text);
    text.push(b':');
    utf8(text)
}

/// Begins a member; `name` is as [`name`] has it.
pub(crate) fn begin(body: &mut Vec<u8>, name: &str) {
    body.push(if body.is_empty() { b'{' } else { b',' });
    body.extend_from_slice(name.as_bytes());
}

fn member(body: &mut Vec<u8>, name: &str, value: &Value) {
    begin(body, name);
    serde_json::to_writer(body, value).expect("text keys and a vector cannot fail");
}

/// An entity's members, for those who have to look at it.
pub(crate) fn members(table: &Table, stored: &Entity) -> Result<Map<String, Value>> {
    json::parse_object(&stored.body).map_err(|error| {
        Error::corrupt(format!("`{}`: the row of `{}` is no entity: {error}", table.collection.name, stored.id))
    })
}
