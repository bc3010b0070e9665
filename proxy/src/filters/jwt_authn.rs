//! `envoy.filters.http.jwt_authn`: lets requests pass that have the tokens that a rule, or the route, requires.
//!
//! All tokens of a request that the rule looks at have to be good, so that no upstream takes a bad one for a good one. What
//! tokens say becomes headers and metadata only when the request passes; headers of these names that clients send are
//! removed before. While keys are fetched the request waits, and is then judged from the start.

mod config;
mod judge;
mod jwks;
mod remote;
mod token;

use super::{
    Action, ActiveFilter, FilterConfig, FilterScope, HttpFilter, LocalReply, Resume, RouteFilterConfig,
    challenge::challenge, most_specific,
};
use crate::{
    http::{Thread, stream::Stream},
    route::{MatchContext, route_matches},
    stats,
};
pub use config::FACTORY;
use config::{JwtAuthn, Keys, Requirement, RouteRequirement};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, WWW_AUTHENTICATE},
};
use judge::{Good, Judged, Remembered};
use remote::Fetched;
use std::{cell::RefCell, rc::Rc, sync::Arc};
use token::{AUDIENCE, Failure, MISSING};

const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

stats! {
    /// `PREFIX.jwt_authn.*`
    pub struct JwtStats {
        counter allowed,
        counter cors_preflight_bypassed,
        counter denied,
        counter jwks_fetch_failed,
        counter jwks_fetch_success,
        counter jwt_cache_hit,
        counter jwt_cache_miss,
    }
}

impl FilterConfig for JwtAuthn {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        let prefix = match &*self.stat_prefix {
            "" => format!("{}.jwt_authn", scope.stat_prefix),
            own => format!("{}.jwt_authn.{own}", scope.stat_prefix),
        };
        let stats: Arc<JwtStats> = scope.thread.registry.attach(&prefix);
        let fetched: Vec<Rc<Fetched>> = self.providers.iter().map(|_| Rc::default()).collect();
        for (number, provider) in self.providers.iter().enumerate() {
            if matches!(&provider.keys, Keys::Remote(remote) if remote.background.is_some()) {
                let config = Arc::downgrade(&self);
                tokio::task::spawn_local(remote::keep_fresh(
                    Rc::downgrade(&fetched[number]),
                    move || config.upgrade(),
                    number,
                    Rc::downgrade(scope.thread),
                    stats.clone(),
                ));
            }
        }
        let remembered = RefCell::new(self.providers.iter().map(|_| Remembered::default()).collect());
        Rc::new(Active(Rc::new(Worker { config: self, stats, fetched, remembered })))
    }
}

/// One worker's part.
struct Active(Rc<Worker>);

struct Worker {
    config: Arc<JwtAuthn>,
    stats: Arc<JwtStats>,
    /// By provider.
    fetched: Vec<Rc<Fetched>>,
    /// Tokens that were verified, by provider.
    remembered: RefCell<Vec<Remembered>>,
}

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter { worker: self.0.clone(), route: most_specific(routes) }))
    }
}

struct Filter {
    worker: Rc<Worker>,
    route: Option<Arc<RouteRequirement>>,
}

/// Which requirement holds: one of a rule, of the map, or of a value in filter state.
#[derive(Clone, Copy)]
enum Which<'a> {
    None,
    One(&'a Requirement),
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        let worker = self.worker.clone();
        let (config, stats) = (&worker.config, &worker.stats);
        for name in config.own_headers() {
            stream.request.headers.remove(name);
        }
        if config.bypass_cors_preflight && is_preflight(stream) {
            stats.cors_preflight_bypassed.inc();
            stats.allowed.inc();
            return Action::Continue;
        }
        let which = match self.route.as_deref() {
            Some(RouteRequirement::Disabled) => Which::None,
            Some(RouteRequirement::Named(name)) => match config.named.get(name) {
                Some(requirement) => requirement.as_ref().map_or(Which::None, Which::One),
                None => {
                    stats.denied.inc();
                    return Action::Reply(wrong_name(config, name));
                }
            },
            None => by_rules(config, stream),
        };
        let Which::One(requirement) = which else {
            stats.allowed.inc();
            return Action::Continue;
        };
        let requirement = Rc::new(requirement.clone());
        worker.clone().decide(stream, requirement, Vec::new())
    }
}

