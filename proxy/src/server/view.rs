//! What the admin API sees of the server, and how it obeys.

use super::{certificates, cli, control::Control, logging, worker::Message};
use crate::{
    admin::{
        Command, ConfigDump, DynamicListener, DynamicResource, ListenerStatus, Resource, RuntimeDump, ScopedRoutes,
        ServerInfo, ServerView, State, StatsSettings, UnreadyTargets, UpdateFailure, VersionedResources,
    },
    base::RuntimeSnapshot,
    observe::{
        memory::Memory,
        stats::{Registry, StatRef},
    },
    snapshot::{Entry, Origin, Store},
    upstream::Cluster,
};
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};
use weft_config::{bootstrap::Node, scoped_routes::Scopes};
use weft_control_api::{
    Any, Message as _, Name, ResourceType,
    envoy::{
        config::{cluster::v3 as cluster, core::v3 as core, listener::v3 as listener, route::v3 as route},
        extensions::transport_sockets::tls::v3 as tls,
    },
};

/// The admin API holds the server by this: its own reference keeps it alive.
impl ServerView for Control {
    fn info(&self) -> ServerInfo {
        ServerInfo {
            version: cli::version(),
            state: self.state.get(),
            uptime: self.start.elapsed(),
            uptime_all_epochs: self.start.elapsed(),
            hot_restart_version: self.options.hot_restart_version().to_owned(),
            command_line_options: self.options.to_json(self.concurrency as u32),
            node: node_proto(&self.boot.bootstrap.node),
        }
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn stats_settings(&self) -> &StatsSettings {
        &self.stats_settings
    }

    fn refresh_stats(&self) {
        if self.boot.bootstrap.stats_flush_interval.is_none() {
            self.registry.flush();
        }
        let stats = &self.stats.server;
        let mut connections = 0;
        self.registry.visit(&mut |name, stat| {
            if let StatRef::Gauge(active) = stat
                && name.starts_with("listener.")
                && name.ends_with(".downstream_cx_active")
                && !name.contains(".worker_")
                && !name.starts_with("listener.admin.")
            {
                connections += active.get();
            }
        });
        stats.total_connections.set(connections);
        let memory = Memory::read();
        stats.uptime.set(self.start.elapsed().as_secs());
        stats.memory_allocated.set(memory.allocated);
        stats.memory_heap_size.set(memory.heap_size);
        stats.memory_physical_size.set(memory.physical);
        stats.state.set(self.state.get() as u64);
        stats.live.set(u64::from(self.state.get() == State::Live));
        let certificates = self.store.borrow().certificates();
        stats.days_until_first_cert_expiring.set(certificates::days_until_first_ends(&certificates));
        let staple = certificates::seconds_until_first_staple_ends(&certificates);
        stats.seconds_until_first_ocsp_response_expiring.set(staple);
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let status = |(name, entry): &(String, Entry<crate::listener::Listener>)| ListenerStatus {
            name: name.clone(),
            addresses: entry.value.sockets.addresses.clone(),
        };
        self.store.borrow().listeners.iter().map(status).collect()
    }

    fn clusters(&self) -> Vec<Arc<Cluster>> {
        self.store.borrow().clusters.in_force().values().map(|entry| entry.value.clone()).collect()
    }

    fn config_dump(&self) -> ConfigDump {
        let store = self.store.borrow();
        let bootstrap = Resource {
            name: String::new(),
            config: Any {
                type_url: "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap".into(),
                value: self.dumped_bootstrap(),
            },
            last_updated: self.start_time,
        };
        let mut clusters = VersionedResources {
            version_info: store.version(ResourceType::Cluster).to_owned(),
            ..VersionedResources::default()
        };
        for (name, entry) in store.clusters.in_force() {
            let resource = resource::<cluster::Cluster, _>(name, entry);
            match &entry.origin {
                Origin::Static => clusters.fixed.push(resource),
                Origin::Dynamic(version) => clusters.active.push(dynamic(version, resource)),
            }
        }
        for (name, entry) in store.clusters.warming() {
            if let Origin::Dynamic(version) = &entry.origin {
                clusters.warming.push(dynamic(version, resource::<cluster::Cluster, _>(name, entry)));
            }
        }
        let mut static_listeners = Vec::new();
        let mut listeners: BTreeMap<String, DynamicListener> = BTreeMap::new();
        let mut routes = VersionedResources::default();
        for (name, entry) in &store.listeners {
            let resource = resource::<listener::Listener, _>(name, entry);
            match &entry.origin {
                Origin::Static => static_listeners.push(resource),
                Origin::Dynamic(version) => seat(&mut listeners, name).active = Some((version.clone(), resource)),
            }
            routes.fixed.extend(inline_routes(entry));
        }
        for (name, entry) in &store.warming_listeners {
            if let Origin::Dynamic(version) = &entry.origin {
                seat(&mut listeners, name).warming =
                    Some((version.clone(), resource::<listener::Listener, _>(name, entry)));
            }
        }
        for (name, entry) in &store.tables {
            let resource = resource::<route::RouteConfiguration, _>(name, entry);
            if let Origin::Dynamic(version) = &entry.origin {
                routes.active.push(dynamic(version, resource));
            }
        }
        for ((kind, name), failure) in &store.failures {
            let error = UpdateFailure {
                failed_configuration: Some(Any { type_url: kind.url().to_owned(), value: failure.bytes.clone() }),
                last_update_attempt: failure.at,
                details: failure.details.clone(),
                version_info: failure.version.clone(),
            };
            match kind {
                ResourceType::Listener => seat(&mut listeners, name).error = Some(error),
                ResourceType::Cluster => {
                    let VersionedResources { active, warming, .. } = &mut clusters;
                    fail(active, name, error).into_iter().for_each(|never_accepted| warming.push(never_accepted));
                }
                ResourceType::RouteConfiguration => {
                    let never_accepted = fail(&mut routes.active, name, error);
                    routes.active.extend(never_accepted);
                }
                _ => {}
            }
        }
        ConfigDump {
            bootstrap: Some(bootstrap),
            clusters,
            listeners: listeners.into_values().collect(),
            listeners_version: store.version(ResourceType::Listener).to_owned(),
            static_listeners,
            routes: Some(routes),
            secrets: self.secrets(&store),
            extension_configs: extension_configs(&store),
            scoped_routes: scoped_routes(&store),
        }
    }

    fn unready_targets(&self) -> Vec<UnreadyTargets> {
        Vec::new()
    }

    fn is_identity_expired(&self) -> bool {
        self.store.borrow().is_identity_expired()
    }

    fn is_identity_withdrawn(&self) -> bool {
        self.store.borrow().is_identity_withdrawn()
    }

    fn certificates(&self) -> Vec<serde_json::Value> {
        certificates::shown(&self.store.borrow().certificates())
    }

    fn runtime(&self) -> RuntimeDump {
        self.runtime.borrow().dump()
    }

    fn runtime_snapshot(&self) -> Arc<RuntimeSnapshot> {
        self.store.borrow().runtime.clone()
    }

    fn modify_runtime(&self, changes: &[(String, String)]) -> Result<(), String> {
        self.runtime.borrow_mut().modify(changes)?;
        self.republish.notify_one();
        Ok(())
    }

    fn log_levels(&self) -> Vec<(&'static str, &'static str)> {
        logging::levels().into_iter().map(|(component, level)| (component, level.name())).collect()
    }

    fn set_log_level(&self, component: Option<&str>, level: &str) -> bool {
        let Ok(level) = level.parse() else { return false };
        match component {
            Some(component) => logging::set_level(component, level),
            None => {
                logging::set_all_levels(level);
                true
            }
        }
    }

    fn command(&self, command: Command) {
        match command {
            Command::Quit => self.quit.notify_one(),
            Command::FailHealthCheck | Command::PassHealthCheck => {
                let failed = matches!(command, Command::FailHealthCheck);
                self.health_check_failed.set(failed);
                self.state.set(if failed { State::Draining } else { State::Live });
                self.tell_workers(&Message::HealthCheck { failed });
            }
            Command::DrainListeners { inbound_only, graceful, skip_exit } => {
                if graceful {
                    self.tell_workers(&Message::Drain { inbound_only });
                }
                match (graceful, skip_exit) {
                    (_, true) => {}
                    (false, false) => self.stop_listeners(inbound_only),
                    (true, false) => self.stop_later.set(Some(inbound_only)),
                }
                self.republish.notify_one();
            }
            Command::ReopenLogs => self.reopen_logs(),
        }
    }
}

impl Control {
    /// The bootstrap with the node that the flags made of it.
    fn dumped_bootstrap(&self) -> Vec<u8> {
        let mut proto = self.boot.loaded.proto.clone();
        proto.node = Some(node_proto(&self.boot.bootstrap.node));
        proto.encode_to_vec()
    }

