//! Moves every entity from one repository to another: checked before anything is written, backed up, moved batch by
//! batch, and proved equal afterwards. It knows repositories and no strategy.
//!
//! The steps are the functions below in their order. Each reads the source afresh, page by page, so that memory does not
//! grow with it; only the ids of referenced collections are kept, as hashes.

mod backup;
mod digest;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_model::{Collection, Entity, ErrorKind, Existing, Expectation, Loaded, Removal, Violation, Write, json};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use crate::error::{Error, Kind, Result};
use crate::plugin::instance::one_line;
use crate::repository::{PAGE_BYTES_MAX, Repository};
pub use backup::BackedUp;
pub use digest::Digest;

/// Pages that are read ahead of the writing: one under way and one waiting keep both sides busy.
const PAGES_AHEAD: usize = 2;
/// What to do about an entity that somebody wrote meanwhile.
const CHANGED_HINT: &str = "it was changed after it was verified: migrate again to take the change along";
/// Different rules that a report holds; a plugin could make up a new one for each entity.
const RULES_MAX: usize = 100;

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
    /// Only these; empty for all that are configured.
    pub collections: Vec<String>,
    /// Not these.
    pub excluded: Vec<String>,
    /// Remove what was verified from the source.
    pub cleanup_source: bool,
    /// Readers of the source, and writers of batches, that run side by side.
    pub workers: u32,
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
    /// More entities of a collection are done.
    Advanced {
        /// Which.
        step: Step,
        /// Its name.
        collection: String,
        /// Since the last such event.
        entities: u64,
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

/// A rule that entities break.
#[derive(Debug, Clone)]
pub struct BrokenRule {
    /// The rule.
    pub rule: String,
    /// How many entities break it.
    pub entities: u64,
    /// One of them.
    pub example: String,
}

/// What became of one collection.
#[derive(Debug, Clone, Default)]
pub struct CollectionReport {
    /// Its name.
    pub name: String,
    /// Entities of the source.
    pub read: u64,
    /// New in the target, or replaced there.
    pub written: u64,
    /// There already, equal.
    pub unchanged: u64,
    /// There already with other content, and left.
    pub skipped: u64,
    /// Of the source's content.
    pub source_digest: Digest,
    /// Of what the target answers for the same entities, once verified.
    pub target_digest: Option<Digest>,
    /// Removed from the source.
    pub removed: u64,
}

/// What a migration did.
#[derive(Debug, Clone)]
pub struct Report {
    /// Nothing was written.
    pub dry_run: bool,
    /// What the target made, or would make: tables, indexes, files.
    pub prepared: Vec<String>,
    /// Where the backup is.
    pub backup: Option<PathBuf>,
    /// In the order in which they were moved.
    pub collections: Vec<CollectionReport>,
    /// The target was read back and is equal.
    pub verified: bool,
    /// All of it.
    pub took: Duration,
}

/// A migration under way.
struct Migration<'a> {
    source: &'a Repository,
    target: &'a Repository,
    options: &'a Options,
    watcher: Watcher<'a>,
    collections: Vec<Collection>,
    reports: Vec<CollectionReport>,
    /// Whether the target held anything of each collection before.
    occupied: Vec<bool>,
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
    let mut migration = Migration {
        source,
        target,
        options,
        watcher,
        reports: collections
            .iter()
            .map(|it| CollectionReport { name: it.name.clone(), ..CollectionReport::default() })
            .collect(),
        occupied: vec![false; collections.len()],
        collections,
    };
    let mut report = Report {
        dry_run: options.dry_run,
        prepared: migration.validate().await?,
        backup: None,
        collections: Vec::new(),
        verified: false,
        took: Duration::ZERO,
    };
    if !options.dry_run {
        if let Some(location) = &options.backup_location {
            report.backup = Some(migration.back_up(location).await?);
        }
        migration.move_entities().await.map_err(|error| after_writing(error, report.backup.as_deref()))?;
        if options.verify {
            migration.verify().await?;
            report.verified = true;
        }
        if options.cleanup_source {
            migration.clean_up().await?;
        }
    }
    report.collections = migration.reports;
    report.took = started.elapsed();
    Ok(report)
}

