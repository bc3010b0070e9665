//! `envoy.filters.network.tcp_proxy`: the bytes of a connection go to a host of a cluster and back.

use super::{CompileContext, Connection, ListenerFacts, NetworkFilter, Terminal};
use crate::{
    base::{ResponseFlag, StreamError, Timer},
    http::Thread,
    observe::{StreamInfo, access_log::AccessLogs, format::Facts},
    stats,
    transport::Io,
    upstream::{ClusterId, LbContext, ThreadCluster, UpstreamConnection},
};
use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
    time::Instant,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_config::{Context, tcp_proxy::TcpProxy as Config};
use weft_control_api::{Any, envoy::extensions::filters::network::tcp_proxy::v3 as pb};

pub const TYPE: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

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
        counter on_demand_cluster_attempt,
        counter on_demand_cluster_missing,
        counter on_demand_cluster_success,
        counter on_demand_cluster_timeout,
        counter upstream_flush_total,
        gauge downstream_cx_rx_bytes_buffered,
        gauge downstream_cx_tx_bytes_buffered,
        gauge upstream_flush_active,
    }
}

struct TcpProxy {
    config: Config,
    clusters: Vec<(ClusterId, u32)>,
    total: u64,
    logs: AccessLogs,
    listener: ListenerFacts,
}

pub fn compile(any: &Any, compile: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn NetworkFilter>> {
    let config: pb::TcpProxy = cx.unpack("", any)?;
    let config = Config::from_proto(config, cx)?;
    let clusters: Vec<_> = config.clusters.iter().map(|c| (compile.names.intern(&c.name), c.weight)).collect();
    Some(Arc::new(TcpProxy {
        total: clusters.iter().map(|(_, weight)| u64::from(*weight)).sum(),
        clusters,
        logs: AccessLogs::compile("access_log", &config.access_log, compile.log_writer, cx),
        listener: compile.listener.clone(),
        config,
    }))
}

/// One worker's part.
struct Active {
    proxy: Arc<TcpProxy>,
    stats: Arc<TcpProxyStats>,
}

impl NetworkFilter for TcpProxy {
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Terminal> {
        let prefix = format!("tcp.{}", self.config.stat_prefix.trim_end_matches('.').replace(':', "_"));
        Rc::new(Active { stats: thread.registry.attach(&prefix), proxy: self })
    }
}

impl Terminal for Active {
    fn serve(self: Rc<Self>, connection: Connection) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            self.stats.downstream_cx_total.inc();
            let mut session = Session {
                info: StreamInfo::new(connection.info.clone()),
                thread: connection.thread.clone(),
                active: self.clone(),
            };
            session.info.dynamic_metadata = connection.dynamic_metadata.clone();
            session.info.listener_metadata = self.proxy.listener.metadata.clone();
            session.run(connection.io).await;
        })
    }
}

/// One connection; its drop writes the log, whatever happened.
struct Session {
    info: StreamInfo,
    thread: Rc<Thread>,
    active: Rc<Active>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.info.points.end = Some(Instant::now());
        self.log("TcpConnectionEnd");
    }
}

impl Session {
    fn log(&self, log_type: &'static str) {
        let facts = Facts { log_type, ..Facts::new(&self.info) };
        self.active.proxy.logs.log(&facts, &self.thread.runtime());
    }

