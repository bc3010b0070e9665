//! State of the world: what one kind of resource has said and heard on a stream.
//!
//! Driven by the engine. Invariant: `version` is that of the last response that was taken whole; requests repeat it
//! also on later streams, while nonces belong to one stream.

use super::{
    Interest, Read,
    update::{Refused, Resource, Update},
};
use crate::{envoy::service::discovery::v3 as discovery, resource::ResourceType};
use bytes::Bytes;
use prost::Message as _;
use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

const RESOURCE_URL: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// An answer on its way: what the next request says about the last response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) nonce: String,
    pub(super) version: String,
    pub(super) error: Option<String>,
}

#[derive(Debug)]
pub(super) struct Sotw {
    /// Of the last response that was taken.
    pub(super) version: String,
    /// What requests on this stream say: they lag behind while answers are queued.
    wire_version: String,
    wire_nonce: String,
    /// The names that this stream was last asked for.
    sent: Option<Vec<String>>,
    /// True once this stream was asked for names: from then on an empty list does not mean everything.
    named: bool,
    /// Resources of a full-state kind that the proxy has.
    known: BTreeSet<String>,
}

impl Sotw {
    pub(super) fn new() -> Self {
        Self {
            version: String::new(),
            wire_version: String::new(),
            wire_nonce: String::new(),
            sent: None,
            named: false,
            known: BTreeSet::new(),
        }
    }

    pub(super) fn open(&mut self) {
        self.wire_version.clone_from(&self.version);
        self.wire_nonce.clear();
        self.sent = None;
        self.named = false;
    }

    /// The next request, if there is anything to say. Node and type are the engine's.
    pub(super) fn request(
        &mut self,
        interest: &Interest,
        answer: Option<Answer>,
    ) -> Option<discovery::DiscoveryRequest> {
        let mut names: Vec<String> = interest.names.iter().cloned().collect();
        if interest.wildcard && (self.named || !names.is_empty()) {
            names.insert(0, "*".to_owned());
        }
        let says_nothing = self.sent.as_ref() == Some(&names) || (interest.is_empty() && !self.named);
        if answer.is_none() && says_nothing {
            return None;
        }
        let mut error_detail = None;
        if let Some(Answer { nonce, version, error }) = answer {
            self.wire_nonce = nonce;
            self.wire_version = version;
            error_detail = error.map(super::internal);
        }
        self.named |= !names.is_empty();
        self.sent = Some(names.clone());
        Some(discovery::DiscoveryRequest {
            version_info: self.wire_version.clone(),
            node: None,
            resource_names: names,
            resource_locators: Vec::new(),
            type_url: String::new(),
            response_nonce: self.wire_nonce.clone(),
            error_detail,
        })
    }

    /// What a response means for the proxy.
    pub(super) fn read(
        &mut self,
        kind: ResourceType,
        interest: &Interest,
        response: discovery::DiscoveryResponse,
    ) -> Read {
        let control_plane = response.control_plane.map(|c| c.identifier).unwrap_or_default();
        let mut update = Update {
            resource_type: kind,
            version: response.version_info,
            nonce: response.nonce,
            resources: Vec::with_capacity(response.resources.len()),
            removed: Vec::new(),
            refused: Vec::new(),
            control_plane,
        };
        if interest.is_empty() {
            // What was just unsubscribed from may still be under way. An empty response only tells that it is gone.
            if !response.resources.is_empty() {
                return Read::Unwanted { nonce: update.nonce };
            }
            self.version.clone_from(&update.version);
            self.wire_version = update.version;
            self.wire_nonce = update.nonce;
            return Read::Silent;
        }
        let mut heartbeats = Vec::new();
        let mut seen = HashSet::with_capacity(response.resources.len());
        for any in response.resources {
            let resource = match resource(kind, any, &update.version) {
                Ok(resource) => resource,
                Err(message) => return Read::Malformed { update, message },
            };
            // A wrapper without a resource confirms the one that is there.
            if resource.body.is_none() {
                seen.insert(resource.name.clone());
                heartbeats.extend(resource.ttl.map(|ttl| (resource.name, ttl)));
                continue;
            }
            let is_new = seen.insert(resource.name.clone());
            if !interest.covers(&resource.name) {
                continue;
            }
            if is_new {
                update.resources.push(resource);
            } else if kind.is_full_state() {
                let message = format!("duplicate {} {} found", kind.noun(), resource.name);
                update.refused.push(Refused { name: resource.name, message });
            }
        }
        if kind.is_full_state() && interest.wildcard {
            update.removed = self.known.iter().filter(|name| !seen.contains(*name)).cloned().collect();
        }
        let for_proxy = interest.wildcard || !update.resources.is_empty();
        Read::Update { update, heartbeats, for_proxy }
    }

    /// The proxy took `update` but the `refused` ones.
    ///
    /// `is_good`: nothing in it was refused by anyone.
    pub(super) fn commit(&mut self, update: &Update, refused: &HashSet<&str>, is_good: bool) {
        if update.resource_type.is_full_state() {
            for name in &update.removed {
                self.known.remove(name);
            }
            self.known
                .extend(update.resources.iter().map(|r| &r.name).filter(|n| !refused.contains(n.as_str())).cloned());
        }
        if is_good {
            self.version.clone_from(&update.version);
        }
    }

    /// What was taken is no answer to this stream, so its requests say the version at once.
    pub(super) fn taken_from_earlier_stream(&mut self) {
        self.wire_version.clone_from(&self.version);
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.known.remove(name);
    }

    /// Forgets all but `names`.
    pub(super) fn retain(&mut self, names: &BTreeSet<String>) {
        self.known.retain(|name| names.contains(name));
    }
}

/// One entry of a response, with or without a `Resource` around it.
fn resource(kind: ResourceType, any: prost_types::Any, version: &str) -> Result<Resource, String> {
    let unreadable = |what: &str| format!("{what} of type {} is not a valid encoding", kind.message());
    let mismatch =
        |url: &str| format!("{url} does not match the message-wide type URL {} in the DiscoveryResponse", kind.url());
    let version = version.to_owned();
    if any.type_url != RESOURCE_URL {
        if any.type_url != kind.url() {
            return Err(mismatch(&any.type_url));
        }
        let name = kind.name_of(&any.value).map_err(|_| unreadable("a resource"))?;
        return Ok(Resource { name, aliases: Vec::new(), version, body: Some(Bytes::from(any.value)), ttl: None });
    }
    let wrapper =
        discovery::Resource::decode(any.value.as_slice()).map_err(|_| unreadable("the wrapper of a resource"))?;
    let ttl = wrapper.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
    let body = match wrapper.resource {
        Some(inner) if inner.type_url != kind.url() => return Err(mismatch(&inner.type_url)),
        inner => inner.map(|any| Bytes::from(any.value)),
    };
    let name = match &body {
        Some(body) if wrapper.name.is_empty() => kind.name_of(body).map_err(|_| unreadable("a resource"))?,
        _ => wrapper.name,
    };
    Ok(Resource { name, aliases: wrapper.aliases, version, body, ttl })
}
