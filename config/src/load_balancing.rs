//! How a cluster picks a host: `lb_policy`, `load_balancing_policy`, `common_lb_config` and their kin.
//!
//! The deprecated fields ([`legacy`]) and the extensible ones ([`extension`]) come out as one [`LoadBalancing`].

mod extension;
mod legacy;
mod subset;

pub use subset::{FallbackPolicy, SelectorFallback, Subset, SubsetSelector};

use crate::{Context, endpoint::HealthStatus, http_protocol_options::percent, route::HashPolicy};
use std::time::Duration;
use weft_control_api::envoy::config::{
    cluster::v3::{self as pb, cluster},
    core::v3 as core,
};

/// Everything that decides the pick.
#[derive(Clone, Debug)]
pub struct LoadBalancing {
    pub policy: LbPolicy,
    /// Percent of hosts available below which health is not looked at; default 50.
    pub healthy_panic_threshold: f64,
    pub ignore_new_hosts_until_first_hc: bool,
    pub close_connections_on_host_set_change: bool,
    /// Health that a host picked by name may have; empty: healthy, unknown and degraded.
    pub override_host_status: Vec<HealthStatus>,
}

/// A policy with how it looks at localities.
#[derive(Clone, Debug, Default)]
pub struct LbPolicy {
    pub kind: PolicyKind,
    pub locality: LocalityLb,
}

/// The policy within a priority, or within a locality where these are weighted.
#[derive(Clone, Debug)]
pub enum PolicyKind {
    RoundRobin {
        slow_start: Option<SlowStart>,
    },
    LeastRequest(LeastRequest),
    Random,
    RingHash(RingHash),
    Maglev(Maglev),
    /// Round robin by weights that hosts report of themselves.
    ClientSideWeightedRoundRobin(Box<ClientSideWeightedRoundRobin>),
    /// Another policy among the hosts that have the metadata which the request asks for.
    Subset(Box<Subset>),
    /// The host that the request names, or another policy's.
    OverrideHost(Box<OverrideHost>),
    /// The cluster's own: ORIGINAL_DST and aggregates.
    ClusterProvided,
}

impl Default for PolicyKind {
    fn default() -> Self {
        Self::RoundRobin { slow_start: None }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct LeastRequest {
    /// Hosts to compare; at least 2. `None`: all of them.
    pub choice_count: Option<u32>,
    /// How much active requests count against the weight.
    pub active_request_bias: f64,
    pub slow_start: Option<SlowStart>,
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self { choice_count: Some(2), active_request_bias: 1.0, slow_start: None }
    }
}

/// Hosts that are new get their weight by and by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// Greater than zero.
    pub window: Duration,
    /// Greater than zero; 1: linear.
    pub aggression: f64,
    /// The share of its weight that a host begins with: 0 to 1.
    pub min_weight: f64,
}

#[derive(Clone, Debug)]
pub struct RingHash {
    pub function: HashFunction,
    /// Entries; default 1024.
    pub minimum_ring_size: u64,
    /// Entries; default 8 Mi.
    pub maximum_ring_size: u64,
    pub hashing: ConsistentHashing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashFunction {
    #[default]
    XxHash64,
    MurmurHash2,
}

#[derive(Clone, Debug)]
pub struct Maglev {
    /// A prime; default 65537.
    pub table_size: u64,
    pub hashing: ConsistentHashing,
}

/// What ring hash and Maglev have in common.
#[derive(Clone, Debug, Default)]
pub struct ConsistentHashing {
    /// Hosts stand by their names, not by their addresses.
    pub use_hostname: bool,
    /// Percent of the average load that a host may have; `None`: any.
    pub balance_factor: Option<u32>,
    /// In place of the route's; empty: the route's.
    pub hash_policies: Vec<HashPolicy>,
}

/// `client_side_weighted_round_robin`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSideWeightedRoundRobin {
    /// Reports of a host count only once they came for so long; default 10 s.
    pub blackout_period: Duration,
    /// A weight that is older is forgotten; default 3 min, zero: never.
    pub weight_expiration_period: Duration,
    /// Default 1 s, at least 100 ms.
    pub weight_update_period: Duration,
    /// How much errors count as utilization; default 1.
    pub error_utilization_penalty: f64,
    /// Where application utilization is not reported; `named_metrics.X`, `cpu_utilization` and the like.
    pub metric_names: Vec<String>,
    pub slow_start: Option<SlowStart>,
}

/// `override_host`.
#[derive(Clone, Debug)]
pub struct OverrideHost {
    /// The first that gives addresses counts.
    pub sources: Vec<OverrideSource>,
    pub fallback: LbPolicy,
}

/// Where the addresses of wanted hosts stand, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OverrideSource {
    Header(http::HeaderName),
    /// Dynamic metadata: the filter's name, and the keys below.
    Metadata(String, Vec<String>),
}

/// How localities of one priority share traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LocalityLb {
    /// By their weights.
    Weighted,
    /// Prefer our own zone, where a local cluster is named; else by their hosts.
    ZoneAware(ZoneAware),
}