/// Writes all that a store holds into one JSON document with a manifest beside it: the file `location` where that ends in
/// `.json`, and otherwise one in that folder. No other backup is replaced. The document opens as a `json` store.
pub async fn back_up(store: &Repository, location: &Path) -> Result<BackedUp> {
    let collections = by_reference(store.collections().to_vec());
    let names: Vec<String> = collections.into_iter().map(|collection| collection.name).collect();
    backup::back_up(store, &names, location, |_, _| {}).await
}

/// Compares two stores without moving anything; an error names the first collection that differs.
pub async fn verify(
    source: &Repository,
    target: &Repository,
    collections: &[String],
) -> Result<Vec<(String, Digest, Digest)>> {
    let mut compared = Vec::new();
    for name in collections {
        compared.push((name.clone(), digest::of(source, name, |_| {}).await?, digest::of(target, name, |_| {}).await?));
    }
    Ok(compared)
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

fn after_writing(error: Error, backup: Option<&Path>) -> Error {
    if error.hint.is_some() {
        return error;
    }
    let source = "the source is as it was, and what had arrived stays in the target: run the same command again, and it \
                  goes on from there";
    match backup {
        Some(path) => error.hint(format!("{source}; a backup of the source is {}", path.display())),
        None => error.hint(source),
    }
}

impl Migration<'_> {
    fn tell(&mut self, event: Event) {
        (self.watcher)(event);
    }

    fn entities(&self) -> u64 {
        self.reports.iter().map(|report| report.read).sum()
    }

    fn ended(&mut self, step: Step, since: Instant, summary: String) {
        self.tell(Event::Ended { step, summary, took: since.elapsed() });
    }

    /// Both ends, the target's schema, and every entity of the source against every rule of the target.
    async fn validate(&mut self) -> Result<Vec<String>> {
        let since = Instant::now();
        self.tell(Event::Started { step: Step::Validate, entities: None });
        let unread = check_end(self.source, "readable").await?;
        if self.options.cleanup_source && !unread.is_empty() {
            let message = format!(
                "store `{}` holds more than its entities, and a migration leaves it behind",
                self.source.name()
            );
            let error = unread.into_iter().fold(Error::new(Kind::Differs, message), Error::caused_by);
            return Err(error.hint("declare it as a field in `storage.collections`, or leave out --cleanup-source"));
        }
        for message in unread {
            self.tell(Event::Warned { message: format!("{message}; it is not moved") });
        }
        check_end(self.target, "writable").await?;
        let prepared = self.target.prepare(true, false).await?;
        let mut broken = BrokenRules::default();
        let mut ids = ReferencedIds::new(&self.collections, self.target.opened().enforces_references);
        for name in ids.outside(&self.collections) {
            ids.add_all_of(self.target, &name).await?;
            ids.resolve(&name);
        }
        for position in 0..self.collections.len() {
            self.validate_collection(position, &mut broken, &mut ids).await?;
        }
        if broken.rules.is_empty() {
            let collections = match self.collections.len() {
                1 => "1 collection".into(),
                count => format!("{count} collections"),
            };
            let summary = format!("{} in {collections}", entities(self.entities()));
            self.ended(Step::Validate, since, summary);
            return Ok(prepared);
        }
        Err(broken.into_error(self.target.name()))
    }

    async fn validate_collection(
        &mut self,
        position: usize,
        broken: &mut BrokenRules,
        ids: &mut ReferencedIds,
    ) -> Result<()> {
        let collection = self.collections[position].clone();
        let occupied = self.holds_anything(&collection.name).await?;
        self.occupied[position] = occupied;
        if ids.is_wanted(&collection.name) && occupied {
            ids.add_all_of(self.target, &collection.name).await?;
        }
        let mut pages = read_ahead(self.source, &collection.name, self.options.workers);
        // Pages are looked at side by side, and judged in the order in which they were read.
        let mut looking = VecDeque::new();
        loop {
            if looking.len() < side_by_side(self.options.workers) as usize
                && let Some(page) = pages.recv().await
            {
                let page = page?;
                let for_target = self.target.opened().has_rules.then(|| page.clone());
                looking.push_back((for_target, look_at(self.source, self.target, &collection, page)));
                continue;
            }
            let Some((for_target, looked)) = looking.pop_front() else { break };
            let violations = match for_target {
                Some(page) => self.target.validate(&collection.name, page).await,
                None => Ok(Vec::new()),
            };
            let looked = looked.await.map_err(|error| broke_off("reading", error));
            let Looked { entities, digest, violations: seen } = looked?;
            let count = entities.len() as u64;
            self.reports[position].read += count;
            self.reports[position].source_digest.merge(&digest);
            for violation in violations?.into_iter().chain(seen) {
                let (id, found) = &entities[violation.entity as usize];
                // What is no entity at all breaks that rule, and no other.
                if found.is_ok() {
                    broken.add(violation.rule, Remedy::RelaxTarget, &collection.name, id, || json::quoted(id));
                }
            }
            let mut sound = Vec::with_capacity(entities.len());
            for (id, found) in entities {
                match found {
                    Ok(fields) => {
                        ids.look(&collection, &id, &fields, broken);
                        sound.push((id, fields));
                    }
                    Err(rule) => broken.add(rule, Remedy::CorrectSource, &collection.name, &id, || json::quoted(&id)),
                }
            }
            if occupied && self.options.existing == Existing::Fail {
                self.compare_existing(&collection, &sound, broken).await?;
            }
            self.tell(Event::Advanced { step: Step::Validate, collection: collection.name.clone(), entities: count });
        }
        ids.resolve(&collection.name);
        Ok(())
    }

    /// Whether the target has an entity of the collection.
    async fn holds_anything(&self, collection: &str) -> Result<bool> {
        let needs_prepare = self.target.plugin().description.features.needs_prepare;
        if needs_prepare && !self.target.stored_collections().await?.iter().any(|stored| stored == collection) {
            return Ok(false);
        }
        let mut cursor = None;
        loop {
            let batch = self.target.scan(collection, 0, 1, cursor.as_deref(), 1).await?;
            if !batch.entities.is_empty() || batch.next.is_none() {
                return Ok(!batch.entities.is_empty());
            }
            cursor = batch.next;
        }
    }

    async fn compare_existing(
        &self,
        collection: &Collection,
        entities: &[(String, Map<String, Value>)],
        broken: &mut BrokenRules,
    ) -> Result<()> {
        let names: Vec<String> = entities.iter().map(|(id, _)| id.clone()).collect();
        let stored = self.target.get(&collection.name, &names).await?;
        for ((id, fields), stored) in entities.iter().zip(stored) {
            let Some(stored) = stored else { continue };
            if !json::equal_objects(fields, &json::parse_object(&stored.body)?) {
                let rule = format!("{}: the target holds the entity with other content", collection.name);
                broken.add(rule, Remedy::ChooseExisting, &collection.name, id, || json::quoted(id));
            }
        }
        Ok(())
    }

    async fn back_up(&mut self, location: &Path) -> Result<PathBuf> {
        let since = Instant::now();
        self.tell(Event::Started { step: Step::BackUp, entities: Some(self.entities()) });
        let names: Vec<String> = self.collections.iter().map(|collection| collection.name.clone()).collect();
        let watcher = &mut self.watcher;
        let backup = backup::back_up(self.source, &names, location, |name, entities| {
            watcher(Event::Advanced { step: Step::BackUp, collection: name.to_owned(), entities });
        });
        let backup = backup.await?;
        for (report, (name, written)) in self.reports.iter().zip(&backup.counts) {
            if *written != report.read {
                return Err(source_changed(name, report.read, *written));
            }
        }
        self.ended(Step::BackUp, since, format!("{}", backup.path.display()));
        Ok(backup.path)
    }

    async fn move_entities(&mut self) -> Result<()> {
        let since = Instant::now();
        self.tell(Event::Started { step: Step::Move, entities: Some(self.entities()) });
        self.target.prepare(false, false).await?;
        for position in 0..self.collections.len() {
            let name = self.collections[position].name.clone();
            let mut pages = read_ahead(self.source, &name, self.options.workers);
            let mut loads = JoinSet::new();
            let mut moved = 0;
            while let Some(page) = pages.recv().await {
                let mut page = page?.into_iter().peekable();
                while page.peek().is_some() {
                    let batch: Vec<Entity> = page.by_ref().take(self.options.batch_size.max(1) as usize).collect();
                    moved += batch.len() as u64;
                    if loads.len() >= side_by_side(self.options.workers) as usize {
                        self.account(position, loads.join_next().await)?;
                    }
                    loads.spawn(load(self.target.clone(), name.clone(), batch, self.options.existing));
                }
            }
            while !loads.is_empty() {
                self.account(position, loads.join_next().await)?;
            }
            if moved != self.reports[position].read {
                return Err(source_changed(&name, self.reports[position].read, moved));
            }
            self.target.flush().await?;
        }
        let (written, unchanged, skipped) = self.reports.iter().fold((0, 0, 0), |(written, unchanged, skipped), it| {
            (written + it.written, unchanged + it.unchanged, skipped + it.skipped)
        });
        self.ended(Step::Move, since, format!("{written} written, {unchanged} unchanged, {skipped} skipped"));
        Ok(())
    }

    /// Counts what became of a batch.
    fn account(
        &mut self,
        position: usize,
        ended: Option<std::result::Result<Result<(u64, Loaded)>, tokio::task::JoinError>>,
    ) -> Result<()> {
        let Some(ended) = ended else { return Ok(()) };
        let (count, loaded) = ended.map_err(|error| broke_off("writing", error))??;
        let report = &mut self.reports[position];
        report.written += loaded.written;
        report.unchanged += loaded.unchanged;
        report.skipped += loaded.skipped;
        let collection = self.collections[position].name.clone();
        self.tell(Event::Advanced { step: Step::Move, collection, entities: count });
        Ok(())
    }

    /// Reads the target back. Where it was empty before, it must hold exactly the source; else the entities of the
    /// source must be there, and those alone are compared.
    async fn verify(&mut self) -> Result<()> {
        let since = Instant::now();
        self.tell(Event::Started { step: Step::Verify, entities: Some(self.entities()) });
        for position in 0..self.collections.len() {
            let name = self.collections[position].name.clone();
            let expected = self.reports[position].source_digest.clone();
            let found = if self.occupied[position] {
                self.digest_of_moved(position).await?
            } else {
                let watcher = &mut self.watcher;
                digest::of(self.target, &name, |entities| {
                    watcher(Event::Advanced { step: Step::Verify, collection: name.clone(), entities });
                })
                .await?
            };
            self.reports[position].target_digest = Some(found.clone());
            let skipped = self.reports[position].skipped;
            // What was skipped differs by intention, and is not in `found`.
            if found.count() + skipped != expected.count() || (skipped == 0 && found != expected) {
                return Err(Error::new(Kind::Differs, format!("{name}: the target differs from the source"))
                    .caused_by(format!("source: {} entities, digest {}", expected.count(), expected))
                    .caused_by(format!("target: {} entities, digest {}", found.count(), found))
                    .hint("something else wrote to one of the stores, or the target's plugin is faulty; the source was not changed"));
            }
        }
        let skipped: u64 = self.reports.iter().map(|report| report.skipped).sum();
        let equal = format!("{} equal", entities(self.entities() - skipped));
        let summary = if skipped == 0 { equal } else { format!("{equal}, {skipped} skipped") };
        self.ended(Step::Verify, since, summary);
        Ok(())
    }

    /// The digest of what the target answers for the source's ids, without those it was to keep.
    async fn digest_of_moved(&mut self, position: usize) -> Result<Digest> {
        let collection = self.collections[position].clone();
        let mut digest = Digest::default();
        let mut pages = read_ahead(self.source, &collection.name, 1);
        while let Some(page) = pages.recv().await {
            let page = page?;
            let names: Vec<String> = page.iter().map(|entity| entity.id.clone()).collect();
            let stored = self.target.get(&collection.name, &names).await?;
            let count = page.len() as u64;
            for (entity, stored) in page.into_iter().zip(stored) {
                let Some(stored) = stored else { continue };
                let found = json::parse_object(&stored.body)?;
                let skipped = self.options.existing == Existing::Skip
                    && !json::equal_objects(&self.source.checked(&collection, entity)?.1, &found);
                if !skipped {
                    digest.add(&stored.id, &found);
                }
            }
            self.tell(Event::Advanced { step: Step::Verify, collection: collection.name.clone(), entities: count });
        }
        Ok(digest)
    }

    /// Removes from the source what the target holds equal now, each by its version, referring collections first. What
    /// the target was to keep of its own stays in the source too: it is nowhere else.
    async fn clean_up(&mut self) -> Result<()> {
        let since = Instant::now();
        self.tell(Event::Started { step: Step::CleanUp, entities: Some(self.entities()) });
        for position in (0..self.collections.len()).rev() {
            let collection = self.collections[position].clone();
            let mut pages = read_ahead(self.source, &collection.name, 1);
            while let Some(page) = pages.recv().await {
                let page = page?;
                let count = page.len() as u64;
                let writes = self.removals(&collection, page).await?;
                for result in self.source.apply(writes, false).await? {
                    result.map_err(|error| match error.kind {
                        ErrorKind::VersionConflict | ErrorKind::NotFound => Error::from(error).hint(CHANGED_HINT),
                        _ => error.into(),
                    })?;
                    self.reports[position].removed += 1;
                }
                let collection = collection.name.clone();
                self.tell(Event::Advanced { step: Step::CleanUp, collection, entities: count });
            }
        }
        let removed: u64 = self.reports.iter().map(|report| report.removed).sum();
        self.ended(Step::CleanUp, since, format!("{} removed from the source", entities(removed)));
        Ok(())
    }

    async fn removals(&self, collection: &Collection, page: Vec<Entity>) -> Result<Vec<Write>> {
        let names: Vec<String> = page.iter().map(|entity| entity.id.clone()).collect();
        let stored = self.target.get(&collection.name, &names).await?;
        let mut removals = Vec::with_capacity(page.len());
        for (entity, stored) in page.into_iter().zip(stored) {
            let (entity, fields) = self.source.checked(collection, entity)?;
            let is_there = match stored {
                Some(stored) => json::equal_objects(&fields, &json::parse_object(&stored.body)?),
                None => false,
            };
            if is_there {
                let expect = Expectation::Version(entity.version);
                removals.push(Write::Remove(Removal { collection: collection.name.clone(), id: entity.id, expect }));
            } else if self.options.existing != Existing::Skip {
                let message =
                    format!("{} `{}` is not in the target as it is here", collection.name, one_line(&entity.id));
                return Err(Error::new(Kind::Differs, message).hint(CHANGED_HINT));
            }
        }
        Ok(removals)
    }
}

