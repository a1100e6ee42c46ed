//! A client in a process of its own, for tests that let many of them meet at a store and that kill them at any moment.
//!
//! `worker FOLDER STORE WORK ARGUMENTS`, in a folder with a `larder.json`. What was acknowledged is told on standard output, a line
//! each, as soon as it was.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder::{
    Config, Entity, ErrorKind, Existing, Expectation, Host, Isolation, Put, Removal, Repository, Select, Write,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
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
