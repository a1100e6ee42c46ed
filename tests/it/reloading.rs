//! Plugins that change while a host runs: another version of a component takes over under load, and what cannot be used is
//! refused and disturbs nobody.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use larder::error::Kind;
use larder::{Entity, ErrorKind, Existing, Expectation, Host, Reload, Repository, Select, Watch};
use tempfile::TempDir;

use crate::support::{Folder, guests, object, plugins};

const CONFIG: &str = r#"{"storage": {"strategy": "json", "json_strategy": {"base_path": "@/data"}, "stores": {
    "tables": {"strategy": "sql", "sql_strategy": {"name": "@/tables.db"}},
    "shelves": {"strategy": "shelf", "grants": {"files": {"directory": "@/shelves"}}},
    "ledgers": {"strategy": "ledger", "grants": {"files": {"directory": "@/ledgers"}}}
}}}"#;

/// Nobody waits that long on a machine that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host whose plugins directory is the test's own.
struct Site {
    host: Arc<Host>,
    watch: Watch,
    plugins: TempDir,
    _folder: Folder,
}

impl Site {
    /// With these components, as they were built.
    fn new(names: &[&str]) -> Site {
        let (folder, plugins) = (Folder::new(CONFIG), tempfile::tempdir().expect("a folder"));
        for name in names {
            std::fs::write(file(plugins.path(), name), built(name)).expect("a file");
        }
        let host = Arc::new(folder.host_with(plugins.path()));
        let watch = host.watch().expect("a directory that can be read");
        Site { host, watch, plugins, _folder: folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        file(self.plugins.path(), name)
    }

    /// Puts a component in its place as an installer does, at once.
    fn install(&self, name: &str, bytes: &[u8]) {
        let aside = self.plugins.path().join(format!(".{name}.new"));
        std::fs::write(&aside, bytes).expect("a file");
        std::fs::rename(aside, self.file(name)).expect("a rename");
    }

    async fn open(&self, store: &str) -> Repository {
        self.host.open(Some(store)).await.expect("a store that opens")
    }

    /// What became of the next change.
    async fn next(&mut self) -> Reload {
        let next = tokio::time::timeout(PATIENCE, self.watch.next()).await;
        next.expect("a change is noticed").expect("the host is there")
    }

    /// The stores that went over with the next change.
    async fn replaced(&mut self, name: &str) -> Vec<String> {
        match self.next().await {
            Reload::Replaced { plugin, stores, .. } if plugin == name => stores,
            other => panic!("{other:?}"),
        }
    }

    /// Why the next change is not taken.
    async fn refused(&mut self, name: &str) -> larder::Error {
        match self.next().await {
            Reload::Refused { plugin, error } if plugin == name => error,
            other => panic!("{other:?}"),
        }
    }
}

fn file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.wasm"))
}

fn built(name: &str) -> Vec<u8> {
    let directory = if file(&plugins(), name).exists() { plugins() } else { guests() };
    std::fs::read(file(&directory, name)).expect("a component that was built")
}

/// The same component in another build: with a section of its own, which means nothing.
fn another_build(name: &str, number: u8) -> Vec<u8> {
    let mut bytes = built(name);
    bytes.extend([0, 7, 5, b'b', b'u', b'i', b'l', b'd', number]);
    bytes
}

/// A component in which one text is another one of the same length.
fn altered(mut component: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut count = 0;
    for at in 0..component.len().saturating_sub(from.len()) {
        if component[at..].starts_with(from.as_bytes()) {
            component[at..at + to.len()].copy_from_slice(to.as_bytes());
            count += 1;
        }
    }
    assert!(count > 0, "there is no {from:?} in it");
    component
}

fn template(id: &str, n: u64) -> Vec<u8> {
    format!(
        r#"{{"template_id":"{id}","name":"Pool","provider_api":"RunInstances","vm_type":"t3.medium","max_number":{n}}}"#
    )
    .into_bytes()
}

/// All that an error says.
fn told(error: &larder::Error) -> String {
    format!("{}: {}\n{}", error.message, error.causes.join(": "), error.hint.as_deref().unwrap_or_default())
}

