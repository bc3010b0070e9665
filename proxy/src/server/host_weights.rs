//! Weights of hosts that follow from their own load reports: made on the control thread, every so often a cluster.

use super::{control::Control, task::Task};
use crate::upstream::{Cluster, ClusterInfo};
use foldhash::HashMap;
use std::{cell::RefCell, collections::BTreeSet, rc::Rc, sync::Arc};
use weft_config::load_balancing::PolicyKind;

/// The clusters whose weights are made.
#[derive(Default)]
pub struct HostWeights {
    running: RefCell<HashMap<String, Running>>,
}

struct Running {
    info: Arc<ClusterInfo>,
    _task: Task,
}

impl HostWeights {
    /// Starts, keeps and ends so that it fits the clusters of these names in the store.
    pub fn follow(&self, control: &Rc<Control>, touched: &BTreeSet<String>) {
        let store = control.store.borrow();
        let mut running = self.running.borrow_mut();
        for name in touched {
            if running.get(name).is_some_and(|r| !store.clusters.holds(&r.info)) {
                running.remove(name);
            }
        }
        for cluster in touched.iter().flat_map(|name| store.clusters.named(name)).map(|entry| &entry.value) {
            let info = &cluster.info;
            let PolicyKind::ClientSideWeightedRoundRobin(policy) = &info.config.load_balancing.policy.innermost().kind
            else {
                continue;
            };
            if running.contains_key(info.name()) {
                continue;
            }
            let (weak, of, every) = (Rc::downgrade(control), info.clone(), policy.weight_update_period);
            let task = Task::spawn(async move {
                loop {
                    tokio::time::sleep(every).await;
                    let Some(control) = weak.upgrade() else { return };
                    let found =
                        control.store.borrow().clusters.in_force().get(of.name()).map(|entry| entry.value.clone());
                    if found.as_deref().is_some_and(Cluster::update_weights) {
                        control.health_changed(of.id);
                    }
                }
            });
            running.insert(info.name().to_owned(), Running { info: info.clone(), _task: task });
        }
    }
}
