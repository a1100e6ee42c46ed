//! Queries, page by page.
//!
//! A cursor says how the query is read and how far each part of that was given, so that it does not depend on where the
//! service ended a page of its own. In a transaction its own changes come first, and what is stored of the same entities is
//! left out behind them.
//!
//! The service orders an index by the bytes of its range attribute and lets ties fall as they will. Where the query asks
//! for that order, what has the same value is gathered and sorted before it is given, so that the order is the contract's.

use larder_guest::{Attribute, Dynamodb, Expression, Item, ItemQuery, ItemScan};
use larder_model::{Entity, Error, Page, Query, Result, filter::Filter, json::quoted, order};
use serde_json::{Map, Value};

use crate::{
    item,
    plan::{self, Plan, Section},
    table::{Table, TableIndex},
    transaction::Changes,
};

/// Parts of a scan that are read side by side.
const SEGMENTS: u32 = 4;

/// Queries for fewer entities read one part after the other.
const PARALLEL_MIN: u32 = 200;

/// How often the service is asked for one page at most, while nothing is found.
const REQUESTS_MAX: u32 = 8;

/// Items that the first request looks at where a filter leaves an unknown number of them; each further one looks at twice as
/// many. What is looked at and does not come into the page is looked at, and paid, again.
const LOOKED_AT: std::ops::RangeInclusive<u32> = 100..=2_000;

/// Items that are looked at for each that is wanted.
const LOOKED_AT_EACH: u32 = 8;

/// Items that any request looks at.
const ITEMS_MAX: u32 = 100_000;

/// Keys that are read at once.
const KEYS_AT_ONCE: usize = 100;

/// A value that is cut to fit an index has at least so many bytes. Values that share them may be in any order there.
const TIE_BYTES: usize = 1021;

/// An entity, with the item that it was read from.
pub(crate) struct Found {
    pub(crate) entity: Entity,
    pub(crate) members: Map<String, Value>,
    pub(crate) item: Option<Item>,
}

/// Which indexes of a table can be used.
pub(crate) enum Usable {
    These(Vec<String>),
    /// Nobody may ask.
    Unknown(Error),
}

/// A query under way.
pub(crate) struct Find<'a, D: Dynamodb> {
    pub(crate) dynamodb: &'a D,
    pub(crate) table: &'a Table,
    pub(crate) query: &'a Query,
    pub(crate) consistent: bool,
    /// Whether an index may be used that was not named.
    pub(crate) may_choose_index: bool,
    /// Of the collection, by the transaction that asks.
    pub(crate) changes: Option<&'a Changes>,
    pub(crate) found: Vec<Found>,
    pub(crate) bytes: usize,
    pub(crate) read_units: f64,
}

/// Where a page ended.
#[derive(Debug, Clone, PartialEq)]
enum Cursor {
    /// In the transaction's own changes, behind this id.
    Own(Option<String>),
    /// Behind this id.
    Ids(Option<String>),
    /// Behind this key of the index, none at its beginning.
    Index(String, Option<Item>),
    /// In the index, in the order asked for.
    Ordered(String, Option<Position>),
    Scan(Vec<Segment>),
}

