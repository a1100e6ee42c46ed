//! The generated bindings, and what joins them to plain Rust: conversions, the capabilities, and the exports.
//!
//! All of it exists on WebAssembly only. A plugin's import appears in its component only where the plugin uses it, so one
//! world with every capability serves all plugins written in Rust.

use std::{cell::RefCell, marker::PhantomData, thread::LocalKey};

use larder_model::{self as model, Error, ErrorKind, filter};

use crate::{
    Attribute, Capacity, Connections, Dialect, Dynamodb, Expression, FileStat, Files, IndexStatus, Item, ItemAction,
    ItemPage, ItemQuery, ItemScan, KeySchema, LockMode, Packed, Rows, Sql, SqlTransaction, SqlValue, Strategy,
    TableSpec, TableStatus, Written,
};

/// What `wit/` says, as Rust.
#[allow(unsafe_code, missing_docs, unreachable_pub, unused_qualifications, rustdoc::all, clippy::all)]
pub mod generated {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "larder:storage/strategy",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "larder_guest::bindings::generated",
    });
}

use generated::{
    exports::larder::storage::repository as wit,
    larder::storage::{dynamodb, files, sql, types},
};

type Result<T, E = Error> = std::result::Result<T, E>;

/// Makes a component of a crate: `larder_guest::export_strategy!(JsonStore);`, under `cfg(target_family = "wasm")`.
#[macro_export]
macro_rules! export_strategy {
    ($strategy:ty) => {
        // What the component model asks for is exported by symbol name, which Rust counts as unsafe.
        #[allow(unsafe_code)]
        const _: () = {
            ::std::thread_local! {
                static OPEN: ::std::cell::RefCell<::std::option::Option<$strategy>> =
                    const { ::std::cell::RefCell::new(::std::option::Option::None) };
            }
            struct Plugin;
            impl $crate::bindings::Plugin for Plugin {
                type Strategy = $strategy;
                fn open() -> &'static ::std::thread::LocalKey<::std::cell::RefCell<::std::option::Option<$strategy>>> {
                    &OPEN
                }
            }
            type Exports = $crate::bindings::Exports<Plugin>;
    $crate::bindings::generated::export!(Exports with_types_in $crate::bindings::generated);
        };
    };
}

/// What [`export_strategy!`] declares in the plugin's own crate, because a generic static cannot be declared here.
pub trait Plugin: 'static {
    /// What is exported.
    type Strategy: Strategy + 'static;
    /// The open store of this instance.
    fn open() -> &'static LocalKey<RefCell<Option<Self::Strategy>>>;
}

/// The exported functions over a [`Plugin`].
pub struct Exports<P>(PhantomData<P>);

/// The exported transaction. `None` once it ended.
pub struct ExportedTransaction<P: Plugin>(RefCell<Option<<P::Strategy as Strategy>::Transaction>>);

/// Runs `call` on the open store.
fn with_open<P: Plugin, T>(call: impl FnOnce(&mut P::Strategy) -> Result<T>) -> Result<T, types::Error> {
    P::open().with(|open| {
        let mut open =
            open.try_borrow_mut().map_err(|_| error_out(internal("one call at a time is made of an instance")))?;
        let store = open.as_mut().ok_or_else(|| error_out(internal("the store is not open")))?;
        call(store).map_err(error_out)
    })
}

fn internal(message: &str) -> Error {
    Error::new(ErrorKind::Internal, message)
}

impl<P: Plugin> wit::Guest for Exports<P> {
    type Transaction = ExportedTransaction<P>;

    fn describe() -> wit::Description {
        description_out(P::Strategy::describe())
    }

    fn open(config: String, collections: Vec<types::Collection>) -> Result<wit::Opened, types::Error> {
        P::open().with(|open| {
            let mut open = open.borrow_mut();
            if open.is_some() {
                return Err(error_out(internal("the store is open already")));
            }
            let collections = collections.into_iter().map(collection_in).collect();
            let (store, opened) = P::Strategy::open(&config, collections).map_err(error_out)?;
            *open = Some(store);
            Ok(wit::Opened {
                enforces_references: opened.enforces_references,
                enforces_fields: opened.enforces_fields,
                has_rules: opened.has_rules,
                needs_no_flush: opened.needs_no_flush,
                warnings: opened.warnings,
            })
        })
    }

