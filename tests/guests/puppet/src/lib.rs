//! A hostile strategy on strings: each id that it is asked for is something to do, such as `read ../secret` or
//! `sql ATTACH 'x' AS y`, and the entity that it answers tells what came of it. So the attempts stand in the tests, beside
//! what must become of them.
//!
//! It wants every capability, so a store that was granted less must not load it.

use std::net::ToSocketAddrs;
use std::time::Duration;

use larder_guest::{FileStat, Files, LockMode, Sql, SqlTransaction, SqlValue, Strategy};
use larder_model::{
    Batch, Collection, Description, Entity, Error, ErrorKind, Existing, Expectation, Features, Isolation, Loaded,
    Opened, Outcome, Page, Query, RestorePoint, Result, Violation, Write, filter::Filter, json,
};
use serde_json::{Value, json};

/// What it writes, so that tests can look for it where it should not be.
const MARK: &[u8] = b"the puppet was here";
const READ_BYTES_MAX: u32 = 1 << 20;
/// What would clear a terminal, turn around what is read and forge lines, if it got there.
const FORGED: &str = "x\u{1b}[2J\u{9b}2J\u{7f}\u{202e}\u{2028}\nforged: y\r\nforged: z";

#[cfg(target_family = "wasm")]
larder_guest::export_strategy!(crate::Puppet<larder_guest::HostFiles, larder_guest::HostSql>);

/// An open store.
pub struct Puppet<F, S> {
    files: F,
    sql: S,
    collections: Vec<Collection>,
    lie: String,
}

