//! The configuration of `ext_authz`, and a route's.

use super::rules::MutationRules;
use crate::filters::{FilterConfig, FilterFactory, RouteFilterConfig};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use std::{collections::HashMap, sync::Arc, time::Duration};
use weft_config::{
    Context, GrpcService, metadata::MetadataMatcher, percent::RuntimeFractionalPercent, string_matcher::StringMatcher,
};
use weft_control_api::envoy::{
    config::core::v3::{self as core, HttpUri, RuntimeFeatureFlag, http_uri::HttpUpstreamType},
    extensions::filters::http::ext_authz::v3::{
        self as pb, check_settings::ServiceOverride, ext_authz::Services, ext_authz_per_route::Override,
    },
    r#type::{matcher::v3::ListStringMatcher, v3::HttpStatus},
};

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.ext_authz",
    type_name: "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    parse: |any, cx| {
        let config = cx.unpack("typed_config", any)?;
        let config = cx.field("typed_config", |cx| ExtAuthz::from_proto(config, cx))?;
        Some(Arc::new(config) as Arc<dyn FilterConfig>)
    },
    route: Some(("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute", |any, cx| {
        let config = cx.unpack("", any)?;
        Some(Arc::new(RouteConfig::from_proto(config, cx)?) as RouteFilterConfig)
    })),
};

pub(super) struct ExtAuthz {
    pub service: Service,
    pub failure_mode_allow: bool,
    pub failure_mode_allow_header_add: bool,
    pub body: Option<BodySettings>,
    pub clear_route_cache: bool,
    pub status_on_error: StatusCode,
    pub validate_mutations: bool,
    pub metadata_namespaces: Vec<String>,
    pub route_metadata_namespaces: Vec<String>,
    pub enabled: Option<RuntimeFractionalPercent>,
    pub enabled_metadata: Option<MetadataMatcher>,
    pub deny_at_disable: Option<RuntimeFeatureFlag>,
    pub stat_prefix: String,
    pub allowed_headers: Vec<StringMatcher>,
    pub disallowed_headers: Vec<StringMatcher>,
    pub include_peer_certificate: bool,
    pub include_tls_session: bool,
    pub charge_cluster: bool,
    pub raw_headers: bool,
    pub rules: Option<MutationRules>,
    pub takes_metadata: bool,
    pub max_denied_body: usize,
}

/// Who is asked.
pub(super) enum Service {
    Grpc { service: Arc<GrpcService>, timeout: Duration },
    Http(Arc<HttpService>),
}

pub(super) struct HttpService {
    pub cluster: String,
    pub timeout: Duration,
    pub path_prefix: Bytes,
    pub path_override: Bytes,
    /// Beside those of the filter itself.
    pub allowed_headers: Vec<StringMatcher>,
    pub headers_to_add: Vec<(HeaderName, HeaderValue)>,
    pub upstream_headers: Vec<StringMatcher>,
    pub upstream_headers_to_append: Vec<StringMatcher>,
    /// `None`: all.
    pub client_headers: Option<Vec<StringMatcher>>,
    pub client_headers_on_success: Vec<StringMatcher>,
    pub metadata_from_headers: Vec<StringMatcher>,
}

#[derive(Clone, Copy)]
pub(super) struct BodySettings {
    pub most: u32,
    pub partial: bool,
    pub as_bytes: bool,
}

/// What one level of the route says.
pub(super) struct RouteConfig {
    pub disabled: bool,
    pub context: HashMap<String, String>,
    pub no_body: bool,
    pub body: Option<BodySettings>,
    pub service: Option<Service>,
}

impl BodySettings {
    fn from_proto(p: pb::BufferSettings) -> Self {
        let pb::BufferSettings { max_request_bytes, allow_partial_message, pack_as_bytes } = p;
        Self { most: max_request_bytes, partial: allow_partial_message, as_bytes: pack_as_bytes }
    }
}

fn matchers(name: &str, p: Option<ListStringMatcher>, cx: &mut Context) -> Vec<StringMatcher> {
    let Some(ListStringMatcher { patterns }) = p else { return Vec::new() };
    cx.field(name, |cx| cx.elements("patterns", patterns, |cx, p| StringMatcher::from_proto(p, cx)))
}

