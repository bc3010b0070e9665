//! All clusters of a snapshot, by number and by name, as a table that shares with the one before it what did not change.
//!
//! Made on the control thread, taken over by each thread. Invariant: a part of two tables that is the same by pointer holds
//! the same clusters, so that what changed between them is found by looking at the parts that differ.

use super::{Cluster, ClusterId, Names};
use std::sync::Arc;

/// Clusters by number. A copy costs a pointer for every [`EACH`] of them, a change the part that it is in.
#[derive(Clone, Debug, Default)]
pub struct ClusterTable {
    parts: Vec<Arc<Part>>,
    names: Arc<Names>,
}

const EACH: usize = 64;

type Part = [Option<Arc<Cluster>>; EACH];

/// What two tables have of one number: it is not the same, and one of them may have nothing.
#[derive(Clone, Copy)]
pub struct Changed<'a> {
    pub id: ClusterId,
    pub before: Option<&'a Arc<Cluster>>,
    pub now: Option<&'a Arc<Cluster>>,
}

impl ClusterTable {
    /// `names` gave the clusters their numbers.
    pub fn new(clusters: impl IntoIterator<Item = Arc<Cluster>>, names: Arc<Names>) -> Self {
        let mut table = Self { parts: Vec::new(), names };
        for cluster in clusters {
            table.set(cluster.info.id, Some(cluster));
        }
        table
    }

    /// Puts a cluster in its place, or what else is there out of it.
    pub fn set(&mut self, id: ClusterId, cluster: Option<Arc<Cluster>>) {
        let (part, place) = place(id);
        if self.parts.len() <= part {
            let nothing = Arc::new([const { None }; EACH]);
            self.parts.resize(part + 1, nothing);
        }
        Arc::make_mut(&mut self.parts[part])[place] = cluster;
    }

    /// The same clusters with the names that there are now.
    pub fn named(&self, names: Arc<Names>) -> Self {
        Self { parts: self.parts.clone(), names }
    }

    pub fn get(&self, id: ClusterId) -> Option<&Arc<Cluster>> {
        let (part, place) = place(id);
        self.parts.get(part)?.get(place)?.as_ref()
    }

    /// The number of a name, whether there is a cluster of that name or not.
    pub fn id(&self, name: &str) -> Option<ClusterId> {
        self.names.get(name)
    }

    /// The name of a number, whether there is a cluster of that name or not.
    pub fn name(&self, id: ClusterId) -> &str {
        self.names.name(id)
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.get(self.id(name)?)
    }

    /// What is another cluster than in `before`, or is there in one of them only.
    pub fn changes<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Changed<'a>> {
        let parts = 0..self.parts.len().max(before.parts.len());
        parts.flat_map(move |part| {
            let (now, then) = (self.parts.get(part), before.parts.get(part));
            let is_same = matches!((now, then), (Some(now), Some(then)) if Arc::ptr_eq(now, then));
            (0..if is_same { 0 } else { EACH }).filter_map(move |place| {
                let of = |part: Option<&'a Arc<Part>>| part.and_then(|part| part[place].as_ref());
                let (now, before) = (of(now), of(then));
                let is_same = match (now, before) {
                    (Some(now), Some(before)) => Arc::ptr_eq(now, before),
                    (now, before) => now.is_none() && before.is_none(),
                };
                let id = ClusterId((part * EACH + place) as u32);
                (!is_same).then_some(Changed { id, before, now })
            })
        })
    }
}

fn place(id: ClusterId) -> (usize, usize) {
    (id.0 as usize / EACH, id.0 as usize % EACH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{transport::tls::secrets::NoSecrets, upstream::pool::tests::config};
    use weft_config::Context;

    /// Snapshots go to all threads.
    #[test]
    fn clusters_are_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<ClusterTable>();
    }

    #[test]
    fn a_change_costs_the_part_that_it_is_in() {
        let mut names = Names::default();
        let mut cluster = |name: &str| {
            let config = config(|p| p.name = name.into());
            Cluster::compile(names.intern(name), Arc::new(config), None, None, false, &NoSecrets, &mut Context::new())
        };
        let all: Vec<_> = (0..300).map(|i| cluster(&format!("c{i}"))).collect();
        let other = cluster("c70");
        let before = ClusterTable::new(all, Arc::new(names));
        let mut now = before.clone();
        assert_eq!(now.changes(&before).count(), 0);
        now.set(ClusterId(70), Some(other.clone()));
        now.set(ClusterId(299), None);
        let changes: Vec<_> = now.changes(&before).map(|c| (c.id.0, c.before.is_some(), c.now.is_some())).collect();
        assert_eq!(changes, [(70, true, true), (299, true, false)]);
        let shared = now.parts.iter().zip(&before.parts).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared, before.parts.len() - 2);
        assert!(Arc::ptr_eq(now.by_name("c70").unwrap(), &other) && now.by_name("c299").is_none());
        // All of it is new to a thread that has nothing.
        assert_eq!(before.changes(&ClusterTable::default()).count(), 300);
        assert_eq!(ClusterTable::default().changes(&now).count(), 299);
    }
}
