//! A gRPC service that the proxy calls: a control plane, an authorisation or a rate limit service, a log sink.

use crate::Context;
use std::time::Duration;
use weft_control_api::envoy::config::core::v3::{self as pb, grpc_service::TargetSpecifier};

/// How a stream to a control plane comes back, if nothing else is said.
pub const DEFAULT_RECONNECT: Backoff =
    Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30), attempts: None };

/// A gRPC service, reached through a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcService {
    pub cluster: String,
    /// The `:authority` of requests; empty: the cluster's name.
    pub authority: String,
    /// Of one call; `None`: no limit.
    pub timeout: Option<Duration>,
    /// Headers to send with every call; the values of `-bin` keys are raw bytes.
    pub initial_metadata: Vec<(String, Vec<u8>)>,
    /// How a broken stream comes back.
    pub reconnect: Backoff,
    /// Bytes; `None`: no limit.
    pub max_receive_message_length: Option<u32>,
    /// Leaves out `x-envoy-internal` and `x-forwarded-for`.
    pub skip_envoy_headers: bool,
}

/// Exponential back-off with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
    /// `None`: for ever.
    pub attempts: Option<u32>,
}

impl GrpcService {
    /// Reads a gRPC service; `None` if a problem was reported.
    pub fn from_proto(pb: pb::GrpcService, cx: &mut Context) -> Option<Self> {
        let pb::GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = pb;
        let timeout = cx.duration("timeout", timeout).filter(|t| !t.is_zero());
        let outer = retry_policy.and_then(|policy| cx.field("retry_policy", |cx| Backoff::from_proto(policy, cx)));
        let initial_metadata = initial_metadata
            .into_iter()
            .map(|pb::HeaderValue { key, value, raw_value }| {
                (key, if raw_value.is_empty() { value.into_bytes() } else { raw_value })
            })
            .collect();
        match cx.required("target_specifier", target_specifier)? {
            TargetSpecifier::EnvoyGrpc(grpc) => cx.field("envoy_grpc", |cx| {
                let pb::grpc_service::EnvoyGrpc {
                    cluster_name,
                    authority,
                    retry_policy,
                    max_receive_message_length,
                    skip_envoy_headers,
                } = grpc;
                let own =
                    retry_policy.and_then(|policy| cx.field("retry_policy", |cx| Backoff::from_proto(policy, cx)));
                Some(Self {
                    cluster: cluster_name,
                    authority,
                    timeout,
                    initial_metadata,
                    reconnect: own.or(outer).unwrap_or(DEFAULT_RECONNECT),
                    max_receive_message_length,
                    skip_envoy_headers,
                })
            }),
            TargetSpecifier::GoogleGrpc(_) => {
                cx.problem_at("google_grpc", "is not supported, allowed: envoy_grpc");
                None
            }
        }
    }
}

impl Backoff {
    /// Reads the back-off of a retry policy; `None` if it does not say one, or a problem was reported.
    fn from_proto(pb: pb::RetryPolicy, cx: &mut Context) -> Option<Self> {
        let pb::RetryPolicy {
            retry_back_off,
            num_retries,
            retry_on,
            retry_priority,
            retry_host_predicate,
            host_selection_retry_max_attempts,
        } = pb;
        cx.unsupported_if("retry_on", !retry_on.is_empty());
        cx.unsupported_if("retry_priority", retry_priority.is_some());
        cx.unsupported_if("retry_host_predicate", !retry_host_predicate.is_empty());
        cx.unsupported_if("host_selection_retry_max_attempts", host_selection_retry_max_attempts != 0);
        let Some(pb::BackoffStrategy { base_interval, max_interval }) = retry_back_off else {
            return num_retries.map(|n| Self { attempts: Some(n), ..DEFAULT_RECONNECT });
        };
        cx.field("retry_back_off", |cx| {
            let base = cx.duration("base_interval", base_interval).unwrap_or(DEFAULT_RECONNECT.base);
            let max = cx.duration("max_interval", max_interval).unwrap_or_else(|| base.saturating_mul(10));
            if max < base {
                cx.problem_at("max_interval", format!("found {max:?}, allowed: at least base_interval, {base:?}"));
                return None;
            }
            Some(Self { base, max, attempts: num_retries })
        })
    }
}
