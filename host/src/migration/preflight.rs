//! The first step: both stores, and every entity of the source against every rule of the target. What breaks a rule is
//! counted by rule, with an example, and ends the migration or goes into quarantine; how each member is declared and what
//! it holds is counted too.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Instant;

use larder_model::json::{self, MemberRef, Members, Object as _};
use larder_model::{Collection, Entity, ErrorKind, Existing, FieldType, Violation};
use serde_json::Value;

use super::digest::{Sum, Term, hash};
use super::pace::patiently;
use super::pages::{broke_off, read_ahead, side_by_side};
use super::quarantine::Quarantine;
use super::seen::{Notes, Seen};
use super::{Event, Migration, OnInvalid, Step, entities};
use crate::error::{Error, Kind, Result};
use crate::repository::{Progress, Repository};
use crate::text::one_line;

/// Different rules that a report holds; a plugin could make up a new one for each entity.
const RULES_MAX: usize = 100;
/// Different members of one collection that a report tells of; ids may be used as names.
const FIELDS_MAX: usize = 500;

/// How entities hold a member, by the declaration of their collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// As it is declared: a store with columns keeps it in its column.
    AsDeclared,
    /// Declared, and null.
    Null,
    /// Declared as another type: a store with columns keeps the exact value beside the column.
    OfAnotherType,
    /// Not declared: a store with columns keeps it with all others that have none.
    NotDeclared,
}

impl Kept {
    const ALL: [Kept; 4] = [Kept::AsDeclared, Kept::Null, Kept::OfAnotherType, Kept::NotDeclared];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Kept::AsDeclared => "as declared",
            Kept::Null => "null",
            Kept::OfAnotherType => "of another type than declared",
            Kept::NotDeclared => "not declared",
        }
    }
}

/// One member in one way.
#[derive(Debug, Clone)]
pub struct FieldReport {
    /// The member's name.
    pub field: String,
    /// How it is held.
    pub kept: Kept,
    /// By how many entities.
    pub entities: u64,
    /// The id of one of them.
    pub example: String,
}

impl FieldReport {
    pub(super) fn value(&self) -> Value {
        serde_json::json!({
            "field": self.field, "kept": self.kept.name(), "entities": self.entities, "example": self.example,
        })
    }
}

/// Members by name, in each way how often, and one that is so.
#[derive(Default)]
struct Fields {
    /// In the order in which they came first.
    members: Vec<FieldWays>,
    positions: HashMap<String, usize>,
}

struct FieldWays {
    name: String,
    declared: Option<FieldType>,
    /// As [`Kept::ALL`]: by how many entities, and the id of the first. None where it is by none.
    ways: [Option<(u64, String)>; Kept::ALL.len()],
}

impl Fields {
    fn add(&mut self, collection: &Collection, id: &str, members: &Members<'_>) {
        for (turn, (name, value)) in members.entries().enumerate() {
            if let Some(field) = self.field(collection, name, turn) {
                field.count(kept(field.declared, value), 1, id);
            }
        }
    }

    /// The field of a member, which is likely to come in the same turn as in the entity before. None for those that are too
    /// many.
    fn field(&mut self, collection: &Collection, name: &str, turn: usize) -> Option<&mut FieldWays> {
        let is_next = self.members.get(turn).is_some_and(|field| field.name == name);
        let position = match is_next {
            true => turn,
            false => match self.positions.get(name) {
                Some(position) => *position,
                None if self.members.len() == FIELDS_MAX => return None,
                None => {
                    self.positions.insert(name.to_owned(), self.members.len());
                    let declared = declared(collection, name);
                    self.members.push(FieldWays { name: name.to_owned(), declared, ways: Default::default() });
                    self.members.len() - 1
                }
            },
        };
        self.members.get_mut(position)
    }

    fn merge(&mut self, collection: &Collection, other: Fields) {
        for (turn, theirs) in other.members.into_iter().enumerate() {
            let Some(field) = self.field(collection, &theirs.name, turn) else { continue };
            for (kept, way) in Kept::ALL.into_iter().zip(theirs.ways) {
                if let Some((entities, example)) = way {
                    field.count(kept, entities, &example);
                }
            }
        }
    }

