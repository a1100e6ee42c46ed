//! How a query is read: by ids, by an index, or by a scan; and what of its filter the service is told.
//!
//! What the service lets through may be more than what matches, and never less: every item is looked at again here. So a
//! part of the filter that it cannot be told exactly is left out, and an item with [`EXACT`], whose attributes are
//! stand-ins in part, always passes.

use std::collections::BTreeSet;

use larder_guest::{Attribute, Expression};
use larder_model::{
    Error, Query, Result,
    filter::{Comparison, Filter, Scalar},
    json::quoted,
    path::Path,
};

use crate::{
    item::{self, EXACT},
    number,
    table::{Table, TableIndex},
};

/// What the service takes of one expression, with room for what is added to it.
const TEXT_BYTES_MAX: usize = 3_500;
const OPERATORS_MAX: usize = 250;
/// Of one `IN`.
const OPERANDS_MAX: usize = 100;

/// How the items are found.
#[derive(Debug)]
pub(crate) enum Access<'a> {
    /// One by one, sorted.
    Ids(Vec<String>),
    /// Those of one hash value, and perhaps of a range.
    Index(&'a TableIndex, Expression, Order),
    Scan,
}

/// Whether an index has the order that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    No,
    Yes {
        descending: bool,
        /// Whether all that is sought is texts. Where not, what is absent or no text stands where its sentinel sorts.
        of_texts: bool,
    },
}

impl Order {
    fn of(index: &TableIndex, query: &Query, has_range: bool) -> Order {
        match &query.order_by[..] {
            [key] if index.range.is_some() && key.field.single() == index.range.as_deref() => {
                Order::Yes { descending: key.descending, of_texts: has_range }
            }
            _ => Order::No,
        }
    }
}

/// A way to read, and the filter that goes with it.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) access: Access<'a>,
    pub(crate) filter: Option<Expression>,
}

impl<'a> Plan<'a> {
    /// An index is always a little late: where reads must not be, one is used only where it is named.
    pub(crate) fn new(table: &'a Table, query: &Query, consistent: bool) -> Result<Plan<'a>> {
        let parts = query.filter.as_ref().map(Filter::conjuncts).unwrap_or_default();
        if let Some(name) = &query.index {
            let index = named(table, name)?;
            let Some((key, used)) = key_condition(table, index, &parts) else {
                return Err(Error::invalid(format!(
                    "the index {} of {} serves only queries with {}=TEXT",
                    quoted(name),
                    table.collection.name,
                    index.hash
                )));
            };
            return Ok(Plan::by_index(index, key, &used, &parts, query));
        }
        if let Some(ids) = ids(table, &parts) {
            return Ok(Plan { access: Access::Ids(ids), filter: None });
        }
        let best = table
            .indexes
            .iter()
            .filter(|_| !consistent)
            .filter_map(|index| Some((index, key_condition(table, index, &parts)?)))
            // One that narrows the range too, or else one that has the order.
            .max_by_key(|(index, (_, used))| {
                let is_order = query.order_by.first().is_some_and(|key| key.field.single() == index.range.as_deref());
                (used.len(), is_order)
            });
        Ok(match best {
            Some((index, (key, used))) => Plan::by_index(index, key, &used, &parts, query),
            None => Plan { access: Access::Scan, filter: filter(&parts, &[]) },
        })
    }

    fn by_index(index: &'a TableIndex, key: Expression, used: &[usize], parts: &[&Filter], query: &Query) -> Plan<'a> {
        let rest: Vec<&Filter> =
            parts.iter().enumerate().filter(|(position, _)| !used.contains(position)).map(|(_, part)| *part).collect();
        // The service takes no attribute of the key in a filter beside it.
        let key_names: Vec<&str> = [Some(index.hash.as_str()), index.range.as_deref()].into_iter().flatten().collect();
        let order = Order::of(index, query, used.len() > 1);
        Plan { access: Access::Index(index, key, order), filter: filter(&rest, &key_names) }
    }
}

/// An index of this name.
pub(crate) fn named<'a>(table: &'a Table, name: &str) -> Result<&'a TableIndex> {
    table
        .indexes
        .iter()
        .find(|index| index.name == name)
        .ok_or_else(|| Error::invalid(format!("{} has no index {}", table.collection.name, quoted(name))))
}

