//! How a cluster finds its hosts: `type` and `cluster_type`.

use super::dns::{self, Dns};
use crate::{Context, address::Address, config_source::ConfigSource, endpoint::ClusterLoadAssignment};
use weft_control_api::{
    Any,
    envoy::{
        config::cluster::v3::cluster::{self as pb, ClusterDiscoveryType, DiscoveryType},
        extensions::clusters::{
            aggregate::v3::ClusterConfig, dns::v3::DnsCluster, original_dst::v3::OriginalDstCluster,
        },
        r#type::metadata::v3::{self as metadata, MetadataKey},
    },
};

/// Where the hosts come from.
#[derive(Clone, Debug)]
pub enum Discovery {
    Static,
    StrictDns(Box<Dns>),
    LogicalDns(Box<Dns>),
    Eds(Eds),
    OriginalDst(OriginalDst),
    /// Other clusters by name, the most preferred first.
    Aggregate(Vec<String>),
}

/// `EdsClusterConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Eds {
    pub config_source: ConfigSource,
    /// The resource's name.
    pub service_name: String,
}

/// `OriginalDstLbConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginalDst {
    /// The request header that names the host; `None`: headers do not count.
    pub http_header_name: Option<http::HeaderName>,
    pub upstream_port_override: Option<u16>,
    /// Where the address stands in the request's dynamic metadata: the filter's name, and the keys below.
    pub metadata_key: Option<(String, Vec<String>)>,
}

impl Discovery {
    pub(super) fn from_proto(
        kind: Option<ClusterDiscoveryType>,
        eds: Option<pb::EdsClusterConfig>,
        original_dst: Option<pb::OriginalDstLbConfig>,
        dns: dns::Fields,
        name: &str,
        cx: &mut Context,
    ) -> Option<Self> {
        let kind = match kind {
            None => DiscoveryType::Static,
            Some(ClusterDiscoveryType::Type(kind)) => cx.enumeration("type", kind),
            Some(ClusterDiscoveryType::ClusterType(pb::CustomClusterType { name: kind, typed_config })) => {
                match cx.field("cluster_type", |cx| extension(&kind, typed_config, cx))? {
                    Extension::Like(kind) => kind,
                    Extension::Read(this) => return Some(*this),
                }
            }
        };
        Some(match kind {
            DiscoveryType::Static => Self::Static,
            DiscoveryType::StrictDns => Self::StrictDns(Box::new(Dns::from_fields(dns, cx))),
            DiscoveryType::LogicalDns => Self::LogicalDns(Box::new(Dns::from_fields(dns, cx))),
            DiscoveryType::Eds => Self::Eds(Eds::from_proto(eds, name, cx)?),
            DiscoveryType::OriginalDst => {
                let pb::OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key } =
                    original_dst.unwrap_or_default();
                let p = OriginalDstCluster { use_http_header, http_header_name, upstream_port_override, metadata_key };
                Self::OriginalDst(cx.field("original_dst_lb_config", |cx| OriginalDst::from_proto(p, cx)))
            }
        })
    }

    /// Reports hosts that this way of discovery has no use for.
    pub(super) fn check_hosts(&self, hosts: &ClusterLoadAssignment, is_set: bool, cx: &mut Context) {
        match self {
            Self::Static => each_address(hosts, cx, |address, cx| {
                if let Address::Socket(socket) = address
                    && socket.ip().is_none()
                {
                    cx.problem(format!(
                        "malformed IP address: {}. Consider setting resolver_name or setting cluster type to \
                         'STRICT_DNS' or 'LOGICAL_DNS'",
                        socket.host
                    ));
                }
            }),
            Self::StrictDns(_) | Self::LogicalDns(_) => {
                let single = hosts.localities.len() == 1 && hosts.localities[0].endpoints.len() == 1;
                if matches!(self, Self::LogicalDns(_)) && !single {
                    cx.problem_at(
                        "load_assignment",
                        "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
                    );
                }
                each_address(hosts, cx, |address, cx| {
                    if !matches!(address, Address::Socket(_)) {
                        cx.problem("hosts of DNS clusters are names or IP addresses with ports");
                    }
                });
            }
            Self::Eds(_) => {
                if is_set {
                    cx.problem_at("load_assignment", "cannot be set in a cluster of type EDS");
                }
            }
            Self::OriginalDst(_) => {
                if is_set {
                    cx.problem_at("load_assignment", "ORIGINAL_DST clusters must have no load assignment configured");
                }
            }
            Self::Aggregate(_) => {
                if is_set {
                    cx.problem_at("load_assignment", "aggregate clusters have the hosts of other clusters");
                }
            }
        }
    }
}

/// Calls `check` at the path of each endpoint's address.
fn each_address(hosts: &ClusterLoadAssignment, cx: &mut Context, mut check: impl FnMut(&Address, &mut Context)) {
    cx.field("load_assignment", |cx| {
        for (i, locality) in hosts.localities.iter().enumerate() {
            cx.element("endpoints", i, |cx| {
                for (j, endpoint) in locality.endpoints.iter().enumerate() {
                    cx.element("lb_endpoints", j, |cx| {
                        cx.field("endpoint.address", |cx| check(&endpoint.address, cx));
                    });
                }
            });
        }
    });
}

