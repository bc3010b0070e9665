//! Outlier detection: which hosts of a cluster fail so much more than others that they are left out for a while (Envoy docs:
//! "Outlier detection").
//!
//! Workers tell a host's [`Monitor`] what became of each request; a run of failures wakes the control thread, where the
//! cluster's [`Detector`] decides, and looks at rates of success every interval. The detector does no I/O and is told the time.

use super::{
    health::HealthFlags,
    host::{Host, HostState},
};
use crate::{base::RuntimeSnapshot, stats};
use foldhash::HashMap;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use weft_config::cluster::OutlierDetection;

stats! {
    /// `cluster.NAME.outlier_detection.*`; written by the control thread.
    pub struct OutlierStats {
        gauge ejections_active,
        counter ejections_consecutive_5xx,
        counter ejections_detected_consecutive_5xx,
        counter ejections_detected_consecutive_gateway_failure,
        counter ejections_detected_consecutive_local_origin_failure,
        counter ejections_detected_degradation,
        counter ejections_detected_failure_percentage,
        counter ejections_detected_local_origin_failure_percentage,
        counter ejections_detected_local_origin_success_rate,
        counter ejections_detected_success_rate,
        counter ejections_enforced_consecutive_5xx,
        counter ejections_enforced_consecutive_gateway_failure,
        counter ejections_enforced_consecutive_local_origin_failure,
        counter ejections_enforced_failure_percentage,
        counter ejections_enforced_local_origin_failure_percentage,
        counter ejections_enforced_local_origin_success_rate,
        counter ejections_enforced_success_rate,
        counter ejections_enforced_total,
        counter ejections_overflow,
        counter ejections_success_rate,
        counter ejections_total,
    }
}

/// What became of a try at a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It answered with this status, or what its gRPC status stands for.
    Status(u16),
    /// There is a connection; what it is for comes later.
    Connected,
    /// There is a connection, and that is all that was wanted.
    ConnectedFinally,
    /// There was none, or it broke.
    Failed,
    TimedOut,
}

/// What workers saw of a host; shared by all threads.
#[derive(Debug, Default)]
pub struct Monitor {
    limits: [AtomicU32; RUNS],
    splits: AtomicBool,
    /// Failures since the last success, and whether there were so many that somebody has to look.
    runs: [AtomicU32; RUNS],
    due: [AtomicBool; RUNS],
    rates: [Rate; 2],
    wake: Arc<Notify>,
}

/// Requests and successes of this interval.
#[derive(Debug, Default)]
struct Rate {
    all: AtomicU32,
    good: AtomicU32,
    /// Percent, of the last interval that had enough requests; the bits of an `f32`, negative if there is none.
    shown: AtomicU32,
}

/// The kinds of runs of failures.
const RUNS: usize = 3;
const SERVER_ERROR: usize = 0;
const GATEWAY: usize = 1;
const LOCAL: usize = 2;

/// What the two rates are of: what hosts answer, and whether they could be reached.
const EXTERNAL: usize = 0;

impl Monitor {
    /// `wake` is notified when somebody has to look.
    pub fn new(wake: Arc<Notify>) -> Self {
        let this = Self { wake, ..Self::default() };
        this.rates.iter().for_each(|rate| rate.show(-1.0));
        this
    }

    /// Takes over the limits of a configuration.
    fn configure(&self, config: &OutlierDetection) {
        let limits =
            [config.consecutive_5xx, config.consecutive_gateway_failure, config.consecutive_local_origin_failure];
        self.limits.iter().zip(limits).for_each(|(limit, value)| limit.store(value, Relaxed));
        self.splits.store(config.split_external_local_origin_errors, Relaxed);
    }

    /// Counts what became of a try.
    pub fn report(&self, report: Report) {
        let splits = self.splits.load(Relaxed);
        match report {
            Report::Status(status) => self.status(status),
            Report::Connected | Report::ConnectedFinally if splits => {
                self.rates[1].count(true);
                self.runs[LOCAL].store(0, Relaxed);
            }
            Report::Failed | Report::TimedOut if splits => {
                self.rates[1].count(false);
                self.fails(LOCAL);
            }
            Report::Connected => {}
            Report::ConnectedFinally => self.status(200),
            Report::Failed => self.status(503),
            Report::TimedOut => self.status(504),
        }
    }

