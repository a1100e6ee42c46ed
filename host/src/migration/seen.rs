//! What the source was when it was validated: the id of each entity and a hash of what the strategy gave, in a file without
//! a name. It is written for the case that the source turns out to have changed, to say which entities did, and read only
//! then.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use larder_model::{Entity, json};
use serde_json::{Value, json};

use super::checkpoint::failure;
use super::digest::{BUCKETS, Sum, bucket_of};
use super::pages::read_ahead;
use super::verification::{EXAMINED_MAX, LISTED_MAX, NAMED_MAX};
use crate::error::Result;
use crate::repository::Repository;

/// How an entity of the source is not what it was when it was validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceChange {
    /// It has other content.
    Changed,
    /// It was not there.
    Added,
    /// It is not there any more.
    Removed,
}

impl SourceChange {
    fn name(self) -> &'static str {
        match self {
            SourceChange::Changed => "changed",
            SourceChange::Added => "added",
            SourceChange::Removed => "removed",
        }
    }
}

/// All that changed in one collection of the source since it was validated.
#[derive(Debug, Clone, Default)]
pub struct SourceChanges {
    /// The ids of the first of them.
    pub listed: Vec<(String, SourceChange)>,
    /// How many have other content.
    pub changed: u64,
    /// How many were not there.
    pub added: u64,
    /// How many are not there any more.
    pub removed: u64,
    /// Of the 4,096 parts of a collection those that changed and were too many to be looked at.
    pub unexamined_buckets: u64,
}

impl SourceChanges {
    fn add(&mut self, id: &str, change: SourceChange) {
        *match change {
            SourceChange::Changed => &mut self.changed,
            SourceChange::Added => &mut self.added,
            SourceChange::Removed => &mut self.removed,
        } += 1;
        if self.listed.len() < LISTED_MAX {
            self.listed.push((id.to_owned(), change));
        }
    }

    /// Sentences for a person, a few.
    pub fn lines(&self, collection: &str) -> Vec<String> {
        let named = self.listed.iter().take(NAMED_MAX);
        let mut lines: Vec<String> = named
            .map(|(id, change)| format!("{collection} {}: {} since the validation", json::quoted(id), change.name()))
            .collect();
        let more = self.changed + self.added + self.removed - lines.len() as u64;
        if more > 0 {
            lines.push(format!("{collection}: {more} more since the validation"));
        }
        if self.unexamined_buckets > 0 {
            let buckets = self.unexamined_buckets;
            lines.push(format!("{collection}: {buckets} of {BUCKETS} parts changed too and were not looked at"));
        }
        lines
    }

    /// As JSON.
    pub fn value(&self) -> Value {
        let listed = self.listed.iter().map(|(id, change)| json!({ "key": id, "change": change.name() }));
        json!({
            "changed": self.changed,
            "added": self.added,
            "removed": self.removed,
            "unexamined_buckets": self.unexamined_buckets,
            "listed": listed.collect::<Vec<_>>(),
        })
    }
}

/// A page of entities in the form of the file: the length of the id in 4 bytes, the id, and 8 bytes of the hash.
#[derive(Default)]
pub(super) struct Notes(Vec<u8>);

impl Notes {
    /// `raw` is the entity's.
    pub(super) fn add(&mut self, entity: &Entity, raw: &Sum) {
        self.0.extend_from_slice(&(entity.id.len() as u32).to_le_bytes());
        self.0.extend_from_slice(entity.id.as_bytes());
        self.0.extend_from_slice(&raw.short().to_le_bytes());
    }
}

/// The file.
pub(super) struct Seen {
    folder: PathBuf,
    file: BufWriter<File>,
    written: u64,
    /// Where the entities of each collection begin.
    begins: Vec<u64>,
}

impl Seen {
    /// In this folder, and gone with the process.
    pub(super) fn new(folder: &Path) -> Result<Seen> {
        let file = tempfile::tempfile_in(folder).map_err(|error| failure(folder, error))?;
        Ok(Seen { folder: folder.to_owned(), file: BufWriter::new(file), written: 0, begins: Vec::new() })
    }

    /// What is noted from here on is of the next collection.
    pub(super) fn enter_collection(&mut self) {
        self.begins.push(self.written);
    }

    pub(super) fn add(&mut self, notes: &Notes) -> Result<()> {
        self.written += notes.0.len() as u64;
        self.file.write_all(&notes.0).map_err(|error| failure(&self.folder, error))
    }

