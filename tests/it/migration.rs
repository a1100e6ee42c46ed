//! Moving data between strategies through the program, with made-up data of the real kind: what must arrive arrives
//! unchanged, and what cannot is refused before anything is written.

use larder_model::json;
use larder_samples::SEED;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sqlx::{Executor, Row};

use crate::support::{Folder, Run, object};

/// A JSON store, both kinds of tables in each database, those of DynamoDB, and JSON stores to come back to.
const STORES: &str = r#"{
  "storage": {
    "strategy": "json",
    "json_strategy": {"base_path": "@/data"},
    "sql_strategy": {"type": "sqlite", "name": "@/strict.db"},
    "stores": {
      "relaxed": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/relaxed.db", "constraints": "relaxed"}},
      "postgres_strict": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~strict~}},
      "postgres_relaxed": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~relaxed~, "constraints": "relaxed"}},
      "dynamodb": {"strategy": "dynamodb", "dynamodb_strategy": {~tables~}},
      "back": {"strategy": "json", "json_strategy": {"base_path": "@/back"}},
      "split": {"strategy": "json", "json_strategy": {"storage_type": "split_files", "base_path": "@/split"}}
    }COLLECTIONS
  },
  "migration": {"backup_location": "@/backups"}
}"#;

pub const SOURCE: &str = "data/request_database.json";
const BACK: &str = "back/request_database.json";

/// A folder whose JSON store holds `document`.
fn folder(document: &str) -> Folder {
    folder_with(document, "")
}

fn folder_with(document: &str, collections: &str) -> Folder {
    let folder = Folder::new(&STORES.replace("COLLECTIONS", collections));
    folder.write(SOURCE, document);
    folder
}

/// The same with a database for one of the stores of PostgreSQL, or with tables for that of DynamoDB, if it is one of those.
pub fn folder_for(document: &str, store: &str) -> Folder {
    let folder = Folder::for_store(&STORES.replace("COLLECTIONS", ""), store);
    folder.write(SOURCE, document);
    folder
}

