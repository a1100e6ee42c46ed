//! Processes that are killed while they write: what they were acknowledged is there, what they were about to do is there
//! as a whole or not at all, and the documents are whole once a command has ended.
//!
//! Several workers write to a store at once, each to entities of its own (see `tests/worker.rs`), and are killed one
//! after the other at moments that the seed chooses. Into documents the test looks by itself. `cargo xtask crash --kills N`
//! does that for as long as asked.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use larder::{Repository, Select};
use larder_model::json;
use serde_json::{Map, Value};

use crate::place::Choices;
use crate::support::{Folder, object};
use crate::workers::Worker;

/// Kills of the short form.
const KILLS: u64 = 30;
/// At one store at once.
const WORKERS: u64 = 3;
/// A worker is killed at one of so many of its first commits, or while it starts.
const COMMITS_MAX: u64 = 30;
/// And then so much later at most.
const MICROSECONDS_MAX: u64 = 5_000;
/// A store that holds more is left for an empty one, so that the last kills are not only about a large one.
const ENTITIES_MAX: usize = 2_000;

/// Each way to lay out documents, where a journal is folded often, and tables in databases and in DynamoDB.
const STORES: &str = r#"{
  "storage": {
    "strategy": "single",
    "stores": {
      "single": {"strategy": "json", "json_strategy": {"base_path": "@/single", "write_buffer_size": 4000}},
      "split": {"strategy": "json", "json_strategy": {"base_path": "@/split", "write_buffer_size": 4000, "storage_type": "split_files"}},
      "replaced": {"strategy": "json", "json_strategy": {"base_path": "@/replaced", "journal": false}},
      "compressed": {"strategy": "json", "json_strategy": {"base_path": "@/compressed", "write_buffer_size": 4000, "enable_compression": true}},
      "both": {"strategy": "json", "json_strategy": {"base_path": "@/both", "write_buffer_size": 4000, "storage_type": "split_files", "enable_compression": true}},
      "tables": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/tables.db", "constraints": "relaxed"}},
      "postgres_relaxed": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~relaxed~, "constraints": "relaxed", "pool_size": 2, "max_overflow": 4}},
      "dynamodb": {"strategy": "dynamodb", "dynamodb_strategy": {~tables~}}
    }
  }
}"#;

/// Of these, the ones that are documents, which are looked into.
const DOCUMENTS: [&str; 5] = ["single", "split", "replaced", "compressed", "both"];

/// Entities by collection and id.
type Content = BTreeMap<(String, String), Map<String, Value>>;

/// What a worker was acknowledged, over all of its lives.
#[derive(Default, Clone)]
struct Acknowledged {
    /// The last commit. Every one before it was acknowledged too, or found to be there.
    commit: u64,
    loads: BTreeSet<u64>,
}

impl Acknowledged {
    fn note(&mut self, line: &str) {
        let (what, number) = line.split_once(' ').expect("two words");
        let number: u64 = number.parse().expect("a number");
        match what {
            "commit" => {
                assert_eq!(number, self.commit + 1, "one commit after the other");
                self.commit = number;
            }
            "load" => assert!(self.loads.insert(number)),
            _ => panic!("{line}"),
        }
    }
}

/// A store and what is known of it.
struct Site {
    folder: Folder,
    store: &'static str,
    workers: Vec<Acknowledged>,
}

impl Site {
    fn new(store: &'static str) -> Site {
        Site {
            folder: Folder::for_store(STORES, store),
            store,
            workers: vec![Acknowledged::default(); WORKERS as usize],
        }
    }

    /// Lets all workers write, kills one after the other, and gives how many writes were acknowledged.
    fn write_and_kill(&mut self, choices: &mut Choices) -> u64 {
        let mut acknowledged = 0;
        let mut running: Vec<(usize, Worker)> = (0..self.workers.len())
            .map(|number| {
                let (name, first) = (format!("w{number}"), (self.workers[number].commit + 1).to_string());
                (number, Worker::start(&self.folder, self.store, &["commit", &name, &first]))
            })
            .collect();
        while !running.is_empty() {
            let (number, mut worker) = running.swap_remove(choices.below(running.len() as u64) as usize);
            let known = &mut self.workers[number];
            for _ in 0..choices.below(COMMITS_MAX) {
                known.note(&worker.next().expect("it goes on until it is killed"));
                acknowledged += 1;
            }
            std::thread::sleep(Duration::from_micros(choices.below(MICROSECONDS_MAX)));
            for line in worker.kill() {
                known.note(&line);
                acknowledged += 1;
            }
        }
        acknowledged
    }

