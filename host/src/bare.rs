//! Parts that nobody meets alone in use, for `bench/` and `fuzz/`, and no part of the library's interface: what a plugin is
//! lent, without a plugin, so that the same strategy can be timed natively and as a component and what lies between
//! the two is the boundary and nothing else; and what reads data that others wrote.

use std::path::Path;

use larder_model::Batch;

use crate::capability::Lent;
pub use crate::capability::files::{Directory, FileStat, Lock, LockMode, Replacement};
pub use crate::capability::sql::{Connections, Database, Dialect, Rows, SqlValue, Transaction};
use crate::config::{Config, PluginSettings, Store};
use crate::error::Result;
use crate::migration;
use crate::plugin;
use crate::query;
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

/// Looks at the bytes of components.
pub struct Components {
    engine: plugin::engine::Engine,
    settings: PluginSettings,
}

impl Components {
    /// With an engine that keeps nothing of what it compiles, and the limits that nobody has changed.
    pub fn new() -> Result<Components> {
        let config = Config::from_text(r#"{"storage": {"strategy": "none"}}"#, Path::new("."))?;
        Ok(Components { engine: plugin::engine::new(None)?, settings: config.plugins })
    }

    /// Up to where something of it would run: its layers, its validity, its exports and imports.
    pub fn examine(&self, bytes: &[u8]) -> Result<()> {
        plugin::examine(&self.engine, bytes.to_vec(), &self.settings)
    }
}

/// The state of a migration, read and written again; none where it is none.
pub fn checkpoint(bytes: &[u8]) -> Option<Vec<u8>> {
    migration::checkpoint_again(bytes)
}

/// Whether a text that may be anything is a cursor of the query that nobody asks.
pub fn is_cursor(text: &str) -> bool {
    query::cursor::is_of_nobody(text)
}

/// The cursor that a kind and a place, as bytes, would be, read and written again; none where they are none.
pub fn cursor(bytes: &[u8]) -> Option<String> {
    query::cursor::again(bytes)
}
