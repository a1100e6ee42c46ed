//! Stores: what a plugin says of itself, what opening one does, and what two handles on it see of each other.

use larder_model::{Entity, ErrorKind, Existing, Expectation, Put, Removal, Write};
use serde_json::{Map, Value};

use super::check::{Checked, Stop, ensure, ensure_eq, members, refused, same};
use super::entities::{is_stored, loadable, put, request, save, stored, template};
use super::place::Place;
use crate::query::Select;
use crate::repository::Repository;

pub(super) async fn a_plugin_describes_itself_consistently(place: Place) -> Checked {
    let repository = place.open().await?;
    let plugin = repository.plugin();
    let description = &plugin.description;
    ensure_eq!(description.strategy, plugin.name);
    ensure!(!description.version.is_empty(), "the plugin has no version");
    let has_isolations = !description.isolations.is_empty();
    ensure_eq!(has_isolations, description.features.transactions, "isolations come with transactions");
    let mut isolations = description.isolations.clone();
    isolations.sort();
    isolations.dedup();
    ensure_eq!(isolations.len(), description.isolations.len(), "isolations that are listed once");
    ensure!(description.max_entity_bytes > 0, "the largest body has no bytes");
    let schema: Option<Map<String, Value>> = serde_json::from_str(&description.config_schema).ok();
    let schema = schema.ok_or_else(|| Stop::failed("the schema of the section is no JSON object"))?;
    jsonschema::validator_for(&Value::Object(schema))
        .map_err(|error| Stop::failed(format!("the schema of the section is no JSON Schema: {error}")))?;
    Ok(())
}

pub(super) async fn a_store_that_is_not_there_yet_opens_and_is_not_made_by_reading(place: Place) -> Checked {
    let repository = place.open_unprepared().await?;
    if place.features().needs_prepare && !place.is_shared() {
        let kind = ErrorKind::Unavailable;
        refused(repository.get("templates", &["a".into()]).await, kind)?;
        refused(repository.query("templates", Select::default()).collect().await, kind)?;
        refused(repository.count("templates", None).await, kind)?;
        refused(repository.scan("templates", 0, 1, None, 1 << 20).await, kind)?;
    } else {
        ensure!(!is_stored(&repository, "a").await?);
        ensure_eq!(repository.query("templates", Select::default()).collect().await?.len(), 0);
        ensure_eq!(repository.count("templates", None).await?, 0);
    }
    if !place.is_shared() {
        ensure_eq!(repository.stored_collections().await?, Vec::<String>::new());
    }
    let would = repository.prepare(true, false).await?;
    if let Some(files) = place.files() {
        ensure_eq!(files, Vec::<String>::new(), "files that were made by reading");
    }

    ensure_eq!(
        repository.prepare(false, false).await?.len(),
        would.len(),
        "what prepare did, beside what it said it would"
    );
    ensure_eq!(repository.prepare(false, false).await?, Vec::<String>::new(), "what a second prepare does");
    ensure_eq!(repository.prepare(true, false).await?, Vec::<String>::new(), "what a second prepare would do");
    let findings = repository.check(true).await?;
    for property in ["reachable", "readable", "writable"] {
        ensure_eq!(findings.get(property), Some(&Value::Bool(true)), "`{property}` of check");
    }
    for finding in findings.get("findings").and_then(Value::as_array).into_iter().flatten() {
        ensure!(finding["level"] != "error", "check finds an error in an empty store: {finding}");
    }
    save(&repository, "a", "").await?;
    ensure!(
        repository.stored_collections().await?.contains(&"templates".to_owned()),
        "templates is not among the stored collections"
    );
    Ok(())
}

