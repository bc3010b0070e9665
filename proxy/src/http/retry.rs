//! Whether a request is tried again, when, and where not (Envoy docs: "x-envoy-retry-on", "Automatic retries"; its
//! `RetryStateImpl`).
//!
//! Decides, and does nothing itself: `attempts` makes the tries. Invariant: at most one retry's place with the breakers is held,
//! from the decision until the next one, or the end.

use super::{RequestHead, ResponseHead, grpc, header_names::*};
use crate::{
    base::{ResetReason, RuntimeSnapshot},
    route::header_matches,
    upstream::{ClusterInfo, ThreadCluster},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use weft_config::{
    header_matcher::HeaderMatcher,
    header_value::HeaderKey,
    route::{Priority, RateLimitedBackOff, RetryOn, RetryPolicy},
};

/// The retries of one request.
pub struct Retries {
    cluster: Rc<ThreadCluster>,
    priority: Priority,
    policy: Option<Arc<RetryPolicy>>,
    on: RetryOn,
    left: u32,
    /// What the request's own headers add to the policy.
    asked: Option<Box<Asked>>,
    /// The longest that the next back-off may be; `None` before the first.
    interval: Option<Duration>,
    /// What the last response asked for.
    wait: Option<Duration>,
    place: Option<Place>,
    /// The request began to go to some upstream.
    was_sent: bool,
}

#[derive(Default)]
struct Asked {
    codes: Vec<u16>,
    headers: Vec<HeaderName>,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Again,
    /// What came is not to be tried again.
    No,
    /// It would be, but too many retries are under way.
    Overflow,
    /// It would be, but was often enough.
    LimitExceeded,
}

/// A retry that the breakers know of.
struct Place(Arc<ClusterInfo>, Priority);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.breakers.of(self.1).retries.release();
    }
}

/// The headers by which a request asks for retries. They are for this proxy alone.
const HEADERS: [HeaderName; 6] = [
    ENVOY_RETRY_ON,
    ENVOY_RETRY_GRPC_ON,
    ENVOY_MAX_RETRIES,
    ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
    ENVOY_RETRIABLE_HEADER_NAMES,
    ENVOY_RETRIABLE_STATUS_CODES,
];

impl Retries {
    /// What the route's policy and the request's headers, which are taken out, make of it; `None` if nothing is ever tried
    /// again.
    pub fn of(
        policy: Option<&Arc<RetryPolicy>>,
        request: &mut RequestHead,
        cluster: &Rc<ThreadCluster>,
        priority: Priority,
    ) -> Option<Self> {
        let mut on = policy.map(|policy| policy.retry_on).unwrap_or_default();
        let mut left = policy.map_or(1, |policy| policy.num_retries);
        let mut asked = None;
        let may = policy.is_none_or(|policy| {
            let matchers = &policy.retriable_request_headers;
            matchers.is_empty() || matchers.iter().any(|matcher| header_matches(matcher, request))
        });
        let headers = &mut request.headers;
        if headers.keys().any(|name| name.as_str().starts_with("x-envoy-") && HEADERS.contains(name)) {
            on = on
                | words(headers, &ENVOY_RETRY_ON, RetryOn::http)
                | words(headers, &ENVOY_RETRY_GRPC_ON, RetryOn::grpc);
            if let Some(max) = text(headers, &ENVOY_MAX_RETRIES).and_then(|text| text.trim().parse().ok()) {
                left = max;
            }
            asked = Some(Asked::of(headers));
            HEADERS.iter().for_each(|name| drop(headers.remove(name)));
        }
        (may && !on.is_empty()).then(|| Self {
            cluster: cluster.clone(),
            priority,
            policy: policy.cloned(),
            on,
            left,
            asked: asked.map(Box::new),
            interval: None,
            wait: None,
            place: None,
            was_sent: false,
        })
    }

    /// The request begins to go out.
    pub fn sent(&mut self) {
        self.was_sent = true;
    }

    pub fn policy(&self) -> Option<&Arc<RetryPolicy>> {
        self.policy.as_ref()
    }

    /// A response came.
    pub fn on_response(&mut self, response: &ResponseHead, runtime: &RuntimeSnapshot) -> Verdict {
        let wanted = self.wants_another(response);
        if wanted && let Some(rate_limited) = self.policy.as_ref().and_then(|policy| policy.rate_limited.as_ref()) {
            self.wait = asked_wait(rate_limited, &response.headers, SystemTime::now());
        }
        self.decide(wanted, runtime)
    }

    /// A try failed before there was a response, or did not take place.
    pub fn on_reset(&mut self, reason: ResetReason, runtime: &RuntimeSnapshot) -> Verdict {
        let is_connect_failure = matches!(
            reason,
            ResetReason::LocalConnectionFailure | ResetReason::RemoteConnectionFailure | ResetReason::ConnectionTimeout
        );
        let wanted = reason != ResetReason::Overflow
            && (self.on.has(RetryOn::RESET | RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR)
                || (!self.was_sent && self.on.has(RetryOn::RESET_BEFORE_REQUEST))
                || (reason == ResetReason::RemoteRefusedStreamReset && self.on.has(RetryOn::REFUSED_STREAM))
                || (is_connect_failure && self.on.has(RetryOn::CONNECT_FAILURE)));
        self.decide(wanted, runtime)
    }

    /// A try took too long, and was given up.
    pub fn on_timeout(&mut self, runtime: &RuntimeSnapshot) -> Verdict {
        self.on_reset(ResetReason::LocalReset, runtime)
    }

