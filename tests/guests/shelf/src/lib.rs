//! A whole strategy as somebody outside the project would write it: one file an entity, `<collection>/<digest of id>.json`.
//!
//! It declares no feature, applies no filter and sorts nothing: what a strategy leaves, the host does. Tests drop it into
//! a plugins directory beside the shipped ones, and the host knows it by its file alone.
//!
//! With `careless` in its section it makes a mistake that shows only where something goes wrong.

use larder_guest::{Files, LockMode, Strategy};
use larder_model::{
    Batch, Collection, Description, Entity, Error, ErrorKind, Existing, Features, Isolation, Loaded, Opened, Outcome,
    Page, Query, Result, Retry, Violation, Write, entity, filter::Filter, json,
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The largest body.
const ENTITY_BYTES_MAX: u32 = 1 << 20;
/// A rule that no other strategy has, so that somebody has one: only `validate` knows it.
const MEMBERS_MAX: usize = 1000;
/// What `files.entries` lists at most: a list as long as this may have been cut.
const ENTRIES_MAX: usize = 10_000;
/// Held while an entity is read, compared and replaced.
const LOCK: &str = "shelf.lock";

#[cfg(target_family = "wasm")]
larder_guest::export_strategy!(crate::Shelf<larder_guest::HostFiles>);

/// An open store. Nothing is kept in memory: several of these serve one directory.
pub struct Shelf<F> {
    files: F,
    collections: Vec<Collection>,
    extension: String,
    careless: String,
}

impl<F: Files> Shelf<F> {
    fn collection(&self, name: &str) -> Result<&Collection> {
        let found = self.collections.iter().find(|collection| collection.name == name);
        found.ok_or_else(|| Error::invalid(format!("there is no collection {name:?}")))
    }

    /// An id may be longer than a file name and hold any sign, so a file is named after its digest.
    fn path(&self, collection: &str, id: &str) -> String {
        let digits: String = Sha256::digest(id).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{collection}/{digits}.{}", self.extension)
    }

    /// The files of a collection, sorted by name, from the one behind `after` on.
    fn paths(&self, collection: &str, after: Option<&[u8]>) -> Result<Vec<String>> {
        self.collection(collection)?;
        let entries = self.files.entries(&format!("{collection}/"))?;
        if entries.len() >= ENTRIES_MAX {
            let message = format!("{collection}: a shelf holds fewer than {ENTRIES_MAX} entities of a collection");
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        let ours = entries.into_iter().map(|(path, _)| path).filter(|path| path.ends_with(&self.extension));
        Ok(ours.filter(|path| after.is_none_or(|after| path.as_bytes() > after)).collect())
    }

    /// What a file holds, under the id that it says.
    fn read(&self, collection: &Collection, path: &str) -> Result<Option<Entity>> {
        let body = match self.files.read(path, 0, ENTITY_BYTES_MAX + 1) {
            Err(_) if self.is_careless("what cannot be read is not there") => None,
            body => body?,
        };
        let Some(body) = body else { return Ok(None) };
        if body.len() > ENTITY_BYTES_MAX as usize {
            return Err(Error::corrupt(format!("{path} is larger than an entity can be")));
        }
        let fields = json::parse_object(&body).map_err(|error| Error::corrupt(format!("{path}: {error}")))?;
        let id = entity::key_of(collection, &fields).map_err(|error| Error::corrupt(format!("{path}: {error}")))?;
        Ok(Some(Entity { id: id.to_owned(), version: entity::version_of(collection, &fields), body }))
    }

    fn stored(&self, collection: &Collection, id: &str) -> Result<Option<Entity>> {
        self.read(collection, &self.path(&collection.name, id))
    }

    fn check_members(fields: &Map<String, Value>) -> Result<()> {
        if fields.len() > MEMBERS_MAX {
            let message = format!("an entity on a shelf has at most {MEMBERS_MAX} members");
            return Err(Error::new(ErrorKind::Rejected, message));
        }
        Ok(())
    }

    fn put(&self, collection: &str, id: &str, body: &[u8]) -> Result<()> {
        if body.len() > ENTITY_BYTES_MAX as usize {
            return Err(Error::invalid(format!("an entity has at most {ENTITY_BYTES_MAX} bytes")));
        }
        Self::check_members(&json::parse_object(body)?)?;
        let path = self.path(collection, id);
        if self.is_careless("in place") {
            self.files.remove(&path)?;
            return self.files.append(&path, body).map(drop);
        }
        let replacement = self.files.replace(&path)?;
        self.files.replacement_write(&replacement, body)?;
        match self.files.replacement_commit(replacement, None, true) {
            Err(_) if self.is_careless("acknowledges at once") => Ok(()),
            Err(error) if self.is_careless("knows better") => Err(Error { retry: Retry::Never, ..error }),
            committed => committed.map(drop),
        }
    }

    fn is_careless(&self, how: &str) -> bool {
        self.careless == how
    }

    fn write(&self, write: Write, now: &str) -> Result<Outcome> {
        let (collection, id) = write.target();
        let collection = self.collection(collection)?;
        let stored = self.stored(collection, id)?;
        let version = stored.as_ref().map(|stored| stored.version);
        entity::check_expectation(write.expect(), version, &collection.name, id)?;
        match &write {
            Write::Put(put) => {
                let given = entity::check(collection, Some(id), &put.body)?;
                let stored = stored.map(|stored| json::parse_object(&stored.body)).transpose()?;
                let stamped = entity::encode(collection, &entity::stamp(collection, stored.as_ref(), given, now))?;
                self.put(&collection.name, id, &stamped.body)?;
                Ok(Outcome { version: stamped.version, existed: stored.is_some() })
            }
            Write::Remove(_) => {
                let existed = self.files.remove(&self.path(&collection.name, id))?;
                Ok(Outcome { version: version.unwrap_or(0), existed })
            }
        }
    }

    /// Whether it was written; none where other content was left as it is.
    fn load_one(&self, collection: &Collection, given: &Entity, existing: Existing) -> Result<Option<bool>> {
        let fields = entity::parse(collection, Some(&given.id), &given.body)?;
        if let Some(stored) = self.stored(collection, &given.id)? {
            match existing {
                _ if json::equal_objects(&json::parse_object(&stored.body)?, &fields) => return Ok(Some(false)),
                Existing::Skip => return Ok(None),
                Existing::Overwrite => {}
                Existing::Fail => {
                    let message = format!("{} {:?}: already exists", collection.name, given.id);
                    return Err(Error::new(ErrorKind::AlreadyExists, message));
                }
            }
        }
        self.put(&collection.name, &given.id, &given.body)?;
        Ok(Some(true))
    }

    fn lock(&self) -> Result<F::Lock> {
        let lock = self.files.try_acquire(LOCK, LockMode::Exclusive)?;
        lock.ok_or_else(|| Error::new(ErrorKind::Busy, "another process writes"))
    }
}

fn undeclared(feature: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("a shelf has no {feature}"))
}

impl<F: Files + Default> Strategy for Shelf<F> {
    type Transaction = ();

    fn describe() -> Description {
        Description {
            strategy: "shelf".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: Features::default(),
            isolations: Vec::new(),
            max_atomic_writes: 0,
            max_entity_bytes: ENTITY_BYTES_MAX.into(),
            config_schema: r#"{
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "extension": {
                        "type": "string",
                        "pattern": "^[a-z0-9]{1,16}$",
                        "default": "json",
                        "description": "What the names of files end in, behind the dot."
                    },
                    "careless": {
                        "enum": ["what cannot be read is not there", "in place", "acknowledges at once", "knows better"],
                        "description": "Which mistake it makes."
                    }
                }
            }"#
            .to_owned(),
        }
    }

    fn open(config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        let section: Map<String, Value> = json::parse_object(config.as_bytes())?;
        let extension = section.get("extension").and_then(Value::as_str).unwrap_or("json").to_owned();
        let careless = section.get("careless").and_then(Value::as_str).unwrap_or_default().to_owned();
        let shelf = Shelf { files: F::default(), collections, extension, careless };
        Ok((shelf, Opened { has_rules: true, ..Opened::default() }))
    }

    /// Folders cannot be listed, so only the configured ones are found.
    fn stored_collections(&mut self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for collection in &self.collections {
            if !self.paths(&collection.name, None)?.is_empty() {
                names.push(collection.name.clone());
            }
        }
        Ok(names)
    }

    fn prepare(&mut self, _dry_run: bool, _extend: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn check(&mut self, _thorough: bool) -> Result<String> {
        let free = self.files.free_space()?;
        Ok(format!(
            r#"{{"reachable": true, "readable": true, "writable": true, "findings": [], "free_bytes": {free}}}"#
        ))
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let collection = self.collection(collection)?;
        ids.iter().map(|id| self.stored(collection, id)).collect()
    }

    fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        let definition = self.collection(collection)?;
        // One that is declared may be named, as with any strategy; it makes nothing faster here.
        if let Some(name) = &query.index
            && !definition.indexes.iter().any(|index| index.name == *name)
        {
            return Err(Error::invalid(format!("{collection} has no index {name:?}")));
        }
        let mut page = Page {
            entities: Vec::new(),
            next: None,
            unapplied: (0..).take(query.filter.as_ref().map_or(0, |filter| filter.conjuncts().len())).collect(),
            sorted: query.order_by.is_empty(),
            index_used: None,
            notes: Vec::new(),
            cost: None,
        };
        let mut bytes = 0;
        let mut last = None;
        for path in self.paths(collection, query.cursor.as_deref())? {
            if page.entities.len() >= query.limit as usize || bytes >= query.max_bytes as usize {
                page.next = last.map(String::into_bytes);
                break;
            }
            // One that was removed meanwhile is no longer there.
            if let Some(entity) = self.read(definition, &path)? {
                bytes += entity.body.len();
                page.entities.push(entity);
            }
            last = Some(path);
        }
        Ok(page)
    }

    fn count(&mut self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        match filter {
            None => Ok(Some(self.paths(collection, None)?.len() as u64)),
            Some(_) => Ok(None),
        }
    }

    fn scan(
        &mut self,
        collection: &str,
        segment: u32,
        segments: u32,
        cursor: Option<&[u8]>,
        max_bytes: u32,
    ) -> Result<Batch> {
        let definition = self.collection(collection)?;
        let mut batch = Batch::default();
        let mut bytes = 0;
        let mut last = None;
        for path in self.paths(collection, cursor)? {
            if path.bytes().map(u32::from).sum::<u32>() % segments != segment {
                continue;
            }
            if !batch.entities.is_empty() && bytes >= max_bytes as usize {
                batch.next = last.map(String::into_bytes);
                break;
            }
            if let Some(entity) = self.read(definition, &path)? {
                bytes += entity.body.len();
                batch.entities.push(entity);
            }
            last = Some(path);
        }
        Ok(batch)
    }

    fn apply(&mut self, writes: Vec<Write>, atomic: bool, now: &str) -> Result<Vec<Result<Outcome>>> {
        if atomic {
            return Err(undeclared("atomic apply"));
        }
        let _lock = self.lock()?;
        Ok(writes.into_iter().map(|write| self.write(write, now)).collect())
    }

    fn load(&mut self, collection: &str, entities: Vec<Entity>, existing: Existing) -> Result<Loaded> {
        let definition = self.collection(collection)?;
        let _lock = self.lock()?;
        let mut loaded = Loaded::default();
        for (position, entity) in (0..).zip(&entities) {
            match self.load_one(definition, entity, existing) {
                Ok(Some(true)) => loaded.written += 1,
                Ok(Some(false)) => loaded.unchanged += 1,
                Ok(None) => loaded.skipped += 1,
                Err(error) => loaded.refused.push((position, error)),
            }
        }
        Ok(loaded)
    }

    fn validate(&mut self, collection: &str, entities: Vec<Entity>) -> Result<Vec<Violation>> {
        let definition = self.collection(collection)?;
        let rule = |given: &Entity| {
            let parsed = entity::parse(definition, Some(&given.id), &given.body);
            parsed.and_then(|fields| Self::check_members(&fields)).err()
        };
        let violations = (0..).zip(&entities).filter_map(|(position, given)| Some((position, rule(given)?)));
        Ok(violations.map(|(entity, error)| Violation { entity, rule: error.message }).collect())
    }

    fn begin(&mut self, _isolation: Option<Isolation>, _read_only: bool) -> Result<()> {
        Err(undeclared("transactions"))
    }

    fn transaction_get(&mut self, _: &mut (), _: &str, _: &[String], _: bool) -> Result<Vec<Option<Entity>>> {
        Err(undeclared("transactions"))
    }

    fn transaction_find(&mut self, _: &mut (), _: &str, _: &Query) -> Result<Page> {
        Err(undeclared("transactions"))
    }

    fn transaction_apply(&mut self, _: &mut (), _: Vec<Write>, _: &str) -> Result<Vec<Outcome>> {
        Err(undeclared("transactions"))
    }

    fn commit(&mut self, (): ()) -> Result<()> {
        Err(undeclared("transactions"))
    }

    fn rollback(&mut self, (): ()) -> Result<()> {
        Err(undeclared("transactions"))
    }
}