    fn status(&self, status: u16) {
        let good = !(500..600).contains(&status);
        self.rates[EXTERNAL].count(good);
        if (502..=504).contains(&status) {
            self.fails(GATEWAY);
        } else {
            self.runs[GATEWAY].store(0, Relaxed);
        }
        if good {
            self.runs[SERVER_ERROR].store(0, Relaxed);
        } else {
            self.fails(SERVER_ERROR);
        }
    }

    fn fails(&self, run: usize) {
        if self.runs[run].fetch_add(1, Relaxed) + 1 == self.limits[run].load(Relaxed) {
            self.due[run].store(true, Relaxed);
            self.wake.notify_one();
        }
    }

    fn forget_runs(&self) {
        self.runs.iter().for_each(|run| run.store(0, Relaxed));
    }

    /// The success rate of the last interval in percent, as `/clusters` shows it; negative if there was too little to tell.
    pub fn success_rate(&self, local_origin: bool) -> f32 {
        f32::from_bits(self.rates[usize::from(local_origin)].shown.load(Relaxed))
    }
}

impl Rate {
    fn count(&self, good: bool) {
        self.all.fetch_add(1, Relaxed);
        self.good.fetch_add(u32::from(good), Relaxed);
    }

    /// Ends the interval: all requests, and percent of success.
    fn take(&self) -> Option<(u32, f64)> {
        let (good, all) = (self.good.swap(0, Relaxed), self.all.swap(0, Relaxed));
        (all > 0).then(|| (all, 100.0 * f64::from(good.min(all)) / f64::from(all)))
    }

    fn show(&self, percent: f32) {
        self.shown.store(percent.to_bits(), Relaxed);
    }
}

/// How the hosts of a cluster did in the last interval: the average rate of success, and the one below which hosts are ejected,
/// in percent; -1 where there was too little to tell. Shown by `/clusters`.
#[derive(Debug)]
pub struct Summary([[AtomicU32; 2]; 2]);

impl Default for Summary {
    fn default() -> Self {
        let none = || AtomicU32::new((-1f32).to_bits());
        Self([[none(), none()], [none(), none()]])
    }
}

impl Summary {
    /// Average and threshold.
    pub fn get(&self, local_origin: bool) -> (f32, f32) {
        let [average, threshold] = &self.0[usize::from(local_origin)];
        (f32::from_bits(average.load(Relaxed)), f32::from_bits(threshold.load(Relaxed)))
    }

    fn set(&self, local_origin: bool, average: f64, threshold: f64) {
        let [shown_average, shown_threshold] = &self.0[usize::from(local_origin)];
        shown_average.store((average as f32).to_bits(), Relaxed);
        shown_threshold.store((threshold as f32).to_bits(), Relaxed);
    }
}

/// Why a host is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Consecutive5xx,
    GatewayFailure,
    LocalOriginFailure,
    SuccessRate { local_origin: bool },
    FailurePercentage { local_origin: bool },
}

/// Decides for one cluster.
pub struct Detector {
    config: OutlierDetection,
    stats: Arc<OutlierStats>,
    summary: Arc<Summary>,
    wake: Arc<Notify>,
    hosts: HashMap<*const HostState, Ejections>,
    active: usize,
    rng: fastrand::Rng,
}

/// One host's.
struct Ejections {
    state: Arc<HostState>,
    since: Option<Instant>,
    /// How many base times the present ejection, or the next one, takes.
    times: u32,
    jitter: Duration,
    /// The host is in the cluster now.
    is_there: bool,
}

impl Detector {
    pub fn new(config: OutlierDetection, stats: Arc<OutlierStats>, summary: Arc<Summary>, rng: fastrand::Rng) -> Self {
        Self { config, stats, summary, wake: Arc::default(), hosts: HashMap::default(), active: 0, rng }
    }

