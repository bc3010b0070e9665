//! Runs outlier detection on the control thread: a detector a cluster that asks for it, woken by runs of failures and by its
//! interval.

use super::{control::Control, task::Task};
use crate::{
    base::RuntimeSnapshot,
    upstream::{ClusterInfo, HostSet, HostState, outlier::Detector},
};
use foldhash::HashMap;
use std::{
    cell::RefCell,
    collections::BTreeSet,
    rc::{Rc, Weak},
    sync::Arc,
    time::Instant,
};

/// The clusters whose hosts are judged.
#[derive(Default)]
pub struct Outliers {
    running: RefCell<HashMap<String, Running>>,
}

struct Running {
    info: Arc<ClusterInfo>,
    hosts: Arc<HostSet>,
    detector: Rc<RefCell<Detector>>,
    _task: Task,
}

impl Outliers {
    /// An active check of a host was good; true if that brought it back.
    pub fn was_good(&self, info: &ClusterInfo, state: &Arc<HostState>) -> bool {
        let running = self.running.borrow();
        let of_cluster = running.get(info.name()).filter(|r| std::ptr::eq(&*r.info, info));
        of_cluster.is_some_and(|r| r.detector.borrow_mut().was_good(state))
    }

    /// Starts, keeps and ends so that it fits the clusters of these names in the store; their hosts are known before they get
    /// traffic.
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
            let Some(config) = &info.config.outlier_detection else { continue };
            let known = running.get(info.name());
            if known.is_some_and(|r| Arc::ptr_eq(&r.info, info) && Arc::ptr_eq(&r.hosts, &cluster.hosts)) {
                continue;
            }
            let detector = match known {
                Some(r) if Arc::ptr_eq(&r.info, info) => r.detector.clone(),
                _ => {
                    let prefix = format!("{}.outlier_detection", info.stat_prefix);
                    // An earlier configuration's counts go on no longer.
                    control.registry.detach(&prefix);
                    let stats = control.registry.attach(&prefix);
                    Rc::new(RefCell::new(Detector::new(
                        (**config).clone(),
                        stats,
                        info.outlier.clone().unwrap_or_default(),
                        fastrand::Rng::new(),
                    )))
                }
            };
            detector.borrow_mut().follow(cluster.hosts.hosts());
            match running.get_mut(info.name()) {
                Some(r) if Arc::ptr_eq(&r.info, info) => r.hosts = cluster.hosts.clone(),
                _ => {
                    let task = run(Rc::downgrade(control), info.clone(), detector.clone());
                    let task = Task::spawn(task);
                    let hosts = cluster.hosts.clone();
                    running
                        .insert(info.name().to_owned(), Running { info: info.clone(), hosts, detector, _task: task });
                }
            }
        }
    }
}

async fn run(control: Weak<Control>, info: Arc<ClusterInfo>, detector: Rc<RefCell<Detector>>) {
    let (wake, interval) = {
        let detector = detector.borrow();
        (detector.wake(), detector.interval())
    };
    let mut next = tokio::time::Instant::now() + interval;
    loop {
        let is_tick = tokio::select! {
            () = wake.notified() => false,
            () = tokio::time::sleep_until(next) => true,
        };
        let Some(control) = control.upgrade() else { return };
        let runtime: Arc<RuntimeSnapshot> = control.runtime.borrow().snapshot();
        let mut detector = detector.borrow_mut();
        let changed = if is_tick {
            next = tokio::time::Instant::now() + interval;
            detector.tick(Instant::now(), &runtime)
        } else {
            detector.look(Instant::now(), &runtime)
        };
        if changed {
            control.health_changed(info.id);
        }
    }
}
