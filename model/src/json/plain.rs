//! Reads JSON that is written plainly, which nearly all is: without an escape, and nested no deeper than entities are. It takes
//! less time than a parser does, and it accepts nothing that serde_json refuses; what it does not accept, serde_json looks
//! at.

use std::borrow::Cow;

use serde::de::DeserializeSeed;
use serde_json::Value;

use super::{DEPTH_MAX, Distinct, Exact, Kept, Member, Members, NUMBER_KEY, escapes};

/// Objects and arrays in each other: as many as there are bits to remember which they are.
const NESTED_MAX: u32 = u64::BITS;

/// So many digits are always a 64-bit integer.
const SHORT_DIGITS_MAX: usize = 18;

/// How long the object is that the text begins with; none where it is not plain, or does not end here.
pub fn object(text: &[u8]) -> Option<usize> {
    // The bits of all bytes of strings. Elsewhere only ASCII is accepted.
    let mut seen = 0;
    let end = if *text.first()? == b'{' { behind_nested(text, 0, &mut seen)? } else { return None };
    let is_utf8 = seen < 0x80 || std::str::from_utf8(&text[..end]).is_ok();
    is_utf8.then_some(end)
}

/// The string that the text begins with, without its quotes; none where it is not plain, or does not end here.
pub fn string(text: &[u8]) -> Option<&str> {
    let end = behind_string(text, 0, &mut 0)?;
    std::str::from_utf8(&text[1..end - 1]).ok()
}

/// The members of the object that the text is; none where it is not plain, or is wrong.
pub(super) fn members(text: &str) -> Option<Members<'_>> {
    let bytes = text.as_bytes();
    let exact = Exact { depth: 1, depth_max: DEPTH_MAX, kept: Kept::All };
    let mut members = Distinct::new();
    let mut at = behind_space(bytes, 0);
    at = if *bytes.get(at)? == b'{' { behind_space(bytes, at + 1) } else { return None };
    if *bytes.get(at)? == b'}' {
        at += 1;
    } else {
        loop {
            let behind = behind_string(bytes, at, &mut 0)?;
            let name = &text[at + 1..behind - 1];
            // What serde_json makes of it is for a parser to tell apart.
            if name == NUMBER_KEY {
                return None;
            }
            let name = members.accept(Cow::Borrowed(name)).ok()?;
            at = behind_space(bytes, behind);
            at = if *bytes.get(at)? == b':' { behind_space(bytes, at + 1) } else { return None };
            let from = at;
            let value = match *bytes.get(at)? {
                b'"' => {
                    at = behind_string(bytes, at, &mut 0)?;
                    Member::Text(Cow::Borrowed(&text[from + 1..at - 1]))
                }
                first => {
                    at = match first {
                        b'{' | b'[' => behind_nested(bytes, at, &mut 0)?,
                        _ => behind_scalar(bytes, at, first)?,
                    };
                    let value = &text[from..at];
                    Member::Other(match short_integer(value.as_bytes()) {
                        Some(value) => Value::from(value),
                        None => exact.deserialize(&mut serde_json::Deserializer::from_str(value)).ok()?,
                    })
                }
            };
            members.push(name, value);
            at = behind_space(bytes, at);
            match *bytes.get(at)? {
                b',' => at = behind_space(bytes, at + 1),
                b'}' => break at += 1,
                _ => return None,
            }
        }
    }
    (behind_space(bytes, at) == bytes.len()).then(|| members.finish(true))
}