impl Default for LocalityLb {
    fn default() -> Self {
        Self::ZoneAware(ZoneAware::default())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ZoneAware {
    /// Percent; default 100.
    pub routing_enabled: f64,
    /// Default 6.
    pub min_cluster_size: u64,
    pub fail_traffic_on_panic: bool,
    /// All goes to our own zone while there is any host.
    pub force_locality_direct_routing: bool,
    /// All goes to our own zone while there are so many hosts.
    pub force_local_zone_min_size: Option<u32>,
    /// Zones count by the weights of their hosts.
    pub by_weight: bool,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self {
            routing_enabled: 100.0,
            min_cluster_size: 6,
            fail_traffic_on_panic: false,
            force_locality_direct_routing: false,
            force_local_zone_min_size: None,
            by_weight: false,
        }
    }
}

impl LbPolicy {
    /// The policy that picks among the hosts that are left, below those that narrow them down.
    pub fn innermost(&self) -> &Self {
        match &self.kind {
            PolicyKind::Subset(subset) => subset.policy.innermost(),
            PolicyKind::OverrideHost(over) => over.fallback.innermost(),
            _ => self,
        }
    }

    /// What ring hash and Maglev have in common, if it is one of these.
    pub fn hashing(&self) -> Option<&ConsistentHashing> {
        match &self.innermost().kind {
            PolicyKind::RingHash(ring) => Some(&ring.hashing),
            PolicyKind::Maglev(maglev) => Some(&maglev.hashing),
            _ => None,
        }
    }
}

/// The fields of a cluster that this module reads.
pub(crate) struct Fields {
    pub lb_policy: i32,
    pub lb_config: Option<cluster::LbConfig>,
    pub load_balancing_policy: Option<pb::LoadBalancingPolicy>,
    pub common_lb_config: Option<cluster::CommonLbConfig>,
    pub lb_subset_config: Option<cluster::LbSubsetConfig>,
    /// The cluster's type brings a policy of its own, and takes no other.
    pub provides: Option<&'static str>,
    /// Names of hosts say which host is meant.
    pub has_names: bool,
}

/// `common_lb_config` but for what goes into [`LoadBalancing`] as it is.
struct Shared {
    locality: Option<LocalityLb>,
    hashing: Option<ConsistentHashing>,
}

impl LoadBalancing {
    /// Reads the load balancing part of a cluster. `original_dst_lb_config` is read with the cluster's type.
    pub(crate) fn from_proto(p: Fields, cx: &mut Context) -> Self {
        let Fields {
            lb_policy,
            lb_config,
            load_balancing_policy,
            common_lb_config,
            lb_subset_config,
            provides,
            has_names,
        } = p;
        let (mut this, shared) = Self::common(common_lb_config.unwrap_or_default(), cx);
        if !has_names && shared.hashing.as_ref().is_some_and(|hashing| hashing.use_hostname) {
            cx.problem_at(
                "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing",
                "cannot use hostname for consistent hashing loadbalancing for clusters that are not of type STRICT_DNS",
            );
        }
        if let Some(policy) = load_balancing_policy {
            if shared.locality.is_some() || shared.hashing.is_some() {
                cx.problem_at(
                    "common_lb_config",
                    "cluster: load_balancing_policy cannot be combined with partial fields (zone_aware_lb_config, \
                     locality_weighted_lb_config, consistent_hashing_lb_config) of common_lb_config",
                );
            }
            if lb_subset_config.is_some_and(|p| !p.subset_selectors.is_empty()) {
                cx.problem_at(
                    "lb_subset_config",
                    "cluster: load_balancing_policy cannot be combined with lb_subset_config",
                );
            }
            if let Some(policy) = cx.field("load_balancing_policy", |cx| extension::read(policy, cx)) {
                this.policy = policy;
            }
        } else {
            this.policy = legacy::read(lb_policy, lb_config, shared, lb_subset_config, cx);
        }
        match (&this.policy.kind, provides) {
            (PolicyKind::ClusterProvided, None) => {
                cx.problem_at("lb_policy", "cluster: LB policy CLUSTER_PROVIDED is not valid for this cluster type");
            }
            (PolicyKind::ClusterProvided, Some(_)) | (_, None) => {}
            (_, Some(kind)) => {
                cx.problem_at("lb_policy", format!("cluster: {kind} cluster takes LB policy CLUSTER_PROVIDED only"))
            }
        }
        this
    }

