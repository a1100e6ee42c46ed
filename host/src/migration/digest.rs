//! A digest of a collection's content that does not depend on the order it is read in: each entity's canonical form is
//! hashed, and the hashes are summed, in buckets by the id's hash, so that what differs can be found again.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::LazyLock;

use larder_model::Entity;
use larder_model::json::{self, Members};
use sha2::{Digest as _, Sha256};

use super::pages::{broke_off, read_ahead, side_by_side};
use crate::error::Result;
use crate::repository::Repository;

/// Parts of a collection that are summed apart.
pub(super) const BUCKETS: usize = 4096;

/// How many, and the sum of their hashes modulo 2^256, least significant word first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) count: u64,
    words: [u64; 4],
}

impl Sum {
    /// Of one hash.
    fn of(hash: &[u8]) -> Sum {
        let mut sum = Sum { count: 1, words: [0; 4] };
        for (word, bytes) in sum.words.iter_mut().zip(hash.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        sum
    }

    /// Of an entity as the strategy gave it. Cheaper than its content's, because nothing is parsed, and good only for
    /// telling whether it gives the same again.
    pub(super) fn of_raw(entity: &Entity) -> Sum {
        // Another one in each process, so that nobody can make changes that cancel out.
        static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let mut hasher = STATE.build_hasher();
        hasher.write_usize(entity.id.len());
        hasher.write(entity.id.as_bytes());
        hasher.write_u64(entity.version);
        hasher.write(&entity.body);
        Sum { count: 1, words: [hasher.finish(), 0, 0, 0] }
    }

    /// A part of it, to tell one entity's from another's.
    pub(super) fn short(&self) -> u64 {
        self.words[0]
    }

    /// Takes away what was added.
    fn remove(&mut self, other: &Sum) {
        self.count -= other.count;
        let mut borrow = false;
        for (word, term) in self.words.iter_mut().zip(other.words) {
            let (rest, first) = word.overflowing_sub(term);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            (*word, borrow) = (rest, first || second);
        }
    }

    pub(super) fn add(&mut self, other: &Sum) {
        self.count += other.count;
        let mut carry = false;
        for (word, term) in self.words.iter_mut().zip(other.words) {
            let (sum, first) = word.overflowing_add(term);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*word, carry) = (sum, first || second);
        }
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words.iter().rev().try_for_each(|word| write!(f, "{word:016x}"))
    }
}

/// One entity's part of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) bucket: u16,
    pub(super) sum: Sum,
}

impl Term {
    /// `members` are the entity's.
    pub(super) fn new(entity: &Entity, members: &Members<'_>) -> Term {
        let id = &entity.id;
        let mut canonical = Vec::with_capacity(entity.body.len());
        json::write_canonical_object(members, &mut canonical);
        let mut hasher = Sha256::new();
        hasher.update((id.len() as u64).to_le_bytes());
        hasher.update(id);
        hasher.update(&canonical);
        Term { bucket: bucket_of(id), sum: Sum::of(&hasher.finalize()) }
    }
}

/// The bucket of an id: the same in one process.
pub(super) fn bucket_of(id: &str) -> u16 {
    let mut hasher = DefaultHasher::new();
    hasher.write(id.as_bytes());
    (hasher.finish() % BUCKETS as u64) as u16
}

/// How many entities, and the sum of their hashes. Two collections with equal digests hold the same entities under the
/// same ids, by exact JSON value.
#[derive(Debug, Clone, Default)]
pub struct Digest {
    total: Sum,
    /// Empty as long as nothing was added.
    buckets: Vec<Sum>,
}

/// Equal totals are proof enough: the buckets only tell where to look.
impl PartialEq for Digest {
    fn eq(&self, other: &Digest) -> bool {
        self.total == other.total
    }
}

impl Eq for Digest {}

impl Digest {
    /// How many entities were added.
    pub fn count(&self) -> u64 {
        self.total.count
    }

    pub(super) fn add(&mut self, term: &Term) {
        if self.buckets.is_empty() {
            self.buckets = vec![Sum::default(); BUCKETS];
        }
        self.total.add(&term.sum);
        self.buckets[usize::from(term.bucket)].add(&term.sum);
    }

