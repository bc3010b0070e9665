//! The engine itself: subscriptions of all kinds over one stream, and the order of what goes out.
//!
//! Called by the proxy's control thread. Invariant: requests leave in the order in which they became due; one of a
//! paused kind waits without holding up the others.

use super::{
    Interest, Read,
    backoff::{Backoff, BackoffOptions},
    deadlines::Deadlines,
    delta::Delta,
    rate_limit::{RateLimit, RateLimitOptions},
    sotw::{Answer, Sotw},
    update::{Event, Refused, Rejection, Update, nack_message, truncated},
};
use crate::{
    envoy::{config::core::v3::Node, service::discovery::v3 as discovery},
    resource::{Protocol, ResourceType},
};
use bytes::Bytes;
use prost::Message as _;
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

/// Which streams an engine speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// All kinds on one stream (ADS).
    Aggregated,
    /// One kind on a stream of its own.
    Single(ResourceType),
}

/// How an engine speaks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Aggregated or not.
    pub service: Service,
    /// State of the world or delta.
    pub protocol: Protocol,
    /// Who the proxy is.
    pub node: Node,
    /// `set_node_on_first_message_only`.
    pub node_on_first_message_only: bool,
    /// The delays between streams.
    pub backoff: BackoffOptions,
    /// `rate_limit_settings`; without them requests are not limited.
    pub rate_limit: Option<RateLimitOptions>,
    /// What the delays are drawn from.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            service: Service::Aggregated,
            protocol: Protocol::StateOfTheWorld,
            node: Node::default(),
            node_on_first_message_only: false,
            backoff: BackoffOptions::default(),
            rate_limit: None,
            seed: 0,
        }
    }
}

/// A request to send.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// On a state-of-the-world stream.
    StateOfTheWorld(discovery::DiscoveryRequest),
    /// On a delta stream.
    Delta(discovery::DeltaDiscoveryRequest),
}

impl Request {
    /// The request as one gRPC frame.
    pub fn frame(&self) -> Bytes {
        match self {
            Self::StateOfTheWorld(request) => super::encode_frame(request),
            Self::Delta(request) => super::encode_frame(request),
        }
    }
}

/// See the [module](super).
#[derive(Debug)]
pub struct Engine {
    options: Options,
    subscriptions: BTreeMap<ResourceType, Subscription>,
    /// The kinds in the order of their first subscription, which a new stream repeats.
    order: Vec<ResourceType>,
    /// What is due to be said.
    queue: VecDeque<Due>,
    events: VecDeque<Event>,
    stream: Stream,
    /// Counts streams: an answer to a response of an earlier one is not sent.
    generation: u64,
    first_on_stream: bool,
    backoff: Backoff,
    rate_limit: Option<RateLimit>,
    fetches: Deadlines<(ResourceType, Option<String>)>,
    lifetimes: Deadlines<(ResourceType, String)>,
}

#[derive(Debug, PartialEq)]
enum Stream {
    /// Not there; to be opened at this time, if at all.
    Down(Option<Instant>),
    /// The proxy was told to open it.
    Connecting,
    Open,
}

/// A reason to send a request.
#[derive(Debug)]
struct Due {
    kind: ResourceType,
    answer: Option<Answer>,
}

#[derive(Debug)]
struct Subscription {
    interest: Interest,
    speech: Speech,
    paused: usize,
    /// With the proxy.
    outstanding: Option<Outstanding>,
    /// Behind it.
    waiting: VecDeque<Response>,
}

impl Subscription {
    /// True while nothing may be said. A new stream is first told which versions the proxy has, so what an earlier one
    /// brought has to be answered before.
    fn is_held(&self, generation: u64) -> bool {
        self.paused > 0 || self.outstanding.as_ref().is_some_and(|o| o.generation != generation)
    }
}

#[derive(Debug)]
enum Speech {
    Sotw(Sotw),
    Delta(Delta),
}

#[derive(Debug)]
struct Outstanding {
    update: Update,
    heartbeats: Vec<(String, Duration)>,
    generation: u64,
}

#[derive(Debug)]
enum Response {
    Sotw(discovery::DiscoveryResponse),
    Delta(discovery::DeltaDiscoveryResponse),
}

