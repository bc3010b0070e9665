//! When a failed try is made again (`envoy.config.route.v3.RetryPolicy`).

use crate::{Context, header_matcher::HeaderMatcher};
use std::time::Duration;
use weft_control_api::envoy::config::route::v3 as pb;

/// A retry policy.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    pub retry_on: String,
    /// Default 1.
    pub num_retries: u32,
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    pub retriable_status_codes: Vec<u16>,
    pub retriable_headers: Vec<HeaderMatcher>,
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// Default 25 ms, and ten times that at the most.
    pub base_interval: Duration,
    pub max_interval: Duration,
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
        // A policy that is read and not applied is worse than one that is refused: only the timeouts act so far.
        cx.unsupported_if("retry_on", !retry_on.is_empty());
        cx.unsupported_if("retry_priority", retry_priority.is_some());
        cx.unsupported_if("retry_host_predicate", !retry_host_predicate.is_empty());
        cx.unsupported_if("retry_options_predicates", !retry_options_predicates.is_empty());
        cx.unsupported_if("rate_limited_retry_back_off", rate_limited_retry_back_off.is_some());
        cx.unsupported_if("refresh_cluster_on_retry", refresh_cluster_on_retry);
        cx.ignored_if("host_selection_retry_max_attempts", host_selection_retry_max_attempts != 0);
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
        Some(Self {
            retry_on,
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
        })
    }
}
