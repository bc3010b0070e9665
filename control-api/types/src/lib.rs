//! What `build.rs` makes of Envoy's schema: protobuf types by package, and the tables that `weft_control_api::schema`
//! reads.
//!
//! A package of its own because it takes long to build and changes seldom. Nobody uses it but `weft-control-api`, which
//! hands the types on.

#![allow(clippy::all, rustdoc::all, missing_docs, rust_2018_idioms)]

pub mod layout;

include!(concat!(env!("OUT_DIR"), "/types.rs"));

/// The tables, as [`layout`] says.
pub static TABLES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin"));
