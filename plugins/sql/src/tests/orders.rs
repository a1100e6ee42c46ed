//! Sorts, cursors and indexes: the database sorts exactly as the contract says, or leaves it to the host.

use std::collections::HashSet;

use larder_model::{Entity, order};
use serde_json::Map;

use super::*;

on_both! {
    every_order_is_the_contracts,
    pages_go_on_behind_the_deepest_value,
    an_order_that_was_begun_is_kept_while_others_write,
    indexes_serve_what_they_are_for,
    an_index_serves_an_order_of_rows_that_all_match,
    an_order_that_is_mostly_beside_its_column_is_the_hosts,
}

/// A small generator of pseudo-random numbers.
struct Random(u64);

impl Random {
    /// A new seed each time, which a failure shows; or the one of `LARDER_TEST_SEED`.
    fn new() -> Random {
        let seed = match std::env::var("LARDER_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        };
        println!("LARDER_TEST_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Values that many rows share, so that ties are broken, and a few that a column does not hold.
fn value(random: &mut Random, ty: FieldType) -> &'static str {
    const ODD: [&str; 14] = [
        "null",
        "true",
        "1",
        "1.0",
        "-0",
        "2.5",
        "1e400",
        "9007199254740993",
        r#""x""#,
        r#""1""#,
        "[]",
        "{}",
        r#""a\u0000b""#,
        r#""2025-06-30T12:00:00Z""#,
    ];
    if random.below(8) == 0 {
        return random.pick(&ODD);
    }
    match ty {
        FieldType::Text => random.pick(&[r#""""#, r#""a""#, r#""B""#, r#""b""#, r#""é""#, r#""𝄞""#, r#""\ufb33""#]),
        FieldType::Integer => random.pick(&["0", "1", "-5", "12", "2147483647", "-2147483648"]),
        FieldType::Number => random.pick(&["0.0", "1.5", "-2.25", "1e300", "0.1"]),
        FieldType::Boolean => random.pick(&["true", "false"]),
        FieldType::Timestamp => random.pick(&[
            r#""2025-06-30T12:00:00.000000Z""#,
            r#""2025-06-30T12:00:00.000001Z""#,
            r#""0999-01-01T00:00:00.000000Z""#,
            r#""2024-02-29T23:59:59.999999Z""#,
        ]),
        FieldType::Json => random.pick(&["[1]", r#"{"a":1}"#, "2"]),
    }
}

fn body(random: &mut Random, id: usize) -> String {
    let mut members = vec![format!(r#""id":"{id:04}""#)];
    for (name, ty) in TYPES {
        if random.below(5) > 0 {
            members.push(format!(r#""{name}":{}"#, value(random, ty)));
        }
    }
    format!("{{{}}}", members.join(","))
}

fn stored(store: &mut SqlStore<Native>) -> Vec<(String, Map<String, Value>)> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let batch = store.scan("typed", 0, 1, cursor.as_deref(), 1 << 20).unwrap();
        found.extend(batch.entities.into_iter().map(|e: Entity| (e.id, json::parse_object(&e.body).unwrap())));
        cursor = batch.next;
        if cursor.is_none() {
            return found;
        }
    }
}

fn pages_go_on_behind_the_deepest_value(place: Place) {
    let mut fixture = open(place, "{}", typed());
    let levels = json::DEPTH_MAX - 1;
    let deepest = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let bodies = ["\"a\"", &deepest, "\"b\"", &deepest].into_iter().enumerate();
    let bodies: Vec<String> = bodies.map(|(id, text)| format!(r#"{{"id":"{id}","text":{text}}}"#)).collect();
    assert_eq!(fixture.load("typed", &bodies, Existing::Fail).written, 4);
    for descending in [false, true] {
        let order_by = vec![SortKey { field: FieldPath::member("text"), descending }];
        let (mut ids, _) = all_pages(&mut fixture.store, "typed", Query { order_by, limit: 1, ..everything() });
        ids.sort_unstable();
        assert_eq!(ids, ["0", "1", "2", "3"]);
    }
}

fn every_order_is_the_contracts(place: Place) {
    let mut random = Random::new();
    let mut fixture = open(place, "{}", typed());
    let bodies: Vec<String> = (0..300).map(|id| body(&mut random, id)).collect();
    assert_eq!(fixture.load("typed", &bodies, Existing::Fail).written, 300);
    // Beside what was loaded, what only a hand puts there.
    for set in match place {
        Place::Sqlite => &["integer = 'text'", "boolean = -7", "boolean = 0.5", "timestamp = 2025", "number = 'x'"][..],
        Place::Postgres => &["timestamp = 'infinity'", "timestamp = '0044-03-15 BC'", "timestamp = '10000-01-01'"],
    } {
        fixture.by_hand(&format!("UPDATE typed SET {set} WHERE id = '{:04}'", random.below(300)));
    }
    let all = stored(&mut fixture.store);
    assert_eq!(all.len(), 300);
    let mut sorted = 0;
    for _ in 0..120 {
        let order_by: Vec<SortKey> = (0..=random.below(3))
            .map(|_| {
                let names = ["text", "integer", "number", "boolean", "timestamp", "version", "id", "json", "other"];
                let weights = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8];
                let field = FieldPath::member(names[random.pick(&weights)]);
                SortKey { field, descending: random.below(2) == 0 }
            })
            .collect();
        let filter = match random.below(3) {
            0 => None,
            1 => Some(r#"{"field":"integer","op":">=","value":0}"#),
            _ => Some(r#"{"any":[{"boolean":true},{"field":"text","op":"in","value":["a","b","x"]}]}"#),
        };
        let filter = filter.map(|text| filter::parse_json(&json::parse(text.as_bytes()).unwrap()).unwrap());
        let mut expected: Vec<&(String, Map<String, Value>)> =
            all.iter().filter(|(_, e)| filter.as_ref().is_none_or(|filter| filter.matches(e))).collect();
        expected.sort_by(|a, b| order::compare(&order_by, (&a.0, &a.1), (&b.0, &b.1)));
        let limit = 1 + random.below(80) as u32;
        let max_bytes = if random.below(4) == 0 { 300 } else { 1 << 20 };
        let mut query = Query { filter, order_by: order_by.clone(), limit, max_bytes, ..everything() };
        let mut ids = Vec::new();
        let is_sorted = loop {
            let page = fixture.store.find("typed", &query).unwrap();
            assert!(page.entities.len() <= limit as usize);
            assert_eq!(page.unapplied, [0; 0]);
            ids.extend(page.entities.into_iter().map(|entity| entity.id));
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => break page.sorted,
            }
        };
        let mut wanted: Vec<&str> = expected.iter().map(|(id, _)| id.as_str()).collect();
        if !is_sorted {
            ids.sort();
            wanted.sort_unstable();
        }
        sorted += usize::from(is_sorted);
        assert_eq!(ids, wanted, "{order_by:?} {:?}", query.filter);
    }
    assert!(sorted > 40, "{sorted} of 120 were sorted by the database");
}

/// The host reads on in the order that a first page began, so each later page has to keep it, whatever is written.
fn an_order_that_was_begun_is_kept_while_others_write(place: Place) {
    let mut random = Random::new();
    let mut fixture = open(place, "{}", typed());
    let bodies: Vec<String> = (0..200)
        .map(|id| {
            format!(r#"{{"id":"{id:04}","integer":{},"timestamp":"2025-06-30T12:00:00.00000{}Z"}}"#, id % 7, id % 3)
        })
        .collect();
    fixture.load("typed", &bodies, Existing::Fail);
    for descending in [false, true] {
        for name in ["integer", "timestamp", "text"] {
            let order_by = vec![SortKey { field: FieldPath::member(name), descending }];
            let mut query = Query { order_by: order_by.clone(), limit: 9, ..everything() };
            let mut found: Vec<(String, Map<String, Value>)> = Vec::new();
            loop {
                let page = fixture.store.find("typed", &query).unwrap();
                assert!(page.sorted);
                found.extend(page.entities.into_iter().map(|e| (e.id, json::parse_object(&e.body).unwrap())));
                // Others come and go, in columns and beside them.
                let id = format!("{:04}-x", random.below(200));
                let value = random.pick(&["null", "1.5", "3", r#""text""#, "[]"]);
                let body = format!(r#"{{"id":"{id}","{name}":{value}}}"#);
                fixture.load("typed", &[body], Existing::Overwrite);
                match page.next {
                    Some(next) => query.cursor = Some(next),
                    None => break,
                }
            }
            let kept: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).filter(|id| !id.ends_with("-x")).collect();
            assert_eq!(kept.iter().collect::<HashSet<_>>().len(), 200, "each once: {name}");
            assert_eq!(kept.len(), 200);
            assert!(
                found.is_sorted_by(|a, b| order::compare(&order_by, (&a.0, &a.1), (&b.0, &b.1)).is_le()),
                "{name} {descending}"
            );
            fixture.by_hand("DELETE FROM typed WHERE id LIKE '%-x'");
        }
    }
}

fn indexes_serve_what_they_are_for(place: Place) {
    let mut fixture = open(place, "{}", family());
    fixture.load(
        "requests",
        &(0..50).map(|i| format!(r#"{{"request_id":"r{i}"}}"#)).collect::<Vec<_>>(),
        Existing::Fail,
    );
    let machines: Vec<String> = (0..12_000)
        .map(|i| {
            let status = ["NEW", "RUNNING", "GONE"][if i % 500 == 0 { 0 } else { 1 + i % 2 }];
            format!(
                r#"{{"machine_id":"m{i:05}","request_id":"r{}","status":"{status}","created_at":"2025-06-{:02}T12:00:00.{:06}Z","provider_data":{{"zone":"a"}}}}"#,
                i % 50,
                1 + i % 28,
                i * 7 % 1000,
            )
        })
        .collect();
    fixture.load("machines", &machines, Existing::Fail);
    fixture.by_hand("ANALYZE");
    let key = |name: &str, descending| SortKey { field: FieldPath::member(name), descending };
    for (filter, order_by, index) in [
        (r#"{"request_id":"r7"}"#, vec![key("created_at", false)], "request_id-created_at-index"),
        (r#"{"request_id":"r7"}"#, vec![key("created_at", true)], "request_id-created_at-index"),
        (r#"{"request_id":"r7","status":"RUNNING"}"#, vec![key("created_at", false)], "request_id-created_at-index"),
        (r#"{"status":"NEW"}"#, vec![], "status"),
        (r#"{"machine_id":"m00007"}"#, vec![], "machine_id"),
        ("{}", vec![key("status", false)], "status"),
        ("{}", vec![key("request_id", false), key("created_at", false)], "request_id-created_at-index"),
    ] {
        let filter = filter::parse_json(&json::parse(filter.as_bytes()).unwrap()).unwrap();
        let mut query = Query { filter: Some(filter), order_by, limit: 20, ..everything() };
        for page in 0..3 {
            let found = fixture.store.find("machines", &query).unwrap();
            let context = format!("page {page} of {:?} by {:?}", query.filter, query.order_by);
            assert!(found.sorted && found.unapplied.is_empty(), "{context}");
            assert_eq!(found.index_used.as_deref(), Some(index), "{context}");
            match found.next {
                Some(next) => query.cursor = Some(next),
                None => break,
            }
        }
    }
}

/// Only the order is a reason to take an index here.
fn an_index_serves_an_order_of_rows_that_all_match(place: Place) {
    let mut fixture = open(place, "{}", family());
    fixture.load("requests", &[r#"{"request_id":"r1"}"#.to_owned()], Existing::Fail);
    let machines: Vec<String> = (0..10_000)
        .map(|i| {
            format!(
                r#"{{"machine_id":"m{i:05}","request_id":"r1","status":"NEW","created_at":"2025-06-30T12:00:00.{:06}Z"}}"#,
                i * 7 % 1000
            )
        })
        .collect();
    fixture.load("machines", &machines, Existing::Fail);
    fixture.by_hand("ANALYZE");
    for descending in [false, true] {
        let filter = filter::parse_json(&json::parse(br#"{"request_id":"r1"}"#).unwrap()).unwrap();
        let order_by = vec![SortKey { field: FieldPath::member("created_at"), descending }];
        let mut query = Query { filter: Some(filter), order_by, limit: 50, ..everything() };
        for page in 0..3 {
            let found = fixture.store.find("machines", &query).unwrap();
            assert!(found.sorted);
            assert_eq!(found.index_used.as_deref(), Some("request_id-created_at-index"), "page {page}");
            query.cursor = found.next;
        }
    }
    // An index that is gone is missed by nobody.
    fixture.by_hand("DROP INDEX idx_machines_larder_exact");
    let order_by = vec![SortKey { field: FieldPath::member("count"), descending: false }];
    assert!(fixture.store.find("machines", &Query { order_by, ..everything() }).unwrap().sorted);
}

fn an_order_that_is_mostly_beside_its_column_is_the_hosts(place: Place) {
    let mut fixture = open(place, "{}", typed());
    // No column for integers keeps `1.0`.
    let bodies: Vec<String> = (0..1_500).map(|id| format!(r#"{{"id":"{id:04}","integer":{}.0}}"#, id % 7)).collect();
    fixture.load("typed", &bodies, Existing::Fail);
    let order_by = vec![SortKey { field: FieldPath::member("integer"), descending: false }];
    let mut query = Query { order_by, ..everything() };
    let mut ids = HashSet::new();
    loop {
        let page = fixture.store.find("typed", &query).unwrap();
        assert!(!page.sorted);
        ids.extend(page.entities.into_iter().map(|entity| entity.id));
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(ids.len(), 1_500);
    // What other columns do not hold is no matter.
    let order_by = vec![SortKey { field: FieldPath::member("text"), descending: false }];
    let page = fixture.store.find("typed", &Query { order_by, ..everything() }).unwrap();
    assert!(page.sorted && page.entities.len() == 100);
}
