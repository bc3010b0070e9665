//! What each group of nodes gets now, and who is told what happens.
//!
//! Written by the owner of the configuration, read by every stream. A stream is woken by every change and compares.

use super::snapshot::{Resource, Snapshot};
use crate::{envoy::config::core::v3::Node, resource::ResourceType};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, RwLock},
};
use tokio::sync::watch;

/// What happens between the control plane and its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client said for the first time on a stream who it is.
    Connected { node: String, peer: String },
    /// A client's stream ended.
    Disconnected { node: String, peer: String },
    /// A client took a version of a kind.
    Acked { node: String, kind: ResourceType, version: String },
    /// A client refused (a part of) a version of a kind.
    Nacked { node: String, kind: ResourceType, version: String, message: String },
}

type Groups = dyn Fn(&Node) -> Vec<String> + Send + Sync;
type Listener = dyn Fn(Event) + Send + Sync;

#[derive(Default)]
struct Parts {
    given: BTreeMap<String, Arc<Snapshot>>,
    beside: BTreeMap<String, Snapshot>,
}

/// Snapshots by group of nodes.
pub struct SnapshotCache {
    groups: Box<Groups>,
    on_event: Box<Listener>,
    snapshots: RwLock<Arc<BTreeMap<String, Arc<Snapshot>>>>,
    /// What `set` and `set_all` said, and what is there beside it.
    parts: RwLock<Parts>,
    changed: watch::Sender<u64>,
}

impl SnapshotCache {
    /// An empty cache. `groups` names the groups that a node may belong to, the best first: it gets the snapshot of
    /// the first that has one.
    pub fn new(groups: impl Fn(&Node) -> Vec<String> + Send + Sync + 'static) -> Self {
        Self {
            groups: Box::new(groups),
            on_event: Box::new(|_| {}),
            snapshots: RwLock::default(),
            parts: RwLock::default(),
            changed: watch::Sender::default(),
        }
    }

    /// Calls `on_event` with whatever happens; it must not wait.
    #[must_use]
    pub fn with_events(mut self, on_event: impl Fn(Event) + Send + Sync + 'static) -> Self {
        self.on_event = Box::new(on_event);
        self
    }

    /// A node belongs to the group of its id, else of its cluster, else to the group with the empty name.
    pub fn by_id_and_cluster(node: &Node) -> Vec<String> {
        // A node without an id may still be of a cluster.
        let named = [&node.id, &node.cluster].into_iter().filter(|name| !name.is_empty());
        named.cloned().chain([String::new()]).collect()
    }

    /// Sets what a group gets.
    pub fn set(&self, group: &str, snapshot: Snapshot) {
        self.change(|parts| drop(parts.given.insert(group.to_owned(), Arc::new(snapshot))));
    }

    /// Sets all groups at once; a group that is not among them is no more.
    pub fn set_all(&self, snapshots: BTreeMap<String, Snapshot>) {
        self.change(|parts| {
            let before = std::mem::take(&mut parts.given);
            let keep = |(group, snapshot): (String, Snapshot)| match before.get(&group) {
                Some(old) if **old == snapshot => (group, old.clone()),
                _ => (group, Arc::new(snapshot)),
            };
            parts.given = snapshots.into_iter().map(keep).collect();
        });
    }

    /// Sets resources that a group gets beside those of [`set`](Self::set) and [`set_all`](Self::set_all), in place of those
    /// that were set so before. Where both have a name, the others' counts.
    pub fn set_beside(&self, group: &str, kind: ResourceType, resources: impl IntoIterator<Item = (String, Resource)>) {
        self.change(|parts| {
            let beside = std::mem::take(parts.beside.entry(group.to_owned()).or_default());
            parts.beside.insert(group.to_owned(), beside.with(kind, resources));
        });
    }

    /// What a node gets now.
    pub fn snapshot(&self, node: &Node) -> Arc<Snapshot> {
        let all = self.all();
        (self.groups)(node).iter().find_map(|group| all.get(group).cloned()).unwrap_or_default()
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn tell(&self, event: Event) {
        (self.on_event)(event);
    }

    fn all(&self) -> Arc<BTreeMap<String, Arc<Snapshot>>> {
        self.snapshots.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        change(&mut parts);
        let mut all = parts.given.clone();
        for (group, beside) in &parts.beside {
            let base = parts.given.get(group).or_else(|| parts.given.get("")).cloned().unwrap_or_default();
            all.insert(group.clone(), Arc::new(base.joined(beside)));
        }
        *self.snapshots.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(all);
        self.changed.send_modify(|n| *n += 1);
    }
}

impl fmt::Debug for SnapshotCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotCache").field("groups", &self.all().keys().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}
