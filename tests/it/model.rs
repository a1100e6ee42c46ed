//! Random sequences of operations, carried out by several handles on a store and by a reference in memory, which must
//! agree on every answer, every error and everything that is stored.
//!
//! The reference is written from the contract and shares no code with what it checks: of the product it uses the reading
//! and comparing of JSON, and the meaning of filters and orders, which [`crate::queries`] checks by itself.
//!
//! The times that a write stamps are not known beforehand. In the reference they are placeholders, one a write; the first
//! answer that shows one says what it stands for, and from then on it must stay that.
//!
//! A failure is made smaller and printed with its seed. `LARDER_TEST_SEED` runs that seed again, `LARDER_SOAK_SECONDS`
//! runs fresh ones for so long.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use larder::query::Select;
use larder::repository::Repository;
use larder_model::filter::{Comparison, Filter, Scalar};
use larder_model::path::Path;
use larder_model::{Entity, ErrorKind, Existing, Expectation, Isolation, Outcome, Put, Removal, SortKey, Write, json};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use proptest_state_machine::ReferenceStateMachine;
use serde_json::{Map, Value};
use tokio::runtime::Runtime;

use crate::support::Folder;

/// A way to store that the model runs against.
trait Place: Debug + 'static {
    /// What the test is called.
    const NAME: &'static str;
    /// The store in [`STORES`].
    const STORE: &'static str;
    /// Whether required members, lengths and references are enforced.
    const STRICT: bool;
}

macro_rules! run_against {
    ($($test:ident: $store:literal, strict: $strict:literal;)*) => {
        $(
            #[test]
            fn $test() {
                #[derive(Debug)]
                struct Here;
                impl Place for Here {
                    const NAME: &'static str = stringify!($test);
                    const STORE: &'static str = $store;
                    const STRICT: bool = $strict;
                }
                run::<Here>();
            }
        )*
    };
}

run_against! {
    json_single_file: "single", strict: false;
    json_split_files: "split", strict: false;
    sql_sqlite_strict: "strict", strict: true;
    sql_sqlite_relaxed: "relaxed", strict: false;
    sql_postgres_strict: "postgres_strict", strict: true;
    sql_postgres_relaxed: "postgres_relaxed", strict: false;
    dynamodb: "dynamodb", strict: false;
}

/// Every way to store, and a collection that names its members as nobody else does and keeps no times.
const STORES: &str = r#"{
  "storage": {
    "strategy": "single",
    "stores": {
      "single": {"strategy": "json", "json_strategy": {"base_path": "@/single", "sync_writes": false}},
      "split": {
        "strategy": "json",
        "json_strategy": {"storage_type": "split_files", "base_path": "@/split", "sync_writes": false}
      },
      "strict": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/strict.db"}},
      "relaxed": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/relaxed.db", "constraints": "relaxed"}},
      "postgres_strict": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~strict~}},
      "postgres_relaxed": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~relaxed~, "constraints": "relaxed"}},
      "dynamodb": {"strategy": "dynamodb", "dynamodb_strategy": {~tables~}}
    },
    "collections": {
      "parts": {
        "key": "Part No",
        "version": "revision",
        "created_at": false,
        "updated_at": false,
        "fields": {
          "template": {"type": "text", "max_length": 255},
          "note": {"type": "text", "max_length": 10},
          "count": {"type": "integer"},
          "weight": {"type": "number"},
          "ok": {"type": "boolean"},
          "seen": {"type": "timestamp"},
          "data": {"type": "json"}
        },
        "indexes": {"by count": ["count", "note"]},
        "references": {"template": "templates"}
      }
    }
  }
}"#;

/// Sequences of an ordinary run.
const SEQUENCES: u32 = 20;
/// The most steps in a sequence.
const STEPS_MAX: usize = 50;
/// Handles on the store.
const CLIENTS: usize = 3;

/// What the contract says of a collection, in the reference's own words.
struct Rules {
    name: &'static str,
    key: &'static str,
    version: &'static str,
    created: Option<&'static str>,
    updated: Option<&'static str>,
    adds_updated: bool,
    required: &'static [&'static str],
    lengths: &'static [(&'static str, usize)],
    references: &'static [(&'static str, usize)],
    /// Members that have a column and need not be there.
    optional: &'static [&'static str],
}

const TEMPLATES: usize = 0;
const REQUESTS: usize = 1;

/// Those that are referred to first.
static COLLECTIONS: [Rules; 4] = [
    Rules {
        name: "templates",
        key: "template_id",
        version: "version",
        created: Some("created_at"),
        updated: Some("updated_at"),
        adds_updated: true,
        required: &["name", "provider_api", "vm_type", "max_number"],
        lengths: &[("name", 255), ("provider_api", 50), ("vm_type", 50), ("image_id", 255)],
        references: &[],
        optional: &["image_id", "subnet_ids", "attributes"],
    },
    Rules {
        name: "requests",
        key: "request_id",
        version: "version",
        created: Some("created_at"),
        updated: Some("updated_at"),
        adds_updated: true,
        required: &["template_id", "machine_count", "status", "request_type"],
        lengths: &[("status", 50), ("request_type", 50)],
        references: &[("template_id", TEMPLATES)],
        optional: &["completed_at", "tags", "metadata"],
    },
    Rules {
        name: "machines",
        key: "machine_id",
        version: "version",
        created: Some("created_at"),
        updated: Some("updated_at"),
        adds_updated: false,
        required: &["request_id", "template_id", "status"],
        lengths: &[("status", 50), ("private_ip", 45)],
        references: &[("request_id", REQUESTS), ("template_id", TEMPLATES)],
        optional: &["private_ip", "started_at", "instance_type"],
    },
    Rules {
        name: "parts",
        key: "Part No",
        version: "revision",
        created: None,
        updated: None,
        adds_updated: false,
        required: &[],
        lengths: &[("note", 10)],
        references: &[("template", TEMPLATES)],
        optional: &["note", "count", "weight", "ok", "seen", "data"],
    },
];

impl Rules {
    fn refers(&self, member: &str) -> bool {
        self.references.iter().any(|(field, _)| *field == member)
    }

    fn stamps(&self, member: &str) -> bool {
        [Some(self.key), Some(self.version), self.created, self.updated].contains(&Some(member))
    }

    /// Names of members that may hold anything, with and without a column.
    fn members(&self) -> Vec<&'static str> {
        let undeclared = ["extra", "a.b", "", "Name", "名前", "version", "updated_at"];
        let declared = self.required.iter().filter(|name| !self.refers(name)).chain(self.optional).copied();
        declared.chain(undeclared.into_iter().filter(|name| !self.stamps(name))).collect()
    }
}

/// Few, so that sequences meet, and none of them easy to keep.
const IDS: &[&str] = &["a", "A", "é/../b", "'\"; --%", "7", "e\u{301}"];

/// The id in a body that is not the one it is given under.
const ANOTHER: &str = "another";

/// What members hold.
const VALUES: &[&str] = &[
    "1",
    "\"a\"",
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1.0",
    "-0",
    "1e400",
    "0.30000000000000004",
    "9007199254740993",
    "9223372036854775808",
    "1234567890123456789012345678901234567890",
    "\"\"",
    "\"A\"",
    "\"1\"",
    "\"1.0\"",
    "\"null\"",
    "\"it's é 漢 🦀\"",
    "\"\\u0000\\n\\u001f\"",
    "\"2026-03-01\"",
    "\"2026-03-01T08:00:00Z\"",
    "\"{}\"",
    "[]",
    "{}",
    "[1,1.0,\"a\",null,[{}]]",
    "{\"x\":1,\"y\":{\"z\":null}}",
    "{\"x\":\"a\",\"\":[]}",
];

/// What is no entity in any collection.
const NO_ENTITIES: &[&str] = &[
    "",
    "null",
    "[]",
    "{}",
    "{",
    "{\"template_id\":\"a\",\"template_id\":\"a\"}",
    "{\"Part No\":\"a\",\"x\":{\"y\":1,\"\\u0079\":2}}",
    "{\"Part No\":\"a\",\"x\":\"\\ud800\"}",
    "{\"Part No\":\"\"}",
    "{\"Part No\":\"a\\n\"}",
    "{\"Part No\":7}",
    "{\"Part No\":\"a\",\"x\":01}",
    "{\"Part No\":\"a\"} {}",
];

