//! The program as a person or a script meets it: what every command prints, which exit code it ends with, and what it
//! says of bad input, damaged files and full disks. Whole outputs where they are short.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Folder, Run, object, plugins, program};

/// A JSON store by default, and tables.
const STORES: &str = r#"{
  "storage": {
    "strategy": "json",
    "json_strategy": {"base_path": "@/data"},
    "stores": {
      "tables": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/tables.db"}}
    }
  }
}"#;

const DOCUMENT: &str = "data/request_database.json";

fn folder() -> Folder {
    Folder::new(STORES)
}

/// A template that every store takes.
fn template(id: &str, more: &str) -> String {
    format!(
        r#"{{"template_id":"{id}","name":"Pool","provider_api":"RunInstances","vm_type":"t3.medium","max_number":10{more}}}"#
    )
}

fn save(folder: &Folder, store: &str, id: &str, more: &str) {
    folder.larder_with(&["save", "templates", "--store", store], &template(id, more)).exits(0);
}

/// Standard error was exactly this.
#[track_caller]
fn says(run: &Run, stderr: &str) {
    assert_eq!(run.stderr, stderr, "{run:#?}");
    assert_eq!(run.stdout, "", "{run:#?}");
}

#[test]
fn help_and_version_need_no_configuration() {
    let folder = Folder::new("{}");
    std::fs::remove_file(folder.path().join("larder.json")).unwrap();
    let version = folder.larder(&["--version"]).exits(0);
    assert_eq!(version.stdout, format!("larder {}\n", env!("CARGO_PKG_VERSION")));
    let help = folder.larder(&["--help"]).exits(0);
    for command in [
        "migrate",
        "verify",
        "get",
        "save",
        "update",
        "patch",
        "delete",
        "query",
        "count",
        "apply",
        "export",
        "import",
        "restore",
        "stores",
        "plugins",
        "config",
        "completions",
    ] {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{command} is not in {}", help.stdout);
        let own = folder.larder(&[command, "--help"]).exits(0);
        assert!(own.stdout.contains(&format!("Usage: larder {command}")), "{}", own.stdout);
    }
    assert!(help.stdout.contains("Exit codes: 0 done; 1 the answer is no"));
    let usage = folder.larder(&[]).exits(2);
    assert!(usage.stderr.contains("Usage: larder"), "{usage:#?}");
    assert!(folder.larder(&["frobnicate"]).exits(2).stderr.contains("unrecognized subcommand 'frobnicate'"));
    assert!(folder.larder(&["get", "templates"]).exits(2).stderr.contains("<ID>"));
}

#[test]
fn completions_are_scripts_of_their_shells() {
    let folder = Folder::new("{}");
    for (shell, part) in
        [("bash", "complete -F _larder"), ("zsh", "#compdef larder"), ("fish", "complete -c larder -n")]
    {
        let script = folder.larder(&["completions", shell]).exits(0).stdout;
        assert!(script.contains(part) && script.contains("cleanup-source"), "{shell}: {script}");
        // Where the shell is there, it reads the script.
        if let Ok(mut child) = Command::new(shell).arg("-n").stdin(Stdio::piped()).spawn() {
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success(), "{shell} does not read its script");
        }
    }
    folder.larder(&["completions", "tcsh"]).exits(2);
}

