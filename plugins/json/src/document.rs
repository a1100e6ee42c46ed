//! One file of the store: read and indexed in one pass, and written anew from what it was and what changed.
//!
//! The text is kept as it was read, with the place of each entity in it. An entity is parsed when somebody asks for its
//! members, and copied byte for byte when the document is written, so that a commit leaves everything that it does not
//! change as it stood: spelling, order, and collections that nobody configured.

use std::{
    borrow::Cow,
    cell::{Cell, OnceCell},
    collections::{BTreeMap, HashMap},
    fmt,
    io::{Read, Write},
    rc::Rc,
};

use flate2::{Compression, Crc, read::MultiGzDecoder, write::GzEncoder};
use larder_guest::{FileStat, Files};
use larder_model::{Error, ErrorKind, Result, json::quoted};
use serde::de::{self, DeserializeSeed, MapAccess, Visitor};
use serde_json::{Map, Value, value::RawValue};

use crate::{commit, text};

/// What the name of a compressed document ends with.
const COMPRESSED_SUFFIX: &str = ".gz";
/// One piece of a file that is read, and the most that the host brings a call.
const READ_BYTES: u32 = 64 << 20;
/// How often a document that is replaced while it is read is read again.
const READ_ATTEMPTS_MAX: u32 = 10;

/// What a document's top level is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Collections by name.
    Collections,
    /// The entities of this collection by id.
    Entities(String),
}

/// A file, as it was read last.
pub(crate) struct Document {
    /// As it is configured, without the suffix of compressed ones.
    name: String,
    content: Content,
    known: Known,
    text: Vec<u8>,
    members: Vec<Member>,
}

/// What is known of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// Nothing: it was not looked at, or it cannot be read.
    Nothing,
    Absent,
    Read {
        path: String,
        stat: FileStat,
    },
}

/// A collection in a document.
pub(crate) struct Member {
    name: String,
    /// Where the value of a collection that nobody configured stands. It is not looked into.
    raw: Option<Range>,
    entries: Vec<Entry>,
    by_id: HashMap<Rc<str>, u32>,
    /// Positions of entries by id, made when they are first asked for in order.
    sorted: OnceCell<Vec<u32>>,
}

/// A part of the text.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u32,
    end: u32,
}

/// An entity in the text.
#[derive(Clone)]
struct Entry {
    id: Rc<str>,
    body: Range,
    parsed: OnceCell<Rc<Map<String, Value>>>,
}

/// An entity that was found, in the text or among what changed.
#[derive(Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) body: &'a [u8],
    parsed: Option<&'a OnceCell<Rc<Map<String, Value>>>>,
}

impl<'a> Found<'a> {
    /// An entity of which only the text is there.
    pub(crate) fn text(body: &'a [u8]) -> Self {
        Found { body, parsed: None }
    }

    /// Its members, from what is kept parsed where they are there, and kept while there is `room` for more.
    pub(crate) fn parse(
        &self,
        room: &Cell<usize>,
        parse: impl FnOnce(&[u8]) -> Result<Map<String, Value>>,
    ) -> Result<Rc<Map<String, Value>>> {
        if let Some(parsed) = self.parsed.and_then(OnceCell::get) {
            return Ok(parsed.clone());
        }
        let parsed = Rc::new(parse(self.body)?);
        if let Some(kept) = self.parsed
            && room.get() > 0
            && kept.set(parsed.clone()).is_ok()
        {
            room.set(room.get() - 1);
        }
        Ok(parsed)
    }
}

/// Changes that are not in any document yet, by collection and id.
#[derive(Default)]
pub(crate) struct Changes {
    collections: BTreeMap<String, BTreeMap<Rc<str>, Change>>,
    /// Bytes of all bodies.
    pub(crate) bytes: usize,
    count: u64,
}

