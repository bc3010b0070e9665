//! Route configurations (`envoy.config.route.v3.RouteConfiguration`): virtual hosts, routes, what they match and do.
//!
//! Read over RDS, from files, and inside connection managers; compiled by the proxy's route table.

mod action;
mod matching;
mod retry;

pub use action::*;
pub use matching::*;
pub use retry::*;

use crate::{
    Context,
    config_source::ConfigSource,
    header_matcher::HeaderMatcher,
    header_value::HeaderChanges,
    metadata::{self, Metadata},
    rate_limit::{self, RateLimit},
};
use http::HeaderName;
use prost::Message as _;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};
use weft_control_api::{Any, envoy::config::route::v3 as pb};

/// A route configuration.
#[derive(Clone, Debug)]
pub struct RouteConfiguration {
    pub name: String,
    pub virtual_hosts: Vec<VirtualHost>,
    /// Where more virtual hosts come from.
    pub vhds: Option<Arc<ConfigSource>>,
    pub internal_only_headers: Vec<HeaderName>,
    pub headers: HeaderChanges,
    pub most_specific_header_mutations_wins: bool,
    /// Default: true for static configurations, false for RDS.
    pub validate_clusters: Option<bool>,
    pub ignore_port_in_host_matching: bool,
    pub ignore_path_parameters_in_path_matching: bool,
    /// Empty: the authority.
    pub vhost_header: Option<HeaderName>,
    pub per_filter: PerFilterConfigs,
    pub metadata: Metadata,
}

/// Per-route filter configurations, by filter name.
pub type PerFilterConfigs = BTreeMap<String, PerFilterConfig>;

/// One filter's configuration on a route, virtual host, or route configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct PerFilterConfig {
    pub config: Option<Any>,
    pub is_optional: bool,
    pub disabled: bool,
}

/// A virtual host.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    pub name: String,
    /// Lower case.
    pub domains: Vec<String>,
    pub routes: Vec<Route>,
    pub require_tls: RequireTls,
    pub virtual_clusters: Vec<VirtualCluster>,
    pub rate_limits: Vec<RateLimit>,
    pub headers: HeaderChanges,
    pub per_filter: PerFilterConfigs,
    pub include_request_attempt_count: bool,
    pub include_attempt_count_in_response: bool,
    /// Retries say in `x-envoy-is-timeout-retry` whether a timeout made them.
    pub include_is_timeout_retry_header: bool,
    pub metadata: Metadata,
}

pub use pb::virtual_host::TlsRequirementType as RequireTls;

/// Requests that are counted together, `vhost.NAME.vcluster.NAME.*`.
#[derive(Clone, Debug)]
pub struct VirtualCluster {
    pub name: String,
    pub headers: Vec<HeaderMatcher>,
}

/// A route.
#[derive(Clone, Debug)]
pub struct Route {
    pub name: String,
    pub matching: RouteMatch,
    pub action: RouteActionKind,
    pub headers: HeaderChanges,
    pub per_filter: PerFilterConfigs,
    pub metadata: Metadata,
    /// Empty: none.
    pub stat_prefix: String,
    /// Bytes of request that may be held for retries, shadows and redirects.
    pub request_buffer_limit: Option<u64>,
}

/// What a route does.
#[derive(Clone, Debug)]
pub enum RouteActionKind {
    Forward(Box<RouteAction>),
    Redirect(RedirectAction),
    DirectResponse(DirectResponse),
    NonForwarding,
}

/// What a route inherits where it says nothing itself.
#[derive(Clone, Default)]
struct Inherited {
    retry: Option<Arc<RetryPolicy>>,
    hedge_on_per_try_timeout: bool,
    mirrors: Vec<MirrorPolicy>,
    buffer_limit: Option<u64>,
    max_direct_response: usize,
}