fn sample(name: &str) -> String {
    let path = format!("{}/../samples/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn migrate(folder: &Folder, from: &str, to: &str, more: &[&str]) -> Run {
    let mut arguments = vec!["migrate", "--from", from, "--to", to];
    arguments.extend(more);
    folder.larder(&arguments)
}

/// The report at the end of what `--format json` printed.
pub fn report(run: &Run) -> Map<String, Value> {
    let report = object(run.stdout.lines().last().expect("a line"));
    assert_eq!(report["event"], "report", "{run:#?}");
    report
}

/// Of each collection that has any: how many were written, unchanged and skipped.
fn counts(report: &Map<String, Value>) -> Vec<(String, [u64; 3])> {
    let collections = report["collections"].as_array().unwrap();
    let counted = collections.iter().map(|collection| {
        let name = collection["collection"].as_str().unwrap().to_owned();
        (name, ["written", "unchanged", "skipped"].map(|count| collection[count].as_u64().unwrap()))
    });
    counted.filter(|(_, counts)| *counts != [0, 0, 0]).collect()
}

fn counted(expected: &[(&str, [u64; 3])]) -> Vec<(String, [u64; 3])> {
    expected.iter().map(|(name, counts)| (name.to_string(), *counts)).collect()
}

/// A document without the collections that are empty: whether they are written is the layout's business. Entities may be
/// as deep as they may, and stand two levels down.
fn without_empty(document: &str) -> Map<String, Value> {
    let mut document: Map<String, Value> = serde_json::from_str(document).expect("a document");
    document.retain(|_, collection| collection.as_object().is_none_or(|entities| !entities.is_empty()));
    document
}

#[track_caller]
fn assert_same_document(found: &str, expected: &str) {
    let (found, expected) = (without_empty(found), without_empty(expected));
    for (name, entities) in &expected {
        for (id, entity) in entities.as_object().expect("a collection") {
            let arrived = found.get(name).and_then(|entities| entities.get(id));
            let is_equal = arrived.is_some_and(|arrived| json::equal(arrived, entity));
            assert!(is_equal, "{name} {id}\nfound    {arrived:?}\nexpected {entity}");
        }
    }
    assert!(json::equal_objects(&found, &expected), "there is more than expected");
}

#[test]
fn a_host_factorys_data_goes_to_tables_and_comes_back_equal() {
    for tables in ["relaxed", "postgres_relaxed", "dynamodb"] {
        check_there_and_back(tables);
    }
}

fn check_there_and_back(tables: &str) {
    let document = larder_samples::hostfactory(SEED);
    let folder = folder_for(&document, tables);
    let run = migrate(&folder, "json", tables, &["--format", "json"]).exits(0);
    let there = report(&run);
    assert_eq!(
        counts(&there),
        counted(&[("templates", [50, 0, 0]), ("requests", [500, 0, 0]), ("machines", [2000, 0, 0])])
    );
    assert_eq!(there["verified"], true);
    for collection in there["collections"].as_array().unwrap() {
        assert_eq!(collection["source_digest"], collection["target_digest"]);
    }
    assert_eq!(folder.read(SOURCE), document, "the source is as it was");

    let run = migrate(&folder, tables, "back", &[]).exits(0);
    let said = format!("migrated 2550 entities from `{tables}` to `back`, verified equal");
    assert!(run.stderr.contains(&said), "{run:#?}");
    assert_same_document(&folder.read(BACK), &document);
    let run = folder.larder(&["verify", "--from", "json", "--to", "back"]).exits(0);
    assert_eq!(
        run.stdout,
        "templates: 50 entities, equal\nrequests: 500 entities, equal\nmachines: 2000 entities, equal\n"
    );
}

#[test]
fn awkward_values_go_through_every_store_and_come_back_equal() {
    let entities = larder_samples::awkward(200, SEED);
    let members: Vec<String> =
        entities.iter().map(|entity| format!("{}:{}", Value::from(entity.id.as_str()), entity.body)).collect();
    let document = format!("{{\"templates\":{{{}}}}}", members.join(","));
    let folder = folder(&document);
    for (from, to) in [("json", "sql"), ("sql", "split"), ("split", "relaxed"), ("relaxed", "back")] {
        migrate(&folder, from, to, &["--batch-size", "7", "--workers", "2"]).exits(0);
    }
    assert_same_document(&folder.read(BACK), &document);
}

#[test]
fn the_documented_example_is_refused_by_strict_tables_before_anything_is_written() {
    let document = sample("seed.json");
    let folder = folder(&document);
    let run = migrate(&folder, "json", "sql", &[]).exits(1);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.starts_with("error: 2 entities break a rule of store `sql`; nothing was written\n"), "{run:#?}");
    for line in [
        "caused by: machines.template_id is required: 1 entity, for example `machine-456`\n",
        "caused by: requests.request_type is required: 1 entity, for example `req-123`\n",
        "\nhint: correct the entities in the source, or let the target be less strict: for a SQL store, \
         `\"constraints\": \"relaxed\"`",
    ] {
        assert!(run.stderr.contains(line), "{line} is not in {}", run.stderr);
    }
    assert_eq!(folder.read(SOURCE), document, "byte for byte");
    // The migration's own lock files aside, there is nothing new: no database, no backup.
    let visible = |names: Vec<String>| names.into_iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>();
    assert_eq!(visible(folder.names("")), ["data", "larder.json"]);
    assert_eq!(visible(folder.names("data")), ["request_database.json"]);

    let run = migrate(&folder, "json", "sql", &["--format", "json"]).exits(1);
    let error = object(run.stderr.lines().last().unwrap());
    assert_eq!(error["kind"], "differs");
    assert_eq!(error["causes"].as_array().unwrap().len(), 2);

    // Relaxed tables take it.
    migrate(&folder, "json", "relaxed", &[]).exits(0);
    migrate(&folder, "relaxed", "back", &[]).exits(0);
    assert_same_document(&folder.read(BACK), &document);
}

