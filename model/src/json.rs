//! Entities as JSON, without losing a digit and without guessing: what two readers could understand differently is
//! refused. Also the form that entities are compared and hashed in.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeSet, fmt};

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, map::Entry};

use crate::{Error, Result, number};

pub mod plain;

/// The deepest nesting that is accepted; an object without members is 1 deep. It bounds every recursion over a value.
pub const DEPTH_MAX: usize = 64;

/// How serde_json hands out a number that is no 64-bit integer, so that its text is kept: as an object with this one
/// member.
const NUMBER_KEY: &str = "$serde_json::private::Number";

/// Reads JSON in UTF-8. Numbers keep their text, though serde_json spells an exponent as `e+5` or `e-5`.
///
/// Refused are, beside what is not JSON: duplicate member names, lone surrogates, nesting deeper than [`DEPTH_MAX`].
pub fn parse(text: &[u8]) -> Result<Value> {
    parse_within(text, DEPTH_MAX)
}

fn parse_within(text: &[u8], depth_max: usize) -> Result<Value> {
    read(text, Exact { depth: 0, depth_max, kept: Kept::All })
}

fn read(text: &[u8], exact: Exact<'_>) -> Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = exact.deserialize(&mut deserializer).map_err(refused)?;
    deserializer.end().map_err(refused)?;
    Ok(value)
}

/// Reads a JSON object as [`parse`] does.
pub fn parse_object(text: &[u8]) -> Result<Map<String, Value>> {
    object(parse(text)?)
}

/// Reads a JSON object as [`parse`] does, and keeps of it only the members that are named. For who wants to know of a body
/// whether it is one, and its key or its version: that takes half the time.
pub fn parse_members(text: &[u8], wanted: &[&str]) -> Result<Map<String, Value>> {
    object(read(text, Exact { depth: 0, depth_max: DEPTH_MAX, kept: Kept::Members(wanted) })?)
}

/// Reads what a strategy keeps beside its entities: an object in which members of an entity stand `levels` deeper than in
/// the entity itself.
pub fn parse_wrapping(text: &[u8], levels: usize) -> Result<Map<String, Value>> {
    object(parse_within(text, DEPTH_MAX + levels)?)
}

/// An object's members in their order, each name once. Cheaper to make than a [`Map`], for who goes through them or looks
/// for a few: names, and values that are texts, are borrowed where they have no escapes.
#[derive(Debug, Default)]
pub struct Members<'a> {
    members: Vec<(Cow<'a, str>, Member<'a>)>,
    is_plain: bool,
}

/// The value of one of [`Members`].
#[derive(Debug)]
pub enum Member<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// A value of any other type.
    Other(Value),
}

/// A member's value, looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemberRef<'a> {
    /// A text.
    Text(&'a str),
    /// A value of any other type.
    Other(&'a Value),
}

/// An object whose members are found by name.
pub trait Object {
    /// The value of a member.
    fn get(&self, name: &str) -> Option<MemberRef<'_>>;

    /// All members, in their order.
    fn entries(&self) -> impl ExactSizeIterator<Item = (&str, MemberRef<'_>)>;

    /// Whether it is known that no name and no text of a member needs an escape.
    fn is_plain(&self) -> bool {
        false
    }
}

impl Object for Map<String, Value> {
    fn get(&self, name: &str) -> Option<MemberRef<'_>> {
        Map::get(self, name).map(MemberRef::from)
    }

    fn entries(&self) -> impl ExactSizeIterator<Item = (&str, MemberRef<'_>)> {
        self.iter().map(|(name, value)| (name.as_str(), value.into()))
    }
}

impl Object for Members<'_> {
    fn get(&self, name: &str) -> Option<MemberRef<'_>> {
        self.members.iter().find(|(member, _)| is_same(member, name)).map(|(_, value)| value.into())
    }

    fn entries(&self) -> impl ExactSizeIterator<Item = (&str, MemberRef<'_>)> {
        self.members.iter().map(|(name, value)| (&**name, value.into()))
    }

    fn is_plain(&self) -> bool {
        self.is_plain
    }
}

impl<'a> From<&'a Value> for MemberRef<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::String(text) => MemberRef::Text(text),
            other => MemberRef::Other(other),
        }
    }
}

impl<'a> From<&'a Member<'_>> for MemberRef<'a> {
    fn from(value: &'a Member<'_>) -> Self {
        match value {
            Member::Text(text) => MemberRef::Text(text),
            Member::Other(value) => MemberRef::Other(value),
        }
    }
}

impl From<Value> for Member<'_> {
    fn from(value: Value) -> Self {
        match value {
            Value::String(text) => Member::Text(Cow::Owned(text)),
            other => Member::Other(other),
        }
    }
}

impl From<Member<'_>> for Value {
    fn from(value: Member<'_>) -> Self {
        match value {
            Member::Text(text) => Value::String(text.into_owned()),
            Member::Other(value) => value,
        }
    }
}

