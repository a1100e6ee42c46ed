//! The capability `dynamodb` against a running engine.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use larder_model::Retry;

use super::client::{Scaling, Sending};
use super::*;
use crate::config::{AutoScaling, Provisioned};

const TIMEOUT: Duration = Duration::from_secs(10);
const HINT: &str = "LARDER_TEST_DYNAMODB names no engine: run the tests with `cargo xtask test`";

fn engine() -> String {
    std::env::var("LARDER_TEST_DYNAMODB").expect(HINT)
}

fn grant(endpoint: &str) -> DynamodbGrant {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    DynamodbGrant {
        region: Some("us-east-1".to_owned()),
        profile: None,
        endpoint_url: Some(endpoint.to_owned()),
        table_prefix: format!("host-{}-{number}", std::process::id()),
        provisioned: None,
        auto_scaling: None,
    }
}

fn tables(grant: DynamodbGrant) -> Tables {
    Tables::new(grant, ["t".to_owned(), "u".to_owned()].into(), TIMEOUT)
}

fn key_schema(hash: &str, range: Option<&str>) -> KeySchema {
    KeySchema { hash: hash.to_owned(), range: range.map(str::to_owned) }
}

fn spec(collection: &str) -> TableSpec {
    let by_state = ("by_state".to_owned(), key_schema("state", Some("at")));
    TableSpec { collection: collection.to_owned(), key: key_schema("id", None), indexes: vec![by_state] }
}

async fn with_table() -> Tables {
    let tables = tables(grant(&engine()));
    tables.prepare_table(&spec("t"), false, false).await.unwrap();
    tables
}

fn text(name: &str, text: impl Into<String>) -> (String, Attribute) {
    (name.to_owned(), Attribute::Text(text.into()))
}

fn key(id: impl Into<String>) -> Item {
    vec![text("id", id)]
}

/// In the order of the names, as items come back.
fn machine(number: usize) -> Item {
    vec![text("at", format!("{number:04}")), text("id", format!("m{number}")), text("state", "up")]
}

fn expression(text: &str, names: &[(&str, &str)], values: Item) -> Expression {
    let names = names.iter().map(|(placeholder, name)| (placeholder.to_string(), name.to_string()));
    Expression { text: text.to_owned(), names: names.collect(), values }
}

/// The engine remembers tokens of earlier runs.
fn token(tables: &Tables, word: &str) -> String {
    format!("{}-{word}", tables.shared.grant.table_prefix)
}

fn absent() -> Option<Expression> {
    Some(expression("attribute_not_exists(#k)", &[("#k", "id")], Vec::new()))
}

fn present() -> Expression {
    expression("attribute_exists(#k)", &[("#k", "id")], Vec::new())
}

fn put(item: Item, condition: Option<Expression>) -> Action {
    Action::Put { collection: "t".to_owned(), item, condition }
}

fn delete(id: &str, condition: Option<Expression>) -> Action {
    Action::Delete { collection: "t".to_owned(), key: key(id), condition }
}

fn check(id: &str) -> Action {
    Action::Check { collection: "t".to_owned(), key: key(id), condition: present() }
}

async fn write(tables: &Tables, action: Action) -> Result<Written> {
    tables.write_items(vec![action]).await.unwrap().remove(0)
}

async fn get(tables: &Tables, id: &str) -> Option<Item> {
    tables.get_items("t", vec![key(id)], true).await.unwrap().remove(0)
}