#[test]
fn every_broken_rule_is_counted_references_too() {
    for tables in ["sql", "postgres_strict"] {
        check_rules(tables);
    }
}

fn check_rules(tables: &str) {
    let folder = folder_for(&larder_samples::hostfactory(SEED), tables);
    let run = migrate(&folder, "json", tables, &["--dry-run"]).exits(1);
    let said = format!("error: 150 entities break a rule of store `{tables}`; nothing was written\n");
    assert!(run.stderr.starts_with(&said), "{run:#?}");
    for rule in [
        "caused by: requests.template_id must name an entity of templates: 100 entities, for example `ret-",
        "caused by: templates.max_number is required: 50 entities, for example `",
        "caused by: templates.vm_type is required: 50 entities, for example `",
    ] {
        assert!(run.stderr.contains(rule), "{rule} is not in {}", run.stderr);
    }
    assert!(!folder.has("strict.db") && !folder.has("backups"));
}

/// Collections as an earlier program wrote them.
const CAMEL_CASE: &str = r#", "collections": {
    "templates": {"key": "templateId", "created_at": false, "updated_at": false},
    "requests": {
      "key": "requestId", "created_at": false, "updated_at": false,
      "fields": {"status": {"type": "text"}, "numRequested": {"type": "integer"}, "additionalProperties": {"type": "json"}},
      "indexes": {"status": ["status"]}
    },
    "machines": {
      "key": "machineId", "created_at": false, "updated_at": false,
      "fields": {"requestId": {"type": "text", "required": true, "max_length": 255}, "instanceTags": {"type": "json"}},
      "references": {"requestId": "requests"}
    }
  }"#;

#[test]
fn declared_collections_with_other_keys_go_to_sqlite_and_come_back() {
    let document = sample("poc_database.json");
    let undeclared = folder(&document);
    let run = migrate(&undeclared, "json", "relaxed", &[]).exits(1);
    assert!(
        run.stderr.contains("the key member `requestId` is missing")
            || run.stderr.contains("the key member `request_id` is missing: 2 entities"),
        "{run:#?}"
    );

    let folder = folder_with(&document, CAMEL_CASE);
    for target in ["relaxed", "sql"] {
        let run = migrate(&folder, "json", target, &["--format", "json"]).exits(0);
        assert_eq!(counts(&report(&run)), counted(&[("requests", [2, 0, 0]), ("machines", [4, 0, 0])]));
    }
    migrate(&folder, "sql", "back", &[]).exits(0);
    assert_same_document(&folder.read(BACK), &document);
    let run = folder.larder(&["count", "machines", "--filter", "status=running", "--store", "relaxed"]).exits(0);
    assert_eq!(run.stdout, "3\n");
}

