//! Whether two stores hold the same: digests of each collection first, and where those differ, the entities of the buckets
//! that differ, down to the members.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use larder_model::{Existing, json};
use serde_json::{Map, Value};

use super::digest::{self, BUCKETS, Digest, LeftOut, Sum, Term, bucket_of, hash};
use super::pace::patiently;
use super::pages::read_ahead;
use super::{Event, Migration, Step, entities};
use crate::capability::Watch;
use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use crate::text::one_line;

/// Differing entities that are named; all of those that were looked at are counted.
pub(super) const LISTED_MAX: usize = 100;
/// Of those, the ones that an error message names.
pub(super) const NAMED_MAX: usize = 10;
/// Entities that are looked at one by one, so that memory stays bounded where everything differs. At least one bucket is.
pub(super) const EXAMINED_MAX: u64 = 200_000;

/// In which way an entity differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// The target has not got it.
    OnlyInSource,
    /// The source has not got it.
    OnlyInTarget,
    /// Both have it.
    Content,
}

impl Difference {
    fn name(self) -> &'static str {
        match self {
            Difference::OnlyInSource => "only in the source",
            Difference::OnlyInTarget => "only in the target",
            Difference::Content => "different",
        }
    }
}

/// An entity that differs.
#[derive(Debug, Clone)]
pub struct Differing {
    /// Its id.
    pub id: String,
    /// How.
    pub difference: Difference,
    /// The members that are not the same, where both have it.
    pub fields: Vec<String>,
}

/// All that differs in one collection.
#[derive(Debug, Clone, Default)]
pub struct Differences {
    /// The first of them.
    pub listed: Vec<Differing>,
    /// How many the target has not got.
    pub only_in_source: u64,
    /// How many the source has not got.
    pub only_in_target: u64,
    /// How many both have, with other content.
    pub different: u64,
    /// Of the 4,096 parts of a collection those that differ and were too many to be looked at.
    pub unexamined_buckets: u64,
}

impl Differences {
    fn add(&mut self, id: &str, difference: Difference, fields: impl FnOnce() -> Vec<String>) {
        *match difference {
            Difference::OnlyInSource => &mut self.only_in_source,
            Difference::OnlyInTarget => &mut self.only_in_target,
            Difference::Content => &mut self.different,
        } += 1;
        if self.listed.len() < LISTED_MAX {
            self.listed.push(Differing { id: id.to_owned(), difference, fields: fields() });
        }
    }

    fn count(&self) -> u64 {
        self.only_in_source + self.only_in_target + self.different
    }

    /// Sentences for a person, a few.
    pub fn lines(&self, collection: &str) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for it in self.listed.iter().take(NAMED_MAX) {
            let members: Vec<String> = it.fields.iter().map(|name| json::quoted(name)).collect();
            let members = if members.is_empty() { String::new() } else { format!(" in {}", members.join(", ")) };
            lines.push(format!("{collection} {}: {}{members}", json::quoted(&it.id), it.difference.name()));
        }
        let more = self.count() - lines.len() as u64;
        if more > 0 {
            lines.push(format!("{collection}: {more} more"));
        }
        if self.unexamined_buckets > 0 {
            let buckets = self.unexamined_buckets;
            lines.push(format!("{collection}: {buckets} of {BUCKETS} parts differ too and were not looked at"));
        }
        lines
    }

    /// As JSON.
    pub fn value(&self) -> Value {
        let listed = self
            .listed
            .iter()
            .map(|it| serde_json::json!({ "key": it.id, "difference": it.difference.name(), "fields": it.fields }));
        serde_json::json!({
            "only_in_source": self.only_in_source,
            "only_in_target": self.only_in_target,
            "different": self.different,
            "unexamined_buckets": self.unexamined_buckets,
            "listed": listed.collect::<Vec<_>>(),
        })
    }
}

/// One collection of two stores.
#[derive(Debug)]
pub struct Compared {
    /// Its name.
    pub name: String,
    /// Of the one store.
    pub source: Digest,
    /// Of the other.
    pub target: Digest,
    /// None where they are equal.
    pub differences: Option<Differences>,
}

/// Compares two stores without moving anything.
pub async fn verify(source: &Repository, target: &Repository, collections: &[String]) -> Result<Vec<Compared>> {
    let nothing = LeftOut::default();
    let mut compared = Vec::new();
    for name in collections {
        compared.push(compare(source, target, name, &nothing).await?);
    }
    Ok(compared)
}

async fn compare(source: &Repository, target: &Repository, name: &str, left_out: &LeftOut) -> Result<Compared> {
    let nothing = LeftOut::default();
    let (one, other) = tokio::join!(
        digest::of(source, name, 1, left_out, |_| Ok(())),
        digest::of(target, name, 1, &nothing, |_| Ok(()))
    );
    let (one, other) = (one?, other?);
    let differences = match one == other {
        true => None,
        false => Some(drill_down(source, target, name, left_out, &one, &other).await?),
    };
    Ok(Compared { name: name.to_owned(), source: one, target: other, differences })
}

