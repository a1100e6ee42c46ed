//! What a client does while something goes wrong, and what must be stored after it: a script of operations, each with a
//! model of what it does to the store.
//!
//! An operation is made of parts, each of which happens as a whole or not at all: an atomic `apply` is one part, one that
//! is not atomic has a part for each write. So the answers say of each part whether it has happened, has not, or may have.

use std::collections::BTreeMap;

use larder_model::{
    Collection, Entity, ErrorKind, Existing, Expectation, Features, Put, Removal, Retry, Write, entity,
};
use serde_json::{Map, Value, json};

use crate::conformance::check::{Checked, Stop, ensure, ensure_eq, members, shown};
use crate::conformance::entities::{loadable, template};
use crate::error::{Error, Result};
use crate::query::Select;
use crate::repository::Repository;

/// The time of the writes that the model makes: times are not compared.
const NO_TIME: &str = "";

/// A collection and an id.
pub(super) type Key = (String, String);

/// What is stored, without the times that were stamped.
pub(super) type State = BTreeMap<Key, Map<String, Value>>;

/// One operation of the script.
pub(super) struct Step {
    /// What it is, for a report.
    pub(super) name: &'static str,
    act: Act,
}

enum Act {
    Prepare,
    /// Reads in every way.
    Look,
    /// One call of `apply` that is not atomic.
    Apply(&'static [Change]),
    Atomic(&'static [Change]),
    /// A bulk load of templates, and the flush that makes it durable.
    Load(&'static [&'static str]),
    Transaction {
        changes: &'static [Change],
        commits: bool,
    },
    Close,
}

/// A change of one entity. The id is followed by how.
type Change = (&'static str, &'static str, How);

#[derive(Clone, Copy)]
enum How {
    Save,
    /// Expects nothing to be stored.
    Create,
    /// Expects the version that is stored.
    Update,
    /// Expects another version.
    Stale,
    Remove,
}
use How::{Create, Remove, Save, Stale, Update};

const TEMPLATES: &str = "templates";
const THINGS: &str = "things";

/// From a store that is not there to one that is closed and used again.
pub(super) const SCRIPT: &[Step] = &[
    Step { name: "prepare", act: Act::Prepare },
    Step { name: "save", act: Act::Apply(&[(TEMPLATES, "a", Save)]) },
    Step { name: "create", act: Act::Apply(&[(TEMPLATES, "b", Create)]) },
    Step { name: "read", act: Act::Look },
    Step { name: "update of the stored version", act: Act::Apply(&[(TEMPLATES, "a", Update)]) },
    Step { name: "update of another version", act: Act::Apply(&[(TEMPLATES, "a", Stale)]) },
    Step {
        name: "apply",
        act: Act::Apply(&[
            (TEMPLATES, "c", Save),
            (TEMPLATES, "a", Create),
            (TEMPLATES, "b", Remove),
            (THINGS, "t", Save),
        ]),
    },
    Step {
        name: "atomic apply",
        act: Act::Atomic(&[
            (TEMPLATES, "d", Save),
            (THINGS, "t", Update),
            (THINGS, "u", Create),
            (TEMPLATES, "a", Save),
        ]),
    },
    Step {
        name: "atomic apply that is refused",
        act: Act::Atomic(&[(THINGS, "v", Save), (TEMPLATES, "d", Remove), (TEMPLATES, "a", Stale)]),
    },
    Step { name: "load", act: Act::Load(&["l", "m", "n", "o"]) },
    Step {
        name: "transaction",
        act: Act::Transaction {
            changes: &[(TEMPLATES, "e", Create), (THINGS, "t", Update), (TEMPLATES, "c", Remove)],
            commits: true,
        },
    },
    Step {
        name: "transaction that is rolled back",
        act: Act::Transaction { changes: &[(TEMPLATES, "f", Save), (THINGS, "u", Remove)], commits: false },
    },
    Step { name: "delete", act: Act::Apply(&[(TEMPLATES, "d", Remove)]) },
    Step { name: "close", act: Act::Close },
    Step { name: "save after it was closed", act: Act::Apply(&[(TEMPLATES, "a", Save)]) },
    Step { name: "read of everything", act: Act::Look },
];

/// What happens as one.
pub(super) struct Part {
    /// What its entities become; none for one that goes. Empty where nothing changes.
    pub(super) changes: Vec<(Key, Option<Map<String, Value>>)>,
    /// Why it is refused, where it is.
    refusal: Option<ErrorKind>,
}

impl Part {
    pub(super) fn apply(&self, state: &mut State) {
        for (key, after) in &self.changes {
            match after {
                Some(after) => state.insert(key.clone(), after.clone()),
                None => state.remove(key),
            };
        }
    }
}

/// What was said of a part.
#[derive(Debug)]
pub(super) enum Answer {
    /// It has happened, and stays.
    Done,
    /// It has not happened.
    Refused(Error),
    /// It has happened or has not.
    Unknown(Option<Error>),
}

impl From<Result<()>> for Answer {
    fn from(result: Result<()>) -> Answer {
        match result {
            Ok(()) => Answer::Done,
            Err(error) if error.retry == Retry::UnknownOutcome => Answer::Unknown(Some(error)),
            Err(error) => Answer::Refused(error),
        }
    }
}

impl Answer {
    /// The answer of a client that was killed before there was one.
    pub(super) fn never_came(part: &Part, is_at_its_end: bool) -> Answer {
        match is_at_its_end && part.refusal.is_none() {
            true => Answer::Unknown(None),
            false => Answer::Refused(Error::contract(ErrorKind::Unavailable, "the client was killed")),
        }
    }

