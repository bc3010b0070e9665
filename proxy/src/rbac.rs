//! Who may do what: policies and trees, compiled; asked by the HTTP filter for each request and by the network filter for
//! each connection.
//!
//! Policies are tried in the order of their names, and the first that takes a request decides. [`index`] finds those that
//! can take it at all, so that a thousand cost little more than one; each of those is then tested in full, so that the
//! index never decides by itself.

mod facts;
mod index;
mod stats;

pub use facts::Facts;
pub use stats::{Mode, Recorder, RuleStats};

use facts::Lean;
use index::Index;
use std::sync::Arc;
use weft_config::{
    matching::Matcher,
    rbac::{Action, Policies, Rule, Rules, TreeAction},
};

/// Compiled rules.
pub enum Engine {
    Policies(PolicyEngine),
    Tree {
        matcher: Matcher<Named>,
        /// One of the actions is LOG, so that every request is told whether it is to be logged.
        logs: bool,
    },
}

/// Compiled policies.
pub struct PolicyEngine {
    action: Action,
    lean: Lean,
    /// In the order of their names.
    policies: Vec<Policy>,
    index: Index,
}

struct Policy {
    id: Arc<str>,
    /// Its permissions and its principals.
    rule: Rule,
}

/// A tree's action.
#[derive(Clone, Debug)]
pub struct Named {
    id: Arc<str>,
    action: Action,
}

/// What became of a request or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// The policy that took it.
    pub policy: Option<Arc<str>>,
    /// Whether it is to be logged, where rules say so.
    pub log: Option<bool>,
}

impl Engine {
    pub fn new(rules: Rules) -> Self {
        match rules {
            Rules::Policies(policies) => Self::Policies(PolicyEngine::new(policies)),
            Rules::Tree(matcher) => {
                let matcher = matcher.map(&|TreeAction { name, action }| Named { id: name.into(), action });
                let logs = matcher.actions().iter().any(|named| named.action == Action::Log);
                Self::Tree { matcher, logs }
            }
        }
    }

    /// Decides about a request or connection.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        match self {
            Self::Policies(policies) => policies.decide(facts),
            Self::Tree { matcher, logs } => match matcher.find(facts) {
                Some(named) => Decision {
                    allowed: named.action != Action::Deny,
                    policy: Some(named.id.clone()),
                    log: logs.then_some(named.action == Action::Log),
                },
                None => Decision { allowed: false, policy: None, log: None },
            },
        }
    }
}

impl PolicyEngine {
    fn new(policies: Policies) -> Self {
        let Policies { action, policies } = policies;
        let compile = |(name, policy): (String, weft_config::rbac::Policy)| Policy {
            id: name.into(),
            rule: Rule::And(vec![Rule::Or(policy.permissions), Rule::Or(policy.principals)]),
        };
        let policies: Vec<_> = policies.into_iter().map(compile).collect();
        let index = Index::new(policies.iter().map(|policy| &policy.rule));
        // Where a header's values disagree, a rule that denies takes the request.
        let lean = if action == Action::Deny { Lean::Match } else { Lean::Any };
        Self { action, lean, policies, index }
    }

    fn decide(&self, facts: &Facts<'_>) -> Decision {
        let takes =
            |place: u32| self.policies.get(place as usize).is_some_and(|policy| facts.matches(&policy.rule, self.lean));
        let policy = self.index.first(facts, takes).and_then(|place| self.policies.get(place as usize));
        let taken = policy.is_some();
        let (allowed, log) = match self.action {
            Action::Allow => (taken, None),
            Action::Deny => (!taken, None),
            Action::Log => (true, Some(taken)),
        };
        Decision { allowed, policy: policy.map(|policy| policy.id.clone()), log }
    }
}

#[cfg(test)]
mod tests;
