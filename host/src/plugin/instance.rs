//! One running component: its state on the host's side, and what becomes of a call that does not return.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use larder_model::{ErrorKind, Retry};
use tokio::sync::oneshot;
use tokio::time::Instant;
use wasmtime::component::ResourceTable;
use wasmtime::{Store, Trap, UpdateDeadline};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::bindings::{self, Strategy, repository};
use super::engine::{self, Computed};
use super::limits::{Exceeded, Limits, MemoryTotal, Tally};
use crate::capability::Lent;
use crate::capability::dynamodb::Tables;
use crate::capability::faults::Faults;
use crate::capability::files::Directory;
use crate::capability::http::Outgoing;
use crate::capability::network::Hosts;
use crate::capability::sql::Database;
use crate::config::PluginSettings;
use crate::error::{Error, Kind, Result};
use crate::text::one_line;

/// What a plugin is told it may print at once.
const LOG_WRITE_BYTES: usize = 4096;

/// The host's side of an instance.
pub(crate) struct State {
    wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    tally: Tally,
    log: Log,
    pub(crate) files: Option<Directory>,
    pub(crate) sql: Option<Database>,
    pub(crate) dynamodb: Option<Tables>,
    pub(crate) tcp: Option<Hosts>,
    http: Outgoing,
    http_context: WasiHttpCtx,
    /// Where its calls are to go wrong.
    pub(crate) faults: Option<Faults>,
}

impl State {
    pub(crate) fn new(limits: Limits, memory_total: Arc<MemoryTotal>, lent: &Lent) -> Self {
        let log = Log::new(limits.log_bytes_max);
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles_max);
        State {
            wasi: wasi(&log, lent.tcp.clone()),
            table,
            tally: Tally::new(limits, memory_total),
            log,
            files: lent.files.as_ref().map(Directory::for_instance),
            sql: lent.sql.clone(),
            dynamodb: lent.dynamodb.clone(),
            tcp: lent.tcp.clone(),
            http: Outgoing(lent.http.clone()),
            http_context: WasiHttpCtx::new(),
            faults: None,
        }
    }

    /// Counts a use of a capability, which is a trap where there were too many in this call.
    pub(crate) fn count_host_call(&mut self) -> wasmtime::Result<()> {
        self.tally.count_host_call()
    }

    /// Lets statements of this call take so long.
    pub(crate) fn allow_statements(&mut self, time: Duration) {
        if let Some(sql) = &mut self.sql {
            sql.statement_time = Some(time);
        }
    }

    /// The limit that made a call fail with this error.
    pub(crate) fn exceeded(&self, error: &wasmtime::Error) -> Option<Exceeded> {
        self.tally.exceeded(error)
    }

    /// What crosses at once.
    pub(crate) fn call_bytes_max(&self) -> u32 {
        u32::try_from(self.tally.limits.call_bytes_max).unwrap_or(u32::MAX)
    }

    fn begin_call(&mut self) {
        self.tally.begin_call();
        self.log.begin_call();
        if let Some(files) = &self.files {
            files.begin_call();
        }
        if let Some(sql) = &mut self.sql {
            sql.statement_time = None;
        }
        if let Some(tables) = &mut self.dynamodb {
            tables.begin_call();
        }
    }
}

/// No arguments, environment or directory: those are lent by name, or not at all. Of addresses those of granted hosts.
fn wasi(log: &Log, hosts: Option<Hosts>) -> WasiCtx {
    let mut builder = WasiCtxBuilder::new();
    builder.stdout(log.clone()).stderr(log.clone());
    if let Some(hosts) = hosts {
        builder.allow_tcp(true).socket_addr_check(move |address, used| {
            let is_allowed = hosts.allow_use(address, used);
            Box::pin(async move { is_allowed })
        });
    }
    builder.build()
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http_context, table: &mut self.table, hooks: &mut self.http }
    }
}

