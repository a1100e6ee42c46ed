//! The handle on an open store: what an application and every command use.
//!
//! It owns the instances of the strategy, gives each call a deadline, waits for locks on the strategy's behalf, and
//! believes nothing that comes back: ids must be the ones asked for, bodies must be JSON objects under their own key. What
//! a strategy leaves of a query is filtered and sorted here ([`crate::query`]).

/// Calls an export on a leased instance, and again after `busy`. A macro, because the arguments are borrowed over the
/// repetition and a closure cannot say so.
macro_rules! call {
    ($store:expr, $operation:literal, |$guest:ident, $context:ident| $call:expr) => {{
        let deadline = $store.deadline();
        call!($store, $operation, until deadline, |$guest, $context| $call)
    }};
    ($store:expr, $operation:literal, until $deadline:expr, |$guest:ident, $context:ident| $call:expr) => {{
        let deadline = $deadline;
        let (value, lease) = leased!($store, lease(deadline), $operation, |$guest, $context| $call);
        $store.release(lease);
        value
    }};
}

/// The same for who has more to do with the lease, and says how to get it.
macro_rules! leased {
    ($store:expr, $lease:ident($deadline:expr), $operation:literal, |$guest:ident, $context:ident| $call:expr) => {{
        let mut waited = None;
        loop {
            let mut lease = $store.$lease($deadline).await?;
            let ended = {
                let ($guest, $context) = lease.instance.parts();
                instance::bounded($deadline, $store.settings.cpu_timeout, $call).await
            };
            // Whatever the call made of the lock that was waited for, it needs no reserve any more.
            drop(waited.take());
            match $store.settle(lease, $operation, ended)? {
                Settled::Value(value, lease) => break (value, lease),
                Settled::Busy(lease) => {
                    $store.release(lease);
                    waited = Some($store.wait_for_lock($deadline).await?);
                }
            }
        }
    }};
}

mod edition;
mod group_commit;
mod leaving;
mod progress;
mod quarantine;
mod transaction;

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use larder_model::filter::{self, Filter};
use larder_model::json::Members;
use larder_model::{
    Batch, Collection, Entity, ErrorKind, Existing, Expectation, Isolation, Loaded, Opened, Outcome, Page, Put, Query,
    Removal, Retry, Violation, Write, entity,
};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::capability::faults::Faults;
use crate::capability::files::Directory;
use crate::capability::sql::Database;
use crate::capability::{Lent, Watch};
use crate::config::{self, PluginSettings};
use crate::error::{Error, Kind, Result};
use crate::plugin::Plugin;
use crate::plugin::bindings::{self, StrategyPre, types};
use crate::plugin::instance::{self, Instance, Overrun, State};
use crate::plugin::limits::{Bounds, Exceeded, Limits, MemoryTotal};
use crate::text::one_line;

/// More entities than this are in no store.
const COUNT_MAX: u64 = 1 << 48;
/// Times that a patch is tried again after somebody else changed the entity.
const REWRITES_MAX: u32 = 16;
/// What it may take for each entity to make what is made behind a load.
const ENTITY_TIME: Duration = Duration::from_micros(100);
/// Bytes of bodies in one reply: large enough that a crossing costs nothing beside its content.
pub(crate) const PAGE_BYTES_MAX: u32 = 4 << 20;

use edition::{Edition, Seat, Seats};
use group_commit::Ticket;
pub(crate) use leaving::Kept;
use leaving::Use;
pub(crate) use progress::Progress;
use quarantine::Quarantine;
pub use transaction::Transaction;

/// How a plugin is looked at while it works. The default is not at all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrutiny {
    /// Every call gets an instance of its own, unless the one before it left something that is not durable yet.
    pub(crate) fresh_instances: bool,
    /// A collection that the host knows and the plugin is not told of.
    pub(crate) withheld: Option<&'static str>,
    /// Takes the names of the functions that were called.
    pub(crate) called: Option<Arc<Mutex<BTreeSet<&'static str>>>>,
    /// Which of the plugin's calls to the host goes wrong.
    pub(crate) faults: Option<Faults>,
}

impl Scrutiny {
    fn note(&self, operation: &'static str) {
        if let Some(called) = &self.called {
            locked(called).insert(operation);
        }
    }
}

