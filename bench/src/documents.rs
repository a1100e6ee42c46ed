//! What the `json` strategy promises: a save costs the same whatever the size of the document, concurrent commits share
//! an fsync, a warm read is cheap, opening a document costs little more than parsing it, and a migration of a document of
//! any size needs little memory. All of it through the component.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use larder::config::Config;
use larder::host::Host;
use larder::query::Select;
use larder::repository::Repository;
use larder_model::Expectation;
use larder_model::filter;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::Settings;
use crate::measure::{Times, take_turns, timed, watched};
use crate::report::{Row, Section};

/// A save at the largest count takes at most this many times what one at the smallest takes.
const FLAT_RATIO_MAX: f64 = 1.5;
/// Opening a document takes at most this many times what serde_json takes to parse it.
const OPEN_RATIO_MAX: f64 = 2.0;
/// Memory of a migration out of the largest document.
const MIGRATION_BYTES_MAX: u64 = 500 << 20;
/// Entities of the document that single reads and queries are measured on.
const READ_ENTITIES: usize = 10_000;
/// Entities that share an indexed value there.
const MATCHES: usize = 100;
/// Ids of one save after another are far apart.
const STRIDE: usize = 7919;

/// An entity of some 150 bytes, or of `filler` more.
fn entity(number: usize, filler: usize) -> String {
    let status = number / MATCHES;
    format!(
        r#"{{"machine_id":"machine-{number:07}","request_id":"req-{:05}","template_id":"small","status":"S{status}","private_ip":"10.0.{}.{}","filler":"{}"}}"#,
        number / 10,
        number / 250 % 250,
        number % 250,
        "x".repeat(filler)
    )
}

/// A folder with a document of `count` machines as `larder` would write it.
fn document(settings: &Settings, count: usize, filler: usize) -> Result<tempfile::TempDir> {
    let folder = settings.folder()?;
    fs::create_dir(folder.path().join("data"))?;
    let mut text = String::with_capacity(count * (filler + 300));
    text.push_str("{\n  \"machines\": {");
    for number in 0..count {
        let comma = if number == 0 { "" } else { "," };
        let _ = write!(text, "{comma}\n    \"machine-{number:07}\": {}", entity(number, filler));
    }
    text.push_str("\n  }\n}\n");
    fs::write(path(folder.path()), text)?;
    Ok(folder)
}

fn path(folder: &Path) -> std::path::PathBuf {
    folder.join("data/request_database.json")
}

fn config(folder: &Path, sync: bool) -> Value {
    json!({"storage": {
        "strategy": "json",
        "json_strategy": {"base_path": folder.join("data"), "sync_writes": sync, "backup_enabled": false},
        "sql_strategy": {"type": "sqlite", "name": folder.join("machines.db"), "constraints": "relaxed"},
    }})
}

/// An open store.
struct Open {
    host: Host,
    repository: Repository,
}

impl Open {
    async fn new(settings: &Settings, folder: &Path, sync: bool) -> Result<Open> {
        let host = Host::new(Config::from_value(config(folder, sync), folder)?, Some(&settings.plugins))?;
        let repository = host.open(None).await?;
        repository.count("machines", None).await?;
        Ok(Open { host, repository })
    }

    async fn close(self) {
        drop(self.repository);
        self.host.close().await;
    }
}

/// The tables.
pub(crate) fn measure(settings: &Settings, runtime: &Runtime) -> Result<Vec<Section>> {
    let section = |title, peer, rows| Section { title, peer, rows };
    Ok(vec![
        section("A save in an open json store, folds included", "at 1,000 entities", saves(settings, runtime)?),
        section("Commits that are synced, side by side", "one at a time", synced(settings, runtime)?),
        section("A warm read through the json component", "serde_json parses the result", reads(settings, runtime)?),
        section("Opening a document", "serde_json parses it", opening(settings, runtime)?),
        section("Memory of a migration out of a json document, in MiB", "the document", vec![memory(settings)?]),
    ])
}

/// Saves of stored and of new entities, so many that the journal is folded several times.
fn saves(settings: &Settings, runtime: &Runtime) -> Result<Vec<Row>> {
    let counts: &[usize] = if settings.quick { &[1_000, 20_000] } else { &[1_000, 10_000, 100_000, 1_000_000] };
    let mut rows = Vec::new();
    let mut first: Option<Times> = None;
    for &count in counts {
        let folder = document(settings, count, 0)?;
        // The bound of the journal is the document's size: that many saves fold it about once.
        let saves = (2 * count).max(40_000);
        let thousand = runtime.block_on(async {
            let open = Open::new(settings, folder.path(), false).await?;
            let before = fs::metadata(path(folder.path()))?.modified()?;
            let started = Instant::now();
            for i in 0..saves {
                // One in ten is new.
                let number = if i % 10 == 0 { count + i / 10 } else { i * STRIDE % count };
                open.repository.save("machines", entity(number, 0).as_bytes(), Expectation::Any).await?;
            }
            let took = started.elapsed();
            ensure!(fs::metadata(path(folder.path()))?.modified()? != before, "nothing was folded at {count}");
            open.close().await;
            anyhow::Ok(took * 1000 / saves as u32)
        })?;
        let times = Times::of(vec![thousand]);
        let bound = if count == 1_000 { f64::INFINITY } else { FLAT_RATIO_MAX };
        let row = Row::new(format!("1,000 saves at {count} entities"), &times, first.as_ref().unwrap_or(&times));
        rows.push(if bound.is_finite() { row.at_most(bound) } else { row });
        first.get_or_insert(times);
    }
    Ok(rows)
}

