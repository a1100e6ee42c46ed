//! Random questions over awkward entities: every strategy must answer as a plain list in memory does, to which the meaning
//! of filters and orders is applied as `larder_model` defines it.
//!
//! What is asked for is mostly taken from the data, so that most questions have answers. `LARDER_TEST_SEED` asks those of
//! one seed again, `LARDER_SOAK_SECONDS` asks fresh ones for so long.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use larder::query::Select;
use larder::repository::Repository;
use larder_model::filter::{Comparison, Filter, Scalar, parse_json};
use larder_model::path::Path;
use larder_model::{Entity, Existing, SortKey, json, order};
use serde_json::{Map, Value, json};

use crate::model::setting;
use crate::support::{Folder, object};

macro_rules! ask {
    ($($test:ident: $store:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                run(stringify!($test), $store).await;
            }
        )*
    };
}

ask! {
    json_single_file: "single";
    json_split_files: "split";
    sql_sqlite_strict: "strict";
    sql_sqlite_relaxed: "relaxed";
    sql_postgres_strict: "postgres_strict";
    sql_postgres_relaxed: "postgres_relaxed";
    dynamodb: "dynamodb";
}

/// Every way to store, and a collection with a column of each type, none of which has to hold that type.
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
      "wild": {
        "key": "id",
        "fields": {
          "text": {"type": "text"},
          "integer": {"type": "integer"},
          "number": {"type": "number"},
          "boolean": {"type": "boolean"},
          "time": {"type": "timestamp"},
          "json": {"type": "json"}
        },
        "indexes": {"by integer": ["integer", "text"]}
      }
    }
  }
}"#;

/// Entities in each of the two collections.
const ENTITIES: usize = 550;
/// Questions about each of them, on each strategy. In a debug build one that a database does not answer by itself takes
/// tens of milliseconds, because every row crosses to the host.
const QUESTIONS: usize = 150;
/// Of so many questions, one is counted too: where the host has to count, all entities cross the boundary again.
const COUNTED: usize = 3;
/// Larger entities are left out: each such question would carry them to the host, where they are compared as short ones are.
const ENTITY_BYTES_MAX: usize = 4_000;
/// The least of the questions that must have an answer, in a hundred: otherwise nothing much was asked.
const ANSWERED_PERCENT_MIN: usize = 40;

/// Pseudo-random numbers (SplitMix64), so that a seed means the same whatever becomes of a dependency.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Values that decide between strategies, whatever the data holds.
const SCALARS: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "1.0",
    "10e-1",
    "-1",
    "1e400",
    "-1e400",
    "1e-400",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "1234567890123456789012345678901234567890",
    "1234567890123456789012345678901234567891",
    "\"\"",
    "\"0\"",
    "\"1\"",
    "\"1.0\"",
    "\"1e5\"",
    "\"null\"",
    "\"a\"",
    "\"é\"",
    "\"\\u0000\"",
    "\"2026-03-01T08:00:00Z\"",
    "\"{\\\"a\\\": 1}\"",
];

/// A collection as it must be.
struct Data {
    collection: &'static str,
    entities: BTreeMap<String, Map<String, Value>>,
    ids: Vec<String>,
}

impl Data {
    fn new(collection: &'static str, entities: BTreeMap<String, Map<String, Value>>) -> Data {
        Data { collection, ids: entities.keys().cloned().collect(), entities }
    }

    fn any(&self, random: &mut Random) -> &Map<String, Value> {
        &self.entities[random.pick(&self.ids)]
    }

    /// A path that leads somewhere in some entity, mostly, and what stands there.
    fn place(&self, random: &mut Random) -> (Path, Option<&Value>) {
        if random.chance(3) {
            return (Path(vec!["nowhere".into(), "x".into()]), None);
        }
        let mut members = self.any(random);
        let mut path = Vec::new();
        loop {
            let (name, value) = members.iter().nth(random.below(members.len())).expect("an entity has members");
            path.push(name.clone());
            match value {
                Value::Object(inner) if !inner.is_empty() && random.chance(80) => members = inner,
                _ => return (Path(path), Some(value)),
            }
        }
    }

    /// A scalar to compare with what stands at the path in one entity or another.
    fn scalar(&self, random: &mut Random, path: &Path, found: Option<&Value>) -> Scalar {
        let elsewhere = path.get(self.any(random));
        let value = match random.below(10) {
            0..5 => found,
            5..8 => elsewhere,
            _ => None,
        };
        let value = match value {
            Some(Value::Array(elements)) if !elements.is_empty() => Some(random.pick(elements)),
            other => other,
        };
        match value.and_then(Scalar::from_value) {
            Some(scalar) => scalar,
            None => {
                let value = json::parse(random.pick(SCALARS).as_bytes()).expect("a value");
                Scalar::from_value(&value).expect("a scalar")
            }
        }
    }

