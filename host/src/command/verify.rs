//! `larder verify`: whether two stores hold the same.

use serde_json::json;

use super::{Context, entities};
use crate::cli::VerifyArgs;
use crate::error::{Error, Kind, Result};
use crate::migration;

pub(super) async fn run(context: &mut Context, args: VerifyArgs) -> Result<()> {
    let source = context.open(Some(&args.from)).await?;
    let target = context.open(Some(&args.to)).await?;
    let names = if args.collection.is_empty() {
        source.collections().iter().map(|collection| collection.name.clone()).collect()
    } else {
        args.collection
    };
    let compared = migration::verify(&source, &target, &names).await?;
    let mut different = Vec::new();
    for (name, left, right) in compared {
        let equal = left == right;
        let text = if equal {
            format!("{name}: {}, equal", entities(left.count()))
        } else {
            format!("{name}: {} and {}, different", entities(left.count()), entities(right.count()))
        };
        let value = json!({
            "collection": name,
            "equal": equal,
            "from": { "count": left.count(), "digest": left.to_string() },
            "to": { "count": right.count(), "digest": right.to_string() },
        });
        context.printer.result(text, &value)?;
        if !equal {
            different.push(name);
        }
    }
    if different.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Differs,
        format!("stores `{}` and `{}` differ in {}", args.from, args.to, different.join(", ")),
    ))
}