    /// Notified when some host's monitor wants [`Self::look`] to be called.
    pub fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    pub fn interval(&self) -> Duration {
        self.config.interval
    }

    /// The cluster's hosts are these now.
    pub fn follow<'h>(&mut self, hosts: impl Iterator<Item = &'h Arc<Host>>) {
        self.hosts.values_mut().for_each(|host| host.is_there = false);
        for host in hosts {
            let monitor = host.state.monitor(|| Monitor::new(self.wake.clone()));
            let entry = self.hosts.entry(Arc::as_ptr(&host.state)).or_insert_with(|| {
                monitor.configure(&self.config);
                Ejections { state: host.state.clone(), since: None, times: 0, jitter: Duration::ZERO, is_there: true }
            });
            entry.is_there = true;
        }
        self.hosts.retain(|_, host| host.is_there);
        self.count_active();
    }

    fn count_active(&mut self) {
        self.active = self.hosts.values().filter(|host| host.since.is_some()).count();
        self.stats.ejections_active.set(self.active as u64);
    }

    /// Acts upon runs of failures; true if some host's health changed.
    pub fn look(&mut self, now: Instant, runtime: &RuntimeSnapshot) -> bool {
        let states: Vec<_> = self.hosts.values().map(|host| host.state.clone()).collect();
        let mut changed = false;
        for state in states {
            let Some(monitor) = state.outlier() else { continue };
            // In the order in which a failure counts towards them.
            let runs = [
                (GATEWAY, Kind::GatewayFailure),
                (SERVER_ERROR, Kind::Consecutive5xx),
                (LOCAL, Kind::LocalOriginFailure),
            ];
            for (run, kind) in runs {
                if !monitor.due[run].swap(false, Relaxed) || is_ejected(&state) {
                    continue;
                }
                changed |= self.detected(&state, kind, now, runtime);
                // Counted anew, so that a run that goes on is seen again.
                monitor.runs[run].store(0, Relaxed);
            }
        }
        changed
    }

    /// An active check of a host was good; true if that brought it back.
    pub fn was_good(&mut self, state: &Arc<HostState>) -> bool {
        let is_back = self.config.check_brings_back
            && !state.health.get().has(HealthFlags::FAILED_ACTIVE_HC)
            && self
                .hosts
                .get_mut(&Arc::as_ptr(state))
                .filter(|host| host.since.is_some())
                .map(Ejections::bring_back)
                .is_some();
        if is_back {
            self.count_active();
        }
        is_back
    }

    /// The interval is over; true if some host's health changed.
    pub fn tick(&mut self, now: Instant, runtime: &RuntimeSnapshot) -> bool {
        let base = milliseconds(runtime, "base_ejection_time_ms", self.config.base_ejection_time);
        let most = milliseconds(runtime, "max_ejection_time_ms", self.config.max_ejection_time);
        let mut changed = false;
        for host in self.hosts.values_mut() {
            if let Some(since) = host.since
                && (base * host.times).min(most) + host.jitter <= now.saturating_duration_since(since)
            {
                host.bring_back();
                changed = true;
            }
        }
        self.count_active();
        for local_origin in [false, true] {
            changed |= self.judge_rates(local_origin, now, runtime);
        }
        for host in self.hosts.values_mut().filter(|host| host.since.is_none()) {
            host.times = host.times.saturating_sub(1);
        }
        changed
    }

    /// Ejects by what of the last interval's requests succeeded.
    fn judge_rates(&mut self, local_origin: bool, now: Instant, runtime: &RuntimeSnapshot) -> bool {
        let setting = |key, default| integer(runtime, key, default);
        let config = self.config.clone();
        let success_hosts = setting("success_rate_minimum_hosts", config.success_rate_minimum_hosts);
        let success_volume = setting("success_rate_request_volume", config.success_rate_request_volume);
        let failure_hosts = setting("failure_percentage_minimum_hosts", config.failure_percentage_minimum_hosts);
        let failure_volume = setting("failure_percentage_request_volume", config.failure_percentage_request_volume);
        let mut rates = Vec::new();
        for host in self.hosts.values() {
            let Some(monitor) = host.state.outlier() else { continue };
            let rate = &monitor.rates[usize::from(local_origin)];
            rate.show(-1.0);
            let taken = rate.take();
            if let Some((volume, percent)) = taken.filter(|_| host.since.is_none()) {
                if volume >= success_volume.min(failure_volume) {
                    rate.show(percent as f32);
                }
                rates.push((host.state.clone(), volume, percent));
            }
        }
        let of_volume = |volume| rates.iter().filter(move |(_, v, _)| *v >= volume);
        let mut detected = Vec::new();
        self.summary.set(local_origin, -1.0, -1.0);
        let successes: Vec<f64> = of_volume(success_volume).map(|(_, _, percent)| *percent).collect();
        if !successes.is_empty() && successes.len() >= success_hosts as usize {
            let factor = setting("success_rate_stdev_factor", config.success_rate_stdev_factor);
            let (average, threshold) = success_threshold(&successes, f64::from(factor) / 1000.0);
            self.summary.set(local_origin, average, threshold);
            let bad = of_volume(success_volume).filter(|(_, _, percent)| *percent < threshold);
            detected.extend(bad.map(|(state, ..)| (state.clone(), Kind::SuccessRate { local_origin })));
        }
        let count = of_volume(failure_volume).count();
        if count > 0 && count >= failure_hosts as usize {
            let threshold = setting("failure_percentage_threshold", config.failure_percentage_threshold);
            let bad = of_volume(failure_volume).filter(|(_, _, percent)| 100.0 - percent >= f64::from(threshold));
            detected.extend(bad.map(|(state, ..)| (state.clone(), Kind::FailurePercentage { local_origin })));
        }
        let mut changed = false;
        for (state, kind) in detected {
            changed |= self.detected(&state, kind, now, runtime);
        }
        changed
    }

    /// Counts, and ejects the host if it may be; true if it was.
    fn detected(&mut self, state: &Arc<HostState>, kind: Kind, now: Instant, runtime: &RuntimeSnapshot) -> bool {
        let stats = self.stats.clone();
        kind.detected(&stats).inc();
        match kind {
            Kind::Consecutive5xx => stats.ejections_consecutive_5xx.inc(),
            Kind::SuccessRate { .. } => stats.ejections_success_rate.inc(),
            _ => {}
        }
        let most = integer(runtime, "max_ejection_percent", self.config.max_ejection_percent).min(100);
        let share = 100.0 * (self.active + 1) as f64 / self.hosts.len().max(1) as f64;
        let is_first = self.config.always_eject_one_host && self.active == 0;
        if share > f64::from(most) && !is_first {
            stats.ejections_overflow.inc();
            return false;
        }
        if matches!(kind, Kind::Consecutive5xx | Kind::SuccessRate { .. }) {
            stats.ejections_total.inc();
        }
        let (key, percent) = kind.enforcing(&self.config);
        let jitter = milliseconds(runtime, "max_ejection_time_jitter_ms", self.config.max_ejection_time_jitter);
        if !runtime.enables(&format!("outlier_detection.{key}"), percent.into(), self.rng.u64(..)) {
            return false;
        }
        let base = milliseconds(runtime, "base_ejection_time_ms", self.config.base_ejection_time);
        let longest = milliseconds(runtime, "max_ejection_time_ms", self.config.max_ejection_time);
        let Some(host) = self.hosts.get_mut(&Arc::as_ptr(state)) else { return false };
        if host.since.is_some() {
            return false;
        }
        host.since = Some(now);
        host.jitter = jitter.mul_f64(self.rng.f64());
        if base * host.times < longest {
            host.times += 1;
        }
        state.health.set(HealthFlags::FAILED_OUTLIER_CHECK);
        stats.ejections_enforced_total.inc();
        kind.enforced(&stats).inc();
        self.count_active();
        true
    }
}

