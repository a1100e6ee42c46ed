//! Queries, page by page. A cursor stands behind the last item that was looked at, which need not be where a page of the
//! service's ended, so that a page may be as long as it likes.

use std::collections::HashSet;

use larder_guest::{Attribute, Dynamodb, Expression, Item, ItemPage, ItemQuery, ItemScan};
use larder_model::{Entity, Error, Page, Query, Result, SortKey, filter::Filter, order};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    item,
    plan::{Access, Order, Plan},
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
    /// In the order of an index, of what stands behind the item with these attributes, behind the entity with this value
    /// and this id.
    #[serde(rename = "o")]
    Ordered(Option<Map<String, Value>>, Option<(Value, String)>),
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
        self.take(entity, &members, item);
        Ok(())
    }

    fn take(&mut self, entity: Entity, members: &Map<String, Value>, item: Item) {
        if self.without.contains(&entity.id) || self.filter.is_some_and(|filter| !filter.matches(members)) {
            return;
        }
        self.bytes += entity.body.len();
        self.entities.push(entity);
        self.items.push(item);
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
        let mut sorted = query.order_by.is_empty();
        let next = match &plan.access {
            Access::Ids(ids) => {
                notes.push("items by their key".to_owned());
                by_ids(&self.dynamodb, &mut collector, ids, place, reading.consistent)
            }
            Access::Index(index, key, order) => {
                notes.push(format!("a query of the index {}, which may be a moment behind the table", index.name));
                index_used = Some(index.name.clone());
                let request = Request { dynamodb: &self.dynamodb, index, key, filter: plan.filter.as_ref() };
                request.has_order(&mut collector, *order, place.as_ref()).and_then(|has_order| {
                    sorted |= has_order;
                    match has_order {
                        true => request.in_order(&mut collector, *order, place, &query.order_by),
                        false => request.in_any_order(&mut collector, place),
                    }
                })
            }
            Access::Scan => by_scan(&self.dynamodb, &mut collector, &plan, place, reading.consistent, &mut notes),
        };
        let next = match next {
            Ok(next) => next,
            Err(error) => return Err(self.missing(error)),
        };
        let Collector { entities, items, read_units, .. } = collector;
        let cost = (read_units > 0.0).then(|| (read_units, "read units".to_owned()));
        self.note(position);
        let next = next.map(|place| serde_json::to_vec(&place).expect("a place is JSON"));
        let page = Page { entities, next, unapplied: Vec::new(), sorted, index_used, notes, cost };
        Ok(Found { page, items })
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

/// What is asked of an index.
struct Request<'a, D> {
    dynamodb: &'a D,
    index: &'a TableIndex,
    key: &'a Expression,
    filter: Option<&'a Expression>,
}

