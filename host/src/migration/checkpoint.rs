//! What a migration remembers of itself on the disk, so that another process can go on where it stopped: one small file
//! that is replaced as a whole, with a checksum, in a folder for each pair of stores, and a lock, so that only one works on
//! it. It is bound to a fingerprint of all that must be the same for that.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use larder_model::ErrorKind;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::Start;
use super::digest::hash;
use super::pages::Position;
use crate::error::{Error, Kind, Result};

/// What the file begins with; another layout gets another number.
const FORMAT: &str = "larder-migration-1";
const STATE: &str = "state";
const RESTART_HINT: &str = "--restart forgets it and starts afresh; what has arrived already counts as unchanged then";

/// Where a migration stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// When it began.
    pub(super) started: String,
    pub(super) fingerprint: BTreeMap<String, String>,
    /// Where the backup is, once it is there.
    pub(super) backup: Option<PathBuf>,
    /// Where the entities are that were left out.
    pub(super) quarantine: Option<PathBuf>,
    /// Those of them that broke no rule that was known, until the target refused them.
    pub(super) refused: Vec<Refused>,
    /// The target was found equal, and the source is being cleaned up: it is not to be compared any more.
    pub(super) is_cleaning: bool,
    pub(super) collections: Vec<Progress>,
}

/// An entity that the target refused while the others were moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Refused {
    pub(super) collection: String,
    pub(super) key: String,
    /// What the target said.
    pub(super) rule: String,
}

/// Where the migration of one collection stands. What is counted here is durable in the target.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) name: String,
    /// As the source was when the migration began.
    pub(super) read: u64,
    pub(super) digest: String,
    /// Whether the target held anything before.
    pub(super) occupied: bool,
    pub(super) written: u64,
    pub(super) unchanged: u64,
    pub(super) skipped: u64,
    pub(super) quarantined: u64,
    /// Of each segment.
    pub(super) positions: Vec<Position>,
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.cursor.as_ref().map(|cursor| BASE64_STANDARD.encode(cursor)), self.skip, self.ended).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Position, D::Error> {
        let (cursor, skip, ended) = <(Option<String>, u64, bool)>::deserialize(deserializer)?;
        let cursor = cursor.map(|text| BASE64_STANDARD.decode(text)).transpose().map_err(serde::de::Error::custom)?;
        Ok(Position { cursor, skip, ended })
    }
}

/// The folder of one pair of stores, locked as long as this is held.
pub(super) struct Place {
    folder: PathBuf,
    _lock: File,
}

impl Place {
    /// Below `state`; another process that holds it is an error.
    pub(super) fn open(state: &Path, from: &str, to: &str) -> Result<Place> {
        let folder = state.join(folder_name(from, to));
        let failed = |error: io::Error| failure(&folder, error);
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let path = folder.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Place { folder, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(Error::contract(ErrorKind::Unavailable, format!("another process is migrating `{from}` to `{to}`"))
                    .hint("wait until it has ended, or end it; --resume then goes on where it stopped"))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Where everything of this pair is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The state to go on from, as `start` has it; none to begin at the beginning. An unfinished migration is neither
    /// forgotten unasked nor gone on with unasked.
    pub(super) fn begin(&self, start: Start, fingerprint: &BTreeMap<String, String>) -> Result<Option<State>> {
        if start == Start::Restart {
            self.remove_state()?;
            return Ok(None);
        }
        let Some(state) = self.read()? else { return Ok(None) };
        if start == Start::Afresh {
            let moved: u64 = state.collections.iter().map(|it| it.written + it.unchanged + it.skipped).sum();
            let read: u64 = state.collections.iter().map(|it| it.read).sum();
            return Err(Error::new(Kind::Usage, "an earlier run of this migration was not finished")
                .caused_by(format!("it began at {} and had moved {moved} of {read} entities", state.started))
                .hint(format!("--resume goes on where it stopped; {RESTART_HINT}")));
        }
        let differences = differences(&state.fingerprint, fingerprint);
        if differences.is_empty() {
            return Ok(Some(state));
        }
        let error = Error::new(Kind::Usage, "the migration cannot go on: it was begun with something else");
        let error = differences.into_iter().fold(error, Error::caused_by);
        Err(error.hint(format!("put it back as it was for --resume; {RESTART_HINT}")))
    }

    fn read(&self) -> Result<Option<State>> {
        let path = self.folder.join(STATE);
        match std::fs::read(&path) {
            Ok(bytes) => decode(&bytes).map(Some).ok_or_else(|| {
                Error::contract(ErrorKind::Corrupt, format!("the state of the migration {} is damaged", path.display()))
                    .hint(RESTART_HINT)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failure(&path, error)),
        }
    }

    /// Durable when it returns.
    pub(super) fn write(&self, state: &State) -> Result<()> {
        self.replace(STATE, &encode(state)).map(drop)
    }

    /// Nothing is left to go on from.
    pub(super) fn remove_state(&self) -> Result<()> {
        let path = self.folder.join(STATE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failure(&path, error)),
            _ => self.sync(),
        }
    }

    /// Where something that belongs to the run that began then is kept: no two runs have the same names.
    pub(super) fn path_of(&self, what: &str, started: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{what}-{}.{extension}", started.replace(['-', ':'], "")))
    }

    /// Writes a file of the folder as a whole or not at all.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let (path, partial) = (self.folder.join(name), self.folder.join(format!("{name}.partial")));
        let written = File::create(&partial)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&partial, &path));
        written.map_err(|error| failure(&path, error))?;
        self.sync()?;
        Ok(path)
    }

    /// Makes the names in it durable.
    pub(super) fn sync(&self) -> Result<()> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| failure(&self.folder, error))
    }
}

