//! What there is to say about the database: whether it can be reached, read and written, how large it is, and in what its
//! tables are not as they should be.

use larder_guest::{Dialect, Sql, SqlTransaction};
use larder_model::{Isolation, Result};
use serde_json::{Value, json};

use crate::{
    catalog::{self, Found, Level},
    database::{Alone, Database, Inside, REPLY_BYTES_MAX, integer, quote},
    ledger,
    schema::Table,
};

/// Findings as they are gathered.
#[derive(Default)]
struct Findings {
    findings: Vec<Value>,
    /// What is stored and read as no part of any entity.
    unread: Vec<String>,
}

impl Findings {
    fn add(&mut self, level: &str, message: String) {
        self.findings.push(json!({"level": level, "message": message}));
    }
}

/// `thorough`, it counts rows.
pub(crate) fn check<S: Sql>(sql: &S, tables: &[Table], thorough: bool) -> Result<String> {
    let mut findings = Findings::default();
    let database = Alone(sql);
    let dialect = sql.dialect();
    let size = sql.size()?;
    let version = catalog::version(&database, dialect)?;
    let mut readable = true;
    let mut listed = Vec::new();
    for table in tables {
        let name = &table.collection.name;
        let mut entry = json!({"collection": name, "exists": false});
        if let Err(error) = check_table(&database, table, thorough, &mut entry, &mut findings) {
            readable = false;
            findings.add("error", format!("table `{name}`: {error}"));
        }
        listed.push(entry);
    }
    let writable = check_writable(sql, tables, size, &mut findings);
    let connections = sql.connections();
    let answer = json!({
        "reachable": true,
        "readable": readable,
        "writable": writable,
        "database": {
            "version": version,
            "size_bytes": size,
            "free_bytes": sql.free_space()?,
            "schema_version": ledger::VERSION,
        },
        "connections": {
            "open": connections.open,
            "idle": connections.idle,
            "kept": connections.kept,
            "max": connections.max,
        },
        "tables": listed,
        "unread": findings.unread,
        "findings": findings.findings,
    });
    Ok(answer.to_string())
}

fn check_table(
    database: &dyn Database,
    table: &Table,
    thorough: bool,
    entry: &mut Value,
    findings: &mut Findings,
) -> Result<()> {
    let name = &table.collection.name;
    let Found::Table(found) = catalog::find(database, table)? else { return Ok(()) };
    entry["exists"] = true.into();
    for difference in &found.differences {
        let message = format!("table `{name}`: {}", difference.message);
        match difference.level {
            Level::Fatal => findings.add("error", message),
            Level::Missing => {
                findings.add("error", format!("{message}: `larder stores prepare --extend` adds it"));
            }
            Level::Differs | Level::Constraints => findings.add("warning", message),
            // What is in there is no part of any entity.
            Level::Extra => {
                findings.unread.push(message.clone());
                findings.add("warning", message);
            }
        }
    }
    let is_usable = |level| !matches!(level, Level::Fatal | Level::Missing);
    entry["usable"] = found.differences.iter().all(|difference| is_usable(difference.level)).into();
    entry["schema_version"] = match found.version {
        0 => Value::Null,
        version => version.into(),
    };
    if thorough {
        let rows = database.query(&format!("SELECT count(*) FROM {}", table.name), Vec::new(), REPLY_BYTES_MAX)?;
        entry["rows"] = integer(rows.cells.first())?.into();
    } else {
        database.query(&format!("SELECT 1 FROM {} LIMIT 1", table.name), Vec::new(), REPLY_BYTES_MAX)?;
    }
    entry["size_bytes"] = catalog::table_size(database, table)?.into();
    let existing = catalog::indexes(database, table)?;
    entry["indexes"] = existing.clone().into();
    for index in table.all_indexes().filter(|index| !existing.contains(&index.name)) {
        let shown = if index.declared.is_empty() { &index.name } else { &index.declared };
        findings
            .add("warning", format!("the index `{shown}` of `{name}` is missing: `larder stores prepare` makes it"));
    }
    let present = |name: &String| found.differences.iter().all(|difference| difference.column != *name);
    let unasked: Vec<String> = table
        .columns
        .iter()
        .map(|column| &column.name)
        .filter(|column| **column != table.collection.key && !found.complete.contains(*column) && present(column))
        .map(|column| format!("`{column}`"))
        .collect();
    if !unasked.is_empty() {
        findings.add(
            "info",
            format!(
                "table `{name}`: queries do not ask {}, because rows may hold the member beside the column: \
                 `larder stores prepare --extend` puts it there",
                unasked.join(", ")
            ),
        );
    }
    Ok(())
}

fn check_writable<S: Sql>(sql: &S, tables: &[Table], size: Option<u64>, findings: &mut Findings) -> bool {
    if sql.dialect() == Dialect::Sqlite && size == Some(0) {
        let message = "there is no database yet: it comes to be with the first write, or `larder stores prepare`";
        findings.add("info", message.to_owned());
        return true;
    }
    if let Err(error) = probe(sql) {
        findings.add("error", format!("the database cannot be written: {error}"));
        return false;
    }
    match catalog::hindrances(&Alone(sql), tables, sql.dialect()) {
        Ok(hindrances) => {
            let writable = hindrances.is_empty();
            for hindrance in hindrances {
                findings.add("error", hindrance);
            }
            writable
        }
        Err(error) => {
            findings.add("error", format!("whether the database can be written cannot be told: {error}"));
            false
        }
    }
}

/// Does what a write does, and changes nothing.
fn probe<S: Sql>(sql: &S) -> Result<()> {
    match sql.dialect() {
        // A transaction of a file that can only be read begins all the same, and its first write fails.
        Dialect::Sqlite => {
            let transaction = sql.begin(None, false)?;
            let database = Inside(&transaction);
            let text = match catalog::has_ledger(&database, Dialect::Sqlite)? {
                true => format!("DELETE FROM {} WHERE 0 = 1", quote(ledger::NAME)),
                false => ledger::ddl(Dialect::Sqlite),
            };
            database.query(&text, Vec::new(), 0)?;
            transaction.rollback()
        }
        // What else a user may do is in the catalog.
        Dialect::Postgres => sql.begin(Some(Isolation::ReadCommitted), false)?.rollback(),
    }
}
