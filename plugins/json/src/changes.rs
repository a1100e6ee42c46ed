//! Writes that are decided and not stored yet: those of a call or of a transaction, laid over what is stored.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    rc::Rc,
};

/// Writes by collection and id; a later one takes the place of an earlier one.
#[derive(Default)]
pub(crate) struct Changes {
    collections: BTreeMap<String, BTreeMap<Rc<str>, Change>>,
    count: u64,
}

pub(crate) struct Change {
    /// As compact JSON; none for a removal.
    pub(crate) body: Option<Vec<u8>>,
    /// What the body has as its version; 0 for a removal.
    pub(crate) version: u64,
    /// When it was first made, so that new entities stand in a document in the order they came.
    pub(crate) order: u64,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.collections.is_empty()
    }

    /// Puts a body, which has this version.
    pub(crate) fn put(&mut self, collection: &str, id: &str, body: Vec<u8>, version: u64) {
        self.set(collection, id, Some(body), version);
    }

    pub(crate) fn remove(&mut self, collection: &str, id: &str) {
        self.set(collection, id, None, 0);
    }

    fn set(&mut self, collection: &str, id: &str, body: Option<Vec<u8>>, version: u64) {
        self.count += 1;
        let order = self.count;
        if !self.collections.contains_key(collection) {
            self.collections.insert(collection.to_owned(), BTreeMap::new());
        }
        let changes = self.collections.get_mut(collection).expect("it was just made");
        match changes.get_mut(id) {
            Some(change) => *change = Change { body, version, order: change.order },
            None => {
                changes.insert(id.into(), Change { body, version, order });
            }
        }
    }

    /// The outer none where it did not change, the inner where it was removed.
    pub(crate) fn get(&self, collection: &str, id: &str) -> Option<Option<&[u8]>> {
        Some(self.collections.get(collection)?.get(id)?.body.as_deref())
    }

    /// The changes of one collection by id, from behind `after`.
    pub(crate) fn of<'a>(
        &'a self,
        collection: &str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Rc<str>, &'a Change)> {
        let from = after.map_or(Unbounded, Excluded);
        let changes = self.collections.get(collection);
        changes.into_iter().flat_map(move |changes| changes.range::<str, _>((from, Unbounded)))
    }

    /// Names of the collections with changes.
    pub(crate) fn collections(&self) -> impl Iterator<Item = &str> {
        self.collections.keys().map(String::as_str)
    }

    /// Everything, in the order in which it came.
    pub(crate) fn in_order(&self) -> Vec<(&str, &Rc<str>, &Change)> {
        let mut all: Vec<_> = self
            .collections
            .iter()
            .flat_map(|(name, changes)| changes.iter().map(move |(id, change)| (name.as_str(), id, change)))
            .collect();
        all.sort_unstable_by_key(|(.., change)| change.order);
        all
    }
}
