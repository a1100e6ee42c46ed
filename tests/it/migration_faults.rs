//! A migration of which one call to the host goes wrong, of the source's plugin or of the target's: for each call, and in
//! each way that leaves the host alive. It ends in an error that says what is so, or with everything where it belongs; the
//! source is what it was, and the same migration resumed brings the rest.
//!
//! Here a part of them is tried; `cargo xtask faults` tries all. What kills the host is in `resuming.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use larder::conformance::faults::{Call, Calls, Fault};
use larder::error::{Error, Kind};
use larder::migration::{self, Options, Start, StateOptions};
use larder::query::Select;
use larder::repository::Repository;
use larder_model::{ErrorKind, json};
use serde_json::{Map, Value};

use crate::support::Folder;

/// Whose call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

/// Two of each kind, in batches of one, and each in the way of something: digits, depth, a text with a NUL.
const DOCUMENT: &str = r#"{
  "templates": {
    "a": {"template_id": "a", "name": "A", "provider_api": "RunInstances", "vm_type": "t3", "max_number": 1},
    "b": {"template_id": "b", "name": "B", "provider_api": "RunInstances", "vm_type": "t3", "max_number": 2,
          "price": 0.1000000000000000000000000000000000001, "tags": {"deep": [[[{"x": null}]]]}}
  },
  "requests": {
    "r1": {"request_id": "r1", "request_type": "provision", "template_id": "a", "machine_count": 1, "status": "pending", "version": 1},
    "r2": {"request_id": "r2", "request_type": "provision", "template_id": "b", "machine_count": 1, "status": "pending", "version": 7}
  },
  "machines": {
    "m1": {"machine_id": "m1", "request_id": "r1", "template_id": "a", "status": "RUNNING", "instance_type": "t3"},
    "m2": {"machine_id": "m2", "request_id": "r2", "template_id": "b", "status": "a\u0000b", "instance_type": "t3"}
  }
}"#;