/// A version that is named in a call, relative to the stored one, so that it means the same in a shorter sequence.
#[derive(Debug, Clone, Copy)]
enum Guess {
    Right,
    Older,
    Newer,
    Zero,
}

impl Guess {
    fn number(self, stored: Option<u64>) -> u64 {
        let stored = stored.unwrap_or(1);
        match self {
            Guess::Right => stored,
            Guess::Older => stored.saturating_sub(1),
            Guess::Newer => stored + 1,
            Guess::Zero => 0,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Expect {
    Any,
    Absent,
    Present,
    Version(Guess),
}

impl Expect {
    fn resolve(self, stored: Option<u64>) -> Expectation {
        match self {
            Expect::Any => Expectation::Any,
            Expect::Absent => Expectation::Absent,
            Expect::Present => Expectation::Present,
            Expect::Version(guess) => Expectation::Version(guess.number(stored)),
        }
    }
}

/// A change of one entity by a function of its own.
#[derive(Debug, Clone)]
struct Change {
    collection: usize,
    id: String,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Save { body: String, expect: Expect },
    Update { body: String, version: Option<Guess> },
    UpdateIf { body: String, version: Option<Guess>, condition: Filter },
    Patch { patch: Map<String, Value>, version: Option<Guess>, condition: Option<Filter> },
    Delete { version: Option<Guess> },
}

/// One write of an `apply`. The collection behind the last is one that nobody configured.
#[derive(Debug, Clone)]
struct Item {
    collection: usize,
    id: String,
    /// None removes.
    body: Option<String>,
    expect: Expect,
}

/// An id and a body to load, or what is stored under the id as it is.
type Loading = (String, Option<String>);

#[derive(Debug, Clone)]
enum Question {
    Get { collection: usize, ids: Vec<String> },
    Count { collection: usize, filter: Option<Filter> },
    Query { collection: usize, filter: Option<Filter>, order_by: Vec<SortKey>, limit: Option<u64> },
}

#[derive(Debug, Clone)]
enum Inside {
    Change(Change),
    Apply(Vec<Item>),
    Ask(Question),
    /// By another client, who sees nothing of it.
    Peek {
        collection: usize,
        id: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commit,
    Rollback,
    Drop,
}

#[derive(Debug, Clone)]
enum Op {
    Change(Change),
    Apply {
        items: Vec<Item>,
        atomic: bool,
    },
    Load {
        collection: usize,
        entities: Vec<(String, Option<String>)>,
        existing: Existing,
    },
    Ask(Question),
    Transaction {
        isolation: Option<Isolation>,
        read_only: bool,
        steps: Vec<Inside>,
        end: End,
    },
    /// A call with an argument that no strategy takes.
    Wrong {
        call: usize,
        collection: usize,
        id: String,
    },
    Reopen,
    CompareAll,
}

/// An operation and the handle that carries it out.
#[derive(Debug, Clone)]
struct Step {
    client: usize,
    op: Op,
}

/// Why a call must fail.
#[derive(Debug, Clone, PartialEq)]
struct Refusal {
    kind: ErrorKind,
    current_version: Option<u64>,
}

fn refuse(kind: ErrorKind) -> Refusal {
    Refusal { kind, current_version: None }
}

type Fields = Map<String, Value>;
type Collection = BTreeMap<String, Fields>;

/// What must be stored.
#[derive(Debug, Clone)]
struct World {
    strict: bool,
    collections: [Collection; 4],
    /// How many moments were stamped.
    moments: u64,
}

/// What a placeholder for a time begins with. No value of a test does.
const MOMENT: &str = "\u{10ffff}moment ";

fn moment_of(value: &Value) -> Option<u64> {
    value.as_str()?.strip_prefix(MOMENT)?.parse().ok()
}

/// An integer from 0 to the largest that 63 bits hold, and spelt as one.
fn usable_version(value: Option<&Value>) -> Option<u64> {
    let text = value?.as_number()?.as_str();
    let version = text.parse().ok().filter(|version| *version <= i64::MAX as u64)?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(version)
}

/// RFC 7396.
fn merge(target: Option<&Value>, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut merged = target.and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, value) in patch {
        let old = merged.remove(name);
        if !value.is_null() {
            merged.insert(name.clone(), merge(old.as_ref(), value));
        }
    }
    Value::Object(merged)
}

impl World {
    fn version(&self, collection: usize, id: &str) -> Option<u64> {
        let fields = self.collections.get(collection)?.get(id)?;
        Some(usable_version(fields.get(COLLECTIONS[collection].version)).unwrap_or(0))
    }

    /// What the host's clock says now.
    fn moment(&mut self) -> Value {
        self.moments += 1;
        Value::from(format!("{MOMENT}{}", self.moments))
    }

    fn outcome(&self, collection: usize, id: &str, before: Option<u64>) -> Outcome {
        let version = self.version(collection, id).or(before).unwrap_or(0);
        Outcome { version, existed: before.is_some() }
    }

    /// The members of a body that is an entity of this collection and id.
    fn entity(collection: usize, id: &str, body: &str) -> Result<Fields, Refusal> {
        let invalid = refuse(ErrorKind::InvalidArgument);
        let fields = json::parse_object(body.as_bytes()).map_err(|_| invalid.clone())?;
        match fields.get(COLLECTIONS[collection].key) {
            Some(Value::String(key)) if key == id => Ok(fields),
            _ => Err(invalid),
        }
    }

    /// The members of a body that can be saved.
    fn writable(collection: usize, id: &str, body: &str) -> Result<Fields, Refusal> {
        let fields = World::entity(collection, id, body)?;
        let version = fields.get(COLLECTIONS[collection].version);
        match version.is_some() && usable_version(version).is_none() {
            true => Err(refuse(ErrorKind::InvalidArgument)),
            false => Ok(fields),
        }
    }

    fn meets(&self, collection: usize, id: &str, expect: Expectation) -> Result<(), Refusal> {
        match (expect, self.version(collection, id)) {
            (Expectation::Absent, Some(_)) => Err(refuse(ErrorKind::AlreadyExists)),
            (Expectation::Present | Expectation::Version(_), None) => Err(refuse(ErrorKind::NotFound)),
            (Expectation::Version(expected), Some(stored)) if expected != stored => {
                Err(Refusal { kind: ErrorKind::VersionConflict, current_version: Some(stored) })
            }
            _ => Ok(()),
        }
    }

    /// Whether the entity keeps the rules of a strict store.
    fn keeps_rules(&self, collection: usize, fields: &Fields) -> bool {
        let rules = &COLLECTIONS[collection];
        let is_there = |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null());
        let fits = |(name, chars): &(&str, usize)| {
            fields.get(*name).and_then(Value::as_str).is_none_or(|text| text.chars().count() <= *chars)
        };
        rules.required.iter().all(is_there) && rules.lengths.iter().all(fits)
    }

    fn keeps_references(&self, collection: usize, fields: &Fields) -> bool {
        COLLECTIONS[collection].references.iter().all(|(name, target)| match fields.get(*name) {
            None | Some(Value::Null) => true,
            Some(Value::String(id)) => self.collections[*target].contains_key(id),
            Some(other) => panic!("a reference is made of text or null, not {other}"),
        })
    }

    fn is_referred_to(&self, collection: usize, id: &str) -> bool {
        COLLECTIONS.iter().zip(&self.collections).any(|(rules, entities)| {
            rules
                .references
                .iter()
                .filter(|(_, target)| *target == collection)
                .any(|(name, _)| entities.values().any(|fields| fields.get(*name).and_then(Value::as_str) == Some(id)))
        })
    }

    fn put(
        &mut self,
        collection: usize,
        id: &str,
        mut fields: Fields,
        expect: Expectation,
        now: &Value,
    ) -> Result<Outcome, Refusal> {
        self.meets(collection, id, expect)?;
        let rules = &COLLECTIONS[collection];
        let before = self.version(collection, id);
        let stored = self.collections[collection].get(id);
        let brought = usable_version(fields.get(rules.version)).filter(|version| *version > 0);
        let version = match before {
            None => brought.unwrap_or(1),
            // The largest is followed by the first again.
            Some(version) if version == i64::MAX as u64 => 1,
            Some(version) => version + 1,
        };
        fields.insert(rules.version.to_owned(), version.into());
        if let Some(created) = rules.created {
            let kept = match stored {
                None => Some(now.clone()),
                Some(stored) => stored.get(created).cloned(),
            };
            if let (None, Some(time)) = (fields.get(created), kept) {
                fields.insert(created.to_owned(), time);
            }
        }
        if let Some(updated) = rules.updated {
            let has = fields.contains_key(updated) || stored.is_some_and(|stored| stored.contains_key(updated));
            if rules.adds_updated || has {
                fields.insert(updated.to_owned(), now.clone());
            }
        }
        if self.strict && !(self.keeps_rules(collection, &fields) && self.keeps_references(collection, &fields)) {
            return Err(refuse(ErrorKind::Rejected));
        }
        self.collections[collection].insert(id.to_owned(), fields);
        Ok(self.outcome(collection, id, before))
    }

    fn remove(&mut self, collection: usize, id: &str, expect: Expectation) -> Result<Outcome, Refusal> {
        self.meets(collection, id, expect)?;
        let before = self.version(collection, id);
        if self.strict && before.is_some() && self.is_referred_to(collection, id) {
            return Err(refuse(ErrorKind::Rejected));
        }
        self.collections[collection].remove(id);
        Ok(self.outcome(collection, id, before))
    }

    fn change(&mut self, change: &Change) -> Result<Outcome, Refusal> {
        let Change { collection, ref id, ref what } = *change;
        let now = self.moment();
        let stored = self.version(collection, id);
        let wanted = |version: &Option<Guess>| match version {
            Some(guess) => Expectation::Version(guess.number(stored)),
            None => Expectation::Present,
        };
        let holds = |world: &World, condition: &Filter| match world.collections[collection].get(id) {
            None => Err(refuse(ErrorKind::NotFound)),
            Some(fields) if condition.matches(fields) => Ok(()),
            Some(_) => Err(Refusal { kind: ErrorKind::VersionConflict, current_version: stored }),
        };
        match what {
            What::Save { body, expect } => {
                // The id is what the body says.
                let fields = World::writable(collection, id, body)?;
                self.put(collection, id, fields, expect.resolve(stored), &now)
            }
            What::Update { body, version } => {
                let fields = World::writable(collection, id, body)?;
                self.put(collection, id, fields, wanted(version), &now)
            }
            What::UpdateIf { body, version, condition } => {
                let fields = World::writable(collection, id, body)?;
                self.meets(collection, id, wanted(version))?;
                holds(self, condition)?;
                self.put(collection, id, fields, wanted(version), &now)
            }
            What::Patch { patch, version, condition } => {
                self.meets(collection, id, wanted(version))?;
                holds(self, condition.as_ref().unwrap_or(&Filter::All(Vec::new())))?;
                let rules = &COLLECTIONS[collection];
                let mut target = self.collections[collection][id].clone();
                // What others left there and is no version is not the caller's fault.
                if usable_version(target.get(rules.version)).is_none() {
                    target.remove(rules.version);
                }
                let merged = merge(Some(&target.into()), &patch.clone().into());
                let fields = World::writable(collection, id, &merged.to_string())?;
                self.put(collection, id, fields, wanted(version), &now)
            }
            What::Delete { version } => {
                let expect = version.map_or(Expectation::Any, |guess| Expectation::Version(guess.number(stored)));
                self.remove(collection, id, expect)
            }
        }
    }

    fn item(&mut self, item: &Item, now: &Value) -> Result<Outcome, Refusal> {
        let Item { collection, ref id, ref body, expect } = *item;
        if collection >= COLLECTIONS.len() {
            return Err(refuse(ErrorKind::InvalidArgument));
        }
        let expect = expect.resolve(self.version(collection, id));
        match body {
            Some(body) => {
                let fields = World::writable(collection, id, body)?;
                self.put(collection, id, fields, expect, now)
            }
            None => self.remove(collection, id, expect),
        }
    }

    /// The calls that the items are, and what each must answer; all or nothing is the caller's to judge.
    fn items(&mut self, items: &[Item], atomic: bool) -> Vec<(Write, Result<Outcome, Refusal>)> {
        let now = self.moment();
        let mut seen = HashSet::new();
        let answer = |item: &Item| {
            let collection = COLLECTIONS.get(item.collection).map_or("nowhere", |rules| rules.name).to_owned();
            let (id, expect) = (item.id.clone(), item.expect.resolve(self.version(item.collection, &item.id)));
            let write = match &item.body {
                Some(body) => Write::Put(Put { collection, id, body: body.clone().into_bytes(), expect }),
                None => Write::Remove(Removal { collection, id, expect }),
            };
            let twice = !seen.insert((item.collection, item.id.clone())) && atomic;
            let answer = if twice { Err(refuse(ErrorKind::InvalidArgument)) } else { self.item(item, &now) };
            (write, answer)
        };
        items.iter().map(answer).collect()
    }

    /// What `load` must say of each entity: written, unchanged, skipped or refused.
    fn load(&mut self, collection: usize, id: &str, given: Result<Fields, Refusal>, existing: Existing) -> Became {
        let fields = match given {
            Ok(fields) => fields,
            Err(refusal) => return Became::Refused(refusal.kind),
        };
        let stored = self.collections[collection].get(id);
        if self.strict && !self.keeps_rules(collection, &fields) {
            return Became::Refused(ErrorKind::Rejected);
        }
        match (stored, existing) {
            (Some(stored), _) if json::equal_objects(stored, &fields) => return Became::Unchanged,
            (Some(_), Existing::Skip) => return Became::Skipped,
            (Some(_), Existing::Fail) => return Became::Refused(ErrorKind::AlreadyExists),
            _ => {}
        }
        if self.strict && !self.keeps_references(collection, &fields) {
            return Became::Refused(ErrorKind::Rejected);
        }
        self.collections[collection].insert(id.to_owned(), fields);
        Became::Written
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Became {
    Written,
    Unchanged,
    Skipped,
    Refused(ErrorKind),
}

/// What a step of a transaction must answer.
#[derive(Debug)]
enum Answer {
    Change {
        stored: Option<u64>,
        result: Result<Outcome, Refusal>,
    },
    /// Refused before the writes are looked at.
    Apply {
        calls: Vec<(Write, Result<Outcome, Refusal>)>,
        refused: bool,
    },
    Ask {
        failed_before: bool,
        content: Box<World>,
    },
}

/// What a whole operation must answer.
#[derive(Debug)]
enum Planned {
    Change { stored: Option<u64>, result: Result<Outcome, Refusal> },
    Apply(Vec<(Write, Result<Outcome, Refusal>)>),
    Load(Vec<Became>),
    Transaction { answers: Vec<Answer>, failed: bool },
    Nothing,
}

impl World {
    /// What the operation makes of the world, and what it must answer.
    fn plan(mut self, op: &Op) -> (World, Planned) {
        let planned = match op {
            Op::Change(change) => {
                let stored = self.version(change.collection, &change.id);
                Planned::Change { stored, result: self.change(change) }
            }
            Op::Apply { items, atomic } => {
                let before = self.clone();
                let calls = self.items(items, *atomic);
                if *atomic && calls.iter().any(|(_, answer)| answer.is_err()) {
                    self.collections = before.collections;
                }
                Planned::Apply(calls)
            }
            Op::Load { collection, entities, existing } => {
                let before = self.collections[*collection].clone();
                let load = |(id, body): &Loading| {
                    let given = match body {
                        Some(body) => World::entity(*collection, id, body),
                        None => before.get(id).cloned().ok_or_else(|| refuse(ErrorKind::InvalidArgument)),
                    };
                    self.load(*collection, id, given, *existing)
                };
                Planned::Load(entities.iter().map(load).collect())
            }
            Op::Transaction { steps, end, read_only, .. } => {
                let before = self.clone();
                let mut failed = false;
                let mut answers = Vec::new();
                for step in steps {
                    answers.push(match step {
                        Inside::Change(change) => {
                            let stored = self.version(change.collection, &change.id);
                            let mut result = self.change(change);
                            // What the host refuses, or does not find, has not reached the transaction.
                            let is_patch = matches!(change.what, What::Patch { .. });
                            let reached = result.as_ref().err().is_none_or(|refusal| {
                                refusal.kind != ErrorKind::InvalidArgument
                                    && !(is_patch && refusal.kind == ErrorKind::NotFound)
                            });
                            if failed || reached && *read_only {
                                result = Err(refuse(ErrorKind::InvalidArgument));
                            } else if reached {
                                failed = result.is_err();
                            }
                            if *read_only {
                                self.collections = before.collections.clone();
                            }
                            Answer::Change { stored, result }
                        }
                        Inside::Apply(items) => {
                            let calls = self.items(items, true);
                            let refused = failed || *read_only;
                            failed |= !read_only && calls.iter().any(|(_, answer)| answer.is_err());
                            if *read_only {
                                self.collections = before.collections.clone();
                            }
                            Answer::Apply { calls, refused }
                        }
                        Inside::Ask(_) | Inside::Peek { .. } => {
                            Answer::Ask { failed_before: failed, content: Box::new(self.clone()) }
                        }
                    });
                }
                if failed || *end != End::Commit {
                    self.collections = before.collections;
                }
                Planned::Transaction { answers, failed }
            }
            Op::Ask(_) | Op::Wrong { .. } | Op::Reopen | Op::CompareAll => Planned::Nothing,
        };
        (self, planned)
    }
}

/// The reference as what `proptest` makes sequences from, and smaller ones.
struct Reference<P>(PhantomData<P>);

impl<P: Place> ReferenceStateMachine for Reference<P> {
    type State = World;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<World> {
        Just(World { strict: P::STRICT, collections: Default::default(), moments: 0 }).boxed()
    }

    fn transitions(world: &World) -> BoxedStrategy<Step> {
        (0..CLIENTS, op(world)).prop_map(|(client, op)| Step { client, op }).boxed()
    }

    fn apply(world: World, step: &Step) -> World {
        world.plan(&step.op).0
    }
}

fn op(world: &World) -> BoxedStrategy<Op> {
    let items = prop::collection::vec(any_collection(world, item), 1..6);
    let existing = select(&[Existing::Fail, Existing::Skip, Existing::Overwrite][..]);
    let isolation = select(&[Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable][..]);
    let end = prop_oneof![5 => Just(End::Commit), 1 => Just(End::Rollback), 1 => Just(End::Drop)];
    prop_oneof![
        20 => any_collection(world, save).prop_map(Op::Change),
        25 => any_collection(world, change).prop_map(Op::Change),
        12 => (items, any::<bool>()).prop_map(|(items, atomic)| Op::Apply { items, atomic }),
        6 => (any_collection(world, loads), existing).prop_map(|((collection, entities), existing)| {
            Op::Load { collection, entities, existing }
        }),
        15 => question().prop_map(Op::Ask),
        12 => (prop::option::of(isolation), prop::collection::vec(inside(world), 1..6), end, prop::bool::weighted(0.1))
            .prop_map(|(isolation, steps, end, read_only)| Op::Transaction { isolation, read_only, steps, end }),
        3 => (0..COLLECTIONS.len(), id(), 0..WRONG_CALLS)
            .prop_map(|(collection, id, call)| Op::Wrong { call, collection, id }),
        3 => Just(Op::Reopen),
        3 => Just(Op::CompareAll),
    ]
    .boxed()
}

/// What `of` makes for one of the collections.
fn any_collection<T: Debug + 'static>(
    world: &World,
    of: impl Fn(&World, usize) -> BoxedStrategy<T>,
) -> BoxedStrategy<T> {
    prop::strategy::Union::new((0..COLLECTIONS.len()).map(|collection| of(world, collection))).boxed()
}

fn id() -> BoxedStrategy<String> {
    select(IDS).prop_map(str::to_owned).boxed()
}

fn inside(world: &World) -> BoxedStrategy<Inside> {
    let items = prop::collection::vec(any_collection(world, item), 1..4);
    // A transaction has no functions for a condition, or for the version that a patch expects.
    let plain = |change: Change| {
        let what = match change.what {
            What::UpdateIf { body, version, .. } => What::Update { body, version },
            What::Patch { patch, .. } => What::Patch { patch, version: None, condition: None },
            what => what,
        };
        Inside::Change(Change { what, ..change })
    };
    prop_oneof![
        3 => any_collection(world, save).prop_map(Inside::Change),
        3 => any_collection(world, change).prop_map(plain),
        1 => items.prop_map(Inside::Apply),
        4 => question().prop_map(Inside::Ask),
        1 => (0..COLLECTIONS.len(), id()).prop_map(|(collection, id)| Inside::Peek { collection, id }),
    ]
    .boxed()
}

fn save(world: &World, collection: usize) -> BoxedStrategy<Change> {
    (entity(world, collection), expect())
        .prop_map(move |((id, body), expect)| {
            // Its id is the one in the body, where that is another.
            let id = if body.starts_with(&format!("{{\"{}\":\"{ANOTHER}\"", COLLECTIONS[collection].key)) {
                ANOTHER.to_owned()
            } else {
                id
            };
            Change { collection, id, what: What::Save { body, expect } }
        })
        .boxed()
}

fn change(world: &World, collection: usize) -> BoxedStrategy<Change> {
    let version = || prop::option::weighted(0.6, guess());
    let condition = || condition(collection);
    prop_oneof![
        4 => (entity(world, collection), version())
            .prop_map(|((id, body), version)| (id, What::Update { body, version })),
        3 => (entity(world, collection), version(), condition())
            .prop_map(|((id, body), version, condition)| (id, What::UpdateIf { body, version, condition })),
        6 => (id(), patch(world, collection), version(), prop::option::weighted(0.3, condition()))
            .prop_map(|(id, patch, version, condition)| (id, What::Patch { patch, version, condition })),
        4 => (id(), version()).prop_map(|(id, version)| (id, What::Delete { version })),
    ]
    .prop_map(move |(id, what)| Change { collection, id, what })
    .boxed()
}

fn item(world: &World, collection: usize) -> BoxedStrategy<Item> {
    let put = (entity(world, collection), expect()).prop_map(|((id, body), expect)| (id, Some(body), expect));
    let removal = (id(), expect()).prop_map(|(id, expect)| (id, None, expect));
    // Now and then into a collection that nobody configured.
    let place = prop_oneof![40 => Just(collection), 1 => Just(COLLECTIONS.len())];
    (prop_oneof![4 => put.boxed(), 1 => removal.boxed()], place)
        .prop_map(|((id, body, expect), collection)| Item { collection, id, body, expect })
        .boxed()
}

/// Entities to load: new ones, others under ids that are stored, or what is stored already.
fn loads(world: &World, collection: usize) -> BoxedStrategy<(usize, Vec<Loading>)> {
    let given = entity(world, collection).prop_map(|(id, body)| (id, Some(body)));
    let stored = id().prop_map(|id| (id, None));
    prop::collection::vec(prop_oneof![3 => given.boxed(), 1 => stored.boxed()], 1..6)
        .prop_map(move |entities| (collection, entities))
        .boxed()
}

fn guess() -> BoxedStrategy<Guess> {
    prop_oneof![6 => Just(Guess::Right), 1 => Just(Guess::Older), 1 => Just(Guess::Newer), 1 => Just(Guess::Zero)]
        .boxed()
}

fn expect() -> BoxedStrategy<Expect> {
    prop_oneof![
        8 => Just(Expect::Any),
        2 => Just(Expect::Absent),
        2 => Just(Expect::Present),
        2 => guess().prop_map(Expect::Version),
    ]
    .boxed()
}

fn value() -> BoxedStrategy<Value> {
    select(VALUES).prop_map(|text| json::parse(text.as_bytes()).expect("a value")).boxed()
}

/// A member that a body and what it is stored as have in common by their versions: none, a good one, or none at all.
fn version() -> BoxedStrategy<Option<Value>> {
    let number = |number: u64| Just(Some(Value::from(number)));
    prop_oneof![
        12 => Just(None),
        2 => number(0),
        1 => number(1),
        2 => number(7),
        1 => number(i64::MAX as u64),
        1 => select(&["null", "\"1\"", "-1", "1.0", "9223372036854775808", "[]"][..])
            .prop_map(|text| Some(json::parse(text.as_bytes()).expect("a value"))),
    ]
    .boxed()
}

fn time() -> BoxedStrategy<Option<Value>> {
    prop_oneof![
        6 => Just(None),
        1 => Just(Some(Value::from("2020-01-01T00:00:00Z"))),
        1 => value().prop_map(Some),
    ]
    .boxed()
}

/// How a body misses being an entity of a strict store, or of any.
#[derive(Debug, Clone, Copy)]
enum Flaw {
    None,
    RequiredMissing(usize),
    RequiredNull(usize),
    TooLong(usize),
    AnotherKey,
    NoEntity(usize),
}

/// An id, and the text of an entity under it, or of what comes close to one.
fn entity(world: &World, collection: usize) -> BoxedStrategy<(String, String)> {
    let rules = &COLLECTIONS[collection];
    let flaw = prop_oneof![
        40 => Just(Flaw::None),
        1 => (0..8_usize).prop_map(Flaw::RequiredMissing),
        1 => (0..8_usize).prop_map(Flaw::RequiredNull),
        1 => (0..8_usize).prop_map(Flaw::TooLong),
        1 => Just(Flaw::AnotherKey),
        1 => (0..NO_ENTITIES.len()).prop_map(Flaw::NoEntity),
    ];
    let references: Vec<_> = rules.references.iter().map(|(_, target)| reference(world, *target)).collect();
    let members = prop::collection::vec((select(rules.members()), value()), 0..5);
    (id(), references, members, version(), (time(), time()), flaw)
        .prop_map(move |(id, references, members, version, times, flaw)| {
            let mut fields = Map::new();
            fields.insert(rules.key.to_owned(), id.clone().into());
            for name in rules.required.iter().filter(|name| !rules.refers(name)) {
                fields.insert((*name).to_owned(), 1.into());
            }
            for ((name, _), target) in rules.references.iter().zip(references) {
                // Whether it may be absent is the strict store's to say.
                if let Some(target) = target.or_else(|| rules.required.contains(name).then(|| IDS[0].to_owned())) {
                    fields.insert((*name).to_owned(), target.into());
                }
            }
            fields.extend(members.into_iter().map(|(name, value)| (name.to_owned(), value)));
            fields.extend(version.map(|version| (rules.version.to_owned(), version)));
            for (name, time) in [(rules.created, times.0), (rules.updated, times.1)] {
                if let (Some(name), Some(time)) = (name, time) {
                    fields.insert(name.to_owned(), time);
                }
            }
            let required = |n: usize| rules.required.get(n % rules.required.len().max(1)).copied();
            match flaw {
                Flaw::None => {}
                Flaw::RequiredMissing(n) => {
                    required(n).and_then(|name| fields.remove(name));
                }
                Flaw::RequiredNull(n) => fields.extend(required(n).map(|name| (name.to_owned(), Value::Null))),
                Flaw::TooLong(n) => {
                    let (name, chars) = rules.lengths[n % rules.lengths.len()];
                    // Characters, not bytes; the longest that fits, or one more.
                    fields.insert(name.to_owned(), "é".repeat(chars + n % 2).into());
                }
                Flaw::AnotherKey => {
                    fields.insert(rules.key.to_owned(), ANOTHER.into());
                }
                Flaw::NoEntity(n) => return (id, NO_ENTITIES[n].to_owned()),
            }
            (id, Value::Object(fields).to_string())
        })
        .boxed()
}

/// The id of something in the collection that is referred to, of nothing there, or none.
fn reference(world: &World, target: usize) -> BoxedStrategy<Option<String>> {
    let stored: Vec<String> = world.collections[target].keys().cloned().collect();
    match stored.is_empty() {
        true => prop_oneof![1 => Just(None), 1 => id().prop_map(Some)].boxed(),
        false => prop_oneof![16 => select(stored).prop_map(Some), 1 => Just(None), 1 => id().prop_map(Some)].boxed(),
    }
}

/// A merge patch: of any members, of members within members, of what is stamped, seldom of the key.
fn patch(world: &World, collection: usize) -> BoxedStrategy<Map<String, Value>> {
    let rules = &COLLECTIONS[collection];
    let mut names = rules.members();
    names.extend(names.clone());
    names.extend(rules.optional);
    names.extend([rules.created, rules.updated].into_iter().flatten());
    let inner = prop::collection::vec((select(&["x", "y", ""][..]), value()), 0..3)
        .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Value>());
    let value = prop_oneof![3 => value(), 2 => Just(Value::Null), 2 => inner.boxed()];
    let members = prop::collection::vec((select(names), value), 0..4);
    let key = prop_oneof![20 => Just(None), 1 => Just(Some(Value::Null)), 1 => id().prop_map(|id| Some(id.into()))];
    let targets: Vec<_> = rules.references.iter().map(|(_, target)| reference(world, *target)).collect();
    (members, version(), key, prop::option::weighted(0.1, targets))
        .prop_map(move |(members, version, key, targets)| {
            let mut patch: Map<String, Value> =
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            patch.extend(version.map(|version| (rules.version.to_owned(), version)));
            patch.extend(key.map(|key| (rules.key.to_owned(), key)));
            for ((name, _), target) in rules.references.iter().zip(targets.into_iter().flatten()) {
                patch.insert((*name).to_owned(), target.map_or(Value::Null, Value::from));
            }
            patch
        })
        .boxed()
}

/// A filter over what the tests write; of times it asks only whether they are there.
fn condition(collection: usize) -> BoxedStrategy<Filter> {
    let rules = &COLLECTIONS[collection];
    let mut names = rules.members();
    names.extend([rules.version, rules.key]);
    names.extend(rules.references.iter().map(|(name, _)| *name));
    names.retain(|name| ![rules.created, rules.updated].contains(&Some(name)));
    let times: Vec<_> = [rules.created, rules.updated].into_iter().flatten().collect();
    let path = prop_oneof![
        6 => select(names).prop_map(Path::member),
        1 => select(&["x", "y", ""][..]).prop_map(|name| Path(vec!["extra".into(), name.into()])),
    ]
    .boxed();
    let scalar = prop_oneof![
        5 => value().prop_filter_map("a scalar", |value| Scalar::from_value(&value)),
        1 => id().prop_map(Scalar::Text),
    ]
    .boxed();
    let op = {
        use Comparison::*;
        select(&[Eq, Ne, Lt, Le, Gt, Ge, BeginsWith, Contains][..])
    };
    let exists = path.clone().prop_map(Filter::Exists).boxed();
    let exists = match times.is_empty() {
        true => exists,
        false => prop_oneof![exists, select(times).prop_map(|name| Filter::Exists(Path::member(name)))].boxed(),
    };
    let leaf = prop_oneof![
        6 => (path.clone(), op, scalar.clone()).prop_map(|(field, op, value)| Filter::Compare { field, op, value }),
        1 => (path, prop::collection::vec(scalar, 0..4)).prop_map(|(field, values)| Filter::AnyOf { field, values }),
        1 => exists,
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let some = || prop::collection::vec(inner.clone(), 0..3);
        prop_oneof![
            some().prop_map(Filter::All),
            some().prop_map(Filter::Any),
            inner.clone().prop_map(|filter| Filter::Not(Box::new(filter))),
        ]
    })
    .boxed()
}

fn question() -> BoxedStrategy<Question> {
    let one = |collection: usize| {
        let filter = || prop::option::weighted(0.8, condition(collection));
        let rules = &COLLECTIONS[collection];
        let mut names = rules.members();
        names.extend([Some(rules.version), Some(rules.key), rules.created, rules.updated].into_iter().flatten());
        let sort_key = (select(names), any::<bool>())
            .prop_map(|(name, descending)| SortKey { field: Path::member(name), descending });
        prop_oneof![
            2 => prop::collection::vec(id(), 0..6).prop_map(move |ids| Question::Get { collection, ids }),
            1 => filter().prop_map(move |filter| Question::Count { collection, filter }),
            3 => (filter(), prop::collection::vec(sort_key, 0..3), prop::option::of(0..4_u64)).prop_map(
                move |(filter, order_by, limit)| Question::Query { collection, filter, order_by, limit }
            ),
        ]
    };
    prop::strategy::Union::new((0..COLLECTIONS.len()).map(one)).boxed()
}

/// A store under test.
struct System {
    folder: Folder,
    store: &'static str,
    clients: Vec<Repository>,
    /// What the placeholders turned out to stand for.
    moments: HashMap<u64, String>,
    /// Operations carried out.
    operations: u64,
    /// Of those, the ones that had to be refused.
    refusals: u64,
}

type Checked = Result<(), String>;

/// Fails with the text where the two are not equal.
fn equal<T: PartialEq + Debug>(found: T, expected: T, what: impl FnOnce() -> String) -> Checked {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{}: found {found:?}, expected {expected:?}", what())),
    }
}