#[derive(Debug, Clone, PartialEq)]
struct Position {
    /// What the range attribute holds there.
    at: String,
    /// What the last entity that was given is ordered by, and its id. None: of what holds the same, nothing was given.
    last: Option<(Vec<Option<Value>>, String)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Segment {
    /// Behind this id, none at its beginning.
    Behind(Option<String>),
    Ended,
}

impl<'a, D: Dynamodb> Find<'a, D> {
    /// One page, and what it was read from.
    pub(crate) fn run(mut self, usable: impl FnOnce() -> Result<Usable>) -> Result<(Page, Vec<Found>)> {
        if self.query.limit == 0 {
            return Err(Error::invalid("the limit of a query is at least 1"));
        }
        let conjuncts = self.query.filter.as_ref().map(Filter::conjuncts).unwrap_or_default();
        let mut notes = Vec::new();
        let given = self.query.cursor.as_deref().map(Cursor::decode).transpose()?;
        let mut start = given.clone();
        if let Some(name) = &self.query.index
            && !self.table.collection.indexes.iter().any(|index| index.name == *name)
        {
            return Err(Error::invalid(format!("{} has no index {}", self.table.collection.name, quoted(name))));
        }
        let mut own_next = None;
        if let (None | Some(Cursor::Own(_)), Some(changes)) = (&start, self.changes.filter(|it| !it.is_empty())) {
            let after = match &start {
                Some(Cursor::Own(after)) => after.clone(),
                _ => None,
            };
            own_next = self.own(changes, after);
            start = None;
        }
        if let Some(Cursor::Own(_)) = start {
            start = None;
        }
        let start = match start {
            Some(start) => start,
            None => self.choose(&conjuncts, usable, &mut notes)?,
        };
        let index = match &start {
            Cursor::Index(name, _) | Cursor::Ordered(name, _) => Some(self.index(name)?),
            _ => None,
        };
        let plan = match &start {
            Cursor::Ids(_) => Plan::none(&conjuncts),
            _ => Plan::new(self.table, &conjuncts, index),
        };
        let mut sorted = self.query.order_by.is_empty();
        let next = match (own_next, start) {
            (Some(next), _) => Some(next),
            (None, Cursor::Ids(after)) => self.by_ids(&conjuncts, &plan, after, &mut notes)?,
            (None, Cursor::Index(_, after)) => {
                let (index, section) = self.section(index, &conjuncts)?;
                self.by_index(index, &section, &plan, after, &mut notes)?
            }
            (None, Cursor::Ordered(_, position)) => {
                let (index, section) = self.section(index, &conjuncts)?;
                sorted = true;
                self.in_order(index, &section, &plan, position, &mut notes)?
            }
            (None, Cursor::Scan(segments)) => self.by_scan(&plan, segments, &mut notes)?,
            (None, Cursor::Own(_)) => None,
        };
        // All there is fits a page.
        if given.is_none() && next.is_none() && !sorted {
            let order_by = &self.query.order_by;
            self.found.sort_by(|a, b| order::compare(order_by, (&a.entity.id, &a.members), (&b.entity.id, &b.members)));
            sorted = true;
        }
        let cost = (self.read_units > 0.0).then(|| (self.read_units, "read units".to_owned()));
        let page = Page {
            entities: self.found.iter().map(|found| found.entity.clone()).collect(),
            next: next.map(|next| next.encode()),
            unapplied: plan.unapplied,
            sorted,
            index_used: index.map(|index| index.name.clone()),
            notes,
            cost,
        };
        Ok((page, self.found))
    }

    fn index(&self, name: &str) -> Result<&'a TableIndex> {
        self.table.indexes.iter().find(|index| index.name == name).ok_or_else(foreign_cursor)
    }

