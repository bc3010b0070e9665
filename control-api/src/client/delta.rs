//! Delta: what one kind of resource has said and heard on a stream, and the versions of what the proxy has.
//!
//! Driven by the engine. Invariant: a resource is in at most one of `requested`, `wildcard` and `ambiguous`; together
//! they are what `initial_resource_versions` tells a new stream.

use super::{
    Read,
    sotw::Answer,
    update::{Resource, Update},
};
use crate::{envoy::service::discovery::v3 as discovery, resource::ResourceType};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

const WILDCARD: &str = "*";

#[derive(Debug)]
pub(super) struct Delta {
    /// What is subscribed to, `*` too; with a version where the proxy has it.
    requested: BTreeMap<String, Option<String>>,
    /// What came because of `*`.
    wildcard: BTreeMap<String, String>,
    /// What was requested by name and no longer is, but may belong to `*`: the server will tell.
    ambiguous: BTreeMap<String, String>,
    /// Subscribed to, and not yet told.
    added: BTreeSet<String>,
    /// Unsubscribed from, and not yet told.
    dropped: BTreeSet<String>,
    /// True once this stream carried a request of this kind.
    spoke: bool,
    /// True as long as nothing but `*` was ever asked for: an empty first request says that.
    only_wildcard: bool,
}

impl Delta {
    pub(super) fn new() -> Self {
        Self {
            requested: BTreeMap::new(),
            wildcard: BTreeMap::new(),
            ambiguous: BTreeMap::new(),
            added: BTreeSet::new(),
            dropped: BTreeSet::new(),
            spoke: false,
            only_wildcard: true,
        }
    }

    pub(super) fn open(&mut self) {
        self.spoke = false;
        self.dropped.clear();
    }

    pub(super) fn subscribe(&mut self, name: &str) {
        self.only_wildcard &= name == WILDCARD;
        let version = self.wildcard.remove(name).or_else(|| self.ambiguous.remove(name));
        self.requested.insert(name.to_owned(), version);
        // Dropped and added again before a request: the proxy has forgotten its copy, so the server has to be asked.
        self.dropped.remove(name);
        self.added.insert(name.to_owned());
    }

    pub(super) fn unsubscribe(&mut self, name: &str) {
        let Some(version) = self.requested.remove(name) else { return };
        self.only_wildcard = false;
        self.added.remove(name);
        if self.spoke {
            self.dropped.insert(name.to_owned());
        }
        if name == WILDCARD {
            self.wildcard.clear();
            self.ambiguous.clear();
        } else if let (true, Some(version)) = (self.requested.contains_key(WILDCARD), version) {
            self.ambiguous.insert(name.to_owned(), version);
        }
    }

    /// The next request, if there is anything to say. Node and type are the engine's.
    pub(super) fn request(&mut self, answer: Option<Answer>) -> Option<discovery::DeltaDiscoveryRequest> {
        let says_something =
            !self.added.is_empty() || !self.dropped.is_empty() || (!self.spoke && !self.requested.is_empty());
        if answer.is_none() && !says_something {
            return None;
        }
        let mut request = discovery::DeltaDiscoveryRequest::default();
        if !self.spoke {
            self.spoke = true;
            let unchanged = self.added.is_empty() && self.dropped.is_empty();
            let only_wildcard = self.requested.len() == 1 && self.requested.contains_key(WILDCARD);
            let known = self.requested.iter().filter_map(|(name, version)| Some((name, version.as_ref()?)));
            request.initial_resource_versions = known
                .chain(&self.wildcard)
                .chain(&self.ambiguous)
                .map(|(name, version)| (name.clone(), version.clone()))
                .collect();
            if only_wildcard && (self.only_wildcard || unchanged) {
                self.added.clear();
            } else {
                self.added.extend(self.requested.keys().cloned());
            }
            self.dropped.clear();
        }
        request.resource_names_subscribe = std::mem::take(&mut self.added).into_iter().collect();
        request.resource_names_unsubscribe = std::mem::take(&mut self.dropped).into_iter().collect();
        if let Some(Answer { nonce, error, .. }) = answer {
            request.response_nonce = nonce;
            request.error_detail = error.map(super::internal);
        }
        Some(request)
    }

