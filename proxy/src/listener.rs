//! Listeners: binding, accepting, listener filters, choosing a filter chain, draining.
//!
//! The control thread compiles and binds ([`Listener`]); each worker accepts for itself ([`Listeners`]).

mod accept;
mod active;
mod balance;
mod chain_match;
mod client_hello;
mod compiled;
mod connection;
mod filters;
mod global_limit;
mod proxy_header;
mod sockets;
mod stats;

pub use accept::Listeners;
pub use compiled::{Chain, CompileContext, Listener};
pub use global_limit::GlobalLimit;
pub use sockets::Sockets;
