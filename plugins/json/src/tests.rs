//! The strategy over a real directory, without a component around it: [`Disk`] stands where the host's files are.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    fs::{File, OpenOptions, TryLockError},
    hash::{DefaultHasher, Hash, Hasher},
    io::{ErrorKind as Io, Write as _},
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    rc::Rc,
    time::SystemTime,
};

use larder_guest::{FileStat, Files, LockMode};
use larder_model::{
    Collection, Entity, Error, ErrorKind, Existing, Expectation, Index, Put, Query, Removal, Result, SortKey, Stamps,
    Write, filter::parse_expression, json,
};
use serde_json::Value;

use crate::JsonStore;
use crate::reader::PIECE_BYTES;

/// `Files` over `std::fs`. It can be made to fail at a later commit of a replacement.
#[derive(Clone, Default)]
struct Disk {
    root: PathBuf,
    commits: Rc<Cell<usize>>,
    fails_at: Rc<Cell<usize>>,
}

struct Replacement {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl Drop for Replacement {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

fn fault(error: std::io::Error) -> Error {
    let kind = match error.kind() {
        Io::AlreadyExists => ErrorKind::AlreadyExists,
        Io::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, error.to_string())
}

fn stat_of(file: &File) -> FileStat {
    let metadata = file.metadata().unwrap();
    let mut hasher = DefaultHasher::new();
    (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime_nsec()).hash(&mut hasher);
    FileStat { size: metadata.len(), generation: hasher.finish() }
}

impl Disk {
    fn open(&self, path: &str) -> Result<Option<File>> {
        match File::open(self.root.join(path)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == Io::NotFound => Ok(None),
            Err(error) => Err(fault(error)),
        }
    }
}

impl Files for Disk {
    type Lock = File;
    type Replacement = Replacement;

    fn try_acquire(&self, name: &str, mode: LockMode) -> Result<Option<File>> {
        fs::create_dir_all(&self.root).unwrap();
        let file = OpenOptions::new().create(true).append(true).open(self.root.join(name)).map_err(fault)?;
        let tried = match mode {
            LockMode::Shared => file.try_lock_shared(),
            LockMode::Exclusive => file.try_lock(),
        };
        match tried {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(fault(error)),
        }
    }

    fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        Ok(self.open(path)?.map(|file| stat_of(&file)))
    }

    fn read(&self, path: &str, offset: u64, max_bytes: u32) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open(path)? else { return Ok(None) };
        let mut bytes = vec![0; max_bytes as usize];
        let count = file.read_at(&mut bytes, offset).map_err(fault)?;
        bytes.truncate(count);
        Ok(Some(bytes))
    }

    fn append(&self, path: &str, data: &[u8]) -> Result<FileStat> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.root.join(path)).map_err(fault)?;
        file.write_all(data).map_err(fault)?;
        Ok(stat_of(&file))
    }

    fn sync(&self, path: &str) -> Result<()> {
        File::open(self.root.join(path)).and_then(|file| file.sync_all()).map_err(fault)
    }

    fn truncate(&self, path: &str, size: u64) -> Result<()> {
        OpenOptions::new().write(true).open(self.root.join(path)).and_then(|it| it.set_len(size)).map_err(fault)
    }

    fn remove(&self, path: &str) -> Result<bool> {
        match fs::remove_file(self.root.join(path)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == Io::NotFound => Ok(false),
            Err(error) => Err(fault(error)),
        }
    }

    fn entries(&self, prefix: &str) -> Result<Vec<(String, FileStat)>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.root).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with(prefix)
                && let Some(stat) = self.stat(&name)?
            {
                entries.push((name, stat));
            }
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    }

    fn free_space(&self) -> Result<u64> {
        Ok(1 << 30)
    }

    fn replace(&self, path: &str) -> Result<Replacement> {
        fs::create_dir_all(&self.root).unwrap();
        let temporary = self.root.join(format!(".{path}.{}.tmp", self.commits.get()));
        let file = File::create(&temporary).map_err(fault)?;
        Ok(Replacement { path: self.root.join(path), temporary, file })
    }

    fn replacement_write(&self, replacement: &Replacement, data: &[u8]) -> Result<()> {
        (&replacement.file).write_all(data).map_err(fault)
    }

    fn replacement_commit(
        &self,
        replacement: Replacement,
        keep_old_as: Option<&str>,
        _durable: bool,
    ) -> Result<FileStat> {
        self.commits.set(self.commits.get() + 1);
        if self.commits.get() == self.fails_at.get() {
            return Err(Error::new(ErrorKind::LimitExceeded, "the disk is full"));
        }
        replacement.file.set_modified(SystemTime::now()).map_err(fault)?;
        if let Some(name) = keep_old_as
            && replacement.path.exists()
        {
            fs::hard_link(&replacement.path, self.root.join(name)).map_err(fault)?;
        }
        fs::rename(&replacement.temporary, &replacement.path).map_err(fault)?;
        Ok(stat_of(&replacement.file))
    }
}

const NOW: &str = "2026-11-23T05:15:13.123456Z";

struct Place {
    _outer: tempfile::TempDir,
    disk: Disk,
}

fn place() -> Place {
    let outer = tempfile::tempdir().unwrap();
    let disk = Disk { root: outer.path().join("store"), ..Disk::default() };
    Place { _outer: outer, disk }
}

