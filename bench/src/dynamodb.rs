//! DynamoDB behind a component, beside a program that makes the same calls with the SDK, in the same run: single reads and
//! writes, and a migration beside a loader of the program's own.
//!
//! Both are at one engine, which is a process of this run, each with tables of its own; and for a migration at one that
//! has nothing else in it, because it gets slower with all that it holds. A migration is measured at tables in memory and at
//! tables in a file, which lies in memory too: the ways differ in what a write costs beside a read. And with a core for the
//! engine alone, as a service has a machine of its own ([`Apart`]), beside one where it shares all cores with who asks it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::operation::batch_get_item::builders::BatchGetItemFluentBuilder;
use aws_sdk_dynamodb::operation::batch_write_item::builders::BatchWriteItemFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeValue, KeysAndAttributes, PutRequest, ReturnConsumedCapacity, ReturnValuesOnConditionCheckFailure,
    WriteRequest,
};
use larder::config::Config;
use larder::host::Host;
use larder_model::{Entity, Existing};
use larder_test_engine::{Engine, REGION, Storage};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Settings;
use crate::boundary::{Component, Data, Side, get_in_task, save_in_task};
use crate::measure::{Times, in_task, printed, take_turns};
use crate::report::{Row, Section};

/// How often one of each is done in a turn.
const GETS: usize = 2_000;
const SAVES: usize = 1_000;
const SAVES_QUICK: usize = 50;

/// They have more rounds than others have: from one to the next a machine varies by as much as the bound allows.
const ROUNDS_TIMES: usize = 3;

/// A get or a save takes at most this many times what the same calls take without larder,
const RATIO_MAX: f64 = 1.15;
/// and a migration takes at least 0.8 of the machines in a time that a loader puts.
const LOAD_RATIO_MAX: f64 = 1.25;

/// What a migration has by default.
const WORKERS: u32 = 4;
/// Items in one BatchWriteItem, and how many requests the loader has under way: as many as the host has for each worker.
const BATCH_ITEMS: usize = 25;
/// Keys in one BatchGetItem.
const LOOKED_UP_ITEMS: usize = 100;
const BATCHES_SIDE_BY_SIDE: usize = 8 * WORKERS as usize;

/// The configuration that the program is run with.
const CONFIG: &str = "larder.json";

/// Items by name, as the SDK has them.
type Item = HashMap<String, AttributeValue>;

