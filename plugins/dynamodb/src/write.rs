//! Writes: what is stored is read, checked and stamped, and written on the condition that it is still so.
//!
//! Nothing is locked. Where somebody else was faster the condition does not hold, and the write is thought over once more
//! with what is stored now: then it goes through, or its expectation says why not.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use larder_guest::{Dynamodb, Expression, Item, ItemAction, Written};
use larder_model::{
    Entity, Error, ErrorKind, Existing, Loaded, Outcome, Result, Retry, Write, entity, json, json::quoted,
};
use serde_json::{Map, Value};

use crate::{item, size, store::DynamodbStore, table::Table};

/// The most actions of one transaction of the service's.
pub(crate) const ACTIONS_MAX: usize = 100;

/// The largest body. What counts is the size of the item that it becomes.
pub(crate) const ENTITY_BYTES_MAX: usize = 16 << 20;

/// How often a write is thought over that others outrun. Each time at least one of those got through.
const ATTEMPTS_MAX: usize = 16;

/// The position of a table, and an id in it.
pub(crate) type Target = (usize, String);

/// A stored entity.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// As the service gave it, for conditions.
    item: Item,
    pub(crate) members: Map<String, Value>,
}

impl State {
    pub(crate) fn new(table: &Table, item: Item) -> Result<State> {
        Ok(State { members: item::decode(table, &item)?, item })
    }
}

/// That nothing has changed: the version is still this, and the time of creation, so that it is not another entity of the
/// same name. None stands for nothing.
pub(crate) fn unchanged(table: &Table, stored: Option<&State>) -> Expression {
    let mut condition = Expression::default();
    let Some(stored) = stored else {
        condition.text = "attribute_not_exists(#key)".to_owned();
        condition.names.push(("#key".to_owned(), table.collection.key.clone()));
        return condition;
    };
    condition.text = "attribute_exists(#key)".to_owned();
    condition.names.push(("#key".to_owned(), table.collection.key.clone()));
    let stamps = &table.collection.stamps;
    for (word, name) in [("version", Some(&stamps.version)), ("created", stamps.created.as_ref())] {
        // What cannot be an attribute cannot be compared.
        let Some(name) = name.filter(|name| item::is_attribute(name)) else { continue };
        condition.names.push((format!("#{word}"), name.clone()));
        match stored.item.iter().find(|(found, _)| found == name) {
            Some((_, attribute)) => {
                condition.text.push_str(&format!(" AND #{word} = :{word}"));
                condition.values.push((format!(":{word}"), attribute.clone()));
            }
            None => condition.text.push_str(&format!(" AND attribute_not_exists(#{word})")),
        }
    }
    condition
}

/// What a write comes to where `stored` is stored: the members that there are afterwards, if any.
pub(crate) fn decide(
    table: &Table,
    write: &Write,
    stored: Option<&Map<String, Value>>,
    now: &str,
) -> Result<(Option<Map<String, Value>>, Outcome)> {
    let collection = &table.collection;
    let (_, id) = write.target();
    let version = stored.map(|stored| entity::version_of(collection, stored));
    match write {
        Write::Put(put) => {
            if put.body.len() > ENTITY_BYTES_MAX {
                let bytes = put.body.len();
                return Err(Error::invalid(format!(
                    "{} {}: {bytes} bytes, but a body has at most {ENTITY_BYTES_MAX}",
                    collection.name,
                    quoted(id)
                )));
            }
            let body = entity::check(collection, Some(id), &put.body)?;
            entity::check_expectation(put.expect, version, &collection.name, id)?;
            let stamped = entity::stamp(collection, stored, body, now);
            let outcome = Outcome { version: entity::version_of(collection, &stamped), existed: stored.is_some() };
            Ok((Some(stamped), outcome))
        }
        Write::Remove(removal) => {
            entity::check_expectation(removal.expect, version, &collection.name, id)?;
            Ok((None, Outcome { version: version.unwrap_or(0), existed: version.is_some() }))
        }
    }
}