    fn stored_collections() -> Result<Vec<String>, types::Error> {
        with_open::<P, _>(|store| store.stored_collections())
    }

    fn prepare(dry_run: bool, extend: bool) -> Result<Vec<String>, types::Error> {
        with_open::<P, _>(|store| store.prepare(dry_run, extend))
    }

    fn prepare_for_load() -> Result<(), types::Error> {
        with_open::<P, _>(|store| store.prepare_for_load())
    }

    fn check(thorough: bool) -> Result<String, types::Error> {
        with_open::<P, _>(|store| store.check(thorough))
    }

    fn flush() -> Result<(), types::Error> {
        with_open::<P, _>(|store| store.flush())
    }

    fn close() -> Result<(), types::Error> {
        with_open::<P, _>(|store| store.close())
    }

    fn restore_points() -> Result<Vec<wit::RestorePoint>, types::Error> {
        with_open::<P, _>(|store| {
            let point_out =
                |point: model::RestorePoint| wit::RestorePoint { name: point.name, description: point.description };
            Ok(store.restore_points()?.into_iter().map(point_out).collect())
        })
    }

    fn restore(name: String) -> Result<Vec<String>, types::Error> {
        with_open::<P, _>(|store| store.restore(&name))
    }

    fn get(collection: String, ids: Vec<String>) -> Result<Vec<Option<types::Entity>>, types::Error> {
        with_open::<P, _>(|store| Ok(found_out(store.get(&collection, &ids)?)))
    }

    fn find(collection: String, query: types::Query) -> Result<types::Page, types::Error> {
        with_open::<P, _>(|store| {
            let (query, conjuncts) = query_in(query)?;
            page_out(store.find(&collection, &query)?, &conjuncts)
        })
    }

    fn count(collection: String, filter: types::Filter) -> Result<Option<u64>, types::Error> {
        with_open::<P, _>(|store| store.count(&collection, filter_in(filter)?.as_ref()))
    }

    fn scan(
        collection: String,
        segment: u32,
        segments: u32,
        cursor: Option<Vec<u8>>,
        max_bytes: u32,
    ) -> Result<types::Batch, types::Error> {
        with_open::<P, _>(|store| {
            let batch = store.scan(&collection, segment, segments, cursor.as_deref(), max_bytes)?;
            Ok(types::Batch { entities: batch.entities.into_iter().map(entity_out).collect(), next: batch.next })
        })
    }

    fn apply(
        writes: Vec<types::Write>,
        atomic: bool,
        now: String,
    ) -> Result<Vec<Result<types::Outcome, types::Error>>, types::Error> {
        with_open::<P, _>(|store| {
            let writes = writes.into_iter().map(write_in).collect();
            let results = store.apply(writes, atomic, &now)?;
            Ok(results.into_iter().map(|result| result.map(outcome_out).map_err(error_out)).collect())
        })
    }

    fn load(
        collection: String,
        entities: Vec<types::Entity>,
        existing: wit::Existing,
    ) -> Result<wit::Loaded, types::Error> {
        let existing = match existing {
            wit::Existing::Fail => model::Existing::Fail,
            wit::Existing::Skip => model::Existing::Skip,
            wit::Existing::Overwrite => model::Existing::Overwrite,
        };
        with_open::<P, _>(|store| {
            let loaded = store.load(&collection, entities.into_iter().map(entity_in).collect(), existing)?;
            Ok(wit::Loaded {
                written: loaded.written,
                unchanged: loaded.unchanged,
                skipped: loaded.skipped,
                refused: loaded.refused.into_iter().map(|(position, error)| (position, error_out(error))).collect(),
            })
        })
    }

    fn validate(collection: String, entities: Vec<types::Entity>) -> Result<Vec<wit::Violation>, types::Error> {
        with_open::<P, _>(|store| {
            let violations = store.validate(&collection, entities.into_iter().map(entity_in).collect())?;
            Ok(violations.into_iter().map(|found| wit::Violation { entity: found.entity, rule: found.rule }).collect())
        })
    }

