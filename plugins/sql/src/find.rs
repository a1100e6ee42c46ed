//! Pages of a query.
//!
//! Without an order, pages follow the key. In another order the database sorts what it sorts exactly as the contract
//! does: rows whose columns to sort by say all that there is to say. The others, called *odd* here, are few: the value
//! stands beside its column, or the member is `null`. They are read by themselves in each page and put between those that the
//! database sorted. Where a first page finds too many of them, the host sorts. A later page reads however many there are
//! by then, because an order that was begun is kept.
//!
//! A cursor says where both stand: values and key of the last row that the database sorted, and of the last odd one if
//! that was the last of all. So a page is found by comparing, and what was passed is not read again.

use std::{cmp::Ordering, collections::HashMap};

use larder_guest::{Dialect, SqlValue};
use larder_model::{Entity, Error, ErrorKind, FieldType, Page, Query, Result, SortKey, order, path::Path};
use serde_json::{Map, Value, json};

use crate::{
    catalog,
    database::{Database, REPLY_BYTES_MAX, Statement, quote},
    plan::{self, Plan, is_beside, is_exact, is_mentioned},
    row,
    schema::{EXACT, EXTRA, Table, TableIndex, hash},
    store::{Complete, PAGE_ROWS_MAX},
    types::{self, Column, Kind},
};

/// The most odd rows that a first page takes on.
const ODD_ROWS_MAX: usize = 1_000;

/// The most columns to sort by that are left to the database.
const KEYS_MAX: usize = 8;

/// Texts whose index is remembered.
const INDEXES_KNOWN_MAX: usize = 256;

/// What the first byte behind a cursor's fingerprint says of the rest.
const BY_KEY: u8 = 0;
const BY_ORDER: u8 = 1;

/// Which index serves a statement, by its text.
#[derive(Default)]
pub(crate) struct IndexesUsed(HashMap<String, Used>);

struct Used {
    index: Option<String>,
    asked: u32,
}

/// The answer where there is no table.
pub(crate) fn nothing(query: &Query) -> Page {
    let parts = query.filter.as_ref().map_or(0, |filter| filter.conjuncts().len());
    let unapplied = (0..parts as u32).collect();
    Page { entities: Vec::new(), next: None, unapplied, sorted: true, index_used: None, notes: Vec::new(), cost: None }
}

pub(crate) fn foreign_cursor() -> Error {
    Error::invalid("the cursor is not from the last page of the same query")
}

/// The index that is asked for by the declared name or by the database's.
pub(crate) fn index<'a>(table: &'a Table, name: &str) -> Result<&'a TableIndex> {
    table.indexes.iter().find(|index| index.declared == name || index.name == name).ok_or_else(|| {
        let known: Vec<String> = table.indexes.iter().map(|index| format!("`{}`", index.declared)).collect();
        let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
        Error::invalid(format!("`{}` has no index `{name}`: {known}", table.collection.name))
    })
}

/// What a cursor is bound to: the query without its place.
fn fingerprint(table: &Table, query: &Query) -> [u8; 8] {
    let text = format!("{:?}{:?}{:?}{:?}", table.collection.name, query.filter, query.order_by, query.index);
    hash(text.bytes()).to_be_bytes()
}

