//! How the journal is folded into the documents, and how a document is written: streamed into a new file, which is synced
//! and renamed over the old one. The old one stays as a backup.
//!
//! An entity that did not change keeps its bytes and its turn, and a collection that nobody configured is copied as it
//! stands. The journal goes when every document has what it held. A process that dies in between leaves documents of which
//! some have what the journal holds for them, which the next reader sees by comparing.

use std::io;

use flate2::Crc;
use larder_guest::Files;
use larder_model::{Error, ErrorKind, Result, Retry};

use crate::{
    changes::Changes,
    clock,
    document::{Content, Document, Fingerprint, Held, Known, Member, Source},
    gzip,
    index::{Entities, Place},
    reader::{Block, Form},
    store::{Bodies, JsonStore},
    text,
};

/// What follows the document's name in a backup's.
pub(crate) const BACKUP_MARK: &str = ".bak-";
/// Written at once.
const PIECE_BYTES: usize = 1 << 20;

impl<F: Files> JsonStore<F> {
    /// Folds the journal into the documents and removes it. The exclusive lock is held, and the journal is current.
    pub(crate) fn fold(&mut self) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let names: Vec<String> = journal.bases.keys().cloned().collect();
        // Before any document has a part of it: if the machine stops on the way, the rest must be had from the journal.
        self.sync_journal()?;
        for name in names {
            let found = self.documents.iter().position(|document| document.name == name);
            let unknown = || Error::new(ErrorKind::Internal, format!("{name} is in the journal, and no document"));
            let document = found.ok_or_else(unknown)?;
            self.refresh(document)?;
            if self.documents[document].has_journal {
                let nothing = self.unchanged.clone();
                self.write_document(document, &nothing)?;
            }
        }
        self.files.remove(&self.journal_path)?;
        self.journal = None;
        self.synced_end = 0;
        self.cannot_sync = false;
        self.is_unsynced = false;
        Ok(())
    }

    /// Writes a document anew, as it is with `changes`, and makes it durable. The exclusive lock is held.
    pub(crate) fn write_document(&mut self, document: usize, changes: &Changes) -> Result<()> {
        let backup = self.backup_name(document)?;
        let old = self.documents[document].source().map(|source| source.path.clone());
        let path = self.documents[document].path(self.config.enable_compression);
        // A document in its other form stays where it is until the new one is there.
        let moves = old.as_ref().is_some_and(|old| *old != path);
        self.replace_document(document, changes, backup.as_deref().filter(|_| !moves))?;
        // What follows is housekeeping: the write took effect, and is not taken back because a file stays too long.
        if let Some(old) = old {
            if moves {
                let _ = self.retire(&old, backup);
            }
            let _ = self.prune_backups(&old);
        }
        Ok(())
    }

    /// The same for a document that was read from a file of another name, which stays. Gives the names under which what was
    /// there before is kept.
    pub(crate) fn put_in_place(&mut self, document: usize) -> Result<Vec<String>> {
        let compressed = self.config.enable_compression;
        let (path, other) = (self.documents[document].path(compressed), self.documents[document].path(!compressed));
        let mut kept = Vec::new();
        let backup = match self.files.stat(&path)? {
            Some(_) => Some(free_backup_name(&self.files, &path)?),
            None => None,
        };
        let nothing = self.unchanged.clone();
        self.replace_document(document, &nothing, backup.as_deref())?;
        kept.extend(backup);
        if self.files.stat(&other)?.is_some() {
            let backup = free_backup_name(&self.files, &other)?;
            self.retire(&other, Some(backup.clone()))?;
            kept.push(backup);
        }
        Ok(kept)
    }

    fn replace_document(&mut self, document: usize, changes: &Changes, keep_old_as: Option<&str>) -> Result<()> {
        let path = self.documents[document].path(self.config.enable_compression);
        let replacement = self.files.replace(&path)?;
        let mut out = Output::new(&self.files, &replacement, path.ends_with(".gz"));
        let mut reader = self.reader(document);
        reader.read_journal_ahead()?;
        let written = write(&self.documents[document], changes, &mut reader, &mut out)?;
        let (fingerprint, form) = out.finish()?;
        let committed = self.files.replacement_commit(replacement, keep_old_as, true);
        match committed {
            Ok(stat) => {
                self.documents[document].install(written, changes, Source::new(path, stat, form, fingerprint));
                Ok(())
            }
            Err(error) => {
                if error.retry == Retry::UnknownOutcome {
                    self.documents[document].forget();
                }
                Err(error)
            }
        }
    }

    /// Removes a document of the other form, once it is kept as a backup.
    fn retire(&self, old: &str, backup: Option<String>) -> Result<()> {
        if let Some(backup) = backup {
            self.copy(old, &backup)?;
        }
        self.files.remove(old)?;
        Ok(())
    }

    /// Makes `copy` what `path` holds, if there is such a file.
    pub(crate) fn copy(&self, path: &str, copy: &str) -> Result<()> {
        if self.files.stat(path)?.is_none() {
            return Ok(());
        }
        let replacement = self.files.replace(copy)?;
        let mut offset = 0;
        loop {
            let piece = self.files.read(path, offset, PIECE_BYTES as u32)?.unwrap_or_default();
            if piece.is_empty() && offset > 0 {
                break;
            }
            self.files.replacement_write(&replacement, &piece)?;
            offset += piece.len() as u64;
            if piece.is_empty() {
                break;
            }
        }
        self.files.replacement_commit(replacement, None, true)?;
        Ok(())
    }

    fn prune_backups(&self, path: &str) -> Result<()> {
        if !self.config.backup_enabled {
            return Ok(());
        }
        let backups = backups(&self.files, path)?;
        let surplus = backups.len().saturating_sub(self.config.backup_count);
        for backup in &backups[..surplus] {
            self.files.remove(backup)?;
        }
        Ok(())
    }

    /// A name that is free, for the document that is about to be replaced; none where none is kept.
    fn backup_name(&self, document: usize) -> Result<Option<String>> {
        let keeps = self.config.backup_enabled && self.config.backup_count > 0;
        match self.documents[document].source() {
            Some(source) if keeps => free_backup_name(&self.files, &source.path).map(Some),
            _ => Ok(None),
        }
    }
}

