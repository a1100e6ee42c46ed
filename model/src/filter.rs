//! What a query asks, and exactly what it means: one evaluation for the host and for every strategy. Also the forms in
//! which a filter is written: the arena of `wit/types.wit`, JSON, and the command line's short expressions.

use std::cmp::Ordering;

use serde_json::{Map, Number, Value};

use crate::{
    Error, Result,
    json::{self, quoted},
    number,
    path::Path,
};

/// The most nodes that an arena may have.
pub const NODES_MAX: usize = 1_000;

/// The deepest that an arena may be nested; it bounds every recursion over a filter.
pub const DEPTH_MAX: usize = 64;

/// A JSON scalar to compare with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Scalar {
    Null,
    Boolean(bool),
    /// JSON text of a number.
    Number(String),
    Text(String),
}

impl Scalar {
    /// None for an array or an object.
    pub fn from_value(value: &Value) -> Option<Scalar> {
        match value {
            Value::Null => Some(Scalar::Null),
            Value::Bool(value) => Some(Scalar::Boolean(*value)),
            Value::Number(number) => Some(Scalar::Number(number.as_str().to_owned())),
            Value::String(text) => Some(Scalar::Text(text.clone())),
            Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// The JSON value.
    pub fn to_value(&self) -> Value {
        match self {
            Scalar::Null => Value::Null,
            Scalar::Boolean(value) => Value::Bool(*value),
            Scalar::Number(text) => Value::Number(Number::from_string_unchecked(text.clone())),
            Scalar::Text(text) => Value::String(text.clone()),
        }
    }

    /// How `value` compares with it; none where they are of different types.
    fn order_of(&self, value: &Value) -> Option<Ordering> {
        match (value, self) {
            (Value::Null, Scalar::Null) => Some(Ordering::Equal),
            (Value::Bool(value), Scalar::Boolean(scalar)) => Some(value.cmp(scalar)),
            (Value::Number(value), Scalar::Number(scalar)) => Some(number::compare(value.as_str(), scalar)),
            // UTF-8 sorts as its code points do.
            (Value::String(value), Scalar::Text(scalar)) => Some(value.as_str().cmp(scalar)),
            _ => None,
        }
    }

    fn equals(&self, value: &Value) -> bool {
        self.order_of(value) == Some(Ordering::Equal)
    }
}

/// How a field is compared with a scalar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Comparison {
    Eq,
    /// Where the field exists and `Eq` does not hold.
    Ne,
    Lt,
    /// Where `Lt` or `Eq` holds; so `null` is `Le` and `Ge` `null`.
    Le,
    Gt,
    /// Where `Gt` or `Eq` holds.
    Ge,
    /// Of text with text.
    BeginsWith,
    /// An element of an array equals the scalar, or a text has it as a substring.
    Contains,
}

impl Comparison {
    fn holds(self, value: &Value, scalar: &Scalar) -> bool {
        let order = || scalar.order_of(value);
        match self {
            Comparison::Eq => scalar.equals(value),
            Comparison::Ne => !scalar.equals(value),
            Comparison::Lt => order().is_some_and(Ordering::is_lt),
            Comparison::Le => order().is_some_and(Ordering::is_le),
            Comparison::Gt => order().is_some_and(Ordering::is_gt),
            Comparison::Ge => order().is_some_and(Ordering::is_ge),
            Comparison::BeginsWith => match (value, scalar) {
                (Value::String(value), Scalar::Text(scalar)) => value.starts_with(scalar.as_str()),
                _ => false,
            },
            Comparison::Contains => match (value, scalar) {
                (Value::Array(elements), scalar) => elements.iter().any(|element| scalar.equals(element)),
                (Value::String(value), Scalar::Text(scalar)) => value.contains(scalar.as_str()),
                _ => false,
            },
        }
    }
}

/// Which entities are meant. A comparison holds only where the field exists and both sides are of one JSON type.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Filter {
    Compare {
        field: Path,
        op: Comparison,
        value: Scalar,
    },
    /// Equals one of them.
    AnyOf {
        field: Path,
        values: Vec<Scalar>,
    },
    /// `null` exists too.
    Exists(Path),
    /// Of none it holds.
    All(Vec<Filter>),
    /// Of none it does not hold.
    Any(Vec<Filter>),
    /// The plain complement: it also holds where the field is absent.
    Not(Box<Filter>),
}

impl Filter {
    /// Whether the entity is meant.
    pub fn matches(&self, entity: &Map<String, Value>) -> bool {
        match self {
            Filter::Compare { field, op, value } => field.get(entity).is_some_and(|found| op.holds(found, value)),
            Filter::AnyOf { field, values } => {
                field.get(entity).is_some_and(|found| values.iter().any(|value| value.equals(found)))
            }
            Filter::Exists(field) => field.get(entity).is_some(),
            Filter::All(children) => children.iter().all(|child| child.matches(entity)),
            Filter::Any(children) => children.iter().any(|child| child.matches(entity)),
            Filter::Not(child) => !child.matches(entity),
        }
    }

