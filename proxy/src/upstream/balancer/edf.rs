//! Earliest deadline first: picks entries in proportion to their weights, spread evenly.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, binary_heap::PeekMut},
};

/// The schedule. An entry's next turn comes one over its weight after the present one.
pub(super) struct Edf {
    heap: BinaryHeap<Entry>,
    order: u64,
}

struct Entry {
    deadline: f64,
    /// Of equal deadlines the one that was entered first goes first.
    order: u64,
    index: u32,
    weight: f64,
}

impl Edf {
    /// Entries by their indices; those without weight are never picked. `seed` says how many picks have been made already:
    /// at most one round.
    pub fn new(weights: impl Iterator<Item = f64>, seed: u64) -> Self {
        let mut entries: Vec<Entry> = weights
            .enumerate()
            .filter(|(_, weight)| *weight > 0.0)
            .map(|(i, weight)| Entry { deadline: 1.0 / weight, order: i as u64, index: i as u32, weight })
            .collect();
        let picks = seed % entries.len().max(1) as u64;
        // After a time the earliest deadlines come of so many turns as that time holds.
        let time = picks as f64 / entries.iter().map(|entry| entry.weight).sum::<f64>().max(f64::MIN_POSITIVE);
        for entry in &mut entries {
            entry.deadline = ((time * entry.weight).floor() + 1.0) / entry.weight;
        }
        Self { order: entries.len() as u64, heap: entries.into() }
    }

    /// The next entry, which gets the weight that `weight` says for its turn after this one (`None`: as before).
    pub fn pick(&mut self, weight: impl FnOnce(usize) -> Option<f64>) -> Option<usize> {
        let mut first = self.heap.peek_mut()?;
        let index = first.index as usize;
        let weight = weight(index).filter(|weight| *weight > 0.0).unwrap_or(first.weight);
        let next = Entry { deadline: first.deadline + 1.0 / weight, order: self.order, index: first.index, weight };
        self.order += 1;
        // Put in the place of the first it sinks to its own: one walk down the heap.
        *first = next;
        drop::<PeekMut<'_, Entry>>(first);
        Some(index)
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl Ord for Entry {
    /// The heap's greatest is the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_weights_and_are_spread() {
        for seed in 0..6 {
            let mut edf = Edf::new([1.0, 2.0, 3.0, 0.0].into_iter(), seed);
            let picks: Vec<_> = (0..60).filter_map(|_| edf.pick(|_| None)).collect();
            let count = |i| picks.iter().filter(|p| **p == i).count();
            assert_eq!([count(0), count(1), count(2), count(3)], [10, 20, 30, 0]);
            assert!(picks.windows(3).all(|three| three != [2, 2, 2]), "{seed} {picks:?}");
        }
        assert!(Edf::new([0.0].into_iter(), 3).is_empty());
    }
}
