//! `larder get`: entities by id.

use super::Context;
use crate::cli::GetArgs;
use crate::error::{Error, Result};
use crate::model::ErrorKind;

pub(super) async fn run(context: &mut Context, args: GetArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    let found = repository.get(&args.collection, &args.ids).await?;
    let mut missing = Vec::new();
    for (id, entity) in args.ids.iter().zip(found) {
        match entity {
            Some(entity) => context.printer.entity(&entity, true)?,
            None => missing.push(format!("`{id}`")),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::contract(
        ErrorKind::NotFound,
        format!("{} has no {} in store `{}`", args.collection, missing.join(", "), repository.name()),
    ))
}
