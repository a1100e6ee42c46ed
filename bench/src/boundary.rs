//! What it costs that a strategy is a component: the same strategy natively, over the same capabilities of the host, and
//! through a [`Repository`], with all that a repository checks of what comes back. For bulk loads, which everything else
//! waits for, also the obvious program without larder: one `INSERT` a row.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use larder::bare::{self, Database};
use larder::config::Config;
use larder::host::Host;
use larder::query::Select;
use larder::repository::Repository;
use larder_guest::Strategy;
use larder_model::filter::{self, Filter};
use larder_model::{Entity, Existing, Expectation, Put, Query, Write};
use larder_plugin_json::JsonStore;
use larder_plugin_sql::SqlStore;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use tokio::runtime::Runtime;

use crate::Settings;
use crate::measure::{Contestant, Times, in_task, take_turns, timed};
use crate::native::{self, NativeFiles, NativeSql};
use crate::report::{Row, Section};

/// Entities that are loaded at once: what a migration does unless it is told otherwise.
pub(crate) const BATCH_ENTITIES: usize = 1000;
/// Bytes of a page, as the repository asks for them.
const PAGE_BYTES: u32 = 4 << 20;
/// Entities of a page, as the repository asks for them.
const PAGE_ENTITIES: u32 = 1000;
/// Ids of one after another are far apart.
const STRIDE: usize = 7919;

/// A bulk load through the component takes at most this many times what the same code takes natively,
pub(crate) const LOAD_RATIO_MAX: f64 = 1.5;
/// and is not slower than one `INSERT` a row.
pub(crate) const INSERTS_RATIO_MAX: f64 = 1.0;

/// A store to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    SqlRelaxed,
    SqlStrict,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Json => "json",
            Kind::SqlRelaxed => "sql, relaxed",
            Kind::SqlStrict => "sql, strict",
        }
    }

    fn strategy(self) -> &'static str {
        if self == Kind::Json { "json" } else { "sql" }
    }

    fn config(self, folder: &Path) -> Result<Config> {
        let sqlite = |constraints| json!({"type": "sqlite", "name": database(folder), "constraints": constraints});
        let (section, value) = match self {
            Kind::Json => ("json_strategy", json!({"base_path": folder.join("data")})),
            Kind::SqlRelaxed => ("sql_strategy", sqlite("relaxed")),
            Kind::SqlStrict => ("sql_strategy", sqlite("strict")),
        };
        let storage = Map::from_iter([("strategy".to_owned(), self.strategy().into()), (section.to_owned(), value)]);
        Ok(Config::from_value(json!({"storage": storage}), folder)?)
    }

    fn native<'a>(self, runtime: &'a Runtime, folder: &Path) -> Result<Box<dyn Side + 'a>> {
        let config = self.config(folder)?;
        Ok(match self {
            Kind::Json => Box::new(Native::<JsonStore<NativeFiles>>::open(runtime, &config, self.strategy())?),
            _ => Box::new(Native::<SqlStore<NativeSql>>::open(runtime, &config, self.strategy())?),
        })
    }

    fn component<'a>(self, settings: &Settings, runtime: &'a Runtime, folder: &Path) -> Result<Box<dyn Side + 'a>> {
        Ok(Box::new(Component::open(settings, runtime, self.config(folder)?)?))
    }
}

fn database(folder: &Path) -> PathBuf {
    folder.join("machines.db")
}

/// A store, natively or through its component. Each function says how many entities it was about.
pub(crate) trait Side {
    fn prepare(&mut self) -> Result<()>;
    fn load(&mut self, collection: &str, entities: Vec<Entity>) -> Result<u64>;
    fn flush(&mut self) -> Result<()>;
    fn scan(&mut self) -> Result<u64>;
    fn get(&mut self, id: &str) -> Result<u64>;
    fn save(&mut self, machine: &Entity) -> Result<()>;
    fn query(&mut self, filter: &Filter) -> Result<u64>;
    /// Leaves the files to somebody else.
    fn close(&mut self);
}

pub(crate) struct Native<'a, S> {
    runtime: &'a Runtime,
    strategy: S,
    database: Option<Database>,
}

impl<'a, S: Strategy> Native<'a, S> {
    pub(crate) fn open(runtime: &'a Runtime, config: &Config, store: &str) -> Result<Self> {
        let (strategy, database) = native::open(config, store)?;
        Ok(Native { runtime, strategy, database })
    }
}

