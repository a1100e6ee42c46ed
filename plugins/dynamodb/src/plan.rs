//! How a query is answered: by which keys, by which index, or by a scan; and what of the filter the service is asked.
//!
//! What is asked never leaves out an entity that the filter holds for. An item with [`EXACT`] may hold other values than its
//! attributes say, and a binary attribute is read as text, so such items always come; whatever comes is held against the
//! conditions again. What cannot be asked at all is left to the host, which counts what it looks at.

use larder_guest::{Attribute, Expression, Item};
use larder_model::{
    SortKey,
    filter::{Comparison, Filter, Scalar},
    path::Path,
};

use crate::{
    item::{EXACT, is_attribute, is_nested_name, is_reachable},
    number,
    table::{Table, TableIndex},
};

/// The service takes expressions of 4 KB, of 300 operators and functions, and lists of 100 operands. A little is kept free
/// for what stands around the conditions.
const EXPRESSION_BYTES_MAX: usize = 3_500;
const OPERATORS_MAX: usize = 250;
const OPERANDS_MAX: usize = 100;

/// Bytes of the values of an expression, of which the service takes 2 MB.
const VALUES_BYTES_MAX: usize = 512 << 10;

/// The conjuncts of a filter, sorted by who answers them.
pub(crate) struct Plan<'a> {
    /// What the service is asked beside the key.
    pub(crate) filter: Option<Expression>,
    /// What is true of all that comes, once it was held against it.
    pub(crate) applied: Vec<&'a Filter>,
    /// Positions of the others.
    pub(crate) unapplied: Vec<u32>,
}

/// Which part of an index is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) hash: String,
    /// Of the range attribute, both included.
    pub(crate) lower: Option<String>,
    pub(crate) upper: Option<String>,
}

/// The ids that a filter leaves, without duplicates and in order.
pub(crate) fn ids(table: &Table, conjuncts: &[&Filter]) -> Option<Vec<String>> {
    let is_key = |field: &Path| field.single() == Some(table.collection.key.as_str());
    let mut ids = conjuncts.iter().find_map(|conjunct| match conjunct {
        Filter::Compare { field, op: Comparison::Eq, value: Scalar::Text(id) } if is_key(field) => {
            Some(vec![id.clone()])
        }
        Filter::AnyOf { field, values } if is_key(field) => {
            let text = |value: &Scalar| match value {
                Scalar::Text(id) => Some(id.clone()),
                _ => None,
            };
            Some(values.iter().filter_map(text).collect())
        }
        _ => None,
    })?;
    // No entity has another id, and the service takes no empty key.
    ids.retain(|id| larder_model::entity::check_id(id).is_ok());
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

/// The part of the index that a filter leaves; none where the filter does not say which hash value.
pub(crate) fn section(table: &Table, index: &TableIndex, conjuncts: &[&Filter]) -> Option<Section> {
    // A text that begins as a sentinel does stands among sentinels.
    let sought = |name: &str, text: &str| {
        !text.is_empty() && !text.starts_with('\0') && text.len() <= table.sought_bytes_max(name)
    };
    let texts = |name: &str| {
        let name = name.to_owned();
        conjuncts.iter().filter_map(move |conjunct| match conjunct {
            Filter::Compare { field, op, value: Scalar::Text(text) }
                if field.single() == Some(&name) && sought(&name, text) =>
            {
                Some((*op, text.as_str()))
            }
            _ => None,
        })
    };
    let hash = texts(&index.hash).find(|(op, _)| *op == Comparison::Eq)?.1.to_owned();
    let mut section = Section { hash, lower: None, upper: None };
    for (op, text) in index.range.iter().flat_map(|range| texts(range)) {
        let (lower, upper) = match op {
            Comparison::Eq => (Some(text.to_owned()), Some(text.to_owned())),
            Comparison::Lt | Comparison::Le => (None, Some(text.to_owned())),
            Comparison::Gt | Comparison::Ge => (Some(text.to_owned()), None),
            Comparison::BeginsWith => (Some(text.to_owned()), successor(text)),
            Comparison::Ne | Comparison::Contains => (None, None),
        };
        section.narrow(lower, upper);
    }
    Some(section)
}

impl Section {
    pub(crate) fn narrow(&mut self, lower: Option<String>, upper: Option<String>) {
        if let Some(lower) = lower {
            self.lower = Some(self.lower.take().map_or(lower.clone(), |known| known.max(lower)));
        }
        if let Some(upper) = upper {
            self.upper = Some(self.upper.take().map_or(upper.clone(), |known| known.min(upper)));
        }
    }

    /// Whether nothing stands between the bounds, which the service would call an error.
    pub(crate) fn is_empty(&self) -> bool {
        matches!((&self.lower, &self.upper), (Some(lower), Some(upper)) if lower > upper)
    }

    pub(crate) fn expression(&self, index: &TableIndex) -> Expression {
        let mut parts = Parts::new('k');
        let hash = parts.name(&index.hash);
        let value = parts.value(Attribute::Text(self.hash.clone()));
        let mut text = format!("{hash} = {value}");
        if let Some(range) = &index.range {
            let mut bound = |text: &Option<String>| text.clone().map(|text| parts.value(Attribute::Text(text)));
            let condition = match (bound(&self.lower), bound(&self.upper)) {
                (Some(lower), Some(upper)) if lower == upper => Some(("=", lower)),
                (Some(lower), Some(upper)) => Some(("BETWEEN", format!("{lower} AND {upper}"))),
                (Some(lower), None) => Some((">=", lower)),
                (None, Some(upper)) => Some(("<=", upper)),
                (None, None) => None,
            };
            if let Some((op, value)) = condition {
                let range = parts.name(range);
                text.push_str(&format!(" AND {range} {op} {value}"));
            }
        }
        parts.expression(text)
    }
}

/// The first text behind all that begin with this one; none where there is none.
fn successor(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            last => char::from_u32(last as u32 + 1),
        };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}

