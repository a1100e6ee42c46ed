//! The contract over tables of DynamoDB.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use larder_guest::{Attribute, Dynamodb, Item, ItemScan, TableStatus};
use larder_model::{
    Batch, Collection, Entity, Error, ErrorKind, Opened, Page, Query, Result, Retry, Violation, entity, filter::Filter,
    json::quoted,
};

use crate::{
    check,
    config::Config,
    find::{Find, Found, Usable, foreign_cursor},
    item, size,
    table::{Table, TableIndex},
    transaction::Changes,
};

/// How often the service is asked for one batch of a scan, or for one count, before the host is answered.
const REQUESTS_MAX: usize = 16;

/// Items that a request counts.
const COUNTED: u32 = 1_000_000;

/// Parts of a table that are counted side by side.
const COUNTED_SEGMENTS: u32 = 4;

/// Items of a batch that are asked for, by the bytes that are wanted: few are smaller than this.
const ITEM_BYTES_MIN: u32 = 100;

/// A store whose collections are tables.
pub struct DynamodbStore<D: Dynamodb> {
    pub(crate) dynamodb: D,
    pub(crate) config: Config,
    pub(crate) tables: Vec<Table>,
    /// Collections whose table was there. One that is gone then is never made again by a write.
    seen: RefCell<HashSet<String>>,
    /// The indexes that were found to be usable, by collection.
    usable: RefCell<HashMap<String, Vec<String>>>,
    /// How many loads look at what is stored before they write.
    pub(crate) looks_left: u32,
}

impl<D: Dynamodb> DynamodbStore<D> {
    /// Opens a store over an account's tables, which it does not touch yet.
    pub fn open_in(dynamodb: D, config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        let config = Config::parse(config)?;
        let tables = collections.into_iter().map(Table::new).collect::<Result<Vec<_>>>()?;
        let warnings = tables.iter().flat_map(|table| table.warnings.clone()).collect();
        let opened = Opened { has_rules: true, warnings, ..Opened::default() };
        let (seen, usable) = (RefCell::default(), RefCell::default());
        Ok((DynamodbStore { dynamodb, config, tables, seen, usable, looks_left: 0 }, opened))
    }

    pub(crate) fn table(&self, collection: &str) -> Result<&Table> {
        self.tables
            .iter()
            .find(|table| table.collection.name == collection)
            .ok_or_else(|| Error::invalid(format!("{} is no configured collection", quoted(collection))))
    }

    pub(crate) fn has_seen(&self, collection: &str) -> bool {
        self.seen.borrow().contains(collection)
    }

    pub(crate) fn note_seen(&self, collection: &str) {
        if !self.has_seen(collection) {
            self.seen.borrow_mut().insert(collection.to_owned());
        }
    }

