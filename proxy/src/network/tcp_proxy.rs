//! `envoy.filters.network.tcp_proxy`: the bytes of a connection go to a host of a cluster and back.

mod transfer;
mod tunnel;

use super::{CompileContext, Connection, FactsSlot, ListenerFacts, NetworkFilter, Terminal, sni_cluster::CLUSTER_KEY};
use crate::{
    base::{ResetReason, ResponseFlag, StreamError, Timer},
    http::{Thread, demand::Wanted, hash_policy},
    observe::{StreamInfo, access_log::AccessLogs, format::Facts},
    stats,
    transport::Io,
    upstream::{
        ClosedBy, ClusterId, LbContext, MetadataMatch, Priority, ThreadCluster, ThreadHost, UpstreamConnection,
        outlier::Report,
    },
};
use bytes::{Bytes, BytesMut};
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Instant,
};
use tokio::io::AsyncReadExt;
use transfer::{Counters, Direction, Failed, Transfer};
use tunnel::Tunneling;
use weft_config::{
    Context,
    tcp_proxy::{HashPolicy, TcpProxy as Config, WeightedCluster},
};
use weft_control_api::{Any, envoy::extensions::filters::network::tcp_proxy::v3 as pb};
use xxhash_rust::xxh64::xxh64;

pub const TYPE: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

stats! {
    /// `tcp.PREFIX.*`, where clusters are asked for
    pub struct OnDemandStats {
        counter on_demand_cluster_attempt,
        counter on_demand_cluster_missing,
        counter on_demand_cluster_success,
        counter on_demand_cluster_timeout,
    }
}

stats! {
    /// `tcp.PREFIX.*`
    pub struct TcpProxyStats {
        counter downstream_cx_no_route,
        counter downstream_cx_rx_bytes_total,
        counter downstream_cx_total,
        counter downstream_cx_tx_bytes_total,
        counter downstream_flow_control_paused_reading_total,
        counter downstream_flow_control_resumed_reading_total,
        counter early_data_received_count_total,
        counter idle_timeout,
        counter max_downstream_connection_duration,
        counter downstream_cx_drain_close,
        counter downstream_cx_overload_close,
        counter route_delayed_total,
        counter upstream_flush_total,
        gauge downstream_cx_rx_bytes_buffered,
        gauge downstream_cx_tx_bytes_buffered,
        gauge upstream_flush_active,
    }
}

struct TcpProxy {
    config: Config,
    clusters: Vec<(ClusterId, u32, Option<MetadataMatch>)>,
    total: u64,
    tunneling: Option<Tunneling>,
    logs: AccessLogs,
    listener: ListenerFacts,
}

pub fn compile(any: &Any, compile: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn NetworkFilter>> {
    let config: pb::TcpProxy = cx.unpack("", any)?;
    let config = Config::from_proto(config, cx)?;
    let wanted = |c: &WeightedCluster| MetadataMatch::compile(&config.metadata_match, Some(&c.metadata_match));
    let clusters = config.clusters.iter().map(|c| (compile.names.intern(&c.name), c.weight, wanted(c)));
    let clusters: Vec<_> = clusters.collect();
    Some(Arc::new(TcpProxy {
        total: clusters.iter().map(|(_, weight, _)| u64::from(*weight)).sum(),
        clusters,
        tunneling: config.tunneling.as_ref().map(|p| cx.field("tunneling_config", |cx| Tunneling::compile(p, cx))),
        logs: AccessLogs::compile("access_log", &config.access_log, compile.log_writer, cx),
        listener: compile.listener.clone(),
        config,
    }))
}

/// One worker's part.
struct Active {
    proxy: Arc<TcpProxy>,
    stats: Arc<TcpProxyStats>,
    on_demand_stats: Option<Arc<OnDemandStats>>,
}

impl NetworkFilter for TcpProxy {
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Terminal> {
        let prefix = format!("tcp.{}", self.config.stat_prefix.trim_end_matches('.').replace(':', "_"));
        let on_demand_stats = self.config.on_demand.is_some().then(|| thread.registry.attach(&prefix));
        Rc::new(Active { stats: thread.registry.attach(&prefix), on_demand_stats, proxy: self })
    }
}

impl Terminal for Active {
    fn serve(self: Rc<Self>, connection: Connection) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            let (mut session, io) = Session::new(self, connection);
            session.run(io).await;
        })
    }

    fn missed(&self, connection: Connection) {
        let active = Self { proxy: self.proxy.clone(), stats: self.stats.clone(), on_demand_stats: None };
        drop(Session::new(Rc::new(active), connection));
    }
}

