//! Environment variables: `${NAME}` and `${NAME:-default}` in the strings of a configuration.

use std::path::PathBuf;

use serde_json::Value;

use super::schema::key_path;
use crate::error::{Error, Result};

/// Where variables come from; tests bring their own.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A variable of this process. One that is not UTF-8 counts as not set: JSON could not hold it.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A path from a variable of this process, which an empty value does not name.
pub(super) fn path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Expands every string in `value`. `path` is where it stands, for the message.
pub(super) fn expand(value: &mut Value, path: &mut Vec<String>, variables: Variables) -> Result<()> {
    match value {
        Value::String(text) => *text = expand_text(text, path, variables)?,
        Value::Array(elements) => {
            for (index, element) in elements.iter_mut().enumerate() {
                path.push(index.to_string());
                expand(element, path, variables)?;
                path.pop();
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                path.push(name.clone());
                expand(member, path, variables)?;
                path.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

fn expand_text(text: &str, path: &[String], variables: Variables) -> Result<String> {
    let mut expanded = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Literal(literal) => expanded.push_str(literal),
            Part::Variable { name, default } => match (variables(name), default) {
                (Some(value), _) if !value.is_empty() || default.is_none() => expanded.push_str(&value),
                (_, Some(default)) => expanded.push_str(default),
                _ => {
                    return Err(Error::config(format!(
                        "`{}` needs the environment variable {name}, which is not set",
                        key_path(path)
                    ))
                    .hint(format!("set {name}, or write a default: ${{{name}:-default}}")));
                }
            },
            Part::Broken => {
                return Err(Error::config(format!(
                    "`{}` has a `${{` that no variable's name and `}}` follow",
                    key_path(path)
                ))
                .hint("write ${NAME} or ${NAME:-default}, and $${ where the text itself is meant"));
            }
        }
    }
    Ok(expanded)
}

/// A piece of a string.
pub(super) enum Part<'a> {
    /// Text that stands for itself.
    Literal(&'a str),
    /// `${NAME}` or `${NAME:-default}`. As in a shell, the default also stands in for an empty value.
    Variable { name: &'a str, default: Option<&'a str> },
    /// A `${` that is neither.
    Broken,
}

/// The pieces of `text` in order.
pub(super) fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            parts.push(Part::Literal(&rest[..start - 1]));
            parts.push(Part::Literal("${"));
            rest = &rest[start + 2..];
            continue;
        }
        parts.push(Part::Literal(&rest[..start]));
        let inner = &rest[start + 2..];
        let Some(end) = inner.find('}') else {
            parts.push(Part::Broken);
            return parts;
        };
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        let named = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        parts.push(if named { Part::Variable { name, default } } else { Part::Broken });
        rest = &inner[end + 1..];
    }
    parts.push(Part::Literal(rest));
    parts
}
