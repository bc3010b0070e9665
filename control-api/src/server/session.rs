//! One stream of a client: what it asked for, what it was sent, what it is owed. No I/O, no clock.
//!
//! The stream's task feeds requests and snapshots in and takes responses out. A kind has at most one response without
//! an answer. When a snapshot changes, kinds go out in the order "clusters, endpoints, listeners, routes", each once
//! the ones before it were answered. What others refer to is taken away last, and not while the client goes on with
//! something older that it has because it refused the newer: nothing that is in use refers to nothing ("make before
//! break"). A cluster that is sent has its endpoints sent again, for which its warming waits.
//!
//! Clients are not trusted: names that they give are bounded, and a request that changes nothing costs no walk over the
//! resources.

use super::{
    interest::{Interest, WILDCARD},
    snapshot::{Resource, Resources, Snapshot},
};
use crate::{
    Any,
    envoy::{config::core::v3 as core, service::discovery::v3 as discovery},
    resource::{Protocol, ResourceType},
    wire::{Records, Wire},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// Which kinds a stream may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// All (ADS).
    Aggregated,
    /// One.
    Single(ResourceType),
}

/// What a client says.
#[derive(Clone, Debug)]
pub enum Request {
    StateOfTheWorld(discovery::DiscoveryRequest),
    Delta(discovery::DeltaDiscoveryRequest),
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    StateOfTheWorld(discovery::DiscoveryResponse),
    Delta(discovery::DeltaDiscoveryResponse),
}

/// A client's answer to a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub kind: ResourceType,
    /// Of the response.
    pub version: String,
    /// Why it was refused; `None` if it was taken.
    pub refused: Option<String>,
}

/// A request that ends the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// The stream carries another kind.
    WrongType(String),
    /// More names than a stream may subscribe to.
    TooManyNames,
}

/// Memory that the names of a kind may take on one stream, in bytes.
const MOST_NAMES: usize = 32 << 20;
/// What a name costs beside its own bytes.
const NAME: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub struct Session {
    service: Service,
    protocol: Protocol,
    snapshot: Arc<Snapshot>,
    kinds: BTreeMap<ResourceType, Kind>,
    nonces: u64,
}

/// What is known of one kind.
#[derive(Debug, Default)]
struct Kind {
    interest: Interest,
    /// Names were given once: from then on no names means none, not all.
    was_named: bool,
    /// What the client has, as far as we sent it or it said so; all of it is of interest.
    sent: BTreeMap<Arc<str>, Resource>,
    /// Delta: names that the client was told do not exist.
    told_missing: BTreeSet<Arc<str>>,
    /// The response that is not answered yet: nonce and version.
    unanswered: Option<(String, String)>,
    /// The latest answer was a refusal: something older is in force.
    refused: bool,
    /// A response is due even if there is nothing new.
    asked: bool,
    /// `sent` has to be compared with the snapshot.
    stale: bool,
    /// Something is to be taken away, later.
    held: bool,
}

impl Session {
    /// A stream that nothing was said on yet.
    pub fn new(service: Service, protocol: Protocol) -> Self {
        Self { service, protocol, snapshot: Arc::default(), kinds: BTreeMap::new(), nonces: 0 }
    }

