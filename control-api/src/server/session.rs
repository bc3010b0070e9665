//! One stream of a client: what it asked for, what it was sent, what it is owed. No I/O, no clock.
//!
//! The stream's task feeds requests and snapshots in and takes responses out. A kind has at most one response without
//! an answer. When a snapshot changes, kinds go out in the order "clusters, endpoints, listeners, routes", each once
//! the ones before it were answered, and clusters that are gone are taken away last: nothing that is in use refers to
//! nothing ("make before break").

use super::{
    interest::{Interest, WILDCARD},
    snapshot::{Resource, Snapshot},
};
use crate::{
    Any,
    envoy::{config::core::v3 as core, service::discovery::v3 as discovery},
    resource::{Protocol, ResourceType},
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

/// Names of a kind that one stream may subscribe to.
const MOST_NAMES: usize = 200_000;

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
    /// What the client has, as far as we sent it or it said so.
    sent: BTreeMap<Arc<str>, Resource>,
    /// Delta: names that the client was told do not exist.
    told_missing: BTreeSet<Arc<str>>,
    /// The response that is not answered yet: nonce and version.
    unanswered: Option<(String, String)>,
    /// A response is due even if there is nothing new.
    asked: bool,
}

type Selected = BTreeMap<Arc<str>, Resource>;

impl Session {
    /// A stream that nothing was said on yet.
    pub fn new(service: Service, protocol: Protocol) -> Self {
        Self { service, protocol, snapshot: Arc::default(), kinds: BTreeMap::new(), nonces: 0 }
    }