/// A page of the query.
pub(crate) fn find(
    table: &Table,
    complete: &Complete,
    database: &dyn Database,
    query: &Query,
    indexes_used: &mut IndexesUsed,
) -> Result<Page> {
    let plan = Plan::new(table, query.filter.as_ref(), complete);
    let order = Order::new(table, &query.order_by, complete);
    let index = query.index.as_deref().map(|name| index(table, name)).transpose()?;
    if let Some(index) = index {
        check_index(table, database, index, &plan, order.as_ref())?;
    }
    let bound_to = fingerprint(table, query);
    let place = match &query.cursor {
        None => None,
        Some(cursor) => {
            let place = cursor.strip_prefix(&bound_to).and_then(<[u8]>::split_first);
            Some(place.ok_or_else(foreign_cursor)?)
        }
    };
    let mut search = Search { table, database, query, plan, index, bound_to, indexes_used };
    match (place, order.filter(|order| !order.is_by_key())) {
        (None, Some(order)) => match search.sorted(&order, None)? {
            Some(page) => Ok(page),
            None => search.by_key(None),
        },
        (Some((&BY_ORDER, place)), Some(order)) => {
            let place = Place::read(place).ok_or_else(foreign_cursor)?;
            search.sorted(&order, Some(place))?.ok_or_else(foreign_cursor)
        }
        (None, None) => search.by_key(None),
        (Some((&BY_KEY, last)), _) => {
            let last = std::str::from_utf8(last).map_err(|_| foreign_cursor())?;
            search.by_key(Some(last))
        }
        (Some(_), _) => Err(foreign_cursor()),
    }
}

/// Refuses an index that cannot serve the query: one whose first column is neither compared nor sorted by.
fn check_index(
    table: &Table,
    database: &dyn Database,
    index: &TableIndex,
    plan: &Plan,
    order: Option<&Order>,
) -> Result<()> {
    let first = table.collection.indexes.iter().find(|declared| declared.name == index.declared);
    let first = first.and_then(|declared| declared.fields.first());
    let name = &table.collection.name;
    let serves = first.is_some_and(|first| {
        plan.constrained.contains(first) || order.is_some_and(|order| order.columns[0].0.name == *first)
    });
    if !serves {
        return Err(Error::invalid(format!(
            "the index `{}` of `{name}` cannot serve this query, which neither compares nor sorts by `{}`",
            index.declared,
            first.map_or("", String::as_str)
        )));
    }
    // SQLite says so itself when it is told to use the index.
    if table.dialect == Dialect::Postgres && !catalog::indexes(database, table)?.contains(&index.name) {
        return Err(Error::invalid(format!(
            "the index `{}` of `{name}` is not made yet: `larder stores prepare` makes it",
            index.declared
        )));
    }
    Ok(())
}

/// Columns to sort by, the key last, and whether the largest comes first.
struct Order<'a> {
    columns: Vec<(&'a Column, bool)>,
    paths: Vec<SortKey>,
}

