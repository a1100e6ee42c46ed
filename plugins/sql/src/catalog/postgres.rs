//! PostgreSQL's catalog, of the schema that is first in the connection's search path.

use larder_guest::SqlValue;
use larder_model::{Error, ErrorKind, Result};

use super::{Described, DescribedColumn};
use crate::{
    database::{Database, integer, is_true, list, literal, quote, text},
    ledger,
    schema::Table,
};

pub(super) fn tables(database: &dyn Database) -> Result<Vec<String>> {
    let statement = "SELECT c.relname FROM pg_catalog.pg_class AS c \
                     JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                     WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') ORDER BY 1";
    Ok(list(database, statement, Vec::new())?.into_iter().map(|mut row| text(row.next())).collect())
}

fn named(database: &dyn Database, statement: &str, name: &str) -> Result<Vec<std::vec::IntoIter<SqlValue>>> {
    list(database, statement, vec![SqlValue::Text(name.to_owned())])
}

pub(super) fn indexes(database: &dyn Database, table: &Table) -> Result<Vec<String>> {
    let statement = "SELECT x.relname FROM pg_catalog.pg_index AS i \
                     JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid \
                     JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid \
                     JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                     WHERE n.nspname = current_schema() AND c.relname = $1::text::name AND i.indisvalid ORDER BY 1";
    let rows = named(database, statement, &table.collection.name)?;
    Ok(rows.into_iter().map(|mut row| text(row.next())).collect())
}

pub(super) fn version(database: &dyn Database) -> Result<String> {
    let rows = list(database, "SELECT 'PostgreSQL ' || current_setting('server_version')", Vec::new())?;
    Ok(rows.into_iter().next().map_or_else(String::new, |mut row| text(row.next())))
}

pub(super) fn table_size(database: &dyn Database, table: &Table) -> Result<u64> {
    let name = literal(&table.name);
    let rows = database.query(&format!("SELECT pg_total_relation_size({name})"), Vec::new(), 64)?;
    integer(rows.cells.first())
}

pub(super) fn hindrances(database: &dyn Database, tables: &[Table]) -> Result<Vec<String>> {
    let statement = "SELECT pg_is_in_recovery(), has_schema_privilege(current_schema(), 'CREATE')";
    let mut found = Vec::new();
    let Some(mut row) = list(database, statement, Vec::new())?.into_iter().next() else { return Ok(found) };
    if is_true(row.next()) {
        found.push("the server is a standby, which only reads: name the primary one".to_owned());
    }
    let may_create = is_true(row.next());
    for table in tables {
        let name = literal(&table.name);
        let statement = format!(
            "SELECT to_regclass({name}) IS NOT NULL, has_table_privilege(to_regclass({name}), 'SELECT'), \
             has_table_privilege(to_regclass({name}), 'INSERT'), has_table_privilege(to_regclass({name}), 'UPDATE'), \
             has_table_privilege(to_regclass({name}), 'DELETE')"
        );
        let Some(mut row) = list(database, &statement, Vec::new())?.into_iter().next() else { continue };
        let name = &table.collection.name;
        if !is_true(row.next()) {
            if !may_create {
                found.push(format!("the user may not make the table `{name}`: GRANT CREATE ON SCHEMA is missing"));
            }
            continue;
        }
        for privilege in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
            if !is_true(row.next()) {
                found.push(format!("the user may not {privilege} in the table `{name}`: the GRANT is missing"));
            }
        }
    }
    Ok(found)
}

pub(super) fn describe(database: &dyn Database, table: &Table) -> Result<Option<Described>> {
    let name = &table.collection.name;
    // A name is taken by whatever has it: tables, views, indexes and sequences.
    let statement = "SELECT n.nspname, c.relname, CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' \
                     WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'i' THEN 'index' \
                     WHEN 'I' THEN 'index' WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' ELSE 'type' END, \
                     EXISTS (SELECT 1 FROM pg_catalog.pg_class AS l \
                     WHERE l.relnamespace = n.oid AND l.relname = $2::text::name) \
                     FROM pg_catalog.pg_namespace AS n \
                     LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = $1::text::name \
                     WHERE n.nspname = current_schema()";
    let params = vec![SqlValue::Text(name.clone()), SqlValue::Text(ledger::NAME.to_owned())];
    let Some(mut row) = list(database, statement, params)?.into_iter().next() else {
        let message = "the user's search_path names no schema that exists, so there is no place for tables";
        return Err(Error::new(ErrorKind::Rejected, message));
    };
    let schema = text(row.next());
    let (stored_name, kind, has_ledger) = (text(row.next()), text(row.next()), is_true(row.next()));
    if stored_name.is_empty() {
        return Ok(None);
    }
    let place = vec![SqlValue::Text(schema), SqlValue::Text(name.clone())];
    let statement = "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
                     a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a', \
                     EXISTS (SELECT 1 FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary \
                     AND a.attnum = ANY (i.indkey)), \
                     CASE WHEN a.attcollation = 0 OR o.collname IN ('C', 'POSIX', 'ucs_basic') THEN NULL \
                     ELSE o.collname END \
                     FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid \
                     JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                     LEFT JOIN pg_catalog.pg_collation AS o ON o.oid = a.attcollation \
                     WHERE n.nspname = $1::text::name AND c.relname = $2::text::name AND a.attnum > 0 AND NOT a.attisdropped \
                     ORDER BY a.attnum";
    let mut columns = Vec::new();
    for mut row in list(database, statement, place.clone())? {
        let (name, sql_type) = (text(row.next()), text(row.next()));
        let [not_null, has_default, is_computed, is_key] = [(); 4].map(|()| is_true(row.next()));
        let collation = match text(row.next()) {
            name if name.is_empty() => None,
            name if name == "default" => Some("the database's default collation".to_owned()),
            name => Some(format!("the collation {}", quote(&name))),
        };
        let family = family(&sql_type);
        columns.push(DescribedColumn { name, sql_type, family, not_null, has_default, is_computed, is_key, collation });
    }
    let statement = "SELECT a.attname, t.relname FROM pg_catalog.pg_constraint AS k \
                     JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid \
                     JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                     JOIN pg_catalog.pg_class AS t ON t.oid = k.confrelid \
                     JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1] \
                     WHERE n.nspname = $1::text::name AND c.relname = $2::text::name AND k.contype = 'f' ORDER BY k.conname";
    let references =
        list(database, statement, place)?.into_iter().map(|mut row| (text(row.next()), text(row.next()))).collect();
    Ok(Some(Described { kind, name: stored_name, unfit: None, columns, references, has_ledger }))
}

/// What the catalog calls a type of the DDL.
pub(super) fn type_name(ddl: &str) -> String {
    match ddl {
        "TIMESTAMP" => "timestamp without time zone".to_owned(),
        ddl => ddl.to_ascii_lowercase().replace("varchar", "character varying"),
    }
}

/// Types that can stand for one another. Others would change a value, or take none of ours.
pub(super) fn family(type_name: &str) -> &'static str {
    match type_name.split('(').next().unwrap_or_default() {
        "text" | "character varying" => "text",
        "smallint" | "integer" | "bigint" => "integer",
        "double precision" => "double",
        "boolean" => "boolean",
        // With less than microseconds it would round.
        "timestamp without time zone" => "timestamp",
        "json" => "json",
        _ => "other",
    }
}
