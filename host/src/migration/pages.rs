//! Reading a collection in the background, segment by segment, so that the next page is there when this one is done with;
//! and saying where in a segment something stands, so that another process can go on from there.

use std::collections::{BTreeMap, BTreeSet};

use larder_model::{Entity, ErrorKind};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::pace::patiently;
use crate::error::{Error, Result};
use crate::repository::{PAGE_BYTES_MAX, Progress, Repository};

/// Pages that are there already while others are read: whoever takes them need not wait.
const PAGES_AHEAD: usize = 2;

/// Bytes of bodies in a page of a store that is here: small enough that whoever works on pages waits neither for the first nor,
/// beside an idle core, for the last for long. A server is asked for as many as a reply holds, because each question takes time.
const LOCAL_PAGE_BYTES: u32 = 1 << 20;

/// Bytes of a source that are held in memory between its validation and the move.
const HELD_BYTES_MAX: usize = 48 << 20;

/// Where in a segment reading goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// The strategy's own; none for the beginning.
    pub(super) cursor: Option<Vec<u8>>,
    /// So many entities behind the cursor.
    pub(super) skip: u64,
    /// There is nothing more.
    pub(super) ended: bool,
}

/// Entities that were read at once.
pub(crate) struct Page {
    pub(crate) entities: Vec<Entity>,
    pub(super) segment: u32,
    /// Where the first of them stands.
    pub(super) from: Position,
    pub(super) next: Position,
}

impl Page {
    /// What it takes of memory.
    fn bytes(&self) -> usize {
        let of_entity = |entity: &Entity| size_of::<Entity>() + entity.id.len() + entity.body.len();
        self.entities.iter().map(of_entity).sum()
    }

    /// Where reading goes on behind the first `count` of what were `len` entities.
    pub(super) fn position_after(&self, count: usize, len: usize) -> Position {
        if count < len {
            return Position { skip: self.from.skip + count as u64, ..self.from.clone() };
        }
        self.next.clone()
    }
}

/// Pages of collections that were read whole, so that a small source need not be read again: what is validated is what is
/// moved. Of a larger one nothing is held, so that memory does not grow with it.
#[derive(Default)]
pub(super) struct Held {
    collections: BTreeMap<usize, Vec<Page>>,
    bytes: usize,
    /// The collections that there is no room for.
    too_large: BTreeSet<usize>,
}

impl Held {
    /// Adds the next page of a collection.
    pub(super) fn add(&mut self, collection: usize, page: Page) {
        if self.too_large.contains(&collection) {
            return;
        }
        self.bytes += page.bytes();
        self.collections.entry(collection).or_default().push(page);
        if self.bytes > HELD_BYTES_MAX {
            self.too_large.insert(collection);
            self.take(collection);
        }
    }

    /// All pages of a collection, where they are held, in the order in which they were read.
    pub(super) fn take(&mut self, collection: usize) -> Option<Vec<Page>> {
        let pages = self.collections.remove(&collection)?;
        self.bytes -= pages.iter().map(Page::bytes).sum::<usize>();
        Some(pages)
    }
}

/// Gives each segment's pages as reading them would.
pub(super) fn replay(pages: Vec<Page>, segments: usize) -> Vec<Receiver<Result<Page>>> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..segments).map(|_| channel(pages.len().max(1))).unzip();
    for page in pages {
        // There is room for all of them in each.
        let _ = senders[page.segment as usize].try_send(Ok(page));
    }
    receivers
}

/// More workers than cores only take turns.
pub(super) fn side_by_side(workers: u32) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    workers.clamp(1, u32::try_from(cores).unwrap_or(u32::MAX))
}

/// Batches that are written at a time. One that waits for a server takes no core; of those to a database or a document here
/// one more than there are cores is under way, because they take turns at it.
pub(super) fn writers(target: &Repository, workers: u32) -> usize {
    let writers = if target.is_remote() { workers.max(1) } else { workers.clamp(1, side_by_side(workers) + 1) };
    writers as usize
}

