//! Changes inside one transaction: looked up, checked and stamped one by one, sent many rows at a time.
//!
//! What was looked up stays as it is until the end: a transaction of SQLite that writes has the database for itself, and
//! on PostgreSQL the rows are locked, in the order of their keys, so that two writers do not wait for each other in a
//! circle. What was not there cannot be locked, so it is inserted and never written over: if somebody else was faster,
//! that is a conflict, and all of it is done once more.
//!
//! A statement that breaks a constraint ends a transaction of PostgreSQL, unless it was an attempt, which costs two more
//! questions. So the first try does without; where a rule was broken, all is rolled back and done again *carefully*: with
//! attempts, and what a broken statement of many rows was about is found by sending its rows one by one. SQLite undoes
//! such a statement alone in any case, and is careful from the start, except in a bulk load.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use larder_guest::{Dialect, SqlValue};
use larder_model::json::{Members, Object};
use larder_model::{
    Entity, Error, ErrorKind, Existing, Expectation, Loaded, Outcome, Result, Retry, Write, entity, json, rules,
};
use serde_json::{Map, Value};

use crate::{
    copy,
    database::{Database, REPLY_BYTES_MAX, quote},
    row,
    schema::{EXACT, EXTRA, Table, insert_rows_max},
    store::ENTITY_BYTES_MAX,
};

/// Bytes of rows that are sent in one statement, so that a batch of the largest entities does not fill the memory.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Ids that are looked up with one statement, largest first: few numbers, so that few statements have to be prepared.
const LOOKUP_IDS: [usize; 10] = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];

/// Entities that are compared with what is stored, by one statement.
const COMPARED: usize = 32;

/// What keeps others from changing the rows that are read. A transaction of SQLite that writes needs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    None,
    /// Others may not change the rows; they may refer to them.
    Change,
    /// Nor may they refer to them, because they may go.
    Removal,
}

impl Lock {
    /// What a SELECT by keys ends with.
    fn text(self, table: &Table) -> String {
        match (table.dialect, self) {
            (Dialect::Sqlite, _) | (_, Lock::None) => String::new(),
            (Dialect::Postgres, Lock::Change) => format!(" ORDER BY {} FOR NO KEY UPDATE", table.key),
            (Dialect::Postgres, Lock::Removal) => format!(" ORDER BY {} FOR UPDATE", table.key),
        }
    }
}

/// The stored entities of these ids. One that is not stored is not there.
pub(crate) fn stored(
    table: &Table,
    database: &dyn Database,
    ids: &[&str],
    lock: Lock,
) -> Result<HashMap<String, Entity>> {
    let mut found = HashMap::with_capacity(ids.len());
    let mut rest = ids;
    let without_nul: Vec<&str>;
    // PostgreSQL takes no such text, and no row has it.
    if ids.iter().any(|id| id.contains('\0')) {
        without_nul = ids.iter().copied().filter(|id| !id.contains('\0')).collect();
        rest = &without_nul;
    }
    while !rest.is_empty() {
        let size = lookup_size(table, rest.len());
        let (chunk, after) = rest.split_at(size);
        let mut wanted = chunk.to_vec();
        loop {
            let rows = lookup(table, database, &table.select, &wanted, size, lock)?;
            for row in rows.cells.chunks(table.width()) {
                let entity = row::entity(table, row)?;
                found.insert(entity.id.clone(), entity);
            }
            if !rows.more {
                break;
            }
            // Each reply has at least one, so this ends.
            wanted.retain(|id| !found.contains_key(*id));
        }
        rest = after;
    }
    Ok(found)
}

fn lookup_size(table: &Table, ids: usize) -> usize {
    match table.dialect {
        Dialect::Sqlite => LOOKUP_IDS.into_iter().find(|&size| size <= ids).unwrap_or(1),
        Dialect::Postgres => ids.min(LOOKUP_IDS[0]),
    }
}

