//! Migrations beside the tools that people use for them, as whole processes from start to end, and beside the loop that one
//! would write instead.
//!
//! Larder verifies what it moved, and no other contestant does. Each of them gets the machines in the form that it reads
//! best, and each makes the same of them: one table with a column for each field and a primary key. What larder makes by
//! default, with requests and templates, foreign keys and indexes, stands in rows of its own that are held against nothing.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use larder_test_cluster::{Cluster, ROLE, Settings as ClusterSettings};
use serde_json::{Map, Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row as _};
use tokio::runtime::Runtime;

use crate::Settings;
use crate::boundary::Machine;
use crate::measure::{printed, take_turns, timed};
use crate::report::{Row, Section};
use crate::statements::{Database, INSERTED, POSTGRES_VALUES, Place, Program, SQLITE_VALUES, bind};

/// Larder takes at most a third of the time of `sqlite-utils`,
const SQLITE_UTILS_RATIO_MAX: f64 = 1.0 / 3.0;
/// no more than the tools that fill PostgreSQL,
const POSTGRES_RATIO_MAX: f64 = 1.0;
/// and at most this many times what a loop takes that verifies nothing.
const LOOP_RATIO_MAX: f64 = 2.5;

/// These hold for so many machines: of fewer, most is what a process takes to start.
const JUDGED_FROM: usize = 100_000;

/// A round takes half a minute.
const ROUNDS_MAX: usize = 5;

/// The table of a loop.
const TABLE: &str = "CREATE TABLE machines (machine_id TEXT PRIMARY KEY, request_id TEXT, template_id TEXT, status TEXT, \
                     instance_type TEXT, private_ip TEXT, created_at TIMESTAMP, version BIGINT)";
const COUNT: &str = "SELECT count(*) FROM machines";
/// The configuration whose `machines` are as they come, and the one with the collections that larder knows.
const PLAIN: &str = "plain.json";
const WHOLE: &str = "whole.json";

/// Names the database in the configuration.
const DATABASE_VARIABLE: &str = "BENCH_DATABASE";

/// The sample machines, from a document and from a database.
pub(crate) fn measure(settings: &Settings, runtime: &Runtime) -> Result<Vec<Section>> {
    let cluster = Cluster::start(&settings.postgres, ClusterSettings { fsync: true, ..ClusterSettings::default() })?;
    let (port, password) = (cluster.port(), cluster.password().to_owned());
    let postgres = Place::Postgres(Box::new(cluster));
    let section = |title, peer| Section { title, peer, rows: Vec::new() };
    let mut utils = section("JSON to SQLite, as a process", "sqlite-utils");
    let mut pgloader = section("SQLite to PostgreSQL, as a process", "pgloader");
    let mut ingestr = section("JSON to PostgreSQL, as a process", "ingestr");
    let mut loops = section("A migration, and a loop that verifies nothing", "the loop");
    for &count in settings.counts() {
        let folder = settings.folder()?;
        let bench = Bench { settings, runtime, folder: folder.path(), postgres: &postgres, count };
        bench.write_files(port, &password)?;
        bench.json_to_sqlite(&mut utils, &mut loops)?;
        bench.sqlite_to_postgres(&mut pgloader, &mut loops)?;
        bench.json_to_postgres(&mut ingestr, &mut loops)?;
    }
    Ok(vec![utils, pgloader, ingestr, loops])
}

/// The label of a row about larder's own tables.
fn with_all(what: &str) -> String {
    format!("{what}, with what they refer to, foreign keys and indexes")
}

/// So many machines in a folder, and where they may go.
struct Bench<'a> {
    settings: &'a Settings,
    runtime: &'a Runtime,
    folder: &'a Path,
    postgres: &'a Place,
    count: usize,
}

