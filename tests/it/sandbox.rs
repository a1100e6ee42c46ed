//! What the host makes of components that are not its own: a strategy from outside works by being dropped in, a plugin
//! reaches nothing that its store was not lent, one that breaks or lies harms nobody else, and a file that is no plugin is
//! named with its reason.
//!
//! The attempts are ids: `tests/guests/puppet` does what it is asked for and answers what came of it.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use larder::error::Kind;
use larder::exit;
use larder::repository::Repository;
use larder_model::{ErrorKind, Expectation, Retry};
use serde_json::Value;

use crate::support::{Folder, Run, guests, plugins};

/// A json store at the top, a shelf, a puppet with all that it wants, and one that was lent less.
const STORES: &str = r#"{
    "storage": {
        "strategy": "json",
        "json_strategy": {"base_path": "@/json"},
        "stores": {
            "shelves": {
                "strategy": "shelf",
                "shelf_strategy": {"extension": "txt"},
                "grants": {"files": {"directory": "@/shelves"}}
            },
            "again": {"strategy": "json", "json_strategy": {"base_path": "@/again"}},
            "hostile": {
                "strategy": "puppet",
                "puppet_strategy": {"lie": "LIE"},
                "grants": {
                    "files": {"directory": "@/lent"},
                    "sql": {"type": "sqlite", "name": "@/database/lent.db", "timeout": 0.5}
                }
            },
            "half": {"strategy": "puppet", "grants": {"files": {"directory": "@/lent"}}}
        }
    },
    "migration": {"backup_location": "@/backups"},
    "plugins": {"call_timeout": 2.5, "memory_mb_max": 64, "component_mb_max": 8}
}"#;

/// A folder with [`STORES`] and, in `plugins`, json and the guests.
fn folder() -> Folder {
    lying("nothing")
}

/// The same, where the puppet lies about `lie`.
fn lying(lie: &str) -> Folder {
    let folder = Folder::new(&STORES.replace("LIE", lie));
    folder.write("plugins/json.wasm", read(&plugins(), "json.wasm"));
    for guest in ["shelf.wasm", "puppet.wasm"] {
        folder.write(&format!("plugins/{guest}"), read(&guests(), guest));
    }
    folder
}

fn read(directory: &Path, file: &str) -> Vec<u8> {
    let path = directory.join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs the program with the folder's plugins.
fn larder(folder: &Folder, arguments: &[&str], input: &str) -> Run {
    folder.larder_with(&[&["--plugins", "plugins", "--format", "json"], arguments].concat(), input)
}

/// What a run said on standard error, without progress and warnings.
fn errors(run: &Run) -> Vec<Value> {
    let lines = run.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|value| value.get("kind").is_some() && value.get("message").is_some()).collect()
}

/// Runs what must end with one error of this kind and exit code, and returns the error.
#[track_caller]
fn fails(folder: &Folder, arguments: &[&str], input: &str, code: i32, kind: &str) -> Value {
    let run = larder(folder, arguments, input).exits(code);
    match errors(&run).as_slice() {
        [error] if error["kind"] == kind => error.clone(),
        other => panic!("expected one error of the kind {kind}, got {other:#?} in {run:#?}"),
    }
}

/// Asserts that a member of an error, as text, holds each of `parts`.
#[track_caller]
fn says(error: &Value, member: &str, parts: &[&str]) {
    let text = error[member].to_string();
    for part in parts {
        assert!(text.contains(Value::from(*part).to_string().trim_matches('"')), "no {part:?} in {member}: {error:#}");
    }
}

async fn open(folder: &Folder, store: &str) -> Repository {
    folder.host_with(&folder.path().join("plugins")).open(Some(store)).await.expect("a store that opens")
}

/// What came of one deed of the puppet: `ok` or the kind of the error it met, and what it saw or was told.
async fn attempt(puppet: &Repository, deed: &str) -> (String, String) {
    let found = puppet.get("templates", &[deed.to_owned()]).await.unwrap_or_else(|error| panic!("{deed}: {error:?}"));
    let body: Value = serde_json::from_slice(&found[0].as_ref().expect("an answer").body).expect("JSON");
    let text = |member: &str| body[member].as_str().expect("text").to_owned();
    (text("answer"), text("value"))
}