/// Rows of these ids, `size` of them at most.
fn lookup(
    table: &Table,
    database: &dyn Database,
    select: &str,
    ids: &[&str],
    size: usize,
    lock: Lock,
) -> Result<larder_guest::Rows> {
    let mut statement = table.statement(format!("SELECT {select} FROM {} WHERE {}", table.name, table.key));
    match table.dialect {
        // One parameter, so that it is one statement, which the server plans with the index of the key. A list of many
        // parameters it would rather compare with every row of a table that has not been analyzed yet.
        Dialect::Postgres if size > 1 => {
            let ids = serde_json::to_string(ids).expect("texts are JSON");
            statement
                .text(" = ANY (ARRAY(SELECT json_array_elements_text(")
                .param(SqlValue::Json(ids))
                .text("::json)))");
        }
        // Always `size` parameters: the last id stands again for those that are missing.
        Dialect::Sqlite | Dialect::Postgres => {
            let last = ids.last().copied().unwrap_or_default();
            statement.text(" IN ");
            statement.list((0..size).map(|i| SqlValue::Text(ids.get(i).copied().unwrap_or(last).to_owned())));
        }
    }
    statement.text(&lock.text(table));
    statement.run(database, REPLY_BYTES_MAX)
}

/// Those of the ids that are stored.
fn stored_ids(table: &Table, database: &dyn Database, ids: &[&str]) -> Result<HashSet<String>> {
    let mut found = HashSet::new();
    let mut rest = ids;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(lookup_size(table, rest.len()));
        // An id is at most 1,020 bytes, so no reply is cut.
        let rows = lookup(table, database, &table.key, chunk, chunk.len(), Lock::None)?;
        found.extend(rows.cells.into_iter().filter_map(|cell| match cell {
            SqlValue::Text(id) => Some(id),
            _ => None,
        }));
        rest = after;
    }
    Ok(found)
}

/// How rows are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Under keys that are not stored.
    Insert,
    /// The same, in the form in which the database takes most of them.
    Copy,
    /// In place of what is stored.
    Replace,
}

/// An entity in the form in which it is sent.
pub(crate) enum Row {
    Cells(Vec<SqlValue>),
    /// See [`copy`]. Where it stands among those that were made with it.
    Copied(Range<usize>),
}

impl Row {
    /// What is copied is appended to `copied`.
    fn new(table: &Table, way: Way, entity: Members<'_>, copied: &mut Vec<u8>) -> Row {
        let cells = row::cells(table, entity);
        if way != Way::Copy {
            return Row::Cells(cells.into_iter().map(SqlValue::from).collect());
        }
        let start = copied.len();
        copy::row(table.dialect, &cells, copied);
        Row::Copied(start..copied.len())
    }
}

/// Entities as rows, or why each is refused.
pub(crate) struct Rows {
    rows: Vec<Result<Row>>,
    /// All that are copied.
    copied: Vec<u8>,
}

/// How rows that are new are loaded. Carefully, those that break a rule are found one by one.
pub(crate) fn way_of_load(careful: bool) -> Way {
    if careful { Way::Insert } else { Way::Copy }
}

