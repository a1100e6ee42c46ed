//! Changes: each is looked up, stamped and sent with the condition that nothing changed between. Whoever lost that race is
//! answered by what is stored now, or tried again where the expectation still holds.

use std::collections::{HashMap, HashSet};

use larder_guest::{Attribute, Dynamodb, Expression, Item, ItemAction, Written};
use larder_model::{
    Collection, Entity, Error, ErrorKind, Existing, Expectation, Loaded, Outcome, Result, Retry, Write, entity, json,
    json::{Members, quoted},
};
use serde_json::{Map, Value};

use crate::{
    item::{self, EXACT},
    size,
    store::DynamodbStore,
    table::Table,
};

/// The largest body.
pub(crate) const ENTITY_BYTES_MAX: usize = 16 << 20;

/// The most actions of a transaction of the service's.
pub(crate) const ACTIONS_MAX: usize = 100;

/// Bytes of all items of such a transaction.
const TRANSACTION_BYTES_MAX: usize = 4 << 20;

/// Bytes of bodies that are kept as they were parsed, between the check of all writes of a call and the first of them that is
/// sent. Further ones are parsed again: parsed they take several times their bytes.
const PARSED_BYTES_MAX: usize = 4 << 20;

/// How often a write is tried again that met others. Each time at least one of those got through.
const ATTEMPTS_MAX: usize = 16;

/// After a load that met stored entities, or a service that throttles: how many loads look first, before another one takes
/// it that what comes is new. Where it is not, its transactions were for nothing.
const LOOKS: u32 = 16;

/// An entity of a load, and where it stands among those of the call.
struct Incoming<'a> {
    i: u32,
    id: &'a str,
    members: Members<'a>,
}

/// What is stored under an id.
pub(crate) struct Stored {
    /// The stamps, and maybe others.
    pub(crate) members: Map<String, Value>,
    pub(crate) mark: Mark,
}

/// By what a stored item is known again: the attributes that every write changes, or that tell it from one that was made
/// anew under the same id.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mark(Vec<(String, Option<Attribute>)>);

impl Stored {
    pub(crate) fn of(table: &Table, item: &Item) -> Result<Stored> {
        Ok(Stored { members: item::decode_stamps(table, item)?, mark: Mark::of(&table.collection, item) })
    }
}

impl Mark {
    pub(crate) fn of(collection: &Collection, item: &Item) -> Mark {
        let attribute = |name: &str| item.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
        let stamps = &collection.stamps;
        let names = std::iter::once(&stamps.version).chain(&stamps.created);
        let mut marks: Vec<_> =
            names.filter(|name| item::is_attribute(name)).map(|name| (name.clone(), attribute(name))).collect();
        // A version that an attribute cannot hold may be in here, and change in here alone.
        if let Some(exact) = attribute(EXACT) {
            marks.push((EXACT.to_owned(), Some(exact)));
        }
        Mark(marks)
    }
}

/// The condition that an item still is as it was when it was read, or still is not there.
pub(crate) fn unchanged(table: &Table, mark: Option<&Mark>) -> Expression {
    let mut expression = Expression::default();
    let mut terms = Vec::new();
    let marks = mark.map_or(&[][..], |mark| &mark.0);
    // An attribute that has a value is one of an item that is there.
    if marks.iter().all(|(_, value)| value.is_none()) {
        expression.names.push(("#key".to_owned(), table.collection.key.clone()));
        terms.push(if mark.is_some() { "attribute_exists(#key)" } else { "attribute_not_exists(#key)" }.to_owned());
    }
    for (i, (name, value)) in marks.iter().enumerate() {
        expression.names.push((format!("#m{i}"), name.clone()));
        match value {
            Some(value) => {
                terms.push(format!("#m{i} = :m{i}"));
                expression.values.push((format!(":m{i}"), value.clone()));
            }
            None => terms.push(format!("attribute_not_exists(#m{i})")),
        }
    }
    expression.text = terms.join(" AND ");
    expression
}

