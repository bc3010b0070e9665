//! The hosts of a cluster (`envoy.config.endpoint.v3.ClusterLoadAssignment`), inline in a cluster or from EDS.
//!
//! Invariant: weights are at least 1, and localities are listed in the order in which they were given.

mod changes;

pub use changes::{AssignmentChanges, GroupChanges};

use crate::{
    Context,
    address::Address,
    metadata::{self, Metadata},
    percent::FractionalPercent,
};
use std::collections::HashMap;
use weft_control_api::envoy::config::{core::v3 as core, endpoint::v3 as pb};

/// `ClusterLoadAssignment`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterLoadAssignment {
    pub cluster_name: String,
    pub localities: Vec<LocalityLbEndpoints>,
    pub policy: Policy,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Percent; default 140.
    pub overprovisioning_factor: u32,
    pub weighted_priority_health: bool,
    /// Requests that no host gets.
    pub drop_overload: Option<DropOverload>,
}

/// A share of requests that is dropped, because there are too many.
#[derive(Clone, Debug, PartialEq)]
pub struct DropOverload {
    /// What it is called in load reports.
    pub category: String,
    pub share: FractionalPercent,
}

impl Default for Policy {
    fn default() -> Self {
        Self { overprovisioning_factor: 140, weighted_priority_health: false, drop_overload: None }
    }
}

/// `core.v3.Locality`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}

impl Locality {
    pub fn from_proto(p: core::Locality) -> Self {
        let core::Locality { region, zone, sub_zone } = p;
        Self { region, zone, sub_zone }
    }

    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.sub_zone.is_empty()
    }
}

/// `LocalityLbEndpoints`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalityLbEndpoints {
    pub locality: Locality,
    pub metadata: Metadata,
    pub endpoints: Vec<LbEndpoint>,
    /// `None`: the locality takes no traffic where localities are weighted.
    pub load_balancing_weight: Option<u32>,
    /// 0 is the highest.
    pub priority: u32,
}

/// `LbEndpoint`.
#[derive(Clone, Debug, PartialEq)]
pub struct LbEndpoint {
    pub address: Address,
    /// For `auto_host_rewrite` and health checks; may be empty.
    pub hostname: String,
    /// Tried in turn when the first address cannot be connected to.
    pub additional_addresses: Vec<Address>,
    pub health_status: HealthStatus,
    pub metadata: Metadata,
    pub load_balancing_weight: u32,
    pub health_check: HealthCheckConfig,
}

/// `Endpoint.HealthCheckConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HealthCheckConfig {
    /// 0: the endpoint's.
    pub port: u16,
    pub hostname: String,
    pub address: Option<Address>,
    pub disable_active_health_check: bool,
}

/// `core.v3.HealthStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HealthStatus {
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
    Draining,
    Timeout,
    Degraded,
}

/// The most that the endpoints of one group may weigh together.
pub const MOST_WEIGHT: u64 = u32::MAX as u64;

impl ClusterLoadAssignment {
    pub fn from_proto(p: pb::ClusterLoadAssignment, cx: &mut Context) -> Option<Self> {
        let pb::ClusterLoadAssignment { cluster_name, endpoints, named_endpoints, policy } = p;
        if cluster_name.is_empty() {
            cx.problem_at("cluster_name", "must not be empty");
        }
        let mut named = named_endpoints;
        let localities =
            cx.elements("endpoints", endpoints, |cx, p| LocalityLbEndpoints::from_proto(p, &mut named, cx));
        let policy = cx.field("policy", |cx| Policy::from_proto(policy.unwrap_or_default(), cx));
        Some(Self { cluster_name, localities, policy })
    }
}

impl Policy {
    fn from_proto(p: pb::cluster_load_assignment::Policy, cx: &mut Context) -> Self {
        let pb::cluster_load_assignment::Policy {
            drop_overloads,
            overprovisioning_factor,
            endpoint_stale_after,
            weighted_priority_health,
        } = p;
        if overprovisioning_factor == Some(0) {
            cx.problem_at("overprovisioning_factor", "found 0, allowed is 1 or more");
        }
        if drop_overloads.len() > 1 {
            cx.problem_at(
                "drop_overloads",
                format!(
                    "Cluster drop_overloads config has {} categories. Envoy only support one.",
                    drop_overloads.len()
                ),
            );
        }
        let drop_overload = cx.elements("drop_overloads", drop_overloads, |cx, p| {
            let pb::cluster_load_assignment::policy::DropOverload { category, drop_percentage } = p;
            let share = drop_percentage?;
            Some(DropOverload {
                category,
                share: cx.field("drop_percentage", |cx| FractionalPercent::from_proto(share, cx)),
            })
        });
        let drop_overload = drop_overload.into_iter().next().filter(|drop| drop.share.numerator > 0);
        cx.unsupported_if("endpoint_stale_after", endpoint_stale_after.is_some());
        Self {
            overprovisioning_factor: overprovisioning_factor.unwrap_or(140),
            weighted_priority_health,
            drop_overload,
        }
    }
}

