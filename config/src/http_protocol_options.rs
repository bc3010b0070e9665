//! How HTTP is spoken: `core.v3`'s protocol options, for listeners and clusters, and a cluster's
//! `envoy.extensions.upstreams.http.v3.HttpProtocolOptions`.
//!
//! Invariant: every value here is one that the codecs can take; defaults are Envoy's.

use crate::{Context, route::HashPolicy, string_matcher::StringMatcher};
use std::time::Duration;
use weft_control_api::envoy::{
    config::core::v3 as core,
    extensions::{
        http::header_formatters::preserve_case::v3::{
            PreserveCaseFormatterConfig, preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders,
        },
        upstreams::http::v3 as upstreams,
    },
};

pub use core::http_protocol_options::HeadersWithUnderscoresAction;

/// `core.v3.HttpProtocolOptions`.
#[derive(Clone, Debug, PartialEq)]
pub struct CommonHttpProtocolOptions {
    /// Of a connection without streams; default 1 hour, `None` if it was set to zero.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// Percent of the duration above by which a connection may outlive it.
    pub max_connection_duration_jitter: Option<f64>,
    /// Default 100.
    pub max_headers_count: u32,
    /// KiB.
    pub max_response_headers_kb: Option<u32>,
    pub max_stream_duration: Option<Duration>,
    pub headers_with_underscores_action: HeadersWithUnderscoresAction,
    /// `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
}

impl Default for CommonHttpProtocolOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_connection_duration_jitter: None,
            max_headers_count: 100,
            max_response_headers_kb: None,
            max_stream_duration: None,
            headers_with_underscores_action: HeadersWithUnderscoresAction::Allow,
            max_requests_per_connection: None,
        }
    }
}

/// A percentage, 0 to 100.
pub(crate) fn percent(
    name: &str,
    p: Option<weft_control_api::envoy::r#type::v3::Percent>,
    cx: &mut Context,
) -> Option<f64> {
    let value = p?.value;
    if !(0.0..=100.0).contains(&value) {
        cx.problem_at(name, format!("found {value}, allowed are 0 to 100"));
        return None;
    }
    Some(value)
}

impl CommonHttpProtocolOptions {
    pub fn from_proto(p: core::HttpProtocolOptions, cx: &mut Context) -> Self {
        let core::HttpProtocolOptions {
            idle_timeout,
            max_connection_duration,
            max_connection_duration_jitter,
            max_headers_count,
            max_response_headers_kb,
            max_stream_duration,
            headers_with_underscores_action,
            max_requests_per_connection,
        } = p;
        let default = Self::default();
        if max_headers_count == Some(0) {
            cx.problem_at("max_headers_count", "found 0, allowed is 1 or more");
        }
        if max_response_headers_kb.is_some_and(|kb| kb == 0 || kb > 8192) {
            cx.problem_at("max_response_headers_kb", "allowed are 1 to 8192");
        }
        let positive = |d: Option<Duration>| d.filter(|d| !d.is_zero());
        Self {
            idle_timeout: match cx.duration("idle_timeout", idle_timeout) {
                Some(timeout) => positive(Some(timeout)),
                None => default.idle_timeout,
            },
            max_connection_duration: positive(cx.duration("max_connection_duration", max_connection_duration)),
            max_connection_duration_jitter: percent(
                "max_connection_duration_jitter",
                max_connection_duration_jitter,
                cx,
            ),
            max_headers_count: max_headers_count.unwrap_or(default.max_headers_count),
            max_response_headers_kb,
            max_stream_duration: positive(cx.duration("max_stream_duration", max_stream_duration)),
            headers_with_underscores_action: cx
                .enumeration("headers_with_underscores_action", headers_with_underscores_action),
            max_requests_per_connection: max_requests_per_connection.filter(|n| *n > 0),
        }
    }
}

