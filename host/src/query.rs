//! What the host adds to a strategy's answer, so that the same question has the same answer everywhere: it applies what
//! is left of the filter and sorts what is not sorted, in bounded memory.

use larder_model::filter::Filter;
use larder_model::{Entity, ErrorKind, Page, Query, SortKey, order};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::repository::{PAGE_BYTES_MAX, Repository, Transaction};

/// Asked for at once where there is no smaller limit.
const PAGE_ENTITIES: u32 = 1000;

/// Which entities of a collection, in which order.
#[derive(Debug, Clone, Default)]
pub struct Select {
    /// None for all.
    pub filter: Option<Filter>,
    /// Empty for whatever order is cheapest.
    pub order_by: Vec<SortKey>,
    /// None for all.
    pub limit: Option<u64>,
    /// An index that must be used.
    pub index: Option<String>,
}

/// How a query was answered, for `--explain`.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The index that served it, where the strategy used one.
    pub index_used: Option<String>,
    /// Conditions that the strategy left to the host.
    pub filtered_by_host: bool,
    /// Whether the host sorted.
    pub sorted_by_host: bool,
    /// Entities that crossed from the strategy so far.
    pub scanned_entities: u64,
}

/// Who is asked.
enum Source<'a> {
    Repository(&'a Repository),
    Transaction(&'a mut Transaction),
}

impl Source<'_> {
    fn repository(&self) -> &Repository {
        match self {
            Source::Repository(repository) => repository,
            Source::Transaction(transaction) => transaction.repository(),
        }
    }

    async fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        match self {
            Source::Repository(repository) => repository.find(collection, query).await,
            Source::Transaction(transaction) => transaction.find(collection, query).await,
        }
    }
}

/// A query under way.
pub struct Answer<'a> {
    source: Source<'a>,
    collection: String,
    select: Select,
    cursor: Option<Vec<u8>>,
    remaining: u64,
    ended: bool,
    plan: Plan,
}

impl Repository {
    /// Asks; the entities come with [`Answer::next`].
    pub fn query<'a>(&'a self, collection: &str, select: Select) -> Answer<'a> {
        Answer::new(Source::Repository(self), collection, select)
    }

    /// How many entities the filter holds for.
    pub async fn count(&self, collection: &str, filter: Option<&Filter>) -> Result<u64> {
        if let Some(count) = self.count_exactly(collection, filter).await? {
            return Ok(count);
        }
        let mut answer = self.query(collection, Select { filter: filter.cloned(), ..Select::default() });
        let mut count = 0;
        while let Some(entities) = answer.next().await? {
            count += entities.len() as u64;
        }
        Ok(count)
    }
}

impl Transaction {
    /// Asks inside the transaction: its own writes are seen.
    pub fn query<'a>(&'a mut self, collection: &str, select: Select) -> Answer<'a> {
        Answer::new(Source::Transaction(self), collection, select)
    }
}

impl<'a> Answer<'a> {
    fn new(source: Source<'a>, collection: &str, select: Select) -> Answer<'a> {
        Answer {
            source,
            collection: collection.into(),
            cursor: None,
            remaining: select.limit.unwrap_or(u64::MAX),
            ended: select.limit == Some(0),
            select,
            plan: Plan::default(),
        }
    }

    /// How it was answered so far.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The next entities, none at the end. A page may be empty.
    pub async fn next(&mut self) -> Result<Option<Vec<Entity>>> {
        if self.ended {
            return Ok(None);
        }
        let (entities, sorted) = self.page().await?;
        let mut kept: Vec<Entity> = if sorted {
            entities.into_iter().map(|(entity, _)| entity).collect()
        } else {
            self.plan.sorted_by_host = true;
            self.sort_rest(entities).await?
        };
        kept.truncate(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        self.remaining -= kept.len() as u64;
        self.ended |= self.remaining == 0;
        Ok(Some(kept))
    }

    /// All of them at once.
    pub async fn collect(mut self) -> Result<Vec<Entity>> {
        let mut all = Vec::new();
        while let Some(entities) = self.next().await? {
            all.extend(entities);
        }
        Ok(all)
    }

    /// One page of the strategy's, with what it left of the filter applied, and whether it is in order.
    async fn page(&mut self) -> Result<(Vec<(Entity, Map<String, Value>)>, bool)> {
        let query = Query {
            filter: self.select.filter.clone(),
            order_by: self.select.order_by.clone(),
            // Where the host filters or sorts, how many are wanted says nothing of how many have to be looked at.
            limit: match self.plan.filtered_by_host || self.plan.sorted_by_host {
                true => PAGE_ENTITIES,
                false => u32::try_from(self.remaining).unwrap_or(u32::MAX).min(PAGE_ENTITIES),
            },
            max_bytes: PAGE_BYTES_MAX,
            index: self.select.index.clone(),
            cursor: self.cursor.take(),
        };
        let page = self.source.find(&self.collection, &query).await?;
        self.ended = page.next.is_none();
        self.cursor = page.next;
        self.plan.index_used = page.index_used;
        self.plan.scanned_entities += page.entities.len() as u64;
        // Whatever part is left, the whole filter says the same of an entity that passed the other parts.
        let residual = self.select.filter.as_ref().filter(|_| !page.unapplied.is_empty());
        self.plan.filtered_by_host |= residual.is_some();
        let sorted = page.sorted || self.select.order_by.is_empty();
        let repository = self.source.repository();
        let definition = repository.collection(&self.collection)?;
        let bound = repository.limits().scanned_entities_max;
        if (residual.is_some() || !sorted) && self.plan.scanned_entities > bound {
            return Err(Error::contract(
                ErrorKind::LimitExceeded,
                format!("the query of `{}` looks at more than {bound} entities", self.collection),
            )
            .hint("narrow the filter, declare an index for its fields, or raise `plugins.max_scanned_entities`"));
        }
        let mut kept = Vec::with_capacity(page.entities.len());
        for entity in page.entities {
            let (entity, fields) = repository.checked(definition, entity)?;
            if residual.is_none_or(|filter| filter.matches(&fields)) {
                kept.push((entity, fields));
            }
        }
        Ok((kept, sorted))
    }

    /// Reads what is left of an unsorted answer and keeps as many of the first as are asked for.
    async fn sort_rest(&mut self, first: Vec<(Entity, Map<String, Value>)>) -> Result<Vec<Entity>> {
        let order_by = self.select.order_by.clone();
        let keep = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let sort = |rows: &mut Vec<(Entity, Map<String, Value>)>| {
            rows.sort_by(|(a, a_keys), (b, b_keys)| order::compare(&order_by, (&a.id, a_keys), (&b.id, b_keys)));
            rows.truncate(keep);
        };
        let mut best: Vec<(Entity, Map<String, Value>)> = Vec::new();
        let mut page = first;
        loop {
            best.extend(page.into_iter().map(|(entity, fields)| (entity, self.sort_keys(fields))));
            if best.len() > keep.saturating_mul(2) {
                sort(&mut best);
            }
            if self.ended {
                break;
            }
            page = self.page().await?.0;
        }
        sort(&mut best);
        self.ended = true;
        Ok(best.into_iter().map(|(entity, _)| entity).collect())
    }

    /// Only what the order looks at is kept in memory beside the body.
    fn sort_keys(&self, mut fields: Map<String, Value>) -> Map<String, Value> {
        fields.retain(|name, _| self.select.order_by.iter().any(|key| key.field.0.first() == Some(name)));
        fields
    }
}
