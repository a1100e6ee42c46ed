//! How changes reach the disk: one document by one rename, several by a record of them all that is replayed.
//!
//! A rename replaces one document or does not. Where a commit changes several, everything that it writes is first put
//! into the record `.larder.commit`, synced and renamed into its place: that is the moment of the commit. Then each
//! document is replaced, and the record removed. Who finds a record with the lock in its hand completes what a process
//! that died began. The record names what each document held before and after, so one that was overtaken is known.

use larder_guest::Files;
use larder_model::{Error, ErrorKind, Result, Retry};
use serde::{Deserialize, Serialize};

use crate::{
    clock,
    document::{self, Changes, Rendered},
    store::JsonStore,
};

/// The record of a commit over several documents.
pub(crate) const RECORD: &str = ".larder.commit";
/// What follows the document's name in a backup's.
const BACKUP_MARK: &str = ".bak-";
/// One piece that is written.
const WRITE_BYTES: usize = 4 << 20;

/// The first line of a record; the files' bytes follow, one after the other.
#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    replaced: Vec<Replaced>,
}

#[derive(Serialize, Deserialize)]
struct Replaced {
    path: String,
    /// The document in its other form, which goes.
    retired: Option<String>,
    /// Of the text before and after; of no text where there was no file.
    before: u32,
    after: u32,
    bytes: usize,
    bytes_checksum: u32,
}

/// A replacement that is written in full, and only needs its rename.
struct Prepared<F: Files> {
    document: usize,
    path: String,
    rendered: Rendered,
    replacement: F::Replacement,
    backup: Option<String>,
}

impl<F: Files> JsonStore<F> {
    /// Makes the changes durable, all or none. The exclusive lock is held, and the documents are those on the disk.
    pub(crate) fn commit_changes(&mut self, changes: &Changes) -> Result<()> {
        let changed: Vec<_> = (0..self.documents.len()).filter(|&i| self.documents[i].would_change(changes)).collect();
        let prepared = changed.iter().map(|&i| self.prepare_replacement(i, changes)).collect::<Result<Vec<_>>>()?;
        if prepared.len() <= 1 {
            return prepared.into_iter().try_for_each(|prepared| self.finish(prepared));
        }
        self.write_record(&prepared)?;
        for prepared in prepared {
            self.finish(prepared).map_err(|error| Error {
                // It was decided when the record was there: whoever takes the lock next completes it.
                retry: Retry::UnknownOutcome,
                message: format!("the commit is recorded and will be completed later: {error}"),
                ..error
            })?;
        }
        self.files.remove(RECORD)?;
        Ok(())
    }

    /// Writes one document with its changes.
    pub(crate) fn commit_document(&mut self, document: usize, changes: &Changes) -> Result<()> {
        let prepared = self.prepare_replacement(document, changes)?;
        self.finish(prepared)
    }

    fn prepare_replacement(&self, document: usize, changes: &Changes) -> Result<Prepared<F>> {
        let path = self.documents[document].path(self.config.enable_compression);
        let rendered = self.documents[document].render(changes)?;
        let replacement = self.write_replacement(&path, &document::encode(&path, &rendered.text)?)?;
        let backup = self.backup_name(document)?;
        Ok(Prepared { document, path, rendered, replacement, backup })
    }

    fn write_replacement(&self, path: &str, bytes: &[u8]) -> Result<F::Replacement> {
        let replacement = self.files.replace(path)?;
        for part in bytes.chunks(WRITE_BYTES) {
            self.files.replacement_write(&replacement, part)?;
        }
        Ok(replacement)
    }

    fn finish(&mut self, prepared: Prepared<F>) -> Result<()> {
        let Prepared { document, path, rendered, replacement, backup } = prepared;
        let old = self.documents[document].read_from().map(|(old, _)| old.to_owned());
        // A document in its other form stays where it is until the new one is there.
        let moves = old.as_ref().is_some_and(|old| *old != path);
        let keep_old_as = backup.as_deref().filter(|_| !moves);
        let stat = self.files.replacement_commit(replacement, keep_old_as, self.config.sync_writes)?;
        self.documents[document].install(rendered, path, stat);
        self.make_room();
        // What follows is housekeeping: the write took effect, and is not taken back because a file stays too long.
        if let Some(old) = old {
            if moves {
                let _ = self.retire(&old, backup);
            }
            let _ = self.prune_backups(&old);
        }
        Ok(())
    }

    /// Removes a document of the other form, once it is kept as a backup.
    fn retire(&self, old: &str, backup: Option<String>) -> Result<()> {
        if let Some(backup) = backup
            && let Some(stat) = self.files.stat(old)?
            && let Some(bytes) = document::read_whole(&self.files, old, stat.size)?
        {
            let copy = self.write_replacement(&backup, &bytes)?;
            self.files.replacement_commit(copy, None, self.config.sync_writes)?;
        }
        self.files.remove(old)?;
        Ok(())
    }

    fn prune_backups(&self, path: &str) -> Result<()> {
        if !self.config.backup_enabled {
            return Ok(());
        }
        let backups = backups(&self.files, path)?;
        let surplus = backups.len().saturating_sub(self.config.backup_count);
        for backup in &backups[..surplus] {
            self.files.remove(backup)?;
        }
        Ok(())
    }

    /// A name that is free, for the document that is about to be replaced; none where none is kept.
    fn backup_name(&self, document: usize) -> Result<Option<String>> {
        let keeps = self.config.backup_enabled && self.config.backup_count > 0;
        let Some((old, _)) = self.documents[document].read_from().filter(|_| keeps) else { return Ok(None) };
        let taken = backups(&self.files, old)?;
        let name = format!("{old}{BACKUP_MARK}{}", clock::compact_now());
        let numbered = (1..).map(|number| format!("{name}-{number}"));
        Ok(std::iter::once(name.clone()).chain(numbered).find(|name| !taken.contains(name)))
    }

