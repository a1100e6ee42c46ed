//! Batches of a collection in the order of its keys, out of segments that are read side by side. A target then appends,
//! where one segment beside the other would have it insert every other entity between two that are there. Order is worth no
//! time: what is there is given while another segment is read, because a target that waits can insert meanwhile.

use std::vec;

use futures_util::future::select_all;
use larder_model::Entity;
use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;

use super::pages::{Page, Position};
use crate::error::{Error, Result};
use crate::repository::PAGE_BYTES_MAX;

/// What is written at once.
pub(super) struct Batch {
    pub(super) entities: Vec<Entity>,
    /// Where the segments that came on since the last batch go on.
    pub(super) ends: Vec<(usize, Position)>,
}

/// Entities of all segments, by key as long as each segment has them so. From the first page on that has not, each page
/// comes as a whole.
pub(super) struct Merge {
    segments: Vec<Segment>,
    has_begun: bool,
    is_in_order: bool,
    /// What a segment ended with, before the next batch.
    failed: Option<Error>,
}

struct Segment {
    pages: Receiver<Result<Page>>,
    /// The last page that came, and what has not been taken of it.
    page: Option<Page>,
    entities: vec::IntoIter<Entity>,
    len: usize,
    /// The key that the page ends with.
    last: Option<String>,
    /// It has not come on since the last batch.
    is_told: bool,
    has_ended: bool,
}

impl Segment {
    fn has_any(&self) -> bool {
        self.entities.len() > 0
    }

    fn is_waited_for(&self) -> bool {
        !self.has_ended && !self.has_any()
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
        let segments = segments.into_iter().map(segment).collect();
        Merge { segments, has_begun: false, is_in_order: true, failed: None }
    }

    /// The next entities: `count` of them, or fewer that are large, or are all that there is before somebody has to be
    /// waited for. None of an empty page, which only has an end.
    pub(super) async fn next(&mut self, count: usize) -> Result<Option<Batch>> {
        if !self.has_begun {
            // Until each has something, nobody knows what comes first.
            for number in 0..self.segments.len() {
                let page = self.segments[number].pages.recv().await;
                self.accept(number, page);
            }
            self.has_begun = true;
        }
        let (mut entities, mut bytes) = (Vec::new(), 0);
        while entities.len() < count && bytes < PAGE_BYTES_MAX as usize && self.failed.is_none() {
            self.take_what_came();
            if let Some(entity) = self.take_first() {
                bytes += entity.id.len() + entity.body.len();
                entities.push(entity);
                continue;
            }
            let has_any = !entities.is_empty() || self.segments.iter().any(|segment| !segment.is_told);
            if has_any || !self.wait_for_any().await {
                break;
            }
        }
        if entities.is_empty()
            && let Some(error) = self.failed.take()
        {
            return Err(error);
        }
        let ends: Vec<_> = self.segments.iter_mut().filter_map(Segment::end).collect();
        Ok((!ends.is_empty()).then_some(Batch { entities, ends }))
    }

    fn accept(&mut self, number: usize, page: Option<Result<Page>>) {
        match self.segments[number].accept(page) {
            Ok(is_in_order) => self.is_in_order &= is_in_order,
            Err(error) => self.failed = Some(error),
        }
    }

    fn take_what_came(&mut self) {
        for number in 0..self.segments.len() {
            let segment = &mut self.segments[number];
            if segment.is_waited_for() {
                match segment.pages.try_recv() {
                    Ok(page) => self.accept(number, Some(page)),
                    Err(TryRecvError::Disconnected) => self.accept(number, None),
                    Err(TryRecvError::Empty) => {}
                }
            }
        }
    }

    /// Of what is there.
    fn take_first(&mut self) -> Option<Entity> {
        let segment = if self.is_in_order {
            let segments = self.segments.iter_mut().filter(|segment| segment.has_any());
            segments.min_by(|a, b| a.next_id().cmp(&b.next_id()))?
        } else {
            // Each has its turn, or one would be read to its end before the others.
            let turn = self.segments.iter().position(Segment::has_any)?;
            self.segments.rotate_left(turn);
            self.segments.first_mut()?
        };
        segment.is_told = false;
        segment.entities.next()
    }

