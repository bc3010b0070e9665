//! Earliest deadline first: picks entries in proportion to their weights, spread evenly.

use std::{cmp::Ordering, collections::BinaryHeap};

/// The schedule. An entry's next turn comes one over its weight after the present one.
pub(super) struct Edf {
    heap: BinaryHeap<Entry>,
    now: f64,
    order: u64,
}

struct Entry {
    deadline: f64,
    /// Of equal deadlines the one that was entered first goes first.
    order: u64,
    index: usize,
    weight: f64,
}

impl Edf {
    /// Entries by their indices; those without weight are never picked. `seed` says how many picks have been made already.
    pub fn new(weights: &[f64], seed: u64) -> Self {
        let mut this = Self { heap: BinaryHeap::with_capacity(weights.len()), now: 0.0, order: 0 };
        for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            this.enter(index, *weight);
        }
        for _ in 0..seed % this.heap.len().max(1) as u64 {
            this.pick(|_| None);
        }
        this
    }

    /// The next entry, which gets the weight that `weight` says for its turn after this one (`None`: as before).
    pub fn pick(&mut self, weight: impl FnOnce(usize) -> Option<f64>) -> Option<usize> {
        let Entry { deadline, index, weight: before, .. } = self.heap.pop()?;
        self.now = deadline;
        self.enter(index, weight(index).filter(|weight| *weight > 0.0).unwrap_or(before));
        Some(index)
    }

    fn enter(&mut self, index: usize, weight: f64) {
        self.heap.push(Entry { deadline: self.now + 1.0 / weight, order: self.order, index, weight });
        self.order += 1;
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
        let mut edf = Edf::new(&[1.0, 2.0, 3.0, 0.0], 4);
        let picks: Vec<_> = (0..60).filter_map(|_| edf.pick(|_| None)).collect();
        let count = |i| picks.iter().filter(|p| **p == i).count();
        assert_eq!([count(0), count(1), count(2), count(3)], [10, 20, 30, 0]);
        assert!(picks.windows(3).all(|three| three != [2, 2, 2]));
    }
}