#[test]
fn a_backup_opens_as_a_json_store_and_its_manifest_is_right() {
    let document = sample("request_database.json");
    let folder = folder(&document);
    let run = migrate(&folder, "json", "sql", &["--format", "json"]).exits(0);
    let names = folder.names("backups");
    assert_eq!(names.len(), 2, "{names:?}");
    let [backup, manifest] = [&names[0], &names[1]];
    assert!(backup.starts_with("migration_backup_json_20") && backup.ends_with("Z.json"), "{backup}");
    assert_eq!(*manifest, backup.replace(".json", ".manifest.json"));
    let path = format!("backups/{backup}");
    assert_eq!(report(&run)["backup"], folder.path().join(&path).to_str().unwrap());

    let text = folder.read(&path);
    assert_same_document(&text, &document);
    let manifest = object(folder.read(&format!("backups/{manifest}")));
    let sha256: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(manifest["sha256"], sha256.as_str());
    assert_eq!(manifest["document"], backup.as_str());
    assert_eq!(manifest["collections"].to_string(), r#"{"templates":3,"requests":4,"machines":8}"#);

    let opened = Folder::new(&format!(
        r#"{{"storage": {{"strategy": "json", "json_strategy": {{"base_path": "@/data", "filenames": {{"single_file": "{backup}"}}}}}}}}"#
    ));
    opened.write(&format!("data/{backup}"), &text);
    assert_eq!(opened.larder(&["count", "machines"]).exits(0).stdout, "8\n");
    assert_eq!(opened.larder(&["export"]).stdout, folder.larder(&["export"]).stdout);
}

#[test]
fn a_backup_goes_where_it_is_told_and_never_replaces_another() {
    let config = STORES.replace("COLLECTIONS", "").replace("@/backups", "@/kept/before.json");
    let folder = Folder::new(&config);
    folder.write(SOURCE, sample("request_database.json"));
    folder.write("kept/before.json", "precious");
    migrate(&folder, "json", "back", &[]).exits(0);
    migrate(&folder, "json", "split", &[]).exits(0);
    assert_eq!(
        folder.names("kept"),
        ["before-1.json", "before-1.manifest.json", "before-2.json", "before-2.manifest.json", "before.json"]
    );
    assert_eq!(folder.read("kept/before.json"), "precious");
}

#[test]
fn a_dry_run_writes_nothing_and_says_what_would_be_made() {
    let document = sample("request_database.json");
    let folder = folder(&document);
    let run = migrate(&folder, "json", "sql", &["--dry-run"]).exits(0);
    assert!(run.stderr.contains("would make: CREATE TABLE"), "{run:#?}");
    assert!(run.stderr.ends_with("dry run: nothing was written\n"), "{run:#?}");
    assert!(run.stdout.contains("machines    8     0"), "{run:#?}");
    let run = migrate(&folder, "json", "split", &["--dry-run", "--format", "json"]).exits(0);
    let report = report(&run);
    assert_eq!(
        (&report["dry_run"], &report["verified"], &report["backup"]),
        (&true.into(), &false.into(), &Value::Null)
    );
    assert_eq!(report["prepared"].as_array().unwrap().len(), 3, "{report:?}");
    for name in ["strict.db", "split/templates.json", "backups"] {
        assert!(!folder.has(name), "{name} was made");
    }
    assert_eq!(folder.read(SOURCE), document);
}

#[test]
fn migrating_again_changes_nothing() {
    for target in ["sql", "postgres_strict", "back", "dynamodb"] {
        let folder = folder_for(&sample("request_database.json"), target);
        migrate(&folder, "json", target, &[]).exits(0);
        let exported = || folder.larder(&["export", "--store", target]).exits(0).stdout;
        let before = exported();
        let run = migrate(&folder, "json", target, &["--format", "json"]).exits(0);
        let report = report(&run);
        assert_eq!(
            counts(&report),
            counted(&[("templates", [0, 3, 0]), ("requests", [0, 4, 0]), ("machines", [0, 8, 0])])
        );
        assert_eq!((&report["verified"], &report["prepared"]), (&true.into(), &Value::Array(vec![])));
        assert_eq!(exported(), before, "versions and times too");
    }
}

#[test]
fn what_the_target_holds_with_other_content_is_refused_left_or_replaced() {
    for target in ["relaxed", "sql", "postgres_strict", "postgres_relaxed", "back", "split", "dynamodb"] {
        let folder = folder_for(&sample("request_database.json"), target);
        migrate(&folder, "json", target, &[]).exits(0);
        let other = r#"{"template_id":"small","name":"Other","provider_api":"x","vm_type":"y","max_number":1}"#;
        folder.larder_with(&["save", "templates", "--store", target], other).exits(0);
        folder.larder_with(&["save", "templates"], &other.replace("small", "new")).exits(0);
        let stored = || folder.larder(&["get", "templates", "small", "--store", target]).exits(0).stdout;
        let before = stored();

        let run = migrate(&folder, "json", target, &[]).exits(1);
        assert!(run.stderr.contains("1 entity breaks a rule"), "{run:#?}");
        assert!(
            run.stderr
                .contains("templates: the target holds the entity with other content: 1 entity, for example `small`"),
            "{run:#?}"
        );
        assert!(run.stderr.contains("--existing"), "{run:#?}");
        assert_eq!(stored(), before);
        folder.larder(&["get", "templates", "new", "--store", target]).exits(1);

        let run = migrate(&folder, "json", target, &["--existing", "skip", "--format", "json"]).exits(0);
        assert_eq!(counts(&report(&run))[0], ("templates".into(), [1, 2, 1]));
        assert_eq!(stored(), before);
        let run = folder.larder(&["verify", "--from", "json", "--to", target]).exits(1);
        assert!(run.stdout.starts_with("templates: 4 entities and 4 entities, different\nrequests: 4"), "{run:#?}");

        let run = migrate(&folder, "json", target, &["--existing", "overwrite", "--format", "json"]).exits(0);
        assert_eq!(counts(&report(&run))[0], ("templates".into(), [1, 3, 0]));
        assert!(stored().contains("Small workers"));
        folder.larder(&["verify", "--from", "json", "--to", target]).exits(0);
    }
}

#[test]
fn what_the_target_holds_beside_it_stays_and_is_no_difference() {
    let folder = folder(&sample("request_database.json"));
    let more = r#"{"template_id":"mine","name":"Mine","provider_api":"x","vm_type":"y","max_number":1}"#;
    folder.larder_with(&["save", "templates", "--store", "sql"], more).exits(0);
    let run = migrate(&folder, "json", "sql", &["--format", "json"]).exits(0);
    assert_eq!(report(&run)["verified"], true);
    assert_eq!(folder.larder(&["count", "templates", "--store", "sql"]).stdout, "4\n");
}

#[test]
fn a_collection_that_is_not_configured_is_not_left_behind_unsaid() {
    let document = sample("request_database.json").replacen('{', r#"{"people": {"p": {"name": "P"}},"#, 1);
    let folder = folder(&document);
    let run = migrate(&folder, "json", "back", &[]).exits(2);
    assert_eq!(
        run.stderr.split("\n\n").map(str::trim_end).collect::<Vec<_>>(),
        [
            "error: store `json` holds collections that are not configured: `people`",
            "hint: declare each in `storage.collections`, or leave it behind with --exclude NAME"
        ]
    );
    assert!(!folder.has(BACK));
    migrate(&folder, "json", "back", &["--exclude", "people"]).exits(0);
    assert_same_document(&folder.read(BACK), &sample("request_database.json"));
    // Naming what is wanted leaves the rest as well.
    migrate(&folder, "json", "split", &["--collection", "templates"]).exits(0);
    assert_eq!(folder.larder(&["count", "templates", "--store", "split"]).stdout, "3\n");
    assert_eq!(folder.larder(&["count", "requests", "--store", "split"]).stdout, "0\n");
}

#[test]
fn entities_that_are_none_are_found_before_anything_is_written() {
    let folder = folder(
        r#"{"templates": {
            "a": {"template_id": "b"}, "b": {"template_id": "c"},
            "c": {"name": "no key"},
            "d": [],
            "e": {"template_id": "e", "x": 1, "x": 2},
            "fine": {"template_id": "fine"}
        }}"#,
    );
    for target in ["relaxed", "back"] {
        let run = migrate(&folder, "json", target, &[]).exits(1);
        assert!(run.stderr.contains("error: 5 entities"), "{run:#?}");
        for rule in [
            "templates: an entity's `template_id` is the name it is stored under: 2 entities, for example `",
            "the key member `template_id` is missing: 1 entity, for example `c`",
            "an entity is a JSON object, not an array: 1 entity, for example `d`",
            "the member name `x` stands twice: 1 entity, for example `e`",
        ] {
            assert!(run.stderr.contains(rule), "{rule} is not in {}", run.stderr);
        }
    }
    assert!(!folder.has("relaxed.db") && !folder.has(BACK) && !folder.has("backups"));
}

