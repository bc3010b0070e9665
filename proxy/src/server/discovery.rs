//! Finding the hosts of clusters whose configuration does not hold them: by DNS.
//!
//! Follows the store: what is new is started, what changed is started anew, what is gone ends.

use super::control::Control;
use crate::upstream::{
    Cluster, ClusterInfo,
    dns::{DnsDiscovery, Found, Hickory, Resolve},
};
use foldhash::HashMap;
use std::{cell::RefCell, collections::BTreeSet, rc::Rc, sync::Arc};
use weft_config::cluster::Discovery;

/// All discoveries that run.
#[derive(Default)]
pub struct Discoveries {
    running: RefCell<HashMap<String, Running>>,
    resolver: RefCell<Option<Rc<dyn Resolve>>>,
}

struct Running {
    info: Arc<ClusterInfo>,
    _dns: Option<DnsDiscovery>,
}

impl Discoveries {
    /// Starts, keeps and ends discoveries so that they fit the clusters of these names in the store.
    pub fn follow(&self, control: &Rc<Control>, touched: &BTreeSet<String>) {
        let store = control.store.borrow();
        let mut running = self.running.borrow_mut();
        for name in touched {
            if running.get(name).is_some_and(|r| !store.clusters.holds(&r.info)) {
                running.remove(name);
            }
        }
        for cluster in touched.iter().flat_map(|name| store.clusters.named(name)).map(|entry| &entry.value) {
            let name = &cluster.info.config.name;
            let (Discovery::StrictDns(dns) | Discovery::LogicalDns(dns)) = &cluster.info.config.discovery else {
                continue;
            };
            if running.contains_key(name) {
                continue;
            }
            let resolver: Rc<dyn Resolve> = match &dns.resolver {
                Some(own) => Rc::new(Hickory::new(own)),
                None => {
                    let settings = &control.boot.bootstrap.dns_resolver;
                    self.resolver.borrow_mut().get_or_insert_with(|| Rc::new(Hickory::new(settings))).clone()
                }
            };
            let (weak, of) = (Rc::downgrade(control), name.clone());
            let on_found = move |found: Found| {
                let Some(control) = weak.upgrade() else { return };
                let with = |before: &Cluster| before.with_assignment(&found.assignment);
                control.store.borrow_mut().set_cluster_hosts(&of, found.is_warm, with);
                control.settle();
            };
            let dns = DnsDiscovery::start(cluster, resolver, &control.registry, on_found);
            running.insert(name.clone(), Running { info: cluster.info.clone(), _dns: dns });
        }
    }
}
