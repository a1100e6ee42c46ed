//! The last step, where it was asked for: what the target holds equal now is removed from the source.

use std::time::Instant;

use larder_model::{Collection, Entity, ErrorKind, Existing, Expectation, Removal, Write, json};

use super::digest::hash;
use super::pace::{Patience, patiently};
use super::pages::read_ahead;
use super::{Event, Migration, Step, entities};
use crate::error::{Error, Kind, Result};
use crate::text::one_line;

/// What to do about an entity that somebody wrote meanwhile.
const CHANGED_HINT: &str =
    "it was changed after it was verified: migrate again with --restart to take the change along";

impl Migration<'_> {
    /// Removes from the source what the target holds equal now, each by its version, referring collections first. What
    /// the target was to keep of its own stays in the source too, and what is in quarantine: it is nowhere else.
    pub(super) async fn clean_up(&mut self) -> Result<()> {
        let since = Instant::now();
        self.tell(Event::Started { step: Step::CleanUp, entities: Some(self.entities()) });
        self.state.is_cleaning = true;
        self.save()?;
        for position in (0..self.collections.len()).rev() {
            let collection = self.collections[position].clone();
            self.enter(Step::CleanUp, position);
            let mut pages = read_ahead(self.source, &collection.name, 1);
            while let Some(page) = pages.recv().await {
                self.check_stop()?;
                let page = page?.entities;
                let count = page.len() as u64;
                let writes = self.removals(&collection, page).await?;
                self.remove(position, writes).await?;
                self.advance(Step::CleanUp, position, count);
            }
        }
        let removed: u64 = self.reports.iter().map(|report| report.removed).sum();
        self.ended(Step::CleanUp, since, format!("{} removed from the source", entities(removed)));
        Ok(())
    }

    /// What is throttled is removed after a while.
    async fn remove(&mut self, position: usize, mut writes: Vec<Write>) -> Result<()> {
        let mut patience = Patience::new();
        while !writes.is_empty() {
            let results = patiently(|| self.source.apply(writes.clone(), false)).await?;
            let mut throttled = Vec::new();
            for (write, result) in writes.into_iter().zip(results) {
                match result {
                    Ok(_) => self.reports[position].removed += 1,
                    Err(error) if error.kind == ErrorKind::Throttled => throttled.push((write, error)),
                    Err(error) if matches!(error.kind, ErrorKind::VersionConflict | ErrorKind::NotFound) => {
                        return Err(Error::from(error).hint(CHANGED_HINT));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if let Some((_, error)) = throttled.first() {
                patience.after(error.clone().into()).await?;
            }
            writes = throttled.into_iter().map(|(write, _)| write).collect();
        }
        Ok(())
    }

    async fn removals(&self, collection: &Collection, mut page: Vec<Entity>) -> Result<Vec<Write>> {
        page.retain(|entity| !self.left_out.contains(&hash(&[&collection.name, &entity.id])));
        let names: Vec<String> = page.iter().map(|entity| entity.id.clone()).collect();
        let stored = patiently(|| self.target.get(&collection.name, &names)).await?;
        let mut removals = Vec::with_capacity(page.len());
        for (entity, stored) in page.into_iter().zip(stored) {
            let fields = self.source.checked(collection, &entity)?.into_map();
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