/// Fails where a call has not ended as it must.
fn ended<T: PartialEq + Debug>(
    found: Result<T, larder::error::Error>,
    expected: &Result<T, Refusal>,
    what: impl FnOnce() -> String,
) -> Checked {
    match (&found, expected) {
        (Ok(found), Ok(expected)) if found == expected => Ok(()),
        (Err(error), Err(refusal)) if error.is(refusal.kind) && error.current_version == refusal.current_version => {
            Ok(())
        }
        _ => Err(format!("{}: found {found:?}, expected {expected:?}", what())),
    }
}

/// 2026-03-02T08:00:00.000000Z
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000000Z"
}

/// Calls that [`Op::Wrong`] chooses from.
const WRONG_CALLS: usize = 12;

impl System {
    async fn new(store: &'static str) -> System {
        let folder = Folder::for_store(STORES, store);
        let host = folder.host();
        // Two instances of one host, and one of another.
        let mut clients = Vec::new();
        for _ in 1..CLIENTS {
            clients.push(host.open(Some(store)).await.expect("a store that opens"));
        }
        clients.push(folder.open(store).await);
        System { folder, store, clients, moments: HashMap::new(), operations: 0, refusals: 0 }
    }

    /// Whether what was found is what must be stored. The first sight of a time says what it is.
    fn same(&mut self, collection: usize, id: &str, found: Option<&Entity>, world: &World) -> Checked {
        let rules = &COLLECTIONS[collection];
        let at = || format!("{} {id:?}", rules.name);
        let (found, expected) = match (found, world.collections[collection].get(id)) {
            (None, None) => return Ok(()),
            (Some(found), Some(expected)) => (found, expected),
            (found, expected) => return Err(format!("{}: found {found:?}, expected {expected:?}", at())),
        };
        equal(found.id.as_str(), id, at)?;
        equal(Some(found.version), world.version(collection, id), || format!("the version of {}", at()))?;
        let fields = json::parse_object(&found.body).map_err(|error| format!("{}: {error}", at()))?;
        for name in [rules.created, rules.updated].into_iter().flatten() {
            let Some(moment) = expected.get(name).and_then(moment_of) else { continue };
            let time = fields.get(name).and_then(Value::as_str).unwrap_or_default();
            if self.moments.contains_key(&moment) {
                continue;
            }
            if !is_time(time) {
                return Err(format!("{}: {name} is {time:?}, which is no stamp", at()));
            }
            // A clock that counts microseconds has moved on between two calls.
            if self.moments.values().any(|known| known == time) {
                return Err(format!("{}: {name} was not stamped anew: {time}", at()));
            }
            self.moments.insert(moment, time.to_owned());
        }
        let expected = self.resolved(collection, expected);
        match json::equal_objects(&fields, &expected) {
            true => Ok(()),
            false => Err(format!("{}: found {}, expected {}", at(), Value::from(fields), Value::from(expected))),
        }
    }

