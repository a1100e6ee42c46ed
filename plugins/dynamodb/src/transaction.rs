//! Transactions: changes are gathered here and sent as one transaction of the service's, with a check for each entity that
//! was read and not written. Nothing is held in between, so a dropped transaction leaves nothing.
//!
//! Whoever commits after somebody else changed what was read is refused. What the service cannot be asked to check is that
//! no entity appeared which a query would have found, so nothing is served as serializable.

use std::collections::{BTreeMap, HashMap};

use larder_guest::{Dynamodb, Item, ItemAction, Written};
use larder_model::{Entity, Error, ErrorKind, Isolation, Outcome, Page, Query, Result, Write, entity, json};
use serde_json::{Map, Value};

use crate::{
    item, size,
    store::DynamodbStore,
    write::{self, Mark, Stored},
};

/// What a transaction makes of the entities of a collection, by id.
pub(crate) type Changes = BTreeMap<String, Change>;

pub(crate) struct Change {
    /// What was stored when it was first changed.
    before: Option<Mark>,
    /// None where it is removed.
    pub(crate) after: Option<Map<String, Value>>,
}

/// What was read of an entity and has to be the same at the end.
struct Reading {
    item: Option<Item>,
}

/// An open transaction.
pub struct Transaction {
    isolation: Isolation,
    is_read_only: bool,
    has_failed: bool,
    changes: HashMap<String, Changes>,
    readings: BTreeMap<(String, String), Reading>,
}

impl Transaction {
    fn check_usable(&self) -> Result<()> {
        match self.has_failed {
            false => Ok(()),
            true => Err(Error::invalid("after an error the transaction can only be rolled back")),
        }
    }

    fn change(&self, collection: &str, id: &str) -> Option<&Change> {
        self.changes.get(collection)?.get(id)
    }

    fn reading(&self, collection: &str, id: &str) -> Option<&Reading> {
        // No allocation is worth avoiding beside a request over the network.
        self.readings.get(&(collection.to_owned(), id.to_owned()))
    }

    fn keep(&mut self, collection: &str, id: &str, item: Option<Item>) {
        self.readings.insert((collection.to_owned(), id.to_owned()), Reading { item });
    }
}

