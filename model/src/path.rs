//! Names of fields inside nested objects, as people write them: `a.b`, and `"a.b".c` for a name with a dot.

use std::{fmt, str::FromStr};

use serde_json::{Map, Value};

use crate::{Error, Result, json::quoted};

/// Member names from the outside in. Arrays are not entered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Path(pub Vec<String>);

impl Path {
    /// The path of a member at the top level, whatever characters its name has.
    pub fn member(name: impl Into<String>) -> Self {
        Path(vec![name.into()])
    }

    /// What stands there, none where it is absent. A `null` that stands there is a value.
    pub fn get<'a>(&self, map: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().try_fold(map.get(first)?, |value, name| value.as_object()?.get(name))
    }

    /// The name, where the path is of a member at the top level.
    pub fn single(&self) -> Option<&str> {
        match self.0.as_slice() {
            [name] => Some(name),
            _ => None,
        }
    }

    /// Reads a path from the start of `text`, up to where `ends` says so of the rest of the text, or to its end. Also
    /// answers that rest.
    pub(crate) fn parse_prefix(text: &str, ends: impl Fn(&str) -> bool) -> Result<(Path, &str)> {
        let invalid = |why: &str| Error::invalid(format!("{} is not a field: {why}", quoted(text)));
        let mut names = Vec::new();
        let mut rest = text;
        loop {
            if rest.starts_with('"') {
                let end = closing_quote(rest).ok_or_else(|| invalid("a quote is not closed"))?;
                let name =
                    serde_json::from_str(&rest[..=end]).map_err(|_| invalid("a quoted name is a JSON string"))?;
                names.push(name);
                rest = &rest[end + 1..];
                // So that `"a" = 1` may be written as `a = 1` is.
                if ends(rest.trim_start()) {
                    rest = rest.trim_start();
                }
            } else {
                let end = rest.char_indices().find(|&(i, c)| matches!(c, '.' | '"') || ends(&rest[i..]));
                let (name, after) = rest.split_at(end.map_or(rest.len(), |(i, _)| i));
                let name = if ends(after) { name.trim_end() } else { name };
                if name.is_empty() {
                    return Err(invalid("a name is empty; an empty name is written as \"\""));
                }
                names.push(name.to_owned());
                rest = after;
            }
            match rest.strip_prefix('.') {
                Some(after) => rest = after,
                None if rest.is_empty() || ends(rest) => return Ok((Path(names), rest)),
                None => {
                    return Err(invalid("a quoted name is followed by a dot or nothing, and a quote starts a name"));
                }
            }
        }
    }
}

/// Where the JSON string that `text` starts with is closed.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().enumerate().skip(1).find_map(|(i, byte)| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes.then_some(i)
    })
}

impl FromStr for Path {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(Path::parse_prefix(text, |_| false)?.0)
    }
}

impl fmt::Display for Path {
    /// Quotes each name that has more than letters, digits, `_` and `-`, so that it can be read in any surroundings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            if !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
                f.write_str(name)?;
            } else {
                write!(f, "{}", Value::from(name.as_str()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn a_path_is_read_and_shown() {
        for (text, names, shown) in [
            ("a", &["a"][..], "a"),
            ("a.b", &["a", "b"], "a.b"),
            (r#""a.b".c"#, &["a.b", "c"], r#""a.b".c"#),
            (r#"a."b"."c\"\\d""#, &["a", "b", "c\"\\d"], r#"a.b."c\"\\d""#),
            (r#""""#, &[""], r#""""#),
            (r#""\u0061\ud834\udd1e""#, &["a𝄞"], r#""a𝄞""#),
            ("größe.机器-1", &["größe", "机器-1"], "größe.机器-1"),
            ("a b", &["a b"], r#""a b""#),
            ("a=b", &["a=b"], r#""a=b""#),
            (r#""\n\u0000""#, &["\n\0"], r#""\n\u0000""#),
        ] {
            let path: Path = text.parse().unwrap();
            assert_eq!(path.0, names, "{text}");
            assert_eq!(path.to_string(), shown, "{text}");
            assert_eq!(shown.parse::<Path>().unwrap(), path, "{text}");
        }
        for text in ["", ".", "a.", ".a", "a..b", r#""a"#, r#""a\""#, r#""a"b"#, r#"a"b""#, r#""a"."#, r#""\q""#] {
            assert_eq!(text.parse::<Path>().unwrap_err().kind, crate::ErrorKind::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn a_path_finds_members_and_does_not_enter_arrays() {
        let map = json::parse_object(br#"{"a":{"b":null,"c.d":[{"e":1}]},"a.b":2,"":{"":3}}"#).unwrap();
        for (path, expected) in [
            ("a.b", Some("null")),
            ("\"a.b\"", Some("2")),
            ("a.\"c.d\"", Some(r#"[{"e":1}]"#)),
            ("a.\"c.d\".e", None),
            ("a.\"c.d\".0", None),
            ("a.b.c", None),
            ("x", None),
            ("\"\".\"\"", Some("3")),
        ] {
            let found = path.parse::<Path>().unwrap().get(&map).map(Value::to_string);
            assert_eq!(found.as_deref(), expected, "{path}");
        }
        assert_eq!(Path(Vec::new()).get(&map), None);
        assert_eq!(Path::member("a.b").get(&map), Some(&map["a.b"]));
        assert_eq!(Path::member("a.b").single(), Some("a.b"));
        assert_eq!("a.b".parse::<Path>().unwrap().single(), None);
    }
}