struct Change {
    /// None for a removal.
    body: Option<Vec<u8>>,
    /// When it was first made, so that new entities stand in a document in the order they came.
    order: u64,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.collections.is_empty()
    }

    /// Puts a body, or removes where there is none.
    pub(crate) fn set(&mut self, collection: &str, id: &str, body: Option<Vec<u8>>) {
        self.count += 1;
        let order = self.count;
        let added = body.as_ref().map_or(0, Vec::len);
        if !self.collections.contains_key(collection) {
            self.collections.insert(collection.to_owned(), BTreeMap::new());
        }
        let changes = self.collections.get_mut(collection).expect("it was just made");
        match changes.get_mut(id) {
            Some(change) => {
                self.bytes -= change.body.as_ref().map_or(0, Vec::len);
                change.body = body;
            }
            None => {
                changes.insert(id.into(), Change { body, order });
            }
        }
        self.bytes += added;
    }

    /// The outer none where it did not change, the inner where it was removed.
    pub(crate) fn get(&self, collection: &str, id: &str) -> Option<Option<&[u8]>> {
        Some(self.collections.get(collection)?.get(id)?.body.as_deref())
    }

    /// Names of the collections with changes.
    pub(crate) fn collections(&self) -> impl Iterator<Item = &str> {
        self.collections.keys().map(String::as_str)
    }

    fn after(&self, collection: &str, id: Option<&str>) -> impl Iterator<Item = (&Rc<str>, Option<&[u8]>)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = id.map_or(Unbounded, Excluded);
        let changes = self.collections.get(collection);
        let range = changes.into_iter().flat_map(move |changes| changes.range::<str, _>((from, Unbounded)));
        range.map(|(id, change)| (id, change.body.as_deref()))
    }
}

/// A document's next text and what stands where in it.
pub(crate) struct Rendered {
    pub(crate) text: Vec<u8>,
    members: Vec<Member>,
}

impl Document {
    pub(crate) fn new(name: String, content: Content) -> Self {
        Document { name, content, known: Known::Nothing, text: Vec::new(), members: Vec::new() }
    }

    /// The file that it is written to.
    pub(crate) fn path(&self, compressed: bool) -> String {
        if compressed { format!("{}{COMPRESSED_SUFFIX}", self.name) } else { self.name.clone() }
    }

    /// The file that it was read from.
    pub(crate) fn read_from(&self) -> Option<(&str, FileStat)> {
        match &self.known {
            Known::Read { path, stat } => Some((path, *stat)),
            _ => None,
        }
    }

    /// Bytes of text.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// Checksum of the text.
    pub(crate) fn checksum(&self) -> u32 {
        checksum(&self.text)
    }

    /// Whether there is a file. It is looked for, and not read.
    pub(crate) fn exists(&self, files: &impl Files, compressed: bool) -> Result<bool> {
        Ok(self.find_file(files, compressed)?.is_some())
    }

    /// Reads the file where it is another than the one that was read last. A file that is missing is an empty document.
    /// What cannot be read is forgotten, so that it is never taken for what was there before, or for nothing. Says
    /// whether it was read again.
    pub(crate) fn refresh(
        &mut self,
        files: &impl Files,
        compressed: bool,
        is_configured: &dyn Fn(&str) -> bool,
    ) -> Result<bool> {
        for _ in 0..READ_ATTEMPTS_MAX {
            let Some((path, stat)) = self.find_file(files, compressed)? else {
                self.forget();
                self.known = Known::Absent;
                return Ok(true);
            };
            let found = Known::Read { path, stat };
            if found == self.known {
                return Ok(false);
            }
            self.forget();
            let Known::Read { path, stat } = &found else { unreachable!("it was just made") };
            let Some(bytes) = read_whole(files, path, stat.size)? else { continue };
            if files.stat(path)? != Some(*stat) {
                // Replaced or written to while it was read: what came may be half of each.
                continue;
            }
            let read =
                decode(path, bytes).and_then(|text| Ok((parse(path, &text, &self.content, is_configured)?, text)));
            let (members, text) = read.map_err(|error| commit::name_backup(files, path, error))?;
            self.members = members;
            self.text = text;
            self.known = found;
            return Ok(true);
        }
        Err(Error::new(ErrorKind::Unavailable, format!("{} changes faster than it can be read", self.name)))
    }

    fn forget(&mut self) {
        self.known = Known::Nothing;
        self.text = Vec::new();
        self.members = Vec::new();
    }

    /// Where both forms exist, a process died between writing the one and removing the other: what is configured counts.
    fn find_file(&self, files: &impl Files, compressed: bool) -> Result<Option<(String, FileStat)>> {
        for form in [compressed, !compressed] {
            let path = self.path(form);
            if let Some(stat) = files.stat(&path)? {
                return Ok(Some((path, stat)));
            }
        }
        Ok(None)
    }

