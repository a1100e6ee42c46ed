//! `larder patch`: members of one stored entity, changed by a JSON merge patch.

use serde_json::json;

use super::update::one_object;
use super::{Context, conditions, conjunction};
use crate::cli::UpdateArgs;
use crate::error::Result;
use crate::model::json as exact;

pub(super) async fn run(context: &mut Context, args: UpdateArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    let condition = conjunction(conditions(&args.condition)?);
    let patch = exact::parse_object(&one_object(&args)?)?;
    let (collection, id) = (&args.collection, &args.id);
    let outcome = repository.patch(collection, id, &patch, args.expected_version, condition.as_ref()).await?;
    context.printer.result(
        format!("patched {collection} `{id}`, version {}", outcome.version),
        &json!({ "id": id, "version": outcome.version }),
    )
}
