//! PostgreSQL: a column holds its type and nothing else, so a scalar of another type finds only rows that keep their value
//! beside it. Such a row is found by what its column got in its place, which is the same for equal values.

use std::cmp::Ordering;

use larder_guest::{Dialect, SqlValue};
use larder_model::{
    FieldType,
    filter::{Comparison, Scalar},
    number,
};

use super::{Precision, Predicate, Pushed, prefix_range, range_operator};
use crate::{
    database::quote,
    plan::is_exact,
    types::{self, Column, Kind, double_text, nearest_double, timestamp},
};

/// Without an operator, one of the scalars is equal.
pub(super) fn pushed(column: &Column, op: Option<Comparison>, scalars: &[Scalar]) -> Option<Pushed> {
    if column.kind == Kind::Field(FieldType::Json) {
        return None;
    }
    let name = quote(&column.name);
    let precision = if column.kind == Kind::Key { Precision::Full } else { Precision::Plain };
    let Some(op) = op.filter(|op| *op != Comparison::Eq) else {
        return Some(Pushed::new(equal(column, scalars)?, precision));
    };
    let scalar = &scalars[0];
    let predicate = match (op, scalar) {
        (Comparison::BeginsWith | Comparison::Contains, Scalar::Text(text)) if column.is_text() => {
            if text.contains('\0') {
                return Some(Pushed::new(or_exact(column, Predicate::never()), precision));
            }
            or_exact(
                column,
                match op {
                    Comparison::BeginsWith => Predicate::All(prefix_range(&name, text)),
                    _ => Predicate::Contains("strpos", name, text.clone()),
                },
            )
        }
        (op, scalar) => {
            let operator = range_operator(op)?;
            let Some(compare) = range(column, op, operator, scalar)? else {
                return Some(Pushed::new(or_exact(column, Predicate::never()), precision));
            };
            if column.kind == Kind::Field(FieldType::Timestamp) {
                let odd = is_odd_time(column);
                let predicate =
                    Predicate::Any(vec![compare, Predicate::Plain(is_exact()), Predicate::Plain(odd.clone())]);
                return Some(Pushed { odd: Some(odd), ..Pushed::new(predicate, precision) });
            }
            or_exact(column, compare)
        }
    };
    Some(Pushed::new(predicate, precision))
}

/// Lets through every row whose column does not sort as its value does, too.
fn or_exact(column: &Column, predicate: Predicate) -> Predicate {
    match column.kind {
        Kind::Key => predicate,
        Kind::Field(_) => Predicate::Any(vec![predicate, Predicate::Plain(is_exact())]),
    }
}

fn cast(column: &Column) -> &'static str {
    types::compared_cast(Dialect::Postgres, column.kind)
}

