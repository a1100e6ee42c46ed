//! The strategy over SQLite and PostgreSQL, natively. A body runs on both, unless it is about one of them.

/// Makes a test of each body for each place.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $name() { super::$name(super::Place::Sqlite) })*
        }
        mod postgres {
            $(#[test] fn $name() { super::$name(super::Place::Postgres) })*
        }
    };
}

mod beside;
mod concurrency;
mod native;
mod orders;
mod preparing;

use larder_guest::{Rows, Sql, SqlValue};
use larder_model::{
    Collection, Entity, ErrorKind, Existing, Expectation, Field, FieldType, Index, Isolation, Put, Query, Reference,
    Removal, Result, Retry, SortKey, Stamps, Write,
    filter::{self, Filter},
    json,
    path::Path as FieldPath,
};
use serde_json::Value;

use crate::SqlStore;
use native::{Native, Place};

const NOW: &str = "2025-06-30T12:00:00.000000Z";
const REPLY_BYTES_MAX: u32 = 1 << 20;

on_both! {
    every_value_survives_in_every_column,
    an_entity_of_the_deepest_nesting_and_of_many_members_survives,
    names_may_hold_any_character,
    the_table_is_the_missions,
    a_missing_table_reads_as_empty_and_is_made_by_the_first_write,
    a_table_that_is_not_as_it_should_be_is_refused_and_never_altered,
    a_table_that_was_made_by_hand_is_used_where_it_fits,
    a_column_that_was_changed_by_hand_is_right,
    what_cannot_be_read_is_corrupt_and_names_its_place,
    writes_are_checked_stamped_and_all_or_nothing,
    a_refused_reference_is_named,
    one_entity_may_be_written_twice_where_the_writes_stand_alone,
    load_says_what_it_did_with_each_entity,
    a_query_answers_what_the_model_says_and_names_what_it_left,
    pages_follow_the_key_in_either_direction,
    an_index_is_used_where_it_is_named_and_said_where_it_is_not,
    segments_of_a_scan_are_the_whole_once,
    a_batch_of_a_scan_ends_by_its_entities_and_not_by_its_rows,
    a_transaction_sees_its_own_writes_and_ends_as_it_is_told,
    check_tells_what_there_is,
    what_cannot_be_a_table_is_refused_when_the_store_is_opened,
}

/// A store, and its database for others.
struct Fixture {
    sql: Native,
    store: SqlStore<Native>,
}

fn open(place: Place, config: &str, collections: Vec<Collection>) -> Fixture {
    let sql = Native::new(place);
    let (store, _) = SqlStore::open_in(sql.clone(), config, collections).unwrap();
    Fixture { sql, store }
}

impl Fixture {
    /// What somebody does by hand.
    fn by_hand(&self, text: &str) -> Rows {
        self.sql.query(text, Vec::new(), REPLY_BYTES_MAX).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn put(&mut self, collection: &str, body: &str) -> Result<larder_model::Outcome> {
        let mut results = self.store.apply(vec![put(collection, body, Expectation::Any)], true, NOW)?;
        results.remove(0)
    }

    fn get(&mut self, collection: &str, id: &str) -> Result<Option<String>> {
        let found = self.store.get(collection, &[id.to_owned()])?.remove(0);
        Ok(found.map(|entity| String::from_utf8(entity.body).unwrap()))
    }

    fn load(&mut self, collection: &str, bodies: &[String], existing: Existing) -> larder_model::Loaded {
        self.store.load(collection, bodies.iter().map(|body| entity(body)).collect(), existing).unwrap()
    }

    fn reopen(&self, config: &str, collections: Vec<Collection>) -> SqlStore<Native> {
        SqlStore::open_in(self.sql.clone(), config, collections).unwrap().0
    }
}

/// The id is the first member, whatever it is called.
fn entity(body: &str) -> Entity {
    let members = json::parse_object(body.as_bytes()).unwrap();
    let id = members.values().next().and_then(Value::as_str).unwrap_or_default().to_owned();
    Entity { id, version: 0, body: body.as_bytes().to_vec() }
}

fn put(collection: &str, body: &str, expect: Expectation) -> Write {
    Write::Put(Put { collection: collection.to_owned(), id: entity(body).id, body: body.as_bytes().to_vec(), expect })
}

fn remove(collection: &str, id: &str, expect: Expectation) -> Write {
    Write::Remove(Removal { collection: collection.to_owned(), id: id.to_owned(), expect })
}

fn field(name: &str, ty: FieldType) -> Field {
    Field { name: name.to_owned(), ty, required: false, max_length: None }
}

fn collection(name: &str, key: &str, fields: Vec<Field>) -> Collection {
    Collection {
        name: name.to_owned(),
        key: key.to_owned(),
        stamps: Stamps {
            version: "version".to_owned(),
            created: Some("created_at".to_owned()),
            updated: Some("updated_at".to_owned()),
            adds_updated: false,
        },
        fields,
        indexes: Vec::new(),
        references: Vec::new(),
    }
}

/// Parents and children like the mission's requests and machines, in a small.
fn family() -> Vec<Collection> {
    let required = |name: &str| Field { required: true, max_length: Some(8), ..field(name, FieldType::Text) };
    let mut machines = collection(
        "machines",
        "machine_id",
        vec![
            Field { max_length: Some(255), ..required("request_id") },
            required("status"),
            field("created_at", FieldType::Timestamp),
            field("count", FieldType::Integer),
        ],
    );
    machines.references = vec![Reference { field: "request_id".to_owned(), collection: "requests".to_owned() }];
    machines.indexes = vec![
        Index { name: "status".to_owned(), fields: vec!["status".to_owned()] },
        Index {
            name: "request_id-created_at-index".to_owned(),
            fields: vec!["request_id".to_owned(), "created_at".to_owned()],
        },
    ];
    let requests = collection("requests", "request_id", vec![field("tags", FieldType::Json)]);
    vec![machines, requests]
}

const TYPES: [(&str, FieldType); 6] = [
    ("text", FieldType::Text),
    ("integer", FieldType::Integer),
    ("number", FieldType::Number),
    ("boolean", FieldType::Boolean),
    ("timestamp", FieldType::Timestamp),
    ("json", FieldType::Json),
];

/// A collection with a column of each type.
fn typed() -> Vec<Collection> {
    vec![collection("typed", "id", TYPES.map(|(name, ty)| field(name, ty)).to_vec())]
}

/// Values that one column or another would change.
fn awkward_values() -> Vec<String> {
    let mut values: Vec<String> = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "1",
        "-1",
        "1.0",
        "1.50",
        "0.1",
        "-0.0",
        "1e2",
        "100",
        "1e400",
        "-1e400",
        "1e-400",
        "5e-324",
        "0.1000000000000000055511151231257827",
        "9007199254740993",
        "9007199254740993.0",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "-9223372036854775809",
        "9223372036854775807.5",
        "4611686018427387904.5",
        "1234567890123456789012345678901234567890",
        "18446744073709551616",
        "1e20",
        "100000000000000000000",
        "1.5",
        r#""""#,
        r#"" ""#,
        r#""abc""#,
        r#""é 漢 𝄞""#,
        r#""a\u0000b""#,
        r#""\u0000""#,
        r#""12\u0000""#,
        r#""'; DROP TABLE x; --""#,
        r#""1""#,
        r#""01""#,
        r#""1.0""#,
        r#"" 1 ""#,
        r#""-0""#,
        r#""1e5""#,
        r#"".5""#,
        r#""+1""#,
        r#""-""#,
        r#""e""#,
        r#""inf""#,
        r#""nan""#,
        r#""0x10""#,
        r#""1_000""#,
        r#""true""#,
        r#""null""#,
        r#""NULL""#,
        r#""[1,2]""#,
        r#""{\"a\":1}""#,
        r#""\"quoted\"""#,
        r#""2025-06-30T12:00:00Z""#,
        r#""2025-06-30T12:00:00.123456789+02:00""#,
        r#""2025-06-30""#,
        r#""2025""#,
        r#""12:30""#,
        r#""1751284800""#,
        "[]",
        "{}",
        "[1,2]",
        r#"["a",null,1.0,{"b":[]}]"#,
        r#"{"a":{"b":"c"},"value":1,"column":2}"#,
        r#"{"$serde_json::private::Number":"1"}"#,
        r#"{"":0}"#,
        "[null]",
    ]
    .map(str::to_owned)
    .to_vec();
    values.push(format!("{}1{}", "[".repeat(62), "]".repeat(62)));
    values.push(format!("\"{}\"", "é".repeat(500_000)));
    values
}