impl Engine {
    /// An engine without subscriptions, which does not connect before [`start`](Self::start).
    pub fn new(options: Options) -> Self {
        Self {
            subscriptions: BTreeMap::new(),
            order: Vec::new(),
            queue: VecDeque::new(),
            events: VecDeque::new(),
            stream: Stream::Down(None),
            generation: 0,
            first_on_stream: true,
            backoff: Backoff::new(options.backoff, options.seed),
            rate_limit: options.rate_limit.map(RateLimit::new),
            fetches: Deadlines::new(),
            lifetimes: Deadlines::new(),
            options,
        }
    }

    /// The path of the gRPC method to call. `None` if there is no such method: virtual hosts have only delta.
    pub fn method(&self) -> Option<&'static str> {
        match self.options.service {
            Service::Aggregated => Some(self.options.protocol.aggregated_method()),
            Service::Single(kind) => kind.method(self.options.protocol),
        }
    }

    /// True while a stream is open (`control_plane.connected_state`).
    pub fn is_open(&self) -> bool {
        self.stream == Stream::Open
    }

    /// Requests that are due but not sent (`control_plane.pending_requests`).
    pub fn pending_requests(&self) -> usize {
        self.queue.len()
    }

    /// Responses that wait for an answer of the proxy. While there are many, the proxy should not read the stream.
    pub fn unanswered(&self) -> usize {
        self.subscriptions.values().map(|s| s.waiting.len() + usize::from(s.outstanding.is_some())).sum()
    }

    // ---- what the proxy wants

    /// Connects as soon as the proxy polls.
    pub fn start(&mut self) {
        if self.stream == Stream::Down(None) {
            self.stream = Stream::Connecting;
            self.events.push_back(Event::Connect);
        }
    }

    /// Subscribes to all resources of a kind. If none came (or were refused) when `timeout` is over, there is an
    /// [`Event::FetchTimeout`]; zero is no timeout.
    pub fn subscribe_wildcard(&mut self, kind: ResourceType, timeout: Option<Duration>, now: Instant) {
        let subscription = self.subscription(kind);
        if std::mem::replace(&mut subscription.interest.wildcard, true) {
            return;
        }
        if let Speech::Delta(delta) = &mut subscription.speech {
            delta.subscribe("*");
        }
        self.interest_changed(kind, None, timeout, now);
    }

    /// Subscribes to a resource by name, with a timeout as in [`subscribe_wildcard`](Self::subscribe_wildcard). A second
    /// subscription to a name is the same one.
    pub fn subscribe(&mut self, kind: ResourceType, name: &str, timeout: Option<Duration>, now: Instant) {
        let subscription = self.subscription(kind);
        if !subscription.interest.names.insert(name.to_owned()) {
            return;
        }
        if let Speech::Delta(delta) = &mut subscription.speech {
            delta.subscribe(name);
        }
        self.interest_changed(kind, Some(name.to_owned()), timeout, now);
    }

    /// Ends a subscription by name. The resource is forgotten, unless a wildcard covers it.
    pub fn unsubscribe(&mut self, kind: ResourceType, name: &str) {
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return };
        if !subscription.interest.names.remove(name) {
            return;
        }
        let is_covered = subscription.interest.wildcard;
        match &mut subscription.speech {
            Speech::Delta(delta) => delta.unsubscribe(name),
            Speech::Sotw(sotw) if !is_covered => sotw.forget(name),
            Speech::Sotw(_) => {}
        }
        let name = name.to_owned();
        if !is_covered {
            self.lifetimes.clear(&(kind, name.clone()));
        }
        self.fetches.clear(&(kind, Some(name)));
        self.due(kind, None);
    }

    /// Ends a wildcard subscription. All resources are forgotten that no name covers. A state-of-the-world control plane
    /// cannot be told unless names are subscribed to as well.
    pub fn unsubscribe_wildcard(&mut self, kind: ResourceType) {
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return };
        if !std::mem::replace(&mut subscription.interest.wildcard, false) {
            return;
        }
        match &mut subscription.speech {
            Speech::Delta(delta) => delta.unsubscribe("*"),
            Speech::Sotw(sotw) => sotw.retain(&subscription.interest.names),
        }
        self.fetches.clear(&(kind, None));
        let names = &self.subscriptions[&kind].interest.names;
        self.lifetimes.clear_range((kind, String::new()), |(k, _)| *k == kind, |(_, name)| !names.contains(name));
        self.due(kind, None);
    }

    /// Holds back the requests of a kind, so that one request carries what several changes lead to. Envoy pauses EDS
    /// and SDS while it takes clusters, RDS while it takes listeners. Each pause needs a [`resume`](Self::resume).
    pub fn pause(&mut self, kind: ResourceType) {
        self.subscription(kind).paused += 1;
    }

    /// Ends a pause.
    pub fn resume(&mut self, kind: ResourceType) {
        let subscription = self.subscription(kind);
        subscription.paused = subscription.paused.saturating_sub(1);
    }

    // ---- the stream

    /// The stream that [`Event::Connect`] asked for is open.
    pub fn on_stream_open(&mut self, _now: Instant) {
        self.stream = Stream::Open;
        self.generation += 1;
        self.first_on_stream = true;
        self.queue.clear();
        for kind in &self.order {
            let Some(subscription) = self.subscriptions.get_mut(kind) else { continue };
            match &mut subscription.speech {
                Speech::Sotw(sotw) => sotw.open(),
                Speech::Delta(delta) => delta.open(),
            }
            if !subscription.interest.is_empty() {
                self.queue.push_back(Due { kind: *kind, answer: None });
            }
        }
    }

    /// The stream is closed, or could not be opened. Returns after what time there will be an [`Event::Connect`].
    pub fn on_stream_closed(&mut self, now: Instant) -> Duration {
        let delay = self.backoff.next();
        self.stream = Stream::Down(Some(now + delay));
        self.queue.clear();
        // The next stream brings all of it again. What is with the proxy stays there.
        self.subscriptions.values_mut().for_each(|s| s.waiting.clear());
        delay
    }

    /// A message came on the stream.
    ///
    /// # Errors
    /// It is no response; the stream has to be reset.
    pub fn on_message(&mut self, message: Bytes, now: Instant) -> Result<(), prost::DecodeError> {
        match self.options.protocol {
            Protocol::StateOfTheWorld => self.on_response(discovery::DiscoveryResponse::decode(message)?, now),
            Protocol::Delta => self.on_delta_response(discovery::DeltaDiscoveryResponse::decode(message)?, now),
        }
        Ok(())
    }

    /// A state-of-the-world response came.
    pub fn on_response(&mut self, response: discovery::DiscoveryResponse, now: Instant) {
        self.received(response.type_url.clone(), Response::Sotw(response), now);
    }

    /// A delta response came.
    pub fn on_delta_response(&mut self, response: discovery::DeltaDiscoveryResponse, now: Instant) {
        self.received(response.type_url.clone(), Response::Delta(response), now);
    }

    /// The next request, if the stream can take one.
    pub fn poll_request(&mut self, now: Instant) -> Option<Request> {
        if self.stream != Stream::Open {
            return None;
        }
        let mut at = 0;
        while let Some(due) = self.queue.get(at) {
            if self.subscriptions.get(&due.kind).is_none_or(|s| s.is_held(self.generation)) {
                at += 1;
                continue;
            }
            if self.rate_limit.as_mut().is_some_and(|limit| !limit.has_token(now)) {
                return None;
            }
            let Due { kind, answer } = self.queue.remove(at)?;
            let Some(Subscription { interest, speech, .. }) = self.subscriptions.get_mut(&kind) else { continue };
            let request = match speech {
                Speech::Sotw(sotw) => sotw.request(interest, answer).map(Request::StateOfTheWorld),
                Speech::Delta(delta) => delta.request(answer).map(Request::Delta),
            };
            if let Some(request) = request {
                if let Some(limit) = &mut self.rate_limit {
                    limit.take();
                }
                return Some(self.addressed(kind, request));
            }
        }
        None
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`on_timeout`](Self::on_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let retry = match self.stream {
            Stream::Down(at) => at,
            Stream::Connecting | Stream::Open => None,
        };
        let limit = self.rate_limit.as_ref().filter(|_| !self.queue.is_empty()).and_then(RateLimit::ready_at);
        [retry, limit, self.fetches.earliest(), self.lifetimes.earliest()].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn on_timeout(&mut self, now: Instant) {
        if matches!(self.stream, Stream::Down(Some(at)) if at <= now) {
            self.stream = Stream::Connecting;
            self.events.push_back(Event::Connect);
        }
        while let Some((resource_type, name)) = self.fetches.pop(now) {
            self.events.push_back(Event::FetchTimeout { resource_type, name });
        }
        let mut expired: BTreeMap<ResourceType, Vec<String>> = BTreeMap::new();
        while let Some((kind, name)) = self.lifetimes.pop(now) {
            match self.subscriptions.get_mut(&kind).map(|s| &mut s.speech) {
                Some(Speech::Sotw(sotw)) => sotw.forget(&name),
                Some(Speech::Delta(delta)) => delta.forget(&name),
                None => {}
            }
            expired.entry(kind).or_default().push(name);
        }
        self.events.extend(expired.into_iter().map(|(resource_type, names)| Event::Expired { resource_type, names }));
    }

    // ---- what the proxy makes of an update

    /// Everything in the update is compiled: the ACK goes out. False if no such update waits for an answer.
    pub fn accept(&mut self, kind: ResourceType, nonce: &str, now: Instant) -> bool {
        self.answered(kind, nonce, Rejection::Resources(Vec::new()), now)
    }

    /// Something in the update is not taken: the NACK goes out and names it. False if no such update waits for an
    /// answer.
    pub fn reject(&mut self, kind: ResourceType, nonce: &str, rejection: Rejection, now: Instant) -> bool {
        self.answered(kind, nonce, rejection, now)
    }

    fn answered(&mut self, kind: ResourceType, nonce: &str, rejection: Rejection, now: Instant) -> bool {
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return false };
        let Some(outstanding) = subscription.outstanding.take_if(|o| o.update.nonce == nonce) else { return false };
        self.finish(kind, outstanding, rejection, now);
        while let Some(subscription) = self.subscriptions.get_mut(&kind).filter(|s| s.outstanding.is_none())
            && let Some(response) = subscription.waiting.pop_front()
        {
            self.process(kind, response, now);
        }
        true
    }

    fn finish(&mut self, kind: ResourceType, outstanding: Outstanding, rejection: Rejection, now: Instant) {
        let Outstanding { update, heartbeats, generation } = outstanding;
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return };
        let error = match rejection {
            Rejection::Whole(message) => {
                // As in Envoy, everything that waits for this kind learns that waiting is over.
                self.fetches.clear_range((kind, None), |(k, _)| *k == kind, |_| true);
                Some(truncated(message))
            }
            Rejection::Resources(by_proxy) => {
                let all: Vec<Refused> = update.refused.iter().cloned().chain(by_proxy.iter().cloned()).collect();
                let refused: HashSet<&str> = by_proxy.iter().map(|r| r.name.as_str()).collect();
                match &mut subscription.speech {
                    Speech::Sotw(sotw) => sotw.commit(&update, &refused, all.is_empty()),
                    Speech::Delta(delta) => delta.commit(&update, &refused),
                }
                for resource in &update.resources {
                    self.fetches.clear(&(kind, Some(resource.name.clone())));
                    if refused.contains(resource.name.as_str()) {
                        continue;
                    }
                    let key = (kind, resource.name.clone());
                    match resource.ttl {
                        Some(ttl) => self.lifetimes.set(key, now + ttl),
                        None => self.lifetimes.clear(&key),
                    }
                }
                for name in &update.removed {
                    self.fetches.clear(&(kind, Some(name.clone())));
                    self.lifetimes.clear(&(kind, name.clone()));
                }
                for (name, ttl) in heartbeats {
                    self.lifetimes.set((kind, name), now + ttl);
                }
                self.fetches.clear(&(kind, None));
                (!all.is_empty()).then(|| nack_message(kind, &all))
            }
        };
        let is_answered = generation == self.generation;
        let version = match &mut subscription.speech {
            Speech::Sotw(sotw) => {
                if !is_answered {
                    sotw.taken_from_earlier_stream();
                }
                sotw.version.clone()
            }
            Speech::Delta(_) => String::new(),
        };
        if is_answered {
            self.due(kind, Some(Answer { nonce: update.nonce, version, error }));
        }
    }

    // ---- inside

    fn subscription(&mut self, kind: ResourceType) -> &mut Subscription {
        let protocol = self.options.protocol;
        self.subscriptions.entry(kind).or_insert_with(|| {
            self.order.push(kind);
            Subscription {
                interest: Interest::default(),
                speech: match protocol {
                    Protocol::StateOfTheWorld => Speech::Sotw(Sotw::new()),
                    Protocol::Delta => Speech::Delta(Delta::new()),
                },
                paused: 0,
                outstanding: None,
                waiting: VecDeque::new(),
            }
        })
    }

    fn interest_changed(&mut self, kind: ResourceType, name: Option<String>, timeout: Option<Duration>, now: Instant) {
        if let Some(timeout) = timeout.filter(|t| !t.is_zero()) {
            self.fetches.set((kind, name), now + timeout);
        }
        self.due(kind, None);
    }

    fn due(&mut self, kind: ResourceType, answer: Option<Answer>) {
        if self.stream != Stream::Open {
            return;
        }
        let is_queued = || self.queue.iter().any(|due| due.kind == kind && due.answer.is_none());
        if answer.is_some() || !is_queued() {
            self.queue.push_back(Due { kind, answer });
        }
    }

    fn received(&mut self, type_url: String, response: Response, now: Instant) {
        self.backoff.reset();
        let kind = ResourceType::of_url(&type_url);
        let subscription = kind.and_then(|kind| Some((kind, self.subscriptions.get_mut(&kind)?)));
        match subscription {
            None => self.events.push_back(Event::Ignored { type_url }),
            Some((_, subscription)) if subscription.outstanding.is_some() => subscription.waiting.push_back(response),
            Some((kind, _)) => self.process(kind, response, now),
        }
    }

    fn process(&mut self, kind: ResourceType, response: Response, now: Instant) {
        let generation = self.generation;
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return };
        let (read, old_version) = match (&mut subscription.speech, response) {
            (Speech::Sotw(sotw), Response::Sotw(response)) => {
                let read = sotw.read(kind, &subscription.interest, response);
                (read, sotw.version.clone())
            }
            (Speech::Delta(delta), Response::Delta(response)) => (delta.read(kind, response), String::new()),
            // The proxy passed a response of the protocol that it did not choose.
            (Speech::Sotw(_), Response::Delta(_)) | (Speech::Delta(_), Response::Sotw(_)) => return,
        };
        match read {
            Read::Silent => {}
            Read::Unwanted { nonce } => {
                self.due(kind, Some(Answer { nonce, version: old_version, error: None }));
            }
            Read::Malformed { update, message } => {
                self.fetches.clear_range((kind, None), |(k, _)| *k == kind, |_| true);
                let (version, nonce) = (update.version, update.nonce);
                self.events.push_back(Event::Rejected { resource_type: kind, version, message: message.clone() });
                let error = Some(truncated(message));
                self.due(kind, Some(Answer { nonce, version: old_version, error }));
            }
            Read::Update { update, heartbeats, for_proxy: false } => {
                if kind == ResourceType::Secret && heartbeats.is_empty() {
                    self.events.push_back(Event::Unmatched);
                }
                let outstanding = Outstanding { update, heartbeats, generation };
                self.finish(kind, outstanding, Rejection::Resources(Vec::new()), now);
            }
            Read::Update { update, heartbeats, for_proxy: true } => {
                self.events.push_back(Event::Update(update.clone()));
                subscription.outstanding = Some(Outstanding { update, heartbeats, generation });
            }
        }
    }

    /// Puts the type on a request, and the node where it belongs.
    fn addressed(&mut self, kind: ResourceType, mut request: Request) -> Request {
        let is_first = std::mem::replace(&mut self.first_on_stream, false);
        let node = (is_first || !self.options.node_on_first_message_only).then(|| self.options.node.clone());
        let (to_type, to_node) = match &mut request {
            Request::StateOfTheWorld(request) => (&mut request.type_url, &mut request.node),
            Request::Delta(request) => (&mut request.type_url, &mut request.node),
        };
        kind.url().clone_into(to_type);
        *to_node = node;
        request
    }
}