/// The entities of the buckets that differ.
async fn drill_down(
    source: &Repository,
    target: &Repository,
    name: &str,
    left_out: &LeftOut,
    one: &Digest,
    other: &Digest,
) -> Result<Differences> {
    let mut differences = Differences::default();
    let mut wanted = BTreeSet::new();
    let mut examined = 0;
    for bucket in (0..BUCKETS as u16).filter(|bucket| one.bucket(*bucket) != other.bucket(*bucket)) {
        examined += one.bucket(bucket).count + other.bucket(bucket).count;
        if wanted.is_empty() || examined <= EXAMINED_MAX {
            wanted.insert(bucket);
        } else {
            differences.unexamined_buckets += 1;
        }
    }
    let definition = source.collection(name)?;
    let mut found: HashMap<String, Sum> = HashMap::new();
    let mut pages = read_ahead(source, name, 1);
    while let Some(page) = pages.recv().await {
        for entity in page?.entities {
            if wanted.contains(&bucket_of(&entity.id)) && !left_out.contains(&hash(&[name, &entity.id])) {
                let sum = Term::new(&entity, &source.checked(definition, &entity)?).sum;
                found.insert(entity.id, sum);
            }
        }
    }
    let mut pages = read_ahead(target, name, 1);
    while let Some(page) = pages.recv().await {
        for entity in page?.entities {
            if !wanted.contains(&bucket_of(&entity.id)) {
                continue;
            }
            let fields = target.checked(target.collection(name)?, &entity)?;
            match found.remove(&entity.id) {
                None => differences.add(&entity.id, Difference::OnlyInTarget, Vec::new),
                Some(sum) if sum != Term::new(&entity, &fields).sum => {
                    let theirs = match differences.listed.len() < LISTED_MAX {
                        true => patiently(|| source.get_one(name, &entity.id)).await?,
                        false => None,
                    };
                    let theirs = theirs.map(|theirs| json::parse_object(&theirs.body)).transpose()?;
                    let members =
                        || theirs.map(|theirs| differing_members(&theirs, &fields.into_map())).unwrap_or_default();
                    differences.add(&entity.id, Difference::Content, members);
                }
                Some(_) => {}
            }
        }
    }
    let mut missing: Vec<String> = found.into_keys().collect();
    missing.sort();
    missing.iter().for_each(|id| differences.add(id, Difference::OnlyInSource, Vec::new));
    Ok(differences)
}

/// Names of the members that are not the same.
fn differing_members(one: &Map<String, Value>, other: &Map<String, Value>) -> Vec<String> {
    let is_same = |name: &str| match (one.get(name), other.get(name)) {
        (Some(one), Some(other)) => json::equal(one, other),
        _ => false,
    };
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    names.into_iter().filter(|name| !is_same(name)).cloned().collect()
}

