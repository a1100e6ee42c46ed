//! Stores that are made to try a plugin out, and thrown away: in a scratch folder, unless somebody says where.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Config, absolute, environment, resolve};
use crate::error::Result;
use crate::plugin::Capability;

/// Stands for an empty folder in the strings of a store that is tried out.
pub(crate) const SCRATCH_VARIABLE: &str = "SCRATCH";
/// Stands for a word that no other trial has: part of a name where there is no folder.
pub(crate) const CASE_VARIABLE: &str = "CASE";

/// The store that a plugin is tried with where nobody says otherwise, as in `storage.stores` without `strategy`: it has
/// what the plugin wants, below the scratch folder.
pub(crate) fn store(strategy: &str, wants: &[Capability]) -> Map<String, Value> {
    let scratch = format!("${{{SCRATCH_VARIABLE}}}/store");
    // Where Amazon's own server for trials listens.
    let tables = json!({
        "region": "us-east-1", "endpoint_url": "http://localhost:8000", "table_prefix": format!("trial-${{{CASE_VARIABLE}}}")
    });
    with_loans(strategy, wants, &scratch, &tables)
}

/// The same as somebody would write it who begins with the strategy.
pub(crate) fn example(strategy: &str, wants: &[Capability]) -> Map<String, Value> {
    let tables = json!({ "region": "us-east-1", "table_prefix": strategy });
    let mut store = Map::from_iter([("strategy".to_owned(), strategy.into())]);
    store.extend(with_loans(strategy, wants, &format!("{strategy}-data"), &tables));
    store
}

/// What the strategy wants, in or beside `place`, where its kind of store has it.
fn with_loans(strategy: &str, wants: &[Capability], place: &str, tables: &Value) -> Map<String, Value> {
    let database = json!({ "type": "sqlite", "name": format!("{place}.db") });
    let store = match strategy {
        "json" => json!({"json_strategy": {"base_path": place}}),
        "sql" => json!({"sql_strategy": database}),
        "dynamodb" => json!({"dynamodb_strategy": tables}),
        _ => {
            let grant = |capability: &Capability| match capability {
                Capability::Files => json!({ "directory": place }),
                Capability::Sql => database.clone(),
                Capability::Dynamodb => tables.clone(),
                Capability::Tcp => json!({ "allow": ["localhost:6379"] }),
                Capability::Http => json!({ "allow": ["http://localhost:8080"] }),
            };
            let grants: Map<String, Value> = wants.iter().map(|it| (it.name().to_owned(), grant(it))).collect();
            if grants.is_empty() { json!({}) } else { json!({ "grants": grants }) }
        }
    };
    store.as_object().cloned().unwrap_or_default()
}

/// The configuration of a trial. `base_dir` is the host's own place beside the scratch folder.
pub(crate) fn config(document: Value, base_dir: &Path, scratch: &Path, case: &str) -> Result<Config> {
    let variables = |name: &str| match name {
        SCRATCH_VARIABLE => scratch.to_str().map(str::to_owned),
        CASE_VARIABLE => Some(case.to_owned()),
        _ => environment::variable(name),
    };
    resolve::config(document, &absolute(base_dir)?, None, &variables)
}