impl<F: Files, S: Sql> Puppet<F, S> {
    /// What came of it, in words.
    fn attempt(&self, deed: &str) -> Result<String> {
        let (verb, object) = deed.split_once(' ').unwrap_or((deed, ""));
        let files = &self.files;
        match verb {
            "read" => Ok(match files.read(object, 0, READ_BYTES_MAX)? {
                Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                None => "nothing".to_owned(),
            }),
            "read-part" => Ok(match files.read(object, 4, 6)? {
                Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                None => "nothing".to_owned(),
            }),
            "stat" => Ok(sizes(files.stat(object)?.into_iter())),
            "generation" => Ok(format!("{:?}", files.stat(object)?.map(|stat| stat.generation))),
            "append" => files.append(object, MARK).map(|stat| sizes([stat].into_iter())),
            "sync" => files.sync(object).map(|()| String::new()),
            "truncate" => files.truncate(object, 0).map(|()| String::new()),
            "remove" => files.remove(object).map(|existed| existed.to_string()),
            "entries" => files.entries(object).map(|entries| format!("{entries:?}")),
            "lock-twice" => {
                let (first, second) = object.split_once(' ').unwrap_or((object, ""));
                let mode = |name: &str| if name == "shared" { LockMode::Shared } else { LockMode::Exclusive };
                let held = files.try_acquire("twice", mode(first))?;
                let other = files.try_acquire("twice", mode(second))?;
                Ok(format!("{} {}", held.is_some(), other.is_some()))
            }
            "free-space" => files.free_space().map(|bytes| (bytes > 0).to_string()),
            "lock" => Ok(files.try_acquire(object, LockMode::Exclusive)?.is_some().to_string()),
            "replace" => self.replace(object, None),
            "keep-as" => self.replace("kept", Some(object)),
            "abandon" => {
                let replacement = files.replace(object)?;
                files.replacement_write(&replacement, MARK).map(|()| String::new())
            }
            "hold-locks" => {
                let mut held = Vec::new();
                loop {
                    held.push(files.try_acquire(&format!("lock-{}", held.len()), LockMode::Exclusive)?);
                }
            }
            "hold-replacements" => {
                let mut held = Vec::new();
                loop {
                    held.push(files.replace(&format!("file-{}", held.len()))?);
                }
            }
            "hold-transactions" => {
                let mut held = Vec::new();
                loop {
                    held.push(self.sql.begin(None, true)?);
                }
            }
            "dialect" => Ok(format!("{:?}", self.sql.dialect())),
            "database-size" => self.sql.size().map(|bytes| format!("{:?}", bytes.map(|bytes| bytes > 0))),
            "database-free-space" => self.sql.free_space().map(|bytes| format!("{:?}", bytes.map(|bytes| bytes > 0))),
            "connections" => {
                let it = self.sql.connections();
                let is_sound = it.idle <= it.open && it.open <= it.max;
                Ok(format!("{is_sound}: {} of {}", it.kept, it.max))
            }
            "sql-attempt" => {
                let transaction = self.sql.begin(None, false)?;
                let attempted = match transaction.attempt(object, Vec::new(), READ_BYTES_MAX) {
                    Ok(rows) => format!("{:?}", rows.cells),
                    Err(error) => error.kind.name().to_owned(),
                };
                let rows = transaction.query("SELECT count(*) FROM t", Vec::new(), READ_BYTES_MAX)?;
                transaction.commit()?;
                Ok(format!("{attempted}, then {:?}", rows.cells))
            }
            // The name of a table, then those of its columns, then the rows.
            "sql-copy" => {
                let object = with_controls(object);
                let mut words = object.splitn(3, '|');
                let [table, columns, rows] = [(); 3].map(|()| words.next().unwrap_or_default());
                let columns: Vec<&str> = columns.split(',').collect();
                let transaction = self.sql.begin_bulk()?;
                let copied = transaction.copy_in(table, &columns, rows.as_bytes())?;
                transaction.commit()?;
                Ok(copied.to_string())
            }
            "sql-copy-out" => {
                let packed = self.sql.copy_out(object, vec![SqlValue::Integer(4)], 1)?;
                Ok(format!("{} {}", packed.cells.escape_ascii(), packed.more))
            }
            "sql-sync" => self.sql.sync().map(|()| String::new()),
            "sql-parameters" => {
                let params = vec![SqlValue::Integer(7), SqlValue::Text("t".into()), SqlValue::Null];
                self.sql
                    .query(object, params, READ_BYTES_MAX)
                    .map(|rows| format!("{:?} {:?}", rows.columns, rows.cells))
            }
            "sql-cut" => {
                self.sql.query(object, Vec::new(), 1).map(|rows| format!("{} {}", rows.cells.len(), rows.more))
            }
            "sql-affected" => self.sql.query(object, Vec::new(), 0).map(|rows| rows.affected.to_string()),
            "sql-commit" => within(self.sql.begin(None, false)?, object, S::Transaction::commit),
            "sql-rollback" => within(self.sql.begin(None, false)?, object, S::Transaction::rollback),
            "sql-drop" => within(self.sql.begin(None, false)?, object, |_| Ok(())),
            "sql-read-only" => within(self.sql.begin(None, true)?, object, S::Transaction::commit),
            "sql-bulk" => within(self.sql.begin_bulk()?, object, S::Transaction::commit),
            "sql" => self.sql.query(object, Vec::new(), READ_BYTES_MAX).map(|rows| format!("{:?}", rows.cells)),
            "sql-with-controls" => {
                let text = with_controls(object);
                self.sql.query(&text, Vec::new(), READ_BYTES_MAX).map(|rows| format!("{:?}", rows.cells))
            }
            "sql-after-failure" => {
                let transaction = self.sql.begin(None, false)?;
                let _ = transaction.query("SELECT nothing FROM nowhere", Vec::new(), READ_BYTES_MAX);
                let rows = transaction.query(object, Vec::new(), READ_BYTES_MAX);
                transaction.rollback()?;
                rows.map(|rows| format!("{:?}", rows.cells))
            }
            "sql-in-transaction" => {
                let transaction = self.sql.begin(None, false)?;
                let rows = transaction.query(object, Vec::new(), READ_BYTES_MAX);
                transaction.rollback()?;
                rows.map(|rows| format!("{:?}", rows.cells))
            }
            // WASI is there for the standard library's sake, and leads nowhere.
            "open" => std::fs::read_to_string(object).map_err(|error| Error::invalid(error.to_string())),
            "list" => match std::fs::read_dir(object) {
                Ok(entries) => Ok(entries.count().to_string()),
                Err(error) => Err(Error::invalid(error.to_string())),
            },
            "connect" => match std::net::TcpStream::connect(object) {
                Ok(_) => Ok("connected".to_owned()),
                Err(error) => Err(Error::invalid(error.to_string())),
            },
            "environment" => Ok(format!("{:?} {:?}", std::env::vars().collect::<Vec<_>>(), std::env::args())),
            "spin" => loop {
                std::hint::black_box(());
            },
            "stat-forever" => loop {
                files.stat("absent")?;
            },
            "sleep-forever" => loop {
                std::thread::sleep(Duration::from_millis(1));
            },
            "sleep-long" => {
                std::thread::sleep(Duration::from_secs(3600));
                Ok(String::new())
            }
            "print-forever" => loop {
                println!("{}", "flood ".repeat(600));
            },
            "print-and-panic" => {
                for n in 0..2000 {
                    println!("line {n} of what nobody needs to read");
                }
                panic!("drowned");
            }
            "resolve" => match (object, 80).to_socket_addrs() {
                Ok(addresses) => Ok(format!("{:?}", addresses.collect::<Vec<_>>())),
                Err(error) => Err(Error::invalid(error.to_string())),
            },
            "allocate" => {
                let mut held = Vec::new();
                loop {
                    held.push(std::hint::black_box(vec![1_u8; 1 << 20]));
                }
            }
            "recurse" => Ok(descend(0).to_string()),
            "panic" => panic!("the puppet \u{1b}[31mpanics"),
            "fail" => Err(Error::new(ErrorKind::Rejected, "no \u{1b}[2Jscreen\nerror: forged")),
            "wait" => Err(Error::new(ErrorKind::Busy, "wait")),
            "answer" => Ok(String::new()),
            _ => Err(Error::invalid(format!("the puppet does not know how to {verb}"))),
        }
    }

