//! An entity as an item and back, without losing anything.
//!
//! Each member is an attribute of the service's own types, so that people and other programs can read and change it. What
//! those types cannot hold stands a second time, as JSON, in one more attribute, [`EXACT`]; the member's own attribute is
//! then a stand-in: a rounded number, a map without the member whose name is empty, text in place of what is nested too
//! deeply. As long as the stand-in is what would be derived from the exact value, that value counts. Where it is not,
//! somebody changed the attribute by hand, and the change counts.
//!
//! The attributes of an index's key have to be there and to be texts, or the index would not have the item. Where the
//! member is absent, or is something else, a *sentinel* stands in: a text that begins with U+0000.

use base64::{Engine, engine::general_purpose::STANDARD};
use larder_guest::{Attribute, Item};
use larder_model::{
    Entity, Error, Result, entity, json, json::MemberRef, json::Object, json::quoted, number as exact_number,
};
use serde_json::{Map, Number, Value};

use crate::{number, size, table::Table};

/// The attribute beside the members: `{"format":1,"members":{…},"absent":[…]}`.
pub(crate) const EXACT: &str = "larder_exact";

/// Of what is written in [`EXACT`].
const FORMAT: u64 = 1;

/// What a sentinel begins with. It sorts before nearly every text.
const SENTINEL: char = '\0';

/// How deep an attribute may be nested. The service takes 32 levels and does not say whether the item is one of them.
const LEVELS_MAX: usize = 31;

/// The longest name of an attribute.
const NAME_BYTES_MAX: usize = 255;

/// A text of at least so many bytes may have been cut to fit the key of an index, whichever that was.
const CUT_BYTES_MIN: usize = 1021;

/// An item, ready to be sent.
pub(crate) struct Encoded {
    pub(crate) item: Item,
    /// As the service counts.
    pub(crate) bytes: usize,
}

/// Whether a member of this name at the top level can be an attribute.
pub(crate) fn is_attribute(name: &str) -> bool {
    is_nested_name(name) && !name.starts_with(EXACT)
}

/// Whether a member of this name can be one of a map.
pub(crate) fn is_nested_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX
}

/// How deep a path may lead.
pub(crate) fn is_reachable(levels: usize) -> bool {
    levels <= LEVELS_MAX
}

/// The item of an entity.
pub(crate) fn encode(table: &Table, members: &impl Object) -> Encoded {
    let entries = members.entries();
    let mut encoded = Encoded { item: Vec::with_capacity(entries.len() + 1), bytes: 0 };
    let mut add = |name: &str, derived: Derived| {
        encoded.bytes += name.len() + derived.bytes;
        encoded.item.push((name.to_owned(), derived.attribute));
    };
    let mut exact = Map::new();
    for (name, value) in entries {
        if !is_attribute(name) {
            exact.insert(name.to_owned(), value.to_value());
            continue;
        }
        let derived = match table.keys.get(name) {
            Some(bytes_max) => derive_key(value, *bytes_max),
            None => derive_member(value),
        };
        if !derived.is_exact {
            exact.insert(name.to_owned(), value.to_value());
        }
        add(name, derived);
    }
    let mut absent = Vec::new();
    for name in table.keys.keys().filter(|name| members.get(name).is_none()) {
        add(name, Derived::text(SENTINEL, true));
        absent.push(Value::from(name.as_str()));
    }
    if !exact.is_empty() || !absent.is_empty() {
        let mut document = Map::new();
        document.insert("format".to_owned(), FORMAT.into());
        if !exact.is_empty() {
            document.insert("members".to_owned(), Value::Object(exact));
        }
        if !absent.is_empty() {
            document.insert("absent".to_owned(), Value::Array(absent));
        }
        add(EXACT, Derived::text(Value::Object(document), true));
    }
    encoded
}

