//! The API spoken with a control plane, both ways.
//!
//! Invariant: nothing here knows what a listener means to a proxy.

pub mod check;
pub mod client;
pub mod encode;
pub mod field_mask;
pub mod json;
pub mod node;
pub mod pem;
pub mod print;
mod problem;
pub mod resource;
pub mod schema;
pub mod server;
pub mod text;
pub mod wire;
pub mod workload;
pub mod yaml;

pub use check::{CheckOptions, Checked, check};
pub use encode::{EncodeOptions, Encoded, encode, open_typed_struct, snake_case};
pub use field_mask::FieldMask;
pub use print::{PrintOptions, pretty, print};
pub use problem::{Position, Problem, add_later};
pub use prost::{Message, Name};
pub use prost_types;
pub use prost_types::{Any, Duration, Struct, Timestamp, Value, value};
pub use resource::{Protocol, ResourceType};
/// Generated protobuf types, by package: `types::envoy::config::listener::v3::Listener`.
pub use weft_types as types;
pub use weft_types::{envoy, google, udpa, xds};