/// The fields of an entity, or the rule that it breaks by being none.
type Found = std::result::Result<Map<String, Value>, String>;

/// A page of the source as the host sees it.
struct Looked {
    entities: Vec<(String, Found)>,
    digest: Digest,
    /// Rules that the target told the host of.
    violations: Vec<Violation>,
}

/// Parses, checks and digests a page on another thread.
fn look_at(
    source: &Repository,
    target: &Repository,
    collection: &Collection,
    page: Vec<Entity>,
) -> tokio::task::JoinHandle<Looked> {
    let (source, target, collection) = (source.clone(), target.clone(), collection.clone());
    tokio::task::spawn_blocking(move || {
        let mut looked =
            Looked { entities: Vec::with_capacity(page.len()), digest: Digest::default(), violations: Vec::new() };
        let enforces_fields = target.opened().enforces_fields;
        let bytes_max = target.plugin().description.max_entity_bytes;
        for (position, entity) in (0..).zip(page) {
            let id = entity.id.clone();
            if entity.body.len() as u64 > bytes_max {
                let rule = format!("{}: an entity has at most {bytes_max} bytes", collection.name);
                looked.violations.push(Violation { entity: position, rule });
            }
            let found = match source.checked(&collection, entity) {
                Ok((_, fields)) => {
                    looked.digest.add(&id, &fields);
                    if enforces_fields {
                        let rules = larder_model::rules::violations(&collection, &fields);
                        looked.violations.extend(rules.into_iter().map(|rule| Violation { entity: position, rule }));
                    }
                    Ok(fields)
                }
                // The reason without the entity's name is the rule.
                Err(error) => Err(match error.causes.first() {
                    Some(cause) => format!("{}: not a valid entity: {}", collection.name, without_position(cause)),
                    None => {
                        format!("{}: an entity's `{}` is the name it is stored under", collection.name, collection.key)
                    }
                }),
            };
            looked.entities.push((id, found));
        }
        looked
    })
}

