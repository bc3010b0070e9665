//! Both protocols against a model of a control plane, with random changes, refusals and broken streams.
//!
//! The seed of a failing run is in its message.

use super::*;
use ResourceType::{Cluster, Endpoint};
use std::collections::{BTreeMap, BTreeSet};

type Versions = BTreeMap<String, u32>;

/// A control plane with clusters (a wildcard) and endpoints (by name), and what it knows of its one client.
#[derive(Default)]
struct Plane {
    resources: BTreeMap<ResourceType, Versions>,
    counter: u32,
    /// By kind, of this stream: names asked for, what was sent, the nonces that wait for an answer.
    streams: BTreeMap<ResourceType, Heard>,
}

#[derive(Default)]
struct Heard {
    wildcard: bool,
    names: BTreeSet<String>,
    sent: Versions,
    told: bool,
    unanswered: Vec<String>,
}

impl Plane {
    fn wanted(&self, kind: ResourceType) -> Versions {
        let Some(heard) = self.streams.get(&kind) else { return Versions::new() };
        let all = self.resources.get(&kind).cloned().unwrap_or_default();
        all.into_iter().filter(|(name, _)| heard.wildcard || heard.names.contains(name)).collect()
    }

    fn hear(&mut self, request: &Request) -> ResourceType {
        let (url, nonce) = match request {
            Request::StateOfTheWorld(r) => (&r.type_url, &r.response_nonce),
            Request::Delta(r) => (&r.type_url, &r.response_nonce),
        };
        let kind = ResourceType::of_url(url).expect("a known kind");
        let is_first = !self.streams.contains_key(&kind);
        let heard = self.streams.entry(kind).or_default();
        match request {
            Request::StateOfTheWorld(r) => {
                heard.wildcard = r.resource_names.is_empty() && kind == Cluster;
                heard.names = r.resource_names.iter().cloned().collect();
                // A repeated nonce is a change of names; a new one answers. An empty response that comes when nothing
                // is subscribed to is not answered.
                if let Some(at) = heard.unanswered.iter().position(|n| n == nonce) {
                    heard.unanswered.drain(..=at);
                }
            }
            Request::Delta(r) => {
                heard.wildcard |= is_first && r.resource_names_subscribe.is_empty();
                heard.names.extend(r.resource_names_subscribe.iter().cloned());
                for name in &r.resource_names_unsubscribe {
                    heard.names.remove(name);
                    heard.sent.remove(name);
                }
                for (name, version) in &r.initial_resource_versions {
                    assert!(is_first);
                    heard.sent.insert(name.clone(), version.parse().expect("a version of ours"));
                }
                for name in r.resource_names_subscribe.iter().filter(|_| !is_first) {
                    heard.sent.remove(name);
                }
                if !nonce.is_empty() {
                    assert_eq!(heard.unanswered.remove(0), *nonce, "answers come in order, each once");
                }
            }
        }
        kind
    }

    /// Sends what the client does not have, if anything.
    fn push(&mut self, kind: ResourceType, client: &mut Client) {
        let wanted = self.wanted(kind);
        let Some(heard) = self.streams.get_mut(&kind) else { return };
        let is_delta = client.engine.method().is_some_and(|m| m.contains("Delta"));
        // The state of the world is told to every new stream, also if there is nothing.
        let is_told = std::mem::replace(&mut heard.told, true);
        if heard.sent == wanted && (is_told || is_delta || !heard.wildcard) {
            return;
        }
        self.counter += 1;
        let nonce = format!("n{}", self.counter);
        heard.unanswered.push(nonce.clone());
        let gone = heard.sent.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        let new = wanted.iter().filter(|(name, version)| heard.sent.get(*name) != Some(version));
        if is_delta {
            let response = discovery::DeltaDiscoveryResponse {
                resources: new.map(|(n, v)| delta::resource(kind, n, &v.to_string())).collect(),
                removed_resources: gone,
                type_url: kind.url().into(),
                nonce,
                ..Default::default()
            };
            client.engine.on_delta_response(response, client.now);
        } else {
            let response = discovery::DiscoveryResponse {
                version_info: self.counter.to_string(),
                resources: wanted.iter().map(|(n, v)| any(kind, n, &v.to_string())).collect(),
                type_url: kind.url().into(),
                nonce,
                ..Default::default()
            };
            client.engine.on_response(response, client.now);
        }
        heard.sent = wanted;
    }
}

