//! Opaque metadata of listeners, routes, clusters and endpoints, and tests of it.

use crate::{Context, string_matcher::StringMatcher};
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;
use weft_control_api::{
    Struct,
    envoy::{config::core::v3 as core, r#type::matcher::v3 as pb},
};

/// `filter_metadata`: a JSON object for each name. Typed metadata is kept by nobody and listed as ignored.
pub type Metadata = BTreeMap<String, Map<String, Value>>;

/// Reads the metadata in field `name`.
pub fn from_proto(name: &str, p: Option<core::Metadata>, cx: &mut Context) -> Metadata {
    let Some(core::Metadata { filter_metadata, typed_filter_metadata }) = p else { return Metadata::new() };
    cx.field(name, |cx| cx.ignored_if("typed_filter_metadata", !typed_filter_metadata.is_empty()));
    filter_metadata.into_iter().map(|(name, fields)| (name, object(fields))).collect()
}

/// A protobuf `Struct` as JSON.
pub fn object(fields: Struct) -> Map<String, Value> {
    fields.fields.into_iter().map(|(key, v)| (key, value(v))).collect()
}

/// A protobuf `Value` as JSON.
pub fn value(value: weft_control_api::Value) -> Value {
    use weft_control_api::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(b),
        Some(Kind::StringValue(s)) => Value::String(s),
        Some(Kind::NumberValue(n)) => number(n),
        Some(Kind::StructValue(fields)) => Value::Object(object(fields)),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(self::value).collect()),
    }
}

/// JSON as a protobuf `Struct`.
pub fn fields(object: Map<String, Value>) -> Struct {
    Struct { fields: object.into_iter().map(|(key, v)| (key, proto_value(v))).collect() }
}

fn proto_value(value: Value) -> weft_control_api::Value {
    use weft_control_api::{prost_types::ListValue, value::Kind};
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(b),
        Value::String(s) => Kind::StringValue(s),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::Object(object) => Kind::StructValue(fields(object)),
        Value::Array(list) => Kind::ListValue(ListValue { values: list.into_iter().map(proto_value).collect() }),
    };
    weft_control_api::Value { kind: Some(kind) }
}

/// A number as JSON, floating point as all of protobuf's are. What JSON has no number for is its name, as protobuf's
/// mapping has it.
pub fn number(n: f64) -> Value {
    let name = || match n {
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ => "NaN",
    };
    Number::from_f64(n).map_or_else(|| name().into(), Value::Number)
}

/// Merges `from` into `into`: what both have as objects is merged in turn, lists are joined, all else is replaced.
pub fn merge(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => old.extend_from_slice(new),
            (Some(old), new) => old.clone_from(new),
            (None, new) => {
                into.insert(key.clone(), new.clone());
            }
        }
    }
    into.sort_keys();
}

/// A test of one JSON value.
#[derive(Clone, Debug)]
pub enum ValueMatcher {
    Null,
    DoubleRange {
        start: f64,
        end: f64,
    },
    DoubleExact(f64),
    String(StringMatcher),
    Bool(bool),
    Present(bool),
    /// One element of a list passes.
    OneOf(Box<ValueMatcher>),
    Or(Vec<ValueMatcher>),
}

