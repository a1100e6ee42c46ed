//! The capabilities as a component meets them: every function of `wit/files.wit` and `wit/sql.wit`, called by the puppet
//! in the order of a story, and what it must answer. What must be refused is in `sandbox`.

use larder::repository::Repository;

use crate::support::{Folder, guests, object};

/// A puppet with one directory and one database.
const STORES: &str = r#"{
    "storage": {
        "strategy": "puppet",
        "grants": {
            "files": {"directory": "@/lent"},
            "sql": {"type": "sqlite", "name": "@/lent.db", "timeout": 0.5}
        },
        "stores": {
            "server": {
                "strategy": "puppet",
                "grants": {
                    "files": {"directory": "@/lent"},
                    "sql": {"type": "postgresql", ~lent~, "timeout": 0.5, "pool_size": 2, "max_overflow": 3}
                }
            }
        }
    }
}"#;

/// What came of a deed: the kind of the error it met, or `ok`, and what it saw or was told.
async fn attempt(puppet: &Repository, deed: &str) -> (String, String) {
    let found = puppet.get("templates", &[deed.to_owned()]).await.unwrap_or_else(|error| panic!("{deed}: {error:?}"));
    let members = object(found[0].as_ref().expect("an answer").body.as_slice());
    let text = |name: &str| members[name].as_str().expect("a text").to_owned();
    (text("answer"), text("value"))
}

/// The function that a deed is about, the deed, and what it must see; an error by its kind.
async fn check(story: &[(&str, &str, Result<&str, &str>)]) {
    check_on("puppet", &[], story).await;
}

/// The same on a store with these databases of PostgreSQL.
async fn check_on(store: &str, databases: &[&str], story: &[(&str, &str, Result<&str, &str>)]) {
    let folder = Folder::with_databases(STORES, databases);
    let puppet = folder.host_with(&guests()).open(Some(store)).await.expect("a store that opens");
    for (function, deed, expected) in story {
        let (answer, value) = attempt(&puppet, deed).await;
        match expected {
            Ok(expected) => assert_eq!((answer.as_str(), value.as_str()), ("ok", *expected), "{function}: {deed}"),
            Err(kind) => assert_eq!(answer, *kind, "{function}: {deed}: {value}"),
        }
    }
}

#[tokio::test]
async fn files_are_read_written_and_listed() {
    check(&[
        // The directory comes to be with the first write.
        ("files.stat", "stat a/doc", Ok("")),
        ("files.read", "read a/doc", Ok("nothing")),
        ("files.entries", "entries a/", Ok("[]")),
        ("files.remove", "remove a/doc", Ok("false")),
        ("files.append", "append a/doc", Ok("19 bytes")),
        ("files.append", "append a/doc", Ok("38 bytes")),
        ("files.stat", "stat a/doc", Ok("38 bytes")),
        ("files.read", "read a/doc", Ok("the puppet was herethe puppet was here")),
        ("files.read", "read-part a/doc", Ok("puppet")),
        ("files.sync", "sync a/doc", Ok("")),
        ("files.truncate", "truncate a/doc", Ok("")),
        ("files.stat", "stat a/doc", Ok("0 bytes")),
        ("files.remove", "remove a/doc", Ok("true")),
        ("files.stat", "stat a/doc", Ok("")),
        ("files.free-space", "free-space", Ok("true")),
    ])
    .await;
}

#[tokio::test]
async fn a_replacement_is_whole_or_nothing_and_may_keep_the_old() {
    check(&[
        ("files.replacement.constructor", "abandon kept", Ok("")),
        ("files.replacement.write", "stat kept", Ok("")),
        ("files.entries", "entries ", Ok("[]")),
        ("files.replacement.commit", "replace kept", Ok("19 bytes")),
        ("files.replacement.commit", "read kept", Ok("the puppet was here")),
        ("files.append", "append kept", Ok("38 bytes")),
        ("files.replacement.commit", "keep-as old", Ok("19 bytes")),
        ("files.stat", "stat kept", Ok("19 bytes")),
        ("files.stat", "stat old", Ok("38 bytes")),
        ("files.replacement.commit", "keep-as old", Err("already-exists")),
        ("files.stat", "stat old", Ok("38 bytes")),
    ])
    .await;
}

