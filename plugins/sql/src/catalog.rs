//! What the database has: its tables, and in what they differ from what a collection asks for. SQLite's catalog; another
//! dialect's goes beside it.

use larder_guest::{Rows, SqlValue};
use larder_model::{Error, ErrorKind, Result};

use crate::schema::{EXACT, EXTRA, Kind, Table};

/// Runs a statement: by itself, or inside a transaction.
pub(crate) type Run<'a> = &'a dyn Fn(&str, Vec<SqlValue>, u32) -> Result<Rows>;

/// The largest reply that is asked for at once.
pub(crate) const REPLY_BYTES_MAX: u32 = 8 << 20;

/// How much a difference matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The table cannot be used.
    Fatal,
    /// It can, but is not what the definition says.
    Differs,
    /// It is what another setting of `constraints` makes.
    Constraints,
    /// It is more than the definition says.
    Extra,
}

/// One difference between a table and its collection.
#[derive(Debug, Clone)]
pub(crate) struct Difference {
    pub(crate) level: Level,
    pub(crate) message: String,
}

/// What is stored under a table's name.
pub(crate) enum Found {
    Missing,
    Table(Vec<Difference>),
}

fn text(cell: Option<SqlValue>) -> String {
    match cell {
        Some(SqlValue::Text(text)) => text,
        _ => String::new(),
    }
}

fn is_true(cell: Option<SqlValue>) -> bool {
    !matches!(cell, None | Some(SqlValue::Null | SqlValue::Integer(0)))
}

/// The answer row by row. A catalog is never cut off.
fn rows_of(rows: Rows) -> Result<Vec<std::vec::IntoIter<SqlValue>>> {
    if rows.more {
        return Err(Error::new(ErrorKind::LimitExceeded, "the database has too many tables or columns to list"));
    }
    let width = rows.columns.len().max(1);
    let mut cells = rows.cells.into_iter();
    let count = cells.len() / width;
    Ok((0..count).map(|_| cells.by_ref().take(width).collect::<Vec<_>>().into_iter()).collect())
}

fn list(run: Run, statement: &str, name: &str) -> Result<Vec<std::vec::IntoIter<SqlValue>>> {
    let params = if name.is_empty() { Vec::new() } else { vec![SqlValue::Text(name.to_owned())] };
    rows_of(run(statement, params, REPLY_BYTES_MAX)?)
}

/// Names of all tables but the database's own.
pub(crate) fn tables(run: Run) -> Result<Vec<String>> {
    let statement =
        "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_' ORDER BY 1";
    Ok(list(run, statement, "")?.into_iter().map(|mut row| text(row.next())).collect())
}

/// Names of the table's indexes.
pub(crate) fn indexes(run: Run, table: &Table) -> Result<Vec<String>> {
    let rows = list(run, "SELECT name FROM pragma_index_list(?)", &table.collection.name)?;
    Ok(rows.into_iter().map(|mut row| text(row.next())).collect())
}

/// The version of the database, for people.
pub(crate) fn version(run: Run) -> Result<String> {
    let rows = list(run, "SELECT 'SQLite ' || sqlite_version()", "")?;
    Ok(rows.into_iter().next().map_or_else(String::new, |mut row| text(row.next())))
}