/// A name for what `path` is now that no backup has yet.
pub(crate) fn free_backup_name(files: &impl Files, path: &str) -> Result<String> {
    let taken = backups(files, path)?;
    let name = format!("{path}{BACKUP_MARK}{}", clock::compact_now());
    let numbered = (1_u64..).map(|number| format!("{name}-{number}"));
    let free = std::iter::once(name.clone()).chain(numbered).find(|name| !taken.contains(name));
    Ok(free.expect("numbers do not end"))
}

/// The backups of a document, oldest first.
pub(crate) fn backups(files: &impl Files, path: &str) -> Result<Vec<String>> {
    let prefix = format!("{path}{BACKUP_MARK}");
    let mut names: Vec<_> = files.entries(&prefix)?.into_iter().map(|(name, _)| name).collect();
    names.sort_by_cached_key(|name| {
        let (time, number) = match name[prefix.len()..].split_once('-') {
            Some((time, number)) => (time, number.parse().unwrap_or(u64::MAX)),
            None => (&name[prefix.len()..], 0),
        };
        (time.to_owned(), number)
    });
    Ok(names)
}

/// Where a collection came to lie.
enum Placed {
    Entities {
        /// Of every entity, by id.
        places: Vec<Place>,
    },
    Unread {
        start: u64,
        end: u64,
    },
}

/// What stands where in a document that was written, member by member.
pub(crate) struct Written(Vec<(String, Placed)>);

