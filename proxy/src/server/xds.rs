//! Configuration that is streamed: each source has an engine, and a task that carries its requests and responses.
//!
//! What resources refer to is subscribed to ([`Xds::follow`]); what comes is compiled by the store and only then
//! accepted. Sources are the ADS stream, streams of one kind, and files.

mod extensions;
mod file;
mod rest;
mod scopes;
mod stream;
pub mod workload;

use super::control::Control;
use crate::{
    observe::stats::{ControlPlaneStats, ExtensionStats, ScopeStats, SecretStats, SubscriptionStats, VirtualHostStats},
    snapshot::Store,
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::Notify, task::JoinHandle};
use weft_config::{
    Problem,
    config_source::{ApiConfigSource, ConfigSource, Specifier},
    tls::SecretRef,
};
use weft_control_api::{
    Protocol, ResourceType,
    client::{self, BackoffOptions, Engine, Event, RateLimitOptions, Refused, Rejection, Service, Update},
    envoy::service::runtime::v3 as service,
    workload::CLUSTER,
};

/// One source of configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Ads,
    /// The kind, and how the stream is to be spoken: whoever asks for the same shares it.
    Stream(ResourceType, String),
    Rest(ResourceType, String),
    File(ResourceType, String),
    /// The SPIFFE Workload API, which tells all at once.
    Workload,
}

impl Key {
    /// The key of a source. Each secret has a source of its own, but for the aggregated stream: node agents answer streams
    /// that ask for one.
    fn new(kind: ResourceType, name: &str, config: &ConfigSource) -> Self {
        let own = |shared: String| match kind {
            ResourceType::Secret => format!("{name} {config:?}"),
            _ => shared,
        };
        match &config.specifier {
            Specifier::Api(api) if is_workload_api(kind, api) => Self::Workload,
            Specifier::Api(api) if !api.aggregated => Self::Stream(kind, own(format!("{api:?}"))),
            Specifier::Ads | Specifier::SelfSource | Specifier::Api(_) => Self::Ads,
            Specifier::Rest(rest) => Self::Rest(kind, own(format!("{rest:?}"))),
            Specifier::Path(path) => Self::File(kind, own(path.path.clone())),
        }
    }
}

/// True if secrets are not asked for by SDS there.
fn is_workload_api(kind: ResourceType, api: &ApiConfigSource) -> bool {
    kind == ResourceType::Secret && !api.aggregated && api.service.cluster == CLUSTER
}

/// What is subscribed to: kind, name and, for secrets, which are told apart by it, the source.
type Subscription = (ResourceType, String, Option<Key>);

struct Source {
    key: Key,
    engine: RefCell<Engine>,
    /// Something was subscribed to.
    changed: Notify,
    control_plane: Option<Arc<ControlPlaneStats>>,
    task: Cell<Option<JoinHandle<()>>>,
}

/// All sources and what is subscribed to at them.
#[derive(Default)]
pub struct Xds {
    sources: RefCell<BTreeMap<Key, Rc<Source>>>,
    /// With the source; but for the hosts of clusters.
    subscribed: RefCell<BTreeMap<Subscription, Key>>,
    /// What workers asked for, with its source.
    demanded: RefCell<BTreeMap<Subscription, ConfigSource>>,
    /// Names under which hosts of clusters are known, with the source.
    endpoints: RefCell<BTreeMap<String, Rc<Source>>>,
    subscription_stats: RefCell<BTreeMap<String, Arc<SubscriptionStats>>>,
    /// By the name of the secret.
    secret_stats: RefCell<BTreeMap<String, Arc<SecretStats>>>,
    /// By their prefix.
    scope_stats: RefCell<BTreeMap<String, Arc<ScopeStats>>>,
    /// By their prefix.
    virtual_host_stats: RefCell<BTreeMap<String, Arc<VirtualHostStats>>>,
    /// By their prefix.
    extension_stats: RefCell<BTreeMap<String, Arc<ExtensionStats>>>,
    /// Wildcards that got a first answer, or waited long enough.
    answered: RefCell<BTreeSet<ResourceType>>,
    pub progress: Notify,
}

