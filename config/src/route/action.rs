//! What a route does with a request that it matched.

use super::{Inherited, PerFilterConfigs, RetryPolicy, mirrors, per_filter, retry::hedge_on_per_try_timeout};
use crate::{
    Context,
    data_source::DataSource,
    header_value::{HeaderChanges, HeaderKey, HeaderMutation},
    metadata::{self, Metadata},
    percent::RuntimeFractionalPercent,
    rate_limit::{self, RateLimit},
    regex_rewrite::RegexRewrite,
    substitution_format::SubstitutionFormatString,
    uri_template::UriTemplateRewrite,
};
use bytes::Bytes;
use http::{HeaderName, StatusCode};
use std::{collections::HashSet, sync::Arc, time::Duration};
use weft_control_api::envoy::{
    config::{core::v3 as core, route::v3 as pb},
    extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig,
};

/// Forwarding to a cluster.
#[derive(Clone, Debug)]
pub struct RouteAction {
    pub cluster: ClusterSpecifier,
    /// 503 by default.
    pub cluster_not_found_response_code: StatusCode,
    pub metadata_match: Metadata,
    pub path_rewrite: PathRewrite,
    pub host_rewrite: HostRewrite,
    pub append_x_forwarded_host: bool,
    /// From the end of the request to the end of the response. Default 15 s; zero is none.
    pub timeout: Duration,
    /// In place of the connection manager's stream idle timeout.
    pub idle_timeout: Option<Duration>,
    pub retry: Option<Arc<RetryPolicy>>,
    /// A try that takes longer than its own timeout is not given up, while another one is made.
    pub hedge_on_per_try_timeout: bool,
    pub mirrors: Vec<MirrorPolicy>,
    pub priority: Priority,
    pub rate_limits: Vec<RateLimit>,
    /// The virtual host's limits hold too.
    pub include_vh_rate_limits: bool,
    pub hash_policies: Vec<HashPolicy>,
    pub max_grpc_timeout: Option<Duration>,
    pub grpc_timeout_offset: Option<Duration>,
    pub upgrades: Vec<RouteUpgrade>,
    pub internal_redirect: Option<InternalRedirectPolicy>,
    pub max_stream_duration: Option<MaxStreamDuration>,
}

pub use core::RoutingPriority as Priority;

/// Which cluster.
#[derive(Clone, Debug)]
pub enum ClusterSpecifier {
    Cluster(String),
    /// The value of a request header.
    Header(HeaderKey),
    Weighted(WeightedClusters),
}

/// Clusters by weight.
#[derive(Clone, Debug)]
pub struct WeightedClusters {
    pub clusters: Vec<ClusterWeight>,
    /// Runtime keys `<prefix>.<cluster>` override the weights; empty: none do.
    pub runtime_key_prefix: String,
    /// A number in this header decides in place of chance.
    pub random_header: Option<HeaderName>,
}

/// One of several clusters.
#[derive(Clone, Debug)]
pub struct ClusterWeight {
    pub cluster: ClusterSpecifier,
    pub weight: u32,
    pub metadata_match: Metadata,
    pub headers: HeaderChanges,
    pub per_filter: PerFilterConfigs,
    pub host_rewrite: Option<String>,
}

/// What becomes of the path.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    Keep,
    /// In place of what was matched.
    Prefix(String),
    Regex(RegexRewrite),
    /// Of what the route's template matched.
    Template(UriTemplateRewrite),
    /// A format over the request, compiled by the proxy; its value is the path without the query.
    Format(String),
}

/// What becomes of the authority.
#[derive(Clone, Debug)]
pub enum HostRewrite {
    Keep,
    Literal(String),
    /// The upstream host's name.
    Auto,
    Header(HeaderKey),
    PathRegex(RegexRewrite),
    /// A format over the request, compiled by the proxy.
    Format(String),
}

/// A copy of requests for another cluster.
#[derive(Clone, Debug)]
pub struct MirrorPolicy {
    pub cluster: ClusterSpecifier,
    pub runtime_fraction: Option<RuntimeFractionalPercent>,
    pub disable_shadow_host_suffix_append: bool,
    pub request_headers_mutations: Vec<HeaderMutation>,
    pub host_rewrite_literal: String,
}

/// What a request is hashed by, for load balancers that ask for it.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    pub source: HashSource,
    /// Nothing further is looked at once this one gave a hash.
    pub terminal: bool,
}

