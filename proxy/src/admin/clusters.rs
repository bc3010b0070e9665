//! `/clusters`: clusters with their limits, hosts with their state.

use super::{
    listeners::{address, message},
    message::{Reply, Request, error_line},
    view::ServerView,
};
use crate::upstream::{Cluster, HealthFlags, Host, HostState, breakers::Resources};
use regex::Regex;
use std::{
    fmt::Write as _,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use weft_config::{cluster::Discovery, endpoint::HealthStatus};
use weft_control_api::envoy::{
    admin::v3::{self as pb, simple_metric},
    config::{
        cluster::v3::{CircuitBreakers, circuit_breakers::Thresholds},
        core::v3::{self as core, RoutingPriority},
    },
    r#type::v3::Percent,
};

/// `/clusters`.
pub(super) fn show(request: &Request, view: &dyn ServerView) -> Reply {
    let filter = match request.param("filter").map(Regex::new).transpose() {
        Ok(filter) => filter,
        Err(error) => return Reply::bad_request(format!("Invalid re2 regex: {}\n", error_line(&error))),
    };
    let mut clusters = view.clusters();
    clusters.retain(|cluster| filter.as_ref().is_none_or(|filter| filter.is_match(cluster.info.name())));
    clusters.sort_by(|a, b| a.info.name().cmp(b.info.name()));
    if request.param("format") == Some("json") {
        return message(&pb::Clusters { cluster_statuses: clusters.iter().map(status).collect() });
    }
    let mut out = String::new();
    for cluster in clusters {
        // Writing to a string cannot fail.
        let _ = text(&mut out, &cluster);
    }
    Reply::text(out)
}

fn text(out: &mut String, cluster: &Cluster) -> std::fmt::Result {
    let info = &cluster.info;
    let name = info.name();
    writeln!(out, "{name}::observability_name::{}", info.observability_name)?;
    if let Some(summary) = &info.outlier {
        for (what, local_origin) in [("success_rate", false), ("local_origin_success_rate", true)] {
            let (average, threshold) = summary.get(local_origin);
            writeln!(out, "{name}::outlier::{what}_average::{average}")?;
            writeln!(out, "{name}::outlier::{what}_ejection_threshold::{threshold}")?;
        }
    }
    for (priority, resources) in [("default", &info.breakers.default), ("high", &info.breakers.high)] {
        for (limit, value) in limits(resources) {
            writeln!(out, "{name}::{priority}_priority::{limit}::{value}")?;
        }
    }
    writeln!(out, "{name}::added_via_api::{}", info.added_via_api)?;
    if let Some(eds_name) = eds_service_name(cluster) {
        writeln!(out, "{name}::eds_service_name::{eds_name}")?;
    }
    for host in cluster.hosts.hosts() {
        let prefix = format!("{name}::{}::", host.address);
        let mut stats: Vec<_> = counters(&host.state).into_iter().chain(gauges(&host.state)).collect();
        stats.sort_unstable();
        for (stat, value) in stats {
            writeln!(out, "{prefix}{stat}::{value}")?;
        }
        let locality = &host.locality;
        writeln!(out, "{prefix}hostname::{}", host.hostname)?;
        writeln!(out, "{prefix}health_flags::{}", health_flags(host))?;
        writeln!(out, "{prefix}weight::{}", host.weight)?;
        writeln!(out, "{prefix}region::{}", locality.region)?;
        writeln!(out, "{prefix}zone::{}", locality.zone)?;
        writeln!(out, "{prefix}sub_zone::{}", locality.sub_zone)?;
        writeln!(out, "{prefix}canary::{}", host.is_canary())?;
        writeln!(out, "{prefix}priority::{}", host.priority)?;
        for (stat, local_origin) in [("success_rate", false), ("local_origin_success_rate", true)] {
            let rate = host.state.outlier().map_or(-1.0, |monitor| monitor.success_rate(local_origin));
            writeln!(out, "{prefix}{stat}::{rate}")?;
        }
    }
    Ok(())
}

fn status(cluster: &Arc<Cluster>) -> pb::ClusterStatus {
    let info = &cluster.info;
    let thresholds = |(priority, resources): (RoutingPriority, &Resources)| {
        let [connections, pending, requests, retries] = limits(resources).map(|(_, value)| Some(value));
        Thresholds {
            priority: priority.into(),
            max_connections: connections,
            max_pending_requests: pending,
            max_requests: requests,
            max_retries: retries,
            ..Thresholds::default()
        }
    };
    let threshold = |local_origin| {
        let threshold = info.outlier.as_ref().map(|summary| summary.get(local_origin).1);
        threshold.filter(|threshold| *threshold >= 0.0).map(|value| Percent { value: value.into() })
    };
    let both = [(RoutingPriority::Default, &info.breakers.default), (RoutingPriority::High, &info.breakers.high)];
    pb::ClusterStatus {
        name: info.name().to_owned(),
        added_via_api: info.added_via_api,
        host_statuses: cluster.hosts.hosts().map(|host| host_status(host)).collect(),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: both.map(thresholds).into(),
            ..CircuitBreakers::default()
        }),
        success_rate_ejection_threshold: threshold(false),
        local_origin_success_rate_ejection_threshold: threshold(true),
        observability_name: info.observability_name.to_string(),
        eds_service_name: eds_service_name(cluster).unwrap_or_default().to_owned(),
    }
}