/// Writes the text of a document with `changes`.
fn write<F: Files>(
    document: &Document,
    changes: &Changes,
    reader: &mut Bodies<'_, F>,
    out: &mut Output<'_, F>,
) -> Result<Written> {
    let stored = document.members.iter().map(|member| member.name.as_str());
    let is_new = |name: &&str| {
        document.holds(name)
            && document.members.iter().all(|member| member.name != **name)
            && changes.of(name, None).any(|(_, change)| change.body.is_some())
    };
    let mut names: Vec<&str> = stored.chain(changes.collections().filter(is_new)).collect();
    let mut written = Vec::new();
    let depth = match &document.content {
        Content::Collections => {
            out.push(b"{")?;
            1
        }
        Content::Entities(name) => {
            names = vec![name.as_str()];
            0
        }
    };
    for (i, name) in names.iter().enumerate() {
        let mut frame = Vec::new();
        if depth > 0 {
            if i > 0 {
                frame.push(b',');
            }
            text::new_line(1, &mut frame);
            text::name(name, &mut frame);
            out.push(&frame)?;
        }
        let member = document.members.iter().find(|member| member.name == **name);
        let placed = match member.map(|member| &member.held) {
            Some(Held::Unread { start, end, .. }) => {
                let from = out.position;
                let mut at = *start;
                while at < *end {
                    let count = (*end - at).min(PIECE_BYTES as u64) as usize;
                    out.push(reader.text(at, count)?)?;
                    at += count as u64;
                }
                Placed::Unread { start: from, end: out.position }
            }
            Some(Held::Entities(entities)) => write_entities(name, Some(entities), changes, depth, reader, out)?,
            None => write_entities(name, None, changes, depth, reader, out)?,
        };
        written.push(((*name).to_owned(), placed));
    }
    if depth > 0 {
        let mut end = Vec::new();
        if !names.is_empty() {
            text::new_line(0, &mut end);
        }
        end.push(b'}');
        out.push(&end)?;
    }
    out.push(b"\n")?;
    Ok(Written(written))
}

/// The body of an entity that is to be written.
#[derive(Clone, Copy)]
enum Body<'a> {
    Stored(Place),
    Changed(&'a [u8]),
}

fn write_entities<F: Files>(
    name: &str,
    entities: Option<&Entities>,
    changes: &Changes,
    depth: usize,
    reader: &mut Bodies<'_, F>,
    out: &mut Output<'_, F>,
) -> Result<Placed> {
    // By id, as they will be known; then in their turns, as they are written.
    let mut bodies: Vec<(u64, u32, &str, Body<'_>)> = Vec::with_capacity(entities.map_or(0, Entities::len));
    let mut add = |turn: u64, id, body| bodies.push((turn, bodies.len() as u32, id, body));
    let mut changed = changes.of(name, None).peekable();
    // Behind everything that is stored.
    let new_turn = |order: u64| (3 << 62) | order;
    for (id, entry) in entities.into_iter().flat_map(|entities| entities.after(None)) {
        while let Some((new, change)) = changed.next_if(|(changed, _)| *changed < id) {
            if let Some(body) = &change.body {
                add(new_turn(change.order), &**new, Body::Changed(body));
            }
        }
        match changed.next_if(|(changed, _)| *changed == id) {
            Some((_, change)) => {
                if let Some(body) = &change.body {
                    add(entry.turn, &**id, Body::Changed(body));
                }
            }
            None => add(entry.turn, &**id, Body::Stored(entry.place)),
        }
    }
    for (new, change) in changed {
        if let Some(body) = &change.body {
            add(new_turn(change.order), &**new, Body::Changed(body));
        }
    }
    bodies.sort_unstable_by_key(|(turn, ..)| *turn);
    let mut places = vec![Place::in_document(0, 0); bodies.len()];
    let mut frame = Vec::new();
    out.push(b"{")?;
    for (i, (_, position, id, body)) in bodies.iter().enumerate() {
        frame.clear();
        if i > 0 {
            frame.push(b',');
        }
        text::new_line(depth + 1, &mut frame);
        text::name(id, &mut frame);
        out.push(&frame)?;
        let start = out.position;
        match *body {
            Body::Stored(place) if !place.is_in_journal() => out.push(reader.body(place)?)?,
            Body::Stored(place) => {
                frame.clear();
                text::pretty(reader.body(place)?, depth + 1, &mut frame);
                out.push(&frame)?;
            }
            Body::Changed(body) => {
                frame.clear();
                text::pretty(body, depth + 1, &mut frame);
                out.push(&frame)?;
            }
        }
        let len = u32::try_from(out.position - start)
            .map_err(|_| Error::new(ErrorKind::LimitExceeded, format!("{name} has an entity of more than 4 GiB")))?;
        places[*position as usize] = Place::in_document(start, len);
    }
    frame.clear();
    if !bodies.is_empty() {
        text::new_line(depth, &mut frame);
    }
    frame.push(b'}');
    out.push(&frame)?;
    Ok(Placed::Entities { places })
}

impl Document {
    /// Takes over what was written.
    fn install(&mut self, written: Written, changes: &Changes, source: Source) {
        for (name, placed) in written.0 {
            match placed {
                Placed::Unread { start, end } => {
                    if let Some(Member { held: Held::Unread { start: from, end: to, .. }, .. }) =
                        self.members.iter_mut().find(|member| member.name == name)
                    {
                        (*from, *to) = (start, end);
                    }
                }
                Placed::Entities { places } => {
                    let Some(entities) = self.entities_mut(&name) else { continue };
                    for (id, change) in changes.of(&name, None) {
                        match &change.body {
                            Some(body) => {
                                entities.set(id, Place::in_document(0, 0));
                                entities.note_values(id, body);
                            }
                            None => entities.remove(id),
                        }
                    }
                    for ((_, entry), place) in entities.iter_mut().zip(places) {
                        entry.place = place;
                        entry.turn = place.offset();
                    }
                }
            }
        }
        self.known = Known::Read(source);
        self.has_journal = false;
    }
}

/// The new document while it is written.
struct Output<'a, F: Files> {
    files: &'a F,
    replacement: &'a F::Replacement,
    /// Text that is not given to the file yet.
    text: Vec<u8>,
    /// Compressed bytes that are not.
    compressed: Option<Vec<u8>>,
    blocks: Vec<Block>,
    crc: Crc,
    /// How much text came.
    position: u64,
    /// How much of it went into blocks.
    text_out: u64,
    /// How many bytes the file has or will have.
    size: u64,
}

