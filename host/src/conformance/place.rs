//! Where a case happens: a store that is empty, and handles on it as an application would open them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use larder_model::{Collection, Features, Removal, Write};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::check::{Checked, Stop};
use super::{Instances, Subject};
use crate::capability::faults::Faults;
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::query::Select;
use crate::repository::{Repository, Scrutiny};

/// The name of the store.
const STORE: &str = "store-under-test";
/// Seconds that a call of a trial may take: far more than any needs that waits for nobody.
const TRIAL_CALL_TIMEOUT: u64 = 10;

/// Tells the cases of one process apart, and processes by their number.
static CASES: AtomicU64 = AtomicU64::new(0);

/// A store for one case. Clones are the same place.
#[derive(Clone)]
pub(super) struct Place {
    inner: Arc<Inner>,
}

struct Inner {
    subject: Subject,
    /// `store`, which the store is given, and `host`, which it is not.
    folder: PathBuf,
    word: String,
    /// The folder goes with it; none where it is another process's.
    _owned: Option<TempDir>,
    /// Seconds that a call may take, where a lock that is left behind is to show sooner than by itself.
    call_timeout: Option<u64>,
    scrutiny: Scrutiny,
    hosts: Mutex<Vec<Arc<Host>>>,
    opened: Mutex<Option<Repository>>,
}

