//! Batches of a collection in the order of its keys, out of segments that are read side by side. A target then appends,
//! where one segment beside the other would have it insert every other entity between two that are there.

use std::vec;

use futures_util::future::select_all;
use larder_model::Entity;
use tokio::sync::mpsc::Receiver;

use super::pages::{Page, Position};
use crate::error::Result;

/// What is written at once.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) entities: Vec<Entity>,
    /// Where each segment that they are from goes on behind them.
    pub(super) ends: Vec<(usize, Position)>,
}

/// Entities of all segments, in the order of their keys as long as each segment has them so. From the first page on that
/// has not, each page comes as a whole, and no segment is waited for while another has something.
pub(super) struct Merge {
    segments: Vec<Segment>,
    is_in_order: bool,
}

struct Segment {
    pages: Receiver<Result<Page>>,
    /// The last page that came, and what has not been taken of it.
    page: Option<Page>,
    entities: vec::IntoIter<Entity>,
    len: usize,
    /// The key that the page ends with.
    last: Option<String>,
    /// It has not moved on since the last batch.
    is_told: bool,
    has_ended: bool,
}

impl Segment {
    fn is_waited_for(&self) -> bool {
        !self.has_ended && self.entities.len() == 0
    }

    fn next_id(&self) -> Option<&str> {
        self.entities.as_slice().first().map(|entity| entity.id.as_str())
    }

    /// Takes a page in, and says whether its entities are in order.
    fn accept(&mut self, page: Option<Result<Page>>) -> Result<bool> {
        let Some(page) = page else {
            self.has_ended = true;
            return Ok(true);
        };
        let mut page = page?;
        let entities = std::mem::take(&mut page.entities);
        let ids = || entities.iter().map(|entity| entity.id.as_str());
        let is_in_order = self.last.as_deref().into_iter().chain(ids()).is_sorted();
        if let Some(last) = ids().next_back() {
            self.last = Some(last.to_owned());
        } else {
            self.is_told = false;
        }
        self.len = entities.len();
        self.entities = entities.into_iter();
        self.page = Some(page);
        Ok(is_in_order)
    }

    /// Where it goes on, if that has not been told.
    fn end(&mut self) -> Option<(usize, Position)> {
        let page = self.page.as_ref().filter(|_| !self.is_told)?;
        self.is_told = true;
        Some((page.segment as usize, page.position_after(self.len - self.entities.len(), self.len)))
    }
}

impl Merge {
    /// One stream of pages for each segment.
    pub(super) fn of(segments: Vec<Receiver<Result<Page>>>) -> Merge {
        let segment = |pages| Segment {
            pages,
            page: None,
            entities: Vec::new().into_iter(),
            len: 0,
            last: None,
            is_told: true,
            has_ended: false,
        };
        Merge { segments: segments.into_iter().map(segment).collect(), is_in_order: true }
    }

    /// The next `count` entities, or as many as there are. A last batch without any says where empty pages end.
    pub(super) async fn next(&mut self, count: usize) -> Result<Option<Batch>> {
        let mut batch = Batch::default();
        while batch.entities.len() < count {
            self.fetch().await?;
            let waiting = self.segments.iter_mut().filter(|segment| segment.entities.len() > 0);
            let next = match self.is_in_order {
                true => waiting.min_by(|a, b| a.next_id().cmp(&b.next_id())),
                false => waiting.into_iter().next(),
            };
            let Some(segment) = next else { break };
            batch.entities.extend(segment.entities.next());
            segment.is_told = false;
        }
        batch.ends = self.segments.iter_mut().filter_map(Segment::end).collect();
        Ok((!batch.entities.is_empty() || !batch.ends.is_empty()).then_some(batch))
    }

