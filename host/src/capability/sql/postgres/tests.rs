//! The capability `sql` against a real server.

use std::{
    env,
    time::{Duration, Instant},
};

use larder_model::{ErrorKind, Isolation, Result, Retry};
use sqlx::{AssertSqlSafe, Connection, Executor, Row, postgres::PgConnection};

use super::super::{Connections, Database, Dialect, Rows, SqlValue, Transaction};
use super::{Encryption, PostgresSettings};

const REPLY_BYTES_MAX: u32 = 1 << 20;

/// A server's URL from the environment.
fn url(variable: &str) -> String {
    env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run the tests with `cargo xtask test`, which starts PostgreSQL")
    })
}

/// A database of the test's own, which goes with it.
struct Place {
    settings: PostgresSettings,
    database: Database,
}

impl Place {
    async fn new() -> Place {
        Place::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut PostgresSettings)) -> Place {
        let url = url("LARDER_TEST_POSTGRES");
        let mut settings = settings(&url);
        let mut number = [0; 8];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut number))
            .unwrap();
        settings.name = format!("host_{:016x}", u64::from_ne_bytes(number));
        admin(&format!("CREATE DATABASE {}", settings.name)).await;
        change(&mut settings);
        Place { database: Database::open_postgres(settings.clone()), settings }
    }

    /// With a table.
    async fn with_table() -> Place {
        let place = Place::new().await;
        place
            .run("CREATE TABLE t (id VARCHAR(20) PRIMARY KEY, n INTEGER NOT NULL, up VARCHAR(20) REFERENCES t(id))")
            .await
            .unwrap();
        place
    }

    async fn run(&self, text: &str) -> Result<Rows> {
        self.database.query(text, Vec::new(), REPLY_BYTES_MAX).await
    }

    /// A connection of the test's own.
    async fn connection(&self) -> PgConnection {
        let url = url("LARDER_TEST_POSTGRES");
        let (server, _) = url.rsplit_once('/').unwrap();
        PgConnection::connect(&format!("{server}/{}", self.settings.name)).await.unwrap()
    }

    async fn end(self) {
        self.database.close().await;
        admin(&format!("DROP DATABASE {} WITH (FORCE)", self.settings.name)).await;
    }
}

async fn admin(text: &str) {
    let mut connection = PgConnection::connect(&url("LARDER_TEST_POSTGRES")).await.unwrap();
    connection.execute(AssertSqlSafe(text.to_owned())).await.unwrap();
}

fn settings(url: &str) -> PostgresSettings {
    let rest = url.strip_prefix("postgres://").unwrap();
    let (user, rest) = rest.split_once('@').unwrap();
    let (username, password) = user.split_once(':').unwrap();
    let (server, name) = rest.split_once('/').unwrap();
    let (host, port) = server.split_once(':').unwrap();
    PostgresSettings {
        host: host.to_owned(),
        port: port.parse().unwrap(),
        name: name.to_owned(),
        username: username.to_owned(),
        password: password.to_owned(),
        encryption: Encryption::Prefer,
        root_certificate: None,
        allow_superuser: false,
        pool_size: 2,
        max_overflow: 2,
        timeout: Duration::from_millis(700),
        pool_timeout: Duration::from_millis(700),
        pool_recycle: None,
        query_cache: true,
    }
}

fn text(text: &str) -> SqlValue {
    SqlValue::Text(text.to_owned())
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("it is refused").kind
}

async fn insert(transaction: &mut Transaction, id: &str) -> Result<Rows> {
    transaction.query("INSERT INTO t (id, n) VALUES ($1, 1)", vec![text(id)], 0).await
}

