//! What a write makes of what is stored: expectations, versions, times, and writes that happen together.

use std::time::Duration;

use larder_model::{ErrorKind, Existing, Expectation, Put, Write, filter};
use serde_json::Value;

use super::check::{Checked, Stop, ensure, ensure_eq, members, refused};
use super::entities::{check_time, is_stored, loadable, put, removal, request, save, stored, template};
use super::place::Place;
use crate::repository::Repository;

pub(super) async fn a_save_creates_an_entity_or_replaces_the_whole_of_it(place: Place) -> Checked {
    let repository = place.open().await?;
    let first = template("a", r#","image_id":"ami-1","spot":{"price":0.42}"#);
    let (id, outcome) = repository.save("templates", &first, Expectation::Any).await?;
    ensure_eq!((id.as_str(), outcome.version, outcome.existed), ("a", 1, false));

    let (_, outcome) = repository.save("templates", &template("a", r#","new":[1]"#), Expectation::Any).await?;
    ensure_eq!((outcome.version, outcome.existed), (2, true));
    let found = stored(&repository, "templates", "a").await?;
    ensure_eq!(found["new"].to_string(), "[1]");
    ensure!(
        found.get("spot").is_none() && found.get("image_id").is_none(),
        "a member of the replaced entity is left: {found}"
    );
    Ok(())
}

pub(super) async fn a_save_takes_effect_only_where_its_expectation_holds(place: Place) -> Checked {
    use Expectation::{Absent, Any, Present, Version};
    let repository = place.open().await?;
    let save = async |expect| repository.save("templates", &template("a", ""), expect).await;

    refused(save(Present).await, ErrorKind::NotFound)?;
    refused(save(Version(1)).await, ErrorKind::NotFound)?;
    ensure!(!is_stored(&repository, "a").await?);
    ensure_eq!(save(Absent).await?.1.version, 1);
    refused(save(Absent).await, ErrorKind::AlreadyExists)?;
    ensure_eq!(save(Present).await?.1.version, 2);
    ensure_eq!(save(Version(2)).await?.1.version, 3);
    let conflict = refused(save(Version(2)).await, ErrorKind::VersionConflict)?;
    ensure_eq!(conflict.current_version, Some(3));
    ensure_eq!(save(Any).await?.1.version, 4);
    Ok(())
}

pub(super) async fn an_update_needs_a_stored_entity_of_the_expected_version(place: Place) -> Checked {
    let repository = place.open().await?;
    refused(repository.update("templates", "a", &template("a", ""), None).await, ErrorKind::NotFound)?;
    refused(repository.update("templates", "a", &template("a", ""), Some(0)).await, ErrorKind::NotFound)?;
    ensure!(!is_stored(&repository, "a").await?);

    save(&repository, "a", r#","n":1"#).await?;
    let outcome = repository.update("templates", "a", &template("a", r#","n":2"#), Some(1)).await?;
    ensure_eq!((outcome.version, outcome.existed), (2, true));
    let conflict = repository.update("templates", "a", &template("a", r#","n":3"#), Some(1)).await;
    ensure_eq!(refused(conflict, ErrorKind::VersionConflict)?.current_version, Some(2));
    ensure_eq!(repository.update("templates", "a", &template("a", r#","n":4"#), None).await?.version, 3);
    ensure_eq!(stored(&repository, "templates", "a").await?["n"], 4);
    refused(repository.update("templates", "a", &template("b", ""), None).await, ErrorKind::InvalidArgument)?;
    ensure_eq!(stored(&repository, "templates", "a").await?["n"], 4);
    Ok(())
}

pub(super) async fn a_delete_says_whether_the_entity_was_there(place: Place) -> Checked {
    let repository = place.open().await?;
    let outcome = repository.delete("templates", "a", None).await?;
    ensure_eq!((outcome.version, outcome.existed), (0, false));
    refused(repository.delete("templates", "a", Some(1)).await, ErrorKind::NotFound)?;

    save(&repository, "a", "").await?;
    save(&repository, "a", "").await?;
    let conflict = refused(repository.delete("templates", "a", Some(1)).await, ErrorKind::VersionConflict)?;
    ensure_eq!(conflict.current_version, Some(2));
    ensure!(is_stored(&repository, "a").await?);
    let outcome = repository.delete("templates", "a", Some(2)).await?;
    ensure_eq!((outcome.version, outcome.existed), (2, true));
    ensure!(!is_stored(&repository, "a").await?);
    ensure_eq!(save(&repository, "a", "").await?, 1, "a new entity of that name starts afresh");
    Ok(())
}

pub(super) async fn times_are_stamped_once_for_creation_and_each_time_for_updates(place: Place) -> Checked {
    let repository = place.open().await?;
    let before = crate::clock::now();
    save(&repository, "a", "").await?;
    let first = stored(&repository, "templates", "a").await?;
    check_time(&first["created_at"])?;
    ensure_eq!(first["created_at"], first["updated_at"]);
    let now = first["created_at"].as_str().unwrap_or_default();
    ensure!(
        (before.as_str()..=crate::clock::now().as_str()).contains(&now),
        "a time of creation that is not now: {now}"
    );

    tokio::time::sleep(Duration::from_millis(2)).await;
    save(&repository, "a", "").await?;
    let second = stored(&repository, "templates", "a").await?;
    ensure_eq!(second["created_at"], first["created_at"], "a save that lacks it keeps it");
    check_time(&second["updated_at"])?;
    ensure!(second["updated_at"].as_str() > first["updated_at"].as_str());

    let brought = r#","created_at":"2020-01-01T00:00:00+00:00","updated_at":"2020-01-01T00:00:00Z""#;
    save(&repository, "b", brought).await?;
    let found = stored(&repository, "templates", "b").await?;
    ensure_eq!(found["created_at"], "2020-01-01T00:00:00+00:00", "as it was written");
    check_time(&found["updated_at"])?;
    Ok(())
}

pub(super) async fn machines_get_no_time_of_update_unless_they_have_one(place: Place) -> Checked {
    let repository = place.open().await?;
    save(&repository, "t", "").await?;
    repository.save("requests", &request("r"), Expectation::Any).await?;
    check_time(&stored(&repository, "requests", "r").await?["updated_at"])?;
    let machine = |more: &str| {
        format!(r#"{{"machine_id":"m","request_id":"r","template_id":"t","status":"RUNNING"{more}}}"#).into_bytes()
    };

    repository.save("machines", &machine(""), Expectation::Any).await?;
    let found = stored(&repository, "machines", "m").await?;
    check_time(&found["created_at"])?;
    ensure!(found.get("updated_at").is_none(), "a machine got a time of update that it has no member for: {found}");
    repository.save("machines", &machine(r#","updated_at":null"#), Expectation::Any).await?;
    check_time(&stored(&repository, "machines", "m").await?["updated_at"])?;
    repository.save("machines", &machine(""), Expectation::Any).await?;
    check_time(&stored(&repository, "machines", "m").await?["updated_at"])?;
    Ok(())
}

pub(super) async fn an_update_takes_effect_only_where_its_condition_holds(place: Place) -> Checked {
    let repository = place.open().await?;
    let holds = filter::parse_expression("spot.price<1")?;
    let body = template("a", r#","n":2"#);
    refused(repository.update_if("templates", "a", &body, None, &holds).await, ErrorKind::NotFound)?;
    save(&repository, "a", r#","spot":{"price":0.42}"#).await?;
    let fails = filter::parse_expression("spot.price>1")?;
    let conflict =
        refused(repository.update_if("templates", "a", &body, None, &fails).await, ErrorKind::VersionConflict)?;
    ensure_eq!(conflict.current_version, Some(1), "the version that a failed condition tells");
    refused(repository.update_if("templates", "a", &body, Some(7), &holds).await, ErrorKind::VersionConflict)?;
    ensure!(stored(&repository, "templates", "a").await?.get("n").is_none());
    ensure_eq!(repository.update_if("templates", "a", &body, Some(1), &holds).await?.version, 2);
    ensure_eq!(stored(&repository, "templates", "a").await?["n"], 2);
    Ok(())
}

pub(super) async fn a_patch_merges_into_what_is_stored(place: Place) -> Checked {
    let repository = place.open().await?;
    let patch = |text: &str| larder_model::json::parse_object(text.as_bytes());
    let change = patch(r#"{"spot":{"price":0.50,"zone":null},"tags":[3],"gone":null}"#)?;
    refused(repository.patch("templates", "a", &change, None, None).await, ErrorKind::NotFound)?;
    save(&repository, "a", r#","spot":{"price":0.42,"zone":"b","kept":1.0},"tags":[1,2],"gone":true"#).await?;
    ensure_eq!(repository.patch("templates", "a", &change, None, None).await?.version, 2);
    let found = stored(&repository, "templates", "a").await?;
    ensure_eq!(found["spot"].to_string(), r#"{"price":0.50,"kept":1.0}"#, "objects are merged");
    ensure_eq!(found["tags"].to_string(), "[3]", "arrays are replaced");
    ensure!(
        found.get("gone").is_none() && found["name"] == "Pool",
        "null removes, and what is not named stays: {found}"
    );

    refused(repository.patch("templates", "a", &change, Some(1), None).await, ErrorKind::VersionConflict)?;
    let condition = filter::parse_expression("tags~=1")?;
    refused(repository.patch("templates", "a", &change, None, Some(&condition)).await, ErrorKind::VersionConflict)?;
    let renamed = patch(r#"{"template_id":"b"}"#)?;
    refused(repository.patch("templates", "a", &renamed, None, None).await, ErrorKind::InvalidArgument)?;
    ensure_eq!(stored(&repository, "templates", "a").await?["version"], 2);
    Ok(())
}

pub(super) async fn versions_start_at_one_or_where_the_body_says_and_then_count(place: Place) -> Checked {
    let repository = place.open().await?;
    ensure_eq!(save(&repository, "plain", "").await?, 1);
    ensure_eq!(save(&repository, "zero", r#","version":0"#).await?, 1);
    ensure_eq!(save(&repository, "brought", r#","version":7"#).await?, 7);
    ensure_eq!(
        save(&repository, "brought", r#","version":100"#).await?,
        8,
        "a later save counts, whatever the body says"
    );
    ensure_eq!(save(&repository, "brought", "").await?, 9);
    ensure_eq!(stored(&repository, "templates", "brought").await?["version"], 9);

    // What others wrote without a usable version reads as version 0 and is left alone until the next write.
    let others = vec![loadable("none", ""), loadable("text", r#","version":"2""#)];
    repository.load("templates", others, Existing::Fail).await?;
    repository.flush().await?;
    for (id, version) in [("none", None), ("text", Some(Value::from("2")))] {
        let found = repository.get("templates", &[id.into()]).await?.remove(0);
        let found = found.ok_or_else(|| Stop::failed(format!("{id:?} was loaded and is not there")))?;
        ensure_eq!((found.version, members(&found.body)?.get("version").cloned()), (0, version), "{id:?} as loaded");
        ensure_eq!(repository.update("templates", id, &template(id, ""), Some(0)).await?.version, 1);
        ensure_eq!(stored(&repository, "templates", id).await?["version"], 1);
    }
    Ok(())
}

pub(super) async fn a_collection_names_what_is_stamped(place: Place) -> Checked {
    let repository = place.open().await?;
    let thing = br#"{"id":"a","label":"x","version":"mine","updated_at":"mine"}"#;
    ensure_eq!(repository.save("things", thing, Expectation::Absent).await?.1.version, 1);
    let first = stored_thing(&repository).await?;
    ensure_eq!(first["revision"], 1);
    check_time(&first["made"])?;
    ensure_eq!(
        (&first["version"], &first["updated_at"]),
        (&"mine".into(), &"mine".into()),
        "names of other collections"
    );
    ensure_eq!(repository.save("things", thing, Expectation::Version(1)).await?.1.version, 2);
    let second = stored_thing(&repository).await?;
    ensure_eq!((&second["revision"], &second["made"]), (&2.into(), &first["made"]));
    ensure_eq!(second["updated_at"], "mine", "the collection stamps no time of update");
    let unusable = br#"{"id":"a","revision":"2"}"#;
    refused(repository.save("things", unusable, Expectation::Any).await, ErrorKind::InvalidArgument)?;
    Ok(())
}

async fn stored_thing(repository: &Repository) -> Checked<Value> {
    let found = repository.get("things", &["a".into()]).await?.remove(0);
    members(found.ok_or_else(|| Stop::failed("things has no \"a\""))?.body)
}

/// Ends the case where there is no atomic `apply`, which then has to say so and to do nothing.
async fn needs_atomic_apply(place: &Place, repository: &Repository) -> Checked {
    if place.features().atomic_apply {
        return Ok(());
    }
    refused(repository.apply(vec![put("a", "", Expectation::Any)], true).await, ErrorKind::Unsupported)?;
    ensure!(!is_stored(repository, "a").await?, "an atomic apply that is unsupported wrote");
    Err(Stop::Undeclared("atomic-apply"))
}

pub(super) async fn an_atomic_apply_is_all_or_nothing_and_names_the_write_that_failed(place: Place) -> Checked {
    use Expectation::{Absent, Any, Present, Version};
    let repository = place.open().await?;
    needs_atomic_apply(&place, &repository).await?;
    save(&repository, "stored", r#","n":1"#).await?;
    let writes =
        vec![put("a", "", Absent), put("stored", r#","n":2"#, Version(1)), removal("b", Any), put("c", "", Any)];
    let mut outcomes = Vec::new();
    for result in repository.apply(writes, true).await? {
        let outcome = result?;
        outcomes.push((outcome.version, outcome.existed));
    }
    ensure_eq!(outcomes, [(1, false), (2, true), (0, false), (1, false)]);

    for (failing, kind) in [
        (put("stored", "", Version(1)), ErrorKind::VersionConflict),
        (put("stored", "", Absent), ErrorKind::AlreadyExists),
        (put("nothing", "", Present), ErrorKind::NotFound),
        (removal("nothing", Version(1)), ErrorKind::NotFound),
        (removal("stored", Version(9)), ErrorKind::VersionConflict),
        (put("body", r#","version":-1"#, Any), ErrorKind::InvalidArgument),
    ] {
        let conflict = kind == ErrorKind::VersionConflict;
        let writes = vec![removal("a", Present), put("new", "", Any), failing, put("other", "", Any)];
        let error = refused(repository.apply(writes, true).await, kind)?;
        ensure_eq!(error.write_index, Some(2), "the write that {} names", kind.name());
        ensure_eq!(error.current_version, conflict.then_some(2), "the version that {} tells", kind.name());
        ensure!(is_stored(&repository, "a").await?, "{}: what came before is not undone", kind.name());
        ensure!(!is_stored(&repository, "new").await? && !is_stored(&repository, "other").await?);
        ensure_eq!(stored(&repository, "templates", "stored").await?["n"], 2);
    }
    ensure_eq!(repository.count("templates", None).await?, 3);
    Ok(())
}

pub(super) async fn an_atomic_apply_spans_collections_and_refuses_one_entity_twice(place: Place) -> Checked {
    let repository = place.open().await?;
    needs_atomic_apply(&place, &repository).await?;
    let request =
        |expect| Write::Put(Put { collection: "requests".into(), id: "r".into(), body: request("r"), expect });
    let writes = vec![put("t", "", Expectation::Absent), request(Expectation::Present)];
    ensure_eq!(refused(repository.apply(writes, true).await, ErrorKind::NotFound)?.write_index, Some(1));
    ensure_eq!(repository.count("templates", None).await?, 0);

    let writes = vec![put("t", "", Expectation::Absent), request(Expectation::Absent)];
    ensure_eq!(repository.apply(writes, true).await?.len(), 2);
    ensure_eq!(repository.count("requests", None).await?, 1);

    let twice = vec![put("x", "", Expectation::Any), put("y", "", Expectation::Any), removal("x", Expectation::Any)];
    refused(repository.apply(twice, true).await, ErrorKind::InvalidArgument)?;
    ensure_eq!(repository.count("templates", None).await?, 1);
    Ok(())
}

pub(super) async fn an_atomic_apply_beyond_its_bound_is_refused_whole(place: Place) -> Checked {
    let repository = place.open().await?;
    needs_atomic_apply(&place, &repository).await?;
    let writes_max = repository.plugin().description.max_atomic_writes;
    // Where there is no bound, a thousand go through.
    let count = if writes_max == 0 { 1000 } else { writes_max };
    let writes = |count: u32| (0..count).map(|n| put(&format!("t{n}"), "", Expectation::Any)).collect::<Vec<_>>();
    if writes_max > 0 {
        refused(repository.apply(writes(count + 1), true).await, ErrorKind::LimitExceeded)?;
        ensure_eq!(repository.count("templates", None).await?, 0, "entities of an apply beyond its bound");
    }
    repository.apply(writes(count), true).await?;
    ensure_eq!(repository.count("templates", None).await?, u64::from(count));
    Ok(())
}

pub(super) async fn an_apply_that_is_not_atomic_answers_each_write(place: Place) -> Checked {
    use Expectation::{Absent, Any, Present};
    let repository = place.open().await?;
    let writes = vec![
        put("a", "", Absent),
        put("a", "", Absent),
        put("b", r#","version":-1"#, Any),
        removal("nothing", Any),
        put("b", "", Present),
        put("c", "", Any),
        removal("a", Present),
    ];
    let results = repository.apply(writes, false).await?;
    let results: Vec<Result<u64, ErrorKind>> =
        results.into_iter().map(|result| result.map(|outcome| outcome.version).map_err(|error| error.kind)).collect();
    let expected = [
        Ok(1),
        Err(ErrorKind::AlreadyExists),
        Err(ErrorKind::InvalidArgument),
        Ok(0),
        Err(ErrorKind::NotFound),
        Ok(1),
        Ok(1),
    ];
    ensure_eq!(results, expected);
    ensure!(is_stored(&repository, "c").await?);
    ensure_eq!(repository.count("templates", None).await?, 1);
    Ok(())
}

/// Reads, adds one, and writes on the condition that nobody wrote between, until it succeeded `times`.
async fn count_up(repository: Repository, times: usize) -> Checked {
    for _ in 0..times {
        loop {
            let found = stored(&repository, "templates", "counter").await?;
            let (n, version) = (found["n"].as_u64().unwrap_or(0), found["version"].as_u64().unwrap_or(0));
            let body = template("counter", &format!(r#","n":{}"#, n + 1));
            match repository.update("templates", "counter", &body, Some(version)).await {
                Ok(_) => break,
                Err(error) => {
                    refused(Err::<(), _>(error), ErrorKind::VersionConflict)?;
                }
            }
        }
    }
    Ok(())
}

pub(super) async fn writers_at_once_lose_no_update(place: Place) -> Checked {
    let repository = place.open().await?;
    save(&repository, "counter", r#","n":0"#).await?;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(tokio::spawn(count_up(place.another(&repository).await?, 25)));
    }
    for task in tasks {
        task.await.map_err(|fault| Stop::failed(fault.to_string()))??;
    }
    let found = stored(&repository, "templates", "counter").await?;
    ensure_eq!((found["n"].as_u64(), found["version"].as_u64()), (Some(100), Some(101)));
    Ok(())
}

pub(super) async fn an_atomic_apply_that_is_given_up_is_whole_or_nothing(place: Place) -> Checked {
    let repository = place.open().await?;
    needs_atomic_apply(&place, &repository).await?;
    let bound = repository.plugin().description.max_atomic_writes;
    let count = if bound == 0 { 300 } else { bound.min(300) };
    for round in 0..12_u32 {
        let writes = (0..count).map(|n| put(&format!("r{round}-{n}"), r#","n":1"#, Expectation::Absent)).collect();
        // Whoever asked goes away, at another moment each time. The instance goes with the call.
        let patience = Duration::from_micros(200 << round.min(9));
        let answered = tokio::time::timeout(patience, repository.apply(writes, true)).await;
        if let Ok(answered) = &answered {
            ensure!(answered.is_ok(), "an apply that nothing keeps from its end failed: {answered:?}");
        }
        let ids: Vec<String> = (0..count).map(|n| format!("r{round}-{n}")).collect();
        let there = repository.get("templates", &ids).await?.iter().flatten().count();
        let whole = there == count as usize;
        ensure!(whole || there == 0 && answered.is_err(), "{there} of {count} writes of an atomic apply took effect");
    }
    // Nothing that it held is held any more.
    save(&place.another(&repository).await?, "after", "").await?;
    Ok(())
}
