//! Every call of a plugin to the host goes wrong, one at a time and in every way: `larder plugins test --faults` on every
//! kind of store, and on strategies that make mistakes.
//!
//! Here a part of the faults is tried, another one for each kind of store; `cargo xtask faults` tries all of them.

use std::collections::BTreeSet;

use larder::conformance::Subject;
use larder::conformance::Verdict;
use larder::conformance::faults::{self, TrialReport};
use serde_json::{Map, Value};

use crate::databases::Database;
use crate::support::{Folder, guests, object, plugins, program};
use crate::tables::Tables;

/// One of so many faults is tried, unless all are asked for.
fn every(otherwise: usize) -> String {
    match std::env::var_os("LARDER_FAULTS_ALL") {
        Some(_) => 1,
        None => otherwise,
    }
    .to_string()
}

/// Runs the program on a component of `folder`, and gives the exit code, what was tried and the sum.
fn run(component: &std::path::Path, more: &[&str]) -> (i32, Vec<Map<String, Value>>, Map<String, Value>) {
    let folder = Folder::new("");
    let component = component.to_str().expect("UTF-8");
    let arguments = [&["--format", "json", "plugins", "test", component, "--faults"], more].concat();
    let run = folder.larder(&arguments);
    let mut lines: Vec<_> = run.stdout.lines().map(object).collect();
    let sum = lines.pop().unwrap_or_else(|| panic!("{run:#?}"));
    (run.code, lines, sum)
}

fn check(strategy: &str, store: &str, otherwise: usize) {
    let store = if store.is_empty() { vec![] } else { vec!["--store-config", store] };
    let every = every(otherwise);
    let (code, tried, sum) =
        run(&plugins().join(strategy).with_extension("wasm"), &[&["--every", &every], &store[..]].concat());
    let wrong: Vec<_> = tried.iter().filter(|trial| trial["verdict"] != "passed").collect();
    assert!(wrong.is_empty() && code == 0, "{wrong:#?}");
    assert!(sum["passed"].as_u64() > Some(15), "{sum:?}");
    println!("{strategy} {store:?}: {} faults at {} calls", sum["passed"], sum["calls"]);
}

#[test]
fn json_keeps_its_promises_in_a_single_file() {
    check("json", "", 23);
}

