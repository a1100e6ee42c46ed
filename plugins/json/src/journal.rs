//! The journal: a file beside the documents that commits are appended to, until they are folded into the documents.
//!
//! It is text, a record a line: a checksum, the length of the JSON that follows, and the JSON.
//!
//! ```text
//! 5d3a9c10 49 {"start":{"format":1,"id":"7a1f00c2b4e93d58"}}
//! 0c61e7f2 90 {"base":{"document":"request_database.json","text":{"bytes":1830,"crc32":912837465}}}
//! b7720c4e 69 {"writes":[["requests","req-1",{…}],["machines","machine-7",null]]}
//! ```
//!
//! `writes` is a commit: bodies, or `null` for a removal. `base` stands before the first commit that concerns a document
//! and says which text its commits belong to. Checksums begin with the journal's id, so that a line of an older journal,
//! which a crash may leave in a block, is not one of this.
//!
//! A record that a crash cut short has no line end, and was not acknowledged: the next writer cuts it off. Anything else
//! that does not fit its checksum was damaged later, and is `corrupt`.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _};

use flate2::Crc;
use larder_guest::{FileStat, Files};
use larder_model::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    changes::Changes,
    document::{Content, Fingerprint},
    index::Place,
    reader,
};

const FORMAT: u32 = 1;
/// Checksum and space.
const CHECKSUM_BYTES: usize = 9;
/// Digits of the longest length.
const LENGTH_DIGITS_MAX: usize = 10;
/// Read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Which text the commits on a document belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Base {
    /// Its name, without the suffix of compressed ones.
    pub(crate) document: String,
    /// The collection that is all of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) collection: Option<String>,
    /// None where there was no file.
    pub(crate) text: Option<Fingerprint>,
}

impl Base {
    pub(crate) fn content(&self) -> Content {
        self.collection.clone().map_or(Content::Collections, Content::Entities)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record<'a> {
    Start {
        format: u32,
        id: String,
    },
    Base(Base),
    #[serde(borrow)]
    Writes(Vec<(Text<'a>, Text<'a>, &'a RawValue)>),
}

/// Borrowed where it has no escapes.
#[derive(Serialize, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A write of a commit, as it is found in the journal.
pub(crate) struct Line<'a> {
    pub(crate) collection: &'a str,
    pub(crate) id: &'a str,
    /// None for a removal.
    pub(crate) place: Option<Place>,
    pub(crate) body: &'a [u8],
    /// Where its record begins.
    pub(crate) at: u64,
}

/// What was read of the journal.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    id: String,
    /// Of the file when it was read last.
    pub(crate) stat: FileStat,
    /// Behind the last whole record.
    pub(crate) end: u64,
    /// By the document's name, each with where it stands: what the journal has of the document before that is in it.
    pub(crate) bases: BTreeMap<String, (Base, u64)>,
    pub(crate) commits: u64,
    records: u64,
}

impl Journal {
    /// A journal with nothing in it, to be found out by [`Journal::read_on`].
    pub(crate) fn unread(stat: FileStat) -> Self {
        Journal { id: String::new(), stat, end: 0, bases: BTreeMap::new(), commits: 0, records: 0 }
    }

