//! Text that others wrote, made safe to show. What a plugin, a server or a file says reaches a terminal, a log and a
//! program through these functions and no others: it moves no cursor, changes no order of reading and forges no line.
//!
//! A plugin's text is made one line where it comes in, by whoever takes it from the plugin; what goes out passes
//! [`lines`] or [`json`] in `output`, whatever became of it in between.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character does something instead of being seen: controls, marks that reorder what is read, and what some
/// programs take for the end of a line.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

/// Text as one bounded line.
pub(crate) fn one_line(text: &str) -> String {
    escaped(text, 500)
}

/// The same for a line of a statement, which is of no use when it is cut.
pub(crate) fn statement_line(text: &str) -> String {
    escaped(text, 64_000)
}

fn escaped(text: &str, chars_max: usize) -> String {
    let mut line = String::new();
    for character in text.chars().take(chars_max) {
        if is_hidden(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Text for a terminal. Its line breaks are those of whoever put it together.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    let is_unsafe = |character: char| is_hidden(character) && character != '\n';
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe.into()
}

/// JSON text, meaning the same. Between its tokens there is none of these characters, and in its strings those of ASCII are
/// escaped already.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    let is_unsafe = |character: char| character > '~' && is_hidden(character);
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) {
            let _ = write!(safe, "\\u{:04x}", u32::from(character));
        } else {
            safe.push(character);
        }
    }
    safe.into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const HOSTILE: &str = "a\u{1b}[2J\u{9b}2J\u{7f}\u{202e}b\u{2066}\u{2028}\u{200f}\nerror: forged\r\t\0é日本";

    #[test]
    fn what_moves_the_cursor_or_reorders_what_is_read_is_shown_as_its_number() {
        let line = one_line(HOSTILE);
        assert!(!line.chars().any(is_hidden), "{line:?}");
        assert!(
            line.contains("\\u{1b}[2J\\u{9b}2J") && line.contains("\\nerror: forged") && line.ends_with("é日本"),
            "{line}"
        );
        assert_eq!(one_line(&"x".repeat(1000)).len(), 500);
        assert_eq!(lines("one\ntwo é"), "one\ntwo é");
        let text = lines(HOSTILE);
        assert_eq!(text.lines().count(), 2);
        assert!(!text.chars().any(|character| is_hidden(character) && character != '\n'), "{text:?}");
    }

    #[test]
    fn json_means_the_same_and_holds_nothing_hidden() {
        for value in [json!({ HOSTILE: [HOSTILE, 1.5, null] }), json!(HOSTILE)] {
            for text in [value.to_string(), format!("{value:#}")] {
                let safe = json(&text);
                assert!(!safe.chars().any(|character| is_hidden(character) && character != '\n'), "{safe:?}");
                assert_eq!(serde_json::from_str::<Value>(&safe).expect("JSON"), value);
            }
        }
        assert!(matches!(json("{\"a\": \"é日本\"}"), Cow::Borrowed(_)));
    }
}