/// What a write makes of what is stored, where it may: the entity, none for a removal.
pub(crate) fn stage(
    table: &Table,
    write: &Write,
    stored: Option<&Map<String, Value>>,
    now: &str,
) -> Result<(Outcome, Option<Map<String, Value>>)> {
    let body = check(table, write)?;
    stage_checked(table, write, body, stored, now)
}

/// The same where it was checked before: `body` is what that gave.
fn stage_checked(
    table: &Table,
    write: &Write,
    body: Option<Map<String, Value>>,
    stored: Option<&Map<String, Value>>,
    now: &str,
) -> Result<(Outcome, Option<Map<String, Value>>)> {
    let collection = &table.collection;
    let version = stored.map(|stored| entity::version_of(collection, stored));
    let existed = stored.is_some();
    let (name, id) = write.target();
    let expect = match write {
        Write::Put(put) => put.expect,
        Write::Remove(removal) => removal.expect,
    };
    entity::check_expectation(expect, version, name, id)?;
    Ok(match body {
        Some(body) => {
            let stamped = entity::stamp(collection, stored, body, now);
            (Outcome { version: entity::version_of(collection, &stamped), existed }, Some(stamped))
        }
        None => (Outcome { version: version.unwrap_or(0), existed }, None),
    })
}

/// What can be said of a write before anything is looked up. Gives the entity, none for a removal.
fn check(table: &Table, write: &Write) -> Result<Option<Map<String, Value>>> {
    let (_, id) = write.target();
    match write {
        Write::Put(put) => {
            check_body(table, id, &put.body)?;
            entity::check(&table.collection, Some(id), &put.body).map(Some)
        }
        Write::Remove(_) => entity::check_id(id).map(|()| None),
    }
}

/// Writes of one call with their bodies, each of which is parsed before anything is looked up and used once after it.
struct Checked<'a> {
    writes: &'a [Write],
    bodies: Vec<Option<Map<String, Value>>>,
    bytes: usize,
}

impl<'a> Checked<'a> {
    fn new(writes: &'a [Write]) -> Checked<'a> {
        Checked { writes, bodies: writes.iter().map(|_| None).collect(), bytes: 0 }
    }

    fn check(&mut self, table: &Table, i: usize) -> Result<()> {
        let body = check(table, &self.writes[i])?;
        if let Write::Put(put) = &self.writes[i]
            && self.bytes + put.body.len() <= PARSED_BYTES_MAX
        {
            self.bytes += put.body.len();
            self.bodies[i] = body;
        }
        Ok(())
    }

    /// What the write makes of what is stored, see [`stage`].
    fn stage(
        &mut self,
        table: &Table,
        i: usize,
        stored: Option<&Map<String, Value>>,
        now: &str,
    ) -> Result<(Outcome, Option<Map<String, Value>>)> {
        match self.bodies[i].take() {
            Some(body) => stage_checked(table, &self.writes[i], Some(body), stored, now),
            None => stage(table, &self.writes[i], stored, now),
        }
    }
}

fn check_body(table: &Table, id: &str, body: &[u8]) -> Result<()> {
    match body.len() <= ENTITY_BYTES_MAX {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{} {}: {} bytes, but an entity has at most {ENTITY_BYTES_MAX}",
            table.collection.name,
            quoted(id),
            body.len()
        ))),
    }
}

/// What is sent for a change, and how many bytes of an item that is.
pub(crate) fn action(
    table: &Table,
    id: &str,
    before: Option<&Mark>,
    after: Option<&Map<String, Value>>,
) -> Result<(ItemAction, usize)> {
    let collection = table.collection.name.clone();
    let condition = unchanged(table, before);
    match (after, before) {
        (Some(members), _) => {
            let encoded = item::encode(table, members);
            size::check(table, id, &encoded)?;
            let bytes = encoded.bytes;
            Ok((ItemAction::Put { collection, item: encoded.item, condition: Some(condition) }, bytes))
        }
        (None, Some(_)) => Ok((ItemAction::Delete { collection, key: table.key(id), condition: Some(condition) }, 0)),
        (None, None) => Ok((ItemAction::Check { collection, key: table.key(id), condition }, 0)),
    }
}

