//! SQLite through sqlx: a pool of connections to one file, which may not exist yet.
//!
//! A file that is missing is not a fault: reads find an empty database, and the first write makes the file. A file that
//! was replaced meanwhile is noticed before each use, so nothing is written to one that has no name any more.
//!
//! Connections: foreign keys are enforced; `synchronous` is FULL, so what was acknowledged is on the disk; the first
//! write turns the file to a write-ahead log, which lets readers and a writer work side by side. [`guard`] does the rest.

mod copy;
mod guard;

use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt};
use larder_model::{Error, ErrorKind, Result, Retry};
use libsqlite3_sys as ffi;
use sqlx::{
    Arguments, AssertSqlSafe, ConnectOptions, Connection, Decode, Either, Executor, Row, Sqlite, TypeInfo, ValueRef,
    sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteRow, SqliteSynchronous},
};

use guard::{Checked, Refusal};

use super::{
    Connections, Packed, Rows, SqlValue,
    pool::{self, Bounds, Connector},
    texts::CheckedTexts,
    unsynced::Unsynced,
};

type Lease = pool::Lease<File>;
type Pool = pool::Pool<File>;

/// Instructions of SQLite's machine between two looks at the clock, well under a millisecond.
const PROGRESS_INSTRUCTIONS: i32 = 20_000;

/// Prepared statements that a connection keeps.
const STATEMENTS_KEPT_MAX: usize = 64;

/// Rows that SQLite runs ahead of the reader. Each may be as large as an entity; fewer than it makes in [`READ_PAUSE`] would
/// make it wait.
const ROWS_AHEAD_MAX: usize = 256;
/// Rows that are taken one by one as they come. More are a bulk read.
const ROWS_AT_ONCE: usize = 16;
/// How long a bulk read lets SQLite run ahead. To be woken for each row costs more than the row.
const READ_PAUSE: Duration = Duration::from_millis(1);

/// How many more than one may watch a file at a time.
const WATCHES_MAX: u32 = 15;

/// Pages that a connection keeps in memory. SQLite's own 2 MiB are too few for a bulk load with its indexes.
const CACHE_KIB: u32 = 16 << 10;

/// Pages of the log at which a bulk load moves them into the file: 64 MiB, so that a page that is written again and again is
/// moved once. SQLite's own 1000 would make the load wait for the disk every 4 MiB.
const LOG_PAGES_MAX: &str = "16384";

/// Bytes of rows that wait for their transactions to begin, of one, and of all together.
const DEFERRED_BYTES_MAX: usize = 8 << 20;
const ALL_DEFERRED_BYTES_MAX: usize = 64 << 20;

/// What a cell costs beside its content, in the reply.
const CELL_BYTES: usize = 16;

/// Waiting for a lock and then running may each take the whole timeout; past both, with this to spare, SQLite hangs.
const GRACE: Duration = Duration::from_secs(5);

/// Where the file is, and how connections to it are kept.
#[derive(Debug, Clone)]
pub struct SqliteSettings {
    /// Absolute; it may not exist yet.
    pub(crate) path: PathBuf,
    /// Connections that are kept.
    pub(crate) pool_size: u32,
    /// More of them under load, closed soon after.
    pub(crate) max_overflow: u32,
    /// For one statement: to wait for a lock, and then to run.
    pub(crate) timeout: Duration,
    /// For a free connection.
    pub(crate) pool_timeout: Duration,
    /// The age at which a connection is replaced; none for never.
    pub(crate) pool_recycle: Option<Duration>,
    /// Whether prepared statements are kept.
    pub(crate) query_cache: bool,
}

/// The database in a file.
pub(super) struct Store {
    settings: SqliteSettings,
    /// The file's name without its folder: no message holds an outer path.
    name: String,
    file: Mutex<Option<Opened>>,
    /// Empty databases in memory, which answer for a file that does not exist.
    empty: Pool,
    checked: Mutex<CheckedTexts<Checked>>,
    /// Bytes of rows that wait for their transactions to begin.
    deferred: Arc<AtomicUsize>,
}

