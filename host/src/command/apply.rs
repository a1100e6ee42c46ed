//! `larder apply`: many writes over several collections, all or nothing.

use std::io::BufRead;

use serde_json::{Map, Value, json};

use super::{Context, entities, input};
use crate::cli::ApplyArgs;
use crate::error::{Error, Result};
use crate::model::{Expectation, Put, Removal, Write, entity, json as exact};
use crate::repository::{Repository, merged};

/// One line of the input.
struct Line {
    number: u64,
    op: Op,
    collection: String,
    id: String,
    expected_version: Option<u64>,
}

enum Op {
    Save(Map<String, Value>),
    Update(Map<String, Value>),
    Patch(Map<String, Value>),
    Delete,
}

pub(super) async fn run(context: &mut Context, args: ApplyArgs) -> Result<()> {
    let repository = context.open(args.store.store.as_deref()).await?;
    let (input, name) = input::open(args.file.as_deref())?;
    let mut lines = Vec::new();
    for (position, text) in input.split(b'\n').enumerate() {
        let number = position as u64 + 1;
        let text = text.map_err(|error| Error::usage(format!("cannot read {name}")).caused_by(error))?;
        if text.trim_ascii().is_empty() {
            continue;
        }
        let line = parse(&repository, number, &text);
        lines.push(
            line.map_err(|error| error.context(format!("line {number} of {name} is no write; nothing was written")))?,
        );
    }
    let numbers: Vec<u64> = lines.iter().map(|line| line.number).collect();
    let ids: Vec<String> = lines.iter().map(|line| line.id.clone()).collect();
    let writes = writes(&repository, lines).await?;
    let count = writes.len() as u64;
    let results = repository.apply(writes, true).await.map_err(|error| match error.write_index {
        Some(index) if (index as usize) < numbers.len() => {
            error.context(format!("line {} of {name} failed; nothing was written", numbers[index as usize]))
        }
        _ => error,
    })?;
    for (id, result) in ids.iter().zip(results) {
        let version = result?.version;
        if super::is_json(context) {
            context.printer.result("", &json!({ "id": id, "version": version }))?;
        }
    }
    if !super::is_json(context) {
        context.printer.result(format!("applied writes of {}", entities(count)), &Value::Null)?;
    }
    Ok(())
}

fn parse(repository: &Repository, number: u64, text: &[u8]) -> Result<Line> {
    let mut object = exact::parse_object(text)?;
    let mut text_of = |name: &str| match object.shift_remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Error::usage(format!("`{name}` is not a string"))),
    };
    let (op, collection, id) = (text_of("op")?, text_of("collection")?, text_of("id")?);
    let collection = collection.ok_or_else(|| Error::usage("`collection` is missing"))?;
    let definition = repository.collection(&collection)?;
    let fields = match object.shift_remove("entity") {
        None => None,
        Some(Value::Object(fields)) => Some(fields),
        Some(_) => return Err(Error::usage("`entity` is not an object")),
    };
    let expected_version = match object.shift_remove("expected_version") {
        None | Some(Value::Null) => None,
        Some(value) => Some(value.as_u64().ok_or_else(|| Error::usage("`expected_version` is not a version"))?),
    };
    if let Some(name) = object.keys().next() {
        return Err(Error::usage(format!("`{name}` is not part of a write"))
            .hint("a write has `op`, `collection`, `id`, `entity` and `expected_version`"));
    }
    let needs = |fields: Option<Map<String, Value>>| fields.ok_or_else(|| Error::usage("`entity` is missing"));
    let op = match op.as_deref() {
        Some("save") => Op::Save(needs(fields)?),
        Some("update") => Op::Update(needs(fields)?),
        Some("patch") => Op::Patch(needs(fields)?),
        Some("delete") => Op::Delete,
        _ => return Err(Error::usage("`op` is none of save, update, patch and delete")),
    };
    let id = match (&op, id) {
        (_, Some(id)) => id,
        // An entity that is whole says who it is.
        (Op::Save(fields) | Op::Update(fields), None) => entity::key_of(definition, fields)?.to_owned(),
        (Op::Patch(_) | Op::Delete, None) => return Err(Error::usage("`id` is missing")),
    };
    entity::check_id(&id)?;
    Ok(Line { number, op, collection, id, expected_version })
}

/// The writes of the lines. A patch is made against what is stored now, and holds only while that is stored.
async fn writes(repository: &Repository, lines: Vec<Line>) -> Result<Vec<Write>> {
    let mut writes = Vec::with_capacity(lines.len());
    for line in lines {
        let expect = line.expected_version.map(Expectation::Version);
        let (fields, expect) = match line.op {
            Op::Save(fields) => (fields, expect.unwrap_or(Expectation::Any)),
            Op::Update(fields) => (fields, expect.unwrap_or(Expectation::Present)),
            Op::Patch(patch) => {
                let failed = |error: Error| error.context(format!("line {} failed; nothing was written", line.number));
                let (fields, version) = merged(repository, &line.collection, &line.id, &patch).await.map_err(failed)?;
                // Whatever was made of another version is not to be written over the expected one, even if that comes
                // meanwhile.
                if let Some(expect) = expect {
                    let checked = entity::check_expectation(expect, Some(version), &line.collection, &line.id);
                    checked.map_err(|error| failed(error.into()))?;
                }
                (fields, Expectation::Version(version))
            }
            Op::Delete => {
                let expect = expect.unwrap_or(Expectation::Any);
                writes.push(Write::Remove(Removal { collection: line.collection, id: line.id, expect }));
                continue;
            }
        };
        let body = exact::to_vec(&fields);
        entity::check(repository.collection(&line.collection)?, Some(&line.id), &body)
            .map_err(|error| Error::from(error).context(format!("line {} failed; nothing was written", line.number)))?;
        writes.push(Write::Put(Put { collection: line.collection, id: line.id, body, expect }));
    }
    Ok(writes)
}
