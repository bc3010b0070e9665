//! Internal redirects: a redirect that an upstream answered is followed here instead of by the client
//! (Envoy docs: "Internal redirects").

use super::{
    RequestHead, ResponseHead,
    header_names::{ENVOY_ORIGINAL_URL, FORWARDED_PROTO},
    stream::Stream,
};
use crate::route::MatchedRoute;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use std::sync::Arc;
use weft_config::route::{InternalRedirectPolicy, RedirectPredicate};

/// Follows the response's `location` if the policy allows it: the stream then has a new request and route.
/// `original` is the request before the route rewrote it; `count` how many redirects were followed already.
pub fn follow(
    stream: &mut Stream,
    policy: &InternalRedirectPolicy,
    original: &RequestHead,
    response: &ResponseHead,
    count: &mut u32,
) -> bool {
    if !policy.codes.contains(&response.status.as_u16()) {
        return false;
    }
    let stats = stream.connection.stats.clone();
    let location = response.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    // Only absolute URLs: a relative one is the client's to resolve.
    let Some(target) = location
        .and_then(|location| url::Url::parse(location).ok())
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
    else {
        stats.passthrough_internal_redirect_bad_location.inc();
        return false;
    };
    let arrived_by_tls = stream.connection.info.transport_protocol == "tls";
    if !policy.allow_cross_scheme_redirect && (target.scheme() == "https") != arrived_by_tls {
        stats.passthrough_internal_redirect_unsafe_scheme.inc();
        return false;
    }
    if *count >= policy.max_internal_redirects {
        stats.passthrough_internal_redirect_too_many_redirects.inc();
        return false;
    }
    let mut next = original.clone();
    let url = [&original.scheme[..], b"://", &original.authority, &original.path].concat();
    if let Ok(url) = HeaderValue::from_bytes(&url) {
        next.headers.insert(ENVOY_ORIGINAL_URL, url);
    }
    next.scheme = Bytes::copy_from_slice(target.scheme().as_bytes());
    next.authority = Bytes::copy_from_slice(target[url::Position::BeforeHost..url::Position::AfterPort].as_bytes());
    next.path = Bytes::copy_from_slice(target[url::Position::BeforePath..url::Position::AfterQuery].as_bytes());
    if response.status == StatusCode::SEE_OTHER && !matches!(next.method, Method::GET | Method::HEAD) {
        next.method = Method::GET;
        next.headers.remove(header::CONTENT_LENGTH);
        next.headers.remove(header::CONTENT_TYPE);
    }
    for name in &policy.response_headers_to_copy {
        next.headers.remove(name);
        for value in response.headers.get_all(name) {
            next.headers.append(name, value.clone());
        }
    }
    let before = (std::mem::replace(&mut stream.request, next), stream.route.clone());
    let found = stream.find_route().is_ok();
    let allowed = found
        && stream
            .route
            .as_ref()
            .is_some_and(|route| allows(policy, before.1.as_deref(), route, target.scheme(), arrived_by_tls));
    if !allowed {
        let counter = if found {
            &stats.passthrough_internal_redirect_predicate
        } else {
            &stats.passthrough_internal_redirect_no_route
        };
        counter.inc();
        (stream.request, stream.route) = before;
        return false;
    }
    *count += 1;
    true
}

/// The URL that the request asked for.
pub fn own_location(head: &RequestHead) -> Option<HeaderValue> {
    let scheme = head.headers.get(FORWARDED_PROTO).map_or(&b"http"[..], HeaderValue::as_bytes);
    HeaderValue::from_bytes(&[scheme, b"://", &head.authority, &head.path].concat()).ok()
}

/// True if every predicate lets the redirect pass.
fn allows(
    policy: &InternalRedirectPolicy,
    from: Option<&MatchedRoute>,
    to: &MatchedRoute,
    scheme: &str,
    arrived_by_tls: bool,
) -> bool {
    policy.predicates.iter().all(|predicate| match predicate {
        RedirectPredicate::PreviousRoutes => from.is_none_or(|from| !Arc::ptr_eq(&from.route, &to.route)),
        RedirectPredicate::AllowListedRoutes(names) => {
            to.route.name.as_deref().is_some_and(|name| names.iter().any(|n| n == name))
        }
        RedirectPredicate::SafeCrossScheme => arrived_by_tls || scheme == "http",
    })
}
