//! What the admin API's `/clusters` tells of clusters and their hosts, as plain data and as Envoy's text.
//!
//! Called on the control thread for a table of clusters; reads atomics only.

use super::{
    Breakers, Cluster,
    breakers::Resources,
    host::{Health, Host},
};
use std::{fmt::Write as _, sync::atomic::Ordering::Relaxed};
use weft_config::endpoint::{HealthStatus, Locality};

/// One cluster.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    pub name: String,
    pub observability_name: String,
    pub added_via_api: bool,
    /// The EDS resource's name, if it is another than the cluster's.
    pub eds_service_name: Option<String>,
    pub default_thresholds: ThresholdStatus,
    pub high_thresholds: ThresholdStatus,
    pub hosts: Vec<HostStatus>,
}

/// The limits of one priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThresholdStatus {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
}

/// One host.
#[derive(Clone, Debug)]
pub struct HostStatus {
    pub address: crate::base::Address,
    pub hostname: String,
    pub locality: Locality,
    pub priority: u32,
    pub weight: u32,
    pub health: HealthStatus,
    pub canary: bool,
    /// Envoy's names with their values, counters.
    pub counters: [(&'static str, u64); 6],
    pub gauges: [(&'static str, u64); 3],
}

impl ClusterStatus {
    pub fn new(cluster: &Cluster) -> Self {
        let info = &cluster.info;
        let Breakers { default, high, .. } = &*info.breakers;
        Self {
            name: info.name().to_owned(),
            observability_name: info.observability_name.to_string(),
            added_via_api: info.added_via_api,
            eds_service_name: match &info.config.discovery {
                weft_config::cluster::Discovery::Eds(eds) if eds.service_name != info.name() => {
                    Some(eds.service_name.clone())
                }
                _ => None,
            },
            default_thresholds: ThresholdStatus::new(default),
            high_thresholds: ThresholdStatus::new(high),
            hosts: cluster.hosts.hosts().map(|host| HostStatus::new(host)).collect(),
        }
    }

    /// The lines of `/clusters`.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let name = &self.name;
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name}::observability_name::{}", self.observability_name);
        for (priority, t) in [("default", &self.default_thresholds), ("high", &self.high_thresholds)] {
            let ThresholdStatus { max_connections, max_pending_requests, max_requests, max_retries } = t;
            let _ = write!(
                out,
                "{name}::{priority}_priority::max_connections::{max_connections}\n\
                 {name}::{priority}_priority::max_pending_requests::{max_pending_requests}\n\
                 {name}::{priority}_priority::max_requests::{max_requests}\n\
                 {name}::{priority}_priority::max_retries::{max_retries}\n"
            );
        }
        let _ = writeln!(out, "{name}::added_via_api::{}", self.added_via_api);
        if let Some(service) = &self.eds_service_name {
            let _ = writeln!(out, "{name}::eds_service_name::{service}");
        }
        for host in &self.hosts {
            let address = &host.address;
            let mut stats: Vec<_> = host.counters.iter().chain(&host.gauges).collect();
            stats.sort_unstable();
            for (stat, value) in stats {
                let _ = writeln!(out, "{name}::{address}::{stat}::{value}");
            }
            let Locality { region, zone, sub_zone } = &host.locality;
            let _ = write!(
                out,
                "{name}::{address}::hostname::{}\n{name}::{address}::health_flags::{}\n{name}::{address}::weight::{}\n\
                 {name}::{address}::region::{region}\n{name}::{address}::zone::{zone}\n\
                 {name}::{address}::sub_zone::{sub_zone}\n{name}::{address}::canary::{}\n\
                 {name}::{address}::priority::{}\n{name}::{address}::success_rate::-1\n\
                 {name}::{address}::local_origin_success_rate::-1\n",
                host.hostname,
                health_flags(host.health),
                host.weight,
                host.canary,
                host.priority,
            );
        }
        out
    }
}

impl ThresholdStatus {
    fn new(resources: &Resources) -> Self {
        Self {
            max_connections: resources.connections.max(),
            max_pending_requests: resources.pending_requests.max(),
            max_requests: resources.requests.max(),
            max_retries: resources.max_retries(),
        }
    }
}

impl HostStatus {
    fn new(host: &Host) -> Self {
        let state = &host.state;
        Self {
            address: host.address.clone(),
            hostname: host.hostname.to_string(),
            locality: (*host.locality).clone(),
            priority: host.priority,
            weight: host.weight,
            health: match (host.eds_health, host.health()) {
                (HealthStatus::Timeout, _) => HealthStatus::Unhealthy,
                (HealthStatus::Unknown, Health::Healthy) => HealthStatus::Healthy,
                (status, _) => status,
            },
            canary: host.is_canary(),
            counters: [
                ("cx_connect_fail", state.cx_connect_fail.load(Relaxed)),
                ("cx_total", state.cx_total.load(Relaxed)),
                ("rq_error", state.rq_error.load(Relaxed)),
                ("rq_success", state.rq_success.load(Relaxed)),
                ("rq_timeout", state.rq_timeout.load(Relaxed)),
                ("rq_total", state.rq_total.load(Relaxed)),
            ],
            gauges: [
                ("cx_active", state.cx_active.load(Relaxed).into()),
                ("rq_active", state.rq_active.load(Relaxed).into()),
                ("rq_pending_active", state.rq_pending_active.load(Relaxed).into()),
            ],
        }
    }
}

/// Envoy's words for what ails a host.
fn health_flags(health: HealthStatus) -> &'static str {
    match health {
        HealthStatus::Unknown | HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy | HealthStatus::Timeout => "/failed_eds_health",
        HealthStatus::Degraded => "/degraded_eds_health",
        HealthStatus::Draining => "/eds_status_draining",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{ClusterId, pool::tests::config};
    use std::sync::Arc;

    #[test]
    fn text_is_envoys() {
        let cluster = Cluster::compile(ClusterId(0), Arc::new(config(|_| {})), None, false);
        let text = ClusterStatus::new(&cluster).text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["u::observability_name::u", "u::default_priority::max_connections::1024"]);
        assert_eq!(
            lines[9..12],
            ["u::added_via_api::false", "u::127.0.0.1:80::cx_active::0", "u::127.0.0.1:80::cx_connect_fail::0"]
        );
        assert_eq!(lines[15], "u::127.0.0.1:80::rq_pending_active::0");
        assert_eq!(
            lines[19..22],
            ["u::127.0.0.1:80::hostname::", "u::127.0.0.1:80::health_flags::healthy", "u::127.0.0.1:80::weight::1"]
        );
        assert_eq!(lines.len(), 29);
    }
}
