//! `envoy.filters.http.local_ratelimit`: refuses requests for which no bucket has a token.
//!
//! A route's configuration takes the place of the filter's, buckets and stats included. Buckets are shared by all workers
//! (`limiter`), or are one connection's own. Invariant: N tokens admit N requests, however many workers there are.

mod limiter;

pub use limiter::Limiter;

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, LocalReply, RouteFilterConfig,
    most_specific,
};
use crate::{
    base::{ResponseFlag, clock},
    http::{ResponseHead, Thread, header_rules::HeaderRules, stream::Stream},
    observe::stats::Registry,
    route::{DescriptorFacts, Descriptors, RateLimits, Which},
    stats,
};
use foldhash::HashMap;
use http::{HeaderValue, StatusCode, header};
use limiter::Bucket;
use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Weak},
    time::Instant,
};
use weft_config::{
    Context,
    percent::RuntimeFractionalPercent,
    rate_limit::{LocalRateLimit as Config, VirtualHostLimits},
};
use weft_control_api::{Any, envoy::extensions::filters::http::local_ratelimit::v3 as pb};

const TYPE: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.local_ratelimit",
    type_name: TYPE,
    parse: |any, cx| {
        let config = cx.unpack("typed_config", any)?;
        let parsed = cx.field("typed_config", |cx| LocalRateLimit::compile(config, false, cx))?;
        Some(Arc::new(parsed) as Arc<dyn FilterConfig>)
    },
    route: Some((TYPE, parse_route)),
};

fn parse_route(any: &Any, cx: &mut Context) -> Option<RouteFilterConfig> {
    let config = cx.unpack("", any)?;
    Some(Arc::new(LocalRateLimit::compile(config, true, cx)?))
}

stats! {
    /// `PREFIX.http_local_rate_limit.*`
    pub struct LocalRateLimitStats {
        counter enabled,
        counter enforced,
        counter ok,
        counter rate_limited,
        counter shadow_mode,
    }
}

/// The filter's configuration, or a route's in its place.
struct LocalRateLimit {
    config: Config,
    /// In place of those of routes, where there are any.
    rate_limits: RateLimits,
    request_headers: HeaderRules,
    response_headers: HeaderRules,
    limiter: Limiter,
}

impl LocalRateLimit {
    fn compile(p: pb::LocalRateLimit, of_route: bool, cx: &mut Context) -> Option<Self> {
        let config = Config::from_proto(p, of_route, cx)?;
        Some(Self {
            rate_limits: RateLimits::compile(&config.rate_limits, cx),
            request_headers: HeaderRules::request_additions(
                "request_headers_to_add_when_not_enforced",
                &config.request_headers_to_add_when_not_enforced,
                cx,
            ),
            response_headers: HeaderRules::response_additions(
                "response_headers_to_add",
                &config.response_headers_to_add,
                cx,
            ),
            limiter: Limiter::new(&config, Instant::now()),
            config,
        })
    }

    /// Adds the descriptors of a request.
    fn describe<'a>(&'a self, stream: &'a Stream, out: &mut Descriptors<'a>) {
        let thread = &stream.connection.thread;
        let route = stream.route.as_deref();
        let facts = DescriptorFacts {
            request: &stream.request,
            info: &stream.info,
            route,
            upstreams: &thread.upstreams,
            service_cluster: thread.local.service_cluster.as_ref().map(HeaderValue::as_bytes).unwrap_or_default(),
        };
        if !self.rate_limits.is_empty() {
            return self.rate_limits.describe(Which::Own { at_end: None }, &facts, out);
        }
        let Some((route, forward)) = route.and_then(|route| Some((route, route.route.action.forward()?))) else {
            return;
        };
        let which = Which::Local { stage: self.config.stage };
        forward.rate_limits.describe(which, &facts, out);
        let with_virtual_host = forward.config.include_vh_rate_limits
            || match self.config.vh_rate_limits {
                VirtualHostLimits::Include => true,
                VirtualHostLimits::Ignore => false,
                VirtualHostLimits::Override => forward.rate_limits.is_empty(),
            };
        if with_virtual_host {
            route.virtual_host.rate_limits.describe(which, &facts, out);
        }
    }
}

/// True for the share of requests that a fraction says; none takes none.
fn holds(fraction: Option<&RuntimeFractionalPercent>, thread: &Thread) -> bool {
    fraction.is_some_and(|fraction| {
        let fixed = fraction.runtime_key.is_empty() && fraction.default.numerator >= fraction.default.denominator;
        fixed || thread.runtime().takes(fraction, fastrand::u64(..))
    })
}

impl FilterConfig for LocalRateLimit {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        let registry = scope.thread.registry.clone();
        Rc::new(Active { stats: attach(&registry, &self), config: self, registry, of_routes: RefCell::default() })
    }
}

