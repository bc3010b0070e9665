//! The fault filter's configuration, of a connection manager or a route.

use crate::filters::{FilterConfig, FilterFactory, RouteFilterConfig};
use bytes::Bytes;
use http::HeaderName;
use serde_json::{Map, Value};
use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};
use weft_config::{Context, header_matcher::HeaderMatcher, metadata::object, percent::FractionalPercent};
use weft_control_api::envoy::{
    extensions::filters::{
        common::fault::v3::{self as common, fault_delay::FaultDelaySecifier, fault_rate_limit::LimitType},
        http::fault::v3::{self as pb, fault_abort::ErrorType},
    },
    r#type::v3 as percent,
};

const TYPE: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.fault",
    type_name: TYPE,
    parse: |any, cx| {
        let config = cx.unpack("typed_config", any)?;
        let config = cx.field("typed_config", |cx| Fault::from_proto(config, cx));
        Some(Arc::new(config) as Arc<dyn FilterConfig>)
    },
    route: Some((TYPE, |any, cx| {
        let config = cx.unpack("", any)?;
        Some(Arc::new(Fault::from_proto(config, cx)) as RouteFilterConfig)
    })),
};

pub(super) const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
pub(super) const DELAY_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
pub(super) const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
pub(super) const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
pub(super) const ABORT_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");
pub(super) const THROUGHPUT: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response");
pub(super) const THROUGHPUT_PERCENTAGE: HeaderName =
    HeaderName::from_static("x-envoy-fault-throughput-response-percentage");

pub(super) struct Fault {
    pub delay: Option<Delay>,
    pub abort: Option<Abort>,
    pub rate_limit: Option<RateLimit>,
    /// Empty: any.
    pub upstream_cluster: String,
    pub downstream_nodes: Vec<String>,
    pub headers: Vec<HeaderMatcher>,
    pub max_active_faults: Option<u32>,
    pub keys: Keys,
    pub disable_downstream_cluster_stats: bool,
    pub metadata: Option<Map<String, Value>>,
    /// On all workers.
    pub active: AtomicU32,
}

/// Which share of the requests; a header may only make it smaller.
pub(super) struct Share {
    pub percentage: FractionalPercent,
    pub by_header: bool,
}

pub(super) struct Delay {
    pub share: Share,
    /// `None`: a header says.
    pub fixed: Option<Duration>,
}

/// With neither status, a header says which.
pub(super) struct Abort {
    pub share: Share,
    pub http: Option<u32>,
    pub grpc: Option<u32>,
    pub body: Bytes,
}

impl Abort {
    pub fn by_header(&self) -> bool {
        self.share.by_header
    }
}

pub(super) struct RateLimit {
    pub share: Share,
    /// In KiB a second; `None`: a header says.
    pub fixed: Option<u64>,
}

/// The runtime keys.
pub(super) struct Keys {
    pub delay_percent: String,
    pub delay_duration: String,
    pub abort_percent: String,
    pub abort_http_status: String,
    pub abort_grpc_status: String,
    pub max_active_faults: String,
    pub rate_limit_percent: String,
}

impl Share {
    fn from_proto(p: Option<percent::FractionalPercent>, by_header: bool, cx: &mut Context) -> Self {
        let percentage = match p {
            Some(p) => cx.field("percentage", |cx| FractionalPercent::from_proto(p, cx)),
            None => FractionalPercent { numerator: 0, denominator: 100 },
        };
        Self { percentage, by_header }
    }
}

impl Fault {
    fn from_proto(p: pb::HttpFault, cx: &mut Context) -> Self {
        let pb::HttpFault {
            delay,
            abort,
            upstream_cluster,
            headers,
            downstream_nodes,
            max_active_faults,
            response_rate_limit,
            delay_percent_runtime,
            abort_percent_runtime,
            delay_duration_runtime,
            abort_http_status_runtime,
            max_active_faults_runtime,
            response_rate_limit_percent_runtime,
            abort_grpc_status_runtime,
            disable_downstream_cluster_stats,
            filter_metadata,
        } = p;
        let or = |key: String, default: &str| if key.is_empty() { default.to_owned() } else { key };
        Self {
            delay: delay.and_then(|p| cx.field("delay", |cx| Delay::from_proto(p, cx))),
            abort: abort.and_then(|p| cx.field("abort", |cx| Abort::from_proto(p, cx))),
            rate_limit: response_rate_limit
                .and_then(|p| cx.field("response_rate_limit", |cx| RateLimit::from_proto(p, cx))),
            upstream_cluster,
            downstream_nodes,
            headers: cx.elements("headers", headers, |cx, p| HeaderMatcher::from_proto(p, cx)),
            max_active_faults,
            keys: Keys {
                delay_percent: or(delay_percent_runtime, "fault.http.delay.fixed_delay_percent"),
                delay_duration: or(delay_duration_runtime, "fault.http.delay.fixed_duration_ms"),
                abort_percent: or(abort_percent_runtime, "fault.http.abort.abort_percent"),
                abort_http_status: or(abort_http_status_runtime, "fault.http.abort.http_status"),
                abort_grpc_status: or(abort_grpc_status_runtime, "fault.http.abort.grpc_status"),
                max_active_faults: or(max_active_faults_runtime, "fault.http.max_active_faults"),
                rate_limit_percent: or(response_rate_limit_percent_runtime, "fault.http.rate_limit.response_percent"),
            },
            disable_downstream_cluster_stats,
            metadata: filter_metadata.map(object).filter(|fields| !fields.is_empty()),
            active: AtomicU32::new(0),
        }
    }

    pub(super) fn injects_nothing(&self) -> bool {
        self.delay.is_none() && self.abort.is_none() && self.rate_limit.is_none()
    }
}

impl Delay {
    fn from_proto(p: common::FaultDelay, cx: &mut Context) -> Option<Self> {
        let common::FaultDelay { percentage, fault_delay_secifier } = p;
        let fixed = match cx.required("fault_delay_secifier", fault_delay_secifier)? {
            FaultDelaySecifier::FixedDelay(p) => Some(cx.duration("fixed_delay", Some(p))?),
            FaultDelaySecifier::HeaderDelay(common::fault_delay::HeaderDelay {}) => None,
        };
        Some(Self { share: Share::from_proto(percentage, fixed.is_none(), cx), fixed })
    }
}

impl Abort {
    fn from_proto(p: pb::FaultAbort, cx: &mut Context) -> Option<Self> {
        let pb::FaultAbort { percentage, response_body, error_type } = p;
        let (http, grpc) = match cx.required("error_type", error_type)? {
            ErrorType::HttpStatus(status) => (Some(status), None),
            ErrorType::GrpcStatus(status) => (None, Some(status)),
            ErrorType::HeaderAbort(pb::fault_abort::HeaderAbort {}) => (None, None),
        };
        let by_header = http.is_none() && grpc.is_none();
        let body = if response_body.is_empty() { "fault filter abort".into() } else { response_body };
        Some(Self { share: Share::from_proto(percentage, by_header, cx), http, grpc, body: body.into() })
    }
}

impl RateLimit {
    fn from_proto(p: common::FaultRateLimit, cx: &mut Context) -> Option<Self> {
        let common::FaultRateLimit { percentage, limit_type } = p;
        let fixed = match cx.required("limit_type", limit_type)? {
            LimitType::FixedLimit(common::fault_rate_limit::FixedLimit { limit_kbps }) => Some(limit_kbps),
            LimitType::HeaderLimit(common::fault_rate_limit::HeaderLimit {}) => None,
        };
        Some(Self { share: Share::from_proto(percentage, fixed.is_none(), cx), fixed })
    }
}