    /// What the service answered about one table, which was there if it did.
    pub(crate) fn reading<T>(&self, collection: &str, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => {
                self.note_seen(collection);
                Ok(value)
            }
            Err(error) => Err(self.explain(collection, error)),
        }
    }

    /// A table that is not there is no empty collection: the address may be wrong.
    pub(crate) fn explain(&self, collection: &str, error: Error) -> Error {
        if error.kind != ErrorKind::NotFound {
            return error;
        }
        let what = match self.has_seen(collection) {
            true => format!("the table of {} was there and is gone", quoted(collection)),
            false => format!("there is no table of {}", quoted(collection)),
        };
        Error {
            retry: Retry::Never,
            ..Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{what} ({}): `larder stores prepare` makes it, unless the region or the prefix is another one",
                    error.message
                ),
            )
        }
    }

    /// Names of the collections that have a table.
    pub(crate) fn stored_collections(&mut self) -> Result<Vec<String>> {
        self.dynamodb.list_collections()
    }

    /// Makes what is missing.
    pub(crate) fn prepare(&mut self, dry_run: bool, extend: bool) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for table in &self.tables {
            lines.extend(self.dynamodb.prepare_table(&table.spec(), dry_run, extend)?);
            if !dry_run {
                self.note_seen(&table.collection.name);
            }
        }
        self.usable.borrow_mut().clear();
        Ok(lines)
    }

    /// What there is to say about the tables.
    pub(crate) fn check(&mut self) -> Result<String> {
        check::check(&self.dynamodb, &self.tables)
    }

    /// Entities by id.
    pub(crate) fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let table = self.table(collection)?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        for id in ids {
            entity::check_id(id)?;
        }
        let keys = ids.iter().map(|id| table.key(id)).collect();
        let items =
            self.reading(collection, self.dynamodb.get_items(collection, keys, self.config.consistent_reads))?;
        let entity = |item: Option<Item>| item.map(|item| item::entity_of(table, &item)).transpose();
        items.into_iter().map(entity).collect()
    }

    /// A page of a query.
    pub(crate) fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        Ok(self.find_with(collection, query, self.config.consistent_reads, None)?.0)
    }

    /// A page of a query over what is stored with these changes, and what it was read from.
    pub(crate) fn find_with(
        &self,
        collection: &str,
        query: &Query,
        consistent: bool,
        changes: Option<&Changes>,
    ) -> Result<(Page, Vec<Found>)> {
        let table = self.table(collection)?;
        let find = || {
            let find = Find {
                dynamodb: &self.dynamodb,
                table,
                query,
                consistent,
                may_choose_index: !self.config.consistent_reads,
                changes,
                found: Vec::new(),
                bytes: 0,
                read_units: 0.0,
            };
            find.run(|| self.usable_indexes(table))
        };
        let page = match find() {
            // An index may have been removed: looked at afresh, that shows.
            Err(error)
                if error.kind == ErrorKind::InvalidArgument
                    && self.usable.borrow_mut().remove(collection).is_some() =>
            {
                find()
            }
            page => page,
        };
        self.reading(collection, page)
    }

    /// The indexes that queries can be read from.
    fn usable_indexes(&self, table: &Table) -> Result<Usable> {
        let name = &table.collection.name;
        if let Some(names) = self.usable.borrow().get(name) {
            return Ok(Usable::These(names.clone()));
        }
        let status = match self.dynamodb.describe_table(name) {
            Ok(status) => status,
            Err(error) if error.kind == ErrorKind::Denied => return Ok(Usable::Unknown(error)),
            Err(error) => return Err(error),
        };
        let Some(status) = status else {
            return Err(Error::new(ErrorKind::NotFound, "no such table"));
        };
        let usable = table.indexes.iter().filter(|index| is_usable(index, &status));
        let names: Vec<String> = usable.map(|index| index.name.clone()).collect();
        // One that is missing today may be there tomorrow.
        if names.len() == table.indexes.len() {
            self.usable.borrow_mut().insert(name.clone(), names.clone());
        }
        Ok(Usable::These(names))
    }

    /// How many entities there are.
    pub(crate) fn count(&mut self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        self.table(collection)?;
        if filter.is_some() {
            return Ok(None);
        }
        let mut open: Vec<(u32, Option<Item>)> = (0..COUNTED_SEGMENTS).map(|number| (number, None)).collect();
        let mut total = 0;
        while !open.is_empty() {
            let scan = ItemScan {
                collection: collection.to_owned(),
                segments: COUNTED_SEGMENTS,
                filter: None,
                limit: COUNTED,
                consistent: self.config.consistent_reads,
                count_only: true,
            };
            let numbers: Vec<u32> = open.iter().map(|(number, _)| *number).collect();
            let pages = self.reading(collection, self.dynamodb.scan(scan, open))?;
            open = Vec::new();
            for (number, page) in numbers.into_iter().zip(pages) {
                total += u64::from(page.count);
                if page.last_key.is_some() {
                    open.push((number, page.last_key));
                }
            }
        }
        Ok(Some(total))
    }

    /// A part of everything.
    pub(crate) fn scan(
        &mut self,
        collection: &str,
        segment: u32,
        segments: u32,
        cursor: Option<&[u8]>,
        max_bytes: u32,
    ) -> Result<Batch> {
        if segment >= segments {
            return Err(Error::invalid(format!("there is no segment {segment} of {segments}")));
        }
        let table = self.table(collection)?;
        let after = cursor.map(|cursor| std::str::from_utf8(cursor).map_err(|_| foreign_cursor())).transpose()?;
        let mut after = after.map(str::to_owned);
        let mut batch = Batch::default();
        let mut bytes: u32 = 0;
        for _ in 0..REQUESTS_MAX {
            // As many as there is room for, by the size of those before.
            let average = bytes.checked_div(batch.entities.len() as u32).unwrap_or(0).max(ITEM_BYTES_MIN);
            let scan = ItemScan {
                collection: collection.to_owned(),
                segments,
                filter: None,
                limit: (max_bytes.saturating_sub(bytes) / average).max(1),
                consistent: self.config.consistent_reads,
                count_only: false,
            };
            let start = after.as_ref().map(|id| table.key(id));
            let mut pages = self.reading(collection, self.dynamodb.scan(scan, vec![(segment, start)]))?;
            let page = pages.pop().unwrap_or_default();
            for item in page.items {
                if !batch.entities.is_empty() && bytes >= max_bytes {
                    batch.next = after.map(String::into_bytes);
                    return Ok(batch);
                }
                let entity = item::entity_of(table, &item)?;
                after = Some(entity.id.clone());
                bytes = bytes.saturating_add(entity.body.len() as u32);
                batch.entities.push(entity);
            }
            let Some(last_key) = page.last_key else { return Ok(batch) };
            after = last_key.into_iter().find_map(|(name, attribute)| match attribute {
                Attribute::Text(id) if name == table.collection.key => Some(id),
                _ => None,
            });
            if !batch.entities.is_empty() && bytes >= max_bytes {
                break;
            }
        }
        batch.next = after.map(String::into_bytes);
        Ok(batch)
    }

    /// Which entities are too large to be items.
    pub(crate) fn validate(&mut self, collection: &str, entities: Vec<Entity>) -> Result<Vec<Violation>> {
        let table = self.table(collection)?;
        let mut violations = Vec::new();
        for (i, entity) in (0..).zip(entities) {
            if entity.body.len() < size::SMALL_BODY_BYTES {
                continue;
            }
            // What is no entity at all the host says itself.
            let Ok(members) = entity::parse(&table.collection, Some(&entity.id), &entity.body) else { continue };
            if item::encode(table, &members).bytes > size::ITEM_BYTES_MAX {
                violations.push(Violation { entity: i, rule: size::rule(table) });
            }
        }
        Ok(violations)
    }
}

/// Whether an index that is there answers as the declared one would.
pub(crate) fn is_usable(index: &TableIndex, status: &TableStatus) -> bool {
    status.indexes.iter().any(|found| {
        found.name == index.name
            && found.status == "ACTIVE"
            && found.holds_whole_items
            && found.key.hash == index.hash
            && found.key.range == index.range
    })
}