    /// The parts that must all hold, in order: nested `All`s flattened; anything else is itself the only part.
    pub fn conjuncts(&self) -> Vec<&Filter> {
        fn collect<'a>(filter: &'a Filter, out: &mut Vec<&'a Filter>) {
            match filter {
                Filter::All(children) => children.iter().for_each(|child| collect(child, out)),
                other => out.push(other),
            }
        }
        let mut out = Vec::new();
        collect(self, &mut out);
        out
    }
}

/// A node of the arena in which a filter crosses the contract: children are positions of nodes that stand before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Node {
    Compare { field: Vec<String>, op: Comparison, value: Scalar },
    AnyOf { field: Vec<String>, values: Vec<Scalar> },
    Exists(Vec<String>),
    All(Vec<u32>),
    Any(Vec<u32>),
    Negate(u32),
}

/// The filter as an arena, the root last; empty where there is no filter.
pub fn to_arena(filter: Option<&Filter>) -> Vec<Node> {
    fn push(filter: &Filter, nodes: &mut Vec<Node>) -> u32 {
        let node = match filter {
            Filter::Compare { field, op, value } => {
                Node::Compare { field: field.0.clone(), op: *op, value: value.clone() }
            }
            Filter::AnyOf { field, values } => Node::AnyOf { field: field.0.clone(), values: values.clone() },
            Filter::Exists(field) => Node::Exists(field.0.clone()),
            Filter::All(children) => Node::All(children.iter().map(|child| push(child, nodes)).collect()),
            Filter::Any(children) => Node::Any(children.iter().map(|child| push(child, nodes)).collect()),
            Filter::Not(child) => Node::Negate(push(child, nodes)),
        };
        nodes.push(node);
        (nodes.len() - 1) as u32
    }
    let mut nodes = Vec::new();
    if let Some(filter) = filter {
        push(filter, &mut nodes);
    }
    nodes
}

/// The filter of an arena, none where it is empty. The arena comes from the other side of the contract, so everything
/// about it is checked: each node is used by one parent that stands after it, the root last, fields have names, numbers
/// are JSON, and [`NODES_MAX`] and [`DEPTH_MAX`] are kept.
pub fn from_arena(nodes: Vec<Node>) -> Result<Option<Filter>> {
    if nodes.len() > NODES_MAX {
        return Err(Error::invalid(format!("a filter has at most {NODES_MAX} nodes, not {}", nodes.len())));
    }
    // What no parent has taken yet, each with its depth.
    let mut built: Vec<Option<(Filter, usize)>> = Vec::with_capacity(nodes.len());
    for (i, node) in nodes.into_iter().enumerate() {
        let mut depth = 1;
        let mut take = |child: u32| match built.get_mut(child as usize).and_then(Option::take) {
            Some((filter, child_depth)) => {
                depth = depth.max(child_depth + 1);
                Ok(filter)
            }
            None => Err(Error::invalid(format!(
                "node {i} of a filter names node {child}, which does not stand before it or has a parent already"
            ))),
        };
        let filter = match node {
            Node::Compare { field, op, value } => {
                check_scalar(&value)?;
                Filter::Compare { field: check_field(field)?, op, value }
            }
            Node::AnyOf { field, values } => {
                values.iter().try_for_each(check_scalar)?;
                Filter::AnyOf { field: check_field(field)?, values }
            }
            Node::Exists(field) => Filter::Exists(check_field(field)?),
            Node::All(children) => Filter::All(children.into_iter().map(&mut take).collect::<Result<_>>()?),
            Node::Any(children) => Filter::Any(children.into_iter().map(&mut take).collect::<Result<_>>()?),
            Node::Negate(child) => Filter::Not(Box::new(take(child)?)),
        };
        if depth > DEPTH_MAX {
            return Err(Error::invalid(format!("a filter is nested at most {DEPTH_MAX} deep")));
        }
        built.push(Some((filter, depth)));
    }
    let root = built.pop().flatten();
    match built.iter().position(Option::is_some) {
        Some(i) => Err(Error::invalid(format!("node {i} of a filter has no parent, and the root stands last"))),
        None => Ok(root.map(|(filter, _)| filter)),
    }
}

fn check_field(field: Vec<String>) -> Result<Path> {
    match field.is_empty() {
        true => Err(Error::invalid("a field of a filter has no name")),
        false => Ok(Path(field)),
    }
}

fn check_scalar(scalar: &Scalar) -> Result<()> {
    match scalar {
        Scalar::Number(text) if !number::is_valid(text) => {
            Err(Error::invalid(format!("{} in a filter is not a JSON number", quoted(text))))
        }
        _ => Ok(()),
    }
}

