//! Active health checks (`envoy.config.core.v3.HealthCheck`): what is asked of each host, how often, and what counts as healthy.

use crate::{
    Context,
    header_value::{HeaderValueOption, removals},
    string_matcher::StringMatcher,
};
use http::{HeaderName, Method};
use std::{ops::Range, time::Duration};
use weft_control_api::envoy::{
    config::core::v3::{self as pb, health_check as parts},
    r#type::v3 as types,
};

/// One check of every host.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    pub timeout: Duration,
    pub intervals: Intervals,
    /// Failures in a row after which a host is unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row after which it is healthy again.
    pub healthy_threshold: u32,
    /// In place of the hosts' ports.
    pub alt_port: Option<u16>,
    pub reuse_connection: bool,
    pub kind: HealthCheckKind,
}

/// The time between two checks of a host.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// At most this long until the first.
    pub initial_jitter: Duration,
    pub jitter: Duration,
    /// Of the interval.
    pub jitter_percent: u32,
    pub healthy: Duration,
    pub unhealthy: Duration,
    /// After a failure that does not yet count.
    pub unhealthy_edge: Duration,
    /// After a success that does not yet count.
    pub healthy_edge: Duration,
    /// While the cluster was never connected to.
    pub no_traffic: Duration,
    pub no_traffic_healthy: Duration,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum HealthCheckKind {
    Http(Box<HttpHealthCheck>),
    Tcp(TcpHealthCheck),
    Grpc(GrpcHealthCheck),
}

#[derive(Clone, Debug)]
pub struct HttpHealthCheck {
    /// Empty: the endpoint's name for checks, or the cluster's.
    pub host: String,
    pub path: String,
    pub method: Method,
    pub add: Vec<HeaderValueOption>,
    pub remove: Vec<HeaderName>,
    /// Default 200.
    pub expected: Vec<Range<i64>>,
    /// Failures that count towards the threshold instead of at once.
    pub retriable: Vec<Range<i64>>,
    /// What the body has to have, in this order.
    pub receive: Vec<Vec<u8>>,
    /// So much of the body is looked at; default 1024, 0 for all.
    pub response_buffer_size: u64,
    pub http2: bool,
    /// `x-envoy-upstream-healthchecked-cluster` has to match.
    pub service_name: Option<StringMatcher>,
}