/// The integer that a value is; none where it has so many digits that it may not fit, or is none.
fn short_integer(value: &[u8]) -> Option<u64> {
    let is_short = value.len() <= SHORT_DIGITS_MAX && value.iter().all(u8::is_ascii_digit);
    is_short.then(|| value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Behind the object or array that begins here.
fn behind_nested(text: &[u8], mut at: usize, seen: &mut u8) -> Option<usize> {
    // Of what is open, from the lowest bit on: 1 is an object. All that the loop needs is in variables of its own, because a
    // call for each value would take as long as the value.
    let (mut open, mut depth) = (0_u64, 0);
    loop {
        // A value begins here.
        at = behind_space(text, at);
        let first = *text.get(at)?;
        match first {
            b'"' => at = behind_string(text, at, seen)?,
            b'{' | b'[' => {
                if depth == NESTED_MAX {
                    return None;
                }
                (open, depth) = (open << 1 | u64::from(first == b'{'), depth + 1);
                at = behind_space(text, at + 1);
                match (*text.get(at)?, first) {
                    // Closed below.
                    (b'}', b'{') | (b']', b'[') => {}
                    (_, b'{') => {
                        at = behind_name(text, at, seen)?;
                        continue;
                    }
                    _ => continue,
                }
            }
            first => at = behind_scalar(text, at, first)?,
        }
        // Behind it, or before the end of something empty.
        loop {
            at = behind_space(text, at);
            let is_object = open & 1 == 1;
            match *text.get(at)? {
                b',' => {
                    at = behind_space(text, at + 1);
                    if is_object {
                        at = behind_name(text, at, seen)?;
                    }
                    break;
                }
                b'}' if is_object => {}
                b']' if !is_object => {}
                _ => return None,
            }
            (open, depth, at) = (open >> 1, depth - 1, at + 1);
            if depth == 0 {
                return Some(at);
            }
        }
    }
}

fn behind_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\t' | b'\r') = text.get(at) {
        at += 1;
    }
    at
}

/// Behind a member's name and its colon.
#[inline(always)]
fn behind_name(text: &[u8], at: usize, seen: &mut u8) -> Option<usize> {
    let at = behind_space(text, behind_string(text, at, seen)?);
    (*text.get(at)? == b':').then_some(at + 1)
}

#[inline(always)]
fn behind_string(text: &[u8], at: usize, seen: &mut u8) -> Option<usize> {
    if *text.get(at)? != b'"' {
        return None;
    }
    let mut at = at + 1;
    // Eight bytes at once, up to those with the quote or something else that does not stand for itself. A byte behind the
    // quote may be seen too.
    let mut all = 0;
    while let Some(&eight) = text.get(at..).and_then(|rest| rest.first_chunk()) {
        let eight = u64::from_le_bytes(eight);
        all |= eight;
        let escapes = escapes(eight);
        if escapes != 0 {
            *seen |= all.to_le_bytes().into_iter().fold(0, |all, byte| all | byte);
            at += escapes.trailing_zeros() as usize / 8;
            return (text[at] == b'"').then_some(at + 1);
        }
        at += 8;
    }
    *seen |= all.to_le_bytes().into_iter().fold(0, |all, byte| all | byte);
    loop {
        let byte = *text.get(at)?;
        at += 1;
        match byte {
            b'"' => return Some(at),
            b'\\' | 0..=0x1f => return None,
            byte => *seen |= byte,
        }
    }
}

/// Behind a value that is neither a string nor nested, and begins with this byte.
#[inline(always)]
fn behind_scalar(text: &[u8], at: usize, first: u8) -> Option<usize> {
    match first {
        b't' => behind_word(text, at, b"true"),
        b'f' => behind_word(text, at, b"false"),
        b'n' => behind_word(text, at, b"null"),
        _ => behind_number(text, at),
    }
}

fn behind_word(text: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    text[at..].starts_with(word).then_some(at + word.len())
}