/// An open store. Cheap to clone; clones and calls may run side by side.
///
/// An entity is a JSON object; its id is in the member that the collection names as its key. Writes take the body as JSON text,
/// from [`crate::encode`] for whatever serializes; reads give an [`Entity`], with [`Entity::decode`] into a type of the
/// caller's own and [`Entity::fields`] into members with exact numbers.
///
/// ```
/// # larder_tests::on_every_strategy(async |repository| {
/// use larder::Expectation;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Machine {
///     machine_id: String,
///     request_id: String,
///     template_id: String,
///     status: String,
///     #[serde(default, skip_serializing_if = "Option::is_none")]
///     version: Option<u64>,
/// }
///
/// let machine = Machine {
///     machine_id: "machine-1".into(),
///     request_id: "req-1".into(),
///     template_id: "small".into(),
///     status: "PENDING".into(),
///     version: None,
/// };
/// repository.save("machines", &larder::encode(&machine)?, Expectation::Absent).await?;
///
/// let stored = repository.get_one("machines", "machine-1").await?.ok_or("it is gone")?;
/// let machine: Machine = stored.decode()?;
/// assert_eq!((machine.status.as_str(), machine.version), ("PENDING", Some(1)));
/// # Ok(()) });
/// ```
///
/// # Optimistic locking
///
/// Each write gives an entity the next version. An update that expects a version takes effect only where that is the stored
/// one; otherwise it is `version-conflict`, and [`Error::current_version`] is what is stored.
///
/// ```
/// # larder_tests::on_every_strategy(async |repository| {
/// use larder::ErrorKind;
/// use serde_json::json;
///
/// let read = repository.get_one("requests", "req-1").await?.ok_or("it is gone")?;
/// let mut mine = read.fields()?;
/// mine.insert("status".into(), json!("RUNNING"));
///
/// // Meanwhile somebody else changes the request.
/// let change = json!({"machine_count": 3});
/// repository.patch("requests", "req-1", change.as_object().unwrap(), None, None).await?;
///
/// let mut expected = read.version;
/// let outcome = loop {
///     match repository.update("requests", "req-1", &larder::encode(&mine)?, Some(expected)).await {
///         Ok(outcome) => break outcome,
///         Err(error) if error.is(ErrorKind::VersionConflict) => {
///             // Read again, and merge: theirs, but with our status.
///             let latest = repository.get_one("requests", "req-1").await?.ok_or("it is gone")?;
///             assert_eq!(error.current_version, Some(latest.version));
///             mine = latest.fields()?;
///             mine.insert("status".into(), json!("RUNNING"));
///             expected = latest.version;
///         }
///         Err(error) => return Err(error.into()),
///     }
/// };
/// assert_eq!(outcome.version, read.version + 2);
/// # let fields = repository.get_one("requests", "req-1").await?.ok_or("it is gone")?.fields()?;
/// # assert_eq!((&fields["status"], fields["machine_count"].as_u64()), (&json!("RUNNING"), Some(3)));
/// # Ok(()) });
/// ```
///
/// Where the change does not depend on the rest of the entity, [`Repository::patch`] does all of this by itself.
///
/// # Errors
///
/// Of every operation, beside its own: `invalid-argument` for an unknown collection, an id that is none, or a body that is no
/// entity; `corrupt` for what is stored and no entity; `timeout`, `unavailable` and `limit-exceeded` as the
/// storage goes; a trap, which is [`crate::error::Kind::Trap`], where the plugin failed. [`Error::retry`] says whether the same
/// call may be sent again; after `unknown-outcome` it may have taken effect.
#[derive(Clone)]
pub struct Repository {
    store: Arc<Store>,
    used: Arc<Use>,
}

struct Store {
    name: String,
    /// The plugin's name, whichever version of it is used.
    strategy: String,
    edition: RwLock<Arc<Edition>>,
    lent: Lent,
    section: String,
    collections: Vec<Collection>,
    settings: PluginSettings,
    memory_total: Arc<MemoryTotal>,
    scrutiny: Scrutiny,
    quarantine: Quarantine,
    /// Writes that stand in the queue for an instance.
    queued_writes: AtomicUsize,
    /// Of what was loaded, where the instance that was given it has to flush it.
    loads: Mutex<Vec<Ticket>>,
}

/// An instance for the time of a call. Dropped without [`Store::release`], by a trap or because the caller went
/// away, it takes the instance with it: a call that did not end leaves nothing that can be used again.
struct Lease {
    /// Boxed: it is some kilobytes, and goes from hand to hand with each call.
    instance: Box<Instance>,
    seat: Seat,
    /// Which the instance is of: a call ends on the one that it began on.
    edition: Arc<Edition>,
}

/// What became of a call that ended, with the instance that it was made of.
enum Settled<T> {
    Value(T, Lease),
    /// To be made again, once the lock that it needs was waited for.
    Busy(Lease),
}

/// A lock that was waited for and is kept until the call that needs it was made again.
struct Reserve(Directory);