/// Rows that wait to be sent to one table.
struct Batch<'a> {
    table: &'a Table,
    way: Way,
    careful: bool,
    cells: Vec<SqlValue>,
    /// See [`copy`].
    copied: Vec<u8>,
    /// What the caller calls each row.
    labels: Vec<usize>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    fn new(table: &'a Table, way: Way, careful: bool) -> Self {
        Batch { table, way, careful, cells: Vec::new(), copied: Vec::new(), labels: Vec::new(), bytes: 0 }
    }

    fn push(&mut self, label: usize, entity: Map<String, Value>, bytes: usize) {
        if let Row::Cells(cells) = Row::new(self.table, self.way, entity.into(), &mut self.copied) {
            self.cells.extend(cells);
        }
        self.label(label, bytes);
    }

    /// `copied` is where a row that is copied stands.
    fn push_row(&mut self, label: usize, row: Row, copied: &[u8], bytes: usize) {
        match row {
            Row::Cells(cells) => self.cells.extend(cells),
            Row::Copied(range) => self.copied.extend_from_slice(&copied[range]),
        }
        self.label(label, bytes);
    }

    fn label(&mut self, label: usize, bytes: usize) {
        self.labels.push(label);
        self.bytes += bytes;
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES_MAX || self.way != Way::Copy && self.labels.len() >= insert_rows_max()
    }

    /// Sends all rows. Carefully, those that break a rule of the database are not stored, and are answered with it;
    /// any other error is of the whole. `again` gives a row's entity once more: a copy of each row, for the case that a
    /// statement fails, would cost more than all else here.
    fn send(
        &mut self,
        tables: &[Table],
        database: &dyn Database,
        again: &dyn Fn(usize) -> Result<Map<String, Value>>,
    ) -> Result<Vec<(usize, Error)>> {
        let mut refused = Vec::new();
        let labels = std::mem::take(&mut self.labels);
        let mut labels = labels.as_slice();
        let mut cells = std::mem::take(&mut self.cells);
        let copied = std::mem::take(&mut self.copied);
        self.bytes = 0;
        if self.way == Way::Copy {
            if !labels.is_empty() {
                let columns = self.table.columns.iter().map(|column| column.name.as_str());
                let columns: Vec<&str> = columns.chain([EXTRA, EXACT]).collect();
                database.copy_in(&self.table.collection.name, &columns, &copied)?;
            }
            return Ok(refused);
        }
        while !labels.is_empty() {
            let (rows, text) = self.table.insert(labels.len(), self.way == Way::Replace);
            let after = cells.split_off(rows * self.table.width());
            if !self.careful {
                database.query(text, cells, 0)?;
            } else {
                match database.attempt(text, cells, 0) {
                    Ok(_) => {}
                    Err(error) if breaks_a_rule(&error) => {
                        refused.extend(self.send_singly(tables, database, &labels[..rows], again)?);
                    }
                    Err(error) => return Err(error),
                }
            }
            cells = after;
            labels = &labels[rows..];
        }
        Ok(refused)
    }

    /// Again and again while some get through: a row may refer to a later one.
    fn send_singly(
        &self,
        tables: &[Table],
        database: &dyn Database,
        labels: &[usize],
        again: &dyn Fn(usize) -> Result<Map<String, Value>>,
    ) -> Result<Vec<(usize, Error)>> {
        let (_, text) = self.table.insert(1, self.way == Way::Replace);
        let text = match self.way {
            Way::Replace => text.to_owned(),
            // Tells whoever was faster from another rule that the row breaks.
            _ => format!("{text} ON CONFLICT ({}) DO NOTHING", self.table.key),
        };
        let mut waiting = Vec::with_capacity(labels.len());
        for &label in labels {
            let cells = row::cells(self.table, again(label)?.into());
            waiting.push((label, cells.into_iter().map(SqlValue::from).collect::<Vec<_>>()));
        }
        loop {
            let count = waiting.len();
            let mut refused = Vec::new();
            for (label, cells) in waiting {
                match database.attempt(&text, cells.clone(), 0) {
                    Ok(rows) if rows.affected == 0 => return Err(conflict(self.table, &cells).at_write(label)),
                    Ok(_) => {}
                    Err(error) if breaks_a_rule(&error) => refused.push((label, cells, error)),
                    Err(error) => return Err(error),
                }
            }
            if refused.len() == count || refused.is_empty() {
                let explained = refused.into_iter().map(|(label, cells, error)| {
                    explain(self.table, tables, database, &cells, error).map(|error| (label, error))
                });
                return explained.collect();
            }
            waiting = refused.into_iter().map(|(label, cells, _)| (label, cells)).collect();
        }
    }
}

/// The error about a row that was not there, and is.
fn conflict(table: &Table, row: &[SqlValue]) -> Error {
    let message = format!("{} `{}`: was written by somebody else meanwhile", table.collection.name, id_of(row));
    Error { retry: Retry::Safe, ..Error::new(ErrorKind::VersionConflict, message) }
}

/// Whether the same writes may succeed in another transaction.
pub(crate) fn is_conflict(error: &Error) -> bool {
    error.kind == ErrorKind::VersionConflict && error.retry == Retry::Safe
}

