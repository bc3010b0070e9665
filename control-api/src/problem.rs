//! What is wrong with a configuration, and where: the one error type of everything that reads configuration.
//!
//! Readers collect all problems instead of stopping at the first one.

use std::fmt;

/// A place in the text that a configuration was read from; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field path with original protobuf names: `static_resources.listeners[0].address`. Empty: the whole message.
    pub path: String,
    /// What was found and what is allowed, in one sentence without the path.
    pub message: String,
    /// Where in the text, if it came from text.
    pub position: Option<Position>,
}

impl Problem {
    /// A problem at `path`, not yet tied to a place in a text.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), position: None }
    }

    /// A problem at a known place of a text.
    pub fn at(position: Position, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), position: Some(position) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}: ")?;
        }
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

impl std::error::Error for Problem {}
