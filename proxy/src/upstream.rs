//! Clusters, hosts, load balancing, pools, discovery: everything on the far side.

pub mod names;

pub use names::{ClusterId, Names};
