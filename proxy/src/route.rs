//! The compiled route table: virtual hosts by domain, routes by path, and what a matched route does.
//!
//! Compiled on the control thread from [`weft_config::route`], shared by all workers, never changed.

mod action;
mod index;
mod matched;
mod per_filter;
mod rate_limit;
mod redirect;
mod table;

pub use action::{Action, Cluster, DirectResponse, Forward, Mirror, Weighted};
pub use matched::MatchedRoute;
pub use per_filter::{RouteFilter, RouteFilters};
pub use rate_limit::{Descriptor, DescriptorFacts, Descriptors, RateLimits, Which};
pub use redirect::Redirect;
pub use table::{
    MatchContext, Route, RouteOutcome, RouteTable, VirtualHost, cookie, header_matches, route_matches, shared_metadata,
};