    fn section<'b>(&self, index: Option<&'b TableIndex>, conjuncts: &[&Filter]) -> Result<(&'b TableIndex, Section)> {
        let index = index.ok_or_else(foreign_cursor)?;
        let section = plan::section(self.table, index, conjuncts).ok_or_else(foreign_cursor)?;
        Ok((index, section))
    }

    fn is_changed(&self, id: &str) -> bool {
        self.changes.is_some_and(|changes| changes.contains_key(id))
    }

    /// Whether the page is full.
    fn is_full(&self) -> bool {
        !self.found.is_empty()
            && (self.found.len() >= self.query.limit as usize || self.bytes >= self.query.max_bytes as usize)
    }

    fn wanted(&self) -> u32 {
        self.query.limit.saturating_sub(self.found.len() as u32).clamp(1, ITEMS_MAX)
    }

    fn add(&mut self, found: Found) {
        self.bytes += found.entity.body.len();
        self.found.push(found);
    }

    /// The entity of an item, where it belongs to the answer.
    fn look_at(&self, plan: &Plan, item: Item) -> Result<Option<Found>> {
        if item::id_of(self.table, &item).is_some_and(|id| self.is_changed(id)) {
            return Ok(None);
        }
        let (entity, members) = item::entity(self.table, &item)?;
        let matches = plan.applied.iter().all(|conjunct| conjunct.matches(&members));
        Ok(matches.then_some(Found { entity, members, item: Some(item) }))
    }

    /// How the query is read.
    fn choose(
        &self,
        conjuncts: &[&Filter],
        usable: impl FnOnce() -> Result<Usable>,
        notes: &mut Vec<String>,
    ) -> Result<Cursor> {
        let named = self.query.index.as_deref();
        if named.is_none() && plan::ids(self.table, conjuncts).is_some() {
            return Ok(Cursor::Ids(None));
        }
        let mut candidates: Vec<(&TableIndex, Section)> = Vec::new();
        for index in self.table.indexes.iter().filter(|index| named.is_none_or(|name| index.name == name)) {
            if let Some(section) = plan::section(self.table, index, conjuncts) {
                candidates.push((index, section));
            }
        }
        if let Some(name) = named
            && candidates.is_empty()
        {
            let declared = self.table.collection.indexes.iter().find(|index| index.name == name);
            let hash = declared.and_then(|index| index.fields.first()).map_or("", String::as_str);
            let names_hash = |conjunct: &&Filter| {
                matches!(conjunct, Filter::Compare { field, op: larder_model::filter::Comparison::Eq, .. }
                    if field.single() == Some(hash))
            };
            if !conjuncts.iter().any(names_hash) {
                return Err(Error::invalid(format!(
                    "the index {} is read by one value of {}: add an equality on it to the filter, or do not name the \
                     index",
                    quoted(name),
                    quoted(hash)
                )));
            }
            notes.push(format!("the index {} cannot look for that value", quoted(name)));
        }
        if named.is_none() && !self.may_choose_index && !candidates.is_empty() {
            notes.push(format!(
                "the index {} was not used, because an index is always a little late: `consistent_reads` is on, and no \
                 index was named",
                quoted(&candidates[0].0.name)
            ));
            candidates.clear();
        }
        if !candidates.is_empty() {
            match usable()? {
                Usable::These(names) => {
                    for (index, _) in candidates.iter().filter(|(index, _)| !names.contains(&index.name)) {
                        let message = format!(
                            "the index {} of {} is not there, not ready yet, or not as it should be",
                            quoted(&index.name),
                            self.table.collection.name
                        );
                        if named.is_some() {
                            return Err(Error::new(
                                larder_model::ErrorKind::Unavailable,
                                format!("{message}: `larder stores prepare --extend` adds it"),
                            ));
                        }
                        notes.push(message);
                    }
                    candidates.retain(|(index, _)| names.contains(&index.name));
                }
                Usable::Unknown(error) if named.is_some() => return Err(error),
                Usable::Unknown(error) => {
                    notes.push(format!("no index was used, because they cannot be looked at: {error}"));
                    candidates.clear();
                }
            }
        }
        // What leaves least, and then what comes in order.
        let best = candidates.into_iter().max_by_key(|(index, section)| {
            let bounds = u8::from(section.lower.is_some()) + u8::from(section.upper.is_some());
            (bounds, plan::is_index_order(index, &self.query.order_by))
        });
        let Some((index, section)) = best else {
            let segments = if self.query.limit < PARALLEL_MIN { 1 } else { SEGMENTS };
            return Ok(Cursor::Scan(vec![Segment::Behind(None); segments as usize]));
        };
        let has_changes = self.changes.is_some_and(|changes| !changes.is_empty());
        let ordered = plan::is_index_order(index, &self.query.order_by)
            && !has_changes
            && (section.lower.is_some() || !self.has_sentinels(index, &section)?);
        Ok(match ordered {
            true => Cursor::Ordered(index.name.clone(), None),
            false => Cursor::Index(index.name.clone(), None),
        })
    }

    /// Whether an entity of the section holds something else in the range member than a text: the index has it in another
    /// place than the contract.
    fn has_sentinels(&self, index: &TableIndex, section: &Section) -> Result<bool> {
        let Some(range) = &index.range else { return Ok(false) };
        let mut first = section.clone();
        first.narrow(None, Some("\u{1}".to_owned()));
        let page = self.request(index, first.expression(index), None, None, 20, false)?;
        for item in &page.items {
            if !item::decode(self.table, item)?.get(range).is_some_and(Value::is_string) {
                return Ok(true);
            }
        }
        Ok(page.last_key.is_some())
    }

    /// The transaction's own entities. Gives the cursor where there are more than the page takes.
    fn own(&mut self, changes: &Changes, after: Option<String>) -> Option<Cursor> {
        let filter = self.query.filter.as_ref();
        for (id, change) in changes.iter().filter(|(id, _)| after.as_ref().is_none_or(|after| *id > after)) {
            let Some(members) = change.after.as_ref() else { continue };
            if filter.is_some_and(|filter| !filter.matches(members)) {
                continue;
            }
            if self.is_full() {
                return Some(Cursor::Own(self.found.last().map(|last| last.entity.id.clone())));
            }
            let entity = Entity {
                id: id.clone(),
                version: larder_model::entity::version_of(&self.table.collection, members),
                body: larder_model::json::to_vec(members),
            };
            self.add(Found { entity, members: members.clone(), item: None });
        }
        self.is_full().then(|| Cursor::Own(self.found.last().map(|last| last.entity.id.clone())))
    }

    fn by_ids(
        &mut self,
        conjuncts: &[&Filter],
        plan: &Plan,
        after: Option<String>,
        notes: &mut Vec<String>,
    ) -> Result<Option<Cursor>> {
        let mut ids = plan::ids(self.table, conjuncts).ok_or_else(foreign_cursor)?;
        ids.retain(|id| after.as_ref().is_none_or(|after| id > after));
        notes.push(format!("read by key{}", self.consistency()));
        let mut last = None;
        let mut rest = ids.as_slice();
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(rest.len().min(KEYS_AT_ONCE).min(self.wanted() as usize));
            let keys = chunk.iter().map(|id| self.table.key(id)).collect();
            let items = self.dynamodb.get_items(&self.table.collection.name, keys, self.consistent)?;
            for (id, item) in chunk.iter().zip(items) {
                if self.is_full() {
                    return Ok(Some(Cursor::Ids(last)));
                }
                last = Some(id.clone());
                if let Some(found) = item.map(|item| self.look_at(plan, item)).transpose()?.flatten() {
                    self.add(found);
                }
            }
            rest = later;
            if self.is_full() && !rest.is_empty() {
                return Ok(Some(Cursor::Ids(last)));
            }
        }
        Ok(None)
    }

    fn consistency(&self) -> &'static str {
        if self.consistent { ", strongly consistent" } else { ", eventually consistent" }
    }

    /// How many items the request of this number looks at.
    fn looked_at(&self, plan: &Plan, wanted: u32, request: u32) -> u32 {
        match plan.applied.is_empty() || plan.filter.is_none() && plan.unapplied.is_empty() {
            true => wanted,
            false => {
                let first = wanted.saturating_mul(LOOKED_AT_EACH).clamp(*LOOKED_AT.start(), *LOOKED_AT.end());
                first << request.min(REQUESTS_MAX)
            }
        }
    }

    fn request(
        &self,
        index: &TableIndex,
        key: Expression,
        filter: Option<Expression>,
        start: Option<Item>,
        limit: u32,
        descending: bool,
    ) -> Result<larder_guest::ItemPage> {
        self.dynamodb.query(ItemQuery {
            collection: self.table.collection.name.clone(),
            index: Some(index.name.clone()),
            key,
            filter,
            start,
            limit,
            descending,
            consistent: false,
            count_only: false,
        })
    }

    fn by_index(
        &mut self,
        index: &TableIndex,
        section: &Section,
        plan: &Plan,
        mut start: Option<Item>,
        notes: &mut Vec<String>,
    ) -> Result<Option<Cursor>> {
        notes.push(format!("query of the index {}, eventually consistent", quoted(&index.name)));
        if section.is_empty() {
            return Ok(None);
        }
        for request in 0..REQUESTS_MAX {
            let limit = self.looked_at(plan, self.wanted(), request);
            let page =
                self.request(index, section.expression(index), plan.filter.clone(), start.clone(), limit, false)?;
            self.read_units += page.read_units;
            for item in page.items {
                if self.is_full() {
                    return Ok(Some(Cursor::Index(index.name.clone(), start)));
                }
                start = Some(self.index_key(index, &item));
                if let Some(found) = self.look_at(plan, item)? {
                    self.add(found);
                }
            }
            let Some(last_key) = page.last_key else { return Ok(None) };
            start = Some(last_key);
            if self.is_full() {
                break;
            }
        }
        Ok(Some(Cursor::Index(index.name.clone(), start)))
    }

    /// What a query of the index goes on behind.
    fn index_key(&self, index: &TableIndex, item: &Item) -> Item {
        let mut names = vec![&self.table.collection.key, &index.hash];
        names.extend(&index.range);
        names.sort_unstable();
        names.dedup();
        item.iter().filter(|(name, _)| names.contains(&name)).cloned().collect()
    }

    fn in_order(
        &mut self,
        index: &TableIndex,
        section: &Section,
        plan: &Plan,
        position: Option<Position>,
        notes: &mut Vec<String>,
    ) -> Result<Option<Cursor>> {
        notes.push(format!("query of the index {} in its order, eventually consistent", quoted(&index.name)));
        let descending = self.query.order_by.first().is_some_and(|key| key.descending);
        let range = index.range.as_deref().ok_or_else(foreign_cursor)?;
        let mut section = section.clone();
        if let Some(position) = &position {
            // Of what has the same value, all is read again: the service cannot say what of it was given.
            match descending {
                // What begins alike may have been cut, and be smaller or larger.
                false => section.narrow(Some(tie(&position.at).to_owned()), None),
                true => section.narrow(None, plan::end_of(tie(&position.at), &position.at)),
            }
        }
        if section.is_empty() {
            return Ok(None);
        }
        let ordered = |at: Option<Position>| Some(Cursor::Ordered(index.name.clone(), at));
        let is_behind = |found: &Found| {
            let Some(Position { last: Some((keys, id)), .. }) = &position else { return true };
            let found_keys = order_keys(&self.query.order_by, &found.members);
            order::compare_keys(&self.query.order_by, (&found.entity.id, &found_keys), (id, keys)).is_gt()
        };
        let began = position.as_ref().map(|position| position.at.clone());
        // What has one value, and that value.
        let mut group: Vec<Found> = Vec::new();
        let mut at: Option<String> = None;
        let mut start = None;
        let mut requests = 0;
        let mut ready: Vec<(Found, String)> = Vec::new();
        let mut ready_bytes = 0;
        let limit = self.query.limit as usize;
        let max_bytes = self.query.max_bytes as usize;
        let is_enough = |count: usize, bytes: usize| count > 0 && (count >= limit || bytes >= max_bytes);
        loop {
            // One more than is wanted, which tells that a value is complete.
            let wanted = ((limit - ready.len()) as u32).clamp(1, ITEMS_MAX) + 1;
            let looked_at = self.looked_at(plan, wanted, requests);
            let page = self.request(
                index,
                section.expression(index),
                plan.filter.clone(),
                start.take(),
                looked_at,
                descending,
            )?;
            self.read_units += page.read_units;
            requests += 1;
            for item in page.items {
                let value = item::text_of(&item, range).unwrap_or_default().to_owned();
                if at.as_deref().is_some_and(|at| tie(at) != tie(&value)) {
                    drain(&self.query.order_by, &mut group, &mut ready, &mut ready_bytes, range_of(&at), is_enough);
                    if is_enough(ready.len(), ready_bytes) {
                        return Ok(self.end(ready, ordered));
                    }
                }
                at = Some(value);
                if let Some(found) = self.look_at(plan, item)?.filter(|found| is_behind(found)) {
                    group.push(found);
                    // Of very many that have one value, only the first are kept.
                    if group.len() > limit.saturating_mul(2).saturating_add(1_000) {
                        sort(&self.query.order_by, &mut group);
                        group.truncate(limit + 1);
                    }
                }
            }
            let Some(last_key) = page.last_key else { break };
            if let Some(text) = item::text_of(&last_key, range)
                && at.as_deref().is_none_or(|at| tie(at) != tie(text))
            {
                // Nothing of that value was given; what has the one before is complete.
                drain(&self.query.order_by, &mut group, &mut ready, &mut ready_bytes, range_of(&at), is_enough);
                if is_enough(ready.len(), ready_bytes) {
                    return Ok(self.end(ready, ordered));
                }
                at = Some(text.to_owned());
            }
            start = Some(last_key);
            let has_moved = at.as_deref().is_some_and(|at| began.as_deref().is_none_or(|began| tie(began) != tie(at)));
            if requests >= REQUESTS_MAX && (has_moved || !ready.is_empty()) {
                let next = at.map(|at| Position { at, last: None });
                let _ = self.end(ready, |_| None);
                return Ok(ordered(next));
            }
        }
        drain(&self.query.order_by, &mut group, &mut ready, &mut ready_bytes, range_of(&at), is_enough);
        // One more than the page takes is kept, so that a further page is known of.
        let is_cut = !group.is_empty();
        Ok(if is_cut { self.end(ready, ordered) } else { self.end(ready, |_| None) })
    }

    /// Gives what is ready, and says where it ends.
    fn end(
        &mut self,
        ready: Vec<(Found, String)>,
        next: impl FnOnce(Option<Position>) -> Option<Cursor>,
    ) -> Option<Cursor> {
        let position = ready.last().map(|(last, at)| Position {
            at: at.clone(),
            last: Some((order_keys(&self.query.order_by, &last.members), last.entity.id.clone())),
        });
        for (found, _) in ready {
            self.add(found);
        }
        next(position)
    }

    fn by_scan(&mut self, plan: &Plan, mut segments: Vec<Segment>, notes: &mut Vec<String>) -> Result<Option<Cursor>> {
        let count = segments.len() as u32;
        notes.push(match count {
            1 => format!("scan{}", self.consistency()),
            _ => format!("scan of {count} segments{}", self.consistency()),
        });
        for request in 0..REQUESTS_MAX {
            let mut active: Vec<(u32, Option<Item>)> = Vec::new();
            for (number, segment) in (0..).zip(&segments) {
                if let Segment::Behind(after) = segment {
                    active.push((number, after.as_ref().map(|id| self.table.key(id))));
                }
            }
            if active.is_empty() {
                return Ok(None);
            }
            // Without a filter no more is read than the page takes.
            let limit = self.looked_at(plan, self.wanted(), request);
            active.truncate(limit as usize);
            let scan = ItemScan {
                collection: self.table.collection.name.clone(),
                segments: count,
                filter: plan.filter.clone(),
                limit: (limit / active.len() as u32).max(1),
                consistent: self.consistent,
                count_only: false,
            };
            let numbers: Vec<u32> = active.iter().map(|(number, _)| *number).collect();
            let pages = self.dynamodb.scan(scan, active)?;
            for (number, page) in numbers.into_iter().zip(pages) {
                self.read_units += page.read_units;
                let segment = &mut segments[number as usize];
                let mut is_cut = false;
                for item in page.items {
                    if self.is_full() {
                        is_cut = true;
                        break;
                    }
                    *segment = Segment::Behind(item::id_of(self.table, &item).map(str::to_owned));
                    if let Some(found) = self.look_at(plan, item)? {
                        self.add(found);
                    }
                }
                if !is_cut {
                    *segment = match page.last_key {
                        Some(key) => Segment::Behind(item::id_of(self.table, &key).map(str::to_owned)),
                        None => Segment::Ended,
                    };
                }
            }
            if self.is_full() {
                break;
            }
        }
        let is_over = segments.iter().all(|segment| *segment == Segment::Ended);
        Ok((!is_over).then_some(Cursor::Scan(segments)))
    }
}

