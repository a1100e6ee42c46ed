//! Questions about a collection: [`Select`] asks, [`Answer`] gives the entities as they come, [`QueryPage`] some of them
//! with a cursor to the rest.
//!
//! Also what the host adds to a strategy's answer, so that the same question has the same answer everywhere: it applies
//! what is left of the filter and sorts what is not sorted, in bounded memory.

pub(crate) mod cursor;

use larder_model::filter::Filter;
use larder_model::{Entity, ErrorKind, Page, Query, SortKey, order};
use serde_json::{Map, Value};

use self::cursor::{Place, Position};
use crate::error::{Error, Result};
use crate::repository::{PAGE_BYTES_MAX, Progress, Repository, Transaction};

/// Asked for at once where there is no smaller limit.
const PAGE_ENTITIES: u32 = 1000;

/// Which entities of a collection, in which order.
///
/// A filter and a sort key are read from text as the command line has them, or a filter from JSON, which is the safe
/// form for values that come from elsewhere: `PENDING` stays text there, whatever it looks like.
///
/// ```
/// use larder::model::filter::parse_json;
/// use larder::Select;
/// use serde_json::json;
///
/// # fn main() -> larder::Result<()> {
/// let newest_pending = Select {
///     filter: Some(parse_json(&json!({"status": "PENDING"}))?),
///     order_by: vec!["created_at:desc".parse()?],
///     limit: Some(50),
///     ..Select::default()
/// };
/// let large = Select { filter: Some("machine_count>=10".parse()?), ..Select::default() };
/// let either = parse_json(&json!({"any": [
///     {"field": "status", "op": "in", "value": ["FAILED", "CANCELLED"]},
///     {"not": {"field": "completed_at", "op": "exists"}},
/// ]}))?;
/// # assert_eq!((newest_pending.order_by[0].descending, large.limit, either.conjuncts().len()), (true, None, 1));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Select {
    /// None for all.
    pub filter: Option<Filter>,
    /// Most significant first, ties by id; empty for whatever order is cheapest.
    pub order_by: Vec<SortKey>,
    /// The most entities; none for all, or [`QUERY_PAGE_ENTITIES`] in a [`QueryPage`].
    pub limit: Option<u64>,
    /// An index that must be used, by the name that the collection declares it under.
    pub index: Option<String>,
}

/// Entities in a [`QueryPage`] of a query without a limit.
pub const QUERY_PAGE_ENTITIES: u64 = PAGE_ENTITIES as u64;

/// Part of a query's answer, with a way to the next part.
#[derive(Debug, Clone)]
pub struct QueryPage {
    /// At most as many as the query's limit. A page may be short, or empty, and still not the last.
    pub entities: Vec<Entity>,
    /// The cursor behind the last entity: printable, safe in a URL, at most a few thousand characters, and good for the same
    /// query of the same store only. None at the end.
    pub next: Option<String>,
}

/// The most sentences of a strategy that a plan keeps.
const NOTES_MAX: usize = 20;

/// How a query was answered, for `--explain`.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The index that served it, where the strategy used one.
    pub index_used: Option<String>,
    /// What the strategy says of its pages, each sentence once.
    pub notes: Vec<String>,
    /// What the strategy says that its pages cost so far, and in what unit.
    pub cost: Option<(f64, String)>,
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

/// A query under way: [`Answer::next`] until it gives none, or [`Answer::collect`].
pub struct Answer<'a> {
    source: Source<'a>,
    collection: String,
    select: Select,
    /// The strategy's, behind what was read so far.
    cursor: Option<Vec<u8>>,
    /// Of the strategy's pages.
    progress: Progress,
    /// Of the last entity of the strategy's page before, where it sorts.
    last: Option<Position>,
    /// Whether somebody will ask where the answer ended.
    is_paged: bool,
    /// Only what sorts behind it is wanted, and the host sorts.
    after: Option<Position>,
    /// Where the answer ended, if there may be more.
    place: Option<Place>,
    remaining: u64,
    ended: bool,
    plan: Plan,
}

/// What is left of a page of the strategy's.
struct Matches {
    rows: Vec<Row>,
    /// Whether they come in the order asked for.
    sorted: bool,
    /// The strategy's cursor that the page began at.
    began: Option<Vec<u8>>,
    /// Entities that crossed.
    scanned: u64,
}

struct Row {
    entity: Entity,
    fields: Map<String, Value>,
    /// In the strategy's page.
    index: usize,
}

