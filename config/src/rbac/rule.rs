//! One rule of a policy: a permission or a principal.

use crate::{
    Context, address::CidrRange, header_matcher::HeaderMatcher, matching::Scope, metadata::MetadataMatcher,
    string_matcher::StringMatcher, tls::SanMatcher, uri_template::UriTemplate,
};
use std::ops::Range;
use weft_control_api::envoy::{
    config::{core::v3 as core, rbac::v3 as pb},
    extensions::{
        path::r#match::uri_template::v3::UriTemplateMatchConfig,
        rbac::principals::mtls_authenticated::v3::Config as MtlsAuthenticated,
    },
    r#type::matcher::v3 as matcher,
};

pub use pb::MetadataSource;

/// What is asked of a request or connection.
#[derive(Clone, Debug)]
pub enum Rule {
    Any,
    And(Vec<Rule>),
    Or(Vec<Rule>),
    Not(Box<Rule>),
    Header(HeaderMatcher),
    /// The path without query and fragment.
    Path(StringMatcher),
    Template(UriTemplate),
    DestinationIp(CidrRange),
    DestinationPort(u32),
    DestinationPorts(Range<i32>),
    Metadata(MetadataMatcher, MetadataSource),
    RequestedServerName(StringMatcher),
    /// The peer speaks TLS, and one of its URI names, DNS names or its subject matches, if that is asked.
    Authenticated(Option<StringMatcher>),
    /// The peer's certificate was verified, and one of its names matches, if that is asked.
    Verified(Option<SanMatcher>),
    /// The connection's peer, after the PROXY protocol.
    SourceIp(CidrRange),
    /// The socket's peer.
    DirectRemoteIp(CidrRange),
    /// The client, after `x-forwarded-for` had its say.
    RemoteIp(CidrRange),
    FilterState(String, FilterStateTest),
}

/// A test of a value of the filter state.
#[derive(Clone, Debug)]
pub enum FilterStateTest {
    Text(StringMatcher),
    /// It is an address in one of these (or, inverted, in none).
    Address {
        ranges: Vec<CidrRange>,
        invert: bool,
    },
}

impl Rule {
    /// Reads a permission; `None` if a problem was reported.
    pub(super) fn from_permission(p: pb::Permission, scope: Scope, cx: &mut Context) -> Option<Self> {
        use pb::permission::Rule as P;
        let set = |name, p: pb::permission::Set, cx: &mut Context| {
            cx.field(name, |cx| cx.elements("rules", p.rules, |cx, p| Self::from_permission(p, scope, cx)))
        };
        Some(match cx.required("rule", p.rule)? {
            P::AndRules(p) => Self::And(set("and_rules", p, cx)),
            P::OrRules(p) => Self::Or(set("or_rules", p, cx)),
            P::Any(_) => Self::Any,
            P::Header(p) => Self::header(p, scope, cx)?,
            P::UrlPath(p) => Self::path(p, cx)?,
            P::DestinationIp(p) => Self::DestinationIp(range("destination_ip", p, cx)?),
            P::DestinationPort(port) => Self::DestinationPort(port),
            P::DestinationPortRange(p) => {
                let (start, end) = (p.start, p.end);
                for (name, bound) in [("start", start), ("end", end)] {
                    if !(0..=65536).contains(&bound) {
                        cx.problem_at("destination_port_range", format!("range {name} {bound} is out of bounds"));
                    }
                }
                if start >= end {
                    let text = format!("range start {start} cannot be greater or equal than range end {end}");
                    cx.problem_at("destination_port_range", text);
                }
                Self::DestinationPorts(start..end)
            }
            P::Metadata(p) => Self::metadata("metadata", p, MetadataSource::Dynamic, cx)?,
            P::SourcedMetadata(p) => Self::sourced_metadata(p, cx)?,
            P::NotRule(p) => Self::Not(Box::new(cx.field("not_rule", |cx| Self::from_permission(*p, scope, cx))?)),
            P::RequestedServerName(p) => {
                Self::RequestedServerName(cx.field("requested_server_name", |cx| StringMatcher::from_proto(p, cx))?)
            }
            P::Matcher(p) => {
                let found = type_of(&p);
                cx.problem_at("matcher", format!("found {found}, which is not supported"));
                return None;
            }
            P::UriTemplate(p) => cx.field("uri_template", |cx| {
                let core::TypedExtensionConfig { name: _, typed_config } = p;
                let any = cx.required("typed_config", typed_config)?;
                let UriTemplateMatchConfig { path_template } = cx.unpack("typed_config", &any)?;
                let template = UriTemplate::parse(&path_template);
                template.map_err(|why| cx.problem_at("typed_config.path_template", why)).ok().map(Self::Template)
            })?,
        })
    }

