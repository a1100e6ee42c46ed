//! What lies in the plugins directory, for who looks again and again: which files, and whether each is still the one that
//! was there before.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::Path;
use std::time::SystemTime;

use crate::error::Result;

/// A file as it was seen: one that is written to, or replaced, looks another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    bytes: u64,
    modified: Option<SystemTime>,
    file: Option<(u64, u64)>,
}

impl Look {
    fn of(metadata: &Metadata) -> Look {
        Look { bytes: metadata.len(), modified: metadata.modified().ok(), file: file_of(metadata) }
    }
}

/// Which file of the file system it is: a rename puts another one in its place.
#[cfg(unix)]
fn file_of(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn file_of(_: &Metadata) -> Option<(u64, u64)> {
    None
}

/// The components in `directory` by their names. One that goes while it is looked at is not there.
pub(crate) fn look(directory: &Path) -> Result<BTreeMap<String, Look>> {
    let looked = |name: String| {
        let metadata = std::fs::metadata(directory.join(format!("{name}.wasm"))).ok()?;
        Some((name, Look::of(&metadata)))
    };
    Ok(super::discover(directory)?.into_iter().filter_map(looked).collect())
}
