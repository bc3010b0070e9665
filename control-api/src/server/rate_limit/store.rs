//! Where hits are counted: in this process, or in a Redis that several share.
//!
//! Windows are fixed: a limit of so many a minute begins anew with each minute of the clock.

use super::redis::Redis;
use foldhash::{HashMap, fast::RandomState};
use std::{
    hash::BuildHasher as _,
    sync::{Mutex, PoisonError},
};

/// Parts that are locked by themselves.
const SHARDS: usize = 64;
/// Keys of one part; who would have one more is told that there is no room.
const MOST_KEYS: usize = 4_000_000 / SHARDS;

/// What is counted up.
#[derive(Debug)]
pub(super) struct Hit {
    /// The descriptor, whatever the window.
    pub key: Vec<u8>,
    /// Seconds.
    pub window: u64,
    /// How many, given back if negative.
    pub hits: i64,
}

/// A store of counts.
pub(super) enum Store {
    Embedded(Embedded),
    Redis(Redis),
}

impl Store {
    /// Counts at `now` (seconds since 1970) and gives the sums within the windows.
    ///
    /// # Errors
    /// The store cannot be asked, or has no room.
    pub async fn add(&self, hits: &[Hit], now: u64) -> Result<Vec<u64>, String> {
        match self {
            Self::Embedded(store) => hits.iter().map(|hit| store.add(hit, now)).collect(),
            Self::Redis(redis) => redis.add(hits, now).await,
        }
    }
}

/// Counts in this process.
pub(super) struct Embedded {
    hash: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Default)]
struct Shard {
    counts: HashMap<Vec<u8>, Count>,
    /// At this many keys, what is over is thrown out.
    sweep_at: usize,
}

struct Count {
    /// When its window is over.
    until: u64,
    sum: u64,
}

impl Default for Embedded {
    fn default() -> Self {
        Self { hash: RandomState::default(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Embedded {
    fn add(&self, hit: &Hit, now: u64) -> Result<u64, String> {
        let shard = &self.shards[self.hash.hash_one(&hit.key) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner).add(hit, now)
    }
}

impl Shard {
    fn add(&mut self, hit: &Hit, now: u64) -> Result<u64, String> {
        let until = now - now % hit.window.max(1) + hit.window.max(1);
        if let Some(count) = self.counts.get_mut(&hit.key) {
            if count.until != until {
                *count = Count { until, sum: 0 };
            }
            count.sum = count.sum.saturating_add_signed(hit.hits);
            return Ok(count.sum);
        }
        if self.counts.len() >= self.sweep_at.max(1024) {
            self.counts.retain(|_, count| count.until > now);
            self.sweep_at = self.counts.len() * 2;
        }
        if self.counts.len() >= MOST_KEYS {
            return Err("there are too many descriptors at a time".to_owned());
        }
        let sum = 0u64.saturating_add_signed(hit.hits);
        self.counts.insert(hit.key.clone(), Count { until, sum });
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_anew_and_leave_nothing() {
        let store = Embedded::default();
        let add = |key: &str, window, hits, now| store.add(&Hit { key: key.into(), window, hits }, now);
        assert_eq!([add("a", 60, 1, 100), add("a", 60, 2, 119)], [Ok(1), Ok(3)]);
        assert_eq!([add("b", 60, 5, 119), add("a", 60, -9, 119)], [Ok(5), Ok(0)]);
        assert_eq!(add("a", 60, 1, 120), Ok(1));
        let keys = SHARDS * 1024;
        for i in 0..keys {
            assert_eq!(add(&i.to_string(), 1, 1, 200), Ok(1));
        }
        for i in 0..keys {
            assert_eq!(add(&format!("later {i}"), 1, 1, 300), Ok(1));
        }
        let left: usize = store.shards.iter().map(|shard| shard.lock().expect("no panic").counts.len()).sum();
        assert!(left < keys * 3 / 2, "{left}");
    }
}