#[tokio::test]
async fn locks_are_shared_or_exclusive() {
    check(&[
        // Where there is no directory yet there is nothing to lock, and reading must not make one.
        ("files.try-acquire", "lock-twice shared shared", Ok("true true")),
        ("files.append", "append doc", Ok("19 bytes")),
        ("files.try-acquire", "lock-twice shared shared", Ok("true true")),
        ("files.try-acquire", "lock-twice shared exclusive", Ok("true false")),
        ("files.try-acquire", "lock-twice exclusive shared", Ok("true false")),
        ("files.try-acquire", "lock-twice exclusive exclusive", Ok("true false")),
        // What was held was given back when it was dropped.
        ("files.try-acquire", "lock twice", Ok("true")),
    ])
    .await;
}

#[tokio::test]
async fn a_generation_changes_with_its_file() {
    let folder = Folder::new(STORES);
    let puppet = folder.host_with(&guests()).open(None).await.expect("a store that opens");
    let mut seen = std::collections::BTreeSet::new();
    for deed in ["append doc", "append doc", "truncate doc", "append doc", "replace doc", "replace doc"] {
        assert_eq!(attempt(&puppet, deed).await.0, "ok", "{deed}");
        let generation = attempt(&puppet, "generation doc").await;
        assert_eq!(attempt(&puppet, "generation doc").await, generation, "nothing changed");
        assert!(seen.insert(generation), "{deed} left the generation as it was");
    }
}