impl Bench<'_> {
    /// Documents for larder, the same machines as an array and in databases, and the configurations.
    fn write_files(&self, port: u16, password: &str) -> Result<()> {
        let document = larder_samples::machines(self.count, larder_samples::SEED);
        let parsed: Map<String, Value> = serde_json::from_str(&document)?;
        let machines = parsed["machines"].as_object().context("the sample has machines")?;
        fs::write(self.folder.join("machines.json"), Value::from_iter(machines.values().cloned()).to_string())?;
        let sqlite = |name: &str| json!({"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": name}});
        let server = json!({
            "type": "postgresql", "host": "127.0.0.1", "port": port, "name": format!("${{{DATABASE_VARIABLE}}}"),
            "username": ROLE, "password": password, "ssl_mode": "disable",
        });
        let fields = ["request_id", "template_id", "status", "instance_type", "private_ip"].map(|name| (name, "text"));
        let fields = fields.into_iter().chain([("created_at", "timestamp"), ("version", "integer")]);
        let fields: Map<String, Value> = fields.map(|(name, kind)| (name.to_owned(), json!({"type": kind}))).collect();
        let plain = json!({"machines": {"key": "machine_id", "updated_at": null, "fields": fields}});
        for (config, collections, content) in
            [(PLAIN, plain, json!({"machines": machines}).to_string()), (WHOLE, json!({}), document)]
        {
            let name = config.trim_end_matches(".json");
            fs::create_dir(self.folder.join(name))?;
            fs::write(self.folder.join(name).join("request_database.json"), content)?;
            let config_content = json!({"storage": {
                "strategy": "json",
                "json_strategy": {"base_path": name},
                "collections": collections,
                "stores": {
                    "source": sqlite(&format!("{name}.db")),
                    "sqlite": sqlite("larder.db"),
                    "postgres": {"strategy": "sql", "sql_strategy": server},
                },
            }});
            fs::write(self.folder.join(config), config_content.to_string())?;
            self.larder(config, "none", &["--from", "json", "--to", "source", "--no-backup"])?;
        }
        Ok(())
    }

    fn json_to_sqlite(&self, utils: &mut Section, loops: &mut Section) -> Result<()> {
        let sqlite_utils = self.settings.sqlite_utils.as_ref().context("sqlite-utils is missing")?;
        let larder = |config: &str, options: &[&str]| {
            let options = [&["--from", "json", "--to", "sqlite"], options].concat();
            self.filling_sqlite("larder.db", || self.larder(config, "none", &options))
        };
        let [tool, a_loop, backed_up, verified, bare, whole] = take_turns(
            self.rounds(),
            [
                Box::new(|| {
                    let arguments = ["insert", "utils.db", "machines", "machines.json", "--pk", "machine_id"];
                    self.filling_sqlite("utils.db", || self.run(Command::new(sqlite_utils).args(arguments)))
                }),
                Box::new(|| self.filling_sqlite("loop.db", || self.runtime.block_on(self.loop_into_sqlite("loop.db")))),
                Box::new(|| larder(PLAIN, &[])),
                Box::new(|| larder(PLAIN, &["--no-backup"])),
                Box::new(|| larder(PLAIN, &["--no-backup", "--no-verify"])),
                Box::new(|| larder(WHOLE, &["--no-backup"])),
            ],
        )?;
        let count = self.count;
        utils.rows.push(self.judged(Row::new(format!("{count} machines"), &backed_up, &tool), SQLITE_UTILS_RATIO_MAX));
        let row = Row::new(format!("{count} machines, `--no-backup`"), &verified, &tool);
        utils.rows.push(self.judged(row, SQLITE_UTILS_RATIO_MAX));
        utils.rows.push(Row::new(format!("{count} machines, `--no-backup --no-verify`"), &bare, &tool));
        utils.rows.push(Row::new(with_all(&format!("{count} machines")), &whole, &tool));
        let row = Row::new(format!("JSON to SQLite, {count} machines"), &verified, &a_loop);
        loops.rows.push(self.judged(row, LOOP_RATIO_MAX));
        Ok(())
    }

    fn sqlite_to_postgres(&self, pgloader: &mut Section, loops: &mut Section) -> Result<()> {
        let program = self.settings.pgloader.as_ref().context("pgloader is missing")?;
        let source = self.folder.join("plain.db");
        self.to_postgres("SQLite", "source", pgloader, loops, &|url| {
            let mut command = Command::new(program);
            // What it refuses it reports there, and exits with 0: the rows are counted afterwards.
            command.arg("--quiet").arg("--root-dir").arg(self.folder.join("pgloader"));
            command.arg(format!("sqlite://{}", source.display())).arg(url);
            command
        })
    }

    fn json_to_postgres(&self, ingestr: &mut Section, loops: &mut Section) -> Result<()> {
        let program = self.settings.ingestr.as_ref().context("ingestr is missing")?;
        let source = self.folder.join("machines.json");
        self.to_postgres("JSON", "json", ingestr, loops, &|url| {
            let mut command = Command::new(program);
            command.args(["ingest", "--yes", "--progress", "log", "--source-table", "machines"]);
            command.arg("--source-uri").arg(format!("json://{}", source.display()));
            command.args(["--dest-uri", url, "--dest-table", "public.machines", "--primary-key", "machine_id"]);
            command
        })
    }

    /// One route into PostgreSQL: by the tool that `command` makes, by a loop, and by larder.
    fn to_postgres(
        &self,
        from: &str,
        store: &str,
        beside: &mut Section,
        loops: &mut Section,
        command: &dyn Fn(&str) -> Command,
    ) -> Result<()> {
        let Place::Postgres(cluster) = self.postgres else { unreachable!("a server was started") };
        let larder = |config: &str| {
            let options = ["--from", store, "--to", "postgres", "--no-backup"];
            self.filling_postgres(|database| self.larder(config, &database.name, &options))
        };
        let [tool, a_loop, verified, whole] = take_turns(
            self.rounds(),
            [
                Box::new(|| self.filling_postgres(|database| self.run(&mut command(&cluster.url(&database.name))))),
                Box::new(|| {
                    self.filling_postgres(|database| match store {
                        "json" => self.runtime.block_on(self.loop_from_json(database)),
                        _ => self.runtime.block_on(self.loop_from_sqlite(database)),
                    })
                }),
                Box::new(|| larder(PLAIN)),
                Box::new(|| larder(WHOLE)),
            ],
        )?;
        let what = format!("{from} to PostgreSQL, {} machines", self.count);
        beside.rows.push(self.judged(Row::new(&what, &verified, &tool), POSTGRES_RATIO_MAX));
        beside.rows.push(Row::new(with_all(&what), &whole, &tool));
        loops.rows.push(self.judged(Row::new(&what, &verified, &a_loop), LOOP_RATIO_MAX));
        Ok(())
    }

    fn rounds(&self) -> usize {
        self.settings.rounds().min(ROUNDS_MAX)
    }

    fn judged(&self, row: Row, ratio_max: f64) -> Row {
        if self.count >= JUDGED_FROM { row.at_most(ratio_max) } else { row }
    }

    fn larder(&self, config: &str, database: &str, options: &[&str]) -> Result<Duration> {
        let mut command = Command::new(&self.settings.larder);
        command.args(["--config", config, "migrate"]).args(options).env(DATABASE_VARIABLE, database);
        self.run(command.env("LARDER_PLUGINS", &self.settings.plugins).env_remove("LARDER_CONFIG"))
    }

    fn run(&self, command: &mut Command) -> Result<Duration> {
        command.current_dir(self.folder);
        Ok(timed(|| printed(command))?.0)
    }

    /// Runs what makes a database, and counts the machines in it.
    fn filling_sqlite(&self, database: &str, work: impl FnOnce() -> Result<Duration>) -> Result<Duration> {
        for name in ["", "-wal", "-shm"].map(|suffix| format!("{database}{suffix}")) {
            let path = self.folder.join(name);
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        let backups = self.folder.join("backups");
        if backups.exists() {
            fs::remove_dir_all(backups)?;
        }
        let took = work()?;
        let stored: i64 = self.runtime.block_on(async {
            let mut connection = self.sqlite(database).connect().await?;
            let stored = sqlx::query_scalar(COUNT).fetch_one(&mut connection).await;
            connection.close().await?;
            stored
        })?;
        ensure!(stored == self.count as i64, "{database} has {stored} machines");
        Ok(took)
    }

    /// The same with a database of the server, which is there and empty.
    fn filling_postgres(&self, work: impl FnOnce(&Database) -> Result<Duration>) -> Result<Duration> {
        let database = self.postgres.database(self.runtime, self.folder)?;
        let took = work(&database)?;
        let stored: i64 = self.runtime.block_on(async {
            let Program::Postgres(mut connection) = database.connect().await? else {
                unreachable!("it is on a server")
            };
            let stored = sqlx::query_scalar(COUNT).fetch_one(&mut connection).await?;
            connection.close().await?;
            anyhow::Ok(stored)
        })?;
        ensure!(stored == self.count as i64, "{} has {stored} machines", database.name);
        Ok(took)
    }

    fn sqlite(&self, database: &str) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(self.folder.join(database))
            .create_if_missing(true)
            .disable_statement_logging()
    }

    // What one would write: a pass over the source, one transaction, an INSERT that is prepared once and sent once a row.

    async fn loop_into_sqlite(&self, database: &str) -> Result<Duration> {
        let started = Instant::now();
        let text = fs::read(self.folder.join("machines.json"))?;
        let machines: Vec<Machine> = serde_json::from_slice(&text)?;
        let mut connection = self.sqlite(database).connect().await?;
        connection.execute(TABLE).await?;
        let mut transaction = connection.begin().await?;
        let insert = format!("INSERT INTO machines ({INSERTED}) VALUES ({SQLITE_VALUES})");
        for machine in machines {
            let insert = sqlx::query(AssertSqlSafe(insert.as_str()));
            bind!(insert, machine, machine.version).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        connection.close().await?;
        Ok(started.elapsed())
    }

    async fn loop_from_json(&self, database: &Database<'_>) -> Result<Duration> {
        let started = Instant::now();
        let text = fs::read(self.folder.join("machines.json"))?;
        let machines: Vec<Machine> = serde_json::from_slice(&text)?;
        let Program::Postgres(mut connection) = database.connect().await? else { unreachable!("it is on a server") };
        connection.execute(TABLE).await?;
        let mut transaction = connection.begin().await?;
        let insert = format!("INSERT INTO machines ({INSERTED}) VALUES ({POSTGRES_VALUES})");
        for machine in machines {
            let insert = sqlx::query(AssertSqlSafe(insert.as_str()));
            bind!(insert, machine, machine.version).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        connection.close().await?;
        Ok(started.elapsed())
    }

    async fn loop_from_sqlite(&self, database: &Database<'_>) -> Result<Duration> {
        let started = Instant::now();
        let mut source = self.sqlite("plain.db").connect().await?;
        let Program::Postgres(mut connection) = database.connect().await? else { unreachable!("it is on a server") };
        connection.execute(TABLE).await?;
        let mut transaction = connection.begin().await?;
        let select = format!("SELECT {INSERTED} FROM machines");
        let insert = format!("INSERT INTO machines ({INSERTED}) VALUES ({POSTGRES_VALUES})");
        {
            let mut rows = sqlx::query(AssertSqlSafe(select.as_str())).fetch(&mut source);
            while let Some(row) = rows.try_next().await? {
                let mut insert = sqlx::query(AssertSqlSafe(insert.as_str()));
                for column in 0..7 {
                    insert = insert.bind(row.try_get::<Option<&str>, _>(column)?);
                }
                insert.bind(row.try_get::<i64, _>(7)?).execute(&mut *transaction).await?;
            }
        }
        transaction.commit().await?;
        connection.close().await?;
        source.close().await?;
        Ok(started.elapsed())
    }
}