impl Repository {
    /// Asks; the entities come with [`Answer::next`], page by page, or all at once with [`Answer::collect`].
    ///
    /// The filter and the order mean the same for every strategy; what a strategy cannot do itself is done here.
    ///
    /// ```
    /// # larder_tests::on_every_strategy(async |repository| {
    /// use larder::Select;
    ///
    /// let mut answer = repository.query("requests", Select {
    ///     filter: Some("status=PENDING".parse()?),
    ///     order_by: vec!["machine_count:desc".parse()?, "created_at".parse()?],
    ///     limit: Some(50),
    ///     ..Select::default()
    /// });
    /// while let Some(entities) = answer.next().await? {
    ///     for entity in entities {
    ///         println!("{}: {}", entity.id, entity.fields()?["machine_count"]);
    ///     }
    /// }
    /// # Ok(()) });
    /// ```
    pub fn query<'a>(&'a self, collection: &str, select: Select) -> Answer<'a> {
        Answer::new(Source::Repository(self), collection, select)
    }

    /// A page of a query's answer: the first one without a cursor, else the one behind the page that gave the cursor.
    ///
    /// Followed until there is no `next`, the pages hold every entity that was not written meanwhile exactly once. What is
    /// written meanwhile is found where it then stands. A cursor keeps nothing open; it is never out of date.
    ///
    /// ```
    /// # larder_tests::on_every_strategy(async |repository| {
    /// use larder::Select;
    ///
    /// let select = Select { order_by: vec!["created_at".parse()?], limit: Some(2), ..Select::default() };
    /// let mut cursor: Option<String> = None;
    /// loop {
    ///     let page = repository.query_page("requests", &select, cursor.as_deref()).await?;
    ///     for entity in &page.entities {
    ///         println!("{}", entity.id);
    ///     }
    ///     cursor = page.next;
    ///     if cursor.is_none() {
    ///         break;
    ///     }
    /// }
    /// # Ok(()) });
    /// ```
    ///
    /// # Errors
    /// `invalid-argument` where the limit is 0, where the cursor is damaged or of another query or store, and where
    /// the last entity of the page before is gone or sorts elsewhere and the values that it was sorted by are too large
    /// to be kept in a cursor.
    pub async fn query_page(&self, collection: &str, select: &Select, cursor: Option<&str>) -> Result<QueryPage> {
        if select.limit == Some(0) {
            return Err(Error::contract(ErrorKind::InvalidArgument, "a page holds at least 1 entity")
                .hint("leave the limit out, or give one of 1 or more"));
        }
        let select = Select { limit: Some(select.limit.unwrap_or(QUERY_PAGE_ENTITIES)), ..select.clone() };
        let mut answer = self.query_from(collection, select, cursor).await?;
        let mut entities = Vec::new();
        while let Some(more) = answer.next().await? {
            entities.extend(more);
        }
        Ok(QueryPage { entities, next: answer.cursor()? })
    }

    /// Asks for what stands behind the cursor, with [`Answer::cursor`] to come after the last of it.
    pub(crate) async fn query_from<'a>(
        &'a self,
        collection: &str,
        select: Select,
        cursor: Option<&str>,
    ) -> Result<Answer<'a>> {
        let mut answer = Answer { is_paged: true, ..self.query(collection, select) };
        let Some(cursor) = cursor else { return Ok(answer) };
        match cursor::decode(&answer.binding(), cursor)? {
            Place::Strategy(cursor) => answer.cursor = Some(cursor),
            Place::Behind(position) => answer.after = Some(position),
            Place::BehindStored { id, digest } => {
                let found = self.get_one(collection, &id).await?;
                let position = match found {
                    Some(entity) => Some(Position::of(&answer.select.order_by, &id, &entity.fields()?)),
                    None => None,
                };
                answer.after = Some(position.filter(|position| position.digest() == digest).ok_or_else(|| {
                    Error::contract(
                        ErrorKind::InvalidArgument,
                        format!("the cursor stands at {collection} `{id}`, which was changed or removed meanwhile"),
                    )
                    .hint("begin again without a cursor, or sort by a field of shorter values")
                })?);
            }
        }
        // Positions are compared here, so the strategy need not sort.
        answer.plan.sorted_by_host = answer.after.is_some();
        Ok(answer)
    }

    /// How many entities the filter holds for; without one, how many there are.
    ///
    /// # Errors
    /// `limit-exceeded` where neither the strategy nor an index can tell and the host would have to look at more entities
    /// than `plugins.max_scanned_entities`.
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

