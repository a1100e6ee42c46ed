//! What of a filter the database answers.
//!
//! A part is pushed down where its predicate lets through every row that matches, and lets through only those among the
//! rows without [`EXACT`], whose columns hold what the entity holds. The few rows with it are looked at again here, so a
//! part that was pushed down is answered exactly; every other part is the host's. What a predicate is like is in one file
//! a dialect, because the columns hold different things.

mod postgres;
mod sqlite;

use std::collections::HashSet;

use larder_guest::{Dialect, SqlValue};
use larder_model::{
    FieldType,
    filter::{Comparison, Filter, Scalar},
};
use serde_json::Value;

use crate::{
    database::{Statement, literal, quote},
    schema::{EXACT, EXTRA, Table},
    types::{Column, Kind},
};

/// The most values of an `in` that become parameters.
const MEMBERS_MAX: usize = 500;

/// A filter, split.
#[derive(Default)]
pub(crate) struct Plan<'a> {
    predicates: Vec<Predicate>,
    /// Parts that the predicates answer for rows without [`EXACT`], and that are to be looked at again for others.
    pub(crate) again: Vec<&'a Filter>,
    /// Parts that are to be looked at again for every row.
    pub(crate) always_again: Vec<&'a Filter>,
    /// Conditions on rows that are to be looked at again beside those with [`EXACT`].
    pub(crate) odd: Vec<String>,
    /// Positions of the parts that are left to the host.
    pub(crate) unapplied: Vec<u32>,
    /// Columns that every row is compared by.
    pub(crate) constrained: Vec<String>,
}

/// How much a predicate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    /// Every row that matches is among those that it lets through.
    Loose,
    /// And no others, of the rows without [`EXACT`].
    Plain,
    /// And no others.
    Full,
}

