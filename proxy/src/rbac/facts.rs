//! What is known of a request or connection, and whether a rule takes it.

use crate::{
    base::{Address, Certificate},
    http::RequestHead,
    observe::StreamInfo,
    transport::tls::verify::san,
};
use http::HeaderValue;
use serde_json::Value;
use smallvec::SmallVec;
use std::{borrow::Cow, net::IpAddr};
use weft_config::{
    address::CidrRange,
    header_matcher::HeaderMatcher,
    header_value::HeaderKey,
    matching::{Input, Inputs},
    rbac::{FilterStateTest, MetadataSource, Rule},
    string_matcher::StringMatcher,
    tls::{SanMatcher, SanType},
};

/// A request, or a connection (without a head).
pub struct Facts<'a> {
    pub info: &'a StreamInfo,
    pub request: Option<&'a RequestHead>,
}

/// What a test of a header is worth whose values disagree: each one alone, and all of them joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lean {
    /// One of the values decides, as everywhere else.
    Any,
    /// It holds if any reading of the header passes.
    Match,
    /// It holds if every reading of the header passes.
    NoMatch,
}

impl Lean {
    fn not(self) -> Self {
        match self {
            Self::Any => Self::Any,
            Self::Match => Self::NoMatch,
            Self::NoMatch => Self::Match,
        }
    }
}

/// The values of one header.
pub type Values<'a> = SmallVec<[&'a [u8]; 2]>;

impl<'a> Facts<'a> {
    /// True if `rule` takes it.
    pub fn matches(&self, rule: &Rule, lean: Lean) -> bool {
        let connection = &self.info.connection;
        match rule {
            Rule::Any => true,
            Rule::And(rules) => rules.iter().all(|rule| self.matches(rule, lean)),
            Rule::Or(rules) => rules.iter().any(|rule| self.matches(rule, lean)),
            Rule::Not(rule) => !self.matches(rule, lean.not()),
            Rule::Header(matcher) => self.header_matches(matcher, lean),
            Rule::Path(matcher) => self.path().is_some_and(|path| matcher.matches(path)),
            Rule::Template(template) => self.path().is_some_and(|path| template.matches(path)),
            Rule::DestinationIp(range) => is_in(range, &connection.local),
            Rule::DestinationPort(port) => self.destination_port() == Some(*port),
            Rule::DestinationPorts(ports) => {
                self.destination_port().is_some_and(|port| i32::try_from(port).is_ok_and(|port| ports.contains(&port)))
            }
            Rule::Metadata(matcher, MetadataSource::Dynamic) => {
                matcher.matches(|name| self.info.dynamic_metadata.get(name))
            }
            Rule::Metadata(matcher, MetadataSource::Route) => {
                // Without a route there is nothing to test, not even with an inverted matcher.
                let all = self.info.route_metadata.as_ref();
                self.info.has_route && matcher.matches(|name| all.and_then(|all| all.get(name)))
            }
            Rule::RequestedServerName(matcher) => {
                matcher.matches(connection.requested_server_name.as_deref().unwrap_or_default())
            }
            Rule::Authenticated(None) => connection.tls.is_some(),
            Rule::Authenticated(Some(matcher)) => self.is_authenticated(matcher, lean),
            Rule::Verified(matcher) => self.is_verified(matcher.as_ref(), lean),
            Rule::SourceIp(range) => is_in(range, &connection.remote),
            Rule::DirectRemoteIp(range) => is_in(range, &connection.direct_remote),
            Rule::RemoteIp(range) => is_in(range, &self.info.downstream_remote),
            Rule::FilterState(key, test) => self.filter_state_matches(key, test),
        }
    }

