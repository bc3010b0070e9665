//! Clusters, hosts, load balancing, pools, discovery: everything on the far side.
//!
//! The control thread compiles [`Cluster`]s and publishes them in a [`ClusterTable`]; each thread has its [`Upstreams`], which
//! takes the table over and gives out streams and connections. Shared between threads are only the atomics of hosts and breakers.

mod aggregate;
mod balancer;
pub mod breakers;
pub mod cluster;
pub mod connect;
mod connection;
pub mod dns;
pub mod grpc_call;
pub mod grpc_stream;
pub mod health;
pub mod health_check;
pub mod host;
pub mod http_call;
pub mod metadata_match;
pub mod names;
mod orca;
mod original_dst;
pub mod outlier;
mod override_host;
mod pool;
pub mod probe;
pub mod rate_limit_call;
mod raw_stream;
mod server_names;
mod shared;
mod shown;
pub mod stats;
mod table;
mod thread;
pub mod transport_socket;

pub use balancer::{PriorityLoads, RetryContext};
pub use breakers::Breakers;
pub use cluster::{Cluster, ClusterInfo, LocalZone};
pub use connection::{ClosedBy, UpstreamConnection};
pub use health::{Health, HealthFlags};
pub use host::{Host, HostSet, HostState};
pub use metadata_match::MetadataMatch;
pub use names::{ClusterId, Names};
pub use override_host::OverrideHost;
pub use raw_stream::RawStream;
pub use server_names::ServerNames;
pub use stats::{ClusterStats, EdsStats};
pub use table::{Changed, ClusterTable};
pub use thread::{LbContext, ProtocolChoice, StreamRequest, ThreadCluster, ThreadHost, Upstreams};
pub use transport_socket::UpstreamSocket;
pub use weft_config::route::Priority;
