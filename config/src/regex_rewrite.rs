//! Replacing what a regular expression finds (`envoy.type.matcher.v3.RegexMatchAndSubstitute`).

use crate::Context;
use regex::bytes::{Captures, Regex, Replacer};
use weft_control_api::envoy::r#type::matcher::v3 as pb;

/// Every match of the pattern is replaced. The substitution has RE2's form: `\1` is the first group, `\\` a backslash. As
/// with RE2, one that names a group which the pattern does not have replaces nothing, and one ends where a backslash
/// stands before anything else.
#[derive(Clone, Debug)]
pub struct RegexRewrite {
    pattern: Regex,
    parts: Vec<Part>,
    /// The highest group that the substitution names, even behind its end.
    last_group: usize,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Group(usize),
}

impl RegexRewrite {
    pub fn from_proto(p: pb::RegexMatchAndSubstitute, cx: &mut Context) -> Option<Self> {
        let pb::RegexMatchAndSubstitute { pattern, substitution } = p;
        let pattern = cx.required("pattern", pattern)?;
        let pattern = crate::re2::compile(&pattern.regex, false)
            .map_err(|why| {
                cx.problem_at(
                    "pattern.regex",
                    format!("found {:?}, which is no valid regular expression: {why}", pattern.regex),
                );
            })
            .ok()?;
        Some(Self { pattern, parts: parse(&substitution), last_group: last_group(&substitution) })
    }

    /// The text with every match replaced.
    pub fn apply(&self, text: impl AsRef<[u8]>) -> Vec<u8> {
        let text = text.as_ref();
        if self.last_group >= self.pattern.captures_len() {
            return text.to_vec();
        }
        self.pattern.replace_all(text, Substitution(&self.parts)).into_owned()
    }
}

struct Substitution<'a>(&'a [Part]);

impl Replacer for Substitution<'_> {
    fn replace_append(&mut self, captures: &Captures<'_>, out: &mut Vec<u8>) {
        for part in self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Group(n) => out.extend_from_slice(captures.get(*n).map_or(b"", |group| group.as_bytes())),
            }
        }
    }
}

fn parse(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            Some('\\') => plain.push('\\'),
            Some(digit @ '0'..='9') => {
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Group(digit as usize - '0' as usize));
            }
            _ => break,
        }
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    parts
}

fn last_group(text: &str) -> usize {
    let mut last = 0;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\'
            && let Some(digit @ b'0'..=b'9') = bytes.next()
        {
            last = last.max(usize::from(digit - b'0'));
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(pattern: &str, substitution: &str) -> Result<RegexRewrite, Vec<crate::Problem>> {
        let mut cx = Context::new();
        let pattern = Some(pb::RegexMatcher { regex: pattern.into(), ..Default::default() });
        let p = pb::RegexMatchAndSubstitute { pattern, substitution: substitution.into() };
        let read = RegexRewrite::from_proto(p, &mut cx);
        cx.finish(read).map(|(rewrite, _)| rewrite)
    }

    #[test]
    fn groups_and_all_matches() {
        assert_eq!(
            rewrite("^/service/([^/]+)(/.*)$", r"\2/instance/\1").unwrap().apply("/service/foo/v1/api"),
            b"/v1/api/instance/foo"
        );
        assert_eq!(rewrite("one", "two").unwrap().apply("/xxx/one/yyy/one/zzz"), b"/xxx/two/yyy/two/zzz");
        assert_eq!(rewrite("a", r"\\$1").unwrap().apply("xax"), br"x\$1x");
        assert_eq!(rewrite("a|(b)", r"<\1>").unwrap().apply(b"\xffab"), b"\xff<><b>");
        assert!(rewrite("(", "").is_err());
    }

    #[test]
    fn substitutions_that_are_none() {
        assert_eq!(rewrite("a", r"<\1>").unwrap().apply("bab"), b"bab");
        assert_eq!(rewrite("a", r"x\qy\1").unwrap().apply("bab"), b"bab");
        assert_eq!(rewrite("a", r"x\qy").unwrap().apply("bab"), b"bxb");
        assert_eq!(rewrite("a", "\\").unwrap().apply("bab"), b"bb");
    }
}
