//! The `dynamodb` strategy: entities as items of tables that people and other programs can read and change too.
//!
//! `table` makes a table's definition of a collection's, `item` an item of an entity and back without losing a digit
//! (`number`, `size`); `plan` decides how a query is read and what the service is told of its filter, `find` pages through
//! it; `write` and `transaction` change entities on the condition that nobody else did; `check` looks at the tables, and
//! `store` holds it together. All of it is plain Rust over a [`Dynamodb`]; this file gives it the contract's form.

mod check;
mod config;
mod find;
mod item;
mod number;
mod plan;
mod size;
mod store;
mod table;
mod transaction;
mod write;

use std::collections::HashSet;

use larder_guest::{Dynamodb, Strategy};
use larder_model::{
    Batch, Collection, Description, Entity, Existing, Features, Isolation, Loaded, Opened, Outcome, Page, Query,
    Result, Violation, Write, filter::Filter,
};

pub use store::DynamodbStore;
pub use transaction::Transaction;

#[cfg(target_family = "wasm")]
larder_guest::export_strategy!(crate::DynamodbStore<larder_guest::HostDynamodb>);

impl<D: Dynamodb + Default> Strategy for DynamodbStore<D> {
    type Transaction = Transaction;

    fn describe() -> Description {
        Description {
            strategy: "dynamodb".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: Features { atomic_apply: true, transactions: true, needs_prepare: true, ..Features::default() },
            isolations: vec![Isolation::ReadCommitted, Isolation::RepeatableRead],
            max_atomic_writes: write::ACTIONS_MAX as u32,
            max_entity_bytes: write::ENTITY_BYTES_MAX as u64,
            config_schema: config::schema().to_string(),
        }
    }

    fn open(config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        DynamodbStore::open_in(D::default(), config, collections)
    }

    fn stored_collections(&mut self) -> Result<Vec<String>> {
        self.dynamodb.list_collections()
    }

    fn prepare(&mut self, dry_run: bool, extend: bool) -> Result<Vec<String>> {
        self.prepare_all(dry_run, extend)
    }

    fn check(&mut self) -> Result<String> {
        self.findings()
    }

    /// What the service answered is durable.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        self.get_all(collection, ids)
    }

    fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        let reading = find::Reading { consistent: self.consistent_reads, without: &HashSet::new() };
        let position = self.position(collection)?;
        Ok(self.find_in(position, query, &reading)?.page)
    }

    fn count(&mut self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        let position = self.position(collection)?;
        match filter {
            None => self.count_all(position).map(Some),
            Some(_) => Ok(None),
        }
    }

    fn scan(
        &mut self,
        collection: &str,
        segment: u32,
        segments: u32,
        cursor: Option<&[u8]>,
        max_bytes: u32,
    ) -> Result<Batch> {
        self.scan_segment(collection, (segment, segments), cursor, max_bytes)
    }

    fn apply(&mut self, writes: Vec<Write>, atomic: bool, now: &str) -> Result<Vec<Result<Outcome>>> {
        match atomic {
            true => self.apply_atomic(&writes, now),
            false => self.apply_each(&writes, now),
        }
    }

    fn load(&mut self, collection: &str, entities: Vec<Entity>, existing: Existing) -> Result<Loaded> {
        let position = self.position(collection)?;
        self.load_all(position, entities, existing)
    }

    fn validate(&mut self, collection: &str, entities: Vec<Entity>) -> Result<Vec<Violation>> {
        self.violations(collection, &entities)
    }

    fn begin(&mut self, isolation: Option<Isolation>, read_only: bool) -> Result<Transaction> {
        self.begin_transaction(isolation, read_only)
    }

    fn transaction_get(
        &mut self,
        transaction: &mut Transaction,
        collection: &str,
        ids: &[String],
        for_update: bool,
    ) -> Result<Vec<Option<Entity>>> {
        self.get_in_transaction(transaction, collection, ids, for_update)
    }

    fn transaction_find(&mut self, transaction: &mut Transaction, collection: &str, query: &Query) -> Result<Page> {
        self.find_in_transaction(transaction, collection, query)
    }

    fn transaction_apply(
        &mut self,
        transaction: &mut Transaction,
        writes: Vec<Write>,
        now: &str,
    ) -> Result<Vec<Outcome>> {
        self.apply_in_transaction(transaction, &writes, now)
    }

    fn commit(&mut self, transaction: Transaction) -> Result<()> {
        self.commit_transaction(transaction)
    }

    /// Nothing was sent.
    fn rollback(&mut self, _transaction: Transaction) -> Result<()> {
        Ok(())
    }
}