impl<D: Dynamodb> Request<'_, D> {
    fn page(&self, collector: &mut Collector, start: Option<Item>, limit: usize, descending: bool) -> Result<ItemPage> {
        let page = self.dynamodb.query(ItemQuery {
            collection: collector.table.collection.name.clone(),
            index: Some(self.index.name.clone()),
            key: self.key.clone(),
            filter: self.filter.cloned(),
            start,
            // With a filter, of what the service looks at few may match.
            limit: if self.filter.is_some() { ITEMS_MAX } else { (limit as u32).min(ITEMS_MAX) },
            descending,
            consistent: false,
            count_only: false,
        })?;
        collector.read_units += page.read_units;
        Ok(page)
    }

    fn in_any_order(&self, collector: &mut Collector, place: Option<Place>) -> Result<Option<Place>> {
        let mut start = match place {
            None => None,
            Some(Place::Key(key)) => Some(key_in(key)?),
            Some(_) => return Err(foreign_cursor()),
        };
        for _ in 0..ROUNDS_MAX {
            let wanted = collector.limit - collector.entities.len();
            let page = self.page(collector, start.take(), wanted, false)?;
            let (last, is_all) = collector.look_at(page.items)?;
            start = match (is_all, page.last_key) {
                (true, None) => return Ok(None),
                (true, Some(key)) => Some(key),
                // Nothing of the page was looked at only where there was enough before.
                (false, _) => last.map(|item| index_key(collector.table, self.index, &item)),
            };
            if collector.is_full() {
                break;
            }
        }
        start.map(|key| Ok(Place::Key(key_out(key)?))).transpose()
    }

    /// Whether the index gives its items in the order that is asked for, but for ties. Sentinels stand where no value
    /// would.
    fn has_order(&self, collector: &mut Collector, order: Order, place: Option<&Place>) -> Result<bool> {
        match (order, place) {
            (Order::No, _) => return Ok(false),
            (_, Some(place)) => return Ok(matches!(place, Place::Ordered(..))),
            (Order::Yes { of_texts: true, .. }, None) => return Ok(true),
            (Order::Yes { .. }, None) => {}
        }
        let Some(range) = &self.index.range else { return Ok(false) };
        let mut key = self.key.clone();
        key.text.push_str(" AND begins_with(#range, :sentinel)");
        key.names.push(("#range".to_owned(), range.clone()));
        key.values.push((":sentinel".to_owned(), Attribute::Text(item::SENTINEL.to_string())));
        let page = Request { key: &key, filter: None, ..*self }.page(collector, None, 1, false)?;
        Ok(page.count == 0)
    }

    /// The service orders by the key's attribute, and items of one value as it likes: they are sorted here.
    fn in_order(
        &self,
        collector: &mut Collector,
        order: Order,
        place: Option<Place>,
        order_by: &[SortKey],
    ) -> Result<Option<Place>> {
        let descending = matches!(order, Order::Yes { descending: true, .. });
        let (mut before, mut after) = match place {
            None => (None, None),
            Some(Place::Ordered(before, after)) => (before.map(key_in).transpose()?, after),
            Some(_) => return Err(foreign_cursor()),
        };
        let range = self.index.range.as_deref().unwrap_or_default();
        let began = before.clone();
        let mut start = before.clone();
        let mut group: Vec<Item> = Vec::new();
        for round in 0.. {
            let wanted = collector.limit - collector.entities.len().min(collector.limit) + 1;
            let page = self.page(collector, start.take(), wanted, descending)?;
            for item in page.items {
                let is_next =
                    group.last().is_some_and(|last| item::text_of(last, range) != item::text_of(&item, range));
                if is_next {
                    let last = group.last().map(|last| index_key(collector.table, self.index, last));
                    if let Some(id) = take_group(collector, std::mem::take(&mut group), after.take(), order_by)? {
                        return ordered(before, Some(id));
                    }
                    before = last;
                    if collector.is_full() {
                        return ordered(before, None);
                    }
                }
                group.push(item);
            }
            match page.last_key {
                Some(key) => start = Some(key),
                None => {
                    let rest = take_group(collector, group, after, order_by)?;
                    return rest.map_or(Ok(None), |id| ordered(before, Some(id)));
                }
            }
            // The group that is not whole yet is read once more then.
            if round >= ROUNDS_MAX && before != began {
                return ordered(before, None);
            }
        }
        Ok(None)
    }
}

fn ordered(before: Option<Item>, after: Option<(Value, String)>) -> Result<Option<Place>> {
    Ok(Some(Place::Ordered(before.map(key_out).transpose()?, after)))
}

/// Takes items of one value in their order, those behind `after`. Where not all are wanted, the last that was looked at.
fn take_group(
    collector: &mut Collector,
    group: Vec<Item>,
    after: Option<(Value, String)>,
    order_by: &[SortKey],
) -> Result<Option<(Value, String)>> {
    let mut rows = Vec::with_capacity(group.len());
    for item in group {
        let (entity, members) = item::entity(collector.table, &item)?;
        rows.push((entity, members, item));
    }
    let by_order = |a: &(Entity, Map<String, Value>, Item), b: &(Entity, Map<String, Value>, Item)| {
        order::compare(order_by, (&a.0.id, &a.1), (&b.0.id, &b.1))
    };
    rows.sort_by(by_order);
    let values = |members: &Map<String, Value>| -> Vec<Option<Value>> {
        order_by.iter().map(|key| key.field.get(members).cloned()).collect()
    };
    let mut last = after;
    for (entity, members, item) in rows {
        if let Some((value, id)) = &last {
            let known = [Some(value.clone())];
            if order::compare_keys(order_by, (&entity.id, &values(&members)), (id, &known)).is_le() {
                continue;
            }
        }
        if collector.is_full() {
            return Ok(last);
        }
        let value = values(&members).into_iter().flatten().next().unwrap_or_default();
        last = Some((value, entity.id.clone()));
        collector.take(entity, &members, item);
    }
    Ok(None)
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
