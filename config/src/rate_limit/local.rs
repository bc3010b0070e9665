//! Local rate limits: token buckets, of an HTTP filter (`envoy.extensions.filters.http.local_ratelimit.v3`) and a network
//! filter.

use super::{Place, RateLimit, limits};
use crate::{Context, header_value::HeaderValueOption, percent::RuntimeFractionalPercent};
use http::StatusCode;
use std::{collections::HashSet, time::Duration};
use weft_control_api::envoy::{
    config::core::v3 as core,
    extensions::{
        common::ratelimit::v3::{self as common, rate_limit_descriptor::Entry},
        filters::{http::local_ratelimit::v3 as pb, network::local_ratelimit::v3 as network},
    },
    r#type::v3 as types,
};

/// How fast a bucket fills.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

/// A bucket of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// 0: there is never one.
    pub max_tokens: u32,
    /// At least 1.
    pub tokens_per_fill: u32,
    pub fill_interval: Duration,
}

impl TokenBucket {
    fn from_proto(p: types::TokenBucket, cx: &mut Context) -> Option<Self> {
        let types::TokenBucket { max_tokens, tokens_per_fill, fill_interval } = p;
        let fill_interval = cx.duration("fill_interval", fill_interval);
        let fill_interval = cx.required("fill_interval", fill_interval)?;
        if max_tokens > 0 && fill_interval < SHORTEST_INTERVAL {
            cx.problem_at(
                "fill_interval",
                format!("found {fill_interval:?}: local rate limit token bucket fill timer must be >= 50ms"),
            );
        }
        Some(Self { max_tokens, tokens_per_fill: tokens_per_fill.unwrap_or(1).max(1), fill_interval })
    }
}

/// The HTTP filter's configuration, or a route's in its place.
#[derive(Clone, Debug)]
pub struct LocalRateLimit {
    /// `<this>.http_local_rate_limit.*`
    pub stat_prefix: String,
    pub status: StatusCode,
    pub token_bucket: Option<TokenBucket>,
    /// `None`: the filter does nothing.
    pub filter_enabled: Option<RuntimeFractionalPercent>,
    /// `None`: nothing is refused.
    pub filter_enforced: Option<RuntimeFractionalPercent>,
    pub request_headers_to_add_when_not_enforced: Vec<HeaderValueOption>,
    pub response_headers_to_add: Vec<HeaderValueOption>,
    pub descriptors: Vec<LocalDescriptor>,
    /// Which limits of routes and virtual hosts it takes.
    pub stage: u32,
    /// Each connection has buckets of its own.
    pub per_downstream_connection: bool,
    /// `x-ratelimit-*`
    pub rate_limit_headers: bool,
    pub vh_rate_limits: VirtualHostLimits,
    /// A token of the filter's own bucket too, where a descriptor has one.
    pub always_consume_default_token_bucket: bool,
    pub rate_limited_as_resource_exhausted: bool,
    /// In place of those of routes.
    pub rate_limits: Vec<RateLimit>,
    /// Buckets of one descriptor with wildcards.
    pub max_dynamic_descriptors: u32,
    pub enable_retry_after_header: bool,
}

/// A bucket for requests with these entries, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDescriptor {
    /// Key and value; an empty value is any, and has a bucket for each.
    pub entries: Vec<(String, String)>,
    pub token_bucket: TokenBucket,
    /// Counts, and refuses nothing.
    pub shadow_mode: bool,
}

/// Whether a virtual host's limits hold beside its route's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtualHostLimits {
    /// If the route has none.
    Override,
    Include,
    Ignore,
}

