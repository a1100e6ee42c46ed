//! `larder update`: one stored entity, replaced as a whole.

use serde_json::json;

use super::{Context, conditions, conjunction, input};
use crate::cli::UpdateArgs;
use crate::error::{Error, Result};

pub(super) async fn run(context: &mut Context, args: UpdateArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    let condition = conjunction(conditions(&args.condition)?);
    let body = one_object(&args)?;
    let (collection, id, version) = (&args.collection, &args.id, args.expected_version);
    let outcome = match &condition {
        Some(condition) => repository.update_if(collection, id, &body, version, condition).await?,
        None => repository.update(collection, id, &body, version).await?,
    };
    context.printer.result(
        format!("updated {} `{}`, version {}", args.collection, args.id, outcome.version),
        &json!({ "id": args.id, "version": outcome.version }),
    )
}

/// The one JSON object of the input.
pub(super) fn one_object(args: &UpdateArgs) -> Result<Vec<u8>> {
    let mut bodies = input::bodies(args.file.as_deref())?;
    match bodies.pop() {
        Some(body) if bodies.is_empty() => Ok(body),
        _ => Err(Error::usage("the input must hold one JSON object")
            .hint(format!("it is for one entity, {} `{}`; `larder save` takes many", args.collection, args.id))),
    }
}