impl Place {
    fn open(&self, config: &str) -> JsonStore<Disk> {
        let collection = |name: &str, key: &str| Collection {
            name: name.to_owned(),
            key: key.to_owned(),
            stamps: Stamps {
                version: "version".to_owned(),
                created: None,
                updated: Some("updated_at".to_owned()),
                adds_updated: false,
            },
            fields: Vec::new(),
            indexes: vec![Index { name: "by_status".to_owned(), fields: vec!["status".to_owned()] }],
            references: Vec::new(),
        };
        let collections = vec![collection("requests", "request_id"), collection("machines", "machine_id")];
        JsonStore::open_in(self.disk.clone(), config, collections).unwrap().0
    }

    fn write(&self, file: &str, text: &str) {
        fs::create_dir_all(&self.disk.root).unwrap();
        fs::write(self.disk.root.join(file), text).unwrap();
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.disk.root.join(file)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = self.disk.entries("").unwrap().into_iter().map(|(name, _)| name);
        entries.filter(|name| !name.ends_with(".lock") && !name.ends_with(".users")).collect()
    }
}

/// Each commit replaces the document.
const SINGLE: &str = r#"{"backup_enabled": false, "journal": false}"#;
const SPLIT: &str = r#"{"storage_type": "split_files", "backup_enabled": false, "journal": false}"#;
/// Each commit goes to the journal, and some fold it.
const SINGLE_JOURNAL: &str = r#"{"backup_enabled": false}"#;
const SPLIT_JOURNAL: &str = r#"{"storage_type": "split_files", "backup_enabled": false, "write_buffer_size": 500}"#;
const ALL: [&str; 4] = [SINGLE, SPLIT, SINGLE_JOURNAL, SPLIT_JOURNAL];
const DOCUMENT: &str = "request_database.json";

fn put(collection: &str, id: &str, members: &str, expect: Expectation) -> Write {
    let key = if collection == "requests" { "request_id" } else { "machine_id" };
    let body = format!(r#"{{"{key}": "{id}"{members}}}"#).into_bytes();
    Write::Put(Put { collection: collection.to_owned(), id: id.to_owned(), body, expect })
}

fn removal(collection: &str, id: &str, expect: Expectation) -> Write {
    Write::Remove(Removal { collection: collection.to_owned(), id: id.to_owned(), expect })
}

fn save(store: &mut JsonStore<Disk>, collection: &str, id: &str, members: &str) -> u64 {
    let results = store.apply(vec![put(collection, id, members, Expectation::Any)], false, NOW).unwrap();
    results.into_iter().next().unwrap().unwrap().version
}

fn get(store: &mut JsonStore<Disk>, collection: &str, id: &str) -> Option<String> {
    let found = store.get(collection, &[id.to_owned()]).unwrap().remove(0);
    found.map(|entity| String::from_utf8(entity.body).unwrap())
}

fn entity(collection: &str, id: &str, members: &str) -> Entity {
    let Write::Put(put) = put(collection, id, members, Expectation::Any) else { unreachable!() };
    Entity { id: put.id, version: 0, body: put.body }
}

fn query(filter: Option<&str>, order_by: &[(&str, bool)], limit: u32) -> Query {
    Query {
        filter: filter.map(|filter| parse_expression(filter).unwrap()),
        order_by: order_by
            .iter()
            .map(|(field, descending)| SortKey { field: field.parse().unwrap(), descending: *descending })
            .collect(),
        limit,
        max_bytes: u32::MAX,
        index: None,
        cursor: None,
    }
}

fn all_pages(store: &mut JsonStore<Disk>, mut query: Query) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let page = store.find("requests", &query).unwrap();
        assert!(page.entities.len() <= query.limit as usize);
        ids.extend(page.entities.into_iter().map(|entity| entity.id));
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return ids,
        }
    }
}