/// Rows that hold one of the scalars, or hold it beside the column.
fn equal(column: &Column, scalars: &[Scalar]) -> Option<Predicate> {
    let name = quote(&column.name);
    let (mut held, mut beside, mut is_null_beside, mut is_any_beside) = (Vec::new(), Vec::new(), false, false);
    for scalar in scalars {
        // A column for texts gets the number as it is spelt, and equal ones may be spelt in many ways.
        if column.is_text() && matches!(scalar, Scalar::Number(_)) {
            is_any_beside = column.kind != Kind::Key;
            continue;
        }
        match scalar {
            Scalar::Null => return None,
            // What only a hand puts into such a column.
            Scalar::Text(text) if column.kind == Kind::Field(FieldType::Timestamp) && may_be_odd_time(text) => {
                return None;
            }
            _ => {}
        }
        let kept = types::keep(Dialect::Postgres, column, scalar.to_value().into());
        let cell = SqlValue::from(kept.cell);
        let is_held = kept.lost.is_none()
            || match (column.kind, scalar) {
                // However it is spelt.
                (Kind::Field(FieldType::Integer | FieldType::Number), Scalar::Number(text)) => {
                    let read = types::read_plain(&cell);
                    read.is_some_and(|read| number::compare(&read.to_string(), text) == Ordering::Equal)
                }
                _ => false,
            };
        // A row may be from before the column was given a length or an index, and hold all of it.
        if let (false, true, Scalar::Text(text)) = (is_held, column.is_text(), scalar)
            && !text.contains('\0')
        {
            held.push(SqlValue::Text(text.clone()));
        }
        match (is_held, cell) {
            (true, cell) => held.push(cell),
            (false, _) if column.kind == Kind::Key => {}
            (false, SqlValue::Null) => is_null_beside = true,
            (false, cell) => beside.push(cell),
        }
    }
    let among = |mut cells: Vec<SqlValue>| match cells.len() {
        1 => Predicate::Compare(name.clone(), " = ", cells.remove(0), cast(column)),
        _ => Predicate::In(name.clone(), cells, cast(column)),
    };
    let mut any = Vec::new();
    if !held.is_empty() {
        any.push(among(held));
    }
    if !beside.is_empty() {
        any.push(Predicate::All(vec![Predicate::Plain(is_exact()), among(beside)]));
    }
    if is_null_beside {
        any.push(Predicate::Plain(format!("({} AND {name} IS NULL)", is_exact())));
    }
    if is_any_beside {
        any.push(Predicate::Plain(is_exact()));
    }
    Some(match any.len() {
        0 => Predicate::never(),
        1 => any.remove(0),
        _ => Predicate::Any(any),
    })
}

/// What a column holds where its value stands so to the scalar: an inner none where no column does, an outer one where
/// that cannot be said.
fn range(column: &Column, op: Comparison, operator: &'static str, scalar: &Scalar) -> Option<Option<Predicate>> {
    let name = quote(&column.name);
    let ty = match column.kind {
        Kind::Key => FieldType::Text,
        Kind::Field(ty) => ty,
    };
    let compare = |operator, cell| Some(Some(Predicate::Compare(name.clone(), operator, cell, cast(column))));
    let is_upper = matches!(op, Comparison::Lt | Comparison::Le);
    match (ty, scalar) {
        // `null` is at least and at most `null`.
        (_, Scalar::Null) => None,
        (FieldType::Text, Scalar::Text(text)) if text.contains('\0') => None,
        (FieldType::Text, Scalar::Text(text)) => compare(operator, SqlValue::Text(text.clone())),
        (FieldType::Boolean, Scalar::Boolean(value)) => compare(operator, SqlValue::Boolean(*value)),
        (FieldType::Integer, Scalar::Number(text)) => {
            if let Some(integer) = types::integer(text) {
                return compare(operator, SqlValue::Integer(integer));
            }
            let double = nearest_double(text);
            if double.abs() >= i64::MAX as f64 {
                // Beyond every column on one side.
                return match (double > 0.0) == is_upper {
                    true => Some(Some(Predicate::Plain(format!("{name} IS NOT NULL")))),
                    false => Some(None),
                };
            }
            // It lies between two integers, unless the double was rounded onto one.
            (double.fract() != 0.0).then_some(())?;
            match is_upper {
                true => compare(" <= ", SqlValue::Integer(double.floor() as i64)),
                false => compare(" >= ", SqlValue::Integer(double.ceil() as i64)),
            }
        }
        (FieldType::Number, Scalar::Number(text)) => {
            // No double lies between a number and the nearest one.
            let double = nearest_double(text);
            let operator = match (number::compare(&double_text(double), text), is_upper) {
                (Ordering::Equal, _) => operator,
                (Ordering::Greater, true) => " < ",
                (Ordering::Greater, false) => " >= ",
                (Ordering::Less, true) => " <= ",
                (Ordering::Less, false) => " > ",
            };
            compare(operator, SqlValue::Number(double))
        }
        (FieldType::Timestamp, Scalar::Text(text)) => {
            if timestamp(text).is_some_and(|canonical| canonical == *text) {
                return compare(operator, SqlValue::Text(text.clone()));
            }
            // No column holds this spelling, so it lies between two that columns hold.
            let next = first_behind(text)?;
            compare(if is_upper { " < " } else { " >= " }, SqlValue::Text(next))
        }
        (FieldType::Json, _) => None,
        _ => Some(None),
    }
}

