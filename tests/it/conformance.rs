//! The conformance suite on every strategy that there is: its own list of cases, one test of each, on warm and on fresh
//! instances. And that the suite can fail, and says so.

use std::path::PathBuf;

use larder::conformance::{self, Instances, Subject, Verdict};
use serde_json::Value;

use crate::databases::Database;
use crate::support::{Folder, guests, object, plugins};
use crate::tables::Tables;

/// A component, and the store that it is tested with.
async fn subject(component: PathBuf, store: &str) -> Subject {
    let store = (!store.is_empty()).then(|| object(store));
    Subject::load(&component, store).await.expect("a component that loads")
}

/// Runs a case on warm and on fresh instances.
async fn check(subject: Subject, case: &str) {
    for instances in Instances::ALL {
        check_on(instances, &subject, case).await;
    }
}

/// The same on PostgreSQL, where the suite has no place that it could make: each time a database that is new.
async fn check_on_postgres(constraints: &str, case: &str) {
    for instances in Instances::ALL {
        let database = Database::new(constraints);
        let store = format!(
            r#"{{"sql_strategy": {{"type": "postgresql", {}, "constraints": "{constraints}"}}}}"#,
            database.members()
        );
        check_on(instances, &subject(plugins().join("sql.wasm"), &store).await, case).await;
    }
}

