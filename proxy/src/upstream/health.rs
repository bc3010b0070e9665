//! How a host's health is told: one word of flags that all threads share, and what they come to in load balancing.
//!
//! Written on the control thread by active health checks and outlier detection; after a change it announces the cluster
//! (`Control::health_changed`), upon which every thread picks anew from what is healthy. EDS' own word is part of the
//! [`Host`](super::Host), which is made anew when it changes.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use weft_config::endpoint::HealthStatus;

/// How a host counts in load balancing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    Degraded,
    Unhealthy,
}

/// Flags of a host's health, with Envoy's bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthFlags(u32);

impl HealthFlags {
    pub const FAILED_ACTIVE_HC: Self = Self(1);
    pub const FAILED_OUTLIER_CHECK: Self = Self(1 << 1);
    pub const FAILED_EDS_HEALTH: Self = Self(1 << 2);
    pub const DEGRADED_ACTIVE_HC: Self = Self(1 << 3);
    pub const DEGRADED_EDS_HEALTH: Self = Self(1 << 4);
    /// Discovery no longer names the host, which stays for as long as health checks pass.
    pub const PENDING_DYNAMIC_REMOVAL: Self = Self(1 << 5);
    /// Not checked yet, in a cluster that leaves such hosts out (`ignore_new_hosts_until_first_hc`).
    pub const PENDING_ACTIVE_HC: Self = Self(1 << 6);
    /// The host answered with `x-envoy-immediate-health-check-fail`.
    pub const EXCLUDED_VIA_IMMEDIATE_HC_FAIL: Self = Self(1 << 7);
    /// The last active check timed out.
    pub const ACTIVE_HC_TIMEOUT: Self = Self(1 << 8);
    pub const EDS_STATUS_DRAINING: Self = Self(1 << 9);

    /// All with their names in `/clusters`, in its order.
    pub const NAMES: [(Self, &'static str); 10] = [
        (Self::FAILED_ACTIVE_HC, "/failed_active_hc"),
        (Self::FAILED_OUTLIER_CHECK, "/failed_outlier_check"),
        (Self::FAILED_EDS_HEALTH, "/failed_eds_health"),
        (Self::DEGRADED_ACTIVE_HC, "/degraded_active_hc"),
        (Self::DEGRADED_EDS_HEALTH, "/degraded_eds_health"),
        (Self::PENDING_DYNAMIC_REMOVAL, "/pending_dynamic_removal"),
        (Self::PENDING_ACTIVE_HC, "/pending_active_hc"),
        (Self::EXCLUDED_VIA_IMMEDIATE_HC_FAIL, "/excluded_via_immediate_hc_fail"),
        (Self::ACTIVE_HC_TIMEOUT, "/active_hc_timeout"),
        (Self::EDS_STATUS_DRAINING, "/eds_status_draining"),
    ];

    const UNHEALTHY: Self = Self(
        Self::FAILED_ACTIVE_HC.0
            | Self::FAILED_OUTLIER_CHECK.0
            | Self::FAILED_EDS_HEALTH.0
            | Self::EDS_STATUS_DRAINING.0,
    );
    const DEGRADED: Self = Self(Self::DEGRADED_ACTIVE_HC.0 | Self::DEGRADED_EDS_HEALTH.0);
    const EXCLUDED: Self =
        Self(Self::PENDING_ACTIVE_HC.0 | Self::EXCLUDED_VIA_IMMEDIATE_HC_FAIL.0 | Self::EDS_STATUS_DRAINING.0);

    /// What EDS' word comes to.
    pub fn of_eds(status: HealthStatus) -> Self {
        match status {
            HealthStatus::Unknown | HealthStatus::Healthy => Self::default(),
            HealthStatus::Unhealthy | HealthStatus::Timeout => Self::FAILED_EDS_HEALTH,
            HealthStatus::Draining => Self::EDS_STATUS_DRAINING,
            HealthStatus::Degraded => Self::DEGRADED_EDS_HEALTH,
        }
    }

    /// True if any flag of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn health(self) -> Health {
        if self.has(Self::UNHEALTHY) {
            Health::Unhealthy
        } else if self.has(Self::DEGRADED) {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    /// True for hosts that do not count when the share of available hosts is computed.
    pub fn is_excluded(self) -> bool {
        self.has(Self::EXCLUDED)
    }
}

impl std::ops::BitOr for HealthFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The flags that health checks and outlier detection set; shared by all threads.
#[derive(Debug, Default)]
pub struct SharedHealth(AtomicU32);

impl SharedHealth {
    pub fn get(&self) -> HealthFlags {
        HealthFlags(self.0.load(Relaxed))
    }

    /// Sets the flags; true if that changed anything.
    pub fn set(&self, flags: HealthFlags) -> bool {
        self.0.fetch_or(flags.0, Relaxed) & flags.0 != flags.0
    }

    /// Takes the flags away; true if that changed anything.
    pub fn clear(&self, flags: HealthFlags) -> bool {
        self.0.fetch_and(!flags.0, Relaxed) & flags.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_flags_come_to() {
        let shared = SharedHealth::default();
        assert!(shared.set(HealthFlags::DEGRADED_ACTIVE_HC) && !shared.set(HealthFlags::DEGRADED_ACTIVE_HC));
        assert_eq!(shared.get().health(), Health::Degraded);
        assert!(shared.set(HealthFlags::FAILED_OUTLIER_CHECK));
        assert_eq!(shared.get().health(), Health::Unhealthy);
        assert!(shared.clear(HealthFlags::FAILED_OUTLIER_CHECK | HealthFlags::DEGRADED_ACTIVE_HC));
        assert_eq!(shared.get(), HealthFlags::default());
        let both = shared.get() | HealthFlags::of_eds(HealthStatus::Draining);
        assert!(both.is_excluded() && both.health() == Health::Unhealthy);
        assert!(!HealthFlags::of_eds(HealthStatus::Timeout).is_excluded());
    }
}