    /// By name.
    fn into_reports(mut self) -> Vec<FieldReport> {
        self.members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let reports = self.members.into_iter().flat_map(|FieldWays { name, ways, .. }| {
            Kept::ALL.into_iter().zip(ways).filter_map(move |(kept, way)| {
                way.map(|(entities, example)| FieldReport { field: name.clone(), kept, entities, example })
            })
        });
        reports.collect()
    }
}

impl FieldWays {
    fn count(&mut self, kept: Kept, entities: u64, example: &str) {
        self.ways[kept as usize].get_or_insert_with(|| (0, example.to_owned())).0 += entities;
    }
}

/// The type that the collection has for a member; none where it knows nothing of it.
fn declared(collection: &Collection, name: &str) -> Option<FieldType> {
    let stamps = &collection.stamps;
    let field = collection.fields.iter().find(|field| field.name == name);
    field.map(|field| field.ty).or_else(|| {
        let is_time = [&stamps.created, &stamps.updated].into_iter().flatten().any(|it| it == name);
        match name {
            _ if name == collection.key => Some(FieldType::Text),
            _ if name == stamps.version => Some(FieldType::Integer),
            _ => is_time.then_some(FieldType::Timestamp),
        }
    })
}

fn kept(declared: Option<FieldType>, value: MemberRef<'_>) -> Kept {
    let is_declared = match (declared, value) {
        (None, _) => return Kept::NotDeclared,
        (Some(FieldType::Json), _) => true,
        (_, MemberRef::Other(Value::Null)) => return Kept::Null,
        (Some(FieldType::Text | FieldType::Timestamp), value) => value.as_str().is_some(),
        (Some(FieldType::Integer), MemberRef::Other(value)) => value.is_i64() || value.is_u64(),
        (Some(FieldType::Number), MemberRef::Other(value)) => value.is_number(),
        (Some(FieldType::Boolean), MemberRef::Other(value)) => value.is_boolean(),
        (Some(_), MemberRef::Text(_)) => false,
    };
    if is_declared { Kept::AsDeclared } else { Kept::OfAnotherType }
}

