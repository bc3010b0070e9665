//! How a cluster picks a host: `lb_policy`, `load_balancing_policy`, `common_lb_config` and their kin.
//!
//! The deprecated fields and the extensible ones come out as one [`LoadBalancing`].

use crate::{Context, endpoint::HealthStatus, http_protocol_options::percent};
use std::time::Duration;
use weft_control_api::{
    Any,
    envoy::{
        config::{
            cluster::v3::{self as pb, cluster},
            core::v3 as core,
        },
        extensions::load_balancing_policies::{
            cluster_provided::v3::ClusterProvided,
            common::v3::{LocalityLbConfig, SlowStartConfig, locality_lb_config},
            least_request::v3::{self as least_request, LeastRequest},
            random::v3::Random,
            round_robin::v3::RoundRobin,
            wrr_locality::v3::WrrLocality,
        },
    },
};

/// Everything that decides the pick.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadBalancing {
    pub policy: LbPolicy,
    pub locality: LocalityLb,
    /// Percent of hosts available below which health is not looked at; default 50.
    pub healthy_panic_threshold: f64,
    /// Host sets that change health, weight or metadata only are applied together once in this time; zero: at once.
    pub update_merge_window: Duration,
    pub ignore_new_hosts_until_first_hc: bool,
    pub close_connections_on_host_set_change: bool,
    /// Health that a host picked by name may have; empty: healthy, unknown and degraded.
    pub override_host_status: Vec<HealthStatus>,
}

/// The policy within a priority, or within a locality where these are weighted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LbPolicy {
    RoundRobin,
    LeastRequest {
        /// Hosts to compare; at least 2. `None`: all of them.
        choice_count: Option<u32>,
        /// How much active requests count against the weight.
        active_request_bias: f64,
    },
    Random,
    /// The cluster's own: ORIGINAL_DST.
    ClusterProvided,
}

/// How localities of one priority share traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LocalityLb {
    /// By their hosts.
    #[default]
    None,
    /// By their weights.
    Weighted,
    /// Prefer our own zone, where a local cluster is named.
    ZoneAware {
        /// Percent.
        routing_enabled: f64,
        min_cluster_size: u64,
        fail_traffic_on_panic: bool,
    },
}

const ROUND_ROBIN: &str = "envoy.load_balancing_policies.round_robin";
const LEAST_REQUEST: &str = "envoy.load_balancing_policies.least_request";
const RANDOM: &str = "envoy.load_balancing_policies.random";
const CLUSTER_PROVIDED: &str = "envoy.load_balancing_policies.cluster_provided";
const WRR_LOCALITY: &str = "envoy.load_balancing_policies.wrr_locality";
/// Policies that are known by name but not implemented: they must not be passed over in favour of a later one.
const UNSUPPORTED: [&str; 9] = [
    "client_side_weighted_round_robin",
    "dynamic_modules",
    "load_aware_locality",
    "maglev",
    "override_host",
    "ring_hash",
    "subset",
    "consistent_hashing",
    "pick_first",
];

/// The fields of a cluster that this module reads.
pub(crate) struct Fields {
    pub lb_policy: i32,
    pub lb_config: Option<cluster::LbConfig>,
    pub load_balancing_policy: Option<pb::LoadBalancingPolicy>,
    pub common_lb_config: Option<cluster::CommonLbConfig>,
    pub lb_subset_config: Option<cluster::LbSubsetConfig>,
    pub is_original_dst: bool,
}