#[test]
fn verification_and_backup_can_be_left_out() {
    let folder = folder(&sample("request_database.json"));
    let run = migrate(&folder, "json", "sql", &["--no-verify", "--no-backup", "--format", "json"]).exits(0);
    let report = report(&run);
    assert_eq!((&report["verified"], &report["backup"]), (&false.into(), &Value::Null));
    assert!(!folder.has("backups"));
    let steps: Vec<String> = steps(&run, "ended");
    assert_eq!(steps, ["validate", "move"]);
    folder.larder(&["verify", "--from", "json", "--to", "sql"]).exits(0);
}

/// The steps of the events of this name, in order.
fn steps(run: &Run, event: &str) -> Vec<String> {
    let events = run.stdout.lines().map(object).filter(|line| line["event"] == event);
    events.map(|line| line["step"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn events_tell_of_each_step_and_end_with_the_report() {
    let folder = folder(&sample("request_database.json"));
    let run = migrate(&folder, "json", "sql", &["--format", "json", "--cleanup-source"]).exits(0);
    assert_eq!(run.stderr, "");
    let all = ["validate", "back up", "move", "verify", "clean up"];
    assert_eq!(steps(&run, "started"), all);
    assert_eq!(steps(&run, "ended"), all);
    let lines: Vec<_> = run.stdout.lines().map(object).collect();
    for step in all {
        let advanced: u64 = lines
            .iter()
            .filter(|line| line["event"] == "advanced" && line["step"] == step)
            .map(|line| line["entities"].as_u64().unwrap())
            .sum();
        assert_eq!(advanced, 15, "{step}");
    }
    assert_eq!(lines.iter().filter(|line| line["event"] == "report").count(), 1);
    report(&run);
}

#[test]
fn a_source_is_emptied_only_of_what_was_verified() {
    let document = sample("request_database.json").replacen('{', r#"{"people": {"p": {"name": "P"}},"#, 1);
    let folder = folder(&document);
    let run = migrate(&folder, "json", "sql", &["--cleanup-source", "--no-verify", "--exclude", "people"]).exits(2);
    assert!(run.stderr.contains("only after a verification"), "{run:#?}");
    assert_eq!(folder.read(SOURCE), document);

    let arguments = ["--cleanup-source", "--exclude", "people", "--format", "json"];
    let report = report(&migrate(&folder, "json", "sql", &arguments).exits(0));
    let removed: Vec<u64> = report["collections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|collection| collection["removed_from_source"].as_u64().unwrap())
        .collect();
    assert_eq!(removed, [3, 4, 8]);
    assert_eq!(
        without_empty(&folder.read(SOURCE)),
        object(r#"{"people": {"p": {"name": "P"}}}"#),
        "what was left behind stays"
    );
    // And back: out of tables with foreign keys, referring rows go first.
    migrate(&folder, "sql", "back", &["--cleanup-source"]).exits(0);
    assert_eq!(folder.larder(&["count", "templates", "--store", "sql"]).stdout, "0\n");
    assert_same_document(&folder.read(BACK), &sample("request_database.json"));
}

#[test]
fn what_the_target_was_to_keep_is_not_removed_from_the_source() {
    let folder = folder(&sample("request_database.json"));
    let other = r#"{"template_id":"small","name":"Other","provider_api":"x","vm_type":"y","max_number":1}"#;
    folder.larder_with(&["save", "templates", "--store", "sql"], other).exits(0);
    let run = migrate(&folder, "json", "sql", &["--existing", "skip", "--cleanup-source", "--no-backup"]).exits(0);
    assert!(run.stderr.contains("14 entities removed from the source"), "{run:#?}");
    let run = folder.larder(&["export"]).exits(0);
    assert!(run.stdout.lines().count() == 1 && run.stdout.contains("Small workers"), "{run:#?}");
}

#[test]
fn ten_thousand_machines_go_to_strict_tables_with_the_default_batches() {
    for tables in ["sql", "postgres_strict"] {
        check_ten_thousand_machines(tables);
    }
}

fn check_ten_thousand_machines(tables: &str) {
    let document = larder_samples::machines(10_000, SEED);
    let folder = folder_for(&document, tables);
    let run = migrate(&folder, "json", tables, &["--format", "json"]).exits(0);
    assert_eq!(
        counts(&report(&run)),
        counted(&[("templates", [10, 0, 0]), ("requests", [1000, 0, 0]), ("machines", [10_000, 0, 0])])
    );
    let count = ["count", "machines", "--store", tables, "--filter", "request_id=req-000000500"];
    assert_eq!(folder.larder(&count).exits(0).stdout, "10\n");
    migrate(&folder, tables, "split", &["--batch-size", "1000"]).exits(0);
    folder.larder(&["verify", "--from", "json", "--to", "split"]).exits(0);
}

#[test]
fn the_command_of_earlier_systems_is_understood() {
    let folder = folder(&sample("request_database.json"));
    let arguments = ["migrateRepository", "--source-type", "json", "--target-type", "sql", "--batch-size", "100"];
    let run = folder.larder(&arguments).exits(0);
    assert!(run.stderr.contains("migrated 15 entities from `json` to `sql`, verified equal\n"), "{run:#?}");
    let rows: Vec<Vec<&str>> = run.stdout.lines().map(|line| line.split_whitespace().take(5).collect()).collect();
    assert_eq!(
        rows,
        [
            ["COLLECTION", "READ", "WRITTEN", "UNCHANGED", "SKIPPED"],
            ["templates", "3", "3", "0", "0"],
            ["requests", "4", "4", "0", "0"],
            ["machines", "8", "8", "0", "0"]
        ]
    );
}

#[test]
fn one_place_under_two_names_is_refused() {
    let config = r#"{
      "storage": {
        "strategy": "json", "json_strategy": {"base_path": "@/data"},
        "sql_strategy": {"type": "sqlite", "name": "@/one.db"},
        "stores": {
          "twin": {"strategy": "json", "json_strategy": {"base_path": "@/other/../data"}},
          "sqltwin": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/one.db", "pool_size": 2, "constraints": "relaxed"}},
          "tidy": {"strategy": "json", "json_strategy": {"base_path": "@/data", "backup_count": 2}}
        }
      }
    }"#;
    let folder = Folder::new(config);
    let document = sample("request_database.json");
    folder.write(SOURCE, &document);
    for (from, to) in [("json", "json"), ("json", "twin"), ("sql", "sql"), ("sql", "sqltwin")] {
        let run = migrate(&folder, from, to, &[]).exits(2);
        assert!(run.stderr.starts_with(&format!("error: `{from}` and `{to}` are the same place\n")), "{run:#?}");
    }
    // One directory may hold two layouts, but then nobody may clean up.
    let run = migrate(&folder, "json", "tidy", &["--cleanup-source"]).exits(2);
    assert!(run.stderr.contains("--cleanup-source"), "{run:#?}");
    assert_eq!(folder.read(SOURCE), document);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_the_collection_that_was_edited_by_hand() {
    let folder = folder(&sample("request_database.json"));
    migrate(&folder, "json", "sql", &[]).exits(0);
    folder.larder(&["verify", "--from", "json", "--to", "sql"]).exits(0);
    folder
        .sqlite("strict.db")
        .await
        .execute("UPDATE machines SET status = 'EDITED' WHERE machine_id = 'machine-2003'")
        .await
        .unwrap();
    let run = folder.larder(&["verify", "--from", "json", "--to", "sql"]).exits(1);
    assert_eq!(
        run.stdout,
        "templates: 3 entities, equal\nrequests: 4 entities, equal\nmachines: 8 entities and 8 entities, different\n"
    );
    assert_eq!(
        run.stderr,
        "error: stores `json` and `sql` differ in machines\ncaused by: machines `machine-2003`: different in `status`\n"
    );
    let run =
        folder.larder(&["verify", "--from", "sql", "--to", "json", "--collection", "machines", "--format", "json"]);
    let line = object(run.exits(1).stdout.lines().next().unwrap());
    assert_eq!((&line["collection"], &line["equal"]), (&"machines".into(), &false.into()));
    let listed = r#"[{"key":"machine-2003","difference":"different","fields":["status"]}]"#;
    assert_eq!(line["differences"]["listed"].to_string(), listed);
    folder.larder(&["verify", "--from", "json", "--to", "sql", "--collection", "templates"]).exits(0);

    // One fewer is a difference too.
    migrate(&folder, "json", "back", &[]).exits(0);
    folder.larder(&["delete", "machines", "machine-2003", "--store", "back"]).exits(0);
    let run = folder.larder(&["verify", "--from", "json", "--to", "back"]).exits(1);
    assert!(run.stdout.ends_with("machines: 8 entities and 7 entities, different\n"), "{run:#?}");
    assert!(run.stderr.ends_with("caused by: machines `machine-2003`: only in the source\n"), "{run:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn migrated_rows_stand_in_their_columns() {
    let folder = folder(&sample("request_database.json"));
    migrate(&folder, "json", "sql", &[]).exits(0);
    let mut database = folder.sqlite("strict.db").await;
    let row = database
        .fetch_one("SELECT name, max_number, vm_type FROM templates WHERE template_id = 'large'")
        .await
        .unwrap();
    assert_eq!(
        (row.get::<&str, _>(0), row.get::<i64, _>(1), row.get::<&str, _>(2)),
        ("Large workers", 100, "c6i.8xlarge")
    );
    let row = database
        .fetch_one("SELECT COUNT(*) FROM machines JOIN requests USING (request_id) JOIN templates ON templates.template_id = machines.template_id")
        .await
        .unwrap();
    assert_eq!(row.get::<i64, _>(0), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_somebody_else_is_said_to_stay_behind_and_keeps_the_source_from_being_cleaned_up() {
    let folder = folder(&sample("request_database.json"));
    migrate(&folder, "json", "sql", &[]).exits(0);
    let mut database = folder.sqlite("strict.db").await;
    database.execute("ALTER TABLE templates ADD COLUMN colour TEXT").await.unwrap();
    drop(database);
    let run = migrate(&folder, "sql", "back", &["--cleanup-source"]).exits(1);
    assert!(run.stderr.contains("`colour`") && run.stderr.contains("--cleanup-source"), "{run:#?}");
    assert!(!folder.path().join(BACK).exists());
    let run = migrate(&folder, "sql", "back", &[]).exits(0);
    assert!(run.stderr.contains("warning: table `templates`: `colour`"), "{run:#?}");
}

#[test]
fn a_database_is_one_file_when_the_program_ends() {
    let folder = folder(&sample("request_database.json"));
    migrate(&folder, "json", "sql", &[]).exits(0);
    assert!(folder.path().join("strict.db").exists());
    assert!(!folder.path().join("strict.db-wal").exists(), "what is in the log is not in a copy of the file");
}

#[test]
fn a_document_of_the_split_layout_that_is_not_configured_is_not_left_behind_unsaid() {
    let folder = folder("{}");
    folder.write("split/orders.json", r#"{"o1": {"id": "o1"}}"#);
    let run = migrate(&folder, "split", "relaxed", &["--no-backup"]).exits(2);
    assert!(run.stderr.contains("`orders`"), "{run:#?}");
    migrate(&folder, "split", "relaxed", &["--no-backup", "--exclude", "orders"]).exits(0);
}