fn assert_same(stored: &str, expected: &str, context: &str) {
    let (stored_map, expected_map) =
        (json::parse_object(stored.as_bytes()).unwrap(), json::parse_object(expected.as_bytes()).unwrap());
    let short = |text: &str| text.chars().take(300).collect::<String>();
    assert!(json::equal_objects(&stored_map, &expected_map), "{context}: {} is not {}", short(stored), short(expected));
}

fn every_value_survives_in_every_column(place: Place) {
    for config in ["{}", r#"{"constraints":"relaxed"}"#] {
        let mut fixture = open(place, config, typed());
        let names =
            TYPES.map(|(name, _)| name).into_iter().chain(["undeclared", "version", "$serde_json::private::Number"]);
        let mut bodies = vec![r#"{"id":"bare"}"#.to_owned()];
        for name in names {
            for value in awkward_values() {
                bodies.push(format!(r#"{{"id":"{}","{name}":{value}}}"#, bodies.len()));
            }
        }
        let loaded = fixture.load("typed", &bodies, Existing::Fail);
        assert_eq!((loaded.written, loaded.refused), (bodies.len() as u64, vec![]));
        for body in &bodies {
            let stored = fixture.get("typed", &entity(body).id).unwrap().unwrap();
            assert_same(&stored, body, "get");
        }
        let again = fixture.load("typed", &bodies, Existing::Fail);
        assert_eq!((again.unchanged, again.written), (bodies.len() as u64, 0));

        // All columns at once, the same value in each.
        for (i, value) in awkward_values().iter().enumerate() {
            let members: Vec<String> = TYPES.iter().map(|(name, _)| format!(r#""{name}":{value}"#)).collect();
            let body = format!(r#"{{"id":"all-{i}","other":{value},{}}}"#, members.join(","));
            let loaded = fixture.load("typed", std::slice::from_ref(&body), Existing::Overwrite);
            assert_eq!(loaded.written, 1);
            assert_same(&fixture.get("typed", &format!("all-{i}")).unwrap().unwrap(), &body, "all columns");
        }
    }
}

fn an_entity_of_the_deepest_nesting_and_of_many_members_survives(place: Place) {
    let mut fixture = open(place, "{}", typed());
    let members: Vec<String> = (0..2_000).map(|i| format!(r#""m{i}":{i}"#)).collect();
    let deep = format!("{}{}", r#"{"a":"#.repeat(62), "1".to_owned() + &"}".repeat(62));
    for body in [
        format!(r#"{{"id":"deep","json":{deep},"x":{deep}}}"#),
        // In columns that are not for it, and as deep as it can be.
        format!(r#"{{"id":"deeper","text":[{deep}],"integer":[{deep}],"time":[{deep}]}}"#),
        format!(r#"{{"id":"many",{}}}"#, members.join(",")),
        format!(r#"{{"id":"large","text":"{}"}}"#, "x".repeat(8 << 20)),
    ] {
        assert_eq!(fixture.load("typed", std::slice::from_ref(&body), Existing::Fail).written, 1);
        assert_same(&fixture.get("typed", &entity(&body).id).unwrap().unwrap(), &body, "get");
    }
}

fn names_may_hold_any_character(place: Place) {
    let fields = [r#"with "quotes""#, "with.dot", "mit Ümläut", "'; DROP TABLE x; --", "select", "?1", "[a]", "`b`"];
    let mut definition = collection(
        r#"odd "name".with 'all' – 漢; --"#,
        r#"the "key""#,
        fields.iter().map(|name| Field { required: true, ..field(name, FieldType::Text) }).collect(),
    );
    definition.indexes =
        vec![Index { name: r#"an "index".of"#.to_owned(), fields: vec![fields[0].to_owned(), fields[4].to_owned()] }];
    definition.references = vec![Reference { field: fields[1].to_owned(), collection: definition.name.clone() }];
    let name = definition.name.clone();
    let mut fixture = open(place, "{}", vec![definition.clone()]);
    // larder's own table, the table, its index and the one for what its columns do not hold.
    assert_eq!(fixture.store.prepare(true, false).unwrap().len(), 4);
    let members: Vec<String> = fields.iter().map(|field| format!("{}:\"me\"", Value::from(*field))).collect();
    let body = format!(r#"{{"the \"key\"":"me",{}}}"#, members.join(","));
    fixture.put(&name, &body).unwrap();
    assert!(fixture.get(&name, "me").unwrap().unwrap().contains("DROP TABLE"));
    assert_eq!(fixture.store.stored_collections().unwrap(), std::slice::from_ref(&name));
    let query = Query {
        filter: Some(filter::parse_json(&json::parse(br#"{"select":"me"}"#).unwrap()).unwrap()),
        ..everything()
    };
    assert_eq!(fixture.store.find(&name, &query).unwrap().entities.len(), 1);
    let mut reopened = fixture.reopen("{}", vec![definition]);
    assert_eq!(reopened.prepare(false, false).unwrap(), [""; 0]);
}

fn the_table_is_the_missions(place: Place) {
    let mut fixture = open(place, "{}", family());
    let lines = fixture.store.prepare(true, false).unwrap();
    // Texts compare by code point in both, and what is absent sorts first.
    let (text, extra, nulls) = match place {
        Place::Sqlite => ("", "TEXT", ""),
        Place::Postgres => (" COLLATE \"C\"", "JSON", " NULLS FIRST"),
    };
    assert_eq!(
        lines,
        [
            format!(
                "CREATE TABLE \"larder_schema\" (\"table_name\" VARCHAR(255){text} PRIMARY KEY, \
                 \"schema_version\" INTEGER NOT NULL, \"columns\" TEXT NOT NULL)"
            ),
            format!(
                "CREATE TABLE \"requests\" (\"request_id\" VARCHAR(255){text} PRIMARY KEY, \"tags\" TEXT{text}, \
                 \"version\" BIGINT, \"larder_extra\" {extra}, \"larder_exact\" TEXT)"
            ),
            "CREATE INDEX \"idx_requests_larder_exact\" ON \"requests\" (\"request_id\") \
             WHERE \"larder_exact\" IS NOT NULL"
                .to_owned(),
            format!(
                "CREATE TABLE \"machines\" (\"machine_id\" VARCHAR(255){text} PRIMARY KEY, \
                 \"request_id\" VARCHAR(255){text} NOT NULL, \"status\" VARCHAR(8){text} NOT NULL, \
                 \"created_at\" TIMESTAMP DEFAULT CURRENT_TIMESTAMP, \"count\" INTEGER, \"version\" BIGINT, \
                 \"larder_extra\" {extra}, \"larder_exact\" TEXT, \
                 FOREIGN KEY (\"request_id\") REFERENCES \"requests\"(\"request_id\"))"
            ),
            format!("CREATE INDEX \"idx_machines_status\" ON \"machines\" (\"status\"{nulls}, \"machine_id\")"),
            format!(
                "CREATE INDEX \"idx_machines_request_id-created_at-index\" ON \"machines\" \
                 (\"request_id\"{nulls}, \"created_at\"{nulls}, \"machine_id\")"
            ),
            "CREATE INDEX \"idx_machines_larder_exact\" ON \"machines\" (\"machine_id\") \
             WHERE \"larder_exact\" IS NOT NULL"
                .to_owned(),
        ]
    );
    assert_eq!(fixture.store.stored_collections().unwrap(), [""; 0], "a dry run makes nothing");
    assert_eq!(fixture.store.prepare(false, false).unwrap(), lines);
    assert_eq!(fixture.store.prepare(false, false).unwrap(), [""; 0]);
    let relaxed = fixture.reopen(r#"{"constraints":"relaxed"}"#, family()).prepare(true, false).unwrap_err();
    assert_eq!(relaxed.kind, ErrorKind::Rejected);
    assert!(relaxed.message.contains("`status` is NOT NULL") && relaxed.message.contains("refers to"), "{relaxed}");
}

fn a_missing_table_reads_as_empty_and_is_made_by_the_first_write(place: Place) {
    let mut fixture = open(place, "{}", family());
    assert_eq!(fixture.get("requests", "r1").unwrap(), None);
    assert!(fixture.store.find("requests", &everything()).unwrap().entities.is_empty());
    assert_eq!(fixture.store.count("requests", None).unwrap(), Some(0));
    assert!(fixture.store.scan("requests", 0, 1, None, 1000).unwrap().entities.is_empty());
    assert_eq!(fixture.store.get("nothing", &[]).unwrap_err().kind, ErrorKind::InvalidArgument);
    fixture.put("requests", r#"{"request_id":"r1"}"#).unwrap();
    assert_eq!(fixture.store.stored_collections().unwrap(), ["machines", "requests"]);
    assert_eq!(fixture.store.count("requests", None).unwrap(), Some(1));
    // What others do to the tables meanwhile is noticed.
    fixture.by_hand("ALTER TABLE machines RENAME TO away");
    assert_eq!(fixture.get("machines", "m1").unwrap(), None);
    fixture.by_hand("ALTER TABLE requests RENAME TO gone");
    assert_eq!(fixture.get("requests", "r1").unwrap(), None);
    fixture.by_hand("ALTER TABLE gone RENAME TO requests");
    assert!(fixture.get("requests", "r1").unwrap().is_some());
    fixture.by_hand("ALTER TABLE requests RENAME TO gone");
    fixture.put("requests", r#"{"request_id":"r2"}"#).unwrap();
    assert_eq!(fixture.get("requests", "r1").unwrap(), None);
    assert_eq!(fixture.get("requests", "r\0").unwrap(), None);
}

fn a_table_that_is_not_as_it_should_be_is_refused_and_never_altered(place: Place) {
    let ddl = "CREATE TABLE requests (request_id VARCHAR(255) PRIMARY KEY, tags INTEGER)";
    let mut fixture = open(place, "{}", family());
    fixture.by_hand(ddl);
    for error in [
        fixture.get("requests", "r1").unwrap_err(),
        fixture.put("requests", r#"{"request_id":"r1"}"#).unwrap_err(),
        fixture.store.prepare(false, false).unwrap_err(),
        fixture.store.prepare(true, false).unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Rejected);
        let extra = if place == Place::Sqlite { "`larder_extra` TEXT" } else { "`larder_extra` JSON" };
        for part in ["not TEXT", "`version` BIGINT is missing", &format!("{extra} is missing")] {
            assert!(error.message.contains(part), "{error}");
        }
    }
    fixture.by_hand("INSERT INTO requests (request_id, tags) VALUES ('r1', 5)");
    assert_eq!(fixture.by_hand("SELECT * FROM requests").columns, ["request_id", "tags"]);
    let check = json::parse(fixture.store.check(true).unwrap().as_bytes()).unwrap();
    assert!(check["findings"].to_string().to_lowercase().contains("`tags` is integer"), "{check}");
}

fn a_table_that_was_made_by_hand_is_used_where_it_fits(place: Place) {
    let mut fixture = open(place, "{}", family());
    fixture.by_hand(match place {
        Place::Sqlite => {
            "CREATE TABLE requests (note TEXT, request_id varchar(255) PRIMARY KEY, version INT8, tags TEXT, \
             larder_exact TEXT, larder_extra TEXT)"
        }
        Place::Postgres => {
            "CREATE TABLE requests (note TEXT, request_id varchar(255) COLLATE \"C\" PRIMARY KEY, version INTEGER, \
             tags TEXT, larder_exact TEXT, larder_extra JSON)"
        }
    });
    fixture.by_hand("INSERT INTO requests (request_id, tags, note) VALUES ('r1', '[1]', 'mine')");
    assert_eq!(fixture.get("requests", "r1").unwrap().unwrap(), r#"{"request_id":"r1","tags":[1]}"#);
    fixture.put("requests", r#"{"request_id":"r1","a":1}"#).unwrap();
    assert_same(&fixture.get("requests", "r1").unwrap().unwrap(), &stamped(r#""request_id":"r1","a":1"#, 1), "put");
    let note = fixture.by_hand("SELECT note FROM requests").cells;
    assert_eq!(note, [SqlValue::Text("mine".to_owned())], "a column of others is left alone");
}

fn stamped(members: &str, version: u64) -> String {
    let created =
        if version == 1 && !members.contains("\"a\":1") { format!(r#","created_at":"{NOW}""#) } else { String::new() };
    format!(r#"{{{members},"version":{version}{created}}}"#)
}

fn a_column_that_was_changed_by_hand_is_right(place: Place) {
    let mut fixture = open(place, "{}", typed());
    let body = r#"{"id":"a","text":5,"integer":1.0,"number":1,"boolean":1,"timestamp":"2025-06-30T12:00:00Z","json":[1],"x":null}"#;
    fixture.load("typed", &[body.to_owned()], Existing::Fail);
    assert_same(&fixture.get("typed", "a").unwrap().unwrap(), body, "before");
    let of_sqlite = [("integer = 'some text'", r#""integer":"some text""#), ("boolean = 7", r#""boolean":7"#)];
    let of_postgres = [
        ("timestamp = 'infinity'", r#""timestamp":"infinity""#),
        ("timestamp = '0044-03-15 BC'", r#""timestamp":"0044-03-15 00:00:00 BC""#),
        ("timestamp = '10000-01-01'", r#""timestamp":"10000-01-01 00:00:00""#),
        ("timestamp = '2026-01-01 12:00:00.5'", r#""timestamp":"2026-01-01T12:00:00.500000Z""#),
    ];
    let own = if place == Place::Sqlite { &of_sqlite[..] } else { &of_postgres[..] };
    for (set, expected) in [
        ("text = 'changed'", r#""text":"changed""#),
        ("integer = 2", r#""integer":2"#),
        ("number = 2.5", r#""number":2.5"#),
        ("boolean = (1 = 0)", r#""boolean":false"#),
        ("timestamp = '2026-01-01T00:00:00.000000Z'", r#""timestamp":"2026-01-01T00:00:00.000000Z""#),
        ("json = 'no json'", r#""json":"no json""#),
        ("json = '{\"a\":1}'", r#""json":{"a":1}"#),
        ("version = 9", r#""version":9"#),
    ]
    .iter()
    .chain(own)
    {
        fixture.by_hand(&format!("UPDATE typed SET {set}"));
        let stored = fixture.get("typed", "a").unwrap().unwrap();
        assert!(stored.contains(expected), "{set}: {stored}");
    }
    assert_eq!(fixture.store.get("typed", &["a".to_owned()]).unwrap()[0].as_ref().unwrap().version, 9);
    fixture.by_hand("UPDATE typed SET text = NULL");
    assert!(!fixture.get("typed", "a").unwrap().unwrap().contains("\"text\""));
    fixture.by_hand("INSERT INTO typed (id, text) VALUES ('by hand', 'x')");
    assert_eq!(fixture.get("typed", "by hand").unwrap().unwrap(), r#"{"id":"by hand","text":"x"}"#);
}

fn what_cannot_be_read_is_corrupt_and_names_its_place(place: Place) {
    let of_both = [
        ("INSERT INTO typed (id, larder_extra) VALUES ('a', '[1]')", "`larder_extra` of `a`"),
        ("INSERT INTO typed (id, larder_exact, text) VALUES ('a', '{\"text\":1}', 'x')", "`larder_exact` of `a`"),
        ("INSERT INTO typed (id, larder_exact) VALUES ('a', 'no json')", "`larder_exact` of `a`"),
    ];
    let of_sqlite = [
        ("INSERT INTO typed (id, larder_extra) VALUES ('a', 'no json')", "`larder_extra` of `a`"),
        ("INSERT INTO typed (id, text) VALUES ('a', X'00ff')", "`text` of `a`"),
        ("INSERT INTO typed (id, text) VALUES ('a', CAST(X'41ff42' AS TEXT))", "`text` of `a`"),
        ("INSERT INTO typed (id, number) VALUES ('a', 9e999)", "`number` of `a`"),
        ("INSERT INTO typed (id) VALUES (NULL)", "key `id`"),
    ];
    let of_postgres = [
        ("INSERT INTO typed (id, number) VALUES ('a', 'Infinity')", "`number` of `a`"),
        ("INSERT INTO typed (id, number) VALUES ('a', 'NaN')", "`number` of `a`"),
    ];
    let own = if place == Place::Sqlite { &of_sqlite[..] } else { &of_postgres[..] };
    for (statement, at) in of_both.iter().chain(own) {
        let mut fixture = open(place, "{}", typed());
        fixture.store.prepare(false, false).unwrap();
        fixture.by_hand(statement);
        // As a whole, and in the segment that it is in.
        for segments in [1, 2] {
            let mut scans = (0..segments).map(|segment| fixture.store.scan("typed", segment, segments, None, 1 << 20));
            let error = scans.find_map(Result::err).expect("it is in some segment");
            assert_eq!(error.kind, ErrorKind::Corrupt, "{statement}");
            assert!(error.message.contains("`typed`") && error.message.contains(at), "{error}");
        }
    }
}

fn writes_are_checked_stamped_and_all_or_nothing(place: Place) {
    let mut fixture = open(place, "{}", family());
    let outcomes = fixture
        .store
        .apply(
            vec![
                put("requests", r#"{"request_id":"r1"}"#, Expectation::Absent),
                put("machines", r#"{"machine_id":"m1","request_id":"r1","status":"NEW"}"#, Expectation::Any),
                put("requests", r#"{"request_id":"r2","version":7}"#, Expectation::Any),
            ],
            true,
            NOW,
        )
        .unwrap();
    let outcomes: Vec<_> =
        outcomes.into_iter().map(|outcome| outcome.unwrap()).map(|o| (o.version, o.existed)).collect();
    assert_eq!(outcomes, [(1, false), (1, false), (7, false)]);
    let stored = fixture.get("machines", "m1").unwrap().unwrap();
    assert_eq!(
        stored,
        format!(r#"{{"machine_id":"m1","request_id":"r1","status":"NEW","created_at":"{NOW}","version":1}}"#)
    );
    for (write, kind, version) in [
        (put("requests", r#"{"request_id":"r1"}"#, Expectation::Absent), ErrorKind::AlreadyExists, None),
        (put("requests", r#"{"request_id":"r1"}"#, Expectation::Version(3)), ErrorKind::VersionConflict, Some(1)),
        (put("requests", r#"{"request_id":"r9"}"#, Expectation::Present), ErrorKind::NotFound, None),
        (remove("requests", "r2", Expectation::Version(1)), ErrorKind::VersionConflict, Some(7)),
        (remove("requests", "r9", Expectation::Version(1)), ErrorKind::NotFound, None),
        (remove("requests", "r1", Expectation::Any), ErrorKind::Rejected, None),
        (put("machines", r#"{"machine_id":"m2","status":"NEW"}"#, Expectation::Any), ErrorKind::Rejected, None),
        (
            put("machines", r#"{"machine_id":"m2","request_id":"r9","status":"NEW"}"#, Expectation::Any),
            ErrorKind::Rejected,
            None,
        ),
        (put("requests", r#"{"request_id":"r1","version":"x"}"#, Expectation::Any), ErrorKind::InvalidArgument, None),
    ] {
        let first = put("requests", r#"{"request_id":"new"}"#, Expectation::Any);
        let error = fixture.store.apply(vec![first.clone(), write.clone()], true, NOW).unwrap_err();
        assert_eq!((error.kind, error.write_index, error.current_version), (kind, Some(1), version), "{error}");
        assert_eq!(fixture.get("requests", "new").unwrap(), None, "all or nothing: {error}");
        let results =
            fixture.store.apply(vec![first, write, remove("requests", "new", Expectation::Present)], false, NOW);
        let results: Vec<_> = results.unwrap().into_iter().map(|result| result.map_err(|error| error.kind)).collect();
        assert_eq!(results[1], Err(kind));
        assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    }
    let unknown = vec![remove("nothing", "a", Expectation::Any), remove("requests", "r2", Expectation::Any)];
    let error = fixture.store.apply(unknown.clone(), true, NOW).unwrap_err();
    assert_eq!((error.kind, error.write_index), (ErrorKind::InvalidArgument, Some(0)));
    let results = fixture.store.apply(unknown, false, NOW).unwrap();
    assert_eq!(results[0].as_ref().unwrap_err().kind, ErrorKind::InvalidArgument);
    assert!(results[1].as_ref().unwrap().existed);
    let twice = vec![remove("requests", "r2", Expectation::Any), remove("requests", "r2", Expectation::Any)];
    assert_eq!(fixture.store.apply(twice, true, NOW).unwrap_err().kind, ErrorKind::InvalidArgument);
}

fn a_refused_reference_is_named(place: Place) {
    let mut fixture = open(place, "{}", family());
    let machine = r#"{"machine_id":"m1","request_id":"r9","status":"NEW"}"#;
    let error = fixture.put("machines", machine).unwrap_err();
    assert_eq!(error.message, "machines `m1`: `request_id` refers to requests `r9`, which does not exist");
    fixture.put("requests", r#"{"request_id":"r9"}"#).unwrap();
    fixture.put("machines", machine).unwrap();
    let error = fixture.store.apply(vec![remove("requests", "r9", Expectation::Any)], true, NOW).unwrap_err();
    assert_eq!(error.message, "requests `r9` cannot be removed: `request_id` of machines `m1` refers to it");
    // A save replaces the row in place, so what refers to it stays.
    fixture.put("requests", r#"{"request_id":"r9","tags":{"a":1}}"#).unwrap();
    assert!(fixture.get("machines", "m1").unwrap().is_some());
    let error = fixture.put("machines", r#"{"machine_id":"m2","status":"much too long"}"#).unwrap_err();
    assert_eq!(
        error.message,
        "machines `m2`: machines.request_id is required, machines.status is longer than 8 characters"
    );
    let mut relaxed = open(place, r#"{"constraints":"relaxed"}"#, family());
    relaxed.put("machines", r#"{"machine_id":"m2","status":"much too long","request_id":"nowhere"}"#).unwrap();
}

fn one_entity_may_be_written_twice_where_the_writes_stand_alone(place: Place) {
    let mut fixture = open(place, "{}", family());
    let results = fixture.store.apply(
        vec![
            put("requests", r#"{"request_id":"a","n":1}"#, Expectation::Absent),
            put("requests", r#"{"request_id":"a","n":2}"#, Expectation::Version(1)),
            put("requests", r#"{"request_id":"a","n":3}"#, Expectation::Version(1)),
            remove("requests", "a", Expectation::Version(2)),
            put("requests", r#"{"request_id":"a","n":4}"#, Expectation::Absent),
        ],
        false,
        NOW,
    );
    let results: Vec<_> =
        results.unwrap().into_iter().map(|result| result.map(|o| o.version).map_err(|error| error.kind)).collect();
    assert_eq!(results, [Ok(1), Ok(2), Err(ErrorKind::VersionConflict), Ok(2), Ok(1)]);
    assert!(fixture.get("requests", "a").unwrap().unwrap().contains("\"n\":4"));
}

fn load_says_what_it_did_with_each_entity(place: Place) {
    let mut fixture = open(place, "{}", family());
    let requests: Vec<String> = (0..1_000).map(|i| format!(r#"{{"request_id":"r{i}","n":{i}}}"#)).collect();
    let loaded = fixture.load("requests", &requests, Existing::Fail);
    assert_eq!((loaded.written, loaded.unchanged, loaded.refused.len()), (1_000, 0, 0));
    let mut changed = requests.clone();
    for i in [3, 500, 999] {
        changed[i] = changed[i].replace("\"n\"", "\"m\"");
    }
    changed.push(r#"{"request_id":"new"}"#.to_owned());
    for (existing, expected, refused) in [
        (Existing::Fail, (1, 997, 0), vec![3, 500, 999]),
        (Existing::Skip, (0, 998, 3), vec![]),
        (Existing::Overwrite, (3, 998, 0), vec![]),
        (Existing::Overwrite, (0, 1_001, 0), vec![]),
    ] {
        let loaded = fixture.load("requests", &changed, existing);
        assert_eq!((loaded.written, loaded.unchanged, loaded.skipped), expected, "{existing:?}");
        assert_eq!(loaded.refused.iter().map(|(i, _)| *i).collect::<Vec<_>>(), refused);
    }
    // Those that break a rule are told from the others of their batch.
    let machines: Vec<String> = (0..600)
        .map(|i| match i {
            7 => r#"{"machine_id":"m7","status":"NEW"}"#.to_owned(),
            300 => r#"{"machine_id":"m300","status":"NEW","request_id":"nowhere"}"#.to_owned(),
            _ => format!(r#"{{"machine_id":"m{i}","status":"NEW","request_id":"r{i}"}}"#),
        })
        .chain([r#"{"machine_id":1}"#.to_owned(), r#"{"machine_id":"m1","status":"OLD","request_id":"r1"}"#.to_owned()])
        .collect();
    let loaded = fixture.load("machines", &machines, Existing::Skip);
    assert_eq!((loaded.written, loaded.skipped), (598, 1));
    let refused: Vec<_> = loaded.refused.iter().map(|(i, error)| (*i, error.kind)).collect();
    assert_eq!(refused, [(7, ErrorKind::Rejected), (300, ErrorKind::Rejected), (600, ErrorKind::InvalidArgument)]);
}

fn everything() -> Query {
    Query { filter: None, order_by: Vec::new(), limit: 100, max_bytes: 1 << 20, index: None, cursor: None }
}

/// All pages of a query, and what the host would still have to apply.
fn all_pages(store: &mut SqlStore<Native>, collection: &str, query: Query) -> (Vec<String>, Vec<u32>) {
    let (mut query, mut ids, mut pages) = (query, Vec::new(), 0);
    loop {
        let page = store.find(collection, &query).unwrap();
        ids.extend(page.entities.into_iter().map(|entity| entity.id));
        pages += 1;
        assert!(pages < 10_000);
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return (ids, page.unapplied),
        }
    }
}

fn a_query_answers_what_the_model_says_and_names_what_it_left(place: Place) {
    let mut fixture = open(place, "{}", typed());
    let mut bodies = Vec::new();
    for (i, value) in awkward_values().iter().filter(|value| value.len() < 1000).enumerate() {
        for (name, _) in TYPES {
            bodies.push(format!(r#"{{"id":"{name}-{i}","{name}":{value}}}"#));
        }
    }
    bodies.push(r#"{"id":"bare"}"#.to_owned());
    assert_eq!(fixture.load("typed", &bodies, Existing::Fail).written, bodies.len() as u64);
    // Beside what was loaded, what only a hand puts there.
    let by_hand = match place {
        Place::Sqlite => &[
            "integer = 'some text'",
            "integer = 2.5",
            "boolean = 7",
            "boolean = 'x'",
            "timestamp = 20250630",
            "timestamp = 5.5",
            "number = 'text'",
            "json = '5'",
            "json = 'plain'",
        ][..],
        Place::Postgres => &[
            "timestamp = 'infinity'",
            "timestamp = '-infinity'",
            "timestamp = '0044-03-15 BC'",
            "timestamp = '10000-01-01'",
            "timestamp = '2025-06-30 12:00:00.25'",
            "json = '5'",
            "json = 'plain'",
        ],
    };
    for (i, set) in by_hand.iter().enumerate() {
        fixture.by_hand(&format!("INSERT INTO typed (id) VALUES ('hand-{i}')"));
        fixture.by_hand(&format!("UPDATE typed SET {set} WHERE id = 'hand-{i}'"));
    }
    let mut stored = Vec::new();
    let mut cursor = None;
    loop {
        let batch = fixture.store.scan("typed", 0, 1, cursor.as_deref(), 10_000).unwrap();
        stored.extend(batch.entities.into_iter().map(|e| (e.id, json::parse_object(&e.body).unwrap())));
        cursor = batch.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(stored.len(), bodies.len() + by_hand.len());

    let scalars: Vec<Value> = awkward_values()
        .iter()
        .filter(|value| value.len() < 100)
        .map(|value| json::parse(value.as_bytes()).unwrap())
        .filter(|value| !value.is_array() && !value.is_object())
        .chain(
            ["2025-06", "2025-06-30T12:00:00", "2025-06-30T12:00:00.000000Z", "infinity", "0044-03-15 00:00:00 BC"]
                .map(Value::from),
        )
        .collect();
    let operators = ["=", "!=", "<", "<=", ">", ">=", "begins-with", "contains", "in"];
    let (mut exactly, mut counted) = (0, 0);
    for (name, _) in TYPES {
        for op in operators {
            for scalar in &scalars {
                let value = match op {
                    "in" => Value::Array(vec![scalar.clone(), Value::from("abc"), scalar.clone()]),
                    _ => scalar.clone(),
                };
                if op == "begins-with" && !scalar.is_string() {
                    continue;
                }
                let tree = serde_json::json!({"field": name, "op": op, "value": value});
                let filter = filter::parse_json(&tree).unwrap();
                let expected: Vec<&str> =
                    stored.iter().filter(|(_, e)| filter.matches(e)).map(|(id, _)| id.as_str()).collect();
                let query = Query { filter: Some(filter.clone()), limit: 60, ..everything() };
                let (mut ids, unapplied) = all_pages(&mut fixture.store, "typed", query);
                let is_exact = unapplied.is_empty();
                if !is_exact {
                    let members = |id: &String| &stored.iter().find(|(stored, _)| stored == id).unwrap().1;
                    ids.retain(|id| filter.matches(members(id)));
                }
                assert_eq!(ids, expected, "{tree}");
                exactly += usize::from(is_exact);
                // Not every page that is exact can be counted without a look at its rows.
                let count = fixture.store.count("typed", Some(&filter)).unwrap();
                assert!(count.is_none() || is_exact, "count of {tree}");
                assert!(count.is_none_or(|count| count == expected.len() as u64), "count of {tree}");
                counted += usize::from(count.is_some());
            }
        }
    }
    let all = TYPES.len() * operators.len() * scalars.len();
    assert!(exactly > 450 && counted > 450, "of {all}, {exactly} were pushed down and {counted} counted");
}

fn pages_follow_the_key_in_either_direction(place: Place) {
    let mut fixture = open(place, "{}", family());
    let bodies: Vec<String> = (0..50).map(|i| format!(r#"{{"request_id":"r{i:02}"}}"#)).collect();
    fixture.load("requests", &bodies, Existing::Fail);
    let ids: Vec<String> = (0..50).map(|i| format!("r{i:02}")).collect();
    let key = |name: &str, descending| vec![SortKey { field: FieldPath::member(name), descending }];
    for limit in [1, 7, 50, 1000] {
        let ascending = Query { limit, order_by: key("request_id", false), ..everything() };
        assert_eq!(all_pages(&mut fixture.store, "requests", ascending).0, ids);
        let descending = Query { limit, order_by: key("request_id", true), ..everything() };
        assert!(all_pages(&mut fixture.store, "requests", descending).0.iter().eq(ids.iter().rev()));
    }
    let by_bytes = Query { max_bytes: 1, ..everything() };
    assert_eq!(all_pages(&mut fixture.store, "requests", by_bytes).0, ids);
    assert!(
        fixture.store.find("requests", &Query { order_by: key("request_id", true), ..everything() }).unwrap().sorted
    );
    assert!(!fixture.store.find("requests", &Query { order_by: key("tags", false), ..everything() }).unwrap().sorted);
    let first = fixture.store.find("requests", &Query { limit: 2, ..everything() }).unwrap();
    let other = Query { cursor: first.next, order_by: key("tags", false), ..everything() };
    assert_eq!(fixture.store.find("requests", &other).unwrap_err().kind, ErrorKind::InvalidArgument);
    let range = filter::parse_json(&json::parse(br#"{"field":"request_id","op":"begins-with","value":"r1"}"#).unwrap());
    let query = Query { filter: Some(range.unwrap()), ..everything() };
    let page = fixture.store.find("requests", &query).unwrap();
    assert_eq!((page.entities.len(), page.index_used.as_deref()), (10, Some("request_id")));
}

fn an_index_is_used_where_it_is_named_and_said_where_it_is_not(place: Place) {
    let mut fixture = open(place, "{}", family());
    fixture.put("requests", r#"{"request_id":"r1"}"#).unwrap();
    let machines: Vec<String> = (0..3000)
        .map(|i| {
            format!(
                r#"{{"machine_id":"m{i}","request_id":"r1","status":"{}"}}"#,
                if i % 1000 == 0 { "NEW" } else { "OLD" }
            )
        })
        .collect();
    fixture.load("machines", &machines, Existing::Fail);
    let filter = |text: &str| Some(filter::parse_json(&json::parse(text.as_bytes()).unwrap()).unwrap());
    let named = |name: &str, text: &str| Query { index: Some(name.to_owned()), filter: filter(text), ..everything() };
    // PostgreSQL knows nothing of a table before it was analysed.
    fixture.by_hand("ANALYZE machines");
    let new = Query { filter: filter(r#"{"status":"NEW"}"#), ..everything() };
    for index in [None, Some("status"), Some("idx_machines_status")] {
        let query = Query { index: index.map(str::to_owned), ..new.clone() };
        let page = fixture.store.find("machines", &query).unwrap();
        assert_eq!((page.entities.len(), page.index_used.as_deref()), (3, Some("status")), "{index:?}");
        assert!(page.unapplied.is_empty());
    }
    let unfit =
        fixture.store.find("machines", &named("request_id-created_at-index", r#"{"status":"NEW"}"#)).unwrap_err();
    assert_eq!(unfit.kind, ErrorKind::InvalidArgument, "{unfit}");
    let both = r#"{"request_id":"r1","tags":null}"#;
    let page = fixture.store.find("machines", &named("request_id-created_at-index", both)).unwrap();
    assert_eq!(page.unapplied, [1]);
    if place == Place::Sqlite {
        // PostgreSQL reads a small table as a whole, whatever it is told.
        assert_eq!(page.index_used.as_deref(), Some("request_id-created_at-index"));
    }
    let error = fixture.store.find("machines", &named("nothing", "{}")).unwrap_err();
    assert_eq!(error.message, "`machines` has no index `nothing`: it has `status`, `request_id-created_at-index`");
    fixture.by_hand("DROP INDEX idx_machines_status");
    let error = fixture.store.find("machines", &named("status", r#"{"status":"OLD","count":1}"#)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
}

fn segments_of_a_scan_are_the_whole_once(place: Place) {
    let mut fixture = open(place, "{}", family());
    let mut ids: Vec<String> =
        (0..2_000).map(|i| format!("request-{i}")).chain(["é", "𝄞x", "a"].map(str::to_owned)).collect();
    let bodies: Vec<String> = ids.iter().map(|id| format!(r#"{{"request_id":"{id}"}}"#)).collect();
    fixture.load("requests", &bodies, Existing::Fail);
    ids.sort();
    for segments in [1, 2, 4, 7] {
        let mut found = Vec::new();
        for segment in 0..segments {
            let (mut cursor, before) = (None, found.len());
            loop {
                let batch = fixture.store.scan("requests", segment, segments, cursor.as_deref(), 20_000).unwrap();
                found.extend(batch.entities.into_iter().map(|entity| entity.id));
                match batch.next {
                    Some(next) => cursor = Some(next),
                    None => break,
                }
            }
            let share = (found.len() - before) as u32 * segments;
            assert!((1_000..4_000).contains(&share), "segment {segment} of {segments} has {}", found.len() - before);
        }
        found.sort();
        assert_eq!(found, ids);
    }
    assert_eq!(fixture.store.scan("requests", 2, 2, None, 1).unwrap_err().kind, ErrorKind::InvalidArgument);
}

fn a_batch_of_a_scan_ends_by_its_entities_and_not_by_its_rows(place: Place) {
    const BYTES_MAX: usize = 20_000;
    let names: Vec<String> = (0..8).map(|n| format!("{n}_{}", "long_name_".repeat(5))).collect();
    let fields = names.iter().map(|name| field(name, FieldType::Integer)).collect();
    let mut fixture = open(place, "{}", vec![collection("wide", "id", fields)]);
    fixture.store.prepare(false, false).unwrap();
    // The first is small, and says nothing of those behind it.
    let members: String = names.iter().map(|name| format!(r#","{name}":1"#)).collect();
    let body = |i: usize| format!(r#"{{"id":"{i:04}"{}}}"#, if i == 0 { "" } else { &members });
    let bodies: Vec<String> = (0..500).map(body).collect();
    fixture.load("wide", &bodies, Existing::Fail);
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let batch = fixture.store.scan("wide", 0, 1, cursor.as_deref(), BYTES_MAX as u32).unwrap();
        let bytes: usize = batch.entities.iter().map(|entity| entity.body.len()).sum();
        let last = batch.entities.last().map_or(0, |last| last.body.len());
        assert!(bytes - last < BYTES_MAX, "a batch of {bytes} bytes goes on behind {BYTES_MAX}");
        ids.extend(batch.entities.into_iter().map(|entity| entity.id));
        cursor = batch.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(ids, (0..500).map(|i| format!("{i:04}")).collect::<Vec<_>>());
}

fn a_transaction_sees_its_own_writes_and_ends_as_it_is_told(place: Place) {
    let mut fixture = open(place, "{}", family());
    let ids = ["r1".to_owned()];
    for end in ["commit", "rollback", "drop"] {
        let store = &mut fixture.store;
        let mut transaction = store.begin(Some(Isolation::Serializable), false).unwrap();
        assert_eq!(store.transaction_get(&mut transaction, "requests", &ids, true).unwrap(), [None]);
        let write = put("requests", r#"{"request_id":"r1"}"#, Expectation::Absent);
        assert_eq!(store.transaction_apply(&mut transaction, vec![write], NOW).unwrap()[0].version, 1);
        assert!(store.transaction_get(&mut transaction, "requests", &ids, false).unwrap()[0].is_some());
        assert_eq!(store.transaction_find(&mut transaction, "requests", &everything()).unwrap().entities.len(), 1);
        match end {
            "commit" => store.commit(transaction).unwrap(),
            "rollback" => store.rollback(transaction).unwrap(),
            _ => drop(transaction),
        }
        assert_eq!(fixture.get("requests", "r1").unwrap().is_some(), end == "commit", "{end}");
        if end == "commit" {
            fixture.store.apply(vec![remove("requests", "r1", Expectation::Any)], true, NOW).unwrap();
        }
    }
    let store = &mut fixture.store;
    let mut transaction = store.begin(None, false).unwrap();
    let writes = vec![
        put("requests", r#"{"request_id":"r1"}"#, Expectation::Any),
        put("requests", r#"{"request_id":"r2"}"#, Expectation::Present),
    ];
    let error = store.transaction_apply(&mut transaction, writes, NOW).unwrap_err();
    assert_eq!((error.kind, error.write_index), (ErrorKind::NotFound, Some(1)));
    let after = store.transaction_get(&mut transaction, "requests", &ids, false).unwrap_err();
    assert_eq!(after.kind, ErrorKind::InvalidArgument);
    assert_eq!(store.commit(transaction).unwrap_err().kind, ErrorKind::InvalidArgument);
    assert_eq!(fixture.get("requests", "r1").unwrap(), None);
    // A collection that nobody configured fails the transaction as every other error of a write does.
    let store = &mut fixture.store;
    let mut transaction = store.begin(None, false).unwrap();
    let write = put("requests", r#"{"request_id":"r1"}"#, Expectation::Any);
    store.transaction_apply(&mut transaction, vec![write], NOW).unwrap();
    let error = store.transaction_apply(&mut transaction, vec![remove("people", "a", Expectation::Any)], NOW);
    assert_eq!(error.unwrap_err().kind, ErrorKind::InvalidArgument);
    assert_eq!(store.commit(transaction).unwrap_err().kind, ErrorKind::InvalidArgument);
    assert_eq!(fixture.get("requests", "r1").unwrap(), None);
}

fn check_tells_what_there_is(place: Place) {
    let mut fixture = open(place, "{}", family());
    let check = |fixture: &mut Fixture| json::parse(fixture.store.check(true).unwrap().as_bytes()).unwrap();
    let before = check(&mut fixture);
    assert!(place == Place::Postgres || before["database"]["size_bytes"].as_u64() == Some(0));
    fixture.put("requests", r#"{"request_id":"r1"}"#).unwrap();
    fixture.by_hand("DROP INDEX idx_machines_status");
    let after = check(&mut fixture);
    for key in ["reachable", "readable", "writable"] {
        assert_eq!(after[key], true, "{after}");
    }
    let version = if place == Place::Sqlite { "SQLite 3." } else { "PostgreSQL 1" };
    assert!(after["database"]["version"].as_str().unwrap().starts_with(version), "{after}");
    assert!(after["database"]["size_bytes"].as_u64() > Some(0));
    assert_eq!(after["tables"][0]["collection"], "requests");
    assert_eq!(after["tables"][0]["rows"].as_u64(), Some(1));
    assert!(after["findings"].to_string().contains("the index `status` of `machines` is missing"), "{after}");
}

fn what_cannot_be_a_table_is_refused_when_the_store_is_opened(place: Place) {
    let named = |name: &str| vec![collection(name, "id", Vec::new())];
    let with =
        |names: &[&str]| vec![collection("c", "id", names.iter().map(|name| field(name, FieldType::Text)).collect())];
    for collections in [
        named("sqlite_x"),
        named("larder_schema"),
        named(""),
        named("a\0"),
        [named("a"), named("A")].concat(),
        with(&["a", "A"]),
        with(&["larder_extra"]),
        with(&["Larder_Exact"]),
        with(&["ID"]),
        with(&[""]),
        with(&["a\0"]),
    ] {
        let sql = Native::new(place);
        let error = SqlStore::open_in(sql, "{}", collections).err().unwrap();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    }
    for config in [r#"{"constraint":"strict"}"#, r#"{"constraints":"lax"}"#, "[]", ""] {
        let sql = Native::new(place);
        assert_eq!(SqlStore::open_in(sql, config, typed()).err().unwrap().kind, ErrorKind::InvalidArgument);
    }
}

/// `cargo test --release -p larder-plugin-sql -- --ignored --nocapture entities_per_second`
#[test]
#[ignore = "a measurement"]
fn entities_per_second_of_sqlite() {
    measure(Place::Sqlite);
}

#[test]
#[ignore = "a measurement"]
fn entities_per_second_of_postgres() {
    measure(Place::Postgres);
}

fn measure(place: Place) {
    let mut fixture = open(place, "{}", family());
    fixture.put("requests", r#"{"request_id":"r1"}"#).unwrap();
    const COUNT: usize = 100_000;
    let machines: Vec<Entity> = (0..COUNT)
        .map(|i| {
            entity(&format!(
                r#"{{"machine_id":"machine-{i:08}","request_id":"r1","status":"RUNNING","private_ip":"10.0.{}.{}","created_at":"2025-06-30T12:00:00.{i:06}Z","count":{i},"version":1,"provider_data":{{"zone":"a","price":0.42}}}}"#,
                i / 256 % 256,
                i % 256
            ))
        })
        .collect();
    let per_second = |what: &str, started: std::time::Instant| {
        println!("{what}: {:.0} entities/s", COUNT as f64 / started.elapsed().as_secs_f64());
    };
    let started = std::time::Instant::now();
    for batch in machines.chunks(10_000) {
        assert_eq!(fixture.store.load("machines", batch.to_vec(), Existing::Fail).unwrap().written, batch.len() as u64);
    }
    per_second("load", started);
    let started = std::time::Instant::now();
    for batch in machines.chunks(10_000) {
        assert_eq!(
            fixture.store.load("machines", batch.to_vec(), Existing::Fail).unwrap().unchanged,
            batch.len() as u64
        );
    }
    per_second("load again", started);
    let (started, mut cursor, mut count) = (std::time::Instant::now(), None, 0);
    loop {
        let batch = fixture.store.scan("machines", 0, 1, cursor.as_deref(), 4 << 20).unwrap();
        count += batch.entities.len();
        cursor = batch.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(count, COUNT);
    per_second("scan", started);
    let started = std::time::Instant::now();
    for batch in machines.chunks(1_000) {
        let writes = batch.iter().map(|entity| {
            Write::Put(Put {
                collection: "machines".to_owned(),
                id: entity.id.clone(),
                body: entity.body.clone(),
                expect: Expectation::Version(1),
            })
        });
        fixture.store.apply(writes.collect(), true, NOW).unwrap();
    }
    per_second("apply by 1,000", started);
    let started = std::time::Instant::now();
    for i in 0..10_000 {
        assert!(fixture.store.get("machines", &[format!("machine-{:08}", i * 7)]).unwrap()[0].is_some());
    }
    println!("get: {:.1} µs", started.elapsed().as_secs_f64() * 100.0);
    fixture.by_hand("ANALYZE");
    let sorted = Query {
        filter: Some(filter::parse_json(&json::parse(br#"{"request_id":"r1"}"#).unwrap()).unwrap()),
        order_by: vec![SortKey { field: FieldPath::member("created_at"), descending: true }],
        limit: 50,
        ..everything()
    };
    let started = std::time::Instant::now();
    for _ in 0..20 {
        let page = fixture.store.find("machines", &sorted).unwrap();
        assert!(page.sorted && page.entities.len() == 50, "{:?}", page.index_used);
    }
    println!("the newest 50 of all: {:.2} ms", started.elapsed().as_secs_f64() * 50.0);
    let one = Filter::Compare {
        field: FieldPath::member("status"),
        op: filter::Comparison::Eq,
        value: filter::Scalar::Text("GONE".to_owned()),
    };
    let started = std::time::Instant::now();
    assert_eq!(fixture.store.count("machines", Some(&one)).unwrap(), Some(0));
    println!("count: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
}

/// How rows get into a table of PostgreSQL and out of it: what the database and the way to it take, without what makes
/// the rows.
/// `cargo test --release -p larder-plugin-sql -- --ignored --nocapture ways_to_load`
#[test]
#[ignore = "a measurement"]
fn ways_to_load_and_to_read_postgres() {
    use larder_guest::SqlTransaction;
    const COUNT: usize = 50_000;
    let sql = Native::new(Place::Postgres);
    let columns = "id VARCHAR(255) COLLATE \"C\" PRIMARY KEY, parent VARCHAR(255) COLLATE \"C\", at TIMESTAMP, n INTEGER, extra JSON";
    sql.query(&format!("CREATE TABLE t ({columns})"), Vec::new(), 0).unwrap();
    let row = |i: usize| {
        (
            format!("machine-{i:08}"),
            "r1".to_owned(),
            "2025-06-30T12:00:00.000000Z".to_owned(),
            i as i64,
            r#"{"provider_data":{"zone":"a","price":0.42}}"#.to_owned(),
        )
    };
    let rows: Vec<_> = (0..COUNT).map(row).collect();
    for way in ["copy", "insert of 256 rows", "recordset"] {
        sql.query("DELETE FROM t", Vec::new(), 0).unwrap();
        let started = std::time::Instant::now();
        for chunk in rows.chunks(if way == "insert of 256 rows" { 256 } else { 10_000 }) {
            let transaction = sql.begin_bulk().unwrap();
            match way {
                "copy" => {
                    let lines: String =
                        chunk.iter().map(|(a, b, c, d, e)| format!("{a}\t{b}\t{c}\t{d}\t{e}\n")).collect();
                    transaction.copy_in("t", &["id", "parent", "at", "n", "extra"], lines.as_bytes()).unwrap();
                }
                "recordset" => {
                    let list: Vec<Value> = chunk
                        .iter()
                        .map(|(a, b, c, d, e)| serde_json::json!({"id": a, "parent": b, "at": c, "n": d, "extra": e}))
                        .collect();
                    let text = "INSERT INTO t SELECT id, parent, at, n, extra::json FROM json_to_recordset($1::text::json) \
                                AS r (id TEXT, parent TEXT, at TIMESTAMP, n INTEGER, extra TEXT)";
                    transaction.query(text, vec![SqlValue::Text(Value::from(list).to_string())], 0).unwrap();
                }
                _ => {
                    let values: Vec<String> = (0..chunk.len())
                        .map(|i| {
                            let n = i * 5;
                            format!("(${}, ${}, ${}::text::timestamp, ${}, ${})", n + 1, n + 2, n + 3, n + 4, n + 5)
                        })
                        .collect();
                    let params = chunk.iter().flat_map(|(a, b, c, d, e)| {
                        let text = |text: &String| SqlValue::Text(text.clone());
                        [text(a), text(b), text(c), SqlValue::Integer(*d), text(e)]
                    });
                    let text = format!("INSERT INTO t VALUES {}", values.join(", "));
                    transaction.query(&text, params.collect(), 0).unwrap();
                }
            }
            transaction.commit().unwrap();
        }
        println!("{way}: {:.0} rows/s", COUNT as f64 / started.elapsed().as_secs_f64());
    }
    let columns = "id, parent, at::text, n, extra::text";
    for (way, select) in [
        ("read row by row", format!("SELECT {columns} FROM t")),
        ("read as a list a row", format!("SELECT json_build_array({columns})::text FROM t")),
        ("read as one list", format!("SELECT json_agg(json_build_array({columns}))::text FROM t")),
    ] {
        let started = std::time::Instant::now();
        let rows = sql.query(&select, Vec::new(), 1 << 30).unwrap();
        let took = started.elapsed();
        let values = match rows.cells.as_slice() {
            cells if cells.len() > COUNT => cells.len(),
            cells => cells
                .iter()
                .map(|cell| match cell {
                    SqlValue::Text(text) => serde_json::from_str::<Vec<Value>>(text).unwrap().len(),
                    _ => 0,
                })
                .sum(),
        };
        println!(
            "{way}: {:.1} µs a row to have, {:.1} to read ({values})",
            took.as_secs_f64() * 1e6 / COUNT as f64,
            started.elapsed().as_secs_f64() * 1e6 / COUNT as f64
        );
    }
}