/// Refuses what no transaction of the service's takes.
pub(crate) fn check_transaction(actions: usize, bytes: usize) -> Result<()> {
    if actions > ACTIONS_MAX {
        return Err(Error::new(
            ErrorKind::LimitExceeded,
            format!(
                "{actions} entities are written or were read, and DynamoDB takes at most {ACTIONS_MAX} in one \
                 transaction: use several, or `read-committed`, which leaves out what was only read"
            ),
        ));
    }
    if bytes > TRANSACTION_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("{bytes} bytes are written, and DynamoDB takes at most {TRANSACTION_BYTES_MAX} in one transaction"),
        ));
    }
    Ok(())
}

/// The error about an entity that others changed meanwhile.
pub(crate) fn conflict(collection: &str, id: &str) -> Error {
    let message = format!("{collection} {}: was changed by somebody else meanwhile", quoted(id));
    Error { retry: Retry::Safe, ..Error::new(ErrorKind::VersionConflict, message) }
}

/// The writes by collection; where that is one, each by itself.
fn parts(writes: &[Write], round: Vec<usize>) -> Vec<Vec<usize>> {
    let collection = |i: usize| writes[i].target().0;
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for &i in &round {
        match parts.iter_mut().find(|part| collection(part[0]) == collection(i)) {
            Some(part) => part.push(i),
            None => parts.push(vec![i]),
        }
    }
    if parts.len() == 1 { round.into_iter().map(|i| vec![i]).collect() } else { parts }
}

/// A token for a transaction, as good as any other random one: what the standard library seeds its maps with.
pub(crate) fn token() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

impl<D: Dynamodb> DynamodbStore<D> {
    /// Writes. See `wit/repository.wit`.
    pub(crate) fn apply(&mut self, writes: Vec<Write>, atomic: bool, now: &str) -> Result<Vec<Result<Outcome>>> {
        match atomic {
            true => self.apply_atomically(&writes, now),
            false => self.apply_each(&writes, now),
        }
    }