/// A word that no other table's name begins with.
fn prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("bench{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A configuration: a store at the engine, beside a database that a migration comes from.
fn document(engine: &Engine, prefix: &str, folder: &Path) -> Value {
    json!({"storage": {
        "strategy": "dynamodb",
        "dynamodb_strategy": {"region": REGION, "endpoint_url": engine.url(), "table_prefix": prefix},
        "sql_strategy": {"type": "sqlite", "name": folder.join("source.db")},
    }})
}

fn config(engine: &Engine, prefix: &str, folder: &Path) -> Result<Config> {
    Ok(Config::from_value(document(engine, prefix, folder), folder)?)
}

/// A program without larder.
struct Program {
    client: Client,
    table: String,
}

impl Program {
    fn new(engine: &Engine, prefix: &str) -> Program {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(engine.url())
            .credentials_provider(Credentials::new("test", "test", None, None, "bench"))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        Program { client: Client::from_conf(config), table: format!("{prefix}_machines") }
    }

    async fn stored(&self, id: &str, consistent: bool) -> Result<Item> {
        let answer = self
            .client
            .get_item()
            .table_name(&self.table)
            .key("machine_id", AttributeValue::S(id.to_owned()))
            .consistent_read(consistent)
            .send()
            .await?;
        answer.item.with_context(|| format!("{id} is not there"))
    }

    /// The JSON that it answers somebody with.
    async fn get(&self, id: &str) -> Result<Vec<u8>> {
        let members: Map<String, Value> = self
            .stored(id, false)
            .await?
            .into_iter()
            .map(|(name, value)| Ok((name, member(value)?)))
            .collect::<Result<_>>()?;
        Ok(serde_json::to_vec(&members)?)
    }

    /// In place of what is stored, with the version that follows, unless somebody else wrote meanwhile, or removed it and
    /// made another one.
    async fn save(&self, machine: &Entity) -> Result<()> {
        let mut item = item(machine)?;
        let stored = self.stored(&machine.id, true).await?;
        let Some(AttributeValue::N(version)) = stored.get("version") else { bail!("{} has no version", machine.id) };
        let created = stored.get("created_at").context("a machine says when it was made")?;
        item.insert("version".into(), AttributeValue::N((version.parse::<u64>()? + 1).to_string()));
        self.client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item))
            .condition_expression("#version = :version AND #created = :created")
            .expression_attribute_names("#version", "version")
            .expression_attribute_names("#created", "created_at")
            .expression_attribute_values(":version", AttributeValue::N(version.clone()))
            .expression_attribute_values(":created", created.clone())
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await?;
        Ok(())
    }

    /// All of them, by the service's fastest way, which replaces what is there; or, where it looks, only under ids that it
    /// finds nothing under.
    async fn load(self: Arc<Self>, data: Arc<Data>, looks: bool) -> Result<Duration> {
        let started = Instant::now();
        let permits = Arc::new(Semaphore::new(BATCHES_SIDE_BY_SIDE));
        let mut batches = JoinSet::new();
        let at_once = if looks { LOOKED_UP_ITEMS } else { BATCH_ITEMS };
        for from in (0..data.machines.len()).step_by(at_once) {
            let permit = permits.clone().acquire_owned().await?;
            let (program, data) = (self.clone(), data.clone());
            batches.spawn(async move {
                let machines = &data.machines[from..data.machines.len().min(from + at_once)];
                if looks {
                    let found = program.look(machines)?.send().await?.responses.unwrap_or_default();
                    ensure!(found.values().all(Vec::is_empty), "a machine is there already");
                }
                for batch in machines.chunks(BATCH_ITEMS) {
                    let answer = program.write(batch)?.send().await?;
                    ensure!(answer.unprocessed_items.is_none_or(|left| left.is_empty()), "the engine left items");
                }
                drop(permit);
                Ok(())
            });
        }
        while let Some(ended) = batches.join_next().await {
            ended??;
        }
        Ok(started.elapsed())
    }

    fn look(&self, machines: &[Entity]) -> Result<BatchGetItemFluentBuilder> {
        let key = |machine: &Entity| Item::from([("machine_id".into(), AttributeValue::S(machine.id.clone()))]);
        let keys =
            KeysAndAttributes::builder().set_keys(Some(machines.iter().map(key).collect())).consistent_read(true);
        Ok(self.client.batch_get_item().request_items(&self.table, keys.build()?))
    }

    fn write(&self, machines: &[Entity]) -> Result<BatchWriteItemFluentBuilder> {
        let put = |machine: &Entity| {
            let put = PutRequest::builder().set_item(Some(item(machine)?)).build()?;
            Ok(WriteRequest::builder().put_request(put).build())
        };
        let requests = machines.iter().map(put).collect::<Result<Vec<_>>>()?;
        let request = self.client.batch_write_item().request_items(&self.table, requests);
        Ok(request.return_consumed_capacity(ReturnConsumedCapacity::None))
    }
}

/// Of a machine, whose members are texts and numbers.
fn item(machine: &Entity) -> Result<Item> {
    let members: Map<String, Value> = serde_json::from_slice(&machine.body)?;
    let attribute = |value| match value {
        Value::String(text) => Ok(AttributeValue::S(text)),
        Value::Number(number) => Ok(AttributeValue::N(number.to_string())),
        Value::Bool(value) => Ok(AttributeValue::Bool(value)),
        Value::Null => Ok(AttributeValue::Null(true)),
        other => bail!("a machine has a member {other}"),
    };
    members.into_iter().map(|(name, value)| Ok((name, attribute(value)?))).collect()
}

fn member(value: AttributeValue) -> Result<Value> {
    Ok(match value {
        AttributeValue::S(text) => Value::String(text),
        AttributeValue::N(number) => serde_json::from_str(&number)?,
        AttributeValue::Bool(value) => Value::Bool(value),
        AttributeValue::Null(_) => Value::Null,
        other => bail!("a machine has an attribute {other:?}"),
    })
}

/// Both subjects.
pub(crate) fn measure(settings: &Settings, runtime: &Runtime) -> Result<Vec<Section>> {
    let engine = Engine::start(&settings.dynamodb, Storage::Memory)?;
    let mut rows = single(settings, runtime, &engine)?;
    drop(engine);
    let count = if settings.quick { 2_000 } else { 100_000 };
    for (storage, apart) in [(Storage::File, true), (Storage::Memory, true), (Storage::Memory, false)] {
        rows.extend(load(settings, runtime, count, storage, apart)?);
    }
    Ok(vec![Section { title: "DynamoDB behind a component, and the same calls without larder", peer: "the SDK", rows }])
}

