//! The capability `sql` against real files.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use larder_model::{ErrorKind, Retry};
use tempfile::TempDir;

use super::*;

const REPLY_BYTES_MAX: u32 = 1 << 20;

fn settings(path: &Path) -> SqliteSettings {
    SqliteSettings {
        path: path.to_owned(),
        pool_size: 2,
        max_overflow: 2,
        timeout: Duration::from_millis(300),
        pool_timeout: Duration::from_millis(500),
        pool_recycle: None,
        query_cache: true,
    }
}

/// A database in a file that does not exist yet.
fn database() -> (TempDir, Database) {
    let directory = TempDir::new().unwrap();
    let database = Database::open_sqlite(settings(&directory.path().join("test.db")));
    (directory, database)
}

async fn run(database: &Database, text: &str) -> Result<Rows> {
    database.query(text, Vec::new(), REPLY_BYTES_MAX).await
}

async fn with_table() -> (TempDir, Database) {
    let (directory, database) = database();
    run(
        &database,
        "CREATE TABLE t (id VARCHAR(255) PRIMARY KEY, n INTEGER NOT NULL, up VARCHAR(255) REFERENCES t(id))",
    )
    .await
    .unwrap();
    (directory, database)
}

fn text(text: &str) -> SqlValue {
    SqlValue::Text(text.to_owned())
}

fn kind(result: Result<Rows>) -> ErrorKind {
    result.expect_err("it is refused").kind
}

#[tokio::test]
async fn a_missing_file_reads_as_an_empty_database_and_comes_to_be_with_the_first_write() {
    let (directory, database) = database();
    let path = directory.path().join("test.db");
    assert_eq!(database.size().await.unwrap(), Some(0));
    assert_eq!(run(&database, "SELECT name FROM sqlite_master").await.unwrap(), Rows::default());
    assert_eq!(kind(run(&database, "SELECT * FROM t").await), ErrorKind::InvalidArgument);
    assert_eq!(kind(run(&database, "INSERT INTO t VALUES (1)").await), ErrorKind::InvalidArgument);
    let mut reading = database.begin(None, true).await.unwrap();
    assert_eq!(reading.query("SELECT 1", Vec::new(), 9).await.unwrap().cells, [SqlValue::Integer(1)]);
    reading.commit().await.unwrap();
    assert!(!path.exists());

    run(&database, "CREATE TABLE t (id TEXT)").await.unwrap();
    assert!(path.exists());
    assert_eq!(&fs::read(&path).unwrap()[18..20], [2, 2], "it has a write-ahead log");
    assert!(database.size().await.unwrap() > Some(0));
}

