//! What of a query the database answers.
//!
//! A part of the filter is pushed down where its predicate lets through every row that matches, and lets through only
//! those among the rows without [`EXACT`], whose columns hold what the entity holds. The few rows with it are looked at
//! again here, so a part that was pushed down is answered exactly; every other part is the host's.

use larder_guest::SqlValue;
use larder_model::{
    FieldType,
    filter::{Comparison, Filter, Scalar},
    number,
};

use crate::{
    row::{double_text, integer, looks_numeric, nearest_double},
    schema::{EXACT, Kind, Statement, Table, quote},
};

/// The most values of an `in` that become parameters.
const MEMBERS_MAX: usize = 500;

/// A filter, split.
#[derive(Default)]
pub(crate) struct Plan<'a> {
    predicates: Vec<Predicate>,
    /// Parts that the predicates answer for rows without [`EXACT`], and that are to be looked at again for others.
    pub(crate) again: Vec<&'a Filter>,
    /// Positions of the parts that are left to the host.
    pub(crate) unapplied: Vec<u32>,
}

/// SQL with its parameters in their places.
struct Predicate {
    column: String,
    operator: &'static str,
    values: Vec<SqlValue>,
    /// Holds the value only where it is of this type: SQLite compares any two.
    only: Option<&'static str>,
    /// Lets every row with [`EXACT`] through, because its column does not sort as its value does.
    or_exact: bool,
}

impl<'a> Plan<'a> {
    /// Where the table is not one that we made, only the key is looked for: a column that was added to it by hand may be
    /// empty although the entity has the member.
    pub(crate) fn new(table: &Table, filter: Option<&'a Filter>, is_ours: bool) -> Plan<'a> {
        let mut plan = Plan::default();
        for (i, part) in filter.map(Filter::conjuncts).unwrap_or_default().into_iter().enumerate() {
            match predicates(table, part).filter(|(_, is_key)| *is_key || is_ours) {
                Some((predicates, is_key)) => {
                    plan.predicates.extend(predicates);
                    if !is_key {
                        plan.again.push(part);
                    }
                }
                None => plan.unapplied.push(i as u32),
            }
        }
        plan
    }

    /// Appends ` WHERE …`, or nothing; answers what the next condition begins with.
    pub(crate) fn conditions(&self, statement: &mut Statement) -> &'static str {
        let mut word = " WHERE ";
        for predicate in &self.predicates {
            statement.text(word).text("(");
            predicate.write(statement);
            statement.text(")");
            word = " AND ";
        }
        word
    }
}

impl Predicate {
    fn write(&self, statement: &mut Statement) {
        // Whatever order the column was declared with by others.
        let column = format!("{} COLLATE BINARY", self.column);
        if self.values.is_empty() {
            statement.text("0 = 1");
            return;
        }
        statement.text(&column).text(self.operator);
        match self.operator {
            " IN " => statement.list(self.values.iter().cloned()),
            _ => statement.param(self.values[0].clone()),
        };
        if let Some(only) = self.only {
            statement.text(&format!(" AND typeof({}) {only}", self.column));
        }
        if self.or_exact {
            statement.text(&format!(" OR {} IS NOT NULL", quote(EXACT)));
        }
    }
}

/// The part as predicates, and whether it is about the key, whose column always holds what the entity does.
fn predicates(table: &Table, part: &Filter) -> Option<(Vec<Predicate>, bool)> {
    let (field, op, scalars) = match part {
        Filter::Compare { field, op, value } => (field, Some(*op), std::slice::from_ref(value)),
        Filter::AnyOf { field, values } if values.len() <= MEMBERS_MAX => (field, None, values.as_slice()),
        _ => return None,
    };
    let column = &table.columns[table.position(field.single()?)?];
    let is_key = column.kind == Kind::Key;
    let predicate =
        |operator, values| Predicate { column: quote(&column.name), operator, values, only: None, or_exact: false };
    let Some(op) = op.filter(|op| *op != Comparison::Eq) else {
        let values = scalars.iter().map(|scalar| equal_cell(column.kind, scalar)).collect::<Option<Vec<_>>>()?;
        return Some((vec![predicate(if values.len() == 1 { " = " } else { " IN " }, values)], is_key));
    };
    let scalar = &scalars[0];
    let operator = match op {
        Comparison::Lt => " < ",
        Comparison::Le => " <= ",
        Comparison::Gt => " > ",
        Comparison::Ge => " >= ",
        Comparison::BeginsWith => {
            let (Kind::Key | Kind::Field(FieldType::Text), Scalar::Text(prefix)) = (column.kind, scalar) else {
                return None;
            };
            let mut range = vec![predicate(" >= ", vec![SqlValue::Text(prefix.clone())])];
            if let Some(end) = after_prefix(prefix) {
                range.push(predicate(" < ", vec![SqlValue::Text(end)]));
            }
            return Some((range, is_key));
        }
        Comparison::Eq | Comparison::Ne | Comparison::Contains => return None,
    };
    let cell = equal_cell(column.kind, scalar)?;
    let range = match column.kind {
        Kind::Key | Kind::Field(FieldType::Text) => predicate(operator, vec![cell]),
        Kind::Field(FieldType::Integer | FieldType::Number) => {
            Predicate { only: Some("IN ('integer', 'real')"), or_exact: true, ..predicate(operator, vec![cell]) }
        }
        Kind::Field(FieldType::Timestamp) => {
            Predicate { only: Some("= 'text'"), or_exact: true, ..predicate(operator, vec![cell]) }
        }
        Kind::Field(FieldType::Boolean | FieldType::Json) => return None,
    };
    Some((vec![range], is_key))
}

/// What the column holds in each row whose value equals the scalar, and in no other row without [`EXACT`]; none where
/// there is no such thing.
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

/// The least text that is greater than every text that begins with the prefix; none where there is none.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // The successor of the last character before the surrogates is the first one after them.
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            last => char::from_u32(last as u32 + 1),
        };
        if let Some(next) = next {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_next_to_it() {
        for (prefix, end) in
            [("a", Some("b")), ("a\u{d7ff}", Some("a\u{e000}")), ("a\u{10ffff}", Some("b")), ("", None)]
        {
            assert_eq!(after_prefix(prefix).as_deref(), end);
        }
        assert_eq!(after_prefix("\u{10ffff}"), None);
    }
}
