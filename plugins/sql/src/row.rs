//! Entities as rows. A column holds a value where it gives back the same value; where it would change it, the column gets
//! the nearest that it can hold, and the value itself goes to [`EXACT`]. A column that somebody changed by hand is right
//! whatever stands beside it.
//!
//! Reading and writing cannot disagree about what a column keeps: [`cells`] reads back each cell that it makes.

use larder_guest::SqlValue;
use larder_model::{Entity, Error, FieldType, Result, entity, json, number};
use serde_json::{Map, Number, Value};

use crate::schema::{EXACT, EXTRA, Kind, Table};

/// Appends the entity's row: one cell for each column, then the members and values that none holds.
pub(crate) fn cells(table: &Table, entity: Map<String, Value>, cells: &mut Vec<SqlValue>) {
    let start = cells.len();
    cells.resize(start + table.columns.len(), SqlValue::Null);
    let (mut extra, mut exact) = (Map::new(), Map::new());
    for (name, value) in entity {
        let Some(position) = table.position(&name) else {
            extra.insert(name, value);
            continue;
        };
        // NULL is how a column says that the member is absent.
        if value.is_null() {
            extra.insert(name, value);
            continue;
        }
        let kind = table.columns[position].kind;
        cells[start + position] = match value {
            Value::String(text) if keeps_text(kind, &text) => SqlValue::Text(text),
            value => {
                let cell = nearest(kind, &value);
                let read = read(kind, &cell);
                if !read.as_ref().is_some_and(|read| json::equal(read, &value)) {
                    let column = read_plain(&cell).unwrap_or(Value::Null);
                    let entry = Map::from_iter([("value".to_owned(), value), ("column".to_owned(), column)]);
                    exact.insert(name, Value::Object(entry));
                }
                cell
            }
        };
    }
    cells.push(object(&extra));
    cells.push(object(&exact));
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

fn json_text(value: &Value) -> String {
    value.to_string()
}

/// Whether such a column keeps a text as it is. Those for numbers turn a text that looks like one into it.
fn keeps_text(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::Key | Kind::Field(FieldType::Text) => true,
        Kind::Field(FieldType::Json) => false,
        Kind::Field(_) => !looks_numeric(text),
    }
}

/// Whether a column for numbers may take the text for one; true for some that it does not.
pub(crate) fn looks_numeric(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E' | b' ' | 9..=13))
}

