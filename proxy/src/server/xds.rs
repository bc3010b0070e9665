//! Configuration that is streamed: each source has an engine, and a task that carries its requests and responses.
//!
//! What resources refer to is subscribed to ([`Xds::follow`]); what comes is compiled by the store and only then
//! accepted. Sources are the ADS stream, streams of one kind, and files.

mod file;
mod rest;
mod stream;

use super::control::Control;
use crate::{
    observe::stats::{ControlPlaneStats, SubscriptionStats},
    snapshot::Store,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;
use weft_config::{
    Problem,
    cluster::Discovery,
    config_source::{ApiConfigSource, ConfigSource, Specifier},
};
use weft_control_api::{
    Protocol, ResourceType,
    client::{self, BackoffOptions, Engine, Event, RateLimitOptions, Refused, Rejection, Service, Update},
    envoy::service::runtime::v3 as service,
};

/// One source of configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Ads,
    /// The kind, and how the stream is to be spoken: whoever asks for the same shares it.
    Stream(ResourceType, String),
    Rest(ResourceType, String),
    File(ResourceType, String),
}

struct Source {
    key: Key,
    engine: RefCell<Engine>,
    /// Something was subscribed to.
    changed: Notify,
    control_plane: Option<Arc<ControlPlaneStats>>,
}

/// All sources and what is subscribed to at them.
#[derive(Default)]
pub struct Xds {
    sources: RefCell<BTreeMap<Key, Rc<Source>>>,
    /// By kind and name, the source.
    subscribed: RefCell<BTreeMap<(ResourceType, String), Key>>,
    subscription_stats: RefCell<BTreeMap<String, Arc<SubscriptionStats>>>,
    /// Wildcards that got a first answer, or waited long enough.
    answered: RefCell<BTreeSet<ResourceType>>,
    pub progress: Notify,
}

impl Xds {
    /// Subscribes to all resources of a kind.
    pub fn subscribe_all(&self, control: &Rc<Control>, kind: ResourceType, source: &ConfigSource) {
        let Some(from) = self.source(control, kind, source) else { return };
        from.engine.borrow_mut().subscribe_wildcard(kind, source.initial_fetch_timeout, Instant::now());
        self.stats(control, kind, "").update_attempt.inc();
        from.changed.notify_one();
    }

    /// True once a kind's wildcard subscription was answered.
    pub fn has_answered(&self, kind: ResourceType) -> bool {
        self.answered.borrow().contains(&kind)
    }

    /// Subscribes to what the store's resources refer to, and no longer to what nothing refers to.
    pub fn follow(&self, control: &Rc<Control>) {
        let mut wanted: BTreeMap<(ResourceType, String), ConfigSource> = BTreeMap::new();
        {
            for (name, source) in control.runtime.borrow().rtds() {
                wanted.insert((ResourceType::Runtime, name.to_owned()), source.clone());
            }
            let store = control.store.borrow();
            for (name, source) in store.wanted_routes() {
                wanted.insert((ResourceType::RouteConfiguration, name), source);
            }
            for cluster in store.all_clusters() {
                if let Discovery::Eds(eds) = &cluster.info.config.discovery {
                    wanted.insert((ResourceType::Endpoint, eds.service_name.clone()), eds.config_source.clone());
                }
            }
        }
        let gone: Vec<_> = {
            let subscribed = self.subscribed.borrow();
            subscribed
                .iter()
                .filter(|(what, _)| !wanted.contains_key(what))
                .map(|(w, k)| (w.clone(), k.clone()))
                .collect()
        };
        for ((kind, name), key) in gone {
            self.subscribed.borrow_mut().remove(&(kind, name.clone()));
            if let Some(source) = self.sources.borrow().get(&key) {
                source.engine.borrow_mut().unsubscribe(kind, &name);
                source.changed.notify_one();
            }
            control.store.borrow_mut().forget(kind, &name);
        }
        for ((kind, name), source) in wanted {
            if self.subscribed.borrow().contains_key(&(kind, name.clone())) {
                continue;
            }
            let Some(from) = self.source(control, kind, &source) else { continue };
            self.subscribed.borrow_mut().insert((kind, name.clone()), from.key.clone());
            self.stats(control, kind, &name).update_attempt.inc();
            from.engine.borrow_mut().subscribe(kind, &name, source.initial_fetch_timeout, Instant::now());
            from.changed.notify_one();
        }
    }