pub(super) fn failure(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::LimitExceeded
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::contract(kind, format!("cannot keep the state of the migration in {}", path.display()))
        .caused_by(error)
        .hint("it lies in the folder `.larder` beside the configuration, which must be writable")
}

/// `json+sql`. Names that could mean something to a file system are replaced by their hash.
fn folder_name(from: &str, to: &str) -> String {
    let is_plain = |name: &str| {
        let plain = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == '-';
        !name.is_empty() && name.len() <= 100 && name.chars().all(plain)
    };
    if is_plain(from) && is_plain(to) {
        return format!("{from}+{to}");
    }
    crate::plugin::hex(&hash(&[from, to]))
}

/// A line with the checksum of what follows, and JSON.
fn encode(state: &State) -> Vec<u8> {
    // Maps with text for keys, numbers and texts: nothing that could not be written.
    let body = serde_json::to_vec(state).unwrap_or_default();
    let mut bytes = format!("{FORMAT} {}\n", crate::plugin::hex(&Sha256::digest(&body))).into_bytes();
    bytes.extend(body);
    bytes
}

/// None where it is not what was written.
fn decode(bytes: &[u8]) -> Option<State> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
    let checksum = head.strip_prefix(FORMAT)?.strip_prefix(' ')?;
    if checksum != crate::plugin::hex(&Sha256::digest(body)) {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// What is read of a state, as it is written.
pub(crate) fn again(bytes: &[u8]) -> Option<Vec<u8>> {
    decode(bytes).as_ref().map(encode)
}

/// A sentence for whatever is not the same.
fn differences(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
    let value =
        |map: &BTreeMap<String, String>, name: &String| map.get(name).cloned().unwrap_or_else(|| "not there".into());
    let differing = names.filter(|name| before.get(*name) != now.get(*name));
    differing.map(|name| format!("{name}: it was {}, and is {}", value(before, name), value(now, name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let position = Position { cursor: Some(vec![0, 255, 10]), skip: 7, ended: false };
        let progress = Progress {
            name: "machines".into(),
            written: 3,
            positions: vec![position, Position { ended: true, ..Position::default() }],
            ..Progress::default()
        };
        State {
            started: "2026-11-24T00:00:00Z".into(),
            fingerprint: BTreeMap::from([("a".into(), "1".into())]),
            collections: vec![progress],
            ..State::default()
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let read = decode(&encode(&state())).unwrap();
        assert_eq!(read.collections[0].positions, state().collections[0].positions);
        assert_eq!((read.fingerprint, read.collections[0].written), (state().fingerprint, 3));
    }

    #[test]
    fn a_state_that_is_torn_or_changed_at_any_byte_is_none() {
        let whole = encode(&state());
        for at in 0..whole.len() {
            assert!(decode(&whole[..at]).is_none(), "cut off at {at}");
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(decode(&changed).is_none(), "changed at {at}");
            let mut zeroed = whole.clone();
            zeroed[at..].fill(0);
            assert!(decode(&zeroed).is_none(), "zeros from {at}");
        }
    }

    #[test]
    fn a_difference_is_named_with_both_values() {
        let now = BTreeMap::from([("a".into(), "2".into()), ("b".into(), "3".into())]);
        assert_eq!(differences(&state().fingerprint, &now), ["a: it was 1, and is 2", "b: it was not there, and is 3"]);
        assert!(differences(&now, &now).is_empty());
    }

    #[test]
    fn no_two_pairs_share_a_folder_and_no_name_leaves_it() {
        assert_eq!(folder_name("json", "sql"), "json+sql");
        for (from, to) in [("..", "x"), ("a/b", "c"), ("a", "/b"), ("", "a"), ("a+b", "c"), ("a", "b+c")] {
            let name = folder_name(from, to);
            assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        }
        assert_ne!(folder_name("a+b", "c"), folder_name("a", "b+c"));
    }
}