impl Xds {
    /// Subscribes to all resources of a kind.
    pub fn subscribe_all(&self, control: &Rc<Control>, kind: ResourceType, source: &ConfigSource) {
        let Some(from) = self.source(control, kind, "", source) else { return };
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
        extensions::count_conflicts(control);
        let mut wanted: BTreeMap<Subscription, ConfigSource> = BTreeMap::new();
        {
            for (name, source) in control.runtime.borrow().rtds() {
                wanted.insert((ResourceType::Runtime, name.to_owned(), None), source.clone());
            }
            let mut store = control.store.borrow_mut();
            for (name, source) in store.wanted_routes() {
                wanted.insert((ResourceType::RouteConfiguration, name, None), source);
            }
            if let Some(source) = store.wanted_scopes() {
                wanted.insert((ResourceType::ScopedRouteConfiguration, String::new(), None), source);
            }
            if let Some(source) = store.wanted_virtual_hosts() {
                // All that is there: none by its name.
                wanted.insert((ResourceType::VirtualHost, String::new(), None), source);
            }
            for (what, source) in &*self.demanded.borrow() {
                wanted.insert(what.clone(), source.clone());
            }
            for (name, (source, _)) in store.wanted_extensions() {
                wanted.insert((ResourceType::ExtensionConfig, name, None), source);
            }
            for SecretRef { name, source } in store.follow_secrets() {
                if let Some(source) = source {
                    let key = Key::new(ResourceType::Secret, &name, &source);
                    wanted.insert((ResourceType::Secret, name, Some(key)), source);
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
        for (what, key) in gone {
            self.subscribed.borrow_mut().remove(&what);
            let (kind, name, own) = what;
            if let Some(source) = self.sources.borrow().get(&key) {
                let mut engine = source.engine.borrow_mut();
                if name.is_empty() {
                    engine.unsubscribe_wildcard(kind)
                } else {
                    engine.unsubscribe(kind, &name)
                };
                drop(engine);
                source.changed.notify_one();
            }
            // A source that was for this alone ends with it.
            if own.is_some()
                && !matches!(key, Key::Ads | Key::Workload)
                && let Some(source) = self.sources.borrow_mut().remove(&key)
                && let Some(task) = source.task.take()
            {
                task.abort();
            }
            control.store.borrow_mut().forget(kind, &name);
        }
        for (what, source) in wanted {
            if self.subscribed.borrow().contains_key(&what) {
                continue;
            }
            let (kind, name, _) = &what;
            let Some(from) = self.subscribe(control, *kind, name, &source) else { continue };
            if *kind == ResourceType::ExtensionConfig {
                extensions::stats(control, name);
            }
            self.subscribed.borrow_mut().insert(what, from.key.clone());
        }
        self.follow_endpoints(control);
    }

    /// The same for the hosts of clusters, of which there may be thousands: where they changed.
    fn follow_endpoints(&self, control: &Rc<Control>) {
        let services = control.store.borrow_mut().clusters.take_touched_services();
        for service in services {
            let source = control.store.borrow().source_of_service(&service);
            let known = self.endpoints.borrow().get(&service).cloned();
            match (source, known) {
                (Some(source), None) => {
                    if let Some(from) = self.subscribe(control, ResourceType::Endpoint, &service, &source) {
                        self.endpoints.borrow_mut().insert(service, from);
                    }
                }
                (None, Some(from)) => {
                    self.endpoints.borrow_mut().remove(&service);
                    from.engine.borrow_mut().unsubscribe(ResourceType::Endpoint, &service);
                    from.changed.notify_one();
                    // What is shown of it went with the cluster.
                    self.subscription_stats.borrow_mut().remove(&format!("cluster.{service}"));
                    control.store.borrow_mut().forget(ResourceType::Endpoint, &service);
                }
                _ => {}
            }
        }
    }

    fn subscribe(
        &self,
        control: &Rc<Control>,
        kind: ResourceType,
        name: &str,
        source: &ConfigSource,
    ) -> Option<Rc<Source>> {
        let from = self.source(control, kind, name, source)?;
        self.stats(control, kind, name).update_attempt.inc();
        let (timeout, now) = (source.initial_fetch_timeout, Instant::now());
        let mut engine = from.engine.borrow_mut();
        if name.is_empty() {
            engine.subscribe_wildcard(kind, timeout, now)
        } else {
            // What is asked for on demand is given up by whoever waits for it.
            let is_demanded = self.demanded.borrow().contains_key(&(kind, name.to_owned(), None));
            engine.subscribe(kind, name, timeout.filter(|_| !is_demanded), now)
        };
        drop(engine);
        from.changed.notify_one();
        Some(from)
    }

    /// Asks for something that a worker needs; again, if it was asked for before.
    pub fn demand(&self, control: &Rc<Control>, kind: ResourceType, name: &str, source: &ConfigSource) {
        let what = (kind, name.to_owned(), None);
        self.demanded.borrow_mut().insert(what.clone(), source.clone());
        let key = self.subscribed.borrow().get(&what).cloned();
        match key.and_then(|key| self.sources.borrow().get(&key).cloned()) {
            None => self.follow(control),
            Some(source) => {
                let mut engine = source.engine.borrow_mut();
                engine.unsubscribe(kind, name);
                engine.subscribe(kind, name, None, Instant::now());
                drop(engine);
                source.changed.notify_one();
            }
        }
    }

    /// The source, started if it is new.
    fn source(
        &self,
        control: &Rc<Control>,
        kind: ResourceType,
        name: &str,
        config: &ConfigSource,
    ) -> Option<Rc<Source>> {
        let dynamic = &control.boot.bootstrap.dynamic_resources;
        let key = Key::new(kind, name, config);
        let api = match (&key, &config.specifier) {
            (Key::Ads, _) => Some(dynamic.ads.as_ref()?),
            (_, Specifier::Api(api)) => Some(&**api),
            _ => None,
        };
        if let Some(source) = self.sources.borrow().get(&key) {
            return Some(source.clone());
        }
        let service = if key == Key::Ads { Service::Aggregated } else { Service::Single(kind) };
        let stats_prefix = match (&key, kind) {
            (Key::Workload, _) => CLUSTER.to_owned(),
            (Key::Stream(..), ResourceType::Secret) => format!("{}.control_plane", secret_prefix(name)),
            _ => "control_plane".to_owned(),
        };
        let mut options = options(control, service, api);
        if key == Key::Workload {
            // It is no xDS: what it says goes in whole, however it was asked for.
            options.protocol = Protocol::StateOfTheWorld;
        }
        let source = Rc::new(Source {
            engine: RefCell::new(Engine::new(options)),
            changed: Notify::new(),
            control_plane: api.is_some().then(|| control.registry.attach(&stats_prefix)),
            key: key.clone(),
            task: Cell::new(None),
        });
        self.sources.borrow_mut().insert(key, source.clone());
        let (control, started) = (control.clone(), source.clone());
        source.task.set(match (api, &config.specifier) {
            (Some(api), _) if source.key == Key::Workload => {
                Some(tokio::task::spawn_local(workload::run(control, started, api.clone())))
            }
            (Some(api), _) => Some(tokio::task::spawn_local(stream::run(control, started, api.clone()))),
            (None, Specifier::Rest(rest)) => {
                Some(tokio::task::spawn_local(rest::run(control, started, kind, rest.clone())))
            }
            (None, Specifier::Path(path)) => {
                Some(tokio::task::spawn_local(file::run(control, started, kind, path.clone())))
            }
            (None, _) => None,
        });
        Some(source)
    }

    /// The references that a secret which came from `source` is for.
    fn secrets_of(&self, control: &Control, source: &Source, name: &str) -> Vec<SecretRef> {
        let store = control.store.borrow();
        let is_from = |reference: &SecretRef| {
            let key = reference.source.as_ref().map(|config| Key::new(ResourceType::Secret, &reference.name, config));
            reference.name == name && key.as_ref() == Some(&source.key)
        };
        store.secrets.streamed().map(|seat| &seat.reference).filter(|reference| is_from(reference)).cloned().collect()
    }

    /// Names of the secrets that are asked for at `source`.
    fn secret_names(&self, source: &Source) -> BTreeSet<String> {
        let subscribed = self.subscribed.borrow();
        let at = |((kind, ..), key): &(&Subscription, &Key)| *kind == ResourceType::Secret && **key == source.key;
        subscribed.iter().filter(at).map(|((_, name, _), _)| name.clone()).collect()
    }

    /// The stats of a secret's rotation.
    pub fn secret_stats(&self, control: &Control, name: &str) -> Arc<SecretStats> {
        let mut all = self.secret_stats.borrow_mut();
        all.entry(name.to_owned()).or_insert_with(|| control.registry.attach(&secret_prefix(name))).clone()
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
            ResourceType::Secret => {
                self.secret_stats(control, name);
                secret_prefix(name)
            }
            ResourceType::ExtensionConfig => control.store.borrow().stat_prefix_of_extension(name),
            ResourceType::ScopedRouteConfiguration => scopes::prefix(control),
            ResourceType::VirtualHost => {
                let prefix = control.store.borrow().stat_prefix_of_virtual_host(name);
                let mut all = self.virtual_host_stats.borrow_mut();
                all.entry(prefix.clone()).or_insert_with(|| control.registry.attach(&prefix));
                prefix
            }
        };
        self.subscription_stats
            .borrow_mut()
            .entry(prefix.clone())
            .or_insert_with(|| control.registry.attach(&prefix))
            .clone()
    }
}

/// `sds.NAME`, as Envoy writes names in stats.
fn secret_prefix(name: &str) -> String {
    format!("sds.{}", name.replace("://", "_").replace(":/", "_").replace(':', "_"))
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

/// What is subscribed to at `source`: kinds and names; no name for all of a kind.
fn subscriptions(control: &Rc<Control>, source: &Source) -> BTreeSet<(ResourceType, String)> {
    let dynamic = &control.boot.bootstrap.dynamic_resources;
    let is_ours = |kind| match &source.key {
        Key::Ads => true,
        Key::Workload => kind == ResourceType::Secret,
        Key::Stream(of, _) | Key::Rest(of, _) | Key::File(of, _) => *of == kind,
    };
    let wildcards = [(ResourceType::Cluster, dynamic.cds.is_some()), (ResourceType::Listener, dynamic.lds.is_some())];
    let wildcards =
        wildcards.into_iter().filter(|(kind, is)| *is && is_ours(*kind)).map(|(kind, _)| (kind, String::new()));
    let subscribed = control.xds.subscribed.borrow();
    let named = subscribed.iter().filter(|(_, key)| **key == source.key);
    let named = named.map(|((kind, name, _), _)| (*kind, name.clone()));
    let endpoints = control.xds.endpoints.borrow();
    let endpoints = endpoints.iter().filter(|(_, from)| std::ptr::eq(&***from, source));
    named.chain(endpoints.map(|(name, _)| (ResourceType::Endpoint, name.clone()))).chain(wildcards).collect()
}

fn count_failure(control: &Rc<Control>, source: &Source) {
    for (kind, name) in subscriptions(control, source) {
        let stats = control.xds.stats(control, kind, &name);
        stats.update_failure.inc();
        count_attempt(source, &stats);
    }
}

/// A stream's failures and timeouts are attempts, as Envoy counts.
fn count_attempt(source: &Source, stats: &SubscriptionStats) {
    if matches!(source.key, Key::Ads | Key::Stream(..) | Key::Workload) {
        stats.update_attempt.inc();
    }
}

/// A text that was read held `unknown` fields. As the command line says they are let pass, with a word or without, or
/// the text is no good.
///
/// # Errors
/// All of them.
fn pass_unknown(control: &Rc<Control>, from: &str, unknown: Vec<Problem>) -> Result<(), Vec<Problem>> {
    let config = &control.options.config;
    match unknown.is_empty() {
        false if config.reject_unknown_dynamic_fields => return Err(unknown),
        false if !config.ignore_unknown_dynamic_fields => {
            tracing::warn!(target: "config", "{from}: unknown fields, ignored: {}", joined(&unknown));
            // Once for the text, however many there are.
            control.stats.server.dynamic_unknown_fields.inc();
        }
        _ => {}
    }
    Ok(())
}

/// A text that was read is no good as a whole: nobody waits for what it should have brought.
fn refuse_text(control: &Rc<Control>, source: &Source, kind: ResourceType) {
    if kind == ResourceType::Secret {
        refuse_secrets(control, source);
    } else {
        for (kind, name) in subscriptions(control, source) {
            control.xds.stats(control, kind, &name).update_rejected.inc();
        }
    }
    control.xds.answered.borrow_mut().insert(kind);
    control.settle();
}

fn joined(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn handle(control: &Rc<Control>, source: &Rc<Source>, event: Event) {
    let now = Instant::now();
    match event {
        Event::Connect => {}
        Event::Update(update) => {
            let (kind, nonce) = (update.resource_type, update.nonce.clone());
            let refused = apply(control, source, &update);
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
            {
                let mut store = control.store.borrow_mut();
                store.knows_virtual_hosts |= kind == ResourceType::VirtualHost;
                store.scopes.is_known |= kind == ResourceType::ScopedRouteConfiguration;
            }
            control.settle();
            control.on_demand.updated(control, &update);
        }
        Event::Rejected { resource_type, message, .. } => {
            tracing::warn!(target: "config", "{} update rejected: {message}", resource_type.noun());
            if resource_type == ResourceType::Secret {
                refuse_secrets(control, source);
            } else {
                control.xds.stats(control, resource_type, "").update_rejected.inc();
            }
            // An answer that is no good is one all the same: nobody waits for another before going on.
            control.xds.answered.borrow_mut().insert(resource_type);
            control.settle();
        }
        Event::Ignored { type_url } => {
            tracing::warn!(target: "config", "ignoring a response of type {type_url}, which nobody asked for")
        }
        Event::Unmatched => {
            let names = control.xds.secret_names(source);
            tracing::warn!(target: "config", "a response holds no secret that was asked for (expecting {names:?})");
        }
        Event::Expired { resource_type, names } => {
            names.iter().for_each(|name| remove(control, resource_type, name));
            control.settle();
        }
        Event::FetchTimeout { resource_type, name } => {
            let stats = control.xds.stats(control, resource_type, name.as_deref().unwrap_or_default());
            stats.init_fetch_timeout.inc();
            count_attempt(source, &stats);
            let named = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            tracing::warn!(target: "config", "gRPC config: initial fetch timed out for {}{named}", resource_type.url());
            match name {
                Some(name) if resource_type == ResourceType::Runtime => {
                    control.runtime.borrow_mut().set_rtds(&name, None);
                }
                Some(name) if resource_type == ResourceType::Secret => {
                    for of in control.xds.secrets_of(control, source, &name) {
                        control.store.borrow_mut().give_up_secret(&of);
                    }
                }
                Some(name) => {
                    if resource_type == ResourceType::ExtensionConfig {
                        extensions::stats(control, &name).config_fail.inc();
                    }
                    control.store.borrow_mut().fetch_timed_out(resource_type, &name);
                }
                None => {
                    let mut store = control.store.borrow_mut();
                    store.knows_virtual_hosts |= resource_type == ResourceType::VirtualHost;
                    store.scopes.is_known |= resource_type == ResourceType::ScopedRouteConfiguration;
                    drop(store);
                    control.xds.answered.borrow_mut().insert(resource_type);
                }
            }
            control.settle();
        }
    }
}

/// An answer was no good as a whole: nobody waits for what it should have brought.
fn refuse_secrets(control: &Rc<Control>, source: &Source) {
    for name in control.xds.secret_names(source) {
        control.xds.stats(control, ResourceType::Secret, &name).update_rejected.inc();
        for of in control.xds.secrets_of(control, source, &name) {
            control.store.borrow_mut().give_up_secret(&of);
        }
    }
}

/// Puts an update into the store; gives what was refused, with every reason.
fn apply(control: &Rc<Control>, source: &Source, update: &Update) -> Vec<Refused> {
    let kind = update.resource_type;
    if kind == ResourceType::ScopedRouteConfiguration {
        return scopes::apply(control, update);
    }
    let mut refused = Vec::new();
    let (mut added, mut modified) = (0, 0);
    let mut reloaded = Vec::new();
    for resource in &update.resources {
        let Some(body) = &resource.body else { continue };
        let secrets = match kind {
            ResourceType::Secret => control.xds.secrets_of(control, source, &resource.name),
            _ => Vec::new(),
        };
        let mut store = control.store.borrow_mut();
        let is_known = store.has(kind, &resource.name);
        let set = match kind {
            ResourceType::Runtime => set_runtime(control, &store, body),
            ResourceType::Secret => {
                secrets.iter().try_fold(false, |all, of| Ok(all | store.set_secret(of, body, &resource.version)?))
            }
            _ => store.set(kind, &resource.name, body, &resource.version),
        };
        match set {
            Ok(true) => {
                if is_known {
                    modified += 1
                } else {
                    added += 1
                }
                reloaded.push(resource.name.as_str());
            }
            Ok(false) => {}
            Err(problems) => {
                let message = joined(&problems);
                tracing::warn!(target: "config", "{} {:?} rejected: {message}", kind.noun(), resource.name);
                // What is shown of a secret is in its seat: the bytes may hold a key.
                if kind != ResourceType::Secret {
                    store.note_failure(kind, &resource.name, body, &update.version, &message);
                }
                refused.push(Refused { name: resource.name.clone(), message });
            }
        }
    }
    let is_known = |name: &&String| control.store.borrow().has(kind, name);
    let dropped: Vec<_> = update.removed.iter().filter(is_known).map(String::as_str).collect();
    update.removed.iter().for_each(|name| remove(control, kind, name));
    if refused.is_empty() && update.refused.is_empty() {
        control.store.borrow_mut().set_version(kind, &update.version);
    }
    let mut names: Vec<&str> = match kind {
        ResourceType::Cluster | ResourceType::Listener => vec![""],
        _ => update.resources.iter().map(|r| r.name.as_str()).collect(),
    };
    if kind == ResourceType::ExtensionConfig {
        names.extend(update.removed.iter().map(String::as_str));
        reloaded.extend(&dropped);
        extensions::count(control, &names, &reloaded, &refused);
    }
    if kind == ResourceType::VirtualHost
        && let Some(name) = reloaded.iter().chain(&dropped).next()
    {
        let prefix = control.store.borrow().stat_prefix_of_virtual_host(name);
        if let Some(stats) = control.xds.virtual_host_stats.borrow().get(&prefix) {
            stats.config_reload.inc();
        }
    }
    for name in names {
        let stats = control.xds.stats(control, kind, name);
        count_update(&stats, update, update.refused.is_empty() && refused.is_empty());
    }
    let unknown = control.store.borrow().unknown_fields.take();
    if !control.options.config.ignore_unknown_dynamic_fields {
        control.stats.server.dynamic_unknown_fields.add(unknown);
    }
    control.count_changes(kind, added, modified, update.removed.len() as u64);
    refused
}

/// Counts an update that was taken, or not.
fn count_update(stats: &SubscriptionStats, update: &Update, is_good: bool) {
    if is_good { &stats.update_success } else { &stats.update_rejected }.inc();
    stats.update_attempt.inc();
    if is_good {
        stats.update_time.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64);
        stats.version.set(xxhash_rust::xxh64::xxh64(update.version.as_bytes(), 0));
        stats.version_text.set(&update.version);
    }
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