/// The positions of the nodes that [`Filter::conjuncts`] answers, in the same order, in an arena that [`from_arena`]
/// takes.
pub fn conjunct_nodes(nodes: &[Node]) -> Vec<u32> {
    let mut out = Vec::new();
    let mut open: Vec<u32> = (nodes.len() as u32).checked_sub(1).into_iter().collect();
    while let Some(i) = open.pop() {
        match &nodes[i as usize] {
            // Only what stands before: an arena that is not valid ends too.
            Node::All(children) => open.extend(children.iter().rev().copied().filter(|&child| child < i)),
            _ => out.push(i),
        }
    }
    out
}

impl std::str::FromStr for Filter {
    type Err = Error;

    /// As [`parse_expression`] does.
    fn from_str(text: &str) -> Result<Self> {
        parse_expression(text)
    }
}

/// The names of the operators, for the message about one that is none of them.
const OPERATORS: &str = "=, !=, <, <=, >, >=, in, between, begins-with, contains, exists";

fn comparison(op: &str) -> Option<Comparison> {
    Some(match op {
        "=" | "eq" => Comparison::Eq,
        "!=" | "ne" => Comparison::Ne,
        "<" | "lt" => Comparison::Lt,
        "<=" | "le" => Comparison::Le,
        ">" | "gt" => Comparison::Gt,
        ">=" | "ge" => Comparison::Ge,
        "begins-with" => Comparison::BeginsWith,
        "contains" => Comparison::Contains,
        _ => return None,
    })
}

/// Reads the JSON form: `{"all":[…]}`, `{"any":[…]}`, `{"not":…}`, `{"field":"a.b","op":"in","value":[…]}`; any other
/// object is a conjunction of equalities, `{"a.b":1,"c":"x"}`, and the empty one means every entity.
pub fn parse_json(value: &Value) -> Result<Filter> {
    let Value::Object(map) = value else {
        return Err(Error::invalid(format!("a filter is a JSON object, not {}", json::type_name(value))));
    };
    let mut members = map.iter();
    match (members.next(), members.next()) {
        (Some((name, Value::Array(children))), None) if name == "all" => {
            return Ok(Filter::All(children.iter().map(parse_json).collect::<Result<_>>()?));
        }
        (Some((name, Value::Array(children))), None) if name == "any" => {
            return Ok(Filter::Any(children.iter().map(parse_json).collect::<Result<_>>()?));
        }
        (Some((name, child @ Value::Object(_))), None) if name == "not" => {
            return Ok(Filter::Not(Box::new(parse_json(child)?)));
        }
        _ => {}
    }
    if map.contains_key("field") && map.contains_key("op") {
        return parse_condition(map);
    }
    check_reserved(map)?;
    let equality = |(name, value): (&String, &Value)| {
        let value = Scalar::from_value(value).ok_or_else(|| {
            Error::invalid(format!(
                "{} in a filter is compared with {}, not with a scalar; a condition is written as \
                 {{\"field\":…,\"op\":…,\"value\":…}}, and all, any and not stand alone",
                quoted(name),
                json::type_name(value)
            ))
        })?;
        Ok(Filter::Compare { field: name.parse()?, op: Comparison::Eq, value })
    };
    let mut equalities = map.iter().map(equality).collect::<Result<Vec<_>>>()?;
    Ok(if equalities.len() == 1 { equalities.remove(0) } else { Filter::All(equalities) })
}

/// A slip in a condition must not become a conjunction of equalities, which would quietly hold for nothing.
fn check_reserved(map: &Map<String, Value>) -> Result<()> {
    let words = ["all", "any", "not", "field", "op", "value"];
    let Some(word) = words.into_iter().find(|word| map.contains_key(*word)) else { return Ok(()) };
    let is_alone = map.len() == 1;
    // `{"value":1}` can be nothing else than an equality, nor can `{"not":null}`.
    if is_alone && map.values().all(|value| Scalar::from_value(value).is_some()) {
        return Ok(());
    }
    let what = match word {
        "all" | "any" if is_alone => format!("{} takes an array of filters", quoted(word)),
        "not" if is_alone => "`not` takes a filter".to_owned(),
        "all" | "any" | "not" => format!("{} stands alone in its object", quoted(word)),
        _ => "a condition has `field` and `op`, and most have `value`".to_owned(),
    };
    Err(Error::invalid(format!(
        "{what}; an equality on a member of such a name is written as {{\"field\":\"{word}\",\"op\":\"=\",\"value\":…}}"
    )))
}

