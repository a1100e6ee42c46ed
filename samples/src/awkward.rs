//! Entities that are valid and easy to damage: numbers that no machine type holds, texts that look like something
//! else, names that mean something to a language on the way, every kind of nesting. A store keeps all of it or breaks
//! its promise.

use std::collections::BTreeSet;

use crate::quote;
use crate::random::Random;

/// How many objects and arrays may stand inside one another in an entity, itself included.
pub const NESTING_MAX: usize = 64;

/// An entity for `templates` with what the strict tables require, and more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awkward {
    /// Its `template_id`: 1 to 255 characters, none of them a control character, no other entity's.
    pub id: String,
    /// The entity as JSON text.
    pub body: String,
}

/// `count` entities. Of 150 or more, every value of the lists below is in at least one entity, as a member that no
/// table has a column for; columns that may be null hold them too.
///
/// Where a strict table gives a column a length, no text is longer. `version` is 1 and `created_at` is text, so that a
/// plain save changes nothing but `updated_at`.
pub fn awkward(count: usize, seed: u64) -> Vec<Awkward> {
    let mut random = Random::new(seed);
    let values = values();
    let mut ids = BTreeSet::new();
    let mut entities = Vec::with_capacity(count);
    for n in 0..count {
        let wanted = ID_PARTS.get(n).map_or_else(|| format!("{}-{n}", random.pick(ID_PARTS)), |id| id.to_string());
        let id = match n {
            0 => "é".repeat(255),
            _ if ids.contains(&wanted) => format!("entity-{n}"),
            _ => wanted,
        };
        ids.insert(id.clone());
        let body = body(&mut random, n, &id, &values);
        entities.push(Awkward { id, body });
    }
    entities
}

fn body(random: &mut Random, n: usize, id: &str, values: &[String]) -> String {
    let fits = |value: &&String| value.len() <= 200;
    let columns: Vec<&String> = values.iter().filter(fits).collect();
    let column = |random: &mut Random| columns[random.below(columns.len() as u64) as usize].clone();
    let mut members = vec![
        ("template_id".to_owned(), quote(id)),
        ("name".to_owned(), quote(random.pick(TEXTS))),
        ("provider_api".to_owned(), quote(random.pick(TEXTS))),
        ("vm_type".to_owned(), quote(random.pick(TEXTS))),
        ("max_number".to_owned(), random.below(1_000).to_string()),
        ("version".to_owned(), "1".to_owned()),
        ("created_at".to_owned(), quote(random.pick(TIMES))),
        ("value".to_owned(), values[n % values.len()].clone()),
    ];
    for name in ["image_id", "subnet_ids", "security_group_ids", "attributes"] {
        if random.chance(60) {
            members.push((name.to_owned(), column(random)));
        }
    }
    members.push((NAMES[n % NAMES.len()].to_owned(), column(random)));
    for name in NAMES {
        if random.chance(15) && members.iter().all(|(taken, _)| taken != name) {
            members.push(((*name).to_owned(), column(random)));
        }
    }
    // No order of members may matter, the key's place least of all.
    for last in (1..members.len()).rev() {
        members.swap(last, random.below(last as u64 + 1) as usize);
    }
    let members: Vec<String> = members.iter().map(|(name, value)| format!("{}:{value}", quote(name))).collect();
    format!("{{{}}}", members.join(","))
}

