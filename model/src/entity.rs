//! What makes an object an entity of a collection, and what a write makes of it: key, version, times, expectations.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::json::{self, MemberRef, Members, Object, quoted};
use crate::{Collection, Entity, Error, ErrorKind, Expectation, Result, Write};

/// The longest id.
pub const ID_CHARS_MAX: usize = 255;

/// The largest version: what a signed 64-bit column holds.
pub const VERSION_MAX: u64 = i64::MAX as u64;

/// Whether an entity can be stored under this name: 1 to [`ID_CHARS_MAX`] characters, none of them a control character.
pub fn check_id(id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Error::invalid("an id is not empty"));
    }
    if id.len() > ID_CHARS_MAX && id.chars().nth(ID_CHARS_MAX).is_some() {
        return Err(Error::invalid(format!("an id has at most {ID_CHARS_MAX} characters: {}", quoted(id))));
    }
    if id.chars().any(char::is_control) {
        return Err(Error::invalid(format!("an id has no control characters: {}", quoted(id))));
    }
    Ok(())
}

/// The id that the entity's key member holds.
pub fn key_of<'a>(collection: &Collection, entity: &'a impl Object) -> Result<&'a str> {
    let key_member = || format!("{}: the key member {}", collection.name, quoted(&collection.key));
    match entity.get(&collection.key) {
        Some(MemberRef::Text(id)) => match check_id(id) {
            Ok(()) => Ok(id),
            Err(error) => Err(Error::invalid(format!("{} holds no id: {error}", key_member()))),
        },
        Some(other) => Err(Error::invalid(format!("{} is {}, not a string", key_member(), other.type_name()))),
        None => Err(Error::invalid(format!("{} is missing", key_member()))),
    }
}

/// The entity's version; 0 where it has none that is spelt as a non-negative integer below 2^63.
pub fn version_of(collection: &Collection, entity: &impl Object) -> u64 {
    match entity.get(&collection.stamps.version) {
        Some(MemberRef::Other(version)) => usable_version(version).unwrap_or(0),
        _ => 0,
    }
}

/// The version after this one. After the largest comes 1 again, so that no two versions in a row are equal.
pub fn next_version(version: u64) -> u64 {
    version % VERSION_MAX + 1
}

/// Of what is stored, all that [`version_of`] and [`stamp`] look at.
///
/// # Errors
/// Those of [`json::parse_object`].
pub fn stamped_members(collection: &Collection, body: &[u8]) -> Result<Map<String, Value>> {
    let stamps = &collection.stamps;
    let times = stamps.created.iter().chain(&stamps.updated);
    let wanted: Vec<&str> = std::iter::once(&stamps.version).chain(times).map(String::as_str).collect();
    json::parse_members(body, &wanted)
}

fn usable_version(value: &Value) -> Option<u64> {
    let Value::Number(number) = value else { return None };
    number.as_str().parse::<i64>().ok()?.try_into().ok()
}

/// Reads an entity and finds its key in it, equal to `id` where one is given. The rest is not looked at: what is loaded
/// stays as others wrote it.
pub fn parse(collection: &Collection, id: Option<&str>, body: &[u8]) -> Result<Map<String, Value>> {
    with_key(collection, id, json::parse_object(body))
}

/// [`parse`] for who goes through the members once.
pub fn members<'a>(collection: &Collection, id: Option<&str>, body: &'a [u8]) -> Result<Members<'a>> {
    with_key(collection, id, json::members(body))
}

fn with_key<T: Object>(collection: &Collection, id: Option<&str>, parsed: Result<T>) -> Result<T> {
    let context = |error: Error| match id {
        Some(id) => Error::invalid(format!("{} {}: {error}", collection.name, quoted(id))),
        None => Error::invalid(format!("{}: {error}", collection.name)),
    };
    let entity = parsed.map_err(context)?;
    let key = key_of(collection, &entity)?;
    match id {
        Some(id) if id != key => Err(Error::invalid(format!(
            "{} {}: the key member {} holds {}",
            collection.name,
            quoted(id),
            quoted(&collection.key),
            quoted(key)
        ))),
        _ => Ok(entity),
    }
}

/// What a write asks of a body: [`parse`], and a version that is absent or usable. `null` is not a version.
pub fn check(collection: &Collection, id: Option<&str>, body: &[u8]) -> Result<Map<String, Value>> {
    with_version(collection, parse(collection, id, body)?)
}

/// [`check`] for who passes the body on as it is: its key.
pub fn check_key(collection: &Collection, id: Option<&str>, body: &[u8]) -> Result<String> {
    let members = json::parse_members(body, &[&collection.key, &collection.stamps.version]);
    let entity = with_version(collection, with_key(collection, id, members)?)?;
    key_of(collection, &entity).map(str::to_owned)
}