/// The version that [`any`] wrote into a resource.
fn version_of(resource: &Resource) -> u32 {
    let body = resource.body.as_ref().expect("a body");
    crate::wire::Records(body)
        .find_map(|record| match record {
            Ok((28, crate::wire::Wire::Bytes(version))) => std::str::from_utf8(version).ok()?.parse().ok(),
            _ => None,
        })
        .expect("a version")
}

/// What the proxy does with an update: takes what is good. Every seventh version is bad.
fn compile(client: &mut Client, proxy: &mut BTreeMap<ResourceType, Versions>, update: &Update) {
    let has = proxy.entry(update.resource_type).or_default();
    let mut refused = Vec::new();
    for resource in &update.resources {
        let version = version_of(resource);
        if version.is_multiple_of(7) {
            refused.push(resource.name.as_str());
        } else {
            has.insert(resource.name.clone(), version);
        }
    }
    has.retain(|name, _| !update.removed.contains(name));
    client.reject(update, &refused);
}

fn run(protocol: Protocol, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut client = Client::new(protocol);
    let mut plane = Plane::default();
    let mut proxy: BTreeMap<ResourceType, Versions> = BTreeMap::new();
    let mut interest = BTreeSet::new();
    let mut updates = Vec::new();
    let names = ["a", "b", "c", "d"];
    let mut version = 0;
    client.want_all(Cluster);
    client.open();
    for step in 0..120 {
        // The last rounds change nothing, so that everything comes to rest.
        let name: &str = names[random.usize(0..names.len())];
        let kind = if random.bool() { Cluster } else { Endpoint };
        match if step < 100 { random.u32(0..12) } else { 99 } {
            0..3 => {
                version += 1;
                plane.resources.entry(kind).or_default().insert(name.to_owned(), version);
            }
            3 if kind == Cluster => drop(plane.resources.entry(kind).or_default().remove(name)),
            4 | 5 => {
                client.want(Endpoint, &[name]);
                interest.insert(name.to_owned());
            }
            6 => {
                client.engine.unsubscribe(Endpoint, name);
                proxy.entry(Endpoint).or_default().remove(name);
                interest.remove(name);
            }
            7 => {
                client.engine.on_stream_closed(client.now);
                plane.streams.clear();
                client.open();
            }
            8 => client.engine.pause(kind),
            9 => client.engine.resume(kind),
            _ => {
                if step >= 100 {
                    for kind in [Cluster, Endpoint] {
                        (0..100).for_each(|_| client.engine.resume(kind));
                    }
                }
                updates.extend(client.events());
                for event in updates.drain(..) {
                    let Event::Update(update) = event else { panic!("seed {seed}: {event:?}") };
                    // What was unsubscribed from meanwhile is of no use to the proxy.
                    let kept: Vec<Resource> = update.resources.clone();
                    compile(&mut client, &mut proxy, &update);
                    for resource in
                        kept.iter().filter(|r| update.resource_type == Endpoint && !interest.contains(&r.name))
                    {
                        proxy.entry(Endpoint).or_default().remove(&resource.name);
                    }
                }
            }
        }
        while let Some(request) = client.engine.poll_request(client.now) {
            let kind = plane.hear(&request);
            plane.push(kind, &mut client);
        }
        for kind in [Cluster, Endpoint] {
            if random.bool() || step >= 100 {
                plane.push(kind, &mut client);
            }
        }
    }
    assert_eq!((client.engine.unanswered(), client.engine.pending_requests()), (0, 0), "seed {seed}");
    for kind in [Cluster, Endpoint] {
        let heard = plane.streams.get(&kind);
        let is_answered = |h: &Heard| h.unanswered.is_empty() || (h.names.is_empty() && !h.wildcard);
        assert!(heard.is_none_or(is_answered), "seed {seed}: {kind}");
        let has = proxy.remove(&kind).unwrap_or_default();
        let wanted = plane.resources.get(&kind).cloned().unwrap_or_default();
        let wanted: Versions = wanted.into_iter().filter(|(n, _)| kind == Cluster || interest.contains(n)).collect();
        let good = wanted.iter().filter(|(_, v)| !v.is_multiple_of(7));
        for (name, version) in good {
            assert_eq!(has.get(name), Some(version), "seed {seed}: {kind} {name}");
        }
        assert!(has.keys().all(|name| wanted.contains_key(name)), "seed {seed}: {has:?}, wanted {wanted:?}");
    }
}

#[test]
fn the_proxy_ends_up_with_what_the_control_plane_has() {
    for seed in 0..300 {
        run(Protocol::StateOfTheWorld, seed);
        run(Protocol::Delta, seed);
    }
}