/// Taken by rows that wait for their transaction to begin.
struct Room {
    bytes: usize,
    deferred: Arc<AtomicUsize>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.deferred.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The pool of one file, as long as the path leads to it.
#[derive(Clone)]
struct Opened {
    identity: Identity,
    pool: Pool,
    /// Connections whose commits do not wait for the disk.
    bulk: Pool,
    /// Those that only ask whether others committed, for as long as somebody wants to know.
    watches: Pool,
    unsynced: Arc<Unsynced>,
    /// Whether the file has its write-ahead log, or cannot have one.
    logged: Arc<AtomicBool>,
}

/// What tells a file from one that replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

#[cfg(unix)]
fn identity(metadata: &fs::Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    Identity(metadata.dev(), metadata.ino())
}

/// Elsewhere an open database cannot be removed.
#[cfg(not(unix))]
fn identity(_metadata: &fs::Metadata) -> Identity {
    Identity(0, 0)
}

/// Makes the folder, and sees to it that a crash does not take it away with what was acknowledged in it.
fn make_folder(folder: &Path) -> io::Result<()> {
    let missing: Vec<_> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    fs::create_dir_all(folder)?;
    #[cfg(unix)]
    for parent in missing.into_iter().filter_map(Path::parent) {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

impl Store {
    pub(super) fn new(settings: SqliteSettings) -> Store {
        let name = settings.path.file_name().unwrap_or(settings.path.as_os_str()).to_string_lossy().into_owned();
        let empty = pool(&settings, SqliteConnectOptions::new().filename(":memory:"), &name);
        Store { settings, name, file: Mutex::new(None), empty, checked: Mutex::default(), deferred: Arc::default() }
    }

    /// Bytes of the file and its log.
    pub(super) fn size(&self) -> Result<u64> {
        let Some(metadata) = self.metadata()? else { return Ok(0) };
        Ok(metadata.len() + fs::metadata(self.log_path()).map_or(0, |log| log.len()))
    }

    /// SQLite keeps it beside the file, which is beside what a link leads to.
    fn log_path(&self) -> PathBuf {
        let path = &self.settings.path;
        let mut path = fs::canonicalize(path).unwrap_or_else(|_| path.clone()).into_os_string();
        path.push("-wal");
        path.into()
    }

    /// Bytes that are free where the file is, or would be.
    pub(super) fn free_space(&self) -> Result<u64> {
        let mut place = self.settings.path.as_path();
        while let (false, Some(folder)) = (place.exists(), place.parent()) {
            place = folder;
        }
        match rustix::fs::statvfs(place) {
            Ok(stat) => Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(error) => Err(self.no_file(&error.into())),
        }
    }

    pub(super) fn pool_timeout(&self) -> Duration {
        self.settings.pool_timeout
    }

    /// Those of the pool that single statements and ordinary transactions share.
    pub(super) fn connections(&self) -> Connections {
        let file = self.file.lock().expect("nothing panics while it holds this lock");
        file.as_ref().map_or_else(|| bounds(&self.settings).connections(), |opened| opened.pool.connections())
    }

    /// None where there is no file, but there could be.
    fn metadata(&self) -> Result<Option<fs::Metadata>> {
        let path = &self.settings.path;
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
            Ok(metadata) if metadata.is_dir() => {
                Err(Error::invalid(format!("`{}` is a directory, not a database file", self.name)))
            }
            Ok(_) => Err(Error::invalid(format!("`{}` is not a regular file", self.name))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.no_file(&error)),
        }
    }

    fn no_file(&self, error: &io::Error) -> Error {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::LimitExceeded,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("the database `{}` cannot be opened: {}", self.name, error.kind()))
    }

    /// The pool of the file that the path leads to now; none where there is none and it is not to be made.
    fn opened(&self, make: bool) -> Result<Option<Opened>> {
        let mut file = self.file.lock().expect("nothing panics while it holds this lock");
        let metadata = match self.metadata()? {
            Some(metadata) => metadata,
            None => {
                *file = None;
                if !make {
                    return Ok(None);
                }
                if let Some(folder) = self.settings.path.parent() {
                    make_folder(folder).map_err(|error| self.no_file(&error))?;
                }
                // Closed at once, before there is a connection: closing a file drops every lock that the process holds
                // on it, SQLite's too.
                match OpenOptions::new().write(true).create_new(true).open(&self.settings.path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(self.no_file(&error)),
                    _ => {}
                }
                self.metadata()?.ok_or_else(|| self.no_file(&io::ErrorKind::NotFound.into()))?
            }
        };
        let identity = identity(&metadata);
        if file.as_ref().is_none_or(|opened| opened.identity != identity) {
            let options = SqliteConnectOptions::new().filename(&self.settings.path);
            // In a database with a write-ahead log, NORMAL syncs the log only before what is in it goes to the file.
            let bulk =
                options.clone().synchronous(SqliteSynchronous::Normal).pragma("wal_autocheckpoint", LOG_PAGES_MAX);
            // One writes at a time in any case, and to wait for the connection is cheaper than to wait for the lock.
            let one = SqliteSettings { pool_size: 1, max_overflow: 0, ..self.settings.clone() };
            let bulk = pool(&one, bulk, &self.name);
            let watches = SqliteSettings { max_overflow: WATCHES_MAX, ..one };
            let watches = pool(&watches, options.clone(), &self.name);
            let pool = pool(&self.settings, options.synchronous(SqliteSynchronous::Full), &self.name);
            let (unsynced, logged) = (Arc::default(), Arc::default());
            *file = Some(Opened { identity, pool, bulk, watches, unsynced, logged });
        }
        Ok(file.clone())
    }

    /// The last connection to close moves the log into the file and removes it, so that the file alone is the database.
    pub(super) async fn close(&self) {
        let opened = self.file.lock().expect("nothing panics while it holds this lock").take();
        if let Some(opened) = opened {
            opened.watches.close().await;
            opened.bulk.close().await;
            opened.pool.close().await;
        }
    }

    /// None where there is no file.
    pub(super) async fn watch(self: &Arc<Self>) -> Result<Option<Watch>> {
        let Some(opened) = self.opened(false)? else { return Ok(None) };
        let mut lease = opened.watches.lease().await?;
        let version = self.data_version(&mut lease).await?;
        Ok(Some(Watch { store: Arc::clone(self), identity: opened.identity, lease, version }))
    }

    /// A number that is another one whenever another connection committed since.
    async fn data_version(&self, lease: &mut Lease) -> Result<i64> {
        lease.broken = true;
        let asking = sqlx::query_scalar("PRAGMA data_version").fetch_one(lease.connection());
        match tokio::time::timeout(self.settings.timeout.saturating_mul(2), asking).await {
            Ok(version) => {
                lease.broken = false;
                version.map_err(|error| translate(&self.name, error))
            }
            Err(_) => Err(took_too_long(&self.name)),
        }
    }

    /// Runs one statement by itself.
    pub(super) async fn query(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        let text = guard::screen(text).map_err(|refusal| self.refuse(refusal))?;
        let arguments = arguments(params)?;
        let opened = match self.opened(false)? {
            Some(opened) => opened,
            None => {
                let mut lease = self.empty.lease().await?;
                let (text, checked) = self.check(lease.connection(), text, &arguments).await?;
                if checked.read_only {
                    let rows = self.run(&mut lease, text, checked, arguments, max_bytes).await;
                    lease.give_back();
                    return rows;
                }
                lease.give_back();
                self.opened(true)?.expect("it was to be made")
            }
        };
        let mut lease = opened.pool.lease().await?;
        let rows = async {
            let (text, checked) = self.check(lease.connection(), text, &arguments).await?;
            if !checked.read_only {
                self.start_log(&opened, lease.connection()).await;
            }
            self.run(&mut lease, text, checked, arguments, max_bytes).await
        }
        .await;
        lease.give_back();
        rows
    }

    /// Runs a statement that only reads, and gives its rows in one piece.
    pub(super) async fn copy_out(&self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Packed> {
        let text = guard::screen(text).map_err(|refusal| self.refuse(refusal))?;
        let opened = self.opened(false)?;
        let pool = opened.as_ref().map_or(&self.empty, |opened| &opened.pool);
        let mut lease = pool.lease().await?;
        let (text, checked) = match self.check_text(lease.connection(), text).await {
            Ok(checked) => checked,
            Err(error) => {
                lease.give_back();
                return Err(error);
            }
        };
        let fits = match checked.read_only {
            true => has_params(checked, params.len()),
            false => Err(Error::new(ErrorKind::Denied, "a statement that rows are copied out of only reads")),
        };
        if let Err(error) = fits {
            lease.give_back();
            return Err(error);
        }
        let (mut lease, packed) = self
            .work_apart(lease, move |connection, goes_on| {
                copy::read(connection, &text, &params, max_bytes as usize, goes_on)
            })
            .await?;
        lease.give_back();
        packed.map_err(|fault| self.told(fault))
    }

    /// Begins a transaction. One that may write takes the write lock at once: taken later, it could find that what was
    /// read is out of date, and could only fail. One whose statements may take longer than others ends a bulk load: it has the
    /// connection of those, and once it is committed, the log is moved into the file.
    pub(super) async fn begin(
        self: &Arc<Self>,
        read_only: bool,
        statement_time: Option<Duration>,
    ) -> Result<Transaction> {
        let opened = self.opened(!read_only)?;
        let ends_load = !read_only && statement_time.is_some();
        let pool = match &opened {
            Some(opened) if ends_load => &opened.bulk,
            Some(opened) => &opened.pool,
            None => &self.empty,
        };
        let mut lease = pool.lease().await?;
        if let Some(opened) = opened.as_ref().filter(|_| !read_only) {
            self.start_log(opened, lease.connection()).await;
        }
        // From here on whoever drops the lease rolls back, this future too.
        lease.in_transaction = true;
        self.command(&mut lease, if read_only { "BEGIN DEFERRED" } else { "BEGIN IMMEDIATE" }).await?;
        if let Some(time) = statement_time {
            lease.statement_time = Some(time);
            let bounded = bound_statements(lease.connection(), time).await;
            bounded.map_err(|error| translate(&self.name, error))?;
        }
        Ok(Transaction {
            store: Arc::clone(self),
            stage: Stage::Begun(lease),
            read_only,
            ended: false,
            bulk: opened.filter(|_| ends_load).map(Box::new),
            deferred: None,
        })
    }

    /// One that writes and whose commit does not wait for the disk.
    pub(super) fn begin_bulk(self: &Arc<Self>) -> Transaction {
        let store = Arc::clone(self);
        Transaction { store, stage: Stage::Waiting, read_only: false, ended: false, bulk: None, deferred: None }
    }

    fn room_to_defer(&self, bytes: usize) -> Option<Room> {
        let add = |all: usize| Some(all + bytes).filter(|all| *all <= ALL_DEFERRED_BYTES_MAX);
        let fits = bytes <= DEFERRED_BYTES_MAX
            && self.deferred.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok();
        fits.then(|| Room { bytes, deferred: Arc::clone(&self.deferred) })
    }

    /// Puts on the disk what bulk transactions left in the log. What went from the log to the file was synced on its way.
    pub(super) async fn sync(&self) -> Result<()> {
        match self.opened(false)? {
            Some(opened) => self.sync_log(&opened).await,
            None => Ok(()),
        }
    }

    async fn sync_log(&self, opened: &Opened) -> Result<()> {
        let Some(commits) = opened.unsynced.waiting() else { return Ok(()) };
        let failed = |why: &dyn std::fmt::Display| {
            let message = format!("the log of `{}` cannot be synced: {why}", self.name);
            Error { retry: Retry::UnknownOutcome, ..Error::new(ErrorKind::Unavailable, message) }
        };
        if opened.unsynced.has_failed() {
            return Err(failed(&"it failed before, and what was written since may be lost"));
        }
        let path = self.log_path();
        // SQLite holds no lock on the log, so that opening and closing it drops none.
        let unsynced = Arc::clone(&opened.unsynced);
        let synced = tokio::task::spawn_blocking(move || match fs::File::open(&path) {
            Ok(log) => log.sync_all().inspect_err(|_| unsynced.note_failed()),
            // Without a log every commit went to the file, and was synced there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        });
        let synced = synced.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        synced.map(|()| opened.unsynced.note_synced(commits)).map_err(|error| failed(&error.kind()))
    }

    /// Where it does not work, the database keeps its rollback journal and works all the same: because somebody else
    /// uses it right now, in which case the next write tries again, or because it cannot be written.
    async fn start_log(&self, opened: &Opened, connection: &mut SqliteConnection) {
        if opened.logged.load(Ordering::Relaxed) {
            return;
        }
        let answer =
            connection.execute("PRAGMA journal_mode = WAL").await.map_err(|error| translate(&self.name, error));
        let busy = answer.is_err_and(|error| error.kind == ErrorKind::Timeout);
        opened.logged.store(!busy, Ordering::Relaxed);
    }

    /// The text as sqlx takes it, and what it does.
    async fn check(
        &self,
        connection: &mut SqliteConnection,
        text: &str,
        arguments: &SqliteArguments,
    ) -> Result<(Arc<str>, Checked)> {
        let (text, checked) = self.check_text(connection, text).await?;
        has_params(checked, arguments.len())?;
        Ok((text, checked))
    }

    async fn check_text(&self, connection: &mut SqliteConnection, text: &str) -> Result<(Arc<str>, Checked)> {
        if let Some(known) = self.checked.lock().expect("nothing panics while it holds this lock").get(text) {
            return Ok(known);
        }
        let checked = {
            let mut locked = connection.lock_handle().await.map_err(|error| translate(&self.name, error))?;
            guard::check(locked.as_raw_handle(), text)
        };
        let checked = checked.map_err(|refusal| self.refuse(refusal))?;
        Ok(self.checked.lock().expect("nothing panics while it holds this lock").insert(text, checked))
    }

    fn refuse(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Denied(what) => Error::new(ErrorKind::Denied, format!("a statement may not do this: {what}")),
            Refusal::Invalid(message) => Error::invalid(message),
            Refusal::Sqlite(code, message) => from_sqlite(&self.name, code, &message),
        }
    }

    /// Runs a statement that was checked, with or without one of the host's own before it.
    async fn run(
        &self,
        lease: &mut Lease,
        text: Arc<str>,
        checked: Checked,
        arguments: SqliteArguments,
        max_bytes: u32,
    ) -> Result<Rows> {
        let query = sqlx::query_with(AssertSqlSafe(text), arguments).persistent(self.settings.query_cache);
        let limit = self.limit(lease);
        lease.broken = true;
        let reading = async {
            match max_bytes {
                0 => change(lease.connection(), query).await,
                _ => read(lease.connection(), query, max_bytes as usize).await,
            }
        };
        // Whoever drops this future leaves a connection that is in the middle of something.
        let ended = tokio::time::timeout(limit, reading).await;
        match ended {
            Ok(result) => {
                lease.broken = false;
                result.map_err(|error| translate(&self.name, error))
            }
            Err(_) => {
                let mut error = took_too_long(&self.name);
                if !checked.read_only {
                    error.retry = Retry::UnknownOutcome;
                }
                Err(error)
            }
        }
    }

    /// Works with SQLite itself, on a thread that nobody else needs: what somebody else's table does with a row may take any
    /// time, and to wait for a lock may too. `work` is told whether anybody waits for it still. The connection is used again
    /// only where this comes to its end.
    async fn work_apart<T: Send + 'static>(
        &self,
        mut lease: Lease,
        work: impl FnOnce(NonNull<ffi::sqlite3>, &dyn Fn() -> bool) -> std::result::Result<T, copy::Fault> + Send + 'static,
    ) -> Result<(Lease, std::result::Result<T, copy::Fault>)> {
        let limit = self.limit(&lease);
        // Before whoever waits gives up: then it is known what became of it.
        let deadline = Instant::now() + limit.saturating_sub(GRACE);
        let is_given_up = Arc::new(AtomicBool::new(false));
        let _give_up = GiveUp(Arc::clone(&is_given_up));
        let runtime = tokio::runtime::Handle::current();
        lease.broken = true;
        let working = tokio::task::spawn_blocking(move || {
            let worked = match runtime.block_on(lease.connection().lock_handle()) {
                Ok(mut locked) => {
                    let goes_on = || Instant::now() < deadline && !is_given_up.load(Ordering::Acquire);
                    let work = || work(locked.as_raw_handle(), &goes_on);
                    Ok(guard::until_given_up(Arc::clone(&is_given_up), work))
                }
                Err(error) => Err(error),
            };
            lease.broken = worked.is_err();
            (lease, worked)
        });
        match tokio::time::timeout(limit, working).await {
            Ok(Ok((lease, worked))) => {
                let worked = worked.unwrap_or_else(|error| Err(copy::Fault::Contract(translate(&self.name, error))));
                Ok((lease, worked))
            }
            Ok(Err(error)) => Err(Error::new(ErrorKind::Internal, format!("a statement broke off: {error}"))),
            Err(_) => Err(took_too_long(&self.name)),
        }
    }

    fn told(&self, fault: copy::Fault) -> Error {
        match fault {
            copy::Fault::Sqlite(code, message) | copy::Fault::Commit(code, message) => {
                from_sqlite(&self.name, code, &message)
            }
            copy::Fault::Contract(error) => error,
            copy::Fault::TookTooLong => took_too_long(&self.name),
        }
    }

    fn limit(&self, lease: &Lease) -> Duration {
        lease.statement_time.unwrap_or(self.settings.timeout).saturating_mul(2).saturating_add(GRACE)
    }

    /// Whoever has the connection next has the usual time. Where that fails, it is closed.
    async fn restore_time(&self, lease: &mut Lease) {
        if lease.statement_time.is_some() && bound_statements(lease.connection(), self.settings.timeout).await.is_ok() {
            lease.statement_time = None;
        }
    }

    /// Runs one of the host's own statements about transactions.
    async fn command(&self, lease: &mut Lease, text: &'static str) -> Result<()> {
        let query = sqlx::query(text).persistent(self.settings.query_cache);
        lease.broken = true;
        match tokio::time::timeout(self.limit(lease), lease.connection().execute(query)).await {
            Ok(result) => {
                lease.broken = false;
                result.map(drop).map_err(|error| translate(&self.name, error))
            }
            Err(_) => Err(took_too_long(&self.name)),
        }
    }
}

/// A connection that knows what was committed when it was asked first.
pub(crate) struct Watch {
    store: Arc<Store>,
    identity: Identity,
    lease: Lease,
    version: i64,
}

impl Watch {
    /// Whether nobody committed since, and the file is still the one that the path leads to. False where that cannot be
    /// told.
    pub(crate) async fn saw_no_change(&mut self) -> bool {
        let found = self.store.metadata().ok().flatten();
        let is_there = found.is_some_and(|metadata| identity(&metadata) == self.identity);
        is_there && self.store.data_version(&mut self.lease).await.is_ok_and(|version| version == self.version)
    }
}

/// An open transaction.
pub(super) struct Transaction {
    store: Arc<Store>,
    stage: Stage,
    read_only: bool,
    /// SQLite ended it, after an error.
    ended: bool,
    /// Of a bulk transaction: the file that it writes to, whose log it leaves to be synced.
    bulk: Option<Box<Opened>>,
    /// What is appended before anything else is done.
    deferred: Option<(copy::Rows, Room)>,
}

/// Dropped, it tells a thread that nobody waits any more for what it does.
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How far a transaction is.
enum Stage {
    /// It takes a connection, and begins, with its first statement, which goes to SQLite's thread with the BEGIN, or with its
    /// first rows: bulk loads queue for one connection, and who has it should have its rows made.
    Waiting,
    Begun(Lease),
}

impl Transaction {
    /// Runs one statement inside. An error of the statement alone, such as a broken constraint, undoes that statement
    /// and leaves the transaction as it was; one of rows that were deferred ends it.
    pub(super) async fn query(&mut self, text: &str, params: Vec<SqlValue>, max_bytes: u32) -> Result<Rows> {
        if self.ended {
            return Err(self.has_ended());
        }
        let text = guard::screen(text).map_err(|refusal| self.store.refuse(refusal))?;
        let arguments = arguments(params)?;
        self.append_deferred().await?;
        self.have_connection().await?;
        let store = &self.store;
        let Stage::Begun(lease) = &mut self.stage else { return Err(self.has_ended()) };
        let (mut text, checked) = store.check(lease.connection(), text, &arguments).await?;
        if self.read_only && !checked.read_only {
            return Err(Error::new(ErrorKind::Denied, "a read-only transaction does not write"));
        }
        if !lease.in_transaction {
            // From here on whoever drops the lease rolls back, this future too.
            lease.in_transaction = true;
            text = format!("BEGIN IMMEDIATE; {text}").into();
        }
        let result = store.run(lease, text, checked, arguments, max_bytes).await;
        if result.is_err() {
            // Without this, what follows would run, and stay, outside of any transaction.
            self.ended = lease.broken || !is_in_transaction(lease.connection()).await;
        }
        result
    }

    /// Appends rows, in the form that `wit/sql.wit` tells, and answers how many. What fails ends the transaction. One that has
    /// not begun does it with what it is asked next: so it holds the connection that all bulk loads queue for while rows are
    /// written, and not while a component computes.
    pub(super) async fn copy_in(&mut self, table: &str, columns: &[String], data: Vec<u8>) -> Result<u64> {
        if self.ended {
            return Err(self.has_ended());
        }
        self.ended = true;
        if self.read_only {
            return Err(Error::new(ErrorKind::Denied, "a read-only transaction does not write"));
        }
        let rows = copy::Rows::new(table, columns, data);
        for text in &rows.texts {
            guard::screen(text).map_err(|refusal| self.store.refuse(refusal))?;
        }
        self.append_deferred().await?;
        if let Stage::Waiting = self.stage
            && let Some(room) = self.store.room_to_defer(rows.bytes())
        {
            let count = rows.count()?;
            self.deferred = Some((rows, room));
            self.ended = false;
            return Ok(count);
        }
        let count = self.append(rows, None, false).await?;
        self.ended = false;
        Ok(count)
    }

    async fn append_deferred(&mut self) -> Result<()> {
        let Some((rows, room)) = self.deferred.take() else { return Ok(()) };
        let had_ended = std::mem::replace(&mut self.ended, true);
        self.append(rows, Some(room), false).await?;
        self.ended = had_ended;
        Ok(())
    }

    /// What nobody waits for any more is not committed, unless it is being committed already. The caller sees to it that the
    /// transaction has ended where this does not come to its end.
    async fn append(&mut self, rows: copy::Rows, room: Option<Room>, commits: bool) -> Result<u64> {
        self.have_connection().await?;
        let store = &self.store;
        if let Stage::Begun(lease) = &mut self.stage {
            for text in &rows.texts {
                store.check_text(lease.connection(), text).await?;
            }
        }
        let Stage::Begun(mut lease) = std::mem::replace(&mut self.stage, Stage::Waiting) else {
            return Err(self.has_ended());
        };
        let begins = !std::mem::replace(&mut lease.in_transaction, true);
        let unsynced = self.bulk.as_ref().filter(|_| commits).map(|opened| Arc::clone(&opened.unsynced));
        let appending = store.work_apart(lease, move |connection, goes_on| {
            let appended = rows.append(connection, begins, commits, goes_on);
            drop((rows, room));
            // Here, because it is committed also where nobody waits for it any more.
            if let (Some(unsynced), Ok(_) | Err(copy::Fault::Commit(..))) = (unsynced, &appended) {
                unsynced.note();
            }
            appended
        });
        let in_doubt = |error: Error| match commits {
            true => Error { retry: Retry::UnknownOutcome, ..error },
            false => error,
        };
        let (mut lease, appended) = appending.await.map_err(in_doubt)?;
        lease.in_transaction = !(commits && appended.is_ok());
        self.stage = Stage::Begun(lease);
        appended.map_err(|fault| {
            let is_of_commit = matches!(fault, copy::Fault::Commit(..));
            match store.told(fault) {
                error if is_of_commit && error.kind == ErrorKind::Unavailable => in_doubt(error),
                error => error,
            }
        })
    }

    /// A bulk transaction takes one with the first thing that it does.
    async fn have_connection(&mut self) -> Result<()> {
        if let Stage::Waiting = &self.stage {
            let opened = self.store.opened(true)?.expect("it was to be made");
            let mut lease = opened.bulk.lease().await?;
            self.store.start_log(&opened, lease.connection()).await;
            self.bulk = Some(Box::new(opened));
            self.stage = Stage::Begun(lease);
        }
        Ok(())
    }

    fn has_ended(&self) -> Error {
        Error::new(ErrorKind::InvalidArgument, "the transaction was rolled back by an earlier error")
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        if self.ended {
            return Err(self.has_ended());
        }
        let mut is_committed = false;
        if let Some((rows, room)) = self.deferred.take() {
            // With the rows: each turn on another thread takes time that others wait for the connection.
            if let Err(error) = self.append(rows, Some(room), true).await {
                self.rollback().await?;
                return Err(error);
            }
            is_committed = true;
        }
        let Stage::Begun(mut lease) = self.stage else { return Ok(()) };
        if !lease.in_transaction && !is_committed {
            lease.give_back();
            return Ok(());
        }
        if !is_committed {
            let committing = self.bulk.as_ref().map(|opened| opened.unsynced.committing());
            let committed = self.store.command(&mut lease, "COMMIT").await;
            drop(committing);
            // An error leaves the lease to be rolled back.
            if let Err(mut error) = committed {
                if lease.broken || error.kind == ErrorKind::Unavailable {
                    error.retry = Retry::UnknownOutcome;
                }
                return Err(error);
            }
        }
        lease.in_transaction = false;
        let ended_load = self.bulk.filter(|_| lease.statement_time.is_some());
        self.store.restore_time(&mut lease).await;
        let Some(opened) = ended_load else {
            lease.give_back();
            return Ok(());
        };
        // Nobody was told that it would not be durable.
        let synced = self.store.sync_log(&opened).await;
        move_log(lease);
        synced
    }

    pub(super) async fn rollback(self) -> Result<()> {
        if let Stage::Begun(mut lease) = self.stage {
            lease.roll_back().await;
            self.store.restore_time(&mut lease).await;
            lease.give_back();
        }
        Ok(())
    }
}

/// Has SQLite end a statement that takes longer.
async fn bound_statements(connection: &mut SqliteConnection, time: Duration) -> sqlx::Result<()> {
    connection.lock_handle().await?.set_progress_handler(PROGRESS_INSTRUCTIONS, move || guard::goes_on(time));
    Ok(())
}

/// Opens connections to one file.
struct File {
    options: SqliteConnectOptions,
    timeout: Duration,
    name: String,
}

impl Connector for File {
    type Connection = SqliteConnection;

    async fn connect(&self) -> Result<SqliteConnection> {
        let connecting = async {
            let mut connection = self.options.connect().await?;
            if !guard::harden(connection.lock_handle().await?.as_raw_handle()) {
                return Err(sqlx::Error::Protocol("a connection cannot be set up".to_owned()));
            }
            bound_statements(&mut connection, self.timeout).await?;
            Ok(connection)
        };
        connecting.await.map_err(|error| translate(&self.name, error))
    }

    async fn roll_back(connection: &mut SqliteConnection) -> bool {
        // It fails where SQLite has rolled back by itself.
        let _ = connection.execute("ROLLBACK").await;
        !is_in_transaction(connection).await
    }

    /// The last one to close moves the log into the file.
    async fn close(connection: SqliteConnection) {
        let _ = connection.close().await;
    }
}

fn has_params(checked: Checked, given: usize) -> Result<()> {
    let wanted = checked.params_count;
    match wanted == given {
        true => Ok(()),
        false => Err(Error::invalid(format!("a statement of {wanted} parameters was given {given}"))),
    }
}

/// Moves what a bulk load left in the log into the file, while whoever made it goes on: else the last connection to close does
/// it, and is waited for. Where it fails, that one does.
fn move_log(mut lease: Lease) {
    tokio::spawn(async move {
        lease.broken = true;
        let moved = lease.connection().execute("PRAGMA wal_checkpoint(PASSIVE)").await;
        lease.broken = moved.is_err();
        lease.give_back();
    });
}

/// What SQLite says; a connection that does not answer is taken for one that is, and then nothing can be done with it.
async fn is_in_transaction(connection: &mut SqliteConnection) -> bool {
    match connection.lock_handle().await {
        Ok(mut locked) => guard::in_transaction(locked.as_raw_handle()),
        Err(_) => true,
    }
}

fn bounds(settings: &SqliteSettings) -> Bounds {
    let SqliteSettings { pool_size, max_overflow, pool_timeout, pool_recycle, .. } = *settings;
    Bounds { kept: pool_size.max(1), overflow: max_overflow, timeout: pool_timeout, recycle: pool_recycle }
}

/// A pool that opens nothing before it is asked.
fn pool(settings: &SqliteSettings, options: SqliteConnectOptions, name: &str) -> Pool {
    let timeout = settings.timeout;
    let options = options
        .foreign_keys(true)
        // SQLite counts milliseconds in 31 bits.
        .busy_timeout(timeout.min(Duration::from_secs(1_000_000)))
        .statement_cache_capacity(if settings.query_cache { STATEMENTS_KEPT_MAX } else { 0 })
        .row_buffer_size(ROWS_AHEAD_MAX)
        // A negative number is KiB. What a transaction changed stays in memory until its end.
        .pragma("cache_size", format!("-{CACHE_KIB}"))
        .thread_name(|id| format!("larder-sqlite-{id}"))
        .disable_statement_logging();
    Pool::new(File { options, timeout, name: name.to_owned() }, bounds(settings), &format!("`{name}`"))
}

fn arguments(params: Vec<SqlValue>) -> Result<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    arguments.reserve(params.len(), 0);
    for param in params {
        let added = match param {
            SqlValue::Null => arguments.add(None::<i64>),
            SqlValue::Boolean(value) => arguments.add(i64::from(value)),
            SqlValue::Integer(value) => arguments.add(value),
            // SQLite would make NULL of it.
            SqlValue::Number(value) if value.is_nan() => return Err(Error::invalid("a parameter is not a number")),
            SqlValue::Number(value) => arguments.add(value),
            SqlValue::Text(text) | SqlValue::Json(text) | SqlValue::Decimal(text) => arguments.add(text),
            SqlValue::Blob(bytes) => arguments.add(bytes),
        };
        added.map_err(|error| Error::new(ErrorKind::Internal, format!("a parameter was not encoded: {error}")))?;
    }
    Ok(arguments)
}

/// How many rows a statement changed. Of one before it SQLite says again what the last one that changed any did.
async fn change<'q>(
    connection: &mut SqliteConnection,
    query: sqlx::query::Query<'q, Sqlite, SqliteArguments>,
) -> sqlx::Result<Rows> {
    let mut stream = connection.fetch_many(query);
    let mut rows = Rows::default();
    while let Some(step) = stream.next().await {
        if let Either::Left(done) = step? {
            rows.affected = done.rows_affected();
        }
    }
    Ok(rows)
}