#[tokio::test]
async fn values_come_back_as_they_were_sent() {
    let place = Place::new().await;
    assert_eq!(place.database.dialect(), Dialect::Postgres);
    place
        .run(
            "CREATE TABLE t (a BIGINT, b TEXT, c TIMESTAMP, d DOUBLE PRECISION, e BYTEA, f BOOLEAN, g JSON, h JSONB, \
             i NUMERIC, j INTEGER, k SMALLINT, l REAL, m VARCHAR(3))",
        )
        .await
        .unwrap();
    let params = vec![
        SqlValue::Integer(i64::MIN),
        text("a b é 𝄞"),
        text("2024-01-01 00:00:00.5"),
        SqlValue::Number(0.1),
        SqlValue::Blob(vec![0, 255]),
        SqlValue::Boolean(true),
        SqlValue::Json("{\"a\":1.0,  \"a\":1e400}".to_owned()),
        SqlValue::Json("[1]".to_owned()),
        SqlValue::Decimal("-12345678901234567890.0010".to_owned()),
        SqlValue::Integer(-7),
        SqlValue::Integer(7),
        SqlValue::Number(1.5),
        text(""),
    ];
    let statement = "INSERT INTO t VALUES ($1, $2, $3::text::timestamp, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
    // NULL takes the same statement as a value.
    let nulls = vec![SqlValue::Null; params.len()];
    assert_eq!(place.database.query(statement, nulls.clone(), 0).await.unwrap().affected, 1);
    assert_eq!(place.database.query(statement, params.clone(), 0).await.unwrap().affected, 1);
    let select = "SELECT a, b, c::text, d, e, f, g, h, i, j, k, l, m FROM t ORDER BY a NULLS FIRST";
    let rows = place.run(select).await.unwrap();
    assert_eq!(rows.columns[..3], ["a", "b", "c"]);
    assert_eq!(rows.cells, [nulls, params].concat());
    let error = place.run("SELECT c FROM t").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    assert!(error.message.contains("\"c\"::text"), "{error}");
    for (text, param, expected) in [
        ("INSERT INTO t (j) VALUES ($1)", SqlValue::Integer(1 << 40), ErrorKind::Rejected),
        ("INSERT INTO t (j) VALUES ($1)", text("1"), ErrorKind::InvalidArgument),
        ("INSERT INTO t (b) VALUES ($1)", text("a\0b"), ErrorKind::Rejected),
        ("INSERT INTO t (m) VALUES ($1)", text("long"), ErrorKind::Rejected),
        ("INSERT INTO t (h) VALUES ($1)", SqlValue::Json("\"\\u0000\"".to_owned()), ErrorKind::Rejected),
        ("INSERT INTO t (c) VALUES ($1::text::timestamp)", text("soon"), ErrorKind::InvalidArgument),
    ] {
        let result = place.database.query(text, vec![param], 0).await;
        assert_eq!(kind(result), expected, "{text}");
    }
    assert_eq!(kind(place.run("SELECT $1::int4").await), ErrorKind::InvalidArgument, "a parameter is missing");
    place.end().await;
}

#[tokio::test]
async fn a_reply_ends_at_its_bound_but_not_before_its_first_row() {
    let place = Place::new().await;
    for (max_bytes, expected, more) in [(1, 1, true), (240, 10, true), (24_000, 1000, false), (0, 0, false)] {
        let rows = place
            .database
            .query("SELECT * FROM generate_series(1, 1000) AS i(n)", Vec::new(), max_bytes)
            .await
            .unwrap();
        assert!(
            (rows.cells.len(), rows.more) == (expected, more) || (expected == 10 && rows.cells.len() < 20 && rows.more),
            "{max_bytes}: {}",
            rows.cells.len()
        );
    }
    assert_eq!(place.run("SELECT 1").await.unwrap().cells, [SqlValue::Integer(1)], "the connection goes on");
    place.end().await;
}

#[tokio::test]
async fn what_is_denied_changes_nothing() {
    let place = Place::with_table().await;
    for text in [
        "SELECT set_config('statement_timeout', '0', false)",
        "SELECT query_to_xml('select 1', true, true, '')",
        "SELECT 1; DELETE FROM t",
        "COMMIT",
        "DROP TABLE t",
        "UPDATE pg_settings SET setting = '0' WHERE name = 'statement_timeout'",
    ] {
        assert_eq!(kind(place.run(text).await), ErrorKind::Denied, "{text}");
        let mut transaction = place.database.begin(None, false).await.unwrap();
        assert_eq!(kind(transaction.query(text, Vec::new(), 100).await), ErrorKind::Denied, "{text}");
        insert(&mut transaction, "x").await.unwrap();
        transaction.rollback().await.unwrap();
    }
    let rows = place.run("SELECT current_setting('statement_timeout'), count(*) FROM t").await.unwrap();
    assert_eq!(rows.cells, [text("700ms"), SqlValue::Integer(0)]);
    place.end().await;
}

