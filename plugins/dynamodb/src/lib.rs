//! The `dynamodb` strategy: entities as items of tables that people and other programs can read and change too.
//!
//! `table` says what a collection's table looks like; `item` turns an entity into an item and back without losing a digit,
//! `number` spells numbers as the service does and `size` counts as it does; `plan` decides by which key or index a query is
//! read and what of its filter the service is asked, `find` pages through that; `write` stamps changes and sends them on the
//! condition that nothing changed between, `transaction` gathers them; `store` does what the contract says, and `check` says
//! how the tables are. All of it is plain Rust over a [`Dynamodb`]; this file gives it the contract's form.
//!
//! Requests, their repetition and what tables cost are the host's.

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

#[cfg(test)]
mod tests;

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
        self.stored_collections()
    }

    fn prepare(&mut self, dry_run: bool, extend: bool) -> Result<Vec<String>> {
        self.prepare(dry_run, extend)
    }

    fn check(&mut self, _thorough: bool) -> Result<String> {
        self.check()
    }

    /// What the service answered is durable.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        self.get(collection, ids)
    }

    fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        self.find(collection, query)
    }

    fn count(&mut self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        self.count(collection, filter)
    }

    fn scan(
        &mut self,
        collection: &str,
        segment: u32,
        segments: u32,
        cursor: Option<&[u8]>,
        max_bytes: u32,
    ) -> Result<Batch> {
        self.scan(collection, segment, segments, cursor, max_bytes)
    }

    fn apply(&mut self, writes: Vec<Write>, atomic: bool, now: &str) -> Result<Vec<Result<Outcome>>> {
        self.apply(writes, atomic, now)
    }

    fn load(&mut self, collection: &str, entities: Vec<Entity>, existing: Existing) -> Result<Loaded> {
        self.load(collection, entities, existing)
    }

    fn validate(&mut self, collection: &str, entities: Vec<Entity>) -> Result<Vec<Violation>> {
        self.validate(collection, entities)
    }

    fn begin(&mut self, isolation: Option<Isolation>, read_only: bool) -> Result<Transaction> {
        self.begin(isolation, read_only)
    }

    fn transaction_get(
        &mut self,
        transaction: &mut Transaction,
        collection: &str,
        ids: &[String],
        for_update: bool,
    ) -> Result<Vec<Option<Entity>>> {
        self.transaction_get(transaction, collection, ids, for_update)
    }

    fn transaction_find(&mut self, transaction: &mut Transaction, collection: &str, query: &Query) -> Result<Page> {
        self.transaction_find(transaction, collection, query)
    }

    fn transaction_apply(
        &mut self,
        transaction: &mut Transaction,
        writes: Vec<Write>,
        now: &str,
    ) -> Result<Vec<Outcome>> {
        self.transaction_apply(transaction, writes, now)
    }

    fn commit(&mut self, transaction: Transaction) -> Result<()> {
        self.commit(transaction)
    }

    /// Nothing was sent yet.
    fn rollback(&mut self, transaction: Transaction) -> Result<()> {
        drop(transaction);
        Ok(())
    }
}
