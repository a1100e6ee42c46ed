//! How a case looks at an answer, and how it stops: with what was found, what was expected, and the line that looked.

use std::fmt::Debug;
use std::panic::Location;

use larder_model::ErrorKind;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::model::json;

/// What a case comes to.
pub(super) type Checked<T = ()> = Result<T, Stop>;

/// Why a case ended before its end.
#[derive(Debug)]
pub(super) enum Stop {
    Failed { reason: String, at: Option<String> },
    NotRun(String),
    Undeclared(&'static str),
}

impl Stop {
    /// A failure with the line that found it.
    #[track_caller]
    pub(super) fn failed(reason: impl Into<String>) -> Stop {
        let at = Location::caller();
        Stop::Failed { reason: reason.into(), at: Some(format!("{}:{}", at.file(), at.line())) }
    }
}

/// Where an answer was needed, an error is a failure.
impl From<Error> for Stop {
    #[track_caller]
    fn from(error: Error) -> Stop {
        Stop::failed(format!("unexpected error: {}", told(&error)))
    }
}

impl From<larder_model::Error> for Stop {
    #[track_caller]
    fn from(error: larder_model::Error) -> Stop {
        Error::from(error).into()
    }
}

/// An error in one line.
fn told(error: &Error) -> String {
    let mut text = format!("{}: {}", error.kind.name(), error.message);
    for cause in &error.causes {
        text.push_str(&format!("; caused by: {cause}"));
    }
    text
}

/// Stops the case unless the condition holds.
macro_rules! ensure {
    ($condition:expr) => {
        ensure!($condition, "it does not hold that {}", stringify!($condition))
    };
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err($crate::conformance::check::Stop::failed(format!($($reason)+)));
        }
    };
}

/// Stops the case unless both are equal. What stands behind them says of what.
macro_rules! ensure_eq {
    ($found:expr, $expected:expr) => {
        ensure_eq!($found, $expected, "{}", stringify!($found))
    };
    ($found:expr, $expected:expr, $($what:tt)+) => {
        match (&$found, &$expected) {
            (found, expected) => ensure!(
                *found == *expected,
                "{}: expected {}, found {}",
                format_args!($($what)+),
                $crate::conformance::check::shown(expected),
                $crate::conformance::check::shown(found)
            ),
        }
    };
}

pub(super) use {ensure, ensure_eq};

/// A value for a report: a megabyte in it is nobody's help.
pub(super) fn shown(value: &(impl Debug + ?Sized)) -> String {
    const CHARS_MAX: usize = 2000;
    let text = format!("{value:?}");
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

/// The error of a call that must be refused with this kind.
#[track_caller]
pub(super) fn refused<T: Debug>(result: Result<T, impl Into<Error>>, kind: ErrorKind) -> Checked<Error> {
    match result.map_err(Into::into) {
        Err(error) if error.is(kind) => Ok(error),
        Err(error) => Err(Stop::failed(format!("expected {}, found {}", kind.name(), told(&error)))),
        Ok(value) => Err(Stop::failed(format!("expected {}, found {}", kind.name(), shown(&value)))),
    }
}

/// An entity's body.
#[track_caller]
pub(super) fn members(body: impl AsRef<[u8]>) -> Checked<Value> {
    let body = body.as_ref();
    match json::parse_object(body) {
        Ok(members) => Ok(Value::Object(members)),
        Err(error) => {
            let text = String::from_utf8_lossy(body);
            Err(Stop::failed(format!("a body that is no JSON object: {error} in {}", shown(text.as_ref()))))
        }
    }
}

/// Both are the same JSON, by the exact value of each number.
#[track_caller]
pub(super) fn same(what: &str, found: &Value, expected: &Value) -> Checked {
    if json::equal(found, expected) {
        return Ok(());
    }
    // One member says it shorter than two whole entities.
    let names = [expected, found].into_iter().filter_map(Value::as_object).flat_map(Map::keys);
    let differs = |name: &&String| match (found.get(*name), expected.get(*name)) {
        (Some(found), Some(expected)) => !json::equal(found, expected),
        _ => true,
    };
    let name = names.into_iter().find(differs).map_or("", String::as_str);
    let shown = |value: &Value| value.get(name).map_or("nothing".into(), |value| shown(&value.to_string()));
    Err(Stop::failed(format!(
        "{what}: member {}: expected {}, found {}",
        Value::from(name),
        shown(expected),
        shown(found)
    )))
}