impl<'a> Order<'a> {
    /// None where the database would not sort as the contract does. Without any field, it is the key.
    fn new(table: &'a Table, order_by: &[SortKey], complete: &Complete) -> Option<Order<'a>> {
        let mut columns = Vec::new();
        for key in order_by {
            let column = &table.columns[table.position(key.field.single()?)?];
            let is_sorted = match column.kind {
                Kind::Key => true,
                Kind::Field(FieldType::Json) => false,
                Kind::Field(_) => complete.contains(&column.name),
            };
            if !is_sorted || columns.len() == KEYS_MAX {
                return None;
            }
            columns.push((column, key.descending));
            // Nothing is equal behind it.
            if column.kind == Kind::Key {
                break;
            }
        }
        if columns.last().is_none_or(|(column, _)| column.kind != Kind::Key) {
            columns.push((&table.columns[0], false));
        }
        let paths = columns
            .iter()
            .map(|(column, descending)| SortKey { field: Path::member(&column.name), descending: *descending })
            .collect();
        Some(Order { columns, paths })
    }

    fn is_by_key(&self) -> bool {
        self.columns.len() == 1
    }

    /// Those before the key.
    fn sorting(&self) -> &[(&'a Column, bool)] {
        &self.columns[..self.columns.len() - 1]
    }

    /// ` ORDER BY …`: what is absent comes first, as in the contract.
    fn clause(&self, table: &Table) -> String {
        let dialect = table.dialect;
        let keys: Vec<String> = self
            .columns
            .iter()
            .map(|(column, descending)| {
                // The name alone would be what is selected under it, such as the text of a time.
                let name = format!("{}.{}", table.name, quote(&column.name));
                match (dialect, column.kind, descending) {
                    (Dialect::Sqlite, _, false) => compared(dialect, column),
                    (Dialect::Sqlite, _, true) => format!("{} DESC", compared(dialect, column)),
                    (Dialect::Postgres, Kind::Key, false) => name,
                    (Dialect::Postgres, Kind::Key, true) => format!("{name} DESC"),
                    (Dialect::Postgres, _, false) => format!("{name} NULLS FIRST"),
                    (Dialect::Postgres, _, true) => format!("{name} DESC NULLS LAST"),
                }
            })
            .collect();
        format!(" ORDER BY {}", keys.join(", "))
    }

    /// Conditions on odd rows, and whether the index of rows with [`EXACT`] finds them.
    fn odd(&self, table: &Table) -> Vec<(String, bool)> {
        let mut odd = Vec::new();
        for (column, _) in self.sorting() {
            let name = quote(&column.name);
            odd.push((format!("{} AND {}", is_exact(), is_mentioned(table, &quote(EXACT), &column.name)), true));
            odd.push((format!("{name} IS NULL AND {}", is_beside(table, &column.name)), false));
            odd.extend(plan::sorts_oddly(table, column).map(|condition| (condition, false)));
        }
        odd
    }

    /// Conditions on the others.
    fn plain(&self, table: &Table) -> Vec<String> {
        let mut plain = Vec::new();
        for (column, _) in self.sorting() {
            let name = quote(&column.name);
            let (extra, exact) = (quote(EXTRA), quote(EXACT));
            plain.push(format!("({exact} IS NULL OR NOT {})", is_mentioned(table, &exact, &column.name)));
            let held = match plan::sorts_oddly(table, column) {
                Some(odd) => format!("{name} IS NOT NULL AND NOT {odd}"),
                None => format!("{name} IS NOT NULL"),
            };
            plain.push(format!(
                "({held} OR {name} IS NULL AND ({extra} IS NULL OR NOT {}))",
                is_beside(table, &column.name)
            ));
        }
        plain
    }

    /// What the row is sorted by.
    fn values(&self, members: &Map<String, Value>) -> Vec<Option<Value>> {
        self.columns.iter().map(|(column, _)| members.get(&column.name).cloned()).collect()
    }

    fn compare(&self, a: (&str, &[Option<Value>]), b: (&str, &[Option<Value>])) -> Ordering {
        order::compare_keys(&self.paths, a, b)
    }
}

/// The column as it is compared, in whatever order it was declared with by others.
fn compared(dialect: Dialect, column: &Column) -> String {
    match dialect {
        Dialect::Sqlite if column.is_text() => format!("{} COLLATE BINARY", quote(&column.name)),
        _ => quote(&column.name),
    }
}

/// Where a sorted answer stands.
#[derive(Default, Clone)]
struct Place {
    /// The values of the last row that the database sorted, `null` where there is none, and its key.
    plain: Option<Vec<Value>>,
    /// What the last row is sorted by, where that is an odd one, and its key.
    odd: Option<(Vec<Option<Value>>, String)>,
}

impl Place {
    fn read(text: &[u8]) -> Option<Place> {
        // A value of an odd row stands two levels deeper here than in its entity.
        let mut parts = larder_model::json::parse_wrapping(text, 2).ok()?;
        let plain = match parts.shift_remove("plain")? {
            Value::Array(values) => Some(values),
            _ => None,
        };
        let odd = match parts.shift_remove("odd")? {
            Value::Array(mut values) => {
                let Value::String(id) = values.pop()? else { return None };
                // Each in a list, which is empty where the member is absent.
                let one = |value: Value| match value {
                    Value::Array(mut one) => one.pop(),
                    _ => None,
                };
                Some((values.into_iter().map(one).collect(), id))
            }
            _ => None,
        };
        Some(Place { plain, odd })
    }

    fn write(&self) -> Vec<u8> {
        let odd = self.odd.as_ref().map(|(values, id)| {
            let mut values: Vec<Value> =
                values.iter().map(|value| Value::Array(value.iter().cloned().collect())).collect();
            values.push(Value::String(id.clone()));
            values
        });
        json!({"plain": self.plain, "odd": odd}).to_string().into_bytes()
    }
}

/// A row that is read and not yet answered.
struct Row {
    entity: Entity,
    key: Vec<Option<Value>>,
    /// What the database sorted it by; none for an odd one.
    plain: Option<Vec<Value>>,
    /// It does not meet the filter, as far as that can be told only here.
    is_dropped: bool,
}

struct Search<'a> {
    table: &'a Table,
    database: &'a dyn Database,
    query: &'a Query,
    plan: Plan<'a>,
    index: Option<&'a TableIndex>,
    bound_to: [u8; 8],
    indexes_used: &'a mut IndexesUsed,
}

impl Search<'_> {
    fn select(&self) -> Statement {
        let table = self.table;
        let mut statement = table.statement(format!("SELECT {} FROM {}", table.select, table.name));
        if let (Some(index), Dialect::Sqlite) = (self.index, table.dialect) {
            statement.text(&format!(" INDEXED BY {}", quote(&index.name)));
        }
        statement
    }

