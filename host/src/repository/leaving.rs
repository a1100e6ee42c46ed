//! How a store is left, and how an earlier state of it comes back.
//!
//! Instances are closed when somebody asks for it, and not when the last handle goes: a strategy may have to write, wait for
//! a lock or fail then, and somebody has to be told. So the host keeps every store that it opened until it is closed.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use larder_model::{RestorePoint, entity};
use tokio::time::Instant;

use super::{Lease, Repository, Seat, Seats, Settled, Store, clean, locked};
use crate::error::Result;
use crate::plugin::Plugin;
use crate::plugin::bindings::{StrategyPre, types};
use crate::plugin::instance::{self, State};
use crate::text::one_line;

/// Held by the handles on a store, and not by what the host keeps of it.
pub(super) struct Use(pub(super) Arc<Store>);

impl Drop for Use {
    /// Nobody is left who could flush what was loaded, and until then it may hold a lock.
    fn drop(&mut self) {
        match &self.0.edition().seats {
            Seats::One(seat) => {
                if let Ok(mut seat) = seat.try_lock() {
                    seat.take_if(|instance| instance.is_unsynced);
                }
            }
            Seats::Many { idle, .. } => locked(idle).retain(|instance| !instance.is_unsynced),
        }
    }
}

/// What the host keeps of a repository, so that its store can be closed when the last handle on it has gone.
#[derive(Clone)]
pub(crate) struct Kept {
    store: Arc<Store>,
    used: Weak<Use>,
}

impl Kept {
    /// The store's name.
    pub(crate) fn name(&self) -> &str {
        &self.store.name
    }

    /// The version of the plugin that serves it.
    pub(crate) fn plugin(&self) -> Arc<Plugin> {
        self.store.edition().plugin.clone()
    }

    /// Lets another version of the plugin serve it, see [`super::edition`].
    pub(crate) async fn replace(&self, plugin: Plugin, pre: StrategyPre<State>) -> Result<()> {
        self.store.replace(plugin, pre).await
    }

    /// Whether there is a handle on it.
    pub(crate) fn is_used(&self) -> bool {
        self.used.strong_count() > 0
    }

    /// Closes the instances, and gives back what they were lent.
    pub(crate) async fn close(&self) -> Result<()> {
        let closed = self.store.close().await;
        self.store.lent.close().await;
        closed.map_err(|error| error.context(format!("store `{}` could not be closed", self.store.name)))
    }
}

impl Store {
    /// Closes every instance that is idle, whatever becomes of the one before it.
    async fn close(self: &Arc<Self>) -> Result<()> {
        let deadline = self.deadline();
        let fresh = self.scrutiny.fresh_instances;
        let idle = match &self.edition().seats {
            Seats::One(_) => 1,
            Seats::Many { idle, .. } => locked(idle).len(),
        };
        let mut closed = Ok(());
        for _ in 0..idle.max(usize::from(fresh)) {
            let (edition, seat, instance) = self.seat(deadline).await?;
            let instance = match instance {
                Some(instance) => instance,
                // Where none is kept, one is opened to be closed: what others left is put in order all the same.
                None if fresh => self.open_instance(&edition, deadline).await?,
                None => break,
            };
            closed = closed.and(self.close_instance(Lease { instance, seat, edition }, deadline).await);
        }
        closed
    }

    /// Whatever comes of it, the instance is not used again.
    pub(super) async fn close_instance(self: &Arc<Self>, lease: Lease, deadline: Instant) -> Result<()> {
        self.close_and_keep_seat(lease, deadline).await?.1
    }

    /// The same where nobody else is to get the seat yet. Where it cannot be flushed, the seat is free.
    pub(super) async fn close_and_keep_seat(
        self: &Arc<Self>,
        mut lease: Lease,
        deadline: Instant,
    ) -> Result<(Seat, Result<()>)> {
        if lease.instance.is_unsynced {
            lease = self.flush_for_all(lease).await?;
        }
        let closed = self.close_called(&mut lease, deadline).await;
        Ok((lease.seat, closed))
    }

    async fn close_called(&self, lease: &mut Lease, deadline: Instant) -> Result<()> {
        let mut waited = None;
        loop {
            let ended = {
                let (guest, store) = lease.instance.parts();
                instance::bounded(deadline, self.settings.cpu_timeout, guest.call_close(store)).await
            };
            drop(waited.take());
            self.scrutiny.note("close");
            match ended {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(error))) if matches!(error.kind, types::ErrorKind::Busy) => {
                    waited = Some(self.wait_for_lock(deadline).await?);
                }
                Ok(Ok(Err(error))) => return Err(self.advised(clean(error))),
                Ok(Err(error)) => return Err(self.trapped("close", &error, lease.instance.store.data())),
                Err(overrun) => return Err(self.overran("close", overrun)),
            }
        }
    }
}

impl Repository {
    pub(super) fn new(store: Store) -> Repository {
        let store = Arc::new(store);
        Repository { used: Arc::new(Use(store.clone())), store }
    }

    /// What the host keeps of it.
    pub(crate) fn kept(&self) -> Kept {
        Kept { store: self.store.clone(), used: Arc::downgrade(&self.used) }
    }

    /// Leaves the store as people and other programs expect to find it: a strategy that keeps a journal beside its document
    /// folds it in. Waits for calls that are under way and for locks of other processes; what was loaded is flushed first.
    ///
    /// Nothing that was acknowledged depends on it. The repository may be used afterwards: its next call starts a new
    /// instance. [`Host::close`](crate::Host::close) does this for every store that it opened, and gives back what was lent.
    ///
    /// ```
    /// # larder_tests::on_every_strategy(async |repository| {
    /// repository.close().await?;
    /// // The files can be looked at, or copied. And then:
    /// assert!(repository.get_one("requests", "req-1").await?.is_some());
    /// # Ok(()) });
    /// ```
    ///
    /// # Errors
    /// Whatever keeps the strategy from doing so; `timeout` where a call or an open transaction does not end.
    pub async fn close(&self) -> Result<()> {
        self.store.close().await
    }

    /// Earlier or damaged states that can be made the store's content again, newest first; none where the strategy keeps
    /// none. Works also on a store that cannot be read.
    pub async fn restore_points(&self) -> Result<Vec<RestorePoint>> {
        let points = call!(self.store, "restore-points", |guest, store| guest.call_restore_points(store));
        let mut names = HashSet::new();
        if let Some(point) =
            points.iter().find(|point| entity::check_id(&point.name).is_err() || !names.insert(&point.name))
        {
            let what = format!("has a restore point of no usable name, or two of one: `{}`", one_line(&point.name));
            return Err(self.store.misbehaved(what));
        }
        Ok(points
            .into_iter()
            .map(|point| RestorePoint { name: point.name, description: one_line(&point.description) })
            .collect())
    }

    /// Makes the store's content what a restore point holds, and says what was done. What was there before is kept beside
    /// it, and is where the lines say.
    ///
    /// # Errors
    /// `not-found` where [`Repository::restore_points`] has no point of that name.
    pub async fn restore(&self, name: &str) -> Result<Vec<String>> {
        let store = &self.store;
        let deadline = store.deadline();
        let (done, lease) =
            leased!(store, lease_flushed(deadline), "restore", |guest, context| guest.call_restore(context, name));
        store.release(lease);
        Ok(done.iter().map(|line| one_line(line)).collect())
    }
}
