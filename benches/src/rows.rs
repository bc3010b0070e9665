//! Every row there is, by what it measures. A new one is a few lines in one of these files, and in `configs/` where the proxies have
//! to listen for it.

mod idle;
mod plain;
mod rotation;
mod scale;
mod sidecar;
mod syscalls;
mod tcp;
mod tls;
mod workers;

use crate::row::Group;
pub use idle::COUNTS as IDLE;

/// In the order in which they run and are shown.
pub const GROUPS: [&Group; 16] = [
    &plain::WORK,
    &plain::LATENCY,
    &tls::DOWNSTREAM,
    &tls::BOTH,
    &sidecar::PLAIN,
    &sidecar::LATENCY,
    &tcp::TCP,
    &idle::PLAIN,
    &idle::MTLS,
    &workers::PLAIN,
    &workers::MTLS,
    &workers::SPREAD,
    &workers::BALANCED,
    &rotation::ROTATION,
    &scale::SCALE,
    &syscalls::SYSCALLS,
];
