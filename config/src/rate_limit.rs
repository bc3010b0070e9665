//! Rate limits as routes, virtual hosts and filters say them (`envoy.config.route.v3.RateLimit`): what descriptors are made
//! of a request, by actions.
//!
//! Read by `route` and by the filters' own configurations in this folder; compiled by the proxy.

mod local;
mod service;

pub use local::*;
pub use service::*;

use crate::{
    Context,
    address::CidrRange,
    cluster::metadata_path,
    header_matcher::{HeaderMatcher, QueryParameterMatcher},
    header_value::HeaderKey,
};
use weft_control_api::envoy::{
    config::route::v3::{self as pb, rate_limit},
    r#type::{matcher::v3::AddressMatcher, v3 as types},
};

/// One limit: the descriptor that its actions make counts.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// The filters that take it: those of the same stage.
    pub stage: u32,
    /// The limit is off while the runtime says so of this key; empty: none.
    pub disable_key: String,
    pub actions: Vec<Action>,
    pub limit: Option<LimitOverride>,
    pub hits_addend: Option<HitsAddend>,
    /// `hits_addend` is given back.
    pub is_negative_hits: bool,
    /// Counts at the end of the stream, and stops nothing.
    pub apply_on_stream_done: bool,
    /// `x-ratelimit-*` in responses, whatever the filter says.
    pub headers: Option<bool>,
}

/// What an action adds to its descriptor, or why it gives the descriptor up.
#[derive(Clone, Debug)]
pub enum Action {
    SourceCluster,
    DestinationCluster,
    RequestHeader {
        name: HeaderKey,
        key: String,
        skip_if_absent: bool,
    },
    QueryParameter {
        name: String,
        key: String,
        skip_if_absent: bool,
    },
    RemoteAddress,
    /// Prefix lengths.
    MaskedRemoteAddress {
        v4: u8,
        v6: u8,
    },
    GenericKey {
        key: String,
        value: String,
    },
    HeaderValueMatch {
        key: String,
        value: String,
        headers: Vec<HeaderMatcher>,
        expect: bool,
    },
    QueryParameterValueMatch {
        key: String,
        value: String,
        parameters: Vec<QueryParameterMatcher>,
        expect: bool,
    },
    RemoteAddressMatch {
        key: String,
        value: String,
        ranges: Vec<CidrRange>,
        invert: bool,
    },
    Metadata {
        key: String,
        from: MetadataSource,
        /// The filter's name, and the keys below.
        path: (String, Vec<String>),
        /// Empty: none.
        default: String,
        skip_if_absent: bool,
    },
}

/// Whose metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataSource {
    Dynamic,
    Route,
    Cluster,
}

/// A limit in place of the rate limit service's own.
#[derive(Clone, Debug)]
pub enum LimitOverride {
    Fixed(Limit),
    /// In dynamic metadata, with `requests_per_unit` and `unit`.
    Dynamic(String, Vec<String>),
}

/// So many requests in each unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub requests_per_unit: u32,
    /// `envoy.type.v3.RateLimitUnit`
    pub unit: i32,
}

impl Limit {
    /// The number of a unit by its name.
    pub fn unit(name: &str) -> Option<i32> {
        types::RateLimitUnit::from_str_name(name).map(|unit| unit as i32)
    }
}

/// How much one request counts; 1 if nothing is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HitsAddend {
    Number(u64),
    /// A format with one operator, compiled by the proxy.
    Format(String),
}

/// Where limits stand, which says what they may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a route or virtual host.
    Route,
    /// In a filter's configuration.
    Filter,
    /// In the local filter's, where nobody asks for other limits.
    LocalFilter,
}

/// Reads the limits in field `rate_limits`.
pub fn limits(p: Vec<pb::RateLimit>, place: Place, cx: &mut Context) -> Vec<RateLimit> {
    cx.elements("rate_limits", p, |cx, p| RateLimit::from_proto(p, place, cx))
}

