//! The store: which documents there are, who may read and write them when, and what each function of the contract does.
//!
//! Reads take no lock. A document is replaced by rename, so a reader has it whole, as it was before a commit or after it;
//! each call first looks whether the file is another than the one that was read. While a commit over several documents
//! is under way, its record exists, and reads wait for the lock: nobody sees one half of it and then the other missing.
//!
//! Writes take the exclusive lock, look again, and replace the document. `apply` has done so when it answers. `load`
//! answers before: it keeps the lock and gathers what it was given until `flush`, or until that is as much as the
//! document itself, so that a migration of any batch size writes the document a few times and not once a batch.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use larder_guest::{Files, LockMode};
use larder_model::{
    Batch, Collection, Entity, Error, ErrorKind, Existing, Expectation, Loaded, Opened, Outcome, Page, Put, Query,
    Result, Write, entity, filter::Filter, json,
};
use serde_json::{Map, Value};

use crate::{
    commit::RECORD,
    config::{Config, StorageType},
    document::{Changes, Content, Document, Found},
    find, text,
};

/// The largest body.
pub(crate) const ENTITY_BYTES_MAX: usize = 16 << 20;
/// What `load` gathers at least before the document is written.
const LOAD_BYTES_MIN: usize = 8 << 20;
/// The lock file of a store of several documents; a single document has one of its own.
const SPLIT_LOCK: &str = ".larder.lock";

/// An open store over the directory `F`.
pub struct JsonStore<F: Files> {
    pub(crate) files: F,
    pub(crate) config: Config,
    collections: BTreeMap<String, Rc<Collection>>,
    pub(crate) documents: Vec<Document>,
    lock_name: String,
    /// What `load` gathered. While there is any, the exclusive lock is held.
    pending: Changes,
    lock: Option<F::Lock>,
    /// Whether a transaction is open, which then holds the lock.
    pub(crate) in_transaction: Rc<Cell<bool>>,
    /// How many more entities may be kept parsed.
    room: Cell<usize>,
    /// For calls that read what is committed.
    unchanged: Rc<Changes>,
}

impl<F: Files> JsonStore<F> {
    /// Opens the store in `files`. Nothing is read yet.
    ///
    /// # Errors
    /// `invalid-argument` where the section is not what the schema says, or two collections share a file.
    pub fn open_in(files: F, config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        let config = Config::parse(config)?;
        let mut documents = Vec::new();
        let lock_name = match config.storage_type {
            StorageType::SingleFile => {
                let name = config.filenames.single_file.clone();
                documents.push(Document::new(name.clone(), Content::Collections));
                match name.rsplit_once('/') {
                    Some((folder, name)) => format!("{folder}/.{name}.lock"),
                    None => format!(".{name}.lock"),
                }
            }
            StorageType::SplitFiles => {
                let mut taken = HashMap::new();
                for collection in &collections {
                    let file = config.split_file(&collection.name);
                    if let Some(other) = taken.insert(file.clone(), &collection.name) {
                        return Err(Error::invalid(format!(
                            "the collections {other} and {} share the file {file} (filenames.split_files)",
                            collection.name
                        )));
                    }
                    documents.push(Document::new(file, Content::Entities(collection.name.clone())));
                }
                SPLIT_LOCK.to_owned()
            }
        };
        let room = Cell::new(config.cache_size);
        let collections = collections.into_iter().map(|it| (it.name.clone(), Rc::new(it))).collect();
        let store = JsonStore {
            files,
            config,
            collections,
            documents,
            lock_name,
            pending: Changes::default(),
            lock: None,
            in_transaction: Rc::default(),
            room,
            unchanged: Rc::default(),
        };
        Ok((store, Opened::default()))
    }

    pub(crate) fn collection(&self, name: &str) -> Result<Rc<Collection>> {
        self.collections
            .get(name)
            .cloned()
            .ok_or_else(|| Error::invalid(format!("there is no collection {}", json::quoted(name))))
    }

    /// The position of the document that holds a collection.
    pub(crate) fn document_of(&self, collection: &str) -> Result<usize> {
        self.collection(collection)?;
        let found = self.documents.iter().position(|document| document.holds(collection));
        found.ok_or_else(|| Error::new(ErrorKind::Internal, format!("{collection} has no document")))
    }

