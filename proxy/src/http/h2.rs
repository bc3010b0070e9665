//! HTTP/2 on both sides: our own codec, since it must accept, reject and write exactly what Envoy does, and cost little.
//!
//! Downstream the connection manager calls [`server::serve`], upstream a pool makes [`client::ClientConnection`]s. Below them,
//! without I/O: `core` with its two directions `receive` and `send` (the state of a connection), `streams`, `budget` (floods),
//! `hpack`, `head` (the rules of messages), `frame`, `output`. `connection` moves the bytes, `responder` and `body` are
//! the two halves of a stream as the rest of the proxy has them.
//!
//! Invariants: a connection and its streams live on one thread; windows grow only as data are handed to whoever forwards
//! them; a stream's unsent data stay below [`send::HIGH_WATERMARK`] plus one piece; an idle connection holds no buffer;
//! no borrow of the core is held while anything else runs.

mod body;
mod budget;
pub mod client;
mod connection;
mod core;
mod error;
mod frame;
mod head;
mod hpack;
mod keepalive;
pub mod options;
mod output;
mod receive;
mod responder;
mod send;
pub mod server;
pub mod stats;
mod streams;

#[cfg(test)]
mod core_tests;
#[cfg(test)]
mod tests;

pub use body::BodyReader;
pub use client::{ClientConnection, ClientEvents, ClientStream};
pub use options::{ClientOptions, Http2Options, Keepalive, ServerOptions, UnderscoreAction};
pub use responder::Responder;
pub use stats::Http2Stats;