/// Every file of the folder but those that the puppet was lent, with its content.
fn outside(folder: &Folder) -> BTreeMap<String, Vec<u8>> {
    fn walk(directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(directory).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.ends_with("lent") || path.ends_with("database") {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.insert(path.display().to_string(), std::fs::read(&path).expect("a file"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder.path(), &mut found);
    found
}

// A strategy from outside.

#[test]
fn a_strategy_that_is_dropped_in_is_listed_beside_the_others() {
    let folder = folder();
    let run = larder(&folder, &["plugins", "list"], "").exits(0);
    let listed: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<_> = listed.iter().map(|plugin| plugin["plugin"].as_str().expect("a name")).collect();
    assert_eq!(names, ["json", "puppet", "shelf"]);
    assert_eq!(listed[2]["wants"], serde_json::json!(["files"]));
    assert_eq!(listed[2]["features"], serde_json::json!([]));
    assert!(listed[2]["config_schema"]["properties"]["extension"].is_object(), "{:#}", listed[2]);
}

/// Awkward ids and values, which the file names and the files must keep.
const TEMPLATES: &str = r#"
    {"template_id": "a/../b", "status": "NEW", "size": 1.0, "nested": {"list": [3, null, "x"], "empty": ""}}
    {"template_id": "größe", "status": "OLD", "size": 12345678901234567890123456789.5, "gone": null}
    {"template_id": "z", "status": "NEW", "size": 2, "text": "\u0000 \u001b[31m 日本語"}
"#;

fn lines(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_strategy_that_is_dropped_in_saves_gets_queries_and_counts() {
    let folder = folder();
    larder(&folder, &["save", "templates", "--store", "shelves"], &lines(TEMPLATES)).exits(0);
    // "z" in hexadecimal, with the extension of its own section.
    assert!(
        folder
            .read(&format!("shelves/templates/{}", folder.names("shelves/templates")[0]))
            .contains(r#""template_id":"z""#)
    );

    let run = larder(&folder, &["get", "templates", "größe", "a/../b", "--store", "shelves"], "").exits(0);
    let found: Vec<&str> = run.stdout.lines().collect();
    assert!(found[0].contains(r#""size":12345678901234567890123456789.5,"gone":null"#), "{found:#?}");
    assert!(found[1].contains(r#""size":1.0,"nested":{"list":[3,null,"x"],"empty":""}"#), "{found:#?}");
    larder(&folder, &["get", "templates", "absent", "--store", "shelves"], "").exits(1);

    // It filters and sorts nothing: the host does.
    let query = ["query", "templates", "--filter", "status=NEW", "--order-by", "size:desc", "--store", "shelves"];
    let run = larder(&folder, &query, "").exits(0);
    let ids: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(ids.iter().map(|it| it["template_id"].as_str().unwrap()).collect::<Vec<_>>(), ["z", "a/../b"]);

    for (filter, count) in [(vec![], 3), (vec!["--filter", "status=NEW"], 2), (vec!["--filter", "status=NONE"], 0)] {
        let arguments = [vec!["count", "templates", "--store", "shelves"], filter].concat();
        let run = larder(&folder, &arguments, "").exits(0);
        assert_eq!(run.stdout.trim(), format!(r#"{{"count":{count}}}"#));
    }

    let again = r#"{"template_id": "z"}"#;
    let error =
        fails(&folder, &["save", "templates", "--expect", "7", "--store", "shelves"], again, 1, "version-conflict");
    assert_eq!(error["current_version"], 1);
    fails(&folder, &["save", "templates", "--expect", "absent", "--store", "shelves"], again, 1, "already-exists");
    larder(&folder, &["delete", "templates", "z", "--store", "shelves"], "").exits(0);
    fails(&folder, &["update", "templates", "z", "--store", "shelves"], again, 1, "not-found");
}

#[test]
fn a_strategy_that_is_dropped_in_is_the_source_and_the_target_of_migrations() {
    let folder = folder();
    larder(&folder, &["save", "templates"], &lines(TEMPLATES)).exits(0);
    larder(&folder, &["save", "requests"], r#"{"request_id": "r", "template_id": "z"}"#).exits(0);
    larder(&folder, &["migrate", "--from", "json", "--to", "shelves"], "").exits(0);
    larder(&folder, &["migrate", "--from", "shelves", "--to", "again", "--workers", "3"], "").exits(0);
    larder(&folder, &["verify", "--from", "json", "--to", "again"], "").exits(0);
    let exported = |store| {
        let run = larder(&folder, &["export", "--store", store], "").exits(0);
        let mut lines: Vec<String> = run.stdout.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(exported("json").len(), 4);
    assert_eq!(exported("json"), exported("again"));
}

#[test]
fn an_unknown_key_of_a_dropped_in_strategy_is_refused_with_the_nearest_one() {
    let folder = folder();
    folder.write("larder.json", folder.read("larder.json").replace("\"extension\"", "\"extention\""));
    for arguments in [&["get", "templates", "z", "--store", "shelves"][..], &["config", "check"]] {
        let error = fails(&folder, arguments, "", 2, "configuration");
        says(&error, "message", &["shelf_strategy", "extention", "did you mean `extension`"]);
    }
}

#[tokio::test]
async fn what_a_strategy_does_not_declare_is_unsupported() {
    let folder = folder();
    let write = r#"{"op": "save", "collection": "templates", "entity": {"template_id": "z"}}"#;
    fails(&folder, &["apply", "--store", "shelves"], write, 2, "unsupported");
    let shelves = open(&folder, "shelves").await;
    let error = shelves.begin(None, false).await.expect_err("no transaction");
    assert!(error.is(ErrorKind::Unsupported), "{error:?}");
    let error =
        fails(&folder, &["query", "templates", "--index", "by_x", "--store", "shelves"], "", 2, "invalid-argument");
    says(&error, "message", &["by_x"]);
}

// What was lent, and no more.

#[tokio::test]
async fn no_path_leads_out_of_the_directory_that_was_lent() {
    let folder = folder();
    folder.write("secret", "keep out");
    folder.write("beside/secret", "keep out");
    folder.write("lent/inside/file", "inside");
    // `keep-as` keeps it under another name while it is replaced.
    folder.write("lent/kept", "old");
    let lent = folder.path().join("lent");
    let link = |target: &Path, name: &str| symlink(target, lent.join(name)).expect("a link");
    link(Path::new("../secret"), "link");
    link(&folder.path().join("secret"), "absolute-link");
    link(Path::new(".."), "up");
    link(&folder.path().join("beside"), "inside/folder-link");
    link(Path::new("../made"), "dangling");
    link(Path::new("/dev/zero"), "device");
    link(Path::new("inside/file"), "inner-link");
    let before = outside(&folder);

    let puppet = open(&folder, "hostile").await;
    for (deed, sees) in [("read inside/file", "inside"), ("read inner-link", "inside"), ("read absent", "nothing")] {
        assert_eq!(attempt(&puppet, deed).await, ("ok".to_owned(), sees.to_owned()), "{deed}");
    }

    let absolute = folder.path().join("secret").display().to_string();
    let ways = [
        "../secret",
        "inside/../../secret",
        "../lent/inside/file",
        "..",
        &absolute,
        "/dev/zero",
        "link",
        "absolute-link",
        "device",
        "up/secret",
        "up/beside/secret",
        "inside/folder-link/secret",
    ];
    for way in ways {
        for verb in ["read", "stat", "append", "sync", "truncate", "replace", "lock", "keep-as"] {
            // A link's own name may be taken, but it is not followed to where it leads.
            if verb == "keep-as" && ["link", "absolute-link", "device"].contains(&way) {
                continue;
            }
            denied(&folder, attempt(&puppet, &format!("{verb} {way}")).await, &format!("{verb} {way}"));
        }
    }
    for deed in [
        "remove ../secret",
        "remove up/secret",
        "remove inside/folder-link/secret",
        "entries ../",
        "entries ../s",
        "entries /etc/",
        "entries up/",
        "entries inside/folder-link/",
        "append dangling",
        "replace dangling",
        "lock dangling",
        "append up/made",
        "replace up/made",
        "append ../made/deeper",
        "append up/made/deeper",
    ] {
        denied(&folder, attempt(&puppet, deed).await, deed);
    }
    assert_eq!(outside(&folder), before);

    // A link that leads out is listed as little as it is read.
    let (_, listed) = attempt(&puppet, "entries ").await;
    assert!(
        listed.contains("inner-link") && !listed.contains("\"link\"") && !listed.contains("\"dangling\""),
        "{listed}"
    );
    // The link itself lies in the directory, what it names does not.
    assert_eq!(attempt(&puppet, "remove link").await.0, "ok");
    assert_eq!(outside(&folder), before);
}

#[track_caller]
fn denied(folder: &Folder, (answer, value): (String, String), deed: &str) {
    assert_eq!(answer, "denied", "{deed}: {value}");
    assert!(!value.contains("keep out"), "{deed} was read: {value}");
    // The puppet may have named a path, but must not learn one.
    let learnt = value.replace(deed.split_once(' ').expect("an object").1, "");
    assert!(!learnt.contains(folder.path().to_str().expect("UTF-8")), "{deed} tells where the directory lies: {value}");
}

#[tokio::test]
async fn what_is_no_regular_file_is_neither_read_nor_waited_for() {
    let folder = folder();
    folder.write("lent/folder/file", "");
    let lent = folder.path().join("lent");
    symlink("turning", lent.join("turning")).expect("a link");
    assert!(Command::new("mkfifo").arg(lent.join("fifo")).status().expect("mkfifo").success());
    let _socket = std::os::unix::net::UnixListener::bind(lent.join("socket")).expect("a socket");
    let puppet = open(&folder, "hostile").await;
    let started = Instant::now();
    for name in ["fifo", "socket", "folder", "turning"] {
        for verb in ["read", "append", "truncate", "replace", "lock"] {
            let (answer, value) = attempt(&puppet, &format!("{verb} {name}")).await;
            assert!(["invalid-argument", "denied"].contains(&answer.as_str()), "{verb} {name}: {answer} {value}");
        }
    }
    assert!(started.elapsed() < Duration::from_secs(2), "something was waited for: {:?}", started.elapsed());
    assert_eq!(attempt(&puppet, "hold-locks").await.0, "limit-exceeded");
}

#[tokio::test]
async fn no_statement_leads_out_of_the_database_that_was_lent() {
    let folder = folder();
    folder.write("other.db", "not yours");
    std::fs::create_dir(folder.path().join("database")).expect("a folder");
    let before = outside(&folder);
    let puppet = open(&folder, "hostile").await;
    for (deed, sees) in [
        ("sql CREATE TABLE t (a INTEGER PRIMARY KEY)", "[]"),
        ("sql INSERT INTO t VALUES (7)", "[]"),
        ("sql-in-transaction DELETE FROM t", "[]"),
        ("sql SELECT a FROM t;", "[Integer(7)]"),
    ] {
        assert_eq!(attempt(&puppet, deed).await, ("ok".to_owned(), sees.to_owned()), "{deed}");
    }

    let other = folder.path().join("other.db").display().to_string();
    let made = folder.path().join("made.db").display().to_string();
    let attach = format!("ATTACH '{other}' AS other");
    let attach_new = format!("/* SELECT */ attach database '{made}' as other");
    let vacuum = format!("VACUUM INTO '{made}'");
    for statement in [
        attach.as_str(),
        &attach_new,
        &vacuum,
        "ATTACH ':memory:' AS other",
        "DETACH main",
        "VACUUM",
        "EXPLAIN ATTACH 'x' AS y",
        "SELECT a FROM t; DELETE FROM t",
        "SELECT a FROM t; /* only a comment */ DELETE FROM t",
        "PRAGMA database_list",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA writable_schema = ON",
        "PRAGMA temp_store_directory = '/tmp'",
        "EXPLAIN PRAGMA writable_schema = ON",
        "SELECT file FROM pragma_database_list",
        "SELECT * FROM pragma_compile_options",
        "SELECT a FROM t WHERE EXISTS (SELECT * FROM Pragma_Database_List)",
        "SELECT load_extension('x')",
        "SELECT a FROM t WHERE load_extension('x', 'y') IS NULL",
        "BEGIN",
        "BEGIN IMMEDIATE",
        "COMMIT",
        "END",
        "ROLLBACK",
        "SAVEPOINT s",
        "RELEASE s",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t; END",
        "CREATE TEMP TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t; END",
        "CREATE VIRTUAL TABLE v USING fts5(a)",
        "CREATE VIRTUAL TABLE v USING dbstat",
        "CREATE TEMP TABLE temporary (a)",
        "CREATE TABLE temp.temporary (a)",
        "CREATE VIEW seen AS SELECT * FROM t",
    ] {
        for verb in ["sql", "sql-in-transaction"] {
            let deed = format!("{verb} {statement}");
            let (answer, value) = attempt(&puppet, &deed).await;
            assert_eq!(answer, "denied", "{deed}: {value}");
            assert!(!value.contains(folder.path().to_str().expect("UTF-8")), "{deed} tells a path: {value}");
        }
    }
    for (statement, kinds) in [
        ("UPDATE sqlite_master SET sql = ''", &["denied", "invalid-argument"][..]),
        ("SELECT writefile('made.db', 'x')", &["denied", "invalid-argument"]),
        ("SELECT readfile('/etc/passwd')", &["denied", "invalid-argument"]),
        ("SELECT zeroblob(1000000000)", &["limit-exceeded"]),
        ("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c", &["timeout"]),
    ] {
        let (answer, value) = attempt(&puppet, &format!("sql {statement}")).await;
        assert!(kinds.contains(&answer.as_str()), "{statement}: {answer} {value}");
    }

    // Nothing came of any of them, in the database or beside it.
    assert_eq!(attempt(&puppet, "sql SELECT a FROM t").await.1, "[Integer(7)]");
    assert_eq!(attempt(&puppet, "sql SELECT name FROM sqlite_schema").await.1, r#"[Text("t")]"#);
    assert_eq!(outside(&folder), before);
    for entry in std::fs::read_dir(folder.path().join("database")).expect("the folder of the database") {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        assert!(name.starts_with("lent.db"), "{name} appeared");
    }
}

#[tokio::test]
async fn the_system_interface_holds_no_file_no_address_and_no_variable() {
    let folder = folder();
    folder.write("lent/file", "lent by another way");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let puppet = open(&folder, "hostile").await;
    let port = listener.local_addr().expect("an address").port();
    for deed in [
        "open /etc/passwd".to_owned(),
        "open file".to_owned(),
        "open ../larder.json".to_owned(),
        "list /".to_owned(),
        "list .".to_owned(),
        format!("connect 127.0.0.1:{port}"),
        format!("connect localhost:{port}"),
    ] {
        let (answer, value) = attempt(&puppet, &deed).await;
        assert_eq!(answer, "invalid-argument", "{deed}: {value}");
    }
    listener.set_nonblocking(true).expect("a listener");
    assert!(listener.accept().is_err(), "somebody connected");
    assert_eq!(attempt(&puppet, "environment").await.1, "[] Args { inner: [] }");
}

#[test]
fn a_plugin_that_wants_more_than_its_store_was_granted_is_not_loaded() {
    let folder = folder();
    let error = fails(&folder, &["get", "templates", "append made", "--store", "half"], "", 3, "plugin-refused");
    says(&error, "message", &["`puppet`", "capability `sql`", "store `half`"]);
    says(&error, "hint", &[r#""grants": {"sql": "#, "storage.stores.half"]);
    assert!(!folder.path().join("lent").exists(), "nothing of it ran");
}

// What breaks or lies.

#[tokio::test]
async fn a_plugin_that_never_ends_times_out_while_other_stores_are_served() {
    let folder = folder();
    let (puppet, json) = (open(&folder, "hostile").await, open(&folder, "json").await);
    let started = Instant::now();
    let spin = async {
        let ended = puppet.get("templates", &["spin".to_owned()]).await;
        (ended.expect_err("an endless loop"), started.elapsed())
    };
    let serve = async {
        let body = br#"{"template_id": "z"}"#;
        json.save("templates", body, Expectation::Any).await.expect("a save");
        assert!(json.get("templates", &["z".to_owned()]).await.expect("a get")[0].is_some());
        started.elapsed()
    };
    // Both on this one thread: a plugin that kept it would hold up the other.
    let ((error, spun), served) = tokio::join!(spin, serve);
    assert!(error.is(ErrorKind::Timeout), "{error:?}");
    assert_eq!(exit::code(&error), 4);
    assert!(error.message.contains("get") && error.message.contains("2.5 s"), "{error:?}");
    assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("plugins.call_timeout")), "{error:?}");
    assert!(spun >= Duration::from_secs_f64(2.5) && spun < Duration::from_secs(5), "{spun:?}");
    assert!(served < spun, "served after {served:?}, spun for {spun:?}");
    // The instance is gone, the store is not.
    assert_eq!(attempt(&puppet, "read absent").await.1, "nothing");
}

#[tokio::test]
async fn a_plugin_that_breaks_is_a_trap_and_its_store_works_at_the_next_call() {
    let folder = folder();
    let puppet = open(&folder, "hostile").await;
    let cases = [
        ("allocate", "ran out of memory in get", "may have 64 MiB", "plugins.memory_mb_max"),
        ("panic", "trapped in get", "the puppet \\u{1b}[31mpanics", "plugin"),
        ("recurse", "trapped in get", "wasm trap", "plugin"),
    ];
    for (deed, message, cause, hint) in cases {
        let error = puppet.get("templates", &[deed.to_owned()]).await.expect_err(deed);
        assert_eq!((error.kind, exit::code(&error), error.retry), (Kind::Trap, 3, Retry::Never), "{error:?}");
        assert!(error.message.contains("`puppet`") && error.message.contains(message), "{error:?}");
        assert!(error.causes.iter().any(|it| it.contains(cause)), "{error:?}");
        assert!(error.hint.as_ref().is_some_and(|it| it.contains(hint)), "{error:?}");
        assert_eq!(attempt(&puppet, "read absent").await.1, "nothing", "after {deed}");
    }
    let error = fails(&folder, &["get", "templates", "panic", "--store", "hostile"], "", 3, "trap");
    says(&error, "message", &["`puppet`", "trapped in get"]);
}

#[test]
fn of_a_write_that_trapped_nobody_knows_whether_it_took_effect() {
    let folder = lying("panic");
    let body = r#"{"template_id": "z"}"#;
    let error = fails(&folder, &["save", "templates", "--store", "hostile"], body, 3, "trap");
    assert_eq!(error["retry"], "unknown-outcome");
}

#[test]
fn what_a_plugin_says_cannot_move_the_cursor_or_forge_a_line() {
    let folder = folder();
    let run = folder.larder(&["--plugins", "plugins", "get", "templates", "fail", "--store", "hostile"]).exits(1);
    assert_eq!(run.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{run:#?}");
    assert!(!run.stderr.contains('\u{1b}'), "{run:#?}");
}

#[test]
fn whatever_a_plugin_says_and_wherever_it_is_shown_nothing_in_it_acts() {
    let folder = lying("forges");
    let hostile = |arguments: &[&'static str]| [arguments, &["--store", "hostile"]].concat();
    for (arguments, code) in [
        (vec!["plugins", "inspect", "plugins/puppet.wasm", "--describe"], 0),
        (vec!["plugins", "list"], 0),
        (hostile(&["stores", "check"]), 0),
        (hostile(&["stores", "prepare"]), 0),
        (hostile(&["query", "templates"]), 0),
        (hostile(&["query", "templates", "--explain"]), 0),
        (hostile(&["get", "templates", "answer"]), 0),
        (hostile(&["get", "templates", "fail"]), 1),
        (hostile(&["get", "templates", "panic"]), 3),
        (hostile(&["restore"]), 0),
        (hostile(&["restore", "noon"]), 0),
        (vec!["migrate", "--from", "json", "--to", "hostile", "--dry-run"], 0),
    ] {
        for format in ["text", "json"] {
            let all = [&["--plugins", "plugins", "--format", format], arguments.as_slice()].concat();
            let run = folder.larder(&all).exits(code);
            for shown in [&run.stdout, &run.stderr] {
                let acts = |it: char| it.is_control() && it != '\n' || matches!(it, '\u{202e}' | '\u{2028}');
                assert!(!shown.contains(acts), "{all:?}: {shown:?}");
                assert!(!shown.lines().any(|line| line.trim_start().starts_with("forged")), "{all:?}: {shown}");
            }
            if format == "json" {
                for line in run.stdout.lines() {
                    serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                }
            }
        }
    }
}

#[tokio::test]
async fn a_plugin_that_asks_to_wait_for_nothing_is_given_up_at_the_deadline() {
    let folder = folder();
    let puppet = open(&folder, "hostile").await;
    let started = Instant::now();
    let error = puppet.get("templates", &["wait".to_owned()]).await.expect_err("it waits for ever");
    assert!(error.is(ErrorKind::Timeout), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_answer_that_cannot_be_true_is_not_believed() {
    let folder = folder();
    let puppet = open(&folder, "hostile").await;
    assert_eq!(attempt(&puppet, "answer truly").await.0, "ok");
    for (deed, message) in [
        ("answer another", "with another entity"),
        ("answer another key", "that it is `another`"),
        ("answer without a key", "no valid entity"),
        ("answer no object", "no valid entity"),
        ("answer no JSON", "no valid entity"),
        ("answer a member twice", "no valid entity"),
        ("answer depth", "no valid entity"),
        ("answer too much", "larger than it says"),
        ("answer twice", "1 ids with 2"),
        ("answer less", "1 ids with 0"),
    ] {
        let error = puppet.get("templates", &[deed.to_owned()]).await.expect_err(deed);
        assert!(error.is(ErrorKind::Corrupt) && error.message.contains(message), "{deed}: {error:?}");
        assert_eq!(exit::code(&error), 5);
    }
}

#[test]
fn pages_results_and_findings_that_cannot_be_true_are_not_believed() {
    let entity = r#"{"template_id": "z"}"#;
    let query = &["query", "templates", "--limit", "3", "--store", "hostile"][..];
    for (lie, arguments, message) in [
        ("more than a page", query, "a page of 3 with 4"),
        ("same cursor", &["query", "templates", "--store", "hostile"], "the same cursor again"),
        ("same cursor", &["count", "templates", "--store", "hostile"], "the same cursor again"),
        ("same cursor", &["export", "--store", "hostile"], "the same cursor again"),
        ("cursors in a circle", &["export", "--store", "hostile"], "a cursor that it gave before"),
        ("more than a batch", &["export", "--store", "hostile"], "goes on with a batch that has 1048576 bytes"),
        ("wrong key", query, "says in `template_id` that it is `some`"),
        ("wrong key", &["export", "--store", "hostile"], "says in `template_id` that it is `some`"),
        ("findings", &["stores", "check", "--store", "hostile"], "findings that are not a JSON object"),
        ("fewer results", &["save", "templates", "--store", "hostile"], "1 writes with 0 results"),
    ] {
        let error = fails(&lying(lie), arguments, entity, 5, "corrupt");
        says(&error, "message", &[message]);
    }
}

#[test]
fn a_target_that_lies_about_what_it_stored_is_found_out() {
    for (lie, code, kind, message) in [
        ("written", 5, "corrupt", "of 1 entities that it was given"),
        ("refused", 5, "corrupt", "refuses an entity that it was not given"),
        ("violation", 5, "corrupt", "judges an entity that it was not given"),
        // It says that it wrote the entity, and has another one.
        ("nothing", 1, "differs", "differ"),
    ] {
        let folder = lying(lie);
        larder(&folder, &["save", "templates"], r#"{"template_id": "answer nothing"}"#).exits(0);
        let error = fails(&folder, &["migrate", "--from", "json", "--to", "hostile"], "", code, kind);
        says(&error, "message", &[message]);
        larder(&folder, &["get", "templates", "answer nothing"], "").exits(0);
    }
}

#[test]
fn a_store_that_cannot_be_closed_is_a_warning_and_the_answer_stands() {
    let get = ["get", "templates", "answer", "--store", "hostile"];
    for (lie, code, message) in [
        ("close", 4, "store `hostile` could not be closed: the door \\u{1b}[31mjams"),
        ("panic at the end", 3, "store `hostile` could not be closed: plugin `puppet` trapped in close: "),
    ] {
        let folder = lying(lie);
        let run = larder(&folder, &get, "").exits(0);
        assert_eq!(run.stdout.lines().count(), 1, "{run:#?}");
        let [warning] = run.stderr.lines().collect::<Vec<_>>()[..] else { panic!("one line: {run:#?}") };
        let warning: Value = serde_json::from_str(warning).expect("JSON");
        assert!(warning["warning"].as_str().expect("text").starts_with(message), "{warning}");
        // Where closing is all that was asked for, that it failed is the answer.
        let run = larder(&folder, &["stores", "flush", "--store", "hostile"], "").exits(code);
        assert_eq!((run.stdout.as_str(), errors(&run).len(), run.stderr.lines().count()), ("", 1, 1), "{run:#?}");
    }
    assert_eq!(larder(&lying("nothing"), &get, "").exits(0).stderr, "");
}

#[test]
fn restore_points_are_printed_and_restored_and_those_that_cannot_be_named_are_not_believed() {
    let honest = lying("nothing");
    let restore = ["restore", "--store", "hostile"];
    let text = |arguments: &[&str]| {
        honest.larder(&[&["--plugins", "plugins", "restore", "--store", "hostile"][..], arguments].concat())
    };
    assert_eq!(text(&[]).exits(0).stdout, "POINT  DESCRIPTION\nnoon   as it \\u{1b}[2Jwas\n");
    assert_eq!(text(&["noon"]).exits(0).stdout, "put \\u{1b}[2Jthe hands back\nwound the clock\n");
    let run = larder(&honest, &restore, "").exits(0);
    let point: Value = serde_json::from_str(&run.stdout).expect("one JSON object");
    assert_eq!((&point["point"], point["description"].is_string()), (&"noon".into(), true));
    let run = larder(&honest, &["restore", "noon", "--store", "hostile"], "").exits(0);
    let done: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((done.len(), &done[1]["done"], &done[1]["point"]), (2, &"wound the clock".into(), &"noon".into()));
    let error = fails(&honest, &["restore", "dusk", "--store", "hostile"], "", 1, "not-found");
    says(&error, "hint", &["larder restore --store hostile"]);

    for lie in ["one point twice", "a point of no name"] {
        let error = fails(&lying(lie), &restore, "", 5, "corrupt");
        says(&error, "message", &["a restore point of no usable name, or two of one"]);
    }
}

// Files that are no plugins.

#[test]
fn each_file_that_is_no_plugin_is_named_with_its_reason_and_the_others_are_listed() {
    let folder = folder();
    let shelf = read(&guests(), "shelf.wasm");
    let patched = |from: &str, to: &str| {
        let text = replaced(&shelf, from.as_bytes(), to.as_bytes());
        assert_ne!(text, shelf, "{from} is not in the component");
        text
    };
    let files = [
        ("text", b"#!/bin/sh\necho hello\n".to_vec(), "is not WebAssembly", "only components"),
        ("empty", Vec::new(), "is not WebAssembly", "only components"),
        ("truncated", shelf[..shelf.len() / 2].to_vec(), "is not a valid component", "half copied"),
        ("core", b"\0asm\x01\0\0\0".to_vec(), "is a core WebAssembly module", "wasm32-wasip2"),
        ("other", b"\0asm\x0d\0\x01\0".to_vec(), "is a component of another world", "exports the repository interface"),
        ("drawer", shelf.clone(), "says that it is the strategy `shelf`", "rename it to shelf.wasm"),
        ("large", vec![0; (8 << 20) + 1], "is larger than 8388608 bytes", "plugins.component_mb_max"),
        (
            "later",
            patched("larder:storage/repository@0.1.0", "larder:storage/repository@0.9.0"),
            "implements larder:storage/repository@0.9.0, and this host speaks larder:storage/repository@0.1.0",
            "this version of larder",
        ),
        (
            "stranger",
            patched("larder:storage/files@0.1.0", "larder:storage/fires@0.1.0"),
            "imports larder:storage/fires@0.1.0, which this host does not have",
            "another host",
        ),
    ];
    for (name, content, ..) in &files {
        folder.write(&format!("plugins/{name}.wasm"), content);
    }
    folder.write("plugins/notes.txt", "no plugin, and not meant to be one");

    let run = larder(&folder, &["plugins", "list"], "").exits(3);
    let listed: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<_> = listed.iter().map(|plugin| plugin["plugin"].as_str().expect("a name")).collect();
    assert_eq!(names, ["json", "puppet", "shelf"]);
    let errors = errors(&run);
    assert_eq!(errors.len(), files.len(), "{run:#?}");
    for (name, _, message, hint) in &files {
        let file = format!("plugins/{name}.wasm");
        let error = errors.iter().find(|error| error["message"].as_str().is_some_and(|it| it.contains(&file)));
        let error = error.unwrap_or_else(|| panic!("{file} is not named in {errors:#?}"));
        assert_eq!(error["kind"], "plugin-refused");
        says(error, "message", &[message]);
        says(error, "hint", &[hint]);
        // Which strategy it is can only be told by the component itself.
        let describe: &[&str] = if *name == "drawer" { &["--describe"] } else { &[] };
        let inspect = [&["plugins", "inspect", &file], describe].concat();
        let inspected = fails(&folder, &inspect, "", 3, "plugin-refused");
        says(&inspected, "message", &[message]);
    }
    // What lies beside it does not keep a store from opening.
    larder(&folder, &["count", "templates", "--store", "shelves"], "").exits(0);
}

/// `bytes` with every `from` replaced by a `to` of the same length, so that lengths in the component stay true.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while at + from.len() <= bytes.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + from.len()].copy_from_slice(to);
            at += from.len();
        } else {
            at += 1;
        }
    }
    bytes
}

#[test]
fn a_store_without_its_plugin_is_told_what_the_directory_holds() {
    let folder = folder();
    std::fs::remove_file(folder.path().join("plugins/shelf.wasm")).expect("a file");
    let error = fails(&folder, &["count", "templates", "--store", "shelves"], "", 3, "plugin-refused");
    says(&error, "message", &["there is no plugin `shelf`"]);
    says(&error, "hint", &["it holds: json, puppet"]);

    std::fs::remove_dir_all(folder.path().join("plugins")).expect("a folder");
    let error = fails(&folder, &["plugins", "list"], "", 3, "plugin-refused");
    says(&error, "message", &["cannot read the plugins directory"]);
    says(&error, "hint", &["--plugins", "LARDER_PLUGINS"]);
}
