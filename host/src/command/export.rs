//! `larder export`: every entity of a store, one a line. Referenced collections come first, so that the lines can be
//! imported in their order.

use serde_json::{Value, json};

use super::Context;
use crate::cli::ExportArgs;
use crate::error::Result;
use crate::migration;

pub(super) async fn run(context: &mut Context, args: ExportArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    for name in &args.collection {
        repository.collection(name)?;
    }
    for collection in migration::by_reference(repository.collections().to_vec()) {
        if !args.collection.is_empty() && !args.collection.contains(&collection.name) {
            continue;
        }
        let mut pages = migration::read_ahead(&repository, &collection.name, 1);
        while let Some(page) = pages.recv().await {
            for entity in page?.entities {
                let fields = repository.checked(&collection, &entity)?;
                let line = json!({ "collection": collection.name, "entity": Value::Object(fields.into_map()) });
                context.printer.value(&line)?;
            }
        }
    }
    Ok(())
}