#[tokio::test]
async fn a_table_is_made_once_and_described() {
    let tables = tables(grant(&engine()));
    let name = format!("{}_t", tables.shared.grant.table_prefix);
    assert_eq!(tables.describe_table("t").await.unwrap(), None);
    let planned = tables.prepare_table(&spec("t"), true, false).await.unwrap();
    assert_eq!(tables.list_collections().await.unwrap(), [""; 0]);
    let done = tables.prepare_table(&spec("t"), false, false).await.unwrap();
    assert_eq!(done, [format!("table {name}: created with index by_state, paid by request")]);
    assert_eq!(planned, done);
    assert_eq!(tables.prepare_table(&spec("t"), false, false).await.unwrap(), [""; 0]);
    assert_eq!(tables.list_collections().await.unwrap(), ["t"]);
    let status = tables.describe_table("t").await.unwrap().unwrap();
    assert_eq!((status.name, status.status.as_str(), status.key), (name, "ACTIVE", key_schema("id", None)));
    assert_eq!((status.capacity, status.scaling), (None, Vec::new()));
    let index = IndexStatus {
        name: "by_state".to_owned(),
        status: "ACTIVE".to_owned(),
        key: key_schema("state", Some("at")),
        holds_whole_items: true,
        capacity: None,
    };
    assert_eq!(status.indexes, [index]);
}

#[tokio::test]
async fn many_may_make_a_table_at_a_time() {
    let tables = tables(grant(&engine()));
    let made = (0..4).map(|_| async { tables.prepare_table(&spec("t"), false, false).await.map(drop) });
    let made: Vec<_> = stream::iter(made).buffer_unordered(4).collect().await;
    assert_eq!(made, vec![Ok(()); 4]);
}