/// The last of all values that share what they begin with: `value` itself where that is the whole of it.
pub(crate) fn end_of(beginning: &str, value: &str) -> Option<String> {
    if beginning == value { Some(value.to_owned()) } else { successor(beginning) }
}

/// Whether the index gives entities in this order, as far as the texts in its key go: by the range attribute first.
pub(crate) fn is_index_order(index: &TableIndex, order_by: &[SortKey]) -> bool {
    match (order_by.first().and_then(|key| key.field.single()), &index.range) {
        (Some(field), Some(range)) => field == range,
        _ => false,
    }
}

impl<'a> Plan<'a> {
    /// With an index, what stands in its key cannot be asked once more.
    pub(crate) fn new(table: &Table, conjuncts: &[&'a Filter], index: Option<&TableIndex>) -> Plan<'a> {
        let mut keys: Vec<&str> = Vec::new();
        if let Some(index) = index {
            keys.extend([table.collection.key.as_str(), &index.hash]);
            keys.extend(index.range.as_deref());
        }
        let mut plan = Plan { filter: None, applied: Vec::new(), unapplied: Vec::new() };
        let mut parts = Parts::new('f');
        let mut conditions: Vec<Condition> = Vec::new();
        for (position, conjunct) in conjuncts.iter().enumerate() {
            if index.is_some_and(|index| is_of_section(table, index, conjunct)) {
                plan.applied.push(conjunct);
                continue;
            }
            let mut longer = parts.clone();
            if let Some(condition) = longer.condition(conjunct, &keys) {
                conditions.push(condition);
                if longer.take(&conditions) {
                    parts = longer;
                    plan.applied.push(conjunct);
                    continue;
                }
                conditions.pop();
            }
            plan.unapplied.push(position as u32);
        }
        if !conditions.is_empty() {
            plan.filter = Some(parts.or_what_reads_otherwise(conditions));
        }
        plan
    }

    /// For a read by ids: all of it is looked at here.
    pub(crate) fn none(conjuncts: &[&'a Filter]) -> Plan<'a> {
        Plan { filter: None, applied: conjuncts.to_vec(), unapplied: Vec::new() }
    }
}

/// Whether the section of the index says as much as the condition does, once what comes was held against it.
fn is_of_section(table: &Table, index: &TableIndex, conjunct: &Filter) -> bool {
    let Filter::Compare { field, op, value: Scalar::Text(text) } = conjunct else { return false };
    let Some(name) = field.single() else { return false };
    if text.is_empty() || text.starts_with('\0') || text.len() > table.sought_bytes_max(name) {
        return false;
    }
    name == index.hash && *op == Comparison::Eq
        || Some(name) == index.range.as_deref() && !matches!(op, Comparison::Ne | Comparison::Contains)
}

/// A condition. Written out, it has no brackets that are not needed: the service refuses those.
#[derive(Debug, Clone)]
enum Condition {
    Plain(String),
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
}

impl Condition {
    fn all(mut parts: Vec<Condition>) -> Condition {
        if parts.len() == 1 { parts.remove(0) } else { Condition::All(parts) }
    }

    fn any(mut parts: Vec<Condition>) -> Condition {
        if parts.len() == 1 { parts.remove(0) } else { Condition::Any(parts) }
    }

    fn not(self) -> Condition {
        Condition::Not(Box::new(self))
    }

    /// `NOT` binds closer than `AND`, and that closer than `OR`.
    fn write(&self, out: &mut String) {
        let joined = |parts: &[Condition], word: &str, out: &mut String| {
            for (i, part) in parts.iter().enumerate() {
                if i > 0 {
                    out.push_str(word);
                }
                part.write_within(matches!((self, part), (Condition::All(_), Condition::Any(_))), out);
            }
        };
        match self {
            Condition::Plain(text) => out.push_str(text),
            Condition::Not(inner) => {
                out.push_str("NOT ");
                inner.write_within(matches!(**inner, Condition::All(_) | Condition::Any(_)), out);
            }
            Condition::All(parts) => joined(parts, " AND ", out),
            Condition::Any(parts) => joined(parts, " OR ", out),
        }
    }

    fn write_within(&self, brackets: bool, out: &mut String) {
        if brackets {
            out.push('(');
        }
        self.write(out);
        if brackets {
            out.push(')');
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }
}

/// What the placeholders of an expression stand for, and what the expression comes to.
#[derive(Clone)]
struct Parts {
    /// What placeholders begin with: a request has several expressions, and one list of placeholders.
    prefix: char,
    names: Vec<(String, String)>,
    values: Item,
    value_bytes: usize,
    operators: usize,
    /// Paths that are compared with text, and whether as something that contains it.
    texts: Vec<(String, bool)>,
}

impl Parts {
    fn new(prefix: char) -> Parts {
        Parts { prefix, names: Vec::new(), values: Vec::new(), value_bytes: 0, operators: 0, texts: Vec::new() }
    }

    fn name(&mut self, name: &str) -> String {
        if let Some((placeholder, _)) = self.names.iter().find(|(_, known)| known == name) {
            return placeholder.clone();
        }
        let placeholder = format!("#{}{}", self.prefix, self.names.len());
        self.names.push((placeholder.clone(), name.to_owned()));
        placeholder
    }

    fn value(&mut self, value: Attribute) -> String {
        if let Some((placeholder, _)) = self.values.iter().find(|(_, known)| *known == value) {
            return placeholder.clone();
        }
        let placeholder = format!(":{}{}", self.prefix, self.values.len());
        self.value_bytes += match &value {
            Attribute::Text(text) | Attribute::Number(text) => text.len(),
            _ => 1,
        };
        self.values.push((placeholder.clone(), value));
        placeholder
    }

    fn expression(self, text: String) -> Expression {
        Expression { text, names: self.names, values: self.values }
    }

    /// Whether the service takes the conditions, with those that will stand beside them.
    fn take(&self, conditions: &[Condition]) -> bool {
        let bytes: usize = conditions.iter().map(|condition| condition.text().len() + 7).sum();
        let texts: usize = self.texts.iter().map(|(path, _)| 2 * path.len() + 60).sum();
        bytes + texts <= EXPRESSION_BYTES_MAX
            && self.operators + conditions.len() + 4 * self.texts.len() <= OPERATORS_MAX
            && self.value_bytes <= VALUES_BYTES_MAX
    }

    /// The conditions, or an item of which they may say nothing.
    fn or_what_reads_otherwise(mut self, conditions: Vec<Condition>) -> Expression {
        let exact = self.name(EXACT);
        let mut any = vec![Condition::all(conditions), Condition::Plain(format!("attribute_exists({exact})"))];
        for (path, is_containing) in self.texts.clone() {
            for kind in if is_containing { &["B", "BS"][..] } else { &["B"] } {
                any.push(self.of_type(&path, kind));
            }
        }
        self.expression(Condition::Any(any).text())
    }

    fn of_type(&mut self, path: &str, kind: &str) -> Condition {
        let kind = self.value(Attribute::Text(kind.to_owned()));
        Condition::Plain(format!("attribute_type({path}, {kind})"))
    }

    /// None where the service has no such path, or has it in the key.
    fn path(&mut self, field: &Path, keys: &[&str]) -> Option<String> {
        let (first, rest) = field.0.split_first()?;
        let is_usable = is_attribute(first)
            && rest.iter().all(|name| is_nested_name(name))
            && is_reachable(field.0.len())
            && !keys.contains(&first.as_str());
        if !is_usable {
            return None;
        }
        let names: Vec<String> = field.0.iter().map(|name| self.name(name)).collect();
        Some(names.join("."))
    }

    /// Notes that a binary value there, which is read as text, is to come.
    fn reads_text(&mut self, path: &str, is_containing: bool) {
        match self.texts.iter_mut().find(|(known, _)| known == path) {
            Some((_, known)) => *known |= is_containing,
            None => self.texts.push((path.to_owned(), is_containing)),
        }
    }

    /// A condition that holds for exactly what the filter holds for, among items that read as they stand. None where there
    /// is no such condition.
    fn condition(&mut self, filter: &Filter, keys: &[&str]) -> Option<Condition> {
        self.operators += 2;
        let children = |parts: &mut Self, children: &[Filter]| -> Option<Vec<Condition>> {
            let conditions: Vec<_> =
                children.iter().map(|child| parts.condition(child, keys)).collect::<Option<_>>()?;
            (!conditions.is_empty()).then_some(conditions)
        };
        match filter {
            Filter::Compare { field, op, value } => {
                let path = self.path(field, keys)?;
                self.comparison(&path, *op, value)
            }
            Filter::AnyOf { field, values } => {
                if values.is_empty() || values.len() > OPERANDS_MAX {
                    return None;
                }
                let path = self.path(field, keys)?;
                // `IN` takes no types, which a null is asked by.
                let equalities = values.iter().map(|value| self.comparison(&path, Comparison::Eq, value));
                let equalities: Vec<Condition> = equalities.collect::<Option<_>>()?;
                self.operators += 2 * equalities.len();
                Some(Condition::any(equalities))
            }
            Filter::Exists(field) => {
                let path = self.path(field, keys)?;
                Some(Condition::Plain(format!("attribute_exists({path})")))
            }
            Filter::All(parts) => Some(Condition::all(children(self, parts)?)),
            Filter::Any(parts) => Some(Condition::any(children(self, parts)?)),
            Filter::Not(child) => Some(self.condition(child, keys)?.not()),
        }
    }

    fn comparison(&mut self, path: &str, op: Comparison, value: &Scalar) -> Option<Condition> {
        let is_text = matches!(value, Scalar::Text(_));
        if is_text {
            self.reads_text(path, op == Comparison::Contains);
        }
        let operand = match value {
            Scalar::Null => Attribute::Null,
            Scalar::Boolean(value) => Attribute::Boolean(*value),
            Scalar::Number(text) => Attribute::Number(number::exactly(text)?),
            Scalar::Text(text) => Attribute::Text(text.clone()),
        };
        let word = match op {
            Comparison::Eq => "=",
            Comparison::Ne => {
                // The service's own holds also where there is nothing.
                self.operators += 3;
                let equality = self.comparison(path, Comparison::Eq, value)?;
                let exists = Condition::Plain(format!("attribute_exists({path})"));
                return Some(Condition::All(vec![exists, equality.not()]));
            }
            Comparison::Lt => "<",
            Comparison::Le => "<=",
            Comparison::Gt => ">",
            Comparison::Ge => ">=",
            // What each text begins with and contains, the service does not take.
            Comparison::BeginsWith | Comparison::Contains if *value == Scalar::Text(String::new()) => return None,
            Comparison::BeginsWith if !is_text => return None,
            Comparison::BeginsWith | Comparison::Contains => {
                let function = if op == Comparison::Contains { "contains" } else { "begins_with" };
                let value = self.value(operand);
                return Some(Condition::Plain(format!("{function}({path}, {value})")));
            }
        };
        match (value, op) {
            (Scalar::Null, Comparison::Eq | Comparison::Le | Comparison::Ge) => Some(self.of_type(path, "NULL")),
            (Scalar::Null, _) => None,
            // The service has no order of these.
            (Scalar::Boolean(value), _) if op != Comparison::Eq => match (op, value) {
                (Comparison::Lt, true) | (Comparison::Le, false) => {
                    self.comparison(path, Comparison::Eq, &Scalar::Boolean(false))
                }
                (Comparison::Gt, false) | (Comparison::Ge, true) => {
                    self.comparison(path, Comparison::Eq, &Scalar::Boolean(true))
                }
                (Comparison::Le, true) | (Comparison::Ge, false) => Some(self.of_type(path, "BOOL")),
                _ => None,
            },
            _ => {
                let value = self.value(operand);
                Some(Condition::Plain(format!("{path} {word} {value}")))
            }
        }
    }
}