impl<S: Strategy> Side for Native<'_, S> {
    fn prepare(&mut self) -> Result<()> {
        self.strategy.prepare(false, false)?;
        Ok(())
    }

    fn load(&mut self, collection: &str, entities: Vec<Entity>) -> Result<u64> {
        Ok(self.strategy.load(collection, entities, Existing::Fail)?.written)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.strategy.flush()?)
    }

    fn scan(&mut self) -> Result<u64> {
        let (mut count, mut cursor) = (0, None);
        loop {
            let batch = self.strategy.scan("machines", 0, 1, cursor.as_deref(), PAGE_BYTES)?;
            count += batch.entities.len() as u64;
            cursor = batch.next;
            if cursor.is_none() {
                return Ok(count);
            }
        }
    }

    fn get(&mut self, id: &str) -> Result<u64> {
        Ok(self.strategy.get("machines", &[id.to_owned()])?.iter().flatten().count() as u64)
    }

    fn save(&mut self, machine: &Entity) -> Result<()> {
        let (id, body) = (machine.id.clone(), machine.body.clone());
        let put = Put { collection: "machines".to_owned(), id, body, expect: Expectation::Any };
        let now = humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string();
        for result in self.strategy.apply(vec![Write::Put(put)], false, &now)? {
            result?;
        }
        if S::describe().features.deferred_sync {
            self.strategy.flush()?;
        }
        Ok(())
    }

    fn query(&mut self, filter: &Filter) -> Result<u64> {
        let mut query = Query {
            filter: Some(filter.clone()),
            order_by: Vec::new(),
            limit: PAGE_ENTITIES,
            max_bytes: PAGE_BYTES,
            index: None,
            cursor: None,
        };
        let mut count = 0;
        loop {
            let page = self.strategy.find("machines", &query)?;
            ensure!(page.unapplied.is_empty(), "here nobody applies what the strategy leaves of a filter");
            count += page.entities.len() as u64;
            if page.next.is_none() {
                return Ok(count);
            }
            query.cursor = page.next;
        }
    }

    fn close(&mut self) {
        if let Some(database) = &self.database {
            self.runtime.block_on(database.close());
        }
    }
}

pub(crate) struct Component<'a> {
    runtime: &'a Runtime,
    host: Host,
    repository: Repository,
}

impl<'a> Component<'a> {
    pub(crate) fn open(settings: &Settings, runtime: &'a Runtime, config: Config) -> Result<Self> {
        let host = Host::new(config, Some(&settings.plugins))?;
        let repository = runtime.block_on(host.open(None))?;
        Ok(Component { runtime, host, repository })
    }

    pub(crate) fn repository(&self) -> Repository {
        self.repository.clone()
    }
}

/// Gets of single machines through a component, in a task.
pub(crate) fn get_in_task(runtime: &Runtime, from: &Repository, data: &Arc<Data>, count: usize) -> Result<Duration> {
    let (repository, data) = (from.clone(), data.clone());
    in_task(runtime, async move {
        for machine in data.some(count) {
            let found = repository.get_one("machines", &machine.id).await?;
            ensure!(found.is_some(), "{} is not there", machine.id);
        }
        Ok(())
    })
}

/// Saves of single machines through a component, in a task.
pub(crate) fn save_in_task(runtime: &Runtime, to: &Repository, data: &Arc<Data>, count: usize) -> Result<Duration> {
    let (repository, data) = (to.clone(), data.clone());
    in_task(runtime, async move {
        for machine in data.some(count) {
            repository.save("machines", &machine.body, Expectation::Any).await?;
        }
        Ok(())
    })
}

impl Side for Component<'_> {
    fn prepare(&mut self) -> Result<()> {
        self.runtime.block_on(self.repository.prepare(false, false))?;
        Ok(())
    }

    fn load(&mut self, collection: &str, entities: Vec<Entity>) -> Result<u64> {
        Ok(self.runtime.block_on(self.repository.load(collection, entities, Existing::Fail))?.written)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.runtime.block_on(self.repository.flush())?)
    }

    fn scan(&mut self) -> Result<u64> {
        self.runtime.block_on(async {
            let (mut count, mut cursor) = (0, None);
            loop {
                let batch = bare::scan(&self.repository, "machines", cursor.as_deref(), PAGE_BYTES).await?;
                count += batch.entities.len() as u64;
                cursor = batch.next;
                if cursor.is_none() {
                    return Ok(count);
                }
            }
        })
    }

    fn get(&mut self, id: &str) -> Result<u64> {
        let found = self.runtime.block_on(self.repository.get("machines", &[id.to_owned()]))?;
        Ok(found.iter().flatten().count() as u64)
    }

    fn save(&mut self, machine: &Entity) -> Result<()> {
        self.runtime.block_on(self.repository.save("machines", &machine.body, Expectation::Any))?;
        Ok(())
    }

    fn query(&mut self, filter: &Filter) -> Result<u64> {
        self.runtime.block_on(async {
            let select = Select { filter: Some(filter.clone()), ..Select::default() };
            let mut answer = self.repository.query("machines", select);
            let mut count = 0;
            while let Some(entities) = answer.next().await? {
                count += entities.len() as u64;
            }
            Ok(count)
        })
    }

    fn close(&mut self) {
        self.runtime.block_on(self.host.close());
    }
}

