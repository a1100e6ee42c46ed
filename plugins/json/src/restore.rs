//! What state the store is in, and what can be had back: kept documents, and documents and journals that do not fit each
//! other any more. Nothing here is done unasked, and what was there before is kept beside what takes its place.

use std::cell::RefCell;

use larder_guest::{FileStat, Files};
use larder_model::{Error, ErrorKind, RestorePoint, Result, entity, json};
use serde_json::{Map, Value};

use crate::{
    changes::Changes,
    clock,
    document::{Content, Document, Held},
    fold::{BACKUP_MARK, backups, free_backup_name},
    index::Entities,
    journal::{Appendix, Journal},
    store::{JsonStore, Keep, lay_over},
};

/// Behind the name of a document: with what the journal has for it.
const WITH_JOURNAL: &str = "+journal";

impl<F: Files> JsonStore<F> {
    pub(crate) fn restore_points(&mut self) -> Result<Vec<RestorePoint>> {
        let mut points = Vec::new();
        for i in 0..self.documents.len() {
            let is_usable = self.refresh(i).is_ok();
            let commits = if is_usable { 0 } else { self.journalled_commits(i)? };
            let mut add = |file: &str, description: String| {
                if commits > 0 {
                    points.push(RestorePoint {
                        name: format!("{file}{WITH_JOURNAL}"),
                        description: format!("{description}, and over that {commits} commits of {}", self.journal_path),
                    });
                }
                points.push(RestorePoint { name: file.to_owned(), description });
            };
            let file = self.documents[i].find_file(&self.files, self.config.enable_compression)?;
            if let (false, Some((path, stat))) = (is_usable, &file)
                && let Ok(document) = self.read_aside(i, path, *stat)
            {
                add(path, format!("{path} as it is: {}", summary(&document)));
            }
            for path in self.document_paths(i) {
                for backup in backups(&self.files, &path)?.into_iter().rev() {
                    let Some(stat) = self.files.stat(&backup)? else { continue };
                    // A backup that is damaged too is no state that can be had back.
                    let Ok(document) = self.read_aside(i, &backup, stat) else { continue };
                    let time = backup[path.len() + BACKUP_MARK.len()..].to_owned();
                    add(&backup, format!("what {path} held until {time}: {}", summary(&document)));
                }
            }
        }
        Ok(points)
    }

    pub(crate) fn restore(&mut self, name: &str) -> Result<Vec<String>> {
        let (file, with_journal) = match name.strip_suffix(WITH_JOURNAL) {
            Some(file) => (file, true),
            None => (name, false),
        };
        let unknown = || Error::new(ErrorKind::NotFound, format!("there is no restore point {}", json::quoted(name)));
        let mut owner = None;
        for i in 0..self.documents.len() {
            let paths = self.document_paths(i);
            let is_backup =
                |path: &String| backups(&self.files, path).is_ok_and(|names| names.iter().any(|it| it == file));
            if paths.iter().any(|path| path == file || is_backup(path)) {
                owner = Some(i);
            }
        }
        let i = owner.ok_or_else(unknown)?;
        self.exclusively(|store| {
            let stat = store.files.stat(file)?.ok_or_else(unknown)?;
            let mut restored = store.read_aside(i, file, stat)?;
            let others = RefCell::new(Changes::default());
            let target = RefCell::new(&mut restored);
            let journal = store.read_journal(|line| {
                let mut target = target.borrow_mut();
                if !target.holds(line.collection) {
                    let mut others = others.borrow_mut();
                    match line.place {
                        // Its version is of use to nobody: everything is forgotten in the end.
                        Some(_) => others.put(line.collection, line.id, line.body.to_vec(), 0),
                        None => others.remove(line.collection, line.id),
                    }
                } else if with_journal {
                    lay_over(&mut target, &line);
                }
            })?;
            if with_journal && !restored.has_journal {
                return Err(unknown());
            }
            let mut done = Vec::new();
            if journal.is_some() {
                let kept = free_backup_name(&store.files, &store.journal_path)?;
                store.copy(&store.journal_path, &kept)?;
                done.push(format!("kept the journal as {kept}"));
            }
            let what = summary(&restored);
            let path = restored.path(store.config.enable_compression);
            store.journal = journal.clone();
            store.documents[i] = restored;
            let put = store.put_in_place(i);
            let put = put.and_then(|kept| {
                store.leave_others(journal.as_ref(), i, &others.into_inner())?;
                Ok(kept)
            });
            // What was read of the journal may be only what stands before the damage.
            store.forget();
            for kept in put? {
                done.push(format!("kept the document that was there as {kept}"));
            }
            done.push(format!("{path} is what {name} holds: {what}"));
            Ok(done)
        })
    }

