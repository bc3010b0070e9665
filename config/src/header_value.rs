//! Headers that a configuration adds or removes.

use crate::{Context, string_matcher::StringMatcher};
use http::HeaderName;
use weft_control_api::envoy::config::{
    common::mutation_rules::v3 as rules,
    core::v3::{self as pb},
};

/// Which header of a message: a real one, or a pseudo-header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderKey {
    Name(HeaderName),
    Authority,
    Path,
    Method,
    Scheme,
    Status,
    Protocol,
}

impl HeaderKey {
    /// `Host` is `:authority`. Any case.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => Self::Authority,
            ":path" => Self::Path,
            ":method" => Self::Method,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            ":protocol" => Self::Protocol,
            name => Self::Name(HeaderName::try_from(name).ok()?),
        })
    }

    /// The key in field `field`, or a problem.
    pub fn read(field: &str, name: &str, cx: &mut Context) -> Option<Self> {
        let key = Self::parse(name);
        if key.is_none() {
            cx.problem_at(field, format!("found {name:?}, which is no header name"));
        }
        key
    }
}

/// What to do where the header is there already.
pub use pb::header_value_option::HeaderAppendAction as AppendAction;

/// One header to add. The value is a format, compiled by the proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderValueOption {
    pub name: HeaderName,
    pub value: String,
    pub action: AppendAction,
    /// Adds the header even if its value comes out empty.
    pub keep_empty: bool,
}

impl HeaderValueOption {
    pub fn from_proto(p: pb::HeaderValueOption, cx: &mut Context) -> Option<Self> {
        let pb::HeaderValueOption { header, append, append_action, keep_empty_value } = p;
        let pb::HeaderValue { key, value, raw_value } = cx.required("header", header)?;
        let action: AppendAction = cx.enumeration("append_action", append_action);
        if append.is_some() && action != AppendAction::AppendIfExistsOrAdd {
            cx.problem_at("append", "cannot be set together with append_action");
        }
        let value = if raw_value.is_empty() {
            value
        } else {
            match String::from_utf8(raw_value) {
                Ok(text) => text,
                Err(_) => {
                    cx.problem_at("header.raw_value", "found bytes that are no UTF-8, which are not supported");
                    return None;
                }
            }
        };
        let HeaderKey::Name(name) = HeaderKey::read("header.key", &key, cx)? else {
            cx.problem_at("header.key", format!("found {key:?}: :-prefixed or host headers may not be modified"));
            return None;
        };
        Some(Self {
            name,
            value,
            action: if append == Some(false) { AppendAction::OverwriteIfExistsOrAdd } else { action },
            keep_empty: keep_empty_value,
        })
    }
}

/// One header to remove, in field `name`. Pseudo-headers and `Host` cannot be removed.
pub fn removals(name: &str, headers: Vec<String>, cx: &mut Context) -> Vec<HeaderName> {
    cx.elements(name, headers, |cx, header| match HeaderKey::parse(&header) {
        Some(HeaderKey::Name(name)) => Some(name),
        Some(_) => {
            cx.problem(format!("found {header:?}: :-prefixed or host headers may not be removed"));
            None
        }
        None => {
            cx.problem(format!("found {header:?}, which is no header name"));
            None
        }
    })
}

/// One mutation of a list (`envoy.config.common.mutation_rules.v3.HeaderMutation`).
#[derive(Clone, Debug)]
pub enum HeaderMutation {
    Remove(HeaderName),
    Append(HeaderValueOption),
    RemoveOnMatch(StringMatcher),
}

impl HeaderMutation {
    pub fn from_proto(p: rules::HeaderMutation, cx: &mut Context) -> Option<Self> {
        use rules::header_mutation::Action;
        match cx.required("action", p.action)? {
            Action::Remove(name) => removals("remove", vec![name], cx).pop().map(Self::Remove),
            Action::Append(p) => cx.field("append", |cx| HeaderValueOption::from_proto(p, cx)).map(Self::Append),
            Action::RemoveOnMatch(p) => {
                let matcher = cx.required("remove_on_match.key_matcher", p.key_matcher)?;
                cx.field("remove_on_match.key_matcher", |cx| StringMatcher::from_proto(matcher, cx))
                    .map(Self::RemoveOnMatch)
            }
        }
    }
}

/// What one level (route configuration, virtual host, route, weighted cluster) does to headers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderChanges {
    pub request_add: Vec<HeaderValueOption>,
    pub request_remove: Vec<HeaderName>,
    pub response_add: Vec<HeaderValueOption>,
    pub response_remove: Vec<HeaderName>,
}

impl HeaderChanges {
    /// Reads the four fields that every level has.
    pub fn read(
        request_add: Vec<pb::HeaderValueOption>,
        request_remove: Vec<String>,
        response_add: Vec<pb::HeaderValueOption>,
        response_remove: Vec<String>,
        cx: &mut Context,
    ) -> Self {
        Self {
            request_add: cx
                .elements("request_headers_to_add", request_add, |cx, p| HeaderValueOption::from_proto(p, cx)),
            request_remove: removals("request_headers_to_remove", request_remove, cx),
            response_add: cx
                .elements("response_headers_to_add", response_add, |cx, p| HeaderValueOption::from_proto(p, cx)),
            response_remove: removals("response_headers_to_remove", response_remove, cx),
        }
    }
}