fn range_of(at: &Option<String>) -> String {
    at.clone().unwrap_or_default()
}

/// What values share that may be in any order.
fn tie(value: &str) -> &str {
    &value[..value.floor_char_boundary(TIE_BYTES)]
}

fn order_keys(order_by: &[larder_model::SortKey], members: &Map<String, Value>) -> Vec<Option<Value>> {
    order_by.iter().map(|key| key.field.get(members).cloned()).collect()
}

fn sort(order_by: &[larder_model::SortKey], group: &mut [Found]) {
    group.sort_by(|a, b| order::compare(order_by, (&a.entity.id, &a.members), (&b.entity.id, &b.members)));
}

/// Moves what has one value to what is ready, in order, until that is enough.
fn drain(
    order_by: &[larder_model::SortKey],
    group: &mut Vec<Found>,
    ready: &mut Vec<(Found, String)>,
    ready_bytes: &mut usize,
    at: String,
    is_enough: impl Fn(usize, usize) -> bool,
) {
    sort(order_by, group);
    let mut taken = 0;
    for found in group.iter() {
        if is_enough(ready.len() + taken, *ready_bytes) {
            break;
        }
        *ready_bytes += found.entity.body.len();
        taken += 1;
    }
    ready.extend(group.drain(..taken).map(|found| (found, at.clone())));
}

