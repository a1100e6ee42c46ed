//! Databases of PostgreSQL for tests, one each, on the cluster that `cargo xtask test` starts, and connections of the tests'
//! own to look into them.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use larder_test_cluster::{PROGRAMS_VARIABLE, SUPERUSER_URL_VARIABLE, URL_VARIABLE};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// A server and a user on it, who may make databases.
#[derive(Clone, Debug)]
pub struct Server {
    pub port: u16,
    pub user: String,
    pub password: String,
}

impl Server {
    /// As the role that a store would be given.
    pub fn shared() -> Server {
        Server::of(&variable(URL_VARIABLE))
    }

    /// As the superuser.
    pub fn shared_superuser() -> Server {
        Server::of(&variable(SUPERUSER_URL_VARIABLE))
    }

    /// Of a URL such as the cluster's, which is on the loopback interface.
    pub fn of(url: &str) -> Server {
        let parts = url.strip_prefix("postgres://").and_then(|rest| {
            let (user, rest) = rest.split_once(':')?;
            let (password, rest) = rest.split_once('@')?;
            let port = rest.strip_prefix("127.0.0.1:")?.split('/').next()?.parse().ok()?;
            Some(Server { port, user: user.to_owned(), password: password.to_owned() })
        });
        parts.unwrap_or_else(|| panic!("{URL_VARIABLE} is no postgres://USER:PASSWORD@127.0.0.1:PORT/DATABASE"))
    }

    /// A connection of the test's own, as another program would open one.
    pub async fn connect(&self, database: &str) -> PgConnection {
        self.try_connect(database).await.expect("a connection")
    }

    pub async fn try_connect(&self, database: &str) -> sqlx::Result<PgConnection> {
        PgConnection::connect_with(&self.options(database)).await
    }

    /// How another program would connect.
    pub fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(&self.user)
            .password(&self.password)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// What `sql_strategy` says of a database here, beside its `type`.
    pub fn members(&self, database: &str) -> String {
        let Server { port, user, password } = self;
        format!(
            r#""host": "127.0.0.1", "port": {port}, "name": "{database}", "username": "{user}", "password": "{password}""#
        )
    }
}

/// The folder of PostgreSQL's programs.
pub fn programs() -> std::path::PathBuf {
    variable(PROGRAMS_VARIABLE).into()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run the tests with `cargo xtask test`, which starts a PostgreSQL for them")
    })
}

/// A database with nothing in it. Dropped, it is gone, whoever is still connected.
#[derive(Debug)]
pub struct Database {
    pub server: Server,
    pub name: String,
}

impl Database {
    /// A new one. The word is a part of its name, for those who read the server's log.
    pub fn new(word: &str) -> Database {
        Database::on(Server::shared(), word)
    }

    /// A new one on another server.
    pub fn on(server: Server, word: &str) -> Database {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let database = Database { server, name: format!("it_{}_{number}_{word}", std::process::id()) };
        let (server, name) = (database.server.clone(), database.name.clone());
        apart(async move {
            server.connect("postgres").await.execute(statement("CREATE", &name, "")).await.expect("a database");
        });
        database
    }

    /// A connection of the test's own to it.
    pub async fn connect(&self) -> PgConnection {
        self.server.connect(&self.name).await
    }

    /// How many others are connected to it.
    pub async fn clients(&self) -> i64 {
        let mut connection = self.server.connect("postgres").await;
        let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
        sqlx::query_scalar(count).bind(&self.name).fetch_one(&mut connection).await.expect("a number")
    }

    /// Waits until nobody is connected to it any more.
    pub async fn is_left_alone(&self) {
        self.has_at_most(0).await;
    }

    /// Waits until so many are connected and no more. The server learns of an end a moment later.
    pub async fn has_at_most(&self, clients: i64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.clients().await;
            if found <= clients {
                return;
            }
            assert!(Instant::now() < deadline, "{found} are still connected, and {clients} should be");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What `sql_strategy` says of it, beside its `type`.
    pub fn members(&self) -> String {
        self.server.members(&self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        apart(async move {
            // Where a test has stopped the server there is nothing to drop.
            if let Ok(mut connection) = server.try_connect("postgres").await {
                let _ = connection.execute(statement("DROP", &name, " WITH (FORCE)")).await;
            }
        });
    }
}

fn statement(verb: &str, name: &str, more: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("{verb} DATABASE {name}{more}"))
}

/// Runs it on a thread of its own, from tests with a runtime and without one.
pub fn apart(work: impl Future<Output = ()> + Send + 'static) {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended = std::thread::spawn(move || runtime().block_on(work)).join();
    // While a test fails already, this is not what it fails for.
    if let Err(fault) = ended
        && !std::thread::panicking()
    {
        std::panic::resume_unwind(fault);
    }
}
