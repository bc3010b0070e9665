//! Load balancing: which host of a cluster gets the next request. One balancer a thread and cluster.
//!
//! What there is to pick from ([`Picks`]: lists by health and locality, shares of priorities, hash tables, subsets) is made on
//! the control thread and shared; a balancer holds what is one thread's own: whose turn it is. A priority is picked by its
//! share, then a locality where these count, then a host by the policy. Invariant: picking takes no lock, and allocates
//! only where a list by weights is picked from for the first time.

mod edf;
mod eligible;
mod hash_table;
mod maglev;
mod murmur;
mod picks;
mod priority;
mod ring_hash;
mod subset;
mod turn;
mod weight;
mod zone;

use super::{
    cluster::Cluster,
    health::Health,
    host::{Host, HostSet, PrioritySet},
    metadata_match::MetadataMatch,
    stats::ClusterStats,
};
use edf::Edf;
use eligible::{Eligible, EligiblePriority};
pub(super) use hash_table::Kind as TableKind;
pub(super) use picks::{Membership, Picks};
pub use priority::PriorityLoads;
pub(super) use priority::{Available, Loads};
use std::{
    cell::{OnceCell, RefCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use subset::{Hosts, Outcome};
use turn::{Order, Turn};
use weft_config::load_balancing::{LbPolicy, LocalityLb, PolicyKind};
use weight::Weigh;
pub(super) use zone::LocalHosts;
use zone::{Zone, ZoneChoice};

/// Picks hosts of one host set.
pub struct Balancer {
    cluster: Arc<Cluster>,
    /// The local cluster's hosts, where zones count.
    local: Option<Arc<LocalHosts>>,
    any: Turns,
    /// By the subsets' numbers; made when first picked from.
    subsets: Box<[OnceCell<Rc<Turns>>]>,
    rng: RefCell<fastrand::Rng>,
    /// Round robin begins here, so that many proxies do not all begin with the first host.
    seed: u64,
}

/// One thread's place in all lists of a host set or subset.
struct Turns {
    priorities: Box<[PriorityTurns]>,
}

struct PriorityTurns {
    all: Turn,
    /// Healthy and degraded hosts.
    by_health: [Turn; 2],
    localities: Box<[[Turn; 2]]>,
    /// Localities by their shares, for healthy and degraded hosts; `None` if none has any.
    shares: [Option<RefCell<Edf>>; 2],
    zone: Zone,
}

/// A pick: the priority, and the index of the host in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked {
    pub priority: usize,
    pub index: usize,
}

/// What a retry asks of the pick.
#[derive(Clone, Copy)]
pub struct RetryContext<'a> {
    /// True for a host that is not wanted.
    pub should_select_another: &'a dyn Fn(&Host) -> bool,
    /// How often another one is picked before an unwanted one is taken after all (`host_selection_retry_max_attempts`).
    pub max_attempts: u32,
    /// In place of the usual shares of priorities; by `ThreadCluster::loads_without`.
    pub loads: Option<&'a PriorityLoads>,
}

/// What a pick depends on.
#[derive(Clone, Copy, Default)]
pub struct PickContext<'a> {
    pub hash: Option<u64>,
    pub metadata_match: Option<&'a MetadataMatch>,
    pub retry: Option<RetryContext<'a>>,
    /// Shares of priorities in place of all others.
    pub loads: Option<&'a PriorityLoads>,
}

impl Balancer {
    pub fn new(
        cluster: &Arc<Cluster>,
        local: Option<Arc<LocalHosts>>,
        mut rng: fastrand::Rng,
        stats: &dyn Fn() -> Arc<ClusterStats>,
    ) -> Self {
        let seed = rng.u64(..);
        Self::build(cluster.clone(), local, rng, seed, stats)
    }

    fn build(
        cluster: Arc<Cluster>,
        local: Option<Arc<LocalHosts>>,
        rng: fastrand::Rng,
        seed: u64,
        stats: &dyn Fn() -> Arc<ClusterStats>,
    ) -> Self {
        let policy = cluster.info.config.load_balancing.policy.innermost();
        let any = Turns::new(&cluster.picks.any, policy, local.as_deref(), seed, stats);
        let count = cluster.picks.subsets.as_ref().map_or(0, |subsets| subsets.eligible.len());
        Self {
            any,
            subsets: (0..count).map(|_| OnceCell::new()).collect(),
            local,
            rng: RefCell::new(rng),
            seed,
            cluster,
        }
    }

