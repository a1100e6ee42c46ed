//! Queries in pages: put together, the pages are the whole answer, whatever the strategy leaves to the host, however long
//! a page is, and whatever is written meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use larder::query::{QUERY_PAGE_ENTITIES, Select};
use larder::repository::Repository;
use larder_model::{Entity, ErrorKind, Existing, Expectation};
use serde_json::Value;

use crate::support::{Folder, object};

const STORES: &str = r#"{
  "storage": {
    "strategy": "single",
    "stores": {
      "single": {"strategy": "json", "json_strategy": {"base_path": "@/single"}},
      "split": {"strategy": "json", "json_strategy": {"storage_type": "split_files", "base_path": "@/split"}},
      "strict": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/strict.db"}},
      "relaxed": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/relaxed.db", "constraints": "relaxed"}},
      "postgres_strict": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~strict~}},
      "postgres_relaxed": {"strategy": "sql", "sql_strategy": {"type": "postgresql", ~relaxed~, "constraints": "relaxed"}},
      "dynamodb": {"strategy": "dynamodb", "dynamodb_strategy": {~tables~}}
    }
  }
}"#;

/// Makes an ordinary test of each body for every way to store.
macro_rules! in_every_store {
    ($($body:ident,)*) => {
        in_every_store!(json_single_file "single" $($body)*);
        in_every_store!(json_split_files "split" $($body)*);
        in_every_store!(sql_strict "strict" $($body)*);
        in_every_store!(sql_relaxed "relaxed" $($body)*);
        in_every_store!(postgres_strict "postgres_strict" $($body)*);
        in_every_store!(postgres_relaxed "postgres_relaxed" $($body)*);
        in_every_store!(dynamodb "dynamodb" $($body)*);
    };
    ($module:ident $store:literal $($body:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $body() {
                    let folder = crate::support::Folder::for_store(super::STORES, $store);
                    let repository = folder.open($store).await;
                    super::$body(folder, repository).await;
                }
            )*
        }
    };
}

in_every_store! {
    pages_put_together_are_the_whole_answer,
    pages_are_longer_or_shorter_than_what_crosses_at_once,
    what_is_not_written_meanwhile_comes_exactly_once,
    what_is_not_written_comes_once_while_others_write_at_the_same_time,
    a_cursor_is_good_for_its_own_query_alone,
    large_values_are_sorted_by_and_fit_no_cursor,
}

fn body(id: &str, more: &str) -> Vec<u8> {
    format!(
        r#"{{"template_id":{},"name":"Pool","provider_api":"RunInstances","vm_type":"t3.medium","max_number":10{more}}}"#,
        Value::from(id)
    )
    .into_bytes()
}

fn name(n: usize) -> String {
    format!("template-{n:04}")
}

