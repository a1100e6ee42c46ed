//! Many clients at a few entities, at the same time: whatever they were answered must be what one client after the other
//! could have been answered, each at some moment between its call and its return (linearizability).
//!
//! Each call and each return is recorded in the order in which it happened, and the history of each entity is judged by
//! itself, which is enough: a history is linearizable if that of each object is. The judge (`todc-utils`) is the
//! algorithm of Wing and Gong with Lowe's memory of what was tried already. Its work grows with the length of a history and
//! exponentially with the number of operations under way at once, one of each client. So there are [`CLIENTS`] of
//! them, of whom [`KEYS`] entities each see about a half at once, and a history is [`CALLS`] calls of each
//! client long: the worst that was seen is judged in milliseconds, and a bad one too. Instead of longer histories there
//! are more rounds, each on new entities.
//!
//! Outcomes that are not known are taken for what they are. An error that may be sent again without fear
//! (`retry` is `safe`) had no effect, ever. One that says that the outcome is unknown may have taken effect
//! at any later time or never: its return is recorded at the end of the history, where nobody sees any more which.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder::error::{Error, Kind};
use larder::repository::Repository;
use larder_model::{Entity, ErrorKind, Expectation, Outcome, Retry};
use serde_json::{Map, Value};
use todc_utils::{Action, History, Specification, WGLChecker};

use crate::place::{Choices, Opens, Place, Rounds, on_every_store, template};
use crate::support::object;

/// Clients at once.
const CLIENTS: usize = 6;
/// Entities that they meet at.
const KEYS: u64 = 2;
/// Calls of each client in a round.
const CALLS: usize = 12;

on_every_store! {
    tasks_on_one_handle_see_a_linear_history,
    tasks_on_handles_of_their_own_see_a_linear_history,
    programs_and_tasks_see_a_linear_history,
    a_patch_is_of_the_entity_that_it_read_and_of_no_other_one_of_that_name,
}

/// What a client asks of one entity. A tag is unique in a round, so that each body tells who wrote it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    Get,
    /// Replaces or creates.
    Save {
        tag: u64,
    },
    /// Creates.
    SaveAbsent {
        tag: u64,
    },
    /// Replaces.
    Update {
        tag: u64,
        version: Option<u64>,
    },
    /// Sets the mark, and leaves the tag.
    Patch {
        mark: u64,
        version: Option<u64>,
    },
    Delete {
        version: Option<u64>,
    },
}

/// What it is answered.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Found(Option<Versioned>),
    /// The version, and whether there was something before, where that is said.
    Done(u64, Option<bool>),
    NotFound,
    AlreadyExists,
    /// The stored version.
    Conflict(u64),
    /// It did not take effect, and never will.
    NoEffect,
    /// It may take effect at any later time, or never.
    Unknown,
}

/// What is stored, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Versioned {
    version: u64,
    tag: u64,
    mark: Option<u64>,
}

/// One entity, used by one client after the other.
struct OneEntity;

impl Specification for OneEntity {
    type State = Option<Versioned>;
    type Operation = (Call, Answer);

    fn init() -> Option<Versioned> {
        None
    }

    fn apply((call, answer): &(Call, Answer), state: &Option<Versioned>) -> (bool, Option<Versioned>) {
        let (expected, next) = OneEntity::answer(*call, *state);
        match (answer, expected) {
            (Answer::NoEffect, _) => (true, *state),
            // Whatever it would have been answered. That it may never take effect needs no case: its return
            // stands after all others, so it may also take effect there.
            (Answer::Unknown, _) => (true, next),
            // Not every client is told whether there was something before.
            (Answer::Done(version, None), Answer::Done(expected, _)) if *version == expected => (true, next),
            (answer, expected) if *answer == expected => (true, next),
            _ => (false, *state),
        }
    }
}

