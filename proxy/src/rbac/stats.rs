//! What is counted of decisions, and what others get to know of them.

use super::Decision;
use crate::{
    observe::{
        stats::{Counter, Registry, StatGroup, StatRef},
        stream_info::Metadata,
    },
    stats,
};
use foldhash::HashMap;
use serde_json::Value;
use std::{cell::RefCell, sync::Arc};

stats! {
    /// `PREFIX.rbac.[RULES_PREFIX.]*`
    pub struct EnforcedStats {
        counter allowed,
        counter denied,
    }
}

stats! {
    /// `PREFIX.rbac.[SHADOW_RULES_PREFIX.]*`
    pub struct ShadowStats {
        counter shadow_allowed,
        counter shadow_denied,
    }
}

/// `PREFIX.rbac.[...]policy.NAME.*`, each there once it counted something.
#[derive(Default)]
struct PolicyStats {
    allowed: Counter,
    denied: Counter,
    shadow_allowed: Counter,
    shadow_denied: Counter,
}

impl StatGroup for PolicyStats {
    fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        let all = [
            ("allowed", &self.allowed),
            ("denied", &self.denied),
            ("shadow_allowed", &self.shadow_allowed),
            ("shadow_denied", &self.shadow_denied),
        ];
        all.into_iter().filter(|(_, counter)| counter.get() > 0).for_each(|(name, c)| visit(name, StatRef::Counter(c)));
    }
}

/// By whether it is a shadow rule's, and by name.
type PoliciesStats = HashMap<(bool, Arc<str>), Arc<PolicyStats>>;

/// Whether rules decide, or only tell what they would have decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforced,
    Shadow,
}

/// One worker's stats of one filter.
pub struct RuleStats {
    enforced: Arc<EnforcedStats>,
    shadow: Arc<ShadowStats>,
    /// Stats of policies: where they are attached, and those that there are.
    registry: Registry,
    prefix: String,
    shadow_prefix: String,
    policies: RefCell<PoliciesStats>,
}

impl RuleStats {
    /// Attaches the stats of a filter whose own prefix is `prefix`.
    pub fn attach(registry: &Registry, prefix: &str, rules_prefix: &str, shadow_rules_prefix: &str) -> Self {
        let prefix = join(prefix, "rbac");
        let (shadow_prefix, prefix) = (join(&prefix, shadow_rules_prefix), join(&prefix, rules_prefix));
        Self {
            enforced: registry.attach(&prefix),
            shadow: registry.attach(&shadow_prefix),
            registry: registry.clone(),
            prefix,
            shadow_prefix,
            policies: RefCell::default(),
        }
    }

    /// Counts a decision; that of its policy too if `each_policy`.
    pub fn count(&self, decision: &Decision, mode: Mode, each_policy: bool) {
        tracing::debug!(
            target: "rbac",
            "{} {}, matched policy {}",
            if mode == Mode::Shadow { "shadow" } else { "enforced" },
            if decision.allowed { "allowed" } else { "denied" },
            decision.policy.as_deref().unwrap_or("none")
        );
        match (mode, decision.allowed) {
            (Mode::Enforced, true) => self.enforced.allowed.inc(),
            (Mode::Enforced, false) => self.enforced.denied.inc(),
            (Mode::Shadow, true) => self.shadow.shadow_allowed.inc(),
            (Mode::Shadow, false) => self.shadow.shadow_denied.inc(),
        }
        if let Some(policy) = decision.policy.as_ref().filter(|_| each_policy) {
            let stats = self.of_policy(policy, mode);
            match (mode, decision.allowed) {
                (Mode::Enforced, true) => stats.allowed.inc(),
                (Mode::Enforced, false) => stats.denied.inc(),
                (Mode::Shadow, true) => stats.shadow_allowed.inc(),
                (Mode::Shadow, false) => stats.shadow_denied.inc(),
            }
        }
    }

    fn of_policy(&self, policy: &Arc<str>, mode: Mode) -> Arc<PolicyStats> {
        let is_shadow = mode == Mode::Shadow;
        let mut policies = self.policies.borrow_mut();
        let attach = || {
            let prefix = if is_shadow { &self.shadow_prefix } else { &self.prefix };
            self.registry.attach(&format!("{prefix}.policy.{policy}"))
        };
        policies.entry((is_shadow, policy.clone())).or_insert_with(attach).clone()
    }
}

/// Two parts of a stat's name; a part that ends in a dot needs no other.
fn join(prefix: &str, rest: &str) -> String {
    let (prefix, rest) = (prefix.trim_end_matches('.'), rest.trim_end_matches('.'));
    match (prefix.is_empty(), rest.is_empty()) {
        (true, _) => rest.to_owned(),
        (_, true) => prefix.to_owned(),
        _ => format!("{prefix}.{rest}"),
    }
}

/// How decisions are told in dynamic metadata. Made once, when the configuration is compiled.
#[derive(Debug)]
pub struct Recorder {
    namespace: &'static str,
    enforced: [String; 2],
    shadow: [String; 2],
}

impl Recorder {
    /// For a filter that writes to `namespace`, its keys with these prefixes.
    pub fn new(namespace: &'static str, rules_prefix: &str, shadow_rules_prefix: &str) -> Self {
        let keys = |prefix: &str, mode: &str| {
            ["effective_policy_id", "engine_result"].map(|what| format!("{prefix}{mode}_{what}"))
        };
        Self { namespace, enforced: keys(rules_prefix, "enforced"), shadow: keys(shadow_rules_prefix, "shadow") }
    }

    /// Writes a decision down.
    pub fn record(&self, decision: &Decision, mode: Mode, metadata: &mut Metadata) {
        let [policy_key, result_key] = if mode == Mode::Enforced { &self.enforced } else { &self.shadow };
        let values = metadata.entry(self.namespace.into()).or_default();
        if let Some(policy) = &decision.policy {
            values.insert(policy_key.clone(), Value::from(&**policy));
        }
        values.insert(result_key.clone(), Value::from(if decision.allowed { "allowed" } else { "denied" }));
        values.sort_keys();
    }

    /// Tells access logs whether to log, where the enforced rules say so.
    pub fn hint(decision: &Decision, metadata: &mut Metadata) {
        if let Some(log) = decision.log {
            metadata.entry("envoy.common".into()).or_default().insert("access_log_hint".into(), Value::Bool(log));
        }
    }

    /// `%RESPONSE_CODE_DETAILS%` or `%CONNECTION_TERMINATION_DETAILS%` of what was denied.
    pub fn details(decision: &Decision) -> String {
        let policy = decision.policy.as_deref().unwrap_or("none");
        let policy = policy.replace([' ', '\t', '\n', '\r', '\x0b', '\x0c'], "_");
        format!("rbac_access_denied_matched_policy[{policy}]")
    }
}
