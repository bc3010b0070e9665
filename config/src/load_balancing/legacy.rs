//! `lb_policy` with its `*_lb_config`, and `lb_subset_config`: how clusters said it before policies were extensions.

use super::{
    HashFunction, LbPolicy, LeastRequest, Maglev, PolicyKind, RingHash, Shared, SlowStart, Subset, bias, choices,
};
use crate::Context;
use weft_control_api::envoy::config::cluster::v3::cluster;

/// Reads the fields; problems stand at the cluster's own path.
pub(super) fn read(
    lb_policy: i32,
    lb_config: Option<cluster::LbConfig>,
    shared: Shared,
    lb_subset_config: Option<cluster::LbSubsetConfig>,
    cx: &mut Context,
) -> LbPolicy {
    let Shared { locality, hashing } = shared;
    let (locality, hashing) = (locality.unwrap_or_default(), hashing.unwrap_or_default());
    let named = cx.enumeration("lb_policy", lb_policy);
    let kind = match named {
        cluster::LbPolicy::RoundRobin => {
            let slow_start = match lb_config {
                Some(cluster::LbConfig::RoundRobinLbConfig(cluster::RoundRobinLbConfig { slow_start_config })) => {
                    slow_start_config.and_then(|p| cx.field("round_robin_lb_config", |cx| slow_start(p, cx)))
                }
                _ => None,
            };
            PolicyKind::RoundRobin { slow_start }
        }
        cluster::LbPolicy::LeastRequest => PolicyKind::LeastRequest(match lb_config {
            Some(cluster::LbConfig::LeastRequestLbConfig(p)) => cx.field("least_request_lb_config", |cx| {
                let cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = p;
                LeastRequest {
                    choice_count: Some(choices(choice_count, cx)),
                    active_request_bias: bias(active_request_bias, cx),
                    slow_start: slow_start_config.and_then(|p| slow_start(p, cx)),
                }
            }),
            _ => LeastRequest::default(),
        }),
        cluster::LbPolicy::Random => PolicyKind::Random,
        cluster::LbPolicy::RingHash => PolicyKind::RingHash(cx.field("ring_hash_lb_config", |cx| {
            use cluster::ring_hash_lb_config::HashFunction as Function;
            let p = match lb_config {
                Some(cluster::LbConfig::RingHashLbConfig(p)) => p,
                _ => cluster::RingHashLbConfig::default(),
            };
            let cluster::RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size } = p;
            let function = match cx.enumeration("hash_function", hash_function) {
                Function::XxHash => HashFunction::XxHash64,
                Function::MurmurHash2 => HashFunction::MurmurHash2,
            };
            RingHash::new(function, minimum_ring_size, maximum_ring_size, hashing, cx)
        })),
        cluster::LbPolicy::Maglev => PolicyKind::Maglev(cx.field("maglev_lb_config", |cx| {
            let table_size = match lb_config {
                Some(cluster::LbConfig::MaglevLbConfig(cluster::MaglevLbConfig { table_size })) => table_size,
                _ => None,
            };
            Maglev::new(table_size, hashing, cx)
        })),
        cluster::LbPolicy::ClusterProvided => PolicyKind::ClusterProvided,
        cluster::LbPolicy::LoadBalancingPolicyConfig => {
            cx.problem_at("load_balancing_policy", "cluster: field load_balancing_policy need to be set");
            PolicyKind::Random
        }
    };
    let policy = LbPolicy { kind, locality };
    let Some(subset) = lb_subset_config.filter(|p| !p.subset_selectors.is_empty()) else { return policy };
    if named == cluster::LbPolicy::ClusterProvided {
        cx.problem_at(
            "lb_subset_config",
            "cluster: LB policy CLUSTER_PROVIDED cannot be combined with lb_subset_config",
        );
        return policy;
    }
    let subset = cx.field("lb_subset_config", |cx| Subset::from_legacy(subset, policy, cx));
    LbPolicy { kind: PolicyKind::Subset(Box::new(subset)), locality }
}

fn slow_start(p: cluster::SlowStartConfig, cx: &mut Context) -> Option<SlowStart> {
    let cluster::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = p;
    SlowStart::new(slow_start_window, aggression, min_weight_percent, cx)
}
