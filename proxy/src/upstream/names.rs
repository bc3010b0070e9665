//! Names that routes and clusters share, interned once by the control thread, so that the data path indexes by number.

use foldhash::HashMap;

/// A cluster's number: an index into a snapshot's clusters. Stays the same for a name as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u32);

/// The names that were given numbers so far. Lives on the control thread; snapshots carry a copy of the map
/// for names that come with requests (`cluster_header`).
#[derive(Clone, Debug, Default)]
pub struct Names {
    ids: HashMap<Box<str>, ClusterId>,
    names: Vec<Box<str>>,
}

impl Names {
    /// The number of `name`, given now if it has none yet.
    pub fn intern(&mut self, name: &str) -> ClusterId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = ClusterId(u32::try_from(self.names.len()).expect("fewer than 2^32 cluster names"));
        self.ids.insert(name.into(), id);
        self.names.push(name.into());
        id
    }

    /// The number of `name`, if it has one.
    pub fn get(&self, name: &str) -> Option<ClusterId> {
        self.ids.get(name).copied()
    }

    pub fn name(&self, id: ClusterId) -> &str {
        self.names.get(id.0 as usize).map(|name| &**name).unwrap_or_default()
    }

    /// How many numbers were given.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}
