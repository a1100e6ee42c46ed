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
use std::convert::Infallible;
use std::time::Duration;

use larder_model::{ErrorKind, Expectation, Isolation, Retry, filter, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::check::{Checked, Stop, ensure, ensure_eq, refused};
use super::entities::template;
use super::place::Place;
use super::transactions::needs_transactions;
use crate::error::Error;
use crate::query::Select;
use crate::repository::{Repository, Transaction};

use Isolation::{ReadCommitted, RepeatableRead, Serializable};
use Step::{Add, AddChecked, Commit, Find, Outside, Read, ReadLocked, Rollback, Set, SetIfFewer, SetIfNone, SetIfSum};

const LEVELS: [Isolation; 3] = [ReadCommitted, RepeatableRead, Serializable];

/// How long a step is waited for before it is taken to wait for another transaction. One that is only slow makes a
/// schedule another one, and no test fail.
const PATIENCE: Duration = Duration::from_millis(60);

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

/// What is no number reads as one that nothing writes.
fn number(body: &[u8]) -> i64 {
    json::parse_object(body).ok().and_then(|members| members.get("n")?.as_i64()).unwrap_or(i64::MIN)
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
        let known = |id| self.known.get(id).copied().unwrap_or_default();
        let Some(transaction) = self.transaction.as_mut() else { return Ok(()) };
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
                let filter = filter::parse_expression(&format!("n>={least}"))?;
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
                if let Some(transaction) = self.transaction.take() {
                    transaction.commit().await?;
                    self.tale.has_committed = true;
                }
                return Ok(());
            }
            Rollback => {
                return match self.transaction.take() {
                    Some(transaction) => transaction.rollback().await,
                    None => Ok(()),
                };
            }
            Outside(_) => (None, None),
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
) -> Checked<Vec<Tale>> {
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
        let _ = seat.steps.send(*step);
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
        tales.push(task.await.map_err(|fault| Stop::failed(fault.to_string()))?);
    }
    for tale in &tales {
        // What a transaction that met another one may be refused with, and nothing else.
        if let Some(error) = &tale.failed {
            ensure!(may_be_tried_again(error), "a transaction that met another one fails with {error:?}");
        }
    }
    ensure!(tales.iter().any(|tale| tale.has_committed), "nobody gets through: {tales:?}");
    Ok(tales)
}

/// Whether an application would begin the transaction again.
fn may_be_tried_again(error: &Error) -> bool {
    let passes = error.is(ErrorKind::Unavailable) || error.is(ErrorKind::Timeout);
    error.is(ErrorKind::VersionConflict) || passes && error.retry == Retry::Safe
}

/// Leaves these entities in the store and no others.
async fn set_up(repository: &Repository, entities: &[(&str, i64)]) -> Checked {
    for collection in ["requests", "templates"] {
        for entity in repository.query(collection, Select::default()).collect().await? {
            repository.delete(collection, &entity.id, None).await?;
        }
    }
    for (id, number) in entities {
        let (collection, _, body) = body(id, *number);
        repository.save(collection, &body, Expectation::Absent).await?;
    }
    Ok(())
}

async fn stored(repository: &Repository, id: &str) -> Checked<i64> {
    let (collection, id, _) = body(id, 0);
    let found = repository.get(collection, &[id]).await?.remove(0);
    Ok(found.map_or(0, |found| number(&found.body)))
}

/// Three handles, and each level that is asked for with the one that serves it.
async fn stage(place: &Place) -> Checked<(Vec<Repository>, Vec<(Isolation, Isolation)>)> {
    let first = place.open().await?;
    needs_transactions(&first).await?;
    let handles = vec![first.clone(), place.another(&first).await?, place.another(&first).await?];
    let offered = &first.plugin().description.isolations;
    let served = |asked: Isolation| offered.iter().copied().filter(|level| *level >= asked).min();
    let levels = LEVELS.into_iter().filter_map(|asked| Some((asked, served(asked)?))).collect();
    Ok((handles, levels))
}

/// As [`stage`], of levels that are served by this one or a stronger one.
async fn stage_from(place: &Place, least: Isolation) -> Checked<(Vec<Repository>, Vec<(Isolation, Isolation)>)> {
    let (handles, mut levels) = stage(place).await?;
    levels.retain(|(_, served)| *served >= least);
    if levels.is_empty() {
        refused(handles[0].begin(Some(least), false).await, ErrorKind::Unsupported)?;
        return Err(Stop::Undeclared("transactions that are so isolated"));
    }
    Ok((handles, levels))
}