#[tokio::test]
async fn errors_have_the_kind_of_what_a_caller_can_do() {
    let place = Place::with_table().await;
    place.run("INSERT INTO t (id, n) VALUES ('a', 1)").await.unwrap();
    for (text, expected) in [
        ("INSERT INTO t (id, n) VALUES ('a', 1)", ErrorKind::AlreadyExists),
        ("INSERT INTO t (id) VALUES ('b')", ErrorKind::Rejected),
        ("INSERT INTO t VALUES ('b', 1, 'c')", ErrorKind::Rejected),
        ("INSERT INTO t VALUES ('a long text that does not fit', 1)", ErrorKind::Rejected),
        ("SELECT no FROM t", ErrorKind::InvalidArgument),
        ("SELECT 1 FROM nothing", ErrorKind::InvalidArgument),
        ("SELECT 1 / 0", ErrorKind::InvalidArgument),
        ("SELECT FROM FROM", ErrorKind::InvalidArgument),
    ] {
        let error = place.run(text).await.unwrap_err();
        assert_eq!((error.kind, error.retry), (expected, Retry::Never), "{text}: {error}");
    }
    place.end().await;
}

#[tokio::test]
async fn a_transaction_is_committed_rolled_back_or_dropped() {
    let place = Place::with_table().await;
    for (id, end) in [("committed", 0), ("rolled back", 1), ("dropped", 2)] {
        let mut transaction = place.database.begin(None, false).await.unwrap();
        insert(&mut transaction, id).await.unwrap();
        match end {
            0 => transaction.commit().await.unwrap(),
            1 => transaction.rollback().await.unwrap(),
            _ => drop(transaction),
        }
    }
    assert_eq!(place.run("SELECT id FROM t").await.unwrap().cells, [text("committed")]);
    place.end().await;
}

#[tokio::test]
async fn a_failed_statement_ends_a_transaction_and_a_failed_attempt_does_not() {
    let place = Place::with_table().await;
    let mut transaction = place.database.begin(None, false).await.unwrap();
    insert(&mut transaction, "a").await.unwrap();
    let again = "INSERT INTO t (id, n) VALUES ('a', 1)";
    assert_eq!(kind(transaction.attempt(again, Vec::new(), 0).await), ErrorKind::AlreadyExists);
    assert_eq!(transaction.attempt("INSERT INTO t (id, n) VALUES ('b', 1)", Vec::new(), 0).await.unwrap().affected, 1);
    transaction.commit().await.unwrap();

    let mut transaction = place.database.begin(None, false).await.unwrap();
    insert(&mut transaction, "c").await.unwrap();
    assert_eq!(kind(transaction.query(again, Vec::new(), 0).await), ErrorKind::AlreadyExists);
    assert_eq!(kind(insert(&mut transaction, "d").await), ErrorKind::InvalidArgument);
    assert_eq!(kind(transaction.commit().await), ErrorKind::InvalidArgument, "it is not called a success");
    assert_eq!(place.run("SELECT id FROM t ORDER BY id").await.unwrap().cells, [text("a"), text("b")]);
    place.end().await;
}

#[tokio::test]
async fn rows_are_copied_in_all_or_none() {
    let place = Place::with_table().await;
    let columns = ["id", "n", "up"].map(str::to_owned);
    let mut transaction = place.database.begin_bulk().await.unwrap();
    assert_eq!(transaction.copy_in("t", &columns, b"a\t1\t\\N\nb\\tc\t2\ta\n".to_vec()).await.unwrap(), 2);
    transaction.commit().await.unwrap();
    place.database.sync().await.unwrap();
    for (data, expected) in [
        ("c\t1\t\\N\na\t1\t\\N\n", ErrorKind::AlreadyExists),
        ("c\t1\t\\N\nd\tx\t\\N\n", ErrorKind::InvalidArgument),
        ("c\t1\n", ErrorKind::InvalidArgument),
    ] {
        let mut transaction = place.database.begin_bulk().await.unwrap();
        assert_eq!(kind(transaction.copy_in("t", &columns, data.into()).await), expected, "{data}");
        transaction.rollback().await.unwrap();
    }
    let mut transaction = place.database.begin_bulk().await.unwrap();
    let name = "t\" (id) FROM PROGRAM 'id' --";
    assert_eq!(kind(transaction.copy_in(name, &columns, Vec::new()).await), ErrorKind::InvalidArgument);
    transaction.rollback().await.unwrap();
    assert_eq!(place.run("SELECT id FROM t ORDER BY id").await.unwrap().cells, [text("a"), text("b\tc")]);
    place.end().await;
}

#[tokio::test]
async fn a_read_only_transaction_keeps_its_view_and_does_not_write() {
    let place = Place::with_table().await;
    let mut reading = place.database.begin(Some(Isolation::RepeatableRead), true).await.unwrap();
    assert!(reading.query("SELECT id FROM t", Vec::new(), 100).await.unwrap().cells.is_empty());
    place.run("INSERT INTO t (id, n) VALUES ('a', 1)").await.unwrap();
    assert!(reading.query("SELECT id FROM t", Vec::new(), 100).await.unwrap().cells.is_empty());
    assert_eq!(kind(reading.attempt("DELETE FROM t", Vec::new(), 0).await), ErrorKind::Denied);
    assert_eq!(kind(reading.attempt("EXPLAIN ANALYZE DELETE FROM t", Vec::new(), 0).await), ErrorKind::Denied);
    reading.rollback().await.unwrap();
    assert_eq!(place.run("SELECT id FROM t").await.unwrap().cells, [text("a")]);
    place.end().await;
}

