//! `larder stores`: what is configured, whether it works, making what is missing, and putting in order what was left.

use serde_json::{Map, Value, json};

use super::{Context, is_json};
use crate::cli::StoresCommand;
use crate::error::Result;
use crate::output;
use crate::text::{one_line, statement_line};

pub(super) async fn run(context: &mut Context, command: StoresCommand) -> Result<()> {
    match command {
        StoresCommand::List => list(context),
        StoresCommand::Check { store } => check(context, store).await,
        StoresCommand::Flush { store } => flush(context, store.store.as_deref()).await,
        StoresCommand::Prepare { dry_run, extend, store } => {
            prepare(context, store.store.as_deref(), dry_run, extend).await
        }
    }
}

fn list(context: &mut Context) -> Result<()> {
    let default = context.host.config().store(None)?.name;
    let mut rows = Vec::new();
    for store in context.host.config().stores() {
        let places = store.grants.places();
        let grants: Vec<String> = places.map(|(capability, place)| format!("{} {place}", capability.name())).collect();
        let is_default = store.name == default;
        if is_json(context) {
            let value =
                json!({ "store": store.name, "strategy": store.strategy, "grants": grants, "default": is_default });
            context.printer.result("", &value)?;
        }
        let mark = if is_default { "*" } else { "" };
        rows.push(vec![format!("{}{mark}", store.name), store.strategy, grants.join(", ")]);
    }
    if is_json(context) { Ok(()) } else { context.printer.table(&["STORE", "STRATEGY", "GRANTED"], &rows) }
}

/// Every store is looked at, whatever is wrong with the one before; the first error gives the exit code.
async fn check(context: &mut Context, store: Option<String>) -> Result<()> {
    let names = match store {
        Some(name) => vec![name],
        None => context.host.config().stores().into_iter().map(|store| store.name).collect(),
    };
    let mut first = None;
    for name in names {
        let findings = match context.open(Some(&name)).await {
            Ok(repository) => repository.check(true).await,
            Err(error) => Err(error),
        };
        match findings {
            Ok(findings) => {
                show(context, &name, &findings)?;
                if let Err(error) = usable(&name, &findings) {
                    first.get_or_insert(error);
                }
            }
            Err(error) => {
                context.printer.result(
                    format!("{name}: {}", error.message),
                    &json!({ "store": name, "error": output::error_value(&error) }),
                )?;
                first.get_or_insert(error);
            }
        }
    }
    match first {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

fn usable(name: &str, findings: &Map<String, Value>) -> Result<()> {
    use crate::error::{Error, Kind};
    use crate::model::ErrorKind;
    let is_not = |property| findings.get(property) == Some(&Value::Bool(false));
    if is_not("reachable") {
        return Err(Error::contract(ErrorKind::Unavailable, format!("store `{name}` is not reachable")));
    }
    if is_not("readable") {
        return Err(Error::contract(ErrorKind::Corrupt, format!("store `{name}` is not readable")).hint(format!(
            "`larder restore --store {name}` prints the states that can be brought back, if it keeps any"
        )));
    }
    let is_error = |finding: &Value| finding.get("level").and_then(Value::as_str) == Some("error");
    if findings.get("findings").and_then(Value::as_array).is_some_and(|list| list.iter().any(is_error)) {
        return Err(Error::new(Kind::Differs, format!("store `{name}` needs attention")));
    }
    Ok(())
}

fn show(context: &mut Context, name: &str, findings: &Map<String, Value>) -> Result<()> {
    if is_json(context) {
        let mut value = Map::new();
        value.insert("store".into(), name.into());
        value.extend(findings.clone());
        return context.printer.result("", &value.into());
    }
    let mut text = String::new();
    for (key, value) in findings {
        let shown = match value {
            Value::String(value) => one_line(value),
            Value::Array(items) if key == "findings" => {
                for item in items {
                    let level = item.get("level").and_then(Value::as_str).unwrap_or("info");
                    let message = item.get("message").and_then(Value::as_str).unwrap_or_default();
                    text.push_str(&format!("\n  {}: {}", one_line(level), one_line(message)));
                }
                continue;
            }
            other => one_line(&other.to_string()),
        };
        text.push_str(&format!("\n  {}: {shown}", one_line(key)));
    }
    context.printer.result(format!("{name}{text}"), &Value::Null)
}

async fn prepare(context: &mut Context, store: Option<&str>, dry_run: bool, extend: bool) -> Result<()> {
    let repository = context.open(store).await?;
    let done = repository.prepare(dry_run, extend).await?;
    if done.is_empty() {
        output::note(format!("store `{}` lacks nothing", repository.name()));
    }
    for line in done {
        // DDL is of several lines, and meant to be read.
        let text = line.lines().map(statement_line).collect::<Vec<_>>().join("\n");
        context.printer.result(text, &json!({ "store": repository.name(), "dry_run": dry_run, "made": line }))?;
    }
    Ok(())
}

/// An instance was started to open the store, and closing it is all that there is to do.
async fn flush(context: &mut Context, store: Option<&str>) -> Result<()> {
    let repository = context.open(store).await?;
    repository.close().await?;
    let name = repository.name();
    context.printer.result(format!("flushed store `{name}`"), &json!({ "store": name, "flushed": true }))
}
