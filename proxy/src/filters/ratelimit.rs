//! `envoy.filters.http.ratelimit`: asks a rate limit service whether a request may go on.
//!
//! The service is asked once a request, with all descriptors that the request has, and once more at the end of the stream with
//! those that count then; that answer changes nothing. What the service says reaches the request, the response, and dynamic
//! metadata (`answer`).

mod answer;

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, LocalReply, Resume, RouteFilterConfig,
    most_specific,
};
use crate::{
    base::ResponseFlag,
    http::{ResponseHead, Thread, header_names::*, header_rules::HeaderRules, stream::Stream},
    observe::stats::{Counter, StatGroup, StatRef},
    route::{DescriptorFacts, Descriptors, MatchedRoute, RateLimits, Which},
    upstream::{ThreadCluster, grpc_stream::Ended, rate_limit_call},
};
use foldhash::HashMap;
use http::{HeaderMap, HeaderValue};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};
use weft_config::{
    Context,
    metadata::{merge, object},
    percent::RuntimeFractionalPercent,
    rate_limit::{GlobalRateLimit, GlobalRateLimitRoute, RequestKind, VirtualHostLimits},
};
use weft_control_api::{
    Any,
    envoy::{
        extensions::{
            common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor as parts},
            filters::http::ratelimit::v3 as pb,
        },
        service::ratelimit::v3::{RateLimitRequest, RateLimitResponse},
    },
};

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.ratelimit",
    type_name: "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
    parse: |any, cx| {
        let config: pb::RateLimit = cx.unpack("typed_config", any)?;
        let config = cx.field("typed_config", |cx| RateLimit::compile(config, cx))?;
        Some(Arc::new(config) as Arc<dyn FilterConfig>)
    },
    route: Some(("envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute", parse_route)),
};

/// The filter state that says how much a request counts.
const HITS_ADDEND: &str = "envoy.ratelimit.hits_addend";
const RESOURCE_EXHAUSTED: u32 = 8;

/// The filter's configuration.
struct RateLimit {
    config: GlobalRateLimit,
    rate_limits: RateLimits,
    response_headers: HeaderRules,
}

/// A route's.
struct OfRoute {
    config: GlobalRateLimitRoute,
    rate_limits: RateLimits,
}

impl RateLimit {
    fn compile(p: pb::RateLimit, cx: &mut Context) -> Option<Self> {
        let config = GlobalRateLimit::from_proto(p, cx)?;
        Some(Self {
            rate_limits: RateLimits::compile(&config.rate_limits, cx),
            response_headers: HeaderRules::response_additions(
                "response_headers_to_add",
                &config.response_headers_to_add,
                cx,
            ),
            config,
        })
    }
}

fn parse_route(any: &Any, cx: &mut Context) -> Option<RouteFilterConfig> {
    let config: pb::RateLimitPerRoute = cx.unpack("", any)?;
    let config = GlobalRateLimitRoute::from_proto(config, cx);
    let rate_limits = RateLimits::compile(&config.rate_limits, cx);
    Some(Arc::new(OfRoute { config, rate_limits }))
}

/// `cluster.NAME.ratelimit.*` of the clusters that requests go to; what was never counted is not there.
#[derive(Default)]
struct RateLimitStats {
    ok: Counter,
    error: Counter,
    over_limit: Counter,
    failure_mode_allowed: Counter,
}

impl StatGroup for RateLimitStats {
    fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        let all = [
            ("ok", &self.ok),
            ("error", &self.error),
            ("over_limit", &self.over_limit),
            ("failure_mode_allowed", &self.failure_mode_allowed),
        ];
        for (name, counter) in all.into_iter().filter(|(_, counter)| counter.get() > 0) {
            visit(name, StatRef::Counter(counter));
        }
    }
}

impl FilterConfig for RateLimit {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        Rc::new(Active(Rc::new(Shared { limit: self, thread: scope.thread.clone(), stats: RefCell::default() })))
    }
}

/// One worker's part.
struct Active(Rc<Shared>);

struct Shared {
    limit: Arc<RateLimit>,
    thread: Rc<Thread>,
    /// By the cluster's prefix.
    stats: RefCell<HashMap<Arc<str>, Arc<RateLimitStats>>>,
}

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let of_route = most_specific::<OfRoute>(routes);
        let exchange = Rc::new(Exchange::default());
        Some(Box::new(Filter { shared: self.0.clone(), of_route, exchange, asks_of: None }))
    }
}

struct Filter {
    shared: Rc<Shared>,
    of_route: Option<Arc<OfRoute>>,
    exchange: Rc<Exchange>,
    /// What the stream's end asks about: the route and cluster that the request had.
    asks_of: Option<(Rc<MatchedRoute>, Rc<ThreadCluster>)>,
}