impl Drop for Reserve {
    fn drop(&mut self) {
        self.0.release_reserve();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Store {
    /// Of a call that begins now.
    fn deadline(&self) -> Instant {
        Instant::now() + self.settings.call_timeout
    }

    async fn lease(&self, deadline: Instant) -> Result<Lease> {
        self.check_quarantine()?;
        let (edition, seat, idle) = self.seat(deadline).await?;
        let instance = match idle {
            Some(instance) => instance,
            None => self.open_instance(&edition, deadline).await?,
        };
        Ok(Lease { instance, seat, edition })
    }

    /// A place for a call, and the instance that waits there, if one does.
    async fn seat(&self, deadline: Instant) -> Result<(Arc<Edition>, Seat, Option<Box<Instance>>)> {
        // To wait for an instance is to wait for a connection, where there are as many of the one as of the other.
        let timeout = self.lent.sql.as_ref().map_or(self.settings.call_timeout, Database::pool_timeout);
        let timeout = timeout.min(self.settings.call_timeout);
        let deadline = deadline.min(Instant::now() + timeout);
        let late = || {
            let message = format!("store `{}` was busy for {} s", self.name, timeout.as_secs_f64());
            Error { retry: Retry::Safe, ..Error::contract(ErrorKind::Timeout, message) }
        };
        loop {
            let edition = self.edition();
            let taken = edition.seats.take(deadline).await.ok_or_else(late)?;
            // Where another version took over while it stood in the queue, it goes on to that.
            if Arc::ptr_eq(&edition, &self.edition()) {
                let (seat, instance) = edition.seats.sit(taken);
                return Ok((edition, seat, instance));
            }
        }
    }

    fn release(&self, lease: Lease) {
        if self.scrutiny.fresh_instances && !lease.instance.is_unsynced {
            return;
        }
        match (lease.seat, &lease.edition.seats) {
            (Seat::One(mut guard), _) => *guard = Some(lease.instance),
            (Seat::Many { _permit }, Seats::Many { idle, .. }) => {
                locked(idle).push(lease.instance);
            }
            (Seat::Many { .. }, Seats::One(_)) => unreachable!("a lease goes back to where it came from"),
        }
    }

    async fn open_instance(&self, edition: &Edition, deadline: Instant) -> Result<Box<Instance>> {
        let plugin = &self.strategy;
        let told = |collection: &&Collection| self.scrutiny.withheld != Some(collection.name.as_str());
        let collections: Vec<_> = self.collections.iter().filter(told).map(bindings::collection_into).collect();
        let mut reserve = None;
        loop {
            let mut state = State::new(Limits::from(&self.settings), self.memory_total.clone(), &self.lent);
            state.faults = self.scrutiny.faults.clone();
            let made = Instance::new(&edition.pre, plugin, state, deadline, &self.settings).await;
            let mut instance = Box::new(made.inspect_err(|error| {
                if error.kind == Kind::Trap {
                    self.note_trap(error);
                }
            })?);
            let ended = {
                let (guest, store) = instance.parts();
                let call = guest.call_open(store, &self.section, &collections);
                instance::bounded(deadline, self.settings.cpu_timeout, call).await
            };
            drop(reserve.take());
            match ended {
                Ok(Ok(Ok(opened))) => {
                    self.scrutiny.note("open");
                    let _ = edition.opened.set(Opened {
                        enforces_references: opened.enforces_references,
                        enforces_fields: opened.enforces_fields,
                        has_rules: opened.has_rules,
                        needs_no_flush: opened.needs_no_flush,
                        warnings: opened.warnings.iter().map(|warning| one_line(warning)).collect(),
                    });
                    return Ok(instance);
                }
                Ok(Ok(Err(error))) if matches!(error.kind, types::ErrorKind::Busy) => {
                    drop(instance);
                    reserve = Some(self.wait_for_lock(deadline).await?);
                }
                Ok(Ok(Err(error))) => {
                    let error: Error = clean(error).into();
                    return Err(error.context(format!("cannot open store `{}`", self.name)));
                }
                Ok(Err(error)) => return Err(self.trapped("open", &error, instance.store.data())),
                Err(overrun) => return Err(self.overran("open", overrun)),
            }
        }
    }

    async fn wait_for_lock(&self, deadline: Instant) -> Result<Reserve> {
        match &self.lent.files {
            Some(directory) => {
                directory.wait_for_lock(deadline).await?;
                Ok(Reserve(directory.clone()))
            }
            None => Err(self.misbehaved("answers `busy` without waiting for a lock")),
        }
    }

    /// The value of a call, or that it has to be made again. After any other error of the strategy's the instance is back in
    /// its seat; where the call trapped or overran, it is gone.
    fn settle<T>(
        &self,
        mut lease: Lease,
        operation: &'static str,
        ended: Result<wasmtime::Result<Result<T, types::Error>>, Overrun>,
    ) -> Result<Settled<T>> {
        self.scrutiny.note(operation);
        if let Ok(Ok(_)) = ended {
            self.note_answer();
        }
        match ended {
            Ok(Ok(Ok(value))) => {
                lease.instance.is_unsynced = self.leaves_unsynced(operation, lease.instance.is_unsynced);
                Ok(Settled::Value(value, lease))
            }
            Ok(Ok(Err(error))) if matches!(error.kind, types::ErrorKind::Busy) => Ok(Settled::Busy(lease)),
            Ok(Ok(Err(error))) => {
                self.release(lease);
                Err(self.advised(clean(error)))
            }
            Ok(Err(error)) => Err(self.trapped(operation, &error, lease.instance.store.data())),
            Err(overrun) => Err(self.overran(operation, overrun)),
        }
    }

    /// The error of a call that trapped.
    fn trapped(&self, operation: &str, trap: &wasmtime::Error, state: &State) -> Error {
        let error = instance::trapped(&self.strategy, operation, trap, state);
        // Where its neighbours have the memory, it is not the plugin's fault.
        if !matches!(state.exceeded(trap), Some(Exceeded::MemoryTotal(_))) {
            self.note_trap(&error);
        }
        error
    }

    /// The error of a call that was given up.
    fn overran(&self, operation: &str, overrun: Overrun) -> Error {
        let error = instance::overran(&self.strategy, operation, overrun, &self.settings);
        // Where a call only took its time, it may have waited for its storage.
        if overrun == Overrun::Cpu {
            self.note_trap(&error);
        }
        error
    }

    /// An error where a call carries more than it may.
    fn check_request(&self, operation: &str, entities: usize, bytes: usize) -> Result<()> {
        if bytes > self.settings.call_bytes_max {
            return Err(instance::too_large(&self.strategy, operation, &Limits::from(&self.settings)));
        }
        self.check_count(operation, entities)
    }

    /// An error where more entities, ids or writes cross at once than may.
    fn check_count(&self, what: &str, count: usize) -> Result<()> {
        let count_max = self.settings.call_entities_max;
        if count <= count_max {
            return Ok(());
        }
        let message =
            format!("{what} of {count} with plugin `{}`, and at most {count_max} cross at once", self.strategy);
        Err(Error::contract(ErrorKind::LimitExceeded, message)
            .hint("make several calls of it, or raise `plugins.call_entities_max`"))
    }

    /// Whether an instance holds writes that a `flush` has still to make durable.
    fn leaves_unsynced(&self, operation: &'static str, before: bool) -> bool {
        match operation {
            "flush" => false,
            "load" => true,
            "apply" | "transaction.commit" => before || self.defers_sync(),
            _ => before,
        }
    }

    /// Whether a write is durable only after a `flush`.
    fn defers_sync(&self) -> bool {
        let edition = self.edition();
        let needs_no_flush = edition.opened.get().is_some_and(|opened| opened.needs_no_flush);
        edition.plugin.description.features.deferred_sync && !needs_no_flush
    }

    /// An error of the strategy's, with what a person can do about it.
    fn advised(&self, error: larder_model::Error) -> Error {
        let name = &self.name;
        let hint = match error.kind {
            ErrorKind::Corrupt => Some(format!(
                "`larder stores check --store {name}` looks at all of it, and `larder restore --store {name}` prints the \
                 states that can be brought back, if it keeps any"
            )),
            _ => self.lent.advice(&error),
        };
        Error { hint, ..error.into() }
    }

    /// The error of a reply that cannot be true.
    fn misbehaved(&self, what: impl std::fmt::Display) -> Error {
        Error::contract(ErrorKind::Corrupt, format!("plugin `{}` {what}", self.strategy))
            .hint("this is a fault of the plugin, not of the data: replace it")
    }
}

fn not_found(collection: &str, id: &str) -> Error {
    Error::contract(ErrorKind::NotFound, format!("{collection} has no `{}`", one_line(id)))
}

/// `version-conflict` where the condition does not hold for what is stored.
fn check_condition(condition: Option<&Filter>, stored: &Entity, collection: &str, id: &str) -> Result<()> {
    let Some(condition) = condition else { return Ok(()) };
    if condition.matches(&larder_model::json::parse_object(&stored.body)?) {
        return Ok(());
    }
    let message = format!("{collection} `{id}`: the condition does not hold for the stored entity");
    let error = larder_model::Error::new(ErrorKind::VersionConflict, message);
    Err(larder_model::Error { current_version: Some(stored.version), ..error }.into())
}

/// The body of an entity after a merge patch.
fn patched(collection: &Collection, stored: &Entity, patch: &Map<String, Value>) -> Result<Vec<u8>> {
    let fields = larder_model::json::parse_object(&stored.body)?;
    Ok(larder_model::json::to_vec(&entity::patched(collection, fields, patch)))
}

/// What a stored entity becomes by a merge patch, and the version that it was made from.
pub(crate) async fn merged(
    repository: &Repository,
    collection: &str,
    id: &str,
    patch: &Map<String, Value>,
) -> Result<(Map<String, Value>, u64)> {
    let found = repository.get(collection, &[id.to_owned()]).await?.remove(0);
    let stored = found.ok_or_else(|| not_found(collection, id))?;
    let fields = larder_model::json::parse_object(&stored.body)?;
    Ok((entity::patched(repository.collection(collection)?, fields, patch), stored.version))
}

/// The error with its text made safe to print.
fn clean(error: types::Error) -> larder_model::Error {
    let mut error = bindings::error_from(error);
    error.message = one_line(&error.message);
    error
}

impl Repository {
    /// Opens a store: instantiates the strategy once, so that a mistake in its section shows now.
    pub(crate) async fn open(
        configured: &config::Store,
        plugin: Plugin,
        pre: StrategyPre<State>,
        lent: Lent,
        collections: Vec<Collection>,
        bounds: Bounds,
        scrutiny: Scrutiny,
    ) -> Result<Repository> {
        let Bounds { settings, memory_total } = bounds;
        let name = configured.name.clone();
        let section = Value::Object(configured.section.clone()).to_string();
        let store = Store {
            name,
            strategy: plugin.name.clone(),
            edition: RwLock::new(Arc::new(Edition::new(plugin, pre, &lent, settings.store_instances_max))),
            lent,
            section,
            collections,
            settings,
            memory_total,
            scrutiny,
            quarantine: Quarantine::default(),
            queued_writes: AtomicUsize::new(0),
            loads: Mutex::default(),
        };
        let lease = store.lease(store.deadline()).await?;
        store.release(lease);
        Ok(Repository::new(store))
    }

    /// The store's name in the configuration.
    pub fn name(&self) -> &str {
        &self.store.name
    }

    /// The version of the plugin that serves it now.
    pub fn plugin(&self) -> Arc<Plugin> {
        self.store.edition().plugin.clone()
    }

    /// What `open` said of it.
    pub fn opened(&self) -> Opened {
        self.store.edition().opened.get().cloned().unwrap_or_default()
    }

    /// See [`Lent::is_remote`].
    pub(crate) fn is_remote(&self) -> bool {
        self.store.lent.is_remote()
    }

    /// What tells whether the store changes from here on without reading it, where something does, see [`Lent::watch`].
    pub(crate) async fn watch(&self) -> Option<Watch> {
        if self.holds_loads() {
            return None;
        }
        self.store.lent.watch().await
    }

    /// Whether the store is as it was when the watch began. False where that cannot be told.
    pub(crate) async fn saw_no_change(&self, watch: &mut Watch) -> bool {
        !self.holds_loads() && watch.saw_no_change().await
    }

    /// Whether what was loaded is perhaps in no file before it is flushed.
    fn holds_loads(&self) -> bool {
        !locked(&self.store.loads).is_empty()
    }

    pub(crate) fn settings(&self) -> &PluginSettings {
        &self.store.settings
    }

    /// The collections that it was opened with.
    pub fn collections(&self) -> &[Collection] {
        &self.store.collections
    }

    /// The definition of a collection, or `invalid-argument`.
    pub fn collection(&self, name: &str) -> Result<&Collection> {
        self.store.collections.iter().find(|collection| collection.name == name).ok_or_else(|| {
            let known: Vec<_> = self.store.collections.iter().map(|collection| collection.name.as_str()).collect();
            Error::contract(ErrorKind::InvalidArgument, format!("there is no collection `{}`", one_line(name)))
                .hint(format!("configured are: {}; declare more in `storage.collections`", known.join(", ")))
        })
    }

    /// The stored entity, none where there is none.
    pub async fn get_one(&self, collection: &str, id: &str) -> Result<Option<Entity>> {
        Ok(self.get(collection, &[id.to_owned()]).await?.remove(0))
    }

    /// One answer an id, in the order asked for; none where nothing is stored.
    pub async fn get(&self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        self.collection(collection)?;
        for id in ids {
            entity::check_id(id)?;
        }
        self.store.check_request("get", ids.len(), ids.iter().map(String::len).sum())?;
        let answers = call!(self.store, "get", |guest, store| guest.call_get(store, collection, ids));
        self.check_answers(collection, ids, answers)
    }

    /// What a strategy answered to a get, if it can be true.
    fn check_answers(
        &self,
        collection: &str,
        ids: &[String],
        answers: Vec<Option<types::Entity>>,
    ) -> Result<Vec<Option<Entity>>> {
        let definition = self.collection(collection)?;
        if answers.len() != ids.len() {
            return Err(self.store.misbehaved(format!("answers {} ids with {} entities", ids.len(), answers.len())));
        }
        let mut entities = Vec::with_capacity(answers.len());
        for (answer, id) in answers.into_iter().zip(ids) {
            entities.push(match answer {
                Some(entity) if entity.id == *id => {
                    let entity = bindings::entity_from(entity);
                    self.checked(definition, &entity)?;
                    Some(entity)
                }
                Some(_) => return Err(self.store.misbehaved(format!("answers `{id}` with another entity"))),
                None => None,
            });
        }
        Ok(entities)
    }

    /// An error that [`Repository::apply`] answered for one write, with what a person can do about it.
    pub(crate) fn advised(&self, error: larder_model::Error) -> Error {
        self.store.advised(error)
    }

    /// The error of a reply that cannot be true.
    pub(crate) fn misbehaved(&self, what: impl std::fmt::Display) -> Error {
        self.store.misbehaved(what)
    }

    /// The members of an entity that a strategy gave, or `corrupt`.
    pub(crate) fn checked<'a>(&self, collection: &Collection, found: &'a Entity) -> Result<Members<'a>> {
        let at = || format!("{} `{}` in store `{}`", collection.name, one_line(&found.id), self.store.name);
        if found.body.len() as u64 > self.store.edition().plugin.description.max_entity_bytes {
            return Err(self.store.misbehaved(format!("gives {}, which is larger than it says it stores", at())));
        }
        let members = larder_model::json::members(&found.body).map_err(|error| {
            Error::contract(ErrorKind::Corrupt, format!("{} is no valid entity", at())).caused_by(error)
        })?;
        match entity::key_of(collection, &members) {
            Ok(key) if key == found.id => match entity::version_of(collection, &members) {
                version if version == found.version => Ok(members),
                version => Err(self.store.misbehaved(format!(
                    "gives version {} for {}, which says {version}",
                    found.version,
                    at()
                ))),
            },
            Ok(key) => Err(Error::contract(
                ErrorKind::Corrupt,
                format!("{} says in `{}` that it is `{}`", at(), collection.key, one_line(key)),
            )),
            Err(error) => {
                Err(Error::contract(ErrorKind::Corrupt, format!("{} is no valid entity", at()))
                    .caused_by(error.message))
            }
        }
    }