impl ValueMatcher {
    pub fn from_proto(p: pb::ValueMatcher, cx: &mut Context) -> Option<Self> {
        use pb::{double_matcher::MatchPattern as Double, list_matcher, value_matcher::MatchPattern};
        Some(match cx.required("match_pattern", p.match_pattern)? {
            MatchPattern::NullMatch(_) => Self::Null,
            MatchPattern::DoubleMatch(p) => match cx.required("double_match", p.match_pattern)? {
                Double::Range(range) => Self::DoubleRange { start: range.start, end: range.end },
                Double::Exact(value) => Self::DoubleExact(value),
            },
            MatchPattern::StringMatch(p) => {
                Self::String(cx.field("string_match", |cx| StringMatcher::from_proto(p, cx))?)
            }
            MatchPattern::BoolMatch(value) => Self::Bool(value),
            MatchPattern::PresentMatch(value) => Self::Present(value),
            MatchPattern::ListMatch(p) => {
                let Some(list_matcher::MatchPattern::OneOf(p)) = p.match_pattern else {
                    cx.problem_at("list_match", "one_of is required");
                    return None;
                };
                Self::OneOf(Box::new(cx.field("list_match.one_of", |cx| Self::from_proto(*p, cx))?))
            }
            MatchPattern::OrMatch(p) => Self::Or(cx.field("or_match", |cx| {
                cx.elements("value_matchers", p.value_matchers, |cx, p| Self::from_proto(p, cx))
            })),
        })
    }

    /// Tests a value; `None` stands for one that is not there.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            (Self::Null, value) => matches!(value, Some(Value::Null)),
            (Self::DoubleRange { start, end }, Some(value)) => value.as_f64().is_some_and(|v| *start <= v && v < *end),
            (Self::DoubleExact(want), Some(value)) => value.as_f64() == Some(*want),
            (Self::String(matcher), Some(Value::String(text))) => matcher.matches(text),
            (Self::Bool(want), Some(Value::Bool(value))) => want == value,
            (Self::Present(want), value) => *want && value.is_some_and(|v| !v.is_null()),
            (Self::OneOf(matcher), Some(Value::Array(list))) => list.iter().any(|v| matcher.matches(Some(v))),
            (Self::Or(matchers), value) => matchers.iter().any(|m| m.matches(value)),
            _ => false,
        }
    }
}

/// A test of a value at a path of the metadata.
#[derive(Clone, Debug)]
pub struct MetadataMatcher {
    pub filter: String,
    pub path: Vec<String>,
    pub value: ValueMatcher,
    pub invert: bool,
}

impl MetadataMatcher {
    pub fn from_proto(p: pb::MetadataMatcher, cx: &mut Context) -> Option<Self> {
        let pb::MetadataMatcher { filter, path, value, invert } = p;
        let value = cx.required("value", value)?;
        Some(Self {
            filter,
            path: cx.elements("path", path, |cx, p| {
                let pb::metadata_matcher::path_segment::Segment::Key(key) = cx.required("key", p.segment)?;
                Some(key)
            }),
            value: cx.field("value", |cx| ValueMatcher::from_proto(value, cx))?,
            invert,
        })
    }

    /// Tests what `namespace` finds of the metadata.
    pub fn matches<'a>(&self, namespace: impl FnOnce(&str) -> Option<&'a Map<String, Value>>) -> bool {
        let mut keys = self.path.iter();
        let first = keys.next().and_then(|key| namespace(&self.filter)?.get(key));
        let found = keys.fold(first, |value, key| value.and_then(|v| v.as_object()).and_then(|o| o.get(key)));
        self.value.matches(found) != self.invert
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_merged_by_kind() {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        let mut into = object(json!({"s": 1, "o": {"x": 1, "o": {"p": 1}}, "l": [1], "t": "s", "n": null, "a": []}));
        merge(
            &mut into,
            &object(json!({"s": 2, "o": {"a": 2, "o": {"q": 2}}, "l": [2], "t": 5, "n": {}, "a": {}, "b": 0})),
        );
        let all = json!({"a": {}, "b": 0, "l": [1, 2], "n": {}, "o": {"a": 2, "o": {"p": 1, "q": 2}, "x": 1}, "s": 2, "t": 5});
        assert_eq!(Value::Object(into).to_string(), all.to_string());
    }

    #[test]
    fn numbers_that_json_has_not() {
        assert_eq!(number(-2.0), json!(-2.0));
        assert_eq!(number(1e300), json!(1e300));
        assert_eq!(number(f64::NEG_INFINITY), json!("-Infinity"));
        assert_eq!(number(f64::NAN), json!("NaN"));
    }
}
