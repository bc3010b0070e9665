//! How traffic is shared between priorities, by how many of their hosts are available.

use super::eligible::{EligiblePriority, Found, List};
use crate::upstream::{health::Health, host::HostSet};

/// The shares of traffic that priorities get, in percent, by the health of the hosts that take it. The sum of both is 100, or
/// 0 if nothing is available.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriorityLoads {
    pub healthy: Vec<u32>,
    pub degraded: Vec<u32>,
}

/// The shares of one host set.
#[derive(Debug, Default, PartialEq)]
pub(in crate::upstream) struct Loads {
    loads: PriorityLoads,
    priorities: Vec<Available>,
    panic: Vec<bool>,
}

/// How much of one priority is available.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::upstream) struct Available {
    /// All of its hosts.
    pub hosts: u64,
    /// In percent with overprovisioning, at most 100.
    healthy: u32,
    degraded: u32,
    /// Healthy and degraded hosts, in percent of those that count.
    percent: f64,
}

/// What of a priority is available.
#[derive(Default)]
struct Counted {
    all: u64,
    healthy: u64,
    degraded: u64,
    /// The same by weight, where weights decide.
    weights: [u64; 3],
}

impl Counted {
    fn new(found: &[Found], hosts: &List) -> Self {
        let mut this = Self::default();
        for found in hosts.iter().filter_map(|i| found.get(i)) {
            if found.is_excluded {
                continue;
            }
            let weight = u64::from(found.weight);
            this.all += 1;
            this.weights[0] += weight;
            match found.health {
                Health::Healthy => {
                    this.healthy += 1;
                    this.weights[1] += weight;
                }
                Health::Degraded => {
                    this.degraded += 1;
                    this.weights[2] += weight;
                }
                Health::Unhealthy => {}
            }
        }
        this
    }

    /// `hosts`: all, with those that do not count.
    fn available(&self, hosts: u64, factor: u32, by_weight: bool) -> Available {
        let [all, healthy, degraded] = if by_weight { self.weights } else { [self.all, self.healthy, self.degraded] };
        let over = |part: u64| (u64::from(factor) * part).checked_div(all).unwrap_or_default().min(100) as u32;
        let some = (self.healthy + self.degraded) as f64;
        let percent = if self.all == 0 { 0.0 } else { 100.0 * some / self.all as f64 };
        Available { hosts, healthy: over(healthy), degraded: over(degraded), percent }
    }
}

impl Loads {
    /// `lists`: the hosts that count, by priority, and how they were found. `panic_threshold`: percent of hosts available
    /// below which health does not count; 0 turns that off.
    pub fn new(hosts: &HostSet, found: &[Vec<Found>], lists: &[EligiblePriority], panic_threshold: f64) -> Self {
        let (factor, by_weight) = (hosts.overprovisioning_factor, hosts.weighted_priority_health);
        let available = found
            .iter()
            .zip(lists)
            .map(|(found, lists)| Counted::new(found, &lists.all).available(lists.all.len() as u64, factor, by_weight));
        Self::of(available.collect(), panic_threshold)
    }

    /// The shares of these priorities.
    pub fn of(priorities: Vec<Available>, panic_threshold: f64) -> Self {
        let available = PriorityLoads {
            healthy: priorities.iter().map(|p| p.healthy).collect(),
            degraded: priorities.iter().map(|p| p.degraded).collect(),
        };
        let total = available.total();
        let threshold = panic_threshold.trunc();
        let panic: Vec<_> =
            priorities.iter().map(|p| total != 100 && threshold > 0.0 && p.percent < threshold).collect();
        let none = vec![0; priorities.len()];
        let loads = if threshold == 0.0 && total == 0 {
            let first = (0..priorities.len()).map(|i| if i == 0 { 100 } else { 0 }).collect();
            PriorityLoads { healthy: first, degraded: none }
        } else if panic.iter().all(|panic| *panic) {
            let sizes = priorities.iter().map(|p| p.hosts).collect::<Vec<_>>();
            PriorityLoads { healthy: by_size(&sizes), degraded: none }
        } else {
            available.shared()
        };
        Self { loads, priorities, panic }
    }