impl<'a> MemberRef<'a> {
    /// The text that it is.
    pub fn as_str(self) -> Option<&'a str> {
        match self {
            MemberRef::Text(text) => Some(text),
            MemberRef::Other(_) => None,
        }
    }

    /// The value by itself.
    pub fn to_value(self) -> Value {
        match self {
            MemberRef::Text(text) => Value::String(text.to_owned()),
            MemberRef::Other(value) => value.clone(),
        }
    }

    /// What a person calls its type.
    pub(crate) fn type_name(self) -> &'static str {
        match self {
            MemberRef::Text(_) => "a string",
            MemberRef::Other(value) => type_name(value),
        }
    }
}

impl Members<'_> {
    /// As a [`Map`].
    pub fn into_map(self) -> Map<String, Value> {
        self.members.into_iter().map(|(name, value)| (name.into_owned(), value.into())).collect()
    }
}

impl From<Map<String, Value>> for Members<'_> {
    fn from(map: Map<String, Value>) -> Self {
        let members = map.into_iter().map(|(name, value)| (Cow::Owned(name), value.into())).collect();
        Members { members, is_plain: false }
    }
}

impl<'a> IntoIterator for Members<'a> {
    type Item = (Cow<'a, str>, Member<'a>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.members.into_iter()
    }
}

/// Reads a JSON object as [`parse_object`] does, into [`Members`].
pub fn members(text: &[u8]) -> Result<Members<'_>> {
    // All of it at once is looked through faster than text by text.
    let text_or_none = std::str::from_utf8(text).ok();
    if let Some(members) = text_or_none.and_then(plain::members) {
        return Ok(members);
    }
    let read = text_or_none.and_then(|text| {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let members = deserializer.deserialize_map(TopLevel).ok()?;
        deserializer.end().ok().map(|()| members)
    });
    match read {
        Some(members) => Ok(members),
        // What is wrong with it is said in one place.
        None => parse_object(text).map(Members::from),
    }
}

fn object(value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Error::invalid(format!("an entity is a JSON object, not {}", type_name(&other)))),
    }
}

fn refused(error: serde_json::Error) -> Error {
    let message = error.to_string();
    Error::invalid(match message.strip_prefix("EOF") {
        Some(rest) => format!("the text ends{rest}"),
        None => message,
    })
}

/// What a person calls the value's type.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A name as it stands in every message: quoted, without control characters, and cut where it is very long.
pub fn quoted(name: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 255;
    let (shown, cut) = match name.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => (&name[..end], "…"),
        None => (name, ""),
    };
    let mut quoted = String::from("`");
    for c in shown.chars() {
        match c.is_control() {
            true => quoted.extend(c.escape_default()),
            false => quoted.push(c),
        }
    }
    quoted + cut + "`"
}

/// What is kept of a value that is read. All of it is held to the same rules.
#[derive(Clone, Copy)]
enum Kept<'a> {
    All,
    /// Of an object, these members.
    Members(&'a [&'a str]),
    Nothing,
}

impl Kept<'_> {
    /// What is kept of a member's value.
    fn of(self, name: &str) -> Self {
        match self {
            Kept::Members(wanted) if wanted.contains(&name) => Kept::All,
            Kept::Members(_) => Kept::Nothing,
            all_or_nothing => all_or_nothing,
        }
    }
}

/// Reads a value that stands inside `depth` arrays and objects.
#[derive(Clone, Copy)]
struct Exact<'a> {
    depth: usize,
    depth_max: usize,
    kept: Kept<'a>,
}

impl Exact<'_> {
    /// The reader of what stands one deeper.
    fn inner<E: serde::de::Error>(&self) -> std::result::Result<Self, E> {
        match self.depth < self.depth_max {
            true => Ok(Exact { depth: self.depth + 1, ..*self }),
            false => Err(self.too_deep()),
        }
    }

    /// The value, where it is kept. What is no object at all is, to say what it is instead.
    fn value(&self, value: impl FnOnce() -> Value) -> Value {
        match self.kept {
            Kept::Nothing => Value::Null,
            Kept::All | Kept::Members(_) => value(),
        }
    }

    /// The value of a member, or the text of the number that this is.
    fn member<'de, A: MapAccess<'de>>(&self, name: &str, members: &mut A) -> std::result::Result<NumberOr, A::Error> {
        let kept = self.kept.of(name);
        if name == NUMBER_KEY {
            return members.next_value_seed(AfterNumberKey(Exact { depth: self.depth + 1, kept, ..*self }));
        }
        members.next_value_seed(Exact { kept, ..self.inner()? }).map(NumberOr::Value)
    }

    /// Reads an object and keeps all of it.
    fn object<'de, A: MapAccess<'de>>(self, mut members: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            // Where it will stand is found once, also for the value.
            let place = match map.entry(name) {
                Entry::Vacant(place) => place,
                Entry::Occupied(place) => return Err(stands_twice(place.key())),
            };
            match self.member(place.key(), &mut members)? {
                NumberOr::Number(text) => return Ok(Value::Number(Number::from_string_unchecked(text))),
                NumberOr::Value(value) => drop(place.insert(value)),
            }
        }
        self.inner::<A::Error>()?;
        Ok(Value::Object(map))
    }

    /// Reads an object of which not every member is kept, if any.
    fn part_of_object<'de, A: MapAccess<'de>>(self, mut members: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        let mut names = BTreeSet::new();
        while let Some(name) = members.next_key_seed(Name)? {
            if names.contains(&name) {
                return Err(stands_twice(&name));
            }
            match self.member(&name, &mut members)? {
                NumberOr::Number(text) => {
                    return Ok(self.value(|| Value::Number(Number::from_string_unchecked(text))));
                }
                NumberOr::Value(value) if matches!(self.kept.of(&name), Kept::All) => {
                    map.insert(name.clone().into_owned(), value);
                }
                NumberOr::Value(_) => {}
            }
            names.insert(name);
        }
        self.inner::<A::Error>()?;
        Ok(self.value(|| Value::Object(map)))
    }

    fn too_deep<E: serde::de::Error>(&self) -> E {
        E::custom(format_args!("nested deeper than {} levels", self.depth_max))
    }
}

