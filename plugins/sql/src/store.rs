//! The contract over tables.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use larder_guest::{Dialect, Sql, SqlTransaction, SqlValue};
use larder_model::{
    Batch, Collection, Entity, Error, ErrorKind, Existing, Isolation, Loaded, Opened, Outcome, Page, Query, Result,
    Write, filter::Filter,
};

use crate::{
    catalog::{self, Found, Level, Seen},
    check,
    config::{Config, Constraints},
    database::{Alone, Database, Inside, REPLY_BYTES_MAX, Statement, integer},
    find::{self, IndexesUsed},
    packed,
    plan::Plan,
    prepare, row,
    schema::Table,
    write::{self, Apply, Lock},
};

/// The largest body.
pub(crate) const ENTITY_BYTES_MAX: usize = 16 << 20;

/// The most rows that one statement asks for.
pub(crate) const PAGE_ROWS_MAX: u32 = 10_000;

/// The most rows whose columns do not say all that a count looks at one by one.
const COUNTED_ROWS_MAX: usize = 1_000;

/// How often writes are begun again that met others on the same rows. Each time at least one of those got through.
const ATTEMPTS_MAX: usize = 16;

/// Columns of a table that can be asked. See [`crate::ledger`].
pub(crate) type Complete = Arc<HashSet<String>>;

/// A store whose collections are tables.
pub struct SqlStore<S: Sql> {
    sql: S,
    strict: bool,
    /// Those that are referred to first.
    tables: Vec<Table>,
    /// Tables that were there and usable when they were last looked at.
    known: HashMap<String, Complete>,
    /// Positions of tables where the last load met entities that were stored: the next one looks for them first. Into
    /// tables that are being filled, a load only writes.
    has_met: HashSet<usize>,
    indexes_used: IndexesUsed,
}

/// An open transaction.
pub struct Transaction<S: Sql> {
    inner: S::Transaction,
    /// After an error it can only be rolled back.
    failed: bool,
    is_read_only: bool,
}

impl<S: Sql> SqlStore<S> {
    /// Opens a store over a database, which it does not touch yet.
    pub fn open_in(sql: S, config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        let Config { constraints } = Config::parse(config)?;
        let dialect = sql.dialect();
        let mut tables = Vec::with_capacity(collections.len());
        for collection in collections {
            tables.push(Table::new(collection, constraints, dialect)?);
        }
        let keys: HashMap<String, String> =
            tables.iter().map(|table| (table.collection.name.clone(), table.collection.key.clone())).collect();
        for table in &mut tables {
            table.finish(|name| keys.get(name).cloned())?;
        }
        check_names(&tables)?;
        let tables = referred_first(tables);
        let strict = constraints == Constraints::Strict;
        let opened = Opened {
            enforces_references: tables.iter().any(|table| !table.references.is_empty()),
            enforces_fields: strict,
            has_rules: false,
            needs_no_flush: false,
            warnings: tables.iter().flat_map(|table| table.warnings.clone()).collect(),
        };
        Ok((
            SqlStore {
                sql,
                strict,
                tables,
                known: HashMap::new(),
                has_met: HashSet::new(),
                indexes_used: IndexesUsed::default(),
            },
            opened,
        ))
    }

    fn position(&self, collection: &str) -> Result<usize> {
        let position = self.tables.iter().position(|table| table.collection.name == collection);
        position.ok_or_else(|| write::unknown(collection))
    }

    /// A transaction for writes that are looked up under locks, so that it need see no more than what is committed.
    fn begin_write(&self) -> Result<S::Transaction> {
        match self.sql.dialect() {
            Dialect::Sqlite => self.sql.begin(None, false),
            Dialect::Postgres => self.sql.begin(Some(Isolation::ReadCommitted), false),
        }
    }

    /// Names of all tables.
    pub(crate) fn stored_collections(&mut self) -> Result<Vec<String>> {
        catalog::tables(&Alone(&self.sql), self.sql.dialect())
    }

    /// Makes what is missing.
    pub(crate) fn prepare(&mut self, dry_run: bool, extend: bool) -> Result<Vec<String>> {
        self.prepare_with(prepare::Extent { dry_run, extend, indexes: true })
    }

    /// The same without the declared indexes.
    pub(crate) fn prepare_for_load(&mut self) -> Result<()> {
        self.prepare_with(prepare::Extent { dry_run: false, extend: false, indexes: false }).map(drop)
    }