    /// Saves an entity under the id in its key member: creates it, or replaces the whole of it. Gives the id, and the version
    /// that is stored now.
    ///
    /// # Errors
    /// `already-exists`, `not-found` or `version-conflict`, as `expect` has it; `rejected` where a rule of the schema is
    /// broken: a field that is required, a reference that points nowhere, a text that is too long.
    pub async fn save(&self, collection: &str, body: &[u8], expect: Expectation) -> Result<(String, Outcome)> {
        let put = self.put(collection, body, expect)?;
        Ok((put.id.clone(), self.write(Write::Put(put)).await?))
    }

    /// The write that a save is.
    fn put(&self, collection: &str, body: &[u8], expect: Expectation) -> Result<Put> {
        let definition = self.collection(collection)?;
        let id = entity::check_key(definition, None, body)?;
        Ok(Put { collection: collection.into(), id, body: body.to_vec(), expect })
    }

    /// Replaces the whole of a stored entity, where `version` is given only that version of it.
    ///
    /// # Errors
    /// `not-found` where nothing is stored, `version-conflict` with the stored version where that is another one,
    /// `rejected` as for [`Repository::save`].
    pub async fn update(&self, collection: &str, id: &str, body: &[u8], version: Option<u64>) -> Result<Outcome> {
        let definition = self.collection(collection)?;
        entity::check_key(definition, Some(id), body)?;
        let expect = version.map_or(Expectation::Present, Expectation::Version);
        self.write(Write::Put(Put { collection: collection.into(), id: id.into(), body: body.to_vec(), expect })).await
    }