    /// Reads a document again where it is another than it was.
    pub(crate) fn refresh(&mut self, document: usize) -> Result<()> {
        let collections = &self.collections;
        let is_configured = |name: &str| collections.contains_key(name);
        if self.documents[document].refresh(&self.files, self.config.enable_compression, &is_configured)? {
            self.make_room();
        }
        Ok(())
    }

    /// Counts what is kept parsed, after a document became another.
    pub(crate) fn make_room(&self) {
        let parsed: usize = self.documents.iter().map(Document::parsed).sum();
        self.room.set(self.config.cache_size.saturating_sub(parsed));
    }

    pub(crate) fn acquire(&self, mode: LockMode) -> Result<F::Lock> {
        self.files.try_acquire(&self.lock_name, mode)?.ok_or_else(|| {
            Error::new(ErrorKind::Busy, format!("another process holds the lock file {}", self.lock_name))
        })
    }

    /// Whether a commit over several documents began and did not end.
    pub(crate) fn is_unfinished(&self) -> Result<bool> {
        Ok(self.config.storage_type == StorageType::SplitFiles && self.files.stat(RECORD)?.is_some())
    }

    /// Runs `work` with the exclusive lock, which is kept while `load` has changes that are not written.
    fn exclusively<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.in_transaction.get() {
            return Err(Error::new(ErrorKind::Busy, "a transaction is open"));
        }
        if self.lock.is_none() {
            self.lock = Some(self.acquire(LockMode::Exclusive)?);
        }
        let result = match self.is_unfinished() {
            Ok(true) => self.recover(),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        let result = result.and_then(|()| work(self));
        if self.pending.is_empty() {
            self.lock = None;
        }
        result
    }

    /// The exclusive lock with nothing pending, for a transaction.
    pub(crate) fn take_exclusive(&mut self) -> Result<F::Lock> {
        self.flush()?;
        let lock = self.acquire(LockMode::Exclusive)?;
        if self.is_unfinished()? {
            self.recover()?;
        }
        Ok(lock)
    }

    /// Makes a collection's document current for a read of what is committed or pending.
    fn refresh_to_read(&mut self, collection: &str) -> Result<usize> {
        let document = self.document_of(collection)?;
        if self.lock.is_none() && !self.in_transaction.get() && self.is_unfinished()? {
            self.exclusively(|_| Ok(()))?;
        }
        self.refresh(document)?;
        Ok(document)
    }

