//! Where a page of a query ended, as text that a caller keeps and gives back with the same query.
//!
//! The text is base64url of: one byte for the kind of place, the place, and a checksum over both and the query that it
//! belongs to. The checksum finds mistakes, such as a cursor of another query or half a cursor. It is no secret: whoever
//! makes up a cursor reaches no more than whoever makes up a query, because a place is only where an answer goes on.

use std::cmp::Ordering;
use std::fmt::Debug;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use larder_model::{ErrorKind, SortKey, json, order};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A place of more bytes is none that a page gives out: a cursor has to fit on a command line and in a URL. Ids have at
/// most 255 characters, so that only values to sort by can be larger.
pub(super) const CURSOR_BYTES_MAX: usize = 4096;
/// Enough that no mistake goes unseen.
const CHECKSUM_BYTES: usize = 12;

/// What a cursor is good for.
pub(super) type Binding = [u8; 32];

/// The binding to whatever tells one query from another.
pub(super) fn binding(query: &impl Debug) -> Binding {
    Sha256::digest(format!("{query:?}")).into()
}

/// Where an answer goes on.
pub(super) enum Place {
    /// The strategy knows.
    Strategy(Vec<u8>),
    /// Behind this position, in the order of a query that the host sorts.
    Behind(Position),
    /// Behind the stored entity's position, whose digest this is: its values are too large for a cursor.
    BehindStored { id: String, digest: [u8; 32] },
}

/// Where an entity stands in the order of a query.
#[derive(Clone)]
pub(super) struct Position {
    keys: Vec<Option<Value>>,
    id: String,
}

impl Position {
    pub(super) fn of(order_by: &[SortKey], id: &str, fields: &Map<String, Value>) -> Position {
        let keys = order_by.iter().map(|key| key.field.get(fields).cloned()).collect();
        Position { keys, id: id.to_owned() }
    }

    pub(super) fn compare(&self, order_by: &[SortKey], other: &Position) -> Ordering {
        order::compare_keys(order_by, (&self.id, &self.keys), (&other.id, &other.keys))
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }

    /// The id, then each key as JSON text, or null where it is absent.
    fn to_bytes(&self) -> Vec<u8> {
        let text = |key: &Value| {
            let mut text = Vec::new();
            json::write_canonical(key, &mut text);
            String::from_utf8(text).expect("JSON is UTF-8")
        };
        let keys = self.keys.iter().map(|key| key.as_ref().map(text));
        let texts: Vec<Option<String>> = [Some(self.id.clone())].into_iter().chain(keys).collect();
        serde_json::to_vec(&texts).expect("texts and a vector cannot fail")
    }

    fn from_bytes(bytes: &[u8]) -> Option<Position> {
        let mut texts = serde_json::from_slice::<Vec<Option<String>>>(bytes).ok()?.into_iter();
        let id = texts.next()??;
        let keys = texts.map(|key| key.map(|key| json::parse(key.as_bytes())).transpose());
        Some(Position { keys: keys.collect::<Result<_, _>>().ok()?, id })
    }
}

const STRATEGY: u8 = 1;
const BEHIND: u8 = 2;
const BEHIND_STORED: u8 = 3;

/// The cursor as text.
pub(super) fn encode(binding: &Binding, place: &Place) -> Result<String> {
    let stored = |id: &str, digest: &[u8; 32]| (BEHIND_STORED, [digest.as_slice(), id.as_bytes()].concat());
    let (kind, place) = match place {
        Place::Strategy(cursor) => (STRATEGY, cursor.clone()),
        Place::Behind(position) => match position.to_bytes() {
            bytes if bytes.len() > CURSOR_BYTES_MAX => stored(&position.id, &position.digest()),
            bytes => (BEHIND, bytes),
        },
        Place::BehindStored { id, digest } => stored(id, digest),
    };
    if place.len() > CURSOR_BYTES_MAX {
        let message = format!("the strategy's cursor has {} bytes, and at most {CURSOR_BYTES_MAX} fit", place.len());
        return Err(Error::contract(ErrorKind::LimitExceeded, message).hint("ask without pages"));
    }
    let mut bytes = vec![kind];
    bytes.extend(place);
    bytes.extend(checksum(binding, &bytes));
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// What [`encode`] made for the same query.
pub(super) fn decode(binding: &Binding, cursor: &str) -> Result<Place> {
    place(binding, cursor).ok_or_else(|| {
        Error::contract(ErrorKind::InvalidArgument, "the cursor is damaged, or of another query or store").hint(
            "give the cursor of the page before as it is, with the same store, collection, filter, order and index; \
             only the limit may change",
        )
    })
}

fn place(binding: &Binding, cursor: &str) -> Option<Place> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (content, checked) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
    let (kind, place) = content.split_first()?;
    if checked != checksum(binding, content) {
        return None;
    }
    match *kind {
        STRATEGY => Some(Place::Strategy(place.to_vec())),
        BEHIND => Position::from_bytes(place).map(Place::Behind),
        BEHIND_STORED => {
            let (digest, id) = place.split_first_chunk()?;
            Some(Place::BehindStored { id: String::from_utf8(id.to_vec()).ok()?, digest: *digest })
        }
        _ => None,
    }
}

