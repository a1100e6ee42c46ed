//! What the database has: its tables, and in what they differ from what a collection asks for. How a database is asked is
//! in one file a dialect; what a difference means is here, for both.

mod postgres;
mod sqlite;

use std::collections::HashSet;

use larder_guest::Dialect;
use larder_model::{Error, ErrorKind, Result};

use crate::{
    database::Database,
    ledger,
    schema::{EXACT, EXTRA, Table},
    types::{self, Column, Kind},
};

/// How much a difference matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The table cannot be used.
    Fatal,
    /// A column is missing, so that the table cannot be used either; `prepare` can add it.
    Missing,
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
    /// The column that it is about.
    pub(crate) column: String,
}

/// What is stored under a table's name.
pub(crate) enum Found {
    Missing,
    Table(Seen),
}

/// A table that is there.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) differences: Vec<Difference>,
    /// Columns that can be asked, because each row has its member there. See [`ledger`].
    pub(crate) complete: HashSet<String>,
    /// Of the schema that the table was made by; 0 where larder did not make it.
    pub(crate) version: i64,
}

/// A table as its catalog describes it.
struct Described {
    /// `table`, or what it is instead.
    kind: String,
    name: String,
    /// What makes the whole database unfit.
    unfit: Option<String>,
    columns: Vec<DescribedColumn>,
    /// Field and table of each foreign key.
    references: Vec<(String, String)>,
    has_ledger: bool,
}

struct DescribedColumn {
    name: String,
    sql_type: String,
    /// Types of one family hold the same values.
    family: &'static str,
    not_null: bool,
    has_default: bool,
    is_computed: bool,
    is_key: bool,
    /// How its texts are compared, where that is not by code point.
    collation: Option<String>,
}

/// Names of all tables but the database's own and larder's.
pub(crate) fn tables(database: &dyn Database, dialect: Dialect) -> Result<Vec<String>> {
    let mut names = match dialect {
        Dialect::Sqlite => sqlite::tables(database)?,
        Dialect::Postgres => postgres::tables(database)?,
    };
    names.retain(|name| name != ledger::NAME);
    Ok(names)
}

/// Whether there is a table for what larder remembers.
pub(crate) fn has_ledger(database: &dyn Database, dialect: Dialect) -> Result<bool> {
    let names = match dialect {
        Dialect::Sqlite => sqlite::tables(database)?,
        Dialect::Postgres => postgres::tables(database)?,
    };
    Ok(names.iter().any(|name| name == ledger::NAME))
}

/// Names of the table's indexes that can be used.
pub(crate) fn indexes(database: &dyn Database, table: &Table) -> Result<Vec<String>> {
    match table.dialect {
        Dialect::Sqlite => sqlite::indexes(database, table),
        Dialect::Postgres => postgres::indexes(database, table),
    }
}

/// The version of the database, for people.
pub(crate) fn version(database: &dyn Database, dialect: Dialect) -> Result<String> {
    match dialect {
        Dialect::Sqlite => sqlite::version(database),
        Dialect::Postgres => postgres::version(database),
    }
}

/// Bytes of the table with its indexes, none where the database cannot tell.
pub(crate) fn table_size(database: &dyn Database, table: &Table) -> Result<Option<u64>> {
    match table.dialect {
        Dialect::Sqlite => Ok(None),
        Dialect::Postgres => postgres::table_size(database, table).map(Some),
    }
}

/// What keeps the user from writing to the tables, or from making those that are missing, as far as the catalog tells.
pub(crate) fn hindrances(database: &dyn Database, tables: &[Table], dialect: Dialect) -> Result<Vec<String>> {
    match dialect {
        // Its rights are those of the file, which only a write can tell.
        Dialect::Sqlite => Ok(Vec::new()),
        Dialect::Postgres => postgres::hindrances(database, tables),
    }
}

/// Looks at what is stored under the table's name.
pub(crate) fn find(database: &dyn Database, table: &Table) -> Result<Found> {
    let described = match table.dialect {
        Dialect::Sqlite => sqlite::describe(database, table)?,
        Dialect::Postgres => postgres::describe(database, table)?,
    };
    let Some(described) = described else { return Ok(Found::Missing) };
    if let Some(message) = described.unfit {
        let differences = vec![Difference { level: Level::Fatal, message, column: String::new() }];
        return Ok(Found::Table(Seen { differences, complete: HashSet::new(), version: 0 }));
    }
    let entry = if described.has_ledger { ledger::read(database, table)? } else { None }.unwrap_or_default();
    Ok(Found::Table(Seen { differences: compare(table, &described), complete: entry.complete, version: entry.version }))
}