/// `core.v3.Http1ProtocolOptions`.
#[derive(Clone, Debug)]
pub struct Http1ProtocolOptions {
    /// Default true.
    pub allow_absolute_url: bool,
    pub accept_http_10: bool,
    pub default_host_for_http_10: String,
    pub header_key_format: HeaderKeyFormat,
    pub enable_trailers: bool,
    pub allow_chunked_length: bool,
    /// `None`: whoever holds the options decides.
    pub override_stream_error_on_invalid_http_message: Option<bool>,
    pub send_fully_qualified_url: bool,
    pub allow_custom_methods: bool,
    pub ignore_http_11_upgrade: Vec<StringMatcher>,
}

/// How header names are spelled on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderKeyFormat {
    /// Lower case.
    #[default]
    Default,
    ProperCaseWords,
    /// `envoy.http.stateful_header_formatters.preserve_case`.
    PreserveCase {
        forward_reason_phrase: bool,
        /// Names that the proxy adds are written in proper case.
        proper_case_on_added: bool,
    },
}

impl Default for Http1ProtocolOptions {
    fn default() -> Self {
        Self {
            allow_absolute_url: true,
            accept_http_10: false,
            default_host_for_http_10: String::new(),
            header_key_format: HeaderKeyFormat::Default,
            enable_trailers: false,
            allow_chunked_length: false,
            override_stream_error_on_invalid_http_message: None,
            send_fully_qualified_url: false,
            allow_custom_methods: false,
            ignore_http_11_upgrade: Vec::new(),
        }
    }
}

impl Http1ProtocolOptions {
    pub fn from_proto(p: core::Http1ProtocolOptions, cx: &mut Context) -> Self {
        let core::Http1ProtocolOptions {
            allow_absolute_url,
            accept_http_10,
            default_host_for_http_10,
            header_key_format,
            enable_trailers,
            allow_chunked_length,
            override_stream_error_on_invalid_http_message,
            send_fully_qualified_url,
            use_balsa_parser,
            allow_custom_methods,
            ignore_http_11_upgrade,
        } = p;
        cx.ignored_if("use_balsa_parser", use_balsa_parser.is_some());
        Self {
            allow_absolute_url: allow_absolute_url.unwrap_or(true),
            accept_http_10,
            default_host_for_http_10,
            header_key_format: header_key_format
                .and_then(|p| cx.field("header_key_format", |cx| HeaderKeyFormat::from_proto(p, cx)))
                .unwrap_or_default(),
            enable_trailers,
            allow_chunked_length,
            override_stream_error_on_invalid_http_message,
            send_fully_qualified_url,
            allow_custom_methods,
            ignore_http_11_upgrade: cx
                .elements("ignore_http_11_upgrade", ignore_http_11_upgrade, |cx, p| StringMatcher::from_proto(p, cx)),
        }
    }
}

impl HeaderKeyFormat {
    fn from_proto(p: core::http1_protocol_options::HeaderKeyFormat, cx: &mut Context) -> Option<Self> {
        use core::http1_protocol_options::header_key_format::HeaderFormat;
        let core::http1_protocol_options::HeaderKeyFormat { header_format } = p;
        match cx.required("header_format", header_format)? {
            HeaderFormat::ProperCaseWords(_) => Some(Self::ProperCaseWords),
            HeaderFormat::StatefulFormatter(core::TypedExtensionConfig { name: _, typed_config }) => {
                cx.field("stateful_formatter", |cx| {
                    let any = cx.required("typed_config", typed_config)?;
                    let PreserveCaseFormatterConfig { forward_reason_phrase, formatter_type_on_envoy_headers } =
                        cx.unpack("typed_config", &any)?;
                    let added: FormatterTypeOnEnvoyHeaders =
                        cx.enumeration("formatter_type_on_envoy_headers", formatter_type_on_envoy_headers);
                    Some(Self::PreserveCase {
                        forward_reason_phrase,
                        proper_case_on_added: added == FormatterTypeOnEnvoyHeaders::ProperCase,
                    })
                })
            }
        }
    }
}

