//! The contract over tables.

use std::collections::{HashMap, HashSet};

use larder_guest::{Dialect, Sql, SqlTransaction, SqlValue};
use larder_model::{
    Batch, Collection, Entity, Error, ErrorKind, Existing, Isolation, Loaded, Opened, Outcome, Page, Query, Result,
    Retry, Write, filter::Filter,
};
use serde_json::json;

use crate::{
    catalog::{self, Found, Level, REPLY_BYTES_MAX, Run},
    config::{Config, Constraints},
    packed,
    plan::Plan,
    row,
    schema::{EXACT, Statement, Table, quote},
    write::{self, Apply},
};

/// The largest body.
pub(crate) const ENTITY_BYTES_MAX: usize = 16 << 20;

/// The most rows that one statement asks for.
const PAGE_ROWS_MAX: u32 = 10_000;
/// Fewer rows than this are not worth packing.
const PACKED_ROWS_MIN: usize = 50;

/// The most rows with [`EXACT`] that a count looks at one by one.
const COUNTED_ROWS_MAX: usize = 1_000;

/// Texts whose index is remembered.
const INDEXES_KNOWN_MAX: usize = 256;

/// A store whose collections are tables.
pub struct SqlStore<S: Sql> {
    sql: S,
    strict: bool,
    /// Those that are referred to first.
    tables: Vec<Table>,
    /// Tables that were there and usable when they were last looked at, and whether each is as we would make it.
    known: HashMap<String, bool>,
    /// Which index serves a statement, by its text.
    indexes_used: HashMap<String, Option<String>>,
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
        if dialect != Dialect::Sqlite {
            return Err(Error::new(ErrorKind::Unsupported, "this version of the strategy works with SQLite only"));
        }
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
        Ok((SqlStore { sql, strict, tables, known: HashMap::new(), indexes_used: HashMap::new() }, opened))
    }

    fn position(&self, collection: &str) -> Result<usize> {
        let position = self.tables.iter().position(|table| table.collection.name == collection);
        position.ok_or_else(|| write::unknown(collection))
    }

    /// Names of all tables.
    pub(crate) fn stored_collections(&mut self) -> Result<Vec<String>> {
        catalog::tables(&|text, params, max_bytes| self.sql.query(text, params, max_bytes))
    }

    /// Makes what is missing.
    pub(crate) fn prepare(&mut self, dry_run: bool, _extend: bool) -> Result<Vec<String>> {
        let transaction = self.sql.begin(None, dry_run)?;
        let run: Run = &|text, params, max_bytes| transaction.query(text, params, max_bytes);
        let mut lines = Vec::new();
        for table in &self.tables {
            let existing = match catalog::find(run, table)? {
                Found::Missing => {
                    lines.push(table.ddl.clone());
                    Vec::new()
                }
                Found::Table(differences) => {
                    catalog::reject(table, &differences, &[Level::Fatal, Level::Differs, Level::Constraints])?;
                    catalog::indexes(run, table)?
                }
            };
            let missing = table.indexes.iter().filter(|index| !existing.contains(&index.name));
            lines.extend(missing.map(|index| index.ddl.clone()));
        }
        if dry_run {
            transaction.rollback()?;
        } else {
            for line in &lines {
                run(line, Vec::new(), 0)?;
            }
            transaction.commit()?;
        }
        Ok(lines)
    }

    /// What there is to say about the database.
    pub(crate) fn check(&mut self) -> Result<String> {
        let mut findings = Vec::new();
        let mut unread = Vec::new();
        let mut find = |level: &str, message: String| findings.push(json!({"level": level, "message": message}));
        let size = self.sql.size()?;
        let run: Run = &|text, params, max_bytes| self.sql.query(text, params, max_bytes);
        let version = catalog::version(run)?;
        let mut readable = true;
        let mut tables = Vec::new();
        for table in &self.tables {
            let name = &table.collection.name;
            let mut entry = json!({"collection": name, "exists": false});
            let described = catalog::find(run, table).and_then(|found| {
                let Found::Table(differences) = found else { return Ok(()) };
                entry["exists"] = true.into();
                for difference in &differences {
                    let level = match difference.level {
                        Level::Fatal => "error",
                        Level::Differs | Level::Constraints => "warning",
                        // What is in there is no part of any entity.
                        Level::Extra => {
                            unread.push(format!("table `{name}`: {}", difference.message));
                            "warning"
                        }
                    };
                    find(level, format!("table `{name}`: {}", difference.message));
                }
                entry["usable"] = differences.iter().all(|difference| difference.level != Level::Fatal).into();
                entry["rows"] = count(run, table.statement(format!("SELECT count(*) FROM {}", table.name)))?.into();
                let existing = catalog::indexes(run, table)?;
                for index in table.indexes.iter().filter(|index| !existing.contains(&index.name)) {
                    find(
                        "warning",
                        format!("the index `{}` of `{name}` is missing: `prepare` makes it", index.declared),
                    );
                }
                Ok(())
            });
            if let Err(error) = described {
                readable = false;
                find("error", format!("table `{name}`: {error}"));
            }
            tables.push(entry);
        }
        let writable = match size {
            Some(0) => {
                find("info", "there is no database yet: it comes to be with the first write, or `prepare`".to_owned());
                true
            }
            // Takes the lock that a write takes, and changes nothing.
            _ => match self.sql.begin(None, false).and_then(SqlTransaction::rollback) {
                Ok(()) => true,
                Err(error) => {
                    find("error", format!("the database cannot be written: {error}"));
                    false
                }
            },
        };
        let answer = json!({
            "reachable": true,
            "readable": readable,
            "writable": writable,
            "database": {"version": version, "size_bytes": size},
            "tables": tables,
            "unread": unread,
            "findings": findings,
        });
        Ok(answer.to_string())
    }

    /// Entities by id.
    pub(crate) fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let nothing = || ids.iter().map(|_| None).collect();
        self.read(collection, nothing, |table, _, run| get(table, run, ids, false))
    }

    /// A page of a query.
    pub(crate) fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        if let Some(name) = &query.index {
            index(&self.tables[self.position(collection)?], name)?;
        }
        let mut indexes = std::mem::take(&mut self.indexes_used);
        let page = self.read(
            collection,
            || nothing(query),
            |table, is_ours, run| find(table, is_ours, run, query, &mut indexes),
        );
        self.indexes_used = indexes;
        page
    }

    /// How many match, where the database can tell.
    pub(crate) fn count(&mut self, collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        self.read(
            collection,
            || Some(0),
            |table, is_ours, run| {
                let plan = Plan::new(table, filter, is_ours);
                if !plan.unapplied.is_empty() {
                    return Ok(None);
                }
                let mut statement = table.statement(format!("SELECT count(*) FROM {}", table.name));
                let word = plan.conditions(&mut statement);
                if plan.again.is_empty() {
                    return count(run, statement).map(Some);
                }
                // One statement for both, so that they are of one moment: the count of the plain rows stands before each of
                // the others.
                statement.text(word).text(&format!("{} IS NULL", quote(EXACT)));
                let mut both = table.statement(format!("SELECT ({})", statement.text));
                both.params = statement.params;
                both.text(&format!(
                    ", {} FROM (SELECT 1) LEFT JOIN (SELECT {} FROM {}",
                    table.select, table.select, table.name
                ));
                let word = plan.conditions(&mut both);
                both.text(word).text(&format!("{} IS NOT NULL) ON 1 = 1 LIMIT {}", quote(EXACT), COUNTED_ROWS_MAX + 1));
                let rows = run(&both.text, both.params, REPLY_BYTES_MAX)?;
                if rows.more || rows.cells.len() > COUNTED_ROWS_MAX * (table.width() + 1) {
                    return Ok(None);
                }
                let mut total = integer(rows.cells.first())?;
                for row in rows.cells.chunks(table.width() + 1).filter(|row| row[1] != SqlValue::Null) {
                    let members = row::members(table, &row::entity(table, &row[1..])?)?;
                    total += u64::from(plan.again.iter().all(|part| part.matches(&members)));
                }
                Ok(Some(total))
            },
        )
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
        let after = cursor.map(|cursor| std::str::from_utf8(cursor).map_err(|_| foreign_cursor())).transpose()?;
        self.read(collection, Batch::default, |table, _, run| {
            let mut statement = table.statement(format!(" FROM {}", table.name));
            let mut word = " WHERE ";
            if let Some(after) = after {
                statement.text(word).text(&table.key).text(" > ").param(SqlValue::Text(after.to_owned()));
                word = " AND ";
            }
            if segments > 1 {
                // By the last characters of the key, which differ most, and stay what they are while others write.
                let last = |n: u32| format!("coalesce(unicode(substr({}, -{n}, 1)), 0)", table.key);
                let mix = format!("({} + 7 * {} + 31 * {})", last(1), last(2), last(3));
                statement.text(&format!("{word}{mix} % {segments} = {segment}"));
            }
            statement.text(&format!(" ORDER BY {}", table.key));
            let max_bytes = max_bytes.clamp(1, REPLY_BYTES_MAX);
            let (entities, is_cut) = scan_page(table, run, &statement, max_bytes)?;
            let next = entities.last().filter(|_| is_cut).map(|last| last.id.clone().into_bytes());
            Ok(Batch { entities, next })
        })
    }

    /// Writes.
    pub(crate) fn apply(&mut self, writes: Vec<Write>, atomic: bool, now: &str) -> Result<Vec<Result<Outcome>>> {
        let touched = self.touched(&writes, atomic)?;
        self.write(&touched, |store, run| {
            let apply = Apply { tables: &store.tables, run, strict: store.strict, now };
            apply.apply(writes, atomic)
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
        let parsed = write::parse(&self.tables[position], self.strict, &entities);
        let transaction = self.sql.begin_bulk()?;
        self.write_in(transaction, &[position], |store, run| {
            write::load(&store.tables[position], &store.tables, run, &entities, parsed, existing)
        })
    }

    /// Makes what was loaded durable.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.sql.sync()
    }

    /// Begins a transaction.
    pub(crate) fn begin(&mut self, isolation: Option<Isolation>, read_only: bool) -> Result<Transaction<S>> {
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
        let run: Run = &|text, params, max_bytes| transaction.inner.query(text, params, max_bytes);
        let table = &self.tables[self.position(collection)?];
        match look(run, table)? {
            None => Ok(ids.iter().map(|_| None).collect()),
            Some(_) => get(table, run, ids, for_update),
        }
    }

    /// A page of a query, in a transaction.
    pub(crate) fn transaction_find(
        &mut self,
        transaction: &mut Transaction<S>,
        collection: &str,
        query: &Query,
    ) -> Result<Page> {
        transaction.usable()?;
        let run: Run = &|text, params, max_bytes| transaction.inner.query(text, params, max_bytes);
        let table = &self.tables[self.position(collection)?];
        match look(run, table)? {
            None => Ok(nothing(query)),
            Some(is_ours) => find(table, is_ours, run, query, &mut self.indexes_used),
        }
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
        let run: Run = &|text, params, max_bytes| transaction.inner.query(text, params, max_bytes);
        let apply = Apply { tables: &self.tables, run, strict: self.strict, now };
        let result = self
            .touched(&writes, true)
            .and_then(|touched| make_missing(&self.tables, &touched, run))
            .and_then(|_| apply.apply(writes, true))
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
        mut read: impl FnMut(&Table, bool, Run) -> Result<T>,
    ) -> Result<T> {
        let table = &self.tables[self.position(collection)?];
        let sql = &self.sql;
        let run: Run = &|text, params, max_bytes| sql.query(text, params, max_bytes);
        if let Some(is_ours) = self.known.get(collection).copied() {
            match read(table, is_ours, run) {
                // The table may have been dropped, or altered, meanwhile: looked at afresh, it shows.
                Err(error) if error.kind == ErrorKind::InvalidArgument => {
                    self.known.remove(collection);
                }
                result => return result,
            }
        }
        let Some(is_ours) = look(run, table)? else { return Ok(nothing()) };
        self.known.insert(collection.to_owned(), is_ours);
        read(table, is_ours, run)
    }

    /// Writes in one transaction of its own, to tables that it makes where they are missing.
    fn write<T>(&mut self, touched: &[usize], write: impl FnOnce(&Self, Run) -> Result<T>) -> Result<T> {
        let transaction = self.sql.begin(None, false)?;
        self.write_in(transaction, touched, write)
    }

    fn write_in<T>(
        &mut self,
        transaction: S::Transaction,
        touched: &[usize],
        write: impl FnOnce(&Self, Run) -> Result<T>,
    ) -> Result<T> {
        let run: Run = &|text, params, max_bytes| transaction.query(text, params, max_bytes);
        let unknown: Vec<usize> = touched
            .iter()
            .copied()
            .filter(|&position| !self.known.contains_key(&self.tables[position].collection.name))
            .collect();
        let result = make_missing(&self.tables, &unknown, run).and_then(|looked| Ok((looked, write(self, run)?)));
        match result {
            Ok((looked, value)) => {
                transaction.commit()?;
                for (position, is_ours) in looked {
                    self.known.insert(self.tables[position].collection.name.clone(), is_ours);
                }
                Ok(value)
            }
            Err(error) => {
                // The error counts, not that there was nothing left to undo.
                let _ = transaction.rollback();
                let was_known = unknown.len() < touched.len();
                if error.kind == ErrorKind::InvalidArgument && error.write_index.is_none() && was_known {
                    self.known.clear();
                    for &position in touched {
                        let sql = &self.sql;
                        let run: Run = &|text, params, max_bytes| sql.query(text, params, max_bytes);
                        if look(run, &self.tables[position])?.is_none() {
                            let name = &self.tables[position].collection.name;
                            let message = format!("the table `{name}` was dropped by somebody else");
                            return Err(Error { retry: Retry::Safe, ..Error::new(ErrorKind::Unavailable, message) });
                        }
                    }
                }
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
}

/// Whether a table is there and as we would make it; none where it is missing, an error where it cannot be used.
fn look(run: Run, table: &Table) -> Result<Option<bool>> {
    match catalog::find(run, table)? {
        Found::Missing => Ok(None),
        Found::Table(differences) => {
            catalog::reject(table, &differences, &[Level::Fatal])?;
            Ok(Some(differences.is_empty()))
        }
    }
}

/// Makes all tables with their indexes where one of `wanted` is missing, because others may refer to each other. Answers
/// what was seen of `wanted`.
fn make_missing(tables: &[Table], wanted: &[usize], run: Run) -> Result<Vec<(usize, bool)>> {
    let mut looked = Vec::new();
    let mut is_missing = false;
    for &position in wanted {
        let seen = look(run, &tables[position])?;
        is_missing |= seen.is_none();
        looked.push((position, seen.unwrap_or(true)));
    }
    if is_missing {
        for table in tables {
            if let Found::Missing = catalog::find(run, table)? {
                run(&table.ddl, Vec::new(), 0)?;
                for index in &table.indexes {
                    run(&index.ddl, Vec::new(), 0)?;
                }
            }
        }
    }
    Ok(looked)
}

/// Tables and indexes share their names in a database, which does not tell case apart.
fn check_names(tables: &[Table]) -> Result<()> {
    let mut names = HashSet::new();
    for table in tables {
        let indexes = table.indexes.iter().map(|index| &index.name);
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

fn integer(cell: Option<&SqlValue>) -> Result<u64> {
    match cell {
        Some(SqlValue::Integer(value)) => Ok(u64::try_from(*value).unwrap_or(0)),
        _ => Err(Error::new(ErrorKind::Internal, "the database did not answer with a number")),
    }
}

fn count(run: Run, statement: Statement) -> Result<u64> {
    integer(run(&statement.text, statement.params, REPLY_BYTES_MAX)?.cells.first())
}

fn entities(table: &Table, cells: &[SqlValue]) -> Result<Vec<Entity>> {
    cells.chunks(table.width()).map(|row| row::entity(table, row)).collect()
}

/// The first entities of a scan, and whether there are more.
fn scan_page(table: &Table, run: Run, from: &Statement, max_bytes: u32) -> Result<(Vec<Entity>, bool)> {
    // How large entities are is seen from the first; those that differ much from it come one by one.
    let first = format!("SELECT {}{} LIMIT 1", table.select, from.text);
    let first = run(&first, from.params.clone(), max_bytes)?;
    let row_bytes: usize = first.cells.iter().map(cell_bytes).sum();
    let rows_max = (max_bytes as usize / row_bytes.max(1)).clamp(1, PAGE_ROWS_MAX as usize);
    // A power of two, so that there are few different statements to prepare.
    let rows_max = 1_usize << rows_max.ilog2();
    if rows_max >= PACKED_ROWS_MIN {
        let packed = packed::select(table, &format!("{} LIMIT {rows_max}", from.text));
        // A blob cannot be packed, nor a text that is not UTF-8, nor rows that are too large together: below they come
        // one by one, and whatever is wrong with one of them is said of that one.
        let cells = run(&packed, from.params.clone(), max_bytes).and_then(|rows| packed::unpack(table, &rows.cells));
        if let Ok(cells) = cells {
            let entities = entities(table, &cells)?;
            let is_cut = entities.len() == rows_max;
            return Ok((entities, is_cut));
        }
    }
    let text = format!("SELECT {}{} LIMIT {PAGE_ROWS_MAX}", table.select, from.text);
    let rows = run(&text, from.params.clone(), max_bytes)?;
    let entities = entities(table, &rows.cells)?;
    let is_cut = rows.more || entities.len() == PAGE_ROWS_MAX as usize;
    Ok((entities, is_cut))
}

/// What a cell weighs in a page, roughly.
fn cell_bytes(cell: &SqlValue) -> usize {
    match cell {
        SqlValue::Text(text) | SqlValue::Json(text) | SqlValue::Decimal(text) => text.len() + 4,
        SqlValue::Blob(blob) => blob.len() + 4,
        _ => 8,
    }
}

fn get(table: &Table, run: Run, ids: &[String], for_update: bool) -> Result<Vec<Option<Entity>>> {
    let wanted: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut found = write::stored(table, run, &wanted, for_update)?;
    let is_last: Vec<bool> = {
        let mut seen = HashSet::new();
        let mut is_last: Vec<bool> = wanted.iter().rev().map(|id| seen.insert(*id)).collect();
        is_last.reverse();
        is_last
    };
    let answer = |(id, is_last): (&&str, &bool)| if *is_last { found.remove(*id) } else { found.get(*id).cloned() };
    Ok(wanted.iter().zip(&is_last).map(answer).collect())
}

fn nothing(query: &Query) -> Page {
    let parts = query.filter.as_ref().map_or(0, |filter| filter.conjuncts().len());
    let unapplied = (0..parts as u32).collect();
    Page { entities: Vec::new(), next: None, unapplied, sorted: true, index_used: None }
}

fn foreign_cursor() -> Error {
    Error::invalid("the cursor is not from the last page of the same query")
}

/// What a cursor is bound to: FNV-1a over the query without its place.
fn fingerprint(table: &Table, query: &Query) -> [u8; 8] {
    let text = format!("{:?}{:?}{:?}{:?}", table.collection.name, query.filter, query.order_by, query.index);
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash.to_be_bytes()
}

fn find(
    table: &Table,
    is_ours: bool,
    run: Run,
    query: &Query,
    indexes_used: &mut HashMap<String, Option<String>>,
) -> Result<Page> {
    let plan = Plan::new(table, query.filter.as_ref(), is_ours);
    let index = query.index.as_deref().map(|name| index(table, name)).transpose()?;
    // Every page is in the order of the key; other orders are the host's.
    let first = query.order_by.first().filter(|first| first.field.single() == Some(&table.collection.key));
    let descending = first.is_some_and(|first| first.descending);
    let sorted = query.order_by.is_empty() || first.is_some();
    let bound_to = fingerprint(table, query);

    let mut statement = table.statement(format!("SELECT {} FROM {}", table.select, table.name));
    if let Some(index) = index {
        statement.text(&format!(" INDEXED BY {}", quote(index)));
    }
    let word = plan.conditions(&mut statement);
    if let Some(cursor) = &query.cursor {
        let last = cursor.strip_prefix(&bound_to).and_then(|last| std::str::from_utf8(last).ok());
        let last = last.ok_or_else(foreign_cursor)?;
        let operator = if descending { " < " } else { " > " };
        statement.text(word).text(&table.key).text(operator).param(SqlValue::Text(last.to_owned()));
    }
    let rows_max = query.limit.clamp(1, PAGE_ROWS_MAX);
    statement.text(&format!(" ORDER BY {}{}", table.key, if descending { " DESC" } else { "" }));
    // One more, to know whether this is the end.
    statement.text(" LIMIT ").param(SqlValue::Integer(i64::from(rows_max) + 1));

    let index_used = match indexes_used.get(&statement.text) {
        Some(known) => known.clone(),
        None => {
            let used = explain(table, run, &statement).map_err(|error| match index {
                Some(_) if error.kind == ErrorKind::InvalidArgument => Error::invalid(format!(
                    "the index `{}` of `{}` cannot serve this query, or is not made yet: {error}",
                    query.index.as_deref().unwrap_or_default(),
                    table.collection.name
                )),
                _ => error,
            })?;
            if indexes_used.len() >= INDEXES_KNOWN_MAX {
                indexes_used.clear();
            }
            indexes_used.insert(statement.text.clone(), used.clone());
            used
        }
    };
    let rows = run(&statement.text, statement.params, query.max_bytes.clamp(1, REPLY_BYTES_MAX))?;
    let mut cells = rows.cells.as_slice();
    let is_cut = cells.len() > rows_max as usize * table.width();
    if is_cut {
        cells = &cells[..rows_max as usize * table.width()];
    }
    let mut entities = Vec::with_capacity(cells.len() / table.width());
    let mut last = None;
    for row in cells.chunks(table.width()) {
        let entity = row::entity(table, row)?;
        last = Some(&row[0]);
        let is_plain = row.last() == Some(&SqlValue::Null);
        if is_plain || plan.again.is_empty() || {
            let members = row::members(table, &entity)?;
            plan.again.iter().all(|part| part.matches(&members))
        } {
            entities.push(entity);
        }
    }
    let next = match last {
        Some(SqlValue::Text(last)) if is_cut || rows.more => Some([&bound_to, last.as_bytes()].concat()),
        _ => None,
    };
    Ok(Page { entities, next, unapplied: plan.unapplied, sorted, index_used })
}

/// The name in the database of an index that is asked for by the declared name or by this one.
fn index<'a>(table: &'a Table, name: &str) -> Result<&'a str> {
    let index = table.indexes.iter().find(|index| index.declared == name || index.name == name);
    index.map(|index| index.name.as_str()).ok_or_else(|| {
        let known: Vec<String> = table.indexes.iter().map(|index| format!("`{}`", index.declared)).collect();
        let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
        Error::invalid(format!("`{}` has no index `{name}`: {known}", table.collection.name))
    })
}

/// Which index the database takes for a statement, by its declared name.
fn explain(table: &Table, run: Run, statement: &Statement) -> Result<Option<String>> {
    let rows = run(&format!("EXPLAIN QUERY PLAN {}", statement.text), statement.params.clone(), REPLY_BYTES_MAX)?;
    let steps = rows.cells.iter().filter_map(|cell| match cell {
        SqlValue::Text(step) if step.contains(" INDEX ") => Some(step),
        _ => None,
    });
    for step in steps {
        // The longest name that fits: one may begin with another.
        let fitting = table.indexes.iter().filter(|index| step.contains(&format!(" INDEX {}", index.name)));
        if let Some(index) = fitting.max_by_key(|index| index.name.len()) {
            return Ok(Some(index.declared.clone()));
        }
        if step.contains(" INDEX sqlite_autoindex_") {
            return Ok(Some(table.collection.key.clone()));
        }
    }
    Ok(None)
}
