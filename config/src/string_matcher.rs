//! Matching text: equal, at its start or end, inside, or by a regular expression.
//!
//! Compiled when configuration is read; matching allocates nothing.

use crate::Context;
use regex::bytes::Regex;
use weft_control_api::{
    envoy::r#type::matcher::v3::{self as pb, string_matcher::MatchPattern},
    xds::r#type::matcher::v3 as xds,
};

/// A test of a text.
#[derive(Clone, Debug)]
pub struct StringMatcher {
    pattern: Pattern,
    ignore_case: bool,
}

#[derive(Clone, Debug)]
enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(Regex),
}

impl StringMatcher {
    /// Reads a matcher; `None` if a problem was reported.
    pub fn from_proto(pb: pb::StringMatcher, cx: &mut Context) -> Option<Self> {
        let pb::StringMatcher { ignore_case, match_pattern } = pb;
        // Lower case is what is compared without regard to case.
        let text = |text: String| if ignore_case { text.to_ascii_lowercase() } else { text };
        let pattern = match cx.required("match_pattern", match_pattern)? {
            MatchPattern::Exact(exact) => Pattern::Exact(text(exact)),
            MatchPattern::Prefix(prefix) => Pattern::Prefix(text(prefix)),
            MatchPattern::Suffix(suffix) => Pattern::Suffix(text(suffix)),
            MatchPattern::Contains(part) => Pattern::Contains(text(part)),
            MatchPattern::SafeRegex(regex) => {
                if ignore_case {
                    cx.problem_at("ignore_case", "has no effect on safe_regex and cannot be set with it");
                }
                Pattern::Regex(cx.field("safe_regex", |cx| regex_of(regex, cx))?)
            }
            MatchPattern::Custom(_) => {
                cx.problem_at("custom", "is not supported");
                return None;
            }
        };
        Some(Self { pattern, ignore_case })
    }

    /// Reads a matcher of `xds.type.matcher.v3`; `None` if a problem was reported.
    pub fn from_xds(p: xds::StringMatcher, cx: &mut Context) -> Option<Self> {
        use xds::string_matcher::MatchPattern as Xds;
        let xds::StringMatcher { ignore_case, match_pattern } = p;
        let match_pattern = match cx.required("match_pattern", match_pattern)? {
            Xds::Exact(text) => MatchPattern::Exact(text),
            Xds::Prefix(text) => MatchPattern::Prefix(text),
            Xds::Suffix(text) => MatchPattern::Suffix(text),
            Xds::Contains(text) => MatchPattern::Contains(text),
            Xds::SafeRegex(xds::RegexMatcher { regex, engine_type: _ }) => {
                MatchPattern::SafeRegex(pb::RegexMatcher { regex, engine_type: None })
            }
            Xds::Custom(p) => MatchPattern::Custom(p),
        };
        Self::from_proto(pb::StringMatcher { ignore_case, match_pattern: Some(match_pattern) }, cx)
    }

    /// The one text that passes, but for its case where that is ignored, if there is only one.
    pub fn exact(&self) -> Option<&str> {
        match &self.pattern {
            Pattern::Exact(exact) => Some(exact),
            _ => None,
        }
    }

    /// True if case makes no difference.
    pub fn ignores_case(&self) -> bool {
        self.ignore_case
    }

    /// The pattern as it was written, whatever its kind.
    pub fn pattern(&self) -> &str {
        match &self.pattern {
            Pattern::Exact(text) | Pattern::Prefix(text) | Pattern::Suffix(text) | Pattern::Contains(text) => text,
            Pattern::Regex(regex) => regex.as_str(),
        }
    }

    /// What all that pass begin with, if that is known; not empty.
    pub fn prefix(&self) -> Option<&str> {
        match &self.pattern {
            Pattern::Prefix(prefix) if !self.ignore_case && !prefix.is_empty() => Some(prefix),
            _ => None,
        }
    }

    /// True if `text` passes the test.
    pub fn matches(&self, text: impl AsRef<[u8]>) -> bool {
        let (text, ignore) = (text.as_ref(), self.ignore_case);
        let same = |a: &[u8], b: &[u8]| if ignore { a.eq_ignore_ascii_case(b) } else { a == b };
        match &self.pattern {
            Pattern::Exact(exact) => same(text, exact.as_bytes()),
            Pattern::Prefix(prefix) => text.get(..prefix.len()).is_some_and(|start| same(start, prefix.as_bytes())),
            Pattern::Suffix(suffix) => {
                text.len().checked_sub(suffix.len()).is_some_and(|at| same(&text[at..], suffix.as_bytes()))
            }
            Pattern::Contains(part) => {
                part.is_empty() || text.windows(part.len()).any(|window| same(window, part.as_bytes()))
            }
            Pattern::Regex(regex) => regex.is_match(text),
        }
    }
}

/// Reads a regular expression, which must match the whole text; `None` if a problem was reported.
pub fn regex_of(pb: pb::RegexMatcher, cx: &mut Context) -> Option<Regex> {
    let pb::RegexMatcher { engine_type, regex } = pb;
    if let Some(pb::regex_matcher::EngineType::GoogleRe2(pb::regex_matcher::GoogleRe2 { max_program_size })) =
        engine_type
    {
        cx.ignored_if("google_re2.max_program_size", max_program_size.is_some());
    }
    cx.regex("regex", &regex)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(pattern: MatchPattern, ignore_case: bool) -> StringMatcher {
        let pb = pb::StringMatcher { ignore_case, match_pattern: Some(pattern) };
        StringMatcher::from_proto(pb, &mut Context::new()).unwrap()
    }

    #[test]
    fn patterns() {
        let text = || "aB".to_owned();
        for (pattern, yes, no) in [
            (MatchPattern::Exact(text()), "aB", "aBc"),
            (MatchPattern::Prefix(text()), "aBc", "caB"),
            (MatchPattern::Suffix(text()), "caB", "aBc"),
            (MatchPattern::Contains(text()), "caBc", "ab"),
        ] {
            let exact = matcher(pattern.clone(), false);
            assert!(
                exact.matches(yes) && !exact.matches(no) && !exact.matches(yes.to_lowercase()) && !exact.matches("")
            );
            let loose = matcher(pattern, true);
            assert!(loose.matches(yes.to_uppercase()) && loose.matches(yes.to_lowercase()));
        }
        let regex = pb::RegexMatcher { regex: "a+".into(), ..Default::default() };
        let regex = matcher(MatchPattern::SafeRegex(regex), false);
        assert!(regex.matches("aa") && !regex.matches("aab"));
    }
}