/// The error about a cursor that is none of this query's.
pub(crate) fn foreign_cursor() -> Error {
    Error::invalid("the cursor is of another query: begin again without one")
}

impl Cursor {
    fn encode(&self) -> Vec<u8> {
        let text = |text: &Option<String>| text.as_ref().map_or(Value::Null, |text| Value::from(text.as_str()));
        let value = match self {
            Cursor::Own(after) => serde_json::json!({"own": text(after)}),
            Cursor::Ids(after) => serde_json::json!({"ids": text(after)}),
            Cursor::Index(name, key) => {
                let key = key.iter().flatten().filter_map(|(name, attribute)| match attribute {
                    Attribute::Text(text) => Some((name.clone(), Value::from(text.as_str()))),
                    _ => None,
                });
                serde_json::json!({"index": name, "key": key.collect::<Map<_, _>>()})
            }
            Cursor::Ordered(name, position) => match position {
                None => serde_json::json!({"index": name, "at": null}),
                Some(Position { at, last }) => {
                    // An absent value is an empty list, and any other the one in it.
                    let last = last.as_ref().map(|(keys, id)| {
                        let keys: Vec<Vec<&Value>> = keys.iter().map(|key| key.iter().collect()).collect();
                        serde_json::json!({"keys": keys, "id": id})
                    });
                    serde_json::json!({"index": name, "at": at, "last": last})
                }
            },
            Cursor::Scan(segments) => {
                let segment = |segment: &Segment| match segment {
                    Segment::Behind(after) => text(after),
                    Segment::Ended => Value::Bool(true),
                };
                serde_json::json!({"scan": segments.iter().map(segment).collect::<Vec<_>>()})
            }
        };
        value.to_string().into_bytes()
    }

