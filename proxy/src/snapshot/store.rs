//! The resources that are in force, and what they compiled to. Lives on the control thread.
//!
//! A resource goes in as bytes. It is checked against the schema, read, compiled; only then does it replace what was
//! there. A resource with problems changes nothing.

use super::{
    Snapshot,
    clusters::Clusters,
    extensions::Extensions,
    scopes::Scopes,
    secrets::{SecretStore, Updated},
    virtual_hosts::VirtualHosts,
};
use crate::{
    base::RuntimeSnapshot,
    http::{request_id, thread::RouteTables},
    listener::{CompileContext, Listener, Sockets},
    network::{RouteSlots, discovered::reached},
    observe::access_log::LogWriter,
    route::RouteTable,
    upstream::{Cluster, ClusterId, LocalZone, Names},
};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};
use weft_config::{
    self as config, Context, Problem, add_later, cluster::Discovery, config_source::ConfigSource,
    endpoint::AssignmentChanges, listener::Unchanged, scoped_routes,
};
use weft_control_api::{CheckOptions, Message, Name, ResourceType, check, envoy::config::listener::v3 as pb};

/// Where a resource came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Static,
    /// Over xDS, with this version.
    Dynamic(String),
}

/// One resource in force.
pub struct Entry<T> {
    pub value: Arc<T>,
    /// As it was sent, for `/config_dump`.
    pub bytes: Vec<u8>,
    pub origin: Origin,
    pub updated: SystemTime,
}

/// A resource that was refused: what it was, and why.
pub struct Failure {
    pub bytes: Vec<u8>,
    pub version: String,
    pub details: String,
    pub at: SystemTime,
}

/// A load assignment as it was sent: what was read of it is in the hosts.
struct Assignment {
    bytes: Box<[u8]>,
    /// Every field of it is known.
    is_known: bool,
}

/// For whom contexts changed.
#[derive(Clone, Copy, Default)]
pub(super) struct ContextsChanged {
    pub secrets: bool,
    pub files: bool,
}

impl ContextsChanged {
    pub const ALL: Self = Self { secrets: true, files: true };
}

/// The resources in force, and those that wait for what they refer to.
pub struct Store {
    pub(super) names: Names,
    pub(super) routes: RouteSlots,
    pub tables: BTreeMap<String, Entry<RouteTable>>,
    pub clusters: Clusters,
    /// Warming clusters that still wait for their hosts.
    without_hosts: BTreeSet<String>,
    pub secrets: SecretStore,
    /// Scopes of routes that were discovered.
    pub scopes: Scopes,
    /// Virtual hosts that were discovered.
    pub(super) virtual_hosts: VirtualHosts,
    /// It was heard of virtual hosts, or waited for long enough.
    pub knows_virtual_hosts: bool,
    /// Configurations of filters that are discovered.
    pub extensions: Extensions,
    /// TLS contexts came or went, or were built anew, since secrets and their files were followed.
    pub(super) contexts_changed: ContextsChanged,
    /// Contexts that were built anew because of secrets, since the last time that they were counted.
    pub updated_contexts: Vec<Updated>,
    /// Static clusters with problems: a route to one of them has none of its own.
    pub refused_clusters: BTreeSet<String>,
    /// In the order in which they came.
    pub listeners: Vec<(String, Entry<Listener>)>,
    /// Listeners whose routes or secrets are not there yet; those of the same name above serve on meanwhile.
    pub warming_listeners: BTreeMap<String, Entry<Listener>>,
    /// What was refused last, by kind and name.
    pub failures: BTreeMap<(ResourceType, String), Failure>,
    versions: BTreeMap<ResourceType, String>,
    /// Load assignments by service name: a cluster that is changed need not wait for its hosts again.
    assignments: HashMap<String, Assignment>,
    /// Workers run: a listener in force listens.
    is_serving: bool,
    /// Listeners whose filter chains alone were changed, since the last time that they were counted.
    pub in_place_updates: u64,
    /// Fields that the schema does not know, in resources since the last time that they were counted.
    pub unknown_fields: Cell<u64>,
    /// What was waited for long enough.
    pub(super) timed_out: BTreeSet<(ResourceType, String)>,
    pub runtime: Arc<RuntimeSnapshot>,
    workers: usize,
    pub(super) log_writer: LogWriter,
    bind: Option<Arc<config::address::BindConfig>>,
    /// Where we are, if a local cluster is named.
    pub zone: Option<Arc<LocalZone>>,
    check_options: CheckOptions,
    /// The bootstrap allows internal listeners.
    pub allows_internal_listeners: bool,
}

