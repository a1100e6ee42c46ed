//! SQLite: a column's type is advice. It holds any value but a few texts that look like numbers, which it turns into
//! them, and numbers that no 64 bits hold.

use larder_guest::SqlValue;
use larder_model::FieldType;
use serde_json::Value;

use super::{Kind, integer, nearest_double};

/// Whether such a column keeps a text as it is. Those for numbers turn a text that looks like one into it.
pub(super) fn keeps_text(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::Key | Kind::Field(FieldType::Text) => true,
        Kind::Field(FieldType::Json) => false,
        Kind::Field(_) => !looks_numeric(text),
    }
}

/// The integer that such a column keeps for a value that is spelt as it would spell it.
pub(super) fn kept_integer(kind: Kind, value: &Value) -> Option<i64> {
    match (kind, value) {
        (Kind::Field(FieldType::Integer), Value::Number(number)) if !number.as_str().starts_with("-0") => {
            number.as_str().parse().ok()
        }
        _ => None,
    }
}

/// Whether a column for numbers may take the text for one; true for some that it does not.
pub(crate) fn looks_numeric(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E' | b' ' | 9..=13))
}

/// The nearest to a value that a column of this kind holds unchanged, and that is not NULL.
pub(super) fn nearest(kind: Kind, value: &Value) -> SqlValue {
    let Kind::Field(ty) = kind else { return SqlValue::Text(value.to_string()) };
    match (ty, value) {
        (FieldType::Text | FieldType::Json, _) => SqlValue::Text(value.to_string()),
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
        (_, value) => SqlValue::Text(value.to_string()),
    }
}
