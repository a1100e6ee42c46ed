//! Transactions: the store's lock, held from the beginning to the end, and changes that reach the disk at the end.
//!
//! A lock over the whole store is the strongest isolation there is, so every level asked for is served as serializable.

use std::{cell::Cell, rc::Rc};

use larder_guest::{Files, LockMode};
use larder_model::{Entity, Error, Outcome, Page, Query, Result, Write, entity};

use crate::{
    changes::Changes,
    store::{JsonStore, Locked},
};

/// An open transaction. Dropped, its changes are forgotten and the lock is let go.
pub struct Transaction<F: Files> {
    changes: Changes,
    is_read_only: bool,
    has_failed: bool,
    _lock: Locked<F>,
    _open: Open,
}

/// Says that a transaction is open, until it is dropped.
struct Open(Rc<Cell<bool>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl<F: Files> Transaction<F> {
    fn check_usable(&self) -> Result<()> {
        if self.has_failed {
            return Err(Error::invalid("the transaction has failed and can only be rolled back"));
        }
        Ok(())
    }
}

impl<F: Files> JsonStore<F> {
    pub(crate) fn begin_transaction(&mut self, is_read_only: bool) -> Result<Transaction<F>> {
        let lock = self.lock(if is_read_only { LockMode::Shared } else { LockMode::Exclusive })?;
        self.in_transaction.set(true);
        Ok(Transaction {
            changes: Changes::default(),
            is_read_only,
            has_failed: false,
            _lock: lock,
            _open: Open(self.in_transaction.clone()),
        })
    }

    pub(crate) fn get_in(
        &mut self,
        transaction: &mut Transaction<F>,
        collection: &str,
        ids: &[String],
    ) -> Result<Vec<Option<Entity>>> {
        transaction.check_usable()?;
        self.get_with(&transaction.changes, collection, ids)
    }

    pub(crate) fn find_in(
        &mut self,
        transaction: &mut Transaction<F>,
        collection: &str,
        query: &Query,
    ) -> Result<Page> {
        transaction.check_usable()?;
        self.find_with(&transaction.changes, collection, query)
    }

    pub(crate) fn apply_in(
        &mut self,
        transaction: &mut Transaction<F>,
        writes: Vec<Write>,
        now: &str,
    ) -> Result<Vec<Outcome>> {
        transaction.check_usable()?;
        if transaction.is_read_only {
            return Err(Error::invalid("the transaction is read-only"));
        }
        if let Err(error) = entity::check_distinct(&writes) {
            transaction.has_failed = true;
            return Err(error);
        }
        let mut outcomes = Vec::with_capacity(writes.len());
        for (i, write) in writes.into_iter().enumerate() {
            // Nobody else changes a document while the lock is held, but for an editor that asks for no lock.
            let staged = self
                .document_of(write.target().0)
                .and_then(|document| self.refresh(document))
                .and_then(|()| self.stage(&mut transaction.changes, write, now));
            match staged {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => {
                    transaction.has_failed = true;
                    return Err(error.at_write(i));
                }
            }
        }
        Ok(outcomes)
    }

    pub(crate) fn commit_transaction(&mut self, transaction: Transaction<F>) -> Result<()> {
        transaction.check_usable()?;
        let collections: Vec<String> = transaction.changes.collections().map(str::to_owned).collect();
        for collection in collections {
            let document = self.document_of(&collection)?;
            self.refresh(document)?;
        }
        self.commit_changes(&transaction.changes)
    }
}
