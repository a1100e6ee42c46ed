//! What the plugin reads of its section. Where the database is, and how connections to it are kept, the host has taken
//! out of it already.

use larder_model::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The section.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) constraints: Constraints,
}

/// How much of a collection's definition the database enforces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Constraints {
    /// NOT NULL, FOREIGN KEY and lengths.
    #[default]
    Strict,
    /// Columns, primary key and indexes only.
    Relaxed,
}

impl Config {
    pub(crate) fn parse(text: &str) -> Result<Config> {
        // An object first: a struct would be read from an array too.
        serde_json::from_str::<Map<String, Value>>(text)
            .and_then(|section| serde_json::from_value(Value::Object(section)))
            .map_err(|error| Error::invalid(format!("configuration of the strategy: {error}")))
    }
}

/// The JSON Schema of [`Config`].
pub(crate) fn schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "constraints": {
                "description": "`strict`: tables enforce required fields, lengths and references. `relaxed`: columns, \
                                primary key and indexes only.",
                "type": "string",
                "enum": ["strict", "relaxed"],
                "default": "strict",
            },
        },
    })
}