#[tokio::test]
async fn a_file_that_was_replaced_is_not_written_to_any_more() {
    let (directory, database) = with_table().await;
    for name in ["test.db", "test.db-wal", "test.db-shm"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    assert_eq!(run(&database, "SELECT name FROM sqlite_master").await.unwrap(), Rows::default());
    run(&database, "CREATE TABLE other (id TEXT)").await.unwrap();
    let names = run(&database, "SELECT name FROM sqlite_master").await.unwrap();
    assert_eq!(names.cells, [text("other")]);
}

#[tokio::test]
async fn a_watch_sees_every_commit_and_no_look() {
    let (directory, database) = with_table().await;
    let mut watch = database.watch().await.expect("a file");
    run(&database, "SELECT * FROM t").await.unwrap();
    database.begin(None, false).await.unwrap().rollback().await.unwrap();
    assert!(watch.saw_no_change().await);

    let mut transaction = database.begin_bulk().await.unwrap();
    transaction.query("INSERT INTO t VALUES ('a', 1, NULL)", Vec::new(), REPLY_BYTES_MAX).await.unwrap();
    assert!(watch.saw_no_change().await, "nothing was committed");
    transaction.commit().await.unwrap();
    assert!(!watch.saw_no_change().await);
    assert!(database.watch().await.expect("a file").saw_no_change().await);

    // Another process, and a file that took its place.
    let mut watch = database.watch().await.expect("a file");
    let elsewhere = Database::open_sqlite(settings(&directory.path().join("test.db")));
    run(&elsewhere, "DELETE FROM t").await.unwrap();
    assert!(!watch.saw_no_change().await);
    elsewhere.close().await;
    let mut watch = database.watch().await.expect("a file");
    fs::copy(directory.path().join("test.db"), directory.path().join("copy.db")).unwrap();
    fs::rename(directory.path().join("copy.db"), directory.path().join("test.db")).unwrap();
    assert!(!watch.saw_no_change().await);
    let missing = Database::open_sqlite(settings(&directory.path().join("missing.db")));
    assert!(missing.watch().await.is_none());
}

#[tokio::test]
async fn a_bulk_transaction_begins_with_its_first_statement() {
    let (_directory, database) = with_table().await;
    let insert = |ids: &[&str]| {
        let rows: Vec<String> = ids.iter().map(|id| format!("('{id}', 1, NULL)")).collect();
        format!("INSERT INTO t VALUES {}", rows.join(", "))
    };
    let ids = || async { run(&database, "SELECT id FROM t ORDER BY id").await.unwrap().cells };
    // Whoever has begun without a statement is in nobody's way.
    let mut first = database.begin_bulk().await.unwrap();
    let mut second = database.begin_bulk().await.unwrap();
    let idle = database.begin_bulk().await.unwrap();
    let rows = second.query(&insert(&["a", "b", "c"]), Vec::new(), 0).await.unwrap();
    assert_eq!(rows.affected, 3);
    second.commit().await.unwrap();
    idle.commit().await.unwrap();
    database.begin_bulk().await.unwrap().rollback().await.unwrap();

    // SQLite remembers the three of before.
    let rows = first.query("SELECT count(*) FROM t", Vec::new(), REPLY_BYTES_MAX).await.unwrap();
    assert_eq!((rows.cells, rows.columns.len()), (vec![SqlValue::Integer(3)], 1));
    assert_eq!(first.query(&insert(&["d"]), Vec::new(), 0).await.unwrap().affected, 1);
    first.rollback().await.unwrap();
    assert_eq!(ids().await, [text("a"), text("b"), text("c")]);

    // What is wrong with the first statement is that statement's alone.
    let mut transaction = database.begin_bulk().await.unwrap();
    for (wrong, kind) in [
        ("SELECT * FROM missing", ErrorKind::InvalidArgument),
        ("INSERT INTO t VALUES (?, 1, NULL)", ErrorKind::InvalidArgument),
        ("COMMIT", ErrorKind::Denied),
        (&*insert(&["d", "a"]), ErrorKind::AlreadyExists),
        (&*insert(&["d", "a"]), ErrorKind::AlreadyExists),
    ] {
        assert_eq!(transaction.attempt(wrong, Vec::new(), 0).await.unwrap_err().kind, kind, "{wrong}");
    }
    transaction.query(&insert(&["d", "e"]), Vec::new(), 0).await.unwrap();
    assert_eq!(ids().await.len(), 3, "nothing was committed");
    transaction.commit().await.unwrap();
    assert_eq!(ids().await.len(), 5);

    let mut dropped = database.begin_bulk().await.unwrap();
    dropped.query(&insert(&["f"]), Vec::new(), 0).await.unwrap();
    drop(dropped);
    let mut next = database.begin_bulk().await.unwrap();
    next.query(&insert(&["g"]), Vec::new(), 0).await.unwrap();
    next.commit().await.unwrap();
    assert_eq!(ids().await.len(), 6, "what was dropped was rolled back");
}

#[tokio::test]
async fn behind_the_end_of_a_bulk_load_its_log_goes_to_the_file() {
    let (directory, database) = with_table().await;
    let file = || fs::metadata(directory.path().join("test.db")).unwrap().len();
    let load = async |id: &str| {
        let mut transaction = database.begin_bulk().await.unwrap();
        let insert = "INSERT INTO t VALUES (?, zeroblob(2000000), NULL)";
        transaction.query(insert, vec![text(id)], 0).await.unwrap();
        transaction.commit().await.unwrap();
    };
    load("a").await;
    let mut other = database.begin(None, false).await.unwrap();
    other.query("CREATE INDEX i ON t (up)", Vec::new(), 0).await.unwrap();
    other.rollback().await.unwrap();
    let before = file();
    assert!(before < 1_000_000);

    let ending = Database { statement_time: Some(Duration::from_secs(10)), ..database.clone() };
    let mut transaction = ending.begin(None, false).await.unwrap();
    transaction.query("CREATE INDEX i ON t (up)", Vec::new(), 0).await.unwrap();
    transaction.commit().await.unwrap();
    let since = Instant::now();
    while file() < 2_000_000 {
        assert!(since.elapsed() < Duration::from_secs(30), "the log stays where it is");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Its connection serves the next load, and has the usual time again.
    load("b").await;
    assert_eq!(run(&database, "SELECT count(*) FROM t").await.unwrap().cells, [SqlValue::Integer(2)]);
    database.close().await;
    assert!(!directory.path().join("test.db-wal").exists());
}

/// Cells in the form of `copy-in` and `copy-out`.
fn packed(cells: &[SqlValue]) -> Vec<u8> {
    let mut data = Vec::new();
    for cell in cells {
        let (kind, bytes, is_sized) = match cell {
            SqlValue::Integer(value) => (b'i', value.to_le_bytes().to_vec(), false),
            SqlValue::Number(value) => (b'f', value.to_le_bytes().to_vec(), false),
            SqlValue::Text(text) => (b't', text.clone().into_bytes(), true),
            SqlValue::Blob(bytes) => (b'b', bytes.clone(), true),
            _ => (b'n', Vec::new(), false),
        };
        data.push(kind);
        if is_sized {
            data.extend((bytes.len() as u32).to_le_bytes());
        }
        data.extend(bytes);
    }
    data
}

#[tokio::test]
async fn rows_are_copied_in_all_or_none() {
    let (_directory, database) = with_table().await;
    let columns = ["id", "n", "up"].map(str::to_owned);
    let row =
        |id: &str, n: i64, up: Option<&str>| packed(&[text(id), SqlValue::Integer(n), up.map_or(SqlValue::Null, text)]);
    let ids = || async { run(&database, "SELECT id FROM t ORDER BY id").await.unwrap().cells };
    let mut transaction = database.begin_bulk().await.unwrap();
    let rows = [row("a", 1, None), row("b\0\n𝄞", i64::MIN, Some("a"))].concat();
    assert_eq!(transaction.copy_in("t", &columns, rows).await.unwrap(), 2);
    assert_eq!(transaction.copy_in("t", &columns, Vec::new()).await.unwrap(), 0);
    assert_eq!(transaction.copy_in("t", &columns, row("c", 1, None)).await.unwrap(), 1);
    assert_eq!(ids().await.len(), 0, "nothing was committed");
    transaction.commit().await.unwrap();
    database.sync().await.unwrap();
    assert_eq!(ids().await, [text("a"), text("b\0\n𝄞"), text("c")]);
    let found = run(&database, "SELECT n, up FROM t WHERE id > 'a' LIMIT 1").await.unwrap();
    assert_eq!(found.cells, [SqlValue::Integer(i64::MIN), text("a")]);

    let torn = |cut: usize| {
        let mut rows = row("d", 1, Some("a"));
        rows.truncate(rows.len() - cut);
        rows
    };
    for (data, expected) in [
        ([row("d", 1, None), row("a", 1, None)].concat(), ErrorKind::AlreadyExists),
        (packed(&[text("d"), SqlValue::Null, SqlValue::Null]), ErrorKind::Rejected),
        ([row("d", 1, None), torn(1)].concat(), ErrorKind::InvalidArgument),
        (torn(6), ErrorKind::InvalidArgument),
        (torn(14), ErrorKind::InvalidArgument),
        (packed(&[text("d"), SqlValue::Number(f64::NAN), SqlValue::Null]), ErrorKind::InvalidArgument),
        (b"t\x01\0\0\0\xffnn".to_vec(), ErrorKind::InvalidArgument),
        (packed(&[text("d"), SqlValue::Integer(1)]), ErrorKind::InvalidArgument),
        (b"t\xff\xff\xff\xff".to_vec(), ErrorKind::InvalidArgument),
        (b"x".to_vec(), ErrorKind::InvalidArgument),
    ] {
        let mut transaction = database.begin_bulk().await.unwrap();
        assert_eq!(transaction.copy_in("t", &columns, row("z", 1, None)).await.unwrap(), 1);
        let error = transaction.copy_in("t", &columns, data.clone()).await.unwrap_err();
        assert_eq!(error.kind, expected, "{data:?}: {error}");
        let after = transaction.query("SELECT 1", Vec::new(), 9).await.unwrap_err();
        assert_eq!(after.kind, ErrorKind::InvalidArgument);
        assert_eq!(
            transaction.commit().await.unwrap_err().kind,
            ErrorKind::InvalidArgument,
            "it is not called a success"
        );
        assert_eq!(ids().await.len(), 3, "{data:?}");
    }
    // Rows that are the first of a transaction are looked at with what comes next.
    for (row, expected) in
        [(row("d", 1, Some("nobody")), ErrorKind::Rejected), (row("a", 1, None), ErrorKind::AlreadyExists)]
    {
        let mut transaction = database.begin_bulk().await.unwrap();
        transaction.copy_in("t", &columns, row.clone()).await.unwrap();
        assert_eq!(transaction.commit().await.unwrap_err().kind, expected);
        let mut transaction = database.begin_bulk().await.unwrap();
        transaction.copy_in("t", &columns, row).await.unwrap();
        assert_eq!(transaction.query("SELECT 1", Vec::new(), 9).await.unwrap_err().kind, expected);
        assert_eq!(transaction.commit().await.unwrap_err().kind, ErrorKind::InvalidArgument);
    }
    let mut transaction = database.begin_bulk().await.unwrap();
    transaction.copy_in("t", &columns, row("d", 1, None)).await.unwrap();
    transaction.rollback().await.unwrap();

    for (table, kind) in [
        ("t\" SELECT 1, 2, 3; --", ErrorKind::InvalidArgument),
        ("nothing", ErrorKind::InvalidArgument),
        ("t\0", ErrorKind::InvalidArgument),
        ("sqlite_dbpage", ErrorKind::InvalidArgument),
    ] {
        let mut transaction = database.begin_bulk().await.unwrap();
        transaction.query("SELECT 1", Vec::new(), 9).await.unwrap();
        let error = transaction.copy_in(table, &columns, row("d", 1, None)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{table}: {error}");
        transaction.rollback().await.unwrap();
    }
    // No more of them wait than there is room for.
    let of_bytes = |id: &str, bytes: usize| packed(&[text(id), text(&"x".repeat(bytes)), SqlValue::Null]);
    let mut transaction = database.begin_bulk().await.unwrap();
    let error = transaction.copy_in("t", &columns, of_bytes("a", 9 << 20)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AlreadyExists);
    transaction.rollback().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut transaction = database.begin_bulk().await.unwrap();
        transaction.copy_in("t", &columns, of_bytes("a", (8 << 20) - 4000)).await.unwrap();
        waiting.push(transaction);
    }
    let mut transaction = database.begin_bulk().await.unwrap();
    let error = transaction.copy_in("t", &columns, of_bytes("a", 1 << 20)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AlreadyExists);
    transaction.rollback().await.unwrap();
    drop(waiting);
    let mut transaction = database.begin_bulk().await.unwrap();
    transaction.copy_in("t", &columns, of_bytes("a", 1 << 20)).await.unwrap();
    transaction.rollback().await.unwrap();

    let mut transaction = database.begin_bulk().await.unwrap();
    let schema = ["type", "name", "sql"].map(str::to_owned);
    transaction.copy_in("sqlite_master", &schema, row("d", 1, None)).await.unwrap();
    assert_eq!(transaction.commit().await.unwrap_err().kind, ErrorKind::InvalidArgument);
    let mut reading = database.begin(None, true).await.unwrap();
    assert_eq!(reading.copy_in("t", &columns, row("d", 1, None)).await.unwrap_err().kind, ErrorKind::Denied);
    reading.rollback().await.unwrap();
    assert_eq!(ids().await.len(), 3);
}

#[tokio::test]
async fn rows_are_copied_out_as_they_stand() {
    let (directory, database) = database();
    let out = |text: &'static str, params: Vec<SqlValue>, max_bytes: u32| database.copy_out(text, params, max_bytes);
    let nothing = out("SELECT name FROM sqlite_master", Vec::new(), REPLY_BYTES_MAX).await.unwrap();
    assert_eq!(nothing, Packed::default());
    assert!(!directory.path().join("test.db").exists());

    run(&database, "CREATE TABLE t (a, b, c, d)").await.unwrap();
    let long = "x".repeat(100_000);
    let rows = [
        [text("1"), SqlValue::Integer(i64::MIN), SqlValue::Number(0.1 + 0.2), SqlValue::Null],
        [text("2"), text(""), SqlValue::Blob(Vec::new()), SqlValue::Blob(vec![0, 255])],
        [text("3"), text("a\0\n𝄞\"\\"), text(&long), SqlValue::Number(f64::NEG_INFINITY)],
    ];
    for row in &rows {
        database.query("INSERT INTO t VALUES (?, ?, ?, ?)", row.to_vec(), 0).await.unwrap();
    }
    let all = out("SELECT * FROM t ORDER BY a", Vec::new(), REPLY_BYTES_MAX).await.unwrap();
    assert_eq!(all, Packed { cells: packed(&rows.concat()), more: false });
    let behind = out("SELECT * FROM t WHERE a > ? ORDER BY a LIMIT ?", vec![text("1"), SqlValue::Integer(1)], 9);
    assert_eq!(behind.await.unwrap(), Packed { cells: packed(&rows[1]), more: false });
    for (max_bytes, count) in [(0, 1), (1, 1), (packed(&rows[0]).len(), 1), (packed(&rows[0]).len() + 1, 2)] {
        let cut = out("SELECT * FROM t ORDER BY a", Vec::new(), max_bytes as u32).await.unwrap();
        assert_eq!(cut, Packed { cells: packed(&rows[..count].concat()), more: true }, "{max_bytes}");
    }
    // What is stored as a text is one, whatever it holds.
    let odd = out("SELECT CAST(x'ff' AS TEXT)", Vec::new(), 9).await.unwrap();
    assert_eq!(odd.cells, b"t\x01\0\0\0\xff");
    // As zlib and PNG have it.
    let hashes = out("SELECT crc32('123456789'), crc32(''), crc32(NULL), crc32(12)", Vec::new(), 9).await.unwrap();
    let expected = [0xcbf4_3926, 0, 0x4f53_44cd].map(SqlValue::Integer);
    assert_eq!(hashes.cells, packed(&[expected[0].clone(), expected[1].clone(), SqlValue::Null, expected[2].clone()]));

    for (wrong, params, kind) in [
        ("INSERT INTO t (a) VALUES ('4') RETURNING a", Vec::new(), ErrorKind::Denied),
        ("PRAGMA user_version", Vec::new(), ErrorKind::Denied),
        ("SELECT 1; SELECT 2", Vec::new(), ErrorKind::Denied),
        ("SELECT * FROM missing", Vec::new(), ErrorKind::InvalidArgument),
        ("SELECT ?", Vec::new(), ErrorKind::InvalidArgument),
        ("SELECT 1", vec![SqlValue::Null], ErrorKind::InvalidArgument),
        ("SELECT ?", vec![SqlValue::Number(f64::NAN)], ErrorKind::InvalidArgument),
        ("SELECT abs(-9223372036854775807 - 1)", Vec::new(), ErrorKind::InvalidArgument),
        ("SELECT zeroblob(1 << 30)", Vec::new(), ErrorKind::LimitExceeded),
    ] {
        let error = out(wrong, params, REPLY_BYTES_MAX).await.unwrap_err();
        assert_eq!(error.kind, kind, "{wrong}: {error}");
    }
    assert_eq!(run(&database, "SELECT count(*) FROM t").await.unwrap().cells, [SqlValue::Integer(3)]);

    // One that never ends is ended, and so is one that nobody waits for; the connections serve the next.
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0";
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    assert_eq!(out(endless, Vec::new(), REPLY_BYTES_MAX).await.unwrap_err().kind, ErrorKind::Timeout);
    for _ in 0..6 {
        let given_up = out(rows, Vec::new(), u32::MAX);
        assert!(tokio::time::timeout(Duration::from_millis(20), given_up).await.is_err());
        assert_eq!(out("SELECT 1", Vec::new(), 9).await.unwrap().cells, packed(&[SqlValue::Integer(1)]));
    }
}

#[tokio::test]
async fn rows_of_every_kind_of_cell_are_copied_in_and_one_that_is_given_up_leaves_nothing() {
    let (_directory, database) = database();
    run(&database, "CREATE TABLE t (a, b, c, d, e)").await.unwrap();
    let columns = ["a", "b", "c", "d", "e"].map(str::to_owned);
    let cells = [SqlValue::Null, SqlValue::Integer(-1), SqlValue::Number(0.1), text(""), SqlValue::Blob(vec![0, 255])];
    let mut transaction = database.begin_bulk().await.unwrap();
    transaction.copy_in("t", &columns, packed(&cells)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(run(&database, "SELECT * FROM t").await.unwrap().cells, cells);

    let rows = packed(&cells).repeat(200_000);
    let mut transaction = database.begin_bulk().await.unwrap();
    transaction.query("SELECT 1", Vec::new(), 9).await.unwrap();
    let copying = tokio::time::timeout(Duration::from_millis(5), transaction.copy_in("t", &columns, rows));
    assert!(copying.await.is_err(), "it lets others have their turn");
    assert_eq!(transaction.commit().await.unwrap_err().kind, ErrorKind::InvalidArgument);
    let mut transaction = database.begin_bulk().await.unwrap();
    assert_eq!(transaction.copy_in("t", &columns, packed(&cells)).await.unwrap(), 1);
    transaction.commit().await.unwrap();
    let count = run(&database, "SELECT count(*) FROM t").await.unwrap();
    assert_eq!(count.cells, [SqlValue::Integer(2)]);

    // The one thread of this test is not held up by who waits for the lock.
    let holder = database.begin(None, false).await.unwrap();
    let mut transaction = database.begin_bulk().await.unwrap();
    transaction.copy_in("t", &columns, packed(&cells)).await.unwrap();
    let committed = tokio::spawn(transaction.commit());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!committed.is_finished());
    holder.commit().await.unwrap();
    committed.await.unwrap().unwrap();
    let count = run(&database, "SELECT count(*) FROM t").await.unwrap();
    assert_eq!(count.cells, [SqlValue::Integer(3)]);

    // What nobody waits for any more is not committed once it has the lock.
    let holder = database.begin(None, false).await.unwrap();
    let mut transaction = database.begin_bulk().await.unwrap();
    transaction.copy_in("t", &columns, packed(&cells)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), transaction.commit()).await.is_err());
    holder.commit().await.unwrap();
    let mut transaction = database.begin_bulk().await.unwrap();
    assert_eq!(transaction.copy_in("t", &columns, packed(&cells)).await.unwrap(), 1);
    transaction.commit().await.unwrap();
    let count = run(&database, "SELECT count(*) FROM t").await.unwrap();
    assert_eq!(count.cells, [SqlValue::Integer(4)]);
}