    /// Takes away what was added.
    pub(super) fn remove(&mut self, term: &Term) {
        self.total.remove(&term.sum);
        self.buckets[usize::from(term.bucket)].remove(&term.sum);
    }

    /// One bucket.
    pub(super) fn bucket(&self, bucket: u16) -> Sum {
        self.buckets.get(usize::from(bucket)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.total.fmt(f)
    }
}

/// Ids that a digest leaves out, as [`hash`] has them.
pub(super) type LeftOut = HashSet<[u8; 16]>;

/// A name, short: for sets that must not grow with the names' lengths.
pub(super) fn hash(parts: &[&str]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize()[..16]);
    short
}

/// The digest of a stored collection; `advanced` is told how many entities each page had, and says whether to go on.
pub(super) async fn of(
    repository: &Repository,
    collection: &str,
    workers: u32,
    left_out: &LeftOut,
    mut advanced: impl FnMut(u64) -> Result<()>,
) -> Result<Digest> {
    let definition = repository.collection(collection)?;
    let mut digest = Digest::default();
    let mut pages = read_ahead(repository, collection, workers);
    // Pages at once, on threads of their own: parsing takes longer than reading.
    let mut parsing = VecDeque::new();
    loop {
        if parsing.len() <= side_by_side(workers) as usize
            && let Some(page) = pages.recv().await
        {
            let (mut page, repository, definition) = (page?.entities, repository.clone(), definition.clone());
            if !left_out.is_empty() {
                page.retain(|entity| !left_out.contains(&hash(&[collection, &entity.id])));
            }
            parsing.push_back(tokio::task::spawn_blocking(move || -> Result<Vec<Term>> {
                let term = |entity| Ok(Term::new(entity, &repository.checked(&definition, entity)?));
                page.iter().map(term).collect()
            }));
            continue;
        }
        let Some(parsed) = parsing.pop_front() else { break };
        let terms = parsed.await.map_err(|error| broke_off("reading", error))??;
        terms.iter().for_each(|term| digest.add(term));
        advanced(terms.len() as u64)?;
    }
    Ok(digest)
}

/// The sum over a stored collection as the strategy gives it.
pub(super) async fn of_raw(repository: &Repository, collection: &str) -> Result<Sum> {
    let mut sum = Sum::default();
    let mut pages = read_ahead(repository, collection, 1);
    while let Some(page) = pages.recv().await {
        let entities = page?.entities;
        let hashed = tokio::task::spawn_blocking(move || {
            entities.iter().fold(Sum::default(), |mut sum, entity| {
                sum.add(&Sum::of_raw(entity));
                sum
            })
        });
        sum.add(&hashed.await.map_err(|error| broke_off("reading", error))?);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(id: &str, body: &str) -> Term {
        let entity = Entity { id: id.to_owned(), version: 0, body: body.into() };
        Term::new(&entity, &json::members(&entity.body).unwrap())
    }

    fn digest(entities: &[(&str, &str)]) -> Digest {
        let mut digest = Digest::default();
        for (id, body) in entities {
            digest.add(&term(id, body));
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

    #[test]
    fn what_is_taken_away_was_never_there() {
        let all = [("a", r#"{"x":1}"#), ("b", "{}"), ("c", r#"{"x":2}"#)];
        let mut digest = digest(&all);
        for (id, body) in &all[1..] {
            digest.remove(&term(id, body));
        }
        let one = self::digest(&all[..1]);
        assert_eq!((digest.count(), &digest), (1, &one));
        assert!((0..BUCKETS as u16).all(|bucket| digest.bucket(bucket) == one.bucket(bucket)));
    }

    #[test]
    fn buckets_make_up_the_whole() {
        let one = digest(&[("a", r#"{"x":1}"#), ("b", "{}"), ("c", "{}")]);
        let mut sum = Sum::default();
        (0..BUCKETS as u16).for_each(|bucket| sum.add(&one.bucket(bucket)));
        assert_eq!((sum.to_string(), sum.count), (one.to_string(), 3));
    }
}