#[derive(Clone, Debug)]
pub enum HashSource {
    Header { key: HeaderKey, rewrite: Option<RegexRewrite> },
    Cookie { name: String, ttl: Option<Duration>, path: String, attributes: Vec<(String, String)> },
    SourceIp,
    QueryParameter(String),
    FilterState(String),
}

/// An upgrade type, allowed or not on this route.
#[derive(Clone, Debug)]
pub struct RouteUpgrade {
    pub upgrade_type: String,
    pub enabled: bool,
    /// CONNECT (and POST, if it says so) ends here: its payload goes to the upstream as raw TCP.
    pub connect: Option<ConnectConfig>,
}

#[derive(Clone, Copy, Debug)]
pub struct ConnectConfig {
    pub allow_post: bool,
}

/// Which redirects of the upstream are followed here.
#[derive(Clone, Debug)]
pub struct InternalRedirectPolicy {
    /// Default 1.
    pub max_internal_redirects: u32,
    /// Default 302.
    pub codes: Vec<u16>,
    pub predicates: Vec<RedirectPredicate>,
    pub allow_cross_scheme_redirect: bool,
    pub response_headers_to_copy: Vec<HeaderName>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPredicate {
    PreviousRoutes,
    AllowListedRoutes(Vec<String>),
    SafeCrossScheme,
}

/// Limits of a stream's life.
#[derive(Clone, Copy, Debug)]
pub struct MaxStreamDuration {
    pub max_stream_duration: Option<Duration>,
    pub grpc_timeout_header_max: Option<Duration>,
    pub grpc_timeout_header_offset: Option<Duration>,
}

/// A redirect that we answer.
#[derive(Clone, Debug)]
pub struct RedirectAction {
    pub host: String,
    pub port: u32,
    pub scheme: Option<String>,
    pub status: StatusCode,
    pub strip_query: bool,
    pub path: RedirectPath,
}

#[derive(Clone, Debug)]
pub enum RedirectPath {
    Keep,
    /// With a query of its own, or the request's.
    Path(String),
    Prefix(String),
    Regex(RegexRewrite),
    /// A format over the request, compiled by the proxy.
    Format(String),
}

/// A response that we give without an upstream.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    pub status: StatusCode,
    pub body: Bytes,
    pub body_format: Option<SubstitutionFormatString>,
}

