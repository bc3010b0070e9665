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

/// What `now` differs by from `before`, as their bytes tell.
fn changes(before: &[&[(u16, u32)]], now: &[&[(u16, u32)]]) -> (AssignmentChanges, ClusterLoadAssignment) {
    use weft_control_api::{
        Message as _,
        envoy::config::{core::v3 as core, endpoint::v3 as pb},
    };
    let endpoint = |(port, weight): &(u16, u32)| {
        let port = core::socket_address::PortSpecifier::PortValue((*port).into());
        let socket =
            core::SocketAddress { address: "127.0.0.1".into(), port_specifier: Some(port), ..Default::default() };
        let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
        let endpoint = pb::Endpoint { address: Some(address), ..Default::default() };
        pb::LbEndpoint {
            host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
            load_balancing_weight: Some(*weight),
            ..Default::default()
        }
    };
    let proto = |priorities: &[&[(u16, u32)]]| pb::ClusterLoadAssignment {
        cluster_name: "c".into(),
        endpoints: (0..)
            .zip(priorities)
            .map(|(priority, all)| pb::LocalityLbEndpoints {
                lb_endpoints: all.iter().map(endpoint).collect(),
                priority,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let changes = AssignmentChanges::between(&proto(before).encode_to_vec(), &proto(now).encode_to_vec()).unwrap();
    let mut cx = weft_config::Context::new();
    let new = ClusterLoadAssignment::from_proto(pb::ClusterLoadAssignment::decode(&*changes.reduced).unwrap(), &mut cx);
    (changes, cx.finish(new).unwrap().0)
}

fn of(priorities: &[&[(u16, u32)]], rules: &HostRules) -> HostSet {
    let endpoints = |all: &&[(u16, u32)]| {
        all.iter().map(|(port, weight)| endpoint(*port, *weight, HealthStatus::Unknown)).collect()
    };
    HostSet::build(&assignment(priorities.iter().map(endpoints).collect()), rules, None)
}

/// A set made of the changes alone is the one that is made of everything, and shares all that did not change.
#[test]
fn changes_make_the_same_set() {
    let first: &[(u16, u32)] = &[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)];
    let second: &[(u16, u32)] = &[(7, 1), (8, 1), (9, 1), (10, 1)];
    let rules = rules(true);
    let before = of(&[first, second], &rules);
    let now_first: &[(u16, u32)] = &[(1, 1), (2, 5), (3, 1), (11, 1), (4, 1), (6, 1)];
    let now_second: &[(u16, u32)] = &[(8, 1), (9, 1), (10, 1), (12, 2)];
    let (changes, new) = changes(&[first, second], &[now_first, now_second]);
    let now = before.changed(&changes, &new, &rules).unwrap();
    let whole = of(&[now_first, now_second], &rules);
    for (set, whole) in now.priorities.iter().zip(&whole.priorities) {
        let shape = |set: &PrioritySet| {
            let hosts: Vec<_> =
                set.hosts.iter().map(|host| (host.address.clone(), host.weight, host.priority)).collect();
            let localities: Vec<_> =
                set.localities.iter().map(|l| (l.locality.clone(), l.weight, l.hosts.clone())).collect();
            (hosts, localities)
        };
        assert_eq!(shape(set), shape(whole));
    }
    let known: HashMap<_, _> = before.hosts().map(|host| (&host.address, host)).collect();
    let kept = now.hosts().filter(|host| known.get(&host.address).is_some_and(|known| Arc::ptr_eq(known, host)));
    assert_eq!(kept.count(), 7);
    // Another weight, the same host.
    let reweighted = &now.priorities[0].hosts[1];
    assert!(Arc::ptr_eq(&reweighted.state, &before.priorities[0].hosts[1].state));
    assert_ne!(now.members(), before.members());
    // The places that differ: all others hold the very same hosts.
    let splice = |priority, before, now| Splice { priority, before, now };
    let splices = [
        splice(0, 1..2, 1..2),
        splice(0, 3..3, 3..4),
        splice(0, 4..5, 5..5),
        splice(1, 0..1, 0..0),
        splice(1, 4..4, 3..4),
    ];
    assert_eq!(now.splices_since(&before), Some(&splices[..]));
    assert_eq!(now.splices_since(&whole), None);
}

#[test]
fn a_weight_does_not_change_who_the_members_are() {
    let rules = rules(true);
    let before = of(&[&[(1, 1), (2, 1), (3, 1)]], &rules);
    let (changes, new) = changes(&[&[(1, 1), (2, 1), (3, 1)]], &[&[(1, 1), (2, 9), (3, 1)]]);
    assert_eq!(before.changed(&changes, &new, &rules).unwrap().members(), before.members());
}

#[test]
fn what_changes_alone_cannot_tell_is_made_of_everything() {
    let rules = rules(true);
    let before = of(&[&[(1, 1), (2, 1), (3, 1)]], &rules);
    let (changes_, new) = changes(&[&[(1, 1), (2, 1), (3, 1)]], &[&[(1, 1), (2, 1), (3, 1), (1, 7)]]);
    assert!(before.changed(&changes_, &new, &rules).is_none(), "an address that is there");
    let (changes_, new) = changes(&[&[(1, 1), (2, 1), (3, 1), (4, 1)]], &[&[(1, 1), (2, 1), (3, 1)]]);
    assert!(before.changed(&changes_, &new, &rules).is_none(), "changes of another set");
    let (changes_, new) = changes(&[&[(1, 1), (2, 1), (3, 1)]], &[&[(1, 1), (2, u32::MAX - 1), (3, 1)]]);
    assert!(before.changed(&changes_, &new, &rules).is_none(), "more weight than there may be");
    let checked = HostRules { checked: true, ..rules };
    let (changes_, new) = changes(&[&[(1, 1), (2, 1), (3, 1)]], &[&[(1, 1), (2, 1)]]);
    assert!(before.changed(&changes_, &new, &checked).is_none(), "hosts that stay for their health");
}