/// Reads all of a collection, and gives the pages of its segments as they come.
pub(crate) fn read_ahead(repository: &Repository, collection: &str, workers: u32) -> Receiver<Result<Page>> {
    let segments = side_by_side(workers);
    let (sender, receiver) = channel(segments as usize + PAGES_AHEAD);
    for segment in 0..segments {
        read_segment(repository, collection, (segment, segments), Position::default(), sender.clone());
    }
    receiver
}

/// Reads what stands behind these positions, one for each segment: of each the page that is next while the one before it is
/// done with.
pub(super) fn read_from(
    repository: &Repository,
    collection: &str,
    positions: &[Position],
) -> Vec<Receiver<Result<Page>>> {
    let segments = positions.len() as u32;
    let read = |(segment, from): (u32, &Position)| {
        let (sender, receiver) = channel(1);
        read_segment(repository, collection, (segment, segments), from.clone(), sender);
        receiver
    };
    (0..).zip(positions).map(read).collect()
}

/// Reads a page when there is room for it.
fn read_segment(
    repository: &Repository,
    collection: &str,
    (segment, segments): (u32, u32),
    mut from: Position,
    sender: Sender<Result<Page>>,
) {
    if from.ended {
        return;
    }
    let (repository, collection, last_word) = (repository.clone(), collection.to_owned(), sender.clone());
    let reading = tokio::spawn(async move {
        let mut progress = Progress::default();
        let page_bytes = if repository.is_remote() { PAGE_BYTES_MAX } else { LOCAL_PAGE_BYTES };
        while let Ok(room) = sender.reserve().await {
            let cursor = from.cursor.as_deref();
            let read = patiently(|| repository.scan(&collection, segment, segments, cursor, page_bytes)).await;
            let read = read.and_then(|batch| {
                progress.turn(&repository, batch.next.as_deref())?;
                Ok(batch)
            });
            let batch = match read {
                Ok(batch) => batch,
                Err(error) => return room.send(Err(error)),
            };
            let skipped = batch.entities.len().min(usize::try_from(from.skip).unwrap_or(usize::MAX));
            let mut entities = batch.entities;
            entities.drain(..skipped);
            let skip = from.skip - skipped as u64;
            let next = Position { ended: batch.next.is_none(), cursor: batch.next, skip };
            let page = Page { entities, segment, from, next: next.clone() };
            from = next;
            room.send(Ok(page));
            if from.ended {
                return;
            }
        }
    });
    // A reader that broke off must not look like one that came to the end.
    tokio::spawn(async move {
        if let Err(error) = reading.await {
            let _ = last_word.send(Err(broke_off("reading", error))).await;
        }
    });
}

/// A task of ours panicked.
pub(super) fn broke_off(what: &str, error: tokio::task::JoinError) -> Error {
    Error::contract(ErrorKind::Internal, format!("{what} a page broke off")).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_on_from_where_the_page_began_and_passes_to_the_next_page_at_its_end() {
        let at = |cursor: &str, skip| Position { cursor: Some(cursor.into()), skip, ended: false };
        let mut page = Page { entities: Vec::new(), segment: 0, from: at("a", 7), next: at("b", 0) };
        assert_eq!(page.position_after(1, 10), at("a", 8));
        assert_eq!(page.position_after(9, 10), at("a", 16));
        assert_eq!(page.position_after(10, 10), at("b", 0));
        // All of it was skipped, and there is more to skip.
        page.next = at("b", 3);
        assert_eq!(page.position_after(0, 0), at("b", 3));
    }

    #[test]
    fn a_collection_is_held_as_a_whole_or_not_at_all() {
        let page = |bytes: usize| {
            let entity = Entity { id: "a".into(), version: 1, body: vec![b' '; bytes] };
            Page { entities: vec![entity], segment: 0, from: Position::default(), next: Position::default() }
        };
        let mut held = Held::default();
        held.add(0, page(10));
        for _ in 0..3 {
            held.add(1, page(HELD_BYTES_MAX / 2));
        }
        held.add(2, page(20));
        assert_eq!(held.bytes, page(10).bytes() + page(20).bytes(), "what is too large takes no room");
        assert!(held.take(1).is_none());
        assert_eq!((held.take(0).unwrap().len(), held.take(2).unwrap().len(), held.bytes), (1, 1, 0));
    }
}
