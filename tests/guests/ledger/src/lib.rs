//! A strategy whose writes are in its memory alone until `flush` appends them to one file, a line each: what is in the file
//! was flushed, and what is not goes with the instance. `check` says how many flushes there were.
//!
//! Some ids are something to do: to get `panic` or `spin` is that, to get `wait` makes a file `waiting` and lasts until there
//! is a file `go`, and a flush of `unwritable` or `deadly` fails. With `needs_no_flush` in its section it says that of the
//! store.

use larder_guest::{Files, Strategy};
use larder_model::{
    Batch, Collection, Description, Entity, Error, ErrorKind, Existing, Features, Isolation, Loaded, Opened, Outcome,
    Page, Query, Result, Violation, Write, filter::Filter,
};
use serde_json::{Value, json};

const FILE: &str = "ledger.txt";
const FILE_BYTES_MAX: u32 = 1 << 20;

#[cfg(target_family = "wasm")]
larder_guest::export_strategy!(crate::Ledger<larder_guest::HostFiles>);

/// An open store.
pub struct Ledger<F> {
    files: F,
    collections: Vec<Collection>,
    flushed: Vec<String>,
    unflushed: Vec<String>,
    flushes: u32,
}

impl<F: Files> Ledger<F> {
    fn entity(&self, collection: &str, id: &str) -> Result<Entity> {
        let found = self.collections.iter().find(|definition| definition.name == collection);
        let found = found.ok_or_else(|| Error::invalid(format!("there is no collection {collection:?}")))?;
        let body = json!({ (found.key.as_str()): id, "version": 1 }).to_string().into_bytes();
        Ok(Entity { id: id.to_owned(), version: 1, body })
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.flushed.iter().chain(&self.unflushed)
    }

    fn write(&mut self, writes: &[Write]) -> Vec<Outcome> {
        self.unflushed.extend(writes.iter().map(|write| write.target().1.to_owned()));
        vec![Outcome { version: 1, existed: false }; writes.len()]
    }
}

impl<F: Files + Default> Strategy for Ledger<F> {
    type Transaction = Vec<Write>;

    fn describe() -> Description {
        Description {
            strategy: "ledger".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: Features {
                deferred_sync: true,
                shared_state: true,
                transactions: true,
                atomic_apply: true,
                ..Features::default()
            },
            isolations: vec![Isolation::Serializable],
            max_atomic_writes: 0,
            max_entity_bytes: 1 << 20,
            config_schema: json!({
                "type": "object", "additionalProperties": false, "properties": {"needs_no_flush": {"type": "boolean"}}
            })
            .to_string(),
        }
    }

    fn open(config: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        let files = F::default();
        let bytes = files.read(FILE, 0, FILE_BYTES_MAX)?.unwrap_or_default();
        let flushed = String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect();
        let section: Value = serde_json::from_str(config).unwrap_or_default();
        let opened = Opened { needs_no_flush: section["needs_no_flush"] == true, ..Opened::default() };
        Ok((Ledger { files, collections, flushed, unflushed: Vec::new(), flushes: 0 }, opened))
    }

    fn stored_collections(&mut self) -> Result<Vec<String>> {
        Ok(vec!["templates".to_owned()])
    }

    fn prepare(&mut self, _dry_run: bool, _extend: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn check(&mut self, _thorough: bool) -> Result<String> {
        Ok(json!({ "flushes": self.flushes }).to_string())
    }

    fn flush(&mut self) -> Result<()> {
        self.flushes += 1;
        let lines = std::mem::take(&mut self.unflushed);
        if lines.iter().any(|line| line == "unwritable") {
            return Err(Error::new(ErrorKind::LimitExceeded, "this cannot be written"));
        }
        assert!(lines.iter().all(|line| line != "deadly"), "this cannot be flushed");
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.files.append(FILE, text.as_bytes())?;
        self.files.sync(FILE)?;
        self.flushed.extend(lines);
        Ok(())
    }

    fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let answer = |id: &String| match id.as_str() {
            "panic" => panic!("as it was asked for"),
            "spin" => loop {
                std::hint::black_box(());
            },
            "wait" => {
                self.files.append("waiting", b"\n")?;
                while self.files.read("go", 0, 1)?.is_none() {}
                Ok(None)
            }
            _ => self.all().any(|line| line == id).then(|| self.entity(collection, id)).transpose(),
        };
        ids.iter().map(answer).collect()
    }

    fn find(&mut self, collection: &str, query: &Query) -> Result<Page> {
        let entities: Result<Vec<Entity>> = self.all().map(|id| self.entity(collection, id)).collect();
        Ok(Page {
            entities: entities?,
            next: None,
            unapplied: (0..).take(query.filter.as_ref().map_or(0, |filter| filter.conjuncts().len())).collect(),
            sorted: query.order_by.is_empty(),
            index_used: None,
            notes: Vec::new(),
            cost: None,
        })
    }

    fn count(&mut self, _collection: &str, filter: Option<&Filter>) -> Result<Option<u64>> {
        Ok(filter.is_none().then(|| self.all().count() as u64))
    }

    fn scan(&mut self, collection: &str, _: u32, _: u32, _cursor: Option<&[u8]>, _: u32) -> Result<Batch> {
        let entities: Result<Vec<Entity>> = self.all().map(|id| self.entity(collection, id)).collect();
        Ok(Batch { entities: entities?, next: None })
    }

    fn apply(&mut self, writes: Vec<Write>, _atomic: bool, _now: &str) -> Result<Vec<Result<Outcome>>> {
        Ok(self.write(&writes).into_iter().map(Ok).collect())
    }

    fn load(&mut self, _collection: &str, entities: Vec<Entity>, _existing: Existing) -> Result<Loaded> {
        let written = entities.len() as u64;
        self.unflushed.extend(entities.into_iter().map(|entity| entity.id));
        Ok(Loaded { written, ..Loaded::default() })
    }

    fn validate(&mut self, _collection: &str, _entities: Vec<Entity>) -> Result<Vec<Violation>> {
        Ok(Vec::new())
    }

    fn begin(&mut self, _isolation: Option<Isolation>, _read_only: bool) -> Result<Vec<Write>> {
        Ok(Vec::new())
    }

    fn transaction_get(
        &mut self,
        _: &mut Vec<Write>,
        collection: &str,
        ids: &[String],
        _: bool,
    ) -> Result<Vec<Option<Entity>>> {
        self.get(collection, ids)
    }

    fn transaction_find(&mut self, _: &mut Vec<Write>, collection: &str, query: &Query) -> Result<Page> {
        self.find(collection, query)
    }

    fn transaction_apply(&mut self, gathered: &mut Vec<Write>, writes: Vec<Write>, _: &str) -> Result<Vec<Outcome>> {
        let count = writes.len();
        gathered.extend(writes);
        Ok(vec![Outcome { version: 1, existed: false }; count])
    }

    fn commit(&mut self, gathered: Vec<Write>) -> Result<()> {
        self.write(&gathered);
        Ok(())
    }

    fn rollback(&mut self, _gathered: Vec<Write>) -> Result<()> {
        Ok(())
    }
}
