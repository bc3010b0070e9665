//! `envoy.filters.http.router`: the terminal filter. Its work is [`crate::http::dispatch`]; this is its configuration.

use super::{ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, RouteFilterConfig};
use crate::http::stream::Stream;
use std::{rc::Rc, sync::Arc};
use weft_config::Context;
use weft_control_api::{Any, envoy::extensions::filters::http::router::v3 as pb};

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.router",
    type_name: "envoy.extensions.filters.http.router.v3.Router",
    parse: |any, cx| parse(any, cx).map(|router| Arc::new(router) as Arc<dyn FilterConfig>),
    route: None,
};

/// The router's options.
#[derive(Clone, Debug)]
pub struct Router {
    /// Adds no `x-envoy-` headers to requests and responses.
    pub suppress_envoy_headers: bool,
    /// `x-envoy-` request headers whose values must be well-formed, else the request is refused.
    pub strict_check_headers: Vec<http::HeaderName>,
    /// Believe `x-envoy-expected-rq-timeout-ms` of the previous hop.
    pub respect_expected_rq_timeout: bool,
    /// Charges per-code cluster stats. Default true.
    pub dynamic_stats: bool,
    pub suppress_grpc_request_failure_code_stats: bool,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            suppress_envoy_headers: false,
            strict_check_headers: Vec::new(),
            respect_expected_rq_timeout: false,
            dynamic_stats: true,
            suppress_grpc_request_failure_code_stats: false,
        }
    }
}

/// Reads the router's configuration.
#[allow(deprecated)] // Deprecated fields are still read: configurations have them.
pub fn parse(any: &Any, cx: &mut Context) -> Option<Router> {
    let pb::Router {
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = cx.unpack("typed_config", any)?;
    cx.field("typed_config", |cx| {
        // A child span is part of tracing, which is refused where it is configured.
        cx.ignored_if("start_child_span", start_child_span);
        cx.unsupported_if("upstream_log", !upstream_log.is_empty());
        cx.unsupported_if("upstream_log_options", upstream_log_options.is_some());
        cx.unsupported_if("upstream_http_filters", !upstream_http_filters.is_empty());
        // Data after CONNECT always waits for the upstream's answer here.
        cx.ignored_if("reject_connect_request_early_data", reject_connect_request_early_data.is_some());
        Some(Router {
            suppress_envoy_headers,
            strict_check_headers: strict_check_headers
                .iter()
                .filter_map(|name| http::HeaderName::try_from(name).ok())
                .collect(),
            respect_expected_rq_timeout,
            dynamic_stats: dynamic_stats.unwrap_or(true),
            suppress_grpc_request_failure_code_stats,
        })
    })
}

impl FilterConfig for Router {
    fn activate(self: Arc<Self>, _: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        Rc::new(Dispatched)
    }
}

/// It comes after all hooks, and has none.
struct Dispatched;

impl ActiveFilter for Dispatched {
    fn create(&self, _: &Stream, _: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        None
    }
}