    fn prepare_with(&mut self, extent: prepare::Extent) -> Result<Vec<String>> {
        let transaction = match extent.dry_run {
            true => self.sql.begin(Some(Isolation::RepeatableRead), true)?,
            false => self.begin_write()?,
        };
        let lines = prepare::prepare(&Inside(&transaction), &self.tables, extent);
        match (&lines, extent.dry_run) {
            (Ok(_), false) => transaction.commit()?,
            // What was found counts, not that there was nothing to undo.
            _ => drop(transaction.rollback()),
        }
        self.known.clear();
        lines
    }

    /// What there is to say about the database.
    pub(crate) fn check(&mut self, thorough: bool) -> Result<String> {
        check::check(&self.sql, &self.tables, thorough)
    }

    /// Entities by id.
    pub(crate) fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let nothing = || ids.iter().map(|_| None).collect();
        self.read(collection, nothing, |table, _, database| get(table, database, ids, Lock::None))
    }

    /// A page of a query.
    pub(crate) fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        if let Some(name) = &query.index {
            find::index(&self.tables[self.position(collection)?], name)?;
        }
        let mut indexes = std::mem::take(&mut self.indexes_used);
        let page = self.read(
            collection,
            || find::nothing(query),
            |table, complete, database| find::find(table, complete, database, query, &mut indexes),
        );
        self.indexes_used = indexes;
        page
    }

    /// How many match, where the database can tell.
    pub(crate) fn count(&mut self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        self.read(collection, || Some(0), |table, complete, database| count(table, complete, database, filter))
    }

    /// A page of everything.
    pub(crate) fn scan(
        &mut self,
        collection: &str,
        segment: u32,
        segments: u32,
        cursor: Option<&[u8]>,
        max_bytes: u32,
    ) -> Result<Batch> {
        if segments == 0 || segment >= segments {
            return Err(Error::invalid(format!("there is no segment {segment} of {segments}")));
        }
        let after = cursor.map(|cursor| std::str::from_utf8(cursor).map_err(|_| find::foreign_cursor())).transpose()?;
        self.read(collection, Batch::default, |table, _, database| {
            let mut statement = table.statement(format!(" FROM {}", table.name));
            let mut word = " WHERE ";
            if let Some(after) = after {
                statement.text(word).text(&table.key).text(" > ").param(SqlValue::Text(after.to_owned()));
                word = " AND ";
            }
            if segments > 1 {
                statement.text(&format!("{word}{} = {segment}", segment_of(table, segments)));
            }
            statement.text(&format!(" ORDER BY {}", table.key));
            let max_bytes = max_bytes.clamp(1, REPLY_BYTES_MAX);
            let (mut entities, mut is_cut) = scan_page(table, database, &statement, max_bytes)?;
            // An entity spells the names of its members too, and can be many times as large as its row.
            let mut bytes = 0;
            let is_last = |entity: &Entity| {
                bytes += entity.body.len();
                bytes >= max_bytes as usize
            };
            if let Some(last) = entities.iter().position(is_last).filter(|last| last + 1 < entities.len()) {
                entities.truncate(last + 1);
                is_cut = true;
            }
            let next = entities.last().filter(|_| is_cut).map(|last| last.id.clone().into_bytes());
            Ok(Batch { entities, next })
        })
    }

    /// Writes.
    pub(crate) fn apply(&mut self, writes: Vec<Write>, atomic: bool, now: &str) -> Result<Vec<Result<Outcome>>> {
        let touched = self.touched(&writes, atomic)?;
        let careful = self.sql.dialect() == Dialect::Sqlite;
        self.write(&touched, careful, Self::begin_write, |store, database, careful| {
            let apply =
                Apply { tables: &store.tables, database, strict: store.strict, now, careful, is_lasting: false };
            apply.apply(&writes, atomic)
        })
    }

    /// Positions of the tables that the writes are about. Where they stand alone, only those of an unknown collection
    /// fail.
    fn touched(&self, writes: &[Write], atomic: bool) -> Result<Vec<usize>> {
        let mut touched = Vec::new();
        for (i, write) in writes.iter().enumerate() {
            match self.position(write.target().0) {
                Ok(position) if !touched.contains(&position) => touched.push(position),
                Err(error) if atomic => return Err(error.at_write(i)),
                _ => {}
            }
        }
        Ok(touched)
    }

    /// Bulk write.
    pub(crate) fn load(&mut self, collection: &str, entities: Vec<Entity>, existing: Existing) -> Result<Loaded> {
        let position = self.position(collection)?;
        // Before the transaction, so that another call can write meanwhile.
        let rows = |store: &Self, careful| {
            write::rows(&store.tables[position], store.strict, write::way_of_load(careful), &entities)
        };
        let mut made = Some(rows(self, false));
        let mut looks = self.has_met.contains(&position);
        let (loaded, has_met) = self.write(
            &[position],
            false,
            |store| store.sql.begin_bulk(),
            |store, database, careful| {
                let made = made.take().filter(|_| !careful).unwrap_or_else(|| rows(store, careful));
                let table = &store.tables[position];
                // Where the first try met one that is stored, the next one looks.
                let looks = std::mem::replace(&mut looks, true);
                write::load(table, &store.tables, database, &entities, existing, made, careful, looks)
            },
        )?;
        match has_met {
            true => self.has_met.insert(position),
            false => self.has_met.remove(&position),
        };
        Ok(loaded)
    }

    /// Makes what was loaded durable.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.sql.sync()
    }

    /// Begins a transaction, serializable where nobody asks for less: so it is the same as with every other strategy.
    pub(crate) fn begin(&mut self, isolation: Option<Isolation>, read_only: bool) -> Result<Transaction<S>> {
        let isolation = isolation.or(Some(Isolation::Serializable));
        Ok(Transaction { inner: self.sql.begin(isolation, read_only)?, failed: false, is_read_only: read_only })
    }

    /// Entities by id, in a transaction.
    pub(crate) fn transaction_get(
        &mut self,
        transaction: &mut Transaction<S>,
        collection: &str,
        ids: &[String],
        for_update: bool,
    ) -> Result<Vec<Option<Entity>>> {
        transaction.usable()?;
        let position = self.position(collection)?;
        // A transaction that only reads takes no locks.
        let lock = if for_update && !transaction.is_read_only { Lock::Removal } else { Lock::None };
        let found = match self.known_in(transaction, position) {
            Ok(None) => return Ok(ids.iter().map(|_| None).collect()),
            Ok(Some(_)) => get(&self.tables[position], &Inside(&transaction.inner), ids, lock),
            Err(error) => Err(error),
        };
        transaction.noticing(found, self.sql.dialect())
    }

    /// A page of a query, in a transaction.
    pub(crate) fn transaction_find(
        &mut self,
        transaction: &mut Transaction<S>,
        collection: &str,
        query: &Query,
    ) -> Result<Page> {
        transaction.usable()?;
        let position = self.position(collection)?;
        if let Some(name) = &query.index {
            find::index(&self.tables[position], name)?;
        }
        let page = match self.known_in(transaction, position) {
            Ok(None) => return Ok(find::nothing(query)),
            Ok(Some(complete)) => {
                let database = Inside(&transaction.inner);
                find::find(&self.tables[position], &complete, &database, query, &mut self.indexes_used)
            }
            Err(error) => Err(error),
        };
        transaction.noticing(page, self.sql.dialect())
    }

    /// The columns of a table that can be asked, none where there is no such table.
    fn known_in(&mut self, transaction: &Transaction<S>, position: usize) -> Result<Option<Complete>> {
        let table = &self.tables[position];
        // SQLite is asked again, because that costs nothing there, and somebody may have dropped the table.
        if self.sql.dialect() == Dialect::Sqlite {
            return look(&Inside(&transaction.inner), table);
        }
        if let Some(complete) = self.known.get(&table.collection.name) {
            return Ok(Some(Arc::clone(complete)));
        }
        let looked = look(&Inside(&transaction.inner), table)?;
        if let Some(complete) = &looked {
            // Should the transaction have made it and be rolled back, that shows as if somebody had dropped it.
            self.known.insert(table.collection.name.clone(), Arc::clone(complete));
        }
        Ok(looked)
    }

    /// Writes, in a transaction.
    pub(crate) fn transaction_apply(
        &mut self,
        transaction: &mut Transaction<S>,
        writes: Vec<Write>,
        now: &str,
    ) -> Result<Vec<Outcome>> {
        transaction.usable()?;
        if transaction.is_read_only {
            return Err(Error::invalid("the transaction is read-only"));
        }
        let database = Inside(&transaction.inner);
        let apply = Apply {
            tables: &self.tables,
            database: &database,
            strict: self.strict,
            now,
            careful: true,
            is_lasting: true,
        };
        let result = self
            .touched(&writes, true)
            .and_then(|touched| make_missing(&self.tables, &self.unknown(&touched), &database))
            .and_then(|_| apply.apply(&writes, true))
            .and_then(|results| results.into_iter().collect());
        transaction.failed = result.is_err();
        result
    }

    /// Makes a transaction's changes durable.
    pub(crate) fn commit(&mut self, transaction: Transaction<S>) -> Result<()> {
        transaction.usable()?;
        transaction.inner.commit()
    }

    /// Undoes a transaction's changes.
    pub(crate) fn rollback(&mut self, transaction: Transaction<S>) -> Result<()> {
        transaction.inner.rollback()
    }

    /// Reads from one table; `nothing` is the answer where there is no such table.
    fn read<T>(
        &mut self,
        collection: &str,
        nothing: impl FnOnce() -> T,
        mut read: impl FnMut(&Table, &Complete, &dyn Database) -> Result<T>,
    ) -> Result<T> {
        let table = &self.tables[self.position(collection)?];
        let database = Alone(&self.sql);
        if let Some(complete) = self.known.get(collection).cloned() {
            match read(table, &complete, &database) {
                // The table may have been dropped, or altered, meanwhile: looked at afresh, it shows.
                Err(error) if error.kind == ErrorKind::InvalidArgument => {
                    self.known.remove(collection);
                }
                result => return result,
            }
        }
        let Some(complete) = look(&database, table)? else { return Ok(nothing()) };
        self.known.insert(collection.to_owned(), Arc::clone(&complete));
        read(table, &complete, &database)
    }

    /// Those of the tables that were not looked at yet.
    fn unknown(&self, touched: &[usize]) -> Vec<usize> {
        let is_unknown = |position: &usize| !self.known.contains_key(&self.tables[*position].collection.name);
        touched.iter().copied().filter(is_unknown).collect()
    }

    /// Writes in one transaction, to tables that it makes where they are missing. `write` is told whether to be careful, as it
    /// is from the start with `careful`.
    fn write<T>(
        &mut self,
        touched: &[usize],
        mut careful: bool,
        begin: impl Fn(&Self) -> Result<S::Transaction>,
        mut write: impl FnMut(&Self, &dyn Database, bool) -> Result<T>,
    ) -> Result<T> {
        let mut attempts = 1;
        loop {
            let transaction = begin(self)?;
            match self.write_in(transaction, touched, |store, database| write(store, database, careful)) {
                // With the write that it is of, it was answered.
                Err(error) if !careful && write::breaks_a_rule(&error) && error.write_index.is_none() => careful = true,
                // Nothing was acknowledged yet, so nobody can tell.
                Err(error) if write::is_conflict(&error) && attempts < ATTEMPTS_MAX => attempts += 1,
                // A table that was there is gone. It is made again, once.
                Err(error)
                    if error.kind == ErrorKind::InvalidArgument
                        && error.write_index.is_none()
                        && self.forget_dropped(touched)? => {}
                result => return result,
            }
        }
    }

    /// Forgets those of the tables that were known and are not there any more, if there are any.
    fn forget_dropped(&mut self, touched: &[usize]) -> Result<bool> {
        let mut is_any = false;
        for &position in touched {
            let table = &self.tables[position];
            let name = &table.collection.name;
            if self.known.contains_key(name) && look(&Alone(&self.sql), table)?.is_none() {
                self.known.remove(name);
                is_any = true;
            }
        }
        Ok(is_any)
    }

    fn write_in<T>(
        &mut self,
        transaction: S::Transaction,
        touched: &[usize],
        write: impl FnOnce(&Self, &dyn Database) -> Result<T>,
    ) -> Result<T> {
        let unknown = self.unknown(touched);
        let database = Inside(&transaction);
        let result =
            make_missing(&self.tables, &unknown, &database).and_then(|looked| Ok((looked, write(self, &database)?)));
        match result {
            Ok((looked, value)) => {
                transaction.commit()?;
                for (position, complete) in looked {
                    self.known.insert(self.tables[position].collection.name.clone(), complete);
                }
                Ok(value)
            }
            Err(error) => {
                // The error counts, not that there was nothing left to undo.
                let _ = transaction.rollback();
                Err(error)
            }
        }
    }
}