/// An instance of a plugin with its store opened.
pub(crate) struct Instance {
    pub(crate) store: Store<State>,
    /// It answered writes that are not durable before a `flush`.
    pub(crate) is_unsynced: bool,
    /// Who is to be told of its next flush.
    pub(crate) waiting: Vec<oneshot::Sender<Result<()>>>,
    strategy: Strategy,
}

impl Instance {
    /// Instantiates what `pre` linked.
    pub(crate) async fn new(
        pre: &bindings::StrategyPre<State>,
        plugin: &str,
        state: State,
        deadline: Instant,
        settings: &PluginSettings,
    ) -> Result<Instance> {
        let mut store = Store::new(pre.engine(), state);
        arm(&mut store);
        match bounded(deadline, settings.cpu_timeout, pre.instantiate_async(&mut store)).await {
            Ok(Ok(strategy)) => Ok(Instance { store, is_unsynced: false, waiting: Vec::new(), strategy }),
            Ok(Err(error)) => Err(trapped(plugin, "instantiate", &error, store.data())),
            Err(overrun) => Err(overran(plugin, "instantiate", overrun, settings)),
        }
    }

    /// The exports, and the store to call one of them with.
    pub(crate) fn parts(&mut self) -> (&repository::Guest, &mut Store<State>) {
        self.store.data_mut().begin_call();
        // Else the first function would yield, because the tick that the last call was given is long over.
        self.store.set_epoch_deadline(1);
        (self.strategy.larder_storage_repository(), &mut self.store)
    }
}

/// Puts the store under its limits.
pub(crate) fn arm(store: &mut Store<State>) {
    store.limiter(|state| &mut state.tally);
    store.set_hostcall_fuel(store.data().tally.limits.call_bytes_max);
    // Yields so that everything else that is due comes first. Wasmtime's own yield would only go to the end of the queue,
    // and then an executor that is never idle looks at timers, files and sockets once in 61 turns.
    store.epoch_deadline_callback(|_| {
        Ok(match engine::yields() {
            true => UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())),
            false => UpdateDeadline::Continue(1),
        })
    });
    store.set_epoch_deadline(1);
}

/// Why a call was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overrun {
    /// It had not ended at its deadline.
    Time,
    /// It computed for too long.
    Cpu,
}

/// Runs a call until it ends, its deadline passes or it has computed for `cpu_timeout`. What it waits for is not counted, and
/// neither is the time in which others had its thread: a plugin that computes comes back soon, so no turn counts for more.
pub(crate) async fn bounded<T>(
    deadline: Instant,
    cpu_timeout: Duration,
    call: impl Future<Output = T>,
) -> std::result::Result<T, Overrun> {
    let mut call = pin!(call);
    let mut computed = Computed::default();
    let metered = poll_fn(|context| match computed.turn(|| call.as_mut().poll(context)) {
        (Poll::Ready(ended), _) => Poll::Ready(Ok(ended)),
        (Poll::Pending, computed) if computed > cpu_timeout => Poll::Ready(Err(Overrun::Cpu)),
        (Poll::Pending, _) => Poll::Pending,
    });
    tokio::time::timeout_at(deadline, metered).await.unwrap_or(Err(Overrun::Time))
}

/// Calls that change something: where one does not come back, nobody knows how far it got.
fn retry_of(operation: &str) -> Retry {
    match operation {
        "apply" | "load" | "prepare" | "prepare-for-load" | "flush" | "close" | "restore" | "transaction.commit" => {
            Retry::UnknownOutcome
        }
        _ => Retry::Never,
    }
}

/// The error of a call that trapped.
pub(crate) fn trapped(plugin: &str, operation: &str, error: &wasmtime::Error, state: &State) -> Error {
    let retry = retry_of(operation);
    if let Some(exceeded) = state.exceeded(error) {
        let message = format!("plugin `{plugin}` {} in {operation}", exceeded.what());
        return Error { retry, ..Error::new(exceeded.kind(), message) }
            .caused_by(exceeded.why(&state.tally.limits))
            .hint(exceeded.hint());
    }
    let reason = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let message = format!("plugin `{plugin}` trapped in {operation}");
    let trap = Error { retry, ..Error::new(Kind::Trap, message) }
        .caused_by(one_line(&reason))
        .hint("this is a fault of the plugin: tell its author, or use another version of it");
    match state.log.last_line() {
        Some(line) => trap.caused_by(line),
        None => trap,
    }
}