#[tokio::test]
async fn the_log_of_a_database_behind_a_link_is_found() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("elsewhere")).unwrap();
    let (link, file) = (folder.path().join("test.db"), folder.path().join("elsewhere/real.db"));
    fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink("elsewhere/real.db", &link).unwrap();
    let database = Database::open_sqlite(settings(&link));
    run(&database, "CREATE TABLE t (n INTEGER)").await.unwrap();
    let log = fs::metadata(folder.path().join("elsewhere/real.db-wal")).unwrap().len();
    assert!(log > 0);
    // A log that is not found is taken for one that is not needed.
    assert_eq!(database.size().await.unwrap(), Some(fs::metadata(&file).unwrap().len() + log));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_look_at_the_directory_of_a_database_takes_none_of_its_locks() {
    use std::os::unix::fs::MetadataExt;
    let (directory, database) = with_table().await;
    let mut transaction = database.begin(None, false).await.unwrap();
    transaction.query("INSERT INTO t VALUES ('a', 1, NULL)", Vec::new(), REPLY_BYTES_MAX).await.unwrap();
    let numbers: Vec<String> = ["test.db", "test.db-shm"]
        .map(|name| format!(":{} ", fs::metadata(directory.path().join(name)).unwrap().ino()))
        .into();
    let locks = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().filter(|line| numbers.iter().any(|number| line.contains(number))).count()
    };
    let before = locks();
    assert!(before > 0);
    let _ = crate::capability::files::Directory::new(directory.path()).revision().await;
    assert_eq!(locks(), before);
    transaction.rollback().await.unwrap();
}