/// The ids that the filter asks for, where it does.
fn ids(table: &Table, parts: &[&Filter]) -> Option<Vec<String>> {
    let text = |scalar: &Scalar| match scalar {
        Scalar::Text(text) if !text.is_empty() => Some(text.clone()),
        _ => None,
    };
    let ids: BTreeSet<String> = parts.iter().find_map(|part| match part {
        Filter::Compare { field, op: Comparison::Eq, value } if field.single() == Some(&table.collection.key) => {
            Some(text(value).into_iter().collect())
        }
        Filter::AnyOf { field, values } if field.single() == Some(&table.collection.key) => {
            Some(values.iter().filter_map(text).collect())
        }
        _ => None,
    })?;
    // No id is longer, and the service would not take a longer one.
    Some(ids.into_iter().filter(|id| larder_model::entity::check_id(id).is_ok()).collect())
}

/// The condition on the key of an index, and the positions of the parts that it is made of.
fn key_condition(table: &Table, index: &TableIndex, parts: &[&Filter]) -> Option<(Expression, Vec<usize>)> {
    let sought = |part: &Filter, name: &str| match part {
        Filter::Compare { field, op, value: Scalar::Text(text) }
            if field.single() == Some(name) && !text.is_empty() && text.len() <= table.sought_bytes_max(name) =>
        {
            Some((*op, text.clone()))
        }
        _ => None,
    };
    let (position, hash) = parts.iter().enumerate().find_map(|(position, part)| match sought(part, &index.hash)? {
        (Comparison::Eq, text) => Some((position, text)),
        _ => None,
    })?;
    let mut used = vec![position];
    let mut key = Expression {
        text: "#hash = :hash".to_owned(),
        names: vec![("#hash".to_owned(), index.hash.clone())],
        values: vec![(":hash".to_owned(), Attribute::Text(hash))],
    };
    let Some(range) = &index.range else { return Some((key, used)) };
    let bounds: Vec<(usize, Comparison, String)> = parts
        .iter()
        .enumerate()
        .filter_map(|(position, part)| sought(part, range).map(|(op, text)| (position, op, text)))
        .collect();
    let of = |wanted: &[Comparison]| bounds.iter().find(|(_, op, _)| wanted.contains(op));
    let between = (of(&[Comparison::Ge]), of(&[Comparison::Le]));
    let condition = match (of(&[Comparison::Eq]), of(&[Comparison::BeginsWith]), between) {
        (Some((position, _, text)), ..) => Some((vec![*position], "#range = :range".to_owned(), vec![text])),
        (_, Some((position, _, text)), _) => {
            Some((vec![*position], "begins_with(#range, :range)".to_owned(), vec![text]))
        }
        (.., (Some((least, _, from)), Some((most, _, to)))) if from <= to => {
            Some((vec![*least, *most], "#range BETWEEN :range AND :range2".to_owned(), vec![from, to]))
        }
        _ => {
            use Comparison::{Ge, Gt, Le, Lt};
            of(&[Ge, Gt, Le, Lt])
                .map(|(position, op, text)| (vec![*position], format!("#range {} :range", operator(*op)), vec![text]))
        }
    };
    if let Some((positions, text, values)) = condition {
        key.text.push_str(" AND ");
        key.text.push_str(&text);
        key.names.push(("#range".to_owned(), range.clone()));
        for (name, value) in [":range", ":range2"].into_iter().zip(values) {
            key.values.push((name.to_owned(), Attribute::Text(value.clone())));
        }
        used.extend(positions);
    }
    Some((key, used))
}

fn operator(op: Comparison) -> &'static str {
    match op {
        Comparison::Lt => "<",
        Comparison::Le => "<=",
        Comparison::Gt => ">",
        Comparison::Ge => ">=",
        _ => "=",
    }
}

/// What the service is told of these parts.
fn filter(parts: &[&Filter], key_names: &[&str]) -> Option<Expression> {
    let mut builder = Builder { key_names, expression: Expression::default(), operators: 0 };
    let mut texts = Vec::new();
    for part in parts {
        let mark = builder.mark();
        let Some(text) = builder.told(part) else { continue };
        let bytes: usize = texts.iter().chain([&text]).map(|text: &String| text.len() + 5).sum();
        match bytes <= TEXT_BYTES_MAX && builder.operators <= OPERATORS_MAX {
            true => texts.push(text),
            false => builder.back_to(mark),
        }
    }
    let told = joined(texts, " AND ")?;
    let mut expression = builder.expression;
    expression.text = format!("attribute_exists(#exact) OR {told}");
    expression.names.push(("#exact".to_owned(), EXACT.to_owned()));
    Some(expression)
}

