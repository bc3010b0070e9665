//! `envoy.filters.http.health_check`: answers the health checks of whoever is in front of this proxy, or takes part in
//! those that its service answers.
//!
//! A check is a request whose headers all match. Without pass-through the answer is this proxy's own: it fails after
//! `/healthcheck/fail`, or while too few hosts of the named clusters are healthy. With pass-through the service
//! answers, and its answer may be given again for a while. All other responses tell when this proxy is to be failed.

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, LocalReply, RouteFilterConfig,
};
use crate::{
    base::ResponseFlag,
    http::{ResponseHead, header_names::*, stream::Stream},
    route::header_matches,
    upstream::Health,
};
use http::{HeaderValue, StatusCode};
use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use weft_config::{Context, header_matcher::HeaderMatcher};
use weft_control_api::{Any, envoy::extensions::filters::http::health_check::v3 as pb};

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.health_check",
    type_name: "envoy.extensions.filters.http.health_check.v3.HealthCheck",
    parse: |any, cx| parse(any, cx).map(|config| Arc::new(config) as Arc<dyn FilterConfig>),
    route: None,
};

struct HealthCheck {
    pass_through: bool,
    headers: Vec<HeaderMatcher>,
    /// Percent of a cluster's hosts, by its name.
    least_healthy: Vec<(String, f64)>,
    cache: Option<Cache>,
}

/// The service's last answer, given again until the period in which it came is over.
struct Cache {
    period: Duration,
    start: Instant,
    /// The period's number plus one, then 16 bits of status, then whether the service is degraded; zero: nothing.
    answer: AtomicU64,
}

impl Cache {
    fn now(&self) -> u64 {
        (self.start.elapsed().as_nanos() / self.period.as_nanos()) as u64 + 1
    }

    fn set(&self, status: StatusCode, degraded: bool) {
        self.answer.store(self.now() << 17 | u64::from(status.as_u16()) << 1 | u64::from(degraded), Relaxed);
    }

    fn get(&self) -> Option<(StatusCode, bool)> {
        let answer = self.answer.load(Relaxed);
        let status = StatusCode::from_u16((answer >> 1) as u16).ok()?;
        (answer >> 17 == self.now()).then_some((status, answer & 1 == 1))
    }
}

fn parse(any: &Any, cx: &mut Context) -> Option<HealthCheck> {
    let pb::HealthCheck { pass_through_mode, cache_time, cluster_min_healthy_percentages, headers } =
        cx.unpack("typed_config", any)?;
    cx.field("typed_config", |cx| {
        let pass_through = cx.required("pass_through_mode", pass_through_mode)?;
        let period = cx.duration("cache_time", cache_time).filter(|period| !period.is_zero());
        if period.is_some() && !pass_through {
            cx.problem_at("cache_time", "must not be set when pass_through_mode is disabled");
        }
        Some(HealthCheck {
            pass_through,
            headers: cx.elements("headers", headers, |cx, p| HeaderMatcher::from_proto(p, cx)),
            least_healthy: cluster_min_healthy_percentages.into_iter().map(|(name, p)| (name, p.value)).collect(),
            cache: period.map(|period| Cache { period, start: Instant::now(), answer: AtomicU64::new(0) }),
        })
    })
}

impl FilterConfig for HealthCheck {
    fn activate(self: Arc<Self>, _: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        Rc::new(Active(self))
    }
}

/// One worker's part.
struct Active(Arc<HealthCheck>);

impl ActiveFilter for Active {
    fn create(&self, stream: &Stream, _: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let is_check = self.0.headers.iter().all(|matcher| header_matches(matcher, &stream.request));
        (is_check || stream.connection.thread.health_check_failed.get())
            .then(|| Box::new(Filter { config: self.0.clone(), is_check }) as Box<dyn HttpFilter>)
    }
}

struct Filter {
    config: Arc<HealthCheck>,
    is_check: bool,
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        if !self.is_check {
            return Action::Continue;
        }
        stream.info.is_health_check = true;
        let cached = self.config.cache.as_ref().and_then(Cache::get);
        let failed = stream.connection.thread.health_check_failed.get();
        let (status, degraded, details) = match cached {
            _ if failed => (StatusCode::SERVICE_UNAVAILABLE, false, "health_check_failed"),
            Some((status, degraded)) => (status, degraded, "health_check_cached"),
            None if self.config.pass_through => return Action::Continue,
            None => self.of_clusters(stream),
        };
        if !status.is_success() {
            stream.info.set_flag(ResponseFlag::FailedLocalHealthCheck);
        }
        let mut reply = LocalReply::new(status, "", details);
        if degraded {
            reply.headers.insert(ENVOY_DEGRADED, HeaderValue::from_static(""));
        }
        Action::Reply(reply)
    }

    fn on_response(&mut self, stream: &mut Stream, head: &mut ResponseHead, _end: bool) -> Action {
        let thread = &stream.connection.thread;
        // A filter before this one may have answered the request.
        if self.is_check && stream.info.is_health_check {
            if let Some(cache) = &self.config.cache {
                cache.set(head.status, head.headers.contains_key(ENVOY_DEGRADED));
            }
            let cluster = thread.local.service_cluster.clone();
            head.headers.insert(ENVOY_UPSTREAM_HEALTHCHECKED_CLUSTER, cluster.unwrap_or(HeaderValue::from_static("")));
        }
        if thread.health_check_failed.get() {
            head.headers.insert(ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL, HeaderValue::from_static("true"));
        }
        Action::Continue
    }
}

impl Filter {
    /// The answer by how many hosts of the named clusters are healthy or degraded.
    fn of_clusters(&self, stream: &Stream) -> (StatusCode, bool, &'static str) {
        let bad = |details| (StatusCode::SERVICE_UNAVAILABLE, false, details);
        for (name, least) in &self.config.least_healthy {
            let Some(cluster) = stream.connection.thread.upstreams.by_name(name) else {
                return bad("health_check_failed_no_cluster_found");
            };
            let hosts = cluster.host_set();
            let (mut total, mut healthy) = (0u32, 0u32);
            for host in hosts.hosts() {
                total += 1;
                healthy += u32::from(host.health() != Health::Unhealthy);
            }
            if total == 0 && *least > 0.0 {
                return bad("health_check_failed_cluster_empty");
            }
            if f64::from(healthy) * 100.0 < f64::from(total) * least {
                return bad("health_check_failed_cluster_unhealthy");
            }
        }
        let details =
            if self.config.least_healthy.is_empty() { "health_check_ok" } else { "health_check_ok_cluster_healthy" };
        (StatusCode::OK, false, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_for_its_period() {
        let cache = Cache { period: Duration::from_secs(3600), start: Instant::now(), answer: AtomicU64::new(0) };
        assert_eq!(cache.get(), None);
        cache.set(StatusCode::BAD_GATEWAY, true);
        assert_eq!(cache.get(), Some((StatusCode::BAD_GATEWAY, true)));
        let brief = Cache { period: Duration::from_nanos(1), ..cache };
        assert_eq!(brief.get(), None);
    }
}
