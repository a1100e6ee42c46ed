//! Moves every entity from one repository to another: checked before anything is written, backed up, moved batch by
//! batch, and proved equal afterwards. It knows repositories and no strategy.
//!
//! The steps are in modules of their own: `preflight`, `backup`, `transfer`, `verification`, `cleanup`. They read the source
//! page by page (`pages`), so that memory does not grow with it: only a source of some megabytes is held between validation and
//! move; of others the ids of referenced collections, and of what is left out, are kept, as hashes. Where it stands is kept
//! in `checkpoint`, so that another process can go on.

mod backup;
mod checkpoint;
mod cleanup;
mod digest;
mod merge;
mod pace;
mod pages;
mod preflight;
mod quarantine;
mod report;
mod seen;
mod transfer;
mod verification;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder_model::{Collection, Existing};
use sha2::{Digest as _, Sha256};

use crate::capability::Watch;
use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use crate::text::one_line;
pub use backup::BackedUp;
pub(crate) use checkpoint::again as checkpoint_again;
use checkpoint::{Place, Progress, State};
pub use digest::Digest;
use digest::{LeftOut, Sum};
use pages::Held;
pub(crate) use pages::read_ahead;
pub use preflight::{FieldReport, Kept};
pub use report::{CollectionReport, Report, StoreReport};
use seen::Seen;
pub use seen::{SourceChange, SourceChanges};
pub use verification::{Compared, Difference, Differences, Differing, differ, verify};

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Entities written at once.
    pub batch_size: u32,
    /// Stop before anything is written.
    pub dry_run: bool,
    /// Where the backup of the source goes, a folder or a `.json` file; none for no backup.
    pub backup_location: Option<PathBuf>,
    /// Read the target back and compare.
    pub verify: bool,
    /// What to do with an entity that the target holds with other content.
    pub existing: Existing,
    /// What to do with an entity that breaks a rule.
    pub on_invalid: OnInvalid,
    /// Only these; empty for all that are configured.
    pub collections: Vec<String>,
    /// Not these.
    pub excluded: Vec<String>,
    /// Remove what was verified from the source.
    pub cleanup_source: bool,
    /// Readers of the source, and writers of batches, that run side by side.
    pub workers: u32,
    /// Entities that are written in a second at most.
    pub max_rate: Option<u32>,
    /// How it can be gone on with; none for not at all.
    pub state: Option<StateOptions>,
    /// Set from outside, it ends the migration after the batches that are under way.
    pub stop: Arc<AtomicBool>,
}

impl Default for Options {
    /// What `larder migrate` does without flags and settings, but for backup and state, which have no place here.
    fn default() -> Options {
        Options {
            batch_size: 1000,
            dry_run: false,
            backup_location: None,
            verify: true,
            existing: Existing::Fail,
            on_invalid: OnInvalid::Fail,
            collections: Vec::new(),
            excluded: Vec::new(),
            cleanup_source: false,
            workers: 4,
            max_rate: None,
            state: None,
            stop: Arc::default(),
        }
    }
}

/// What to do with an entity that breaks a rule of the target, or is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInvalid {
    /// Write nothing at all.
    Fail,
    /// Write it down, beside the state, and move the others.
    Quarantine,
}

/// Where the state of migrations is kept, and what to do about an earlier run's.
#[derive(Debug, Clone)]
pub struct StateOptions {
    /// The folder of all migrations. Each pair of stores has one in it.
    pub folder: PathBuf,
    /// What to do about an earlier run that was not finished.
    pub start: Start,
    /// What place the source is, without secrets: a migration is gone on with only from there.
    pub source: String,
    /// The same of the target.
    pub target: String,
}

/// How to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the beginning, and not at all where an earlier run was not finished.
    Afresh,
    /// Where the earlier run stopped; at the beginning where there was none.
    Resume,
    /// At the beginning, whatever there was.
    Restart,
}

