//! Envoy's substitution formats: a text or JSON with `%OPERATOR(argument):length%` in it, compiled once.
//!
//! Used by access logs, header rules and local replies. An operator that is not known is refused by its name.

mod json;
mod operator;
mod server_name;
mod time;
mod tls;

pub use operator::Operator;
pub use time::{MONTHS, civil};

use super::StreamInfo;
use crate::http::{RequestHead, ResponseHead};
use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Map, Value};
use weft_config::{
    Context,
    substitution_format::{FormatSource, SubstitutionFormatString},
};

/// What operators are evaluated over.
pub struct Facts<'a> {
    pub info: &'a StreamInfo,
    pub request: Option<&'a RequestHead>,
    /// The request as it came, where the one above was rewritten for the upstream.
    pub response: Option<&'a ResponseHead>,
    pub response_trailers: Option<&'a HeaderMap>,
    pub local_reply_body: Option<&'a Bytes>,
    /// `%ACCESS_LOG_TYPE%`
    pub log_type: &'static str,
}

impl<'a> Facts<'a> {
    /// Just the stream's own facts.
    pub fn new(info: &'a StreamInfo) -> Self {
        Self {
            info,
            request: None,
            response: None,
            response_trailers: None,
            local_reply_body: None,
            log_type: "NotSet",
        }
    }
}

/// A compiled format.
#[derive(Debug)]
pub struct Format {
    root: Root,
    omit_empty: bool,
}

#[derive(Debug)]
enum Root {
    Text(Template),
    Json(Node),
}

/// Text with operators in it.
#[derive(Debug)]
struct Template(Vec<Part>);

#[derive(Debug)]
enum Part {
    Text(Box<str>),
    Operator(Operator),
}

#[derive(Debug)]
enum Node {
    Value(Value),
    Template(Template),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Format {
    /// Compiles a configured format.
    pub fn compile(config: &SubstitutionFormatString, cx: &mut Context) -> Option<Self> {
        let root = match &config.format {
            FormatSource::Text(text) => Root::Text(cx.field("text_format_source", |cx| Template::compile(text, cx))?),
            FormatSource::Json(object) => {
                let mut object = object.clone();
                if config.sort_properties {
                    object.sort_keys();
                }
                Root::Json(cx.field("json_format", |cx| Node::compile(&Value::Object(object), cx))?)
            }
        };
        Some(Self { root, omit_empty: config.omit_empty_values })
    }

    /// Compiles a header's value: what is not there becomes nothing.
    pub fn compile_text(text: &str, cx: &mut Context) -> Option<Self> {
        Some(Self { root: Root::Text(Template::compile(text, cx)?), omit_empty: true })
    }

    /// Compiles a text in which what is not there becomes `-`.
    pub fn compile_log_text(text: &str, cx: &mut Context) -> Option<Self> {
        Some(Self { root: Root::Text(Template::compile(text, cx)?), omit_empty: false })
    }

    /// The text; JSON ends with a newline, as a log line does.
    pub fn text(&self, facts: &Facts<'_>) -> String {
        match &self.root {
            Root::Text(template) => {
                let mut out = String::with_capacity(128);
                template.write(facts, self.omit_empty, &mut out);
                out
            }
            Root::Json(node) => {
                let value = node.value(facts, self.omit_empty).unwrap_or(Value::Object(Map::new()));
                let mut out = json::print(&value);
                out.push('\n');
                out
            }
        }
    }

    /// True if it is one operator and nothing else.
    pub fn is_operator(&self) -> bool {
        matches!(&self.root, Root::Text(Template(parts)) if matches!(&parts[..], [Part::Operator(_)]))
    }

    /// The text as a header's value.
    pub fn header_value(&self, facts: &Facts<'_>) -> String {
        match &self.root {
            // Most values have no operator.
            Root::Text(Template(parts)) if matches!(&parts[..], [Part::Text(_)]) => match &parts[0] {
                Part::Text(text) => text.to_string(),
                Part::Operator(_) => String::new(),
            },
            _ => self.text(facts),
        }
    }

    /// The JSON, if it is one.
    pub fn json(&self, facts: &Facts<'_>) -> Option<Value> {
        match &self.root {
            Root::Json(node) => node.value(facts, self.omit_empty),
            Root::Text(_) => None,
        }
    }

    /// True if an operator needs the response's headers after they were sent.
    pub fn reads_response(&self) -> bool {
        match &self.root {
            Root::Text(template) => template.reads_response(),
            Root::Json(node) => node.reads_response(),
        }
    }
}

impl Template {
    fn compile(text: &str, cx: &mut Context) -> Option<Self> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let Some(end) = operator::end(rest) else {
                cx.problem(format!(
                    "found {text:?}: a % begins an operator that does not end with %; a plain % is written %%"
                ));
                return None;
            };
            match Operator::parse(&rest[..end]) {
                Ok(operator) => {
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain).into()));
                    }
                    parts.push(Part::Operator(operator));
                }
                Err(why) => {
                    cx.problem(format!("found %{}%: {why}", &rest[..end]));
                    return None;
                }
            }
            rest = &rest[end + 1..];
        }
        plain.push_str(rest);
        if !plain.is_empty() || parts.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Some(Self(parts))
    }

    fn write(&self, facts: &Facts<'_>, omit_empty: bool, out: &mut String) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Operator(operator) => {
                    if !operator.write(facts, out) && !omit_empty {
                        out.push('-');
                    }
                }
            }
        }
    }

    fn reads_response(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Operator(operator) if operator.reads_response()))
    }
}

impl Node {
    fn compile(value: &Value, cx: &mut Context) -> Option<Self> {
        Some(match value {
            Value::String(text) => Self::Template(Template::compile(text, cx)?),
            Value::Array(items) => Self::List(items.iter().map(|item| Self::compile(item, cx)).collect::<Option<_>>()?),
            Value::Object(fields) => Self::Map(
                fields
                    .iter()
                    .map(|(key, value)| Some((key.clone(), cx.field(key, |cx| Self::compile(value, cx))?)))
                    .collect::<Option<_>>()?,
            ),
            other => Self::Value(other.clone()),
        })
    }

    /// `None`: there is nothing, and nothing is what is wanted.
    fn value(&self, facts: &Facts<'_>, omit_empty: bool) -> Option<Value> {
        Some(match self {
            Self::Value(value) => value.clone(),
            // A lone operator keeps its type.
            Self::Template(template) => match &template.0[..] {
                [Part::Operator(operator)] => match operator.value(facts) {
                    Value::Null if omit_empty => return None,
                    value => value,
                },
                _ => {
                    let mut out = String::new();
                    template.write(facts, omit_empty, &mut out);
                    Value::String(out)
                }
            },
            Self::List(items) => Value::Array(items.iter().filter_map(|item| item.value(facts, omit_empty)).collect()),
            Self::Map(fields) => {
                let fields: Map<_, _> =
                    fields.iter().filter_map(|(k, v)| Some((k.clone(), v.value(facts, omit_empty)?))).collect();
                if fields.is_empty() && omit_empty {
                    return None;
                }
                Value::Object(fields)
            }
        })
    }

    fn reads_response(&self) -> bool {
        match self {
            Self::Value(_) => false,
            Self::Template(template) => template.reads_response(),
            Self::List(items) => items.iter().any(Self::reads_response),
            Self::Map(fields) => fields.iter().any(|(_, node)| node.reads_response()),
        }
    }
}
