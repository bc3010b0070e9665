//! Meaning: validated, typed, protobuf-free configuration, every error with its field path.
//!
//! Invariant: nothing here knows tokio, hyper, h2, rustls, tower or metrics; protobuf types appear only as the
//! arguments of `from_proto` functions.

// Deprecated fields are still read: configurations have them.
#![allow(deprecated)]

pub mod address;
mod context;
pub mod load;

pub use context::Context;
pub use load::{LoadOptions, Loaded, Sources, load};
pub use weft_control_api::{Position, Problem};
