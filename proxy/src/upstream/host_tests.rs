//! What stays and what goes when a host set is made anew.

use super::*;
use weft_config::{
    address::{Protocol, SocketAddress},
    endpoint::LocalityLbEndpoints,
};

pub(in crate::upstream) fn rules(unique: bool) -> HostRules {
    HostRules {
        transport_socket: Arc::new(UpstreamSocket::Raw),
        default_match: Arc::default(),
        matches: Vec::new(),
        unique,
        checked: false,
        ignores_unchecked: false,
        keeps_healthy: true,
    }
}

pub(in crate::upstream) fn endpoint(port: u16, weight: u32, health_status: HealthStatus) -> LbEndpoint {
    LbEndpoint {
        address: ConfigAddress::Socket(SocketAddress {
            protocol: Protocol::Tcp,
            host: "127.0.0.1".into(),
            port,
            ipv4_compat: false,
        }),
        hostname: String::new(),
        additional_addresses: Vec::new(),
        health_status,
        metadata: Default::default(),
        load_balancing_weight: weight,
        health_check: Default::default(),
    }
}

/// One locality a list of endpoints, of the priority that is its index.
pub(in crate::upstream) fn assignment(priorities: Vec<Vec<LbEndpoint>>) -> ClusterLoadAssignment {
    let localities = priorities.into_iter().enumerate().map(|(priority, endpoints)| LocalityLbEndpoints {
        endpoints,
        priority: priority as u32,
        ..LocalityLbEndpoints::default()
    });
    ClusterLoadAssignment { localities: localities.collect(), ..ClusterLoadAssignment::default() }
}

#[test]
fn unchanged_hosts_are_the_same() {
    use HealthStatus::*;
    let rules = rules(true);
    let first = HostSet::build(
        &assignment(vec![vec![endpoint(1, 1, Unknown), endpoint(2, 1, Unknown), endpoint(3, 1, Unknown)]]),
        &rules,
        None,
    );
    let second = HostSet::build(
        &assignment(vec![vec![endpoint(2, 1, Unknown), endpoint(3, 5, Unhealthy), endpoint(4, 1, Unknown)]]),
        &rules,
        Some(&first),
    );
    let (before, after) = (&first.priorities[0].hosts, &second.priorities[0].hosts);
    assert!(Arc::ptr_eq(&before[1], &after[0]));
    assert!(!Arc::ptr_eq(&before[2], &after[1]) && Arc::ptr_eq(&before[2].state, &after[1].state));
    assert_eq!((after[1].weight, after[1].health()), (5, Health::Unhealthy));
    assert!(!after.iter().any(|host| Arc::ptr_eq(&host.state, &before[0].state)));
}

#[test]
fn an_address_counts_once_with_eds() {
    let twice = assignment(vec![vec![endpoint(1, 1, HealthStatus::Unknown), endpoint(1, 1, HealthStatus::Unknown)]]);
    assert_eq!(HostSet::build(&twice, &rules(true), None).hosts().count(), 1);
    let rules = rules(false);
    let set = HostSet::build(&twice, &rules, None);
    assert_eq!(set.hosts().count(), 2);
    let again = HostSet::build(&twice, &rules, Some(&set));
    assert!(set.hosts().zip(again.hosts()).all(|(a, b)| Arc::ptr_eq(a, b)));
}

#[test]
fn priorities_have_no_gaps() {
    let set = HostSet::build(
        &assignment(vec![vec![], vec![], vec![endpoint(1, 1, HealthStatus::Unknown)]]),
        &rules(true),
        None,
    );
    assert_eq!(set.priorities.iter().map(|p| p.hosts.len()).collect::<Vec<_>>(), [0, 0, 1]);
}