    /// The path without query and fragment, where there is one.
    pub fn path(&self) -> Option<&'a [u8]> {
        self.request.filter(|head| !head.path.is_empty()).map(RequestHead::path_only)
    }

    pub fn destination_port(&self) -> Option<u32> {
        self.info.connection.local.ip().map(|ip| u32::from(ip.port()))
    }

    pub fn server_name(&self) -> &str {
        self.info.connection.requested_server_name.as_deref().unwrap_or_default()
    }

    /// The peer's certificate, where it presented one.
    pub fn peer(&self) -> Option<&Certificate> {
        self.info.connection.tls.as_ref()?.peer.as_deref()
    }

    /// The names by which a peer that speaks TLS is known: URI names, DNS names, and the subject, which is empty for one
    /// without a certificate.
    pub fn identities(&self) -> impl Iterator<Item = &str> {
        let names = |peer: &'a Certificate| {
            let names = peer.uri_sans.iter().chain(&peer.dns_sans).map(|name| &**name);
            names.chain([&*peer.subject])
        };
        let tls = self.info.connection.tls.as_ref();
        let peer = tls.and_then(|tls| tls.peer.as_deref());
        let nobody = (tls.is_some() && peer.is_none()).then_some("");
        peer.into_iter().flat_map(names).chain(nobody)
    }

    fn is_authenticated(&self, matcher: &StringMatcher, lean: Lean) -> bool {
        self.identities().any(|name| counts(name, lean) && matcher.matches(name))
    }

    fn is_verified(&self, matcher: Option<&SanMatcher>, lean: Lean) -> bool {
        let Some(tls) = self.info.connection.tls.as_ref().filter(|tls| tls.peer_validated) else { return false };
        let Some(peer) = tls.peer.as_deref() else { return false };
        matcher.is_none_or(|matcher| san_matches(matcher, peer, lean))
    }

    /// The values of a header or pseudo-header; none where it is not there.
    pub fn values(&self, key: &HeaderKey) -> Values<'a> {
        let Some(head) = self.request else { return Values::new() };
        let pseudo = |value: &'a [u8]| (!value.is_empty()).then_some(value).into_iter().collect();
        match key {
            HeaderKey::Name(name) => head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect(),
            HeaderKey::Authority => pseudo(&head.authority),
            HeaderKey::Path => pseudo(&head.path),
            HeaderKey::Method => pseudo(head.method.as_str().as_bytes()),
            HeaderKey::Scheme => pseudo(&head.scheme),
            HeaderKey::Protocol => pseudo(head.upgrade.as_deref().unwrap_or_default()),
            HeaderKey::Status => Values::new(),
        }
    }

    fn header_matches(&self, matcher: &HeaderMatcher, lean: Lean) -> bool {
        let values = self.values(&matcher.key);
        if values.len() < 2 || lean == Lean::Any {
            return matcher.matches(values);
        }
        let joined = values.join(&b","[..]);
        let mut readings = values.into_iter().chain([&*joined]);
        let passes = |value: &[u8]| matcher.matches([value]);
        if lean == Lean::Match { readings.any(passes) } else { readings.all(passes) }
    }

    fn filter_state_matches(&self, key: &str, test: &FilterStateTest) -> bool {
        let Some(state) = self.info.filter_state.get(key) else { return false };
        match test {
            FilterStateTest::Text(matcher) => matcher.matches(&state.text),
            FilterStateTest::Address { ranges, invert } => {
                let text = std::str::from_utf8(&state.text).unwrap_or_default();
                let ip =
                    text.parse::<IpAddr>().ok().or_else(|| text.parse().ok().map(|a: std::net::SocketAddr| a.ip()));
                ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(ip)) != *invert)
            }
        }
    }
}

impl Inputs for Facts<'_> {
    fn text<'s>(&'s self, input: &'s Input) -> Option<Cow<'s, [u8]>> {
        let connection = &self.info.connection;
        let ip = |address: &Address| address.ip().map(|ip| Cow::from(ip.ip().to_string().into_bytes()));
        let port = |address: &Address| address.ip().map(|ip| Cow::from(ip.port().to_string().into_bytes()));
        let joined = |names: &[Box<str>]| (!names.is_empty()).then(|| Cow::from(names.join(",").into_bytes()));
        match input {
            Input::DestinationIp => ip(&connection.local),
            Input::DestinationPort => port(&connection.local),
            Input::SourceIp => ip(&self.info.downstream_remote),
            Input::SourcePort => port(&self.info.downstream_remote),
            Input::DirectSourceIp => ip(&connection.direct_remote),
            Input::ServerName => {
                Some(self.server_name().as_bytes().into()).filter(|name: &Cow<'_, _>| !name.is_empty())
            }
            Input::FilterState(key) => self.info.filter_state.get(key.as_str()).map(|state| Cow::from(&state.text[..])),
            Input::DynamicMetadata { .. } => None,
            Input::UriSans => joined(&self.peer()?.uri_sans),
            Input::DnsSans => joined(&self.peer()?.dns_sans),
            Input::Subject => {
                self.peer().map(|peer| peer.subject.as_bytes().into()).filter(|text: &Cow<'_, _>| !text.is_empty())
            }
            Input::RequestHeader(key) => match &*self.values(key) {
                [] => None,
                [value] => Some(Cow::from(*value)),
                values => Some(values.join(&b","[..]).into()),
            },
        }
    }

    fn metadata(&self, filter: &str, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let first = self.info.dynamic_metadata.get(filter)?.get(first)?;
        rest.iter().try_fold(first, |value, key| value.as_object()?.get(key))
    }
}

/// True if a name may decide. One with a NUL byte is not taken for anybody's, but does not get round a denial either.
fn counts(name: &str, lean: Lean) -> bool {
    lean != Lean::NoMatch || !name.contains('\0')
}

fn is_in(range: &CidrRange, address: &Address) -> bool {
    address.ip().is_some_and(|ip| range.contains(ip.ip()))
}

/// True if one of a certificate's names of the matcher's kind matches.
fn san_matches(SanMatcher { kind, matcher, oid }: &SanMatcher, peer: &Certificate, lean: Lean) -> bool {
    let any = |names: &[Box<str>]| names.iter().any(|name| counts(name, lean) && matcher.matches(&**name));
    match kind {
        SanType::Unspecified => false,
        SanType::Email => any(&peer.email_sans),
        SanType::Uri => any(&peer.uri_sans),
        SanType::IpAddress => peer.ip_sans.iter().any(|ip| matcher.matches(ip.to_string())),
        SanType::OtherName => peer
            .other_name_sans
            .iter()
            .any(|(found, value)| **found == **oid && counts(value, lean) && matcher.matches(&**value)),
        SanType::Dns => match matcher.exact() {
            Some(name) => peer.dns_sans.iter().any(|pattern| san::dns_matches(pattern, name)),
            None => any(&peer.dns_sans),
        },
    }
}