fn parse_condition(map: &Map<String, Value>) -> Result<Filter> {
    if let Some(name) = map.keys().find(|name| !matches!(name.as_str(), "field" | "op" | "value")) {
        let message = format!("a condition has `field`, `op` and `value`, and not {}", quoted(name));
        return Err(Error::invalid(message));
    }
    let (Value::String(field), Value::String(op)) = (&map["field"], &map["op"]) else {
        return Err(Error::invalid("`field` and `op` of a condition are strings"));
    };
    let field: Path = field.parse()?;
    let value = map.get("value");
    let wants = |what: &str| Error::invalid(format!("{op} of field {field} takes {what}"));
    let scalars =
        |value: Option<&Value>| -> Option<Vec<Scalar>> { value?.as_array()?.iter().map(Scalar::from_value).collect() };
    match op.as_str() {
        "exists" => match value {
            None => Ok(Filter::Exists(field)),
            Some(_) => Err(wants("no value")),
        },
        "in" => Ok(Filter::AnyOf {
            values: scalars(value).ok_or_else(|| wants("an array of scalars as its value"))?,
            field,
        }),
        "between" => match scalars(value).map(<[Scalar; 2]>::try_from) {
            Some(Ok([low, high])) => Ok(Filter::All(vec![
                Filter::Compare { field: field.clone(), op: Comparison::Ge, value: low },
                Filter::Compare { field, op: Comparison::Le, value: high },
            ])),
            _ => Err(wants("[low, high] as its value")),
        },
        _ => {
            let comparison = comparison(op).ok_or_else(|| {
                Error::invalid(format!("{} is no operator; the operators are {OPERATORS}", quoted(op)))
            })?;
            let value = value.and_then(Scalar::from_value).ok_or_else(|| wants("a scalar as its value"))?;
            if comparison == Comparison::BeginsWith && !matches!(value, Scalar::Text(_)) {
                return Err(wants("text as its value"));
            }
            Ok(Filter::Compare { field, op: comparison, value })
        }
    }
}

/// As they stand in an expression; the longer before those that they start with.
const EXPRESSION_OPERATORS: [(&str, Comparison); 8] = [
    ("!=", Comparison::Ne),
    ("<=", Comparison::Le),
    (">=", Comparison::Ge),
    ("^=", Comparison::BeginsWith),
    ("~=", Comparison::Contains),
    ("=", Comparison::Eq),
    ("<", Comparison::Lt),
    (">", Comparison::Gt),
];

