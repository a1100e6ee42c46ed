//! The capability `dynamodb`: the tables of one store, named by the host. `wit/dynamodb.wit` specifies it.
//!
//! A plugin names collections, which become tables here, so that no other table can be reached. Each request is sent again
//! while the service throttles it, until the plugin's call has no time left ([`client`]), and fewer are under way meanwhile
//! ([`pace`]); what a failure means is said in
//! one place ([`errors`]). Besides reads, which are here: [`writes`], [`bulk`], [`tables`] with their [`scaling`], and
//! [`values`].

mod bulk;
mod client;
mod errors;
mod pace;
mod scaling;
mod tables;
#[cfg(test)]
mod tests;
mod values;
mod writes;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, ReturnConsumedCapacity, Select};
use futures_util::{StreamExt, TryStreamExt, stream};
use larder_model::{Error, ErrorKind, Result};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::config::DynamodbGrant;
use client::{Clients, send};

/// Requests of one call that are under way at a time.
const SIDE_BY_SIDE: usize = 8;

/// A value of an item.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Text(String),
    /// Decimal text.
    Number(String),
    Boolean(bool),
    Null,
    Binary(Vec<u8>),
    /// A list, a map or a set, as JSON in the service's notation.
    Document(String),
}

/// Attributes by name; no name comes twice.
pub type Item = Vec<(String, Attribute)>;

/// An expression with what its placeholders stand for.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Expression {
    pub text: String,
    /// With `#` before them.
    pub names: Vec<(String, String)>,
    /// With `:` before them.
    pub values: Item,
}

/// The attributes of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct KeySchema {
    pub hash: String,
    pub range: Option<String>,
}

/// A table as it should be: its collection, its key, and its indexes by name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TableSpec {
    pub collection: String,
    pub key: KeySchema,
    pub indexes: Vec<(String, KeySchema)>,
}

/// Units a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Capacity {
    pub read: u64,
    pub write: u64,
}

/// An index as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct IndexStatus {
    pub name: String,
    /// The service's word.
    pub status: String,
    pub key: KeySchema,
    pub holds_whole_items: bool,
    /// None where it is paid by request.
    pub capacity: Option<Capacity>,
}

/// A table as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TableStatus {
    pub name: String,
    /// The service's word.
    pub status: String,
    pub key: KeySchema,
    pub indexes: Vec<IndexStatus>,
    /// None where it is paid by request.
    pub capacity: Option<Capacity>,
    pub items: u64,
    pub bytes: u64,
    /// Sentences.
    pub scaling: Vec<String>,
}

/// What is to be done with one item.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Action {
    Put { collection: String, item: Item, condition: Option<Expression> },
    Delete { collection: String, key: Item, condition: Option<Expression> },
    Check { collection: String, key: Item, condition: Expression },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Written {
    /// It took effect.
    Done,
    /// The condition did not hold of this item, or of none.
    Refused(Option<Item>),
}

/// What a query looks for.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ItemQuery {
    pub collection: String,
    pub index: Option<String>,
    pub key: Expression,
    pub filter: Option<Expression>,
    pub start: Option<Item>,
    pub limit: u32,
    pub descending: bool,
    pub consistent: bool,
    pub count_only: bool,
}

/// What a scan looks for.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ItemScan {
    pub collection: String,
    pub segments: u32,
    pub filter: Option<Expression>,
    pub limit: u32,
    pub consistent: bool,
    pub count_only: bool,
}

/// Part of what a query or a scan found.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct ItemPage {
    pub items: Vec<Item>,
    pub count: u32,
    pub last_key: Option<Item>,
    pub read_units: f64,
}

/// The tables of one store. Clones share its connections.
#[derive(Clone)]
pub struct Tables {
    shared: Arc<Shared>,
    /// When the plugin's call has no time left, none outside of a call.
    deadline: Option<Instant>,
}

struct Shared {
    grant: DynamodbGrant,
    collections: BTreeSet<String>,
    /// For one call of the plugin's.
    timeout: Duration,
    clients: OnceCell<Clients>,
}

impl Tables {
    /// Connects to nothing before it is used.
    pub(crate) fn new(grant: DynamodbGrant, collections: BTreeSet<String>, timeout: Duration) -> Tables {
        let shared = Shared { grant, collections, timeout, clients: OnceCell::new() };
        Tables { shared: Arc::new(shared), deadline: None }
    }

    /// From here on the time of one call runs, whatever number of requests it makes.
    pub(crate) fn begin_call(&mut self) {
        self.deadline = Some(Instant::now() + self.shared.timeout);
    }

    fn deadline(&self) -> Instant {
        self.deadline.unwrap_or_else(|| Instant::now() + self.shared.timeout)
    }

    async fn clients(&self) -> Result<&Clients> {
        self.shared.clients.get_or_try_init(|| client::connect(&self.shared.grant, self.shared.timeout)).await
    }

