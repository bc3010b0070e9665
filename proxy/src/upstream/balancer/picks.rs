//! All that the control thread prepares for the picks of one cluster: lists, shares, tables, subsets. Shared by all threads.

use super::{
    eligible::{Eligible, Found, LocalityWeights, Rules},
    subset::Subsets,
    zone::LocalHosts,
};
use crate::upstream::{health::Health, host::HostSet};
use weft_config::{
    endpoint::Locality,
    load_balancing::{LbPolicy, LoadBalancing, PolicyKind},
};

/// What there is to pick from, at the moment at which it was made.
#[derive(Debug)]
pub(in crate::upstream) struct Picks {
    /// Among all hosts.
    pub any: Eligible,
    pub subsets: Option<Box<Subsets>>,
    pub membership: Membership,
}

/// How many hosts there are, as stats tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::upstream) struct Membership {
    pub total: u32,
    pub healthy: u32,
    pub degraded: u32,
    pub excluded: u32,
    /// 0: no hosts.
    pub max_weight: u32,
}

impl Membership {
    fn new(found: &[Vec<Found>]) -> Self {
        let mut this = Self::default();
        for found in found.iter().flatten() {
            this.total += 1;
            match found.health {
                Health::Healthy => this.healthy += 1,
                Health::Degraded => this.degraded += 1,
                Health::Unhealthy => {}
            }
            this.excluded += u32::from(found.is_excluded);
            this.max_weight = this.max_weight.max(found.weight);
        }
        this
    }
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
                    subsets = Some(Box::new(Subsets::new(hosts, &found, subset, rules)));
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
        Self {
            any: Eligible::new(hosts, &found, None, Rules { weights, ..rules }),
            subsets,
            membership: Membership::new(&found),
        }
    }

    /// The healthy hosts of the first priority, where this is the local cluster.
    pub fn local_hosts(&self) -> LocalHosts {
        LocalHosts::new(self.any.priorities.first(), self.any.loads.is_panic(0))
    }
}