/// One connection; its drop writes the log, whatever happened.
struct Session {
    info: StreamInfo,
    thread: Rc<Thread>,
    active: Rc<Active>,
    /// Where the listener's log finds what is known.
    facts: Option<FactsSlot>,
    /// Which of the clusters was chosen.
    chosen: usize,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.info.points.end = Some(Instant::now());
        self.log("TcpConnectionEnd");
        if let Some(facts) = &self.facts {
            let nothing = StreamInfo::new(self.info.connection.clone());
            facts.set(Some(Box::new(std::mem::replace(&mut self.info, nothing))));
        }
    }
}

impl Session {
    fn new(active: Rc<Active>, connection: Connection) -> (Self, Io) {
        let Connection { io, info, is_tls: _, drain: _, thread, dynamic_metadata, filter_state, facts } = connection;
        active.stats.downstream_cx_total.inc();
        let mut info = StreamInfo::new(info);
        info.dynamic_metadata = dynamic_metadata;
        info.filter_state = filter_state;
        info.listener_metadata = active.proxy.listener.metadata.clone();
        (Self { info, thread, active, facts, chosen: 0 }, io)
    }

    fn log(&self, log_type: &'static str) {
        let facts = Facts { log_type, ..Facts::new(&self.info) };
        self.active.proxy.logs.log(&facts, &self.thread.runtime());
    }

    async fn run(&mut self, mut downstream: Io) {
        let active = self.active.clone();
        let config = &active.proxy.config;
        if config.flush_access_log_on_start {
            self.log("TcpConnectionStart");
        }
        if let Some(most) = config.early_data {
            let Some(early) = self.read_early(&mut downstream, most).await else { return };
            downstream.put_back(early);
        }
        let cluster = match self.pick_cluster() {
            None => self.ask_for_cluster().await,
            found => found,
        };
        let Some(cluster) = cluster else {
            active.stats.downstream_cx_no_route.inc();
            self.info.set_flag(ResponseFlag::NoClusterFound);
            return;
        };
        self.info.upstream.cluster = Some(cluster.info().observability_name.clone());
        self.info.upstream.cluster_metadata = cluster.info().metadata.clone();
        self.info.points.upstream_connect_start = Some(Instant::now());
        let Some((mut upstream, connection)) = self.connect(&cluster).await else { return };
        self.info.points.upstream_connect_end = Some(Instant::now());
        self.info.upstream.local = connection.local().cloned();
        self.info.upstream.remote = connection.remote().cloned();
        self.info.upstream.connection_id = Some(connection.id());
        self.info.upstream.tls = connection.tls().cloned();
        self.info.upstream.protocol = connection.protocol();
        if config.flush_access_log_on_connected {
            self.log("TcpUpstreamConnected");
        }
        let by = self.transfer(&cluster, &mut downstream, &mut upstream).await;
        if connection.protocol().is_none() {
            connection.closed(by, true);
        }
    }

    /// Waits for a cluster that is not there, if it is to be asked for.
    async fn ask_for_cluster(&self) -> Option<Rc<ThreadCluster>> {
        let on_demand = self.active.proxy.config.on_demand.as_ref()?;
        let stats = self.active.on_demand_stats.as_ref()?;
        let name = self.cluster_name()?;
        stats.on_demand_cluster_attempt.inc();
        let waiting = self.thread.demands.ask(Wanted::Cluster(name.clone()), Some(&on_demand.source));
        let counter = match tokio::time::timeout(on_demand.timeout, waiting).await {
            Ok(true) => &stats.on_demand_cluster_success,
            Ok(false) => &stats.on_demand_cluster_missing,
            Err(_) => &stats.on_demand_cluster_timeout,
        };
        counter.inc();
        self.thread.upstreams.by_name(&name)
    }

    /// The client's first bytes, before which no host is connected to; at most about `most` are read.
    async fn read_early(&mut self, downstream: &mut Io, most: usize) -> Option<Bytes> {
        let mut early = BytesMut::new();
        let n = downstream.read_buf(&mut early).await.ok()?;
        self.active.stats.early_data_received_count_total.inc();
        (n > 0).then(|| early.freeze()).filter(|_| most > 0)
    }