/// The first text that a TIMESTAMP column holds and that sorts behind this one, which is none that it holds: of the
/// spellings of RFC 3339 and their beginnings, such as `2025-06-30`.
fn first_behind(text: &str) -> Option<String> {
    const LEAST: &str = "0001-01-01T00:00:00.000000Z";
    let common = text
        .bytes()
        .zip(LEAST.bytes())
        .take_while(|(byte, least)| byte == least || byte.is_ascii_digit() && least.is_ascii_digit())
        .count();
    let is_whole = matches!(common, 4 | 7 | 10 | 13 | 16 | 19 | 21..=26);
    if !is_whole {
        return None;
    }
    let least = format!("{}{}", &text[..common], &LEAST[common..]);
    let least = timestamp(&least).filter(|canonical| *canonical == least)?;
    let Some(next) = text.as_bytes().get(common) else { return Some(least) };
    let expected = LEAST.as_bytes()[common];
    let is_before = if expected.is_ascii_digit() { *next < b'0' } else { *next < expected };
    if is_before {
        return Some(least);
    }
    // Behind all that begin as this one does: `…:00Z` is behind `…:00.999999Z`.
    let last = match common {
        19 => format!("{}.999999Z", &text[..19]),
        21..=25 => format!("{}{}Z", &text[..common], &"999999"[common - 20..]),
        _ => return None,
    };
    types::after(&last)
}

/// Whether a TIMESTAMP column may be read as this text although no time of four digits is spelt so.
fn may_be_odd_time(text: &str) -> bool {
    let has_long_year = text.len() >= 5 && text.bytes().take(5).all(|byte| byte.is_ascii_digit());
    has_long_year || text.contains("infinity") || text.ends_with("BC")
}

/// The condition on times whose text does not sort as they do: before the first year, behind the last of four digits, and
/// for ever.
pub(super) fn is_odd_time(column: &Column) -> String {
    let name = quote(&column.name);
    format!("({name} < '0001-01-01'::timestamp OR {name} >= '10000-01-01'::timestamp)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_behind_a_text_is_found() {
        for (text, expected) in [
            ("2025", Some("2025-01-01T00:00:00.000000Z")),
            ("2025-06", Some("2025-06-01T00:00:00.000000Z")),
            ("2025-06-30", Some("2025-06-30T00:00:00.000000Z")),
            ("2025-06-30 12:00", Some("2025-06-30T00:00:00.000000Z")),
            ("2025-06-30T12:00:00Z", Some("2025-06-30T12:00:01.000000Z")),
            ("2025-12-31T23:59:59Z", Some("2026-01-01T00:00:00.000000Z")),
            ("2025-06-30T12:00:00+02:00", Some("2025-06-30T12:00:00.000000Z")),
            ("2025-06-30T12:00:00.5Z", Some("2025-06-30T12:00:00.600000Z")),
            ("2025-06-30T12:00:00.5+00:00", Some("2025-06-30T12:00:00.500000Z")),
            ("2025-06-30T12:00:00.12345Z", Some("2025-06-30T12:00:00.123460Z")),
            ("2025-06-30T12:00:00.123456789Z", Some("2025-06-30T12:00:00.123456Z")),
            ("2025-06-30T12:00:00.123456", Some("2025-06-30T12:00:00.123456Z")),
            ("2025-06-3", None),
            ("2025-02-30", None),
            ("", None),
            ("now", None),
        ] {
            assert_eq!(first_behind(text).as_deref(), expected, "{text}");
            if let Some(expected) = expected {
                assert!(text < expected, "{text}");
            }
        }
    }
}