    /// The table of a collection, if the store has that one.
    fn table(&self, collection: &str) -> Result<String> {
        match self.shared.collections.contains(collection) {
            true => Ok(format!("{}_{collection}", self.shared.grant.table_prefix)),
            false => Err(Error::new(
                ErrorKind::Denied,
                format!("the store has no collection {}", larder_model::json::quoted(collection)),
            )),
        }
    }

    /// One answer a key, in order. A key may come twice.
    pub async fn get_items(&self, collection: &str, keys: Vec<Item>, consistent: bool) -> Result<Vec<Option<Item>>> {
        let (table, deadline) = (self.table(collection)?, self.deadline());
        let clients = self.clients().await?;
        if keys.len() != 1 {
            return self.batch_get(clients, &table, keys, consistent).await;
        }
        let key = keys.into_iter().next().map(values::item_into).transpose()?;
        let request = clients.tables.get_item().table_name(&table).consistent_read(consistent).set_key(key);
        let found =
            send(&clients.to_tables, deadline, || request.clone().send()).await.map_err(|failed| failed.of_read())?;
        Ok(vec![found.item.map(values::item_from)])
    }

    /// One page of a query.
    pub async fn query(&self, query: ItemQuery) -> Result<ItemPage> {
        if query.consistent && query.index.is_some() {
            return Err(Error::invalid("an index cannot be read consistently"));
        }
        let (table, deadline) = (self.table(&query.collection)?, self.deadline());
        let key_text = query.key.text.clone();
        let filter_text = query.filter.as_ref().map(|filter| filter.text.clone());
        let (names, placed) = values::placeholders([Some(query.key), query.filter])?;
        let clients = self.clients().await?;
        let request = clients.tables.query();
        let request = request
            .table_name(table)
            .set_index_name(query.index)
            .key_condition_expression(key_text)
            .set_filter_expression(filter_text)
            .set_expression_attribute_names(names)
            .set_expression_attribute_values(placed)
            .set_exclusive_start_key(query.start.map(values::item_into).transpose()?)
            .limit(page_limit(query.limit))
            .scan_index_forward(!query.descending)
            .consistent_read(query.consistent)
            .set_select(query.count_only.then_some(Select::Count))
            .return_consumed_capacity(ReturnConsumedCapacity::Total);
        let page =
            send(&clients.to_tables, deadline, || request.clone().send()).await.map_err(|failed| failed.of_read())?;
        let units = page.consumed_capacity.and_then(|it| it.capacity_units);
        Ok(page_of(page.items, page.count, page.last_evaluated_key, units))
    }

    /// One page of each of these segments, each with the key behind which it begins.
    pub async fn scan(&self, scan: ItemScan, segments: Vec<(u32, Option<Item>)>) -> Result<Vec<ItemPage>> {
        let (table, deadline) = (self.table(&scan.collection)?, self.deadline());
        let filter_text = scan.filter.as_ref().map(|filter| filter.text.clone());
        let (names, placed) = values::placeholders([scan.filter])?;
        let clients = self.clients().await?;
        let request = clients.tables.scan();
        let request = request
            .table_name(table)
            .set_filter_expression(filter_text)
            .set_expression_attribute_names(names)
            .set_expression_attribute_values(placed)
            .limit(page_limit(scan.limit))
            .consistent_read(scan.consistent)
            .set_select(scan.count_only.then_some(Select::Count))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .total_segments(i32::try_from(scan.segments).unwrap_or(i32::MAX));
        let pages = segments.into_iter().map(|(number, start)| {
            let request = request.clone().segment(i32::try_from(number).unwrap_or(i32::MAX));
            async move {
                let request = request.set_exclusive_start_key(start.map(values::item_into).transpose()?);
                let page = send(&clients.to_tables, deadline, || request.clone().send())
                    .await
                    .map_err(|failed| failed.of_read())?;
                let units = page.consumed_capacity.and_then(|it| it.capacity_units);
                Ok(page_of(page.items, page.count, page.last_evaluated_key, units))
            }
        });
        stream::iter(pages).buffered(SIDE_BY_SIDE).try_collect().await
    }
}

/// The service takes no 0, and a plugin's bound may be larger than any page.
fn page_limit(limit: u32) -> i32 {
    i32::try_from(limit).unwrap_or(i32::MAX).max(1)
}

fn page_of(
    items: Option<Vec<HashMap<String, AttributeValue>>>,
    count: i32,
    last_key: Option<HashMap<String, AttributeValue>>,
    read_units: Option<f64>,
) -> ItemPage {
    ItemPage {
        items: items.unwrap_or_default().into_iter().map(values::item_from).collect(),
        count: u32::try_from(count).unwrap_or_default(),
        // Some implementations say "no more" with an empty key.
        last_key: last_key.filter(|key| !key.is_empty()).map(values::item_from),
        read_units: read_units.unwrap_or_default(),
    }
}
