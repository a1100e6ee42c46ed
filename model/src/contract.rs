//! The types of `wit/types.wit` and `wit/repository.wit` in plain Rust. Their meaning is specified there.

use std::fmt;

/// A stored entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    /// The name it is stored under.
    pub id: String,
    /// The body's version member, 0 where it has no usable one.
    pub version: u64,
    /// One JSON object in UTF-8.
    pub body: Vec<u8>,
}

impl Entity {
    /// The body's members, every digit of a number kept.
    pub fn fields(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        crate::json::parse_object(&self.body)
    }

    /// The body as a type of the caller's own; `corrupt` where it does not fit. A number becomes what the type can hold: a
    /// `serde_json::Value` keeps every digit, an `f64` does not.
    ///
    /// An `f64` below `#[serde(flatten)]`, or in an enum that is untagged or tagged inside, does not fit, because
    /// serde_json hands numbers with a fraction on as exact ones there: a `serde_json::Value` does.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::corrupt(format!("{} does not fit: {error}", crate::json::quoted(&self.id))))
    }
}

/// What must be true of the stored entity for a write to take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// Nothing.
    Any,
    /// Nothing is stored, otherwise `already-exists`.
    Absent,
    /// Something is stored, otherwise `not-found`.
    Present,
    /// This version is stored, otherwise `version-conflict`, or `not-found` where nothing is.
    Version(u64),
}

/// Replaces a whole entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// Where to.
    pub collection: String,
    /// The entity's id, equal to its key member.
    pub id: String,
    /// One JSON object in UTF-8.
    pub body: Vec<u8>,
    /// What must be true before.
    pub expect: Expectation,
}

/// Removes an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Where from.
    pub collection: String,
    /// The entity's id.
    pub id: String,
    /// What must be true before.
    pub expect: Expectation,
}

/// One change of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Write {
    Put(Put),
    Remove(Removal),
}

impl Write {
    /// The collection and the id that it changes.
    pub fn target(&self) -> (&str, &str) {
        match self {
            Write::Put(put) => (&put.collection, &put.id),
            Write::Remove(removal) => (&removal.collection, &removal.id),
        }
    }

    /// What must be true before.
    pub fn expect(&self) -> Expectation {
        match self {
            Write::Put(put) => put.expect,
            Write::Remove(removal) => removal.expect,
        }
    }
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The version that is stored now; the last one for a removal, 0 where nothing was there.
    pub version: u64,
    /// Whether an entity was there before.
    pub existed: bool,
}

/// One field to order by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortKey {
    /// The field.
    pub field: crate::path::Path,
    /// Largest first.
    pub descending: bool,
}

impl std::str::FromStr for SortKey {
    type Err = Error;

    /// Reads `a.b`, `a.b:asc` or `a.b:desc`; a name with a colon is quoted as one with a dot is.
    fn from_str(text: &str) -> Result<Self> {
        let (field, direction) = crate::path::Path::parse_prefix(text, |rest| rest.starts_with(':'))?;
        let descending = match direction {
            "" | ":asc" => false,
            ":desc" => true,
            _ => {
                return Err(Error::invalid(format!(
                    "{} ends in no direction: `:asc` and `:desc` are the two",
                    crate::json::quoted(text)
                )));
            }
        };
        Ok(SortKey { field, descending })
    }
}

/// A question about one collection.
#[derive(Debug, Clone)]
pub struct Query {
    /// Which entities; none for all.
    pub filter: Option<crate::filter::Filter>,
    /// In which order; empty for any.
    pub order_by: Vec<SortKey>,
    /// At most this many in a page.
    pub limit: u32,
    /// The page may end early at this many bytes of bodies.
    pub max_bytes: u32,
    /// An index that must be used.
    pub index: Option<String>,
    /// From a page of the same query; `limit` and `max_bytes` may have been others.
    pub cursor: Option<Vec<u8>>,
}

/// Part of a query's answer.
#[derive(Debug, Clone)]
pub struct Page {
    /// What matches what was applied.
    pub entities: Vec<Entity>,
    /// None at the end.
    pub next: Option<Vec<u8>>,
    /// What is still to be applied: positions in [`crate::filter::Filter::conjuncts`] of the query's filter.
    pub unapplied: Vec<u32>,
    /// Whether the entities come in the order asked for.
    pub sorted: bool,
    /// Which index served it.
    pub index_used: Option<String>,
    /// How it was read.
    pub notes: Vec<String>,
    /// What that cost, and in what unit.
    pub cost: Option<(f64, String)>,
}

/// Part of a scan.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In no promised order.
    pub entities: Vec<Entity>,
    /// None at the end.
    pub next: Option<Vec<u8>>,
}

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ErrorKind {
    NotFound,
    AlreadyExists,
    VersionConflict,
    Rejected,
    InvalidArgument,
    Unsupported,
    Denied,
    LimitExceeded,
    Throttled,
    Timeout,
    Unavailable,
    Corrupt,
    Internal,
    /// Between a plugin and the host only: a lock is held elsewhere, wait and call again.
    Busy,
}

impl ErrorKind {
    /// The kind's name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not-found",
            ErrorKind::AlreadyExists => "already-exists",
            ErrorKind::VersionConflict => "version-conflict",
            ErrorKind::Rejected => "rejected",
            ErrorKind::InvalidArgument => "invalid-argument",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Denied => "denied",
            ErrorKind::LimitExceeded => "limit-exceeded",
            ErrorKind::Throttled => "throttled",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Internal => "internal",
            ErrorKind::Busy => "busy",
        }
    }
}