impl<'a, F: Files> Output<'a, F> {
    fn new(files: &'a F, replacement: &'a F::Replacement, compressed: bool) -> Self {
        let compressed = compressed.then(Vec::new);
        let text = Vec::with_capacity(PIECE_BYTES);
        Output {
            files,
            replacement,
            text,
            compressed,
            blocks: Vec::new(),
            crc: Crc::new(),
            position: 0,
            text_out: 0,
            size: 0,
        }
    }

    fn push(&mut self, text: &[u8]) -> Result<()> {
        self.position += text.len() as u64;
        let piece = if self.compressed.is_some() { gzip::BLOCK_BYTES } else { PIECE_BYTES };
        let mut rest = text;
        while self.text.len() + rest.len() >= piece {
            let (part, after) = rest.split_at(piece - self.text.len());
            self.text.extend_from_slice(part);
            rest = after;
            self.write_out()?;
        }
        self.text.extend_from_slice(rest);
        Ok(())
    }

    fn write_out(&mut self) -> Result<()> {
        self.crc.update(&self.text);
        let Some(compressed) = &mut self.compressed else {
            self.files.replacement_write(self.replacement, &self.text)?;
            self.text.clear();
            return Ok(());
        };
        let block = gzip::block(&self.text).map_err(failed)?;
        self.blocks.push(Block { file: self.size, text: self.text_out });
        self.text_out += self.text.len() as u64;
        self.size += block.len() as u64;
        compressed.extend_from_slice(&block);
        self.text.clear();
        if compressed.len() >= PIECE_BYTES {
            self.files.replacement_write(self.replacement, compressed)?;
            compressed.clear();
        }
        Ok(())
    }

    /// Writes what is left; a compressed file ends with a member of no text.
    fn finish(mut self) -> Result<(Fingerprint, Form)> {
        if !self.text.is_empty() {
            self.write_out()?;
        }
        let form = match self.compressed.take() {
            None => Form::Plain,
            Some(mut compressed) => {
                compressed.extend_from_slice(&gzip::block(&[]).map_err(failed)?);
                self.files.replacement_write(self.replacement, &compressed)?;
                Form::Blocks(self.blocks.into())
            }
        };
        Ok((Fingerprint { bytes: self.position, crc32: self.crc.sum() }, form))
    }
}

fn failed(error: io::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("a document cannot be compressed: {error}"))
}
