//! `larder query`: the entities that a filter holds for, one a line, or how they were found.

use serde_json::json;

use super::{Context, filter_of};
use crate::cli::QueryArgs;
use crate::error::{Error, Result};
use crate::model::SortKey;
use crate::output;
use crate::query::Select;

pub(super) async fn run(context: &mut Context, args: QueryArgs) -> Result<()> {
    let select = Select {
        filter: filter_of(&args.filter)?,
        order_by: args.order_by.iter().map(|text| sort_key(text)).collect::<Result<_>>()?,
        limit: args.limit,
        index: args.index,
    };
    let repository = context.open(args.store.store.as_deref()).await?;
    // Behind the last entity of a query without a limit there is nothing to go on with.
    let is_paged = !args.explain && args.limit.is_some_and(|limit| limit > 0);
    let mut answer = match is_paged || args.cursor.is_some() {
        true => repository.query_from(&args.collection, select, args.cursor.as_deref()).await?,
        false => repository.query(&args.collection, select),
    };
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
        // The data goes first, so that a terminal shows the line below it.
        context.printer.finish()?;
        if let Some(cursor) = answer.cursor()? {
            output::next_page(context.printer.format(), &cursor);
        }
        return Ok(());
    }
    let plan = answer.plan();
    let notes: String = plan.notes.iter().map(|note| format!("\nnote:     {note}")).collect();
    let cost = plan.cost.as_ref().map(|(amount, unit)| format!("\ncost:     {amount} {unit}")).unwrap_or_default();
    let done_by = |by_host: bool| if by_host { "the host" } else { "the strategy" };
    context.printer.result(
        format!(
            "index:    {}\nfilter:   by {}\norder:    by {}\nscanned:  {}\nanswered: {count}{cost}{notes}",
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
            "notes": plan.notes,
            "cost": plan.cost.as_ref().map(|(amount, unit)| json!({"amount": amount, "unit": unit})),
        }),
    )
}

fn sort_key(text: &str) -> Result<SortKey> {
    text.parse().map_err(|error: crate::model::Error| {
        Error::from(error)
            .hint("`FIELD`, `FIELD:asc` or `FIELD:desc`; a name with a dot or a colon is quoted: '\"a:b\":desc'")
    })
}