fn id_of(row: &[SqlValue]) -> &str {
    match &row[0] {
        SqlValue::Text(id) => id,
        _ => "",
    }
}

pub(crate) fn breaks_a_rule(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Rejected | ErrorKind::AlreadyExists)
}

/// The error of one row in words of the collection: the database does not say which reference points nowhere.
fn explain(table: &Table, tables: &[Table], database: &dyn Database, row: &[SqlValue], error: Error) -> Result<Error> {
    let id = id_of(row);
    let name = &table.collection.name;
    if error.kind == ErrorKind::Rejected {
        for (field, target) in &table.references {
            let (Some(position), Some(target)) = (table.position(field), find(tables, target)) else { continue };
            let SqlValue::Text(value) = &row[position] else { continue };
            if stored_ids(target, database, &[value])?.is_empty() {
                let message = format!(
                    "{name} `{id}`: `{field}` refers to {} `{value}`, which does not exist",
                    target.collection.name
                );
                return Ok(Error::new(ErrorKind::Rejected, message));
            }
        }
    }
    Ok(Error { message: format!("{name} `{id}`: {}", error.message), ..error })
}

/// Why an entity cannot be removed: who refers to it.
fn explain_removal(table: &Table, tables: &[Table], database: &dyn Database, id: &str, error: Error) -> Result<Error> {
    let name = &table.collection.name;
    if error.kind == ErrorKind::Rejected {
        for other in tables {
            for (field, _) in other.references.iter().filter(|(_, target)| target == name) {
                let mut statement = other.statement(format!("SELECT {} FROM {} WHERE ", other.key, other.name));
                statement.text(&quote(field)).text(" = ").param(SqlValue::Text(id.to_owned())).text(" LIMIT 1");
                let rows = database.attempt(&statement.text, statement.params, REPLY_BYTES_MAX);
                // A table that refers to this one need not exist yet.
                if let Some(SqlValue::Text(other_id)) = rows.ok().and_then(|rows| rows.cells.into_iter().next()) {
                    let other = &other.collection.name;
                    let message =
                        format!("{name} `{id}` cannot be removed: `{field}` of {other} `{other_id}` refers to it");
                    return Ok(Error::new(ErrorKind::Rejected, message));
                }
            }
        }
    }
    Ok(Error { message: format!("{name} `{id}`: {}", error.message), ..error })
}

/// The error about a collection that was not given to `open`.
pub(crate) fn unknown(collection: &str) -> Error {
    Error::invalid(format!("`{collection}` is no configured collection"))
}

fn find<'a>(tables: &'a [Table], collection: &str) -> Option<&'a Table> {
    tables.iter().find(|table| table.collection.name == collection)
}

fn check_size(table: &Table, id: &str, body: &[u8]) -> Result<()> {
    match body.len() <= ENTITY_BYTES_MAX {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{} `{id}`: {} bytes, but an entity has at most {ENTITY_BYTES_MAX}",
            table.collection.name,
            body.len()
        ))),
    }
}

fn check_rules(table: &Table, strict: bool, id: &str, entity: &impl Object) -> Result<()> {
    let broken = if strict { rules::violations(&table.collection, entity) } else { Vec::new() };
    match broken.is_empty() {
        true => Ok(()),
        false => {
            Err(Error::new(ErrorKind::Rejected, format!("{} `{id}`: {}", table.collection.name, broken.join(", "))))
        }
    }
}

/// The writes of an `apply`. Their tables are there.
pub(crate) struct Apply<'a> {
    pub(crate) tables: &'a [Table],
    pub(crate) database: &'a dyn Database,
    pub(crate) strict: bool,
    pub(crate) now: &'a str,
    /// See above: an error that breaks a rule, without the write that it is of, asks for care.
    pub(crate) careful: bool,
    /// Somebody else's transaction, which cannot be begun again here.
    pub(crate) is_lasting: bool,
}

/// A table's position, and the id in it.
type Target = (usize, String);

/// Each entity that is there, as it is after the writes before.
type States = HashMap<Target, Map<String, Value>>;