    fn begin(isolation: Option<types::Isolation>, read_only: bool) -> Result<wit::Transaction, types::Error> {
        with_open::<P, _>(|store| {
            let transaction = store.begin(isolation.map(isolation_in), read_only)?;
            Ok(wit::Transaction::new(ExportedTransaction::<P>(RefCell::new(Some(transaction)))))
        })
    }
}

impl<P: Plugin> ExportedTransaction<P> {
    fn call<T>(
        &self,
        call: impl FnOnce(&mut P::Strategy, &mut <P::Strategy as Strategy>::Transaction) -> Result<T>,
    ) -> Result<T, types::Error> {
        with_open::<P, T>(|store| match self.0.borrow_mut().as_mut() {
            Some(transaction) => call(store, transaction),
            None => Err(internal("the transaction has ended")),
        })
    }

    fn end(
        this: wit::Transaction,
        end: impl FnOnce(&mut P::Strategy, <P::Strategy as Strategy>::Transaction) -> Result<()>,
    ) -> Result<(), types::Error> {
        let transaction = this.into_inner::<Self>().0.into_inner();
        with_open::<P, ()>(|store| match transaction {
            Some(transaction) => end(store, transaction),
            None => Err(internal("the transaction has ended")),
        })
    }
}

impl<P: Plugin> wit::GuestTransaction for ExportedTransaction<P> {
    fn get(
        &self,
        collection: String,
        ids: Vec<String>,
        for_update: bool,
    ) -> Result<Vec<Option<types::Entity>>, types::Error> {
        self.call(|store, transaction| {
            Ok(found_out(store.transaction_get(transaction, &collection, &ids, for_update)?))
        })
    }

    fn find(&self, collection: String, query: types::Query) -> Result<types::Page, types::Error> {
        self.call(|store, transaction| {
            let (query, conjuncts) = query_in(query)?;
            page_out(store.transaction_find(transaction, &collection, &query)?, &conjuncts)
        })
    }

    fn apply(&self, writes: Vec<types::Write>, now: String) -> Result<Vec<types::Outcome>, types::Error> {
        self.call(|store, transaction| {
            let writes = writes.into_iter().map(write_in).collect();
            Ok(store.transaction_apply(transaction, writes, &now)?.into_iter().map(outcome_out).collect())
        })
    }

    fn commit(this: wit::Transaction) -> Result<(), types::Error> {
        Self::end(this, |store, transaction| store.commit(transaction))
    }

    fn rollback(this: wit::Transaction) -> Result<(), types::Error> {
        Self::end(this, |store, transaction| store.rollback(transaction))
    }
}

/// The directory that the host granted.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostFiles;

impl Files for HostFiles {
    type Lock = files::Lock;
    type Replacement = files::Replacement;

    fn try_acquire(&self, name: &str, mode: LockMode) -> Result<Option<Self::Lock>> {
        let mode = match mode {
            LockMode::Shared => files::LockMode::Shared,
            LockMode::Exclusive => files::LockMode::Exclusive,
        };
        files::try_acquire(name, mode).map_err(error_in)
    }

    fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        Ok(files::stat(path).map_err(error_in)?.map(stat_in))
    }

    fn read(&self, path: &str, offset: u64, max_bytes: u32) -> Result<Option<Vec<u8>>> {
        files::read(path, offset, max_bytes).map_err(error_in)
    }

    fn append(&self, path: &str, data: &[u8]) -> Result<FileStat> {
        files::append(path, data).map(stat_in).map_err(error_in)
    }

    fn sync(&self, path: &str) -> Result<()> {
        files::sync(path).map_err(error_in)
    }

    fn truncate(&self, path: &str, size: u64) -> Result<()> {
        files::truncate(path, size).map_err(error_in)
    }

    fn remove(&self, path: &str) -> Result<bool> {
        files::remove(path).map_err(error_in)
    }

    fn entries(&self, prefix: &str) -> Result<Vec<(String, FileStat)>> {
        let entries = files::entries(prefix).map_err(error_in)?;
        Ok(entries.into_iter().map(|(name, stat)| (name, stat_in(stat))).collect())
    }

    fn free_space(&self) -> Result<u64> {
        files::free_space().map_err(error_in)
    }

    fn replace(&self, path: &str) -> Result<Self::Replacement> {
        Ok(files::Replacement::new(path))
    }

    fn replacement_write(&self, replacement: &Self::Replacement, data: &[u8]) -> Result<()> {
        replacement.write(data).map_err(error_in)
    }

    fn replacement_commit(
        &self,
        replacement: Self::Replacement,
        keep_old_as: Option<&str>,
        durable: bool,
    ) -> Result<FileStat> {
        files::Replacement::commit(replacement, keep_old_as, durable).map(stat_in).map_err(error_in)
    }
}

