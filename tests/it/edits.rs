//! Documents are there to be edited: by an editor that writes a new file and renames it, and by one that writes into the old one,
//! while the store is open. An edit is seen at the next call; what nobody configured is kept; what is no document any more
//! is told of with its place, and never overwritten.

use larder::{Existing, Repository, Select};
use larder_model::{Entity, ErrorKind, Expectation};
use serde_json::Value;

use crate::place::template;
use crate::support::{Folder, object};

/// With a journal that is folded by closing alone, with one that is folded all the time, and without one.
const STORES: [(&str, &str); 3] =
    [("kept", "{}"), ("folded", r#"{"write_buffer_size": 0}"#), ("replaced", r#"{"journal": false}"#)];

const DOCUMENT: &str = r#"{
  "note": "edited by hand, as \u00e9 may stand here",
  "templates": {
    "a": {"template_id": "a", "n": 1.50},
    "b": {"template_id": "b", "n": 2}
  },
  "people": {"p": {"any": [1.50, "thing"], "none": null}}
}
"#;

/// A store in a folder, with a document that somebody wrote.
struct Edited {
    folder: Folder,
    document: String,
    repository: Repository,
}

impl Edited {
    async fn each() -> Vec<Edited> {
        let mut stores = Vec::new();
        for (name, section) in STORES {
            let mut section = object(section);
            section.insert("base_path".to_owned(), Value::from(format!("@/{name}")));
            let section = Value::Object(section);
            let config = format!(
                r#"{{"storage": {{"strategy": "json", "json_strategy": {section},
                    "stores": {{"{name}": {{"strategy": "json", "json_strategy": {section}}}}}}}}}"#
            );
            let folder = Folder::new(&config);
            let document = format!("{name}/request_database.json");
            folder.write(&document, DOCUMENT);
            let repository = folder.open(name).await;
            stores.push(Edited { folder, document, repository });
        }
        stores
    }

    fn text(&self) -> String {
        self.folder.read(&self.document)
    }

    /// Writes a new file and renames it.
    fn replace(&self, text: &str) {
        let new = format!("{}.swp", self.document);
        self.folder.write(&new, text);
        std::fs::rename(self.folder.path().join(new), self.folder.path().join(&self.document)).unwrap();
    }

    /// Writes into the file.
    fn overwrite(&self, text: &str) {
        self.folder.write(&self.document, text);
    }

    async fn n(&self, id: &str) -> Option<String> {
        let found = self.repository.get_one("templates", id).await.unwrap();
        found.map(|found| object(&found.body)["n"].to_string())
    }

    async fn save(&self, id: &str) {
        self.repository.save("templates", &template(id, r#","n":0"#), Expectation::Any).await.unwrap();
    }

    async fn ids(&self) -> Vec<String> {
        let found = self.repository.query("templates", Select::default()).collect().await.unwrap();
        let mut ids: Vec<_> = found.into_iter().map(|entity| entity.id).collect();
        ids.sort();
        ids
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_is_seen_at_the_next_call() {
    for store in Edited::each().await {
        assert_eq!(store.n("a").await.as_deref(), Some("1.50"));
        store.replace(&DOCUMENT.replace("1.50}", "3.25}"));
        assert_eq!(store.n("a").await.as_deref(), Some("3.25"));
        // As long as it was.
        store.overwrite(&DOCUMENT.replace("1.50}", "4.75}"));
        assert_eq!(store.n("a").await.as_deref(), Some("4.75"));
        store.overwrite(&DOCUMENT.replace(r#""b": {"template_id": "b""#, r#""c": {"template_id": "c""#));
        assert_eq!(store.ids().await, ["a", "c"]);
        store.replace(DOCUMENT);
        assert_eq!(store.repository.count("templates", None).await.unwrap(), 2);

        // What is written is written into what was edited, also after the store was closed and is used again.
        for edit in [Edited::replace, Edited::overwrite] {
            edit(&store, &DOCUMENT.replace("1.50}", "5}"));
            store.save("b").await;
            assert_eq!(store.n("a").await.as_deref(), Some("5"));
            store.repository.close().await.unwrap();
            assert_eq!(object(store.text())["templates"]["a"]["n"].to_string(), "5");
            edit(&store, &store.text().replace("\"n\": 5", "\"n\": 6"));
            assert_eq!(store.n("a").await.as_deref(), Some("6"));
            assert_eq!(store.n("b").await.as_deref(), Some("0"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_configured_is_kept_as_it_is_spelt() {
    for store in Edited::each().await {
        for round in 0..20 {
            store.save(&format!("t{}", round % 7)).await;
            store.repository.delete("templates", &format!("t{}", round % 3), None).await.unwrap();
        }
        store.repository.close().await.unwrap();
        let text = store.text();
        for kept in [
            r#""note": "edited by hand, as \u00e9 may stand here""#,
            r#""people": {"p": {"any": [1.50, "thing"], "none": null}}"#,
            r#""a": {"template_id": "a", "n": 1.50}"#,
        ] {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_document_any_more_is_never_overwritten() {
    let broken = [
        (DOCUMENT.replace("\"n\": 2}", "\"n\": 2,}"), "at line 5 column 3"),
        (DOCUMENT[..DOCUMENT.len() / 2].to_owned(), "at line "),
        (DOCUMENT.replace("thing", "\u{1}"), "at line 7 column "),
        (String::new(), "is empty"),
    ];
    for store in Edited::each().await {
        for (broken, place) in &broken {
            store.overwrite(DOCUMENT);
            assert_eq!(store.n("a").await.as_deref(), Some("1.50"));
            store.overwrite(broken);
            check_refused(&store, &store.repository, broken, place).await;
            // Somebody who opens it now fares no better.
            let opened = store.folder.open(store.repository.name()).await;
            check_refused(&store, &opened, broken, place).await;
        }
        // Repaired by hand, it is used again.
        store.replace(DOCUMENT);
        store.save("c").await;
        assert_eq!(store.ids().await, ["a", "b", "c"]);
        store.repository.close().await.unwrap();
        assert!(store.text().contains(r#""people": {"p": {"any": [1.50, "thing"], "none": null}}"#));
    }
}

/// Whatever is asked is `corrupt`, with the file and the place, and the file stays as it is.
async fn check_refused(store: &Edited, repository: &Repository, broken: &str, place: &str) {
    let check = |what: &str, error: larder::Error| {
        assert!(error.is(ErrorKind::Corrupt), "{what}: {error:?}");
        let message = format!("{error:?}");
        assert!(message.contains("request_database.json") && message.contains(place), "{what}: {message}");
        assert_eq!(store.text(), broken, "{what} wrote to a document that is corrupt");
    };
    let body = template("a", "");
    check("get", repository.get_one("templates", "a").await.unwrap_err());
    check("query", repository.query("templates", Select::default()).collect().await.unwrap_err());
    check("count", repository.count("templates", None).await.unwrap_err());
    check("save", repository.save("templates", &body, Expectation::Any).await.unwrap_err());
    check("save elsewhere", repository.save("machines", br#"{"machine_id":"m"}"#, Expectation::Any).await.unwrap_err());
    check("delete", repository.delete("templates", "a", None).await.unwrap_err());
    check("patch", repository.patch("templates", "a", &object(r#"{"n":3}"#), None, None).await.unwrap_err());
    let entities = vec![Entity { id: "a".to_owned(), version: 0, body }];
    check("load", repository.load("templates", entities, Existing::Overwrite).await.unwrap_err());
    let _ = repository.flush().await;
    assert_eq!(store.text(), broken, "flush wrote to a document that is corrupt");
    // There is nothing to put in order, or it cannot be.
    if let Err(error) = repository.close().await {
        check("close", error);
    }
    assert_eq!(store.text(), broken, "close wrote to a document that is corrupt");
}