fn host_status(host: &Host) -> pb::HostStatus {
    let metric = |kind: simple_metric::Type| {
        move |(name, value): (&str, u64)| pb::SimpleMetric { r#type: kind.into(), value, name: name.to_owned() }
    };
    let stats = counters(&host.state).into_iter().map(metric(simple_metric::Type::Counter));
    let flags = host.health_flags();
    let rate = |local_origin| {
        let rate = host.state.outlier().map(|monitor| monitor.success_rate(local_origin));
        rate.filter(|rate| *rate >= 0.0).map(|value| Percent { value: value.into() })
    };
    pb::HostStatus {
        address: Some(address(&host.address)),
        stats: stats.chain(gauges(&host.state).into_iter().map(metric(simple_metric::Type::Gauge))).collect(),
        health_status: Some(pb::HostHealthStatus {
            eds_health_status: shown_health(host).into(),
            failed_active_health_check: flags.has(HealthFlags::FAILED_ACTIVE_HC),
            failed_outlier_check: flags.has(HealthFlags::FAILED_OUTLIER_CHECK),
            failed_active_degraded_check: flags.has(HealthFlags::DEGRADED_ACTIVE_HC),
            pending_dynamic_removal: flags.has(HealthFlags::PENDING_DYNAMIC_REMOVAL),
            pending_active_hc: flags.has(HealthFlags::PENDING_ACTIVE_HC),
            excluded_via_immediate_hc_fail: flags.has(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL),
            failed_degraded_outlier_detection: false,
            active_hc_timeout: flags.has(HealthFlags::ACTIVE_HC_TIMEOUT),
        }),
        success_rate: rate(false),
        local_origin_success_rate: rate(true),
        weight: host.weight,
        hostname: host.hostname.to_string(),
        priority: host.priority,
        locality: Some(locality(host)),
    }
}

/// A host's locality, empty if it has none.
pub(super) fn locality(host: &Host) -> core::Locality {
    let weft_config::endpoint::Locality { region, zone, sub_zone } = &*host.locality;
    core::Locality { region: region.clone(), zone: zone.clone(), sub_zone: sub_zone.clone() }
}

/// What EDS said of a host; to say nothing is to say that it is healthy.
pub(super) fn shown_health(host: &Host) -> core::HealthStatus {
    match host.eds_health {
        HealthStatus::Unknown | HealthStatus::Healthy => core::HealthStatus::Healthy,
        HealthStatus::Unhealthy | HealthStatus::Timeout => core::HealthStatus::Unhealthy,
        HealthStatus::Draining => core::HealthStatus::Draining,
        HealthStatus::Degraded => core::HealthStatus::Degraded,
    }
}

fn health_flags(host: &Host) -> String {
    let flags = host.health_flags();
    let set: String = HealthFlags::NAMES.iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, name)| *name).collect();
    if set.is_empty() { "healthy".to_owned() } else { set }
}

fn limits(resources: &Resources) -> [(&'static str, u32); 4] {
    [
        ("max_connections", resources.connections.max()),
        ("max_pending_requests", resources.pending_requests.max()),
        ("max_requests", resources.requests.max()),
        ("max_retries", resources.max_retries()),
    ]
}

fn counters(state: &HostState) -> [(&'static str, u64); 6] {
    [
        ("cx_connect_fail", state.cx_connect_fail.load(Relaxed)),
        ("cx_total", state.cx_total.load(Relaxed)),
        ("rq_error", state.rq_error.load(Relaxed)),
        ("rq_success", state.rq_success.load(Relaxed)),
        ("rq_timeout", state.rq_timeout.load(Relaxed)),
        ("rq_total", state.rq_total.load(Relaxed)),
    ]
}

fn gauges(state: &HostState) -> [(&'static str, u64); 3] {
    [
        ("cx_active", state.cx_active.load(Relaxed).into()),
        ("rq_active", state.rq_active.load(Relaxed).into()),
        ("rq_pending_active", state.rq_pending_active.load(Relaxed).into()),
    ]
}

/// The name that EDS is asked for, where it is not the cluster's.
fn eds_service_name(cluster: &Cluster) -> Option<&str> {
    match &cluster.info.config.discovery {
        Discovery::Eds(eds) => Some(&*eds.service_name).filter(|name| *name != cluster.info.name()),
        _ => None,
    }
}
