//! The backup of a store: one JSON document in the `single_file` layout, so that it can be read by eye and opened as a
//! JSON store, with a manifest beside it. It appears under its name only when it is whole and on the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use larder_model::{Entity, ErrorKind};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::read_ahead;
use crate::error::{Error, Result};
use crate::repository::Repository;

/// Writes all that these collections of a store hold into a new file, of `location` where that ends in `.json` and below
/// that folder otherwise. `advance` is told how many more entities of which collection are written, and says whether
/// to go on. What others write meanwhile may be in it or not.
pub(super) async fn back_up(
    store: &Repository,
    collections: &[String],
    location: &Path,
    mut advance: impl FnMut(&str, u64) -> Result<()>,
) -> Result<BackedUp> {
    let mut backup = Backup::create(location, store.name())?;
    let mut counts = Vec::with_capacity(collections.len());
    for name in collections {
        backup.begin_collection(name)?;
        let mut pages = read_ahead(store, name, 1);
        while let Some(page) = pages.recv().await {
            let page = page?.entities;
            backup.write(&page)?;
            advance(name, page.len() as u64)?;
        }
        counts.push((name.clone(), backup.end_collection()?));
    }
    let (path, sha256) = backup.finish()?;
    Ok(BackedUp { path, sha256, counts })
}

/// A backup that is whole and on the disk.
#[derive(Debug)]
pub struct BackedUp {
    /// The document. Its manifest lies beside it, as `.manifest.json`.
    pub path: PathBuf,
    /// Of the document, in hexadecimal.
    pub sha256: String,
    /// How many entities each collection has.
    pub counts: Vec<(String, u64)>,
}

/// A backup under way. Dropped before [`Backup::finish`], it leaves nothing.
struct Backup {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<Hashing>,
    store: String,
    created: String,
    counts: Map<String, Value>,
    collection: String,
    count: u64,
}

/// Hashes what passes through.
struct Hashing {
    file: File,
    hasher: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Backup {
    /// Begins a backup of `store` in the folder `location`, or in the file where it ends in `.json`. A name that is taken
    /// gets a number: a backup never replaces another.
    fn create(location: &Path, store: &str) -> Result<Backup> {
        let created = crate::clock::now();
        let (folder, stem) = match location.extension() {
            Some(extension) if extension == "json" => {
                let stem = location.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                (location.parent().unwrap_or(Path::new("")).to_owned(), stem)
            }
            _ => {
                let time = created.replace(['-', ':'], "");
                (location.to_owned(), format!("migration_backup_{store}_{time}"))
            }
        };
        let failed = |error: io::Error| failure(location, error);
        if !folder.as_os_str().is_empty() {
            std::fs::create_dir_all(&folder).map_err(failed)?;
        }
        for number in 0.. {
            let suffix = if number == 0 { String::new() } else { format!("-{number}") };
            let path = folder.join(format!("{stem}{suffix}.json"));
            if path.exists() {
                continue;
            }
            let partial = folder.join(format!("{stem}{suffix}.json.partial"));
            let file = match OpenOptions::new().write(true).create_new(true).open(&partial) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(failed(error)),
            };
            let mut backup = Backup {
                path,
                partial,
                file: BufWriter::with_capacity(1 << 20, Hashing { file, hasher: Sha256::new() }),
                store: store.into(),
                created,
                counts: Map::new(),
                collection: String::new(),
                count: 0,
            };
            backup.put(b"{")?;
            return Ok(backup);
        }
        unreachable!("the numbers do not end")
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| failure(&self.path, error))
    }

    fn begin_collection(&mut self, name: &str) -> Result<()> {
        let comma = if self.counts.is_empty() { "" } else { "," };
        self.collection = name.into();
        self.count = 0;
        self.put(format!("{comma}\n  {}: {{", Value::from(name)).as_bytes())
    }

    fn write(&mut self, entities: &[Entity]) -> Result<()> {
        for entity in entities {
            // A body that is no JSON would spoil the whole document.
            serde_json::from_slice::<serde::de::IgnoredAny>(&entity.body).map_err(|error| {
                Error::contract(ErrorKind::Corrupt, format!("{} `{}` is not JSON", self.collection, entity.id))
                    .caused_by(error)
            })?;
            let comma = if self.count == 0 { "" } else { "," };
            self.put(format!("{comma}\n    {}: ", Value::from(entity.id.as_str())).as_bytes())?;
            self.put(&entity.body)?;
            self.count += 1;
        }
        Ok(())
    }

    /// Ends the collection and says how many entities it has.
    fn end_collection(&mut self) -> Result<u64> {
        self.put(if self.count == 0 { b"}" } else { b"\n  }" })?;
        let (name, count) = (std::mem::take(&mut self.collection), self.count);
        self.counts.insert(name, count.into());
        Ok(count)
    }

    /// Puts it on the disk under its name, with the manifest beside it, and says which name and which hash that are.
    fn finish(mut self) -> Result<(PathBuf, String)> {
        let path = self.path.clone();
        let failed = |error: io::Error| failure(&path, error);
        self.put(b"\n}\n")?;
        self.file.flush().map_err(failed)?;
        self.file.get_ref().file.sync_all().map_err(failed)?;
        let sha256 = crate::plugin::hex(&self.file.get_ref().hasher.clone().finalize());
        let manifest = json!({
            "format": "larder-backup",
            "document": path.file_name().unwrap_or_default().to_string_lossy(),
            "store": self.store,
            "created": self.created,
            "collections": self.counts,
            "sha256": sha256,
        });
        let manifest_path = path.with_extension("manifest.json");
        std::fs::write(&manifest_path, format!("{manifest:#}\n")).map_err(failed)?;
        File::open(&manifest_path).and_then(|file| file.sync_all()).map_err(failed)?;
        std::fs::rename(&self.partial, &path).map_err(failed)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok((path, sha256))
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        // Renamed by `finish`; where it is still there, the backup failed, and half of one helps nobody.
        let _ = std::fs::remove_file(&self.partial);
    }
}

fn failure(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::LimitExceeded
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::contract(kind, format!("cannot write the backup {}", path.display()))
        .caused_by(error)
        .hint("name another place: `migration.backup_location`, or --to of `larder backup`")
}