impl Migration<'_> {
    /// Both ends, the target's schema, and every entity of the source against every rule of the target. Gives what the
    /// target would make.
    pub(super) async fn validate(&mut self) -> Result<Vec<String>> {
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
        self.watch = self.source.watch().await;
        let prepared = self.target.prepare(true, false).await?;
        let (mut broken, mut left_out) = (BrokenRules::default(), BrokenRules::default());
        let path = self.place.as_ref().map(|place| place.path_of("quarantine", &self.state.started, "jsonl"));
        let mut quarantine = path.map(Quarantine::new);
        // An earlier run learnt of these.
        let refused = self.state.refused.iter();
        let refused = refused.map(|it| (hash(&[&it.collection, &it.key]), it.rule.clone())).collect();
        self.seen = self.place.as_ref().map(|place| Seen::new(place.folder())).transpose()?;
        let mut ids = ReferencedIds::new(&self.collections, self.target.opened().enforces_references);
        for name in ids.outside(&self.collections) {
            ids.add_all_of(self.target, &name).await?;
            ids.resolve(&name);
        }
        for position in 0..self.collections.len() {
            let mut judge = Judge {
                broken: &mut broken,
                left_out: &mut left_out,
                quarantine: &mut quarantine,
                ids: &mut ids,
                refused: &refused,
            };
            self.validate_collection(position, &mut judge).await?;
        }
        if !broken.rules.is_empty() {
            return Err(broken.into_error(self.target.name()));
        }
        if let (Some(quarantine), Some(place)) = (quarantine, &self.place) {
            self.state.quarantine = quarantine.finish(place)?;
        }
        for (rule, (count, example)) in left_out.rules {
            let count = entities(count);
            self.tell(Event::Warned { message: format!("left out: {rule}: {count}, for example {example}") });
        }
        let collections = match self.collections.len() {
            1 => "1 collection".into(),
            count => format!("{count} collections"),
        };
        let mut summary = format!("{} in {collections}", entities(self.entities()));
        if !left_out.entities.is_empty() {
            summary += &format!(", {} of them left out", left_out.entities.len());
        }
        self.left_out = left_out.entities;
        self.ended(Step::Validate, since, summary);
        Ok(prepared)
    }

    async fn validate_collection(&mut self, position: usize, judge: &mut Judge<'_>) -> Result<()> {
        let collection = self.collections[position].clone();
        self.enter(Step::Validate, position);
        // What an earlier run brought was not there before.
        let occupied = match self.resumed {
            true => self.state.collections[position].occupied,
            false => self.holds_anything(&collection.name).await?,
        };
        self.state.collections[position].occupied = occupied;
        if judge.ids.is_wanted(&collection.name) && occupied {
            judge.ids.add_all_of(self.target, &collection.name).await?;
        }
        if let Some(seen) = &mut self.seen {
            seen.enter_collection();
        }
        let will_move = !self.options.dry_run && !self.resumed;
        let mut fields = Fields::default();
        let mut pages = read_ahead(self.source, &collection.name, self.options.workers);
        // Pages are looked at side by side, and judged in the order in which they were read.
        let mut looking = VecDeque::new();
        loop {
            // One more than there are cores, so that none waits for this task, which judges meanwhile.
            if looking.len() <= side_by_side(self.options.workers) as usize
                && let Some(page) = pages.recv().await
            {
                let mut page = page?;
                let entities = std::mem::take(&mut page.entities);
                let for_target = self.target.opened().has_rules.then(|| entities.clone());
                looking.push_back((page, for_target, look_at(self.source, self.target, &collection, entities)));
                continue;
            }
            let Some((mut page, for_target, looked)) = looking.pop_front() else { break };
            self.check_stop()?;
            let violations = match for_target {
                Some(page) => self.target.validate(&collection.name, page).await,
                None => Ok(Vec::new()),
            };
            let mut looked = looked.await.map_err(|error| broke_off("reading", error))?;
            looked.violations.extend(violations?);
            let count = looked.entities.len() as u64;
            self.reports[position].read += count;
            self.raw[position].add(&looked.raw);
            if let Some(seen) = &mut self.seen {
                seen.add(&looked.notes)?;
            }
            fields.merge(&collection, std::mem::take(&mut looked.fields));
            let sound = self.judge(position, &collection, &looked, judge)?;
            if occupied && self.options.existing == Existing::Fail {
                self.compare_existing(&collection, &sound, judge.broken).await?;
            }
            if will_move {
                page.entities = looked.entities.into_iter().map(|(entity, _)| entity).collect();
                self.held.add(position, page);
            }
            self.advance(Step::Validate, position, count);
        }
        judge.ids.resolve(&collection.name);
        self.reports[position].fields = fields.into_reports();
        Ok(())
    }

    /// Sorts a page: what breaks a rule is counted, and the rest is what will be moved.
    fn judge<'a>(
        &mut self,
        position: usize,
        collection: &Collection,
        looked: &'a Looked,
        judge: &mut Judge<'_>,
    ) -> Result<Vec<&'a Entity>> {
        let mut breaks: BTreeMap<u32, Vec<Break>> = BTreeMap::new();
        for violation in &looked.violations {
            let (entity, found) = &looked.entities[violation.entity as usize];
            // What is no entity at all breaks that rule, and no other.
            if found.is_ok() {
                let example = json::quoted(&entity.id);
                let broken = Break { rule: violation.rule.clone(), remedy: Remedy::RelaxTarget, example };
                breaks.entry(violation.entity).or_default().push(broken);
            }
        }
        let mut sound = Vec::with_capacity(looked.entities.len());
        let report = &mut self.reports[position];
        for (number, (entity, found)) in (0..).zip(&looked.entities) {
            let mut broken = breaks.remove(&number).unwrap_or_default();
            if !judge.refused.is_empty()
                && let Some(rule) = judge.refused.get(&hash(&[&collection.name, &entity.id]))
            {
                let example = json::quoted(&entity.id);
                broken.push(Break { rule: rule.clone(), remedy: Remedy::RelaxTarget, example });
            }
            match found {
                Ok(found) => judge.ids.look(collection, &entity.id, &found.references, &mut broken),
                Err(rule) => {
                    let example = json::quoted(&entity.id);
                    broken.push(Break { rule: rule.clone(), remedy: Remedy::CorrectSource, example });
                }
            }
            if !broken.is_empty() && self.options.on_invalid == OnInvalid::Quarantine {
                report.quarantined += 1;
                if let Some(quarantine) = &mut *judge.quarantine {
                    let rules: Vec<String> = broken.iter().map(|it| it.rule.clone()).collect();
                    quarantine.add(collection, entity, &rules)?;
                }
                for it in broken {
                    judge.left_out.add(it.rule, it.remedy, &collection.name, &entity.id, || it.example);
                }
                continue;
            }
            for it in broken {
                judge.broken.add(it.rule, it.remedy, &collection.name, &entity.id, || it.example);
            }
            // One that was left out cannot be referred to in the target.
            judge.ids.add(&collection.name, &entity.id);
            if let Ok(found) = found {
                report.source_digest.add(&found.term);
                sound.push(entity);
            }
        }
        Ok(sound)
    }

    /// Whether the target has an entity of the collection.
    async fn holds_anything(&self, collection: &str) -> Result<bool> {
        let needs_prepare = self.target.plugin().description.features.needs_prepare;
        if needs_prepare && !self.target.stored_collections().await?.iter().any(|stored| stored == collection) {
            return Ok(false);
        }
        let (mut cursor, mut progress) = (None, Progress::default());
        loop {
            let batch = self.target.scan(collection, 0, 1, cursor.as_deref(), 1).await?;
            progress.turn(self.target, batch.next.as_deref())?;
            if !batch.entities.is_empty() || batch.next.is_none() {
                return Ok(!batch.entities.is_empty());
            }
            cursor = batch.next;
        }
    }

    async fn compare_existing(
        &self,
        collection: &Collection,
        entities: &[&Entity],
        broken: &mut BrokenRules,
    ) -> Result<()> {
        let names: Vec<String> = entities.iter().map(|entity| entity.id.clone()).collect();
        let stored = patiently(|| self.target.get(&collection.name, &names)).await?;
        for (Entity { id, body, .. }, stored) in entities.iter().zip(stored) {
            let Some(stored) = stored else { continue };
            if !json::equal_objects(&json::parse_object(body)?, &json::parse_object(&stored.body)?) {
                let rule = format!("{}: the target holds the entity with other content", collection.name);
                broken.add(rule, Remedy::ChooseExisting, &collection.name, id, || json::quoted(id));
            }
        }
        Ok(())
    }
}

