//! TLS on a connection, of both sides: rustls, with Envoy's choices.

pub mod verify;
