//! Where configuration comes from: files, a control plane over its own stream, or the aggregated stream (ADS).
//!
//! Read wherever a resource names another one's source: LDS and CDS in the bootstrap, RDS, EDS, SDS and RTDS elsewhere.

use crate::{Context, grpc_service::GrpcService};
use std::{path::Path, sync::Arc, time::Duration};
use weft_control_api::envoy::config::core::v3::{self as pb, api_config_source::ApiType, config_source};

/// How long a resource may take to come before its owner goes on without it, if nothing else is said.
pub const DEFAULT_INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// The source of a kind of resource.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigSource {
    pub specifier: Specifier,
    /// `None`: waits for ever.
    pub initial_fetch_timeout: Option<Duration>,
}

/// The kinds of sources.
#[derive(Clone, Debug, PartialEq)]
pub enum Specifier {
    Path(PathConfigSource),
    Api(Arc<ApiConfigSource>),
    Rest(RestConfigSource),
    /// The bootstrap's ADS stream.
    Ads,
    /// The stream that the resource which says this came over.
    SelfSource,
}

/// Resources in a file: an encoded or written `DiscoveryResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathConfigSource {
    pub path: String,
    /// Reloads when something is moved inside this directory, instead of when the file is moved to its place.
    pub watched_directory: Option<String>,
}

/// A control plane.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfigSource {
    /// Delta (incremental) instead of state of the world.
    pub delta: bool,
    /// True for an aggregated type, which shares the bootstrap's ADS stream.
    pub aggregated: bool,
    pub service: GrpcService,
    pub set_node_on_first_message_only: bool,
    /// How fast requests may be sent; `None`: as fast as they arise.
    pub rate_limit: Option<RequestRate>,
}

/// A control plane that is polled over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestConfigSource {
    pub cluster: String,
    /// At least so long from an answer to the next request; at most twice as long.
    pub refresh_delay: Duration,
    /// Of one request.
    pub request_timeout: Duration,
}

/// A token bucket for discovery requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestRate {
    pub max_tokens: u32,
    /// Tokens a second.
    pub fill_rate: f64,
}

impl ConfigSource {
    /// Reads a config source; `None` if a problem was reported.
    pub fn from_proto(pb: pb::ConfigSource, cx: &mut Context) -> Option<Self> {
        use config_source::ConfigSourceSpecifier;
        let pb::ConfigSource { authorities, initial_fetch_timeout, resource_api_version, config_source_specifier } = pb;
        cx.unsupported_if("authorities", !authorities.is_empty());
        version("resource_api_version", resource_api_version, cx);
        let timeout =
            cx.duration("initial_fetch_timeout", initial_fetch_timeout).unwrap_or(DEFAULT_INITIAL_FETCH_TIMEOUT);
        let specifier = match cx.required("config_source_specifier", config_source_specifier)? {
            ConfigSourceSpecifier::Path(path) => {
                exists("path", &path, cx);
                Specifier::Path(PathConfigSource { path, watched_directory: None })
            }
            ConfigSourceSpecifier::PathConfigSource(source) => {
                Specifier::Path(cx.field("path_config_source", |cx| PathConfigSource::from_proto(source, cx)))
            }
            ConfigSourceSpecifier::ApiConfigSource(source) => {
                cx.field("api_config_source", |cx| match ApiType::try_from(source.api_type) {
                    Ok(ApiType::Rest) => RestConfigSource::from_proto(source, cx).map(Specifier::Rest),
                    _ => ApiConfigSource::from_proto(source, cx).map(Arc::new).map(Specifier::Api),
                })?
            }
            ConfigSourceSpecifier::Ads(pb::AggregatedConfigSource {}) => Specifier::Ads,
            ConfigSourceSpecifier::Self_(pb::SelfConfigSource { transport_api_version }) => {
                cx.field("self", |cx| version("transport_api_version", transport_api_version, cx));
                Specifier::SelfSource
            }
        };
        Some(Self { specifier, initial_fetch_timeout: Some(timeout).filter(|t| !t.is_zero()) })
    }
}

