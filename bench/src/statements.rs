//! A database behind a component, beside the same strategy natively, and beside what a program without larder would send:
//! the same statements, over a connection of its own, in the same run. Single reads and writes, which have an
//! application wait, and bulk loads.
//!
//! Each contestant has a database of its own, with the same machines in the same tables. PostgreSQL is a server of this
//! run, which has a commit on its disk before it answers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder::config::Config;
use larder_model::Entity;
use larder_plugin_sql::SqlStore;
use larder_test_cluster::{Cluster, ROLE, Settings as ClusterSettings};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row as _, SqliteConnection};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::Settings;
use crate::boundary::{
    BATCH_ENTITIES, Component, Data, INSERTS_RATIO_MAX, LOAD_RATIO_MAX, Machine, Native, Side, get_in_task,
    save_in_task,
};
use crate::measure::{Times, in_task, take_turns, timed};
use crate::native::NativeSql;
use crate::report::{Row, Section};

/// How often one of each is done in a turn: long enough to print, also where a save waits for a disk.
const GETS: usize = 1000;
const SAVES: usize = 200;
const SAVES_QUICK: usize = 50;

/// A get or a save on PostgreSQL takes at most this many times what the other one takes,
const POSTGRES_RATIO_MAX: f64 = 1.25;
/// and on SQLite, where no server stands between, this many.
const SQLITE_RATIO_MAX: f64 = 1.5;

/// Every column, as one that reads all of an entity has to.
const COLUMNS: &str = "machine_id, request_id, template_id, status, instance_type, provider_instance_id, private_ip, public_ip, \
                       CAST(created_at AS TEXT), CAST(started_at AS TEXT), CAST(terminated_at AS TEXT), version, \
                       CAST(larder_extra AS TEXT), CAST(larder_exact AS TEXT)";

/// Where contestants have their databases.
pub(crate) enum Place {
    Sqlite,
    Postgres(Box<Cluster>),
}

impl Place {
    fn name(&self) -> &'static str {
        match self {
            Place::Sqlite => "SQLite",
            Place::Postgres(_) => "PostgreSQL",
        }
    }

    fn ratio_max(&self) -> f64 {
        match self {
            Place::Sqlite => SQLITE_RATIO_MAX,
            Place::Postgres(_) => POSTGRES_RATIO_MAX,
        }
    }

    /// A database that nobody else has, in `folder` where it is a file.
    pub(crate) fn database<'a>(&'a self, runtime: &'a Runtime, folder: &Path) -> Result<Database<'a>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = match self {
            Place::Sqlite => folder.join(format!("{number}.db")).display().to_string(),
            Place::Postgres(_) => format!("bench_{number}"),
        };
        let database = Database { place: self, runtime, name };
        if let Place::Postgres(cluster) = self {
            database.administer(cluster, &format!("CREATE DATABASE {}", database.name))?;
        }
        Ok(database)
    }
}

/// The database of one contestant. Dropped, it is gone.
pub(crate) struct Database<'a> {
    place: &'a Place,
    runtime: &'a Runtime,
    pub(crate) name: String,
}