    /// A balancer of the cluster with what changed of its hosts, which goes on where this one stands.
    pub fn next(
        &self,
        cluster: &Arc<Cluster>,
        local: Option<Arc<LocalHosts>>,
        stats: &dyn Fn() -> Arc<ClusterStats>,
    ) -> Self {
        let next = Self::build(cluster.clone(), local, self.rng.borrow_mut().fork(), self.seed, stats);
        for (before, after) in self.any.turns().zip(next.any.turns()) {
            after.follow(before);
        }
        next
    }

    pub fn local(&self) -> Option<&Arc<LocalHosts>> {
        self.local.as_ref()
    }

    fn hosts(&self) -> &HostSet {
        &self.cluster.hosts
    }

    fn policy(&self) -> &LbPolicy {
        self.cluster.info.config.load_balancing.policy.innermost()
    }

    /// The shares of priorities for a retry, with those in `excluded` left out for as long as there are others.
    pub fn loads_without(&self, excluded: &mut Vec<bool>) -> Option<PriorityLoads> {
        excluded.resize(self.hosts().priorities.len(), false);
        self.cluster.picks.any.loads.without(excluded)
    }

    /// The host for the next request; `None` if there is none to be had.
    pub fn pick(&self, context: &PickContext<'_>, stats: &ClusterStats) -> Option<Picked> {
        let picks = &self.cluster.picks;
        let Some(subsets) = &picks.subsets else { return self.pick_in(&picks.any, &self.any, context, stats) };
        let (picked, outcome) = subsets.pick(context.metadata_match, |hosts| match hosts {
            Hosts::Any => self.pick_in(&picks.any, &self.any, context, stats),
            Hosts::Single(priority, index) => Some(Picked { priority, index }),
            Hosts::Subset(number) => {
                let eligible = subsets.eligible.get(number)?;
                let turns = self.subsets.get(number)?.get_or_init(|| {
                    let unused = || Arc::new(ClusterStats::default());
                    Rc::new(Turns::new(eligible, self.policy(), self.local.as_deref(), self.seed, &unused))
                });
                self.pick_in(eligible, turns, context, stats)
            }
        })?;
        match outcome {
            Outcome::Selected => stats.lb_subsets_selected.inc(),
            Outcome::Fallback => stats.lb_subsets_fallback.inc(),
            Outcome::Panic => stats.lb_subsets_fallback_panic.inc(),
            Outcome::Uncounted => {}
        }
        Some(picked)
    }

    /// Picks among these hosts. A retry's wishes are heeded for as often as it says.
    fn pick_in(
        &self,
        eligible: &Eligible,
        turns: &Turns,
        context: &PickContext<'_>,
        stats: &ClusterStats,
    ) -> Option<Picked> {
        let loads = context.loads.or(context.retry.and_then(|retry| retry.loads));
        let mut row = Row::new(self, eligible, turns, context.hash, loads, stats);
        let mut picked = row.next()?;
        if let Some(retry) = context.retry {
            for _ in 0..retry.max_attempts {
                let host = self.hosts().priorities.get(picked.priority)?.hosts.get(picked.index)?;
                if !(retry.should_select_another)(host) {
                    break;
                }
                picked = row.next()?;
            }
        }
        Some(picked)
    }
}

/// The hosts for one request, one after the other until one will do.
struct Row<'a> {
    balancer: &'a Balancer,
    eligible: &'a Eligible,
    turns: &'a Turns,
    loads: Option<&'a PriorityLoads>,
    stats: &'a ClusterStats,
    /// The request's hash, and the priority that it leads to.
    hash: Option<(u64, usize)>,
    attempt: u32,
}

impl<'a> Row<'a> {
    fn new(
        balancer: &'a Balancer,
        eligible: &'a Eligible,
        turns: &'a Turns,
        hash: Option<u64>,
        loads: Option<&'a PriorityLoads>,
        stats: &'a ClusterStats,
    ) -> Self {
        let mut this = Self { balancer, eligible, turns, loads, stats, hash: None, attempt: 0 };
        if matches!(balancer.policy().kind, PolicyKind::RingHash(_) | PolicyKind::Maglev(_)) {
            let hash = hash.unwrap_or_else(|| balancer.rng.borrow_mut().u64(..));
            // No priority at all: there is nothing to be had.
            let priority = eligible.loads.pick((hash % 100) as u32, loads).map_or(usize::MAX, |(at, _)| at);
            if eligible.loads.is_panic(priority) {
                stats.lb_healthy_panic.inc();
            }
            this.hash = Some((hash, priority));
        }
        this
    }

    fn next(&mut self) -> Option<Picked> {
        let attempt = self.attempt;
        self.attempt += 1;
        match self.hash {
            Some((hash, priority)) => self.by_hash(hash, priority, attempt),
            None => self.by_turn(),
        }
    }