pub(super) async fn a_second_handle_sees_the_writes_of_the_first(place: Place) -> Checked {
    let (first, second) = (place.open().await?, place.open().await?);
    ensure!(!is_stored(&second, "a").await?);
    ensure_eq!(save(&first, "a", r#","n":1"#).await?, 1);
    ensure_eq!(stored(&second, "templates", "a").await?["n"], 1);
    ensure_eq!(save(&second, "a", r#","n":2"#).await?, 2);
    ensure_eq!(stored(&first, "templates", "a").await?["n"], 2);
    let stale = first.update("templates", "a", &template("a", ""), Some(1)).await;
    ensure_eq!(refused(stale, ErrorKind::VersionConflict)?.current_version, Some(2));
    second.delete("templates", "a", None).await?;
    ensure!(!is_stored(&first, "a").await?);
    ensure_eq!(first.count("templates", None).await?, 0);
    Ok(())
}

pub(super) async fn an_unknown_collection_is_invalid_and_never_empty(place: Place) -> Checked {
    // The host knows `things` and the plugin does not, so that it is the plugin that answers.
    let repository = place.open_without("things").await?;
    let kind = ErrorKind::InvalidArgument;
    let thing = || Entity { id: "a".into(), version: 0, body: br#"{"id":"a"}"#.to_vec() };
    refused(repository.get("things", &["a".into()]).await, kind)?;
    refused(repository.count("things", None).await, kind)?;
    refused(repository.query("things", Select::default()).collect().await, kind)?;
    refused(repository.scan("things", 0, 1, None, 1 << 20).await, kind)?;
    refused(repository.load("things", vec![thing()], Existing::Fail).await, kind)?;
    let put_thing =
        Write::Put(Put { collection: "things".into(), id: "a".into(), body: thing().body, expect: Expectation::Any });
    let remove_thing = Write::Remove(Removal { collection: "things".into(), id: "a".into(), expect: Expectation::Any });
    for write in [put_thing, remove_thing] {
        if place.features().atomic_apply {
            let error =
                refused(repository.apply(vec![put("a", "", Expectation::Any), write.clone()], true).await, kind)?;
            ensure_eq!(error.write_index, Some(1));
            ensure!(!is_stored(&repository, "a").await?);
        }
        refused(repository.apply(vec![write], false).await?.remove(0), kind)?;
    }
    Ok(())
}

/// A body that breaks a rule is rejected where the store said that it would be, and otherwise kept as it is.
async fn check_rule(repository: &Repository, enforced: bool, collection: &str, rule: &str, body: &str) -> Checked {
    let saved = repository.save(collection, body.as_bytes(), Expectation::Any).await;
    if enforced {
        let error = refused(saved, ErrorKind::Rejected)?;
        ensure!(error.message.contains(collection), "a broken rule ({rule}) does not name {collection}: {error}");
        return Ok(());
    }
    let (id, _) = saved?;
    let mut found = stored(repository, collection, &id).await?;
    let expected = members(body)?;
    if let (Value::Object(found), Value::Object(expected)) = (&mut found, &expected) {
        found.retain(|name, _| expected.contains_key(name));
    }
    same(rule, &found, &expected)
}

pub(super) async fn what_open_says_of_rules_is_what_writes_meet(place: Place) -> Checked {
    let repository = place.open().await?;
    let opened = repository.opened();
    let valid = String::from_utf8_lossy(&template("a", "")).into_owned();
    let lengthy = format!(r#""name":"{}""#, "n".repeat(256));
    for (rule, body) in [
        ("a required field that is missing", valid.replace(r#","vm_type":"t3.medium""#, "")),
        ("a required field that is null", valid.replace(r#""t3.medium""#, "null")),
        ("a text that is too long", valid.replace(r#""name":"Pool""#, &lengthy)),
    ] {
        check_rule(&repository, opened.enforces_fields, "templates", rule, &body).await?;
    }
    let valid = String::from_utf8_lossy(&request("r")).into_owned();
    check_rule(&repository, opened.enforces_references, "requests", "a reference to nothing", &valid).await?;
    save(&repository, "t", "").await?;
    repository.save("requests", &request("r"), Expectation::Any).await?;
    let removed = repository.delete("templates", "t", None).await;
    if opened.enforces_references {
        refused(removed, ErrorKind::Rejected)?;
        ensure!(is_stored(&repository, "t").await?, "a rejected delete deleted");
    } else {
        ensure!(removed?.existed);
    }
    // A declared type says what a field is expected to hold, and is no rule.
    let other_types = template("b", r#","max_number":"ten","image_id":[],"created_at":7,"subnet_ids":"x""#);
    check_rule(&repository, false, "templates", "a value of another type", &String::from_utf8_lossy(&other_types)).await
}

pub(super) async fn an_entity_that_keeps_the_rules_breaks_none(place: Place) -> Checked {
    let repository = place.open().await?;
    let entities = vec![loadable("a", ""), loadable("b", r#","extra":{"a":[1.0,null]}"#)];
    ensure_eq!(repository.validate("templates", entities).await?, Vec::new());
    ensure_eq!(repository.count("templates", None).await?, 0, "entities that validate wrote");
    Ok(())
}

pub(super) async fn a_store_that_was_closed_has_everything_when_it_is_opened_again(place: Place) -> Checked {
    let (repository, other) = (place.open().await?, place.open().await?);
    repository.close().await?;
    if let Some(files) = place.files() {
        ensure_eq!(files, Vec::<String>::new(), "files that were made by closing");
    }
    for n in 1..=3 {
        ensure_eq!(save(&repository, "a", &format!(r#","n":{n}"#)).await?, n);
    }
    save(&repository, "gone", "").await?;
    repository.delete("templates", "gone", None).await?;
    ensure_eq!(repository.load("templates", vec![loadable("loaded", "")], Existing::Fail).await?.written, 1);
    repository.flush().await?;
    repository.close().await?;
    repository.close().await?;
    for handle in [&repository, &other, &place.open().await?] {
        ensure_eq!(stored(handle, "templates", "a").await?["n"], 3);
        ensure!(is_stored(handle, "loaded").await?, "what was loaded is not there");
        ensure!(!is_stored(handle, "gone").await?, "what was deleted is there");
    }
    // Both write on, and each sees what the other one closed.
    ensure_eq!(save(&other, "a", r#","n":4"#).await?, 4);
    other.close().await?;
    ensure_eq!(save(&repository, "a", r#","n":5"#).await?, 5);
    repository.close().await?;
    ensure_eq!(stored(&other, "templates", "a").await?["n"], 5);
    Ok(())
}

pub(super) async fn a_restore_point_brings_back_what_it_holds_and_an_unknown_one_nothing(place: Place) -> Checked {
    let repository = place.open().await?;
    refused(repository.restore("no such point").await, ErrorKind::NotFound)?;
    if !place.is_shared() {
        ensure_eq!(repository.restore_points().await?, Vec::new(), "points of a store that is not there yet");
    }
    if let Some(files) = place.files() {
        ensure_eq!(files, Vec::<String>::new(), "files that were made by asking");
    }
    for n in 1..=3 {
        save(&repository, "a", &format!(r#","n":{n}"#)).await?;
    }
    let points = repository.restore_points().await?;
    ensure_eq!(repository.restore_points().await?, points, "the points, asked for again");
    refused(repository.restore("no such point").await, ErrorKind::NotFound)?;
    ensure_eq!(stored(&repository, "templates", "a").await?["n"], 3);
    // A strategy may keep none.
    let Some(newest) = points.first() else { return Ok(()) };
    let done = repository.restore(&newest.name).await?;
    ensure!(!done.is_empty(), "a restore does not say what it did");
    if is_stored(&repository, "a").await? {
        let n = &stored(&repository, "templates", "a").await?["n"];
        ensure!((1..=3).any(|written| *n == written), "after a restore there is what was never written: {n}");
    }
    let count = repository.count("templates", None).await?;
    ensure_eq!(place.open().await?.count("templates", None).await?, count, "what another handle counts");
    save(&repository, "b", "").await?;
    ensure_eq!(repository.count("templates", None).await?, count + 1);
    Ok(())
}
