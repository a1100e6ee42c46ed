//! `larder delete`: entities by id. One that is not there is no error, unless a version of it was expected.

use serde_json::json;

use super::Context;
use crate::cli::DeleteArgs;
use crate::error::Result;

pub(super) async fn run(context: &mut Context, args: DeleteArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    for id in &args.ids {
        let outcome = repository.delete(&args.collection, id, args.expected_version).await?;
        let text = if outcome.existed {
            format!("deleted {} `{id}`, version {}", args.collection, outcome.version)
        } else {
            format!("{} `{id}` was not there", args.collection)
        };
        context.printer.result(text, &json!({ "id": id, "version": outcome.version, "existed": outcome.existed }))?;
    }
    Ok(())
}
