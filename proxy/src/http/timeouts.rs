//! How long a request may take: the route's timeouts, the request's own headers, and gRPC's deadline.

use super::{RequestHead, grpc, header_names::*};
use http::{HeaderMap, HeaderName};
use std::time::Duration;
use weft_config::route::RetryOn;

/// A request's timeouts; zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the end of the request to the end of the response.
    pub route: Duration,
    pub per_try: Duration,
    pub per_try_idle: Duration,
    /// How long the exchange with the upstream may take, if the request says so itself.
    pub upstream_stream: Option<Duration>,
    /// A timeout is answered with 204 instead of 504.
    pub alt_response: bool,
    /// A try that times out is not given up while another is under way.
    pub hedges: bool,
}

/// What the route and the router say about timeouts.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeoutPolicy {
    pub route: Duration,
    pub per_try: Duration,
    pub per_try_idle: Duration,
    /// Deprecated gRPC options of the route.
    pub max_grpc_timeout: Option<Duration>,
    pub grpc_timeout_offset: Option<Duration>,
    /// The route has `max_stream_duration`, which puts the two above out of force.
    pub has_max_stream_duration: bool,
    pub respect_expected: bool,
    pub hedge_on_per_try_timeout: bool,
    /// Write no `x-envoy-expected-rq-timeout-ms`.
    pub suppress_envoy_headers: bool,
}

fn milliseconds(headers: &HeaderMap, name: HeaderName) -> Option<Duration> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok().map(Duration::from_millis)
}

/// Decides the timeouts and rewrites the headers that tell of them.
pub fn decide(head: &mut RequestHead, policy: &TimeoutPolicy, is_grpc: bool) -> Timeouts {
    let headers = &mut head.headers;
    let mut timeouts = Timeouts {
        per_try: policy.per_try,
        per_try_idle: policy.per_try_idle,
        hedges: policy.hedge_on_per_try_timeout,
        ..Timeouts::default()
    };
    if !policy.has_max_stream_duration {
        timeouts.route = match policy.max_grpc_timeout.filter(|_| is_grpc) {
            Some(most) => {
                let mut asked = grpc::timeout(headers).unwrap_or_default();
                // The offset must not turn a short timeout into none.
                if let Some(offset) = policy.grpc_timeout_offset.filter(|offset| *offset < asked) {
                    asked -= offset;
                }
                if !most.is_zero() && (asked.is_zero() || asked > most) { most } else { asked }
            }
            None => policy.route,
        };
    }
    if has_envoy_headers(headers) {
        ask(headers, &mut timeouts, policy);
    }
    if !timeouts.route.is_zero() && timeouts.per_try >= timeouts.route {
        timeouts.per_try = Duration::ZERO;
    }
    tell(headers, &timeouts, policy, is_grpc, Duration::ZERO);
    timeouts
}

/// The first of `names` whose value is not what it has to be.
pub fn malformed<'n>(headers: &HeaderMap, names: &'n [HeaderName]) -> Option<&'n HeaderName> {
    names.iter().find(|name| {
        let Some(value) = headers.get(*name) else { return false };
        let text = value.to_str().unwrap_or_default();
        !match name.as_str() {
            "x-envoy-retry-on" => RetryOn::http(text).1,
            "x-envoy-retry-grpc-on" => RetryOn::grpc(text).1,
            _ => text.trim().parse::<u64>().is_ok(),
        }
    })
}

/// What the request's own headers ask for.
fn ask(headers: &mut HeaderMap, timeouts: &mut Timeouts, policy: &TimeoutPolicy) {
    let expected = policy.respect_expected.then(|| milliseconds(headers, ENVOY_EXPECTED_RQ_TIMEOUT_MS)).flatten();
    if let Some(expected) = expected {
        timeouts.route = expected;
    } else if let Some(asked) = milliseconds(headers, ENVOY_UPSTREAM_RQ_TIMEOUT_MS) {
        timeouts.route = asked;
    }
    headers.remove(ENVOY_UPSTREAM_RQ_TIMEOUT_MS);
    if headers.contains_key(ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS) {
        if let Some(asked) = milliseconds(headers, ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS) {
            timeouts.per_try = asked;
        }
        headers.remove(ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS);
    }
    timeouts.upstream_stream = milliseconds(headers, ENVOY_UPSTREAM_STREAM_DURATION_MS);
    timeouts.alt_response = headers.contains_key(ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE);
    match headers.get(ENVOY_HEDGE_ON_PER_TRY_TIMEOUT).map(|value| value.as_bytes()) {
        Some(b"true") => timeouts.hedges = true,
        Some(b"false") => timeouts.hedges = false,
        _ => {}
    }
    // These are for this proxy alone; those that ask for retries are taken out where retries are decided.
    for name in
        [ENVOY_UPSTREAM_ALT_STAT_NAME, ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE, ENVOY_UPSTREAM_STREAM_DURATION_MS]
    {
        headers.remove(name);
    }
}

