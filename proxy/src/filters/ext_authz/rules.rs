//! Which headers an authorisation service may change (`envoy.config.common.mutation_rules.v3.HeaderMutationRules`).

use regex::bytes::Regex;
use weft_config::{Context, string_matcher::regex_of};
use weft_control_api::envoy::config::common::mutation_rules::v3 as pb;

pub(super) struct MutationRules {
    allow_all_routing: bool,
    allow_envoy: bool,
    disallow_system: bool,
    disallow_all: bool,
    allow: Option<Regex>,
    disallow: Option<Regex>,
    /// What may not be changed fails the request; otherwise it is left as it is.
    pub disallow_is_error: bool,
}

impl MutationRules {
    pub fn from_proto(p: pb::HeaderMutationRules, cx: &mut Context) -> Option<Self> {
        let pb::HeaderMutationRules {
            allow_all_routing,
            allow_envoy,
            disallow_system,
            disallow_all,
            allow_expression,
            disallow_expression,
            disallow_is_error,
        } = p;
        let mut regex = |name: &str, p: Option<_>| p.and_then(|p| cx.field(name, |cx| regex_of(p, cx)));
        Some(Self {
            allow_all_routing: allow_all_routing.unwrap_or_default(),
            allow_envoy: allow_envoy.unwrap_or_default(),
            disallow_system: disallow_system.unwrap_or_default(),
            disallow_all: disallow_all.unwrap_or_default(),
            allow: regex("allow_expression", allow_expression),
            disallow: regex("disallow_expression", disallow_expression),
            disallow_is_error: disallow_is_error.unwrap_or_default(),
        })
    }

    /// True if the header of this name, in lower case, may be changed.
    pub fn allows(&self, name: &str) -> bool {
        if self.disallow_all || self.disallow.as_ref().is_some_and(|regex| regex.is_match(name.as_bytes())) {
            return false;
        }
        if self.allow.as_ref().is_some_and(|regex| regex.is_match(name.as_bytes())) {
            return true;
        }
        let routes = matches!(name, "host" | ":authority" | ":scheme" | ":method");
        !(self.disallow_system && name.starts_with(':')
            || !self.allow_envoy && name.starts_with("x-envoy-")
            || !self.allow_all_routing && routes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_routing_and_envoys_own_headers_stay() {
        let read = |p| MutationRules::from_proto(p, &mut Context::new()).expect("valid");
        let default = read(pb::HeaderMutationRules::default());
        for (name, want) in [("x-a", true), ("host", false), (":path", true), (":method", false), ("x-envoy-a", false)]
        {
            assert_eq!(default.allows(name), want, "{name}");
        }
        assert!(read(pb::HeaderMutationRules { allow_all_routing: Some(true), ..Default::default() }).allows("host"));
        assert!(!read(pb::HeaderMutationRules { disallow_all: Some(true), ..Default::default() }).allows("x-a"));
    }
}