/// Whether the same call may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It would fail again.
    Never,
    /// It had no effect and may succeed later.
    Safe,
    /// It may have taken effect.
    UnknownOutcome,
}

impl Retry {
    /// The advice's name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Retry::Never => "never",
            Retry::Safe => "safe",
            Retry::UnknownOutcome => "unknown-outcome",
        }
    }
}

/// An error of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What a caller can act on.
    pub kind: ErrorKind,
    /// Whether to send the call again.
    pub retry: Retry,
    /// A sentence for a person: lower case, no full stop, no secrets.
    pub message: String,
    /// The write of an atomic `apply` that failed.
    pub write_index: Option<u32>,
    /// The stored version, with `VersionConflict`.
    pub current_version: Option<u64>,
}

impl Error {
    /// An error of `kind` that is of no use to retry, except for the kinds that pass by themselves.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::Busy | ErrorKind::Throttled | ErrorKind::Unavailable => Retry::Safe,
            _ => Retry::Never,
        };
        Error { kind, retry, message: message.into(), write_index: None, current_version: None }
    }

    /// [`ErrorKind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::InvalidArgument, message)
    }

    /// [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Corrupt, message)
    }

    /// The same error, about the write at `index` of an `apply`.
    pub fn at_write(mut self, index: usize) -> Self {
        self.write_index = Some(index as u32);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// A result of the contract.
pub type Result<T> = std::result::Result<T, Error>;

/// How far transactions are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

/// What a field is expected to hold. A value of another type is kept all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FieldType {
    Text,
    Integer,
    Number,
    Boolean,
    Timestamp,
    Json,
}

/// A field that a collection declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The member's name, at the top level of the entity.
    pub name: String,
    /// What it is expected to hold.
    pub ty: FieldType,
    /// Must be there and not null, where the store is strict.
    pub required: bool,
    /// In characters, where the store is strict.
    pub max_length: Option<u32>,
}

/// An index that a collection declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its name.
    pub name: String,
    /// Member names at the top level, most significant first.
    pub fields: Vec<String>,
}

/// A field that holds the id of an entity of another collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The member's name.
    pub field: String,
    /// The collection it points into.
    pub collection: String,
}

/// Names of the members that a write stamps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamps {
    /// The version.
    pub version: String,
    /// The time of the first save.
    pub created: Option<String>,
    /// The time of the last write.
    pub updated: Option<String>,
    /// Whether an entity without the `updated` member is given one.
    pub adds_updated: bool,
}

/// A configured collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// Its name.
    pub name: String,
    /// The member that holds an entity's id.
    pub key: String,
    /// What writes stamp.
    pub stamps: Stamps,
    /// Declared fields.
    pub fields: Vec<Field>,
    /// Declared indexes.
    pub indexes: Vec<Index>,
    /// Declared references.
    pub references: Vec<Reference>,
}

/// What a strategy can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// `apply` can be all or nothing.
    pub atomic_apply: bool,
    /// `begin` works.
    pub transactions: bool,
    /// Durable only after `flush`.
    pub deferred_sync: bool,
    /// One instance serves the store.
    pub shared_state: bool,
    /// Until it was made, a collection is unavailable instead of empty.
    pub needs_prepare: bool,
}

/// What a plugin says of itself.
#[derive(Debug, Clone)]
pub struct Description {
    /// The strategy's name.
    pub strategy: String,
    /// Of the plugin, for people.
    pub version: String,
    /// What it can do.
    pub features: Features,
    /// What `begin` can be asked for.
    pub isolations: Vec<Isolation>,
    /// The most writes of an atomic `apply`; 0 for no bound.
    pub max_atomic_writes: u32,
    /// The largest body.
    pub max_entity_bytes: u64,
    /// JSON Schema of its section.
    pub config_schema: String,
}

/// What `open` says of the store.
#[derive(Debug, Clone, Default)]
pub struct Opened {
    /// A reference that points nowhere is `rejected`.
    pub enforces_references: bool,
    /// A required field that is missing, or a text that is too long, is `rejected`.
    pub enforces_fields: bool,
    /// There are rules that only `validate` knows.
    pub has_rules: bool,
    /// With the feature `deferred_sync`: a `flush` would do nothing for writes, only for loads.
    pub needs_no_flush: bool,
    /// Sentences that whoever opened it should read.
    pub warnings: Vec<String>,
}

/// A state of a store that can be made its content again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePoint {
    /// What `restore` takes.
    pub name: String,
    /// A sentence for a person: of what time it is, what it holds, what was damaged.
    pub description: String,
}

/// What `load` does with an entity that is stored already with other content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuses it with `already-exists`.
    Fail,
    /// Leaves it.
    Skip,
    /// Replaces it.
    Overwrite,
}

/// What `load` did.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Stored now.
    pub written: u64,
    /// Stored already with equal content.
    pub unchanged: u64,
    /// Stored already with other content, and left.
    pub skipped: u64,
    /// Position in the call, and why.
    pub refused: Vec<(u32, Error)>,
}

/// A rule of the store that an entity breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Position in the call.
    pub entity: u32,
    /// The rule, the same text for each entity that breaks it.
    pub rule: String,
}