    /// Where nothing went wrong, it is what the model says.
    pub(super) fn check_as_expected(&self, part: &Part) -> Checked {
        match (self, part.refusal) {
            (Answer::Done, None) => Ok(()),
            (Answer::Refused(error), Some(kind)) if error.is(kind) => Ok(()),
            (answer, Some(kind)) => Err(Stop::failed(format!("expected {}, found {}", kind.name(), shown(answer)))),
            (answer, None) => Err(Stop::failed(format!("expected that it is done, found {}", shown(answer)))),
        }
    }

    /// Where something went wrong, an error says that, and nothing that is not so.
    pub(super) fn check_honest(&self, part: &Part) -> Checked {
        let error = match self {
            Answer::Done if part.refusal.is_some() => {
                return Err(Stop::failed("what had to be refused was acknowledged"));
            }
            Answer::Done | Answer::Unknown(None) => return Ok(()),
            Answer::Refused(error) | Answer::Unknown(Some(error)) => error,
        };
        let is_refusal = part.refusal.is_some_and(|kind| error.is(kind));
        let kinds = [ErrorKind::Unavailable, ErrorKind::Throttled, ErrorKind::Timeout];
        let is_fault = kinds.into_iter().any(|kind| error.is(kind));
        // A race that was lost, and can be tried again, says nothing that is not so.
        let is_race = error.is(ErrorKind::VersionConflict) && error.retry == Retry::Safe;
        ensure!(
            is_refusal || is_fault || is_race,
            "the error of the host's became one of another kind: {}: {}",
            error.kind.name(),
            error.message
        );
        Ok(())
    }
}

impl Step {
    /// Whether the plugin declares what this is.
    pub(super) fn is_declared(&self, features: Features) -> bool {
        match self.act {
            Act::Atomic(_) => features.atomic_apply,
            Act::Transaction { .. } => features.transactions,
            _ => true,
        }
    }

    /// Whether what it does takes effect at its end alone.
    pub(super) fn takes_effect_at_its_end(&self) -> bool {
        matches!(self.act, Act::Transaction { .. })
    }

    /// Its parts where `state` is stored. Each `round` writes other values.
    pub(super) fn parts(&self, round: u32, state: &State, collections: &[Collection]) -> Checked<Vec<Part>> {
        let none = || Part { changes: Vec::new(), refusal: None };
        Ok(match self.act {
            Act::Prepare | Act::Look | Act::Close => vec![none()],
            Act::Apply(changes) => {
                changes.iter().map(|change| part(&[*change], round, state, collections)).collect::<Checked<_>>()?
            }
            Act::Atomic(changes) | Act::Transaction { changes, commits: true } => {
                vec![part(changes, round, state, collections)?]
            }
            Act::Transaction { commits: false, .. } => vec![none()],
            Act::Load(ids) => {
                let one = |id: &&str| -> Checked<Part> {
                    let body = members(loaded(id, round).body)?;
                    let key = (TEMPLATES.to_owned(), (*id).to_owned());
                    Ok(Part { changes: vec![(key, body.as_object().cloned())], refusal: None })
                };
                ids.iter().map(one).collect::<Checked<_>>()?
            }
        })
    }

