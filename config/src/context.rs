//! The reader's place in a configuration: where it is, what it found wrong, what it left aside.
//!
//! Every `from_proto` in this crate takes a `&mut Context`. It reports each problem with its field path and goes on,
//! so that a user sees all of them at once. A `from_proto` that reported a problem may return any value: the caller
//! of the whole asks [`Context::finish`] and throws the value away if there was one.

use std::{fmt::Write as _, time::Duration};
use weft_control_api::{Problem, add_later};

/// Collects problems and ignored fields while a message is read.
#[derive(Debug, Default)]
pub struct Context {
    path: String,
    problems: Vec<Problem>,
    /// How many of the problems were found before this reader began.
    earlier: usize,
    ignored: Vec<String>,
}

impl Context {
    /// A context at the root of a message.
    pub fn new() -> Self {
        Self::default()
    }

    /// A context whose paths start with `root`.
    pub fn at(root: impl Into<String>) -> Self {
        Self { path: root.into(), ..Self::default() }
    }

    /// A context at the root of a message in which problems were found already; what follows from them is left out.
    pub fn with_problems(problems: Vec<Problem>) -> Self {
        Self { earlier: problems.len(), problems, ..Self::default() }
    }

    /// Runs `read` one field deeper; an empty name stays where it is.
    pub fn field<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        if name.is_empty() {
            return read(self);
        }
        self.enter(
            |path| {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            },
            read,
        )
    }

    /// Runs `read` at element `index` of the repeated field `name`.
    pub fn element<T>(&mut self, name: &str, index: usize, read: impl FnOnce(&mut Self) -> T) -> T {
        self.field(name, |cx| {
            cx.enter(
                |path| {
                    let _ = write!(path, "[{index}]");
                },
                read,
            )
        })
    }

    /// Runs `read` at `key` of the map field `name`.
    pub fn entry<T>(&mut self, name: &str, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.field(name, |cx| {
            cx.enter(
                |path| {
                    let _ = write!(path, "[{key:?}]");
                },
                read,
            )
        })
    }

    /// Reads every element of the repeated field `name`; elements for which `read` gives `None` are left out.
    pub fn elements<P, T>(
        &mut self,
        name: &str,
        items: Vec<P>,
        mut read: impl FnMut(&mut Self, P) -> Option<T>,
    ) -> Vec<T> {
        let mut read: Vec<T> =
            items.into_iter().enumerate().filter_map(|(i, item)| self.element(name, i, |cx| read(cx, item))).collect();
        // It was made in the place of the messages, which are larger; what is read is often kept.
        read.shrink_to_fit();
        read
    }

    fn enter<T>(&mut self, push: impl FnOnce(&mut String), read: impl FnOnce(&mut Self) -> T) -> T {
        let len = self.path.len();
        push(&mut self.path);
        let value = read(self);
        self.path.truncate(len);
        value
    }

    /// The path of the place that is being read.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Reports a problem with the message at the current place.
    pub fn problem(&mut self, message: impl Into<String>) {
        self.problems.push(Problem::new(self.path.clone(), message));
    }

    /// Reports a problem with field `name` of the current message.
    pub fn problem_at(&mut self, name: &str, message: impl Into<String>) {
        self.field(name, |cx| cx.problem(message));
    }

    /// Takes over problems that another reader found below the current place; their paths are relative to it.
    pub fn problems_below(&mut self, problems: impl IntoIterator<Item = Problem>) {
        for mut problem in problems {
            problem.path = match (self.path.is_empty(), problem.path.is_empty()) {
                (true, _) => problem.path,
                (false, true) => self.path.clone(),
                (false, false) => format!("{}.{}", self.path, problem.path),
            };
            self.problems.push(problem);
        }
    }

    /// Refuses field `name` if it is set, because Weft does not implement it.
    pub fn unsupported_if(&mut self, name: &str, is_set: bool) {
        if is_set {
            self.problem_at(name, "is not supported");
        }
    }

    /// Records that the cosmetic field `name`, if set, has no effect. Such fields are counted and listed by the admin API.
    pub fn ignored_if(&mut self, name: &str, is_set: bool) {
        if is_set {
            self.field(name, |cx| cx.ignored.push(cx.path.clone()));
        }
    }

    /// The value of field `name`, which must be there.
    pub fn required<T>(&mut self, name: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.problem_at(name, "is required");
        }
        value
    }

    /// A duration that must not be negative; protobuf's two fields must be in their ranges.
    pub fn duration(&mut self, name: &str, value: Option<weft_control_api::Duration>) -> Option<Duration> {
        let value = value?;
        let read = u64::try_from(value.seconds)
            .ok()
            .filter(|s| *s <= 315_576_000_000)
            .zip(u32::try_from(value.nanos).ok().filter(|n| *n < 1_000_000_000));
        if read.is_none() {
            self.problem_at(
                name,
                format!("found {}.{:09} s, which is out of range: 0 s to 315576000000 s", value.seconds, value.nanos),
            );
        }
        read.map(|(seconds, nanos)| Duration::new(seconds, nanos))
    }

    /// An enum value that the schema knows; `E` is prost's enum.
    pub fn enumeration<E: TryFrom<i32> + Default>(&mut self, name: &str, value: i32) -> E {
        E::try_from(value).unwrap_or_else(|_| {
            self.problem_at(name, format!("found {value}, which is no value of this enum"));
            E::default()
        })
    }

    /// The message of type `M` in `any`, which is field `name`; another type, or bytes that are no `M`, are problems.
    pub fn unpack<M: prost::Message + prost::Name + Default>(
        &mut self,
        name: &str,
        any: &weft_control_api::Any,
    ) -> Option<M> {
        let found = any.type_url.rsplit('/').next().unwrap_or_default();
        if found != M::full_name() {
            self.problem_at(name, format!("found {found:?}, allowed is {:?}", M::full_name()));
            return None;
        }
        M::decode(&*any.value).map_err(|e| self.problem_at(name, format!("found bytes that are no {found}: {e}"))).ok()
    }

    /// A regular expression with RE2's meaning: it must match the whole of its input.
    pub fn regex(&mut self, name: &str, pattern: &str) -> Option<regex::bytes::Regex> {
        crate::re2::compile(pattern, true)
            .map_err(|why| {
                self.problem_at(name, format!("found {pattern:?}, which is no valid regular expression: {why}"));
            })
            .ok()
    }

    /// True once a problem was reported.
    pub fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// The value, with the paths of its ignored fields, if it is without problems; else all problems.
    pub fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<String>), Vec<Problem>> {
        match value {
            Some(value) if self.problems.is_empty() => Ok((value, self.ignored)),
            _ => {
                let mut problems = self.problems;
                let own = problems.split_off(self.earlier);
                add_later(&mut problems, own);
                Err(problems)
            }
        }
    }
}