/// Whether a page is sorted as the strategy says it is, behind the last entity of the page before. Gives its own last one.
fn check_sorted(
    repository: &Repository,
    order_by: &[SortKey],
    last: Option<Position>,
    rows: &[Row],
) -> Result<Option<Position>> {
    let [first, ..] = rows else { return Ok(last) };
    let position = |row: &Row| Position::of(order_by, &row.entity.id, &row.fields);
    let is_behind = last.is_none_or(|last| last.compare(order_by, &position(first)).is_lt());
    let is_sorted = rows
        .is_sorted_by(|a, b| order::compare(order_by, (&a.entity.id, &a.fields), (&b.entity.id, &b.fields)).is_lt());
    if !(is_behind && is_sorted) {
        return Err(repository.misbehaved("says that a page is sorted which is not"));
    }
    Ok(rows.last().map(position))
}

impl<'a> Answer<'a> {
    fn new(source: Source<'a>, collection: &str, select: Select) -> Answer<'a> {
        Answer {
            source,
            collection: collection.into(),
            cursor: None,
            progress: Progress::default(),
            last: None,
            is_paged: false,
            after: None,
            place: None,
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
    ///
    /// # Errors
    /// `invalid-argument` for an unknown collection or index; `limit-exceeded` where the host has to filter or sort and
    /// would look at more entities than `plugins.max_scanned_entities`; `corrupt` for what is stored and no entity.
    pub async fn next(&mut self) -> Result<Option<Vec<Entity>>> {
        if self.ended {
            return Ok(None);
        }
        // Where the host filters or sorts, how many are wanted says nothing of how many have to be looked at.
        let limit = match self.plan.filtered_by_host || self.plan.sorted_by_host {
            true => PAGE_ENTITIES,
            false => u32::try_from(self.remaining).unwrap_or(u32::MAX).min(PAGE_ENTITIES),
        };
        let matches = self.page(limit).await?;
        let kept = if matches.sorted {
            self.keep(matches).await?
        } else {
            self.plan.sorted_by_host = true;
            self.sort_rest(matches.rows).await?
        };
        self.remaining -= kept.len() as u64;
        self.ended |= self.remaining == 0;
        Ok(Some(kept))
    }

    /// All of them at once, in memory.
    ///
    /// # Errors
    /// Those of [`Answer::next`].
    pub async fn collect(mut self) -> Result<Vec<Entity>> {
        let mut all = Vec::new();
        while let Some(entities) = self.next().await? {
            all.extend(entities);
        }
        Ok(all)
    }

    /// Where it ended, if there may be more behind its limit.
    pub(crate) fn cursor(&self) -> Result<Option<String>> {
        self.place.as_ref().map(|place| cursor::encode(&self.binding(), place)).transpose()
    }

    /// What a cursor of this answer is good for.
    fn binding(&self) -> cursor::Binding {
        let repository = self.source.repository();
        let Select { filter, order_by, index, limit: _ } = &self.select;
        let place = (&repository.plugin().name, repository.name(), &self.collection);
        cursor::binding(&(place, filter, order_by, index))
    }

    /// One page of the strategy's, with what it left of the filter applied.
    async fn page(&mut self, limit: u32) -> Result<Matches> {
        let query = Query {
            filter: self.select.filter.clone(),
            order_by: if self.after.is_some() { Vec::new() } else { self.select.order_by.clone() },
            limit,
            max_bytes: PAGE_BYTES_MAX,
            index: self.select.index.clone(),
            cursor: self.cursor.take(),
        };
        let page = self.source.find(&self.collection, &query).await?;
        let scanned = page.entities.len() as u64;
        self.ended = page.next.is_none();
        self.cursor = page.next;
        self.plan.index_used = page.index_used;
        if let Some((amount, unit)) = page.cost {
            let before = self.plan.cost.take().map_or(0.0, |(before, _)| before);
            self.plan.cost = Some((before + amount, unit));
        }
        for note in page.notes {
            if !self.plan.notes.contains(&note) && self.plan.notes.len() < NOTES_MAX {
                self.plan.notes.push(note);
            }
        }
        self.plan.scanned_entities += scanned;
        // Whatever part is left, the whole filter says the same of an entity that passed the other parts.
        let residual = self.select.filter.as_ref().filter(|_| !page.unapplied.is_empty());
        self.plan.filtered_by_host |= residual.is_some();
        let sorted = self.after.is_none() && (page.sorted || self.select.order_by.is_empty());
        let repository = self.source.repository();
        if !sorted && query.cursor.is_some() && !self.plan.sorted_by_host {
            return Err(repository.misbehaved("sorts the first page of a query and not the next"));
        }
        let definition = repository.collection(&self.collection)?;
        let bound = repository.settings().scanned_entities_max;
        if (residual.is_some() || !sorted) && self.plan.scanned_entities > bound {
            return Err(Error::contract(
                ErrorKind::LimitExceeded,
                format!("the query of `{}` looks at more than {bound} entities", self.collection),
            )
            .hint("narrow the filter, declare an index for its fields, or raise `plugins.max_scanned_entities`"));
        }
        self.progress.turn(repository, self.cursor.as_deref())?;
        let mut rows = Vec::with_capacity(page.entities.len());
        for (index, entity) in page.entities.into_iter().enumerate() {
            let fields = repository.checked(definition, &entity)?.into_map();
            rows.push(Row { entity, fields, index });
        }
        if sorted && !query.order_by.is_empty() {
            self.last = check_sorted(repository, &query.order_by, self.last.take(), &rows)?;
        }
        if let Some(filter) = &self.select.filter {
            let count = rows.len();
            rows.retain(|row| filter.matches(&row.fields));
            if residual.is_none() && rows.len() < count {
                return Err(repository.misbehaved("answers with an entity that the filter does not hold for"));
            }
        }
        Ok(Matches { rows, sorted, began: query.cursor, scanned })
    }

    /// As many of the matches as are wanted; with the last of them, where the answer ended.
    async fn keep(&mut self, mut matches: Matches) -> Result<Vec<Entity>> {
        let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        // The strategy's cursor stands behind its whole page. For one directly behind the last wanted match the page is asked
        // for again, to end there; and where data changed meanwhile and more match now, once more. Each time it is shorter.
        while self.is_paged && matches.rows.len() > wanted {
            let limit = matches.rows[wanted - 1].index as u32 + 1;
            self.plan.scanned_entities -= matches.scanned;
            self.cursor = matches.began;
            (self.progress, self.last) = (Progress::default(), None);
            matches = self.page(limit).await?;
        }
        matches.rows.truncate(wanted);
        if self.is_paged
            && matches.rows.len() == wanted
            && let (Some(cursor), Some(last)) = (self.cursor.take(), matches.rows.last())
        {
            // A strategy's cursor may hold what it sorts by, which may be large; a position can do without.
            self.place = Some(match cursor.len() > cursor::CURSOR_BYTES_MAX && !self.select.order_by.is_empty() {
                true => Place::Behind(Position::of(&self.select.order_by, &last.entity.id, &last.fields)),
                false => Place::Strategy(cursor),
            });
        }
        Ok(matches.rows.into_iter().map(|row| row.entity).collect())
    }

    /// Reads what is left of an unsorted answer and keeps as many of the first as are asked for.
    async fn sort_rest(&mut self, first: Vec<Row>) -> Result<Vec<Entity>> {
        let order_by = self.select.order_by.clone();
        let after = self.after.clone();
        let keep = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let mut is_cut = false;
        let mut sort = |rows: &mut Vec<(Position, Entity)>| {
            rows.sort_by(|(a, _), (b, _)| a.compare(&order_by, b));
            is_cut |= rows.len() > keep;
            rows.truncate(keep);
        };
        // Only what the order looks at is kept in memory beside the body.
        let mut best: Vec<(Position, Entity)> = Vec::new();
        let mut rows = first;
        loop {
            let positioned =
                rows.into_iter().map(|row| (Position::of(&order_by, &row.entity.id, &row.fields), row.entity));
            best.extend(
                positioned.filter(|(position, _)| {
                    after.as_ref().is_none_or(|after| position.compare(&order_by, after).is_gt())
                }),
            );
            if best.len() > keep.saturating_mul(2) {
                sort(&mut best);
            }
            if self.ended {
                break;
            }
            rows = self.page(PAGE_ENTITIES).await?.rows;
        }
        sort(&mut best);
        self.ended = true;
        if self.is_paged && is_cut {
            self.place = best.last().map(|(position, _)| Place::Behind(position.clone()));
        }
        Ok(best.into_iter().map(|(_, entity)| entity).collect())
    }
}