fn stands_twice<E: serde::de::Error>(name: &str) -> E {
    E::custom(format_args!("the member name {} stands twice", quoted(name)))
}

impl<'de> DeserializeSeed<'de> for Exact<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Exact<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    // An integer that fits comes as one, and its text is the only one that such an integer has: `-0` comes as text.
    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(self.value(|| Value::from(value)))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(self.value(|| Value::from(value)))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Value, E> {
        Ok(self.value(|| Value::String(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> std::result::Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(self.inner()?)? {
            if !matches!(self.kept, Kept::Nothing) {
                array.push(element);
            }
        }
        Ok(self.value(|| Value::Array(array)))
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> std::result::Result<Value, A::Error> {
        // Only after a NUMBER_KEY can it be: there, an object cannot be told from a number before its value.
        if self.depth > self.depth_max {
            return Err(self.too_deep());
        }
        match self.kept {
            Kept::All => self.object(members),
            Kept::Members(_) | Kept::Nothing => self.part_of_object(members),
        }
    }
}

/// Names that are compared with all before them. Of more, the rest is looked up.
const COMPARED_NAMES_MAX: usize = 16;

/// Members as they are read, each name once.
struct Distinct<'a> {
    read: Vec<(Cow<'a, str>, Member<'a>)>,
    /// What [`look_of`] says of the names.
    looks: u64,
    /// Those behind the ones that are compared.
    names: BTreeSet<Cow<'a, str>>,
}

impl<'a> Distinct<'a> {
    fn new() -> Self {
        Distinct { read: Vec::with_capacity(COMPARED_NAMES_MAX), looks: 0, names: BTreeSet::new() }
    }

    /// The name back, to be given a value; as an error where it stands twice.
    #[inline]
    fn accept(&mut self, name: Cow<'a, str>) -> std::result::Result<Cow<'a, str>, Cow<'a, str>> {
        // Only a name that looks like one before it can be that one.
        let look = 1 << look_of(&name);
        let compared = &self.read[..self.read.len().min(COMPARED_NAMES_MAX)];
        if self.looks & look != 0 && compared.iter().any(|(before, _)| is_same(before, &name)) {
            return Err(name);
        }
        self.looks |= look;
        if self.read.len() >= COMPARED_NAMES_MAX && !self.names.insert(name.clone()) {
            return Err(name);
        }
        Ok(name)
    }

    #[inline]
    fn push(&mut self, name: Cow<'a, str>, value: Member<'a>) {
        self.read.push((name, value));
    }

    fn finish(self, is_plain: bool) -> Members<'a> {
        Members { members: self.read, is_plain }
    }
}

/// Whether two names are equal. A component has no faster way to compare bytes than one by one, but for eight in a number.
pub fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let are_equal = |a: &[u8; 8], b: &[u8; 8]| u64::from_le_bytes(*a) == u64::from_le_bytes(*b);
    one.len() == other.len()
        && match (one.last_chunk(), other.last_chunk()) {
            // The last eight may hold some of the eight before them.
            (Some(a), Some(b)) => {
                are_equal(a, b) && one.as_chunks().0.iter().zip(other.as_chunks().0).all(|(a, b)| are_equal(a, b))
            }
            _ => one.iter().zip(other).all(|(a, b)| a == b),
        }
}

/// Whether a text comes before another one by its bytes, at as little cost.
pub fn is_before(one: &str, other: &str) -> bool {
    let ((one, one_rest), (other, other_rest)) = (one.as_bytes().as_chunks(), other.as_bytes().as_chunks());
    for (a, b) in one.iter().zip(other) {
        if a != b {
            return u64::from_be_bytes(*a) < u64::from_be_bytes(*b);
        }
    }
    match one.len().cmp(&other.len()) {
        Ordering::Equal => one_rest.iter().lt(other_rest),
        // What is left of the shorter one is shorter than the next eight of the longer one.
        Ordering::Less => one_rest.iter().lt(&other[one.len()]),
        Ordering::Greater => one[other.len()].iter().lt(other_rest),
    }
}

/// A number under 64 that equal names have in common, and different ones rarely.
fn look_of(name: &str) -> u32 {
    let end = |byte: Option<&u8>| byte.copied().map_or(0, usize::from);
    let (first, last) = (end(name.as_bytes().first()), end(name.as_bytes().last()));
    ((first * 5) ^ (last * 11) ^ name.len()) as u32 % 64
}