    /// Writes what `load` gathered. Where that fails it is forgotten: it was never promised.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending);
        let result = (0..self.documents.len()).try_for_each(|document| {
            if !self.documents[document].would_change(&pending) {
                return Ok(());
            }
            // Nobody else may have written, but an editor asks for no lock.
            self.refresh(document)?;
            self.commit_document(document, &pending)
        });
        pending = Changes::default();
        self.pending = pending;
        self.lock = None;
        result
    }

    pub(crate) fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        self.refresh_to_read(collection)?;
        self.get_with(&self.pending, collection, ids)
    }

    pub(crate) fn get_with(&self, changes: &Changes, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let definition = self.collection(collection)?;
        let document = &self.documents[self.document_of(collection)?];
        let entity = |id: &String| Some(entity_of(&definition, id, document.get(changes, collection, id)?.body));
        Ok(ids.iter().map(entity).collect())
    }

    pub(crate) fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        self.refresh_to_read(collection)?;
        self.find_with(&self.pending, collection, query)
    }

    pub(crate) fn find_with(&self, changes: &Changes, collection: &str, query: &Query) -> Result<Page> {
        let definition = self.collection(collection)?;
        let document = &self.documents[self.document_of(collection)?];
        find::find(&definition, document, changes, &self.room, query)
    }

    pub(crate) fn count(&mut self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        let document = self.refresh_to_read(collection)?;
        let definition = self.collection(collection)?;
        let document = &self.documents[document];
        let Some(filter) = filter else { return Ok(Some(document.count(&self.pending, collection))) };
        let mut count = 0;
        for (id, found) in document.iter(&self.pending, collection, None) {
            count += u64::from(filter.matches(&*parse_stored(&definition, id, &found, &self.room)?));
        }
        Ok(Some(count))
    }

    pub(crate) fn scan(
        &mut self,
        collection: &str,
        segment: u32,
        segments: u32,
        cursor: Option<&[u8]>,
        max_bytes: u32,
    ) -> Result<Batch> {
        if segment >= segments {
            return Err(Error::invalid(format!("there is no segment {segment} of {segments}")));
        }
        let after = cursor.map(std::str::from_utf8).transpose().map_err(|_| Error::invalid("the cursor is not one"))?;
        let document = self.refresh_to_read(collection)?;
        let definition = self.collection(collection)?;
        let mut batch = Batch::default();
        let mut bytes = 0;
        for (id, found) in self.documents[document].iter(&self.pending, collection, after) {
            if text::hash(id.as_bytes()) % u64::from(segments) != u64::from(segment) {
                continue;
            }
            if !batch.entities.is_empty() && bytes >= max_bytes as usize {
                batch.next = batch.entities.last().map(|last: &Entity| last.id.clone().into_bytes());
                break;
            }
            let entity = entity_of(&definition, id, found.body);
            bytes += entity.body.len();
            batch.entities.push(entity);
        }
        Ok(batch)
    }

    pub(crate) fn apply(&mut self, writes: Vec<Write>, atomic: bool, now: &str) -> Result<Vec<Result<Outcome>>> {
        if atomic {
            entity::check_distinct(&writes)?;
        }
        self.exclusively(|store| {
            store.flush_keeping_lock()?;
            let mut changes = Changes::default();
            let mut results = Vec::with_capacity(writes.len());
            let mut refreshed = vec![false; store.documents.len()];
            for (i, write) in writes.into_iter().enumerate() {
                let document = store.document_of(write.target().0);
                if let Ok(document) = document
                    && !std::mem::replace(&mut refreshed[document], true)
                {
                    store.refresh(document)?;
                }
                match store.stage(&mut changes, write, now) {
                    Err(error) if atomic => return Err(error.at_write(i)),
                    result => results.push(result),
                }
            }
            store.commit_changes(&changes)?;
            Ok(results)
        })
    }

    fn flush_keeping_lock(&mut self) -> Result<()> {
        let lock = self.lock.take();
        let flushed = self.flush();
        self.lock = lock;
        flushed
    }

    /// Adds a write to `changes`; one that fails adds nothing. The document is current.
    pub(crate) fn stage(&self, changes: &mut Changes, write: Write, now: &str) -> Result<Outcome> {
        let (name, id) = write.target();
        let collection = self.collection(name)?;
        let document = &self.documents[self.document_of(name)?];
        let stored = match document.get(changes, name, id) {
            Some(found) => {
                Some(found.parse(&self.room, json::parse_object).map_err(|error| corrupt(name, id, &error))?)
            }
            None => None,
        };
        let version = stored.as_ref().map(|stored| entity::version_of(&collection, stored));
        match write {
            Write::Put(Put { collection: name, id, body, expect }) => {
                check_size(&name, &id, body.len())?;
                let body = entity::check(&collection, Some(&id), &body)?;
                entity::check_expectation(expect, version, &name, &id)?;
                let stamped = entity::stamp(&collection, stored.as_deref(), body, now);
                let body = json::to_vec(&stamped);
                check_size(&name, &id, body.len())?;
                changes.set(&name, &id, Some(body));
                Ok(Outcome { version: entity::version_of(&collection, &stamped), existed: stored.is_some() })
            }
            Write::Remove(removal) => {
                entity::check_expectation(removal.expect, version, &removal.collection, &removal.id)?;
                if stored.is_some() {
                    changes.set(&removal.collection, &removal.id, None);
                }
                Ok(Outcome { version: version.unwrap_or(0), existed: stored.is_some() })
            }
        }
    }

    pub(crate) fn load(&mut self, collection: &str, entities: Vec<Entity>, existing: Existing) -> Result<Loaded> {
        let document = self.document_of(collection)?;
        let definition = self.collection(collection)?;
        self.exclusively(|store| {
            store.refresh(document)?;
            let mut loaded = Loaded::default();
            for (position, entity) in (0..).zip(entities) {
                match store.load_one(&definition, document, entity, existing) {
                    Ok(Some(true)) => loaded.written += 1,
                    Ok(Some(false)) => loaded.unchanged += 1,
                    Ok(None) => loaded.skipped += 1,
                    Err(error) => loaded.refused.push((position, error)),
                }
            }
            let gathered_max = store.documents[document].len().max(store.config.write_buffer_size).max(LOAD_BYTES_MIN);
            if store.pending.bytes > gathered_max {
                store.flush_keeping_lock()?;
            }
            Ok(loaded)
        })
    }

    /// Whether it was written; none where it was skipped.
    fn load_one(
        &mut self,
        collection: &Collection,
        document: usize,
        entity: Entity,
        existing: Existing,
    ) -> Result<Option<bool>> {
        let (name, id) = (&collection.name, &entity.id);
        check_size(name, id, entity.body.len())?;
        let given = entity::parse(collection, Some(id), &entity.body)?;
        if let Some(found) = self.documents[document].get(&self.pending, name, id) {
            // What is stored and cannot be read is other content.
            let is_equal = json::parse_object(found.body).is_ok_and(|stored| json::equal_objects(&stored, &given));
            match existing {
                _ if is_equal => return Ok(Some(false)),
                Existing::Skip => return Ok(None),
                Existing::Overwrite => {}
                Existing::Fail => {
                    let version = Some(text::version(found.body, &collection.stamps.version));
                    entity::check_expectation(Expectation::Absent, version, name, id)?;
                }
            }
        }
        self.pending.set(name, id, Some(text::compact(&entity.body)));
        Ok(Some(true))
    }

    pub(crate) fn stored_collections(&mut self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self.config.storage_type {
            StorageType::SingleFile => {
                self.refresh(0)?;
                self.documents[0].collections().map(str::to_owned).collect()
            }
            StorageType::SplitFiles => {
                let mut names = Vec::new();
                // The other layout may use the same directory.
                let mut known = vec![self.config.filenames.single_file.clone()];
                for (name, document) in self.split_documents() {
                    if document.exists(&self.files, self.config.enable_compression)? {
                        names.push(name);
                    }
                    known.push(document.path(false));
                }
                // A document that nobody configured is a collection that nobody configured.
                for (path, _) in self.files.entries("")? {
                    let path = path.strip_suffix(".gz").unwrap_or(&path);
                    let Some(name) = path.strip_suffix(".json").filter(|name| !name.starts_with('.')) else { continue };
                    if !known.iter().any(|known| known == path) && !names.iter().any(|known| known == name) {
                        names.push(name.to_owned());
                    }
                }
                names
            }
        };
        for pending in self.pending.collections() {
            if !names.iter().any(|name| name == pending) {
                names.push(pending.to_owned());
            }
        }
        Ok(names)
    }

    /// Of every collection that has a file by name, configured in the store or not.
    fn split_documents(&self) -> impl Iterator<Item = (String, Document)> {
        let named = self.config.filenames.split_files.keys().filter(|name| !self.collections.contains_key(*name));
        self.collections
            .keys()
            .chain(named)
            .map(|name| (name.clone(), Document::new(self.config.split_file(name), Content::Entities(name.clone()))))
    }

    pub(crate) fn prepare(&mut self, dry_run: bool) -> Result<Vec<String>> {
        let compressed = self.config.enable_compression;
        let mut missing = Vec::new();
        for (i, document) in self.documents.iter().enumerate() {
            if !document.exists(&self.files, compressed)? {
                missing.push((i, document.path(compressed)));
            }
        }
        if dry_run || missing.is_empty() {
            return Ok(missing.into_iter().map(|(_, path)| format!("make the document {path}")).collect());
        }
        self.exclusively(|store| {
            let mut done = Vec::new();
            for (i, path) in missing {
                store.refresh(i)?;
                // Somebody else may have made it since.
                if store.documents[i].read_from().is_none() {
                    let nothing = store.unchanged.clone();
                    store.commit_document(i, &nothing)?;
                    done.push(format!("made the document {path}"));
                }
            }
            Ok(done)
        })
    }

    pub(crate) fn check(&mut self) -> Result<String> {
        let findings = RefCell::new(Vec::new());
        let finding = |level: &str, message: String| {
            findings.borrow_mut().push(serde_json::json!({ "level": level, "message": message }));
        };
        let fault = |error: &Error| finding("error", error.message.clone());
        let compressed = self.config.enable_compression;
        let (mut reachable, mut readable) = (true, true);
        let (mut documents, mut collections) = (Vec::new(), Map::new());
        for i in 0..self.documents.len() {
            let path = self.documents[i].path(compressed);
            if let Err(error) = self.documents[i].exists(&self.files, compressed) {
                (reachable, readable) = (false, false);
                fault(&error);
                continue;
            }
            if let Err(error) = self.refresh(i) {
                readable = false;
                fault(&error);
                continue;
            }
            let document = &self.documents[i];
            let Some((path, stat)) = document.read_from() else {
                finding("info", format!("there is no {path} yet: the first write or `prepare` makes it"));
                continue;
            };
            documents.push(serde_json::json!({ "file": path, "bytes": stat.size }));
            for name in document.collections() {
                let Some(collection) = self.collections.get(name) else {
                    finding(
                        "warning",
                        format!(
                            "{path} holds the collection {}, which is not configured: it is kept as it is",
                            json::quoted(name)
                        ),
                    );
                    continue;
                };
                let (mut count, mut unlike, mut example) = (0_u64, 0_u64, None);
                for (id, found) in document.iter(&self.pending, name, None) {
                    count += 1;
                    if let Err(error) = entity::parse(collection, Some(id), found.body) {
                        unlike += 1;
                        example.get_or_insert(error.message);
                    }
                }
                if let Some(example) = example {
                    let message =
                        format!("{unlike} of {count} entities of {name} cannot be used as they are; one is {example}");
                    finding("error", message);
                }
                collections.insert(name.to_owned(), serde_json::json!({ "entities": count }));
            }
        }
        if self.is_unfinished().unwrap_or(false) {
            finding("warning", "a commit over several documents did not end: the next write completes it".to_owned());
        }
        let writable = match self.try_to_write() {
            Ok(()) => true,
            Err(error) => {
                fault(&error);
                false
            }
        };
        let free_space = self.files.free_space().inspect_err(fault).ok();
        let report = serde_json::json!({
            "reachable": reachable,
            "readable": readable,
            "writable": writable,
            "findings": findings.take(),
            "documents": documents,
            "collections": collections,
            "free_bytes": free_space,
        });
        Ok(report.to_string())
    }

    /// Writes a file beside the document, which is gone when it is dropped.
    fn try_to_write(&self) -> Result<()> {
        let replacement = self.files.replace(
            &self
                .documents
                .first()
                .map_or(".larder.check".to_owned(), |document| document.path(self.config.enable_compression)),
        )?;
        self.files.replacement_write(&replacement, b"{}")
    }
}

