//! `larder plugins`: what is in the plugins directory, what a component wants, which may be loaded, and whether one keeps
//! the contract.

pub(super) mod test;

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Context, is_json};
use crate::cli::PluginsCommand;
use crate::config::trial;
use crate::error::{Error, Result};
use crate::output;
use crate::plugin::inspection::Memory;
use crate::plugin::pins::Pinned;
use crate::plugin::{Capability, Inspection, Plugin};
use crate::text::one_line;

pub(super) async fn run(context: &mut Context, command: PluginsCommand) -> Result<()> {
    match command {
        PluginsCommand::List => list(context).await,
        PluginsCommand::Inspect { file, describe } => inspect(context, &file, describe).await,
        PluginsCommand::Pin { check: true } => check_pins(context),
        PluginsCommand::Pin { check: false } => pin(context),
        // Needs no configuration, and ran without one.
        PluginsCommand::Test(_) => Ok(()),
    }
}

/// One that is refused is said so, and does not hide the others.
async fn list(context: &mut Context) -> Result<()> {
    let names = context.host.plugin_names()?;
    let is_pinned = context.host.pins()?.is_some();
    let mut rows = Vec::new();
    let mut first = None;
    for name in names {
        match context.host.plugin(&name).await {
            Ok(plugin) => {
                if is_json(context) {
                    let mut value = Map::from_iter([
                        ("plugin".into(), plugin.name.as_str().into()),
                        ("path".into(), json!(plugin.path)),
                        ("sha256".into(), plugin.sha256.as_str().into()),
                        ("size_bytes".into(), plugin.size_bytes.into()),
                        ("pinned".into(), is_pinned.into()),
                        ("wants".into(), names_of(&plugin.wants).into()),
                        ("may_use".into(), names_of(&plugin.may_use).into()),
                    ]);
                    value.extend(described(&plugin));
                    context.printer.result("", &value.into())?;
                }
                rows.push(vec![
                    plugin.name.clone(),
                    one_line(&plugin.description.version),
                    names_of(&plugin.wants).join(", "),
                    features(&plugin).join(", "),
                    // One that is not what was pinned is refused.
                    if is_pinned { "yes" } else { "no" }.into(),
                    plugin.sha256[..12].into(),
                ]);
            }
            Err(error) => {
                if let Some(before) = first.replace(error) {
                    output::error(context.printer.format(), &before);
                }
            }
        }
    }
    if rows.is_empty() && first.is_none() {
        output::note(format!("there is no plugin in {}", context.host.plugins_directory().display()));
    }
    if !is_json(context) && !rows.is_empty() {
        context.printer.table(&["PLUGIN", "VERSION", "WANTS", "FEATURES", "PINNED", "SHA256"], &rows)?;
    }
    first.map_or(Ok(()), Err)
}

/// What can be told is printed also of a component that would not be loaded; that it would not be is the answer then.
async fn inspect(context: &mut Context, file: &Path, describe: bool) -> Result<()> {
    let inspection = context.host.inspect(file)?;
    let plugin = match (describe, &inspection.refusal) {
        (true, None) => Some(context.host.describe(file).await?),
        _ => None,
    };
    let mut value = inspected(&inspection);
    let mut text = text_of(&inspection);
    if let Some(plugin) = &plugin {
        value.extend(described(plugin));
        text.push_str(&text_of_description(plugin));
    }
    let lines = trial::example(&inspection.name, &inspection.wants);
    text.push_str("\nA store of it, for `storage.stores` of the configuration:\n\n");
    text.push_str(&format!("{}: {:#}", Value::from(inspection.name.as_str()), Value::from(lines.clone())));
    if inspection.may_use.contains(&Capability::Tcp) {
        text.push_str(&format!("\n\nTo connect to somewhere it also needs {}", Capability::Tcp.grant_example()));
    }
    value.insert("store".into(), lines.into());
    context.printer.result(text, &value.into())?;
    inspection.refusal.map_or(Ok(()), Err)
}

fn pin(context: &mut Context) -> Result<()> {
    let pins = context.host.pins_of_directory()?;
    pins.write()?;
    for (name, sha256) in pins.plugins() {
        context.printer.result(format!("pinned {name} {sha256}"), &json!({ "plugin": name, "sha256": sha256 }))?;
    }
    output::note(format!("no other plugin is loaded from now on: {}", pins.path().display()));
    Ok(())
}

fn check_pins(context: &mut Context) -> Result<()> {
    let Some(pins) = context.host.pins()? else {
        let file = context.host.config().plugins_lock();
        return Err(Error::config(format!("no plugin is pinned: there is no {}", file.display()))
            .hint("`larder plugins pin` pins those that are in the plugins directory"));
    };
    let found = pins.compare(&context.host.pins_of_directory()?);
    for (name, pinned) in &found {
        let text = format!("{} {}", pinned.name(), one_line(name));
        context.printer.result(text, &json!({ "plugin": name, "state": pinned.name() }))?;
    }
    let others = found.iter().filter(|(_, pinned)| *pinned != Pinned::Same).count();
    if others > 0 {
        return Err(Error::refused(format!("{others} of {} plugins are not what was pinned", found.len()))
            .hint("put back what was there, or pin what is there now with `larder plugins pin`"));
    }
    Ok(())
}

