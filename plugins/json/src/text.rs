//! JSON as text: how entities are set into a document and taken out of it without a number or an escape being spelt anew.
//!
//! Everything here takes text that a parser accepted before.

use std::borrow::Cow;

use memchr::{memchr2, memrchr_iter};
use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// Spaces a level.
const INDENT: usize = 2;

/// Appends `value` as it stands `depth` levels deep in a document.
pub(crate) fn pretty(value: &[u8], depth: usize, out: &mut Vec<u8>) {
    rewrite(value, depth, out);
}

/// `value` without white space around its tokens.
pub(crate) fn compact(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    // What is kept is copied in runs: where there is no white space, all at once.
    let (mut from, mut at) = (0, 0);
    while let Some(&byte) = value.get(at) {
        match byte {
            b'"' => at = string_end(value, at),
            b' ' | b'\t' | b'\n' | b'\r' => {
                out.extend_from_slice(&value[from..at]);
                at += 1;
                from = at;
            }
            _ => at += 1,
        }
    }
    out.extend_from_slice(&value[from..]);
    out
}

/// [`compact`] and [`version`] of a body, which for most bodies takes a glance: they are written without white space, and
/// hold scalars.
pub(crate) fn compact_with_version(value: &[u8], member: &str) -> (Vec<u8>, u64) {
    let (first, rest) = value.split_first().map_or((0, value), |(first, rest)| (*first, rest));
    // Without a branch, so that many bytes are looked at together.
    let (mut has_space, mut is_odd) = (first.is_ascii_whitespace(), first != b'{');
    for &byte in rest {
        has_space |= matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        is_odd |= matches!(byte, b'{' | b'[' | b'\\');
    }
    let compact = if has_space { compact(value) } else { value.to_vec() };
    // A name that could stand between the quotes of two other texts is looked for in earnest.
    is_odd |= member.contains('"') || member.starts_with([',', ':']);
    let version = match is_odd {
        true => version(value, member),
        false => version_of_flat(&compact, member.as_bytes()),
    };
    (compact, version)
}

/// The version in an object without white space, without an object or array in it, and without an escape: then the name
/// between quotes and before a colon can be nothing but the name of the member. Of two, the last one counts.
fn version_of_flat(body: &[u8], member: &[u8]) -> u64 {
    let is_name = |before: &[u8]| {
        let name = before.strip_suffix(b"\"").and_then(|before| before.strip_suffix(member));
        name.is_some_and(|before| before.ends_with(b"\""))
    };
    let Some(colon) = memrchr_iter(b':', body).find(|at| is_name(&body[..*at])) else { return 0 };
    let value = &body[colon + 1..];
    let end = value.iter().position(|byte| matches!(byte, b',' | b'}')).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok().and_then(usable).unwrap_or(0)
}

/// The version that a number is.
fn usable(number: &str) -> Option<u64> {
    u64::try_from(number.parse::<i64>().ok()?).ok()
}

/// A new line in a document, `depth` levels deep.
pub(crate) fn new_line(depth: usize, out: &mut Vec<u8>) {
    out.push(b'\n');
    out.resize(out.len() + depth * INDENT, b' ');
}

/// Appends a member's name and the colon.
pub(crate) fn name(name: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, name).expect("text into a vector cannot fail");
    out.extend_from_slice(b": ");
}

/// Copies tokens, each on a line of its own where it is a member or an element.
fn rewrite(value: &[u8], mut depth: usize, out: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {}
            b'"' => {
                let end = string_end(value, at);
                out.extend_from_slice(&value[at..end]);
                at = end;
                continue;
            }
            b'{' | b'[' => {
                out.push(byte);
                let next = value[at + 1..].iter().find(|byte| !byte.is_ascii_whitespace());
                depth += 1;
                // An empty one is closed on the same line.
                if !matches!(next, Some(b'}' | b']')) {
                    new_line(depth, out);
                }
            }
            b'}' | b']' => {
                depth -= 1;
                if !matches!(out.last(), Some(b'{' | b'[')) {
                    new_line(depth, out);
                }
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                new_line(depth, out);
            }
            b':' => out.extend_from_slice(b": "),
            _ => {
                let rest = &value[at..];
                let end =
                    rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r'));
                let token = &rest[..end.unwrap_or(rest.len())];
                out.extend_from_slice(token);
                at += token.len();
                continue;
            }
        }
        at += 1;
    }
}

