//! The `sql` strategy: entities as rows of tables that people and other programs can read and change too.
//!
//! `schema` makes a table of a collection's definition, `catalog` reads what the database has, `ledger` remembers what
//! larder knows of it, `prepare` makes what is missing; `types` says what columns hold and `row` turns an entity into
//! cells and back without losing a digit; `plan` decides what of a filter the database answers, `find` pages through it
//! in any order, `write` batches changes, and `store` does what the contract says. All of it is plain Rust over a
//! [`Sql`]; this file gives it the contract's form.
//!
//! SQLite and PostgreSQL are two dialects of one strategy. Where they have little in common, there is a file a dialect
//! (`catalog/`, `types/`, `plan/`); where they differ in a word, there is a `match`.

mod catalog;
mod check;
mod config;
mod copy;
mod database;
mod find;
mod ledger;
mod packed;
mod plan;
mod prepare;
mod row;
mod schema;
mod store;
mod types;
mod write;

#[cfg(test)]
mod tests;

use larder_guest::{Sql, Strategy};
use larder_model::{
    Batch, Collection, Description, Entity, Existing, Features, Isolation, Loaded, Opened, Outcome, Page, Query,
    Result, Violation, Write, filter::Filter,
};

pub use store::{SqlStore, Transaction};

#[cfg(target_family = "wasm")]
larder_guest::export_strategy!(crate::SqlStore<larder_guest::HostSql>);

impl<S: Sql + Default> Strategy for SqlStore<S> {
    type Transaction = Transaction<S>;

    fn describe() -> Description {
        Description {
            strategy: "sql".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: Features { atomic_apply: true, transactions: true, ..Features::default() },
            // Of PostgreSQL; SQLite serves each of them as serializable.
            isolations: vec![Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable],
            max_atomic_writes: 0,
            max_entity_bytes: store::ENTITY_BYTES_MAX as u64,
            config_schema: config::schema().to_string(),
        }
    }

    fn open(config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        SqlStore::open_in(S::default(), config, collections)
    }

    fn stored_collections(&mut self) -> Result<Vec<String>> {
        self.stored_collections()
    }

    fn prepare_for_load(&mut self) -> Result<()> {
        self.prepare_for_load()
    }

    fn prepare(&mut self, dry_run: bool, extend: bool) -> Result<Vec<String>> {
        self.prepare(dry_run, extend)
    }

    fn check(&mut self, thorough: bool) -> Result<String> {
        self.check(thorough)
    }

    /// A commit is durable already.
    fn flush(&mut self) -> Result<()> {
        self.flush()
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

    /// The host knows every rule there is: fields, references, ids and sizes.
    fn validate(&mut self, _collection: &str, _entities: Vec<Entity>) -> Result<Vec<Violation>> {
        Ok(Vec::new())
    }

    fn begin(&mut self, isolation: Option<Isolation>, read_only: bool) -> Result<Transaction<S>> {
        self.begin(isolation, read_only)
    }

    fn transaction_get(
        &mut self,
        transaction: &mut Transaction<S>,
        collection: &str,
        ids: &[String],
        for_update: bool,
    ) -> Result<Vec<Option<Entity>>> {
        self.transaction_get(transaction, collection, ids, for_update)
    }

    fn transaction_find(&mut self, transaction: &mut Transaction<S>, collection: &str, query: &Query) -> Result<Page> {
        self.transaction_find(transaction, collection, query)
    }

    fn transaction_apply(
        &mut self,
        transaction: &mut Transaction<S>,
        writes: Vec<Write>,
        now: &str,
    ) -> Result<Vec<Outcome>> {
        self.transaction_apply(transaction, writes, now)
    }

    fn commit(&mut self, transaction: Transaction<S>) -> Result<()> {
        self.commit(transaction)
    }

    fn rollback(&mut self, transaction: Transaction<S>) -> Result<()> {
        self.rollback(transaction)
    }
}