/// What the filter and the answer that it waits for have in common.
#[derive(Default)]
struct Exchange {
    /// The service has not answered yet.
    waits: Cell<bool>,
    /// Added to the response.
    headers: RefCell<HeaderMap>,
}

impl Filter {
    /// The question about a request, or the end of its stream; `None` if there is nothing to ask.
    fn question(&self, stream: &Stream, route: &MatchedRoute, at_end: bool) -> Option<RateLimitRequest> {
        let Shared { limit, thread, .. } = &*self.shared;
        let runtime = thread.runtime();
        let facts = DescriptorFacts {
            request: &stream.request,
            info: &stream.info,
            route: Some(route),
            upstreams: &thread.upstreams,
            service_cluster: thread.local.service_cluster.as_ref().map(HeaderValue::as_bytes).unwrap_or_default(),
        };
        let of_route = self.of_route.as_deref();
        let own = of_route.map(|of_route| &of_route.rate_limits).filter(|limits| !limits.is_empty());
        let own = own.or((!limit.rate_limits.is_empty()).then_some(&limit.rate_limits));
        let mut descriptors = Descriptors::new();
        if let Some(own) = own {
            own.describe(Which::Own { at_end: Some(at_end) }, &facts, &mut descriptors);
        } else {
            let forward = route.route.action.forward()?;
            let which = Which::Global { stage: limit.config.stage, at_end, runtime: &runtime };
            forward.rate_limits.describe(which, &facts, &mut descriptors);
            let said = of_route.map_or(VirtualHostLimits::Override, |of_route| of_route.config.vh_rate_limits);
            let with_virtual_host = forward.config.include_vh_rate_limits
                || match said {
                    VirtualHostLimits::Include => true,
                    VirtualHostLimits::Ignore => false,
                    VirtualHostLimits::Override => forward.rate_limits.is_empty(),
                };
            if with_virtual_host {
                route.virtual_host.rate_limits.describe(which, &facts, &mut descriptors);
            }
        }
        if descriptors.is_empty() {
            return None;
        }
        let domain = of_route.map(|of_route| &of_route.config.domain).filter(|domain| !domain.is_empty());
        let addend = stream.info.filter_state.get(HITS_ADDEND).and_then(|state| std::str::from_utf8(&state.text).ok());
        Some(RateLimitRequest {
            domain: domain.unwrap_or(&limit.config.domain).clone(),
            descriptors: into_proto(descriptors),
            hits_addend: addend.and_then(|text| text.parse().ok()).unwrap_or(0),
        })
    }
}

fn into_proto(descriptors: Descriptors<'_>) -> Vec<RateLimitDescriptor> {
    let descriptor = |descriptor: crate::route::Descriptor<'_>| RateLimitDescriptor {
        entries: descriptor
            .entries
            .into_iter()
            .map(|(key, value)| parts::Entry {
                key: key.to_owned(),
                value: String::from_utf8_lossy(&value).into_owned(),
            })
            .collect(),
        limit: descriptor.limit.map(|limit| parts::RateLimitOverride {
            requests_per_unit: limit.requests_per_unit,
            unit: limit.unit,
            unit_multiplier: None,
        }),
        hits_addend: descriptor.hits,
        is_negative_hits: descriptor.is_negative,
    };
    descriptors.into_iter().map(descriptor).collect()
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        let Shared { limit, thread, .. } = &*self.shared;
        if !thread.holds(limit.config.filter_enabled.as_ref(), "ratelimit.http_filter_enabled") {
            return Action::Continue;
        }
        let is_internal = stream.request.headers.get(ENVOY_INTERNAL).is_some_and(|value| value == "true");
        let wanted = match limit.config.requests {
            RequestKind::Both => true,
            RequestKind::Internal => is_internal,
            RequestKind::External => !is_internal,
        };
        let Some(route) = stream.route.clone().filter(|route| wanted && route.route.action.forward().is_some()) else {
            return Action::Continue;
        };
        let Some(cluster) = route.cluster(&thread.upstreams, &stream.request) else { return Action::Continue };
        let question = self.question(stream, &route, false);
        self.asks_of = Some((route, cluster.clone()));
        let Some(question) = question else { return Action::Continue };
        let config = &limit.config;
        let call =
            rate_limit_call::ask(&thread.upstreams, thread.local.address, &config.service, &question, config.timeout);
        self.exchange.waits.set(true);
        let (shared, exchange) = (self.shared.clone(), self.exchange.clone());
        Action::Await(Box::pin(async move {
            let answer = call.await;
            exchange.waits.set(false);
            Box::new(move |stream: &mut Stream| shared.answered(stream, answer, &cluster, &exchange)) as Resume
        }))
    }

    fn on_response(&mut self, _: &mut Stream, head: &mut ResponseHead, _end: bool) -> Action {
        append(&mut head.headers, self.exchange.headers.take());
        Action::Continue
    }

    fn on_end(&mut self, stream: &Stream) {
        let Some((route, _)) = self.asks_of.take().filter(|_| !self.exchange.waits.get()) else { return };
        let Some(question) = self.question(stream, &route, true) else { return };
        let Shared { limit, thread, .. } = &*self.shared;
        let config = &limit.config;
        let call =
            rate_limit_call::ask(&thread.upstreams, thread.local.address, &config.service, &question, config.timeout);
        tokio::task::spawn_local(async move {
            // It was told; nobody waits for what it says to that.
            let _ = call.await;
        });
    }
}

