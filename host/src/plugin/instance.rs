//! One running component: its state on the host's side, and what becomes of a call that does not return.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use larder_model::{ErrorKind, Retry};
use tokio::sync::oneshot;
use wasmtime::component::ResourceTable;
use wasmtime::{Store, Trap};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::bindings::{self, Strategy, repository};
use super::limits::Limits;
use crate::capability::dynamodb::Tables;
use crate::capability::faults::Faults;
use crate::capability::files::Directory;
use crate::capability::sql::Database;
use crate::error::{Error, Kind, Result};

/// Memory of an instance that only describes itself.
pub(crate) const DESCRIBE_MEMORY_BYTES_MAX: usize = 256 << 20;
/// What a plugin printed last is kept to explain its trap; the rest is forgotten.
const LOG_BYTES_MAX: usize = 4096;
/// Open locks, replacements and transactions of one instance.
const RESOURCES_MAX: usize = 1000;
/// Bytes that may cross in one call, in either direction: a page of entities, with room for a large one.
const CALL_BYTES_MAX: usize = 256 << 20;

/// The host's side of an instance.
pub(crate) struct State {
    wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    limits: Limits,
    log: Log,
    pub(crate) files: Option<Directory>,
    pub(crate) sql: Option<Database>,
    pub(crate) dynamodb: Option<Tables>,
    /// Where its calls are to go wrong.
    pub(crate) faults: Option<Faults>,
}

impl State {
    pub(crate) fn new(
        memory_bytes_max: usize,
        files: Option<Directory>,
        sql: Option<Database>,
        dynamodb: Option<Tables>,
    ) -> Self {
        let log = Log::default();
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        State {
            // No arguments, environment, directory or address: those are lent by name, or not at all.
            wasi: WasiCtxBuilder::new().stdout(log.clone()).stderr(log.clone()).build(),
            table,
            limits: Limits::new(memory_bytes_max),
            log,
            files,
            sql,
            dynamodb,
            faults: None,
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
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
        deadline: Duration,
    ) -> Result<Instance> {
        let mut store = Store::new(pre.engine(), state);
        arm(&mut store);
        match tokio::time::timeout(deadline, pre.instantiate_async(&mut store)).await {
            Ok(Ok(strategy)) => Ok(Instance { store, is_unsynced: false, waiting: Vec::new(), strategy }),
            Ok(Err(error)) => Err(trapped(plugin, "instantiate", &error, store.data())),
            Err(_) => Err(overran(plugin, "instantiate", deadline)),
        }
    }

    /// The exports, and the store to call one of them with.
    pub(crate) fn parts(&mut self) -> (&repository::Guest, &mut Store<State>) {
        if let Some(files) = &self.store.data().files {
            files.begin_call();
        }
        if let Some(tables) = &mut self.store.data_mut().dynamodb {
            tables.begin_call();
        }
        (self.strategy.larder_storage_repository(), &mut self.store)
    }
}

/// Puts the store under its limits.
pub(crate) fn arm(store: &mut Store<State>) {
    store.limiter(|state| &mut state.limits);
    store.set_hostcall_fuel(CALL_BYTES_MAX);
    store.epoch_deadline_async_yield_and_update(1);
}

/// Calls that change something: where one does not come back, nobody knows how far it got.
fn retry_of(operation: &str) -> Retry {
    match operation {
        "apply" | "load" | "prepare" | "flush" | "close" | "restore" | "transaction.commit" => Retry::UnknownOutcome,
        _ => Retry::Never,
    }
}

/// The error of a call that trapped.
pub(crate) fn trapped(plugin: &str, operation: &str, error: &wasmtime::Error, state: &State) -> Error {
    let retry = retry_of(operation);
    if let Some(bytes) = state.limits.memory_refused_bytes {
        let message = format!("plugin `{plugin}` ran out of memory in {operation}");
        return Error { retry, ..Error::new(Kind::Trap, message) }
            .caused_by(format!(
                "it wanted {} MiB and may have {} MiB",
                bytes.div_ceil(1 << 20),
                state.limits.memory_bytes_max >> 20
            ))
            .hint("raise `plugins.memory_mb_max` in the configuration if the data needs it");
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

/// The error of a call that did not end in time. Its instance is not used again.
pub(crate) fn overran(plugin: &str, operation: &str, deadline: Duration) -> Error {
    let message = format!("plugin `{plugin}` did not end {operation} within {} s", deadline.as_secs_f64());
    Error { retry: retry_of(operation), ..Error::contract(ErrorKind::Timeout, message) }
        .hint("raise `plugins.call_timeout` in the configuration if the data needs it")
}

/// Text from a plugin as one bounded line that a terminal can be shown: control characters are escaped.
pub(crate) fn one_line(text: &str) -> String {
    escaped(text, 500)
}

/// The same for a line of a statement, which is of no use when it is cut.
pub(crate) fn statement_line(text: &str) -> String {
    escaped(text, 64_000)
}

fn escaped(text: &str, chars_max: usize) -> String {
    let mut line = String::new();
    for character in text.chars().take(chars_max) {
        // Controls move the cursor, and bidirectional overrides reorder what is read.
        if character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Takes all that a plugin prints and keeps its end.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        kept.extend_from_slice(&bytes[bytes.len().saturating_sub(LOG_BYTES_MAX)..]);
        let excess = kept.len().saturating_sub(LOG_BYTES_MAX);
        kept.drain(..excess);
    }

    /// A panic's message stands before the advice about back traces.
    fn last_line(&self) -> Option<String> {
        let kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let text = String::from_utf8_lossy(&kept);
        let line = text.lines().rev().find(|line| !line.trim().is_empty() && !line.starts_with("note: "))?;
        Some(one_line(line))
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
        Ok(LOG_BYTES_MAX)
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
