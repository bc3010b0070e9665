//! The HTTP connection manager's configuration: what shapes each request and response of a connection.
//!
//! Read by the proxy's connection manager. Filter configurations stay opaque: each filter reads its own.

mod client_cert;

pub use client_cert::{ClientCertDetails, ClientCertFormat, ClientCertForwarding};

use crate::{
    Context,
    access_log::AccessLog,
    address::CidrRange,
    config_source::ConfigSource,
    data_source::DataSource,
    extension_config::{ExtensionConfigSource, FilterConfig},
    header_value::{HeaderMutation, HeaderValueOption},
    http_protocol_options::{CommonHttpProtocolOptions, Http1ProtocolOptions, Http2ProtocolOptions},
    matching::{Matcher, Scope},
    route::RouteConfiguration,
    scoped_routes::ScopedRoutes,
    substitution_format::SubstitutionFormatString,
};
use std::{collections::HashSet, sync::Arc, time::Duration};
use weft_control_api::envoy::{
    config::core::v3 as core,
    extensions::{
        filters::network::http_connection_manager::v3::{self as pb, http_connection_manager as hcm},
        http::{
            early_header_mutation::header_mutation::v3::HeaderMutation as EarlyHeaderMutation,
            original_ip_detection::{custom_header::v3::CustomHeaderConfig, xff::v3::XffConfig},
        },
        request_id::uuid::v3::UuidRequestIdConfig,
    },
};

pub use hcm::{CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, ServerHeaderTransformation};

/// `envoy.filters.network.http_connection_manager`.
#[derive(Clone, Debug)]
pub struct HttpConnectionManager {
    pub codec_type: CodecType,
    pub stat_prefix: String,
    pub routes: RouteSource,
    pub http_filters: Vec<HttpFilter>,
    pub add_user_agent: bool,
    pub common: CommonHttpProtocolOptions,
    pub http1: Http1ProtocolOptions,
    pub http1_safe_max_connection_duration: bool,
    pub http2: Http2ProtocolOptions,
    /// Default `envoy`.
    pub server_name: String,
    pub server_header_transformation: ServerHeaderTransformation,
    pub scheme_header_transformation: Option<SchemeTransformation>,
    /// KiB; default 60.
    pub max_request_headers_kb: u32,
    /// Default 5 minutes; zero turns it off.
    pub stream_idle_timeout: Duration,
    /// Zero: off.
    pub request_timeout: Duration,
    /// Zero: off.
    pub request_headers_timeout: Duration,
    /// Default 5 s.
    pub drain_timeout: Duration,
    /// Default 1 s; zero closes at once.
    pub delayed_close_timeout: Duration,
    pub access_log: Vec<AccessLog>,
    pub access_log_flush_interval: Option<Duration>,
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub original_ip_detection: Vec<OriginalIpDetection>,
    pub early_header_mutations: Vec<HeaderMutation>,
    pub internal_address_config: InternalAddressConfig,
    pub skip_xff_append: bool,
    /// Empty: none.
    pub via: String,
    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub always_set_request_id_in_response: bool,
    pub request_id: RequestIdExtension,
    pub client_cert: ClientCertForwarding,
    /// Decides in its place where it finds something.
    pub client_cert_matcher: Option<Arc<Matcher<ClientCertForwarding>>>,
    pub proxy_100_continue: bool,
    pub upgrade_configs: Vec<UpgradeConfig>,
    pub normalize_path: bool,
    pub merge_slashes: bool,
    pub path_with_escaped_slashes_action: PathWithEscapedSlashesAction,
    pub local_reply: Arc<LocalReplyConfig>,
    pub strip_port: StripPort,
    pub strip_trailing_host_dot: bool,
    /// Overrides of the codecs' defaults.
    pub stream_error_on_invalid_http_message: Option<bool>,
    pub append_x_forwarded_port: bool,
    pub append_local_overload: bool,
    pub forward_proto: Option<ForwardProto>,
}