    async fn run(&mut self, mut downstream: Io) {
        let active = self.active.clone();
        let (proxy, stats) = (&active.proxy, &active.stats);
        let config = &proxy.config;
        if config.flush_access_log_on_start {
            self.log("TcpConnectionStart");
        }
        let Some(cluster) = self.pick_cluster() else {
            stats.downstream_cx_no_route.inc();
            self.info.set_flag(ResponseFlag::NoClusterFound);
            self.info.set_details("cluster_not_found");
            return;
        };
        self.info.upstream.cluster = Some(cluster.info().observability_name.clone());
        self.info.upstream.cluster_metadata = cluster.info().metadata.clone();
        let connected = self.connect(&cluster).await;
        let Some((mut upstream, connection)) = connected else { return };
        self.info.upstream.local = connection.local().cloned();
        self.info.upstream.remote = connection.remote().cloned();
        self.info.upstream.connection_id = Some(connection.id());
        if config.flush_access_log_on_connected {
            self.log("TcpUpstreamConnected");
        }
        let progress = Progress::default();
        let mut moving = Moving::new(&mut downstream, &mut upstream, proxy.listener.buffer_limit);
        let mut idle = Timer::new();
        let mut most = Timer::new();
        most.set_after(
            config
                .max_downstream_connection_duration
                .map(|d| d.mul_f64(1.0 + fastrand::f64() * config.max_duration_jitter / 100.0)),
        );
        let mut periodic = Timer::new();
        periodic.set_after(config.access_log_flush_interval);
        let mut seen = (0, 0);
        idle.set_after(config.idle_timeout);
        loop {
            let end = poll_fn(|cx| {
                if let Poll::Ready(result) = moving.poll(cx, &progress) {
                    return Poll::Ready(Event::Done(result));
                }
                let now = (progress.received.get(), progress.sent.get());
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
                periodic.poll(cx).map(|()| Event::Log)
            })
            .await;
            self.info.bytes.received = progress.received.get();
            self.info.bytes.sent = progress.sent.get();
            match end {
                Event::Log => {
                    self.log("TcpPeriodic");
                    periodic.set_after(config.access_log_flush_interval);
                    continue;
                }
                Event::Done(Ok(())) => {}
                Event::Done(Err(Failed::Downstream)) => {
                    self.info.set_flag(ResponseFlag::DownstreamConnectionTermination);
                }
                Event::Done(Err(Failed::Upstream)) => self.info.set_flag(ResponseFlag::UpstreamConnectionTermination),
                Event::Idle => {
                    stats.idle_timeout.inc();
                    cluster.stats().upstream_cx_idle_timeout.inc();
                    self.info.set_flag(ResponseFlag::StreamIdleTimeout);
                }
                Event::TooLong => {
                    stats.max_downstream_connection_duration.inc();
                    self.info.set_flag(ResponseFlag::DurationTimeout);
                    self.info.connection_termination_details = Some("max_duration");
                }
            }
            break;
        }
        stats.downstream_cx_rx_bytes_total.add(progress.received.get());
        stats.downstream_cx_tx_bytes_total.add(progress.sent.get());
        cluster.stats().upstream_cx_tx_bytes_total.add(progress.received.get());
        cluster.stats().upstream_cx_rx_bytes_total.add(progress.sent.get());
    }

    fn pick_cluster(&self) -> Option<Rc<ThreadCluster>> {
        let proxy = &self.active.proxy;
        let mut left = if proxy.total > 1 { fastrand::u64(..proxy.total) } else { 0 };
        let chosen = proxy.clusters.iter().find(|(_, weight)| {
            let taken = left < u64::from(*weight);
            left = left.wrapping_sub(u64::from(*weight));
            taken
        });
        self.thread.upstreams.get(chosen?.0)
    }

    /// Tries hosts until one takes the connection.
    async fn connect(&mut self, cluster: &Rc<ThreadCluster>) -> Option<(Io, Rc<UpstreamConnection>)> {
        let active = self.active.clone();
        let config = &active.proxy.config;
        let mut pause = config.backoff.map(|(base, _)| base);
        for attempt in 1..=config.max_connect_attempts.max(1) {
            self.info.attempt_count = attempt;
            let connection = self.info.connection.clone();
            let context = LbContext { connection: Some(&connection), ..LbContext::default() };
            let Some(host) = cluster.choose_host(&context) else {
                self.info.set_flag(ResponseFlag::NoHealthyUpstream);
                return None;
            };
            self.info.upstream.host = Some(host.address().clone());
            self.info.upstream.attempted.push(host.address().clone());
            match cluster.tcp_connect(&host, &context).await {
                Ok(connected) => return Some(connected),
                Err(error) => self.refused(&error),
            }
            if let (Some(wait), Some((_, most))) = (pause, config.backoff) {
                tokio::time::sleep(wait.mul_f64(fastrand::f64())).await;
                pause = Some((wait * 2).min(most));
            }
        }
        cluster.stats().upstream_cx_connect_attempts_exceeded.inc();
        self.info.set_flag(ResponseFlag::UpstreamRetryLimitExceeded);
        None
    }

