//! Motion: everything that moves bytes.
//!
//! Modules import only from those that stand below them in this list (`server` on top):
//! server, admin, snapshot, listener, network, http, filters, rbac, route, upstream, transport, observe, base.

pub mod admin;
pub mod base;
pub mod filters;
pub mod http;
pub mod listener;
pub mod network;
pub mod observe;
pub mod rbac;
pub mod route;
pub mod server;
pub mod snapshot;
pub mod transport;
pub mod upstream;