impl RateLimit {
    fn from_proto(p: pb::RateLimit, place: Place, cx: &mut Context) -> Option<Self> {
        let pb::RateLimit { stage, disable_key, actions, limit, hits_addend, apply_on_stream_done, x_ratelimit_option } =
            p;
        if place != Place::Route && (stage.is_some() || !disable_key.is_empty()) {
            cx.problem("'stage' field and 'disable_key' field are not supported");
        }
        if place == Place::LocalFilter && limit.is_some() {
            cx.problem_at("limit", "is not supported here");
        }
        let (mut addend, mut is_negative_hits) = (None, false);
        if place == Place::Route {
            // As in Envoy: only filters' own limits know it.
            cx.ignored_if("hits_addend", hits_addend.is_some());
        } else if let Some(rate_limit::HitsAddend { number, format, is_negative_hits: negative }) = hits_addend {
            is_negative_hits = negative;
            addend = match (number, format.is_empty()) {
                (Some(number), true) => Some(HitsAddend::Number(number)),
                (None, false) => Some(HitsAddend::Format(format)),
                _ => {
                    cx.problem_at("hits_addend", "must contain either a format or a number");
                    None
                }
            };
        }
        use rate_limit::XRateLimitOption;
        let headers = match cx.enumeration("x_ratelimit_option", x_ratelimit_option) {
            XRateLimitOption::Unspecified => None,
            XRateLimitOption::Off => Some(false),
            XRateLimitOption::DraftVersion03 => Some(true),
        };
        Some(Self {
            stage: stage.unwrap_or(0),
            disable_key,
            actions: cx.elements("actions", actions, |cx, p| Action::from_proto(p, cx)),
            limit: match limit.and_then(|p| p.override_specifier) {
                Some(p) => Some(cx.field("limit", |cx| LimitOverride::from_proto(p, cx))?),
                None => None,
            },
            hits_addend: addend,
            is_negative_hits,
            apply_on_stream_done,
            headers,
        })
    }
}

impl LimitOverride {
    fn from_proto(p: rate_limit::r#override::OverrideSpecifier, cx: &mut Context) -> Option<Self> {
        use rate_limit::r#override::{DynamicMetadata, OverrideSpecifier, RateLimitOverride};
        Some(match p {
            OverrideSpecifier::DynamicMetadata(DynamicMetadata { metadata_key }) => {
                cx.field("dynamic_metadata", |cx| {
                    let key = cx.required("metadata_key", metadata_key)?;
                    let (name, path) = cx.field("metadata_key", |cx| metadata_path(key, cx));
                    Some(Self::Dynamic(name, path))
                })?
            }
            OverrideSpecifier::RateLimit(RateLimitOverride { requests_per_unit, unit }) => {
                Self::Fixed(Limit { requests_per_unit, unit })
            }
        })
    }
}