#[derive(Clone, Debug, Default)]
pub struct TcpHealthCheck {
    pub send: Vec<u8>,
    pub receive: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct GrpcHealthCheck {
    pub service_name: String,
    /// Empty: the endpoint's name for checks, or the cluster's.
    pub authority: String,
    pub metadata: Vec<HeaderValueOption>,
}

impl HealthCheck {
    pub(super) fn from_proto(p: pb::HealthCheck, cx: &mut Context) -> Option<Self> {
        let pb::HealthCheck {
            name: _,
            timeout,
            interval,
            initial_jitter,
            interval_jitter,
            interval_jitter_percent,
            unhealthy_threshold,
            healthy_threshold,
            alt_port,
            reuse_connection,
            no_traffic_interval,
            no_traffic_healthy_interval,
            unhealthy_interval,
            unhealthy_edge_interval,
            healthy_edge_interval,
            event_log_path,
            event_logger,
            event_service,
            always_log_health_check_failures,
            always_log_health_check_success,
            tls_options,
            transport_socket_match_criteria,
            health_checker,
        } = p;
        cx.unsupported_if("event_log_path", !event_log_path.is_empty());
        cx.unsupported_if("event_logger", !event_logger.is_empty());
        cx.unsupported_if("event_service", event_service.is_some());
        cx.unsupported_if("tls_options", tls_options.is_some());
        cx.unsupported_if("transport_socket_match_criteria", transport_socket_match_criteria.is_some());
        // They say how much is logged, and there is no log.
        cx.ignored_if("always_log_health_check_failures", always_log_health_check_failures);
        cx.ignored_if("always_log_health_check_success", always_log_health_check_success);
        let mut duration = |name, value| cx.duration(name, value);
        let healthy = duration("interval", interval);
        let timeout = duration("timeout", timeout);
        let initial_jitter = duration("initial_jitter", initial_jitter).unwrap_or_default();
        let jitter = duration("interval_jitter", interval_jitter).unwrap_or_default();
        let no_traffic = duration("no_traffic_interval", no_traffic_interval).unwrap_or(Duration::from_secs(60));
        let no_traffic_healthy = duration("no_traffic_healthy_interval", no_traffic_healthy_interval);
        let unhealthy = duration("unhealthy_interval", unhealthy_interval);
        let unhealthy_edge = duration("unhealthy_edge_interval", unhealthy_edge_interval);
        let healthy_edge = duration("healthy_edge_interval", healthy_edge_interval);
        let healthy = cx.required("interval", healthy)?;
        let unhealthy = unhealthy.unwrap_or(healthy);
        let kind = match cx.required("health_checker", health_checker)? {
            parts::HealthChecker::HttpHealthCheck(p) => cx
                .field("http_health_check", |cx| HttpHealthCheck::from_proto(p, cx))
                .map(|check| HealthCheckKind::Http(Box::new(check))),
            parts::HealthChecker::TcpHealthCheck(p) => {
                cx.field("tcp_health_check", |cx| TcpHealthCheck::from_proto(p, cx)).map(HealthCheckKind::Tcp)
            }
            parts::HealthChecker::GrpcHealthCheck(p) => {
                let parts::GrpcHealthCheck { service_name, authority, initial_metadata } = p;
                cx.field("grpc_health_check", |cx| {
                    let metadata =
                        cx.elements("initial_metadata", initial_metadata, |cx, p| HeaderValueOption::from_proto(p, cx));
                    Some(HealthCheckKind::Grpc(GrpcHealthCheck { service_name, authority, metadata }))
                })
            }
            parts::HealthChecker::CustomHealthCheck(_) => {
                cx.unsupported_if("custom_health_check", true);
                None
            }
        }?;
        Some(Self {
            timeout: cx.required("timeout", timeout)?,
            intervals: Intervals {
                initial_jitter,
                jitter,
                jitter_percent: interval_jitter_percent,
                healthy,
                unhealthy,
                unhealthy_edge: unhealthy_edge.unwrap_or(unhealthy),
                healthy_edge: healthy_edge.unwrap_or(healthy),
                no_traffic,
                no_traffic_healthy: no_traffic_healthy.unwrap_or(no_traffic),
            },
            unhealthy_threshold: cx.required("unhealthy_threshold", unhealthy_threshold)?,
            healthy_threshold: cx.required("healthy_threshold", healthy_threshold)?,
            alt_port: alt_port.and_then(|port| {
                let read = u16::try_from(port);
                read.map_err(|_| cx.problem_at("alt_port", format!("found {port}, allowed are 0 to 65535"))).ok()
            }),
            reuse_connection: reuse_connection.unwrap_or(true),
            kind,
        })
    }
}

impl HttpHealthCheck {
    fn from_proto(p: parts::HttpHealthCheck, cx: &mut Context) -> Option<Self> {
        let parts::HttpHealthCheck {
            host,
            path,
            send,
            receive,
            response_buffer_size,
            request_headers_to_add,
            request_headers_to_remove,
            expected_statuses,
            retriable_statuses,
            codec_client_type,
            use_alpn_protocol,
            service_name_matcher,
            method,
        } = p;
        cx.unsupported_if("send", send.is_some());
        cx.unsupported_if("use_alpn_protocol", use_alpn_protocol);
        use pb::RequestMethod as M;
        let method = match cx.enumeration("method", method) {
            M::MethodUnspecified | M::Get => Method::GET,
            M::Head => Method::HEAD,
            M::Post => Method::POST,
            M::Put => Method::PUT,
            M::Delete => Method::DELETE,
            M::Options => Method::OPTIONS,
            M::Trace => Method::TRACE,
            M::Patch => Method::PATCH,
            M::Connect => {
                cx.problem_at("method", "found CONNECT, which is not allowed");
                Method::GET
            }
        };
        let codec = cx.enumeration::<types::CodecClientType>("codec_client_type", codec_client_type);
        cx.unsupported_if("codec_client_type", codec == types::CodecClientType::Http3);
        let expected = ranges("expected_statuses", expected_statuses, cx);
        let receive: Vec<Vec<u8>> = cx.elements("receive", receive, payload);
        let response_buffer_size = response_buffer_size.unwrap_or(1024);
        let length = receive.iter().map(Vec::len).sum::<usize>() as u64;
        if response_buffer_size != 0 && length > response_buffer_size {
            cx.problem_at(
                "receive",
                format!("found {length} bytes, more than response_buffer_size ({response_buffer_size})"),
            );
        }
        Some(Self {
            host,
            path,
            method,
            add: cx.elements("request_headers_to_add", request_headers_to_add, |cx, p| {
                HeaderValueOption::from_proto(p, cx)
            }),
            remove: removals("request_headers_to_remove", request_headers_to_remove, cx),
            expected: if expected.is_empty() { std::iter::once(200..201).collect() } else { expected },
            retriable: ranges("retriable_statuses", retriable_statuses, cx),
            receive,
            response_buffer_size,
            http2: codec == types::CodecClientType::Http2,
            service_name: service_name_matcher
                .and_then(|p| cx.field("service_name_matcher", |cx| StringMatcher::from_proto(p, cx))),
        })
    }
}

impl TcpHealthCheck {
    fn from_proto(p: parts::TcpHealthCheck, cx: &mut Context) -> Option<Self> {
        let parts::TcpHealthCheck { send, receive, proxy_protocol_config } = p;
        cx.unsupported_if("proxy_protocol_config", proxy_protocol_config.is_some());
        Some(Self {
            send: send.and_then(|p| cx.field("send", |cx| payload(cx, p))).unwrap_or_default(),
            receive: cx.elements("receive", receive, payload),
        })
    }
}

/// Statuses from 100 to 599; each range is without its end.
fn ranges(name: &str, ranges: Vec<types::Int64Range>, cx: &mut Context) -> Vec<Range<i64>> {
    cx.elements(name, ranges, |cx, p| {
        let types::Int64Range { start, end } = p;
        if start >= end || start < 100 || end > 600 {
            cx.problem(format!("found {start} to {end}, allowed are ranges between 100 and 600"));
            return None;
        }
        Some(start..end)
    })
}

/// Text is hexadecimal.
fn payload(cx: &mut Context, p: parts::Payload) -> Option<Vec<u8>> {
    match cx.required("payload", p.payload)? {
        parts::payload::Payload::Binary(bytes) => Some(bytes),
        parts::payload::Payload::Text(text) => {
            let digits: Option<Vec<u8>> =
                text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
            match digits.filter(|digits| digits.len().is_multiple_of(2)) {
                Some(digits) => Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()),
                None => {
                    cx.problem_at("text", format!("found {text:?}, which is not hexadecimal"));
                    None
                }
            }
        }
    }
}
