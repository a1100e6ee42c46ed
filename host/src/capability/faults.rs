//! Faults: what a store is lent, with one call of the plugin's to the host going wrong.
//!
//! Everything that a strategy does to the world crosses the contract, so whoever can fail the n-th call for each n can try
//! every moment at which a disk, a database or a service fails, or the host dies. The faulty capabilities are the ordinary
//! ones behind a wrapper, which is linked in their place only where faults are asked for: without them a call costs
//! nothing more.
//!
//! A fault keeps the promises of the interface that it stands in. A statement of a transaction that fails was undone, and
//! what reads or makes a handle has no answer that could be lost.

use std::sync::{Arc, Mutex, MutexGuard};

use larder_model::{Error as ContractError, ErrorKind, Retry};
use tokio::sync::Notify;
use wasmtime::Engine;
use wasmtime::component::{HasData, Linker, Resource};

use super::files::{Lock, Replacement};
use super::sql::Transaction;
use super::{Answer, wit_dynamodb, wit_files, wit_sql};
use crate::plugin::Capability;
use crate::plugin::bindings::{error_into, types};
use crate::plugin::instance::State;
use crate::text::one_line;

/// What is told of a call: enough to find it in the plugin.
const ABOUT_CHARS_MAX: usize = 120;

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It fails before anything happens, and may be tried again.
    Refused,
    /// The same, because there is too much to do.
    Throttled,
    /// It stores the first half of what it was given, and fails.
    Torn,
    /// It happens, and its answer is lost.
    AnswerLost,
    /// The host is killed before it happens.
    KilledBefore,
    /// The host is killed when it has happened.
    KilledAfter,
}

impl Fault {
    /// Every fault, in the order in which they are tried.
    pub const ALL: [Fault; 6] =
        [Fault::Refused, Fault::Throttled, Fault::Torn, Fault::AnswerLost, Fault::KilledBefore, Fault::KilledAfter];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Refused => "refused",
            Fault::Throttled => "throttled",
            Fault::Torn => "torn",
            Fault::AnswerLost => "answer-lost",
            Fault::KilledBefore => "killed-before",
            Fault::KilledAfter => "killed-after",
        }
    }

    /// Whether the host does not live on.
    pub fn kills(self) -> bool {
        matches!(self, Fault::KilledBefore | Fault::KilledAfter)
    }
}

/// What a call does to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing, or nothing that outlives a failure of the call.
    None,
    /// Something, as a whole.
    Whole,
    /// Something that can be there in part.
    Divisible,
}

/// One call of a plugin's to the host.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Its name in the contract, as `files.append`.
    pub(crate) function: &'static str,
    /// What it was about: a path, a statement, a collection. One line, bounded, safe to print.
    pub(crate) about: String,
    /// What it does.
    pub(crate) effect: Effect,
    /// The operation in which it was made.
    pub(crate) operation: usize,
}

impl Call {
    /// The faults that this call can meet.
    pub(crate) fn faults(&self) -> impl Iterator<Item = Fault> {
        let effect = self.effect;
        Fault::ALL.into_iter().filter(move |fault| match fault {
            Fault::Torn => effect == Effect::Divisible,
            // For one that does nothing, after it is before the next one.
            Fault::AnswerLost | Fault::KilledAfter => effect != Effect::None,
            Fault::Refused | Fault::Throttled | Fault::KilledBefore => true,
        })
    }
}

/// What is to go wrong, and the calls so far. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The call, from 0, and its fault.
    planned: Option<(usize, Fault)>,
    met: Mutex<Met>,
    death: Notify,
}

#[derive(Debug, Default)]
struct Met {
    calls: Vec<Call>,
    operation: usize,
    has_struck: bool,
    is_over: bool,
}

/// What becomes of a call.
enum Fate {
    Passes,
    Fails(types::Error),
    Tears(types::Error),
    LosesItsAnswer(types::Error),
    Dies,
}

