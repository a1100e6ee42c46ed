//! Items and expressions, as a plugin gives them and as the SDK takes them.

use std::collections::HashMap;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use larder_model::{Error, ErrorKind, Result, number};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Attribute, Expression, Item};

pub(super) fn item_into(item: Item) -> Result<HashMap<String, AttributeValue>> {
    let count = item.len();
    let mut attributes = HashMap::with_capacity(count);
    for (name, attribute) in item {
        attributes.insert(name, attribute_into(attribute)?);
    }
    match attributes.len() == count {
        true => Ok(attributes),
        false => Err(twice()),
    }
}

/// In the order of the names: the service has none.
pub(super) fn item_from(item: HashMap<String, AttributeValue>) -> Item {
    let mut item: Item = item.into_iter().map(|(name, value)| (name, attribute_from(value))).collect();
    item.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    item
}

fn twice() -> Error {
    Error::invalid("an item has two attributes of one name")
}

/// An item as JSON in the service's notation. Two items have the same text if and only if they have the same attributes.
pub(super) fn notation(mut item: Item) -> Result<String> {
    item.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    if item.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(twice());
    }
    let mut out = Vec::with_capacity(item.iter().map(|(name, _)| name.len() + 64).sum());
    out.push(b'{');
    for (i, (name, attribute)) in item.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(name, &mut out)?;
        let (kind, text) = match attribute {
            // As most are.
            Attribute::Text(text) => ("S", text),
            Attribute::Number(text) => ("N", text),
            other => {
                out.push(b':');
                write(&to_notation(attribute_into(other.clone())?), &mut out)?;
                continue;
            }
        };
        out.extend_from_slice(b":{\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\":");
        write(text, &mut out)?;
        out.push(b'}');
    }
    out.push(b'}');
    String::from_utf8(out).map_err(unwritten)
}

fn write(value: &(impl Serialize + ?Sized), out: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(out, value).map_err(unwritten)
}

fn unwritten(error: impl std::error::Error) -> Error {
    Error::new(ErrorKind::Internal, error.to_string())
}

fn attribute_into(attribute: Attribute) -> Result<AttributeValue> {
    Ok(match attribute {
        Attribute::Text(text) => AttributeValue::S(text),
        Attribute::Number(text) => AttributeValue::N(text),
        Attribute::Boolean(value) => AttributeValue::Bool(value),
        Attribute::Null => AttributeValue::Null(true),
        Attribute::Binary(bytes) => AttributeValue::B(Blob::new(bytes)),
        Attribute::Document(text) => {
            let value: Value = serde_json::from_str(&text).map_err(|_| Error::invalid("a document is no JSON"))?;
            from_notation(value).ok_or_else(|| Error::invalid("a document is not in DynamoDB's notation"))?
        }
    })
}

pub(super) fn attribute_from(value: AttributeValue) -> Attribute {
    match value {
        AttributeValue::S(text) => Attribute::Text(text),
        AttributeValue::N(text) => Attribute::Number(text),
        AttributeValue::Bool(value) => Attribute::Boolean(value),
        AttributeValue::Null(_) => Attribute::Null,
        AttributeValue::B(bytes) => Attribute::Binary(bytes.into_inner()),
        other => Attribute::Document(to_notation(other).to_string()),
    }
}

/// `{"S": "a"}` and the like, none where it is something else.
fn from_notation(value: Value) -> Option<AttributeValue> {
    let Value::Object(members) = value else { return None };
    let mut members = members.into_iter();
    let (tag, value) = members.next().filter(|_| members.len() == 0)?;
    let blob = |text: Value| Some(Blob::new(STANDARD.decode(text.as_str()?).ok()?));
    Some(match (tag.as_str(), value) {
        ("S", Value::String(text)) => AttributeValue::S(text),
        ("N", Value::String(text)) => AttributeValue::N(text),
        ("BOOL", Value::Bool(value)) => AttributeValue::Bool(value),
        ("NULL", Value::Bool(true)) => AttributeValue::Null(true),
        ("B", text) => AttributeValue::B(blob(text)?),
        ("L", Value::Array(elements)) => {
            AttributeValue::L(elements.into_iter().map(from_notation).collect::<Option<_>>()?)
        }
        ("M", Value::Object(members)) => {
            let members = members.into_iter().map(|(name, value)| Some((name, from_notation(value)?)));
            AttributeValue::M(members.collect::<Option<_>>()?)
        }
        ("SS", Value::Array(texts)) => AttributeValue::Ss(texts.into_iter().map(text_in).collect::<Option<_>>()?),
        ("NS", Value::Array(texts)) => AttributeValue::Ns(texts.into_iter().map(text_in).collect::<Option<_>>()?),
        ("BS", Value::Array(texts)) => AttributeValue::Bs(texts.into_iter().map(blob).collect::<Option<_>>()?),
        _ => return None,
    })
}

fn text_in(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn to_notation(value: AttributeValue) -> Value {
    let encoded = |bytes: Blob| STANDARD.encode(bytes.as_ref());
    match value {
        AttributeValue::S(text) => json!({ "S": text }),
        AttributeValue::N(text) => json!({ "N": text }),
        AttributeValue::Bool(value) => json!({ "BOOL": value }),
        AttributeValue::B(bytes) => json!({ "B": encoded(bytes) }),
        AttributeValue::L(elements) => json!({ "L": elements.into_iter().map(to_notation).collect::<Vec<_>>() }),
        AttributeValue::M(members) => {
            let mut members: Vec<_> = members.into_iter().map(|(name, value)| (name, to_notation(value))).collect();
            members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            json!({ "M": members.into_iter().collect::<Map<_, _>>() })
        }
        AttributeValue::Ss(texts) => json!({ "SS": texts }),
        AttributeValue::Ns(texts) => json!({ "NS": texts }),
        AttributeValue::Bs(blobs) => json!({ "BS": blobs.into_iter().map(encoded).collect::<Vec<_>>() }),
        // NULL, and whatever the service may have one day.
        _ => json!({ "NULL": true }),
    }
}

/// Whether two items are the same to the service, which spells numbers its own way.
pub(super) fn is_same_item(a: &HashMap<String, AttributeValue>, b: &HashMap<String, AttributeValue>) -> bool {
    a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| is_same(a, b)))
}

fn is_same(a: &AttributeValue, b: &AttributeValue) -> bool {
    match (a, b) {
        (AttributeValue::N(a), AttributeValue::N(b)) => number::compare(a, b).is_eq(),
        (AttributeValue::L(a), AttributeValue::L(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (AttributeValue::M(a), AttributeValue::M(b)) => is_same_item(a, b),
        _ => a == b,
    }
}

type Names = Option<HashMap<String, String>>;
type Values = Option<HashMap<String, AttributeValue>>;

/// What the placeholders of all these expressions stand for. The service takes no empty map.
pub(super) fn placeholders(expressions: impl IntoIterator<Item = Option<Expression>>) -> Result<(Names, Values)> {
    let (mut names, mut values) = (HashMap::new(), HashMap::new());
    for expression in expressions.into_iter().flatten() {
        names.extend(expression.names);
        values.extend(item_into(expression.values)?);
    }
    Ok(((!names.is_empty()).then_some(names), (!values.is_empty()).then_some(values)))
}