    /// Until a page comes, or the end of a segment. Not where all have ended.
    async fn wait_for_any(&mut self) -> bool {
        let waited_for = self.segments.iter_mut().enumerate().filter(|(_, segment)| segment.is_waited_for());
        let (numbers, pages): (Vec<_>, Vec<_>) =
            waited_for.map(|(number, segment)| (number, Box::pin(segment.pages.recv()))).unzip();
        if pages.is_empty() {
            return false;
        }
        let (page, first, others) = select_all(pages).await;
        drop(others);
        self.accept(numbers[first], page);
        true
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

    /// All that comes, and that from any batch on the rest comes once.
    async fn go_on_behind_each(segments: &[Vec<usize>], size: usize) -> Vec<String> {
        let begin = |from: &[Position]| {
            let segments = (0..).zip(segments).zip(from);
            let pages = segments.flat_map(|((segment, ids), from)| pages(segment, ids, 20, from)).collect();
            Merge::of(replay(pages, from.len()))
        };
        let everything: BTreeSet<String> = segments.iter().flatten().map(|id| entity(*id).id).collect();
        let mut positions = vec![Position::default(); segments.len()];
        let mut merge = begin(&positions);
        let mut came = Vec::new();
        while let Some(batch) = merge.next(size).await.unwrap() {
            assert!(batch.entities.len() <= size);
            came.extend(batch.entities.into_iter().map(|entity| entity.id));
            for (segment, end) in batch.ends {
                positions[segment] = end;
            }
            let mut whole = came.clone();
            whole.extend(all(&mut begin(&positions), 11).await);
            assert_eq!(whole.len(), everything.len(), "behind {} in batches of {size}", came.len());
            assert_eq!(whole.into_iter().collect::<BTreeSet<_>>(), everything);
        }
        assert!(positions.iter().all(|position| position.ended), "{positions:?}");
        came
    }

    #[tokio::test]
    async fn it_goes_on_behind_any_batch_with_and_without_an_order() {
        for size in [1, 7, 50, 400] {
            let mut segments = segments();
            let came = go_on_behind_each(&segments, size).await;
            assert!(came.is_sorted(), "{came:?}");
            segments[1][70..].reverse();
            go_on_behind_each(&segments, size).await;
            segments[0].reverse();
            go_on_behind_each(&segments, size).await;
        }
    }

    #[tokio::test]
    async fn none_is_waited_for_while_another_has_something() {
        for backwards in [false, true] {
            let [mut ids, others, _] = segments();
            if backwards {
                ids.reverse();
            }
            let (sender, silent) = channel(1);
            let mut receivers = replay(pages(0, &ids, 30, &Position::default()), 1);
            receivers.push(silent);
            let mut merge = Merge::of(receivers);
            // Nobody knows what comes first before a page of each is there.
            let mut pages = pages(1, &others, 30, &Position::default()).into_iter();
            sender.send(Ok(pages.next().unwrap())).await.ok().unwrap();
            let mut seen = BTreeSet::new();
            while seen.len() < ids.len() + 30 {
                let batch = merge.next(7).await.unwrap().unwrap();
                assert!(batch.entities.into_iter().all(|entity| seen.insert(entity.id)));
            }
            tokio::spawn(async move {
                for page in pages {
                    sender.send(Ok(page)).await.ok().unwrap();
                }
            });
            seen.extend(all(&mut merge, 7).await);
            assert_eq!(seen.len(), ids.len() + others.len());
        }
    }

    #[tokio::test]
    async fn a_batch_of_large_entities_ends_early() {
        let mut large = pages(0, &(0..9).collect::<Vec<_>>(), 9, &Position::default());
        large[0].entities.iter_mut().for_each(|entity| entity.body = vec![b' '; PAGE_BYTES_MAX as usize / 2]);
        let mut merge = Merge::of(replay(large, 1));
        for left in [7, 5, 3, 1, 0] {
            let batch = merge.next(1_000).await.unwrap().unwrap();
            let end = if left > 0 { (0, Position { skip: 9 - left, ..Position::default() }) } else { (0, at(1, true)) };
            assert_eq!(batch.ends, [end]);
        }
        assert!(merge.next(1_000).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_came_before_an_error_is_given_before_it() {
        let (sender, receiver) = channel(2);
        let page = pages(0, &[1, 2], 2, &Position::default()).pop().unwrap();
        sender.send(Ok(page)).await.ok().unwrap();
        let error = crate::error::Error::contract(larder_model::ErrorKind::Unavailable, "gone");
        sender.send(Err(error)).await.ok().unwrap();
        let mut merge = Merge::of(vec![receiver]);
        assert_eq!(merge.next(1_000).await.unwrap().unwrap().entities.len(), 2);
        assert!(merge.next(1_000).await.is_err());
    }
}
