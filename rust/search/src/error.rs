//! What a tree refuses.

use sensorium_core::error::Error as Argument;
use std::fmt;

/// What a tree refuses; it is then as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An argument is wrong.
    Argument(Argument),
    /// More memory would be needed than the tree may have, or than there is.
    Memory(String),
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::Memory(words) => f.write_str(words),
        }
    }
}

impl std::error::Error for Error {}

impl From<Argument> for Error {
    fn from(error: Argument) -> Self {
        Self::Argument(error)
    }
}

/// `arg` and the rest of a sentence about it.
pub(crate) fn value(arg: &'static str, what: impl Into<String>) -> Error {
    Error::Argument(Argument::Value { arg, what: what.into() })
}
