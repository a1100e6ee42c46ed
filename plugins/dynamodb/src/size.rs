//! How large an item is, as the service counts: names and values in UTF-8, and a little for each container.

use larder_guest::Attribute;
use larder_model::{Error, Result, json::quoted};
use serde_json::Value;

use crate::{item::Encoded, number, table::Table};

/// The largest item.
pub(crate) const ITEM_BYTES_MAX: usize = 409_600;

/// The item of a smaller body fits, whatever stands in it: an element of one digit and its comma make three bytes of two, and
/// what is kept exactly stands there a second time.
pub(crate) const SMALL_BODY_BYTES: usize = ITEM_BYTES_MAX / 8;

/// What the service adds for a list or a map.
const CONTAINER_BYTES: usize = 3;

/// An attribute that is no document.
pub(crate) fn of_scalar(attribute: &Attribute) -> usize {
    match attribute {
        Attribute::Text(text) => text.len(),
        Attribute::Number(text) => of_number(text),
        _ => 1,
    }
}

fn of_number(text: &str) -> usize {
    number::digits(text).div_ceil(2) + 1
}

/// A value in the service's notation.
pub(crate) fn of_value(typed: &Value) -> usize {
    let Some((kind, value)) = typed.as_object().and_then(|typed| typed.iter().next()) else { return 0 };
    match (kind.as_str(), value) {
        ("N", Value::String(text)) => of_number(text),
        (_, Value::String(text)) => text.len(),
        (_, Value::Array(elements)) => {
            CONTAINER_BYTES + elements.iter().map(|element| 1 + of_value(element)).sum::<usize>()
        }
        (_, Value::Object(members)) => {
            CONTAINER_BYTES + members.iter().map(|(name, value)| 1 + name.len() + of_value(value)).sum::<usize>()
        }
        _ => 1,
    }
}

/// What a violation of the bound is called.
pub(crate) fn rule(table: &Table) -> String {
    format!("{}: an item has at most {ITEM_BYTES_MAX} bytes as DynamoDB counts them", table.collection.name)
}

/// Refuses an item that the service would not take.
pub(crate) fn check(table: &Table, id: &str, encoded: &Encoded) -> Result<()> {
    match encoded.bytes <= ITEM_BYTES_MAX {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{} {}: the item has {} bytes as DynamoDB counts them, and at most {ITEM_BYTES_MAX} fit",
            table.collection.name,
            quoted(id),
            encoded.bytes
        ))),
    }
}