    fn replace(&self, path: &str, keep_old_as: Option<&str>) -> Result<String> {
        let replacement = self.files.replace(path)?;
        self.files.replacement_write(&replacement, MARK)?;
        self.files.replacement_commit(replacement, keep_old_as, true).map(|stat| sizes([stat].into_iter()))
    }

    fn key(&self, collection: &str) -> Result<&str> {
        let found = self.collections.iter().find(|definition| definition.name == collection);
        let found = found.ok_or_else(|| Error::invalid(format!("there is no collection {collection:?}")))?;
        Ok(&found.key)
    }

    fn told(&self, collection: &str, id: &str, answer: &str, value: &str) -> Result<Entity> {
        let mut body = json!({ "answer": answer, "value": value, "version": 1 });
        body[self.key(collection)?] = Value::from(id);
        Ok(Entity { id: id.to_owned(), version: 1, body: body.to_string().into_bytes() })
    }

    fn some(&self, collection: &str) -> Result<Vec<Entity>> {
        Ok(vec![self.told(collection, "some", "ok", "")?])
    }

    fn lies(&self, what: &str) -> bool {
        self.lie == what
    }
}

/// One statement in a transaction, and how that ends.
fn within<T: SqlTransaction>(transaction: T, statement: &str, end: impl FnOnce(T) -> Result<()>) -> Result<String> {
    let rows = transaction.query(statement, Vec::new(), READ_BYTES_MAX)?;
    end(transaction)?;
    Ok(format!("{:?}", rows.cells))
}

/// An id has no control characters, so some stand in it by name.
fn with_controls(deed: &str) -> String {
    deed.replace("<tab>", "\t")
        .replace("<line>", "\n")
        .replace("<return>", "\r")
        .replace("<nul>", "\0")
        .replace("<six>", "\u{6}")
}

fn sizes(stats: impl Iterator<Item = FileStat>) -> String {
    stats.map(|stat| format!("{} bytes", stat.size)).collect::<Vec<_>>().join(", ")
}

/// Recursion that no compiler turns into a loop.
fn descend(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if std::hint::black_box(true) { descend(depth + 1) + frame[63] } else { frame[0] }
}

impl<F: Files + Default, S: Sql + Default> Strategy for Puppet<F, S> {
    type Transaction = Prop;

    fn describe() -> Description {
        Description {
            strategy: "puppet".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: Features { transactions: true, ..Features::default() },
            isolations: vec![Isolation::Serializable],
            max_atomic_writes: 0,
            max_entity_bytes: 1 << 20,
            config_schema: json!({
                "type": "object",
                "additionalProperties": false,
                "properties": { "lie": { "type": "string", "description": format!("Which answer is untrue. {FORGED}") } }
            })
            .to_string(),
        }
    }

    fn open(config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        let section = json::parse_object(config.as_bytes())?;
        let lie = section.get("lie").and_then(Value::as_str).unwrap_or_default().to_owned();
        match lie.as_str() {
            "panic in open" => panic!("before it began"),
            "spin in open" => loop {
                std::hint::black_box(());
            },
            _ => {}
        }
        let warnings = if lie == "forges" { vec![FORGED.to_owned()] } else { Vec::new() };
        let opened = Opened { has_rules: true, warnings, ..Opened::default() };
        Ok((Puppet { files: F::default(), sql: S::default(), collections, lie }, opened))
    }

    fn stored_collections(&mut self) -> Result<Vec<String>> {
        Ok(vec!["templates".to_owned()])
    }

    fn prepare(&mut self, _dry_run: bool, _extend: bool) -> Result<Vec<String>> {
        Ok(if self.lies("forges") { vec![FORGED.replace('\n', " ")] } else { Vec::new() })
    }