    /// Sets what the client's group gets now.
    pub fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        for (kind, state) in &mut self.kinds {
            // Versions are hashes of the content.
            state.stale |= self.snapshot.of(*kind).version() != snapshot.of(*kind).version();
        }
        self.snapshot = snapshot;
        self.reconsider();
    }

    /// Takes a request; gives the answer that it is, if it is one.
    ///
    /// # Errors
    /// The stream has to end.
    pub fn on_request(&mut self, request: Request) -> Result<Option<Answer>, Misuse> {
        let answer = match request {
            Request::StateOfTheWorld(request) => self.on_sotw(request),
            Request::Delta(request) => self.on_delta(request),
        }?;
        if answer.is_some() {
            self.reconsider();
        }
        Ok(answer)
    }

    /// The kind that a request is about; `None` for one that is not served here.
    fn kind(&self, type_url: &str) -> Result<Option<ResourceType>, Misuse> {
        let kind = ResourceType::of_url(type_url);
        match self.service {
            Service::Aggregated => Ok(kind),
            Service::Single(own) if type_url.is_empty() || kind == Some(own) => Ok(Some(own)),
            Service::Single(_) => Err(Misuse::WrongType(type_url.to_owned())),
        }
    }

    fn on_sotw(&mut self, request: discovery::DiscoveryRequest) -> Result<Option<Answer>, Misuse> {
        let Some(kind) = self.kind(&request.type_url)? else { return Ok(None) };
        if request.resource_names.iter().map(|name| cost(name)).sum::<usize>() > MOST_NAMES {
            return Err(Misuse::TooManyNames);
        }
        let is_first = !self.kinds.contains_key(&kind);
        let state = self.kinds.entry(kind).or_default();
        // A first request on a stream may have a nonce of an earlier stream: it says nothing.
        if !is_first && !request.response_nonce.is_empty() && state.is_outdated(&request.response_nonce) {
            return Ok(None);
        }
        let answer = state.answered(kind, &request.response_nonce, request.error_detail.map(|e| e.message));
        let legacy = kind.is_full_state() && request.resource_names.is_empty() && !state.was_named;
        state.was_named |= !request.resource_names.is_empty();
        let wildcard = legacy || request.resource_names.iter().any(|n| n == WILDCARD);
        let names = request.resource_names.into_iter().filter(|name| name != WILDCARD).map(Arc::from);
        let interest = Interest::new(wildcard, names);
        if is_first || state.interest != interest {
            let has_more = (wildcard && !state.interest.wildcard)
                || (!wildcard && interest.names().any(|name| !state.interest.covers(name)));
            state.asked |= is_first || has_more;
            state.stale = true;
            state.sent.retain(|name, _| interest.covers(name));
            state.interest = interest;
        }
        Ok(answer)
    }

    fn on_delta(&mut self, request: discovery::DeltaDiscoveryRequest) -> Result<Option<Answer>, Misuse> {
        let Some(kind) = self.kind(&request.type_url)? else { return Ok(None) };
        let is_first = !self.kinds.contains_key(&kind);
        let state = self.kinds.entry(kind).or_default();
        let answer = state.answered(kind, &request.response_nonce, request.error_detail.map(|e| e.message));
        if is_first {
            let known = request.initial_resource_versions.into_iter();
            state.sent = known
                .map(|(name, version)| (name.into(), Resource { body: Default::default(), version: version.into() }))
                .collect();
            let legacy = kind.is_full_state() && request.resource_names_subscribe.is_empty();
            state.interest.wildcard = legacy;
            state.asked = legacy;
            state.stale = true;
        }
        let is_less = !request.resource_names_unsubscribe.is_empty();
        state.stale |= is_less || !request.resource_names_subscribe.is_empty();
        for name in &request.resource_names_unsubscribe {
            if name == WILDCARD {
                state.interest.wildcard = false;
            } else {
                state.interest.remove(name);
                state.told_missing.remove(name.as_str());
            }
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                state.asked |= !state.interest.wildcard;
                state.interest.wildcard = true;
                continue;
            }
            let name: Arc<str> = name.into();
            // Whoever subscribes again wants to be told again.
            if !is_first {
                state.sent.remove(&name);
            }
            state.told_missing.remove(&name);
            state.interest.insert(name);
        }
        if state.interest.cost() > MOST_NAMES {
            return Err(Misuse::TooManyNames);
        }
        if is_first || is_less {
            let Kind { interest, sent, .. } = state;
            sent.retain(|name, _| interest.covers(name));
        }
        Ok(answer)
    }

    /// The next response that is due.
    pub fn poll_response(&mut self) -> Option<Response> {
        'again: loop {
            let mut earlier_unanswered = false;
            for kind in ResourceType::ALL {
                let Some(state) = self.kinds.get(&kind) else { continue };
                if state.unanswered.is_some() {
                    earlier_unanswered = true;
                } else if state.stale && (!earlier_unanswered || state.asked || state.wants_first(&self.snapshot, kind))
                {
                    if let Some(response) = self.response(kind) {
                        return Some(response);
                    }
                    if !self.kinds.get(&kind).is_some_and(|state| state.held) {
                        // It was up to date after all: something else may have waited for that.
                        self.reconsider();
                        continue 'again;
                    }
                }
            }
            return None;
        }
    }

    /// Brings a kind up to date.
    fn response(&mut self, kind: ResourceType) -> Option<Response> {
        let is_delta = self.protocol == Protocol::Delta;
        let may_remove = self.may_remove(kind);
        let all = self.snapshot.of(kind);
        let state = self.kinds.get_mut(&kind)?;
        let changed: Selected = state.changed(all).map(|(name, r)| (name.clone(), r.clone())).collect();
        let mut gone: BTreeSet<Arc<str>> = state.gone(all).cloned().collect();
        state.held = !gone.is_empty() && !may_remove;
        if state.held {
            gone.clear();
        }
        state.stale = false;
        let asked = std::mem::take(&mut state.asked);
        if is_delta {
            let missing =
                state.interest.names().filter(|name| all.get(name).is_none() && !state.sent.contains_key(*name));
            let untold: Vec<_> = missing.filter(|name| !state.told_missing.contains(*name)).cloned().collect();
            gone.extend(untold);
            state.told_missing.retain(|name| !changed.contains_key(name));
            state.told_missing.extend(gone.iter().filter(|name| state.interest.has(name)).cloned());
        }
        for name in &gone {
            state.sent.remove(name);
        }
        state.sent.extend(changed.iter().map(|(name, r)| (name.clone(), r.clone())));
        // Kinds that are sent whole can say "nothing"; what does not exist of the others yet is waited for.
        let is_whole = kind.is_full_state();
        let says_gone = (is_delta || is_whole) && !gone.is_empty();
        if changed.is_empty() && !says_gone && !(asked && (is_delta || is_whole)) {
            return None;
        }
        let version = version(&state.sent);
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        state.unanswered = Some((nonce.clone(), version.clone()));
        let response = if is_delta {
            let resources = changed.iter().map(|(name, r)| discovery::Resource {
                name: name.to_string(),
                version: r.version.to_string(),
                resource: Some(any(kind, r)),
                ..Default::default()
            });
            Response::Delta(discovery::DeltaDiscoveryResponse {
                system_version_info: version,
                resources: resources.collect(),
                type_url: kind.url().to_owned(),
                removed_resources: gone.iter().map(ToString::to_string).collect(),
                nonce,
                control_plane: identifier(),
                ..Default::default()
            })
        } else {
            let resources = if is_whole { &state.sent } else { &changed };
            Response::StateOfTheWorld(discovery::DiscoveryResponse {
                version_info: version,
                resources: resources.values().map(|r| any(kind, r)).collect(),
                type_url: kind.url().to_owned(),
                nonce,
                control_plane: identifier(),
                ..Default::default()
            })
        };
        if kind == ResourceType::Cluster {
            self.send_endpoints_again(&changed);
        }
        Some(response)
    }

    /// A cluster that is new or changed warms until its endpoints come, even if the client has them already.
    fn send_endpoints_again(&mut self, clusters: &Selected) {
        let Some(endpoints) = self.kinds.get_mut(&ResourceType::Endpoint) else { return };
        for (name, cluster) in clusters {
            let name = service_name(&cluster.body).unwrap_or(name);
            endpoints.stale |= endpoints.sent.remove(name).is_some();
        }
    }

    /// True if nothing that the client has can refer to what a kind has no more.
    fn may_remove(&self, kind: ResourceType) -> bool {
        let Some(own) = removal_turn(kind) else { return true };
        self.kinds.iter().filter(|(other, _)| **other != kind).all(|(other, state)| {
            let all = self.snapshot.of(*other);
            let is_earlier = removal_turn(*other).is_none_or(|turn| turn < own);
            state.unanswered.is_none()
                && !state.refused
                && !(state.held && is_earlier)
                && !(state.stale
                    && (state.changed(all).next().is_some() || is_earlier && state.gone(all).next().is_some()))
        })
    }

    /// What was not taken away yet may be now.
    fn reconsider(&mut self) {
        for state in self.kinds.values_mut() {
            state.stale |= std::mem::take(&mut state.held);
        }
    }
}