/// The database that the host granted.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostSql;

impl Sql for HostSql {
    type Transaction = sql::Transaction;

    fn dialect(&self) -> Dialect {
        match sql::get_dialect() {
            sql::Dialect::Sqlite => Dialect::Sqlite,
            sql::Dialect::Postgres => Dialect::Postgres,
        }
    }

    fn size(&self) -> Result<Option<u64>> {
        sql::size().map_err(error_in)
    }

    fn free_space(&self) -> Result<Option<u64>> {
        sql::free_space().map_err(error_in)
    }

    fn connections(&self) -> Connections {
        let sql::Connections { open, idle, kept, max } = sql::get_connections();
        Connections { open, idle, kept, max }
    }

    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        sql::query(&statement_out(text, params), max_bytes).map(rows_in).map_err(error_in)
    }

    fn copy_out(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Packed> {
        let packed = sql::copy_out(&statement_out(text, params), max_bytes).map_err(error_in)?;
        Ok(Packed { cells: packed.cells, more: packed.more })
    }

    fn begin(&self, isolation: Option<model::Isolation>, read_only: bool) -> Result<Self::Transaction> {
        sql::begin(isolation.map(isolation_out), read_only).map_err(error_in)
    }

    fn begin_bulk(&self) -> Result<Self::Transaction> {
        sql::begin_bulk().map_err(error_in)
    }

    fn sync(&self) -> Result<()> {
        sql::sync().map_err(error_in)
    }
}

impl SqlTransaction for sql::Transaction {
    fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        sql::Transaction::query(self, &statement_out(text, params), max_bytes).map(rows_in).map_err(error_in)
    }

    fn attempt(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        sql::Transaction::attempt(self, &statement_out(text, params), max_bytes).map(rows_in).map_err(error_in)
    }

    fn copy_in(&self, table: &str, columns: &[&str], data: &[u8]) -> Result<u64> {
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        sql::Transaction::copy_in(self, table, &columns, data).map_err(error_in)
    }

    fn commit(self) -> Result<()> {
        sql::Transaction::commit(self).map_err(error_in)
    }

    fn rollback(self) -> Result<()> {
        sql::Transaction::rollback(self).map_err(error_in)
    }
}

fn stat_in(stat: files::FileStat) -> FileStat {
    FileStat { size: stat.size, generation: stat.generation }
}

fn statement_out(text: &str, params: Vec<SqlValue>) -> sql::Statement {
    let value_out = |value| match value {
        SqlValue::Null => sql::Value::Null,
        SqlValue::Boolean(value) => sql::Value::Boolean(value),
        SqlValue::Integer(value) => sql::Value::Integer(value),
        SqlValue::Number(value) => sql::Value::Number(value),
        SqlValue::Text(value) => sql::Value::Text(value),
        SqlValue::Blob(value) => sql::Value::Blob(value),
        SqlValue::Json(value) => sql::Value::Json(value),
        SqlValue::Decimal(value) => sql::Value::Decimal(value),
    };
    sql::Statement { text: text.to_string(), params: params.into_iter().map(value_out).collect() }
}

fn rows_in(rows: sql::Rows) -> Rows {
    let value_in = |value| match value {
        sql::Value::Null => SqlValue::Null,
        sql::Value::Boolean(value) => SqlValue::Boolean(value),
        sql::Value::Integer(value) => SqlValue::Integer(value),
        sql::Value::Number(value) => SqlValue::Number(value),
        sql::Value::Text(value) => SqlValue::Text(value),
        sql::Value::Blob(value) => SqlValue::Blob(value),
        sql::Value::Json(value) => SqlValue::Json(value),
        sql::Value::Decimal(value) => SqlValue::Decimal(value),
    };
    Rows {
        columns: rows.columns,
        cells: rows.cells.into_iter().map(value_in).collect(),
        affected: rows.affected,
        more: rows.more,
    }
}

