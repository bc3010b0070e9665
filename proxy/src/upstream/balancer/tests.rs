//! How picks are distributed.

use super::*;
use crate::upstream::host::tests::{assignment, endpoint, rules};
use std::collections::BTreeMap;
use weft_config::{
    ClusterLoadAssignment,
    endpoint::{HealthStatus, LocalityLbEndpoints},
};

fn config(policy: LbPolicy, locality: LocalityLb) -> LoadBalancing {
    LoadBalancing {
        policy,
        locality,
        healthy_panic_threshold: 50.0,
        update_merge_window: Default::default(),
        ignore_new_hosts_until_first_hc: false,
        close_connections_on_host_set_change: false,
        override_host_status: Vec::new(),
    }
}

fn set(assignment: &ClusterLoadAssignment) -> Arc<HostSet> {
    Arc::new(HostSet::build(assignment, &rules(true), None))
}

fn balancer(policy: LbPolicy, weights: &[u32]) -> Balancer {
    let endpoints = weights.iter().enumerate().map(|(i, w)| endpoint(i as u16, *w, HealthStatus::Unknown));
    let hosts = set(&assignment(vec![endpoints.collect()]));
    Balancer::new(&config(policy, LocalityLb::None), hosts, fastrand::Rng::with_seed(7))
}

fn pick(balancer: &Balancer) -> Option<u16> {
    let picked = balancer.pick(None)?;
    balancer.hosts.priorities[picked.priority].hosts[picked.index].address.ip().map(|ip| ip.port())
}

fn spread(balancer: &Balancer, picks: usize) -> Vec<usize> {
    let mut counts = BTreeMap::<u16, usize>::new();
    (0..picks).filter_map(|_| pick(balancer)).for_each(|port| *counts.entry(port).or_default() += 1);
    counts.into_values().collect()
}

#[test]
fn round_robin_takes_turns() {
    let balancer = balancer(LbPolicy::RoundRobin, &[1, 1, 1, 1]);
    let picks: Vec<_> = (0..20).filter_map(|_| pick(&balancer)).collect();
    assert_eq!(picks[..16], picks[4..]);
    assert_eq!(spread(&balancer, 40), [10, 10, 10, 10]);
}

#[test]
fn round_robin_goes_on_with_new_hosts() {
    let before = balancer(LbPolicy::RoundRobin, &[1, 1, 1]);
    let first = pick(&before).unwrap();
    let after = before.with_hosts(&config(LbPolicy::RoundRobin, LocalityLb::None), before.hosts.clone());
    assert_eq!(pick(&after), Some((first + 1) % 3));
}

#[test]
fn weights() {
    assert_eq!(spread(&balancer(LbPolicy::RoundRobin, &[1, 2, 3]), 60), [10, 20, 30]);
    let least = LbPolicy::LeastRequest { choice_count: Some(2), active_request_bias: 1.0 };
    assert_eq!(spread(&balancer(least, &[1, 2, 3]), 60), [10, 20, 30]);
    // Random does not look at weights.
    let random = spread(&balancer(LbPolicy::Random, &[1, 9]), 1000);
    assert!((400..600).contains(&random[0]));
}

#[test]
fn least_request_avoids_the_busy() {
    for choice_count in [Some(30), None] {
        let policy = LbPolicy::LeastRequest { choice_count, active_request_bias: 1.0 };
        let balancer = balancer(policy, &[1, 1, 1]);
        balancer.hosts.priorities[0].hosts[1].state.rq_active.store(1, Relaxed);
        let picks = spread(&balancer, 300);
        assert_eq!(picks.len(), 2, "{choice_count:?}");
        assert!(picks.iter().all(|n| *n > 100));
    }
}

#[test]
fn localities_share_by_weight_and_health() {
    use HealthStatus::{Unhealthy, Unknown};
    let group = |zone: &str, weight, hosts: &[(u16, HealthStatus)]| LocalityLbEndpoints {
        locality: weft_config::endpoint::Locality { zone: zone.into(), ..Default::default() },
        load_balancing_weight: weight,
        endpoints: hosts.iter().map(|(port, health)| endpoint(*port, 1, *health)).collect(),
        ..LocalityLbEndpoints::default()
    };
    let shares = |groups: Vec<LocalityLbEndpoints>| {
        let hosts = set(&ClusterLoadAssignment { localities: groups, ..ClusterLoadAssignment::default() });
        let config = config(LbPolicy::RoundRobin, LocalityLb::Weighted);
        spread(&Balancer::new(&config, hosts, fastrand::Rng::with_seed(1)), 300)
    };
    let none = group("c", None, &[(5, Unknown)]);
    let (a, b) = (group("a", Some(1), &[(1, Unknown)]), group("b", Some(2), &[(3, Unknown), (4, Unknown)]));
    assert_eq!(shares(vec![a, b, none]), [100, 100, 100]);
    // One of four hosts is left of `b`: 2 x 1.4 / 4 = 0.7 against 1.
    let b = group("b", Some(2), &[(3, Unknown), (4, Unhealthy), (6, Unhealthy), (7, Unhealthy)]);
    let a = group("a", Some(1), &[(1, Unknown), (2, Unknown), (8, Unknown), (9, Unknown)]);
    let picks = shares(vec![a, b]);
    assert!((122..126).contains(&picks[2]), "{picks:?}");
}

#[test]
fn no_hosts_no_pick() {
    assert!(balancer(LbPolicy::RoundRobin, &[]).pick(None).is_none());
}

#[test]
fn a_retry_looks_for_another_host() {
    let balancer = balancer(LbPolicy::RoundRobin, &[1, 1, 1]);
    let is_port = |port| move |host: &Host| host.address.ip().is_some_and(|ip| ip.port() == port);
    let picks = |should_select_another: &dyn Fn(&Host) -> bool, max_attempts| {
        let retry = RetryContext { should_select_another, max_attempts, loads: None };
        let picked = (0..30).filter_map(|_| balancer.pick(Some(&retry)));
        picked.map(|picked| picked.index).collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(picks(&is_port(1), 1), [0, 2]);
    assert_eq!(picks(&is_port(1), 0), [0, 1, 2]);
    assert_eq!(picks(&|_: &Host| true, 3), [0, 1, 2]);
}
