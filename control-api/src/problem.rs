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

/// Adds what a later reader found to what earlier ones did; of two problems at one place, the later only follows from
/// the earlier and is left out.
pub fn add_later(problems: &mut Vec<Problem>, later: impl IntoIterator<Item = Problem>) {
    let known = problems.len();
    for problem in later {
        let follows = problems[..known].iter().any(|earlier| !earlier.path.is_empty() && earlier.path == problem.path);
        if !follows {
            problems.push(problem);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_a_problem_is_not_said() {
        let mut problems = vec![Problem::new("a.b", "first"), Problem::new("", "of the whole")];
        let later = ["a.b", "a.b.c", ""].map(|path| Problem::new(path, "later"));
        add_later(&mut problems, later);
        let paths: Vec<_> = problems.iter().map(|p| &*p.path).collect();
        assert_eq!(paths, ["a.b", "", "a.b.c", ""]);
    }
}
