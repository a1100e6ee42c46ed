//! What reads data that others wrote, as functions of bytes: whatever they are, it ends soon, with an answer or an error,
//! and what it says of them is consistent.
//!
//! `cargo xtask fuzz` looks for bytes for which that is not so, guided by the coverage of the code that they reach.
//! `corpus/TARGET` holds some that reach much of it, and those that once were found; `tests/corpus.rs` replays them.

mod memory;

use std::path::Path;
use std::sync::OnceLock;

use flate2::Crc;
use larder::bare::{self, Components};
use larder::config::Config;
use larder_guest::Strategy;
use larder_model::filter::{self, Filter};
use larder_model::{Collection, Entity, ErrorKind, Expectation, Put, Query, Result, SortKey, Stamps, Write, json};
use larder_plugin_json::JsonStore;
use sha2::{Digest, Sha256};

pub use memory::Memory;

/// A function of bytes, by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("configuration", configuration),
    ("filter_text", filter_text),
    ("filter_json", filter_json),
    ("component", component),
    ("json_document", json_document),
    ("json_journal", json_journal),
    ("checkpoint", checkpoint),
    ("cursor", cursor),
];

/// `larder.json`. What is valid can be shown, is valid as it is shown, and names no store that cannot be had.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = Config::from_text(text, Path::new("/base")) else { return };
    assert!(config.store(None).is_ok(), "the default store of a valid configuration");
    for store in config.stores() {
        assert!(config.store(Some(&store.name)).is_ok(), "{}", store.name);
        let _ = (store.identity(), format!("{:?}", store.grants));
    }
    let _ = config.show();
}

/// Filters, paths and sort keys as on a command line.
pub fn filter_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(filter) = filter::parse_expression(text) {
        check_filter(&filter);
    }
    let _ = text.parse::<SortKey>();
}

/// Filters as JSON.
pub fn filter_json(data: &[u8]) {
    let Ok(value) = json::parse(data) else { return };
    if let Ok(filter) = filter::parse_json(&value) {
        check_filter(&filter);
    }
}

/// It crosses to a plugin and comes back as the same, and can be asked about anything.
fn check_filter(filter: &Filter) {
    let nodes = filter::to_arena(Some(filter));
    let back = filter::from_arena(nodes.clone()).expect("what was made of a filter is one").expect("and not nothing");
    assert_eq!(format!("{:?}", filter::to_arena(Some(&back))), format!("{nodes:?}"));
    let count = filter::conjunct_nodes(&nodes).len();
    assert_eq!(count, filter.conjuncts().len());
    for entity in [
        "{}",
        r#"{"a":1,"b":{"c":[1.0,"x",null,true]},"status":"PENDING","n":-0.0,"e":1e400}"#,
        r#"{"a":"1","b":null,"status":["PENDING"],"n":123456789012345678901234567890}"#,
    ] {
        let entity = json::parse_object(entity.as_bytes()).expect("an entity");
        assert_eq!(filter.matches(&entity), back.matches(&entity));
        assert_eq!(Filter::Not(Box::new(filter.clone())).matches(&entity), !filter.matches(&entity));
    }
}

/// A file in the plugins directory, up to where something of it would run.
pub fn component(data: &[u8]) {
    static COMPONENTS: OnceLock<Components> = OnceLock::new();
    let components = COMPONENTS.get_or_init(|| Components::new().expect("an engine"));
    let _ = components.examine(data);
}

/// The state of a migration: as it is, and with the checksum of what it holds, which no mutation would hit.
pub fn checkpoint(data: &[u8]) {
    let _ = bare::checkpoint(data);
    let body = data.splitn(2, |byte| *byte == b'\n').nth(1).unwrap_or(data);
    let head = data.split(|byte| *byte == b'\n').next().and_then(|head| head.split(|byte| *byte == b' ').next());
    let digest: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    let text = [head.unwrap_or_default(), b" ", digest.as_bytes(), b"\n", body].concat();
    if let Some(again) = bare::checkpoint(&text) {
        assert_eq!(bare::checkpoint(&again), Some(again.clone()), "a state is read as it was written");
    }
}

/// Where a page of a query ended: as it is, and with the checksum that belongs to it.
pub fn cursor(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = bare::is_cursor(text);
    }
    if let Some(cursor) = bare::cursor(data) {
        assert!(bare::is_cursor(&cursor), "what was written is read");
    }
}

/// A document that somebody has edited, alone or compressed: it is refused and left as it is, or all of it is read, and what
/// a write does not touch is there after it.
pub fn json_document(data: &[u8]) {
    let files = Memory::default();
    let name = if data.starts_with(&[0x1f, 0x8b]) { "request_database.json.gz" } else { "request_database.json" };
    files.put(name, data);
    check_store(&files, name, data);
}

/// A journal beside a document: as it is, and each line with the length and the checksum that belong to it.
pub fn json_journal(data: &[u8]) {
    let document = br#"{"requests":{"a":{"request_id":"a","n":1}},"others":{"x":1}}"#;
    for text in [data.to_vec(), framed(data, document)] {
        let files = Memory::default();
        files.put("request_database.json", document);
        files.put(".request_database.json.journal", &text);
        check_store(&files, ".request_database.json.journal", &text);
    }
}