/// A task of ours panicked.
fn broke_off(what: &str, error: tokio::task::JoinError) -> Error {
    Error::contract(ErrorKind::Internal, format!("{what} a page broke off")).caused_by(error)
}

fn source_changed(collection: &str, before: u64, now: u64) -> Error {
    Error::new(Kind::Differs, format!("{collection}: the source changed while it was read"))
        .caused_by(format!("{before} entities at first, {now} now"))
        .hint("stop what writes to the source, and run the same command again")
}

/// A parser's message without its line and column, which differ from entity to entity.
fn without_position(message: &str) -> &str {
    message.split(" at line ").next().unwrap_or(message)
}

/// A store that says it cannot be used is not used.
/// The answer is what it holds beside its entities.
async fn check_end(repository: &Repository, needed: &str) -> Result<Vec<String>> {
    let findings = repository.check().await?;
    for property in ["reachable", needed] {
        if findings.get(property) == Some(&Value::Bool(false)) {
            let first = findings
                .get("findings")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .find(|finding| finding.get("level").and_then(Value::as_str) == Some("error"))
                .and_then(|finding| finding.get("message").and_then(Value::as_str));
            let error =
                Error::contract(ErrorKind::Unavailable, format!("store `{}` is not {property}", repository.name()))
                    .hint(format!("`larder stores check --store {}` says more", repository.name()));
            return Err(match first {
                Some(message) => error.caused_by(one_line(message)),
                None => error,
            });
        }
    }
    let unread = findings.get("unread").and_then(Value::as_array).into_iter().flatten();
    Ok(unread.filter_map(Value::as_str).map(one_line).collect())
}

