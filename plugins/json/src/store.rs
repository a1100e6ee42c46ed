//! The store: which documents there are, who may read and write them when, and what each function of the contract does.
//!
//! What is stored is what the documents hold and, over that, what the journal holds. A commit is one record of the
//! journal, appended with the exclusive lock in the hand; when the journal has outgrown its bound, and at the end, it is
//! folded into the documents.
//!
//! Reads take no lock. Each call looks whether the journal and the document are as it knows them, and reads what was
//! appended, or everything anew where a document was replaced. Where bodies were read from the disk it looks once more
//! when it has them: what was replaced meanwhile is read again.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    rc::Rc,
};

use larder_guest::{FileStat, Files, LockMode};
use larder_model::{
    Batch, Collection, Entity, Error, ErrorKind, Existing, Expectation, Loaded, Opened, Outcome, Page, Put, Query,
    Result, Retry, Write, entity, filter::Filter, json,
};
use serde_json::{Map, Value};

use crate::{
    changes::Changes,
    clock,
    config::{Config, StorageType},
    document::{Content, Document, Known},
    find,
    fold::backups,
    index::{Cache, Entry, Kept, Place},
    journal::{Appendix, Base, Journal, Line},
    reader::{Form, Reader},
    text,
};

/// The largest body.
pub(crate) const ENTITY_BYTES_MAX: usize = 16 << 20;
/// How often what changes while it is read is read again before the lock is asked for.
const READ_ATTEMPTS_MAX: u32 = 10;
/// Bodies that are read at once: from a compressed document many, because each of its members holds the bodies of many
/// entities, whose ids may lie far apart.
const PLAIN_BYTES: usize = 1 << 20;
const COMPRESSED_BYTES: usize = 32 << 20;
/// A journal of up to this size is read at once to be folded: its bodies are wanted in the order of the document, in which
/// none lies beside the next, and to read each by itself cost as much as to append it.
const FOLDED_AT_ONCE_BYTES_MAX: u64 = 32 << 20;
/// Scans that are read ahead for.
const WINDOWS_MAX: usize = 4;

/// An open store over the directory `F`.
pub struct JsonStore<F: Files> {
    pub(crate) files: F,
    pub(crate) config: Config,
    pub(crate) collections: BTreeMap<String, Rc<Collection>>,
    pub(crate) documents: Vec<Document>,
    pub(crate) journal: Option<Journal>,
    pub(crate) journal_path: String,
    lock_path: String,
    /// Locked by everybody who has the store open, so that the last one knows it.
    users_path: String,
    user: Option<F::Lock>,
    /// Whether a transaction is open, which then holds the lock.
    pub(crate) in_transaction: Rc<Cell<bool>>,
    /// Whether a call or a transaction of this store holds the lock.
    holds_lock: Rc<Cell<bool>>,
    /// Whether anything was committed, so that [`JsonStore::close`] has something to leave in order.
    has_written: bool,
    /// Whether commits wait for [`JsonStore::flush`].
    pub(crate) is_unsynced: bool,
    has_loaded: bool,
    /// How much of the journal is known to be on the disk.
    pub(crate) synced_end: u64,
    /// Whether a sync of this journal failed. The system may say of the next one that all is well, though what it could not
    /// write is lost; what it holds in memory is still right, so the documents are written from that.
    pub(crate) cannot_sync: bool,
    /// After a fold that failed: the size of the journal at which the next one is tried.
    fold_from: u64,
    /// Collections that nobody configured here, and that the journal has entities of.
    journalled: BTreeSet<String>,
    cache: Cache,
    /// Whether the call under way has read bodies from the disk.
    has_read: Cell<bool>,
    windows: RefCell<Vec<Window>>,
    /// For calls that read what is committed.
    pub(crate) unchanged: Rc<Changes>,
}

/// Bodies that were read ahead for a scan of a compressed document.
struct Window {
    collection: String,
    segment: u32,
    segments: u32,
    /// The id that the scan has come to.
    after: Option<String>,
    entities: VecDeque<Entity>,
    /// Whether there is nothing behind these.
    is_last: bool,
    of: State,
}

/// What a window was read from.
type State = (Option<FileStat>, Option<u64>);

/// Which bodies are kept in memory once they were read.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Keep {
    /// And others go, where there is no room.
    Always,
    WhileThereIsRoom,
    Never,
}

/// An entity that was found.
pub(crate) enum Found<'a> {
    Kept(Rc<Kept>),
    /// As it stands in the document or the journal.
    Stored(Vec<u8>),
    Changed(&'a [u8]),
}

impl Found<'_> {
    pub(crate) fn body(&self) -> &[u8] {
        match self {
            Found::Kept(kept) => &kept.entity.body,
            Found::Stored(body) => body,
            Found::Changed(body) => body,
        }
    }

    pub(crate) fn parse(&self) -> Result<Rc<Map<String, Value>>> {
        match self {
            Found::Kept(kept) => kept.parse(json::parse_object),
            other => json::parse_object(other.body()).map(Rc::new),
        }
    }

    /// The entity as it crosses the contract, whatever its body is: the host looks at that.
    pub(crate) fn entity(&self, collection: &Collection, id: &str) -> Entity {
        match self {
            Found::Kept(kept) => kept.entity.clone(),
            other => entity_of(collection, id, other.body()),
        }
    }
}