impl OneEntity {
    /// The contract.
    fn answer(call: Call, state: Option<Versioned>) -> (Answer, Option<Versioned>) {
        // A version that was expected is looked for first.
        let version = match call {
            Call::Update { version, .. } | Call::Patch { version, .. } | Call::Delete { version } => version,
            _ => None,
        };
        if let Some(version) = version {
            match state {
                None => return (Answer::NotFound, state),
                Some(stored) if stored.version != version => return (Answer::Conflict(stored.version), state),
                Some(_) => {}
            }
        }
        let written = |tag| {
            let version = state.map_or(0, |stored| stored.version) + 1;
            (Answer::Done(version, Some(state.is_some())), Some(Versioned { version, tag, mark: None }))
        };
        match (call, state) {
            (Call::Get, _) => (Answer::Found(state), state),
            (Call::Save { tag }, _) | (Call::SaveAbsent { tag }, None) => written(tag),
            (Call::SaveAbsent { .. }, Some(_)) => (Answer::AlreadyExists, state),
            (Call::Update { .. } | Call::Patch { .. }, None) => (Answer::NotFound, state),
            (Call::Update { tag, .. }, Some(_)) => written(tag),
            (Call::Patch { mark, .. }, Some(stored)) => {
                let version = stored.version + 1;
                (Answer::Done(version, Some(true)), Some(Versioned { version, mark: Some(mark), ..stored }))
            }
            (Call::Delete { .. }, _) => {
                (Answer::Done(state.map_or(0, |stored| stored.version), Some(state.is_some())), None)
            }
        }
    }
}

type Event = (usize, Action<(Call, Answer)>);

/// What happened to each entity, in the order in which it happened.
#[derive(Default)]
struct Record(Mutex<Events>);

#[derive(Default)]
struct Events {
    by_key: BTreeMap<u64, Vec<Event>>,
    /// Calls so far: each is a process of its own to the judge, since a client may go on while an outcome is unknown.
    calls: usize,
}

impl Record {
    fn call(&self, key: u64, call: Call) -> usize {
        let mut events = self.0.lock().unwrap();
        events.calls += 1;
        let id = events.calls;
        // The answer is not known yet; the judge looks at that of the return.
        events.by_key.entry(key).or_default().push((id, Action::Call((call, Answer::Unknown))));
        id
    }

    fn returned(&self, key: u64, id: usize, call: Call, answer: Answer) {
        let mut events = self.0.lock().unwrap();
        events.by_key.get_mut(&key).expect("it was called").push((id, Action::Response((call, answer))));
    }

    /// The histories, each with the returns of unknown outcomes at its end.
    fn into_histories(self) -> Vec<Vec<Event>> {
        let by_key = self.0.into_inner().unwrap().by_key;
        by_key
            .into_values()
            .map(|events| {
                let is_open = |event: &Event| matches!(event.1, Action::Response((_, Answer::Unknown)));
                let (open, mut settled): (Vec<_>, Vec<_>) = events.into_iter().partition(is_open);
                settled.extend(open);
                settled
            })
            .collect()
    }
}

fn is_linearizable(history: &[Event]) -> bool {
    history.is_empty() || WGLChecker::<OneEntity>::is_linearizable(History::from_actions(history.to_vec()))
}

/// The history with a line an event.
fn shown(history: &[Event]) -> String {
    let line = |(id, action): &Event| match action {
        Action::Call((call, _)) => format!("{id:>4} calls   {call:?}\n"),
        Action::Response((_, answer)) => format!("{id:>4} returns {answer:?}\n"),
    };
    history.iter().map(line).collect()
}

/// What was judged so far.
#[derive(Default)]
struct Verdicts {
    calls: u64,
    /// Calls that were under way beside another one on the same entity.
    crowded: u64,
    without_answer: u64,
    rounds: u64,
    slowest_ms: u128,
}

impl Verdicts {
    #[track_caller]
    fn judge(&mut self, record: Record) {
        self.rounds += 1;
        for history in record.into_histories() {
            let started = Instant::now();
            assert!(is_linearizable(&history), "no order of these calls explains their answers:\n{}", shown(&history));
            self.slowest_ms = self.slowest_ms.max(started.elapsed().as_millis());
            let (mut open, mut crowded) = (BTreeSet::<usize>::new(), BTreeSet::<usize>::new());
            for (id, action) in history {
                match action {
                    Action::Call(_) => {
                        self.calls += 1;
                        open.insert(id);
                        if open.len() > 1 {
                            crowded.extend(&open);
                        }
                    }
                    Action::Response((_, answer)) => {
                        open.remove(&id);
                        self.without_answer += u64::from(matches!(answer, Answer::NoEffect | Answer::Unknown));
                    }
                }
            }
            self.crowded += crowded.len() as u64;
        }
    }