    /// Replaces the whole of a stored entity where the condition holds for what is stored. Read, judged and written
    /// against the version that was read, so that nothing comes between.
    ///
    /// ```
    /// # larder_tests::on_every_strategy(async |repository| {
    /// use larder::ErrorKind;
    /// use serde_json::json;
    ///
    /// let mut request = repository.get_one("requests", "req-1").await?.ok_or("it is gone")?.fields()?;
    /// request.insert("status".into(), json!("CANCELLED"));
    /// let body = larder::encode(&request)?;
    /// let pending = "status=PENDING".parse()?;
    /// repository.update_if("requests", "req-1", &body, None, &pending).await?;
    ///
    /// let error = repository.update_if("requests", "req-1", &body, None, &pending).await.unwrap_err();
    /// assert!(error.is(ErrorKind::VersionConflict), "it is not pending any more");
    /// assert_eq!(error.current_version, Some(2));
    /// # Ok(()) });
    /// ```
    ///
    /// # Errors
    /// `version-conflict` where the condition does not hold, or `version` is given and another one is stored; otherwise those
    /// of [`Repository::update`].
    pub async fn update_if(
        &self,
        collection: &str,
        id: &str,
        body: &[u8],
        version: Option<u64>,
        condition: &Filter,
    ) -> Result<Outcome> {
        entity::check_key(self.collection(collection)?, Some(id), body)?;
        self.rewrite(collection, id, version, Some(condition), |_| Ok(body.to_vec())).await
    }

    /// Changes members of a stored entity, only where the version and the condition hold that are given, by RFC 7396: a member that is null in the patch is removed, objects are merged, and
    /// everything else replaces what is there.
    pub async fn patch(
        &self,
        collection: &str,
        id: &str,
        patch: &Map<String, Value>,
        version: Option<u64>,
        condition: Option<&Filter>,
    ) -> Result<Outcome> {
        let definition = self.collection(collection)?;
        self.rewrite(collection, id, version, condition, |stored| patched(definition, stored, patch)).await
    }

