//! Bulk writes: what migrations rest on.

use larder_model::{Entity, ErrorKind, Existing};

use super::check::{Checked, Stop, ensure, ensure_eq, members, same};
use super::entities::{get, is_stored, loadable, save};
use super::place::Place;

pub(super) async fn load_stamps_nothing_and_says_what_became_of_each_entity(place: Place) -> Checked {
    let repository = place.open().await?;
    let one = loadable("a", r#","version":41,"created_at":"long ago""#);
    let other = loadable("b", "");
    let loaded = repository.load("templates", vec![one.clone(), other.clone()], Existing::Fail).await?;
    ensure_eq!((loaded.written, loaded.unchanged, loaded.skipped, loaded.refused.len()), (2, 0, 0, 0));
    repository.flush().await?;
    for entity in [&one, &other] {
        let found = repository.get("templates", std::slice::from_ref(&entity.id)).await?.remove(0);
        let found = found.ok_or_else(|| Stop::failed(format!("{:?} was loaded and is not there", entity.id)))?;
        same(&entity.id, &members(&found.body)?, &members(&entity.body)?)?;
        ensure_eq!(found.version, entity.version, "the version of {:?}", entity.id);
    }

    // The same content, its members in another order and a number in another spelling.
    let text = String::from_utf8_lossy(&one.body).replace(r#","max_number":10"#, "");
    let respelt = Entity { body: text.replacen('{', r#"{"max_number":10,"#, 1).into_bytes(), ..one.clone() };
    let changed = loadable("b", r#","n":2"#);
    let batch = vec![respelt, changed.clone(), loadable("c", "")];
    let loaded = repository.load("templates", batch.clone(), Existing::Fail).await?;
    ensure_eq!((loaded.written, loaded.unchanged, loaded.skipped), (1, 1, 0));
    let refusals: Vec<_> = loaded.refused.iter().map(|(position, error)| (*position, error.kind)).collect();
    ensure_eq!(refusals, [(1, ErrorKind::AlreadyExists)]);

    let loaded = repository.load("templates", batch.clone(), Existing::Skip).await?;
    ensure_eq!((loaded.written, loaded.unchanged, loaded.skipped, loaded.refused.len()), (0, 2, 1, 0));
    repository.flush().await?;
    ensure!(members(get(&repository, "b").await?)?.get("n").is_none(), "`skip` replaced an entity");

    let loaded = repository.load("templates", batch, Existing::Overwrite).await?;
    ensure_eq!((loaded.written, loaded.unchanged, loaded.skipped, loaded.refused.len()), (1, 2, 0, 0));
    repository.flush().await?;
    same("b", &members(get(&repository, "b").await?)?, &members(&changed.body)?)?;
    Ok(())
}

pub(super) async fn load_refuses_what_is_no_entity_and_stores_the_others(place: Place) -> Checked {
    let repository = place.open().await?;
    let unlike = Entity { id: "other".into(), ..loadable("a", "") };
    let keyless = Entity { id: "b".into(), version: 0, body: b"{}".to_vec() };
    let loaded = repository.load("templates", vec![unlike, loadable("c", ""), keyless], Existing::Fail).await?;
    repository.flush().await?;
    let refusals: Vec<_> = loaded.refused.iter().map(|(position, error)| (*position, error.kind)).collect();
    ensure_eq!(refusals, [(0, ErrorKind::InvalidArgument), (2, ErrorKind::InvalidArgument)]);
    ensure_eq!(loaded.written, 1);
    ensure_eq!(repository.count("templates", None).await?, 1);
    ensure!(is_stored(&repository, "c").await?);
    Ok(())
}

pub(super) async fn what_was_prepared_for_a_load_takes_it_and_is_completed_behind_it(place: Place) -> Checked {
    let repository = place.open_unprepared().await?;
    for _ in 0..2 {
        repository.prepare_for_load().await?;
    }
    let batch = vec![loadable("a", ""), loadable("b", "")];
    let loaded = repository.load("templates", batch, Existing::Fail).await?;
    ensure_eq!((loaded.written, loaded.refused.len()), (2, 0));
    repository.flush().await?;
    repository.prepare_for_load().await?;
    ensure!(is_stored(&repository, "a").await?, "what was loaded is there before the store is complete");
    let would = repository.prepare(true, false).await?;
    ensure_eq!(repository.prepare(false, false).await?, would, "what prepare did behind the load");
    ensure_eq!(repository.prepare(true, false).await?, Vec::<String>::new(), "what is left to be done");
    ensure_eq!(repository.count("templates", None).await?, 2);
    Ok(())
}

pub(super) async fn writing_nothing_is_no_error(place: Place) -> Checked {
    let repository = place.open().await?;
    repository.flush().await?;
    let loaded = repository.load("templates", Vec::new(), Existing::Fail).await?;
    ensure_eq!(loaded.written + loaded.unchanged + loaded.skipped, 0, "entities of a load of none");
    ensure_eq!(repository.apply(Vec::new(), false).await?.len(), 0, "results of an apply of none");
    save(&repository, "a", "").await?;
    repository.flush().await?;
    repository.flush().await?;
    ensure!(is_stored(&place.another(&repository).await?, "a").await?);
    Ok(())
}
