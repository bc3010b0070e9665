//! What a host weighs at this moment: its configured weight or the one that follows from its reports, less while it is busy
//! (least request) or new (slow start).

use crate::{
    base::clock,
    upstream::{health::Health, host::Host},
};
use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};
use weft_config::load_balancing::{PolicyKind, SlowStart};

/// How hosts are weighed for one pick.
pub(super) struct Weigh<'a> {
    slow_start: Option<&'a SlowStart>,
    /// Active requests count with this power; 0: not at all.
    bias: f64,
    /// Weights come of hosts' own reports.
    reported: bool,
    now: Option<Instant>,
}

impl<'a> Weigh<'a> {
    pub fn new(policy: &'a PolicyKind) -> Self {
        let reported = matches!(policy, PolicyKind::ClientSideWeightedRoundRobin(_));
        let (slow_start, bias) = match policy {
            PolicyKind::RoundRobin { slow_start } => (slow_start.as_ref(), 0.0),
            PolicyKind::LeastRequest(least) => (least.slow_start.as_ref(), least.active_request_bias),
            PolicyKind::ClientSideWeightedRoundRobin(client) => (client.slow_start.as_ref(), 0.0),
            _ => (None, 0.0),
        };
        Self { slow_start, bias, reported, now: slow_start.map(|_| clock::now()) }
    }

    /// False if configured weights are all that counts, and these are the same.
    pub fn may_differ(&self, configured_differ: bool) -> bool {
        configured_differ || self.slow_start.is_some() || self.reported
    }

    /// True if some of the hosts weigh differently for another reason than their configuration.
    pub fn differ<'h>(&self, mut hosts: impl Iterator<Item = &'h Host>) -> bool {
        self.reported || hosts.any(|host| self.new_share(host) < 1.0)
    }

    pub fn of(&self, host: &Host) -> f64 {
        let weight = match host.state.reported_weight.load(Relaxed) {
            reported if self.reported && reported > 0 => f64::from(reported),
            _ if self.reported => 1.0,
            _ => f64::from(host.weight),
        };
        let weight = if self.bias == 0.0 {
            weight
        } else {
            let active = f64::from(host.state.rq_active.load(Relaxed)) + 1.0;
            if self.bias == 1.0 { weight / active } else { weight / active.powf(self.bias) }
        };
        weight * self.new_share(host)
    }

    /// The share of its weight that a host has reached since it became healthy.
    fn new_share(&self, host: &Host) -> f64 {
        let (Some(slow), Some(now)) = (self.slow_start, self.now) else { return 1.0 };
        if host.health() != Health::Healthy {
            return 1.0;
        }
        let age = now.saturating_duration_since(host.state.healthy_since()).max(Duration::from_millis(1));
        if age >= slow.window {
            return 1.0;
        }
        let time = age.as_secs_f64() / slow.window.as_secs_f64();
        let share = if slow.aggression == 1.0 { time } else { time.powf(1.0 / slow.aggression) };
        share.max(slow.min_weight)
    }
}
