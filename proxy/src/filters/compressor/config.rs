//! The compressor's configuration, and a route's.

use crate::{
    base::RuntimeSnapshot,
    filters::{FilterConfig, FilterFactory, RouteFilterConfig, compression::encoder::Library},
};
use http::HeaderValue;
use std::sync::Arc;
use weft_config::{Context, string_matcher::StringMatcher};
use weft_control_api::envoy::{
    config::core::v3::{self as core, RuntimeFeatureFlag},
    extensions::filters::http::compressor::v3::{
        self as pb,
        compressor::{CommonDirectionConfig, RequestDirectionConfig, ResponseDirectionConfig},
        compressor_per_route::Override,
    },
};

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.compressor",
    type_name: "envoy.extensions.filters.http.compressor.v3.Compressor",
    parse: |any, cx| {
        let config = cx.unpack("typed_config", any)?;
        let config = cx.field("typed_config", |cx| Compressor::from_proto(config, cx))?;
        Some(Arc::new(config) as Arc<dyn FilterConfig>)
    },
    route: Some(("envoy.extensions.filters.http.compressor.v3.CompressorPerRoute", |any, cx| {
        let config = cx.unpack("", any)?;
        Some(Arc::new(RouteOverride::from_proto(config, cx)?) as RouteFilterConfig)
    })),
};

/// Types that are compressed where nothing else is said.
const TYPES: [&str; 22] = [
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web+json",
    "application/grpc-web+thrift",
];

pub struct Compressor {
    pub(super) library: Library,
    /// In stats.
    pub(super) library_name: String,
    pub(super) request: Option<Direction>,
    pub(super) response: Direction,
    pub(super) has_response_direction: bool,
    pub(super) disable_on_etag: bool,
    pub(super) weaken_etag: bool,
    pub(super) remove_accept_encoding: bool,
    pub(super) uncompressible_codes: Vec<u16>,
    /// Goes before compressors that the client likes as well.
    pub(super) choose_first: bool,
}

/// What both directions have.
pub(super) struct Direction {
    default: bool,
    runtime_key: String,
    /// Bytes.
    pub least: u64,
    types: Vec<String>,
    matchers: Vec<StringMatcher>,
}

/// What a route changes.
pub(super) struct RouteOverride {
    pub response_enabled: Option<bool>,
    pub remove_accept_encoding: Option<bool>,
    pub library: Option<Library>,
}

impl Direction {
    fn new(enabled: Option<RuntimeFeatureFlag>, least: Option<u32>, types: Vec<String>) -> Self {
        let (default, runtime_key) = match enabled {
            Some(RuntimeFeatureFlag { default_value, runtime_key }) => (default_value.unwrap_or(true), runtime_key),
            None => (true, String::new()),
        };
        Self { default, runtime_key, least: least.map_or(30, u64::from), types, matchers: Vec::new() }
    }

    #[allow(deprecated)] // Deprecated fields are still read: configurations have them.
    fn from_proto(p: Option<CommonDirectionConfig>, cx: &mut Context) -> Self {
        let CommonDirectionConfig { enabled, min_content_length, content_type, content_type_matcher } =
            p.unwrap_or_default();
        let matchers = cx.field("common_config", |cx| {
            cx.elements("content_type_matcher", content_type_matcher, |cx, p| StringMatcher::from_proto(p, cx))
        });
        Self { matchers, ..Self::new(enabled, min_content_length, content_type) }
    }

    pub fn is_enabled(&self, runtime: &RuntimeSnapshot) -> bool {
        let of_key = if self.runtime_key.is_empty() { None } else { runtime.boolean(&self.runtime_key) };
        of_key.unwrap_or(self.default)
    }

    /// True if messages of this type, or without one, are compressed.
    pub fn takes_type(&self, content_type: Option<&HeaderValue>) -> bool {
        let Some(value) = content_type.map(HeaderValue::as_bytes) else { return true };
        let value = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        if self.types.is_empty() && self.matchers.is_empty() {
            return TYPES.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(value));
        }
        self.types.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(value))
            || self.matchers.iter().any(|m| m.matches(value))
    }
}

fn library(p: core::TypedExtensionConfig, cx: &mut Context) -> Option<(String, Library)> {
    let core::TypedExtensionConfig { name, typed_config } = p;
    let any = cx.required("typed_config", typed_config)?;
    Some((name, cx.field("typed_config", |cx| Library::from_any(&any, cx))?))
}

impl Compressor {
    #[allow(deprecated)] // Deprecated fields are still read: configurations have them.
    fn from_proto(p: pb::Compressor, cx: &mut Context) -> Option<Self> {
        let pb::Compressor {
            content_length,
            content_type,
            disable_on_etag_header,
            remove_accept_encoding_header,
            runtime_enabled,
            compressor_library,
            request_direction_config,
            response_direction_config,
            choose_first,
        } = p;
        let request = request_direction_config.map(|RequestDirectionConfig { common_config }| {
            cx.field("request_direction_config", |cx| Direction::from_proto(common_config, cx))
        });
        let has_response_direction = response_direction_config.is_some();
        let mut all = Self {
            library: Library::Gzip { level: 6, window_bits: 12 },
            library_name: String::new(),
            request,
            response: Direction::new(runtime_enabled, content_length, content_type),
            has_response_direction,
            disable_on_etag: disable_on_etag_header,
            weaken_etag: false,
            remove_accept_encoding: remove_accept_encoding_header,
            uncompressible_codes: Vec::new(),
            choose_first,
        };
        if let Some(response) = response_direction_config {
            let ResponseDirectionConfig {
                common_config,
                disable_on_etag_header,
                weaken_etag_on_compress,
                remove_accept_encoding_header,
                uncompressible_response_codes,
                status_header_enabled,
            } = response;
            cx.field("response_direction_config", |cx| {
                cx.unsupported_if("status_header_enabled", status_header_enabled);
                all.response = Direction::from_proto(common_config, cx);
            });
            all.disable_on_etag = disable_on_etag_header;
            all.weaken_etag = weaken_etag_on_compress;
            all.remove_accept_encoding = remove_accept_encoding_header;
            all.uncompressible_codes =
                uncompressible_response_codes.into_iter().filter_map(|code| code.try_into().ok()).collect();
        }
        let p = cx.required("compressor_library", compressor_library)?;
        (all.library_name, all.library) = cx.field("compressor_library", |cx| library(p, cx))?;
        Some(all)
    }
}

impl RouteOverride {
    fn from_proto(p: pb::CompressorPerRoute, cx: &mut Context) -> Option<Self> {
        let mut all = Self { response_enabled: None, remove_accept_encoding: None, library: None };
        match cx.required("override", p.r#override)? {
            Override::Disabled(_) => all.response_enabled = Some(false),
            Override::Overrides(p) => {
                let pb::CompressorOverrides { response_direction_config, compressor_library } = p;
                if let Some(pb::ResponseDirectionOverrides { remove_accept_encoding_header }) =
                    response_direction_config
                {
                    all.response_enabled = Some(true);
                    all.remove_accept_encoding = remove_accept_encoding_header;
                }
                if let Some(p) = compressor_library {
                    all.library = cx.field("overrides.compressor_library", |cx| library(p, cx)).map(|(_, l)| l);
                }
            }
        }
        Some(all)
    }
}