    /// Holds a collection of the source, as it is now, against what was noted.
    pub(super) async fn changes(
        &mut self,
        position: usize,
        source: &Repository,
        collection: &str,
    ) -> Result<SourceChanges> {
        // Of each bucket how many entities both have together, and how their hashes differ.
        let mut buckets = vec![(0_u64, 0_u64); BUCKETS];
        self.read(position, |id, hash| {
            let (count, sum) = &mut buckets[usize::from(bucket_of(&id))];
            (*count, *sum) = (*count + 1, sum.wrapping_add(hash));
        })?;
        let mut pages = read_ahead(source, collection, 1);
        while let Some(page) = pages.recv().await {
            for entity in page?.entities {
                let (count, sum) = &mut buckets[usize::from(bucket_of(&entity.id))];
                (*count, *sum) = (*count + 1, sum.wrapping_sub(Sum::of_raw(&entity).short()));
            }
        }
        let mut changes = SourceChanges::default();
        let mut wanted = vec![false; BUCKETS];
        let mut examined = 0;
        for (wanted, (count, _)) in wanted.iter_mut().zip(&buckets).filter(|(_, (_, sum))| *sum != 0) {
            *wanted = examined == 0 || examined + count <= EXAMINED_MAX;
            match *wanted {
                true => examined += count,
                false => changes.unexamined_buckets += 1,
            }
        }
        let is_wanted = |id: &str| wanted[usize::from(bucket_of(id))];
        let mut before: HashMap<String, u64> = HashMap::new();
        self.read(position, |id, hash| {
            if is_wanted(&id) {
                before.insert(id, hash);
            }
        })?;
        let mut pages = read_ahead(source, collection, 1);
        while let Some(page) = pages.recv().await {
            for entity in page?.entities.iter().filter(|entity| is_wanted(&entity.id)) {
                match before.remove(&entity.id) {
                    None => changes.add(&entity.id, SourceChange::Added),
                    Some(hash) if hash != Sum::of_raw(entity).short() => {
                        changes.add(&entity.id, SourceChange::Changed);
                    }
                    Some(_) => {}
                }
            }
        }
        let mut removed: Vec<String> = before.into_keys().collect();
        removed.sort_unstable();
        removed.iter().for_each(|id| changes.add(id, SourceChange::Removed));
        Ok(changes)
    }

    /// Goes through what was noted of a collection.
    fn read(&mut self, position: usize, mut visit: impl FnMut(String, u64)) -> Result<()> {
        let begin = self.begins.get(position).copied().unwrap_or(self.written);
        let end = self.begins.get(position + 1).copied().unwrap_or(self.written);
        let mut read = || -> io::Result<()> {
            self.file.flush()?;
            self.file.get_mut().seek(SeekFrom::Start(begin))?;
            let mut rest = BufReader::new(self.file.get_mut()).take(end - begin);
            while rest.limit() > 0 {
                let (mut len, mut hash) = ([0; 4], [0; 8]);
                rest.read_exact(&mut len)?;
                let mut id = vec![0; u32::from_le_bytes(len) as usize];
                rest.read_exact(&mut id)?;
                rest.read_exact(&mut hash)?;
                visit(String::from_utf8_lossy(&id).into_owned(), u64::from_le_bytes(hash));
            }
            Ok(())
        };
        let ended = read().and_then(|()| self.file.get_mut().seek(SeekFrom::End(0)).map(drop));
        ended.map_err(|error| failure(&self.folder, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_again_by_collection() {
        let folder = tempfile::tempdir().unwrap();
        let mut seen = Seen::new(folder.path()).unwrap();
        let entity = |id: &str| Entity { id: id.to_owned(), version: 1, body: b"{}".to_vec() };
        for ids in [&["a", "é"][..], &[], &["c"]] {
            seen.enter_collection();
            let mut notes = Notes::default();
            ids.iter().for_each(|id| notes.add(&entity(id), &Sum::of_raw(&entity(id))));
            seen.add(&notes).unwrap();
        }
        for (position, expected) in [&["a", "é"][..], &[], &["c"], &[]].iter().enumerate() {
            let mut found = Vec::new();
            seen.read(position, |id, hash| {
                assert_eq!(hash, Sum::of_raw(&entity(&id)).short());
                found.push(id);
            })
            .unwrap();
            assert_eq!(found, *expected);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
    }
}
