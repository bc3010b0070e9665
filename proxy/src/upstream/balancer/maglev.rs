//! Maglev: a table of a prime size in which each host fills the places of its own permutation in turns. The same table as
//! Envoy's for the same hosts.

use super::ring_hash::Entry;
use xxhash_rust::xxh64::xxh64;

/// A table; indices of hosts in their priority, by place.
#[derive(Debug, Default)]
pub(in crate::upstream) struct MaglevTable {
    places: Box<[u32]>,
    /// The fewest and the most places that a host has.
    pub per_host: (u64, u64),
}

/// No host took the place yet.
const VACANT: u32 = u32::MAX;

struct Filling {
    offset: u64,
    skip: u64,
    next: u64,
    target: f64,
    count: u64,
}

impl MaglevTable {
    pub fn new(entries: &[Entry], size: u64) -> Self {
        let most_weight = entries.iter().map(|entry| entry.weight).fold(0.0, f64::max);
        if entries.is_empty() || most_weight <= 0.0 {
            return Self::default();
        }
        // The hosts take their turns by their keys, in whatever order they came.
        let mut entries: Vec<&Entry> = entries.iter().collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        let filling = |entry: &&Entry| Filling {
            offset: xxh64(&entry.key, 0) % size,
            skip: xxh64(&entry.key, 1) % (size - 1).max(1) + 1,
            next: 0,
            target: 0.0,
            count: 0,
        };
        let mut fillings: Vec<Filling> = entries.iter().map(filling).collect();
        let mut places = vec![VACANT; size as usize];
        let mut filled = 0;
        let mut round = 0.0;
        while filled < size {
            round += 1.0;
            for (entry, filling) in entries.iter().zip(&mut fillings) {
                // The heaviest host has a turn in each round, one of a third of its weight in each third.
                if filled == size || round * entry.weight < filling.target {
                    continue;
                }
                filling.target += most_weight;
                let place = loop {
                    let place = (filling.offset + filling.skip * filling.next) % size;
                    filling.next += 1;
                    if places[place as usize] == VACANT {
                        break place as usize;
                    }
                };
                places[place] = entry.index;
                filling.count += 1;
                filled += 1;
            }
        }
        let counts = || fillings.iter().map(|filling| filling.count);
        let per_host = (counts().min().unwrap_or_default(), counts().max().unwrap_or_default());
        Self { places: places.into(), per_host }
    }

    /// The host of a hash; further attempts go elsewhere.
    pub fn pick(&self, hash: u64, attempt: u32) -> Option<u32> {
        let hash = if attempt == 0 { hash } else { hash ^ (u64::MAX - u64::from(attempt) + 1) };
        self.places.get(hash.checked_rem(self.places.len() as u64)? as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(weights: &[f64], size: u64) -> MaglevTable {
        let total: f64 = weights.iter().sum();
        let entries = weights.iter().enumerate().map(|(i, weight)| Entry {
            index: i as u32,
            weight: weight / total,
            key: format!("127.0.0.1:{}", 90 + i).into_bytes().into(),
        });
        MaglevTable::new(&entries.collect::<Vec<_>>(), size)
    }

    #[test]
    fn places_follow_weights() {
        let equal = table(&[1.0; 6], 7);
        assert_eq!((equal.places.len(), equal.per_host), (7, (1, 2)));
        let weighted = table(&[1.0, 2.0], 17);
        assert_eq!(weighted.per_host, (6, 11));
        assert_eq!(MaglevTable::default().pick(9, 0), None);
    }

    /// Places of keys in the table that Envoy has for these hosts.
    #[test]
    fn the_order_of_hosts_is_of_no_account() {
        let ports = [27395, 27298, 27348, 27552, 27301, 27491];
        let entry = |(i, port): (usize, &u16)| Entry {
            index: i as u32,
            weight: 1.0 / 6.0,
            key: format!("127.0.0.1:{port}").into_bytes().into(),
        };
        let mut entries: Vec<Entry> = ports.iter().enumerate().map(entry).collect();
        let table = MaglevTable::new(&entries, 65537);
        for (key, host) in [("k1183", 4), ("k1939", 5), ("k3562", 0)] {
            assert_eq!(table.pick(xxh64(key.as_bytes(), 0), 0), Some(host), "{key}");
        }
        entries.reverse();
        assert_eq!(MaglevTable::new(&entries, 65537).places, table.places);
    }

    #[test]
    fn few_keys_move_when_a_host_goes() {
        let (before, after) = (table(&[1.0; 5], 65537), table(&[1.0; 4], 65537));
        let moved = (0..65537).filter(|i| before.pick(*i, 0) != Some(4) && before.pick(*i, 0) != after.pick(*i, 0));
        assert!(moved.count() < 65537 / 20);
        assert!((0..100).any(|i| before.pick(i, 0) != before.pick(i, 1)));
    }
}
