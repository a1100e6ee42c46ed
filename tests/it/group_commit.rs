//! Writes that share a flush, on `tests/guests/ledger`: its file holds what was flushed and nothing else, and it counts.
//!
//! Most tests are of one thread and begin with a transaction that keeps the only instance. Calls that are made meanwhile
//! queue up behind it in the order in which they are made, so that what stands behind what is known.

use larder::error::Kind;
use larder::{Entity, Error, ErrorKind, Existing, Expectation, Host, Repository, Transaction};
use larder_model::Retry;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::{Folder, guests};

struct Ledger {
    folder: Folder,
    repository: Repository,
    host: Host,
}

impl Ledger {
    async fn open() -> Ledger {
        Ledger::open_with("{}").await
    }

    async fn open_with(section: &str) -> Ledger {
        let config = r#"{"storage": {"strategy": "ledger", "stores": {"ledger": {"strategy": "ledger",
                "ledger_strategy": SECTION, "grants": {"files": {"directory": "@/ledger"}}}}},
                "plugins": {"call_timeout": 2.5, "cpu_timeout": 0.5}}"#;
        let folder = Folder::new(&config.replace("SECTION", section));
        let host = folder.host_with(&guests());
        let repository = host.open(None).await.expect("a store that opens");
        Ledger { folder, repository, host }
    }

    /// What was flushed.
    fn lines(&self) -> Vec<String> {
        match self.folder.has("ledger/ledger.txt") {
            true => self.folder.read("ledger/ledger.txt").lines().map(str::to_owned).collect(),
            false => Vec::new(),
        }
    }

    fn has(&self, id: &str) -> bool {
        self.lines().iter().any(|line| line == id)
    }

    async fn flushes(&self) -> u64 {
        self.repository.check(true).await.expect("findings")["flushes"].as_u64().expect("a number")
    }

    /// Keeps every call from the instance, and leaves nothing when it is rolled back.
    async fn hold(&self) -> Transaction {
        self.repository.begin(None, false).await.expect("a transaction")
    }

    /// A save that stands in the queue when this returns.
    async fn queue_save(&self, id: &str) -> JoinHandle<Result<(), Error>> {
        let (repository, id) = (self.repository.clone(), id.to_owned());
        queued(async move { save(&repository, &id).await }).await
    }

    /// A get that does.
    async fn queue_get(&self, id: &str) -> JoinHandle<Result<(), Error>> {
        let (repository, id) = (self.repository.clone(), id.to_owned());
        queued(async move { repository.get("templates", &[id]).await.map(drop) }).await
    }
}

async fn queued(call: impl Future<Output = Result<(), Error>> + Send + 'static) -> JoinHandle<Result<(), Error>> {
    let call = tokio::spawn(call);
    // On one thread it runs up to where it has to wait.
    tokio::task::yield_now().await;
    assert!(!call.is_finished(), "nothing kept it from the instance");
    call
}

async fn save(repository: &Repository, id: &str) -> Result<(), Error> {
    let body = json!({ "template_id": id }).to_string();
    repository.save("templates", body.as_bytes(), Expectation::Any).await.map(drop)
}

async fn answer(call: JoinHandle<Result<(), Error>>) -> Result<(), Error> {
    call.await.expect("a call that ends")
}

/// The error of a write of which nobody can say whether it lasts.
#[track_caller]
fn not_durable(answer: Result<(), Error>, kind: Kind) -> Error {
    let error = answer.expect_err("it was acknowledged");
    assert_eq!((error.kind, error.retry), (kind, Retry::UnknownOutcome), "{error:?}");
    assert!(error.message.contains("perhaps not durable"), "{error:?}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_saves_at_once_few_flush_and_each_is_durable_when_it_is_acknowledged() {
    let ledger = std::sync::Arc::new(Ledger::open().await);
    let saves: Vec<_> = (0..64)
        .map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let id = format!("template-{n}");
                save(&ledger.repository, &id).await.expect("a save");
                assert!(ledger.has(&id), "{id} was acknowledged and is not durable");
            })
        })
        .collect();
    for save in saves {
        save.await.expect("a save that lasts");
    }
    assert_eq!(ledger.lines().len(), 64);
    let flushes = ledger.flushes().await;
    assert!(flushes <= 16, "{flushes} flushes of 64 saves at once");
}

