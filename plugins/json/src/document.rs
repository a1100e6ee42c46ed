//! One file of the store: where it is, what stands where in it, and how it is found out.
//!
//! A document is read in one pass, through a buffer, that checks every byte of it as JSON and keeps the place of each
//! entity. Its text stays on the disk; an entity is read when somebody asks for it.

use std::{cell::OnceCell, rc::Rc};

use flate2::Crc;
use larder_guest::{FileStat, Files};
use larder_model::{
    Error, Result,
    json::{plain, quoted},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    index::{Entities, Place, Reading},
    reader::{Form, Pieces, changed},
};

/// What the name of a compressed document ends with.
const COMPRESSED_SUFFIX: &str = ".gz";

/// What a document's top level is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Collections by name.
    Collections,
    /// The entities of this collection by id.
    Entities(String),
}

/// Tells a text from any other that it is likely to meet: from torn, edited and foreign ones. No defence against forgery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fingerprint {
    pub(crate) bytes: u64,
    pub(crate) crc32: u32,
}

/// A file that was read.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) stat: FileStat,
    pub(crate) form: Form,
    /// Of its text.
    bytes: u64,
    /// Of its text, once somebody wanted to know.
    crc32: OnceCell<u32>,
}

impl Source {
    pub(crate) fn new(path: String, stat: FileStat, form: Form, fingerprint: Fingerprint) -> Source {
        let Fingerprint { bytes, crc32 } = fingerprint;
        Source { path, stat, form, bytes, crc32: crc32.into() }
    }

    /// Of the text that was read. Most who read a document never ask for it; then the file is read once more.
    fn fingerprint(&self, files: &impl Files) -> Result<Fingerprint> {
        let bytes = self.bytes;
        if let Some(&crc32) = self.crc32.get() {
            return Ok(Fingerprint { bytes, crc32 });
        }
        let is_there = || Ok::<_, Error>(files.stat(&self.path)? == Some(self.stat));
        let crc = if is_there()? { self.crc(files) } else { return Err(changed(&self.path)) };
        // Of a text that is another one meanwhile nothing is said.
        match is_there()? {
            true => {
                let crc32 = crc?;
                Ok(Fingerprint { bytes, crc32: *self.crc32.get_or_init(|| crc32) })
            }
            false => Err(changed(&self.path)),
        }
    }

    fn crc(&self, files: &impl Files) -> Result<u32> {
        let (mut pieces, mut crc) = (Pieces::new(files, &self.path, self.stat.size), Crc::new());
        while let Some(piece) = pieces.next()? {
            crc.update(&piece);
        }
        Ok(crc.sum())
    }

    /// Whether it is the text that a journal was begun for.
    pub(crate) fn is_of(&self, text: Fingerprint, files: &impl Files) -> Result<bool> {
        Ok(self.bytes == text.bytes && self.fingerprint(files)? == text)
    }
}

/// What is known of the file.
pub(crate) enum Known {
    /// Nothing: it was not looked at, or it cannot be read.
    Nothing,
    Absent,
    Read(Source),
}

/// A collection in a document.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) held: Held,
}

/// What is known of a collection.
pub(crate) enum Held {
    Entities(Entities),
    /// Nobody configured it: it is copied as it stands, from here to there.
    Unread {
        start: u64,
        end: u64,
        is_object: bool,
    },
}

/// A file of the store, and what is stored in it or in the journal for it.
pub(crate) struct Document {
    /// As it is configured, without the suffix of compressed ones.
    pub(crate) name: String,
    pub(crate) content: Content,
    pub(crate) known: Known,
    pub(crate) members: Vec<Member>,
    /// Whether the journal has more of it than the file.
    pub(crate) has_journal: bool,
}

impl Document {
    pub(crate) fn new(name: String, content: Content) -> Self {
        Document { name, content, known: Known::Nothing, members: Vec::new(), has_journal: false }
    }

    /// The file that it is written to.
    pub(crate) fn path(&self, compressed: bool) -> String {
        if compressed { format!("{}{COMPRESSED_SUFFIX}", self.name) } else { self.name.clone() }
    }

    /// The file that it was read from.
    pub(crate) fn source(&self) -> Option<&Source> {
        match &self.known {
            Known::Read(source) => Some(source),
            _ => None,
        }
    }

    /// Of the text that was read; none where there is no file.
    pub(crate) fn fingerprint(&self, files: &impl Files) -> Result<Option<Fingerprint>> {
        self.source().map(|source| source.fingerprint(files)).transpose()
    }

    /// Bytes of the text that was read.
    pub(crate) fn text_bytes(&self) -> u64 {
        self.source().map_or(0, |source| source.bytes)
    }