    /// Holds what is stored against what was acknowledged; a commit that was under way may be there, as a whole.
    fn check(&mut self, content: &Content) {
        for (number, known) in self.workers.iter_mut().enumerate() {
            let name = format!("w{number}");
            let found = |collection: &str, id: String| content.get(&(collection.to_owned(), id));
            let number_in = |collection: &str, id: String| {
                found(collection, id).map_or(0, |it| it["n"].as_u64().expect("a number"))
            };
            let commit = number_in("requests", format!("{name}-a"));
            let at = format!("{name} in store {}, acknowledged up to {}", self.store, known.commit);
            assert!(commit == known.commit || commit == known.commit + 1, "{at}: {commit} is stored");
            assert_eq!(number_in("machines", format!("{name}-b")), commit, "{at}: a part of a commit");
            let sometimes =
                found("machines", format!("{name}-sometimes")).map(|it| it["n"].as_u64().expect("a number"));
            assert_eq!(sometimes, (commit % 2 == 1).then_some(commit), "{at}: a part of a commit");
            for n in 1..=commit {
                assert_eq!(number_in("requests", format!("{name}-own-{n}")), n, "{at}: {n} is lost");
            }
            assert!(found("requests", format!("{name}-own-{}", commit + 1)).is_none(), "{at}: a part of a commit");
            if commit > 0 {
                let version = &found("requests", format!("{name}-a")).expect("it has a number")["version"];
                assert_eq!(version.as_u64(), Some(commit), "{at}: each commit is a version");
            }
            let prefix = format!("{name}-loaded-");
            let loads: BTreeSet<u64> = content
                .keys()
                .filter_map(|(_, id)| id.strip_prefix(&prefix).map(|n| n.parse().expect("a number")))
                .collect();
            let more: Vec<_> = loads.difference(&known.loads).collect();
            assert!(loads.is_superset(&known.loads), "{at}: loads of {:?} are lost", known.loads.difference(&loads));
            assert!(more.is_empty() || more == [&known.commit], "{at}: loads {more:?} that nobody made");
            *known = Acknowledged { commit, loads };
        }
    }

    /// As the program prints it.
    fn exported(&self) -> Content {
        let run = self.folder.larder(&["export", "--store", self.store]).exits(0);
        let line = |line: &str| {
            let mut line = object(line);
            let Some(Value::Object(entity)) = line.remove("entity") else { panic!("{line:?}") };
            entry(line["collection"].as_str().expect("a name"), entity)
        };
        run.stdout.lines().map(line).collect()
    }

    /// As it stands in the documents, which are whole, with no journal beside them.
    fn documents(&self) -> Content {
        let mut content = Content::new();
        for name in self.folder.names(self.store) {
            assert!(!name.ends_with(".journal"), "a command left {name} in store {}", self.store);
            let path = self.folder.path().join(self.store).join(&name);
            let (stem, text) = match name.strip_suffix(".gz") {
                Some(stem) => (stem, decompressed(&std::fs::read(&path).expect("a document"))),
                None => (&*name, std::fs::read(&path).expect("a document")),
            };
            let Some(stem) = stem.strip_suffix(".json").filter(|stem| !stem.starts_with('.')) else { continue };
            let document = json::parse_wrapping(&text, 2).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let collections = match stem {
                "request_database" => document,
                collection => Map::from_iter([(collection.to_owned(), Value::Object(document))]),
            };
            for (collection, entities) in collections {
                let Value::Object(entities) = entities else { panic!("{collection} is no collection") };
                for entity in entities.into_iter().map(|(_, entity)| entity) {
                    let Value::Object(entity) = entity else { panic!("{collection} holds {entity}") };
                    content.extend([entry(&collection, entity)]);
                }
            }
        }
        content
    }
}

fn entry(collection: &str, entity: Map<String, Value>) -> ((String, String), Map<String, Value>) {
    let key = format!("{}_id", collection.strip_suffix('s').expect("a plural"));
    ((collection.to_owned(), entity[&key].as_str().expect("an id").to_owned()), entity)
}

fn decompressed(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut text).expect("gzip");
    text
}

/// As the library reads it.
async fn content(repository: &Repository) -> Content {
    let mut content = Content::new();
    for collection in ["templates", "requests", "machines"] {
        let found = repository.query(collection, Select::default()).collect().await.expect("a store that can be read");
        content.extend(found.iter().map(|entity| entry(collection, entity.fields().expect("an entity"))));
    }
    content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_every_kill() {
    let kills_max =
        std::env::var("LARDER_CRASH_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number of kills"));
    let mut choices = Choices::new();
    let mut sites: Vec<Site> =
        DOCUMENTS.into_iter().chain(["tables", "postgres_relaxed", "dynamodb"]).map(Site::new).collect();
    let (mut kills, mut acknowledged, mut round) = (0, 0, 0);
    while kills < kills_max {
        let count = sites.len();
        let site = &mut sites[round % count];
        round += 1;
        acknowledged += site.write_and_kill(&mut choices);
        kills += WORKERS;
        for database in site.folder.databases() {
            // The server goes on with what it was sent, until it notices that nobody is there.
            database.is_left_alone().await;
        }
        // By the library or by the program first: whoever opens it first repairs what is to be repaired.
        let content = match choices.below(2) {
            0 => content(&site.folder.open(site.store).await).await,
            _ => site.exported(),
        };
        site.check(&content);
        assert!(site.exported() == content, "the program does not print what the library reads");
        if DOCUMENTS.contains(&site.store) {
            assert!(site.documents() == content, "the documents do not hold what is read");
        }
        if content.len() > ENTITIES_MAX {
            *site = Site::new(site.store);
        }
    }
    println!("{kills} kills, {acknowledged} acknowledged writes, none lost");
    assert!(acknowledged > kills, "{acknowledged} writes for {kills} kills: that tells little");
}