fn grpc(p: core::GrpcService, cx: &mut Context) -> Option<Service> {
    let service = cx.field("grpc_service", |cx| GrpcService::from_proto(p, cx))?;
    let timeout = service.timeout.unwrap_or(Duration::from_millis(200));
    Some(Service::Grpc { service: Arc::new(service), timeout })
}

fn http(p: pb::HttpService, cx: &mut Context) -> Option<Service> {
    cx.field("http_service", |cx| HttpService::from_proto(p, cx)).map(|service| Service::Http(Arc::new(service)))
}

impl HttpService {
    #[allow(deprecated)] // Deprecated fields are still read: configurations have them.
    fn from_proto(p: pb::HttpService, cx: &mut Context) -> Option<Self> {
        let pb::HttpService {
            server_uri,
            path_prefix,
            path_override,
            authorization_request,
            authorization_response,
            retry_policy,
        } = p;
        cx.unsupported_if("retry_policy", retry_policy.is_some());
        if !path_prefix.is_empty() && !path_override.is_empty() {
            cx.problem_at("path_override", "cannot be set together with path_prefix");
        }
        if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
            cx.problem_at("path_prefix", "should start with \"/\".");
        }
        if !path_override.is_empty() && !path_override.starts_with('/') {
            cx.problem_at("path_override", "should start with \"/\".");
        }
        let server = cx.required("server_uri", server_uri)?;
        let (cluster, timeout) = cx.field("server_uri", |cx| {
            // The cluster says where the service is.
            let HttpUri { uri: _, timeout, http_upstream_type } = server;
            let timeout = cx.required("timeout", timeout)?;
            let HttpUpstreamType::Cluster(cluster) = cx.required("cluster", http_upstream_type)?;
            Some((cluster, cx.duration("timeout", Some(timeout))?))
        })?;
        let pb::AuthorizationRequest { allowed_headers, headers_to_add } = authorization_request.unwrap_or_default();
        let (allowed_headers, headers_to_add) = cx.field("authorization_request", |cx| {
            let add = cx.elements("headers_to_add", headers_to_add, |cx, p| {
                let core::HeaderValue { key, value, raw_value } = p;
                let value = if raw_value.is_empty() { value.into_bytes() } else { raw_value };
                match (HeaderName::try_from(&key), HeaderValue::try_from(value)) {
                    (Ok(name), Ok(value)) => Some((name, value)),
                    _ => {
                        cx.problem(format!("found {key:?}, of which name or value are no header's"));
                        None
                    }
                }
            });
            (matchers("allowed_headers", allowed_headers, cx), add)
        });
        let pb::AuthorizationResponse {
            allowed_upstream_headers,
            allowed_upstream_headers_to_append,
            allowed_client_headers,
            allowed_client_headers_on_success,
            dynamic_metadata_from_headers,
        } = authorization_response.unwrap_or_default();
        cx.field("authorization_response", |cx| {
            Some(Self {
                cluster,
                timeout,
                path_prefix: path_prefix.into(),
                path_override: path_override.into(),
                allowed_headers,
                headers_to_add,
                upstream_headers: matchers("allowed_upstream_headers", allowed_upstream_headers, cx),
                upstream_headers_to_append: matchers(
                    "allowed_upstream_headers_to_append",
                    allowed_upstream_headers_to_append,
                    cx,
                ),
                client_headers: allowed_client_headers.map(|p| matchers("allowed_client_headers", Some(p), cx)),
                client_headers_on_success: matchers(
                    "allowed_client_headers_on_success",
                    allowed_client_headers_on_success,
                    cx,
                ),
                metadata_from_headers: matchers("dynamic_metadata_from_headers", dynamic_metadata_from_headers, cx),
            })
        })
    }
}