#[test]
fn a_store_that_does_not_exist_reads_as_empty_and_comes_to_be_with_the_first_write() {
    for config in ALL {
        let place = place();
        let mut store = place.open(config);
        assert_eq!(get(&mut store, "requests", "a"), None);
        assert_eq!(store.count("requests", None).unwrap(), Some(0));
        assert_eq!(store.stored_collections().unwrap(), Vec::<String>::new());
        assert!(!place.disk.root.exists());
        assert_eq!(save(&mut store, "requests", "a", ""), 1);
        assert_eq!(store.stored_collections().unwrap(), ["requests"]);
        assert_eq!(get(&mut place.open(config), "requests", "a").unwrap(), r#"{"request_id":"a","version":1}"#);
        assert_eq!(store.get("nowhere", &[]).unwrap_err().kind, ErrorKind::InvalidArgument);
    }
}

#[test]
fn a_write_leaves_everything_else_as_it_stood() {
    let place = place();
    let before = r#"{
  "others": {"kept" :[1.0,   "\u00e9"]},
  "schema": 3,
  "requests": {
    "b": {
      "request_id": "b",
      "cost": 1.10000000000000000000000000000000000001,
      "name": "größe \u00e9"
    },
    "odd": {"request_id":"odd"},
    "a": {
      "request_id": "a"
    }
  }
}
"#;
    place.write(DOCUMENT, before);
    let mut store = place.open(SINGLE);
    assert_eq!(store.stored_collections().unwrap(), ["others", "requests"]);
    save(&mut store, "requests", "a", r#", "n": 1E5"#);
    save(&mut store, "machines", "m", "");
    let after = before
        .replace("\"request_id\": \"a\"\n", "\"request_id\": \"a\",\n      \"n\": 1e+5,\n      \"version\": 1\n")
        .replace(
            "    }\n  }\n}\n",
            "    }\n  },\n  \"machines\": {\n    \"m\": {\n      \"machine_id\": \"m\",\n      \"version\": 1\n    }\n  }\n}\n",
        );
    assert_eq!(place.read(DOCUMENT), after);
    let results = store.apply(vec![removal("machines", "m", Expectation::Present)], true, NOW).unwrap();
    assert!(results[0].as_ref().is_ok_and(|outcome| outcome.existed && outcome.version == 1));
    assert!(place.read(DOCUMENT).ends_with("  },\n  \"machines\": {}\n}\n"));
}

#[test]
fn what_is_no_document_is_corrupt_and_never_overwritten() {
    for (text, mentions) in [
        ("", "empty"),
        ("{\n  \"requests\": {\n    oops", "line 3 column 5"),
        ("[]", "object of collections"),
        ("{\"requests\": []}", "requests"),
        ("{\"requests\": {\"a\": {}, \"a\": {}}}", "`a` is there twice"),
        ("{\"requests\": {}, \"requests\": {}}", "`requests` is there twice"),
        ("{} {}", "line 1 column 4"),
        ("{\"requests\": {\"a\": {\"b\": 01}}}", "line 1"),
    ] {
        let place = place();
        place.write(DOCUMENT, text);
        let mut store = place.open(SINGLE);
        for _ in 0..2 {
            let errors = [
                store.get("requests", &["a".to_owned()]).unwrap_err(),
                store.apply(vec![put("requests", "a", "", Expectation::Any)], true, NOW).unwrap_err(),
                store.load("requests", vec![entity("requests", "a", "")], Existing::Overwrite).unwrap_err(),
                store.begin_transaction(false).and_then(|mut it| store.get_in(&mut it, "requests", &[])).unwrap_err(),
                store.scan("requests", 0, 1, None, 100).unwrap_err(),
                store.count("requests", None).unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind, ErrorKind::Corrupt, "{text}: {error}");
                assert!(error.message.contains(mentions) && error.message.contains(DOCUMENT), "{error}");
            }
        }
        assert_eq!(place.read(DOCUMENT), text);
        let report: Value = serde_json::from_str(&store.check(true).unwrap()).unwrap();
        assert_eq!((&report["readable"], &report["findings"][0]["level"]), (&Value::from(false), &"error".into()));
    }
    let place = place();
    fs::create_dir_all(&place.disk.root).unwrap();
    fs::write(place.disk.root.join(DOCUMENT), b"{\n \"\xff\": 1}").unwrap();
    let error = place.open(SINGLE).get("requests", &[]).unwrap_err();
    assert!(error.message.contains("UTF-8 at line 2 column 3"), "{error}");
}