impl<S: Sql> Transaction<S> {
    fn usable(&self) -> Result<()> {
        match self.failed {
            false => Ok(()),
            true => Err(Error::invalid("after an error the transaction can only be rolled back")),
        }
    }

    /// A statement that fails ends a transaction of PostgreSQL, also one that reads.
    fn noticing<T>(&mut self, result: Result<T>, dialect: Dialect) -> Result<T> {
        self.failed |= result.is_err() && dialect == Dialect::Postgres;
        result
    }
}

/// The columns of a table that can be asked; none where it is missing, an error where it cannot be used.
pub(crate) fn look(database: &dyn Database, table: &Table) -> Result<Option<Complete>> {
    match catalog::find(database, table)? {
        Found::Missing => Ok(None),
        Found::Table(seen) => {
            catalog::reject(table, &seen.differences, &[Level::Fatal, Level::Missing])?;
            Ok(Some(Arc::new(can_be_asked(&seen))))
        }
    }
}

/// A column of another type may hold what ours would not.
fn can_be_asked(seen: &Seen) -> HashSet<String> {
    let differs = |name: &String| {
        seen.differences.iter().any(|difference| difference.column == *name && difference.level == Level::Differs)
    };
    seen.complete.iter().filter(|name| !differs(name)).cloned().collect()
}

