//! A digest of a collection's content that does not depend on the order it is read in: each entity's canonical form is
//! hashed, and the hashes are summed.

use std::collections::VecDeque;
use std::fmt;

use larder_model::json;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{broke_off, read_ahead};
use crate::error::Result;
use crate::repository::Repository;

/// How many entities, and the sum of their hashes modulo 2^256. Two collections with equal digests hold the same
/// entities under the same ids, by exact JSON value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digest {
    count: u64,
    /// Least significant first.
    sum: [u64; 4],
}

impl Digest {
    /// How many entities were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds an entity.
    pub fn add(&mut self, id: &str, fields: &Map<String, Value>) {
        let mut canonical = Vec::with_capacity(1024);
        json::canonical_object(fields, &mut canonical);
        let mut hasher = Sha256::new();
        hasher.update((id.len() as u64).to_le_bytes());
        hasher.update(id);
        hasher.update(&canonical);
        let hash = hasher.finalize();
        let mut term = Digest { count: 1, sum: [0; 4] };
        for (word, bytes) in term.sum.iter_mut().zip(hash.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        self.merge(&term);
    }

    /// Adds what was added to another digest.
    pub fn merge(&mut self, other: &Digest) {
        self.count += other.count;
        let mut carry = false;
        for (word, term) in self.sum.iter_mut().zip(other.sum) {
            let (sum, first) = word.overflowing_add(term);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*word, carry) = (sum, first || second);
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sum.iter().rev().try_for_each(|word| write!(f, "{word:016x}"))
    }
}

/// The digest of a stored collection; `advanced` is told how many entities each page had.
pub(crate) async fn of(repository: &Repository, collection: &str, mut advanced: impl FnMut(u64)) -> Result<Digest> {
    let definition = repository.collection(collection)?;
    let mut digest = Digest::default();
    let mut pages = read_ahead(repository, collection, 1);
    // Two pages at once, on threads of their own: parsing takes longer than reading.
    let mut parsing = VecDeque::new();
    loop {
        if parsing.len() < 2
            && let Some(page) = pages.recv().await
        {
            let (page, repository, definition) = (page?, repository.clone(), definition.clone());
            parsing.push_back(tokio::task::spawn_blocking(move || -> Result<Digest> {
                let mut digest = Digest::default();
                for entity in page {
                    let (entity, fields) = repository.checked(&definition, entity)?;
                    digest.add(&entity.id, &fields);
                }
                Ok(digest)
            }));
            continue;
        }
        let Some(parsed) = parsing.pop_front() else { break };
        let parsed = parsed.await.map_err(|error| broke_off("reading", error))??;
        advanced(parsed.count());
        digest.merge(&parsed);
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(entities: &[(&str, &str)]) -> Digest {
        let mut digest = Digest::default();
        for (id, body) in entities {
            digest.add(id, &json::parse_object(body.as_bytes()).unwrap());
        }
        digest
    }

    #[test]
    fn order_of_entities_and_members_does_not_matter() {
        let one = digest(&[("a", r#"{"x":1,"y":[1.50]}"#), ("b", "{}")]);
        let other = digest(&[("b", "{}"), ("a", r#"{"y":[15e-1],"x":1}"#)]);
        assert_eq!(one, other);
        assert_eq!(one.to_string().len(), 64);
    }

    #[test]
    fn id_value_and_number_of_entities_matter() {
        let one = digest(&[("a", r#"{"x":1}"#)]);
        for other in [
            digest(&[("b", r#"{"x":1}"#)]),
            digest(&[("a", r#"{"x":1.0}"#)]),
            digest(&[("a", r#"{"x":"1"}"#)]),
            digest(&[("a", r#"{"x":1}"#), ("a", r#"{"x":1}"#)]),
            digest(&[]),
        ] {
            assert_ne!(one, other);
        }
    }
}
