//! What a plugin is lent, without a plugin, so that the same strategy can be timed natively and as a component: what lies
//! between the two is the boundary and nothing else. For `bench/`, and no part of the library's interface.

use larder_model::Batch;

use crate::capability::Lent;
pub use crate::capability::files::{Directory, FileStat, Lock, LockMode, Replacement};
pub use crate::capability::sql::{Connections, Database, Dialect, Rows, SqlValue, Transaction};
use crate::config::{Config, Store};
use crate::error::Result;
use crate::repository::Repository;

/// The directory and the database that the plugin of this store would be lent.
pub fn lend(config: &Config, store: &Store) -> Result<(Option<Directory>, Option<Database>)> {
    let lent = Lent::new(&store.grants, config.collections(), config.plugins.call_timeout)?;
    Ok((lent.files, lent.sql))
}

/// A page of everything, as migrations read it.
pub async fn scan(repository: &Repository, collection: &str, cursor: Option<&[u8]>, bytes_max: u32) -> Result<Batch> {
    repository.scan(collection, 0, 1, cursor, bytes_max).await
}
