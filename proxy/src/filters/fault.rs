//! `envoy.filters.http.fault`: delays requests, answers them with errors, and slows responses down, for a share of them.
//!
//! Shares, delays and statuses can come from the configuration, from headers of the request (if the configuration lets
//! them), and from runtime keys, which have the last word: those of the downstream cluster before the general ones.

mod config;
mod slow_body;

use super::{
    Action, ActiveFilter, FilterConfig, FilterScope, HttpFilter, LocalReply, RouteFilterConfig, most_specific,
};
use crate::{
    base::ResponseFlag,
    http::{Body, header_names::*, stream::Stream},
    observe::stats::{Counter, Registry, StatGroup, StatRef},
    route::header_matches,
    stats,
};
pub use config::FACTORY;
use config::{Abort, Delay, Fault, RateLimit, Share};
use foldhash::HashMap;
use http::{HeaderName, StatusCode};
use slow_body::SlowBody;
use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

const NAMESPACE: &str = "envoy.filters.http.fault";
/// Clients name the clusters that are counted by themselves: no more than these are.
const MOST_CLUSTERS: usize = 1000;

stats! {
    /// `PREFIX.fault.*`
    pub struct FaultStats {
        counter aborts_injected,
        counter delays_injected,
        counter faults_overflow,
        counter response_rl_injected,
        gauge active_faults,
    }
}

/// `PREFIX.fault.CLUSTER.*`; not there before their first value.
#[derive(Debug, Default)]
struct DownstreamStats {
    aborts_injected: Counter,
    delays_injected: Counter,
}

impl StatGroup for DownstreamStats {
    fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        for (name, counter) in [("aborts_injected", &self.aborts_injected), ("delays_injected", &self.delays_injected)]
        {
            if counter.get() > 0 {
                visit(name, StatRef::Counter(counter));
            }
        }
    }
}

impl FilterConfig for Fault {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        let prefix = format!("{}.fault", scope.stat_prefix);
        Rc::new(Active {
            config: self,
            shared: Rc::new(Shared {
                stats: scope.thread.registry.attach(&prefix),
                registry: scope.thread.registry.clone(),
                prefix,
                downstream: RefCell::default(),
            }),
        })
    }
}

/// One worker's part.
struct Active {
    config: Arc<Fault>,
    shared: Rc<Shared>,
}

struct Shared {
    stats: Arc<FaultStats>,
    registry: Registry,
    prefix: String,
    downstream: RefCell<HashMap<Box<str>, Arc<DownstreamStats>>>,
}

impl Shared {
    fn of_downstream(&self, cluster: &str) -> Option<Arc<DownstreamStats>> {
        let mut all = self.downstream.borrow_mut();
        if let Some(stats) = all.get(cluster) {
            return Some(stats.clone());
        }
        if all.len() >= MOST_CLUSTERS {
            return None;
        }
        let stats: Arc<DownstreamStats> = self.registry.attach(&format!("{}.{cluster}", self.prefix));
        all.insert(cluster.into(), stats.clone());
        Some(stats)
    }
}

impl ActiveFilter for Active {
    fn create(&self, stream: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let config = most_specific::<Fault>(routes).unwrap_or_else(|| self.config.clone());
        if config.injects_nothing() || !is_meant(&config, stream) {
            return None;
        }
        let downstream = stream.request.headers.get(ENVOY_DOWNSTREAM_SERVICE_CLUSTER);
        let downstream = downstream
            .filter(|_| !config.disable_downstream_cluster_stats)
            .and_then(|value| value.to_str().ok())
            .map(Into::into);
        Some(Box::new(Filter {
            run: Rc::new(RefCell::new(Run {
                config,
                shared: self.shared.clone(),
                // Counted for all routes together, as the gauge is.
                limit: self.config.clone(),
                downstream,
                is_active: false,
            })),
            kilobytes_per_second: None,
        }))
    }
}