/// What the entities of all collections are judged by, and where the judgement goes.
struct Judge<'a> {
    broken: &'a mut BrokenRules,
    left_out: &'a mut BrokenRules,
    quarantine: &'a mut Option<Quarantine>,
    ids: &'a mut ReferencedIds,
    /// What the target said of entities that it refused in an earlier run.
    refused: &'a HashMap<[u8; 16], String>,
}

/// A rule that one entity breaks.
struct Break {
    rule: String,
    remedy: Remedy,
    /// The entity, and what is wrong with it.
    example: String,
}

/// What is kept of a sound entity's members.
struct Sound {
    /// Its part of the digest.
    term: Term,
    /// For each reference of its collection the id that it names, where the target insists on references.
    references: Vec<Option<String>>,
}

/// What was found in an entity, or the rule that it breaks by being none.
type Found = std::result::Result<Sound, String>;

/// A page of the source as the host sees it.
struct Looked {
    entities: Vec<(Entity, Found)>,
    raw: Sum,
    notes: Notes,
    fields: Fields,
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
        let mut looked = Looked {
            entities: Vec::with_capacity(page.len()),
            raw: Sum::default(),
            notes: Notes::default(),
            fields: Fields::default(),
            violations: Vec::new(),
        };
        let (enforces_fields, enforces_references) =
            (target.opened().enforces_fields, target.opened().enforces_references);
        let bytes_max = target.plugin().description.max_entity_bytes;
        for (position, entity) in (0..).zip(page) {
            if entity.body.len() as u64 > bytes_max {
                let rule = format!("{}: an entity has at most {bytes_max} bytes", collection.name);
                looked.violations.push(Violation { entity: position, rule });
            }
            let raw = Sum::of_raw(&entity);
            looked.raw.add(&raw);
            looked.notes.add(&entity, &raw);
            let found = match source.checked(&collection, &entity) {
                Ok(members) => {
                    looked.fields.add(&collection, &entity.id, &members);
                    if enforces_fields {
                        let rules = larder_model::rules::violations(&collection, &members);
                        looked.violations.extend(rules.into_iter().map(|rule| Violation { entity: position, rule }));
                    }
                    let references = collection.references.iter().filter(|_| enforces_references);
                    let named =
                        references.map(|it| members.get(&it.field).and_then(MemberRef::as_str).map(str::to_owned));
                    Ok(Sound { term: Term::new(&entity, &members), references: named.collect() })
                }
                // The reason without the entity's name is the rule.
                Err(error) => Err(match error.causes.first() {
                    Some(cause) => format!("{}: not a valid entity: {}", collection.name, without_position(cause)),
                    None => {
                        format!("{}: an entity's `{}` is the name it is stored under", collection.name, collection.key)
                    }
                }),
            };
            looked.entities.push((entity, found));
        }
        looked
    })
}