/// Makes all tables with their indexes where one of `wanted` is missing, because others may refer to each other. Answers
/// what was seen of `wanted`.
fn make_missing(tables: &[Table], wanted: &[usize], database: &dyn Database) -> Result<Vec<(usize, Complete)>> {
    let mut looked = Vec::new();
    let mut is_missing = false;
    for &position in wanted {
        match look(database, &tables[position])? {
            Some(complete) => looked.push((position, complete)),
            None => is_missing = true,
        }
    }
    if is_missing {
        // What was made is looked at with the next call.
        prepare::make(database, tables)?;
    }
    Ok(looked)
}

/// Tables and indexes share their names in a database, which does not tell case apart.
fn check_names(tables: &[Table]) -> Result<()> {
    let mut names = HashSet::new();
    for table in tables {
        let indexes = table.all_indexes().map(|index| &index.name);
        for name in std::iter::once(&table.collection.name).chain(indexes) {
            if !names.insert(name.to_ascii_lowercase()) {
                let message = "two tables or indexes would have this name, and a database does not tell case apart";
                return Err(Error::invalid(format!("`{name}`: {message}")));
            }
        }
    }
    Ok(())
}

/// The tables, each after those that it refers to, as far as they do not go round in a circle.
fn referred_first(mut tables: Vec<Table>) -> Vec<Table> {
    let mut sorted: Vec<Table> = Vec::with_capacity(tables.len());
    while !tables.is_empty() {
        let is_ready = |table: &Table| {
            table.references.iter().all(|(_, target)| {
                *target == table.collection.name || sorted.iter().any(|sorted| sorted.collection.name == *target)
            })
        };
        let next = tables.iter().position(is_ready).unwrap_or(0);
        sorted.push(tables.remove(next));
    }
    sorted
}

