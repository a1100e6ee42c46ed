//! What there is to say about the tables: whether they can be reached, read and written, how they are billed and scaled, and
//! in what they are not as they should be.

use larder_guest::{Capacity, Dynamodb, Expression, Item, ItemAction, KeySchema, TableStatus, Written};
use larder_model::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::{store::DynamodbStore, table::Table};

/// An id that is looked for and never written.
const PROBE: &str = "larder-check";

fn capacity(capacity: Option<Capacity>) -> Value {
    match capacity {
        Some(Capacity { read, write }) => json!({"mode": "PROVISIONED", "read": read, "write": write}),
        None => json!({"mode": "PAY_PER_REQUEST"}),
    }
}

fn shown(key: &KeySchema) -> String {
    match &key.range {
        Some(range) => format!("{}, {range}", key.hash),
        None => key.hash.clone(),
    }
}

impl<D: Dynamodb> DynamodbStore<D> {
    pub(crate) fn findings(&mut self) -> Result<String> {
        let mut findings = Vec::new();
        let mut add = |level: &str, message: String| findings.push(json!({"level": level, "message": message}));
        let (mut readable, mut writable) = (true, true);
        let mut listed = Vec::with_capacity(self.tables.len());
        for table in &self.tables {
            let name = &table.collection.name;
            let Some(status) = self.dynamodb.describe_table(name)? else {
                add("warning", format!("there is no table for `{name}`: `larder stores prepare` makes it"));
                listed.push(json!({"collection": name, "exists": false}));
                continue;
            };
            for message in differences(table, &status) {
                add("error", format!("table `{}`: {message}", status.name));
            }
            for (what, state) in status
                .indexes
                .iter()
                .map(|index| (format!("index `{}` of `{}`", index.name, status.name), &index.status))
                .chain([(format!("table `{}`", status.name), &status.status)])
                .filter(|(_, state)| *state != "ACTIVE")
            {
                add("warning", format!("{what} is {state}"));
            }
            if let Err(error) = read(&self.dynamodb, table) {
                readable = false;
                add("error", format!("table `{}` cannot be read: {}", status.name, error.message));
            }
            if let Err(error) = write(&self.dynamodb, table) {
                writable = false;
                add("error", format!("table `{}` cannot be written: {}", status.name, error.message));
            }
            listed.push(entry(table, &status));
        }
        let answer = json!({
            "reachable": true,
            "readable": readable,
            "writable": writable,
            "tables": listed,
            "unread": [],
            "findings": findings,
        });
        Ok(answer.to_string())
    }
}

fn entry(table: &Table, status: &TableStatus) -> Value {
    let indexes: Vec<Value> = status
        .indexes
        .iter()
        .map(|index| {
            json!({
                "name": index.name,
                "status": index.status,
                "key": shown(&index.key),
                "billing": capacity(index.capacity),
            })
        })
        .collect();
    json!({
        "collection": table.collection.name,
        "exists": true,
        "table": status.name,
        "status": status.status,
        "billing": capacity(status.capacity),
        "items": status.items,
        "size_bytes": status.bytes,
        "indexes": indexes,
        "scaling": status.scaling,
    })
}

/// In what a table is not as its collection wants it.
fn differences(table: &Table, status: &TableStatus) -> Vec<String> {
    let spec = table.spec();
    let mut messages = Vec::new();
    if status.key != spec.key {
        messages.push(format!("its key is {}, and should be {}", shown(&status.key), shown(&spec.key)));
    }
    for (name, key) in &spec.indexes {
        match status.indexes.iter().find(|index| index.name == *name) {
            None => messages.push(format!("the index `{name}` is missing: `larder stores prepare --extend` adds it")),
            Some(index) if index.key != *key => messages.push(format!(
                "the key of the index `{name}` is {}, and should be {}",
                shown(&index.key),
                shown(key)
            )),
            Some(index) if !index.holds_whole_items => {
                messages.push(format!("the index `{name}` does not hold whole items"));
            }
            Some(_) => {}
        }
    }
    messages
}

fn read<D: Dynamodb>(dynamodb: &D, table: &Table) -> Result<()> {
    dynamodb.get_items(&table.collection.name, vec![table.key(PROBE)], false).map(drop)
}

/// A write whose condition cannot hold tells whether it would be let through, and changes nothing.
fn write<D: Dynamodb>(dynamodb: &D, table: &Table) -> Result<()> {
    let item: Item = table
        .key(PROBE)
        .into_iter()
        .chain(table.keys.keys().map(|name| (name.clone(), larder_guest::Attribute::Text(PROBE.to_owned()))))
        .collect();
    let condition = Expression {
        text: "attribute_exists(#key) AND attribute_not_exists(#key)".to_owned(),
        names: vec![("#key".to_owned(), table.collection.key.clone())],
        values: Vec::new(),
    };
    let put = ItemAction::Put { collection: table.collection.name.clone(), item, condition: Some(condition) };
    match dynamodb.write_items(vec![put])?.pop() {
        Some(Ok(Written::Refused(_))) => Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok(Written::Done)) | None => {
            Err(Error::new(ErrorKind::Internal, "a write whose condition does not hold took effect"))
        }
    }
}