/// The parts of a migration, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Both stores and every entity.
    Validate,
    /// The source, into a file.
    BackUp,
    /// The entities.
    Move,
    /// What arrived.
    Verify,
    /// The source, where that was asked for.
    CleanUp,
}

impl Step {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Step::Validate => "validate",
            Step::BackUp => "back up",
            Step::Move => "move",
            Step::Verify => "verify",
            Step::CleanUp => "clean up",
        }
    }
}

/// What a watcher is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// A step begins; `entities` is how many it will go through, where that is known.
    Started {
        /// Which.
        step: Step,
        /// In all collections.
        entities: Option<u64>,
    },
    /// A step comes to a collection.
    Entered {
        /// Which.
        step: Step,
        /// Its name.
        collection: String,
        /// How many it has, where that is known.
        entities: Option<u64>,
    },
    /// More entities of a collection are done.
    Advanced {
        /// Which.
        step: Step,
        /// Its name.
        collection: String,
        /// Since the last such event.
        entities: u64,
    },
    /// What it does that was not asked for in so many words.
    Told {
        /// A sentence.
        message: String,
    },
    /// Something that whoever migrates should know.
    Warned {
        /// A sentence.
        message: String,
    },
    /// A step ended well.
    Ended {
        /// Which.
        step: Step,
        /// What came of it, for a person.
        summary: String,
        /// How long it took.
        took: Duration,
    },
}

/// Told what happens while it happens.
pub type Watcher<'a> = &'a mut (dyn FnMut(Event) + Send);

/// A migration under way.
struct Migration<'a> {
    source: &'a Repository,
    target: &'a Repository,
    options: &'a Options,
    watcher: Watcher<'a>,
    collections: Vec<Collection>,
    reports: Vec<CollectionReport>,
    /// Of each collection of the source as it was when it was validated.
    raw: Vec<Sum>,
    /// Over the source since then, where there can be one.
    watch: Option<Watch>,
    /// Of each entity of the source as it was then, where there is a place for it.
    seen: Option<Seen>,
    held: Held,
    left_out: LeftOut,
    place: Option<Place>,
    state: State,
    /// The state is an earlier run's.
    resumed: bool,
    checkpoint_due: Instant,
    steps: Vec<(&'static str, Duration)>,
}