    /// Reads a principal; `None` if a problem was reported.
    pub(super) fn from_principal(p: pb::Principal, scope: Scope, cx: &mut Context) -> Option<Self> {
        use pb::principal::Identifier as P;
        let set = |name, p: pb::principal::Set, cx: &mut Context| {
            cx.field(name, |cx| cx.elements("ids", p.ids, |cx, p| Self::from_principal(p, scope, cx)))
        };
        Some(match cx.required("identifier", p.identifier)? {
            P::AndIds(p) => Self::And(set("and_ids", p, cx)),
            P::OrIds(p) => Self::Or(set("or_ids", p, cx)),
            P::Any(_) => Self::Any,
            P::Authenticated(pb::principal::Authenticated { principal_name }) => {
                Self::Authenticated(match principal_name {
                    None => None,
                    Some(p) => Some(cx.field("authenticated.principal_name", |cx| StringMatcher::from_proto(p, cx))?),
                })
            }
            P::SourceIp(p) => Self::SourceIp(range("source_ip", p, cx)?),
            P::DirectRemoteIp(p) => Self::DirectRemoteIp(range("direct_remote_ip", p, cx)?),
            P::RemoteIp(p) => Self::RemoteIp(range("remote_ip", p, cx)?),
            P::Header(p) => Self::header(p, scope, cx)?,
            P::UrlPath(p) => Self::path(p, cx)?,
            P::Metadata(p) => Self::metadata("metadata", p, MetadataSource::Dynamic, cx)?,
            P::SourcedMetadata(p) => Self::sourced_metadata(p, cx)?,
            P::NotId(p) => Self::Not(Box::new(cx.field("not_id", |cx| Self::from_principal(*p, scope, cx))?)),
            P::FilterState(p) => cx.field("filter_state", |cx| Self::filter_state(p, cx))?,
            P::Custom(p) => cx.field("custom", |cx| Self::custom(p, cx))?,
        })
    }

    fn header(
        p: weft_control_api::envoy::config::route::v3::HeaderMatcher,
        scope: Scope,
        cx: &mut Context,
    ) -> Option<Self> {
        cx.field("header", |cx| {
            if scope == Scope::Network {
                cx.problem("Found header rule, which is not supported by the RBAC network filter");
            }
            HeaderMatcher::from_proto(p, cx).map(Self::Header)
        })
    }

    fn path(p: matcher::PathMatcher, cx: &mut Context) -> Option<Self> {
        cx.field("url_path", |cx| {
            let matcher::path_matcher::Rule::Path(p) = cx.required("path", p.rule)?;
            cx.field("path", |cx| StringMatcher::from_proto(p, cx)).map(Self::Path)
        })
    }

    fn metadata(name: &str, p: matcher::MetadataMatcher, source: MetadataSource, cx: &mut Context) -> Option<Self> {
        cx.field(name, |cx| MetadataMatcher::from_proto(p, cx)).map(|matcher| Self::Metadata(matcher, source))
    }

    fn sourced_metadata(p: pb::SourcedMetadata, cx: &mut Context) -> Option<Self> {
        cx.field("sourced_metadata", |cx| {
            let pb::SourcedMetadata { metadata_matcher, metadata_source } = p;
            let source = cx.enumeration("metadata_source", metadata_source);
            let p = cx.required("metadata_matcher", metadata_matcher)?;
            Self::metadata("metadata_matcher", p, source, cx)
        })
    }

    fn filter_state(p: matcher::FilterStateMatcher, cx: &mut Context) -> Option<Self> {
        use matcher::filter_state_matcher::Matcher;
        let matcher::FilterStateMatcher { key, matcher } = p;
        let test = match cx.required("matcher", matcher)? {
            Matcher::StringMatch(p) => {
                FilterStateTest::Text(cx.field("string_match", |cx| StringMatcher::from_proto(p, cx))?)
            }
            Matcher::AddressMatch(matcher::AddressMatcher { ranges, invert_match }) => {
                let ranges =
                    cx.field("address_match", |cx| cx.elements("ranges", ranges, |cx, p| CidrRange::from_xds(p, cx)));
                FilterStateTest::Address { ranges, invert: invert_match }
            }
        };
        Some(Self::FilterState(key, test))
    }

    fn custom(p: core::TypedExtensionConfig, cx: &mut Context) -> Option<Self> {
        let core::TypedExtensionConfig { name: _, typed_config } = p;
        let any = cx.required("typed_config", typed_config)?;
        let MtlsAuthenticated { san_matcher, any_validated_client_certificate } = cx.unpack("typed_config", &any)?;
        cx.field("typed_config", |cx| match (san_matcher, any_validated_client_certificate) {
            (Some(p), false) => {
                cx.field("san_matcher", |cx| SanMatcher::from_proto(p, cx)).map(|san| Self::Verified(Some(san)))
            }
            (None, true) => Some(Self::Verified(None)),
            (Some(_), true) => {
                cx.problem("only one of san_matcher, any_validated_client_certificate may be set");
                None
            }
            (None, false) => {
                cx.problem("did not have any configured validation: one of san_matcher, any_validated_client_certificate must be set");
                None
            }
        })
    }
}

fn range(name: &str, p: core::CidrRange, cx: &mut Context) -> Option<CidrRange> {
    cx.field(name, |cx| CidrRange::from_proto(p, cx))
}

fn type_of(p: &core::TypedExtensionConfig) -> &str {
    p.typed_config.as_ref().and_then(|any| any.type_url.rsplit('/').next()).unwrap_or(&p.name)
}