/// The rows until they reach `max_bytes`, but at least one.
async fn read<'q>(
    connection: &mut SqliteConnection,
    query: sqlx::query::Query<'q, Sqlite, SqliteArguments>,
    max_bytes: usize,
) -> sqlx::Result<Rows> {
    let mut stream = connection.fetch_many(query);
    let mut rows = Rows::default();
    let mut bytes = 0;
    let mut rows_count = 0;
    loop {
        let ready = if rows_count < ROWS_AT_ONCE { None } else { stream.next().now_or_never() };
        let step = match ready {
            Some(step) => step,
            None if rows_count < ROWS_AT_ONCE => stream.next().await,
            None => {
                tokio::time::sleep(READ_PAUSE).await;
                continue;
            }
        };
        let Some(step) = step else { break };
        match step? {
            Either::Left(done) => rows.affected = done.rows_affected(),
            Either::Right(_) if bytes >= max_bytes => {
                rows.more = true;
                break;
            }
            Either::Right(row) => {
                if rows.columns.is_empty() {
                    rows.columns = row.columns().iter().map(|column| sqlx::Column::name(column).to_owned()).collect();
                }
                bytes += decode(&row, &mut rows.cells)?;
                rows_count += 1;
            }
        }
    }
    Ok(rows)
}

/// Appends the row's cells, each by the type of its value: a column's declared type says little in SQLite.
fn decode(row: &SqliteRow, cells: &mut Vec<SqlValue>) -> sqlx::Result<usize> {
    let mut bytes = 0;
    for i in 0..row.len() {
        let raw = row.try_get_raw(i)?;
        let cell = if raw.is_null() {
            SqlValue::Null
        } else {
            match raw.type_info().name() {
                "INTEGER" => SqlValue::Integer(decoded(raw)?),
                "REAL" => SqlValue::Number(decoded(raw)?),
                "TEXT" => match String::from_utf8(decoded::<&[u8]>(raw)?.to_vec()) {
                    Ok(text) => SqlValue::Text(text),
                    // Made by hand: no statement of ours stores such a text.
                    Err(error) => SqlValue::Blob(error.into_bytes()),
                },
                _ => SqlValue::Blob(decoded(raw)?),
            }
        };
        bytes += CELL_BYTES
            + match &cell {
                SqlValue::Text(text) => text.len(),
                SqlValue::Blob(blob) => blob.len(),
                _ => 0,
            };
        cells.push(cell);
    }
    Ok(bytes)
}