impl ExtAuthz {
    fn from_proto(p: pb::ExtAuthz, cx: &mut Context) -> Option<Self> {
        let pb::ExtAuthz {
            transport_api_version,
            failure_mode_allow,
            failure_mode_allow_header_add,
            with_request_body,
            clear_route_cache,
            clear_route_cache_headers,
            status_on_error,
            validate_mutations,
            metadata_context_namespaces,
            typed_metadata_context_namespaces,
            route_metadata_context_namespaces,
            route_typed_metadata_context_namespaces,
            filter_enabled,
            filter_enabled_metadata,
            deny_at_disable,
            include_peer_certificate,
            stat_prefix,
            bootstrap_metadata_labels_key,
            allowed_headers,
            disallowed_headers,
            include_tls_session,
            charge_cluster_response_stats,
            encode_raw_headers,
            decoder_header_mutation_rules,
            enable_dynamic_metadata_ingestion,
            filter_metadata,
            emit_filter_state_stats,
            max_denied_response_body_bytes,
            enforce_response_header_limits,
            shadow_mode,
            emit_client_span,
            services,
        } = p;
        // Version 2 is gone; AUTO means it, and Envoy refuses it.
        if transport_api_version != core::ApiVersion::V3 as i32 {
            cx.problem_at("transport_api_version", "must be V3");
        }
        cx.unsupported_if("clear_route_cache_headers", !clear_route_cache_headers.is_empty());
        cx.unsupported_if("typed_metadata_context_namespaces", !typed_metadata_context_namespaces.is_empty());
        cx.unsupported_if(
            "route_typed_metadata_context_namespaces",
            !route_typed_metadata_context_namespaces.is_empty(),
        );
        cx.unsupported_if("bootstrap_metadata_labels_key", !bootstrap_metadata_labels_key.is_empty());
        cx.unsupported_if("enforce_response_header_limits", enforce_response_header_limits);
        cx.unsupported_if("shadow_mode", shadow_mode);
        // Facts for logs and spans alone.
        cx.ignored_if("filter_metadata", filter_metadata.is_some());
        cx.ignored_if("emit_filter_state_stats", emit_filter_state_stats);
        cx.ignored_if("emit_client_span", emit_client_span.is_some());
        let service = match cx.required("services", services)? {
            Services::GrpcService(p) => grpc(p, cx),
            Services::HttpService(p) => http(p, cx),
        };
        let status = status_on_error.map_or(403, |HttpStatus { code }| u16::try_from(code).unwrap_or(403));
        Some(Self {
            service: service?,
            failure_mode_allow,
            failure_mode_allow_header_add,
            body: with_request_body.map(BodySettings::from_proto),
            clear_route_cache,
            status_on_error: StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN),
            validate_mutations,
            metadata_namespaces: metadata_context_namespaces,
            route_metadata_namespaces: route_metadata_context_namespaces,
            enabled: filter_enabled
                .and_then(|p| cx.field("filter_enabled", |cx| RuntimeFractionalPercent::from_proto(p, cx))),
            enabled_metadata: filter_enabled_metadata
                .and_then(|p| cx.field("filter_enabled_metadata", |cx| MetadataMatcher::from_proto(p, cx))),
            deny_at_disable,
            stat_prefix,
            allowed_headers: matchers("allowed_headers", allowed_headers, cx),
            disallowed_headers: matchers("disallowed_headers", disallowed_headers, cx),
            include_peer_certificate,
            include_tls_session,
            charge_cluster: charge_cluster_response_stats.unwrap_or(true),
            raw_headers: encode_raw_headers,
            rules: decoder_header_mutation_rules
                .and_then(|p| cx.field("decoder_header_mutation_rules", |cx| MutationRules::from_proto(p, cx))),
            takes_metadata: enable_dynamic_metadata_ingestion.unwrap_or(true),
            max_denied_body: match max_denied_response_body_bytes {
                0 => usize::MAX,
                most => usize::try_from(most).unwrap_or(usize::MAX),
            },
        })
    }
}

impl RouteConfig {
    fn from_proto(p: pb::ExtAuthzPerRoute, cx: &mut Context) -> Option<Self> {
        let mut all = Self { disabled: false, context: HashMap::new(), no_body: false, body: None, service: None };
        match cx.required("override", p.r#override)? {
            Override::Disabled(_) => all.disabled = true,
            Override::CheckSettings(p) => cx.field("check_settings", |cx| {
                let pb::CheckSettings {
                    context_extensions,
                    disable_request_body_buffering,
                    with_request_body,
                    emit_client_span,
                    service_override,
                } = p;
                cx.ignored_if("emit_client_span", emit_client_span.is_some());
                if disable_request_body_buffering && with_request_body.is_some() {
                    cx.problem("only one of disable_request_body_buffering and with_request_body can be set");
                }
                all.context = context_extensions;
                all.no_body = disable_request_body_buffering;
                all.body = with_request_body.map(BodySettings::from_proto);
                all.service = match service_override {
                    Some(ServiceOverride::GrpcService(p)) => grpc(p, cx),
                    Some(ServiceOverride::HttpService(p)) => http(p, cx),
                    None => None,
                };
            }),
        }
        Some(all)
    }
}