#[tokio::test]
async fn transactions_that_cannot_both_be_are_conflicts() {
    let place = Place::with_table().await;
    place.run("INSERT INTO t (id, n) VALUES ('a', 1), ('b', 1)").await.unwrap();
    let mut one = place.database.begin(None, false).await.unwrap();
    let mut other = place.database.begin(None, false).await.unwrap();
    for (transaction, write) in [(&mut one, "a"), (&mut other, "b")] {
        transaction.query("SELECT sum(n) FROM t", Vec::new(), 100).await.unwrap();
        transaction.query("UPDATE t SET n = 0 WHERE id = $1", vec![text(write)], 0).await.unwrap();
    }
    one.commit().await.unwrap();
    let error = other.commit().await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::VersionConflict, Retry::Safe), "{error}");

    // A circle of locks.
    let place = Place::with(|settings| settings.timeout = Duration::from_secs(20)).await;
    place.run("CREATE TABLE t (id TEXT PRIMARY KEY, n INT)").await.unwrap();
    place.run("INSERT INTO t (id, n) VALUES ('a', 1), ('b', 1)").await.unwrap();
    let lock = |id: &'static str| ("SELECT id FROM t WHERE id = $1 FOR UPDATE", vec![text(id)]);
    let mut transactions = Vec::new();
    for (first, second) in [("a", "b"), ("b", "a")] {
        let mut transaction = place.database.begin(Some(Isolation::ReadCommitted), false).await.unwrap();
        let (text, params) = lock(first);
        transaction.query(text, params, 100).await.unwrap();
        transactions.push((transaction, second));
    }
    let tasks = transactions.into_iter().map(|(mut transaction, second)| {
        tokio::spawn(async move {
            let (text, params) = lock(second);
            let result = transaction.query(text, params, 100).await;
            transaction.rollback().await.unwrap();
            result
        })
    });
    let mut results = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        results.push(task.await.unwrap());
    }
    let conflicts: Vec<_> =
        results.into_iter().filter_map(Result::err).map(|error| (error.kind, error.retry)).collect();
    assert_eq!(conflicts, [(ErrorKind::VersionConflict, Retry::Safe)]);
    place.end().await;
}

#[tokio::test]
async fn a_lock_that_is_not_released_and_a_statement_without_end_time_out() {
    let place = Place::with_table().await;
    place.run("INSERT INTO t (id, n) VALUES ('a', 1)").await.unwrap();
    let mut holder = place.database.begin(None, false).await.unwrap();
    holder.query("SELECT id FROM t FOR UPDATE", Vec::new(), 100).await.unwrap();
    for text in [
        "UPDATE t SET n = 2",
        "SELECT count(*) FROM generate_series(1, 1000000) AS a, generate_series(1, 1000000) AS b",
    ] {
        let started = Instant::now();
        let error = place.run(text).await.unwrap_err();
        assert_eq!((error.kind, error.retry), (ErrorKind::Timeout, Retry::Safe), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5), "the server itself stopped");
    }
    holder.rollback().await.unwrap();
    place.run("UPDATE t SET n = 2").await.unwrap();
    place.end().await;
}

#[tokio::test]
async fn the_pool_lends_no_more_than_it_has_and_keeps_no_more_than_it_should() {
    let place = Place::with_table().await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(place.database.begin(None, true).await.unwrap());
    }
    assert_eq!(place.database.connections(), Connections { open: 4, idle: 0, kept: 2, max: 4 });
    let error = place.run("SELECT 1").await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Timeout, Retry::Safe), "{error}");
    for transaction in held {
        transaction.rollback().await.unwrap();
    }
    let mut connection = place.connection().await;
    let mut open = -1;
    // They wait a moment for the next caller.
    for _ in 0..500 {
        let count =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'larder' AND datname = current_database()";
        open = connection.fetch_one(count).await.unwrap().get::<i64, _>(0);
        if open == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(open, 2);
    assert_eq!(place.database.connections(), Connections { open: 2, idle: 2, kept: 2, max: 4 });
    place.database.close().await;
    assert_eq!(place.database.connections().open, 0);
    place.run("SELECT 1").await.unwrap();
    place.end().await;
}

