//! Rate limits of routes, virtual hosts and filters, compiled: which descriptors a request has.
//!
//! Made with the route table and with filters' configurations, used by the local and by the global filter. What descriptors
//! say borrows from the request and the configuration wherever it stands there as it is.

use super::{MatchedRoute, header_matches};
use crate::{
    base::RuntimeSnapshot,
    http::{RequestHead, message::query_of},
    observe::{
        StreamInfo,
        format::{Facts, Format},
    },
    upstream::Upstreams,
};
use serde_json::{Map, Value};
use smallvec::SmallVec;
use std::borrow::Cow;
use weft_config::{
    Context,
    header_value::HeaderKey,
    rate_limit::{Action, HitsAddend, Limit, LimitOverride, MetadataSource, RateLimit},
};

/// More hits than this are none.
const MOST_HITS: f64 = 1e9;

/// The limits of one route, virtual host or filter.
#[derive(Default)]
pub struct RateLimits(Box<[Entry]>);

struct Entry {
    config: RateLimit,
    /// Of `disable_key`; empty: none.
    runtime_key: String,
    hits: Hits,
}

enum Hits {
    One,
    Number(u64),
    Format(Format),
}

/// What a request counts under.
#[derive(Debug, Default)]
pub struct Descriptor<'a> {
    /// Keys and values.
    pub entries: SmallVec<[DescriptorEntry<'a>; 3]>,
    pub limit: Option<Limit>,
    /// `None`: nothing was said, which is 1.
    pub hits: Option<u64>,
    /// `hits` are given back.
    pub is_negative: bool,
    /// `x-ratelimit-*` in the response, whatever the filter says.
    pub headers: Option<bool>,
}

/// A key and a value.
pub type DescriptorEntry<'a> = (&'a str, Cow<'a, [u8]>);

pub type Descriptors<'a> = SmallVec<[Descriptor<'a>; 2]>;

/// What actions look at.
#[derive(Clone, Copy)]
pub struct DescriptorFacts<'a> {
    pub request: &'a RequestHead,
    pub info: &'a StreamInfo,
    pub route: Option<&'a MatchedRoute>,
    pub upstreams: &'a Upstreams,
    /// The cluster that this proxy is part of.
    pub service_cluster: &'a [u8],
}

/// Which of the limits count.
#[derive(Clone, Copy)]
pub enum Which<'a> {
    /// Those of a stage that no key may switch off.
    Local { stage: u32 },
    /// Those of a stage that no key does switch off, at the request or at the stream's end.
    Global { stage: u32, at_end: bool, runtime: &'a RuntimeSnapshot },
    /// A filter's own.
    Own { at_end: Option<bool> },
}

