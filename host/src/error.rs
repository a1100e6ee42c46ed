//! The host's one error. What kind it is decides the exit code ([`crate::exit`]); a hint says what to do about it.

use std::fmt;

use larder_model::{ErrorKind, Retry};

/// Where an error belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of the contract's errors, from a strategy or from the host on its behalf.
    Contract(ErrorKind),
    /// The command line.
    Usage,
    /// The configuration.
    Config,
    /// A plugin that is missing, no component, of another contract, or wants what it was not granted.
    PluginRefused,
    /// A plugin that trapped or overran its memory, so that nothing it was doing can be trusted, or one that did so too often.
    Trap,
    /// The answer is no: data differs, entities break rules.
    Differs,
    /// Whoever started it asked it to end.
    Interrupted,
}

impl Kind {
    /// The kind's name, as `--format json` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Contract(kind) => kind.name(),
            Kind::Usage => "usage",
            Kind::Config => "configuration",
            Kind::PluginRefused => "plugin-refused",
            Kind::Trap => "trap",
            Kind::Differs => "differs",
            Kind::Interrupted => "interrupted",
        }
    }
}

/// What went wrong, for a caller and for a person.
#[derive(Debug, Clone)]
pub struct Error {
    /// Where it belongs.
    pub kind: Kind,
    /// Whether the same call may be sent again.
    pub retry: Retry,
    /// Lower case, no full stop, no secrets.
    pub message: String,
    /// What caused it, outermost first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The write of an atomic `apply` that failed.
    pub write_index: Option<u32>,
    /// The stored version, with a version conflict.
    pub current_version: Option<u64>,
}

/// The host's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            kind,
            retry: Retry::Never,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            write_index: None,
            current_version: None,
        }
    }

    /// A mistake on the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Error::new(Kind::Usage, message)
    }

    /// A mistake in the configuration.
    pub fn config(message: impl Into<String>) -> Self {
        Error::new(Kind::Config, message)
    }

    /// A plugin that is not used.
    pub fn refused(message: impl Into<String>) -> Self {
        Error::new(Kind::PluginRefused, message)
    }

    /// A contract error that the host found itself.
    pub fn contract(kind: ErrorKind, message: impl Into<String>) -> Self {
        larder_model::Error::new(kind, message).into()
    }

    /// The same error with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error as the cause of a wider one.
    pub fn context(mut self, message: impl Into<String>) -> Self {
        let inner = std::mem::replace(&mut self.message, message.into());
        self.causes.insert(0, inner);
        self
    }

    /// The same error with a cause below it.
    pub fn caused_by(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Whether it is this contract error.
    pub fn is(&self, kind: ErrorKind) -> bool {
        self.kind == Kind::Contract(kind)
    }
}

impl From<larder_model::Error> for Error {
    fn from(error: larder_model::Error) -> Self {
        Error {
            retry: error.retry,
            write_index: error.write_index,
            current_version: error.current_version,
            ..Error::new(Kind::Contract(error.kind), error.message)
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