    /// Moves bytes until the connection is over; says who ended the host's.
    async fn transfer(&mut self, cluster: &ThreadCluster, downstream: &mut Io, upstream: &mut Io) -> ClosedBy {
        let active = self.active.clone();
        let (config, stats, cluster_stats) = (&active.proxy.config, &active.stats, cluster.stats());
        let here = active.proxy.listener.buffer_limit;
        let there = cluster.info().config.per_connection_buffer_limit_bytes as usize;
        let to_upstream = Counters {
            read: &stats.downstream_cx_rx_bytes_total,
            written: &cluster_stats.upstream_cx_tx_bytes_total,
            paused: &stats.downstream_flow_control_paused_reading_total,
            resumed: &stats.downstream_flow_control_resumed_reading_total,
        };
        let to_downstream = Counters {
            read: &cluster_stats.upstream_cx_rx_bytes_total,
            written: &stats.downstream_cx_tx_bytes_total,
            paused: &cluster_stats.upstream_flow_control_paused_reading_total,
            resumed: &cluster_stats.upstream_flow_control_resumed_reading_total,
        };
        let mut transfer = Transfer {
            downstream,
            upstream,
            to_upstream: Direction::new(here, there, to_upstream),
            to_downstream: Direction::new(there, here, to_downstream),
        };
        let (mut idle, mut most, mut periodic) = (Timer::new(), Timer::new(), Timer::new());
        idle.set_after(config.idle_timeout);
        let jitter = 1.0 + fastrand::f64() * config.max_duration_jitter / 100.0;
        most.set_after(config.max_downstream_connection_duration.map(|duration| duration.mul_f64(jitter)));
        periodic.set_after(config.access_log_flush_interval);
        let mut seen = 0;
        let mut flushing = false;
        let by = loop {
            let end = poll_fn(|cx| {
                if let Poll::Ready(result) = transfer.poll(cx) {
                    return Poll::Ready(Event::Done(result));
                }
                let (up, down) = (&transfer.to_upstream, &transfer.to_downstream);
                let now = up.read() + up.written() + down.read() + down.written();
                if now != seen {
                    seen = now;
                    idle.set_after(config.idle_timeout);
                }
                if idle.poll(cx).is_ready() {
                    return Poll::Ready(Event::Idle);
                }
                if most.poll(cx).is_ready() {
                    return Poll::Ready(Event::TooLong);
                }
                if !flushing && transfer.is_flushing_upstream() {
                    flushing = true;
                    stats.upstream_flush_total.inc();
                    stats.upstream_flush_active.inc();
                }
                periodic.poll(cx).map(|()| Event::Log)
            })
            .await;
            let bytes = &mut self.info.bytes;
            bytes.received = transfer.to_upstream.read();
            bytes.sent = transfer.to_downstream.read();
            (bytes.downstream_wire_received, bytes.downstream_wire_sent) = (bytes.received, bytes.sent);
            (bytes.upstream_wire_sent, bytes.upstream_wire_received) = (transfer.to_upstream.written(), bytes.sent);
            match end {
                Event::Log => {
                    self.log("TcpPeriodic");
                    periodic.set_after(config.access_log_flush_interval);
                }
                Event::Done(Ok(client_was_last)) => break if client_was_last { ClosedBy::Us } else { ClosedBy::Peer },
                Event::Done(Err(Failed::Downstream { reset })) => {
                    if reset {
                        transfer.upstream.reset_on_drop();
                    }
                    break ClosedBy::Us;
                }
                Event::Done(Err(Failed::Upstream { reset })) => {
                    if reset {
                        self.info.set_flag(ResponseFlag::UpstreamRemoteReset);
                        transfer.downstream.reset_on_drop();
                    }
                    break ClosedBy::Peer;
                }
                Event::Idle => {
                    stats.idle_timeout.inc();
                    break ClosedBy::Us;
                }
                Event::TooLong => {
                    stats.max_downstream_connection_duration.inc();
                    self.info.set_flag(ResponseFlag::DurationTimeout);
                    break ClosedBy::Us;
                }
            }
        };
        if flushing {
            stats.upstream_flush_active.dec();
        }
        by
    }

    fn pick_cluster(&mut self) -> Option<Rc<ThreadCluster>> {
        if let Some(named) = self.info.filter_state.get(CLUSTER_KEY) {
            return self.thread.upstreams.by_name(std::str::from_utf8(&named.text).ok()?);
        }
        let proxy = &self.active.proxy;
        let mut left = if proxy.total > 1 { fastrand::u64(..proxy.total) } else { 0 };
        let chosen = proxy.clusters.iter().position(|(_, weight, _)| {
            let taken = left < u64::from(*weight);
            left = left.wrapping_sub(u64::from(*weight));
            taken
        });
        self.chosen = chosen?;
        self.thread.upstreams.get(proxy.clusters.get(self.chosen)?.0)
    }

