//! What a route matches.

use crate::{
    Context,
    header_matcher::{CookieMatcher, HeaderMatcher, QueryParameterMatcher},
    metadata::MetadataMatcher,
    percent::RuntimeFractionalPercent,
    string_matcher::{StringMatcher, regex_of},
    uri_template::UriTemplate,
};
use regex::bytes::Regex;
use weft_control_api::envoy::{
    config::route::v3 as pb, extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig,
    r#type::matcher::v3 as matcher,
};

/// A route's conditions; all must hold.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub case_sensitive: bool,
    pub runtime_fraction: Option<RuntimeFractionalPercent>,
    pub headers: Vec<HeaderMatcher>,
    pub query_parameters: Vec<QueryParameterMatcher>,
    pub cookies: Vec<CookieMatcher>,
    pub grpc: bool,
    pub tls: Option<TlsMatch>,
    pub dynamic_metadata: Vec<MetadataMatcher>,
    pub filter_state: Vec<(String, StringMatcher)>,
}

/// The path condition; the query is not part of the path.
#[derive(Clone, Debug)]
pub enum PathMatch {
    Prefix(String),
    Exact(String),
    Regex(Regex),
    /// Any CONNECT request.
    Connect,
    /// The path itself, or below it.
    SeparatedPrefix(String),
    Template(UriTemplate),
}

/// What is asked of the client's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsMatch {
    pub presented: Option<bool>,
    pub validated: Option<bool>,
}

impl RouteMatch {
    /// Reads what a route, or a rule that is matched like one, matches; `None` if a problem was reported.
    pub fn from_proto(p: pb::RouteMatch, cx: &mut Context) -> Option<Self> {
        let pb::RouteMatch {
            case_sensitive,
            runtime_fraction,
            headers,
            query_parameters,
            cookies,
            grpc,
            tls_context,
            dynamic_metadata,
            filter_state,
            path_specifier,
        } = p;
        use pb::route_match::PathSpecifier;
        let path = match path_specifier {
            Some(PathSpecifier::Prefix(prefix)) => Some(PathMatch::Prefix(prefix)),
            Some(PathSpecifier::Path(path)) => Some(PathMatch::Exact(path)),
            Some(PathSpecifier::SafeRegex(p)) => cx.field("safe_regex", |cx| regex_of(p, cx)).map(PathMatch::Regex),
            Some(PathSpecifier::ConnectMatcher(_)) => Some(PathMatch::Connect),
            Some(PathSpecifier::PathSeparatedPrefix(prefix)) => Some(PathMatch::SeparatedPrefix(prefix)),
            Some(PathSpecifier::PathMatchPolicy(p)) => cx.field("path_match_policy", |cx| {
                let any = cx.required("typed_config", p.typed_config)?;
                let UriTemplateMatchConfig { path_template } = cx.unpack("typed_config", &any)?;
                UriTemplate::parse(&path_template)
                    .map_err(|why| {
                        cx.problem_at("typed_config.path_template", format!("found {path_template:?}: {why}"))
                    })
                    .ok()
                    .map(PathMatch::Template)
            }),
            None => {
                cx.problem("one of prefix, path, safe_regex, connect_matcher, path_separated_prefix, path_match_policy is required");
                None
            }
        };
        let runtime_fraction = match runtime_fraction {
            Some(p) => Some(cx.field("runtime_fraction", |cx| RuntimeFractionalPercent::from_proto(p, cx))?),
            None => None,
        };
        Some(Self {
            case_sensitive: case_sensitive.unwrap_or(true),
            runtime_fraction,
            headers: cx.elements("headers", headers, |cx, p| HeaderMatcher::from_proto(p, cx)),
            query_parameters: cx
                .elements("query_parameters", query_parameters, |cx, p| QueryParameterMatcher::from_proto(p, cx)),
            cookies: cx.elements("cookies", cookies, |cx, p| CookieMatcher::from_proto(p, cx)),
            grpc: grpc.is_some(),
            tls: tls_context.map(|p| {
                let pb::route_match::TlsContextMatchOptions { presented, validated } = p;
                TlsMatch { presented, validated }
            }),
            dynamic_metadata: cx
                .elements("dynamic_metadata", dynamic_metadata, |cx, p| MetadataMatcher::from_proto(p, cx)),
            filter_state: cx.elements("filter_state", filter_state, |cx, p| {
                let matcher::FilterStateMatcher { key, matcher } = p;
                match cx.required("matcher", matcher)? {
                    matcher::filter_state_matcher::Matcher::StringMatch(p) => {
                        Some((key, cx.field("string_match", |cx| StringMatcher::from_proto(p, cx))?))
                    }
                    matcher::filter_state_matcher::Matcher::AddressMatch(_) => {
                        cx.problem_at("address_match", "is not supported");
                        None
                    }
                }
            }),
            path: path?,
        })
    }
}