/// What a `cluster_type` says.
enum Extension {
    /// The same as a value of `type`.
    Like(DiscoveryType),
    Read(Box<Discovery>),
}

fn extension(name: &str, config: Option<Any>, cx: &mut Context) -> Option<Extension> {
    let config = config.filter(|any| !any.type_url.ends_with("google.protobuf.Empty"));
    let kind = config.as_ref().and_then(|any| any.type_url.rsplit('/').next()).unwrap_or_default();
    match (kind, config.as_ref()) {
        ("envoy.extensions.clusters.dns.v3.DnsCluster", Some(any)) => {
            let p: DnsCluster = cx.unpack("typed_config", any)?;
            let logical = p.all_addresses_in_single_endpoint;
            let dns = Box::new(cx.field("typed_config", |cx| Dns::from_extension(p, cx)));
            Some(Extension::Read(Box::new(if logical {
                Discovery::LogicalDns(dns)
            } else {
                Discovery::StrictDns(dns)
            })))
        }
        ("envoy.extensions.clusters.original_dst.v3.OriginalDstCluster", Some(any)) => {
            let p = cx.unpack("typed_config", any)?;
            let read = cx.field("typed_config", |cx| OriginalDst::from_proto(p, cx));
            Some(Extension::Read(Box::new(Discovery::OriginalDst(read))))
        }
        ("envoy.extensions.clusters.aggregate.v3.ClusterConfig", Some(any)) => {
            let ClusterConfig { clusters } = cx.unpack("typed_config", any)?;
            if clusters.is_empty() {
                cx.problem_at("typed_config.clusters", "must name at least one cluster");
            }
            Some(Extension::Read(Box::new(Discovery::Aggregate(clusters))))
        }
        ("", None) => match name {
            "envoy.cluster.static" => Some(Extension::Like(DiscoveryType::Static)),
            "envoy.cluster.strict_dns" => Some(Extension::Like(DiscoveryType::StrictDns)),
            "envoy.cluster.logical_dns" => Some(Extension::Like(DiscoveryType::LogicalDns)),
            "envoy.cluster.eds" => Some(Extension::Like(DiscoveryType::Eds)),
            "envoy.cluster.original_dst" | "envoy.clusters.original_dst" => {
                Some(Extension::Like(DiscoveryType::OriginalDst))
            }
            _ => {
                cx.problem_at("name", format!("{name} is not supported"));
                None
            }
        },
        _ => {
            cx.problem_at("typed_config", format!("{kind} is not supported"));
            None
        }
    }
}

impl Eds {
    fn from_proto(p: Option<pb::EdsClusterConfig>, name: &str, cx: &mut Context) -> Option<Self> {
        let Some(pb::EdsClusterConfig { eds_config, service_name }) = p else {
            cx.problem_at("eds_cluster_config", "cannot create an EDS cluster without an EDS config");
            return None;
        };
        cx.field("eds_cluster_config", |cx| {
            let source = cx.required("eds_config", eds_config)?;
            let config_source = cx.field("eds_config", |cx| ConfigSource::from_proto(source, cx))?;
            let service_name = if service_name.is_empty() { name.to_owned() } else { service_name };
            Some(Self { config_source, service_name })
        })
    }
}

impl OriginalDst {
    fn from_proto(p: OriginalDstCluster, cx: &mut Context) -> Self {
        let OriginalDstCluster { use_http_header, http_header_name, upstream_port_override, metadata_key } = p;
        if !use_http_header && !http_header_name.is_empty() {
            cx.problem_at(
                "http_header_name",
                format!(
                    "ORIGINAL_DST cluster: invalid config http_header_name={http_header_name} and use_http_header=false. \
                     Set use_http_header to true if http_header_name is desired."
                ),
            );
        }
        let name = if http_header_name.is_empty() { "x-envoy-original-dst-host" } else { &http_header_name };
        let header = http::HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| cx.problem_at("http_header_name", format!("found {name:?}, which is no header name")))
            .ok();
        let upstream_port_override = upstream_port_override.and_then(|port| {
            let read = u16::try_from(port).ok();
            if read.is_none() {
                cx.problem_at("upstream_port_override", format!("found {port}, allowed are 0 to 65535"));
            }
            read
        });
        let metadata_key = metadata_key.map(|p| cx.field("metadata_key", |cx| metadata_path(p, cx)));
        Self { http_header_name: header.filter(|_| use_http_header), upstream_port_override, metadata_key }
    }
}

/// Where a value stands in dynamic metadata: the filter's name, and the keys below.
pub(crate) fn metadata_path(p: MetadataKey, cx: &mut Context) -> (String, Vec<String>) {
    let MetadataKey { key, path } = p;
    let path = cx.elements("path", path, |cx, p| {
        use metadata::metadata_key::path_segment::Segment;
        match cx.required("segment", p.segment)? {
            Segment::Key(key) => Some(key),
            Segment::Index(_) => {
                cx.unsupported_if("index", true);
                None
            }
        }
    });
    (key, path)
}