async fn save(repository: &Repository, id: &str, n: u64) -> u64 {
    let saved = repository.save("templates", &template(id, n), Expectation::Any).await;
    saved.unwrap_or_else(|error| panic!("{id}: {error:?}")).1.version
}

/// Clients that write and read without a pause while versions come and go: no call fails, no write is lost.
async fn check_under_load(plugin: &str, store: &str, builds: u8) {
    let mut site = Site::new(&["json", "sql"]);
    let repository = site.open(store).await;
    let bystander = site.open(if plugin == "json" { "tables" } else { "json" }).await;
    let before = bystander.plugin().sha256.clone();
    let (goes_on, written) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (repository, goes_on, written) = (repository.clone(), goes_on.clone(), written.clone());
            tokio::spawn(async move {
                let id = format!("t-{client}");
                let mut n = 0;
                while goes_on.load(Ordering::SeqCst) {
                    n += 1;
                    assert_eq!(save(&repository, &id, n).await, n, "a write was lost");
                    if n % 5 == 0 {
                        let mut transaction = repository.begin(None, false).await.expect("a transaction");
                        n += 1;
                        transaction
                            .save("templates", &template(&id, n), Expectation::Version(n - 1))
                            .await
                            .expect("a write");
                        transaction.commit().await.expect("a commit");
                    }
                    let found = repository.get_one("templates", &id).await.expect("a read").expect("an entity");
                    assert_eq!(object(&found.body)["max_number"].as_u64(), Some(n));
                    written.fetch_add(1, Ordering::SeqCst);
                }
                n
            })
        })
        .collect();
    for number in 0..builds {
        let done = written.load(Ordering::SeqCst);
        site.install(plugin, &another_build(plugin, number));
        assert_eq!(site.replaced(plugin).await, [repository.name()]);
        assert_ne!(repository.plugin().sha256, before);
        // With the new version too.
        let since = Instant::now();
        while written.load(Ordering::SeqCst) < done + 20 {
            assert!(since.elapsed() < PATIENCE, "nobody writes any more");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    goes_on.store(false, Ordering::SeqCst);
    let mut last = Vec::new();
    for client in clients {
        last.push(client.await.expect("a client that met no error"));
    }
    assert_eq!(bystander.plugin().sha256, before, "a store of another strategy is left alone");
    assert_eq!(site.host.close().await.len(), 0);
    let again = site.open(store).await;
    assert_eq!(again.plugin().sha256, repository.plugin().sha256);
    for (client, n) in last.into_iter().enumerate() {
        let found = again.get_one("templates", &format!("t-{client}")).await.expect("a read").expect("an entity");
        assert_eq!((found.version, object(&found.body)["max_number"].as_u64()), (n, Some(n)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_of_json_takes_over_under_load() {
    check_under_load("json", "json", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_of_sql_takes_over_under_load() {
    check_under_load("sql", "tables", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_then_is_the_new_version() {
    let mut site = Site::new(&["shelf"]);
    let shelves = site.open("shelves").await;
    save(&shelves, "a", 1).await;
    assert!(shelves.check(true).await.unwrap().contains_key("free_bytes"));
    site.install("shelf", &altered(built("shelf"), "\"free_bytes\"", "\"left_bytes\""));
    assert_eq!(site.replaced("shelf").await, ["shelves"]);
    let findings = shelves.check(true).await.unwrap();
    assert!(findings.contains_key("left_bytes") && !findings.contains_key("free_bytes"), "{findings:?}");
    assert_eq!(save(&shelves, "a", 2).await, 2);
    assert!(site.open("shelves").await.check(true).await.unwrap().contains_key("left_bytes"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_memory_alone_is_durable_before_it_goes() {
    let mut site = Site::new(&["ledger"]);
    let ledgers = site.open("ledgers").await;
    let entity = |id: &str| Entity { id: id.into(), version: 1, body: template(id, 1) };
    ledgers.load("templates", vec![entity("a"), entity("b")], Existing::Fail).await.unwrap();
    site.install("ledger", &another_build("ledger", 1));
    assert_eq!(site.replaced("ledger").await, ["ledgers"]);
    let ids = ["a", "b"].map(str::to_owned);
    let found = ledgers.get("templates", &ids).await.unwrap();
    assert!(found.iter().all(Option::is_some), "{found:?}");
    // Whoever loaded them learns that they are.
    ledgers.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_ends_on_the_version_that_it_began_on() {
    for (plugin, store) in [("json", "json"), ("sql", "tables")] {
        let mut site = Site::new(&[plugin]);
        let repository = site.open(store).await;
        save(&repository, "a", 1).await;
        let mut transaction = repository.begin(None, false).await.unwrap();
        transaction.save("templates", &template("a", 2), Expectation::Version(1)).await.unwrap();
        site.install(plugin, &another_build(plugin, 1));
        // Longer than it takes to be noticed.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        transaction.save("templates", &template("b", 1), Expectation::Absent).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(site.replaced(plugin).await, [store]);
        assert_eq!(repository.count("templates", None).await.unwrap(), 2, "{plugin}");
        assert_eq!(save(&repository, "a", 3).await, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_in_pages_goes_on_with_another_version() {
    for (plugin, store) in [("json", "json"), ("sql", "tables"), ("shelf", "shelves")] {
        let mut site = Site::new(&[plugin]);
        let repository = site.open(store).await;
        for n in 0..6 {
            save(&repository, &format!("t-{n}"), n).await;
        }
        let select = Select { limit: Some(4), ..Select::default() };
        let first = repository.query_page("templates", &select, None).await.unwrap();
        site.install(plugin, &another_build(plugin, 1));
        assert_eq!(site.replaced(plugin).await, [store]);
        let rest = repository.query_page("templates", &select, first.next.as_deref()).await.unwrap();
        let mut ids: Vec<_> = first.entities.iter().chain(&rest.entities).map(|entity| entity.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["t-0", "t-1", "t-2", "t-3", "t-4", "t-5"], "{plugin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_is_refused_and_the_version_before_it_stays() {
    let mut site = Site::new(&["shelf"]);
    let shelves = site.open("shelves").await;
    let before = shelves.plugin().sha256.clone();
    let not_wasm = b"a page of an installer that was cut short".to_vec();
    let other_name = altered(built("ledger"), "ledger", "legder");
    let other_schema =
        altered(built("shelf"), "\"additionalProperties\": false", "\"required\": [\"x\"], \"y\": 123  ");
    for (bytes, reason) in [
        (not_wasm, "not WebAssembly"),
        (other_name, "says that it is"),
        (other_schema, "`shelf_strategy.x` is missing"),
    ] {
        site.install("shelf", &bytes);
        let error = site.refused("shelf").await;
        let told = told(&error);
        assert!(told.contains(reason), "{told}");
        assert_eq!(site.host.refused_plugins()["shelf"].message, error.message);
        assert_eq!(shelves.plugin().sha256, before);
        save(&shelves, "a", 1).await;
        // Others open with what is in use, too.
        assert_eq!(site.open("shelves").await.plugin().sha256, before);
    }
    site.install("shelf", &another_build("shelf", 1));
    assert_eq!(site.replaced("shelf").await.first().map(String::as_str), Some("shelves"));
    assert!(site.host.refused_plugins().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_wants_more_than_a_store_grants_is_refused() {
    let mut site = Site::new(&["ledger"]);
    let ledgers = site.open("ledgers").await;
    let before = ledgers.plugin().sha256.clone();
    // The puppet under the name of the ledger: it wants a database.
    site.install("ledger", &altered(built("puppet"), "puppet", "ledger"));
    let error = site.refused("ledger").await;
    assert_eq!(error.kind, Kind::PluginRefused);
    let told = told(&error);
    assert!(told.contains("wants the capability `sql`") && told.contains("`ledgers`"), "{told}");
    assert!(told.contains(r#""grants": {"sql""#), "{told}");
    assert_eq!(ledgers.plugin().sha256, before);
    ledgers.get_one("templates", "a").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_still_copied_is_left_alone_until_it_is_there() {
    use std::io::Write;
    let mut site = Site::new(&["shelf"]);
    let shelves = site.open("shelves").await;
    let whole = another_build("shelf", 1);
    let mut copy = std::fs::File::create(site.file("shelf")).unwrap();
    let mut saves = 0;
    for piece in whole.chunks(whole.len() / 12) {
        saves += 1;
        copy.write_all(piece).unwrap();
        copy.sync_all().unwrap();
        save(&shelves, "a", 1).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    drop(copy);
    // It is the whole that is taken, and no part of it was even refused.
    assert_eq!(site.replaced("shelf").await, ["shelves"]);
    assert!(site.host.refused_plugins().is_empty());
    assert_eq!(save(&shelves, "a", 2).await, saves + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_file_takes_nothing_from_stores_that_are_open() {
    let mut site = Site::new(&["shelf", "json"]);
    let shelves = site.open("shelves").await;
    save(&shelves, "a", 1).await;
    std::fs::remove_file(site.file("shelf")).unwrap();
    assert!(matches!(site.next().await, Reload::Removed { plugin } if plugin == "shelf"));
    assert_eq!(save(&shelves, "a", 2).await, 2);
    let error = site.host.open(Some("shelves")).await.unwrap_err();
    assert_eq!(error.kind, Kind::PluginRefused);
    assert!(error.message.contains("`shelf` was removed from"), "{error:?}");
    site.open("json").await;

    // What comes in its place and is none leaves what is used.
    site.install("shelf", b"not yet");
    site.refused("shelf").await;
    assert_eq!(save(&site.open("shelves").await, "a", 3).await, 3);
    site.install("shelf", &another_build("shelf", 1));
    assert_eq!(site.replaced("shelf").await, ["shelves"]);
    assert_eq!(site.open("shelves").await.get_one("templates", "a").await.unwrap().unwrap().version, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_new_can_be_used() {
    let mut site = Site::new(&["json"]);
    let error = site.host.open(Some("shelves")).await.unwrap_err();
    assert_eq!(error.kind, Kind::PluginRefused);
    site.install("shelf", &built("shelf"));
    assert!(matches!(site.next().await, Reload::Added { plugin, .. } if plugin == "shelf"));
    save(&site.open("shelves").await, "a", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_watch_reloads_when_it_suits() {
    let folder = Folder::new(CONFIG);
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(file(directory.path(), "shelf"), built("shelf")).unwrap();
    let host = folder.host_with(directory.path());
    let shelves = host.open(Some("shelves")).await.unwrap();
    assert!(host.reload().await.is_empty(), "nothing has changed");
    std::fs::write(file(directory.path(), "shelf"), another_build("shelf", 1)).unwrap();
    let reloads = host.reload().await;
    assert!(
        matches!(&reloads[..], [Reload::Replaced { plugin, stores, .. }] if plugin == "shelf" && stores == &["shelves"]),
        "{reloads:?}"
    );
    save(&shelves, "a", 1).await;
    assert!(host.reload().await.is_empty());
}

/// Transactions without a pause keep the one instance; the new version waits in the same queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_always_busy_goes_over_between_two_transactions() {
    let config = CONFIG.replacen('{', r#"{"plugins": {"call_timeout": 1, "transaction_timeout": 2},"#, 1);
    let (folder, directory) = (Folder::new(&config), tempfile::tempdir().unwrap());
    std::fs::write(file(directory.path(), "json"), built("json")).unwrap();
    let host = folder.host_with(directory.path());
    let repository = host.open(Some("json")).await.unwrap();
    save(&repository, "a", 1).await;
    let before = repository.plugin().sha256.clone();
    std::fs::write(file(directory.path(), "json"), another_build("json", 1)).unwrap();
    let goes_on = Arc::new(AtomicBool::new(true));
    let (busy, client) = (goes_on.clone(), repository.clone());
    // One transaction after the other.
    let client = tokio::spawn(async move {
        while busy.load(Ordering::SeqCst) {
            if let Ok(transaction) = client.begin(None, false).await {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let _ = transaction.rollback().await;
            }
        }
    });
    let reloads = host.reload().await;
    // A queue is fair: it got its turn between two of them.
    assert!(matches!(&reloads[..], [Reload::Replaced { stores, .. }] if stores == &["json"]), "{reloads:?}");
    assert_ne!(repository.plugin().sha256, before);
    goes_on.store(false, Ordering::SeqCst);
    client.await.unwrap();
    assert_eq!(save(&repository, "a", 2).await, 2);
    let missing = repository.update("templates", "b", &template("b", 1), None).await.unwrap_err();
    assert!(missing.is(ErrorKind::NotFound));
}