    /// Does it, and gives an answer for each of its parts. `on_end` is called before what makes a transaction happen.
    pub(super) async fn perform(
        &self,
        repository: &Repository,
        round: u32,
        state: &State,
        on_end: impl FnOnce(),
    ) -> Checked<Vec<Answer>> {
        Ok(match self.act {
            Act::Prepare => vec![repository.prepare(false, false).await.map(drop).into()],
            Act::Look => match content(repository).await {
                Ok(found) => {
                    check_content(&found, state)?;
                    vec![Answer::Done]
                }
                Err(Looked::Failed(error)) => vec![Answer::Refused(error)],
                Err(Looked::Wrong(stop)) => return Err(stop),
            },
            Act::Close => vec![repository.close().await.into()],
            Act::Apply(changes) => {
                let results = repository.apply(writes(changes, round, state), false).await;
                match results {
                    Ok(results) => {
                        results.into_iter().map(|it| it.map(drop).map_err(|it| repository.advised(it)).into()).collect()
                    }
                    Err(error) => changes.iter().map(|_| Err(error.clone()).into()).collect(),
                }
            }
            Act::Atomic(changes) => {
                vec![repository.apply(writes(changes, round, state), true).await.map(drop).into()]
            }
            Act::Load(ids) => load(repository, ids, round).await,
            Act::Transaction { changes, commits } => {
                vec![transact(repository, changes, commits, round, state, on_end).await?]
            }
        })
    }
}

/// Changes as one part.
fn part(changes: &[Change], round: u32, state: &State, collections: &[Collection]) -> Checked<Part> {
    let mut after = Vec::new();
    for (write, (collection, id, _)) in writes(changes, round, state).iter().zip(changes) {
        let key = ((*collection).to_owned(), (*id).to_owned());
        let definition = collections.iter().find(|definition| definition.name == *collection);
        let definition = definition.ok_or_else(|| Stop::failed(format!("{collection} is not configured")))?;
        let stored = state.get(&key);
        let version = stored.map(|stored| entity::version_of(definition, stored));
        if let Err(error) = entity::check_expectation(write.expect(), version, collection, id) {
            return Ok(Part { changes: Vec::new(), refusal: Some(error.kind) });
        }
        let stamped = match write {
            Write::Put(put) => {
                let given = larder_model::json::parse_object(&put.body)?;
                let mut stamped = entity::stamp(definition, stored, given, NO_TIME);
                forget_times(definition, &mut stamped);
                Some(stamped)
            }
            Write::Remove(_) => None,
        };
        after.push((key, stamped));
    }
    Ok(Part { changes: after, refusal: None })
}

fn forget_times(collection: &Collection, members: &mut Map<String, Value>) {
    for name in [&collection.stamps.created, &collection.stamps.updated].into_iter().flatten() {
        members.shift_remove(name);
    }
}

fn writes(changes: &[Change], round: u32, state: &State) -> Vec<Write> {
    changes.iter().map(|change| write(*change, round, state)).collect()
}

fn write((collection, id, how): Change, round: u32, state: &State) -> Write {
    let stored = state.get(&(collection.to_owned(), id.to_owned()));
    let version_member = if collection == THINGS { "revision" } else { "version" };
    let version = stored.and_then(|stored| stored.get(version_member)?.as_u64()).unwrap_or(0);
    let expect = match how {
        Save => Expectation::Any,
        Create => Expectation::Absent,
        Update => Expectation::Version(version),
        Stale => Expectation::Version(version + 7),
        Remove => {
            let (collection, id) = (collection.to_owned(), id.to_owned());
            return Write::Remove(Removal { collection, id, expect: Expectation::Any });
        }
    };
    let body = if collection == THINGS {
        json!({"id": id, "label": "a thing", "size": round, "parts": [{"weight": 0.5}, null]}).to_string().into_bytes()
    } else {
        template(id, &format!(r#","round":{round},"note":"größer","nested":{{"a":[1.0,null]}}"#))
    };
    Write::Put(Put { collection: collection.to_owned(), id: id.to_owned(), body, expect })
}

fn loaded(id: &str, round: u32) -> Entity {
    loadable(id, &format!(r#","version":7,"round":{round}"#))
}

/// What was loaded is durable after the flush, and where that fails, perhaps.
async fn load(repository: &Repository, ids: &[&str], round: u32) -> Vec<Answer> {
    let entities: Vec<Entity> = ids.iter().map(|id| loaded(id, round)).collect();
    let loaded = match repository.load(TEMPLATES, entities, Existing::Overwrite).await {
        Ok(loaded) => loaded,
        Err(error) => return ids.iter().map(|_| Err(error.clone()).into()).collect(),
    };
    let flushed = repository.flush().await;
    let answer = |position: usize| {
        let refusal = loaded.refused.iter().find(|(refused, _)| *refused as usize == position);
        match (refusal, &flushed) {
            (Some((_, error)), _) => Err(repository.advised(error.clone())).into(),
            (None, Ok(())) => Answer::Done,
            (None, Err(error)) => Answer::Unknown(Some(error.clone())),
        }
    };
    (0..ids.len()).map(answer).collect()
}

/// A transaction that reads, writes in two calls, and ends.
async fn transact(
    repository: &Repository,
    changes: &[Change],
    commits: bool,
    round: u32,
    state: &State,
    on_end: impl FnOnce(),
) -> Checked<Answer> {
    // Whatever an error says before the end, nothing of it has happened.
    let mut transaction = match repository.begin(None, false).await {
        Ok(transaction) => transaction,
        Err(error) => return Ok(Answer::Refused(error)),
    };
    let read = match transaction.get(TEMPLATES, &["a".to_owned()], true).await {
        Ok(mut found) => found.remove(0),
        Err(error) => return Ok(Answer::Refused(error)),
    };
    let is_stored = state.contains_key(&(TEMPLATES.to_owned(), "a".to_owned()));
    ensure_eq!(read.is_some(), is_stored, "whether a transaction finds a template that is stored");
    let writes = writes(changes, round, state);
    let (first, rest) = writes.split_at(1);
    for writes in [first, rest] {
        if let Err(error) = transaction.apply(writes.to_vec()).await {
            let _ = transaction.rollback().await;
            return Ok(Answer::Refused(error));
        }
    }
    on_end();
    Ok(match commits {
        true => transaction.commit().await.into(),
        false => match transaction.rollback().await {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused(error),
        },
    })
}

/// Why there is no content.
pub(super) enum Looked {
    /// It could not be read, which may be as it should.
    Failed(Error),
    /// It was read, and something is wrong with it.
    Wrong(Stop),
}

impl From<Error> for Looked {
    fn from(error: Error) -> Looked {
        Looked::Failed(error)
    }
}

impl From<Stop> for Looked {
    fn from(stop: Stop) -> Looked {
        Looked::Wrong(stop)
    }
}

/// Everything that is stored, read in every way, which must agree.
pub(super) async fn content(repository: &Repository) -> Result<State, Looked> {
    let mut state = State::new();
    for collection in repository.collections() {
        let name = &collection.name;
        let found = repository.query(name, Select::default()).collect().await?;
        let count = repository.count(name, None).await?;
        agree(count == found.len() as u64, || format!("count says {count} of {name}, and query {}", found.len()))?;
        let mut scanned = Vec::new();
        let mut cursor = None;
        loop {
            let batch = repository.scan(name, 0, 1, cursor.as_deref(), 1 << 20).await?;
            scanned.extend(batch.entities);
            cursor = batch.next;
            if cursor.is_none() {
                break;
            }
        }
        agree(scanned.len() == found.len(), || {
            format!("scan gives {} of {name}, and query {}", scanned.len(), found.len())
        })?;
        let ids: Vec<String> = found.iter().map(|entity| entity.id.clone()).collect();
        let got = if ids.is_empty() { Vec::new() } else { repository.get(name, &ids).await? };
        for (entity, got) in found.into_iter().zip(got) {
            let id = larder_model::json::quoted(&entity.id);
            let scanned = scanned.iter().find(|scanned| scanned.id == entity.id);
            for (how, other) in [("get", got.as_ref()), ("scan", scanned)] {
                let other = other.map(|other| members(&other.body)).transpose()?;
                let body = members(&entity.body)?;
                agree(other.as_ref().is_some_and(|other| larder_model::json::equal(other, &body)), || {
                    format!("query gives another {name} {id} than {how}")
                })?;
            }
            let mut fields = larder_model::json::parse_object(&entity.body).map_err(Error::from)?;
            agree(entity.version == entity::version_of(collection, &fields), || {
                format!("the version beside {name} {id} is not the one in it")
            })?;
            forget_times(collection, &mut fields);
            let before = state.insert((name.clone(), entity.id), fields);
            agree(before.is_none(), || format!("query gives {name} {id} twice"))?;
        }
    }
    Ok(state)
}

#[track_caller]
fn agree(condition: bool, reason: impl FnOnce() -> String) -> Checked {
    if condition { Ok(()) } else { Err(Stop::failed(reason())) }
}

/// Exactly this is stored.
#[track_caller]
pub(super) fn check_content(found: &State, expected: &State) -> Checked {
    for key in expected.keys().chain(found.keys()) {
        let (collection, id) = (&key.0, larder_model::json::quoted(&key.1));
        let told = |it: Option<&Map<String, Value>>| match it {
            Some(fields) => shown(&Value::Object(fields.clone()).to_string()),
            None => "nothing".to_owned(),
        };
        match (found.get(key), expected.get(key)) {
            (Some(found), Some(expected)) if larder_model::json::equal_objects(found, expected) => {}
            (None, None) => {}
            (found, expected) => {
                return Err(Stop::failed(format!(
                    "{collection} {id}: expected {}, found {}",
                    told(expected),
                    told(found)
                )));
            }
        }
    }
    Ok(())
}