/// The tables that the host granted.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostDynamodb;

impl Dynamodb for HostDynamodb {
    fn prepare_table(&self, spec: &TableSpec, dry_run: bool, extend: bool) -> Result<Vec<String>> {
        let index_out = |(name, key): &(String, KeySchema)| dynamodb::Index { name: name.clone(), key: key_out(key) };
        let spec = dynamodb::TableSpec {
            collection: spec.collection.clone(),
            key: key_out(&spec.key),
            indexes: spec.indexes.iter().map(index_out).collect(),
        };
        dynamodb::prepare_table(&spec, dry_run, extend).map_err(error_in)
    }

    fn describe_table(&self, collection: &str) -> Result<Option<TableStatus>> {
        let capacity_in = |capacity: dynamodb::Capacity| Capacity { read: capacity.read, write: capacity.write };
        let index_in = |index: dynamodb::IndexStatus| IndexStatus {
            name: index.name,
            status: index.status,
            key: key_in(index.key),
            holds_whole_items: index.holds_whole_items,
            capacity: index.capacity.map(capacity_in),
        };
        let status = dynamodb::describe_table(collection).map_err(error_in)?;
        Ok(status.map(|status| TableStatus {
            name: status.name,
            status: status.status,
            key: key_in(status.key),
            indexes: status.indexes.into_iter().map(index_in).collect(),
            capacity: status.capacity.map(capacity_in),
            items: status.items,
            bytes: status.bytes,
            scaling: status.scaling,
        }))
    }

    fn list_collections(&self) -> Result<Vec<String>> {
        dynamodb::list_collections().map_err(error_in)
    }

    fn get_items(&self, collection: &str, keys: Vec<Item>, consistent: bool) -> Result<Vec<Option<Item>>> {
        let keys: Vec<dynamodb::Item> = keys.into_iter().map(item_out).collect();
        let items = dynamodb::get_items(collection, &keys, consistent).map_err(error_in)?;
        Ok(items.into_iter().map(|item| item.map(item_in)).collect())
    }

    fn write_items(&self, actions: Vec<ItemAction>) -> Result<Vec<Result<Written>>> {
        let actions: Vec<dynamodb::Action> = actions.into_iter().map(action_out).collect();
        let answers = dynamodb::write_items(&actions).map_err(error_in)?;
        Ok(answers.into_iter().map(|answer| answer.map(written_in).map_err(error_in)).collect())
    }

    fn put_batch(&self, collection: &str, items: Vec<Item>) -> Result<()> {
        let items: Vec<dynamodb::Item> = items.into_iter().map(item_out).collect();
        dynamodb::put_batch(collection, &items).map_err(error_in)
    }

    fn put_new(&self, collection: &str, key: &str, items: Vec<Item>) -> Result<Vec<bool>> {
        let items: Vec<dynamodb::Item> = items.into_iter().map(item_out).collect();
        dynamodb::put_new(collection, key, &items).map_err(error_in)
    }

    fn transact(&self, actions: Vec<ItemAction>, token: &str) -> Result<Vec<Written>> {
        let actions: Vec<dynamodb::Action> = actions.into_iter().map(action_out).collect();
        let answers = dynamodb::transact(&actions, token).map_err(error_in)?;
        Ok(answers.into_iter().map(written_in).collect())
    }

    fn query(&self, query: ItemQuery) -> Result<ItemPage> {
        let query = dynamodb::ItemQuery {
            collection: query.collection,
            index: query.index,
            key: expression_out(query.key),
            filter: query.filter.map(expression_out),
            start: query.start.map(item_out),
            limit: query.limit,
            descending: query.descending,
            consistent: query.consistent,
            count_only: query.count_only,
        };
        dynamodb::query(&query).map(item_page_in).map_err(error_in)
    }

