//! Transactions: several reads and writes that happen as one, or not at all.

use larder_model::{ErrorKind, Expectation, Isolation, filter, json};

use super::check::{Checked, Stop, ensure, ensure_eq, refused};
use super::entities::{is_stored, save, stored, template};
use super::place::Place;
use crate::query::Select;
use crate::repository::Repository;

/// Ends the case where there are no transactions, which `begin` then has to say.
pub(super) async fn needs_transactions(repository: &Repository) -> Checked {
    if repository.plugin().description.features.transactions {
        return Ok(());
    }
    for isolation in [None, Some(Isolation::ReadCommitted), Some(Isolation::Serializable)] {
        for read_only in [false, true] {
            refused(repository.begin(isolation, read_only).await, ErrorKind::Unsupported)?;
        }
    }
    Err(Stop::Undeclared("transactions"))
}

pub(super) async fn a_transaction_sees_its_own_writes_and_happens_as_one_or_not_at_all(place: Place) -> Checked {
    let repository = place.open().await?;
    needs_transactions(&repository).await?;
    save(&repository, "kept", "").await?;

    let mut committed = repository.begin(None, false).await?;
    committed.save("templates", &template("new", ""), Expectation::Absent).await?;
    let patch = json::parse_object(br#"{"name": "Changed"}"#)?;
    ensure_eq!(committed.patch("templates", "kept", &patch).await?.version, 2);
    let ids = ["new".to_owned(), "gone".to_owned()];
    let found = committed.get("templates", &ids, true).await?;
    ensure!(found[0].is_some() && found[1].is_none());
    ensure_eq!(committed.query("templates", Select::default()).collect().await?.len(), 2);
    let changed = Select { filter: Some(filter::parse_expression("name=Changed")?), ..Select::default() };
    ensure_eq!(committed.query("templates", changed).collect().await?.len(), 1, "entities changed inside");
    committed.commit().await?;
    ensure!(is_stored(&repository, "new").await?);
    ensure_eq!(stored(&repository, "templates", "kept").await?["name"], "Changed");

    let mut undone = repository.begin(None, false).await?;
    undone.delete("templates", "kept", None).await?;
    undone.rollback().await?;
    let mut dropped = repository.begin(None, false).await?;
    dropped.delete("templates", "new", None).await?;
    drop(dropped);
    let mut failed = repository.begin(None, false).await?;
    failed.save("templates", &template("half", ""), Expectation::Any).await?;
    refused(failed.save("templates", &template("new", ""), Expectation::Absent).await, ErrorKind::AlreadyExists)?;
    drop(failed);
    // Another handle waits for the locks that the ended transactions held, and sees what was committed.
    let other = place.another(&repository).await?;
    ensure!(is_stored(&other, "kept").await? && is_stored(&other, "new").await? && !is_stored(&other, "half").await?);
    other.save("templates", &template("half", ""), Expectation::Absent).await?;
    Ok(())
}

pub(super) async fn a_transaction_expects_as_any_write_does(place: Place) -> Checked {
    let repository = place.open().await?;
    needs_transactions(&repository).await?;
    save(&repository, "a", r#","n":1"#).await?;
    let body = template("a", r#","n":2"#);
    for (id, expect, kind) in [
        ("a", Expectation::Absent, ErrorKind::AlreadyExists),
        ("a", Expectation::Version(7), ErrorKind::VersionConflict),
        ("b", Expectation::Present, ErrorKind::NotFound),
        ("b", Expectation::Version(1), ErrorKind::NotFound),
    ] {
        // Who writes optimistically learns of it with the commit.
        let mut transaction = repository.begin(None, false).await?;
        let ended = match transaction.save("templates", &template(id, ""), expect).await {
            Ok(_) => transaction.commit().await,
            Err(error) => {
                drop(transaction);
                Err(error)
            }
        };
        refused(ended, kind)?;
    }
    ensure_eq!(stored(&repository, "templates", "a").await?["n"], 1);
    ensure!(!is_stored(&repository, "b").await?);

    let mut transaction = repository.begin(None, false).await?;
    ensure_eq!(transaction.update("templates", "a", &body, Some(1)).await?.version, 2);
    ensure!(transaction.delete("templates", "a", Some(2)).await?.existed);
    ensure_eq!(transaction.save("templates", &body, Expectation::Absent).await?.1.version, 1);
    transaction.rollback().await?;
    ensure_eq!(stored(&repository, "templates", "a").await?["n"], 1);
    Ok(())
}

pub(super) async fn every_isolation_can_be_asked_for_or_is_refused(place: Place) -> Checked {
    let repository = place.open().await?;
    needs_transactions(&repository).await?;
    let strongest = repository.plugin().description.isolations.iter().max().copied();
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let begun = repository.begin(Some(isolation), false).await;
        // What is not listed is served by the next stronger one.
        if Some(isolation) <= strongest {
            let mut transaction = begun?;
            let id = format!("{isolation:?}");
            transaction.save("templates", &template(&id, ""), Expectation::Absent).await?;
            transaction.commit().await?;
            ensure!(is_stored(&repository, &id).await?);
        } else {
            refused(begun, ErrorKind::Unsupported)?;
        }
    }
    Ok(())
}