impl Faults {
    /// A fault at a call, counted from 0.
    pub(crate) fn at(call: usize, fault: Fault) -> Faults {
        Faults(Arc::new(Inner { planned: Some((call, fault)), ..Inner::default() }))
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        self.0.met.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.met().calls.clone()
    }

    /// Which operation the next calls belong to.
    pub(crate) fn begin(&self, operation: usize) {
        self.met().operation = operation;
    }

    /// Nothing goes wrong any more, and no call counts.
    pub(crate) fn end(&self) {
        self.met().is_over = true;
    }

    /// Whether the call that it was for was made.
    pub(crate) fn have_struck(&self) -> bool {
        self.met().has_struck
    }

    /// Ends when the host is to be killed. The call that it is killed in does not go on.
    pub(crate) async fn death(&self) {
        self.0.death.notified().await;
    }

    /// Counts a call, and says what becomes of it.
    async fn meet(&self, function: &'static str, about: impl FnOnce() -> String, effect: Effect) -> Fate {
        let fault = {
            let mut met = self.met();
            if met.is_over {
                return Fate::Passes;
            }
            let number = met.calls.len();
            let about: String = one_line(&about().chars().take(ABOUT_CHARS_MAX).collect::<String>());
            let operation = met.operation;
            met.calls.push(Call { function, about, effect, operation });
            let fault = self.0.planned.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
            met.has_struck |= fault.is_some();
            fault
        };
        let failed = |kind, retry, what| {
            let message = format!("{function} failed, as it was to: {what}");
            error_into(ContractError { retry, ..ContractError::new(kind, message) })
        };
        let unknown = |what| failed(ErrorKind::Unavailable, Retry::UnknownOutcome, what);
        match fault {
            None => Fate::Passes,
            Some(Fault::Refused) => Fate::Fails(failed(ErrorKind::Unavailable, Retry::Safe, "nothing was done")),
            Some(Fault::Throttled) => Fate::Fails(failed(ErrorKind::Throttled, Retry::Safe, "too much to do")),
            Some(Fault::Torn) => Fate::Tears(unknown("only a part was done")),
            Some(Fault::AnswerLost) => Fate::LosesItsAnswer(unknown("no answer came")),
            Some(Fault::KilledBefore) => self.die().await,
            Some(Fault::KilledAfter) => Fate::Dies,
        }
    }

    async fn die<T>(&self) -> T {
        self.0.death.notify_one();
        std::future::pending().await
    }
}

/// The state of an instance, whose calls may fail.
pub(crate) struct Faulty<'a>(&'a mut State);

impl Faulty<'_> {
    fn faults(&self) -> Faults {
        self.0.faults.clone().unwrap_or_default()
    }
}

struct HasFaulty;

impl HasData for HasFaulty {
    type Data<'a> = Faulty<'a>;
}

/// The interfaces of these capabilities with faults, in place of those without.
pub(crate) fn link_interfaces(engine: &Engine, capabilities: &[Capability]) -> wasmtime::Result<Linker<State>> {
    // What goes over sockets and HTTP is no call of the contract.
    let others: Vec<Capability> = capabilities
        .iter()
        .copied()
        .filter(|capability| matches!(capability, Capability::Tcp | Capability::Http))
        .collect();
    let mut linker = super::link_interfaces(engine, &others)?;
    for capability in capabilities {
        match capability {
            Capability::Files => wit_files::add_to_linker::<State, HasFaulty>(&mut linker, |state| Faulty(state))?,
            Capability::Sql => wit_sql::add_to_linker::<State, HasFaulty>(&mut linker, |state| Faulty(state))?,
            Capability::Dynamodb => {
                wit_dynamodb::add_to_linker::<State, HasFaulty>(&mut linker, |state| Faulty(state))?
            }
            Capability::Tcp | Capability::Http => {}
        }
    }
    Ok(linker)
}