/// Where the routes come from.
#[derive(Clone, Debug)]
pub enum RouteSource {
    Inline(Arc<RouteConfiguration>),
    Rds {
        config_source: Box<ConfigSource>,
        name: String,
    },
    /// One of several, by headers.
    Scoped(Box<ScopedRoutes>),
}

/// One entry of `http_filters`.
#[derive(Clone, Debug)]
pub struct HttpFilter {
    pub name: String,
    pub is_optional: bool,
    pub disabled: bool,
    pub config: FilterConfig,
}

/// `scheme_header_transformation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemeTransformation {
    /// `http` or `https`.
    Overwrite(String),
    MatchUpstream,
}

/// One of `original_ip_detection_extensions`.
#[derive(Clone, Debug)]
pub enum OriginalIpDetection {
    Xff { num_trusted_hops: u32, trusted_cidrs: Option<Vec<CidrRange>>, skip_xff_append: bool },
    CustomHeader { header: http::HeaderName, allow_trusted: bool, reject_with_status: Option<u16> },
}

/// Which peers count as internal; none by default.
#[derive(Clone, Debug, Default)]
pub struct InternalAddressConfig {
    pub unix_sockets: bool,
    pub cidr_ranges: Vec<CidrRange>,
}

/// The UUID request id extension.
#[derive(Clone, Copy, Debug)]
pub struct RequestIdExtension {
    pub pack_trace_reason: bool,
    pub use_request_id_for_trace_sampling: bool,
}

