//! The JSON Schema of a configuration, and what a person is told where a value does not keep to one.
//!
//! Messages name keys and rules, never the value that was found: it may be a password.

use jsonschema::error::ValidationErrorKind;
use jsonschema::{PatternOptions, ValidationError, Validator};
use schemars::generate::SchemaSettings;
use serde_json::{Number, Value};

use super::environment::{Part, parts};
use super::written::Document;
use crate::error::{Error, Result};

/// The JSON Schema of the whole configuration.
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<Document>()
        .to_value();
    tidy(&mut schema);
    schema
}

/// Takes out what says nothing to a reader: Rust's integer formats, `30.0` for 30, an object's default beside the defaults
/// of its members.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if members.get("format").is_some_and(Value::is_string) {
                members.shift_remove("format");
            }
            if members.get("default").is_some_and(|default| default.is_object() || default.is_array()) {
                members.shift_remove("default");
            }
            members.values_mut().for_each(tidy);
        }
        Value::Array(elements) => elements.iter_mut().for_each(tidy),
        Value::Number(number) => make_integer(number),
        _ => {}
    }
}

/// `30.0` and `3e1` as 30, because Rust reads no integer from them and JSON Schema says they are one.
fn make_integer(number: &mut Number) {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if let (None, None, Some(value)) = (number.as_u64(), number.as_i64(), number.as_f64())
        && value.fract() == 0.0
        && value.abs() < EXACT_MAX
    {
        *number = Number::from(value as i64);
    }
}

/// [`make_integer`] for every number in `value`.
pub(super) fn make_integers(value: &mut Value) {
    match value {
        Value::Number(number) => make_integer(number),
        Value::Array(elements) => elements.iter_mut().for_each(make_integers),
        Value::Object(members) => members.values_mut().for_each(make_integers),
        _ => {}
    }
}

/// Checks `value` with the schema of the whole configuration. A number or boolean that a variable in `written` brought
/// arrived as text: it becomes what it spells where the schema asks for it.
pub(super) fn check_document(value: &mut Value, written: &Value) -> Result<()> {
    check_numbers(value, &mut Vec::new())?;
    let schema = schema();
    let validator = compile(&schema)
        .map_err(|error| Error::config("the schema of the configuration is not one").caused_by(error.masked()))?;
    let texts: Vec<String> = validator
        .iter_errors(value)
        .filter(|error| matches!(error.kind(), ValidationErrorKind::Type { .. }) && error.instance().is_string())
        .map(|error| error.instance_path().as_str().to_owned())
        .collect();
    for pointer in texts {
        let from_variable = written
            .pointer(&pointer)
            .and_then(Value::as_str)
            .is_some_and(|text| parts(text).iter().any(|part| matches!(part, Part::Variable { .. })));
        if let (true, Some(text)) = (from_variable, value.pointer_mut(&pointer))
            && let Some(scalar @ (Value::Number(_) | Value::Bool(_))) =
                text.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *text = scalar;
        }
    }
    check_numbers(value, &mut Vec::new())?;
    report(&validator, &schema, value, &[])
}

/// Checks a strategy's section with the JSON Schema that its plugin publishes.
pub fn check_section(strategy: &str, section: &Value, schema_json: &str) -> Result<()> {
    let unusable = |cause: String| {
        Error::refused(format!("the plugin `{strategy}` publishes no usable JSON Schema")).caused_by(cause)
    };
    let schema: Value = serde_json::from_str(schema_json).map_err(|error| unusable(error.to_string()))?;
    check_numbers(&schema, &mut Vec::new()).map_err(|error| unusable(error.message))?;
    let validator = compile(&schema).map_err(|error| unusable(error.masked().to_string()))?;
    let path = vec![format!("{strategy}_strategy")];
    check_numbers(section, &mut path.clone())?;
    report(&validator, &schema, section, &path)
}