fn decoded<'r, T: Decode<'r, Sqlite>>(raw: sqlx::sqlite::SqliteValueRef<'r>) -> sqlx::Result<T> {
    T::decode(raw).map_err(sqlx::Error::Decode)
}

fn took_too_long(name: &str) -> Error {
    Error {
        retry: Retry::Safe,
        ..Error::new(ErrorKind::Timeout, format!("a statement on `{name}` took longer than `timeout` allows"))
    }
}

/// The one place where sqlx's errors become the contract's.
fn translate(name: &str, error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
            from_sqlite(name, code, error.message())
        }
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
            Error::new(ErrorKind::Unavailable, format!("there is no connection to `{name}`"))
        }
        sqlx::Error::Io(error) => {
            Error::new(ErrorKind::Unavailable, format!("the database `{name}` cannot be reached: {}", error.kind()))
        }
        // The thread of the connection is gone, whatever it was doing.
        sqlx::Error::WorkerCrashed => Error {
            retry: Retry::UnknownOutcome,
            ..Error::new(ErrorKind::Internal, format!("the connection to `{name}` broke off"))
        },
        other => Error::new(ErrorKind::Internal, format!("`{name}`: {other}")),
    }
}

/// SQLite's result codes. Its messages name tables and columns, and never a path.
fn from_sqlite(name: &str, code: i32, message: &str) -> Error {
    let (kind, message) = match (code & 0xff, code) {
        (ffi::SQLITE_CONSTRAINT, ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY) => {
            (ErrorKind::AlreadyExists, message.to_owned())
        }
        (ffi::SQLITE_CONSTRAINT, _) => (ErrorKind::Rejected, message.to_owned()),
        (ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED | ffi::SQLITE_PROTOCOL, _) => {
            (ErrorKind::Timeout, format!("`{name}` was locked by somebody else for as long as `timeout` allows"))
        }
        (ffi::SQLITE_INTERRUPT, _) => return took_too_long(name),
        (ffi::SQLITE_FULL, _) => (ErrorKind::LimitExceeded, format!("`{name}`: {message}")),
        (ffi::SQLITE_TOOBIG | ffi::SQLITE_NOMEM, _) => (ErrorKind::LimitExceeded, format!("`{name}`: {message}")),
        (_, ffi::SQLITE_READONLY_DBMOVED) => {
            (ErrorKind::Unavailable, format!("the database `{name}` was moved or removed while it was in use"))
        }
        (ffi::SQLITE_READONLY, _) => (ErrorKind::Denied, format!("the database `{name}` cannot be written: {message}")),
        (ffi::SQLITE_PERM | ffi::SQLITE_AUTH, _) => (ErrorKind::Denied, format!("`{name}`: {message}")),
        (ffi::SQLITE_NOTADB, _) => (ErrorKind::Corrupt, format!("`{name}` is not an SQLite database")),
        (ffi::SQLITE_CORRUPT, _) => (ErrorKind::Corrupt, format!("the database `{name}` is damaged: {message}")),
        (ffi::SQLITE_CANTOPEN, _) => (ErrorKind::Unavailable, format!("the database `{name}` cannot be opened")),
        (ffi::SQLITE_IOERR | ffi::SQLITE_SCHEMA, _) => (ErrorKind::Unavailable, format!("`{name}`: {message}")),
        (ffi::SQLITE_ERROR | ffi::SQLITE_MISMATCH | ffi::SQLITE_RANGE, _) => {
            (ErrorKind::InvalidArgument, format!("the database refused a statement: {message}"))
        }
        _ => (ErrorKind::Internal, format!("`{name}`: {message} ({code})")),
    };
    let mut error = Error::new(kind, message);
    if kind == ErrorKind::Timeout {
        error.retry = Retry::Safe;
    }
    error
}
