//! The header names that Envoy gives a meaning, as constants, and what is asked and written with them for every message.

use http::{HeaderMap, HeaderName, HeaderValue};

macro_rules! names {
    ($($constant:ident $name:literal,)*) => {
        $(#[doc = concat!("`", $name, "`")] pub const $constant: HeaderName = HeaderName::from_static($name);)*
    };
}

names! {
    FORWARDED_FOR "x-forwarded-for",
    FORWARDED_HOST "x-forwarded-host",
    FORWARDED_PORT "x-forwarded-port",
    FORWARDED_PROTO "x-forwarded-proto",
    FORWARDED_CLIENT_CERT "x-forwarded-client-cert",
    REQUEST_ID "x-request-id",
    KEEP_ALIVE "keep-alive",
    PROXY_CONNECTION "proxy-connection",
    GRPC_STATUS "grpc-status",
    GRPC_MESSAGE "grpc-message",
    GRPC_TIMEOUT "grpc-timeout",
    ENVOY_ATTEMPT_COUNT "x-envoy-attempt-count",
    ENVOY_DECORATOR_OPERATION "x-envoy-decorator-operation",
    ENVOY_DEGRADED "x-envoy-degraded",
    ENVOY_DOWNSTREAM_SERVICE_CLUSTER "x-envoy-downstream-service-cluster",
    ENVOY_DOWNSTREAM_SERVICE_NODE "x-envoy-downstream-service-node",
    ENVOY_DROP_OVERLOAD "x-envoy-drop-overload",
    ENVOY_EXPECTED_RQ_TIMEOUT_MS "x-envoy-expected-rq-timeout-ms",
    ENVOY_EXTERNAL_ADDRESS "x-envoy-external-address",
    ENVOY_FORCE_TRACE "x-envoy-force-trace",
    ENVOY_HEDGE_ON_PER_TRY_TIMEOUT "x-envoy-hedge-on-per-try-timeout",
    ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL "x-envoy-immediate-health-check-fail",
    ENVOY_INTERNAL "x-envoy-internal",
    ENVOY_IP_TAGS "x-envoy-ip-tags",
    ENVOY_IS_TIMEOUT_RETRY "x-envoy-is-timeout-retry",
    ENVOY_LOCAL_OVERLOADED "x-envoy-local-overloaded",
    ENVOY_MAX_RETRIES "x-envoy-max-retries",
    ENVOY_ORIGINAL_DST_HOST "x-envoy-original-dst-host",
    ENVOY_ORIGINAL_HOST "x-envoy-original-host",
    ENVOY_ORIGINAL_METHOD "x-envoy-original-method",
    ENVOY_ORIGINAL_PATH "x-envoy-original-path",
    ENVOY_ORIGINAL_URL "x-envoy-original-url",
    ENVOY_OVERLOADED "x-envoy-overloaded",
    ENVOY_RATELIMITED "x-envoy-ratelimited",
    ENVOY_RETRIABLE_HEADER_NAMES "x-envoy-retriable-header-names",
    ENVOY_RETRIABLE_STATUS_CODES "x-envoy-retriable-status-codes",
    ENVOY_RETRY_GRPC_ON "x-envoy-retry-grpc-on",
    ENVOY_RETRY_ON "x-envoy-retry-on",
    ENVOY_UNCONDITIONAL_DROP_OVERLOAD "x-envoy-unconditional-drop-overload",
    ENVOY_UPSTREAM_ALT_STAT_NAME "x-envoy-upstream-alt-stat-name",
    ENVOY_UPSTREAM_CANARY "x-envoy-upstream-canary",
    ENVOY_UPSTREAM_HEALTHCHECKED_CLUSTER "x-envoy-upstream-healthchecked-cluster",
    ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS "x-envoy-upstream-rq-per-try-timeout-ms",
    ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE "x-envoy-upstream-rq-timeout-alt-response",
    ENVOY_UPSTREAM_RQ_TIMEOUT_MS "x-envoy-upstream-rq-timeout-ms",
    ENVOY_UPSTREAM_SERVICE_TIME "x-envoy-upstream-service-time",
    ENVOY_UPSTREAM_STREAM_DURATION_MS "x-envoy-upstream-stream-duration-ms",
}

/// True if there is any header that only concerns one connection. A pass over the names of a usual message costs less
/// than two searches for names that are not there.
pub fn has_connection_headers(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        matches!(
            name.as_str(),
            "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
        )
    })
}

/// True if there is any of Envoy's own headers.
pub fn has_envoy_headers(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("x-envoy-"))
}

/// A number as a header's value; small ones, and the default timeout, without an allocation.
pub fn number(value: u64) -> HeaderValue {
    const SMALL: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match value {
        15_000 => HeaderValue::from_static("15000"),
        _ => usize::try_from(value)
            .ok()
            .and_then(|value| SMALL.get(value))
            .map_or_else(|| HeaderValue::from(value), |text| HeaderValue::from_static(text)),
    }
}