/// A plugin's schema is not trusted: patterns take linear time, and references out of the schema lead nowhere, because
/// the validator is built without a way to fetch them.
fn compile(schema: &Value) -> Result<Validator, ValidationError<'static>> {
    jsonschema::options().with_pattern_options(PatternOptions::regex()).build(schema)
}

/// Refuses what no setting can mean, and what the validator would have to round: numbers beyond 64 bits.
fn check_numbers(value: &Value, path: &mut Vec<String>) -> Result<()> {
    match value {
        Value::Number(number) if number.as_f64().is_none_or(|value| !value.is_finite()) => {
            Err(Error::config(format!("`{}` is a number beyond every bound", key_path(path))))
        }
        Value::Array(elements) => elements.iter().enumerate().try_for_each(|(index, element)| {
            path.push(index.to_string());
            check_numbers(element, path)?;
            path.pop();
            Ok(())
        }),
        Value::Object(members) => members.iter().try_for_each(|(name, member)| {
            path.push(name.clone());
            check_numbers(member, path)?;
            path.pop();
            Ok(())
        }),
        _ => Ok(()),
    }
}

fn report(validator: &Validator, schema: &Value, value: &Value, prefix: &[String]) -> Result<()> {
    let mut mistakes: Vec<Error> =
        validator.iter_errors(value).flat_map(|error| describe(&error, schema, prefix)).collect();
    match mistakes.len() {
        0 => Ok(()),
        1 => Err(mistakes.remove(0)),
        count => {
            let mut error = Error::config(format!("there are {count} mistakes"));
            for mistake in mistakes {
                error.causes.push(mistake.message);
                error.hint = error.hint.or(mistake.hint);
            }
            Err(error)
        }
    }
}

/// What `error` means, in words: one mistake for each key.
fn describe(error: &ValidationError<'_>, schema: &Value, prefix: &[String]) -> Vec<Error> {
    use ValidationErrorKind::*;
    let path: Vec<String> =
        prefix.iter().cloned().chain(error.instance_path().segments().map(|segment| segment.to_string())).collect();
    let key = key_path(&path);
    let rule = error.schema_path().as_str();
    let message = match error.kind() {
        AdditionalProperties { unexpected } | UnevaluatedProperties { unexpected } => {
            let known: Vec<&str> = rule
                .rsplit_once('/')
                .and_then(|(parent, _)| schema.pointer(parent)?.get("properties")?.as_object())
                .map(|properties| properties.keys().map(String::as_str).collect())
                .unwrap_or_default();
            return unexpected.iter().map(|name| unknown_key(&path, name, &known)).collect();
        }
        Required { property } => {
            let mut path = path;
            path.push(property.as_str().unwrap_or_default().to_owned());
            format!("`{}` is missing", key_path(&path))
        }
        Type { .. } => {
            let wanted = match schema.pointer(rule) {
                Some(Value::String(name)) => with_article(name),
                Some(Value::Array(names)) => {
                    names.iter().filter_map(Value::as_str).map(with_article).collect::<Vec<_>>().join(" or ")
                }
                _ => "of another type".to_owned(),
            };
            format!("`{key}` must be {wanted}, not {}", with_article(type_name(error.instance())))
        }
        Enum { options } => {
            let options: Vec<&str> =
                options.as_array().map(|all| all.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
            let options = match error.instance().as_str() {
                Some(given) => nearest_first(given, &options),
                None => options,
            };
            format!("`{key}` must be `{}`", options.join("` or `"))
        }
        Minimum { limit } => format!("`{key}` must be at least {limit}"),
        Maximum { limit } => format!("`{key}` must be at most {limit}"),
        ExclusiveMinimum { limit } => format!("`{key}` must be more than {limit}"),
        ExclusiveMaximum { limit } => format!("`{key}` must be less than {limit}"),
        MinLength { limit: 1 } => format!("`{key}` must not be empty"),
        MinLength { limit } => format!("`{key}` must have at least {limit} characters"),
        MaxLength { limit } => format!("`{key}` must have at most {limit} characters"),
        MinItems { limit: 1 } => format!("`{key}` must not be empty"),
        Pattern { pattern } => format!("`{key}` must match {pattern}"),
        kind => format!("`{key}` breaks the rule `{}` of its schema", kind.keyword()),
    };
    vec![Error::config(message)]
}

/// An error for `name`, which is none of the `known` keys of the object at `path`.
pub(super) fn unknown_key(path: &[String], name: &str, known: &[&str]) -> Error {
    let full = key_path(path.iter().map(String::as_str).chain([name]));
    let near = nearest_first(name, known);
    // A key that is known elsewhere was probably written one level too high or too low.
    // A third-party section has keys of its own.
    let is_ours = path.first().is_none_or(|first| !first.ends_with("_strategy"));
    let elsewhere = keys(&schema()).into_iter().map(|(path, _)| path);
    let elsewhere = elsewhere.filter(|_| is_ours).find(|path| path.rsplit('.').next() == Some(name));
    match (near.first(), elsewhere) {
        (Some(nearest), _) if is_near(name, nearest) => {
            Error::config(format!("`{full}` is no known key: did you mean `{nearest}`?"))
                .hint(format!("the keys there are `{}`", near.join("`, `")))
        }
        (_, Some(elsewhere)) => Error::config(format!("`{full}` is no known key: did you mean `{elsewhere}`?")),
        (Some(nearest), None) => Error::config(format!("`{full}` is no known key: the nearest one is `{nearest}`"))
            .hint(format!("the keys there are `{}`", near.join("`, `"))),
        (None, None) => Error::config(format!("`{full}` is no known key: there are none")),
    }
}

/// Whether one name was probably meant as the other: a third of it may be wrong.
fn is_near(name: &str, other: &str) -> bool {
    strsim::osa_distance(&name.to_lowercase(), &other.to_lowercase()) <= 1.max(other.chars().count() / 3)
}

/// `known` with the names first that are most like `name`.
pub(super) fn nearest_first<'a>(name: &str, known: &[&'a str]) -> Vec<&'a str> {
    let mut known = known.to_vec();
    known.sort_by_key(|known| strsim::osa_distance(&name.to_lowercase(), &known.to_lowercase()));
    known
}