#[tokio::test]
async fn a_table_that_differs_is_rejected_and_an_index_it_lacks_is_added_on_demand() {
    let tables = with_table().await;
    let mut other = spec("t");
    other.key.hash = "machine_id".to_owned();
    other.indexes[0].1.range = None;
    let refused = tables.prepare_table(&other, false, true).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Rejected);
    for part in ["its key is id, not machine_id", "its index by_state is over state, at, not state"] {
        assert!(refused.message.contains(part), "{}", refused.message);
    }

    let mut more = spec("t");
    more.indexes.push(("by_owner".to_owned(), key_schema("owner", None)));
    let refused = tables.prepare_table(&more, false, false).await.unwrap_err();
    assert!(refused.message.contains("it lacks the index by_owner"), "{}", refused.message);
    let name = format!("{}_t", tables.shared.grant.table_prefix);
    let planned = tables.prepare_table(&more, true, true).await.unwrap();
    assert_eq!(planned, [format!("table {name}: index by_owner added")]);
    assert_eq!(tables.prepare_table(&more, false, true).await.unwrap(), planned);
    assert_eq!(tables.describe_table("t").await.unwrap().unwrap().indexes.len(), 2);
    assert_eq!(tables.prepare_table(&more, false, false).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn units_and_billing_are_as_configured() {
    let mut by_units = grant(&engine());
    by_units.provisioned = Some(Provisioned { read: 7, write: 3 });
    let provisioned = tables(by_units.clone());
    let done = provisioned.prepare_table(&spec("t"), false, false).await.unwrap();
    assert!(done[0].ends_with("7 read and 3 write units a second"), "{done:?}");
    let status = provisioned.describe_table("t").await.unwrap().unwrap();
    let units = Some(Capacity { read: 7, write: 3 });
    assert_eq!((status.capacity, status.indexes[0].capacity), (units, units));

    let other = DynamodbGrant { provisioned: Some(Provisioned { read: 8, write: 3 }), ..by_units.clone() };
    let refused = tables(other).prepare_table(&spec("t"), false, false).await.unwrap_err();
    assert!(refused.message.contains("it has 7 read and 3 write units a second, not 8"), "{}", refused.message);
    let by_request = tables(DynamodbGrant { provisioned: None, ..by_units });
    let refused = by_request.prepare_table(&spec("t"), false, false).await.unwrap_err();
    assert!(refused.message.contains("it is provisioned, not paid by request"), "{}", refused.message);
}

#[tokio::test]
async fn without_a_service_that_scales_prepare_says_so() {
    let mut scaled = grant(&engine());
    scaled.provisioned = Some(Provisioned { read: 5, write: 5 });
    scaled.auto_scaling = Some(scaling());
    let lines = tables(scaled).prepare_table(&spec("t"), false, false).await.unwrap();
    assert!(lines[1].ends_with("not scaled, because this endpoint has no Application Auto Scaling"), "{lines:?}");
}

fn scaling() -> AutoScaling {
    AutoScaling { read_min: 1, read_max: 100, write_min: 2, write_max: 50, target_utilization: 70 }
}

/// Tables that are scaled. The engine of the other tests does not scale, so that these are in a server that says it does.
async fn scaled(mut grant: DynamodbGrant, auto_scaling: AutoScaling) -> Tables {
    let endpoint = std::env::var("LARDER_TEST_MOTO")
        .expect("LARDER_TEST_MOTO names no server: run the tests with `cargo xtask test`");
    grant.provisioned = Some(Provisioned { read: 5, write: 5 });
    grant.auto_scaling = Some(auto_scaling);
    let config = aws_config::defaults(aws_config::BehaviorVersion::latest())
        .region(aws_config::Region::new("us-east-1"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(endpoint)
        .load()
        .await;
    let tables = tables(grant);
    let clients = Clients {
        tables: aws_sdk_dynamodb::Client::new(&config),
        scaling: Some(Scaling {
            requests: aws_sdk_applicationautoscaling::Client::new(&config),
            to_scaling: Sending::new(TIMEOUT),
        }),
        to_tables: Sending::new(TIMEOUT),
    };
    assert!(tables.shared.clients.set(clients).is_ok());
    tables
}

#[tokio::test]
async fn a_table_and_its_indexes_are_registered_to_be_scaled() {
    let grant = grant("unused");
    let tables = scaled(grant.clone(), scaling()).await;
    let name = format!("{}_t", grant.table_prefix);
    let planned = tables.prepare_table(&spec("t"), true, false).await.unwrap();
    let scaled_by = "scaled between 1 and 100 read, 2 and 50 write units, at 70 %";
    let expected = [
        format!("table {name}: created with index by_state, 5 read and 5 write units a second"),
        format!("table {name}: {scaled_by}"),
        format!("index by_state of {name}: {scaled_by}"),
    ];
    assert_eq!(planned, expected);
    assert_eq!(tables.describe_table("t").await.unwrap(), None);
    assert_eq!(tables.prepare_table(&spec("t"), false, false).await.unwrap(), expected);
    assert_eq!(tables.prepare_table(&spec("t"), false, false).await.unwrap(), [""; 0]);
    let status = tables.describe_table("t").await.unwrap().unwrap();
    let sentences = [format!("table {name}"), format!("index by_state of {name}")]
        .map(|what| format!("{what}: 1 to 100 read units at 70 %, 2 to 50 write units at 70 %"));
    assert_eq!(status.scaling, sentences);

    let other = scaled(grant, AutoScaling { target_utilization: 50, ..scaling() }).await;
    assert_eq!(other.prepare_table(&spec("t"), true, false).await.unwrap().len(), 2);
    assert_eq!(other.prepare_table(&spec("t"), false, false).await.unwrap().len(), 2);
    assert_eq!(other.prepare_table(&spec("t"), false, false).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn every_kind_of_attribute_comes_back() {
    let tables = with_table().await;
    let notation = r#"{"M":{"a":{"L":[{"S":"x"},{"N":"1.5"},{"BOOL":false},{"NULL":true},{"M":{}},{"B":"AQI="}]}}}"#;
    let mut item = vec![
        ("binary".to_owned(), Attribute::Binary(vec![0, 255])),
        ("document".to_owned(), Attribute::Document(notation.to_owned())),
        text("id", "ü€😀"),
        ("no".to_owned(), Attribute::Null),
        ("number".to_owned(), Attribute::Number("-12345678901234567890.5".to_owned())),
        ("set".to_owned(), Attribute::Document(r#"{"SS":["a","b"]}"#.to_owned())),
        text("text", ""),
        ("yes".to_owned(), Attribute::Boolean(true)),
    ];
    assert_eq!(write(&tables, put(item.clone(), None)).await, Ok(Written::Done));
    assert_eq!(get(&tables, "ü€😀").await, Some(item.clone()));
    item[2] = text("id", "\"\\\u{1}");
    assert_eq!(tables.put_batch("t", vec![item.clone()]).await, Ok(()));
    let both = vec![key("ü€😀"), key("\"\\\u{1}")];
    assert_eq!(tables.get_items("t", both, true).await.unwrap()[1], Some(item));

    for broken in ["", "{}", r#"{"S":"a","N":"1"}"#, r#"{"S":1}"#, r#"{"L":[1]}"#, r#"{"B":"%"}"#] {
        let item = vec![text("id", "x"), ("d".to_owned(), Attribute::Document(broken.to_owned()))];
        let error = write(&tables, put(item.clone(), None)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{broken}");
        let error = tables.put_batch("t", vec![item]).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{broken}");
    }
    let twice = vec![text("id", "x"), text("id", "y")];
    let error = write(&tables, put(twice.clone(), None)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    let error = tables.put_batch("t", vec![twice]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert_eq!(get(&tables, "x").await, None);
}

#[tokio::test]
async fn a_batch_of_any_length_is_stored_and_read() {
    let tables = with_table().await;
    tables.put_batch("t", (0..230).map(machine).collect()).await.unwrap();
    let mut keys: Vec<Item> = (0..230).map(|number| key(format!("m{number}"))).collect();
    keys.push(key("none"));
    keys.push(key("m7"));
    let found = tables.get_items("t", keys, true).await.unwrap();
    let mut expected: Vec<_> = (0..230).map(|number| Some(machine(number))).collect();
    expected.push(None);
    expected.push(Some(machine(7)));
    assert_eq!(found, expected);
    assert_eq!(tables.get_items("t", Vec::new(), true).await, Ok(Vec::new()));
    assert_eq!(tables.put_batch("t", Vec::new()).await, Ok(()));
}

#[tokio::test]
async fn a_condition_that_does_not_hold_refuses_a_write_and_gives_the_stored_item() {
    let tables = with_table().await;
    assert_eq!(write(&tables, put(machine(1), absent())).await, Ok(Written::Done));
    assert_eq!(write(&tables, put(machine(1), absent())).await, Ok(Written::Refused(Some(machine(1)))));
    assert_eq!(write(&tables, put(machine(2), Some(present()))).await, Ok(Written::Refused(None)));
    assert_eq!(write(&tables, check("m1")).await, Ok(Written::Done));
    assert_eq!(write(&tables, check("m2")).await, Ok(Written::Refused(None)));
    assert_eq!(write(&tables, delete("m2", Some(present()))).await, Ok(Written::Refused(None)));
    assert_eq!(write(&tables, delete("m1", Some(present()))).await, Ok(Written::Done));
    assert_eq!(get(&tables, "m1").await, None);

    let each = (0..40).map(|number| put(machine(number), absent())).collect();
    assert_eq!(tables.write_items(each).await.unwrap(), vec![Ok(Written::Done); 40]);
}

#[tokio::test]
async fn a_transaction_takes_effect_as_a_whole_or_not_at_all() {
    let tables = with_table().await;
    write(&tables, put(machine(1), None)).await.unwrap();
    let done = tables.transact(vec![put(machine(2), absent()), check("m1")], &token(&tables, "1")).await;
    assert_eq!(done, Ok(vec![Written::Done, Written::Done]));
    let refused =
        tables.transact(vec![put(machine(3), absent()), put(machine(1), absent())], &token(&tables, "2")).await;
    assert_eq!(refused, Ok(vec![Written::Done, Written::Refused(Some(machine(1)))]));
    assert_eq!(get(&tables, "m3").await, None);
    let refused = tables.transact(vec![delete("m1", None), check("none")], &token(&tables, "3")).await;
    assert_eq!(refused, Ok(vec![Written::Done, Written::Refused(None)]));
    assert!(get(&tables, "m1").await.is_some());

    // The condition would not hold any more.
    let again = tables.transact(vec![put(machine(2), absent()), check("m1")], &token(&tables, "1")).await;
    assert_eq!(again, Ok(vec![Written::Done, Written::Done]));
    let other = tables.transact(vec![delete("m1", None)], &token(&tables, "1")).await.unwrap_err();
    assert_eq!(other.kind, ErrorKind::InvalidArgument, "{other}");
    let many = (0..101).map(|number| put(machine(number), None)).collect();
    assert_eq!(tables.transact(many, &token(&tables, "4")).await.unwrap_err().kind, ErrorKind::LimitExceeded);
    assert_eq!(tables.transact(vec![check("m1")], "").await.unwrap_err().kind, ErrorKind::InvalidArgument);
    assert_eq!(tables.transact(Vec::new(), &token(&tables, "5")).await, Ok(Vec::new()));
}

#[tokio::test]
async fn items_are_put_where_nothing_is_stored() {
    let tables = with_table().await;
    let put_new = |numbers: std::ops::Range<usize>| tables.put_new("t", "id", numbers.map(machine).collect());
    assert_eq!(put_new(0..0).await, Ok(Vec::new()));
    assert_eq!(put_new(0..230).await, Ok(vec![true; 230]));
    // One is stored already, and its transaction put nothing.
    assert_eq!(put_new(229..400).await, Ok([vec![false; 100], vec![true; 71]].concat()));
    assert_eq!((get(&tables, "m230").await, get(&tables, "m330").await), (None, Some(machine(330))));
    let other = vec![vec![text("id", "m1"), text("state", "down")]];
    assert_eq!(tables.put_new("t", "id", other).await, Ok(vec![false]));
    assert_eq!(get(&tables, "m1").await, Some(machine(1)));

    // By bytes too: the service takes 4 MB in one transaction.
    let large = |number: usize| vec![text("id", format!("large{number}")), text("x", "\u{7f}".repeat(390_000))];
    assert_eq!(tables.put_new("t", "id", (0..25).map(large).collect()).await, Ok(vec![true; 25]));
    assert_eq!(get(&tables, "large24").await, Some(large(24)));

    let broken = vec![text("id", "x"), ("d".to_owned(), Attribute::Document("{}".to_owned()))];
    let error = tables.put_new("t", "id", vec![machine(900), broken]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    // What the service refuses is no item that is stored.
    let keyless = vec![text("at", "0901")];
    let error = tables.put_new("t", "id", vec![machine(901), keyless]).await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::InvalidArgument, Retry::Never), "{error}");
    assert_eq!((get(&tables, "m900").await, get(&tables, "m901").await), (None, None));
}

fn query() -> ItemQuery {
    ItemQuery {
        collection: "t".to_owned(),
        index: Some("by_state".to_owned()),
        key: expression("#s = :s", &[("#s", "state")], vec![text(":s", "up")]),
        filter: None,
        start: None,
        limit: 1000,
        descending: false,
        consistent: false,
        count_only: false,
    }
}

#[tokio::test]
async fn a_query_reads_an_index_page_by_page() {
    let tables = with_table().await;
    tables.put_batch("t", (0..25).map(machine).collect()).await.unwrap();
    let (mut found, mut start) = (Vec::new(), None);
    loop {
        let page = tables.query(ItemQuery { limit: 10, start, ..query() }).await.unwrap();
        assert!(page.read_units > 0.0);
        found.extend(page.items);
        start = page.last_key;
        if start.is_none() {
            break;
        }
    }
    assert_eq!(found, (0..25).map(machine).collect::<Vec<_>>());
    let last = tables.query(ItemQuery { limit: 1, descending: true, ..query() }).await.unwrap();
    assert_eq!(last.items, [machine(24)]);
    let filter = Some(expression("#at < :at", &[("#at", "at")], vec![text(":at", "0005")]));
    let refused = tables.query(ItemQuery { filter, ..query() }).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument, "an index's key is no filter: {refused}");
    let filter = Some(expression("begins_with(#id, :id)", &[("#id", "id")], vec![text(":id", "m2")]));
    let counted = tables.query(ItemQuery { filter, count_only: true, ..query() }).await.unwrap();
    assert_eq!((counted.count, counted.items), (6, Vec::new()));
    let consistent = tables.query(ItemQuery { consistent: true, ..query() }).await.unwrap_err();
    assert_eq!(consistent.kind, ErrorKind::InvalidArgument);
    let unknown = ItemQuery { index: Some("none".to_owned()), ..query() };
    assert_eq!(tables.query(unknown).await.unwrap_err().retry, Retry::Never);
}

#[tokio::test]
async fn a_scan_reads_every_item_in_one_of_its_segments() {
    let tables = with_table().await;
    tables.put_batch("t", (0..50).map(machine).collect()).await.unwrap();
    let scan = ItemScan {
        collection: "t".to_owned(),
        segments: 3,
        filter: Some(expression("#at < :at", &[("#at", "at")], vec![text(":at", "0030")])),
        limit: 7,
        consistent: true,
        count_only: false,
    };
    let mut left: Vec<(u32, Option<Item>)> = (0..3).map(|number| (number, None)).collect();
    let mut found = Vec::new();
    while !left.is_empty() {
        let pages = tables.scan(scan.clone(), left.clone()).await.unwrap();
        assert_eq!(pages.len(), left.len());
        let numbers = left.into_iter().map(|(number, _)| number);
        left = numbers.zip(&pages).filter_map(|(number, page)| Some((number, Some(page.last_key.clone()?)))).collect();
        found.extend(pages.into_iter().flat_map(|page| page.items));
    }
    found.sort_by_key(|item| format!("{item:?}"));
    assert_eq!(found, (0..30).map(machine).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_missing_or_not_granted_is_told_apart() {
    let tables = tables(grant(&engine()));
    let missing = tables.get_items("t", vec![key("a")], true).await.unwrap_err();
    assert_eq!((missing.kind, missing.retry), (ErrorKind::NotFound, Retry::Never));
    let missing = write(&tables, put(machine(1), None)).await.unwrap_err();
    assert_eq!((missing.kind, missing.retry), (ErrorKind::NotFound, Retry::Never));
    let missing = tables.transact(vec![put(machine(1), None)], "token").await.unwrap_err();
    assert_eq!((missing.kind, missing.retry), (ErrorKind::NotFound, Retry::Never));
    assert_eq!(tables.put_new("t", "id", vec![machine(1)]).await.unwrap_err().kind, ErrorKind::NotFound);
    let missing = tables.put_batch("t", vec![machine(1)]).await.unwrap_err();
    assert_eq!((missing.kind, missing.retry), (ErrorKind::NotFound, Retry::Never));
    for other in ["other", "", "t_", "../t"] {
        assert_eq!(tables.get_items(other, vec![key("a")], true).await.unwrap_err().kind, ErrorKind::Denied);
        assert_eq!(tables.describe_table(other).await.unwrap_err().kind, ErrorKind::Denied);
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unavailable_and_nothing_was_done() {
    let tables = tables(grant("http://127.0.0.1:9"));
    let error = write(&tables, put(machine(1), None)).await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    assert_eq!(error.message, "DynamoDB cannot be reached: connection refused");
}

#[tokio::test]
async fn a_collection_that_is_not_the_stores_is_denied_before_anything_is_sent() {
    // Nobody listens there: what is sent is `unavailable`.
    let tables = tables(grant("http://127.0.0.1:9"));
    let action = Action::Delete { collection: "payroll".into(), key: key("a"), condition: None };
    let spec =
        TableSpec { collection: "payroll".into(), key: KeySchema { hash: "id".into(), range: None }, indexes: vec![] };
    for denied in [
        tables.get_items("payroll", vec![key("a")], true).await.map(drop),
        tables.put_batch("payroll", vec![key("a")]).await,
        tables.put_new("payroll", "id", vec![key("a")]).await.map(drop),
        tables.transact(vec![action], "token").await.map(drop),
        tables.describe_table("payroll").await.map(drop),
        tables.prepare_table(&spec, true, false).await.map(drop),
    ] {
        let error = denied.unwrap_err();
        assert_eq!((error.kind, error.retry), (ErrorKind::Denied, Retry::Never), "{error}");
        assert_eq!(error.message, "the store has no collection `payroll`");
    }
}

#[tokio::test]
async fn without_credentials_access_is_denied() {
    let mut unknown = grant(&engine());
    unknown.profile = Some("no-such-profile".to_owned());
    let error = tables(unknown).get_items("t", vec![key("a")], true).await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Denied, Retry::Never), "{error}");
}

/// Passes on what the client sends and what the engine answers, but for `lost` answers, at which it hangs up.
fn with_lost_answers(lost: u32) -> (String, Arc<AtomicU32>) {
    let engine = engine().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let lost = Arc::new(AtomicU32::new(lost));
    let counter = Arc::clone(&lost);
    thread::spawn(move || {
        for client in listener.incoming().map_while(std::result::Result::ok) {
            let Ok(server) = TcpStream::connect(&engine) else { return };
            let counter = Arc::clone(&counter);
            let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                let (mut client, mut server, mut bytes) = (client, server, vec![0; 1 << 16]);
                while let Ok(count @ 1..) = server.read(&mut bytes) {
                    let loses = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                    if loses.is_ok() || client.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
                let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
            });
        }
    });
    (address, lost)
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_found_done_or_its_outcome_is_unknown() {
    let direct = with_table().await;
    let (address, lost) = with_lost_answers(1);
    let lossy = tables(DynamodbGrant { endpoint_url: Some(address), ..direct.shared.grant.clone() });
    let mut item = machine(1);
    item.push(("size".to_owned(), Attribute::Number("1.0".to_owned())));
    assert_eq!(write(&lossy, put(item, absent())).await, Ok(Written::Done), "what is stored is what was sent");
    assert_eq!(lost.load(Ordering::SeqCst), 0);

    lost.store(1, Ordering::SeqCst);
    let error = write(&lossy, delete("m1", Some(present()))).await.unwrap_err();
    assert_eq!(error.retry, Retry::UnknownOutcome, "{error}");
    assert_eq!(get(&direct, "m1").await, None);

    lost.store(1, Ordering::SeqCst);
    assert_eq!(write(&lossy, delete("m1", None)).await, Ok(Written::Done));
    lost.store(1, Ordering::SeqCst);
    let done = lossy.transact(vec![put(machine(2), absent())], &token(&direct, "lost")).await;
    assert_eq!(done, Ok(vec![Written::Done]), "its token makes a repetition harmless");
    lost.store(1, Ordering::SeqCst);
    assert_eq!(get(&lossy, "m2").await, Some(machine(2)));
    lost.store(1, Ordering::SeqCst);
    assert_eq!(lossy.put_batch("t", vec![machine(3)]).await, Ok(()));

    lost.store(u32::MAX, Ordering::SeqCst);
    let error = write(&lossy, put(machine(4), absent())).await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::UnknownOutcome), "{error}");
    let error = lossy.get_items("t", vec![key("m4")], true).await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    assert_eq!(write(&lossy, check("m4")).await.unwrap_err().retry, Retry::Safe);
    assert_eq!(get(&direct, "m4").await, Some(machine(4)));
}

#[tokio::test]
async fn transactions_on_one_item_take_their_turns() {
    let tables = with_table().await;
    let puts = (0..20).map(|number| {
        let tables = tables.clone();
        async move {
            tables
                .transact(
                    vec![put(machine(number), absent()), put(machine(1000), None)],
                    &token(&tables, &number.to_string()),
                )
                .await
        }
    });
    let puts: Vec<_> = puts.collect();
    let results: Vec<_> = stream::iter(puts).buffer_unordered(20).collect().await;
    for result in results {
        match result {
            Ok(written) => assert_eq!(written, [Written::Done, Written::Done]),
            Err(error) => assert_eq!((error.kind, error.retry), (ErrorKind::VersionConflict, Retry::Safe), "{error}"),
        }
    }
}
