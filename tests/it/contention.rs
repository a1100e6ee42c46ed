//! Many processes at one store: nobody's write is lost, everybody gets a turn, and whoever dies with the lock in its hand
//! keeps nobody waiting.
//!
//! Each worker opens the store once and goes through the library (see `tests/worker.rs`). `cargo xtask contention` runs the
//! long form.

use std::time::Duration;

use larder_model::Expectation;

use crate::place::{Opens, Place, on_every_store, template};
use crate::support::object;
use crate::workers::Worker;

on_every_store! {
    processes_that_save_at_once_lose_nothing,
    processes_that_count_in_one_entity_lose_no_count,
    a_writer_gets_its_turns_beside_processes_that_query,
    a_process_that_is_killed_in_a_transaction_blocks_nobody,
}

/// How much is done.
struct Extent {
    processes: usize,
    saves: usize,
    increments: usize,
    seconds: usize,
    /// One turn of the writer may take this part of the whole time.
    part: u64,
}

fn extent() -> Extent {
    match std::env::var_os("LARDER_CONTENTION_FULL") {
        Some(_) => Extent { processes: 16, saves: 1000, increments: 250, seconds: 30, part: 4 },
        None => Extent { processes: 6, saves: 100, increments: 40, seconds: 3, part: 2 },
    }
}

/// Starts one for each list of words.
fn start(place: &Place, works: impl IntoIterator<Item = [String; 3]>) -> Vec<Worker> {
    let start = |work: [String; 3]| Worker::start(&place.folder, place.store, &work.each_ref().map(String::as_str));
    works.into_iter().map(start).collect()
}

async fn processes_that_save_at_once_lose_nothing(place: &Place) {
    let Extent { processes, saves, .. } = extent();
    let works = (0..processes).map(|process| ["save".to_owned(), format!("p{process}"), saves.to_string()]);
    for worker in start(place, works) {
        assert_eq!(worker.finish().len(), saves);
    }
    let repository = place.open().await;
    assert_eq!(repository.count("templates", None).await.unwrap(), (processes * saves) as u64);
    for process in 0..processes {
        let ids: Vec<String> = (0..saves).map(|n| format!("p{process}-{n}")).collect();
        for (n, found) in repository.get("templates", &ids).await.unwrap().into_iter().enumerate() {
            let found = found.unwrap_or_else(|| panic!("{} is lost", ids[n]));
            assert_eq!((found.version, object(&found.body)["n"].as_u64()), (1, Some(n as u64)));
        }
    }
    println!("{processes} processes at {}: {} entities saved and there", place.store, processes * saves);
}

async fn processes_that_count_in_one_entity_lose_no_count(place: &Place) {
    let Extent { processes, increments, .. } = extent();
    let repository = place.open().await;
    repository.save("templates", &template("counter", r#","n":0"#), Expectation::Absent).await.unwrap();
    let works = (0..processes).map(|_| ["increment".to_owned(), "counter".to_owned(), increments.to_string()]);
    let mut versions: Vec<u64> = Vec::new();
    for worker in start(place, works) {
        versions.extend(worker.finish().iter().map(|version| version.parse::<u64>().expect("a version")));
    }
    let count = (processes * increments) as u64;
    let found = repository.get_one("templates", "counter").await.unwrap().expect("it was saved");
    assert_eq!((object(&found.body)["n"].as_u64(), found.version), (Some(count), count + 1));
    versions.sort_unstable();
    assert!(versions.into_iter().eq(2..=count + 1), "each version is somebody's");
    println!("{processes} processes at {}: counted to {count}", place.store);
}

async fn a_writer_gets_its_turns_beside_processes_that_query(place: &Place) {
    let Extent { seconds, part, .. } = extent();
    let repository = place.open().await;
    for n in 0..200 {
        let body = template(&format!("t{n}"), "");
        repository.save("templates", &body, Expectation::Absent).await.unwrap();
    }
    let mut readers: Vec<Worker> = (0..2).map(|_| Worker::start(&place.folder, place.store, &["query"])).collect();
    // They are at it.
    for reader in &mut readers {
        reader.next().expect("an answer");
    }
    // A disk that stalls for a moment is nobody's fault; who is kept from its turns is so each time.
    let mut is_kept = true;
    for _ in 0..3 {
        let writer = Worker::start(&place.folder, place.store, &["write", &seconds.to_string()]);
        let waits: Vec<u64> = writer.finish().iter().map(|wait| wait.parse().expect("a number")).collect();
        let (turns, longest, all) = (waits.len(), waits.iter().max().expect("a turn"), waits.iter().sum::<u64>());
        println!("a writer at {}: {turns} turns in {seconds} s, the longest took {longest} µs of {all}", place.store);
        is_kept = turns < 20 || longest * part > all;
        if !is_kept {
            break;
        }
    }
    assert!(!is_kept, "the readers keep the writer from its turns");
    let queries: Vec<usize> = readers.into_iter().map(|reader| reader.kill().len()).collect();
    println!("beside {queries:?} queries");
    assert!(queries.iter().all(|queries| *queries > 0), "{queries:?}: somebody never read");
}

async fn a_process_that_is_killed_in_a_transaction_blocks_nobody(place: &Place) {
    let repository = place.open().await;
    repository.save("templates", &template("a", ""), Expectation::Absent).await.unwrap();
    for round in 0..3 {
        // The same entity: a database on a server lets nobody wait who writes another one.
        let id = format!("waited-{round}-0");
        let mut holder = Worker::start(&place.folder, place.store, &["hold", &id]);
        assert_eq!(holder.next().as_deref(), Some("holds"));
        let mut waiting = Worker::start(&place.folder, place.store, &["save", &format!("waited-{round}"), "1"]);
        // Time to come to the lock; where it is too short, this only says less.
        std::thread::sleep(Duration::from_millis(50));
        // Transactions of DynamoDB hold no locks: who commits last has lost.
        if place.store != "dynamodb" {
            assert_eq!(waiting.told(), None, "somebody else holds the lock");
        }
        holder.kill();
        assert_eq!(waiting.next().as_deref(), Some("0"), "it goes on where the holder is gone");
        waiting.finish();
        let strongest = repository.plugin().description.isolations.iter().copied().max();
        let mut transaction = repository.begin(strongest, false).await.unwrap();
        let found = transaction.get("templates", &[id.clone(), "a".to_owned()], true).await.unwrap();
        let written = found[0].as_ref().expect("it was saved");
        assert!(!object(&written.body).contains_key("held"), "a part of a transaction that did not end");
        transaction.update("templates", "a", &template("a", ""), Some(round + 1)).await.unwrap();
        transaction.commit().await.unwrap();
    }
    assert_eq!(repository.count("templates", None).await.unwrap(), 4);
}