impl Worker {
    /// Judges the request. `failed`: providers whose keys could not be had.
    fn decide(self: Rc<Self>, stream: &mut Stream, requirement: Rc<Requirement>, failed: Vec<usize>) -> Action {
        match self.judge(&stream.request, &requirement, &failed) {
            Judged::Passes(good) => {
                self.stats.allowed.inc();
                for good in good {
                    self.tell(stream, good);
                }
                Action::Continue
            }
            Judged::Fails(failure) => {
                self.stats.denied.inc();
                Action::Reply(self.refuse(stream, failure))
            }
            Judged::NeedsKeys(number) => {
                let Keys::Remote(remote) = &self.config.providers[number].keys else {
                    return Action::Reply(self.refuse(stream, token::NO_VALID_KEYS));
                };
                let thread: &Rc<Thread> = &stream.connection.thread;
                let fetch = self.fetched[number].fetch(remote, thread, &self.stats);
                Action::Await(Box::pin(async move {
                    let fetched = fetch.await;
                    let resume: Resume = Box::new(move |stream| {
                        let mut failed = failed;
                        if !fetched || self.fetched[number].keys().is_none() {
                            failed.push(number);
                        }
                        self.decide(stream, requirement, failed)
                    });
                    resume
                }))
            }
        }
    }

    /// Tells the filters behind this one, and the upstream, what a good token says.
    fn tell(&self, stream: &mut Stream, good: Good) {
        let Good { provider: number, token, location } = good;
        let provider = &self.config.providers[number];
        if !provider.forward {
            judge::remove(&mut stream.request, &location);
        }
        let headers = &mut stream.request.headers;
        if let Some(name) = &provider.payload_header {
            let mut text = token.payload_text.clone();
            while provider.pad_payload_header && text.len() % 4 != 0 {
                text.push('=');
            }
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.append(name, value);
            }
        }
        for claim in &provider.claims {
            if let Some(value) = judge::claim(&token.payload, &claim.path)
                && let Ok(value) = HeaderValue::try_from(value)
            {
                headers.append(&claim.header, value);
            }
        }
        let metadata = [
            (&provider.payload_in_metadata, &token.payload, true),
            (&provider.header_in_metadata, &token.header, false),
        ];
        for (name, fields, is_payload) in metadata.into_iter().filter(|(name, ..)| !name.is_empty()) {
            let fields = if is_payload { provider.normalized(fields) } else { fields.clone() };
            let mut fields = serde_json::Value::Object(fields);
            fields.sort_all_objects();
            let namespace = stream.info.dynamic_metadata.entry(NAMESPACE.into()).or_default();
            namespace.insert(name.clone(), fields);
            namespace.sort_keys();
        }
        let tells = !provider.claims.is_empty() || !provider.payload_in_metadata.is_empty();
        if provider.clear_route_cache && tells {
            stream.refresh_route();
        }
    }

    fn refuse(&self, stream: &Stream, failure: Failure) -> LocalReply {
        let status = if failure == AUDIENCE { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
        let details = details(failure.0);
        if self.config.strip_failure_response {
            return LocalReply::new(status, "", details);
        }
        let mut reply = LocalReply::new(status, failure.0, details);
        let error = if failure == MISSING { "" } else { ", error=\"invalid_token\"" };
        if let Some(challenge) = challenge(stream, "Bearer", None, error) {
            reply.headers.insert(WWW_AUTHENTICATE, challenge);
        }
        reply
    }
}

fn by_rules<'a>(config: &'a JwtAuthn, stream: &Stream) -> Which<'a> {
    let runtime = stream.connection.thread.runtime();
    let context = MatchContext {
        random: stream.random,
        runtime: &runtime,
        is_tls: stream.connection.info.tls.is_some(),
        is_internal: stream.is_internal,
        info: &stream.info,
    };
    let request = &stream.request;
    let rule = config.rules.iter().find(|rule| route_matches(&rule.matching, request, request.path_only(), &context));
    let of = |requirement: Option<&'a Requirement>| requirement.map_or(Which::None, Which::One);
    if let Some(rule) = rule {
        return of(rule.requirement.as_ref());
    }
    let Some((key, requirements)) = &config.by_filter_state else { return Which::None };
    let value = stream.info.filter_state.get(key.as_str()).and_then(|v| std::str::from_utf8(&v.text).ok());
    of(value.and_then(|value| requirements.get(value)).and_then(Option::as_ref))
}

fn is_preflight(stream: &Stream) -> bool {
    let has = |headers: &HeaderMap, name| headers.get(name).is_some_and(|value| !value.is_empty());
    let request = &stream.request;
    request.method == Method::OPTIONS
        && has(&request.headers, ORIGIN)
        && has(&request.headers, ACCESS_CONTROL_REQUEST_METHOD)
}

fn wrong_name(config: &JwtAuthn, name: &str) -> LocalReply {
    let known: Vec<&str> = config.named.keys().map(String::as_str).collect();
    let error = format!("Wrong requirement_name: {name}. It should be one of [{}]", known.join(","));
    LocalReply::new(StatusCode::FORBIDDEN, format!("Failed JWT authentication: {error}"), details(&error))
}

fn details(error: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", error.replace(' ', "_"))
}