/// Both read, both write what they read and 1: each that commits counts. From repeatable read on by itself, and at read
/// committed where the read takes a lock or the write expects the version.
pub(super) async fn no_update_is_lost(place: Place) -> Checked {
    let (handles, levels) = stage(&place).await?;
    // From which level on, how it reads and how it writes.
    type Way = (Isolation, fn(&'static str) -> Step, fn(&'static str, i64) -> Step);
    let ways: [Way; 3] =
        [(RepeatableRead, Read, Add), (ReadCommitted, ReadLocked, Add), (ReadCommitted, Read, AddChecked)];
    for (asked, served) in levels {
        for (needed, read, add) in ways.iter().filter(|(needed, ..)| served >= *needed) {
            set_up(&handles[0], &[("x", 0)]).await?;
            let schedule =
                [(0, read("x")), (1, read("x")), (0, add("x", 1)), (1, add("x", 1)), (0, Commit), (1, Commit)];
            let tales = interleave(&handles, asked, &[false, false], &schedule).await?;
            let committed = tales.iter().filter(|tale| tale.has_committed).count();
            let found = stored(&handles[0], "x").await?;
            ensure_eq!(found, committed as i64, "{asked:?}, {needed:?}: {tales:?}");
        }
    }
    Ok(())
}

/// At every level: neither what is rolled back later nor what is replaced before the commit is seen by anybody else,
/// inside of a transaction or outside.
pub(super) async fn nothing_is_read_that_was_not_committed(place: Place) -> Checked {
    let (handles, levels) = stage(&place).await?;
    for (asked, _) in levels {
        for reader in [true, false] {
            set_up(&handles[0], &[("x", 0)]).await?;
            let undone = [
                (0, Set("x", 1)),
                (1, Read("x")),
                (2, Outside("x")),
                (0, Rollback),
                (1, Read("x")),
                (1, Commit),
                (2, Outside("x")),
            ];
            let tales = interleave(&handles, asked, &[false, reader, true], &undone).await?;
            ensure_eq!((&tales[1].reads[..], &tales[2].reads[..]), (&[0, 0][..], &[0, 0][..]), "{asked:?}: {tales:?}");

            let replaced = [
                (0, Set("x", 1)),
                (1, Read("x")),
                (2, Outside("x")),
                (0, Set("x", 2)),
                (1, Commit),
                (0, Commit),
                (2, Outside("x")),
            ];
            let tales = interleave(&handles, asked, &[false, reader, true], &replaced).await?;
            ensure!(!tales[1].reads.contains(&1) && !tales[2].reads.contains(&1), "{asked:?}: {tales:?}");
            let after = if tales[0].has_committed { 2 } else { 0 };
            ensure_eq!(tales[2].reads.last(), Some(&after), "{asked:?}: {tales:?}");
        }
    }
    Ok(())
}

/// From repeatable read on.
pub(super) async fn what_was_read_is_read_again(place: Place) -> Checked {
    let (handles, levels) = stage_from(&place, RepeatableRead).await?;
    for (asked, _) in levels {
        for reader in [true, false] {
            set_up(&handles[0], &[("x", 0)]).await?;
            let schedule = [(0, Read("x")), (1, Set("x", 1)), (1, Commit), (0, Read("x")), (0, Commit)];
            let tales = interleave(&handles, asked, &[reader, false], &schedule).await?;
            if tales[0].has_committed {
                ensure_eq!(tales[0].reads[0], tales[0].reads[1], "{asked:?}: {tales:?}");
            }
        }
    }
    Ok(())
}

/// From repeatable read on: two entities that are always written together are never seen apart (read skew), be they in one
/// collection or in two.
pub(super) async fn reads_of_several_entities_are_of_one_moment(place: Place) -> Checked {
    let (handles, levels) = stage_from(&place, RepeatableRead).await?;
    for (asked, _) in levels {
        for (other, reader) in [("y", true), ("y", false), ("requests/r", true), ("requests/r", false)] {
            set_up(&handles[0], &[("x", 1), (other, 1)]).await?;
            let schedule =
                [(0, Read("x")), (1, Set("x", 2)), (1, Set(other, 2)), (1, Commit), (0, Read(other)), (0, Commit)];
            let tales = interleave(&handles, asked, &[reader, false], &schedule).await?;
            if tales[0].has_committed {
                ensure_eq!(tales[0].reads[0], tales[0].reads[1], "{asked:?}, {other}: {tales:?}");
            }
        }
    }
    Ok(())
}

/// Serializable: no entity appears in what was found (phantom), and two that each add one where they found none do not both
/// get through.
pub(super) async fn what_was_found_is_found_again(place: Place) -> Checked {
    let (handles, levels) = stage_from(&place, Serializable).await?;
    for (asked, _) in levels {
        for reader in [true, false] {
            set_up(&handles[0], &[("x", 0), ("y", 10)]).await?;
            let schedule =
                [(0, Find(10)), (1, Set("z", 11)), (1, Set("x", 12)), (1, Commit), (0, Find(10)), (0, Commit)];
            let tales = interleave(&handles, asked, &[reader, false], &schedule).await?;
            if tales[0].has_committed {
                ensure_eq!(tales[0].reads[0], tales[0].reads[1], "{asked:?}: {tales:?}");
            }
        }
        set_up(&handles[0], &[("x", 0)]).await?;
        let schedule =
            [(0, Find(10)), (1, Find(10)), (0, SetIfNone("a", 10)), (1, SetIfNone("b", 10)), (0, Commit), (1, Commit)];
        let tales = interleave(&handles, asked, &[false, false], &schedule).await?;
        let sum = stored(&handles[0], "a").await? + stored(&handles[0], "b").await?;
        // Nor is what one of them added lost.
        let alone = tales.iter().filter(|tale| tale.has_committed && tale.reads == [0]).count();
        ensure_eq!((sum, alone), (10, 1), "{asked:?}: {tales:?}");
    }
    Ok(())
}