/// Says that the lock is held, until it is dropped.
struct Holding(Rc<Cell<bool>>);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// The lock of the whole store.
pub(crate) struct Locked<F: Files> {
    _lock: F::Lock,
    _holding: Holding,
}

impl<F: Files> JsonStore<F> {
    /// Opens the store in `files`. Nothing is read yet.
    ///
    /// # Errors
    /// `invalid-argument` where the section is not what the schema says, or two collections share a file.
    pub fn open_in(files: F, config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        let config = Config::parse(config)?;
        let mut documents = Vec::new();
        let hidden = match config.storage_type {
            StorageType::SingleFile => {
                let name = config.filenames.single_file.clone();
                documents.push(Document::new(name.clone(), Content::Collections));
                match name.rsplit_once('/') {
                    Some((folder, name)) => format!("{folder}/.{name}"),
                    None => format!(".{name}"),
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
                ".larder".to_owned()
            }
        };
        let cache = Cache::new(config.cache_size);
        let collections = collections.into_iter().map(|it| (it.name.clone(), Rc::new(it))).collect();
        let store = JsonStore {
            files,
            config,
            collections,
            documents,
            journal: None,
            journal_path: format!("{hidden}.journal"),
            lock_path: format!("{hidden}.lock"),
            users_path: format!("{hidden}.users"),
            user: None,
            in_transaction: Rc::default(),
            holds_lock: Rc::default(),
            has_written: false,
            is_unsynced: false,
            has_loaded: false,
            synced_end: 0,
            cannot_sync: false,
            fold_from: 0,
            journalled: BTreeSet::new(),
            cache,
            has_read: Cell::default(),
            windows: RefCell::default(),
            unchanged: Rc::default(),
        };
        // What `flush` would sync, nobody wants synced; what was loaded it may fold.
        let opened = Opened { needs_no_flush: !store.config.sync_writes, ..Opened::default() };
        Ok((store, opened))
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

    /// Makes what is known of a document and the journal what is on the disk.
    ///
    /// # Errors
    /// `corrupt` where the document or the journal cannot be read, or the one does not belong to the other.
    pub(crate) fn refresh(&mut self, document: usize) -> Result<()> {
        let compressed = self.config.enable_compression;
        for _ in 0..READ_ATTEMPTS_MAX {
            let stat = self.files.stat(&self.journal_path)?;
            let file = self.documents[document].find_file(&self.files, compressed)?;
            let is_journal_known = stat == self.journal.as_ref().map(|journal| journal.stat);
            if is_journal_known && self.documents[document].is_read_from(file.as_ref()) {
                return Ok(());
            }
            let mut read = if is_journal_known { Ok(()) } else { self.follow_journal(stat) };
            if read.is_ok() && !self.documents[document].is_read_from(file.as_ref()) {
                read = self.read_document(document, file.clone());
            }
            // What was read may be of a journal and a document that belong to different times, and so may be an error.
            let is_stable = match &read {
                Ok(()) => self.is_current(document)?,
                Err(_) => {
                    let at_rest = self.documents[document].find_file(&self.files, compressed)? == file;
                    at_rest && self.files.stat(&self.journal_path)? == stat
                }
            };
            if is_stable {
                self.join_users();
                return read;
            }
        }
        if self.holds_lock.get() {
            let name = &self.documents[document].name;
            return Err(Error::new(ErrorKind::Unavailable, format!("{name} changes faster than it can be read")));
        }
        // Nobody writes while this is held.
        let _lock = self.lock(LockMode::Shared)?;
        self.refresh(document)
    }

    /// Whether a document is the one that was read, and the journal too, whatever was appended to it.
    fn is_current(&self, document: usize) -> Result<bool> {
        let file = self.documents[document].find_file(&self.files, self.config.enable_compression)?;
        Ok(self.documents[document].is_read_from(file.as_ref())
            && match &self.journal {
                Some(journal) => journal.is_there(&self.files, &self.journal_path)?,
                None => self.files.stat(&self.journal_path)?.is_none(),
            })
    }

    /// Reads what was appended to the journal, or all of it where it is another.
    fn follow_journal(&mut self, stat: Option<FileStat>) -> Result<()> {
        let goes_on = match (&self.journal, stat) {
            (Some(journal), Some(stat)) => {
                stat.size >= journal.end && journal.is_there(&self.files, &self.journal_path)?
            }
            _ => false,
        };
        if !goes_on {
            // What was laid over the documents is folded into them, or gone.
            self.journal = None;
            self.synced_end = 0;
            self.cannot_sync = false;
            self.forget_where(|document| document.has_journal);
        }
        let Some(stat) = stat else { return Ok(()) };
        let mut journal = self.journal.take().unwrap_or_else(|| Journal::unread(stat));
        let (documents, journalled) = (RefCell::new(&mut self.documents), RefCell::new(&mut self.journalled));
        let read = journal.read_on(
            &self.files,
            &self.journal_path,
            stat,
            |base| follow_base(&self.files, &mut documents.borrow_mut(), base),
            |line| follow_line(&mut documents.borrow_mut(), &mut journalled.borrow_mut(), &line),
        );
        match read {
            Ok(None) => {
                self.journal = Some(journal);
                Ok(())
            }
            Ok(Some(error)) | Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }

    /// Reads a document, and lays over it what the journal has for it.
    fn read_document(&mut self, document: usize, file: Option<(String, FileStat)>) -> Result<()> {
        let read = self.read_file(document, file).and_then(|()| self.lay_journal_over(document));
        let read = read.map_err(|error| self.name_backup(document, error));
        if read.is_err() {
            self.documents[document].forget();
        }
        self.cache.forget_the_dead();
        read
    }

    /// The error about a document that cannot be read, with the backup that whoever repairs it may want.
    fn name_backup(&self, document: usize, error: Error) -> Error {
        let path = self.documents[document].path(self.config.enable_compression);
        let newest = backups(&self.files, &path).ok().and_then(|mut names| names.pop());
        match newest.filter(|_| error.kind == ErrorKind::Corrupt) {
            Some(newest) => Error { message: format!("{}; {newest} holds what it was before", error.message), ..error },
            None => error,
        }
    }

    fn read_file(&mut self, document: usize, file: Option<(String, FileStat)>) -> Result<()> {
        let Some((path, stat)) = file else {
            self.documents[document].forget();
            self.documents[document].known = Known::Absent;
            return Ok(());
        };
        let (collections, journalled) = (&self.collections, &self.journalled);
        let is_wanted = |name: &str| collections.contains_key(name) || journalled.contains(name);
        let is_in_journal =
            self.journal.as_ref().is_some_and(|it| it.bases.contains_key(&self.documents[document].name));
        // Most who have the lock are about to write.
        let wants_fingerprint = is_in_journal || self.holds_lock.get();
        self.documents[document].read(&self.files, path, stat, &is_wanted, wants_fingerprint)
    }

    fn lay_journal_over(&mut self, document: usize) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let Some((base, from)) = journal.bases.get(&self.documents[document].name) else { return Ok(()) };
        let is_laid_over = base.text == self.documents[document].fingerprint(&self.files)?;
        let (from, end) = (*from, FileStat { size: journal.end, ..journal.stat });
        let target = RefCell::new(&mut self.documents[document]);
        // Where the document is not the one that the journal's commits belong to: what they come to.
        let mut writes: BTreeMap<(String, String), Option<Place>> = BTreeMap::new();
        let damage = Journal::unread(end).read_on(
            &self.files,
            &self.journal_path,
            end,
            |_| {},
            |line| {
                let mut target = target.borrow_mut();
                if line.at < from || !target.holds(line.collection) {
                    return;
                }
                if is_laid_over {
                    lay_over(&mut target, &line);
                } else {
                    writes.insert((line.collection.to_owned(), line.id.to_owned()), line.place);
                }
            },
        )?;
        match damage {
            Some(damage) => Err(damage),
            // A process died between folding the journal into the document and removing it: there is nothing to lay over.
            None if is_laid_over || self.holds_all(document, &writes)? => Ok(()),
            None => Err(self.does_not_fit(document)),
        }
    }

    /// Whether a document has what the journal has for it.
    fn holds_all(&self, document: usize, writes: &BTreeMap<(String, String), Option<Place>>) -> Result<bool> {
        let mut reader = self.reader(document);
        for ((collection, id), place) in writes {
            let entry = self.documents[document].entities(collection).and_then(|entities| entities.get(id));
            let is_held = match (entry, place) {
                (None, None) => true,
                (Some(entry), Some(place)) => text::compact(reader.body(entry.place)?) == reader.body(*place)?,
                _ => false,
            };
            if !is_held {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn does_not_fit(&self, document: usize) -> Error {
        let commits = self.journal.as_ref().map_or(0, |journal| journal.commits);
        Error::corrupt(format!(
            "{} was changed while {} held {commits} commits that are not in it: neither is used before somebody has \
             chosen between them",
            self.documents[document].name, self.journal_path
        ))
    }

    /// Forgets everything that was read; the next call reads it again.
    pub(crate) fn forget(&mut self) {
        self.journal = None;
        self.synced_end = 0;
        self.forget_where(|_| true);
    }

    fn forget_where(&mut self, is_meant: impl Fn(&Document) -> bool) {
        self.documents.iter_mut().filter(|document| is_meant(document)).for_each(Document::forget);
        self.windows.borrow_mut().clear();
    }

    // Locks.

    /// The lock of the whole store.
    ///
    /// # Errors
    /// `busy` where another process has it, or this one.
    pub(crate) fn lock(&self, mode: LockMode) -> Result<Locked<F>> {
        if self.in_transaction.get() {
            return Err(Error::new(ErrorKind::Busy, "a transaction is open"));
        }
        let lock = self.files.try_acquire(&self.lock_path, mode)?.ok_or_else(|| {
            Error::new(ErrorKind::Busy, format!("another process holds the lock file {}", self.lock_path))
        })?;
        self.holds_lock.set(true);
        Ok(Locked { _lock: lock, _holding: Holding(self.holds_lock.clone()) })
    }

    /// Runs `work` with the exclusive lock.
    pub(crate) fn exclusively<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let _lock = self.lock(LockMode::Exclusive)?;
        work(self)
    }

    /// Tells others that somebody has the store open. That is for [`JsonStore::close`] alone, so nothing fails without it.
    fn join_users(&mut self) {
        let exists = self.journal.is_some() || self.documents.iter().any(|document| document.source().is_some());
        if self.user.is_none() && exists {
            self.user = self.files.try_acquire(&self.users_path, LockMode::Shared).ok().flatten();
        }
    }

    // Reads.

    /// Runs `work` on what is stored of a collection, again where the disk changed under it.
    pub(crate) fn reading<T>(&mut self, collection: &str, work: impl Fn(&Self, usize) -> Result<T>) -> Result<T> {
        let document = self.document_of(collection)?;
        for _ in 0..READ_ATTEMPTS_MAX {
            self.refresh(document)?;
            self.has_read.set(false);
            let result = work(self, document);
            if !self.has_read.get() || self.is_current(document)? {
                return result;
            }
        }
        if self.holds_lock.get() {
            let name = &self.documents[document].name;
            return Err(Error::new(ErrorKind::Unavailable, format!("{name} changes faster than it can be read")));
        }
        let _lock = self.lock(LockMode::Shared)?;
        self.reading(collection, work)
    }

    pub(crate) fn reader(&self, document: usize) -> Bodies<'_, F> {
        self.has_read.set(true);
        Bodies::new(
            &self.files,
            &self.documents[document],
            self.journal.as_ref().map(|journal| (self.journal_path.as_str(), journal.end)),
        )
    }

    /// What is stored or changed under each id, in the order asked for.
    pub(crate) fn fetch<'a>(
        &'a self,
        document: usize,
        changes: &'a Changes,
        collection: &Collection,
        ids: &[&str],
        keep: Keep,
    ) -> Result<Vec<Option<Found<'a>>>> {
        let entities = self.documents[document].entities(&collection.name);
        let mut found = Vec::with_capacity(ids.len());
        let mut wanted: Vec<(usize, &Entry)> = Vec::new();
        for (i, id) in ids.iter().enumerate() {
            found.push(match changes.get(&collection.name, id) {
                Some(change) => change.map(Found::Changed),
                None => match entities.and_then(|entities| entities.get(id)) {
                    Some(entry) => match entry.kept() {
                        Some(kept) => {
                            if keep == Keep::Always {
                                Cache::touch(&kept);
                            }
                            Some(Found::Kept(kept))
                        }
                        None => {
                            wanted.push((i, entry));
                            None
                        }
                    },
                    None => None,
                },
            });
        }
        if wanted.is_empty() {
            return Ok(found);
        }
        // Bodies that lie side by side are read at once.
        wanted.sort_unstable_by_key(|(_, entry)| (entry.place.is_in_journal(), entry.place.offset()));
        let mut reader = self.reader(document);
        for (i, entry) in wanted {
            let body = reader.body(entry.place)?;
            let is_kept = keep == Keep::Always || keep == Keep::WhileThereIsRoom && self.cache.has_room();
            found[i] = Some(if is_kept {
                Found::Kept(self.cache.keep(entry, entity_of(collection, ids[i], body)))
            } else {
                Found::Stored(body.to_vec())
            });
        }
        Ok(found)
    }

    /// The ids behind `after` with the size of each body, by id.
    pub(crate) fn ids<'a>(
        &'a self,
        document: usize,
        changes: &'a Changes,
        collection: &str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a str, usize)> {
        let entities = self.documents[document].entities(collection);
        let mut stored = entities.map(|entities| entities.after(after)).into_iter().flatten().peekable();
        let mut changed = changes.of(collection, after).peekable();
        std::iter::from_fn(move || {
            loop {
                let take_stored = match (stored.peek(), changed.peek()) {
                    (Some((id, _)), Some((changed_id, _))) => {
                        if id == changed_id {
                            stored.next();
                            false
                        } else {
                            id < changed_id
                        }
                    }
                    (Some(_), None) => true,
                    (None, _) => false,
                };
                if take_stored {
                    let (id, entry) = stored.next()?;
                    return Some((&**id, entry.place.len as usize));
                }
                let (id, change) = changed.next()?;
                if let Some(body) = &change.body {
                    return Some((&**id, body.len()));
                }
            }
        })
    }

