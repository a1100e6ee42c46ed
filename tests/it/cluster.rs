//! PostgreSQL clusters of a test's own, to be stopped and killed, and a network before one that is cut at the worst moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder::repository::Repository;
use larder_test_cluster::{Cluster, Settings, Stop};
use sqlx::PgConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use crate::databases::{Database, Server, programs};
use crate::support::Folder;

/// A server, a database on it, and a store `tables` in that. The first to go is the store's folder, the last the server.
pub struct Site {
    pub folder: Folder,
    pub database: Database,
    pub cluster: Cluster,
}

impl Site {
    /// `members` are more of `sql_strategy`, each preceded by a comma.
    pub fn new(settings: Settings, members: &str) -> Site {
        let cluster = Cluster::start(&programs(), settings).expect("a cluster");
        let database = Database::on(Server::of(&cluster.url("postgres")), "own");
        let folder = Folder::new(&config(&database.members(), members));
        Site { folder, database, cluster }
    }

    pub async fn open(&self) -> Repository {
        self.folder.open("tables").await
    }

    /// A connection of the test's own.
    pub async fn connect(&self) -> PgConnection {
        self.database.connect().await
    }

    pub fn stop(&mut self, how: Stop) {
        self.cluster.stop(how).expect("a server that stops");
    }

    pub fn start_again(&mut self) {
        self.cluster.start_again().expect("a server that starts");
    }
}

/// A configuration with a store `tables` in a database.
pub fn config(database: &str, members: &str) -> String {
    format!(
        r#"{{"storage": {{"strategy": "tables", "stores": {{
            "tables": {{"strategy": "sql", "sql_strategy": {{"type": "postgresql", {database}{members}}}}}
        }}}}}}"#
    )
}

/// What becomes of the connection that sends a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It is cut, and the server never sees the commit.
    Before,
    /// The server has committed, and the answer is lost with the connection.
    After,
    /// The server has committed, and the answer never comes.
    Silence,
}

/// A network between clients and the server on a port, which are not to encrypt.
pub struct Network {
    pub port: u16,
    next: Arc<Mutex<Option<Cut>>>,
    cuts: Arc<AtomicU64>,
}

impl Network {
    pub async fn before(server: u16) -> Network {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (next, cuts) = (Arc::default(), Arc::default());
        let network = Network { port, next: Arc::clone(&next), cuts: Arc::clone(&cuts) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, Arc::clone(&next), Arc::clone(&cuts)));
            }
        });
        network
    }

    /// What is done to the next commit.
    pub async fn cut(&self, cut: Cut) {
        *self.next.lock().await = Some(cut);
    }

    /// How many commits something was done to.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }
}

/// Carries what client and server say, until one of them has ended or the connection is cut.
async fn carry(mut client: TcpStream, server: u16, next: Arc<Mutex<Option<Cut>>>, cuts: Arc<AtomicU64>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let (mut said, mut begun) = (Vec::new(), false);
    let mut after = None;
    let (mut from_client, mut from_server) = ([0; 1 << 16], [0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(count @ 1..) = read else { return };
                said.extend_from_slice(&from_client[..count]);
                while let Some(message) = message(&mut said, &mut begun) {
                    let is_commit = message[0] == b'Q' && message[5..].starts_with(b"COMMIT");
                    let cut = if is_commit { next.lock().await.take() } else { None };
                    if let Some(cut) = cut {
                        cuts.fetch_add(1, Ordering::SeqCst);
                        if cut == Cut::Before {
                            return;
                        }
                        after = Some(cut);
                    }
                    if server.write_all(&message).await.is_err() {
                        return;
                    }
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(count @ 1..) = read else { return };
                match after {
                    None if client.write_all(&from_server[..count]).await.is_ok() => {}
                    Some(Cut::Silence) => tokio::time::sleep(Duration::from_secs(60)).await,
                    _ => return,
                }
            }
        }
    }
}

/// The next whole message of a client: the first one has no letter before its length.
fn message(said: &mut Vec<u8>, begun: &mut bool) -> Option<Vec<u8>> {
    let letter = usize::from(*begun);
    let length: [u8; 4] = said.get(letter..letter + 4)?.try_into().expect("four bytes");
    let end = letter + u32::from_be_bytes(length) as usize;
    if said.len() < end {
        return None;
    }
    *begun = true;
    Some(said.drain(..end).collect())
}
