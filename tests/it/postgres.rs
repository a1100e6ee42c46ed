//! What only a database on a server has: users who may too much or too little, secrets, statements that reach further than
//! the database, a server that is stopped, killed, full or far away, and many clients at once.
//!
//! Whatever happens, a call ends with what was asked for or with an error of the right kind, and nothing is half done:
//! the tests look into the database with connections of their own.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use larder::error::Error;
use larder::query::Select;
use larder::repository::Repository;
use larder_model::{Entity, ErrorKind, Existing, Expectation, Isolation, Retry};
use larder_test_cluster::{Settings, Stop};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::cluster::{Cut, Network, Site, config};
use crate::databases::{Database, Server};
use crate::model::setting;
use crate::place::{Choices, template};
use crate::support::{Folder, Run, guests, object};

/// Not in any test's sentence, and with all that has a meaning somewhere on the way.
const PASSWORD: &str = r#"hush' "%41:/?\é$1"#;

/// A user of the shared server, who is gone with it.
struct User {
    name: String,
}

impl User {
    /// `rights` are those of CREATE ROLE, beside the one to connect.
    async fn new(rights: &str) -> User {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("it_user_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let password = PASSWORD.replace('\'', "''");
        administer(&format!("CREATE ROLE {name} LOGIN PASSWORD '{password}' {rights}")).await;
        User { name }
    }

    /// What `sql_strategy` says of a database for this user.
    fn members(&self, database: &Database) -> String {
        let Server { port, .. } = database.server;
        let (user, name, password) = (&self.name, &database.name, serde_json::Value::from(PASSWORD));
        format!(
            r#""host": "127.0.0.1", "port": {port}, "name": "{name}", "username": "{user}", "password": {password}"#
        )
    }

    async fn remove(self) {
        administer(&format!("DROP ROLE {}", self.name)).await;
    }
}

/// Runs a statement as the superuser of the shared server.
async fn administer(statement: &str) {
    let mut connection = Server::shared_superuser().connect("postgres").await;
    connection
        .execute(AssertSqlSafe(statement.to_owned()))
        .await
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// Runs a statement, for what it does.
async fn run(connection: &mut PgConnection, statement: &str) {
    connection
        .execute(AssertSqlSafe(statement.to_owned()))
        .await
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// The one number that a statement answers.
async fn number(connection: &mut PgConnection, statement: &str) -> i64 {
    let row = connection.fetch_one(AssertSqlSafe(statement.to_owned())).await;
    row.unwrap_or_else(|error| panic!("{statement}: {error}")).get(0)
}

#[track_caller]
fn fails<T: Debug>(result: Result<T, Error>, kinds: &[ErrorKind]) -> Error {
    let error = result.expect_err("an error");
    assert!(kinds.iter().any(|kind| error.is(*kind)), "{error:?} is none of {kinds:?}");
    error
}

/// The error that a run of the program with `--format json` ended with.
#[track_caller]
fn error(run: &Run, code: i32) -> serde_json::Map<String, serde_json::Value> {
    assert_eq!(run.code, code, "{run:#?}");
    object(run.stderr.lines().last().expect("an error"))
}

fn ids(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|n| format!("t{n}")).collect()
}

fn entities(range: std::ops::Range<u64>, more: &str) -> Vec<Entity> {
    ids(range).into_iter().map(|id| Entity { version: 0, body: template(&id, more), id }).collect()
}

async fn save(repository: &Repository, id: &str) -> Result<(), Error> {
    repository.save("templates", &template(id, ""), Expectation::Any).await.map(drop)
}

// Who may connect.

#[tokio::test(flavor = "multi_thread")]
async fn who_may_more_on_the_server_than_use_databases_is_refused() {
    let database = Database::new("powerful");
    let superuser = Server::shared_superuser().members(&database.name);
    let group = User::new("IN ROLE pg_execute_server_program").await;
    let powerful = [
        User::new("IN ROLE pg_read_server_files").await,
        User::new("IN ROLE pg_write_server_files").await,
        User::new("IN ROLE pg_execute_server_program").await,
        // It would have to say SET ROLE first, which somebody could.
        User::new("NOINHERIT IN ROLE pg_read_server_files").await,
        User::new(&format!("IN ROLE {}", group.name)).await,
    ];
    let mut members: Vec<String> = powerful.iter().map(|user| user.members(&database)).collect();
    members.push(superuser.clone());
    for members in members {
        let folder = Folder::new(&config(&members, ""));
        for arguments in [&["count", "templates"][..], &["stores", "prepare"], &["query", "templates"]] {
            let run = folder.larder(&[&["--format", "json"], arguments].concat());
            let error = error(&run, 3);
            assert_eq!((&error["kind"], run.stdout.as_str()), (&"denied".into(), ""), "{error:?}");
            assert!(run.stderr.contains("allow_superuser"), "{run:#?}");
        }
    }
    let mut connection = database.connect().await;
    assert_eq!(number(&mut connection, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, 0);
    for user in powerful.into_iter().chain([group]) {
        user.remove().await;
    }
    // Whoever trusts every plugin may say so.
    let folder = Folder::new(&config(&superuser, r#", "allow_superuser": true"#));
    assert_eq!(folder.larder(&["count", "templates"]).exits(0).stdout, "0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_connect_is_told_why() {
    let database = Database::new("refused");
    let members = database.members();
    let password = &database.server.password;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    for (members, told) in [
        (members.replace(password.as_str(), "wrong-password"), "password"),
        (members.replace("\"larder\"", "\"nobody_of_this_name\""), "user"),
        (members.replace(&database.name, "no_database_of_this_name"), "database"),
        (members.replace(&format!("\"port\": {}", database.server.port), &format!("\"port\": {closed}")), "reached"),
    ] {
        let folder = Folder::new(&config(&members, r#", "pool_timeout": 2"#));
        for arguments in [
            &["count", "templates"][..],
            &["get", "templates", "a"],
            &["query", "templates"],
            &["export"],
            &["stores", "prepare"],
        ] {
            let run = folder.larder(&[&["--format", "json"], arguments].concat());
            let error = error(&run, 4);
            assert_eq!(error["kind"], "unavailable", "{run:#?}");
            assert!(error["message"].as_str().is_some_and(|message| message.contains(told)), "{told}: {error:?}");
            // Never an empty answer.
            assert_eq!(run.stdout, "", "{run:#?}");
            for secret in [password.as_str(), "wrong-password"] {
                assert!(!run.stderr.contains(secret), "{run:#?}");
            }
        }
        let run = folder.larder(&["stores", "check"]);
        assert!(run.code == 4 && !run.stdout.contains("reachable: true"), "{run:#?}");
    }
    // The server is there, and so is the store, for whoever has the right word.
    assert_eq!(Folder::new(&config(&members, "")).larder(&["count", "templates"]).exits(0).stdout, "0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_as_encrypted_as_it_is_to_be() {
    let site = Site::new(Settings::default(), "");
    let certificate = site.folder.path().join("server.crt");
    std::fs::copy(site.cluster.certificate(), &certificate).expect("the server's certificate");
    let other = site.folder.path().join("other.crt");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-subj", "/CN=other", "-keyout", "/dev/null", "-out"])
        .arg(&other)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{made:?}");
    let with = |mode: &str, authority: Option<&Path>| {
        let authority = authority.map(|path| format!(r#", "ssl_root_cert": "{}""#, path.display())).unwrap_or_default();
        let members = format!(r#", "ssl_mode": "{mode}"{authority}"#);
        Folder::new(&config(&site.database.members(), &members)).larder(&["--format", "json", "count", "templates"])
    };
    for mode in ["disable", "allow", "prefer", "require"] {
        with(mode, None).exits(0);
    }
    for mode in ["verify-ca", "verify-full"] {
        with(mode, Some(&certificate)).exits(0);
        // Nobody that the system believes has signed it, nor has this one.
        for authority in [None, Some(other.as_path())] {
            let error = error(&with(mode, authority), 4);
            assert_eq!((&error["kind"], &error["retry"]), (&"unavailable".into(), &"never".into()), "{error:?}");
            assert!(error["message"].as_str().is_some_and(|message| message.contains("ssl_mode")), "{error:?}");
        }
    }

    let plain = Site::new(Settings { parameters: vec![("ssl", "off".to_owned())], ..Settings::default() }, "");
    let with = |mode: &str| {
        let members = format!(r#", "ssl_mode": "{mode}""#);
        Folder::new(&config(&plain.database.members(), &members)).larder(&["--format", "json", "count", "templates"])
    };
    with("prefer").exits(0);
    let error = error(&with("require"), 4);
    assert_eq!((&error["kind"], &error["retry"]), (&"unavailable".into(), &"never".into()), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_holds_the_password() {
    let (database, user) = (Database::new("secret"), User::new("").await);
    run(&mut database.connect().await, &format!("GRANT CREATE ON SCHEMA public TO {}", user.name)).await;
    let right = user.members(&database);
    let from_environment = right.replace(&serde_json::Value::from(PASSWORD).to_string(), r#""${LARDER_TEST_SECRET}""#);
    assert_ne!(from_environment, right);
    let wrong = right.replace("hush", "hushed");
    let broken = right.replace(r#""port": "#, r#""port": "x", "prot": "#);
    let entity = String::from_utf8(template("a", "")).expect("UTF-8");
    let mut worked = 0;
    for members in [&right, &from_environment, &wrong, &broken] {
        let folder = Folder::new(&config(members, ""));
        for format in ["text", "json"] {
            for arguments in [
                &["config", "show"][..],
                &["config", "check"],
                &["stores", "list"],
                &["stores", "check"],
                &["stores", "prepare", "--dry-run"],
                &["save", "templates"],
                &["query", "templates", "--explain"],
                &["restore"],
                &["plugins", "list"],
            ] {
                let mut command = folder.command(&[&["--format", format], arguments].concat());
                command.env("LARDER_TEST_SECRET", PASSWORD).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
                let run = crate::support::run_with(command, &entity);
                worked += usize::from(run.code == 0);
                let printed = format!("{}{}", run.stdout, run.stderr);
                assert!(!printed.contains("hush") && !printed.contains("%41"), "{arguments:?}: {run:#?}");
            }
        }
    }
    assert!(worked >= 30, "{worked} commands had a password that is right");
    let folder = Folder::new(&config(&from_environment, ""));
    let run = folder.larder(&["count", "templates"]).exits(2);
    assert!(
        run.stderr.contains("password` needs the environment variable LARDER_TEST_SECRET, which is not set"),
        "{run:#?}"
    );
    // Nor does what a program sees that asks the library.
    let error = Folder::new(&config(&wrong, "")).open("tables").await.count("templates", None).await;
    let error = format!("{error:?}");
    assert!(error.contains("Unavailable") && !error.contains("hush"), "{error}");
    drop(database);
    user.remove().await;
}

// What a component may not send.

/// A puppet with a database, on one connection.
const PUPPET: &str = r#"{
    "storage": {"strategy": "puppet", "grants": {
        "files": {"directory": "@/lent"},
        "sql": {"type": "postgresql", ~lent~, "timeout": 1, "pool_size": 1, "max_overflow": 0}
    }}
}"#;

async fn attempt(puppet: &Repository, deed: &str) -> (String, String) {
    let found = puppet.get("templates", &[deed.to_owned()]).await.unwrap_or_else(|error| panic!("{deed}: {error:?}"));
    let members = object(found[0].as_ref().expect("an answer").body.as_slice());
    let text = |name: &str| members[name].as_str().expect("a text").to_owned();
    (text("answer"), text("value"))
}

/// What a statement could have changed, but in the table: settings of the connection, what there is in the database and
/// on the server.
async fn surroundings(puppet: &Repository, database: &Database) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for setting in [
        "statement_timeout",
        "lock_timeout",
        "search_path",
        "role",
        "session_authorization",
        "standard_conforming_strings",
        "default_transaction_read_only",
        "synchronous_commit",
        "application_name",
        "work_mem",
        "row_security",
    ] {
        all.insert(setting.to_owned(), attempt(puppet, &format!("sql SELECT current_setting('{setting}')")).await.1);
    }
    all.insert("user".to_owned(), attempt(puppet, "sql SELECT current_user::text, session_user::text").await.1);
    let mut connection = Server::shared_superuser().connect(&database.name).await;
    for (name, list) in [
        (
            "relations",
            "SELECT relname::text FROM pg_class WHERE relnamespace >= 16384 OR relnamespace = 'public'::regnamespace",
        ),
        ("columns", "SELECT attname || atttypid FROM pg_attribute WHERE attrelid = 'public.t'::regclass"),
        ("functions", "SELECT proname::text FROM pg_proc WHERE oid >= 16384"),
        ("triggers", "SELECT tgname::text FROM pg_trigger"),
        ("rules", "SELECT rulename::text FROM pg_rewrite WHERE oid >= 16384"),
        ("extensions", "SELECT extname::text FROM pg_extension"),
        ("schemas", "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'"),
        ("languages", "SELECT lanname::text FROM pg_language"),
        ("servers", "SELECT srvname::text FROM pg_foreign_server"),
        ("publications", "SELECT pubname::text FROM pg_publication"),
        ("large objects", "SELECT oid::text FROM pg_largeobject_metadata"),
        ("prepared", "SELECT gid::text FROM pg_prepared_xacts WHERE database = current_database()"),
        ("labels", "SELECT label FROM pg_seclabel"),
        (
            "settings",
            "SELECT setconfig::text FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) OR setrole = 'larder'::regrole",
        ),
        (
            "role",
            "SELECT rolname || rolsuper || rolcreaterole || rolcreatedb || rolconnlimit FROM pg_roles WHERE rolname = 'larder'",
        ),
        (
            "grants",
            "SELECT relname || relacl::text FROM pg_class WHERE relacl IS NOT NULL AND relnamespace = 'public'::regnamespace",
        ),
        ("comments", "SELECT description FROM pg_description WHERE objoid = 'public.t'::regclass"),
        (
            "advisory locks",
            "SELECT objid::text FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        ),
        (
            "table locks",
            "SELECT mode FROM pg_locks WHERE relation = 'public.t'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        ),
        ("file settings", "SELECT name FROM pg_file_settings WHERE sourcefile ~ 'postgresql.auto.conf'"),
        ("rows", "SELECT a::text || coalesce(b, '') FROM public.t"),
    ] {
        let rows = connection.fetch_all(list).await.unwrap_or_else(|error| panic!("{list}: {error}"));
        let mut rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        rows.sort();
        all.insert(name.to_owned(), rows.join(" "));
    }
    all
}

/// Statements that reach further than the rows of the store, in the forms that a guard may overlook. `FILE` is one that
/// the server could write.
const HOSTILE: &[&str] = &[
    // A second statement, also where a string or a comment only looks open.
    "SELECT 1; DROP TABLE t",
    "SELECT 1;;SELECT 2",
    "SELECT 1; -- nothing more <line> DELETE FROM t",
    "SELECT 1 -- nothing more <line>; DELETE FROM t",
    "SELECT 1 --<return>; DELETE FROM t",
    "SELECT 1 /* /* nested */ ; */ ; DELETE FROM t",
    "SELECT '\\'; DELETE FROM t; --'",
    "SELECT E'\\\\'; DELETE FROM t; --'",
    "SELECT $$a$$; DELETE FROM t",
    "SELECT $x$a$y$b$x$; DELETE FROM t",
    "SELECT \"a\"\"\" FROM (SELECT 1 AS \"a\"\"\") AS s; DELETE FROM t",
    "SELECT 1 AS é; DELETE FROM t",
    // Files and programs of the server.
    "COPY t TO 'FILE'",
    "COPY t FROM '/etc/passwd'",
    "COPY t FROM PROGRAM 'touch FILE'",
    "COPY (SELECT 1) TO PROGRAM 'touch FILE'",
    "/* SELECT */ cOpY t TO 'FILE'",
    "COPY t TO STDOUT",
    "COPY t FROM STDIN",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_catalog.pg_read_file('/etc/passwd')",
    "SELECT PG_READ_FILE('/etc/passwd')",
    "SELECT \"pg_read_file\"('/etc/passwd')",
    "SELECT pg_catalog . /* ! */ \"pg_read_file\" -- ! <line> ('/etc/passwd')",
    "SELECT U&\"pg\\005fread_file\"('/etc/passwd')",
    "SELECT U&\"pg!005fread_file\" UESCAPE '!' ('/etc/passwd')",
    "SELECT pg_read_binary_file('/etc/passwd')",
    "SELECT pg_stat_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "SELECT * FROM pg_ls_dir('/')",
    "SELECT * FROM t, LATERAL pg_ls_dir('/') AS names",
    "SELECT pg_ls_logdir()",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, 'FILE')",
    "SELECT lo_create(0)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT pg_current_logfile()",
    // Settings of the connection, the user, the database and the server.
    "SELECT set_config('statement_timeout', '0', false)",
    "SELECT SET_CONFIG /* */ ('statement_timeout', '0', false)",
    "SELECT a FROM t WHERE pg_catalog.set_config('statement_timeout', '0', false) = '0'",
    "WITH s AS (SELECT set_config('search_path', 'x', false) AS x) SELECT * FROM s",
    "INSERT INTO t SELECT 9, set_config('statement_timeout', '0', false)",
    "UPDATE t SET b = set_config('statement_timeout', '0', false)",
    "DELETE FROM t WHERE set_config('statement_timeout', '0', false) = ''",
    "VALUES (set_config('statement_timeout', '0', false))",
    "SET statement_timeout = 0",
    "sEt/**/statement_timeout = 0",
    "SET LOCAL statement_timeout = 0",
    "SET SESSION statement_timeout = 0",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "SET TRANSACTION READ WRITE",
    "SET CONSTRAINTS ALL DEFERRED",
    "SET search_path = pg_temp",
    "RESET ALL",
    "RESET statement_timeout",
    "DISCARD ALL",
    "SHOW data_directory",
    "SELECT * FROM pg_settings",
    "UPDATE pg_settings SET setting = '0' WHERE name = 'statement_timeout'",
    "UPDATE pg_catalog.\"pg_settings\" SET setting = '0' WHERE name = 'statement_timeout'",
    "ALTER SYSTEM SET work_mem = '1GB'",
    "ALTER ROLE larder SET statement_timeout = 0",
    "ALTER ROLE larder SUPERUSER",
    "ALTER USER larder PASSWORD 'x'",
    "ALTER DATABASE postgres SET statement_timeout = 0",
    "SELECT pg_reload_conf()",
    "SELECT pg_rotate_logfile()",
    "SELECT setseed(0.5)",
    // Code that the statement only carries.
    "DO $$BEGIN DELETE FROM t; END$$",
    "DO LANGUAGE plpgsql 'BEGIN DELETE FROM t; END'",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS $f$SELECT 1$f$",
    "CREATE PROCEDURE p() LANGUAGE sql AS 'DELETE FROM t'",
    "CALL p()",
    "CREATE EXTENSION dblink",
    "CREATE LANGUAGE plperlu",
    "CREATE TRIGGER r AFTER INSERT ON t EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE CONSTRAINT TRIGGER r AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE EVENT TRIGGER r ON ddl_command_start EXECUTE FUNCTION f()",
    "CREATE RULE r AS ON INSERT TO t DO ALSO DELETE FROM t",
    "CREATE VIEW seen AS SELECT * FROM t",
    "CREATE OR REPLACE TEMP VIEW seen AS SELECT * FROM t",
    "CREATE MATERIALIZED VIEW seen AS SELECT * FROM t",
    "CREATE AGGREGATE total (int) (sfunc = int4pl, stype = int)",
    "CREATE OPERATOR === (leftarg = int, rightarg = int, function = int4eq)",
    "CREATE CAST (text AS int) WITH INOUT",
    "CREATE DOMAIN d AS int CHECK (pg_sleep(9) IS NOT NULL)",
    "CREATE TYPE mood AS ENUM ('x')",
    "CREATE SCHEMA s CREATE VIEW seen AS SELECT 1",
    "CREATE POLICY p ON t USING (true)",
    "CREATE TABLE u (a int DEFAULT set_config('statement_timeout', '0', false)::int)",
    "CREATE TABLE u (a int CHECK (pg_sleep(9) IS NOT NULL))",
    "CREATE INDEX i ON t (pg_sleep(a))",
    "CREATE TABLE u AS SELECT pg_sleep(9)",
    "CREATE TEMP TABLE t (a int)",
    "CREATE TABLE pg_temp.t (a int)",
    "ALTER TABLE t OWNER TO postgres",
    "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE t DISABLE TRIGGER ALL",
    "ALTER TABLE t SET TABLESPACE pg_default",
    "ALTER TABLE t ADD COLUMN c int DEFAULT pg_sleep(9)::text::int",
    "SELECT query_to_xml('DELETE FROM t', true, true, '')",
    "SELECT query_to_xml_and_xmlschema('SELECT pg_sleep(9)', true, true, '')",
    "SELECT cursor_to_xml('x', 1, true, true, '')",
    "SELECT table_to_xml('pg_shadow', true, true, '')",
    "SELECT schema_to_xml('public', true, true, '')",
    "SELECT database_to_xml(true, true, '')",
    "SELECT ts_stat('SELECT pg_sleep(9)')",
    "SELECT * FROM ts_stat('DELETE FROM t')",
    "SELECT ts_rewrite('a'::tsquery, 'SELECT pg_sleep(9)')",
    "PREPARE p AS DELETE FROM t",
    "EXECUTE p",
    "DEALLOCATE ALL",
    "CREATE TABLE u AS EXECUTE p",
    "EXPLAIN ANALYZE EXECUTE p",
    "EXPLAIN (ANALYZE) CREATE TABLE u AS SELECT 1",
    "DECLARE c CURSOR FOR SELECT 1",
    "FETCH ALL FROM c",
    "CLOSE ALL",
    // Other databases, sessions and users.
    "SELECT dblink('dbname=postgres', 'SELECT 1')",
    "SELECT * FROM dblink('host=127.0.0.1', 'SELECT 1') AS x(a int)",
    "SELECT dblink_connect('dbname=postgres')",
    "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
    "CREATE FOREIGN TABLE u (a int) SERVER s",
    "IMPORT FOREIGN SCHEMA public FROM SERVER s INTO public",
    "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p",
    "CREATE PUBLICATION p FOR TABLE t",
    "CREATE DATABASE another",
    "DROP DATABASE postgres",
    "CREATE TABLESPACE s LOCATION '/tmp'",
    "CREATE ROLE r",
    "GRANT ALL ON t TO PUBLIC",
    "REVOKE ALL ON t FROM larder",
    "GRANT pg_read_server_files TO larder",
    "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
    "REASSIGN OWNED BY larder TO postgres",
    "DROP OWNED BY larder",
    "SECURITY LABEL ON TABLE t IS 'x'",
    "COMMENT ON DATABASE postgres IS 'x'",
    "SELECT * FROM pg_shadow",
    "SELECT * FROM pg_authid",
    "SELECT query FROM pg_stat_activity",
    "SELECT * FROM pg_catalog.\"pg_stat_activity\"",
    "SELECT * FROM pg_hba_file_rules",
    "SELECT * FROM pg_user_mappings",
    "SELECT pg_terminate_backend(1)",
    "SELECT pg_cancel_backend(1)",
    "SELECT pg_switch_wal()",
    "SELECT pg_create_restore_point('x')",
    "SELECT pg_logical_emit_message(true, 'x', 'x')",
    "SELECT pg_create_logical_replication_slot('x', 'pgoutput')",
    "SELECT pg_notify('a', 'b')",
    "LISTEN a",
    "UNLISTEN *",
    "NOTIFY a, 'b'",
    // The host's transactions, and what keeps others waiting.
    "BEGIN",
    "/* */ begin",
    "START TRANSACTION",
    "COMMIT",
    "COMMIT AND CHAIN",
    "END",
    "ROLLBACK",
    "ABORT",
    "SAVEPOINT s",
    "RELEASE SAVEPOINT larder",
    "ROLLBACK TO SAVEPOINT larder",
    "PREPARE TRANSACTION 'x'",
    "COMMIT PREPARED 'x'",
    "LOCK TABLE t",
    "LOCK t IN ACCESS EXCLUSIVE MODE",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_sleep(1000)",
    "SELECT pg_sleep_for('1 day')",
    "SELECT pg_sleep_until('tomorrow')",
    "SELECT count(*) FROM t, pg_sleep(1000)",
    "SELECT repeat('x', 1000000000)",
    "SELECT lpad('x', 1000000000)",
    "VACUUM",
    "VACUUM FULL t",
    "CLUSTER t",
    "REINDEX TABLE t",
    "CHECKPOINT",
    "LOAD 'x'",
    "TRUNCATE t",
    "DROP TABLE t",
    "DROP SCHEMA public CASCADE",
    "SELECT a INTO u FROM t",
    "SELECT a INTO TEMP u FROM t",
    "SELECT txid_current(), pg_export_snapshot()",
    "INSERT INTO pg_description VALUES (1, 1, 1, 'x')",
    "UPDATE pg_class SET relname = 'u' WHERE relname = 't'",
    "DELETE FROM pg_attribute WHERE attname = 'b'",
    "MERGE INTO t USING t AS s ON t.a = s.a WHEN MATCHED THEN DELETE",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_of_a_component_reaches_further_than_its_rows() {
    let folder = Folder::with_databases(PUPPET, &["lent"]);
    let database = &folder.databases()[0];
    let puppet = folder.host_with(&guests()).open(None).await.expect("a store that opens");
    run(&mut database.connect().await, "CREATE TABLE t (a INT PRIMARY KEY, b TEXT); INSERT INTO t VALUES (7)").await;
    // Everybody may write there, the server too.
    let file: PathBuf = std::env::temp_dir().join(format!("{}-was-here", database.name));
    let before = surroundings(&puppet, database).await;
    assert_eq!(before["statement_timeout"], r#"[Text("1s")]"#);
    let mut undisturbed = database.connect().await;
    for statement in HOSTILE {
        let statement = statement.replace("FILE", file.to_str().expect("UTF-8"));
        for verb in ["sql-with-controls", "sql-in-transaction"] {
            let statement = match verb {
                "sql-in-transaction" => statement.replace("<line>", " ").replace("<return>", " "),
                _ => statement.clone(),
            };
            // Without the ends of their lines some are comments.
            if verb == "sql-in-transaction" && statement.contains("--") {
                continue;
            }
            let deed = format!("{verb} {statement}");
            let (answer, value) = attempt(&puppet, &deed).await;
            let is_refused = ["denied", "invalid-argument", "unsupported"].contains(&answer.as_str());
            assert!(is_refused, "{deed}: {answer}: {value}");
            assert_eq!(attempt(&puppet, "sql SELECT a FROM t").await, ("ok".into(), "[Integer(7)]".into()), "{deed}");
        }
        let after = surroundings(&puppet, database).await;
        assert_eq!(after, before, "{statement}");
        assert!(!file.exists(), "{statement}");
    }
    // Nobody else was ended.
    assert_eq!(number(&mut undisturbed, "SELECT count(*) FROM t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bulk_load_and_no_read_only_transaction_of_a_component_does_either() {
    let folder = Folder::with_databases(PUPPET, &["lent"]);
    let database = &folder.databases()[0];
    let puppet = folder.host_with(&guests()).open(None).await.expect("a store that opens");
    run(&mut database.connect().await, "CREATE TABLE t (a INT PRIMARY KEY, b TEXT); INSERT INTO t VALUES (7)").await;
    let file: PathBuf = std::env::temp_dir().join(format!("{}-was-here", database.name));
    let before = surroundings(&puppet, database).await;
    let file_text = file.to_str().expect("UTF-8");
    for (deed, kinds) in [
        // Names and rows of a COPY are names and rows, whatever is in them.
        (format!("sql-copy t\" TO '{file_text}' --|a|8<line>"), &["invalid-argument"][..]),
        (format!("sql-copy t (a) FROM PROGRAM 'touch {file_text}' --|a|8<line>"), &["invalid-argument"]),
        (format!("sql-copy t|a\") FROM PROGRAM 'touch {file_text}' --|8<line>"), &["invalid-argument"]),
        ("sql-copy t<nul>|a|8<line>".to_owned(), &["invalid-argument"]),
        ("sql-copy public.t|a|8<line>".to_owned(), &["invalid-argument"]),
        ("sql-copy pg_class|relname|u<line>".to_owned(), &["denied", "invalid-argument"]),
        ("sql-copy pg_authid|rolname|u<line>".to_owned(), &["denied", "invalid-argument"]),
        ("sql-copy t|a|8<line>nine<line>".to_owned(), &["invalid-argument", "rejected"]),
        ("sql-bulk SET synchronous_commit = off".to_owned(), &["denied"]),
        // A write stays one, however it is dressed up.
        ("sql-read-only EXPLAIN ANALYZE INSERT INTO t VALUES (8)".to_owned(), &["denied"]),
        ("sql-read-only EXPLAIN (ANALYZE, COSTS off) DELETE FROM t".to_owned(), &["denied"]),
        ("sql-read-only WITH d AS (DELETE FROM t RETURNING a) SELECT * FROM d".to_owned(), &["denied"]),
        ("sql-read-only CREATE TABLE u (a int)".to_owned(), &["denied"]),
        ("sql-read-only SELECT a FROM t FOR UPDATE".to_owned(), &["denied"]),
        ("sql-attempt ROLLBACK TO SAVEPOINT larder".to_owned(), &[]),
        // However long it would take.
        (
            "sql WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT count(*) FROM c".to_owned(),
            &["timeout"],
        ),
        ("sql SELECT count(*) FROM generate_series(1, 10000000000000)".to_owned(), &["timeout"]),
    ] {
        let (answer, value) = attempt(&puppet, &deed).await;
        match kinds {
            // The attempt alone is refused.
            [] => assert!(value.starts_with("denied, then"), "{deed}: {answer}: {value}"),
            _ => assert!(kinds.contains(&answer.as_str()), "{deed}: {answer}: {value}"),
        }
        assert_eq!(surroundings(&puppet, database).await, before, "{deed}");
        assert!(!file.exists(), "{deed}");
    }
    // The mark at which the rows end is no way out of them.
    let (answer, value) = attempt(&puppet, "sql-copy t|a|8<line>\\.<line>; DELETE FROM t;<line>").await;
    assert!(answer != "ok" || value == "1", "{answer}: {value}");
    assert_eq!(attempt(&puppet, "sql DELETE FROM t WHERE a = 8").await.0, "ok");
    assert_eq!(surroundings(&puppet, database).await, before);
}

// Outages.

/// A store that does not wait long.
const IMPATIENT: &str =
    r#", "ssl_mode": "disable", "pool_size": 2, "max_overflow": 2, "timeout": 1, "pool_timeout": 1"#;

/// Of every kind of call the error, where each has to have one.
async fn all_fail(repository: &Repository, kinds: &[ErrorKind]) {
    let id = "t0".to_owned();
    for error in [
        fails(repository.get("templates", std::slice::from_ref(&id)).await, kinds),
        fails(repository.query("templates", Select::default()).collect().await, kinds),
        fails(repository.count("templates", None).await, kinds),
        fails(save(repository, "t0").await, kinds),
        fails(repository.patch("templates", "t0", &object(r#"{"n":1}"#), None, None).await, kinds),
        fails(repository.delete("templates", "t0", None).await, kinds),
        fails(repository.load("templates", entities(0..10, ""), Existing::Overwrite).await, kinds),
        fails(repository.stored_collections().await, kinds),
    ] {
        // Nothing was sent, so nobody has to wonder.
        assert_eq!(error.retry, Retry::Safe, "{error:?}");
    }
    let began = repository.begin(None, false).await.map(drop);
    fails(began, kinds);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_unavailable_and_used_again_when_it_is_back() {
    let mut site = Site::new(Settings::default(), IMPATIENT);
    let repository = site.open().await;
    save(&repository, "t0").await.expect("a save");
    for how in [Stop::Orderly, Stop::Immediate, Stop::Killed] {
        site.stop(how);
        all_fail(&repository, &[ErrorKind::Unavailable]).await;
        // A handle that was never connected does not do better.
        let other = site.folder.host().open(Some("tables")).await;
        if let Ok(other) = other {
            fails(other.get_one("templates", "t0").await, &[ErrorKind::Unavailable]);
        }
        site.start_again();
        let found = repository.get_one("templates", "t0").await.expect("an answer").expect("it was saved");
        save(&repository, "t0").await.expect("a save");
        let again = repository.get_one("templates", "t0").await.expect("an answer").expect("it was saved");
        assert_eq!(again.version, found.version + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_between_calls_is_seen_by_nobody() {
    let mut site = Site::new(Settings::default(), IMPATIENT);
    let repository = site.open().await;
    // Every connection of the pool is in use once, so that each of them is old.
    for n in 0..8 {
        save(&repository, &format!("t{n}")).await.expect("a save");
    }
    for how in [Stop::Orderly, Stop::Immediate] {
        for call in 0..5 {
            let (mut first, mut second) =
                (repository.begin(None, true).await.expect("one"), repository.begin(None, true).await.expect("two"));
            first.get("templates", &ids(0..1), false).await.expect("an answer");
            second.get("templates", &ids(0..1), false).await.expect("an answer");
            first.rollback().await.expect("an end");
            second.rollback().await.expect("an end");
            site.stop(how);
            site.start_again();
            match call {
                0 => drop(repository.get("templates", &ids(0..2)).await.expect("an answer")),
                1 => save(&repository, "t0").await.expect("a save"),
                2 => drop(repository.query("templates", Select::default()).collect().await.expect("an answer")),
                3 => drop(repository.load("templates", entities(0..9, ""), Existing::Overwrite).await.expect("a load")),
                _ => repository.begin(None, false).await.expect("a transaction").commit().await.expect("a commit"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_during_a_load_has_whole_batches_and_all_that_were_flushed() {
    const BATCH: u64 = 200;
    let mut choices = Choices::new();
    let mut site = Site::new(Settings::default(), IMPATIENT);
    let mut loaded = 0;
    for how in [Stop::Killed, Stop::Immediate, Stop::Killed] {
        let repository = site.open().await;
        let done = Arc::new(AtomicU64::new(loaded));
        let loading = tokio::spawn({
            let (repository, done) = (repository.clone(), Arc::clone(&done));
            async move {
                loop {
                    let first = done.load(Ordering::SeqCst);
                    let batch = entities(first..first + BATCH, r#","padding":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx""#);
                    match repository.load("templates", batch, Existing::Fail).await {
                        Ok(it) => assert_eq!((it.written, it.refused.len()), (BATCH, 0)),
                        Err(error) => return error,
                    }
                    if let Err(error) = repository.flush().await {
                        return error;
                    }
                    done.store(first + BATCH, Ordering::SeqCst);
                }
            }
        });
        while done.load(Ordering::SeqCst) < loaded + 3 * BATCH {
            assert!(!loading.is_finished(), "{:?}", loading.await);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(choices.below(30_000))).await;
        site.stop(how);
        let error = loading.await.expect("a load that ends");
        assert!(error.is(ErrorKind::Unavailable), "{error:?}");
        site.start_again();

        let acknowledged = done.load(Ordering::SeqCst);
        let mut connection = site.connect().await;
        let there = number(&mut connection, "SELECT count(*) FROM templates").await as u64;
        assert!(there == acknowledged || there == acknowledged + BATCH, "{there} of {acknowledged}: a part of a batch");
        let found = repository.get("templates", &ids(0..there)).await.expect("an answer");
        assert!(found.iter().all(Option::is_some), "what was acknowledged is not what is there");
        loaded = there;
        repository.close().await.expect("a store that closes");
    }
    println!("{loaded} entities loaded beside three deaths");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_during_a_transaction_has_nothing_of_it() {
    let mut site = Site::new(Settings::default(), IMPATIENT);
    let repository = site.open().await;
    save(&repository, "before").await.expect("a save");
    for (how, call) in [(Stop::Killed, 0), (Stop::Immediate, 1), (Stop::Orderly, 2), (Stop::Killed, 2)] {
        let mut transaction = repository.begin(None, false).await.expect("a transaction");
        transaction.save("templates", &template("within", ""), Expectation::Any).await.expect("a save");
        transaction.delete("templates", "before", None).await.expect("a delete");
        site.stop(how);
        match call {
            0 => {
                fails(transaction.get("templates", &ids(0..1), false).await, &[ErrorKind::Unavailable]);
                fails(transaction.commit().await, &[ErrorKind::Unavailable, ErrorKind::InvalidArgument]);
            }
            1 => {
                let written = transaction.save("templates", &template("more", ""), Expectation::Any).await;
                fails(written, &[ErrorKind::Unavailable]);
                drop(transaction);
            }
            // Whether a commit got there, nobody can say who only sees the connection end.
            _ => {
                let error = fails(transaction.commit().await, &[ErrorKind::Unavailable]);
                assert_eq!(error.retry, Retry::UnknownOutcome, "{error:?}");
            }
        }
        site.start_again();
        let mut connection = site.connect().await;
        assert_eq!(number(&mut connection, "SELECT count(*) FROM templates WHERE template_id = 'before'").await, 1);
        assert_eq!(number(&mut connection, "SELECT count(*) FROM templates").await, 1, "a part of a transaction");
        save(&repository, "before").await.expect("a save after it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_connection_left_says_so_and_serves_again() {
    let settings = Settings { connections_max: 8, ..Settings::default() };
    let site = Site::new(settings, IMPATIENT);
    let entity = String::from_utf8(template("t0", "")).expect("UTF-8");
    site.folder.larder_with(&["save", "templates"], &entity).exits(0);
    // It is connected when it is used. The server keeps three connections for its superuser.
    let repository = site.open().await;
    let mut others = Vec::new();
    while let Ok(connection) = site.database.server.try_connect(&site.database.name).await {
        others.push(connection);
    }
    assert!((3..8).contains(&others.len()), "{} connections", others.len());
    all_fail(&repository, &[ErrorKind::Unavailable, ErrorKind::Timeout]).await;
    others.clear();
    // The server learns of their end a moment later.
    let deadline = Instant::now() + Duration::from_secs(10);
    while repository.get_one("templates", "t0").await.is_err() {
        assert!(Instant::now() < deadline, "it never serves again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    save(&repository, "t0").await.expect("a save");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_a_connection_left_times_out_and_serves_again() {
    let database = Database::new("pool");
    // A call waits for what runs it as well, and for that as long as a call may take.
    let impatient = config(&database.members(), IMPATIENT).replacen('{', r#"{"plugins": {"call_timeout": 2}, "#, 1);
    let folder = Folder::new(&impatient);
    let repository = folder.open("tables").await;
    save(&repository, "t0").await.expect("a save");
    let mut transactions = Vec::new();
    for _ in 0..4 {
        transactions.push(repository.begin(None, true).await.expect("a transaction"));
    }
    all_fail(&repository, &[ErrorKind::Timeout]).await;
    transactions.pop();
    repository.get_one("templates", "t0").await.expect("an answer").expect("it was saved");
    save(&repository, "t0").await.expect("a save");
    drop(transactions);
    // What was dropped is rolled back, and of the connections as many stay as are kept.
    database.has_at_most(2).await;
    save(&repository, "t0").await.expect("a save");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_somebody_elses_lock_times_out_and_has_written_nothing() {
    let database = Database::new("locks");
    let folder = Folder::new(&config(&database.members(), IMPATIENT));
    let repository = folder.open("tables").await;
    for n in 0..2 {
        save(&repository, &format!("t{n}")).await.expect("a save");
    }
    let mut other = database.connect().await;

    run(&mut other, "BEGIN").await;
    run(&mut other, "SELECT 1 FROM templates WHERE template_id = 't0' FOR UPDATE").await;
    let started = Instant::now();
    let error = fails(save(&repository, "t0").await, &[ErrorKind::Timeout]);
    assert_eq!(error.retry, Retry::Safe, "{error:?}");
    // All or nothing: the other one is not locked.
    let writes = ["t1", "t0"].map(|id| {
        larder_model::Write::Put(larder_model::Put {
            collection: "templates".into(),
            id: id.into(),
            body: template(id, ""),
            expect: Expectation::Any,
        })
    });
    fails(repository.apply(writes.into(), true).await, &[ErrorKind::Timeout]);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // Others go on meanwhile, and reading waits for no writer.
    save(&repository, "t2").await.expect("a save of another entity");
    assert_eq!(repository.get_one("templates", "t0").await.expect("an answer").expect("it is there").version, 1);
    run(&mut other, "ROLLBACK").await;

    run(&mut other, "BEGIN").await;
    run(&mut other, "LOCK TABLE templates IN ACCESS EXCLUSIVE MODE").await;
    fails(repository.get_one("templates", "t0").await, &[ErrorKind::Timeout]);
    fails(repository.count("templates", None).await, &[ErrorKind::Timeout]);
    fails(repository.query("templates", Select::default()).collect().await, &[ErrorKind::Timeout]);
    run(&mut other, "ROLLBACK").await;

    for (n, version) in [(0, 1), (1, 1), (2, 1)] {
        let found = repository.get_one("templates", &format!("t{n}")).await.expect("an answer").expect("it is there");
        assert_eq!(found.version, version, "t{n}");
    }
    save(&repository, "t0").await.expect("a save");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_limit_and_what_was_stored_stays() {
    assert!(
        larder_test_cluster::is_superuser(),
        "only root can make a small disk for a server, which this test needs: run it as root"
    );
    let settings = Settings { disk_bytes_max: Some(80 << 20), ..Settings::default() };
    let site = Site::new(settings, r#", "ssl_mode": "disable""#);
    let repository = site.open().await;
    let mut connection = site.connect().await;
    run(&mut connection, "CREATE TABLE filler AS SELECT n, md5(n::text) FROM generate_series(1, 100000) AS n").await;
    // What cannot be made smaller.
    let mut choices = Choices::new();
    let mut padding = || {
        let text: String = (0..60_000).map(|_| char::from(b'a' + choices.below(26) as u8)).collect();
        format!(r#","padding":"{text}""#)
    };
    let mut loaded = 0;
    let error = loop {
        let batch = entities(loaded..loaded + 20, &padding());
        match repository.load("templates", batch, Existing::Fail).await {
            Ok(_) => loaded += 20,
            Err(error) => break error,
        }
        assert!(loaded < 10_000, "the disk is not full");
    };
    assert!(error.is(ErrorKind::LimitExceeded), "{error:?}");
    assert_eq!(number(&mut connection, "SELECT count(*) FROM templates").await as u64, loaded, "a part of a batch");
    // Not smaller than the room that a page may have left.
    let large = template("large", &(0..6).map(|n| padding().replace("padding", &format!("p{n}"))).collect::<String>());
    let saved = repository.save("templates", &large, Expectation::Any).await;
    fails(saved, &[ErrorKind::LimitExceeded]);
    let found = repository.get("templates", &ids(0..loaded)).await.expect("an answer");
    assert!(found.iter().all(Option::is_some), "what was stored is gone");
    run(&mut connection, "DROP TABLE filler").await;
    repository.save("templates", &large, Expectation::Any).await.expect("a save where there is room again");
    println!("the disk was full after {loaded} entities of 60 kB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_of_unknown_outcome_and_nothing_is_half_done() {
    let database = Database::new("network");
    let network = Network::before(database.server.port).await;
    let members = database
        .members()
        .replace(&format!("\"port\": {}", database.server.port), &format!("\"port\": {}", network.port));
    let folder = Folder::new(&config(&members, IMPATIENT));
    let repository = folder.open("tables").await;
    save(&repository, "warm").await.expect("a save through the network");
    let mut connection = database.connect().await;
    let mut cuts = network.cuts();
    for (round, cut) in [Cut::After, Cut::Before, Cut::Silence, Cut::After, Cut::Before].into_iter().enumerate() {
        for call in ["save", "apply", "load", "commit"] {
            let id = |n: usize| format!("{call}-{round}-{n}");
            let put = |n: usize| {
                larder_model::Write::Put(larder_model::Put {
                    collection: "templates".into(),
                    id: id(n),
                    body: template(&id(n), ""),
                    expect: Expectation::Absent,
                })
            };
            let (result, written) = match call {
                "save" => {
                    network.cut(cut).await;
                    (save(&repository, &id(0)).await, 1)
                }
                "apply" => {
                    network.cut(cut).await;
                    (repository.apply(vec![put(0), put(1)], true).await.map(drop), 2)
                }
                "load" => {
                    let batch = (0..30).map(|n| Entity { id: id(n), version: 0, body: template(&id(n), "") }).collect();
                    network.cut(cut).await;
                    (repository.load("templates", batch, Existing::Fail).await.map(drop), 30)
                }
                _ => {
                    let mut transaction = repository.begin(None, false).await.expect("a transaction");
                    transaction.apply(vec![put(0), put(1), put(2)]).await.expect("writes");
                    network.cut(cut).await;
                    (transaction.commit().await, 3)
                }
            };
            let at = format!("{call}, {cut:?}");
            cuts += 1;
            assert_eq!(network.cuts(), cuts, "{at}: no commit was sent");
            let error = result.expect_err(&at);
            assert!(error.is(ErrorKind::Unavailable) || error.is(ErrorKind::Timeout), "{at}: {error:?}");
            // The store cannot know on which side of the commit it was.
            assert_eq!(error.retry, Retry::UnknownOutcome, "{at}: {error:?}");
            let list = format!("SELECT count(*) FROM templates WHERE template_id LIKE '{call}-{round}-%'");
            let expected = if cut == Cut::Before { 0 } else { written };
            assert_eq!(number(&mut connection, &list).await, expected, "{at}");
            // The next one goes through.
            save(&repository, "warm").await.unwrap_or_else(|error| panic!("after {at}: {error:?}"));
        }
    }
}

// Many at once.

/// How long each kind of call took.
type Took = BTreeMap<&'static str, Vec<Duration>>;

fn report(who: &str, seconds: u64, took: &mut Took) {
    for (call, times) in took {
        times.sort();
        let part = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        println!("{who}, {seconds} s: {} × {call}, median {:?}, p99 {:?}", times.len(), part(50), part(99));
    }
}

/// Reads and saves as a program without larder would send them, over a pool of the same size.
async fn without_larder(database: &Database, clients: u64, connections: i64, seconds: u64) -> Took {
    const READ: &str = "SELECT template_id, name, provider_api, vm_type, max_number, created_at::text, version, larder_extra \
                        FROM templates WHERE template_id = $1";
    let options = database.server.options(&database.name);
    let pool = PgPoolOptions::new().max_connections(connections as u32).connect_with(options).await.expect("a pool");
    let until = Instant::now() + Duration::from_secs(seconds);
    let tasks = (0..clients).map(|client| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut took = Took::new();
            for n in 0.. {
                if Instant::now() >= until {
                    break;
                }
                let id = format!("c{client}-{}", n % 20);
                let started = Instant::now();
                sqlx::query(READ).bind(&id).fetch_optional(&pool).await?;
                took.entry("get").or_default().push(started.elapsed());
                let started = Instant::now();
                let mut transaction = pool.begin().await?;
                let locked = AssertSqlSafe(format!("{READ} FOR NO KEY UPDATE"));
                sqlx::query(locked).bind(&id).fetch_optional(&mut *transaction).await?;
                sqlx::query(
                    "INSERT INTO templates (template_id, name, provider_api, vm_type, max_number, version) \
                     VALUES ($1, 'Pool', 'RunInstances', 't3.medium', 10, 1) \
                     ON CONFLICT (template_id) DO UPDATE SET version = templates.version + 1",
                )
                .bind(&id)
                .execute(&mut *transaction)
                .await?;
                transaction.commit().await?;
                took.entry("save").or_default().push(started.elapsed());
            }
            Ok::<_, sqlx::Error>(took)
        })
    });
    let mut took = Took::new();
    for client in tasks.collect::<Vec<_>>() {
        for (call, mut times) in client.await.expect("a client").expect("statements without an error") {
            took.entry(call).or_default().append(&mut times);
        }
    }
    pool.close().await;
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_clients_share_a_pool_and_leave_no_connection_behind() {
    const CLIENTS: u64 = 64;
    const KEPT: i64 = 20;
    let seconds = setting("LARDER_CLIENTS_SECONDS").unwrap_or(5);
    let database = Database::new("clients");
    let folder = Folder::new(&config(&database.members(), r#", "pool_size": 20, "max_overflow": 30"#));
    let host = folder.host();
    let repository = host.open(Some("tables")).await.expect("a store that opens");
    repository.prepare(false, false).await.expect("tables");
    let mut choices = Choices::new();
    let until = Instant::now() + Duration::from_secs(seconds);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (repository, mut choices) = (repository.clone(), choices.split());
            tokio::spawn(async move {
                let mut took = Took::new();
                let mut versions: BTreeMap<String, u64> = BTreeMap::new();
                while Instant::now() < until {
                    let id = format!("c{client}-{}", choices.below(20));
                    let started = Instant::now();
                    let call = match choices.below(10) {
                        0..4 => {
                            let found = repository.get_one("templates", &id).await?;
                            // What it wrote last is what it reads.
                            assert_eq!(found.map(|found| found.version), versions.get(&id).copied());
                            "get"
                        }
                        4..8 => {
                            let saved = repository.save("templates", &template(&id, ""), Expectation::Any).await?;
                            versions.insert(id, saved.1.version);
                            "save"
                        }
                        8 => {
                            let filter = Some("name=Pool".parse().expect("a filter"));
                            let select = Select { filter, limit: Some(10), ..Select::default() };
                            repository.query("templates", select).collect().await?;
                            "query"
                        }
                        _ => {
                            let isolation = Some(Isolation::ReadCommitted);
                            let mut transaction = repository.begin(isolation, false).await?;
                            let (_, outcome) =
                                transaction.save("templates", &template(&id, ""), Expectation::Any).await?;
                            if choices.below(2) == 0 {
                                transaction.commit().await?;
                                versions.insert(id, outcome.version);
                            }
                            "transaction"
                        }
                    };
                    took.entry(call).or_default().push(started.elapsed());
                }
                Ok::<_, Error>(took)
            })
        })
        .collect();
    let mut took = Took::new();
    for client in clients {
        for (call, mut times) in client.await.expect("a client").expect("calls without an error") {
            took.entry(call).or_default().append(&mut times);
        }
    }
    report("larder", seconds, &mut took);
    report("the same statements", seconds, &mut without_larder(&database, CLIENTS, KEPT + 30, seconds).await);
    assert!(took.len() == 4 && took.values().all(|times| times.len() > 10), "hardly anything was done");
    // Those under load are gone, and so is what transactions that were dropped held.
    database.has_at_most(KEPT).await;
    let mut connection = database.connect().await;
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    assert_eq!(number(&mut connection, idle).await, 0);
    drop(connection);
    repository.get_one("templates", "c0-0").await.expect("an answer");
    drop(repository);
    let problems = host.close().await;
    assert!(problems.is_empty(), "{problems:?}");
    database.is_left_alone().await;
}
