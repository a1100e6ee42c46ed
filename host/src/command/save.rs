//! `larder save`: entities from JSON, each created or replaced as a whole.

use serde_json::json;

use super::{Context, input};
use crate::cli::{ExpectArg, SaveArgs};
use crate::error::{Error, Result};
use crate::model::{Expectation, Put, Write, entity};
use crate::output;

/// Writes that cross at once.
const CHUNK: usize = 1000;

pub(super) async fn run(context: &mut Context, args: SaveArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    let collection = repository.collection(&args.collection)?;
    let expect = match args.expect {
        None => Expectation::Any,
        Some(ExpectArg::Absent) => Expectation::Absent,
        Some(ExpectArg::Present) => Expectation::Present,
        Some(ExpectArg::Version(version)) => Expectation::Version(version),
    };
    let bodies = input::bodies(args.file.as_deref())?;
    let mut puts = Vec::with_capacity(bodies.len());
    let many = bodies.len() > 1;
    for (position, body) in bodies.into_iter().enumerate() {
        // All of the input is checked before any of it is written.
        let fields = entity::check(collection, None, &body).map_err(|error| {
            let error = Error::from(error);
            if many { error.context(format!("entity {} of the input cannot be saved", position + 1)) } else { error }
        })?;
        let id = entity::key_of(collection, &fields)?.to_owned();
        puts.push(Put { collection: collection.name.clone(), id, body, expect });
    }
    if puts.is_empty() {
        output::note("the input is an empty array: there was nothing to save");
    }
    let mut failed: Vec<Error> = Vec::new();
    while !puts.is_empty() {
        let chunk: Vec<Put> = puts.drain(..puts.len().min(CHUNK)).collect();
        let ids: Vec<String> = chunk.iter().map(|put| put.id.clone()).collect();
        let results = repository.apply(chunk.into_iter().map(Write::Put).collect(), false).await?;
        for (id, result) in ids.iter().zip(results) {
            match result {
                Ok(outcome) => context.printer.result(
                    format!("saved {} `{id}`, version {}", args.collection, outcome.version),
                    &json!({ "id": id, "version": outcome.version }),
                )?,
                Err(error) => failed.push(repository.advised(error)),
            }
        }
    }
    // One error is the command's own; of several each is shown, and the first gives the exit code.
    let Some(first) = failed.first().cloned() else { return Ok(()) };
    if failed.len() == 1 {
        return Err(first);
    }
    context.printer.finish()?;
    for error in &failed {
        output::error(context.printer.format(), error);
    }
    Err(Error { causes: Vec::new(), hint: None, message: format!("{} entities were not saved", failed.len()), ..first })
}
