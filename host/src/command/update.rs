//! `larder update`: one stored entity, replaced as a whole.

use serde_json::json;

use super::{Context, input};
use crate::cli::UpdateArgs;
use crate::error::{Error, Result};

pub(super) async fn run(context: &mut Context, args: UpdateArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    let bodies = input::bodies(args.file.as_deref())?;
    let [body] = bodies.as_slice() else {
        return Err(Error::usage(format!("the input holds {} entities, and one is updated", bodies.len())));
    };
    let outcome = repository.update(&args.collection, &args.id, body, args.expected_version).await?;
    context.printer.result(
        format!("updated {} `{}`, version {}", args.collection, args.id, outcome.version),
        &json!({ "id": args.id, "version": outcome.version }),
    )
}
