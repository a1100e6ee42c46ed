//! Many items in a request: `BatchGetItem`, `BatchWriteItem` and what the service leaves of them undone, and
//! `TransactWriteItems` for items that are new.
//!
//! The bodies of these requests are written here, once for however many sendings, and the SDK signs and sends them. It would
//! take each item as a map, and another one for each sending: a sixth of all that a bulk load computes.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};

use aws_sdk_dynamodb::client::customize::CustomizableOperation;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use larder_model::{Error, ErrorKind, Result, Retry};
use serde_json::Value;
use tokio::time::Instant;

use super::client::{Backoff, CONFLICTS_MAX, Clients, Failed, WhenThrottled, send, send_with};
use super::values::{attribute_from, item_from, notation};
use super::writes::{self, ACTIONS_MAX};
use super::{Item, SIDE_BY_SIDE, Tables, errors};

/// What the service takes in one BatchGetItem.
const GETS_MAX: usize = 100;
/// What it takes in one BatchWriteItem.
const PUTS_MAX: usize = 25;
/// What all items of a transaction may have in bytes. Their notation has no fewer.
const TRANSACTION_BYTES_MAX: usize = 4_000_000;

type RawItem = HashMap<String, AttributeValue>;

impl Tables {
    /// One answer a key, in order. A key may come twice.
    pub(super) async fn batch_get(
        &self,
        clients: &Clients,
        table: &str,
        keys: Vec<Item>,
        consistent: bool,
    ) -> Result<Vec<Option<Item>>> {
        let deadline = self.deadline();
        let Some(names) = keys.first().map(|key| key.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()) else {
            return Ok(Vec::new());
        };
        let asked = keys.into_iter().map(notation).collect::<Result<Vec<_>>>()?;
        let distinct: Vec<&str> = asked.iter().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect();
        // A list: from an iterator over what is borrowed, the compiler makes no future that is `Send`.
        let chunks: Vec<_> =
            distinct.chunks(GETS_MAX).map(|keys| get_chunk(clients, table, keys, consistent, deadline)).collect();
        let found: Vec<Vec<RawItem>> = stream::iter(chunks).buffer_unordered(SIDE_BY_SIDE).try_collect().await?;
        let mut by_key = HashMap::new();
        for item in found.into_iter().flatten() {
            let key = names.iter().filter_map(|name| Some((name.clone(), attribute_from(item.get(name)?.clone()))));
            by_key.insert(notation(key.collect())?, item);
        }
        Ok(asked.iter().map(|key| by_key.get(key).cloned().map(item_from)).collect())
    }

    /// Puts without a condition, side by side: no item may come twice. After an error any of them may be stored.
    pub async fn put_batch(&self, collection: &str, items: Vec<Item>) -> Result<()> {
        let (table, deadline) = (self.table(collection)?, self.deadline());
        let clients = self.clients().await?;
        let items = items.into_iter().map(notation).collect::<Result<Vec<_>>>()?;
        let chunks: Vec<_> = items.chunks(PUTS_MAX).map(|chunk| put_chunk(clients, &table, chunk, deadline)).collect();
        let is_one = chunks.len() == 1;
        let put: Result<()> = stream::iter(chunks).buffer_unordered(SIDE_BY_SIDE).try_collect().await;
        put.map_err(|error| match error.retry {
            // Others went through, or may have.
            Retry::Safe if !is_one => Error { retry: Retry::UnknownOutcome, ..error },
            _ => error,
        })
    }