    /// Static secrets, those that came, and those that are waited for.
    fn secrets(&self, store: &Store) -> VersionedResources {
        let fixed = self.boot.bootstrap.static_resources.secrets.iter().map(|secret| Resource {
            name: secret.name.clone(),
            config: Any { type_url: secret.type_url.clone(), value: secret.bytes.clone() },
            last_updated: self.start_time,
        });
        let mut secrets = VersionedResources { fixed: fixed.collect(), ..VersionedResources::default() };
        for seat in store.secrets.streamed() {
            let name = &seat.reference.name;
            let error = seat.failure.as_ref().map(|failure| UpdateFailure {
                failed_configuration: Some(Any { type_url: tls::Secret::type_url(), value: failure.bytes.clone() }),
                last_update_attempt: failure.at,
                details: failure.details.clone(),
                version_info: failure.version.clone(),
            });
            let (place, version_info, value) = match seat.is_there() {
                true => (&mut secrets.active, seat.version.clone(), seat.shown.clone()),
                false => {
                    let nothing = tls::Secret { name: name.clone(), r#type: None };
                    (&mut secrets.warming, "uninitialized".to_owned(), nothing.encode_to_vec())
                }
            };
            let config = Any { type_url: tls::Secret::type_url(), value };
            let resource = Resource { name: name.clone(), config, last_updated: seat.updated };
            place.push(DynamicResource { version_info, resource: Some(resource), error });
        }
        secrets
    }
}

/// Notes that the last update of a resource was refused; one that was never accepted comes back.
fn fail(resources: &mut [DynamicResource], name: &str, error: UpdateFailure) -> Option<DynamicResource> {
    match resources.iter_mut().find(|r| r.resource.as_ref().is_some_and(|r| r.name == name)) {
        Some(active) => {
            active.error = Some(error);
            None
        }
        None => Some(DynamicResource { version_info: String::new(), resource: None, error: Some(error) }),
    }
}

fn resource<M: Name, T>(name: &str, entry: &Entry<T>) -> Resource {
    Resource {
        name: name.to_owned(),
        config: Any { type_url: M::type_url(), value: entry.bytes.clone() },
        last_updated: entry.updated,
    }
}

fn seat<'a>(listeners: &'a mut BTreeMap<String, DynamicListener>, name: &str) -> &'a mut DynamicListener {
    listeners
        .entry(name.to_owned())
        .or_insert_with(|| DynamicListener { name: name.to_owned(), ..DynamicListener::default() })
}

