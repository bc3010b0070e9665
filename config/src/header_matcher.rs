//! Tests of headers, query parameters and cookies (`envoy.config.route.v3`).

use crate::{Context, header_value::HeaderKey, string_matcher::StringMatcher};
use weft_control_api::envoy::{config::route::v3 as pb, r#type::matcher::v3 as matcher};

/// A test of one header. Of several values one must pass.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    pub key: HeaderKey,
    pub test: HeaderTest,
    pub invert: bool,
    pub treat_missing_as_empty: bool,
}

#[derive(Clone, Debug)]
pub enum HeaderTest {
    Present(bool),
    Text(StringMatcher),
    /// From the first, below the second.
    Range(i64, i64),
}

impl HeaderMatcher {
    pub fn from_proto(p: pb::HeaderMatcher, cx: &mut Context) -> Option<Self> {
        use matcher::string_matcher::MatchPattern;
        use pb::header_matcher::HeaderMatchSpecifier as Specifier;
        let pb::HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } = p;
        let plain = |field, pattern, cx: &mut Context| {
            let p = matcher::StringMatcher { ignore_case: false, match_pattern: Some(pattern) };
            cx.field(field, |cx| StringMatcher::from_proto(p, cx)).map(HeaderTest::Text)
        };
        let test = match header_match_specifier {
            None => Some(HeaderTest::Present(true)),
            Some(Specifier::PresentMatch(present)) => Some(HeaderTest::Present(present)),
            Some(Specifier::RangeMatch(range)) => Some(HeaderTest::Range(range.start, range.end)),
            Some(Specifier::StringMatch(p)) => {
                cx.field("string_match", |cx| StringMatcher::from_proto(p, cx)).map(HeaderTest::Text)
            }
            Some(Specifier::ExactMatch(text)) => plain("exact_match", MatchPattern::Exact(text), cx),
            Some(Specifier::PrefixMatch(text)) => plain("prefix_match", MatchPattern::Prefix(text), cx),
            Some(Specifier::SuffixMatch(text)) => plain("suffix_match", MatchPattern::Suffix(text), cx),
            Some(Specifier::ContainsMatch(text)) => plain("contains_match", MatchPattern::Contains(text), cx),
            Some(Specifier::SafeRegexMatch(regex)) => plain("safe_regex_match", MatchPattern::SafeRegex(regex), cx),
        };
        Some(Self {
            key: HeaderKey::read("name", &name, cx)?,
            test: test?,
            invert: invert_match,
            treat_missing_as_empty: treat_missing_header_as_empty,
        })
    }

    /// Tests the header's values; none where it is not there.
    pub fn matches<'v>(&self, values: impl IntoIterator<Item = &'v [u8]>) -> bool {
        let mut values = values.into_iter().peekable();
        let is_there = values.peek().is_some();
        let test = |value: &[u8]| match &self.test {
            HeaderTest::Text(matcher) => matcher.matches(value),
            HeaderTest::Range(start, end) => std::str::from_utf8(value)
                .is_ok_and(|text| text.trim().parse::<i64>().is_ok_and(|n| (*start..*end).contains(&n))),
            HeaderTest::Present(_) => true,
        };
        let passes = match &self.test {
            // As in Envoy, what is missing and counts as empty is there.
            HeaderTest::Present(present) => (is_there || self.treat_missing_as_empty) == *present,
            _ if is_there => values.any(test),
            _ if self.treat_missing_as_empty => test(b""),
            _ => return false,
        };
        passes != self.invert
    }
}

/// A test of one query parameter: its first value, as it was sent.
#[derive(Clone, Debug)]
pub struct QueryParameterMatcher {
    pub name: String,
    /// `None`: it must only be there (or, with `present` false, not be there).
    pub text: Option<StringMatcher>,
    pub present: bool,
}

impl QueryParameterMatcher {
    pub fn from_proto(p: pb::QueryParameterMatcher, cx: &mut Context) -> Option<Self> {
        use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
        let pb::QueryParameterMatcher { name, query_parameter_match_specifier } = p;
        let (text, present) = match query_parameter_match_specifier {
            None => (None, true),
            Some(Specifier::PresentMatch(present)) => (None, present),
            Some(Specifier::StringMatch(p)) => {
                (Some(cx.field("string_match", |cx| StringMatcher::from_proto(p, cx))?), true)
            }
        };
        Some(Self { name, text, present })
    }

    /// Tests the parameter's value; `None` where it is not there.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match &self.text {
            Some(text) => value.is_some_and(|value| text.matches(value)),
            None => value.is_some() == self.present,
        }
    }
}

/// A test of one cookie.
#[derive(Clone, Debug)]
pub struct CookieMatcher {
    pub name: String,
    pub text: StringMatcher,
    pub invert: bool,
}

impl CookieMatcher {
    pub fn from_proto(p: pb::CookieMatcher, cx: &mut Context) -> Option<Self> {
        let pb::CookieMatcher { name, string_match, invert_match } = p;
        let text = cx.required("string_match", string_match)?;
        Some(Self {
            name,
            text: cx.field("string_match", |cx| StringMatcher::from_proto(text, cx))?,
            invert: invert_match,
        })
    }

    /// Tests the cookie's value; a cookie that is not there passes only an inverted test.
    pub fn matches(&self, value: Option<&[u8]>) -> bool {
        value.is_some_and(|value| self.text.matches(value)) != self.invert
    }
}
