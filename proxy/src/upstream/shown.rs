//! What the control thread shows of every cluster in force, whether any thread uses it or not: all its stats, its members, its breakers.
//!
//! The many stats of traffic are there from the start with the value zero; one set of zeros serves all clusters. A thread that
//! uses a cluster adds its own part ([`ClusterStats`]) below the same prefix.

use super::{
    balancer::{Membership, TableKind},
    breakers::Resources,
    cluster::{Cluster, ClusterInfo},
    stats::{ClusterStats, MaglevStats, RingHashStats, SubsetStats},
};
use crate::{
    observe::stats::{Counter, Gauge, Registry, StatGroup, StatRef},
    transport::tls::{
        SslStats,
        stats::{ClientSocketFactoryStats, Expirations},
    },
};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

/// Nobody writes to these.
static NO_TRAFFIC: LazyLock<ClusterStats> = LazyLock::new(ClusterStats::default);
static NO_TLS: LazyLock<(Arc<SslStats>, Arc<ClientSocketFactoryStats>)> = LazyLock::new(Default::default);

/// What is shown of one cluster.
pub(super) struct Shown {
    stats: Arc<ShownStats>,
    speaks_tls: bool,
    tables: Option<Box<Tables>>,
}

/// Of policies that have tables.
#[derive(Default)]
struct Tables {
    ring: Option<Arc<RingHashStats>>,
    maglev: Option<Arc<MaglevStats>>,
    subset: Option<Arc<SubsetStats>>,
}

/// `cluster.NAME.*`
struct ShownStats {
    /// Breakers and rules are read when they are shown.
    info: Mutex<Arc<ClusterInfo>>,
    membership_change: Counter,
    /// As `Membership` has them.
    members: [Gauge; 5],
}

impl Shown {
    pub fn new(cluster: &Cluster, registry: &Registry) -> Self {
        let stats = Arc::new(ShownStats {
            info: Mutex::new(cluster.info.clone()),
            membership_change: Counter::default(),
            members: Default::default(),
        });
        registry.attach_group(&cluster.info.stat_prefix, stats.clone());
        let mut this = Self { stats, speaks_tls: false, tables: None };
        this.configured(cluster, registry);
        this
    }

    /// Takes over what is new of the cluster, which is shown below the same prefix.
    pub fn follow(&mut self, before: &Cluster, now: &Cluster, registry: &Registry) {
        if !Arc::ptr_eq(&before.info, &now.info) {
            *self.stats.info.lock().unwrap_or_else(PoisonError::into_inner) = now.info.clone();
            self.configured(now, registry);
            return;
        }
        if Arc::ptr_eq(&before.picks, &now.picks) {
            return;
        }
        if before.hosts.members() != now.hosts.members() {
            self.stats.membership_change.inc();
        }
        self.stats.show(now.picks.membership);
        self.show_tables(now, registry);
    }

    fn configured(&mut self, cluster: &Cluster, registry: &Registry) {
        self.show_tls(&cluster.info, registry);
        if cluster.picks.membership.total > 0 {
            self.stats.membership_change.inc();
        }
        self.stats.show(cluster.picks.membership);
        self.show_tables(cluster, registry);
    }

    /// Makes the stats of TLS visible, where it is spoken.
    fn show_tls(&mut self, info: &ClusterInfo, registry: &Registry) {
        let contexts: Vec<_> = info.transport_sockets().filter_map(|socket| socket.tls()).map(Arc::downgrade).collect();
        if contexts.is_empty() {
            return;
        }
        let prefix = |name: &str| format!("{}.{name}", info.stat_prefix);
        if !std::mem::replace(&mut self.speaks_tls, true) {
            registry.attach_group(&prefix("ssl"), NO_TLS.0.clone());
            registry.attach_group(&prefix("client_ssl_socket_factory"), NO_TLS.1.clone());
        }
        let read =
            move || contexts.iter().filter_map(Weak::upgrade).flat_map(|context| context.expirations()).collect();
        registry.detach(&prefix("ssl.certificate"));
        registry.attach_group(&prefix("ssl.certificate"), Arc::new(Expirations::new(read)));
    }