#[tokio::test]
async fn a_store_that_needs_no_flush_is_flushed_after_loads_alone() {
    let ledger = Ledger::open_with(r#"{"needs_no_flush": true}"#).await;
    save(&ledger.repository, "saved").await.expect("a save");
    let mut transaction = ledger.hold().await;
    let body = json!({ "template_id": "committed" }).to_string();
    transaction.save("templates", body.as_bytes(), Expectation::Any).await.expect("a save");
    transaction.commit().await.expect("a commit");
    assert_eq!((ledger.flushes().await, ledger.lines()), (0, Vec::new()));
    let entity =
        Entity { id: "loaded".into(), version: 1, body: json!({ "template_id": "loaded" }).to_string().into_bytes() };
    ledger.repository.load("templates", vec![entity], Existing::Fail).await.expect("a load");
    ledger.repository.flush().await.expect("a flush");
    assert_eq!((ledger.flushes().await, ledger.has("loaded")), (1, true));
}

#[tokio::test]
async fn the_last_of_a_queue_flushes_for_all_and_each_that_is_alone_for_itself() {
    let ledger = Ledger::open().await;
    for (n, id) in ["a", "b", "c"].into_iter().enumerate() {
        save(&ledger.repository, id).await.expect("a save");
        assert_eq!((ledger.has(id), ledger.flushes().await), (true, n as u64 + 1));
    }
    let held = ledger.hold().await;
    let mut saves = Vec::new();
    for n in 0..16 {
        saves.push(ledger.queue_save(&format!("queued-{n}")).await);
    }
    held.rollback().await.expect("a rollback");
    for save in saves {
        answer(save).await.expect("a save");
    }
    assert_eq!((ledger.lines().len(), ledger.flushes().await), (3 + 16, 3 + 1));
}

#[tokio::test]
async fn a_commit_shares_the_flush_of_the_write_behind_it() {
    let ledger = Ledger::open().await;
    let mut transaction = ledger.hold().await;
    let body = br#"{"template_id": "committed"}"#;
    transaction.save("templates", body, Expectation::Any).await.expect("a save");
    let saved = ledger.queue_save("saved").await;
    transaction.commit().await.expect("a commit");
    assert!(ledger.has("committed"), "it was acknowledged and is not durable");
    answer(saved).await.expect("a save");
    assert_eq!((ledger.lines().len(), ledger.flushes().await), (2, 1));
}

#[tokio::test]
async fn a_flush_that_fails_fails_every_write_that_relied_on_it_and_none_after() {
    for (poison, kind) in [("unwritable", Kind::Contract(ErrorKind::LimitExceeded)), ("deadly", Kind::Trap)] {
        let ledger = Ledger::open().await;
        save(&ledger.repository, "before").await.expect("a save");
        let held = ledger.hold().await;
        let first = ledger.queue_save("first").await;
        let second = ledger.queue_save(poison).await;
        let third = ledger.queue_save("third").await;
        held.rollback().await.expect("a rollback");
        for write in [first, second, third] {
            not_durable(answer(write).await, kind);
        }
        save(&ledger.repository, "after").await.expect("a save");
        assert_eq!(ledger.lines(), ["before", "after"]);
    }
}

#[tokio::test]
async fn a_write_whose_instance_was_lost_before_its_flush_is_not_acknowledged() {
    for deed in ["panic", "spin"] {
        let ledger = Ledger::open().await;
        let held = ledger.hold().await;
        let first = ledger.queue_save("first").await;
        let lost = ledger.queue_get(deed).await;
        let last = ledger.queue_save("last").await;
        held.rollback().await.expect("a rollback");
        answer(lost).await.expect_err("an answer of what does not answer");
        let error = not_durable(answer(first).await, Kind::Contract(ErrorKind::Unavailable));
        assert!(error.causes.iter().any(|cause| cause.contains("ended before it flushed")), "{error:?}");
        answer(last).await.expect("a save");
        save(&ledger.repository, "after").await.expect("a save");
        assert!(!ledger.has("first") && ledger.has("after"));
    }
}

#[tokio::test]
async fn a_write_that_no_other_follows_is_durable_before_what_follows() {
    let ledger = Ledger::open().await;
    let held = ledger.hold().await;
    let saved = ledger.queue_save("saved").await;
    let lost = ledger.queue_get("panic").await;
    held.rollback().await.expect("a rollback");
    answer(saved).await.expect("a save");
    answer(lost).await.expect_err("an answer of what does not answer");
    assert_eq!(ledger.lines(), ["saved"]);
}

#[tokio::test]
async fn a_transaction_does_not_keep_others_from_their_flush() {
    let ledger = Ledger::open().await;
    let held = ledger.hold().await;
    let first = ledger.queue_save("first").await;
    let (began, is_open) = tokio::sync::oneshot::channel();
    let repository = ledger.repository.clone();
    let transaction = queued(async move {
        let transaction = repository.begin(None, false).await?;
        let _ = began.send(transaction);
        Ok(())
    })
    .await;
    let last = ledger.queue_save("last").await;
    held.rollback().await.expect("a rollback");
    answer(transaction).await.expect("a transaction");
    let transaction = is_open.await.expect("a transaction");
    answer(first).await.expect("a save that waits for no transaction");
    assert!(ledger.has("first") && !last.is_finished());
    drop(transaction);
    answer(last).await.expect("a save");
}

#[tokio::test]
async fn who_flushes_for_others_and_is_given_up_takes_nothing_of_theirs_along() {
    let ledger = Ledger::open().await;
    let held = ledger.hold().await;
    let first = ledger.queue_save("first").await;
    let last = ledger.queue_save("last").await;
    held.rollback().await.expect("a rollback");
    // The guest appends before it syncs: now the flush is under way, or has ended.
    while !ledger.has("last") {
        tokio::task::yield_now().await;
    }
    last.abort();
    answer(first).await.expect("a save");
    assert_eq!(ledger.lines(), ["first", "last"]);
    assert_eq!(ledger.flushes().await, 1, "the instance was lost");
}

#[tokio::test]
async fn a_write_that_leaves_its_flush_to_one_that_goes_away_flushes_in_its_turn() {
    let ledger = Ledger::open().await;
    let held = ledger.hold().await;
    let first = ledger.queue_save("first").await;
    let between = ledger.queue_get("wait").await;
    let last = ledger.queue_save("last").await;
    held.rollback().await.expect("a rollback");
    while !ledger.folder.has("ledger/waiting") {
        tokio::task::yield_now().await;
    }
    // The first is written, and the last still stands in the queue.
    last.abort();
    ledger.folder.write("ledger/go", "now");
    answer(between).await.expect("an answer");
    answer(first).await.expect("a save");
    assert!(ledger.has("first"));
}

#[tokio::test]
async fn a_flush_tells_of_loads_that_were_lost_and_a_close_flushes_them() {
    let ledger = Ledger::open().await;
    let load = async |id: &str| {
        let entity = Entity { id: id.to_owned(), version: 1, body: json!({ "template_id": id }).to_string().into() };
        ledger.repository.load("templates", vec![entity], Existing::Fail).await.expect("a load");
    };
    load("lost").await;
    ledger.repository.get("templates", &["panic".to_owned()]).await.expect_err("an answer of what does not answer");
    not_durable(ledger.repository.flush().await, Kind::Contract(ErrorKind::Unavailable));
    ledger.repository.flush().await.expect("nothing is left to be lost");

    load("unwritable").await;
    not_durable(ledger.repository.flush().await, Kind::Contract(ErrorKind::LimitExceeded));
    load("kept").await;
    ledger.repository.flush().await.expect("a flush");
    load("closed").await;
    ledger.repository.close().await.expect("a close");
    assert_eq!(ledger.lines(), ["kept", "closed"]);
    load("left").await;
    assert_eq!(ledger.host.close().await.len(), 0);
    assert_eq!(ledger.lines(), ["kept", "closed", "left"]);

    // What nobody is left to flush goes with the last handle, and does not wait for a close.
    load("nobody's").await;
    drop(ledger.repository);
    assert_eq!(ledger.host.close().await.len(), 0);
    assert!(!ledger.folder.read("ledger/ledger.txt").contains("nobody's"));
}
