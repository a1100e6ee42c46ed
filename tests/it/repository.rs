//! What the contract promises of a repository: one body a promise, run on every strategy. What only one strategy can
//! keep, a file that a person reads or a table that another program queries, follows at the end.

use std::collections::BTreeSet;
use std::fmt::Debug;

use larder::error::Error;
use larder::query::Select;
use larder::repository::Repository;
use larder_model::filter::{self, Filter};
use larder_model::{Entity, ErrorKind, Existing, Expectation, Put, Removal, SortKey, Write, json};
use serde_json::Value;
use sqlx::{Executor, Row};

use crate::support::{Folder, assert_same_object, object};

/// Every way to store, each in a place of its own.
const STORES: &str = r#"{
  "storage": {
    "strategy": "single",
    "stores": {
      "single": {"strategy": "json", "json_strategy": {"base_path": "@/single"}},
      "split": {"strategy": "json", "json_strategy": {"storage_type": "split_files", "base_path": "@/split"}},
      "strict": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/strict.db"}},
      "relaxed": {"strategy": "sql", "sql_strategy": {"type": "sqlite", "name": "@/relaxed.db", "constraints": "relaxed"}}
    }
  }
}"#;

/// A store that nothing was written to yet.
struct Place {
    folder: Folder,
    store: &'static str,
}

impl Place {
    fn new(store: &'static str) -> Place {
        Place { folder: Folder::new(STORES), store }
    }

    /// A handle of its own: another host, another instance of the strategy.
    async fn open(&self) -> Repository {
        self.folder.open(self.store).await
    }
}

/// Makes an ordinary test of each body for every strategy.
macro_rules! on_every_strategy {
    ($($body:ident,)*) => {
        on_every_strategy!(json_single_file "single" $($body)*);
        on_every_strategy!(json_split_files "split" $($body)*);
        on_every_strategy!(sql_strict "strict" $($body)*);
        on_every_strategy!(sql_relaxed "relaxed" $($body)*);
    };
    ($module:ident $store:literal $($body:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $body() {
                    super::$body(super::Place::new($store)).await;
                }
            )*
        }
    };
}

on_every_strategy! {
    a_save_creates_an_entity_or_replaces_the_whole_of_it,
    a_save_takes_effect_only_where_its_expectation_holds,
    an_update_needs_a_stored_entity_of_the_expected_version,
    a_delete_says_whether_the_entity_was_there,
    versions_start_at_one_or_where_the_body_says_and_then_count,
    times_are_stamped_once_for_creation_and_each_time_for_updates,
    machines_get_no_time_of_update_unless_they_have_one,
    get_answers_in_the_order_asked_for_with_gaps_for_what_is_absent,
    ids_that_look_alike_are_different_entities,
    ids_are_bounded_and_printable,
    filters_hold_for_what_the_contract_says,
    answers_are_sorted_across_types_and_limited,
    an_answer_of_many_pages_has_every_entity_once,
    an_unknown_index_is_refused,
    an_export_has_every_entity_once,
    load_stamps_nothing_and_says_what_became_of_each_entity,
    load_refuses_what_is_no_entity_and_stores_the_others,
    an_atomic_apply_is_all_or_nothing_and_names_the_write_that_failed,
    an_atomic_apply_spans_collections_and_refuses_one_entity_twice,
    an_apply_that_is_not_atomic_answers_each_write,
    a_transaction_sees_its_own_writes_and_happens_as_one_or_not_at_all,
    an_unknown_collection_is_invalid_and_never_empty,
    bodies_that_are_no_entities_are_refused_and_nothing_is_stored,
    a_body_larger_than_the_strategy_takes_is_refused,
    awkward_values_come_back_as_they_were_written,
    a_second_handle_sees_the_writes_of_the_first,
    a_store_that_is_not_there_yet_reads_as_empty_and_is_not_made_by_reading,
    handles_that_write_at_once_lose_no_update,
    processes_that_write_at_once_lose_no_entity,
}