/// The error of a call that would carry more than may cross. Nothing of it was done.
pub(crate) fn too_large(plugin: &str, operation: &str, limits: &Limits) -> Error {
    let exceeded = Exceeded::CallBytes;
    let message = format!("{operation} would hand plugin `{plugin}` too much at once");
    Error::new(exceeded.kind(), message).caused_by(exceeded.why(limits)).hint(exceeded.hint())
}

/// The error of a call that did not end in time. Its instance is not used again.
pub(crate) fn overran(plugin: &str, operation: &str, overrun: Overrun, settings: &PluginSettings) -> Error {
    let (message, key) = match overrun {
        Overrun::Time => {
            let seconds = settings.call_timeout.as_secs_f64();
            (format!("plugin `{plugin}` did not end {operation} within {seconds} s"), "call_timeout")
        }
        Overrun::Cpu => {
            let seconds = settings.cpu_timeout.as_secs_f64();
            (format!("plugin `{plugin}` computed for more than {seconds} s in {operation}"), "cpu_timeout")
        }
    };
    Error { retry: retry_of(operation), ..Error::contract(ErrorKind::Timeout, message) }
        .hint(format!("raise `plugins.{key}` in the configuration if the data needs it"))
}

/// Takes all that a plugin prints, keeps the end of what it printed in this call, and counts the rest.
#[derive(Clone)]
struct Log(Arc<Printed>);

struct Printed {
    bytes_max: usize,
    /// So that a call which prints nothing costs nothing.
    is_used: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    dropped: u64,
}

impl Log {
    fn new(bytes_max: usize) -> Log {
        Log(Arc::new(Printed { bytes_max, is_used: AtomicBool::new(false), kept: Mutex::default() }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn begin_call(&self) {
        if self.0.is_used.load(Ordering::Relaxed) {
            self.0.is_used.store(false, Ordering::Relaxed);
            *self.kept() = Kept::default();
        }
    }

    fn push(&self, bytes: &[u8]) {
        self.0.is_used.store(true, Ordering::Relaxed);
        let mut kept = self.kept();
        let end = &bytes[bytes.len().saturating_sub(self.0.bytes_max)..];
        let excess = (kept.bytes.len() + end.len()).saturating_sub(self.0.bytes_max);
        kept.bytes.drain(..excess);
        kept.bytes.extend_from_slice(end);
        kept.dropped += (excess + bytes.len() - end.len()) as u64;
    }

    /// A panic's message stands before the advice about back traces.
    fn last_line(&self) -> Option<String> {
        let kept = self.kept();
        let text = String::from_utf8_lossy(&kept.bytes);
        let line = text.lines().rev().find(|line| !line.trim().is_empty() && !line.starts_with("note: "))?;
        Some(match kept.dropped {
            0 => one_line(line),
            dropped => format!("{} (of what it printed, {dropped} bytes before that were dropped)", one_line(line)),
        })
    }
}

impl IsTerminal for Log {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Log {
    fn p2_stream(&self) -> Box<dyn wasmtime_wasi::p2::OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl wasmtime_wasi::p2::Pollable for Log {
    async fn ready(&mut self) {}
}

impl wasmtime_wasi::p2::OutputStream for Log {
    fn write(&mut self, bytes: bytes::Bytes) -> wasmtime_wasi::p2::StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> wasmtime_wasi::p2::StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> wasmtime_wasi::p2::StreamResult<usize> {
        Ok(LOG_WRITE_BYTES)
    }
}

impl tokio::io::AsyncWrite for Log {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
