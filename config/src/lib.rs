//! Meaning: validated, typed, protobuf-free configuration, every error with its field path.
//!
//! Invariant: nothing here knows tokio, hyper, h2, rustls, tower or metrics; protobuf types appear only as the
//! arguments of `from_proto` functions.

// Deprecated fields are still read: configurations have them.
#![allow(deprecated)]

pub mod access_log;
pub mod address;
pub mod bootstrap;
pub mod cluster;
pub mod config_source;
mod context;
pub mod data_source;
pub mod dns_resolver;
pub mod endpoint;
pub mod extension_config;
pub mod grpc_service;
pub mod header_matcher;
pub mod header_value;
pub mod http_connection_manager;
pub mod http_protocol_options;
pub mod listener;
pub mod load;
pub mod load_balancing;
pub mod matching;
pub mod metadata;
pub mod on_demand;
pub mod percent;
pub mod rate_limit;
pub mod rbac;
pub mod re2;
pub mod regex_rewrite;
pub mod route;
pub mod runtime;
pub mod scoped_routes;
pub mod string_matcher;
pub mod substitution_format;
pub mod tcp_proxy;
pub mod tls;
pub mod uri_template;

pub use address::Address;
pub use bootstrap::Bootstrap;
pub use cluster::Cluster;
pub use config_source::ConfigSource;
pub use context::Context;
pub use dns_resolver::DnsResolver;
pub use endpoint::ClusterLoadAssignment;
pub use grpc_service::GrpcService;
pub use load::{LoadOptions, Loaded, Refused, Sources, load};
pub use weft_control_api::{Position, Problem, add_later};
