//! Hosts that a request asks for by address: a stateful session's one, or those of the override host policy.

use super::{
    host::{Host, HostSet},
    thread::LbContext,
};
use crate::base::Address;
use std::net::SocketAddr;
use weft_config::{
    endpoint::HealthStatus,
    load_balancing::{LoadBalancing, OverrideHost as Policy, OverrideSource, PolicyKind},
};

/// A host that is asked for by its address.
#[derive(Clone, Copy)]
pub struct OverrideHost<'a> {
    pub address: &'a Address,
    /// No other one will do.
    pub strict: bool,
}

/// What is said of a request's own wish.
pub(super) enum Choice {
    /// (priority, index)
    Host(usize, usize),
    /// The policy is to pick.
    Policy,
    /// The wish cannot be granted, and nothing else will do.
    Nothing,
}

/// Finds the host that the request asks for.
pub(super) fn choose(hosts: &HostSet, config: &LoadBalancing, context: &LbContext<'_>) -> Choice {
    if let Some(OverrideHost { address, strict }) = context.override_host {
        let allowed = |host: &Host| {
            let status = host.status();
            match config.override_host_status.as_slice() {
                [] => matches!(status, HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded),
                statuses => statuses.contains(&status),
            }
        };
        match hosts.find(address).filter(|(_, _, host)| allowed(host)) {
            Some((priority, index, _)) => return Choice::Host(priority, index),
            None if strict => return Choice::Nothing,
            None => {}
        }
    }
    let PolicyKind::OverrideHost(policy) = &config.policy.kind else { return Choice::Policy };
    let wanted = addresses(policy, context).and_then(|text| {
        let valid = text.split(',').filter_map(|text| {
            let address: SocketAddr = text.trim().parse().ok()?;
            hosts.find(&address.into())
        });
        // A further attempt goes to the next of them.
        valid.into_iter().nth(context.attempt as usize)
    });
    wanted.map_or(Choice::Policy, |(priority, index, _)| Choice::Host(priority, index))
}

/// The addresses of the first source that gives any.
fn addresses<'a>(policy: &Policy, context: &LbContext<'a>) -> Option<&'a str> {
    let found = policy.sources.iter().find_map(|source| match source {
        OverrideSource::Header(name) => context.request?.headers.get(name)?.to_str().ok(),
        OverrideSource::Metadata(filter, path) => {
            let (first, rest) = path.split_first()?;
            let first = context.dynamic_metadata?.get(filter.as_str())?.get(first)?;
            rest.iter().try_fold(first, |value, key| value.get(key))?.as_str()
        }
    });
    found.filter(|text| !text.is_empty())
}