#[test]
fn a_document_is_read_wherever_a_piece_of_it_ends() {
    let body = r#"{"request_id":"a","é":"\u00e9\ud83d\ude00\\","b":-1.5e-400,"c":[true,false,null,{"d":-0.25E+7}]}"#;
    let head = r#"{"requests":{"a":"#;
    for cut in 0..=body.len() {
        let place = place();
        let padding = " ".repeat(PIECE_BYTES - head.len() - cut);
        place.write(DOCUMENT, &format!("{head}{padding}{body}}}}}"));
        assert_eq!(get(&mut place.open(SINGLE), "requests", "a").as_deref(), Some(body), "cut after {cut} bytes");
    }
    // What is none stays none there, with its place.
    for wrong in ["-}", "1.}", "1e}", "1e-}", "01}", "tru}"] {
        let place = place();
        let padding = " ".repeat(PIECE_BYTES - head.len() - 6 - wrong.len() + 1);
        place.write(DOCUMENT, &format!("{head}{padding}{{\"b\": {wrong}}}}}"));
        let error = place.open(SINGLE).get("requests", &["a".to_owned()]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{wrong}");
        let column: usize = error.message.rsplit("column ").next().unwrap().split(';').next().unwrap().parse().unwrap();
        assert!(column.abs_diff(PIECE_BYTES) <= 3, "{wrong}: {error}");
    }
}

#[test]
fn a_document_that_was_damaged_is_named_with_its_newest_backup() {
    let place = place();
    let mut store = place.open(r#"{"journal": false}"#);
    for _ in 0..3 {
        store.apply(vec![put("requests", "a", "", Expectation::Any)], true, NOW).unwrap();
    }
    let mut backups: Vec<String> = place.names().into_iter().filter(|name| name.contains(".bak-")).collect();
    backups.sort();
    place.write(DOCUMENT, "{");
    let error = place.open("{}").get("requests", &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    let newest = backups.last().expect("a backup");
    assert!(error.message.ends_with(&format!("; {newest} holds what it was before")), "{error}");
}

#[test]
fn an_entity_that_is_none_is_passed_on_reported_and_not_overwritten() {
    let place = place();
    place.write(
        DOCUMENT,
        r#"{"requests": {"a": [1, 2], "b": {"x": 1, "x": 2}, "c": {"request_id": "z"}, "d": {"request_id": "d"}}}"#,
    );
    let mut store = place.open(SINGLE);
    assert_eq!(get(&mut store, "requests", "a").unwrap(), "[1,2]");
    assert_eq!(get(&mut store, "requests", "b").unwrap(), r#"{"x":1,"x":2}"#);
    assert_eq!(store.scan("requests", 0, 1, None, u32::MAX).unwrap().entities.len(), 4);
    let error = store.find("requests", &query(None, &[], 10)).unwrap_err();
    assert_eq!((error.kind, error.message.contains("`a`")), (ErrorKind::Corrupt, true), "{error}");
    let error = store.apply(vec![put("requests", "b", "", Expectation::Any)], true, NOW).unwrap_err();
    assert_eq!((error.kind, error.write_index), (ErrorKind::Corrupt, Some(0)));
    assert_eq!(save(&mut store, "requests", "c", ""), 1, "an object with another key can be repaired by a save");
    let report: Value = serde_json::from_str(&store.check(true).unwrap()).unwrap();
    assert!(report["findings"][0]["message"].as_str().unwrap().starts_with("2 of 4 entities of requests"), "{report}");
    assert_eq!(report["writable"], true);
}

#[test]
fn expectations_hold_and_an_atomic_apply_is_all_or_nothing() {
    for config in ALL {
        let place = place();
        let mut store = place.open(config);
        save(&mut store, "requests", "a", "");
        assert_eq!(save(&mut store, "requests", "a", r#", "version": 9"#), 2);
        let writes = || {
            vec![
                put("machines", "m", "", Expectation::Any),
                put("requests", "a", "", Expectation::Version(1)),
                put("requests", "b", "", Expectation::Absent),
            ]
        };
        let error = store.apply(writes(), true, NOW).unwrap_err();
        assert_eq!((error.kind, error.write_index), (ErrorKind::VersionConflict, Some(1)));
        assert_eq!(error.current_version, Some(2));
        assert_eq!(get(&mut store, "machines", "m"), None);
        let results = store.apply(writes(), false, NOW).unwrap();
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        let mut other = place.open(config);
        assert!(get(&mut other, "machines", "m").is_some() && get(&mut other, "requests", "b").is_some());
        let twice = vec![put("requests", "x", "", Expectation::Any), removal("requests", "x", Expectation::Any)];
        assert_eq!(store.apply(twice, true, NOW).unwrap_err().kind, ErrorKind::InvalidArgument);
        let commits = place.disk.commits.get();
        store.apply(vec![removal("requests", "absent", Expectation::Any)], true, NOW).unwrap();
        assert_eq!(place.disk.commits.get(), commits, "nothing changed");
    }
}

#[test]
fn two_instances_see_each_others_writes_and_lose_none() {
    for config in ALL {
        let place = place();
        let mut stores = [place.open(config), place.open(config)];
        for i in 0..40 {
            save(&mut stores[i % 2], "requests", &format!("r{i}"), "");
            assert_eq!(save(&mut stores[i % 2], "requests", "shared", ""), i as u64 + 1);
            assert_eq!(stores[(i + 1) % 2].count("requests", None).unwrap(), Some(i as u64 + 2));
        }
    }
}

#[test]
fn a_lock_that_is_held_elsewhere_makes_writes_busy_and_reads_not() {
    let place = place();
    let (mut one, mut two) = (place.open(SINGLE), place.open(SINGLE));
    save(&mut one, "requests", "a", "");
    let mut transaction = one.begin_transaction(false).unwrap();
    one.apply_in(&mut transaction, vec![put("requests", "a", r#", "x": 1"#, Expectation::Any)], NOW).unwrap();
    for store in [&mut one, &mut two] {
        let error = store.apply(vec![put("requests", "b", "", Expectation::Any)], true, NOW).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy);
        assert_eq!(store.begin_transaction(true).err().unwrap().kind, ErrorKind::Busy);
        assert_eq!(get(store, "requests", "a").unwrap(), r#"{"request_id":"a","version":1}"#);
    }
    assert!(one.get_in(&mut transaction, "requests", &["a".to_owned()]).unwrap()[0].as_ref().unwrap().version == 2);
    one.commit_transaction(transaction).unwrap();
    assert_eq!(get(&mut two, "requests", "a").unwrap(), r#"{"request_id":"a","x":1,"version":2}"#);
    let shared = one.begin_transaction(true).unwrap();
    drop(two.begin_transaction(true).unwrap());
    assert_eq!(two.begin_transaction(false).err().unwrap().kind, ErrorKind::Busy);
    drop(shared);
    save(&mut two, "requests", "b", "");
}

#[test]
fn a_transaction_sees_its_own_writes_and_leaves_nothing_when_it_is_dropped() {
    for config in ALL {
        let place = place();
        let mut store = place.open(config);
        save(&mut store, "requests", "a", "");
        let mut transaction = store.begin_transaction(false).unwrap();
        let writes = vec![
            put("requests", "b", "", Expectation::Absent),
            removal("requests", "a", Expectation::Version(1)),
            put("machines", "m", "", Expectation::Any),
        ];
        store.apply_in(&mut transaction, writes, NOW).unwrap();
        let page = store.find_in(&mut transaction, "requests", &query(None, &[], 10)).unwrap();
        assert_eq!(page.entities.iter().map(|entity| entity.id.as_str()).collect::<Vec<_>>(), ["b"]);
        let error = store.apply_in(&mut transaction, vec![put("requests", "b", "", Expectation::Absent)], NOW);
        assert_eq!(error.unwrap_err().kind, ErrorKind::AlreadyExists);
        assert_eq!(store.commit_transaction(transaction).unwrap_err().kind, ErrorKind::InvalidArgument);
        assert!(get(&mut store, "requests", "a").is_some() && get(&mut store, "requests", "b").is_none());
        let twice = vec![put("requests", "b", "", Expectation::Any), removal("requests", "b", Expectation::Any)];
        let mut transaction = store.begin_transaction(false).unwrap();
        let error = store.apply_in(&mut transaction, twice, NOW).unwrap_err();
        assert_eq!((error.kind, error.write_index), (ErrorKind::InvalidArgument, Some(1)));
        assert_eq!(store.commit_transaction(transaction).unwrap_err().kind, ErrorKind::InvalidArgument);
        let mut transaction = store.begin_transaction(true).unwrap();
        let refused = store.apply_in(&mut transaction, vec![put("requests", "b", "", Expectation::Any)], NOW);
        assert_eq!(refused.unwrap_err().kind, ErrorKind::InvalidArgument);
        drop(transaction);
        save(&mut store, "requests", "c", "");
    }
}

#[test]
fn a_commit_that_fails_changes_nothing() {
    for config in [SINGLE, SPLIT] {
        let place = place();
        let mut store = place.open(config);
        save(&mut store, "requests", "a", "");
        place.disk.fails_at.set(place.disk.commits.get() + 1);
        let error = store.apply(vec![put("requests", "a", r#", "x": 1"#, Expectation::Any)], true, NOW).unwrap_err();
        assert_eq!(error.kind, ErrorKind::LimitExceeded);
        assert_eq!(get(&mut store, "requests", "a").unwrap(), r#"{"request_id":"a","version":1}"#);
        assert_eq!(save(&mut store, "requests", "a", ""), 2);
    }
}

#[test]
fn pages_followed_to_the_end_bring_each_entity_once_and_in_order() {
    let place = place();
    let mut store = place.open(SINGLE);
    let mut writes = Vec::new();
    let mut expected = Vec::new();
    for i in 0..57_u32 {
        let rank = match i % 5 {
            0 => String::new(),
            1 => r#", "rank": null"#.to_owned(),
            2 => format!(r#", "rank": {}.0"#, i % 4),
            3 => format!(r#", "rank": "t{}""#, i % 3),
            _ => format!(r#", "rank": [{}]"#, i % 2),
        };
        let id = format!("r{i:02}");
        writes.push(put("requests", &id, &format!(r#", "even": {}{rank}"#, i % 2 == 0), Expectation::Any));
        expected.push(id);
    }
    store.apply(writes, true, NOW).unwrap();
    for limit in [1, 2, 7, 57, 100] {
        assert_eq!(all_pages(&mut store, query(None, &[], limit)), expected);
        let evens = all_pages(&mut store, query(Some("even=true"), &[], limit));
        assert_eq!(evens, expected.iter().step_by(2).cloned().collect::<Vec<_>>());
        for order in [&[("rank", false)][..], &[("rank", true), ("even", false)]] {
            let whole = store.find("requests", &query(None, order, 1000)).unwrap();
            let objects: Vec<_> = whole
                .entities
                .iter()
                .map(|entity| (entity.id.clone(), json::parse_object(&entity.body).unwrap()))
                .collect();
            let order_by = query(None, order, 1).order_by;
            assert!(
                objects
                    .is_sorted_by(|a, b| larder_model::order::compare(&order_by, (&a.0, &a.1), (&b.0, &b.1)).is_lt())
            );
            let ids: Vec<_> = objects.into_iter().map(|(id, _)| id).collect();
            assert_eq!(all_pages(&mut store, query(None, order, limit)), ids);
            let small = Query { max_bytes: 1, ..query(None, order, limit) };
            assert_eq!(all_pages(&mut store, small), ids);
        }
    }
    let first = store.find("requests", &query(Some("even=true"), &[], 1)).unwrap();
    let foreign = Query { cursor: first.next, ..query(None, &[], 1) };
    assert_eq!(store.find("requests", &foreign).unwrap_err().kind, ErrorKind::InvalidArgument);
    let indexed = |name: &str| Query { index: Some(name.to_owned()), ..query(None, &[], 1) };
    assert_eq!(store.find("requests", &indexed("by_status")).unwrap().index_used.unwrap(), "by_status");
    assert_eq!(store.find("requests", &indexed("by_size")).unwrap_err().kind, ErrorKind::InvalidArgument);
    assert_eq!(store.count("requests", Some(&parse_expression("rank=null").unwrap())).unwrap(), Some(12));
}

#[test]
fn segments_bring_each_entity_once_though_others_are_written_meanwhile() {
    let place = place();
    let mut store = place.open(SINGLE);
    let ids: Vec<_> = (0..100).map(|i| format!("r{i}")).collect();
    store.apply(ids.iter().map(|id| put("requests", id, "", Expectation::Any)).collect(), true, NOW).unwrap();
    store.load("requests", vec![entity("requests", "pending", "")], Existing::Fail).unwrap();
    let mut seen = Vec::new();
    for segment in 0..3 {
        let mut cursor = None;
        loop {
            let batch = store.scan("requests", segment, 3, cursor.as_deref(), 100).unwrap();
            assert!(batch.entities.len() <= 4);
            seen.extend(batch.entities.into_iter().map(|entity| entity.id));
            save(&mut store, "machines", "m", "");
            save(&mut store, "requests", "r5", "");
            match batch.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
    }
    seen.sort();
    let mut expected = ids;
    expected.push("pending".to_owned());
    expected.sort();
    assert_eq!(seen, expected);
    assert_eq!(store.scan("requests", 3, 3, None, 1).unwrap_err().kind, ErrorKind::InvalidArgument);
}

#[test]
fn backups_are_kept_each_under_its_own_name_and_the_oldest_go_first() {
    let place = place();
    let mut store = place.open(r#"{"backup_count": 20, "journal": false}"#);
    for _ in 0..13 {
        save(&mut store, "requests", "a", "");
    }
    assert_eq!(place.names().len(), 13, "the document and 12 earlier ones");
    let mut store = place.open(r#"{"backup_count": 2, "journal": false}"#);
    save(&mut store, "requests", "a", "");
    let names = place.names();
    assert_eq!(names.len(), 3);
    assert!(names[1].starts_with("request_database.json.bak-20") && names[1].ends_with('Z'), "{names:?}");
    assert!(place.read(&names[2]).contains("\"version\": 13"));
    assert!(place.read(&names[1]).contains("\"version\": 12"));
}

#[test]
fn compression_is_switched_on_and_off_without_losing_anything() {
    let place = place();
    let on = r#"{"enable_compression": true, "journal": false}"#;
    save(&mut place.open(SINGLE), "requests", "a", "");
    let mut store = place.open(on);
    assert!(get(&mut store, "requests", "a").is_some());
    save(&mut store, "requests", "b", "");
    let names = place.names();
    assert_eq!((names.len(), names[1].as_str()), (2, "request_database.json.gz"));
    assert!(place.read(&names[0]).contains("\"a\""), "the earlier form is kept as a backup");
    assert_eq!(fs::read(place.disk.root.join(&names[1])).unwrap()[..2], [0x1f, 0x8b]);
    let mut store = place.open(SINGLE);
    assert_eq!(store.count("requests", None).unwrap(), Some(2));
    save(&mut store, "requests", "c", "");
    assert!(place.read(DOCUMENT).contains("\"b\"") && !place.names().contains(&"request_database.json.gz".to_owned()));
    fs::write(place.disk.root.join("request_database.json.gz"), "no gzip").unwrap();
    assert_eq!(place.open(on).count("requests", None).unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn prepare_makes_what_is_missing_once_and_a_dry_run_nothing() {
    let place = place();
    let mut store = place.open(SPLIT);
    assert_eq!(store.prepare(true).unwrap().len(), 2);
    assert!(place.names().is_empty());
    assert_eq!(store.prepare(false).unwrap().len(), 2);
    assert_eq!(place.read("machines.json"), "{}\n");
    assert_eq!(store.prepare(false).unwrap(), Vec::<String>::new());
    assert_eq!(store.stored_collections().unwrap(), ["machines", "requests"]);
}

#[test]
fn bodies_that_are_no_entities_are_refused() {
    let place = place();
    let mut store = place.open(SINGLE);
    let mut raw = |id: &str, body: Vec<u8>| {
        let put = Put { collection: "requests".to_owned(), id: id.to_owned(), body, expect: Expectation::Any };
        store.apply(vec![Write::Put(put)], true, NOW).unwrap_err().kind
    };
    for body in
        ["[]", "{}", r#"{"request_id": "b"}"#, r#"{"request_id": "a", "x": 1, "x": 2}"#, r#"{"request_id": "a""#]
    {
        assert_eq!(raw("a", body.into()), ErrorKind::InvalidArgument, "{body}");
    }
    let large = format!(r#"{{"request_id": "a", "x": "{}"}}"#, "x".repeat(crate::store::ENTITY_BYTES_MAX));
    assert_eq!(raw("a", large.into_bytes()), ErrorKind::InvalidArgument);
    assert!(place.names().is_empty());
}

#[test]
fn a_journal_is_appended_to_folded_at_its_bound_and_gone_after_close() {
    for config in [SINGLE_JOURNAL, SPLIT_JOURNAL] {
        let place = place();
        let mut store = place.open(config);
        save(&mut store, "requests", "a", "");
        let journal = if config == SINGLE_JOURNAL { ".request_database.json.journal" } else { ".larder.journal" };
        assert_eq!(place.names(), [journal], "nothing but the journal");
        assert!(get(&mut place.open(config), "requests", "a").is_some());
        let (mut largest, mut folds) = (0, 0);
        for i in 0..2000 {
            save(&mut store, "requests", &format!("r{}", i % 100), &format!(", \"i\": {i}"));
            save(&mut store, "machines", &format!("m{}", i % 10), "");
            match fs::metadata(place.disk.root.join(journal)) {
                Ok(file) => largest = largest.max(file.len()),
                Err(_) => folds += 1,
            }
        }
        assert!(folds > 0 && largest < 100_000, "{folds} folds, {largest} bytes");
        store.close().unwrap();
        assert!(!place.names().contains(&journal.to_owned()), "{:?}", place.names());
        let mut store = place.open(config);
        assert_eq!(store.count("requests", None).unwrap(), Some(101));
        assert!(get(&mut store, "requests", "r99").unwrap().contains("\"i\":1999"));
        assert!(get(&mut store, "machines", "m9").unwrap().contains("\"version\":200"));
    }
}

#[test]
fn the_last_user_folds_what_a_process_that_died_left() {
    let place = place();
    save(&mut place.open(SINGLE_JOURNAL), "requests", "a", "");
    let (mut one, mut two) = (place.open(SINGLE_JOURNAL), place.open(SINGLE_JOURNAL));
    assert!(get(&mut one, "requests", "a").is_some() && get(&mut two, "requests", "a").is_some());
    one.close().unwrap();
    assert_eq!(place.names(), [".request_database.json.journal"], "somebody reads on");
    two.close().unwrap();
    assert_eq!(place.names(), [DOCUMENT]);
}

#[test]
fn load_is_seen_at_once_is_durable_after_flush_and_stamps_nothing() {
    for config in ALL {
        let place = place();
        let mut store = place.open(config);
        save(&mut store, "requests", "old", "");
        let batch = || {
            vec![
                entity("requests", "new", r#", "n": 1E5, "version": 7"#),
                entity("requests", "old", r#", "version": 1.0"#),
                Entity { id: "bad".to_owned(), version: 0, body: b"{\"request_id\": \"other\"}".to_vec() },
            ]
        };
        let loaded = store.load("requests", batch(), Existing::Fail).unwrap();
        assert_eq!((loaded.written, loaded.unchanged, loaded.skipped), (1, 0, 0));
        let kinds: Vec<_> = loaded.refused.iter().map(|(position, error)| (*position, error.kind)).collect();
        assert_eq!(kinds, [(1, ErrorKind::AlreadyExists), (2, ErrorKind::InvalidArgument)]);
        let loaded = store.load("requests", batch(), Existing::Skip).unwrap();
        assert_eq!((loaded.written, loaded.unchanged, loaded.skipped, loaded.refused.len()), (0, 1, 1, 1));
        assert_eq!(get(&mut store, "requests", "new").unwrap(), r#"{"request_id":"new","n":1E5,"version":7}"#);
        store.flush().unwrap();
        let mut other = place.open(config);
        assert_eq!(get(&mut other, "requests", "new").unwrap(), r#"{"request_id":"new","n":1E5,"version":7}"#);
        save(&mut other, "requests", "x", "");
        let loaded = store.load("requests", batch(), Existing::Overwrite).unwrap();
        assert_eq!((loaded.written, loaded.unchanged), (1, 1));
        assert_eq!(save(&mut store, "requests", "old", ""), 1, "1.0 is no version, so it counts as 0");
    }
}

#[test]
fn a_bulk_load_writes_the_document_once_whatever_the_batch() {
    let place = place();
    let mut store = place.open(SINGLE_JOURNAL);
    let filler = "x".repeat(1000);
    for batch in 0..400 {
        let entities =
            (0..100).map(|i| entity("requests", &format!("r{batch}-{i}"), &format!(", \"f\": \"{filler}\"")));
        store.load("requests", entities.collect(), Existing::Fail).unwrap();
    }
    store.flush().unwrap();
    store.close().unwrap();
    assert_eq!(place.open(SINGLE_JOURNAL).count("requests", None).unwrap(), Some(40_000));
    assert_eq!(place.disk.commits.get(), 1);
}

#[test]
fn who_has_only_read_a_document_writes_to_it_and_follows_others() {
    for config in [r#"{"write_buffer_size": 100000}"#, r#"{"write_buffer_size": 100000, "enable_compression": true}"#] {
        let place = place();
        let mut first = place.open(config);
        save(&mut first, "requests", "a", "");
        first.close().unwrap();
        let (mut writer, mut reader, mut late) = (place.open(config), place.open(config), place.open(config));
        for store in [&mut writer, &mut reader, &mut late] {
            assert!(get(store, "requests", "a").is_some());
        }
        save(&mut writer, "requests", "b", "");
        assert!(place.names().iter().any(|name| name.ends_with(".journal")), "it is not folded yet");
        for store in [&mut reader, &mut place.open(config)] {
            assert_eq!(store.count("requests", None).unwrap(), Some(2));
            assert!(get(store, "requests", "a").is_some() && get(store, "requests", "b").is_some());
        }
        save(&mut reader, "requests", "c", "");
        assert!(get(&mut writer, "requests", "c").is_some());
        // The one that looks again last finds a document that both are folded into.
        writer.close().unwrap();
        assert_eq!(late.count("requests", None).unwrap(), Some(3));
        save(&mut late, "requests", "d", "");
        assert_eq!(reader.count("requests", None).unwrap(), Some(4));
        reader.close().unwrap();
        assert_eq!(place.open(config).count("requests", None).unwrap(), Some(4));
    }
}

#[test]
fn an_edit_beside_a_journal_is_refused_until_somebody_chooses() {
    for (choice, has_edit, has_commit) in [
        (DOCUMENT.to_owned(), true, false),
        (format!("{DOCUMENT}+journal"), true, true),
        ("backup".to_owned(), false, false),
        ("backup+journal".to_owned(), false, true),
    ] {
        let place = place();
        let config = r#"{"write_buffer_size": 100000}"#;
        let mut store = place.open(config);
        save(&mut store, "requests", "a", "");
        store.close().unwrap();
        save(&mut store, "requests", "b", "");
        store.close().unwrap();
        save(&mut store, "requests", "c", "");
        let edited = place.read(DOCUMENT).replace("\"a\": {", "\"edited\": {\"request_id\": \"edited\"}, \"a\": {");
        place.write(DOCUMENT, &edited);
        for _ in 0..2 {
            let error = store.get("requests", &["a".to_owned()]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt);
            assert!(error.message.contains("held 1 commits that are not in it"), "{error}");
            let error = store.apply(vec![put("requests", "d", "", Expectation::Any)], true, NOW).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt);
        }
        let names: Vec<_> = store.restore_points().unwrap().into_iter().map(|point| point.name).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(names[..2], [format!("{DOCUMENT}+journal"), DOCUMENT.to_owned()]);
        let backup = &names[3];
        let choice = choice.replace("backup", backup);
        assert!(names.contains(&choice), "{names:?}");
        assert_eq!(store.restore("nothing").unwrap_err().kind, ErrorKind::NotFound);
        let done = store.restore(&choice).unwrap();
        assert_eq!(done.len(), 3, "{done:?}");
        assert_eq!(get(&mut store, "requests", "edited").is_some(), has_edit, "{choice}");
        assert_eq!(get(&mut store, "requests", "c").is_some(), has_commit, "{choice}");
        assert!(get(&mut store, "requests", "a").is_some());
        assert_eq!(get(&mut store, "requests", "b").is_some(), has_edit, "the backup is older");
        let kept = place.names();
        assert!(kept.iter().any(|name| name.contains("journal.bak-")), "{kept:?}");
        assert!(kept.iter().any(|name| name.contains(".bak-") && place.read(name) == edited), "{kept:?}");
        save(&mut store, "requests", "e", "");
        store.close().unwrap();
        assert!(place.open(config).count("requests", None).unwrap().unwrap() >= 2);
    }
}

#[test]
fn restoring_one_document_leaves_what_the_journal_has_for_others() {
    let place = place();
    let config = r#"{"storage_type": "split_files"}"#;
    let mut store = place.open(config);
    for i in 0..2 {
        save(&mut store, "requests", &format!("r{i}"), "");
        store.close().unwrap();
    }
    let writes = vec![put("requests", "r2", "", Expectation::Any), put("machines", "m", "", Expectation::Any)];
    store.apply(writes, true, NOW).unwrap();
    place.write("requests.json", "{");
    assert_eq!(store.get("requests", &["r0".to_owned()]).unwrap_err().kind, ErrorKind::Corrupt);
    let points = store.restore_points().unwrap();
    let point = points.iter().find(|point| !point.name.ends_with("+journal")).expect("a backup");
    assert!(point.name.starts_with("requests.json.bak-"), "{points:?}");
    store.restore(&point.name).unwrap();
    assert_eq!(store.count("requests", None).unwrap(), Some(1));
    assert!(get(&mut store, "machines", "m").is_some());
    store.close().unwrap();
    assert!(place.read("machines.json").contains("\"m\""));
}

#[test]
fn compressed_documents_of_any_maker_are_read_by_part_and_as_a_stream() {
    use std::io::Write as _;
    let mut entities = String::new();
    for i in 0..3000_u32 {
        // Ids that stand in another order than they sort.
        let id = i.wrapping_mul(2_654_435_761) % 100_000;
        let comma = if i == 0 { "" } else { "," };
        entities.push_str(&format!(
            "{comma}\n\"r{id}-{i}\": {{\"request_id\": \"r{id}-{i}\", \"i\": {i}, \"filler\": \"{}\"}}",
            format!("{id:x}").repeat(20)
        ));
    }
    let text = format!("{{\"others\": [1], \"requests\": {{{entities}}}}}");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    let foreign = encoder.finish().unwrap();
    let place = place();
    fs::create_dir_all(&place.disk.root).unwrap();
    let path = place.disk.root.join("request_database.json.gz");
    fs::write(&path, &foreign).unwrap();
    let config = r#"{"enable_compression": true, "backup_enabled": false, "cache_size": 10}"#;
    let mut store = place.open(config);
    for round in 0..2 {
        assert_eq!(store.count("requests", None).unwrap(), Some(3000 + round));
        let mut seen = BTreeSet::new();
        for segment in 0..3 {
            let mut cursor = None;
            loop {
                let batch = store.scan("requests", segment, 3, cursor.as_deref(), 10_000).unwrap();
                for entity in batch.entities {
                    let members = json::parse_object(&entity.body).unwrap();
                    assert_eq!(members["request_id"], entity.id.as_str());
                    assert!(seen.insert(entity.id));
                }
                match batch.next {
                    Some(next) => cursor = Some(next),
                    None => break,
                }
            }
        }
        assert_eq!(seen.len(), 3000 + round as usize);
        for id in [seen.first(), seen.last(), seen.iter().nth(1234)] {
            assert!(get(&mut store, "requests", id.unwrap()).unwrap().contains(id.unwrap().as_str()));
        }
        let page = store.find("requests", &query(Some("i>=2990"), &[("i", true)], 5)).unwrap();
        assert_eq!((page.entities.len(), page.entities[0].id.ends_with("-2999")), (5, true));
        save(&mut store, "requests", "new", "");
        store.close().unwrap();
        let written = fs::read(&path).unwrap();
        assert!(crate::gzip::block_size(&written).is_some(), "it is written in members");
        let mut back = String::new();
        std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(&*written), &mut back).unwrap();
        let back: Value = serde_json::from_str(&back).unwrap();
        assert_eq!((back["others"][0].as_u64(), back["requests"].as_object().unwrap().len()), (Some(1), 3001));
    }
    fs::write(&path, &foreign[..foreign.len() - 9]).unwrap();
    assert_eq!(place.open(config).count("requests", None).unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn an_index_finds_what_a_scan_finds_through_every_kind_of_change() {
    let place = place();
    let (mut store, mut other) = (place.open(SINGLE_JOURNAL), place.open(SINGLE_JOURNAL));
    for i in 0..300 {
        save(&mut store, "requests", &format!("r{i}"), &format!(", \"status\": \"s{}\"", i % 7));
    }
    let ids = |store: &mut JsonStore<Disk>, status: &str| {
        let indexed = store.find("requests", &query(Some(&format!("status={status}")), &[], 1000)).unwrap();
        assert_eq!(indexed.index_used.as_deref(), Some("by_status"));
        // An inequality is answered without one.
        let scanned = store.find("requests", &query(Some(&format!("status^={status}")), &[], 1000)).unwrap();
        assert_eq!(scanned.index_used, None);
        let ids = |page: larder_model::Page| page.entities.into_iter().map(|entity| entity.id).collect::<Vec<_>>();
        let (indexed, scanned) = (ids(indexed), ids(scanned));
        assert_eq!(indexed, scanned);
        indexed.len()
    };
    assert_eq!(ids(&mut store, "s3"), 43);
    assert_eq!(ids(&mut other, "s3"), 43);
    save(&mut other, "requests", "r3", r#", "status": "s4""#);
    save(&mut other, "requests", "r4", r#", "status": "s3""#);
    store.apply(vec![removal("requests", "r10", Expectation::Any)], true, NOW).unwrap();
    save(&mut store, "requests", "new", r#", "status": "s3""#);
    for store in [&mut store, &mut other] {
        assert_eq!((ids(store, "s3"), ids(store, "s4")), (43, 43));
    }
    store.close().unwrap();
    for store in [&mut store, &mut other] {
        assert_eq!((ids(store, "s3"), ids(store, "s4")), (43, 43));
    }
    let mut transaction = store.begin_transaction(false).unwrap();
    store
        .apply_in(&mut transaction, vec![put("requests", "tx", r#", "status": "s3""#, Expectation::Any)], NOW)
        .unwrap();
    let page = store.find_in(&mut transaction, "requests", &query(Some("status=s3"), &[], 1000)).unwrap();
    assert_eq!(page.entities.len(), 44);
}
