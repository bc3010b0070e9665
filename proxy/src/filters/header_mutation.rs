//! `envoy.filters.http.header_mutation`: changes headers, trailers and query parameters.
//!
//! The filter's own changes come first, then those of every level of the route: the least specific last, so that it has
//! the last word, unless `most_specific_header_mutations_wins`. Values in trailers are made when the head passes. Query
//! parameters come out decoded and by name, as Envoy writes them, but for what would end the parameter or the path.

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, RouteFilterConfig,
    mapped_trailers::map_trailers,
};
use crate::{
    http::{Body, BodySource, RequestHead, ResponseHead, header_rules::Mutations, stream::Stream},
    observe::{
        StreamInfo,
        format::{Facts, Format},
    },
};
use http::HeaderMap;
use smallvec::SmallVec;
use std::{collections::BTreeMap, rc::Rc, sync::Arc};
use weft_config::{Context, header_value::HeaderMutation as Change};
use weft_control_api::{
    envoy::{
        config::{
            common::mutation_rules::v3::HeaderMutation as ChangePb,
            core::v3::{self as core, key_value_append::KeyValueAppendAction as AppendAction},
        },
        extensions::filters::http::header_mutation::v3 as pb,
    },
    value::Kind,
};

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.header_mutation",
    type_name: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    parse: |any, cx| {
        let pb::HeaderMutation { mutations, most_specific_header_mutations_wins } = cx.unpack("typed_config", any)?;
        let level = cx.field("typed_config", |cx| Level::from_proto(mutations, cx));
        let config = HeaderMutation { own: Arc::new(level), most_specific_wins: most_specific_header_mutations_wins };
        Some(Arc::new(config) as Arc<dyn FilterConfig>)
    },
    route: Some(("envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute", |any, cx| {
        let pb::HeaderMutationPerRoute { mutations } = cx.unpack("", any)?;
        Some(Arc::new(Level::from_proto(mutations, cx)) as RouteFilterConfig)
    })),
};

struct HeaderMutation {
    own: Arc<Level>,
    most_specific_wins: bool,
}

/// What the filter, or one level of the route, changes.
#[derive(Default)]
struct Level {
    request: Mutations,
    query: Vec<QueryMutation>,
    response: Mutations,
    request_trailers: Mutations,
    response_trailers: Mutations,
}

enum QueryMutation {
    Remove(String),
    Add { key: String, value: Format, action: AppendAction },
}

impl Level {
    fn from_proto(p: Option<pb::Mutations>, cx: &mut Context) -> Self {
        let Some(p) = p else { return Self::default() };
        let pb::Mutations {
            request_mutations,
            query_parameter_mutations,
            response_mutations,
            response_trailers_mutations,
            request_trailers_mutations,
            formatters,
        } = p;
        cx.field("mutations", |cx| {
            cx.unsupported_if("formatters", !formatters.is_empty());
            let mut changes = |name: &str, changes: Vec<ChangePb>| {
                let read = cx.elements(name, changes, |cx, p| Change::from_proto(p, cx));
                Mutations::compile(name, &read, cx)
            };
            Self {
                request: changes("request_mutations", request_mutations),
                response: changes("response_mutations", response_mutations),
                request_trailers: changes("request_trailers_mutations", request_trailers_mutations),
                response_trailers: changes("response_trailers_mutations", response_trailers_mutations),
                query: cx.elements("query_parameter_mutations", query_parameter_mutations, |cx, p| {
                    QueryMutation::from_proto(p, cx)
                }),
            }
        })
    }

    fn change_request(&self, head: &mut RequestHead, info: &StreamInfo) {
        self.request.apply(head, info);
        if self.query.is_empty() {
            return;
        }
        let mut parameters = Parameters::parse(&head.path);
        for mutation in &self.query {
            mutation.apply(&mut parameters, head, info);
        }
        let plain = memchr::memchr(b'?', &head.path).unwrap_or(head.path.len());
        head.path = parameters.write_after(&head.path[..plain]).into();
    }
}

#[allow(deprecated)] // Deprecated fields are still read: configurations have them.
impl QueryMutation {
    fn from_proto(p: core::KeyValueMutation, cx: &mut Context) -> Option<Self> {
        let core::KeyValueMutation { append, remove } = p;
        let append = match (append, remove.is_empty()) {
            (None, false) => return Some(Self::Remove(remove)),
            (None, true) => {
                cx.problem("one of 'append' and 'remove' must be specified");
                return None;
            }
            (Some(_), false) => {
                cx.problem("only one of 'append' and 'remove' can be specified");
                return None;
            }
            (Some(append), true) => append,
        };
        cx.field("append", |cx| {
            let core::KeyValueAppend { record, entry, action } = append;
            let action = cx.enumeration("action", action);
            let (field, key, text) = match (record, entry) {
                (Some(core::KeyValuePair { key, value }), _) => match value.and_then(|value| value.kind) {
                    Some(Kind::StringValue(text)) => ("record.value", key, text),
                    _ => {
                        cx.problem_at("record.value", "only string values are allowed");
                        return None;
                    }
                },
                (None, Some(core::KeyValue { key, value })) => match String::from_utf8(value) {
                    Ok(text) => ("entry.value", key, text),
                    Err(_) => {
                        cx.problem_at("entry.value", "found bytes that are no UTF-8, which are not supported");
                        return None;
                    }
                },
                (None, None) => {
                    cx.problem_at("record", "is required");
                    return None;
                }
            };
            let value = cx.field(field, |cx| Format::compile_text(&text, cx))?;
            Some(Self::Add { key, value, action })
        })
    }