    fn scan(&self, scan: ItemScan, segments: Vec<(u32, Option<Item>)>) -> Result<Vec<ItemPage>> {
        let scan = dynamodb::ItemScan {
            collection: scan.collection,
            segments: scan.segments,
            filter: scan.filter.map(expression_out),
            limit: scan.limit,
            consistent: scan.consistent,
            count_only: scan.count_only,
        };
        let segment_out =
            |(number, start): (u32, Option<Item>)| dynamodb::Segment { number, start: start.map(item_out) };
        let segments: Vec<dynamodb::Segment> = segments.into_iter().map(segment_out).collect();
        let pages = dynamodb::scan(&scan, &segments).map_err(error_in)?;
        Ok(pages.into_iter().map(item_page_in).collect())
    }
}

fn key_out(key: &KeySchema) -> dynamodb::KeySchema {
    dynamodb::KeySchema { hash: key.hash.clone(), range: key.range.clone() }
}

fn key_in(key: dynamodb::KeySchema) -> KeySchema {
    KeySchema { hash: key.hash, range: key.range }
}

fn item_out(item: Item) -> dynamodb::Item {
    let attribute_out = |attribute| match attribute {
        Attribute::Text(value) => dynamodb::Attribute::Text(value),
        Attribute::Number(value) => dynamodb::Attribute::Number(value),
        Attribute::Boolean(value) => dynamodb::Attribute::Boolean(value),
        Attribute::Null => dynamodb::Attribute::Null,
        Attribute::Binary(value) => dynamodb::Attribute::Binary(value),
        Attribute::Document(value) => dynamodb::Attribute::Document(value),
    };
    item.into_iter().map(|(name, attribute)| (name, attribute_out(attribute))).collect()
}

fn item_in(item: dynamodb::Item) -> Item {
    let attribute_in = |attribute| match attribute {
        dynamodb::Attribute::Text(value) => Attribute::Text(value),
        dynamodb::Attribute::Number(value) => Attribute::Number(value),
        dynamodb::Attribute::Boolean(value) => Attribute::Boolean(value),
        dynamodb::Attribute::Null => Attribute::Null,
        dynamodb::Attribute::Binary(value) => Attribute::Binary(value),
        dynamodb::Attribute::Document(value) => Attribute::Document(value),
    };
    item.into_iter().map(|(name, attribute)| (name, attribute_in(attribute))).collect()
}

fn expression_out(expression: Expression) -> dynamodb::Expression {
    dynamodb::Expression { text: expression.text, names: expression.names, values: item_out(expression.values) }
}

fn action_out(action: ItemAction) -> dynamodb::Action {
    match action {
        ItemAction::Put { collection, item, condition } => dynamodb::Action::Put(dynamodb::ItemPut {
            collection,
            item: item_out(item),
            condition: condition.map(expression_out),
        }),
        ItemAction::Delete { collection, key, condition } => dynamodb::Action::Delete(dynamodb::ItemDelete {
            collection,
            key: item_out(key),
            condition: condition.map(expression_out),
        }),
        ItemAction::Check { collection, key, condition } => dynamodb::Action::Check(dynamodb::ItemCheck {
            collection,
            key: item_out(key),
            condition: expression_out(condition),
        }),
    }
}

fn written_in(written: dynamodb::Written) -> Written {
    match written {
        dynamodb::Written::Done => Written::Done,
        dynamodb::Written::Refused(item) => Written::Refused(item.map(item_in)),
    }
}

fn item_page_in(page: dynamodb::ItemPage) -> ItemPage {
    ItemPage {
        items: page.items.into_iter().map(item_in).collect(),
        count: page.count,
        last_key: page.last_key.map(item_in),
        read_units: page.read_units,
    }
}

/// Pairs of kinds that are spelt alike on both sides; the compiler says where one is missing.
macro_rules! kinds {
    ($($kind:ident)*) => {
        fn kind_out(kind: ErrorKind) -> types::ErrorKind {
            match kind { $(ErrorKind::$kind => types::ErrorKind::$kind,)* }
        }
        fn kind_in(kind: types::ErrorKind) -> ErrorKind {
            match kind { $(types::ErrorKind::$kind => ErrorKind::$kind,)* }
        }
    };
}
kinds!(NotFound AlreadyExists VersionConflict Rejected InvalidArgument Unsupported Denied LimitExceeded Throttled Timeout
    Unavailable Corrupt Internal Busy);