/// Writes a batch, all of which must be taken.
async fn load(target: Repository, collection: String, batch: Vec<Entity>, existing: Existing) -> Result<(u64, Loaded)> {
    let count = batch.len() as u64;
    let ids: Vec<String> = batch.iter().map(|entity| entity.id.clone()).collect();
    let loaded = target.load(&collection, batch, existing).await?;
    match loaded.refused.first() {
        None => Ok((count, loaded)),
        Some((refused, error)) => {
            let id = one_line(&ids[*refused as usize]);
            Err(Error::from(error.clone()).context(format!("store `{}` refused {collection} `{id}`", target.name())))
        }
    }
}

/// More workers than cores only take turns.
fn side_by_side(workers: u32) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    workers.clamp(1, u32::try_from(cores).unwrap_or(u32::MAX))
}

/// Reads a collection in the background, so that the next page is there when this one is done with.
pub(crate) fn read_ahead(
    repository: &Repository,
    collection: &str,
    workers: u32,
) -> tokio::sync::mpsc::Receiver<Result<Vec<Entity>>> {
    let segments = side_by_side(workers);
    let (sender, receiver) = tokio::sync::mpsc::channel(PAGES_AHEAD);
    for segment in 0..segments {
        let (repository, collection, sender) = (repository.clone(), collection.to_owned(), sender.clone());
        let last_word = sender.clone();
        let reading = tokio::spawn(async move {
            let mut cursor = None;
            loop {
                let page = repository.scan(&collection, segment, segments, cursor.as_deref(), PAGE_BYTES_MAX).await;
                let (page, ended) = match page {
                    Ok(batch) => {
                        cursor = batch.next;
                        (Ok(batch.entities), cursor.is_none())
                    }
                    Err(error) => (Err(error), true),
                };
                if sender.send(page).await.is_err() || ended {
                    return;
                }
            }
        });
        // A reader that broke off must not look like one that came to the end.
        tokio::spawn(async move {
            if let Err(error) = reading.await {
                let _ = last_word.send(Err(broke_off("reading", error))).await;
            }
        });
    }
    receiver
}