    /// Reads, evaluates, and writes what was made of it. In a transaction, where the strategy has them: a version does not
    /// tell an entity from one that was saved under its name after it was deleted. Without them against the version that was
    /// read. Again after a lost race, unless a version was asked for.
    async fn rewrite(
        &self,
        collection: &str,
        id: &str,
        version: Option<u64>,
        condition: Option<&Filter>,
        body: impl Fn(&Entity) -> Result<Vec<u8>>,
    ) -> Result<Outcome> {
        self.collection(collection)?;
        let ids = [id.to_owned()];
        let rewritten = |stored: Option<Entity>| -> Result<(Vec<u8>, u64)> {
            let stored = stored.ok_or_else(|| not_found(collection, id))?;
            // Whatever is made of another version is not to be written over the expected one, even if that comes meanwhile.
            if let Some(version) = version {
                entity::check_expectation(Expectation::Version(version), Some(stored.version), collection, id)?;
            }
            check_condition(condition, &stored, collection, id)?;
            Ok((body(&stored)?, stored.version))
        };
        let mut attempts = REWRITES_MAX;
        loop {
            attempts -= 1;
            let ended = if self.store.edition().plugin.description.features.transactions {
                // What was read under a lock stays as it is: no more is asked of the isolation.
                let mut transaction = self.begin(Some(Isolation::ReadCommitted), false).await?;
                let rewritten =
                    transaction.get(collection, &ids, true).await.and_then(|mut it| rewritten(it.remove(0)));
                let (body, stored) = match rewritten {
                    Ok(rewritten) => rewritten,
                    Err(error) => {
                        // Only so that the instance can be used again: dropped, it would be rolled back too.
                        let _ = transaction.rollback().await;
                        match error.is(ErrorKind::VersionConflict) && error.retry == Retry::Safe && attempts > 0 {
                            true => continue,
                            false => return Err(error),
                        }
                    }
                };
                match transaction.update(collection, id, &body, Some(stored)).await {
                    Ok(outcome) => transaction.commit().await.map(|()| outcome),
                    Err(error) => {
                        let _ = transaction.rollback().await;
                        Err(error)
                    }
                }
            } else {
                let (body, stored) = rewritten(self.get(collection, &ids).await?.remove(0))?;
                self.update(collection, id, &body, Some(stored)).await
            };
            match ended {
                Err(error)
                    if error.is(ErrorKind::VersionConflict)
                        && (version.is_none() || error.retry == Retry::Safe)
                        && attempts > 0 => {}
                ended => return ended,
            }
        }
    }

    /// Removes an entity; the outcome says whether it was there. That it was not is an error only where a version was expected.
    ///
    /// # Errors
    /// `version-conflict` or `not-found` where `version` is given; `rejected` where others refer to it and the store sees to
    /// references.
    pub async fn delete(&self, collection: &str, id: &str, version: Option<u64>) -> Result<Outcome> {
        self.collection(collection)?;
        entity::check_id(id)?;
        let expect = version.map_or(Expectation::Any, Expectation::Version);
        self.write(Write::Remove(Removal { collection: collection.into(), id: id.into(), expect })).await
    }

    async fn write(&self, write: Write) -> Result<Outcome> {
        let mut results = self.apply(vec![write], false).await?;
        // `apply` has checked that there is one.
        results.remove(0).map_err(|error| self.store.advised(error))
    }

    /// Many writes in one call, over any collections: all or nothing with `atomic`, otherwise one result each, in order. The
    /// bodies must hold the ids that the writes name.
    ///
    /// ```
    /// # larder_tests::on_every_strategy(async |repository| {
    /// use larder::{Expectation, Put, Removal, Write};
    ///
    /// let body = br#"{"request_id": "req-3", "template_id": "small", "machine_count": 1,
    ///     "status": "PENDING", "request_type": "acquire"}"#;
    /// let writes = vec![
    ///     Write::Put(Put {
    ///         collection: "requests".into(),
    ///         id: "req-3".into(),
    ///         body: body.to_vec(),
    ///         expect: Expectation::Absent,
    ///     }),
    ///     Write::Remove(Removal {
    ///         collection: "requests".into(),
    ///         id: "req-2".into(),
    ///         expect: Expectation::Version(1),
    ///     }),
    /// ];
    /// repository.apply(writes, true).await?;
    /// # assert!(repository.get_one("requests", "req-2").await?.is_none());
    /// # Ok(()) });
    /// ```
    ///
    /// # Errors
    /// With `atomic` the error of the write that failed, whose position is [`Error::write_index`], and nothing was written;
    /// `invalid-argument` for one entity twice, `unsupported` or `limit-exceeded` for what the strategy cannot do at once.
    /// Otherwise only what concerns the whole call.
    pub async fn apply(
        &self,
        writes: Vec<Write>,
        atomic: bool,
    ) -> Result<Vec<std::result::Result<Outcome, larder_model::Error>>> {
        let count = writes.len();
        let writes = self.writes_into("apply", writes)?;
        let now = crate::clock::now();
        let store = &self.store;
        let deadline = store.deadline();
        let (results, lease) = leased!(store, lease_to_write(deadline), "apply", |guest, context| guest
            .call_apply(context, &writes, atomic, &now));
        let wrote = results.iter().any(Result::is_ok);
        if wrote && store.defers_sync() {
            store.make_durable(lease, deadline).await?;
        } else {
            store.release(lease);
        }
        if results.len() != count {
            return Err(store.misbehaved(format!("answers {count} writes with {} results", results.len())));
        }
        for (write, result) in writes.iter().zip(&results) {
            match result {
                Ok(outcome) => self.check_outcome(write, outcome)?,
                Err(_) if atomic => return Err(store.misbehaved("fails part of an atomic call")),
                Err(_) => {}
            }
        }
        Ok(results.into_iter().map(|result| result.map(bindings::outcome_from).map_err(clean)).collect())
    }