/// And on DynamoDB, each time on tables that are new. They are prepared: what the suite has not made it does not expect to
/// be missing.
async fn check_on_dynamodb(word: &str, case: &str) {
    for instances in Instances::ALL {
        let tables = Tables::new(word);
        let section = format!(r#""dynamodb_strategy": {{{}}}"#, tables.members());
        Folder::new(&format!(r#"{{"storage": {{"strategy": "dynamodb", {section}}}}}"#)).prepare("dynamodb");
        let store = format!("{{{section}}}");
        check_on(instances, &subject(plugins().join("dynamodb.wasm"), &store).await, case).await;
    }
}

/// Only what needs an instance that remembers may be left out, and no strategy of the project's does.
async fn check_on(instances: Instances, subject: &Subject, case: &str) {
    match conformance::run_case(subject, case, instances).await.verdict {
        Verdict::Passed | Verdict::Undeclared { .. } => {}
        verdict => panic!("on {} instances: {verdict:#?}", instances.name()),
    }
}

/// Makes an ordinary test of each case for every strategy.
macro_rules! tests {
    ($($module:ident::$name:ident [$($function:literal),*];)*) => {
        tests!(json_single_file (plugins().join("json.wasm")) "" $($name)*);
        tests!(json_split_files (plugins().join("json.wasm"))
            r#"{"json_strategy": {"storage_type": "split_files", "base_path": "${SCRATCH}/data"}}"# $($name)*);
        tests!(sql_strict (plugins().join("sql.wasm")) "" $($name)*);
        tests!(sql_relaxed (plugins().join("sql.wasm"))
            r#"{"sql_strategy": {"type": "sqlite", "name": "${SCRATCH}/store.db", "constraints": "relaxed"}}"# $($name)*);
        tests!(shelf (guests().join("shelf.wasm")) "" $($name)*);
        tests!(postgres_strict [check_on_postgres "strict"] $($name)*);
        tests!(postgres_relaxed [check_on_postgres "relaxed"] $($name)*);
        tests!(dynamodb [check_on_dynamodb "case"] $($name)*);
    };
    ($module:ident [$check:ident $word:literal] $($name:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    $check($word, stringify!($name)).await;
                }
            )*
        }
    };
    ($module:ident ($component:expr) $store:literal $($name:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    check(subject($component, $store).await, stringify!($name)).await;
                }
            )*
        }
    };
}

larder::conformance_cases!(tests);

/// The lines of a run with `--format json`, and its exit code.
fn run(folder: &Folder, arguments: &[&str]) -> (i32, Vec<Value>, String) {
    let run = folder.larder(&[&["--format", "json", "plugins", "test"], arguments].concat());
    let lines = run.stdout.lines().map(|line| Value::Object(object(line))).collect();
    (run.code, lines, run.stderr)
}

fn path(component: PathBuf) -> String {
    component.to_str().expect("a UTF-8 path").to_owned()
}

#[test]
fn the_program_tests_a_component_and_says_what_passed() {
    // No configuration: the folder has none that could be read.
    let folder = Folder::new("no configuration");
    let json = path(plugins().join("json.wasm"));
    let (code, lines, stderr) = run(&folder, &[&json, "--case", "writing_nothing", "--case", "a_delete"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let told: Vec<_> = lines.iter().map(|line| (line["instances"].as_str(), line["verdict"].as_str())).collect();
    let (warm, fresh) = ((Some("warm"), Some("passed")), (Some("fresh"), Some("passed")));
    assert_eq!(told, [warm, warm, fresh, fresh, (None, None)]);
    assert_eq!(lines[0]["case"], "a_delete_says_whether_the_entity_was_there");
    assert_eq!((&lines[4]["passed"], &lines[4]["failed"]), (&4.into(), &0.into()));

    let text = folder.larder(&["plugins", "test", &json, "--case", "writing_nothing"]).exits(0);
    assert!(text.stdout.contains("passed         writing_nothing_is_no_error (fresh instances)"), "{text:?}");
    assert!(text.stdout.contains("json: 2 passed, 0 undeclared"), "{text:?}");
    let listed = folder.larder(&["plugins", "test", &json, "--list"]).exits(0);
    assert_eq!(listed.stdout.lines().collect::<Vec<_>>(), conformance::names().collect::<Vec<_>>());
}

#[test]
fn a_feature_that_is_not_declared_is_told_apart_from_one_that_works() {
    let folder = Folder::new("");
    let (code, lines, _) = run(&folder, &[&path(guests().join("shelf.wasm")), "--case", "a_transaction_sees"]);
    assert_eq!(code, 0);
    assert_eq!((&lines[0]["verdict"], &lines[0]["feature"]), (&"undeclared".into(), &"transactions".into()));
}

#[test]
fn a_component_that_breaks_promises_fails_with_what_was_found_and_where() {
    let folder = Folder::new("");
    let (code, lines, stderr) = run(&folder, &[&path(guests().join("puppet.wasm"))]);
    assert_eq!(code, 1);
    let sum = lines.last().expect("a last line");
    // It stores nothing, so hardly a promise is kept, and what it does declare it does not do.
    assert!(sum["failed"].as_u64() > Some(40), "{sum}");
    for line in lines.iter().filter(|line| line["verdict"] == "failed") {
        assert!(line["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{line}");
        assert!(line["at"].as_str().is_some_and(|at| at.starts_with("host/src/conformance")), "{line}");
    }
    let error = stderr.lines().last().map(object).expect("an error");
    assert_eq!(error["kind"], "differs");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("does not keep the contract")));
}

#[test]
fn a_store_that_is_not_empty_is_not_touched_and_one_that_is_shared_is_left_empty() {
    let folder = Folder::new(r#"{"storage": {"strategy": "json", "json_strategy": {"base_path": "@/data"}}}"#);
    let body = r#"{"template_id": "mine", "name": "n", "provider_api": "p", "vm_type": "v", "max_number": 1}"#;
    folder.larder_with(&["save", "templates"], body).exits(0);
    let store = format!(r#"{{"json_strategy": {{"base_path": "{}/data"}}}}"#, folder.path().display());
    let json = path(plugins().join("json.wasm"));
    let cases = ["--case", "a_save", "--case", "a_scan", "--case", "not_there_yet"];
    let run = folder.larder(&[&["plugins", "test", &json, "--store-config", &store], &cases[..]].concat()).exits(2);
    assert!(run.stderr.contains("holds 1 entities of templates"), "{run:?}");
    folder.larder(&["get", "templates", "mine"]).exits(0);

    folder.larder(&["delete", "templates", "mine"]).exits(0);
    folder.write("store.json", &store);
    let file = path(folder.path().join("store.json"));
    folder.larder(&[&["plugins", "test", &json, "--store-config", &file], &cases[..]].concat()).exits(0);
    assert_eq!(folder.larder(&["count", "templates"]).exits(0).stdout, "0\n");
}

#[test]
fn mistakes_on_its_command_line_are_told() {
    let folder = Folder::new("");
    let json = path(plugins().join("json.wasm"));
    for (arguments, code, message) in [
        (&[&json, "--case", "no such case"][..], 2, "no case has `no such case` in its name"),
        (&[&json, "--store-config", "{"], 2, "--store-config holds no JSON object"),
        (&[&json, "--store-config", "absent.json"], 2, "the file absent.json cannot be read"),
        (&[&json, "--store-config", r#"{"strategy": "json"}"#], 2, "says which strategy it is of"),
        (&[&json, "--store-config", r#"{"json_strategy": {"base_paht": "x"}}"#], 2, "base_paht"),
        (&["absent.wasm"], 3, "absent.wasm"),
    ] {
        let run = folder.larder(&[&["plugins", "test"], arguments].concat()).exits(code);
        assert!(run.stderr.contains(message), "{run:?}");
    }
}
