//! The one clock: times that writes are stamped with and files are named by.

use std::time::SystemTime;

/// Now, in RFC 3339: UTC, microseconds, `Z`.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
}