    /// Puts where nothing is stored, in transactions side by side: no item may come twice. One answer an item, whether it was
    /// put; where not, nothing of its transaction was. After an error any of them may be stored.
    pub async fn put_new(&self, collection: &str, key: &str, items: Vec<Item>) -> Result<Vec<bool>> {
        let (table, deadline) = (self.table(collection)?, self.deadline());
        let clients = self.clients().await?;
        let items = items.into_iter().map(notation).collect::<Result<Vec<_>>>()?;
        let chunks = chunks_to_transact(&items);
        let is_one = chunks.len() == 1;
        let sent: Vec<_> = chunks.iter().map(|chunk| put_new_chunk(clients, &table, key, chunk, deadline)).collect();
        let put: Result<Vec<bool>> = stream::iter(sent).buffered(SIDE_BY_SIDE).try_collect().await;
        let put = put.map_err(|error| match error.retry {
            // Others went through, or may have.
            Retry::Safe if !is_one => Error { retry: Retry::UnknownOutcome, ..error },
            _ => error,
        })?;
        Ok(put.into_iter().zip(chunks).flat_map(|(is_put, chunk)| std::iter::repeat_n(is_put, chunk.len())).collect())
    }
}

/// The items of up to [`GETS_MAX`] keys, which are all different, in no order.
async fn get_chunk(
    clients: &Clients,
    table: &str,
    keys: &[&str],
    consistent: bool,
    deadline: Instant,
) -> Result<Vec<RawItem>> {
    let body = |keys: String| {
        let table = Value::from(table);
        Bytes::from(format!(r#"{{"RequestItems":{{{table}:{{"ConsistentRead":{consistent},"Keys":[{keys}]}}}}}}"#))
    };
    let placeholder = KeysAndAttributes::builder().set_keys(Some(Vec::new())).build();
    let placeholder = placeholder.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    let request = clients.tables.batch_get_item().request_items(table, placeholder);
    let mut found = Vec::with_capacity(keys.len());
    let mut backoff = Backoff::until(deadline);
    let (mut count, mut left) = (keys.len(), body(keys.join(",")));
    loop {
        let answer = send(&clients.to_tables, deadline, || with_body(request.clone().customize(), &left).send())
            .await
            .map_err(|failed| failed.of_read())?;
        found.extend(answer.responses.and_then(|mut tables| tables.remove(table)).unwrap_or_default());
        let keys = match answer.unprocessed_keys.and_then(|mut tables| tables.remove(table)) {
            Some(keys) if !keys.keys.is_empty() => keys.keys,
            _ => return Ok(found),
        };
        clients.to_tables.pace.throttled();
        if keys.len() < count {
            backoff.reset();
        }
        if !backoff.pause().await {
            return Err(errors::throttled());
        }
        count = keys.len();
        left = body(keys.into_iter().map(|key| notation(item_from(key))).collect::<Result<Vec<_>>>()?.join(","));
    }
}

/// Puts up to [`PUTS_MAX`] items.
async fn put_chunk(clients: &Clients, table: &str, items: &[String], deadline: Instant) -> Result<()> {
    let request = clients.tables.batch_write_item().request_items(table, Vec::new());
    let mut backoff = Backoff::until(deadline);
    let all = items.len();
    let (mut count, mut left) = (all, puts(table, items));
    loop {
        let answer = send(&clients.to_tables, deadline, || with_body(request.clone().customize(), &left).send())
            .await
            .map_err(|failed| {
                let is_doubtful = failed.is_doubtful || count < all;
                Failed { is_doubtful, ..failed }.of_write()
            })?;
        let items = match answer.unprocessed_items.and_then(|mut tables| tables.remove(table)) {
            Some(items) if !items.is_empty() => items,
            _ => return Ok(()),
        };
        clients.to_tables.pace.throttled();
        if items.len() < count {
            backoff.reset();
        }
        count = items.len();
        if !backoff.pause().await {
            let retry = if count < all { Retry::UnknownOutcome } else { Retry::Safe };
            return Err(Error { retry, ..errors::throttled() });
        }
        let unknown = || Error::new(ErrorKind::Internal, "DynamoDB leaves a write undone that is no put");
        let again = items.into_iter().map(|write| notation(item_from(write.put_request.ok_or_else(unknown)?.item)));
        // The others may be stored.
        let again = again.collect::<Result<Vec<_>>>();
        left = puts(table, &again.map_err(|error| Error { retry: Retry::UnknownOutcome, ..error })?);
    }
}

/// Puts up to [`ACTIONS_MAX`] items, all or none of them. Not where something is stored under one of their keys, where
/// others write to them again and again, or where the service throttles it.
async fn put_new_chunk(clients: &Clients, table: &str, key: &str, items: &[String], deadline: Instant) -> Result<bool> {
    let body = transaction(table, key, items);
    let request = clients.tables.transact_write_items().set_transact_items(Some(Vec::new()));
    let mut backoff = Backoff::until(deadline);
    let mut conflicts = 0;
    loop {
        let sent = send_with(&clients.to_tables, deadline, WhenThrottled::GiveUp, || {
            with_body(request.clone().customize(), &body).send()
        });
        let Err(failed) = sent.await else { return Ok(true) };
        let error = match failed.answer.as_deref() {
            // Sent again it has the same token, and would be answered as before, had it taken effect then. So it never did.
            Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) => {
                match writes::cancelled(cancelled.cancellation_reasons(), items.len()) {
                    Ok(_) => return Ok(false),
                    Err(error) => error,
                }
            }
            _ if failed.error.kind == ErrorKind::Throttled && !failed.is_doubtful => return Ok(false),
            _ => return Err(failed.of_write()),
        };
        match error.kind {
            _ if error.retry == Retry::Never => return Err(Error { write_index: None, ..error }),
            ErrorKind::VersionConflict => {
                conflicts += 1;
                if conflicts == CONFLICTS_MAX || !backoff.pause().await {
                    return Ok(false);
                }
            }
            ErrorKind::Throttled => {
                clients.to_tables.pace.throttled();
                return Ok(false);
            }
            _ => return Ok(false),
        }
    }
}

/// As few transactions as take all of these.
fn chunks_to_transact(items: &[String]) -> Vec<&[String]> {
    let (mut chunks, mut left) = (Vec::with_capacity(items.len() / ACTIONS_MAX + 1), items);
    while !left.is_empty() {
        let mut bytes = 0;
        let fits = |item: &&String| {
            bytes += item.len();
            bytes <= TRANSACTION_BYTES_MAX
        };
        // One that is too large by itself is the service's to refuse.
        let count = left.iter().take(ACTIONS_MAX).take_while(fits).count().max(1);
        let (chunk, others) = left.split_at(count);
        chunks.push(chunk);
        left = others;
    }
    chunks
}

fn transaction(table: &str, key: &str, items: &[String]) -> Bytes {
    let (table, key) = (Value::from(table), Value::from(key));
    let condition = format!(
        r##","TableName":{table},"ConditionExpression":"attribute_not_exists(#k)","ExpressionAttributeNames":{{"#k":{key}}}}}}}"##
    );
    let bytes: usize = items.iter().map(|item| item.len() + condition.len() + 20).sum();
    let mut body = String::with_capacity(bytes + 100);
    _ = write!(body, r#"{{"ClientRequestToken":"{}","TransactItems":["#, token());
    for (i, item) in items.iter().enumerate() {
        body.extend([if i > 0 { "," } else { "" }, r#"{"Put":{"Item":"#, item, &condition]);
    }
    body.push_str("]}");
    Bytes::from(body)
}

/// Another one each time.
fn token() -> String {
    // The keys of a `RandomState` are random.
    let random = || RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", random(), random())
}

fn puts(table: &str, items: &[String]) -> Bytes {
    let mut body = String::with_capacity(items.iter().map(|item| item.len() + 32).sum::<usize>() + 300);
    _ = write!(body, r#"{{"RequestItems":{{{}:["#, Value::from(table));
    for (i, item) in items.iter().enumerate() {
        body.extend([if i > 0 { "," } else { "" }, r#"{"PutRequest":{"Item":"#, item, "}}"]);
    }
    body.push_str("]}}");
    Bytes::from(body)
}

/// The same request with this body, which is what is signed and sent.
fn with_body<T, E, B>(request: CustomizableOperation<T, E, B>, body: &Bytes) -> CustomizableOperation<T, E, B> {
    let body = body.clone();
    request.mutate_request(move |request| {
        request.headers_mut().insert("content-length", body.len().to_string());
        *request.body_mut() = body.clone().into();
    })
}
