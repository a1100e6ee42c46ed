//! The entities that cases write: templates with what a strict table requires, so that a strategy with rules takes them
//! too.

use larder_model::{Entity, Expectation, Put, Removal, Write};
use serde_json::Value;

use super::check::{Checked, Stop, ensure, ensure_eq, members};
use crate::repository::Repository;

/// A template, and more members, each preceded by a comma.
pub(super) fn template(id: &str, more: &str) -> Vec<u8> {
    let number = if more.contains("\"max_number\"") { "" } else { r#","max_number":10"# };
    format!(
        r#"{{"template_id":{},"name":"Pool","provider_api":"RunInstances","vm_type":"t3.medium"{number}{more}}}"#,
        Value::from(id)
    )
    .into_bytes()
}

/// A request for the template `t`.
pub(super) fn request(id: &str) -> Vec<u8> {
    let id = Value::from(id);
    format!(r#"{{"request_id":{id},"template_id":"t","machine_count":1,"status":"NEW","request_type":"acquire"}}"#)
        .into_bytes()
}

pub(super) fn put(id: &str, more: &str, expect: Expectation) -> Write {
    Write::Put(Put { collection: "templates".into(), id: id.into(), body: template(id, more), expect })
}

pub(super) fn removal(id: &str, expect: Expectation) -> Write {
    Write::Remove(Removal { collection: "templates".into(), id: id.into(), expect })
}

/// A template as a migration brings it.
pub(super) fn loadable(id: &str, more: &str) -> Entity {
    let body = template(id, more);
    let found = larder_model::json::parse_object(&body).unwrap_or_default();
    Entity { id: id.into(), version: found.get("version").and_then(Value::as_u64).unwrap_or(0), body }
}

/// Saves a template and answers its version.
pub(super) async fn save(repository: &Repository, id: &str, more: &str) -> Checked<u64> {
    let (saved, outcome) = repository.save("templates", &template(id, more), Expectation::Any).await?;
    ensure_eq!(saved, id, "the id that a save answers");
    Ok(outcome.version)
}

/// One stored entity, its version checked against its body.
pub(super) async fn stored(repository: &Repository, collection: &str, id: &str) -> Checked<Value> {
    let found = repository.get(collection, &[id.to_owned()]).await?.remove(0);
    let Some(entity) = found else { return Err(Stop::failed(format!("{collection} has no {id:?}"))) };
    let body = members(&entity.body)?;
    ensure_eq!(entity.id, id, "the id of what is stored");
    ensure_eq!(entity.version, body["version"].as_u64().unwrap_or(0), "the version beside the body of {id:?}");
    Ok(body)
}

/// A stored template's body.
pub(super) async fn get(repository: &Repository, id: &str) -> Checked<Vec<u8>> {
    let found = repository.get("templates", &[id.into()]).await?.remove(0);
    found.map(|entity| entity.body).ok_or_else(|| Stop::failed(format!("templates has no {id:?}")))
}

pub(super) async fn is_stored(repository: &Repository, id: &str) -> Checked<bool> {
    Ok(repository.get("templates", &[id.to_owned()]).await?[0].is_some())
}

/// A time as the host gives it: 2026-03-02T08:00:00.000000Z.
#[track_caller]
pub(super) fn check_time(value: &Value) -> Checked {
    let text = value.as_str().unwrap_or_default();
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    ensure!(shape == "0000-00-00T00:00:00.000000Z", "expected a time in UTC with microseconds, found {value}");
    Ok(())
}
