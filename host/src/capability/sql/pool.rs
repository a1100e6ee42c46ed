//! Connections to a database, and their lending: a few are kept, more come and go with the load.
//!
//! A [`Lease`] is a connection for the time of a statement or of a transaction. However it ends, by a return, by an error
//! or because the caller went away, the connection is then outside of any transaction and in the middle of nothing, or it
//! is closed. The pool asks no connection whether it is still good: that would cost as much as a statement each time.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use deadpool::managed::{self, Manager, Metrics, Object, PoolError, RecycleError, RecycleResult};
use larder_model::{Error, ErrorKind, Result, Retry};

use super::Connections;

/// How long a connection beyond those that are kept waits for its next use. Closed at its release, it would be opened anew
/// for the next of many callers, which costs as much as ten statements.
const OVERFLOW_IDLE: Duration = Duration::from_secs(1);

/// How long closing waits for connections that are still lent, such as one that is rolling back.
const CLOSING_MAX: Duration = Duration::from_secs(5);
const CLOSING_PAUSE: Duration = Duration::from_millis(1);

/// How a database is connected to.
pub(super) trait Connector: Send + Sync + 'static {
    type Connection: Send + 'static;

    fn connect(&self) -> impl Future<Output = Result<Self::Connection>> + Send;
    /// Ends the transaction that may be open, and says whether none is.
    fn roll_back(connection: &mut Self::Connection) -> impl Future<Output = bool> + Send;
    /// In order: both sides know.
    fn close(connection: Self::Connection) -> impl Future<Output = ()> + Send;
}

/// What a pool holds itself to.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    /// Connections that are kept, at least 1.
    pub(super) kept: u32,
    /// More of them under load.
    pub(super) overflow: u32,
    /// For a free connection, or a new one.
    pub(super) timeout: Duration,
    /// The age at which a connection is replaced; none for never.
    pub(super) recycle: Option<Duration>,
}

impl Bounds {
    fn max(&self) -> u32 {
        self.kept.saturating_add(self.overflow)
    }

    /// With no connection made yet.
    pub(super) fn connections(&self) -> Connections {
        Connections { open: 0, idle: 0, kept: self.kept, max: self.max() }
    }
}

/// The connections to one database. Clones share them.
pub(super) struct Pool<C: Connector> {
    lent: managed::Pool<Lender<C>>,
    bounds: Arc<Bounds>,
    /// The database, as a message says it.
    name: Arc<str>,
    /// Whether a task sees to it that no more are kept than should be.
    is_shrinking: Arc<AtomicBool>,
}

impl<C: Connector> Clone for Pool<C> {
    fn clone(&self) -> Self {
        Pool {
            lent: self.lent.clone(),
            bounds: Arc::clone(&self.bounds),
            name: Arc::clone(&self.name),
            is_shrinking: Arc::clone(&self.is_shrinking),
        }
    }
}

/// The connector, as the pool takes one.
struct Lender<C> {
    connector: C,
    recycle: Option<Duration>,
}

impl<C: Connector> Manager for Lender<C> {
    type Type = C::Connection;
    type Error = Error;

    async fn create(&self) -> Result<C::Connection> {
        self.connector.connect().await
    }

    async fn recycle(&self, _: &mut C::Connection, metrics: &Metrics) -> RecycleResult<Error> {
        match self.recycle.is_some_and(|age| metrics.age() >= age) {
            true => Err(RecycleError::message("it is old")),
            false => Ok(()),
        }
    }
}

impl<C: Connector> Pool<C> {
    /// Opens nothing before it is asked.
    pub(super) fn new(connector: C, bounds: Bounds, name: &str) -> Pool<C> {
        let lender = Lender { connector, recycle: bounds.recycle };
        let builder = managed::Pool::builder(lender).max_size(bounds.max() as usize);
        let lent = builder.build().expect("it needs no runtime: it is given no time-out");
        Pool { lent, bounds: Arc::new(bounds), name: name.into(), is_shrinking: Arc::default() }
    }

    pub(super) fn connections(&self) -> Connections {
        let status = self.lent.status();
        let open = status.size as u32;
        Connections { open, idle: (status.available as u32).min(open), ..self.bounds.connections() }
    }

