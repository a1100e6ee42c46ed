//! The file of the entities that a migration leaves out because they break a rule: one JSON object a line, with the
//! entity's collection and key, what is wrong with it, and all of its content, so that it can be corrected and imported.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use larder_model::{Collection, Entity, ErrorKind, json as exact};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::checkpoint::{Place, failure};
use super::digest::{LeftOut, hash};
use crate::error::{Error, Result};

/// The file under way. It appears under its name when it is whole, and not at all where nothing was written.
pub(super) struct Quarantine {
    path: PathBuf,
    partial: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Quarantine {
    pub(super) fn new(path: PathBuf) -> Quarantine {
        let partial = path.with_extension("jsonl.partial");
        Quarantine { path, partial, file: None }
    }

    /// Writes an entity down with the rules that it breaks.
    pub(super) fn add(&mut self, collection: &Collection, entity: &Entity, rules: &[String]) -> Result<()> {
        let failed = |error| failure(&self.path, error);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::new(File::create(&self.partial).map_err(failed)?)),
        };
        file.write_all(line(collection, entity, rules).as_bytes()).map_err(failed)
    }

    /// Puts it on the disk, and says where it is.
    pub(super) fn finish(mut self, place: &Place) -> Result<Option<PathBuf>> {
        let Some(file) = self.file.take() else {
            // What an earlier run was told by the target, and could not note any more in its state.
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failure(&self.path, error)),
                _ => Ok(None),
            };
        };
        let synced = file.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all());
        synced.and_then(|()| std::fs::rename(&self.partial, &self.path)).map_err(|error| failure(&self.path, error))?;
        place.sync()?;
        Ok(Some(self.path.clone()))
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        // Renamed by `finish`; where it is still there, nothing was left out, because nothing is moved.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// Writes down entities that the target refused, behind those of the file if it is there, and durably.
pub(super) fn append(path: &Path, place: &Place, collection: &Collection, refused: &[(Entity, String)]) -> Result<()> {
    let lines: String =
        refused.iter().map(|(entity, rule)| line(collection, entity, std::slice::from_ref(rule))).collect();
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(lines.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| failure(path, error))?;
    place.sync()
}

fn line(collection: &Collection, entity: &Entity, rules: &[String]) -> String {
    let field = rules.iter().find_map(|rule| field_of(collection, rule));
    let head = json!({ "collection": collection.name, "key": entity.id, "field": field, "rules": rules });
    let head = head.to_string();
    // Not parsed: it is kept to the letter, also where it is deeper than an entity may be.
    let body = match serde_json::from_slice::<&RawValue>(&entity.body) {
        Ok(body) if !body.get().contains('\n') => format!("\"entity\":{body}"),
        Ok(body) => match exact::parse(body.get().as_bytes()) {
            Ok(value) => format!("\"entity\":{value}"),
            Err(_) => format!("\"text\":{}", Value::from(body.get())),
        },
        // No JSON at all.
        Err(_) => format!("\"text\":{}", Value::from(String::from_utf8_lossy(&entity.body))),
    };
    format!("{},{body}}}\n", &head[..head.len() - 1])
}

/// The entities that such a file holds.
pub(super) fn read(path: &Path) -> Result<LeftOut> {
    let text = std::fs::read_to_string(path).map_err(|error| failure(path, error))?;
    let mut left_out = LeftOut::default();
    for line in text.lines() {
        // An entity as deep as it may be stands one level down.
        let line = exact::parse_wrapping(line.as_bytes(), 1)?;
        let (Some(Value::String(collection)), Some(Value::String(key))) = (line.get("collection"), line.get("key"))
        else {
            let error = Error::contract(ErrorKind::Corrupt, format!("{} is no quarantine", path.display()));
            return Err(error.hint("put it back as it was written"));
        };
        left_out.insert(hash(&[collection, key]));
    }
    Ok(left_out)
}

/// The field that a rule is about, where it begins with one: `templates.vm_type is required`.
fn field_of<'a>(collection: &Collection, rule: &'a str) -> Option<&'a str> {
    let rest = rule.strip_prefix(collection.name.as_str())?.strip_prefix('.')?;
    let name = rest.split(' ').next()?;
    let is_declared = collection.fields.iter().any(|field| field.name == name)
        || collection.references.iter().any(|reference| reference.field == name);
    is_declared.then_some(name)
}