impl RouteAction {
    pub(super) fn from_proto(p: pb::RouteAction, inherited: &Inherited, cx: &mut Context) -> Option<Self> {
        let pb::RouteAction {
            cluster_not_found_response_code,
            metadata_match,
            prefix_rewrite,
            regex_rewrite,
            path_rewrite_policy,
            path_rewrite,
            append_x_forwarded_host,
            timeout,
            idle_timeout,
            flush_timeout,
            early_data_policy,
            retry_policy,
            retry_policy_typed_config,
            request_mirror_policies,
            priority,
            rate_limits,
            include_vh_rate_limits,
            hash_policy,
            cors,
            max_grpc_timeout,
            grpc_timeout_offset,
            upgrade_configs,
            internal_redirect_policy,
            internal_redirect_action,
            max_internal_redirects,
            hedge_policy,
            max_stream_duration,
            cluster_specifier,
            host_rewrite_specifier,
        } = p;
        cx.unsupported_if("early_data_policy", early_data_policy.is_some());
        cx.unsupported_if("retry_policy_typed_config", retry_policy_typed_config.is_some());
        cx.unsupported_if("cors", cors.is_some());
        cx.unsupported_if("internal_redirect_action", internal_redirect_action != 0);
        cx.unsupported_if("max_internal_redirects", max_internal_redirects.is_some());
        use pb::route_action::ClusterNotFoundResponseCode as NotFound;
        let cluster_not_found_response_code =
            match cx.enumeration("cluster_not_found_response_code", cluster_not_found_response_code) {
                NotFound::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
                NotFound::NotFound => StatusCode::NOT_FOUND,
                NotFound::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
            };
        let set = [
            !prefix_rewrite.is_empty(),
            regex_rewrite.is_some(),
            path_rewrite_policy.is_some(),
            !path_rewrite.is_empty(),
        ];
        if set.iter().filter(|set| **set).count() > 1 {
            cx.problem("only one of prefix_rewrite, regex_rewrite, path_rewrite_policy, path_rewrite can be set");
        }
        let path_rewrite = if !path_rewrite.is_empty() {
            Some(PathRewrite::Format(path_rewrite))
        } else if let Some(p) = regex_rewrite {
            cx.field("regex_rewrite", |cx| RegexRewrite::from_proto(p, cx)).map(PathRewrite::Regex)
        } else if let Some(p) = path_rewrite_policy {
            cx.field("path_rewrite_policy", |cx| {
                let any = cx.required("typed_config", p.typed_config)?;
                let UriTemplateRewriteConfig { path_template_rewrite } = cx.unpack("typed_config", &any)?;
                UriTemplateRewrite::parse(&path_template_rewrite)
                    .map_err(|why| {
                        cx.problem_at(
                            "typed_config.path_template_rewrite",
                            format!("found {path_template_rewrite:?}: {why}"),
                        )
                    })
                    .ok()
                    .map(PathRewrite::Template)
            })
        } else if prefix_rewrite.is_empty() {
            Some(PathRewrite::Keep)
        } else {
            Some(PathRewrite::Prefix(prefix_rewrite))
        };
        use pb::route_action::HostRewriteSpecifier as Host;
        let host_rewrite = match host_rewrite_specifier {
            None | Some(Host::AutoHostRewrite(false)) => Some(HostRewrite::Keep),
            Some(Host::HostRewriteLiteral(host)) => Some(HostRewrite::Literal(host)),
            Some(Host::AutoHostRewrite(true)) => Some(HostRewrite::Auto),
            // A header without a name is never there.
            Some(Host::HostRewriteHeader(name)) if name.is_empty() => Some(HostRewrite::Keep),
            Some(Host::HostRewriteHeader(name)) => {
                HeaderKey::read("host_rewrite_header", &name, cx).map(HostRewrite::Header)
            }
            Some(Host::HostRewritePathRegex(p)) => {
                cx.field("host_rewrite_path_regex", |cx| RegexRewrite::from_proto(p, cx)).map(HostRewrite::PathRegex)
            }
            Some(Host::HostRewrite(format)) => Some(HostRewrite::Format(format)),
        };
        use pb::route_action::ClusterSpecifier as Specifier;
        let cluster = match cluster_specifier {
            Some(Specifier::Cluster(name)) => Some(ClusterSpecifier::Cluster(name)),
            Some(Specifier::ClusterHeader(name)) => {
                HeaderKey::read("cluster_header", &name, cx).map(ClusterSpecifier::Header)
            }
            Some(Specifier::WeightedClusters(p)) => {
                cx.field("weighted_clusters", |cx| WeightedClusters::from_proto(p, cx)).map(ClusterSpecifier::Weighted)
            }
            Some(Specifier::ClusterSpecifierPlugin(_)) => {
                cx.problem_at("cluster_specifier_plugin", "is not supported");
                None
            }
            Some(Specifier::InlineClusterSpecifierPlugin(_)) => {
                cx.problem_at("inline_cluster_specifier_plugin", "is not supported");
                None
            }
            None => {
                cx.problem("one of cluster, cluster_header, weighted_clusters is required");
                None
            }
        };
        let mut upgrade_types = HashSet::new();
        let mirrors = mirrors(request_mirror_policies, cx);
        let retry = match retry_policy {
            Some(p) => cx.field("retry_policy", |cx| RetryPolicy::from_proto(p, cx)).map(Arc::new),
            None => inherited.retry.clone(),
        };
        cx.unsupported_if("flush_timeout", flush_timeout.is_some());
        Some(Self {
            cluster_not_found_response_code,
            metadata_match: metadata::from_proto("metadata_match", metadata_match, cx),
            append_x_forwarded_host,
            timeout: cx.duration("timeout", timeout).unwrap_or(Duration::from_secs(15)),
            idle_timeout: cx.duration("idle_timeout", idle_timeout),
            retry,
            hedge_on_per_try_timeout: hedge_policy
                .map_or(inherited.hedge_on_per_try_timeout, |p| hedge_on_per_try_timeout(p, cx)),
            mirrors: if mirrors.is_empty() { inherited.mirrors.clone() } else { mirrors },
            priority: cx.enumeration("priority", priority),
            rate_limits: rate_limit::limits(rate_limits, rate_limit::Place::Route, cx),
            include_vh_rate_limits: include_vh_rate_limits.unwrap_or(false),
            hash_policies: cx.elements("hash_policy", hash_policy, |cx, p| HashPolicy::from_proto(p, cx)),
            max_grpc_timeout: cx.duration("max_grpc_timeout", max_grpc_timeout),
            grpc_timeout_offset: cx.duration("grpc_timeout_offset", grpc_timeout_offset),
            upgrades: cx.elements("upgrade_configs", upgrade_configs, |cx, p| {
                let pb::route_action::UpgradeConfig { upgrade_type, enabled, connect_config } = p;
                if !upgrade_types.insert(upgrade_type.to_ascii_lowercase()) {
                    cx.problem_at("upgrade_type", format!("found {upgrade_type:?} a second time"));
                }
                if connect_config.is_some() && !upgrade_type.eq_ignore_ascii_case("CONNECT") {
                    cx.problem_at("connect_config", "can only be set for upgrade_type CONNECT");
                }
                let connect = connect_config.map(|p| {
                    let pb::route_action::upgrade_config::ConnectConfig { proxy_protocol_config, allow_post } = p;
                    cx.field("connect_config", |cx| {
                        cx.unsupported_if("proxy_protocol_config", proxy_protocol_config.is_some())
                    });
                    ConnectConfig { allow_post }
                });
                Some(RouteUpgrade { upgrade_type, enabled: enabled.unwrap_or(true), connect })
            }),
            internal_redirect: match internal_redirect_policy {
                Some(p) => cx.field("internal_redirect_policy", |cx| InternalRedirectPolicy::from_proto(p, cx)),
                None => None,
            },
            max_stream_duration: max_stream_duration.map(|p| {
                let pb::route_action::MaxStreamDuration {
                    max_stream_duration,
                    grpc_timeout_header_max,
                    grpc_timeout_header_offset,
                } = p;
                cx.field("max_stream_duration", |cx| MaxStreamDuration {
                    max_stream_duration: cx.duration("max_stream_duration", max_stream_duration),
                    grpc_timeout_header_max: cx.duration("grpc_timeout_header_max", grpc_timeout_header_max),
                    grpc_timeout_header_offset: cx.duration("grpc_timeout_header_offset", grpc_timeout_header_offset),
                })
            }),
            cluster: cluster?,
            path_rewrite: path_rewrite?,
            host_rewrite: host_rewrite?,
        })
    }