fn compare(table: &Table, described: &Described) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut differs = |level, column: &str, message| {
        differences.push(Difference { level, message, column: column.to_owned() });
    };
    let name = &table.collection.name;
    if described.kind != "table" {
        differs(Level::Fatal, "", format!("`{name}` is a {}, not a table", described.kind));
    }
    if described.name != *name {
        differs(Level::Fatal, "", format!("the table is called `{}`", described.name));
    }
    let dialect = table.dialect;
    let ours: Vec<(&str, String, Option<&Column>)> = table
        .columns
        .iter()
        .map(|column| (column.name.as_str(), column.sql_type(dialect), Some(column)))
        .chain([(EXTRA, types::extra_type(dialect).to_owned(), None), (EXACT, "TEXT".to_owned(), None)])
        .collect();
    for stored in &described.columns {
        let column = stored.name.as_str();
        let Some((_, expected, ours)) = ours.iter().find(|(name, ..)| *name == column) else {
            match stored.not_null && !stored.has_default && !stored.is_computed {
                true => {
                    differs(Level::Fatal, column, format!("`{column}` is required, and no field of the collection"))
                }
                false => {
                    differs(Level::Extra, column, format!("`{column}` is no field of the collection, and left alone"));
                }
            }
            continue;
        };
        if stored.is_computed {
            differs(Level::Fatal, column, format!("`{column}` is computed by the database"));
        }
        let (expected_type, expected_family) = match dialect {
            Dialect::Sqlite => (expected.clone(), sqlite::family(expected)),
            Dialect::Postgres => (postgres::type_name(expected), postgres::family(&postgres::type_name(expected))),
        };
        if stored.family != expected_family {
            differs(Level::Fatal, column, format!("`{column}` is {}, not {expected}", stored.sql_type));
        } else if !stored.sql_type.eq_ignore_ascii_case(&expected_type) {
            differs(Level::Differs, column, format!("`{column}` is {}, not {expected}", stored.sql_type));
        }
        let is_our_key = ours.is_some_and(|column| column.kind == Kind::Key);
        if stored.is_key != is_our_key {
            let message = format!("`{column}` is {}the primary key", if stored.is_key { "" } else { "not " });
            differs(Level::Fatal, column, message);
        }
        if stored.not_null != ours.is_some_and(|column| column.not_null) && !is_our_key {
            let message = format!("`{column}` is {}NOT NULL", if stored.not_null { "" } else { "not " });
            differs(Level::Constraints, column, message);
        }
        if let (Some(collation), Some(ours)) = (&stored.collation, ours) {
            let message = format!("`{column}` is compared by {collation}, not exactly");
            match ours.kind {
                Kind::Key => differs(Level::Fatal, column, message),
                _ if ours.is_text() => differs(Level::Differs, column, message),
                // It is not compared.
                Kind::Field(_) => {}
            }
        }
    }
    for (name, expected, _) in &ours {
        if !described.columns.iter().any(|stored| stored.name == *name) {
            differs(Level::Missing, name, format!("`{name}` {expected} is missing"));
        }
    }
    let stored = &described.references;
    for (field, target) in table.references.iter().filter(|reference| !stored.contains(reference)) {
        differs(Level::Constraints, field, format!("`{field}` does not refer to `{target}`"));
    }
    for (field, target) in stored.iter().filter(|reference| !table.references.contains(reference)) {
        differs(Level::Constraints, field, format!("`{field}` refers to `{target}`"));
    }
    differences
}

/// The differences of these levels as one error, none where there are none.
pub(crate) fn reject(table: &Table, differences: &[Difference], levels: &[Level]) -> Result<()> {
    let counted = || differences.iter().filter(|difference| levels.contains(&difference.level));
    let messages: Vec<&str> = counted().map(|difference| difference.message.as_str()).collect();
    if messages.is_empty() {
        return Ok(());
    }
    let advice = match () {
        () if counted().all(|difference| difference.level == Level::Missing) => {
            "`larder stores prepare --extend` adds what is missing"
        }
        () if differences.iter().any(|difference| difference.level == Level::Constraints) => {
            "set `constraints` to what the table was made with (`strict` or `relaxed`), change the table, or give the \
             store another database"
        }
        () => "change one of them, or give the store another database",
    };
    Err(Error::new(
        ErrorKind::Rejected,
        format!(
            "the table of `{}` is not what its definition asks for, and is never altered unasked: {}; {advice}",
            table.collection.name,
            messages.join(", ")
        ),
    ))
}
