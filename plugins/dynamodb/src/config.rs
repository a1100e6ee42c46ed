//! What the plugin reads of its section. Where the service is, and how tables are made and requests are sent, the host has
//! taken out of it already.

use larder_model::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The section.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) consistent_reads: bool,
    pub(crate) load_in_transactions: bool,
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
            "consistent_reads": {
                "description": "Whether reads see every write that was answered before, at twice the price. Indexes are \
                                always a little late, so a query uses one only where it is named.",
                "type": "boolean",
                "default": false,
            },
            "load_in_transactions": {
                "description": "Whether a bulk load puts new entities in transactions, on the condition that nothing is \
                                stored, at twice the write units; otherwise it looks first and writes without one.",
                "type": "boolean",
                "default": false,
            },
        },
    })
}