fn with_version(collection: &Collection, entity: Map<String, Value>) -> Result<Map<String, Value>> {
    match entity.get(&collection.stamps.version) {
        Some(version) if usable_version(version).is_none() => Err(Error::invalid(format!(
            "{} {}: the version member {} is not a non-negative integer below 2^63 \
             (storage.collections.{}.version names the member)",
            collection.name,
            quoted(key_of(collection, &entity)?),
            quoted(&collection.stamps.version),
            collection.name
        ))),
        _ => Ok(entity),
    }
}

/// The entity as it crosses the contract, under the id that its key member holds.
pub fn encode(collection: &Collection, entity: &Map<String, Value>) -> Result<Entity> {
    let id = key_of(collection, entity)?.to_owned();
    Ok(Entity { id, version: version_of(collection, entity), body: json::to_vec(entity) })
}

/// Whether a write may take effect where `stored` is the version that is stored, none where nothing is.
pub fn check_expectation(expect: Expectation, stored: Option<u64>, collection: &str, id: &str) -> Result<()> {
    let (kind, problem) = match (expect, stored) {
        (Expectation::Any, _) | (Expectation::Absent, None) | (Expectation::Present, Some(_)) => return Ok(()),
        (Expectation::Version(expected), Some(stored)) if expected == stored => return Ok(()),
        (Expectation::Absent, Some(_)) => (ErrorKind::AlreadyExists, "already exists".to_owned()),
        (Expectation::Present, None) => (ErrorKind::NotFound, "does not exist".to_owned()),
        (Expectation::Version(expected), None) => {
            (ErrorKind::NotFound, format!("expected version {expected}, but nothing is stored"))
        }
        (Expectation::Version(expected), Some(stored)) => {
            (ErrorKind::VersionConflict, format!("expected version {expected}, but {stored} is stored"))
        }
    };
    let mut error = Error::new(kind, format!("{collection} {}: {problem}", quoted(id)));
    error.current_version = stored.filter(|_| kind == ErrorKind::VersionConflict);
    Err(error)
}

/// The body as a write stores it, where `stored` is what it replaces. Members keep their places, new ones follow.
///
/// - The version of a first save is 1, or a positive integer that the body brings; then it is the stored one and 1,
///   whatever the body says.
/// - The time of creation is set by a first save that lacks it, and kept by later ones that do; never made up later.
/// - The time of update is set where the collection adds it, or the body or what is stored has it.
pub fn stamp(
    collection: &Collection,
    stored: Option<&Map<String, Value>>,
    mut body: Map<String, Value>,
    now: &str,
) -> Map<String, Value> {
    let stamps = &collection.stamps;
    let version = match stored {
        None => version_of(collection, &body).max(1),
        Some(stored) => next_version(version_of(collection, stored)),
    };
    body.insert(stamps.version.clone(), Value::from(version));
    if let Some(created) = &stamps.created
        && !body.contains_key(created)
    {
        let time = match stored {
            None => Some(Value::from(now)),
            Some(stored) => stored.get(created).cloned(),
        };
        if let Some(time) = time {
            body.insert(created.clone(), time);
        }
    }
    if let Some(updated) = &stamps.updated
        && (stamps.adds_updated
            || body.contains_key(updated)
            || stored.is_some_and(|stored| stored.contains_key(updated)))
    {
        body.insert(updated.clone(), Value::from(now));
    }
    body
}

