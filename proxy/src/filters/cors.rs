//! `envoy.filters.http.cors`: answers preflights, and says on responses which origins may read them.
//!
//! The policy comes from the route alone: each field from the most specific level that has it. Routes that do not
//! forward have none.

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, LocalReply, RouteFilterConfig,
};
use crate::{
    base::RuntimeSnapshot,
    http::{ResponseHead, stream::Stream},
    stats,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    },
};
use smallvec::SmallVec;
use std::{rc::Rc, sync::Arc};
use weft_config::{Context, percent::RuntimeFractionalPercent, string_matcher::StringMatcher};
use weft_control_api::envoy::extensions::filters::http::cors::v3 as pb;

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.cors",
    type_name: "envoy.extensions.filters.http.cors.v3.Cors",
    parse: |any, cx| {
        let pb::Cors {} = cx.unpack("typed_config", any)?;
        Some(Arc::new(Cors) as Arc<dyn FilterConfig>)
    },
    route: Some(("envoy.extensions.filters.http.cors.v3.CorsPolicy", |any, cx| {
        let policy = cx.unpack("", any)?;
        Some(Arc::new(Policy::from_proto(policy, cx)) as RouteFilterConfig)
    })),
};

stats! {
    /// `PREFIX.cors.*`
    pub struct CorsStats {
        counter origin_valid,
        counter origin_invalid,
    }
}

struct Cors;

/// What one level says.
struct Policy {
    origins: Vec<StringMatcher>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: Option<bool>,
    private_network: Option<bool>,
    forward_not_matching: Option<bool>,
    enabled: Option<RuntimeFractionalPercent>,
    shadow: Option<RuntimeFractionalPercent>,
}

impl Policy {
    fn from_proto(p: pb::CorsPolicy, cx: &mut Context) -> Self {
        let pb::CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            filter_enabled,
            shadow_enabled,
            allow_private_network_access,
            forward_not_matching_preflights,
        } = p;
        let mut value = |name: &str, text: String| {
            let value = HeaderValue::try_from(&text);
            if value.is_err() {
                cx.problem_at(name, format!("found {text:?}, which is no header value"));
            }
            value.ok().filter(|value| !value.is_empty())
        };
        Self {
            methods: value("allow_methods", allow_methods),
            headers: value("allow_headers", allow_headers),
            expose: value("expose_headers", expose_headers),
            max_age: value("max_age", max_age),
            origins: cx.elements("allow_origin_string_match", allow_origin_string_match, |cx, p| {
                StringMatcher::from_proto(p, cx)
            }),
            credentials: allow_credentials,
            private_network: allow_private_network_access,
            forward_not_matching: forward_not_matching_preflights,
            enabled: filter_enabled
                .and_then(|p| cx.field("filter_enabled", |cx| RuntimeFractionalPercent::from_proto(p, cx))),
            shadow: shadow_enabled
                .and_then(|p| cx.field("shadow_enabled", |cx| RuntimeFractionalPercent::from_proto(p, cx))),
        }
    }

    fn is_enabled(&self, runtime: &RuntimeSnapshot) -> bool {
        self.enabled.as_ref().is_none_or(|share| runtime.takes(share, fastrand::u64(..)))
    }

    fn is_shadowed(&self, runtime: &RuntimeSnapshot) -> bool {
        self.shadow.as_ref().is_some_and(|share| runtime.takes(share, fastrand::u64(..)))
    }
}

impl FilterConfig for Cors {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        Rc::new(Active(scope.thread.registry.attach(&format!("{}.cors", scope.stat_prefix))))
    }
}

/// One worker's part.
struct Active(Arc<CorsStats>);

impl ActiveFilter for Active {
    fn create(&self, stream: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let origin = stream.request.headers.get(ORIGIN).filter(|origin| !origin.is_empty())?;
        stream.route.as_ref()?.route.action.forward()?;
        let policies: SmallVec<_> = routes.iter().rev().filter_map(|route| route.clone().downcast().ok()).collect();
        if policies.is_empty() {
            return None;
        }
        Some(Box::new(Filter { stats: self.0.clone(), policies, origin: origin.clone(), allowed: false }))
    }
}

struct Filter {
    stats: Arc<CorsStats>,
    /// The most specific first.
    policies: SmallVec<[Arc<Policy>; 3]>,
    origin: HeaderValue,
    /// The request came through here, and its origin may read the response.
    allowed: bool,
}

impl Filter {
    fn first<T>(&self, field: impl Fn(&Policy) -> Option<T>) -> Option<T> {
        self.policies.iter().find_map(|policy| field(policy))
    }

    fn is_origin_allowed(&self) -> bool {
        let Some(policy) = self.policies.iter().find(|policy| !policy.origins.is_empty()) else { return false };
        policy.origins.iter().any(|origin| origin.matches("*") || origin.matches(self.origin.as_bytes()))
    }

    fn say_credentials(&self, headers: &mut HeaderMap) {
        if self.first(|policy| policy.credentials) == Some(true) {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        let runtime = stream.connection.thread.runtime();
        let Some(policy) = self.policies.first() else { return Action::Continue };
        let (enabled, shadowed) = (policy.is_enabled(&runtime), policy.is_shadowed(&runtime));
        if !enabled && !shadowed {
            return Action::Continue;
        }
        let allowed = self.is_origin_allowed();
        if allowed { &self.stats.origin_valid } else { &self.stats.origin_invalid }.inc();
        if !enabled {
            return Action::Continue;
        }
        self.allowed = allowed;
        let request = &stream.request;
        let is_preflight = request.method == Method::OPTIONS
            && request.headers.get(ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|method| !method.is_empty());
        if !is_preflight || (!allowed && self.first(|policy| policy.forward_not_matching).unwrap_or(true)) {
            return Action::Continue;
        }
        let mut reply = LocalReply::new(StatusCode::OK, "", "cors_response");
        reply.as_is = true;
        // An origin that may not read it is told all but that it might.
        let headers = &mut reply.headers;
        if allowed {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.origin.clone());
        }
        self.say_credentials(headers);
        let fields = [
            (ACCESS_CONTROL_ALLOW_METHODS, self.first(|policy| policy.methods.clone())),
            (ACCESS_CONTROL_ALLOW_HEADERS, self.first(|policy| policy.headers.clone())),
            (ACCESS_CONTROL_MAX_AGE, self.first(|policy| policy.max_age.clone())),
        ];
        headers.extend(fields.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let asks = request.headers.get(REQUEST_PRIVATE_NETWORK).is_some_and(|value| value == "true");
        if asks && self.first(|policy| policy.private_network) == Some(true) {
            headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
        }
        Action::Reply(reply)
    }

    fn on_response(&mut self, _: &mut Stream, head: &mut ResponseHead, _end: bool) -> Action {
        if self.allowed {
            head.headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.origin.clone());
            self.say_credentials(&mut head.headers);
            if let Some(expose) = self.first(|policy| policy.expose.clone()) {
                head.headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose);
            }
        }
        Action::Continue
    }
}