#[test]
fn get_prints_entities_in_the_order_asked_for() {
    let folder = folder();
    for store in ["json", "tables"] {
        save(&folder, store, "a", r#","created_at":"2026-03-01","note":"é\n","none":null"#);
        save(&folder, store, "b", "");
        let run = folder.larder(&["get", "templates", "b", "a", "--store", store, "--format", "json"]).exits(0);
        let ids: Vec<Value> = run.stdout.lines().map(|line| object(line)["template_id"].clone()).collect();
        assert_eq!(ids, ["b", "a"]);

        let run = folder.larder(&["get", "templates", "a", "--store", store]).exits(0);
        assert!(run.stdout.starts_with("{\n  \"template_id\": \"a\",\n  \"name\": \"Pool\",\n"), "{run:#?}");
        assert!(run.stdout.contains("\n  \"note\": \"é\\n\",\n  \"none\": null"), "{run:#?}");

        let run = folder.larder(&["get", "templates", "a", "x", "b", "y", "--store", store]).exits(1);
        assert_eq!(run.stdout.matches("\"template_id\"").count(), 2, "what is there is printed");
        assert_eq!(run.stderr, format!("error: templates has no `x`, `y` in store `{store}`\n"));
    }
    let run = folder.larder(&["get", "templates", "x", "--format", "json"]).exits(1);
    says(&run, "{\"kind\":\"not-found\",\"retry\":\"never\",\"message\":\"templates has no `x` in store `json`\"}\n");
}

#[test]
fn save_reads_an_object_an_array_or_one_a_line_from_a_file_or_standard_input() {
    let folder = folder();
    let run = folder.larder_with(&["save", "templates"], &template("a", "")).exits(0);
    assert_eq!(run.stdout, "saved templates `a`, version 1\n");
    folder.write("b.json", format!("[\n{},\n{}\n]\n", template("a", ""), template("b", "")));
    let run = folder.larder(&["save", "templates", "b.json", "--format", "json"]).exits(0);
    assert_eq!(run.stdout, "{\"id\":\"a\",\"version\":2}\n{\"id\":\"b\",\"version\":1}\n");
    let lines = format!("{}\n\n{}\n", template("c", ""), template("d", ""));
    let run = folder.larder_with(&["save", "templates", "-", "--store", "tables"], &lines).exits(0);
    assert_eq!(run.stdout, "saved templates `c`, version 1\nsaved templates `d`, version 1\n");
    let nothing = folder.larder_with(&["save", "templates"], "[]").exits(0);
    says(&nothing, "the input is an empty array: there was nothing to save\n");

    let run = folder.larder(&["save", "templates", "nothing.json"]).exits(2);
    says(&run, "error: cannot read nothing.json\ncaused by: No such file or directory (os error 2)\n");
}

#[test]
fn save_writes_only_where_its_expectation_holds() {
    let folder = folder();
    for store in ["json", "tables"] {
        let save = |expect: &str, format: &str| {
            let arguments = ["save", "templates", "--store", store, "--expect", expect, "--format", format];
            folder.larder_with(&arguments, &template("a", ""))
        };
        assert!(save("present", "text").exits(1).stderr.starts_with("error: templates `a`: does not exist"));
        save("absent", "text").exits(0);
        assert!(save("absent", "text").exits(1).stderr.starts_with("error: templates `a`: already exists"));
        assert_eq!(save("1", "json").exits(0).stdout, "{\"id\":\"a\",\"version\":2}\n");
        let error = object(save("1", "json").exits(1).stderr);
        assert_eq!((&error["kind"], &error["current_version"]), (&"version-conflict".into(), &2.into()));
        assert!(save("maybe", "text").exits(2).stderr.contains("neither `absent`, `present` nor a version"));
    }
    // Of several, each that fails is told of, and the others are saved.
    let both = format!("{}{}", template("a", ""), template("new", ""));
    let run = folder.larder_with(&["save", "templates", "--expect", "absent"], &both).exits(1);
    assert_eq!(run.stdout, "saved templates `new`, version 1\n");
    assert_eq!(run.stderr, "error: templates `a`: already exists\n");
}

#[test]
fn all_of_the_input_is_checked_before_any_of_it_is_saved() {
    let folder = folder();
    let run = folder.larder_with(&["save", "templates"], r#"[{"template_id":"a"},{"template_id":""}]"#).exits(2);
    says(
        &run,
        "error: entity 2 of the input cannot be saved\n\
         caused by: templates: the key member `template_id` holds no id: an id is not empty\n",
    );
    assert!(!folder.has(DOCUMENT));
}

#[test]
fn update_and_delete_tell_of_conflicts_with_the_stored_version() {
    let folder = folder();
    for store in ["json", "tables"] {
        save(&folder, store, "a", "");
        let with = |arguments: &[&str], version: &str, format: &str| {
            let more = ["--expected-version", version, "--store", store, "--format", format];
            folder.larder_with(&[arguments, &more].concat(), &template("a", ""))
        };
        let update = ["update", "templates", "a"];
        assert_eq!(with(&update, "1", "text").exits(0).stdout, "updated templates `a`, version 2\n");
        let run = with(&update, "1", "text").exits(1);
        assert!(run.stderr.starts_with("error: templates `a`: expected version 1, but 2 is stored\n"), "{run:#?}");
        let error = object(with(&update, "7", "json").exits(1).stderr);
        assert_eq!(error["kind"], "version-conflict");
        assert_eq!(error["retry"], "never");
        assert_eq!(error["current_version"], 2);

        let delete = ["delete", "templates", "a"];
        let error = object(with(&delete, "1", "json").exits(1).stderr);
        assert_eq!((&error["kind"], &error["current_version"]), (&"version-conflict".into(), &2.into()));
        assert_eq!(with(&delete, "2", "json").exits(0).stdout, "{\"id\":\"a\",\"version\":2,\"existed\":true}\n");
        assert_eq!(object(with(&delete, "2", "json").exits(1).stderr)["kind"], "not-found");
        let run = folder.larder(&["delete", "templates", "a", "--store", store]).exits(0);
        assert_eq!(run.stdout, "templates `a` was not there\n");
        let run = folder.larder_with(&["update", "templates", "a", "--store", store], &template("a", "")).exits(1);
        assert!(run.stderr.starts_with("error: templates `a`: does not exist\n"), "{run:#?}");
    }
    let run = folder.larder_with(&["update", "templates", "b"], &template("a", "")).exits(2);
    assert!(run.stderr.starts_with("error: templates `b`: the key member `template_id` holds `a`\n"), "{run:#?}");
    let two = format!("{}{}", template("a", ""), template("a", ""));
    let run = folder.larder_with(&["update", "templates", "a"], &two).exits(2);
    assert!(run.stderr.starts_with("error: the input must hold one JSON object\n"), "{run:#?}");
}

#[test]
fn patch_changes_members_and_takes_a_condition() {
    let folder = folder();
    for store in ["json", "tables"] {
        save(&folder, store, "a", r#","image_id":"ami-1","spot":{"price":1,"zone":"x"}"#);
        let patch = |patch: &str, more: &[&str]| {
            folder.larder_with(&[&["patch", "templates", "a", "--store", store], more].concat(), patch)
        };
        let run = patch(r#"{"image_id":null,"spot":{"price":2.50}}"#, &["--if", "image_id=ami-1"]).exits(0);
        assert_eq!(run.stdout, "patched templates `a`, version 2\n");
        let found = object(folder.larder(&["get", "templates", "a", "--store", store]).exits(0).stdout);
        assert!(!found.contains_key("image_id"), "{found:?}");
        assert_eq!(found["spot"].to_string(), r#"{"price":2.50,"zone":"x"}"#);
        patch("{}", &["--if", "image_id"]).exits(1);
        patch("{}", &["--expected-version", "1"]).exits(1);
        patch("[]", &[]).exits(2);
        assert_eq!(patch(r#"{"n":1}"#, &["--format", "json"]).exits(0).stdout, "{\"id\":\"a\",\"version\":3}\n");
        let run = folder.larder_with(&["patch", "templates", "x", "--store", store], "{}").exits(1);
        assert!(run.stderr.contains("does not exist") || run.stderr.contains("has no"), "{run:#?}");
    }
}

#[test]
fn apply_writes_all_lines_or_none() {
    let folder = folder();
    for store in ["json", "tables"] {
        save(&folder, store, "old", "");
        let apply = |lines: &str| folder.larder_with(&["apply", "--store", store, "--format", "json"], lines);
        let entity = template("new", "");
        let good = format!(r#"{{"op":"save","collection":"templates","entity":{entity}}}"#);
        let bad = r#"{"op":"delete","collection":"templates","id":"old","expected_version":9}"#;
        let error = object(apply(&format!("{good}\n{bad}\n")).exits(1).stderr);
        assert_eq!((&error["kind"], &error["write_index"]), (&"version-conflict".into(), &1.into()));
        assert_eq!(error["current_version"], 1);
        assert!(error["message"].as_str().unwrap().starts_with("line 2 of standard input failed"), "{error:?}");
        assert_eq!(folder.larder(&["count", "templates", "--store", store]).stdout, "1\n");

        let bad = bad.replace('9', "1");
        let run = apply(&format!("{good}\n\n{bad}\n")).exits(0);
        assert_eq!(run.stdout, "{\"id\":\"new\",\"version\":1}\n{\"id\":\"old\",\"version\":1}\n");
        let run = folder.larder(&["query", "templates", "--store", store, "--format", "json"]).exits(0);
        assert_eq!(object(run.stdout)["template_id"], "new");
        let run = apply("{\"op\":\"replace\",\"collection\":\"templates\"}").exits(2);
        assert!(run.stderr.contains("`op` is none of save, update, patch and delete"), "{run:#?}");
    }
}

#[test]
fn query_and_count_take_filters_of_every_operator() {
    let folder = folder();
    for store in ["json", "tables"] {
        save(&folder, store, "a", r#","n":1,"s":"alpha","tags":["x"]"#);
        save(&folder, store, "b", r#","n":2,"s":"beta""#);
        save(&folder, store, "c", r#","n":3,"s":"alphabet""#);
        let ids = |arguments: &[&str]| -> String {
            let run = folder.larder(&[&["query", "templates", "--store", store], arguments].concat()).exits(0);
            run.stdout.lines().map(|line| object(line)["template_id"].as_str().unwrap().to_owned()).collect()
        };
        for (filter, expected) in [
            ("n=1", "a"),
            ("n!=1", "bc"),
            ("n<2", "a"),
            ("n<=2", "ab"),
            ("n>2", "c"),
            ("n>=2", "bc"),
            ("s^=alpha", "ac"),
            ("s~=et", "bc"),
            ("tags~=x", "a"),
            ("tags", "a"),
            ("s=beta", "b"),
            ("s = beta", "b"),
            ("name=Pool", "abc"),
            ("n=\"1\"", ""),
        ] {
            assert_eq!(ids(&["--filter", filter, "--order-by", "template_id"]), expected, "{filter}");
            let run = folder.larder(&["count", "templates", "--store", store, "--filter", filter]).exits(0);
            assert_eq!(run.stdout, format!("{}\n", expected.len()), "{filter}");
        }
        assert_eq!(ids(&["--filter", "n>1", "--filter", "s^=alpha"]), "c", "both must hold");
        let tree = r#"{"any":[{"n":1},{"field":"s","op":"in","value":["beta"]}]}"#;
        assert_eq!(ids(&["--filter-json", tree, "--order-by", "template_id:desc"]), "ba");
        assert_eq!(ids(&["--filter-json", tree, "--filter", "n=2"]), "b");
        assert_eq!(ids(&["--order-by", "name", "--order-by", "n:desc", "--limit", "2"]), "cb");
        assert_eq!(ids(&["--limit", "0"]), "");
        let run = folder.larder(&["count", "templates", "--store", store, "--format", "json"]).exits(0);
        assert_eq!(run.stdout, "{\"count\":3}\n");

        let run = folder.larder(&["query", "templates", "--store", store, "--filter", "n>1", "--explain"]).exits(0);
        let names: Vec<&str> = run.stdout.lines().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(names, ["index", "filter", "order", "scanned", "answered"]);
        assert!(run.stdout.ends_with("answered: 2\n"), "{run:#?}");
        let arguments =
            ["query", "requests", "--index", "status", "--filter", "status=x", "--explain", "--format", "json"];
        let plan = object(folder.larder(&[&arguments[..], &["--store", store]].concat()).exits(0).stdout);
        assert_eq!(plan["answered"], 0);
        if store == "tables" {
            assert_eq!((&plan["index"], &plan["filtered_by_host"]), (&"status".into(), &false.into()));
        }
    }
    let fails = |arguments: &[&str], message: &str| {
        let run = folder.larder(&[&["query", "templates"], arguments].concat()).exits(2);
        assert!(run.stderr.starts_with(&format!("error: {message}")), "{run:#?}");
    };
    fails(&["--filter", "=3"], "`=3` is not a field: a name is empty");
    fails(&["--filter-json", "{"], "--filter-json is not JSON\ncaused by: the text ends");
    fails(&["--filter-json", "[]"], "a filter is a JSON object, not an array");
    fails(&["--filter-json", r#"{"field":"n","op":"like","value":1}"#], "`like` is no operator; the operators are");
    fails(&["--order-by", ""], "`` is not a field");
    // Slips that would quietly hold for nothing.
    for (arguments, message, hint) in [
        (["--filter-json", r#"{"fied":"n","op":"=","value":1}"#], "a condition has `field` and `op`", "a tree is {"),
        (["--filter-json", r#"{"all":[{"n":1}],"extra":1}"#], "`all` stands alone in its object", "a tree is {"),
        (["--filter", "n==1"], "`==` is no operator", "a filter is FIELD=VALUE"),
        (["--order-by", "n:down"], "`n:down` ends in no direction", "`FIELD`, `FIELD:asc` or `FIELD:desc`"),
        (["--order-by", "n:ascending"], "`n:ascending` ends in no direction", "`FIELD`, `FIELD:asc` or `FIELD:desc`"),
    ] {
        fails(&arguments, message);
        let run = folder.larder(&[&["query", "templates"], &arguments[..]].concat());
        assert!(run.stderr.contains(&format!("\n\nhint: {hint}")), "{run:#?}");
    }
    // What the messages advise for names and texts that look like slips.
    save(&folder, "json", "odd", r#","op":"x","a:b":1,"s":"=x""#);
    for arguments in
        [["--filter-json", r#"{"field":"op","op":"=","value":"x"}"#], ["--filter", r#"s="=x""#], ["--filter", "a:b=1"]]
    {
        let run = folder.larder(&[&["query", "templates", "--order-by", r#""a:b":desc"#], &arguments[..]].concat());
        assert_eq!(object(run.exits(0).stdout)["template_id"], "odd");
    }
    fails(&["--index", "nothing"], "templates has no index `nothing`");
}

#[test]
fn query_goes_on_where_it_ended() {
    let folder = folder();
    for store in ["json", "tables"] {
        for id in ["a", "b", "c", "d", "e"] {
            save(&folder, store, id, &format!(r#","n":{}"#, id.len()));
        }
        for order_by in ["template_id:desc", "n"] {
            let query = ["query", "templates", "--store", store, "--order-by", order_by, "--limit", "2"];
            let ids = |run: &Run| -> String {
                run.stdout.lines().map(|line| object(line)["template_id"].as_str().unwrap().to_owned()).collect()
            };
            let first = folder.larder(&query).exits(0);
            let cursor = first.stderr.strip_prefix("next: --cursor ").and_then(|it| it.strip_suffix('\n'));
            let cursor = cursor.unwrap_or_else(|| panic!("{first:#?}"));
            let second = [&query[..], &["--cursor", cursor, "--format", "json"]].concat();
            let second = folder.larder(&second).exits(0);
            let next = object(&second.stderr);
            let third = [&query[..], &["--cursor", next["next"].as_str().unwrap()]].concat();
            let third = folder.larder(&third).exits(0);
            let expected = if order_by == "n" { ["ab", "cd", "e"] } else { ["ed", "cb", "a"] };
            assert_eq!([ids(&first), ids(&second), ids(&third)], expected);
            assert_eq!(third.stderr, "", "this was the last page");

            // Without a limit, the rest.
            let rest = ["query", "templates", "--store", store, "--order-by", order_by, "--cursor", cursor];
            let rest = folder.larder(&rest).exits(0);
            assert_eq!((ids(&rest), rest.stderr.as_str()), (expected[1..].concat(), ""));

            let other = ["query", "templates", "--store", store, "--order-by", "name", "--cursor", cursor];
            let other = folder.larder(&other).exits(2);
            assert!(other.stderr.starts_with("error: the cursor is damaged, or of another query or store\n\nhint: "));
        }
    }
    folder.larder(&["query", "templates", "--cursor", "x", "--explain"]).exits(2);
}

#[test]
fn mistakes_in_the_arguments_are_objects_where_objects_are_asked_for() {
    let folder = folder();
    for (arguments, message, hint) in [
        (
            &["--format", "json", "gett"][..],
            "unrecognized subcommand 'gett'",
            "a similar subcommand exists: 'get'; Usage: larder [OPTIONS] <COMMAND>",
        ),
        (
            &["get", "--format=json"],
            "the following required arguments were not provided: <COLLECTION> <ID>...",
            "Usage: larder get ",
        ),
        (&["query", "templates", "--limit", "x", "--format", "json"], "invalid value 'x' for '--limit <N>'", ""),
        (&["--format", "json"], "", "`larder --help` lists the commands"),
    ] {
        let run = folder.larder(arguments).exits(2);
        assert_eq!((run.stdout.as_str(), run.stderr.lines().count()), ("", 1), "{run:#?}");
        let error = object(&run.stderr);
        assert_eq!((&error["kind"], &error["retry"]), (&"usage".into(), &"never".into()));
        assert!(error["message"].as_str().unwrap().starts_with(message), "{error:?}");
        assert!(hint.is_empty() || error["hint"].as_str().unwrap().starts_with(hint), "{error:?}");
    }
    // An id that says json is none of its business.
    let text = folder.larder(&["gett", "--", "--format", "json"]).exits(2);
    assert!(text.stderr.starts_with("error: unrecognized subcommand 'gett'\n"), "{text:#?}");
    assert!(folder.larder(&["get", "--help", "--format", "json"]).exits(0).stdout.contains("Usage: larder get"));
}

#[test]
fn a_store_whose_folder_is_missing_is_made_by_the_first_write_and_one_below_a_file_is_refused() {
    let config = r#"{"storage": {"strategy": "json", "json_strategy": {"base_path": "@/no/such/data"}, "stores": {
        "tables": {"strategy": "sql", "sql_strategy": {"name": "@/no/such/tables/here.db"}},
        "at": {"strategy": "json", "json_strategy": {"base_path": "@/file"}},
        "below": {"strategy": "json", "json_strategy": {"base_path": "@/file/data"}},
        "beside": {"strategy": "sql", "sql_strategy": {"name": "@/file/here.db"}}}}}"#;
    let folder = Folder::new(config);
    folder.write("file", "");
    for store in ["json", "tables"] {
        assert_eq!(folder.larder(&["count", "templates", "--store", store]).exits(0).stdout, "0\n");
    }
    assert!(!folder.has("no"), "reading makes nothing");
    for (store, file) in [("json", "data/request_database.json"), ("tables", "tables/here.db")] {
        save(&folder, store, "a", "");
        assert!(folder.has(&format!("no/such/{file}")));
        folder.larder(&["stores", "check", "--store", store]).exits(0);
    }
    let root = folder.path().display();
    for (store, place) in [("at", "file"), ("below", "file/data"), ("beside", "file")] {
        let expected = format!(
            "error: store `{store}` is to be in the folder {root}/{place}, but {root}/file is a file\n\n\
             hint: name another folder in `storage.stores.{store}`, or move the file away\n"
        );
        says(&folder.larder(&["count", "templates", "--store", store]).exits(2), &expected);
    }
}

#[test]
fn a_table_that_was_made_with_other_constraints_is_told_apart() {
    let config = r#"{"storage": {"strategy": "sql", "sql_strategy": {"name": "@/tables.db", "constraints": "relaxed"},
        "stores": {"strict": {"strategy": "sql", "sql_strategy": {"name": "@/tables.db"}}}}}"#;
    let folder = Folder::new(config);
    folder.larder(&["stores", "prepare"]).exits(0);
    let run = folder.larder(&["stores", "prepare", "--store", "strict"]).exits(1);
    assert!(run.stderr.contains("`name` is not NOT NULL"), "{run:#?}");
    let advice =
        "; set `constraints` to what the table was made with (`strict` or `relaxed`), change the table, or give";
    assert!(run.stderr.contains(advice), "{run:#?}");
}

#[test]
fn what_export_prints_import_reads() {
    let folder = folder();
    for (id, more) in [("a", r#","n":1.50,"version":7"#), ("b", r#","tags":["é"]"#)] {
        save(&folder, "json", id, more);
    }
    let request = r#"{"request_id":"r","template_id":"a","machine_count":1,"status":"NEW","request_type":"acquire"}"#;
    folder.larder_with(&["save", "requests"], request).exits(0);
    let exported = folder.larder(&["export"]).exits(0);
    let collections: Vec<Value> = exported.stdout.lines().map(|line| object(line)["collection"].clone()).collect();
    assert_eq!(collections, ["templates", "templates", "requests"], "referenced ones first");
    assert!(exported.stdout.contains("\"n\":1.50,\"version\":7"), "{exported:#?}");

    let import =
        |input: &str, more: &[&str]| folder.larder_with(&[&["import", "--store", "tables"], more].concat(), input);
    let run = import(&exported.stdout, &[]).exits(0);
    assert_eq!(run.stdout, "imported 3 entities: 3 written, 0 unchanged, 0 skipped\n");
    folder.larder(&["verify", "--from", "json", "--to", "tables"]).exits(0);
    let run = import(&exported.stdout, &["--format", "json"]).exits(0);
    assert_eq!(run.stdout, "{\"written\":0,\"unchanged\":3,\"skipped\":0}\n");
    let run = folder.larder(&["export", "--store", "tables", "--collection", "requests"]).exits(0);
    assert_eq!(run.stdout.lines().count(), 1);
    folder.larder(&["export", "--collection", "people"]).exits(2);

    let changed = exported.stdout.replace(r#""n":1.50"#, r#""n":1.75"#);
    let run = import(&changed, &[]).exits(1);
    assert!(run.stderr.contains("caused by: line 1 was refused\ncaused by: templates "), "{run:#?}");
    assert_eq!(
        import(&changed, &["--existing", "skip"]).exits(0).stdout,
        "imported 3 entities: 0 written, 2 unchanged, 1 skipped\n"
    );
    assert_eq!(
        import(&changed, &["--existing", "overwrite"]).exits(0).stdout,
        "imported 3 entities: 1 written, 2 unchanged, 0 skipped\n"
    );
}

#[test]
fn import_names_the_line_that_is_bad_and_keeps_what_stands_before_it() {
    let folder = folder();
    let good = |id: &str| format!("{{\"collection\":\"templates\",\"entity\":{}}}\n", template(id, ""));
    for (bad, kind, message) in [
        ("nonsense", 2, "expected ident at line 1 column 2"),
        ("{\"collection\":\"people\",\"entity\":{}}", 2, "there is no collection `people`"),
        ("{\"collection\":\"templates\"}", 2, "it is not of the form {\"collection\": …, \"entity\": {…}}"),
        ("{\"collection\":\"templates\",\"entity\":{},\"x\":1}", 2, "it is not of the form"),
        (
            "{\"collection\":\"templates\",\"entity\":{\"x\":1}}",
            2,
            "templates: the key member `template_id` is missing",
        ),
    ] {
        let run = folder.larder_with(&["import"], &format!("{}\n{bad}\n{}", good("a"), good("b"))).exits(kind);
        assert!(run.stderr.starts_with("error: standard input was imported only in part: "), "{run:#?}");
        assert!(run.stderr.contains("\ncaused by: line 3 cannot be imported\n"), "{run:#?}");
        assert!(run.stderr.contains(&format!("caused by: {message}")), "{run:#?}");
    }
    assert_eq!(folder.larder(&["count", "templates"]).stdout, "1\n", "the first line, and none after the bad one");
}

#[test]
fn stores_are_listed_checked_and_prepared() {
    let folder = folder();
    let run = folder.larder(&["stores", "list"]).exits(0);
    let rows: Vec<Vec<&str>> = run.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let root = folder.path().to_str().unwrap();
    let (data, tables) = (format!("{root}/data"), format!("{root}/tables.db"));
    assert_eq!(
        rows,
        [
            vec!["STORE", "STRATEGY", "GRANTED"],
            vec!["json*", "json", "files", &data],
            vec!["tables", "sql", "sql", &tables]
        ]
    );
    let run = folder.larder(&["stores", "list", "--format", "json"]).exits(0);
    assert_eq!(object(run.stdout.lines().next().unwrap())["default"], true);

    let run = folder.larder(&["stores", "prepare", "--dry-run"]).exits(0);
    assert_eq!(run.stdout, "make the document request_database.json\n");
    let run = folder.larder(&["stores", "prepare", "--dry-run", "--store", "tables"]).exits(0);
    for table in ["templates", "requests", "machines"] {
        assert!(run.stdout.contains(&format!("CREATE TABLE \"{table}\"")), "{run:#?}");
    }
    // Whole statements: somebody may want to run them.
    for line in run.stdout.lines().filter(|line| line.starts_with("CREATE")) {
        let is_whole = line.ends_with(')') || line.ends_with("IS NOT NULL");
        assert!(is_whole && line.matches('(').count() == line.matches(')').count(), "{line}");
    }
    let run = folder.larder(&["stores", "check"]).exits(0);
    assert!(run.stdout.contains("json\n  reachable: true\n  readable: true\n  writable: true\n"), "{run:#?}");
    assert!(run.stdout.contains("tables\n  reachable: true\n  readable: true\n  writable: true\n"), "{run:#?}");
    assert_eq!(folder.names("data").iter().filter(|name| !name.starts_with('.')).count(), 0, "nothing was made");
    assert!(!folder.has("tables.db"));

    let run = folder.larder(&["stores", "prepare"]).exits(0);
    assert_eq!(run.stdout, "made the document request_database.json\n");
    says(&folder.larder(&["stores", "prepare"]).exits(0), "store `json` lacks nothing\n");
    folder.larder(&["stores", "prepare", "--store", "tables"]).exits(0);
    says(&folder.larder(&["stores", "prepare", "--store", "tables"]).exits(0), "store `tables` lacks nothing\n");
    let run = folder.larder(&["stores", "check", "--store", "tables", "--format", "json"]).exits(0);
    let findings = object(run.stdout);
    assert_eq!((&findings["store"], &findings["writable"]), (&"tables".into(), &true.into()));
}

#[test]
fn a_store_without_restore_points_says_so() {
    let folder = folder();
    save(&folder, "tables", "a", "");
    says(&folder.larder(&["restore", "--store", "tables"]).exits(0), "store `tables` has no restore points\n");
    let expected = "error: there is no restore point `yesterday`\n\n\
                    hint: `larder restore --store tables` lists the restore points\n";
    says(&folder.larder(&["restore", "yesterday", "--store", "tables"]).exits(1), expected);
    assert_eq!(folder.larder(&["count", "templates", "--store", "tables"]).stdout, "1\n");
}

#[test]
fn a_backup_of_a_store_is_a_json_store_and_replaces_no_other() {
    let folder = folder();
    save(&folder, "tables", "a", r#","n":1.0"#);
    save(&folder, "tables", "b", "");
    let backup = || {
        let run = folder.larder(&["backup", "--store", "tables", "--to", "kept/day.json", "--format", "json"]).exits(0);
        object(run.stdout)
    };
    let (first, second) = (backup(), backup());
    assert_eq!(first["collections"]["templates"], 2);
    let document = |of: &serde_json::Map<String, Value>| of["document"].as_str().unwrap().to_owned();
    assert!(document(&first).ends_with("day.json") && document(&second).ends_with("day-1.json"), "{second:?}");
    let manifest = object(folder.read("kept/day.manifest.json"));
    assert_eq!(manifest["sha256"], first["sha256"]);
    let restored = STORES.replace('@', folder.path().to_str().unwrap()).replace(
        r#""stores": {"#,
        r#""stores": {
           "kept": {"strategy": "json", "json_strategy": {"base_path": "kept", "filenames": {"single_file": "day.json"}}},"#,
    );
    folder.write("larder.json", restored);
    folder.larder(&["verify", "--from", "tables", "--to", "kept"]).exits(0);
    let run = folder.larder(&["backup", "--store", "tables"]).exits(0);
    assert!(run.stdout.starts_with("backed up 2 entities of `tables` to "), "{run:#?}");
}

#[test]
fn a_damaged_document_is_brought_back_from_a_backup() {
    let folder = folder();
    save(&folder, "json", "a", "");
    save(&folder, "json", "b", "");
    let whole = folder.read(DOCUMENT);
    folder.write(DOCUMENT, &whole[..whole.len() / 2]);
    let damaged = folder.larder(&["get", "templates", "a"]).exits(5);
    assert!(
        damaged.stderr.contains("line ") && damaged.stderr.contains("`larder restore --store json`"),
        "{damaged:#?}"
    );
    let check = folder.larder(&["stores", "check", "--store", "json", "--format", "json"]).exits(5);
    let points = object(check.stdout.lines().next().unwrap())["restore_points"].clone();
    let listed = folder.larder(&["restore"]).exits(0);
    let lines: Vec<&str> = listed.stdout.lines().collect();
    assert_eq!((lines.len(), points.as_array().unwrap().len()), (2, 1), "a heading and one backup: {listed:#?}");
    let point = lines[1].split_whitespace().next().unwrap();
    assert_eq!(points[0], point);
    assert!(lines[1].contains("1 entity in 1 collection"), "{listed:#?}");
    let done = folder.larder(&["restore", point]).exits(0);
    assert!(done.stdout.contains("kept the document that was there as request_database.json.bak-"), "{done:#?}");
    assert_eq!(folder.larder(&["count", "templates"]).exits(0).stdout, "1\n");
    let kept = folder.names(DOCUMENT.rsplit_once('/').unwrap().0);
    let half = kept
        .iter()
        .filter(|name| name.contains(".bak-"))
        .map(|name| folder.read(&DOCUMENT.replace("request_database.json", name)));
    assert!(half.into_iter().any(|text| text == whole[..whole.len() / 2]), "{kept:?}");
}

#[test]
fn a_store_that_is_flushed_stays_as_it_is_and_one_that_is_not_there_is_not_made() {
    let folder = folder();
    for (store, file) in [("json", DOCUMENT), ("tables", "tables.db")] {
        let flush = || folder.larder(&["stores", "flush", "--store", store]).exits(0);
        assert_eq!(flush().stdout, format!("flushed store `{store}`\n"));
        assert!(!folder.has(file), "nothing was made");
        save(&folder, store, "a", "");
        flush();
        assert_eq!(folder.larder(&["count", "templates", "--store", store]).stdout, "1\n");
    }
    let run = folder.larder(&["stores", "flush", "--format", "json"]).exits(0);
    assert_eq!(run.stdout, "{\"store\":\"json\",\"flushed\":true}\n");
    folder.larder(&["stores", "flush", "--store", "nothing"]).exits(2);
}

#[test]
fn plugins_are_listed_and_inspected() {
    let folder = folder();
    let run = folder.larder(&["plugins", "list"]).exits(0);
    let rows: Vec<Vec<&str>> = run.stdout.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(
        rows,
        [
            ["PLUGIN", "VERSION", "WANTS"],
            ["dynamodb", "0.1.0", "dynamodb"],
            ["json", "0.1.0", "files"],
            ["sql", "0.1.0", "sql"]
        ]
    );
    let path = plugins().join("sql.wasm");
    let path = path.to_str().unwrap();
    let run = folder.larder(&["plugins", "inspect", path, "--format", "json"]).exits(0);
    let plugin = object(run.stdout);
    assert_eq!((&plugin["plugin"], &plugin["wants"].to_string()), (&"sql".into(), &"[\"sql\"]".to_owned()));
    assert_eq!(plugin["sha256"].as_str().unwrap().len(), 64);
    assert!(!plugin.contains_key("version"), "the component has not run: {plugin:?}");
    let run = folder.larder(&["plugins", "inspect", path, "--describe"]).exits(0);
    assert!(run.stdout.starts_with("plugin:    sql\n"), "{run:#?}");
    assert!(run.stdout.contains("\nversion:   0.1.0\n"), "{run:#?}");
    assert!(run.stdout.contains("\nsection:   sql_strategy, with these keys:\n           constraints: "), "{run:#?}");
    folder.write("text.wasm", "not a component");
    let run = folder.larder(&["plugins", "inspect", "text.wasm"]).exits(3);
    assert!(run.stderr.contains("text.wasm"), "{run:#?}");
    // One that is refused does not hide the others.
    folder.write("plugins/bad.wasm", "not a component");
    std::fs::copy(path, folder.path().join("plugins/sql.wasm")).unwrap();
    let run = folder.larder(&["plugins", "list", "--plugins", "plugins"]).exits(3);
    assert!(run.stdout.contains("sql "), "{run:#?}");
    assert!(run.stderr.contains("bad.wasm"), "{run:#?}");
}

#[test]
fn the_configuration_is_checked_described_and_shown_without_secrets() {
    let folder = folder();
    let run = folder.larder(&["config", "check"]).exits(0);
    assert_eq!(run.stdout, "the configuration is valid; stores: json, tables\n");
    let schema = object(folder.larder(&["config", "schema"]).exits(0).stdout);
    assert_eq!(schema["type"], "object");
    assert!(schema["properties"]["migration"].is_object(), "{schema:?}");
    for what in ["schema", "show"] {
        let run = folder.larder(&["config", what, "--format", "json"]).exits(0);
        assert_eq!(run.stdout.lines().count(), 1, "{run:#?}");
        let text = folder.larder(&["config", what]).exits(0);
        assert_eq!(object(run.stdout), object(text.stdout));
    }

    let config = r#"{"storage": {"strategy": "sql", "sql_strategy": {
        "type": "postgresql", "host": "db.example", "name": "hostfactory", "username": "user", "password": "PASSWORD"
    }}}"#;
    for (password, shown) in [("hunter2", "***"), ("${LARDER_TEST_PASSWORD}", "${LARDER_TEST_PASSWORD}")] {
        let folder = Folder::new(&config.replace("PASSWORD", password));
        let mut outputs = String::new();
        for arguments in
            [&["config", "show"][..], &["config", "check"], &["stores", "list"], &["get", "templates", "a"]]
        {
            let output =
                folder.command(arguments).env("LARDER_TEST_PASSWORD", "hunter2").output().expect("the program ends");
            outputs += &String::from_utf8_lossy(&output.stdout);
            outputs += &String::from_utf8_lossy(&output.stderr);
        }
        assert!(!outputs.contains("hunter2"), "{outputs}");
        assert!(outputs.contains(&format!("\"password\": \"{shown}\"")), "{outputs}");
        assert!(outputs.contains("\"pool_size\": 5"), "defaults are shown: {outputs}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = folder();
    let lines: String = (0..3000).map(|n| template(&format!("t{n}"), "") + "\n").collect();
    folder.larder_with(&["save", "templates"], &lines).exits(0);
    for command in ["export", "query templates", "export --format json"] {
        let script = format!("set -o pipefail; \"$0\" {command} | head -n 1");
        let output = Command::new("bash")
            .args(["-c", &script])
            .arg(program())
            .current_dir(folder.path())
            .env("LARDER_PLUGINS", plugins())
            .output()
            .expect("bash runs");
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1, "{command}");
    }
}

#[test]
fn bad_input_is_refused_with_its_reason_and_nothing_is_stored() {
    let folder = folder();
    let hint = "\nhint: give a JSON object, an array of objects, or one object a line\n";
    for (input, message) in [
        ("nope", format!("standard input is not JSON\ncaused by: expected ident at line 1 column 2\n{hint}")),
        ("", format!("standard input is empty\n{hint}")),
        (
            "{\"template_id\":\"a\"",
            format!("standard input is not JSON\ncaused by: EOF while parsing an object at line 1 column 18\n{hint}"),
        ),
        ("7", "templates: an entity is a JSON object, not a number\n".into()),
        (
            r#"{"template_id":"a","x":1,"x":2}"#,
            "templates: the member name `x` stands twice at line 1 column 28\n".into(),
        ),
        (r#"{"name":"x"}"#, "templates: the key member `template_id` is missing\n".into()),
        (r#"{"template_id":7}"#, "templates: the key member `template_id` is a number, not a string\n".into()),
        (r#"{"template_id":""}"#, "templates: the key member `template_id` holds no id: an id is not empty\n".into()),
        (
            r#"{"template_id":"a","version":1.5}"#,
            "templates `a`: the version member `version` is not a non-negative integer below 2^63 \
             (storage.collections.templates.version names the member)\n"
                .into(),
        ),
    ] {
        says(&folder.larder_with(&["save", "templates"], input).exits(2), &format!("error: {message}"));
    }
    let run = folder.larder_with(&["save", "people"], "{}").exits(2);
    says(
        &run,
        "error: there is no collection `people`\n\n\
         hint: configured are: templates, requests, machines; declare more in `storage.collections`\n",
    );
    let run = folder.larder_with(&["save", "people", "--format", "json"], "{}").exits(2);
    let error = object(run.stderr);
    assert_eq!(
        (&error["kind"], &error["retry"], &error["message"]),
        (&"invalid-argument".into(), &"never".into(), &"there is no collection `people`".into())
    );
    assert!(error["hint"].as_str().unwrap().starts_with("configured are: "));
    assert!(!folder.has(DOCUMENT));
}

#[test]
fn a_configuration_that_is_wrong_is_refused_before_anything_else() {
    let folder = folder();
    let with = |config: &str| {
        folder.write("other.json", config);
        folder.larder(&["count", "templates", "--config", "other.json"])
    };
    let invalid = format!("error: the configuration {}/other.json is not valid\n", folder.path().display());
    for (config, cause) in [
        (
            r#"{"storage": {"stratgy": "json"}}"#,
            "caused by: `storage.stratgy` is no known key: did you mean `strategy`?\n",
        ),
        (
            r#"{"storage": {"json_strategy": {"base_paht": "x"}}}"#,
            "caused by: `storage.json_strategy.base_paht` is no known key: did you mean `base_path`?\n",
        ),
        (
            r#"{"storage": {"json_strategy": {"base_path": "${LARDER_TEST_UNSET}"}}}"#,
            "caused by: `storage.json_strategy.base_path` needs the environment variable LARDER_TEST_UNSET, which is not set\n\
             \nhint: set LARDER_TEST_UNSET, or write a default: ${LARDER_TEST_UNSET:-default}\n",
        ),
        ("{", "caused by: "),
        (
            r#"{"storage": {"strategy": "json", "strategy": "sql"}}"#,
            "caused by: the member name `strategy` stands twice",
        ),
        (r#"{"migration": {"batch_size": 0}}"#, "caused by: `migration.batch_size`"),
    ] {
        let run = with(config).exits(2);
        assert!(run.stderr.starts_with(&format!("{invalid}{cause}")), "{run:#?}");
    }
    let run = folder.larder(&["count", "templates", "--config", "nothing.json", "--format", "json"]).exits(2);
    let error = object(run.stderr);
    assert_eq!(error["kind"], "configuration");
    assert!(error["message"].as_str().unwrap().ends_with("/nothing.json"), "{error:?}");
    assert!(error["hint"].as_str().unwrap().contains("--config"), "{error:?}");

    let run = folder.larder(&["count", "templates", "--store", "tabels"]).exits(2);
    assert!(run.stderr.starts_with("error: there is no store `tabels`\n\nhint: the stores are `tables`, "), "{run:#?}");
    let run = with(r#"{"storage": {"strategy": "mongo"}}"#).exits(3);
    assert!(run.stderr.starts_with("error: there is no plugin `mongo` in "), "{run:#?}");
    assert!(run.stderr.ends_with("\n\nhint: it holds: dynamodb, json, sql\n"), "{run:#?}");
    let run = folder.larder(&["count", "templates", "--plugins", "nowhere"]).exits(3);
    assert!(run.stderr.contains("nowhere"), "{run:#?}");
}

#[test]
fn a_corrupt_document_is_named_with_its_place_and_never_touched() {
    let folder = folder();
    let document = "{\n  \"templates\": {\n    \"a\": {\"template_id\": \"a\",}\n  }\n}";
    folder.write(DOCUMENT, document);
    folder.write("new.json", template("b", ""));
    for arguments in [
        &["get", "templates", "a"][..],
        &["query", "templates"],
        &["count", "templates"],
        &["export"],
        &["save", "templates", "new.json"],
        &["delete", "templates", "a"],
        &["migrate", "--from", "json", "--to", "tables"],
        &["migrate", "--from", "tables", "--to", "json"],
        &["stores", "prepare"],
    ] {
        let run = folder.larder(arguments);
        let all = format!("{}{}", run.stdout, run.stderr);
        // A document is prepared where there is none: this one is there.
        if !arguments.contains(&"prepare") {
            assert!(all.contains("request_database.json") && all.contains("at line 3 column 30"), "{run:#?}");
            // A target that says it is not readable is told apart from a fault while it is read.
            assert!(run.code == 5 || (arguments.contains(&"tables") && run.code == 4), "{arguments:?}: {run:#?}");
        }
        assert_eq!(folder.read(DOCUMENT), document, "{arguments:?}");
    }
    let run = folder.larder(&["stores", "check", "--store", "json"]);
    assert!(run.code != 0 && run.stdout.contains("readable: false"), "{run:#?}");
    assert!(run.stdout.contains("at line 3 column 30"), "{run:#?}");
    let error = object(folder.larder(&["get", "templates", "a", "--format", "json"]).exits(5).stderr);
    assert_eq!((&error["kind"], &error["retry"]), (&"corrupt".into(), &"never".into()));
    for command in ["larder stores check --store json", "larder restore --store json"] {
        assert!(error["hint"].as_str().unwrap().contains(command), "{error:?}");
    }
    assert!(run.stderr.contains("hint: `larder restore --store json` prints"), "{run:#?}");
    // Half a document, as a crash of another program leaves it, and none at all.
    for damaged in ["{\"templates\": {\"a\": {\"template_id\": \"a\"", "", "[]", "\0\0\0\0"] {
        folder.write(DOCUMENT, damaged);
        folder.larder(&["save", "templates", "new.json"]).exits(5);
        assert_eq!(folder.read(DOCUMENT), damaged);
    }
    let names = folder.names("data");
    assert!(names.iter().all(|name| name.starts_with('.') || name == "request_database.json"), "{names:?}");
}

#[test]
fn a_file_that_is_no_database_is_corrupt_and_never_touched() {
    let folder = folder();
    let content = "this is a letter and no database, however long it may be ".repeat(100);
    folder.write("tables.db", &content);
    folder.write("new.json", template("b", ""));
    for arguments in [
        &["get", "templates", "a"][..],
        &["save", "templates", "new.json"],
        &["count", "templates"],
        &["stores", "prepare"],
        &["stores", "check"],
    ] {
        let run = folder.larder(&[arguments, &["--store", "tables"]].concat()).exits(5);
        assert!(run.stderr.contains("`tables.db` is not an SQLite database"), "{run:#?}");
        assert_eq!(folder.read("tables.db"), content);
    }
    assert!(!folder.has("tables.db-journal") && !folder.has("tables.db-wal"));
}

/// Runs the program after a shell's preparation, which ends in `"$@"`.
fn prepared(folder: &Folder, preparation: &str, arguments: &[&str]) -> Run {
    let output = Command::new("bash")
        .args(["-c", preparation, "bash"])
        .arg(program())
        .args(arguments)
        .current_dir(folder.path())
        .env("LARDER_PLUGINS", plugins())
        .output()
        .expect("bash runs");
    Run {
        code: output.status.code().expect("an exit code: a signal ended it"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_file_that_may_not_grow_is_a_limit_and_what_was_stored_stays() {
    let folder = folder();
    // SQLite does not tell this reason from other faults of a disk.
    for (store, kind, code) in [("json", "limit-exceeded", 5), ("tables", "unavailable", 4)] {
        save(&folder, store, "old", "");
        folder.write("large.json", template("large", &format!(r#","x":"{}""#, "x".repeat(6 << 20))));
        let arguments = ["save", "templates", "large.json", "--store", store, "--format", "json"];
        let run = prepared(&folder, "ulimit -f 4000; \"$@\"", &arguments).exits(code);
        assert_eq!(object(&run.stderr)["kind"], kind, "{run:#?}");
        let run = folder.larder(&["query", "templates", "--store", store]).exits(0);
        assert_eq!(object(run.stdout)["template_id"], "old");
        folder.larder(&arguments).exits(0);
        assert_eq!(folder.larder(&["count", "templates", "--store", store]).stdout, "2\n");
    }
    let names = folder.names("data");
    assert!(names.iter().all(|name| name.starts_with('.') || name.starts_with("request_database.json")), "{names:?}");
}

/// Runs the program with `small` on a file system of 256 KiB that holds what is in `start`, and copies what is there
/// afterwards to `end`. The superuser may mount, others may in a namespace of their own.
fn on_a_small_disk(folder: &Folder, arguments: &[&str]) -> Run {
    let namespace = "unshare --map-root-user --mount";
    let allowed = Command::new("bash")
        .args(["-c", &format!("{namespace} mount -t tmpfs tmpfs /mnt 2> /dev/null")])
        .status()
        .expect("bash runs")
        .success();
    assert!(
        allowed,
        "this machine lets nobody mount a small disk, which this test needs: run it as root, or allow user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1)"
    );
    let inside = "mount -t tmpfs -o size=256k tmpfs small && cp start/* small/ || exit 99; \
                  \"$@\"; code=$?; mkdir -p end && cp small/* end/; exit $code";
    folder.write("inside.sh", inside);
    prepared(folder, &format!("exec {namespace} bash inside.sh \"$@\""), arguments)
}

#[test]
fn a_full_disk_is_a_limit_and_what_was_stored_stays() {
    let config = r#"{"storage": {"strategy": "json", "json_strategy": {"base_path": "@/small"},
        "stores": {"tables": {"strategy": "sql", "sql_strategy": {"name": "@/small/tables.db"}}}}}"#;
    for (store, file) in [("json", "request_database.json"), ("tables", "tables.db")] {
        let folder = Folder::new(config);
        folder.write("small/.keep", "");
        save(&folder, store, "old", "");
        std::fs::rename(folder.path().join("small"), folder.path().join("start")).unwrap();
        std::fs::create_dir(folder.path().join("small")).unwrap();
        folder.write("large.json", template("large", &format!(r#","x":"{}""#, "x".repeat(1 << 20))));
        let arguments = ["save", "templates", "large.json", "--store", store, "--format", "json"];
        let run = on_a_small_disk(&folder, &arguments).exits(5);
        let error = object(&run.stderr);
        assert_eq!(error["kind"], "limit-exceeded", "{run:#?}");
        assert!(error["hint"].as_str().unwrap().starts_with("make room where /"), "{run:#?}");

        // What is on that disk afterwards is what was there before, and opens.
        assert!(folder.has(&format!("end/{file}")));
        std::fs::remove_dir_all(folder.path().join("small")).unwrap();
        std::fs::rename(folder.path().join("end"), folder.path().join("small")).unwrap();
        let run = folder.larder(&["query", "templates", "--store", store]).exits(0);
        assert_eq!(object(run.stdout)["template_id"], "old");
    }
}

#[test]
fn a_directory_that_may_not_be_written_can_be_read() {
    let config = r#"{"storage": {"strategy": "json", "json_strategy": {"base_path": "@/fixed"},
        "stores": {"tables": {"strategy": "sql", "sql_strategy": {"name": "@/fixed/tables.db"}}}}}"#;
    let folder = Folder::new(config);
    for store in ["json", "tables"] {
        save(&folder, store, "a", "");
    }
    let set = |mode: u32| {
        for path in ["fixed", "fixed/tables.db", "fixed/request_database.json"] {
            let mode = if path == "fixed" { mode } else { mode & 0o666 };
            std::fs::set_permissions(folder.path().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set(0o555);
    // The superuser writes everywhere, unless it gives that up.
    let is_superuser = std::fs::write(folder.path().join("fixed/probe"), "").is_ok();
    let _ = std::fs::remove_file(folder.path().join("fixed/probe"));
    let drop_power = "exec setpriv --bounding-set=-dac_override,-dac_read_search \"$@\"";
    let preparation = if is_superuser { drop_power } else { "exec \"$@\"" };
    folder.write("new.json", template("b", ""));
    let mut runs = Vec::new();
    for store in ["json", "tables"] {
        let read = prepared(&folder, preparation, &["get", "templates", "a", "--store", store]);
        let arguments = ["save", "templates", "new.json", "--store", store, "--format", "json"];
        let write = prepared(&folder, preparation, &arguments);
        let check = prepared(&folder, preparation, &["stores", "check", "--store", store]);
        runs.push((store, read, write, check));
    }
    set(0o755);
    for (store, read, write, check) in runs {
        // SQLite wants to write beside a database with a write-ahead log even where it only reads.
        if store == "json" {
            assert_eq!(object(read.exits(0).stdout)["template_id"], "a");
            assert!(check.stdout.contains("readable: true\n  writable: false"), "{check:#?}");
        }
        let error = object(write.exits(3).stderr);
        assert_eq!(error["kind"], "denied", "{store}: {error:?}");
        assert_eq!(folder.larder(&["count", "templates", "--store", store]).stdout, "1\n");
    }
}

#[test]
fn the_configuration_is_found_by_flag_by_variable_or_in_the_working_directory() {
    let folder = folder();
    save(&folder, "json", "a", "");
    let elsewhere = tempfile::tempdir().unwrap();
    let run = |command: &mut Command| {
        let output = command.current_dir(elsewhere.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let config = folder.path().join("larder.json");
    let arguments = ["count", "templates"];
    assert_eq!(run(&mut folder.command(&arguments)).0, Some(2));
    assert_eq!(run(folder.command(&arguments).env("LARDER_CONFIG", &config)), (Some(0), "1\n".into()));
    assert_eq!(run(folder.command(&arguments).arg("--config").arg(&config)), (Some(0), "1\n".into()));
    let nowhere = Path::new("nowhere.json");
    assert_eq!(run(folder.command(&arguments).arg("--config").arg(&config).env("LARDER_CONFIG", nowhere)).0, Some(0));
}
