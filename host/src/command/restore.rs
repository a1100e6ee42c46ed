//! `larder restore`: which states of a store can be brought back, and bringing one back.

use serde_json::json;

use super::{Context, is_json};
use crate::cli::RestoreArgs;
use crate::error::Result;
use crate::model::ErrorKind;
use crate::output;
use crate::repository::Repository;
use crate::text::one_line;

pub(super) async fn run(context: &mut Context, args: RestoreArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    match args.point {
        Some(point) => restore(context, &repository, &point).await,
        None => list(context, &repository).await,
    }
}

async fn list(context: &mut Context, repository: &Repository) -> Result<()> {
    let points = repository.restore_points().await?;
    if points.is_empty() {
        output::note(format!("store `{}` has no restore points", repository.name()));
        return Ok(());
    }
    if is_json(context) {
        return points.into_iter().try_for_each(|point| {
            context.printer.result("", &json!({ "point": point.name, "description": point.description }))
        });
    }
    let rows: Vec<Vec<String>> =
        points.into_iter().map(|point| vec![one_line(&point.name), point.description]).collect();
    context.printer.table(&["POINT", "DESCRIPTION"], &rows)
}

async fn restore(context: &mut Context, repository: &Repository, point: &str) -> Result<()> {
    let name = repository.name();
    let done = repository.restore(point).await.map_err(|error| match error.is(ErrorKind::NotFound) {
        true => error.hint(format!("`larder restore --store {name}` lists the restore points")),
        false => error,
    })?;
    for line in done {
        context.printer.result(&line, &json!({ "store": name, "point": point, "done": line }))?;
    }
    Ok(())
}
