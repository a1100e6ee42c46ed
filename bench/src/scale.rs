//! A migration of millions of entities from SQLite to SQLite, verified: as fast an entity as one of few, in memory that does
//! not grow with them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqliteConnection};
use tokio::runtime::Runtime;

use crate::Settings;
use crate::measure::{Times, watched};
use crate::report::{Row, Section};

/// An entity of many takes at most so many times what one of few takes: a rate of 0.6.
const RATIO_MAX: f64 = 1.0 / 0.6;
const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// How often the few are measured; the many once.
const ROUNDS: usize = 3;

/// Both counts, in two databases.
pub(crate) fn measure(settings: &Settings, runtime: &Runtime) -> Result<Vec<Section>> {
    let (few, times) = if settings.quick { (2_000, 10) } else { (100_000, 50) };
    let many = few * times;
    let folder = settings.folder()?;
    let folder = folder.path();
    write_files(folder, few)?;
    let larder = |from, to| {
        let database = folder.join(format!("{to}.db"));
        if database.exists() {
            fs::remove_file(database)?;
        }
        let mut command = Command::new(&settings.larder);
        command.args(["migrate", "--no-backup", "--from", from, "--to", to]).current_dir(folder).stdin(Stdio::null());
        command.env("LARDER_PLUGINS", &settings.plugins).env_remove("LARDER_CONFIG");
        watched(&mut command)
    };
    larder("json", "few")?;
    let rounds = (0..ROUNDS).map(|_| larder("few", "target")).collect::<Result<Vec<_>>>()?;
    let few_bytes = rounds.iter().map(|(_, bytes)| *bytes).max().context("a round")?;
    let of_few = Times::of(rounds.into_iter().map(|(took, _)| took * 1000 / few as u32).collect());
    runtime.block_on(multiply(folder, times)).context("the source cannot be made larger")?;
    let (took, bytes) = larder("many", "target")?;
    let of_many = Times::of(vec![took * 1000 / many as u32; ROUNDS]);
    let stored: i64 = runtime.block_on(async {
        let mut connection = open(&folder.join("target.db")).await?;
        let stored = sqlx::query_scalar("SELECT count(*) FROM machines").fetch_one(&mut connection).await?;
        connection.close().await?;
        anyhow::Ok(stored)
    })?;
    ensure!(stored == many as i64, "{stored} of {many} arrived");

    let rate = Row::new(format!("1,000 of {many} machines"), &of_many, &of_few).at_most(RATIO_MAX);
    let memory = Row::new(format!("{many} machines"), &Times::of_bytes(bytes), &Times::of_bytes(few_bytes));
    let memory = memory.at_most(MEMORY_BYTES_MAX as f64 / few_bytes as f64);
    Ok(vec![
        Section { title: "SQLite to SQLite, verified", peer: "1,000 of a few", rows: vec![rate] },
        Section { title: "Memory of a migration, in MiB", peer: "of a few", rows: vec![memory] },
    ])
}

/// The document of a few, and a configuration.
fn write_files(folder: &Path, count: usize) -> Result<()> {
    fs::create_dir(folder.join("data"))?;
    let document = larder_samples::machines(count, larder_samples::SEED);
    fs::write(folder.join("data/request_database.json"), document)?;
    let sqlite = |name: &str| json!({"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": name}});
    let stores = json!({"few": sqlite("few.db"), "many": sqlite("many.db"), "target": sqlite("target.db")});
    let config = json!({"storage": {"strategy": "json", "json_strategy": {"base_path": "data"}, "stores": stores}});
    Ok(fs::write(folder.join("larder.json"), config.to_string())?)
}

async fn open(database: &Path) -> sqlx::Result<SqliteConnection> {
    SqliteConnectOptions::new().filename(database).journal_mode(SqliteJournalMode::Wal).connect().await
}

/// A database of so many times the machines of the few, with ids of their own, and the same requests and templates.
async fn multiply(folder: &Path, times: usize) -> Result<()> {
    let database = folder.join("many.db");
    fs::copy(folder.join("few.db"), &database)?;
    let mut connection = open(&database).await?;
    let columns: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info('machines')").fetch_all(&mut connection).await?;
    let names: Vec<String> = columns.iter().map(|name| format!("\"{name}\"")).collect();
    let values: Vec<String> = columns
        .iter()
        .map(|name| match name.as_str() {
            "machine_id" => "machine_id || '-' || copy".to_owned(),
            name => format!("\"{name}\""),
        })
        .collect();
    let (names, values) = (names.join(", "), values.join(", "));
    connection
        .execute(AssertSqlSafe(format!(
            "WITH RECURSIVE copies(copy) AS (SELECT 2 UNION ALL SELECT copy + 1 FROM copies WHERE copy < {times}) \
             INSERT INTO machines ({names}) SELECT {values} FROM copies, (SELECT * FROM machines) AS few"
        )))
        .await?;
    Ok(connection.close().await?)
}
