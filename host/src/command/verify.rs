//! `larder verify`: whether two stores hold the same.

use std::time::Instant;

use serde_json::json;

use super::{Context, entities, is_json};
use crate::cli::VerifyArgs;
use crate::error::Result;
use crate::migration::{self, Differences, StoreReport};

pub(super) async fn run(context: &mut Context, args: VerifyArgs) -> Result<()> {
    let (source, target) = tokio::join!(context.open(Some(&args.from)), context.open(Some(&args.to)));
    let (source, target) = (source?, target?);
    let names = if args.collection.is_empty() {
        source.collections().iter().map(|collection| collection.name.clone()).collect()
    } else {
        args.collection
    };
    let since = Instant::now();
    let compared = migration::verify(&source, &target, &names).await?;
    for it in &compared {
        let (name, left, right) = (&it.name, &it.source, &it.target);
        let text = match it.differences {
            None => format!("{name}: {}, equal", entities(left.count())),
            Some(_) => format!("{name}: {} and {}, different", entities(left.count()), entities(right.count())),
        };
        let value = json!({
            "collection": name,
            "equal": it.differences.is_none(),
            "from": { "count": left.count(), "digest": left.to_string() },
            "to": { "count": right.count(), "digest": right.to_string() },
            "differences": it.differences.as_ref().map(Differences::value),
        });
        context.printer.result(text, &value)?;
    }
    let error = migration::differ(&args.from, &args.to, &compared);
    if is_json(context) {
        context.printer.result(
            "",
            &json!({
                "event": "report",
                "equal": error.is_none(),
                "from": StoreReport::of(&source).value(),
                "to": StoreReport::of(&target).value(),
                "seconds": since.elapsed().as_secs_f64(),
            }),
        )?;
    }
    error.map_or(Ok(()), Err)
}