/// `core.v3.Http2ProtocolOptions`.
#[derive(Clone, Debug, PartialEq)]
pub struct Http2ProtocolOptions {
    /// Bytes; default 4096.
    pub hpack_table_size: u32,
    /// Default 1024.
    pub max_concurrent_streams: u32,
    /// Bytes; default 16 MiB.
    pub initial_stream_window_size: u32,
    /// Bytes; default 24 MiB.
    pub initial_connection_window_size: u32,
    pub allow_connect: bool,
    /// Default 10 000.
    pub max_outbound_frames: u32,
    /// Default 1000.
    pub max_outbound_control_frames: u32,
    /// Default 1.
    pub max_consecutive_inbound_frames_with_empty_payload: u32,
    /// Default 100.
    pub max_inbound_priority_frames_per_stream: u32,
    /// Default 10.
    pub max_inbound_window_update_frames_per_data_frame_sent: u32,
    /// `None`: whoever holds the options decides.
    pub override_stream_error_on_invalid_http_message: Option<bool>,
    pub custom_settings_parameters: Vec<(u16, u32)>,
    pub connection_keepalive: Option<KeepaliveSettings>,
    /// RST_STREAM frames taken at once and per second after that; `None`: the codec's default.
    pub stream_reset_burst: Option<u64>,
    pub stream_reset_rate: Option<u64>,
}

/// `core.v3.KeepaliveSettings`.
#[derive(Clone, Debug, PartialEq)]
pub struct KeepaliveSettings {
    pub interval: Option<Duration>,
    pub timeout: Duration,
    /// Percent of the interval that chance adds at most; default 15.
    pub interval_jitter: f64,
    pub connection_idle_interval: Option<Duration>,
}

impl Default for Http2ProtocolOptions {
    fn default() -> Self {
        Self {
            hpack_table_size: 4096,
            max_concurrent_streams: 1024,
            initial_stream_window_size: 16 << 20,
            initial_connection_window_size: 24 << 20,
            allow_connect: false,
            max_outbound_frames: 10_000,
            max_outbound_control_frames: 1000,
            max_consecutive_inbound_frames_with_empty_payload: 1,
            max_inbound_priority_frames_per_stream: 100,
            max_inbound_window_update_frames_per_data_frame_sent: 10,
            override_stream_error_on_invalid_http_message: None,
            custom_settings_parameters: Vec::new(),
            connection_keepalive: None,
            stream_reset_burst: None,
            stream_reset_rate: None,
        }
    }
}

