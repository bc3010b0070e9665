//! Makes the active checks of hosts on the control thread: a task a host, for as long as the host is in its cluster.

use super::{control::Control, task::Task};
use crate::{
    snapshot::Store,
    upstream::{
        Cluster, ClusterInfo, HealthFlags, Host, HostState,
        health_check::{self, Checked, HealthCheckStats, Session, Transition, is_checked},
        probe::Probe,
    },
};
use foldhash::HashMap;
use std::{
    cell::RefCell,
    collections::BTreeSet,
    rc::{Rc, Weak},
    sync::Arc,
};

/// The clusters whose hosts are checked.
#[derive(Default)]
pub struct HealthChecks {
    running: RefCell<HashMap<*const ClusterInfo, Running>>,
}

struct Running {
    info: Arc<ClusterInfo>,
    stats: Arc<HealthCheckStats>,
    hosts: HashMap<*const HostState, OfHost>,
}

/// The checks of one host.
struct OfHost {
    host: Arc<Host>,
    _task: Task,
}

impl HealthChecks {
    /// Starts, keeps and ends so that it fits the clusters of these names in the store, those that warm too.
    pub fn follow(&self, control: &Rc<Control>, touched: &BTreeSet<String>) {
        let store = control.store.borrow();
        let mut running = self.running.borrow_mut();
        running.retain(|_, r| !touched.contains(r.info.name()) || store.clusters.holds(&r.info));
        for cluster in touched.iter().flat_map(|name| store.clusters.named(name)).map(|entry| &entry.value) {
            let info = &cluster.info;
            if info.checks.is_none() {
                continue;
            }
            let entry = running.entry(Arc::as_ptr(info)).or_insert_with(|| {
                let prefix = format!("{}.health_check", info.stat_prefix);
                control.registry.detach(&prefix);
                Running { info: info.clone(), stats: control.registry.attach(&prefix), hosts: HashMap::default() }
            });
            entry.follow(control, cluster);
        }
    }
}

impl Running {
    fn follow(&mut self, control: &Rc<Control>, cluster: &Arc<Cluster>) {
        let mut before = std::mem::take(&mut self.hosts);
        for host in cluster.hosts.hosts().filter(|host| is_checked(host)) {
            let key = Arc::as_ptr(&host.state);
            // Another weight or other metadata are no reason to begin anew.
            let kept = before.remove(&key).filter(|known| known.host.is_checked_as(host));
            let of_host = kept.unwrap_or_else(|| {
                let run = run(Rc::downgrade(control), self.info.clone(), host.clone(), self.stats.clone());
                OfHost { host: host.clone(), _task: Task::spawn(run) }
            });
            self.hosts.insert(key, of_host);
        }
        show(&self.stats, cluster);
    }
}

/// Shows how many hosts are healthy by their checks.
fn show(stats: &HealthCheckStats, cluster: &Cluster) {
    let count = |wanted: fn(HealthFlags) -> bool| {
        cluster.hosts.hosts().filter(|host| is_checked(host) && wanted(host.state.health.get())).count() as u64
    };
    stats.healthy.set(count(|flags| !flags.has(HealthFlags::FAILED_ACTIVE_HC)));
    stats.degraded.set(count(|flags| flags.has(HealthFlags::DEGRADED_ACTIVE_HC)));
}

async fn run(control: Weak<Control>, info: Arc<ClusterInfo>, host: Arc<Host>, stats: Arc<HealthCheckStats>) {
    let Some(checks) = &info.checks else { return };
    let mut rng = fastrand::Rng::new();
    let intervals = checks.check.intervals;
    if !intervals.initial_jitter.is_zero() {
        tokio::time::sleep(intervals.initial_jitter.mul_f64(rng.f64())).await;
    }
    let mut session = Session::default();
    let mut probe = {
        let Some(control) = control.upgrade() else { return };
        Probe::new(info.clone(), host.clone(), checks.clone(), control.upstreams.connector(), stats.clone())
    };
    loop {
        let runtime = {
            let Some(control) = control.upgrade() else { return };
            control.runtime.borrow().snapshot()
        };
        stats.attempt.inc();
        let result = probe.check(&runtime).await;
        let is_good = matches!(result, Checked::Good { .. });
        if is_good { &stats.success } else { &stats.failure }.inc();
        if matches!(result, Checked::Unreachable | Checked::TimedOut) {
            stats.network_failure.inc();
        }
        let transition = session.checked(result, &checks.check, &host.state);
        let is_first = host.state.was_checked_now();
        let Some(control) = control.upgrade() else { return };
        let find = |store: &Store| {
            let mut clusters = store.clusters.named(info.name()).map(|entry| &entry.value);
            clusters.find(|cluster| Arc::ptr_eq(&cluster.info, &info)).cloned()
        };
        let Some(cluster) = find(&control.store.borrow()) else { return };
        if !cluster.hosts.holds(&host) {
            return;
        }
        let is_back = is_good && control.outliers.was_good(&info, &host.state);
        if transition == Transition::Changed || is_back {
            show(&stats, &cluster);
            control.health_changed(info.id);
        }
        if is_first && cluster.is_checked() {
            // It may have waited for this.
            control.settle();
        }
        let had_traffic = cluster.had_traffic();
        drop((control, cluster));
        tokio::time::sleep(health_check::interval(&intervals, is_good, transition, had_traffic, &mut rng)).await;
    }
}
