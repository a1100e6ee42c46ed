//! Several reads and writes that happen as one.
//!
//! A transaction keeps the instance it began on. On a store whose strategy keeps state in memory it is the only
//! instance, so that other calls wait until the transaction ends.

use std::sync::Arc;
use std::time::Duration;

use larder_model::{
    Entity, ErrorKind, Expectation, Isolation, Outcome, Page, Put, Query, Removal, Write, entity, filter,
};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use wasmtime::component::ResourceAny;

use super::{Lease, Repository, Settled, Store, clean};
use crate::error::{Error, Result};
use crate::plugin::bindings;
use crate::plugin::instance;

/// Reads and writes that happen as one, or not at all.
///
/// Reads see the transaction's own writes. After an error it can only be rolled back. With `?` an error leaves the function,
/// drops the transaction and so undoes everything:
///
/// ```
/// # larder_tests::on_every_strategy(async |repository| {
/// use larder::{ErrorKind, Expectation, Repository};
/// use serde_json::json;
///
/// async fn assign(repository: &Repository, request_id: &str, machine_id: &str) -> larder::Result<()> {
///     let mut transaction = repository.begin(None, false).await?;
///     let change = json!({"status": "RUNNING"});
///     transaction.patch("requests", request_id, change.as_object().unwrap()).await?;
///     let machine = json!({
///         "machine_id": machine_id, "request_id": request_id, "template_id": "small", "status": "RUNNING",
///     });
///     transaction.save("machines", &larder::encode(&machine)?, Expectation::Absent).await?;
///     transaction.commit().await
/// }
///
/// assign(&repository, "req-1", "machine-1").await?;
/// assert_eq!(repository.get_one("requests", "req-1").await?.ok_or("it is gone")?.version, 2);
///
/// // The machine is taken: the request stays as it was.
/// let error = assign(&repository, "req-2", "machine-1").await.unwrap_err();
/// assert!(error.is(ErrorKind::AlreadyExists));
/// assert_eq!(repository.get_one("requests", "req-2").await?.ok_or("it is gone")?.version, 1);
/// # Ok(()) });
/// ```
///
/// Dropped without [`Transaction::commit`], or past its deadline, it is rolled back.
pub struct Transaction {
    repository: Repository,
    open: Arc<Mutex<Option<Open>>>,
    watchdog: AbortHandle,
}

/// Dropped, it takes the instance along, and with it everything that the transaction held.
struct Open {
    lease: Lease,
    resource: ResourceAny,
}

/// Calls a method of the open transaction. A macro for the reason that `call!` is one.
macro_rules! within {
    ($transaction:expr, $operation:literal, |$guest:ident, $context:ident, $resource:ident| $call:expr) => {{
        let store: &Store = &$transaction.repository.store;
        let mut slot = $transaction.open.lock().await;
        let Some(open) = slot.as_mut() else { return Err(expired(store)) };
        let ended = {
            let $resource = open.resource;
            let (guest, $context) = open.lease.instance.parts();
            let $guest = guest.transaction();
            instance::bounded(store.deadline(), store.settings.cpu_timeout, $call).await
        };
        store.scrutiny.note($operation);
        if let Ok(Ok(_)) = ended {
            store.note_answer();
        }
        match ended {
            Ok(Ok(Ok(value))) => value,
            Ok(Ok(Err(error))) => return Err(store.advised(clean(error))),
            Ok(Err(error)) => {
                let error = store.trapped($operation, &error, open.lease.instance.store.data());
                *slot = None;
                return Err(error);
            }
            Err(overrun) => {
                *slot = None;
                return Err(store.overran($operation, overrun));
            }
        }
    }};
}

fn expired(store: &Store) -> Error {
    let seconds = store.settings.transaction_timeout.as_secs_f64();
    Error::contract(ErrorKind::Timeout, format!("the transaction was rolled back after {seconds} s, or by an error"))
        .hint("begin again; `plugins.transaction_timeout` is its time")
}

impl Repository {
    /// Begins a transaction. `isolation` asks for at least that level; none for the strategy's own. One that is `read_only`
    /// can write nothing.
    ///
    /// On a store whose strategy keeps state in memory, such as `json`, every other call waits until the transaction ends: a
    /// task that has one open uses it, and not the repository.
    ///
    /// # Errors
    /// `unsupported` where the strategy has no transactions; `timeout` where others hold the store for too long.
    pub async fn begin(&self, isolation: Option<Isolation>, read_only: bool) -> Result<Transaction> {
        let store = &self.store;
        let isolation = isolation.map(bindings::isolation_into);
        let deadline = store.deadline();
        // It may keep the instance for long, and those that wait for a flush of it do not wait for that.
        let (resource, lease) = leased!(store, lease_flushed(deadline), "begin", |guest, context| guest
            .call_begin(context, isolation, read_only));
        Ok(Transaction::new(self.clone(), Open { lease, resource }))
    }
}

