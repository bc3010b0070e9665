//! What a client is interested in, of one kind.

use super::snapshot::{Resource, Resources};
use std::{collections::BTreeSet, sync::Arc};

/// Names that are subscribed to.
#[derive(Clone, Debug, Default)]
pub(super) struct Interest {
    /// All that exist.
    pub wildcard: bool,
    pub names: BTreeSet<Arc<str>>,
}

/// The name that stands for all names.
pub(super) const WILDCARD: &str = "*";

impl Interest {
    /// The resources that exist of those.
    pub fn select<'a>(&'a self, all: &'a Resources) -> Box<dyn Iterator<Item = (&'a Arc<str>, &'a Resource)> + 'a> {
        if self.wildcard { Box::new(all.iter()) } else { Box::new(self.names.iter().filter_map(|name| all.get(name))) }
    }

    pub fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}
