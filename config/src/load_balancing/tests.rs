//! Which policy counts, and what is refused.

use super::*;
use weft_control_api::Any;

fn read(policies: &[(&str, &str)]) -> Result<LbPolicy, Vec<String>> {
    let policy = |(name, message): &(&str, &str)| pb::load_balancing_policy::Policy {
        typed_extension_config: Some(core::TypedExtensionConfig {
            name: (*name).into(),
            typed_config: Some(Any { type_url: format!("type.googleapis.com/{message}"), value: Vec::new() }),
        }),
    };
    let mut cx = Context::new();
    let p = pb::LoadBalancingPolicy { policies: policies.iter().map(policy).collect() };
    let read = extension::read(p, &mut cx);
    cx.finish(read).map(|(policy, _)| policy).map_err(|all| all.iter().map(ToString::to_string).collect())
}

fn old(p: cluster::LbSubsetConfig, lb_policy: cluster::LbPolicy) -> Result<LbPolicy, Vec<String>> {
    let fields = Fields {
        lb_policy: lb_policy.into(),
        lb_config: None,
        load_balancing_policy: None,
        common_lb_config: None,
        lb_subset_config: Some(p),
        provides: None,
        has_names: false,
    };
    let mut cx = Context::new();
    let read = LoadBalancing::from_proto(fields, &mut cx);
    cx.finish(Some(read.policy)).map(|(p, _)| p).map_err(|all| all.iter().map(ToString::to_string).collect())
}

#[test]
fn the_first_known_policy_counts() {
    let least = "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest";
    let kind = |policies: &[(&str, &str)]| read(policies).map(|policy| policy.kind);
    assert!(matches!(
        kind(&[("mine", "acme.Policy"), ("lr", least)]),
        Ok(PolicyKind::LeastRequest(found)) if found == LeastRequest::default()
    ));
    let maglev = "envoy.extensions.load_balancing_policies.maglev.v3.Maglev";
    assert!(matches!(kind(&[("m", maglev), ("lr", least)]), Ok(PolicyKind::Maglev(_))));
    // The type counts where there is one, whatever the name says.
    assert!(read(&[("envoy.load_balancing_policies.maglev", "acme.Policy")]).is_err());
    let zone = "envoy.extensions.load_balancing_policies.load_aware_locality.v3.LoadAwareLocality";
    assert_eq!(
        read(&[("z", zone), ("lr", least)]).unwrap_err(),
        ["policies[0].typed_extension_config: envoy.load_balancing_policies.load_aware_locality is not supported"]
    );
    assert_eq!(read(&[("mine", "acme.Policy")]).unwrap_err().len(), 1);
}

#[test]
fn selectors() {
    use cluster::lb_subset_config::{LbSubsetSelector, lb_subset_selector::LbSubsetSelectorFallbackPolicy as Fallback};
    let selector = |keys: &[&str], fallback: Fallback, fallback_keys: &[&str], single| LbSubsetSelector {
        keys: keys.iter().map(ToString::to_string).collect(),
        single_host_per_subset: single,
        fallback_policy: fallback.into(),
        fallback_keys_subset: fallback_keys.iter().map(ToString::to_string).collect(),
    };
    let read = |selector| {
        let p = cluster::LbSubsetConfig { subset_selectors: vec![selector], ..Default::default() };
        old(p, cluster::LbPolicy::Random).map(|policy| match policy.kind {
            PolicyKind::Subset(subset) => subset.selectors.into_iter().next(),
            _ => None,
        })
    };
    let keys = read(selector(&["b", "a", "b"], Fallback::KeysSubset, &["b"], false)).unwrap().unwrap();
    assert_eq!(keys.keys, ["a", "b"]);
    assert_eq!(keys.fallback, Some(SelectorFallback::Keys(vec!["b".into()])));
    for bad in [
        selector(&["a", "b"], Fallback::KeysSubset, &[], false),
        selector(&["a", "b"], Fallback::KeysSubset, &["c"], false),
        selector(&["a", "b"], Fallback::KeysSubset, &["b", "a"], false),
        selector(&["a", "b"], Fallback::AnyEndpoint, &["a"], false),
    ] {
        assert_eq!(read(bad).unwrap_err().len(), 1);
    }
    let p = || cluster::LbSubsetConfig {
        subset_selectors: vec![selector(&["a"], Fallback::NotDefined, &[], false)],
        ..Default::default()
    };
    assert!(old(p(), cluster::LbPolicy::ClusterProvided).is_err());
}

#[test]
fn sizes_of_tables() {
    let problems = |make: &dyn Fn(&mut Context)| {
        let mut cx = Context::new();
        make(&mut cx);
        cx.has_problems()
    };
    let maglev = |size| problems(&|cx| drop(Maglev::new(size, ConsistentHashing::default(), cx)));
    assert_eq!([None, Some(5), Some(65536), Some(1), Some(5_000_011)].map(maglev), [false, false, true, true, false]);
    let ring = |min, max| {
        problems(&|cx| drop(RingHash::new(HashFunction::XxHash64, min, max, ConsistentHashing::default(), cx)))
    };
    assert!(!ring(None, None) && !ring(Some(5), Some(5)) && ring(Some(6), Some(5)) && ring(None, Some(1023)));
}
