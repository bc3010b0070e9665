//! Headers that are one value however many lines they come in: Envoy keeps each of these in one slot, so that several
//! lines are one list. The lists are what the real Envoy 1.40 joins.
//!
//! Called for every request and for every response of an upstream; a head that repeats no header costs one comparison.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Joins the lines of a request's headers.
pub fn join_request(headers: &mut HeaderMap) {
    join(headers, &[BOTH, REQUEST]);
}

/// Joins the lines of a response's headers.
pub fn join_response(headers: &mut HeaderMap) {
    join(headers, &[BOTH, RESPONSE]);
}

fn join(headers: &mut HeaderMap, lists: &[&[&str]]) {
    if headers.len() == headers.keys_len() {
        return;
    }
    let repeated: Vec<HeaderName> = headers
        .keys()
        .filter(|name| headers.get_all(*name).iter().nth(1).is_some())
        .filter(|name| lists.iter().any(|list| list.binary_search(&name.as_str()).is_ok()))
        .cloned()
        .collect();
    for name in repeated {
        let mut joined = Vec::new();
        for value in headers.get_all(&name) {
            if !joined.is_empty() && !value.is_empty() {
                joined.push(b',');
            }
            joined.extend_from_slice(value.as_bytes());
        }
        if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
            headers.insert(name, joined);
        }
    }
}

const BOTH: &[&str] = &[
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "keep-alive",
    "proxy-connection",
    "proxy-status",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-request-id",
];

const REQUEST: &[&str] = &[
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "access-control-request-private-network",
    "authorization",
    "expect",
    "grpc-accept-encoding",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "origin",
    "pragma",
    "referer",
    "te",
    "user-agent",
    "x-client-trace-id",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
];

const RESPONSE: &[&str] = &[
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "age",
    "date",
    "etag",
    "expires",
    "grpc-message",
    "grpc-status",
    "last-modified",
    "location",
    "server",
    "vary",
    "x-envoy-degraded",
    "x-envoy-immediate-health-check-fail",
    "x-envoy-ratelimited",
    "x-envoy-upstream-canary",
    "x-envoy-upstream-healthchecked-cluster",
    "x-envoy-upstream-service-time",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_lines_are_one_list() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("via", "a"), ("via", ""), ("x-a", "1"), ("via", "b"), ("x-a", "2"), ("vary", "x")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        join_request(&mut headers);
        assert_eq!(headers.get_all("via").iter().collect::<Vec<_>>(), ["a,b"]);
        assert_eq!(headers.get_all("x-a").iter().count(), 2);
    }

    /// The look-up is a binary search.
    #[test]
    fn lists_are_sorted() {
        for list in [BOTH, REQUEST, RESPONSE] {
            assert!(list.is_sorted());
        }
    }
}