impl Ejections {
    fn bring_back(&mut self) {
        self.since = None;
        self.state.health.clear(HealthFlags::FAILED_OUTLIER_CHECK);
        self.state.becomes_healthy();
        self.state.outlier().into_iter().for_each(Monitor::forget_runs);
    }
}

impl Drop for Detector {
    /// Whoever stays in the cluster is no longer judged.
    fn drop(&mut self) {
        for host in self.hosts.values().filter(|host| host.since.is_some()) {
            host.state.health.clear(HealthFlags::FAILED_OUTLIER_CHECK);
        }
        self.stats.ejections_active.set(0);
    }
}

impl Kind {
    /// The runtime key of how likely it is acted upon, and what the configuration says.
    fn enforcing(self, config: &OutlierDetection) -> (&'static str, u32) {
        let e = &config.enforcing;
        match self {
            Self::Consecutive5xx => ("enforcing_consecutive_5xx", e.consecutive_5xx),
            Self::GatewayFailure => ("enforcing_consecutive_gateway_failure", e.consecutive_gateway_failure),
            Self::LocalOriginFailure => {
                ("enforcing_consecutive_local_origin_failure", e.consecutive_local_origin_failure)
            }
            Self::SuccessRate { local_origin: false } => ("enforcing_success_rate", e.success_rate),
            Self::SuccessRate { local_origin: true } => {
                ("enforcing_local_origin_success_rate", e.local_origin_success_rate)
            }
            Self::FailurePercentage { local_origin: false } => ("enforcing_failure_percentage", e.failure_percentage),
            Self::FailurePercentage { local_origin: true } => {
                ("enforcing_failure_percentage_local_origin", e.failure_percentage_local_origin)
            }
        }
    }

