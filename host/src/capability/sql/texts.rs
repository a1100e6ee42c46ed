//! Texts of statements that were checked: each is looked at once, however often it runs.

use std::{collections::HashMap, sync::Arc};

/// A few texts for each operation and table.
const TEXTS_MAX: usize = 512;
const BYTES_MAX: usize = 8 << 20;

/// What the check of each text found out.
pub(super) struct CheckedTexts<T> {
    known: HashMap<Arc<str>, T>,
    bytes: usize,
}

impl<T> Default for CheckedTexts<T> {
    fn default() -> Self {
        CheckedTexts { known: HashMap::new(), bytes: 0 }
    }
}

impl<T: Copy> CheckedTexts<T> {
    pub(super) fn get(&self, text: &str) -> Option<(Arc<str>, T)> {
        self.known.get_key_value(text).map(|(text, checked)| (Arc::clone(text), *checked))
    }

    /// Where there are too many, all are forgotten: a plugin that makes a text for each call gains nothing by it.
    pub(super) fn insert(&mut self, text: &str, checked: T) -> (Arc<str>, T) {
        if self.known.len() >= TEXTS_MAX || self.bytes + text.len() > BYTES_MAX {
            *self = CheckedTexts::default();
        }
        let text: Arc<str> = text.into();
        self.bytes += text.len();
        self.known.insert(Arc::clone(&text), checked);
        (text, checked)
    }
}
