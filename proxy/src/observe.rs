//! Metrics, access logs, tracing: what can be seen from outside of what happens inside.

pub mod access_log;
pub mod format;
pub mod stats;
pub mod stream_info;

pub use stream_info::StreamInfo;
