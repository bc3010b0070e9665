//! Headers that a configuration adds and removes, compiled: the values are formats over the stream's facts.

use super::{RequestHead, ResponseHead};
use crate::observe::{
    StreamInfo,
    format::{Facts, Format},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use weft_config::{
    Context,
    header_value::{AppendAction, HeaderChanges, HeaderMutation, HeaderValueOption},
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
    name: HeaderName,
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

    /// Additions to requests only.
    pub fn request_additions(name: &str, options: &[HeaderValueOption], cx: &mut Context) -> Self {
        Self { request: Side { remove: Vec::new(), add: additions(name, options, cx) }, response: Side::default() }
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
        apply_all(&self.request.add, head, request_headers, |addition, head| {
            addition.value.header_value(&Facts { request: Some(head), ..Facts::new(info) })
        });
    }

    pub fn apply_response(&self, head: &mut ResponseHead, request: &RequestHead, info: &StreamInfo) {
        for name in &self.response.remove {
            head.headers.remove(name);
        }
        apply_all(
            &self.response.add,
            head,
            |head| &mut head.headers,
            |addition, head| {
                addition.value.header_value(&Facts { request: Some(request), response: Some(head), ..Facts::new(info) })
            },
        );
    }
}

/// Applies one level's additions. All values are made before any is set, so that none sees another.
fn apply_all<H>(
    additions: &[Addition],
    head: &mut H,
    headers: fn(&mut H) -> &mut HeaderMap,
    value: impl Fn(&Addition, &H) -> String,
) {
    use AppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
    if additions.is_empty() {
        return;
    }
    let mut appended: SmallVec<[(&HeaderName, HeaderValue); 4]> = SmallVec::new();
    let mut overwritten: SmallVec<[(&HeaderName, HeaderValue); 4]> = SmallVec::new();
    for addition in additions {
        let exists = headers(head).contains_key(&addition.name);
        let list = match (addition.action, exists) {
            (AddIfAbsent, true) | (OverwriteIfExists, false) => continue,
            (AppendIfExistsOrAdd | AddIfAbsent, _) => &mut appended,
            (OverwriteIfExistsOrAdd | OverwriteIfExists, _) => &mut overwritten,
        };
        let text = value(addition, head);
        if text.is_empty() && !addition.keep_empty {
            continue;
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
            list.push((&addition.name, value));
        }
    }
    let headers = headers(head);
    for (name, value) in overwritten {
        headers.insert(name, value);
    }
    for (name, value) in appended {
        headers.append(name, value);
    }
}

fn request_headers(head: &mut RequestHead) -> &mut HeaderMap {
    &mut head.headers
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
        Some(Self { name: option.name.clone(), value, action: option.action, keep_empty: option.keep_empty })
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

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn apply(&self, head: &mut RequestHead, info: &StreamInfo) {
        self.apply_with(head, request_headers, |addition, head| {
            addition.value.header_value(&Facts { request: Some(head), ..Facts::new(info) })
        });
    }

    pub fn apply_response(&self, head: &mut ResponseHead, request: &RequestHead, info: &StreamInfo) {
        let facts = Facts { request: Some(request), ..Facts::new(info) };
        self.apply_with(
            head,
            |head| &mut head.headers,
            |addition, head| addition.value.header_value(&Facts { response: Some(head), ..facts }),
        );
    }

    /// What the values come to, for [`Mutations::apply_values`].
    pub fn values(&self, facts: &Facts<'_>) -> Vec<String> {
        let value = |mutation: &Mutation| match mutation {
            Mutation::Add(addition) => addition.value.header_value(facts),
            _ => String::new(),
        };
        self.0.iter().map(value).collect()
    }

    /// Changes trailers, which come when the stream cannot be asked any more.
    pub fn apply_values(&self, trailers: &mut HeaderMap, values: &[String]) {
        for (mutation, value) in self.0.iter().zip(values) {
            mutation.apply(trailers, |trailers| trailers, |_, _| value.clone());
        }
    }

    fn apply_with<H>(
        &self,
        head: &mut H,
        headers: fn(&mut H) -> &mut HeaderMap,
        value: impl Fn(&Addition, &H) -> String,
    ) {
        for mutation in &self.0 {
            mutation.apply(head, headers, &value);
        }
    }
}

impl Mutation {
    fn apply<H>(&self, head: &mut H, headers: fn(&mut H) -> &mut HeaderMap, value: impl Fn(&Addition, &H) -> String) {
        match self {
            Self::Remove(name) => {
                headers(head).remove(name);
            }
            Self::Add(addition) => apply_all(std::slice::from_ref(addition), head, headers, value),
            Self::RemoveMatching(matcher) => {
                let headers = headers(head);
                let names: Vec<_> = headers.keys().filter(|name| matcher.matches(name.as_str())).cloned().collect();
                for name in names {
                    headers.remove(name);
                }
            }
        }
    }
}
