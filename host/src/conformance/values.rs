//! Values: what is no entity is refused alike everywhere, and everything else comes back as it was written.

use larder_model::{Entity, ErrorKind, Existing, Expectation, Put, Write, filter};
use serde_json::Value;

use super::check::{Checked, Stop, ensure, ensure_eq, members, refused, same};
use super::entities::{check_time, is_stored, stored, template};
use super::place::Place;
use super::queries::key;
use super::reads::scanned;
use crate::query::Select;
use crate::repository::Repository;

/// More than there are awkward values.
const AWKWARD_ENTITIES: usize = 200;
/// What a write may add to a body.
const STAMPS_BYTES_MAX: u64 = 200;

pub(super) async fn bodies_that_are_no_entities_are_refused_and_nothing_is_stored(place: Place) -> Checked {
    let repository = place.open().await?;
    let valid = String::from_utf8_lossy(&template("a", "")).into_owned();
    let with = |more: &str| valid.replacen('{', &format!("{{{more},"), 1);
    let nested = |depth: usize| with(&format!("\"deep\":{}{}", "[".repeat(depth - 1), "]".repeat(depth - 1)));
    let bodies = [
        String::new(),
        "null".into(),
        "[]".into(),
        "\"a\"".into(),
        format!("{valid} {valid}"),
        valid[..valid.len() - 1].to_owned(),
        with(r#""x":1,"x":2"#),
        with(r#""x":{"y":1,"\u0079":2}"#),
        with(r#""template_id":"b""#),
        r#"{"name":"Pool"}"#.into(),
        r#"{"template_id":null}"#.into(),
        r#"{"template_id":7}"#.into(),
        r#"{"template_id":["a"]}"#.into(),
        with(r#""x":"\ud800""#),
        with(r#""x":"\udc00\ud800""#),
        with(r#""\ud83e":1"#),
        with("\"x\":\"line\nbreak\""),
        with(r#""x":NaN"#),
        with(r#""x":01"#),
        nested(65),
        with(r#""version":1.5"#),
        with(r#""version":-1"#),
        with(r#""version":"1""#),
        with(r#""version":null"#),
        with(r#""version":9223372036854775808"#),
    ];
    for body in &bodies {
        let kind = ErrorKind::InvalidArgument;
        refused(repository.save("templates", body.as_bytes(), Expectation::Any).await, kind)?;
        // The strategy says so too: an application may call `apply` itself.
        let write = Write::Put(Put {
            collection: "templates".into(),
            id: "a".into(),
            body: body.clone().into_bytes(),
            expect: Expectation::Any,
        });
        if place.features().atomic_apply {
            refused(repository.apply(vec![write.clone()], true).await, kind)?;
        }
        refused(repository.apply(vec![write], false).await?.remove(0), kind)?;
    }
    let unlike = Write::Put(Put {
        collection: "templates".into(),
        id: "b".into(),
        body: valid.clone().into_bytes(),
        expect: Expectation::Any,
    });
    refused(repository.apply(vec![unlike], false).await?.remove(0), ErrorKind::InvalidArgument)?;
    let broken_text = [valid.trim_end_matches('}').as_bytes(), b",\"x\":\"\xff\"}"].concat();
    refused(repository.save("templates", &broken_text, Expectation::Any).await, ErrorKind::InvalidArgument)?;
    ensure_eq!(repository.count("templates", None).await?, 0);

    repository.save("templates", nested(64).as_bytes(), Expectation::Any).await?;
    repository.save("templates", with(r#""version":9223372036854775806"#).as_bytes(), Expectation::Any).await?;
    Ok(())
}

pub(super) async fn a_body_larger_than_the_strategy_takes_is_refused(place: Place) -> Checked {
    let repository = place.open().await?;
    let bytes_max = repository.plugin().description.max_entity_bytes;
    ensure!(bytes_max >= 100_000, "a strategy that takes {bytes_max} bytes is of no use to anybody");
    let of_size = |size: u64| {
        let rest = template("a", r#","x":"""#).len() as u64;
        template("a", &format!(r#","x":"{}""#, "x".repeat((size - rest) as usize)))
    };
    let body = of_size(bytes_max + 1);
    refused(repository.save("templates", &body, Expectation::Any).await, ErrorKind::InvalidArgument)?;
    ensure!(!is_stored(&repository, "a").await?);

    // A strategy may have a rule of its own for what is too large, and then knows of which bodies it holds.
    let mut size = bytes_max - STAMPS_BYTES_MAX;
    while !keeps_rules(&repository, &of_size(size + STAMPS_BYTES_MAX)).await? {
        refused(repository.save("templates", &of_size(size), Expectation::Any).await, ErrorKind::InvalidArgument)?;
        ensure!(!is_stored(&repository, "a").await?);
        size /= 2;
        ensure!(size >= 100_000, "a strategy that takes no text of {size} bytes is of no use to anybody");
    }
    let body = of_size(size);
    repository.save("templates", &body, Expectation::Any).await?;
    ensure!(stored(&repository, "templates", "a").await?["x"] == members(&body)?["x"], "a long text is changed");
    Ok(())
}

/// Whether the strategy's own rules, where it has any, hold for a template.
async fn keeps_rules(repository: &Repository, body: &[u8]) -> Checked<bool> {
    if !repository.opened().has_rules {
        return Ok(true);
    }
    let entity = Entity { id: "a".into(), version: 0, body: body.to_vec() };
    Ok(repository.validate("templates", vec![entity]).await?.is_empty())
}

/// Entities with every awkward value, as far as they fit.
async fn awkward(repository: &Repository) -> Checked<Vec<larder_samples::Awkward>> {
    let bytes_max = repository.plugin().description.max_entity_bytes.saturating_sub(STAMPS_BYTES_MAX);
    let mut entities = larder_samples::awkward(AWKWARD_ENTITIES, larder_samples::SEED);
    entities.retain(|entity| entity.body.len() as u64 <= bytes_max);
    if repository.opened().has_rules {
        let bodies =
            entities.iter().map(|it| Entity { id: it.id.clone(), version: 0, body: it.body.clone().into_bytes() });
        let broken = repository.validate("templates", bodies.collect()).await?;
        let is_broken = |position: usize| broken.iter().any(|it| it.entity as usize == position);
        let kept = entities.into_iter().enumerate().filter(|(position, _)| !is_broken(*position));
        entities = kept.map(|(_, entity)| entity).collect();
    }
    Ok(entities)
}

/// What was read is what was written, but for the time of update, which each write stamps.
fn check_written(id: &str, body: &[u8], written: &str) -> Checked {
    let (mut found, mut expected) = (members(body)?, members(written)?);
    check_time(&found["updated_at"])?;
    for value in [&mut found, &mut expected] {
        if let Value::Object(members) = value {
            members.shift_remove("updated_at");
        }
    }
    same(&format!("{id:?}"), &found, &expected)
}

pub(super) async fn awkward_values_come_back_as_they_were_written(place: Place) -> Checked {
    let repository = place.open().await?;
    let entities = awkward(&repository).await?;
    for chunk in entities.chunks(50) {
        let writes = chunk.iter().map(|entity| {
            let body = entity.body.clone().into_bytes();
            Write::Put(Put { collection: "templates".into(), id: entity.id.clone(), body, expect: Expectation::Absent })
        });
        for (result, entity) in repository.apply(writes.collect(), false).await?.into_iter().zip(chunk) {
            result.map_err(|error| Stop::failed(format!("a save of {:?} fails: {error}", entity.id)))?;
        }
    }

    let repository = place.another(&repository).await?;
    let ids: Vec<String> = entities.iter().map(|entity| entity.id.clone()).collect();
    for (found, written) in repository.get("templates", &ids).await?.iter().zip(&entities) {
        let found = found.as_ref().ok_or_else(|| Stop::failed(format!("{:?} is not there", written.id)))?;
        check_written(&written.id, &found.body, &written.body)?;
    }
    // The same through a query, each sought by its id.
    for written in &entities {
        let by_id = filter::Filter::Compare {
            field: key("template_id")?.field,
            op: filter::Comparison::Eq,
            value: filter::Scalar::Text(written.id.clone()),
        };
        let select = Select { filter: Some(by_id), ..Select::default() };
        let found = repository.query("templates", select).collect().await?;
        ensure_eq!(found.len(), 1, "entities with the id {:?}", written.id);
        check_written(&written.id, &found[0].body, &written.body)?;
    }
    let all = scanned(&repository, 2, 1 << 20).await?;
    ensure_eq!(all.len(), entities.len(), "entities of a scan");
    for written in &entities {
        let found = all.get(&written.id).ok_or_else(|| Stop::failed(format!("a scan lacks {:?}", written.id)))?;
        check_written(&written.id, &found.body, &written.body)?;
    }
    // Sorted by id, they stand in the order of code points.
    let select = Select { order_by: vec![key("template_id")?], ..Select::default() };
    let sorted = repository.query("templates", select).collect().await?;
    let mut expected = ids.clone();
    expected.sort();
    ensure_eq!(sorted.into_iter().map(|entity| entity.id).collect::<Vec<_>>(), expected);
    for id in &ids {
        ensure!(repository.delete("templates", id, Some(1)).await?.existed, "{id:?} is not deleted under its name");
    }
    ensure_eq!(repository.count("templates", None).await?, 0);
    Ok(())
}

pub(super) async fn awkward_values_are_loaded_as_they_are(place: Place) -> Checked {
    let repository = place.open().await?;
    let written = awkward(&repository).await?;
    let entities: Vec<Entity> = written
        .iter()
        .map(|entity| Entity { id: entity.id.clone(), version: 1, body: entity.body.clone().into_bytes() })
        .collect();
    let loaded = repository.load("templates", entities.clone(), Existing::Fail).await?;
    repository.flush().await?;
    if let Some((position, error)) = loaded.refused.first() {
        return Err(Stop::failed(format!("{:?} is refused: {error}", entities[*position as usize].id)));
    }
    let loaded = repository.load("templates", entities, Existing::Fail).await?;
    repository.flush().await?;
    ensure_eq!(loaded.unchanged, written.len() as u64, "entities that are found unchanged when they are loaded again");
    let repository = place.another(&repository).await?;
    let found = scanned(&repository, 1, 4 << 20).await?;
    ensure_eq!(found.len(), written.len(), "entities of a scan");
    for entity in &written {
        let found = found.get(&entity.id).ok_or_else(|| Stop::failed(format!("{:?} is not there", entity.id)))?;
        same(&format!("{:?}", entity.id), &members(&found.body)?, &members(&entity.body)?)?;
    }
    Ok(())
}