fn behind_number(text: &[u8], mut at: usize) -> Option<usize> {
    let is = |at: usize, bytes: &[u8]| text.get(at).is_some_and(|byte| bytes.contains(byte));
    // One at least.
    let behind_digits = |at: usize| {
        let count = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then_some(at + count)
    };
    at += usize::from(is(at, b"-"));
    at = if is(at, b"0") { at + 1 } else { behind_digits(at)? };
    if is(at, b".") {
        at = behind_digits(at + 1)?;
    }
    if is(at, b"eE") {
        at += 1;
        at = behind_digits(at + usize::from(is(at, b"+-")))?;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::{
        Error,
        json::{parse_object, write_canonical_object},
    };

    /// What serde_json makes of the value that a text begins with.
    fn parsed(text: &[u8]) -> Option<usize> {
        let mut values = serde_json::Deserializer::from_slice(text).into_iter::<&RawValue>();
        values.next()?.ok().map(|raw| raw.get().len())
    }

    #[test]
    fn what_is_plain_is_as_long_as_serde_json_says() {
        for text in [
            "{}",
            "{ }x",
            r#"{"a":1}, "b""#,
            r#"{ "a" : [ ] , "b" : [ 1 , -0.5e+3 , "é 𝄞" , null , true , false , { } , [[]] ] , "" : { "c" : 0 } } }"#,
            "{\"a\":\n\t\r -10E-2}",
        ] {
            assert_eq!(object(text.as_bytes()), parsed(text.as_bytes()), "{text}");
            assert!(object(text.as_bytes()).is_some(), "{text}");
            for end in 0..object(text.as_bytes()).unwrap() {
                assert_eq!(object(&text.as_bytes()[..end]), None, "{text} up to {end}");
            }
        }
        let deep = |depth| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert!(object(deep(64).as_bytes()).is_some());
        assert!(object(deep(100).as_bytes()).is_none());
        assert_eq!(string(br#""a b": 1"#), Some("a b"));
        assert_eq!(string("\"é\"".as_bytes()), Some("é"));
        for text in [&b"\"a"[..], b"\"a\\n\"", b"\"\n\"", b"\"\xff\"", b"a\"", b""] {
            assert_eq!(string(text), None);
        }
    }

    #[test]
    fn members_that_are_plain_are_taken_and_others_are_left_to_the_parser() {
        for text in [
            "{}",
            " { } ",
            r#"{"a":"é","b" : 0,"c":-0,"d":1.50,"e":[{"f":"g"}, []],"h":123456789012345678901,"i":-7,"j":null,"k":""}"#,
            r#"{"a":999999999999999999,"b":1000000000000000000,"c":true,"d":{"$serde_json::private::Number":"1"}}"#,
        ] {
            let read = members(text).expect(text).into_map();
            assert_eq!(format!("{read:?}"), format!("{:?}", parse_object(text.as_bytes()).unwrap()));
        }
        let deep = |depth| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert!(members(&deep(DEPTH_MAX)).is_some());
        for text in [
            deep(DEPTH_MAX + 1).as_str(),
            r#"{"a":"\n"}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":01}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a":1} {}"#,
            r#"{"$serde_json::private::Number":"1"}"#,
            "[]",
            "",
        ] {
            assert!(members(text).is_none(), "{text}");
        }
    }

    /// Each byte of some texts is replaced by each of those that mean something, left out and doubled.
    #[test]
    fn nothing_is_accepted_that_serde_json_refuses() {
        let bytes: Vec<u8> =
            br#"{}[]:,"\ -+.01eEtruefalsn"#.iter().copied().chain([0, b'\n', 0x7f, 0x80, 0xc3, 0xff]).collect();
        let (mut accepted, mut taken) = (0, 0);
        for text in [
            r#"{"a":[1,-0.5e+3,"é",null,true,false,{},[[]]],"":{"c":0}}"#,
            r#"{ "ab" : 10 , "c" : [ 0 , -1 ] , "d" : "x" }"#,
            r#"{"a":0.1E-2,"b":[],"c":"\u00e9"}"#,
        ] {
            let text = text.as_bytes();
            for at in 0..=text.len() {
                let (before, rest) = text.split_at(at);
                let rest = &rest[usize::from(!rest.is_empty())..];
                let mut all: Vec<Vec<u8>> = bytes.iter().map(|byte| [before, &[*byte], rest].concat()).collect();
                all.extend(bytes.iter().map(|byte| [before, &[*byte], &text[at..]].concat()));
                all.push([before, rest].concat());
                for changed in all {
                    if let Some(len) = object(&changed) {
                        accepted += 1;
                        assert_eq!(parsed(&changed), Some(len), "{}", changed.escape_ascii());
                    }
                    if let Some(members) = std::str::from_utf8(&changed).ok().and_then(members) {
                        taken += 1;
                        let (mut canonical, mut of_map) = (Vec::new(), Vec::new());
                        write_canonical_object(&members, &mut canonical);
                        let (read, expected) = (members.into_map(), parse_object(&changed));
                        write_canonical_object(&read, &mut of_map);
                        assert_eq!(canonical, of_map, "{}", changed.escape_ascii());
                        assert_eq!(format!("{:?}", Ok::<_, Error>(read)), format!("{expected:?}"));
                    }
                }
            }
        }
        assert!(accepted > 1_000 && taken > 500, "{accepted} {taken}");
    }
}