impl Action {
    fn from_proto(p: rate_limit::Action, cx: &mut Context) -> Option<Self> {
        use rate_limit::action::{self, ActionSpecifier as Specifier};
        let or = |key: String, default: &str| if key.is_empty() { default.to_owned() } else { key };
        // Values are literal, so that none is ever empty.
        let unused = |default: String, cx: &mut Context| cx.ignored_if("default_value", !default.is_empty());
        let Some(specifier) = p.action_specifier else {
            cx.problem("an action is required");
            return None;
        };
        Some(match specifier {
            Specifier::SourceCluster(action::SourceCluster {}) => Self::SourceCluster,
            Specifier::DestinationCluster(action::DestinationCluster {}) => Self::DestinationCluster,
            Specifier::RemoteAddress(action::RemoteAddress {}) => Self::RemoteAddress,
            Specifier::RequestHeaders(p) => cx.field("request_headers", |cx| {
                let action::RequestHeaders { header_name, descriptor_key, skip_if_absent } = p;
                let name = HeaderKey::read("header_name", &header_name, cx)?;
                Some(Self::RequestHeader { name, key: descriptor_key, skip_if_absent })
            })?,
            Specifier::QueryParameters(p) => {
                let action::QueryParameters { query_parameter_name: name, descriptor_key: key, skip_if_absent } = p;
                Self::QueryParameter { name, key, skip_if_absent }
            }
            Specifier::MaskedRemoteAddress(p) => {
                let action::MaskedRemoteAddress { v4_prefix_mask_len, v6_prefix_mask_len } = p;
                let length = |length: Option<u32>, most: u8| length.map_or(most, |n| n.min(u32::from(most)) as u8);
                Self::MaskedRemoteAddress { v4: length(v4_prefix_mask_len, 32), v6: length(v6_prefix_mask_len, 128) }
            }
            Specifier::GenericKey(p) => cx.field("generic_key", |cx| {
                let action::GenericKey { descriptor_value: value, default_value, descriptor_key } = p;
                unused(default_value, cx);
                Self::GenericKey { key: or(descriptor_key, "generic_key"), value }
            }),
            Specifier::HeaderValueMatch(p) => {
                cx.field("header_value_match", |cx| {
                    let action::HeaderValueMatch {
                        descriptor_value,
                        default_value,
                        descriptor_key,
                        expect_match,
                        headers,
                    } = p;
                    unused(default_value, cx);
                    Self::HeaderValueMatch {
                        key: or(descriptor_key, "header_match"),
                        value: descriptor_value,
                        headers: cx.elements("headers", headers, |cx, p| HeaderMatcher::from_proto(p, cx)),
                        expect: expect_match.unwrap_or(true),
                    }
                })
            }
            Specifier::QueryParameterValueMatch(p) => cx.field("query_parameter_value_match", |cx| {
                let action::QueryParameterValueMatch {
                    descriptor_value,
                    default_value,
                    descriptor_key,
                    expect_match,
                    query_parameters,
                } = p;
                unused(default_value, cx);
                Self::QueryParameterValueMatch {
                    key: or(descriptor_key, "query_match"),
                    value: descriptor_value,
                    parameters: cx.elements("query_parameters", query_parameters, |cx, p| {
                        QueryParameterMatcher::from_proto(p, cx)
                    }),
                    expect: expect_match.unwrap_or(true),
                }
            }),
            Specifier::RemoteAddressMatch(p) => cx.field("remote_address_match", |cx| {
                let action::RemoteAddressMatch { descriptor_value, descriptor_key, default_value, address_matcher } = p;
                unused(default_value, cx);
                let AddressMatcher { ranges, invert_match } = cx.required("address_matcher", address_matcher)?;
                let ranges =
                    cx.field("address_matcher", |cx| cx.elements("ranges", ranges, |cx, p| CidrRange::from_xds(p, cx)));
                let key = or(descriptor_key, "remote_address_match");
                Some(Self::RemoteAddressMatch { key, value: descriptor_value, ranges, invert: invert_match })
            })?,
            Specifier::DynamicMetadata(p) => cx.field("dynamic_metadata", |cx| {
                let action::DynamicMetaData { descriptor_key, metadata_key, default_value } = p;
                let key = cx.required("metadata_key", metadata_key)?;
                Some(Self::Metadata {
                    key: descriptor_key,
                    from: MetadataSource::Dynamic,
                    path: cx.field("metadata_key", |cx| metadata_path(key, cx)),
                    default: default_value,
                    skip_if_absent: false,
                })
            })?,
            Specifier::Metadata(p) => cx.field("metadata", |cx| {
                let action::MetaData { descriptor_key, metadata_key, default_value, source, skip_if_absent } = p;
                use action::meta_data::Source;
                let key = cx.required("metadata_key", metadata_key)?;
                let from = match cx.enumeration("source", source) {
                    Source::Dynamic => MetadataSource::Dynamic,
                    Source::RouteEntry => MetadataSource::Route,
                    Source::ClusterEntry => MetadataSource::Cluster,
                    Source::ClusterLocalityEntry => {
                        cx.problem_at("source", "found CLUSTER_LOCALITY_ENTRY, which is not supported");
                        return None;
                    }
                };
                Some(Self::Metadata {
                    key: descriptor_key,
                    from,
                    path: cx.field("metadata_key", |cx| metadata_path(key, cx)),
                    default: default_value,
                    skip_if_absent,
                })
            })?,
            Specifier::Extension(p) => {
                let any = p.typed_config.unwrap_or_default();
                let name = any.type_url.rsplit('/').next().unwrap_or_default();
                cx.problem_at("extension.typed_config", format!("found {name:?}, which is not supported"));
                return None;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(p: pb::RateLimit, place: Place) -> Result<(RateLimit, Vec<String>), usize> {
        let mut cx = Context::new();
        let limit = RateLimit::from_proto(p, place, &mut cx);
        cx.finish(limit).map_err(|problems| problems.len())
    }

    #[test]
    fn what_limits_may_say_depends_on_where_they_stand() {
        let staged = pb::RateLimit { stage: Some(0), ..Default::default() };
        assert!(read(staged.clone(), Place::Route).is_ok());
        assert!(read(staged, Place::Filter).is_err());
        let specifier = rate_limit::r#override::OverrideSpecifier::RateLimit(Default::default());
        let limit = rate_limit::Override { override_specifier: Some(specifier) };
        let with_limit = pb::RateLimit { limit: Some(limit), ..Default::default() };
        assert!(read(with_limit.clone(), Place::Filter).is_ok());
        assert!(read(with_limit, Place::LocalFilter).is_err());
        let hits = |number, format: &str| pb::RateLimit {
            hits_addend: Some(rate_limit::HitsAddend { number, format: format.into(), is_negative_hits: false }),
            ..Default::default()
        };
        let (of_route, ignored) = read(hits(Some(2), ""), Place::Route).expect("valid");
        assert_eq!((of_route.hits_addend, &ignored[..]), (None, &["hits_addend".to_owned()][..]));
        let (of_filter, _) = read(hits(Some(2), ""), Place::Filter).expect("valid");
        assert_eq!(of_filter.hits_addend, Some(HitsAddend::Number(2)));
        assert!(read(hits(Some(2), "%REQ(a)%"), Place::Filter).is_err());
        assert!(read(hits(None, ""), Place::LocalFilter).is_err());
    }
}