/// One of `upgrade_configs`.
#[derive(Clone, Debug)]
pub struct UpgradeConfig {
    pub upgrade_type: String,
    /// Empty: the connection manager's own.
    pub filters: Vec<HttpFilter>,
    pub enabled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripPort {
    No,
    Matching,
    Any,
}

/// Destination ports that decide `x-forwarded-proto` when the PROXY protocol or original_dst gave the destination.
#[derive(Clone, Debug)]
pub struct ForwardProto {
    pub https_destination_ports: Vec<u32>,
    pub http_destination_ports: Vec<u32>,
}

/// How local replies are written.
#[derive(Clone, Debug, Default)]
pub struct LocalReplyConfig {
    pub mappers: Vec<ResponseMapper>,
    pub body_format: Option<SubstitutionFormatString>,
}

/// The first mapper whose filter takes the reply changes it.
#[derive(Clone, Debug)]
pub struct ResponseMapper {
    pub filter: crate::access_log::AccessLogFilter,
    pub status_code: Option<u16>,
    pub body: Option<DataSource>,
    pub body_format_override: Option<SubstitutionFormatString>,
    pub headers_to_add: Vec<HeaderValueOption>,
}

impl HttpConnectionManager {
    /// Reads the filter's configuration.
    pub fn from_proto(p: pb::HttpConnectionManager, cx: &mut Context) -> Option<Self> {
        let pb::HttpConnectionManager {
            codec_type,
            stat_prefix,
            http_filters,
            add_user_agent,
            tracing,
            common_http_protocol_options,
            http1_safe_max_connection_duration,
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
            server_name,
            server_header_transformation,
            scheme_header_transformation,
            max_request_headers_kb,
            stream_idle_timeout,
            stream_flush_timeout,
            request_timeout,
            request_headers_timeout,
            drain_timeout,
            drain_timeout_jitter,
            delayed_close_timeout,
            access_log,
            access_log_flush_interval,
            flush_access_log_on_new_request,
            access_log_options,
            use_remote_address,
            xff_num_trusted_hops,
            original_ip_detection_extensions,
            early_header_mutation_extensions,
            internal_address_config,
            skip_xff_append,
            via,
            generate_request_id,
            preserve_external_request_id,
            always_set_request_id_in_response,
            forward_client_cert_details,
            set_current_client_cert_details,
            forward_client_cert_matcher,
            proxy_100_continue,
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            upgrade_configs,
            normalize_path,
            merge_slashes,
            path_with_escaped_slashes_action,
            request_id_extension,
            local_reply_config,
            strip_matching_host_port,
            stream_error_on_invalid_http_message,
            path_normalization_options,
            strip_trailing_host_dot,
            proxy_status_config,
            typed_header_validation_config,
            append_x_forwarded_port,
            append_local_overload,
            add_proxy_protocol_connection_state,
            forward_proto_config,
            record_route_resolution_stats,
            route_specifier,
            strip_port_mode,
        } = p;

        cx.unsupported_if("tracing", tracing.is_some());
        cx.unsupported_if("http3_protocol_options", http3_protocol_options.is_some());
        cx.unsupported_if("path_normalization_options", path_normalization_options.is_some());
        cx.unsupported_if("proxy_status_config", proxy_status_config.is_some());
        cx.unsupported_if("typed_header_validation_config", typed_header_validation_config.is_some());
        cx.ignored_if("record_route_resolution_stats", record_route_resolution_stats);

        let codec_type = cx.enumeration("codec_type", codec_type);
        cx.unsupported_if("codec_type", codec_type == CodecType::Http3);
        let client_cert =
            ClientCertForwarding::from_fields(forward_client_cert_details, set_current_client_cert_details, cx);
        let client_cert_matcher = forward_client_cert_matcher.and_then(|p| {
            cx.field("forward_client_cert_matcher", |cx| {
                Matcher::from_proto(p, Scope::Http, ClientCertForwarding::from_any, cx).map(Arc::new)
            })
        });
        let common = cx.field("common_http_protocol_options", |cx| {
            CommonHttpProtocolOptions::from_proto(common_http_protocol_options.unwrap_or_default(), cx)
        });
        let http1 = cx.field("http_protocol_options", |cx| {
            Http1ProtocolOptions::from_proto(http_protocol_options.unwrap_or_default(), cx)
        });
        let http2 = cx.field("http2_protocol_options", |cx| {
            Http2ProtocolOptions::from_proto(http2_protocol_options.unwrap_or_default(), cx)
        });
        let routes = match route_specifier {
            Some(hcm::RouteSpecifier::Rds(rds)) => cx.field("rds", |cx| {
                let pb::Rds { config_source, route_config_name } = rds;
                let config_source = cx.required("config_source", config_source)?;
                let config_source = cx.field("config_source", |cx| ConfigSource::from_proto(config_source, cx))?;
                Some(RouteSource::Rds { config_source: Box::new(config_source), name: route_config_name })
            }),
            Some(hcm::RouteSpecifier::RouteConfig(config)) => cx.field("route_config", |cx| {
                RouteConfiguration::from_proto(config, cx).map(|c| RouteSource::Inline(Arc::new(c)))
            }),
            Some(hcm::RouteSpecifier::ScopedRoutes(p)) => cx
                .field("scoped_routes", |cx| ScopedRoutes::from_proto(p, cx).map(|p| RouteSource::Scoped(Box::new(p)))),
            None => {
                cx.problem("one of rds, route_config, scoped_routes is required");
                None
            }
        };
        let access_log_flush = match access_log_options {
            Some(hcm::HcmAccessLogOptions {
                access_log_flush_interval,
                flush_access_log_on_new_request,
                flush_log_on_tunnel_successfully_established,
            }) => cx.field("access_log_options", |cx| {
                cx.unsupported_if("flush_access_log_on_new_request", flush_access_log_on_new_request);
                cx.unsupported_if(
                    "flush_log_on_tunnel_successfully_established",
                    flush_log_on_tunnel_successfully_established,
                );
                cx.duration("access_log_flush_interval", access_log_flush_interval)
            }),
            None => None,
        };
        cx.unsupported_if("flush_access_log_on_new_request", flush_access_log_on_new_request);
        cx.unsupported_if("stream_flush_timeout", stream_flush_timeout.is_some());
        cx.unsupported_if("drain_timeout_jitter", drain_timeout_jitter.is_some_and(|p| p.value > 0.0));
        cx.unsupported_if(
            "represent_ipv4_remote_address_as_ipv4_mapped_ipv6",
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        );
        cx.unsupported_if("add_proxy_protocol_connection_state", add_proxy_protocol_connection_state == Some(false));
        let old_flush = cx.duration("access_log_flush_interval", access_log_flush_interval);
        if strip_matching_host_port && strip_port_mode.is_some() {
            cx.problem_at("strip_matching_host_port", "cannot be set together with strip_any_host_port");
        }
        let strip_port = match strip_port_mode {
            Some(hcm::StripPortMode::StripAnyHostPort(true)) => StripPort::Any,
            _ if strip_matching_host_port => StripPort::Matching,
            _ => StripPort::No,
        };
        let use_remote_address = use_remote_address.unwrap_or(false);
        if !original_ip_detection_extensions.is_empty() && (use_remote_address || xff_num_trusted_hops > 0) {
            let field = if use_remote_address { "use_remote_address" } else { "xff_num_trusted_hops" };
            cx.problem_at(field, "cannot be set together with original_ip_detection_extensions");
        }

        let internal_address_config = match internal_address_config {
            None => InternalAddressConfig::default(),
            Some(hcm::InternalAddressConfig { unix_sockets, cidr_ranges }) => {
                cx.field("internal_address_config", |cx| InternalAddressConfig {
                    unix_sockets,
                    cidr_ranges: cx.elements("cidr_ranges", cidr_ranges, |cx, p| CidrRange::from_proto(p, cx)),
                })
            }
        };
        let mut upgrade_types = HashSet::new();
        let duration_or = |cx: &mut Context, name: &str, value, default| cx.duration(name, value).unwrap_or(default);
        Some(Self {
            codec_type,
            stat_prefix,
            http_filters: cx.elements("http_filters", http_filters, |cx, p| HttpFilter::from_proto(p, cx)),
            add_user_agent: add_user_agent.unwrap_or(false),
            http1_safe_max_connection_duration,
            server_name: if server_name.is_empty() { "envoy".into() } else { server_name },
            server_header_transformation: cx.enumeration("server_header_transformation", server_header_transformation),
            scheme_header_transformation: scheme_header_transformation.and_then(|p| {
                let core::SchemeHeaderTransformation { match_upstream, transformation } = p;
                match transformation {
                    Some(core::scheme_header_transformation::Transformation::SchemeToOverwrite(scheme)) => {
                        Some(SchemeTransformation::Overwrite(scheme))
                    }
                    None => match_upstream.then_some(SchemeTransformation::MatchUpstream),
                }
            }),
            max_request_headers_kb: max_request_headers_kb.unwrap_or(60),
            stream_idle_timeout: duration_or(cx, "stream_idle_timeout", stream_idle_timeout, Duration::from_secs(300)),
            request_timeout: duration_or(cx, "request_timeout", request_timeout, Duration::ZERO),
            request_headers_timeout: duration_or(
                cx,
                "request_headers_timeout",
                request_headers_timeout,
                Duration::ZERO,
            ),
            drain_timeout: duration_or(cx, "drain_timeout", drain_timeout, Duration::from_secs(5)),
            delayed_close_timeout: duration_or(
                cx,
                "delayed_close_timeout",
                delayed_close_timeout,
                Duration::from_secs(1),
            ),
            access_log: cx.elements("access_log", access_log, |cx, p| AccessLog::from_proto(p, cx)),
            access_log_flush_interval: access_log_flush.or(old_flush),
            use_remote_address,
            xff_num_trusted_hops,
            original_ip_detection: cx.elements(
                "original_ip_detection_extensions",
                original_ip_detection_extensions,
                OriginalIpDetection::from_proto,
            ),
            early_header_mutations: cx
                .elements("early_header_mutation_extensions", early_header_mutation_extensions, |cx, p| {
                    let any = cx.required("typed_config", p.typed_config)?;
                    let EarlyHeaderMutation { mutations } = cx.unpack("typed_config", &any)?;
                    Some(cx.field("typed_config", |cx| {
                        cx.elements("mutations", mutations, |cx, p| HeaderMutation::from_proto(p, cx))
                    }))
                })
                .into_iter()
                .flatten()
                .collect(),
            internal_address_config,
            skip_xff_append,
            via,
            generate_request_id: generate_request_id.unwrap_or(true),
            preserve_external_request_id,
            always_set_request_id_in_response,
            request_id: RequestIdExtension::from_proto(request_id_extension, cx),
            client_cert,
            client_cert_matcher,
            proxy_100_continue,
            upgrade_configs: cx.elements("upgrade_configs", upgrade_configs, |cx, p| {
                let hcm::UpgradeConfig { upgrade_type, filters, enabled } = p;
                if !upgrade_types.insert(upgrade_type.to_ascii_lowercase()) {
                    cx.problem_at("upgrade_type", format!("found {upgrade_type:?} a second time"));
                }
                let filters = cx.elements("filters", filters, |cx, p| HttpFilter::from_proto(p, cx));
                Some(UpgradeConfig { upgrade_type, filters, enabled: enabled.unwrap_or(true) })
            }),
            normalize_path: normalize_path.unwrap_or(false),
            merge_slashes,
            path_with_escaped_slashes_action: cx
                .enumeration("path_with_escaped_slashes_action", path_with_escaped_slashes_action),
            local_reply: Arc::new(match local_reply_config {
                Some(p) => cx.field("local_reply_config", |cx| LocalReplyConfig::from_proto(p, cx)),
                None => LocalReplyConfig::default(),
            }),
            strip_port,
            strip_trailing_host_dot,
            stream_error_on_invalid_http_message,
            append_x_forwarded_port,
            append_local_overload,
            forward_proto: forward_proto_config.map(|p| {
                let pb::ForwardProtoConfig { https_destination_ports, http_destination_ports } = p;
                if let Some(port) = https_destination_ports.iter().find(|port| http_destination_ports.contains(port)) {
                    cx.problem_at("forward_proto_config", format!("port {port} is both an http and an https port"));
                }
                ForwardProto { https_destination_ports, http_destination_ports }
            }),
            common,
            http1,
            http2,
            routes: routes?,
        })
    }
}

impl HttpConnectionManager {
    /// True if a head that does not come is a matter of `request_timeout` before one of `request_headers_timeout`.
    pub fn request_timeout_comes_first(&self) -> bool {
        !self.request_timeout.is_zero()
            && (self.request_headers_timeout.is_zero() || self.request_timeout < self.request_headers_timeout)
    }

