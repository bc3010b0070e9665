//! The reference control plane: serves resources over xDS, aggregated or kind by kind, in both protocols.
//!
//! [`SnapshotCache`] holds what each group of nodes gets; [`Directory`] fills it from files; [`serve`] answers clients.
//! What is said on one stream is decided in `session`, which does no I/O. Used by `weft-control`, by `weft quickstart`,
//! and by whoever embeds a control plane. Invariant: one client's refusal changes nothing for any other.

mod cache;
mod directory;
mod file;
mod grpc;
mod interest;
mod listen;
mod rate_limit;
mod session;
mod snapshot;
mod watch;

pub use cache::{Event, SnapshotCache};
pub use directory::{Directory, Report};
pub use grpc::{serve, serve_with_limits};
pub use listen::Listener;
pub use rate_limit::{RateLimitService, RateLimits, Read, RedisAddress, feed_limits};
pub use session::{Service, Session};
pub use snapshot::{Resource, Resources, Snapshot};

#[cfg(test)]
mod tests;
