//! Subsets of hosts by their metadata: `lb_subset_config` and the subset policy.

use super::{LbPolicy, extension};
use crate::{Context, metadata};
use serde_json::{Map, Value};
use weft_control_api::{
    Struct,
    envoy::{
        config::cluster::v3::cluster::{LbSubsetConfig, lb_subset_config as legacy},
        extensions::load_balancing_policies::subset::v3::{self as pb, subset},
    },
};

/// Hosts are grouped by metadata in `envoy.lb`, and requests ask for a group.
#[derive(Clone, Debug)]
pub struct Subset {
    /// Where the request asks for nothing, or for what no selector has.
    pub fallback: FallbackPolicy,
    pub default_subset: Map<String, Value>,
    pub selectors: Vec<SubsetSelector>,
    /// What the request asks for beyond a selector's keys is no hindrance. The selectors with the most keys come first then.
    pub allow_redundant_keys: bool,
    /// Weights of localities count within subsets, scaled by the share of the locality's hosts or not.
    pub locality_weight_aware: bool,
    pub scale_locality_weight: bool,
    /// Any host rather than none.
    pub panic_mode_any: bool,
    /// A list in a host's metadata stands for each of its values.
    pub list_as_any: bool,
    /// The request's metadata may have a list of alternatives, `fallback_list`.
    pub fallback_list: bool,
    /// The policy within a subset.
    pub policy: LbPolicy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsetSelector {
    /// In order, each once.
    pub keys: Vec<String>,
    pub single_host: bool,
    /// `None`: the fallback of all.
    pub fallback: Option<SelectorFallback>,
}

/// What a request gets whose subset has no host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FallbackPolicy {
    #[default]
    NoFallback,
    AnyEndpoint,
    DefaultSubset,
}

/// The same for the keys of one selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorFallback {
    Policy(FallbackPolicy),
    /// Look again with these keys only, in order.
    Keys(Vec<String>),
}

impl Subset {
    pub(super) fn from_legacy(p: LbSubsetConfig, policy: LbPolicy, cx: &mut Context) -> Self {
        let LbSubsetConfig {
            fallback_policy,
            default_subset,
            subset_selectors,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            metadata_fallback_policy,
        } = p;
        // The extension's message is a copy of this one, down to the numbers of its enums.
        let selector = |p: legacy::LbSubsetSelector| {
            let legacy::LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = p;
            subset::LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset }
        };
        let p = pb::Subset {
            fallback_policy,
            default_subset,
            subset_selectors: subset_selectors.into_iter().map(selector).collect(),
            allow_redundant_keys: false,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            metadata_fallback_policy,
            subset_lb_policy: None,
        };
        Self::read(p, policy, cx)
    }

    pub(super) fn from_extension(mut p: pb::Subset, cx: &mut Context) -> Option<Self> {
        let policy = cx.required("subset_lb_policy", p.subset_lb_policy.take())?;
        let policy = cx.field("subset_lb_policy", |cx| extension::read(policy, cx))?;
        Some(Self::read(p, policy, cx))
    }

    /// All but the policy within a subset.
    fn read(p: pb::Subset, policy: LbPolicy, cx: &mut Context) -> Self {
        let pb::Subset {
            fallback_policy,
            default_subset,
            subset_selectors,
            allow_redundant_keys,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            metadata_fallback_policy,
            subset_lb_policy: _,
        } = p;
        use subset::LbSubsetFallbackPolicy as Fallback;
        let fallback = match cx.enumeration("fallback_policy", fallback_policy) {
            Fallback::NoFallback => FallbackPolicy::NoFallback,
            Fallback::AnyEndpoint => FallbackPolicy::AnyEndpoint,
            Fallback::DefaultSubset => FallbackPolicy::DefaultSubset,
        };
        let metadata_fallback: subset::LbSubsetMetadataFallbackPolicy =
            cx.enumeration("metadata_fallback_policy", metadata_fallback_policy);
        let mut this = Self {
            fallback,
            default_subset: values(default_subset),
            selectors: cx.elements("subset_selectors", subset_selectors, |cx, p| {
                let subset::LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } =
                    p;
                use subset::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Fallback;
                let fallback = match cx.enumeration("fallback_policy", fallback_policy) {
                    Fallback::NotDefined => None,
                    Fallback::NoFallback => Some(SelectorFallback::Policy(FallbackPolicy::NoFallback)),
                    Fallback::AnyEndpoint => Some(SelectorFallback::Policy(FallbackPolicy::AnyEndpoint)),
                    Fallback::DefaultSubset => Some(SelectorFallback::Policy(FallbackPolicy::DefaultSubset)),
                    Fallback::KeysSubset => Some(SelectorFallback::Keys(Vec::new())),
                };
                let read = SubsetSelector::new(keys, single_host_per_subset, fallback, fallback_keys_subset, cx);
                // One without keys selects nothing.
                (!read.keys.is_empty()).then_some(read)
            }),
            allow_redundant_keys,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            fallback_list: metadata_fallback == subset::LbSubsetMetadataFallbackPolicy::FallbackList,
            policy,
        };
        if allow_redundant_keys {
            this.selectors.sort_by_key(|selector| std::cmp::Reverse(selector.keys.len()));
        }
        this.forget_hidden_fallbacks();
        this
    }

    /// Envoy takes no notice of the fallback of a selector whose keys are the first ones of an earlier selector's.
    fn forget_hidden_fallbacks(&mut self) {
        for i in 1..self.selectors.len() {
            let (before, rest) = self.selectors.split_at_mut(i);
            if before.iter().any(|earlier| earlier.keys.starts_with(&rest[0].keys)) {
                rest[0].fallback = None;
            }
        }
    }
}

impl SubsetSelector {
    /// `fallback`: its keys are still to be filled in.
    fn new(
        keys: Vec<String>,
        single_host: bool,
        fallback: Option<SelectorFallback>,
        fallback_keys: Vec<String>,
        cx: &mut Context,
    ) -> Self {
        let ordered = |mut keys: Vec<String>| {
            keys.sort_unstable();
            keys.dedup();
            keys
        };
        let (keys, fallback_keys) = (ordered(keys), ordered(fallback_keys));
        let fallback = match fallback {
            Some(SelectorFallback::Keys(_)) => {
                if fallback_keys.is_empty() {
                    cx.problem_at("fallback_keys_subset", "cannot be empty");
                } else if !fallback_keys.iter().all(|key| keys.contains(key)) {
                    cx.problem_at("fallback_keys_subset", "must be a subset of selector keys");
                } else if fallback_keys == keys {
                    cx.problem_at("fallback_keys_subset", "cannot be equal to keys");
                }
                Some(SelectorFallback::Keys(fallback_keys))
            }
            other => {
                if !fallback_keys.is_empty() {
                    cx.problem_at("fallback_keys_subset", "can be set only for KEYS_SUBSET fallback_policy");
                }
                other
            }
        };
        Self { keys, single_host, fallback }
    }
}

fn values(p: Option<Struct>) -> Map<String, Value> {
    p.map(metadata::object).unwrap_or_default()
}