impl LoadBalancing {
    /// Reads the load balancing part of a cluster. `original_dst_lb_config` is read with the cluster's type.
    pub(crate) fn from_proto(p: Fields, cx: &mut Context) -> Self {
        let Fields { lb_policy, lb_config, load_balancing_policy, common_lb_config, lb_subset_config, is_original_dst } =
            p;
        let subsets = lb_subset_config.is_some_and(|p| !p.subset_selectors.is_empty());
        cx.unsupported_if("lb_subset_config", subsets);
        let has_common = common_lb_config.is_some();
        let mut this = Self::common(common_lb_config.unwrap_or_default(), cx);
        if let Some(policy) = load_balancing_policy {
            if has_common && this.locality != LocalityLb::None {
                cx.problem_at(
                    "common_lb_config",
                    "locality settings are part of load_balancing_policy when that is set",
                );
            }
            if let Some((policy, locality)) = cx.field("load_balancing_policy", |cx| read_policy(policy, cx)) {
                (this.policy, this.locality) = (policy, locality);
            }
        } else {
            this.policy = legacy(lb_policy, lb_config, cx);
        }
        match (this.policy, is_original_dst) {
            (LbPolicy::ClusterProvided, false) => {
                cx.problem_at("lb_policy", "cluster: LB policy CLUSTER_PROVIDED is not valid for this cluster type");
            }
            (LbPolicy::ClusterProvided, true) => {}
            (_, true) => {
                cx.problem_at("lb_policy", "cluster: an ORIGINAL_DST cluster takes LB policy CLUSTER_PROVIDED only")
            }
            _ => {}
        }
        this
    }

    fn common(p: cluster::CommonLbConfig, cx: &mut Context) -> Self {
        use cluster::common_lb_config::LocalityConfigSpecifier;
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
            cx.unsupported_if("consistent_hashing_lb_config", consistent_hashing_lb_config.is_some());
            let override_host_status = override_host_status.map(|core::HealthStatusSet { statuses }| statuses);
            Self {
                policy: LbPolicy::RoundRobin,
                locality: match locality_config_specifier {
                    None => LocalityLb::None,
                    Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => LocalityLb::Weighted,
                    Some(LocalityConfigSpecifier::ZoneAwareLbConfig(p)) => {
                        let cluster::common_lb_config::ZoneAwareLbConfig {
                            routing_enabled,
                            min_cluster_size,
                            fail_traffic_on_panic,
                        } = p;
                        LocalityLb::ZoneAware {
                            routing_enabled: percent("zone_aware_lb_config.routing_enabled", routing_enabled, cx)
                                .unwrap_or(100.0),
                            min_cluster_size: min_cluster_size.unwrap_or(6),
                            fail_traffic_on_panic,
                        }
                    }
                },
                healthy_panic_threshold: percent("healthy_panic_threshold", healthy_panic_threshold, cx)
                    .unwrap_or(50.0),
                update_merge_window: cx
                    .duration("update_merge_window", update_merge_window)
                    .unwrap_or(Duration::from_secs(1)),
                ignore_new_hosts_until_first_hc,
                close_connections_on_host_set_change,
                override_host_status: cx.elements(
                    "override_host_status",
                    override_host_status.unwrap_or_default(),
                    |cx, p| {
                        Some(match cx.enumeration("statuses", p) {
                            core::HealthStatus::Unknown => HealthStatus::Unknown,
                            core::HealthStatus::Healthy => HealthStatus::Healthy,
                            core::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
                            core::HealthStatus::Draining => HealthStatus::Draining,
                            core::HealthStatus::Timeout => HealthStatus::Timeout,
                            core::HealthStatus::Degraded => HealthStatus::Degraded,
                        })
                    },
                ),
            }
        })
    }
}