/// A call that may fail: what it is about, what it does, and how it is made; where it consumes a handle, how that is given
/// back without it; where it can be torn, how half of it is done.
macro_rules! call {
    ($self:ident, $function:literal, $about:expr, $effect:ident, $call:expr
        $(, unless made $given_back:expr)? $(, half $half:expr)?) => {{
        let faults = $self.faults();
        match faults.meet($function, || $about, Effect::$effect).await {
            Fate::Passes => $call.await,
            Fate::Fails(error) => {
                $($given_back.await?;)?
                Ok(Err(error))
            }
            Fate::Tears(error) => {
                $(let error = $half.await?.err().unwrap_or(error);)?
                Ok(Err(error))
            }
            Fate::LosesItsAnswer(error) => Ok(Err($call.await?.err().unwrap_or(error))),
            Fate::Dies => {
                let _ = $call.await?;
                faults.die().await
            }
        }
    }};
}

fn first_half<T>(mut whole: Vec<T>) -> Vec<T> {
    whole.truncate(whole.len() / 2);
    whole
}

impl types::Host for Faulty<'_> {}

impl wit_files::Host for Faulty<'_> {
    async fn try_acquire(&mut self, name: String, mode: wit_files::LockMode) -> Answer<Option<Resource<Lock>>> {
        call!(self, "files.try-acquire", name.clone(), None, self.0.try_acquire(name, mode))
    }

    async fn stat(&mut self, path: String) -> Answer<Option<wit_files::FileStat>> {
        call!(self, "files.stat", path.clone(), None, self.0.stat(path))
    }

    async fn read(&mut self, path: String, offset: u64, max_bytes: u32) -> Answer<Option<Vec<u8>>> {
        call!(self, "files.read", path.clone(), None, self.0.read(path, offset, max_bytes))
    }

    async fn append(&mut self, path: String, data: Vec<u8>) -> Answer<wit_files::FileStat> {
        let about = format!("{path}, {} bytes", data.len());
        call!(self, "files.append", about, Divisible, self.0.append(path, data),
            half self.0.append(path, first_half(data)))
    }

    async fn sync(&mut self, path: String) -> Answer<()> {
        call!(self, "files.sync", path.clone(), Whole, wit_files::Host::sync(self.0, path))
    }

    async fn truncate(&mut self, path: String, size: u64) -> Answer<()> {
        call!(self, "files.truncate", path.clone(), Whole, self.0.truncate(path, size))
    }

    async fn remove(&mut self, path: String) -> Answer<bool> {
        call!(self, "files.remove", path.clone(), Whole, self.0.remove(path))
    }

    async fn entries(&mut self, prefix: String) -> Answer<Vec<(String, wit_files::FileStat)>> {
        call!(self, "files.entries", prefix.clone(), None, self.0.entries(prefix))
    }

    async fn free_space(&mut self) -> Answer<u64> {
        call!(self, "files.free-space", String::new(), None, wit_files::Host::free_space(self.0))
    }
}

impl wit_files::HostLock for Faulty<'_> {
    async fn drop(&mut self, lock: Resource<Lock>) -> wasmtime::Result<()> {
        wit_files::HostLock::drop(self.0, lock).await
    }
}

impl wit_files::HostReplacement for Faulty<'_> {
    async fn new(&mut self, path: String) -> wasmtime::Result<Resource<Replacement>> {
        wit_files::HostReplacement::new(self.0, path).await
    }

    async fn write(&mut self, replacement: Resource<Replacement>, data: Vec<u8>) -> Answer<()> {
        // Used by the call and by its half, of which there is one.
        let this = || Resource::new_borrow(replacement.rep());
        let about = format!("{} bytes", data.len());
        call!(self, "files.replacement.write", about, Divisible, self.0.write(this(), data),
            half self.0.write(this(), first_half(data)))
    }

    async fn commit(
        &mut self,
        replacement: Resource<Replacement>,
        keep_old_as: Option<String>,
        durable: bool,
    ) -> Answer<wit_files::FileStat> {
        let about = keep_old_as.as_ref().map(|name| format!("the old one kept as {name}")).unwrap_or_default();
        call!(self, "files.replacement.commit", about, Whole,
            wit_files::HostReplacement::commit(self.0, replacement, keep_old_as, durable),
            unless made wit_files::HostReplacement::drop(self.0, replacement))
    }

    async fn drop(&mut self, replacement: Resource<Replacement>) -> wasmtime::Result<()> {
        wit_files::HostReplacement::drop(self.0, replacement).await
    }
}