/// The cursor that these bytes, a kind and a place, would be: read, and encoded again; none where they are no place.
pub(crate) fn again(content: &[u8]) -> Option<String> {
    let binding = Binding::default();
    let text = BASE64_URL_SAFE_NO_PAD.encode([content, &checksum(&binding, content)].concat());
    encode(&binding, &decode(&binding, &text).ok()?).ok()
}

/// Whether the text is a cursor of a query that nobody asks.
pub(crate) fn is_of_nobody(text: &str) -> bool {
    decode(&Binding::default(), text).is_ok()
}

fn checksum(binding: &Binding, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest: [u8; 32] = Sha256::new().chain_update(binding).chain_update(content).finalize().into();
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&digest[..CHECKSUM_BYTES]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(text: &str) -> Position {
        let fields = json::parse_object(text.as_bytes()).unwrap();
        let order_by: Vec<SortKey> = ["a", "b.c", "d"].map(|field| field.parse().unwrap()).into();
        Position::of(&order_by, "ident/1 é", &fields)
    }

    #[test]
    fn a_position_survives_with_every_digit() {
        for text in [
            "{}",
            r#"{"a":null,"b":{"c":""}}"#,
            r#"{"a":12345678901234567890123456789.10,"b":{"c":1e400},"d":true}"#,
            r#"{"a":"\"\u0001😀","b":{"c":[1.0,{"$serde_json::private::Number":"1"}]},"d":{}}"#,
        ] {
            let given = position(text);
            let query = binding(&"query");
            let Ok(Place::Behind(found)) = decode(&query, &encode(&query, &Place::Behind(given.clone())).unwrap())
            else {
                panic!("{text} is no position any more")
            };
            assert_eq!(found.id, given.id);
            for (found, given) in found.keys.iter().zip(&given.keys) {
                match (found, given) {
                    (Some(found), Some(given)) => assert!(json::equal(found, given), "{found} and {given}"),
                    _ => assert_eq!(found, given),
                }
            }
            assert_eq!(found.digest(), given.digest());
        }
    }

    #[test]
    fn a_large_position_is_looked_up_and_a_cursor_is_never_large() {
        let large = position(&format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20)));
        let query = binding(&"query");
        let cursor = encode(&query, &Place::Behind(large.clone())).unwrap();
        assert!(cursor.len() < 200, "{cursor}");
        let Ok(Place::BehindStored { id, digest }) = decode(&query, &cursor) else { panic!("{cursor}") };
        assert_eq!((id, digest), (large.id.clone(), large.digest()));

        let error = encode(&query, &Place::Strategy(vec![0; CURSOR_BYTES_MAX + 1])).unwrap_err();
        assert!(error.is(ErrorKind::LimitExceeded));
    }

    #[test]
    fn a_cursor_that_is_damaged_or_of_another_query_is_refused() {
        let query = binding(&("requests", 1));
        let cursor = encode(&query, &Place::Strategy(b"place".to_vec())).unwrap();
        assert!(cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{cursor}");
        assert!(matches!(decode(&query, &cursor), Ok(Place::Strategy(place)) if place == b"place"));
        let refused = |query: &Binding, cursor: &str| {
            let error = decode(query, cursor).err().unwrap_or_else(|| panic!("{cursor} was taken"));
            assert!(error.is(ErrorKind::InvalidArgument) && error.hint.is_some());
        };
        refused(&binding(&("requests", 2)), &cursor);
        for cut in 0..cursor.len() {
            refused(&query, &cursor[..cut]);
            let mut changed = cursor.clone().into_bytes();
            changed[cut] = if changed[cut] == b'A' { b'B' } else { b'A' };
            refused(&query, std::str::from_utf8(&changed).unwrap());
        }
        refused(&query, &format!("{cursor}A"));
        refused(&query, "é?");
    }
}