impl<D: Dynamodb> DynamodbStore<D> {
    pub(crate) fn begin(&mut self, isolation: Option<Isolation>, is_read_only: bool) -> Result<Transaction> {
        let isolation = isolation.unwrap_or(Isolation::RepeatableRead);
        if isolation == Isolation::Serializable {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a transaction over DynamoDB is repeatable-read at most, because nothing can check that no entity appeared",
            ));
        }
        Ok(Transaction {
            isolation,
            is_read_only,
            has_failed: false,
            changes: HashMap::new(),
            readings: BTreeMap::new(),
        })
    }

    /// Entities by id, in a transaction.
    pub(crate) fn transaction_get(
        &mut self,
        transaction: &mut Transaction,
        collection: &str,
        ids: &[String],
        for_update: bool,
    ) -> Result<Vec<Option<Entity>>> {
        transaction.check_usable()?;
        let is_kept = transaction.isolation == Isolation::RepeatableRead || for_update && !transaction.is_read_only;
        let table = self.table(collection)?;
        let mut missing: Vec<&str> = ids
            .iter()
            .map(String::as_str)
            .filter(|id| transaction.change(collection, id).is_none() && transaction.reading(collection, id).is_none())
            .collect();
        missing.sort_unstable();
        missing.dedup();
        let mut fresh: HashMap<&str, Option<Item>> = HashMap::new();
        if !missing.is_empty() {
            let keys = missing.iter().map(|id| table.key(id)).collect();
            let items = self.reading(collection, self.dynamodb.get_items(collection, keys, true))?;
            for (id, item) in missing.into_iter().zip(items) {
                match is_kept {
                    true => transaction.keep(collection, id, item),
                    false => drop(fresh.insert(id, item)),
                }
            }
        }
        let read = |id: &String| {
            if let Some(change) = transaction.change(collection, id) {
                let Some(members) = &change.after else { return Ok(None) };
                let version = entity::version_of(&table.collection, members);
                return Ok(Some(Entity { id: id.clone(), version, body: json::to_vec(members) }));
            }
            let kept = transaction.reading(collection, id).map(|reading| &reading.item);
            let item = kept.or_else(|| fresh.get(id.as_str())).and_then(Option::as_ref);
            item.map(|item| item::entity_of(table, item)).transpose()
        };
        ids.iter().map(read).collect()
    }

    /// A page of a query, in a transaction.
    pub(crate) fn transaction_find(
        &mut self,
        transaction: &mut Transaction,
        collection: &str,
        query: &Query,
    ) -> Result<Page> {
        transaction.check_usable()?;
        let (page, found) = self.find_with(collection, query, true, transaction.changes.get(collection))?;
        let table = self.table(collection)?;
        for found in found {
            let Some(item) = found.item else { continue };
            let id = &found.entity.id;
            match transaction.reading(collection, id) {
                // It would not be the same at the end either.
                Some(reading)
                    if reading.item.as_ref().map(|item| Mark::of(&table.collection, item))
                        != Some(Mark::of(&table.collection, &item)) =>
                {
                    transaction.has_failed = true;
                    return Err(write::conflict(collection, id));
                }
                Some(_) => {}
                None if transaction.isolation == Isolation::RepeatableRead => {
                    transaction.keep(collection, id, Some(item));
                }
                None => {}
            }
        }
        Ok(page)
    }

    /// Writes, in a transaction.
    pub(crate) fn transaction_apply(
        &mut self,
        transaction: &mut Transaction,
        writes: Vec<Write>,
        now: &str,
    ) -> Result<Vec<Outcome>> {
        transaction.check_usable()?;
        if transaction.is_read_only {
            return Err(Error::invalid("the transaction is read-only"));
        }
        let result = entity::check_distinct(&writes).and_then(|()| self.gather(transaction, &writes, now));
        transaction.has_failed = result.is_err();
        result
    }

    fn gather(&self, transaction: &mut Transaction, writes: &[Write], now: &str) -> Result<Vec<Outcome>> {
        let mut wanted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (i, write) in writes.iter().enumerate() {
            let (collection, id) = write.target();
            self.table(collection).map_err(|error| error.at_write(i))?;
            entity::check_id(id).map_err(|error| error.at_write(i))?;
            if transaction.change(collection, id).is_none() && transaction.reading(collection, id).is_none() {
                wanted.entry(collection).or_default().push(id);
            }
        }
        let mut fresh: HashMap<(&str, &str), Option<Item>> = HashMap::new();
        for (collection, ids) in wanted {
            let items = self.items_to_change(collection, &ids)?;
            fresh.extend(ids.into_iter().map(|id| (collection, id)).zip(items));
        }
        let mut outcomes = Vec::with_capacity(writes.len());
        for (i, write) in writes.iter().enumerate() {
            let (collection, id) = write.target();
            let table = self.table(collection)?;
            let staged = match transaction.change(collection, id) {
                Some(change) => write::stage(table, write, change.after.as_ref(), now)
                    .map(|(outcome, after)| (outcome, Change { before: change.before.clone(), after })),
                None => {
                    let kept = transaction.reading(collection, id).map(|reading| &reading.item);
                    let item = kept.or_else(|| fresh.get(&(collection, id))).and_then(Option::as_ref);
                    item.map(|item| Stored::of(table, item)).transpose().and_then(|stored| {
                        let members = stored.as_ref().map(|stored| &stored.members);
                        let (outcome, after) = write::stage(table, write, members, now)?;
                        Ok((outcome, Change { before: stored.map(|stored| stored.mark), after }))
                    })
                }
            };
            let (outcome, change) = staged.map_err(|error| error.at_write(i))?;
            if let Some(after) = &change.after {
                size::check(table, id, &item::encode(table, after)).map_err(|error| error.at_write(i))?;
            }
            outcomes.push(outcome);
            transaction.changes.entry(collection.to_owned()).or_default().insert(id.to_owned(), change);
        }
        Ok(outcomes)
    }

    /// Makes a transaction's changes durable, all or none.
    pub(crate) fn commit(&mut self, transaction: Transaction) -> Result<()> {
        transaction.check_usable()?;
        let mut targets: Vec<(String, String)> = Vec::new();
        let mut actions: Vec<ItemAction> = Vec::new();
        let mut bytes = 0;
        for (collection, changes) in &transaction.changes {
            let table = self.table(collection)?;
            for (id, change) in changes {
                let (action, item_bytes) = write::action(table, id, change.before.as_ref(), change.after.as_ref())?;
                targets.push((collection.clone(), id.clone()));
                actions.push(action);
                bytes += item_bytes;
            }
        }
        for ((collection, id), reading) in &transaction.readings {
            if transaction.change(collection, id).is_some() {
                continue;
            }
            let table = self.table(collection)?;
            let mark = reading.item.as_ref().map(|item| Mark::of(&table.collection, item));
            let condition = write::unchanged(table, mark.as_ref());
            targets.push((collection.clone(), id.clone()));
            actions.push(ItemAction::Check { collection: collection.clone(), key: table.key(id), condition });
        }
        if actions.is_empty() {
            return Ok(());
        }
        write::check_transaction(actions.len(), bytes)?;
        let answers = match self.dynamodb.transact(actions, &write::token()) {
            Ok(answers) => answers,
            Err(error) => return Err(self.explain(&targets[0].0, error)),
        };
        let refused = answers.iter().position(|answer| matches!(answer, Written::Refused(_)));
        match refused.and_then(|refused| targets.get(refused)) {
            None => Ok(()),
            Some((collection, id)) => Err(write::conflict(collection, id)),
        }
    }
}