fn error_out(error: Error) -> types::Error {
    types::Error {
        kind: kind_out(error.kind),
        retry: match error.retry {
            model::Retry::Never => types::Retry::Never,
            model::Retry::Safe => types::Retry::Safe,
            model::Retry::UnknownOutcome => types::Retry::UnknownOutcome,
        },
        message: error.message,
        write_index: error.write_index,
        current_version: error.current_version,
    }
}

fn error_in(error: types::Error) -> Error {
    Error {
        kind: kind_in(error.kind),
        retry: match error.retry {
            types::Retry::Never => model::Retry::Never,
            types::Retry::Safe => model::Retry::Safe,
            types::Retry::UnknownOutcome => model::Retry::UnknownOutcome,
        },
        message: error.message,
        write_index: error.write_index,
        current_version: error.current_version,
    }
}

fn isolation_in(isolation: types::Isolation) -> model::Isolation {
    match isolation {
        types::Isolation::ReadCommitted => model::Isolation::ReadCommitted,
        types::Isolation::RepeatableRead => model::Isolation::RepeatableRead,
        types::Isolation::Serializable => model::Isolation::Serializable,
    }
}

fn isolation_out(isolation: model::Isolation) -> types::Isolation {
    match isolation {
        model::Isolation::ReadCommitted => types::Isolation::ReadCommitted,
        model::Isolation::RepeatableRead => types::Isolation::RepeatableRead,
        model::Isolation::Serializable => types::Isolation::Serializable,
    }
}

fn entity_in(entity: types::Entity) -> model::Entity {
    model::Entity { id: entity.id, version: entity.version, body: entity.body }
}

fn entity_out(entity: model::Entity) -> types::Entity {
    types::Entity { id: entity.id, version: entity.version, body: entity.body }
}

fn found_out(found: Vec<Option<model::Entity>>) -> Vec<Option<types::Entity>> {
    found.into_iter().map(|entity| entity.map(entity_out)).collect()
}

fn write_in(write: types::Write) -> model::Write {
    match write {
        types::Write::Put(put) => model::Write::Put(model::Put {
            collection: put.collection,
            id: put.id,
            body: put.body,
            expect: expectation_in(put.expect),
        }),
        types::Write::Remove(removal) => model::Write::Remove(model::Removal {
            collection: removal.collection,
            id: removal.id,
            expect: expectation_in(removal.expect),
        }),
    }
}

fn expectation_in(expectation: types::Expectation) -> model::Expectation {
    match expectation {
        types::Expectation::Any => model::Expectation::Any,
        types::Expectation::Absent => model::Expectation::Absent,
        types::Expectation::Present => model::Expectation::Present,
        types::Expectation::Version(version) => model::Expectation::Version(version),
    }
}

fn outcome_out(outcome: model::Outcome) -> types::Outcome {
    types::Outcome { version: outcome.version, existed: outcome.existed }
}

fn filter_in(filter: types::Filter) -> Result<Option<filter::Filter>> {
    filter::from_arena(filter.into_iter().map(node_in).collect())
}

/// The query, and where each conjunct of its filter stands in the arena that it came in.
fn query_in(query: types::Query) -> Result<(model::Query, Vec<u32>)> {
    let nodes: Vec<_> = query.filter.into_iter().map(node_in).collect();
    let conjuncts = filter::conjunct_nodes(&nodes);
    let sort_key_in =
        |key: types::SortKey| model::SortKey { field: model::path::Path(key.field), descending: key.descending };
    let query = model::Query {
        filter: filter::from_arena(nodes)?,
        order_by: query.order_by.into_iter().map(sort_key_in).collect(),
        limit: query.limit,
        max_bytes: query.max_bytes,
        index: query.index,
        cursor: query.cursor,
    };
    Ok((query, conjuncts))
}