    /// Writes as they cross, if they are not too much for a call.
    fn writes_into(&self, operation: &str, writes: Vec<Write>) -> Result<Vec<types::Write>> {
        let size = |write: &Write| match write {
            Write::Put(put) => put.collection.len() + put.id.len() + put.body.len(),
            Write::Remove(removal) => removal.collection.len() + removal.id.len(),
        };
        self.store.check_request(operation, writes.len(), writes.iter().map(size).sum())?;
        Ok(writes.into_iter().map(bindings::write_into).collect())
    }

    /// Whether what a strategy says of a write that took effect can be true: its condition held, and the version is the next
    /// one.
    fn check_outcome(&self, write: &types::Write, outcome: &types::Outcome) -> Result<()> {
        use types::Expectation::{Absent, Any, Present, Version};
        let types::Outcome { version, existed } = *outcome;
        let (expect, id, version_is_true) = match write {
            types::Write::Put(put) => {
                let is_next = match put.expect {
                    Version(expected) => version == entity::next_version(expected),
                    Any | Absent | Present => (1..=entity::VERSION_MAX).contains(&version),
                };
                (put.expect, &put.id, is_next)
            }
            types::Write::Remove(removal) => {
                let is_last = match (removal.expect, existed) {
                    (Version(expected), _) => version == expected,
                    (_, false) => version == 0,
                    (_, true) => version <= entity::VERSION_MAX,
                };
                (removal.expect, &removal.id, is_last)
            }
        };
        let is_met = match expect {
            Any => true,
            Absent => !existed,
            Present | Version(_) => existed,
        };
        let id = one_line(id);
        let problem = match (is_met, existed) {
            (true, _) if version_is_true => return Ok(()),
            (true, _) => format!("says that `{id}` has version {version} now, which cannot be"),
            (false, true) => format!("wrote `{id}` although it was there"),
            (false, false) => format!("wrote `{id}` although it was not there"),
        };
        Err(Error { retry: Retry::UnknownOutcome, ..self.store.misbehaved(problem) })
    }

    /// One page of what the strategy makes of a query. [`crate::query`] does the rest.
    pub(crate) async fn find(&self, collection: &str, query: &Query) -> Result<Page> {
        self.collection(collection)?;
        let nodes = filter::to_arena(query.filter.as_ref());
        let wit = bindings::query_into(query, &nodes);
        let page = call!(self.store, "find", |guest, store| guest.call_find(store, collection, &wit));
        self.check_page(query, nodes.len(), page)
    }

    /// What a strategy answered to a find, if it can be true.
    fn check_page(&self, query: &Query, nodes: usize, page: types::Page) -> Result<Page> {
        if page.entities.len() > query.limit as usize {
            return Err(self.store.misbehaved(format!(
                "answers a page of {} with {}",
                query.limit,
                page.entities.len()
            )));
        }
        if let Some(node) = page.unapplied.iter().find(|node| **node as usize >= nodes) {
            return Err(self.store.misbehaved(format!("leaves node {node} of a filter that has {nodes}")));
        }
        if page.next.is_some() && page.next == query.cursor {
            return Err(self.store.misbehaved("gives the same cursor again"));
        }
        if let Some((amount, _)) = page.cost.as_ref().filter(|(amount, _)| !amount.is_finite() || *amount < 0.0) {
            return Err(self.store.misbehaved(format!("says that a page cost {amount}")));
        }
        Ok(Page {
            entities: page.entities.into_iter().map(bindings::entity_from).collect(),
            next: page.next,
            unapplied: page.unapplied,
            sorted: page.sorted,
            index_used: page.index_used.map(|name| one_line(&name)),
            notes: page.notes.iter().map(|note| one_line(note)).collect(),
            cost: page.cost.map(|(amount, unit)| (amount, one_line(&unit))),
        })
    }

    /// How many entities a filter holds for, where the strategy can tell exactly.
    pub(crate) async fn count_exactly(&self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        self.collection(collection)?;
        let nodes = bindings::filter_into(filter::to_arena(filter));
        let count = call!(self.store, "count", |guest, store| guest.call_count(store, collection, &nodes));
        match count {
            Some(count) if count > COUNT_MAX => Err(self.store.misbehaved(format!("counts {count} entities"))),
            count => Ok(count),
        }
    }

    /// Part of a collection as it stands, not checked: a migration wants to count what is wrong with it.
    pub(crate) async fn scan(
        &self,
        collection: &str,
        segment: u32,
        segments: u32,
        cursor: Option<&[u8]>,
        max_bytes: u32,
    ) -> Result<Batch> {
        self.collection(collection)?;
        let batch = call!(self.store, "scan", |guest, store| guest
            .call_scan(store, collection, segment, segments, cursor, max_bytes));
        if batch.next.is_some() && batch.next.as_deref() == cursor {
            return Err(self.store.misbehaved("gives the same cursor again"));
        }
        self.store.check_count("a batch", batch.entities.len())?;
        let before_last = batch.entities.split_last().map_or(&[][..], |(_, before)| before);
        let bytes: usize = before_last.iter().map(|entity| entity.body.len()).sum();
        if !before_last.is_empty() && bytes >= max_bytes as usize {
            return Err(self.store.misbehaved(format!("goes on with a batch that has {max_bytes} bytes")));
        }
        Ok(Batch { entities: batch.entities.into_iter().map(bindings::entity_from).collect(), next: batch.next })
    }

