//! What is known of the entities of a collection without their text: where each lies, and which hold a value.
//!
//! This, and the entities that are kept parsed, is all that stays in memory of a document.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound::{Excluded, Unbounded},
    rc::{Rc, Weak},
};

use larder_model::{
    Entity, Result,
    filter::{Comparison, Filter, Scalar},
    json,
};
use serde_json::{Map, Value};

use crate::text;

/// Larger bodies are not kept parsed, so that `cache_size` bounds the memory.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Where a body lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// With [`Place::IN_JOURNAL`], in the journal, else in the text of the document.
    tagged_offset: u64,
    pub(crate) len: u32,
}

impl Place {
    const IN_JOURNAL: u64 = 1 << 63;

    pub(crate) fn in_document(offset: u64, len: u32) -> Self {
        Place { tagged_offset: offset, len }
    }

    pub(crate) fn in_journal(offset: u64, len: u32) -> Self {
        Place { tagged_offset: offset | Self::IN_JOURNAL, len }
    }

    pub(crate) fn is_in_journal(self) -> bool {
        self.tagged_offset & Self::IN_JOURNAL != 0
    }

    pub(crate) fn offset(self) -> u64 {
        self.tagged_offset & !Self::IN_JOURNAL
    }
}

/// A stored entity.
pub(crate) struct Entry {
    pub(crate) place: Place,
    /// Its turn in the document: where it stood when the document was read, and behind all of those, where it first came
    /// in the journal. An entity that is written again keeps its turn.
    pub(crate) turn: u64,
    kept: Cell<Weak<Kept>>,
}

impl Entry {
    /// Of a document.
    fn new(place: Place) -> Self {
        Entry { place, turn: place.offset(), kept: Cell::default() }
    }

    /// What is kept of it, if that is still what is stored.
    pub(crate) fn kept(&self) -> Option<Rc<Kept>> {
        self.last_kept().filter(|kept| kept.is_current.get())
    }

    fn last_kept(&self) -> Option<Rc<Kept>> {
        let weak = self.kept.take();
        let kept = weak.upgrade();
        self.kept.set(weak);
        kept
    }
}

/// The entities of one collection.
#[derive(Default)]
pub(crate) struct Entities {
    by_id: BTreeMap<Rc<str>, Entry>,
    /// By member, for those that a query asked for.
    by_value: RefCell<HashMap<String, ByValue>>,
}

/// Digests of a member's values with the ids of who holds, or once held, them. A digest may stand for several values, so
/// what is found this way is looked at again.
pub(crate) type ByValue = BTreeSet<(u64, Rc<str>)>;

impl Entities {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Entry> {
        self.by_id.get(id)
    }

    pub(crate) fn after<'a>(&'a self, id: Option<&str>) -> impl Iterator<Item = (&'a Rc<str>, &'a Entry)> {
        let from = id.map_or(Unbounded, Excluded);
        self.by_id.range::<str, _>((from, Unbounded))
    }

    /// Every entity, to be given its place in a document that is written anew.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&Rc<str>, &mut Entry)> {
        self.by_id.iter_mut()
    }

    /// Puts an entity that a document holds. False where there is one of that id.
    pub(crate) fn add(&mut self, id: Rc<str>, place: Place) -> bool {
        self.by_id.insert(id, Entry::new(place)).is_none()
    }

    /// Puts what was written to the journal.
    pub(crate) fn set(&mut self, id: &str, place: Place) {
        match self.by_id.get_mut(id) {
            Some(entry) => {
                if let Some(kept) = entry.last_kept() {
                    kept.is_current.set(false);
                }
                entry.place = place;
            }
            None => {
                let entry = Entry { place, turn: place.tagged_offset, kept: Cell::default() };
                self.by_id.insert(id.into(), entry);
            }
        }
    }

    pub(crate) fn remove(&mut self, id: &str) {
        self.by_id.remove(id);
    }

    /// Whether the values of a member are known by digest.
    pub(crate) fn is_indexed(&self, member: &str) -> bool {
        self.by_value.borrow().contains_key(member)
    }

    pub(crate) fn add_index(&self, member: &str, index: ByValue) {
        self.by_value.borrow_mut().insert(member.to_owned(), index);
    }

    /// Notes in an index what an entity holds.
    pub(crate) fn note_value(&self, index: &mut ByValue, member: &str, id: &str, members: &Map<String, Value>) {
        if let Some(value) = members.get(member).and_then(Scalar::from_value)
            && let Some((id, _)) = self.by_id.get_key_value(id)
        {
            index.insert((digest(&value), id.clone()));
        }
    }

    /// Notes what an entity holds in the members that are known by digest.
    pub(crate) fn note_values(&self, id: &str, body: &[u8]) {
        let mut indexes = self.by_value.borrow_mut();
        if indexes.is_empty() {
            return;
        }
        // What is no object holds no values.
        let Ok(members) = json::parse_object(body) else { return };
        for (member, index) in indexes.iter_mut() {
            self.note_value(index, member, id, &members);
        }
    }

    /// Ids, in order and each once, of all that may hold one of the values.
    pub(crate) fn holders(&self, member: &str, values: &[&Scalar]) -> Vec<Rc<str>> {
        let indexes = self.by_value.borrow();
        let Some(index) = indexes.get(member) else { return Vec::new() };
        let mut ids = BTreeSet::new();
        for digest in values.iter().map(|value| digest(value)) {
            let from: (u64, Rc<str>) = (digest, "".into());
            ids.extend(index.range(from..).take_while(|(found, _)| *found == digest).map(|(_, id)| id.clone()));
        }
        ids.retain(|id| self.by_id.contains_key(id));
        ids.into_iter().collect()
    }
}

