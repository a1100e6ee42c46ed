//! A migration from JSON to SQLite beside the tool that people use for that: whole processes, from start to end.
//!
//! `sqlite-utils` neither backs up nor verifies, makes no index, and leaves out what machines refer to, so larder is measured
//! twice: as it is, and without backup and verification.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use sqlx::Connection;
use tokio::runtime::Runtime;

use crate::Settings;
use crate::measure::{take_turns, timed};
use crate::report::{Row, Section};

/// The sample machines, from a document into a database.
pub(crate) fn measure(settings: &Settings, runtime: &Runtime) -> Result<Vec<Section>> {
    let mut section =
        Section { title: "JSON to SQLite, as a process", peer: "sqlite-utils", rows: Vec::new(), missing: Vec::new() };
    let Some(sqlite_utils) = &settings.sqlite_utils else {
        section.missing.push("sqlite-utils could not be installed, so there is nothing to compare with".to_owned());
        return Ok(vec![section]);
    };
    let version = Command::new(sqlite_utils).arg("--version").output().context("sqlite-utils cannot be run")?;
    eprintln!("  {}", String::from_utf8_lossy(&version.stdout).trim());
    for &count in settings.counts() {
        let folder = settings.folder()?;
        let folder = folder.path();
        write_files(folder, count)?;
        let larder = |options: &[&str]| {
            let mut command = Command::new(&settings.larder);
            command.args(["migrate", "--from", "json", "--to", "sql"]).args(options);
            command.env("LARDER_PLUGINS", &settings.plugins).env_remove("LARDER_CONFIG");
            run(runtime, command, folder, "larder.db", count)
        };
        let [peer, whole, bare] = take_turns(
            settings.rounds(),
            [
                Box::new(|| {
                    let mut command = Command::new(sqlite_utils);
                    command.args(["insert", "utils.db", "machines", "machines.json", "--pk", "machine_id"]);
                    run(runtime, command, folder, "utils.db", count)
                }),
                Box::new(|| larder(&[])),
                Box::new(|| larder(&["--no-backup", "--no-verify"])),
            ],
        )?;
        section.rows.push(Row::new(format!("{count} machines"), &whole, &peer));
        section.rows.push(Row::new(format!("{count} machines, `--no-backup --no-verify`"), &bare, &peer));
    }
    Ok(vec![section])
}

/// The document for larder, the same machines as an array, and a configuration.
fn write_files(folder: &Path, count: usize) -> Result<()> {
    let document = larder_samples::machines(count, larder_samples::SEED);
    let parsed: Map<String, Value> = serde_json::from_str(&document)?;
    let machines = parsed["machines"].as_object().context("the sample has machines")?;
    fs::write(folder.join("machines.json"), Value::from_iter(machines.values().cloned()).to_string())?;
    fs::create_dir(folder.join("data"))?;
    fs::write(folder.join("data/request_database.json"), document)?;
    let config = json!({"storage": {
        "strategy": "json",
        "json_strategy": {"base_path": "data"},
        "sql_strategy": {"type": "sqlite", "name": "larder.db"},
    }});
    Ok(fs::write(folder.join("larder.json"), config.to_string())?)
}

/// Runs a command that makes a database, and looks at what it made.
fn run(runtime: &Runtime, mut command: Command, folder: &Path, database: &str, count: usize) -> Result<Duration> {
    for suffix in ["", "-wal", "-shm"] {
        let path = folder.join(format!("{database}{suffix}"));
        if path.exists() {
            fs::remove_file(path)?;
        }
    }
    let backups = folder.join("backups");
    if backups.exists() {
        fs::remove_dir_all(backups)?;
    }
    command.current_dir(folder).stdin(Stdio::null());
    let (took, output) = timed(|| command.output().context("it cannot be run"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let url = format!("sqlite://{}", folder.join(database).display());
    let stored: i64 = runtime.block_on(async {
        let mut connection = sqlx::SqliteConnection::connect(&url).await?;
        let stored = sqlx::query_scalar("SELECT count(*) FROM machines").fetch_one(&mut connection).await;
        connection.close().await?;
        stored
    })?;
    ensure!(stored == count as i64, "{command:?} made a table of {stored} rows");
    Ok(took)
}