/// The names on the way to a key, with dots; a name that would be misread is quoted.
pub(super) fn key_path(path: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let names: Vec<String> = path
        .into_iter()
        .map(|name| match name.as_ref() {
            name if !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-$".contains(c)) => {
                name.to_owned()
            }
            name => format!("{name:?}"),
        })
        .collect();
    if names.is_empty() { "the configuration".to_owned() } else { names.join(".") }
}

fn with_article(name: &str) -> String {
    match name {
        "null" => name.to_owned(),
        "array" | "object" | "integer" => format!("an {name}"),
        _ => format!("a {name}"),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Grants that have the keys of a section.
const SECTIONS_ELSEWHERE: [&str; 2] = ["storage.grants.sql", "storage.grants.dynamodb"];

/// Every key of `schema` in reading order, as its path with dots and its own schema. `NAME` stands for a name that is
/// free. The keys of an object stand together, before those of its members. A named store's section is not entered: it is
/// the one under `storage`.
pub(super) fn keys(schema: &Value) -> Vec<(String, Value)> {
    fn collect(schema: &Value, prefix: &str, found: &mut Vec<(String, Value)>) {
        let join = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        let members = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        found.extend(members.clone().map(|(name, member)| (join(name), member.clone())));
        for (path, member) in members.map(|(name, member)| (join(name), member)) {
            if !path.starts_with("storage.stores.NAME.") && !SECTIONS_ELSEWHERE.contains(&path.as_str()) {
                collect(member, &path, found);
            }
        }
        if let Some(free) = schema.get("additionalProperties").filter(|free| free.is_object()) {
            collect(free, &join("NAME"), found);
        }
    }
    let mut found = Vec::new();
    collect(schema, "", &mut found);
    found
}
