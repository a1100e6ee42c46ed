//! What the conformance suite cannot look at, because it takes the program, several processes, or knowledge of one
//! strategy: a file that a person reads, a table that another program queries.

use std::collections::BTreeSet;
use std::fmt::Debug;

use larder::error::Error;
use larder::query::Select;
use larder::repository::Repository;
use larder_model::filter;
use larder_model::{Entity, ErrorKind, Existing, Expectation, json};
use serde_json::Value;
use sqlx::{Executor, Row};

use crate::support::{Folder, assert_same_object, object};

/// Every way to store, each in a place of its own.
const STORES: &str = r#"{
  "storage": {
    "strategy": "single",
    "stores": {
      "single": {"strategy": "json", "json_strategy": {"base_path": "@/single"}},
      "split": {"strategy": "json", "json_strategy": {"storage_type": "split_files", "base_path": "@/split"}},
      "strict": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/strict.db"}},
      "relaxed": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/relaxed.db", "constraints": "relaxed"}},
      "postgres_strict": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~strict~}},
      "postgres_relaxed": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~relaxed~, "constraints": "relaxed"}},
      "dynamodb": {"strategy": "dynamodb", "dynamodb_strategy": {~tables~}}
    }
  }
}"#;

/// A store that nothing was written to yet.
struct Place {
    folder: Folder,
    store: &'static str,
}

impl Place {
    fn new(store: &'static str) -> Place {
        Place { folder: Folder::for_store(STORES, store), store }
    }

    /// One place for each store.
    fn each() -> [Place; 7] {
        ["single", "split", "strict", "relaxed", "postgres_strict", "postgres_relaxed", "dynamodb"].map(Place::new)
    }

    /// A handle of its own: another host, another instance of the strategy.
    async fn open(&self) -> Repository {
        self.folder.open(self.store).await
    }

    /// Runs a statement in the database, as another program would, and gives the cells that it answers.
    async fn sql(&self, statement: &'static str) -> Vec<Option<String>> {
        match self.folder.databases() {
            [] => {
                let mut database = self.folder.sqlite(&format!("{}.db", self.store)).await;
                let rows = database.fetch_all(statement).await.unwrap();
                rows.iter().flat_map(|row| (0..row.len()).map(|cell| row.get(cell))).collect()
            }
            [database, ..] => {
                let rows = database.connect().await.fetch_all(statement).await.unwrap();
                rows.iter().flat_map(|row| (0..row.len()).map(|cell| row.get(cell))).collect()
            }
        }
    }
}

/// The stores with tables.
const TABLES: [&str; 4] = ["strict", "relaxed", "postgres_strict", "postgres_relaxed"];