    pub(crate) fn forget(&mut self) {
        *self = Document::new(std::mem::take(&mut self.name), self.content.clone());
    }

    /// Where both forms exist, a process died between writing the one and removing the other: what is configured counts.
    pub(crate) fn find_file(&self, files: &impl Files, compressed: bool) -> Result<Option<(String, FileStat)>> {
        for form in [compressed, !compressed] {
            let path = self.path(form);
            if let Some(stat) = files.stat(&path)? {
                return Ok(Some((path, stat)));
            }
        }
        Ok(None)
    }

    /// Whether a file that was found is the one that was read, or there is none as there was none.
    pub(crate) fn is_read_from(&self, found: Option<&(String, FileStat)>) -> bool {
        match (&self.known, found) {
            (Known::Absent, None) => true,
            (Known::Read(source), Some((path, stat))) => source.path == *path && source.stat == *stat,
            _ => false,
        }
    }

    /// Reads the file, as `path` and `stat` have it, without what the journal has for it. Where somebody is about to want its
    /// fingerprint, that is made on the way.
    pub(crate) fn read(
        &mut self,
        files: &impl Files,
        path: String,
        stat: FileStat,
        is_wanted: &dyn Fn(&str) -> bool,
        wants_fingerprint: bool,
    ) -> Result<()> {
        self.forget();
        let crc = wants_fingerprint.then(Crc::new);
        let (members, form, bytes, crc) = scan(files, &path, stat.size, &self.content, is_wanted, crc)?;
        let crc32 = crc.map_or_else(OnceCell::new, |crc| crc.sum().into());
        self.members = members;
        self.known = Known::Read(Source { path, stat, form, bytes, crc32 });
        Ok(())
    }

    /// Whether a collection is stored in this document.
    pub(crate) fn holds(&self, collection: &str) -> bool {
        match &self.content {
            Content::Collections => true,
            Content::Entities(name) => name == collection,
        }
    }

    pub(crate) fn entities(&self, collection: &str) -> Option<&Entities> {
        self.members.iter().find(|member| member.name == collection).and_then(|member| match &member.held {
            Held::Entities(entities) => Some(entities),
            Held::Unread { .. } => None,
        })
    }

    /// The entities of a collection, to be changed; made where the document has no such collection yet. None where the
    /// collection stands there unread.
    pub(crate) fn entities_mut(&mut self, collection: &str) -> Option<&mut Entities> {
        let found = self.members.iter().position(|member| member.name == collection);
        let position = found.unwrap_or_else(|| {
            self.members.push(Member { name: collection.to_owned(), held: Held::Entities(Entities::default()) });
            self.members.len() - 1
        });
        match &mut self.members[position].held {
            Held::Entities(entities) => Some(entities),
            Held::Unread { .. } => None,
        }
    }

    /// Names of what is stored, configured or not: members that hold an object.
    pub(crate) fn collections(&self) -> impl Iterator<Item = &str> {
        let holds_entities = |member: &&Member| !matches!(member.held, Held::Unread { is_object: false, .. });
        self.members.iter().filter(holds_entities).map(|member| member.name.as_str())
    }
}

/// Reads a document's text from its beginning to its end; answers what stands in it, how it lies in its file, how long it is,
/// and `crc` with all of it.
///
/// # Errors
/// `corrupt` with file, line and column.
fn scan(
    files: &impl Files,
    path: &str,
    size: u64,
    content: &Content,
    is_wanted: &dyn Fn(&str) -> bool,
    crc: Option<Crc>,
) -> Result<(Vec<Member>, Form, u64, Option<Crc>)> {
    let mut scanner =
        Scanner { pieces: Pieces::new(files, path, size), buffer: Vec::new(), start: 0, at: 0, ended: false, crc };
    let scanned = match content {
        Content::Collections => scanner.collections(is_wanted),
        Content::Entities(name) => {
            scanner.entities(name).map(|entities| vec![Member { name: name.clone(), held: Held::Entities(entities) }])
        }
    };
    let ended = scanned.and_then(|members| scanner.end().map(|()| members));
    match ended {
        Ok(members) => {
            let bytes = scanner.position();
            Ok((members, scanner.pieces.into_form(), bytes, scanner.crc))
        }
        Err(Stop::Fault(error)) => Err(error),
        Err(Stop::Damage { at: 0, .. }) if scanner.ended && scanner.position() == 0 => {
            Err(Error::corrupt(format!("{path} is empty, which no JSON document is")))
        }
        Err(Stop::Damage { at, what }) => {
            let (line, column) = line_and_column(files, path, size, at)?;
            Err(Error::corrupt(format!("{path} is no document of entities: {what} at line {line} column {column}")))
        }
    }
}

