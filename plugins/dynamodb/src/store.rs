//! The contract over tables of DynamoDB: what is known of them, and how one that is missing is met.

use std::collections::HashSet;

use larder_guest::{Dynamodb, Item};
use larder_model::{
    Batch, Collection, Entity, Error, ErrorKind, Opened, Result, Retry, Violation, Write, entity, json::quoted,
};

use crate::{config::Config, item, size, table::Table, write::Target};

/// A store whose collections are tables.
pub struct DynamodbStore<D> {
    pub(crate) dynamodb: D,
    pub(crate) tables: Vec<Table>,
    /// Positions of tables that were there when they were last asked.
    seen: HashSet<usize>,
    pub(crate) consistent_reads: bool,
}

/// The error about a collection that was not given to `open`.
pub(crate) fn unknown(collection: &str) -> Error {
    Error::invalid(format!("{} is no configured collection", quoted(collection)))
}

impl<D: Dynamodb> DynamodbStore<D> {
    /// Opens a store, which asks the service nothing.
    pub fn open_in(dynamodb: D, config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        let Config { consistent_reads } = Config::parse(config)?;
        let tables = collections.into_iter().map(Table::new).collect::<Result<Vec<_>>>()?;
        let warnings = tables.iter().flat_map(|table| table.warnings.clone()).collect();
        let opened = Opened { has_rules: true, warnings, ..Opened::default() };
        Ok((DynamodbStore { dynamodb, tables, seen: HashSet::new(), consistent_reads }, opened))
    }

    pub(crate) fn position(&self, collection: &str) -> Result<usize> {
        let position = self.tables.iter().position(|table| table.collection.name == collection);
        position.ok_or_else(|| unknown(collection))
    }

    /// What a write is about.
    pub(crate) fn target(&self, write: &Write) -> Result<Target> {
        let (collection, id) = write.target();
        let position = self.position(collection)?;
        entity::check_id(id)?;
        Ok((position, id.to_owned()))
    }

    /// A table that is not there cannot be told from one in another region or under another prefix, so it is never
    /// answered as if it were empty.
    pub(crate) fn missing(&self, error: Error) -> Error {
        match error.kind {
            ErrorKind::NotFound => Error {
                retry: Retry::Never,
                ..Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "{}: `larder stores prepare` makes it, unless the region, the prefix or the account is not the \
                         one that was meant",
                        error.message
                    ),
                )
            },
            _ => error,
        }
    }

    /// Notes that the table answered.
    pub(crate) fn note(&mut self, position: usize) {
        self.seen.insert(position);
    }

    /// The items of these ids. Where something is to be written, a table that was never seen is made.
    pub(crate) fn items(
        &mut self,
        position: usize,
        ids: &[&str],
        consistent: bool,
        to_write: bool,
    ) -> Result<Vec<Option<Item>>> {
        let table = &self.tables[position];
        let keys = ids.iter().map(|id| table.key(id)).collect();
        match self.dynamodb.get_items(&table.collection.name, keys, consistent) {
            Ok(items) => {
                self.note(position);
                Ok(items)
            }
            Err(error) if error.kind == ErrorKind::NotFound && to_write && !self.seen.contains(&position) => {
                self.dynamodb.prepare_table(&self.tables[position].spec(), false, false)?;
                self.note(position);
                Ok(ids.iter().map(|_| None).collect())
            }
            Err(error) => Err(self.missing(error)),
        }
    }

    pub(crate) fn entity(&self, position: usize, item: &Item) -> Result<Entity> {
        Ok(item::entity(&self.tables[position], item)?.0)
    }

    /// Makes what is missing.
    pub(crate) fn prepare_all(&mut self, dry_run: bool, extend: bool) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for table in &self.tables {
            lines.extend(self.dynamodb.prepare_table(&table.spec(), dry_run, extend)?);
        }
        Ok(lines)
    }

    /// Entities by id.
    pub(crate) fn get_all(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let position = self.position(collection)?;
        let consistent = self.consistent_reads;
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        // What no entity can be called, the service would not look for.
        let possible: Vec<&str> = ids.iter().copied().filter(|id| entity::check_id(id).is_ok()).collect();
        let mut found = self.items(position, &possible, consistent, false)?.into_iter();
        ids.iter()
            .map(|id| {
                let item = if entity::check_id(id).is_ok() { found.next().flatten() } else { None };
                item.map(|item| self.entity(position, &item)).transpose()
            })
            .collect()
    }

    /// Which entities would be too large.
    pub(crate) fn violations(&self, collection: &str, entities: &[Entity]) -> Result<Vec<Violation>> {
        let table = &self.tables[self.position(collection)?];
        let is_large = |entity: &Entity| {
            let members = entity::parse(&table.collection, None, &entity.body).ok();
            members.is_some_and(|members| item::encode(table, &members).bytes > size::ITEM_BYTES_MAX)
        };
        Ok((0..)
            .zip(entities)
            .filter(|(_, entity)| is_large(entity))
            .map(|(position, _)| Violation { entity: position, rule: size::rule(table) })
            .collect())
    }

    /// A page of everything.
    pub(crate) fn scan_segment(
        &mut self,
        collection: &str,
        (segment, segments): (u32, u32),
        cursor: Option<&[u8]>,
        max_bytes: u32,
    ) -> Result<Batch> {
        if segments == 0 || segment >= segments {
            return Err(Error::invalid(format!("there is no segment {segment} of {segments}")));
        }
        let position = self.position(collection)?;
        let mut start = cursor.map(|cursor| crate::find::id_from(&self.tables[position], cursor)).transpose()?;
        let (mut entities, mut bytes) = (Vec::new(), 0);
        loop {
            let mut page = self.segment_page(position, (segment, segments), start.take())?;
            for item in std::mem::take(&mut page.items) {
                let entity = self.entity(position, &item)?;
                bytes += entity.body.len();
                let id = entity.id.clone();
                entities.push(entity);
                if bytes >= max_bytes as usize {
                    return Ok(Batch { entities, next: Some(id.into_bytes()) });
                }
            }
            match page.last_key {
                Some(key) => start = Some(key),
                None => return Ok(Batch { entities, next: None }),
            }
        }
    }
}