    fn decode(cursor: &[u8]) -> Result<Cursor> {
        // What it is ordered by stands three deeper than in the entity.
        let cursor = larder_model::json::parse_wrapping(cursor, 4).map_err(|_| foreign_cursor())?;
        Cursor::of(&cursor).ok_or_else(foreign_cursor)
    }

    fn of(cursor: &Map<String, Value>) -> Option<Cursor> {
        let text = |value: &Value| match value {
            Value::Null => Some(None),
            Value::String(text) => Some(Some(text.clone())),
            _ => None,
        };
        if let Some(after) = cursor.get("own") {
            return text(after).map(Cursor::Own);
        }
        if let Some(after) = cursor.get("ids") {
            return text(after).map(Cursor::Ids);
        }
        if let Some(segments) = cursor.get("scan") {
            let segment = |segment: &Value| match segment {
                Value::Bool(true) => Some(Segment::Ended),
                after => text(after).map(Segment::Behind),
            };
            let segments: Vec<Segment> = segments.as_array()?.iter().map(segment).collect::<Option<_>>()?;
            return (!segments.is_empty()).then_some(Cursor::Scan(segments));
        }
        let name = cursor.get("index")?.as_str()?.to_owned();
        if let Some(key) = cursor.get("key") {
            let key = key.as_object()?.iter();
            let key: Item = key
                .map(|(name, value)| Some((name.clone(), Attribute::Text(value.as_str()?.to_owned()))))
                .collect::<Option<_>>()?;
            return Some(Cursor::Index(name, (!key.is_empty()).then_some(key)));
        }
        let Some(at) = text(cursor.get("at")?)? else { return Some(Cursor::Ordered(name, None)) };
        let last = match cursor.get("last")? {
            Value::Null => None,
            last => {
                let key = |key: &Value| Some(key.as_array()?.first().cloned());
                let keys = last.get("keys")?.as_array()?.iter().map(key).collect::<Option<_>>()?;
                Some((keys, last.get("id")?.as_str()?.to_owned()))
            }
        };
        Some(Cursor::Ordered(name, Some(Position { at, last })))
    }
}
