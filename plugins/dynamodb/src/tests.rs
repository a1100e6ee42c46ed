//! What can be told without the service: items, sizes, plans and cursors. How tables answer is tested with the component,
//! over a real engine.

use larder_guest::{Attribute, Expression, Item};
use larder_model::{
    Collection, Error, ErrorKind, Index, SortKey, Stamps,
    filter::{self, Filter},
    json,
};
use serde_json::{Map, Value};

use crate::{
    item::{self, EXACT},
    plan::{self, Plan},
    size,
    table::Table,
    write::{self, Mark},
};

fn table() -> Table {
    let index = |name: &str, fields: &[&str]| Index {
        name: name.to_owned(),
        fields: fields.iter().map(|field| field.to_string()).collect(),
    };
    Table::new(Collection {
        name: "requests".to_owned(),
        key: "template_id".to_owned(),
        stamps: Stamps {
            version: "version".to_owned(),
            created: Some("created_at".to_owned()),
            updated: Some("updated_at".to_owned()),
            adds_updated: true,
        },
        fields: Vec::new(),
        indexes: vec![index("status", &["status", "created_at"]), index("by-pool", &["pool"]), index("x", &["pool"])],
        references: Vec::new(),
    })
    .unwrap()
}

/// A table without indexes.
fn plain() -> Table {
    Table::new(Collection { indexes: Vec::new(), ..table().collection }).unwrap()
}

fn object(text: &str) -> Map<String, Value> {
    json::parse_object(text.as_bytes()).unwrap()
}

fn encoded(table: &Table, text: &str) -> Item {
    item::encode(table, &object(text)).item
}

fn attribute<'a>(item: &'a Item, name: &str) -> Option<&'a Attribute> {
    item.iter().find(|(found, _)| found == name).map(|(_, value)| value)
}

fn set(item: &mut Item, name: &str, value: Attribute) {
    item.retain(|(found, _)| found != name);
    item.push((name.to_owned(), value));
}

fn text(text: &str) -> Attribute {
    Attribute::Text(text.to_owned())
}

/// The digits of a number without an exponent, as the service writes it.
fn written_out(spelt: &str) -> String {
    let Some((digits, exponent)) = spelt.split_once('e') else { return spelt.to_owned() };
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits),
    };
    let exponent: i32 = exponent.parse().unwrap();
    if exponent >= 0 {
        return format!("{sign}{digits}{}", "0".repeat(exponent as usize));
    }
    let padded = format!("{}{digits}", "0".repeat(exponent.unsigned_abs() as usize));
    let (integer, fraction) = padded.split_at(padded.len() - exponent.unsigned_abs() as usize);
    let integer = integer.trim_start_matches('0');
    format!("{sign}{}.{fraction}", if integer.is_empty() { "0" } else { integer })
}

/// What the service may give back for what it was given: other spellings, other orders.
fn through_the_service(item: Item) -> Item {
    fn respell(typed: &mut Value) {
        let Value::Object(typed) = typed else { return };
        for (kind, value) in typed.iter_mut() {
            match value {
                Value::String(text) if kind == "N" => *text = written_out(text),
                Value::Array(elements) => elements.iter_mut().for_each(respell),
                Value::Object(members) => {
                    members.values_mut().for_each(respell);
                    let reversed = std::mem::take(members).into_iter().rev().collect();
                    *members = reversed;
                }
                _ => {}
            }
        }
    }
    let mut item: Item = item
        .into_iter()
        .map(|(name, value)| {
            let value = match value {
                Attribute::Number(text) => Attribute::Number(written_out(&text)),
                Attribute::Document(text) => {
                    let mut typed = json::parse_wrapping(text.as_bytes(), 64).map(Value::Object).unwrap();
                    respell(&mut typed);
                    Attribute::Document(typed.to_string())
                }
                other => other,
            };
            (name, value)
        })
        .collect();
    item.reverse();
    item
}