    fn common(p: cluster::CommonLbConfig, cx: &mut Context) -> (Self, Shared) {
        use cluster::common_lb_config::{ConsistentHashingLbConfig, LocalityConfigSpecifier, ZoneAwareLbConfig};
        let cluster::CommonLbConfig {
            healthy_panic_threshold,
            update_merge_window,
            ignore_new_hosts_until_first_hc,
            close_connections_on_host_set_change,
            consistent_hashing_lb_config,
            override_host_status,
            locality_config_specifier,
        } = p;
        cx.field("common_lb_config", |cx| {
            // Changes are applied at once, which no request can tell from a window.
            cx.ignored_if("update_merge_window", update_merge_window.is_some());
            let locality = locality_config_specifier.map(|specifier| match specifier {
                LocalityConfigSpecifier::LocalityWeightedLbConfig(_) => LocalityLb::Weighted,
                LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
                    routing_enabled,
                    min_cluster_size,
                    fail_traffic_on_panic,
                }) => LocalityLb::ZoneAware(ZoneAware {
                    routing_enabled: percent("zone_aware_lb_config.routing_enabled", routing_enabled, cx)
                        .unwrap_or(100.0),
                    min_cluster_size: min_cluster_size.unwrap_or(6),
                    fail_traffic_on_panic,
                    ..ZoneAware::default()
                }),
            });
            let hashing = consistent_hashing_lb_config.map(
                |ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor }| ConsistentHashing {
                    use_hostname: use_hostname_for_hashing,
                    balance_factor: hash_balance_factor.filter(|factor| *factor > 0),
                    hash_policies: Vec::new(),
                },
            );
            let statuses = override_host_status.map(|core::HealthStatusSet { statuses }| statuses);
            let this = Self {
                policy: LbPolicy::default(),
                healthy_panic_threshold: percent("healthy_panic_threshold", healthy_panic_threshold, cx)
                    .unwrap_or(50.0),
                ignore_new_hosts_until_first_hc,
                close_connections_on_host_set_change,
                override_host_status: cx.elements("override_host_status", statuses.unwrap_or_default(), |cx, p| {
                    Some(match cx.enumeration("statuses", p) {
                        core::HealthStatus::Unknown => HealthStatus::Unknown,
                        core::HealthStatus::Healthy => HealthStatus::Healthy,
                        core::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
                        core::HealthStatus::Draining => HealthStatus::Draining,
                        core::HealthStatus::Timeout => HealthStatus::Timeout,
                        core::HealthStatus::Degraded => HealthStatus::Degraded,
                    })
                }),
            };
            (this, Shared { locality, hashing })
        })
    }
}

impl RingHash {
    fn new(
        function: HashFunction,
        minimum_ring_size: Option<u64>,
        maximum_ring_size: Option<u64>,
        hashing: ConsistentHashing,
        cx: &mut Context,
    ) -> Self {
        let (minimum_ring_size, maximum_ring_size) =
            (minimum_ring_size.unwrap_or(1024), maximum_ring_size.unwrap_or(8 << 20));
        if minimum_ring_size > maximum_ring_size {
            cx.problem_at(
                "minimum_ring_size",
                format!("ring hash: minimum_ring_size ({minimum_ring_size}) > maximum_ring_size ({maximum_ring_size})"),
            );
        }
        Self { function, minimum_ring_size, maximum_ring_size, hashing }
    }
}

impl Maglev {
    fn new(table_size: Option<u64>, hashing: ConsistentHashing, cx: &mut Context) -> Self {
        let table_size = table_size.unwrap_or(65537);
        let is_prime =
            table_size > 1 && (2..).take_while(|n| n * n <= table_size).all(|n| !table_size.is_multiple_of(n));
        if !is_prime {
            cx.problem_at("table_size", format!("found {table_size}: the table size of maglev must be a prime number"));
        }
        Self { table_size, hashing }
    }
}

impl SlowStart {
    /// `None` without a window.
    fn new(
        window: Option<weft_control_api::Duration>,
        aggression: Option<core::RuntimeDouble>,
        min_weight_percent: Option<weft_control_api::envoy::r#type::v3::Percent>,
        cx: &mut Context,
    ) -> Option<Self> {
        cx.field("slow_start_config", |cx| {
            let window = cx.duration("slow_start_window", window).unwrap_or_default();
            let aggression = aggression.map_or(1.0, |core::RuntimeDouble { default_value, runtime_key }| {
                cx.ignored_if("aggression.runtime_key", !runtime_key.is_empty());
                default_value
            });
            let min_weight = percent("min_weight_percent", min_weight_percent, cx).unwrap_or(10.0) / 100.0;
            // Envoy takes an aggression that means nothing for 1.
            let aggression = if aggression > 0.0 { aggression } else { 1.0 };
            (!window.is_zero()).then_some(Self { window, aggression, min_weight })
        })
    }
}

fn choices(choice_count: Option<u32>, cx: &mut Context) -> u32 {
    if choice_count.is_some_and(|n| n < 2) {
        cx.problem_at("choice_count", "allowed is 2 or more");
    }
    choice_count.unwrap_or(2)
}

fn bias(p: Option<core::RuntimeDouble>, cx: &mut Context) -> f64 {
    let Some(core::RuntimeDouble { default_value, runtime_key }) = p else { return 1.0 };
    cx.ignored_if("active_request_bias.runtime_key", !runtime_key.is_empty());
    // Envoy takes one that means nothing for 1.
    if default_value >= 0.0 { default_value } else { 1.0 }
}

#[cfg(test)]
mod tests;
