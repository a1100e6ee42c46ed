//! A directory in memory, as a plugin is lent one: for thousands of stores a second.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use larder_guest::{FileStat, Files, LockMode};
use larder_model::{Error, ErrorKind, Result};

/// Clones are the same directory.
#[derive(Clone, Default)]
pub struct Memory(Rc<RefCell<Content>>);

#[derive(Default)]
struct Content {
    files: BTreeMap<String, (Vec<u8>, u64)>,
    changes: u64,
}

/// A new document, not yet in its place.
pub struct Unfinished {
    path: String,
    text: RefCell<Vec<u8>>,
}

impl Memory {
    /// Writes a file.
    pub fn put(&self, path: &str, text: &[u8]) -> FileStat {
        let mut content = self.0.borrow_mut();
        content.changes += 1;
        let generation = content.changes;
        content.files.insert(path.to_owned(), (text.to_vec(), generation));
        FileStat { size: text.len() as u64, generation }
    }

    /// Reads a file.
    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.0.borrow().files.get(path).map(|(text, _)| text.clone())
    }
}

fn stat_of((text, generation): &(Vec<u8>, u64)) -> FileStat {
    FileStat { size: text.len() as u64, generation: *generation }
}

fn absent(path: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no file {path}"))
}

impl Files for Memory {
    type Lock = ();
    type Replacement = Unfinished;

    fn try_acquire(&self, _: &str, _: LockMode) -> Result<Option<()>> {
        Ok(Some(()))
    }

    fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        Ok(self.0.borrow().files.get(path).map(stat_of))
    }

    fn read(&self, path: &str, offset: u64, max_bytes: u32) -> Result<Option<Vec<u8>>> {
        let content = self.0.borrow();
        let Some((text, _)) = content.files.get(path) else { return Ok(None) };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        Ok(Some(text[from..(from + max_bytes as usize).min(text.len())].to_vec()))
    }

    fn append(&self, path: &str, data: &[u8]) -> Result<FileStat> {
        let text = [self.get(path).unwrap_or_default().as_slice(), data].concat();
        Ok(self.put(path, &text))
    }

    fn sync(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn truncate(&self, path: &str, size: u64) -> Result<()> {
        let mut text = self.get(path).ok_or_else(|| absent(path))?;
        text.truncate(size as usize);
        self.put(path, &text);
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<bool> {
        Ok(self.0.borrow_mut().files.remove(path).is_some())
    }

    fn entries(&self, prefix: &str) -> Result<Vec<(String, FileStat)>> {
        let content = self.0.borrow();
        let entries = content.files.iter().filter(|(path, _)| path.starts_with(prefix));
        Ok(entries.map(|(path, file)| (path.clone(), stat_of(file))).collect())
    }

    fn free_space(&self) -> Result<u64> {
        Ok(1 << 40)
    }

    fn replace(&self, path: &str) -> Result<Unfinished> {
        Ok(Unfinished { path: path.to_owned(), text: RefCell::default() })
    }

    fn replacement_write(&self, replacement: &Unfinished, data: &[u8]) -> Result<()> {
        replacement.text.borrow_mut().extend_from_slice(data);
        Ok(())
    }

    fn replacement_commit(&self, replacement: Unfinished, keep_old_as: Option<&str>, _: bool) -> Result<FileStat> {
        if let (Some(name), Some(old)) = (keep_old_as, self.get(&replacement.path)) {
            self.put(name, &old);
        }
        Ok(self.put(&replacement.path, &replacement.text.into_inner()))
    }
}