/// The entity as it crosses the contract, whatever its body is: the host looks at that.
pub(crate) fn entity_of(collection: &Collection, id: &str, body: &[u8]) -> Entity {
    Entity { id: id.to_owned(), version: text::version(body, &collection.stamps.version), body: text::compact(body) }
}

/// The members of what is stored.
///
/// # Errors
/// `corrupt`, naming the entity, where it is no object, is ambiguous, or has another key than its name.
pub(crate) fn parse_stored(
    collection: &Collection,
    id: &str,
    found: &Found<'_>,
    room: &Cell<usize>,
) -> Result<Rc<Map<String, Value>>> {
    let parsed = found.parse(room, json::parse_object).map_err(|error| corrupt(&collection.name, id, &error))?;
    match entity::key_of(collection, &parsed) {
        Ok(key) if key == id => Ok(parsed),
        Ok(key) => {
            let [id, member, key] = [id, &collection.key, key].map(json::quoted);
            Err(Error::corrupt(format!("{} {id}: the key member {member} holds {key}", collection.name)))
        }
        Err(error) => Err(corrupt(&collection.name, id, &error)),
    }
}

fn corrupt(collection: &str, id: &str, error: &Error) -> Error {
    Error::corrupt(format!("{collection} {} cannot be read as an entity: {error}", json::quoted(id)))
}

fn check_size(collection: &str, id: &str, size: usize) -> Result<()> {
    if size <= ENTITY_BYTES_MAX {
        return Ok(());
    }
    let id = json::quoted(id);
    Err(Error::invalid(format!("{collection} {id} has {size} bytes; an entity has at most {ENTITY_BYTES_MAX}")))
}
