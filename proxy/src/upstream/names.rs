//! Names that routes and clusters share, interned once by the control thread, so that the data path indexes by number.

use foldhash::{HashMap, fast::FixedState};
use std::{hash::BuildHasher as _, sync::Arc};

/// A cluster's number: an index into a snapshot's clusters. Stays the same for a name as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u32);

/// The names that were given numbers so far. Lives on the control thread; snapshots carry a copy of the map
/// for names that come with requests (`cluster_header`).
///
/// A copy shares all that is in it: whoever adds a name copies the part that the name belongs to, and no more.
#[derive(Clone, Debug)]
pub struct Names {
    /// By the names' hashes.
    ids: Vec<Arc<HashMap<Arc<str>, ClusterId>>>,
    /// By number, so many in each.
    names: Vec<Arc<Vec<Arc<str>>>>,
    len: usize,
}

const PARTS: usize = 64;
const EACH: usize = 128;

impl Default for Names {
    fn default() -> Self {
        let nothing = Arc::default();
        Self { ids: vec![nothing; PARTS], names: Vec::new(), len: 0 }
    }
}

impl Names {
    /// The number of `name`, given now if it has none yet.
    pub fn intern(&mut self, name: &str) -> ClusterId {
        if let Some(id) = self.get(name) {
            return id;
        }
        let id = ClusterId(u32::try_from(self.len).expect("fewer than 2^32 cluster names"));
        let name: Arc<str> = name.into();
        Arc::make_mut(&mut self.ids[part(&name)]).insert(name.clone(), id);
        if self.len.is_multiple_of(EACH) {
            self.names.push(Arc::default());
        }
        if let Some(last) = self.names.last_mut() {
            Arc::make_mut(last).push(name);
        }
        self.len += 1;
        id
    }

    /// The number of `name`, if it has one.
    pub fn get(&self, name: &str) -> Option<ClusterId> {
        self.ids.get(part(name))?.get(name).copied()
    }

    pub fn name(&self, id: ClusterId) -> &str {
        let index = id.0 as usize;
        self.names.get(index / EACH).and_then(|names| names.get(index % EACH)).map(|name| &**name).unwrap_or_default()
    }

    /// How many numbers were given.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

fn part(name: &str) -> usize {
    FixedState::default().hash_one(name) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_what_was_not_added_to() {
        let mut names = Names::default();
        let all: Vec<_> = (0..1000).map(|i| format!("cluster-{i}")).collect();
        let ids: Vec<_> = all.iter().map(|name| names.intern(name)).collect();
        let copy = names.clone();
        let new = names.intern("another");
        assert!(all.iter().zip(&ids).all(|(name, id)| names.get(name) == Some(*id) && names.name(*id) == name));
        assert_eq!((names.get("another"), copy.get("another"), names.len(), copy.len()), (Some(new), None, 1001, 1000));
        let shared = names.ids.iter().zip(&copy.ids).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared, PARTS - 1);
        let shared = names.names.iter().zip(&copy.names).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared, copy.names.len() - 1);
        assert_eq!(names.intern("cluster-7"), ids[7]);
    }
}
