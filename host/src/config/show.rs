//! What `larder config show` prints: the configuration with its defaults and without its secrets.
//!
//! It starts from the text as written, before variables were expanded: what came from the environment is never shown.

use serde_json::{Map, Value, json};

use super::environment::{Part, parts};
use super::{Config, collections, schema};

/// Words in the names of a third-party section's members that hold secrets.
const SECRET_WORDS: [&str; 6] = ["password", "passwd", "secret", "token", "key", "credential"];
/// What stands for a secret.
const HIDDEN: &str = "***";

pub(super) fn config(config: &Config) -> Value {
    let mut value = config.written.clone();
    for name in ["storage", "migration", "plugins"] {
        object(&mut value, name);
    }
    let storage = &mut value["storage"];
    let strategy = storage.get("strategy").and_then(Value::as_str).unwrap_or("json").to_owned();
    show_store(storage, &strategy);
    for store in storage.get_mut("stores").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        let strategy = store.get("strategy").and_then(Value::as_str).unwrap_or_default().to_owned();
        show_store(store, &strategy);
    }
    let collections: Map<String, Value> = config
        .collections
        .iter()
        .map(|collection| (collection.name.clone(), collections::as_written(collection)))
        .collect();
    storage["collections"] = collections.into();
    fill(&mut value, &schema::schema());
    value
}

/// A section without its secrets.
pub(super) fn without_secrets(section: &Map<String, Value>) -> Value {
    let mut section = Value::Object(section.clone());
    hide(&mut section, false);
    section
}

/// Hides a store's secrets, and adds the section that it has by default.
fn show_store(store: &mut Value, strategy: &str) {
    let Some(members) = store.as_object_mut() else { return };
    let section = format!("{strategy}_strategy");
    if super::resolve::BUILT_IN_SECTIONS.contains(&section.as_str()) {
        members.entry(section).or_insert(json!({}));
    }
    for (name, member) in members {
        if super::resolve::BUILT_IN_SECTIONS.contains(&name.as_str()) || name == "grants" {
            hide_passwords(member);
        } else if name.ends_with("_strategy") {
            hide(member, false);
        }
    }
}

fn hide_passwords(value: &mut Value) {
    for (name, member) in value.as_object_mut().into_iter().flatten() {
        if name == "password" { hide(member, true) } else { hide_passwords(member) }
    }
}

/// Hides what stands under a name that sounds like a secret; with `secret` everything.
fn hide(value: &mut Value, secret: bool) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let name = name.to_lowercase();
                hide(member, secret || SECRET_WORDS.iter().any(|word| name.contains(word)));
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(|element| hide(element, secret)),
        Value::String(text) if secret => *text = hidden(text),
        Value::Number(_) if secret => *value = HIDDEN.into(),
        _ => {}
    }
}

/// Only the names of variables are left of a secret.
fn hidden(text: &str) -> String {
    let mut shown = String::new();
    for part in parts(text) {
        match part {
            Part::Literal("") => {}
            Part::Variable { name, default: None } => shown.push_str(&format!("${{{name}}}")),
            Part::Variable { name, default: Some("") } => shown.push_str(&format!("${{{name}:-}}")),
            Part::Variable { name, default: Some(_) } => shown.push_str(&format!("${{{name}:-{HIDDEN}}}")),
            Part::Literal(_) | Part::Broken => {
                if !shown.ends_with(HIDDEN) {
                    shown.push_str(HIDDEN);
                }
            }
        }
    }
    shown
}

fn object(value: &mut Value, name: &str) {
    if value.get(name).is_none() {
        value[name] = json!({});
    }
}

/// Adds the defaults of `schema` that `value` leaves out.
fn fill(value: &mut Value, schema: &Value) {
    let Some(members) = value.as_object_mut() else { return };
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        if let (None, Some(default)) = (members.get(name), property.get("default")) {
            members.insert(name.clone(), default.clone());
        }
    }
    for (name, member) in members {
        let known = properties.and_then(|properties| properties.get(name));
        if let Some(schema) = known.or_else(|| schema.get("additionalProperties")) {
            fill(member, schema);
        }
    }
}