impl RouteConfiguration {
    pub fn from_proto(p: pb::RouteConfiguration, cx: &mut Context) -> Option<Self> {
        let pb::RouteConfiguration {
            name,
            virtual_hosts,
            vhds,
            internal_only_headers,
            response_headers_to_add,
            response_headers_to_remove,
            request_headers_to_add,
            request_headers_to_remove,
            most_specific_header_mutations_wins,
            validate_clusters,
            max_direct_response_body_size_bytes,
            cluster_specifier_plugins,
            request_mirror_policies,
            ignore_port_in_host_matching,
            vhost_header,
            ignore_path_parameters_in_path_matching,
            typed_per_filter_config,
            metadata,
            route_specifiers,
        } = p;
        let vhds = vhds.and_then(|p| {
            cx.field("vhds", |cx| {
                let pb::Vhds { config_source } = p;
                let config_source = cx.required("config_source", config_source)?;
                let source = cx.field("config_source", |cx| ConfigSource::from_proto(config_source, cx))?;
                crate::on_demand::delta_only("config_source", &source, cx);
                Some(Arc::new(source))
            })
        });
        cx.unsupported_if("cluster_specifier_plugins", !cluster_specifier_plugins.is_empty());
        cx.unsupported_if("route_specifiers", !route_specifiers.is_empty());
        let inherited = Inherited {
            mirrors: mirrors(request_mirror_policies, cx),
            max_direct_response: max_direct_response_body_size_bytes.unwrap_or(4096) as usize,
            ..Inherited::default()
        };
        let internal_only_headers = cx.elements("internal_only_headers", internal_only_headers, |cx, name| {
            HeaderName::try_from(&name).map_err(|_| cx.problem(format!("found {name:?}, which is no header name"))).ok()
        });
        let headers = HeaderChanges::read(
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            cx,
        );
        let virtual_hosts =
            cx.elements("virtual_hosts", virtual_hosts, |cx, p| VirtualHost::from_proto(p, &inherited, cx));
        let mut domains = HashSet::new();
        for (i, host) in virtual_hosts.iter().enumerate() {
            for domain in &host.domains {
                if !domains.insert(domain) {
                    let path = format!("virtual_hosts[{i}].domains");
                    cx.problem_at(
                        &path,
                        format!("found {domain:?} a second time: only unique values for domains are permitted"),
                    );
                }
            }
        }
        Some(Self {
            name,
            virtual_hosts,
            vhds,
            internal_only_headers,
            headers,
            most_specific_header_mutations_wins,
            validate_clusters,
            ignore_port_in_host_matching,
            ignore_path_parameters_in_path_matching,
            vhost_header: if vhost_header.is_empty() {
                None
            } else {
                HeaderName::try_from(&vhost_header).map_err(|_| cx.problem_at("vhost_header", "is no header name")).ok()
            },
            per_filter: per_filter(typed_per_filter_config, cx),
            metadata: metadata::from_proto("metadata", metadata, cx),
        })
    }

    /// The names of all clusters that routes go to; those that come with requests are not among them.
    pub fn clusters(&self) -> impl Iterator<Item = ClusterReference<'_>> {
        let routes = |host: &'_ VirtualHost| host.routes.len();
        let places =
            self.virtual_hosts.iter().enumerate().flat_map(move |(i, host)| (0..routes(host)).map(move |j| (i, j)));
        places.flat_map(|(virtual_host, route)| {
            let action = match &self.virtual_hosts[virtual_host].routes[route].action {
                RouteActionKind::Forward(action) => Some(action),
                _ => None,
            };
            let names = action.into_iter().flat_map(|action| action.clusters());
            names.map(move |name| ClusterReference { virtual_host, route, name })
        })
    }
}

/// A route's mention of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct ClusterReference<'a> {
    virtual_host: usize,
    route: usize,
    /// The cluster.
    pub name: &'a str,
}

impl ClusterReference<'_> {
    /// The field path of the route's action in its route configuration.
    pub fn path(&self) -> String {
        format!("virtual_hosts[{}].routes[{}].route", self.virtual_host, self.route)
    }
}

impl VirtualHost {
    fn from_proto(p: pb::VirtualHost, inherited: &Inherited, cx: &mut Context) -> Option<Self> {
        let pb::VirtualHost {
            name,
            domains,
            routes,
            matcher,
            require_tls,
            virtual_clusters,
            rate_limits,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            cors,
            typed_per_filter_config,
            include_request_attempt_count,
            include_attempt_count_in_response,
            retry_policy,
            retry_policy_typed_config,
            hedge_policy,
            include_is_timeout_retry_header,
            per_request_buffer_limit_bytes,
            request_body_buffer_limit,
            request_mirror_policies,
            metadata,
            route_specifiers,
        } = p;
        cx.unsupported_if("matcher", matcher.is_some());
        cx.unsupported_if("cors", cors.is_some());
        cx.unsupported_if("retry_policy_typed_config", retry_policy_typed_config.is_some());
        cx.unsupported_if("route_specifiers", !route_specifiers.is_empty());
        let own = mirrors(request_mirror_policies, cx);
        let inherited = Inherited {
            retry: retry_policy
                .and_then(|p| cx.field("retry_policy", |cx| RetryPolicy::from_proto(p, cx)))
                .map(Arc::new),
            hedge_on_per_try_timeout: hedge_policy.is_some_and(|p| retry::hedge_on_per_try_timeout(p, cx)),
            mirrors: if own.is_empty() { inherited.mirrors.clone() } else { own },
            buffer_limit: request_body_buffer_limit.or(per_request_buffer_limit_bytes.map(u64::from)),
            max_direct_response: inherited.max_direct_response,
        };
        Some(Self {
            name,
            domains: domains.into_iter().map(|domain| domain.to_ascii_lowercase()).collect(),
            routes: cx.elements("routes", routes, |cx, p| Route::from_proto(p, &inherited, cx)),
            require_tls: cx.enumeration("require_tls", require_tls),
            rate_limits: rate_limit::limits(rate_limits, rate_limit::Place::Route, cx),
            virtual_clusters: cx.elements("virtual_clusters", virtual_clusters, |cx, p| {
                let pb::VirtualCluster { headers, name } = p;
                if headers.is_empty() {
                    cx.problem_at("headers", "is required");
                }
                Some(VirtualCluster {
                    name,
                    headers: cx.elements("headers", headers, |cx, p| HeaderMatcher::from_proto(p, cx)),
                })
            }),
            headers: HeaderChanges::read(
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
                cx,
            ),
            per_filter: per_filter(typed_per_filter_config, cx),
            include_request_attempt_count,
            include_attempt_count_in_response,
            include_is_timeout_retry_header,
            metadata: metadata::from_proto("metadata", metadata, cx),
        })
    }
}