fn dynamic(version: &str, resource: Resource) -> DynamicResource {
    DynamicResource { version_info: version.to_owned(), resource: Some(resource), error: None }
}

/// The scopes of all connection managers.
fn scoped_routes(store: &Store) -> Vec<ScopedRoutes> {
    let scope =
        |bytes: &Vec<u8>| Any { type_url: ResourceType::ScopedRouteConfiguration.url().into(), value: bytes.clone() };
    let all = store.scope_seats().into_iter().map(|seat| match &seat.config.scopes {
        Scopes::Inline(scopes) => ScopedRoutes {
            name: seat.config.name.clone(),
            version_info: None,
            scopes: scopes.iter().map(|(_, bytes)| scope(bytes)).collect(),
            last_updated: SystemTime::now(),
        },
        Scopes::Discovered(_) => ScopedRoutes {
            name: seat.config.name.clone(),
            version_info: Some(store.scopes.version.clone()),
            scopes: store.scopes.known.values().map(|known| scope(&known.bytes)).collect(),
            last_updated: store.scopes.updated.unwrap_or(SystemTime::UNIX_EPOCH),
        },
    });
    all.collect()
}

/// Configurations of filters that came, and those that were refused.
fn extension_configs(store: &Store) -> Vec<DynamicResource> {
    let known = store.extensions.known.iter().map(|(name, known)| {
        let config = Any { type_url: core::TypedExtensionConfig::type_url(), value: known.bytes.clone() };
        dynamic(&known.version, Resource { name: name.clone(), config, last_updated: known.updated })
    });
    known.collect()
}

/// The route configurations inside a listener's connection managers.
fn inline_routes(entry: &Entry<crate::listener::Listener>) -> Vec<Resource> {
    use weft_control_api::envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, http_connection_manager::RouteSpecifier,
    };
    let Ok(proto) = listener::Listener::decode(&*entry.bytes) else { return Vec::new() };
    let filters = proto.filter_chains.into_iter().chain(proto.default_filter_chain).flat_map(|chain| chain.filters);
    let routes = filters.filter_map(|filter| {
        let Some(listener::filter::ConfigType::TypedConfig(any)) = filter.config_type else { return None };
        if !any.type_url.ends_with(".HttpConnectionManager") {
            return None;
        }
        let Some(RouteSpecifier::RouteConfig(routes)) =
            HttpConnectionManager::decode(&*any.value).ok()?.route_specifier
        else {
            return None;
        };
        Some(Resource {
            name: routes.name.clone(),
            config: Any { type_url: route::RouteConfiguration::type_url(), value: routes.encode_to_vec() },
            last_updated: entry.updated,
        })
    });
    routes.collect()
}

/// The node as control planes see it.
pub fn node_proto(node: &Node) -> core::Node {
    core::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: node.metadata.as_deref().and_then(|bytes| weft_control_api::Struct::decode(bytes).ok()),
        locality: (!node.locality.is_empty()).then(|| core::Locality {
            region: node.locality.region.clone(),
            zone: node.locality.zone.clone(),
            sub_zone: node.locality.sub_zone.clone(),
        }),
        user_agent_name: "weft".into(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentBuildVersion(core::BuildVersion {
            version: Some(weft_control_api::envoy::r#type::v3::SemanticVersion {
                major_number: cli::API_VERSION.0,
                minor_number: cli::API_VERSION.1,
                patch: cli::API_VERSION.2,
            }),
            metadata: None,
        })),
        client_features: node
            .client_features
            .iter()
            .cloned()
            .chain(["envoy.lb.does_not_support_overprovisioning".into(), "envoy.lrs.supports_send_all_clusters".into()])
            .collect(),
        ..core::Node::default()
    }
}
