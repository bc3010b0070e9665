//! `envoy.filters.http.ext_authz`: asks a service whether requests may pass, and does with them what it says.
//!
//! Without an answer requests are refused, unless the configuration says otherwise. A body is held back only where it is
//! sent along. What the service says of headers is the last word: clients' own headers of that name are overwritten.

pub mod ask;
mod config;
mod rules;
mod verdict;

use super::{
    Action, ActiveFilter, Buffered, FilterConfig, FilterScope, HttpFilter, LocalReply, Resume, RouteFilterConfig,
    buffer::too_large,
};
use crate::{
    base::ResponseFlag,
    http::{ResponseHead, stream::Stream},
    observe::stats::{Counter, Registry, StatGroup, StatRef},
    stats,
    upstream::grpc_call,
};
use ask::SentBody;
pub use config::FACTORY;
use config::{BodySettings, ExtAuthz, RouteConfig, Service};
use foldhash::HashMap;
use http::{HeaderName, HeaderValue, StatusCode};
use std::{cell::RefCell, rc::Rc, sync::Arc};
use verdict::{Change, Kind, Refusal, Verdict};
use weft_config::metadata::merge;
use weft_control_api::envoy::service::auth::v3::CheckResponse;

const NAMESPACE: &str = "envoy.filters.http.ext_authz";
/// The method that is called.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const FAILURE_MODE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

stats! {
    /// `PREFIX.ext_authz.*`
    pub struct AuthzStats {
        counter denied,
        counter disabled,
        counter error,
        counter failure_mode_allowed,
        counter ignored_dynamic_metadata,
        counter invalid,
        counter ok,
    }
}

/// `cluster.NAME.ext_authz.*`, of the clusters that requests were meant for; not there before their first value.
#[derive(Debug, Default)]
struct ClusterStats {
    ok: Counter,
    denied: Counter,
    error: Counter,
    failure_mode_allowed: Counter,
}

impl StatGroup for ClusterStats {
    fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        let all = [
            ("ok", &self.ok),
            ("denied", &self.denied),
            ("error", &self.error),
            ("failure_mode_allowed", &self.failure_mode_allowed),
        ];
        for (name, counter) in all.into_iter().filter(|(_, counter)| counter.get() > 0) {
            visit(name, StatRef::Counter(counter));
        }
    }
}

impl FilterConfig for ExtAuthz {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        let tail = match &*self.stat_prefix {
            "" => "ext_authz".to_owned(),
            prefix => format!("ext_authz.{prefix}"),
        };
        Rc::new(Active(Rc::new(Shared {
            stats: scope.thread.registry.attach(&format!("{}.{tail}", scope.stat_prefix)),
            registry: scope.thread.registry.clone(),
            clusters: RefCell::default(),
            tail,
            config: self,
        })))
    }
}

/// One worker's part.
struct Active(Rc<Shared>);

struct Shared {
    config: Arc<ExtAuthz>,
    stats: Arc<AuthzStats>,
    registry: Registry,
    clusters: RefCell<HashMap<Arc<str>, Arc<ClusterStats>>>,
    /// Behind a cluster's name in stats.
    tail: String,
}

impl Shared {
    fn of_cluster(&self, stream: &Stream) -> Option<Arc<ClusterStats>> {
        let cluster = stream.route.as_ref()?.cluster(&stream.connection.thread.upstreams, &stream.request)?;
        let prefix = &cluster.info().stat_prefix;
        let mut all = self.clusters.borrow_mut();
        if let Some(stats) = all.get(prefix) {
            return Some(stats.clone());
        }
        let stats: Arc<ClusterStats> = self.registry.attach(&format!("{prefix}.{}", self.tail));
        all.insert(prefix.clone(), stats.clone());
        Some(stats)
    }

    fn count(&self, stream: &Stream, pick: fn(&ClusterStats) -> &Counter) {
        if let Some(stats) = self.of_cluster(stream) {
            pick(&stats).inc();
        }
    }
}

impl ActiveFilter for Active {
    fn create(&self, stream: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        // What goes nowhere needs no permission.
        stream.route.as_ref()?;
        let routes: Vec<Arc<RouteConfig>> = routes.iter().filter_map(|route| route.clone().downcast().ok()).collect();
        if routes.last().is_some_and(|route| route.disabled) {
            return None;
        }
        Some(Box::new(Filter { shared: self.0.clone(), routes, body: None, response: Rc::default() }))
    }
}

struct Filter {
    shared: Rc<Shared>,
    /// From the least specific to the most specific.
    routes: Vec<Arc<RouteConfig>>,
    /// How the body is sent along.
    body: Option<BodySettings>,
    /// What the service wants of the response.
    response: Rc<RefCell<Vec<Change>>>,
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, end: bool) -> Action {
        let config = &self.shared.config;
        let runtime = stream.connection.thread.runtime();
        let by_share = config.enabled.as_ref().is_none_or(|share| runtime.takes(share, fastrand::u64(..)));
        let by_metadata = || {
            let matcher = config.enabled_metadata.as_ref();
            matcher.is_none_or(|matcher| matcher.matches(|name| stream.info.dynamic_metadata.get(name)))
        };
        if !by_share || !by_metadata() {
            self.shared.stats.disabled.inc();
            let denies = config.deny_at_disable.as_ref().is_some_and(|flag| {
                runtime.boolean(&flag.runtime_key).unwrap_or(flag.default_value.unwrap_or_default())
            });
            if !denies {
                return Action::Continue;
            }
            stream.info.set_flag(ResponseFlag::UnauthorizedExternalService);
            return Action::Reply(LocalReply::new(config.status_on_error, "", "ext_authz_error"));
        }
        let of_route = self.routes.last();
        let settings = of_route.and_then(|route| route.body).or(config.body).map(|mut settings| {
            // How it is packed is not the route's to say.
            settings.as_bytes = config.body.is_some_and(|body| body.as_bytes);
            settings
        });
        self.body = settings.filter(|_| !end && !stream.is_tunnel() && !of_route.is_some_and(|route| route.no_body));
        match self.body {
            // One byte less than it may be, so that reading stops when that is reached.
            Some(BodySettings { most, partial: true, .. }) => Action::Buffer(u64::from(most).saturating_sub(1)),
            Some(BodySettings { most, .. }) => Action::Buffer(most.into()),
            None => self.ask(stream, None),
        }
    }

    fn on_request_body(&mut self, stream: &mut Stream, body: &Buffered<'_>) -> Action {
        match self.body {
            Some(BodySettings { most, partial: false, .. }) if body.size > u64::from(most) => {
                Action::Reply(too_large(stream))
            }
            Some(settings) => self.ask(stream, Some(SentBody::new(body, settings))),
            None => Action::Continue,
        }
    }

    fn on_response(&mut self, _: &mut Stream, head: &mut ResponseHead, _end: bool) -> Action {
        for change in self.response.borrow().iter() {
            change.apply_response(head);
        }
        Action::Continue
    }
}

