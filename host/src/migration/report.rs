//! What a migration did, for a program to read: the last line of `--format json`, and the file that is kept.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::digest::Digest;
use super::preflight::FieldReport;
use super::seen::SourceChanges;
use super::verification::Differences;
use crate::repository::Repository;

/// One end of a migration.
#[derive(Debug, Clone)]
pub struct StoreReport {
    /// The store's name.
    pub store: String,
    /// Its strategy.
    pub strategy: String,
    /// What the plugin says is its version.
    pub version: String,
    /// Of the plugin's file.
    pub sha256: String,
}

impl StoreReport {
    /// Of an open store.
    pub fn of(repository: &Repository) -> StoreReport {
        let plugin = repository.plugin();
        StoreReport {
            store: repository.name().into(),
            strategy: plugin.name.clone(),
            version: plugin.description.version.clone(),
            sha256: plugin.sha256.clone(),
        }
    }

    /// As JSON.
    pub fn value(&self) -> Value {
        json!({ "store": self.store, "strategy": self.strategy, "version": self.version, "sha256": self.sha256 })
    }
}

/// What became of one collection. Every entity of the source is in exactly one of the counts.
#[derive(Debug, Clone, Default)]
pub struct CollectionReport {
    /// Its name.
    pub name: String,
    /// Entities of the source.
    pub read: u64,
    /// New in the target, or replaced there.
    pub written: u64,
    /// There already, equal.
    pub unchanged: u64,
    /// There already with other content, and left.
    pub skipped: u64,
    /// Left out because they break a rule, and written down.
    pub quarantined: u64,
    /// Of the source's content, without what is in quarantine.
    pub source_digest: Digest,
    /// Of what the target answers for the same entities, once verified.
    pub target_digest: Option<Digest>,
    /// What verification found, where it found something.
    pub differences: Option<Differences>,
    /// What is not as it was validated, where the source changed meanwhile.
    pub source_changes: Option<SourceChanges>,
    /// How each member is declared, and what it holds.
    pub fields: Vec<FieldReport>,
    /// Removed from the source.
    pub removed: u64,
}

impl CollectionReport {
    /// Whether each entity that was read is accounted for.
    pub(super) fn is_balanced(&self) -> bool {
        self.accounted() == self.read
    }

    pub(super) fn accounted(&self) -> u64 {
        self.written + self.unchanged + self.skipped + self.quarantined
    }

    fn value(&self) -> Value {
        json!({
            "collection": self.name,
            "read": self.read,
            "written": self.written,
            "unchanged": self.unchanged,
            "skipped": self.skipped,
            "quarantined": self.quarantined,
            "removed_from_source": self.removed,
            "source_digest": self.source_digest.to_string(),
            "target_digest": self.target_digest.as_ref().map(ToString::to_string),
            "differences": self.differences.as_ref().map(Differences::value),
            "source_changes": self.source_changes.as_ref().map(SourceChanges::value),
            "fields": self.fields.iter().map(FieldReport::value).collect::<Vec<_>>(),
        })
    }
}

/// What a migration did.
#[derive(Debug, Clone)]
pub struct Report {
    /// The source.
    pub from: StoreReport,
    /// The target.
    pub to: StoreReport,
    /// When it began; where it was resumed, when it began first.
    pub started: String,
    /// It went on from an earlier run's state.
    pub resumed: bool,
    /// Nothing was written.
    pub dry_run: bool,
    /// What the target made, or would make: tables, indexes, files.
    pub prepared: Vec<String>,
    /// Where the backup is.
    pub backup: Option<PathBuf>,
    /// Where the entities are that were left out.
    pub quarantine: Option<PathBuf>,
    /// In the order in which they were moved.
    pub collections: Vec<CollectionReport>,
    /// The target was read back and is equal.
    pub verified: bool,
    /// How long each step took, in this run.
    pub steps: Vec<(&'static str, Duration)>,
    /// All of this run.
    pub took: Duration,
    /// Where this report is kept.
    pub path: Option<PathBuf>,
}

impl Report {
    /// As JSON.
    pub fn value(&self) -> Value {
        let collections: Vec<Value> = self.collections.iter().map(CollectionReport::value).collect();
        let steps: Map<String, Value> =
            self.steps.iter().map(|(step, took)| (step.to_string(), took.as_secs_f64().into())).collect();
        json!({
            "event": "report",
            "from": self.from.value(),
            "to": self.to.value(),
            "started": self.started,
            "resumed": self.resumed,
            "dry_run": self.dry_run,
            "prepared": self.prepared,
            "backup": self.backup,
            "quarantine": self.quarantine,
            "verified": self.verified,
            "seconds": self.took.as_secs_f64(),
            "steps": steps,
            "collections": collections,
            "report": self.path,
        })
    }
}
