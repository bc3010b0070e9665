//! All that the control thread prepares for the picks of one cluster: lists, shares, tables, subsets. Shared by all threads.

use super::{
    eligible::{Eligible, Found, LocalityWeights, Rules},
    subset::Subsets,
    zone::LocalHosts,
};
use crate::upstream::host::HostSet;
use weft_config::{
    endpoint::Locality,
    load_balancing::{LbPolicy, LoadBalancing, PolicyKind},
};

/// What there is to pick from, at the moment at which it was made.
#[derive(Debug)]
pub(in crate::upstream) struct Picks {
    /// Among all hosts.
    pub any: Eligible,
    pub subsets: Option<Subsets>,
}

impl Picks {
    /// `zone`: our own locality, where a local cluster is named.
    pub fn new(hosts: &HostSet, config: &LoadBalancing, zone: Option<&Locality>) -> Self {
        let found = Found::all(hosts);
        let policy = config.policy.innermost();
        let rules = Rules {
            policy,
            panic_threshold: config.healthy_panic_threshold,
            zone,
            weights: LocalityWeights::Configured,
        };
        let mut subsets = None;
        let mut outer: &LbPolicy = &config.policy;
        loop {
            outer = match &outer.kind {
                PolicyKind::Subset(subset) => {
                    subsets = Some(Subsets::new(hosts, &found, subset, rules));
                    break;
                }
                PolicyKind::OverrideHost(over) => &over.fallback,
                _ => break,
            };
        }
        // With subsets the weights of localities count only where these say so, for all hosts too.
        let weights = match &outer.kind {
            PolicyKind::Subset(subset) if !subset.locality_weight_aware => LocalityWeights::None,
            _ => LocalityWeights::Configured,
        };
        Self { any: Eligible::new(hosts, &found, None, Rules { weights, ..rules }), subsets }
    }

    /// The healthy hosts of the first priority, where this is the local cluster.
    pub fn local_hosts(&self) -> LocalHosts {
        LocalHosts::new(self.any.priorities.first(), self.any.loads.is_panic(0))
    }
}