impl LocalRateLimit {
    /// `of_route`: it stands at a route or virtual host, and must have a bucket.
    pub fn from_proto(p: pb::LocalRateLimit, of_route: bool, cx: &mut Context) -> Option<Self> {
        let pb::LocalRateLimit {
            stat_prefix,
            status,
            token_bucket,
            filter_enabled,
            filter_enforced,
            request_headers_to_add_when_not_enforced,
            response_headers_to_add,
            descriptors,
            stage,
            local_rate_limit_per_downstream_connection,
            local_cluster_rate_limit,
            enable_x_ratelimit_headers,
            vh_rate_limits,
            always_consume_default_token_bucket,
            rate_limited_as_resource_exhausted,
            rate_limits,
            max_dynamic_descriptors,
            enable_retry_after_header,
        } = p;
        cx.unsupported_if("local_cluster_rate_limit", local_cluster_rate_limit.is_some());
        if of_route && token_bucket.is_none() {
            cx.problem_at("token_bucket", "local rate limit token bucket must be set for per filter configs");
        }
        let fraction = |name: &str, p: Option<core::RuntimeFractionalPercent>, cx: &mut Context| {
            p.and_then(|p| cx.field(name, |cx| RuntimeFractionalPercent::from_proto(p, cx)))
        };
        let mut seen = HashSet::new();
        let descriptors = cx.elements("descriptors", descriptors, |cx, p| {
            let common::LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = p;
            let entries: Vec<_> = entries.into_iter().map(|Entry { key, value }| (key, value)).collect();
            if !seen.insert(entries.clone()) {
                cx.problem_at("entries", "duplicate descriptor in the local rate descriptor");
            }
            let bucket = cx.required("token_bucket", token_bucket)?;
            let token_bucket = cx.field("token_bucket", |cx| TokenBucket::from_proto(bucket, cx))?;
            Some(LocalDescriptor { entries, token_bucket, shadow_mode })
        });
        Some(Self {
            stat_prefix,
            status: error_status(status, StatusCode::TOO_MANY_REQUESTS),
            token_bucket: token_bucket.and_then(|p| cx.field("token_bucket", |cx| TokenBucket::from_proto(p, cx))),
            filter_enabled: fraction("filter_enabled", filter_enabled, cx),
            filter_enforced: fraction("filter_enforced", filter_enforced, cx),
            request_headers_to_add_when_not_enforced: additions(
                "request_headers_to_add_when_not_enforced",
                request_headers_to_add_when_not_enforced,
                cx,
            ),
            response_headers_to_add: additions("response_headers_to_add", response_headers_to_add, cx),
            descriptors,
            stage,
            per_downstream_connection: local_rate_limit_per_downstream_connection,
            rate_limit_headers: match cx.enumeration("enable_x_ratelimit_headers", enable_x_ratelimit_headers) {
                common::XRateLimitHeadersRfcVersion::Off => false,
                common::XRateLimitHeadersRfcVersion::DraftVersion03 => true,
            },
            vh_rate_limits: match cx.enumeration("vh_rate_limits", vh_rate_limits) {
                common::VhRateLimitsOptions::Override => VirtualHostLimits::Override,
                common::VhRateLimitsOptions::Include => VirtualHostLimits::Include,
                common::VhRateLimitsOptions::Ignore => VirtualHostLimits::Ignore,
            },
            always_consume_default_token_bucket: always_consume_default_token_bucket.unwrap_or(true),
            rate_limited_as_resource_exhausted,
            rate_limits: limits(rate_limits, Place::LocalFilter, cx),
            max_dynamic_descriptors: max_dynamic_descriptors.unwrap_or(20).max(1),
            enable_retry_after_header,
        })
    }
}

/// An error's status; what is none is `default`.
pub(super) fn error_status(p: Option<types::HttpStatus>, default: StatusCode) -> StatusCode {
    let code = p.and_then(|types::HttpStatus { code }| u16::try_from(code).ok()).filter(|code| *code >= 400);
    code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(default)
}

pub(super) fn additions(name: &str, p: Vec<core::HeaderValueOption>, cx: &mut Context) -> Vec<HeaderValueOption> {
    cx.elements(name, p, |cx, p| HeaderValueOption::from_proto(p, cx))
}

/// The network filter's configuration: a token a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkLocalRateLimit {
    /// `local_rate_limit.<this>.*`
    pub stat_prefix: String,
    pub token_bucket: TokenBucket,
    /// The runtime key that says whether there is a limit, and what holds without it.
    pub enabled: (String, bool),
    /// Filters with the same key and bucket share it; empty: none do.
    pub share_key: String,
}

impl NetworkLocalRateLimit {
    pub fn from_proto(p: network::LocalRateLimit, cx: &mut Context) -> Option<Self> {
        let network::LocalRateLimit { stat_prefix, token_bucket, runtime_enabled, share_key } = p;
        let bucket = cx.required("token_bucket", token_bucket)?;
        Some(Self {
            stat_prefix,
            token_bucket: cx.field("token_bucket", |cx| TokenBucket::from_proto(bucket, cx))?,
            enabled: match runtime_enabled {
                Some(core::RuntimeFeatureFlag { default_value, runtime_key }) => {
                    (runtime_key, default_value.unwrap_or(true))
                }
                None => (String::new(), true),
            },
            share_key,
        })
    }
}
