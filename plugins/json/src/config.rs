//! The store's section of the configuration, as far as the plugin reads it, and the JSON Schema that says so.

use std::collections::BTreeMap;

use larder_model::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// How entities are spread over files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StorageType {
    /// One document: an object of collections, each an object of id and entity.
    SingleFile,
    /// One document a collection: an object of id and entity.
    SplitFiles,
}

/// What documents are called.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Filenames {
    pub(crate) single_file: String,
    /// By collection; a collection that is not named here is stored in `<collection>.json`.
    pub(crate) split_files: BTreeMap<String, String>,
}

impl Default for Filenames {
    fn default() -> Self {
        Filenames { single_file: "request_database.json".to_owned(), split_files: BTreeMap::new() }
    }
}

/// The section. `base_path` is not part of it: the host made the grant from it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) storage_type: StorageType,
    pub(crate) filenames: Filenames,
    pub(crate) journal: bool,
    pub(crate) enable_compression: bool,
    pub(crate) cache_size: usize,
    pub(crate) write_buffer_size: usize,
    pub(crate) sync_writes: bool,
    pub(crate) backup_enabled: bool,
    pub(crate) backup_count: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            storage_type: StorageType::SingleFile,
            filenames: Filenames::default(),
            journal: true,
            enable_compression: false,
            cache_size: 1000,
            write_buffer_size: 64_000,
            sync_writes: true,
            backup_enabled: true,
            backup_count: 5,
        }
    }
}

impl Config {
    /// Reads the section. The host checked it against [`schema`]; what is wrong all the same is refused here.
    pub(crate) fn parse(text: &str) -> Result<Config> {
        serde_json::from_str(text).map_err(|error| Error::invalid(format!("the section of the json store: {error}")))
    }

    /// The file of a collection, where each has its own.
    pub(crate) fn split_file(&self, collection: &str) -> String {
        let named = self.filenames.split_files.get(collection);
        named.cloned().unwrap_or_else(|| format!("{collection}.json"))
    }
}

/// JSON Schema of [`Config`].
pub(crate) fn schema() -> Value {
    let defaults = Config::default();
    let boolean =
        |default: bool, description: &str| json!({ "type": "boolean", "default": default, "description": description });
    let whole = |default: usize, description: &str| json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX, "default": default, "description": description });
    let file = json!({ "type": "string", "minLength": 1 });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "storage_type": {
                "enum": ["single_file", "split_files"],
                "default": "single_file",
                "description": "single_file: one document of collections, each an object of id and entity. split_files: one file a collection, an object of id and entity."
            },
            "filenames": {
                "type": "object",
                "additionalProperties": false,
                "description": "What the documents are called, relative to the store's directory.",
                "properties": {
                    "single_file": {
                        "type": "string",
                        "minLength": 1,
                        "default": defaults.filenames.single_file,
                        "description": "The document of a single_file store."
                    },
                    "split_files": {
                        "type": "object",
                        "additionalProperties": file,
                        "default": {},
                        "description": "The document of each collection of a split_files store; <collection>.json where none is named."
                    }
                }
            },
            "journal": boolean(
                defaults.journal,
                "true: commits go to a journal beside the documents, and are folded into them when it has outgrown its bound, and when the store is closed. false: each commit replaces the document."
            ),
            "enable_compression": boolean(
                defaults.enable_compression,
                "Documents are written with gzip, under their name with .gz; both forms are read. The next time that a document is written turns the one into the other."
            ),
            "cache_size": whole(
                defaults.cache_size,
                "Entities kept parsed in memory; those of more than 64 KiB are not. Of all others only the place is."
            ),
            "write_buffer_size": whole(
                defaults.write_buffer_size,
                "Bytes that the journal may have before it is folded; it may always be as large as the documents that it is folded into, so that a save costs the same whatever their size."
            ),
            "sync_writes": boolean(defaults.sync_writes, "A write is on the disk before it is acknowledged. false: a crash of the machine may take the last writes along, though never a document."),
            "backup_enabled": boolean(defaults.backup_enabled, "The earlier document is kept when it is replaced."),
            "backup_count": whole(defaults.backup_count, "How many earlier documents are kept; the oldest go first.")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_names_each_key_and_its_default() {
        let schema = schema();
        let mut section = serde_json::Map::new();
        for (name, property) in schema["properties"].as_object().unwrap() {
            if name != "filenames" {
                section.insert(name.clone(), property["default"].clone());
            }
        }
        let config = Config::parse(&Value::Object(section).to_string()).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = Config::parse(r#"{"base_path": "data"}"#).unwrap_err();
        assert!(error.message.contains("base_path"), "{error}");
    }
}
