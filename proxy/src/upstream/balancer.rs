//! Load balancing: which host of a cluster gets the next request. One balancer a thread and cluster.
//!
//! A priority is picked by its share of available hosts ([`priority`]), then, where localities are weighted, a locality, then
//! a host by the policy. Invariant: picking allocates nothing and takes no lock.

mod edf;
mod priority;

use super::{
    health::Health,
    host::{Host, HostSet, PrioritySet},
};
use edf::Edf;
use priority::Loads;
pub use priority::PriorityLoads;
use std::{
    cell::{Cell, RefCell},
    sync::{Arc, atomic::Ordering::Relaxed},
};
use weft_config::load_balancing::{LbPolicy, LoadBalancing, LocalityLb};

/// Picks hosts of one host set.
pub struct Balancer {
    policy: LbPolicy,
    fail_on_panic: bool,
    hosts: Arc<HostSet>,
    loads: Loads,
    priorities: Vec<Priority>,
    rng: RefCell<fastrand::Rng>,
    /// Round robin begins here, so that many proxies do not all begin with the first host.
    seed: u64,
}

/// The sources of one priority.
#[derive(Default)]
struct Priority {
    all: Source,
    healthy: Source,
    degraded: Source,
    healthy_localities: Localities,
    degraded_localities: Localities,
}

/// The localities of one priority and health, weighted.
#[derive(Default)]
struct Localities {
    /// `None`: localities do not count, or none has weight.
    picks: Option<RefCell<Edf>>,
    sources: Vec<Source>,
}

/// Hosts to pick from by the policy.
#[derive(Default)]
struct Source {
    /// Indices into the priority's hosts.
    hosts: Vec<u32>,
    next: Cell<u64>,
    /// Where weights differ.
    weighted: Option<RefCell<Edf>>,
}

/// A pick: the priority, and the index of the host in it.
#[derive(Clone, Copy, Debug)]
pub struct Picked {
    pub priority: usize,
    pub index: usize,
    /// Health did not count, since too few hosts are available.
    pub panic: bool,
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

impl Balancer {
    pub fn new(config: &LoadBalancing, hosts: Arc<HostSet>, mut rng: fastrand::Rng) -> Self {
        let seed = rng.u64(..);
        let mut this = Self {
            policy: config.policy,
            fail_on_panic: matches!(config.locality, LocalityLb::ZoneAware { fail_traffic_on_panic: true, .. }),
            loads: Loads::new(&hosts, config.healthy_panic_threshold),
            priorities: Vec::new(),
            hosts,
            rng: RefCell::new(rng),
            seed,
        };
        let weighted_localities = config.locality == LocalityLb::Weighted;
        this.priorities = this.hosts.priorities.iter().map(|set| this.priority(set, weighted_localities)).collect();
        this
    }

    /// A balancer of other hosts which goes on where this one stands.
    pub fn with_hosts(&self, config: &LoadBalancing, hosts: Arc<HostSet>) -> Self {
        let mut next = Self::new(config, hosts, self.rng.borrow_mut().fork());
        next.seed = self.seed;
        for (before, after) in self.priorities.iter().zip(&mut next.priorities) {
            for (before, after) in before.sources().zip(after.sources()) {
                after.next.set(before.next.get());
            }
        }
        next
    }

    fn priority(&self, set: &PrioritySet, weighted_localities: bool) -> Priority {
        let having = |health: Health| {
            let indices = set.hosts.iter().enumerate().filter(|(_, host)| host.health() == health);
            self.source(set, indices.map(|(i, _)| i as u32).collect())
        };
        let localities = |health: Health| {
            if weighted_localities { self.localities(set, health) } else { Localities::default() }
        };
        Priority {
            all: self.source(set, (0..set.hosts.len() as u32).collect()),
            healthy: having(Health::Healthy),
            degraded: having(Health::Degraded),
            healthy_localities: localities(Health::Healthy),
            degraded_localities: localities(Health::Degraded),
        }
    }

    fn localities(&self, set: &PrioritySet, health: Health) -> Localities {
        let factor = f64::from(self.hosts.overprovisioning_factor) / 100.0;
        let host = |i: &u32| set.hosts.get(*i as usize);
        let mut weights = Vec::new();
        let mut sources = Vec::new();
        for locality in &set.localities {
            let eligible: Vec<u32> =
                locality.hosts.iter().copied().filter(|i| host(i).is_some_and(|h| h.health() == health)).collect();
            let total = locality.hosts.iter().filter(|i| host(i).is_some_and(|h| !h.is_excluded())).count();
            let available = if total == 0 { 0.0 } else { eligible.len() as f64 / total as f64 };
            weights.push(f64::from(locality.weight) * (factor * available).min(1.0));
            sources.push(self.source(set, eligible));
        }
        let any = weights.iter().any(|weight| *weight > 0.0);
        Localities { picks: any.then(|| RefCell::new(Edf::new(&weights, self.seed))), sources }
    }

