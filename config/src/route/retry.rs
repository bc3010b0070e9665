//! When a failed try is made again, and where (`envoy.config.route.v3.RetryPolicy`, `HedgePolicy`).

use crate::{Context, header_matcher::HeaderMatcher, metadata};
use http::HeaderName;
use serde_json::{Map, Value};
use std::{ops::BitOr, time::Duration};
use weft_control_api::envoy::{
    config::route::v3 as pb,
    extensions::retry::{
        host::omit_host_metadata::v3::OmitHostMetadataConfig,
        priority::previous_priorities::v3::PreviousPrioritiesConfig,
    },
};

/// A retry policy.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    pub retry_on: RetryOn,
    /// Default 1.
    pub num_retries: u32,
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    pub retriable_status_codes: Vec<u16>,
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Where there are some, one must match for anything to be tried again.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// Default 25 ms, and ten times that at the most.
    pub base_interval: Duration,
    pub max_interval: Duration,
    pub rate_limited: Option<RateLimitedBackOff>,
    pub host_predicates: Vec<RetryHostPredicate>,
    /// How often a host that the predicates do not want is passed over, at the most. Default 1.
    pub host_selection_max_attempts: u32,
    pub priority: Option<PreviousPriorities>,
}

/// A set of conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

impl RetryOn {
    pub const SERVER_ERROR: Self = Self(1);
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    pub const RESET: Self = Self(1 << 2);
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    pub const REFUSED_STREAM: Self = Self(1 << 5);
    pub const RETRIABLE_4XX: Self = Self(1 << 6);
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 7);
    pub const RETRIABLE_HEADERS: Self = Self(1 << 8);
    pub const ENVOY_RATE_LIMITED: Self = Self(1 << 9);
    pub const GRPC_CANCELLED: Self = Self(1 << 10);
    pub const GRPC_DEADLINE_EXCEEDED: Self = Self(1 << 11);
    pub const GRPC_INTERNAL: Self = Self(1 << 12);
    pub const GRPC_RESOURCE_EXHAUSTED: Self = Self(1 << 13);
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 14);
    /// Means nothing without HTTP/3, and is no mistake.
    const HTTP3_POST_CONNECT_FAILURE: Self = Self(1 << 15);

    const HTTP: [(&str, Self); 11] = [
        ("5xx", Self::SERVER_ERROR),
        ("gateway-error", Self::GATEWAY_ERROR),
        ("reset", Self::RESET),
        ("reset-before-request", Self::RESET_BEFORE_REQUEST),
        ("connect-failure", Self::CONNECT_FAILURE),
        ("refused-stream", Self::REFUSED_STREAM),
        ("retriable-4xx", Self::RETRIABLE_4XX),
        ("retriable-status-codes", Self::RETRIABLE_STATUS_CODES),
        ("retriable-headers", Self::RETRIABLE_HEADERS),
        ("envoy-ratelimited", Self::ENVOY_RATE_LIMITED),
        ("http3-post-connect-failure", Self::HTTP3_POST_CONNECT_FAILURE),
    ];
    const GRPC: [(&str, Self); 5] = [
        ("cancelled", Self::GRPC_CANCELLED),
        ("deadline-exceeded", Self::GRPC_DEADLINE_EXCEEDED),
        ("internal", Self::GRPC_INTERNAL),
        ("resource-exhausted", Self::GRPC_RESOURCE_EXHAUSTED),
        ("unavailable", Self::GRPC_UNAVAILABLE),
    ];

    /// Reads `x-envoy-retry-on`: the known words, and whether there are only such.
    pub fn http(text: &str) -> (Self, bool) {
        Self::words(text, &Self::HTTP)
    }

    /// Reads `x-envoy-retry-grpc-on`.
    pub fn grpc(text: &str) -> (Self, bool) {
        Self::words(text, &Self::GRPC)
    }

    fn words(text: &str, known: &[(&str, Self)]) -> (Self, bool) {
        let mut all_known = true;
        let set = text.split(',').fold(Self::default(), |set, word| {
            match known.iter().find(|(name, _)| *name == word.trim()) {
                Some((_, one)) => set | *one,
                None => {
                    all_known = false;
                    set
                }
            }
        });
        (set, all_known)
    }

    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// True if it has one of `others`.
    pub fn has(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

impl BitOr for RetryOn {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A wait that the upstream asks for.
#[derive(Clone, Debug)]
pub struct RateLimitedBackOff {
    /// The first that gives a wait within the limit counts.
    pub reset_headers: Vec<ResetHeader>,
    /// Default 300 s.
    pub max_interval: Duration,
}

#[derive(Clone, Debug)]
pub struct ResetHeader {
    pub name: HeaderName,
    /// Seconds since 1970 instead of seconds from now.
    pub is_timestamp: bool,
}

/// A host that a retry does not go to.
#[derive(Clone, Debug)]
pub enum RetryHostPredicate {
    /// It was tried already.
    PreviousHosts,
    OmitCanary,
    /// It has all of this in its metadata `envoy.lb`.
    OmitLabels(Map<String, Value>),
}

/// Priorities that were tried count for nothing.
#[derive(Clone, Copy, Debug)]
pub struct PreviousPriorities {
    /// After so many tries each.
    pub update_frequency: u32,
}

impl RetryPolicy {
    pub(super) fn from_proto(p: pb::RetryPolicy, cx: &mut Context) -> Option<Self> {
        let pb::RetryPolicy {
            retry_on,
            num_retries,
            per_try_timeout,
            per_try_idle_timeout,
            retry_priority,
            retry_host_predicate,
            retry_options_predicates,
            host_selection_retry_max_attempts,
            retriable_status_codes,
            retry_back_off,
            rate_limited_retry_back_off,
            retriable_headers,
            retriable_request_headers,
            refresh_cluster_on_retry,
        } = p;
        cx.unsupported_if("retry_options_predicates", !retry_options_predicates.is_empty());
        cx.unsupported_if("refresh_cluster_on_retry", refresh_cluster_on_retry);
        let mut base_interval = Duration::from_millis(25);
        let mut max_interval = None;
        if let Some(pb::retry_policy::RetryBackOff { base_interval: base, max_interval: max }) = retry_back_off {
            cx.field("retry_back_off", |cx| {
                base_interval =
                    cx.duration("base_interval", base).map_or(base_interval, |d| d.max(Duration::from_millis(1)));
                max_interval = cx.duration("max_interval", max);
                if max_interval.is_some_and(|max| max < base_interval) {
                    cx.problem_at("max_interval", "must be greater than or equal to the base_interval");
                }
            });
        }
        let words: Vec<_> = retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        // Envoy passes over words that it does not know, so a typing error is listed rather than refused.
        cx.ignored_if("retry_on", words.iter().any(|word| !RetryOn::http(word).1 && !RetryOn::grpc(word).1));
        Some(Self {
            retry_on: RetryOn::http(&retry_on).0 | RetryOn::grpc(&retry_on).0,
            num_retries: num_retries.unwrap_or(1),
            per_try_timeout: cx.duration("per_try_timeout", per_try_timeout),
            per_try_idle_timeout: cx.duration("per_try_idle_timeout", per_try_idle_timeout),
            retriable_status_codes: retriable_status_codes
                .into_iter()
                .filter_map(|code| u16::try_from(code).ok())
                .collect(),
            retriable_headers: cx
                .elements("retriable_headers", retriable_headers, |cx, p| HeaderMatcher::from_proto(p, cx)),
            retriable_request_headers: cx.elements("retriable_request_headers", retriable_request_headers, |cx, p| {
                HeaderMatcher::from_proto(p, cx)
            }),
            base_interval,
            max_interval: max_interval.unwrap_or(base_interval * 10),
            rate_limited: rate_limited_retry_back_off
                .and_then(|p| cx.field("rate_limited_retry_back_off", |cx| RateLimitedBackOff::from_proto(p, cx))),
            host_predicates: cx
                .elements("retry_host_predicate", retry_host_predicate, |cx, p| RetryHostPredicate::from_proto(p, cx)),
            host_selection_max_attempts: match host_selection_retry_max_attempts {
                0 => 1,
                n => u32::try_from(n).unwrap_or(1),
            },
            priority: retry_priority
                .and_then(|p| cx.field("retry_priority", |cx| PreviousPriorities::from_proto(p, cx))),
        })
    }
}

impl RateLimitedBackOff {
    fn from_proto(p: pb::retry_policy::RateLimitedRetryBackOff, cx: &mut Context) -> Option<Self> {
        use pb::retry_policy::ResetHeaderFormat as Format;
        let pb::retry_policy::RateLimitedRetryBackOff { reset_headers, max_interval } = p;
        Some(Self {
            reset_headers: cx.elements("reset_headers", reset_headers, |cx, p| {
                let pb::retry_policy::ResetHeader { name, format } = p;
                let is_timestamp = cx.enumeration::<Format>("format", format) == Format::UnixTimestamp;
                match HeaderName::try_from(&name) {
                    Ok(name) => Some(ResetHeader { name, is_timestamp }),
                    Err(_) => {
                        cx.problem_at("name", format!("found {name:?}, which is no header name"));
                        None
                    }
                }
            }),
            max_interval: cx.duration("max_interval", max_interval).unwrap_or(Duration::from_secs(300)),
        })
    }
}

impl RetryHostPredicate {
    fn from_proto(p: pb::retry_policy::RetryHostPredicate, cx: &mut Context) -> Option<Self> {
        let pb::retry_policy::RetryHostPredicate { name: _, config_type } = p;
        let Some(pb::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any)) = config_type else {
            cx.problem_at("typed_config", "is required");
            return None;
        };
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" => Some(Self::PreviousHosts),
            "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate" => Some(Self::OmitCanary),
            "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig" => {
                let OmitHostMetadataConfig { metadata_match } = cx.unpack("typed_config", &any)?;
                let mut found =
                    cx.field("typed_config", |cx| metadata::from_proto("metadata_match", metadata_match, cx));
                let labels = found.remove("envoy.lb").unwrap_or_default();
                // No other metadata says what a host is in load balancing.
                cx.ignored_if("typed_config.metadata_match", !found.is_empty());
                Some(Self::OmitLabels(labels))
            }
            other => {
                cx.problem_at("typed_config", format!("found {other:?}, which is not supported"));
                None
            }
        }
    }
}

