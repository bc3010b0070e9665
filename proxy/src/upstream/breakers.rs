//! Circuit breakers: exact limits of a cluster, shared by all threads.
//!
//! Invariant: what was taken is given back exactly once, by [`Resource::release`].

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use weft_config::{
    cluster::{CircuitBreakers, RetryBudget, Thresholds},
    route::Priority,
};

/// The breakers of a cluster.
#[derive(Debug)]
pub struct Breakers {
    pub default: Resources,
    pub high: Resources,
    /// Connections that one host may have.
    pub per_host_max_connections: Option<u32>,
}

/// The resources of one priority.
#[derive(Debug)]
pub struct Resources {
    pub connections: Resource,
    pub pending_requests: Resource,
    pub requests: Resource,
    pub retries: Resource,
    retry_budget: Option<RetryBudget>,
    pub(super) track_remaining: bool,
}

/// One limited number.
#[derive(Debug)]
pub struct Resource {
    current: AtomicU32,
    max: u32,
}

impl Breakers {
    pub fn new(config: &CircuitBreakers) -> Self {
        Self {
            default: Resources::new(&config.default),
            high: Resources::new(&config.high),
            per_host_max_connections: config.per_host_max_connections,
        }
    }

    pub fn of(&self, priority: Priority) -> &Resources {
        match priority {
            Priority::Default => &self.default,
            Priority::High => &self.high,
        }
    }
}

impl Resources {
    fn new(p: &Thresholds) -> Self {
        let Thresholds {
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
        } = p;
        Self {
            connections: Resource::new(*max_connections),
            pending_requests: Resource::new(*max_pending_requests),
            requests: Resource::new(*max_requests),
            retries: Resource::new(*max_retries),
            retry_budget: *retry_budget,
            track_remaining: *track_remaining,
        }
    }

    /// Retries that may be under way now: fixed, or the budget's share of what is active.
    pub fn max_retries(&self) -> u32 {
        let Some(budget) = &self.retry_budget else { return self.retries.max };
        let active = self.requests.current().saturating_add(self.pending_requests.current());
        ((f64::from(active) * budget.budget_percent / 100.0) as u32).max(budget.min_retry_concurrency)
    }

    /// Takes the right to one retry; give it back with `retries.release()`.
    pub fn try_retry(&self) -> bool {
        self.retries.try_take_of(self.max_retries())
    }
}

impl Resource {
    fn new(max: u32) -> Self {
        Self { current: AtomicU32::new(0), max }
    }

    pub fn current(&self) -> u32 {
        self.current.load(Relaxed)
    }

    pub fn max(&self) -> u32 {
        self.max
    }

    /// Takes one, if there is one left.
    pub fn try_take(&self) -> bool {
        self.try_take_of(self.max)
    }

    fn try_take_of(&self, max: u32) -> bool {
        self.current.fetch_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1)).is_ok()
    }

    /// Takes one whatever the limit says.
    pub fn take(&self) {
        self.current.fetch_add(1, Relaxed);
    }

    /// Gives one back.
    pub fn release(&self) {
        self.current.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_exact() {
        let breakers = Breakers::new(&CircuitBreakers {
            default: Thresholds { max_requests: 2, ..Thresholds::default() },
            ..CircuitBreakers::default()
        });
        let requests = &breakers.of(Priority::Default).requests;
        assert_eq!([requests.try_take(), requests.try_take(), requests.try_take()], [true, true, false]);
        requests.release();
        assert!(requests.try_take());
        assert!(breakers.of(Priority::High).requests.try_take());
    }

    #[test]
    fn a_retry_budget_grows_with_the_load() {
        let budget = Some(RetryBudget { budget_percent: 20.0, min_retry_concurrency: 1 });
        let resources = Resources::new(&Thresholds { retry_budget: budget, ..Thresholds::default() });
        assert_eq!(resources.max_retries(), 1);
        (0..20).for_each(|_| resources.requests.take());
        assert_eq!(resources.max_retries(), 4);
        assert_eq!((0..5).filter(|_| resources.try_retry()).count(), 4);
    }
}
