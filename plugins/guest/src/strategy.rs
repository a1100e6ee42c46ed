//! The contract as a Rust trait. `wit/repository.wit` specifies each function; what is said there is not repeated.

use larder_model::{
    Batch, Collection, Description, Entity, Error, ErrorKind, Existing, Isolation, Loaded, Opened, Outcome, Page,
    Query, RestorePoint, Result, Violation, Write, filter::Filter, json::quoted,
};

/// A strategy: an open store in one instance.
#[allow(missing_docs)]
pub trait Strategy: Sized {
    /// What stands for an open transaction. Dropped without an end, it must roll back.
    type Transaction;

    fn describe() -> Description;
    fn open(config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)>;

    fn stored_collections(&mut self) -> Result<Vec<String>>;
    fn prepare(&mut self, dry_run: bool, extend: bool) -> Result<Vec<String>>;
    /// Without one of its own, a strategy has nothing that is made faster behind a load.
    fn prepare_for_load(&mut self) -> Result<()> {
        self.prepare(false, false).map(drop)
    }
    /// Findings as one JSON object.
    fn check(&mut self, thorough: bool) -> Result<String>;
    fn flush(&mut self) -> Result<()>;
    /// Without one of its own, a strategy leaves nothing that would have to be put in order.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
    /// Without one of its own, a strategy keeps none.
    fn restore_points(&mut self) -> Result<Vec<RestorePoint>> {
        Ok(Vec::new())
    }
    /// Without one of its own, a strategy has no point of any name.
    fn restore(&mut self, name: &str) -> Result<Vec<String>> {
        Err(Error::new(ErrorKind::NotFound, format!("there is no restore point {}", quoted(name))))
    }

    fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>>;
    fn find(&mut self, collection: &str, query: &Query) -> Result<Page>;
    fn count(&mut self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>>;
    fn scan(
        &mut self,
        collection: &str,
        segment: u32,
        segments: u32,
        cursor: Option<&[u8]>,
        max_bytes: u32,
    ) -> Result<Batch>;
    fn apply(&mut self, writes: Vec<Write>, atomic: bool, now: &str) -> Result<Vec<Result<Outcome>>>;
    fn load(&mut self, collection: &str, entities: Vec<Entity>, existing: Existing) -> Result<Loaded>;
    fn validate(&mut self, collection: &str, entities: Vec<Entity>) -> Result<Vec<Violation>>;

    fn begin(&mut self, isolation: Option<Isolation>, read_only: bool) -> Result<Self::Transaction>;
    fn transaction_get(
        &mut self,
        transaction: &mut Self::Transaction,
        collection: &str,
        ids: &[String],
        for_update: bool,
    ) -> Result<Vec<Option<Entity>>>;
    fn transaction_find(
        &mut self,
        transaction: &mut Self::Transaction,
        collection: &str,
        query: &Query,
    ) -> Result<Page>;
    fn transaction_apply(
        &mut self,
        transaction: &mut Self::Transaction,
        writes: Vec<Write>,
        now: &str,
    ) -> Result<Vec<Outcome>>;
    fn commit(&mut self, transaction: Self::Transaction) -> Result<()>;
    fn rollback(&mut self, transaction: Self::Transaction) -> Result<()>;
}
