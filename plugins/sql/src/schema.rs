//! A collection's definition as a table: its columns, its DDL, the statements that fill it.
//!
//! A column for the key, one for each declared field, one for the version, and two of our own: [`EXTRA`] holds the members
//! that no column holds, as one JSON object, and [`EXACT`] what a column would have changed.

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
};

use larder_guest::{Dialect, SqlValue};
use larder_model::{Collection, Error, FieldType, Result};

use crate::config::Constraints;

/// Members that no column holds: one JSON object, to be read with `json_extract`.
pub(crate) const EXTRA: &str = "larder_extra";

/// Values that their column would change: one JSON object of column → `{"value": the value, "column": what the column
/// got in its place}`. Where the column holds something else by now, somebody changed it, and the column is right.
pub(crate) const EXACT: &str = "larder_exact";

/// The most parameters of one statement, in SQLite and roughly in PostgreSQL.
const PARAMS_MAX: usize = 32_000;

/// Rows of one INSERT, largest first. Few sizes, so that few statements have to be prepared.
const INSERT_ROWS: [usize; 3] = [256, 16, 1];

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Key,
    Field(FieldType),
}

/// A column for one member.
#[derive(Debug)]
pub(crate) struct Column {
    /// Of the member, and of the column.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// As it stands in the DDL.
    pub(crate) sql_type: String,
    pub(crate) not_null: bool,
}

/// An index of the table.
#[derive(Debug)]
pub(crate) struct TableIndex {
    /// As the collection declares it.
    pub(crate) declared: String,
    /// As the database knows it.
    pub(crate) name: String,
    pub(crate) ddl: String,
}

/// A collection as a table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) collection: Collection,
    /// Quoted.
    pub(crate) name: String,
    /// Quoted.
    pub(crate) key: String,
    /// The key first, without our own two, which follow.
    pub(crate) columns: Vec<Column>,
    positions: HashMap<String, usize>,
    /// Where the version is among the columns.
    pub(crate) version: Option<usize>,
    /// Every column, in order.
    pub(crate) select: String,
    pub(crate) ddl: String,
    pub(crate) indexes: Vec<TableIndex>,
    /// Field and collection of each foreign key.
    pub(crate) references: Vec<(String, String)>,
    /// What the collection declares and the table does not have.
    pub(crate) warnings: Vec<String>,
    dialect: Dialect,
    inserts: [OnceCell<String>; INSERT_ROWS.len()],
    upserts: [OnceCell<String>; INSERT_ROWS.len()],
}

/// A name as SQL text.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A statement in the making: parameters are numbered as the dialect wants them.
pub(crate) struct Statement {
    pub(crate) text: String,
    pub(crate) params: Vec<SqlValue>,
    dialect: Dialect,
}