/// Looks at what is stored under the table's name.
pub(crate) fn find(run: Run, table: &Table) -> Result<Found> {
    let name = &table.collection.name;
    let statement = "SELECT m.type, m.name, m.sql, e.encoding FROM sqlite_master AS m, pragma_encoding AS e \
                     WHERE m.name = ? COLLATE NOCASE AND m.type IN ('table', 'view')";
    let Some(mut row) = list(run, statement, name)?.into_iter().next() else { return Ok(Found::Missing) };
    let (kind, stored_name, ddl, encoding) = (text(row.next()), text(row.next()), text(row.next()), text(row.next()));
    if encoding != "UTF-8" {
        // It orders texts by other units than the contract does.
        let message = format!("the database keeps its texts in {encoding}, not in UTF-8");
        return Ok(Found::Table(vec![Difference { level: Level::Fatal, message }]));
    }
    if ddl == table.ddl {
        return Ok(Found::Table(Vec::new()));
    }
    let mut differences = Vec::new();
    let mut differs = |level, message| differences.push(Difference { level, message });
    if kind != "table" {
        differs(Level::Fatal, format!("`{name}` is a {kind}, not a table"));
    }
    if stored_name != *name {
        differs(Level::Fatal, format!("the table is called `{stored_name}`"));
    }
    let ours = table.columns.iter().map(|column| (column.name.as_str(), column.sql_type.as_str(), Some(column)));
    let ours: Vec<_> = ours.chain([(EXTRA, "TEXT", None), (EXACT, "TEXT", None)]).collect();
    let mut stored = Vec::new();
    let statement = "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?)";
    for mut row in list(run, statement, name)? {
        let (column, sql_type) = (text(row.next()), text(row.next()));
        let [not_null, default, is_key, hidden] = [(); 4].map(|()| is_true(row.next()));
        let Some((_, expected, ours)) = ours.iter().find(|(name, ..)| *name == column) else {
            match not_null && !default && !hidden {
                true => differs(Level::Fatal, format!("`{column}` is required, and no field of the collection")),
                false => differs(Level::Extra, format!("`{column}` is no field of the collection, and left alone")),
            }
            continue;
        };
        if hidden {
            differs(Level::Fatal, format!("`{column}` is computed by the database"));
        }
        if affinity(&sql_type) != affinity(expected) {
            differs(Level::Fatal, format!("`{column}` is {sql_type}, not {expected}"));
        } else if !sql_type.eq_ignore_ascii_case(expected) {
            differs(Level::Differs, format!("`{column}` is {sql_type}, not {expected}"));
        }
        let is_our_key = ours.is_some_and(|column| column.kind == Kind::Key);
        if is_key != is_our_key {
            differs(Level::Fatal, format!("`{column}` is {}the primary key", if is_key { "" } else { "not " }));
        }
        if not_null != ours.is_some_and(|column| column.not_null) && !is_our_key {
            differs(Level::Constraints, format!("`{column}` is {}NOT NULL", if not_null { "" } else { "not " }));
        }
        stored.push(column);
    }
    for (name, expected, _) in &ours {
        if !stored.iter().any(|stored| stored == name) {
            differs(Level::Fatal, format!("`{name}` {expected} is missing"));
        }
    }
    let statement = "SELECT x.coll FROM pragma_index_list(?) AS l, pragma_index_xinfo(l.name) AS x \
                     WHERE l.origin = 'pk' AND x.key = 1";
    for mut row in list(run, statement, name)? {
        let collation = text(row.next());
        if collation != "BINARY" {
            differs(Level::Fatal, format!("`{}` is compared by {collation}, not exactly", table.collection.key));
        }
    }
    let statement = "SELECT \"from\", \"table\" FROM pragma_foreign_key_list(?)";
    let foreign: Vec<(String, String)> =
        list(run, statement, name)?.into_iter().map(|mut row| (text(row.next()), text(row.next()))).collect();
    for reference in table.references.iter().filter(|reference| !foreign.contains(reference)) {
        differs(Level::Constraints, format!("`{}` does not refer to `{}`", reference.0, reference.1));
    }
    for reference in foreign.iter().filter(|reference| !table.references.contains(reference)) {
        differs(Level::Constraints, format!("`{}` refers to `{}`", reference.0, reference.1));
    }
    Ok(Found::Table(differences))
}

/// SQLite's rules for what a declared type does to a value.
fn affinity(sql_type: &str) -> &'static str {
    let sql_type = sql_type.to_ascii_uppercase();
    let has = |part: &str| sql_type.contains(part);
    match () {
        () if has("INT") => "integer",
        () if has("CHAR") || has("CLOB") || has("TEXT") => "text",
        () if has("BLOB") || sql_type.is_empty() => "blob",
        () if has("REAL") || has("FLOA") || has("DOUB") => "real",
        () => "numeric",
    }
}

/// The differences of these levels as one error, none where there are none.
pub(crate) fn reject(table: &Table, differences: &[Difference], levels: &[Level]) -> Result<()> {
    let messages: Vec<&str> = differences
        .iter()
        .filter(|difference| levels.contains(&difference.level))
        .map(|difference| difference.message.as_str())
        .collect();
    if messages.is_empty() {
        return Ok(());
    }
    let is_setting = |difference: &Difference| difference.level == Level::Constraints;
    let advice = match differences.iter().any(is_setting) {
        true => "set `constraints` to what the table was made with (`strict` or `relaxed`), change the table",
        false => "change one of them",
    };
    Err(Error::new(
        ErrorKind::Rejected,
        format!(
            "the table of `{}` is not what its definition asks for, and is never altered: {}; {advice}, or give the store \
             another database",
            table.collection.name,
            messages.join(", ")
        ),
    ))
}
