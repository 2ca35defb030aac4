//! The library's error type: what failed, on which object, with which errno.
//!
//! Owns the wording rule "step object: cause". It never prints and never decides an exit code
//! (that is `cli/`).

use std::borrow::Cow;
use std::io;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure a person can act on. `Display` is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration can't be carried out as written. `at` is the JSON path
    /// (`linux.resources.memory.limit`), `why` what was expected.
    #[error("config.json: {at}: {why}")]
    Config { at: Cow<'static, str>, why: String },
    /// This host can't do what the configuration asks for.
    #[error("{what} is not supported here: {why}")]
    Unsupported {
        what: Cow<'static, str>,
        why: String,
    },
    /// A system call made for `step` on `object` failed.
    #[error("{step} {object}: {source}")]
    Step {
        step: Cow<'static, str>,
        object: String,
        source: io::Error,
    },
    /// The program could not be executed. `code` is the shell's 126 or 127.
    #[error("{text}")]
    Exec { text: String, code: i32 },
    /// Wrong use, wrong state, or bad input from the command line: the text says it all.
    #[error("{0}")]
    Msg(String),
}

impl Error {
    /// A configuration error at a JSON path.
    pub fn config(at: impl Into<Cow<'static, str>>, why: impl Into<String>) -> Self {
        Error::Config {
            at: at.into(),
            why: why.into(),
        }
    }

    /// Something this host cannot do.
    pub fn unsupported(what: impl Into<Cow<'static, str>>, why: impl Into<String>) -> Self {
        Error::Unsupported {
            what: what.into(),
            why: why.into(),
        }
    }

    /// A failed step with the object it worked on.
    pub fn step(
        step: impl Into<Cow<'static, str>>,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Error::Step {
            step: step.into(),
            object: object.into(),
            source: source.into(),
        }
    }

    /// Any other message.
    pub fn msg(text: impl Into<String>) -> Self {
        Error::Msg(text.into())
    }

    /// The errno behind a failed step, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Step { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
