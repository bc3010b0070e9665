//! Global rate limits: those that a rate limit service decides about (`envoy.extensions.filters.http.ratelimit.v3` and the
//! network filter).

use super::{
    Place, RateLimit, VirtualHostLimits, limits,
    local::{additions, error_status},
};
use crate::{Context, GrpcService, header_value::HeaderValueOption, percent::RuntimeFractionalPercent};
use http::StatusCode;
use std::time::Duration;
use weft_control_api::envoy::{
    config::{core::v3 as core, ratelimit::v3::RateLimitServiceConfig},
    extensions::{
        common::ratelimit::v3::{self as common, rate_limit_descriptor::Entry},
        filters::{http::ratelimit::v3 as pb, network::ratelimit::v3 as network},
    },
};

/// How long a service may think.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(20);

/// The HTTP filter's configuration.
#[derive(Clone, Debug)]
pub struct GlobalRateLimit {
    pub domain: String,
    /// Which limits of routes and virtual hosts it takes.
    pub stage: u32,
    /// Internal requests only, external ones only, or both.
    pub requests: RequestKind,
    pub timeout: Duration,
    /// What cannot be decided is refused.
    pub failure_mode_deny: bool,
    /// In place of `failure_mode_deny`: of the requests that cannot be decided, those that are refused.
    pub failure_mode_deny_percent: Option<RuntimeFractionalPercent>,
    pub rate_limited_as_resource_exhausted: bool,
    pub service: GrpcService,
    /// `x-ratelimit-*`
    pub rate_limit_headers: bool,
    /// `x-envoy-ratelimited`
    pub rate_limited_header: bool,
    pub rate_limited_status: StatusCode,
    pub response_headers_to_add: Vec<HeaderValueOption>,
    pub status_on_error: StatusCode,
    /// `cluster.NAME.ratelimit.<this>.*`; empty: without it.
    pub stat_prefix: String,
    pub filter_enabled: Option<RuntimeFractionalPercent>,
    pub filter_enforced: Option<RuntimeFractionalPercent>,
    /// In place of those of routes.
    pub rate_limits: Vec<RateLimit>,
    /// Where the service's dynamic metadata goes.
    pub metadata_namespace: String,
    pub enable_retry_after_header: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    Internal,
    External,
    Both,
}

/// What a route or virtual host says of the HTTP filter.
#[derive(Clone, Debug)]
pub struct GlobalRateLimitRoute {
    pub vh_rate_limits: VirtualHostLimits,
    pub rate_limits: Vec<RateLimit>,
    /// Empty: the filter's.
    pub domain: String,
}

/// The network filter's configuration: one question a connection.
#[derive(Clone, Debug)]
pub struct NetworkRateLimit {
    /// `ratelimit.<this>.*`
    pub stat_prefix: String,
    pub domain: String,
    /// Keys and values; the values are formats, compiled by the proxy.
    pub descriptors: Vec<Vec<(String, String)>>,
    pub timeout: Duration,
    pub failure_mode_deny: bool,
    pub service: GrpcService,
}

fn service(p: Option<RateLimitServiceConfig>, cx: &mut Context) -> Option<GrpcService> {
    let RateLimitServiceConfig { grpc_service, transport_api_version } = cx.required("rate_limit_service", p)?;
    cx.field("rate_limit_service", |cx| {
        if cx.enumeration::<core::ApiVersion>("transport_api_version", transport_api_version) == core::ApiVersion::V2 {
            cx.problem_at("transport_api_version", "found V2, allowed: V3");
        }
        let grpc = cx.required("grpc_service", grpc_service)?;
        cx.field("grpc_service", |cx| GrpcService::from_proto(grpc, cx))
    })
}