/// What is sent for an entity that is to be `after`, where `stored` is stored.
pub(crate) fn action(
    table: &Table,
    id: &str,
    stored: Option<&State>,
    after: Option<&Map<String, Value>>,
) -> Result<ItemAction> {
    let (collection, condition) = (table.collection.name.clone(), unchanged(table, stored));
    Ok(match after {
        Some(members) => {
            let encoded = item::encode(table, members);
            size::check(table, id, &encoded)?;
            ItemAction::Put { collection, item: encoded.item, condition: Some(condition) }
        }
        None if stored.is_some() => ItemAction::Delete { collection, key: table.key(id), condition: Some(condition) },
        None => ItemAction::Check { collection, key: table.key(id), condition },
    })
}

/// A word that no other transaction has.
pub(crate) fn token() -> String {
    // The keys of a `RandomState` are random.
    let word = || RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", word(), word())
}

pub(crate) fn too_many(actions: usize) -> Error {
    Error::new(
        ErrorKind::LimitExceeded,
        format!(
            "{actions} entities in one transaction, and DynamoDB takes at most {ACTIONS_MAX}, those that were read included"
        ),
    )
}

fn outrun(table: &Table, id: &str) -> Error {
    let message = format!("{} {}: others wrote it {ATTEMPTS_MAX} times meanwhile", table.collection.name, quoted(id));
    Error { retry: Retry::Safe, ..Error::new(ErrorKind::VersionConflict, message) }
}

impl<D: Dynamodb> DynamodbStore<D> {
    /// What is stored of these, without delay. A table that never was there is made where something is to be written.
    pub(crate) fn states(&mut self, targets: &[Target], to_write: bool) -> Result<HashMap<Target, State>> {
        let mut states = HashMap::with_capacity(targets.len());
        for position in 0..self.tables.len() {
            let ids: Vec<&str> =
                targets.iter().filter(|(table, _)| *table == position).map(|(_, id)| id.as_str()).collect();
            if ids.is_empty() {
                continue;
            }
            for (id, item) in ids.iter().zip(self.items(position, &ids, true, to_write)?) {
                if let Some(item) = item {
                    states.insert((position, (*id).to_owned()), State::new(&self.tables[position], item)?);
                }
            }
        }
        Ok(states)
    }

    /// All or nothing.
    pub(crate) fn apply_atomic(&mut self, writes: &[Write], now: &str) -> Result<Vec<Result<Outcome>>> {
        entity::check_distinct(writes)?;
        let mut targets = Vec::with_capacity(writes.len());
        for (i, write) in writes.iter().enumerate() {
            targets.push(self.target(write).map_err(|error| error.at_write(i))?);
        }
        if writes.len() > ACTIONS_MAX {
            return Err(too_many(writes.len()));
        }
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        let mut refused = 0;
        for _ in 0..ATTEMPTS_MAX {
            let states = self.states(&targets, true)?;
            let (mut actions, mut outcomes) = (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
            for (i, (write, target)) in writes.iter().zip(&targets).enumerate() {
                let (table, state) = (&self.tables[target.0], states.get(target));
                let decided = decide(table, write, state.map(|state| &state.members), now);
                let (after, outcome) = decided.map_err(|error| error.at_write(i))?;
                let action = action(table, &target.1, state, after.as_ref()).map_err(|error| error.at_write(i))?;
                actions.push(action);
                outcomes.push(Ok(outcome));
            }
            let answers = self.dynamodb.transact(actions, &token()).map_err(|error| self.missing(error))?;
            match answers.iter().position(|written| matches!(written, Written::Refused(_))) {
                None => return Ok(outcomes),
                Some(position) => refused = position,
            }
        }
        let (position, id) = &targets[refused];
        Err(outrun(&self.tables[*position], id).at_write(refused))
    }

    /// Each by itself; those of one entity in their order.
    pub(crate) fn apply_each(&mut self, writes: &[Write], now: &str) -> Result<Vec<Result<Outcome>>> {
        let mut results: Vec<Option<Result<Outcome>>> = vec![None; writes.len()];
        let mut waiting: Vec<(usize, Target)> = Vec::with_capacity(writes.len());
        for (i, write) in writes.iter().enumerate() {
            match self.target(write) {
                Ok(target) => waiting.push((i, target)),
                Err(error) => results[i] = Some(Err(error)),
            }
        }
        let mut attempts = vec![0; writes.len()];
        while !waiting.is_empty() {
            // The first of each entity; the others have to wait for what it leaves.
            let mut seen = HashSet::with_capacity(waiting.len());
            let (round, later): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(_, target)| seen.insert(target.clone()));
            let targets: Vec<Target> = round.iter().map(|(_, target)| target.clone()).collect();
            let states = self.states(&targets, true)?;
            let (mut actions, mut sent, mut again) = (Vec::new(), Vec::new(), Vec::new());
            for (i, target) in round {
                let (table, state) = (&self.tables[target.0], states.get(&target));
                let decided = decide(table, &writes[i], state.map(|state| &state.members), now);
                let planned = decided.and_then(|(after, outcome)| {
                    let is_nothing = after.is_none() && state.is_none();
                    let action = action(table, &target.1, state, after.as_ref())?;
                    Ok(((!is_nothing).then_some(action), outcome))
                });
                match planned {
                    Ok((Some(action), outcome)) => {
                        actions.push(action);
                        sent.push((i, target, outcome));
                    }
                    Ok((None, outcome)) => results[i] = Some(Ok(outcome)),
                    Err(error) => results[i] = Some(Err(error)),
                }
            }
            let answers = if actions.is_empty() { Vec::new() } else { self.dynamodb.write_items(actions)? };
            for ((i, target, outcome), answer) in sent.into_iter().zip(answers) {
                match answer {
                    Ok(Written::Done) => results[i] = Some(Ok(outcome)),
                    Ok(Written::Refused(_)) => {
                        attempts[i] += 1;
                        match attempts[i] < ATTEMPTS_MAX {
                            true => again.push((i, target)),
                            false => results[i] = Some(Err(outrun(&self.tables[target.0], &target.1))),
                        }
                    }
                    Err(error) => results[i] = Some(Err(self.missing(error))),
                }
            }
            again.extend(later);
            again.sort_by_key(|(i, _)| *i);
            waiting = again;
        }
        Ok(results.into_iter().map(|result| result.expect("each write was answered")).collect())
    }