/// Counted from 1; the column in bytes.
fn line_and_column(files: &impl Files, path: &str, size: u64, at: u64) -> Result<(u64, u64)> {
    let mut pieces = Pieces::new(files, path, size);
    let (mut line, mut column, mut rest) = (1, 1, at);
    while let Some(piece) = pieces.next()? {
        let before = &piece[..piece.len().min(usize::try_from(rest).unwrap_or(usize::MAX))];
        for &byte in before {
            (line, column) = if byte == b'\n' { (line + 1, 1) } else { (line, column + 1) };
        }
        rest -= before.len() as u64;
        if rest == 0 {
            break;
        }
    }
    Ok((line, column))
}

/// Why a scan ends early.
enum Stop {
    Fault(Error),
    /// The text is not what it should be, from here on.
    Damage {
        at: u64,
        what: String,
    },
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Fault(error)
    }
}

type Scan<T> = std::result::Result<T, Stop>;

/// Walks over the frame of a document, which is objects in objects. What stands in it is stepped over where it is plain, and
/// read by serde_json where it is not.
struct Scanner<'a, F: Files> {
    pieces: Pieces<'a, F>,
    buffer: Vec<u8>,
    /// Where the buffer begins in the text.
    start: u64,
    /// Where in the buffer the next token is looked for.
    at: usize,
    ended: bool,
    crc: Option<Crc>,
}