/// A template with what the strict tables require, and more members, each preceded by a comma.
fn template(id: &str, more: &str) -> Vec<u8> {
    let number = if more.contains("\"max_number\"") { "" } else { r#","max_number":10"# };
    format!(
        r#"{{"template_id":{},"name":"Pool","provider_api":"RunInstances","vm_type":"t3.medium"{number}{more}}}"#,
        Value::from(id)
    )
    .into_bytes()
}

fn loadable(id: &str, more: &str) -> Entity {
    let body = template(id, more);
    let version = object(&body).get("version").and_then(Value::as_u64).unwrap_or(0);
    Entity { id: id.into(), version, body }
}

/// One stored entity's members.
async fn stored(repository: &Repository, collection: &str, id: &str) -> serde_json::Map<String, Value> {
    match repository.get(collection, &[id.to_owned()]).await.expect("an answer").remove(0) {
        Some(entity) => {
            let members = object(&entity.body);
            assert_eq!(entity.id, id);
            assert_eq!(Some(entity.version), members["version"].as_u64().or(Some(0)), "{members:?}");
            members
        }
        None => panic!("{collection} has no `{id}`"),
    }
}

async fn is_stored(repository: &Repository, id: &str) -> bool {
    repository.get("templates", &[id.to_owned()]).await.expect("an answer")[0].is_some()
}

#[track_caller]
fn refused<T: Debug>(result: Result<T, impl Into<Error>>, kind: ErrorKind) -> Error {
    let error: Error = result.expect_err("a refusal").into();
    assert!(error.is(kind), "{error:?} is not {kind:?}");
    error
}

async fn save(repository: &Repository, id: &str, more: &str) -> u64 {
    let (saved, outcome) =
        repository.save("templates", &template(id, more), Expectation::Any).await.expect("a saved entity");
    assert_eq!(saved, id);
    outcome.version
}

async fn ids_of(repository: &Repository, select: Select) -> String {
    let found = repository.query("templates", select).collect().await.expect("an answer");
    found.into_iter().map(|entity| entity.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_every_entity_once() {
    for place in Place::each() {
        check_export(place).await;
    }
}

async fn check_export(place: Place) {
    let repository = place.open().await;
    // More than a page of 4 MiB.
    let padding = "padding ".repeat(500);
    let entities: Vec<Entity> =
        (0..1500).map(|n| loadable(&format!("t{n}"), &format!(r#","version":{n},"padding":"{padding}""#))).collect();
    repository.load("templates", entities.clone(), Existing::Fail).await.unwrap();
    repository.flush().await.unwrap();

    let run = place.folder.larder(&["export", "--store", place.store]).exits(0);
    let mut seen = BTreeSet::new();
    for line in run.stdout.lines() {
        let line = object(line);
        assert_eq!(line["collection"], "templates");
        let Value::Object(found) = &line["entity"] else { panic!("{line:?}") };
        let id = found["template_id"].as_str().unwrap();
        let n: usize = id[1..].parse().unwrap();
        assert!(json::equal_objects(found, &object(&entities[n].body)), "{id}");
        assert!(seen.insert(n), "{id} comes twice");
    }
    assert_eq!(seen.len(), entities.len());
}

async fn get(repository: &Repository, id: &str) -> Vec<u8> {
    repository.get("templates", &[id.into()]).await.unwrap().remove(0).expect("an entity").body
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_write_at_once_lose_no_entity() {
    for place in Place::each() {
        check_processes(place).await;
    }
}

async fn check_processes(place: Place) {
    std::thread::scope(|scope| {
        for process in 0..4 {
            let place = &place;
            scope.spawn(move || {
                // One entity a line; what is saved at once crosses at once, so each gets a run of its own.
                for n in 0..25 {
                    let body = String::from_utf8(template(&format!("p{process}-{n}"), "")).unwrap();
                    let run = place.folder.larder_with(&["save", "templates", "--store", place.store], &body).exits(0);
                    assert_eq!(run.stdout, format!("saved templates `p{process}-{n}`, version 1\n"));
                }
            });
        }
    });
    assert_eq!(place.open().await.count("templates", None).await.unwrap(), 100);
}

/// What stands in a file is compared without the stamps.
fn without_stamps(document: &str) -> Value {
    let mut document: Value = serde_json::from_str(document).unwrap();
    fn strip(value: &mut Value) {
        if let Value::Object(members) = value {
            for name in ["version", "created_at", "updated_at"] {
                members.remove(name);
            }
            members.values_mut().for_each(strip);
        }
    }
    strip(&mut document);
    document
}

/// The example of the documentation.
fn seed() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/data/seed.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

async fn save_seed(repository: &Repository) {
    for (collection, entities) in seed().as_object().unwrap() {
        for entity in entities.as_object().unwrap().values() {
            repository.save(collection, entity.to_string().as_bytes(), Expectation::Absent).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_file_holds_every_collection_as_people_write_it() {
    let place = Place::new("single");
    let repository = place.open().await;
    save_seed(&repository).await;
    repository.close().await.unwrap();
    assert_eq!(without_stamps(&place.folder.read("single/request_database.json")), seed());
}

#[tokio::test(flavor = "multi_thread")]
async fn split_files_hold_one_collection_each() {
    let place = Place::new("split");
    let repository = place.open().await;
    save_seed(&repository).await;
    repository.close().await.unwrap();
    for collection in ["templates", "requests", "machines"] {
        let document = place.folder.read(&format!("split/{collection}.json"));
        assert_eq!(without_stamps(&document), seed()[collection]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_others_wrote_is_read_and_what_is_not_configured_is_kept() {
    let place = Place::new("single");
    let written = r#"{"people": {"p": {"any": [1.50, "thing"]}}, "templates": {"a": {"template_id": "a", "n": 1}},
        "note": "no collection at all"}"#;
    place.folder.write("single/request_database.json", written);
    let repository = place.open().await;
    let found = repository.get("templates", &["a".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!(found.version, 0);
    assert_same_object(&found.body, r#"{"template_id": "a", "n": 1}"#);

    save(&repository, "b", "").await;
    repository.close().await.unwrap();
    let document = object(place.folder.read("single/request_database.json"));
    assert_eq!(document["people"].to_string(), r#"{"p":{"any":[1.50,"thing"]}}"#, "digit for digit");
    assert_eq!(document["note"], "no collection at all");
    assert_eq!(document["templates"]["a"].to_string(), r#"{"template_id":"a","n":1}"#);

    // And what is edited by hand meanwhile is seen, not erased.
    place.folder.write("single/request_database.json", written.replace("\"n\": 1", "\"n\": 2"));
    save(&repository, "c", "").await;
    assert_eq!(object(get(&repository, "a").await)["n"], 2);
    assert!(!is_stored(&repository, "b").await);

    // Now the journal has a commit that the document has not: nobody but a person can say what is meant.
    place.folder.write("single/request_database.json", written);
    let error = refused(repository.get("templates", &["a".into()]).await, ErrorKind::Corrupt);
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("larder restore")), "{error:?}");
    let points: Vec<_> = repository.restore_points().await.unwrap().into_iter().map(|point| point.name).collect();
    assert_eq!(points[..2], ["request_database.json+journal", "request_database.json"]);
    repository.restore(&points[0]).await.unwrap();
    assert_eq!(object(get(&repository, "a").await)["n"], 1);
    assert!(is_stored(&repository, "c").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_under_another_name_or_without_its_key_is_corrupt() {
    let place = Place::new("single");
    let written =
        r#"{"templates": {"a": {"template_id": "b"}, "c": {"name": "x"}, "d": [], "e": {"template_id": "e"}}}"#;
    place.folder.write("single/request_database.json", written);
    let repository = place.open().await;
    for id in ["a", "c", "d"] {
        let error = refused(repository.get("templates", &[id.into()]).await, ErrorKind::Corrupt);
        assert!(error.message.contains(&format!("`{id}`")) || error.message.contains(&format!("{id:?}")), "{error}");
    }
    refused(repository.query("templates", Select::default()).collect().await, ErrorKind::Corrupt);
    assert!(is_stored(&repository, "e").await);
    let findings = repository.check(true).await.unwrap();
    assert_eq!(findings["readable"], true);
    assert_eq!(findings["findings"][0]["level"], "error");
    assert!(findings["findings"][0]["message"].as_str().unwrap().starts_with("3 of 4 entities of templates"));
}

const REQUEST: &str =
    r#"{"request_id":"r","template_id":"a","machine_count":1,"status":"NEW","request_type":"acquire"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn tables_have_the_documented_columns() {
    let place = Place::new("strict");
    place.open().await.prepare(false, false).await.unwrap();
    let mut database = place.folder.sqlite("strict.db").await;
    for (table, expected) in [
        (
            "templates",
            "template_id VARCHAR(255) key, name VARCHAR(255) required, provider_api VARCHAR(50) required, \
             vm_type VARCHAR(50) required, max_number INTEGER required, image_id VARCHAR(255), subnet_ids TEXT, \
             security_group_ids TEXT, attributes TEXT, created_at TIMESTAMP, updated_at TIMESTAMP",
        ),
        (
            "requests",
            "request_id VARCHAR(255) key, template_id VARCHAR(255) required, machine_count INTEGER required, \
             status VARCHAR(50) required, request_type VARCHAR(50) required, created_at TIMESTAMP, \
             updated_at TIMESTAMP, completed_at TIMESTAMP, tags TEXT, metadata TEXT",
        ),
        (
            "machines",
            "machine_id VARCHAR(255) key, request_id VARCHAR(255) required, template_id VARCHAR(255) required, \
             status VARCHAR(50) required, instance_type VARCHAR(50), provider_instance_id VARCHAR(255), \
             private_ip VARCHAR(45), public_ip VARCHAR(45), created_at TIMESTAMP, started_at TIMESTAMP, \
             terminated_at TIMESTAMP",
        ),
    ] {
        let rows = database.fetch_all(sqlx::query("SELECT * FROM pragma_table_info(?)").bind(table)).await.unwrap();
        let columns: Vec<String> = rows
            .iter()
            .map(|row| {
                let (is_key, required) = (row.get::<i64, _>("pk") == 1, row.get::<bool, _>("notnull"));
                let rule = if is_key {
                    " key"
                } else if required {
                    " required"
                } else {
                    ""
                };
                format!("{} {}{rule}", row.get::<String, _>("name"), row.get::<String, _>("type"))
            })
            .collect();
        let expected: Vec<&str> = expected.split(", ").collect();
        // What has no column of its own follows these.
        assert_eq!(columns[..expected.len()], expected, "{table}");
    }
    let references = database
        .fetch_all(r#"SELECT "from", "table", "to" FROM pragma_foreign_key_list('machines') ORDER BY 1"#)
        .await
        .unwrap();
    let references: Vec<[String; 3]> = references.iter().map(|row| [row.get(0), row.get(1), row.get(2)]).collect();
    assert_eq!(
        references,
        [["request_id", "requests", "request_id"], ["template_id", "templates", "template_id"]]
            .map(|names| names.map(String::from))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_can_be_queried_by_other_programs() {
    for store in TABLES {
        let place = Place::new(store);
        let repository = place.open().await;
        let more = r#","image_id":"ami-1","subnet_ids":["subnet-1","subnet-2"],"max_number":7,"extra":1"#;
        save(&repository, "a", more).await;
        repository.save("requests", REQUEST.as_bytes(), Expectation::Any).await.unwrap();
        let cells = place
            .sql(
                "SELECT t.name, CAST(max_number + 1 AS TEXT), CAST(subnet_ids AS TEXT), image_id, status \
                 FROM requests JOIN templates t USING (template_id)",
            )
            .await;
        let cells: Vec<&str> = cells.iter().flatten().map(String::as_str).collect();
        let [name, number, subnets, image, status] = *cells else { panic!("{store}: {cells:?}") };
        assert_eq!([name, number, image, status], ["Pool", "8", "ami-1", "NEW"], "{store}");
        let subnets: Value = serde_json::from_str(subnets).unwrap();
        assert_eq!(subnets, serde_json::json!(["subnet-1", "subnet-2"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_changed_by_hand_in_a_table_is_what_is_read() {
    for store in TABLES {
        let place = Place::new(store);
        let repository = place.open().await;
        save(&repository, "a", r#","image_id":"ami-1","extra":{"kept":true}"#).await;
        place.sql("UPDATE templates SET name = 'By hand', max_number = 99, image_id = NULL").await;
        place
            .sql(
                "INSERT INTO templates (template_id, name, provider_api, vm_type, max_number) \
                 VALUES ('hand', 'New', 'EC2Fleet', 't3.large', 3)",
            )
            .await;

        let found = stored(&repository, "templates", "a").await;
        assert_eq!((&found["name"], &found["max_number"]), (&"By hand".into(), &99.into()));
        assert!(found.get("image_id").is_none_or(Value::is_null), "{found:?}");
        assert_eq!(found["extra"]["kept"], true);
        assert_eq!(found["version"], 1, "a change by hand bumps no version");
        let inserted = object(get(&repository, "hand").await);
        assert_eq!((&inserted["name"], &inserted["vm_type"]), (&"New".into(), &"t3.large".into()));
        let by_name = Select { filter: Some(filter::parse_expression("name=New").unwrap()), ..Select::default() };
        assert_eq!(ids_of(&repository, by_name).await, "hand");
        // Whoever inserts by hand gives no version, which reads as 0.
        let outcome = repository.update("templates", "hand", &template("hand", ""), Some(0)).await.unwrap();
        assert_eq!(outcome.version, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_tables_reject_what_breaks_a_rule_and_relaxed_ones_keep_it() {
    let lengthy = r#""name":""#.to_owned() + &"n".repeat(256);
    let valid = String::from_utf8(template("a", "")).unwrap();
    let broken = [
        ("required", "templates", valid.replace(r#","vm_type":"t3.medium""#, "")),
        ("null", "templates", valid.replace(r#""t3.medium""#, "null")),
        ("length", "templates", valid.replace(r#""name":"Pool"#, &lengthy)),
        ("reference", "requests", REQUEST.replace(r#""template_id":"a""#, r#""template_id":"nothing""#)),
    ];
    // A declared type is what a field is expected to hold, and no rule.
    let unexpected = ("type", "templates", valid.replace(r#""max_number":10"#, r#""max_number":"ten","image_id":[]"#));

    for store in ["strict", "postgres_strict"] {
        let strict = Place::new(store);
        let repository = strict.open().await;
        for (what, collection, body) in &broken {
            let saved = repository.save(collection, body.as_bytes(), Expectation::Any).await;
            let error = refused(saved, ErrorKind::Rejected);
            assert!(error.message.contains(collection), "{store}, {what}: {error}");
        }
        assert_eq!(repository.count("templates", None).await.unwrap(), 0);
        assert_eq!(repository.count("requests", None).await.unwrap(), 0);
        check_kept(&repository, &unexpected).await;
    }
    for store in ["relaxed", "postgres_relaxed"] {
        let relaxed = Place::new(store);
        let repository = relaxed.open().await;
        for case in broken.iter().chain([&unexpected]) {
            check_kept(&repository, case).await;
        }
    }
}

async fn check_kept(repository: &Repository, (what, collection, body): &(&str, &str, String)) {
    let saved = repository.save(collection, body.as_bytes(), Expectation::Any).await;
    let (id, _) = saved.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let found = stored(repository, collection, &id).await;
    for (name, value) in object(body) {
        assert_eq!(found[&name], value, "{what}: {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_reference_keeps_what_it_points_to() {
    for store in ["strict", "postgres_strict"] {
        let place = Place::new(store);
        let repository = place.open().await;
        save(&repository, "a", "").await;
        repository.save("requests", REQUEST.as_bytes(), Expectation::Any).await.unwrap();
        refused(repository.delete("templates", "a", None).await, ErrorKind::Rejected);
        // It can be replaced all the same.
        assert_eq!(save(&repository, "a", r#","n":1"#).await, 2);
        repository.delete("requests", "r", None).await.unwrap();
        assert!(repository.delete("templates", "a", None).await.unwrap().existed);
    }
}
