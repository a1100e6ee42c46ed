//! Queries. Every part of a filter and every order is answered here, so the host has nothing left to do.

use std::rc::Rc;

use larder_guest::Files;
use larder_model::{Collection, Error, Page, Query, Result, filter::Filter, json::quoted, order};
use serde_json::{Map, Value, json};

use crate::{
    changes::Changes,
    index,
    store::{Found, JsonStore, Keep, parse_stored},
    text,
};

/// Where a page ended: the last entity's id and, in an ordered query, what it was ordered by.
struct Position {
    keys: Vec<Option<Value>>,
    id: String,
}

/// One page of the entities that match.
pub(crate) fn find<F: Files>(
    store: &JsonStore<F>,
    document: usize,
    collection: &Collection,
    changes: &Changes,
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
    let mut page = Page {
        entities: Vec::new(),
        next: None,
        unapplied: Vec::new(),
        sorted: true,
        index_used: query.index.clone(),
        notes: Vec::new(),
        cost: None,
    };
    let mut bytes = 0;
    let is_full = |entities: usize, bytes: usize| {
        entities > 0 && (entities >= query.limit as usize || bytes >= query.max_bytes as usize)
    };
    let mut matching_keys: Vec<(Vec<Option<Value>>, String)> = Vec::new();
    let used = matching(
        store,
        document,
        collection,
        changes,
        query.filter.as_ref(),
        query.index.as_deref(),
        after_id,
        |id, found, members| {
            if !is_ordered {
                if is_full(page.entities.len(), bytes) {
                    let last = page.entities.last().map(|last| last.id.clone()).unwrap_or_default();
                    page.next = Some(encode(&Position { keys: Vec::new(), id: last }, shape));
                    return Ok(false);
                }
                let entity = found.entity(collection, id);
                bytes += entity.body.len();
                page.entities.push(entity);
                return Ok(true);
            }
            let keys: Vec<_> = query.order_by.iter().map(|key| key.field.get(members).cloned()).collect();
            let is_behind =
                |after: &Position| order::compare_keys(&query.order_by, (id, &keys), (&after.id, &after.keys)).is_gt();
            if after.as_ref().is_none_or(is_behind) {
                matching_keys.push((keys, id.to_owned()));
            }
            // What cannot come into this page need not be kept.
            if matching_keys.len() >= 2 * query.limit as usize + 1000 {
                keep_first(&mut matching_keys, query);
            }
            Ok(true)
        },
    )?;
    page.index_used = query.index.clone().or(used);
    if !is_ordered {
        return Ok(page);
    }
    let is_cut = matching_keys.len() > query.limit as usize;
    keep_first(&mut matching_keys, query);
    matching_keys.sort_unstable_by(|a, b| order::compare_keys(&query.order_by, (&a.1, &a.0), (&b.1, &b.0)));
    matching_keys.truncate(query.limit as usize);
    let count = matching_keys.len();
    let mut chunk = Vec::new().into_iter();
    for i in 0..count {
        if chunk.len() == 0 {
            let ids: Vec<&str> = matching_keys[i..count.min(i + 100)].iter().map(|(_, id)| id.as_str()).collect();
            chunk = store.fetch(document, changes, collection, &ids, Keep::WhileThereIsRoom)?.into_iter();
        }
        let (keys, id) = &matching_keys[i];
        let Some(found) = chunk.next().flatten() else { continue };
        let entity = found.entity(collection, id);
        bytes += entity.body.len();
        page.entities.push(entity);
        let is_last = i + 1 == count;
        if is_full(page.entities.len(), bytes) && (is_cut || !is_last) {
            page.next = Some(encode(&Position { keys: keys.clone(), id: id.clone() }, shape));
            break;
        }
    }
    Ok(page)
}

/// Keeps one more than the page takes, so that a further page is known of.
fn keep_first(matching: &mut Vec<(Vec<Option<Value>>, String)>, query: &Query) {
    let kept = query.limit as usize + 1;
    if matching.len() > kept {
        let by_order = |a: &(Vec<_>, String), b: &(Vec<_>, String)| {
            order::compare_keys(&query.order_by, (&a.1, &a.0), (&b.1, &b.0))
        };
        matching.select_nth_unstable_by(kept - 1, by_order);
        matching.truncate(kept);
    }
}

