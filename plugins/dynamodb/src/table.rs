//! What a collection's table looks like: its key, its secondary indexes, and which attributes are part of their keys.

use std::collections::BTreeMap;

use larder_guest::{Attribute, Item, KeySchema, TableSpec};
use larder_model::{Collection, Error, Result, json::quoted};

use crate::item::{EXACT, is_attribute};

/// The longest value of an index's hash attribute.
const HASH_BYTES_MAX: usize = 2048;

/// The longest value of an index's range attribute.
const RANGE_BYTES_MAX: usize = 1024;

/// A secondary index.
#[derive(Debug, Clone)]
pub(crate) struct TableIndex {
    pub(crate) name: String,
    pub(crate) hash: String,
    pub(crate) range: Option<String>,
}

/// A collection with its table.
pub(crate) struct Table {
    pub(crate) collection: Collection,
    pub(crate) indexes: Vec<TableIndex>,
    /// Attributes of the indexes' keys, without the collection's own, and how many bytes of text each may have.
    pub(crate) keys: BTreeMap<String, usize>,
    pub(crate) warnings: Vec<String>,
}

impl Table {
    pub(crate) fn new(collection: Collection) -> Result<Table> {
        if !is_attribute(&collection.key) {
            return Err(Error::invalid(format!(
                "{}: the key member {} cannot be the name of a key in DynamoDB: it is empty, long or begins with `{EXACT}`",
                collection.name,
                quoted(&collection.key)
            )));
        }
        let mut table = Table { collection, indexes: Vec::new(), keys: BTreeMap::new(), warnings: Vec::new() };
        for index in table.collection.indexes.clone() {
            let hash = index.fields.first().cloned().unwrap_or_default();
            let range = index.fields.get(1).cloned();
            let name_fits = (3..=255).contains(&index.name.len())
                && index.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
            if !name_fits || !is_attribute(&hash) || range.as_deref().is_some_and(|range| !is_attribute(range)) {
                table.warnings.push(format!(
                    "the index {} of {} is not made, because DynamoDB takes only names of 3 to 255 letters, digits, `_`, \
                     `-` and `.`, and no key begins with `{EXACT}`: queries scan instead",
                    quoted(&index.name),
                    table.collection.name
                ));
                continue;
            }
            table.add_key(&hash, HASH_BYTES_MAX);
            if let Some(range) = &range {
                table.add_key(range, RANGE_BYTES_MAX);
            }
            table.indexes.push(TableIndex { name: index.name, hash, range });
        }
        Ok(table)
    }

    fn add_key(&mut self, name: &str, bytes_max: usize) {
        // An id is always a text, and short enough.
        if name != self.collection.key {
            let bound = self.keys.entry(name.to_owned()).or_insert(bytes_max);
            *bound = bytes_max.min(*bound);
        }
    }

    /// Texts that are longer than this cannot be looked for in an index. A longer value is cut there to the bound, and at a
    /// character, so it may be up to three bytes shorter than that: what is looked for has to be shorter still, so that it
    /// compares with the cut text as it does with the whole.
    pub(crate) fn sought_bytes_max(&self, name: &str) -> usize {
        self.keys.get(name).map_or(RANGE_BYTES_MAX, |bytes_max| *bytes_max) - 4
    }

    pub(crate) fn spec(&self) -> TableSpec {
        let indexes = self
            .indexes
            .iter()
            .map(|index| (index.name.clone(), KeySchema { hash: index.hash.clone(), range: index.range.clone() }));
        TableSpec {
            collection: self.collection.name.clone(),
            key: KeySchema { hash: self.collection.key.clone(), range: None },
            indexes: indexes.collect(),
        }
    }

    /// The key of the item that holds this entity.
    pub(crate) fn key(&self, id: &str) -> Item {
        vec![(self.collection.key.clone(), Attribute::Text(id.to_owned()))]
    }
}
