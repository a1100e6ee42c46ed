//! `larder query`: the entities that a filter holds for, one a line, or how they were found.

use serde_json::json;

use super::{Context, filter_of};
use crate::cli::QueryArgs;
use crate::error::Result;
use crate::model::SortKey;
use crate::query::Select;

pub(super) async fn run(context: &mut Context, args: QueryArgs) -> Result<()> {
    let select = Select {
        filter: filter_of(&args.filter)?,
        order_by: args.order_by.iter().map(|text| sort_key(text)).collect::<Result<_>>()?,
        limit: args.limit,
        index: args.index,
    };
    let repository = context.open(args.store.store.as_deref()).await?;
    let mut answer = repository.query(&args.collection, select);
    let mut count = 0u64;
    while let Some(entities) = answer.next().await? {
        count += entities.len() as u64;
        if !args.explain {
            for entity in &entities {
                context.printer.entity(entity, false)?;
            }
        }
    }
    if !args.explain {
        return Ok(());
    }
    let plan = answer.plan();
    let done_by = |by_host: bool| if by_host { "the host" } else { "the strategy" };
    context.printer.result(
        format!(
            "index:    {}\nfilter:   by {}\norder:    by {}\nscanned:  {}\nanswered: {count}",
            plan.index_used.as_deref().unwrap_or("none"),
            done_by(plan.filtered_by_host),
            done_by(plan.sorted_by_host),
            plan.scanned_entities,
        ),
        &json!({
            "index": plan.index_used,
            "filtered_by_host": plan.filtered_by_host,
            "sorted_by_host": plan.sorted_by_host,
            "scanned": plan.scanned_entities,
            "answered": count,
        }),
    )
}

fn sort_key(text: &str) -> Result<SortKey> {
    let (field, descending) = match text.strip_suffix(":desc") {
        Some(field) => (field, true),
        None => (text.strip_suffix(":asc").unwrap_or(text), false),
    };
    Ok(SortKey { field: field.parse()?, descending })
}