    pub(super) async fn lease(&self) -> Result<Lease<C>> {
        let connection = match tokio::time::timeout(self.bounds.timeout, self.lent.get()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(PoolError::Backend(error))) => return Err(error),
            Ok(Err(_)) => {
                let message = format!("the connections to {} were closed meanwhile", self.name);
                return Err(Error { retry: Retry::Safe, ..Error::new(ErrorKind::Unavailable, message) });
            }
            Err(_) => {
                let (name, seconds) = (&self.name, self.bounds.timeout.as_secs_f64());
                let status = self.lent.status();
                let message = match status.size < status.max_size {
                    true => format!("{name} did not answer within {seconds} s (pool_timeout)"),
                    false => format!("no connection to {name} came free within {seconds} s (pool_timeout)"),
                };
                return Err(Error { retry: Retry::Safe, ..Error::new(ErrorKind::Timeout, message) });
            }
        };
        let is_used = Object::metrics(&connection).recycle_count > 0;
        let pool = self.clone();
        Ok(Lease {
            connection: Some(connection),
            pool,
            is_used,
            in_transaction: false,
            statement_time: None,
            broken: false,
            is_dropped: false,
        })
    }

    /// Drops idle connections: where one turned out to be dead, the others of its age are not tried one by one.
    pub(super) fn forget_idle(&self) {
        self.lent.retain(|_, _| false);
    }

    /// Closes every connection, those that are lent when they come back.
    pub(super) async fn close(&self) {
        let closing = async {
            loop {
                for connection in self.lent.retain(|_, _| false).removed {
                    C::close(connection).await;
                }
                if self.lent.status().size == 0 {
                    break;
                }
                tokio::time::sleep(CLOSING_PAUSE).await;
            }
        };
        let _ = tokio::time::timeout(CLOSING_MAX, closing).await;
        self.lent.close();
    }

    /// Sees to it that connections beyond those that are kept are closed when nobody has used them for a while.
    fn shrink(&self, runtime: &tokio::runtime::Handle) {
        let beyond = |pool: &Self| pool.lent.status().size.saturating_sub(pool.bounds.kept as usize);
        if beyond(self) == 0 || self.is_shrinking.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = self.clone();
        runtime.spawn(async move {
            while beyond(&pool) > 0 && !pool.lent.is_closed() {
                tokio::time::sleep(OVERFLOW_IDLE).await;
                let mut beyond = beyond(&pool);
                let closed = pool.lent.retain(|_, metrics| {
                    let stays = beyond == 0 || metrics.last_used() < OVERFLOW_IDLE;
                    beyond -= usize::from(!stays);
                    stays
                });
                for connection in closed.removed {
                    C::close(connection).await;
                }
            }
            pool.is_shrinking.store(false, Ordering::Release);
        });
    }
}

/// A connection on loan from its pool.
pub(super) struct Lease<C: Connector> {
    connection: Option<Object<Lender<C>>>,
    pool: Pool<C>,
    /// It served others before.
    pub(super) is_used: bool,
    pub(super) in_transaction: bool,
    /// How long a statement may take, where that is not what the pool's settings say.
    pub(super) statement_time: Option<Duration>,
    /// It may be in the middle of something, or is gone: it is closed.
    pub(super) broken: bool,
    /// It was dropped and has a task that rolls back. At the end of the runtime the task is dropped, and a new one would be
    /// dropped at once, in a circle: it is closed.
    is_dropped: bool,
}

impl<C: Connector> Lease<C> {
    pub(super) fn connection(&mut self) -> &mut C::Connection {
        self.connection.as_mut().expect("it is taken only when it ends")
    }

    pub(super) async fn roll_back(&mut self) {
        if self.in_transaction && !self.broken {
            // Whoever drops this leaves a connection that is in the middle of it.
            self.broken = true;
            self.broken = !C::roll_back(self.connection()).await;
            self.in_transaction = false;
        }
    }

    pub(super) fn give_back(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let runtime = tokio::runtime::Handle::try_current();
        // Without a runtime the program is at its end.
        if self.broken || self.in_transaction || self.statement_time.is_some() || runtime.is_err() {
            drop(Object::take(connection));
            return;
        }
        drop(connection);
        if let Ok(runtime) = runtime {
            self.pool.shrink(&runtime);
        }
    }
}

impl<C: Connector> Drop for Lease<C> {
    fn drop(&mut self) {
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.in_transaction && !self.broken && !self.is_dropped && self.connection.is_some() => {
                let (connection, pool) = (self.connection.take(), self.pool.clone());
                let mut lease = Lease { connection, pool, is_dropped: true, ..*self };
                runtime.spawn(async move {
                    lease.roll_back().await;
                    lease.give_back();
                });
            }
            _ => self.give_back(),
        }
    }
}