impl PathConfigSource {
    fn from_proto(pb: pb::PathConfigSource, cx: &mut Context) -> Self {
        let pb::PathConfigSource { path, watched_directory, poll_interval } = pb;
        cx.unsupported_if("poll_interval", poll_interval.is_some());
        exists("path", &path, cx);
        let watched_directory = watched_directory.map(|directory| {
            let pb::WatchedDirectory { path, watch_modify } = directory;
            cx.field("watched_directory", |cx| cx.unsupported_if("watch_modify", watch_modify));
            path
        });
        Self { path, watched_directory }
    }
}

/// A file that is to be watched must be there from the start: one that comes later may be a slip of the pen.
fn exists(name: &str, path: &str, cx: &mut Context) {
    if !path.is_empty() && !Path::new(path).exists() {
        cx.problem_at(name, format!("paths must refer to an existing path in the system: '{path}' does not exist"));
    }
}

impl ApiConfigSource {
    /// Reads an API source; `None` if a problem was reported.
    pub fn from_proto(pb: pb::ApiConfigSource, cx: &mut Context) -> Option<Self> {
        let pb::ApiConfigSource {
            api_type,
            transport_api_version,
            cluster_names,
            grpc_services,
            refresh_delay,
            request_timeout,
            rate_limit_settings,
            set_node_on_first_message_only,
            config_validators,
        } = pb;
        version("transport_api_version", transport_api_version, cx);
        let (delta, aggregated) = match cx.enumeration("api_type", api_type) {
            ApiType::Grpc => (false, false),
            ApiType::DeltaGrpc => (true, false),
            ApiType::AggregatedGrpc => (false, true),
            ApiType::AggregatedDeltaGrpc => (true, true),
            ApiType::Rest => {
                cx.problem_at("api_type", "REST is no stream, allowed: GRPC, DELTA_GRPC");
                return None;
            }
            ApiType::DeprecatedAndUnavailableDoNotUse => {
                cx.problem_at("api_type", "is not set to a type that is available, allowed: GRPC, DELTA_GRPC");
                return None;
            }
        };
        if !cluster_names.is_empty() {
            cx.problem_at("cluster_names", "is for REST only; a gRPC source names its cluster in grpc_services");
        }
        // These two are about REST polling; Envoy does not look at them for gRPC.
        cx.ignored_if("refresh_delay", refresh_delay.is_some());
        cx.ignored_if("request_timeout", request_timeout.is_some());
        cx.unsupported_if("config_validators", !config_validators.is_empty());
        let rate_limit = rate_limit_settings.map(|pb::RateLimitSettings { max_tokens, fill_rate }| RequestRate {
            max_tokens: max_tokens.unwrap_or(100),
            fill_rate: fill_rate.unwrap_or(10.0),
        });
        if grpc_services.len() != 1 {
            cx.problem_at("grpc_services", format!("found {}, allowed: exactly 1", grpc_services.len()));
        }
        let service = cx.elements("grpc_services", grpc_services, |cx, pb| GrpcService::from_proto(pb, cx)).pop()?;
        Some(Self { delta, aggregated, service, set_node_on_first_message_only, rate_limit })
    }
}

impl RestConfigSource {
    /// How long a request may take, if nothing else is said.
    const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

