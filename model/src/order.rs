//! In which order a query answers: one total order over all JSON values, the same for every strategy.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use crate::{SortKey, json, number};

/// Where values of this type stand among others: absent, null, false, true, numbers, text, then arrays and objects.
pub fn rank(value: Option<&Value>) -> u8 {
    match value {
        None => 0,
        Some(Value::Null) => 1,
        Some(Value::Bool(false)) => 2,
        Some(Value::Bool(true)) => 3,
        Some(Value::Number(_)) => 4,
        Some(Value::String(_)) => 5,
        Some(Value::Array(_) | Value::Object(_)) => 6,
    }
}

/// By [`rank`]; then numbers by exact value, text by code point, arrays and objects by their canonical text.
pub fn compare_values(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => number::compare(a.as_str(), b.as_str()),
        // UTF-8 sorts as its code points do.
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (Some(a @ (Value::Array(_) | Value::Object(_))), Some(b @ (Value::Array(_) | Value::Object(_)))) => {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            json::write_canonical(a, &mut left);
            json::write_canonical(b, &mut right);
            left.cmp(&right)
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Compares two entities, each with its id. Ties fall by id, smallest first, in either direction.
pub fn compare(order_by: &[SortKey], a: (&str, &Map<String, Value>), b: (&str, &Map<String, Value>)) -> Ordering {
    let values = order_by.iter().map(|key| (key.field.get(a.1), key.field.get(b.1)));
    by_values(order_by, values).then_with(|| a.0.cmp(b.0))
}

/// As [`compare`] does, over the values alone that each entity is ordered by, one a key.
pub fn compare_keys(order_by: &[SortKey], a: (&str, &[Option<Value>]), b: (&str, &[Option<Value>])) -> Ordering {
    let values = a.1.iter().zip(b.1).map(|(a, b)| (a.as_ref(), b.as_ref()));
    by_values(order_by, values).then_with(|| a.0.cmp(b.0))
}

fn by_values<'a>(
    order_by: &[SortKey],
    values: impl Iterator<Item = (Option<&'a Value>, Option<&'a Value>)>,
) -> Ordering {
    let orders = order_by.iter().zip(values).map(|(key, (a, b))| {
        let order = compare_values(a, b);
        if key.descending { order.reverse() } else { order }
    });
    orders.into_iter().find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_all_types_have_one_order() {
        let ascending = [
            "null",
            "false",
            "true",
            "-1e400",
            "-1",
            "0",
            "0.5",
            "9007199254740992",
            "9007199254740993",
            "1e400",
            "\"\"",
            "\"A\"",
            "\"a\"",
            "\"aa\"",
            "\"é\"",
            "\"\u{fb33}\"",
            "\"\u{1f600}\"",
            "[1]",
            "[]",
            "{\"a\":1}",
            "{}",
        ];
        let mut values = vec![None];
        values.extend(ascending.map(|text| Some(json::parse(text.as_bytes()).unwrap())));
        for (i, a) in values.iter().enumerate() {
            for (j, b) in values.iter().enumerate() {
                assert_eq!(compare_values(a.as_ref(), b.as_ref()), i.cmp(&j), "{a:?} and {b:?}");
            }
        }
        for (a, b) in [("1", "1.0"), ("-0", "0"), (r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#)] {
            let (a, b) = (json::parse(a.as_bytes()).unwrap(), json::parse(b.as_bytes()).unwrap());
            assert_eq!(compare_values(Some(&a), Some(&b)), Ordering::Equal);
        }
    }

    #[test]
    fn ties_fall_to_the_next_key_and_then_by_id_ascending() {
        let entities = [
            ("a", r#"{"x":1,"y":{"z":"b"}}"#),
            ("b", r#"{"x":1.0,"y":{"z":"a"}}"#),
            ("c", r#"{"x":2}"#),
            ("d", r#"{}"#),
            ("e", r#"{"x":2}"#),
        ]
        .map(|(id, text)| (id, json::parse_object(text.as_bytes()).unwrap()));
        for (order_by, expected) in [
            (&[][..], "abcde"),
            (&[("x", false)], "dabce"),
            (&[("x", true)], "ceabd"),
            (&[("x", false), ("y.z", false)], "dbace"),
            (&[("x", true), ("y.z", true)], "ceabd"),
            (&[("y.z", true)], "abcde"),
            (&[("y.z", false)], "cdeba"),
        ] {
            let order_by: Vec<_> = order_by
                .iter()
                .map(|&(field, descending)| SortKey { field: field.parse().unwrap(), descending })
                .collect();
            let mut sorted: Vec<_> = entities.iter().rev().collect();
            sorted.sort_by(|a, b| compare(&order_by, (a.0, &a.1), (b.0, &b.1)));
            assert_eq!(sorted.iter().map(|entity| entity.0).collect::<String>(), expected, "{order_by:?}");
        }
    }
}