impl Http2ProtocolOptions {
    pub fn from_proto(p: core::Http2ProtocolOptions, cx: &mut Context) -> Self {
        let core::Http2ProtocolOptions {
            hpack_table_size,
            max_concurrent_streams,
            initial_stream_window_size,
            initial_connection_window_size,
            allow_connect,
            allow_metadata,
            max_outbound_frames,
            max_outbound_control_frames,
            max_consecutive_inbound_frames_with_empty_payload,
            max_inbound_priority_frames_per_stream,
            max_inbound_window_update_frames_per_data_frame_sent,
            stream_error_on_invalid_http_messaging,
            override_stream_error_on_invalid_http_message,
            custom_settings_parameters,
            connection_keepalive,
            use_oghttp2_codec,
            max_metadata_size,
            enable_huffman_encoding,
            max_header_field_size_kb,
            disallow_obs_text,
            stream_reset_burst,
            stream_reset_rate,
        } = p;
        cx.unsupported_if("allow_metadata", allow_metadata);
        cx.unsupported_if("max_header_field_size_kb", max_header_field_size_kb.is_some());
        cx.unsupported_if("disallow_obs_text", disallow_obs_text == Some(true));
        cx.ignored_if("use_oghttp2_codec", use_oghttp2_codec.is_some());
        cx.ignored_if("enable_huffman_encoding", enable_huffman_encoding.is_some());
        // Metadata frames are not forwarded at all, so their size does not matter.
        cx.ignored_if("max_metadata_size", max_metadata_size.is_some());
        let named = [
            (1, hpack_table_size.is_some()),
            (3, max_concurrent_streams.is_some()),
            (4, initial_stream_window_size.is_some()),
        ];
        let custom_settings_parameters =
            cx.elements("custom_settings_parameters", custom_settings_parameters, |cx, p| {
                let core::http2_protocol_options::SettingsParameter { identifier, value } = p;
                let (id, value) = cx.required("identifier", identifier).zip(cx.required("value", value))?;
                let Some(identifier) = u16::try_from(id).ok().filter(|id| *id > 0) else {
                    cx.problem_at("identifier", format!("found {id}, allowed are 1 to 65535"));
                    return None;
                };
                match identifier {
                    2 if value == 1 => {
                        cx.problem("server push is not supported and can not be enabled via a SETTINGS parameter")
                    }
                    8 => cx.problem("the \"allow_connect\" SETTINGS parameter must be set through allow_connect"),
                    _ if named.contains(&(identifier, true)) => cx.problem(format!(
                        "found identifier {identifier}, which has a field of its own that is set too"
                    )),
                    _ => {}
                }
                Some((identifier, value))
            });
        let mut seen = custom_settings_parameters.clone();
        seen.sort_unstable();
        seen.dedup();
        if seen.windows(2).any(|two| two[0].0 == two[1].0) {
            cx.problem_at("custom_settings_parameters", "has two values for one identifier");
        }
        let default = Self::default();
        Self {
            hpack_table_size: hpack_table_size.unwrap_or(default.hpack_table_size),
            max_concurrent_streams: ranged("max_concurrent_streams", max_concurrent_streams, 1, cx)
                .unwrap_or(default.max_concurrent_streams),
            initial_stream_window_size: ranged("initial_stream_window_size", initial_stream_window_size, 65_535, cx)
                .unwrap_or(default.initial_stream_window_size),
            initial_connection_window_size: ranged(
                "initial_connection_window_size",
                initial_connection_window_size,
                65_535,
                cx,
            )
            .unwrap_or(default.initial_connection_window_size),
            allow_connect,
            max_outbound_frames: max_outbound_frames.unwrap_or(default.max_outbound_frames),
            max_outbound_control_frames: max_outbound_control_frames.unwrap_or(default.max_outbound_control_frames),
            max_consecutive_inbound_frames_with_empty_payload: max_consecutive_inbound_frames_with_empty_payload
                .unwrap_or(default.max_consecutive_inbound_frames_with_empty_payload),
            max_inbound_priority_frames_per_stream: max_inbound_priority_frames_per_stream
                .unwrap_or(default.max_inbound_priority_frames_per_stream),
            max_inbound_window_update_frames_per_data_frame_sent: max_inbound_window_update_frames_per_data_frame_sent
                .unwrap_or(default.max_inbound_window_update_frames_per_data_frame_sent),
            override_stream_error_on_invalid_http_message: override_stream_error_on_invalid_http_message
                .or(stream_error_on_invalid_http_messaging.then_some(true)),
            custom_settings_parameters,
            connection_keepalive: connection_keepalive
                .and_then(|p| cx.field("connection_keepalive", |cx| KeepaliveSettings::from_proto(p, cx))),
            stream_reset_burst,
            stream_reset_rate,
        }
    }
}

/// A number of `low` to 2^31 - 1.
fn ranged(name: &str, value: Option<u32>, low: u32, cx: &mut Context) -> Option<u32> {
    let value = value?;
    if !(low..=0x7fff_ffff).contains(&value) {
        cx.problem_at(name, format!("found {value}, allowed are {low} to 2147483647"));
        return None;
    }
    Some(value)
}