fn count(table: &Table, complete: &Complete, database: &dyn Database, filter: Option<&Filter>) -> Result<Option<u64>> {
    let plan = Plan::new(table, filter, complete);
    if !plan.unapplied.is_empty() || !plan.always_again.is_empty() {
        return Ok(None);
    }
    let mut statement = table.statement(format!("SELECT count(*) FROM {}", table.name));
    let word = plan.conditions(&mut statement);
    if plan.again.is_empty() {
        let rows = statement.run(database, REPLY_BYTES_MAX)?;
        return integer(rows.cells.first()).map(Some);
    }
    // One statement for both, so that they are of one moment: the count of the plain rows stands before each of the
    // others.
    let odd = plan.is_odd();
    statement.text(word).text(&format!("({odd}) IS NOT TRUE"));
    let mut both = table.statement(format!("SELECT ({})", statement.text));
    both.params = statement.params;
    let names = table.names();
    both.text(&format!(
        ", {names} FROM (SELECT 1 AS \"one\") AS \"o\" LEFT JOIN (SELECT {} FROM {}",
        table.select, table.name
    ));
    let word = plan.conditions(&mut both);
    both.text(word).text(&format!("({odd})) AS \"t\" ON 1 = 1 LIMIT {}", COUNTED_ROWS_MAX + 1));
    let rows = both.run(database, REPLY_BYTES_MAX)?;
    if rows.more || rows.cells.len() > COUNTED_ROWS_MAX * (table.width() + 1) {
        return Ok(None);
    }
    let mut total = integer(rows.cells.first())?;
    for row in rows.cells.chunks(table.width() + 1).filter(|row| row[1] != SqlValue::Null) {
        let members = row::members(table, &row::entity(table, &row[1..])?)?;
        total += u64::from(plan.again.iter().all(|part| part.matches(&members)));
    }
    Ok(Some(total))
}