/// All values, as JSON text.
fn values() -> Vec<String> {
    let mut values: Vec<String> = NUMBERS.iter().chain(LITERALS).map(|text| text.to_string()).collect();
    values.extend(TEXTS.iter().chain(CONTROLS).map(|text| quote(text)));
    // A megabyte.
    values.push(quote(&"long text ".repeat(100_000)));
    values.push(quote(&"🦀".repeat(1_000)));
    // The entity itself is one level.
    values.push("[".repeat(NESTING_MAX - 1) + &"]".repeat(NESTING_MAX - 1));
    values.push(r#"{"a":"#.repeat(NESTING_MAX - 2) + "[]" + &"}".repeat(NESTING_MAX - 2));
    values.push(format!("[{}]", NUMBERS.join(",")));
    values.push(format!("[{}]", vec!["[]"; 500].join(",")));
    values
}

/// Numbers that lose something in a 64-bit integer, in a double or in a decimal of 38 digits, and pairs of equal value
/// of which one is an integer.
const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "0.0",
    "-0.0",
    "1",
    "1.0",
    "1.00",
    "10",
    "1e1",
    "-1",
    "0.1",
    "0.30000000000000004",
    "0.42",
    "9007199254740992",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999999999999999",
    "1234567890123456789012345678901234567890",
    "-1234567890123456789012345678901234567890",
    "0.1234567890123456789012345678901234567890",
    "3.141592653589793238462643383279502884197",
    "1e125",
    "1e126",
    "1e308",
    "1e309",
    "1e400",
    "-1E+400",
    "1e-130",
    "1e-131",
    "5e-324",
    "1e-400",
    "123456789.123456789123456789",
];

/// Everything else that is not text. Some use escapes where none are needed.
const LITERALS: &[&str] = &[
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "[null]",
    "[[]]",
    "[{}]",
    r#"{"":""}"#,
    r#"{"":null}"#,
    r#"[1,1.0,"1",true,null,"null"]"#,
    r#"[[1,[2,[3,[]]]],{}]"#,
    r#"{"a.b":1,"a":{"b":2},"\"a\".b":3}"#,
    r#"{"name":1,"Name":2,"NAME":3}"#,
    r#"{"b":1,"a":2,"":3}"#,
    r#"{"$ne":null}"#,
    r#"{"S":"x"}"#,
    r#"{"N":"1"}"#,
    r#"{"M":{"a":{"L":[{"NULL":true}]}}}"#,
    r#"{"field":"name","op":"eq","value":1}"#,
    r#"{"all":[]}"#,
    r#"{"__proto__":{"x":1},"constructor":null}"#,
    r#""\u0041\u00e9\/\ud83e\udd80""#,
    r#"{"\u0061":"\u0022\u005c"}"#,
    r#"[0,-0,0.0]"#,
];

/// Short enough for every column, and fit for a database's text: no NUL.
const TEXTS: &[&str] = &[
    "",
    " ",
    "  space around  ",
    "0",
    "007",
    "1e5",
    "0x10",
    "1.0",
    "-0",
    "NaN",
    "Infinity",
    "null",
    "NULL",
    "true",
    "[1,2]",
    r#"{"a": 1}"#,
    r#""quoted""#,
    "2026-03-01",
    "2026-03-01T08:00:00Z",
    "it's",
    "''",
    r"back\slash\u0041",
    "100% _like_ *glob* [a-z]",
    "a/b/../c",
    "$1 ?1 :a @b #c",
    "'; DROP TABLE templates; --",
    "${HOME} $(id) `id`",
    "<b>&amp;</b>",
    "Ελληνικά",
    "русский",
    "العربية",
    "עברית",
    "हिन्दी",
    "ไทย",
    "日本語",
    "한국어",
    "አማርኛ",
    "𐎠𐎡𐎢",
    "🦀👩‍👩‍👧",
    "e\u{301}",
    "é",
    "İıſß",
    "\u{feff}mark",
    "zero\u{200b}width",
    "\u{202e}right to left",
    "\u{2028}\u{2029}",
    "\u{fffd}\u{ffff}\u{10ffff}",
    "\u{e000}\u{f8ff}",
];

/// Texts that JSON has to write as escapes, and their neighbours.
const CONTROLS: &[&str] = &[
    "\0",
    "nul \0 inside",
    "line\nbreak\r\n\ttab",
    "\u{1}\u{2}\u{8}\u{b}\u{c}\u{e}\u{1f}",
    "\u{7f}\u{80}\u{85}\u{9f}",
    "\u{1b}[31mred\u{1b}[0m",
];