    fn leaf(&self, random: &mut Random) -> Filter {
        use Comparison::*;
        let (field, found) = self.place(random);
        match random.below(10) {
            0 => Filter::Exists(field),
            1 => {
                let values = (0..random.below(5)).map(|_| self.scalar(random, &field, found)).collect();
                Filter::AnyOf { field, values }
            }
            2 => {
                let value = match self.scalar(random, &field, found) {
                    Scalar::Text(text) => Scalar::Text(text.chars().take(random.below(4)).collect()),
                    _ => Scalar::Text("a".into()),
                };
                Filter::Compare { field, op: BeginsWith, value }
            }
            3 => {
                let value = match self.scalar(random, &field, found) {
                    Scalar::Text(text) if random.chance(70) => {
                        Scalar::Text(text.chars().skip(random.below(3)).take(random.below(4)).collect())
                    }
                    scalar => scalar,
                };
                Filter::Compare { field, op: Contains, value }
            }
            _ => {
                let value = self.scalar(random, &field, found);
                Filter::Compare { field, op: *random.pick(&[Eq, Eq, Ne, Lt, Le, Gt, Ge]), value }
            }
        }
    }

    fn filter(&self, random: &mut Random, depth: usize) -> Filter {
        if depth == 0 || random.chance(40) {
            return self.leaf(random);
        }
        let some = |random: &mut Random| (0..random.below(4)).map(|_| self.filter(random, depth - 1)).collect();
        match random.below(4) {
            0 | 1 => Filter::All(some(random)),
            2 => Filter::Any(some(random)),
            _ => Filter::Not(Box::new(self.filter(random, depth - 1))),
        }
    }

    fn select(&self, random: &mut Random) -> Select {
        let filter = random.chance(97).then(|| self.filter(random, 3));
        let keys = [0, 0, 1, 1, 2, 3][random.below(6)];
        let order_by =
            (0..keys).map(|_| SortKey { field: self.place(random).0, descending: random.chance(50) }).collect();
        let limit = [None, None, None, Some(0), Some(1), Some(7), Some(100)][random.below(7)];
        Select { filter, order_by, limit, index: None }
    }

    /// Ids of what the question is about, in order, without its limit.
    fn answer(&self, select: &Select) -> Vec<&str> {
        let matches = |fields: &Map<String, Value>| select.filter.as_ref().is_none_or(|filter| filter.matches(fields));
        let mut found: Vec<(&str, &Map<String, Value>)> = self
            .entities
            .iter()
            .filter(|(_, fields)| matches(fields))
            .map(|(id, fields)| (id.as_str(), fields))
            .collect();
        found.sort_by(|a, b| order::compare(&select.order_by, *a, *b));
        found.into_iter().map(|(id, _)| id).collect()
    }

    async fn load_into(&self, repository: &Repository) {
        let entity = |(id, fields): (&String, &Map<String, Value>)| Entity {
            id: id.clone(),
            version: fields["version"].as_u64().expect("a version"),
            body: json::to_vec(fields),
        };
        let loaded = repository
            .load(self.collection, self.entities.iter().map(entity).collect(), Existing::Fail)
            .await
            .expect("an answer");
        assert_eq!((loaded.written, loaded.refused), (self.entities.len() as u64, vec![]));
        repository.flush().await.expect("what was loaded is kept");
    }
}

/// Templates, where most of what is awkward has no column, and entities that hold it in columns of every type.
fn data(random: &mut Random) -> [Data; 2] {
    let templates: BTreeMap<String, Map<String, Value>> =
        larder_samples::awkward(ENTITIES, random.below(1 << 30) as u64)
            .into_iter()
            .filter(|awkward| awkward.body.len() <= ENTITY_BYTES_MAX)
            .map(|awkward| (awkward.id, object(&awkward.body)))
            .collect();
    // What takes long to read adds nothing: it is compared as a short text is.
    let short = |value: &&Value| value.to_string().len() < 200;
    let mut pool: Vec<Value> = templates.values().flat_map(|fields| fields.values().filter(short).cloned()).collect();
    pool.extend(SCALARS.iter().map(|text| json::parse(text.as_bytes()).expect("a value")));
    let wild = templates.keys().map(|id| {
        let mut fields = Map::new();
        fields.insert("id".into(), id.clone().into());
        fields.insert("version".into(), 1.into());
        for name in ["text", "integer", "number", "boolean", "time", "json", "extra", "a.b"] {
            // Small integers, booleans, times and texts too, so that columns hold what they are for.
            let plain = match name {
                "integer" | "number" => json!(random.below(5)),
                "boolean" => json!(random.chance(50)),
                "time" => json!(format!("2026-03-0{}T08:00:00Z", random.below(9) + 1)),
                _ => json!(["", "a", "ab", "b", "é"][random.below(5)]),
            };
            match random.below(10) {
                0..3 => fields.insert(name.into(), plain),
                3..9 => fields.insert(name.into(), random.pick(&pool).clone()),
                _ => None,
            };
        }
        // What is nested as deep as an entity may be cannot stand deeper.
        let shallow = |value: &Value| value.to_string().matches(['[', '{']).count() < 60;
        let [first, second] = [(); 2].map(|()| {
            loop {
                let value = random.pick(&pool);
                if shallow(value) {
                    break value;
                }
            }
        });
        fields.insert("\"nested\"".into(), json!({"": first, "c.d": {"e": second}}));
        (id.clone(), fields)
    });
    let wild = wild.collect();
    [Data::new("templates", templates), Data::new("wild", wild)]
}