    /// How much of each priority is available.
    pub fn priorities(&self) -> &[Available] {
        &self.priorities
    }

    /// The priority for `random` (0 to 99), and the health of the hosts to take there.
    pub fn pick(&self, random: u32, instead: Option<&PriorityLoads>) -> Option<(usize, Health)> {
        let PriorityLoads { healthy, degraded } = instead.unwrap_or(&self.loads);
        let mut sum = 0;
        for (loads, health) in [(healthy, Health::Healthy), (degraded, Health::Degraded)] {
            for (i, load) in loads.iter().enumerate() {
                sum += load;
                if random < sum {
                    return Some((i, health));
                }
            }
        }
        None
    }

    /// The shares if the priorities in `excluded` take nothing. If no other one is available all are taken back in, and out
    /// of `excluded`; `None` if even so there is nothing.
    pub fn without(&self, excluded: &mut [bool]) -> Option<PriorityLoads> {
        let remaining = |excluded: &[bool]| {
            let is_out = |i: usize| excluded.get(i).copied().unwrap_or_default();
            let keep = |of: fn(&Available) -> u32| {
                self.priorities.iter().enumerate().map(|(i, p)| if is_out(i) { 0 } else { of(p) }).collect()
            };
            PriorityLoads { healthy: keep(|p| p.healthy), degraded: keep(|p| p.degraded) }
        };
        let mut left = remaining(excluded);
        if left.total() == 0 {
            excluded.fill(false);
            left = remaining(excluded);
        }
        (left.total() > 0).then(|| left.shared())
    }

    pub fn is_panic(&self, priority: usize) -> bool {
        self.panic.get(priority).copied().unwrap_or_default()
    }
}

impl PriorityLoads {
    fn total(&self) -> u32 {
        self.healthy.iter().chain(&self.degraded).sum::<u32>().min(100)
    }

    /// Shares out all traffic by what is available, which is something.
    fn shared(&self) -> Self {
        let total = self.total().max(1);
        let mut left = 100;
        let mut share = |available: &[u32]| -> Vec<u32> {
            let share = |a: &u32| {
                let load = left.min(a * 100 / total);
                left -= load;
                load
            };
            available.iter().map(share).collect()
        };
        let mut loads = Self { healthy: share(&self.healthy), degraded: share(&self.degraded) };
        // What rounding left goes to the first that is available.
        if let Some(first) = self.healthy.iter().position(|a| *a > 0) {
            loads.healthy[first] += left;
        } else if let Some(first) = self.degraded.iter().position(|a| *a > 0) {
            loads.degraded[first] += left;
        }
        loads
    }
}