#[tokio::test]
async fn what_is_no_database_is_reported_and_left_alone() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| Database::open_sqlite(settings(&directory.path().join(name)));
    fs::write(directory.path().join("junk"), "no database, but longer than a header ".repeat(100)).unwrap();
    fs::create_dir(directory.path().join("folder")).unwrap();
    for (name, expected) in [
        ("junk", ErrorKind::Corrupt),
        ("folder", ErrorKind::InvalidArgument),
        ("junk/folder.db", ErrorKind::Unavailable),
    ] {
        for text in ["SELECT name FROM sqlite_master", "CREATE TABLE t (id TEXT)"] {
            let error = run(&at(name), text).await.unwrap_err();
            assert_eq!(error.kind, expected, "{name}: {error}");
            assert!(!error.message.contains(directory.path().to_str().unwrap()), "{error}");
        }
    }
    assert!(fs::read(directory.path().join("junk")).unwrap().starts_with(b"no database"));
    let missing = at("no/such/folder.db");
    assert_eq!(run(&missing, "SELECT name FROM sqlite_master").await.unwrap(), Rows::default());
    assert!(!directory.path().join("no").exists(), "a read makes nothing");
    run(&missing, "CREATE TABLE t (id TEXT)").await.unwrap();
    assert!(directory.path().join("no/such/folder.db").is_file());
    fs::write(directory.path().join("empty"), "").unwrap();
    assert_eq!(run(&at("empty"), "SELECT name FROM sqlite_master").await.unwrap(), Rows::default());
}

