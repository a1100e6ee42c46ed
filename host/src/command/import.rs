//! `larder import`: what `export` printed, with versions and times as they are.

use std::io::BufRead;

use serde_json::{Value, json};

use super::{Context, entities, input};
use crate::cli::{ExistingArg, ImportArgs};
use crate::error::{Error, Result};
use crate::model::{Entity, Existing, entity, json as exact};
use crate::repository::Repository;

/// Entities written at once.
const BATCH: usize = 1000;

pub(super) fn existing(arg: ExistingArg) -> Existing {
    match arg {
        ExistingArg::Fail => Existing::Fail,
        ExistingArg::Skip => Existing::Skip,
        ExistingArg::Overwrite => Existing::Overwrite,
    }
}

#[derive(Default)]
struct Counts {
    written: u64,
    unchanged: u64,
    skipped: u64,
}

pub(super) async fn run(context: &mut Context, args: ImportArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    let (input, name) = input::open(args.file.as_deref())?;
    let mut counts = Counts::default();
    let done = import(&repository, input, existing(args.existing), &mut counts).await;
    let text = format!("{} written, {} unchanged, {} skipped", counts.written, counts.unchanged, counts.skipped);
    if let Err(error) = done {
        return Err(error.context(format!("{name} was imported only in part: {text}")));
    }
    context.printer.result(
        format!("imported {}: {text}", entities(counts.written + counts.unchanged + counts.skipped)),
        &json!({ "written": counts.written, "unchanged": counts.unchanged, "skipped": counts.skipped }),
    )
}

async fn import(
    repository: &Repository,
    input: Box<dyn BufRead>,
    existing: Existing,
    counts: &mut Counts,
) -> Result<()> {
    let mut batch: Vec<(u64, Entity)> = Vec::new();
    let mut collection = String::new();
    let mut ended = Ok(());
    for (position, line) in input.split(b'\n').enumerate() {
        let number = position as u64 + 1;
        let parsed = line
            .map_err(|error| Error::usage("the input cannot be read").caused_by(error))
            .and_then(|line| if line.trim_ascii().is_empty() { Ok(None) } else { parse(repository, &line).map(Some) })
            .map_err(|error| error.context(format!("line {number} cannot be imported")));
        match parsed {
            Ok(None) => {}
            Ok(Some((to, entity))) => {
                if to != collection || batch.len() == BATCH {
                    write(repository, &collection, std::mem::take(&mut batch), existing, counts).await?;
                    collection = to;
                }
                batch.push((number, entity));
            }
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    // What stands before a bad line is good.
    write(repository, &collection, batch, existing, counts).await?;
    repository.flush().await?;
    ended
}

fn parse(repository: &Repository, line: &[u8]) -> Result<(String, Entity)> {
    let mut object = exact::parse_object(line)?;
    let shape = || Error::usage("it is not of the form {\"collection\": …, \"entity\": {…}}");
    let Some(Value::String(name)) = object.remove("collection") else { return Err(shape()) };
    let Some(Value::Object(fields)) = object.remove("entity") else { return Err(shape()) };
    if !object.is_empty() {
        return Err(shape());
    }
    let collection = repository.collection(&name)?;
    let body = exact::to_vec(&fields);
    entity::check(collection, None, &body)?;
    Ok((name, entity::encode(collection, &fields)?))
}

async fn write(
    repository: &Repository,
    collection: &str,
    batch: Vec<(u64, Entity)>,
    existing: Existing,
    counts: &mut Counts,
) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let (numbers, batch): (Vec<u64>, Vec<Entity>) = batch.into_iter().unzip();
    let loaded = repository.load(collection, batch, existing).await?;
    counts.written += loaded.written;
    counts.unchanged += loaded.unchanged;
    counts.skipped += loaded.skipped;
    match loaded.refused.into_iter().next() {
        None => Ok(()),
        Some((position, error)) => {
            Err(Error::from(error).context(format!("line {} was refused", numbers[position as usize])))
        }
    }
}
