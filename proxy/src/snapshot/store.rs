//! The resources that are in force, and what they compiled to. Lives on the control thread.
//!
//! A resource goes in as bytes. It is checked against the schema, read, compiled; only then does it replace what was
//! there. A resource with problems changes nothing.

use super::Snapshot;
use crate::{
    base::RuntimeSnapshot,
    http::{request_id, thread::RouteTables},
    listener::{CompileContext, Listener, Sockets},
    network::RouteSlots,
    observe::access_log::LogWriter,
    route::RouteTable,
    upstream::{Cluster, ClusterTable, Names},
};
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};
use weft_config::{self as config, Context, Problem, config_source::ConfigSource};
use weft_control_api::{CheckOptions, Message, Name, check};

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

/// The resources in force.
pub struct Store {
    names: Names,
    routes: RouteSlots,
    pub tables: BTreeMap<String, Entry<RouteTable>>,
    pub clusters: BTreeMap<String, Entry<Cluster>>,
    /// In the order in which they came.
    pub listeners: Vec<(String, Entry<Listener>)>,
    pub runtime: Arc<RuntimeSnapshot>,
    workers: usize,
    log_writer: LogWriter,
    bind: Option<Arc<config::address::BindConfig>>,
    check_options: CheckOptions,
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
            clusters: BTreeMap::new(),
            listeners: Vec::new(),
            runtime,
            workers,
            log_writer,
            bind: bind.map(Arc::new),
            check_options,
        }
    }

    /// Adds or replaces a cluster. True if something changed.
    pub fn set_cluster(&mut self, bytes: &[u8], origin: Origin) -> Result<bool, Vec<Problem>> {
        let (proto, mut cx) = self.read(bytes)?;
        let read = config::Cluster::from_proto(proto, &mut cx);
        let (config, _) = cx.finish(read)?;
        let name = config.name.clone();
        if let Some(entry) = self.clusters.get(&name) {
            if entry.bytes == bytes {
                return Ok(false);
            }
            if entry.origin == Origin::Static {
                return Err(match origin {
                    Origin::Static => vec![Problem::new(
                        "name",
                        format!("found {name:?} a second time: cluster names must be unique"),
                    )],
                    Origin::Dynamic(_) => {
                        vec![Problem::new("name", format!("found {name:?}, which is a static cluster"))]
                    }
                });
            }
        }
        let id = self.names.intern(&name);
        let cluster = Cluster::compile(id, Arc::new(config), self.bind.as_ref(), origin != Origin::Static);
        self.clusters.insert(name, Entry { value: cluster, bytes: bytes.to_vec(), origin, updated: SystemTime::now() });
        Ok(true)
    }

    /// Removes a cluster that came over xDS. True if it was there.
    pub fn remove_cluster(&mut self, name: &str) -> bool {
        let is_dynamic = self.clusters.get(name).is_some_and(|entry| entry.origin != Origin::Static);
        is_dynamic && self.clusters.remove(name).is_some()
    }

    /// Gives a cluster the hosts that were found for it. True if it is there.
    pub fn set_cluster_hosts(&mut self, name: &str, with: impl FnOnce(&Cluster) -> Arc<Cluster>) -> bool {
        let Some(entry) = self.clusters.get_mut(name) else { return false };
        entry.value = with(&entry.value);
        true
    }

    /// Adds or replaces a listener, binding its addresses if they are new. True if something changed.
    pub fn set_listener(&mut self, bytes: &[u8], origin: Origin, bind: bool) -> Result<bool, Vec<Problem>> {
        let (proto, mut cx) = self.read(bytes)?;
        let read = config::listener::Listener::from_proto(proto, &mut cx);
        let mut finished = std::mem::take(&mut cx);
        let Some(mut config) = read else {
            finished.problem("cannot be read");
            return Err(finished.finish::<()>(None).err().unwrap_or_default());
        };
        if config.name.is_empty() {
            config.name = request_id::uuid().to_str().unwrap_or_default().to_owned();
        }
        let at = self.listeners.iter().position(|(name, _)| *name == config.name);
        let before = at.and_then(|at| self.listeners.get(at)).map(|(_, entry)| entry);
        if let Some(entry) = before {
            if entry.bytes == bytes {
                return Ok(false);
            }
            if entry.origin == Origin::Static {
                finished.problem_at("name", format!("found {:?}, which is a static listener", config.name));
            }
        }
        let clusters = &self.clusters;
        let exists = |name: &str| clusters.contains_key(name);
        let mut context = CompileContext {
            names: &mut self.names,
            log_writer: &self.log_writer,
            routes: &mut self.routes,
            cluster_exists: &exists,
        };
        // The sockets come last: nothing is bound for a listener that has problems.
        let unbound = Arc::new(Sockets::unbound(&config));
        let mut listener = Listener::compile(config, unbound, &mut context, &mut finished);
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
        let name = listener.config.name.clone();
        let entry = Entry { value: Arc::new(listener), bytes: bytes.to_vec(), origin, updated: SystemTime::now() };
        match at {
            Some(at) => self.listeners[at] = (name, entry),
            None => self.listeners.push((name, entry)),
        }
        Ok(true)
    }

    /// Removes a listener that came over xDS. True if it was there.
    pub fn remove_listener(&mut self, name: &str) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|(n, entry)| n != name || entry.origin == Origin::Static);
        before != self.listeners.len()
    }

    /// Adds or replaces a route configuration of RDS. True if something changed.
    pub fn set_routes(&mut self, bytes: &[u8], origin: Origin) -> Result<bool, Vec<Problem>> {
        let (proto, mut cx) = self.read(bytes)?;
        let read = config::route::RouteConfiguration::from_proto(proto, &mut cx);
        let (config, _) = cx.finish(read)?;
        if self.tables.get(&config.name).is_some_and(|entry| entry.bytes == bytes) {
            return Ok(false);
        }
        let mut cx = Context::new();
        if config.validate_clusters == Some(true) {
            for name in config.clusters().filter(|name| !self.clusters.contains_key(*name)) {
                cx.problem(format!("route: unknown cluster '{name}'"));
            }
        }
        let table = RouteTable::compile(&config, &mut self.names, &mut cx);
        let (table, _) = cx.finish(Some(table))?;
        let entry = Entry { value: Arc::new(table), bytes: bytes.to_vec(), origin, updated: SystemTime::now() };
        self.tables.insert(config.name, entry);
        Ok(true)
    }

    pub fn remove_routes(&mut self, name: &str) -> bool {
        self.tables.remove(name).is_some()
    }

    /// The route configurations that listeners refer to, with their sources.
    pub fn wanted_routes(&self) -> BTreeMap<String, ConfigSource> {
        let names = self.listeners.iter().flat_map(|(_, entry)| &entry.value.routes);
        names.filter_map(|name| Some((name.clone(), self.routes.get(name)?.1.clone()))).collect()
    }

    /// What is in force now. Parts are shared with earlier snapshots where nothing changed.
    pub fn snapshot(&self) -> Snapshot {
        let mut tables: RouteTables = vec![None; self.routes.len()];
        for (name, entry) in &self.tables {
            if let Some((slot, _)) = self.routes.get(name)
                && let Some(seat) = tables.get_mut(slot.0 as usize)
            {
                *seat = Some(entry.value.clone());
            }
        }
        Snapshot {
            listeners: Arc::new(self.listeners.iter().map(|(_, entry)| entry.value.clone()).collect()),
            clusters: Arc::new(ClusterTable::new(
                self.clusters.values().map(|entry| entry.value.clone()),
                Arc::new(self.names.clone()),
            )),
            routes: Arc::new(tables),
            runtime: self.runtime.clone(),
        }
    }

    /// Checks a resource against the schema and decodes it.
    fn read<M: Message + Name + Default>(&self, bytes: &[u8]) -> Result<(M, Context), Vec<Problem>> {
        let checked = check(&M::full_name(), bytes, self.check_options);
        if !checked.problems.is_empty() {
            return Err(checked.problems);
        }
        let proto = M::decode(bytes)
            .map_err(|e| vec![Problem::new("", format!("found bytes that are no {}: {e}", M::full_name()))])?;
        Ok((proto, Context::new()))
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