    fn member(&self, collection: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == collection)
    }

    /// Names of what is stored, configured or not: members that hold an object.
    pub(crate) fn collections(&self) -> impl Iterator<Item = &str> {
        let holds_entities = |member: &&Member| match member.raw {
            Some(raw) => self.text[raw.start as usize] == b'{',
            None => true,
        };
        self.members.iter().filter(holds_entities).map(|member| member.name.as_str())
    }

    fn body(&self, range: Range) -> &[u8] {
        &self.text[range.start as usize..range.end as usize]
    }

    fn found<'a>(&'a self, entry: &'a Entry) -> Found<'a> {
        Found { body: self.body(entry.body), parsed: Some(&entry.parsed) }
    }

    /// What is stored, where `changes` say nothing else.
    pub(crate) fn get<'a>(&'a self, changes: &'a Changes, collection: &str, id: &str) -> Option<Found<'a>> {
        if let Some(change) = changes.get(collection, id) {
            return change.map(Found::text);
        }
        let member = self.member(collection)?;
        member.by_id.get(id).map(|&position| self.found(&member.entries[position as usize]))
    }

    /// Every entity behind `after`, by id.
    pub(crate) fn iter<'a>(
        &'a self,
        changes: &'a Changes,
        collection: &str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a str, Found<'a>)> {
        let member = self.member(collection);
        let sorted = member.map_or(&[][..], Member::sorted);
        let from = match (member, after) {
            (Some(member), Some(after)) => {
                sorted.partition_point(|&position| &*member.entries[position as usize].id <= after)
            }
            _ => 0,
        };
        let mut stored = sorted[from..].iter().filter_map(move |&p| Some(&member?.entries[p as usize])).peekable();
        let mut changed = changes.after(collection, after).peekable();
        std::iter::from_fn(move || {
            loop {
                let take_stored = match (stored.peek(), changed.peek()) {
                    (Some(entry), Some((id, _))) => {
                        if entry.id == **id {
                            stored.next();
                            false
                        } else {
                            entry.id < **id
                        }
                    }
                    (Some(_), None) => true,
                    (None, _) => false,
                };
                if take_stored {
                    let entry = stored.next()?;
                    return Some((&*entry.id, self.found(entry)));
                }
                let (id, body) = changed.next()?;
                if let Some(body) = body {
                    return Some((&**id, Found::text(body)));
                }
            }
        })
    }

    /// How many entities there are.
    pub(crate) fn count(&self, changes: &Changes, collection: &str) -> u64 {
        let member = self.member(collection);
        let is_stored = |id: &str| member.is_some_and(|member| member.by_id.contains_key(id));
        let stored = member.map_or(0, |member| member.entries.len() as u64);
        changes.after(collection, None).fold(stored, |count, (id, body)| match (is_stored(id), body) {
            (false, Some(_)) => count + 1,
            (true, None) => count - 1,
            _ => count,
        })
    }

    /// Whether `changes` would change this document: a removal of what is not stored does not.
    pub(crate) fn would_change(&self, changes: &Changes) -> bool {
        let mut names = changes.collections().filter(|name| self.holds(name));
        names.any(|name| {
            let member = self.member(name);
            let is_stored = |id: &str| member.is_some_and(|member| member.by_id.contains_key(id));
            changes.after(name, None).any(|(id, body)| body.is_some() || is_stored(id))
        })
    }

    /// Whether a collection is stored in this document.
    pub(crate) fn holds(&self, collection: &str) -> bool {
        match &self.content {
            Content::Collections => true,
            Content::Entities(name) => name == collection,
        }
    }

    /// The document as it is with the changes of its collections.
    pub(crate) fn render(&self, changes: &Changes) -> Result<Rendered> {
        let mut out = Vec::with_capacity(self.text.len() + changes.bytes + changes.bytes / 4 + 64);
        let mut members = Vec::new();
        match &self.content {
            Content::Entities(name) => members.push(self.render_member(name, changes, 0, &mut out)),
            Content::Collections => {
                let stored = self.members.iter().map(|member| member.name.as_str());
                let adds = |name: &&str| {
                    self.member(name).is_none() && changes.after(name, None).any(|(_, body)| body.is_some())
                };
                let names: Vec<_> = stored.chain(changes.collections().filter(adds)).collect();
                out.push(b'{');
                for (i, name) in names.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    text::new_line(1, &mut out);
                    text::name(name, &mut out);
                    members.push(self.render_member(name, changes, 1, &mut out));
                }
                if !names.is_empty() {
                    text::new_line(0, &mut out);
                }
                out.push(b'}');
            }
        }
        out.push(b'\n');
        check_size(&self.name, out.len())?;
        Ok(Rendered { text: out, members })
    }

    fn render_member(&self, name: &str, changes: &Changes, depth: usize, out: &mut Vec<u8>) -> Member {
        let member = self.member(name);
        let mut rendered = Member::new(name.to_owned());
        if let Some(raw) = member.and_then(|member| member.raw) {
            let start = out.len() as u32;
            out.extend_from_slice(self.body(raw));
            rendered.raw = Some(Range { start, end: out.len() as u32 });
            return rendered;
        }
        let changes = changes.collections.get(name);
        let stored = member.map_or(&[][..], |member| &member.entries);
        out.push(b'{');
        for entry in stored {
            match changes.and_then(|changes| changes.get(&entry.id)) {
                None => {
                    rendered.begin_entity(&entry.id, depth, out);
                    out.extend_from_slice(self.body(entry.body));
                    rendered.end_entity(entry.parsed.clone(), out);
                }
                Some(Change { body: Some(body), .. }) => {
                    rendered.begin_entity(&entry.id, depth, out);
                    text::pretty(body, depth + 1, out);
                    rendered.end_entity(OnceCell::new(), out);
                }
                Some(Change { body: None, .. }) => {}
            }
        }
        let kept = rendered.entries.len();
        let is_new = |id: &str| !member.is_some_and(|member| member.by_id.contains_key(id));
        let mut new: Vec<_> = changes
            .into_iter()
            .flatten()
            .filter_map(|(id, change)| Some((change.order, id, change.body.as_ref()?)))
            .filter(|(_, id, _)| is_new(id))
            .collect();
        new.sort_unstable_by_key(|(order, ..)| *order);
        for (_, id, body) in new {
            rendered.begin_entity(id, depth, out);
            text::pretty(body, depth + 1, out);
            rendered.end_entity(OnceCell::new(), out);
        }
        if !rendered.entries.is_empty() {
            text::new_line(depth, out);
        }
        out.push(b'}');
        // Positions stay where nothing was removed; the maps are then carried over by `install`.
        if kept < stored.len() {
            rendered.index();
        }
        rendered
    }

    /// Takes over what was written.
    pub(crate) fn install(&mut self, rendered: Rendered, path: String, stat: FileStat) {
        let mut old: HashMap<_, _> = self.members.drain(..).map(|member| (member.name.clone(), member)).collect();
        self.members = rendered.members;
        for member in &mut self.members {
            if member.by_id.is_empty() && !member.entries.is_empty() {
                if let Some(old) = old.remove(&member.name) {
                    member.by_id = old.by_id;
                    if old.entries.len() == member.entries.len() {
                        member.sorted = old.sorted;
                    }
                }
                for position in member.by_id.len()..member.entries.len() {
                    member.by_id.insert(member.entries[position].id.clone(), position as u32);
                }
            }
        }
        self.text = rendered.text;
        self.known = Known::Read { path, stat };
    }

    /// How many entities are kept parsed.
    pub(crate) fn parsed(&self) -> usize {
        let entries = self.members.iter().flat_map(|member| &member.entries);
        entries.filter(|entry| entry.parsed.get().is_some()).count()
    }
}