    fn refused(&mut self, error: &StreamError) {
        self.info.set_flag(error.reason.upstream_flag());
        if !error.details.is_empty() {
            self.info.upstream.transport_failure = Some(error.details.clone());
        }
    }
}

enum Event {
    Done(Result<(), Failed>),
    Idle,
    TooLong,
    Log,
}

#[derive(Clone, Copy)]
enum Failed {
    Downstream,
    Upstream,
}

/// Bytes that passed each way.
#[derive(Default)]
struct Progress {
    received: Cell<u64>,
    sent: Cell<u64>,
}

/// Both directions of a connection, ended together when one fails.
struct Moving<'a> {
    downstream: &'a mut Io,
    upstream: &'a mut Io,
    to_upstream: Direction,
    to_downstream: Direction,
}

/// One direction: what was read and not yet written.
struct Direction {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    limit: usize,
    read_done: bool,
    shut: bool,
}

/// Copying wants 64 KiB at a time (measured), and never more than the buffer limit.
const BUFFER: usize = 64 << 10;

impl<'a> Moving<'a> {
    fn new(downstream: &'a mut Io, upstream: &'a mut Io, limit: usize) -> Self {
        let direction = || Direction {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            limit: limit.clamp(1024, BUFFER),
            read_done: false,
            shut: false,
        };
        Self { downstream, upstream, to_upstream: direction(), to_downstream: direction() }
    }

    /// Moves what can be moved. Ready once both sides have ended and everything was written.
    fn poll(&mut self, cx: &mut TaskContext<'_>, progress: &Progress) -> Poll<Result<(), Failed>> {
        let up = self.to_upstream.poll(cx, self.downstream, self.upstream, &progress.received);
        let down = self.to_downstream.poll(cx, self.upstream, self.downstream, &progress.sent);
        match (up, down) {
            (Poll::Ready(Err(End::Read)), _) | (_, Poll::Ready(Err(End::Write))) => {
                Poll::Ready(Err(Failed::Downstream))
            }
            (_, Poll::Ready(Err(End::Read))) | (Poll::Ready(Err(End::Write)), _) => Poll::Ready(Err(Failed::Upstream)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }
}

/// Which end of a direction failed.
enum End {
    Read,
    Write,
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut TaskContext<'_>,
        from: &mut Io,
        to: &mut Io,
        count: &Cell<u64>,
    ) -> Poll<Result<(), End>> {
        loop {
            while self.start < self.end {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer[self.start..self.end])) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(End::Write)),
                    Ok(n) => {
                        self.start += n;
                        count.set(count.get() + n as u64);
                    }
                }
            }
            if self.read_done {
                if !self.shut {
                    // A peer that is gone already is told nothing more.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            if self.buffer.is_empty() {
                // No buffer is held while there is nothing to read.
                ready!(from.poll_read_ready(cx)).map_err(|_: io::Error| ()).unwrap_or_default();
                self.buffer = vec![0; self.limit];
            }
            let mut buf = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *from).poll_read(cx, &mut buf) {
                Poll::Pending => {
                    self.buffer = Vec::new();
                    return Poll::Pending;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Read)),
                Poll::Ready(Ok(())) => {
                    let n = buf.filled().len();
                    (self.start, self.end, self.read_done) = (0, n, n == 0);
                }
            }
        }
    }
}