/// The nearest to a value that a column of this kind holds unchanged, and that is not NULL.
fn nearest(kind: Kind, value: &Value) -> SqlValue {
    let Kind::Field(ty) = kind else { return SqlValue::Text(json_text(value)) };
    match (ty, value) {
        (FieldType::Text | FieldType::Json, _) => SqlValue::Text(json_text(value)),
        (FieldType::Number, Value::Bool(value)) => SqlValue::Number(f64::from(*value)),
        (_, Value::Bool(value)) => SqlValue::Integer((*value).into()),
        (FieldType::Number, Value::Number(number)) => SqlValue::Number(nearest_double(number.as_str())),
        (_, Value::Number(number)) => match integer(number.as_str()) {
            Some(integer) => SqlValue::Integer(integer),
            None => match nearest_double(number.as_str()) {
                // A column for integers makes an integer of a double that is one.
                double if double.fract() == 0.0 && double.abs() < i64::MAX as f64 => SqlValue::Integer(double as i64),
                double => SqlValue::Number(double),
            },
        },
        // With its quotes, a text does not look like a number.
        (_, value) => SqlValue::Text(json_text(value)),
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

/// What a cell means in such a column; none for what is no JSON.
fn read(kind: Kind, cell: &SqlValue) -> Option<Value> {
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
fn read_plain(cell: &SqlValue) -> Option<Value> {
    match cell {
        SqlValue::Null => Some(Value::Null),
        SqlValue::Boolean(value) => Some(Value::Bool(*value)),
        SqlValue::Integer(value) => Some(Value::from(*value)),
        SqlValue::Number(value) if value.is_finite() => {
            Some(Value::Number(Number::from_string_unchecked(double_text(*value))))
        }
        SqlValue::Text(text) => Some(Value::String(text.clone())),
        SqlValue::Json(text) => json::parse(text.as_bytes()).ok(),
        SqlValue::Decimal(text) if number::is_valid(text) => {
            Some(Value::Number(Number::from_string_unchecked(text.clone())))
        }
        SqlValue::Number(_) | SqlValue::Blob(_) | SqlValue::Decimal(_) => None,
    }
}

/// Whether a column still holds what was recorded beside it. An integer and a double of one value are one thing to a
/// column.
fn is_recorded(cell: &SqlValue, recorded: &Value) -> bool {
    match (read_plain(cell), recorded) {
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
        SqlValue::Text(text) => json::parse_wrapping(text.as_bytes(), 1).map_err(|_| corrupt(column, "no JSON object")),
        _ => Err(corrupt(column, "no JSON object")),
    };
    let (mut extra, mut exact) = (own(EXTRA, extra)?, own(EXACT, exact)?);

    let mut body = Vec::with_capacity(256);
    let mut version = 0;
    for (position, (column, cell)) in table.columns.iter().zip(columns).enumerate() {
        let is_version = table.version == Some(position);
        let mut member = |value: &Value| {
            if is_version {
                let stamped = Map::from_iter([(column.name.clone(), value.clone())]);
                version = entity::version_of(&table.collection, &stamped);
            }
            self::member(&mut body, &column.name, value);
        };
        if *cell == SqlValue::Null {
            // `null`, or a member from before the column.
            if let Some(value) = extra.shift_remove(&column.name) {
                member(&value);
            }
            continue;
        }
        extra.shift_remove(&column.name);
        if let Some(entry) = exact.shift_remove(&column.name) {
            let (Some(value), Some(recorded)) = (entry.get("value"), entry.get("column")) else {
                return Err(corrupt(EXACT, &format!("something else than a value for `{}`", column.name)));
            };
            if is_recorded(cell, recorded) {
                member(value);
                continue;
            }
        }
        match (column.kind, cell) {
            (Kind::Field(FieldType::Json | FieldType::Boolean), _) => {
                member(&read(column.kind, cell).ok_or_else(|| corrupt(&column.name, "what is no JSON"))?);
            }
            (_, SqlValue::Text(text)) => text_member(&mut body, &column.name, text),
            (_, SqlValue::Integer(value)) => {
                if is_version {
                    version = u64::try_from(*value).unwrap_or(0);
                }
                name(&mut body, &column.name);
                body.extend_from_slice(value.to_string().as_bytes());
            }
            (_, cell) => {
                member(&read_plain(cell).ok_or_else(|| corrupt(&column.name, "what is no JSON"))?);
            }
        }
    }
    for (name, value) in &extra {
        member(&mut body, name, value);
    }
    body.push(b'}');
    Ok(Entity { id: id.clone(), version, body })
}

fn name(body: &mut Vec<u8>, name: &str) {
    body.push(if body.is_empty() { b'{' } else { b',' });
    write_text(body, name);
    body.push(b':');
}

fn member(body: &mut Vec<u8>, member: &str, value: &Value) {
    name(body, member);
    serde_json::to_writer(body, value).expect("text keys and a vector cannot fail");
}

fn text_member(body: &mut Vec<u8>, member: &str, text: &str) {
    name(body, member);
    write_text(body, text);
}

fn write_text(body: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(body, text).expect("a vector cannot fail");
}

/// An entity's members, for those who have to look at it.
pub(crate) fn members(table: &Table, stored: &Entity) -> Result<Map<String, Value>> {
    json::parse_object(&stored.body).map_err(|error| {
        Error::corrupt(format!("`{}`: the row of `{}` is no entity: {error}", table.collection.name, stored.id))
    })
}
