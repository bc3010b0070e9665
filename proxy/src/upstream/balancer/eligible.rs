//! Which hosts of a set may be picked, by priority, health and locality.
//!
//! Computed on the control thread whenever hosts or their health change, and shared by all threads; immutable.

use super::{hash_table::HashTable, priority::Loads};
use crate::upstream::{
    health::Health,
    host::{Host, HostSet, PrioritySet},
};
use std::sync::Arc;
use weft_config::{
    endpoint::Locality,
    load_balancing::{LbPolicy, LocalityLb, ZoneAware},
};

/// What may be picked of one host set, or of a subset of it.
#[derive(Debug)]
pub(in crate::upstream) struct Eligible {
    pub loads: Loads,
    pub priorities: Box<[EligiblePriority]>,
}

#[derive(Debug)]
pub(in crate::upstream) struct EligiblePriority {
    pub all: List,
    pub healthy: List,
    pub degraded: List,
    /// Our own zone's first, then by name; empty where localities do not count.
    pub localities: Box<[EligibleLocality]>,
    /// The first of the localities is our own.
    pub has_local: bool,
    /// Where the policy has one.
    pub table: Option<Box<HashTable>>,
}

#[derive(Debug)]
pub(in crate::upstream) struct EligibleLocality {
    pub locality: Arc<Locality>,
    pub all: List,
    pub healthy: List,
    pub degraded: List,
    /// As configured, or scaled.
    pub weight: f64,
    /// The sum of the healthy hosts' weights.
    pub healthy_weight: u64,
    /// The share of the locality by its weight and availability, for healthy and for degraded hosts.
    pub shares: [f64; 2],
}

/// Hosts as indices into those of their priority.
#[derive(Debug)]
pub(in crate::upstream) struct List {
    hosts: Hosts,
    pub weights_differ: bool,
}

#[derive(Debug)]
enum Hosts {
    /// All of the priority's, as is usual.
    All(usize),
    Some(Box<[u32]>),
}

/// How a host was found when the lists were made: the same in all of them. Hosts are looked at once; what is made of them
/// goes by this, which lies close together.
#[derive(Clone, Copy)]
pub(in crate::upstream) struct Found {
    pub weight: u32,
    pub health: Health,
    pub is_excluded: bool,
}

/// Whose weights of localities hold.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::upstream) enum LocalityWeights {
    Configured,
    /// By the share of a locality's hosts that are members.
    Scaled,
    None,
}

/// What decides about eligibility.
#[derive(Clone, Copy)]
pub(in crate::upstream) struct Rules<'a> {
    pub policy: &'a LbPolicy,
    pub panic_threshold: f64,
    /// Our own locality, where a local cluster is named.
    pub zone: Option<&'a Locality>,
    pub weights: LocalityWeights,
}

impl Found {
    /// The health of all hosts at this moment, by priority.
    pub fn all(hosts: &HostSet) -> Vec<Vec<Self>> {
        let of = |host: &Arc<Host>| {
            let flags = host.health_flags();
            Self { weight: host.weight, health: flags.health(), is_excluded: flags.is_excluded() }
        };
        hosts.priorities.iter().map(|set| set.hosts.iter().map(of).collect()).collect()
    }
}

impl Eligible {
    /// `members`: the hosts that count, by priority and in order; `None`: all.
    pub fn new(hosts: &HostSet, found: &[Vec<Found>], members: Option<&[Vec<u32>]>, rules: Rules<'_>) -> Self {
        let lists = hosts.priorities.iter().zip(found).enumerate();
        let lists: Vec<_> = lists
            .map(|(i, (set, found))| {
                let members = members.map(|members| members.get(i).map_or(&[][..], |list| list));
                EligiblePriority::new(set, found, members, hosts.overprovisioning_factor, rules)
            })
            .collect();
        let loads = Loads::new(hosts, found, &lists, rules.panic_threshold);
        let mut this = Self { loads, priorities: lists.into() };
        for (i, (set, list)) in hosts.priorities.iter().zip(&mut this.priorities).enumerate() {
            list.table = HashTable::build(set, list, this.loads.is_panic(i), rules).map(Box::new);
        }
        this
    }
}