impl Migration<'_> {
    /// Reads the target back. Where it was empty before, it must hold exactly the source; else the entities of the
    /// source must be there, and those alone are compared. The source must still be what was validated: where no watch tells
    /// that it is, it is read again.
    pub(super) async fn verify(&mut self) -> Result<()> {
        let since = Instant::now();
        let (source, target, workers) = (self.source, self.target, self.options.workers);
        self.tell(Event::Started { step: Step::Verify, entities: Some(self.entities()) });
        for position in 0..self.collections.len() {
            self.enter(Step::Verify, position);
            let name = self.collections[position].name.clone();
            let expected = self.reports[position].source_digest.clone();
            let raw_before = self.raw[position];
            let (found, raw, mut differences) = if self.state.collections[position].occupied {
                self.compare_moved(position).await?
            } else {
                let left_out = LeftOut::default();
                let mut watch = self.watch.take();
                let is_unchanged = async |watch: &mut Option<Watch>| match watch {
                    Some(watch) => source.saw_no_change(watch).await,
                    None => false,
                };
                // Where a watch tells that nothing changed, nothing is read again.
                let is_watched = is_unchanged(&mut watch).await;
                let look_again = async {
                    match is_watched {
                        true => Ok(raw_before),
                        false => digest::of_raw(source, &name).await,
                    }
                };
                let (found, mut raw) = tokio::join!(
                    digest::of(target, &name, workers, &left_out, |count| {
                        self.advance(Step::Verify, position, count);
                        self.check_stop()
                    }),
                    look_again
                );
                if is_watched && !is_unchanged(&mut watch).await {
                    raw = digest::of_raw(source, &name).await;
                }
                self.watch = watch;
                (found?, raw?, Differences::default())
            };
            self.reports[position].target_digest = Some(found.clone());
            let skipped = self.reports[position].skipped;
            let changed = raw != raw_before;
            // What was skipped differs by intention, and is not in `found`.
            let is_equal = found.count() + skipped == expected.count()
                && (skipped > 0 || found == expected)
                && differences.count() == 0;
            if is_equal && !changed {
                continue;
            }
            if !self.state.collections[position].occupied {
                let compared = compare(source, target, &name, &self.left_out).await?;
                differences = compared.differences.unwrap_or_default();
            }
            let mut error = if changed {
                Error::new(Kind::Differs, format!("{name}: the source changed while it was migrated"))
            } else {
                Error::new(Kind::Differs, format!("{name}: the target differs from the source"))
            };
            error = error
                .caused_by(format!("source: {} entities, digest {expected}, when it was validated", expected.count()))
                .caused_by(format!("target: {} entities, digest {found}", found.count()));
            error = differences.lines(&name).into_iter().fold(error, Error::caused_by);
            if changed && differences.count() == 0 {
                error = error.caused_by("the target holds what the source holds now");
            }
            if changed {
                error = self.name_changes(position, error).await;
            }
            self.reports[position].differences = Some(differences);
            return Err(error.hint(match changed {
                true => {
                    "stop what writes to the source, and migrate again with --restart; --existing overwrite takes along what \
                     was changed after it had been moved"
                }
                false => {
                    "something else wrote to one of the stores, or the target's plugin is faulty; the source was not changed"
                }
            }));
        }
        let skipped: u64 = self.reports.iter().map(|report| report.skipped).sum();
        let left_out: u64 = self.reports.iter().map(|report| report.quarantined).sum();
        let mut summary = format!("{} equal", entities(self.entities() - skipped - left_out));
        for (count, what) in [(skipped, "skipped"), (left_out, "in quarantine")] {
            if count > 0 {
                summary += &format!(", {count} {what}");
            }
        }
        self.ended(Step::Verify, since, summary);
        Ok(())
    }

    /// Holds what the target answers for the source's ids against the source, but for those it was to keep: their digest,
    /// the source as it reads now, and what differs.
    async fn compare_moved(&mut self, position: usize) -> Result<(Digest, Sum, Differences)> {
        let collection = self.collections[position].clone();
        let (mut digest, mut raw, mut differences) = (Digest::default(), Sum::default(), Differences::default());
        let mut pages = read_ahead(self.source, &collection.name, 1);
        while let Some(page) = pages.recv().await {
            self.check_stop()?;
            let mut page = page?.entities;
            let count = page.len() as u64;
            page.iter().for_each(|entity| raw.add(&Sum::of_raw(entity)));
            page.retain(|entity| !self.left_out.contains(&hash(&[&collection.name, &entity.id])));
            let names: Vec<String> = page.iter().map(|entity| entity.id.clone()).collect();
            let stored = patiently(|| self.target.get(&collection.name, &names)).await?;
            for (entity, stored) in page.into_iter().zip(stored) {
                let fields = self.source.checked(&collection, &entity)?.into_map();
                let Some(stored) = stored else {
                    differences.add(&entity.id, Difference::OnlyInSource, Vec::new);
                    continue;
                };
                let found = json::members(&stored.body)?;
                let term = Term::new(&stored, &found);
                let found = found.into_map();
                if json::equal_objects(&fields, &found) {
                    digest.add(&term);
                } else if self.options.existing != Existing::Skip {
                    digest.add(&term);
                    differences.add(&entity.id, Difference::Content, || differing_members(&fields, &found));
                }
            }
            self.advance(Step::Verify, position, count);
        }
        Ok((digest, raw, differences))
    }
}

/// An error for two stores that differ, with the first keys of each collection.
pub fn differ(from: &str, to: &str, compared: &[Compared]) -> Option<Error> {
    let different: Vec<&Compared> = compared.iter().filter(|it| it.differences.is_some()).collect();
    if different.is_empty() {
        return None;
    }
    let names: Vec<&str> = different.iter().map(|it| it.name.as_str()).collect();
    let message = format!("stores `{}` and `{}` differ in {}", one_line(from), one_line(to), names.join(", "));
    let lines = different.iter().flat_map(|it| it.differences.iter().flat_map(|found| found.lines(&it.name)));
    Some(lines.fold(Error::new(Kind::Differs, message), Error::caused_by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_differ_by_exact_value_and_by_being_there() {
        let object = |text: &str| json::parse_object(text.as_bytes()).unwrap();
        let one = object(r#"{"a": 1, "b": 1.0, "c": null, "d": [1, 2]}"#);
        let other = object(r#"{"d": [2, 1], "a": 1, "b": 1, "e": true}"#);
        assert_eq!(differing_members(&one, &other), ["b", "c", "d", "e"]);
        assert!(differing_members(&one, &one).is_empty());
    }

    #[test]
    fn a_list_of_differences_is_bounded_and_the_counts_are_not() {
        let mut differences = Differences::default();
        for number in 0..250 {
            differences.add(&number.to_string(), Difference::OnlyInTarget, Vec::new);
        }
        assert_eq!((differences.listed.len(), differences.only_in_target), (LISTED_MAX, 250));
        let lines = differences.lines("machines");
        assert_eq!((lines.len(), lines[NAMED_MAX].as_str()), (NAMED_MAX + 1, "machines: 240 more"));
    }
}