    fn source(&self, set: &PrioritySet, hosts: Vec<u32>) -> Source {
        let weights: Vec<f64> =
            hosts.iter().filter_map(|i| set.hosts.get(*i as usize)).map(|host| weight(self.policy, host)).collect();
        let mut configured = hosts.iter().filter_map(|i| set.hosts.get(*i as usize)).map(|host| host.weight);
        let first = configured.next();
        let differ = configured.any(|weight| Some(weight) != first);
        let counts = matches!(self.policy, LbPolicy::RoundRobin | LbPolicy::LeastRequest { .. });
        Source {
            weighted: (differ && counts).then(|| RefCell::new(Edf::new(&weights, self.seed))),
            next: Cell::new(self.seed),
            hosts,
        }
    }

    /// The shares of priorities for a retry, with those in `excluded` left out for as long as there are others.
    pub fn loads_without(&self, excluded: &mut Vec<bool>) -> Option<PriorityLoads> {
        excluded.resize(self.hosts.priorities.len(), false);
        self.loads.without(excluded)
    }

    /// The host for the next request; `None` if there is none to be had. A retry's wishes are heeded for as often as it says.
    pub fn pick(&self, retry: Option<&RetryContext<'_>>) -> Option<Picked> {
        let mut picked = self.pick_once(retry)?;
        if let Some(retry) = retry {
            for _ in 0..retry.max_attempts {
                let host = self.hosts.priorities.get(picked.priority)?.hosts.get(picked.index)?;
                if !(retry.should_select_another)(host) {
                    break;
                }
                picked = self.pick_once(Some(retry))?;
            }
        }
        Some(picked)
    }

    fn pick_once(&self, retry: Option<&RetryContext<'_>>) -> Option<Picked> {
        let random = self.rng.borrow_mut().u32(0..100);
        let (at, health) = self.loads.pick(random, retry.and_then(|retry| retry.loads))?;
        let (priority, set) = (self.priorities.get(at)?, self.hosts.priorities.get(at)?);
        let panic = self.loads.is_panic(at);
        let picked = |index| Picked { priority: at, index, panic };
        if panic {
            if self.fail_on_panic {
                return None;
            }
            return self.pick_of(&priority.all, set).map(picked);
        }
        let (source, localities) = match health {
            Health::Degraded => (&priority.degraded, &priority.degraded_localities),
            _ => (&priority.healthy, &priority.healthy_localities),
        };
        let locality = localities.picks.as_ref().and_then(|picks| {
            let i = picks.borrow_mut().pick(|_| None)?;
            localities.sources.get(i)
        });
        self.pick_of(locality.unwrap_or(source), set).map(picked)
    }

    /// The index of a host in `set`, of those of `source`.
    fn pick_of(&self, source: &Source, set: &PrioritySet) -> Option<usize> {
        let count = source.hosts.len();
        if count == 0 {
            return None;
        }
        let at = |i: usize| source.hosts.get(i).map(|index| *index as usize);
        let active = |i: &usize| set.hosts.get(*i).map(|host| host.state.rq_active.load(Relaxed));
        if let Some(weighted) = &source.weighted {
            // The weight of the moment counts for the host's next turn.
            let weigh = |i| at(i).and_then(|i| set.hosts.get(i)).map(|host| weight(self.policy, host));
            return at(weighted.borrow_mut().pick(weigh)?);
        }
        let mut rng = self.rng.borrow_mut();
        match self.policy {
            LbPolicy::RoundRobin | LbPolicy::ClusterProvided => {
                let next = source.next.get();
                source.next.set(next.wrapping_add(1));
                at((next % count as u64) as usize)
            }
            LbPolicy::Random => at(rng.usize(0..count)),
            LbPolicy::LeastRequest { choice_count: Some(choices), .. } => {
                // The first of the least: `min_by_key` keeps the earlier one.
                (0..choices.max(1)).filter_map(|_| at(rng.usize(0..count))).min_by_key(active)
            }
            LbPolicy::LeastRequest { choice_count: None, .. } => {
                let least = source.hosts.iter().map(|i| active(&(*i as usize))).min()?;
                let tied = |i: &&u32| active(&(**i as usize)) == least;
                let ties = source.hosts.iter().filter(tied).count();
                source.hosts.iter().filter(tied).nth(rng.usize(0..ties.max(1))).map(|i| *i as usize)
            }
        }
    }
}

impl Priority {
    fn sources(&self) -> impl Iterator<Item = &Source> {
        [&self.all, &self.healthy, &self.degraded]
            .into_iter()
            .chain(&self.healthy_localities.sources)
            .chain(&self.degraded_localities.sources)
    }
}

/// A host's weight at this moment.
fn weight(policy: LbPolicy, host: &Host) -> f64 {
    let weight = f64::from(host.weight);
    match policy {
        LbPolicy::LeastRequest { active_request_bias, .. } if active_request_bias > 0.0 => {
            weight / (f64::from(host.state.rq_active.load(Relaxed)) + 1.0).powf(active_request_bias)
        }
        _ => weight,
    }
}

#[cfg(test)]
mod tests;