impl Member {
    fn new(name: String) -> Self {
        Member { name, raw: None, entries: Vec::new(), by_id: HashMap::new(), sorted: OnceCell::new() }
    }

    fn sorted(&self) -> &[u32] {
        self.sorted.get_or_init(|| {
            let mut sorted: Vec<u32> = (0..self.entries.len() as u32).collect();
            sorted.sort_unstable_by(|&a, &b| self.entries[a as usize].id.cmp(&self.entries[b as usize].id));
            sorted
        })
    }

    fn index(&mut self) {
        self.by_id = self.entries.iter().zip(0..).map(|(entry, position)| (entry.id.clone(), position)).collect();
    }

    fn begin_entity(&mut self, id: &Rc<str>, depth: usize, out: &mut Vec<u8>) {
        if !self.entries.is_empty() {
            out.push(b',');
        }
        text::new_line(depth + 1, out);
        text::name(id, out);
        let start = out.len() as u32;
        self.entries.push(Entry { id: id.clone(), body: Range { start, end: start }, parsed: OnceCell::new() });
    }

    fn end_entity(&mut self, parsed: OnceCell<Rc<Map<String, Value>>>, out: &[u8]) {
        let entry = self.entries.last_mut().expect("an entity was begun");
        entry.body.end = out.len() as u32;
        entry.parsed = parsed;
    }
}

/// CRC-32, which tells a torn or foreign file from what was written; it is no defence against forgery.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Places in a text are kept in 32 bits, which is also all that a component can hold.
fn check_size(name: &str, size: usize) -> Result<()> {
    match u32::try_from(size) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new(ErrorKind::LimitExceeded, format!("{name} is larger than 4 GiB"))),
    }
}