impl PreviousPriorities {
    fn from_proto(p: pb::retry_policy::RetryPriority, cx: &mut Context) -> Option<Self> {
        let pb::retry_policy::RetryPriority { name: _, config_type } = p;
        let Some(pb::retry_policy::retry_priority::ConfigType::TypedConfig(any)) = config_type else {
            cx.problem_at("typed_config", "is required");
            return None;
        };
        let PreviousPrioritiesConfig { update_frequency } = cx.unpack("typed_config", &any)?;
        match u32::try_from(update_frequency) {
            Ok(update_frequency @ 1..) => Some(Self { update_frequency }),
            _ => {
                cx.problem_at("typed_config.update_frequency", format!("found {update_frequency}, must be at least 1"));
                None
            }
        }
    }
}

/// Reads `hedge_policy`: whether a try that takes too long is left running beside the next.
pub(super) fn hedge_on_per_try_timeout(p: pb::HedgePolicy, cx: &mut Context) -> bool {
    let pb::HedgePolicy { initial_requests, additional_request_chance, hedge_on_per_try_timeout } = p;
    cx.field("hedge_policy", |cx| {
        // Envoy reads and forgets these two.
        cx.unsupported_if("initial_requests", initial_requests.is_some_and(|n| n > 1));
        cx.unsupported_if("additional_request_chance", additional_request_chance.is_some());
    });
    hedge_on_per_try_timeout
}