fn attach(registry: &Registry, config: &LocalRateLimit) -> Arc<LocalRateLimitStats> {
    registry.attach(&format!("{}.http_local_rate_limit", config.config.stat_prefix))
}

/// One worker's part.
struct Active {
    config: Arc<LocalRateLimit>,
    stats: Arc<LocalRateLimitStats>,
    registry: Registry,
    /// The stats of routes' configurations, by where these are.
    of_routes: RefCell<HashMap<usize, OfRoute>>,
}

struct OfRoute {
    config: Weak<LocalRateLimit>,
    stats: Arc<LocalRateLimitStats>,
}

impl Active {
    fn stats_of(&self, config: &Arc<LocalRateLimit>) -> Arc<LocalRateLimitStats> {
        let mut all = self.of_routes.borrow_mut();
        let place = Arc::as_ptr(config) as usize;
        if let Some(of_route) = all.get(&place) {
            return of_route.stats.clone();
        }
        // A place is taken for as long as it is pointed at, so that no other configuration comes to stand there.
        all.retain(|_, of_route| of_route.config.strong_count() > 0);
        let stats = attach(&self.registry, config);
        all.insert(place, OfRoute { config: Arc::downgrade(config), stats: stats.clone() });
        stats
    }
}

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let of_route = most_specific::<LocalRateLimit>(routes);
        let config = of_route.as_ref().unwrap_or(&self.config);
        config.config.filter_enabled.as_ref()?;
        let stats = of_route.as_ref().map_or_else(|| self.stats.clone(), |config| self.stats_of(config));
        Some(Box::new(Filter { config: config.clone(), stats, shown: None }))
    }
}

struct Filter {
    config: Arc<LocalRateLimit>,
    stats: Arc<LocalRateLimitStats>,
    /// What the response's `x-ratelimit-*` tell of.
    shown: Option<Arc<Bucket>>,
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        let connection = stream.connection.clone();
        let (config, stats) = (&self.config, &self.stats);
        if !holds(config.config.filter_enabled.as_ref(), &connection.thread) {
            return Action::Continue;
        }
        stats.enabled.inc();
        let own = config.config.per_downstream_connection.then(|| {
            let new = || Rc::new(Limiter::new(&config.config, Instant::now()));
            connection.limiter.get_or_init(new)
        });
        let limiter = own.map_or(&config.limiter, |limiter| &**limiter);
        let now = clock::now();
        let mut descriptors = Descriptors::new();
        if limiter.has_descriptors() {
            config.describe(stream, &mut descriptors);
        }
        let verdict = limiter.check(&descriptors, now);
        drop(descriptors);
        if verdict.headers.unwrap_or(config.config.rate_limit_headers) {
            self.shown = verdict.bucket.as_deref().cloned();
        }
        if verdict.allowed {
            stats.ok.inc();
            return Action::Continue;
        }
        stats.rate_limited.inc();
        if verdict.bucket.as_ref().is_some_and(|bucket| bucket.shadow) {
            stats.shadow_mode.inc();
            return Action::Continue;
        }
        if !holds(config.config.filter_enforced.as_ref(), &connection.thread) {
            config.request_headers.apply_request(&mut stream.request, &stream.info);
            return Action::Continue;
        }
        stats.enforced.inc();
        stream.info.set_flag(ResponseFlag::RateLimited);
        let mut head = ResponseHead::new(config.config.status);
        config.response_headers.apply_response(&mut head, &stream.request, &stream.info);
        if config.config.enable_retry_after_header
            && config.config.status == StatusCode::TOO_MANY_REQUESTS
            && let Some(bucket) = &verdict.bucket
        {
            let seconds = seconds_to_token(bucket, now).max(1);
            head.headers.entry(header::RETRY_AFTER).or_insert(seconds.into());
        }
        let mut reply = LocalReply::new(config.config.status, "local_rate_limited", "local_rate_limited");
        reply.headers = head.headers;
        reply.grpc_status = config.config.rate_limited_as_resource_exhausted.then_some(RESOURCE_EXHAUSTED);
        Action::Reply(reply)
    }

    fn on_response(&mut self, _: &mut Stream, head: &mut ResponseHead, _end: bool) -> Action {
        if let Some(bucket) = &self.shown {
            let now = clock::now();
            head.headers.append("x-ratelimit-limit", bucket.max_tokens().into());
            head.headers.append("x-ratelimit-remaining", bucket.remaining(now).into());
            head.headers.append("x-ratelimit-reset", seconds_to_token(bucket, now).into());
        }
        Action::Continue
    }
}

const RESOURCE_EXHAUSTED: u32 = 8;

/// Begun seconds until there is a token.
fn seconds_to_token(bucket: &Bucket, now: Instant) -> u64 {
    let left = bucket.next_token(now);
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}