/// The JSON form of a filter.
fn written(filter: &Filter) -> Value {
    match filter {
        Filter::Compare { field, op, value } => {
            let op = match op {
                Comparison::Eq => "=",
                Comparison::Ne => "!=",
                Comparison::Lt => "<",
                Comparison::Le => "<=",
                Comparison::Gt => ">",
                Comparison::Ge => ">=",
                Comparison::BeginsWith => "begins-with",
                Comparison::Contains => "contains",
            };
            json!({"field": field.to_string(), "op": op, "value": value.to_value()})
        }
        Filter::AnyOf { field, values } => {
            let values: Vec<Value> = values.iter().map(Scalar::to_value).collect();
            json!({"field": field.to_string(), "op": "in", "value": values})
        }
        Filter::Exists(field) => json!({"field": field.to_string(), "op": "exists"}),
        Filter::All(children) => json!({"all": children.iter().map(written).collect::<Vec<_>>()}),
        Filter::Any(children) => json!({"any": children.iter().map(written).collect::<Vec<_>>()}),
        Filter::Not(child) => json!({"not": written(child)}),
    }
}

async fn run(test: &str, store: &str) {
    let given = setting("LARDER_TEST_SEED");
    let deadline = setting("LARDER_SOAK_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut asked = 0;
    loop {
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(Instant::now()));
        asked += ask_all(test, store, seed).await;
        if given.is_some() || deadline.is_none_or(|deadline| Instant::now() >= deadline) {
            break;
        }
    }
    println!("questions to {test}: {asked}");
}

/// How many questions were asked.
async fn ask_all(test: &str, store: &str, seed: u64) -> usize {
    // Shown where the test fails.
    println!("run it again with LARDER_TEST_SEED={seed} cargo xtask test -p larder-tests -- queries::{test}");
    let random = &mut Random(seed);
    let folder = Folder::for_store(STORES, store);
    let repository = folder.open(store).await;
    let mut asked_in_all = 0;
    for data in data(random) {
        data.load_into(&repository).await;
        let all = repository.query(data.collection, Select::default()).collect().await.expect("an answer");
        assert_eq!(all.len(), data.entities.len());
        for entity in all {
            assert!(json::equal_objects(&object(&entity.body), &data.entities[&entity.id]), "{}", entity.id);
        }
        let mut answered = 0;
        for n in 0..QUESTIONS {
            let select = data.select(random);
            let asked = select.filter.as_ref().map(|filter| written(filter).to_string());
            let at = || {
                let asked = asked.as_deref().unwrap_or("everything");
                format!("question {n} about {}: {asked}, {:?}, {:?}", data.collection, select.order_by, select.limit)
            };
            let expected = data.answer(&select);
            answered += usize::from(!expected.is_empty());
            let limit = select.limit.map_or(usize::MAX, |limit| limit as usize);

            let found = repository.query(data.collection, select.clone()).collect().await;
            let found = found.unwrap_or_else(|error| panic!("{}: {error:?}", at()));
            let mut found: Vec<&str> = found.iter().map(|entity| entity.id.as_str()).collect();
            if select.order_by.is_empty() {
                found.sort_unstable();
                assert_eq!(found.len(), expected.len().min(limit), "{}", at());
                let mut subset = expected.clone();
                subset.retain(|id| found.binary_search(id).is_ok());
                assert_eq!(found, subset, "{}", at());
            } else {
                assert_eq!(found, expected[..expected.len().min(limit)], "{}", at());
            }

            // As it is written and read again: in this form the filter counts.
            let read = asked.as_ref().map(|asked| {
                let asked = json::parse(asked.as_bytes()).unwrap_or_else(|error| panic!("{}: {error}", at()));
                parse_json(&asked).unwrap_or_else(|error| panic!("{}: {error}", at()))
            });
            let again = Select { filter: read, ..select.clone() };
            assert_eq!(data.answer(&again), expected, "{} as {:?}", at(), again.filter);
            if n % COUNTED == 0 {
                let count = repository.count(data.collection, again.filter.as_ref()).await;
                let count = count.unwrap_or_else(|error| panic!("{}: {error:?}", at()));
                assert_eq!(count, expected.len() as u64, "{}", at());
            }
        }
        assert!(answered * 100 >= QUESTIONS * ANSWERED_PERCENT_MIN, "only {answered} questions had an answer");
        asked_in_all += QUESTIONS;
    }
    asked_in_all
}