/// The sample machines with what they refer to.
pub(crate) struct Data {
    pub(crate) templates: Vec<Entity>,
    pub(crate) requests: Vec<Entity>,
    pub(crate) machines: Vec<Entity>,
}

impl Data {
    pub(crate) fn new(machines: usize) -> Result<Data> {
        let text = larder_samples::machines(machines, larder_samples::SEED);
        let mut document: Map<String, Value> = serde_json::from_str(&text)?;
        let mut collection = |name: &str| {
            let Some(Value::Object(entities)) = document.remove(name) else { return Vec::new() };
            let entity = |(id, value): (String, Value)| {
                let version = value["version"].as_u64().unwrap_or_default();
                Entity { id, version, body: value.to_string().into_bytes() }
            };
            entities.into_iter().map(entity).collect()
        };
        let data = Data {
            templates: collection("templates"),
            requests: collection("requests"),
            machines: collection("machines"),
        };
        ensure!(data.machines.len() == machines, "the sample holds {} machines", data.machines.len());
        Ok(data)
    }

    /// Makes the tables, and what machines refer to.
    pub(crate) fn load_referenced(&self, side: &mut dyn Side) -> Result<()> {
        side.prepare()?;
        side.load("templates", self.templates.clone())?;
        side.load("requests", self.requests.clone())?;
        side.flush()
    }

    /// Loads all machines, and says how long that alone took.
    pub(crate) fn load_machines(&self, side: &mut dyn Side) -> Result<Duration> {
        let batches: Vec<Vec<Entity>> = self.machines.chunks(BATCH_ENTITIES).map(<[Entity]>::to_vec).collect();
        let (took, written) = timed(|| {
            let mut written = 0;
            for batch in batches {
                written += side.load("machines", batch)?;
            }
            side.flush()?;
            Ok(written)
        })?;
        ensure!(written == self.machines.len() as u64, "{written} of {} were written", self.machines.len());
        Ok(took)
    }

    /// Machines far apart from each other.
    pub(crate) fn some(&self, count: usize) -> impl Iterator<Item = &Entity> {
        (0..count).map(|i| &self.machines[i * STRIDE % self.machines.len()])
    }
}

/// Everything that a store does, natively and as a component.
pub(crate) fn measure(settings: &Settings, runtime: &Runtime) -> Result<Vec<Section>> {
    let mut loads = Vec::new();
    let mut inserts = Vec::new();
    let mut others = Vec::new();
    for &count in settings.counts() {
        let data = Data::new(count)?;
        for kind in [Kind::SqlRelaxed, Kind::SqlStrict] {
            let what = format!("{}: load {count}", kind.name());
            let [native, component, one_by_one] = take_turns(
                settings.rounds(),
                [
                    Box::new(|| load_once(settings, &data, |folder| kind.native(runtime, folder))),
                    Box::new(|| load_once(settings, &data, |folder| kind.component(settings, runtime, folder))),
                    Box::new(|| insert_once(settings, runtime, &data, kind)),
                ],
            )?;
            loads.push(Row::new(&what, &component, &native).at_most(LOAD_RATIO_MAX));
            inserts.push(Row::new(&what, &component, &one_by_one).at_most(INSERTS_RATIO_MAX));
        }
        let [native, component] = take_turns(
            settings.rounds(),
            [
                Box::new(|| load_once(settings, &data, |folder| Kind::Json.native(runtime, folder))),
                Box::new(|| load_once(settings, &data, |folder| Kind::Json.component(settings, runtime, folder))),
            ],
        )?;
        loads.push(Row::new(format!("json: load {count}"), &component, &native));
        for kind in [Kind::SqlRelaxed, Kind::Json] {
            others.extend(measure_others(settings, runtime, &data, kind)?);
        }
    }
    loads.extend(others);
    let section = |title, peer, rows| Section { title, peer, rows };
    Ok(vec![
        section("A strategy as a component, and the same code natively", "native", loads),
        section("A bulk load, and one INSERT a row", "one INSERT a row", inserts),
    ])
}

/// A load into a store that was not there.
fn load_once<'a>(
    settings: &Settings,
    data: &Data,
    open: impl FnOnce(&Path) -> Result<Box<dyn Side + 'a>>,
) -> Result<Duration> {
    let folder = settings.folder()?;
    let mut side = open(folder.path())?;
    data.load_referenced(&mut *side)?;
    let took = data.load_machines(&mut *side)?;
    side.close();
    Ok(took)
}