/// The same number of commits by one caller and by sixteen.
fn synced(settings: &Settings, runtime: &Runtime) -> Result<Vec<Row>> {
    let count = if settings.quick { 160 } else { 1_600 };
    let run = |callers: usize| -> Result<Duration> {
        let folder = document(settings, 1_000, 0)?;
        runtime.block_on(async {
            let open = Open::new(settings, folder.path(), true).await?;
            let started = Instant::now();
            let tasks: Vec<_> = (0..callers)
                .map(|caller| {
                    let repository = open.repository.clone();
                    tokio::spawn(async move {
                        for i in 0..count / callers {
                            let body = entity(caller * count + i, 0);
                            repository.save("machines", body.as_bytes(), Expectation::Any).await?;
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            for task in tasks {
                task.await??;
            }
            let took = started.elapsed();
            open.close().await;
            Ok(took)
        })
    };
    let rounds = if settings.quick { 1 } else { 3 };
    let [one, many] = take_turns(rounds, [Box::new(|| run(1)), Box::new(|| run(16))])?;
    Ok(vec![Row::new(format!("{count} commits by 16 callers"), &many, &one).at_most(0.5)])
}

/// Single reads and a query by an indexed member, with what was asked for in memory.
fn reads(settings: &Settings, runtime: &Runtime) -> Result<Vec<Row>> {
    let folder = document(settings, READ_ENTITIES, 0)?;
    let gets = if settings.quick { 1_000 } else { 20_000 };
    let open = runtime.block_on(Open::new(settings, folder.path(), false))?;
    let repository = &open.repository;
    let body = entity(4_200, 0);
    let parse = |times: usize| {
        timed(|| {
            for _ in 0..times {
                std::hint::black_box(serde_json::from_str::<Value>(std::hint::black_box(&body))?);
            }
            Ok(())
        })
    };
    let get = || {
        runtime.block_on(async {
            let started = Instant::now();
            for _ in 0..gets {
                ensure!(repository.get_one("machines", "machine-0004200").await?.is_some());
            }
            Ok(started.elapsed())
        })
    };
    let query = || {
        runtime.block_on(async {
            let started = Instant::now();
            let filter = Some(filter::parse_expression("status=S42")?);
            let mut answer = repository.query("machines", Select { filter, ..Select::default() });
            let mut count = 0;
            while let Some(entities) = answer.next().await? {
                count += entities.len();
            }
            ensure!(count == MATCHES, "{count} matches");
            Ok(started.elapsed())
        })
    };
    let [native, larder] = take_turns(settings.rounds(), [Box::new(|| Ok(parse(gets)?.0)), Box::new(get)])?;
    let got = Row::new(format!("get a warm entity, {gets} times"), &larder, &native);
    let [native, larder] = take_turns(settings.rounds(), [Box::new(|| Ok(parse(MATCHES)?.0)), Box::new(query)])?;
    let queried = Row::new(format!("query {MATCHES} of {READ_ENTITIES} by an indexed member"), &larder, &native);
    runtime.block_on(open.close());
    Ok(vec![got, queried])
}

/// From nothing to the first answer, beside parsing the same bytes into a value and beside checking them.
fn opening(settings: &Settings, runtime: &Runtime) -> Result<Vec<Row>> {
    let count = if settings.quick { 5_000 } else { 100_000 };
    let folder = document(settings, count, 850)?;
    let size = fs::metadata(path(folder.path()))?.len();
    let open = || {
        runtime.block_on(async {
            // Loading the component is not opening.
            let host =
                Host::new(Config::from_value(config(folder.path(), false), folder.path())?, Some(&settings.plugins))?;
            let repository = host.open(None).await?;
            let started = Instant::now();
            let found = repository.count("machines", None).await?;
            let took = started.elapsed();
            ensure!(found == count as u64, "{found} of {count}");
            host.close().await;
            Ok(took)
        })
    };
    let parse = || {
        let (took, parsed) = timed(|| Ok(serde_json::from_slice::<Value>(&fs::read(path(folder.path()))?)?))?;
        ensure!(parsed["machines"].as_object().is_some_and(|machines| machines.len() == count));
        Ok(took)
    };
    let [native, larder] = take_turns(settings.rounds(), [Box::new(parse), Box::new(open)])?;
    let what = format!("open {count} entities, {} MB", size / 1_000_000);
    Ok(vec![Row::new(what, &larder, &native).at_most(OPEN_RATIO_MAX)])
}

/// The most memory that `larder migrate` had, beside the size of the document.
fn memory(settings: &Settings) -> Result<Row> {
    let count = if settings.quick { 20_000 } else { 1_000_000 };
    let folder = document(settings, count, 0)?;
    let config_path = folder.path().join("larder.json");
    fs::write(&config_path, config(folder.path(), false).to_string())?;
    let mut larder = Command::new(&settings.larder);
    larder.args(["migrate", "--from", "json", "--to", "sql", "--no-backup"]).current_dir(folder.path());
    larder.env("LARDER_PLUGINS", &settings.plugins).env("LARDER_CONFIG", &config_path);
    let (_, bytes) = watched(&mut larder)?;
    let size = fs::metadata(path(folder.path()))?.len();
    let bound = MIGRATION_BYTES_MAX as f64 / size as f64;
    let row = Row::new(format!("migrate {count} entities"), &Times::of_bytes(bytes), &Times::of_bytes(size));
    Ok(if settings.quick { row } else { row.at_most((bound * 100.0).round() / 100.0) })
}
