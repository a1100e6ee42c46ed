//! Values that a column of PostgreSQL does not hold: what it gets in their place, that nothing of it is lost, and that a
//! person finds their way in the table.

use super::*;

fn strict() -> Vec<Collection> {
    let fields = TYPES.map(|(name, ty)| Field {
        required: true,
        max_length: (ty == FieldType::Text).then_some(5),
        ..field(name, ty)
    });
    vec![collection("typed", "id", fields.to_vec())]
}

#[test]
fn a_required_column_gets_a_placeholder() {
    let mut fixture = open(Place::Postgres, "{}", strict());
    let body =
        r#"{"id":"a","text":[1,2,3,4],"integer":"x","number":[],"boolean":"yes","timestamp":"soon","json":"\u0000"}"#;
    assert_eq!(fixture.load("typed", &[body.to_owned()], Existing::Fail).refused, []);
    assert_same(&fixture.get("typed", "a").unwrap().unwrap(), body, "strict");
    let text = "SELECT text, integer, number, boolean, timestamp::text, json FROM typed";
    assert_eq!(
        fixture.by_hand(text).cells,
        [
            SqlValue::Text("[1,2,".to_owned()),
            SqlValue::Integer(0),
            SqlValue::Number(0.0),
            SqlValue::Boolean(false),
            SqlValue::Text("1970-01-01 00:00:00".to_owned()),
            SqlValue::Text("\"\"".to_owned()),
        ]
    );
}

#[test]
fn a_column_that_takes_null_gets_it_and_a_hand_can_fill_it() {
    let mut fixture = open(Place::Postgres, r#"{"constraints":"relaxed"}"#, strict());
    let body = r#"{"id":"a","text":"too long for it","integer":"x","number":"NaN","boolean":0,"timestamp":"soon"}"#;
    fixture.load("typed", &[body.to_owned()], Existing::Fail);
    assert_same(&fixture.get("typed", "a").unwrap().unwrap(), body, "relaxed");
    let cells = fixture.by_hand("SELECT text, integer, number, boolean, timestamp::text FROM typed").cells;
    assert_eq!(cells[0], SqlValue::Text("too l".to_owned()));
    assert!(cells[1..].iter().all(|cell| *cell == SqlValue::Null), "{cells:?}");
    // Where the column got nothing, what somebody puts there is right; so is taking something away.
    for (set, expected) in [
        ("text = 'own'", r#""text":"own""#),
        ("integer = 7", r#""integer":7"#),
        ("number = 0.5", r#""number":0.5"#),
        ("boolean = true", r#""boolean":true"#),
        ("timestamp = '2026-01-01'", r#""timestamp":"2026-01-01T00:00:00.000000Z""#),
    ] {
        fixture.by_hand(&format!("UPDATE typed SET {set}"));
        let stored = fixture.get("typed", "a").unwrap().unwrap();
        assert!(stored.contains(expected), "{set}: {stored}");
    }
    fixture.by_hand("UPDATE typed SET text = NULL");
    assert!(!fixture.get("typed", "a").unwrap().unwrap().contains("\"text\""));
}

#[test]
fn what_a_server_cannot_look_into_does_not_stand_where_people_look() {
    let mut fixture = open(Place::Postgres, "{}", typed());
    let bodies = [
        r#"{"id":"a","x":"plain","bad":"a\u0000b","deep":[{"k":["\u0000"]}],"na\u0000me":1,"n":12345678901234567890.10}"#,
        r#"{"id":"b","x":"\\u0000","json":{"\u0000":1,"y":"z"}}"#,
    ];
    fixture.load("typed", &bodies.map(str::to_owned), Existing::Fail);
    for body in bodies {
        assert_same(&fixture.get("typed", &entity(body).id).unwrap().unwrap(), body, "with NUL");
    }
    let text = |text: &str| SqlValue::Text(text.to_owned());
    let cells = fixture.by_hand("SELECT larder_extra->>'x', larder_extra->>'n' FROM typed ORDER BY id").cells;
    assert_eq!(cells, [text("plain"), text("12345678901234567890.10"), text("\\u0000"), SqlValue::Null]);
    assert_eq!(fixture.by_hand("SELECT json::json->>'y' FROM typed WHERE id = 'b'").cells, [text("z")]);
    // A member that somebody puts to the others is right.
    fixture.by_hand("UPDATE typed SET larder_extra = '{\"bad\":2}' WHERE id = 'a'");
    let stored = fixture.get("typed", "a").unwrap().unwrap();
    assert!(stored.contains(r#""bad":2"#) && stored.contains("\"deep\""), "{stored}");
}

#[test]
fn numbers_and_times_are_held_by_their_column_where_it_gives_them_back() {
    let mut fixture = open(Place::Postgres, "{}", typed());
    for (name, value, is_held) in [
        ("integer", "2147483647", true),
        ("integer", "2147483648", false),
        ("integer", "1.0", false),
        ("integer", "-0", false),
        ("version", "9223372036854775807", true),
        ("version", "9223372036854775808", false),
        ("number", "0.1", true),
        ("number", "1", false),
        ("number", "1e400", false),
        ("number", "0.1000000000000000055511151231257827", false),
        ("boolean", "true", true),
        ("timestamp", r#""2025-06-30T12:00:00.000000Z""#, true),
        ("timestamp", r#""2025-06-30T12:00:00Z""#, false),
        ("timestamp", r#""2025-06-30T12:00:00+00:00""#, false),
        ("timestamp", r#""0000-01-01T00:00:00.000000Z""#, false),
        ("timestamp", r#""2025-02-29T00:00:00.000000Z""#, false),
        ("text", r#""é 𝄞""#, true),
        ("json", r#"{"a":1.0}"#, true),
    ] {
        let body = format!(r#"{{"id":"a","{name}":{value}}}"#);
        fixture.load("typed", std::slice::from_ref(&body), Existing::Overwrite);
        assert_same(&fixture.get("typed", "a").unwrap().unwrap(), &body, "held or not");
        let exact = fixture.by_hand("SELECT larder_exact FROM typed").cells.remove(0);
        assert_eq!(exact == SqlValue::Null, is_held, "{body}: {exact:?}");
    }
}

/// An index of PostgreSQL takes no text of any length.
#[test]
fn a_text_that_is_too_long_for_an_index_is_kept_and_found() {
    let mut definition = typed();
    definition[0].indexes = vec![Index { name: "i".to_owned(), fields: vec!["text".to_owned(), "number".to_owned()] }];
    let mut fixture = open(Place::Postgres, "{}", definition.clone());
    // Of no pattern that could be pressed together.
    let text: String = (0..20_000_u32).filter_map(|i| char::from_u32(0x4e00 + i.wrapping_mul(7919) % 20_000)).collect();
    let body = format!(r#"{{"id":"a","text":"{text}"}}"#);
    assert_eq!(
        fixture.load("typed", &[body.clone(), r#"{"id":"b","text":"x"}"#.to_owned()], Existing::Fail).written,
        2
    );
    assert_same(&fixture.get("typed", "a").unwrap().unwrap(), &body, "long");
    // And one from before there was an index.
    fixture.by_hand("DROP INDEX idx_typed_i");
    fixture.by_hand(&format!("INSERT INTO typed (id, text) VALUES ('c', '{text}')"));
    let tree = serde_json::json!({"text": text});
    let query = Query { filter: Some(filter::parse_json(&tree).unwrap()), ..everything() };
    let page = fixture.store.find("typed", &query).unwrap();
    assert_eq!(page.unapplied, [0; 0]);
    assert_eq!(page.entities.iter().map(|entity| entity.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
}