/// True if the request is one of those that are to get faults.
fn is_meant(config: &Fault, stream: &Stream) -> bool {
    let request = &stream.request;
    if !config.upstream_cluster.is_empty() {
        let cluster =
            stream.route.as_ref().and_then(|route| route.cluster(&stream.connection.thread.upstreams, request));
        if cluster.is_none_or(|cluster| cluster.info().name() != config.upstream_cluster) {
            return false;
        }
    }
    if !config.downstream_nodes.is_empty() {
        let node = request.headers.get(ENVOY_DOWNSTREAM_SERVICE_NODE);
        if node.is_none_or(|node| !config.downstream_nodes.iter().any(|name| node == name.as_str())) {
            return false;
        }
    }
    config.headers.iter().all(|matcher| header_matches(matcher, request))
}

struct Filter {
    /// A delay has it, too.
    run: Rc<RefCell<Run>>,
    kilobytes_per_second: Option<u64>,
}

/// What one request gets.
struct Run {
    config: Arc<Fault>,
    shared: Rc<Shared>,
    limit: Arc<Fault>,
    downstream: Option<Box<str>>,
    /// It counts as an active fault.
    is_active: bool,
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.is_active {
            self.limit.active.fetch_sub(1, Relaxed);
            self.shared.stats.active_faults.dec();
        }
    }
}

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        let mut run = self.run.borrow_mut();
        self.kilobytes_per_second = run.response_limit(stream);
        let Some(delay) = run.delay(stream) else {
            return run.abort(stream).map_or(Action::Continue, Action::Reply);
        };
        let run = self.run.clone();
        Action::Await(Box::pin(async move {
            tokio::time::sleep(delay).await;
            let resume: super::Resume =
                Box::new(move |stream| run.borrow_mut().abort(stream).map_or(Action::Continue, Action::Reply));
            resume
        }))
    }

    fn response_body(&mut self, stream: &mut Stream, body: Body) -> Body {
        match self.kilobytes_per_second {
            Some(limit) => SlowBody::new(body, limit, stream.connection.manager.buffer_limit),
            None => body,
        }
    }
}

impl Run {
    /// Counts the fault as active, once; false if there are as many as there may be.
    fn begin(&mut self, stream: &Stream) -> bool {
        if self.is_active {
            return true;
        }
        let runtime = stream.connection.thread.runtime();
        let configured = self.config.max_active_faults.map_or(u64::MAX, u64::from);
        let most = runtime.integer(&self.config.keys.max_active_faults).unwrap_or(configured);
        let stats = &self.shared.stats;
        if u64::from(self.limit.active.fetch_add(1, Relaxed)) >= most {
            self.limit.active.fetch_sub(1, Relaxed);
            stats.faults_overflow.inc();
            return false;
        }
        stats.active_faults.inc();
        self.is_active = true;
        true
    }

    /// A runtime key of the downstream cluster's own.
    fn own_key(&self, tail: &str) -> Option<String> {
        self.downstream.as_ref().map(|cluster| format!("fault.http.{cluster}.{tail}"))
    }

    fn takes(&self, stream: &Stream, share: &Share, header: &HeaderName, own: Option<&str>, key: &str) -> bool {
        let mut percentage = share.percentage;
        if share.by_header
            && let Some(asked) = number(stream, header)
        {
            percentage.numerator = percentage.numerator.min(u32::try_from(asked).unwrap_or(u32::MAX));
        }
        let own = own.and_then(|tail| self.own_key(tail));
        let fraction = weft_config::percent::RuntimeFractionalPercent {
            default: percentage,
            runtime_key: own.unwrap_or_else(|| key.to_owned()),
        };
        stream.connection.thread.runtime().takes(&fraction, fastrand::u64(..))
    }

    /// A number that runtime keys may change.
    fn adjusted(&self, stream: &Stream, value: u64, own: &str, key: &str) -> u64 {
        let runtime = stream.connection.thread.runtime();
        let own = self.own_key(own).and_then(|key| runtime.integer(&key));
        own.or_else(|| runtime.integer(key)).unwrap_or(value)
    }