/// A parser's message without its line and column, which differ from entity to entity.
fn without_position(message: &str) -> &str {
    message.split(" at line ").next().unwrap_or(message)
}

/// A store that says it cannot be used is not used.
/// The answer is what it holds beside its entities.
async fn check_end(repository: &Repository, needed: &str) -> Result<Vec<String>> {
    let findings = repository.check(false).await?;
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
            Remedy::CorrectSource => {
                "correct the entities in the source, or leave them out with --on-invalid quarantine"
            }
            Remedy::RelaxTarget => {
                "correct the entities in the source, or let the target be less strict: for a SQL store, \
                 `\"constraints\": \"relaxed\"` keeps required fields, lengths and references open; --on-invalid quarantine \
                 moves all others"
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

/// Ids of the collections that others refer to, where the target insists on them. Collections come in the order of
/// reference; what refers to its own collection, or in a circle, is looked up once that collection was read.
struct ReferencedIds {
    known: BTreeMap<String, HashSet<[u8; 16]>>,
    read: HashSet<String>,
}

impl ReferencedIds {
    fn new(collections: &[Collection], enforced: bool) -> Self {
        let referenced = collections.iter().flat_map(|collection| &collection.references);
        let known = if enforced {
            referenced.map(|it| (it.collection.clone(), HashSet::new())).collect()
        } else {
            BTreeMap::new()
        };
        ReferencedIds { known, read: HashSet::new() }
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
            for entity in page?.entities {
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

    /// `named` are the ids that an entity refers to, as [`Sound`] has them.
    fn look(&self, collection: &Collection, id: &str, named: &[Option<String>], broken: &mut Vec<Break>) {
        for (reference, to) in collection.references.iter().zip(named) {
            let Some(to) = to else { continue };
            // Its own collection, or one of a circle, is not read yet: the target itself will tell.
            let is_read = self.read.contains(&reference.collection);
            if is_read && !self.known[&reference.collection].contains(&hash(&[to])) {
                let rule =
                    format!("{}.{} must name an entity of {}", collection.name, reference.field, reference.collection);
                let example = format!("{}, which names {}", json::quoted(id), json::quoted(to));
                broken.push(Break { rule, remedy: Remedy::RelaxTarget, example });
            }
        }
    }
}