impl Shared {
    fn stats(&self, cluster: &ThreadCluster) -> Arc<RateLimitStats> {
        let prefix = &cluster.info().stat_prefix;
        let mut all = self.stats.borrow_mut();
        if let Some(stats) = all.get(prefix) {
            return stats.clone();
        }
        let name = &self.limit.config.stat_prefix;
        let dot = if name.is_empty() { "" } else { "." };
        let stats: Arc<RateLimitStats> = self.thread.registry.attach(&format!("{prefix}.ratelimit{dot}{name}"));
        all.insert(prefix.clone(), stats.clone());
        stats
    }

    fn answered(
        &self,
        stream: &mut Stream,
        answer: Result<RateLimitResponse, Ended>,
        cluster: &ThreadCluster,
        exchange: &Exchange,
    ) -> Action {
        let (limit, stats) = (&*self.limit, self.stats(cluster));
        let config = &limit.config;
        let Ok(mut answer) = answer else {
            stats.error.inc();
            let denies = match &config.failure_mode_deny_percent {
                Some(percent) => self.thread.holds(Some(percent), ""),
                None => config.failure_mode_deny,
            };
            if !denies {
                stats.failure_mode_allowed.inc();
                return Action::Continue;
            }
            stream.info.set_flag(ResponseFlag::RateLimitServiceError);
            return Action::Reply(LocalReply::new(config.status_on_error, "", "rate_limiter_error"));
        };
        if let Some(metadata) = answer.dynamic_metadata.take().filter(|metadata| !metadata.fields.is_empty()) {
            let into = stream.info.dynamic_metadata.entry(config.metadata_namespace.as_str().into()).or_default();
            merge(into, &object(metadata));
        }
        let mut headers = answer::headers(std::mem::take(&mut answer.response_headers_to_add));
        let over = rate_limit_call::is_over_limit(&answer);
        if over {
            stats.over_limit.inc();
            cluster.count_local(config.rate_limited_status.as_u16(), true, true);
            if config.rate_limited_header {
                headers.insert(ENVOY_RATELIMITED, HeaderValue::from_static("true"));
            }
        } else {
            stats.ok.inc();
        }
        if config.rate_limit_headers {
            answer::add_limits(&answer.statuses, &mut headers);
        }
        if !over || !self.thread.holds(config.filter_enforced.as_ref(), "ratelimit.http_filter_enforcing") {
            append(&mut stream.request.headers, answer::headers(answer.request_headers_to_add));
            *exchange.headers.borrow_mut() = headers;
            return Action::Continue;
        }
        if config.enable_retry_after_header && config.rate_limited_status == http::StatusCode::TOO_MANY_REQUESTS {
            answer::add_retry_after(&answer.statuses, &mut headers);
        }
        stream.info.set_flag(ResponseFlag::RateLimited);
        let mut head = ResponseHead::new(config.rate_limited_status);
        head.headers = headers;
        limit.response_headers.apply_response(&mut head, &stream.request, &stream.info);
        let mut reply = LocalReply::new(config.rate_limited_status, answer.raw_body, "request_rate_limited");
        reply.headers = head.headers;
        reply.grpc_status = config.rate_limited_as_resource_exhausted.then_some(RESOURCE_EXHAUSTED);
        Action::Reply(reply)
    }
}

impl Thread {
    /// True for the share of requests that a fraction says; without one, that the runtime key says, or all.
    fn holds(&self, fraction: Option<&RuntimeFractionalPercent>, key: &str) -> bool {
        match fraction {
            Some(fraction) => self.runtime().takes(fraction, fastrand::u64(..)),
            None => self.runtime().enables(key, 100, fastrand::u64(..)),
        }
    }
}

fn append(into: &mut HeaderMap, headers: HeaderMap) {
    let mut last = None;
    for (name, value) in headers {
        // Of several values only the first comes with the name.
        last = name.or(last);
        if let Some(name) = &last {
            into.append(name.clone(), value);
        }
    }
}
