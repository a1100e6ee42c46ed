//! Queries, page by page. A cursor stands behind the last item that was looked at, which need not be where a page of the
//! service's ended, so that a page may be as long as it likes.

use std::collections::HashSet;

use larder_guest::{Attribute, Dynamodb, Item, ItemPage, ItemQuery, ItemScan};
use larder_model::{Entity, Error, Page, Query, Result, filter::Filter};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    item,
    plan::{Access, Plan},
    store::DynamodbStore,
    table::{Table, TableIndex},
};

/// Items that one request looks at. The service ends a page at 1 MB in any case.
const ITEMS_MAX: u32 = 10_000;

/// Requests, or rounds of them side by side, that one call makes before it answers with what it has.
const ROUNDS_MAX: usize = 16;

/// Segments that are read side by side, where there is so much to read.
const SEGMENTS_MAX: u64 = 8;

/// Bytes of a table that are worth a segment.
const SEGMENT_BYTES: u64 = 1 << 20;

/// Where a query goes on.
#[derive(Debug, Serialize, Deserialize)]
enum Place {
    /// Behind this id.
    #[serde(rename = "i")]
    Id(String),
    /// Behind the item with these attributes.
    #[serde(rename = "k")]
    Key(Map<String, Value>),
    /// Of so many segments, those that have not ended, each behind an id.
    #[serde(rename = "s")]
    Segments(u32, Vec<(u32, Option<String>)>),
}

/// The error about a cursor of another query.
pub(crate) fn foreign_cursor() -> Error {
    Error::invalid("the cursor is none of this query")
}

/// The key that a cursor of a scan stands for.
pub(crate) fn id_from(table: &Table, cursor: &[u8]) -> Result<Item> {
    std::str::from_utf8(cursor).map(|id| table.key(id)).map_err(|_| foreign_cursor())
}

/// What reads differ in.
pub(crate) struct Reading<'a> {
    pub(crate) consistent: bool,
    /// Entities that are left out.
    pub(crate) without: &'a HashSet<String>,
}

/// A page with the items that its entities were.
pub(crate) struct Found {
    pub(crate) page: Page,
    pub(crate) items: Vec<Item>,
}

/// What of a page was found so far.
struct Collector<'a> {
    table: &'a Table,
    filter: Option<&'a Filter>,
    without: &'a HashSet<String>,
    limit: usize,
    max_bytes: usize,
    entities: Vec<Entity>,
    items: Vec<Item>,
    bytes: usize,
    read_units: f64,
}

impl Collector<'_> {
    fn is_full(&self) -> bool {
        self.entities.len() >= self.limit || self.bytes >= self.max_bytes && !self.entities.is_empty()
    }

    fn look(&mut self, item: Item) -> Result<()> {
        let (entity, members) = item::entity(self.table, &item)?;
        if self.without.contains(&entity.id) || self.filter.is_some_and(|filter| !filter.matches(&members)) {
            return Ok(());
        }
        self.bytes += entity.body.len();
        self.entities.push(entity);
        self.items.push(item);
        Ok(())
    }

    /// Looks at a page until there is enough, and says behind which item that was, and whether it was all of the page.
    fn look_at(&mut self, items: Vec<Item>) -> Result<(Option<Item>, bool)> {
        let mut last = None;
        for item in items {
            if self.is_full() {
                return Ok((last, false));
            }
            last = Some(item.clone());
            self.look(item)?;
        }
        Ok((last, true))
    }
}

impl<D: Dynamodb> DynamodbStore<D> {
    /// A page of a query.
    pub(crate) fn find_in(&mut self, position: usize, query: &Query, reading: &Reading) -> Result<Found> {
        let table = &self.tables[position];
        let plan = Plan::new(table, query, reading.consistent)?;
        let place = match &query.cursor {
            Some(cursor) => Some(serde_json::from_slice(cursor).map_err(|_| foreign_cursor())?),
            None => None,
        };
        let mut collector = Collector {
            table,
            filter: query.filter.as_ref(),
            without: reading.without,
            limit: query.limit.max(1) as usize,
            max_bytes: query.max_bytes as usize,
            entities: Vec::new(),
            items: Vec::new(),
            bytes: 0,
            read_units: 0.0,
        };
        let mut notes = Vec::new();
        let mut index_used = None;
        let next = match &plan.access {
            Access::Ids(ids) => {
                notes.push("items by their key".to_owned());
                by_ids(&self.dynamodb, &mut collector, ids, place, reading.consistent)
            }
            Access::Index(index, _) => {
                notes.push(format!("a query of the index {}, which may be a moment behind the table", index.name));
                index_used = Some(index.name.clone());
                by_index(&self.dynamodb, &mut collector, &plan, index, place)
            }
            Access::Scan => by_scan(&self.dynamodb, &mut collector, &plan, place, reading.consistent, &mut notes),
        };
        let next = match next {
            Ok(next) => next,
            Err(error) => return Err(self.missing(error)),
        };
        let Collector { entities, items, read_units, .. } = collector;
        if read_units > 0.0 {
            notes.push(format!("{read_units} read units"));
        }
        self.note(position);
        let next = next.map(|place| serde_json::to_vec(&place).expect("a place is JSON"));
        let sorted = query.order_by.is_empty();
        Ok(Found { page: Page { entities, next, unapplied: Vec::new(), sorted, index_used, notes }, items })
    }

