//! What a matched route does, with cluster names turned into numbers.

use super::{RateLimits, Redirect, RouteFilters};
use crate::{
    base::RuntimeSnapshot,
    http::{
        RequestHead,
        header_rules::{HeaderRules, Mutations},
    },
    observe::format::Format,
    upstream::{ClusterId, MetadataMatch, Names, ThreadCluster, Upstreams},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use std::rc::Rc;
use weft_config::{
    Context,
    header_value::HeaderKey,
    metadata::Metadata,
    percent::RuntimeFractionalPercent,
    route::{self as config, ClusterSpecifier, RouteActionKind},
};

/// What a route does.
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Redirect),
    DirectResponse(DirectResponse),
    NonForwarding,
}

/// Forwarding to a cluster.
pub struct Forward {
    pub config: config::RouteAction,
    pub cluster: Cluster,
    pub mirrors: Vec<Mirror>,
    pub include_attempt_count: bool,
    /// What hosts' metadata must have; weighted clusters have their own.
    pub metadata_match: Option<MetadataMatch>,
    pub include_is_timeout_retry: bool,
    pub rate_limits: RateLimits,
    /// Make the new host and path, where formats do.
    pub(super) host_format: Option<Format>,
    pub(super) path_format: Option<Format>,
}

/// Which cluster.
pub enum Cluster {
    Id(ClusterId),
    /// Named by a header of the request.
    Header(HeaderKey),
    Weighted(Weighted),
}

/// Clusters by weight.
pub struct Weighted {
    pub clusters: Vec<WeightedCluster>,
    total: u64,
    runtime_key_prefix: String,
    random_header: Option<HeaderName>,
}

pub struct WeightedCluster {
    cluster: Cluster,
    weight: u32,
    /// The runtime key that overrides the weight; empty: none.
    runtime_key: String,
    pub rules: HeaderRules,
    /// The route's and its own.
    pub metadata_match: Option<MetadataMatch>,
    pub host_rewrite: Option<Bytes>,
    pub per_filter: RouteFilters,
}

/// A response without an upstream.
pub struct DirectResponse {
    pub status: StatusCode,
    pub body: Bytes,
    pub format: Option<(Format, HeaderValue)>,
}

/// Where copies of requests go.
pub struct Mirror {
    cluster: Cluster,
    fraction: Option<RuntimeFractionalPercent>,
    pub keeps_host: bool,
    pub host: Option<Bytes>,
    pub mutations: Mutations,
}

/// Compiles the actions of one virtual host.
pub(super) struct Compiler<'a> {
    pub names: &'a mut Names,
    pub host: &'a config::VirtualHost,
}

impl Compiler<'_> {
    pub fn action(&mut self, route: &config::Route, cx: &mut Context) -> Action {
        match &route.action {
            RouteActionKind::Forward(action) => cx.field("route", |cx| {
                Action::Forward(Box::new(Forward {
                    cluster: self.cluster(&action.cluster, &action.metadata_match, cx),
                    metadata_match: MetadataMatch::compile(&action.metadata_match, None),
                    mirrors: action.mirrors.iter().map(|mirror| self.mirror(mirror, cx)).collect(),
                    include_attempt_count: self.host.include_request_attempt_count,
                    include_is_timeout_retry: self.host.include_is_timeout_retry_header,
                    rate_limits: RateLimits::compile(&action.rate_limits, cx),
                    host_format: match &action.host_rewrite {
                        config::HostRewrite::Format(text) => {
                            cx.field("host_rewrite", |cx| Format::compile_log_text(text, cx))
                        }
                        _ => None,
                    },
                    path_format: match &action.path_rewrite {
                        config::PathRewrite::Format(text) => {
                            cx.field("path_rewrite", |cx| Format::compile_text(text, cx))
                        }
                        _ => None,
                    },
                    config: (**action).clone(),
                }))
            }),
            RouteActionKind::Redirect(redirect) => {
                cx.field("redirect", |cx| Action::Redirect(Redirect::compile(redirect, &route.matching.path, cx)))
            }
            RouteActionKind::DirectResponse(direct) => Action::DirectResponse(DirectResponse {
                status: direct.status,
                body: direct.body.clone(),
                format: direct.body_format.as_ref().and_then(|format| {
                    let compiled = cx.field("direct_response.body_format", |cx| Format::compile(format, cx))?;
                    Some((compiled, HeaderValue::try_from(&format.content_type).ok()?))
                }),
            }),
            RouteActionKind::NonForwarding => Action::NonForwarding,
        }
    }

    fn cluster(&mut self, specifier: &ClusterSpecifier, wanted: &Metadata, cx: &mut Context) -> Cluster {
        match specifier {
            ClusterSpecifier::Cluster(name) => Cluster::Id(self.names.intern(name)),
            ClusterSpecifier::Header(key) => Cluster::Header(key.clone()),
            ClusterSpecifier::Weighted(weighted) => {
                let clusters: Vec<_> = weighted
                    .clusters
                    .iter()
                    .enumerate()
                    .map(|(i, c)| WeightedCluster {
                        cluster: self.cluster(&c.cluster, wanted, cx),
                        metadata_match: MetadataMatch::compile(wanted, Some(&c.metadata_match)),
                        weight: c.weight,
                        runtime_key: match (&c.cluster, weighted.runtime_key_prefix.as_str()) {
                            (ClusterSpecifier::Cluster(name), prefix) if !prefix.is_empty() => {
                                format!("{prefix}.{name}")
                            }
                            _ => String::new(),
                        },
                        rules: cx.element("weighted_clusters.clusters", i, |cx| HeaderRules::compile(&c.headers, cx)),
                        host_rewrite: c.host_rewrite.clone().map(Bytes::from),
                        per_filter: cx
                            .element("weighted_clusters.clusters", i, |cx| RouteFilters::compile(&c.per_filter, cx)),
                    })
                    .collect();
                Cluster::Weighted(Weighted {
                    total: clusters.iter().map(|c| u64::from(c.weight)).sum(),
                    clusters,
                    runtime_key_prefix: weighted.runtime_key_prefix.clone(),
                    random_header: weighted.random_header.clone(),
                })
            }
        }
    }

    fn mirror(&mut self, mirror: &config::MirrorPolicy, cx: &mut Context) -> Mirror {
        Mirror {
            cluster: self.cluster(&mirror.cluster, &Metadata::new(), cx),
            fraction: mirror.runtime_fraction.clone(),
            keeps_host: mirror.disable_shadow_host_suffix_append,
            host: (!mirror.host_rewrite_literal.is_empty()).then(|| mirror.host_rewrite_literal.clone().into()),
            mutations: Mutations::compile("request_mirror_policies", &mirror.request_headers_mutations, cx),
        }
    }
}

