//! What is read is what was written, under the name it was written under, once.

use std::collections::BTreeMap;

use larder_model::{Entity, ErrorKind, Existing, Expectation};

use super::check::{Checked, Stop, ensure, ensure_eq, members, refused, same};
use super::entities::{is_stored, loadable, put, save, stored, template};
use super::place::Place;
use crate::repository::{Progress, Repository};

pub(super) async fn get_answers_in_the_order_asked_for_with_gaps_for_what_is_absent(place: Place) -> Checked {
    let repository = place.open().await?;
    for id in ["a", "b", "c"] {
        save(&repository, id, "").await?;
    }
    let ids: Vec<String> = ["c", "nothing", "a", "c", "b"].map(String::from).to_vec();
    let found = repository.get("templates", &ids).await?;
    let found: Vec<Option<String>> = found.into_iter().map(|entity| Some(entity?.id)).collect();
    ensure_eq!(found, [Some("c"), None, Some("a"), Some("c"), Some("b")].map(|id| id.map(String::from)));
    ensure_eq!(repository.get("templates", &[]).await?.len(), 0);

    // More than one statement or page may hold.
    let many: Vec<String> = (0..3000).map(|n| if n % 1000 == 0 { "b".into() } else { format!("none-{n}") }).collect();
    let found = repository.get("templates", &many).await?;
    let there: Vec<usize> = (0..3000).filter(|n| found[*n].is_some()).collect();
    ensure_eq!(there, [0, 1000, 2000]);
    Ok(())
}

pub(super) async fn ids_that_look_alike_are_different_entities(place: Place) -> Checked {
    let repository = place.open().await?;
    let ids = ["a", "A", "a ", "a/../a", "..", "\\", " a", "é", "e\u{301}", "1", "1.0", "01", "ß", "ss", "%", "_"];
    for (n, id) in ids.iter().enumerate() {
        save(&repository, id, &format!(r#","n":{n}"#)).await?;
    }
    for (n, id) in ids.iter().enumerate() {
        ensure_eq!(stored(&repository, "templates", id).await?["n"], n, "{id:?}");
    }
    ensure_eq!(repository.count("templates", None).await?, ids.len() as u64);
    Ok(())
}

pub(super) async fn ids_are_bounded_and_printable(place: Place) -> Checked {
    let repository = place.open().await?;
    let (long, longer) = ("é".repeat(255), "é".repeat(256));
    save(&repository, &long, "").await?;
    ensure!(is_stored(&repository, &long).await?);
    for id in ["", &longer, "a\nb", "\0", "\u{7f}"] {
        let kind = ErrorKind::InvalidArgument;
        refused(repository.save("templates", &template(id, ""), Expectation::Any).await, kind)?;
        refused(repository.update("templates", id, &template(id, ""), None).await, kind)?;
        refused(repository.delete("templates", id, None).await, kind)?;
        refused(repository.get("templates", &[id.to_owned()]).await, kind)?;
        let write = put(id, "", Expectation::Any);
        if place.features().atomic_apply {
            refused(repository.apply(vec![write.clone()], true).await, kind)?;
        }
        refused(repository.apply(vec![write], false).await?.remove(0), kind)?;
    }
    ensure_eq!(repository.count("templates", None).await?, 1);
    Ok(())
}

/// Every entity of a segmented scan, by id.
pub(super) async fn scanned(
    repository: &Repository,
    segments: u32,
    max_bytes: u32,
) -> Checked<BTreeMap<String, Entity>> {
    let mut all = BTreeMap::new();
    for segment in 0..segments {
        let (mut cursor, mut progress) = (None::<Vec<u8>>, Progress::default());
        loop {
            let batch = repository.scan("templates", segment, segments, cursor.as_deref(), max_bytes).await?;
            progress.turn(repository, batch.next.as_deref())?;
            for entity in batch.entities {
                if let Some(twice) = all.insert(entity.id.clone(), entity) {
                    return Err(Stop::failed(format!("a scan in {segments} segments gives {:?} twice", twice.id)));
                }
            }
            cursor = batch.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    Ok(all)
}

pub(super) async fn a_scan_has_every_entity_once_in_any_number_of_segments(place: Place) -> Checked {
    let repository = place.open().await?;
    ensure_eq!(scanned(&repository, 3, 1 << 20).await?.len(), 0, "entities of an empty collection");
    let padding = "padding ".repeat(100);
    let entities: Vec<Entity> =
        (0..300).map(|n| loadable(&format!("t{n}"), &format!(r#","version":{n},"padding":"{padding}""#))).collect();
    repository.load("templates", entities.clone(), Existing::Fail).await?;
    repository.flush().await?;
    // One entity is larger than the smallest batch, and comes all the same.
    for (segments, max_bytes) in [(1, 4 << 20), (1, 10_000), (4, 10_000), (7, 1), (64, 4 << 20)] {
        let found = scanned(&repository, segments, max_bytes).await?;
        ensure_eq!(found.len(), entities.len(), "entities of a scan in {segments} segments by {max_bytes} bytes");
        for entity in &entities {
            let Some(found) = found.get(&entity.id) else {
                return Err(Stop::failed(format!("a scan in {segments} segments lacks {:?}", entity.id)));
            };
            ensure_eq!(found.version, entity.version, "the version of {:?}", entity.id);
            same(&entity.id, &members(&found.body)?, &members(&entity.body)?)?;
        }
    }
    Ok(())
}
