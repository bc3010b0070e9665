//! From accepted resources to one immutable [`Snapshot`]: what all workers see of the configuration at one moment.

mod clusters;
mod extensions;
pub mod scopes;
pub mod secrets;
mod store;
mod virtual_hosts;

pub use store::{Entry, Origin, Store};

use crate::{base::RuntimeSnapshot, http::thread::RouteTables, listener::Listener, upstream::ClusterTable};
use std::sync::Arc;

/// The configuration of one moment. Parts that did not change are shared with the snapshot before, by pointer.
#[derive(Clone)]
pub struct Snapshot {
    pub listeners: Arc<Vec<Arc<Listener>>>,
    pub clusters: Arc<ClusterTable>,
    pub routes: Arc<RouteTables>,
    pub runtime: Arc<RuntimeSnapshot>,
}