fn names_of(capabilities: &[Capability]) -> Vec<&'static str> {
    capabilities.iter().map(|capability| capability.name()).collect()
}

fn features(plugin: &Plugin) -> Vec<&'static str> {
    let features = plugin.description.features;
    [
        (features.atomic_apply, "atomic-apply"),
        (features.transactions, "transactions"),
        (features.deferred_sync, "deferred-sync"),
        (features.shared_state, "shared-state"),
        (features.needs_prepare, "needs-prepare"),
    ]
    .into_iter()
    .filter_map(|(has, name)| has.then_some(name))
    .collect()
}

/// What a component says of itself.
fn described(plugin: &Plugin) -> Map<String, Value> {
    let schema = serde_json::from_str::<Value>(&plugin.description.config_schema).unwrap_or(Value::Null);
    Map::from_iter([
        ("version".into(), plugin.description.version.as_str().into()),
        ("features".into(), features(plugin).into()),
        ("max_atomic_writes".into(), plugin.description.max_atomic_writes.into()),
        ("max_entity_bytes".into(), plugin.description.max_entity_bytes.into()),
        ("config_schema".into(), schema),
    ])
}

fn inspected(inspection: &Inspection) -> Map<String, Value> {
    let content = &inspection.content;
    let memory = |memory: &Memory| {
        json!({
            "initial_bytes": memory.initial_bytes,
            "max_bytes": memory.max_bytes,
            "shared": memory.is_shared,
            "64_bit": memory.is_64_bit,
        })
    };
    Map::from_iter([
        ("plugin".into(), inspection.name.as_str().into()),
        ("path".into(), json!(inspection.path)),
        ("sha256".into(), inspection.sha256.as_str().into()),
        ("size_bytes".into(), inspection.size_bytes.into()),
        ("contract".into(), json!(inspection.contract)),
        ("modules".into(), content.modules.into()),
        ("functions".into(), content.functions.into()),
        ("tables".into(), content.tables.into()),
        ("memories".into(), content.memories.iter().map(memory).collect()),
        ("threads".into(), content.starts_threads.into()),
        ("imports".into(), json!(content.imports)),
        ("exports".into(), json!(content.exports)),
        ("wants".into(), names_of(&inspection.wants).into()),
        ("may_use".into(), names_of(&inspection.may_use).into()),
        ("refused".into(), json!(inspection.refusal.as_ref().map(|refusal| &refusal.message))),
    ])
}

fn text_of(inspection: &Inspection) -> String {
    let content = &inspection.content;
    let kib = |bytes: u64| format!("{} KiB", bytes.div_ceil(1 << 10));
    let most =
        content.max_memory_bytes().map_or("without a bound of its own".to_owned(), |it| format!("at most {}", kib(it)));
    let mut memory = format!("{} at the beginning, {most}", kib(content.initial_memory_bytes()));
    if content.memories.iter().any(|memory| memory.is_shared) {
        memory.push_str(", shared by threads");
    }
    if content.memories.iter().any(|memory| memory.is_64_bit) {
        memory.push_str(", with 64-bit addresses");
    }
    let names = |names: &[Capability]| if names.is_empty() { "nothing".to_owned() } else { names_of(names).join(", ") };
    let mut lines = vec![
        ("plugin", inspection.name.clone()),
        ("file", inspection.path.display().to_string()),
        ("size", format!("{} bytes", inspection.size_bytes)),
        ("sha256", inspection.sha256.clone()),
        ("contract", inspection.contract.clone().unwrap_or_else(|| "none".into())),
        ("content", format!("{} modules, {} functions, {} tables", content.modules, content.functions, content.tables)),
        ("memory", memory),
        ("threads", if content.starts_threads { "it starts some" } else { "none" }.into()),
        ("wants", names(&inspection.wants)),
        ("may use", names(&inspection.may_use)),
    ];
    lines.extend(content.imports.iter().map(|name| ("imports", name.clone())));
    lines.extend(content.exports.iter().map(|name| ("exports", name.clone())));
    table_of(&lines)
}

fn text_of_description(plugin: &Plugin) -> String {
    let mut lines = vec![
        ("version", plugin.description.version.clone()),
        ("features", features(plugin).join(", ")),
        ("section", format!("{}_strategy, with these keys:", plugin.name)),
    ];
    let schema = serde_json::from_str::<Value>(&plugin.description.config_schema).unwrap_or(Value::Null);
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let meaning = property.get("description").and_then(Value::as_str).unwrap_or_default();
        lines.push(("", format!("{key}: {meaning}")));
    }
    table_of(&lines)
}

/// A line each; a name that stands above is not said again.
fn table_of(lines: &[(&str, String)]) -> String {
    let mut text = String::new();
    let mut above = "";
    for (name, value) in lines {
        let shown = if *name == above || name.is_empty() { String::new() } else { format!("{name}:") };
        text.push_str(format!("{shown:<11}{}", one_line(value)).trim_end());
        text.push('\n');
        above = *name;
    }
    text
}
