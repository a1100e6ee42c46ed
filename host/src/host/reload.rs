//! Plugins that change while the host runs: a file that is new or changed in the plugins directory is taken for the stores
//! that are open, without an end of their use.
//!
//! The directory is looked at four times a second, rather than told of by the system: a look costs a few microseconds, works
//! on every file system, and has to be done twice in any case, to tell a file that is being copied from one that is there.
//! What looks the same twice is compiled and described beside the version in use, and held against every store that
//! the configuration gives its strategy: what it wants against the store's grants, the store's section against its
//! schema. Then calls go to the new version, and those that are under way end on the old one ([`crate::repository`]).
//!
//! One that cannot be used is refused, and the version in use stays. A file that is removed takes nothing from the
//! stores that are open; a store that is opened after that is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{Host, locked};
use crate::error::{Error, Result};
use crate::plugin::look::{self, Look};
use crate::plugin::{self, Plugin};
use crate::repository::Kept;

/// From one look to the next. What was copied is in use after two of them and the time to compile it.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long a file that is no component may be one that is not all there yet. A copy that stands still for longer is
/// refused, and taken when it goes on.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a change in the plugins directory.
#[derive(Debug, Clone)]
pub enum Reload {
    /// A strategy that was not there can be used.
    Added {
        /// Its name.
        plugin: String,
        /// Of its file, in hexadecimal.
        sha256: String,
    },
    /// Calls go to another version.
    Replaced {
        /// The strategy's name.
        plugin: String,
        /// Of the file, in hexadecimal.
        sha256: String,
        /// The open stores that use it now, once for each time that they were opened.
        stores: Vec<String>,
    },
    /// A version is not used, and the one before it still is: by every store, or by the one that the error names.
    Refused {
        /// The strategy's name.
        plugin: String,
        /// Why.
        error: Error,
    },
    /// The file is gone. Stores that are open go on with what they have, and no store opens any more.
    Removed {
        /// The strategy's name.
        plugin: String,
    },
}

/// Looks at the plugins directory until it is dropped.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::UnboundedReceiver<Reload>,
    task: AbortHandle,
}

