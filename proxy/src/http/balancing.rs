//! What load balancing takes from a request: what it hashes to, and the metadata that it wants of hosts.
//!
//! Made by the router once the request's head is what the upstream will see; the same for all attempts.

use super::{hash_policy, stream::Stream};
use crate::{
    route::{Forward, MatchedRoute},
    upstream::{MetadataMatch, ThreadCluster},
};
use http::{HeaderMap, HeaderValue, header};

/// One request's part in picking a host.
#[derive(Default)]
pub struct Balancing {
    /// Where the cluster picks by hash.
    pub hash: Option<u64>,
    /// The route's, with what filters said of this request; `None`: the route's alone.
    metadata: Option<Box<MetadataMatch>>,
    /// Cookies by which the client will come to the same host again.
    cookies: Vec<HeaderValue>,
}

impl Balancing {
    /// For a request to `cluster`; computes only what the cluster looks at.
    pub fn of(stream: &Stream, cluster: &ThreadCluster, forward: &Forward) -> Self {
        let mut this = Self::default();
        let config = &cluster.info().config;
        if cluster.wants_hash() {
            let of_policy = config.load_balancing.policy.hashing().map_or(&[][..], |h| &h.hash_policies);
            this.hash = if of_policy.is_empty() {
                let of_cluster = &config.http.hash_policies;
                let policies = if of_cluster.is_empty() { &forward.config.hash_policies } else { of_cluster };
                let mut set_cookie = |cookie| this.cookies.push(cookie);
                hash_policy::hash(policies, &stream.request, &stream.info, Some(&mut set_cookie))
            } else {
                hash_policy::hash(of_policy, &stream.request, &stream.info, None)
            };
        }
        if cluster.wants_metadata() {
            let of_route = stream.route.as_ref().and_then(|route| route.metadata_match());
            this.metadata = MetadataMatch::with_dynamic(of_route, &stream.info.dynamic_metadata).map(Box::new);
        }
        this
    }

    /// The metadata that hosts must have.
    pub fn metadata_match<'a>(&'a self, route: Option<&'a MatchedRoute>) -> Option<&'a MetadataMatch> {
        self.metadata.as_deref().or_else(|| route?.metadata_match())
    }

    /// Gives the client its cookies, with a response of the upstream's.
    pub fn set_cookies(&mut self, headers: &mut HeaderMap) {
        for cookie in self.cookies.drain(..) {
            headers.append(header::SET_COOKIE, cookie);
        }
    }
}