impl Inner {
    fn new(subject: &Subject, folder: PathBuf, word: String, scrutiny: Scrutiny) -> Inner {
        Inner {
            subject: subject.clone(),
            folder,
            word,
            _owned: None,
            call_timeout: None,
            scrutiny,
            hosts: Mutex::default(),
            opened: Mutex::default(),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Place {
    pub(super) fn new(subject: &Subject, instances: Instances) -> Checked<Place> {
        let scrutiny = Scrutiny {
            fresh_instances: instances == Instances::Fresh,
            called: Some(Arc::new(Mutex::new(BTreeSet::new()))),
            ..Scrutiny::default()
        };
        Place::made(subject, scrutiny, None)
    }

    fn made(subject: &Subject, scrutiny: Scrutiny, call_timeout: Option<u64>) -> Checked<Place> {
        let folder = tempfile::tempdir()
            .and_then(|folder| std::fs::create_dir(folder.path().join("store")).map(|()| folder))
            .map_err(|error| Stop::NotRun(format!("no temporary folder can be made: {error}")))?;
        let number = CASES.fetch_add(1, Ordering::Relaxed);
        // Short and without signs, because it may become part of a table's name.
        let word = format!("c{}_{number}", std::process::id());
        let path = folder.path().to_path_buf();
        let inner = Inner { _owned: Some(folder), call_timeout, ..Inner::new(subject, path, word, scrutiny) };
        Ok(Place { inner: Arc::new(inner) })
    }

    /// A store for one trial of a fault.
    pub(super) fn for_trial(subject: &Subject) -> Checked<Place> {
        Place::made(subject, Scrutiny::default(), Some(TRIAL_CALL_TIMEOUT))
    }

    /// The same, as another process made it.
    pub(super) fn of_trial(subject: &Subject, folder: &Path, word: &str) -> Place {
        let inner = Inner::new(subject, folder.to_path_buf(), word.to_owned(), Scrutiny::default());
        Place { inner: Arc::new(Inner { call_timeout: Some(TRIAL_CALL_TIMEOUT), ..inner }) }
    }

    /// What another process needs to be at the same place: its folder and its word.
    pub(super) fn whereabouts(&self) -> (&Path, &str) {
        (&self.inner.folder, &self.inner.word)
    }

    /// The folder that `${SCRATCH}` stands for.
    fn scratch(&self) -> PathBuf {
        self.inner.folder.join("store")
    }

    /// A handle on the store as it is, whose calls to the host may go wrong.
    pub(super) async fn open_with(&self, faults: &Faults) -> Result<Repository> {
        let scrutiny = Scrutiny { faults: Some(faults.clone()), ..self.inner.scrutiny.clone() };
        self.open_as_it_is(scrutiny).await
    }

    /// A handle of its own: another host, another instance. For a plugin whose entities are in its memory there is only
    /// one.
    pub(super) async fn open(&self) -> Checked<Repository> {
        if self.inner.subject.is_in_memory() && locked(&self.inner.opened).is_some() {
            return Err(Stop::NotRun("it needs a second handle, and the plugin keeps entities in memory alone".into()));
        }
        let repository = self.open_store().await?;
        *locked(&self.inner.opened) = Some(repository.clone());
        Ok(repository)
    }

    /// A handle whose plugin is not told of one of the collections.
    pub(super) async fn open_without(&self, collection: &'static str) -> Checked<Repository> {
        let scrutiny = Scrutiny { withheld: Some(collection), ..self.inner.scrutiny.clone() };
        let repository = self.open_under(scrutiny).await?;
        *locked(&self.inner.opened) = Some(repository.clone());
        Ok(repository)
    }

    /// Another handle on the same store, where there can be one, and otherwise the same.
    pub(super) async fn another(&self, repository: &Repository) -> Checked<Repository> {
        match self.open().await {
            Err(Stop::NotRun(_)) => Ok(repository.clone()),
            another => another,
        }
    }

    /// A handle on a store as it is, where others are prepared that need it.
    pub(super) async fn open_unprepared(&self) -> Checked<Repository> {
        let repository = self.open_as_it_is(self.inner.scrutiny.clone()).await?;
        *locked(&self.inner.opened) = Some(repository.clone());
        Ok(repository)
    }

    async fn open_store(&self) -> Result<Repository> {
        self.open_under(self.inner.scrutiny.clone()).await
    }

    async fn open_under(&self, scrutiny: Scrutiny) -> Result<Repository> {
        let repository = self.open_as_it_is(scrutiny).await?;
        if self.features().needs_prepare {
            repository.prepare(false, false).await?;
        }
        Ok(repository)
    }

    async fn open_as_it_is(&self, scrutiny: Scrutiny) -> Result<Repository> {
        let subject = &self.inner.subject;
        let host = Host::on(subject.engine.clone(), self.config()?, Some(&subject.plugins_directory))?.under(scrutiny);
        let host = Arc::new(host);
        locked(&self.inner.hosts).push(host.clone());
        host.open(None).await
    }

    fn config(&self) -> Result<Config> {
        let mut store = self.inner.subject.store.clone();
        store.insert("strategy".into(), self.inner.subject.plugin.name.as_str().into());
        let mut document = json!({"storage": {
            "strategy": STORE,
            "stores": {STORE: store},
            "collections": {"things": {
                "key": "id",
                "version": "revision",
                "created_at": "made",
                "updated_at": false,
                "fields": {"label": {"type": "text"}, "size": {"type": "integer"}},
                "indexes": {"by-label": ["label"]},
            }},
        }});
        if let Some(seconds) = self.inner.call_timeout {
            document["plugins"] = json!({"call_timeout": seconds, "transaction_timeout": seconds});
        }
        let base = self.inner.folder.join("host");
        config::trial::config(document, &base, &self.scratch(), &self.inner.word)
    }

    /// What the plugin declares.
    pub(super) fn features(&self) -> Features {
        self.inner.subject.plugin.description.features
    }

    /// The collections that a store is opened with here.
    pub(super) fn collections(&self) -> Result<Vec<Collection>> {
        Ok(self.config()?.collections().to_vec())
    }

    /// Names of everything in the scratch folder; none where the store is somewhere else.
    pub(super) fn files(&self) -> Option<Vec<String>> {
        fn list(folder: &Path, names: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                names.push(entry.path().display().to_string());
                list(&entry.path(), names);
            }
        }
        if !Value::Object(self.inner.subject.store.clone()).to_string().contains(config::trial::SCRATCH_VARIABLE) {
            return None;
        }
        let mut names = Vec::new();
        list(&self.scratch(), &mut names);
        Some(names)
    }

    /// Whether the store is one that other cases used before.
    pub(super) fn is_shared(&self) -> bool {
        self.inner.subject.is_shared
    }

    /// Whether a function of the plugin was called. A component is asked to describe itself whenever it is loaded.
    pub(super) fn was_called(&self, function: &str) -> bool {
        function == "describe"
            || self.inner.scrutiny.called.as_ref().is_some_and(|called| locked(called).contains(function))
    }

    /// Leaves the place as it was found.
    pub(super) async fn leave(&self) -> Checked {
        locked(&self.inner.opened).take();
        if self.inner.subject.is_shared {
            let repository = self.open_store().await?;
            clear(&repository).await?;
        }
        let hosts = std::mem::take(&mut *locked(&self.inner.hosts));
        for host in hosts {
            if let Some(problem) = host.close().await.into_iter().next() {
                return Err(problem.into());
            }
        }
        Ok(())
    }
}

/// Deletes every entity, those that refer to others first.
async fn clear(repository: &Repository) -> Result<()> {
    for _ in repository.collections() {
        for collection in repository.collections() {
            let entities = repository.query(&collection.name, Select::default()).collect().await?;
            let removals: Vec<Write> = entities
                .into_iter()
                .map(|entity| {
                    let expect = larder_model::Expectation::Any;
                    Write::Remove(Removal { collection: collection.name.clone(), id: entity.id, expect })
                })
                .collect();
            for chunk in removals.chunks(500) {
                // One that is still referred to goes in the next round.
                repository.apply(chunk.to_vec(), false).await?;
            }
        }
    }
    for collection in repository.collections() {
        let left = repository.count(&collection.name, None).await?;
        if left > 0 {
            let message = format!("{left} entities of {} could not be deleted after a case", collection.name);
            return Err(Error::contract(larder_model::ErrorKind::Internal, message));
        }
    }
    Ok(())
}

/// Whether the store opens, and, where cases share it, holds nothing that is somebody's.
pub(super) async fn check_usable(subject: &Subject) -> Result<()> {
    let place = Place::new(subject, Instances::Warm).map_err(|_| Error::config("no temporary folder can be made"))?;
    let repository = place.open_store().await?;
    let shared = if subject.is_shared { repository.collections() } else { &[] };
    for collection in shared {
        let count = repository.count(&collection.name, None).await?;
        if count > 0 {
            return Err(Error::config(format!(
                "the store to test with holds {count} entities of {}, and the suite deletes what it finds",
                collection.name
            ))
            .hint("name a place that is empty; `${SCRATCH}` in its strings is an empty folder, `${CASE}` a new word"));
        }
    }
    let hosts = std::mem::take(&mut *locked(&place.inner.hosts));
    for host in hosts {
        if let Some(problem) = host.close().await.into_iter().next() {
            return Err(problem);
        }
    }
    Ok(())
}
