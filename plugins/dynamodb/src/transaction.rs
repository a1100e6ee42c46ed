//! Transactions: what is read is remembered, what is written waits, and at the end all of it is one transaction of the
//! service's, on the condition that what was read is still so.
//!
//! | level | what must not have changed until the end |
//! | --- | --- |
//! | read committed | what is written, and what was read for update |
//! | repeatable read | everything that was read or found |
//!
//! Nothing keeps others from adding an entity that a query would have found, so there is no serializable.

use std::collections::{BTreeMap, HashSet};

use larder_guest::{Dynamodb, ItemAction, Written};
use larder_model::{
    Entity, Error, ErrorKind, Isolation, Outcome, Page, Query, Result, Retry, Write, entity, json::quoted,
};
use serde_json::{Map, Value};

use crate::{
    find::{Reading, foreign_cursor},
    store::DynamodbStore,
    write::{ACTIONS_MAX, State, Target, action, decide, token, too_many, unchanged},
};

/// What a cursor of entities that the transaction itself wrote begins with. Others are JSON.
const OWN: u8 = b'o';

/// An open transaction.
#[derive(Debug)]
pub struct Transaction {
    isolation: Isolation,
    is_read_only: bool,
    /// After an error it can only be rolled back.
    has_failed: bool,
    /// What was read of each, and whether it must stay so.
    read: BTreeMap<Target, (Option<State>, bool)>,
    /// What each becomes; none where it is removed.
    written: BTreeMap<Target, Option<Map<String, Value>>>,
}

impl Transaction {
    fn usable(&self) -> Result<()> {
        match self.has_failed {
            true => Err(Error::invalid("the transaction failed, and can only be rolled back")),
            false => Ok(()),
        }
    }

    /// How many actions its commit would have.
    fn actions(&self) -> usize {
        let checked = self.read.iter().filter(|(target, (_, check))| *check && !self.written.contains_key(*target));
        self.written.len() + checked.count()
    }

    fn bounded(&self) -> Result<()> {
        match self.actions() {
            0..=ACTIONS_MAX => Ok(()),
            actions => Err(too_many(actions)),
        }
    }

    fn noticing<T>(&mut self, result: Result<T>) -> Result<T> {
        self.has_failed |= result.is_err();
        result
    }
}

impl<D: Dynamodb> DynamodbStore<D> {
    pub(crate) fn begin_transaction(
        &mut self,
        isolation: Option<Isolation>,
        is_read_only: bool,
    ) -> Result<Transaction> {
        let isolation = isolation.unwrap_or(Isolation::RepeatableRead);
        if isolation == Isolation::Serializable {
            return Err(Error::new(ErrorKind::Unsupported, "DynamoDB has no serializable transactions of queries"));
        }
        Ok(Transaction { isolation, is_read_only, has_failed: false, read: BTreeMap::new(), written: BTreeMap::new() })
    }

    /// Remembers what is stored of these.
    fn remember(
        &mut self,
        transaction: &mut Transaction,
        targets: &[Target],
        check: bool,
        to_write: bool,
    ) -> Result<()> {
        let unknown: Vec<Target> = {
            let mut seen = HashSet::new();
            let is_new = |target: &&Target| !transaction.read.contains_key(*target) && seen.insert((*target).clone());
            targets.iter().filter(is_new).cloned().collect()
        };
        let mut states = self.states(&unknown, to_write)?;
        for target in unknown {
            let state = states.remove(&target);
            transaction.read.insert(target, (state, false));
        }
        for target in targets {
            if let Some((_, checked)) = transaction.read.get_mut(target) {
                *checked |= check;
            }
        }
        transaction.bounded()
    }

    pub(crate) fn get_in_transaction(
        &mut self,
        transaction: &mut Transaction,
        collection: &str,
        ids: &[String],
        for_update: bool,
    ) -> Result<Vec<Option<Entity>>> {
        transaction.usable()?;
        let position = self.position(collection)?;
        let possible = ids.iter().filter(|id| entity::check_id(id).is_ok());
        let targets: Vec<Target> = possible.map(|id| (position, id.clone())).collect();
        let check = for_update || transaction.isolation >= Isolation::RepeatableRead;
        let remembered = self.remember(transaction, &targets, check, false);
        transaction.noticing(remembered)?;
        let definition = &self.tables[position].collection;
        ids.iter()
            .map(|id| {
                let target = (position, id.clone());
                let members = match transaction.written.get(&target) {
                    Some(written) => written.as_ref(),
                    None => transaction.read.get(&target).and_then(|(state, _)| Some(&state.as_ref()?.members)),
                };
                members.map(|members| encode(definition, id, members)).transpose()
            })
            .collect()
    }

    pub(crate) fn find_in_transaction(
        &mut self,
        transaction: &mut Transaction,
        collection: &str,
        query: &Query,
    ) -> Result<Page> {
        transaction.usable()?;
        let position = self.position(collection)?;
        let found = self.find_beside_own(transaction, position, query);
        transaction.noticing(found)
    }

