//! How bytes get on and off a connection: sockets, raw, TLS, PROXY protocol.

pub mod internal;
pub mod io;
pub mod splice;
pub mod tls;

pub use internal::Internals;
pub use io::{Io, Meter};
pub use splice::Pipe;