impl Database<'_> {
    fn administer(&self, cluster: &Cluster, statement: &str) -> Result<()> {
        self.runtime.block_on(async {
            let mut connection = server(cluster, "postgres").connect().await?;
            connection.execute(AssertSqlSafe(statement.to_owned())).await.with_context(|| statement.to_owned())?;
            Ok(connection.close().await?)
        })
    }

    fn config(&self) -> Result<Config> {
        let section = match self.place {
            Place::Sqlite => json!({"type": "sqlite", "name": self.name}),
            Place::Postgres(cluster) => json!({
                "type": "postgresql", "host": "127.0.0.1", "port": cluster.port(), "name": self.name,
                "username": ROLE, "password": cluster.password(), "ssl_mode": "disable",
            }),
        };
        Ok(Config::from_value(json!({"storage": {"strategy": "sql", "sql_strategy": section}}), Path::new("/"))?)
    }

    fn native<'a>(&self, runtime: &'a Runtime) -> Result<Native<'a, SqlStore<NativeSql>>> {
        Native::open(runtime, &self.config()?, "sql")
    }

    fn component<'a>(&self, settings: &Settings, runtime: &'a Runtime) -> Result<Component<'a>> {
        Component::open(settings, runtime, self.config()?)
    }

    /// A program's own connection, set up as larder's are.
    pub(crate) async fn connect(&self) -> Result<Program> {
        Ok(match self.place {
            Place::Sqlite => {
                let options = SqliteConnectOptions::new()
                    .filename(&self.name)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .foreign_keys(true)
                    .pragma("cache_size", "-16384")
                    .disable_statement_logging();
                Program::Sqlite(options.connect().await?)
            }
            Place::Postgres(cluster) => Program::Postgres(server(cluster, &self.name).connect().await?),
        })
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        if let Place::Postgres(cluster) = self.place {
            // The cluster goes after all of them.
            let _ = self.administer(cluster, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
    }
}

fn server(cluster: &Cluster, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(cluster.port())
        .username(ROLE)
        .password(cluster.password())
        .database(database)
        .ssl_mode(PgSslMode::Disable)
        .disable_statement_logging()
}

/// A program without larder, which has declared what a machine is.
pub(crate) enum Program {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// What it makes of a row: the JSON that it answers somebody with.
#[derive(Serialize)]
struct Read {
    machine_id: String,
    request_id: String,
    template_id: String,
    status: String,
    instance_type: Option<String>,
    provider_instance_id: Option<String>,
    private_ip: Option<String>,
    public_ip: Option<String>,
    created_at: Option<String>,
    started_at: Option<String>,
    terminated_at: Option<String>,
    version: i64,
}

/// Reads a row of either database.
macro_rules! read {
    ($row:expr) => {{
        let row = $row;
        Read {
            machine_id: row.try_get(0)?,
            request_id: row.try_get(1)?,
            template_id: row.try_get(2)?,
            status: row.try_get(3)?,
            instance_type: row.try_get(4)?,
            provider_instance_id: row.try_get(5)?,
            private_ip: row.try_get(6)?,
            public_ip: row.try_get(7)?,
            created_at: row.try_get(8)?,
            started_at: row.try_get(9)?,
            terminated_at: row.try_get(10)?,
            version: row.try_get(11)?,
        }
    }};
}

/// Binds a machine's members in the order of [`INSERTED`].
macro_rules! bind {
    ($query:expr, $machine:expr, $version:expr) => {
        $query
            .bind($machine.machine_id)
            .bind($machine.request_id)
            .bind($machine.template_id)
            .bind($machine.status)
            .bind($machine.instance_type)
            .bind($machine.private_ip)
            .bind($machine.created_at)
            .bind($version)
    };
}
pub(crate) use bind;

pub(crate) const INSERTED: &str =
    "machine_id, request_id, template_id, status, instance_type, private_ip, created_at, version";
pub(crate) const SQLITE_VALUES: &str = "?, ?, ?, ?, ?, ?, ?, ?";
pub(crate) const POSTGRES_VALUES: &str = "$1, $2, $3, $4, $5, $6, $7::text::timestamp, $8";
const REPLACED: &str = "request_id = excluded.request_id, template_id = excluded.template_id, status = excluded.status, \
                        instance_type = excluded.instance_type, private_ip = excluded.private_ip, \
                        created_at = excluded.created_at, version = excluded.version";

impl Program {
    async fn get(&mut self, id: &str) -> Result<Vec<u8>> {
        let read = match self {
            Program::Sqlite(connection) => {
                let text = format!("SELECT {COLUMNS} FROM machines WHERE machine_id IN (?)");
                read!(sqlx::query(AssertSqlSafe(text)).bind(id).fetch_one(connection).await?)
            }
            Program::Postgres(connection) => {
                let text = format!("SELECT {COLUMNS} FROM machines WHERE machine_id IN ($1)");
                read!(sqlx::query(AssertSqlSafe(text)).bind(id).fetch_one(connection).await?)
            }
        };
        Ok(serde_json::to_vec(&read)?)
    }

    /// In place of what is stored, with the version that follows, which nobody else may write meanwhile.
    async fn save(&mut self, body: &[u8]) -> Result<()> {
        let machine: Machine = serde_json::from_slice(body)?;
        let upsert = |values: &str| {
            AssertSqlSafe(format!(
                "INSERT INTO machines ({INSERTED}) VALUES ({values}) ON CONFLICT (machine_id) DO UPDATE SET {REPLACED}"
            ))
        };
        match self {
            Program::Sqlite(connection) => {
                let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
                let text = format!("SELECT {COLUMNS} FROM machines WHERE machine_id IN (?)");
                let stored = sqlx::query(AssertSqlSafe(text)).bind(machine.machine_id);
                let stored = read!(stored.fetch_one(&mut *transaction).await?);
                bind!(sqlx::query(upsert(SQLITE_VALUES)), machine, stored.version + 1)
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
            }
            Program::Postgres(connection) => {
                let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
                let text = format!("SELECT {COLUMNS} FROM machines WHERE machine_id IN ($1) FOR UPDATE");
                let stored = sqlx::query(AssertSqlSafe(text)).bind(machine.machine_id);
                let stored = read!(stored.fetch_one(&mut *transaction).await?);
                let upsert = bind!(sqlx::query(upsert(POSTGRES_VALUES)), machine, stored.version + 1);
                upsert.execute(&mut *transaction).await?;
                transaction.commit().await?;
            }
        }
        Ok(())
    }

    /// One INSERT a row, in transactions of the size of larder's batches.
    async fn insert(&mut self, machines: &[Entity]) -> Result<Duration> {
        let insert = |values: &str| AssertSqlSafe(format!("INSERT INTO machines ({INSERTED}) VALUES ({values})"));
        let started = Instant::now();
        for batch in machines.chunks(BATCH_ENTITIES) {
            match self {
                Program::Sqlite(connection) => {
                    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
                    for entity in batch {
                        let machine: Machine = serde_json::from_slice(&entity.body)?;
                        let insert = bind!(sqlx::query(insert(SQLITE_VALUES)), machine, machine.version);
                        insert.execute(&mut *transaction).await?;
                    }
                    transaction.commit().await?;
                }
                Program::Postgres(connection) => {
                    let mut transaction = connection.begin().await?;
                    for entity in batch {
                        let machine: Machine = serde_json::from_slice(&entity.body)?;
                        let insert = bind!(sqlx::query(insert(POSTGRES_VALUES)), machine, machine.version);
                        insert.execute(&mut *transaction).await?;
                    }
                    transaction.commit().await?;
                }
            }
        }
        Ok(started.elapsed())
    }

    async fn close(self) -> Result<()> {
        match self {
            Program::Sqlite(connection) => connection.close().await?,
            Program::Postgres(connection) => connection.close().await?,
        }
        Ok(())
    }
}

/// Rows against the strategy natively, and rows against statements.
#[derive(Default)]
struct Rows {
    native: Vec<Row>,
    statements: Vec<Row>,
}

/// Both databases.
pub(crate) fn measure(settings: &Settings, runtime: &Runtime) -> Result<Vec<Section>> {
    let cluster = Cluster::start(&settings.postgres, ClusterSettings { fsync: true, ..ClusterSettings::default() })?;
    let count = if settings.quick { 2_000 } else { 20_000 };
    let data = Arc::new(Data::new(count)?);
    let mut rows = Rows::default();
    let places = [Place::Postgres(Box::new(cluster)), Place::Sqlite];
    for place in &places {
        single(settings, runtime, place, &data, &mut rows).with_context(|| place.name())?;
    }
    // SQLite's loads are among the other strategies'.
    load(settings, runtime, &places[0], &data, &mut rows).context("a load into PostgreSQL")?;
    let section = |title, peer, rows| Section { title, peer, rows };
    Ok(vec![
        section("A database behind a component, and the same strategy natively", "native", rows.native),
        section("A database behind a component, and the same statements without larder", "statements", rows.statements),
    ])
}

fn single(settings: &Settings, runtime: &Runtime, place: &Place, data: &Arc<Data>, rows: &mut Rows) -> Result<()> {
    let folder = settings.folder()?;
    let databases = [(); 3].map(|()| place.database(runtime, folder.path()));
    let [of_component, of_native, of_program] = databases;
    let (of_component, of_native, of_program) = (of_component?, of_native?, of_program?);
    let mut component = of_component.component(settings, runtime)?;
    let mut native = of_native.native(runtime)?;
    {
        // Larder makes the tables of the program too.
        let mut filler = of_program.native(runtime)?;
        let sides: [&mut dyn Side; 3] = [&mut component, &mut native, &mut filler];
        for side in sides {
            data.load_referenced(side)?;
            data.load_machines(side)?;
        }
        filler.close();
    }
    let program = Arc::new(Mutex::new(runtime.block_on(of_program.connect())?));
    if let Place::Postgres(_) = place {
        for database in [&of_component, &of_native, &of_program] {
            // Otherwise the server comes to look at its tables at any moment of its own.
            runtime.block_on(async {
                let Program::Postgres(mut connection) = database.connect().await? else { return Ok(()) };
                connection.execute("VACUUM ANALYZE").await?;
                anyhow::Ok(connection.close().await?)
            })?;
        }
    }

    let saves = if settings.quick { SAVES_QUICK } else { SAVES };
    let (name, count, max) = (place.name(), data.machines.len(), place.ratio_max());
    let mut row = |what: String, [component, native, program, component_in_task, program_in_task]: [Times; 5]| {
        rows.statements.push(Row::new(&what, &component, &program).at_most(max));
        // How long they are woken for differs from run to run more than the two sides do: it is told, not judged.
        rows.statements.push(Row::new(format!("{what}, in a task"), &component_in_task, &program_in_task));
        rows.native.push(Row::new(&what, &component, &native));
    };
    // From a thread of their own, as a program calls who waits for the answer there; and below in a task, as a server does.
    let get = |side: &mut dyn Side| {
        let work = || {
            for machine in data.some(GETS) {
                ensure!(side.get(&machine.id)? == 1, "{} is not there", machine.id);
            }
            Ok(())
        };
        timed(work).map(|(took, ())| took)
    };
    let save = |side: &mut dyn Side| {
        let work = || data.some(saves).try_for_each(|machine| side.save(machine));
        timed(work).map(|(took, ())| took)
    };
    let repository = component.repository();
    let times = take_turns(
        settings.rounds(),
        [
            Box::new(|| get(&mut component)),
            Box::new(|| get(&mut native)),
            Box::new(|| {
                let work = || {
                    for machine in data.some(GETS) {
                        let answer = runtime.block_on(async { program.lock().await.get(&machine.id).await })?;
                        ensure!(answer.len() > 100, "{} is not there", machine.id);
                    }
                    Ok(())
                };
                timed(work).map(|(took, ())| took)
            }),
            Box::new(|| get_in_task(runtime, &repository, data, GETS)),
            Box::new(|| {
                let (program, data) = (program.clone(), data.clone());
                in_task(runtime, async move {
                    let mut program = program.lock().await;
                    for machine in data.some(GETS) {
                        let answer = program.get(&machine.id).await?;
                        ensure!(answer.len() > 100, "{} is not there", machine.id);
                    }
                    Ok(())
                })
            }),
        ],
    )?;
    row(format!("{name}: get one of {count}, {GETS} times"), times);
    let times = take_turns(
        settings.rounds(),
        [
            Box::new(|| save(&mut component)),
            Box::new(|| save(&mut native)),
            Box::new(|| {
                let work = || {
                    for machine in data.some(saves) {
                        runtime.block_on(async { program.lock().await.save(&machine.body).await })?;
                    }
                    Ok(())
                };
                timed(work).map(|(took, ())| took)
            }),
            Box::new(|| save_in_task(runtime, &repository, data, saves)),
            Box::new(|| {
                let (program, data) = (program.clone(), data.clone());
                in_task(runtime, async move {
                    let mut program = program.lock().await;
                    for machine in data.some(saves) {
                        program.save(&machine.body).await?;
                    }
                    Ok(())
                })
            }),
        ],
    )?;
    row(format!("{name}: save one of {count}, {saves} times"), times);

    // Each has done the same.
    let first = data.some(1).next().context("a machine")?;
    let mut program = Arc::into_inner(program).context("nobody else has the connection any more")?.into_inner();
    let answer: Value = serde_json::from_slice(&runtime.block_on(program.get(&first.id))?)?;
    ensure!(answer["version"].as_u64() > Some(settings.rounds() as u64), "the program's saves did not count: {answer}");
    runtime.block_on(program.close())?;
    component.close();
    native.close();
    Ok(())
}

fn load(settings: &Settings, runtime: &Runtime, place: &Place, data: &Data, rows: &mut Rows) -> Result<()> {
    let load = |side: &mut dyn Side| {
        data.load_referenced(side)?;
        let took = data.load_machines(side)?;
        side.close();
        Ok(took)
    };
    let folder = settings.folder()?;
    let database = || place.database(runtime, folder.path());
    let [component, native, program] = take_turns(
        settings.rounds(),
        [
            Box::new(|| {
                let database = database()?;
                load(&mut database.component(settings, runtime)?)
            }),
            Box::new(|| {
                let database = database()?;
                load(&mut database.native(runtime)?)
            }),
            Box::new(|| {
                let database = database()?;
                let mut side = database.native(runtime)?;
                data.load_referenced(&mut side)?;
                side.close();
                runtime.block_on(async {
                    let mut program = database.connect().await?;
                    let took = program.insert(&data.machines).await?;
                    program.close().await?;
                    Ok(took)
                })
            }),
        ],
    )?;
    let what = format!("{}: load {}", place.name(), data.machines.len());
    rows.native.push(Row::new(&what, &component, &native).at_most(LOAD_RATIO_MAX));
    rows.statements.push(Row::new(what + ", beside one INSERT a row", &component, &program).at_most(INSERTS_RATIO_MAX));
    Ok(())
}
