//! The step that writes: batches go to the target while the next page is read, several side by side, and what has arrived
//! is noted in the state again and again, so that little has to be done twice.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use larder_model::{Entity, ErrorKind, Existing, Loaded, json};
use tokio::task::JoinSet;

use super::checkpoint::Refused;
use super::digest::{Term, hash};
use super::merge::{Batch, Merge};
use super::pace::{Limiter, Patience};
use super::pages::{Position, broke_off, read_from, replay, side_by_side, writers};
use super::{Event, Migration, OnInvalid, Step, entities, quarantine};
use crate::error::{Error, Kind, Result};
use crate::plugin::bindings::entity_from;
use crate::repository::Repository;
use crate::text::one_line;

/// A checkpoint is made when so many times its cost has passed since the last one: it makes what is on its way durable
/// first, and must not slow the migration down.
const CHECKPOINT_COSTS: u32 = 20;

/// Refused entities that go into quarantine; a target that refuses more is no target for this source.
const REFUSED_MAX: usize = 10_000;
/// Of the rules that those break, the ones that are told of.
const RULES_TOLD_MAX: usize = 100;

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default)]
struct Settled {
    entities: u64,
    written: u64,
    unchanged: u64,
    skipped: u64,
    quarantined: u64,
}

/// Entities that the target refused, and what it said of each.
type Refusals = Vec<(Entity, String)>;

/// A batch under way, or ended while one before it is not.
struct Slot {
    /// Where its segments go on behind it.
    ends: Vec<(usize, Position)>,
    settled: Option<Settled>,
}

/// Which batch, and what became of it.
type Ended = (u64, Result<(Settled, Refusals)>);

/// The batches of one collection, from the first that has not ended.
struct Batches {
    position: usize,
    slots: VecDeque<Slot>,
    /// The number of the first of them.
    first: u64,
    loads: JoinSet<Ended>,
}

