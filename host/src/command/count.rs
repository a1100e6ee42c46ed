//! `larder count`: how many entities a filter holds for.

use serde_json::json;

use super::{Context, filter_of};
use crate::cli::CountArgs;
use crate::error::Result;

pub(super) async fn run(context: &mut Context, args: CountArgs) -> Result<()> {
    let filter = filter_of(&args.filter)?;
    let repository = context.open(args.store.store.as_deref()).await?;
    let count = repository.count(&args.collection, filter.as_ref()).await?;
    context.printer.result(count.to_string(), &json!({ "count": count }))
}