    /// The entity with its times in place of their placeholders.
    fn resolved(&self, collection: usize, fields: &Fields) -> Fields {
        let rules = &COLLECTIONS[collection];
        let mut resolved = fields.clone();
        for name in [rules.created, rules.updated].into_iter().flatten() {
            if let Some(time) = fields.get(name).and_then(moment_of).and_then(|moment| self.moments.get(&moment)) {
                resolved.insert(name.to_owned(), time.clone().into());
            }
        }
        resolved
    }

    /// Whether one entity is for a client what it must be.
    async fn look(&mut self, client: usize, collection: usize, id: &str, world: &World) -> Checked {
        let answer = self.clients[client].get(COLLECTIONS[collection].name, &[id.to_owned()]).await;
        let found = answer.map_err(|error| format!("get of {id:?} by client {client}: {error:?}"))?.remove(0);
        self.same(collection, id, found.as_ref(), world).map_err(|problem| format!("get by client {client}: {problem}"))
    }

    /// Whether each client sees all of the world and nothing else.
    async fn compare_all(&mut self, world: &World) -> Checked {
        for client in 0..CLIENTS {
            for (collection, rules) in COLLECTIONS.iter().enumerate() {
                let by = |error| format!("all {} of client {client}: {error:?}", rules.name);
                let found = self.clients[client].query(rules.name, Select::default()).collect().await.map_err(by)?;
                let ids: Vec<&String> = found.iter().map(|entity| &entity.id).collect();
                let distinct: HashSet<&&String> = ids.iter().collect();
                let same = distinct.len() == ids.len()
                    && ids.len() == world.collections[collection].len()
                    && ids.iter().all(|id| world.collections[collection].contains_key(*id));
                if !same {
                    let expected: Vec<_> = world.collections[collection].keys().collect();
                    return Err(format!("client {client} sees {} {ids:?}, expected {expected:?}", rules.name));
                }
                for entity in &found {
                    self.same(collection, &entity.id, Some(entity), world)
                        .map_err(|problem| format!("all of client {client}: {problem}"))?;
                }
                let count = self.clients[client].count(rules.name, None).await.map_err(by)?;
                equal(count, found.len() as u64, || format!("count of {} by client {client}", rules.name))?;
            }
        }
        Ok(())
    }

