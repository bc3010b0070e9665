//! How picks are distributed.

use super::*;
use crate::transport::tls::secrets::NoSecrets;
use crate::upstream::{
    ClusterId, LocalZone,
    host::tests::{assignment, endpoint},
    pool::tests::config,
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use weft_config::{
    ClusterLoadAssignment, Context,
    endpoint::{HealthStatus, LbEndpoint, Locality, LocalityLbEndpoints},
    load_balancing::{
        ConsistentHashing, FallbackPolicy, HashFunction, LeastRequest, RingHash, SlowStart, Subset, SubsetSelector,
        ZoneAware,
    },
};

/// A balancer with what it counts.
struct Rig {
    balancer: Balancer,
    stats: Arc<ClusterStats>,
}

fn cluster(policy: LbPolicy, zone: Option<&str>, hosts: &ClusterLoadAssignment) -> Arc<Cluster> {
    let mut config = config(|_| {});
    config.load_balancing.policy = policy;
    let zone = zone.map(|zone| Arc::new(LocalZone { cluster: "local".into(), locality: locality(zone) }));
    let cx = &mut Context::new();
    Cluster::compile(ClusterId(0), Arc::new(config), None, zone.as_ref(), false, &NoSecrets, cx).with_assignment(hosts)
}

impl Rig {
    fn new(policy: LbPolicy, hosts: &ClusterLoadAssignment) -> Self {
        Self::of(&cluster(policy, None, hosts), None)
    }

    fn of(cluster: &Arc<Cluster>, local: Option<Arc<LocalHosts>>) -> Self {
        let stats = Arc::new(ClusterStats::default());
        let balancer = Balancer::new(cluster, local, fastrand::Rng::with_seed(7), &|| stats.clone());
        Self { balancer, stats }
    }

    fn with_weights(kind: PolicyKind, weights: &[u32]) -> Self {
        let endpoints = weights.iter().enumerate().map(|(i, w)| endpoint(i as u16, *w, HealthStatus::Unknown));
        Self::new(of(kind), &assignment(vec![endpoints.collect()]))
    }

    fn pick_by(&self, context: &PickContext<'_>) -> Option<u16> {
        let picked = self.balancer.pick(context, &self.stats)?;
        let host = &self.balancer.hosts().priorities[picked.priority].hosts[picked.index];
        host.address.ip().map(|ip| ip.port())
    }

    fn pick(&self) -> Option<u16> {
        self.pick_by(&PickContext::default())
    }

    fn spread(&self, picks: usize) -> Vec<usize> {
        let mut counts = BTreeMap::<u16, usize>::new();
        (0..picks).filter_map(|_| self.pick()).for_each(|port| *counts.entry(port).or_default() += 1);
        counts.into_values().collect()
    }

    fn host(&self, index: usize) -> &Host {
        &self.balancer.hosts().priorities[0].hosts[index]
    }
}

fn of(kind: PolicyKind) -> LbPolicy {
    LbPolicy { kind, locality: LocalityLb::default() }
}

const ROUND_ROBIN: PolicyKind = PolicyKind::RoundRobin { slow_start: None };

fn least_request(choice_count: Option<u32>) -> PolicyKind {
    PolicyKind::LeastRequest(LeastRequest { choice_count, ..LeastRequest::default() })
}

fn locality(zone: &str) -> Locality {
    Locality { zone: zone.into(), ..Locality::default() }
}

fn group(zone: &str, weight: Option<u32>, hosts: &[(u16, HealthStatus)]) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        locality: locality(zone),
        load_balancing_weight: weight,
        endpoints: hosts.iter().map(|(port, health)| endpoint(*port, 1, *health)).collect(),
        ..LocalityLbEndpoints::default()
    }
}

fn groups(localities: Vec<LocalityLbEndpoints>) -> ClusterLoadAssignment {
    ClusterLoadAssignment { localities, ..ClusterLoadAssignment::default() }
}

#[test]
fn round_robin_takes_turns() {
    let rig = Rig::with_weights(ROUND_ROBIN, &[1, 1, 1, 1]);
    let picks: Vec<_> = (0..20).filter_map(|_| rig.pick()).collect();
    assert_eq!(picks[..16], picks[4..]);
    assert_eq!(rig.spread(40), [10, 10, 10, 10]);
}