/// The members of the entity that an item holds, by name.
pub(crate) fn decode(table: &Table, item: &Item) -> Result<Map<String, Value>> {
    let corrupt = |what: &str| {
        let id = id_of(table, item).unwrap_or_default();
        Error::corrupt(format!("{} {}: {what}", table.collection.name, quoted(id)))
    };
    let exact = match item.iter().find(|(name, _)| name == EXACT) {
        None => None,
        Some((_, Attribute::Text(text))) => {
            let document = json::parse_wrapping(text.as_bytes(), 1)
                .map_err(|error| corrupt(&format!("the attribute `{EXACT}` cannot be read: {error}")))?;
            if document.get("format").and_then(Value::as_u64) != Some(FORMAT) {
                return Err(corrupt(&format!(
                    "the attribute `{EXACT}` is of a format that this version does not know: use a newer one"
                )));
            }
            Some(document)
        }
        Some(_) => return Err(corrupt(&format!("the attribute `{EXACT}` is no text"))),
    };
    let exact_members = exact.as_ref().and_then(|exact| exact.get("members")).and_then(Value::as_object);
    let absent = exact.as_ref().and_then(|exact| exact.get("absent")).and_then(Value::as_array);
    let is_absent = |name: &str| absent.is_some_and(|absent| absent.iter().any(|it| it == name));

    let mut members = Map::new();
    for (name, attribute) in item.iter().filter(|(name, _)| name != EXACT) {
        if matches!(attribute, Attribute::Text(text) if text.chars().eq([SENTINEL])) && is_absent(name) {
            continue;
        }
        let exact = exact_members.and_then(|members| members.get(name));
        let value = match exact {
            Some(exact) if is_sentinel_of(attribute, exact) => exact.clone(),
            Some(exact) => {
                let (found, derived) = (read(attribute), read(&derive_member(exact.into()).attribute));
                match (found, derived) {
                    (Ok(found), Ok(derived)) if json::equal(&found, &derived) => exact.clone(),
                    (found, _) => found.map_err(|what| corrupt(&format!("the attribute {}: {what}", quoted(name))))?,
                }
            }
            None => read(attribute).map_err(|what| corrupt(&format!("the attribute {}: {what}", quoted(name))))?,
        };
        members.insert(name.clone(), value);
    }
    for (name, value) in exact_members.into_iter().flatten().filter(|(name, _)| !is_attribute(name)) {
        members.insert(name.clone(), value.clone());
    }
    members.sort_keys();
    Ok(members)
}

/// Of the members that an item holds those that a write looks at: the stamps. The others are looked at as [`decode`] does,
/// so that nothing is written over that cannot be read.
pub(crate) fn decode_stamps(table: &Table, item: &Item) -> Result<Map<String, Value>> {
    let stamps = &table.collection.stamps;
    let is_stamp = |name: &str| {
        name == stamps.version || [&stamps.created, &stamps.updated].into_iter().flatten().any(|stamp| stamp == name)
    };
    let mut members = Map::new();
    for (name, attribute) in item {
        let is_scalar = matches!(attribute, Attribute::Text(_) | Attribute::Boolean(_) | Attribute::Null);
        if name == EXACT {
            return decode(table, item);
        }
        if is_scalar && !is_stamp(name) {
            continue;
        }
        match read(attribute) {
            Ok(value) if is_stamp(name) => members.insert(name.clone(), value),
            Ok(_) => None,
            Err(_) => return decode(table, item),
        };
    }
    Ok(members)
}

/// The entity that an item holds.
pub(crate) fn entity_of(table: &Table, item: &Item) -> Result<Entity> {
    match plain(table, item) {
        Some(entity) => Ok(entity),
        None => Ok(entity(table, item)?.0),
    }
}

/// The same of an item whose attributes say all and are scalars in the order of their names, as most are.
fn plain(table: &Table, item: &Item) -> Option<Entity> {
    if !item.is_sorted_by(|(a, _), (b, _)| a < b) {
        return None;
    }
    let mut body = Vec::with_capacity(item.iter().map(|(name, _)| name.len() + 48).sum());
    let mut version = Map::new();
    for (i, (name, attribute)) in item.iter().enumerate() {
        body.push(if i == 0 { b'{' } else { b',' });
        serde_json::to_writer(&mut body, name).ok()?;
        body.push(b':');
        match attribute {
            _ if name == EXACT => return None,
            Attribute::Text(text) => serde_json::to_writer(&mut body, text).ok()?,
            Attribute::Number(text) => body.extend_from_slice(number::read(text)?.as_bytes()),
            Attribute::Boolean(value) => body.extend_from_slice(if *value { b"true" } else { b"false" }),
            Attribute::Null => body.extend_from_slice(b"null"),
            Attribute::Binary(_) | Attribute::Document(_) => return None,
        }
        if *name == table.collection.stamps.version {
            version.insert(name.clone(), read(attribute).ok()?);
        }
    }
    body.push(b'}');
    let id = id_of(table, item)?.to_owned();
    Some(Entity { id, version: entity::version_of(&table.collection, &version), body })
}

