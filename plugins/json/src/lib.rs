//! The `json` strategy: entities in JSON documents that people can read, and other programs too.
//!
//! `store` does what the contract says, `document` reads one file, `journal` is where commits go, `fold` writes documents
//! anew, `restore` says what can be had back; `index` is what is known of entities without their text, and `reader` and
//! `gzip` bring the text. All of it is plain Rust over a [`Files`]; this file gives it the contract's form.

mod changes;
mod clock;
mod config;
mod document;
mod find;
mod fold;
mod gzip;
mod index;
mod journal;
mod reader;
mod restore;
mod store;
mod text;
mod transaction;

#[cfg(test)]
mod tests;

use larder_guest::{Files, Strategy};
use larder_model::{
    Batch, Collection, Description, Entity, Existing, Features, Isolation, Loaded, Opened, Outcome, Page, Query,
    RestorePoint, Result, Violation, Write, filter::Filter,
};

pub use store::JsonStore;
pub use transaction::Transaction;

#[cfg(target_family = "wasm")]
larder_guest::export_strategy!(crate::JsonStore<larder_guest::HostFiles>);

impl<F: Files + Default> Strategy for JsonStore<F> {
    type Transaction = Transaction<F>;

    fn describe() -> Description {
        Description {
            strategy: "json".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: Features {
                atomic_apply: true,
                transactions: true,
                deferred_sync: true,
                shared_state: true,
                ..Features::default()
            },
            isolations: vec![Isolation::Serializable],
            max_atomic_writes: 0,
            max_entity_bytes: store::ENTITY_BYTES_MAX as u64,
            config_schema: config::schema().to_string(),
        }
    }

    fn open(config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        JsonStore::open_in(F::default(), config, collections)
    }

    fn stored_collections(&mut self) -> Result<Vec<String>> {
        self.stored_collections()
    }

    fn prepare(&mut self, dry_run: bool, _extend: bool) -> Result<Vec<String>> {
        self.prepare(dry_run)
    }

    fn check(&mut self, thorough: bool) -> Result<String> {
        self.check(thorough)
    }

    fn flush(&mut self) -> Result<()> {
        self.flush()
    }

    fn close(&mut self) -> Result<()> {
        self.close()
    }

    fn restore_points(&mut self) -> Result<Vec<RestorePoint>> {
        self.restore_points()
    }

    fn restore(&mut self, name: &str) -> Result<Vec<String>> {
        self.restore(name)
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

    /// There are no rules but those of ids and sizes, which the host knows.
    fn validate(&mut self, _collection: &str, _entities: Vec<Entity>) -> Result<Vec<Violation>> {
        Ok(Vec::new())
    }

    fn begin(&mut self, _isolation: Option<Isolation>, read_only: bool) -> Result<Transaction<F>> {
        self.begin_transaction(read_only)
    }

    fn transaction_get(
        &mut self,
        transaction: &mut Transaction<F>,
        collection: &str,
        ids: &[String],
        _for_update: bool,
    ) -> Result<Vec<Option<Entity>>> {
        self.get_in(transaction, collection, ids)
    }

    fn transaction_find(&mut self, transaction: &mut Transaction<F>, collection: &str, query: &Query) -> Result<Page> {
        self.find_in(transaction, collection, query)
    }

    fn transaction_apply(
        &mut self,
        transaction: &mut Transaction<F>,
        writes: Vec<Write>,
        now: &str,
    ) -> Result<Vec<Outcome>> {
        self.apply_in(transaction, writes, now)
    }

    fn commit(&mut self, transaction: Transaction<F>) -> Result<()> {
        self.commit_transaction(transaction)
    }

    fn rollback(&mut self, transaction: Transaction<F>) -> Result<()> {
        drop(transaction);
        Ok(())
    }
}
