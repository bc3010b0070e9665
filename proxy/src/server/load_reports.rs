//! Load reports (LRS): what hosts did since the last report, told to a control plane as often as it asks.
//!
//! Workers only count, in the hosts' states; the control thread keeps what was told and reports the difference.

use super::control::Control;
use crate::{
    base::Address,
    stats,
    upstream::{Cluster, HostState, grpc_stream::GrpcStream},
};
use std::{
    collections::HashMap,
    future::poll_fn,
    ops::AddAssign,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use weft_config::{cluster::Discovery, config_source::ApiConfigSource};
use weft_control_api::{
    Message as _,
    client::{FrameDecoder, encode_frame},
    envoy::{
        config::{
            core::v3 as core,
            endpoint::v3::{
                ClusterStats, UpstreamEndpointStats, UpstreamLocalityStats, cluster_stats::DroppedRequests,
            },
        },
        service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse},
    },
};

const METHOD: &str = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats";
/// Answers are small: names of clusters.
const MOST: usize = 16 << 20;
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

stats! {
    /// `load_reporter.*`
    pub struct LoadReporterStats {
        counter errors,
        counter requests,
        counter responses,
        counter retries,
    }
}

/// Reports for as long as the process lives, opening the stream again whenever it ends.
pub async fn run(control: Rc<Control>, api: ApiConfigSource) {
    let stats: Arc<LoadReporterStats> = control.registry.attach("load_reporter");
    let mut delay = FIRST_DELAY;
    loop {
        if let Some(stream) = open(&control, &api).await {
            delay = FIRST_DELAY;
            report(&control, stream, &stats).await;
        }
        stats.errors.inc();
        stats.retries.inc();
        tokio::time::sleep(delay.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

async fn open(control: &Rc<Control>, api: &ApiConfigSource) -> Option<GrpcStream> {
    let cluster = control.upstreams.by_name(&api.service.cluster)?;
    GrpcStream::open(&cluster, METHOD, &api.service.authority, &api.service.initial_metadata).await.ok()
}

/// Reports on one stream until it ends.
async fn report(control: &Rc<Control>, mut stream: GrpcStream, stats: &LoadReporterStats) {
    let mut decoder = FrameDecoder::new(MOST);
    let mut reporter = Reporter::default();
    let node = super::view::node_proto(&control.boot.bootstrap.node);
    stream.send(encode_frame(&LoadStatsRequest { node: Some(node.clone()), cluster_stats: Vec::new() }));
    stats.requests.inc();
    let mut due: Option<Instant> = None;
    loop {
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = poll_fn(|cx| stream.poll(cx)) => {
                let Ok(bytes) = read else { return };
                decoder.push(&bytes);
                loop {
                    match decoder.next_message() {
                        Ok(Some(message)) => {
                            let Ok(wanted) = LoadStatsResponse::decode(message) else { return };
                            stats.responses.inc();
                            reporter.asked(wanted, &clusters(control));
                            due = reporter.interval().map(|interval| Instant::now() + interval);
                        }
                        Ok(None) => break,
                        Err(_) => return,
                    }
                }
            }
            () = timer => {
                let cluster_stats = reporter.report(&clusters(control));
                stream.send(encode_frame(&LoadStatsRequest { node: Some(node.clone()), cluster_stats }));
                stats.requests.inc();
                due = reporter.interval().map(|interval| Instant::now() + interval);
            }
        }
    }
}

fn clusters(control: &Control) -> Vec<Arc<Cluster>> {
    control.store.borrow().clusters.in_force().values().map(|entry| entry.value.clone()).collect()
}

/// What a control plane wants to know, and what it was told.
#[derive(Default)]
struct Reporter {
    wanted: LoadStatsResponse,
    /// By name: when the last report was, and the drops until then.
    told: HashMap<String, (Instant, u64)>,
    hosts: HashMap<*const HostState, (Arc<HostState>, Counts)>,
}

/// What is counted of a host, or of several.
#[derive(Clone, Copy, Default)]
struct Counts {
    success: u64,
    error: u64,
    issued: u64,
    connections: u64,
    failed_connections: u64,
    in_progress: u64,
    active_connections: u64,
}

impl Counts {
    fn of(state: &HostState) -> Self {
        Self {
            success: state.rq_success.load(Relaxed),
            error: state.rq_error.load(Relaxed),
            issued: state.rq_total.load(Relaxed),
            connections: state.cx_total.load(Relaxed),
            failed_connections: state.cx_connect_fail.load(Relaxed),
            in_progress: state.rq_active.load(Relaxed).into(),
            active_connections: state.cx_active.load(Relaxed).into(),
        }
    }

    /// What came since `before`; what is under way is what it is.
    fn since(self, before: Self) -> Self {
        Self {
            success: self.success.saturating_sub(before.success),
            error: self.error.saturating_sub(before.error),
            issued: self.issued.saturating_sub(before.issued),
            connections: self.connections.saturating_sub(before.connections),
            failed_connections: self.failed_connections.saturating_sub(before.failed_connections),
            ..self
        }
    }

    fn is_nothing(self) -> bool {
        self.success + self.error + self.issued + self.in_progress == 0
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.success += other.success;
        self.error += other.error;
        self.issued += other.issued;
        self.connections += other.connections;
        self.failed_connections += other.failed_connections;
        self.in_progress += other.in_progress;
        self.active_connections += other.active_connections;
    }
}

impl Reporter {
    fn interval(&self) -> Option<Duration> {
        let interval = self.wanted.load_reporting_interval?;
        let (seconds, nanos) = (u64::try_from(interval.seconds).ok()?, u32::try_from(interval.nanos).ok()?);
        Some(Duration::new(seconds, nanos)).filter(|interval| !interval.is_zero())
    }

    fn wants(&self, cluster: &Cluster) -> bool {
        self.wanted.send_all_clusters || self.wanted.clusters.iter().any(|name| name == cluster.info.name())
    }

    /// The control plane says what it wants from now on; of clusters that it wants anew, what was before does not count.
    fn asked(&mut self, wanted: LoadStatsResponse, clusters: &[Arc<Cluster>]) {
        self.wanted = wanted;
        let told: Vec<_> = clusters.iter().filter(|cluster| self.wants(cluster)).cloned().collect();
        self.told.retain(|name, _| told.iter().any(|cluster| cluster.info.name() == name));
        for cluster in told {
            if !self.told.contains_key(cluster.info.name()) {
                self.report_one(&cluster);
            }
        }
    }

    fn report(&mut self, clusters: &[Arc<Cluster>]) -> Vec<ClusterStats> {
        let wanted: Vec<_> = clusters.iter().filter(|cluster| self.wants(cluster)).cloned().collect();
        let reports = wanted.iter().map(|cluster| self.report_one(cluster)).collect();
        // Hosts that went are known no longer.
        self.hosts.retain(|_, (state, _)| Arc::strong_count(state) > 1);
        reports
    }

    fn report_one(&mut self, cluster: &Arc<Cluster>) -> ClusterStats {
        let now = Instant::now();
        let name = cluster.info.name();
        let all_dropped = cluster.info.dropped.load(Relaxed);
        let (since, dropped_before) = self.told.insert(name.to_owned(), (now, all_dropped)).unwrap_or((now, 0));
        let dropped = all_dropped.saturating_sub(dropped_before);
        let mut report = ClusterStats {
            cluster_name: name.to_owned(),
            cluster_service_name: match &cluster.info.config.discovery {
                Discovery::Eds(eds) if eds.service_name != name => eds.service_name.clone(),
                _ => String::new(),
            },
            total_dropped_requests: dropped,
            load_report_interval: now.checked_duration_since(since).map(|passed| weft_control_api::Duration {
                seconds: passed.as_secs() as i64,
                nanos: passed.subsec_nanos() as i32,
            }),
            ..ClusterStats::default()
        };
        if let Some(drop) = cluster.hosts.drop_overload.as_ref().filter(|_| dropped > 0) {
            report.dropped_requests.push(DroppedRequests { category: drop.category.clone(), dropped_count: dropped });
        }
        for (priority, set) in cluster.hosts.priorities.iter().enumerate() {
            for group in &set.localities {
                let (mut sum, mut endpoints) = (Counts::default(), Vec::new());
                for host in group.hosts.iter().filter_map(|at| set.hosts.get(*at as usize)) {
                    let counts = self.count(&host.state);
                    if self.wanted.report_endpoint_granularity && !counts.is_nothing() {
                        endpoints.push(endpoint(&host.address, counts));
                    }
                    sum += counts;
                }
                if !sum.is_nothing() {
                    let locality = &group.locality;
                    report.upstream_locality_stats.push(UpstreamLocalityStats {
                        locality: Some(core::Locality {
                            region: locality.region.clone(),
                            zone: locality.zone.clone(),
                            sub_zone: locality.sub_zone.clone(),
                        }),
                        priority: priority as u32,
                        total_successful_requests: sum.success,
                        total_requests_in_progress: sum.in_progress,
                        total_error_requests: sum.error,
                        total_issued_requests: sum.issued,
                        total_active_connections: sum.active_connections,
                        total_new_connections: sum.connections,
                        total_fail_connections: sum.failed_connections,
                        upstream_endpoint_stats: endpoints,
                        ..UpstreamLocalityStats::default()
                    });
                }
            }
        }
        report
    }

    /// What a host did since it was looked at last.
    fn count(&mut self, state: &Arc<HostState>) -> Counts {
        let now = Counts::of(state);
        let known = self.hosts.insert(Arc::as_ptr(state), (state.clone(), now));
        now.since(known.map(|(_, counts)| counts).unwrap_or_default())
    }
}

fn endpoint(address: &Address, counts: Counts) -> UpstreamEndpointStats {
    UpstreamEndpointStats {
        address: Some(crate::admin::address(address)),
        total_successful_requests: counts.success,
        total_requests_in_progress: counts.in_progress,
        total_error_requests: counts.error,
        total_issued_requests: counts.issued,
        ..UpstreamEndpointStats::default()
    }
}