#[tokio::test]
async fn every_value_comes_back_by_its_own_type() {
    let (_directory, database) = database();
    run(&database, "CREATE TABLE t (a INTEGER, b TEXT, c TIMESTAMP, d DOUBLE PRECISION, e BLOB, f VARCHAR(3))")
        .await
        .unwrap();
    let params = vec![
        SqlValue::Integer(i64::MIN),
        text("a\0b é 𝄞"),
        text("2024-01-01T00:00:00Z"),
        SqlValue::Number(0.1),
        SqlValue::Blob(vec![0, 255]),
        SqlValue::Null,
    ];
    let inserted = database.query("INSERT INTO t VALUES (?1, ?2, ?3, ?4, ?5, ?6)", params.clone(), 0).await.unwrap();
    assert_eq!(inserted, Rows { affected: 1, ..Rows::default() });
    let rows = run(&database, "SELECT * FROM t").await.unwrap();
    assert_eq!((rows.columns, rows.cells), (["a", "b", "c", "d", "e", "f"].map(str::to_owned).to_vec(), params));
    // The declared type of a column says nothing about its values, and a text may not be one.
    run(&database, "UPDATE t SET a = 'x', d = X'00', b = CAST(X'ff' AS TEXT), f = ''").await.unwrap();
    let rows = run(&database, "SELECT a, d, b, f FROM t").await.unwrap();
    assert_eq!(rows.cells, [text("x"), SqlValue::Blob(vec![0]), SqlValue::Blob(vec![255]), text("")]);
}