/// A write, what it writes, and what was there before it.
type Waiter = (usize, Target, Option<Map<String, Value>>);

/// What was put and is not sent yet.
#[derive(Default)]
struct Waiting<'a> {
    table: Option<&'a Table>,
    /// Sent first, because the others may refer to them.
    fresh: Option<Batch<'a>>,
    replaced: Option<Batch<'a>>,
    /// By write.
    puts: Vec<Waiter>,
    targets: HashSet<Target>,
}

impl Apply<'_> {
    /// Carries the writes out, in order. Atomic: the first error ends it, and names its write; the caller rolls back.
    pub(crate) fn apply(&self, writes: &[Write], atomic: bool) -> Result<Vec<Result<Outcome>>> {
        if atomic {
            entity::check_distinct(writes)?;
        }
        let mut states = self.states(writes)?;
        let mut results: Vec<Result<Outcome>> = Vec::with_capacity(writes.len());
        let mut waiting = Waiting::default();
        for (i, write) in writes.iter().enumerate() {
            let (collection, id) = write.target();
            let position = self.tables.iter().position(|table| table.collection.name == collection);
            let Some(position) = position else {
                let error = unknown(collection);
                if atomic {
                    return Err(error.at_write(i));
                }
                results.push(Err(error));
                continue;
            };
            let table = &self.tables[position];
            let target = (position, id.to_owned());
            let is_other = waiting.table.is_some_and(|waiting| waiting.name != table.name)
                || [&waiting.fresh, &waiting.replaced].into_iter().flatten().any(Batch::is_full);
            if is_other || waiting.targets.contains(&target) || matches!(write, Write::Remove(_)) {
                self.send(&mut waiting, writes, &mut states, &mut results, atomic)?;
            }
            let state = states.get(&target);
            let result = match write {
                Write::Put(put) => self.stamped(table, put, state).map(|(entity, outcome)| {
                    waiting.table = Some(table);
                    let (batch, way) = match outcome.existed {
                        true => (&mut waiting.replaced, Way::Replace),
                        false => (&mut waiting.fresh, Way::Insert),
                    };
                    let batch = batch.get_or_insert_with(|| Batch::new(table, way, self.careful));
                    batch.push(i, entity.clone(), put.body.len());
                    waiting.targets.insert(target.clone());
                    let before = states.insert(target.clone(), entity);
                    waiting.puts.push((i, target, before));
                    outcome
                }),
                Write::Remove(removal) => self.remove(table, removal, state).inspect(|_| {
                    states.remove(&target);
                }),
            };
            match result {
                // One of the statement: who has to be careful needs to tell it from what was looked at here.
                Err(error) if !self.careful && matches!(write, Write::Remove(_)) && is_broken_statement(&error) => {
                    return Err(error);
                }
                Err(error) if atomic || !is_of_one_write(&error) => return Err(error.at_write(i)),
                result => results.push(result),
            }
        }
        self.send(&mut waiting, writes, &mut states, &mut results, atomic)?;
        Ok(results)
    }

    /// What is stored of everything that is written.
    fn states(&self, writes: &[Write]) -> Result<States> {
        let mut states = HashMap::with_capacity(writes.len());
        for (position, table) in self.tables.iter().enumerate() {
            let mut ids: Vec<&str> = writes
                .iter()
                .map(Write::target)
                .filter(|(collection, _)| *collection == table.collection.name)
                .map(|(_, id)| id)
                .collect();
            ids.sort_unstable();
            ids.dedup();
            let removes = writes
                .iter()
                .any(|write| matches!(write, Write::Remove(removal) if removal.collection == table.collection.name));
            let lock = if removes { Lock::Removal } else { Lock::Change };
            for (id, entity) in stored(table, self.database, &ids, lock)? {
                states.insert((position, id), row::members(table, &entity)?);
            }
        }
        Ok(states)
    }

    fn send(
        &self,
        waiting: &mut Waiting,
        writes: &[Write],
        states: &mut States,
        results: &mut [Result<Outcome>],
        atomic: bool,
    ) -> Result<()> {
        let Waiting { fresh, replaced, mut puts, .. } = std::mem::take(waiting);
        let put = |puts: &[Waiter], i| puts.binary_search_by_key(&i, |(write, ..)| *write).ok();
        for mut batch in [fresh, replaced].into_iter().flatten() {
            let again = |i| {
                let entity = put(&puts, i).and_then(|put| states.get(&puts[put].1)).cloned();
                Ok(entity.expect("what waits is in the states"))
            };
            let refused = batch.send(self.tables, self.database, &again).map_err(|error| match error.write_index {
                // Whoever began the transaction has to begin it again, unless this is what was asked about.
                Some(i) if self.is_lasting && writes[i as usize].expect() == Expectation::Absent => {
                    let (collection, id) = writes[i as usize].target();
                    Error::new(ErrorKind::AlreadyExists, format!("{collection} `{id}`: already exists"))
                        .at_write(i as usize)
                }
                _ => error,
            })?;
            for (i, error) in refused {
                if atomic {
                    return Err(error.at_write(i));
                }
                let position = put(&puts, i).expect("it was sent");
                let (_, target, before) = &mut puts[position];
                match before.take() {
                    Some(before) => states.insert(target.clone(), before),
                    None => states.remove(target),
                };
                results[i] = Err(error);
            }
        }
        Ok(())
    }

    fn stamped(
        &self,
        table: &Table,
        put: &larder_model::Put,
        state: Option<&Map<String, Value>>,
    ) -> Result<(Map<String, Value>, Outcome)> {
        let collection = &table.collection;
        check_size(table, &put.id, &put.body)?;
        let body = entity::check(collection, Some(&put.id), &put.body)?;
        let version = state.map(|stored| entity::version_of(collection, stored));
        entity::check_expectation(put.expect, version, &collection.name, &put.id)?;
        let stamped = entity::stamp(collection, state, body, self.now);
        check_rules(table, self.strict, &put.id, &stamped)?;
        let outcome = Outcome { version: entity::version_of(collection, &stamped), existed: state.is_some() };
        Ok((stamped, outcome))
    }

    fn remove(
        &self,
        table: &Table,
        removal: &larder_model::Removal,
        state: Option<&Map<String, Value>>,
    ) -> Result<Outcome> {
        let (collection, id) = (&table.collection, &removal.id);
        let version = state.map(|stored| entity::version_of(collection, stored));
        entity::check_expectation(removal.expect, version, &collection.name, id)?;
        let outcome = Outcome { version: version.unwrap_or(0), existed: version.is_some() };
        if outcome.existed {
            let mut statement = table.statement(format!("DELETE FROM {} WHERE {} = ", table.name, table.key));
            statement.param(SqlValue::Text(id.clone()));
            if !self.careful {
                statement.run(self.database, 0)?;
                return Ok(outcome);
            }
            match self.database.attempt(&statement.text, statement.params, 0) {
                Ok(_) => {}
                Err(error) if breaks_a_rule(&error) => {
                    return Err(explain_removal(table, self.tables, self.database, id, error)?);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(outcome)
    }
}

/// Whether a statement was refused for a rule, rather than an expectation not met.
fn is_broken_statement(error: &Error) -> bool {
    error.kind == ErrorKind::Rejected
}

/// Whether the other writes of a call can go on after this error.
fn is_of_one_write(error: &Error) -> bool {
    !is_conflict(error)
        && matches!(
            error.kind,
            ErrorKind::NotFound
                | ErrorKind::AlreadyExists
                | ErrorKind::VersionConflict
                | ErrorKind::Rejected
                | ErrorKind::InvalidArgument
        )
}

/// Each entity as a row, or why it is refused. Before the transaction, so that another call can write meanwhile.
pub(crate) fn rows(table: &Table, strict: bool, way: Way, entities: &[Entity]) -> Rows {
    // A row has no names, and so is mostly smaller than its entity.
    let bytes = entities.iter().map(|entity| entity.body.len()).sum();
    let mut copied = Vec::with_capacity(if way == Way::Copy { bytes } else { 0 });
    let mut row = |entity: &Entity| {
        check_size(table, &entity.id, &entity.body)?;
        let members = entity::members(&table.collection, Some(&entity.id), &entity.body)?;
        check_rules(table, strict, &entity.id, &members)?;
        Ok(Row::new(table, way, members, &mut copied))
    };
    let rows = entities.iter().map(&mut row).collect();
    Rows { rows, copied }
}

/// Loads entities as they are. An error that breaks a rule asks for care, as one of [`Apply`] does. With `looks`, it is looked
/// first which of them are stored, and answered whether any is; without, one that is stored breaks a rule.
#[allow(clippy::too_many_arguments)]
pub(crate) fn load(
    table: &Table,
    tables: &[Table],
    database: &dyn Database,
    entities: &[Entity],
    existing: Existing,
    Rows { rows, copied }: Rows,
    careful: bool,
    looks: bool,
) -> Result<(Loaded, bool)> {
    let mut loaded = Loaded::default();
    let ids: Vec<&str> = entities.iter().map(|entity| entity.id.as_str()).collect();
    let known = if looks { stored_ids(table, database, &ids)? } else { HashSet::new() };
    let lock = if existing == Existing::Overwrite { Lock::Change } else { Lock::None };
    let mut compared: HashMap<String, Entity> = HashMap::new();
    // Mostly they come in order; then none is there twice, and nothing has to be remembered.
    let is_ascending = ids.is_sorted_by(|a, b| json::is_before(a, b));
    let mut sent: HashSet<&str> = HashSet::new();
    let (mut fresh, mut replaced) =
        (Batch::new(table, way_of_load(careful), careful), Batch::new(table, Way::Replace, careful));
    let again = |i: usize| entity::parse(&table.collection, None, &entities[i].body);
    let send = |batch: &mut Batch, loaded: &mut Loaded| -> Result<()> {
        let count = batch.labels.len() as u64;
        let refused = batch.send(tables, database, &again)?;
        loaded.written += count - refused.len() as u64;
        loaded.refused.extend(refused.into_iter().map(|(i, error)| (i as u32, error)));
        Ok(())
    };
    for ((i, entity), row) in entities.iter().enumerate().zip(rows) {
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                loaded.refused.push((i as u32, error));
                continue;
            }
        };
        let twice = !is_ascending && !sent.insert(&entity.id);
        if twice {
            // Twice in one call: the first of them counts as stored.
            send(&mut fresh, &mut loaded)?;
            send(&mut replaced, &mut loaded)?;
            compared.remove(&entity.id);
        }
        if (twice || known.contains(&entity.id)) && !compared.contains_key(&entity.id) {
            // With those that come next, in one statement.
            let next = entities[i..].iter().map(|entity| entity.id.as_str());
            let next: Vec<&str> = next.filter(|id| *id == entity.id || known.contains(*id)).take(COMPARED).collect();
            compared = stored(table, database, &next, lock)?;
        }
        let bytes = entity.body.len();
        let stored = match compared.get(&entity.id) {
            None => None,
            Some(stored) => Some((row::members(table, stored)?, again(i)?)),
        };
        match stored {
            None => fresh.push_row(i, row, &copied, bytes),
            Some((stored, members)) if json::equal_objects(&stored, &members) => loaded.unchanged += 1,
            Some((_, members)) => match existing {
                Existing::Overwrite => replaced.push(i, members, bytes),
                Existing::Skip => loaded.skipped += 1,
                Existing::Fail => loaded.refused.push((
                    i as u32,
                    Error::new(
                        ErrorKind::AlreadyExists,
                        format!("{} `{}`: already exists with other content", table.collection.name, entity.id),
                    ),
                )),
            },
        }
        for batch in [&mut fresh, &mut replaced] {
            if batch.is_full() {
                send(batch, &mut loaded)?;
            }
        }
    }
    send(&mut fresh, &mut loaded)?;
    send(&mut replaced, &mut loaded)?;
    loaded.refused.sort_by_key(|(i, _)| *i);
    Ok((loaded, !known.is_empty()))
}