    fn write_record(&self, prepared: &[Prepared<F>]) -> Result<()> {
        let mut replaced = Vec::new();
        let mut payload = Vec::new();
        for prepared in prepared {
            let bytes = document::encode(&prepared.path, &prepared.rendered.text)?;
            let document = &self.documents[prepared.document];
            let old = document.read_from().map(|(old, _)| old);
            let moves = old.is_some_and(|old| old != prepared.path);
            replaced.push(Replaced {
                path: prepared.path.clone(),
                retired: old.filter(|_| moves).map(str::to_owned),
                before: if moves { document::checksum(&[]) } else { document.checksum() },
                after: document::checksum(&prepared.rendered.text),
                bytes: bytes.len(),
                bytes_checksum: document::checksum(&bytes),
            });
            payload.extend_from_slice(&bytes);
        }
        let mut record = serde_json::to_vec(&Record { format: 1, replaced }).expect("text and numbers cannot fail");
        record.push(b'\n');
        record.extend_from_slice(&payload);
        let replacement = self.write_replacement(RECORD, &record)?;
        self.files.replacement_commit(replacement, None, self.config.sync_writes)?;
        Ok(())
    }

    /// Completes what a process that died began. The exclusive lock is held.
    pub(crate) fn recover(&mut self) -> Result<()> {
        let Some(stat) = self.files.stat(RECORD)? else { return Ok(()) };
        let bytes = document::read_whole(&self.files, RECORD, stat.size)?.unwrap_or_default();
        match parse_record(&bytes)? {
            // Without syncing, a crash may bring a record back that was completed and removed long ago. Where a document
            // is neither as the commit found it nor as it left it, the record is such a one.
            Some((record, _)) if !self.config.sync_writes && !self.is_current(&record)? => {}
            Some((record, payload)) => {
                let mut rest = payload;
                for replaced in &record.replaced {
                    let (bytes, after) = rest.split_at(replaced.bytes);
                    rest = after;
                    // What is as the commit found it gets its part. What is neither that nor what the commit makes of
                    // it was changed by hand meanwhile, and stays.
                    let found = self.checksum_on_disk(&replaced.path)?;
                    if found == replaced.before && found != replaced.after {
                        let replacement = self.write_replacement(&replaced.path, bytes)?;
                        self.files.replacement_commit(replacement, None, self.config.sync_writes)?;
                    }
                    if let Some(retired) = &replaced.retired
                        && (found == replaced.before || found == replaced.after)
                    {
                        self.files.remove(retired)?;
                    }
                }
            }
            // It was synced before any document was touched, so something else has damaged it.
            None if self.config.sync_writes => {
                return Err(Error::corrupt(format!(
                    "{RECORD}, the record of an unfinished commit, is damaged, and the documents may hold a part of that \
                     commit: look at them, or restore them from a backup, and remove the record"
                )));
            }
            None => {}
        }
        self.files.remove(RECORD)?;
        Ok(())
    }

    /// Whether each document is as it was before the commit or after it.
    fn is_current(&self, record: &Record) -> Result<bool> {
        for replaced in &record.replaced {
            let found = self.checksum_on_disk(&replaced.path)?;
            if found != replaced.before && found != replaced.after {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn checksum_on_disk(&self, path: &str) -> Result<u32> {
        let Some(stat) = self.files.stat(path)? else { return Ok(document::checksum(&[])) };
        let bytes = document::read_whole(&self.files, path, stat.size)?.unwrap_or_default();
        Ok(document::checksum(&document::decode(path, bytes)?))
    }
}

/// None where the record is not whole: it was renamed into its place, but its bytes never reached the disk, because
/// syncing is switched off. Then nothing was acknowledged that it would have brought.
fn parse_record(bytes: &[u8]) -> Result<Option<(Record, &[u8])>> {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
    let Ok(record) = serde_json::from_slice::<Record>(&bytes[..end]) else { return Ok(None) };
    if record.format != 1 {
        let message = format!("{RECORD} was written by a newer version of the json strategy");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let payload = &bytes[end + 1..];
    let mut rest = payload;
    for replaced in &record.replaced {
        let Some((bytes, after)) = rest.split_at_checked(replaced.bytes) else { return Ok(None) };
        if document::checksum(bytes) != replaced.bytes_checksum {
            return Ok(None);
        }
        rest = after;
    }
    Ok(Some((record, payload)))
}

/// The backups of a document, oldest first.
fn backups(files: &impl Files, path: &str) -> Result<Vec<String>> {
    let prefix = format!("{path}{BACKUP_MARK}");
    let mut names: Vec<_> = files.entries(&prefix)?.into_iter().map(|(name, _)| name).collect();
    names.sort_by_cached_key(|name| {
        let (time, number) = match name[prefix.len()..].split_once('-') {
            Some((time, number)) => (time, number.parse().unwrap_or(u64::MAX)),
            None => (&name[prefix.len()..], 0),
        };
        (time.to_owned(), number)
    });
    Ok(names)
}

/// The error about a document that cannot be read, with the backup that whoever repairs it may want.
pub(crate) fn name_backup(files: &impl Files, path: &str, error: Error) -> Error {
    match backups(files, path).ok().and_then(|mut names| names.pop()) {
        Some(newest) => Error { message: format!("{}; {newest} holds what it was before", error.message), ..error },
        None => error,
    }
}
