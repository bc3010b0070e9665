//! Replacing what a regular expression finds (`envoy.type.matcher.v3.RegexMatchAndSubstitute`).

use crate::Context;
use regex::bytes::{Captures, Regex, Replacer};
use weft_control_api::envoy::r#type::matcher::v3 as pb;

/// Every match of the pattern is replaced. The substitution has RE2's form: `\1` is the first group, `\\` a backslash;
/// a group that the pattern does not have is empty.
#[derive(Clone, Debug)]
pub struct RegexRewrite {
    pattern: Regex,
    parts: Vec<Part>,
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
        let parts = parse(&substitution)
            .map_err(|why| cx.problem_at("substitution", format!("found {substitution:?}: {why}")))
            .ok()?;
        Some(Self { pattern, parts })
    }

    /// The text with every match replaced.
    pub fn apply(&self, text: impl AsRef<[u8]>) -> Vec<u8> {
        self.pattern.replace_all(text.as_ref(), Substitution(&self.parts)).into_owned()
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

fn parse(text: &str) -> Result<Vec<Part>, String> {
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
                let n = digit as usize - '0' as usize;
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Group(n));
            }
            _ => return Err("a backslash is followed by a digit or a backslash".into()),
        }
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
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
        assert_eq!(rewrite("a", r"<\1>").unwrap().apply(b"\xffa"), b"\xff<>");
        assert!(rewrite("(", "").is_err());
        assert!(rewrite("a", "\\").is_err());
    }
}