#[tokio::test]
async fn a_reply_ends_at_its_bound_but_not_before_its_first_row() {
    let (_directory, database) = database();
    let numbers = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT i FROM n";
    for (max_bytes, expected, more) in [(1, 1, true), (160, 10, true), (16_000, 1000, false), (0, 0, false)] {
        let rows = database.query(numbers, Vec::new(), max_bytes).await.unwrap();
        assert_eq!((rows.cells.len(), rows.more), (expected, more), "{max_bytes}");
    }
    assert_eq!(run(&database, "SELECT 1").await.unwrap().cells, [SqlValue::Integer(1)], "the connection goes on");
}

#[tokio::test]
async fn what_leads_out_of_the_database_or_changes_the_connection_is_denied() {
    let (directory, database) = with_table().await;
    let outside = directory.path().join("outside.db").display().to_string();
    for text in [
        format!("ATTACH '{outside}' AS x"),
        format!("VACUUM INTO '{outside}'"),
        "DETACH main".to_owned(),
        "PRAGMA writable_schema = 1".to_owned(),
        "/* */ pragma journal_mode = delete".to_owned(),
        "SELECT * FROM pragma_database_list".to_owned(),
        "SELECT * FROM Pragma_journal_mode('delete')".to_owned(),
        "SELECT * FROM dbstat".to_owned(),
        "SELECT load_extension('x')".to_owned(),
        "SELECT fts3_tokenizer('simple')".to_owned(),
        "BEGIN".to_owned(),
        "COMMIT".to_owned(),
        "-- x\nROLLBACK".to_owned(),
        "SAVEPOINT x".to_owned(),
        "EXPLAIN BEGIN".to_owned(),
        "CREATE TEMP TABLE x (a)".to_owned(),
        "CREATE TEMPORARY TABLE x AS SELECT 1".to_owned(),
        "CREATE VIRTUAL TABLE x USING fts5(a)".to_owned(),
        "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END".to_owned(),
        "CREATE VIEW x AS SELECT 1".to_owned(),
        "DROP TABLE t".to_owned(),
        "REINDEX".to_owned(),
        "SELECT 1; SELECT 2".to_owned(),
        "SELECT 1; /* */ DELETE FROM t".to_owned(),
        "SELECT 1;;COMMIT".to_owned(),
    ] {
        for attempt in 0..2 {
            let result = run(&database, &text).await;
            assert!(
                result.as_ref().is_err_and(|error| error.kind == ErrorKind::Denied),
                "{attempt} {text}: {result:?}"
            );
        }
        let mut transaction = database.begin(None, false).await.unwrap();
        let result = transaction.query(&text, Vec::new(), REPLY_BYTES_MAX).await;
        assert_eq!(kind(result), ErrorKind::Denied, "{text}");
        transaction.query("INSERT INTO t (id, n) VALUES ('x', 1)", Vec::new(), 0).await.unwrap();
        transaction.rollback().await.unwrap();
    }
    assert!(!directory.path().join("outside.db").exists());
    assert!(run(&database, "SELECT * FROM t").await.unwrap().cells.is_empty());
    let error = run(&database, "UPDATE sqlite_master SET sql = 'x'").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    for text in ["SELECT $1", "SELECT :a", "SELECT @a", "SELECT 'a\0'", ";", ""] {
        let result = database.query(text, vec![SqlValue::Null], REPLY_BYTES_MAX).await;
        assert_eq!(kind(result), ErrorKind::InvalidArgument, "{text}");
    }
    assert_eq!(kind(run(&database, "SELECT ?").await), ErrorKind::InvalidArgument, "a parameter is missing");
}