    /// True if an HTTP/1 message that is not acceptable ends its stream only.
    pub fn tolerates_invalid_messages(&self) -> bool {
        self.http1
            .override_stream_error_on_invalid_http_message
            .or(self.stream_error_on_invalid_http_message)
            .unwrap_or(false)
    }
}

impl HttpFilter {
    fn from_proto(p: pb::HttpFilter, cx: &mut Context) -> Option<Self> {
        let pb::HttpFilter { name, is_optional, disabled, config_type } = p;
        let config = match config_type {
            Some(pb::http_filter::ConfigType::TypedConfig(any)) => FilterConfig::Typed(any),
            Some(pb::http_filter::ConfigType::ConfigDiscovery(p)) => {
                let source = cx.field("config_discovery", |cx| ExtensionConfigSource::from_proto(p, cx))?;
                FilterConfig::Discovery(Box::new(source))
            }
            None => {
                cx.problem("one of typed_config, config_discovery is required");
                return None;
            }
        };
        Some(Self { name, is_optional, disabled, config })
    }
}

impl OriginalIpDetection {
    fn from_proto(cx: &mut Context, p: core::TypedExtensionConfig) -> Option<Self> {
        let core::TypedExtensionConfig { name: _, typed_config } = p;
        let any = cx.required("typed_config", typed_config)?;
        if any.type_url.ends_with("xff.v3.XffConfig") {
            let XffConfig { xff_num_trusted_hops, xff_trusted_cidrs, skip_xff_append } =
                cx.unpack("typed_config", &any)?;
            return cx.field("typed_config", |cx| {
                if xff_num_trusted_hops > 0 && xff_trusted_cidrs.is_some() {
                    cx.problem("cannot set both xff_num_trusted_hops and xff_trusted_cidrs");
                }
                Some(Self::Xff {
                    num_trusted_hops: xff_num_trusted_hops,
                    trusted_cidrs: xff_trusted_cidrs.map(|t| {
                        cx.field("xff_trusted_cidrs", |cx| {
                            cx.elements("cidrs", t.cidrs, |cx, p| CidrRange::from_proto(p, cx))
                        })
                    }),
                    skip_xff_append: skip_xff_append.unwrap_or(true),
                })
            });
        }
        let CustomHeaderConfig { header_name, allow_extension_to_set_address_as_trusted, reject_with_status } =
            cx.unpack("typed_config", &any)?;
        cx.field("typed_config", |cx| {
            let Ok(header) = http::HeaderName::try_from(&header_name) else {
                cx.problem_at("header_name", format!("found {header_name:?}, which is no header name"));
                return None;
            };
            let reject_with_status = reject_with_status.map(|s| {
                // Only errors: anything else would be taken for an answer.
                u16::try_from(s.code).ok().filter(|code| (400..=511).contains(code)).unwrap_or(403)
            });
            Some(Self::CustomHeader {
                header,
                allow_trusted: allow_extension_to_set_address_as_trusted,
                reject_with_status,
            })
        })
    }
}

impl RequestIdExtension {
    fn from_proto(p: Option<pb::RequestIdExtension>, cx: &mut Context) -> Self {
        let config = p.and_then(|p| p.typed_config).and_then(|any| {
            cx.field("request_id_extension", |cx| cx.unpack::<UuidRequestIdConfig>("typed_config", &any))
        });
        let UuidRequestIdConfig { pack_trace_reason, use_request_id_for_trace_sampling } = config.unwrap_or_default();
        Self {
            pack_trace_reason: pack_trace_reason.unwrap_or(true),
            use_request_id_for_trace_sampling: use_request_id_for_trace_sampling.unwrap_or(true),
        }
    }
}

impl LocalReplyConfig {
    fn from_proto(p: pb::LocalReplyConfig, cx: &mut Context) -> Self {
        let pb::LocalReplyConfig { mappers, body_format } = p;
        Self {
            mappers: cx.elements("mappers", mappers, |cx, p| {
                let pb::ResponseMapper { filter, status_code, body, body_format_override, headers_to_add } = p;
                let filter = cx.required("filter", filter)?;
                Some(ResponseMapper {
                    filter: cx.field("filter", |cx| crate::access_log::AccessLogFilter::from_proto(filter, cx))?,
                    status_code: status_code.and_then(|code| u16::try_from(code).ok()),
                    body: body.and_then(|p| cx.field("body", |cx| DataSource::from_proto(p, cx))),
                    body_format_override: body_format_override.and_then(|p| {
                        cx.field("body_format_override", |cx| SubstitutionFormatString::from_proto(p, cx))
                    }),
                    headers_to_add: cx
                        .elements("headers_to_add", headers_to_add, |cx, p| HeaderValueOption::from_proto(p, cx)),
                })
            }),
            body_format: body_format
                .and_then(|p| cx.field("body_format", |cx| SubstitutionFormatString::from_proto(p, cx))),
        }
    }
}
