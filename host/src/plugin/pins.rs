//! Which plugins may be loaded, where somebody has said so: a file beside the configuration with the SHA-256 of each. Who
//! can write the plugins directory alone can then neither change one nor add one.
//!
//! ```json
//! {
//!   "version": 1,
//!   "plugins": {
//!     "json": "5f0c…",
//!     "sql": "91ab…"
//!   }
//! }
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::inspection::read_file;
use super::{Inspection, discover, hex};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};

/// The version of the file's format.
const VERSION: u32 = 1;
/// Far more than any number of plugins has.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What to do where the file is what somebody wants.
const PIN_HINT: &str = "if you trust what is there now, `larder plugins pin` pins it";

/// The plugins that may be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    path: PathBuf,
    plugins: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    plugins: BTreeMap<String, String>,
}

/// What a plugin is to the pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    /// It is the one that was pinned.
    Same,
    /// Another one of that name was.
    Changed,
    /// None of that name was.
    Unknown,
    /// It was pinned and is not there.
    Missing,
}

impl Pinned {
    /// Its name, in every format.
    pub fn name(self) -> &'static str {
        match self {
            Pinned::Same => "pinned",
            Pinned::Changed => "changed",
            Pinned::Unknown => "unknown",
            Pinned::Missing => "missing",
        }
    }
}

impl Pins {
    /// Reads the file, where there is one. One that cannot be read is an error, and never as if there were none.
    pub fn read(path: &Path) -> Result<Option<Pins>> {
        let broken = |cause: String| {
            Error::config(format!("the pins of plugins {} cannot be used", path.display())).caused_by(cause).hint(
                "`larder plugins pin` writes the file anew, from the plugins that are there now: look at them first",
            )
        };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(broken(error.to_string())),
            Ok(_) => {}
        }
        let metadata = std::fs::metadata(path).map_err(|error| broken(error.to_string()))?;
        if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
            return Err(broken(format!("it is not a file of at most {FILE_BYTES_MAX} bytes")));
        }
        let bytes = std::fs::read(path).map_err(|error| broken(error.to_string()))?;
        // Two members of one name would be two answers.
        let value = larder_model::json::parse(&bytes).map_err(|error| broken(error.message))?;
        let document: Document = serde_json::from_value(value).map_err(|error| broken(error.to_string()))?;
        if document.version != VERSION {
            return Err(broken(format!("it is of version {}, and this larder knows {VERSION}", document.version)));
        }
        let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        if let Some((name, _)) = document.plugins.iter().find(|(_, digest)| !is_digest(digest)) {
            return Err(broken(format!("what it has of {} is no SHA-256", larder_model::json::quoted(name))));
        }
        Ok(Some(Pins { path: path.to_owned(), plugins: document.plugins }))
    }

    /// Those that would pin what is in the plugins directory `plugins` now.
    pub fn of_directory(path: &Path, plugins: &Path, component_bytes_max: u64) -> Result<Pins> {
        let digest = |name: String| {
            let bytes = read_file(&plugins.join(format!("{name}.wasm")), component_bytes_max)?;
            Ok((name, hex(&Sha256::digest(&bytes))))
        };
        let plugins = discover(plugins)?.into_iter().map(digest).collect::<Result<_>>()?;
        Ok(Pins { path: path.to_owned(), plugins })
    }

    /// Writes the file, as a whole or not at all.
    pub fn write(&self) -> Result<()> {
        let failed = |error: io::Error| {
            Error::config(format!("the pins of plugins {} cannot be written", self.path.display()))
                .caused_by(error)
                .hint("they stand beside the configuration, in a folder that must be writable for that")
        };
        let document = Document { version: VERSION, plugins: self.plugins.clone() };
        let text = serde_json::to_string_pretty(&document).map_err(io::Error::from).map_err(failed)?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".plugins.lock.");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any other file is made, for all who read the configuration.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut file = builder.tempfile_in(folder).map_err(failed)?;
        writeln!(file, "{text}").and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&self.path).map_err(|error| failed(error.error))?;
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    /// Where they stand.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names, sorted, each with its SHA-256.
    pub fn plugins(&self) -> impl Iterator<Item = (&str, &str)> {
        self.plugins.iter().map(|(name, digest)| (name.as_str(), digest.as_str()))
    }

    /// What a plugin of that name and that SHA-256 is to them.
    pub fn look_up(&self, name: &str, sha256: &str) -> Pinned {
        match self.plugins.get(name) {
            None => Pinned::Unknown,
            Some(pinned) if pinned == sha256 => Pinned::Same,
            Some(_) => Pinned::Changed,
        }
    }

    /// What became of every plugin, of those that are pinned here and of those that `found` has, sorted by name.
    pub fn compare(&self, found: &Pins) -> Vec<(String, Pinned)> {
        let missing = self.plugins.keys().filter(|name| !found.plugins.contains_key(*name));
        let missing = missing.map(|name| (name.clone(), Pinned::Missing));
        let there = found.plugins.iter().map(|(name, digest)| (name.clone(), self.look_up(name, digest)));
        let mut all: Vec<_> = missing.chain(there).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// That a component is one of them.
    pub(super) fn check(&self, inspection: &Inspection) -> Result<()> {
        let at = || format!("plugin {}", inspection.path.display());
        let pins = self.path.display();
        match self.look_up(&inspection.name, &inspection.sha256) {
            Pinned::Same => Ok(()),
            Pinned::Changed | Pinned::Missing => {
                Err(Error::refused(format!("{}: is not the one that {pins} pins", at()))
                    .caused_by(format!("its SHA-256 is {}", inspection.sha256))
                    .hint(PIN_HINT))
            }
            Pinned::Unknown => {
                Err(Error::refused(format!("{}: is not among the plugins that {pins} pins", at())).hint(PIN_HINT))
            }
        }
    }
}