/// What a merge patch makes of a stored entity. A version that others left there and that is none goes with it: a write
/// would refuse it as if the caller had brought it.
pub fn patched(
    collection: &Collection,
    mut stored: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Map<String, Value> {
    let version = &collection.stamps.version;
    if stored.get(version).and_then(usable_version).is_none() {
        stored.shift_remove(version);
    }
    json::merge(&mut stored, patch);
    stored
}

/// Whether an atomic `apply` changes no entity twice: which of the two would win is nobody's intention.
pub fn check_distinct(writes: &[Write]) -> Result<()> {
    let mut seen = HashSet::with_capacity(writes.len());
    for (i, write) in writes.iter().enumerate() {
        if !seen.insert(write.target()) {
            let (collection, id) = write.target();
            let message = format!("{collection} {}: written twice in one atomic call", quoted(id));
            return Err(Error::invalid(message).at_write(i));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Put, Removal, Stamps};

    pub(crate) fn collection(name: &str) -> Collection {
        Collection {
            name: name.to_owned(),
            key: "key".to_owned(),
            stamps: Stamps {
                version: "version".to_owned(),
                created: Some("created_at".to_owned()),
                updated: Some("updated_at".to_owned()),
                adds_updated: true,
            },
            fields: Vec::new(),
            indexes: Vec::new(),
            references: Vec::new(),
        }
    }

    fn object(text: &str) -> Map<String, Value> {
        json::parse_object(text.as_bytes()).unwrap()
    }

    #[test]
    fn ids_are_bounded_and_printable() {
        for id in ["a", " ", "é", "a/../b", &"é".repeat(ID_CHARS_MAX)] {
            check_id(id).unwrap();
        }
        for id in ["", "a\n", "\0", "\u{7f}", "\u{85}", &"a".repeat(ID_CHARS_MAX + 1)] {
            assert_eq!(check_id(id).unwrap_err().kind, ErrorKind::InvalidArgument, "{id:?}");
        }
    }

    #[test]
    fn a_body_must_hold_its_key_and_a_usable_version() {
        let things = collection("things");
        for (body, message) in [
            (r#"{"key":"a"}"#, None),
            (r#"{"key":"a","version":0}"#, None),
            (r#"{"key":"a","version":9223372036854775807}"#, None),
            ("", Some("things `a`: the text ends while parsing a value at line 1 column 0")),
            ("[]", Some("things `a`: an entity is a JSON object, not an array")),
            ("{}", Some("things: the key member `key` is missing")),
            (r#"{"key":1}"#, Some("things: the key member `key` is a number, not a string")),
            (r#"{"key":""}"#, Some("things: the key member `key` holds no id: an id is not empty")),
            (r#"{"key":"b"}"#, Some("things `a`: the key member `key` holds `b`")),
        ] {
            for result in [check(&things, Some("a"), body.as_bytes()), parse(&things, Some("a"), body.as_bytes())] {
                match message {
                    None => assert_eq!(result.unwrap(), object(body)),
                    Some(message) => {
                        let error = result.unwrap_err();
                        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::InvalidArgument, message));
                    }
                }
            }
        }
        assert_eq!(check(&things, None, br#"{"key":"b"}"#).unwrap(), object(r#"{"key":"b"}"#));
        for version in ["null", "-1", "1.0", "1e0", "\"1\"", "true", "9223372036854775808", "[]"] {
            let body = format!(r#"{{"key":"a","version":{version}}}"#);
            let error = check(&things, Some("a"), body.as_bytes()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.message.contains("storage.collections.things.version"), "{error}");
            assert_eq!(version_of(&things, &parse(&things, Some("a"), body.as_bytes()).unwrap()), 0, "{version}");
        }
    }

    #[test]
    fn a_patch_replaces_a_version_that_is_none_and_keeps_one_that_is() {
        let things = collection("things");
        for (stored, patch, expected) in [
            (r#"{"key":"a","version":7,"x":1}"#, r#"{"x":null,"y":2}"#, r#"{"key":"a","version":7,"y":2}"#),
            (r#"{"key":"a","version":"7"}"#, r#"{"y":2}"#, r#"{"key":"a","y":2}"#),
            (r#"{"key":"a","version":{"n":1}}"#, r#"{"version":{"m":1}}"#, r#"{"key":"a","version":{"m":1}}"#),
            (r#"{"key":"a","version":null}"#, r#"{"version":3}"#, r#"{"key":"a","version":3}"#),
            (r#"{"key":"a"}"#, r#"{"version":"x"}"#, r#"{"key":"a","version":"x"}"#),
        ] {
            assert_eq!(patched(&things, object(stored), &object(patch)), object(expected), "{stored} {patch}");
        }
    }

    #[test]
    fn an_entity_is_encoded_with_its_id_and_version() {
        let entity = encode(&collection("things"), &object(r#"{"x":1.0,"key":"a","version":7}"#)).unwrap();
        assert_eq!((entity.id.as_str(), entity.version), ("a", 7));
        assert_eq!(entity.body, br#"{"x":1.0,"key":"a","version":7}"#);
        assert_eq!(encode(&collection("things"), &object("{}")).unwrap_err().kind, ErrorKind::InvalidArgument);
    }

    #[test]
    fn an_expectation_is_met_or_says_what_is_stored() {
        use Expectation::*;
        for (expect, stored, expected) in [
            (Any, None, None),
            (Any, Some(0), None),
            (Absent, None, None),
            (Absent, Some(2), Some((ErrorKind::AlreadyExists, "requests `req-1`: already exists", None))),
            (Present, Some(0), None),
            (Present, None, Some((ErrorKind::NotFound, "requests `req-1`: does not exist", None))),
            (Version(3), Some(3), None),
            (Version(0), Some(0), None),
            (
                Version(3),
                Some(5),
                Some((ErrorKind::VersionConflict, "requests `req-1`: expected version 3, but 5 is stored", Some(5))),
            ),
            (
                Version(0),
                None,
                Some((ErrorKind::NotFound, "requests `req-1`: expected version 0, but nothing is stored", None)),
            ),
        ] {
            let error = check_expectation(expect, stored, "requests", "req-1").err();
            let found = error.as_ref().map(|error| (error.kind, error.message.as_str(), error.current_version));
            assert_eq!(found, expected, "{expect:?} of {stored:?}");
        }
    }

    #[test]
    fn a_write_is_stamped() {
        let adds = collection("things");
        let keeps = Collection { stamps: Stamps { adds_updated: false, ..adds.stamps.clone() }, ..adds.clone() };
        let bare = Collection {
            stamps: Stamps { version: "v".to_owned(), created: None, updated: None, adds_updated: true },
            ..adds.clone()
        };
        for (name, collection, stored, body, expected) in [
            ("first save", &adds, None, r#"{"a":1}"#, r#"{"a":1,"version":1,"created_at":"now","updated_at":"now"}"#),
            (
                "a first save keeps what the body brings, save the time of update",
                &adds,
                None,
                r#"{"version":7,"updated_at":"x","created_at":null,"a":1}"#,
                r#"{"version":7,"updated_at":"now","created_at":null,"a":1}"#,
            ),
            ("0 is no first version", &bare, None, r#"{"v":0,"a":1}"#, r#"{"v":1,"a":1}"#),
            ("nor is what is unusable", &bare, None, r#"{"v":"x"}"#, r#"{"v":1}"#),
            ("the stored version counts", &bare, Some(r#"{"v":4}"#), r#"{"v":99}"#, r#"{"v":5}"#),
            ("also where the body lacks it", &bare, Some(r#"{"v":4,"b":1}"#), r#"{"a":1}"#, r#"{"a":1,"v":5}"#),
            ("unusable counts as 0", &bare, Some(r#"{"v":"x"}"#), r#"{"v":7}"#, r#"{"v":1}"#),
            ("the largest is followed by 1", &bare, Some(r#"{"v":9223372036854775807}"#), "{}", r#"{"v":1}"#),
            (
                "the largest is reached",
                &bare,
                Some(r#"{"v":9223372036854775806}"#),
                "{}",
                r#"{"v":9223372036854775807}"#,
            ),
            (
                "a later save keeps the stored time of creation",
                &adds,
                Some(r#"{"version":1,"created_at":"then","updated_at":"then"}"#),
                r#"{"a":1}"#,
                r#"{"a":1,"version":2,"created_at":"then","updated_at":"now"}"#,
            ),
            (
                "or takes the body's",
                &adds,
                Some(r#"{"version":1,"created_at":"then"}"#),
                r#"{"created_at":"other"}"#,
                r#"{"created_at":"other","version":2,"updated_at":"now"}"#,
            ),
            ("but never makes one up", &adds, Some(r#"{"version":1}"#), "{}", r#"{"version":2,"updated_at":"now"}"#),
            ("no time of update is added", &keeps, None, "{}", r#"{"version":1,"created_at":"now"}"#),
            (
                "unless the body has it",
                &keeps,
                Some("{}"),
                r#"{"updated_at":null}"#,
                r#"{"updated_at":"now","version":1}"#,
            ),
            (
                "or what is stored does",
                &keeps,
                Some(r#"{"updated_at":"then"}"#),
                "{}",
                r#"{"version":1,"updated_at":"now"}"#,
            ),
        ] {
            let stamped = stamp(collection, stored.map(object).as_ref(), object(body), "now");
            assert_eq!(String::from_utf8(json::to_vec(&stamped)).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn an_atomic_apply_names_the_entity_it_would_write_twice() {
        let put = |collection: &str, id: &str| {
            Write::Put(Put {
                collection: collection.to_owned(),
                id: id.to_owned(),
                body: Vec::new(),
                expect: Expectation::Any,
            })
        };
        let removal =
            Write::Remove(Removal { collection: "a".to_owned(), id: "1".to_owned(), expect: Expectation::Any });
        check_distinct(&[put("a", "1"), put("b", "1"), put("a", "2")]).unwrap();
        let error = check_distinct(&[put("a", "1"), put("b", "1"), removal]).unwrap_err();
        assert_eq!((error.kind, error.write_index), (ErrorKind::InvalidArgument, Some(2)));
        assert_eq!(error.message, "a `1`: written twice in one atomic call");
    }
}