/// Reads an object that stands in nothing else.
struct TopLevel;

impl<'de> Visitor<'de> for TopLevel {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> std::result::Result<Members<'de>, A::Error> {
        let exact = Exact { depth: 0, depth_max: DEPTH_MAX, kept: Kept::All };
        let mut read = Distinct::new();
        while let Some(name) = members.next_key_seed(Name)? {
            let name = read.accept(name).map_err(|name| stands_twice(&name))?;
            let value = if name == NUMBER_KEY {
                match exact.member(&name, &mut members)? {
                    NumberOr::Number(_) => return Err(A::Error::custom("a number is no object")),
                    NumberOr::Value(value) => value.into(),
                }
            } else {
                members.next_value_seed(Borrowing(exact.inner()?))?
            };
            read.push(name, value);
        }
        Ok(read.finish(false))
    }
}

/// Reads a member's value as [`Exact`] does, a text borrowed where it has no escapes.
struct Borrowing<'a>(Exact<'a>);

impl<'de> DeserializeSeed<'de> for Borrowing<'_> {
    type Value = Member<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Borrowing<'_> {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
        Ok(Member::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
        Ok(Member::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<Self::Value, E> {
        self.0.visit_unit().map(Member::Other)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> std::result::Result<Self::Value, E> {
        self.0.visit_bool(value).map(Member::Other)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> std::result::Result<Self::Value, E> {
        self.0.visit_u64(value).map(Member::Other)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> std::result::Result<Self::Value, E> {
        self.0.visit_i64(value).map(Member::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, elements: A) -> std::result::Result<Self::Value, A::Error> {
        self.0.visit_seq(elements).map(Member::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> std::result::Result<Self::Value, A::Error> {
        self.0.visit_map(members).map(Member::Other)
    }
}

/// Reads a member's name, borrowed where it has no escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> std::result::Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> std::result::Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// Reads the value of a member named [`NUMBER_KEY`], which is either a number's text or what somebody wrote. serde_json
/// hands out the text of a number as an owned string, and every string of the document as a borrowed one.
struct AfterNumberKey<'a>(Exact<'a>);

enum NumberOr {
    Number(String),
    Value(Value),
}

impl<'de> DeserializeSeed<'de> for AfterNumberKey<'_> {
    type Value = NumberOr;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<NumberOr, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AfterNumberKey<'_> {
    type Value = NumberOr;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_string<E>(self, text: String) -> std::result::Result<NumberOr, E> {
        Ok(NumberOr::Number(text))
    }

    fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<NumberOr, E> {
        self.0.visit_unit().map(NumberOr::Value)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> std::result::Result<NumberOr, E> {
        self.0.visit_bool(value).map(NumberOr::Value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> std::result::Result<NumberOr, E> {
        self.0.visit_u64(value).map(NumberOr::Value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> std::result::Result<NumberOr, E> {
        self.0.visit_i64(value).map(NumberOr::Value)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<NumberOr, E> {
        self.0.visit_str(text).map(NumberOr::Value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, elements: A) -> std::result::Result<NumberOr, A::Error> {
        self.0.visit_seq(elements).map(NumberOr::Value)
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> std::result::Result<NumberOr, A::Error> {
        self.0.visit_map(members).map(NumberOr::Value)
    }
}

/// Whatever serializes as a JSON object, as the body of an entity. That it is an object shows when it is saved.
pub fn encode(value: &(impl serde::Serialize + ?Sized)) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::invalid(format!("this cannot be written as JSON: {error}")))
}

/// The object as compact JSON, members in their order.
pub fn to_vec(map: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(map).expect("text keys and a vector cannot fail")
}

/// RFC 7396: members that are null in `patch` are removed, objects are merged, everything else replaces what is there.
pub fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => {
                target.shift_remove(name);
            }
            Value::Object(patch) => {
                if !target.get(name).is_some_and(Value::is_object) {
                    target.insert(name.clone(), Value::Object(Map::new()));
                }
                if let Some(Value::Object(inner)) = target.get_mut(name) {
                    merge(inner, patch);
                }
            }
            value => {
                target.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Appends the form in which equal values have equal bytes: RFC 8785, that is without spaces, members sorted by UTF-16
/// code units, the least escapes, but with numbers by [`number::canonical`], because they are exact and not doubles.
pub fn write_canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => write_canonical_object(map, out),
        Value::Array(elements) => {
            out.push(b'[');
            for (i, element) in elements.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_canonical(element, out);
            }
            out.push(b']');
        }
        Value::Number(number) => out.extend_from_slice(number::canonical(number.as_str()).as_bytes()),
        Value::String(text) => write_text(text, out),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Null => out.extend_from_slice(b"null"),
    }
}

/// [`write_canonical`] of an object.
pub fn write_canonical_object(object: &impl Object, out: &mut Vec<u8>) {
    let mut members: Vec<_> = object.entries().map(|(name, value)| (first_bytes(name), name, value)).collect();
    if members.iter().all(|(_, name, _)| name.is_ascii()) {
        // The same order, and cheaper: most names differ in their first bytes.
        members.sort_unstable_by(|(a, a_name, _), (b, b_name, _)| a.cmp(b).then_with(|| a_name.cmp(b_name)));
    } else {
        members.sort_unstable_by(|(_, a, _), (_, b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    }
    let write: fn(&str, &mut Vec<u8>) = if object.is_plain() { write_as_it_is } else { write_text };
    out.push(b'{');
    for (i, (_, name, value)) in members.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(name, out);
        out.push(b':');
        match value {
            MemberRef::Text(text) => write(text, out),
            MemberRef::Other(value) => write_canonical(value, out),
        }
    }
    out.push(b'}');
}

/// As a number that is ordered as they are. A name that ends before has zeros there.
fn first_bytes(name: &str) -> u64 {
    let mut first = [0; 8];
    let len = name.len().min(first.len());
    first[..len].copy_from_slice(&name.as_bytes()[..len]);
    u64::from_be_bytes(first)
}

/// Writes a text as JSON, with the least escapes.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    if !write_plain_text(text.as_bytes(), out) {
        serde_json::to_writer(out, text).expect("a vector cannot fail");
    }
}

/// Writes a text as JSON, where it needs no escape; answers whether it did. For who knows of many texts only together that
/// they are UTF-8.
pub fn write_plain_text(text: &[u8], out: &mut Vec<u8>) -> bool {
    let is_plain = match text.last_chunk() {
        // The last eight may hold some of the eight before them.
        Some(last) => text.as_chunks().0.iter().chain([last]).all(|eight| escapes(u64::from_le_bytes(*eight)) == 0),
        None => !text.iter().any(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)),
    };
    if is_plain {
        write_quoted(text, out);
    }
    is_plain
}

/// Writes a text as JSON that needs no escape.
fn write_as_it_is(text: &str, out: &mut Vec<u8>) {
    write_quoted(text.as_bytes(), out);
}

fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

/// Not 0 where one of eight bytes stands not for itself in a text of JSON: a quote, a backslash or a control character. The lowest
/// bit that is set is in the first of them, where the first byte is the lowest.
pub fn escapes(eight: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    // The highest bit of each byte that is less than `than`, and of some behind one that is. No byte beyond ASCII counts.
    let less = |bytes: u64, than: u64| bytes.wrapping_sub(ONES * than) & !bytes & (ONES << 7);
    let is = |byte: u8| less(eight ^ (ONES * u64::from(byte)), 1);
    less(eight, 0x20) | is(b'"') | is(b'\\')
}

/// Whether the contract takes both for the same: the order of members does not matter, and numbers are equal where
/// their canonical texts are, so `1.50` is `15e-1`, but `1` is not `1.0`.
pub fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => equal_objects(a, b),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Number(a), Value::Number(b)) => number::canonical(a.as_str()) == number::canonical(b.as_str()),
        _ => a == b,
    }
}

/// [`equal`] for objects.
pub fn equal_objects(a: &impl Object, b: &Map<String, Value>) -> bool {
    let mut entries = a.entries();
    let is_equal = |a: MemberRef<'_>, b: &Value| match a {
        MemberRef::Text(text) => b.as_str() == Some(text),
        MemberRef::Other(value) => equal(value, b),
    };
    entries.len() == b.len() && entries.all(|(name, a)| b.get(name).is_some_and(|b| is_equal(a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn compact(value: &Value) -> String {
        serde_json::to_string(value).unwrap()
    }

    #[test]
    fn a_text_is_written_as_serde_json_writes_it() {
        for c in ('\0'..='\u{80}').chain(['é', '漢', '𝄞', '\u{2028}']) {
            for (before, behind) in (0..18).flat_map(|before| [0, 1, 7, 9].map(|behind| (before, behind))) {
                let text = format!("{}{c}{}", "a".repeat(before), "é".repeat(behind));
                let mut written = Vec::new();
                write_text(&text, &mut written);
                assert_eq!(written, serde_json::to_vec(&text).unwrap(), "{text:?}");
            }
        }
    }

    #[test]
    fn what_is_read_is_written_back() {
        for text in [
            "{}",
            "[]",
            "null",
            r#"{"b":1,"a":[true,false,null,"",{}],"":{"x":[[]]}}"#,
            r#"{"text":"é 漢 𝄞 \u0000\u001f\" \\ /"}"#,
            r#"[0,-0,1,-1,1.0,1.50,-12.0e-5,1e+400,1e-400]"#,
            "[18446744073709551615,18446744073709551616,-9223372036854775808,-9223372036854775809]",
            "1234567890123456789012345678901234567890",
            "0.1234567890123456789012345678901234567890",
            "1e+99999999999999999999",
            r#"{"$serde_json::private::RawValue":"1"}"#,
        ] {
            assert_eq!(compact(&parse(text.as_bytes()).unwrap()), text);
        }
        for (text, spelt) in [("1e400", "1e+400"), ("1E+5", "1e+5"), ("1E-5", "1e-5"), ("1.5E5", "1.5e+5")] {
            let value = parse(text.as_bytes()).unwrap();
            assert_eq!(compact(&value), spelt);
            assert_eq!(number::canonical(spelt), number::canonical(text));
        }
    }

    #[test]
    fn members_are_read_as_an_object_is() {
        let wide = |twice: &str| {
            let members: Vec<String> = (0..40).map(|i| format!("\"member {i}\":{i}")).collect();
            format!("{{{},\"{twice}\":1}}", members.join(","))
        };
        let deep = format!("{}1{}", "{\"a\":".repeat(DEPTH_MAX), "}".repeat(DEPTH_MAX));
        let too_deep = format!("{{\"a\":{deep}}}");
        let (ends, once) = (["member 0", "member 15", "member 16", "member 39"].map(wide), wide("more"));
        let texts = [
            "{}",
            r#"{"b":1,"a":[1.0,{}],"\u0063":"x"}"#,
            r#"{"$serde_json::private::Number":"1"}"#,
            r#"{"a":1,"$serde_json::private::Number":2}"#,
            r#"{"$serde_json::private::Number":"1","a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":1} x"#,
            "{\"a\":1",
            "1e5",
            "12345678901234567890123",
            "\"text\"",
            "[1]",
            "null",
            "",
            deep.as_str(),
            too_deep.as_str(),
            once.as_str(),
        ];
        for text in texts.into_iter().chain(ends.iter().map(String::as_str)) {
            let read = members(text.as_bytes()).map(Members::into_map);
            let expected = parse_object(text.as_bytes());
            assert_eq!(format!("{read:?}"), format!("{expected:?}"), "{text}");
        }
    }

    #[test]
    fn names_are_the_same_where_all_their_bytes_are() {
        let name = "abcdefghijklmnopqrstuvwxyz";
        for len in 0..name.len() {
            let one = &name[..len];
            assert!(is_same(one, &name[..len]));
            assert!(!is_same(one, &name[..len + 1]));
            for at in 0..len {
                let other = [&name[..at], "_", &name[at + 1..len]].concat();
                assert!(!is_same(one, &other), "{other}");
            }
        }
    }

    #[test]
    fn texts_come_in_the_order_of_their_bytes() {
        let texts: Vec<String> = (0..20)
            .flat_map(|len| {
                ["a", "b", "é", "\u{7f}"].map(|end| format!("{}{end}", &"abcdefghijklmnopqrstuvwxyz"[..len]))
            })
            .chain(["".into(), "abcdefgh".into(), "abcdefghijklmnop".into()])
            .collect();
        for one in &texts {
            for other in &texts {
                assert_eq!(is_before(one, other), one < other, "{one} {other}");
            }
        }
    }

    #[test]
    fn texts_of_members_are_borrowed_where_they_have_no_escapes() {
        let members = members(r#"{"a":"é","b":"\u00e9","c":1}"#.as_bytes()).unwrap();
        let values: Vec<Member<'_>> = members.into_iter().map(|(_, value)| value).collect();
        let [Member::Text(a), Member::Text(b), Member::Other(c)] = &values[..] else { panic!("{values:?}") };
        assert!(matches!((a, b), (Cow::Borrowed("é"), Cow::Owned(text)) if text == "é"), "{a:?} {b:?}");
        assert_eq!(c, &Value::from(1));
    }

    #[test]
    fn what_wraps_members_may_be_deeper_by_its_own_levels() {
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        parse_object(nested(DEPTH_MAX).as_bytes()).unwrap();
        assert!(parse_object(nested(DEPTH_MAX + 1).as_bytes()).is_err());
        parse_wrapping(nested(DEPTH_MAX + 1).as_bytes(), 1).unwrap();
        assert!(parse_wrapping(nested(DEPTH_MAX + 2).as_bytes(), 1).is_err());
    }

    #[test]
    fn a_number_and_an_object_that_looks_like_one_are_told_apart() {
        const KEY: &str = NUMBER_KEY;
        for text in [
            format!(r#"{{"{KEY}":"1"}}"#),
            format!(r#"{{"{KEY}":"\u0000\n"}}"#),
            format!(r#"{{"{KEY}":1}}"#),
            format!(r#"{{"{KEY}":1.0}}"#),
            format!(r#"{{"{KEY}":null}}"#),
            format!(r#"{{"{KEY}":true}}"#),
            format!(r#"{{"{KEY}":["1"]}}"#),
            format!(r#"{{"{KEY}":{{}}}}"#),
            format!(r#"{{"{KEY}":{{"{KEY}":"1"}}}}"#),
            format!(r#"{{"{KEY}":{{"{KEY}":1}}}}"#),
            format!(r#"{{"{KEY}":"1","other":2}}"#),
            format!(r#"{{"{KEY}":1,"other":2}}"#),
            format!(r#"{{"other":2,"{KEY}":"1"}}"#),
            format!(r#"{{"other":2,"{KEY}":1}}"#),
            format!(r#"[{{"a":{{"{KEY}":"1"}}}},1]"#),
        ] {
            let value = parse(text.as_bytes()).unwrap();
            assert_eq!(compact(&value), text);
            assert!(!value.is_number(), "{text}");
        }
        for text in [
            r#"{"$serde_json\u003a:private::Number":"1"}"#,
            r#"{"$serde_json::private::Number":"\u0031"}"#,
            r#"{"\u0024serde_json::private::Number":"\u0031"}"#,
        ] {
            let map = parse_object(text.as_bytes()).unwrap();
            assert_eq!(map.get(KEY), Some(&Value::from("1")), "{text}");
        }
        for text in ["1", "-0", "1.0", "1234567890123456789012345678901234567890"] {
            for (value, nested) in [
                (parse(text.as_bytes()).unwrap(), false),
                (parse(format!("[{text}]").as_bytes()).unwrap(), true),
                (parse(format!(r#"{{"{KEY}":{text}}}"#).as_bytes()).unwrap(), true),
            ] {
                let number = match &value {
                    Value::Array(elements) => &elements[0],
                    Value::Object(map) => &map[KEY],
                    other => other,
                };
                assert_eq!(nested, !value.is_number());
                assert_eq!(number, &Value::Number(Number::from_string_unchecked(text.to_owned())), "{text}");
            }
        }
    }

    #[test]
    fn what_is_not_exactly_one_json_value_is_refused_with_its_place() {
        for (text, message) in [
            ("", "the text ends while parsing a value at line 1 column 0"),
            ("{\"a\":1", "the text ends while parsing an object at line 1 column 6"),
            ("{\n\"a\":1,\n}", "trailing comma at line 3 column 1"),
            ("{} {}", "trailing characters at line 1 column 4"),
            ("{'a':1}", "key must be a string at line 1 column 2"),
            ("\u{feff}{}", "expected value at line 1 column 1"),
            ("01", "invalid number at line 1 column 2"),
            ("[NaN]", "expected value at line 1 column 2"),
            (r#""\ud800""#, "unexpected end of hex escape at line 1 column 8"),
            (r#""\udc00""#, "lone leading surrogate in hex escape at line 1 column 7"),
            (r#"{"\ud800\u0041":1}"#, "lone leading surrogate in hex escape at line 1 column 14"),
            ("\"\n\"", "control character (\\u0000-\\u001F) found while parsing a string at line 2 column 0"),
            (r#"{"a":1,"a":2}"#, "the member name `a` stands twice at line 1 column 10"),
            ("{\n\"x\":{\"\\u0061\":1,\n\"a\":2}}", "the member name `a` stands twice at line 3 column 3"),
            (r#"{"\n":1,"\u000a":2}"#, "the member name `\\n` stands twice at line 1 column 16"),
            (
                r#"{"$serde_json::private::Number":"1","$serde_json::private::Number":"1"}"#,
                "the member name `$serde_json::private::Number` stands twice at line 1 column 66",
            ),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (ErrorKind::InvalidArgument, message), "{text}");
        }
        let error = parse(b"{\"a\":\"\xff\"}").unwrap_err();
        assert!(error.message.starts_with("invalid unicode code point at line 1 column"), "{error}");
        let error = parse_object(b" [1]").unwrap_err();
        assert_eq!(error.message, "an entity is a JSON object, not an array");
    }

    #[test]
    fn what_is_read_in_part_is_held_to_the_same_rules() {
        const KEY: &str = NUMBER_KEY;
        let deep = |depth: usize| format!("{}{{}}{}", r#"{"a":"#.repeat(depth - 1), "}".repeat(depth - 1));
        for text in [
            "{}".to_owned(),
            r#" {"a":1,"b":{"a":[1.0,-0,{"b":"x"}],"c":1e5},"version":7,"k\u0065y":"\u00e9"} "#.to_owned(),
            format!(r#"{{"{KEY}":"1","key":{{"{KEY}":1.0}},"b":{{"{KEY}":"1","{KEY}":2}}}}"#),
            format!(r#"{{"{KEY}":1.0,"key":123456789012345678901234567890,"b":123456789012345678901234567890}}"#),
            format!(r#"{{"b":{{"{KEY}":{{"{KEY}":1}}}},"key":{{"{KEY}":["1",{{}}]}}}}"#),
            r#"{"a":{"x":1,"\u0078":2}}"#.to_owned(),
            r#"{"a":[{"x":1,"x":2}]}"#.to_owned(),
            r#"{"key":{"x":1,"x":2}}"#.to_owned(),
            r#"{"a":1,"key":1,"a":2}"#.to_owned(),
            r#"{"key":1,"a":1,"key":2}"#.to_owned(),
            r#"{"a":"\ud800"}"#.to_owned(),
            r#"{"a":01}"#.to_owned(),
            r#"{"a":1"#.to_owned(),
            r#"{"a":1} {}"#.to_owned(),
            "[1,{\"a\":1}]".to_owned(),
            "1.0".to_owned(),
            "\"x\"".to_owned(),
            deep(64),
            deep(65),
            format!(r#"{{"key":{}}}"#, deep(63)),
            format!(r#"{{"key":{}}}"#, deep(64)),
            format!("{{\"b\":{}{}}}", "[".repeat(64), "]".repeat(64)),
        ] {
            let (whole, part) = (parse_object(text.as_bytes()), parse_members(text.as_bytes(), &["key", "version"]));
            match (whole, part) {
                (Ok(mut whole), Ok(part)) => {
                    whole.retain(|name, _| ["key", "version"].contains(&name.as_str()));
                    assert_eq!(part, whole, "{text}");
                }
                (whole, part) => assert_eq!(part.unwrap_err().message, whole.unwrap_err().message, "{text}"),
            }
        }
    }

    #[test]
    fn nesting_of_64_is_read_and_of_65_refused() {
        let arrays = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let objects = |depth: usize| format!("{}{{}}{}", r#"{"a":"#.repeat(depth - 1), "}".repeat(depth - 1));
        let looks_like_a_number = |depth: usize| {
            format!(r#"{}{{"{NUMBER_KEY}":"1"}}{}"#, r#"{"a":"#.repeat(depth - 1), "}".repeat(depth - 1))
        };
        let keys_of_numbers = |depth: usize| {
            let open = format!(r#"{{"{NUMBER_KEY}":"#);
            format!("{}1.5{}", open.repeat(depth), "}".repeat(depth))
        };
        let with_number = |depth: usize| format!("{}1.5{}", "[".repeat(depth), "]".repeat(depth));
        for nest in
            [&arrays as &dyn Fn(usize) -> String, &objects, &looks_like_a_number, &keys_of_numbers, &with_number]
        {
            let text = nest(DEPTH_MAX);
            assert_eq!(compact(&parse(text.as_bytes()).unwrap()), text);
            for depth in [DEPTH_MAX + 1, 120, 100_000] {
                let error = parse(nest(depth).as_bytes()).unwrap_err();
                assert_eq!(error.kind, ErrorKind::InvalidArgument);
                assert!(error.message.starts_with("nested deeper than 64 levels at line 1 column "), "{error}");
            }
        }
    }

    #[test]
    fn names_that_look_alike_are_told_apart() {
        for (a, b) in [("member_one", "member_tne"), ("aab", "abb"), ("a", "a"), ("", ""), ("é", "é")] {
            assert_eq!(look_of(a), look_of(b));
            let text = format!(r#"{{"{a}":1,"x":2,"{b}":3}}"#);
            assert_eq!(members(text.as_bytes()).is_ok(), a != b, "{text}");
        }
    }

    #[test]
    fn canonical_form_is_sorted_and_exact() {
        for (text, expected) in [
            (r#" { "b" : [ 1.50 , 1 , 1.0 ] , "a" : null } "#, r#"{"a":null,"b":[15e-1,1,1e0]}"#),
            // U+FB33 sorts after the surrogates of U+1F600 in UTF-16, though not by code point.
            (
                "{\"\u{20ac}\":1,\"\\r\":2,\"\u{fb33}\":3,\"1\":4,\"\u{1f600}\":5,\"\u{80}\":6}",
                "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}",
            ),
            (
                r#"{"created_by":1,"created_at":2,"created_":3,"c":4,"":5}"#,
                r#"{"":5,"c":4,"created_":3,"created_at":2,"created_by":1}"#,
            ),
            (r#"{"a\u0000":1,"a":2,"a\u0000b":3,"a\u0001":4}"#, r#"{"a":2,"a\u0000":1,"a\u0000b":3,"a\u0001":4}"#),
            (r#""\u20ac\/\u000f\u000a\b\u007f\"\\""#, "\"€/\\u000f\\n\\b\u{7f}\\\"\\\\\""),
        ] {
            let mut out = Vec::new();
            write_canonical(&parse(text.as_bytes()).unwrap(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn equality_is_that_of_the_contract() {
        for (a, b, expected) in [
            (r#"{"a":1,"b":[2]}"#, r#"{"b":[2],"a":1}"#, true),
            (r#"{"a":1}"#, r#"{"a":1,"b":null}"#, false),
            (r#"{"a":null}"#, r#"{"b":null}"#, false),
            ("[1,2]", "[2,1]", false),
            ("[1]", "[1,1]", false),
            ("1", "1.0", false),
            ("1.50", "15e-1", true),
            ("0", "-0", false),
            ("1e400", "10e399", true),
            ("9007199254740993", "9007199254740992", false),
            ("1", "\"1\"", false),
            ("\"\\u00e9\"", "\"é\"", true),
            ("\"é\"", "\"e\u{301}\"", false),
            ("false", "null", false),
        ] {
            let (left, right) = (parse(a.as_bytes()).unwrap(), parse(b.as_bytes()).unwrap());
            assert_eq!((equal(&left, &right), equal(&right, &left)), (expected, expected), "{a} and {b}");
            let (mut c, mut d) = (Vec::new(), Vec::new());
            write_canonical(&left, &mut c);
            write_canonical(&right, &mut d);
            assert_eq!(c == d, expected, "canonical {a} and {b}");
        }
    }

    #[test]
    fn a_merge_patch_does_what_rfc_7396_shows() {
        for (target, patch, merged) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            let mut object = parse_object(target.as_bytes()).unwrap();
            merge(&mut object, &parse_object(patch.as_bytes()).unwrap());
            assert_eq!(String::from_utf8(to_vec(&object)).unwrap(), merged, "{target} patched with {patch}");
        }
    }
}