    /// What a response means for the proxy.
    pub(super) fn read(&self, kind: ResourceType, response: discovery::DeltaDiscoveryResponse) -> Read {
        let mut update = Update {
            resource_type: kind,
            version: response.system_version_info,
            nonce: response.nonce,
            resources: Vec::with_capacity(response.resources.len()),
            removed: Vec::new(),
            refused: Vec::new(),
            control_plane: response.control_plane.map(|c| c.identifier).unwrap_or_default(),
        };
        let mut seen = HashSet::with_capacity(response.resources.len());
        let mut heartbeats = Vec::new();
        let is_wildcard = self.requested.contains_key(WILDCARD);
        for resource in response.resources {
            if !seen.insert(resource.name.clone()) {
                let message = format!("duplicate name {} found among added/updated resources", resource.name);
                return Read::Malformed { update, message };
            }
            let ttl = resource.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
            let body = match resource.resource {
                None if self.version(&resource.name) == Some(&resource.version) => {
                    heartbeats.extend(ttl.map(|ttl| (resource.name, ttl)));
                    continue;
                }
                // An alias that leads nowhere: there is no such resource.
                None if !resource.aliases.is_empty() => None,
                any => {
                    let any = any.unwrap_or_default();
                    if any.type_url != kind.url() {
                        let message = format!(
                            "type URL {} embedded in an individual Any does not match the message-wide type URL {} in \
                             the DeltaDiscoveryResponse",
                            any.type_url,
                            kind.url()
                        );
                        return Read::Malformed { update, message };
                    }
                    Some(Bytes::from(any.value))
                }
            };
            // Virtual hosts are subscribed to by the route configuration that they belong to, too.
            if is_wildcard || self.requested.contains_key(&resource.name) || kind == ResourceType::VirtualHost {
                let (name, aliases, version) = (resource.name, resource.aliases, resource.version);
                update.resources.push(Resource { name, aliases, version, body, ttl });
            }
        }
        for name in response.removed_resources {
            if !seen.insert(name.clone()) {
                let message = format!("duplicate name {name} found in the union of added+removed resources");
                return Read::Malformed { update, message };
            }
            if is_wildcard || self.requested.contains_key(&name) || kind == ResourceType::VirtualHost {
                update.removed.push(name);
            }
        }
        let for_proxy = is_wildcard || !update.resources.is_empty() || !update.removed.is_empty();
        Read::Update { update, heartbeats, for_proxy }
    }

    /// The proxy took `update` but the `refused` ones, whose old versions it keeps.
    pub(super) fn commit(&mut self, update: &Update, refused: &HashSet<&str>) {
        for resource in update.resources.iter().filter(|r| !refused.contains(r.name.as_str())) {
            self.ambiguous.remove(&resource.name);
            if let Some(version) = self.requested.get_mut(&resource.name) {
                *version = Some(resource.version.clone());
            } else if self.requested.contains_key(WILDCARD) {
                self.wildcard.insert(resource.name.clone(), resource.version.clone());
            }
        }
        for name in &update.removed {
            self.forget(name);
        }
    }

    /// The proxy no longer has the resource.
    pub(super) fn forget(&mut self, name: &str) {
        if let Some(version) = self.requested.get_mut(name) {
            *version = None;
        }
        self.wildcard.remove(name);
        self.ambiguous.remove(name);
    }

    /// The version of a resource that the proxy has.
    fn version(&self, name: &str) -> Option<&String> {
        let requested = self.requested.get(name).and_then(Option::as_ref);
        requested.or_else(|| self.wildcard.get(name)).or_else(|| self.ambiguous.get(name))
    }
}