impl RateLimits {
    pub fn compile(limits: &[RateLimit], cx: &mut Context) -> Self {
        let compile = |(i, limit): (usize, &RateLimit)| {
            cx.element("rate_limits", i, |cx| {
                let hits = match &limit.hits_addend {
                    None => Hits::One,
                    Some(HitsAddend::Number(number)) => Hits::Number(*number),
                    Some(HitsAddend::Format(text)) => cx.field("hits_addend.format", |cx| {
                        let format = Format::compile_text(text, cx)?;
                        if !format.is_operator() {
                            cx.problem("hits_addend format must contain exactly one substitution");
                        }
                        Some(Hits::Format(format))
                    })?,
                };
                let runtime_key = match limit.disable_key.as_str() {
                    "" => String::new(),
                    key => format!("ratelimit.{key}.http_filter_enabled"),
                };
                Some(Entry { config: limit.clone(), runtime_key, hits })
            })
        };
        Self(limits.iter().enumerate().filter_map(compile).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the descriptors that a request has.
    pub fn describe<'a>(&'a self, which: Which<'_>, facts: &DescriptorFacts<'a>, out: &mut Descriptors<'a>) {
        let counts = |entry: &&Entry| {
            let config = &entry.config;
            match which {
                Which::Local { stage } => config.stage == stage && config.disable_key.is_empty(),
                Which::Global { stage, at_end, runtime } => {
                    let enabled =
                        || entry.runtime_key.is_empty() || runtime.enables(&entry.runtime_key, 100, fastrand::u64(..));
                    config.stage == stage && config.apply_on_stream_done == at_end && enabled()
                }
                Which::Own { at_end } => at_end.is_none_or(|at_end| at_end == config.apply_on_stream_done),
            }
        };
        out.extend(self.0.iter().filter(counts).filter_map(|entry| entry.descriptor(facts)));
    }
}

impl Entry {
    fn descriptor<'a>(&'a self, facts: &DescriptorFacts<'a>) -> Option<Descriptor<'a>> {
        let mut descriptor = Descriptor {
            is_negative: self.config.is_negative_hits,
            headers: self.config.headers,
            ..Descriptor::default()
        };
        for action in &self.config.actions {
            match value(action, facts) {
                Added::Entry(key, value) => descriptor.entries.push((key, value)),
                Added::Nothing => {}
                Added::GiveUp => return None,
            }
        }
        descriptor.limit = match &self.config.limit {
            None => None,
            Some(LimitOverride::Fixed(limit)) => Some(*limit),
            Some(LimitOverride::Dynamic(name, path)) => {
                dynamic_limit(at(facts.info.dynamic_metadata.get(&**name), path))
            }
        };
        descriptor.hits = match &self.hits {
            Hits::One => None,
            Hits::Number(number) => Some(*number),
            Hits::Format(format) => {
                let text = format.text(&Facts { request: Some(facts.request), ..Facts::new(facts.info) });
                let hits: f64 = text.trim().parse().ok()?;
                (0.0..=MOST_HITS).contains(&hits).then_some(Some(hits as u64))?
            }
        };
        Some(descriptor)
    }
}

/// What an action comes to.
enum Added<'a> {
    Entry(&'a str, Cow<'a, [u8]>),
    Nothing,
    /// There is no descriptor.
    GiveUp,
}

fn value<'a>(action: &'a Action, facts: &DescriptorFacts<'a>) -> Added<'a> {
    let absent = |skip: bool| if skip { Added::Nothing } else { Added::GiveUp };
    let given = |holds: bool, key: &'a str, value: &'a str| {
        if holds { Added::Entry(key, value.as_bytes().into()) } else { Added::GiveUp }
    };
    match action {
        Action::SourceCluster => Added::Entry("source_cluster", facts.service_cluster.into()),
        Action::DestinationCluster => {
            let Some(route) = facts.route else { return Added::GiveUp };
            let cluster = route.cluster(facts.upstreams, facts.request);
            let name = cluster.map(|cluster| cluster.info().name().as_bytes().to_vec()).unwrap_or_default();
            Added::Entry("destination_cluster", name.into())
        }
        Action::RequestHeader { name, key, skip_if_absent } => match header(facts.request, name) {
            Some(value) => Added::Entry(key, value.into()),
            None => absent(*skip_if_absent),
        },
        Action::QueryParameter { name, key, skip_if_absent } => match parameter(facts.request, name) {
            Some(value) => Added::Entry(key, into_bytes(value)),
            None => absent(*skip_if_absent),
        },
        Action::RemoteAddress => match facts.info.downstream_remote.ip() {
            Some(address) => Added::Entry("remote_address", address.ip().to_string().into_bytes().into()),
            None => Added::GiveUp,
        },
        Action::MaskedRemoteAddress { v4, v6 } => {
            let Some(address) = facts.info.downstream_remote.ip() else { return Added::GiveUp };
            let length = if address.is_ipv4() { *v4 } else { *v6 };
            let Ok(net) = ipnet::IpNet::new(address.ip(), length) else { return Added::GiveUp };
            Added::Entry("masked_remote_address", net.trunc().to_string().into_bytes().into())
        }
        Action::GenericKey { key, value } => given(true, key, value),
        Action::HeaderValueMatch { key, value, headers, expect } => {
            given(headers.iter().all(|matcher| header_matches(matcher, facts.request)) == *expect, key, value)
        }
        Action::QueryParameterValueMatch { key, value, parameters, expect } => {
            let matches = parameters.iter().all(|m| m.matches(parameter(facts.request, &m.name).as_deref()));
            given(matches == *expect, key, value)
        }
        Action::RemoteAddressMatch { key, value, ranges, invert } => match facts.info.downstream_remote.ip() {
            Some(address) => given(ranges.iter().any(|range| range.contains(address.ip())) != *invert, key, value),
            None => Added::GiveUp,
        },
        Action::Metadata { key, from, path: (name, path), default, skip_if_absent } => {
            let info = facts.info;
            let of = |metadata: Option<&'a crate::observe::stream_info::Metadata>| metadata?.get(&**name);
            let found = match from {
                MetadataSource::Dynamic => of(Some(&info.dynamic_metadata)),
                MetadataSource::Route => of(info.route_metadata.as_deref()),
                MetadataSource::Cluster => None,
            };
            let text = match from {
                MetadataSource::Cluster => of_cluster(facts, name, path).map(Cow::Owned),
                _ => at(found, path).and_then(Value::as_str).map(|text| Cow::Borrowed(text.as_bytes())),
            };
            match text.filter(|text| !text.is_empty()) {
                Some(text) => Added::Entry(key, text),
                None if !default.is_empty() => given(true, key, default),
                None => absent(*skip_if_absent),
            }
        }
    }
}