/// In parentheses where there is more than one.
fn joined(mut told: Vec<String>, word: &str) -> Option<String> {
    match told.len() {
        0 | 1 => told.pop(),
        _ => Some(format!("({})", told.join(word))),
    }
}

/// An expression in the making.
struct Builder<'a> {
    /// Names that it may not have.
    key_names: &'a [&'a str],
    expression: Expression,
    operators: usize,
}

impl Builder<'_> {
    /// A condition that holds of every item without [`EXACT`] that matches: one that can stand beside others, with no more
    /// parentheses than it needs, because the service refuses more.
    fn told(&mut self, filter: &Filter) -> Option<String> {
        let mark = self.mark();
        let told = self.condition(filter);
        if told.is_none() {
            // The service refuses placeholders that nothing uses.
            self.back_to(mark);
        }
        told
    }

    fn mark(&self) -> (usize, usize, usize) {
        (self.expression.names.len(), self.expression.values.len(), self.operators)
    }

    fn back_to(&mut self, (names, values, operators): (usize, usize, usize)) {
        self.expression.names.truncate(names);
        self.expression.values.truncate(values);
        self.operators = operators;
    }

    fn condition(&mut self, filter: &Filter) -> Option<String> {
        self.operators += 1;
        match filter {
            Filter::All(parts) => {
                let told: Vec<String> = parts.iter().filter_map(|part| self.told(part)).collect();
                joined(told, " AND ")
            }
            Filter::Any(parts) => {
                let told: Vec<String> = parts.iter().map(|part| self.told(part)).collect::<Option<_>>()?;
                joined(told, " OR ")
            }
            // Of what is told exactly, the complement is too.
            Filter::Not(part) => match **part {
                Filter::All(_) | Filter::Any(_) | Filter::Not(_) => None,
                _ => Some(format!("NOT {}", self.told(part)?)),
            },
            Filter::Exists(field) => Some(format!("attribute_exists({})", self.path(field)?)),
            Filter::AnyOf { field, values } => {
                if values.is_empty() || values.len() > OPERANDS_MAX {
                    return None;
                }
                let path = self.path(field)?;
                self.operators += values.len();
                let values = values.iter().map(|value| self.value(value)).collect::<Option<Vec<_>>>()?;
                Some(format!("{path} IN ({})", values.join(", ")))
            }
            Filter::Compare { field, op, value } => {
                let is_ordered = matches!(value, Scalar::Number(_) | Scalar::Text(_));
                let is_text = matches!(value, Scalar::Text(text) if !text.is_empty());
                let path = self.path(field)?;
                match op {
                    Comparison::Eq => Some(format!("{path} = {}", self.value(value)?)),
                    Comparison::Ne => Some(format!("(attribute_exists({path}) AND {path} <> {})", self.value(value)?)),
                    Comparison::Lt | Comparison::Le | Comparison::Gt | Comparison::Ge if is_ordered => {
                        Some(format!("{path} {} {}", operator(*op), self.value(value)?))
                    }
                    Comparison::BeginsWith if is_text => Some(format!("begins_with({path}, {})", self.value(value)?)),
                    Comparison::Contains if is_text => Some(format!("contains({path}, {})", self.value(value)?)),
                    _ => None,
                }
            }
        }
    }

    fn path(&mut self, field: &Path) -> Option<String> {
        let (first, rest) = field.0.split_first()?;
        let is_path = item::is_attribute(first)
            && !self.key_names.contains(&first.as_str())
            && rest.iter().all(|name| item::is_nested_name(name))
            && item::is_reachable(rest.len() + 1);
        if !is_path {
            return None;
        }
        let names: Vec<String> = field.0.iter().map(|name| self.name(name)).collect();
        Some(names.join("."))
    }

    fn name(&mut self, name: &str) -> String {
        let names = &mut self.expression.names;
        if let Some((placeholder, _)) = names.iter().find(|(_, found)| found == name) {
            return placeholder.clone();
        }
        let placeholder = format!("#n{}", names.len());
        names.push((placeholder.clone(), name.to_owned()));
        placeholder
    }

    fn value(&mut self, scalar: &Scalar) -> Option<String> {
        let attribute = match scalar {
            Scalar::Null => Attribute::Null,
            Scalar::Boolean(value) => Attribute::Boolean(*value),
            Scalar::Number(text) => Attribute::Number(number::exactly(text)?),
            Scalar::Text(text) => Attribute::Text(text.clone()),
        };
        let placeholder = format!(":v{}", self.expression.values.len());
        self.expression.values.push((placeholder.clone(), attribute));
        Some(placeholder)
    }
}