fn single(settings: &Settings, runtime: &Runtime, engine: &Engine) -> Result<Vec<Row>> {
    let folder = settings.folder()?;
    let data = Data::new(if settings.quick { 500 } else { 5_000 })?;
    let (own, programs) = (prefix(), prefix());
    let mut component = Component::open(settings, runtime, config(engine, &own, folder.path())?)?;
    data.load_referenced(&mut component)?;
    data.load_machines(&mut component)?;
    // Larder makes the tables of the program too.
    let mut filler = Component::open(settings, runtime, config(engine, &programs, folder.path())?)?;
    data.load_referenced(&mut filler)?;
    data.load_machines(&mut filler)?;
    filler.close();
    let program = Program::new(engine, &programs);

    let saves = if settings.quick { SAVES_QUICK } else { SAVES };
    let count = data.machines.len();
    let (data, program) = (Arc::new(data), Arc::new(program));
    let repository = component.repository();
    let rounds = settings.rounds() * ROUNDS_TIMES;
    let [ours, theirs] = take_turns(
        rounds,
        [
            Box::new(|| get_in_task(runtime, &repository, &data, GETS)),
            Box::new(|| {
                let (program, data) = (program.clone(), data.clone());
                in_task(runtime, async move {
                    for machine in data.some(GETS) {
                        let answer = program.get(&machine.id).await?;
                        ensure!(answer.len() > 100, "{} is not there", machine.id);
                    }
                    Ok(())
                })
            }),
        ],
    )?;
    let gets = Row::new(format!("get one of {count}, {GETS} times"), &ours, &theirs).at_most(RATIO_MAX);
    let [ours, theirs] = take_turns(
        rounds,
        [
            Box::new(|| save_in_task(runtime, &repository, &data, saves)),
            Box::new(|| {
                let (program, data) = (program.clone(), data.clone());
                in_task(runtime, async move {
                    for machine in data.some(saves) {
                        program.save(machine).await?;
                    }
                    Ok(())
                })
            }),
        ],
    )?;
    let saves = Row::new(format!("save one of {count}, {saves} times"), &ours, &theirs).at_most(RATIO_MAX);

    // Each has done the same.
    let first = data.some(1).next().context("a machine")?;
    let answer: Value = serde_json::from_slice(&runtime.block_on(program.get(&first.id))?)?;
    ensure!(answer["version"].as_u64() > Some(rounds as u64), "the program's saves did not count: {answer}");
    component.close();
    Ok(vec![gets, saves])
}

/// An engine on a core of its own, and this process and what it starts on the others, as long as this lives. Where both
/// share all of them, each takes from the other what it measures it with, and the more so the more it computes for itself.
struct Apart {
    cores: Vec<u32>,
}

impl Apart {
    fn new(engine: &Engine) -> Result<Apart> {
        let apart = Apart { cores: own_cores()? };
        let first = apart.cores.first().context("this process may run on no core")?;
        let process = engine.process().context("the engine was started")?;
        // What shares a core with it computes at its cost.
        let path = format!("/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list");
        let siblings = fs::read_to_string(path).map_or_else(|_| Ok(vec![*first]), |list| listed(&list))?;
        let others: Vec<u32> = apart.cores.iter().copied().filter(|core| !siblings.contains(core)).collect();
        ensure!(!others.is_empty(), "to measure an engine on a core of its own takes two cores");
        keep_on(&[*first], process)?;
        keep_on(&others, std::process::id())?;
        Ok(apart)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if let Err(error) = keep_on(&self.cores, std::process::id()) {
            eprintln!("what follows is measured on fewer cores: {error:#}");
        }
    }
}

/// The cores that this process may run on.
fn own_cores() -> Result<Vec<u32>> {
    let status = fs::read_to_string("/proc/self/status").context("the bench of DynamoDB needs Linux")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).context("no list of cores")?;
    listed(list)
}

/// Cores as the system lists them: `0-3,8`.
fn listed(list: &str) -> Result<Vec<u32>> {
    let mut cores = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<u32>()?..=last.parse()?);
    }
    Ok(cores)
}

