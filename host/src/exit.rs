//! Exit codes: what a script learns without reading.

use larder_model::ErrorKind;

use crate::error::{Error, Kind};

/// The exit code of an error; success is 0.
pub fn code(error: &Error) -> u8 {
    match error.kind {
        // The answer is no.
        Kind::Differs
        | Kind::Contract(
            ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::VersionConflict | ErrorKind::Rejected,
        ) => 1,
        Kind::Usage | Kind::Config | Kind::Contract(ErrorKind::InvalidArgument | ErrorKind::Unsupported) => 2,
        Kind::PluginRefused | Kind::Trap | Kind::Contract(ErrorKind::Denied) => 3,
        Kind::Contract(ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled) => 4,
        Kind::Contract(ErrorKind::Corrupt | ErrorKind::LimitExceeded | ErrorKind::Internal | ErrorKind::Busy) => 5,
        // As a shell has it of what SIGINT ended.
        Kind::Interrupted => 130,
    }
}