#[test]
fn round_robin_goes_on_with_new_hosts() {
    let before = Rig::with_weights(ROUND_ROBIN, &[1, 1, 1]);
    let first = before.pick().unwrap();
    let next = before.balancer.next(&before.balancer.cluster.with_health(), None, &|| before.stats.clone());
    let after = Rig { balancer: next, stats: before.stats.clone() };
    assert_eq!(after.pick(), Some((first + 1) % 3));
}

#[test]
fn weights() {
    assert_eq!(Rig::with_weights(ROUND_ROBIN, &[1, 2, 3]).spread(60), [10, 20, 30]);
    assert_eq!(Rig::with_weights(least_request(Some(2)), &[1, 2, 3]).spread(60), [10, 20, 30]);
    // Random does not look at weights.
    let random = Rig::with_weights(PolicyKind::Random, &[1, 9]).spread(1000);
    assert!((400..600).contains(&random[0]));
}

#[test]
fn least_request_avoids_the_busy() {
    for choice_count in [Some(30), None] {
        let rig = Rig::with_weights(least_request(choice_count), &[1, 1, 1]);
        rig.host(1).state.rq_active.store(1, Relaxed);
        let picks = rig.spread(300);
        assert_eq!(picks.len(), 2, "{choice_count:?}");
        assert!(picks.iter().all(|n| *n > 100));
    }
    // With weights, by the weight over the active requests and one.
    let rig = Rig::with_weights(least_request(Some(2)), &[3, 2]);
    rig.host(0).state.rq_active.store(2, Relaxed);
    let picks = rig.spread(300);
    assert!((98..103).contains(&picks[0]), "{picks:?}");
}

#[test]
fn new_hosts_start_slowly() {
    let slow_start = Some(SlowStart { window: Duration::from_secs(3600), aggression: 1.0, min_weight: 0.1 });
    let rig = Rig::with_weights(PolicyKind::RoundRobin { slow_start }, &[4, 1]);
    // All are new, and equally so.
    assert_eq!(rig.spread(50), [40, 10]);
    let grown = Some(SlowStart { window: Duration::from_nanos(1), aggression: 1.0, min_weight: 0.1 });
    assert_eq!(Rig::with_weights(PolicyKind::RoundRobin { slow_start: grown }, &[1, 1]).spread(50), [25, 25]);
}