/// A text of the metadata of the cluster that the request goes to.
fn of_cluster(facts: &DescriptorFacts<'_>, name: &str, path: &[String]) -> Option<Vec<u8>> {
    let cluster = facts.route?.cluster(facts.upstreams, facts.request)?;
    let found = at(cluster.info().metadata.as_ref()?.get(name), path)?;
    Some(found.as_str()?.as_bytes().to_vec())
}

/// The value at a path; there is none at an empty one.
fn at<'a>(root: Option<&'a Map<String, Value>>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(root?.get(first)?, |value, key| value.as_object()?.get(key))
}

fn dynamic_limit(value: Option<&Value>) -> Option<Limit> {
    let fields = value?.as_object()?;
    let requests = fields.get("requests_per_unit")?.as_f64()?;
    Some(Limit { requests_per_unit: requests as u32, unit: Limit::unit(fields.get("unit")?.as_str()?)? })
}

fn header<'a>(request: &'a RequestHead, key: &HeaderKey) -> Option<&'a [u8]> {
    let pseudo = |value: &'a [u8]| (!value.is_empty()).then_some(value);
    match key {
        HeaderKey::Name(name) => request.headers.get(name).map(|value| value.as_bytes()),
        HeaderKey::Authority => pseudo(&request.authority),
        HeaderKey::Path => pseudo(&request.path),
        HeaderKey::Method => Some(request.method.as_str().as_bytes()),
        HeaderKey::Scheme => pseudo(&request.scheme),
        HeaderKey::Protocol => pseudo(request.upgrade.as_deref().unwrap_or_default()),
        HeaderKey::Status => None,
    }
}

/// The first value of a query parameter; names and values are decoded.
fn parameter<'a>(request: &'a RequestHead, name: &str) -> Option<Cow<'a, str>> {
    query_of(&request.path).split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then(|| decoded(value))
    })
}

/// Percent-encoded bytes as what they stand for; what is no encoding stays.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match byte.filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

fn into_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percent_encodings_that_are_none_stay() {
        for (text, want) in [("a%20b", "a b"), ("%", "%"), ("%2", "%2"), ("%zz%41", "%zzA"), ("a+b", "a+b")] {
            assert_eq!(decoded(text), want);
        }
    }

    #[test]
    fn limits_in_metadata_are_whole_or_none() {
        let limit = |value: Value| dynamic_limit(Some(&value)).map(|limit| (limit.requests_per_unit, limit.unit));
        assert_eq!(limit(json!({"requests_per_unit": 42, "unit": "HOUR"})), Some((42, 3)));
        assert_eq!(limit(json!({"requests_per_unit": 42})), None);
        assert_eq!(limit(json!({"requests_per_unit": "42", "unit": "HOUR"})), None);
        assert_eq!(limit(json!({"requests_per_unit": 42, "unit": "hour"})), None);
        assert_eq!(limit(json!("x")), None);
    }
}
