//! What a group of nodes is given: resources by kind, each kind and each resource with a version.
//!
//! Versions are hashes of the content: the same resources have the same versions in every process, so that a client
//! that comes back knows what it has. Immutable once made; shared by all streams.

use crate::resource::ResourceType;
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The encoded message.
    pub body: Bytes,
    /// Of this resource alone.
    pub version: Arc<str>,
}

/// All resources of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    by_name: BTreeMap<Arc<str>, Resource>,
    version: String,
}

/// All resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    kinds: BTreeMap<ResourceType, Arc<Resources>>,
}

impl Resource {
    /// A resource of these bytes.
    pub fn new(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        Self { version: format!("{:016x}", hasher.finish()).into(), body }
    }
}

impl Resources {
    /// The resources by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        self.by_name.iter()
    }

    /// The resource of this name.
    pub fn get(&self, name: &str) -> Option<(&Arc<str>, &Resource)> {
        self.by_name.get_key_value(name)
    }

    /// Of all of them together.
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl FromIterator<(String, Resource)> for Resources {
    fn from_iter<I: IntoIterator<Item = (String, Resource)>>(resources: I) -> Self {
        let by_name: BTreeMap<Arc<str>, Resource> = resources.into_iter().map(|(n, r)| (n.into(), r)).collect();
        let mut hasher = DefaultHasher::new();
        for (name, resource) in &by_name {
            (name, &resource.version).hash(&mut hasher);
        }
        Self { version: format!("{:016x}", hasher.finish()), by_name }
    }
}

impl Snapshot {
    /// The resources of a kind.
    pub fn of(&self, kind: ResourceType) -> &Resources {
        const NONE: &Resources = &Resources { by_name: BTreeMap::new(), version: String::new() };
        self.kinds.get(&kind).map_or(NONE, |resources| resources)
    }

    /// Sets all resources of a kind.
    #[must_use]
    pub fn with(mut self, kind: ResourceType, resources: impl IntoIterator<Item = (String, Resource)>) -> Self {
        self.kinds.insert(kind, Arc::new(resources.into_iter().collect()));
        self
    }

    /// This, and what `other` has besides.
    pub(super) fn joined(&self, other: &Self) -> Self {
        let mut joined = self.clone();
        for (kind, resources) in &other.kinds {
            let both = resources.by_name.iter().chain(&self.of(*kind).by_name);
            joined = joined.with(*kind, both.map(|(name, resource)| (name.to_string(), resource.clone())));
        }
        joined
    }
}
