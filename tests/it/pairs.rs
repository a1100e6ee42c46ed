//! Every kind of store to every other one, both ways: what a migration brings is what was there, by its own word
//! (`larder verify`) and by what the test reads.
//!
//! The data is that of a host factory, corrected so that strict tables take it, and with it entities that are easy to damage;
//! `LARDER_PAIRS_ENTITIES` says how many of those, and `cargo xtask pairs` takes 20,000.

use std::collections::BTreeMap;

use larder_model::json;
use larder_samples::SEED;
use serde_json::{Map, Value};

use crate::model::setting;
use crate::support::{Folder, object};

/// Easily damaged entities of the short form: every awkward value is in at least one.
const ENTITIES: u64 = 200;

macro_rules! from_each {
    ($($kind:ident)*) => {
        const KINDS: &[&str] = &[$(stringify!($kind)),*];

        $(
            #[test]
            fn $kind() {
                check_from(stringify!($kind));
            }
        )*
    };
}

from_each! { json_single_file json_split_files sqlite_strict sqlite_relaxed postgres_strict postgres_relaxed dynamodb }

/// An entry of `storage.stores`. A store of PostgreSQL has the database of its own name, one of DynamoDB the tables.
fn store(name: &str, kind: &str) -> String {
    let section = match kind {
        "json_single_file" => format!(r#""json", "json_strategy": {{"base_path": "@/{name}"}}"#),
        "json_split_files" => {
            format!(r#""json", "json_strategy": {{"storage_type": "split_files", "base_path": "@/{name}"}}"#)
        }
        "dynamodb" => format!(r#""dynamodb", "dynamodb_strategy": {{~tables {name}~}}"#),
        _ => {
            let (database, constraints) = kind.split_once('_').expect("a database and its constraints");
            let place = match database {
                "sqlite" => format!(r#""type": "sqlite", "name": "@/{name}.db""#),
                _ => format!(r#""type": "postgresql", ~{name}~"#),
            };
            format!(r#""sql", "sql_strategy": {{{place}, "constraints": "{constraints}"}}"#)
        }
    };
    format!(r#""{name}": {{"strategy": {section}}}"#)
}

/// From one kind of store to a new one of each other kind.
fn check_from(kind: &str) {
    // The one that takes no large entities is the last.
    let targets: Vec<&str> = KINDS.iter().copied().filter(|target| *target != kind).collect();
    let mut stores = vec![store("given", "json_single_file"), store("source", kind)];
    stores.extend(targets.iter().map(|target| store(target, target)));
    let config = format!(
        // A look at all of a store is one call, and twenty thousand awkward entities take it some time.
        r#"{{"plugins": {{"call_timeout": 600}}, "migration": {{"create_backup": false}},
             "storage": {{"strategy": "given", "stores": {{{}}}}}}}"#,
        stores.join(", ")
    );
    let mut databases: Vec<&str> = targets.iter().copied().filter(|target| target.starts_with("postgres")).collect();
    if kind.starts_with("postgres") {
        databases.push("source");
    }
    let tables: &[&str] = if kind == "dynamodb" { &["source"] } else { &["dynamodb"] };
    let folder = Folder::with_services(&config, &databases, tables);
    let mut document = document();
    let large = large(&document);
    if kind == "dynamodb" {
        forget(&mut document, &large);
    }
    folder.write("given/request_database.json", Value::Object(document.clone()).to_string());
    folder.larder(&["migrate", "--from", "given", "--to", "source"]).exits(0);
    for target in targets {
        if target == "dynamodb" {
            let ids = large.iter().map(String::as_str);
            folder
                .larder(&["delete", "templates", "--store", "source", "--"].into_iter().chain(ids).collect::<Vec<_>>())
                .exits(0);
            forget(&mut document, &large);
        }
        let run = folder.larder(&["migrate", "--from", "source", "--to", target, "--format", "json"]).exits(0);
        let report = object(run.stdout.lines().last().expect("a report"));
        assert_eq!(report["verified"], true, "{kind} to {target}");
        folder.larder(&["verify", "--from", "source", "--to", target]).exits(0);
        check_same(&exported(&folder, target), &document, &format!("{kind} to {target}"));
    }
    check_same(&exported(&folder, "source"), &document, kind);
}

/// The templates that an item of DynamoDB may be too small for.
fn large(document: &Map<String, Value>) -> Vec<String> {
    let templates = document["templates"].as_object().expect("a collection");
    let is_large = |template: &Value| template.to_string().len() > 300_000;
    templates.iter().filter(|(_, template)| is_large(template)).map(|(id, _)| id.clone()).collect()
}

fn forget(document: &mut Map<String, Value>, ids: &[String]) {
    let templates = document["templates"].as_object_mut().expect("a collection");
    templates.retain(|id, _| !ids.contains(id));
}

/// What a store holds, as the program prints it: entities by collection and id.
fn exported(folder: &Folder, store: &str) -> BTreeMap<String, Map<String, Value>> {
    let mut collections: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for line in folder.larder(&["export", "--store", store]).exits(0).stdout.lines() {
        // An entity as deep as it may be stands one level down.
        let mut line = json::parse_wrapping(line.as_bytes(), 1).unwrap_or_else(|error| panic!("{error} in {line}"));
        let collection = line["collection"].as_str().expect("a name").to_owned();
        let entity = line.remove("entity").expect("an entity");
        let key = format!("{}_id", collection.strip_suffix('s').expect("a plural"));
        let id = entity[&key].as_str().expect("an id").to_owned();
        let earlier = collections.entry(collection).or_default().insert(id, entity);
        assert!(earlier.is_none(), "{store}: {earlier:?} comes twice");
    }
    collections
}

fn check_same(found: &BTreeMap<String, Map<String, Value>>, document: &Map<String, Value>, at: &str) {
    for (collection, expected) in document {
        let (found, expected) = (&found[collection], expected.as_object().expect("a collection"));
        for (id, entity) in expected {
            let found = found.get(id).unwrap_or_else(|| panic!("{at}: {collection} has no {id:?}"));
            assert!(json::equal(found, entity), "{at}: {collection} {id:?}\nfound    {found}\nexpected {entity}");
        }
        assert_eq!(found.len(), expected.len(), "{at}: {collection} has more than it should");
    }
}

/// What is moved. Strict tables take it: each template has all that is required, and each reference leads somewhere.
fn document() -> Map<String, Value> {
    let parsed = json::parse_wrapping(larder_samples::hostfactory(SEED).as_bytes(), 2);
    let mut document = parsed.unwrap_or_else(|error| panic!("{error}"));
    let count = setting("LARDER_PAIRS_ENTITIES").unwrap_or(ENTITIES);
    let templates = document["templates"].as_object_mut().expect("a collection");
    let any = Value::from(templates.keys().next().expect("a template").as_str());
    for template in templates.values_mut() {
        let template = template.as_object_mut().expect("an entity");
        template.entry("vm_type").or_insert_with(|| "t3.medium".into());
        template.entry("max_number").or_insert_with(|| 10.into());
    }
    let known: Vec<String> = templates.keys().cloned().collect();
    for entity in larder_samples::awkward(count as usize, SEED) {
        templates.insert(entity.id, Value::Object(object(entity.body)));
    }
    for request in document["requests"].as_object_mut().expect("a collection").values_mut() {
        let template = &mut request["template_id"];
        if !known.iter().any(|id| template == id.as_str()) {
            *template = any.clone();
        }
    }
    document
}