    fn rows_max(&self) -> u32 {
        self.query.limit.clamp(1, PAGE_ROWS_MAX)
    }

    /// Whether the row meets what was pushed down, where only the entity tells. An odd row is one whose columns do not.
    fn meets(&self, row: &[SqlValue], members: &mut Option<Map<String, Value>>, entity: &Entity) -> Result<bool> {
        let plan = &self.plan;
        let is_odd = row.last() != Some(&SqlValue::Null) || !plan.odd.is_empty() && self.has_odd_time(row);
        let parts = plan.always_again.iter().chain(plan.again.iter().filter(|_| is_odd));
        for part in parts {
            let members = match members {
                Some(members) => members,
                None => members.insert(row::members(self.table, entity)?),
            };
            if !part.matches(members) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_odd_time(&self, row: &[SqlValue]) -> bool {
        self.table.columns.iter().zip(row).any(|(column, cell)| {
            let cell = types::fetched(self.table.dialect, column.kind, cell);
            matches!((column.kind, &*cell), (Kind::Field(FieldType::Timestamp), SqlValue::Text(text))
                if types::timestamp(text).is_none())
        })
    }

    /// The next page in the order of the key, which is any order unless the key was asked for.
    fn by_key(&mut self, after: Option<&str>) -> Result<Page> {
        let (table, query) = (self.table, self.query);
        let first = query.order_by.first().filter(|first| first.field.single() == Some(&table.collection.key));
        let descending = first.is_some_and(|first| first.descending);
        let mut statement = self.select();
        let word = self.plan.conditions(&mut statement);
        if let Some(last) = after {
            let operator = if descending { " < " } else { " > " };
            statement.text(word).text(&table.key).text(operator).param(SqlValue::Text(last.to_owned()));
        }
        let rows_max = self.rows_max();
        statement.text(&format!(" ORDER BY {}{}", table.key, if descending { " DESC" } else { "" }));
        // One more, to know whether this is the end.
        statement.text(" LIMIT ").param(SqlValue::Integer(i64::from(rows_max) + 1));

        let index_used = self.index_used(&statement)?;
        let rows = statement.run(self.database, query.max_bytes.clamp(1, REPLY_BYTES_MAX))?;
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
            if self.meets(row, &mut None, &entity)? {
                entities.push(entity);
            }
        }
        let next = match last {
            Some(SqlValue::Text(last)) if is_cut || rows.more => {
                Some([&self.bound_to, &[BY_KEY][..], last.as_bytes()].concat())
            }
            _ => None,
        };
        let sorted = query.order_by.is_empty() || first.is_some();
        Ok(Page {
            entities,
            next,
            unapplied: self.plan.unapplied.clone(),
            sorted,
            index_used,
            notes: Vec::new(),
            cost: None,
        })
    }

    /// The next page in this order; none where the host has to sort.
    fn sorted(&mut self, order: &Order, place: Option<Place>) -> Result<Option<Page>> {
        let rows_max = self.rows_max() as usize;
        let is_first = place.is_none();
        let place = place.unwrap_or_default();
        let behind = match (&place.odd, &place.plain) {
            (Some((values, id)), _) => Some((values.clone(), id.clone())),
            (None, Some(plain)) => {
                let id = plain.last().and_then(Value::as_str).ok_or_else(foreign_cursor)?.to_owned();
                Some((plain.iter().map(|value| (!value.is_null()).then(|| value.clone())).collect(), id))
            }
            (None, None) => None,
        };
        if behind.as_ref().is_some_and(|(values, _)| values.len() != order.columns.len()) {
            return Err(foreign_cursor());
        }
        let Some((mut odd, odd_is_cut)) = self.odd_rows(order, behind.as_ref(), is_first, rows_max)? else {
            return Ok(None);
        };
        let (plain, plain_is_cut, index_used) = self.plain_rows(order, place.plain.as_deref(), rows_max)?;

        let mut page = Vec::new();
        let mut place = place;
        let (mut bytes, mut taken) = (0, 0);
        let max_bytes = self.query.max_bytes.max(1) as usize;
        let mut plain = plain.into_iter().peekable();
        // Written meanwhile, and sorted before the odd row that the last page ended with.
        if let Some((values, id)) = place.odd.clone() {
            let is_passed = |row: &Row| order.compare((&row.entity.id, &row.key), (&id, &values)).is_le();
            while let Some(row) = plain.next_if(is_passed) {
                place.plain = row.plain;
            }
        }
        let mut is_full = false;
        loop {
            let next_odd = odd.last();
            let from_odd = match (plain.peek(), next_odd) {
                (None, None) => break,
                // What the database has behind its last row may come before this one.
                (None, Some(_)) if plain_is_cut => {
                    is_full = true;
                    break;
                }
                (None, Some(_)) => true,
                (Some(_), None) if odd_is_cut => {
                    is_full = true;
                    break;
                }
                (Some(_), None) => false,
                (Some(plain), Some(odd)) => {
                    order.compare((&odd.entity.id, &odd.key), (&plain.entity.id, &plain.key)).is_lt()
                }
            };
            if taken == rows_max || bytes >= max_bytes {
                is_full = true;
                break;
            }
            let row = if from_odd { odd.pop() } else { plain.next() };
            let Some(row) = row else { break };
            taken += 1;
            match row.plain {
                Some(values) => place = Place { plain: Some(values), odd: None },
                None => place.odd = Some((row.key, row.entity.id.clone())),
            }
            if !row.is_dropped {
                bytes += row.entity.body.len();
                page.push(row.entity);
            }
        }
        let is_more = is_full || plain_is_cut || odd_is_cut;
        let next = is_more.then(|| [&self.bound_to, &[BY_ORDER][..], &place.write()].concat());
        Ok(Some(Page {
            entities: page,
            next,
            unapplied: self.plan.unapplied.clone(),
            sorted: true,
            index_used,
            notes: Vec::new(),
            cost: None,
        }))
    }

    /// The first odd rows behind a place, last first, and whether there are more. None where they are too many to begin with.
    fn odd_rows(
        &self,
        order: &Order,
        behind: Option<&(Vec<Option<Value>>, String)>,
        is_first: bool,
        rows_max: usize,
    ) -> Result<Option<(Vec<Row>, bool)>> {
        let table = self.table;
        let mut found: HashMap<String, Row> = HashMap::new();
        let mut is_cut = false;
        let mut after: Option<String> = None;
        loop {
            // SQLite would rather take the index of a column that is compared, however many rows that finds.
            let is_hinted = table.dialect == Dialect::Sqlite;
            let statement = self.odd_statement(order, after.as_deref(), is_hinted);
            let rows = match statement.run(self.database, REPLY_BYTES_MAX) {
                // Somebody may have dropped it.
                Err(error) if error.kind == ErrorKind::InvalidArgument && is_hinted => {
                    self.odd_statement(order, after.as_deref(), false).run(self.database, REPLY_BYTES_MAX)?
                }
                rows => rows?,
            };
            let count = rows.cells.len() / table.width();
            if is_first && (rows.more || count > ODD_ROWS_MAX) {
                return Ok(None);
            }
            for cells in rows.cells.chunks(table.width()) {
                let entity = row::entity(table, cells)?;
                let members = row::members(table, &entity)?;
                let key = order.values(&members);
                after = Some(entity.id.clone());
                let is_behind =
                    behind.is_none_or(|(values, id)| order.compare((&entity.id, &key), (id, values)).is_gt());
                let is_met = is_behind && self.meets(cells, &mut Some(members), &entity)?;
                if is_met {
                    let row = Row { key, plain: None, is_dropped: false, entity };
                    found.insert(row.entity.id.clone(), row);
                }
            }
            if found.len() > 2 * rows_max.max(ODD_ROWS_MAX) {
                let mut rows: Vec<Row> = std::mem::take(&mut found).into_values().collect();
                rows.sort_by(|a, b| order.compare((&a.entity.id, &a.key), (&b.entity.id, &b.key)));
                rows.truncate(rows_max);
                is_cut = true;
                found = rows.into_iter().map(|row| (row.entity.id.clone(), row)).collect();
            }
            if !rows.more && count <= ODD_ROWS_MAX {
                break;
            }
        }
        let mut rows: Vec<Row> = found.into_values().collect();
        rows.sort_by(|a, b| order.compare((&b.entity.id, &b.key), (&a.entity.id, &a.key)));
        if rows.len() > rows_max {
            is_cut = true;
            rows.drain(..rows.len() - rows_max);
        }
        Ok(Some((rows, is_cut)))
    }

    fn odd_statement(&self, order: &Order, after: Option<&str>, is_hinted: bool) -> Statement {
        let table = self.table;
        let mut statement = table.statement("");
        for (i, (condition, is_of_exact)) in order.odd(table).into_iter().enumerate() {
            if i > 0 {
                statement.text(" UNION ALL ");
            }
            statement.text(&format!("SELECT {} FROM {}", table.select, table.name));
            if is_hinted && is_of_exact {
                statement.text(&format!(" INDEXED BY {}", quote(&table.exact_index.name)));
            }
            let word = self.plan.conditions(&mut statement);
            statement.text(word).text(&condition);
            if let Some(after) = after {
                statement.text(&format!(" AND {} > ", table.key)).param(SqlValue::Text(after.to_owned()));
            }
        }
        statement.text(&format!(" ORDER BY {} LIMIT {}", table.key, ODD_ROWS_MAX + 1));
        statement
    }

    /// The first rows behind a place in the order of the database, whether there are more, and which index served.
    fn plain_rows(
        &mut self,
        order: &Order,
        place: Option<&[Value]>,
        rows_max: usize,
    ) -> Result<(Vec<Row>, bool, Option<String>)> {
        let table = self.table;
        let mut found = Vec::new();
        let mut used = None;
        let phases = order.phases(table.dialect, place);
        let last_phase = phases.len() - 1;
        for (i, after) in phases.into_iter().enumerate() {
            let mut statement = self.select();
            let mut word = self.plan.conditions(&mut statement);
            for condition in order.plain(table) {
                statement.text(word).text(&condition);
                word = " AND ";
            }
            if let Some(after) = after {
                statement.text(word);
                after.write(&mut statement);
            }
            statement.text(&order.clause(table));
            // One more, to know whether this is the end.
            let wanted = rows_max - found.len();
            statement.text(" LIMIT ").param(SqlValue::Integer(wanted as i64 + 1));
            if i == 0 {
                used = self.index_used(&statement)?;
            }
            let rows = statement.run(self.database, self.query.max_bytes.clamp(1, REPLY_BYTES_MAX))?;
            let count = rows.cells.len() / table.width();
            for cells in rows.cells.chunks(table.width()).take(wanted) {
                let entity = row::entity(table, cells)?;
                let mut values = Vec::with_capacity(order.columns.len());
                for (column, _) in &order.columns {
                    let position = table.position(&column.name).unwrap_or(0);
                    let cell = types::fetched(table.dialect, column.kind, &cells[position]);
                    values.push(types::read(column.kind, &cell).unwrap_or(Value::Null));
                }
                let key = values.iter().map(|value| (!value.is_null()).then(|| value.clone())).collect();
                let is_dropped = !self.meets(cells, &mut None, &entity)?;
                found.push(Row { entity, key, plain: Some(values), is_dropped });
            }
            if rows.more || count > wanted {
                return Ok((found, true, used));
            }
            if i < last_phase && found.len() == rows_max {
                return Ok((found, true, used));
            }
        }
        Ok((found, false, used))
    }

    /// Which index the database takes for a statement, by its declared name. It is asked now and then: what it takes
    /// changes as the table grows.
    fn index_used(&mut self, statement: &Statement) -> Result<Option<String>> {
        let (table, database, index) = (self.table, self.database, self.index);
        let known = &mut self.indexes_used.0;
        if let Some(used) = known.get_mut(&statement.text) {
            used.asked += 1;
            if table.dialect == Dialect::Sqlite || !used.asked.is_power_of_two() {
                return Ok(used.index.clone());
            }
        }
        let used = explain(table, database, statement).map_err(|error| match index {
            Some(index) if error.kind == ErrorKind::InvalidArgument => Error::invalid(format!(
                "the index `{}` of `{}` cannot serve this query, or is not made yet: {error}",
                index.declared, table.collection.name
            )),
            _ => error,
        })?;
        // A database that takes another one does not take it from the query.
        let used = used.filter(|used| index.is_none_or(|index| index.declared == *used));
        if known.len() >= INDEXES_KNOWN_MAX {
            known.clear();
        }
        let entry = known.entry(statement.text.clone()).or_insert(Used { index: None, asked: 1 });
        entry.index = used.clone();
        Ok(used)
    }
}

/// A condition that a row stands behind a place, by columns that the database sorts by.
struct After<'a> {
    dialect: Dialect,
    columns: Vec<(&'a Column, bool)>,
    values: Vec<Value>,
    /// What holds for all of them beside, so that an index finds where to begin.
    bound: Option<String>,
    is_bounded_by_value: bool,
}

impl Order<'_> {
    /// The conditions under which rows are read, one after the other, to come behind a place. What has no value comes
    /// last in a descending order; asked for in one statement, an index could not find where to begin.
    fn phases(&self, dialect: Dialect, place: Option<&[Value]>) -> Vec<Option<After<'_>>> {
        let Some(values) = place else { return vec![None] };
        let (first, descending) = self.columns[0];
        let name = quote(&first.name);
        let after = |bound: Option<String>, is_bounded_by_value| {
            Some(After { dialect, columns: self.columns.clone(), values: values.to_vec(), bound, is_bounded_by_value })
        };
        match (values[0].is_null(), descending) {
            (false, false) => vec![after(None, true)],
            (true, false) => vec![after(None, false)],
            (true, true) => vec![after(Some(format!("{name} IS NULL")), false)],
            (false, true) if first.kind == Kind::Key || first.not_null => vec![after(None, true)],
            (false, true) => vec![
                after(None, true),
                // All of them.
                Some(After {
                    dialect,
                    columns: Vec::new(),
                    values: Vec::new(),
                    bound: Some(format!("{name} IS NULL")),
                    is_bounded_by_value: false,
                }),
            ],
        }
    }
}

