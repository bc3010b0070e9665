//! Aggregate clusters: the priorities of several clusters in a row, so that traffic moves to the next cluster as it moves to the
//! next priority within one.
//!
//! One thread's; made anew whenever the clusters of the thread change. The members pick the hosts, and serve and count them.

use super::{
    balancer::{Available, Loads, PriorityLoads},
    health::Health,
    thread::ThreadCluster,
};
use std::rc::Rc;

/// The members of an aggregate, as they are now.
#[derive(Default)]
pub(super) struct Aggregate {
    /// One after the other; those without hosts are left out.
    priorities: Vec<Member>,
    loads: Loads,
}

/// One priority of a member.
struct Member {
    cluster: Rc<ThreadCluster>,
    priority: usize,
    /// All to this priority, to its healthy or to its degraded hosts.
    loads: [PriorityLoads; 2],
}

impl Aggregate {
    /// `panic_threshold`: the aggregate's own.
    pub fn new(members: impl Iterator<Item = Rc<ThreadCluster>>, panic_threshold: f64) -> Self {
        let mut priorities = Vec::new();
        let mut available = Vec::<Available>::new();
        for cluster in members {
            let current = cluster.current();
            let all = current.picks.any.loads.priorities();
            for (priority, found) in all.iter().enumerate().filter(|(_, found)| found.hosts > 0) {
                let only = |count: usize| (0..count).map(|i| if i == priority { 100 } else { 0 }).collect::<Vec<_>>();
                let none = vec![0; all.len()];
                let healthy = PriorityLoads { healthy: only(all.len()), degraded: none.clone() };
                let degraded = PriorityLoads { healthy: none, degraded: only(all.len()) };
                priorities.push(Member { cluster: cluster.clone(), priority, loads: [healthy, degraded] });
                available.push(*found);
            }
        }
        Self { priorities, loads: Loads::of(available, panic_threshold) }
    }

    /// The cluster for a request, and how its priorities share it; `random` is 0 to 99, `instead` a retry's own shares.
    pub fn pick(&self, random: u32, instead: Option<&PriorityLoads>) -> Option<(&Rc<ThreadCluster>, &PriorityLoads)> {
        let (at, health) = self.loads.pick(random, instead)?;
        let member = self.priorities.get(at)?;
        let [healthy, degraded] = &member.loads;
        Some((&member.cluster, if health == Health::Degraded { degraded } else { healthy }))
    }

    /// See [`ThreadCluster::loads_without`].
    pub fn loads_without(&self, excluded: &mut Vec<bool>) -> Option<PriorityLoads> {
        excluded.resize(self.priorities.len(), false);
        self.loads.without(excluded)
    }

    /// The place in the row of a priority of the cluster of this name.
    pub fn place(&self, cluster: &str, priority: u32) -> Option<usize> {
        let is = |member: &Member| member.priority == priority as usize && member.cluster.info().name() == cluster;
        self.priorities.iter().position(is)
    }

    /// The member clusters that have hosts.
    pub fn members(&self) -> impl Iterator<Item = &Rc<ThreadCluster>> {
        self.priorities.iter().map(|member| &member.cluster)
    }
}
