//! `/clusters`: clusters with their limits, hosts with their state.

use super::{
    listeners::{address, message},
    message::{Reply, Request, error_line},
    view::ServerView,
};
use crate::upstream::status::{ClusterStatus, HostStatus, ThresholdStatus};
use regex::Regex;
use weft_config::endpoint::{HealthStatus, Locality};
use weft_control_api::envoy::{
    admin::v3::{self as pb, simple_metric},
    config::{
        cluster::v3::{CircuitBreakers, circuit_breakers::Thresholds},
        core::v3::{self as core, RoutingPriority},
    },
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
    let statuses = clusters.iter().map(|cluster| ClusterStatus::new(cluster));
    if request.param("format") == Some("json") {
        return message(&pb::Clusters { cluster_statuses: statuses.map(status).collect() });
    }
    Reply::text(statuses.map(|status| status.text()).collect::<String>())
}

fn status(cluster: ClusterStatus) -> pb::ClusterStatus {
    let thresholds = vec![
        thresholds(RoutingPriority::Default, cluster.default_thresholds),
        thresholds(RoutingPriority::High, cluster.high_thresholds),
    ];
    pb::ClusterStatus {
        name: cluster.name,
        added_via_api: cluster.added_via_api,
        host_statuses: cluster.hosts.into_iter().map(host_status).collect(),
        circuit_breakers: Some(CircuitBreakers { thresholds, ..CircuitBreakers::default() }),
        observability_name: cluster.observability_name,
        eds_service_name: cluster.eds_service_name.unwrap_or_default(),
        ..pb::ClusterStatus::default()
    }
}

fn thresholds(priority: RoutingPriority, limits: ThresholdStatus) -> Thresholds {
    Thresholds {
        priority: priority.into(),
        max_connections: Some(limits.max_connections),
        max_pending_requests: Some(limits.max_pending_requests),
        max_requests: Some(limits.max_requests),
        max_retries: Some(limits.max_retries),
        ..Thresholds::default()
    }
}

fn host_status(host: HostStatus) -> pb::HostStatus {
    let metric = |kind: simple_metric::Type| {
        move |(name, value): (&str, u64)| pb::SimpleMetric { r#type: kind.into(), value, name: name.to_owned() }
    };
    let counters = host.counters.into_iter().map(metric(simple_metric::Type::Counter));
    pb::HostStatus {
        address: Some(address(&host.address)),
        stats: counters.chain(host.gauges.into_iter().map(metric(simple_metric::Type::Gauge))).collect(),
        health_status: Some(pb::HostHealthStatus {
            eds_health_status: health(host.health).into(),
            ..pb::HostHealthStatus::default()
        }),
        weight: host.weight,
        locality: Some(locality(&host.locality)),
        hostname: host.hostname,
        priority: host.priority,
        ..pb::HostStatus::default()
    }
}

/// A locality as configuration writes it.
pub(super) fn locality(locality: &Locality) -> core::Locality {
    let Locality { region, zone, sub_zone } = locality.clone();
    core::Locality { region, zone, sub_zone }
}

/// What EDS said of a host; to say nothing is to say that it is healthy.
pub(super) fn health(health: HealthStatus) -> core::HealthStatus {
    match health {
        HealthStatus::Unknown | HealthStatus::Healthy => core::HealthStatus::Healthy,
        HealthStatus::Unhealthy => core::HealthStatus::Unhealthy,
        HealthStatus::Draining => core::HealthStatus::Draining,
        HealthStatus::Timeout => core::HealthStatus::Timeout,
        HealthStatus::Degraded => core::HealthStatus::Degraded,
    }
}