/// The segment that a row belongs to, by its key alone, so that it stays what it is while others write.
fn segment_of(table: &Table, segments: u32) -> String {
    match table.dialect {
        // A key that is NULL is in a segment too, so that somebody finds it.
        Dialect::Sqlite => format!("coalesce(crc32({}), 0) % {segments}", table.key),
        Dialect::Postgres => format!("mod(abs(hashtext({})::bigint), {segments})", table.key),
    }
}

/// The first entities of a scan, and whether there are more.
fn scan_page(table: &Table, database: &dyn Database, from: &Statement, max_bytes: u32) -> Result<(Vec<Entity>, bool)> {
    // How large entities are is seen from the first.
    let first = format!("SELECT {}{} LIMIT 1", table.select, from.text);
    let first = database.query(&first, from.params.clone(), max_bytes)?;
    if first.cells.is_empty() {
        return Ok((Vec::new(), false));
    }
    let row_bytes: usize = first.cells.iter().map(cell_bytes).sum();
    let entity_bytes = entities(table, &first.cells)?.first().map_or(0, |entity| entity.body.len());
    let rows_max = (max_bytes as usize / row_bytes.max(entity_bytes).max(1)).clamp(1, PAGE_ROWS_MAX as usize);
    if table.dialect == Dialect::Sqlite {
        let mut statement = table.statement(format!("SELECT {}{}", table.select, from.text));
        statement.params.clone_from(&from.params);
        statement.text(" LIMIT ").param(SqlValue::Integer(rows_max as i64));
        let rows = database.copy_out(&statement.text, statement.params, max_bytes)?;
        let entities = packed::entities(table, &rows.cells)?;
        let is_cut = rows.more || entities.len() == rows_max;
        return Ok((entities, is_cut));
    }
    // A power of two, so that there are few different statements to prepare. PostgreSQL sends every row that was asked for,
    // also those behind the bound.
    let rows_max = 1_usize << rows_max.ilog2();
    let text = format!("SELECT {}{} LIMIT {rows_max}", table.select, from.text);
    let rows = database.query(&text, from.params.clone(), max_bytes)?;
    let entities = entities(table, &rows.cells)?;
    let is_cut = rows.more || entities.len() == rows_max;
    Ok((entities, is_cut))
}

fn entities(table: &Table, cells: &[SqlValue]) -> Result<Vec<Entity>> {
    cells.chunks(table.width()).map(|row| row::entity(table, row)).collect()
}

/// What a cell weighs in a page, roughly.
fn cell_bytes(cell: &SqlValue) -> usize {
    match cell {
        SqlValue::Text(text) | SqlValue::Json(text) | SqlValue::Decimal(text) => text.len() + 4,
        SqlValue::Blob(blob) => blob.len() + 4,
        _ => 8,
    }
}

fn get(table: &Table, database: &dyn Database, ids: &[String], lock: Lock) -> Result<Vec<Option<Entity>>> {
    let wanted: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut asked = wanted.clone();
    if lock != Lock::None {
        // Whoever locks several does it in this order, over all statements.
        asked.sort_unstable();
        asked.dedup();
    }
    let mut found = write::stored(table, database, &asked, lock)?;
    let is_last: Vec<bool> = {
        let mut seen = HashSet::new();
        let mut is_last: Vec<bool> = wanted.iter().rev().map(|id| seen.insert(*id)).collect();
        is_last.reverse();
        is_last
    };
    let answer = |(id, is_last): (&&str, &bool)| if *is_last { found.remove(*id) } else { found.get(*id).cloned() };
    Ok(wanted.iter().zip(&is_last).map(answer).collect())
}
