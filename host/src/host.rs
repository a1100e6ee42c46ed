//! A configuration brought to life: the engine, the plugins directory, and the stores that can be opened. How plugins change
//! while it lives is in [`reload`].

pub mod reload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::capability::{self, Lent};
use crate::config::{self, Config, Store};
use crate::error::{Error, Result};
use crate::plugin::bindings::StrategyPre;
use crate::plugin::engine::Engine;
use crate::plugin::instance::State;
use crate::plugin::limits::{Bounds, MemoryTotal};
use crate::plugin::pins::Pins;
use crate::plugin::{self, ComponentBounds, Inspection, Plugin};
use crate::repository::{Kept, Repository, Scrutiny};
use reload::{Known, Version};

/// Opens the stores of one configuration.
pub struct Host {
    config: Config,
    plugins_directory: PathBuf,
    engine: Engine,
    /// Of every instance of every store.
    memory_total: Arc<MemoryTotal>,
    scrutiny: Scrutiny,
    /// What was opened, to be closed in order.
    opened: Mutex<Vec<Kept>>,
    /// Of stores that were closed before anybody asked what came of it.
    problems: Mutex<Vec<Error>>,
    /// Held during a look at the plugins directory.
    known: tokio::sync::Mutex<Known>,
    /// By strategy: empty unless somebody looks for changes.
    versions: Mutex<BTreeMap<String, Version>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Host {
    /// `plugins_directory` overrides what the configuration says.
    pub fn new(config: Config, plugins_directory: Option<&Path>) -> Result<Host> {
        let engine = plugin::engine::new(config::compile_cache_directory().as_deref())?;
        Host::on(engine, config, plugins_directory)
    }

    /// The same on an engine that others share.
    pub(crate) fn on(engine: Engine, config: Config, plugins_directory: Option<&Path>) -> Result<Host> {
        let plugins_directory = config.plugins_directory(plugins_directory)?;
        let known = tokio::sync::Mutex::new(Known::at_first(&plugins_directory));
        Ok(Host {
            config,
            plugins_directory,
            engine,
            memory_total: Arc::default(),
            scrutiny: Scrutiny::default(),
            opened: Mutex::default(),
            problems: Mutex::default(),
            known,
            versions: Mutex::default(),
        })
    }

    /// The same, with an eye on what its plugins do.
    pub(crate) fn under(self, scrutiny: Scrutiny) -> Host {
        Host { scrutiny, ..self }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
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

    /// Loads a strategy from the plugins directory; where somebody looks for changes there, the version that was taken last.
    /// Where plugins are pinned, it must be the one that is.
    pub async fn plugin(&self, name: &str) -> Result<Plugin> {
        if let Some(version) = self.version(name) {
            return version;
        }
        let plugin = self.load_aside(name).await?;
        self.used(&plugin);
        Ok(plugin)
    }

    /// The plugins that may be loaded, none where nobody has said so.
    pub fn pins(&self) -> Result<Option<Pins>> {
        Pins::read(&self.config.plugins_lock())
    }

    /// Pins that would have the plugins directory as it is now.
    pub fn pins_of_directory(&self) -> Result<Pins> {
        let bounds = self.config.plugins.component_bytes_max;
        Pins::of_directory(&self.config.plugins_lock(), &self.plugins_directory, bounds)
    }

    /// Reads a component from anywhere, and runs nothing of it.
    pub fn inspect(&self, path: &Path) -> Result<Inspection> {
        plugin::inspect(path, &self.bounds())
    }

    /// Loads a component from anywhere, whether it is pinned or not: it is asked to describe itself, in a sandbox that
    /// lends it nothing.
    pub async fn describe(&self, path: &Path) -> Result<Plugin> {
        plugin::load_file(&self.engine, path, &self.bounds(), None).await
    }

    fn bounds(&self) -> ComponentBounds {
        ComponentBounds::new(&self.config.plugins)
    }

    /// Closes the stores that it opened, as [`Repository::close`] does, and what they hold open: an SQLite database is one
    /// file again. A repository that is used after that opens what it needs anew.
    ///
    /// Gives the errors of those that could not be closed. Nothing that was acknowledged depends on that.
    pub async fn close(&self) -> Vec<Error> {
        let opened = locked(&self.opened).clone();
        for kept in opened {
            self.close_one(kept).await;
        }
        locked(&self.opened).retain(Kept::is_used);
        std::mem::take(&mut *locked(&self.problems))
    }

    async fn close_one(&self, kept: Kept) {
        if let Err(problem) = kept.close().await {
            locked(&self.problems).push(problem);
        }
    }

    /// Opens a store by its name, or the configured default.
    pub async fn open(&self, store: Option<&str>) -> Result<Repository> {
        self.open_store(self.config.store(store)?).await
    }

    /// Links a plugin for a store, whose section has to fit it and whose grants have to suffice.
    fn link(&self, plugin: &Plugin, store: &Store) -> Result<StrategyPre<State>> {
        config::check_section(&store.strategy, &store.section.clone().into(), &plugin.description.config_schema)?;
        capability::link(&self.engine, plugin, store, self.scrutiny.faults.is_some())
    }

    async fn open_store(&self, store: Store) -> Result<Repository> {
        store.check_apart_from_plugins(&self.plugins_directory)?;
        let plugin = self.plugin(&store.strategy).await?;
        let pre = self.link(&plugin, &store)?;
        store.check_paths()?;
        // So that a program that opens stores again and again does not gather those that it is done with.
        let unused: Vec<Kept> = locked(&self.opened).extract_if(.., |kept| !kept.is_used()).collect();
        for kept in unused {
            self.close_one(kept).await;
        }
        let lent = Lent::new(&store.grants, self.config.collections(), self.config.plugins.call_timeout)?;
        lent.check_names(&store).await?;
        let bounds = Bounds { settings: self.config.plugins.clone(), memory_total: self.memory_total.clone() };
        let collections = self.config.collections().to_vec();
        let scrutiny = self.scrutiny.clone();
        match Repository::open(&store, plugin, pre, lent.clone(), collections, bounds, scrutiny).await {
            Ok(repository) => {
                locked(&self.opened).push(repository.kept());
                Ok(repository)
            }
            Err(error) => {
                lent.close().await;
                Err(error)
            }
        }
    }
}