/// Behind the quote that closes the string that starts at `start`.
fn string_end(value: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = value.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if value[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    value.len()
}

/// The version member of a body, without reading the rest of it; 0 where it has no usable one.
pub(crate) fn version(body: &[u8], member: &str) -> u64 {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let found = deserializer.deserialize_map(VersionOf { member });
    found.ok().flatten().unwrap_or(0)
}

struct VersionOf<'a> {
    member: &'a str,
}

impl<'de> Visitor<'de> for VersionOf<'_> {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<u64>, A::Error> {
        let mut version = None;
        while let Some(Name(name)) = map.next_key()? {
            if name == self.member {
                let value: &RawValue = map.next_value()?;
                version = usable(value.get());
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(version)
    }
}

/// A member's name, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// FNV-1a: the same on every machine and in every version, because cursors and segments outlive an instance.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pretty_text(value: &str, depth: usize) -> String {
        let mut out = Vec::new();
        pretty(value.as_bytes(), depth, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tokens_are_copied_as_they_are_spelt() {
        let spelt = r#" {"a" : [ ] , "b":{ },"c":[1.0 , -1E+400,"\u00e9 \" , é\\" , {"d":null}],"e":true} "#;
        let compacted = r#"{"a":[],"b":{},"c":[1.0,-1E+400,"\u00e9 \" , é\\",{"d":null}],"e":true}"#;
        assert_eq!(String::from_utf8(compact(spelt.as_bytes())).unwrap(), compacted);
        let expected = "{\n    \"a\": [],\n    \"b\": {},\n    \"c\": [\n      1.0,\n      -1E+400,\n      \"\\u00e9 \\\" , é\\\\\",\n      {\n        \"d\": null\n      }\n    ],\n    \"e\": true\n  }";
        assert_eq!(pretty_text(spelt, 1), expected);
        assert_eq!(pretty_text(expected, 1), expected, "formatting again changes nothing");
    }

    #[test]
    fn formatting_is_that_of_serde_json() {
        let value: serde_json::Value = serde_json::from_str(r#"{"a":[1,[],{}],"b":{"c":"[{"}}"#).unwrap();
        assert_eq!(pretty_text(&value.to_string(), 0), serde_json::to_string_pretty(&value).unwrap());
    }

    #[test]
    fn a_version_is_found_where_it_is_usable() {
        for (body, expected) in [
            (r#"{"a":{"version":9},"version": 7 }"#, 7),
            (r#"{"versio\u006e":3}"#, 3),
            (r#" {"version":3}"#, 3),
            ("", 0),
            (r#" { "a" : [ "version" , { "version" : 9 } , [ 1 ] ] , "version" : 7 , "b" : "version" } "#, 7),
            (r#"{"a":"\" :,{","version":7}"#, 7),
            (r#"{"a":"version","b":"{:","my version":9,"version":7,"versions":8}"#, 7),
            (r#"{"a":"two words","version":7,"version":8}"#, 8),
            (r#"{"a":9,"version":7}"#, 7),
            (r#"{"a":"x",":5,y":1}"#, 0),
            (r#"{"a":":5,"}"#, 0),
            (r#"{"a":"two words","b":["version"],"version":7}"#, 7),
            (r#"["version",{"version":7},7]"#, 0),
            (r#""version""#, 0),
            (r#"{"version":"version","a":7}"#, 0),
            (r#"{"version":1.0}"#, 0),
            (r#"{"version":-1}"#, 0),
            (r#"{"version":"7"}"#, 0),
            (r#"{"version":9223372036854775808}"#, 0),
            ("[1]", 0),
            ("{}", 0),
        ] {
            assert_eq!(version(body.as_bytes(), "version"), expected, "{body}");
            for odd in [r#"a":9,"version"#, ",", ":"] {
                assert_eq!(compact_with_version(body.as_bytes(), odd).1, 0, "{body}");
            }
            assert_eq!(
                compact_with_version(body.as_bytes(), "version"),
                (compact(body.as_bytes()), expected),
                "{body}"
            );
        }
    }
}
