//! What only a service far away has: tables that are gone or were never made, credentials, throttling, batches that are
//! carried out in part, answers that are lost, and an engine that is killed and comes back.
//!
//! Whatever happens, a call ends with what was asked for or with an error of the right kind, nothing is written twice, and
//! no answer is empty that should not be: the tests look into the tables by requests of their own ([`crate::tables`]), and
//! stand between Larder and the engine with a proxy ([`crate::fault_proxy`]).

use std::fmt::Debug;
use std::process::Stdio;
use std::time::{Duration, Instant};

use larder::error::Error;
use larder::query::Select;
use larder::repository::Repository;
use larder_model::{Entity, ErrorKind, Existing, Expectation, Put, Removal, Retry, Write};
use larder_test_engine::{Engine, call_scaling};
use serde_json::{Map, Value, json};

use crate::fault_proxy::{Fault, FaultProxy, When};
use crate::place::template;
use crate::support::{Folder, Run, assert_same_object, object, run_with};
use crate::tables::{Tables, key, own_engine, scaling_url};

const COLLECTIONS: [&str; 3] = ["machines", "requests", "templates"];
/// Requests that read entities or write them.
const OPERATIONS: [&str; 9] = [
    "GetItem",
    "BatchGetItem",
    "PutItem",
    "DeleteItem",
    "BatchWriteItem",
    "TransactWriteItems",
    "Query",
    "Scan",
    "DescribeTable",
];
const WRITES: [&str; 4] = ["PutItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"];

/// How a bulk load writes what is new.
struct LoadWay {
    /// More of `dynamodb_strategy`.
    members: &'static str,
    operation: &'static str,
    /// What one request takes.
    items: u64,
}

const IN_TRANSACTIONS: LoadWay =
    LoadWay { members: r#","load_in_transactions":true"#, operation: "TransactWriteItems", items: 100 };
const IN_BATCHES: LoadWay = LoadWay { members: "", operation: "BatchWriteItem", items: 25 };

/// A store `tables`, its tables, and a proxy before their engine.
struct Site {
    folder: Folder,
    proxy: FaultProxy,
    tables: Tables,
    /// None where it is the one that all tests share.
    engine: Option<Engine>,
}

impl Site {
    /// Prepared, on the engine that all tests share.
    async fn new() -> Site {
        let site = Site::unprepared(20, "").await;
        site.prepare().await;
        site
    }

    /// Without tables. A call may take so many seconds; `members` are more of `dynamodb_strategy`, each preceded by a comma.
    async fn unprepared(call_seconds: u32, members: &str) -> Site {
        Site::before(Tables::new("site"), None, call_seconds, members).await
    }

    /// The same, and bulk loads are made this way.
    async fn loading(way: &LoadWay) -> Site {
        let site = Site::unprepared(20, way.members).await;
        site.prepare().await;
        site
    }

    /// The same, on an engine of its own.
    async fn with_engine(way: &LoadWay) -> Site {
        let engine = own_engine();
        let site = Site::before(Tables::on(engine.url(), "own"), Some(engine), 20, way.members).await;
        site.prepare().await;
        site
    }

    async fn before(tables: Tables, engine: Option<Engine>, call_seconds: u32, members: &str) -> Site {
        let proxy = FaultProxy::before(&tables.url).await;
        let folder = Folder::new(&config(&format!("{}{members}", tables.members_at(&proxy.url())), call_seconds));
        Site { folder, proxy, tables, engine }
    }

    async fn prepare(&self) {
        self.open().await.prepare(false, false).await.expect("tables");
    }

    async fn open(&self) -> Repository {
        self.folder.open("tables").await
    }

    fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("an engine of its own")
    }

    /// How many requests that write were seen.
    fn writes(&self) -> u64 {
        WRITES.iter().map(|operation| self.proxy.count(operation)).sum()
    }

    fn on_each(&self, when: When, fault: Fault) {
        for operation in OPERATIONS {
            self.proxy.on(operation, when, fault.clone());
        }
    }
}

/// A configuration with a store `tables`, and a JSON store `json` beside it.
fn config(members: &str, call_seconds: u32) -> String {
    format!(
        r#"{{"plugins": {{"call_timeout": {call_seconds}}}, "migration": {{"create_backup": false}},
            "storage": {{"strategy": "tables", "json_strategy": {{"base_path": "@/json"}}, "stores": {{
                "tables": {{"strategy": "dynamodb", "dynamodb_strategy": {{{members}}}}}
            }}}}}}"#
    )
}

#[track_caller]
fn fails<T: Debug>(result: Result<T, Error>, kinds: &[ErrorKind]) -> Error {
    let error = result.expect_err("an error");
    assert!(kinds.iter().any(|kind| error.is(*kind)), "{error:?} is none of {kinds:?}");
    error
}