/// What the service refuses in an item, whatever its size.
fn check_taken(table: &Table, item: &Item) {
    fn check(value: &Value, level: usize) {
        let (kind, value) = value.as_object().unwrap().iter().next().unwrap();
        assert!(level <= 32, "too deep");
        match (kind.as_str(), value) {
            ("N", Value::String(text)) => check_number(text),
            ("L", Value::Array(elements)) => elements.iter().for_each(|element| check(element, level + 1)),
            ("M", Value::Object(members)) => members.iter().for_each(|(name, value)| {
                assert!(!name.is_empty());
                check(value, level + 1);
            }),
            ("S", Value::String(_)) | ("BOOL", Value::Bool(_)) | ("NULL", Value::Bool(true)) => {}
            other => panic!("{other:?}"),
        }
    }
    fn check_number(text: &str) {
        let digits = written_out(text).replace(['-', '.'], "");
        assert!(digits.trim_matches('0').len() <= 38 && digits.len() <= 170, "{text}");
    }
    let mut names: Vec<&str> = item.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), item.len(), "an attribute comes twice");
    for (name, value) in item {
        assert!(!name.is_empty() && name.len() <= 255, "{name:?}");
        match value {
            Attribute::Number(text) => check_number(text),
            // Each container is one level, and what stands in it one more.
            Attribute::Document(text) => {
                check(&json::parse_wrapping(text.as_bytes(), 64).map(Value::Object).unwrap(), 1);
            }
            _ => {}
        }
    }
    for (name, bytes_max) in &table.keys {
        match attribute(item, name) {
            Some(Attribute::Text(text)) => assert!(!text.is_empty() && text.len() <= *bytes_max, "{name}"),
            other => panic!("the key {name} of an index is {other:?}"),
        }
    }
}

fn check_round_trip(table: &Table, members: &Map<String, Value>) {
    let item = item::encode(table, members).item;
    check_taken(table, &item);
    let mut item = through_the_service(item);
    let read = item::decode(table, &item).unwrap();
    assert!(json::equal_objects(&read, members), "{} read as {}", show(members), show(&read));
    // The host gives attributes in the order of their names, and then there is a shorter way.
    item.sort_by(|(a, _), (b, _)| a.cmp(b));
    if item::id_of(table, &item).is_some() {
        let entity = item::entity_of(table, &item).unwrap();
        assert_eq!(entity.version, larder_model::entity::version_of(&table.collection, &read));
        assert_eq!(String::from_utf8(entity.body).unwrap(), String::from_utf8(json::to_vec(&read)).unwrap());
    }
    let stamps = item::decode_stamps(table, &item).unwrap();
    for name in [Some(&table.collection.stamps.version), table.collection.stamps.created.as_ref()].into_iter().flatten()
    {
        assert_eq!(stamps.get(name), read.get(name), "{name}");
    }
}

fn show(members: &Map<String, Value>) -> String {
    String::from_utf8(json::to_vec(members)).unwrap().chars().take(2_000).collect()
}