/// Entities as they come in a document. As long as each id is behind the one before, as it is in a document that larder wrote,
/// nothing is looked for.
#[derive(Default)]
pub(crate) struct Reading {
    ascending: Vec<(Rc<str>, Entry)>,
    entities: Entities,
}

impl Reading {
    /// As [`Entities::add`].
    pub(crate) fn add(&mut self, id: Rc<str>, place: Place) -> bool {
        let is_behind = self.ascending.last().is_none_or(|(last, _)| json::is_before(last, &id));
        if is_behind && self.entities.by_id.is_empty() {
            self.ascending.push((id, Entry::new(place)));
            return true;
        }
        self.settle();
        self.entities.add(id, place)
    }

    fn settle(&mut self) {
        if !self.ascending.is_empty() {
            self.entities.by_id = std::mem::take(&mut self.ascending).into_iter().collect();
        }
    }

    pub(crate) fn finish(mut self) -> Entities {
        self.settle();
        self.entities
    }
}

fn digest(value: &Scalar) -> u64 {
    match value {
        Scalar::Null => 0,
        Scalar::Boolean(value) => 1 + u64::from(*value),
        // Equal numbers have the same nearest double, however they are spelt; zero has two.
        Scalar::Number(text) => text.parse::<f64>().map_or(3, |number| (number + 0.0).to_bits()),
        Scalar::Text(text) => !text::hash(text.as_bytes()),
    }
}

/// The values that a filter leaves to a member, where it leaves but a few.
pub(crate) fn values_of<'a>(filter: &'a Filter, member: &str) -> Option<Vec<&'a Scalar>> {
    filter.conjuncts().into_iter().find_map(|conjunct| match conjunct {
        Filter::Compare { field, op: Comparison::Eq, value } if field.single() == Some(member) => Some(vec![value]),
        Filter::AnyOf { field, values } if field.single() == Some(member) => Some(values.iter().collect()),
        _ => None,
    })
}

/// An entity that is kept as it crosses the contract, and parsed once somebody asked for its members.
pub(crate) struct Kept {
    pub(crate) entity: Entity,
    parsed: OnceCell<Rc<Map<String, Value>>>,
    is_wanted: Cell<bool>,
    /// Whether it is what is stored.
    is_current: Cell<bool>,
    /// Where the cache holds it.
    slot: usize,
}

impl Kept {
    pub(crate) fn parse(
        &self,
        parse: impl FnOnce(&[u8]) -> Result<Map<String, Value>>,
    ) -> Result<Rc<Map<String, Value>>> {
        if let Some(parsed) = self.parsed.get() {
            return Ok(parsed.clone());
        }
        let parsed = Rc::new(parse(&self.entity.body)?);
        Ok(self.parsed.get_or_init(|| parsed).clone())
    }
}

/// The entities that are kept, at most `cache_size`. Who was not asked for since the hand came by last goes first.
pub(crate) struct Cache {
    capacity: usize,
    kept: RefCell<Vec<Rc<Kept>>>,
    hand: Cell<usize>,
}

