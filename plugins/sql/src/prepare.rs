//! Tables and indexes come to be: with the first write, or when somebody asks for it. What is there is never altered
//! unasked, and what is stored stays as it is.

use larder_guest::{Dialect, SqlValue};
use larder_model::{Error, ErrorKind, Result};

use crate::{
    catalog::{self, Difference, Found, Level, Seen},
    database::{Database, REPLY_BYTES_MAX, integer, quote},
    ledger,
    plan::{is_beside, is_mentioned},
    row,
    schema::{EXACT, Table, TableIndex},
    types::Column,
};

/// Rows whose members are moved with one statement.
const MOVED_ROWS_MAX: usize = 500;

/// Makes every table that is missing, with its indexes.
pub(crate) fn make(database: &dyn Database, tables: &[Table]) -> Result<()> {
    let dialect = tables.first().map_or(Dialect::Sqlite, |table| table.dialect);
    if !catalog::has_ledger(database, dialect)? {
        define(database, &ledger::ddl(dialect))?;
    }
    for table in tables {
        if let Found::Missing = catalog::find(database, table)? {
            let is_ours = define(database, &table.ddl)?;
            for index in table.all_indexes() {
                define(database, &index.ddl)?;
            }
            // Who made it remembers it.
            if is_ours {
                ledger::write(database, table, &names(table, |_| true), &[])?;
            }
        }
    }
    Ok(())
}

/// Runs DDL that makes a table or an index; false where somebody else made it meanwhile. Of two who make a table of
/// PostgreSQL at once, one fails at some row of the catalog, whatever they say of its being there.
fn define(database: &dyn Database, ddl: &str) -> Result<bool> {
    const ATTEMPTS_MAX: usize = 3;
    let error = match database.attempt(ddl, Vec::new(), 0) {
        Ok(_) => return Ok(true),
        Err(error) => error,
    };
    if !is_made_already(&error) {
        return Err(error);
    }
    let mut error = error;
    let ddl = ddl.replacen("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ", 1);
    let ddl = ddl.replacen("CREATE INDEX ", "CREATE INDEX IF NOT EXISTS ", 1);
    for _ in 0..ATTEMPTS_MAX {
        match database.attempt(&ddl, Vec::new(), 0) {
            Ok(_) => return Ok(false),
            Err(again) if is_made_already(&again) => error = again,
            Err(again) => return Err(again),
        }
    }
    Err(error)
}

fn is_made_already(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::AlreadyExists | ErrorKind::InvalidArgument | ErrorKind::Rejected)
}

fn names(table: &Table, wanted: impl Fn(&Column) -> bool) -> Vec<&str> {
    table.columns.iter().filter(|column| wanted(column)).map(|column| column.name.as_str()).collect()
}

/// What is made of what is missing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Nothing, but told.
    pub(crate) dry_run: bool,
    /// Columns of tables that are there too.
    pub(crate) extend: bool,
    /// Declared indexes too. They are made faster of many rows at once than row by row.
    pub(crate) indexes: bool,
}

/// Makes what is missing and says what it did, or would do.
pub(crate) fn prepare(database: &dyn Database, tables: &[Table], extent: Extent) -> Result<Vec<String>> {
    let Extent { dry_run, extend, indexes } = extent;
    let mut lines = Vec::new();
    let mut run = |line: String| {
        if !dry_run {
            define(database, &line)?;
        }
        lines.push(line);
        Ok::<(), Error>(())
    };
    let Some(first) = tables.first() else { return Ok(lines) };
    let mut seen = Vec::with_capacity(tables.len());
    for table in tables {
        seen.push(match catalog::find(database, table)? {
            Found::Missing => None,
            Found::Table(found) => {
                let late = ledger_late(database, table, &found)?;
                let is_late = |column: &str| late.iter().any(|late| late == column);
                let is_expected = |difference: &Difference| match difference.level {
                    // A column that was added to rows takes no NOT NULL.
                    Level::Constraints => is_late(&difference.column),
                    Level::Missing => extend,
                    _ => false,
                };
                let counted: Vec<Difference> =
                    found.differences.iter().filter(|difference| !is_expected(difference)).cloned().collect();
                let levels = [Level::Fatal, Level::Missing, Level::Differs, Level::Constraints];
                catalog::reject(table, &counted, &levels)?;
                Some((found, late))
            }
        });
    }
    let is_known =
        |found: &Option<(Seen, Vec<String>)>| found.as_ref().is_some_and(|(found, _)| found.version == ledger::VERSION);
    if !seen.iter().all(is_known) && !catalog::has_ledger(database, first.dialect)? {
        run(ledger::ddl(first.dialect))?;
    }
    let is_wanted = |index: &TableIndex| indexes || index.declared.is_empty();
    let mut moves = Vec::new();
    for (table, found) in tables.iter().zip(&seen) {
        let Some((found, late)) = found else {
            run(table.ddl.clone())?;
            for index in table.all_indexes().filter(|index| is_wanted(index)) {
                run(index.ddl.clone())?;
            }
            if !dry_run {
                ledger::write(database, table, &names(table, |_| true), &[])?;
            }
            continue;
        };
        let is_missing = |name: &str| {
            found.differences.iter().any(|difference| difference.level == Level::Missing && difference.column == name)
        };
        for column in table.columns.iter().filter(|column| is_missing(&column.name)) {
            run(added(database, table, column)?)?;
        }
        for own in table.own_columns_ddl().into_iter().filter(|(name, _)| is_missing(name)) {
            run(format!("ALTER TABLE {} ADD COLUMN {}", table.name, own.1))?;
        }
        let existing = catalog::indexes(database, table)?;
        for index in table.all_indexes().filter(|index| is_wanted(index) && !existing.contains(&index.name)) {
            run(index.ddl.clone())?;
        }
        moves.push((table, found, late));
    }
    for (table, found, late) in moves {
        lines.extend(complete(database, table, found, late, dry_run, extend)?);
    }
    Ok(lines)
}