    fn detected(self, stats: &OutlierStats) -> &crate::observe::stats::Counter {
        match self {
            Self::Consecutive5xx => &stats.ejections_detected_consecutive_5xx,
            Self::GatewayFailure => &stats.ejections_detected_consecutive_gateway_failure,
            Self::LocalOriginFailure => &stats.ejections_detected_consecutive_local_origin_failure,
            Self::SuccessRate { local_origin: false } => &stats.ejections_detected_success_rate,
            Self::SuccessRate { local_origin: true } => &stats.ejections_detected_local_origin_success_rate,
            Self::FailurePercentage { local_origin: false } => &stats.ejections_detected_failure_percentage,
            Self::FailurePercentage { local_origin: true } => &stats.ejections_detected_local_origin_failure_percentage,
        }
    }

    fn enforced(self, stats: &OutlierStats) -> &crate::observe::stats::Counter {
        match self {
            Self::Consecutive5xx => &stats.ejections_enforced_consecutive_5xx,
            Self::GatewayFailure => &stats.ejections_enforced_consecutive_gateway_failure,
            Self::LocalOriginFailure => &stats.ejections_enforced_consecutive_local_origin_failure,
            Self::SuccessRate { local_origin: false } => &stats.ejections_enforced_success_rate,
            Self::SuccessRate { local_origin: true } => &stats.ejections_enforced_local_origin_success_rate,
            Self::FailurePercentage { local_origin: false } => &stats.ejections_enforced_failure_percentage,
            Self::FailurePercentage { local_origin: true } => &stats.ejections_enforced_local_origin_failure_percentage,
        }
    }
}

fn is_ejected(state: &HostState) -> bool {
    state.health.get().has(HealthFlags::FAILED_OUTLIER_CHECK)
}

/// What `outlier_detection.KEY` says, or the configuration.
fn integer(runtime: &RuntimeSnapshot, key: &str, configured: u32) -> u32 {
    let value = runtime.integer(&format!("outlier_detection.{key}"));
    value.map_or(configured, |value| u32::try_from(value).unwrap_or(u32::MAX))
}

fn milliseconds(runtime: &RuntimeSnapshot, key: &str, configured: Duration) -> Duration {
    runtime.integer(&format!("outlier_detection.{key}")).map_or(configured, Duration::from_millis)
}

/// The mean, and it less `factor` standard deviations.
fn success_threshold(rates: &[f64], factor: f64) -> (f64, f64) {
    let count = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / count;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    (mean, mean - factor * variance.sqrt())
}

#[cfg(test)]
mod tests;
