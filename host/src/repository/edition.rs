//! A version of the plugin in the service of an open store, and how another one takes over.
//!
//! A call begins and ends on one edition. Another one takes over between calls: where the strategy keeps its state in
//! memory, it waits for the one instance, flushes and closes it, and opens the new one before anybody else gets a turn, so
//! that nothing is in two memories. Otherwise both serve side by side for a moment, new calls on the new one, and
//! the old one is closed when its last call and its last transaction have ended.

use std::sync::{Arc, Mutex, OnceLock};

use larder_model::Opened;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{Lease, Store, locked};
use crate::capability::Lent;
use crate::error::{Error, Result};
use crate::model::ErrorKind;
use crate::plugin::Plugin;
use crate::plugin::bindings::StrategyPre;
use crate::plugin::instance::{Instance, State};

/// A version of the plugin, linked with what the store was lent, and its instances.
pub(super) struct Edition {
    pub(super) plugin: Arc<Plugin>,
    pub(super) pre: StrategyPre<State>,
    pub(super) seats: Seats,
    /// What its first instance said of the store.
    pub(super) opened: OnceLock<Opened>,
}

/// Where instances wait for work.
pub(super) enum Seats {
    /// The strategy keeps state in memory: one instance, one call after the other.
    One(Arc<tokio::sync::Mutex<Option<Box<Instance>>>>),
    Many {
        #[expect(clippy::vec_box, reason = "it leaves as it came, without being copied")]
        idle: Mutex<Vec<Box<Instance>>>,
        permits: Arc<Semaphore>,
        max: u32,
    },
}

pub(super) enum Seat {
    One(OwnedMutexGuard<Option<Box<Instance>>>),
    Many { _permit: OwnedSemaphorePermit },
}

impl Edition {
    /// `instances_max` is for a strategy that keeps no state in memory and was lent no database.
    pub(super) fn new(plugin: Plugin, pre: StrategyPre<State>, lent: &Lent, instances_max: usize) -> Edition {
        let seats = if plugin.description.features.shared_state {
            Seats::One(Arc::default())
        } else {
            // More of them than the database serves connections would only wait in another place.
            let max = lent.sql.as_ref().map_or(instances_max as u32, |database| database.connections().max);
            Seats::Many { idle: Mutex::default(), permits: Arc::new(Semaphore::new(max as usize)), max }
        };
        Edition { plugin: Arc::new(plugin), pre, seats, opened: OnceLock::new() }
    }
}

impl Seats {
    /// A seat, once there is a free one; none where there is none in time.
    pub(super) async fn take(&self, deadline: Instant) -> Option<Seat> {
        let taking = async {
            Some(match self {
                Seats::One(seat) => Seat::One(seat.clone().lock_owned().await),
                Seats::Many { permits, .. } => Seat::Many { _permit: permits.clone().acquire_owned().await.ok()? },
            })
        };
        tokio::time::timeout_at(deadline, taking).await.ok()?
    }

    /// The instance that waits at a seat, if one does.
    pub(super) fn sit(&self, mut seat: Seat) -> (Seat, Option<Box<Instance>>) {
        let instance = match (&mut seat, self) {
            (Seat::One(guard), _) => guard.take(),
            (Seat::Many { .. }, Seats::Many { idle, .. }) => locked(idle).pop(),
            (Seat::Many { .. }, Seats::One(_)) => unreachable!("a seat is taken where it is"),
        };
        (seat, instance)
    }
}

impl Store {
    /// The version that new calls go to.
    pub(super) fn edition(&self) -> Arc<Edition> {
        self.edition.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// From here on calls go to `next`, whatever was held against the one before: a version that trapped again and again is
    /// replaced for that reason.
    fn take_over(&self, next: Arc<Edition>) {
        *self.edition.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = next;
        self.quarantine.lift();
    }

    /// Lets another version serve the store.
    ///
    /// # Errors
    /// Whatever keeps the new version from opening the store, or the old one from making durable what it answered; `timeout` where
    /// a call or a transaction does not end. Then the old version goes on.
    pub(super) async fn replace(self: &Arc<Self>, plugin: Plugin, pre: StrategyPre<State>) -> Result<()> {
        let next = Arc::new(Edition::new(plugin, pre, &self.lent, self.settings.store_instances_max));
        let old = self.edition();
        // As long as the longest call or transaction may take that is under way.
        let deadline = Instant::now() + self.settings.transaction_timeout + self.settings.call_timeout;
        match &old.seats {
            Seats::One(_) => {
                let late =
                    || Error::contract(ErrorKind::Timeout, format!("store `{}` was busy all the time", self.name));
                let seat = old.seats.take(deadline).await.ok_or_else(late)?;
                let (seat, instance) = old.seats.sit(seat);
                let seat = match instance {
                    Some(instance) => self.end(Lease { instance, seat, edition: old.clone() }).await?,
                    None => seat,
                };
                self.open_and_take_over(next).await?;
                // Whoever stood in the queue finds the new one.
                drop(seat);
            }
            Seats::Many { .. } => {
                self.open_and_take_over(next).await?;
                let store = self.clone();
                tokio::spawn(async move { store.retire(&old, deadline).await });
            }
        }
        Ok(())
    }

    async fn open_and_take_over(&self, next: Arc<Edition>) -> Result<()> {
        let deadline = Instant::now() + self.settings.call_timeout;
        let instance = self.open_instance(&next, deadline).await?;
        match &next.seats {
            Seats::One(seat) => *seat.lock().await = Some(instance),
            Seats::Many { idle, .. } => locked(idle).push(instance),
        }
        self.take_over(next);
        Ok(())
    }

    /// Ends an instance, and gives its seat back. What it has not made durable is flushed; where that fails the instance is
    /// gone, as after any flush that fails, and whoever relied on it was told.
    async fn end(self: &Arc<Self>, lease: Lease) -> Result<Seat> {
        let deadline = Instant::now() + self.settings.call_timeout;
        let (seat, closed) = self.close_and_keep_seat(lease, deadline).await?;
        // Nothing that was acknowledged depends on the rest of it.
        drop(closed);
        Ok(seat)
    }

    /// Closes what an edition has that serves nobody any more.
    async fn retire(self: &Arc<Self>, old: &Arc<Edition>, deadline: Instant) {
        let Seats::Many { idle, permits, max } = &old.seats else { return };
        // All of them: then the last call has ended. What has not by then is ended by its own deadline.
        let Ok(Ok(permit)) = tokio::time::timeout_at(deadline, permits.clone().acquire_many_owned(*max)).await else {
            return;
        };
        drop(permit);
        loop {
            let Some(instance) = locked(idle).pop() else { return };
            let Some(seat) = old.seats.take(deadline).await else { return };
            let lease = Lease { instance, seat, edition: old.clone() };
            // Nothing that was acknowledged depends on it.
            let _ = self.close_instance(lease, Instant::now() + self.settings.call_timeout).await;
        }
    }
}
