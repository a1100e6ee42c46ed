//! Where clients meet at one store: what the tests of histories and of isolation have in common.
//!
//! A body takes [`Opens`] and knows nothing else of where it runs, so that it holds for any strategy that can be opened.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use larder::repository::Repository;

use crate::support::Folder;

/// A store that is new, and that any number of clients can open.
pub trait Opens {
    /// A handle of its own: another host, another instance of the strategy.
    fn open(&self) -> impl Future<Output = Repository>;
}

/// Every way to store, each in a place of its own. The deadline of a transaction is `#`. Many processes meet at one
/// PostgreSQL, which has so many connections and no more.
const STORES: &str = r#"{
  "plugins": {"transaction_timeout": #},
  "storage": {
    "strategy": "single",
    "stores": {
      "single": {"strategy": "json", "json_strategy": {"base_path": "@/single"}},
      "split": {"strategy": "json", "json_strategy": {"storage_type": "split_files", "base_path": "@/split"}},
      "strict": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/strict.db"}},
      "relaxed": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/relaxed.db", "constraints": "relaxed"}},
      "postgres_strict": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~strict~, "pool_size": 2, "max_overflow": 4}},
      "postgres_relaxed": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~relaxed~, "pool_size": 2, "max_overflow": 4, "constraints": "relaxed"}},
      "dynamodb": {"strategy": "dynamodb", "dynamodb_strategy": {~tables~}}
    }
  }
}"#;

/// A store of a shipped strategy, in a folder that programs can be run in.
#[derive(Clone)]
pub struct Place {
    pub folder: Arc<Folder>,
    pub store: &'static str,
}

impl Place {
    pub fn new(store: &'static str) -> Place {
        Place::with_transaction_timeout(store, Duration::from_secs(30))
    }

    /// A place where a transaction may take this long.
    pub fn with_transaction_timeout(store: &'static str, timeout: Duration) -> Place {
        let config = STORES.replace('#', &timeout.as_secs_f64().to_string());
        Place { folder: Arc::new(Folder::for_store(&config, store)), store }
    }
}

impl Opens for Place {
    async fn open(&self) -> Repository {
        self.folder.open(self.store).await
    }
}

/// Makes an ordinary test of each body for every store.
macro_rules! on_every_store {
    ($($body:ident,)*) => {
        $crate::place::on_every_store!(json_single_file "single" $($body)*);
        $crate::place::on_every_store!(json_split_files "split" $($body)*);
        $crate::place::on_every_store!(sql_strict "strict" $($body)*);
        $crate::place::on_every_store!(sql_relaxed "relaxed" $($body)*);
        $crate::place::on_every_store!(postgres_strict "postgres_strict" $($body)*);
        $crate::place::on_every_store!(postgres_relaxed "postgres_relaxed" $($body)*);
        $crate::place::on_every_store!(dynamodb "dynamodb" $($body)*);
    };
    ($module:ident $store:literal $($body:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $body() {
                    super::$body(&$crate::place::Place::new($store)).await;
                }
            )*
        }
    };
}
pub(crate) use on_every_store;

/// A template with what strict tables require, and more members, each preceded by a comma.
pub fn template(id: &str, more: &str) -> Vec<u8> {
    format!(r#"{{"template_id":"{id}","name":"Pool","provider_api":"RunInstances","vm_type":"t3.medium","max_number":10{more}}}"#)
        .into_bytes()
}

/// How long a random test goes on: with `LARDER_SOAK_SECONDS` for so long, and otherwise for so many rounds.
pub struct Rounds {
    done: u64,
    short: u64,
    until: Option<Instant>,
}

impl Rounds {
    pub fn new(short: u64) -> Rounds {
        let seconds = std::env::var("LARDER_SOAK_SECONDS").ok().map(|seconds| {
            seconds.parse().unwrap_or_else(|_| panic!("LARDER_SOAK_SECONDS is no number of seconds: {seconds}"))
        });
        Rounds { done: 0, short, until: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)) }
    }

    /// The number of the next round, from 0, if there is to be one.
    pub fn next(&mut self) -> Option<u64> {
        let is_over = match self.until {
            Some(until) => self.done > 0 && Instant::now() >= until,
            None => self.done >= self.short,
        };
        self.done += 1;
        (!is_over).then_some(self.done - 1)
    }
}

/// Pseudo-random choices (SplitMix64). The seed fixes what clients choose, and not how their calls interleave.
pub struct Choices(u64);

impl Choices {
    /// Seeded with `LARDER_TEST_SEED` or with the time, and printed, which shows where the test fails.
    pub fn new() -> Choices {
        let seed = match std::env::var("LARDER_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap_or_else(|_| panic!("LARDER_TEST_SEED is no number: {seed}")),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_nanos() as u64,
        };
        println!("LARDER_TEST_SEED={seed}");
        Choices(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Choices of their own, for another client.
    pub fn split(&mut self) -> Choices {
        Choices(self.next())
    }
}