    /// The source, started if it is new.
    fn source(&self, control: &Rc<Control>, kind: ResourceType, config: &ConfigSource) -> Option<Rc<Source>> {
        let dynamic = &control.boot.bootstrap.dynamic_resources;
        let (key, api) = match &config.specifier {
            Specifier::Api(api) if !api.aggregated => (Key::Stream(kind, format!("{api:?}")), Some(api)),
            Specifier::Ads | Specifier::SelfSource | Specifier::Api(_) => (Key::Ads, Some(dynamic.ads.as_ref()?)),
            Specifier::Rest(rest) => (Key::Rest(kind, format!("{rest:?}")), None),
            Specifier::Path(path) => (Key::File(kind, path.path.clone()), None),
        };
        if let Some(source) = self.sources.borrow().get(&key) {
            return Some(source.clone());
        }
        let service = if key == Key::Ads { Service::Aggregated } else { Service::Single(kind) };
        let source = Rc::new(Source {
            engine: RefCell::new(Engine::new(options(control, service, api))),
            changed: Notify::new(),
            control_plane: api.is_some().then(|| control.registry.attach("control_plane")),
            key: key.clone(),
        });
        self.sources.borrow_mut().insert(key, source.clone());
        let (control, started) = (control.clone(), source.clone());
        match (api, &config.specifier) {
            (Some(api), _) => drop(tokio::task::spawn_local(stream::run(control, started, api.clone()))),
            (None, Specifier::Rest(rest)) => {
                drop(tokio::task::spawn_local(rest::run(control, started, kind, rest.clone())))
            }
            (None, Specifier::Path(path)) => {
                drop(tokio::task::spawn_local(file::run(control, started, kind, path.clone())))
            }
            (None, _) => {}
        }
        Some(source)
    }

    /// The stats of one subscription.
    fn stats(&self, control: &Control, kind: ResourceType, name: &str) -> Arc<SubscriptionStats> {
        let prefix = match kind {
            ResourceType::Cluster => "cluster_manager.cds".into(),
            ResourceType::Listener => "listener_manager.lds".into(),
            ResourceType::Runtime => "runtime".into(),
            ResourceType::Endpoint => {
                let store = control.store.borrow();
                store.stat_prefix_of_service(name).map_or_else(|| format!("cluster.{name}"), str::to_owned)
            }
            ResourceType::RouteConfiguration => {
                let prefix = control.store.borrow().http_prefix_of_routes(name).to_owned();
                format!("http.{prefix}.rds.{}", name.replace(':', "_"))
            }
            other => format!("xds.{other:?}"),
        };
        self.subscription_stats
            .borrow_mut()
            .entry(prefix.clone())
            .or_insert_with(|| control.registry.attach(&prefix))
            .clone()
    }
}

fn options(control: &Control, service: Service, api: Option<&ApiConfigSource>) -> client::Options {
    let reconnect = api.map_or(weft_config::grpc_service::DEFAULT_RECONNECT, |api| api.service.reconnect);
    client::Options {
        service,
        protocol: if api.is_some_and(|api| api.delta) { Protocol::Delta } else { Protocol::StateOfTheWorld },
        node: super::view::node_proto(&control.boot.bootstrap.node),
        node_on_first_message_only: api.is_some_and(|api| api.set_node_on_first_message_only),
        backoff: BackoffOptions { base: reconnect.base, max: reconnect.max },
        rate_limit: api
            .and_then(|api| api.rate_limit)
            .map(|rate| RateLimitOptions { max_tokens: rate.max_tokens, fill_rate: rate.fill_rate }),
        seed: fastrand::u64(..),
    }
}

fn count_failure(control: &Rc<Control>, source: &Source) {
    let kinds: BTreeSet<(ResourceType, String)> = {
        let subscribed = control.xds.subscribed.borrow();
        subscribed
            .iter()
            .filter(|(_, key)| **key == source.key)
            .map(|((kind, name), _)| (*kind, name.clone()))
            .collect()
    };
    let dynamic = &control.boot.bootstrap.dynamic_resources;
    let is_ours = |kind| match &source.key {
        Key::Ads => true,
        Key::Stream(of, _) | Key::Rest(of, _) | Key::File(of, _) => *of == kind,
    };
    let wildcards = [(ResourceType::Cluster, dynamic.cds.is_some()), (ResourceType::Listener, dynamic.lds.is_some())];
    let wildcards =
        wildcards.into_iter().filter(|(kind, is)| *is && is_ours(*kind)).map(|(kind, _)| (kind, String::new()));
    for (kind, name) in kinds.into_iter().chain(wildcards) {
        control.xds.stats(control, kind, &name).update_failure.inc();
    }
}