    /// Sets what the client's group gets now.
    pub fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
    }

    /// Takes a request; gives the answer that it is, if it is one.
    ///
    /// # Errors
    /// The stream has to end.
    pub fn on_request(&mut self, request: Request) -> Result<Option<Answer>, Misuse> {
        match request {
            Request::StateOfTheWorld(request) => self.on_sotw(request),
            Request::Delta(request) => self.on_delta(request),
        }
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
        if request.resource_names.len() > MOST_NAMES {
            return Err(Misuse::TooManyNames);
        }
        let is_first = !self.kinds.contains_key(&kind);
        let state = self.kinds.entry(kind).or_default();
        // A first request on a stream may have a nonce of an earlier stream: it says nothing.
        if !is_first && !request.response_nonce.is_empty() && state.is_stale(&request.response_nonce) {
            return Ok(None);
        }
        let answer = state.answered(kind, &request.response_nonce, request.error_detail.map(|e| e.message));
        let names: BTreeSet<Arc<str>> =
            request.resource_names.iter().filter(|n| *n != WILDCARD).map(|n| n.as_str().into()).collect();
        let legacy = kind.is_full_state() && request.resource_names.is_empty() && !state.was_named;
        state.was_named |= !request.resource_names.is_empty();
        let wildcard = legacy || request.resource_names.iter().any(|n| n == WILDCARD);
        let has_more = (wildcard && !state.interest.wildcard)
            || (!wildcard && names.iter().any(|name| !state.interest.covers(name)));
        state.asked |= is_first || has_more;
        state.interest = Interest { wildcard, names };
        let Kind { interest, sent, .. } = state;
        sent.retain(|name, _| interest.covers(name));
        Ok(answer)
    }

    fn on_delta(&mut self, request: discovery::DeltaDiscoveryRequest) -> Result<Option<Answer>, Misuse> {
        let Some(kind) = self.kind(&request.type_url)? else { return Ok(None) };
        let is_first = !self.kinds.contains_key(&kind);
        let state = self.kinds.entry(kind).or_default();
        let new = request.resource_names_subscribe.len() + request.initial_resource_versions.len();
        if state.interest.names.len() + state.sent.len().min(new) + new > MOST_NAMES {
            return Err(Misuse::TooManyNames);
        }
        let answer = state.answered(kind, &request.response_nonce, request.error_detail.map(|e| e.message));
        if is_first {
            let known = request.initial_resource_versions.into_iter();
            state.sent = known
                .map(|(name, version)| (name.into(), Resource { body: Default::default(), version: version.into() }))
                .collect();
            let legacy = kind.is_full_state() && request.resource_names_subscribe.is_empty();
            state.interest.wildcard = legacy;
            state.asked = legacy;
        }
        for name in &request.resource_names_unsubscribe {
            if name == WILDCARD {
                state.interest.wildcard = false;
            } else {
                state.interest.names.remove(name.as_str());
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
            state.interest.names.insert(name);
        }
        let Kind { interest, sent, .. } = state;
        sent.retain(|name, _| interest.covers(name));
        Ok(answer)
    }

    /// The next response that is due.
    pub fn poll_response(&mut self) -> Option<Response> {
        let mut earlier_unanswered = false;
        for kind in ResourceType::ALL {
            let Some(state) = self.kinds.get(&kind) else { continue };
            if state.unanswered.is_some() {
                earlier_unanswered = true;
            } else if (!earlier_unanswered || state.asked || state.wants_first(&self.snapshot, kind))
                && let Some(response) = self.response(kind)
            {
                return Some(response);
            }
        }
        None
    }

    fn response(&mut self, kind: ResourceType) -> Option<Response> {
        let selected = self.selected(kind);
        let state = self.kinds.get_mut(&kind)?;
        let asked = std::mem::take(&mut state.asked);
        match self.protocol {
            Protocol::StateOfTheWorld => {
                let is_full = kind.is_full_state();
                let has_new =
                    selected.iter().any(|(name, r)| state.sent.get(name).is_none_or(|s| s.version != r.version));
                let has_less = is_full && selected.len() != state.sent.len();
                // What is not there yet is waited for; only kinds that are sent whole can say "nothing".
                if !(has_new || has_less || asked && (is_full || !selected.is_empty())) {
                    state.sent = selected;
                    return None;
                }
                let version = version(&selected);
                let resources = selected.values().map(|r| any(kind, r)).collect();
                state.sent = selected;
                let nonce = next(&mut self.nonces);
                state.unanswered = Some((nonce.clone(), version.clone()));
                Some(Response::StateOfTheWorld(discovery::DiscoveryResponse {
                    version_info: version,
                    resources,
                    type_url: kind.url().to_owned(),
                    nonce,
                    control_plane: identifier(),
                    ..Default::default()
                }))
            }
            Protocol::Delta => {
                let changed =
                    selected.iter().filter(|(name, r)| state.sent.get(*name).is_none_or(|s| s.version != r.version));
                let resources: Vec<discovery::Resource> = changed
                    .map(|(name, r)| discovery::Resource {
                        name: name.to_string(),
                        version: r.version.to_string(),
                        resource: Some(any(kind, r)),
                        ..Default::default()
                    })
                    .collect();
                let gone = state.sent.keys().filter(|name| !selected.contains_key(*name));
                let missing = state.interest.names.iter().filter(|name| !selected.contains_key(*name));
                let told = &state.told_missing;
                let removed: BTreeSet<Arc<str>> = gone.chain(missing.filter(|n| !told.contains(*n))).cloned().collect();
                let version = version(&selected);
                state.told_missing =
                    state.interest.names.iter().filter(|n| !selected.contains_key(*n)).cloned().collect();
                state.sent = selected;
                if resources.is_empty() && removed.is_empty() && !asked {
                    return None;
                }
                let nonce = next(&mut self.nonces);
                state.unanswered = Some((nonce.clone(), version.clone()));
                Some(Response::Delta(discovery::DeltaDiscoveryResponse {
                    system_version_info: version,
                    resources,
                    type_url: kind.url().to_owned(),
                    removed_resources: removed.iter().map(ToString::to_string).collect(),
                    nonce,
                    control_plane: identifier(),
                    ..Default::default()
                }))
            }
        }
    }

    /// What the client is to have of a kind now.
    fn selected(&self, kind: ResourceType) -> Selected {
        let Some(state) = self.kinds.get(&kind) else { return Selected::new() };
        let all = self.snapshot.of(kind);
        let mut selected: Selected = state.interest.select(all).map(|(n, r)| (n.clone(), r.clone())).collect();
        if kind == ResourceType::Cluster && self.later_is_unsettled(kind) {
            // Routes that are in force may still lead to clusters that are gone. What only the client told us of has no
            // body that we could send again.
            let gone = state.sent.iter().filter(|(name, r)| !selected.contains_key(*name) && !r.body.is_empty());
            let gone: Vec<_> = gone.map(|(name, r)| (name.clone(), r.clone())).collect();
            selected.extend(gone);
        }
        selected
    }

    /// True if a kind that comes after `kind` has not been brought up to date.
    fn later_is_unsettled(&self, kind: ResourceType) -> bool {
        self.kinds.range(kind..).skip(1).any(|(kind, state)| {
            let all = self.snapshot.of(*kind);
            state.unanswered.is_some()
                || state.interest.select(all).any(|(n, r)| state.sent.get(n).is_none_or(|s| s.version != r.version))
        })
    }
}

impl Kind {
    fn is_stale(&self, nonce: &str) -> bool {
        self.unanswered.as_ref().is_none_or(|(expected, _)| expected != nonce) && self.unanswered.is_some()
    }

    /// Notes that the response with this nonce was answered.
    fn answered(&mut self, kind: ResourceType, nonce: &str, refused: Option<String>) -> Option<Answer> {
        let (_, version) = self.unanswered.take_if(|(expected, _)| expected == nonce)?;
        Some(Answer { kind, version, refused })
    }

    /// True if the client waits for names that it was never sent: nothing can depend on the order then.
    fn wants_first(&self, snapshot: &Snapshot, kind: ResourceType) -> bool {
        let all = snapshot.of(kind);
        !self.interest.wildcard && self.interest.select(all).any(|(name, _)| !self.sent.contains_key(name))
    }
}

fn next(nonces: &mut u64) -> String {
    *nonces += 1;
    nonces.to_string()
}

fn any(kind: ResourceType, resource: &Resource) -> Any {
    Any { type_url: kind.url().to_owned(), value: resource.body.to_vec() }
}

fn version(selected: &Selected) -> String {
    let mut hasher = DefaultHasher::new();
    for (name, resource) in selected {
        (name, &resource.version).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn identifier() -> Option<core::ControlPlane> {
    Some(core::ControlPlane { identifier: concat!("weft-control/", env!("CARGO_PKG_VERSION")).to_owned() })
}
