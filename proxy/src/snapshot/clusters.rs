//! The clusters in force and those that warm, by name; and what became another since followers were told.
//!
//! Part of the store. Who follows clusters is told of those that were touched, so that a change costs what changed however many there
//! are. Invariant: the table holds what is in force, and `services` who has its hosts from where, at every moment.

use super::Entry;
use crate::upstream::{Cluster, ClusterId, ClusterInfo, ClusterTable, Names};
use foldhash::HashMap;
use smallvec::SmallVec;
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};
use weft_config::{ConfigSource, cluster::Discovery};

/// All clusters.
#[derive(Default)]
pub struct Clusters {
    in_force: BTreeMap<String, Entry<Cluster>>,
    /// Clusters whose hosts or secrets are not known yet; those of the same name in force serve on meanwhile.
    warming: BTreeMap<String, Entry<Cluster>>,
    table: ClusterTable,
    /// Who has its hosts from EDS, by the name under which they are known there. A cluster that is in force and warms stands twice.
    services: HashMap<Box<str>, SmallVec<[ClusterId; 2]>>,
    touched: BTreeSet<String>,
    touched_services: BTreeSet<String>,
    /// The configuration of some cluster is another, or gone.
    reconfigured: bool,
}

impl Clusters {
    pub fn in_force(&self) -> &BTreeMap<String, Entry<Cluster>> {
        &self.in_force
    }

    pub fn warming(&self) -> &BTreeMap<String, Entry<Cluster>> {
        &self.warming
    }

    /// The cluster of this name that is in force, and the one that warms.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &Entry<Cluster>> {
        self.in_force.get(name).into_iter().chain(self.warming.get(name))
    }

    /// True if there is one of this name, in force or warming.
    pub fn has(&self, name: &str) -> bool {
        self.in_force.contains_key(name) || self.warming.contains_key(name)
    }

    /// True if `cluster` is in force or warms.
    pub fn holds(&self, cluster: &Arc<ClusterInfo>) -> bool {
        self.named(&cluster.config.name).any(|entry| Arc::ptr_eq(&entry.value.info, cluster))
    }

    /// In force and warming.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.in_force.values().chain(self.warming.values()).map(|entry| &entry.value)
    }

    /// A cluster begins to warm, in the place of another one that does.
    pub fn warm(&mut self, entry: Entry<Cluster>) {
        self.enter(&entry.value);
        let name = entry.value.info.config.name.clone();
        if let Some(before) = self.warming.insert(name, entry) {
            self.leave(&before.value);
        }
    }

    /// What warms is in force from now on, as `with` makes it; it takes the place of what served meanwhile.
    pub fn put_in_force(&mut self, name: &str, with: impl FnOnce(&Arc<Cluster>) -> Arc<Cluster>) {
        let Some(mut entry) = self.warming.remove(name) else { return };
        entry.value = with(&entry.value);
        self.touched.insert(name.to_owned());
        self.table.set(entry.value.info.id, Some(entry.value.clone()));
        if let Some(before) = self.in_force.insert(name.to_owned(), entry) {
            self.leave(&before.value);
        }
    }

    /// The cluster of this name is gone.
    pub fn remove(&mut self, name: &str) {
        let gone: Vec<_> = self.in_force.remove(name).into_iter().chain(self.warming.remove(name)).collect();
        for entry in gone {
            self.table.set(entry.value.info.id, None);
            self.leave(&entry.value);
        }
    }

    /// Another version of a cluster with the same configuration, in the place of the one that warms or else of the one in force.
    pub fn replace(&mut self, name: &str, with: impl FnOnce(&Cluster) -> Arc<Cluster>) {
        if let Some(entry) = self.warming.get_mut(name) {
            entry.value = with(&entry.value);
        } else if let Some(entry) = self.in_force.get_mut(name) {
            entry.value = with(&entry.value);
            self.table.set(entry.value.info.id, Some(entry.value.clone()));
        } else {
            return;
        }
        self.touched.insert(name.to_owned());
    }

    /// Takes over the health that the hosts of a cluster have now; gives the cluster if it is in force.
    pub fn refresh_health(&mut self, name: &str) -> Option<Arc<Cluster>> {
        if let Some(entry) = self.warming.get_mut(name) {
            entry.value = entry.value.with_health();
        }
        let entry = self.in_force.get_mut(name)?;
        entry.value = entry.value.with_health();
        self.table.set(entry.value.info.id, Some(entry.value.clone()));
        self.touched.insert(name.to_owned());
        Some(entry.value.clone())
    }

    fn enter(&mut self, cluster: &Cluster) {
        self.note(cluster);
        if let Discovery::Eds(eds) = &cluster.info.config.discovery {
            self.services.entry(eds.service_name.as_str().into()).or_default().push(cluster.info.id);
            self.touched_services.insert(eds.service_name.clone());
        }
    }

    fn leave(&mut self, cluster: &Cluster) {
        self.note(cluster);
        if let Discovery::Eds(eds) = &cluster.info.config.discovery
            && let Some(clusters) = self.services.get_mut(eds.service_name.as_str())
        {
            if let Some(place) = clusters.iter().position(|id| *id == cluster.info.id) {
                clusters.remove(place);
            }
            if clusters.is_empty() {
                self.services.remove(eds.service_name.as_str());
            }
            self.touched_services.insert(eds.service_name.clone());
        }
    }

    fn note(&mut self, cluster: &Cluster) {
        self.reconfigured = true;
        self.touched.insert(cluster.info.config.name.clone());
    }

    /// The numbers of the clusters whose hosts are known by this service name.
    pub fn of_service(&self, service: &str) -> impl Iterator<Item = ClusterId> {
        self.services.get(service).into_iter().flatten().copied()
    }

    /// Where the clusters of this service name have their hosts from.
    pub fn source_of(&self, service: &str, names: &Names) -> Option<ConfigSource> {
        let entries = self.of_service(service).flat_map(|id| self.named(names.name(id)));
        let source = |entry: &Entry<Cluster>| match &entry.value.info.config.discovery {
            Discovery::Eds(eds) if eds.service_name == service => Some(eds.config_source.clone()),
            _ => None,
        };
        entries.filter_map(source).next()
    }

    /// All that is in force, with the names that there are.
    pub fn table(&self, names: &Names) -> ClusterTable {
        self.table.named(Arc::new(names.clone()))
    }

    /// The names of clusters that came, went or are others since the last time.
    pub fn take_touched(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.touched)
    }

    /// Service names that came to be used, or may be used no longer.
    pub fn take_touched_services(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.touched_services)
    }

    /// True if since the last time a configuration came or went, of whatever cluster.
    pub fn take_reconfigured(&mut self) -> bool {
        mem::take(&mut self.reconfigured)
    }
}