    /// Both names that a document may have.
    fn document_paths(&self, document: usize) -> [String; 2] {
        let compressed = self.config.enable_compression;
        [self.documents[document].path(compressed), self.documents[document].path(!compressed)]
    }

    /// A document's content from another file, without what the journal has for it.
    fn read_aside(&self, document: usize, path: &str, stat: FileStat) -> Result<Document> {
        let document = &self.documents[document];
        let mut aside = Document::new(document.name.clone(), document.content.clone());
        aside.read(&self.files, path.to_owned(), stat, &|name| self.collections.contains_key(name), false)?;
        Ok(aside)
    }

    /// What can be read of the journal, to its end or to where it is damaged; none where there is none.
    fn read_journal(&self, visit: impl FnMut(crate::journal::Line<'_>)) -> Result<Option<Journal>> {
        let Some(stat) = self.files.stat(&self.journal_path)? else { return Ok(None) };
        let mut journal = Journal::unread(stat);
        journal.read_on(&self.files, &self.journal_path, stat, |_| {}, visit)?;
        Ok(Some(journal))
    }

    /// How many writes the journal has for a document.
    fn journalled_commits(&self, document: usize) -> Result<u64> {
        let mut commits = std::collections::BTreeSet::new();
        self.read_journal(|line| {
            if self.documents[document].holds(line.collection) {
                commits.insert(line.at);
            }
        })?;
        Ok(commits.len() as u64)
    }

    /// The journal with what it has for other documents than the one that was restored.
    fn leave_others(&self, journal: Option<&Journal>, restored: usize, changes: &Changes) -> Result<()> {
        let Some(journal) = journal else { return Ok(()) };
        if changes.is_empty() {
            self.files.remove(&self.journal_path)?;
            return Ok(());
        }
        let mut left = Appendix::new(None, clock::unique_now);
        for (name, (base, _)) in &journal.bases {
            if *name != self.documents[restored].name {
                left.base(base.clone());
            }
        }
        left.commit(changes);
        let replacement = self.files.replace(&self.journal_path)?;
        self.files.replacement_write(&replacement, &left.bytes)?;
        self.files.replacement_commit(replacement, None, true)?;
        Ok(())
    }

    pub(crate) fn check(&mut self, thorough: bool) -> Result<String> {
        let mut findings = Vec::new();
        let mut finding = |level: &str, message: String| {
            findings.push(serde_json::json!({ "level": level, "message": message }));
        };
        let compressed = self.config.enable_compression;
        let (mut reachable, mut readable) = (true, true);
        let (mut documents, mut collections) = (Vec::new(), Map::new());
        for i in 0..self.documents.len() {
            let path = self.documents[i].path(compressed);
            if let Err(error) = self.documents[i].find_file(&self.files, compressed) {
                (reachable, readable) = (false, false);
                finding("error", error.message);
                continue;
            }
            if let Err(error) = self.refresh(i) {
                readable = false;
                finding("error", error.message);
                continue;
            }
            let document = &self.documents[i];
            match document.source() {
                Some(source) => {
                    documents.push(serde_json::json!({ "file": source.path, "bytes": source.stat.size }));
                }
                None if document.has_journal => {}
                None => {
                    finding("info", format!("there is no {path} yet: the first write or `prepare` makes it"));
                    continue;
                }
            }
            let unread =
                document.members.iter().filter(|member| matches!(member.held, Held::Unread { is_object: true, .. }));
            for name in unread.map(|member| json::quoted(&member.name)) {
                finding(
                    "warning",
                    format!("{path} holds the collection {name}, which is not configured: it is kept as it is"),
                );
            }
            let names: Vec<String> = document.collections().map(str::to_owned).collect();
            for name in names {
                let Ok(collection) = self.collection(&name) else { continue };
                let looked = self.reading(&name, |store, document| match thorough {
                    true => store.unlike(document, &collection),
                    false => Ok((store.documents[document].entities(&name).map_or(0, Entities::len) as u64, 0, None)),
                });
                match looked {
                    Ok((count, unlike, example)) => {
                        if let Some(example) = example {
                            let message = format!(
                                "{unlike} of {count} entities of {name} cannot be used as they are; one is {example}"
                            );
                            finding("error", message);
                        }
                        collections.insert(name, serde_json::json!({ "entities": count }));
                    }
                    Err(error) => {
                        readable = false;
                        finding("error", error.message);
                    }
                }
            }
        }
        let journal = self.journal.as_ref().map(|journal| {
            serde_json::json!({ "file": self.journal_path, "bytes": journal.stat.size, "commits": journal.commits })
        });
        if let Some(journal) = &self.journal
            && journal.end < journal.stat.size
        {
            let cut = journal.stat.size - journal.end;
            finding(
                "info",
                format!(
                    "{} ends with {cut} bytes of a write that was cut short and never acknowledged: the next write \
                     removes them",
                    self.journal_path
                ),
            );
        }
        let points: Vec<Value> = match self.restore_points() {
            Ok(points) => points.into_iter().map(|point| point.name.into()).collect(),
            Err(error) => {
                finding("error", error.message);
                Vec::new()
            }
        };
        let writable = match self.try_to_write() {
            Ok(()) => true,
            Err(error) => {
                finding("error", error.message);
                false
            }
        };
        let free_space = match self.files.free_space() {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                finding("error", error.message);
                None
            }
        };
        let report = serde_json::json!({
            "reachable": reachable,
            "readable": readable,
            "writable": writable,
            "findings": findings,
            "documents": documents,
            "journal": journal,
            "collections": collections,
            "restore_points": points,
            "free_bytes": free_space,
        });
        Ok(report.to_string())
    }