    /// The name of the cluster that was picked, whether or not it is there.
    fn cluster_name(&self) -> Option<String> {
        if let Some(named) = self.info.filter_state.get(CLUSTER_KEY) {
            return Some(std::str::from_utf8(&named.text).ok()?.to_owned());
        }
        Some(self.thread.upstreams.name(self.active.proxy.clusters.get(self.chosen)?.0))
    }

    /// Tries hosts until one takes the connection.
    async fn connect(&mut self, cluster: &Rc<ThreadCluster>) -> Option<(Io, Rc<UpstreamConnection>)> {
        let active = self.active.clone();
        let config = &active.proxy.config;
        let mut pause = config.backoff.map(|(base, _)| base);
        let hash = if cluster.wants_hash() { self.hash() } else { None };
        let of_cluster = active.proxy.clusters.get(self.chosen).and_then(|(_, _, wanted)| wanted.as_ref());
        let own =
            cluster.wants_metadata().then(|| MetadataMatch::with_dynamic(of_cluster, &self.info.dynamic_metadata));
        let own = own.flatten();
        for attempt in 1..=config.max_connect_attempts {
            let connections = &cluster.info().breakers.of(Priority::Default).connections;
            if connections.current() >= connections.max() {
                cluster.stats().upstream_cx_overflow.inc();
                self.info.set_flag(ResponseFlag::UpstreamOverflow);
                return None;
            }
            let connection = self.info.connection.clone();
            let context = LbContext {
                connection: Some(&connection),
                dynamic_metadata: Some(&self.info.dynamic_metadata),
                hash,
                metadata_match: own.as_ref().or(of_cluster),
                attempt: attempt - 1,
                ..LbContext::default()
            };
            let Some(host) = cluster.choose_host(&context) else {
                self.info.set_flag(ResponseFlag::NoHealthyUpstream);
                return None;
            };
            self.info.attempt_count = attempt;
            let context = LbContext { connection: Some(&connection), ..LbContext::default() };
            match self.connect_to(cluster, &host, &context).await {
                Ok(connected) => {
                    host.report(Report::ConnectedFinally);
                    return Some(connected);
                }
                Err(error) => {
                    match error.reason {
                        ResetReason::Overflow => {}
                        ResetReason::ConnectionTimeout => host.report(Report::TimedOut),
                        _ => host.report(Report::Failed),
                    }
                    self.refused(&error);
                }
            }
            if let (Some(wait), Some((_, most))) = (pause, config.backoff)
                && attempt < config.max_connect_attempts
            {
                tokio::time::sleep(wait.mul_f64(fastrand::f64())).await;
                pause = Some((wait * 2).min(most));
            }
        }
        cluster.stats().upstream_cx_connect_attempts_exceeded.inc();
        self.info.set_flag(ResponseFlag::UpstreamRetryLimitExceeded);
        None
    }

    /// What the connection hashes to, for clusters that pick by hash.
    fn hash(&self) -> Option<u64> {
        match self.active.proxy.config.hash_policy.first()? {
            HashPolicy::SourceIp => Some(hash_policy::of_ip(self.info.connection.remote.ip()?.ip())),
            HashPolicy::FilterState(key) => Some(xxh64(&self.info.filter_state.get(key.as_str())?.text, 0)),
        }
    }

    async fn connect_to(
        &mut self,
        cluster: &Rc<ThreadCluster>,
        host: &Rc<ThreadHost>,
        context: &LbContext<'_>,
    ) -> Result<(Io, Rc<UpstreamConnection>), StreamError> {
        self.info.upstream.host = Some(host.address().clone());
        self.info.upstream.host_name = Some(host.host().hostname.clone());
        self.info.upstream.host_metadata = host.host().metadata.clone();
        self.info.upstream.attempted.push(host.address().clone());
        match &self.active.proxy.tunneling {
            Some(tunneling) => tunneling.open(cluster, host, &self.info).await,
            None => cluster.tcp_connect(host, context).await,
        }
    }

    fn refused(&mut self, error: &StreamError) {
        if error.reason == ResetReason::Overflow {
            // No connection was tried, so there is no host to name.
            self.info.upstream.host = None;
            return;
        }
        self.info.set_flag(error.reason.upstream_flag());
        if !error.details.is_empty() {
            self.info.upstream.transport_failure = Some(error.details.clone());
        }
    }
}

enum Event {
    Done(Result<bool, Failed>),
    Idle,
    TooLong,
    Log,
}