    fn by_hash(&self, hash: u64, priority: usize, attempt: u32) -> Option<Picked> {
        let set = self.balancer.hosts().priorities.get(priority)?;
        let table = self.eligible.priorities.get(priority)?.table.as_ref()?;
        let breakers = &self.balancer.cluster.info.breakers;
        let active = || breakers.default.requests.current() + breakers.high.requests.current();
        let of_host = |i: u32| set.hosts.get(i as usize).map_or(0, |host| host.state.rq_active.load(Relaxed));
        Some(Picked { priority, index: table.pick(hash, attempt, active, of_host)? as usize })
    }

    fn by_turn(&self) -> Option<Picked> {
        let random = |below: u64| self.balancer.rng.borrow_mut().u64(..below);
        let (at, health) = self.eligible.loads.pick(random(100) as u32, self.loads)?;
        let (lists, turns) = (self.eligible.priorities.get(at)?, self.turns.priorities.get(at)?);
        let set = self.balancer.hosts().priorities.get(at)?;
        let locality = self.balancer.policy().locality;
        let picked = |index| Picked { priority: at, index };
        if self.eligible.loads.is_panic(at) {
            self.stats.lb_healthy_panic.inc();
            if matches!(locality, LocalityLb::ZoneAware(zone) if zone.fail_traffic_on_panic) {
                return None;
            }
            return self.of(&turns.all, &lists.all, set).map(picked);
        }
        let side = usize::from(health == Health::Degraded);
        let locality = match (&locality, &self.balancer.local) {
            (LocalityLb::Weighted, _) => turns.shares[side].as_ref().and_then(|edf| edf.borrow_mut().pick(|_| None)),
            (LocalityLb::ZoneAware(zone), Some(local)) => match turns.zone.choose(zone, local, self.stats, random) {
                ZoneChoice::Anywhere => None,
                ZoneChoice::Locality(index) => Some(index),
                ZoneChoice::Nowhere => return None,
            },
            (LocalityLb::ZoneAware(_), None) => None,
        };
        let (turn, list) = match locality {
            Some(i) => {
                let locality = lists.localities.get(i)?;
                let list = if side == 0 { &locality.healthy } else { &locality.degraded };
                (&turns.localities.get(i)?[side], list)
            }
            None => (&turns.by_health[side], if side == 0 { &lists.healthy } else { &lists.degraded }),
        };
        self.of(turn, list, set).map(picked)
    }

    /// The index of a host in `set`, of those of `list`.
    fn of(&self, turn: &Turn, list: &eligible::List, set: &PrioritySet) -> Option<usize> {
        let policy = &self.balancer.policy().kind;
        let order = match policy {
            PolicyKind::LeastRequest(least) => Order::LeastRequest(least.choice_count),
            PolicyKind::Random => Order::Random,
            _ => Order::InTurns,
        };
        turn.pick(list, set, order, &Weigh::new(policy), &mut self.balancer.rng.borrow_mut())
    }
}

impl Turns {
    fn new(
        eligible: &Eligible,
        policy: &LbPolicy,
        local: Option<&LocalHosts>,
        seed: u64,
        stats: &dyn Fn() -> Arc<ClusterStats>,
    ) -> Self {
        let turns = |lists: &EligiblePriority| {
            let shares = |side: usize| {
                let edf = Edf::new(lists.localities.iter().map(|locality| locality.shares[side]), seed);
                (policy.locality == LocalityLb::Weighted && !edf.is_empty()).then(|| RefCell::new(edf))
            };
            let zone = match (&policy.locality, local) {
                (LocalityLb::ZoneAware(zone), Some(local)) if counts_zones(&policy.kind) => {
                    Zone::new(lists, zone, local, &stats())
                }
                _ => Zone::Off,
            };
            PriorityTurns {
                all: Turn::new(seed),
                by_health: [Turn::new(seed), Turn::new(seed)],
                localities: lists.localities.iter().map(|_| [Turn::new(seed), Turn::new(seed)]).collect(),
                shares: [shares(0), shares(1)],
                zone,
            }
        };
        Self { priorities: eligible.priorities.iter().map(turns).collect() }
    }

    fn turns(&self) -> impl Iterator<Item = &Turn> {
        self.priorities.iter().flat_map(|priority| {
            [&priority.all].into_iter().chain(&priority.by_health).chain(priority.localities.iter().flatten())
        })
    }
}

/// True for policies that look at zones.
fn counts_zones(policy: &PolicyKind) -> bool {
    !matches!(policy, PolicyKind::RingHash(_) | PolicyKind::Maglev(_) | PolicyKind::ClusterProvided)
}

#[cfg(test)]
mod tests;
