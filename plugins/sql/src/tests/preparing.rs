//! Tables that are there already: what is missing is added when that is asked for, and what larder remembers of them is
//! what queries may rely on.

use super::*;

on_both! {
    a_field_that_was_declared_later_is_a_column_once_it_is_asked_for,
    a_required_field_can_be_added_to_rows,
    a_column_that_was_added_by_hand_is_not_relied_on,
    a_table_of_a_newer_schema_is_refused,
    an_index_that_is_missing_is_made,
    declared_indexes_are_made_behind_a_load,
    what_check_says_of_tables,
}

fn notes(fields: Vec<Field>) -> Vec<Collection> {
    vec![collection("notes", "id", fields)]
}

fn by(field: &str, value: &str) -> Query {
    let tree = json::parse(format!(r#"{{"{field}":{value}}}"#).as_bytes()).unwrap();
    Query { filter: Some(filter::parse_json(&tree).unwrap()), ..everything() }
}

fn a_field_that_was_declared_later_is_a_column_once_it_is_asked_for(place: Place) {
    let mut fixture = open(place, "{}", notes(vec![]));
    let bodies = [
        r#"{"id":"a","color":"red","n":1.0,"flat":5}"#,
        r#"{"id":"b","color":null,"n":2}"#,
        r#"{"id":"c","color":"a\u0000b","größe":"x"}"#,
        r#"{"id":"d"}"#,
    ];
    fixture.load("notes", &bodies.map(str::to_owned), Existing::Fail);
    let fields =
        || vec![field("color", FieldType::Text), field("n", FieldType::Integer), field("größe", FieldType::Text)];
    let mut later = fixture.reopen("{}", notes(fields()));
    let error = later.prepare(false, false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert!(error.message.contains("`color` TEXT is missing") && error.message.contains("prepare --extend"), "{error}");
    assert_eq!(later.get("notes", &["a".to_owned()]).unwrap_err().kind, ErrorKind::Rejected);

    let would = later.prepare(true, true).unwrap();
    assert!(would[0].starts_with("ALTER TABLE \"notes\" ADD COLUMN \"color\" TEXT"), "{would:?}");
    assert!(later.prepare(true, false).is_err(), "a dry run adds nothing");
    assert_eq!(later.prepare(false, true).unwrap(), would);
    assert_eq!(later.prepare(false, true).unwrap(), [""; 0]);
    assert_eq!(later.prepare(false, false).unwrap(), [""; 0]);
    for body in bodies {
        let found = later.get("notes", &[entity(body).id]).unwrap().remove(0).unwrap();
        assert_same(std::str::from_utf8(&found.body).unwrap(), body, "after");
    }
    // What was written before the column is found by it.
    for (query, expected) in [
        (by("color", r#""red""#), "a"),
        (by("color", "null"), "b"),
        (by("color", r#""a\u0000b""#), "c"),
        (by("n", "1"), "a"),
        (by("größe", r#""x""#), "c"),
    ] {
        let page = later.find("notes", &query).unwrap();
        assert_eq!(page.unapplied, [0; 0], "{query:?}");
        assert_eq!(page.entities.iter().map(|entity| entity.id.as_str()).collect::<Vec<_>>(), [expected], "{query:?}");
    }
    let red = fixture.by_hand("SELECT id FROM notes WHERE color = 'red'").cells;
    assert_eq!(red, [SqlValue::Text("a".to_owned())]);
    // Who knows nothing of the new columns reads on.
    assert!(fixture.reopen("{}", notes(vec![])).get("notes", &["d".to_owned()]).unwrap()[0].is_some());
}

fn a_required_field_can_be_added_to_rows(place: Place) {
    let mut fixture = open(place, "{}", notes(vec![]));
    fixture.load("notes", &[r#"{"id":"a"}"#.to_owned()], Existing::Fail);
    let fields = vec![Field { required: true, ..field("kind", FieldType::Text) }];
    let mut later = fixture.reopen("{}", notes(fields));
    later.prepare(false, true).unwrap();
    // The rows that lack it stay; a new one is refused.
    assert_eq!(later.prepare(false, false).unwrap(), [""; 0]);
    assert!(later.get("notes", &["a".to_owned()]).unwrap()[0].is_some());
    let lacking = later.apply(vec![put("notes", r#"{"id":"b"}"#, Expectation::Any)], true, NOW).unwrap_err();
    assert_eq!(lacking.kind, ErrorKind::Rejected);
    later.apply(vec![put("notes", r#"{"id":"b","kind":"x"}"#, Expectation::Any)], true, NOW).unwrap();
}

fn a_column_that_was_added_by_hand_is_not_relied_on(place: Place) {
    let mut fixture = open(place, "{}", notes(vec![]));
    fixture.load("notes", &[r#"{"id":"a","color":"red"}"#.to_owned()], Existing::Fail);
    let collation = if place == Place::Sqlite { "" } else { " COLLATE \"C\"" };
    fixture.by_hand(&format!("ALTER TABLE notes ADD COLUMN color TEXT{collation}"));
    let mut later = fixture.reopen("{}", notes(vec![field("color", FieldType::Text)]));
    let page = later.find("notes", &by("color", r#""red""#)).unwrap();
    assert_eq!((page.entities.len(), page.unapplied), (1, vec![0]), "the host has to look");
    assert_eq!(later.prepare(false, false).unwrap(), [""; 0]);
    let check = json::parse(later.check(true).unwrap().as_bytes()).unwrap();
    assert!(check["findings"].to_string().contains("do not ask `color`"), "{check}");
    assert_eq!(later.prepare(false, true).unwrap(), ["move `color` of up to 1 rows of \"notes\" into its column"]);
    let page = later.find("notes", &by("color", r#""red""#)).unwrap();
    assert_eq!((page.entities.len(), page.unapplied), (1, vec![]));
}

fn a_table_of_a_newer_schema_is_refused(place: Place) {
    let mut fixture = open(place, "{}", notes(vec![]));
    fixture.put("notes", r#"{"id":"a"}"#).unwrap();
    fixture.by_hand("UPDATE larder_schema SET schema_version = 2");
    let mut store = fixture.reopen("{}", notes(vec![]));
    for error in [
        store.get("notes", &["a".to_owned()]).unwrap_err(),
        store.prepare(false, true).unwrap_err(),
        store.apply(vec![put("notes", r#"{"id":"b"}"#, Expectation::Any)], true, NOW).unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.contains("schema version 2, this one knows 1"), "{error}");
    }
}

fn an_index_that_is_missing_is_made(place: Place) {
    let mut fixture = open(place, "{}", family());
    fixture.store.prepare(false, false).unwrap();
    fixture.by_hand("DROP INDEX idx_machines_status");
    fixture.by_hand("DROP INDEX idx_machines_larder_exact");
    let lines = fixture.store.prepare(false, false).unwrap();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(fixture.store.prepare(false, false).unwrap(), [""; 0]);
    assert_eq!(fixture.store.stored_collections().unwrap(), ["machines", "requests"]);
}

fn declared_indexes_are_made_behind_a_load(place: Place) {
    let mut fixture = open(place, "{}", family());
    let all = fixture.store.prepare(true, false).unwrap();
    fixture.store.prepare_for_load().unwrap();
    fixture.load("requests", &[r#"{"request_id":"r"}"#.to_owned()], Existing::Fail);
    let machines = ["a", "b"].map(|id| format!(r#"{{"machine_id":"{id}","request_id":"r","status":"up"}}"#));
    fixture.load("machines", &machines, Existing::Fail);
    fixture.store.prepare_for_load().unwrap();
    let left: Vec<String> =
        all.into_iter().filter(|line| line.starts_with("CREATE INDEX") && !line.contains("larder_exact")).collect();
    assert_eq!(left.len(), 2);
    assert_eq!(fixture.store.prepare(true, false).unwrap(), left);
    assert_eq!(fixture.store.find("machines", &by("status", r#""up""#)).unwrap().entities.len(), 2);
    assert_eq!(fixture.store.prepare(false, false).unwrap(), left);
    assert_eq!(fixture.store.prepare(false, false).unwrap(), [""; 0]);
}

fn what_check_says_of_tables(place: Place) {
    let mut fixture = open(place, "{}", family());
    fixture.put("requests", r#"{"request_id":"r1"}"#).unwrap();
    let check = json::parse(fixture.store.check(true).unwrap().as_bytes()).unwrap();
    assert_eq!(check["findings"].to_string(), "[]", "{check}");
    let table = &check["tables"][1];
    assert_eq!(table["collection"], "machines");
    assert_eq!(table["schema_version"].as_u64(), Some(1));
    assert!(table["indexes"].to_string().contains("idx_machines_status"), "{check}");
    assert_eq!(table["size_bytes"].is_null(), place == Place::Sqlite, "{check}");
    assert_eq!(check["database"]["free_bytes"].is_null(), place == Place::Postgres, "{check}");
    assert!(check["connections"]["max"].is_number());
}

/// The rights of the user, as the catalog has them.
#[test]
fn what_the_user_may_not_do_on_postgres_is_said() {
    let mut fixture = open(Place::Postgres, "{}", family());
    fixture.store.prepare(false, false).unwrap();
    fixture.by_hand("REVOKE INSERT, DELETE ON machines FROM CURRENT_USER");
    let check = json::parse(fixture.store.check(true).unwrap().as_bytes()).unwrap();
    assert_eq!((&check["readable"], &check["writable"]), (&Value::Bool(true), &Value::Bool(false)), "{check}");
    let findings = check["findings"].to_string();
    assert!(findings.contains("may not INSERT in the table `machines`"), "{findings}");
    assert!(findings.contains("may not DELETE") && !findings.contains("may not UPDATE"), "{findings}");
    fixture.by_hand("REVOKE SELECT ON machines FROM CURRENT_USER");
    let check = json::parse(fixture.store.check(true).unwrap().as_bytes()).unwrap();
    assert_eq!(check["readable"], false, "{check}");
}

#[test]
fn a_file_that_can_only_be_read_is_read_and_said_to_be_one() {
    let mut fixture = open(Place::Sqlite, "{}", family());
    let body = r#"{"request_id":"r1","tags":["a"]}"#;
    fixture.load("requests", &[body.to_owned()], Existing::Fail);
    let (mut store, _) = SqlStore::open_in(fixture.sql.read_only(), "{}", family()).unwrap();
    let check = json::parse(store.check(true).unwrap().as_bytes()).unwrap();
    assert_eq!((&check["readable"], &check["writable"]), (&Value::Bool(true), &Value::Bool(false)), "{check}");
    assert!(check["findings"].to_string().contains("the database cannot be written"), "{check}");
    assert!(store.get("requests", &["r1".to_owned()]).unwrap()[0].is_some());
    let order_by = vec![SortKey { field: FieldPath::member("version"), descending: true }];
    let page = store.find("requests", &Query { order_by, ..everything() }).unwrap();
    assert!(page.sorted && page.entities.len() == 1);
    assert_eq!(store.prepare(true, false).unwrap(), [""; 0]);
    let error = store.apply(vec![put("requests", body, Expectation::Any)], true, NOW).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
}

#[test]
fn a_file_that_is_no_database_is_corrupt_and_left_alone() {
    let mut fixture = open(Place::Sqlite, "{}", family());
    let bytes = b"request_id,tags\n".repeat(100);
    fixture.sql.overwrite(&bytes);
    for error in [
        fixture.store.get("requests", &["r1".to_owned()]).unwrap_err(),
        fixture.store.check(true).unwrap_err(),
        fixture.store.prepare(false, true).unwrap_err(),
        fixture.put("requests", r#"{"request_id":"r1"}"#).unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    }
    assert_eq!(fixture.sql.size().unwrap(), Some(bytes.len() as u64));
}