/// Lines of JSON as records of a journal that begins with the id `0`, and belongs to the document.
fn framed(data: &[u8], document: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(document);
    let text = format!(r#"{{"bytes":{},"crc32":{}}}"#, document.len(), crc.sum());
    let base = format!(r#"{{"base":{{"document":"request_database.json","text":{text}}}}}"#);
    let start = br#"{"start":{"format":1,"id":"0"}}"#;
    let mut journal = Vec::new();
    for line in [&start[..], base.as_bytes()].into_iter().chain(data.split(|byte| *byte == b'\n')) {
        let mut crc = Crc::new();
        crc.update(b"0");
        crc.update(line);
        journal.extend_from_slice(format!("{:08x} {} ", crc.sum(), line.len()).as_bytes());
        journal.extend_from_slice(line);
        journal.push(b'\n');
    }
    journal
}

fn collections() -> Vec<Collection> {
    let collection = |name: &str, key: &str| Collection {
        name: name.to_owned(),
        key: key.to_owned(),
        stamps: Stamps {
            version: "version".to_owned(),
            created: Some("created_at".to_owned()),
            updated: Some("updated_at".to_owned()),
            adds_updated: true,
        },
        fields: Vec::new(),
        indexes: vec![larder_model::Index { name: "status".to_owned(), fields: vec!["status".to_owned()] }],
        references: Vec::new(),
    };
    vec![collection("requests", "request_id"), collection("machines", "machine_id")]
}

fn open(files: &Memory) -> Result<JsonStore<Memory>> {
    JsonStore::open_in(files.clone(), r#"{"storage_type":"single_file"}"#, collections()).map(|(store, _)| store)
}

/// Everything that can be read of a store: by scan, and the same by find, get and count.
fn content(store: &mut JsonStore<Memory>) -> Result<Vec<(String, Entity)>> {
    let mut all = Vec::new();
    for Collection { name, .. } in collections() {
        let mut cursor = None;
        let mut scanned = Vec::new();
        loop {
            let batch = Strategy::scan(store, &name, 0, 1, cursor.as_deref(), 1 << 20)?;
            scanned.extend(batch.entities);
            match batch.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(Strategy::count(store, &name, None)?, Some(scanned.len() as u64));
        let query = Query {
            filter: Some(filter::parse_expression("status=PENDING")?),
            order_by: Vec::new(),
            limit: 1000,
            max_bytes: 1 << 20,
            index: None,
            cursor: None,
        };
        Strategy::find(store, &name, &query)?;
        let ids: Vec<String> = scanned.iter().map(|entity| entity.id.clone()).collect();
        for (scanned, got) in scanned.iter().zip(Strategy::get(store, &name, &ids)?) {
            assert_eq!(got.as_ref().map(|got| &got.body), Some(&scanned.body), "{name} {:?}", scanned.id);
        }
        all.extend(scanned.into_iter().map(|entity| (name.clone(), entity)));
    }
    all.sort_by(|a, b| (&a.0, &a.1.id).cmp(&(&b.0, &b.1.id)));
    Ok(all)
}

fn check_store(files: &Memory, name: &str, data: &[u8]) {
    let Ok(mut store) = open(files) else { return };
    let _ = Strategy::check(&mut store, true);
    let _ = Strategy::stored_collections(&mut store);
    let _ = Strategy::restore_points(&mut store);
    let before = content(&mut store);
    let saved = save(&mut store);
    let before = match before {
        Ok(before) => before,
        Err(error) => {
            // Damaged, so nothing is made of it; or a part of it is no entity, and others can still be written.
            if saved.is_err() && error.kind == ErrorKind::Corrupt {
                assert_eq!(files.get(name).as_deref(), Some(data), "what cannot be read is left as it is");
            }
            return;
        }
    };
    if saved.is_err() {
        return;
    }
    Strategy::flush(&mut store).expect("a store that took a write");
    Strategy::close(&mut store).expect("a store that took a write");
    let mut again = open(files).expect("a store that was closed");
    let after = content(&mut again).expect("a store that was closed");
    let is_other = |(collection, entity): &&(String, Entity)| collection != "requests" || entity.id != "saved";
    let (before, after): (Vec<_>, Vec<_>) =
        (before.iter().filter(is_other).collect(), after.iter().filter(is_other).collect());
    assert_eq!(before, after, "what no write has touched");
    assert!(
        Strategy::get(&mut again, "requests", &["saved".to_owned()]).expect("a store that was closed")[0].is_some()
    );
}

fn save(store: &mut JsonStore<Memory>) -> Result<()> {
    let put = Put {
        collection: "requests".to_owned(),
        id: "saved".to_owned(),
        body: br#"{"request_id":"saved","status":"PENDING"}"#.to_vec(),
        expect: Expectation::Any,
    };
    Strategy::apply(store, vec![Write::Put(put)], true, "2026-01-01T00:00:00.000000Z").map(drop)
}
