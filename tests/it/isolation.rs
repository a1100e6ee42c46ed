//! Transactions under load, and past their deadline. Which anomalies each isolation excludes, step by step, is in the
//! conformance suite.

use std::time::Duration;

use larder::error::Error;
use larder::query::Select;
use larder::repository::Repository;
use larder_model::{ErrorKind, Expectation, Isolation, Put, Retry, Write};
use tokio::time::{Instant, sleep};

use crate::place::{Choices, Opens, Place, Rounds, on_every_store, template};
use crate::support::object;

use Isolation::{ReadCommitted, RepeatableRead, Serializable};

on_every_store! {
    money_is_neither_made_nor_lost,
    a_transaction_past_its_deadline_is_rolled_back_and_holds_nothing,
}

const LEVELS: [Isolation; 3] = [ReadCommitted, RepeatableRead, Serializable];

/// The level that serves the one that was asked for; none where nothing as strong is offered.
fn served(repository: &Repository, asked: Isolation) -> Option<Isolation> {
    let offered = &repository.plugin().description.isolations;
    offered.iter().copied().filter(|level| *level >= asked).min()
}

fn body(id: &str, number: i64) -> (&'static str, String, Vec<u8>) {
    match id.strip_prefix("requests/") {
        None => ("templates", id.to_owned(), template(id, &format!(r#","n":{number}"#))),
        // What it refers to has to be there.
        Some(id) => (
            "requests",
            id.to_owned(),
            format!(
                r#"{{"request_id":"{id}","template_id":"x","machine_count":1,"status":"NEW","request_type":"acquire","n":{number}}}"#
            )
            .into_bytes(),
        ),
    }
}

fn number(body: &[u8]) -> i64 {
    object(body)["n"].as_i64().expect("a number")
}

/// Whether an application would begin the transaction again.
fn may_be_tried_again(error: &Error) -> bool {
    let passes = error.is(ErrorKind::Unavailable) || error.is(ErrorKind::Timeout);
    error.is(ErrorKind::VersionConflict) || passes && error.retry == Retry::Safe
}

/// Leaves these entities in the store and no others.
async fn set_up(repository: &Repository, entities: &[(&str, i64)]) {
    for (collection, key) in [("requests", "request_id"), ("templates", "template_id")] {
        for entity in repository.query(collection, Select::default()).collect().await.expect("entities") {
            let id = object(&entity.body)[key].as_str().expect("an id").to_owned();
            repository.delete(collection, &id, None).await.expect("a delete");
        }
    }
    for (id, number) in entities {
        let (collection, _, body) = body(id, *number);
        repository.save(collection, &body, Expectation::Absent).await.expect("an entity");
    }
}

async fn stored(repository: &Repository, id: &str) -> i64 {
    let (collection, id, _) = body(id, 0);
    let found = repository.get(collection, &[id]).await.expect("an answer").remove(0);
    found.map_or(0, |found| number(&found.body))
}

const ACCOUNTS: [&str; 4] = ["a", "b", "c", "d"];
const BALANCE: i64 = 100;
/// Those who move money, those who add it up, and what each does in a round.
const TELLERS: u64 = 3;
const AUDITORS: u64 = 2;
const DEALS: u64 = 8;

/// What the clients of a round did.
#[derive(Debug, Default)]
struct Books {
    transfers: u64,
    /// What each account gained by them.
    gained: [i64; ACCOUNTS.len()],
    undone: u64,
    tried_again: u64,
    audits: u64,
}

/// Moves money between two accounts, in one of the ways there are, if they have enough.
async fn transfer(
    repository: &Repository,
    (asked, served): (Isolation, Isolation),
    choices: &mut Choices,
    books: &mut Books,
) -> Result<(), Error> {
    let from = choices.below(ACCOUNTS.len() as u64) as usize;
    let to = (from + 1 + choices.below(ACCOUNTS.len() as u64 - 1) as usize) % ACCOUNTS.len();
    let amount = 1 + choices.below(40) as i64;
    let book = |books: &mut Books| {
        books.transfers += 1;
        books.gained[from] -= amount;
        books.gained[to] += amount;
    };
    let (from, to) = (ACCOUNTS[from], ACCOUNTS[to]);
    let ids = [from.to_owned(), to.to_owned()];
    let entity = |found: &mut Vec<Option<larder_model::Entity>>| {
        let entity = found.remove(0).expect("an account");
        (number(&entity.body), entity.version)
    };
    let way = choices.below(6);
    if way == 0 {
        // Without a transaction: both writes at once, on the condition that nobody wrote between.
        let mut found = repository.get("templates", &ids).await?;
        let ((rich, rich_version), (poor, poor_version)) = (entity(&mut found), entity(&mut found));
        if rich >= amount {
            let put = |id: &str, number, version| {
                let (collection, id, body) = body(id, number);
                Write::Put(Put { collection: collection.into(), id, body, expect: Expectation::Version(version) })
            };
            let writes = vec![put(from, rich - amount, rich_version), put(to, poor + amount, poor_version)];
            for result in repository.apply(writes, true).await? {
                result.expect("an atomic apply fails as a whole");
            }
            book(books);
        }
        return Ok(());
    }
    let mut transaction = repository.begin(Some(asked), false).await?;
    // Below repeatable read an update could be lost without a lock.
    let is_locked = served == ReadCommitted || way == 1;
    let mut found = transaction.get("templates", &ids, is_locked).await?;
    let ((rich, _), (poor, _)) = (entity(&mut found), entity(&mut found));
    if rich < amount {
        return transaction.rollback().await;
    }
    transaction.update("templates", from, &body(from, rich - amount).2, None).await?;
    if way == 2 {
        // The money is nowhere now. Half of them say so, and the others only go away.
        books.undone += 1;
        if choices.below(2) == 0 {
            transaction.rollback().await?;
        }
        return Ok(());
    }
    transaction.update("templates", to, &body(to, poor + amount).2, None).await?;
    transaction.commit().await?;
    book(books);
    Ok(())
}

/// What there is, seen from a transaction that only reads.
async fn audit(repository: &Repository, asked: Isolation, choices: &mut Choices) -> Result<i64, Error> {
    let mut transaction = repository.begin(Some(asked), true).await?;
    let mut sum = 0;
    if choices.below(2) == 0 {
        for entity in transaction.query("templates", Select::default()).collect().await? {
            sum += number(&entity.body);
        }
    } else {
        for id in ACCOUNTS {
            let found = transaction.get("templates", &[id.to_owned()], false).await?.remove(0);
            sum += number(&found.expect("an account").body);
        }
    }
    transaction.commit().await?;
    Ok(sum)
}

/// Tellers and auditors on handles of their own: from repeatable read on the sum is the same to each auditor, and in the
/// end each account holds what the transfers made of it, at every level. Whoever lost a race begins again, as an application would; that an outcome is
/// unknown, nobody sees without faults.
async fn money_is_neither_made_nor_lost(place: &impl Opens) {
    let (mut choices, mut rounds, mut total) = (Choices::new(), Rounds::new(1), Books::default());
    let mut handles = Vec::new();
    for _ in 0..TELLERS + AUDITORS {
        handles.push(place.open().await);
    }
    let all = ACCOUNTS.len() as i64 * BALANCE;
    while rounds.next().is_some() {
        for asked in LEVELS {
            let Some(served) = served(&handles[0], asked) else { continue };
            set_up(&handles[0], &ACCOUNTS.map(|id| (id, BALANCE))).await;
            let mut tasks = Vec::new();
            for (position, repository) in handles.iter().enumerate() {
                let (repository, mut choices) = (repository.clone(), choices.split());
                tasks.push(tokio::spawn(async move {
                    let mut books = Books::default();
                    let mut left = DEALS;
                    while left > 0 {
                        let ended = if (position as u64) < TELLERS {
                            transfer(&repository, (asked, served), &mut choices, &mut books).await
                        } else {
                            let audited = audit(&repository, asked, &mut choices).await;
                            audited.map(|sum| {
                                books.audits += 1;
                                assert!(sum == all || served == ReadCommitted, "{asked:?}: {sum} instead of {all}");
                            })
                        };
                        match ended {
                            Ok(()) => left -= 1,
                            Err(error) => {
                                assert!(may_be_tried_again(&error), "{error:?}");
                                books.tried_again += 1;
                                sleep(Duration::from_millis(choices.below(10))).await;
                            }
                        }
                    }
                    books
                }));
            }
            let mut expected = [BALANCE; ACCOUNTS.len()];
            for task in tasks {
                let books = task.await.expect("a client");
                for (balance, gained) in expected.iter_mut().zip(books.gained) {
                    *balance += gained;
                }
                total.transfers += books.transfers;
                total.undone += books.undone;
                total.tried_again += books.tried_again;
                total.audits += books.audits;
            }
            let mut balances = Vec::new();
            for id in ACCOUNTS {
                balances.push(stored(&handles[0], id).await);
            }
            // Each transfer that was acknowledged is there, and nothing of any other.
            assert_eq!(balances, expected, "{asked:?}");
            assert!(balances.iter().all(|balance| *balance >= 0), "{asked:?}: {balances:?}");
        }
    }
    let Books { transfers, undone, tried_again, audits, .. } = total;
    println!(
        "{}: {transfers} transfers and {audits} audits checked, {undone} transfers undone, {tried_again} tried again",
        handles[0].name()
    );
    assert!(transfers > 0, "nothing was moved");
}

/// Whoever waited for it goes on, long before its own call would be given up.
async fn a_transaction_past_its_deadline_is_rolled_back_and_holds_nothing(place: &Place) {
    let place = Place::with_transaction_timeout(place.store, Duration::from_millis(700));
    let (late, other) = (place.open().await, place.open().await);
    for read_only in [false, true] {
        set_up(&late, &[("x", 1)]).await;
        let mut transaction = late.begin(None, read_only).await.expect("a transaction");
        let begun = Instant::now();
        transaction.get("templates", &["x".into()], !read_only).await.expect("an answer");
        if !read_only {
            transaction.update("templates", "x", &body("x", 2).2, None).await.expect("an update");
        }
        let outcome = other.update("templates", "x", &body("x", 3).2, None).await.expect("an update after it");
        assert_eq!(outcome.version, 2, "what was not committed is not there");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());

        sleep(Duration::from_secs(1).saturating_sub(begun.elapsed())).await;
        let error = transaction.get("templates", &["x".into()], false).await.expect_err("it is over");
        assert!(error.is(ErrorKind::Timeout), "{error:?}");
        assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("plugins.transaction_timeout")), "{error:?}");
        let error = transaction.commit().await.expect_err("it is over");
        assert!(error.is(ErrorKind::Timeout), "{error:?}");
        assert_eq!((stored(&late, "x").await, stored(&other, "x").await), (3, 3));
        // The handle that it began on is as good as before.
        late.update("templates", "x", &body("x", 4).2, Some(2)).await.expect("an update");
    }
}
