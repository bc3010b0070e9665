//! Whose turn it is in a list of hosts: round robin, least request, random, by weight where weights differ.
//!
//! One thread's own; the lists are shared.

use super::{edf::Edf, eligible::List, weight::Weigh};
use crate::upstream::host::{Host, PrioritySet};
use std::{
    cell::{Cell, RefCell},
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// The place that one thread has come to in a list.
#[derive(Default)]
pub(super) struct Turn {
    next: Cell<u64>,
    /// Where weights differ; made when it is first asked for.
    schedule: RefCell<Schedule>,
}

#[derive(Default)]
enum Schedule {
    #[default]
    Unknown,
    /// All weigh the same.
    Equal,
    Weighted(Edf),
}

/// How a list is picked from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    InTurns,
    /// The least busy of so many, or of all.
    LeastRequest(Option<u32>),
    Random,
}

impl Turn {
    pub fn new(seed: u64) -> Self {
        Self { next: Cell::new(seed), ..Self::default() }
    }

    /// Goes on where `before` stands.
    pub fn follow(&self, before: &Self) {
        self.next.set(before.next.get());
    }

    /// The index in the priority of the next host of `list`.
    pub fn pick(
        &self,
        list: &List,
        set: &PrioritySet,
        order: Order,
        weigh: &Weigh<'_>,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let count = list.len();
        if count == 0 {
            return None;
        }
        let host = |place: usize| list.at(place).and_then(|i| set.hosts.get(i));
        if !matches!(order, Order::Random) && weigh.may_differ(list.weights_differ) {
            let mut schedule = self.schedule.borrow_mut();
            if let Schedule::Unknown = *schedule {
                let hosts = || (0..count).filter_map(host);
                *schedule = if list.weights_differ || weigh.differ(hosts().map(Arc::as_ref)) {
                    Schedule::Weighted(Edf::new(hosts().map(|host| weigh.of(host)), self.next.get()))
                } else {
                    Schedule::Equal
                };
            }
            if let Schedule::Weighted(edf) = &mut *schedule
                && !edf.is_empty()
            {
                // The weight of the moment counts for the host's next turn.
                return list.at(edf.pick(|place| host(place).map(|host| weigh.of(host)))?);
            }
        }
        match order {
            Order::InTurns => {
                let next = self.next.get();
                self.next.set(next.wrapping_add(1));
                list.at((next % count as u64) as usize)
            }
            Order::Random => list.at(rng.usize(0..count)),
            Order::LeastRequest(Some(choices)) => {
                let mut best = None;
                for _ in 0..choices {
                    let Some(index) = list.at(rng.usize(0..count)) else { continue };
                    let busy = active(set.hosts.get(index)?);
                    // The first of the least.
                    if best.is_none_or(|(least, _)| busy < least) {
                        best = Some((busy, index));
                    }
                }
                Some(best?.1)
            }
            Order::LeastRequest(None) => {
                let mut best = None;
                let mut ties = 0;
                for index in list.iter() {
                    let busy = active(set.hosts.get(index)?);
                    match best {
                        Some((least, _)) if busy > least => {}
                        // Each of several equals is taken with the same chance.
                        Some((least, _)) if busy == least => {
                            ties += 1;
                            if rng.u32(0..ties) == 0 {
                                best = Some((busy, index));
                            }
                        }
                        _ => {
                            ties = 1;
                            best = Some((busy, index));
                        }
                    }
                }
                Some(best?.1)
            }
        }
    }
}

fn active(host: &Arc<Host>) -> u32 {
    host.state.rq_active.load(Relaxed)
}
