//! Deadlines by key: fetch timeouts and lifetimes of resources, without a timer each.
//!
//! Invariant: a key has one deadline at most, and `by_time` and `by_key` hold the same pairs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// Deadlines of keys, the earliest at hand.
#[derive(Debug)]
pub(super) struct Deadlines<K> {
    by_key: BTreeMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K: Ord + Clone> Deadlines<K> {
    pub(super) fn new() -> Self {
        Self { by_key: BTreeMap::new(), by_time: BTreeSet::new() }
    }

    /// Sets the deadline of `key`, in place of the one it had.
    pub(super) fn set(&mut self, key: K, at: Instant) {
        self.clear(&key);
        self.by_key.insert(key.clone(), at);
        self.by_time.insert((at, key));
    }

    pub(super) fn clear(&mut self, key: &K) {
        if let Some(at) = self.by_key.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
    }

    /// Clears those keys that `which` tells, from `first` up to the first one that `within` denies.
    pub(super) fn clear_range(&mut self, first: K, within: impl Fn(&K) -> bool, which: impl Fn(&K) -> bool) {
        let range = self.by_key.range(first..).map(|(k, _)| k).take_while(|k| within(k));
        let keys: Vec<K> = range.filter(|k| which(k)).cloned().collect();
        for key in keys {
            self.clear(&key);
        }
    }

    pub(super) fn earliest(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes a key whose deadline is not after `now`.
    pub(super) fn pop(&mut self, now: Instant) -> Option<K> {
        if self.earliest()? > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_deadline_a_key() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut deadlines = Deadlines::new();
        deadlines.set("a", at(3));
        deadlines.set("b", at(2));
        deadlines.set("a", at(1));
        deadlines.set("c", at(9));
        deadlines.clear(&"c");
        assert_eq!(deadlines.earliest(), Some(at(1)));
        assert_eq!(deadlines.pop(at(0)), None);
        assert_eq!(deadlines.pop(at(5)), Some("a"));
        assert_eq!(deadlines.pop(at(5)), Some("b"));
        assert_eq!(deadlines.pop(at(5)), None);
        for key in ["d", "e", "f"] {
            deadlines.set(key, at(1));
        }
        deadlines.clear_range("d", |k| *k < "f", |_| true);
        assert_eq!(deadlines.pop(at(1)), Some("f"));
        assert_eq!(deadlines.earliest(), None);
    }
}