/// A statement by itself that only reads does nothing that an answer could be lost of.
fn reads(statement: &str) -> bool {
    let first = statement.split_whitespace().next().unwrap_or_default();
    ["SELECT", "EXPLAIN", "VALUES"].iter().any(|word| first.eq_ignore_ascii_case(word))
}

impl wit_sql::Host for Faulty<'_> {
    async fn get_dialect(&mut self) -> wasmtime::Result<wit_sql::Dialect> {
        self.0.get_dialect().await
    }

    async fn size(&mut self) -> Answer<Option<u64>> {
        call!(self, "sql.size", String::new(), None, self.0.size())
    }

    async fn free_space(&mut self) -> Answer<Option<u64>> {
        call!(self, "sql.free-space", String::new(), None, wit_sql::Host::free_space(self.0))
    }

    async fn get_connections(&mut self) -> wasmtime::Result<wit_sql::Connections> {
        self.0.get_connections().await
    }

    async fn query(&mut self, statement: wit_sql::Statement, max_bytes: u32) -> Answer<wit_sql::Rows> {
        let about = statement.text.clone();
        if reads(&about) {
            call!(self, "sql.query", about, None, wit_sql::Host::query(self.0, statement, max_bytes))
        } else {
            call!(self, "sql.query", about, Whole, wit_sql::Host::query(self.0, statement, max_bytes))
        }
    }

    async fn copy_out(&mut self, statement: wit_sql::Statement, max_bytes: u32) -> Answer<wit_sql::Packed> {
        let about = statement.text.clone();
        call!(self, "sql.copy-out", about, None, self.0.copy_out(statement, max_bytes))
    }

    async fn begin(&mut self, isolation: Option<types::Isolation>, read_only: bool) -> Answer<Resource<Transaction>> {
        call!(self, "sql.begin", String::new(), None, self.0.begin(isolation, read_only))
    }

    async fn begin_bulk(&mut self) -> Answer<Resource<Transaction>> {
        call!(self, "sql.begin-bulk", String::new(), None, self.0.begin_bulk())
    }

    async fn sync(&mut self) -> Answer<()> {
        call!(self, "sql.sync", String::new(), Whole, wit_sql::Host::sync(self.0))
    }
}

impl wit_sql::HostTransaction for Faulty<'_> {
    async fn query(
        &mut self,
        transaction: Resource<Transaction>,
        statement: wit_sql::Statement,
        max_bytes: u32,
    ) -> Answer<wit_sql::Rows> {
        call!(
            self,
            "sql.transaction.query",
            statement.text.clone(),
            None,
            wit_sql::HostTransaction::query(self.0, transaction, statement, max_bytes)
        )
    }

    async fn attempt(
        &mut self,
        transaction: Resource<Transaction>,
        statement: wit_sql::Statement,
        max_bytes: u32,
    ) -> Answer<wit_sql::Rows> {
        call!(
            self,
            "sql.transaction.attempt",
            statement.text.clone(),
            None,
            self.0.attempt(transaction, statement, max_bytes)
        )
    }

    async fn copy_in(
        &mut self,
        transaction: Resource<Transaction>,
        table: String,
        columns: Vec<String>,
        data: Vec<u8>,
    ) -> Answer<u64> {
        let about = format!("{table}, {} bytes", data.len());
        call!(self, "sql.transaction.copy-in", about, None, self.0.copy_in(transaction, table, columns, data))
    }

    async fn commit(&mut self, transaction: Resource<Transaction>) -> Answer<()> {
        call!(self, "sql.transaction.commit", String::new(), Whole,
            wit_sql::HostTransaction::commit(self.0, transaction),
            unless made wit_sql::HostTransaction::drop(self.0, transaction))
    }

    async fn rollback(&mut self, transaction: Resource<Transaction>) -> Answer<()> {
        call!(self, "sql.transaction.rollback", String::new(), Whole, self.0.rollback(transaction),
            unless made wit_sql::HostTransaction::drop(self.0, transaction))
    }

    async fn drop(&mut self, transaction: Resource<Transaction>) -> wasmtime::Result<()> {
        wit_sql::HostTransaction::drop(self.0, transaction).await
    }
}

