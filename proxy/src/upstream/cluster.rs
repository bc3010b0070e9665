//! Clusters as the control thread compiles and publishes them.
//!
//! Invariant: a new host set, or new health of its hosts, makes a new [`Cluster`] that shares its [`ClusterInfo`] by pointer; a new configuration makes
//! a new `ClusterInfo`. Threads tell by pointer what they may keep.

use super::{
    Breakers, ClusterId,
    balancer::Picks,
    health_check::{Checks, is_checked},
    host::{self, HostRules, HostSet, MatchStats, SocketRule},
    orca,
    outlier::Summary,
    transport_socket::UpstreamSocket,
};
use crate::{observe::stream_info::Metadata, transport::tls::Secrets};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use weft_config::{
    self as config, ClusterLoadAssignment, Context,
    address::BindConfig,
    cluster::{Discovery, TransportSocket},
    endpoint::{AssignmentChanges, Locality},
    load_balancing::PolicyKind,
};

/// A cluster with its hosts of this moment.
#[derive(Debug)]
pub struct Cluster {
    pub info: Arc<ClusterInfo>,
    pub hosts: Arc<HostSet>,
    /// What there is to pick from among the hosts, by their health of this moment.
    pub(super) picks: Arc<Picks>,
}

/// Where we are, for routing to hosts nearby.
#[derive(Debug)]
pub struct LocalZone {
    /// The cluster that we are a member of.
    pub cluster: String,
    pub locality: Locality,
}

/// What is configured of a cluster.
#[derive(Debug)]
pub struct ClusterInfo {
    pub id: ClusterId,
    pub config: Arc<config::Cluster>,
    /// In logs and `%UPSTREAM_CLUSTER%`: `alt_stat_name`, or the name.
    pub observability_name: Arc<str>,
    /// `cluster.NAME`.
    pub stat_prefix: Arc<str>,
    pub metadata: Option<Arc<Metadata>>,
    pub breakers: Arc<Breakers>,
    /// The cluster's own, or the cluster manager's.
    pub bind: Option<Arc<BindConfig>>,
    /// It came over CDS.
    pub added_via_api: bool,
    pub zone: Option<Arc<LocalZone>>,
    /// How hosts are checked.
    pub checks: Option<Arc<Checks>>,
    /// What outlier detection found last, where there is one.
    pub outlier: Option<Arc<Summary>>,
    /// Requests that were dropped, of all threads.
    pub dropped: AtomicU64,
    rules: HostRules,
}

impl ClusterInfo {
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The transport socket of hosts that no rule matches.
    pub fn transport_socket(&self) -> &Arc<UpstreamSocket> {
        &self.rules.transport_socket
    }

    /// What is counted of the rules by which hosts get their transport sockets, by name.
    pub fn match_stats(&self) -> impl Iterator<Item = (&str, &Arc<MatchStats>)> {
        let rules = self.rules.matches.iter().map(|m| (m.rule.name.as_str(), &m.stats));
        [("default", &self.rules.default_match)].into_iter().chain(rules)
    }

    /// All transport sockets.
    pub fn transport_sockets(&self) -> impl Iterator<Item = &Arc<UpstreamSocket>> {
        [&self.rules.transport_socket].into_iter().chain(self.rules.matches.iter().map(|m| &m.socket))
    }
}

