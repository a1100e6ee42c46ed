//! What larder remembers of its tables, in one small table beside them: by which version of the schema each was made, and
//! which of its columns hold their member in every row.
//!
//! A column that was added to a table with rows in it is empty although entities may have the member, among those that
//! no column holds. Reads look there too; a question that the database answers by the column alone would miss it. So only
//! columns that are listed here are asked. `prepare` lists a column once no row has its member beside it.

use std::collections::HashSet;

use larder_guest::{Dialect, SqlValue};
use larder_model::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::{
    database::{Database, Statement, list, quote, text},
    schema::Table,
};

/// The table's name, which no collection can have.
pub(crate) const NAME: &str = "larder_schema";

/// Of the schema that this file belongs to. A larger one is refused: what it means is not known here.
pub(crate) const VERSION: i64 = 1;

/// What is remembered of one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    pub(crate) version: i64,
    /// Columns that hold their member in every row.
    pub(crate) complete: HashSet<String>,
    /// Columns that were added to rows, and can be NULL in a table that is otherwise strict.
    pub(crate) added: HashSet<String>,
}

/// The table's DDL.
pub(crate) fn ddl(dialect: Dialect) -> String {
    let collation = crate::types::collation(dialect);
    format!(
        "CREATE TABLE {} (\"table_name\" VARCHAR(255){collation} PRIMARY KEY, \"schema_version\" INTEGER NOT NULL, \
         \"columns\" TEXT NOT NULL)",
        quote(NAME)
    )
}

/// What is remembered of the table, none where nothing is. That there is a [`NAME`] is known already.
pub(crate) fn read(database: &dyn Database, table: &Table) -> Result<Option<Entry>> {
    let name = &table.collection.name;
    let mut statement =
        table.statement(format!("SELECT \"schema_version\", \"columns\" FROM {} WHERE \"table_name\" = ", quote(NAME)));
    statement.param(SqlValue::Text(name.clone()));
    let Some(mut row) = list(database, &statement.text, statement.params)?.into_iter().next() else {
        return Ok(None);
    };
    let version = match row.next() {
        Some(SqlValue::Integer(version)) => version,
        _ => 0,
    };
    if version > VERSION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the table `{name}` was made by a newer larder (schema version {version}, this one knows {VERSION}): use \
                 that one, or give the store another database"
            ),
        ));
    }
    let columns: Value = serde_json::from_str(&text(row.next())).unwrap_or_default();
    let listed = |name: &str| {
        let names = columns.get(name).and_then(Value::as_array).into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    Ok(Some(Entry { version, complete: listed("complete"), added: listed("added") }))
}

/// Remembers which columns of the table are complete and which were added, in place of what was remembered before.
pub(crate) fn write(database: &dyn Database, table: &Table, complete: &[&str], added: &[&str]) -> Result<()> {
    let mut statement = Statement::new(
        table.dialect,
        format!("INSERT INTO {} (\"table_name\", \"schema_version\", \"columns\") VALUES ", quote(NAME)),
    );
    statement.list([
        SqlValue::Text(table.collection.name.clone()),
        SqlValue::Integer(VERSION),
        SqlValue::Text(json!({"complete": complete, "added": added}).to_string()),
    ]);
    statement.text(
        " ON CONFLICT (\"table_name\") DO UPDATE SET \"schema_version\" = excluded.\"schema_version\", \
         \"columns\" = excluded.\"columns\"",
    );
    database.query(&statement.text, statement.params, 0).map(drop)
}
