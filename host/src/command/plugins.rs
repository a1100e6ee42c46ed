//! `larder plugins`: what is in the plugins directory, what a component wants, and whether it keeps the contract.

pub(super) mod test;

use serde_json::{Value, json};

use super::{Context, is_json};
use crate::cli::PluginsCommand;
use crate::error::Result;
use crate::output;
use crate::plugin::Plugin;
use crate::plugin::instance::one_line;

pub(super) async fn run(context: &mut Context, command: PluginsCommand) -> Result<()> {
    match command {
        PluginsCommand::List => list(context).await,
        PluginsCommand::Inspect { file } => {
            let plugin = context.host.inspect(&file).await?;
            let text = describe(&plugin);
            context.printer.result(text, &value(&plugin))
        }
        // Needs no configuration, and ran without one.
        PluginsCommand::Test(_) => Ok(()),
    }
}

/// One that is refused is said so, and does not hide the others.
async fn list(context: &mut Context) -> Result<()> {
    let names = context.host.plugin_names()?;
    let mut rows = Vec::new();
    let mut first = None;
    for name in names {
        match context.host.plugin(&name).await {
            Ok(plugin) => {
                if is_json(context) {
                    context.printer.result("", &value(&plugin))?;
                }
                rows.push(vec![
                    plugin.name.clone(),
                    one_line(&plugin.description.version),
                    capabilities(&plugin).join(", "),
                    features(&plugin).join(", "),
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
        context.printer.table(&["PLUGIN", "VERSION", "WANTS", "FEATURES", "SHA256"], &rows)?;
    }
    first.map_or(Ok(()), Err)
}

fn capabilities(plugin: &Plugin) -> Vec<&'static str> {
    plugin.wants.iter().map(|capability| capability.name()).collect()
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

fn value(plugin: &Plugin) -> Value {
    let schema = serde_json::from_str::<Value>(&plugin.description.config_schema).unwrap_or(Value::Null);
    json!({
        "plugin": plugin.name,
        "version": plugin.description.version,
        "path": plugin.path,
        "sha256": plugin.sha256,
        "size_bytes": plugin.size_bytes,
        "wants": capabilities(plugin),
        "wasi": plugin.wasi,
        "grants": plugin.wants.iter().map(|capability| capability.grant_example()).collect::<Vec<_>>(),
        "features": features(plugin),
        "max_atomic_writes": plugin.description.max_atomic_writes,
        "max_entity_bytes": plugin.description.max_entity_bytes,
        "config_schema": schema,
    })
}

fn describe(plugin: &Plugin) -> String {
    let mut text = format!(
        "plugin:    {} {}\nfile:      {}\nsize:      {} bytes\nsha256:    {}\nfeatures:  {}\n",
        plugin.name,
        one_line(&plugin.description.version),
        plugin.path.display(),
        plugin.size_bytes,
        plugin.sha256,
        features(plugin).join(", "),
    );
    if plugin.wants.is_empty() {
        text.push_str("wants:     nothing\n");
    }
    for capability in &plugin.wants {
        text.push_str(&format!("wants:     {}, lent with {}\n", capability.name(), capability.grant_example()));
    }
    for interface in &plugin.wasi {
        text.push_str(&format!("uses:      {}\n", one_line(interface)));
    }
    text.push_str(&format!("section:   {}_strategy, with these keys:\n", plugin.name));
    let schema = serde_json::from_str::<Value>(&plugin.description.config_schema).unwrap_or(Value::Null);
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let meaning = property.get("description").and_then(Value::as_str).unwrap_or_default();
        text.push_str(&format!("           {}: {}\n", one_line(key), one_line(meaning)));
    }
    text.trim_end().into()
}