    /// How many bytes of bodies of a document are read at once.
    pub(crate) fn chunk_bytes(&self, document: usize) -> usize {
        match self.documents[document].source().map(|source| &source.form) {
            None | Some(Form::Plain) => PLAIN_BYTES,
            Some(_) => COMPRESSED_BYTES,
        }
    }

    pub(crate) fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let unchanged = self.unchanged.clone();
        self.get_with(&unchanged, collection, ids)
    }

    pub(crate) fn get_with(
        &mut self,
        changes: &Changes,
        collection: &str,
        ids: &[String],
    ) -> Result<Vec<Option<Entity>>> {
        let definition = self.collection(collection)?;
        let wanted: Vec<&str> = ids.iter().map(String::as_str).collect();
        self.reading(collection, |store, document| {
            let found = store.fetch(document, changes, &definition, &wanted, Keep::Always)?;
            Ok(found.into_iter().zip(&wanted).map(|(found, id)| Some(found?.entity(&definition, id))).collect())
        })
    }

    pub(crate) fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        let unchanged = self.unchanged.clone();
        self.find_with(&unchanged, collection, query)
    }

    pub(crate) fn find_with(&mut self, changes: &Changes, collection: &str, query: &Query) -> Result<Page> {
        let definition = self.collection(collection)?;
        self.reading(collection, |store, document| find::find(store, document, &definition, changes, query))
    }

    pub(crate) fn count(&mut self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        let definition = self.collection(collection)?;
        let unchanged = self.unchanged.clone();
        self.reading(collection, |store, document| {
            let Some(filter) = filter else {
                let entities = store.documents[document].entities(collection);
                return Ok(Some(entities.map_or(0, |entities| entities.len() as u64)));
            };
            let mut count = 0;
            find::matching(store, document, &definition, &unchanged, Some(filter), None, None, |_, _, _| {
                count += 1;
                Ok(true)
            })?;
            Ok(Some(count))
        })
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
        let definition = self.collection(collection)?;
        self.reading(collection, |store, document| {
            let mut window = store.window(document, &definition, (segment, segments), after, max_bytes as usize)?;
            let mut batch = Batch::default();
            let mut bytes = 0;
            while batch.entities.is_empty() || bytes < max_bytes as usize {
                let Some(entity) = window.entities.pop_front() else { break };
                bytes += entity.body.len();
                batch.entities.push(entity);
            }
            let last = batch.entities.last().map(|last| last.id.clone());
            let has_more = !(window.entities.is_empty() && window.is_last);
            batch.next = last.clone().filter(|_| has_more).map(String::into_bytes);
            if !window.entities.is_empty() {
                window.after = last;
                let mut windows = store.windows.borrow_mut();
                if windows.len() == WINDOWS_MAX {
                    windows.remove(0);
                }
                windows.push(window);
            }
            Ok(batch)
        })
    }

    /// What a scan goes on with: what was read ahead, or the next bodies.
    fn window(
        &self,
        document: usize,
        collection: &Collection,
        (segment, segments): (u32, u32),
        after: Option<&str>,
        page_bytes: usize,
    ) -> Result<Window> {
        let of = (
            self.documents[document].source().map(|source| source.stat),
            self.journal.as_ref().map(|journal| journal.end),
        );
        let position = self.windows.borrow().iter().position(|it| {
            it.collection == collection.name
                && (it.segment, it.segments, it.after.as_deref()) == (segment, segments, after)
                && it.of == of
        });
        if let Some(position) = position {
            return Ok(self.windows.borrow_mut().remove(position));
        }
        let window_bytes = match self.chunk_bytes(document) {
            PLAIN_BYTES => page_bytes,
            compressed => compressed.max(page_bytes),
        };
        let mine = |id: &str| text::hash(id.as_bytes()) % u64::from(segments) == u64::from(segment);
        let stored = self.documents[document].entities(&collection.name).into_iter().flat_map(|it| it.after(after));
        let mut rest = stored.filter(|(id, _)| mine(id));
        let (mut wanted, mut bytes) = (Vec::new(), 0);
        while wanted.is_empty() || bytes < window_bytes {
            let Some((id, entry)) = rest.next() else { break };
            wanted.push((wanted.len(), id, entry));
            bytes += entry.place.len as usize;
        }
        let is_last = rest.next().is_none();
        let mut entities: Vec<Option<Entity>> = vec![None; wanted.len()];
        // As in `fetch`: bodies that lie side by side are read at once.
        wanted.sort_by_key(|(_, _, entry)| (entry.place.is_in_journal(), entry.place.offset()));
        let mut reader = self.reader(document);
        for (i, id, entry) in wanted {
            entities[i] = Some(match entry.kept() {
                Some(kept) => kept.entity.clone(),
                None => entity_of(collection, id, reader.body(entry.place)?),
            });
        }
        Ok(Window {
            collection: collection.name.clone(),
            segment,
            segments,
            after: after.map(str::to_owned),
            entities: entities.into_iter().flatten().collect(),
            is_last,
            of,
        })
    }

    // Writes.

    pub(crate) fn apply(&mut self, writes: Vec<Write>, atomic: bool, now: &str) -> Result<Vec<Result<Outcome>>> {
        if atomic {
            entity::check_distinct(&writes)?;
        }
        self.exclusively(|store| {
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

    /// Adds a write to `changes`; one that fails adds nothing. The document is current, and the lock held.
    pub(crate) fn stage(&self, changes: &mut Changes, write: Write, now: &str) -> Result<Outcome> {
        let (name, id) = write.target();
        let collection = self.collection(name)?;
        let document = self.document_of(name)?;
        // It is about to be another, which is kept then.
        let found = self.fetch(document, changes, &collection, &[id], Keep::Never)?.remove(0);
        let parse = |found: Found<'_>| entity::stamped_members(&collection, found.body());
        let stored = found.map(|found| parse(found).map_err(|error| corrupt(name, id, &error))).transpose()?;
        let version = stored.as_ref().map(|stored| entity::version_of(&collection, stored));
        match write {
            Write::Put(Put { collection: name, id, body, expect }) => {
                check_size(&name, &id, body.len())?;
                let body = entity::check(&collection, Some(&id), &body)?;
                entity::check_expectation(expect, version, &name, &id)?;
                let stamped = entity::stamp(&collection, stored.as_ref(), body, now);
                let body = json::to_vec(&stamped);
                check_size(&name, &id, body.len())?;
                let version = entity::version_of(&collection, &stamped);
                changes.put(&name, &id, body, version);
                Ok(Outcome { version, existed: stored.is_some() })
            }
            Write::Remove(removal) => {
                entity::check_expectation(removal.expect, version, &removal.collection, &removal.id)?;
                if stored.is_some() {
                    changes.remove(&removal.collection, &removal.id);
                }
                Ok(Outcome { version: version.unwrap_or(0), existed: stored.is_some() })
            }
        }
    }

    /// Stores the changes, all or none. The exclusive lock is held, and their documents are current.
    pub(crate) fn commit_changes(&mut self, changes: &Changes) -> Result<()> {
        let changed: Vec<_> = (0..self.documents.len())
            .filter(|&i| changes.collections().any(|name| self.documents[i].holds(name)))
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        if let [document] = changed[..]
            && !self.config.journal
            && self.journal.is_none()
        {
            self.write_document(document, changes)?;
            self.has_written = true;
            return Ok(());
        }
        self.append(&changed, changes, Keep::Always)?;
        if !self.config.journal || self.has_outgrown() {
            self.fold_or_later();
        }
        Ok(())
    }

    /// Appends a commit to the journal.
    fn append(&mut self, documents: &[usize], changes: &Changes, keep: Keep) -> Result<()> {
        let mut appendix = Appendix::new(self.journal.as_ref(), clock::unique_now);
        for &i in documents {
            let document = &self.documents[i];
            let text = document.fingerprint(&self.files)?;
            let base = self.journal.as_ref().and_then(|journal| journal.bases.get(&document.name));
            // Of a document that was folded on its own, what stands in the journal is in it.
            if base.is_none_or(|(base, _)| base.text != text) {
                let collection = match &document.content {
                    Content::Collections => None,
                    Content::Entities(name) => Some(name.clone()),
                };
                appendix.base(Base { document: document.name.clone(), collection, text });
            }
        }
        let places = appendix.commit(changes);
        let (offset, end) = (appendix.offset(), appendix.end());
        let appended = match &self.journal {
            // What a crash cut short.
            Some(journal) if journal.stat.size > offset => self.files.truncate(&self.journal_path, offset),
            _ => Ok(()),
        };
        let appended = appended.and_then(|()| self.files.append(&self.journal_path, &appendix.bytes));
        let stat = match appended {
            Ok(stat) if stat.size == end => stat,
            Ok(_) => {
                self.forget();
                let message = format!("{} was written to by somebody without the lock", self.journal_path);
                return Err(Error { retry: Retry::UnknownOutcome, ..Error::corrupt(message) });
            }
            Err(error) => return Err(self.take_back(offset, error)),
        };
        for ((name, id, change), place) in changes.in_order().into_iter().zip(places) {
            let Some(document) = documents.iter().copied().find(|&i| self.documents[i].holds(name)) else { continue };
            let is_configured = self.collections.contains_key(name);
            let document = &mut self.documents[document];
            document.has_journal = true;
            let Some(entities) = document.entities_mut(name) else { continue };
            let (Some(place), Some(body)) = (place, &change.body) else {
                entities.remove(id);
                continue;
            };
            entities.set(id, place);
            entities.note_values(id, body);
            if let (Keep::Always, true, Some(entry)) = (keep, is_configured, entities.get(id)) {
                self.cache.keep(entry, Entity { id: id.to_string(), version: change.version, body: body.clone() });
            }
        }
        self.journal = Some(appendix.appended(self.journal.take(), stat));
        self.has_written = true;
        self.is_unsynced = true;
        self.join_users();
        Ok(())
    }

    /// Takes away what an append that failed may have left.
    fn take_back(&mut self, offset: u64, error: Error) -> Error {
        let taken_back = if offset == 0 {
            self.files.remove(&self.journal_path).map(|_| ())
        } else {
            self.files.truncate(&self.journal_path, offset)
        };
        let stat = taken_back.and_then(|()| self.files.stat(&self.journal_path));
        match stat {
            Ok(stat) if stat.map_or(0, |stat| stat.size) == offset => {
                if let (Some(journal), Some(stat)) = (&mut self.journal, stat) {
                    journal.stat = stat;
                } else {
                    self.journal = None;
                }
                let retry = if error.retry == Retry::UnknownOutcome { Retry::Safe } else { error.retry };
                Error { retry, ..error }
            }
            _ => {
                self.forget();
                Error { retry: Retry::UnknownOutcome, ..error }
            }
        }
    }

    /// Whether the journal is larger than it should become.
    pub(crate) fn has_outgrown(&self) -> bool {
        let Some(journal) = &self.journal else { return false };
        let folded = self.documents.iter().filter(|document| document.has_journal);
        let size: u64 = folded.map(Document::text_bytes).sum();
        journal.end > size.max(self.config.write_buffer_size as u64).max(self.fold_from)
    }

    /// Folds the journal. What was committed is safe where that fails, so it is tried again when twice as much is there.
    fn fold_or_later(&mut self) {
        self.fold_from = match self.fold() {
            Ok(()) => 0,
            Err(_) => self.journal.as_ref().map_or(0, |journal| journal.end * 2),
        };
    }

    pub(crate) fn load(&mut self, collection: &str, entities: Vec<Entity>, existing: Existing) -> Result<Loaded> {
        let document = self.document_of(collection)?;
        let definition = self.collection(collection)?;
        self.exclusively(|store| {
            store.refresh(document)?;
            let mut loaded = Loaded::default();
            let mut changes = Changes::default();
            for (position, entity) in (0..).zip(entities) {
                match store.load_one(&definition, document, &mut changes, entity, existing) {
                    Ok(Some(true)) => loaded.written += 1,
                    Ok(Some(false)) => loaded.unchanged += 1,
                    Ok(None) => loaded.skipped += 1,
                    Err(error) => loaded.refused.push((position, error)),
                }
            }
            if !changes.is_empty() {
                store.append(&[document], &changes, Keep::Never)?;
                store.has_loaded = true;
            }
            Ok(loaded)
        })
    }

    /// Whether it was written; none where it was skipped.
    fn load_one(
        &self,
        collection: &Collection,
        document: usize,
        changes: &mut Changes,
        entity: Entity,
        existing: Existing,
    ) -> Result<Option<bool>> {
        let (name, id) = (&collection.name, &entity.id);
        check_size(name, id, entity.body.len())?;
        let given = entity::parse(collection, Some(id), &entity.body)?;
        if let Some(found) = self.fetch(document, changes, collection, &[id], Keep::Never)?.remove(0) {
            // What is stored and cannot be read is other content.
            let stored = json::parse_object(found.body());
            match existing {
                _ if stored.is_ok_and(|stored| json::equal_objects(&stored, &given)) => return Ok(Some(false)),
                Existing::Skip => return Ok(None),
                Existing::Overwrite => {}
                Existing::Fail => {
                    let version = Some(text::version(found.body(), &collection.stamps.version));
                    entity::check_expectation(Expectation::Absent, version, name, id)?;
                }
            }
        }
        changes.put(name, id, text::compact(&entity.body), entity::version_of(collection, &given));
        Ok(Some(true))
    }

    /// Puts every commit on the disk. What was loaded is folded at once where it would have to be soon.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if !self.is_unsynced {
            return Ok(());
        }
        if self.cannot_sync && self.config.sync_writes {
            let folded = self.exclusively(|store| {
                let stat = store.files.stat(&store.journal_path)?;
                if stat != store.journal.as_ref().map(|journal| journal.stat) {
                    store.follow_journal(stat)?;
                }
                store.fold()
            });
            folded.map_err(|error| match error.kind {
                ErrorKind::Busy => error,
                _ => Error { retry: Retry::UnknownOutcome, ..error },
            })?;
        }
        if self.has_loaded && (self.has_outgrown() || !self.config.journal) {
            self.exclusively(|store| {
                if let Some(i) = (0..store.documents.len()).find(|&i| store.documents[i].has_journal) {
                    store.refresh(i)?;
                }
                store.fold_or_later();
                Ok(())
            })?;
        }
        if self.is_unsynced && self.config.sync_writes {
            self.sync_journal()?;
        }
        self.is_unsynced = false;
        self.has_loaded = false;
        Ok(())
    }

    /// Puts the journal on the disk, whoever appended to it.
    pub(crate) fn sync_journal(&mut self) -> Result<()> {
        let end = self.journal.as_ref().map_or(0, |journal| journal.end);
        if self.synced_end == end || self.cannot_sync {
            return Ok(());
        }
        let Err(error) = self.files.sync(&self.journal_path) else {
            self.synced_end = end;
            return Ok(());
        };
        // Somebody else may have folded it, which puts it on the disk in another place.
        let is_there = match &self.journal {
            Some(journal) => journal.is_there(&self.files, &self.journal_path).unwrap_or(true),
            None => false,
        };
        if !is_there {
            return Ok(());
        }
        self.cannot_sync = true;
        Err(Error { retry: Retry::UnknownOutcome, ..error })
    }

    /// Leaves documents that are whole, for people and other programs: folds the journal, where this store wrote to it or
    /// nobody else has it open.
    pub(crate) fn close(&mut self) -> Result<()> {
        let left = self.leave_in_order();
        match left {
            // Who only read has nothing to answer for.
            Err(_) if !self.has_written => Ok(()),
            Ok(()) => {
                self.has_written = false;
                Ok(())
            }
            error => error,
        }
    }

    fn leave_in_order(&mut self) -> Result<()> {
        self.user = None;
        if self.files.stat(&self.journal_path)?.is_none() {
            return Ok(());
        }
        let last = self.files.try_acquire(&self.users_path, LockMode::Exclusive)?;
        if last.is_none() && !self.has_written {
            return Ok(());
        }
        self.exclusively(|store| {
            let stat = store.files.stat(&store.journal_path)?;
            if stat != store.journal.as_ref().map(|journal| journal.stat) {
                store.follow_journal(stat)?;
            }
            store.fold()
        })
    }

    // The rest.

    pub(crate) fn stored_collections(&mut self) -> Result<Vec<String>> {
        if self.config.storage_type == StorageType::SingleFile {
            self.refresh(0)?;
            return Ok(self.documents[0].collections().map(str::to_owned).collect());
        }
        let mut names = Vec::new();
        // The other layout may use the same directory.
        let mut known = vec![self.config.filenames.single_file.clone()];
        for i in 0..self.documents.len() {
            self.refresh(i)?;
        }
        for document in &self.documents {
            if let Content::Entities(name) = &document.content
                && (document.source().is_some() || document.has_journal)
            {
                names.push(name.clone());
            }
            known.push(document.name.clone());
        }
        // A collection that has a file by name, and is not configured.
        for (name, file) in &self.config.filenames.split_files {
            let document = Document::new(file.clone(), Content::Entities(name.clone()));
            if !known.contains(file) && document.find_file(&self.files, self.config.enable_compression)?.is_some() {
                names.push(name.clone());
            }
            known.push(file.clone());
        }
        // A document that nobody configured is a collection that nobody configured.
        for (path, _) in self.files.entries("")? {
            let path = path.strip_suffix(".gz").unwrap_or(&path);
            let Some(name) = path.strip_suffix(".json").filter(|name| !name.starts_with('.')) else { continue };
            if !known.iter().any(|known| known == path) && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    pub(crate) fn prepare(&mut self, dry_run: bool) -> Result<Vec<String>> {
        let compressed = self.config.enable_compression;
        let mut missing = Vec::new();
        for (i, document) in self.documents.iter().enumerate() {
            if document.find_file(&self.files, compressed)?.is_none() {
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
                // Somebody else may have made it since, and what is in the journal makes it soon.
                if store.documents[i].source().is_none() && !store.documents[i].has_journal {
                    let nothing = store.unchanged.clone();
                    store.write_document(i, &nothing)?;
                    done.push(format!("made the document {path}"));
                }
            }
            Ok(done)
        })
    }
}

/// A document that the journal begins to have commits of.
fn follow_base(files: &impl Files, documents: &mut Vec<Document>, base: &Base) {
    match documents.iter_mut().find(|document| document.name == base.document) {
        Some(document) => {
            // Whatever is wrong with it shows when it is read again.
            let is_the_same = match (&document.known, base.text) {
                (Known::Read(source), Some(text)) => source.is_of(text, files).unwrap_or(false),
                (Known::Absent, None) => true,
                _ => false,
            };
            if !is_the_same {
                document.forget();
            }
        }
        // Another process knows of more collections.
        None => documents.push(Document::new(base.document.clone(), base.content())),
    }
}

/// A write that another process committed.
fn follow_line(documents: &mut [Document], journalled: &mut BTreeSet<String>, line: &Line<'_>) {
    let Some(document) = documents.iter_mut().find(|document| document.holds(line.collection)) else { return };
    journalled.insert(line.collection.to_owned());
    if !matches!(document.known, Known::Nothing) {
        lay_over(document, line);
    }
}

pub(crate) fn lay_over(document: &mut Document, line: &Line<'_>) {
    document.has_journal = true;
    match (document.entities_mut(line.collection), line.place) {
        (Some(entities), Some(place)) => {
            entities.set(line.id, place);
            entities.note_values(line.id, line.body);
        }
        (Some(entities), None) => entities.remove(line.id),
        // It stands there as nobody's, and now it is somebody's.
        (None, _) => document.forget(),
    }
}

/// Reads bodies of one document, from its file and from the journal.
pub(crate) struct Bodies<'a, F: Files> {
    document: Option<Reader<'a, F>>,
    journal: Option<Reader<'a, F>>,
    name: &'a str,
}