/// Keeps all threads of a process on these cores.
fn keep_on(cores: &[u32], process: u32) -> Result<()> {
    let list: Vec<String> = cores.iter().map(u32::to_string).collect();
    let mut command = Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", &list.join(","), &process.to_string()]);
    // A thread may end while the others are gone through.
    for attempt in 1.. {
        let output = command.output().context("`taskset`, of util-linux, cannot be run")?;
        let is_done = output.status.success();
        ensure!(is_done || attempt < 20, "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        if is_done {
            break;
        }
    }
    Ok(())
}

/// Runs the program, and gives what it printed. Each migration starts afresh.
fn larder(settings: &Settings, folder: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command = Command::new(&settings.larder);
    command.args(["--format", "json", "--config", CONFIG]).args(arguments).current_dir(folder);
    command.env("LARDER_PLUGINS", &settings.plugins).env_remove("LARDER_CONFIG");
    let printed = printed(&mut command)?;
    printed.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The move of a migration from SQLite beside loaders that have everything in memory already.
fn load(settings: &Settings, runtime: &Runtime, count: usize, storage: Storage, apart: bool) -> Result<[Row; 3]> {
    let folder = settings.folder()?;
    let data = Arc::new(Data::new(count)?);
    let prefix = prefix();
    let host =
        |engine: &Engine| anyhow::Ok(Host::new(config(engine, &prefix, folder.path())?, Some(&settings.plugins))?);
    let engine = || {
        let engine = Engine::start(&settings.dynamodb, storage)?;
        let apart = apart.then(|| Apart::new(&engine)).transpose()?;
        anyhow::Ok((engine, apart))
    };
    runtime.block_on(async {
        let engine = Engine::start(&settings.dynamodb, storage)?;
        let host = host(&engine)?;
        let source = host.open(Some("sql")).await?;
        source.prepare(false, false).await?;
        for (name, entities) in
            [("templates", &data.templates), ("requests", &data.requests), ("machines", &data.machines)]
        {
            for batch in entities.chunks(5_000) {
                let loaded = source.load(name, batch.to_vec(), Existing::Fail).await?;
                ensure!(loaded.refused.is_empty(), "the source refuses machines");
            }
        }
        source.flush().await?;
        host.close().await;
        anyhow::Ok(())
    })?;
    let rounds = settings.rounds();
    let moved = || {
        let (engine, _apart) = engine()?;
        fs::write(folder.path().join(CONFIG), document(&engine, &prefix, folder.path()).to_string())?;
        larder(settings, folder.path(), &["stores", "prepare", "--store", "dynamodb"])?;
        let said = larder(
            settings,
            folder.path(),
            &["migrate", "--from", "sql", "--to", "dynamodb", "--collection", "machines", "--no-backup", "--no-verify"],
        )?;
        let written = said.iter().find_map(|line| line["collections"][0]["written"].as_u64());
        ensure!(written == Some(data.machines.len() as u64), "{written:?} machines were written");
        let moved = said.iter().find(|line| line["event"] == "ended" && line["step"] == "move");
        let seconds = moved.and_then(|line| line["seconds"].as_f64()).context("no word of how long the move took")?;
        Ok(Duration::from_secs_f64(seconds))
    };
    let loaded = |looks| {
        let (engine, _apart) = engine()?;
        runtime.block_on(async {
            let host = host(&engine)?;
            host.open(Some("dynamodb")).await?.prepare(false, false).await?;
            host.close().await;
            Arc::new(Program::new(&engine, &prefix)).load(data.clone(), looks).await
        })
    };
    let [ours, blind, looking]: [Times; 3] =
        take_turns(rounds, [Box::new(moved), Box::new(|| loaded(false)), Box::new(|| loaded(true))])?;
    let tables = match storage {
        Storage::File => "tables in a file",
        Storage::Memory => "tables in memory",
    };
    let cores = if apart { "" } else { ", all cores shared" };
    let moved = format!("move {count} machines out of SQLite, {tables}{cores}, beside a loader");
    Ok([
        Row::new(format!("{moved} that replaces what is there"), &ours, &blind).at_most(LOAD_RATIO_MAX),
        Row::new(format!("{moved} that looks first, as larder does"), &ours, &looking).at_most(LOAD_RATIO_MAX),
        Row::new(format!("load them without larder, {tables}{cores}, with the look, beside without"), &looking, &blind),
    ])
}