    /// Carries out a step and compares what it answers, and then what it wrote, as another client sees it.
    async fn step(&mut self, step: &Step, before: &World, planned: Planned, after: &World) -> Checked {
        self.operations += 1;
        let client = step.client;
        let other = (client + 1) % CLIENTS;
        match (&step.op, planned) {
            (Op::Change(change), Planned::Change { stored, result }) => {
                self.refusals += u64::from(result.is_err());
                self.change(client, change, stored, &result).await?;
                self.look(other, change.collection, &change.id, after).await?;
                self.look(client, change.collection, &change.id, after).await
            }
            (Op::Apply { items, atomic }, Planned::Apply(calls)) => {
                self.apply(client, calls, *atomic).await?;
                self.look_at_items(other, items, after).await
            }
            (Op::Load { collection, entities, existing }, Planned::Load(became)) => {
                self.load(client, *collection, entities, *existing, before, &became).await?;
                for (id, _) in entities {
                    self.look(other, *collection, id, after).await?;
                }
                Ok(())
            }
            (Op::Ask(question), _) => {
                let repository = self.clients[client].clone();
                self.ask(&repository, question, after).await
            }
            (Op::Transaction { isolation, read_only, steps, end }, Planned::Transaction { answers, failed }) => {
                self.transaction(client, (*isolation, *read_only), steps, *end, before, answers, failed).await?;
                for step in steps {
                    match step {
                        Inside::Change(change) => self.look(other, change.collection, &change.id, after).await?,
                        Inside::Apply(items) => self.look_at_items(other, items, after).await?,
                        Inside::Ask(_) | Inside::Peek { .. } => {}
                    }
                }
                Ok(())
            }
            (Op::Wrong { call, collection, id }, _) => self.wrong(client, *call, *collection, id).await,
            (Op::Reopen, _) => {
                self.clients[client] = self.folder.open(self.store).await;
                Ok(())
            }
            (Op::CompareAll, _) => self.compare_all(after).await,
            (op, planned) => unreachable!("{op:?} is not answered by {planned:?}"),
        }
    }