    fn check(&mut self, _thorough: bool) -> Result<String> {
        Ok(match self.lie.as_str() {
            "findings" => "all is well".to_owned(),
            "forges" => json!({ FORGED: FORGED, "findings": [{ "level": FORGED, "message": FORGED }] }).to_string(),
            _ => r#"{"reachable": true}"#.to_owned(),
        })
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        match self.lie.as_str() {
            "close" => Err(Error::new(ErrorKind::Unavailable, "the door \u{1b}[31mjams")),
            "panic at the end" => panic!("on the way out"),
            _ => Ok(()),
        }
    }

    fn restore_points(&mut self) -> Result<Vec<RestorePoint>> {
        let point = |name: &str| RestorePoint { name: name.to_owned(), description: "as it \u{1b}[2Jwas".to_owned() };
        Ok(match self.lie.as_str() {
            "one point twice" => vec![point("noon"), point("noon")],
            "a point of no name" => vec![point("no\non")],
            _ => vec![point("noon")],
        })
    }

    fn restore(&mut self, name: &str) -> Result<Vec<String>> {
        match name {
            "noon" => Ok(vec!["put \u{1b}[2Jthe hands back".to_owned(), "wound the clock".to_owned()]),
            _ => Err(Error::new(ErrorKind::NotFound, format!("there is no restore point {}", json::quoted(name)))),
        }
    }

    fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let key = self.key(collection)?;
        let mut answers = Vec::new();
        for id in ids {
            let bytes = |body: Vec<u8>| Entity { id: id.to_owned(), version: 1, body };
            let entity = |body: String| bytes(body.into_bytes());
            let answer = match id.as_str() {
                "answer less" => continue,
                "answer nothing" => {
                    answers.push(None);
                    continue;
                }
                "answer another" => self.told(collection, "another", "ok", "")?,
                "answer another key" => entity(json!({ key: "another" }).to_string()),
                "answer without a key" => entity("{}".to_owned()),
                "answer no object" => entity("[1]".to_owned()),
                "answer no JSON" => entity(format!("{{\"{key}\": ")),
                "answer a member twice" => entity(format!("{{\"{key}\": \"another\", \"{key}\": \"{id}\"}}")),
                "answer depth" => entity(format!("{{\"{key}\": \"{id}\", \"a\": {}", "[".repeat(1 << 16))),
                "answer no UTF-8" => {
                    bytes([br#"{"a": "\xff", "#, format!("\"{key}\": \"{id}\"}}").as_bytes()].concat())
                }
                "answer another version" => entity(json!({ key: id, "version": 2 }).to_string()),
                "answer a version that is none" => entity(json!({ key: id, "version": -1 }).to_string()),
                "answer far too much" => bytes(vec![b' '; 16 << 20]),
                "answer too much" => self.told(collection, id, "ok", &"x".repeat(1 << 20))?,
                "fail" | "wait" => return self.attempt(id).and(Ok(Vec::new())),
                _ => match self.attempt(id) {
                    Ok(value) => self.told(collection, id, "ok", &value)?,
                    Err(error) => self.told(collection, id, error.kind.name(), &error.message)?,
                },
            };
            answers.push(Some(answer));
            if id == "answer twice" {
                answers.push(None);
            }
        }
        Ok(answers)
    }

    fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        let mut page = Page {
            entities: self.some(collection)?,
            next: None,
            unapplied: Vec::new(),
            sorted: true,
            index_used: None,
            notes: Vec::new(),
            cost: None,
        };
        let cursor = query.cursor.as_deref().and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        match self.lie.as_str() {
            "forges" => {
                page.index_used = Some(FORGED.to_owned());
                page.notes = vec![FORGED.to_owned()];
                page.cost = Some((1.0, FORGED.to_owned()));
                page.entities = vec![self.told(collection, "some", FORGED, FORGED)?];
            }
            "endless pages" => {
                page.entities.clear();
                page.next = Some((cursor + 1).to_le_bytes().to_vec());
            }
            "cursors in a circle" => page.next = Some((cursor % 5 + 1).to_le_bytes().to_vec()),
            "unsorted" => {
                page.entities = vec![self.told(collection, "b", "ok", "")?, self.told(collection, "a", "ok", "")?];
            }
            "sorted within pages" => page.next = Some((cursor + 1).to_le_bytes().to_vec()),
            "negative cost" => page.cost = Some((-1.0, "coins".to_owned())),
            "more than a page" => page.entities = vec![page.entities[0].clone(); query.limit as usize + 1],
            "same cursor" => page.next = Some(b"again".to_vec()),
            "wrong key" => page.entities[0].id = "other".to_owned(),
            _ => {}
        }
        Ok(page)
    }