    /// Reads what was appended since, giving each write to `visit`, with the base of every document before its writes.
    /// A record that is not whole is left for later. Where something has damaged one, what stands before it is read, and the
    /// answer says so.
    pub(crate) fn read_on(
        &mut self,
        files: &impl Files,
        path: &str,
        stat: FileStat,
        mut on_base: impl FnMut(&Base),
        mut visit: impl FnMut(Line<'_>),
    ) -> Result<Option<Error>> {
        let mut buffer = Vec::new();
        let mut read_to = self.end;
        let mut damage = None;
        while read_to < stat.size && damage.is_none() {
            // As much again as is there, so that a record of any size is looked at a few times only.
            let count = (stat.size - read_to).min(PIECE_BYTES.max(buffer.len() as u64));
            buffer.extend_from_slice(&reader::read_exactly(files, path, read_to, count as usize)?);
            read_to += count;
            let mut at = 0;
            while let Some(length) = buffer[at..].iter().position(|&byte| byte == b'\n') {
                let line = &buffer[at..at + length];
                if let Err(what) = self.take(line, &mut on_base, &mut visit) {
                    damage = Some(what);
                    break;
                }
                at += length + 1;
                self.end += length as u64 + 1;
                self.records += 1;
            }
            buffer.drain(..at);
        }
        if damage.is_none() && is_whole_but_for_its_end(&buffer) {
            damage = Some("the end of a record is not its end".to_owned());
        }
        self.stat = stat;
        Ok(damage.map(|what| {
            if what.is_empty() {
                let message = format!("{path} was written by a newer version of the json strategy");
                return Error::new(ErrorKind::Unsupported, message);
            }
            Error::corrupt(format!("{path} is damaged at line {}: {what}", self.records + 1))
        }))
    }

    /// One line without its end. The error is empty where the format is a newer one.
    fn take(
        &mut self,
        line: &[u8],
        on_base: &mut impl FnMut(&Base),
        visit: &mut impl FnMut(Line<'_>),
    ) -> std::result::Result<(), String> {
        let (json, checksum) = split(line).ok_or("it is no record")?;
        let text = std::str::from_utf8(json).map_err(|_| "it is not valid UTF-8")?;
        let is_first = self.records == 0;
        if !is_first && checksum != checksum_of(&self.id, json) {
            return Err("the checksum is not that of what stands there".to_owned());
        }
        let record: Record<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match record {
            Record::Start { format, id } if is_first => {
                if checksum != checksum_of(&id, json) {
                    return Err("the checksum is not that of what stands there".to_owned());
                }
                if format != FORMAT {
                    return Err(String::new());
                }
                self.id = id;
            }
            Record::Base(base) if !is_first => {
                on_base(&base);
                self.bases.insert(base.document.clone(), (base, self.end));
            }
            Record::Writes(writes) if !is_first => {
                let json_start = self.end + (line.len() - json.len()) as u64;
                self.commits += 1;
                for (Text(collection), Text(id), body) in &writes {
                    let body = body.get();
                    let offset = json_start + (body.as_ptr().addr() - text.as_ptr().addr()) as u64;
                    let place = (body != "null").then(|| Place::in_journal(offset, body.len() as u32));
                    visit(Line { collection, id, place, body: body.as_bytes(), at: self.end });
                }
            }
            _ => return Err("it does not belong there".to_owned()),
        }
        Ok(())
    }

    /// Whether the file at `path` is still this journal, whatever was appended to it.
    pub(crate) fn is_there(&self, files: &impl Files, path: &str) -> Result<bool> {
        match files.stat(path)? {
            None => Ok(false),
            Some(stat) if stat == self.stat => Ok(true),
            Some(_) => {
                let start = start_record(&self.id);
                Ok(files.read(path, 0, start.len() as u32)?.is_some_and(|found| found == start))
            }
        }
    }
}

/// The JSON of a line and the checksum before it, where the line is as long as it says.
fn split(line: &[u8]) -> Option<(&[u8], u32)> {
    let checksum = u32::from_str_radix(std::str::from_utf8(line.get(..CHECKSUM_BYTES - 1)?).ok()?, 16).ok()?;
    let rest = line[CHECKSUM_BYTES - 1..].strip_prefix(b" ")?;
    let digits = rest.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    let json = &rest[digits + 1..];
    // As it is written, so that no other spelling passes for it.
    let is_plain = line[..CHECKSUM_BYTES - 1].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && rest[..digits] == *length.to_string().as_bytes();
    (json.len() == length && is_plain).then_some((json, checksum))
}

/// Whether what stands behind the last line end is as long as it says: then it was not cut short, but damaged.
fn is_whole_but_for_its_end(tail: &[u8]) -> bool {
    let Some(rest) = tail.get(CHECKSUM_BYTES..) else { return false };
    let head = &rest[..rest.len().min(LENGTH_DIGITS_MAX + 1)];
    let Some(digits) = head.iter().position(|&byte| byte == b' ') else { return false };
    let length = std::str::from_utf8(&rest[..digits]).ok().and_then(|digits| digits.parse::<usize>().ok());
    length.is_some_and(|length| rest.len() - digits - 1 > length)
}

fn checksum_of(id: &str, json: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(id.as_bytes());
    crc.update(json);
    crc.sum()
}

fn record(id: &str, json: &[u8], out: &mut Vec<u8>) -> u64 {
    let mut head = String::with_capacity(CHECKSUM_BYTES + LENGTH_DIGITS_MAX + 1);
    write!(head, "{:08x} {} ", checksum_of(id, json), json.len()).expect("text cannot fail");
    out.extend_from_slice(head.as_bytes());
    let start = out.len() as u64;
    out.extend_from_slice(json);
    out.push(b'\n');
    start
}

fn start_record(id: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let start = Record::Start { format: FORMAT, id: id.to_owned() };
    record(id, &serde_json::to_vec(&start).expect("text and numbers cannot fail"), &mut out);
    out
}

/// Records that are to be appended at once.
pub(crate) struct Appendix {
    id: String,
    pub(crate) bytes: Vec<u8>,
    /// Where the bytes will begin in the file.
    offset: u64,
    bases: Vec<(Base, u64)>,
    commits: u64,
    records: u64,
}

impl Appendix {
    /// Behind `journal`, or at the beginning of a new one with the id `new_id`.
    pub(crate) fn new(journal: Option<&Journal>, new_id: impl FnOnce() -> String) -> Self {
        match journal {
            // A journal of which not even the first line is there is begun anew.
            Some(journal) if journal.records > 0 => Appendix {
                id: journal.id.clone(),
                bytes: Vec::new(),
                offset: journal.end,
                bases: Vec::new(),
                commits: 0,
                records: 0,
            },
            _ => {
                let id = new_id();
                Appendix { bytes: start_record(&id), id, offset: 0, bases: Vec::new(), commits: 0, records: 1 }
            }
        }
    }

    pub(crate) fn base(&mut self, base: Base) {
        let json = serde_json::to_vec(&Record::Base(base.clone())).expect("text and numbers cannot fail");
        let at = self.end();
        record(&self.id, &json, &mut self.bytes);
        self.bases.push((base, at));
        self.records += 1;
    }

    /// A commit of everything in `changes`; gives where each body will lie, in the order of [`Changes::in_order`].
    pub(crate) fn commit(&mut self, changes: &Changes) -> Vec<Option<Place>> {
        let mut json = b"{\"writes\":[".to_vec();
        let mut places = Vec::new();
        for (i, (collection, id, change)) in changes.in_order().into_iter().enumerate() {
            json.extend_from_slice(if i == 0 { b"[" } else { b",[" });
            for name in [collection, id] {
                serde_json::to_writer(&mut json, name).expect("text into a vector cannot fail");
                json.push(b',');
            }
            places.push(change.body.as_ref().map(|body| (json.len() as u64, body.len() as u32)));
            json.extend_from_slice(change.body.as_deref().unwrap_or(b"null"));
            json.push(b']');
        }
        json.extend_from_slice(b"]}");
        let start = self.offset + record(&self.id, &json, &mut self.bytes);
        self.commits += 1;
        self.records += 1;
        places.into_iter().map(|place| place.map(|(at, len)| Place::in_journal(start + at, len))).collect()
    }

    /// The journal with these records behind it; `stat` is that of the file.
    pub(crate) fn appended(self, journal: Option<Journal>, stat: FileStat) -> Journal {
        let continued = journal.filter(|_| self.offset > 0);
        let mut journal = continued.unwrap_or_else(|| Journal { id: self.id, ..Journal::unread(stat) });
        journal.stat = stat;
        journal.end = self.offset + self.bytes.len() as u64;
        journal.commits += self.commits;
        journal.records += self.records;
        journal.bases.extend(self.bases.into_iter().map(|(base, at)| (base.document.clone(), (base, at))));
        journal
    }

    /// The size of the file once these records are there.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
}
