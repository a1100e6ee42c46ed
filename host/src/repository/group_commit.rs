//! Group commit: with the feature `deferred-sync` a write is durable once a `flush` that began after it has ended, and one
//! flush makes many writes durable.
//!
//! Each write that an instance answered leaves a ticket with it. A flush takes all tickets that are there when it begins
//! and tells each what came of it; an instance that is dropped with tickets tells their holders that. A write behind which
//! another one stands in the queue for the instance leaves the flush to that one, and asks for a turn itself, in case the
//! other one goes away. So writers that come one by one flush at once, and of many at once the last one flushes for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use larder_model::{ErrorKind, Retry};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use super::{Lease, Repository, Seats, Settled, Store, locked};
use crate::error::{Error, Result};
use crate::plugin::instance;

/// Told what became of the flush that a write relied on; an error where its instance ended before.
pub(super) type Ticket = oneshot::Receiver<Result<()>>;

/// Counts a write that stands in the queue.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Queued(count)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// For what the instance has just answered.
    pub(super) fn ticket(&mut self) -> Ticket {
        let (told, ticket) = oneshot::channel();
        self.instance.waiting.push(told);
        ticket
    }
}

impl Store {
    /// A lease for a call that writes, so that those before it in the queue know that one follows.
    pub(super) async fn lease_to_write(&self, deadline: Instant) -> Result<Lease> {
        let _queued = Queued::new(&self.queued_writes);
        self.lease(deadline).await
    }

    /// A lease for long, or for what replaces the content: no write waits for its flush meanwhile.
    pub(super) async fn lease_flushed(self: &Arc<Self>, deadline: Instant) -> Result<Lease> {
        let lease = self.lease(deadline).await?;
        if lease.instance.waiting.is_empty() { Ok(lease) } else { self.flush_for_all(lease).await }
    }

    /// Ends once what the leased instance has just answered is durable.
    pub(super) async fn make_durable(self: &Arc<Self>, lease: Lease, deadline: Instant) -> Result<()> {
        self.flushed(lease, deadline).await.map_err(|error| match error.hint {
            Some(_) => error,
            None => error.hint("read again to see whether it took effect"),
        })
    }

    async fn flushed(self: &Arc<Self>, mut lease: Lease, deadline: Instant) -> Result<()> {
        let mut ticket = lease.ticket();
        // Where instances run side by side, who writes next has another one.
        let is_queued_for =
            matches!(lease.edition.seats, Seats::One(_)) && self.queued_writes.load(Ordering::Relaxed) > 0;
        let mut turn = if is_queued_for {
            self.release(lease);
            None
        } else {
            Some(lease)
        };
        loop {
            let lease = match turn.take() {
                Some(lease) => lease,
                None => tokio::select! {
                    biased;
                    told = &mut ticket => return self.verdict(told.ok()),
                    lease = self.lease(deadline) => lease.map_err(not_durable)?,
                },
            };
            let flushed = match lease.instance.waiting.len() {
                // Its flush has ended, or another instance is here because it was dropped: the ticket says which.
                0 => Ok(lease),
                1 => self.flush_instance(lease).await,
                _ => self.flush_for_all(lease).await,
            };
            match flushed {
                Ok(lease) => self.release(lease),
                Err(error) => {
                    return match ticket.try_recv() {
                        // It did not come to the flush, and others may still.
                        Err(TryRecvError::Empty) => Err(not_durable(error)),
                        told => self.verdict(told.ok()),
                    };
                }
            }
        }
    }

    /// Flushes the instance, again where it is `busy`, and tells the holders of its tickets. Given up, it takes the instance
    /// along.
    ///
    /// It is a call of its own with all the time of one, however long who flushes for others has waited for its turn.
    async fn flush_instance(&self, mut lease: Lease) -> Result<Lease> {
        let deadline = self.deadline();
        let waiting = std::mem::take(&mut lease.instance.waiting);
        let mut waited = None;
        let flushed = loop {
            let ended = {
                let (guest, store) = lease.instance.parts();
                instance::bounded(deadline, self.settings.cpu_timeout, guest.call_flush(store)).await
            };
            drop(waited.take());
            match self.settle(lease, "flush", ended) {
                Ok(Settled::Value((), lease)) => break Ok(lease),
                Ok(Settled::Busy(busy)) => lease = busy,
                Err(error) => break Err(error),
            }
            match self.wait_for_lock(deadline).await {
                Ok(lock) => waited = Some(lock),
                Err(error) => {
                    lease.instance.waiting = waiting;
                    self.release(lease);
                    return Err(error);
                }
            }
        };
        for told in waiting {
            // Whoever went away is not told.
            let _ = told.send(flushed.as_ref().map(drop).map_err(Error::clone));
        }
        flushed
    }

    /// The same in a task of its own: the writes of others do not go with the caller who flushes for them.
    pub(super) async fn flush_for_all(self: &Arc<Self>, lease: Lease) -> Result<Lease> {
        let (sender, flushed) = oneshot::channel();
        let store = self.clone();
        tokio::spawn(async move {
            let flushed = store.flush_instance(lease).await;
            if let Err(Ok(lease)) = sender.send(flushed) {
                store.release(lease);
            }
        });
        flushed.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// What a ticket says; without one, the instance is gone.
    fn verdict(&self, told: Option<Result<()>>) -> Result<()> {
        told.unwrap_or_else(|| Err(self.gone())).map_err(not_durable)
    }

    fn gone(&self) -> Error {
        let message = format!(
            "the instance of plugin `{}` ended before it flushed: another call trapped, overran its time or was given up",
            self.strategy
        );
        Error::contract(ErrorKind::Unavailable, message)
    }

    /// What became of loads whose flush has ended, or never will.
    fn loads_flushed(&self) -> Result<()> {
        let mut flushed = Ok(());
        locked(&self.loads).retain_mut(|ticket| match ticket.try_recv() {
            Err(TryRecvError::Empty) => true,
            told => {
                flushed = std::mem::replace(&mut flushed, Ok(())).and(self.verdict(told.ok()));
                false
            }
        });
        flushed
    }
}

/// The error of a write that was answered, whatever its flush met.
fn not_durable(error: Error) -> Error {
    Error { retry: Retry::UnknownOutcome, ..error.context("a write was made, but is perhaps not durable") }
}

impl Repository {
    /// Makes what [`Repository::load`] wrote durable; every other write is, once it was answered. Of several tasks that load
    /// side by side, one flushes for all.
    ///
    /// # Errors
    /// Whatever keeps the strategy from doing so, or kept it since: with `unknown-outcome`, what was loaded since the flush
    /// before is to be loaded again.
    pub async fn flush(&self) -> Result<()> {
        let store = &self.store;
        let deadline = store.deadline();
        let lease = store.lease(deadline).await?;
        let flushed = match lease.instance.waiting.is_empty() {
            true => store.flush_instance(lease).await,
            false => store.flush_for_all(lease).await,
        };
        let loads = store.loads_flushed();
        match flushed {
            Ok(lease) => {
                store.release(lease);
                loads
            }
            Err(error) => loads.and(Err(error)),
        }
    }
}
