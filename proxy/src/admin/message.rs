//! A request to the admin API and its reply, apart from how they travel.

use http::{Method, StatusCode};
use regex::Regex;
use serde_json::Value;

pub(super) const TEXT: &str = "text/plain; charset=UTF-8";
pub(super) const JSON: &str = "application/json";
pub(super) const HTML: &str = "text/html; charset=UTF-8";

/// A request.
pub(super) struct Request {
    pub method: Method,
    pub path: String,
    /// From the query, or else from a form in the body; in order.
    pub params: Vec<(String, String)>,
}

impl Request {
    /// Takes path and query apart. `form`: the body, if it is a form.
    pub fn new(method: Method, target: &str, form: Option<&str>) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut params = parameters(query);
        if params.is_empty()
            && let Some(form) = form
        {
            params = parameters(form);
        }
        Self { method, path: path.to_owned(), params }
    }

    /// The value of a parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.param(name).is_some()
    }

    /// The regular expression that a parameter holds.
    pub fn regex(&self, name: &str) -> Result<Option<Regex>, String> {
        let pattern = self.param(name).filter(|pattern| !pattern.is_empty());
        pattern.map(|pattern| Regex::new(pattern).map_err(|error| error_line(&error))).transpose()
    }
}

/// What is wrong with a regular expression, in one line.
pub(super) fn error_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

fn parameters(query: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key), decoded(value))
    };
    query.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

/// `%41` is `A`. A plus stays a plus: regular expressions have them.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        let rest = bytes.as_slice();
        let digit = |i: usize| rest.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                bytes.nth(1);
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A reply.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: String,
}

impl Reply {
    pub fn text(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, content_type: TEXT, body: body.into() }
    }

    pub fn error(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: TEXT, body: body.into() }
    }

    pub fn bad_request(body: impl Into<String>) -> Self {
        Self::error(StatusCode::BAD_REQUEST, body)
    }

    pub fn ok() -> Self {
        Self::text("OK\n")
    }

    /// JSON over several lines, as Envoy indents it.
    pub fn json(value: &Value) -> Self {
        Self { status: StatusCode::OK, content_type: JSON, body: format!("{}\n", pretty(value)) }
    }
}

/// Envoy prints empty lists without a break in them, as this does, and indents by one space.
fn pretty(value: &Value) -> String {
    weft_control_api::pretty(value)
}