    /// How many there are, where nothing is asked of them.
    pub(crate) fn count_all(&mut self, position: usize) -> Result<u64> {
        let table = &self.tables[position];
        let segments = segments(&self.dynamodb, table).map_err(|error| self.missing(error))?;
        let scan = ItemScan {
            collection: table.collection.name.clone(),
            segments,
            filter: None,
            limit: ITEMS_MAX,
            consistent: self.consistent_reads,
            count_only: true,
        };
        let mut open: Vec<(u32, Option<Item>)> = (0..segments).map(|segment| (segment, None)).collect();
        let mut count = 0;
        while !open.is_empty() {
            let pages = self.dynamodb.scan(scan.clone(), open.clone()).map_err(|error| self.missing(error))?;
            count += pages.iter().map(|page| u64::from(page.count)).sum::<u64>();
            let ends = open.iter().zip(pages);
            open = ends.filter_map(|((segment, _), page)| Some((*segment, Some(page.last_key?)))).collect();
        }
        self.note(position);
        Ok(count)
    }

    /// One page of a segment, as the service gives it.
    pub(crate) fn segment_page(
        &mut self,
        position: usize,
        (segment, segments): (u32, u32),
        start: Option<Item>,
    ) -> Result<ItemPage> {
        let scan = ItemScan {
            collection: self.tables[position].collection.name.clone(),
            segments,
            filter: None,
            limit: ITEMS_MAX,
            // Who reads everything wants all that was answered.
            consistent: true,
            count_only: false,
        };
        let mut pages = self.dynamodb.scan(scan, vec![(segment, start)]).map_err(|error| self.missing(error))?;
        self.note(position);
        pages.pop().ok_or_else(lost_page)
    }
}

fn lost_page() -> Error {
    Error::new(larder_model::ErrorKind::Internal, "the host answered a scan with another number of pages")
}

/// How many segments are worth reading side by side.
fn segments<D: Dynamodb>(dynamodb: &D, table: &Table) -> Result<u32> {
    let status = dynamodb.describe_table(&table.collection.name)?;
    let bytes = status.map_or(0, |status| status.bytes);
    Ok((bytes / SEGMENT_BYTES).clamp(1, SEGMENTS_MAX) as u32)
}

fn by_ids<D: Dynamodb>(
    dynamodb: &D,
    collector: &mut Collector,
    ids: &[String],
    place: Option<Place>,
    consistent: bool,
) -> Result<Option<Place>> {
    let after = match place {
        None => "",
        Some(Place::Id(ref id)) => id.as_str(),
        Some(_) => return Err(foreign_cursor()),
    };
    let rest: Vec<&String> = ids.iter().filter(|id| id.as_str() > after).collect();
    let mut last = None;
    // As many as are wanted, so that a short page reads no more.
    for chunk in rest.chunks(collector.limit.clamp(1, 100)) {
        let keys = chunk.iter().map(|id| collector.table.key(id)).collect();
        let found = dynamodb.get_items(&collector.table.collection.name, keys, consistent)?;
        for (id, item) in chunk.iter().zip(found) {
            if collector.is_full() {
                return Ok(last.map(Place::Id));
            }
            last = Some((*id).clone());
            if let Some(item) = item {
                collector.look(item)?;
            }
        }
    }
    Ok(None)
}