/// Serializable: two that read the same and write different entities (write skew). One of two has to stay at work.
pub(super) async fn decisions_do_not_cross(place: Place) -> Checked {
    let (handles, levels) = stage_from(&place, Serializable).await?;
    for (asked, _) in levels {
        set_up(&handles[0], &[("x", 1), ("y", 1)]).await?;
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
        let tales = interleave(&handles, asked, &[false, false], &schedule).await?;
        let sum = stored(&handles[0], "x").await? + stored(&handles[0], "y").await?;
        // Nor is what one of them decided lost.
        let decided = tales.iter().filter(|tale| tale.has_committed && tale.reads == [1, 1]).count();
        ensure_eq!((sum, decided), (1, 1), "{asked:?}: {tales:?}");
    }
    Ok(())
}

/// Serializable: whoever takes money out pays a fee if the accounts held too little, and somebody pays in. A reader who saw
/// the payment and not the withdrawal knows that the payment came first, so there is no fee.
pub(super) async fn a_read_only_transaction_sees_what_some_order_explains(place: Place) -> Checked {
    let (handles, levels) = stage_from(&place, Serializable).await?;
    for (asked, _) in levels {
        set_up(&handles[0], &[("x", 0), ("y", 0)]).await?;
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
        let tales = interleave(&handles, asked, &[false, false, true], &schedule).await?;
        let saw_payment_alone = tales[2].has_committed && tales[2].reads == [0, 20];
        let fee = stored(&handles[0], "x").await? == -11;
        ensure!(!(saw_payment_alone && fee), "{asked:?}: {tales:?}");
    }
    Ok(())
}

/// Whatever is tried, and whether there is something to write over or not.
pub(super) async fn a_read_only_transaction_writes_nothing(place: Place) -> Checked {
    let repository = place.open().await?;
    needs_transactions(&repository).await?;
    // Before anything was written, there may not even be a table.
    for entities in [&[][..], &[("x", 1)][..]] {
        set_up(&repository, entities).await?;
        let found = stored(&repository, "x").await?;
        for way in ["save", "update", "patch", "delete"] {
            let mut transaction = repository.begin(None, true).await?;
            let (collection, id, body) = body("x", 2);
            let written = match way {
                "save" => transaction.save(collection, &body, Expectation::Any).await.map(drop),
                "update" => transaction.update(collection, &id, &body, None).await.map(drop),
                "patch" => transaction.patch(collection, &id, &json::parse_object(br#"{"n": 2}"#)?).await.map(drop),
                _ => transaction.delete(collection, &id, None).await.map(drop),
            };
            // A patch looks first whether there is anything to change.
            let is_absent = entities.is_empty() && way == "patch";
            let kind = if is_absent { ErrorKind::NotFound } else { ErrorKind::InvalidArgument };
            ensure_eq!(refused(written, kind)?.retry, Retry::Never, "the advice about a refused {way}");
            drop(transaction);
            ensure_eq!(stored(&repository, "x").await?, found, "what is stored after a refused {way}");
        }
    }
    Ok(())
}

/// In one transaction, until somebody ends it.
async fn update_for_ever(repository: Repository, begun: oneshot::Sender<()>) -> Checked<Infallible> {
    // Under a stronger isolation it may end, as one that lost a race.
    let mut transaction = repository.begin(Some(Isolation::ReadCommitted), false).await?;
    let _ = begun.send(());
    loop {
        transaction.update("templates", "x", &body("x", 2).2, None).await?;
    }
}

/// A task that is ended takes its transaction along, wherever it stood: whoever waited goes on.
pub(super) async fn a_transaction_that_is_left_holds_nothing(place: Place) -> Checked {
    let left = place.open().await?;
    needs_transactions(&left).await?;
    let other = place.another(&left).await?;
    for pause_ms in [0, 1, 3, 10, 40] {
        set_up(&left, &[("x", 1)]).await?;
        let (begun, has_begun) = oneshot::channel();
        let task = tokio::spawn(update_for_ever(left.clone(), begun));
        if has_begun.await.is_err() {
            return Err(Stop::failed("a transaction does not begin"));
        }
        let waiting = tokio::spawn({
            let other = other.clone();
            async move { other.update("templates", "x", &body("x", 3).2, None).await }
        });
        sleep(Duration::from_millis(pause_ms)).await;
        task.abort();
        if let Ok(ended) = task.await {
            ensure!(false, "a transaction that goes on for ever ended: {ended:?}");
        }
        let Ok(ended) = timeout(Duration::from_secs(15), waiting).await else {
            return Err(Stop::failed("a write waits for a transaction that nobody has any more"));
        };
        let outcome = ended.map_err(|fault| Stop::failed(fault.to_string()))??;
        ensure_eq!(outcome.version, 2, "the version after a transaction that was not committed");
        left.update("templates", "x", &body("x", 4).2, Some(2)).await?;
    }
    Ok(())
}
