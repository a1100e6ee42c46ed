//! Transactions: the store's lock, held from the beginning to the end, and changes that reach the disk at the end.
//!
//! A lock over the whole store is the strongest isolation there is, so every level asked for is served as serializable.

use std::{cell::Cell, collections::HashSet, rc::Rc};

use larder_guest::{Files, LockMode};
use larder_model::{Entity, Error, ErrorKind, Outcome, Page, Query, Result, Write, entity};

use crate::{document::Changes, store::JsonStore};

/// An open transaction. Dropped, its changes are forgotten and the lock is let go.
pub struct Transaction<F: Files> {
    changes: Changes,
    is_read_only: bool,
    has_failed: bool,
    /// Documents that were looked at since the beginning: from then on nobody else changes them.
    current: HashSet<usize>,
    _lock: F::Lock,
    _open: Open,
}

/// Says that a transaction is open, until it is dropped.
struct Open(Rc<Cell<bool>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl<F: Files> JsonStore<F> {
    pub(crate) fn begin_transaction(&mut self, is_read_only: bool) -> Result<Transaction<F>> {
        if self.in_transaction.get() {
            return Err(Error::new(ErrorKind::Busy, "a transaction is open"));
        }
        self.flush()?;
        let lock = if is_read_only {
            if self.is_unfinished()? {
                drop(self.take_exclusive()?);
            }
            self.acquire(LockMode::Shared)?
        } else {
            self.take_exclusive()?
        };
        self.in_transaction.set(true);
        Ok(Transaction {
            changes: Changes::default(),
            is_read_only,
            has_failed: false,
            current: HashSet::new(),
            _lock: lock,
            _open: Open(self.in_transaction.clone()),
        })
    }

    fn make_current(&mut self, transaction: &mut Transaction<F>, collection: &str) -> Result<()> {
        if transaction.has_failed {
            return Err(Error::invalid("the transaction has failed and can only be rolled back"));
        }
        let document = self.document_of(collection)?;
        if !transaction.current.contains(&document) {
            self.refresh(document)?;
            transaction.current.insert(document);
        }
        Ok(())
    }

    pub(crate) fn get_in(
        &mut self,
        transaction: &mut Transaction<F>,
        collection: &str,
        ids: &[String],
    ) -> Result<Vec<Option<Entity>>> {
        self.make_current(transaction, collection)?;
        self.get_with(&transaction.changes, collection, ids)
    }

    pub(crate) fn find_in(
        &mut self,
        transaction: &mut Transaction<F>,
        collection: &str,
        query: &Query,
    ) -> Result<Page> {
        self.make_current(transaction, collection)?;
        self.find_with(&transaction.changes, collection, query)
    }

    pub(crate) fn apply_in(
        &mut self,
        transaction: &mut Transaction<F>,
        writes: Vec<Write>,
        now: &str,
    ) -> Result<Vec<Outcome>> {
        if transaction.is_read_only {
            return Err(Error::invalid("the transaction is read-only"));
        }
        if let Err(error) = entity::check_distinct(&writes) {
            transaction.has_failed = true;
            return Err(error);
        }
        let mut outcomes = Vec::with_capacity(writes.len());
        for (i, write) in writes.into_iter().enumerate() {
            let staged = self
                .make_current(transaction, write.target().0)
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
        if transaction.has_failed {
            return Err(Error::invalid("the transaction has failed and can only be rolled back"));
        }
        self.commit_changes(&transaction.changes)
    }
}