fn by_index<D: Dynamodb>(
    dynamodb: &D,
    collector: &mut Collector,
    plan: &Plan,
    index: &TableIndex,
    place: Option<Place>,
) -> Result<Option<Place>> {
    let Access::Index(_, key) = &plan.access else { return Err(foreign_cursor()) };
    let mut start = match place {
        None => None,
        Some(Place::Key(key)) => Some(key_in(key)?),
        Some(_) => return Err(foreign_cursor()),
    };
    for _ in 0..ROUNDS_MAX {
        let wanted = (collector.limit - collector.entities.len()) as u32;
        let page = dynamodb.query(ItemQuery {
            collection: collector.table.collection.name.clone(),
            index: Some(index.name.clone()),
            key: key.clone(),
            filter: plan.filter.clone(),
            start: start.take(),
            // With a filter, of what the service looks at few may match.
            limit: if collector.filter.is_some_and(|filter| filter.conjuncts().len() > 1) { ITEMS_MAX } else { wanted },
            descending: false,
            consistent: false,
            count_only: false,
        })?;
        collector.read_units += page.read_units;
        let (last, is_all) = collector.look_at(page.items)?;
        start = match (is_all, page.last_key) {
            (true, None) => return Ok(None),
            (true, Some(key)) => Some(key),
            // Nothing of the page was looked at only where there was enough before.
            (false, _) => last.map(|item| index_key(collector.table, index, &item)),
        };
        if collector.is_full() {
            break;
        }
    }
    start.map(|key| Ok(Place::Key(key_out(key)?))).transpose()
}

/// The attributes that say where an item stands in an index.
fn index_key(table: &Table, index: &TableIndex, item: &Item) -> Item {
    let mut names = vec![table.collection.key.as_str(), index.hash.as_str()];
    names.extend(index.range.as_deref());
    names.dedup();
    item.iter().filter(|(name, _)| names.contains(&name.as_str())).cloned().collect()
}

fn key_out(key: Item) -> Result<Map<String, Value>> {
    key.into_iter()
        .map(|(name, attribute)| match attribute {
            Attribute::Text(text) => Ok((name, Value::from(text))),
            _ => Err(Error::corrupt("an attribute of a key is no text")),
        })
        .collect()
}

fn key_in(key: Map<String, Value>) -> Result<Item> {
    key.into_iter()
        .map(|(name, value)| match value {
            Value::String(text) => Ok((name, Attribute::Text(text))),
            _ => Err(foreign_cursor()),
        })
        .collect()
}

fn by_scan<D: Dynamodb>(
    dynamodb: &D,
    collector: &mut Collector,
    plan: &Plan,
    place: Option<Place>,
    consistent: bool,
    notes: &mut Vec<String>,
) -> Result<Option<Place>> {
    let table = collector.table;
    let is_whole = collector.filter.is_none();
    let (segments, mut open) = match place {
        // Where everything matches, a few are soon found.
        None if is_whole && collector.limit < 1000 => (1, vec![(0, None)]),
        None => {
            let segments = segments(dynamodb, table)?;
            (segments, (0..segments).map(|segment| (segment, None)).collect())
        }
        Some(Place::Segments(segments, open)) => {
            let is_sound = open.iter().all(|(segment, _)| *segment < segments) && !open.is_empty();
            if !is_sound || u64::from(segments) > SEGMENTS_MAX {
                return Err(foreign_cursor());
            }
            (segments, open)
        }
        Some(_) => return Err(foreign_cursor()),
    };
    notes.push(match segments {
        1 => "a scan of the table".to_owned(),
        _ => format!("a scan of the table in {segments} segments side by side"),
    });
    for _ in 0..ROUNDS_MAX {
        let wanted = (collector.limit - collector.entities.len()) as u32;
        let scan = ItemScan {
            collection: table.collection.name.clone(),
            segments,
            filter: plan.filter.clone(),
            limit: if is_whole { wanted } else { ITEMS_MAX },
            consistent,
            count_only: false,
        };
        let starts =
            open.iter().map(|(segment, id)| (*segment, id.as_ref().map(|id| table.key(id)))).collect::<Vec<_>>();
        let pages = dynamodb.scan(scan, starts)?;
        if pages.len() != open.len() {
            return Err(lost_page());
        }
        let mut left = Vec::with_capacity(open.len());
        for ((segment, start), page) in open.into_iter().zip(pages) {
            collector.read_units += page.read_units;
            let (last, is_all) = collector.look_at(page.items)?;
            let id_of = |item: &Item| item::id_of(table, item).map(str::to_owned);
            match (is_all, page.last_key) {
                (true, None) => {}
                (true, Some(key)) => left.push((segment, id_of(&key))),
                (false, _) => left.push((segment, last.as_ref().and_then(id_of).or(start))),
            }
        }
        open = left;
        if open.is_empty() || collector.is_full() {
            break;
        }
    }
    Ok((!open.is_empty()).then_some(Place::Segments(segments, open)))
}