impl EligiblePriority {
    fn new(set: &PrioritySet, found: &[Found], members: Option<&[u32]>, factor: u32, rules: Rules<'_>) -> Self {
        let at = |i: u32| found.get(i as usize);
        let having = |health: Health| move |i: &u32| at(*i).is_some_and(|found| found.health == health);
        let of_health = |health: Health| match members {
            Some(members) => List::new(members.iter().copied().filter(having(health)), found),
            None => List::with(found, health),
        };
        let wants_localities = match rules.policy.locality {
            LocalityLb::Weighted => rules.weights != LocalityWeights::None,
            LocalityLb::ZoneAware(ZoneAware { .. }) => rules.zone.is_some(),
        };
        let mut localities: Vec<EligibleLocality> = Vec::new();
        for locality in set.localities.iter().filter(|_| wants_localities) {
            let is_member = |i: &u32| members.is_none_or(|members| members.binary_search(i).is_ok());
            let mine: Vec<u32> = locality.hosts.iter().copied().filter(is_member).collect();
            let healthy: Vec<u32> = mine.iter().copied().filter(having(Health::Healthy)).collect();
            let degraded: Vec<u32> = mine.iter().copied().filter(having(Health::Degraded)).collect();
            let counted = mine.iter().filter(|i| at(**i).is_some_and(|found| !found.is_excluded)).count();
            let weight = match rules.weights {
                LocalityWeights::Configured => f64::from(locality.weight),
                LocalityWeights::Scaled if locality.hosts.is_empty() => 0.0,
                LocalityWeights::Scaled => {
                    (f64::from(locality.weight) * mine.len() as f64 / locality.hosts.len() as f64).round()
                }
                LocalityWeights::None => 0.0,
            };
            let share = |eligible: usize| {
                let available = if counted == 0 { 0.0 } else { eligible as f64 / counted as f64 };
                weight * (f64::from(factor) / 100.0 * available).min(1.0)
            };
            localities.push(EligibleLocality {
                locality: locality.locality.clone(),
                shares: [share(healthy.len()), share(degraded.len())],
                healthy_weight: healthy.iter().map(|i| u64::from(weight_of(found, *i))).sum(),
                healthy: List::new(healthy.into_iter(), found),
                degraded: List::new(degraded.into_iter(), found),
                all: List::new(mine.into_iter(), found),
                weight,
            });
        }
        localities.sort_by(|a, b| {
            let key = |l: &EligibleLocality| rules.zone != Some(&*l.locality);
            key(a).cmp(&key(b)).then_with(|| a.locality.cmp(&b.locality))
        });
        let has_local = localities.first().is_some_and(|first| rules.zone == Some(&*first.locality));
        Self {
            all: match members {
                Some(members) => List::new(members.iter().copied(), found),
                None => List::all(found),
            },
            healthy: of_health(Health::Healthy),
            degraded: of_health(Health::Degraded),
            localities: localities.into(),
            has_local,
            table: None,
        }
    }
}

fn weight_of(found: &[Found], index: u32) -> u32 {
    found.get(index as usize).map_or(0, |found| found.weight)
}

/// True if not all are the same.
fn differ(mut weights: impl Iterator<Item = u32>) -> bool {
    let first = weights.next();
    weights.any(|weight| Some(weight) != first)
}

impl List {
    /// `found`: all of the priority's hosts.
    fn new(indices: impl Iterator<Item = u32>, found: &[Found]) -> Self {
        let indices: Box<[u32]> = indices.collect();
        let weights_differ = differ(indices.iter().map(|i| weight_of(found, *i)));
        // In ascending order and of full length: these are all.
        let is_all = indices.len() == found.len() && indices.is_sorted();
        Self { weights_differ, hosts: if is_all { Hosts::All(indices.len()) } else { Hosts::Some(indices) } }
    }

    fn all(found: &[Found]) -> Self {
        Self { weights_differ: differ(found.iter().map(|found| found.weight)), hosts: Hosts::All(found.len()) }
    }

    /// Those of all hosts that have this health.
    fn with(found: &[Found], health: Health) -> Self {
        if found.iter().all(|found| found.health == health) {
            return Self::all(found);
        }
        let having = found.iter().zip(0..).filter(|(found, _)| found.health == health);
        Self::new(having.map(|(_, i)| i), found)
    }

    pub fn len(&self) -> usize {
        match &self.hosts {
            Hosts::All(count) => *count,
            Hosts::Some(indices) => indices.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index in the priority of the host at `place`.
    pub fn at(&self, place: usize) -> Option<usize> {
        match &self.hosts {
            Hosts::All(count) => (place < *count).then_some(place),
            Hosts::Some(indices) => indices.get(place).map(|i| *i as usize),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter_map(|place| self.at(place))
    }
}