    /// How many entities there are, how many of them are none, and what is wrong with one of those.
    fn unlike(&self, document: usize, collection: &larder_model::Collection) -> Result<(u64, u64, Option<String>)> {
        let (mut count, mut unlike, mut example) = (0, 0, None);
        let nothing = Changes::default();
        let mut rest = self.ids(document, &nothing, &collection.name, None).peekable();
        while rest.peek().is_some() {
            let (mut ids, mut bytes) = (Vec::new(), 0);
            while bytes < self.chunk_bytes(document) {
                let Some((id, size)) = rest.next() else { break };
                ids.push(id);
                bytes += size;
            }
            for (id, found) in ids.iter().zip(self.fetch(document, &nothing, collection, &ids, Keep::Never)?) {
                let Some(found) = found else { continue };
                count += 1;
                if let Err(error) = entity::parse(collection, Some(id), found.body()) {
                    unlike += 1;
                    example.get_or_insert(error.message);
                }
            }
        }
        Ok((count, unlike, example))
    }

    /// Writes a file beside the document, which is gone when it is dropped.
    fn try_to_write(&self) -> Result<()> {
        let path = self.documents.first().map(|document| document.path(self.config.enable_compression));
        let replacement = self.files.replace(path.as_deref().unwrap_or(".larder.check"))?;
        self.files.replacement_write(&replacement, b"{}")
    }
}

fn summary(document: &Document) -> String {
    let mut entities = 0;
    let mut collections = 0;
    for member in &document.members {
        if let Held::Entities(held) = &member.held {
            entities += held.len();
            collections += 1;
        }
    }
    let entities = if entities == 1 { "1 entity".to_owned() } else { format!("{entities} entities") };
    match document.content {
        Content::Collections if collections == 1 => format!("{entities} in 1 collection"),
        Content::Collections => format!("{entities} in {collections} collections"),
        Content::Entities(_) => entities,
    }
}