/// Gives every entity behind `after` that the filter holds for to `visit`, by id, until that answers that it has enough.
/// Gives the index that was used.
#[allow(clippy::too_many_arguments)]
pub(crate) fn matching<F: Files>(
    store: &JsonStore<F>,
    document: usize,
    collection: &Collection,
    changes: &Changes,
    filter: Option<&Filter>,
    index: Option<&str>,
    after: Option<&str>,
    mut visit: impl FnMut(&str, &Found<'_>, &Rc<Map<String, Value>>) -> Result<bool>,
) -> Result<Option<String>> {
    let candidates = candidates(store, document, collection, changes, filter, index)?;
    let used = candidates.as_ref().map(|(name, _)| name.clone());
    let candidates = candidates.map(|(_, ids)| ids);
    let mut ids: Box<dyn Iterator<Item = (&str, usize)>> = match &candidates {
        Some(ids) => Box::new(
            ids.iter().map(|id| (&**id, 1 << 10)).skip_while(|(id, _)| after.is_some_and(|after| *id <= after)),
        ),
        None => Box::new(store.ids(document, changes, &collection.name, after)),
    };
    let chunk_bytes = store.chunk_bytes(document);
    let mut chunk = Vec::new();
    // The first chunks are small: a page may be full soon.
    let mut wanted = 16 << 10;
    loop {
        chunk.clear();
        let mut bytes = 0;
        while bytes < wanted {
            let Some((id, size)) = ids.next() else { break };
            chunk.push(id);
            bytes += size;
        }
        if chunk.is_empty() {
            return Ok(used);
        }
        wanted = (wanted * 4).min(chunk_bytes);
        let found = store.fetch(document, changes, collection, &chunk, Keep::WhileThereIsRoom)?;
        for (id, found) in chunk.iter().zip(found) {
            let Some(found) = found else { continue };
            let members = parse_stored(collection, id, &found)?;
            if filter.is_none_or(|filter| filter.matches(&members)) && !visit(id, &found, &members)? {
                return Ok(used);
            }
        }
    }
}

/// The ids that an index leaves to a filter, each once and in order, with the index's name. It is made when it is asked for
/// first, and lives as long as the document is not replaced by somebody else.
fn candidates<F: Files>(
    store: &JsonStore<F>,
    document: usize,
    collection: &Collection,
    changes: &Changes,
    filter: Option<&Filter>,
    named: Option<&str>,
) -> Result<Option<(String, Vec<Rc<str>>)>> {
    let Some(filter) = filter else { return Ok(None) };
    let usable = collection.indexes.iter().filter(|index| named.is_none_or(|name| index.name == name));
    let found = usable.into_iter().find_map(|index| {
        let member = index.fields.first()?;
        Some((index, member, index::values_of(filter, member)?))
    });
    let Some((index, member, values)) = found else { return Ok(None) };
    let Some(entities) = store.documents[document].entities(&collection.name) else { return Ok(None) };
    if !entities.is_indexed(member) {
        let nothing = Changes::default();
        let mut made = index::ByValue::new();
        let mut rest = store.ids(document, &nothing, &collection.name, None).peekable();
        while rest.peek().is_some() {
            let (mut ids, mut bytes) = (Vec::new(), 0);
            while bytes < store.chunk_bytes(document) {
                let Some((id, size)) = rest.next() else { break };
                ids.push(id);
                bytes += size;
            }
            let found = store.fetch(document, &nothing, collection, &ids, Keep::WhileThereIsRoom)?;
            for (id, found) in ids.iter().zip(found) {
                // What cannot be read is a fault of the query, index or not.
                let Some(found) = found else { continue };
                entities.note_value(&mut made, member, id, &*parse_stored(collection, id, &found)?);
            }
        }
        entities.add_index(member, made);
    }
    let mut ids = entities.holders(member, &values);
    let changed = changes.of(&collection.name, None).map(|(id, _)| id.clone());
    let before = ids.len();
    ids.extend(changed);
    if ids.len() > before {
        ids.sort_unstable();
        ids.dedup();
    }
    Ok(Some((index.name.clone(), ids)))
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