    fn from_proto(pb: pb::ApiConfigSource, cx: &mut Context) -> Option<Self> {
        let pb::ApiConfigSource {
            api_type: _,
            transport_api_version,
            cluster_names,
            grpc_services,
            refresh_delay,
            request_timeout,
            rate_limit_settings,
            set_node_on_first_message_only,
            config_validators,
        } = pb;
        version("transport_api_version", transport_api_version, cx);
        if !grpc_services.is_empty() {
            cx.problem_at("grpc_services", "is for gRPC only; a REST source names its cluster in cluster_names");
        }
        // These two are about gRPC streams; Envoy does not look at them for REST.
        cx.ignored_if("rate_limit_settings", rate_limit_settings.is_some());
        cx.ignored_if("set_node_on_first_message_only", set_node_on_first_message_only);
        cx.unsupported_if("config_validators", !config_validators.is_empty());
        if refresh_delay.is_none() {
            cx.problem_at("refresh_delay", "is not set; a REST source must say how often it is asked");
        }
        let refresh_delay = cx.duration("refresh_delay", refresh_delay);
        let request_timeout = cx.duration("request_timeout", request_timeout).unwrap_or(Self::DEFAULT_REQUEST_TIMEOUT);
        let [cluster] = <[String; 1]>::try_from(cluster_names)
            .map_err(|names| cx.problem_at("cluster_names", format!("found {}, allowed: exactly 1", names.len())))
            .ok()?;
        Some(Self { cluster, refresh_delay: refresh_delay?, request_timeout })
    }
}

/// Only version 3 of the API exists any more; unset means the same.
fn version(name: &str, value: i32, cx: &mut Context) {
    if cx.enumeration::<pb::ApiVersion>(name, value) == pb::ApiVersion::V2 {
        cx.problem_at(name, "V2 is not supported, allowed: V3");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc_service::DEFAULT_RECONNECT;

    fn service() -> pb::GrpcService {
        pb::GrpcService {
            target_specifier: Some(pb::grpc_service::TargetSpecifier::EnvoyGrpc(pb::grpc_service::EnvoyGrpc {
                cluster_name: "x".into(),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn read(source: pb::ApiConfigSource) -> Result<ApiConfigSource, Vec<String>> {
        let mut cx = Context::new();
        let read = ApiConfigSource::from_proto(source, &mut cx);
        cx.finish(read).map(|(source, _)| source).map_err(|e| e.into_iter().map(|p| p.path).collect())
    }

    #[test]
    fn a_grpc_source() {
        let source = read(pb::ApiConfigSource {
            api_type: ApiType::DeltaGrpc.into(),
            grpc_services: vec![service()],
            rate_limit_settings: Some(pb::RateLimitSettings { max_tokens: None, fill_rate: Some(2.0) }),
            ..Default::default()
        })
        .unwrap();
        assert!(source.delta && !source.aggregated);
        assert_eq!(source.rate_limit, Some(RequestRate { max_tokens: 100, fill_rate: 2.0 }));
        assert_eq!(source.service.reconnect, DEFAULT_RECONNECT);
    }

    #[test]
    fn what_is_refused() {
        let grpc = || pb::ApiConfigSource {
            api_type: ApiType::Grpc.into(),
            grpc_services: vec![service()],
            ..Default::default()
        };
        for (source, path) in [
            (pb::ApiConfigSource { grpc_services: Vec::new(), ..grpc() }, "grpc_services"),
            (pb::ApiConfigSource { grpc_services: vec![service(), service()], ..grpc() }, "grpc_services"),
            (pb::ApiConfigSource { api_type: ApiType::Rest.into(), ..grpc() }, "api_type"),
            (pb::ApiConfigSource { transport_api_version: 1, ..grpc() }, "transport_api_version"),
            (pb::ApiConfigSource { cluster_names: vec!["x".into()], ..grpc() }, "cluster_names"),
        ] {
            assert_eq!(read(source), Err(vec![path.to_owned()]));
        }
    }

    #[test]
    fn a_fetch_timeout_of_zero_is_none() {
        let source = |seconds| pb::ConfigSource {
            initial_fetch_timeout: seconds,
            config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(pb::AggregatedConfigSource {})),
            ..Default::default()
        };
        for (given, read) in [(None, Some(15)), (Some(0), None), (Some(3), Some(3))] {
            let given = given.map(|seconds| weft_control_api::Duration { seconds, nanos: 0 });
            let source = ConfigSource::from_proto(source(given), &mut Context::new()).unwrap();
            assert_eq!(source.initial_fetch_timeout, read.map(Duration::from_secs));
        }
    }
}
