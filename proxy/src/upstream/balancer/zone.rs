//! Zone aware routing: requests stay in our own zone as far as it has its part of the hosts, and the rest goes where there is
//! more than needed.

use super::eligible::EligiblePriority;
use crate::upstream::stats::ClusterStats;
use foldhash::HashMap;
use weft_config::{endpoint::Locality, load_balancing::ZoneAware};

/// The healthy hosts of the local cluster, by locality: our own kind, among whom requests come in.
#[derive(Debug, Default)]
pub(in crate::upstream) struct LocalHosts {
    by_locality: HashMap<Locality, (u64, u64)>,
    total: (u64, u64),
    panic: bool,
}

/// How requests to one priority choose a zone.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Zone {
    /// Zones do not count.
    #[default]
    Off,
    /// All stays here.
    Direct,
    Residual {
        /// Of 10 000 requests so many stay here.
        local: u64,
        /// What the zones can take beyond their own, each with the sum of those before it.
        residual: Box<[u64]>,
    },
}

/// Where a request goes.
pub(super) enum ZoneChoice {
    /// Zones do not count for this request.
    Anywhere,
    /// By index.
    Locality(usize),
    /// Nowhere, since our own cluster is in a panic.
    Nowhere,
}

impl LocalHosts {
    /// Of the local cluster's first priority.
    pub fn new(priority: Option<&EligiblePriority>, panic: bool) -> Self {
        let mut this = Self { panic, ..Self::default() };
        for locality in priority.into_iter().flat_map(|priority| &priority.localities) {
            let counts = (locality.healthy.len() as u64, locality.healthy_weight);
            this.by_locality.insert((*locality.locality).clone(), counts);
            this.total = (this.total.0 + counts.0, this.total.1 + counts.1);
        }
        this
    }
}

impl Zone {
    pub fn new(priority: &EligiblePriority, config: &ZoneAware, local: &LocalHosts, stats: &ClusterStats) -> Self {
        stats.lb_recalculate_zone_structures.inc();
        if priority.localities.iter().filter(|locality| !locality.all.is_empty()).count() < 2 {
            return Self::Off;
        }
        if (priority.healthy.len() as u64) < config.min_cluster_size {
            stats.lb_zone_cluster_too_small.inc();
            return Self::Off;
        }
        let of = |(count, weight): (u64, u64)| if config.by_weight { weight } else { count };
        let counts = priority.localities.iter().map(|l| of((l.healthy.len() as u64, l.healthy_weight)));
        let total: u64 = counts.clone().sum();
        // Parts of 10 000: of the hosts there, and of ours.
        let parts: Vec<(u64, u64)> = priority
            .localities
            .iter()
            .zip(counts)
            .map(|(locality, count)| {
                if locality.healthy.is_empty() {
                    return (0, 0);
                }
                let ours = local.by_locality.get(&*locality.locality).copied().map_or(0, of);
                let part = |n: u64, of: u64| (10_000 * n).checked_div(of).unwrap_or_default();
                (part(count, total), part(ours, of_total(local, config)))
            })
            .collect();
        let own = parts.first().copied().filter(|_| priority.has_local).unwrap_or_default();
        let own_hosts = priority.localities.first().filter(|_| priority.has_local).map_or(0, |l| l.healthy.len());
        let is_forced = config.force_local_zone_min_size.is_some_and(|least| own_hosts as u64 >= u64::from(least));
        if own.0 > 0 && (own.0 >= own.1 || config.force_locality_direct_routing || is_forced) {
            return Self::Direct;
        }
        let mut sum = 0;
        let residual = parts.iter().enumerate().map(|(i, (there, ours))| {
            // Our own zone gets its share already.
            if !(i == 0 && priority.has_local) {
                sum += there.saturating_sub(*ours);
            }
            sum
        });
        let residual = residual.collect();
        Self::Residual { local: (own.0 * 10_000).checked_div(own.1).unwrap_or_default(), residual }
    }

    /// The zone for a request; `random` gives a number below its argument.
    pub fn choose(
        &self,
        config: &ZoneAware,
        local: &LocalHosts,
        stats: &ClusterStats,
        mut random: impl FnMut(u64) -> u64,
    ) -> ZoneChoice {
        if *self == Self::Off {
            return ZoneChoice::Anywhere;
        }
        if config.routing_enabled < 100.0 && random(10_000) as f64 >= config.routing_enabled * 100.0 {
            return ZoneChoice::Anywhere;
        }
        if local.panic {
            stats.lb_local_cluster_not_ok.inc();
            return if config.fail_traffic_on_panic { ZoneChoice::Nowhere } else { ZoneChoice::Anywhere };
        }
        let (share, residual) = match self {
            Self::Off => return ZoneChoice::Anywhere,
            Self::Direct => {
                stats.lb_zone_routing_all_directly.inc();
                return ZoneChoice::Locality(0);
            }
            Self::Residual { local, residual } => (*local, residual),
        };
        if random(10_000) < share {
            stats.lb_zone_routing_sampled.inc();
            return ZoneChoice::Locality(0);
        }
        stats.lb_zone_routing_cross_zone.inc();
        let total = residual.last().copied().unwrap_or_default();
        if total == 0 {
            stats.lb_zone_no_capacity_left.inc();
            return ZoneChoice::Locality(random(residual.len() as u64) as usize);
        }
        let threshold = random(total);
        ZoneChoice::Locality(residual.partition_point(|sum| *sum <= threshold))
    }
}

fn of_total(local: &LocalHosts, config: &ZoneAware) -> u64 {
    if config.by_weight { local.total.1 } else { local.total.0 }
}
