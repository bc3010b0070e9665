//! Active health checks: what a host's checks come to. No I/O: the control thread makes the checks (`server/health_checks`) and
//! tells a [`Session`] how they ended.

use super::{
    health::HealthFlags,
    host::{Host, HostState},
};
use crate::{http::header_rules::HeaderRules, stats};
use std::time::Duration;
use weft_config::{
    Context,
    cluster::{HealthCheck, HealthCheckKind, Intervals},
    header_value::HeaderChanges,
};

stats! {
    /// `cluster.NAME.health_check.*`; written by the control thread.
    pub struct HealthCheckStats {
        counter attempt,
        counter failure,
        counter network_failure,
        counter passive_failure,
        counter success,
        counter verify_cluster,
        gauge degraded,
        gauge healthy,
    }
}

/// A cluster's check, and what its requests carry.
#[derive(Debug)]
pub struct Checks {
    pub check: HealthCheck,
    pub(super) rules: HeaderRules,
}

impl Checks {
    pub(super) fn compile(check: &HealthCheck, cx: &mut Context) -> Self {
        let (field, add, remove) = match &check.kind {
            HealthCheckKind::Http(http) => ("http_health_check", http.add.clone(), http.remove.clone()),
            HealthCheckKind::Grpc(grpc) => ("grpc_health_check", grpc.metadata.clone(), Vec::new()),
            HealthCheckKind::Tcp(_) => ("tcp_health_check", Vec::new(), Vec::new()),
        };
        let changes = HeaderChanges { request_add: add, request_remove: remove, ..HeaderChanges::default() };
        Self { check: check.clone(), rules: cx.field(field, |cx| HeaderRules::compile(&changes, cx)) }
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    Good {
        /// The host takes requests if no better one is there.
        degraded: bool,
    },
    /// The host said that it is not well; `retriable`: once is not enough.
    Bad {
        retriable: bool,
    },
    /// There was no connection, or it broke.
    Unreachable,
    TimedOut,
}

/// The checks of one host.
#[derive(Debug, Default)]
pub struct Session {
    good: u32,
    bad: u32,
    was_checked: bool,
}

/// What a check changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    Unchanged,
    /// As many again, and it changes.
    Pending,
    Changed,
}

impl Session {
    /// Takes in a check's end.
    pub fn checked(&mut self, result: Checked, check: &HealthCheck, state: &HostState) -> Transition {
        let first = !std::mem::replace(&mut self.was_checked, true);
        let was_failed = state.health.get().has(HealthFlags::FAILED_ACTIVE_HC);
        let mut transition = Transition::Unchanged;
        if let Checked::Good { degraded } = result {
            self.bad = 0;
            if was_failed {
                self.good += 1;
                if first || self.good == check.healthy_threshold {
                    state.health.clear(HealthFlags::FAILED_ACTIVE_HC | HealthFlags::ACTIVE_HC_TIMEOUT);
                    state.becomes_healthy();
                    transition = Transition::Changed;
                } else {
                    transition = Transition::Pending;
                }
            }
            let flag = HealthFlags::DEGRADED_ACTIVE_HC;
            let changed = if degraded { state.health.set(flag) } else { state.health.clear(flag) };
            if changed && transition == Transition::Unchanged {
                transition = Transition::Changed;
            }
        } else {
            self.good = 0;
            if !was_failed {
                let at_once = matches!(result, Checked::Bad { retriable: false });
                self.bad += 1;
                if at_once || self.bad == check.unhealthy_threshold {
                    state.health.set(HealthFlags::FAILED_ACTIVE_HC);
                    transition = Transition::Changed;
                } else {
                    transition = Transition::Pending;
                }
            }
            if result == Checked::TimedOut && state.health.get().has(HealthFlags::FAILED_ACTIVE_HC) {
                state.health.set(HealthFlags::ACTIVE_HC_TIMEOUT);
            } else {
                state.health.clear(HealthFlags::ACTIVE_HC_TIMEOUT);
            }
        }
        if state.health.clear(HealthFlags::PENDING_ACTIVE_HC) {
            transition = Transition::Changed;
        }
        transition
    }
}

/// How long to wait for the next check. `had_traffic`: the cluster was connected to for others than checks.
pub fn interval(
    intervals: &Intervals,
    is_good: bool,
    transition: Transition,
    had_traffic: bool,
    rng: &mut fastrand::Rng,
) -> Duration {
    let pending = transition == Transition::Pending;
    let base = match (had_traffic, is_good, pending) {
        (false, true, _) => intervals.no_traffic_healthy,
        (false, false, _) => intervals.no_traffic,
        (true, true, true) => intervals.healthy_edge,
        (true, true, false) => intervals.healthy,
        (true, false, true) => intervals.unhealthy_edge,
        (true, false, false) => intervals.unhealthy,
    };
    let of_percent = base.mul_f64(f64::from(intervals.jitter_percent) / 100.0 * rng.f64());
    base + of_percent + intervals.jitter.mul_f64(rng.f64())
}

/// True if active checks are made of the host.
pub fn is_checked(host: &Host) -> bool {
    !host.checks.as_ref().is_some_and(|checks| checks.disable_active_health_check)
}

/// True if `data` has all of `patterns`, each after the one before.
pub fn has_all(mut data: &[u8], patterns: &[Vec<u8>]) -> bool {
    patterns.iter().all(|pattern| match memchr::memmem::find(data, pattern) {
        Some(at) => {
            data = &data[at + pattern.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests;