    fn apply(&self, parameters: &mut Parameters, head: &RequestHead, info: &StreamInfo) {
        match self {
            Self::Remove(key) => {
                parameters.0.remove(key.as_bytes());
            }
            Self::Add { key, value, action } => {
                let values = parameters.0.get_mut(key.as_bytes());
                let value = || value.header_value(&Facts { request: Some(head), ..Facts::new(info) }).into_bytes();
                match (action, values) {
                    (AppendAction::AddIfAbsent, Some(_)) | (AppendAction::OverwriteIfExists, None) => {}
                    (AppendAction::AppendIfExistsOrAdd, Some(values)) => values.push(value()),
                    (_, Some(values)) => *values = vec![value()],
                    (_, None) => {
                        parameters.0.insert(key.clone().into_bytes(), vec![value()]);
                    }
                }
            }
        }
    }
}

/// A path's query parameters, decoded.
struct Parameters(BTreeMap<Vec<u8>, Vec<Vec<u8>>>);

impl Parameters {
    fn parse(path: &[u8]) -> Self {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        let query = memchr::memchr(b'?', path).map_or(&b""[..], |at| &path[at + 1..]);
        let query = query.strip_suffix(b"&").unwrap_or(query);
        for pair in query.split(|b| *b == b'&').take(if query.is_empty() { 0 } else { usize::MAX }) {
            let equals = memchr::memchr(b'=', pair);
            let value = equals.map_or(&b""[..], |at| &pair[at + 1..]);
            all.entry(decode(&pair[..equals.unwrap_or(pair.len())])).or_default().push(decode(value));
        }
        Self(all)
    }

    fn write_after(&self, path: &[u8]) -> Vec<u8> {
        let mut out = path.to_vec();
        let mut separator = b'?';
        for (key, values) in &self.0 {
            for value in values {
                out.push(separator);
                separator = b'&';
                encode(key, true, &mut out);
                out.push(b'=');
                encode(value, false, &mut out);
            }
        }
        out
    }
}

fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match (byte, digit(text.get(at + 1)), digit(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Keeps what cannot be mistaken for the end of a parameter, of the path, or of its line.
fn encode(text: &[u8], is_key: bool, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text {
        if byte <= b' ' || matches!(byte, 0x7f | b'%' | b'&' | b'#') || (is_key && byte == b'=') {
            out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        } else {
            out.push(byte);
        }
    }
}

impl FilterConfig for HeaderMutation {
    fn activate(self: Arc<Self>, _: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        Rc::new(Active(self))
    }
}

/// One worker's part.
struct Active(Arc<HeaderMutation>);

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let mut levels: Levels = routes.iter().filter_map(|route| route.clone().downcast().ok()).collect();
        if !self.0.most_specific_wins {
            levels.reverse();
        }
        levels.insert(0, self.0.own.clone());
        Some(Box::new(Filter(levels)))
    }
}

type Levels = SmallVec<[Arc<Level>; 4]>;

struct Filter(Levels);

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        for level in &self.0 {
            level.change_request(&mut stream.request, &stream.info);
        }
        Action::Continue
    }

    fn request_body(&mut self, stream: &mut Stream, body: Body) -> Body {
        let facts = Facts { request: Some(&stream.request), ..Facts::new(&stream.info) };
        with_trailers(&self.0, |level| &level.request_trailers, &facts, body)
    }

    fn on_response(&mut self, stream: &mut Stream, head: &mut ResponseHead, _end: bool) -> Action {
        for level in &self.0 {
            level.response.apply_response(head, &stream.request, &stream.info);
        }
        Action::Continue
    }

    fn response_body(&mut self, stream: &mut Stream, body: Body) -> Body {
        let facts = Facts { request: Some(&stream.request), ..Facts::new(&stream.info) };
        with_trailers(&self.0, |level| &level.response_trailers, &facts, body)
    }
}

fn with_trailers(levels: &Levels, part: fn(&Level) -> &Mutations, facts: &Facts<'_>, body: Body) -> Body {
    if body.is_end() || levels.iter().all(|level| part(level).is_empty()) {
        return body;
    }
    let all: Vec<_> = levels.iter().map(|level| (level.clone(), part(level).values(facts))).collect();
    map_trailers(body, move |trailers: &mut HeaderMap| {
        for (level, values) in &all {
            part(level).apply_values(trailers, values);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters_cannot_break_out() {
        for (path, want) in [
            ("/p", "/p"),
            ("/p?", "/p"),
            ("/p?b=1&a=2&b=3&c", "/p?a=2&b=1&b=3&c="),
            ("/p?a=%26b%3d1%23%0d%0a%25%20", "/p?a=%26b=1%23%0D%0A%25%20"),
            ("/p?&b&", "/p?=&b="),
            ("/p?a%3Db=1&a=%zz%", "/p?a=%25zz%25&a%3Db=1"),
        ] {
            let plain = path.split('?').next().expect("there is a first");
            let written = Parameters::parse(path.as_bytes()).write_after(plain.as_bytes());
            assert_eq!(String::from_utf8_lossy(&written), want, "{path}");
        }
    }
}