/// A condition as SQL with its parameters in their places.
enum Predicate {
    /// Column, operator, value, and what follows its placeholder.
    Compare(String, &'static str, SqlValue, &'static str),
    In(String, Vec<SqlValue>, &'static str),
    /// The text of a column has a substring.
    Contains(&'static str, String, String),
    /// SQL without parameters.
    Plain(String),
    All(Vec<Predicate>),
    Any(Vec<Predicate>),
}

/// What is pushed down of a part.
struct Pushed {
    predicate: Predicate,
    precision: Precision,
    /// See [`Plan::odd`].
    odd: Option<String>,
    /// See [`Plan::constrained`].
    column: Option<String>,
}

impl Pushed {
    fn new(predicate: Predicate, precision: Precision) -> Pushed {
        Pushed { predicate, precision, odd: None, column: None }
    }
}

impl<'a> Plan<'a> {
    /// Only `complete` columns are asked, and the key.
    pub(crate) fn new(table: &Table, filter: Option<&'a Filter>, complete: &HashSet<String>) -> Plan<'a> {
        let mut plan = Plan::default();
        for (i, part) in filter.map(Filter::conjuncts).unwrap_or_default().into_iter().enumerate() {
            let Some(pushed) = pushed(table, part, complete) else {
                plan.unapplied.push(i as u32);
                continue;
            };
            plan.predicates.push(pushed.predicate);
            plan.odd.extend(pushed.odd);
            plan.constrained.extend(pushed.column);
            match pushed.precision {
                Precision::Full => {}
                Precision::Plain => plan.again.push(part),
                Precision::Loose => plan.always_again.push(part),
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

    /// The condition on rows whose columns do not say all that this plan asks.
    pub(crate) fn is_odd(&self) -> String {
        let mut conditions = vec![is_exact()];
        conditions.extend(self.odd.iter().cloned());
        conditions.join(" OR ")
    }
}

impl Predicate {
    fn never() -> Predicate {
        Predicate::Plain("0 = 1".to_owned())
    }

    fn write(&self, statement: &mut Statement) {
        match self {
            Predicate::Compare(column, operator, value, cast) => {
                statement.text(column).text(operator).param(value.clone()).text(cast);
            }
            Predicate::In(column, values, cast) => {
                statement.text(column).text(" IN ");
                for (i, value) in values.iter().enumerate() {
                    statement.text(if i == 0 { "(" } else { ", " }).param(value.clone()).text(cast);
                }
                statement.text(")");
            }
            Predicate::Contains(function, column, text) => {
                statement.text(&format!("{function}({column}, "));
                statement.param(SqlValue::Text(text.clone())).text(") > 0");
            }
            Predicate::Plain(text) => {
                statement.text(text);
            }
            Predicate::All(parts) => write_joined(parts, " AND ", statement),
            Predicate::Any(parts) => write_joined(parts, " OR ", statement),
        }
    }
}

fn write_joined(parts: &[Predicate], word: &str, statement: &mut Statement) {
    if parts.is_empty() {
        statement.text(if word == " AND " { "1 = 1" } else { "0 = 1" });
    }
    for (i, part) in parts.iter().enumerate() {
        statement.text(if i == 0 { "(" } else { word });
        match part {
            Predicate::All(_) | Predicate::Any(_) => {
                statement.text("(");
                part.write(statement);
                statement.text(")");
            }
            _ => part.write(statement),
        }
        if i + 1 == parts.len() {
            statement.text(")");
        }
    }
}

/// The condition on rows with [`EXACT`].
pub(crate) fn is_exact() -> String {
    format!("{} IS NOT NULL", quote(EXACT))
}

/// The condition on rows that may have the member beside its column: `null`, or from before the column. True for some that
/// do not, such as where names are written with escapes.
pub(crate) fn is_beside(table: &Table, member: &str) -> String {
    is_mentioned(table, &quote(EXTRA), member)
}

/// The condition on rows where that column of our own may have a member of this name.
pub(crate) fn is_mentioned(table: &Table, own: &str, member: &str) -> String {
    let name = literal(&Value::from(member).to_string());
    match table.dialect {
        Dialect::Sqlite => format!("(instr({own}, {name}) > 0 OR instr({own}, '\\u') > 0)"),
        Dialect::Postgres => format!("(strpos({own}::text, {name}) > 0 OR strpos({own}::text, '\\u') > 0)"),
    }
}

fn pushed(table: &Table, part: &Filter, complete: &HashSet<String>) -> Option<Pushed> {
    let (field, op, scalars) = match part {
        Filter::Compare { field, op, value } => (field, Some(*op), std::slice::from_ref(value)),
        Filter::AnyOf { field, values } if values.len() <= MEMBERS_MAX => (field, None, values.as_slice()),
        Filter::Exists(field) => {
            let column = &table.columns[table.position(field.single()?)?];
            if column.kind == Kind::Key {
                return Some(Pushed::new(Predicate::All(Vec::new()), Precision::Full));
            }
            return complete.contains(&column.name).then(|| exists(table, column));
        }
        Filter::Any(parts) => {
            let parts = parts.iter().map(|part| pushed(table, part, complete)).collect::<Option<Vec<_>>>()?;
            let precision = parts.iter().map(|part| part.precision).min().unwrap_or(Precision::Full);
            // One condition for all of what is odd.
            let odd: Vec<String> = parts.iter().filter_map(|part| part.odd.clone()).collect();
            let odd = (!odd.is_empty()).then(|| odd.join(" OR "));
            let predicate = Predicate::Any(parts.into_iter().map(|part| part.predicate).collect());
            return Some(Pushed { predicate, precision, odd, column: None });
        }
        _ => return None,
    };
    let column = &table.columns[table.position(field.single()?)?];
    if column.kind != Kind::Key && !complete.contains(&column.name) {
        return None;
    }
    if op.is_none() && scalars.is_empty() {
        return Some(Pushed::new(Predicate::never(), Precision::Full));
    }
    let pushed = match (op, scalars) {
        (Some(Comparison::Eq), [Scalar::Null]) if column.kind != Kind::Key => {
            Some(Pushed::new(is_null(table, column), Precision::Loose))
        }
        (Some(Comparison::Ne), _) if column.kind != Kind::Key => Some(exists(table, column)),
        (op, scalars) => match table.dialect {
            Dialect::Sqlite => sqlite::pushed(column, op, scalars),
            Dialect::Postgres => postgres::pushed(column, op, scalars),
        },
    };
    pushed.map(|pushed| {
        let column = (op != Some(Comparison::Ne)).then(|| column.name.clone());
        Pushed { column, ..pushed }
    })
}

/// The member may be there.
fn exists(table: &Table, column: &Column) -> Pushed {
    let holds = format!("{} IS NOT NULL", quote(&column.name));
    let conditions = [holds, is_exact(), is_beside(table, &column.name)];
    Pushed::new(Predicate::Any(conditions.map(Predicate::Plain).into()), Precision::Loose)
}

/// The member may be `null`.
fn is_null(table: &Table, column: &Column) -> Predicate {
    let is_null = format!("{} IS NULL", quote(&column.name));
    Predicate::All(vec![Predicate::Plain(is_null), Predicate::Plain(is_beside(table, &column.name))])
}

/// Texts that begin with the prefix: the least of them, and the least that comes behind them where there is one.
fn prefix_range(column: &str, prefix: &str) -> Vec<Predicate> {
    let mut range = vec![Predicate::Compare(column.to_owned(), " >= ", SqlValue::Text(prefix.to_owned()), "")];
    if let Some(end) = after_prefix(prefix) {
        range.push(Predicate::Compare(column.to_owned(), " < ", SqlValue::Text(end), ""));
    }
    range
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

fn range_operator(op: Comparison) -> Option<&'static str> {
    match op {
        Comparison::Lt => Some(" < "),
        Comparison::Le => Some(" <= "),
        Comparison::Gt => Some(" > "),
        Comparison::Ge => Some(" >= "),
        _ => None,
    }
}

/// The condition on rows of the table whose column, without [`EXACT`] and not NULL, does not sort as its value does; none
/// where there is no such thing.
pub(crate) fn sorts_oddly(table: &Table, column: &Column) -> Option<String> {
    match (table.dialect, column.kind) {
        // Somebody may have put another number there by hand.
        (Dialect::Sqlite, Kind::Field(FieldType::Boolean)) => {
            let name = quote(&column.name);
            Some(format!("({name} IS NOT NULL AND {name} NOT IN (0, 1))"))
        }
        (Dialect::Postgres, Kind::Field(FieldType::Timestamp)) => Some(postgres::is_odd_time(column)),
        _ => None,
    }
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