impl wit_dynamodb::Host for Faulty<'_> {
    async fn prepare_table(
        &mut self,
        spec: wit_dynamodb::TableSpec,
        dry_run: bool,
        extend: bool,
    ) -> Answer<Vec<String>> {
        call!(
            self,
            "dynamodb.prepare-table",
            spec.collection.clone(),
            Whole,
            self.0.prepare_table(spec, dry_run, extend)
        )
    }

    async fn describe_table(&mut self, collection: String) -> Answer<Option<wit_dynamodb::TableStatus>> {
        call!(self, "dynamodb.describe-table", collection.clone(), None, self.0.describe_table(collection))
    }

    async fn list_collections(&mut self) -> Answer<Vec<String>> {
        call!(self, "dynamodb.list-collections", String::new(), None, self.0.list_collections())
    }

    async fn get_items(
        &mut self,
        collection: String,
        keys: Vec<wit_dynamodb::Item>,
        consistent: bool,
    ) -> Answer<Vec<Option<wit_dynamodb::Item>>> {
        let about = format!("{collection}, {} keys", keys.len());
        call!(self, "dynamodb.get-items", about, None, self.0.get_items(collection, keys, consistent))
    }

    async fn write_items(
        &mut self,
        actions: Vec<wit_dynamodb::Action>,
    ) -> Answer<Vec<Result<wit_dynamodb::Written, types::Error>>> {
        let about = format!("{} actions", actions.len());
        call!(self, "dynamodb.write-items", about, Divisible, self.0.write_items(actions),
            half self.0.write_items(first_half(actions)))
    }

    async fn put_batch(&mut self, collection: String, items: Vec<wit_dynamodb::Item>) -> Answer<()> {
        let about = format!("{collection}, {} items", items.len());
        call!(self, "dynamodb.put-batch", about, Divisible, self.0.put_batch(collection, items),
            half self.0.put_batch(collection, first_half(items)))
    }

    async fn put_new(&mut self, collection: String, key: String, items: Vec<wit_dynamodb::Item>) -> Answer<Vec<bool>> {
        let about = format!("{collection}, {} items", items.len());
        call!(self, "dynamodb.put-new", about, Divisible, self.0.put_new(collection, key, items),
            half self.0.put_new(collection, key, first_half(items)))
    }

    async fn transact(
        &mut self,
        actions: Vec<wit_dynamodb::Action>,
        token: String,
    ) -> Answer<Vec<wit_dynamodb::Written>> {
        let about = format!("{} actions", actions.len());
        call!(self, "dynamodb.transact", about, Whole, self.0.transact(actions, token))
    }

    async fn query(&mut self, query: wit_dynamodb::ItemQuery) -> Answer<wit_dynamodb::ItemPage> {
        call!(self, "dynamodb.query", query.collection.clone(), None, wit_dynamodb::Host::query(self.0, query))
    }

    async fn scan(
        &mut self,
        scan: wit_dynamodb::ItemScan,
        segments: Vec<wit_dynamodb::Segment>,
    ) -> Answer<Vec<wit_dynamodb::ItemPage>> {
        call!(self, "dynamodb.scan", scan.collection.clone(), None, self.0.scan(scan, segments))
    }
}