#[test]
fn json_keeps_its_promises_in_split_files() {
    check("json", r#"{"json_strategy": {"storage_type": "split_files", "base_path": "${SCRATCH}/data"}}"#, 29);
}

#[test]
fn sql_keeps_its_promises_on_sqlite() {
    check("sql", "", 29);
}

#[test]
fn dynamodb_keeps_its_promises() {
    let tables = Tables::new("faults");
    // Tables of its own for each trial, below the prefix of all.
    let members = tables.members().replace(&tables.prefix, &format!("{}_${{CASE}}", tables.prefix));
    check("dynamodb", &format!(r#"{{"dynamodb_strategy": {{{members}}}}}"#), 7);
}

/// A database of its own for each trial, so that every one begins with making its tables.
#[tokio::test(flavor = "multi_thread")]
async fn sql_keeps_its_promises_on_postgresql() {
    let every: usize = every(41).parse().expect("a number");
    let subject = async |database: &Database| {
        let store = format!(r#"{{"sql_strategy": {{"type": "postgresql", {}}}}}"#, database.members());
        Subject::load(&plugins().join("sql.wasm"), Some(object(&store))).await.expect("a component that loads")
    };
    let database = Database::new("faults");
    let trials = faults::trials(&subject(&database).await, &[]).await.expect("calls that can go wrong");
    let mut count = 0;
    for trial in trials.into_iter().step_by(every) {
        let database = Database::new("fault");
        let TrialReport { trial, verdict, .. } = faults::run_trial(&subject(&database).await, trial, &program()).await;
        assert_eq!(verdict, Verdict::Passed, "{trial:#?}");
        count += 1;
    }
    assert!(count > 10, "{count} faults");
}

#[test]
fn a_strategy_from_outside_is_tried_as_the_shipped_ones_are() {
    let (code, tried, sum) = run(&guests().join("shelf.wasm"), &["--every", &every(13)]);
    assert_eq!((code, &sum["failed"], &sum["not_run"]), (0, &0.into(), &0.into()), "{tried:#?}");
    let names = |member: &str| -> BTreeSet<String> {
        tried.iter().map(|trial| trial[member].as_str().expect("a text").to_owned()).collect()
    };
    assert!(names("function").is_superset(&["files.read", "files.replacement.commit"].map(str::to_owned).into()));
    // It declares neither.
    assert!(!names("operation").iter().any(|name| name.contains("transaction") || name.contains("atomic")));
}

#[test]
fn mistakes_that_show_only_where_something_goes_wrong_are_found() {
    for (careless, operation, function, fault, reason) in [
        ("acknowledges at once", "save", "files.replacement.commit", "refused", "though it was acknowledged"),
        ("in place", "update of the stored version", "files.append", "torn", "others cannot read"),
        ("in place", "update of the stored version", "files.append", "killed-before", "expected"),
        ("knows better", "save", "files.replacement.commit", "answer-lost", "has happened"),
        ("what cannot be read is not there", "read", "files.read", "throttled", "query"),
    ] {
        let store = format!(
            r#"{{"shelf_strategy": {{"careless": "{careless}"}}, "grants": {{"files": {{"directory": "${{SCRATCH}}"}}}}}}"#
        );
        let (code, tried, sum) = run(&guests().join("shelf.wasm"), &["--store-config", &store, "--case", operation]);
        assert_eq!(code, 1, "{careless}: {sum:?}");
        let found = tried
            .iter()
            .find(|trial| trial["verdict"] == "failed" && trial["function"] == function && trial["fault"] == fault);
        let found = found.unwrap_or_else(|| panic!("{careless}, {function}, {fault}: not among {tried:#?}"));
        assert!(found["reason"].as_str().is_some_and(|text| text.contains(reason)), "{careless}: {found:#?}");
        assert!(found["call"].as_u64() <= found["calls"].as_u64() && found["about"].is_string(), "{found:#?}");
    }
}

#[test]
fn a_plugin_that_fails_by_itself_is_not_tried() {
    let folder = Folder::new("");
    let component = guests().join("ledger.wasm");
    let run = folder.larder(&["plugins", "test", component.to_str().expect("UTF-8"), "--faults"]).exits(1);
    assert!(run.stderr.contains("though nothing goes wrong"), "{run:#?}");
    assert!(run.stderr.contains("without --faults"), "{run:#?}");
}

#[test]
fn people_read_one_line_an_operation_and_each_failure() {
    let folder = Folder::new("");
    let component = guests().join("shelf.wasm");
    let component = component.to_str().expect("UTF-8");
    let store = r#"{"shelf_strategy": {"careless": "knows better"}, "grants": {"files": {"directory": "${SCRATCH}"}}}"#;
    let run = folder
        .larder(&["plugins", "test", component, "--faults", "--case", "create", "--store-config", store])
        .exits(1);
    let failure = run.stdout.lines().find(|line| line.starts_with("FAILED")).unwrap_or_else(|| panic!("{run:#?}"));
    assert!(failure.contains("create, call ") && failure.ends_with(": answer-lost"), "{failure}");
    assert!(run.stdout.lines().any(|line| line.starts_with("passed         create, ")), "{run:#?}");

    let listed = folder.larder(&["plugins", "test", component, "--faults", "--list"]).exits(0);
    assert_eq!(listed.stdout.lines().collect::<Vec<_>>(), faults::operations().collect::<Vec<_>>());
    let unknown = folder.larder(&["plugins", "test", component, "--faults", "--case", "juggle"]).exits(2);
    assert!(unknown.stderr.contains("no operation has `juggle`"), "{unknown:#?}");
    folder.larder(&["plugins", "test", component, "--every", "3"]).exits(2);
}