type Selected = BTreeMap<Arc<str>, Resource>;

impl Kind {
    /// What the client does not have of what it is to have.
    fn changed<'a>(&'a self, all: &'a Resources) -> impl Iterator<Item = (&'a Arc<str>, &'a Resource)> {
        self.interest.select(all).filter(|(name, r)| self.sent.get(*name).is_none_or(|s| s.version != r.version))
    }

    /// What the client has and does not exist.
    fn gone<'a>(&'a self, all: &'a Resources) -> impl Iterator<Item = &'a Arc<str>> {
        self.sent.keys().filter(|name| all.get(name).is_none())
    }

    fn is_outdated(&self, nonce: &str) -> bool {
        self.unanswered.as_ref().is_some_and(|(expected, _)| expected != nonce)
    }

    /// Notes that the response with this nonce was answered.
    fn answered(&mut self, kind: ResourceType, nonce: &str, refused: Option<String>) -> Option<Answer> {
        let (_, version) = self.unanswered.take_if(|(expected, _)| expected == nonce)?;
        self.refused = refused.is_some();
        Some(Answer { kind, version, refused })
    }

    /// True if the client waits for names that it was never sent: nothing can depend on the order then.
    fn wants_first(&self, snapshot: &Snapshot, kind: ResourceType) -> bool {
        let all = snapshot.of(kind);
        !self.interest.wildcard && self.interest.select(all).any(|(name, _)| !self.sent.contains_key(name))
    }
}

/// When resources of a kind that others refer to may be taken away: after those of lower turns, and of kinds without.
fn removal_turn(kind: ResourceType) -> Option<u8> {
    match kind {
        ResourceType::Cluster => Some(1),
        ResourceType::Endpoint | ResourceType::Secret => Some(2),
        _ => None,
    }
}

/// The name that a cluster's endpoints have, if it is not the cluster's.
fn service_name(cluster: &[u8]) -> Option<&str> {
    let field = |bytes, number| {
        let mut found = Records(bytes).map_while(Result::ok).filter_map(|(n, wire)| match wire {
            Wire::Bytes(bytes) if n == number => Some(bytes),
            _ => None,
        });
        found.next()
    };
    // Cluster.eds_cluster_config.service_name
    let name = field(field(cluster, 3)?, 2)?;
    std::str::from_utf8(name).ok().filter(|name| !name.is_empty())
}

/// Memory that a name takes, about.
pub(super) fn cost(name: &str) -> usize {
    name.len() + NAME
}

fn any(kind: ResourceType, resource: &Resource) -> Any {
    Any { type_url: kind.url().to_owned(), value: resource.body.to_vec() }
}

fn version(sent: &Selected) -> String {
    let mut hasher = DefaultHasher::new();
    for (name, resource) in sent {
        (name, &resource.version).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn identifier() -> Option<core::ControlPlane> {
    Some(core::ControlPlane { identifier: concat!("weft-control/", env!("CARGO_PKG_VERSION")).to_owned() })
}
