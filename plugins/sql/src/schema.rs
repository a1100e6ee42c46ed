//! A collection's definition as a table: its columns, its DDL, the statements that fill it.
//!
//! A column for the key, one for each declared field, one for the version, and two of our own: [`EXTRA`] holds the members
//! that no column holds, as one JSON object, and [`EXACT`] what a column would have changed.

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
};

use larder_guest::Dialect;
use larder_model::{Collection, Error, FieldType, Result};

use crate::{
    config::Constraints,
    database::{Statement, push_placeholder, quote},
    ledger, row,
    types::{self, Column, Kind},
};

/// Members that no column holds: one JSON object, to be read with `json_extract` on SQLite and `->>` on PostgreSQL.
pub(crate) const EXTRA: &str = "larder_extra";

/// Values that their column would change: one JSON object of column → `{"value": the value, "column": what the column
/// got in its place}`, without `column` where there is none. Where the column holds something else by now, somebody
/// changed it, and the column is right.
pub(crate) const EXACT: &str = "larder_exact";

/// PostgreSQL cuts longer names, and two of them could become one.
const NAME_BYTES_MAX: usize = 63;

/// The most parameters of one statement, in SQLite and roughly in PostgreSQL.
const PARAMS_MAX: usize = 32_000;

/// Rows of one INSERT, largest first. Few sizes, so that few statements have to be prepared.
const INSERT_ROWS: [usize; 11] = [1000, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1];

