//! The API spoken with a control plane, both ways.
//!
//! Invariant: nothing here knows what a listener means to a proxy.

/// Generated protobuf types, by package: `types::envoy::config::listener::v3::Listener`.
#[allow(clippy::all, rustdoc::all, missing_docs, rust_2018_idioms)]
pub mod types {
    include!(concat!(env!("OUT_DIR"), "/types.rs"));
}

mod problem;

pub use problem::{Position, Problem};
pub use prost_types::{Any, Duration, Struct, Timestamp, Value};
pub use types::{envoy, google, udpa, xds};
