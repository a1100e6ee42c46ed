//! Transactions that meet: which anomalies each isolation must exclude, for whatever a strategy says that it offers.
//!
//! A level that is asked for and not offered is served by the next stronger one, so each body runs at every
//! level and looks for what the level that serves it excludes:
//!
//! | anomaly | excluded from |
//! | --- | --- |
//! | dirty read; lost update where the read took a lock or the write expects the version that was read | read committed |
//! | non-repeatable read, read skew, lost update | repeatable read |
//! | phantom, write skew, the anomaly that only a read-only transaction sees | serializable |
//!
//! Interleavings are fixed: one step after the other, each in the transaction that it belongs to. Where a step waits
//! for another transaction, because of locks, that one goes on, and the first follows as soon as it can. So the same
//! schedule tells something of a strategy that locks and of one that lets both go on and refuses a commit.

use std::collections::BTreeMap;
use std::time::Duration;

use larder::error::Error;
use larder::query::Select;
use larder::repository::{Repository, Transaction};
use larder_model::{ErrorKind, Expectation, Isolation, Put, Retry, Write, filter};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, timeout};

use crate::place::{Choices, Opens, Place, Rounds, on_every_store, template};
use crate::support::object;

use Isolation::{ReadCommitted, RepeatableRead, Serializable};
use Step::{Add, AddChecked, Commit, Find, Outside, Read, ReadLocked, Rollback, Set, SetIfFewer, SetIfNone, SetIfSum};

on_every_store! {
    no_update_is_lost,
    nothing_is_read_that_was_not_committed,
    what_was_read_is_read_again,
    reads_of_several_entities_are_of_one_moment,
    what_was_found_is_found_again,
    decisions_do_not_cross,
    a_read_only_transaction_sees_what_some_order_explains,
    a_read_only_transaction_writes_nothing,
    money_is_neither_made_nor_lost,
    a_transaction_past_its_deadline_is_rolled_back_and_holds_nothing,
    a_transaction_that_is_left_holds_nothing,
}

const LEVELS: [Isolation; 3] = [ReadCommitted, RepeatableRead, Serializable];

/// How long a step is waited for before it is taken to wait for another transaction. One that is only slow makes a
/// schedule another one, and no test fail.
const PATIENCE: Duration = Duration::from_millis(60);

/// The level that serves the one that was asked for.
fn served(repository: &Repository, asked: Isolation) -> Isolation {
    let offered = &repository.plugin().description.isolations;
    let served = offered.iter().filter(|level| **level >= asked).min();
    *served.unwrap_or_else(|| panic!("nothing as strong as {asked:?} is offered: {offered:?}"))
}