impl Statement {
    pub(crate) fn new(dialect: Dialect, text: impl Into<String>) -> Statement {
        Statement { text: text.into(), params: Vec::new(), dialect }
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Statement {
        self.text.push_str(text);
        self
    }

    pub(crate) fn param(&mut self, value: SqlValue) -> &mut Statement {
        self.params.push(value);
        push_placeholder(&mut self.text, self.dialect, self.params.len());
        self
    }

    /// `(?, ?)`
    pub(crate) fn list(&mut self, values: impl IntoIterator<Item = SqlValue>) -> &mut Statement {
        for (i, value) in values.into_iter().enumerate() {
            self.text(if i == 0 { "(" } else { ", " }).param(value);
        }
        self.text(")")
    }
}

fn push_placeholder(text: &mut String, dialect: Dialect, number: usize) {
    match dialect {
        // Without a number: SQLite looks numbered ones up one by one, which for thousands takes longer than the rest.
        Dialect::Sqlite => text.push('?'),
        Dialect::Postgres => text.push_str(&format!("${number}")),
    }
}

impl Table {
    /// The table of a collection, where a table can be made of it.
    pub(crate) fn new(collection: Collection, constraints: Constraints, dialect: Dialect) -> Result<Table> {
        let strict = constraints == Constraints::Strict;
        let refused = |problem: String| Error::invalid(format!("collection `{}`: {problem}", collection.name));
        if collection.name.is_empty() || collection.name.contains('\0') {
            return Err(refused("its name cannot be that of a table".to_owned()));
        }
        if collection.name.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("sqlite_")) {
            return Err(refused("SQLite keeps names that begin with `sqlite_` to itself".to_owned()));
        }
        let mut columns = vec![Column {
            name: collection.key.clone(),
            kind: Kind::Key,
            sql_type: text_type(Some(255)),
            not_null: false,
        }];
        for field in collection.fields.iter().filter(|field| field.name != collection.key) {
            columns.push(Column {
                name: field.name.clone(),
                kind: Kind::Field(field.ty),
                sql_type: sql_type(field.ty, field.max_length),
                not_null: strict && field.required,
            });
        }
        if columns.iter().all(|column| column.name != collection.stamps.version) {
            columns.push(Column {
                name: collection.stamps.version.clone(),
                kind: Kind::Field(FieldType::Integer),
                sql_type: "BIGINT".to_owned(),
                not_null: false,
            });
        }
        let mut lowercase = HashSet::from([EXTRA.to_owned(), EXACT.to_owned()]);
        for column in &columns {
            let name = &column.name;
            if name.is_empty() || name.contains('\0') {
                return Err(refused(format!("the field `{}` cannot be a column", name.escape_debug())));
            }
            if !lowercase.insert(name.to_ascii_lowercase()) {
                let problem = "names of columns differ in more than case, and two names are larder's own";
                return Err(refused(format!("the field `{name}` cannot be a column: {problem}")));
            }
        }
        let positions: HashMap<String, usize> =
            columns.iter().enumerate().map(|(i, column)| (column.name.clone(), i)).collect();

        let mut warnings = Vec::new();
        let mut references = Vec::new();
        for reference in collection.references.iter().filter(|_| strict) {
            match positions.contains_key(&reference.field) {
                true => references.push((reference.field.clone(), reference.collection.clone())),
                false => warnings.push(format!(
                    "the reference of `{}.{}` is not enforced: it is no declared field",
                    collection.name, reference.field
                )),
            }
        }
        let mut indexes = Vec::new();
        for index in &collection.indexes {
            match index.fields.iter().find(|field| !positions.contains_key(*field)) {
                None => indexes.push(table_index(&collection, index)),
                Some(field) => warnings.push(format!(
                    "the index `{}` of `{}` is not made: `{field}` is no declared field",
                    index.name, collection.name
                )),
            }
        }
        let names: Vec<String> =
            columns.iter().map(|column| quote(&column.name)).chain([EXTRA, EXACT].map(quote)).collect();
        Ok(Table {
            name: quote(&collection.name),
            key: quote(&collection.key),
            version: positions.get(&collection.stamps.version).copied(),
            select: names.join(", "),
            ddl: String::new(),
            positions,
            columns,
            indexes,
            references,
            warnings,
            dialect,
            inserts: Default::default(),
            upserts: Default::default(),
            collection,
        })
    }

    /// Writes the DDL, for which the key of each table that is referred to is needed.
    pub(crate) fn finish(&mut self, key_of: impl Fn(&str) -> Option<String>) -> Result<()> {
        let mut lines = Vec::new();
        let stamps = &self.collection.stamps;
        for column in &self.columns {
            let is_stamp = [&stamps.created, &stamps.updated].into_iter().flatten().any(|name| *name == column.name);
            let suffix = match column.kind {
                Kind::Key => " PRIMARY KEY",
                _ if column.not_null => " NOT NULL",
                Kind::Field(FieldType::Timestamp) if is_stamp => " DEFAULT CURRENT_TIMESTAMP",
                Kind::Field(_) => "",
            };
            lines.push(format!("{} {}{suffix}", quote(&column.name), column.sql_type));
        }
        lines.extend([EXTRA, EXACT].map(|name| format!("{} TEXT", quote(name))));
        for (field, target) in &self.references {
            let key = key_of(target).ok_or_else(|| {
                let name = &self.collection.name;
                Error::invalid(format!("collection `{name}`: `{field}` refers to `{target}`, which is no collection"))
            })?;
            lines.push(format!("FOREIGN KEY ({}) REFERENCES {}({})", quote(field), quote(target), quote(&key)));
        }
        self.ddl = format!("CREATE TABLE {} ({})", self.name, lines.join(", "));
        Ok(())
    }