impl Store {
    pub fn new(
        workers: usize,
        log_writer: LogWriter,
        runtime: Arc<RuntimeSnapshot>,
        bind: Option<config::address::BindConfig>,
        check_options: CheckOptions,
    ) -> Self {
        Self {
            names: Names::default(),
            routes: RouteSlots::default(),
            tables: BTreeMap::new(),
            clusters: Clusters::default(),
            without_hosts: BTreeSet::new(),
            secrets: SecretStore::default(),
            scopes: Scopes::default(),
            virtual_hosts: VirtualHosts::new(),
            knows_virtual_hosts: false,
            extensions: Extensions::default(),
            contexts_changed: ContextsChanged::ALL,
            updated_contexts: Vec::new(),
            refused_clusters: BTreeSet::new(),
            listeners: Vec::new(),
            warming_listeners: BTreeMap::new(),
            failures: BTreeMap::new(),
            versions: BTreeMap::new(),
            assignments: HashMap::new(),
            timed_out: BTreeSet::new(),
            is_serving: false,
            in_place_updates: 0,
            unknown_fields: Cell::new(0),
            runtime,
            workers,
            log_writer,
            bind: bind.map(Arc::new),
            zone: None,
            check_options,
            allows_internal_listeners: false,
        }
    }

    /// Takes a secret of the bootstrap.
    pub fn set_static_secret(&mut self, bytes: &[u8]) -> Result<bool, Vec<Problem>> {
        let (proto, mut cx) = self.read(bytes)?;
        let read = config::tls::Secret::from_proto(proto, &mut cx);
        let (secret, _) = cx.finish(read)?;
        self.secrets.set_fixed(secret).map(|()| true)
    }