/// What a transaction does next. Entities have a number; `requests/r` is one of another collection.
#[derive(Debug, Clone, Copy)]
enum Step {
    Read(&'static str),
    /// Keeps others from changing it until the end.
    ReadLocked(&'static str),
    /// Without a transaction.
    Outside(&'static str),
    /// How many templates have at least this number.
    Find(i64),
    Set(&'static str, i64),
    /// What was read of it and so much.
    Add(&'static str, i64),
    /// The same, where it still has the version that was read.
    AddChecked(&'static str, i64),
    /// Sets the first where all that was read sums up to at least this much.
    SetIfSum(&'static str, i64, i64),
    /// Sets it where all that was read sums up to less than this.
    SetIfFewer(&'static str, i64, i64),
    /// Sets it where nothing was found.
    SetIfNone(&'static str, i64),
    Commit,
    Rollback,
}

/// What became of a transaction.
#[derive(Debug, Default)]
struct Tale {
    /// What each read, of one entity or of a number of them, gave.
    reads: Vec<i64>,
    has_committed: bool,
    failed: Option<Error>,
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

/// One transaction, told what to do step by step.
struct Player {
    repository: Repository,
    transaction: Option<Transaction>,
    /// Number and version of what was read last of each.
    known: BTreeMap<&'static str, (i64, u64)>,
    found: i64,
    tale: Tale,
}

impl Player {
    async fn play(&mut self, step: Step) -> Result<(), Error> {
        if let Outside(id) = step {
            let (collection, id, _) = body(id, 0);
            let found = self.repository.get(collection, &[id]).await?.remove(0);
            self.tale.reads.push(found.map_or(0, |found| number(&found.body)));
            return Ok(());
        }
        let sum = self.known.values().map(|(number, _)| number).sum::<i64>();
        let known = |id| *self.known.get(id).expect("it was read before");
        let transaction = self.transaction.as_mut().expect("a transaction that has not ended");
        let (write, version) = match step {
            Read(id) | ReadLocked(id) => {
                let (collection, key, _) = body(id, 0);
                let found = transaction.get(collection, &[key], matches!(step, ReadLocked(_))).await?.remove(0);
                let (number, version) = found.map_or((0, 0), |found| (number(&found.body), found.version));
                self.known.insert(id, (number, version));
                self.tale.reads.push(number);
                return Ok(());
            }
            Find(least) => {
                let filter = filter::parse_expression(&format!("n>={least}")).expect("a filter");
                let select = Select { filter: Some(filter), ..Select::default() };
                self.found = transaction.query("templates", select).collect().await?.len() as i64;
                self.tale.reads.push(self.found);
                return Ok(());
            }
            Set(id, number) => (Some((id, number)), None),
            Add(id, number) => (Some((id, known(id).0 + number)), None),
            AddChecked(id, number) => (Some((id, known(id).0 + number)), Some(known(id).1)),
            SetIfSum(id, number, least) => ((sum >= least).then_some((id, number)), None),
            SetIfFewer(id, number, bound) => ((sum < bound).then_some((id, number)), None),
            SetIfNone(id, number) => ((self.found == 0).then_some((id, number)), None),
            Commit => {
                self.transaction.take().expect("it is there").commit().await?;
                self.tale.has_committed = true;
                return Ok(());
            }
            Rollback => return self.transaction.take().expect("it is there").rollback().await,
            Outside(_) => unreachable!("it needs no transaction"),
        };
        let Some((id, number)) = write else { return Ok(()) };
        let (collection, id, body) = body(id, number);
        match version {
            Some(version) => drop(transaction.update(collection, &id, &body, Some(version)).await?),
            None => drop(transaction.save(collection, &body, Expectation::Any).await?),
        }
        Ok(())
    }

    /// Until there are no more steps. After an error the transaction is rolled back and the rest is left out.
    async fn run(
        mut self,
        (isolation, read_only): (Isolation, bool),
        mut steps: UnboundedReceiver<Step>,
        done: UnboundedSender<()>,
    ) -> Tale {
        while let Some(step) = steps.recv().await {
            if self.tale.failed.is_none() {
                let played = async {
                    // With the first step, so that it sees what was committed before.
                    let needs = !matches!(step, Outside(_)) && !self.tale.has_committed;
                    if needs && self.transaction.is_none() {
                        self.transaction = Some(self.repository.begin(Some(isolation), read_only).await?);
                    }
                    self.play(step).await
                };
                if let Err(error) = played.await {
                    self.tale.failed = Some(error);
                    self.transaction = None;
                }
            }
            // The director may be gone already.
            let _ = done.send(());
        }
        self.tale
    }
}

/// A player, and how many of its steps were told and are done.
struct Seat {
    steps: UnboundedSender<Step>,
    done: UnboundedReceiver<()>,
    waiting: usize,
}

impl Seat {
    /// Waits for what it was told, unless that takes too long.
    async fn settle(&mut self) {
        let settled = async {
            while self.waiting > 0 && self.done.recv().await.is_some() {
                self.waiting -= 1;
            }
        };
        let _ = timeout(PATIENCE, settled).await;
    }
}

/// Runs a schedule: each step in the transaction of that position in `players`, which says who only reads.
async fn interleave(
    handles: &[Repository],
    isolation: Isolation,
    read_only: &[bool],
    schedule: &[(usize, Step)],
) -> Vec<Tale> {
    let (mut seats, mut tasks) = (Vec::new(), Vec::new());
    for (repository, read_only) in handles.iter().zip(read_only) {
        let ((steps, told), (done, heard)) = (unbounded_channel(), unbounded_channel());
        let player = Player {
            repository: repository.clone(),
            transaction: None,
            known: BTreeMap::new(),
            found: 0,
            tale: Tale::default(),
        };
        tasks.push(tokio::spawn(player.run((isolation, *read_only), told, done)));
        seats.push(Seat { steps, done: heard, waiting: 0 });
    }
    for (position, step) in schedule {
        let seat = &mut seats[*position];
        seat.steps.send(*step).expect("it listens");
        seat.waiting += 1;
        if seat.waiting == 1 {
            seat.settle().await;
        }
        // Whoever waited for this one goes on.
        if matches!(step, Commit | Rollback) {
            for seat in seats.iter_mut().filter(|seat| seat.waiting > 0) {
                seat.settle().await;
            }
        }
    }
    drop(seats);
    let mut tales = Vec::new();
    for task in tasks {
        tales.push(task.await.expect("a player"));
    }
    for tale in &tales {
        // What a transaction that met another one may be refused with, and nothing else.
        if let Some(error) = &tale.failed {
            assert!(may_be_tried_again(error), "{error:?}");
        }
    }
    assert!(tales.iter().any(|tale| tale.has_committed), "somebody gets through: {tales:?}");
    tales
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

/// Three handles, and each level that is asked for with the one that serves it.
async fn stage(place: &impl Opens) -> (Vec<Repository>, Vec<(Isolation, Isolation)>) {
    let handles = vec![place.open().await, place.open().await, place.open().await];
    let levels = LEVELS.map(|asked| (asked, served(&handles[0], asked)));
    (handles, levels.to_vec())
}

/// Both read, both write what they read and 1: each that commits counts. From repeatable read on by itself, and at read
/// committed where the read takes a lock or the write expects the version.
async fn no_update_is_lost(place: &impl Opens) {
    let (handles, levels) = stage(place).await;
    // From which level on, how it reads and how it writes.
    type Way = (Isolation, fn(&'static str) -> Step, fn(&'static str, i64) -> Step);
    let ways: [Way; 3] =
        [(RepeatableRead, Read, Add), (ReadCommitted, ReadLocked, Add), (ReadCommitted, Read, AddChecked)];
    for (asked, served) in levels {
        for (needed, read, add) in ways.iter().filter(|(needed, ..)| served >= *needed) {
            set_up(&handles[0], &[("x", 0)]).await;
            let schedule =
                [(0, read("x")), (1, read("x")), (0, add("x", 1)), (1, add("x", 1)), (0, Commit), (1, Commit)];
            let tales = interleave(&handles, asked, &[false, false], &schedule).await;
            let committed = tales.iter().filter(|tale| tale.has_committed).count();
            let found = stored(&handles[0], "x").await;
            assert_eq!(found, committed as i64, "{asked:?}, {needed:?}: {tales:?}");
        }
    }
}

/// At every level: neither what is rolled back later nor what is replaced before the commit is seen by anybody else,
/// inside of a transaction or outside.
async fn nothing_is_read_that_was_not_committed(place: &impl Opens) {
    let (handles, levels) = stage(place).await;
    for (asked, _) in levels {
        for reader in [true, false] {
            set_up(&handles[0], &[("x", 0)]).await;
            let undone = [
                (0, Set("x", 1)),
                (1, Read("x")),
                (2, Outside("x")),
                (0, Rollback),
                (1, Read("x")),
                (1, Commit),
                (2, Outside("x")),
            ];
            let tales = interleave(&handles, asked, &[false, reader, true], &undone).await;
            assert_eq!((&tales[1].reads[..], &tales[2].reads[..]), (&[0, 0][..], &[0, 0][..]), "{asked:?}: {tales:?}");

            let replaced = [
                (0, Set("x", 1)),
                (1, Read("x")),
                (2, Outside("x")),
                (0, Set("x", 2)),
                (1, Commit),
                (0, Commit),
                (2, Outside("x")),
            ];
            let tales = interleave(&handles, asked, &[false, reader, true], &replaced).await;
            assert!(!tales[1].reads.contains(&1) && !tales[2].reads.contains(&1), "{asked:?}: {tales:?}");
            let after = if tales[0].has_committed { 2 } else { 0 };
            assert_eq!(tales[2].reads.last(), Some(&after), "{asked:?}: {tales:?}");
        }
    }
}

/// From repeatable read on.
async fn what_was_read_is_read_again(place: &impl Opens) {
    let (handles, levels) = stage(place).await;
    for (asked, _) in levels.into_iter().filter(|(_, served)| *served >= RepeatableRead) {
        for reader in [true, false] {
            set_up(&handles[0], &[("x", 0)]).await;
            let schedule = [(0, Read("x")), (1, Set("x", 1)), (1, Commit), (0, Read("x")), (0, Commit)];
            let tales = interleave(&handles, asked, &[reader, false], &schedule).await;
            if tales[0].has_committed {
                assert_eq!(tales[0].reads[0], tales[0].reads[1], "{asked:?}: {tales:?}");
            }
        }
    }
}

/// From repeatable read on: two entities that are always written together are never seen apart (read skew), be they in one
/// collection or in two.
async fn reads_of_several_entities_are_of_one_moment(place: &impl Opens) {
    let (handles, levels) = stage(place).await;
    for (asked, _) in levels.into_iter().filter(|(_, served)| *served >= RepeatableRead) {
        for (other, reader) in [("y", true), ("y", false), ("requests/r", true), ("requests/r", false)] {
            set_up(&handles[0], &[("x", 1), (other, 1)]).await;
            let schedule =
                [(0, Read("x")), (1, Set("x", 2)), (1, Set(other, 2)), (1, Commit), (0, Read(other)), (0, Commit)];
            let tales = interleave(&handles, asked, &[reader, false], &schedule).await;
            if tales[0].has_committed {
                assert_eq!(tales[0].reads[0], tales[0].reads[1], "{asked:?}, {other}: {tales:?}");
            }
        }
    }
}

/// Serializable: no entity appears in what was found (phantom), and two that each add one where they found none do not both
/// get through.
async fn what_was_found_is_found_again(place: &impl Opens) {
    let (handles, levels) = stage(place).await;
    for (asked, _) in levels.into_iter().filter(|(_, served)| *served >= Serializable) {
        for reader in [true, false] {
            set_up(&handles[0], &[("x", 0), ("y", 10)]).await;
            let schedule =
                [(0, Find(10)), (1, Set("z", 11)), (1, Set("x", 12)), (1, Commit), (0, Find(10)), (0, Commit)];
            let tales = interleave(&handles, asked, &[reader, false], &schedule).await;
            if tales[0].has_committed {
                assert_eq!(tales[0].reads[0], tales[0].reads[1], "{asked:?}: {tales:?}");
            }
        }
        set_up(&handles[0], &[("x", 0)]).await;
        let schedule =
            [(0, Find(10)), (1, Find(10)), (0, SetIfNone("a", 10)), (1, SetIfNone("b", 10)), (0, Commit), (1, Commit)];
        let tales = interleave(&handles, asked, &[false, false], &schedule).await;
        let sum = stored(&handles[0], "a").await + stored(&handles[0], "b").await;
        assert_eq!(sum, 10, "{asked:?}: {tales:?}");
    }
}

/// Serializable: two that read the same and write different entities (write skew). One of two has to stay at work.
async fn decisions_do_not_cross(place: &impl Opens) {
    let (handles, levels) = stage(place).await;
    for (asked, _) in levels.into_iter().filter(|(_, served)| *served >= Serializable) {
        set_up(&handles[0], &[("x", 1), ("y", 1)]).await;
        let schedule = [
            (0, Read("x")),
            (0, Read("y")),
            (1, Read("x")),
            (1, Read("y")),
            (0, SetIfSum("x", 0, 2)),
            (1, SetIfSum("y", 0, 2)),
            (0, Commit),
            (1, Commit),
        ];
        let tales = interleave(&handles, asked, &[false, false], &schedule).await;
        let sum = stored(&handles[0], "x").await + stored(&handles[0], "y").await;
        assert_eq!(sum, 1, "{asked:?}: {tales:?}");
    }
}

/// Serializable: whoever takes money out pays a fee if the accounts held too little, and somebody pays in. A reader who saw
/// the payment and not the withdrawal knows that the payment came first, so there is no fee.
async fn a_read_only_transaction_sees_what_some_order_explains(place: &impl Opens) {
    let (handles, levels) = stage(place).await;
    for (asked, _) in levels.into_iter().filter(|(_, served)| *served >= Serializable) {
        set_up(&handles[0], &[("x", 0), ("y", 0)]).await;
        let schedule = [
            (0, Read("x")),
            (0, Read("y")),
            (1, Set("y", 20)),
            (1, Commit),
            (2, Read("x")),
            (2, Read("y")),
            (2, Commit),
            (0, SetIfFewer("x", -11, 10)),
            (0, SetIfSum("x", -10, 10)),
            (0, Commit),
        ];
        let tales = interleave(&handles, asked, &[false, false, true], &schedule).await;
        let saw_payment_alone = tales[2].has_committed && tales[2].reads == [0, 20];
        let fee = stored(&handles[0], "x").await == -11;
        assert!(!(saw_payment_alone && fee), "{asked:?}: {tales:?}");
    }
}

/// Whatever is tried, and whether there is something to write over or not.
async fn a_read_only_transaction_writes_nothing(place: &impl Opens) {
    let repository = place.open().await;
    // Before anything was written, there may not even be a table.
    for entities in [&[][..], &[("x", 1)][..]] {
        set_up(&repository, entities).await;
        let found = stored(&repository, "x").await;
        for way in 0..4 {
            let mut transaction = repository.begin(None, true).await.expect("a transaction");
            let (collection, id, body) = body("x", 2);
            let refused = match way {
                0 => transaction.save(collection, &body, Expectation::Any).await.map(drop),
                1 => transaction.update(collection, &id, &body, None).await.map(drop),
                2 => transaction.patch(collection, &id, &object(br#"{"n": 2}"#)).await.map(drop),
                _ => transaction.delete(collection, &id, None).await.map(drop),
            };
            let error = refused.expect_err("it only reads");
            // A patch looks first whether there is anything to change.
            let is_absent = entities.is_empty() && way == 2 && error.is(ErrorKind::NotFound);
            assert!(error.is(ErrorKind::InvalidArgument) || is_absent, "{way}: {error:?}");
            assert_eq!(error.retry, Retry::Never);
            drop(transaction);
            assert_eq!(stored(&repository, "x").await, found, "{way}");
        }
    }
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
    let (from, to, amount) = (ACCOUNTS[from], ACCOUNTS[to], 1 + choices.below(40) as i64);
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
            books.transfers += 1;
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
    books.transfers += 1;
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

/// Tellers and auditors on handles of their own: from repeatable read on the sum is the same to each auditor, and at the
/// end it is at every level. Whoever lost a race begins again, as an application would; that an outcome is
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
            let served = served(&handles[0], asked);
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
            for task in tasks {
                let books = task.await.expect("a client");
                total.transfers += books.transfers;
                total.undone += books.undone;
                total.tried_again += books.tried_again;
                total.audits += books.audits;
            }
            let mut sum = 0;
            for id in ACCOUNTS {
                let balance = stored(&handles[0], id).await;
                assert!(balance >= 0, "{asked:?}: {id} has {balance}");
                sum += balance;
            }
            assert_eq!(sum, all, "{asked:?}");
        }
    }
    println!("{}: {total:?}", handles[0].name());
    assert!(total.transfers > 0, "nothing was moved");
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

/// A task that is ended takes its transaction along, wherever it stood: whoever waited goes on.
async fn a_transaction_that_is_left_holds_nothing(place: &impl Opens) {
    let (left, other) = (place.open().await, place.open().await);
    for pause_ms in [0, 1, 3, 10, 40] {
        set_up(&left, &[("x", 1)]).await;
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let task = tokio::spawn({
            let left = left.clone();
            async move {
                let mut transaction = left.begin(None, false).await.expect("a transaction");
                begun.send(()).expect("the test waits");
                loop {
                    transaction.update("templates", "x", &body("x", 2).2, None).await.expect("an update");
                }
            }
        });
        has_begun.await.expect("it began");
        let waiting = tokio::spawn({
            let other = other.clone();
            async move { other.update("templates", "x", &body("x", 3).2, None).await }
        });
        sleep(Duration::from_millis(pause_ms)).await;
        task.abort();
        assert!(task.await.expect_err("it goes on for ever").is_cancelled());
        let ended = timeout(Duration::from_secs(15), waiting).await.expect("it does not wait any longer");
        assert_eq!(ended.expect("a task").expect("an update").version, 2, "what was not committed is not there");
        left.update("templates", "x", &body("x", 4).2, Some(2)).await.expect("the handle is as good as before");
    }
}