    /// The names of the clusters that this action goes to, mirrors included.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        let own: Vec<&ClusterSpecifier> = match &self.cluster {
            ClusterSpecifier::Weighted(weighted) => weighted.clusters.iter().map(|c| &c.cluster).collect(),
            one => vec![one],
        };
        own.into_iter().chain(self.mirrors.iter().map(|mirror| &mirror.cluster)).filter_map(|cluster| match cluster {
            ClusterSpecifier::Cluster(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

impl WeightedClusters {
    fn from_proto(p: pb::WeightedCluster, cx: &mut Context) -> Option<Self> {
        let pb::WeightedCluster { clusters, total_weight: _, runtime_key_prefix, random_value_specifier } = p;
        use pb::weighted_cluster::RandomValueSpecifier as Random;
        let random_header = match random_value_specifier {
            None | Some(Random::UseHashPolicy(false)) => None,
            Some(Random::HeaderName(name)) => {
                HeaderName::try_from(&name).map_err(|_| cx.problem_at("header_name", "is no header name")).ok()
            }
            Some(Random::UseHashPolicy(true)) => {
                cx.problem_at("use_hash_policy", "is not supported");
                None
            }
        };
        let clusters = cx.elements("clusters", clusters, |cx, p| {
            let pb::weighted_cluster::ClusterWeight {
                name,
                cluster_header,
                weight,
                metadata_match,
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
                typed_per_filter_config,
                host_rewrite_specifier,
            } = p;
            let cluster = match (name.is_empty(), cluster_header.is_empty()) {
                (false, true) => ClusterSpecifier::Cluster(name),
                (true, false) => ClusterSpecifier::Header(HeaderKey::read("cluster_header", &cluster_header, cx)?),
                (true, true) => {
                    cx.problem("at least one of name or cluster_header need to be specified");
                    return None;
                }
                (false, false) => {
                    cx.problem("only one of name or cluster_header can be specified");
                    return None;
                }
            };
            Some(ClusterWeight {
                cluster,
                weight: weight.unwrap_or(0),
                metadata_match: metadata::from_proto("metadata_match", metadata_match, cx),
                headers: HeaderChanges::read(
                    request_headers_to_add,
                    request_headers_to_remove,
                    response_headers_to_add,
                    response_headers_to_remove,
                    cx,
                ),
                per_filter: per_filter(typed_per_filter_config, cx),
                host_rewrite: host_rewrite_specifier.map(|p| {
                    let pb::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host) = p;
                    host
                }),
            })
        });
        let total: u64 = clusters.iter().map(|c| u64::from(c.weight)).sum();
        if total == 0 {
            cx.problem("sum of weights in the weighted_cluster must be greater than 0");
        } else if total > u64::from(u32::MAX) {
            cx.problem(format!("found a sum of weights of {total}, which is over {}", u32::MAX));
        }
        Some(Self { clusters, runtime_key_prefix, random_header })
    }
}

impl MirrorPolicy {
    pub(super) fn from_proto(p: pb::route_action::RequestMirrorPolicy, cx: &mut Context) -> Option<Self> {
        let pb::route_action::RequestMirrorPolicy {
            cluster,
            cluster_header,
            runtime_fraction,
            trace_sampled,
            disable_shadow_host_suffix_append,
            request_headers_mutations,
            host_rewrite_literal,
        } = p;
        // Acts together with tracing only.
        cx.ignored_if("trace_sampled", trace_sampled.is_some());
        let cluster = match (cluster.is_empty(), cluster_header.is_empty()) {
            (false, true) => ClusterSpecifier::Cluster(cluster),
            (true, false) => ClusterSpecifier::Header(HeaderKey::read("cluster_header", &cluster_header, cx)?),
            _ => {
                cx.problem("exactly one of cluster, cluster_header is required");
                return None;
            }
        };
        Some(Self {
            cluster,
            runtime_fraction: match runtime_fraction {
                Some(p) => Some(cx.field("runtime_fraction", |cx| RuntimeFractionalPercent::from_proto(p, cx))?),
                None => None,
            },
            disable_shadow_host_suffix_append,
            request_headers_mutations: cx.elements("request_headers_mutations", request_headers_mutations, |cx, p| {
                HeaderMutation::from_proto(p, cx)
            }),
            host_rewrite_literal,
        })
    }
}

impl HashPolicy {
    pub(crate) fn from_proto(p: pb::route_action::HashPolicy, cx: &mut Context) -> Option<Self> {
        use pb::route_action::hash_policy::{self, PolicySpecifier as Specifier};
        let pb::route_action::HashPolicy { terminal, policy_specifier } = p;
        let source = match cx.required("policy_specifier", policy_specifier)? {
            Specifier::Header(hash_policy::Header { header_name, regex_rewrite }) => cx.field("header", |cx| {
                let key = HeaderKey::read("header_name", &header_name, cx)?;
                let rewrite = match regex_rewrite {
                    Some(p) => Some(cx.field("regex_rewrite", |cx| RegexRewrite::from_proto(p, cx))?),
                    None => None,
                };
                Some(HashSource::Header { key, rewrite })
            })?,
            Specifier::Cookie(hash_policy::Cookie { name, ttl, path, attributes }) => HashSource::Cookie {
                name,
                ttl: cx.field("cookie", |cx| cx.duration("ttl", ttl)),
                path,
                attributes: attributes.into_iter().map(|a| (a.name, a.value)).collect(),
            },
            Specifier::ConnectionProperties(hash_policy::ConnectionProperties { source_ip: true }) => {
                HashSource::SourceIp
            }
            Specifier::ConnectionProperties(_) => return None,
            Specifier::QueryParameter(hash_policy::QueryParameter { name }) => HashSource::QueryParameter(name),
            Specifier::FilterState(hash_policy::FilterState { key }) => HashSource::FilterState(key),
        };
        Some(Self { source, terminal })
    }
}

impl InternalRedirectPolicy {
    fn from_proto(p: pb::InternalRedirectPolicy, cx: &mut Context) -> Option<Self> {
        let pb::InternalRedirectPolicy {
            max_internal_redirects,
            redirect_response_codes,
            predicates,
            allow_cross_scheme_redirect,
            response_headers_to_copy,
        } = p;
        // Other codes than these are never redirects; Envoy leaves them out as well.
        let mut codes: Vec<u16> = redirect_response_codes
            .into_iter()
            .filter(|c| [301, 302, 303, 307, 308].contains(c))
            .map(|c| c as u16)
            .collect();
        if codes.is_empty() {
            codes.push(302);
        }
        Some(Self {
            max_internal_redirects: max_internal_redirects.unwrap_or(1),
            codes,
            predicates: cx.elements("predicates", predicates, |cx, p| {
                use weft_control_api::envoy::extensions::internal_redirect as ext;
                let any = cx.required("typed_config", p.typed_config)?;
                let name = any.type_url.rsplit('/').next().unwrap_or_default();
                match name.rsplit('.').next().unwrap_or_default() {
                    "PreviousRoutesConfig" => Some(RedirectPredicate::PreviousRoutes),
                    "SafeCrossSchemeConfig" => Some(RedirectPredicate::SafeCrossScheme),
                    _ => {
                        let config: ext::allow_listed_routes::v3::AllowListedRoutesConfig =
                            cx.unpack("typed_config", &any)?;
                        Some(RedirectPredicate::AllowListedRoutes(config.allowed_route_names))
                    }
                }
            }),
            allow_cross_scheme_redirect,
            response_headers_to_copy: cx.elements("response_headers_to_copy", response_headers_to_copy, |cx, name| {
                match HeaderKey::read("", &name, cx)? {
                    HeaderKey::Name(name) => Some(name),
                    _ => {
                        cx.problem(format!("found {name:?}: :-prefixed headers or Hosts may not be specified here"));
                        None
                    }
                }
            }),
        })
    }
}

impl RedirectAction {
    pub(super) fn from_proto(p: pb::RedirectAction, cx: &mut Context) -> Option<Self> {
        use pb::redirect_action::{
            PathRewriteSpecifier as Path, RedirectResponseCode as Code, SchemeRewriteSpecifier as Scheme,
        };
        let pb::RedirectAction {
            host_redirect,
            port_redirect,
            response_code,
            strip_query,
            scheme_rewrite_specifier,
            path_rewrite_specifier,
        } = p;
        let path = match path_rewrite_specifier {
            None => RedirectPath::Keep,
            Some(Path::PathRedirect(path)) if !path.is_empty() => RedirectPath::Path(path),
            Some(Path::PrefixRewrite(prefix)) if !prefix.is_empty() => RedirectPath::Prefix(prefix),
            Some(Path::PathRedirect(_) | Path::PrefixRewrite(_)) => RedirectPath::Keep,
            Some(Path::RegexRewrite(p)) => {
                RedirectPath::Regex(cx.field("regex_rewrite", |cx| RegexRewrite::from_proto(p, cx))?)
            }
            Some(Path::PathRewrite(format)) if format.is_empty() => RedirectPath::Keep,
            Some(Path::PathRewrite(format)) => RedirectPath::Format(format),
        };
        Some(Self {
            host: host_redirect,
            port: port_redirect,
            scheme: match scheme_rewrite_specifier {
                Some(Scheme::HttpsRedirect(true)) => Some("https".into()),
                Some(Scheme::SchemeRedirect(scheme)) if !scheme.is_empty() => Some(scheme),
                _ => None,
            },
            status: match cx.enumeration("response_code", response_code) {
                Code::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
                Code::Found => StatusCode::FOUND,
                Code::SeeOther => StatusCode::SEE_OTHER,
                Code::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
                Code::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
            },
            strip_query,
            path,
        })
    }
}

impl DirectResponse {
    pub(super) fn from_proto(p: pb::DirectResponseAction, most: usize, cx: &mut Context) -> Option<Self> {
        let pb::DirectResponseAction { status, body, body_format } = p;
        let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
        let body = match body {
            Some(p) => cx.field("body", |cx| DataSource::from_proto(p, cx))?.data,
            None => Bytes::new(),
        };
        if body.len() > most {
            cx.problem_at(
                "body",
                format!("found {} bytes, allowed are {most} (max_direct_response_body_size_bytes)", body.len()),
            );
        }
        Some(Self {
            status: cx.required("status", status)?,
            body,
            body_format: match body_format {
                Some(p) => Some(cx.field("body_format", |cx| SubstitutionFormatString::from_proto(p, cx))?),
                None => None,
            },
        })
    }
}