/// "1 entity", "2 entities".
pub(crate) fn entities(count: u64) -> String {
    if count == 1 { "1 entity".into() } else { format!("{count} entities") }
}

/// What can be done about a rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Remedy {
    /// It is no entity, wherever it is to go.
    CorrectSource,
    /// The target has a rule that the source has not.
    RelaxTarget,
    /// The target has another entity of that name.
    ChooseExisting,
}

impl Remedy {
    fn hint(self) -> &'static str {
        match self {
            Remedy::CorrectSource => "correct the entities in the source",
            Remedy::RelaxTarget => {
                "correct the entities in the source, or let the target be less strict: for a SQL store, \
                 `\"constraints\": \"relaxed\"` keeps required fields, lengths and references open"
            }
            Remedy::ChooseExisting => {
                "say with --existing skip or --existing overwrite whether the target's content stays or is replaced"
            }
        }
    }
}

#[derive(Default)]
struct BrokenRules {
    rules: BTreeMap<String, (u64, String)>,
    remedies: BTreeSet<Remedy>,
    entities: HashSet<[u8; 16]>,
    more: u64,
}

impl BrokenRules {
    /// `example` is what to look at where it is the first to break the rule: the entity, and what is wrong with it.
    fn add(&mut self, rule: String, remedy: Remedy, collection: &str, id: &str, example: impl FnOnce() -> String) {
        self.entities.insert(hash(&[collection, id]));
        self.remedies.insert(remedy);
        if let Some((count, _)) = self.rules.get_mut(&rule) {
            *count += 1;
        } else if self.rules.len() < RULES_MAX {
            self.rules.insert(rule, (1, example()));
        } else {
            self.more += 1;
        }
    }