impl Watch {
    /// The next change; none once the host is gone. Changes are taken whether somebody asks for them or not.
    pub async fn next(&mut self) -> Option<Reload> {
        self.events.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The plugins directory as it was at the last look.
#[derive(Default)]
pub(super) struct Known {
    files: BTreeMap<String, File>,
    /// Stores that could not go over to a version, with the sha256 of that: not again for the same one.
    left_behind: BTreeSet<(String, String)>,
}

impl Known {
    /// As it is now. What lies there is no change.
    pub(super) fn at_first(directory: &Path) -> Known {
        let present = look::look(directory).unwrap_or_default();
        let file = |look| File { look: Some(look), since: Instant::now(), is_settled: true };
        let files = present.into_iter().map(|(name, look)| (name, file(look))).collect();
        Known { files, left_behind: BTreeSet::new() }
    }
}

struct File {
    /// None where it is gone.
    look: Option<Look>,
    since: Instant,
    /// It was taken or refused as it looks.
    is_settled: bool,
}

/// A strategy's version in use.
#[derive(Default)]
pub(super) struct Version {
    /// None where nobody has used it since it was first looked at.
    plugin: Option<Plugin>,
    /// Why the file that lies there is not what is used.
    problem: Option<Error>,
    is_removed: bool,
}

/// What a file that looks the same twice comes to.
enum Taken {
    Now(Option<Reload>),
    /// It may not be all there.
    Later,
    Refused(Error),
}

impl Host {
    /// Takes changes in the plugins directory as they come, at the latest a second after a file is all there. From then on stores
    /// are opened with the version that was taken last, not with whatever lies there at that moment.
    ///
    /// ```no_run
    /// # async fn run(config: larder::Config) -> larder::Result<()> {
    /// use std::sync::Arc;
    ///
    /// let host = Arc::new(larder::Host::new(config, None)?);
    /// let repository = host.open(None).await?;
    /// let mut watch = host.watch()?;
    /// tokio::spawn(async move {
    ///     while let Some(reload) = watch.next().await {
    ///         eprintln!("{reload:?}");
    ///     }
    /// });
    /// // `repository` is used on and on, whatever version of the plugin serves it.
    /// # drop(repository); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `plugin-refused` where the directory cannot be read.
    pub fn watch(self: &Arc<Self>) -> Result<Watch> {
        let present = plugin::discover(&self.plugins_directory)?;
        {
            let mut versions = locked(&self.versions);
            for name in present {
                versions.entry(name).or_default();
            }
            for (name, version) in versions.iter_mut() {
                version.plugin = self.in_use(name);
            }
        }
        let (sender, events) = mpsc::unbounded_channel();
        let task = tokio::spawn(watch(Arc::downgrade(self), sender));
        Ok(Watch { events, task: task.abort_handle() })
    }

    /// Looks at the plugins directory now, and takes what has changed since it was last looked at: for who decides by
    /// himself when. Takes a quarter of a second and the time to compile, because a file has to look the same twice.
    pub async fn reload(&self) -> Vec<Reload> {
        let mut reloads = self.look().await;
        tokio::time::sleep(INTERVAL).await;
        reloads.extend(self.look().await);
        reloads
    }

    /// Why files in the plugins directory are not what is used, by the names of their strategies.
    pub fn refused_plugins(&self) -> BTreeMap<String, Error> {
        let versions = locked(&self.versions);
        versions.iter().filter_map(|(name, version)| Some((name.clone(), version.problem.clone()?))).collect()
    }

    /// The version that was taken last; none where nobody looks for changes.
    pub(super) fn version(&self, name: &str) -> Option<Result<Plugin>> {
        let versions = locked(&self.versions);
        let version = versions.get(name)?;
        if version.is_removed {
            let directory = self.plugins_directory.display();
            return Some(Err(Error::refused(format!("the plugin `{name}` was removed from {directory}"))
                .hint("stores that are open go on with it; put the file back to open others")));
        }
        match (&version.plugin, &version.problem) {
            (Some(plugin), _) => Some(Ok(plugin.clone())),
            (None, Some(problem)) => Some(Err(problem.clone())),
            (None, None) => None,
        }
    }

    /// The version that an open store has.
    fn in_use(&self, name: &str) -> Option<Plugin> {
        let opened = locked(&self.opened);
        opened.iter().map(Kept::plugin).find(|plugin| plugin.name == name).map(|plugin| (*plugin).clone())
    }

    /// What a store is opened with is the version in use, where somebody looks for changes.
    pub(super) fn used(&self, plugin: &Plugin) {
        if let Some(version) = locked(&self.versions).get_mut(&plugin.name) {
            version.plugin.get_or_insert_with(|| plugin.clone());
        }
    }

    /// One look.
    async fn look(&self) -> Vec<Reload> {
        let mut known = self.known.lock().await;
        // Of a directory that cannot be read nothing can be told: it may be replaced as a whole at this moment.
        let Ok(present) = look::look(&self.plugins_directory) else { return Vec::new() };
        let names: BTreeSet<String> = known.files.keys().chain(present.keys()).cloned().collect();
        let mut reloads = Vec::new();
        for name in names {
            let look = present.get(&name);
            let unseen = || File { look: None, since: Instant::now(), is_settled: true };
            let file = known.files.entry(name.clone()).or_insert_with(unseen);
            if file.look.as_ref() != look {
                *file = File { look: look.cloned(), since: Instant::now(), is_settled: false };
            } else if !file.is_settled {
                let taken = match look {
                    Some(look) => self.take(&name, look, file.since.elapsed()).await,
                    None => self.remove(&name),
                };
                file.is_settled = !matches!(taken, Taken::Later);
                match taken {
                    Taken::Now(reload) => reloads.extend(reload),
                    Taken::Later => {}
                    Taken::Refused(error) => {
                        self.refuse(&name, &error);
                        reloads.push(Reload::Refused { plugin: name, error });
                    }
                }
            }
        }
        self.bring_up(&mut known.left_behind, &mut reloads).await;
        reloads
    }

    /// What is used stays, also for stores that are opened from here on.
    fn refuse(&self, name: &str, error: &Error) {
        let mut versions = locked(&self.versions);
        let version = versions.entry(name.to_owned()).or_default();
        let plugin = version.plugin.take().or_else(|| self.in_use(name));
        *version = Version { plugin, problem: Some(error.clone()), is_removed: false };
    }

    fn remove(&self, name: &str) -> Taken {
        locked(&self.versions).insert(name.to_owned(), Version { is_removed: true, ..Version::default() });
        Taken::Now(Some(Reload::Removed { plugin: name.to_owned() }))
    }

    /// Makes the file the version in use, if every store that is configured can use it.
    async fn take(&self, name: &str, seen: &Look, unchanged_for: Duration) -> Taken {
        let loaded = self.load_aside(name).await;
        // Written to meanwhile, so who knows what was read.
        if look::look(&self.plugins_directory).is_ok_and(|present| present.get(name) != Some(seen)) {
            return Taken::Later;
        }
        let plugin = match loaded {
            Ok(plugin) => plugin,
            Err(_) if unchanged_for < PATIENCE => return Taken::Later,
            Err(error) => return Taken::Refused(error),
        };
        for store in self.config.stores().iter().filter(|store| store.strategy == name) {
            if let Err(error) = self.link(&plugin, store) {
                return Taken::Refused(error.context(format!("the new version of plugin `{name}` is not used")));
            }
        }
        let sha256 = plugin.sha256.clone();
        let mut versions = locked(&self.versions);
        let before = versions.insert(name.to_owned(), Version { plugin: Some(plugin), ..Version::default() });
        let in_use = before.as_ref().and_then(|before| before.plugin.clone()).or_else(|| self.in_use(name));
        let in_use = in_use.map(|plugin| plugin.sha256);
        Taken::Now(match before {
            _ if in_use.as_ref() == Some(&sha256) => None,
            None | Some(Version { is_removed: true, .. }) if in_use.is_none() => {
                Some(Reload::Added { plugin: name.to_owned(), sha256 })
            }
            _ => Some(Reload::Replaced { plugin: name.to_owned(), sha256, stores: Vec::new() }),
        })
    }

    /// Compiling takes the processor for a while, which belongs to nobody's call.
    pub(super) async fn load_aside(&self, name: &str) -> Result<Plugin> {
        let (engine, directory, name) = (self.engine.clone(), self.plugins_directory.clone(), name.to_owned());
        let (bounds, pins) = (self.bounds(), self.pins()?);
        let load = move || Handle::current().block_on(plugin::load(&engine, &directory, &name, &bounds, pins.as_ref()));
        let loaded = tokio::task::spawn_blocking(load).await;
        loaded.unwrap_or_else(|fault| Err(Error::refused(format!("a plugin could not be loaded: {fault}"))))
    }

    /// Lets every open store use the version that its strategy has, also one that was opened while that was taken.
    async fn bring_up(&self, left_behind: &mut BTreeSet<(String, String)>, reloads: &mut Vec<Reload>) {
        let versions: Vec<Plugin> =
            locked(&self.versions).values().filter_map(|version| version.plugin.clone()).collect();
        for plugin in versions {
            let is_behind = |kept: &Kept| {
                let used = kept.plugin();
                kept.is_used()
                    && used.name == plugin.name
                    && used.sha256 != plugin.sha256
                    && !left_behind.contains(&(kept.name().to_owned(), plugin.sha256.clone()))
            };
            let behind: Vec<Kept> = locked(&self.opened).iter().filter(|kept| is_behind(kept)).cloned().collect();
            // Side by side: an open transaction keeps its own store waiting, and no other.
            let replaced = join_all(behind.iter().map(|kept| self.bring_up_one(kept, &plugin))).await;
            let mut went_over = Vec::new();
            for (kept, replaced) in behind.iter().zip(replaced) {
                match replaced {
                    Ok(()) => went_over.push(kept.name().to_owned()),
                    Err(error) => {
                        left_behind.insert((kept.name().to_owned(), plugin.sha256.clone()));
                        let message = format!(
                            "store `{}` stays with the version of plugin `{}` that it has",
                            kept.name(),
                            plugin.name
                        );
                        reloads.push(Reload::Refused { plugin: plugin.name.clone(), error: error.context(message) });
                    }
                }
            }
            let told = reloads.iter_mut().find_map(|reload| match reload {
                Reload::Replaced { plugin: name, stores, .. } if *name == plugin.name => Some(stores),
                _ => None,
            });
            match told {
                Some(stores) => *stores = went_over,
                None if went_over.is_empty() => {}
                None => reloads.push(Reload::Replaced {
                    plugin: plugin.name.clone(),
                    sha256: plugin.sha256.clone(),
                    stores: went_over,
                }),
            }
        }
    }

    async fn bring_up_one(&self, kept: &Kept, plugin: &Plugin) -> Result<()> {
        let store = self.config.store(Some(kept.name()))?;
        kept.replace(plugin.clone(), self.link(plugin, &store)?).await
    }
}

async fn watch(host: Weak<Host>, sender: mpsc::UnboundedSender<Reload>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(host) = host.upgrade() else { return };
        for reload in host.look().await {
            // Nobody has to listen.
            let _ = sender.send(reload);
        }
    }
}