/// Writes the expected timeout into the headers, after `elapsed` of the route's.
pub fn tell(headers: &mut HeaderMap, timeouts: &Timeouts, policy: &TimeoutPolicy, is_grpc: bool, elapsed: Duration) {
    let mut expected = timeouts.per_try;
    if expected.is_zero() || timeouts.hedges {
        expected = timeouts.route;
    }
    if expected.is_zero() {
        return;
    }
    if !timeouts.route.is_zero() {
        // None left would read as no limit.
        expected = expected.min(timeouts.route.saturating_sub(elapsed)).max(Duration::from_millis(1));
    }
    let milliseconds = expected.as_millis() as u64;
    if !policy.suppress_envoy_headers {
        headers.insert(ENVOY_EXPECTED_RQ_TIMEOUT_MS, number(milliseconds));
    }
    if is_grpc && !policy.has_max_stream_duration && policy.max_grpc_timeout.is_some() {
        grpc::set_timeout(headers, expected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Method};

    fn decided(
        policy: TimeoutPolicy,
        headers: &[(&'static str, &'static str)],
        is_grpc: bool,
    ) -> (u128, u128, Option<String>) {
        let mut head = RequestHead::new(Method::GET, "/");
        for (name, value) in headers {
            head.headers.insert(*name, HeaderValue::from_static(value));
        }
        let timeouts = decide(&mut head, &policy, is_grpc);
        let expected = head.headers.get(ENVOY_EXPECTED_RQ_TIMEOUT_MS).map(|v| v.to_str().unwrap().to_owned());
        (timeouts.route.as_millis(), timeouts.per_try.as_millis(), expected)
    }

    #[test]
    fn headers_override_the_route() {
        let ms = Duration::from_millis;
        let policy = TimeoutPolicy { route: ms(15000), per_try: ms(300), ..TimeoutPolicy::default() };
        assert_eq!(decided(policy, &[], false), (15000, 300, Some("300".into())));
        assert_eq!(decided(policy, &[("x-envoy-upstream-rq-timeout-ms", "100")], false), (100, 0, Some("100".into())));
        assert_eq!(decided(policy, &[("x-envoy-upstream-rq-timeout-ms", "0")], false), (0, 300, Some("300".into())));
        assert_eq!(
            decided(policy, &[("x-envoy-upstream-rq-timeout-ms", "x")], false),
            (15000, 300, Some("300".into()))
        );
        assert_eq!(
            decided(policy, &[("x-envoy-expected-rq-timeout-ms", "9")], false),
            (15000, 300, Some("300".into()))
        );
        let trusting = TimeoutPolicy { respect_expected: true, ..policy };
        assert_eq!(decided(trusting, &[("x-envoy-expected-rq-timeout-ms", "9")], false), (9, 0, Some("9".into())));
        let silent = TimeoutPolicy { suppress_envoy_headers: true, ..policy };
        assert_eq!(decided(silent, &[], false), (15000, 300, None));
        assert_eq!(decided(TimeoutPolicy::default(), &[], false), (0, 0, None));
    }

    #[test]
    fn grpc_deadlines_are_capped() {
        let ms = Duration::from_millis;
        let policy = TimeoutPolicy {
            route: ms(15000),
            max_grpc_timeout: Some(ms(5000)),
            grpc_timeout_offset: Some(ms(100)),
            ..TimeoutPolicy::default()
        };
        assert_eq!(decided(policy, &[("grpc-timeout", "1S")], true).0, 900);
        assert_eq!(decided(policy, &[("grpc-timeout", "50m")], true).0, 50);
        assert_eq!(decided(policy, &[("grpc-timeout", "1M")], true).0, 5000);
        assert_eq!(decided(policy, &[], true).0, 5000);
        assert_eq!(decided(policy, &[("grpc-timeout", "1S")], false).0, 15000);
        let uncapped = TimeoutPolicy { max_grpc_timeout: Some(Duration::ZERO), ..policy };
        assert_eq!(decided(uncapped, &[], true).0, 0);
    }
}