    /// Waits for the pages that the next entity may be in.
    async fn fetch(&mut self) -> Result<()> {
        while self.is_in_order
            && let Some(segment) = self.segments.iter_mut().find(|segment| segment.is_waited_for())
        {
            let page = segment.pages.recv().await;
            self.is_in_order = segment.accept(page)?;
        }
        while self.segments.iter().all(|segment| segment.entities.len() == 0) {
            let waited_for = self.segments.iter_mut().filter(|segment| segment.is_waited_for());
            let pages: Vec<_> = waited_for
                .map(|segment| {
                    Box::pin(async {
                        let page = segment.pages.recv().await;
                        (segment, page)
                    })
                })
                .collect();
            if pages.is_empty() {
                break;
            }
            let ((segment, page), _, others) = select_all(pages).await;
            drop(others);
            segment.accept(page)?;
            // Each has its turn, or one would be read to its end before the others.
            self.segments.rotate_left(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::sync::mpsc::channel;

    use super::*;
    use crate::migration::pages::replay;

    fn entity(id: usize) -> Entity {
        Entity { id: format!("{id:04}"), version: 1, body: Vec::new() }
    }

    /// The cursor behind the page of this number.
    fn at(page: usize, ended: bool) -> Position {
        Position { cursor: Some(page.to_string().into_bytes()), skip: 0, ended }
    }

    /// A segment of some ids, as pages of up to `size` that begin behind a position.
    fn pages(segment: u32, ids: &[usize], size: usize, from: &Position) -> Vec<Page> {
        let begin = match &from.cursor {
            Some(cursor) => str::from_utf8(cursor).unwrap().parse().unwrap(),
            None => 0,
        };
        let count = ids.len().div_ceil(size).max(1);
        let mut skip = from.skip as usize;
        let page = |number: usize| {
            let mut entities: Vec<Entity> =
                ids.chunks(size).nth(number).unwrap_or_default().iter().copied().map(entity).collect();
            let skipped = skip.min(entities.len());
            entities.drain(..skipped);
            skip -= skipped;
            let from =
                Position { skip: skipped as u64, ..if number == 0 { Position::default() } else { at(number, false) } };
            Page { entities, segment, from, next: at(number + 1, number + 1 == count) }
        };
        if from.ended { Vec::new() } else { (begin..count).map(page).collect() }
    }

    async fn all(merge: &mut Merge, size: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while let Some(batch) = merge.next(size).await.unwrap() {
            ids.extend(batch.entities.into_iter().map(|entity| entity.id));
        }
        ids
    }

    /// Every third entity, and two of three, the last of which stands by itself; and a segment without any.
    fn segments() -> [Vec<usize>; 3] {
        [(0..300).step_by(3).collect(), (0..301).filter(|id| id % 3 > 0 || *id == 300).collect(), Vec::new()]
    }

    #[tokio::test]
    async fn segments_in_order_come_in_order_and_go_on_behind_any_batch() {
        let segments = segments();
        let everything: Vec<String> = (0..301).map(|id| entity(id).id).collect();
        for size in [1, 7, 50, 400] {
            let begin = |from: &[Position]| {
                let segments = (0..).zip(&segments).zip(from);
                let pages = segments.flat_map(|((segment, ids), from)| pages(segment, ids, 20, from)).collect();
                Merge::of(replay(pages, from.len()))
            };
            let mut positions = vec![Position::default(); segments.len()];
            let mut merge = begin(&positions);
            let mut before = Vec::new();
            while let Some(batch) = merge.next(size).await.unwrap() {
                before.extend(batch.entities.into_iter().map(|entity| entity.id));
                for (segment, end) in batch.ends {
                    positions[segment] = end;
                }
                let mut whole = before.clone();
                whole.extend(all(&mut begin(&positions), 11).await);
                assert_eq!(whole, everything, "behind {} in batches of {size}", before.len());
            }
            assert_eq!(before, everything);
            assert!(positions.iter().all(|position| position.ended), "{positions:?}");
        }
    }

    #[tokio::test]
    async fn of_segments_without_an_order_none_is_waited_for_while_another_has_something() {
        let [mut ids, others, _] = segments();
        ids.reverse();
        let (sender, silent) = channel(1);
        let mut receivers = replay(pages(0, &ids, 30, &Position::default()), 1);
        receivers.push(silent);
        let mut merge = Merge::of(receivers);
        // Nobody knows about the order of a segment before a page of it is there.
        let mut pages = pages(1, &others, 30, &Position::default()).into_iter();
        sender.send(Ok(pages.next().unwrap())).await.ok().unwrap();
        let mut seen = BTreeSet::new();
        while seen.len() < ids.len() + 30 {
            let batch = merge.next(10).await.unwrap().unwrap();
            assert!(batch.entities.into_iter().all(|entity| seen.insert(entity.id)));
        }
        tokio::spawn(async move {
            for page in pages {
                sender.send(Ok(page)).await.ok().unwrap();
            }
        });
        seen.extend(all(&mut merge, 10).await);
        assert_eq!(seen.len(), ids.len() + others.len());
    }

    #[tokio::test]
    async fn what_fails_in_a_segment_is_no_end() {
        let (sender, receiver) = channel(1);
        let page = pages(0, &[1, 2], 2, &Position::default()).pop().unwrap();
        sender.send(Ok(page)).await.ok().unwrap();
        let mut merge = Merge::of(vec![receiver]);
        assert_eq!(merge.next(2).await.unwrap().unwrap().entities.len(), 2);
        sender
            .send(Err(crate::error::Error::contract(larder_model::ErrorKind::Unavailable, "gone")))
            .await
            .ok()
            .unwrap();
        assert!(merge.next(2).await.is_err());
    }
}
