//! Headers that a configuration adds and removes, compiled: the values are formats over the stream's facts.

use super::{RequestHead, ResponseHead};
use crate::observe::{
    StreamInfo,
    format::{Facts, Format},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use weft_config::{
    Context,
    header_value::{AppendAction, HeaderChanges, HeaderKey, HeaderMutation, HeaderValueOption},
    string_matcher::StringMatcher,
};

/// The rules of one level.
#[derive(Debug, Default)]
pub struct HeaderRules {
    request: Side,
    response: Side,
}

#[derive(Debug, Default)]
struct Side {
    remove: Vec<HeaderName>,
    add: Vec<Addition>,
}

#[derive(Debug)]
struct Addition {
    key: HeaderKey,
    value: Format,
    action: AppendAction,
    keep_empty: bool,
}

/// A list of mutations, in order (early header mutation, mirrors).
#[derive(Debug, Default)]
pub struct Mutations(Vec<Mutation>);

#[derive(Debug)]
enum Mutation {
    Remove(HeaderName),
    Add(Addition),
    RemoveMatching(StringMatcher),
}

impl HeaderRules {
    /// Compiles one level's changes; unknown operators are problems at their fields.
    pub fn compile(changes: &HeaderChanges, cx: &mut Context) -> Self {
        Self {
            request: Side {
                remove: changes.request_remove.clone(),
                add: additions("request_headers_to_add", &changes.request_add, cx),
            },
            response: Side {
                remove: changes.response_remove.clone(),
                add: additions("response_headers_to_add", &changes.response_add, cx),
            },
        }
    }

    /// Additions to responses only.
    pub fn response_additions(name: &str, options: &[HeaderValueOption], cx: &mut Context) -> Self {
        Self { request: Side::default(), response: Side { remove: Vec::new(), add: additions(name, options, cx) } }
    }

    /// Removes first, then adds.
    pub fn apply_request(&self, head: &mut RequestHead, info: &StreamInfo) {
        for name in &self.request.remove {
            head.headers.remove(name);
        }
        for addition in &self.request.add {
            addition.apply_request(head, info);
        }
    }

    pub fn apply_response(&self, head: &mut ResponseHead, request: &RequestHead, info: &StreamInfo) {
        for name in &self.response.remove {
            head.headers.remove(name);
        }
        for addition in &self.response.add {
            let text = addition.value.header_value(&Facts {
                request: Some(request),
                response: Some(head),
                ..Facts::new(info)
            });
            match &addition.key {
                HeaderKey::Status => {
                    if let Some(status) = text.parse().ok().and_then(|code: u16| StatusCode::from_u16(code).ok()) {
                        head.status = status;
                    }
                }
                HeaderKey::Name(name) => addition.put(&mut head.headers, name, text),
                _ => {}
            }
        }
    }
}

fn additions(name: &str, options: &[HeaderValueOption], cx: &mut Context) -> Vec<Addition> {
    options
        .iter()
        .enumerate()
        .filter_map(|(i, option)| cx.element(name, i, |cx| Addition::compile(option, cx)))
        .collect()
}

impl Addition {
    fn compile(option: &HeaderValueOption, cx: &mut Context) -> Option<Self> {
        let value = cx.field("header.value", |cx| Format::compile_text(&option.value, cx))?;
        Some(Self { key: option.key.clone(), value, action: option.action, keep_empty: option.keep_empty })
    }

    fn apply_request(&self, head: &mut RequestHead, info: &StreamInfo) {
        let text = self.value.header_value(&Facts { request: Some(head), ..Facts::new(info) });
        let pseudo = |old: &mut Bytes, text: String| {
            let exists = !old.is_empty();
            let set = match self.action {
                AppendAction::AddIfAbsent => !exists,
                AppendAction::OverwriteIfExists => exists,
                AppendAction::OverwriteIfExistsOrAdd | AppendAction::AppendIfExistsOrAdd => true,
            };
            if set && !text.is_empty() {
                *old = text.into();
            }
        };
        match &self.key {
            HeaderKey::Name(name) => self.put(&mut head.headers, name, text),
            HeaderKey::Authority => pseudo(&mut head.authority, text),
            HeaderKey::Path => pseudo(&mut head.path, text),
            HeaderKey::Scheme => pseudo(&mut head.scheme, text),
            HeaderKey::Method => {
                if let Ok(method) = Method::from_bytes(text.as_bytes()) {
                    head.method = method;
                }
            }
            HeaderKey::Status | HeaderKey::Protocol => {}
        }
    }

    fn put(&self, headers: &mut HeaderMap, name: &HeaderName, text: String) {
        if text.is_empty() && !self.keep_empty {
            return;
        }
        let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) else { return };
        match self.action {
            AppendAction::AppendIfExistsOrAdd => {
                headers.append(name, value);
            }
            AppendAction::AddIfAbsent => {
                headers.entry(name).or_insert(value);
            }
            AppendAction::OverwriteIfExistsOrAdd => {
                headers.insert(name, value);
            }
            AppendAction::OverwriteIfExists => {
                if headers.contains_key(name) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

impl Mutations {
    pub fn compile(field: &str, mutations: &[HeaderMutation], cx: &mut Context) -> Self {
        let compile = |(i, mutation): (usize, &HeaderMutation)| {
            Some(match mutation {
                HeaderMutation::Remove(name) => Mutation::Remove(name.clone()),
                HeaderMutation::Append(option) => {
                    Mutation::Add(cx.element(field, i, |cx| Addition::compile(option, cx))?)
                }
                HeaderMutation::RemoveOnMatch(matcher) => Mutation::RemoveMatching(matcher.clone()),
            })
        };
        Self(mutations.iter().enumerate().filter_map(compile).collect())
    }

    pub fn apply(&self, head: &mut RequestHead, info: &StreamInfo) {
        for mutation in &self.0 {
            match mutation {
                Mutation::Remove(name) => {
                    head.headers.remove(name);
                }
                Mutation::Add(addition) => addition.apply_request(head, info),
                Mutation::RemoveMatching(matcher) => {
                    let names: Vec<_> =
                        head.headers.keys().filter(|name| matcher.matches(name.as_str())).cloned().collect();
                    for name in names {
                        head.headers.remove(name);
                    }
                }
            }
        }
    }
}