impl After<'_> {
    fn write(&self, statement: &mut Statement) {
        let mut word = "";
        if let Some(bound) = &self.bound {
            statement.text(bound);
            word = " AND ";
        }
        if self.is_bounded_by_value {
            let (column, descending) = self.columns[0];
            statement.text(word);
            self.compare(column, if descending { " <= " } else { " >= " }, &self.values[0], statement);
            word = " AND ";
        }
        if self.columns.is_empty() {
            return;
        }
        statement.text(word).text("(");
        let mut is_first = true;
        for i in 0..self.columns.len() {
            let (column, descending) = self.columns[i];
            let value = &self.values[i];
            // Nothing comes behind what has no value where the largest comes first.
            if value.is_null() && descending {
                continue;
            }
            statement.text(if is_first { "(" } else { " OR (" });
            is_first = false;
            for (before, value) in self.columns[..i].iter().zip(&self.values) {
                match value.is_null() {
                    true => {
                        statement.text(&format!("{} IS NULL", quote(&before.0.name)));
                    }
                    false => self.compare(before.0, " = ", value, statement),
                }
                statement.text(" AND ");
            }
            match (value.is_null(), descending) {
                (true, _) => {
                    statement.text(&format!("{} IS NOT NULL", quote(&column.name)));
                }
                (false, false) => self.compare(column, " > ", value, statement),
                (false, true) => {
                    statement.text("(");
                    self.compare(column, " < ", value, statement);
                    // Of the first column those come by themselves.
                    match i == 0 || column.kind == Kind::Key {
                        true => statement.text(")"),
                        false => statement.text(&format!(" OR {} IS NULL)", quote(&column.name))),
                    };
                }
            }
            statement.text(")");
        }
        if is_first {
            statement.text("0 = 1");
        }
        statement.text(")");
    }

    fn compare(&self, column: &Column, operator: &str, value: &Value, statement: &mut Statement) {
        statement.text(&compared(self.dialect, column)).text(operator);
        statement.param(types::unread(self.dialect, column.kind, value));
        statement.text(types::compared_cast(self.dialect, column.kind));
    }
}