    fn finish(self, what: &str) {
        let Verdicts { calls, crowded, without_answer, rounds, slowest_ms } = self;
        println!(
            "{what}: {calls} operations checked in {rounds} rounds, {crowded} of them beside another one on the same \
             entity, {without_answer} without an answer; the slowest history took {slowest_ms} ms to judge"
        );
        assert!(crowded * 4 >= calls, "{crowded} of {calls} calls met another one: this tells little");
        // Without faults there is nothing to go wrong but time on a machine that is busy otherwise.
        assert!(without_answer * 20 <= calls, "{without_answer} of {calls} calls were not answered");
    }
}

/// Somebody who can be asked, one call after the other.
#[derive(Clone)]
enum Client {
    Handle(Repository),
    /// Each call is a run of the program.
    Program(Place),
}

impl Client {
    async fn ask(&self, id: &str, call: Call) -> Answer {
        match self {
            Client::Handle(repository) => ask_handle(repository, id, call).await,
            Client::Program(place) => {
                let (place, id) = (place.clone(), id.to_owned());
                tokio::task::spawn_blocking(move || ask_program(&place, &id, call)).await.expect("a run of the program")
            }
        }
    }
}

fn tagged(id: &str, tag: u64) -> Vec<u8> {
    template(id, &format!(r#","tag":{tag}"#))
}

fn marked(mark: u64) -> Map<String, Value> {
    object(format!(r#"{{"mark":{mark}}}"#))
}

fn versioned(body: &[u8]) -> Versioned {
    let fields = object(body);
    let number = |name: &str| fields.get(name).and_then(Value::as_u64);
    let (version, tag) = (number("version").expect("a version"), number("tag").expect("a tag"));
    Versioned { version, tag, mark: number("mark") }
}

async fn ask_handle(repository: &Repository, id: &str, call: Call) -> Answer {
    let done = |result: Result<Outcome, Error>| match result {
        Ok(outcome) => Answer::Done(outcome.version, Some(outcome.existed)),
        Err(error) => error_answer(error.kind.name(), error.retry.name(), error.current_version, &error),
    };
    let save = async |tag, expect| done(repository.save("templates", &tagged(id, tag), expect).await.map(|(_, it)| it));
    match call {
        Call::Get => match repository.get("templates", &[id.to_owned()]).await {
            Ok(mut found) => Answer::Found(found.remove(0).map(|entity: Entity| {
                let found = versioned(&entity.body);
                assert_eq!(entity.version, found.version);
                found
            })),
            Err(error) => done(Err(error)),
        },
        Call::Save { tag } => save(tag, Expectation::Any).await,
        Call::SaveAbsent { tag } => save(tag, Expectation::Absent).await,
        Call::Update { tag, version } => done(repository.update("templates", id, &tagged(id, tag), version).await),
        Call::Patch { mark, version } => done(repository.patch("templates", id, &marked(mark), version, None).await),
        Call::Delete { version } => done(repository.delete("templates", id, version).await),
    }
}

#[track_caller]
fn error_answer(kind: &str, retry: &str, stored: Option<u64>, error: &dyn Debug) -> Answer {
    let is = |it: ErrorKind| kind == Kind::Contract(it).name();
    match stored {
        _ if retry == Retry::UnknownOutcome.name() => Answer::Unknown,
        Some(stored) if is(ErrorKind::VersionConflict) => Answer::Conflict(stored),
        _ if is(ErrorKind::NotFound) => Answer::NotFound,
        _ if is(ErrorKind::AlreadyExists) => Answer::AlreadyExists,
        _ if retry == Retry::Safe.name() => Answer::NoEffect,
        _ => panic!("{error:?}"),
    }
}

fn ask_program(place: &Place, id: &str, call: Call) -> Answer {
    let mut input = Vec::new();
    let mut arguments = vec!["--format".to_owned(), "json".to_owned()];
    let mut command = |words: &[&str], expected: Option<u64>| {
        arguments.extend(words.iter().map(|word| word.to_string()));
        arguments.extend(expected.iter().flat_map(|version| ["--expected-version".into(), version.to_string()]));
    };
    match call {
        Call::Get => command(&["get", "templates", id], None),
        Call::Save { tag } => {
            input = tagged(id, tag);
            command(&["save", "templates"], None);
        }
        Call::SaveAbsent { tag } => {
            input = tagged(id, tag);
            command(&["save", "templates", "--expect", "absent"], None);
        }
        Call::Update { tag, version } => {
            input = tagged(id, tag);
            command(&["update", "templates", id], version);
        }
        Call::Patch { mark, version } => {
            input = Value::Object(marked(mark)).to_string().into_bytes();
            command(&["patch", "templates", id], version);
        }
        Call::Delete { version } => command(&["delete", "templates", id], version),
    }
    arguments.extend(["--store".into(), place.store.into()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let run = place.folder.larder_with(&arguments, str::from_utf8(&input).expect("UTF-8"));
    if run.code == 0 {
        let answer = object(&run.stdout);
        return match call {
            Call::Get => Answer::Found(Some(versioned(run.stdout.as_bytes()))),
            _ => Answer::Done(
                answer["version"].as_u64().expect("a version"),
                answer.get("existed").and_then(Value::as_bool),
            ),
        };
    }
    let error = object(&run.stderr);
    let text = |name: &str| error[name].as_str().expect("a text");
    let stored = error.get("current_version").and_then(Value::as_u64);
    match error_answer(text("kind"), text("retry"), stored, &run) {
        Answer::NotFound if call == Call::Get => Answer::Found(None),
        answer => answer,
    }
}

/// What a client asks next. It expects mostly what it saw last, and else a version that is likely to be there.
fn choose(choices: &mut Choices, tag: u64, seen: Option<u64>) -> Call {
    let version = match choices.below(4) {
        0 => 1 + choices.below(3),
        _ => seen.unwrap_or(1),
    };
    match choices.below(16) {
        0..=4 => Call::Get,
        5 => Call::Save { tag },
        6 | 7 => Call::SaveAbsent { tag },
        8 => Call::Update { tag, version: None },
        9 | 10 => Call::Update { tag, version: Some(version) },
        11 | 12 => Call::Patch { mark: tag, version: None },
        13 => Call::Patch { mark: tag, version: Some(version) },
        14 => Call::Delete { version: None },
        _ => Call::Delete { version: Some(version) },
    }
}

/// A client's part in each round.
#[derive(Clone)]
struct Part {
    client: Client,
    calls: usize,
    /// Before each call it waits up to so long.
    pause_ms_max: u64,
}

/// All clients at once on entities that are not there yet.
async fn round(parts: &[Part], round: u64, choices: &mut Choices) -> Record {
    let record = Arc::new(Record::default());
    let mut tasks = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let Part { client, calls, pause_ms_max } = part.clone();
        let (record, mut choices) = (record.clone(), choices.split());
        tasks.push(tokio::spawn(async move {
            let mut seen = BTreeMap::new();
            for n in 0..calls {
                tokio::time::sleep(Duration::from_millis(choices.below(pause_ms_max + 1))).await;
                let key = choices.below(KEYS);
                let call = choose(&mut choices, (number * CALLS + n) as u64, seen.get(&key).copied());
                let id = record.call(key, call);
                let answer = client.ask(&format!("{round}-{key}"), call).await;
                record.returned(key, id, call, answer);
                if let Answer::Found(Some(Versioned { version, .. }))
                | Answer::Done(version, _)
                | Answer::Conflict(version) = answer
                {
                    seen.insert(key, version);
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("a client");
    }
    Arc::into_inner(record).expect("the clients are gone")
}

async fn tasks_on_one_handle_see_a_linear_history(place: &impl Opens) {
    let (mut choices, mut rounds, mut verdicts) = (Choices::new(), Rounds::new(12), Verdicts::default());
    let repository = place.open().await;
    let part = Part { client: Client::Handle(repository.clone()), calls: CALLS, pause_ms_max: 0 };
    let parts = vec![part; CLIENTS];
    while let Some(number) = rounds.next() {
        verdicts.judge(round(&parts, number, &mut choices).await);
    }
    verdicts.finish(&format!("tasks on one handle of {}", repository.name()));
}

async fn tasks_on_handles_of_their_own_see_a_linear_history(place: &impl Opens) {
    let (mut choices, mut rounds, mut verdicts) = (Choices::new(), Rounds::new(8), Verdicts::default());
    let mut parts = Vec::new();
    // The first round finds no document and no table: they come to be under the clients' hands.
    for _ in 0..CLIENTS {
        parts.push(Part { client: Client::Handle(place.open().await), calls: CALLS, pause_ms_max: 0 });
    }
    while let Some(number) = rounds.next() {
        verdicts.judge(round(&parts, number, &mut choices).await);
    }
    verdicts.finish("tasks on handles of their own");
}

/// A run of the program takes longer than a call, so that programs make fewer, and tasks take their time.
async fn programs_and_tasks_see_a_linear_history(place: &Place) {
    let (mut choices, mut rounds, mut verdicts) = (Choices::new(), Rounds::new(2), Verdicts::default());
    let mut parts = vec![Part { client: Client::Program(place.clone()), calls: CALLS / 2, pause_ms_max: 0 }; 3];
    for _ in 3..CLIENTS {
        parts.push(Part { client: Client::Handle(place.open().await), calls: CALLS, pause_ms_max: 150 });
    }
    while let Some(number) = rounds.next() {
        verdicts.judge(round(&parts, number, &mut choices).await);
    }
    verdicts.finish(&format!("programs and tasks at {}", place.store));
}

/// Versions alone do not tell an entity from one that was saved under its name after it was deleted: both begin at 1.
async fn a_patch_is_of_the_entity_that_it_read_and_of_no_other_one_of_that_name(place: &impl Opens) {
    let (patching, replacing) = (place.open().await, place.open().await);
    let mut rounds = Rounds::new(20);
    while let Some(round) = rounds.next() {
        let id = format!("again-{round}");
        replacing.save("templates", &tagged(&id, 0), Expectation::Absent).await.expect("a new entity");
        let patches = tokio::spawn({
            let (patching, id) = (patching.clone(), id.clone());
            async move {
                for mark in 0..10 {
                    match patching.patch("templates", &id, &marked(mark), None, None).await {
                        Ok(_) => {}
                        Err(error) => assert!(error.is(ErrorKind::NotFound), "{error:?}"),
                    }
                }
            }
        });
        for tag in 1..10 {
            replacing.delete("templates", &id, None).await.expect("a delete");
            replacing.save("templates", &tagged(&id, tag), Expectation::Absent).await.expect("a new entity");
            let found = replacing.get("templates", std::slice::from_ref(&id)).await.expect("an answer").remove(0);
            assert_eq!(versioned(&found.expect("it was saved").body).tag, tag, "a patch brought the deleted one back");
        }
        patches.await.expect("patches");
    }
}

/// The judge itself: what it lets pass, and what it catches. Each line is a call and when it returned: a client that
/// is no longer waiting calls on.
#[test]
fn the_judge_tells_good_histories_from_bad_ones() {
    use Answer::{AlreadyExists, Conflict, Done, Found, NoEffect, NotFound, Unknown};
    let (save, create) = (Call::Save { tag: 1 }, Call::SaveAbsent { tag: 2 });
    let update = |tag, version| Call::Update { tag, version: Some(version) };
    let patch = Call::Patch { mark: 9, version: None };
    let delete = Call::Delete { version: None };
    let is = |version, tag| Found(Some(Versioned { version, tag, mark: None }));
    // Calls with the time of the call and of the return.
    let judged = |calls: &[(u32, u32, Call, Answer)]| {
        let record = Record::default();
        let mut events: Vec<(u32, usize, bool)> = Vec::new();
        for (n, (from, to, ..)) in calls.iter().enumerate() {
            events.extend([(*from, n, true), (*to, n, false)]);
        }
        events.sort();
        let mut ids = BTreeMap::new();
        for (_, n, is_call) in events {
            let (.., call, answer) = calls[n];
            match is_call {
                true => drop(ids.insert(n, record.call(0, call))),
                false => record.returned(0, ids[&n], call, answer),
            }
        }
        record.into_histories().iter().all(|history| is_linearizable(history))
    };
    let saved = (0, 1, save, Done(1, Some(false)));

    // One after the other.
    assert!(judged(&[saved, (2, 3, update(3, 1), Done(2, None)), (4, 5, Call::Get, is(2, 3))]));
    assert!(judged(&[saved, (2, 3, create, AlreadyExists), (4, 5, update(3, 7), Conflict(1))]));
    assert!(judged(&[(0, 1, delete, Done(0, Some(false))), (2, 3, patch, NotFound), (4, 5, create, Done(1, None))]));
    // A read beside a write may see either.
    assert!(judged(&[saved, (2, 5, update(3, 1), Done(2, None)), (3, 4, Call::Get, is(1, 1))]));
    assert!(judged(&[saved, (2, 5, update(3, 1), Done(2, None)), (3, 4, Call::Get, is(2, 3))]));
    // A stale read.
    assert!(!judged(&[saved, (2, 3, update(3, 1), Done(2, None)), (4, 5, Call::Get, is(1, 1))]));
    // One read sees a write that is under way, and the next one does not.
    let under_way = (2, 9, update(3, 1), Done(2, None));
    assert!(!judged(&[saved, under_way, (3, 4, Call::Get, is(2, 3)), (5, 6, Call::Get, is(1, 1))]));
    // A lost update: both were made over the same version.
    assert!(!judged(&[saved, (2, 4, update(3, 1), Done(2, None)), (3, 5, update(4, 1), Done(2, None))]));
    assert!(!judged(&[(0, 2, create, Done(1, None)), (1, 3, Call::SaveAbsent { tag: 3 }, Done(1, None))]));
    // A write that was answered and is gone, and one that was refused and is there.
    assert!(!judged(&[saved, (2, 3, Call::Get, Found(None))]));
    assert!(!judged(&[saved, (2, 3, create, AlreadyExists), (4, 5, Call::Get, is(1, 2))]));
    // A patch that took the rest from a state that was replaced already.
    let patched = Found(Some(Versioned { version: 2, tag: 1, mark: Some(9) }));
    let again = [saved, (2, 3, delete, Done(1, Some(true))), (4, 5, create, Done(1, Some(false)))];
    assert!(!judged(&[again[0], again[1], again[2], (2, 7, patch, Done(2, None)), (8, 9, Call::Get, patched)]));
    // What is not known may be there, later or never, but not both; what had no effect is not there.
    let unknown = (2, 3, update(3, 1), Unknown);
    assert!(judged(&[saved, unknown, (4, 5, Call::Get, is(1, 1))]));
    assert!(judged(&[saved, unknown, (4, 5, Call::Get, is(1, 1)), (6, 7, Call::Get, is(2, 3))]));
    assert!(!judged(&[saved, unknown, (4, 5, Call::Get, is(2, 3)), (6, 7, Call::Get, is(1, 1))]));
    assert!(!judged(&[saved, (2, 3, update(3, 1), NoEffect), (4, 5, Call::Get, is(2, 3))]));
}

/// In a history as long and as crowded as those of the tests, one answer that is wrong is found, and in time.
#[test]
fn one_wrong_answer_in_a_crowded_history_is_found() {
    let mut choices = Choices::new();
    let mut slowest_ms = 0;
    for _ in 0..200 {
        let history = simulated(&mut choices);
        assert!(is_linearizable(&history), "{}", shown(&history));
        // The answer to a get becomes that of an entity that nobody ever wrote.
        let mut wrong = history.clone();
        let got = |event: &&mut Event| matches!(event.1, Action::Response((Call::Get, _)));
        let Some(last) = wrong.iter_mut().rfind(got) else { continue };
        last.1 =
            Action::Response((Call::Get, Answer::Found(Some(Versioned { version: 1, tag: u64::MAX, mark: None }))));
        let started = Instant::now();
        assert!(!is_linearizable(&wrong), "{}", shown(&wrong));
        slowest_ms = slowest_ms.max(started.elapsed().as_millis());
    }
    println!("the slowest bad history took {slowest_ms} ms to judge");
}

/// A history of one entity that is right by construction, with every client under way all the time: a call takes effect
/// at some moment between its call and its return.
fn simulated(choices: &mut Choices) -> Vec<Event> {
    enum Stage {
        Idle,
        Called(usize, Call),
        Answered(usize, Call, Answer),
    }
    let (record, mut state) = (Record::default(), None);
    let mut clients: Vec<(usize, Stage)> = (0..CLIENTS).map(|_| (CALLS, Stage::Idle)).collect();
    let mut tag = 0;
    while clients.iter().any(|(left, stage)| *left > 0 || !matches!(stage, Stage::Idle)) {
        let (left, stage) = &mut clients[choices.below(CLIENTS as u64) as usize];
        *stage = match *stage {
            Stage::Idle if *left == 0 => Stage::Idle,
            Stage::Idle => {
                *left -= 1;
                tag += 1;
                let call = choose(choices, tag, state.map(|stored: Versioned| stored.version));
                Stage::Called(record.call(0, call), call)
            }
            Stage::Called(id, call) => {
                let (answer, next) = OneEntity::answer(call, state);
                state = next;
                Stage::Answered(id, call, answer)
            }
            Stage::Answered(id, call, answer) => {
                record.returned(0, id, call, answer);
                Stage::Idle
            }
        };
    }
    record.into_histories().remove(0)
}