    async fn look_at_items(&mut self, client: usize, items: &[Item], world: &World) -> Checked {
        for item in items.iter().filter(|item| item.collection < COLLECTIONS.len()) {
            self.look(client, item.collection, &item.id, world).await?;
        }
        Ok(())
    }

    async fn change(
        &mut self,
        client: usize,
        change: &Change,
        stored: Option<u64>,
        expected: &Result<Outcome, Refusal>,
    ) -> Checked {
        let repository = &self.clients[client];
        let (name, id) = (COLLECTIONS[change.collection].name, change.id.as_str());
        let number = |version: &Option<Guess>| version.map(|guess| guess.number(stored));
        let found = match &change.what {
            What::Save { body, expect } => {
                repository.save(name, body.as_bytes(), expect.resolve(stored)).await.map(|(_, outcome)| outcome)
            }
            What::Update { body, version } => repository.update(name, id, body.as_bytes(), number(version)).await,
            What::UpdateIf { body, version, condition } => {
                repository.update_if(name, id, body.as_bytes(), number(version), condition).await
            }
            What::Patch { patch, version, condition } => {
                repository.patch(name, id, patch, number(version), condition.as_ref()).await
            }
            What::Delete { version } => repository.delete(name, id, number(version)).await,
        };
        ended(found, expected, || format!("{change:?} where {stored:?} is stored"))
    }

