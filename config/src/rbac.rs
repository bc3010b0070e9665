//! Who may do what (`envoy.config.rbac.v3`, and the filters `envoy.filters.http.rbac` and `envoy.filters.network.rbac`).
//!
//! Read by both filters; the proxy's `rbac` compiles it. Permissions and principals are one kind of rule here: what differs
//! is only where they may stand.

mod rule;

pub use rule::{FilterStateTest, MetadataSource, Rule};

use crate::{
    Context,
    matching::{Matcher, Scope},
};
use std::{collections::BTreeMap, time::Duration};
use weft_control_api::{
    Any,
    envoy::{
        config::rbac::v3 as pb,
        extensions::filters::{http::rbac::v3 as http, network::rbac::v3 as network},
    },
};

pub use pb::rbac::Action;

/// What is decided by: policies, or a tree.
#[derive(Clone, Debug)]
pub enum Rules {
    Policies(Policies),
    Tree(Matcher<TreeAction>),
}

/// `envoy.config.rbac.v3.RBAC`.
#[derive(Clone, Debug)]
pub struct Policies {
    pub action: Action,
    /// By name, which is the order in which they are tried.
    pub policies: BTreeMap<String, Policy>,
}

/// A policy takes what one of its permissions and one of its principals take.
#[derive(Clone, Debug)]
pub struct Policy {
    pub permissions: Vec<Rule>,
    pub principals: Vec<Rule>,
}

/// What a tree ends in (`envoy.config.rbac.v3.Action`).
#[derive(Clone, Debug)]
pub struct TreeAction {
    pub name: String,
    pub action: Action,
}

/// The configuration of both filters.
#[derive(Clone, Debug, Default)]
pub struct Rbac {
    pub rules: Option<Rules>,
    pub shadow_rules: Option<Rules>,
    /// In front of the keys of metadata and the names of stats.
    pub rules_stat_prefix: String,
    /// In front of the keys of metadata and the names of stats.
    pub shadow_rules_stat_prefix: String,
    /// Every policy has stats of its own.
    pub track_per_rule_stats: bool,
}

/// The network filter's configuration.
#[derive(Clone, Debug)]
pub struct NetworkRbac {
    pub rbac: Rbac,
    pub stat_prefix: String,
    /// Asked again whenever bytes come.
    pub continuous: bool,
    /// How long a denied connection is left open.
    pub delay_deny: Duration,
}

impl Rbac {
    /// Reads the HTTP filter's configuration.
    pub fn from_http(p: http::Rbac, cx: &mut Context) -> Self {
        let http::Rbac {
            rules,
            rules_stat_prefix,
            matcher,
            shadow_rules,
            shadow_matcher,
            shadow_rules_stat_prefix,
            track_per_rule_stats,
        } = p;
        Self {
            rules: self::rules(("rules", rules), ("matcher", matcher), Scope::Http, cx),
            shadow_rules: self::rules(
                ("shadow_rules", shadow_rules),
                ("shadow_matcher", shadow_matcher),
                Scope::Http,
                cx,
            ),
            rules_stat_prefix,
            shadow_rules_stat_prefix,
            track_per_rule_stats,
        }
    }

    /// Reads a route's configuration of the HTTP filter; `None`: the filter lets all pass there.
    pub fn from_route(p: http::RbacPerRoute, cx: &mut Context) -> Option<Self> {
        let http::RbacPerRoute { rbac } = p;
        rbac.map(|p| cx.field("rbac", |cx| Self::from_http(p, cx)))
    }
}