impl KeepaliveSettings {
    fn from_proto(p: core::KeepaliveSettings, cx: &mut Context) -> Option<Self> {
        let core::KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval } = p;
        let interval = cx.duration("interval", interval);
        let timeout = cx.required("timeout", timeout).and_then(|t| cx.duration("timeout", Some(t)));
        let least = Duration::from_millis(1);
        for (name, value) in [("interval", interval), ("timeout", timeout)] {
            if value.is_some_and(|value| value < least) {
                cx.problem_at(name, "must be at least 1 ms");
            }
        }
        Some(Self {
            interval,
            timeout: timeout?,
            interval_jitter: percent("interval_jitter", interval_jitter, cx).unwrap_or(15.0),
            connection_idle_interval: cx.duration("connection_idle_interval", connection_idle_interval),
        })
    }
}

/// `envoy.extensions.upstreams.http.v3.HttpProtocolOptions`: how a cluster speaks HTTP.
#[derive(Clone, Debug, Default)]
pub struct UpstreamHttpOptions {
    pub common: CommonHttpProtocolOptions,
    pub upstream: UpstreamHttpProtocolOptions,
    pub protocol: UpstreamProtocol,
    /// In place of the routes'; empty: the routes'.
    pub hash_policies: Vec<HashPolicy>,
}

/// `core.v3.UpstreamHttpProtocolOptions`; of use to TLS only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamHttpProtocolOptions {
    pub auto_sni: bool,
    pub auto_san_validation: bool,
    /// Empty: `:authority`.
    pub override_auto_sni_header: String,
}

/// Which HTTP a cluster's hosts are spoken to in.
#[derive(Clone, Debug)]
pub enum UpstreamProtocol {
    Http1(Http1ProtocolOptions),
    Http2(Http2ProtocolOptions),
    /// As the client speaks. HTTP/2 is used downstream as well only if its options are given.
    UseDownstream {
        http1: Http1ProtocolOptions,
        http2: Option<Http2ProtocolOptions>,
    },
    /// What ALPN finds.
    Auto {
        http1: Http1ProtocolOptions,
        http2: Http2ProtocolOptions,
    },
}

impl Default for UpstreamProtocol {
    fn default() -> Self {
        Self::Http1(Http1ProtocolOptions::default())
    }
}

impl UpstreamHttpOptions {
    pub fn from_proto(p: upstreams::HttpProtocolOptions, cx: &mut Context) -> Self {
        let upstreams::HttpProtocolOptions {
            common_http_protocol_options,
            upstream_http_protocol_options,
            http_filters,
            header_validation_config,
            outlier_detection,
            request_mirror_policies,
            hash_policy,
            retry_policy,
            upstream_protocol_options,
        } = p;
        // The codec filter stands for what every stream does anyway.
        cx.unsupported_if(
            "http_filters",
            http_filters.iter().any(|filter| filter.name != "envoy.filters.http.upstream_codec"),
        );
        cx.unsupported_if("header_validation_config", header_validation_config.is_some());
        cx.unsupported_if("outlier_detection", outlier_detection.is_some());
        cx.unsupported_if("request_mirror_policies", !request_mirror_policies.is_empty());
        cx.unsupported_if("retry_policy", retry_policy.is_some());
        Self {
            common: cx.field("common_http_protocol_options", |cx| {
                CommonHttpProtocolOptions::from_proto(common_http_protocol_options.unwrap_or_default(), cx)
            }),
            upstream: UpstreamHttpProtocolOptions::from_proto(upstream_http_protocol_options.unwrap_or_default()),
            hash_policies: cx.elements("hash_policy", hash_policy, |cx, p| HashPolicy::from_proto(p, cx)),
            protocol: cx
                .required("upstream_protocol_options", upstream_protocol_options)
                .map(|p| UpstreamProtocol::from_proto(p, cx))
                .unwrap_or_default(),
        }
    }
}

impl UpstreamHttpProtocolOptions {
    pub(crate) fn from_proto(p: core::UpstreamHttpProtocolOptions) -> Self {
        let core::UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header } = p;
        Self { auto_sni, auto_san_validation, override_auto_sni_header }
    }
}