impl Cluster {
    /// Compiles a cluster. Its hosts are those of its own load assignment if no one has to be asked for their addresses, else
    /// none. `bind` and `zone`: the cluster manager's. `secrets`: those of this moment.
    pub fn compile(
        id: ClusterId,
        config: Arc<config::Cluster>,
        bind: Option<&Arc<BindConfig>>,
        zone: Option<&Arc<LocalZone>>,
        added_via_api: bool,
        secrets: &dyn Secrets,
        cx: &mut Context,
    ) -> Arc<Self> {
        let name = if config.alt_stat_name.is_empty() { &config.name } else { &config.alt_stat_name };
        let socket = |field: &str, config: &TransportSocket, cx: &mut Context| {
            Arc::new(cx.field(field, |cx| UpstreamSocket::compile(config, secrets, cx)))
        };
        let rules = HostRules {
            transport_socket: socket("transport_socket", &config.transport_socket, cx),
            default_match: Arc::default(),
            matches: config
                .transport_socket_matches
                .iter()
                .enumerate()
                .map(|(i, rule)| {
                    let compile = |cx: &mut Context| socket("transport_socket", &rule.transport_socket, cx);
                    SocketRule {
                        socket: cx.element("transport_socket_matches", i, compile),
                        rule: rule.clone(),
                        stats: Arc::default(),
                    }
                })
                .collect(),
            unique: matches!(config.discovery, Discovery::Eds(_)),
            checked: config.health_check.is_some(),
            keeps_healthy: !config.ignore_health_on_host_removal,
            ignores_unchecked: config.load_balancing.ignore_new_hosts_until_first_hc,
        };
        let hosts = match config.discovery {
            Discovery::Static => HostSet::build(&config.load_assignment, &rules, None),
            _ => HostSet::default(),
        };
        let info = ClusterInfo {
            id,
            observability_name: name.as_str().into(),
            stat_prefix: format!("cluster.{}", config.stat_name()).into(),
            metadata: host::metadata(&config.metadata),
            breakers: Arc::new(Breakers::new(&config.circuit_breakers)),
            bind: config.upstream_bind_config.clone().or_else(|| bind.cloned()),
            added_via_api,
            zone: zone.cloned(),
            checks: config
                .health_check
                .as_ref()
                .map(|check| cx.element("health_checks", 0, |cx| Arc::new(Checks::compile(check, cx)))),
            outlier: config.outlier_detection.is_some().then(Arc::default),
            dropped: AtomicU64::new(0),
            rules,
            config,
        };
        Self::with_hosts(&Arc::new(info), Arc::new(hosts))
    }

    pub(super) fn with_hosts(info: &Arc<ClusterInfo>, hosts: Arc<HostSet>) -> Arc<Self> {
        let zone = info.zone.as_ref().map(|zone| &zone.locality);
        let picks = Arc::new(Picks::new(&hosts, &info.config.load_balancing, zone));
        Arc::new(Self { info: info.clone(), hosts, picks })
    }

    /// Makes weights of what the hosts reported, where the policy goes by that; true if any is another than before.
    pub fn update_weights(&self) -> bool {
        let policy = self.info.config.load_balancing.policy.innermost();
        let PolicyKind::ClientSideWeightedRoundRobin(config) = &policy.kind else { return false };
        let weights = orca::weights(config, self.hosts.hosts().map(|host| &host.state.report), host::now());
        let all = self.hosts.hosts().zip(weights);
        all.map(|(host, weight)| host.state.reported_weight.swap(weight, Relaxed) != weight).fold(false, |a, b| a | b)
    }

    /// True if every host that is to be checked was, at least once.
    pub fn is_checked(&self) -> bool {
        self.info.checks.is_none() || self.hosts.hosts().all(|host| !is_checked(host) || host.state.was_checked())
    }

    /// True if a thread counts something of it before it uses it: subsets, zones.
    pub(super) fn counts_unused(&self) -> bool {
        self.picks.subsets.is_some() || self.info.zone.is_some()
    }

    /// True if there was ever a connection to a host for others than checks.
    pub fn had_traffic(&self) -> bool {
        self.hosts.hosts().any(|host| host.state.cx_total.load(Relaxed) > 0)
    }

    /// The same cluster with the health that its hosts have now.
    pub fn with_health(&self) -> Arc<Self> {
        let hosts = self.hosts.without_lost().map_or_else(|| self.hosts.clone(), Arc::new);
        Self::with_hosts(&self.info, hosts)
    }

    /// The same cluster with hosts that differ from its own by `changes`; `new` holds the new endpoints. `None`: all of them are needed.
    pub fn with_changes(&self, changes: &AssignmentChanges, new: &ClusterLoadAssignment) -> Option<Arc<Self>> {
        let hosts = self.hosts.changed(changes, new, &self.info.rules)?;
        Some(Self::with_hosts(&self.info, Arc::new(hosts)))
    }

    /// The same cluster with the hosts that EDS or DNS found.
    pub fn with_assignment(&self, assignment: &ClusterLoadAssignment) -> Arc<Self> {
        let hosts = HostSet::build(assignment, &self.info.rules, Some(&self.hosts));
        Self::with_hosts(&self.info, Arc::new(hosts))
    }
}