#[tokio::test]
async fn an_old_connection_is_replaced_and_a_call_that_is_given_up_leaves_none_behind() {
    let place = Place::with(|settings| {
        settings.pool_recycle = Some(Duration::from_millis(50));
        settings.query_cache = false;
    })
    .await;
    let backend = "SELECT pg_catalog.pg_backend_pid()";
    assert_eq!(kind(place.run(backend).await), ErrorKind::Denied);
    let start = "SELECT clock_timestamp()::text";
    place.run(start).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    place.run(start).await.unwrap();
    assert_eq!(place.database.connections().open, 1);

    let endless = "SELECT count(*) FROM generate_series(1, 1000000) AS a, generate_series(1, 1000000) AS b";
    let given_up = tokio::time::timeout(Duration::from_millis(100), place.run(endless)).await;
    assert!(given_up.is_err());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(place.database.connections().open, 0, "it may be in the middle of something");
    place.run(start).await.unwrap();
    place.end().await;
}

#[tokio::test]
async fn a_connection_that_the_server_ended_is_replaced_without_a_word() {
    let place = Place::with_table().await;
    let kill = async || {
        let mut connection = place.connection().await;
        let text = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE application_name = 'larder' AND datname = current_database()";
        connection.execute(text).await.unwrap();
    };
    place.run("SELECT 1").await.unwrap();
    kill().await;
    place.run("SELECT 1").await.unwrap();
    kill().await;
    let mut transaction = place.database.begin(None, false).await.unwrap();
    insert(&mut transaction, "a").await.unwrap();
    kill().await;
    // What was done in it is gone, and it says so.
    let error = insert(&mut transaction, "b").await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    transaction.rollback().await.unwrap();
    let mut transaction = place.database.begin(None, false).await.unwrap();
    insert(&mut transaction, "c").await.unwrap();
    kill().await;
    let error = transaction.commit().await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::UnknownOutcome), "{error}");
    assert!(place.run("SELECT id FROM t").await.unwrap().cells.is_empty());
    place.end().await;
}

#[tokio::test]
async fn a_table_that_was_altered_is_seen_at_the_next_call() {
    let place = Place::with_table().await;
    for _ in 0..3 {
        assert_eq!(place.run("SELECT * FROM t").await.unwrap().columns, [""; 0]);
    }
    place.run("INSERT INTO t (id, n) VALUES ('a', 1)").await.unwrap();
    place.run("SELECT * FROM t").await.unwrap();
    place.connection().await.execute("ALTER TABLE t ADD COLUMN more TEXT").await.unwrap();
    assert_eq!(place.run("SELECT * FROM t").await.unwrap().columns, ["id", "n", "up", "more"]);
    place.end().await;
}

#[tokio::test]
async fn who_may_not_connect_learns_why_and_sees_no_secret() {
    let place = Place::new().await;
    let opened = |change: &dyn Fn(&mut PostgresSettings)| {
        let mut settings = place.settings.clone();
        change(&mut settings);
        Database::open_postgres(settings)
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (database, expected, message) in [
        (opened(&|it| it.password = "hunter2".to_owned()), ErrorKind::Unavailable, "password"),
        (opened(&|it| it.username = "nobody_here".to_owned()), ErrorKind::Unavailable, "user"),
        (opened(&|it| it.name = "no_database".to_owned()), ErrorKind::Unavailable, "database of that name"),
        (opened(&|it| it.port = port), ErrorKind::Unavailable, "refused"),
        (opened(&|it| it.host = "/nowhere".to_owned()), ErrorKind::Unavailable, "not found"),
    ] {
        let error = database.query("SELECT 1", Vec::new(), 100).await.unwrap_err();
        assert_eq!(error.kind, expected, "{error}");
        assert!(error.message.contains(message), "{error}");
        for secret in
            ["hunter2", "nobody_here", "no_database", place.settings.password.as_str(), "127.0.0.1", "nowhere"]
        {
            assert!(!error.message.contains(secret), "{error}");
        }
    }
    let superuser = settings(&url("LARDER_TEST_POSTGRES_SUPERUSER"));
    let database = Database::open_postgres(superuser.clone());
    let error = database.query("SELECT 1", Vec::new(), 100).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.message.contains("is a superuser") && error.message.contains("allow_superuser"), "{error}");
    let database = Database::open_postgres(PostgresSettings { allow_superuser: true, ..superuser });
    database.query("SELECT 1", Vec::new(), 100).await.unwrap();
    database.close().await;
    place.end().await;
}