impl Cluster {
    /// The cluster that the request goes to; the weighted choice was made when the route was matched.
    pub fn find(&self, choice: Option<usize>, upstreams: &Upstreams, head: &RequestHead) -> Option<Rc<ThreadCluster>> {
        match self {
            Self::Id(id) => upstreams.get(*id),
            Self::Header(key) => upstreams.by_name(name_in(key, head)?),
            Self::Weighted(weighted) => weighted.clusters.get(choice?)?.cluster.find(None, upstreams, head),
        }
    }

    /// Its name, whether or not it is there.
    pub fn name(&self, choice: Option<usize>, upstreams: &Upstreams, head: &RequestHead) -> Option<String> {
        match self {
            Self::Id(id) => Some(upstreams.name(*id)),
            Self::Header(key) => name_in(key, head).map(str::to_owned),
            Self::Weighted(weighted) => weighted.clusters.get(choice?)?.cluster.name(None, upstreams, head),
        }
    }
}

/// The name of a cluster that comes with the request.
fn name_in<'a>(key: &HeaderKey, head: &'a RequestHead) -> Option<&'a str> {
    let name = match key {
        HeaderKey::Name(name) => head.headers.get(name)?.to_str().ok()?,
        HeaderKey::Authority => std::str::from_utf8(&head.authority).ok()?,
        HeaderKey::Path => std::str::from_utf8(&head.path).ok()?,
        _ => return None,
    };
    (!name.is_empty()).then_some(name)
}

impl Weighted {
    /// Which of the clusters a request with this random value takes.
    pub fn choose(&self, head: &RequestHead, random: u64, runtime: &RuntimeSnapshot) -> Option<usize> {
        let header = self.random_header.as_ref().and_then(|name| {
            let mut values = head.headers.get_all(name).iter();
            let value = values.next().filter(|_| values.next().is_none())?;
            value.to_str().ok()?.trim().parse().ok()
        });
        let weight = |c: &WeightedCluster| {
            let fixed = u64::from(c.weight);
            if c.runtime_key.is_empty() { fixed } else { runtime.integer(&c.runtime_key).unwrap_or(fixed) }
        };
        let total =
            if self.runtime_key_prefix.is_empty() { self.total } else { self.clusters.iter().map(weight).sum() };
        let mut left = header.unwrap_or(random).checked_rem(total)?;
        self.clusters.iter().position(|c| {
            let weight = weight(c);
            let taken = left < weight;
            left = left.wrapping_sub(weight);
            taken
        })
    }
}

impl Mirror {
    /// True if this request is to be mirrored.
    pub fn samples(&self, runtime: &RuntimeSnapshot, random: u64) -> bool {
        self.fraction.as_ref().is_none_or(|fraction| runtime.takes(fraction, random))
    }

    pub fn cluster(&self, upstreams: &Upstreams, head: &RequestHead) -> Option<Rc<ThreadCluster>> {
        self.cluster.find(None, upstreams, head)
    }
}

impl Action {
    pub fn forward(&self) -> Option<&Forward> {
        match self {
            Self::Forward(forward) => Some(forward),
            _ => None,
        }
    }
}

impl Forward {
    /// What the route says of an upgrade type; `None` if nothing.
    pub fn upgrade(&self, kind: &[u8]) -> Option<bool> {
        self.config.upgrades.iter().find(|u| u.upgrade_type.as_bytes().eq_ignore_ascii_case(kind)).map(|u| u.enabled)
    }

    /// True if the request's payload is to go to the upstream as raw TCP.
    pub fn connects_raw(&self, head: &RequestHead) -> bool {
        let config = self
            .config
            .upgrades
            .iter()
            .find(|u| u.upgrade_type.eq_ignore_ascii_case("CONNECT"))
            .and_then(|u| u.connect);
        config.is_some_and(|config| head.is_connect() || (config.allow_post && head.method == http::Method::POST))
    }
}