    /// Adds or replaces a cluster. True if something changed.
    pub fn set_cluster(&mut self, bytes: &[u8], origin: Origin) -> Result<bool, Vec<Problem>> {
        let (proto, mut cx) = self.read(bytes)?;
        let read = config::Cluster::from_proto(proto, &mut cx);
        let (config, _) = cx.finish(read)?;
        let name = config.name.clone();
        if let Some(entry) = self.clusters.warming().get(&name).or(self.clusters.in_force().get(&name)) {
            if entry.bytes == bytes {
                return Ok(false);
            }
            if entry.origin == Origin::Static {
                return Err(match origin {
                    Origin::Static => {
                        vec![Problem::new(
                            "name",
                            format!("found {name:?} a second time: cluster names must be unique"),
                        )]
                    }
                    Origin::Dynamic(_) => {
                        vec![Problem::new("name", format!("found {name:?}, which is a static cluster"))]
                    }
                });
            }
        }
        let id = self.names.intern(&name);
        let mut cx = Context::new();
        let mut cluster = Cluster::compile(
            id,
            Arc::new(config),
            self.bind.as_ref(),
            self.zone.as_ref(),
            origin != Origin::Static,
            &self.secrets,
            &mut cx,
        );
        if cx.has_problems() {
            return Err(cx.finish::<()>(None).err().unwrap_or_default());
        }
        let has_hosts = match &cluster.info.config.discovery {
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) => false,
            Discovery::Eds(eds) => {
                let service = eds.service_name.clone();
                match self.assignments.get(&service) {
                    Some(assignment) => {
                        let (assignment, _) = self.read_assignment(&assignment.bytes)?;
                        cluster = cluster.with_assignment(&assignment);
                        true
                    }
                    None => self.timed_out.contains(&(ResourceType::Endpoint, service)),
                }
            }
            Discovery::Static | Discovery::OriginalDst(_) | Discovery::Aggregate(_) => true,
        };
        let entry = Entry { value: cluster, bytes: bytes.to_vec(), origin, updated: SystemTime::now() };
        // A cluster of the bootstrap may say that nobody has to wait for its hosts.
        if has_hosts || (!self.is_serving && !entry.value.info.config.wait_for_warm_on_init) {
            self.without_hosts.remove(&name);
        } else {
            self.without_hosts.insert(name.clone());
        }
        self.clusters.warm(entry);
        self.settle_cluster(&name);
        Ok(true)
    }

    /// Removes a cluster that came over xDS.
    fn remove_cluster(&mut self, name: &str) {
        if self.clusters.named(name).any(|entry| entry.origin == Origin::Static) {
            return;
        }
        self.without_hosts.remove(name);
        self.clusters.remove(name);
    }

    /// Gives a cluster the hosts that were found for it; with `is_warm` it need not wait for more of them.
    pub fn set_cluster_hosts(&mut self, name: &str, is_warm: bool, with: impl FnOnce(&Cluster) -> Arc<Cluster>) {
        self.clusters.replace(name, with);
        if is_warm && self.without_hosts.remove(name) {
            self.settle_cluster(name);
        }
    }

    /// Takes over the health that the hosts of a cluster have now; gives the cluster if it is in force.
    pub fn refresh_health(&mut self, id: ClusterId) -> Option<Arc<Cluster>> {
        self.clusters.refresh_health(self.names.name(id))
    }

    /// Takes a load assignment for the clusters of its name. True if something changed.
    fn set_assignment(&mut self, name: &str, bytes: &[u8]) -> Result<bool, Vec<Problem>> {
        let before = self.assignments.get(name);
        if before.is_some_and(|before| *before.bytes == *bytes) {
            return Ok(false);
        }
        let changes = before.filter(|before| before.is_known);
        let changes = changes.and_then(|before| AssignmentChanges::between(&before.bytes, bytes));
        if changes.is_some_and(|changes| self.change_assignment(name, &changes)) {
            self.assignments.insert(name.to_owned(), Assignment { bytes: bytes.into(), is_known: true });
            return Ok(true);
        }
        let (assignment, unknown) = self.read_assignment(bytes)?;
        self.unknown_fields.set(self.unknown_fields.get() + unknown);
        let is_known = unknown == 0;
        for name in self.clusters_of(&assignment.cluster_name) {
            self.set_cluster_hosts(&name, true, |cluster| cluster.with_assignment(&assignment));
        }
        self.assignments.insert(assignment.cluster_name, Assignment { bytes: bytes.into(), is_known });
        Ok(true)
    }

    /// Takes the changes of a load assignment; false if all of it is needed, or to say what is wrong with it.
    fn change_assignment(&mut self, service: &str, changes: &AssignmentChanges) -> bool {
        let Ok((new, 0)) = self.read_assignment(&changes.reduced) else { return false };
        let names = self.clusters_of(service);
        let current = names.iter().filter_map(|name| {
            let entry = self.clusters.warming().get(name).or(self.clusters.in_force().get(name))?;
            entry.value.with_changes(changes, &new)
        });
        let changed: Vec<_> = current.collect();
        if changed.len() < names.len() {
            return false;
        }
        for (name, cluster) in names.iter().zip(changed) {
            self.set_cluster_hosts(name, true, |_| cluster);
        }
        true
    }

    /// Reads a load assignment; and how many of its fields are not known, which are not counted here.
    fn read_assignment(&self, bytes: &[u8]) -> Result<(config::ClusterLoadAssignment, u64), Vec<Problem>> {
        let counted = self.unknown_fields.get();
        let read = self.read(bytes);
        let unknown = self.unknown_fields.replace(counted) - counted;
        let (proto, mut cx) = read?;
        let read = config::ClusterLoadAssignment::from_proto(proto, &mut cx);
        let (assignment, _) = cx.finish(read)?;
        Ok((assignment, unknown))
    }

    /// Names of the clusters whose hosts are known by this service name.
    fn clusters_of(&self, service: &str) -> Vec<String> {
        let mut ids: Vec<_> = self.clusters.of_service(service).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().map(|id| self.names.name(id).to_owned()).collect()
    }

    /// The prefix of the stats of the cluster whose hosts are known by this service name.
    pub fn stat_prefix_of_service(&self, service: &str) -> Option<&str> {
        let mut clusters = self.clusters.of_service(service).map(|id| self.names.name(id));
        clusters.find_map(|name| Some(&*self.clusters.named(name).next()?.value.info.stat_prefix))
    }

    /// Where the hosts of this service name come from, if some cluster has them.
    pub fn source_of_service(&self, service: &str) -> Option<ConfigSource> {
        self.clusters.source_of(service, &self.names)
    }

    /// Clusters in force and warming.
    pub fn all_clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.all()
    }

    /// Adds or replaces a listener, binding its addresses if they are new. True if something changed.
    pub fn set_listener(&mut self, bytes: &[u8], origin: Origin, bind: bool) -> Result<bool, Vec<Problem>> {
        let (proto, mut cx) = self.read::<pb::Listener>(bytes)?;
        let read = config::listener::Listener::from_proto(proto.clone(), &mut cx);
        let mut finished = std::mem::take(&mut cx);
        let Some(mut config) = read else {
            if !finished.has_problems() {
                finished.problem("cannot be read");
            }
            return Err(finished.finish::<()>(None).err().unwrap_or_default());
        };
        if config.name.is_empty() {
            config.name = request_id::uuid().to_str().unwrap_or_default().to_owned();
        }
        if config.is_internal && !self.allows_internal_listeners {
            finished.problem_at(
                "internal_listener",
                "needs the bootstrap extension envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            );
        }
        let active = self.listeners.iter().find(|(name, _)| *name == config.name).map(|(_, entry)| entry);
        let before = self.warming_listeners.get(&config.name).or(active);
        if let Some(entry) = before {
            if entry.bytes == bytes {
                return Ok(false);
            }
            if entry.origin == Origin::Static {
                finished.problem_at("name", format!("found {:?}, which is a static listener", config.name));
            }
        }
        let kept_chains = before.and_then(|entry| {
            let (old, _) = self.read(&entry.bytes).ok()?;
            Some((&*entry.value, Unchanged::between(&old, &proto)?))
        });
        // Where only filter chains change, the listener stays the one that it was, with its version.
        let kept_origin = before.filter(|_| kept_chains.is_some() && self.is_serving).map(|entry| entry.origin.clone());
        let (clusters, refused) = (&self.clusters, &self.refused_clusters);
        let exists = |name: &str| clusters.has(name) || refused.contains(name);
        let mut context = CompileContext {
            names: &mut self.names,
            log_writer: &self.log_writer,
            routes: &mut self.routes,
            cluster_exists: &exists,
            secrets: &self.secrets,
            before: kept_chains,
        };
        // The sockets come last: nothing is bound for a listener that has problems.
        let unbound = Arc::new(Sockets::unbound(&config));
        let mut listener = Listener::compile(config, unbound, &mut context, &mut finished);
        let others = self.listeners.iter().map(|(_, entry)| entry).chain(self.warming_listeners.values());
        let others = others.filter(|entry| entry.value.config.name != listener.config.name);
        if let Some(address) = others.filter_map(|entry| listener.duplicate_address(&entry.value)).next() {
            let name = &listener.config.name;
            finished.problem_at(
                "address",
                format!(
                    "error adding listener: '{name}' has duplicate address '{address}' as existing listener, to check \
                     if the listener has duplicated addresses with other listeners or 'enable_reuse_port' is set to \
                     'false' for the listener"
                ),
            );
        }
        if finished.has_problems() {
            return Err(finished.finish::<()>(None).err().unwrap_or_default());
        }
        if bind && listener.config.bind_to_port {
            let kept = before.filter(|entry| same_sockets(&entry.value.config, &listener.config));
            listener.sockets = match kept {
                Some(entry) => entry.value.sockets.clone(),
                None => Arc::new(
                    Sockets::bind(&listener.config, self.workers)
                        .map_err(|e| vec![Problem::new("address", e.to_string())])?,
                ),
            };
        }
        self.in_place_updates += u64::from(kept_origin.is_some());
        let origin = kept_origin.unwrap_or(origin);
        let name = listener.config.name.clone();
        let entry = Entry { value: Arc::new(listener), bytes: bytes.to_vec(), origin, updated: SystemTime::now() };
        let seats = entry.value.seats.clone();
        self.contexts_changed = ContextsChanged::ALL;
        self.warming_listeners.insert(name, entry);
        self.fill(&seats);
        self.fill_scopes();
        self.settle();
        Ok(true)
    }

    /// Removes a listener that came over xDS.
    fn remove_listener(&mut self, name: &str) {
        self.contexts_changed = ContextsChanged::ALL;
        self.warming_listeners.remove(name);
        self.listeners.retain(|(n, entry)| n != name || entry.origin == Origin::Static);
    }

    /// Puts a cluster into force that has all it waits for; it takes the place of what served meanwhile.
    fn settle_cluster(&mut self, name: &str) {
        let Some(entry) = self.clusters.warming().get(name) else { return };
        let mut contexts = entry.value.info.transport_sockets().filter_map(|socket| socket.tls());
        let is_settled = contexts.all(|context| context.config.secrets().all(|secret| self.secrets.is_settled(secret)));
        drop(contexts);
        if is_settled && entry.value.is_checked() && !self.without_hosts.contains(name) {
            self.clusters.put_in_force(name, |cluster| match cluster.info.checks {
                Some(_) => cluster.with_health(),
                None => cluster.clone(),
            });
        }
    }

    /// Puts clusters and listeners into force whose routes and secrets are there, or were waited for long enough.
    pub fn settle(&mut self) {
        let ready = |name: &&String| !self.without_hosts.contains(*name);
        let warming: Vec<String> = self.clusters.warming().keys().filter(ready).cloned().collect();
        warming.iter().for_each(|name| self.settle_cluster(name));
        let has = |name: &String| {
            let is_whole = |entry: &Entry<RouteTable>| entry.value.vhds.is_none() || self.knows_virtual_hosts;
            self.tables.get(name).is_some_and(is_whole)
                || self.timed_out.contains(&(ResourceType::RouteConfiguration, name.clone()))
        };
        let has_secrets = |listener: &Listener| {
            let chains = listener.chains.iter().chain(&listener.default_chain);
            chains
                .filter_map(|chain| chain.tls.as_ref())
                .all(|context| context.config.secrets().all(|secret| self.secrets.is_settled(secret)))
        };
        let is_warm = |listener: &Listener| {
            let has_extensions = reached(&listener.seats).seats.iter().all(|seat| self.is_settled_seat(seat));
            let has_scopes = listener.scoped().all(|seat| {
                let is_known = self.scopes.is_known || matches!(seat.config.scopes, scoped_routes::Scopes::Inline(_));
                is_known && self.routes_of_scopes(seat).iter().all(has)
            });
            listener.routes().iter().all(has) && has_secrets(listener) && has_extensions && has_scopes
        };
        let warm = self.warming_listeners.iter().filter(|(_, entry)| is_warm(&entry.value));
        let warm: Vec<String> = warm.map(|(name, _)| name.clone()).collect();
        for name in warm {
            let Some(entry) = self.warming_listeners.remove(&name) else { continue };
            self.contexts_changed = ContextsChanged::ALL;
            if self.is_serving {
                listen(&entry.value);
            }
            match self.listeners.iter_mut().find(|(n, _)| *n == name) {
                Some((_, old)) => *old = entry,
                None => self.listeners.push((name, entry)),
            }
        }
    }

    /// Workers are about to start: listeners listen from now on.
    pub fn serve(&mut self) {
        self.is_serving = true;
        self.listeners.iter().for_each(|(_, entry)| listen(&entry.value));
    }

    /// Adds or replaces a resource that came over xDS. True if something changed.
    pub fn set(&mut self, kind: ResourceType, name: &str, bytes: &[u8], version: &str) -> Result<bool, Vec<Problem>> {
        let origin = Origin::Dynamic(version.to_owned());
        let done = match kind {
            ResourceType::Cluster => self.set_cluster(bytes, origin),
            ResourceType::Listener => self.set_listener(bytes, origin, true),
            ResourceType::Endpoint => self.set_assignment(name, bytes),
            ResourceType::RouteConfiguration => self.set_routes(bytes, origin),
            ResourceType::ExtensionConfig => self.set_extension(bytes, &origin),
            ResourceType::VirtualHost => self.set_virtual_host(name, bytes),
            _ => Err(vec![Problem::new("", format!("a {} over xDS is not supported", kind.noun()))]),
        }?;
        self.failures.remove(&(kind, name.to_owned()));
        Ok(done)
    }

    /// True if a resource of this name is in force or warming.
    pub fn has(&self, kind: ResourceType, name: &str) -> bool {
        match kind {
            ResourceType::Cluster => self.clusters.has(name),
            ResourceType::Listener => {
                self.warming_listeners.contains_key(name) || self.listeners.iter().any(|(n, _)| n == name)
            }
            ResourceType::RouteConfiguration => self.tables.contains_key(name),
            ResourceType::ExtensionConfig => self.extensions.known.contains_key(name),
            ResourceType::VirtualHost => self.virtual_hosts.contains_key(name),
            _ => false,
        }
    }

    /// Removes a resource that came over xDS. Routes and load assignments that are referred to stay: their last good version serves on.
    pub fn remove(&mut self, kind: ResourceType, name: &str) {
        self.failures.remove(&(kind, name.to_owned()));
        match kind {
            ResourceType::Cluster => self.remove_cluster(name),
            ResourceType::Listener => self.remove_listener(name),
            ResourceType::ExtensionConfig => self.drop_extension(name),
            ResourceType::VirtualHost => self.remove_virtual_host(name),
            _ => {}
        }
    }

    /// Nothing refers to it any more.
    pub fn forget(&mut self, kind: ResourceType, name: &str) {
        self.timed_out.remove(&(kind, name.to_owned()));
        match kind {
            ResourceType::RouteConfiguration => drop(self.tables.remove(name)),
            ResourceType::ExtensionConfig => drop(self.extensions.known.remove(name)),
            ResourceType::Endpoint => drop(self.assignments.remove(name)),
            _ => {}
        }
    }

    /// It was waited for long enough: what needs it goes on without.
    pub fn fetch_timed_out(&mut self, kind: ResourceType, name: &str) {
        self.timed_out.insert((kind, name.to_owned()));
        if kind == ResourceType::ExtensionConfig && !self.extensions.known.contains_key(name) {
            self.drop_extension(name);
        }
        if kind == ResourceType::Endpoint {
            for cluster in self.clusters_of(name) {
                self.without_hosts.remove(&cluster);
                self.settle_cluster(&cluster);
            }
        }
    }

    /// Remembers what was refused, for `/config_dump`.
    pub fn note_failure(&mut self, kind: ResourceType, name: &str, bytes: &[u8], version: &str, details: &str) {
        let failure = Failure {
            bytes: bytes.to_vec(),
            version: version.to_owned(),
            details: details.to_owned(),
            at: SystemTime::now(),
        };
        self.failures.insert((kind, name.to_owned()), failure);
    }

    /// The last version of a kind, and setting it.
    pub fn version(&self, kind: ResourceType) -> &str {
        self.versions.get(&kind).map(String::as_str).unwrap_or_default()
    }

    pub fn set_version(&mut self, kind: ResourceType, version: &str) {
        self.versions.insert(kind, version.to_owned());
    }

    /// The stat prefix of the connection manager that refers to a route configuration.
    pub fn http_prefix_of_routes(&self, name: &str) -> &str {
        self.routes.get(name).map(|wanted| wanted.stat_prefix.as_str()).unwrap_or_default()
    }

    /// Adds or replaces a route configuration of RDS. True if something changed.
    pub fn set_routes(&mut self, bytes: &[u8], origin: Origin) -> Result<bool, Vec<Problem>> {
        let config = self.read_routes(bytes, &self.virtual_hosts)?;
        if self.tables.get(&config.name).is_some_and(|entry| entry.bytes == bytes) {
            return Ok(false);
        }
        let mut cx = Context::new();
        if config.validate_clusters == Some(true) {
            for to in config.clusters().filter(|to| !self.clusters.in_force().contains_key(to.name)) {
                cx.problem_at(&to.path(), format!("route: unknown cluster '{}'", to.name));
            }
        }
        let table = RouteTable::compile(&config, &mut self.names, &mut cx);
        let (table, _) = cx.finish(Some(table))?;
        let entry = Entry { value: Arc::new(table), bytes: bytes.to_vec(), origin, updated: SystemTime::now() };
        self.tables.insert(config.name, entry);
        Ok(true)
    }

    /// The route configurations that listeners refer to, with their sources.
    pub fn wanted_routes(&self) -> BTreeMap<String, ConfigSource> {
        let all = self.listeners.iter().map(|(_, entry)| entry).chain(self.warming_listeners.values());
        let by_scope = self.scope_seats().into_iter().flat_map(|seat| self.routes_of_scopes(&seat));
        let names = all.flat_map(|entry| entry.value.routes()).chain(by_scope);
        names.filter_map(|name| Some((name.clone(), self.routes.get(&name)?.source.clone()))).collect()
    }

    /// What is in force now. Parts are shared with earlier snapshots where nothing changed.
    pub fn snapshot(&self) -> Snapshot {
        let mut tables: RouteTables = vec![None; self.routes.len()];
        for (name, entry) in &self.tables {
            if let Some(wanted) = self.routes.get(name)
                && let Some(seat) = tables.get_mut(wanted.slot.0 as usize)
            {
                *seat = Some(entry.value.clone());
            }
        }
        Snapshot {
            listeners: Arc::new(self.listeners.iter().map(|(_, entry)| entry.value.clone()).collect()),
            clusters: Arc::new(self.clusters.table(&self.names)),
            routes: Arc::new(tables),
            runtime: self.runtime.clone(),
        }
    }

    /// Checks a resource against the schema and decodes it.
    pub fn read<M: Message + Name + Default>(&self, bytes: &[u8]) -> Result<(M, Context), Vec<Problem>> {
        let checked = check(&M::full_name(), bytes, self.check_options);
        self.unknown_fields.set(self.unknown_fields.get() + checked.unknown.len() as u64);
        let proto = M::decode(bytes).map_err(|e| {
            let mut problems = checked.problems.clone();
            add_later(&mut problems, [Problem::new("", format!("found bytes that are no {}: {e}", M::full_name()))]);
            problems
        })?;
        Ok((proto, Context::with_problems(checked.problems)))
    }
}

fn listen(listener: &Listener) {
    if let Err(error) = listener.sockets.listen() {
        tracing::error!(target: "config", "listener '{}' cannot listen: {error}", listener.config.name);
    }
}

/// True if an update can keep the sockets.
fn same_sockets(old: &config::listener::Listener, new: &config::listener::Listener) -> bool {
    let addresses = |l: &config::listener::Listener| format!("{:?}", l.addresses);
    addresses(old) == addresses(new)
        && (old.bind_to_port, old.transparent, old.freebind, old.reuse_port, old.tcp_backlog_size)
            == (new.bind_to_port, new.transparent, new.freebind, new.reuse_port, new.tcp_backlog_size)
        && format!("{:?}", old.socket_options) == format!("{:?}", new.socket_options)
}
