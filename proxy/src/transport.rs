//! How bytes get on and off a connection: sockets, raw, TLS, PROXY protocol.

pub mod io;

pub use io::{Io, Meter};
