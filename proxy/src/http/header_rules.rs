//! Headers that a configuration adds and removes, compiled: the values are formats over the stream's facts.

use super::{RequestHead, ResponseHead};
use crate::observe::{
    StreamInfo,
    format::{Facts, Format},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use smallvec::SmallVec;
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

    /// Removes first; then evaluates every value over what is left, overwrites, and last appends.
    pub fn apply_request(&self, head: &mut RequestHead, info: &StreamInfo) {
        for name in &self.request.remove {
            head.headers.remove(name);
        }
        apply_all(&self.request.add, head, |addition, head| {
            addition.value.header_value(&Facts { request: Some(head), ..Facts::new(info) })
        });
    }

    pub fn apply_response(&self, head: &mut ResponseHead, request: &RequestHead, info: &StreamInfo) {
        for name in &self.response.remove {
            head.headers.remove(name);
        }
        apply_all(&self.response.add, head, |addition, head| {
            addition.value.header_value(&Facts { request: Some(request), response: Some(head), ..Facts::new(info) })
        });
    }
}

/// A head that headers are put into.
trait Head {
    fn headers(&mut self) -> &mut HeaderMap;
    fn has(&self, key: &HeaderKey) -> bool;
    /// Sets a pseudo-header. A value that it cannot have changes nothing.
    fn set_pseudo(&mut self, key: &HeaderKey, text: String);
}

impl Head for RequestHead {
    fn headers(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn has(&self, key: &HeaderKey) -> bool {
        match key {
            HeaderKey::Name(name) => self.headers.contains_key(name),
            HeaderKey::Authority => !self.authority.is_empty(),
            HeaderKey::Path => !self.path.is_empty(),
            HeaderKey::Scheme => !self.scheme.is_empty(),
            HeaderKey::Method => true,
            HeaderKey::Protocol | HeaderKey::Status => false,
        }
    }

    fn set_pseudo(&mut self, key: &HeaderKey, text: String) {
        match key {
            HeaderKey::Authority => self.authority = text.into(),
            HeaderKey::Path => self.path = text.into(),
            HeaderKey::Scheme => self.scheme = text.into(),
            HeaderKey::Method => {
                if let Ok(method) = Method::from_bytes(text.as_bytes()) {
                    self.method = method;
                }
            }
            HeaderKey::Name(_) | HeaderKey::Protocol | HeaderKey::Status => {}
        }
    }
}

impl Head for ResponseHead {
    fn headers(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn has(&self, key: &HeaderKey) -> bool {
        match key {
            HeaderKey::Name(name) => self.headers.contains_key(name),
            HeaderKey::Status => true,
            _ => false,
        }
    }

    fn set_pseudo(&mut self, key: &HeaderKey, text: String) {
        if let (HeaderKey::Status, Some(status)) =
            (key, text.parse().ok().and_then(|code: u16| StatusCode::from_u16(code).ok()))
        {
            self.status = status;
        }
    }
}

/// Applies one level's additions to `head`. All values are made before any is set, so that none sees another.
fn apply_all<H: Head>(additions: &[Addition], head: &mut H, value: impl Fn(&Addition, &H) -> String) {
    use AppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
    let mut appended: SmallVec<[(&Addition, String); 4]> = SmallVec::new();
    let mut overwritten: SmallVec<[(&Addition, String); 4]> = SmallVec::new();
    for addition in additions {
        let exists = head.has(&addition.key);
        let list = match (addition.action, exists) {
            (AddIfAbsent, true) | (OverwriteIfExists, false) => continue,
            (AppendIfExistsOrAdd | AddIfAbsent, _) => &mut appended,
            (OverwriteIfExistsOrAdd | OverwriteIfExists, _) => &mut overwritten,
        };
        let text = value(addition, head);
        if !text.is_empty() || addition.keep_empty {
            list.push((addition, text));
        }
    }
    for (addition, text) in overwritten {
        addition.set(head, text, true);
    }
    for (addition, text) in appended {
        addition.set(head, text, false);
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

    /// Sets the header; a pseudo-header has one value, so that it is overwritten either way.
    fn set<H: Head>(&self, head: &mut H, text: String, overwrite: bool) {
        let HeaderKey::Name(name) = &self.key else {
            return head.set_pseudo(&self.key, text);
        };
        let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) else { return };
        if overwrite {
            head.headers().insert(name, value);
        } else {
            head.headers().append(name, value);
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
                Mutation::Add(addition) => apply_all(std::slice::from_ref(addition), head, |addition, head| {
                    addition.value.header_value(&Facts { request: Some(head), ..Facts::new(info) })
                }),
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