impl<'a, F: Files> Bodies<'a, F> {
    fn new(files: &'a F, document: &'a Document, journal: Option<(&'a str, u64)>) -> Self {
        let reader = document.source().map(|source| Reader::new(files, &source.path, source.stat.size, &source.form));
        let journal = journal.map(|(path, end)| Reader::new(files, path, end, &Form::Plain));
        Bodies { document: reader, journal, name: &document.name }
    }

    pub(crate) fn body(&mut self, place: Place) -> Result<&[u8]> {
        let reader = if place.is_in_journal() { &mut self.journal } else { &mut self.document };
        match reader {
            Some(reader) => reader.read(place.offset(), place.len as usize),
            None => Err(Error::new(ErrorKind::Internal, format!("{} is not where it was", self.name))),
        }
    }

    /// Brings all that the journal holds, where that is not too much to have in memory.
    pub(crate) fn read_journal_ahead(&mut self) -> Result<()> {
        match &mut self.journal {
            Some(journal) if journal.size() <= FOLDED_AT_ONCE_BYTES_MAX => {
                journal.read(0, journal.size() as usize).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// A part of the document's text.
    pub(crate) fn text(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        match &mut self.document {
            Some(reader) => reader.read(offset, len),
            None => Err(Error::new(ErrorKind::Internal, format!("{} has no text", self.name))),
        }
    }
}

/// The entity as it crosses the contract, whatever its body is: the host looks at that.
pub(crate) fn entity_of(collection: &Collection, id: &str, body: &[u8]) -> Entity {
    let (body, version) = text::compact_with_version(body, &collection.stamps.version);
    Entity { id: id.to_owned(), version, body }
}

/// The members of what is stored.
///
/// # Errors
/// `corrupt`, naming the entity, where it is no object, is ambiguous, or has another key than its name.
pub(crate) fn parse_stored(collection: &Collection, id: &str, found: &Found<'_>) -> Result<Rc<Map<String, Value>>> {
    let parsed = found.parse().map_err(|error| corrupt(&collection.name, id, &error))?;
    match entity::key_of(collection, &*parsed) {
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