    async fn apply(&mut self, client: usize, calls: Vec<(Write, Result<Outcome, Refusal>)>, atomic: bool) -> Checked {
        let (writes, expected): (Vec<Write>, Vec<Result<Outcome, Refusal>>) = calls.into_iter().unzip();
        self.operations += writes.len() as u64 - 1;
        let count = writes.len();
        let found = self.clients[client].apply(writes.clone(), atomic).await;
        let at = |i: usize| match &writes[i] {
            Write::Put(put) => format!("write {i}, {put:?} of {}", String::from_utf8_lossy(&put.body)),
            Write::Remove(removal) => format!("write {i}, {removal:?}"),
        };
        if atomic && expected.iter().any(Result::is_err) {
            self.refusals += 1;
            return all_refused(found, &expected).map_err(|problem| format!("atomic apply: {problem}"));
        }
        let found = found.map_err(|error| format!("apply: {error:?}"))?;
        equal(found.len(), count, || "answers to an apply".to_owned())?;
        for (i, (found, expected)) in found.into_iter().zip(&expected).enumerate() {
            self.refusals += u64::from(expected.is_err());
            ended(found.map_err(Into::into), expected, || at(i))?;
        }
        Ok(())
    }

    async fn load(
        &mut self,
        client: usize,
        collection: usize,
        entities: &[Loading],
        existing: Existing,
        before: &World,
        became: &[Became],
    ) -> Checked {
        let name = COLLECTIONS[collection].name;
        let given: Vec<Entity> = entities
            .iter()
            .map(|(id, body)| {
                let stored = before.collections[collection].get(id).map(|fields| self.resolved(collection, fields));
                let body = body.clone().unwrap_or_else(|| Value::from(stored.unwrap_or_default()).to_string());
                Entity { id: id.clone(), version: 0, body: body.into_bytes() }
            })
            .collect();
        let at = || format!("load of {entities:?} into {name}");
        let repository = self.clients[client].clone();
        let loaded = repository.load(name, given, existing).await;
        let loaded = loaded.map_err(|error| format!("{}: {error:?}", at()))?;
        repository.flush().await.map_err(|error| format!("{}: flush: {error:?}", at()))?;
        self.operations += entities.len() as u64 - 1;
        let count = |wanted: Became| became.iter().filter(|found| **found == wanted).count() as u64;
        equal(
            (loaded.written, loaded.unchanged, loaded.skipped),
            (count(Became::Written), count(Became::Unchanged), count(Became::Skipped)),
            || format!("written, unchanged and skipped by {}, of which {:?} was refused", at(), loaded.refused),
        )?;
        let mut refused: Vec<(u32, ErrorKind)> =
            loaded.refused.iter().map(|(position, error)| (*position, error.kind)).collect();
        refused.sort_by_key(|(position, _)| *position);
        let expected: Vec<(u32, ErrorKind)> = (0..)
            .zip(became)
            .filter_map(|(position, became)| match became {
                Became::Refused(kind) => Some((position, *kind)),
                _ => None,
            })
            .collect();
        equal(refused, expected, || format!("refused by {}", at()))
    }

    async fn ask(&mut self, repository: &Repository, question: &Question, world: &World) -> Checked {
        let at = |error| format!("{question:?}: {error:?}");
        match question {
            Question::Get { collection, ids } => {
                let found = repository.get(COLLECTIONS[*collection].name, ids).await.map_err(at)?;
                self.same_get(*collection, ids, &found, world)
            }
            Question::Count { collection, filter } => {
                let found = repository.count(COLLECTIONS[*collection].name, filter.as_ref()).await.map_err(at)?;
                let expected = self.matching(*collection, filter.as_ref(), &[], world).len() as u64;
                equal(found, expected, || format!("{question:?}"))
            }
            Question::Query { collection, filter, order_by, limit } => {
                let select = Select { filter: filter.clone(), order_by: order_by.clone(), limit: *limit, index: None };
                let found = repository.query(COLLECTIONS[*collection].name, select).collect().await.map_err(at)?;
                self.same_query(question, &found, world)
            }
        }
    }

    fn same_get(&mut self, collection: usize, ids: &[String], found: &[Option<Entity>], world: &World) -> Checked {
        equal(found.len(), ids.len(), || format!("answers to a get of {ids:?}"))?;
        found.iter().zip(ids).try_for_each(|(found, id)| self.same(collection, id, found.as_ref(), world))
    }

    /// Ids of the entities that the filter holds for, in order.
    fn matching(&self, collection: usize, filter: Option<&Filter>, order_by: &[SortKey], world: &World) -> Vec<String> {
        let mut matching: Vec<(&String, Fields)> = world.collections[collection]
            .iter()
            .map(|(id, fields)| (id, self.resolved(collection, fields)))
            .filter(|(_, fields)| filter.is_none_or(|filter| filter.matches(fields)))
            .collect();
        matching.sort_by(|(a, a_fields), (b, b_fields)| {
            larder_model::order::compare(order_by, (a, a_fields), (b, b_fields))
        });
        matching.into_iter().map(|(id, _)| id.clone()).collect()
    }

    fn same_query(&mut self, question: &Question, found: &[Entity], world: &World) -> Checked {
        let Question::Query { collection, filter, order_by, limit } = question else {
            unreachable!("{question:?} is no query")
        };
        for entity in found {
            self.same(*collection, &entity.id, Some(entity), world)?;
        }
        let at = || format!("{question:?}");
        let mut expected = self.matching(*collection, filter.as_ref(), order_by, world);
        let mut found: Vec<String> = found.iter().map(|entity| entity.id.clone()).collect();
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        if order_by.is_empty() {
            equal(found.len(), expected.len().min(limit), || format!("the number of answers to {}", at()))?;
            found.sort();
            found.dedup();
            expected.retain(|id| found.contains(id));
        }
        expected.truncate(limit);
        equal(found, expected, at)
    }

