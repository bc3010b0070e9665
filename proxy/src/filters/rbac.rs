//! `envoy.filters.http.rbac`: lets through the requests that policies or a tree allow, and answers the others by itself.
//!
//! Both kinds of rules see the request as the filters before this one and the connection manager left it, with the path
//! that the upstream will see unless its route rewrites it. Shadow rules only count, and tell in dynamic metadata.

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, LocalReply, RouteFilterConfig,
    most_specific,
};
use crate::{
    http::stream::Stream,
    rbac::{Engine, Facts, Mode, Recorder, RuleStats},
};
use http::StatusCode;
use std::{rc::Rc, sync::Arc};
use weft_config::{Context, rbac::Rbac as Config};
use weft_control_api::{Any, envoy::extensions::filters::http::rbac::v3 as pb};

pub const FACTORY: FilterFactory = FilterFactory {
    name: NAMESPACE,
    type_name: "envoy.extensions.filters.http.rbac.v3.RBAC",
    parse: |any, cx| parse(any, cx).map(|config| Arc::new(config) as Arc<dyn FilterConfig>),
    route: Some(("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", |any, cx| {
        parse_route(any, cx).map(|config| Arc::new(config) as RouteFilterConfig)
    })),
};

/// Of its dynamic metadata.
const NAMESPACE: &str = "envoy.filters.http.rbac";

/// The filter's configuration, or a route's in its place.
struct Rbac {
    rules: Option<Engine>,
    shadow_rules: Option<Engine>,
    recorder: Recorder,
    rules_prefix: String,
    shadow_rules_prefix: String,
    track_per_rule_stats: bool,
}

fn parse(any: &Any, cx: &mut Context) -> Option<Rbac> {
    let config: pb::Rbac = cx.unpack("typed_config", any)?;
    Some(Rbac::new(cx.field("typed_config", |cx| Config::from_http(config, cx))))
}

fn parse_route(any: &Any, cx: &mut Context) -> Option<Rbac> {
    let config: pb::RbacPerRoute = cx.unpack("", any)?;
    // Without any rules all pass.
    Some(Rbac::new(Config::from_route(config, cx).unwrap_or_default()))
}

impl Rbac {
    fn new(config: Config) -> Self {
        let Config { rules, shadow_rules, rules_stat_prefix, shadow_rules_stat_prefix, track_per_rule_stats } = config;
        Self {
            rules: rules.map(Engine::new),
            shadow_rules: shadow_rules.map(Engine::new),
            recorder: Recorder::new(NAMESPACE, &rules_stat_prefix, &shadow_rules_stat_prefix),
            rules_prefix: rules_stat_prefix,
            shadow_rules_prefix: shadow_rules_stat_prefix,
            track_per_rule_stats,
        }
    }

    /// The reply to a request that may not pass. What a route does not say of prefixes is as `filter` says.
    fn check(&self, filter: &Self, stream: &mut Stream, stats: &RuleStats) -> Option<LocalReply> {
        let of_prefix = |prefix: &str| if prefix.is_empty() { &filter.recorder } else { &self.recorder };
        let decide = |engine: &Engine, stream: &Stream| {
            engine.decide(&Facts { info: &stream.info, request: Some(&stream.request) })
        };
        if let Some(shadow) = &self.shadow_rules {
            let decision = decide(shadow, stream);
            stats.count(&decision, Mode::Shadow, self.track_per_rule_stats);
            of_prefix(&self.shadow_rules_prefix).record(&decision, Mode::Shadow, &mut stream.info.dynamic_metadata);
        }
        let decision = decide(self.rules.as_ref()?, stream);
        let metadata = &mut stream.info.dynamic_metadata;
        stats.count(&decision, Mode::Enforced, self.track_per_rule_stats);
        of_prefix(&self.rules_prefix).record(&decision, Mode::Enforced, metadata);
        Recorder::hint(&decision, metadata);
        (!decision.allowed)
            .then(|| LocalReply::new(StatusCode::FORBIDDEN, "RBAC: access denied", Recorder::details(&decision)))
    }
}

impl FilterConfig for Rbac {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        let stats =
            RuleStats::attach(&scope.thread.registry, scope.stat_prefix, &self.rules_prefix, &self.shadow_rules_prefix);
        Rc::new(Active { rbac: self, stats: Rc::new(stats) })
    }
}

/// One worker's part.
struct Active {
    rbac: Arc<Rbac>,
    stats: Rc<RuleStats>,
}

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let of_route = most_specific::<Rbac>(routes);
        let rbac = of_route.unwrap_or_else(|| self.rbac.clone());
        let has_rules = rbac.rules.is_some() || rbac.shadow_rules.is_some();
        has_rules.then(|| {
            Box::new(Filter { rbac, filter: self.rbac.clone(), stats: self.stats.clone() }) as Box<dyn HttpFilter>
        })
    }
}

struct Filter {
    /// The route's, or the filter's.
    rbac: Arc<Rbac>,
    filter: Arc<Rbac>,
    stats: Rc<RuleStats>,
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        self.rbac.check(&self.filter, stream, &self.stats).map_or(Action::Continue, Action::Reply)
    }
}
