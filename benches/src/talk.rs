//! What is spoken through the proxies, from both ends: the protocols as sessions without I/O, and the sockets under them.
//!
//! The load generator (`load`) speaks the clients' sides, `backend` the servers'.

pub mod backend;
pub mod certificates;
pub mod http1;
pub mod http2;
pub mod tls;
pub mod websocket;
pub mod wire;

use wire::Session;

/// A client's side of a protocol.
pub trait Client: Session {
    /// Appends a request.
    fn begin(&mut self, out: &mut Vec<u8>);

    /// Appends what is said before the connection is closed.
    fn end(&mut self, _out: &mut Vec<u8>) {}
}