fn ledger_late(database: &dyn Database, table: &Table, found: &Seen) -> Result<Vec<String>> {
    match found.version {
        0 => Ok(Vec::new()),
        _ => Ok(ledger::read(database, table)?.map(|entry| entry.added.into_iter().collect()).unwrap_or_default()),
    }
}

/// The DDL that adds a column. Rows that are there have nothing in it, so it can be NULL.
fn added(database: &dyn Database, table: &Table, column: &Column) -> Result<String> {
    // SQLite adds no column that is NOT NULL, not even to an empty table.
    let not_null = column.not_null && table.dialect == Dialect::Postgres && {
        let any = database.query(&format!("SELECT 1 FROM {} LIMIT 1", table.name), Vec::new(), 64)?;
        any.cells.is_empty()
    };
    let mut ddl = format!("ALTER TABLE {} ADD COLUMN {}", table.name, table.column_ddl(column));
    if not_null {
        ddl.push_str(" NOT NULL");
    }
    if let Some(target) = table.reference_ddl(&column.name) {
        ddl.push_str(&format!(" {target}"));
    }
    Ok(ddl)
}

/// Moves members into columns that were made after them, and remembers which columns can be asked.
fn complete(
    database: &dyn Database,
    table: &Table,
    found: &Seen,
    late: &[String],
    dry_run: bool,
    extend: bool,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let open: Vec<&Column> = table.columns.iter().filter(|column| !found.complete.contains(&column.name)).collect();
    if open.is_empty() && found.version == ledger::VERSION {
        return Ok(lines);
    }
    let is_missing = |name: &str| {
        found.differences.iter().any(|difference| difference.level == Level::Missing && difference.column == name)
    };
    let has_own = |name: &str| !is_missing(name) || !dry_run;
    let mut complete: Vec<&str> = names(table, |column| found.complete.contains(&column.name));
    let mut moved: Vec<&Column> = Vec::new();
    let mut condition = Vec::new();
    for column in open {
        let mut beside = Vec::new();
        if has_own(crate::schema::EXTRA) {
            beside.push(is_beside(table, &column.name));
        }
        if has_own(EXACT) {
            beside.push(is_mentioned(table, &quote(EXACT), &column.name));
        }
        let mut here = format!("({})", if beside.is_empty() { "0 = 1".to_owned() } else { beside.join(" OR ") });
        if !(is_missing(&column.name) && dry_run) {
            here.push_str(&format!(" AND {} IS NULL", quote(&column.name)));
        }
        let rows = database.query(&format!("SELECT count(*) FROM {} WHERE {here}", table.name), Vec::new(), 64)?;
        let rows = integer(rows.cells.first())?;
        if rows > 0 && !extend {
            continue;
        }
        complete.push(&column.name);
        if rows > 0 {
            lines.push(format!("move `{}` of up to {rows} rows of {} into its column", column.name, table.name));
            moved.push(column);
            condition.push(format!("({here})"));
        }
    }
    if complete.len() > found.complete.len() && found.version != ledger::VERSION && lines.is_empty() {
        lines.push(format!("take over the table {} as it is", table.name));
    }
    if dry_run || complete.len() == found.complete.len() && found.version == ledger::VERSION {
        return Ok(lines);
    }
    if !moved.is_empty() {
        move_members(database, table, &condition.join(" OR "))?;
    }
    let mut added: Vec<&str> = late.iter().map(String::as_str).collect();
    added.extend(names(table, |column| is_missing(&column.name)));
    complete.sort_unstable();
    ledger::write(database, table, &complete, &added)?;
    Ok(lines)
}

/// Writes the rows that meet the condition anew, as they are made today.
fn move_members(database: &dyn Database, table: &Table, condition: &str) -> Result<()> {
    let (_, upsert) = table.insert(1, true);
    let mut after: Option<String> = None;
    loop {
        let mut statement = table.statement(format!("SELECT {} FROM {} WHERE ({condition})", table.select, table.name));
        if let Some(after) = &after {
            statement.text(&format!(" AND {} > ", table.key)).param(SqlValue::Text(after.clone()));
        }
        statement.text(&format!(" ORDER BY {} LIMIT {MOVED_ROWS_MAX}", table.key));
        let rows = statement.run(database, REPLY_BYTES_MAX)?;
        let Some(last) = rows.cells.chunks(table.width()).next_back() else { return Ok(()) };
        after = match &last[0] {
            SqlValue::Text(id) => Some(id.clone()),
            _ => return Ok(()),
        };
        for row in rows.cells.chunks(table.width()) {
            let entity = row::entity(table, row)?;
            let cells = row::cells(table, row::members(table, &entity)?.into());
            database.query(upsert, cells.into_iter().map(SqlValue::from).collect(), 0)?;
        }
    }
}