/// A machine as a program would declare it.
#[derive(Deserialize)]
pub(crate) struct Machine<'a> {
    pub(crate) machine_id: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) template_id: &'a str,
    pub(crate) status: &'a str,
    pub(crate) instance_type: &'a str,
    pub(crate) private_ip: &'a str,
    pub(crate) created_at: &'a str,
    pub(crate) version: i64,
}

/// The same machines into the same table with the same settings: from the same JSON, in transactions of the same size,
/// with a prepared statement that is sent once a row.
fn insert_once(settings: &Settings, runtime: &Runtime, data: &Data, kind: Kind) -> Result<Duration> {
    const INSERT: &str = "INSERT INTO machines \
        (machine_id, request_id, template_id, status, instance_type, private_ip, created_at, version) \
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    let folder = settings.folder()?;
    let mut side = kind.native(runtime, folder.path())?;
    data.load_referenced(&mut *side)?;
    side.close();
    let options = SqliteConnectOptions::new()
        .filename(database(folder.path()))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .pragma("cache_size", "-16384")
        .disable_statement_logging();
    runtime.block_on(async {
        let mut connection = options.connect().await?;
        let started = std::time::Instant::now();
        for batch in data.machines.chunks(BATCH_ENTITIES) {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            for entity in batch {
                let machine: Machine = serde_json::from_slice(&entity.body)?;
                let insert = sqlx::query(INSERT)
                    .bind(machine.machine_id)
                    .bind(machine.request_id)
                    .bind(machine.template_id)
                    .bind(machine.status)
                    .bind(machine.instance_type)
                    .bind(machine.private_ip)
                    .bind(machine.created_at)
                    .bind(machine.version);
                insert.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
        }
        let log = std::fs::File::open(folder.path().join("machines.db-wal"))?;
        log.sync_all()?;
        let took = started.elapsed();
        let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM machines").fetch_one(&mut connection).await?;
        ensure!(stored == data.machines.len() as i64, "{stored} of {} were inserted", data.machines.len());
        connection.close().await?;
        Ok(took)
    })
}

/// What is done with a store once it is full.
fn measure_others(settings: &Settings, runtime: &Runtime, data: &Data, kind: Kind) -> Result<Vec<Row>> {
    let count = data.machines.len();
    let folders = [settings.folder()?, settings.folder()?];
    let mut sides = [kind.native(runtime, folders[0].path())?, kind.component(settings, runtime, folders[1].path())?];
    for side in &mut sides {
        data.load_referenced(&mut **side)?;
        data.load_machines(&mut **side)?;
    }
    let (gets, saves) = (1000, 50);
    let pending = filter::parse_expression("status=PENDING")?;
    let is_pending = |machine: &&Entity| machine.body.windows(9).any(|window| window == b"\"PENDING\"");
    let pending_count = data.machines.iter().filter(is_pending).count() as u64;
    let mut rows = Vec::new();
    let mut row = |what: String, work: &dyn Fn(&mut dyn Side) -> Result<()>| -> Result<()> {
        let [native, component] = both(settings.rounds(), &mut sides, work)?;
        rows.push(Row::new(format!("{}: {what}", kind.strategy()), &component, &native));
        Ok(())
    };
    row(format!("scan {count}"), &|side| {
        let found = side.scan()?;
        ensure!(found == count as u64, "a scan finds {found} of {count}");
        Ok(())
    })?;
    row(format!("query {pending_count} of {count} by `status`"), &|side| {
        let found = side.query(&pending)?;
        ensure!(found == pending_count, "a query finds {found} of {pending_count}");
        Ok(())
    })?;
    row(format!("get one of {count}, {gets} times"), &|side| {
        for machine in data.some(gets) {
            ensure!(side.get(&machine.id)? == 1, "{} is not there", machine.id);
        }
        Ok(())
    })?;
    row(format!("save one of {count}, {saves} times"), &|side| {
        for machine in data.some(saves) {
            side.save(machine)?;
        }
        Ok(())
    })?;
    for side in &mut sides {
        side.close();
    }
    Ok(rows)
}

fn both(
    rounds: usize,
    [native, component]: &mut [Box<dyn Side + '_>; 2],
    work: &dyn Fn(&mut dyn Side) -> Result<()>,
) -> Result<[Times; 2]> {
    let run = |side: &mut dyn Side| timed(|| work(side)).map(|(took, ())| took);
    let contestants: [Contestant; 2] = [Box::new(|| run(&mut **native)), Box::new(|| run(&mut **component))];
    take_turns(rounds, contestants)
}