/// Reads the command line's form: `field=value`, likewise `!=`, `<`, `<=`, `>`, `>=`, `^=` (begins with), `~=`
/// (contains), or `field` alone (exists). The value is read as JSON where it is a JSON scalar, else as text; after `^=`
/// it is always text. Spaces around the field and the value do not count, except inside quotes.
pub fn parse_expression(text: &str) -> Result<Filter> {
    let operator = |rest: &str| EXPRESSION_OPERATORS.into_iter().find(|(op, _)| rest.starts_with(op));
    let (field, rest) = Path::parse_prefix(text.trim(), |rest| operator(rest).is_some())?;
    let Some((op_text, op)) = operator(rest) else {
        return Ok(Filter::Exists(field));
    };
    let text = rest[op_text.len()..].trim();
    // `a==1` and `a=>1` are slips of who writes another language, and as they stand would quietly hold for nothing.
    let doubles = match op {
        Comparison::Eq => text.starts_with(['=', '<', '>']),
        Comparison::Lt => text.starts_with(['=', '>']),
        _ => text.starts_with('='),
    };
    if doubles {
        let end = text.find(|c| !matches!(c, '=' | '<' | '>')).unwrap_or(text.len());
        return Err(Error::invalid(format!(
            "`{op_text}{}` is no operator; a text that begins so is quoted: {field}{op_text}{}",
            &text[..end],
            Value::from(text)
        )));
    }
    let scalar = json::parse(text.as_bytes()).ok().as_ref().and_then(Scalar::from_value);
    let value = match (op, scalar) {
        (Comparison::BeginsWith, Some(Scalar::Text(text))) => Scalar::Text(text),
        (Comparison::BeginsWith, _) | (_, None) => Scalar::Text(text.to_owned()),
        (_, Some(scalar)) => scalar,
    };
    Ok(Filter::Compare { field, op, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn filter(text: &str) -> Filter {
        parse_json(&json::parse(text.as_bytes()).unwrap()).unwrap()
    }

    fn compare(field: &str, op: Comparison, value: Scalar) -> Filter {
        Filter::Compare { field: field.parse().unwrap(), op, value }
    }

    fn text(text: &str) -> Scalar {
        Scalar::Text(text.to_owned())
    }

    fn number(text: &str) -> Scalar {
        Scalar::Number(text.to_owned())
    }

    /// Which operators hold between each value and each scalar; the others of these eight do not.
    #[test]
    fn comparisons_hold_between_values_of_one_type() {
        const ALL: [&str; 8] = ["=", "!=", "<", "<=", ">", ">=", "begins-with", "contains"];
        for (value, scalar, holding) in [
            ("null", "null", "= <= >="),
            ("null", "0", "!="),
            ("null", "false", "!="),
            ("null", "\"\"", "!="),
            ("0", "null", "!="),
            ("false", "false", "= <= >="),
            ("false", "true", "!= < <="),
            ("true", "false", "!= > >="),
            ("true", "1", "!="),
            ("1", "1.0", "= <= >="),
            ("1.50", "15e-1", "= <= >="),
            ("-0", "0", "= <= >="),
            ("9007199254740993", "9007199254740992", "!= > >="),
            ("1e400", "1e401", "!= < <="),
            ("-1", "1", "!= < <="),
            ("1", "\"1\"", "!="),
            ("\"1\"", "1", "!="),
            ("\"abc\"", "\"abc\"", "= <= >= begins-with contains"),
            ("\"abc\"", "\"ab\"", "!= > >= begins-with contains"),
            ("\"abc\"", "\"bc\"", "!= < <= contains"),
            ("\"abc\"", "\"\"", "!= > >= begins-with contains"),
            ("\"\"", "\"a\"", "!= < <="),
            ("\"Z\"", "\"a\"", "!= < <="),
            ("\"\u{fb33}\"", "\"\u{1f600}\"", "!= < <="),
            ("[1,\"a\",null]", "1.0", "!= contains"),
            ("[1,\"a\",null]", "\"a\"", "!= contains"),
            ("[1,\"a\",null]", "null", "!= contains"),
            ("[\"abc\"]", "\"b\"", "!="),
            ("[[1]]", "1", "!="),
            ("[]", "null", "!="),
            ("{\"a\":1}", "\"a\"", "!="),
            ("{}", "null", "!="),
        ] {
            let entity = json::parse_object(format!(r#"{{"x":{{"y":{value}}}}}"#).as_bytes()).unwrap();
            let scalar = Scalar::from_value(&json::parse(scalar.as_bytes()).unwrap()).unwrap();
            assert_eq!(Scalar::from_value(&scalar.to_value()), Some(scalar.clone()));
            for op in ALL {
                let expected = holding.split(' ').any(|holds| holds == op);
                let there = compare("x.y", comparison(op).unwrap(), scalar.clone());
                assert_eq!(there.matches(&entity), expected, "{value} {op} {scalar:?}");
                assert_eq!(Filter::Not(Box::new(there)).matches(&entity), !expected);
                let absent = compare("x.z", comparison(op).unwrap(), scalar.clone());
                assert!(!absent.matches(&entity), "absent {op} {scalar:?}");
                assert!(Filter::Not(Box::new(absent)).matches(&entity));
            }
            let any_of = |values: Vec<Scalar>| Filter::AnyOf { field: "x.y".parse().unwrap(), values };
            let equal = holding.starts_with("= ");
            assert_eq!(any_of(vec![text("no such text"), scalar.clone()]).matches(&entity), equal);
            assert!(!any_of(vec![]).matches(&entity));
        }
    }

    #[test]
    fn filters_combine() {
        let entity = json::parse_object(br#"{"a":1,"b":{"c":null},"d":[1]}"#).unwrap();
        for (text, expected) in [
            ("{}", true),
            (r#"{"all":[]}"#, true),
            (r#"{"any":[]}"#, false),
            (r#"{"not":{"any":[]}}"#, true),
            (r#"{"a":1,"b.c":null}"#, true),
            (r#"{"a":1,"b.c":0}"#, false),
            (r#"{"field":"b.c","op":"exists"}"#, true),
            (r#"{"field":"b.c.d","op":"exists"}"#, false),
            (r#"{"field":"d","op":"exists"}"#, true),
            (r#"{"field":"d","op":"in","value":[1]}"#, false),
            (r#"{"field":"a","op":"in","value":[null,1.0]}"#, true),
            (r#"{"field":"a","op":"between","value":[1,2]}"#, true),
            (r#"{"field":"a","op":"between","value":[0,1.0]}"#, true),
            (r#"{"field":"a","op":"between","value":[2,0]}"#, false),
            (r#"{"field":"a","op":"between","value":["0",2]}"#, false),
            (r#"{"any":[{"a":2},{"not":{"a":2}}]}"#, true),
            (r#"{"all":[{"a":1},{"any":[{"a":2},{"x":1}]}]}"#, false),
        ] {
            assert_eq!(filter(text).matches(&entity), expected, "{text}");
        }
    }

    #[test]
    fn the_json_form_is_read() {
        let field = |name: &str| name.parse::<Path>().unwrap();
        for (given, expected) in [
            (r#"{"a":1}"#, compare("a", Comparison::Eq, number("1"))),
            (r#"{"\"a.b\"":"x"}"#, compare("\"a.b\"", Comparison::Eq, text("x"))),
            (r#"{"all":1}"#, compare("all", Comparison::Eq, number("1"))),
            (r#"{"not":null}"#, compare("not", Comparison::Eq, Scalar::Null)),
            (r#"{"field":"x"}"#, compare("field", Comparison::Eq, text("x"))),
            (r#"{"field":"op","op":"=","value":"x"}"#, compare("op", Comparison::Eq, text("x"))),
            (r#"{"field":"a.b","op":"=","value":1.50}"#, compare("a.b", Comparison::Eq, number("1.50"))),
            (r#"{"field":"a","op":"eq","value":true}"#, compare("a", Comparison::Eq, Scalar::Boolean(true))),
            (r#"{"field":"a","op":"ne","value":null}"#, compare("a", Comparison::Ne, Scalar::Null)),
            (r#"{"field":"a","op":"!=","value":1}"#, compare("a", Comparison::Ne, number("1"))),
            (r#"{"field":"a","op":"lt","value":1}"#, compare("a", Comparison::Lt, number("1"))),
            (r#"{"field":"a","op":"<","value":1}"#, compare("a", Comparison::Lt, number("1"))),
            (r#"{"field":"a","op":"le","value":1}"#, compare("a", Comparison::Le, number("1"))),
            (r#"{"field":"a","op":"<=","value":1}"#, compare("a", Comparison::Le, number("1"))),
            (r#"{"field":"a","op":"gt","value":1}"#, compare("a", Comparison::Gt, number("1"))),
            (r#"{"field":"a","op":">","value":1}"#, compare("a", Comparison::Gt, number("1"))),
            (r#"{"field":"a","op":"ge","value":1}"#, compare("a", Comparison::Ge, number("1"))),
            (r#"{"field":"a","op":">=","value":1}"#, compare("a", Comparison::Ge, number("1"))),
            (r#"{"field":"a","op":"begins-with","value":"x"}"#, compare("a", Comparison::BeginsWith, text("x"))),
            (r#"{"field":"a","op":"contains","value":1}"#, compare("a", Comparison::Contains, number("1"))),
            (r#"{"field":"a","op":"exists"}"#, Filter::Exists(field("a"))),
            (
                r#"{"field":"a","op":"in","value":["x",1]}"#,
                Filter::AnyOf { field: field("a"), values: vec![text("x"), number("1")] },
            ),
        ] {
            assert_eq!(filter(given), expected, "{given}");
        }
        for (given, message) in [
            ("[]", "a filter is a JSON object, not an array"),
            (r#"{"all":[1]}"#, "a filter is a JSON object, not a number"),
            (r#"{"a":[1]}"#, "`a` in a filter is compared with an array"),
            (r#"{"all":[],"a":1}"#, "`all` stands alone in its object; an equality on a member of such a name"),
            (r#"{"all":{"a":1}}"#, "`all` takes an array of filters; an equality"),
            (r#"{"not":[{"a":1}]}"#, "`not` takes a filter; an equality"),
            (r#"{"not":{"a":1},"any":[]}"#, "`any` stands alone in its object; an equality"),
            (
                r#"{"fied":"status","op":"=","value":1}"#,
                "a condition has `field` and `op`, and most have `value`; an equality on a member of such a name is \
                 written as {\"field\":\"op\",\"op\":\"=\",\"value\":…}",
            ),
            (r#"{"field":"a","value":1}"#, "a condition has `field` and `op`"),
            (r#"{"field":"a","opp":"=","value":1}"#, "a condition has `field` and `op`"),
            (r#"{"a":1,"op":"x"}"#, "a condition has `field` and `op`"),
            (r#"{"a":1,"value":"x"}"#, "a condition has `field` and `op`"),
            (r#"{"a..b":1}"#, "`a..b` is not a field"),
            (r#"{"field":1,"op":"="}"#, "`field` and `op` of a condition are strings"),
            (r#"{"field":"a","op":"="}"#, "= of field a takes a scalar as its value"),
            (r#"{"field":"a","op":"=","value":[]}"#, "= of field a takes a scalar as its value"),
            (r#"{"field":"a","op":"=","value":1,"x":1}"#, "a condition has `field`, `op` and `value`, and not `x`"),
            (r#"{"field":"a","op":"in","value":1}"#, "in of field a takes an array of scalars"),
            (r#"{"field":"a","op":"in","value":[[]]}"#, "in of field a takes an array of scalars"),
            (r#"{"field":"a","op":"between","value":[1]}"#, "between of field a takes [low, high]"),
            (r#"{"field":"a","op":"exists","value":null}"#, "exists of field a takes no value"),
            (r#"{"field":"a","op":"begins-with","value":1}"#, "begins-with of field a takes text"),
            (
                r#"{"field":"a","op":"like","value":1}"#,
                "`like` is no operator; the operators are =, !=, <, <=, >, >=, in, between, begins-with, contains, exists",
            ),
        ] {
            let error = parse_json(&json::parse(given.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.message.starts_with(message), "{given}: {error}");
        }
    }

    #[test]
    fn the_expression_form_is_read() {
        for (given, field, op, value) in [
            ("a=1", "a", Comparison::Eq, number("1")),
            ("a.b!=1.50", "a.b", Comparison::Ne, number("1.50")),
            ("a<1", "a", Comparison::Lt, number("1")),
            ("a<=1", "a", Comparison::Le, number("1")),
            ("a>1", "a", Comparison::Gt, number("1")),
            ("a>=-1", "a", Comparison::Ge, number("-1")),
            ("a^=vm-", "a", Comparison::BeginsWith, text("vm-")),
            ("a^=12", "a", Comparison::BeginsWith, text("12")),
            ("a^=\"1 \"", "a", Comparison::BeginsWith, text("1 ")),
            ("a~=12", "a", Comparison::Contains, number("12")),
            ("a~=x", "a", Comparison::Contains, text("x")),
            ("a=", "a", Comparison::Eq, text("")),
            ("a=null", "a", Comparison::Eq, Scalar::Null),
            ("a=true", "a", Comparison::Eq, Scalar::Boolean(true)),
            ("a=True", "a", Comparison::Eq, text("True")),
            ("a=\"1\"", "a", Comparison::Eq, text("1")),
            ("a=007", "a", Comparison::Eq, text("007")),
            ("a=[1]", "a", Comparison::Eq, text("[1]")),
            ("a={}", "a", Comparison::Eq, text("{}")),
            ("a=b=c.d<\"", "a", Comparison::Eq, text("b=c.d<\"")),
            (" a . b = x y ", "\"a \".\" b\"", Comparison::Eq, text("x y")),
            ("a!b!=1", "\"a!b\"", Comparison::Ne, number("1")),
            ("\"a.b=\".c>=1", "\"a.b=\".c", Comparison::Ge, number("1")),
            ("\"a\" = 1", "a", Comparison::Eq, number("1")),
            ("größe=1", "größe", Comparison::Eq, number("1")),
        ] {
            assert_eq!(parse_expression(given).unwrap(), compare(field, op, value), "{given}");
        }
        for (given, field) in [("a", "a"), (" a.b ", "a.b"), ("\"a=1\"", "\"a=1\""), ("a!", "\"a!\"")] {
            assert_eq!(parse_expression(given).unwrap(), Filter::Exists(field.parse().unwrap()), "{given}");
        }
        for (given, message) in [
            ("a==1", "`==` is no operator; a text that begins so is quoted: a=\"=1\""),
            ("a == 1", "`==` is no operator"),
            ("a===x", "`===` is no operator"),
            ("a!==x", "`!==` is no operator"),
            ("a=>1", "`=>` is no operator; a text that begins so is quoted: a=\">1\""),
            ("a=<1", "`=<` is no operator"),
            ("a<>1", "`<>` is no operator"),
        ] {
            let error = parse_expression(given).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.message.starts_with(message), "{given}: {error}");
        }
        assert_eq!("a=\"=1\"".parse::<Filter>().unwrap(), compare("a", Comparison::Eq, text("=1")));
        for given in ["", " ", "=1", "a.=1", ".a", "\"a=1", "\"a\"b=1", "a..b>1"] {
            assert_eq!(parse_expression(given).unwrap_err().kind, ErrorKind::InvalidArgument, "{given}");
        }
    }

    #[test]
    fn an_arena_that_is_no_tree_is_refused() {
        let leaf = || Node::Exists(vec!["a".to_owned()]);
        let chain = |depth: u32| -> Vec<Node> {
            let mut nodes = vec![leaf()];
            nodes.extend((0..depth - 1).map(Node::Negate));
            nodes
        };
        let wide = |count: u32| -> Vec<Node> {
            let mut nodes: Vec<_> = (1..count).map(|_| leaf()).collect();
            nodes.push(Node::All((0..count - 1).collect()));
            nodes
        };
        assert_eq!(from_arena(vec![]).unwrap(), None);
        assert!(from_arena(chain(DEPTH_MAX as u32)).is_ok());
        assert!(from_arena(wide(NODES_MAX as u32)).is_ok());
        let compare = |field: &[&str], number: &str| Node::Compare {
            field: field.iter().map(|&name| name.to_owned()).collect(),
            op: Comparison::Eq,
            value: Scalar::Number(number.to_owned()),
        };
        assert!(from_arena(vec![compare(&["a"], "1e400")]).is_ok());
        for (nodes, message) in [
            (chain(DEPTH_MAX as u32 + 1), "a filter is nested at most 64 deep"),
            (wide(NODES_MAX as u32 + 1), "a filter has at most 1000 nodes, not 1001"),
            (vec![Node::Negate(0)], "node 0 of a filter names node 0"),
            (vec![Node::Negate(1), leaf()], "node 0 of a filter names node 1"),
            (vec![leaf(), Node::Negate(u32::MAX)], "node 1 of a filter names node 4294967295"),
            (vec![leaf(), Node::All(vec![0, 0])], "node 1 of a filter names node 0"),
            (vec![leaf(), Node::Negate(0), Node::Any(vec![0, 1])], "node 2 of a filter names node 0"),
            (vec![leaf(), leaf()], "node 0 of a filter has no parent"),
            (vec![leaf(), leaf(), Node::Negate(1)], "node 0 of a filter has no parent"),
            (vec![compare(&[], "1")], "a field of a filter has no name"),
            (vec![Node::Exists(vec![])], "a field of a filter has no name"),
            (vec![compare(&["a"], "1 or 1")], "`1 or 1` in a filter is not a JSON number"),
            (
                vec![Node::AnyOf { field: vec!["a".to_owned()], values: vec![Scalar::Number("x".to_owned())] }],
                "`x` in a filter is not a JSON number",
            ),
        ] {
            let error = from_arena(nodes).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.message.starts_with(message), "{error}");
        }
    }

    /// A small generator of pseudo-random filters, the same in every run.
    struct Generator(u64);

    impl Generator {
        fn below(&mut self, bound: u64) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) % bound) as usize
        }

        fn name(&mut self) -> String {
            const PARTS: [&str; 12] = ["a", "b", ".", "\"", "\\", " ", "=", "é", "𝄞", "\n", "\0", "!="];
            (0..self.below(4)).map(|_| PARTS[self.below(12)]).collect()
        }

        fn path(&mut self) -> Path {
            Path((0..=self.below(3)).map(|_| self.name()).collect())
        }

        fn scalar(&mut self) -> Scalar {
            match self.below(4) {
                0 => Scalar::Null,
                1 => Scalar::Boolean(self.below(2) == 0),
                2 => Scalar::Number(["0", "-1.50", "1e400"][self.below(3)].to_owned()),
                _ => Scalar::Text(self.name()),
            }
        }

        fn op(&mut self) -> Comparison {
            EXPRESSION_OPERATORS[self.below(8)].1
        }

        fn filter(&mut self, depth: usize) -> Filter {
            match self.below(if depth == 0 { 3 } else { 7 }) {
                0 => Filter::Compare { field: self.path(), op: self.op(), value: self.scalar() },
                1 => Filter::AnyOf { field: self.path(), values: (0..self.below(3)).map(|_| self.scalar()).collect() },
                2 => Filter::Exists(self.path()),
                3 => Filter::Not(Box::new(self.filter(depth - 1))),
                4 => Filter::Any((0..self.below(4)).map(|_| self.filter(depth - 1)).collect()),
                _ => Filter::All((0..self.below(4)).map(|_| self.filter(depth - 1)).collect()),
            }
        }
    }

    #[test]
    fn filters_survive_the_arena_and_paths_their_text() {
        for seed in 0..2_000 {
            let mut generator = Generator(seed);
            let filter = generator.filter(4);
            let nodes = to_arena(Some(&filter));
            assert_eq!(from_arena(nodes.clone()).unwrap().as_ref(), Some(&filter), "seed {seed}");

            let parts: Vec<Filter> = conjunct_nodes(&nodes).into_iter().map(|i| subtree(&nodes, i)).collect();
            assert_eq!(parts.iter().collect::<Vec<_>>(), filter.conjuncts(), "seed {seed}");

            let path = generator.path();
            let shown = path.to_string();
            assert_eq!(shown.parse::<Path>().unwrap(), path, "seed {seed}");
            let expression = format!("{shown} = 1");
            assert_eq!(
                parse_expression(&expression).unwrap(),
                Filter::Compare { field: path, op: Comparison::Eq, value: number("1") },
                "seed {seed}"
            );
        }
        assert_eq!(to_arena(None), []);
        assert!(conjunct_nodes(&[]).is_empty());
    }

    /// The filter below one node of an arena in which a subtree stands directly before its root, as `to_arena` makes it.
    fn subtree(nodes: &[Node], root: u32) -> Filter {
        let child = |i: &u32| subtree(nodes, *i);
        match &nodes[root as usize] {
            Node::Compare { field, op, value } => {
                Filter::Compare { field: Path(field.clone()), op: *op, value: value.clone() }
            }
            Node::AnyOf { field, values } => Filter::AnyOf { field: Path(field.clone()), values: values.clone() },
            Node::Exists(field) => Filter::Exists(Path(field.clone())),
            Node::All(children) => Filter::All(children.iter().map(child).collect()),
            Node::Any(children) => Filter::Any(children.iter().map(child).collect()),
            Node::Negate(i) => Filter::Not(Box::new(child(i))),
        }
    }
}
