//! How many downstream connections the process may have, all listeners together.
//!
//! Asked by the accept loops of all workers; the number is exact. What is configured wins over the runtime's key.

use crate::base::RuntimeSnapshot;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The runtime's key.
const KEY: &str = "overload.global_downstream_max_connections";

/// The limit, and the connections of now.
#[derive(Debug, Default)]
pub struct GlobalLimit {
    configured: Option<u64>,
    active: AtomicU64,
}

impl GlobalLimit {
    pub fn new(configured: Option<u64>) -> Arc<Self> {
        Arc::new(Self { configured, active: AtomicU64::new(0) })
    }

    /// A connection's place until it is dropped; `None` if all are taken. `always`: there is one anyway.
    pub fn take(self: &Arc<Self>, runtime: &RuntimeSnapshot, always: bool) -> Option<Seat> {
        let most = if always { None } else { self.configured.or_else(|| runtime.integer(KEY)) };
        let more = |active: u64| (active < most.unwrap_or(u64::MAX)).then_some(active + 1);
        self.active.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Seat(self.clone()))
    }
}

/// A connection's place.
pub struct Seat(Arc<GlobalLimit>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let (limit, runtime) = (GlobalLimit::new(Some(1)), RuntimeSnapshot::default());
        let first = limit.take(&runtime, false);
        assert!(first.is_some() && limit.take(&runtime, false).is_none());
        let second = limit.take(&runtime, true);
        drop(first);
        assert!(limit.take(&runtime, false).is_none());
        drop(second);
        assert!(limit.take(&runtime, false).is_some());
    }
}
