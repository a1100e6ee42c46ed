//! What there is to say about the tables: whether they can be read and written, what they cost, and in what they are not as
//! they should be.

use larder_guest::{Capacity, Dynamodb, Expression, ItemAction, ItemScan, KeySchema, TableStatus};
use larder_model::{Error, Result};
use serde_json::{Value, json};

use crate::{store::is_usable, table::Table};

#[derive(Default)]
struct Findings {
    findings: Vec<Value>,
    /// The first error that kept from reading, and from writing.
    unreadable: bool,
    unwritable: bool,
}

impl Findings {
    fn add(&mut self, level: &str, message: String) {
        self.findings.push(json!({"level": level, "message": message}));
    }
}

pub(crate) fn check<D: Dynamodb>(dynamodb: &D, tables: &[Table]) -> Result<String> {
    let mut findings = Findings::default();
    let mut listed = Vec::with_capacity(tables.len());
    for table in tables {
        let name = &table.collection.name;
        let Some(status) = dynamodb.describe_table(name)? else {
            findings.add("warning", format!("there is no table of `{name}`: `larder stores prepare` makes it"));
            listed.push(json!({"collection": name, "exists": false}));
            continue;
        };
        listed.push(described(name, &status));
        compare(table, &status, &mut findings);
        if let Err(error) = read(dynamodb, table) {
            findings.unreadable = true;
            findings.add("error", format!("the table `{}` cannot be read: {error}", status.name));
        }
        if let Err(error) = write(dynamodb, table) {
            findings.unwritable = true;
            findings.add("error", format!("the table `{}` cannot be written: {error}", status.name));
        }
    }
    let answer = json!({
        "reachable": true,
        "readable": !findings.unreadable,
        "writable": !findings.unwritable,
        "tables": listed,
        // An attribute that somebody added is a member of its entity.
        "unread": [],
        "findings": findings.findings,
    });
    Ok(answer.to_string())
}

fn described(collection: &str, status: &TableStatus) -> Value {
    let indexes: Vec<Value> = status
        .indexes
        .iter()
        .map(|index| {
            json!({
                "name": index.name,
                "status": index.status,
                "key": key(&index.key),
                "billing": billing(index.capacity.as_ref()),
                "capacity": capacity(index.capacity.as_ref()),
            })
        })
        .collect();
    json!({
        "collection": collection,
        "exists": true,
        "table": status.name,
        "status": status.status,
        "key": key(&status.key),
        "billing": billing(status.capacity.as_ref()),
        "capacity": capacity(status.capacity.as_ref()),
        "items": status.items,
        "size_bytes": status.bytes,
        "indexes": indexes,
        "scaling": status.scaling,
    })
}

fn key(key: &KeySchema) -> Value {
    json!({"hash": key.hash, "range": key.range})
}

fn billing(capacity: Option<&Capacity>) -> &'static str {
    if capacity.is_some() { "provisioned" } else { "on-demand" }
}

fn capacity(capacity: Option<&Capacity>) -> Value {
    capacity.map_or(Value::Null, |capacity| json!({"read": capacity.read, "write": capacity.write}))
}

/// In what a table is not as the collection wants it.
fn compare(table: &Table, status: &TableStatus, findings: &mut Findings) {
    let (name, spec) = (&status.name, table.spec());
    if status.key != spec.key {
        findings.unreadable = true;
        findings.unwritable = true;
        let message = format!("the table `{name}` has another key than the text `{}` alone", spec.key.hash);
        findings.add("error", message);
    }
    if status.status != "ACTIVE" {
        findings.add("warning", format!("the table `{name}` is {}", status.status));
    }
    for index in table.indexes.iter().filter(|index| !is_usable(index, status)) {
        let found = status.indexes.iter().find(|found| found.name == index.name);
        let message = match found {
            None => "is missing: `larder stores prepare --extend` adds it".to_owned(),
            Some(found) if found.status != "ACTIVE" => format!("is {}", found.status),
            Some(found) if !found.holds_whole_items => "does not hold whole items".to_owned(),
            Some(_) => "has another key than the collection declares".to_owned(),
        };
        findings.add("warning", format!("the index `{}` of `{name}` {message}; queries scan instead", index.name));
    }
}

fn read<D: Dynamodb>(dynamodb: &D, table: &Table) -> Result<()> {
    let scan = ItemScan {
        collection: table.collection.name.clone(),
        segments: 1,
        filter: None,
        limit: 1,
        consistent: false,
        count_only: true,
    };
    dynamodb.scan(scan, vec![(0, None)]).map(drop)
}

/// Does what a write does under a condition that never holds.
fn write<D: Dynamodb>(dynamodb: &D, table: &Table) -> Result<()> {
    let condition = Expression {
        text: "attribute_exists(#key) AND attribute_not_exists(#key)".to_owned(),
        names: vec![("#key".to_owned(), table.collection.key.clone())],
        values: Vec::new(),
    };
    let action = ItemAction::Delete {
        collection: table.collection.name.clone(),
        key: table.key("larder check"),
        condition: Some(condition),
    };
    let unanswered = || Err(Error::corrupt("the service did not answer"));
    dynamodb.write_items(vec![action])?.pop().unwrap_or_else(unanswered).map(drop)
}
