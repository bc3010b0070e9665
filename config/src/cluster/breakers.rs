//! Circuit breakers: how much a cluster may be asked at once, by priority.

use crate::{Context, http_protocol_options::percent};
use std::time::Duration;
use weft_control_api::envoy::config::{cluster::v3::circuit_breakers as pb, core::v3::RoutingPriority};

/// `CircuitBreakers`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CircuitBreakers {
    pub default: Thresholds,
    pub high: Thresholds,
    /// Connections that one host may have; `None`: no limit.
    pub per_host_max_connections: Option<u32>,
}

/// `CircuitBreakers.Thresholds`.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// Default 1024.
    pub max_connections: u32,
    /// Default 1024.
    pub max_pending_requests: u32,
    /// Default 1024.
    pub max_requests: u32,
    /// Default 3.
    pub max_retries: u32,
    /// In place of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Show what is left in stats.
    pub track_remaining: bool,
}

/// Retries as a share of the active requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Percent; default 20.
    pub budget_percent: f64,
    /// Retries that are always allowed; default 3.
    pub min_retry_concurrency: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

impl CircuitBreakers {
    pub(super) fn from_proto(
        p: weft_control_api::envoy::config::cluster::v3::CircuitBreakers,
        cx: &mut Context,
    ) -> Self {
        let weft_control_api::envoy::config::cluster::v3::CircuitBreakers { thresholds, per_host_thresholds } = p;
        let mut this = Self::default();
        let read = cx.elements("thresholds", thresholds, |cx, p| {
            let priority = cx.enumeration("priority", p.priority);
            Some((priority, Thresholds::from_proto(p, cx)))
        });
        // The first of a priority counts.
        for (priority, thresholds) in read.into_iter().rev() {
            match priority {
                RoutingPriority::Default => this.default = thresholds,
                RoutingPriority::High => this.high = thresholds,
            }
        }
        let per_host = cx.elements("per_host_thresholds", per_host_thresholds, |cx, p| {
            let pb::Thresholds {
                priority,
                max_connections,
                max_pending_requests,
                max_requests,
                max_retries,
                retry_budget,
                track_remaining,
                max_connection_pools,
            } = p;
            let others = max_pending_requests.or(max_requests).or(max_retries).or(max_connection_pools);
            if others.is_some() || retry_budget.is_some() || track_remaining {
                cx.problem("only max_connections is supported in per_host_thresholds");
            }
            (cx.enumeration::<RoutingPriority>("priority", priority) == RoutingPriority::Default)
                .then_some(max_connections?)
        });
        this.per_host_max_connections = per_host.first().copied();
        this
    }
}

impl Thresholds {
    fn from_proto(p: pb::Thresholds, cx: &mut Context) -> Self {
        let pb::Thresholds {
            priority: _,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = p;
        cx.unsupported_if("max_connection_pools", max_connection_pools.is_some());
        let default = Self::default();
        Self {
            max_connections: max_connections.unwrap_or(default.max_connections),
            max_pending_requests: max_pending_requests.unwrap_or(default.max_pending_requests),
            max_requests: max_requests.unwrap_or(default.max_requests),
            max_retries: max_retries.unwrap_or(default.max_retries),
            retry_budget: retry_budget.map(|p| cx.field("retry_budget", |cx| RetryBudget::from_proto(p, cx))),
            track_remaining,
        }
    }
}

impl RetryBudget {
    fn from_proto(p: pb::thresholds::RetryBudget, cx: &mut Context) -> Self {
        let pb::thresholds::RetryBudget { budget_percent, budget_interval, min_retry_concurrency } = p;
        let interval = cx.duration("budget_interval", budget_interval);
        cx.unsupported_if("budget_interval", interval.is_some_and(|interval| interval > Duration::ZERO));
        Self {
            budget_percent: percent("budget_percent", budget_percent, cx).unwrap_or(20.0),
            min_retry_concurrency: min_retry_concurrency.unwrap_or(3),
        }
    }
}