/// Members with ties, gaps and several types, some in columns and some not.
fn members(n: usize) -> String {
    let image = ["", r#","image_id":"ami-1""#, r#","image_id":"ami-2""#, r#","image_id":null"#][n % 4];
    let mixed = ["", r#","mixed":1.50"#, r#","mixed":"é""#, r#","mixed":[1]"#, r#","mixed":true"#][n % 5];
    format!(r#","n":{},"odd":{}{image}{mixed}"#, n / 3, n % 2 == 1)
}

async fn load(repository: &Repository, count: usize) {
    let entities = (0..count).map(|n| Entity { id: name(n), version: 0, body: body(&name(n), &members(n)) });
    let loaded = repository.load("templates", entities.collect(), Existing::Fail).await.expect("a load");
    assert_eq!(loaded.written, count as u64, "{loaded:?}");
    repository.flush().await.expect("a flush");
}

fn select(filter: &str, order_by: &[&str]) -> Select {
    Select {
        filter: (!filter.is_empty()).then(|| filter.parse().expect("a filter")),
        order_by: order_by.iter().map(|key| key.parse().expect("a sort key")).collect(),
        ..Select::default()
    }
}

fn ids(entities: Vec<Entity>) -> Vec<String> {
    entities.into_iter().map(|entity| entity.id).collect()
}

/// The ids of all pages, one after the other.
async fn followed(repository: &Repository, select: &Select) -> Vec<String> {
    let limit = select.limit.unwrap_or(QUERY_PAGE_ENTITIES) as usize;
    let mut all = Vec::new();
    let mut cursor = None;
    loop {
        let page = repository.query_page("templates", select, cursor.as_deref()).await.expect("a page");
        assert!(page.entities.len() <= limit, "{} entities in a page of {limit}", page.entities.len());
        all.extend(ids(page.entities));
        assert!(page.next.is_none() || page.next != cursor, "no way on from {cursor:?}");
        cursor = page.next;
        if cursor.is_none() {
            return all;
        }
    }
}

async fn whole(repository: &Repository, select: &Select) -> Vec<String> {
    ids(repository.query("templates", select.clone()).collect().await.expect("an answer"))
}

/// Filters and orders of which the strategies push down all, some and nothing.
const QUERIES: [(&str, &[&str]); 10] = [
    ("", &[]),
    ("", &["template_id:desc"]),
    ("image_id=ami-1", &[]),
    ("odd=true", &[]),
    ("odd=true", &["template_id"]),
    ("", &["n:desc"]),
    ("", &["mixed", "image_id:desc"]),
    ("n>=10", &["mixed:desc"]),
    ("n=11", &["image_id"]),
    ("n=-1", &[]),
];

async fn pages_put_together_are_the_whole_answer(_folder: Folder, repository: Repository) {
    assert_eq!(followed(&repository, &select("", &["n"])).await, [""; 0], "an empty store has one empty page");
    load(&repository, 60).await;
    for (filter, order_by) in QUERIES {
        let unpaged = whole(&repository, &select(filter, order_by)).await;
        for limit in [1, 7, 59, 60, 61, 1000] {
            let paged = Select { limit: Some(limit), ..select(filter, order_by) };
            assert_eq!(followed(&repository, &paged).await, unpaged, "{filter} {order_by:?} {limit}");
        }
        assert_eq!(followed(&repository, &select(filter, order_by)).await, unpaged, "{filter} {order_by:?}");
    }
    let full =
        repository.query_page("templates", &Select { limit: Some(60), ..select("", &["n"]) }, None).await.unwrap();
    assert_eq!((full.entities.len(), full.next), (60, None), "nothing is promised where nothing is left");
}

async fn pages_are_longer_or_shorter_than_what_crosses_at_once(_folder: Folder, repository: Repository) {
    load(&repository, 2300).await;
    for (filter, order_by) in
        [("odd=true", &[][..]), ("odd=true", &["template_id:desc"]), ("", &["n:desc"]), ("n=766", &[])]
    {
        // Without an order pages of another length may come in another one.
        let ordered = |mut ids: Vec<String>| {
            if order_by.is_empty() {
                ids.sort();
            }
            ids
        };
        let unpaged = ordered(whole(&repository, &select(filter, order_by)).await);
        for limit in [400, 1149, 1151, 2301] {
            let paged = Select { limit: Some(limit), ..select(filter, order_by) };
            assert_eq!(ordered(followed(&repository, &paged).await), unpaged, "{filter} {order_by:?} {limit}");
        }
    }
    let first = repository.query_page("templates", &Select::default(), None).await.unwrap();
    assert_eq!(first.entities.len() as u64, QUERY_PAGE_ENTITIES);
    assert!(first.next.is_some());
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

async fn what_is_not_written_meanwhile_comes_exactly_once(_folder: Folder, repository: Repository) {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut random = Random(seed);
    load(&repository, 90).await;
    for (filter, order_by) in QUERIES {
        let before: BTreeSet<String> = whole(&repository, &select(filter, order_by)).await.into_iter().collect();
        let mut written = BTreeSet::new();
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        let mut cursor = None;
        loop {
            let paged = Select { limit: Some(1 + random.below(9) as u64), ..select(filter, order_by) };
            let page = repository.query_page("templates", &paged, cursor.as_deref()).await.expect("a page");
            for id in ids(page.entities) {
                *times.entry(id).or_default() += 1;
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
            for _ in 0..random.below(4) {
                let id = name(random.below(120));
                match random.below(3) {
                    0 => drop(repository.delete("templates", &id, None).await.expect("a delete")),
                    _ => {
                        let body = body(&id, &members(random.below(120)));
                        repository.save("templates", &body, Expectation::Any).await.expect("a save");
                    }
                }
                written.insert(id);
            }
        }
        for id in before.difference(&written) {
            assert_eq!(times.get(id), Some(&1), "{id} of {filter} {order_by:?}, seed {seed}");
        }
        for id in times.keys().filter(|id| !before.contains(*id)) {
            assert!(written.contains(id), "{id} of {filter} {order_by:?} is new and was not written, seed {seed}");
        }
    }
}

async fn what_is_not_written_comes_once_while_others_write_at_the_same_time(folder: Folder, repository: Repository) {
    load(&repository, 300).await;
    let store = repository.name().to_owned();
    let writer = folder.open(&store).await;
    let stop = Arc::new(AtomicBool::new(false));
    let task = tokio::spawn({
        let stop = stop.clone();
        async move {
            // Ids between the others', so that positions in a page move while it is asked for again.
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                for n in (0..300).step_by(7) {
                    let id = format!("{}-more", name(n));
                    let odd = body(&id, r#","odd":true"#);
                    writer.save("templates", &odd, Expectation::Any).await.expect("a save");
                    written += 1;
                    if written % 3 == 0 {
                        writer.delete("templates", &id, None).await.expect("a delete");
                    }
                }
            }
            written
        }
    });
    for (filter, order_by) in [("odd=true", &[][..]), ("odd=true", &["template_id:desc"]), ("odd=true", &["n:desc"])] {
        let paged = Select { limit: Some(11), ..select(filter, order_by) };
        let mut found = followed(&repository, &paged).await;
        found.retain(|id| !id.ends_with("-more"));
        found.sort();
        let expected: Vec<String> = (0..300).filter(|n| n % 2 == 1).map(name).collect();
        assert_eq!(found, expected, "{filter} {order_by:?}");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(task.await.expect("a writer that ends") > 0);
}

async fn a_cursor_is_good_for_its_own_query_alone(folder: Folder, repository: Repository) {
    load(&repository, 20).await;
    let refused = async |repository: &Repository, collection: &str, select: &Select, cursor: &str| {
        let error = repository.query_page(collection, select, Some(cursor)).await.expect_err("a refusal");
        assert!(error.is(ErrorKind::InvalidArgument) && error.hint.is_some(), "{error:?}");
        assert_eq!(error.message, "the cursor is damaged, or of another query or store");
    };
    for (filter, order_by) in QUERIES.into_iter().filter(|(filter, _)| !filter.starts_with("n")) {
        let own = Select { limit: Some(3), ..select(filter, order_by) };
        let page = repository.query_page("templates", &own, None).await.unwrap();
        let cursor = page.next.expect("a cursor");
        assert!(cursor.len() < 300 && cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        // Another limit is the same query, and so is another handle.
        let longer = Select { limit: Some(100), ..own.clone() };
        let again = folder.open(repository.name()).await;
        let rest = ids(again.query_page("templates", &longer, Some(&cursor)).await.unwrap().entities);
        assert_eq!(rest, whole(&repository, &select(filter, order_by)).await[3..]);

        let other_order = if order_by.is_empty() { &["name"][..] } else { &[] };
        refused(&repository, "templates", &Select { limit: Some(3), ..select(filter, other_order) }, &cursor).await;
        refused(&repository, "templates", &Select { limit: Some(3), ..select("name", order_by) }, &cursor).await;
        refused(&repository, "templates", &Select { index: Some("i".into()), ..own.clone() }, &cursor).await;
        refused(&repository, "machines", &own, &cursor).await;
        let other_store = if repository.name() == "single" { "split" } else { "single" };
        refused(&folder.open(other_store).await, "templates", &own, &cursor).await;
        for broken in
            ["", "x", "%", &cursor[1..], &cursor[..cursor.len() - 1], &cursor.to_lowercase(), &format!("{cursor}=")]
        {
            refused(&repository, "templates", &own, broken).await;
        }
    }
    let error = repository.query_page("templates", &Select { limit: Some(0), ..Select::default() }, None).await;
    assert!(error.expect_err("a refusal").is(ErrorKind::InvalidArgument));
}

async fn large_values_are_sorted_by_and_fit_no_cursor(_folder: Folder, repository: Repository) {
    // They differ in their last characters alone. A megabyte is more than an item of DynamoDB holds.
    let text = "x".repeat(if repository.name() == "dynamodb" { 400_000 } else { 1 << 20 });
    for n in 0..5 {
        let large = body(&name(n), &format!(r#","large":"{text}{}""#, 9 - n));
        repository.save("templates", &large, Expectation::Any).await.unwrap();
    }
    let ordered = Select { limit: Some(2), ..select("", &["large"]) };
    let unpaged = whole(&repository, &select("", &["large"])).await;
    assert_eq!(unpaged, (0..5).rev().map(name).collect::<Vec<_>>());
    assert_eq!(followed(&repository, &ordered).await, unpaged);

    let page = repository.query_page("templates", &ordered, None).await.unwrap();
    let cursor = page.next.expect("a cursor");
    assert!(cursor.len() < 200, "{} characters", cursor.len());
    // The cursor knows of the last entity only who it is.
    let last = page.entities.last().expect("an entity").clone();
    let mut fields = object(&last.body);
    fields.insert("note".into(), "another member does not matter".into());
    repository.update("templates", &last.id, &larder_model::json::to_vec(&fields), None).await.unwrap();
    let next = repository.query_page("templates", &ordered, Some(&cursor)).await.unwrap();
    assert_eq!(ids(next.entities), unpaged[2..4]);
    repository.delete("templates", &last.id, None).await.unwrap();
    let error = repository.query_page("templates", &ordered, Some(&cursor)).await.expect_err("a refusal");
    assert!(error.is(ErrorKind::InvalidArgument) && error.hint.is_some(), "{error:?}");
    assert!(error.message.contains("`template-0003`, which was changed or removed meanwhile"), "{error}");
}