    /// A try took too long, and goes on while another is made: whatever the conditions, since nothing failed yet.
    pub fn on_slow(&mut self, runtime: &RuntimeSnapshot) -> Verdict {
        self.decide(true, runtime)
    }

    /// True for a response that the conditions would have tried again.
    pub fn wants_another(&self, response: &ResponseHead) -> bool {
        let headers = &response.headers;
        if headers.contains_key(ENVOY_RATELIMITED) {
            // Another proxy's limit: only for those who ask for that.
            return self.on.has(RetryOn::ENVOY_RATE_LIMITED);
        }
        let status = response.status.as_u16();
        let policy = self.policy.as_deref();
        let asked = self.asked.as_deref();
        (self.on.has(RetryOn::SERVER_ERROR) && (500..600).contains(&status))
            || (self.on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
            || (self.on.has(RetryOn::RETRIABLE_4XX) && status == 409)
            || (self.on.has(RetryOn::RETRIABLE_STATUS_CODES)
                && (policy.is_some_and(|policy| policy.retriable_status_codes.contains(&status))
                    || asked.is_some_and(|asked| asked.codes.contains(&status))))
            || (self.on.has(RetryOn::RETRIABLE_HEADERS)
                && (policy.is_some_and(|policy| {
                    policy.retriable_headers.iter().any(|matcher| matches_response(matcher, response))
                }) || asked.is_some_and(|asked| asked.headers.iter().any(|name| headers.contains_key(name)))))
            || grpc::status(headers).is_some_and(|status| {
                self.on.has(match status {
                    1 => RetryOn::GRPC_CANCELLED,
                    4 => RetryOn::GRPC_DEADLINE_EXCEEDED,
                    8 => RetryOn::GRPC_RESOURCE_EXHAUSTED,
                    13 => RetryOn::GRPC_INTERNAL,
                    14 => RetryOn::GRPC_UNAVAILABLE,
                    _ => RetryOn::default(),
                })
            })
    }

    fn decide(&mut self, wanted: bool, runtime: &RuntimeSnapshot) -> Verdict {
        let stats = self.cluster.stats();
        if !wanted {
            if self.place.take().is_some() {
                stats.upstream_rq_retry_success.inc();
            }
            return Verdict::No;
        }
        if self.left == 0 {
            stats.upstream_rq_retry_limit_exceeded.inc();
            return Verdict::LimitExceeded;
        }
        self.left -= 1;
        self.place = None;
        let info = self.cluster.info();
        if !info.breakers.of(self.priority).try_retry() {
            stats.upstream_rq_retry_overflow.inc();
            return Verdict::Overflow;
        }
        let place = Place(info.clone(), self.priority);
        if !runtime.enables("upstream.use_retry", 100, fastrand::u64(..)) {
            return Verdict::No;
        }
        self.place = Some(place);
        Verdict::Again
    }

    /// The wait is over, and the retry is made.
    pub fn begins(&mut self) {
        let stats = self.cluster.stats();
        stats.upstream_rq_retry.inc();
        let asked = self.wait.take().is_some();
        if asked { &stats.upstream_rq_retry_backoff_ratelimited } else { &stats.upstream_rq_retry_backoff_exponential }
            .inc();
    }

    /// How long to wait before the retry that was decided.
    pub fn back_off(&mut self, runtime: &RuntimeSnapshot) -> Duration {
        if let Some(wait) = self.wait {
            return wait + wait.mul_f64(fastrand::f64() / 2.0);
        }
        let policy = self.policy.as_deref();
        let base = || match policy {
            Some(policy) if policy.base_interval != DEFAULT_BASE => policy.base_interval,
            _ => runtime.integer("upstream.base_retry_backoff_ms").map_or(DEFAULT_BASE, Duration::from_millis),
        };
        let interval = self.interval.unwrap_or_else(base).max(Duration::from_millis(1));
        let most = policy.map_or(DEFAULT_BASE * 10, |policy| policy.max_interval);
        self.interval = Some((interval * 2).min(most));
        interval.mul_f64(fastrand::f64())
    }
}

const DEFAULT_BASE: Duration = Duration::from_millis(25);

impl Asked {
    fn of(headers: &HeaderMap) -> Self {
        let list = |name: &HeaderName| text(headers, name).unwrap_or_default().split(',').map(str::trim);
        Self {
            codes: list(&ENVOY_RETRIABLE_STATUS_CODES).filter_map(|code| code.parse().ok()).collect(),
            headers: list(&ENVOY_RETRIABLE_HEADER_NAMES).filter_map(|name| name.parse().ok()).collect(),
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn words(headers: &HeaderMap, name: &HeaderName, read: fn(&str) -> (RetryOn, bool)) -> RetryOn {
    text(headers, name).map(|text| read(text).0).unwrap_or_default()
}

/// The wait that a response asks for, if it is more than a millisecond and within the limit.
fn asked_wait(policy: &RateLimitedBackOff, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    policy
        .reset_headers
        .iter()
        .filter_map(|header| {
            let number: u64 = text(headers, &header.name)?.trim().parse().ok()?;
            let seconds = if header.is_timestamp { number.checked_sub(since_1970)? } else { number };
            Some(Duration::from_secs(seconds)).filter(|wait| *wait <= policy.max_interval)
        })
        .next()
        .filter(|wait| !wait.is_zero())
}

fn matches_response(matcher: &HeaderMatcher, response: &ResponseHead) -> bool {
    match &matcher.key {
        HeaderKey::Name(name) => matcher.matches(response.headers.get_all(name).iter().map(HeaderValue::as_bytes)),
        HeaderKey::Status => matcher.matches([response.status.as_str().as_bytes()]),
        // A response has no other.
        _ => matcher.matches([]),
    }
}