#[test]
fn every_value_survives() {
    // As a member, and as one that is in the key of an index.
    let tables = ["value", "name", "created_at", "", "a", "image_id", "attributes"].map(|field| {
        let indexes = vec![
            Index { name: "by-hash".to_owned(), fields: vec![field.to_owned()] },
            Index { name: "by-range".to_owned(), fields: vec!["vm_type".to_owned(), field.to_owned()] },
        ];
        Table::new(Collection { indexes, ..table().collection }).unwrap()
    });
    for sample in larder_samples::awkward(500, larder_samples::SEED) {
        let members = object(&sample.body);
        check_round_trip(&plain(), &members);
        for table in &tables {
            check_round_trip(table, &members);
        }
    }
    for body in [
        r#"{"template_id":"a","larder_exact":{"format":9},"larder_exact_too":1}"#.to_owned(),
        format!(r#"{{"template_id":"a","{}":1,"m":{{"{}":2}}}}"#, "n".repeat(256), "m".repeat(256)),
        r#"{"template_id":"a","$serde_json::private::Number":"1","m":{"$serde_json::private::Number":"x"}}"#.to_owned(),
        r#"{"template_id":"a","status":"\u0000","created_at":"\u0000null"}"#.to_owned(),
        format!(r#"{{"template_id":"a","status":"{}","created_at":"{}"}}"#, "é".repeat(1_500), "漢".repeat(400)),
    ] {
        check_round_trip(&plain(), &object(&body));
        check_round_trip(&table(), &object(&body));
    }
}

#[test]
fn members_are_attributes_that_people_can_read() {
    let item = encoded(
        &plain(),
        r#"{"template_id":"a","text":"x","n":12.50,"on":true,"none":null,"list":[1,"a"],"map":{"k":{}}}"#,
    );
    let expected = [
        ("template_id", text("a")),
        ("text", text("x")),
        ("n", Attribute::Number("12.5".to_owned())),
        ("on", Attribute::Boolean(true)),
        ("none", Attribute::Null),
        ("list", Attribute::Document(r#"{"L":[{"N":"1"},{"S":"a"}]}"#.to_owned())),
        ("map", Attribute::Document(r#"{"M":{"k":{"M":{}}}}"#.to_owned())),
    ];
    assert_eq!(item, expected.map(|(name, value)| (name.to_owned(), value)));
    let item = encoded(&plain(), r#"{"template_id":"a","n":1.0,"huge":1e400,"m":{"":1,"k":2},"":3}"#);
    assert_eq!(attribute(&item, "n"), Some(&Attribute::Number("1".to_owned())));
    assert_eq!(attribute(&item, "huge"), Some(&text("1e+400")));
    assert_eq!(attribute(&item, "m"), Some(&Attribute::Document(r#"{"M":{"k":{"N":"2"}}}"#.to_owned())));
    let exact = r#"{"format":1,"members":{"n":1.0,"huge":1e+400,"m":{"":1,"k":2},"":3}}"#;
    assert_eq!(attribute(&item, EXACT), Some(&text(exact)));
}

#[test]
fn what_is_changed_by_hand_counts() {
    let table = table();
    let body = r#"{"template_id":"a","n":1.0,"m":{"":1},"status":7,"pool":"p","version":1}"#;
    let read = |change: &dyn Fn(&mut Item)| {
        let mut item = encoded(&table, body);
        change(&mut item);
        show(&item::decode(&table, &item).unwrap())
    };
    assert_eq!(read(&|_| {}), r#"{"m":{"":1},"n":1.0,"pool":"p","status":7,"template_id":"a","version":1}"#);
    let changed = read(&|item| {
        set(item, "n", Attribute::Number("2".to_owned()));
        set(item, "m", Attribute::Document(r#"{"M":{"k":{"SS":["b","a"]}}}"#.to_owned()));
        set(item, "status", text("NEW"));
        set(item, "created_at", text("today"));
        set(item, "bytes", Attribute::Binary(b"\x00\xff".to_vec()));
        set(item, "numbers", Attribute::Document(r#"{"NS":["10","9"]}"#.to_owned()));
    });
    assert_eq!(
        changed,
        r#"{"bytes":"AP8=","created_at":"today","m":{"k":["a","b"]},"n":2,"numbers":[9,10],"pool":"p","status":"NEW","template_id":"a","version":1}"#
    );
    let removed = read(&|item| item.retain(|(name, _)| !matches!(name.as_str(), "n" | "status" | "created_at")));
    assert_eq!(removed, r#"{"m":{"":1},"pool":"p","template_id":"a","version":1}"#);
}

#[test]
fn an_index_key_that_cannot_be_one_has_a_stand_in() {
    let table = table();
    let item = encoded(&table, r#"{"template_id":"a","status":7,"pool":""}"#);
    assert_eq!(attribute(&item, "status"), Some(&text("\u{0}7")));
    assert_eq!(attribute(&item, "pool"), Some(&text("\u{0}\"\"")));
    assert_eq!(attribute(&item, "created_at"), Some(&text("\u{0}")));
    let exact = r#"{"format":1,"members":{"status":7,"pool":""},"absent":["created_at"]}"#;
    assert_eq!(attribute(&item, EXACT), Some(&text(exact)));
    // Also where the index is not declared any more, or another one is.
    for other in [plain(), table] {
        assert_eq!(show(&item::decode(&other, &item).unwrap()), r#"{"pool":"","status":7,"template_id":"a"}"#);
    }
}

#[test]
fn an_exact_attribute_that_cannot_be_read_is_corrupt() {
    for exact in [text("{"), text(r#"{"format":2}"#), Attribute::Null] {
        let item = vec![("template_id".to_owned(), text("a")), (EXACT.to_owned(), exact)];
        let error = item::decode(&plain(), &item).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(error.message.contains("requests `a`"), "{error}");
    }
}

#[test]
fn a_small_body_is_never_too_large_an_item() {
    let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
    let digits = "1".repeat(39);
    for element in ["1", "[]", "{}", "1e5", "-1E-9", "\"\"", "null", "{\"\":1}", "\"\\u0000\"", &deep, &digits] {
        let filled = |from: &str, to: &str, element: &dyn Fn(usize) -> String| {
            let mut body = from.to_owned();
            let mut turn = 0;
            while body.len() + to.len() + element(turn).len() < size::SMALL_BODY_BYTES {
                body += &element(turn);
                turn += 1;
            }
            body.pop();
            body + to
        };
        for body in [
            filled("{\"template_id\":\"a\",\"list\":[", "]}", &|_| format!("{element},")),
            filled("{\"template_id\":\"a\",\"map\":{", "}}", &|turn| format!("\"{turn}\":{element},")),
            filled("{\"template_id\":\"a\",", "}", &|turn| format!("\"{turn}\":{element},")),
        ] {
            let bytes = item::encode(&table(), &object(&body)).bytes;
            assert!(bytes <= size::ITEM_BYTES_MAX, "{bytes} bytes of {}, {element}", body.len());
        }
    }
}

#[test]
fn an_item_is_counted_as_the_service_counts() {
    for (body, bytes) in [
        (r#"{"template_id":"a"}"#, 11 + 1),
        (r#"{"template_id":"é","t":""}"#, 11 + 2 + 1),
        (r#"{"template_id":"a","b":true,"n":null}"#, 12 + 2 + 2),
        // Two digits a byte, and one more.
        (r#"{"template_id":"a","n":12345,"z":0,"k":-1200,"f":0.042}"#, 12 + (1 + 4) + (1 + 1) + (1 + 2) + (1 + 2)),
        (r#"{"template_id":"a","l":[],"m":{}}"#, 12 + (1 + 3) + (1 + 3)),
        (r#"{"template_id":"a","l":["ab",1],"m":{"key":"v"}}"#, 12 + (1 + 3 + 1 + 2 + 1 + 2) + (1 + 3 + 1 + 3 + 1)),
    ] {
        assert_eq!(item::encode(&plain(), &object(body)).bytes, bytes, "{body}");
    }
    let body = |length: usize| format!(r#"{{"template_id":"a","t":"{}"}}"#, "x".repeat(length));
    let check = |length| size::check(&plain(), "a", &item::encode(&plain(), &object(&body(length))));
    check(409_600 - 13).unwrap();
    assert_eq!(check(409_600 - 12).unwrap_err().kind, ErrorKind::InvalidArgument);
}

#[test]
fn an_index_whose_name_the_service_does_not_take_is_left_out_and_said() {
    let table = table();
    assert_eq!(table.indexes.iter().map(|index| index.name.as_str()).collect::<Vec<_>>(), ["status", "by-pool"]);
    assert!(table.warnings[0].contains("`x`"), "{:?}", table.warnings);
}

/// An expression with what its placeholders stand for in their place.
fn shown(expression: &Expression) -> String {
    let mut text = expression.text.clone();
    let names = expression.names.iter().map(|(placeholder, name)| (placeholder, name.clone()));
    let values = expression.values.iter().map(|(placeholder, value)| {
        let shown = match value {
            Attribute::Text(text) => format!("'{text}'"),
            Attribute::Number(text) => text.clone(),
            other => format!("{other:?}"),
        };
        (placeholder, shown)
    });
    let mut all: Vec<_> = names.chain(values).collect();
    // `:f10` before `:f1`.
    all.sort_by_key(|(placeholder, _)| std::cmp::Reverse(placeholder.len()));
    for (placeholder, shown) in all {
        assert!(text.contains(placeholder.as_str()), "{placeholder} is not used in {}", expression.text);
        text = text.replace(placeholder.as_str(), &shown);
    }
    text
}

fn parsed(text: &str) -> Filter {
    match text.starts_with('{') {
        true => filter::parse_json(&json::parse(text.as_bytes()).unwrap()).unwrap(),
        false => filter::parse_expression(text).unwrap(),
    }
}

#[test]
fn a_filter_becomes_an_expression_or_is_left() {
    const EXACT_TOO: &str = " OR attribute_exists(larder_exact)";
    for (filter, expected) in [
        ("n=1.00", Some("n = 1")),
        ("n!=1", Some("attribute_exists(n) AND NOT n = 1")),
        ("n<=2.5", Some("n <= 2.5")),
        ("n=null", Some("attribute_type(n, 'NULL')")),
        ("n", Some("attribute_exists(n)")),
        ("flag=true", Some("flag = Boolean(true)")),
        ("flag<true", Some("flag = Boolean(false)")),
        ("flag>=false", Some("attribute_type(flag, 'BOOL')")),
        ("o.p=1", Some("o.p = 1")),
        ("tags~=1", Some("contains(tags, 1)")),
        (r#"{"not":{"n":1}}"#, Some("NOT n = 1")),
        (r#"{"not":{"any":[{"n":1},{"m":2}]}}"#, Some("NOT (n = 1 OR m = 2)")),
        (r#"{"any":[{"all":[{"n":1},{"m":2}]},{"o":3}]}"#, Some("n = 1 AND m = 2 OR o = 3")),
        (r#"{"all":[{"any":[{"n":1}]},{"any":[{"n":2},{"m":3}]}]}"#, Some("n = 1 AND (n = 2 OR m = 3)")),
        (r#"{"field":"n","op":"in","value":[1,null]}"#, Some("n = 1 OR attribute_type(n, 'NULL')")),
        ("n=1e400", None),
        ("n=12345678901234567890123456789012345678901", None),
        ("flag<false", None),
        ("n<null", None),
        (r#"{"field":"s","op":"contains","value":""}"#, None),
        (r#"{"\"\"":1}"#, None),
        ("larder_exact=1", None),
        (r#"{"any":[]}"#, None),
    ] {
        let filter = parsed(filter);
        let conjuncts = filter.conjuncts();
        let table = plain();
        let plan = Plan::new(&table, &conjuncts, None);
        match expected {
            Some(expected) => {
                let expected = format!("{expected}{EXACT_TOO}");
                assert_eq!(plan.filter.as_ref().map(shown), Some(expected), "{filter:?}");
                assert_eq!((plan.applied.len(), plan.unapplied.len()), (conjuncts.len(), 0));
            }
            None => {
                assert_eq!((&plan.filter, plan.applied.len()), (&None, 0), "{filter:?}");
                assert_eq!(plan.unapplied, [0]);
            }
        }
    }
    // Text may be the text of bytes.
    let filter = parsed("s=x");
    let plan_filter = Plan::new(&plain(), &filter.conjuncts(), None).filter;
    assert_eq!(
        plan_filter.as_ref().map(shown).as_deref(),
        Some("s = 'x' OR attribute_exists(larder_exact) OR attribute_type(s, 'B')")
    );
    // What is left does not keep the others from being asked.
    let filter = parsed(r#"{"all":[{"n":1e400},{"n":1},{"any":[]}]}"#);
    let conjuncts = filter.conjuncts();
    let table = plain();
    let plan = Plan::new(&table, &conjuncts, None);
    assert_eq!((plan.applied.len(), plan.unapplied), (1, vec![0, 2]));
}

#[test]
fn an_expression_stays_within_what_the_service_takes() {
    let many = (0..400).map(|i| format!(r#"{{"member_number_{i}":"x"}}"#)).collect::<Vec<_>>().join(",");
    let filter = parsed(&format!(r#"{{"all":[{many}]}}"#));
    let conjuncts = filter.conjuncts();
    let table = plain();
    let plan = Plan::new(&table, &conjuncts, None);
    let text = plan.filter.unwrap().text;
    assert!(text.len() <= 4_096 && text.matches(['=', '(']).count() + text.matches(" OR ").count() <= 300, "{text}");
    assert!(plan.applied.len() > 10 && plan.applied.len() + plan.unapplied.len() == 400);
    let values = vec![r#""x""#; 101].join(",");
    let filter = parsed(&format!(r#"{{"field":"s","op":"in","value":[{values}]}}"#));
    assert_eq!(Plan::new(&table, &filter.conjuncts(), None).unapplied, [0]);
}

#[test]
fn an_index_is_read_by_its_hash_and_a_part_of_its_range() {
    let table = table();
    for (filter, expected) in [
        ("status=NEW", Some("status = 'NEW'")),
        (r#"{"all":[{"status":"NEW"},{"created_at":"t"}]}"#, Some("status = 'NEW' AND created_at = 't'")),
        (
            r#"{"all":[{"field":"created_at","op":">","value":"a"},{"status":"NEW"},{"field":"created_at","op":"<","value":"c"},{"field":"created_at","op":"<=","value":"b"}]}"#,
            Some("status = 'NEW' AND created_at BETWEEN 'a' AND 'b'"),
        ),
        (
            r#"{"all":[{"status":"NEW"},{"field":"created_at","op":"begins-with","value":"2026-0"}]}"#,
            Some("status = 'NEW' AND created_at BETWEEN '2026-0' AND '2026-1'"),
        ),
        (
            r#"{"all":[{"status":"NEW"},{"field":"created_at","op":"<=","value":"t"}]}"#,
            Some("status = 'NEW' AND created_at <= 't'"),
        ),
        ("status!=NEW", None),
        ("status=7", None),
        (r#"{"status":""}"#, None),
        (r#"{"status":"\u0000"}"#, None),
        (r#"{"any":[{"status":"NEW"}]}"#, None),
        ("created_at=t", None),
    ] {
        let filter = parsed(filter);
        let section = plan::section(&table, &table.indexes[0], &filter.conjuncts());
        let found = section.map(|section| shown(&section.expression(&table.indexes[0])));
        assert_eq!(found.as_deref(), expected, "{filter:?}");
    }
    let long = parsed(&format!(r#"{{"status":"{}"}}"#, "x".repeat(2_045)));
    assert_eq!(plan::section(&table, &table.indexes[0], &long.conjuncts()), None);

    // What is in the key cannot be asked once more, and has not to be.
    let filter = parsed(
        r#"{"all":[{"status":"NEW"},{"field":"created_at","op":">","value":"a"},{"n":1},{"field":"created_at","op":"!=","value":"b"},{"template_id":"x"}]}"#,
    );
    let conjuncts = filter.conjuncts();
    let plan = Plan::new(&table, &conjuncts, Some(&table.indexes[0]));
    assert_eq!(
        plan.filter.as_ref().map(shown).as_deref(),
        Some("n = 1 OR attribute_exists(larder_exact)"),
        "the filter beside the key"
    );
    assert_eq!((plan.applied.len(), plan.unapplied), (3, vec![3, 4]));
}

#[test]
fn an_index_has_the_order_of_its_range() {
    let table = table();
    let order = |text: &str| -> Vec<SortKey> { text.split(',').map(|key| key.parse().unwrap()).collect() };
    for (order_by, expected) in
        [("created_at", true), ("created_at:desc,n", true), ("n,created_at", false), ("status", false)]
    {
        assert_eq!(plan::is_index_order(&table.indexes[0], &order(order_by)), expected, "{order_by}");
    }
    assert!(!plan::is_index_order(&table.indexes[1], &order("pool")));
}

#[test]
fn ids_are_found_in_a_filter() {
    let table = table();
    for (filter, expected) in [
        ("template_id=b", Some(&["b"][..])),
        (r#"{"field":"template_id","op":"in","value":["b","a",7,"b",""]}"#, Some(&["a", "b"])),
        (r#"{"all":[{"n":1},{"template_id":"x"}]}"#, Some(&["x"])),
        ("template_id>b", None),
        ("template_id=7", None),
        (r#"{"any":[{"template_id":"x"}]}"#, None),
    ] {
        let filter = parsed(filter);
        let found = plan::ids(&table, &filter.conjuncts());
        let expected = expected.map(|ids| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>());
        assert_eq!(found, expected, "{filter:?}");
    }
}

#[test]
fn a_write_expects_what_was_read() {
    let table = table();
    let condition = |body: Option<&str>| {
        let mark = body.map(|body| Mark::of(&table.collection, &encoded(&table, body)));
        shown(&write::unchanged(&table, mark.as_ref()))
    };
    assert_eq!(condition(None), "attribute_not_exists(template_id)");
    let whole = r#"{"template_id":"a","version":7,"created_at":"t","status":"s","pool":"p"}"#;
    assert_eq!(condition(Some(whole)), "version = 7 AND created_at = 't'");
    // A version of `1.0` is none, and the next is 1, which is the same to an attribute.
    let loaded = r#"{"template_id":"a","version":1.0,"created_at":"t","status":"s","pool":"p"}"#;
    assert_eq!(
        condition(Some(loaded)),
        "version = 1 AND created_at = 't' AND larder_exact = \
         '{\"format\":1,\"members\":{\"version\":1.0}}'"
    );
    let bare = Collection { stamps: Stamps { created: None, ..table.collection.stamps.clone() }, ..plain().collection };
    let bare = Table::new(bare).unwrap();
    let mark = Mark::of(&bare.collection, &encoded(&bare, r#"{"template_id":"a"}"#));
    let text = shown(&write::unchanged(&bare, Some(&mark)));
    assert_eq!(text, "attribute_exists(template_id) AND attribute_not_exists(version)");
}

#[test]
fn tokens_differ_and_fit() {
    let tokens: std::collections::HashSet<String> = (0..1_000).map(|_| write::token()).collect();
    assert_eq!(tokens.len(), 1_000);
    assert!(tokens.iter().all(|token| token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit())));
}

#[test]
fn the_section_of_the_configuration_is_read_strictly() {
    for (text, expected) in [
        ("{}", Some((false, false))),
        (r#"{"consistent_reads":true}"#, Some((true, false))),
        (r#"{"load_in_transactions":true}"#, Some((false, true))),
        ("[true]", None),
    ] {
        let found: Result<_, Error> = crate::config::Config::parse(text);
        assert_eq!(found.ok().map(|config| (config.consistent_reads, config.load_in_transactions)), expected, "{text}");
    }
    let error = crate::config::Config::parse(r#"{"consistent_read":true}"#).unwrap_err();
    assert!(error.message.contains("consistent_read"), "{error}");
}