/// The entity that an item holds, with its members.
pub(crate) fn entity(table: &Table, item: &Item) -> Result<(Entity, Map<String, Value>)> {
    let members = decode(table, item)?;
    let id = id_of(table, item).unwrap_or_default().to_owned();
    let entity = Entity { id, version: entity::version_of(&table.collection, &members), body: json::to_vec(&members) };
    Ok((entity, members))
}

/// The id under which an item stands.
pub(crate) fn id_of<'a>(table: &Table, item: &'a Item) -> Option<&'a str> {
    text_of(item, &table.collection.key)
}

/// An attribute that is a text.
pub(crate) fn text_of<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.iter().find(|(found, _)| found == name).and_then(|(_, attribute)| match attribute {
        Attribute::Text(text) => Some(text.as_str()),
        _ => None,
    })
}

/// What stands for a member.
struct Derived {
    attribute: Attribute,
    /// As the service counts, without the name.
    bytes: usize,
    /// Whether it says all.
    is_exact: bool,
}

impl Derived {
    fn new(attribute: Attribute, is_exact: bool) -> Derived {
        Derived { bytes: size::of_scalar(&attribute), attribute, is_exact }
    }

    fn text(text: impl ToString, is_exact: bool) -> Derived {
        Derived::new(Attribute::Text(text.to_string()), is_exact)
    }
}

/// A member that is in the key of no index.
fn derive_member(value: MemberRef<'_>) -> Derived {
    let value = match value {
        MemberRef::Text(text) => return Derived::text(text, true),
        MemberRef::Other(value) => value,
    };
    match value {
        Value::Null => Derived::new(Attribute::Null, true),
        Value::Bool(value) => Derived::new(Attribute::Boolean(*value), true),
        Value::String(text) => Derived::text(text, true),
        Value::Number(number) => match derive_number(number.as_str()) {
            ("N", spelt, is_exact) => Derived::new(Attribute::Number(spelt), is_exact),
            (_, text, is_exact) => Derived::text(text, is_exact),
        },
        Value::Array(_) | Value::Object(_) => {
            let (typed, is_exact) = derive(value, 1);
            Derived { bytes: size::of_value(&typed), attribute: Attribute::Document(typed.to_string()), is_exact }
        }
    }
}

fn typed(kind: &str, value: impl Into<Value>) -> Value {
    let mut typed = Map::new();
    typed.insert(kind.to_owned(), value.into());
    Value::Object(typed)
}

/// The value in the service's notation, inside of `level` containers where it is one itself, and whether that says all.
fn derive(value: &Value, level: usize) -> (Value, bool) {
    match value {
        Value::Null => (typed("NULL", true), true),
        Value::Bool(value) => (typed("BOOL", *value), true),
        Value::String(text) => (typed("S", text.as_str()), true),
        Value::Number(number) => {
            let (kind, text, is_exact) = derive_number(number.as_str());
            (typed(kind, text), is_exact)
        }
        Value::Array(_) | Value::Object(_) if level > LEVELS_MAX => (typed("S", value.to_string()), false),
        Value::Array(elements) => {
            let (elements, exact): (Vec<Value>, Vec<bool>) =
                elements.iter().map(|element| derive(element, level + 1)).unzip();
            (typed("L", elements), exact.into_iter().all(|exact| exact))
        }
        Value::Object(members) => {
            let mut derived = Map::new();
            let mut all_exact = true;
            for (name, value) in members {
                if !is_nested_name(name) {
                    all_exact = false;
                    continue;
                }
                let (value, is_exact) = derive(value, level + 1);
                all_exact &= is_exact;
                derived.insert(name.clone(), value);
            }
            (typed("M", derived), all_exact)
        }
    }
}