    /// Shows how large the tables of consistent hashing are, and which hosts subsets leave out.
    fn show_tables(&mut self, cluster: &Cluster, registry: &Registry) {
        let prefix = &cluster.info.stat_prefix;
        if let Some(subsets) = &cluster.picks.subsets {
            let stats = &mut self.tables.get_or_insert_default().subset;
            let stats = stats.get_or_insert_with(|| registry.attach(prefix));
            stats.lb_subsets_single_host_per_subset_duplicate.set(subsets.duplicates);
        }
        let tables = cluster.picks.any.priorities.iter().filter_map(|priority| priority.table.as_ref());
        for table in tables {
            let shown = self.tables.get_or_insert_default();
            match &table.kind {
                TableKind::Ring(ring) => {
                    let attach = || registry.attach(&format!("{prefix}.ring_hash_lb"));
                    let stats = shown.ring.get_or_insert_with(attach);
                    stats.size.set(ring.len() as u64);
                    stats.min_hashes_per_host.set(ring.per_host.0);
                    stats.max_hashes_per_host.set(ring.per_host.1);
                }
                TableKind::Maglev(maglev) => {
                    let attach = || registry.attach(&format!("{prefix}.maglev_lb"));
                    let stats = shown.maglev.get_or_insert_with(attach);
                    stats.min_entries_per_host.set(maglev.per_host.0);
                    stats.max_entries_per_host.set(maglev.per_host.1);
                }
            }
        }
    }

    /// The cluster is gone, and with it all that was counted of it.
    pub fn retire(self, prefix: &str, registry: &Registry) {
        registry.detach(prefix);
        for part in ["ring_hash_lb", "maglev_lb", "http2", "ssl", "ssl.certificate", "client_ssl_socket_factory"] {
            registry.detach(&format!("{prefix}.{part}"));
        }
    }
}

impl ShownStats {
    fn show(&self, membership: Membership) {
        let Membership { total, healthy, degraded, excluded, max_weight } = membership;
        let values = [total, healthy, degraded, excluded, max_weight];
        self.members.iter().zip(values).for_each(|(gauge, value)| gauge.set(value.into()));
    }
}

impl StatGroup for ShownStats {
    fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        const MEMBERS: [&str; 5] =
            ["membership_total", "membership_healthy", "membership_degraded", "membership_excluded", "max_host_weight"];
        NO_TRAFFIC.visit(visit);
        visit("membership_change", StatRef::Counter(&self.membership_change));
        for (name, gauge) in MEMBERS.into_iter().zip(&self.members) {
            visit(name, StatRef::Gauge(gauge));
        }
        let info = self.info.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (rule, stats) in info.match_stats() {
            stats.visit(&mut |name, stat| visit(&format!("{rule}.{name}"), stat));
        }
        let mut show = |name: String, value: u64| {
            let gauge = Gauge::default();
            gauge.set(value);
            visit(&name, StatRef::Gauge(&gauge));
        };
        for (priority, resources) in [("default", &info.breakers.default), ("high", &info.breakers.high)] {
            let Resources { connections, pending_requests, requests, retries, track_remaining, .. } = resources;
            let all = [
                ("cx", "cx", connections.current(), connections.max()),
                ("rq_pending", "pending", pending_requests.current(), pending_requests.max()),
                ("rq", "rq", requests.current(), requests.max()),
                ("rq_retry", "retries", retries.current(), resources.max_retries()),
            ];
            for (name, left, current, max) in all {
                // Envoy looks when something is taken or given back: a breaker that lets nothing pass never shows as open.
                let open = current >= max && current > 0;
                show(format!("circuit_breakers.{priority}.{name}_open"), u64::from(open));
                if *track_remaining {
                    show(format!("circuit_breakers.{priority}.remaining_{left}"), max.saturating_sub(current).into());
                }
            }
            show(format!("circuit_breakers.{priority}.cx_pool_open"), 0);
        }
    }
}
