//! A configuration brought to life: the engine, the plugins directory, and the stores that can be opened.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::capability::{self, Lent};
use crate::config::{self, Config, Store};
use crate::error::Result;
use crate::plugin::engine::Engine;
use crate::plugin::{self, Plugin};
use crate::repository::{Limits, Repository, Scrutiny};

/// Opens the stores of one configuration.
pub struct Host {
    config: Config,
    plugins_directory: PathBuf,
    engine: Engine,
    scrutiny: Scrutiny,
    /// What was lent, to be given back in order.
    lent: Mutex<Vec<Lent>>,
}

impl Host {
    /// `plugins_directory` overrides what the configuration says.
    pub fn new(config: Config, plugins_directory: Option<&Path>) -> Result<Host> {
        let plugins_directory = config.plugins_directory(plugins_directory)?;
        let engine = plugin::engine::new(config::compile_cache_directory().as_deref())?;
        Ok(Host { config, plugins_directory, engine, scrutiny: Scrutiny::default(), lent: Mutex::default() })
    }

    /// The same, with an eye on what its plugins do.
    pub(crate) fn under(self, scrutiny: Scrutiny) -> Host {
        Host { scrutiny, ..self }
    }

    /// What it was made from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where plugins are looked for.
    pub fn plugins_directory(&self) -> &Path {
        &self.plugins_directory
    }

    /// Names of the components in the plugins directory.
    pub fn plugin_names(&self) -> Result<Vec<String>> {
        plugin::discover(&self.plugins_directory)
    }

    /// Loads a strategy from the plugins directory.
    pub async fn plugin(&self, name: &str) -> Result<Plugin> {
        plugin::load(&self.engine, &self.plugins_directory, name, self.config.plugins.component_bytes_max).await
    }

    /// Loads a component from anywhere, to look at it.
    pub async fn inspect(&self, path: &Path) -> Result<Plugin> {
        plugin::load_file(&self.engine, path, self.config.plugins.component_bytes_max).await
    }

    /// Closes what its stores hold open: an SQLite database is one file again. A repository that is used after that opens
    /// what it needs anew.
    pub async fn close(&self) {
        let lent = std::mem::take(&mut *self.lent.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for lent in lent {
            lent.close().await;
        }
    }

    /// Opens a store by its name, or the configured default.
    pub async fn open(&self, store: Option<&str>) -> Result<Repository> {
        self.open_store(self.config.store(store)?).await
    }

    async fn open_store(&self, store: Store) -> Result<Repository> {
        store.check_apart_from_plugins(&self.plugins_directory)?;
        let plugin = self.plugin(&store.strategy).await?;
        config::check_section(&store.strategy, &store.section.clone().into(), &plugin.description.config_schema)?;
        store.check_paths()?;
        let lent = Lent::new(&store.grants, self.config.plugins.call_timeout)?;
        self.lent.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(lent.clone());
        let pre = capability::link(&self.engine, &plugin, &store)?;
        let settings = &self.config.plugins;
        let limits = Limits {
            memory_bytes_max: usize::try_from(settings.memory_bytes_max).unwrap_or(usize::MAX),
            call_timeout: settings.call_timeout,
            transaction_timeout: settings.transaction_timeout,
            scanned_entities_max: settings.scanned_entities_max,
        };
        let collections = self.config.collections().to_vec();
        Repository::open(&store, plugin, pre, lent, collections, limits, self.scrutiny.clone()).await
    }
}