impl Migration<'_> {
    pub(super) async fn move_entities(&mut self) -> Result<()> {
        let since = Instant::now();
        self.tell(Event::Started { step: Step::Move, entities: Some(self.entities()) });
        self.target.prepare_for_load().await?;
        let mut limiter = Limiter::new(self.options.max_rate);
        for position in 0..self.collections.len() {
            self.move_collection(position, &mut limiter).await?;
        }
        self.target.prepare_after_load(self.entities()).await?;
        let (written, unchanged, skipped) = self.reports.iter().fold((0, 0, 0), |(written, unchanged, skipped), it| {
            (written + it.written, unchanged + it.unchanged, skipped + it.skipped)
        });
        self.tell_of_refused();
        self.ended(Step::Move, since, format!("{written} written, {unchanged} unchanged, {skipped} skipped"));
        Ok(())
    }

    async fn move_collection(&mut self, position: usize, limiter: &mut Limiter) -> Result<()> {
        self.enter(Step::Move, position);
        let progress = &self.state.collections[position];
        let report = &mut self.reports[position];
        (report.written, report.unchanged, report.skipped) = (progress.written, progress.unchanged, progress.skipped);
        let done = progress.written + progress.unchanged + progress.skipped + progress.quarantined;
        let mut batches = Batches { position, slots: VecDeque::new(), first: 0, loads: JoinSet::new() };
        self.advance(Step::Move, position, done);
        let mut ended = self.move_pages(&mut batches, limiter).await;
        // Whatever ended it, what was on its way arrives and counts.
        while let Some(load) = batches.loads.join_next().await {
            let settled = self.settle(&mut batches, load);
            ended = ended.and(settled);
        }
        let saved = match self.target.flush().await {
            // Of an empty collection there is nothing to note.
            Ok(()) if self.reports[position].read > 0 => self.save(),
            ended => ended,
        };
        ended.and(saved)?;
        let (report, progress) = (&self.reports[position], &self.state.collections[position]);
        if !report.is_balanced() || progress.quarantined != report.quarantined {
            let moved = report.written + report.unchanged + report.skipped + progress.quarantined;
            return Err(self.source_changed(position, moved).await);
        }
        Ok(())
    }

    async fn move_pages(&mut self, batches: &mut Batches, limiter: &mut Limiter) -> Result<()> {
        let position = batches.position;
        let name = self.collections[position].name.clone();
        let batch_size = limiter.at_once(self.options.batch_size) as usize;
        let writers = writers(self.target, self.options.workers);
        let positions = &self.state.collections[position].positions;
        let mut entities = Merge::of(match self.held.take(position) {
            Some(pages) => replay(pages, positions.len()),
            None => read_from(self.source, &name, positions),
        });
        while let Some(Batch { entities: mut batch, ends }) = entities.next(batch_size).await? {
            self.check_stop()?;
            let count = batch.len() as u64;
            if !self.left_out.is_empty() {
                batch.retain(|entity| !self.left_out.contains(&hash(&[&name, &entity.id])));
            }
            let quarantined = count - batch.len() as u64;
            limiter.pass(batch.len()).await;
            while batches.loads.len() >= writers {
                if let Some(load) = batches.loads.join_next().await {
                    self.settle(batches, load)?;
                    self.checkpoint_if_due().await?;
                }
            }
            let number = batches.first + batches.slots.len() as u64;
            batches.slots.push_back(Slot { ends, settled: None });
            let (target, collection) = (self.target.clone(), name.clone());
            let (existing, on_invalid) = (self.options.existing, self.options.on_invalid);
            batches.loads.spawn(async move {
                let loaded = load(&target, &collection, batch, existing, on_invalid).await;
                let settled = loaded.map(|(it, refused)| {
                    let settled = Settled {
                        entities: count,
                        written: it.written,
                        unchanged: it.unchanged,
                        skipped: it.skipped,
                        quarantined: quarantined + refused.len() as u64,
                    };
                    (settled, refused)
                });
                (number, settled)
            });
        }
        Ok(())
    }

    /// Counts what became of a batch, and moves the positions on as far as all before it has ended.
    fn settle(
        &mut self,
        batches: &mut Batches,
        ended: std::result::Result<Ended, tokio::task::JoinError>,
    ) -> Result<()> {
        let (number, settled) = ended.map_err(|error| broke_off("writing", error))?;
        let (settled, refused) = settled?;
        if !refused.is_empty() {
            self.leave_out(batches.position, refused)?;
        }
        let report = &mut self.reports[batches.position];
        report.written += settled.written;
        report.unchanged += settled.unchanged;
        report.skipped += settled.skipped;
        let Batches { slots, first, .. } = batches;
        slots[(number - *first) as usize].settled = Some(settled);
        let progress = &mut self.state.collections[batches.position];
        while let Some(settled) = slots.front().and_then(|slot| slot.settled) {
            for (segment, end) in slots.pop_front().into_iter().flat_map(|slot| slot.ends) {
                progress.positions[segment] = end;
            }
            *first += 1;
            progress.written += settled.written;
            progress.unchanged += settled.unchanged;
            progress.skipped += settled.skipped;
            progress.quarantined += settled.quarantined;
        }
        self.advance(Step::Move, batches.position, settled.entities);
        Ok(())
    }

    /// Puts entities into quarantine that broke no rule until the target refused them, as if that had been known before.
    fn leave_out(&mut self, position: usize, refused: Refusals) -> Result<()> {
        let collection = self.collections[position].clone();
        if let Some(place) = &self.place {
            let path = place.path_of("quarantine", &self.state.started, "jsonl");
            quarantine::append(&path, place, &collection, &refused)?;
            self.state.quarantine = Some(path);
        }
        for (entity, rule) in refused {
            if self.state.refused.len() == REFUSED_MAX {
                let message = format!("store `{}` refuses more than {REFUSED_MAX} entities", self.target.name());
                return Err(Error::new(Kind::Differs, message).caused_by(rule));
            }
            self.left_out.insert(hash(&[&collection.name, &entity.id]));
            let term = Term::new(&entity, &self.source.checked(&collection, &entity)?);
            let report = &mut self.reports[position];
            report.quarantined += 1;
            report.source_digest.remove(&term);
            self.state.refused.push(Refused { collection: collection.name.clone(), key: entity.id, rule });
        }
        self.state.collections[position].digest = self.reports[position].source_digest.to_string();
        Ok(())
    }

    /// What was left out since the validation, by rule.
    fn tell_of_refused(&mut self) {
        let mut rules: BTreeMap<&str, (u64, &Refused)> = BTreeMap::new();
        for refused in &self.state.refused {
            rules.entry(&refused.rule).or_insert((0, refused)).0 += 1;
        }
        let warnings: Vec<String> = rules
            .into_iter()
            .take(RULES_TOLD_MAX)
            .map(|(rule, (count, example))| {
                let (count, collection, key) = (entities(count), &example.collection, json::quoted(&example.key));
                format!("left out, because the target refused it: {rule}: {count}, for example {collection} {key}")
            })
            .collect();
        warnings.into_iter().for_each(|message| self.tell(Event::Warned { message }));
    }

    async fn checkpoint_if_due(&mut self) -> Result<()> {
        if self.place.is_none() || Instant::now() < self.checkpoint_due {
            return Ok(());
        }
        let since = Instant::now();
        // Only what is durable counts as arrived.
        self.target.flush().await?;
        self.save()?;
        self.checkpoint_due = Instant::now() + (since.elapsed() * CHECKPOINT_COSTS).max(Duration::from_millis(1));
        Ok(())
    }
}

/// Positions at the beginning of a collection.
pub(super) fn from_the_beginning(workers: u32) -> Vec<Position> {
    vec![Position::default(); side_by_side(workers) as usize]
}

/// Writes a batch. What is throttled is given again; what breaks a rule that only the target knows ends the migration, or
/// is given back for the quarantine.
async fn load(
    target: &Repository,
    collection: &str,
    batch: Vec<Entity>,
    existing: Existing,
    on_invalid: OnInvalid,
) -> Result<(Loaded, Refusals)> {
    let (mut total, mut refusals) = (Loaded::default(), Vec::new());
    let mut batch = target.crossing(batch)?;
    let mut patience = Patience::new();
    while !batch.is_empty() {
        let loaded = match target.load_crossing(collection, &batch, existing).await {
            Ok(loaded) => loaded,
            Err(error) => {
                patience.after(error).await?;
                continue;
            }
        };
        total.written += loaded.written;
        total.unchanged += loaded.unchanged;
        total.skipped += loaded.skipped;
        let mut again = Vec::new();
        for (position, error) in loaded.refused {
            let entity = &batch[position as usize];
            let id = one_line(&entity.id);
            let is_throttled = error.kind == ErrorKind::Throttled;
            let breaks_a_rule = matches!(error.kind, ErrorKind::Rejected | ErrorKind::InvalidArgument);
            if breaks_a_rule && on_invalid == OnInvalid::Quarantine {
                refusals.push((entity_from(entity.clone()), one_line(&error.message)));
                continue;
            }
            let error = Error::from(error).context(format!("store `{}` refused {collection} `{id}`", target.name()));
            if !is_throttled {
                return Err(error);
            }
            // One wait for all of them.
            if again.is_empty() {
                patience.after(error).await?;
            }
            again.push(entity.clone());
        }
        batch = again;
    }
    Ok((total, refusals))
}