impl UpstreamProtocol {
    fn from_proto(p: upstreams::http_protocol_options::UpstreamProtocolOptions, cx: &mut Context) -> Self {
        use upstreams::http_protocol_options::{
            AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
            explicit_http_config::ProtocolConfig,
        };
        let http1 = |p: Option<core::Http1ProtocolOptions>, cx: &mut Context| {
            cx.field("http_protocol_options", |cx| Http1ProtocolOptions::from_proto(p.unwrap_or_default(), cx))
        };
        let http2 = |p: core::Http2ProtocolOptions, cx: &mut Context| {
            cx.field("http2_protocol_options", |cx| Http2ProtocolOptions::from_proto(p, cx))
        };
        match p {
            UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config }) => {
                cx.field("explicit_http_config", |cx| match cx.required("protocol_config", protocol_config) {
                    Some(ProtocolConfig::HttpProtocolOptions(p)) => Self::Http1(http1(Some(p), cx)),
                    Some(ProtocolConfig::Http2ProtocolOptions(p)) => Self::Http2(http2(p, cx)),
                    Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                        cx.unsupported_if("http3_protocol_options", true);
                        Self::default()
                    }
                    None => Self::default(),
                })
            }
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(p) => {
                let UseDownstreamHttpConfig { http_protocol_options, http2_protocol_options, http3_protocol_options } =
                    p;
                cx.field("use_downstream_protocol_config", |cx| {
                    cx.unsupported_if("http3_protocol_options", http3_protocol_options.is_some());
                    Self::UseDownstream {
                        http1: http1(http_protocol_options, cx),
                        http2: http2_protocol_options.map(|p| http2(p, cx)),
                    }
                })
            }
            UpstreamProtocolOptions::AutoConfig(p) => {
                let AutoHttpConfig {
                    http_protocol_options,
                    http2_protocol_options,
                    http3_protocol_options,
                    alternate_protocols_cache_options,
                } = p;
                cx.field("auto_config", |cx| {
                    cx.unsupported_if("http3_protocol_options", http3_protocol_options.is_some());
                    cx.unsupported_if("alternate_protocols_cache_options", alternate_protocols_cache_options.is_some());
                    Self::Auto {
                        http1: http1(http_protocol_options, cx),
                        http2: http2(http2_protocol_options.unwrap_or_default(), cx),
                    }
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_turns_the_idle_timeout_off() {
        let mut cx = Context::new();
        let read = |idle_timeout, cx: &mut Context| {
            CommonHttpProtocolOptions::from_proto(
                core::HttpProtocolOptions { idle_timeout, max_requests_per_connection: Some(0), ..Default::default() },
                cx,
            )
        };
        assert_eq!(read(None, &mut cx), CommonHttpProtocolOptions::default());
        assert_eq!(read(Some(weft_control_api::Duration::default()), &mut cx).idle_timeout, None);
        assert!(!cx.has_problems());
    }

    #[test]
    fn custom_settings_must_not_contradict() {
        let parameter = |identifier, value| core::http2_protocol_options::SettingsParameter {
            identifier: Some(identifier),
            value: Some(value),
        };
        let read = |custom_settings_parameters| {
            let mut cx = Context::new();
            let p = core::Http2ProtocolOptions {
                hpack_table_size: Some(1),
                custom_settings_parameters,
                ..Default::default()
            };
            Http2ProtocolOptions::from_proto(p, &mut cx);
            cx.finish(None::<()>).unwrap_err().len()
        };
        assert_eq!(read(vec![parameter(10, 1), parameter(2, 0)]), 0);
        assert_eq!(read(vec![parameter(10, 1), parameter(10, 2)]), 1);
        assert_eq!(read(vec![parameter(2, 1), parameter(8, 1), parameter(1, 9), parameter(0, 1)]), 4);
    }
}