impl NetworkRbac {
    /// Reads the network filter's configuration.
    pub fn from_proto(p: network::Rbac, cx: &mut Context) -> Self {
        let network::Rbac {
            rules,
            matcher,
            shadow_rules,
            shadow_matcher,
            shadow_rules_stat_prefix,
            stat_prefix,
            enforcement_type,
            delay_deny,
        } = p;
        let enforcement = cx.enumeration::<network::rbac::EnforcementType>("enforcement_type", enforcement_type);
        Self {
            rbac: Rbac {
                rules: self::rules(("rules", rules), ("matcher", matcher), Scope::Network, cx),
                shadow_rules: self::rules(
                    ("shadow_rules", shadow_rules),
                    ("shadow_matcher", shadow_matcher),
                    Scope::Network,
                    cx,
                ),
                rules_stat_prefix: String::new(),
                shadow_rules_stat_prefix,
                track_per_rule_stats: false,
            },
            stat_prefix,
            continuous: enforcement == network::rbac::EnforcementType::Continuous,
            delay_deny: cx.duration("delay_deny", delay_deny).unwrap_or_default(),
        }
    }
}

/// A tree, where there is one, goes before policies.
fn rules(
    (rules_name, rules): (&str, Option<pb::Rbac>),
    (tree_name, tree): (&str, Option<weft_control_api::xds::r#type::matcher::v3::Matcher>),
    scope: Scope,
    cx: &mut Context,
) -> Option<Rules> {
    if let Some(tree) = tree {
        if rules.is_some() {
            cx.problem_at(rules_name, format!("cannot be set together with {tree_name}"));
        }
        return cx.field(tree_name, |cx| Matcher::from_proto(tree, scope, TreeAction::from_any, cx).map(Rules::Tree));
    }
    rules.map(|p| Rules::Policies(cx.field(rules_name, |cx| Policies::from_proto(p, scope, cx))))
}

impl Policies {
    fn from_proto(p: pb::Rbac, scope: Scope, cx: &mut Context) -> Self {
        let pb::Rbac { action, policies, audit_logging_options } = p;
        if let Some(options) = audit_logging_options {
            cx.field("audit_logging_options", |cx| audit_logging(options, cx));
        }
        // Problems in the order of the names, not of a hash table.
        let sorted: BTreeMap<_, _> = policies.into_iter().collect();
        let read = |(name, p): (String, pb::Policy)| {
            let policy = cx.entry("policies", &name, |cx| Policy::from_proto(p, scope, cx));
            (name, policy)
        };
        let policies = sorted.into_iter().map(read).collect();
        Self { action: cx.enumeration("action", action), policies }
    }
}

/// Envoy has no audit logger, and says nothing of those that it is given; a configuration that relies on one is refused here.
fn audit_logging(p: pb::rbac::AuditLoggingOptions, cx: &mut Context) {
    use pb::rbac::audit_logging_options::{AuditCondition, AuditLoggerConfig};
    let pb::rbac::AuditLoggingOptions { audit_condition, logger_configs } = p;
    let condition: AuditCondition = cx.enumeration("audit_condition", audit_condition);
    for (i, AuditLoggerConfig { audit_logger: _, is_optional }) in logger_configs.into_iter().enumerate() {
        cx.element("logger_configs", i, |cx| {
            cx.unsupported_if("audit_logger", !is_optional && condition != AuditCondition::None);
            cx.ignored_if("audit_logger", true);
        });
    }
}

impl Policy {
    fn from_proto(p: pb::Policy, scope: Scope, cx: &mut Context) -> Self {
        let pb::Policy { permissions, principals, condition, checked_condition, cel_config } = p;
        cx.unsupported_if("condition", condition.is_some());
        cx.unsupported_if("checked_condition", checked_condition.is_some());
        cx.ignored_if("cel_config", cel_config.is_some());
        Self {
            permissions: cx.elements("permissions", permissions, |cx, p| Rule::from_permission(p, scope, cx)),
            principals: cx.elements("principals", principals, |cx, p| Rule::from_principal(p, scope, cx)),
        }
    }
}

impl TreeAction {
    fn from_any(any: &Any, cx: &mut Context) -> Option<Self> {
        let pb::Action { name, action } = cx.unpack("", any)?;
        if name.is_empty() {
            cx.problem_at("name", "must not be empty");
        }
        Some(Self { name, action: cx.enumeration("action", action) })
    }
}

#[cfg(test)]
mod tests;