    fn response_limit(&mut self, stream: &Stream) -> Option<u64> {
        let config = self.config.clone();
        let RateLimit { share, fixed } = config.rate_limit.as_ref()?;
        let key = &config.keys.rate_limit_percent;
        if !self.takes(stream, share, &config::THROUGHPUT_PERCENTAGE, None, key) {
            return None;
        }
        let limit = fixed.or_else(|| number(stream, &config::THROUGHPUT)).filter(|limit| *limit > 0)?;
        if !self.begin(stream) {
            return None;
        }
        self.shared.stats.response_rl_injected.inc();
        Some(limit)
    }

    fn delay(&mut self, stream: &mut Stream) -> Option<Duration> {
        let config = self.config.clone();
        let Delay { share, fixed } = config.delay.as_ref()?;
        let (own, key) = ("delay.fixed_delay_percent", &config.keys.delay_percent);
        if !self.takes(stream, share, &config::DELAY_PERCENTAGE, Some(own), key) {
            return None;
        }
        let asked = fixed.map(|fixed| fixed.as_millis() as u64).or_else(|| number(stream, &config::DELAY))?;
        let delay = self.adjusted(stream, asked, "delay.fixed_duration_ms", &config.keys.delay_duration);
        if delay == 0 || !self.begin(stream) {
            return None;
        }
        self.shared.stats.delays_injected.inc();
        if let Some(stats) = self.downstream.as_ref().and_then(|cluster| self.shared.of_downstream(cluster)) {
            stats.delays_injected.inc();
        }
        self.tell(stream, ResponseFlag::DelayInjected);
        Some(Duration::from_millis(delay))
    }

    fn abort(&mut self, stream: &mut Stream) -> Option<LocalReply> {
        let config = self.config.clone();
        let abort = config.abort.as_ref()?;
        let (own, key) = ("abort.abort_percent", &config.keys.abort_percent);
        if !self.takes(stream, &abort.share, &config::ABORT_PERCENTAGE, Some(own), key) {
            return None;
        }
        let (status, grpc) = self.status(stream, abort)?;
        if !self.begin(stream) {
            return None;
        }
        self.shared.stats.aborts_injected.inc();
        if let Some(stats) = self.downstream.as_ref().and_then(|cluster| self.shared.of_downstream(cluster)) {
            stats.aborts_injected.inc();
        }
        self.tell(stream, ResponseFlag::FaultInjected);
        let mut reply = LocalReply::new(status, abort.body.clone(), "fault_filter_abort");
        reply.grpc_status = grpc;
        Some(reply)
    }

    /// An HTTP status, or 200 with one of gRPC.
    fn status(&self, stream: &Stream, abort: &Abort) -> Option<(StatusCode, Option<u32>)> {
        let keys = &self.config.keys;
        let http = if abort.by_header() {
            number(stream, &config::ABORT).filter(|code| (200..600).contains(code))
        } else {
            abort.http.map(u64::from)
        };
        if let Some(code) = http {
            let code = self.adjusted(stream, code, "abort.http_status", &keys.abort_http_status);
            return Some((StatusCode::from_u16(code.try_into().ok()?).ok()?, None));
        }
        let grpc = if abort.by_header() { number(stream, &config::ABORT_GRPC) } else { abort.grpc.map(u64::from) }?;
        let grpc = self.adjusted(stream, grpc, "abort.grpc_status", &keys.abort_grpc_status);
        Some((StatusCode::OK, Some(grpc.try_into().ok()?)))
    }

    /// Marks the stream.
    fn tell(&self, stream: &mut Stream, flag: ResponseFlag) {
        stream.info.set_flag(flag);
        if let Some(metadata) = &self.config.metadata {
            let namespace = stream.info.dynamic_metadata.entry(NAMESPACE.into()).or_default();
            weft_config::metadata::merge(namespace, metadata);
        }
    }
}

fn number(stream: &Stream, header: &HeaderName) -> Option<u64> {
    stream.request.headers.get(header)?.to_str().ok()?.trim().parse().ok()
}