/// Migrates `source` into `target`.
pub async fn migrate(
    source: &Repository,
    target: &Repository,
    options: &Options,
    watcher: Watcher<'_>,
) -> Result<Report> {
    let started = Instant::now();
    if options.cleanup_source && !options.verify {
        return Err(Error::usage("the source is cleaned up only after a verification")
            .hint("leave out --no-verify (or set `validate_after_migration`), or leave out --cleanup-source"));
    }
    let collections = choose_collections(source, target, options).await?;
    // Where nothing is written, there is nothing to go on with.
    let state_options = options.state.as_ref().filter(|_| !options.dry_run);
    let mut state = State { started: crate::clock::now(), ..State::default() };
    let (mut place, mut resumed) = (None, false);
    if let Some(state_options) = state_options {
        let opened = Place::open(&state_options.folder, source.name(), target.name())?;
        state.fingerprint = fingerprint(source, target, options, state_options, &collections);
        match opened.begin(state_options.start, &state.fingerprint)? {
            Some(earlier) => {
                let moved: u64 = earlier.collections.iter().map(|it| it.written + it.unchanged + it.skipped).sum();
                let read: u64 = earlier.collections.iter().map(|it| it.read).sum();
                let message = format!("going on: {moved} of {read} entities were moved since {}", earlier.started);
                watcher(Event::Told { message });
                (state, resumed) = (earlier, true);
            }
            None if state_options.start == Start::Resume => {
                watcher(Event::Told { message: "there is nothing to resume: starting afresh".into() });
            }
            None => {}
        }
        place = Some(opened);
    }
    if !resumed {
        state.collections = collections
            .iter()
            .map(|it| Progress {
                name: it.name.clone(),
                positions: transfer::from_the_beginning(options.workers),
                ..Progress::default()
            })
            .collect();
    }
    let mut migration = Migration {
        source,
        target,
        options,
        watcher,
        reports: collections
            .iter()
            .map(|it| CollectionReport { name: it.name.clone(), ..CollectionReport::default() })
            .collect(),
        raw: vec![Sum::default(); collections.len()],
        watch: None,
        seen: None,
        held: Held::default(),
        left_out: LeftOut::default(),
        place,
        state,
        resumed,
        collections,
        checkpoint_due: started,
        steps: Vec::new(),
    };
    let mut report = Report {
        from: StoreReport::of(source),
        to: StoreReport::of(target),
        started: migration.state.started.clone(),
        resumed,
        dry_run: options.dry_run,
        prepared: Vec::new(),
        backup: None,
        quarantine: None,
        collections: Vec::new(),
        verified: false,
        steps: Vec::new(),
        took: Duration::ZERO,
        path: None,
    };
    let ended = migration.run(&mut report).await;
    let is_worth_keeping =
        ended.is_ok() || migration.reports.iter().any(|it| it.differences.is_some() || it.source_changes.is_some());
    report.backup = migration.state.backup.clone();
    report.quarantine = migration.state.quarantine.clone();
    report.collections = migration.reports;
    report.steps = migration.steps;
    report.took = started.elapsed();
    if let Some(place) = &migration.place
        && is_worth_keeping
    {
        let path = place.path_of("report", &report.started, "json");
        report.path = Some(path.clone());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        place.replace(&name, format!("{:#}\n", report.value()).as_bytes())?;
        if ended.is_ok() {
            place.remove_state()?;
        }
    }
    ended.map(|()| report)
}

/// Writes all that a store holds into one JSON document with a manifest beside it: the file `location` where that ends in
/// `.json`, and otherwise one in that folder. No other backup is replaced. The document opens as a `json` store.
pub async fn back_up(store: &Repository, location: &Path) -> Result<BackedUp> {
    let collections = by_reference(store.collections().to_vec());
    let names: Vec<String> = collections.into_iter().map(|collection| collection.name).collect();
    backup::back_up(store, &names, location, |_, _| Ok(())).await
}

/// All that must be the same for a migration to be gone on with. How large batches are, how many go side by side and how
/// fast may change.
fn fingerprint(
    source: &Repository,
    target: &Repository,
    options: &Options,
    state: &StateOptions,
    collections: &[Collection],
) -> BTreeMap<String, String> {
    let names: Vec<&str> = collections.iter().map(|it| it.name.as_str()).collect();
    let definitions = crate::plugin::hex(&Sha256::digest(format!("{collections:?}")));
    let entry = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    BTreeMap::from([
        entry("the place of the source", &state.source),
        entry("the place of the target", &state.target),
        entry("the sha256 of the source's plugin", &source.plugin().sha256),
        entry("the sha256 of the target's plugin", &target.plugin().sha256),
        entry("the collections", &names.join(", ")),
        entry("the sha256 of their definitions", &definitions),
        entry("--existing", &format!("{:?}", options.existing).to_lowercase()),
        entry("--on-invalid", &format!("{:?}", options.on_invalid).to_lowercase()),
    ])
}

/// The collections to move, referenced ones before those that refer to them; refuses what would be left behind unsaid.
async fn choose_collections(source: &Repository, target: &Repository, options: &Options) -> Result<Vec<Collection>> {
    for name in options.collections.iter().chain(&options.excluded) {
        // An excluded collection need not be configured: that is why it is excluded.
        if options.collections.contains(name) {
            source.collection(name)?;
            target.collection(name)?;
        }
    }
    if options.collections.is_empty() {
        let configured = |name: &String| source.collections().iter().any(|collection| collection.name == *name);
        let unknown: Vec<String> = source
            .stored_collections()
            .await?
            .into_iter()
            .filter(|name| !configured(name) && !options.excluded.contains(name))
            .map(|name| format!("`{}`", one_line(&name)))
            .collect();
        if !unknown.is_empty() {
            return Err(Error::config(format!(
                "store `{}` holds collections that are not configured: {}",
                source.name(),
                unknown.join(", ")
            ))
            .hint("declare each in `storage.collections`, or leave it behind with --exclude NAME"));
        }
    }
    let chosen = |collection: &&Collection| {
        (options.collections.is_empty() || options.collections.contains(&collection.name))
            && !options.excluded.contains(&collection.name)
    };
    Ok(by_reference(source.collections().iter().filter(chosen).cloned().collect()))
}