impl<F: Files> Scanner<'_, F> {
    fn position(&self) -> u64 {
        self.start + self.at as u64
    }

    fn damage<T>(&self, what: impl Into<String>) -> Scan<T> {
        Err(Stop::Damage { at: self.position(), what: what.into() })
    }

    /// Adds a piece of text to the buffer, or notes the end.
    fn read_on(&mut self) -> Scan<()> {
        self.buffer.drain(..self.at);
        self.start += self.at as u64;
        self.at = 0;
        // As much again as is there, so that an entity of any size is looked at a few times only.
        let wanted = self.buffer.len() * 2;
        loop {
            match self.pieces.next()? {
                None => {
                    self.ended = true;
                    return Ok(());
                }
                Some(piece) => {
                    if let Some(crc) = &mut self.crc {
                        crc.update(&piece);
                    }
                    if self.buffer.is_empty() {
                        self.buffer = piece;
                    } else {
                        self.buffer.extend_from_slice(&piece);
                    }
                }
            }
            if self.buffer.len() >= wanted {
                return Ok(());
            }
        }
    }

    /// The next byte that is no white space, which stays where it is; none at the end.
    fn peek(&mut self) -> Scan<Option<u8>> {
        loop {
            let rest = &self.buffer[self.at..];
            match rest.iter().position(|byte| !matches!(byte, b' ' | b'\n' | b'\t' | b'\r')) {
                Some(skipped) => {
                    self.at += skipped;
                    return Ok(Some(self.buffer[self.at]));
                }
                None => self.at = self.buffer.len(),
            }
            if self.ended {
                return Ok(None);
            }
            self.read_on()?;
        }
    }

    fn expect(&mut self, token: u8, what: &str) -> Scan<()> {
        match self.peek()? {
            Some(byte) if byte == token => {
                self.at += 1;
                Ok(())
            }
            Some(_) => self.damage(format!("expected {what}")),
            None => self.damage(format!("the text ends where {what} should be")),
        }
    }

    /// Steps over a JSON value and gives what `take` makes of it and of where it begins in the text.
    fn value<T>(&mut self, take: impl Fn(&RawValue, u64) -> Option<T>, what: &str) -> Scan<T> {
        let read = |rest: &[u8], start: u64| {
            let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<&RawValue>();
            let taken = values.next().map(|raw| raw.map(|raw| take(raw, start)));
            (taken, values.byte_offset())
        };
        match self.next(read, what)? {
            (Some(taken), len) => {
                self.at += len;
                Ok(taken)
            }
            (None, _) => self.damage(format!("expected {what}")),
        }
    }

    /// What `read` makes of the JSON value that comes next, and how long that is. `read` is given what is there of the text from
    /// the value on, and where in the text that begins.
    fn next<T>(
        &mut self,
        read: impl Fn(&[u8], u64) -> (Option<serde_json::Result<T>>, usize),
        what: &str,
    ) -> Scan<(T, usize)> {
        if self.peek()?.is_none() {
            return self.damage(format!("the text ends where {what} should be"));
        }
        loop {
            let rest = &self.buffer[self.at..];
            match read(rest, self.position()) {
                // A number at the end of what was read may go on.
                (Some(Ok(_)), len) if len == rest.len() && !self.ended => {}
                (Some(Ok(value)), len) => return Ok((value, len)),
                // What was read may end in the middle of anything. Of a number serde_json then says that it is none.
                (Some(Err(error)), _) if !self.ended && (error.is_eof() || at_of(&error, rest) + 1 >= rest.len()) => {}
                (Some(Err(error)), _) => {
                    let at = self.position();
                    // What is not UTF-8 is told apart from what is not JSON.
                    let (at, what) = match std::str::from_utf8(rest) {
                        Err(utf8) if at_of(&error, rest) >= utf8.valid_up_to() => {
                            (at + utf8.valid_up_to() as u64, "the text is not valid UTF-8".to_owned())
                        }
                        _ => (at + at_of(&error, rest) as u64, without_place(&error)),
                    };
                    return Err(Stop::Damage { at, what });
                }
                (None, _) => return self.damage(format!("expected {what}")),
            }
            self.read_on()?;
        }
    }

    fn name(&mut self, what: &str) -> Scan<Rc<str>> {
        if !matches!(self.peek()?, Some(b'"') | None) {
            return self.damage(format!("expected {what}"));
        }
        if let Some(name) = plain::string(&self.buffer[self.at..]) {
            self.at += name.len() + 2;
            return Ok(name.into());
        }
        let read = |rest: &[u8], _| {
            let mut names = serde_json::Deserializer::from_slice(rest).into_iter();
            (names.next(), names.byte_offset())
        };
        let (name, len): (Box<str>, _) = self.next(read, what)?;
        self.at += len;
        Ok(name.into())
    }

    /// Steps over an object, calling `member` behind each name and colon.
    fn object(
        &mut self,
        what: &str,
        name: &str,
        mut member: impl FnMut(&mut Self, Rc<str>, u64) -> Scan<()>,
    ) -> Scan<()> {
        self.expect(b'{', what)?;
        if self.peek()? == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.peek()?;
            let at = self.position();
            let found = self.name(name)?;
            self.expect(b':', "a colon")?;
            member(self, found, at)?;
            match self.peek()? {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(_) => return self.damage("expected `,` or `}`"),
                None => return self.damage("the text ends inside an object"),
            }
        }
    }

    fn collections(&mut self, is_wanted: &dyn Fn(&str) -> bool) -> Scan<Vec<Member>> {
        let mut members: Vec<Member> = Vec::new();
        self.object("an object of collections", "the name of a collection", |scanner, name, at| {
            if members.iter().any(|member| member.name == *name) {
                return Err(Stop::Damage { at, what: format!("the collection {} is there twice", quoted(&name)) });
            }
            let held = if is_wanted(&name) {
                Held::Entities(scanner.entities(&name)?)
            } else {
                let unread = |raw: &RawValue, start| {
                    let end = start + raw.get().len() as u64;
                    Some(Held::Unread { start, end, is_object: raw.get().starts_with('{') })
                };
                scanner.value(unread, "a value")?
            };
            members.push(Member { name: name.as_ref().to_owned(), held });
            Ok(())
        })?;
        Ok(members)
    }

    /// Steps over an entity.
    fn place(&mut self) -> Scan<Place> {
        self.peek()?;
        let place = |start, len: usize| Some(Place::in_document(start, u32::try_from(len).ok()?));
        if let Some(len) = plain::object(&self.buffer[self.at..])
            && let Some(place) = place(self.position(), len)
        {
            self.at += len;
            return Ok(place);
        }
        self.value(|raw, start| place(start, raw.get().len()), "an entity of less than 4 GiB")
    }

    fn entities(&mut self, collection: &str) -> Scan<Entities> {
        let mut entities = Reading::default();
        let what = format!("the collection {} as an object of entities", quoted(collection));
        self.object(&what, "the id of an entity", |scanner, id, at| {
            let place = scanner.place()?;
            if entities.add(id.clone(), place) {
                return Ok(());
            }
            Err(Stop::Damage { at, what: format!("the id {} is there twice in {}", quoted(&id), quoted(collection)) })
        })?;
        Ok(entities.finish())
    }

    fn end(&mut self) -> Scan<()> {
        match self.peek()? {
            Some(_) => self.damage("there is more behind the document's end"),
            None => Ok(()),
        }
    }
}

/// Where in `text` serde_json stopped.
fn at_of(error: &serde_json::Error, text: &[u8]) -> usize {
    let mut line_starts =
        std::iter::once(0).chain(text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(i, _)| i + 1));
    let line = line_starts.nth(error.line().saturating_sub(1)).unwrap_or(text.len());
    (line + error.column().saturating_sub(1)).min(text.len())
}

fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}
