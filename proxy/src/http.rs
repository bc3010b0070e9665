//! HTTP: messages, bodies, the codecs of both versions on both sides, and the connection manager.

pub mod balancing;
pub mod body;
pub mod client_cert;
pub mod codec;
pub mod connection;
pub mod connection_manager;
pub mod date;
pub mod deadlines;
pub mod dispatch;
pub mod grpc;
pub mod h1;
pub mod h2;
pub mod hash_policy;
pub mod header_names;
pub mod header_rules;
pub mod load_report;
pub mod local_reply;
pub mod message;
pub mod path;
pub mod pump;
pub mod redirect;
pub mod request_headers;
pub mod request_id;
pub mod response_headers;
pub mod service;
pub mod shadow;
pub mod single_headers;
pub mod stats;
pub mod stream;
pub mod thread;
pub mod timeouts;

pub use body::{Body, BodySink, BodySource, Frame};
pub use message::{Protocol, RequestHead, ResponseHead};
pub use service::{BadRequest, ResponseEvent, StreamService, UpstreamStream};
pub use thread::Thread;