/// Referenced collections first; a cycle keeps the order of the configuration.
pub(crate) fn by_reference(mut waiting: Vec<Collection>) -> Vec<Collection> {
    let mut ordered: Vec<Collection> = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let free = waiting.iter().position(|collection| {
            collection.references.iter().all(|reference| {
                reference.collection == collection.name
                    || waiting.iter().all(|other| other.name != reference.collection)
            })
        });
        ordered.push(waiting.remove(free.unwrap_or(0)));
    }
    ordered
}

impl Migration<'_> {
    /// All steps.
    async fn run(&mut self, report: &mut Report) -> Result<()> {
        if self.state.is_cleaning {
            // What was moved was proved equal, and the source is no longer what it was.
            return self.go_on_cleaning(report).await;
        }
        report.prepared = self.validate().await?;
        if self.options.dry_run {
            return Ok(());
        }
        self.begin_state()?;
        if let Some(location) = &self.options.backup_location
            && self.state.backup.as_ref().is_none_or(|path| !path.exists())
        {
            self.state.backup = Some(self.back_up(location).await?);
            self.save()?;
        }
        if let Err(error) = self.move_entities().await {
            return Err(self.after_writing(error));
        }
        if self.options.verify {
            self.verify().await?;
            report.verified = true;
        }
        if self.options.cleanup_source {
            self.clean_up().await?;
        }
        Ok(())
    }

    /// Notes what the source is before anything is written, or holds it against what an earlier run noted.
    fn begin_state(&mut self) -> Result<()> {
        let mut changed = Vec::new();
        for (progress, report) in self.state.collections.iter_mut().zip(&self.reports) {
            let digest = report.source_digest.to_string();
            if self.resumed && (progress.read, &progress.digest) != (report.read, &digest) {
                changed.push(format!(
                    "{}: {} entities, digest {}, and now {}, digest {digest}",
                    report.name, progress.read, progress.digest, report.read
                ));
            }
            (progress.read, progress.digest) = (report.read, digest);
        }
        if changed.is_empty() {
            return self.save();
        }
        let error = Error::new(Kind::Differs, "the migration cannot go on: the source changed since it was begun");
        let error = changed.into_iter().fold(error, Error::caused_by);
        Err(error.hint(
            "stop what writes to the source, and migrate again with --restart; --existing overwrite takes along what was \
             changed after it had been moved",
        ))
    }

    async fn go_on_cleaning(&mut self, report: &mut Report) -> Result<()> {
        for (report, progress) in self.reports.iter_mut().zip(&self.state.collections) {
            report.read = progress.read;
            report.quarantined = progress.quarantined;
            (report.written, report.unchanged, report.skipped) =
                (progress.written, progress.unchanged, progress.skipped);
        }
        if let Some(path) = &self.state.quarantine {
            self.left_out = quarantine::read(path)?;
        }
        report.verified = true;
        // Not asked for this time, it is left as it is.
        if self.options.cleanup_source { self.clean_up().await } else { Ok(()) }
    }

    async fn back_up(&mut self, location: &Path) -> Result<PathBuf> {
        let since = Instant::now();
        self.tell(Event::Started { step: Step::BackUp, entities: Some(self.entities()) });
        let names: Vec<String> = self.collections.iter().map(|collection| collection.name.clone()).collect();
        let mut entered = None;
        let backup = backup::back_up(self.source, &names, location, |name, count| {
            let position = names.iter().position(|it| it == name);
            if position != entered {
                entered = position;
                position.into_iter().for_each(|position| self.enter(Step::BackUp, position));
            }
            position.into_iter().for_each(|position| self.advance(Step::BackUp, position, count));
            self.check_stop()
        });
        let backup = backup.await?;
        for (position, (_, written)) in backup.counts.iter().enumerate() {
            if *written != self.reports[position].read {
                return Err(self.source_changed(position, *written).await);
            }
        }
        self.ended(Step::BackUp, since, format!("{}", backup.path.display()));
        Ok(backup.path)
    }

    /// The error where a collection of the source has not as many entities as when it was validated.
    async fn source_changed(&mut self, position: usize, now: u64) -> Error {
        let CollectionReport { name, read, .. } = &self.reports[position];
        let error = Error::new(Kind::Differs, format!("{name}: the source changed while it was read"))
            .caused_by(format!("{read} entities at first, {now} now"))
            .hint("stop what writes to the source, and run the same command again, with --restart");
        self.name_changes(position, error).await
    }

    /// Says which entities of a collection of the source are not as they were when they were validated.
    async fn name_changes(&mut self, position: usize, error: Error) -> Error {
        let Some(seen) = &mut self.seen else { return error };
        let name = &self.collections[position].name;
        match seen.changes(position, self.source, name).await {
            Ok(changes) => {
                let error = changes.lines(name).into_iter().fold(error, Error::caused_by);
                self.reports[position].source_changes = Some(changes);
                error
            }
            Err(failed) => error.caused_by(format!("what changed cannot be told: {failed}")),
        }
    }

    fn after_writing(&self, error: Error) -> Error {
        if error.hint.is_some() {
            return error;
        }
        let again = if self.place.is_some() { "the same command with --resume" } else { "the same command again" };
        let source =
            format!("the source is as it was, and what had arrived stays in the target: {again} goes on from there");
        match &self.state.backup {
            Some(path) => error.hint(format!("{source}; a backup of the source is {}", path.display())),
            None => error.hint(source),
        }
    }

    fn tell(&mut self, event: Event) {
        (self.watcher)(event);
    }

    /// Tells that a step comes to a collection.
    fn enter(&mut self, step: Step, position: usize) {
        let report = &self.reports[position];
        let entities = (step != Step::Validate).then_some(report.read);
        let collection = report.name.clone();
        self.tell(Event::Entered { step, collection, entities });
    }

    /// Tells that more entities of a collection are done.
    fn advance(&mut self, step: Step, position: usize, entities: u64) {
        let collection = self.reports[position].name.clone();
        self.tell(Event::Advanced { step, collection, entities });
    }

    fn ended(&mut self, step: Step, since: Instant, summary: String) {
        let took = since.elapsed();
        self.steps.push((step.name(), took));
        self.tell(Event::Ended { step, summary, took });
    }

    fn entities(&self) -> u64 {
        self.reports.iter().map(|report| report.read).sum()
    }

    /// Makes the state durable, where there is one.
    fn save(&self) -> Result<()> {
        match &self.place {
            Some(place) => place.write(&self.state),
            None => Ok(()),
        }
    }

    /// An error once it was asked to stop.
    fn check_stop(&self) -> Result<()> {
        if !self.options.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Before the first batch there is no state.
        let hint =
            match self.state.collections.iter().any(|progress| !progress.digest.is_empty()) && self.place.is_some() {
                true => "the state is saved: the same command with --resume goes on from there",
                false => "nothing was written: the same command begins again",
            };
        Err(Error::new(Kind::Interrupted, "the migration was interrupted").hint(hint))
    }
}

/// "1 entity", "2 entities".
pub(crate) fn entities(count: u64) -> String {
    if count == 1 { "1 entity".into() } else { format!("{count} entities") }
}
