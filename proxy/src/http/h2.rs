//! HTTP/2 on both sides, on the `h2` crate. Downstream the connection manager calls [`server::serve`], upstream a pool
//! makes [`client::ClientConnection`]s.
//!
//! The crate keeps streams, flow control and HPACK; [`wire`] stands between it and the socket and gives what the crate
//! has no words for: Envoy's SETTINGS, frame budgets, the pause between the two GOAWAYs of a drain.
//! Invariants: windows grow only as data are handed to whoever forwards them; a stream's unsent data stay below
//! [`chunk::HIGH_WATERMARK`] plus one piece; a connection and its streams live on one thread.

mod body;
mod chunk;
pub mod client;
mod error;
mod head;
mod keepalive;
pub mod options;
mod responder;
pub mod server;
pub mod stats;
mod wire;

#[cfg(test)]
mod tests;

pub use body::BodyReader;
pub use client::{ClientConnection, ClientEvents, ClientStream};
pub use options::{ClientOptions, Http2Options, Keepalive, ServerOptions, UnderscoreAction};
pub use responder::Responder;
pub use stats::Http2Stats;