#[tokio::test]
async fn what_a_strategy_needs_is_let_through() {
    let (_directory, database) = with_table().await;
    for text in [
        "CREATE INDEX i ON t (n, id)",
        "ALTER TABLE t ADD COLUMN m INTEGER NOT NULL DEFAULT 1 CHECK (m > 0)",
        "ALTER TABLE t RENAME COLUMN m TO o",
        "DROP INDEX i",
        "ANALYZE",
        "REPLACE INTO t (id, n) VALUES ('a', 1);",
        "INSERT INTO t (id, n) VALUES ('a', 2) ON CONFLICT (id) DO UPDATE SET n = excluded.n RETURNING n",
        "EXPLAIN QUERY PLAN SELECT * FROM t; -- done",
        "SELECT name, type FROM pragma_table_xinfo('t')",
        "SELECT * FROM pragma_index_list('t'), pragma_foreign_key_list('t'), pragma_encoding",
        "SELECT value FROM json_each('[1]')",
        "SELECT sqlite_version()",
    ] {
        run(&database, text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[tokio::test]
async fn a_broken_constraint_is_named() {
    let (_directory, database) = with_table().await;
    run(&database, "INSERT INTO t (id, n) VALUES ('a', 1)").await.unwrap();
    for (text, kind, message) in [
        ("INSERT INTO t (id, n) VALUES ('a', 1)", ErrorKind::AlreadyExists, "UNIQUE constraint failed: t.id"),
        ("INSERT INTO t (id) VALUES ('b')", ErrorKind::Rejected, "NOT NULL constraint failed: t.n"),
        ("INSERT INTO t VALUES ('b', 1, 'c')", ErrorKind::Rejected, "FOREIGN KEY constraint failed"),
    ] {
        let error = run(&database, text).await.unwrap_err();
        assert_eq!((error.kind, error.message.as_str(), error.retry), (kind, message, Retry::Never), "{text}");
    }
}

#[tokio::test]
async fn a_transaction_is_committed_rolled_back_or_dropped() {
    let (_directory, database) = with_table().await;
    let insert = |id: &str| (format!("INSERT INTO t (id, n) VALUES ('{id}', 1)"), Vec::new());
    for (id, end) in [("committed", 0), ("rolled back", 1), ("dropped", 2)] {
        let mut transaction = database.begin(None, false).await.unwrap();
        let (text, params) = insert(id);
        transaction.query(&text, params, 0).await.unwrap();
        // A broken statement is undone alone.
        assert_eq!(kind(transaction.query(&text, Vec::new(), 0).await), ErrorKind::AlreadyExists);
        assert_eq!(kind(transaction.query("SELECT no", Vec::new(), 0).await), ErrorKind::InvalidArgument);
        match end {
            0 => transaction.commit().await.unwrap(),
            1 => transaction.rollback().await.unwrap(),
            _ => drop(transaction),
        }
    }
    assert_eq!(run(&database, "SELECT id FROM t").await.unwrap().cells, [text("committed")]);
}

#[test]
fn a_transaction_that_is_open_when_the_runtime_ends_is_rolled_back() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ending = runtime();
    let (directory, database) = ending.block_on(with_table());
    let (begun, has_begun) = std::sync::mpsc::channel();
    ending.spawn(async move {
        let mut transaction = database.begin(None, false).await.unwrap();
        transaction.query("INSERT INTO t VALUES ('a', 1, NULL)", Vec::new(), 0).await.unwrap();
        begun.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    has_begun.recv().unwrap();
    drop(ending);

    let database = Database::open_sqlite(settings(&directory.path().join("test.db")));
    let rows = runtime().block_on(run(&database, "SELECT COUNT(*) FROM t")).unwrap();
    assert_eq!(rows.cells, [SqlValue::Integer(0)]);
}

#[tokio::test]
async fn nothing_runs_outside_a_transaction_that_sqlite_ended() {
    let (_directory, database) = with_table().await;
    let mut transaction = database.begin(None, false).await.unwrap();
    transaction.query("INSERT INTO t (id, n) VALUES ('a', 1)", Vec::new(), 0).await.unwrap();
    let ending = "INSERT OR ROLLBACK INTO t (id, n) VALUES ('a', 1)";
    assert_eq!(kind(transaction.query(ending, Vec::new(), 0).await), ErrorKind::AlreadyExists);
    let after = transaction.query("INSERT INTO t (id, n) VALUES ('b', 1)", Vec::new(), 0).await;
    assert_eq!(kind(after), ErrorKind::InvalidArgument);
    transaction.commit().await.unwrap_err();
    assert!(run(&database, "SELECT id FROM t").await.unwrap().cells.is_empty());
}

#[tokio::test]
async fn a_read_only_transaction_keeps_its_view_and_does_not_write() {
    let (_directory, database) = with_table().await;
    let mut reading = database.begin(None, true).await.unwrap();
    assert!(reading.query("SELECT id FROM t", Vec::new(), 100).await.unwrap().cells.is_empty());
    run(&database, "INSERT INTO t (id, n) VALUES ('a', 1)").await.unwrap();
    assert!(reading.query("SELECT id FROM t", Vec::new(), 100).await.unwrap().cells.is_empty());
    assert_eq!(kind(reading.query("DELETE FROM t", Vec::new(), 0).await), ErrorKind::Denied);
    reading.rollback().await.unwrap();
    assert_eq!(run(&database, "SELECT id FROM t").await.unwrap().cells, [text("a")]);
}

#[tokio::test]
async fn a_lock_that_is_not_released_and_a_statement_without_end_time_out() {
    let (_directory, database) = with_table().await;
    let holder = database.begin(None, false).await.unwrap();
    let error = run(&database, "INSERT INTO t (id, n) VALUES ('a', 1)").await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Timeout, Retry::Safe), "{error}");
    holder.rollback().await.unwrap();

    let endless = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n";
    for text in [endless.to_owned(), endless.replace("FROM n)", "FROM n, pragma_table_info('t'))")] {
        let started = Instant::now();
        let error = run(&database, &text).await.unwrap_err();
        assert_eq!((error.kind, error.retry), (ErrorKind::Timeout, Retry::Safe), "{error}");
        assert!(started.elapsed() < Duration::from_secs(3), "SQLite itself stopped");
    }
    run(&database, "INSERT INTO t (id, n) VALUES ('a', 1)").await.unwrap();
}

#[tokio::test]
async fn the_pool_lends_no_more_than_it_has_and_keeps_no_more_than_it_should() {
    let (_directory, database) = with_table().await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(database.begin(None, true).await.unwrap());
    }
    let error = run(&database, "SELECT 1").await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Timeout, Retry::Safe), "{error}");
    for transaction in held {
        transaction.rollback().await.unwrap();
    }
    run(&database, "SELECT 1").await.unwrap();
    for _ in 0..100 {
        if database.connections().open <= 2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} connections are kept", database.connections().open);
}