/// A source that is filled once, and how a target that is new is configured. `~source~` is a database, `~tables source~` are
/// tables, and so on.
fn store(name: &str, kind: &str) -> String {
    let section = match kind {
        "json" => format!(r#""json", "json_strategy": {{"base_path": "@/{name}"}}"#),
        "split" => format!(r#""json", "json_strategy": {{"storage_type": "split_files", "base_path": "@/{name}"}}"#),
        "sqlite" => format!(r#""sql", "sql_strategy": {{"type": "sqlite", "name": "@/{name}.db"}}"#),
        "postgres" => format!(r#""sql", "sql_strategy": {{"type": "postgresql", ~{name}~}}"#),
        _ => format!(r#""dynamodb", "dynamodb_strategy": {{~tables {name}~}}"#),
    };
    format!(r#""{name}": {{"strategy": {section}}}"#)
}

fn folder(source: &str, target: &str) -> Folder {
    let stores = [store("given", "json"), store("source", source), store("target", target)].join(", ");
    let config = format!(r#"{{"storage": {{"strategy": "given", "stores": {{{stores}}}}}}}"#);
    let named = |kind: &str| -> Vec<&str> {
        [("source", source), ("target", target)]
            .into_iter()
            .filter(|(_, it)| *it == kind)
            .map(|(name, _)| name)
            .collect()
    };
    let folder = Folder::with_services(&config, &named("postgres"), &named("dynamodb"));
    folder.write("given/request_database.json", DOCUMENT);
    folder
}

type Content = BTreeMap<(String, String), Map<String, Value>>;

async fn content(store: &Repository) -> Content {
    let mut all = Content::new();
    for collection in store.collections() {
        let found = store.query(&collection.name, Select::default()).collect().await.expect("entities");
        for entity in found {
            all.insert((collection.name.clone(), entity.id.clone()), entity.fields().expect("an object"));
        }
    }
    all
}

fn same(found: &Content, expected: &Content) -> bool {
    found.len() == expected.len()
        && expected.iter().all(|(key, members)| found.get(key).is_some_and(|found| json::equal_objects(found, members)))
}

fn options(state: PathBuf, start: Start) -> Options {
    let state = StateOptions { folder: state, start, source: "source".into(), target: "target".into() };
    Options { batch_size: 1, workers: 1, state: Some(state), ..Options::default() }
}

/// Migrates with one call going wrong, and gives what came of it and the calls of that side.
async fn migrate(
    folder: &Folder,
    side: Side,
    fault: Option<(usize, Fault)>,
    start: Start,
) -> (Result<bool, Error>, Calls) {
    let (faulty, calls) = Calls::of(folder.host(), fault);
    let sound = folder.host();
    let (source_host, target_host) = match side {
        Side::Source => (&faulty, &sound),
        Side::Target => (&sound, &faulty),
    };
    let ended = async {
        let source = source_host.open(Some("source")).await?;
        let target = target_host.open(Some("target")).await?;
        let report =
            migration::migrate(&source, &target, &options(folder.path().join("state"), start), &mut |_| {}).await;
        // As the program does.
        let closed = [source_host.close().await, target_host.close().await].concat();
        match closed.into_iter().next() {
            Some(problem) if report.is_ok() => Err(problem),
            _ => report.map(|report| report.verified),
        }
    };
    let ended = ended.await;
    (ended, calls)
}

/// An error that tells whoever reads it that something failed, and not that something is wrong with the data.
fn is_honest(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::Contract(ErrorKind::Unavailable | ErrorKind::Throttled | ErrorKind::Timeout | ErrorKind::LimitExceeded)
    )
}

async fn check(source: &str, target: &str, side: Side, otherwise: usize) {
    let every = if std::env::var_os("LARDER_FAULTS_ALL").is_some() { 1 } else { otherwise };
    let count = async || {
        let folder = folder(source, target);
        fill(&folder, source).await;
        let (ended, calls) = migrate(&folder, side, None, Start::Afresh).await;
        assert!(ended.expect("a migration of which nothing goes wrong"), "it was not verified");
        calls.made()
    };
    let calls: Vec<Call> = count().await;
    let trials: Vec<(usize, Fault)> = calls
        .iter()
        .enumerate()
        .flat_map(|(number, call)| call.faults.iter().filter(|fault| !fault.kills()).map(move |fault| (number, *fault)))
        .collect();
    let (mut errors, mut passed, mut missed) = (0, 0, 0);
    for &(number, fault) in trials.iter().step_by(every) {
        let told = format!("{source} to {target}, {side:?}, call {number} {:?}: {fault:?}", calls[number]);
        let folder = folder(source, target);
        fill(&folder, source).await;
        let expected = content(&folder.open("source").await).await;
        assert_eq!(expected.len(), 6);
        let (ended, made) = migrate(&folder, side, Some((number, fault)), Start::Afresh).await;
        let was_met = made.one_went_wrong();
        missed += usize::from(!was_met);
        match ended {
            Ok(verified) => {
                assert!(verified, "{told}");
                passed += usize::from(was_met);
            }
            Err(error) => {
                assert!(is_honest(&error), "{told}: {error:?}");
                errors += 1;
                let (resumed, _) = migrate(&folder, side, None, Start::Resume).await;
                assert!(resumed.unwrap_or_else(|error| panic!("{told}, resumed: {error:?}")), "{told}");
            }
        }
        assert!(same(&content(&folder.open("target").await).await, &expected), "{told}: the target");
        assert!(same(&content(&folder.open("source").await).await, &expected), "{told}: the source");
    }
    println!(
        "{source} to {target}: of {} calls of the {side:?}, {errors} faults were errors, {passed} made no difference, {missed} \
         were not met",
        calls.len()
    );
    // Which calls are made may depend on time, but not of most.
    assert!(errors > 0 && missed * 5 <= errors + passed, "{errors} {passed} {missed}");
}

async fn fill(folder: &Folder, source: &str) {
    let host = folder.host();
    let (given, filled) =
        (host.open(Some("given")).await.expect("a store"), host.open(Some("source")).await.expect("a store"));
    migration::migrate(&given, &filled, &Options::default(), &mut |_| {})
        .await
        .unwrap_or_else(|error| panic!("{source} cannot be filled: {error:?}"));
    assert!(host.close().await.is_empty());
}

macro_rules! pairs {
    ($($name:ident $source:literal $target:literal $side:ident $every:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                check($source, $target, Side::$side, $every).await;
            }
        )*
    };
}

pairs! {
    sqlite_reads_for_a_document "sqlite" "json" Source 13;
    a_document_takes_what_sqlite_gives "sqlite" "json" Target 23;
    split_documents_are_read_for_sqlite "split" "sqlite" Source 29;
    sqlite_takes_what_split_documents_give "split" "sqlite" Target 31;
    postgresql_reads_for_split_documents "postgres" "split" Source 19;
    postgresql_takes_what_a_document_gives "json" "postgres" Target 29;
    dynamodb_reads_for_sqlite "dynamodb" "sqlite" Source 7;
    dynamodb_takes_what_sqlite_gives "sqlite" "dynamodb" Target 7;
}
