//! What a client is interested in, of one kind.

use super::{
    session::cost,
    snapshot::{Resource, Resources},
};
use std::{collections::BTreeSet, sync::Arc};

/// Names that are subscribed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interest {
    /// All that exist.
    pub wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// Memory that the names take, in bytes.
    cost: usize,
}

/// The name that stands for all names.
pub(super) const WILDCARD: &str = "*";

impl Interest {
    /// Interest in these names.
    pub fn new(wildcard: bool, names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut interest = Self { wildcard, ..Self::default() };
        names.into_iter().for_each(|name| interest.insert(name));
        interest
    }

    pub fn insert(&mut self, name: Arc<str>) {
        let added = cost(&name);
        self.cost += if self.names.insert(name) { added } else { 0 };
    }

    pub fn remove(&mut self, name: &str) {
        self.cost -= if self.names.remove(name) { cost(name) } else { 0 };
    }

    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter()
    }

    pub fn cost(&self) -> usize {
        self.cost
    }

    /// The resources that exist of those.
    pub fn select<'a>(&'a self, all: &'a Resources) -> Box<dyn Iterator<Item = (&'a Arc<str>, &'a Resource)> + 'a> {
        if self.wildcard { Box::new(all.iter()) } else { Box::new(self.names.iter().filter_map(|name| all.get(name))) }
    }

    /// True if it is subscribed to by its name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub fn covers(&self, name: &str) -> bool {
        self.wildcard || self.has(name)
    }
}
