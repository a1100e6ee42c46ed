//! `larder backup`: all that a store holds, as one document.

use serde_json::{Map, Value, json};

use super::{Context, entities};
use crate::cli::BackupArgs;
use crate::error::Result;
use crate::migration;

pub(super) async fn run(context: &mut Context, args: BackupArgs) -> Result<()> {
    let location = args.to.unwrap_or_else(|| context.host.config().migration.backup_location.clone());
    let repository = context.open(args.store.store.as_deref()).await?;
    let backup = migration::back_up(&repository, &location).await?;
    let count = backup.counts.iter().map(|(_, count)| count).sum();
    let counts: Map<String, Value> = backup.counts.into_iter().map(|(name, count)| (name, count.into())).collect();
    context.printer.result(
        format!("backed up {} of `{}` to {}", entities(count), repository.name(), backup.path.display()),
        &json!({
            "store": repository.name(),
            "document": backup.path.display().to_string(),
            "sha256": backup.sha256,
            "collections": counts,
        }),
    )
}