    /// Where the column of a member is.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.positions.get(name).copied()
    }

    /// Cells of a row.
    pub(crate) fn width(&self) -> usize {
        self.columns.len() + 2
    }

    pub(crate) fn statement(&self, text: impl Into<String>) -> Statement {
        Statement::new(self.dialect, text)
    }

    /// What a SELECT ends with to keep others from changing its rows. A transaction of SQLite that writes has the
    /// database for itself from its beginning.
    pub(crate) fn for_update(&self) -> &'static str {
        match self.dialect {
            Dialect::Sqlite => "",
            Dialect::Postgres => " FOR UPDATE",
        }
    }

    /// The largest INSERT for at most this many rows: how many it takes, and its text. With `replace`, a row whose key
    /// is there already is replaced in place, so that rows that refer to it keep doing so.
    pub(crate) fn insert(&self, rows_max: usize, replace: bool) -> (usize, &str) {
        let rows_of = |size: usize| size.min(PARAMS_MAX / self.width()).max(1);
        let i = INSERT_ROWS.iter().position(|&size| rows_of(size) <= rows_max).unwrap_or(INSERT_ROWS.len() - 1);
        let rows = rows_of(INSERT_ROWS[i]);
        let cache = if replace { &self.upserts[i] } else { &self.inserts[i] };
        (rows, cache.get_or_init(|| self.insert_text(rows, replace)))
    }

    fn insert_text(&self, rows: usize, replace: bool) -> String {
        let mut text = format!("INSERT INTO {} ({}) VALUES ", self.name, self.select);
        let mut number = 0;
        for row in 0..rows {
            for cell in 0..self.width() {
                text.push_str(match (row, cell) {
                    (0, 0) => "(",
                    (_, 0) => "), (",
                    _ => ", ",
                });
                number += 1;
                push_placeholder(&mut text, self.dialect, number);
            }
        }
        text.push(')');
        if replace {
            let names = self.columns[1..].iter().map(|column| column.name.as_str()).chain([EXTRA, EXACT]);
            let sets: Vec<String> = names.map(quote).map(|name| format!("{name} = excluded.{name}")).collect();
            text.push_str(&format!(" ON CONFLICT ({}) DO UPDATE SET {}", self.key, sets.join(", ")));
        }
        text
    }
}

/// The most rows of one INSERT.
pub(crate) fn insert_rows_max() -> usize {
    INSERT_ROWS[0]
}

fn text_type(max_length: Option<u32>) -> String {
    match max_length {
        Some(length) => format!("VARCHAR({length})"),
        None => "TEXT".to_owned(),
    }
}

fn sql_type(ty: FieldType, max_length: Option<u32>) -> String {
    match ty {
        FieldType::Text => text_type(max_length),
        FieldType::Integer => "INTEGER".to_owned(),
        FieldType::Number => "DOUBLE PRECISION".to_owned(),
        FieldType::Boolean => "BOOLEAN".to_owned(),
        FieldType::Timestamp => "TIMESTAMP".to_owned(),
        FieldType::Json => "TEXT".to_owned(),
    }
}

/// The key comes last in each index, so that pages of a query that the index answers follow one another without sorting.
fn table_index(collection: &Collection, index: &larder_model::Index) -> TableIndex {
    let name = format!("idx_{}_{}", collection.name, index.name);
    let mut fields: Vec<&str> = index.fields.iter().map(String::as_str).collect();
    if !fields.contains(&collection.key.as_str()) {
        fields.push(&collection.key);
    }
    let fields: Vec<String> = fields.into_iter().map(quote).collect();
    let ddl = format!("CREATE INDEX {} ON {} ({})", quote(&name), quote(&collection.name), fields.join(", "));
    TableIndex { declared: index.name.clone(), name, ddl }
}
