//! Queries. Every part of a filter and every order is answered here, so the host has nothing left to do.

use std::cell::Cell;

use larder_model::{Collection, Error, Page, Query, Result, json::quoted, order};
use serde_json::{Value, json};

use crate::{
    document::{Changes, Document, Found},
    store::{entity_of, parse_stored},
    text,
};

/// Where a page ended: the last entity's id and, in an ordered query, what it was ordered by.
struct Position {
    keys: Vec<Option<Value>>,
    id: String,
}

/// One page of the entities that match.
pub(crate) fn find(
    collection: &Collection,
    document: &Document,
    changes: &Changes,
    room: &Cell<usize>,
    query: &Query,
) -> Result<Page> {
    if query.limit == 0 {
        return Err(Error::invalid("the limit of a query is at least 1"));
    }
    if let Some(name) = &query.index
        && !collection.indexes.iter().any(|index| index.name == *name)
    {
        return Err(Error::invalid(format!("{} has no index {}", collection.name, quoted(name))));
    }
    let shape = shape(query);
    let after = query.cursor.as_deref().map(|cursor| decode(cursor, shape)).transpose()?;
    let is_ordered = !query.order_by.is_empty();
    // Without an order entities come by id, so what came before the cursor need not be looked at.
    let after_id = after.as_ref().filter(|_| !is_ordered).map(|after| after.id.as_str());
    let mut page =
        Page { entities: Vec::new(), next: None, unapplied: Vec::new(), sorted: true, index_used: query.index.clone() };
    let mut bytes = 0;
    let is_full = |entities: usize, bytes: usize| {
        entities > 0 && (entities >= query.limit as usize || bytes >= query.max_bytes as usize)
    };
    let mut matching: Vec<(Vec<Option<Value>>, &str, Found<'_>)> = Vec::new();
    for (id, found) in document.iter(changes, &collection.name, after_id) {
        if !is_ordered && is_full(page.entities.len(), bytes) {
            let last = page.entities.last().map(|last| last.id.clone()).unwrap_or_default();
            page.next = Some(encode(&Position { keys: Vec::new(), id: last }, shape));
            return Ok(page);
        }
        let members = parse_stored(collection, id, &found, room)?;
        if query.filter.as_ref().is_some_and(|filter| !filter.matches(&members)) {
            continue;
        }
        if !is_ordered {
            let entity = entity_of(collection, id, found.body);
            bytes += entity.body.len();
            page.entities.push(entity);
            continue;
        }
        let keys: Vec<_> = query.order_by.iter().map(|key| key.field.get(&members).cloned()).collect();
        let is_behind =
            |after: &Position| order::compare_keys(&query.order_by, (id, &keys), (&after.id, &after.keys)).is_gt();
        if after.as_ref().is_none_or(is_behind) {
            matching.push((keys, id, found));
        }
    }
    let by_order =
        |a: &(Vec<_>, &str, _), b: &(Vec<_>, &str, _)| order::compare_keys(&query.order_by, (a.1, &a.0), (b.1, &b.0));
    let is_cut = matching.len() > query.limit as usize;
    if is_cut {
        matching.select_nth_unstable_by(query.limit as usize, by_order);
        matching.truncate(query.limit as usize);
    }
    matching.sort_unstable_by(by_order);
    let count = matching.len();
    for (i, (keys, id, found)) in matching.into_iter().enumerate() {
        let entity = entity_of(collection, id, found.body);
        bytes += entity.body.len();
        page.entities.push(entity);
        let is_last = i + 1 == count;
        if is_full(page.entities.len(), bytes) && (is_cut || !is_last) {
            page.next = Some(encode(&Position { keys, id: id.to_owned() }, shape));
            break;
        }
    }
    Ok(page)
}

/// What a cursor is bound to: the filter and the order.
fn shape(query: &Query) -> u64 {
    text::hash(format!("{:?} {:?}", query.filter, query.order_by).as_bytes())
}

/// An absent value is an empty array in a cursor, and one that is there an array of it.
fn encode(position: &Position, shape: u64) -> Vec<u8> {
    let keys: Vec<Vec<&Value>> = position.keys.iter().map(|key| key.iter().collect()).collect();
    json!([shape.to_string(), position.id, keys]).to_string().into_bytes()
}

fn decode(cursor: &[u8], shape: u64) -> Result<Position> {
    let (of, id, keys): (String, String, Vec<Vec<Value>>) =
        serde_json::from_slice(cursor).map_err(|_| Error::invalid("the cursor is not one of this store"))?;
    if of != shape.to_string() {
        return Err(Error::invalid("the cursor is of another query"));
    }
    Ok(Position { keys: keys.into_iter().map(|key| key.into_iter().next()).collect(), id })
}