/// An index of the table.
#[derive(Debug)]
pub(crate) struct TableIndex {
    /// As the collection declares it, and empty where it is our own.
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
    /// Those that the collection declares.
    pub(crate) indexes: Vec<TableIndex>,
    /// Finds the few rows whose columns do not hold all.
    pub(crate) exact_index: TableIndex,
    /// Field and collection of each foreign key.
    pub(crate) references: Vec<(String, String)>,
    /// `REFERENCES …` of each of them.
    reference_targets: Vec<String>,
    /// What the collection declares and the table does not have.
    pub(crate) warnings: Vec<String>,
    pub(crate) dialect: Dialect,
    inserts: [OnceCell<String>; INSERT_ROWS.len()],
    upserts: [OnceCell<String>; INSERT_ROWS.len()],
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
        if collection.name.eq_ignore_ascii_case(ledger::NAME) {
            return Err(refused("the table of this name is larder's own".to_owned()));
        }
        let mut columns = vec![Column {
            name: collection.key.clone(),
            member: row::name(&collection.key),
            kind: Kind::Key,
            max_length: Some(255),
            indexed_bytes_max: None,
            is_wide: false,
            not_null: false,
        }];
        for field in collection.fields.iter().filter(|field| field.name != collection.key) {
            columns.push(Column {
                name: field.name.clone(),
                member: row::name(&field.name),
                kind: Kind::Field(field.ty),
                max_length: field.max_length,
                indexed_bytes_max: indexed_bytes_max(&collection, &field.name, dialect),
                is_wide: field.name == collection.stamps.version,
                not_null: strict && field.required,
            });
        }
        if columns.iter().all(|column| column.name != collection.stamps.version) {
            columns.push(Column {
                name: collection.stamps.version.clone(),
                member: row::name(&collection.stamps.version),
                kind: Kind::Field(FieldType::Integer),
                max_length: None,
                indexed_bytes_max: None,
                is_wide: true,
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
        if dialect == Dialect::Postgres {
            let names = columns.iter().map(|column| &column.name).chain([&collection.name]);
            if let Some(name) = names.into_iter().find(|name| name.len() > NAME_BYTES_MAX) {
                return Err(refused(format!("PostgreSQL cuts `{name}`: names have at most {NAME_BYTES_MAX} bytes")));
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
                None => indexes.push(table_index(&collection, index, dialect)),
                Some(field) => warnings.push(format!(
                    "the index `{}` of `{}` is not made: `{field}` is no declared field",
                    index.name, collection.name
                )),
            }
        }
        let names = columns.iter().map(|column| types::selected(dialect, &quote(&column.name), Some(column.kind)));
        let select: Vec<String> = names.chain([EXTRA, EXACT].map(quote)).collect();
        let exact_name = index_name(&collection.name, EXACT);
        let exact_index = TableIndex {
            ddl: format!(
                "CREATE INDEX {} ON {} ({}) WHERE {} IS NOT NULL",
                quote(&exact_name),
                quote(&collection.name),
                quote(&collection.key),
                quote(EXACT)
            ),
            name: exact_name,
            declared: String::new(),
        };
        Ok(Table {
            name: quote(&collection.name),
            key: quote(&collection.key),
            version: positions.get(&collection.stamps.version).copied(),
            select: select.join(", "),
            ddl: String::new(),
            positions,
            columns,
            indexes,
            exact_index,
            references,
            reference_targets: Vec::new(),
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
            lines.push(format!("{}{suffix}", self.column_ddl(column)));
        }
        lines.extend(self.own_columns_ddl().map(|(_, ddl)| ddl));
        let mut targets = Vec::new();
        for (field, target) in &self.references {
            let key = key_of(target).ok_or_else(|| {
                let name = &self.collection.name;
                Error::invalid(format!("collection `{name}`: `{field}` refers to `{target}`, which is no collection"))
            })?;
            targets.push(format!("REFERENCES {}({})", quote(target), quote(&key)));
            lines.push(format!("FOREIGN KEY ({}) REFERENCES {}({})", quote(field), quote(target), quote(&key)));
        }
        self.reference_targets = targets;
        self.ddl = format!("CREATE TABLE {} ({})", self.name, lines.join(", "));
        Ok(())
    }

    /// Name and type of a column, as they stand in DDL.
    pub(crate) fn column_ddl(&self, column: &Column) -> String {
        let collation = match column.kind {
            Kind::Key | Kind::Field(FieldType::Text | FieldType::Json) => types::collation(self.dialect),
            Kind::Field(_) => "",
        };
        format!("{} {}{collation}", quote(&column.name), column.sql_type(self.dialect))
    }

    /// Our own two columns: name, and how it stands in DDL.
    pub(crate) fn own_columns_ddl(&self) -> [(&'static str, String); 2] {
        [
            (EXTRA, format!("{} {}", quote(EXTRA), types::extra_type(self.dialect))),
            (EXACT, format!("{} TEXT", quote(EXACT))),
        ]
    }

    /// What the DDL of a column says of the collection that it refers to.
    pub(crate) fn reference_ddl(&self, field: &str) -> Option<String> {
        let position = self.references.iter().position(|(name, _)| name == field)?;
        self.reference_targets.get(position).cloned()
    }

    /// Every column, in order, as a part of a statement that has selected them.
    pub(crate) fn names(&self) -> String {
        let names = self.columns.iter().map(|column| column.name.as_str()).chain([EXTRA, EXACT]);
        names.map(quote).collect::<Vec<_>>().join(", ")
    }

    /// Every index that the table has by us.
    pub(crate) fn all_indexes(&self) -> impl Iterator<Item = &TableIndex> {
        self.indexes.iter().chain([&self.exact_index])
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
        let mut text = format!("INSERT INTO {} ({}) VALUES ", self.name, self.names());
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
                text.push_str(types::cast(self.dialect, self.columns.get(cell).map(|column| column.kind)));
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

/// The key comes last in each index, so that pages of a query that the index answers follow one another without sorting.
fn table_index(collection: &Collection, index: &larder_model::Index, dialect: Dialect) -> TableIndex {
    let name = index_name(&collection.name, &index.name);
    // What is absent or null comes first, as in the contract and as in SQLite.
    let nulls = match dialect {
        Dialect::Sqlite => "",
        Dialect::Postgres => " NULLS FIRST",
    };
    let column = |field: &String| match *field == collection.key {
        true => quote(field),
        false => format!("{}{nulls}", quote(field)),
    };
    let mut columns: Vec<String> = index.fields.iter().map(column).collect();
    if !index.fields.contains(&collection.key) {
        columns.push(quote(&collection.key));
    }
    let ddl = format!("CREATE INDEX {} ON {} ({})", quote(&name), quote(&collection.name), columns.join(", "));
    TableIndex { declared: index.name.clone(), name, ddl }
}

/// How much of a text the declared indexes with this field take: PostgreSQL has a bound for all columns of one together.
/// The key may take 4 bytes a character, and the others share what is left.
fn indexed_bytes_max(collection: &Collection, field: &str, dialect: Dialect) -> Option<usize> {
    const ENTRY_BYTES_MAX: usize = 2_600;
    const KEY_BYTES_MAX: usize = 4 * 255;
    let indexes = collection.indexes.iter().filter(|index| index.fields.iter().any(|name| name == field));
    let columns = indexes.map(|index| index.fields.len()).max().filter(|_| dialect == Dialect::Postgres)?;
    Some((ENTRY_BYTES_MAX - KEY_BYTES_MAX) / columns)
}

/// The name of an index in the database. A long one is cut here, so that it stays another than every other one.
fn index_name(collection: &str, index: &str) -> String {
    let name = format!("idx_{collection}_{index}");
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let mark = format!("_{:016x}", hash(name.bytes()));
    let end = (0..=NAME_BYTES_MAX - mark.len()).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{mark}", &name[..end])
}

/// FNV-1a.
pub(crate) fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