#[tokio::test]
async fn one_statement_does_not_take_all_memory() {
    let (_directory, database) = database();
    assert_eq!(kind(run(&database, "SELECT randomblob(100000000)").await), ErrorKind::LimitExceeded);
    let many = format!("SELECT {}", ["length(hex(randomblob(30000000)))"; 3].join(", "));
    run(&database, &many).await.unwrap();
}

#[tokio::test]
async fn writers_side_by_side_all_get_their_turn() {
    let (directory, _) = with_table().await;
    let database = Database::open_sqlite(SqliteSettings {
        timeout: Duration::from_secs(20),
        pool_timeout: Duration::from_secs(20),
        ..settings(&directory.path().join("test.db"))
    });
    run(&database, "INSERT INTO t (id, n) VALUES ('counter', 0)").await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let database = database.clone();
            tokio::spawn(async move {
                for _ in 0..25 {
                    let mut transaction = database.begin(None, false).await.unwrap();
                    let rows = transaction.query("SELECT n FROM t", Vec::new(), 100).await.unwrap();
                    let SqlValue::Integer(n) = rows.cells[0] else { panic!() };
                    let update = transaction.query("UPDATE t SET n = ?", vec![SqlValue::Integer(n + 1)], 0);
                    assert_eq!(update.await.unwrap().affected, 1);
                    transaction.commit().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(run(&database, "SELECT n FROM t").await.unwrap().cells, [SqlValue::Integer(200)]);
}

/// How fast rows go in and come out: `cargo test --release -- --ignored --nocapture rows_per_second`.
#[tokio::test]
#[ignore = "a measurement"]
async fn rows_per_second() {
    let (_directory, database) = database();
    let columns: Vec<String> = (0..14).map(|i| format!("c{i} VARCHAR(255)")).collect();
    run(&database, &format!("CREATE TABLE t ({}, PRIMARY KEY (c0))", columns.join(", "))).await.unwrap();
    const ROWS: usize = 100_000;
    const BATCH: usize = 250;
    let row = format!("({})", ["?"; 14].join(","));
    let insert = format!("INSERT INTO t VALUES {}", vec![row; BATCH].join(","));
    let started = Instant::now();
    let mut transaction = database.begin(None, false).await.unwrap();
    for batch in 0..ROWS / BATCH {
        let mut params = Vec::with_capacity(BATCH * 14);
        for i in 0..BATCH {
            params.push(SqlValue::Text(format!("machine-{:08}", batch * BATCH + i)));
            params.extend((1..14).map(|c| match c % 3 {
                0 => SqlValue::Null,
                _ => SqlValue::Text(format!("value {c} of a row")),
            }));
        }
        transaction.query(&insert, params, 0).await.unwrap();
    }
    transaction.commit().await.unwrap();
    println!("in: {:.0} rows/s", ROWS as f64 / started.elapsed().as_secs_f64());
    let (started, mut last, mut count) = (Instant::now(), String::new(), 0);
    while count < ROWS {
        let page = "SELECT * FROM t WHERE c0 > ? ORDER BY c0 LIMIT 5000";
        let rows = database.query(page, vec![text(&last)], 8 << 20).await.unwrap();
        count += rows.cells.len() / 14;
        let Some(SqlValue::Text(id)) = rows.cells.get(rows.cells.len() - 14) else { panic!() };
        last = id.clone();
    }
    println!("out: {:.0} rows/s", ROWS as f64 / started.elapsed().as_secs_f64());
    let started = Instant::now();
    for i in 0..10_000 {
        let id = text(&format!("machine-{:08}", i * 7));
        assert_eq!(database.query("SELECT * FROM t WHERE c0 = ?", vec![id], 1000).await.unwrap().cells.len(), 14);
    }
    println!("get: {:.1} µs", started.elapsed().as_secs_f64() * 100.0);
}
