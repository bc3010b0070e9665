//! Consistent hashing: the tables of ring hash and Maglev, made of the hosts of one priority, and what keeps the load of one
//! host within bounds.

use super::{
    eligible::{EligiblePriority, List, LocalityWeights, Rules},
    maglev::MaglevTable,
    ring_hash::{Entry, Ring},
};
use crate::upstream::host::{Host, PrioritySet};
use weft_config::load_balancing::{ConsistentHashing, LocalityLb, PolicyKind};

/// The table of one priority.
#[derive(Debug)]
pub(in crate::upstream) struct HashTable {
    pub kind: Kind,
    /// The hosts in it with their shares; where loads are bounded.
    shares: Box<[(u32, f64)]>,
    /// Percent of the average load; 0: any.
    balance_factor: u32,
}

#[derive(Debug)]
pub(in crate::upstream) enum Kind {
    Ring(Ring),
    Maglev(MaglevTable),
}

impl HashTable {
    /// The table, where the policy has one. It holds the healthy hosts, or all of them in a panic.
    pub fn build(set: &PrioritySet, lists: &EligiblePriority, panic: bool, rules: Rules<'_>) -> Option<Self> {
        let hashing = rules.policy.hashing()?;
        let mut hosts = Vec::new();
        if rules.policy.locality == LocalityLb::Weighted && rules.weights != LocalityWeights::None {
            let weights: Vec<f64> = lists.localities.iter().map(|l| l.weight).collect();
            let total: f64 = weights.iter().sum();
            for (locality, weight) in lists.localities.iter().zip(weights) {
                let list = if panic { &locality.all } else { &locality.healthy };
                if weight > 0.0 {
                    share_out(&mut hosts, list, weight / total, set);
                }
            }
        } else {
            share_out(&mut hosts, if panic { &lists.all } else { &lists.healthy }, 1.0, set);
        }
        let entry = |(index, weight): &(u32, f64)| {
            let host = set.hosts.get(*index as usize)?;
            Some(Entry { index: *index, weight: *weight, key: key(host, hashing) })
        };
        let entries: Vec<Entry> = hosts.iter().filter_map(entry).collect();
        let kind = match &rules.policy.innermost().kind {
            PolicyKind::RingHash(ring) => Kind::Ring(Ring::new(&entries, ring)),
            PolicyKind::Maglev(maglev) => Kind::Maglev(MaglevTable::new(&entries, maglev.table_size)),
            _ => return None,
        };
        let balance_factor = hashing.balance_factor.unwrap_or_default();
        Some(Self { kind, shares: if balance_factor == 0 { Box::default() } else { hosts.into() }, balance_factor })
    }

    /// The host of a hash. `active`: requests under way in the whole cluster; `of_host`: at one host.
    pub fn pick(&self, hash: u64, attempt: u32, active: impl Fn() -> u32, of_host: impl Fn(u32) -> u32) -> Option<u32> {
        let host = match &self.kind {
            Kind::Ring(ring) => ring.pick(hash, attempt),
            Kind::Maglev(table) => table.pick(hash, attempt),
        }?;
        if self.balance_factor == 0 { Some(host) } else { Some(self.bounded(host, hash, active(), of_host)) }
    }

    /// `host`, or if it has more than its share of the load, one that has not: the same row of hosts for the same hash.
    fn bounded(&self, host: u32, hash: u64, active: u32, of_host: impl Fn(u32) -> u32) -> u32 {
        let total = (u64::from(active) + 1) * u64::from(self.balance_factor);
        let total_slots = total.div_ceil(100);
        let load = |host: u32, share: f64| {
            let slots = (total_slots as f64 * share).ceil().max(1.0);
            f64::from(of_host(host)) / slots
        };
        let share = self.shares.iter().find(|(index, _)| *index == host).map_or(0.0, |(_, share)| *share);
        let own = load(host, share);
        if own <= 1.0 {
            return host;
        }
        let mut least = (own, host);
        let mut random = mersenne::Twister::new(hash as u32);
        // A shuffle, of which only the places are kept that differ from where they began.
        let mut moved = smallvec::SmallVec::<[(u32, u32); 32]>::new();
        let count = self.shares.len() as u32;
        for i in 0..count {
            let j = i + random.below(count - i);
            let value_at = |moved: &[(u32, u32)], place| {
                moved.iter().find(|(at, _)| *at == place).map_or(place, |(_, value)| *value)
            };
            let (taken, displaced) = (value_at(&moved, j), value_at(&moved, i));
            match moved.iter_mut().find(|(at, _)| *at == j) {
                Some(there) => there.1 = displaced,
                None => moved.push((j, displaced)),
            }
            let Some((other, share)) = self.shares.get(taken as usize).copied() else { continue };
            if other == host {
                continue;
            }
            let found = load(other, share);
            if found <= 1.0 {
                return other;
            }
            if found < least.0 {
                least = (found, other);
            }
        }
        least.1
    }
}

/// Adds the hosts of a list, which have `part` of the whole.
fn share_out(hosts: &mut Vec<(u32, f64)>, list: &List, part: f64, set: &PrioritySet) {
    let weight = |i: usize| set.hosts.get(i).map_or(0.0, |host| f64::from(host.weight));
    let total: f64 = list.iter().map(weight).sum();
    hosts.extend(list.iter().map(|i| (i as u32, weight(i) * part / total)));
}

/// What a host stands in a table by.
fn key(host: &Host, hashing: &ConsistentHashing) -> Box<[u8]> {
    let own = host.metadata.as_ref().and_then(|metadata| metadata.get("envoy.lb")?.get("hash_key")?.as_str());
    match own {
        Some(own) if !own.is_empty() => own.as_bytes().into(),
        _ if hashing.use_hostname => host.hostname.as_bytes().into(),
        _ => host.address.to_string().into_bytes().into(),
    }
}

/// The Mersenne twister, 32 bit: the row of hosts that Envoy tries is one of its.
mod mersenne {
    const SIZE: usize = 624;

    pub struct Twister {
        state: [u32; SIZE],
        next: usize,
    }

    impl Twister {
        pub fn new(seed: u32) -> Self {
            let mut state = [0; SIZE];
            state[0] = seed;
            for i in 1..SIZE {
                let before: u32 = state[i - 1];
                state[i] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
            }
            Self { state, next: SIZE }
        }

        pub fn next(&mut self) -> u32 {
            if self.next == SIZE {
                for i in 0..SIZE {
                    let bits = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % SIZE] & 0x7fff_ffff);
                    let odd = if bits & 1 == 0 { 0 } else { 0x9908_b0df };
                    self.state[i] = self.state[(i + 397) % SIZE] ^ (bits >> 1) ^ odd;
                }
                self.next = 0;
            }
            let mut y = self.state[self.next];
            self.next += 1;
            y ^= y >> 11;
            y ^= (y << 7) & 0x9d2c_5680;
            y ^= (y << 15) & 0xefc6_0000;
            y ^ (y >> 18)
        }

        /// A number below `bound`, which is at least 1.
        pub fn below(&mut self, bound: u32) -> u32 {
            loop {
                let x = u64::from(self.next()) / ((1u64 << 32) / u64::from(bound));
                if x < u64::from(bound) {
                    return x as u32;
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        /// The 10 000th number from the seed that C++ begins with by default is in its standard.
        #[test]
        fn standard_value() {
            let mut twister = super::Twister::new(5489);
            assert_eq!((0..10_000).map(|_| twister.next()).last(), Some(4_123_659_995));
        }
    }
}