/// Which index the database takes for a statement, by its declared name.
fn explain(table: &Table, database: &dyn Database, statement: &Statement) -> Result<Option<String>> {
    match table.dialect {
        Dialect::Sqlite => explain_sqlite(table, database, statement),
        Dialect::Postgres => explain_postgres(table, database, statement),
    }
}

fn explain_sqlite(table: &Table, database: &dyn Database, statement: &Statement) -> Result<Option<String>> {
    let text = format!("EXPLAIN QUERY PLAN {}", statement.text);
    let rows = database.query(&text, statement.params.clone(), REPLY_BYTES_MAX)?;
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

fn explain_postgres(table: &Table, database: &dyn Database, statement: &Statement) -> Result<Option<String>> {
    let text = format!("EXPLAIN (FORMAT JSON) {}", statement.text);
    let rows = database.query(&text, statement.params.clone(), REPLY_BYTES_MAX)?;
    let plan = match rows.cells.first() {
        Some(SqlValue::Json(text) | SqlValue::Text(text)) => serde_json::from_str(text).unwrap_or_default(),
        _ => Value::Null,
    };
    let mut names = Vec::new();
    collect_indexes(&plan, &mut names);
    let declared = |name: &&str| table.indexes.iter().find(|index| index.name == **name);
    if let Some(index) = names.iter().find_map(declared) {
        return Ok(Some(index.declared.clone()));
    }
    // The only other one that we make is that of the key.
    let is_of_key = |name: &&&str| ***name != table.exact_index.name;
    Ok(names.iter().find(is_of_key).map(|_| table.collection.key.clone()))
}

fn collect_indexes<'a>(plan: &'a Value, names: &mut Vec<&'a str>) {
    match plan {
        Value::Array(parts) => parts.iter().for_each(|part| collect_indexes(part, names)),
        Value::Object(members) => {
            names.extend(members.get("Index Name").and_then(Value::as_str));
            members.values().for_each(|part| collect_indexes(part, names));
        }
        _ => {}
    }
}