    fn apply_atomically(&mut self, writes: &[Write], now: &str) -> Result<Vec<Result<Outcome>>> {
        entity::check_distinct(writes)?;
        check_transaction(writes.len(), 0)?;
        let mut checked = Checked::new(writes);
        for (i, write) in writes.iter().enumerate() {
            self.table(write.target().0)
                .and_then(|table| checked.check(table, i))
                .map_err(|error| error.at_write(i))?;
        }
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        let all: Vec<usize> = (0..writes.len()).collect();
        for _ in 0..ATTEMPTS_MAX {
            let stored = self.stored(writes, &all)?;
            let (mut outcomes, mut actions) = (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
            let mut bytes = 0;
            for (i, (write, stored)) in writes.iter().zip(&stored).enumerate() {
                let (collection, id) = write.target();
                let table = self.table(collection)?;
                let stored = stored.as_ref();
                let staged = checked.stage(table, i, stored.map(|stored| &stored.members), now);
                let staged = staged.and_then(|(outcome, after)| {
                    let (action, bytes) = action(table, id, stored.map(|stored| &stored.mark), after.as_ref())?;
                    Ok((outcome, action, bytes))
                });
                let (outcome, action, item_bytes) = staged.map_err(|error| error.at_write(i))?;
                outcomes.push(Ok(outcome));
                actions.push(action);
                bytes += item_bytes;
            }
            check_transaction(actions.len(), bytes)?;
            match self.dynamodb.transact(actions, &token()) {
                Ok(written) if written.iter().all(|written| *written == Written::Done) => return Ok(outcomes),
                // What is stored now answers, or is written over.
                Ok(_) => {}
                // A conflict too: the capability has met it time and again, with pauses in between.
                Err(error) => return Err(self.explain(writes[0].target().0, error)),
            }
        }
        let (collection, id) = writes[0].target();
        Err(conflict(collection, id))
    }

    fn apply_each(&mut self, writes: &[Write], now: &str) -> Result<Vec<Result<Outcome>>> {
        let mut results: Vec<Option<Result<Outcome>>> = writes.iter().map(|_| None).collect();
        let mut waiting: Vec<usize> = Vec::with_capacity(writes.len());
        let mut checked = Checked::new(writes);
        for (i, write) in writes.iter().enumerate() {
            match self.table(write.target().0).and_then(|table| checked.check(table, i)) {
                Ok(()) => waiting.push(i),
                Err(error) => results[i] = Some(Err(error)),
            }
        }
        // The writes of one entity follow each other; all others go side by side.
        while !waiting.is_empty() {
            let (round, later) = match waiting.len() {
                1 => (waiting, Vec::new()),
                _ => {
                    let mut targets = HashSet::new();
                    waiting.into_iter().partition(|&i| targets.insert(writes[i].target()))
                }
            };
            self.apply_round(&mut checked, round, now, &mut results)?;
            waiting = later;
        }
        let unanswered = || Err(Error::new(ErrorKind::Internal, "a write was not answered"));
        Ok(results.into_iter().map(|result| result.unwrap_or_else(unanswered)).collect())
    }

    /// Writes of which no two are of one entity.
    fn apply_round(
        &mut self,
        checked: &mut Checked,
        mut round: Vec<usize>,
        now: &str,
        results: &mut [Option<Result<Outcome>>],
    ) -> Result<()> {
        let writes = checked.writes;
        // What has been answered stays answered, whatever comes.
        let fails = |results: &mut [Option<Result<Outcome>>], round: &[usize], error: &Error| {
            for &i in round {
                results[i] = Some(Err(Error { write_index: None, ..error.clone() }));
            }
        };
        for _ in 0..ATTEMPTS_MAX {
            let stored = match self.stored(writes, &round) {
                Ok(stored) => stored,
                Err(_) if round.len() > 1 => {
                    // A table may be missing, or an item be damaged: the others are written all the same.
                    for part in parts(writes, round) {
                        self.apply_round(checked, part, now, results)?;
                    }
                    return Ok(());
                }
                Err(error) => {
                    fails(results, &round, &error);
                    return Ok(());
                }
            };
            let (mut sent, mut actions) = (Vec::new(), Vec::new());
            for (&i, stored) in round.iter().zip(&stored) {
                let (collection, id) = writes[i].target();
                let table = self.table(collection)?;
                let (members, mark) = (stored.as_ref().map(|it| &it.members), stored.as_ref().map(|it| &it.mark));
                let staged = checked.stage(table, i, members, now).and_then(|(outcome, after)| {
                    // Where there is nothing and nothing is wanted, there is nothing to do.
                    let is_done = after.is_none() && mark.is_none();
                    let action = (!is_done).then(|| action(table, id, mark, after.as_ref())).transpose()?;
                    Ok((outcome, action))
                });
                match staged {
                    Ok((outcome, Some((action, _)))) => {
                        sent.push((i, outcome));
                        actions.push(action);
                    }
                    Ok((outcome, None)) => results[i] = Some(Ok(outcome)),
                    Err(error) => results[i] = Some(Err(error)),
                }
            }
            if sent.is_empty() {
                return Ok(());
            }
            let answers = match self.dynamodb.write_items(actions) {
                Ok(answers) => answers,
                Err(error) => {
                    let error = self.explain(writes[sent[0].0].target().0, error);
                    let sent: Vec<usize> = sent.iter().map(|(i, _)| *i).collect();
                    fails(results, &sent, &error);
                    return Ok(());
                }
            };
            let mut again = Vec::new();
            for ((i, outcome), answer) in sent.into_iter().zip(answers) {
                match answer {
                    Ok(Written::Done) => results[i] = Some(Ok(outcome)),
                    // What it holds now is read with the next attempt: an answer may be without it.
                    Ok(Written::Refused(_)) => again.push(i),
                    Err(error) => results[i] = Some(Err(self.explain(writes[i].target().0, error))),
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            round = again;
        }
        for i in round {
            let (collection, id) = writes[i].target();
            results[i] = Some(Err(conflict(collection, id)));
        }
        Ok(())
    }

    /// What is stored under the ids of these writes. A table that is not there is made, unless it was seen before.
    fn stored(&self, writes: &[Write], wanted: &[usize]) -> Result<Vec<Option<Stored>>> {
        let mut found: Vec<Option<Stored>> = wanted.iter().map(|_| None).collect();
        let mut by_collection: Vec<(&str, Vec<usize>)> = Vec::new();
        for (position, &i) in wanted.iter().enumerate() {
            let collection = writes[i].target().0;
            match by_collection.iter_mut().find(|(name, _)| *name == collection) {
                Some((_, positions)) => positions.push(position),
                None => by_collection.push((collection, vec![position])),
            }
        }
        for (collection, positions) in by_collection {
            let ids: Vec<&str> = positions.iter().map(|&position| writes[wanted[position]].target().1).collect();
            let items = self.items_to_change(collection, &ids)?;
            let table = self.table(collection)?;
            for (&position, item) in positions.iter().zip(items) {
                found[position] = item.map(|item| Stored::of(table, &item)).transpose().map_err(|error| {
                    // Of an atomic call, the write that it is of.
                    error.at_write(wanted[position])
                })?;
            }
        }
        Ok(found)
    }

    /// The items of these ids, read before they are changed.
    pub(crate) fn items_to_change(&self, collection: &str, ids: &[&str]) -> Result<Vec<Option<Item>>> {
        let table = self.table(collection)?;
        let keys = || ids.iter().map(|id| table.key(id)).collect();
        match self.dynamodb.get_items(collection, keys(), true) {
            Err(error) if error.kind == ErrorKind::NotFound && !self.has_seen(collection) => {
                self.dynamodb.prepare_table(&table.spec(), false, false)?;
                self.note_seen(collection);
                Ok(ids.iter().map(|_| None).collect())
            }
            result => self.reading(collection, result),
        }
    }

    /// Bulk write. See `wit/repository.wit`.
    ///
    /// What is stored is looked up first, and written in batches, which take no condition. With `load_in_transactions` what is
    /// new is put in transactions, which do; what is not, or is in one transaction with what is not, goes the first way.
    pub(crate) fn load(&mut self, collection: &str, entities: Vec<Entity>, existing: Existing) -> Result<Loaded> {
        let table = self.table(collection)?;
        let mut loaded = Loaded::default();
        let mut parsed = Vec::with_capacity(entities.len());
        for (i, entity) in (0..).zip(&entities) {
            let members = check_body(table, &entity.id, &entity.body)
                .and_then(|()| entity::members(&table.collection, Some(&entity.id), &entity.body));
            match members {
                Ok(members) => parsed.push(Incoming { i, id: &entity.id, members }),
                Err(error) => loaded.refused.push((i, error)),
            }
        }
        let mut seen = HashSet::with_capacity(parsed.len());
        let all_differ = parsed.iter().all(|incoming| seen.insert(incoming.id));
        let mut looks_left = self.looks_left.saturating_sub(1);
        if self.config.load_in_transactions && self.looks_left == 0 && all_differ {
            let count = parsed.len();
            let (left, was_cancelled) = self.put_new(table, parsed)?;
            parsed = left;
            loaded.written += (count - parsed.len()) as u64;
            if was_cancelled {
                looks_left = LOOKS;
            }
        }
        if !parsed.is_empty() {
            let has_put = loaded.written > 0;
            let found = self.load_by_look(table, parsed, all_differ, existing, &mut loaded).map_err(|error| {
                match error.retry {
                    // The others are stored.
                    Retry::Safe if has_put => Error { retry: Retry::UnknownOutcome, ..error },
                    _ => error,
                }
            })?;
            if found {
                looks_left = LOOKS;
            }
        }
        loaded.refused.sort_by_key(|(i, _)| *i);
        self.looks_left = looks_left;
        Ok(loaded)
    }

    /// Puts what nothing is stored under, and gives what is left, and whether some of that was sent.
    fn put_new<'a>(&self, table: &Table, incoming: Vec<Incoming<'a>>) -> Result<(Vec<Incoming<'a>>, bool)> {
        let collection = &table.collection.name;
        let mut left = Vec::new();
        let (mut tried, mut items) = (Vec::with_capacity(incoming.len()), Vec::with_capacity(incoming.len()));
        for one in incoming {
            let encoded = item::encode(table, &one.members);
            match size::check(table, one.id, &encoded) {
                Ok(()) => {
                    items.push(encoded.item);
                    tried.push(one);
                }
                Err(_) => left.push(one),
            }
        }
        if items.is_empty() {
            return Ok((left, false));
        }
        let put = match self.dynamodb.put_new(collection, &table.collection.key, items) {
            // Whoever looks makes the table.
            Err(error) if error.kind == ErrorKind::NotFound && !self.has_seen(collection) => {
                left.extend(tried);
                return Ok((left, false));
            }
            put => self.reading(collection, put)?,
        };
        let was_cancelled = put.contains(&false);
        left.extend(tried.into_iter().zip(put).filter(|(_, is_put)| !is_put).map(|(one, _)| one));
        Ok((left, was_cancelled))
    }

    /// Writes what is to be written beside what is stored, and says whether anything is.
    fn load_by_look(
        &self,
        table: &Table,
        incoming: Vec<Incoming>,
        all_differ: bool,
        existing: Existing,
        loaded: &mut Loaded,
    ) -> Result<bool> {
        let collection = &table.collection.name;
        let mut seen = HashSet::with_capacity(incoming.len());
        let ids: Vec<&str> = incoming.iter().map(|one| one.id).filter(|id| seen.insert(*id)).collect();
        let items = self.items_to_change(collection, &ids)?;
        // What is there cannot be read: other content.
        let mut current: HashMap<&str, Result<Map<String, Value>>> = HashMap::new();
        for (id, item) in ids.iter().zip(items) {
            if let Some(item) = item {
                current.insert(id, item::decode(table, &item));
            }
        }
        let found = !current.is_empty();
        // Of an entity that comes twice, the last one that is to be stored is sent.
        let mut order: HashMap<&str, usize> = HashMap::new();
        let mut puts: Vec<Item> = Vec::new();
        for Incoming { i, id, members } in incoming {
            let encoded = item::encode(table, &members);
            if let Err(error) = size::check(table, id, &encoded) {
                loaded.refused.push((i, error));
                continue;
            }
            match (current.get(id), existing) {
                (Some(Ok(stored)), _) if json::equal_objects(&members, stored) => {
                    loaded.unchanged += 1;
                    continue;
                }
                (Some(_), Existing::Skip) => {
                    loaded.skipped += 1;
                    continue;
                }
                (Some(stored), Existing::Fail) => {
                    let version = stored.as_ref().map_or(0, |stored| entity::version_of(&table.collection, stored));
                    let refused = entity::check_expectation(Expectation::Absent, Some(version), collection, id);
                    if let Err(error) = refused {
                        loaded.refused.push((i, error));
                    }
                    continue;
                }
                (Some(_), Existing::Overwrite) | (None, _) => {}
            }
            loaded.written += 1;
            if all_differ {
                puts.push(encoded.item);
                continue;
            }
            current.insert(id, Ok(members.into_map()));
            match order.get(id) {
                Some(&position) => puts[position] = encoded.item,
                None => {
                    order.insert(id, puts.len());
                    puts.push(encoded.item);
                }
            }
        }
        if !puts.is_empty() {
            self.reading(collection, self.dynamodb.put_batch(collection, puts))?;
        }
        Ok(found)
    }
}