/// All priorities panic: each gets the share that it has of all hosts.
fn by_size(sizes: &[u64]) -> Vec<u32> {
    let total: u64 = sizes.iter().sum();
    let mut loads: Vec<u32> = sizes.iter().map(|n| (100 * n).checked_div(total).unwrap_or_default() as u32).collect();
    let left = 100 - loads.iter().sum::<u32>();
    if let Some(first) = sizes.iter().position(|n| *n > 0) {
        loads[first] += left;
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{
        balancer::eligible::{Eligible, LocalityWeights, Rules},
        host::tests::{assignment, endpoint, rules},
    };
    use weft_config::{
        endpoint::HealthStatus::{Degraded, Draining, Healthy, Unhealthy},
        load_balancing::LbPolicy,
    };

    fn of(hosts: &HostSet, threshold: f64) -> Loads {
        let rules = Rules {
            policy: &LbPolicy::default(),
            panic_threshold: threshold,
            zone: None,
            weights: LocalityWeights::Configured,
        };
        Eligible::new(hosts, &Found::all(hosts), None, rules).loads
    }

    /// Priorities as (healthy, degraded, unhealthy) numbers of hosts.
    fn loads(priorities: &[(usize, usize, usize)], threshold: f64) -> Loads {
        let hosts = |(i, (healthy, degraded, unhealthy)): (usize, &(usize, usize, usize))| {
            let kinds = [(Healthy, *healthy), (Degraded, *degraded), (Unhealthy, *unhealthy)];
            let all = kinds.into_iter().flat_map(|(kind, n)| std::iter::repeat_n(kind, n));
            all.enumerate().map(|(j, kind)| endpoint((i * 1000 + j) as u16, 1, kind)).collect()
        };
        let assignment = assignment(priorities.iter().enumerate().map(hosts).collect());
        of(&HostSet::build(&assignment, &rules(true), None), threshold)
    }

    /// Envoy's documentation of priority levels: healthy hosts of 100 in each, and the traffic each gets.
    #[test]
    fn documented_tables() {
        let two = |a: usize, b: usize| loads(&[(a, 0, 100 - a), (b, 0, 100 - b)], 0.0).loads.healthy;
        for (a, b, want) in [
            (100, 100, [100, 0]),
            (72, 72, [100, 0]),
            (71, 71, [99, 1]),
            (50, 50, [70, 30]),
            (25, 100, [35, 65]),
            (25, 25, [50, 50]),
        ] {
            assert_eq!(two(a, b), want, "{a} {b}");
        }
        let three = |a, b, c| loads(&[(a, 0, 100 - a), (b, 0, 100 - b), (c, 0, 100 - c)], 0.0).loads.healthy;
        assert_eq!(three(25, 100, 100), [35, 65, 0]);
        assert_eq!(three(25, 25, 100), [35, 35, 30]);
        // 36, 36, 28 in the documentation; what rounding leaves goes to the first.
        assert_eq!(three(25, 25, 20), [37, 35, 28]);
    }

    #[test]
    fn degraded_hosts_take_what_healthy_ones_leave() {
        let loads = loads(&[(25, 75, 0), (25, 0, 75)], 0.0);
        assert_eq!(loads.loads, PriorityLoads { healthy: vec![35, 35], degraded: vec![30, 0] });
    }

    #[test]
    fn retries_go_to_other_priorities() {
        let loads = loads(&[(100, 0, 0), (50, 0, 50), (10, 0, 90)], 0.0);
        let mut excluded = [true, false, false];
        assert_eq!(loads.without(&mut excluded).unwrap().healthy, [0, 84, 16]);
        excluded[1] = true;
        assert_eq!(loads.without(&mut excluded).unwrap().healthy, [0, 0, 100]);
        excluded[2] = true;
        assert_eq!(loads.without(&mut excluded).unwrap().healthy, [100, 0, 0]);
        assert_eq!(excluded, [false; 3]);
    }

    #[test]
    fn panic() {
        let one = loads(&[(1, 0, 2)], 50.0);
        assert!(one.is_panic(0));
        assert_eq!(one.pick(99, None), Some((0, Health::Healthy)));
        let off = loads(&[(0, 0, 2), (0, 0, 2)], 0.0);
        assert_eq!((off.is_panic(0), off.pick(99, None)), (false, Some((0, Health::Healthy))));
        // All in panic: by size.
        assert_eq!(loads(&[(0, 0, 1), (0, 0, 3)], 50.0).loads.healthy, [25, 75]);
        // One priority is enough for all traffic: no panic anywhere.
        let enough = loads(&[(0, 0, 4), (4, 0, 0)], 50.0);
        assert!(!enough.is_panic(0));
        assert_eq!(enough.loads.healthy, [0, 100]);
        assert_eq!(loads(&[], 50.0).pick(0, None), None);
    }

    #[test]
    fn draining_hosts_do_not_count() {
        let set = assignment(vec![vec![endpoint(1, 1, Healthy), endpoint(2, 1, Draining)]]);
        let loads = of(&HostSet::build(&set, &rules(true), None), 60.0);
        assert_eq!((loads.loads.healthy, loads.panic), (vec![100], vec![false]));
    }
}