/// `lb_policy` with its `*_lb_config`.
fn legacy(lb_policy: i32, lb_config: Option<cluster::LbConfig>, cx: &mut Context) -> LbPolicy {
    let policy = match cx.enumeration("lb_policy", lb_policy) {
        cluster::LbPolicy::RoundRobin => LbPolicy::RoundRobin,
        cluster::LbPolicy::LeastRequest => LbPolicy::LeastRequest { choice_count: Some(2), active_request_bias: 1.0 },
        cluster::LbPolicy::Random => LbPolicy::Random,
        cluster::LbPolicy::ClusterProvided => LbPolicy::ClusterProvided,
        other @ (cluster::LbPolicy::RingHash | cluster::LbPolicy::Maglev) => {
            cx.problem_at("lb_policy", format!("{} is not supported", other.as_str_name()));
            LbPolicy::Random
        }
        cluster::LbPolicy::LoadBalancingPolicyConfig => {
            cx.problem_at("load_balancing_policy", "cluster: field load_balancing_policy need to be set");
            LbPolicy::Random
        }
    };
    match lb_config {
        Some(cluster::LbConfig::LeastRequestLbConfig(p)) => cx.field("least_request_lb_config", |cx| {
            let cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = p;
            cx.unsupported_if("slow_start_config", slow_start_config.is_some());
            let least = LbPolicy::LeastRequest {
                choice_count: Some(choices(choice_count, cx)),
                active_request_bias: bias(active_request_bias, cx),
            };
            if matches!(policy, LbPolicy::LeastRequest { .. }) { least } else { policy }
        }),
        Some(cluster::LbConfig::RoundRobinLbConfig(cluster::RoundRobinLbConfig { slow_start_config })) => {
            cx.unsupported_if("round_robin_lb_config.slow_start_config", slow_start_config.is_some());
            policy
        }
        // Of use to policies that were refused above, and to ORIGINAL_DST, which reads its own.
        Some(
            cluster::LbConfig::RingHashLbConfig(_)
            | cluster::LbConfig::MaglevLbConfig(_)
            | cluster::LbConfig::OriginalDstLbConfig(_),
        )
        | None => policy,
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
    if default_value.is_nan() || default_value < 0.0 {
        cx.problem_at("active_request_bias", format!("found {default_value}, allowed is 0 or more"));
    }
    default_value
}

/// The first policy of the list that is known.
fn read_policy(p: pb::LoadBalancingPolicy, cx: &mut Context) -> Option<(LbPolicy, LocalityLb)> {
    let pb::LoadBalancingPolicy { policies } = p;
    let mut names = Vec::new();
    for (i, pb::load_balancing_policy::Policy { typed_extension_config }) in policies.into_iter().enumerate() {
        let read = cx.element("policies", i, |cx| {
            let config = cx.required("typed_extension_config", typed_extension_config)?;
            cx.field("typed_extension_config", |cx| {
                let core::TypedExtensionConfig { name, typed_config } = config;
                let read = known(&name, typed_config.unwrap_or_default(), cx);
                names.push(name);
                read
            })
        });
        if let Some(read) = read {
            return read;
        }
    }
    if !cx.has_problems() {
        cx.problem(format!("Didn't find a registered load balancer factory with names from [{}]", names.join(", ")));
    }
    None
}

/// The policy, if it is one that is known; `Some(None)` if it is and something is wrong with it.
fn known(name: &str, any: Any, cx: &mut Context) -> Option<Option<(LbPolicy, LocalityLb)>> {
    let type_name = any.type_url.rsplit('/').next().unwrap_or_default();
    let package = type_name.strip_prefix("envoy.extensions.load_balancing_policies.").and_then(|t| t.split('.').next());
    let by_type = package.map(|package| format!("envoy.load_balancing_policies.{package}"));
    let name = by_type.as_deref().unwrap_or(name);
    let read = |cx: &mut Context| -> Option<(LbPolicy, LocalityLb)> {
        let slow_start =
            |p: Option<SlowStartConfig>, cx: &mut Context| cx.unsupported_if("slow_start_config", p.is_some());
        Some(match name {
            ROUND_ROBIN => {
                let RoundRobin { slow_start_config, locality_lb_config } = unpacked(&any, cx)?;
                slow_start(slow_start_config, cx);
                (LbPolicy::RoundRobin, locality(locality_lb_config, cx))
            }
            LEAST_REQUEST => {
                let LeastRequest {
                    choice_count,
                    active_request_bias,
                    slow_start_config,
                    locality_lb_config,
                    enable_full_scan,
                    selection_method,
                } = unpacked(&any, cx)?;
                slow_start(slow_start_config, cx);
                let method: least_request::least_request::SelectionMethod =
                    cx.enumeration("selection_method", selection_method);
                let full = enable_full_scan.unwrap_or_default()
                    || method == least_request::least_request::SelectionMethod::FullScan;
                let count = choices(choice_count, cx);
                let policy = LbPolicy::LeastRequest {
                    choice_count: (!full).then_some(count),
                    active_request_bias: bias(active_request_bias, cx),
                };
                (policy, locality(locality_lb_config, cx))
            }
            RANDOM => {
                let Random { locality_lb_config } = unpacked(&any, cx)?;
                (LbPolicy::Random, locality(locality_lb_config, cx))
            }
            CLUSTER_PROVIDED => {
                let ClusterProvided {} = unpacked(&any, cx)?;
                (LbPolicy::ClusterProvided, LocalityLb::None)
            }
            _ => {
                let WrrLocality { endpoint_picking_policy } = unpacked(&any, cx)?;
                let child = cx.required("endpoint_picking_policy", endpoint_picking_policy)?;
                let (policy, _) = cx.field("endpoint_picking_policy", |cx| read_policy(child, cx))?;
                (policy, LocalityLb::Weighted)
            }
        })
    };
    match name {
        ROUND_ROBIN | LEAST_REQUEST | RANDOM | CLUSTER_PROVIDED | WRR_LOCALITY => Some(read(cx)),
        _ => {
            let unsupported =
                UNSUPPORTED.iter().any(|short| name.strip_prefix("envoy.load_balancing_policies.") == Some(short));
            if unsupported {
                cx.problem(format!("{name} is not supported"));
            }
            unsupported.then_some(None)
        }
    }
}

/// The policy's configuration; without any, all its defaults.
fn unpacked<M: prost::Message + prost::Name + Default>(any: &Any, cx: &mut Context) -> Option<M> {
    if any.type_url.is_empty() { Some(M::default()) } else { cx.unpack("typed_config", any) }
}

fn locality(p: Option<LocalityLbConfig>, cx: &mut Context) -> LocalityLb {
    use locality_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig};
    let Some(LocalityLbConfig { locality_config_specifier }) = p else { return LocalityLb::None };
    match locality_config_specifier {
        None => LocalityLb::None,
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => LocalityLb::Weighted,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(p)) => {
            cx.field("locality_lb_config.zone_aware_lb_config", |cx| {
                let ZoneAwareLbConfig {
                    routing_enabled,
                    min_cluster_size,
                    fail_traffic_on_panic,
                    force_locality_direct_routing,
                    force_local_zone,
                    locality_basis,
                } = p;
                cx.unsupported_if("force_locality_direct_routing", force_locality_direct_routing);
                cx.unsupported_if("force_local_zone", force_local_zone.is_some());
                cx.unsupported_if("locality_basis", locality_basis != 0);
                LocalityLb::ZoneAware {
                    routing_enabled: percent("routing_enabled", routing_enabled, cx).unwrap_or(100.0),
                    min_cluster_size: min_cluster_size.unwrap_or(6),
                    fail_traffic_on_panic,
                }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(policies: &[(&str, &str)]) -> Result<LbPolicy, Vec<String>> {
        let policy = |(name, message): &(&str, &str)| pb::load_balancing_policy::Policy {
            typed_extension_config: Some(core::TypedExtensionConfig {
                name: (*name).into(),
                typed_config: Some(Any { type_url: format!("type.googleapis.com/{message}"), value: Vec::new() }),
            }),
        };
        let mut cx = Context::new();
        let p = pb::LoadBalancingPolicy { policies: policies.iter().map(policy).collect() };
        let read = read_policy(p, &mut cx).map(|(policy, _)| policy);
        cx.finish(read).map(|(policy, _)| policy).map_err(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_first_known_policy_counts() {
        let least = "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest";
        let default = LbPolicy::LeastRequest { choice_count: Some(2), active_request_bias: 1.0 };
        assert_eq!(read(&[("mine", "acme.Policy"), ("lr", least)]), Ok(default));
        let ring = "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash";
        assert_eq!(
            read(&[("rh", ring), ("lr", least)]).unwrap_err(),
            ["policies[0].typed_extension_config: envoy.load_balancing_policies.ring_hash is not supported"]
        );
        assert_eq!(read(&[("mine", "acme.Policy")]).unwrap_err().len(), 1);
    }
}
