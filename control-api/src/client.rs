//! The xDS client engine: subscriptions in, requests out; responses in, updates out. It does no I/O.
//!
//! One engine speaks one stream at a time: the aggregated one for all kinds of resources, or that of a single kind;
//! in either [`Protocol`], with the order, the nonces and the versions of Envoy. The proxy owns the stream and the
//! clock. It tells the engine what it is interested in, carries requests and responses, compiles each
//! [`Update`] and answers it; the ACK goes out after that: ACK means compiled.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use weft_control_api::client::{Engine, Event, Options, Request};
//! use weft_control_api::envoy::service::discovery::v3::DiscoveryResponse;
//! use weft_control_api::{ResourceType, prost_types::Any};
//!
//! let now = Instant::now();
//! let mut engine = Engine::new(Options::default());
//! engine.subscribe_wildcard(ResourceType::Cluster, Some(Duration::from_secs(15)), now);
//! engine.start();
//! assert_eq!(engine.poll_event(), Some(Event::Connect)); // open a stream to `engine.method()`, then:
//! engine.on_stream_open(now);
//! let Some(Request::StateOfTheWorld(first)) = engine.poll_request(now) else { panic!("CDS is asked for") };
//! assert!(first.type_url.ends_with(".Cluster") && first.resource_names.is_empty());
//!
//! engine.on_response(
//!     DiscoveryResponse {
//!         version_info: "1".into(),
//!         nonce: "a".into(),
//!         type_url: ResourceType::Cluster.url().into(),
//!         resources: vec![Any { type_url: ResourceType::Cluster.url().into(), value: b"\x0a\x01c".to_vec() }],
//!         ..Default::default()
//!     },
//!     now,
//! );
//! let Some(Event::Update(update)) = engine.poll_event() else { panic!("resources came") };
//! assert_eq!(update.resources[0].name, "c"); // compile, publish, then:
//! engine.accept(update.resource_type, &update.nonce, now);
//! let Some(Request::StateOfTheWorld(ack)) = engine.poll_request(now) else { panic!("an ACK is due") };
//! assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("1", "a"));
//! ```
//!
//! Invariants: every response to a subscription is answered exactly once, in the order of its kind, if its stream still
//! lives; nothing is answered before the proxy has answered; the same inputs and seed give the same outputs.

mod backoff;
mod deadlines;
mod delta;
mod engine;
mod grpc;
mod interest;
mod rate_limit;
mod sotw;
mod update;

pub use backoff::BackoffOptions;
pub use engine::{Engine, Options, Request, Service};
pub use grpc::{FrameDecoder, FrameError, encode_frame};
pub use rate_limit::RateLimitOptions;
pub use update::{Event, Refused, Rejection, Resource, Update};

use crate::{envoy::service::discovery::v3::DiscoveryResponse, google, problem::Problem, text};
use interest::Interest;
use prost::Message as _;
use std::time::Duration;

/// A response, sorted out.
enum Read {
    /// Nothing to answer.
    Silent,
    /// Nobody is interested in the kind any more: answered with the old version.
    Unwanted { nonce: String },
    /// Refused without asking the proxy.
    Malformed { update: Update, message: String },
    /// Resources, and confirmations of resources that are there. Without `for_proxy` nothing in it concerns the proxy.
    Update { update: Update, heartbeats: Vec<(String, Duration)>, for_proxy: bool },
}

/// The `error_detail` of a NACK, with the code that Envoy gives.
fn internal(message: String) -> google::rpc::Status {
    const INTERNAL: i32 = 13;
    google::rpc::Status { code: INTERNAL, message, details: Vec::new() }
}

/// Reads the content of a file that a `path_config_source` names: a `DiscoveryResponse` in `format`. Fields that the schema
/// does not know are left out, and given beside it.
///
/// # Errors
/// Everything that keeps the content from being one, with places in the text.
pub fn read_file(content: &[u8], format: text::Format) -> Result<(DiscoveryResponse, Vec<Problem>), Vec<Problem>> {
    let name = "envoy.service.discovery.v3.DiscoveryResponse";
    let encoded = text::read(content, format, name, crate::EncodeOptions { allow_unknown: true })?;
    let response =
        DiscoveryResponse::decode(encoded.bytes.as_slice()).map_err(|e| vec![Problem::new("", e.to_string())])?;
    Ok((response, encoded.unknown))
}

#[cfg(test)]
mod tests;