/// The type of the service, how it stands there, and whether that says all.
fn derive_number(text: &str) -> (&'static str, String, bool) {
    match number::exactly(text) {
        Some(spelt) => {
            let is_exact = exact_number::canonical(&spelt) == exact_number::canonical(text);
            ("N", spelt, is_exact)
        }
        None => match number::nearly(text) {
            Some(spelt) => ("N", spelt, false),
            None => ("S", text.to_owned(), false),
        },
    }
}

/// A member that is in the key of an index.
fn derive_key(value: MemberRef<'_>, bytes_max: usize) -> Derived {
    match value {
        MemberRef::Text(text) if !text.is_empty() => {
            let cut = cut(text, bytes_max);
            Derived::text(cut, cut.len() == text.len())
        }
        other => Derived::text(cut(&sentinel(&other.to_value()), bytes_max), false),
    }
}

/// Says in a console what it stands for.
fn sentinel(value: &Value) -> String {
    format!("{SENTINEL}{value}")
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Whether the attribute stands for the value in the key of an index: of today's configuration or of an earlier one.
fn is_sentinel_of(attribute: &Attribute, value: &Value) -> bool {
    let Attribute::Text(found) = attribute else { return false };
    let is_cut_of =
        |whole: &str| whole.starts_with(found.as_str()) && (found.len() == whole.len() || found.len() >= CUT_BYTES_MIN);
    match value {
        Value::String(text) if !text.is_empty() => is_cut_of(text),
        other => found.starts_with(SENTINEL) && is_cut_of(&sentinel(other)),
    }
}

type Read<T> = std::result::Result<T, String>;

/// The JSON value of an attribute, whoever wrote it.
fn read(attribute: &Attribute) -> Read<Value> {
    match attribute {
        Attribute::Text(text) => Ok(Value::from(text.as_str())),
        Attribute::Number(text) => read_number(text),
        Attribute::Boolean(value) => Ok(Value::Bool(*value)),
        Attribute::Null => Ok(Value::Null),
        Attribute::Binary(bytes) => Ok(Value::from(STANDARD.encode(bytes))),
        Attribute::Document(text) => {
            // Each level of a value is two in this notation.
            let document = json::parse_wrapping(text.as_bytes(), json::DEPTH_MAX).map_err(|error| error.message)?;
            untyped(&document)
        }
    }
}

fn read_number(text: &str) -> Read<Value> {
    let spelt = number::read(text).ok_or_else(|| format!("{} is no number", quoted(text)))?;
    Ok(Value::Number(Number::from_string_unchecked(spelt)))
}

/// The JSON value of a value in the service's notation.
fn untyped(typed: &Map<String, Value>) -> Read<Value> {
    let unknown = || Err("its value is of a type that is not known".to_owned());
    let inner = |value: &Value| value.as_object().map_or_else(unknown, untyped);
    let texts =
        |elements: &[Value]| -> Vec<String> { elements.iter().filter_map(Value::as_str).map(str::to_owned).collect() };
    let mut members = typed.iter();
    let (Some((kind, value)), None) = (members.next(), members.next()) else { return unknown() };
    Ok(match (kind.as_str(), value) {
        ("S", Value::String(text)) | ("B", Value::String(text)) => Value::from(text.as_str()),
        ("N", Value::String(text)) => read_number(text)?,
        ("BOOL", Value::Bool(value)) => Value::Bool(*value),
        ("NULL", _) => Value::Null,
        ("L", Value::Array(elements)) => Value::Array(elements.iter().map(inner).collect::<Read<_>>()?),
        ("M", Value::Object(members)) => {
            let members = members.iter().map(|(name, value)| Ok((name.clone(), inner(value)?)));
            let mut members = members.collect::<Read<Map<_, _>>>()?;
            members.sort_keys();
            Value::Object(members)
        }
        // A set has no order: whoever reads it twice gets the same.
        ("SS" | "BS", Value::Array(elements)) => {
            let mut texts = texts(elements);
            texts.sort_unstable();
            Value::from(texts)
        }
        ("NS", Value::Array(elements)) => {
            let mut numbers = texts(elements);
            numbers.sort_unstable_by(|a, b| exact_number::compare(a, b));
            Value::Array(numbers.iter().map(|text| read_number(text)).collect::<Read<_>>()?)
        }
        _ => return unknown(),
    })
}