impl Route {
    fn from_proto(p: pb::Route, inherited: &Inherited, cx: &mut Context) -> Option<Self> {
        let pb::Route {
            name,
            r#match,
            metadata,
            decorator,
            typed_per_filter_config,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            tracing,
            per_request_buffer_limit_bytes,
            stat_prefix,
            request_body_buffer_limit,
            route_specifiers,
            action,
        } = p;
        // Both only act together with tracing, which is refused where it is configured.
        cx.ignored_if("decorator", decorator.is_some());
        cx.ignored_if("tracing", tracing.is_some());
        cx.unsupported_if("route_specifiers", !route_specifiers.is_empty());
        let own_limit = request_body_buffer_limit.or(per_request_buffer_limit_bytes.map(u64::from));
        let matching = cx.required("match", r#match);
        let matching = matching.and_then(|p| cx.field("match", |cx| RouteMatch::from_proto(p, cx)));
        let action = match action {
            Some(pb::route::Action::Route(p)) => cx
                .field("route", |cx| RouteAction::from_proto(p, inherited, cx))
                .map(|action| RouteActionKind::Forward(Box::new(action))),
            Some(pb::route::Action::Redirect(p)) => {
                cx.field("redirect", |cx| RedirectAction::from_proto(p, cx)).map(RouteActionKind::Redirect)
            }
            Some(pb::route::Action::DirectResponse(p)) => cx
                .field("direct_response", |cx| DirectResponse::from_proto(p, inherited.max_direct_response, cx))
                .map(RouteActionKind::DirectResponse),
            Some(pb::route::Action::NonForwardingAction(_)) => Some(RouteActionKind::NonForwarding),
            Some(pb::route::Action::FilterAction(_)) => {
                cx.problem_at("filter_action", "is not supported");
                None
            }
            None => {
                cx.problem("one of route, redirect, direct_response, non_forwarding_action is required");
                None
            }
        };
        if let (Some(matching), Some(RouteActionKind::Forward(forward))) = (&matching, &action)
            && let PathRewrite::Template(rewrite) = &forward.path_rewrite
        {
            let checked = match &matching.path {
                PathMatch::Template(template) => rewrite.check(template),
                _ => Err("needs path_match_policy to be a URI template too".into()),
            };
            if let Err(why) = checked {
                cx.problem_at("route.path_rewrite_policy", why);
            }
        }
        Some(Self {
            name,
            headers: HeaderChanges::read(
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
                cx,
            ),
            per_filter: per_filter(typed_per_filter_config, cx),
            metadata: metadata::from_proto("metadata", metadata, cx),
            stat_prefix,
            request_buffer_limit: own_limit.or(inherited.buffer_limit),
            matching: matching?,
            action: action?,
        })
    }
}

/// Unwraps `FilterConfig`s; what is inside is read by the filter.
fn per_filter(configs: HashMap<String, Any>, cx: &mut Context) -> PerFilterConfigs {
    let read = |name: &str, any: Any, cx: &mut Context| {
        if !any.type_url.ends_with("/envoy.config.route.v3.FilterConfig") {
            return Some(PerFilterConfig { config: Some(any), is_optional: false, disabled: false });
        }
        match pb::FilterConfig::decode(&*any.value) {
            Ok(pb::FilterConfig { config, is_optional, disabled }) => {
                if config.is_none() && !disabled {
                    cx.entry("typed_per_filter_config", name, |cx| {
                        cx.problem("config is required unless disabled is set")
                    });
                }
                Some(PerFilterConfig { config, is_optional, disabled })
            }
            Err(e) => {
                cx.entry("typed_per_filter_config", name, |cx| {
                    cx.problem(format!("found bytes that are no FilterConfig: {e}"))
                });
                None
            }
        }
    };
    configs.into_iter().filter_map(|(name, any)| read(&name, any, cx).map(|config| (name, config))).collect()
}

fn mirrors(policies: Vec<pb::route_action::RequestMirrorPolicy>, cx: &mut Context) -> Vec<MirrorPolicy> {
    cx.elements("request_mirror_policies", policies, |cx, p| MirrorPolicy::from_proto(p, cx))
}
