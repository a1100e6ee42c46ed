//! Writers that meet: nobody's write is lost, nobody is written over unseen, and whoever was in the way is tried again.

use std::{
    sync::Barrier,
    thread::{scope, spawn},
};

use super::*;

on_both! {
    first_writers_make_the_tables_once,
    saves_of_one_entity_each_count,
    of_many_who_expect_it_absent_one_is_right,
    loads_of_the_same_entities_meet,
    writes_in_opposite_orders_get_through,
    a_transaction_that_met_another_one_can_be_begun_again,
}

const WRITERS: usize = 4;

/// Stores of their own over one database, one a thread, that begin at once.
fn at_once<T: Send>(
    sql: &Native,
    collections: fn() -> Vec<Collection>,
    work: impl Fn(usize, &mut SqlStore<Native>) -> T + Sync,
) -> Vec<T> {
    let barrier = Barrier::new(WRITERS);
    let (barrier, work) = (&barrier, &work);
    scope(|scope| {
        let threads: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let sql = sql.clone();
                scope.spawn(move || {
                    let (mut store, _) = SqlStore::open_in(sql, "{}", collections()).unwrap();
                    barrier.wait();
                    work(writer, &mut store)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn first_writers_make_the_tables_once(place: Place) {
    for _ in 0..5 {
        let sql = Native::new(place);
        at_once(&sql, family, |writer, store| {
            for n in 0..5 {
                let body = format!(r#"{{"request_id":"r{writer}-{n}"}}"#);
                store.apply(vec![put("requests", &body, Expectation::Absent)], true, NOW).unwrap();
            }
        });
        let (mut store, _) = SqlStore::open_in(sql, "{}", family()).unwrap();
        assert_eq!(store.count("requests", None).unwrap(), Some(20));
        assert_eq!(store.prepare(false, false).unwrap(), [""; 0]);
    }
}

fn saves_of_one_entity_each_count(place: Place) {
    let sql = Native::new(place);
    at_once(&sql, family, |_, store| {
        for _ in 0..25 {
            store.apply(vec![put("requests", r#"{"request_id":"r"}"#, Expectation::Any)], true, NOW).unwrap();
        }
    });
    let (mut store, _) = SqlStore::open_in(sql, "{}", family()).unwrap();
    let found = store.get("requests", &["r".to_owned()]).unwrap().remove(0).unwrap();
    assert_eq!(found.version, 100);
}

fn of_many_who_expect_it_absent_one_is_right(place: Place) {
    let sql = Native::new(place);
    for n in 0..20 {
        let body = format!(r#"{{"request_id":"r{n}"}}"#);
        for atomic in [true, false] {
            let results = at_once(&sql, family, |_, store| {
                let write = put("requests", &body, Expectation::Absent);
                store.apply(vec![write], atomic, NOW).and_then(|mut results| results.remove(0))
            });
            let made = results.iter().filter(|result| result.is_ok()).count();
            assert_eq!(made, usize::from(atomic), "{results:?}");
            for error in results.into_iter().filter_map(Result::err) {
                assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error}");
            }
        }
    }
}

fn loads_of_the_same_entities_meet(place: Place) {
    let sql = Native::new(place);
    let bodies: Vec<String> = (0..500).map(|i| format!(r#"{{"request_id":"r{i:03}"}}"#)).collect();
    let loaded = at_once(&sql, family, |_, store| {
        let entities = bodies.iter().map(|body| entity(body)).collect();
        store.load("requests", entities, Existing::Fail).unwrap()
    });
    assert_eq!(loaded.iter().map(|loaded| loaded.written).sum::<u64>(), 500, "{loaded:?}");
    assert!(loaded.iter().all(|loaded| loaded.written + loaded.unchanged == 500), "{loaded:?}");
}

fn writes_in_opposite_orders_get_through(place: Place) {
    let sql = Native::new(place);
    at_once(&sql, family, |writer, store| {
        for _ in 0..15 {
            let mut ids: Vec<usize> = (0..20).collect();
            if writer % 2 == 0 {
                ids.reverse();
            }
            let writes = ids.iter().flat_map(|id| {
                let request = put("requests", &format!(r#"{{"request_id":"r{id}"}}"#), Expectation::Any);
                let machine = format!(r#"{{"machine_id":"m{id}","request_id":"r{id}","status":"NEW"}}"#);
                [request, put("machines", &machine, Expectation::Any)]
            });
            store.apply(writes.collect(), true, NOW).unwrap();
        }
    });
    let (mut store, _) = SqlStore::open_in(sql, "{}", family()).unwrap();
    for id in ["m0", "m19"] {
        let found = store.get("machines", &[id.to_owned()]).unwrap().remove(0).unwrap();
        assert_eq!(found.version, 60);
    }
}

/// Each adds 1 to what it read in a transaction, until that was committed 10 times.
fn a_transaction_that_met_another_one_can_be_begun_again(place: Place) {
    let sql = Native::new(place);
    let ids = ["r".to_owned()];
    let add = |store: &mut SqlStore<Native>, for_update: bool| -> Result<()> {
        let isolation = if for_update { Some(Isolation::ReadCommitted) } else { None };
        let mut transaction = store.begin(isolation, false)?;
        let found = store.transaction_get(&mut transaction, "requests", &ids, for_update)?.remove(0);
        let n = found.map_or(0, |found| json::parse_object(&found.body).unwrap()["n"].as_i64().unwrap());
        let write = put("requests", &format!(r#"{{"request_id":"r","n":{}}}"#, n + 1), Expectation::Any);
        store.transaction_apply(&mut transaction, vec![write], NOW)?;
        store.commit(transaction)
    };
    at_once(&sql, family, |_, store| {
        let mut done = 0;
        while done < 10 {
            // Before there is anything to lock, somebody may be faster.
            match add(store, done % 2 == 1) {
                Ok(()) => done += 1,
                Err(error) => {
                    assert_eq!((error.kind, error.retry), (ErrorKind::VersionConflict, Retry::Safe), "{error}");
                }
            }
        }
    });
    let (mut store, _) = SqlStore::open_in(sql, "{}", family()).unwrap();
    let found = store.get("requests", &ids).unwrap().remove(0).unwrap();
    assert!(String::from_utf8(found.body).unwrap().contains(r#""n":40"#));
}

/// A save that is written while another transaction inserts the same entity waits for it, and counts it.
#[test]
fn what_somebody_inserts_meanwhile_is_not_written_over() {
    let mut fixture = open(Place::Postgres, "{}", family());
    fixture.put("requests", r#"{"request_id":"other"}"#).unwrap();
    let mut transaction = fixture.store.begin(Some(Isolation::ReadCommitted), false).unwrap();
    let write = put("requests", r#"{"request_id":"r","n":1}"#, Expectation::Absent);
    fixture.store.transaction_apply(&mut transaction, vec![write], NOW).unwrap();
    let (mut other, _) = SqlStore::open_in(fixture.sql.clone(), "{}", family()).unwrap();
    let waiting =
        spawn(move || other.apply(vec![put("requests", r#"{"request_id":"r","n":2}"#, Expectation::Any)], true, NOW));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!waiting.is_finished());
    fixture.store.commit(transaction).unwrap();
    let outcome = waiting.join().unwrap().unwrap().remove(0).unwrap();
    assert_eq!((outcome.version, outcome.existed), (2, true));
}
