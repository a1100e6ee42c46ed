//! A client of the store that knows what it must hold: each step says beforehand what may be stored after it, and
//! compares what it is answered.

use std::{collections::BTreeMap, fs, io::Read, path::Path};

use flate2::read::MultiGzDecoder;
use larder_guest::Strategy;
use larder_model::{
    Collection, Entity, Error, ErrorKind, Existing, Expectation, Outcome, Put, Query, Removal, Result, Retry, Stamps,
    Write, entity, json,
};
use larder_plugin_json::JsonStore;
use serde_json::{Map, Value};

use crate::disk::Disk;

pub const NOW: &str = "2026-11-23T05:15:13.123456Z";
/// Collections and their keys.
pub const COLLECTIONS: [(&str, &str); 3] =
    [("machines", "machine_id"), ("requests", "request_id"), ("templates", "template_id")];

pub type Store = JsonStore<Disk>;
/// What is stored, by collection and id.
pub type State = BTreeMap<(String, String), Map<String, Value>>;

/// How a store is configured.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub is_split: bool,
    pub journal: bool,
    pub compressed: bool,
    pub write_buffer_size: usize,
}

impl Config {
    fn section(self) -> String {
        let Config { is_split, journal, compressed, write_buffer_size } = self;
        let storage_type = if is_split { "split_files" } else { "single_file" };
        format!(
            r#"{{"storage_type": "{storage_type}", "journal": {journal}, "enable_compression": {compressed},
                "write_buffer_size": {write_buffer_size}, "sync_writes": true, "backup_count": 2, "cache_size": 4}}"#
        )
    }

    pub fn open(self, disk: &Disk) -> Result<Store> {
        JsonStore::open_in(disk.clone(), &self.section(), collections()).map(|(store, _)| store)
    }

    /// What the documents hold by themselves, and that they are whole.
    pub fn documents(self, root: &Path) -> State {
        let mut state = State::new();
        let mut add = |collection: &str, entities: Map<String, Value>| {
            for (id, entity) in entities {
                let Value::Object(entity) = entity else { panic!("{collection} {id} is no entity") };
                state.insert((collection.to_owned(), id), entity);
            }
        };
        if self.is_split {
            for (collection, _) in COLLECTIONS {
                add(collection, self.document(root, &format!("{collection}.json")));
            }
        } else {
            for (collection, entities) in self.document(root, "request_database.json") {
                let Value::Object(entities) = entities else { panic!("{collection} is no collection") };
                add(&collection, entities);
            }
        }
        state
    }

    /// One document, which is empty where there is none.
    fn document(self, root: &Path, name: &str) -> Map<String, Value> {
        let path = root.join(if self.compressed { format!("{name}.gz") } else { name.to_owned() });
        if !path.exists() {
            return Map::new();
        }
        let mut bytes = fs::read(&path).unwrap();
        if self.compressed {
            let mut text = Vec::new();
            MultiGzDecoder::new(&*bytes).read_to_end(&mut text).unwrap();
            bytes = text;
        }
        let wrapped = json::parse_wrapping(&bytes, 2);
        wrapped.unwrap_or_else(|error| panic!("{}: {error}: {}", path.display(), String::from_utf8_lossy(&bytes)))
    }
}

fn collections() -> Vec<Collection> {
    let collection = |(name, key): (&str, &str)| Collection {
        name: name.to_owned(),
        key: key.to_owned(),
        stamps: Stamps {
            version: "version".to_owned(),
            created: Some("created_at".to_owned()),
            updated: Some("updated_at".to_owned()),
            adds_updated: name != "machines",
        },
        fields: Vec::new(),
        indexes: Vec::new(),
        references: Vec::new(),
    };
    COLLECTIONS.map(collection).into()
}

fn definition(name: &str) -> Collection {
    collections().into_iter().find(|collection| collection.name == name).expect("one of the three")
}