fn handle(control: &Rc<Control>, source: &Rc<Source>, event: Event) {
    let now = Instant::now();
    match event {
        Event::Connect => {}
        Event::Update(update) => {
            let (kind, nonce) = (update.resource_type, update.nonce.clone());
            let refused = apply(control, &update);
            let mut engine = source.engine.borrow_mut();
            if refused.is_empty() && update.refused.is_empty() {
                engine.accept(kind, &nonce, now);
            } else {
                engine.reject(kind, &nonce, Rejection::Resources(refused), now);
            }
            drop(engine);
            if let Some(stats) = &source.control_plane {
                stats.identifier.set(&update.control_plane);
            }
            control.xds.answered.borrow_mut().insert(kind);
            control.settle();
        }
        Event::Rejected { resource_type, message, .. } => {
            tracing::warn!(target: "config", "{} update rejected: {message}", resource_type.noun());
            control.xds.stats(control, resource_type, "").update_rejected.inc();
            // An answer that is no good is one all the same: nobody waits for another before going on.
            control.xds.answered.borrow_mut().insert(resource_type);
            control.settle();
        }
        Event::Ignored { type_url } => {
            tracing::warn!(target: "config", "ignoring a response of type {type_url}, which nobody asked for")
        }
        Event::Expired { resource_type, names } => {
            names.iter().for_each(|name| remove(control, resource_type, name));
            control.settle();
        }
        Event::FetchTimeout { resource_type, name } => {
            let stats = control.xds.stats(control, resource_type, name.as_deref().unwrap_or_default());
            stats.init_fetch_timeout.inc();
            match name {
                Some(name) if resource_type == ResourceType::Runtime => {
                    control.runtime.borrow_mut().set_rtds(&name, None);
                }
                Some(name) => control.store.borrow_mut().fetch_timed_out(resource_type, &name),
                None => drop(control.xds.answered.borrow_mut().insert(resource_type)),
            }
            control.settle();
        }
    }
}

/// Puts an update into the store; gives what was refused, with every reason.
fn apply(control: &Rc<Control>, update: &Update) -> Vec<Refused> {
    let kind = update.resource_type;
    let mut refused = Vec::new();
    let (mut added, mut modified) = (0, 0);
    for resource in &update.resources {
        let Some(body) = &resource.body else { continue };
        let mut store = control.store.borrow_mut();
        let is_known = store.has(kind, &resource.name);
        let set = match kind {
            ResourceType::Runtime => set_runtime(control, &store, body),
            _ => store.set(kind, &resource.name, body, &resource.version),
        };
        match set {
            Ok(true) if is_known => modified += 1,
            Ok(true) => added += 1,
            Ok(false) => {}
            Err(problems) => {
                let message = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                tracing::warn!(target: "config", "{} {:?} rejected: {message}", kind.noun(), resource.name);
                store.note_failure(kind, &resource.name, body, &update.version, &message);
                refused.push(Refused { name: resource.name.clone(), message });
            }
        }
    }
    update.removed.iter().for_each(|name| remove(control, kind, name));
    if refused.is_empty() && update.refused.is_empty() {
        control.store.borrow_mut().set_version(kind, &update.version);
    }
    let names: Vec<&str> = match kind {
        ResourceType::Cluster | ResourceType::Listener => vec![""],
        _ => update.resources.iter().map(|r| r.name.as_str()).collect(),
    };
    for name in names {
        let stats = control.xds.stats(control, kind, name);
        let bad = !update.refused.is_empty() || !refused.is_empty();
        if bad { &stats.update_rejected } else { &stats.update_success }.inc();
        stats.update_attempt.inc();
        if !bad {
            stats.update_time.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64);
            stats.version.set(xxhash_rust::xxh64::xxh64(update.version.as_bytes(), 0));
            stats.version_text.set(&update.version);
        }
    }
    control.stats.server.dynamic_unknown_fields.add(control.store.borrow().unknown_fields.take());
    control.count_changes(kind, added, modified, update.removed.len() as u64);
    refused
}

/// Takes a runtime layer. True: it counts as a change, whatever it holds.
fn set_runtime(control: &Control, store: &Store, bytes: &[u8]) -> Result<bool, Vec<Problem>> {
    let (proto, mut cx) = store.read(bytes)?;
    let service::Runtime { name, layer } = proto;
    let values = cx.field("layer", |cx| weft_config::runtime::flatten(layer.unwrap_or_default(), cx));
    let (values, _) = cx.finish(Some(values))?;
    control.runtime.borrow_mut().set_rtds(&name, Some(values));
    Ok(true)
}

fn remove(control: &Control, kind: ResourceType, name: &str) {
    match kind {
        ResourceType::Runtime => control.runtime.borrow_mut().set_rtds(name, Some(Vec::new())),
        _ => control.store.borrow_mut().remove(kind, name),
    }
}
