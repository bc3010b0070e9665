//! Metrics, access logs, tracing: what can be seen from outside of what happens inside.

pub mod stats;