    #[allow(clippy::too_many_arguments)]
    async fn transaction(
        &mut self,
        client: usize,
        (isolation, read_only): (Option<Isolation>, bool),
        steps: &[Inside],
        end: End,
        before: &World,
        answers: Vec<Answer>,
        failed: bool,
    ) -> Checked {
        // Nobody else is there, so that every level sees the same: instead of one that is not offered, the strongest that is.
        let offered = &self.clients[client].plugin().description.isolations;
        let strongest = offered.iter().copied().max();
        let isolation = isolation.map(|asked| strongest.map_or(asked, |strongest| asked.min(strongest)));
        let begun = self.clients[client].begin(isolation, read_only).await;
        let mut transaction = begun.map_err(|error| format!("begin: {error:?}"))?;
        self.operations += steps.len() as u64;
        for (step, answer) in steps.iter().zip(answers) {
            let at = || format!("inside a transaction: {step:?}");
            match (step, answer) {
                (Inside::Change(change), Answer::Change { stored, result }) => {
                    self.refusals += u64::from(result.is_err());
                    let (name, id) = (COLLECTIONS[change.collection].name, change.id.as_str());
                    let number = |version: &Option<Guess>| version.map(|guess| guess.number(stored));
                    let found = match &change.what {
                        What::Save { body, expect } => {
                            let saved = transaction.save(name, body.as_bytes(), expect.resolve(stored)).await;
                            saved.map(|(_, outcome)| outcome)
                        }
                        What::Update { body, version } | What::UpdateIf { body, version, .. } => {
                            transaction.update(name, id, body.as_bytes(), number(version)).await
                        }
                        What::Patch { patch, .. } => transaction.patch(name, id, patch).await,
                        What::Delete { version } => transaction.delete(name, id, number(version)).await,
                    };
                    ended(found, &result, || format!("{} where {stored:?} is stored", at()))?;
                }
                (Inside::Apply(_), Answer::Apply { calls, refused }) => {
                    let (writes, expected): (Vec<Write>, Vec<Result<Outcome, Refusal>>) = calls.into_iter().unzip();
                    let found = transaction.apply(writes).await;
                    match expected.iter().cloned().collect::<Result<Vec<Outcome>, Refusal>>() {
                        _ if refused => {
                            ended(found, &Err(refuse(ErrorKind::InvalidArgument)), at)?;
                        }
                        Ok(outcomes) => ended(found, &Ok(outcomes), at)?,
                        Err(_) => {
                            self.refusals += 1;
                            all_refused(found, &expected).map_err(|problem| format!("{}: {problem}", at()))?;
                        }
                    }
                }
                (Inside::Ask(question), Answer::Ask { failed_before, content }) => {
                    let refused = failed_before.then(|| refuse(ErrorKind::InvalidArgument));
                    match question {
                        Question::Get { collection, ids } => {
                            let name = COLLECTIONS[*collection].name;
                            match (transaction.get(name, ids, !read_only).await, refused) {
                                (Ok(found), None) => self.same_get(*collection, ids, &found, &content),
                                (Err(error), Some(refusal)) if error.is(refusal.kind) => Ok(()),
                                (found, _) => Err(format!("{found:?}")),
                            }
                            .map_err(|problem| format!("{}: {problem}", at()))?;
                        }
                        Question::Count { collection, filter } | Question::Query { collection, filter, .. } => {
                            let mut select = Select { filter: filter.clone(), ..Select::default() };
                            if let Question::Query { order_by, limit, .. } = question {
                                (select.order_by, select.limit) = (order_by.clone(), *limit);
                            }
                            let asked = Question::Query {
                                collection: *collection,
                                filter: select.filter.clone(),
                                order_by: select.order_by.clone(),
                                limit: select.limit,
                            };
                            // What is sorted by a time that nobody has seen cannot be foretold.
                            if refused.is_none() && !select.order_by.is_empty() {
                                let ids: Vec<String> = content.collections[*collection].keys().cloned().collect();
                                let found = transaction.get(COLLECTIONS[*collection].name, &ids, false).await;
                                let found = found.map_err(|error| format!("{}: get: {error:?}", at()))?;
                                self.same_get(*collection, &ids, &found, &content)?;
                            }
                            // Nothing is asked of a strategy for no entities.
                            let refused = refused.filter(|_| select.limit != Some(0));
                            match (transaction.query(COLLECTIONS[*collection].name, select).collect().await, refused) {
                                (Ok(found), None) => self.same_query(&asked, &found, &content),
                                (Err(error), Some(refusal)) if error.is(refusal.kind) => Ok(()),
                                (found, _) => Err(format!("{found:?}")),
                            }
                            .map_err(|problem| format!("{}: {problem}", at()))?;
                        }
                    }
                }
                (Inside::Peek { collection, id }, _) => {
                    let other = (client + 1) % CLIENTS;
                    self.look(other, *collection, id, before)
                        .await
                        .map_err(|problem| format!("while a transaction is open: {problem}"))?;
                }
                (step, answer) => unreachable!("{step:?} is not answered by {answer:?}"),
            }
        }
        match end {
            End::Commit => {
                let expected = if failed { Err(refuse(ErrorKind::InvalidArgument)) } else { Ok(()) };
                ended(transaction.commit().await, &expected, || "commit".to_owned())
            }
            End::Rollback => ended(transaction.rollback().await, &Ok(()), || "rollback".to_owned()),
            End::Drop => {
                drop(transaction);
                Ok(())
            }
        }
    }

    /// Each of them is refused before anything is looked at.
    async fn wrong(&mut self, client: usize, call: usize, collection: usize, id: &str) -> Checked {
        let repository = &self.clients[client];
        let name = COLLECTIONS[collection].name;
        let long = "é".repeat(256);
        let none = Map::new();
        let found = match call {
            0 => repository.get(name, &[id.to_owned(), String::new()]).await.map(drop),
            1 => repository.get(name, &[long, id.to_owned()]).await.map(drop),
            2 => repository.get("nowhere", &[id.to_owned()]).await.map(drop),
            3 => repository.delete(name, "a\u{7f}", None).await.map(drop),
            4 => repository.delete("nowhere", id, None).await.map(drop),
            5 => repository.patch(name, &long, &none, None, None).await.map(drop),
            6 => repository.patch("nowhere", id, &none, None, None).await.map(drop),
            7 => repository.update(name, id, b"{}", None).await.map(drop),
            8 => repository.save("nowhere", b"{\"id\":\"a\"}", Expectation::Any).await.map(drop),
            9 => repository.count("nowhere", None).await.map(drop),
            10 => repository.query("nowhere", Select::default()).collect().await.map(drop),
            11 => {
                let index = Some("nothing".to_owned());
                repository.query(name, Select { index, ..Select::default() }).collect().await.map(drop)
            }
            _ => unreachable!("there are {WRONG_CALLS} wrong calls"),
        };
        self.refusals += 1;
        ended(found, &Err(refuse(ErrorKind::InvalidArgument)), || format!("wrong call {call}"))
    }
}

/// Fails unless all of the writes were refused together, for the reason of one of those that cannot be.
fn all_refused<T: Debug>(
    found: Result<T, larder::error::Error>,
    expected: &[Result<Outcome, Refusal>],
) -> Result<(), String> {
    let error = match found {
        Ok(found) => return Err(format!("found {found:?}, expected {expected:?}")),
        Err(error) => error,
    };
    // Which one is named where several cannot be is the strategy's choice.
    let named = error.write_index.and_then(|i| expected.get(i as usize));
    match named {
        Some(Err(refusal)) if error.is(refusal.kind) && error.current_version == refusal.current_version => Ok(()),
        _ => Err(format!("found {error:?}, expected {expected:?}")),
    }
}

/// A number from the environment.
pub(crate) fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number")))
}

/// Runs sequences against one place: a few, or as many as fit the time that was asked for.
fn run<P: Place>() {
    let runtime = Runtime::new().expect("a runtime");
    let given = setting("LARDER_TEST_SEED");
    let soak_s = setting("LARDER_SOAK_SECONDS");
    let deadline = soak_s.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let is_over = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
    let (sequences, operations, refusals) = (Cell::new(0_u64), Cell::new(0), Cell::new(0));
    loop {
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(Instant::now()));
        let config = Config {
            cases: SEQUENCES,
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            max_shrink_time: 120_000,
            max_shrink_iters: 10_000,
            ..Config::default()
        };
        let strategy = Reference::<P>::sequential_strategy(1..=STEPS_MAX);
        let tried = TestRunner::new(config).run(&strategy, |(mut world, steps, seen)| {
            if is_over() {
                return Ok(());
            }
            sequences.set(sequences.get() + 1);
            let ended = runtime.block_on(async {
                let mut system = System::new(P::STORE).await;
                let mut ended = Ok(());
                for step in &steps {
                    if let Some(seen) = &seen {
                        seen.fetch_add(1, Ordering::SeqCst);
                    }
                    let (after, planned) = world.clone().plan(&step.op);
                    ended = system.step(step, &world, planned, &after).await;
                    world = after;
                    if ended.is_err() {
                        break;
                    }
                }
                if ended.is_ok() {
                    ended = system.compare_all(&world).await;
                }
                operations.set(operations.get() + system.operations);
                refusals.set(refusals.get() + system.refusals);
                ended
            });
            ended.map_err(TestCaseError::fail)
        });
        match tried {
            Ok(()) => {}
            Err(TestError::Abort(reason)) => panic!("no sequences can be made: {reason}"),
            Err(TestError::Fail(reason, (_, steps, _))) => {
                let steps: Vec<String> =
                    steps.iter().map(|step| format!("  client {}: {:?}", step.client, step.op)).collect();
                panic!(
                    "{} does not do as the reference does: {reason}\nafter\n{}\nrun it again with \
                     LARDER_TEST_SEED={seed} cargo xtask test -p larder-tests -- model::{}",
                    P::NAME,
                    steps.join("\n"),
                    P::NAME
                );
            }
        }
        if given.is_some() || soak_s.is_none() || is_over() {
            break;
        }
    }
    println!(
        "model of {}: {} sequences, {} operations, {} of them refused",
        P::NAME,
        sequences.get(),
        operations.get(),
        refusals.get()
    );
}
