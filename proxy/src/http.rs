//! HTTP: messages, bodies, the codecs of both versions on both sides, and the connection manager.

pub mod body;
pub mod h1;
pub mod h2;
pub mod message;
pub mod service;

pub use body::{Body, BodySink, BodySource, Frame};
pub use message::{Protocol, RequestHead, ResponseHead};
pub use service::{BadRequest, ResponseEvent, StreamService, UpstreamStream};