#[tokio::test]
async fn statements_run_alone_or_in_transactions() {
    check(&[
        ("sql.get-dialect", "dialect", Ok("Sqlite")),
        ("sql.size", "database-size", Ok("Some(false)")),
        ("sql.query", "sql CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)", Ok("[]")),
        ("sql.size", "database-size", Ok("Some(true)")),
        (
            "sql.query",
            "sql-parameters SELECT ? AS a, ? AS b, ? AS c",
            Ok(r#"["a", "b", "c"] [Integer(7), Text("t"), Null]"#),
        ),
        ("sql.query", "sql-affected INSERT INTO t VALUES (1, 'x'), (2, 'y')", Ok("2")),
        ("sql.query", "sql INSERT INTO t VALUES (1, 'again')", Err("already-exists")),
        // One row comes whatever the bound is, and the rest is said to be there.
        ("sql.query", "sql-cut SELECT a FROM t", Ok("1 true")),
        ("sql.begin", "sql-commit INSERT INTO t VALUES (3, 'z')", Ok("[]")),
        ("sql.transaction.commit", "sql SELECT count(*) FROM t", Ok("[Integer(3)]")),
        ("sql.begin", "sql-rollback DELETE FROM t", Ok("[]")),
        ("sql.transaction.rollback", "sql SELECT count(*) FROM t", Ok("[Integer(3)]")),
        ("sql.transaction.query", "sql-drop DELETE FROM t", Ok("[]")),
        ("sql.transaction.query", "sql SELECT count(*) FROM t", Ok("[Integer(3)]")),
        ("sql.begin", "sql-read-only SELECT max(a) FROM t", Ok("[Integer(3)]")),
        ("sql.begin", "sql-read-only DELETE FROM t", Err("denied")),
        ("sql.begin-bulk", "sql-bulk INSERT INTO t VALUES (4, 'bulk')", Ok("[]")),
        ("sql.sync", "sql-sync", Ok("")),
        ("sql.sync", "sql SELECT count(*) FROM t", Ok("[Integer(4)]")),
        ("sql.free-space", "database-free-space", Ok("Some(true)")),
        ("sql.get-connections", "connections", Ok("true: 5 of 15")),
        // A statement that fails is undone alone.
        (
            "sql.transaction.attempt",
            "sql-attempt INSERT INTO t VALUES (5, 'x'), (1, 'again')",
            Ok("already-exists, then [Integer(4)]"),
        ),
        ("sql.transaction.attempt", "sql-attempt INSERT INTO t VALUES (5, 'x')", Ok("[], then [Integer(5)]")),
        // The number 6 in 8 bytes, and a text of 6.
        (
            "sql.transaction.copy-in",
            &format!("sql-copy t|a,b|i<six>{}t<six>{}copied", "<nul>".repeat(7), "<nul>".repeat(3)),
            Ok("1"),
        ),
        ("sql.transaction.copy-in", "sql SELECT b FROM t WHERE a = 6", Ok("[Text(\"copied\")]")),
        // What was handed over is appended with the commit.
        ("sql.transaction.commit", &format!("sql-copy t|a,b|i<six>{}n", "<nul>".repeat(7)), Err("already-exists")),
        ("sql.transaction.copy-in", "sql-copy t|a,b|6<tab>copied<line>", Err("invalid-argument")),
        ("sql.transaction.copy-in", "sql SELECT count(*) FROM t", Ok("[Integer(6)]")),
        (
            "sql.copy-out",
            "sql-copy-out SELECT a, b FROM t WHERE a >= ? ORDER BY a",
            Ok(r"i\x04\x00\x00\x00\x00\x00\x00\x00t\x04\x00\x00\x00bulk true"),
        ),
        ("sql.copy-out", "sql-copy-out DELETE FROM t WHERE a = ?", Err("denied")),
    ])
    .await;
}

#[tokio::test]
async fn statements_run_alone_or_in_transactions_on_a_server_too() {
    let story = [
        ("sql.get-dialect", "dialect", Ok("Postgres")),
        ("sql.size", "database-size", Ok("Some(true)")),
        ("sql.free-space", "database-free-space", Ok("None")),
        ("sql.query", "sql CREATE TABLE t (a BIGINT PRIMARY KEY, b TEXT)", Ok("[]")),
        (
            "sql.query",
            "sql-parameters SELECT $1::bigint AS a, $2 AS b, $3 AS c",
            Ok(r#"["a", "b", "c"] [Integer(7), Text("t"), Null]"#),
        ),
        ("sql.query", "sql-affected INSERT INTO t VALUES (1, 'x'), (2, 'y')", Ok("2")),
        ("sql.query", "sql INSERT INTO t VALUES (1, 'again')", Err("already-exists")),
        ("sql.query", "sql-cut SELECT a FROM t", Ok("1 true")),
        ("sql.begin", "sql-commit INSERT INTO t VALUES (3, 'z')", Ok("[]")),
        ("sql.transaction.commit", "sql SELECT count(*) FROM t", Ok("[Integer(3)]")),
        ("sql.begin", "sql-rollback DELETE FROM t", Ok("[]")),
        ("sql.transaction.rollback", "sql SELECT count(*) FROM t", Ok("[Integer(3)]")),
        ("sql.transaction.query", "sql-drop DELETE FROM t", Ok("[]")),
        ("sql.transaction.query", "sql SELECT count(*) FROM t", Ok("[Integer(3)]")),
        // A statement that failed has ended the transaction.
        ("sql.transaction.query", "sql-after-failure SELECT 1", Err("invalid-argument")),
        ("sql.begin", "sql-read-only SELECT max(a) FROM t", Ok("[Integer(3)]")),
        ("sql.begin", "sql-read-only DELETE FROM t", Err("denied")),
        ("sql.begin-bulk", "sql-bulk INSERT INTO t VALUES (4, 'bulk')", Ok("[]")),
        ("sql.sync", "sql-sync", Ok("")),
        ("sql.sync", "sql SELECT count(*) FROM t", Ok("[Integer(4)]")),
        (
            "sql.transaction.attempt",
            "sql-attempt INSERT INTO t VALUES (5, 'x'), (1, 'again')",
            Ok("already-exists, then [Integer(4)]"),
        ),
        ("sql.transaction.attempt", "sql-attempt INSERT INTO t VALUES (5, 'x')", Ok("[], then [Integer(5)]")),
        ("sql.transaction.copy-in", "sql-copy t|a,b|6<tab>copied<line>7<tab>\\N<line>", Ok("2")),
        ("sql.transaction.copy-in", "sql SELECT b FROM t WHERE a > 5 ORDER BY a", Ok(r#"[Text("copied"), Null]"#)),
        // Of rows that do not fit, none is there.
        ("sql.transaction.copy-in", "sql-copy t|a,b|8<tab>x<line>7<tab>y<line>", Err("already-exists")),
        ("sql.transaction.copy-in", "sql SELECT count(*) FROM t", Ok("[Integer(7)]")),
        ("sql.copy-out", "sql-copy-out SELECT a, b FROM t WHERE a >= $1 ORDER BY a", Err("unsupported")),
        ("sql.get-connections", "connections", Ok("true: 2 of 5")),
    ];
    check_on("server", &["lent"], &story).await;
}