    fn count(&mut self, _collection: &str, _filter: Option<&Filter>) -> Result<Option<u64>> {
        Ok(self.lies("countless").then_some(u64::MAX))
    }

    fn scan(&mut self, collection: &str, _: u32, _: u32, cursor: Option<&[u8]>, max_bytes: u32) -> Result<Batch> {
        let next = self.lies("same cursor").then(|| b"again".to_vec());
        let mut batch = Batch { entities: self.some(collection)?, next };
        let cursor = cursor.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        match self.lie.as_str() {
            "endless pages" => batch.next = Some((cursor + 1).to_le_bytes().to_vec()),
            "cursors in a circle" => batch.next = Some((cursor % 5 + 1).to_le_bytes().to_vec()),
            "more than a batch" => {
                let large = self.told(collection, "large", "ok", &"x".repeat(1000))?;
                batch.entities = vec![large; max_bytes as usize / 1000 + 2];
            }
            _ => {}
        }
        if self.lies("wrong key") {
            batch.entities[0].id = "other".to_owned();
        }
        Ok(batch)
    }

    fn apply(&mut self, writes: Vec<Write>, _atomic: bool, _now: &str) -> Result<Vec<Result<Outcome>>> {
        let count = if self.lies("fewer results") { writes.len() - 1 } else { writes.len() };
        if self.lies("panic") {
            panic!("in the middle of a write");
        }
        let outcome = |write: &Write| match (self.lie.as_str(), expected(write)) {
            ("version back", Expectation::Version(version)) => Outcome { version: version - 1, existed: true },
            ("version stays", Expectation::Version(version)) => Outcome { version, existed: true },
            ("version 0", _) => Outcome { version: 0, existed: false },
            ("wrote what was there", _) => Outcome { version: 2, existed: true },
            ("wrote what was not there", _) => Outcome { version: 1, existed: false },
            (_, Expectation::Version(version)) => Outcome { version: version + 1, existed: true },
            (_, expect) => Outcome { version: 1, existed: expect == Expectation::Present },
        };
        Ok(writes.iter().take(count).map(|write| Ok(outcome(write))).collect())
    }

    fn load(&mut self, _collection: &str, entities: Vec<Entity>, _existing: Existing) -> Result<Loaded> {
        let count = entities.len() as u64;
        let refusal = Error::new(ErrorKind::Rejected, "no");
        Ok(match self.lie.as_str() {
            "written" => Loaded { written: u64::MAX, unchanged: count, ..Loaded::default() },
            "refused twice" => Loaded { refused: vec![(0, refusal.clone()), (0, refusal)], ..Loaded::default() },
            "refused" => Loaded { written: count - 1, refused: vec![(9, refusal)], ..Loaded::default() },
            // It says that it wrote them.
            _ => Loaded { written: count, ..Loaded::default() },
        })
    }

    fn validate(&mut self, _collection: &str, _entities: Vec<Entity>) -> Result<Vec<Violation>> {
        let rule = "a rule".to_owned();
        Ok(if self.lies("violation") { vec![Violation { entity: 99, rule }] } else { Vec::new() })
    }

    fn begin(&mut self, _isolation: Option<Isolation>, _read_only: bool) -> Result<Prop> {
        Ok(Prop { breaks: self.lies("panic in a destructor") })
    }

    fn transaction_get(
        &mut self,
        _: &mut Prop,
        collection: &str,
        ids: &[String],
        _: bool,
    ) -> Result<Vec<Option<Entity>>> {
        self.get(collection, ids)
    }

    fn transaction_find(&mut self, _: &mut Prop, collection: &str, query: &Query) -> Result<Page> {
        self.find(collection, query)
    }

    fn transaction_apply(&mut self, _: &mut Prop, writes: Vec<Write>, now: &str) -> Result<Vec<Outcome>> {
        self.apply(writes, true, now)?.into_iter().collect()
    }

    fn commit(&mut self, _: Prop) -> Result<()> {
        assert!(!self.lies("panic in commit"), "at the last moment");
        Ok(())
    }

    fn rollback(&mut self, _: Prop) -> Result<()> {
        Ok(())
    }
}

/// An open transaction of the puppet's.
pub struct Prop {
    breaks: bool,
}

impl Drop for Prop {
    fn drop(&mut self) {
        assert!(!self.breaks, "while it was put away");
    }
}

fn expected(write: &Write) -> Expectation {
    match write {
        Write::Put(put) => put.expect,
        Write::Remove(removal) => removal.expect,
    }
}