/// A template with what the strict tables require, and more members, each preceded by a comma.
fn template(id: &str, more: &str) -> Vec<u8> {
    let number = if more.contains("\"max_number\"") { "" } else { r#","max_number":10"# };
    format!(
        r#"{{"template_id":{},"name":"Pool","provider_api":"RunInstances","vm_type":"t3.medium"{number}{more}}}"#,
        Value::from(id)
    )
    .into_bytes()
}

fn put(id: &str, more: &str, expect: Expectation) -> Write {
    Write::Put(Put { collection: "templates".into(), id: id.into(), body: template(id, more), expect })
}

fn removal(id: &str, expect: Expectation) -> Write {
    Write::Remove(Removal { collection: "templates".into(), id: id.into(), expect })
}

fn loadable(id: &str, more: &str) -> Entity {
    let body = template(id, more);
    let version = object(&body).get("version").and_then(Value::as_u64).unwrap_or(0);
    Entity { id: id.into(), version, body }
}

/// One stored entity's members.
async fn stored(repository: &Repository, collection: &str, id: &str) -> serde_json::Map<String, Value> {
    match repository.get(collection, &[id.to_owned()]).await.expect("an answer").remove(0) {
        Some(entity) => {
            let members = object(&entity.body);
            assert_eq!(entity.id, id);
            assert_eq!(Some(entity.version), members["version"].as_u64().or(Some(0)), "{members:?}");
            members
        }
        None => panic!("{collection} has no `{id}`"),
    }
}

async fn is_stored(repository: &Repository, id: &str) -> bool {
    repository.get("templates", &[id.to_owned()]).await.expect("an answer")[0].is_some()
}

#[track_caller]
fn refused<T: Debug>(result: Result<T, impl Into<Error>>, kind: ErrorKind) -> Error {
    let error: Error = result.expect_err("a refusal").into();
    assert!(error.is(kind), "{error:?} is not {kind:?}");
    error
}

async fn save(repository: &Repository, id: &str, more: &str) -> u64 {
    let (saved, outcome) =
        repository.save("templates", &template(id, more), Expectation::Any).await.expect("a saved entity");
    assert_eq!(saved, id);
    outcome.version
}

async fn a_save_creates_an_entity_or_replaces_the_whole_of_it(place: Place) {
    let repository = place.open().await;
    let first = template("a", r#","image_id":"ami-1","spot":{"price":0.42}"#);
    let (id, outcome) = repository.save("templates", &first, Expectation::Any).await.unwrap();
    assert_eq!((id.as_str(), outcome.version, outcome.existed), ("a", 1, false));

    let (_, outcome) = repository.save("templates", &template("a", r#","new":[1]"#), Expectation::Any).await.unwrap();
    assert_eq!((outcome.version, outcome.existed), (2, true));
    let found = stored(&repository, "templates", "a").await;
    assert_eq!(found["new"].to_string(), "[1]");
    assert!(!found.contains_key("spot") && !found.contains_key("image_id"), "{found:?}");
}

async fn a_save_takes_effect_only_where_its_expectation_holds(place: Place) {
    use Expectation::{Absent, Any, Present, Version};
    let repository = place.open().await;
    let save = async |expect| repository.save("templates", &template("a", ""), expect).await;

    refused(save(Present).await, ErrorKind::NotFound);
    refused(save(Version(1)).await, ErrorKind::NotFound);
    assert!(!is_stored(&repository, "a").await);
    assert_eq!(save(Absent).await.unwrap().1.version, 1);
    refused(save(Absent).await, ErrorKind::AlreadyExists);
    assert_eq!(save(Present).await.unwrap().1.version, 2);
    assert_eq!(save(Version(2)).await.unwrap().1.version, 3);
    let conflict = refused(save(Version(2)).await, ErrorKind::VersionConflict);
    assert_eq!(conflict.current_version, Some(3));
    assert_eq!(save(Any).await.unwrap().1.version, 4);
}

async fn an_update_needs_a_stored_entity_of_the_expected_version(place: Place) {
    let repository = place.open().await;
    refused(repository.update("templates", "a", &template("a", ""), None).await, ErrorKind::NotFound);
    refused(repository.update("templates", "a", &template("a", ""), Some(0)).await, ErrorKind::NotFound);
    assert!(!is_stored(&repository, "a").await);

    save(&repository, "a", r#","n":1"#).await;
    let outcome = repository.update("templates", "a", &template("a", r#","n":2"#), Some(1)).await.unwrap();
    assert_eq!((outcome.version, outcome.existed), (2, true));
    let conflict = repository.update("templates", "a", &template("a", r#","n":3"#), Some(1)).await;
    assert_eq!(refused(conflict, ErrorKind::VersionConflict).current_version, Some(2));
    assert_eq!(repository.update("templates", "a", &template("a", r#","n":4"#), None).await.unwrap().version, 3);
    assert_eq!(stored(&repository, "templates", "a").await["n"], 4);
    refused(repository.update("templates", "a", &template("b", ""), None).await, ErrorKind::InvalidArgument);
    assert_eq!(stored(&repository, "templates", "a").await["n"], 4);
}

async fn a_delete_says_whether_the_entity_was_there(place: Place) {
    let repository = place.open().await;
    let outcome = repository.delete("templates", "a", None).await.unwrap();
    assert_eq!((outcome.version, outcome.existed), (0, false));
    refused(repository.delete("templates", "a", Some(1)).await, ErrorKind::NotFound);

    save(&repository, "a", "").await;
    save(&repository, "a", "").await;
    let conflict = refused(repository.delete("templates", "a", Some(1)).await, ErrorKind::VersionConflict);
    assert_eq!(conflict.current_version, Some(2));
    assert!(is_stored(&repository, "a").await);
    let outcome = repository.delete("templates", "a", Some(2)).await.unwrap();
    assert_eq!((outcome.version, outcome.existed), (2, true));
    assert!(!is_stored(&repository, "a").await);
    assert_eq!(save(&repository, "a", "").await, 1, "a new entity of that name starts afresh");
}

async fn versions_start_at_one_or_where_the_body_says_and_then_count(place: Place) {
    let repository = place.open().await;
    assert_eq!(save(&repository, "plain", "").await, 1);
    assert_eq!(save(&repository, "zero", r#","version":0"#).await, 1);
    assert_eq!(save(&repository, "brought", r#","version":7"#).await, 7);
    // Whatever the body says then.
    assert_eq!(save(&repository, "brought", r#","version":100"#).await, 8);
    assert_eq!(save(&repository, "brought", "").await, 9);
    assert_eq!(stored(&repository, "templates", "brought").await["version"], 9);

    // What others wrote without a usable version reads as version 0 and is left alone until the next write.
    repository
        .load("templates", vec![loadable("none", ""), loadable("text", r#","version":"2""#)], Existing::Fail)
        .await
        .unwrap();
    repository.flush().await.unwrap();
    for (id, version) in [("none", None), ("text", Some(Value::from("2")))] {
        let found = repository.get("templates", &[id.into()]).await.unwrap().remove(0).unwrap();
        assert_eq!((found.version, object(&found.body).get("version").cloned()), (0, version));
        assert_eq!(repository.update("templates", id, &template(id, ""), Some(0)).await.unwrap().version, 1);
        assert_eq!(stored(&repository, "templates", id).await["version"], 1);
    }
}

/// 2026-03-02T08:00:00.000000Z
#[track_caller]
fn assert_time(value: &Value) {
    let text = value.as_str().expect("a text");
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000Z");
}

async fn times_are_stamped_once_for_creation_and_each_time_for_updates(place: Place) {
    let repository = place.open().await;
    save(&repository, "a", "").await;
    let first = stored(&repository, "templates", "a").await;
    assert_time(&first["created_at"]);
    assert_eq!(first["created_at"], first["updated_at"]);

    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    save(&repository, "a", "").await;
    let second = stored(&repository, "templates", "a").await;
    assert_eq!(second["created_at"], first["created_at"], "a save that lacks it keeps it");
    assert_time(&second["updated_at"]);
    assert!(second["updated_at"].as_str() > first["updated_at"].as_str());

    let brought = r#","created_at":"2020-01-01T00:00:00+00:00","updated_at":"2020-01-01T00:00:00Z""#;
    save(&repository, "b", brought).await;
    let found = stored(&repository, "templates", "b").await;
    assert_eq!(found["created_at"], "2020-01-01T00:00:00+00:00", "as it was written");
    assert_time(&found["updated_at"]);
}

async fn machines_get_no_time_of_update_unless_they_have_one(place: Place) {
    let repository = place.open().await;
    save(&repository, "t", "").await;
    let request =
        br#"{"request_id":"r","template_id":"t","machine_count":1,"status":"PENDING","request_type":"acquire"}"#;
    repository.save("requests", request, Expectation::Any).await.unwrap();
    assert_time(&stored(&repository, "requests", "r").await["updated_at"]);
    let machine = |more: &str| {
        format!(r#"{{"machine_id":"m","request_id":"r","template_id":"t","status":"RUNNING"{more}}}"#).into_bytes()
    };

    repository.save("machines", &machine(""), Expectation::Any).await.unwrap();
    let found = stored(&repository, "machines", "m").await;
    assert_time(&found["created_at"]);
    assert!(!found.contains_key("updated_at"), "{found:?}");
    repository.save("machines", &machine(r#","updated_at":null"#), Expectation::Any).await.unwrap();
    assert_time(&stored(&repository, "machines", "m").await["updated_at"]);
    repository.save("machines", &machine(""), Expectation::Any).await.unwrap();
    assert_time(&stored(&repository, "machines", "m").await["updated_at"]);
}

async fn get_answers_in_the_order_asked_for_with_gaps_for_what_is_absent(place: Place) {
    let repository = place.open().await;
    for id in ["a", "b", "c"] {
        save(&repository, id, "").await;
    }
    let ids: Vec<String> = ["c", "nothing", "a", "c", "b"].map(String::from).to_vec();
    let found = repository.get("templates", &ids).await.unwrap();
    let found: Vec<Option<String>> = found.into_iter().map(|entity| Some(entity?.id)).collect();
    assert_eq!(found, [Some("c"), None, Some("a"), Some("c"), Some("b")].map(|id| id.map(String::from)));
    assert_eq!(repository.get("templates", &[]).await.unwrap().len(), 0);

    // More than one statement or page may hold.
    let many: Vec<String> = (0..3000).map(|n| if n % 1000 == 0 { "b".into() } else { format!("none-{n}") }).collect();
    let found = repository.get("templates", &many).await.unwrap();
    let there: Vec<usize> = (0..3000).filter(|n| found[*n].is_some()).collect();
    assert_eq!(there, [0, 1000, 2000]);
}

async fn ids_that_look_alike_are_different_entities(place: Place) {
    let repository = place.open().await;
    let ids = ["a", "A", "a ", " a", "é", "e\u{301}", "1", "1.0", "01", "ß", "ss", "%", "_"];
    for (n, id) in ids.iter().enumerate() {
        save(&repository, id, &format!(r#","n":{n}"#)).await;
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(stored(&repository, "templates", id).await["n"], n, "{id:?}");
    }
    assert_eq!(repository.count("templates", None).await.unwrap(), ids.len() as u64);
}

async fn ids_are_bounded_and_printable(place: Place) {
    let repository = place.open().await;
    let (long, longer) = ("é".repeat(255), "é".repeat(256));
    save(&repository, &long, "").await;
    assert!(is_stored(&repository, &long).await);
    for id in ["", &longer, "a\nb", "\0", "\u{7f}"] {
        let kind = ErrorKind::InvalidArgument;
        refused(repository.save("templates", &template(id, ""), Expectation::Any).await, kind);
        refused(repository.update("templates", id, &template(id, ""), None).await, kind);
        refused(repository.delete("templates", id, None).await, kind);
        refused(repository.get("templates", &[id.to_owned()]).await, kind);
        let write = put(id, "", Expectation::Any);
        refused(repository.apply(vec![write.clone()], true).await, kind);
        refused(repository.apply(vec![write], false).await.unwrap().remove(0), kind);
    }
    assert_eq!(repository.count("templates", None).await.unwrap(), 1);
}

/// Eight templates that differ where queries may go wrong: types, absence and null, case, script, names with dots.
async fn questionable(repository: &Repository) {
    for (id, more) in [
        ("a", r#","n":1,"s":"alpha","flag":true,"tags":["x","y"],"o":{"p":1,"q":{"r":"deep"}},"image_id":null"#),
        ("b", r#","n":1.0,"s":"Alpha","flag":false,"tags":["y"],"o":{"p":2},"image_id":"ami-1""#),
        ("c", r#","n":2.5,"s":"beta","flag":null,"tags":[],"max_number":9"#),
        ("d", r#","n":"1","s":"","o":null"#),
        ("e", r#","n":null,"s":"álpha","tags":"xy","max_number":100"#),
        ("f", r#","n":10000000000000000000000001,"s":"100% _like_","tags":[1,null,"z"]"#),
        ("g", ""),
        ("h", r#","n":-5,"s":"alphabet","a.b":1,"a":{"b":2}"#),
    ] {
        save(repository, id, more).await;
    }
}

async fn ids_of(repository: &Repository, select: Select) -> String {
    let found = repository.query("templates", select).collect().await.expect("an answer");
    found.into_iter().map(|entity| entity.id).collect()
}

async fn check_filter(repository: &Repository, written: &str, filter: Filter, expected: &str) {
    let select = Select { filter: Some(filter.clone()), ..Select::default() };
    let mut found: Vec<char> = ids_of(repository, select.clone()).await.chars().collect();
    found.sort();
    assert_eq!(found.into_iter().collect::<String>(), expected, "{written}");
    assert_eq!(repository.count("templates", Some(&filter)).await.unwrap(), expected.len() as u64, "{written}");
    // Sorting and limiting must not change which entities there are.
    let sorted = Select { order_by: vec![key("template_id")], limit: Some(3), ..select };
    assert_eq!(ids_of(repository, sorted).await, &expected[..expected.len().min(3)], "{written}");
}

async fn filters_hold_for_what_the_contract_says(place: Place) {
    let repository = place.open().await;
    questionable(&repository).await;
    for (written, expected) in [
        ("n=1", "ab"),
        ("n=1.00", "ab"),
        ("n!=1", "cdefh"),
        ("n<2", "abh"),
        ("n<=2.5", "abch"),
        ("n>2", "cf"),
        ("n>=2.5", "cf"),
        (r#"n="1""#, "d"),
        ("n=null", "e"),
        ("n", "abcdefh"),
        ("n>10000000000000000000000000", "f"),
        ("n=10000000000000000000000000", ""),
        ("n=10000000000000000000000001.0", "f"),
        ("s=alpha", "a"),
        ("s!=alpha", "bcdefh"),
        ("s^=alpha", "ah"),
        ("s^=Alpha", "b"),
        ("s~=lph", "abeh"),
        ("s~=%", "f"),
        ("s~=_", "f"),
        (r#"s="""#, "d"),
        ("s>alpha", "ceh"),
        ("s<=Alpha", "bdf"),
        ("s=1", ""),
        ("flag=true", "a"),
        ("flag=false", "b"),
        ("flag=null", "c"),
        ("flag<true", "b"),
        ("flag!=true", "bc"),
        ("flag=1", ""),
        ("tags~=x", "ae"),
        ("tags~=1", "f"),
        ("tags~=null", "f"),
        ("tags~=z", "f"),
        ("tags", "abcef"),
        ("tags=xy", "e"),
        ("o.p=1", "a"),
        ("o.p", "ab"),
        ("o.q.r=deep", "a"),
        ("o=null", "d"),
        ("o", "abd"),
        (r#""a.b"=1"#, "h"),
        ("a.b=2", "h"),
        ("a.b=1", ""),
        ("image_id", "ab"),
        ("image_id=null", "a"),
        ("image_id=ami-1", "b"),
        ("image_id!=ami-1", "a"),
        ("max_number=10", "abdfgh"),
        ("max_number>10", "e"),
        ("max_number<10.0", "c"),
        ("name=Pool", "abcdefgh"),
        ("template_id>=g", "gh"),
        ("template_id=c", "c"),
        ("version=1", "abcdefgh"),
        ("nothing=1", ""),
        ("nothing!=1", ""),
    ] {
        check_filter(&repository, written, filter::parse_expression(written).unwrap(), expected).await;
    }
    for (written, expected) in [
        ("{}", "abcdefgh"),
        (r#"{"n":1,"s":"alpha"}"#, "a"),
        (r#"{"not":{"n":1}}"#, "cdefgh"),
        (r#"{"not":{"field":"n","op":"exists"}}"#, "g"),
        (r#"{"not":{"field":"n","op":"!=","value":1}}"#, "abg"),
        (r#"{"not":{"not":{"flag":true}}}"#, "a"),
        (r#"{"any":[{"n":1},{"s":"beta"}]}"#, "abc"),
        (r#"{"all":[]}"#, "abcdefgh"),
        (r#"{"any":[]}"#, ""),
        (r#"{"field":"n","op":"in","value":[1,null,"1"]}"#, "abde"),
        (r#"{"field":"s","op":"in","value":[]}"#, ""),
        (r#"{"field":"n","op":"between","value":[1,3]}"#, "abc"),
        (r#"{"all":[{"field":"s","op":"begins-with","value":"alpha"},{"not":{"field":"n","op":"<","value":0}}]}"#, "a"),
        (r#"{"any":[{"all":[{"flag":true},{"o.p":1}]},{"not":{"field":"s","op":"exists"}}]}"#, "ag"),
        (r#"{"all":[{"max_number":10},{"any":[{"image_id":"ami-1"},{"n":-5}]}]}"#, "bh"),
    ] {
        let tree = json::parse(written.as_bytes()).unwrap();
        check_filter(&repository, written, filter::parse_json(&tree).unwrap(), expected).await;
    }
}

fn key(text: &str) -> SortKey {
    let (field, descending) = match text.strip_prefix('-') {
        Some(field) => (field, true),
        None => (text, false),
    };
    SortKey { field: field.parse().unwrap(), descending }
}

async fn answers_are_sorted_across_types_and_limited(place: Place) {
    let repository = place.open().await;
    questionable(&repository).await;
    for (order_by, filter, limit, expected) in [
        (&["n"][..], "", None, "gehabcfd"),
        (&["-n"], "", None, "dfcabheg"),
        (&["flag"], "", None, "defghcba"),
        (&["s"], "", None, "gdfbahce"),
        (&["-s"], "", None, "echabfdg"),
        (&["tags"], "", None, "dgheabfc"),
        (&["o.p", "-n"], "", None, "dfchegab"),
        (&["max_number", "-template_id"], "", None, "chgfdbae"),
        (&["image_id"], "", None, "cdefghab"),
        (&["-template_id"], "", None, "hgfedcba"),
        (&["n"], "", Some(3), "geh"),
        (&["-s"], "n", Some(2), "ec"),
        (&["max_number"], "s~=l", Some(100), "abfhe"),
        (&["n"], "", Some(0), ""),
    ] {
        let select = Select {
            filter: (!filter.is_empty()).then(|| filter::parse_expression(filter).unwrap()),
            order_by: order_by.iter().map(|text| key(text)).collect(),
            limit,
            index: None,
        };
        assert_eq!(ids_of(&repository, select).await, expected, "{order_by:?} {filter} {limit:?}");
    }
    let any_two = Select { limit: Some(2), ..Select::default() };
    assert_eq!(ids_of(&repository, any_two).await.len(), 2);
}

async fn an_answer_of_many_pages_has_every_entity_once(place: Place) {
    let repository = place.open().await;
    let name = |n: usize| format!("template-{n:04}");
    let entities = (0..2500).map(|n| loadable(&name(n), &format!(r#","n":{},"odd":{}"#, n / 2, n % 2 == 1)));
    repository.load("templates", entities.collect(), Existing::Fail).await.unwrap();
    repository.flush().await.unwrap();
    let query = async |select| -> Vec<String> {
        let found = repository.query("templates", select).collect().await.unwrap();
        found.into_iter().map(|entity| entity.id).collect()
    };

    let all: BTreeSet<String> = (0..2500).map(name).collect();
    let found = query(Select::default()).await;
    assert_eq!(found.len(), 2500);
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), all);

    // Largest first, ties by id.
    let expected: Vec<String> = (0..1250).rev().flat_map(|pair| [name(2 * pair), name(2 * pair + 1)]).collect();
    assert_eq!(query(Select { order_by: vec![key("-n")], ..Select::default() }).await, expected);
    let select = Select { order_by: vec![key("-n")], limit: Some(1500), ..Select::default() };
    assert_eq!(query(select).await, expected[..1500]);

    let odd = filter::parse_expression("odd=true").unwrap();
    let expected: Vec<String> = (0..1250).map(|pair| name(2 * pair + 1)).collect();
    let select = Select { filter: Some(odd), order_by: vec![key("template_id")], ..Select::default() };
    assert_eq!(query(select).await, expected);
}

async fn an_unknown_index_is_refused(place: Place) {
    let repository = place.open().await;
    save(&repository, "a", "").await;
    let select = Select { index: Some("none-of-that-name".into()), ..Select::default() };
    refused(repository.query("templates", select).collect().await, ErrorKind::InvalidArgument);
}

async fn an_export_has_every_entity_once(place: Place) {
    let repository = place.open().await;
    // More than a page of 4 MiB.
    let padding = "padding ".repeat(500);
    let entities: Vec<Entity> =
        (0..1500).map(|n| loadable(&format!("t{n}"), &format!(r#","version":{n},"padding":"{padding}""#))).collect();
    repository.load("templates", entities.clone(), Existing::Fail).await.unwrap();
    repository.flush().await.unwrap();

    let run = place.folder.larder(&["export", "--store", place.store]).exits(0);
    let mut seen = BTreeSet::new();
    for line in run.stdout.lines() {
        let line = object(line);
        assert_eq!(line["collection"], "templates");
        let Value::Object(found) = &line["entity"] else { panic!("{line:?}") };
        let id = found["template_id"].as_str().unwrap();
        let n: usize = id[1..].parse().unwrap();
        assert!(json::equal_objects(found, &object(&entities[n].body)), "{id}");
        assert!(seen.insert(n), "{id} comes twice");
    }
    assert_eq!(seen.len(), entities.len());
}

async fn load_stamps_nothing_and_says_what_became_of_each_entity(place: Place) {
    let repository = place.open().await;
    let one = loadable("a", r#","version":41,"created_at":"long ago""#);
    let other = loadable("b", "");
    let loaded = repository.load("templates", vec![one.clone(), other.clone()], Existing::Fail).await.unwrap();
    assert_eq!((loaded.written, loaded.unchanged, loaded.skipped, loaded.refused.len()), (2, 0, 0, 0));
    repository.flush().await.unwrap();
    for entity in [&one, &other] {
        let found = repository.get("templates", std::slice::from_ref(&entity.id)).await.unwrap().remove(0).unwrap();
        assert_same_object(&found.body, &entity.body);
        assert_eq!(found.version, entity.version);
    }

    // The same content, its members in another order and a number in another spelling.
    let text = String::from_utf8(one.body.clone()).unwrap().replace(r#","max_number":10"#, "");
    let same = Entity { body: text.replacen('{', r#"{"max_number":10,"#, 1).into_bytes(), ..one.clone() };
    let changed = loadable("b", r#","n":2"#);
    let batch = vec![same.clone(), changed.clone(), loadable("c", "")];
    let loaded = repository.load("templates", batch.clone(), Existing::Fail).await.unwrap();
    assert_eq!((loaded.written, loaded.unchanged, loaded.skipped), (1, 1, 0));
    let refusals: Vec<_> = loaded.refused.iter().map(|(position, error)| (*position, error.kind)).collect();
    assert_eq!(refusals, [(1, ErrorKind::AlreadyExists)]);

    let loaded = repository.load("templates", batch.clone(), Existing::Skip).await.unwrap();
    assert_eq!((loaded.written, loaded.unchanged, loaded.skipped, loaded.refused.len()), (0, 2, 1, 0));
    repository.flush().await.unwrap();
    assert!(!object(&get(&repository, "b").await).contains_key("n"));

    let loaded = repository.load("templates", batch, Existing::Overwrite).await.unwrap();
    assert_eq!((loaded.written, loaded.unchanged, loaded.skipped, loaded.refused.len()), (1, 2, 0, 0));
    repository.flush().await.unwrap();
    assert_same_object(get(&repository, "b").await, &changed.body);
}

async fn get(repository: &Repository, id: &str) -> Vec<u8> {
    repository.get("templates", &[id.into()]).await.unwrap().remove(0).expect("an entity").body
}

async fn load_refuses_what_is_no_entity_and_stores_the_others(place: Place) {
    let repository = place.open().await;
    let unlike = Entity { id: "other".into(), ..loadable("a", "") };
    let keyless = Entity { id: "b".into(), version: 0, body: b"{}".to_vec() };
    let loaded = repository.load("templates", vec![unlike, loadable("c", ""), keyless], Existing::Fail).await.unwrap();
    repository.flush().await.unwrap();
    let refusals: Vec<_> = loaded.refused.iter().map(|(position, error)| (*position, error.kind)).collect();
    assert_eq!(refusals, [(0, ErrorKind::InvalidArgument), (2, ErrorKind::InvalidArgument)]);
    assert_eq!(loaded.written, 1);
    assert_eq!(repository.count("templates", None).await.unwrap(), 1);
    assert!(is_stored(&repository, "c").await);
}

async fn an_atomic_apply_is_all_or_nothing_and_names_the_write_that_failed(place: Place) {
    use Expectation::{Absent, Any, Present, Version};
    let repository = place.open().await;
    save(&repository, "stored", r#","n":1"#).await;
    let writes =
        vec![put("a", "", Absent), put("stored", r#","n":2"#, Version(1)), removal("b", Any), put("c", "", Any)];
    let outcomes: Vec<(u64, bool)> = repository
        .apply(writes, true)
        .await
        .unwrap()
        .into_iter()
        .map(|result| result.map(|outcome| (outcome.version, outcome.existed)).unwrap())
        .collect();
    assert_eq!(outcomes, [(1, false), (2, true), (0, false), (1, false)]);

    for (failing, kind) in [
        (put("stored", "", Version(1)), ErrorKind::VersionConflict),
        (put("stored", "", Absent), ErrorKind::AlreadyExists),
        (put("nothing", "", Present), ErrorKind::NotFound),
        (removal("nothing", Version(1)), ErrorKind::NotFound),
        (removal("stored", Version(9)), ErrorKind::VersionConflict),
        (put("body", r#","version":-1"#, Any), ErrorKind::InvalidArgument),
    ] {
        let conflict = kind == ErrorKind::VersionConflict;
        let writes = vec![removal("a", Present), put("new", "", Any), failing, put("other", "", Any)];
        let error = refused(repository.apply(writes, true).await, kind);
        assert_eq!(error.write_index, Some(2));
        assert_eq!(error.current_version, conflict.then_some(2));
        assert!(is_stored(&repository, "a").await, "{kind:?}: what came before is undone");
        assert!(!is_stored(&repository, "new").await && !is_stored(&repository, "other").await);
        assert_eq!(stored(&repository, "templates", "stored").await["n"], 2);
    }
    let reopened = place.open().await;
    assert_eq!(reopened.count("templates", None).await.unwrap(), 3);
}

async fn an_atomic_apply_spans_collections_and_refuses_one_entity_twice(place: Place) {
    let repository = place.open().await;
    let request = |expect| {
        let body = br#"{"request_id":"r","template_id":"t","machine_count":1,"status":"NEW","request_type":"acquire"}"#;
        Write::Put(Put { collection: "requests".into(), id: "r".into(), body: body.to_vec(), expect })
    };
    let writes = vec![put("t", "", Expectation::Absent), request(Expectation::Present)];
    assert_eq!(refused(repository.apply(writes, true).await, ErrorKind::NotFound).write_index, Some(1));
    assert_eq!(repository.count("templates", None).await.unwrap(), 0);

    let writes = vec![put("t", "", Expectation::Absent), request(Expectation::Absent)];
    assert_eq!(repository.apply(writes, true).await.unwrap().len(), 2);
    assert_eq!(repository.count("requests", None).await.unwrap(), 1);

    let twice = vec![put("x", "", Expectation::Any), put("y", "", Expectation::Any), removal("x", Expectation::Any)];
    refused(repository.apply(twice, true).await, ErrorKind::InvalidArgument);
    assert_eq!(repository.count("templates", None).await.unwrap(), 1);
}

async fn an_apply_that_is_not_atomic_answers_each_write(place: Place) {
    use Expectation::{Absent, Any, Present};
    let repository = place.open().await;
    let writes = vec![
        put("a", "", Absent),
        put("a", "", Absent),
        put("b", r#","version":-1"#, Any),
        removal("nothing", Any),
        put("b", "", Present),
        put("c", "", Any),
        removal("a", Present),
    ];
    let results: Vec<Result<u64, ErrorKind>> = repository
        .apply(writes, false)
        .await
        .unwrap()
        .into_iter()
        .map(|result| result.map(|outcome| outcome.version).map_err(|error| error.kind))
        .collect();
    assert_eq!(
        results,
        [
            Ok(1),
            Err(ErrorKind::AlreadyExists),
            Err(ErrorKind::InvalidArgument),
            Ok(0),
            Err(ErrorKind::NotFound),
            Ok(1),
            Ok(1)
        ]
    );
    assert_eq!(ids_of(&place.open().await, Select::default()).await, "c");
}

async fn a_transaction_sees_its_own_writes_and_happens_as_one_or_not_at_all(place: Place) {
    let repository = place.open().await;
    repository.save("templates", &template("kept", ""), Expectation::Any).await.expect("a save");

    let mut committed = repository.begin(None, false).await.expect("a transaction");
    committed.save("templates", &template("new", ""), Expectation::Absent).await.expect("a save inside");
    let patch = object(br#"{"name": "Changed"}"#);
    assert_eq!(committed.patch("templates", "kept", &patch).await.expect("a patch inside").version, 2);
    let ids = ["new".to_owned(), "gone".to_owned()];
    let found = committed.get("templates", &ids, true).await.expect("an answer inside");
    assert!(found[0].is_some() && found[1].is_none());
    assert_eq!(committed.query("templates", Select::default()).collect().await.expect("entities").len(), 2);
    committed.commit().await.expect("a commit");
    assert!(is_stored(&repository, "new").await);
    assert_eq!(stored(&repository, "templates", "kept").await["name"], "Changed");

    let mut undone = repository.begin(None, false).await.expect("a transaction");
    undone.delete("templates", "kept", None).await.expect("a delete inside");
    undone.rollback().await.expect("a rollback");
    let mut dropped = repository.begin(None, false).await.expect("a transaction");
    dropped.delete("templates", "new", None).await.expect("a delete inside");
    drop(dropped);
    let mut failed = repository.begin(None, false).await.expect("a transaction");
    failed.save("templates", &template("half", ""), Expectation::Any).await.expect("a save inside");
    refused(failed.save("templates", &template("new", ""), Expectation::Absent).await, ErrorKind::AlreadyExists);
    drop(failed);
    // Another handle waits for the locks that the ended transactions held, and sees what was committed.
    let other = place.open().await;
    assert!(is_stored(&other, "kept").await && is_stored(&other, "new").await && !is_stored(&other, "half").await);
    other.save("templates", &template("half", ""), Expectation::Absent).await.expect("nothing is locked any more");
}

async fn an_unknown_collection_is_invalid_and_never_empty(place: Place) {
    let repository = place.open().await;
    let kind = ErrorKind::InvalidArgument;
    refused(repository.get("people", &["a".into()]).await, kind);
    refused(repository.save("people", br#"{"id":"a"}"#, Expectation::Any).await, kind);
    refused(repository.update("people", "a", br#"{"id":"a"}"#, None).await, kind);
    refused(repository.delete("people", "a", None).await, kind);
    refused(repository.count("people", None).await, kind);
    refused(repository.query("people", Select::default()).collect().await, kind);
    refused(repository.load("people", vec![loadable("a", "")], Existing::Fail).await, kind);
    let write = Write::Remove(Removal { collection: "people".into(), id: "a".into(), expect: Expectation::Any });
    refused(repository.apply(vec![put("a", "", Expectation::Any), write.clone()], true).await, kind);
    assert!(!is_stored(&repository, "a").await);
    refused(repository.apply(vec![write], false).await.unwrap().remove(0), kind);
}

async fn bodies_that_are_no_entities_are_refused_and_nothing_is_stored(place: Place) {
    let repository = place.open().await;
    let valid = String::from_utf8(template("a", "")).unwrap();
    let with = |more: &str| valid.replacen('{', &format!("{{{more},"), 1);
    let nested = |depth: usize| with(&format!("\"deep\":{}{}", "[".repeat(depth - 1), "]".repeat(depth - 1)));
    let bodies = [
        String::new(),
        "null".into(),
        "[]".into(),
        "\"a\"".into(),
        format!("{valid} {valid}"),
        valid[..valid.len() - 1].to_owned(),
        with(r#""x":1,"x":2"#),
        with(r#""x":{"y":1,"\u0079":2}"#),
        with(r#""template_id":"b""#),
        r#"{"name":"Pool"}"#.into(),
        r#"{"template_id":null}"#.into(),
        r#"{"template_id":7}"#.into(),
        r#"{"template_id":["a"]}"#.into(),
        with(r#""x":"\ud800""#),
        with(r#""x":"\udc00\ud800""#),
        with(r#""\ud83e":1"#),
        with("\"x\":\"line\nbreak\""),
        with(r#""x":NaN"#),
        with(r#""x":01"#),
        nested(65),
        with(r#""version":1.5"#),
        with(r#""version":-1"#),
        with(r#""version":"1""#),
        with(r#""version":null"#),
        with(r#""version":9223372036854775808"#),
    ];
    for body in &bodies {
        let kind = ErrorKind::InvalidArgument;
        refused(repository.save("templates", body.as_bytes(), Expectation::Any).await, kind);
        // The strategy says so too: an application may call `apply` itself.
        let write = Write::Put(Put {
            collection: "templates".into(),
            id: "a".into(),
            body: body.clone().into_bytes(),
            expect: Expectation::Any,
        });
        refused(repository.apply(vec![write.clone()], true).await, kind);
        refused(repository.apply(vec![write], false).await.unwrap().remove(0), kind);
    }
    let unlike = Write::Put(Put {
        collection: "templates".into(),
        id: "b".into(),
        body: valid.clone().into_bytes(),
        expect: Expectation::Any,
    });
    refused(repository.apply(vec![unlike], false).await.unwrap().remove(0), ErrorKind::InvalidArgument);
    let broken_text = [valid.trim_end_matches('}').as_bytes(), b",\"x\":\"\xff\"}"].concat();
    refused(repository.save("templates", &broken_text, Expectation::Any).await, ErrorKind::InvalidArgument);
    assert_eq!(repository.count("templates", None).await.unwrap(), 0);

    repository.save("templates", nested(64).as_bytes(), Expectation::Any).await.unwrap();
    repository.save("templates", with(r#""version":9223372036854775806"#).as_bytes(), Expectation::Any).await.unwrap();
}

async fn a_body_larger_than_the_strategy_takes_is_refused(place: Place) {
    let repository = place.open().await;
    let bytes_max = repository.plugin().description.max_entity_bytes as usize;
    assert_eq!(bytes_max, 16 << 20);
    let of_size = |size: usize| {
        let rest = template("a", r#","x":"""#).len();
        template("a", &format!(r#","x":"{}""#, "x".repeat(size - rest)))
    };
    let body = of_size(bytes_max + 1);
    assert_eq!(body.len(), bytes_max + 1);
    refused(repository.save("templates", &body, Expectation::Any).await, ErrorKind::InvalidArgument);
    assert!(!is_stored(&repository, "a").await);

    // Stamps are added to it.
    let body = of_size(bytes_max - 200);
    repository.save("templates", &body, Expectation::Any).await.unwrap();
    assert_eq!(stored(&repository, "templates", "a").await["x"], object(&body)["x"]);
}

async fn awkward_values_come_back_as_they_were_written(place: Place) {
    let repository = place.open().await;
    let entities = larder_samples::awkward(200, larder_samples::SEED);
    for chunk in entities.chunks(50) {
        let writes = chunk.iter().map(|entity| {
            let body = entity.body.clone().into_bytes();
            Write::Put(Put { collection: "templates".into(), id: entity.id.clone(), body, expect: Expectation::Absent })
        });
        for (result, entity) in repository.apply(writes.collect(), false).await.unwrap().into_iter().zip(chunk) {
            result.unwrap_or_else(|error| panic!("{error} for {}", entity.body));
        }
    }
    let check = |id: &str, body: &[u8], written: &str| {
        let (mut found, mut expected) = (object(body), object(written));
        assert_time(&found["updated_at"]);
        found.remove("updated_at");
        expected.remove("updated_at");
        assert!(
            json::equal_objects(&found, &expected),
            "{id:?}\nfound   {}\nwritten {written}",
            String::from_utf8_lossy(body)
        );
    };

    let reopened = place.open().await;
    let ids: Vec<String> = entities.iter().map(|entity| entity.id.clone()).collect();
    let found = reopened.get("templates", &ids).await.unwrap();
    for (found, written) in found.iter().zip(&entities) {
        check(&written.id, &found.as_ref().unwrap_or_else(|| panic!("no {:?}", written.id)).body, &written.body);
    }
    // The same through a query, each sought by its id.
    for written in &entities {
        let by_id = Filter::Compare {
            field: "template_id".parse().unwrap(),
            op: filter::Comparison::Eq,
            value: filter::Scalar::Text(written.id.clone()),
        };
        let select = Select { filter: Some(by_id), ..Select::default() };
        let found = reopened.query("templates", select).collect().await.unwrap();
        assert_eq!(found.len(), 1, "{:?}", written.id);
        check(&written.id, &found[0].body, &written.body);
    }
    // Sorted by id, they stand in the order of code points.
    let select = Select { order_by: vec![key("template_id")], ..Select::default() };
    let sorted = reopened.query("templates", select).collect().await.unwrap();
    let mut expected = ids.clone();
    expected.sort();
    assert_eq!(sorted.into_iter().map(|entity| entity.id).collect::<Vec<_>>(), expected);
    // And each is deleted under its name.
    for id in &ids {
        assert!(reopened.delete("templates", id, Some(1)).await.unwrap().existed);
    }
    assert_eq!(repository.count("templates", None).await.unwrap(), 0);
}

async fn a_second_handle_sees_the_writes_of_the_first(place: Place) {
    let (first, second) = (place.open().await, place.open().await);
    assert!(!is_stored(&second, "a").await);
    assert_eq!(save(&first, "a", r#","n":1"#).await, 1);
    assert_eq!(stored(&second, "templates", "a").await["n"], 1);
    assert_eq!(save(&second, "a", r#","n":2"#).await, 2);
    assert_eq!(stored(&first, "templates", "a").await["n"], 2);
    let stale = first.update("templates", "a", &template("a", ""), Some(1)).await;
    assert_eq!(refused(stale, ErrorKind::VersionConflict).current_version, Some(2));
    second.delete("templates", "a", None).await.unwrap();
    assert!(!is_stored(&first, "a").await);
    assert_eq!(first.count("templates", None).await.unwrap(), 0);
}

async fn a_store_that_is_not_there_yet_reads_as_empty_and_is_not_made_by_reading(place: Place) {
    let repository = place.open().await;
    assert!(!is_stored(&repository, "a").await);
    assert_eq!(ids_of(&repository, Select::default()).await, "");
    assert_eq!(repository.count("templates", None).await.unwrap(), 0);
    assert_eq!(repository.stored_collections().await.unwrap(), Vec::<String>::new());
    let would = repository.prepare(true).await.unwrap();
    assert!(!would.is_empty());
    assert_eq!(place.folder.names(""), ["larder.json"], "nothing was made");

    assert_eq!(repository.prepare(false).await.unwrap().len(), would.len());
    assert_eq!(repository.prepare(false).await.unwrap(), Vec::<String>::new());
    assert_eq!(place.open().await.prepare(true).await.unwrap(), Vec::<String>::new());
    let findings = repository.check().await.unwrap();
    for property in ["reachable", "readable", "writable"] {
        assert_eq!(findings[property], true, "{findings:?}");
    }
    save(&repository, "a", "").await;
    assert!(repository.stored_collections().await.unwrap().contains(&"templates".to_owned()));
}

/// Reads, adds one, and writes on the condition that nobody wrote between, until it succeeded `times`.
async fn count_up(repository: Repository, times: usize) {
    for _ in 0..times {
        loop {
            let found = repository.get("templates", &["counter".into()]).await.unwrap().remove(0).unwrap();
            let n = object(&found.body)["n"].as_u64().unwrap();
            let body = template("counter", &format!(r#","n":{}"#, n + 1));
            match repository.update("templates", "counter", &body, Some(found.version)).await {
                Ok(_) => break,
                Err(error) => assert!(error.is(ErrorKind::VersionConflict), "{error:?}"),
            }
        }
    }
}

async fn handles_that_write_at_once_lose_no_update(place: Place) {
    let repository = place.open().await;
    save(&repository, "counter", r#","n":0"#).await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(tokio::spawn(count_up(place.open().await, 25)));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let found = stored(&repository, "templates", "counter").await;
    assert_eq!((found["n"].as_u64(), found["version"].as_u64()), (Some(100), Some(101)));
}

async fn processes_that_write_at_once_lose_no_entity(place: Place) {
    std::thread::scope(|scope| {
        for process in 0..4 {
            let place = &place;
            scope.spawn(move || {
                // One entity a line; what is saved at once crosses at once, so each gets a run of its own.
                for n in 0..50 {
                    let body = String::from_utf8(template(&format!("p{process}-{n}"), "")).unwrap();
                    let run = place.folder.larder_with(&["save", "templates", "--store", place.store], &body).exits(0);
                    assert_eq!(run.stdout, format!("saved templates `p{process}-{n}`, version 1\n"));
                }
            });
        }
    });
    assert_eq!(place.open().await.count("templates", None).await.unwrap(), 200);
}

/// What stands in a file is compared without the stamps.
fn without_stamps(document: &str) -> Value {
    let mut document: Value = serde_json::from_str(document).unwrap();
    fn strip(value: &mut Value) {
        if let Value::Object(members) = value {
            for name in ["version", "created_at", "updated_at"] {
                members.remove(name);
            }
            members.values_mut().for_each(strip);
        }
    }
    strip(&mut document);
    document
}

/// The example of the documentation.
fn seed() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/data/seed.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

async fn save_seed(repository: &Repository) {
    for (collection, entities) in seed().as_object().unwrap() {
        for entity in entities.as_object().unwrap().values() {
            repository.save(collection, entity.to_string().as_bytes(), Expectation::Absent).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_file_holds_every_collection_as_people_write_it() {
    let place = Place::new("single");
    save_seed(&place.open().await).await;
    assert_eq!(without_stamps(&place.folder.read("single/request_database.json")), seed());
}

#[tokio::test(flavor = "multi_thread")]
async fn split_files_hold_one_collection_each() {
    let place = Place::new("split");
    save_seed(&place.open().await).await;
    for collection in ["templates", "requests", "machines"] {
        let document = place.folder.read(&format!("split/{collection}.json"));
        assert_eq!(without_stamps(&document), seed()[collection]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_others_wrote_is_read_and_what_is_not_configured_is_kept() {
    let place = Place::new("single");
    let written = r#"{"people": {"p": {"any": [1.50, "thing"]}}, "templates": {"a": {"template_id": "a", "n": 1}},
        "note": "no collection at all"}"#;
    place.folder.write("single/request_database.json", written);
    let repository = place.open().await;
    let found = repository.get("templates", &["a".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!(found.version, 0);
    assert_same_object(&found.body, r#"{"template_id": "a", "n": 1}"#);

    save(&repository, "b", "").await;
    let document = object(place.folder.read("single/request_database.json"));
    assert_eq!(document["people"].to_string(), r#"{"p":{"any":[1.50,"thing"]}}"#, "digit for digit");
    assert_eq!(document["note"], "no collection at all");
    assert_eq!(document["templates"]["a"].to_string(), r#"{"template_id":"a","n":1}"#);

    // And what is edited by hand meanwhile is seen, not erased.
    place.folder.write("single/request_database.json", written.replace("\"n\": 1", "\"n\": 2"));
    save(&repository, "c", "").await;
    assert_eq!(object(get(&repository, "a").await)["n"], 2);
    assert!(!is_stored(&repository, "b").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_under_another_name_or_without_its_key_is_corrupt() {
    let place = Place::new("single");
    let written =
        r#"{"templates": {"a": {"template_id": "b"}, "c": {"name": "x"}, "d": [], "e": {"template_id": "e"}}}"#;
    place.folder.write("single/request_database.json", written);
    let repository = place.open().await;
    for id in ["a", "c", "d"] {
        let error = refused(repository.get("templates", &[id.into()]).await, ErrorKind::Corrupt);
        assert!(error.message.contains(&format!("`{id}`")) || error.message.contains(&format!("{id:?}")), "{error}");
    }
    refused(repository.query("templates", Select::default()).collect().await, ErrorKind::Corrupt);
    assert!(is_stored(&repository, "e").await);
    let findings = repository.check().await.unwrap();
    assert_eq!(findings["readable"], true);
    assert_eq!(findings["findings"][0]["level"], "error");
    assert!(findings["findings"][0]["message"].as_str().unwrap().starts_with("3 of 4 entities of templates"));
}

const REQUEST: &str =
    r#"{"request_id":"r","template_id":"a","machine_count":1,"status":"NEW","request_type":"acquire"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn tables_have_the_documented_columns() {
    let place = Place::new("strict");
    place.open().await.prepare(false).await.unwrap();
    let mut database = place.folder.sqlite("strict.db").await;
    for (table, expected) in [
        (
            "templates",
            "template_id VARCHAR(255) key, name VARCHAR(255) required, provider_api VARCHAR(50) required, \
             vm_type VARCHAR(50) required, max_number INTEGER required, image_id VARCHAR(255), subnet_ids TEXT, \
             security_group_ids TEXT, attributes TEXT, created_at TIMESTAMP, updated_at TIMESTAMP",
        ),
        (
            "requests",
            "request_id VARCHAR(255) key, template_id VARCHAR(255) required, machine_count INTEGER required, \
             status VARCHAR(50) required, request_type VARCHAR(50) required, created_at TIMESTAMP, \
             updated_at TIMESTAMP, completed_at TIMESTAMP, tags TEXT, metadata TEXT",
        ),
        (
            "machines",
            "machine_id VARCHAR(255) key, request_id VARCHAR(255) required, template_id VARCHAR(255) required, \
             status VARCHAR(50) required, instance_type VARCHAR(50), provider_instance_id VARCHAR(255), \
             private_ip VARCHAR(45), public_ip VARCHAR(45), created_at TIMESTAMP, started_at TIMESTAMP, \
             terminated_at TIMESTAMP",
        ),
    ] {
        let rows = database.fetch_all(sqlx::query("SELECT * FROM pragma_table_info(?)").bind(table)).await.unwrap();
        let columns: Vec<String> = rows
            .iter()
            .map(|row| {
                let (is_key, required) = (row.get::<i64, _>("pk") == 1, row.get::<bool, _>("notnull"));
                let rule = if is_key {
                    " key"
                } else if required {
                    " required"
                } else {
                    ""
                };
                format!("{} {}{rule}", row.get::<String, _>("name"), row.get::<String, _>("type"))
            })
            .collect();
        let expected: Vec<&str> = expected.split(", ").collect();
        // What has no column of its own follows these.
        assert_eq!(columns[..expected.len()], expected, "{table}");
    }
    let references = database
        .fetch_all(r#"SELECT "from", "table", "to" FROM pragma_foreign_key_list('machines') ORDER BY 1"#)
        .await
        .unwrap();
    let references: Vec<[String; 3]> = references.iter().map(|row| [row.get(0), row.get(1), row.get(2)]).collect();
    assert_eq!(
        references,
        [["request_id", "requests", "request_id"], ["template_id", "templates", "template_id"]]
            .map(|names| names.map(String::from))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_can_be_queried_by_other_programs() {
    for store in ["strict", "relaxed"] {
        let place = Place::new(store);
        let repository = place.open().await;
        let more = r#","image_id":"ami-1","subnet_ids":["subnet-1","subnet-2"],"max_number":7,"extra":1"#;
        save(&repository, "a", more).await;
        repository.save("requests", REQUEST.as_bytes(), Expectation::Any).await.unwrap();
        let mut database = place.folder.sqlite(&format!("{store}.db")).await;
        let row = database
            .fetch_one("SELECT t.name, max_number, subnet_ids, image_id, status FROM requests JOIN templates t USING (template_id)")
            .await
            .unwrap();
        assert_eq!((row.get::<&str, _>(0), row.get::<i64, _>(1)), ("Pool", 7));
        assert_eq!((row.get::<&str, _>(3), row.get::<&str, _>(4)), ("ami-1", "NEW"));
        let subnets: Value = serde_json::from_str(row.get(2)).unwrap();
        assert_eq!(subnets, serde_json::json!(["subnet-1", "subnet-2"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_changed_by_hand_in_a_table_is_what_is_read() {
    for store in ["strict", "relaxed"] {
        let place = Place::new(store);
        let repository = place.open().await;
        save(&repository, "a", r#","image_id":"ami-1","extra":{"kept":true}"#).await;
        let mut database = place.folder.sqlite(&format!("{store}.db")).await;
        database.execute("UPDATE templates SET name = 'By hand', max_number = 99, image_id = NULL").await.unwrap();
        database
            .execute(
                "INSERT INTO templates (template_id, name, provider_api, vm_type, max_number) \
                 VALUES ('hand', 'New', 'EC2Fleet', 't3.large', 3)",
            )
            .await
            .unwrap();

        let found = stored(&repository, "templates", "a").await;
        assert_eq!((&found["name"], &found["max_number"]), (&"By hand".into(), &99.into()));
        assert!(found.get("image_id").is_none_or(Value::is_null), "{found:?}");
        assert_eq!(found["extra"]["kept"], true);
        assert_eq!(found["version"], 1, "a change by hand bumps no version");
        let inserted = object(get(&repository, "hand").await);
        assert_eq!((&inserted["name"], &inserted["vm_type"]), (&"New".into(), &"t3.large".into()));
        let by_name = Select { filter: Some(filter::parse_expression("name=New").unwrap()), ..Select::default() };
        assert_eq!(ids_of(&repository, by_name).await, "hand");
        // Whoever inserts by hand gives no version, which reads as 0.
        let outcome = repository.update("templates", "hand", &template("hand", ""), Some(0)).await.unwrap();
        assert_eq!(outcome.version, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_tables_reject_what_breaks_a_rule_and_relaxed_ones_keep_it() {
    let lengthy = r#""name":""#.to_owned() + &"n".repeat(256);
    let valid = String::from_utf8(template("a", "")).unwrap();
    let broken = [
        ("required", "templates", valid.replace(r#","vm_type":"t3.medium""#, "")),
        ("null", "templates", valid.replace(r#""t3.medium""#, "null")),
        ("length", "templates", valid.replace(r#""name":"Pool"#, &lengthy)),
        ("reference", "requests", REQUEST.replace(r#""template_id":"a""#, r#""template_id":"nothing""#)),
    ];
    // A declared type is what a field is expected to hold, and no rule.
    let unexpected = ("type", "templates", valid.replace(r#""max_number":10"#, r#""max_number":"ten","image_id":[]"#));

    let strict = Place::new("strict");
    let repository = strict.open().await;
    for (what, collection, body) in &broken {
        let error = refused(repository.save(collection, body.as_bytes(), Expectation::Any).await, ErrorKind::Rejected);
        assert!(error.message.contains(collection), "{what}: {error}");
    }
    assert_eq!(repository.count("templates", None).await.unwrap(), 0);
    assert_eq!(repository.count("requests", None).await.unwrap(), 0);
    check_kept(&repository, &unexpected).await;

    let relaxed = Place::new("relaxed");
    let repository = relaxed.open().await;
    for case in broken.iter().chain([&unexpected]) {
        check_kept(&repository, case).await;
    }
}

async fn check_kept(repository: &Repository, (what, collection, body): &(&str, &str, String)) {
    let saved = repository.save(collection, body.as_bytes(), Expectation::Any).await;
    let (id, _) = saved.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let found = stored(repository, collection, &id).await;
    for (name, value) in object(body) {
        assert_eq!(found[&name], value, "{what}: {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_reference_keeps_what_it_points_to() {
    let place = Place::new("strict");
    let repository = place.open().await;
    save(&repository, "a", "").await;
    repository.save("requests", REQUEST.as_bytes(), Expectation::Any).await.unwrap();
    refused(repository.delete("templates", "a", None).await, ErrorKind::Rejected);
    // It can be replaced all the same.
    assert_eq!(save(&repository, "a", r#","n":1"#).await, 2);
    repository.delete("requests", "r", None).await.unwrap();
    assert!(repository.delete("templates", "a", None).await.unwrap().existed);
}