/// Member names; some differ from a column's name by case alone, some are words of a query language.
const NAMES: &[&str] = &[
    "",
    " ",
    "a.b",
    "a",
    r#""a".b"#,
    "a\"b'c`d",
    "[0]",
    "0",
    "-1",
    "$ne",
    "$.a",
    "#a",
    ":a",
    "?",
    "Name",
    "NAME",
    "Template_ID",
    "select",
    "rowid",
    "oid",
    "xmin",
    "id",
    "key",
    "data",
    "body",
    "document",
    "extra",
    "_extra",
    "rest",
    "__proto__",
    "constructor",
    "null",
    "true",
    "Équipe",
    "E\u{301}quipe",
    "名前",
    "اسم",
    "🦀",
    "line\nbreak",
    "nul \0 inside",
    "name ",
    " name",
];

/// Ids, alone and as beginnings of others; several differ by case, by form or by a space alone.
const ID_PARTS: &[&str] = &[
    "a",
    "template-1",
    "Template-1",
    "TEMPLATE-1",
    "template-1 ",
    " template-1",
    " ",
    ".",
    "..",
    "a/b",
    "../../etc/passwd",
    r"a\b",
    "a.b",
    "\"",
    "'",
    "%",
    "_",
    "*",
    "-",
    "--help",
    "0",
    "007",
    "7",
    "1e5",
    "1.0",
    "null",
    "true",
    "[]",
    "{}",
    "$ne",
    "#",
    "a#b",
    "a:b",
    "a|b",
    "__proto__",
    "return-request",
    "é",
    "e\u{301}",
    "ß",
    "ﬁ",
    "Ωμέγα",
    "русский",
    "عربى",
    "日本",
    "🦀",
    "\u{feff}",
    "a\u{200b}",
    "\u{10ffff}",
    "; DROP TABLE templates; --",
];

/// Times in the forms that others write, and text that is none.
const TIMES: &[&str] = &[
    "2026-03-01T08:00:00Z",
    "2026-03-01T08:00:00+00:00",
    "2026-03-01T08:00:00.1Z",
    "2026-03-01T08:00:00.123456Z",
    "2026-03-01T08:00:00.123456789Z",
    "2026-03-01T13:30:00+05:30",
    "2026-03-01 08:00:00",
    "2026-03-01",
    "1772352000",
    "yesterday",
    "",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
            Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    #[test]
    fn every_entity_is_valid_and_its_id_is_its_own() {
        let entities = awkward(500, 7);
        let mut ids = BTreeSet::new();
        for Awkward { id, body } in &entities {
            let value: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {body}"));
            assert_eq!(value["template_id"], id.as_str());
            assert!((1..=255).contains(&id.chars().count()) && !id.chars().any(char::is_control), "{id:?}");
            assert!(ids.insert(id), "{id:?} comes twice");
            assert!(depth(&value) <= NESTING_MAX);
            for (member, length) in [("name", 255), ("provider_api", 50), ("vm_type", 50), ("created_at", 255)] {
                assert!(value[member].as_str().unwrap().chars().count() <= length);
            }
        }
    }

    #[test]
    fn enough_entities_hold_every_value_and_the_greatest_depth() {
        let values = values();
        assert!(values.len() <= 150, "{}", values.len());
        let entities = awkward(values.len(), 7);
        for value in values {
            assert!(entities.iter().any(|entity| entity.body.contains(&format!("\"value\":{value}"))), "{value}");
        }
        let deepest = entities.iter().map(|entity| depth(&serde_json::from_str(&entity.body).unwrap())).max();
        assert_eq!(deepest, Some(NESTING_MAX));
    }

    #[test]
    fn the_same_seed_gives_the_same_entities() {
        assert_eq!(awkward(50, 7), awkward(50, 7));
        assert_ne!(awkward(50, 7), awkward(50, 8));
    }
}
