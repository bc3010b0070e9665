//! Metrics, access logs, tracing: what can be seen from outside of what happens inside.

pub mod access_log;
pub mod format;
pub mod memory;
pub mod prometheus;
pub mod stats;
pub mod stats_text;
pub mod stream_info;
pub mod tags;

pub use stream_info::StreamInfo;
