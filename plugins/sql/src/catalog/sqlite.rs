//! SQLite's catalog: `sqlite_master`, and the pragmas that can be read as tables.

use larder_guest::SqlValue;
use larder_model::Result;

use super::{Described, DescribedColumn};
use crate::{
    database::{Database, is_true, list, text},
    ledger,
    schema::Table,
};

pub(super) fn tables(database: &dyn Database) -> Result<Vec<String>> {
    let statement =
        "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_' ORDER BY 1";
    Ok(list(database, statement, Vec::new())?.into_iter().map(|mut row| text(row.next())).collect())
}

fn named(database: &dyn Database, statement: &str, name: &str) -> Result<Vec<std::vec::IntoIter<SqlValue>>> {
    list(database, statement, vec![SqlValue::Text(name.to_owned())])
}

pub(super) fn indexes(database: &dyn Database, table: &Table) -> Result<Vec<String>> {
    let rows = named(database, "SELECT name FROM pragma_index_list(?)", &table.collection.name)?;
    Ok(rows.into_iter().map(|mut row| text(row.next())).collect())
}

pub(super) fn version(database: &dyn Database) -> Result<String> {
    let rows = list(database, "SELECT 'SQLite ' || sqlite_version()", Vec::new())?;
    Ok(rows.into_iter().next().map_or_else(String::new, |mut row| text(row.next())))
}

pub(super) fn describe(database: &dyn Database, table: &Table) -> Result<Option<Described>> {
    let name = &table.collection.name;
    let statement = "SELECT m.type, m.name, e.encoding, EXISTS (SELECT 1 FROM sqlite_master WHERE name = ?2) \
                     FROM sqlite_master AS m, pragma_encoding AS e \
                     WHERE m.name = ?1 COLLATE NOCASE AND m.type IN ('table', 'view')";
    let params = vec![SqlValue::Text(name.clone()), SqlValue::Text(ledger::NAME.to_owned())];
    let Some(mut row) = list(database, statement, params)?.into_iter().next() else { return Ok(None) };
    let (kind, stored_name, encoding) = (text(row.next()), text(row.next()), text(row.next()));
    let has_ledger = is_true(row.next());
    // It would order texts by other units than the contract does.
    let unfit = (encoding != "UTF-8").then(|| format!("the database keeps its texts in {encoding}, not in UTF-8"));

    let statement = "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?)";
    let mut columns = Vec::new();
    for mut row in named(database, statement, name)? {
        let (name, sql_type) = (text(row.next()), text(row.next()));
        let [not_null, has_default, is_key, is_computed] = [(); 4].map(|()| is_true(row.next()));
        let family = family(&sql_type);
        columns.push(DescribedColumn {
            name,
            sql_type,
            family,
            not_null,
            has_default,
            is_computed,
            is_key,
            collation: None,
        });
    }
    // How a column is compared shows in indexes alone; questions name the order that they want.
    let statement = "SELECT x.name, x.coll FROM pragma_index_list(?) AS l, pragma_index_xinfo(l.name) AS x \
                     WHERE l.origin = 'pk' AND x.key = 1";
    for mut row in named(database, statement, name)? {
        let (column, collation) = (text(row.next()), text(row.next()));
        if let Some(column) = columns.iter_mut().find(|known| known.name == column) {
            column.collation = (collation != "BINARY").then_some(collation);
        }
    }
    let statement = "SELECT \"from\", \"table\" FROM pragma_foreign_key_list(?)";
    let references =
        named(database, statement, name)?.into_iter().map(|mut row| (text(row.next()), text(row.next()))).collect();
    Ok(Some(Described { kind, name: stored_name, unfit, columns, references, has_ledger }))
}

/// SQLite's rules for what a declared type does to a value.
pub(super) fn family(sql_type: &str) -> &'static str {
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