    fn into_error(mut self, target: &str) -> Error {
        let count = self.entities.len() as u64;
        let verb = if count == 1 { "breaks" } else { "break" };
        let mut error = Error::new(
            Kind::Differs,
            format!("{} {verb} a rule of store `{target}`; nothing was written", entities(count)),
        );
        for (rule, (count, example)) in self.rules {
            error = error.caused_by(format!("{rule}: {}, for example {example}", entities(count)));
        }
        if self.more > 0 {
            error = error.caused_by(format!("{} more under other rules", self.more));
        }
        if self.remedies.contains(&Remedy::RelaxTarget) {
            // Its hint says so too.
            self.remedies.remove(&Remedy::CorrectSource);
        }
        let hints: Vec<&str> = self.remedies.into_iter().map(Remedy::hint).collect();
        error.hint(hints.join("; "))
    }
}

fn hash(parts: &[&str]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize()[..16]);
    short
}

/// Ids of the collections that others refer to, where the target insists on them. Collections come in the order of
/// reference; what refers to its own collection, or in a circle, is looked up once that collection was read.
struct ReferencedIds {
    known: BTreeMap<String, HashSet<[u8; 16]>>,
    read: HashSet<String>,
    enforced: bool,
}

impl ReferencedIds {
    fn new(collections: &[Collection], enforced: bool) -> Self {
        let referenced = collections.iter().flat_map(|collection| &collection.references);
        let known = if enforced {
            referenced.map(|it| (it.collection.clone(), HashSet::new())).collect()
        } else {
            BTreeMap::new()
        };
        ReferencedIds { known, read: HashSet::new(), enforced }
    }

    fn is_wanted(&self, collection: &str) -> bool {
        self.known.contains_key(collection)
    }

    /// Those that are referred to and not moved along: what the target holds of them counts.
    fn outside(&self, collections: &[Collection]) -> Vec<String> {
        self.known.keys().filter(|name| collections.iter().all(|it| it.name != **name)).cloned().collect()
    }

    async fn add_all_of(&mut self, repository: &Repository, collection: &str) -> Result<()> {
        let mut pages = read_ahead(repository, collection, 1);
        while let Some(page) = pages.recv().await {
            for entity in page? {
                self.add(collection, &entity.id);
            }
        }
        Ok(())
    }

    fn add(&mut self, collection: &str, id: &str) {
        if let Some(ids) = self.known.get_mut(collection) {
            ids.insert(hash(&[id]));
        }
    }

    fn resolve(&mut self, collection: &str) {
        self.read.insert(collection.into());
    }

    fn look(&mut self, collection: &Collection, id: &str, fields: &Map<String, Value>, broken: &mut BrokenRules) {
        self.add(&collection.name, id);
        if !self.enforced {
            return;
        }
        for reference in &collection.references {
            let Some(Value::String(to)) = fields.get(&reference.field) else { continue };
            // Its own collection, or one of a circle, is not read yet: the target itself will tell.
            let is_read = self.read.contains(&reference.collection);
            if is_read && !self.known[&reference.collection].contains(&hash(&[to])) {
                broken.add(
                    format!("{}.{} must name an entity of {}", collection.name, reference.field, reference.collection),
                    Remedy::RelaxTarget,
                    &collection.name,
                    id,
                    || format!("{}, which names {}", json::quoted(id), json::quoted(to)),
                );
            }
        }
    }
}
