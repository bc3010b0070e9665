//! Ring hash (ketama): each host stands at many places of a ring of 64 bit hashes, and a request goes to the first place at
//! or behind its own hash. The same ring as Envoy's for the same hosts.

use super::murmur;
use std::io::Write as _;
use weft_config::load_balancing::{HashFunction, RingHash};
use xxhash_rust::xxh64::xxh64;

/// A ring; in order of the hashes.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Ring {
    hashes: Box<[u64]>,
    /// Indices of hosts in their priority, by place.
    hosts: Box<[u32]>,
    /// The first place whose hash has these leading bits or greater ones: one look here, then a few steps.
    index: Box<[u32]>,
    /// By how many bits a hash is shifted for that.
    shift: u32,
    /// The fewest and the most places that a host has.
    pub per_host: (u64, u64),
}

/// One host of a table.
pub(in crate::upstream) struct Entry {
    /// In its priority.
    pub index: u32,
    /// The share of all.
    pub weight: f64,
    /// What is hashed.
    pub key: Box<[u8]>,
}

impl Ring {
    pub fn new(entries: &[Entry], config: &RingHash) -> Self {
        let min_weight = entries.iter().map(|entry| entry.weight).fold(1.0, f64::min);
        if entries.is_empty() || min_weight <= 0.0 {
            return Self::default();
        }
        // The host of the least weight gets a whole number of places, unless that makes too large a ring.
        let scale =
            ((min_weight * config.minimum_ring_size as f64).ceil() / min_weight).min(config.maximum_ring_size as f64);
        let mut places: Vec<(u64, u32)> = Vec::with_capacity(scale.ceil() as usize);
        let (mut current, mut target) = (0.0, 0.0);
        let mut per_host = (scale.ceil() as u64, 0);
        let mut key = Vec::new();
        for entry in entries {
            key.clear();
            key.extend_from_slice(&entry.key);
            key.push(b'_');
            let prefix = key.len();
            target += scale * entry.weight;
            let mut i = 0u64;
            while current < target {
                key.truncate(prefix);
                // Writing to a vector cannot fail.
                let _ = write!(key, "{i}");
                let hash = match config.function {
                    HashFunction::XxHash64 => xxh64(&key, 0),
                    HashFunction::MurmurHash2 => murmur::murmur2(&key, murmur::SEED),
                };
                places.push((hash, entry.index));
                i += 1;
                current += 1.0;
            }
            per_host = (per_host.0.min(i), per_host.1.max(i));
        }
        places.sort_unstable();
        let bits = places.len().next_power_of_two().trailing_zeros().max(1);
        let shift = 64 - bits;
        let mut index = Vec::with_capacity(1 << bits);
        let mut place = 0u32;
        for bucket in 0..1u64 << bits {
            while places.get(place as usize).is_some_and(|(hash, _)| *hash < bucket << shift) {
                place += 1;
            }
            index.push(place);
        }
        Self {
            hashes: places.iter().map(|(hash, _)| *hash).collect(),
            hosts: places.iter().map(|(_, host)| *host).collect(),
            index: index.into(),
            shift,
            per_host,
        }
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// The host of a hash; further attempts go to the places behind.
    pub fn pick(&self, hash: u64, attempt: u32) -> Option<u32> {
        let first = *self.index.get((hash >> self.shift) as usize)? as usize;
        let behind = self.hashes.get(first..)?;
        let place = first + behind.iter().take_while(|at| **at < hash).count();
        let place = if place == self.len() { 0 } else { place };
        self.hosts.get((place + attempt as usize) % self.len()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_config::load_balancing::ConsistentHashing;

    fn ring(weights: &[f64], minimum: u64, maximum: u64) -> Ring {
        let total: f64 = weights.iter().sum();
        let entries = weights.iter().enumerate().map(|(i, weight)| Entry {
            index: i as u32,
            weight: weight / total,
            key: format!("127.0.0.1:{}", 90 + i).into_bytes().into(),
        });
        let config = RingHash {
            function: HashFunction::XxHash64,
            minimum_ring_size: minimum,
            maximum_ring_size: maximum,
            hashing: ConsistentHashing::default(),
        };
        Ring::new(&entries.collect::<Vec<_>>(), &config)
    }

    /// The ring that Envoy's own documentation and tests have for these hosts.
    #[test]
    fn places_are_those_of_the_reference() {
        let ring = ring(&[1.0; 6], 12, 8 << 20);
        assert_eq!(ring.len(), 12);
        assert_eq!((ring.hashes[0], ring.hosts[0]), (833437586790550860, 4));
    }

    #[test]
    fn a_search_finds_what_a_scan_finds() {
        let ring = ring(&[1.0, 2.0, 3.0], 1024, 8 << 20);
        let mut rng = fastrand::Rng::with_seed(5);
        for hash in (0..2000).map(|_| rng.u64(..)).chain([0, 1, u64::MAX, ring.hashes[0], ring.hashes[7] + 1]) {
            let place = ring.hashes.iter().position(|at| *at >= hash).unwrap_or(0);
            assert_eq!(ring.pick(hash, 0), Some(ring.hosts[place]));
            assert_eq!(ring.pick(hash, 3), Some(ring.hosts[(place + 3) % ring.len()]));
        }
    }

    #[test]
    fn sizes() {
        let whole = ring(&[1.0, 2.0], 3, 8 << 20);
        assert_eq!((whole.len(), whole.per_host), (3, (1, 2)));
        let capped = ring(&[1.0, 1.0, 1.0], 1024, 2);
        assert_eq!((capped.len(), capped.per_host), (2, (0, 1)));
        assert_eq!(Ring::default().pick(1, 0), None);
    }
}