/// None where the file went away or shrank meanwhile.
pub(crate) fn read_whole(files: &impl Files, path: &str, size: u64) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let wanted = (size - bytes.len() as u64).min(READ_BYTES.into()) as u32;
        match files.read(path, bytes.len() as u64, wanted)? {
            Some(part) if part.is_empty() => return Ok(None),
            Some(part) if bytes.is_empty() => bytes = part,
            Some(part) => bytes.extend_from_slice(&part),
            None => return Ok(None),
        }
    }
    Ok(Some(bytes))
}

/// What a file says, decompressed where its name says that it is compressed.
pub(crate) fn decode(path: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if !path.ends_with(COMPRESSED_SUFFIX) {
        return Ok(bytes);
    }
    let mut text = Vec::new();
    // One byte more than can be used: what is larger is refused, however small it was compressed.
    let read = MultiGzDecoder::new(&*bytes).take(u64::from(u32::MAX) + 1).read_to_end(&mut text);
    read.map_err(|error| Error::corrupt(format!("{path} is not valid gzip: {error}")))?;
    Ok(text)
}

/// The opposite of [`decode`].
pub(crate) fn encode<'a>(path: &str, text: &'a [u8]) -> Result<Cow<'a, [u8]>> {
    if !path.ends_with(COMPRESSED_SUFFIX) {
        return Ok(text.into());
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(text).and_then(|()| encoder.finish());
    let failed = |error| Error::new(ErrorKind::Internal, format!("{path} cannot be compressed: {error}"));
    written.map(Cow::Owned).map_err(failed)
}

/// Reads a document's text. `path` is for messages.
fn parse(path: &str, text: &[u8], content: &Content, is_configured: &dyn Fn(&str) -> bool) -> Result<Vec<Member>> {
    check_size(path, text.len())?;
    if text.is_empty() {
        return Err(Error::corrupt(format!("{path} is empty, which no JSON document is")));
    }
    let text = std::str::from_utf8(text).map_err(|error| {
        let before = &text[..error.valid_up_to()];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        Error::corrupt(format!("{path} is not valid UTF-8 at line {line} column {column}"))
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let reader = Reader { text, is_configured };
    let members = match content {
        Content::Collections => CollectionsOf(&reader).deserialize(&mut deserializer),
        Content::Entities(name) => {
            EntitiesOf { reader: &reader, name: name.clone() }.deserialize(&mut deserializer).map(|member| vec![member])
        }
    };
    members
        .and_then(|members| deserializer.end().map(|()| members))
        .map_err(|error| Error::corrupt(format!("{path} is no document of entities: {error}")))
}

/// As serde has it, beside the contract's own.
type Results<T, E> = std::result::Result<T, E>;

struct Reader<'a> {
    text: &'a str,
    is_configured: &'a dyn Fn(&str) -> bool,
}

impl Reader<'_> {
    fn range(&self, value: &RawValue) -> Range {
        let start = value.get().as_ptr().addr() - self.text.as_ptr().addr();
        Range { start: start as u32, end: (start + value.get().len()) as u32 }
    }
}

struct CollectionsOf<'a>(&'a Reader<'a>);

impl<'de> DeserializeSeed<'de> for CollectionsOf<'_> {
    type Value = Vec<Member>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Results<Vec<Member>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for CollectionsOf<'_> {
    type Value = Vec<Member>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of collections")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Results<Vec<Member>, A::Error> {
        let mut members: Vec<Member> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.iter().any(|member| member.name == name) {
                return Err(de::Error::custom(format!("the collection {} is there twice", quoted(&name))));
            }
            members.push(if (self.0.is_configured)(&name) {
                map.next_value_seed(EntitiesOf { reader: self.0, name })?
            } else {
                let raw: &RawValue = map.next_value()?;
                Member { raw: Some(self.0.range(raw)), ..Member::new(name) }
            });
        }
        Ok(members)
    }
}

struct EntitiesOf<'a> {
    reader: &'a Reader<'a>,
    name: String,
}

impl<'de> DeserializeSeed<'de> for EntitiesOf<'_> {
    type Value = Member;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Results<Member, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntitiesOf<'_> {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the collection {} as an object of entities", quoted(&self.name))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Results<Member, A::Error> {
        let mut member = Member::new(self.name);
        while let Some(id) = map.next_key::<String>()? {
            let id: Rc<str> = id.into();
            let body = self.reader.range(map.next_value::<&RawValue>()?);
            if member.by_id.insert(id.clone(), member.entries.len() as u32).is_some() {
                let (id, name) = (quoted(&id), quoted(&member.name));
                return Err(de::Error::custom(format!("the id {id} is there twice in {name}")));
            }
            member.entries.push(Entry { id, body, parsed: OnceCell::new() });
        }
        Ok(member)
    }
}