impl LocalityLbEndpoints {
    fn from_proto(
        p: pb::LocalityLbEndpoints,
        named: &mut HashMap<String, pb::Endpoint>,
        cx: &mut Context,
    ) -> Option<Self> {
        use pb::locality_lb_endpoints::{LbConfig, LbEndpointList};
        let pb::LocalityLbEndpoints {
            locality,
            metadata,
            lb_endpoints,
            load_balancing_weight,
            priority,
            proximity,
            lb_config,
        } = p;
        cx.ignored_if("proximity", proximity.is_some());
        let (field, list) = match lb_config {
            None => ("lb_endpoints", lb_endpoints),
            Some(LbConfig::LoadBalancerEndpoints(LbEndpointList { lb_endpoints })) => {
                ("load_balancer_endpoints.lb_endpoints", lb_endpoints)
            }
            Some(LbConfig::LedsClusterLocalityConfig(_)) => {
                cx.unsupported_if("leds_cluster_locality_config", true);
                return None;
            }
        };
        if priority > 128 {
            cx.problem_at("priority", format!("found {priority}, allowed are 0 to 128"));
            return None;
        }
        if load_balancing_weight == Some(0) {
            cx.problem_at("load_balancing_weight", "found 0, allowed is 1 or more");
        }
        let endpoints = cx.elements(field, list, |cx, p| LbEndpoint::from_proto(p, named, cx));
        let sum: u64 = endpoints.iter().map(|e| u64::from(e.load_balancing_weight)).sum();
        if sum > MOST_WEIGHT {
            cx.problem_at(
                field,
                format!("The sum of weights of all endpoints in the same locality exceeds {MOST_WEIGHT}"),
            );
        }
        Some(Self {
            locality: Locality::from_proto(locality.unwrap_or_default()),
            metadata: metadata::from_proto("metadata", metadata, cx),
            endpoints,
            load_balancing_weight,
            priority,
        })
    }
}

impl LbEndpoint {
    fn from_proto(p: pb::LbEndpoint, named: &mut HashMap<String, pb::Endpoint>, cx: &mut Context) -> Option<Self> {
        use pb::lb_endpoint::HostIdentifier;
        let pb::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } = p;
        if load_balancing_weight == Some(0) {
            cx.problem_at("load_balancing_weight", "found 0, allowed is 1 or more");
        }
        let health_status = match cx.enumeration("health_status", health_status) {
            core::HealthStatus::Unknown => HealthStatus::Unknown,
            core::HealthStatus::Healthy => HealthStatus::Healthy,
            core::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
            core::HealthStatus::Draining => HealthStatus::Draining,
            core::HealthStatus::Timeout => HealthStatus::Timeout,
            core::HealthStatus::Degraded => HealthStatus::Degraded,
        };
        let metadata = metadata::from_proto("metadata", metadata, cx);
        let endpoint = match cx.required("host_identifier", host_identifier)? {
            HostIdentifier::Endpoint(endpoint) => endpoint,
            HostIdentifier::EndpointName(name) => match named.get(&name) {
                Some(endpoint) => endpoint.clone(),
                None => {
                    cx.problem_at("endpoint_name", format!("found {name:?}, which is not in named_endpoints"));
                    return None;
                }
            },
        };
        cx.field("endpoint", |cx| {
            let pb::Endpoint { address, health_check_config, hostname, additional_addresses, observability_name } =
                endpoint;
            cx.ignored_if("observability_name", !observability_name.is_empty());
            let address = cx.required("address", address)?;
            let address = cx.field("address", |cx| Address::from_proto(address, cx));
            let additional_addresses = cx.elements("additional_addresses", additional_addresses, |cx, p| {
                let pb::endpoint::AdditionalAddress { address } = p;
                let address = cx.required("address", address)?;
                cx.field("address", |cx| Address::from_proto(address, cx))
            });
            let health_check = health_check_config
                .map(|p| cx.field("health_check_config", |cx| HealthCheckConfig::from_proto(p, cx)))
                .unwrap_or_default();
            Some(Self {
                address: address?,
                hostname,
                additional_addresses,
                health_status,
                metadata,
                load_balancing_weight: load_balancing_weight.unwrap_or(1),
                health_check,
            })
        })
    }
}

impl HealthCheckConfig {
    fn from_proto(p: pb::endpoint::HealthCheckConfig, cx: &mut Context) -> Self {
        let pb::endpoint::HealthCheckConfig { port_value, hostname, address, disable_active_health_check } = p;
        let port = u16::try_from(port_value).unwrap_or_else(|_| {
            cx.problem_at("port_value", format!("found {port_value}, allowed are 0 to 65535"));
            0
        });
        let address = address.and_then(|p| cx.field("address", |cx| Address::from_proto(p, cx)));
        Self { port, hostname, address, disable_active_health_check }
    }
}