/// The error that a run of the program with `--format json` ended with, which gave no answer.
#[track_caller]
fn error(run: &Run, code: i32, kind: &str) -> Map<String, Value> {
    assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{run:#?}");
    let error = object(run.stderr.lines().last().expect("an error"));
    assert_eq!(error["kind"], kind, "{run:#?}");
    error
}

async fn save(repository: &Repository, id: &str, more: &str) -> Result<u64, Error> {
    let saved = repository.save("templates", &template(id, more), Expectation::Any).await;
    saved.map(|(_, outcome)| outcome.version)
}

fn put(id: &str, more: &str, expect: Expectation) -> Write {
    Write::Put(Put { collection: "templates".into(), id: id.into(), body: template(id, more), expect })
}

fn remove(id: &str) -> Write {
    Write::Remove(Removal { collection: "templates".into(), id: id.into(), expect: Expectation::Present })
}

fn entities(count: u64, more: &str) -> Vec<Entity> {
    let entity = |id: String| Entity { version: 0, body: template(&id, more), id };
    (0..count).map(|n| entity(format!("t{n}"))).collect()
}

fn ids(count: u64) -> Vec<String> {
    (0..count).map(|n| format!("t{n}")).collect()
}

/// The version of a template as it stands in the table; none where there is no such item.
fn version(tables: &Tables, id: &str) -> Option<u64> {
    tables.item("templates", id)["version"]["N"].as_str().map(|number| number.parse().expect("a whole number"))
}

/// Everything that can be asked of a store, and how each ended.
async fn ask_everything(repository: &Repository) -> Vec<(&'static str, Result<String, Error>)> {
    let shown = |value: &dyn Debug| format!("{value:?}");
    let name = "templates";
    vec![
        ("get", repository.get(name, &["a".into()]).await.map(|it| shown(&it))),
        ("query", repository.query(name, Select::default()).collect().await.map(|it| shown(&it))),
        ("count", repository.count(name, None).await.map(|it| shown(&it))),
        ("save", repository.save(name, &template("a", ""), Expectation::Any).await.map(|it| shown(&it))),
        ("delete", repository.delete(name, "a", None).await.map(|it| shown(&it))),
        ("apply", repository.apply(vec![put("a", "", Expectation::Any)], true).await.map(|it| shown(&it))),
        ("load", repository.load(name, entities(30, ""), Existing::Overwrite).await.map(|it| shown(&it))),
    ]
}

// Tables that are not there, and who may not reach them.

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_gone_is_no_empty_one_and_is_not_made_again() {
    let site = Site::new().await;
    let repository = site.open().await;
    save(&repository, "a", "").await.unwrap();
    assert_eq!(site.tables.collections(), COLLECTIONS);
    site.tables.call("DeleteTable", "templates", json!({}));
    for (what, ended) in ask_everything(&repository).await {
        let error = fails(ended, &[ErrorKind::Unavailable]);
        assert_eq!(error.retry, Retry::Never, "{what}: {error:?}");
        assert!(error.message.contains("stores prepare"), "{what}: {error:?}");
    }
    let mut transaction = repository.begin(None, false).await.unwrap();
    let read = transaction.get("templates", &["a".into()], false).await;
    assert_eq!(fails(read, &[ErrorKind::Unavailable]).retry, Retry::Never);
    assert_eq!(site.tables.collections(), ["machines", "requests"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_were_never_made_are_no_empty_ones() {
    let site = Site::unprepared(20, "").await;
    let reads = [&["count", "templates"][..], &["get", "templates", "a"], &["query", "templates"], &["export"]];
    for arguments in reads {
        let run = site.folder.larder(&[&["--format", "json"], arguments].concat());
        let error = error(&run, 4, "unavailable");
        assert_eq!(error["retry"], "never", "{error:?}");
        assert!(run.stderr.contains("stores prepare"), "{run:#?}");
    }
    assert_eq!(site.tables.collections(), Vec::<String>::new());

    // The first write makes its own table, and no other.
    let run = site.folder.larder_with(&["save", "templates"], &String::from_utf8(template("a", "")).unwrap());
    run.exits(0);
    assert_eq!(site.tables.collections(), ["templates"]);
    assert_eq!(site.folder.larder(&["count", "templates"]).exits(0).stdout, "1\n");

    // Another prefix is another place, where nothing was made.
    let elsewhere = Folder::new(&config(&site.tables.members().replace("it_", "elsewhere_"), 20));
    for arguments in reads {
        error(&elsewhere.larder(&[&["--format", "json"], arguments].concat()), 4, "unavailable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_or_permission_it_is_denied() {
    let site = Site::new().await;
    let body = String::from_utf8(template("a", "")).unwrap();
    let seen = site.proxy.counts();
    for arguments in [
        &["count", "templates"][..],
        &["get", "templates", "a"],
        &["query", "templates"],
        &["export"],
        &["save", "templates"],
        &["stores", "prepare"],
    ] {
        let mut command = site.folder.command(&[&["--format", "json"], arguments].concat());
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"] {
            command.env_remove(name);
        }
        for name in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
            command.env(name, "/nothing/is/here");
        }
        error(&run_with(command, &body), 3, "denied");
    }
    assert_eq!(site.proxy.counts(), seen, "nothing was sent");

    site.on_each(When::Always, Fault::Refuse("AccessDeniedException"));
    let repository = site.open().await;
    for (what, ended) in ask_everything(&repository).await {
        let error = fails(ended, &[ErrorKind::Denied]);
        assert_eq!(error.retry, Retry::Never, "{what}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_down_is_unavailable() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let members = format!(r#""endpoint_url": "http://127.0.0.1:{closed}", "region": "us-east-1""#);
    let folder = Folder::new(&config(&members, 5));
    for arguments in [
        &["count", "templates"][..],
        &["get", "templates", "a"],
        &["query", "templates"],
        &["export"],
        &["stores", "prepare"],
    ] {
        let run = folder.larder(&[&["--format", "json"], arguments].concat());
        assert_eq!(error(&run, 4, "unavailable")["retry"], "safe", "{run:#?}");
    }
    let run = folder.larder(&["stores", "check", "--store", "tables"]);
    assert!(run.code == 4 && !run.stdout.contains("reachable: true"), "{run:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_killed_and_started_again_is_found_again() {
    let mut site = Site::with_engine(&IN_TRANSACTIONS).await;
    let repository = site.open().await;
    for round in 1..=3 {
        assert_eq!(save(&repository, "a", "").await.unwrap(), round);
        site.engine().kill();
        for (what, ended) in ask_everything(&repository).await {
            let error = fails(ended, &[ErrorKind::Unavailable, ErrorKind::Timeout]);
            assert_ne!(error.retry, Retry::Never, "{what}: {error:?}");
        }
        site.engine().start_again().expect("an engine");
        assert_eq!(repository.get_one("templates", "a").await.unwrap().expect("it was saved").version, round);
    }
    assert_eq!(repository.count("templates", None).await.unwrap(), 1);
}

// Throttled.

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_throttles_for_a_while_is_waited_for() {
    let site = Site::new().await;
    let repository = site.open().await;
    for exception in ["ProvisionedThroughputExceededException", "ThrottlingException"] {
        site.on_each(When::Next(4), Fault::Refuse(exception));
        let before = version(&site.tables, "a").unwrap_or(0);
        assert_eq!(save(&repository, "a", "").await.unwrap(), before + 1);
        repository.apply(vec![put("a", "", Expectation::Present)], true).await.unwrap();
        let mut transaction = repository.begin(None, false).await.unwrap();
        transaction.save("templates", &template("a", ""), Expectation::Present).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(version(&site.tables, "a"), Some(before + 3));
        repository.load("templates", entities(60, ""), Existing::Overwrite).await.unwrap();
        assert_eq!(repository.get("templates", &ids(60)).await.unwrap().into_iter().flatten().count(), 60);
        assert_eq!(repository.query("templates", Select::default()).collect().await.unwrap().len(), 61);
        site.proxy.be_good();
    }
    assert!(site.proxy.faults() >= 30, "{} requests were throttled", site.proxy.faults());
    // A transaction says it in its own way.
    let before = version(&site.tables, "a").expect("a version");
    site.proxy.on("TransactWriteItems", When::Next(3), Fault::Cancel(&["ThrottlingError"]));
    repository.apply(vec![put("a", "", Expectation::Present), put("b", "", Expectation::Any)], true).await.unwrap();
    assert_eq!((version(&site.tables, "a"), version(&site.tables, "b")), (Some(before + 1), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_throttles_for_good_is_not_waited_for_for_ever() {
    let site = Site::unprepared(2, IN_TRANSACTIONS.members).await;
    site.prepare().await;
    let repository = site.open().await;
    site.on_each(When::Always, Fault::Refuse("ProvisionedThroughputExceededException"));
    for (what, ended) in ask_everything(&repository).await {
        let error = fails(ended, &[ErrorKind::Throttled]);
        assert_eq!(error.retry, Retry::Safe, "{what}: {error:?}");
    }
    site.proxy.be_good();
    assert_eq!(site.tables.count("templates"), 0);
    // A batch that gets nowhere is throttled as well. It is what is left where there are no units for transactions.
    site.proxy.on("TransactWriteItems", When::Always, Fault::Cancel(&["ProvisionedThroughputExceeded"]));
    site.proxy.on("BatchWriteItem", When::Always, Fault::Part(0));
    let started = Instant::now();
    fails(repository.load("templates", entities(60, ""), Existing::Overwrite).await, &[ErrorKind::Throttled]);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    site.proxy.be_good();
    repository.load("templates", entities(60, ""), Existing::Overwrite).await.unwrap();
    site.proxy.on("BatchGetItem", When::Always, Fault::Part(0));
    fails(repository.get("templates", &ids(60)).await, &[ErrorKind::Throttled]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_batch_leaves_is_sent_again() {
    let site = Site::loading(&IN_BATCHES).await;
    let repository = site.open().await;
    site.proxy.on("BatchWriteItem", When::Next(12), Fault::Part(7));
    site.proxy.on("BatchWriteItem", When::Nth(13), Fault::Part(0));
    let loaded = repository.load("templates", entities(150, r#","n":1"#), Existing::Fail).await.unwrap();
    assert_eq!((loaded.written, loaded.refused.len()), (150, 0));
    assert_eq!(site.tables.count("templates"), 150);
    site.proxy.on("BatchGetItem", When::Next(8), Fault::Part(11));
    let found = repository.get("templates", &ids(150)).await.unwrap();
    for (id, found) in ids(150).iter().zip(found) {
        let found = found.unwrap_or_else(|| panic!("{id} is lost"));
        assert_same_object(&found.body, template(id, r#","n":1"#));
    }
    assert!(site.proxy.faults() >= 15, "{} batches were carried out in part", site.proxy.faults());
    // What is there already is told from what is not, whatever a batch leaves.
    site.proxy.on("BatchGetItem", When::Next(8), Fault::Part(1));
    let loaded = repository.load("templates", entities(160, r#","n":1"#), Existing::Fail).await.unwrap();
    assert_eq!((loaded.written, loaded.unchanged), (10, 150));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_puts_what_is_new_in_transactions_and_looks_only_where_one_was_cancelled() {
    let site = Site::loading(&IN_TRANSACTIONS).await;
    let repository = site.open().await;
    let (first, rest) = (entities(250, ""), entities(400, ""));
    let loaded = repository.load("templates", first, Existing::Fail).await.unwrap();
    assert_eq!((loaded.written, loaded.unchanged), (250, 0));
    let counts = || ["TransactWriteItems", "BatchGetItem", "BatchWriteItem"].map(|name| site.proxy.count(name));
    assert_eq!(counts(), [3, 0, 0]);
    // Of four transactions the last is of new ones alone.
    let loaded = repository.load("templates", rest, Existing::Fail).await.unwrap();
    assert_eq!((loaded.written, loaded.unchanged, loaded.refused.len()), (150, 250, 0));
    assert_eq!(counts(), [7, 3, 2]);
    // What was met will be met again.
    let loaded = repository.load("templates", entities(400, r#","n":1"#), Existing::Skip).await.unwrap();
    assert_eq!((loaded.written, loaded.unchanged, loaded.skipped), (0, 0, 400));
    assert_eq!(counts(), [7, 7, 2]);
    assert_eq!(site.tables.count("templates"), 400);

    // An entity that comes twice counts as often as it is to be stored.
    let mut twice = entities(3, r#","n":2"#);
    twice.push(Entity { body: template("t0", r#","n":3"#), ..twice[0].clone() });
    let loaded = site.open().await.load("templates", twice, Existing::Overwrite).await.unwrap();
    assert_eq!((loaded.written, counts()[0]), (4, 7));
    let found = repository.get_one("templates", "t0").await.unwrap().expect("it was loaded");
    assert_same_object(&found.body, template("t0", r#","n":3"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_never_replaces_what_somebody_else_writes_meanwhile() {
    let site = Site::loading(&IN_TRANSACTIONS).await;
    let repository = site.open().await;
    site.proxy.on("TransactWriteItems", When::Always, Fault::Hold);
    let load = {
        let repository = repository.clone();
        tokio::spawn(async move { repository.load("templates", entities(150, ""), Existing::Fail).await })
    };
    while site.proxy.count("TransactWriteItems") < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let item = json!({"Item": {"template_id": {"S": "t7"}, "version": {"N": "9"}, "name": {"S": "quick"}}});
    site.tables.call("PutItem", "templates", item);
    site.proxy.be_good();
    site.proxy.release();
    let loaded = load.await.unwrap().unwrap();
    assert_eq!((loaded.written, loaded.refused.len()), (149, 1));
    let (position, error) = &loaded.refused[0];
    assert_eq!((position, error.kind), (&7, ErrorKind::AlreadyExists), "{error:?}");
    assert_eq!(version(&site.tables, "t7"), Some(9));
    assert_eq!(site.tables.count("templates"), 150);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_goes_on_in_batches_where_there_are_no_units_for_transactions() {
    let cancelled = Fault::Cancel(&["None", "ThrottlingError"]);
    for fault in [Fault::Refuse("ProvisionedThroughputExceededException"), cancelled] {
        let site = Site::loading(&IN_TRANSACTIONS).await;
        let repository = site.open().await;
        site.proxy.on("TransactWriteItems", When::Nth(2), fault.clone());
        let loaded = repository.load("templates", entities(250, ""), Existing::Fail).await.unwrap();
        assert_eq!((loaded.written, loaded.unchanged), (250, 0), "{fault:?}");
        assert_eq!(site.tables.count("templates"), 250, "{fault:?}");
        assert_eq!((site.proxy.count("TransactWriteItems"), site.proxy.faults()), (3, 1), "{fault:?}");
        // For some time it does not try again.
        let loaded = repository.load("templates", entities(300, ""), Existing::Fail).await.unwrap();
        assert_eq!((loaded.written, loaded.unchanged), (50, 250), "{fault:?}");
        assert_eq!(site.proxy.count("TransactWriteItems"), 3, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_tells_what_it_cannot_know() {
    // No answer came to the first sending, which took effect, and the second is throttled.
    let site = Site::loading(&IN_TRANSACTIONS).await;
    let repository = site.open().await;
    site.proxy.on("TransactWriteItems", When::Nth(1), Fault::LoseAnswer);
    site.proxy.on("TransactWriteItems", When::Nth(2), Fault::Refuse("ProvisionedThroughputExceededException"));
    let error = fails(repository.load("templates", entities(90, ""), Existing::Fail).await, &[ErrorKind::Throttled]);
    assert_eq!((error.retry, site.proxy.faults()), (Retry::UnknownOutcome, 2), "{error:?}");
    let loaded = repository.load("templates", entities(90, ""), Existing::Fail).await.unwrap();
    assert_eq!((loaded.unchanged, site.tables.count("templates")), (90, 90));

    // One transaction is through, and the look for the other one is not.
    let site = Site::loading(&IN_TRANSACTIONS).await;
    let repository = site.open().await;
    site.proxy.on("TransactWriteItems", When::Nth(2), Fault::Cancel(&["ThrottlingError"]));
    site.proxy.on("BatchGetItem", When::Always, Fault::Refuse("AccessDeniedException"));
    let error = fails(repository.load("templates", entities(150, ""), Existing::Fail).await, &[ErrorKind::Denied]);
    assert_ne!(error.retry, Retry::Safe, "{error:?}");
    assert!(site.tables.count("templates") > 0);

    // Whoever meets another transaction waits for its end.
    let site = Site::loading(&IN_TRANSACTIONS).await;
    let repository = site.open().await;
    site.proxy.on("TransactWriteItems", When::Next(3), Fault::Cancel(&["None", "TransactionConflict"]));
    let loaded = repository.load("templates", entities(90, ""), Existing::Fail).await.unwrap();
    assert_eq!((loaded.written, site.proxy.faults(), site.proxy.count("BatchWriteItem")), (90, 3, 0));

    // What is all refused says nothing of a table.
    let site = Site::unprepared(20, IN_TRANSACTIONS.members).await;
    let repository = site.open().await;
    let wrong = vec![Entity { body: b"{}".to_vec(), ..entities(1, "").remove(0) }];
    assert_eq!(repository.load("templates", wrong, Existing::Fail).await.unwrap().refused.len(), 1);
    assert_eq!(repository.load("templates", entities(3, ""), Existing::Fail).await.unwrap().written, 3);
}

// Requests that are lost, and answers.

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_lost_is_sent_again_and_takes_effect_once() {
    for fault in [Fault::Cut, Fault::LoseAnswer] {
        let site = Site::loading(&IN_TRANSACTIONS).await;
        let repository = site.open().await;
        let (tables, lose) = (&site.tables, |operation| site.proxy.on(operation, When::Next(1), fault.clone()));
        for round in 1..=3 {
            lose("PutItem");
            assert_eq!(save(&repository, "a", &format!(r#","n":{round}"#)).await.unwrap(), round);
            assert_eq!(version(tables, "a"), Some(round), "{fault:?}: written once");
            site.proxy.be_good();
        }
        lose("PutItem");
        let put_new = repository.save("templates", &template("new", ""), Expectation::Absent).await;
        assert_eq!(put_new.unwrap().1.version, 1, "{fault:?}: it was not there before");
        lose("PutItem");
        let outcome = repository.update("templates", "new", &template("new", ""), Some(1)).await.unwrap();
        assert_eq!((outcome.version, version(tables, "new")), (2, Some(2)), "{fault:?}");

        lose("TransactWriteItems");
        let writes = vec![put("a", "", Expectation::Version(3)), put("b", "", Expectation::Absent), remove("new")];
        let outcomes = repository.apply(writes, true).await.unwrap();
        assert!(outcomes.iter().all(Result::is_ok), "{fault:?}: {outcomes:?}");
        assert_eq!(["a", "b", "new"].map(|id| version(tables, id)), [Some(4), Some(1), None], "{fault:?}");
        lose("TransactWriteItems");
        let mut transaction = repository.begin(None, false).await.unwrap();
        let found = transaction.get("templates", &["a".into()], true).await.unwrap();
        assert_eq!(found[0].as_ref().map(|it| it.version), Some(4));
        transaction.update("templates", "a", &template("a", ""), Some(4)).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(version(tables, "a"), Some(5), "{fault:?}");

        lose("TransactWriteItems");
        let loaded = repository.load("templates", entities(30, ""), Existing::Fail).await.unwrap();
        assert_eq!((loaded.written, tables.count("templates")), (30, 32), "{fault:?}");
        lose("BatchWriteItem");
        let loaded = repository.load("templates", entities(30, r#","n":1"#), Existing::Overwrite).await.unwrap();
        assert_eq!((loaded.written, tables.count("templates")), (30, 32), "{fault:?}");

        // That it was this delete which found something cannot be told where the answer is lost.
        lose("DeleteItem");
        match (repository.delete("templates", "b", None).await, &fault) {
            (Ok(outcome), _) => assert!(outcome.existed),
            (Err(error), Fault::LoseAnswer) => assert_eq!(error.retry, Retry::UnknownOutcome, "{error:?}"),
            (Err(error), _) => panic!("{error:?}"),
        }
        assert_eq!(version(tables, "b"), None, "{fault:?}");
        assert_eq!(site.proxy.faults(), 10, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_for_good_leave_the_outcome_unknown_and_one_write() {
    let site = Site::unprepared(6, IN_TRANSACTIONS.members).await;
    site.prepare().await;
    let repository = site.open().await;
    assert_eq!(save(&repository, "a", "").await.unwrap(), 1);
    for operation in WRITES {
        site.proxy.on(operation, When::Always, Fault::LoseAnswer);
    }
    let error = fails(save(&repository, "a", "").await, &[ErrorKind::Unavailable, ErrorKind::Timeout]);
    assert_eq!((error.retry, version(&site.tables, "a")), (Retry::UnknownOutcome, Some(2)), "{error:?}");
    let ended = repository.apply(vec![put("a", "", Expectation::Any), put("b", "", Expectation::Absent)], true).await;
    let error = fails(ended, &[ErrorKind::Unavailable, ErrorKind::Timeout]);
    assert_eq!(error.retry, Retry::UnknownOutcome, "{error:?}");
    assert_eq!((version(&site.tables, "a"), version(&site.tables, "b")), (Some(3), Some(1)));
    let error = fails(
        repository.load("templates", entities(30, ""), Existing::Fail).await,
        &[ErrorKind::Unavailable, ErrorKind::Timeout],
    );
    assert_eq!(error.retry, Retry::UnknownOutcome, "{error:?}");
    site.proxy.be_good();
    // Whoever does not know does it again.
    let loaded = repository.load("templates", entities(30, ""), Existing::Fail).await.unwrap();
    assert_eq!((loaded.unchanged + loaded.written, site.tables.count("templates")), (30, 32));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_load_that_an_outage_interrupts_is_done_again_and_nothing_is_lost() {
    for way in [IN_TRANSACTIONS, IN_BATCHES] {
        outage_in_a_load(way).await;
    }
}

async fn outage_in_a_load(way: LoadWay) {
    let mut site = Site::with_engine(&way).await;
    let repository = site.open().await;
    let all = entities(3000, r#","weight":1.0,"huge":123456789012345678901234567890123456789012345"#);
    let load = {
        let (repository, all) = (repository.clone(), all.clone());
        tokio::spawn(async move {
            for chunk in all.chunks(500) {
                repository.load("templates", chunk.to_vec(), Existing::Fail).await?;
            }
            Ok::<(), Error>(())
        })
    };
    // It is well under way.
    while site.proxy.count(way.operation) < 750 / way.items {
        assert!(!load.is_finished(), "{:?}", site.proxy.counts());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    site.engine().kill();
    let error = fails(load.await.unwrap(), &[ErrorKind::Unavailable, ErrorKind::Timeout]);
    assert_ne!(error.retry, Retry::Never, "{error:?}");
    site.engine().start_again().expect("an engine");
    let before = site.tables.count("templates");
    assert!((1..3000).contains(&before), "{before} of 3000 were there");
    let mut unchanged = 0;
    for chunk in all.chunks(500) {
        let loaded = repository.load("templates", chunk.to_vec(), Existing::Fail).await.unwrap();
        assert_eq!((loaded.refused.len(), loaded.skipped), (0, 0));
        unchanged += loaded.unchanged;
    }
    assert_eq!((unchanged, site.tables.count("templates")), (before, 3000));
    for found in repository.query("templates", Select::default()).collect().await.unwrap() {
        let more = r#","weight":1.0,"huge":123456789012345678901234567890123456789012345"#;
        assert_same_object(&found.body, template(&found.id, more));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_killed_is_gone_on_with_and_nothing_is_lost() {
    for way in [IN_TRANSACTIONS, IN_BATCHES] {
        killed_migration(way).await;
    }
}

async fn killed_migration(way: LoadWay) {
    let site = Site::loading(&way).await;
    site.folder.write("json/request_database.json", larder_samples::machines(3000, larder_samples::SEED));
    let arguments = ["migrate", "--from", "json", "--to", "tables", "--batch-size", "200"];
    let mut command = site.folder.command(&arguments);
    let mut larder = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    while site.proxy.count(way.operation) < 650 / way.items {
        assert!(larder.try_wait().expect("a child").is_none(), "{:?}", site.proxy.counts());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    larder.kill().expect("it can be killed");
    larder.wait().expect("it ends");
    let before: u64 = COLLECTIONS.iter().map(|collection| site.tables.count(collection)).sum();
    assert!(before > 0);
    site.folder.larder(&[&arguments[..], &["--resume"]].concat()).exits(0);
    site.folder.larder(&["verify", "--from", "json", "--to", "tables"]).exits(0);
    assert_eq!(site.tables.count("machines"), 3000, "{before} were there before");
}

// What others do, and what is too much.

#[tokio::test(flavor = "multi_thread")]
async fn what_is_changed_by_hand_is_seen() {
    let site = Site::new().await;
    let repository = site.open().await;
    save(&repository, "a", r#","weight":1.0,"tags":{"":"empty","b":[1e400]}"#).await.unwrap();
    let change = |expression: &str, values: Value| {
        let input = json!({
            "Key": key("templates", "a"), "UpdateExpression": expression, "ExpressionAttributeValues": values,
            "ExpressionAttributeNames": {"#name": "name"},
        });
        site.tables.call("UpdateItem", "templates", input);
    };
    change(
        "SET #name = :name, weight = :weight, kinds = :kinds, payload = :payload",
        json!({":name": {"S": "Handmade"}, ":weight": {"N": "2"}, ":kinds": {"SS": ["x"]}, ":payload": {"B": "AQI="}}),
    );
    let found = object(repository.get_one("templates", "a").await.unwrap().expect("it was saved").body);
    let shown = Value::Object(found.clone()).to_string();
    assert_eq!((&found["name"], found["weight"].to_string().as_str()), (&"Handmade".into(), "2"), "{shown}");
    assert_eq!((&found["kinds"], &found["payload"]), (&json!(["x"]), &"AQI=".into()), "{shown}");
    assert!(shown.contains(r#"{"":"empty","b":[1e400]}"#) || shown.contains(r#"{"":"empty","b":[1e+400]}"#), "{shown}");
    let asked = Select { filter: Some("name=Handmade".parse().expect("a filter")), ..Select::default() };
    assert_eq!(repository.query("templates", asked).collect().await.unwrap().len(), 1);

    // A version that somebody else has set is the version.
    change("SET #name = :name, version = :version", json!({":name": {"S": "Again"}, ":version": {"N": "7"}}));
    let error = fails(
        repository.update("templates", "a", &template("a", ""), Some(1)).await.map(|outcome| outcome.version),
        &[ErrorKind::VersionConflict],
    );
    assert_eq!(error.current_version, Some(7));
    let outcome = repository.update("templates", "a", &template("a", ""), Some(7)).await.unwrap();
    assert_eq!((outcome.version, version(&site.tables, "a")), (8, Some(8)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_is_too_large_is_refused_before_it_is_sent() {
    let site = Site::new().await;
    let repository = site.open().await;
    let large = format!(r#","padding":"{}""#, "x".repeat(410_000));
    fails(save(&repository, "a", &large).await, &[ErrorKind::InvalidArgument]);
    let writes = vec![put("b", "", Expectation::Any), put("a", &large, Expectation::Any)];
    let error = fails(repository.apply(writes, true).await, &[ErrorKind::InvalidArgument]);
    assert_eq!(error.write_index, Some(1));
    let mut loaded = entities(2, "");
    loaded[1].body = template("t1", &large);
    let mut transaction = repository.begin(None, false).await.unwrap();
    let saved = transaction.save("templates", &template("a", &large), Expectation::Any).await;
    let ended = match saved {
        Err(error) => error,
        Ok(_) => transaction.commit().await.expect_err("it is too large"),
    };
    assert!(ended.is(ErrorKind::InvalidArgument), "{ended:?}");
    assert_eq!(site.writes(), 0, "{:?}", site.proxy.counts());
    // Not the whole load is refused for one.
    let loaded = repository.load("templates", loaded, Existing::Fail).await.unwrap();
    assert_eq!((loaded.written, loaded.refused.len(), loaded.refused[0].0), (1, 1, 1));
    // The service counts bytes, and so little is left for the rest.
    let fits = format!(r#","padding":"{}""#, "é".repeat(204_500));
    assert_eq!(save(&repository, "a", &fits).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_writes_than_a_transaction_takes_are_refused_before_anything_is_sent() {
    let site = Site::new().await;
    let repository = site.open().await;
    let writes = |count: u64| ids(count).iter().map(|id| put(id, "", Expectation::Absent)).collect::<Vec<_>>();
    let before = site.proxy.counts();
    fails(repository.apply(writes(101), true).await, &[ErrorKind::LimitExceeded]);
    assert_eq!(site.proxy.counts(), before);
    let mut transaction = repository.begin(None, false).await.unwrap();
    let ended = match transaction.apply(writes(101)).await {
        Err(error) => error,
        Ok(_) => transaction.commit().await.expect_err("it is too much"),
    };
    assert!(ended.is(ErrorKind::LimitExceeded), "{ended:?}");
    assert_eq!((site.writes(), site.tables.count("templates")), (0, 0));
    repository.apply(writes(100), true).await.unwrap();
    assert_eq!((site.writes(), site.tables.count("templates")), (1, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_names_the_write_and_the_stored_version() {
    let site = Site::new().await;
    let repository = site.open().await;
    for version in 1..=3 {
        assert_eq!(save(&repository, "a", "").await.unwrap(), version);
    }
    for (expect, kind, current) in [
        (Expectation::Version(2), ErrorKind::VersionConflict, Some(3)),
        (Expectation::Absent, ErrorKind::AlreadyExists, None),
    ] {
        let writes = vec![put("b", "", Expectation::Absent), put("a", "", expect), put("c", "", Expectation::Any)];
        let error = fails(repository.apply(writes, true).await, &[kind]);
        assert_eq!(error.write_index, Some(1), "{error:?}");
        assert!(current.is_none() || error.current_version == current, "{error:?}");
        assert_eq!(site.tables.count("templates"), 1);
    }
    // Somebody else is quicker, between what a write reads and what it sends.
    site.proxy.on("TransactWriteItems", When::Next(1), Fault::Hold);
    let seen = site.proxy.count("TransactWriteItems");
    let slow = {
        let repository = repository.clone();
        let writes = vec![put("b", "", Expectation::Absent), put("a", "", Expectation::Version(3))];
        tokio::spawn(async move { repository.apply(writes, true).await })
    };
    while site.proxy.count("TransactWriteItems") == seen {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let item = json!({"Item": {"template_id": {"S": "a"}, "version": {"N": "9"}, "name": {"S": "quick"}}});
    site.tables.call("PutItem", "templates", item);
    site.proxy.release();
    let error = fails(slow.await.unwrap(), &[ErrorKind::VersionConflict]);
    assert_eq!((error.write_index, error.current_version), (Some(1), Some(9)), "{error:?}");
    assert_eq!(site.tables.count("templates"), 1);

    // Another transaction on the same items passes, or does not.
    site.proxy.on("TransactWriteItems", When::Next(2), Fault::Cancel(&["TransactionConflict"]));
    repository.apply(vec![put("a", "", Expectation::Version(9))], true).await.unwrap();
    assert_eq!(version(&site.tables, "a"), Some(10));
    site.proxy.be_good();
    site.proxy.on("TransactWriteItems", When::Always, Fault::Cancel(&["TransactionConflict"]));
    // One that meets others for good is sent a bounded number of times.
    let seen = site.proxy.count("TransactWriteItems");
    let error = repository.apply(vec![put("a", "", Expectation::Any)], true).await;
    let error = fails(error, &[ErrorKind::VersionConflict]);
    assert_eq!((error.retry, version(&site.tables, "a")), (Retry::Safe, Some(10)), "{error:?}");
    let sent = site.proxy.count("TransactWriteItems") - seen;
    assert!((2..=10).contains(&sent), "{sent}");
}

// Tables as they are to be.

/// The indexes of a table, and the attributes that each is over.
fn indexes(tables: &Tables, collection: &str) -> Vec<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let description = tables.call("DescribeTable", collection, json!({}));
    let mut indexes: Vec<_> = description["Table"]["GlobalSecondaryIndexes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|index| {
            let keys = index["KeySchema"].as_array().expect("a key");
            (text(&index["IndexName"]), keys.iter().map(|key| text(&key["AttributeName"])).collect())
        })
        .collect();
    indexes.sort();
    indexes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_makes_nothing_and_then_everything_is_made_as_it_said() {
    let site = Site::unprepared(20, "").await;
    let would = site.folder.larder(&["stores", "prepare", "--dry-run"]).exits(0).stdout;
    assert_eq!((site.proxy.count("CreateTable"), site.tables.collections()), (0, vec![]));
    for collection in COLLECTIONS {
        assert!(would.contains(&site.tables.name(collection)), "{would}");
    }
    assert_eq!(site.folder.larder(&["stores", "prepare"]).exits(0).stdout, would);
    assert_eq!(
        (site.proxy.count("CreateTable"), site.tables.collections()),
        (3, COLLECTIONS.map(str::to_owned).into())
    );
    let index = |name: &str, fields: [&str; 2]| (name.to_owned(), fields.map(str::to_owned).to_vec());
    assert_eq!(indexes(&site.tables, "templates"), []);
    assert_eq!(
        indexes(&site.tables, "requests"),
        [
            index("status", ["status", "created_at"]),
            index("template_id-created_at-index", ["template_id", "created_at"])
        ]
    );
    assert_eq!(
        indexes(&site.tables, "machines"),
        [index("request_id-created_at-index", ["request_id", "created_at"]), index("status", ["status", "created_at"])]
    );
    assert_eq!(site.folder.larder(&["stores", "prepare"]).exits(0).stdout, "");
    assert_eq!(site.proxy.count("CreateTable"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_differs_is_rejected_and_one_that_lacks_an_index_is_extended() {
    let site = Site::unprepared(20, "").await;
    let make = |collection: &str, key: &str| {
        let input = json!({
            "KeySchema": [{"AttributeName": key, "KeyType": "HASH"}],
            "AttributeDefinitions": [{"AttributeName": key, "AttributeType": "S"}],
            "BillingMode": "PAY_PER_REQUEST",
        });
        site.tables.call("CreateTable", collection, input);
    };
    make("templates", "id");
    make("requests", "request_id");
    let repository = site.open().await;
    let error = fails(repository.prepare(false, true).await, &[ErrorKind::Rejected]);
    assert!(error.message.contains("its key is id, not template_id"), "{error:?}");
    site.tables.call("DeleteTable", "templates", json!({}));
    let error = fails(repository.prepare(false, false).await, &[ErrorKind::Rejected]);
    assert!(error.message.contains("template_id-created_at-index"), "{error:?}");
    assert!(error.message.contains("--extend"), "{error:?}");
    assert_eq!(indexes(&site.tables, "requests"), []);
    let item = json!({"Item": {"request_id": {"S": "r"}, "template_id": {"S": "small"}, "created_at": {"S": "2026"}}});
    site.tables.call("PutItem", "requests", item);

    let would = repository.prepare(true, true).await.unwrap();
    assert_eq!(indexes(&site.tables, "requests"), []);
    assert_eq!(repository.prepare(false, true).await.unwrap(), would);
    assert_eq!(indexes(&site.tables, "requests").len(), 2);
    // What was there before is in it.
    let asked = Select {
        filter: Some("template_id=small".parse().expect("a filter")),
        index: Some("template_id-created_at-index".into()),
        ..Select::default()
    };
    assert_eq!(repository.query("requests", asked).collect().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_scaling_registers_targets_and_policies_in_both_forms() {
    for (form, bounds, percent) in [
        ("true", [1, 100, 1, 100], 70.0),
        (
            r#"{"min_read_capacity": 2, "max_read_capacity": 20, "min_write_capacity": 3, "max_write_capacity": 30,
                "target_utilization": 55}"#,
            [2, 20, 3, 30],
            55.0,
        ),
    ] {
        let site = Site::unprepared(20, &format!(r#", "auto_scaling": {form}"#)).await;
        let prepare = |more: &[&str]| {
            let mut command = site.folder.command(&[&["stores", "prepare"], more].concat());
            command.env("AWS_ENDPOINT_URL_APPLICATION_AUTO_SCALING", scaling_url());
            run_with(command, "").exits(0)
        };
        let ask = |operation: &str, list: &str| {
            let mut found = Vec::new();
            let mut input = json!({"ServiceNamespace": "dynamodb"});
            loop {
                let mut page = call_scaling(&scaling_url(), operation, &input).expect("an answer");
                found.extend(page[list].as_array().expect("a list").iter().cloned());
                match page["NextToken"].take() {
                    Value::Null => break,
                    token => input["NextToken"] = token,
                }
            }
            // The service is shared.
            let ours = format!("table/{}_", site.tables.prefix);
            found.retain(|it| it["ResourceId"].as_str().is_some_and(|resource| resource.starts_with(&ours)));
            found
        };
        prepare(&["--dry-run"]);
        assert_eq!(ask("DescribeScalableTargets", "ScalableTargets"), Vec::<Value>::new());
        prepare(&[]);
        // Read and write units of three tables and four indexes.
        let (targets, policies) =
            (ask("DescribeScalableTargets", "ScalableTargets"), ask("DescribeScalingPolicies", "ScalingPolicies"));
        assert_eq!((targets.len(), policies.len()), (14, 14), "{targets:#?} {policies:#?}");
        for target in &targets {
            let dimension = target["ScalableDimension"].as_str().expect("a dimension");
            let (least, most) = match dimension.contains("Read") {
                true => (bounds[0], bounds[1]),
                false => (bounds[2], bounds[3]),
            };
            assert_eq!((&target["MinCapacity"], &target["MaxCapacity"]), (&json!(least), &json!(most)), "{target}");
            let is_index = target["ResourceId"].as_str().is_some_and(|resource| resource.contains("/index/"));
            assert_eq!(dimension.starts_with("dynamodb:index:"), is_index, "{target}");
        }
        for policy in &policies {
            assert_eq!(policy["PolicyType"], "TargetTrackingScaling", "{policy}");
            let tracking = &policy["TargetTrackingScalingPolicyConfiguration"];
            assert_eq!(tracking["TargetValue"].as_f64(), Some(percent), "{policy}");
        }
        for collection in COLLECTIONS {
            let table = site.tables.call("DescribeTable", collection, json!({}));
            assert_ne!(table["Table"]["BillingModeSummary"]["BillingMode"], "PAY_PER_REQUEST", "{table}");
        }
        assert_eq!(prepare(&[]).stdout, "", "what is registered is not registered again");
        // Where nothing says where it would be, people are told.
        let again = Site::unprepared(20, &format!(r#", "auto_scaling": {form}"#)).await;
        let run = again.folder.larder(&["stores", "prepare"]).exits(0);
        assert!(format!("{}{}", run.stdout, run.stderr).contains("Application Auto Scaling"), "{run:#?}");
    }
}

// Questions.

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_named_is_used_and_the_plan_says_so() {
    let site = Site::new().await;
    let repository = site.open().await;
    let request = |n: u32| {
        let template = if n.is_multiple_of(4) { "small" } else { "large" };
        let body = format!(r#"{{"request_id":"r{n}","template_id":"{template}","created_at":"2026-01-{n:02}"}}"#);
        Entity { id: format!("r{n}"), version: 0, body: body.into_bytes() }
    };
    let mut all: Vec<Entity> = (10..30).map(request).collect();
    // An index has these too: one without the times that it is ordered by, and one whose time is no text.
    for (id, more) in [("bare", ""), ("odd", r#","created_at":5"#)] {
        let body = format!(r#"{{"request_id":"{id}","template_id":"small"{more}}}"#);
        all.push(Entity { id: id.into(), version: 0, body: body.into_bytes() });
    }
    repository.load("requests", all, Existing::Fail).await.unwrap();
    let query = ["query", "requests", "--index", "template_id-created_at-index", "--filter", "template_id=small"];
    let run = site.folder.larder(&[&query[..], &["--explain"]].concat()).exits(0);
    for told in ["index:    template_id-created_at-index", "answered: 7", "read units"] {
        assert!(run.stdout.contains(told), "{told}: {run:#?}");
    }
    let seen = (site.proxy.count("Query"), site.proxy.count("Scan"));
    let run = site.folder.larder(&[&["--format", "json"], &query[..]].concat()).exits(0);
    assert_eq!(run.stdout.lines().count(), 7, "{run:#?}");
    assert!(site.proxy.count("Query") > seen.0 && site.proxy.count("Scan") == seen.1, "{:?}", site.proxy.counts());
    // A range of it, in its order.
    let range = ["--filter", "created_at>=2026-01-16", "--filter", "created_at<2026-01-28", "--order-by", "created_at"];
    let run = site.folder.larder(&[&query[..], &range].concat()).exits(0);
    assert_eq!(run.stdout.lines().count(), 3, "{run:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filtered_scan_goes_in_segments_and_finds_everything_once() {
    let site = Site::new().await;
    let repository = site.open().await;
    // Segments are of a megabyte or more, by the size that the engine reports.
    let padding = format!(r#","padding":"{}""#, "x".repeat(4_000));
    let mut all = entities(1000, &padding);
    for (n, entity) in all.iter_mut().enumerate() {
        entity.body = template(&entity.id, &format!(r#"{padding},"colour":"{}""#, ["red", "blue"][n % 2]));
    }
    repository.load("templates", all, Existing::Fail).await.unwrap();
    let query = ["query", "templates", "--filter", "colour=red"];
    let run = site.folder.larder(&[&query[..], &["--explain"]].concat()).exits(0);
    for told in ["segments", "answered: 500", "read units"] {
        assert!(run.stdout.contains(told), "{told}: {run:#?}");
    }
    let found = site.folder.larder(&query).exits(0).stdout;
    let mut ids: Vec<String> = found.lines().map(|line| object(line)["template_id"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 500);
    assert!(site.proxy.count("Scan") > 2, "{:?}", site.proxy.counts());
    // In pages too.
    let asked = Select { filter: Some("colour=blue".parse().expect("a filter")), limit: Some(37), ..Select::default() };
    let (mut seen, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let page = repository.query_page("templates", &asked, cursor.as_deref()).await.unwrap();
        seen.extend(page.entities.into_iter().map(|entity| entity.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((count, seen.len()), (500, 500));
}

#[test]
fn nothing_but_the_stores_own_tables_is_touched() {
    // Of two stores neither sees the other's, though one prefix begins with the other.
    let (short, long) = (Tables::new("a"), Tables::new("b"));
    let folders = [&short, &long].map(|tables| Folder::new(&config(&tables.members(), 20)));
    let longer = Tables { url: short.url.clone(), prefix: format!("{}_b", short.prefix) };
    let longer_folder = Folder::new(&config(&longer.members(), 20));
    for folder in folders.iter().chain([&longer_folder]) {
        folder.larder(&["stores", "prepare"]).exits(0);
        folder.larder_with(&["save", "templates"], std::str::from_utf8(&template("a", "")).unwrap()).exits(0);
    }
    folders[0].larder(&["delete", "templates", "a"]).exits(0);
    for tables in [&long, &longer] {
        assert_eq!(tables.count("templates"), 1);
    }
    assert_eq!(short.count("templates"), 0);
}