impl Transaction {
    fn new(repository: Repository, open: Open) -> Transaction {
        let timeout: Duration = repository.store.settings.transaction_timeout;
        let open = Arc::new(Mutex::new(Some(open)));
        let watched = open.clone();
        let watchdog = tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            // A call under way ends first: it has a deadline of its own.
            watched.lock().await.take();
        });
        Transaction { repository, open, watchdog: watchdog.abort_handle() }
    }

    /// The store it is a transaction of.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// One answer an id, in the order asked for. `for_update` keeps others from changing the entities until the end.
    pub async fn get(&mut self, collection: &str, ids: &[String], for_update: bool) -> Result<Vec<Option<Entity>>> {
        self.repository.collection(collection)?;
        for id in ids {
            entity::check_id(id)?;
        }
        let bytes = ids.iter().map(String::len).sum();
        self.repository.store.check_request("transaction.get", ids.len(), bytes)?;
        let answers = within!(self, "transaction.get", |guest, context, resource| guest
            .call_get(context, resource, collection, ids, for_update));
        self.repository.check_answers(collection, ids, answers)
    }

    /// One page of what the strategy makes of a query.
    pub(crate) async fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        self.repository.collection(collection)?;
        let nodes = filter::to_arena(query.filter.as_ref());
        let wit = bindings::query_into(query, &nodes);
        let page = within!(self, "transaction.find", |guest, context, resource| guest
            .call_find(context, resource, collection, &wit));
        self.repository.check_page(query, nodes.len(), page)
    }

    /// Many writes at once. After an error the transaction can only be rolled back.
    pub async fn apply(&mut self, writes: Vec<Write>) -> Result<Vec<Outcome>> {
        let count = writes.len();
        let writes = self.repository.writes_into("transaction.apply", writes)?;
        let now = crate::clock::now();
        let outcomes = within!(self, "transaction.apply", |guest, context, resource| guest
            .call_apply(context, resource, &writes, &now));
        if outcomes.len() != count {
            let what = format!("answers {count} writes with {} outcomes", outcomes.len());
            return Err(self.repository.store.misbehaved(what));
        }
        for (write, outcome) in writes.iter().zip(&outcomes) {
            self.repository.check_outcome(write, outcome)?;
        }
        Ok(outcomes.into_iter().map(bindings::outcome_from).collect())
    }

    async fn write(&mut self, write: Write) -> Result<Outcome> {
        Ok(self.apply(vec![write]).await?.remove(0))
    }

    /// Saves an entity under the id in its key member.
    pub async fn save(&mut self, collection: &str, body: &[u8], expect: Expectation) -> Result<(String, Outcome)> {
        let put = self.repository.put(collection, body, expect)?;
        Ok((put.id.clone(), self.write(Write::Put(put)).await?))
    }

    /// Replaces the whole of a stored entity.
    pub async fn update(&mut self, collection: &str, id: &str, body: &[u8], version: Option<u64>) -> Result<Outcome> {
        entity::check(self.repository.collection(collection)?, Some(id), body)?;
        let expect = version.map_or(Expectation::Present, Expectation::Version);
        self.write(Write::Put(Put { collection: collection.into(), id: id.into(), body: body.to_vec(), expect })).await
    }

    /// Changes members of a stored entity, by RFC 7396, under a lock.
    pub async fn patch(&mut self, collection: &str, id: &str, patch: &Map<String, Value>) -> Result<Outcome> {
        let found = self.get(collection, &[id.to_owned()], true).await?.remove(0);
        let stored = found.ok_or_else(|| super::not_found(collection, id))?;
        let body = super::patched(self.repository.collection(collection)?, &stored, patch)?;
        self.update(collection, id, &body, Some(stored.version)).await
    }

    /// Removes an entity; the outcome says whether it was there.
    pub async fn delete(&mut self, collection: &str, id: &str, version: Option<u64>) -> Result<Outcome> {
        self.repository.collection(collection)?;
        entity::check_id(id)?;
        let expect = version.map_or(Expectation::Any, Expectation::Version);
        self.write(Write::Remove(Removal { collection: collection.into(), id: id.into(), expect })).await
    }

    /// Makes everything that was written visible and durable, at once.
    ///
    /// # Errors
    /// Whatever keeps it from happening: then nothing of it happened, unless the error says that the outcome is unknown.
    pub async fn commit(self) -> Result<()> {
        self.end(true).await
    }

    /// Undoes everything that was written.
    pub async fn rollback(self) -> Result<()> {
        self.end(false).await
    }

    async fn end(self, commit: bool) -> Result<()> {
        let store = &self.repository.store;
        let Some(Open { mut lease, resource }) = self.open.lock().await.take() else { return Err(expired(store)) };
        let operation = if commit { "transaction.commit" } else { "transaction.rollback" };
        let deadline = store.deadline();
        let ended = {
            let (guest, context) = lease.instance.parts();
            let guest = guest.transaction();
            let cpu_timeout = store.settings.cpu_timeout;
            if commit {
                instance::bounded(deadline, cpu_timeout, guest.call_commit(context, resource)).await
            } else {
                instance::bounded(deadline, cpu_timeout, guest.call_rollback(context, resource)).await
            }
        };
        match store.settle(lease, operation, ended)? {
            Settled::Value((), lease) if commit && store.defers_sync() => store.make_durable(lease, deadline).await,
            Settled::Value((), lease) => {
                store.release(lease);
                Ok(())
            }
            // It cannot be asked again: the handle is gone.
            Settled::Busy(_) => Err(store.misbehaved("answers `busy` to the end of a transaction")),
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.watchdog.abort();
    }
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").field("repository", &self.repository).finish_non_exhaustive()
    }
}