#[test]
fn localities_share_by_weight_and_health() {
    use HealthStatus::{Unhealthy, Unknown};
    let shares = |localities: Vec<LocalityLbEndpoints>| {
        let policy = LbPolicy { kind: ROUND_ROBIN, locality: LocalityLb::Weighted };
        Rig::new(policy, &groups(localities)).spread(300)
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
fn health_that_changes_moves_picks() {
    use crate::upstream::HealthFlags;
    let rig = Rig::with_weights(ROUND_ROBIN, &[1, 1, 1]);
    rig.host(1).state.health.set(HealthFlags::FAILED_OUTLIER_CHECK);
    assert_eq!(rig.spread(30), [10, 10, 10]);
    let next = rig.balancer.next(&rig.balancer.cluster.with_health(), None, &|| rig.stats.clone());
    let rig = Rig { balancer: next, ..rig };
    assert_eq!(rig.spread(30), [15, 15]);
}

#[test]
fn a_panic_is_counted() {
    use HealthStatus::{Unhealthy, Unknown};
    let hosts = vec![endpoint(1, 1, Unknown), endpoint(2, 1, Unhealthy), endpoint(3, 1, Unhealthy)];
    let rig = Rig::new(of(ROUND_ROBIN), &assignment(vec![hosts.clone()]));
    assert_eq!((rig.spread(30), rig.stats.lb_healthy_panic.get()), (vec![10, 10, 10], 30));
    let zone = ZoneAware { fail_traffic_on_panic: true, ..ZoneAware::default() };
    let policy = LbPolicy { kind: ROUND_ROBIN, locality: LocalityLb::ZoneAware(zone) };
    assert_eq!(Rig::new(policy, &assignment(vec![hosts])).pick(), None);
}

#[test]
fn no_hosts_no_pick() {
    assert!(Rig::with_weights(ROUND_ROBIN, &[]).pick().is_none());
    assert!(Rig::with_weights(ring_hash(None), &[]).pick().is_none());
}

#[test]
fn a_retry_looks_for_another_host() {
    let rig = Rig::with_weights(ROUND_ROBIN, &[1, 1, 1]);
    let is_port = |port| move |host: &Host| host.address.ip().is_some_and(|ip| ip.port() == port);
    let picks = |should_select_another: &dyn Fn(&Host) -> bool, max_attempts| {
        let retry = Some(RetryContext { should_select_another, max_attempts, loads: None });
        let picked = (0..30).filter_map(|_| rig.pick_by(&PickContext { retry, ..PickContext::default() }));
        picked.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(picks(&is_port(1), 1), [0, 2]);
    assert_eq!(picks(&is_port(1), 0), [0, 1, 2]);
    assert_eq!(picks(&|_: &Host| true, 3), [0, 1, 2]);
}

fn ring_hash(balance_factor: Option<u32>) -> PolicyKind {
    PolicyKind::RingHash(RingHash {
        function: HashFunction::XxHash64,
        minimum_ring_size: 1024,
        maximum_ring_size: 8 << 20,
        hashing: ConsistentHashing { balance_factor, ..ConsistentHashing::default() },
    })
}

#[test]
fn a_hash_leads_to_one_host() {
    let rig = Rig::with_weights(ring_hash(None), &[1; 5]);
    let by = |hash| rig.pick_by(&PickContext { hash: Some(hash), ..PickContext::default() });
    let hosts: BTreeSet<_> = (0..100u64).map(|i| by(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    assert_eq!(hosts.len(), 5);
    assert!((0..10).all(|_| by(1 << 40) == by(1 << 40)));
    // Without one, anywhere.
    assert_eq!(rig.spread(200).len(), 5);
}

#[test]
fn loads_are_bounded() {
    let rig = Rig::with_weights(ring_hash(Some(120)), &[1; 4]);
    let requests = &rig.balancer.cluster.info.breakers.default.requests;
    let mut hosts = Vec::new();
    for _ in 0..12 {
        let port = rig.pick_by(&PickContext { hash: Some(99), ..PickContext::default() }).unwrap();
        rig.host(usize::from(port)).state.rq_active.fetch_add(1, Relaxed);
        requests.take();
        hosts.push(port);
    }
    let most = (0..4).map(|port| hosts.iter().filter(|h| **h == port).count()).max().unwrap();
    assert!(hosts.iter().collect::<BTreeSet<_>>().len() >= 3 && most < 6, "{hosts:?}");
}

#[test]
fn zones() {
    let unknown = |ports: &[u16]| ports.iter().map(|port| (*port, HealthStatus::Unknown)).collect::<Vec<_>>();
    let group = |zone: &str, ports: &[u16]| group(zone, None, &unknown(ports));
    let zone = ZoneAware { min_cluster_size: 3, ..ZoneAware::default() };
    let policy = LbPolicy { kind: ROUND_ROBIN, locality: LocalityLb::ZoneAware(zone) };
    let rig = |upstream: Vec<LocalityLbEndpoints>, local: Vec<LocalityLbEndpoints>| {
        let local = cluster(policy.clone(), Some("a"), &groups(local));
        Rig::of(&cluster(policy.clone(), Some("a"), &groups(upstream)), Some(Arc::new(local.picks.local_hosts())))
    };
    // As many hosts there as here: all stays.
    let direct = rig(vec![group("b", &[3, 4]), group("a", &[1, 2])], vec![group("a", &[81]), group("b", &[82])]);
    assert_eq!((direct.spread(20), direct.stats.lb_zone_routing_all_directly.get()), (vec![10, 10], 20));
    // A fifth of the hosts there against half of ours: 40 % stay, the rest goes to where there is more.
    let residual = rig(
        vec![group("a", &[1]), group("b", &[2, 3, 4]), group("c", &[5])],
        vec![group("a", &[81]), group("b", &[82])],
    );
    let picks = residual.spread(5000);
    assert!((1850..2150).contains(&picks[0]), "{picks:?}");
    // b has 60 % against 50 %, c 20 % against none.
    assert!((1850..2150).contains(&picks[4]), "{picks:?}");
    let stats = &residual.stats;
    assert_eq!(stats.lb_zone_routing_sampled.get() + stats.lb_zone_routing_cross_zone.get(), 5000);
    let small = rig(vec![group("a", &[1]), group("b", &[2])], vec![group("a", &[81]), group("b", &[82])]);
    assert_eq!((small.spread(10), small.stats.lb_zone_cluster_too_small.get()), (vec![5, 5], 1));
}

fn with_metadata(port: u16, values: serde_json::Value) -> LbEndpoint {
    let mut endpoint = endpoint(port, 1, HealthStatus::Unknown);
    endpoint.metadata.insert("envoy.lb".into(), values.as_object().cloned().unwrap());
    endpoint
}

fn selector(keys: &[&str]) -> SubsetSelector {
    SubsetSelector { keys: keys.iter().map(ToString::to_string).collect(), single_host: false, fallback: None }
}

fn subset(change: impl FnOnce(&mut Subset)) -> LbPolicy {
    let mut subset = Subset {
        fallback: FallbackPolicy::NoFallback,
        default_subset: serde_json::Map::new(),
        selectors: Vec::new(),
        allow_redundant_keys: false,
        locality_weight_aware: false,
        scale_locality_weight: false,
        panic_mode_any: false,
        list_as_any: false,
        fallback_list: false,
        policy: of(ROUND_ROBIN),
    };
    change(&mut subset);
    of(PolicyKind::Subset(Box::new(subset)))
}

fn picks_of(rig: &Rig, wanted: serde_json::Value) -> Vec<u16> {
    let metadata = [("envoy.lb".to_owned(), wanted.as_object().cloned().unwrap())].into();
    let wanted = MetadataMatch::compile(&metadata, None);
    let context = PickContext { metadata_match: wanted.as_ref(), ..PickContext::default() };
    (0..20).filter_map(|_| rig.pick_by(&context)).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn subsets() {
    let hosts = assignment(vec![vec![
        with_metadata(1, json!({"v": "1", "stage": "prod"})),
        with_metadata(2, json!({"v": "2", "stage": "prod"})),
        with_metadata(3, json!({"v": ["1", "3"], "stage": "dev"})),
        endpoint(4, 1, HealthStatus::Unknown),
    ]]);
    let rig = Rig::new(subset(|s| s.selectors = vec![selector(&["stage"]), selector(&["stage", "v"])]), &hosts);
    assert_eq!(picks_of(&rig, json!({"stage": "prod"})), [1, 2]);
    assert_eq!(picks_of(&rig, json!({"v": "2", "stage": "prod"})), [2]);
    assert_eq!(picks_of(&rig, json!({"v": "1"})), [0u16; 0]);
    assert_eq!(rig.balancer.cluster.picks.subsets.as_ref().unwrap().identities.len(), 5);
    let lists = Rig::new(
        subset(|s| {
            s.selectors = vec![selector(&["v"])];
            s.list_as_any = true;
            s.allow_redundant_keys = true;
            s.fallback = FallbackPolicy::AnyEndpoint;
        }),
        &hosts,
    );
    assert_eq!(picks_of(&lists, json!({"v": "1"})), [1, 3]);
    assert_eq!(picks_of(&lists, json!({"v": "3", "more": "x"})), [3]);
    assert_eq!(picks_of(&lists, json!({"v": "9"})), [1, 2, 3, 4]);
    assert_eq!((lists.stats.lb_subsets_selected.get(), lists.stats.lb_subsets_fallback.get()), (40, 20));
}

#[test]
fn subsets_of_one_host_and_lists_of_alternatives() {
    let hosts = assignment(vec![
        vec![with_metadata(1, json!({"id": "a"})), with_metadata(2, json!({"id": "b"}))],
        vec![with_metadata(3, json!({"id": "a"})), with_metadata(4, json!({"id": "c"}))],
    ]);
    let policy = subset(|s| {
        s.selectors = vec![SubsetSelector { single_host: true, ..selector(&["id"]) }];
        s.fallback_list = true;
        s.default_subset = json!({"id": "b"}).as_object().cloned().unwrap();
        s.fallback = FallbackPolicy::DefaultSubset;
    });
    let rig = Rig::new(policy, &hosts);
    assert_eq!(picks_of(&rig, json!({"id": "a"})), [1]);
    assert_eq!(picks_of(&rig, json!({"id": "c"})), [4]);
    assert_eq!(picks_of(&rig, json!({"id": "z"})), [2]);
    assert_eq!(rig.balancer.cluster.picks.subsets.as_ref().unwrap().duplicates, 1);
    assert_eq!(picks_of(&rig, json!({"fallback_list": [{"id": "c"}, {"id": "a"}]})), [4]);
}