fn node_in(node: types::FilterNode) -> filter::Node {
    match node {
        types::FilterNode::Compare(condition) => filter::Node::Compare {
            field: condition.field,
            op: comparison_in(condition.op),
            value: scalar_in(condition.value),
        },
        types::FilterNode::AnyOf(membership) => filter::Node::AnyOf {
            field: membership.field,
            values: membership.values.into_iter().map(scalar_in).collect(),
        },
        types::FilterNode::Exists(field) => filter::Node::Exists(field),
        types::FilterNode::All(children) => filter::Node::All(children),
        types::FilterNode::Any(children) => filter::Node::Any(children),
        types::FilterNode::Negate(child) => filter::Node::Negate(child),
    }
}

fn comparison_in(comparison: types::Comparison) -> filter::Comparison {
    match comparison {
        types::Comparison::Eq => filter::Comparison::Eq,
        types::Comparison::Ne => filter::Comparison::Ne,
        types::Comparison::Lt => filter::Comparison::Lt,
        types::Comparison::Le => filter::Comparison::Le,
        types::Comparison::Gt => filter::Comparison::Gt,
        types::Comparison::Ge => filter::Comparison::Ge,
        types::Comparison::BeginsWith => filter::Comparison::BeginsWith,
        types::Comparison::Contains => filter::Comparison::Contains,
    }
}

fn scalar_in(scalar: types::Scalar) -> filter::Scalar {
    match scalar {
        types::Scalar::Null => filter::Scalar::Null,
        types::Scalar::Boolean(value) => filter::Scalar::Boolean(value),
        types::Scalar::Number(text) => filter::Scalar::Number(text),
        types::Scalar::Text(text) => filter::Scalar::Text(text),
    }
}

fn page_out(page: model::Page, conjuncts: &[u32]) -> Result<types::Page> {
    let node_of = |position: &u32| conjuncts.get(*position as usize).copied();
    let unapplied: Option<Vec<u32>> = page.unapplied.iter().map(node_of).collect();
    Ok(types::Page {
        entities: page.entities.into_iter().map(entity_out).collect(),
        next: page.next,
        unapplied: unapplied.ok_or_else(|| internal("the strategy left a part of the filter that there is not"))?,
        sorted: page.sorted,
        index_used: page.index_used,
        notes: page.notes,
        cost: page.cost,
    })
}

fn collection_in(collection: types::Collection) -> model::Collection {
    let field_in = |field: types::Field| model::Field {
        name: field.name,
        ty: match field.ty {
            types::FieldType::Text => model::FieldType::Text,
            types::FieldType::Integer => model::FieldType::Integer,
            types::FieldType::Number => model::FieldType::Number,
            types::FieldType::Boolean => model::FieldType::Boolean,
            types::FieldType::Timestamp => model::FieldType::Timestamp,
            types::FieldType::Json => model::FieldType::Json,
        },
        required: field.required,
        max_length: field.max_length,
    };
    let index_in = |index: types::Index| model::Index { name: index.name, fields: index.fields };
    let reference_in =
        |reference: types::Reference| model::Reference { field: reference.field, collection: reference.collection };
    model::Collection {
        name: collection.name,
        key: collection.key,
        stamps: model::Stamps {
            version: collection.stamps.version,
            created: collection.stamps.created,
            updated: collection.stamps.updated,
            adds_updated: collection.stamps.adds_updated,
        },
        fields: collection.fields.into_iter().map(field_in).collect(),
        indexes: collection.indexes.into_iter().map(index_in).collect(),
        references: collection.references.into_iter().map(reference_in).collect(),
    }
}

fn description_out(description: model::Description) -> wit::Description {
    let mut features = wit::Features::empty();
    features.set(wit::Features::ATOMIC_APPLY, description.features.atomic_apply);
    features.set(wit::Features::TRANSACTIONS, description.features.transactions);
    features.set(wit::Features::DEFERRED_SYNC, description.features.deferred_sync);
    features.set(wit::Features::SHARED_STATE, description.features.shared_state);
    features.set(wit::Features::NEEDS_PREPARE, description.features.needs_prepare);
    wit::Description {
        strategy: description.strategy,
        version: description.version,
        features,
        isolations: description.isolations.into_iter().map(isolation_out).collect(),
        max_atomic_writes: description.max_atomic_writes,
        max_entity_bytes: description.max_entity_bytes,
        config_schema: description.config_schema,
    }
}