    /// Bulk write. What is stored already is looked at first, because the fastest way to write knows no conditions.
    pub(crate) fn load_all(&mut self, position: usize, entities: Vec<Entity>, existing: Existing) -> Result<Loaded> {
        let mut loaded = Loaded::default();
        let mut waiting: Vec<(u32, Entity)> = (0..).zip(entities).collect();
        while !waiting.is_empty() {
            let mut seen = HashSet::with_capacity(waiting.len());
            let (round, later): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(_, entity)| seen.insert(entity.id.clone()));
            self.load_distinct(position, round, existing, &mut loaded)?;
            waiting = later;
        }
        loaded.refused.sort_by_key(|(position, _)| *position);
        Ok(loaded)
    }

    fn load_distinct(
        &mut self,
        position: usize,
        entities: Vec<(u32, Entity)>,
        existing: Existing,
        loaded: &mut Loaded,
    ) -> Result<()> {
        let ids: Vec<&str> = entities.iter().map(|(_, entity)| entity.id.as_str()).collect();
        let stored = self.items(position, &ids, true, true)?;
        let table = &self.tables[position];
        let name = &table.collection.name;
        let (mut items, mut refused) = (Vec::with_capacity(entities.len()), Vec::new());
        for ((at, entity), stored) in entities.iter().zip(stored) {
            let parsed = entity::parse(&table.collection, Some(&entity.id), &entity.body).and_then(|members| {
                let encoded = item::encode(table, &members);
                size::check(table, &entity.id, &encoded)?;
                Ok((members, encoded.item))
            });
            let (members, item) = match parsed {
                Ok(parsed) => parsed,
                Err(error) => {
                    refused.push((*at, error));
                    continue;
                }
            };
            let Some(stored) = stored else {
                items.push(item);
                continue;
            };
            let is_equal = item::decode(table, &stored).is_ok_and(|stored| json::equal_objects(&stored, &members));
            match existing {
                _ if is_equal => loaded.unchanged += 1,
                Existing::Overwrite => items.push(item),
                Existing::Skip => loaded.skipped += 1,
                Existing::Fail => {
                    let message = format!("{name} {}: already exists with other content", quoted(&entity.id));
                    refused.push((*at, Error::new(ErrorKind::AlreadyExists, message)));
                }
            }
        }
        loaded.refused.extend(refused);
        let count = items.len() as u64;
        if count > 0 {
            let name = name.clone();
            self.dynamodb.put_batch(&name, items).map_err(|error| self.missing(error))?;
            loaded.written += count;
        }
        Ok(())
    }
}