/// Everything that is stored, as the store tells it in each of its ways.
pub fn content(store: &mut Store) -> Result<State> {
    let mut state = State::new();
    for (collection, _) in COLLECTIONS {
        let mut cursor = None;
        loop {
            let batch = store.scan(collection, 0, 1, cursor.as_deref(), 300)?;
            for entity in batch.entities {
                let id = entity.id.clone();
                let fields = entity.fields()?;
                assert_eq!(entity.version, fields["version"].as_u64().unwrap_or(0), "{collection} {id}");
                let twice = state.insert((collection.to_owned(), id), fields);
                assert_eq!(twice, None, "{collection}: an entity comes twice");
            }
            cursor = batch.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    Ok(state)
}

/// What a client does.
#[derive(Debug)]
pub enum Step {
    /// One call, whose writes are all or nothing, or each for itself.
    Apply { writes: Vec<Change>, atomic: bool },
    /// Each list is one call.
    Transaction { calls: Vec<Vec<Change>>, commits: bool },
    /// Each list of ids is one call; then everything is flushed.
    Load { collection: &'static str, calls: Vec<Vec<&'static str>> },
    /// Reads in every way.
    Look,
    /// Closes the store; the next step opens it again.
    Close,
}

#[derive(Debug, Clone, Copy)]
pub struct Change {
    collection: &'static str,
    id: &'static str,
    kind: ChangeKind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum ChangeKind {
    Save,
    /// Expects nothing to be stored.
    Create,
    /// Expects the version that is stored.
    Update,
    /// Expects another version.
    Stale,
    Remove,
}

pub fn save(collection: &'static str, id: &'static str) -> Change {
    Change { collection, id, kind: ChangeKind::Save }
}

pub fn create(collection: &'static str, id: &'static str) -> Change {
    Change { collection, id, kind: ChangeKind::Create }
}

pub fn update(collection: &'static str, id: &'static str) -> Change {
    Change { collection, id, kind: ChangeKind::Update }
}

pub fn stale(collection: &'static str, id: &'static str) -> Change {
    Change { collection, id, kind: ChangeKind::Stale }
}

pub fn remove(collection: &'static str, id: &'static str) -> Change {
    Change { collection, id, kind: ChangeKind::Remove }
}

impl Step {
    pub fn one(write: Change) -> Step {
        Step::Apply { writes: vec![write], atomic: false }
    }

    pub fn atomic(writes: impl Into<Vec<Change>>) -> Step {
        Step::Apply { writes: writes.into(), atomic: true }
    }
}

/// What became of a step.
pub struct Answered {
    pub answer: Result<()>,
    /// What may be stored now: first as before, last with everything that the step did.
    pub possible: Vec<State>,
    /// Whether single writes of it were refused for a fault, while the others were done.
    pub is_partial: bool,
}

impl Answered {
    pub fn new(answer: Result<()>, possible: Vec<State>) -> Answered {
        Answered { answer, possible, is_partial: false }
    }
}

/// Why the store did not do as it must.
pub type Wrong = String;

/// Gives each write a content of its own.
#[derive(Default)]
pub struct Client {
    writes: u64,
}

impl Client {
    /// Does a step on a store that holds `state`.
    pub fn perform(&mut self, store: &mut Store, state: &State, step: &Step) -> std::result::Result<Answered, Wrong> {
        match step {
            Step::Apply { writes, atomic } => {
                let writes = self.writes(state, writes);
                apply(store, state, writes, *atomic)
            }
            Step::Transaction { calls, commits } => {
                let mut after = state.clone();
                let mut planned = Vec::new();
                for call in calls {
                    let writes = self.writes(&after, call);
                    let outcomes = writes.iter().map(|write| record(&mut after, write));
                    let outcomes = outcomes.collect::<Result<Vec<_>>>().expect("a script without slips");
                    planned.push((writes, outcomes, after.clone()));
                }
                let answer = transaction(store, planned, *commits)?;
                let possible = if *commits { vec![state.clone(), after] } else { vec![state.clone()] };
                Ok(Answered::new(answer, possible))
            }
            Step::Load { collection, calls } => Ok(self.load(store, state, collection, calls)),
            Step::Look => Ok(Answered::new(look(store, state)?, vec![state.clone()])),
            Step::Close => {
                let answer = store.flush().and_then(|()| store.close());
                Ok(Answered::new(answer, vec![state.clone()]))
            }
        }
    }

    fn writes(&mut self, state: &State, changes: &[Change]) -> Vec<Write> {
        changes.iter().map(|change| self.write(state, *change)).collect()
    }

    fn write(&mut self, state: &State, Change { collection, id, kind }: Change) -> Write {
        let stored = state.get(&(collection.to_owned(), id.to_owned()));
        let version = stored.map_or(0, |stored| entity::version_of(&definition(collection), stored));
        let (collection_name, id_text) = (collection.to_owned(), id.to_owned());
        let expect = match kind {
            ChangeKind::Save => Expectation::Any,
            ChangeKind::Create => Expectation::Absent,
            ChangeKind::Update => Expectation::Version(version),
            ChangeKind::Stale => Expectation::Version(version + 7),
            ChangeKind::Remove => {
                return Write::Remove(Removal { collection: collection_name, id: id_text, expect: Expectation::Any });
            }
        };
        Write::Put(Put { collection: collection_name, id: id_text, body: self.body(collection, id, ""), expect })
    }

    fn body(&mut self, collection: &str, id: &str, more: &str) -> Vec<u8> {
        self.writes += 1;
        let key = definition(collection).key;
        let (n, padding) = (self.writes, "é".repeat(self.writes as usize * 7 % 23));
        format!(r#"{{"{key}":"{id}","n":{n}.50,"padding":"{padding}"{more}}}"#).into_bytes()
    }

    fn load(&mut self, store: &mut Store, state: &State, collection: &str, calls: &[Vec<&str>]) -> Answered {
        let mut possible = vec![state.clone()];
        let mut failed = None;
        let mut is_partial = false;
        for ids in calls {
            let mut after = possible.last().expect("there is a first").clone();
            let mut entities = Vec::new();
            for id in ids {
                let body = self.body(collection, id, r#","version":7"#);
                after.insert((collection.to_owned(), id.to_string()), json::parse_object(&body).expect("an object"));
                entities.push(Entity { id: id.to_string(), version: 7, body });
            }
            match store.load(collection, entities, Existing::Overwrite) {
                Ok(loaded) => {
                    assert_eq!(loaded.written + loaded.refused.len() as u64, ids.len() as u64);
                    for (position, error) in loaded.refused {
                        assert!(is_fault(&error), "{error:?}");
                        is_partial = true;
                        let key = (collection.to_owned(), ids[position as usize].to_owned());
                        match state.get(&key) {
                            Some(stored) => after.insert(key, stored.clone()),
                            None => after.remove(&key),
                        };
                    }
                }
                Err(error) if error.retry != Retry::UnknownOutcome => {
                    failed = Some(error);
                    continue;
                }
                Err(error) => failed = Some(error),
            }
            possible.push(after);
        }
        // A load is no commit: after an error, calls of it may be there.
        let answer = store.flush().and(failed.map_or(Ok(()), Err));
        let answer = answer.map_err(|error| Error { retry: Retry::UnknownOutcome, ..error });
        Answered { is_partial, ..Answered::new(answer, possible) }
    }
}

/// Takes a write over into `state` as the contract has it.
fn record(state: &mut State, write: &Write) -> Result<Outcome> {
    let (name, id) = write.target();
    let definition = definition(name);
    let key = (name.to_owned(), id.to_owned());
    let stored = state.get(&key);
    let version = stored.map(|stored| entity::version_of(&definition, stored));
    entity::check_expectation(write.expect(), version, name, id)?;
    let existed = stored.is_some();
    match write {
        Write::Put(put) => {
            let stamped = entity::stamp(&definition, stored, json::parse_object(&put.body)?, NOW);
            let version = entity::version_of(&definition, &stamped);
            state.insert(key, stamped);
            Ok(Outcome { version, existed })
        }
        Write::Remove(_) => {
            state.remove(&key);
            Ok(Outcome { version: version.unwrap_or(0), existed })
        }
    }
}

fn apply(store: &mut Store, state: &State, writes: Vec<Write>, atomic: bool) -> std::result::Result<Answered, Wrong> {
    let before = state.clone();
    if atomic {
        let mut after = before.clone();
        let expected = writes.iter().map(|write| record(&mut after, write)).collect::<Result<Vec<_>>>();
        return match (store.apply(writes, true, NOW), expected) {
            (Ok(found), Ok(expected)) if found.iter().flatten().eq(&expected) => {
                // The host acknowledges nothing before this.
                Ok(Answered::new(store.flush(), vec![before, after]))
            }
            (Err(found), Err(expected)) if found.kind == expected.kind => Ok(Answered::new(Ok(()), vec![before])),
            (Err(error), Ok(_)) => Ok(Answered::new(Err(error), vec![before, after])),
            (Err(error), Err(_)) => Ok(Answered::new(Err(error), vec![before])),
            (found, expected) => Err(format!("answered {found:?} instead of {expected:?}")),
        };
    }
    let mut after = before.clone();
    let found = match store.apply(writes.clone(), false, NOW) {
        Ok(found) => found,
        Err(error) => {
            for write in &writes {
                let _ = record(&mut after, write);
            }
            return Ok(Answered::new(Err(error), vec![before, after]));
        }
    };
    let mut is_partial = false;
    for (write, found) in writes.iter().zip(&found) {
        if found.as_ref().is_err_and(is_fault) {
            is_partial = true;
            continue;
        }
        let expected = record(&mut after, write);
        let is_same = match (found, &expected) {
            (Ok(found), Ok(expected)) => found == expected,
            (Err(found), Err(expected)) => found.kind == expected.kind,
            _ => false,
        };
        if !is_same {
            return Err(format!("{write:?} is answered {found:?} instead of {expected:?}"));
        }
    }
    Ok(Answered { is_partial, ..Answered::new(store.flush(), vec![before, after]) })
}

/// Whether this is about the disk, and not about what was asked for.
fn is_fault(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Unavailable | ErrorKind::LimitExceeded)
}

/// Writes with what they are to be answered and what is seen in the transaction after them.
type Planned = (Vec<Write>, Vec<Outcome>, State);

fn transaction(store: &mut Store, calls: Vec<Planned>, commits: bool) -> std::result::Result<Result<()>, Wrong> {
    let mut transaction = match store.begin(None, false) {
        Ok(transaction) => transaction,
        Err(error) => return Ok(Err(error)),
    };
    for (writes, expected, seen) in calls {
        let targets: Vec<_> =
            writes.iter().map(|write| write.target()).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
        let done = store.transaction_apply(&mut transaction, writes, NOW).and_then(|outcomes| {
            let mut found = Vec::new();
            for (collection, id) in &targets {
                found.extend(store.transaction_get(&mut transaction, collection, std::slice::from_ref(id), true)?);
            }
            Ok((outcomes, found))
        });
        let (outcomes, found) = match done {
            Ok(done) => done,
            Err(error) => {
                let _ = store.rollback(transaction);
                return Ok(Err(error));
            }
        };
        if outcomes != expected {
            return Err(format!("answered {outcomes:?} instead of {expected:?}"));
        }
        for (target, found) in targets.into_iter().zip(found) {
            if !is_entity(found.as_ref(), seen.get(&target)) {
                return Err(format!("the transaction sees {found:?} as {target:?}"));
            }
        }
    }
    Ok(if commits { store.commit(transaction).and_then(|()| store.flush()) } else { store.rollback(transaction) })
}

fn is_entity(found: Option<&Entity>, expected: Option<&Map<String, Value>>) -> bool {
    match (found, expected) {
        (None, None) => true,
        (Some(found), Some(expected)) => found.fields().is_ok_and(|found| json::equal_objects(&found, expected)),
        _ => false,
    }
}

/// Reads in every way; whatever is answered must be right.
fn look(store: &mut Store, state: &State) -> std::result::Result<Result<()>, Wrong> {
    for (collection, _) in COLLECTIONS {
        let stored: Vec<_> = state.iter().filter(|((name, _), _)| name == collection).collect();
        let mut ids: Vec<_> = stored.iter().map(|((_, id), _)| id.clone()).collect();
        ids.push("nobody".to_owned());
        match store.get(collection, &ids) {
            Err(error) => return Ok(Err(error)),
            Ok(found) => {
                for (id, found) in ids.iter().zip(&found) {
                    if !is_entity(found.as_ref(), state.get(&(collection.to_owned(), id.clone()))) {
                        return Err(format!("get of {collection} {id} answers {found:?}"));
                    }
                }
            }
        }
        match store.count(collection, None) {
            Err(error) => return Ok(Err(error)),
            Ok(count) if count == Some(stored.len() as u64) => {}
            Ok(count) => return Err(format!("{collection} counts {count:?} instead of {}", stored.len())),
        }
        let query =
            Query { filter: None, order_by: Vec::new(), limit: 1000, max_bytes: 1 << 20, index: None, cursor: None };
        match store.find(collection, &query) {
            Err(error) => return Ok(Err(error)),
            Ok(page) if page.entities.len() == stored.len() && page.next.is_none() => {}
            Ok(page) => return Err(format!("{collection} is answered with {page:?}")),
        }
    }
    match store.stored_collections() {
        Err(error) => return Ok(Err(error)),
        Ok(names) => {
            if let Some((missing, _)) = state.keys().find(|(name, _)| !names.contains(name)) {
                return Err(format!("{missing} is not among the stored collections {names:?}"));
            }
        }
    }
    Ok(store.check(true).map(drop))
}

/// What is other in `found` than in `expected`, for a person.
pub fn difference(found: &State, expected: &State) -> String {
    let mut lines = Vec::new();
    for key in found.keys().chain(expected.keys().filter(|key| !found.contains_key(*key))) {
        let [found, expected] = [found, expected].map(|state| state.get(key));
        if found != expected {
            let shown = |entity: Option<&Map<String, Value>>| {
                entity.map_or("nothing".to_owned(), |entity| format!("version {} n {}", entity["version"], entity["n"]))
            };
            lines.push(format!("{} {}: {} instead of {}", key.0, key.1, shown(found), shown(expected)));
        }
    }
    lines.join(", ")
}
