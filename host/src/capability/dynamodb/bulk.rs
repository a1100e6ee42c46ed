//! Many items in a request: `BatchGetItem` and `BatchWriteItem`, and what the service leaves of them undone.
//!
//! The bodies of these requests are written here, once for however many sendings, and the SDK signs and sends them. It would
//! take each item as a map, and another one for each sending: a sixth of all that a bulk load computes.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

use aws_sdk_dynamodb::client::customize::CustomizableOperation;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use larder_model::{Error, ErrorKind, Result, Retry};
use serde_json::Value;
use tokio::time::Instant;

use super::client::{Backoff, Clients, Failed, send};
use super::values::{attribute_from, item_from, notation};
use super::{Item, SIDE_BY_SIDE, Tables, errors};

/// What the service takes in one BatchGetItem.
const GETS_MAX: usize = 100;
/// What it takes in one BatchWriteItem.
const PUTS_MAX: usize = 25;

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
