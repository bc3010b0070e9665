//! Finding the hosts of clusters whose configuration does not hold them: by DNS.
//!
//! Follows the store: what is new is started, what changed is started anew, what is gone ends.

use super::control::Control;
use crate::upstream::{
    ClusterInfo,
    dns::{DnsDiscovery, Hickory, Resolve},
};
use foldhash::HashMap;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};
use tokio::sync::Notify;
use weft_config::cluster::Discovery;

/// All discoveries that run.
#[derive(Default)]
pub struct Discoveries {
    running: RefCell<HashMap<String, Running>>,
    resolver: RefCell<Option<Rc<dyn Resolve>>>,
    warmed: Notify,
}

struct Running {
    info: Arc<ClusterInfo>,
    _dns: Option<DnsDiscovery>,
    is_warm: Rc<Cell<bool>>,
}

impl Discoveries {
    /// Starts, keeps and ends discoveries so that they fit the clusters in the store.
    pub fn follow(&self, control: &Rc<Control>) {
        let store = control.store.borrow();
        let mut running = self.running.borrow_mut();
        running.retain(|name, r| store.clusters.get(name).is_some_and(|entry| Arc::ptr_eq(&entry.value.info, &r.info)));
        for (name, entry) in &store.clusters {
            let (Discovery::StrictDns(dns) | Discovery::LogicalDns(dns)) = &entry.value.info.config.discovery else {
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
            let is_warm = Rc::new(Cell::new(false));
            let (weak, warm, cluster) = (Rc::downgrade(control), is_warm.clone(), name.clone());
            let found = move |found: crate::upstream::dns::Found| {
                let Some(control) = weak.upgrade() else { return };
                control
                    .store
                    .borrow_mut()
                    .set_cluster_hosts(&cluster, |before| before.with_assignment(&found.assignment));
                if found.is_warm {
                    warm.set(true);
                    control.discoveries.warmed.notify_waiters();
                }
                control.publish();
            };
            let dns = DnsDiscovery::start(&entry.value, resolver, &control.registry, found);
            running.insert(name.clone(), Running { info: entry.value.info.clone(), _dns: dns, is_warm });
        }
    }

    /// Waits until every cluster's names were asked for once.
    pub async fn warm(&self) {
        loop {
            let warmed = self.warmed.notified();
            if self.running.borrow().values().all(|running| running.is_warm.get()) {
                return;
            }
            warmed.await;
        }
    }
}
