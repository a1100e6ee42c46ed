//! SQLite: a column may hold what is not of its type, put there by hand, and any two values compare.

use larder_guest::SqlValue;
use larder_model::{
    FieldType,
    filter::{Comparison, Scalar},
    number,
};

use super::{Precision, Predicate, Pushed, prefix_range, range_operator};
use crate::{
    database::quote,
    plan::is_exact,
    types::{Column, Kind, double_text, integer, looks_numeric, nearest_double},
};

/// Without an operator, one of the scalars is equal.
pub(super) fn pushed(column: &Column, op: Option<Comparison>, scalars: &[Scalar]) -> Option<Pushed> {
    let precision = if column.kind == Kind::Key { Precision::Full } else { Precision::Plain };
    // Whatever order the column was declared with by others.
    let name = format!("{} COLLATE BINARY", quote(&column.name));
    let Some(op) = op.filter(|op| *op != Comparison::Eq) else {
        let mut values = scalars.iter().map(|scalar| equal_cell(column.kind, scalar)).collect::<Option<Vec<_>>>()?;
        let predicate = match values.len() {
            1 => Predicate::Compare(name, " = ", values.remove(0), ""),
            _ => Predicate::In(name, values, ""),
        };
        return Some(Pushed::new(predicate, precision));
    };
    let scalar = &scalars[0];
    let predicate = match (op, scalar) {
        (Comparison::BeginsWith, Scalar::Text(prefix)) if column.is_text() => {
            Predicate::All(prefix_range(&name, prefix))
        }
        (Comparison::Contains, Scalar::Text(text)) if column.is_text() => {
            any_exact(column, Predicate::Contains("instr", quote(&column.name), text.clone()))
        }
        (op, scalar) => {
            let operator = range_operator(op)?;
            let cell = equal_cell(column.kind, scalar)?;
            let compare = Predicate::Compare(name, operator, cell, "");
            let only = |types: &str| Predicate::Plain(format!("typeof({}) {types}", quote(&column.name)));
            match column.kind {
                Kind::Key | Kind::Field(FieldType::Text) => compare,
                Kind::Field(FieldType::Integer | FieldType::Number) => {
                    any_exact(column, Predicate::All(vec![compare, only("IN ('integer', 'real')")]))
                }
                Kind::Field(FieldType::Timestamp) => any_exact(column, Predicate::All(vec![compare, only("= 'text'")])),
                Kind::Field(FieldType::Boolean | FieldType::Json) => return None,
            }
        }
    };
    Some(Pushed::new(predicate, precision))
}

/// Lets through every row whose column does not sort as its value does, too.
fn any_exact(column: &Column, predicate: Predicate) -> Predicate {
    match column.kind {
        Kind::Key => predicate,
        Kind::Field(_) => Predicate::Any(vec![predicate, Predicate::Plain(is_exact())]),
    }
}

/// What the column holds in each row whose value equals the scalar, and in no other row without `EXACT`; none where there
/// is no such thing.
fn equal_cell(kind: Kind, scalar: &Scalar) -> Option<SqlValue> {
    match (kind, scalar) {
        (Kind::Key | Kind::Field(FieldType::Text), Scalar::Text(text)) => Some(SqlValue::Text(text.clone())),
        (Kind::Field(FieldType::Timestamp), Scalar::Text(text)) if !looks_numeric(text) => {
            Some(SqlValue::Text(text.clone()))
        }
        (Kind::Field(FieldType::Integer), Scalar::Number(text)) => integer(text).map(SqlValue::Integer),
        (Kind::Field(FieldType::Number), Scalar::Number(text)) => {
            let double = nearest_double(text);
            // Another number may have the same nearest double.
            number::compare(&double_text(double), text).is_eq().then_some(SqlValue::Number(double))
        }
        (Kind::Field(FieldType::Boolean), Scalar::Boolean(value)) => Some(SqlValue::Integer((*value).into())),
        _ => None,
    }
}
