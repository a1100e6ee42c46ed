//! `larder config`: whether the configuration is right, and what it means.

use serde_json::json;

use super::Context;
use crate::cli::ConfigCommand;
use crate::config::check_section;
use crate::error::Result;

pub(super) async fn run(context: &mut Context, command: ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Check => check(context).await,
        ConfigCommand::Show => context.printer.document(&context.host.config().show()),
        // Answered before a configuration was read.
        ConfigCommand::Schema => Ok(()),
    }
}

async fn check(context: &mut Context) -> Result<()> {
    let stores = context.host.config().stores();
    for store in &stores {
        let plugin =
            context.host.plugin(&store.strategy).await.map_err(|error| {
                error.context(format!("store `{}` needs the plugin `{}`", store.name, store.strategy))
            })?;
        check_section(&store.strategy, &store.section.clone().into(), &plugin.description.config_schema)?;
    }
    let names: Vec<&str> = stores.iter().map(|store| store.name.as_str()).collect();
    context.printer.result(
        format!("the configuration is valid; stores: {}", names.join(", ")),
        &json!({ "valid": true, "stores": names }),
    )
}
