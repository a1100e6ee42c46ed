//! Files that are not as the store left them: cut off at every byte, and with every byte changed.
//!
//! Nothing here knows what a journal looks like. It is the file that commits are appended to, and is cut and changed as
//! bytes.

use std::{collections::BTreeMap, fs, io::Read, path::Path};

use flate2::read::MultiGzDecoder;
use larder_guest::Strategy;
use larder_model::{Entity, ErrorKind, Result};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::{
    client::{COLLECTIONS, Client, Config, State, Step, Store, content, create, difference, remove, save, update},
    disk::{self, Disk},
};

/// What a byte is changed by: its lowest bit, and the bit that tells lower case from upper case.
const FLIPS: [u8; 2] = [0x01, 0x20];

/// What the name of the file ends with that commits are appended to.
const JOURNAL_SUFFIX: &str = ".journal";

/// Files by name.
type Files = BTreeMap<String, Vec<u8>>;

/// A directory whose files can be taken and put back.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(disk::directory())
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn disk(&self) -> Disk {
        Disk::new(self.root())
    }

    fn files(&self) -> Files {
        let names = fs::read_dir(self.root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".lock")).map(|name| (name.clone(), self.read(&name))).collect()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.root().join(name)).unwrap()
    }

    /// Makes these the only files.
    fn put(&self, files: &Files) {
        for name in self.files().keys() {
            fs::remove_file(self.root().join(name)).unwrap();
        }
        for (name, content) in files {
            fs::write(self.root().join(name), content).unwrap();
        }
    }
}

/// The journal's name; a store without one is not what is tested here.
fn journal(files: &Files) -> &str {
    let journal = files.keys().find(|name| name.ends_with(JOURNAL_SUFFIX));
    journal.unwrap_or_else(|| panic!("there is no journal among {:?}", files.keys()))
}

/// Does steps that nothing disturbs, and gives the state after each.
fn perform(client: &mut Client, store: &mut Store, state: &mut State, steps: &[Step]) -> Vec<State> {
    let mut states = Vec::new();
    for step in steps {
        let mut answered = client.perform(store, state, step).unwrap();
        answered.answer.unwrap_or_else(|error| panic!("{step:?}: {error:?}"));
        *state = answered.possible.pop().expect("the state after it");
        states.push(state.clone());
    }
    states
}

/// A store with documents, and commits in its journal beside them. Gives the files and the state after each commit, first
/// after none.
fn journalled(config: Config, place: &Place) -> Vec<(Files, State)> {
    let (mut client, mut state) = (Client::default(), State::new());
    let mut store = Config { journal: false, ..config }.open(&place.disk()).unwrap();
    let documents = [save("requests", "a"), save("machines", "b"), save("templates", "c")].map(Step::one);
    perform(&mut client, &mut store, &mut state, &documents);

    let mut commits = vec![(place.files(), state.clone())];
    let mut store = config.open(&place.disk()).unwrap();
    for step in [
        Step::one(update("requests", "a")),
        Step::atomic([save("requests", "d"), create("machines", "d"), save("templates", "d")]),
        Step::one(remove("machines", "b")),
        Step::Transaction { calls: vec![vec![save("requests", "a")], vec![remove("templates", "c")]], commits: true },
        Step::one(save("machines", "d")),
    ] {
        perform(&mut client, &mut store, &mut state, &[step]);
        commits.push((place.files(), state.clone()));
    }
    commits
}

/// The layouts, each with and without compression.
fn layouts(journal: bool) -> impl Iterator<Item = Config> {
    let layouts = [(false, false), (false, true), (true, false), (true, true)];
    // No journal is folded.
    let write_buffer_size = 1 << 20;
    layouts.into_iter().map(move |(is_split, compressed)| Config { is_split, journal, compressed, write_buffer_size })
}

#[test]
fn a_journal_cut_at_any_byte_holds_the_commits_that_are_whole_in_it() {
    for config in layouts(true) {
        let place = Place::new();
        let commits = journalled(config, &place);
        let all = commits.last().expect("commits").0.clone();
        let name = journal(&all).to_owned();
        let lengths: Vec<_> = commits.iter().map(|(files, _)| files.get(&name).map_or(0, Vec::len)).collect();
        assert!(lengths.is_sorted_by(|a, b| a < b), "each commit is appended: {lengths:?}");
        for cut in 0..=all[&name].len() {
            let mut files = all.clone();
            files.get_mut(&name).expect("the journal").truncate(cut);
            place.put(&files);
            let whole = lengths.iter().rposition(|length| *length <= cut).expect("none has no length");
            let mut state = commits[whole].1.clone();
            let at = || format!("{config:?} cut at {cut} of {lengths:?}");
            let mut store = config.open(&place.disk()).unwrap();
            let found = content(&mut store).unwrap_or_else(|error| panic!("{}: {error:?}", at()));
            assert!(found == state, "{}: {}", at(), difference(&found, &state));
            // What is written next does not end up behind the torn end.
            perform(&mut Client::default(), &mut store, &mut state, &[Step::one(save("requests", "other"))]);
            let found = content(&mut config.open(&place.disk()).unwrap()).unwrap();
            assert!(found == state, "{}, after another commit: {}", at(), difference(&found, &state));
        }
    }
}