impl GlobalRateLimit {
    pub fn from_proto(p: pb::RateLimit, cx: &mut Context) -> Option<Self> {
        let pb::RateLimit {
            domain,
            stage,
            request_type,
            timeout,
            failure_mode_deny,
            rate_limited_as_resource_exhausted,
            rate_limit_service,
            enable_x_ratelimit_headers,
            disable_x_envoy_ratelimited_header,
            rate_limited_status,
            response_headers_to_add,
            status_on_error,
            stat_prefix,
            filter_enabled,
            filter_enforced,
            failure_mode_deny_percent,
            rate_limits,
            metadata_namespace,
            enable_retry_after_header,
        } = p;
        let fraction = |name: &str, p: Option<core::RuntimeFractionalPercent>, cx: &mut Context| {
            p.and_then(|p| cx.field(name, |cx| RuntimeFractionalPercent::from_proto(p, cx)))
        };
        use pb::rate_limit::XRateLimitHeadersRfcVersion;
        let any_status = status_on_error
            .and_then(|status| u16::try_from(status.code).ok())
            .and_then(|code| StatusCode::from_u16(code).ok());
        Some(Self {
            domain,
            stage,
            requests: match request_type.as_str() {
                "internal" => RequestKind::Internal,
                "external" => RequestKind::External,
                _ => RequestKind::Both,
            },
            timeout: cx.duration("timeout", timeout).unwrap_or(DEFAULT_TIMEOUT),
            failure_mode_deny,
            failure_mode_deny_percent: fraction("failure_mode_deny_percent", failure_mode_deny_percent, cx),
            rate_limited_as_resource_exhausted,
            service: service(rate_limit_service, cx)?,
            rate_limit_headers: match cx.enumeration("enable_x_ratelimit_headers", enable_x_ratelimit_headers) {
                XRateLimitHeadersRfcVersion::Off => false,
                XRateLimitHeadersRfcVersion::DraftVersion03 => true,
            },
            rate_limited_header: !disable_x_envoy_ratelimited_header,
            rate_limited_status: error_status(rate_limited_status, StatusCode::TOO_MANY_REQUESTS),
            response_headers_to_add: additions("response_headers_to_add", response_headers_to_add, cx),
            status_on_error: any_status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            stat_prefix,
            filter_enabled: fraction("filter_enabled", filter_enabled, cx),
            filter_enforced: fraction("filter_enforced", filter_enforced, cx),
            rate_limits: limits(rate_limits, Place::Filter, cx),
            metadata_namespace: if metadata_namespace.is_empty() {
                "envoy.filters.http.ratelimit".to_owned()
            } else {
                metadata_namespace
            },
            enable_retry_after_header,
        })
    }
}

impl GlobalRateLimitRoute {
    pub fn from_proto(p: pb::RateLimitPerRoute, cx: &mut Context) -> Self {
        let pb::RateLimitPerRoute { vh_rate_limits, override_option, rate_limits, domain } = p;
        // Nothing reads it in Envoy either.
        cx.ignored_if("override_option", override_option != 0);
        use pb::rate_limit_per_route::VhRateLimitsOptions;
        Self {
            vh_rate_limits: match cx.enumeration("vh_rate_limits", vh_rate_limits) {
                VhRateLimitsOptions::Override => VirtualHostLimits::Override,
                VhRateLimitsOptions::Include => VirtualHostLimits::Include,
                VhRateLimitsOptions::Ignore => VirtualHostLimits::Ignore,
            },
            rate_limits: limits(rate_limits, Place::Filter, cx),
            domain,
        }
    }
}

impl NetworkRateLimit {
    pub fn from_proto(p: network::RateLimit, cx: &mut Context) -> Option<Self> {
        let network::RateLimit { stat_prefix, domain, descriptors, timeout, failure_mode_deny, rate_limit_service } = p;
        let descriptors = cx.elements("descriptors", descriptors, |cx, p| {
            let common::RateLimitDescriptor { entries, limit, hits_addend, is_negative_hits } = p;
            // As in Envoy: what goes to the service are the entries.
            cx.ignored_if("limit", limit.is_some());
            cx.ignored_if("hits_addend", hits_addend.is_some());
            cx.ignored_if("is_negative_hits", is_negative_hits);
            Some(entries.into_iter().map(|Entry { key, value }| (key, value)).collect())
        });
        Some(Self {
            stat_prefix,
            domain,
            descriptors,
            timeout: cx.duration("timeout", timeout).unwrap_or(DEFAULT_TIMEOUT),
            failure_mode_deny,
            service: service(rate_limit_service, cx)?,
        })
    }
}