    /// What is stored of what was not written here, then what was.
    fn find_beside_own(&mut self, transaction: &mut Transaction, position: usize, query: &Query) -> Result<Page> {
        let own: HashSet<String> =
            transaction.written.keys().filter(|(table, _)| *table == position).map(|(_, id)| id.clone()).collect();
        if let Some((&OWN, after)) = query.cursor.as_deref().and_then(<[u8]>::split_first) {
            let after = std::str::from_utf8(after).map_err(|_| foreign_cursor())?;
            return self.own_page(transaction, position, query, after);
        }
        let reading = Reading { consistent: true, without: &own };
        let found = self.find_in(position, query, &reading)?;
        let mut page = found.page;
        for (entity, item) in page.entities.iter().zip(found.items) {
            let target = (position, entity.id.clone());
            let state = State::new(&self.tables[position], item)?;
            if let Some((known, _)) = transaction.read.get(&target) {
                if known.as_ref().is_none_or(|known| known.members != state.members) {
                    return Err(lost_race(&format!(
                        "{} {}",
                        self.tables[position].collection.name,
                        quoted(&entity.id)
                    )));
                }
            } else if transaction.isolation >= Isolation::RepeatableRead {
                transaction.read.insert(target, (Some(state), true));
            }
        }
        transaction.bounded()?;
        if !own.is_empty() {
            // Sorting is for whoever has all of them.
            page.sorted &= query.order_by.is_empty();
            if page.next.is_none() {
                page.next = Some(vec![OWN]);
            }
        }
        Ok(page)
    }

    fn own_page(&self, transaction: &Transaction, position: usize, query: &Query, after: &str) -> Result<Page> {
        let definition = &self.tables[position].collection;
        let mut page = Page {
            entities: Vec::new(),
            next: None,
            unapplied: Vec::new(),
            sorted: query.order_by.is_empty(),
            index_used: query.index.clone(),
            notes: Vec::new(),
            cost: None,
        };
        let mut bytes = 0;
        for ((_, id), members) in transaction.written.range((position, after.to_owned())..) {
            let Some(members) = members.as_ref().filter(|_| id.as_str() > after) else { continue };
            if query.filter.as_ref().is_some_and(|filter| !filter.matches(members)) {
                continue;
            }
            let entity = encode(definition, id, members)?;
            let is_full = page.entities.len() >= query.limit.max(1) as usize || bytes >= query.max_bytes as usize;
            if let Some(last) = page.entities.last().filter(|_| is_full) {
                page.next = Some([&[OWN], Entity::clone(last).id.as_bytes()].concat());
                break;
            }
            bytes += entity.body.len();
            page.entities.push(entity);
        }
        Ok(page)
    }

    pub(crate) fn apply_in_transaction(
        &mut self,
        transaction: &mut Transaction,
        writes: &[Write],
        now: &str,
    ) -> Result<Vec<Outcome>> {
        transaction.usable()?;
        if transaction.is_read_only {
            return Err(Error::invalid("the transaction is read-only"));
        }
        let applied = self.decide_all(transaction, writes, now);
        transaction.noticing(applied)
    }

    fn decide_all(&mut self, transaction: &mut Transaction, writes: &[Write], now: &str) -> Result<Vec<Outcome>> {
        entity::check_distinct(writes)?;
        let mut targets = Vec::with_capacity(writes.len());
        for (i, write) in writes.iter().enumerate() {
            targets.push(self.target(write).map_err(|error| error.at_write(i))?);
        }
        let (known, new) = (transaction.written.len(), targets.len());
        if known + new > ACTIONS_MAX && new > ACTIONS_MAX {
            return Err(too_many(known + new));
        }
        self.remember(transaction, &targets, false, true)?;
        let mut outcomes = Vec::with_capacity(writes.len());
        for (i, (write, target)) in writes.iter().zip(targets).enumerate() {
            let table = &self.tables[target.0];
            let stored = transaction.read.get(&target).and_then(|(state, _)| state.as_ref());
            let members = match transaction.written.get(&target) {
                Some(written) => written.as_ref(),
                None => stored.map(|state| &state.members),
            };
            let (after, outcome) = decide(table, write, members, now).map_err(|error| error.at_write(i))?;
            // What cannot be sent is better known now.
            action(table, &target.1, stored, after.as_ref()).map_err(|error| error.at_write(i))?;
            transaction.written.insert(target, after);
            outcomes.push(outcome);
        }
        transaction.bounded()?;
        Ok(outcomes)
    }

    pub(crate) fn commit_transaction(&mut self, transaction: Transaction) -> Result<()> {
        transaction.usable()?;
        transaction.bounded()?;
        let (mut actions, mut names) = (Vec::new(), Vec::new());
        for (target, (state, check)) in &transaction.read {
            let table = &self.tables[target.0];
            let action = match transaction.written.get(target) {
                Some(after) => action(table, &target.1, state.as_ref(), after.as_ref())?,
                None if *check => ItemAction::Check {
                    collection: table.collection.name.clone(),
                    key: table.key(&target.1),
                    condition: unchanged(table, state.as_ref()),
                },
                None => continue,
            };
            actions.push(action);
            names.push(format!("{} {}", table.collection.name, quoted(&target.1)));
        }
        if actions.is_empty() {
            return Ok(());
        }
        let answers = self.dynamodb.transact(actions, &token()).map_err(|error| self.missing(error))?;
        match answers.iter().position(|written| matches!(written, Written::Refused(_))) {
            Some(position) => Err(lost_race(&names[position])),
            None => Ok(()),
        }
    }
}

fn encode(definition: &larder_model::Collection, id: &str, members: &Map<String, Value>) -> Result<Entity> {
    let version = entity::version_of(definition, members);
    Ok(Entity { id: id.to_owned(), version, body: larder_model::json::to_vec(members) })
}

fn lost_race(name: &str) -> Error {
    let message = format!("{name}: somebody else wrote it since the transaction read it");
    Error { retry: Retry::Safe, ..Error::new(ErrorKind::VersionConflict, message) }
}