#[test]
fn a_changed_byte_of_a_journal_is_found() {
    for config in layouts(true) {
        let place = Place::new();
        let (files, state) = journalled(config, &place).pop().expect("commits");
        let name = journal(&files).to_owned();
        for (at, flip) in flips(&files[&name]) {
            let changed = flipped(&files, &name, at, flip);
            place.put(&changed);
            let mut store = config.open(&place.disk()).unwrap();
            match content(&mut store) {
                Ok(found) => {
                    let difference = difference(&found, &state);
                    assert!(found == state, "{config:?} with {flip:#x} at {at} of the journal holds {difference}");
                }
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Corrupt, "{error:?}");
                    for (collection, _) in COLLECTIONS {
                        let error = save_other(&mut store, collection).expect_err("a write to a corrupt journal");
                        assert_eq!(error.kind, ErrorKind::Corrupt, "{error:?}");
                    }
                    let _ = store.flush();
                    assert!(place.files() == changed, "{flip:#x} at {at}: corrupt, and written to");
                }
            }
        }
    }
}

/// Documents have no checksum, because people edit them: what is still a document is read as what it says. Nothing
/// else changes by it, and what is no document is never overwritten.
#[test]
fn a_changed_byte_of_a_document_is_read_as_it_stands_or_refused() {
    for config in layouts(false).chain(layouts(true)) {
        let place = Place::new();
        let commits = journalled(config, &place);
        let (files, _) = commits.last().expect("commits");
        for name in COLLECTIONS.map(|(collection, _)| document_name(config, collection)) {
            for (at, flip) in flips(&files[&name]) {
                let changed = flipped(files, &name, at, flip);
                place.put(&changed);
                let mut store = config.open(&place.disk()).unwrap();
                for (collection, _) in COLLECTIONS {
                    let at = format!("{config:?} with {flip:#x} at {at} of {name}: {collection}");
                    let expected = reading(config, &changed, collection)
                        .map(|reading| with_commits(reading, collection, &commits));
                    check_as_it_stands(&mut store, collection, expected, &at);
                    let is_read = raw(&mut store, collection).is_ok();
                    let document = document_name(config, collection);
                    assert!(is_read || place.read(&document) == changed[&document], "{at} is corrupt and overwritten");
                }
            }
            if !config.is_split {
                break;
            }
        }
    }
}

/// Entities of one collection as they are told, whatever they are.
type Entities = BTreeMap<String, Value>;

/// The collection is read as expected, or as corrupt; then a write to it adds what it writes, or is refused.
fn check_as_it_stands(store: &mut Store, collection: &'static str, expected: Option<Entities>, at: &str) {
    let found = raw(store, collection);
    let saved = save_other(store, collection);
    match (found, expected) {
        (Ok(found), Some(mut expected)) => {
            assert_eq!(found, expected, "{at}");
            saved.unwrap_or_else(|error| panic!("{at}: {error:?}"));
            let mut found = raw(store, collection).unwrap();
            assert!(found.remove("other").is_some(), "{at}");
            expected.remove("other");
            assert_eq!(found, expected, "{at}, after a write");
        }
        (Ok(found), None) => panic!("{at} is no JSON, and read as {found:?}"),
        (Err(error), _) => {
            for error in [error, saved.expect_err("a write to what is corrupt")] {
                assert_eq!(error.kind, ErrorKind::Corrupt, "{at}: {error:?}");
            }
        }
    }
}

fn raw(store: &mut Store, collection: &str) -> Result<Entities> {
    let batch = store.scan(collection, 0, 1, None, 1 << 20)?;
    assert_eq!(batch.next, None);
    let value = |entity: Entity| (entity.id, serde_json::from_slice(&entity.body).expect("JSON"));
    Ok(batch.entities.into_iter().map(value).collect())
}

fn save_other(store: &mut Store, collection: &'static str) -> Result<()> {
    let state = State::new();
    Client::default().perform(store, &state, &Step::one(save(collection, "other"))).unwrap().answer
}

/// A collection as another program reads its document, none where that is no JSON.
fn reading(config: Config, files: &Files, collection: &str) -> Option<Entities> {
    let name = document_name(config, collection);
    let mut text = files[&name].clone();
    if config.compressed {
        text.clear();
        MultiGzDecoder::new(&*files[&name]).read_to_end(&mut text).ok()?;
    }
    let mut document: Map<String, Value> = serde_json::from_slice(&text).ok()?;
    if !config.is_split {
        document = match document.remove(collection) {
            Some(Value::Object(entities)) => entities,
            Some(_) => return None,
            None => Map::new(),
        };
    }
    Some(document.into_iter().collect())
}

/// What the document says, where the commits since then say nothing else.
fn with_commits(mut reading: Entities, collection: &str, commits: &[(Files, State)]) -> Entities {
    // Where there is no journal, they are in the document.
    let ([(_, before), ..], [.., (files, after)]) = (commits, commits) else { unreachable!("there are some") };
    if !files.keys().any(|name| name.ends_with(JOURNAL_SUFFIX)) {
        return reading;
    }
    for key in
        before.keys().chain(after.keys()).filter(|key| key.0 == collection && before.get(*key) != after.get(*key))
    {
        match after.get(key) {
            Some(entity) => reading.insert(key.1.clone(), Value::Object(entity.clone())),
            None => reading.remove(&key.1),
        };
    }
    reading
}

fn document_name(config: Config, collection: &str) -> String {
    let name = if config.is_split { format!("{collection}.json") } else { "request_database.json".to_owned() };
    if config.compressed { format!("{name}.gz") } else { name }
}

fn flips(content: &[u8]) -> impl Iterator<Item = (usize, u8)> {
    (0..content.len()).flat_map(|at| FLIPS.map(|flip| (at, flip)))
}

fn flipped(files: &Files, name: &str, at: usize, flip: u8) -> Files {
    let mut changed = files.clone();
    changed.get_mut(name).expect("one of the files")[at] ^= flip;
    changed
}
