//! The admin API: what Envoy's tools and people ask a running proxy, and tell it to do, over HTTP.
//!
//! Runs on the control thread. It knows the server only as a [`ServerView`]: plain data to show, and commands. Each endpoint is a
//! function from a request to a reply, listed once in `endpoints.rs`; formats, texts and status codes are Envoy's.

mod clusters;
mod config_dump;
mod endpoints;
mod home;
mod lifecycle;
mod listeners;
mod logging;
mod message;
mod runtime;
mod serve;
mod stats;
#[cfg(test)]
mod tests;
mod view;

pub use listeners::address;
pub use serve::{Admin, AdminSocket};
pub use view::{
    Command, ConfigDump, DynamicListener, DynamicResource, ListenerStatus, Resource, RuntimeDump, ScopedRoutes,
    ServerInfo, ServerView, State, StatsSettings, UnreadyTargets, UpdateFailure, VersionedResources,
};