impl Filter {
    fn ask(&self, stream: &Stream, body: Option<SentBody>) -> Action {
        let (shared, response) = (self.shared.clone(), self.response.clone());
        let service = self.routes.last().and_then(|route| route.service.as_ref()).unwrap_or(&shared.config.service);
        let resume = move |shared: Rc<Shared>, verdict: Verdict| -> Resume {
            Box::new(move |stream: &mut Stream| shared.follow(stream, verdict, &response))
        };
        match service {
            Service::Grpc { service, timeout } => {
                let mut context = std::collections::HashMap::new();
                for route in &self.routes {
                    context.extend(route.context.iter().map(|(key, value)| (key.clone(), value.clone())));
                }
                let request = ask::check_request(stream, &shared.config, context, body);
                let thread = &stream.connection.thread;
                let call = grpc_call::call(&thread.upstreams, thread.local.address, service, CHECK, &request, *timeout);
                let shared = shared.clone();
                Action::Await(Box::pin(async move {
                    let answer: Result<CheckResponse, _> = call.await;
                    resume(shared, answer.map(Verdict::from_proto).unwrap_or_default())
                }))
            }
            Service::Http(service) => {
                let call = ask::ask_http(stream, &shared.config, service, body);
                let shared = shared.clone();
                Action::Await(Box::pin(async move { resume(shared, call.await) }))
            }
        }
    }
}

impl Shared {
    /// Does what the service said.
    fn follow(&self, stream: &mut Stream, mut verdict: Verdict, response: &RefCell<Vec<Change>>) -> Action {
        let config = &self.config;
        if let Some(metadata) = verdict.metadata.take().filter(|metadata| !metadata.is_empty()) {
            if config.takes_metadata {
                merge(stream.info.dynamic_metadata.entry(NAMESPACE.into()).or_default(), &metadata);
            } else {
                self.stats.ignored_dynamic_metadata.inc();
            }
        }
        if config.validate_mutations && !verdict.is_valid() {
            return self.invalid(stream);
        }
        match std::mem::take(&mut verdict.kind) {
            Kind::Allowed => {
                if verdict.change_request(&mut stream.request, config.rules.as_ref()).is_err() {
                    return self.invalid(stream);
                }
                if config.clear_route_cache && verdict.changes_request() {
                    stream.refresh_route();
                }
                *response.borrow_mut() = verdict.response;
                self.stats.ok.inc();
                self.count(stream, |stats| &stats.ok);
                Action::Continue
            }
            Kind::Denied(refusal) => {
                self.stats.denied.inc();
                self.count(stream, |stats| &stats.denied);
                if config.charge_cluster
                    && let Some(cluster) = stream
                        .route
                        .as_ref()
                        .and_then(|route| route.cluster(&stream.connection.thread.upstreams, &stream.request))
                {
                    cluster.count_local(refusal.status.as_u16(), true, stream.is_internal);
                }
                self.refuse(stream, refusal, "ext_authz_denied")
            }
            kind => {
                self.stats.error.inc();
                self.count(stream, |stats| &stats.error);
                if config.failure_mode_allow {
                    self.stats.failure_mode_allowed.inc();
                    self.count(stream, |stats| &stats.failure_mode_allowed);
                    if config.failure_mode_allow_header_add {
                        stream.request.headers.insert(FAILURE_MODE_ALLOWED, HeaderValue::from_static("true"));
                    }
                    return Action::Continue;
                }
                let refusal = match kind {
                    Kind::ErrorWith(refusal) => refusal,
                    _ => Refusal {
                        status: config.status_on_error,
                        body: Default::default(),
                        headers: Default::default(),
                    },
                };
                self.refuse(stream, refusal, "ext_authz_error")
            }
        }
    }

    fn refuse(&self, stream: &mut Stream, refusal: Refusal, details: &'static str) -> Action {
        stream.info.set_flag(ResponseFlag::UnauthorizedExternalService);
        let Refusal { status, mut body, headers } = refusal;
        body.truncate(self.config.max_denied_body);
        let mut reply = LocalReply::new(status, body, details);
        reply.headers = headers;
        Action::Reply(reply)
    }

    /// The answer is such that nothing of it can be trusted.
    fn invalid(&self, stream: &mut Stream) -> Action {
        self.stats.invalid.inc();
        stream.info.set_flag(ResponseFlag::UnauthorizedExternalService);
        Action::Reply(LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "", "ext_authz_invalid"))
    }
}