    /// Bulk write, a thousand or so entities a call: nothing is stamped, versions and times are as given. Durable after
    /// [`Repository::flush`]. What is refused is told by its position, and the others are stored all the same.
    ///
    /// ```
    /// # larder_tests::on_every_strategy(async |repository| {
    /// use larder::{Entity, Existing};
    ///
    /// let machine = |n: u32| {
    ///     let id = format!("machine-{n}");
    ///     let body = format!(
    ///         r#"{{"machine_id": "{id}", "request_id": "req-1", "template_id": "small", "status": "RUNNING", "version": 7}}"#
    ///     );
    ///     Entity { id, version: 7, body: body.into_bytes() }
    /// };
    /// let machines: Vec<Entity> = (0..2500).map(machine).collect();
    /// for batch in machines.chunks(1000) {
    ///     let loaded = repository.load("machines", batch.to_vec(), Existing::Fail).await?;
    ///     assert_eq!((loaded.written as usize, loaded.refused.len()), (batch.len(), 0));
    /// }
    /// repository.flush().await?;
    /// assert_eq!(repository.count("machines", None).await?, 2500);
    /// # Ok(()) });
    /// ```
    pub async fn load(&self, collection: &str, entities: Vec<Entity>, existing: Existing) -> Result<Loaded> {
        self.collection(collection)?;
        self.load_crossing(collection, &self.crossing(entities)?, existing).await
    }

    /// Entities as they cross, for [`Repository::load_crossing`].
    pub(crate) fn crossing(&self, entities: Vec<Entity>) -> Result<Vec<types::Entity>> {
        self.entities_into("load", entities)
    }

    /// As [`Repository::load`], for who may have to give the same entities once more.
    pub(crate) async fn load_crossing(
        &self,
        collection: &str,
        entities: &[types::Entity],
        existing: Existing,
    ) -> Result<Loaded> {
        self.collection(collection)?;
        let count = entities.len() as u64;
        let existing = bindings::existing_into(existing);
        let store = &self.store;
        let deadline = store.deadline();
        let (loaded, mut lease) = leased!(store, lease(deadline), "load", |guest, context| guest
            .call_load(context, collection, entities, existing));
        // Without state in memory, any instance flushes what any was given.
        if matches!(lease.edition.seats, Seats::One(_)) {
            locked(&store.loads).push(lease.ticket());
        }
        store.release(lease);
        let accounted = loaded.written.saturating_add(loaded.unchanged).saturating_add(loaded.skipped);
        if accounted.saturating_add(loaded.refused.len() as u64) != count {
            return Err(self
                .store
                .misbehaved(format!("accounts for {accounted} of {count} entities that it was given")));
        }
        let mut refused = HashSet::new();
        for (position, _) in &loaded.refused {
            if u64::from(*position) >= count || !refused.insert(*position) {
                return Err(self.store.misbehaved("refuses an entity that it was not given, or one twice"));
            }
        }
        Ok(Loaded {
            written: loaded.written,
            unchanged: loaded.unchanged,
            skipped: loaded.skipped,
            refused: loaded.refused.into_iter().map(|(position, error)| (position, clean(error))).collect(),
        })
    }

    /// Entities as they cross, if they are not too much for a call.
    fn entities_into(&self, operation: &str, entities: Vec<Entity>) -> Result<Vec<types::Entity>> {
        let bytes = entities.iter().map(|entity| entity.id.len() + entity.body.len()).sum();
        self.store.check_request(operation, entities.len(), bytes)?;
        Ok(entities.into_iter().map(bindings::entity_into).collect())
    }

    /// Which of the strategy's own rules each entity breaks; asked where `Opened::has_rules`.
    pub(crate) async fn validate(&self, collection: &str, entities: Vec<Entity>) -> Result<Vec<Violation>> {
        self.collection(collection)?;
        let count = entities.len();
        let entities = self.entities_into("validate", entities)?;
        let violations =
            call!(self.store, "validate", |guest, store| guest.call_validate(store, collection, &entities));
        if violations.iter().any(|violation| violation.entity as usize >= count) {
            return Err(self.store.misbehaved("judges an entity that it was not given"));
        }
        Ok(violations
            .into_iter()
            .map(|violation| Violation { entity: violation.entity, rule: one_line(&violation.rule) })
            .collect())
    }

    /// Names of what is stored there, configured or not.
    pub async fn stored_collections(&self) -> Result<Vec<String>> {
        Ok(call!(self.store, "stored-collections", |guest, store| guest.call_stored_collections(store)))
    }

    /// Makes what is missing of tables, indexes and files, or with `dry_run` says what it would make. With `extend` it also
    /// adds what a table only lacks, such as the column of a field that was declared later.
    pub async fn prepare(&self, dry_run: bool, extend: bool) -> Result<Vec<String>> {
        Ok(call!(self.store, "prepare", |guest, store| guest.call_prepare(store, dry_run, extend)))
    }

    /// As [`Repository::prepare`], but for what is made faster behind a load of many entities.
    pub(crate) async fn prepare_for_load(&self) -> Result<()> {
        call!(self.store, "prepare-for-load", |guest, store| guest.call_prepare_for_load(store));
        Ok(())
    }

    /// Makes what was left then, for which there is more time the more entities there are.
    pub(crate) async fn prepare_after_load(&self, entities: u64) -> Result<()> {
        let time =
            self.store.settings.call_timeout + ENTITY_TIME.saturating_mul(u32::try_from(entities).unwrap_or(u32::MAX));
        call!(self.store, "prepare", until Instant::now() + time, |guest, store| {
            // A statement that takes too long is named before the call is given up.
            store.data_mut().allow_statements(time * 4 / 5);
            guest.call_prepare(store, false, false)
        });
        Ok(())
    }

    /// Findings about the store, as the strategy's own JSON object: `reachable`, `readable` and `writable` are booleans, `findings`
    /// a list of objects with `level` and `message`, and the rest is what the strategy has to tell. `thorough`, it also looks
    /// for entities that cannot be read, which takes longer the more there are.
    pub async fn check(&self, thorough: bool) -> Result<Map<String, Value>> {
        let findings = call!(self.store, "check", |guest, store| guest.call_check(store, thorough));
        larder_model::json::parse_object(findings.as_bytes())
            .map_err(|error| self.store.misbehaved("reports findings that are not a JSON object").caused_by(error))
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("store", &self.store.name).finish_non_exhaustive()
    }
}