impl Cache {
    pub(crate) fn new(capacity: usize) -> Self {
        Cache { capacity, kept: RefCell::default(), hand: Cell::new(0) }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.kept.borrow().len() < self.capacity
    }

    pub(crate) fn touch(kept: &Kept) {
        kept.is_wanted.set(true);
    }

    /// Keeps an entity, and lets another go where there is no room.
    pub(crate) fn keep(&self, entry: &Entry, entity: Entity) -> Rc<Kept> {
        let is_large = entity.body.len() > KEPT_BYTES_MAX;
        let kept = |slot| {
            let (parsed, is_wanted, is_current) = (OnceCell::new(), Cell::new(false), Cell::new(true));
            Rc::new(Kept { entity, parsed, is_wanted, is_current, slot })
        };
        if is_large || self.capacity == 0 {
            return kept(0);
        }
        let mut held = self.kept.borrow_mut();
        let slot = match entry.last_kept() {
            // The same entity as it was before.
            Some(last) => last.slot,
            None if held.len() < self.capacity => held.len(),
            None => {
                let mut hand = self.hand.get();
                while held[hand].is_wanted.replace(false) {
                    hand = (hand + 1) % self.capacity;
                }
                self.hand.set((hand + 1) % self.capacity);
                hand
            }
        };
        let new = kept(slot);
        if slot == held.len() {
            held.push(new.clone());
        } else {
            held[slot] = new.clone();
        }
        entry.kept.set(Rc::downgrade(&new));
        new
    }

    /// Lets go of what no entity has any more, after a document was read anew.
    pub(crate) fn forget_the_dead(&self) {
        let mut held = self.kept.borrow_mut();
        // A slot is a place in this list, so whoever is behind a gap goes too.
        let living = held.iter().position(|kept| Rc::weak_count(kept) == 0).unwrap_or(held.len());
        held.truncate(living);
        self.hand.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(id: &str) -> Entity {
        Entity { id: id.to_owned(), version: 1, body: format!("{{\"id\":\"{id}\"}}").into_bytes() }
    }

    #[test]
    fn who_is_asked_for_stays_and_no_more_are_kept_than_there_is_room_for() {
        let mut entities = Entities::default();
        let cache = Cache::new(10);
        for i in 0..100 {
            entities.add(format!("{i:03}").as_str().into(), Place::in_document(i, 1));
        }
        let keep = |entities: &Entities, id: &str| cache.keep(entities.get(id).unwrap(), entity(id));
        keep(&entities, "000");
        for i in 1..100 {
            Cache::touch(&entities.get("000").unwrap().kept().expect("it was asked for all the time"));
            keep(&entities, &format!("{i:03}"));
        }
        let kept = entities.after(None).filter(|(_, entry)| entry.kept().is_some()).count();
        assert_eq!(kept, 10);
        for _ in 0..100 {
            entities.set("000", Place::in_journal(1, 1));
            assert!(entities.get("000").unwrap().kept().is_none(), "it is another one");
            keep(&entities, "000");
        }
        assert_eq!(entities.after(None).filter(|(_, entry)| entry.kept().is_some()).count(), 10);
        let none = Cache::new(0);
        none.keep(entities.get("050").unwrap(), entity("050"));
        assert!(entities.get("050").unwrap().kept().is_none());
    }

    #[test]
    fn holders_are_found_by_exact_value() {
        let mut entities = Entities::default();
        let values =
            [r#"{"x":1}"#, r#"{"x":1.0}"#, r#"{"x":"1"}"#, r#"{"x":true}"#, r#"{"x":null}"#, "{}", r#"{"x":[1]}"#];
        entities.add_index("x", ByValue::new());
        for (i, text) in values.iter().enumerate() {
            let id = i.to_string();
            entities.add(id.as_str().into(), Place::in_document(i as u64, 1));
            entities.note_values(&id, text.as_bytes());
        }
        let holders = |value: Value| -> Vec<String> {
            let scalar = Scalar::from_value(&value).unwrap();
            entities.holders("x", &[&scalar]).iter().map(|id| id.to_string()).collect()
        };
        assert_eq!(holders(serde_json::from_str("1.00").unwrap()), ["0", "1"]);
        assert_eq!(holders("1".into()), ["2"]);
        assert_eq!(holders(true.into()), ["3"]);
        assert_eq!(holders(Value::Null), ["4"]);
    }
}
