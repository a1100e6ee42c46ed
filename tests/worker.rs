//! A client in a process of its own, for tests that let many of them meet at a store and that kill them at any moment.
//!
//! `worker FOLDER STORE WORK ARGUMENTS`, in a folder with a `larder.json`. What was acknowledged is told on standard output, a line
//! each, as soon as it was.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use larder::{
    Config, Entity, ErrorKind, Existing, Expectation, Host, Isolation, Put, Removal, Repository, Select, Write,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    // Threads that nobody uses end soon, so that those that are left can be counted.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).thread_keep_alive(Duration::from_secs(1)).enable_all().build()?.block_on(run())
}

async fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [folder, store, work, ref rest @ ..] = *arguments else {
        return Err("usage: worker FOLDER STORE WORK ARGUMENTS".into());
    };
    let plugins = std::env::var_os("LARDER_TEST_PLUGINS").map(PathBuf::from);
    let host = Host::new(Config::load(Some(&Path::new(folder).join("larder.json")))?, plugins.as_deref())?;
    let repository = host.open(Some(store)).await?;
    match (work, rest) {
        ("commit", [name, first]) => commit(&repository, name, first.parse()?).await?,
        ("save", [name, count]) => save(&repository, name, count.parse()?).await?,
        ("increment", [id, count]) => increment(&repository, id, count.parse()?).await?,
        ("query", []) => query(&repository).await?,
        ("write", [seconds]) => write(&repository, Duration::from_secs(seconds.parse()?)).await?,
        ("hold", [id]) => hold(&repository, id).await?,
        ("endure", [calls]) => endure(&host, &repository, calls.parse()?).await?,
        _ => return Err(format!("unknown work: {work} {rest:?}").into()),
    }
    match host.close().await.into_iter().next() {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

fn tell(line: &str) {
    println!("{line}");
    std::io::stdout().flush().expect("somebody who listens");
}

/// A template that every store takes, with more members.
fn template(id: &str, more: &str) -> String {
    format!(
        r#"{{"template_id":"{id}","name":"Pool","provider_api":"RunInstances","vm_type":"t3.medium","max_number":10{more}}}"#
    )
}

/// One commit after the other, from number `first` on, until somebody ends it. Each writes its number into entities of two
/// collections, adds one that is only its own, and has another one come or go; some are transactions, and
/// after some a bulk load follows.
async fn commit(repository: &Repository, name: &str, first: u64) -> Result<()> {
    for n in first.. {
        let padding = "x".repeat(if n % 23 == 0 { 60_000 } else { n as usize % 50 * 20 });
        let put = |collection: &str, key: &str, id: String, expect| {
            let body = format!(r#"{{"{key}":"{id}","n":{n},"padding":"{padding}"}}"#).into_bytes();
            Write::Put(Put { collection: collection.into(), id, body, expect })
        };
        let mut writes = vec![
            put("requests", "request_id", format!("{name}-a"), Expectation::Any),
            put("requests", "request_id", format!("{name}-own-{n}"), Expectation::Absent),
            put("machines", "machine_id", format!("{name}-b"), Expectation::Any),
        ];
        let sometimes = format!("{name}-sometimes");
        writes.push(match n % 2 {
            1 => put("machines", "machine_id", sometimes, Expectation::Any),
            _ => {
                let expect = if n == first { Expectation::Any } else { Expectation::Present };
                Write::Remove(Removal { collection: "machines".into(), id: sometimes, expect })
            }
        });
        if n % 4 == 0 {
            // Nobody else writes these entities, so that nothing more is needed, and nobody has to begin again.
            let mut transaction = repository.begin(Some(Isolation::ReadCommitted), false).await?;
            let rest = writes.split_off(2);
            transaction.apply(writes).await?;
            transaction.apply(rest).await?;
            transaction.commit().await?;
        } else {
            repository.apply(writes, true).await?;
        }
        tell(&format!("commit {n}"));
        if n % 6 == 5 {
            let id = format!("{name}-loaded-{n}");
            let body = format!(r#"{{"template_id":"{id}","n":{n},"padding":"{padding}"}}"#).into_bytes();
            repository.load("templates", vec![Entity { id, version: 0, body }], Existing::Overwrite).await?;
            repository.flush().await?;
            tell(&format!("load {n}"));
        }
    }
    Ok(())
}

/// So many entities, each with a save of its own.
async fn save(repository: &Repository, name: &str, count: u64) -> Result<()> {
    for n in 0..count {
        let body = template(&format!("{name}-{n}"), &format!(r#","n":{n}"#));
        repository.save("templates", body.as_bytes(), Expectation::Absent).await?;
        tell(&n.to_string());
    }
    Ok(())
}

/// Reads the entity, adds 1 to its `n`, and writes it where nobody else did meanwhile; so many times.
async fn increment(repository: &Repository, id: &str, count: u64) -> Result<()> {
    for _ in 0..count {
        loop {
            let stored = repository.get_one("templates", id).await?.ok_or("there is nothing to count in")?;
            let n = stored.fields()?["n"].as_u64().ok_or("n is no number")?;
            let body = template(id, &format!(r#","n":{}"#, n + 1));
            match repository.update("templates", id, body.as_bytes(), Some(stored.version)).await {
                Ok(outcome) => break tell(&outcome.version.to_string()),
                Err(error) if error.is(ErrorKind::VersionConflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Reads everything again and again, until somebody ends it.
async fn query(repository: &Repository) -> Result<()> {
    loop {
        let found = repository.query("templates", Select::default()).collect().await?;
        tell(&found.len().to_string());
    }
}

/// Saves for so long; tells the microseconds that each took.
async fn write(repository: &Repository, time: Duration) -> Result<()> {
    let started = Instant::now();
    for n in 0.. {
        let body = template(&format!("written-{}", n % 50), &format!(r#","n":{n}"#));
        let called = Instant::now();
        repository.save("templates", body.as_bytes(), Expectation::Any).await?;
        tell(&called.elapsed().as_micros().to_string());
        if started.elapsed() >= time {
            break;
        }
    }
    Ok(())
}

/// Writes in a transaction that does not end before somebody ends the process.
async fn hold(repository: &Repository, id: &str) -> Result<()> {
    let mut transaction = repository.begin(None, false).await?;
    transaction.save("templates", template(id, r#","held":true"#).as_bytes(), Expectation::Any).await?;
    tell("holds");
    std::future::pending().await
}

/// Of so many calls, by 16 tasks at two stores of shipped strategies and at one that misbehaves, one in a hundred traps or
/// overruns its time. Tells what the process holds after a tenth of them and at the end.
async fn endure(host: &Host, hostile: &Repository, calls: u64) -> Result<()> {
    const TASKS: u64 = 16;
    let stores = Arc::new([host.open(Some("json")).await?, host.open(Some("sqlite")).await?]);
    let faults = Arc::new(AtomicU64::new(0));
    let mut from = 0;
    for (name, until) in [("before", calls / 10), ("after", calls)] {
        let mut tasks = Vec::new();
        for task in 0..TASKS {
            let (stores, hostile, faults) = (stores.clone(), hostile.clone(), faults.clone());
            tasks.push(tokio::spawn(async move {
                for n in (from..until).filter(|n| n % TASKS == task) {
                    if call(&stores, &hostile, n).await? {
                        faults.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok::<_, larder::Error>(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        from = until;
        // Files, connections and threads that nobody uses are kept for a second or two.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let mut connections = 0;
        for store in &stores[1..] {
            connections += store.check(true).await?["connections"]["open"].as_u64().ok_or("a database counts them")?;
        }
        let status = std::fs::read_to_string("/proc/self/status")?;
        let figure = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("the system tells it")?;
            Ok(line.split_whitespace().next().ok_or("a figure")?.parse()?)
        };
        let files = std::fs::read_dir("/proc/self/fd")?.count();
        tell(&format!("{name} {} {files} {} {connections}", figure("VmRSS:")?, figure("Threads:")?));
    }
    tell(&format!("faults {}", faults.load(Ordering::Relaxed)));
    tell(&format!("calls {calls}"));
    Ok(())
}

/// One of them. Says whether the plugin failed, which it has to where it is told to, and nowhere else.
async fn call(stores: &[Repository; 2], hostile: &Repository, n: u64) -> larder::Result<bool> {
    let deed = match n % 20_000 {
        50 => "sleep-long",
        _ if n % 200 == 99 => "spin",
        _ if n % 200 == 199 => "panic",
        _ if n.is_multiple_of(4) => "answer",
        _ => {
            let (store, id) = (&stores[n as usize % 2], format!("t{}", n / 2 % 500));
            match n % 40 {
                1..=2 => drop(store.save("templates", template(&id, "").as_bytes(), Expectation::Any).await?),
                _ => drop(store.get_one("templates", &id).await?),
            }
            return Ok(false);
        }
    };
    match (hostile.get_one("templates", deed).await, deed) {
        (Ok(_), "answer") => Ok(false),
        (Err(error), "spin" | "sleep-long") if error.is(ErrorKind::Timeout) => Ok(true),
        (Err(error), "panic") if error.kind == larder::error::Kind::Trap => Ok(true),
        // On a busy machine an answer may come late.
        (Err(error), "answer") if error.is(ErrorKind::Timeout) => Ok(true),
        (ended, _) => panic!("{deed}: {ended:?}"),
    }
}
