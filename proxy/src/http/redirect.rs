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

/// The redirects that one stream followed: from which route to which, by name.
#[derive(Default)]
pub struct Followed(Vec<(RouteName, RouteName)>);

type RouteName = Option<Arc<str>>;

/// Follows the response's `location` if the policy allows it: the stream then has a new request and route. What the
/// route that is left did to the request's headers stays.
pub fn follow(
    stream: &mut Stream,
    policy: &InternalRedirectPolicy,
    response: &ResponseHead,
    followed: &mut Followed,
) -> bool {
    if !policy.codes.contains(&response.status.as_u16()) {
        return false;
    }
    let stats = stream.connection.stats.clone();
    let location = response.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    // Only absolute URLs: a relative one is the client's to resolve.
    let Some(target) = location
        .filter(|location| !location.contains(' '))
        .and_then(|location| url::Url::parse(location).ok())
        .filter(url::Url::has_host)
    else {
        stats.passthrough_internal_redirect_bad_location.inc();
        return false;
    };
    let arrived_by_tls = stream.connection.info.tls.is_some();
    let was_plain = stream.request.scheme == "http" || !arrived_by_tls;
    if !policy.allow_cross_scheme_redirect && (target.scheme() == "http") != was_plain {
        stats.passthrough_internal_redirect_unsafe_scheme.inc();
        return false;
    }
    if followed.0.len() >= policy.max_internal_redirects as usize {
        stats.passthrough_internal_redirect_too_many_redirects.inc();
        return false;
    }
    let mut next = stream.request.clone();
    let scheme: &[u8] = if was_plain { b"http" } else { b"https" };
    let url = [scheme, b"://", &next.authority, &next.path].concat();
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
            .is_some_and(|route| allows(policy, before.1.as_deref(), route, followed, target.scheme(), was_plain));
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
    stream.redirected(response.status);
    let name = |route: Option<&MatchedRoute>| route.and_then(|route| route.route.name.clone());
    followed.0.push((name(before.1.as_deref()), name(stream.route.as_deref())));
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
    followed: &Followed,
    scheme: &str,
    was_plain: bool,
) -> bool {
    policy.predicates.iter().all(|predicate| match predicate {
        RedirectPredicate::PreviousRoutes => {
            let from = from.and_then(|from| from.route.name.clone());
            !followed.0.contains(&(from, to.route.name.clone()))
        }
        RedirectPredicate::AllowListedRoutes(names) => {
            to.route.name.as_deref().is_some_and(|name| names.iter().any(|n| n == name))
        }
        RedirectPredicate::SafeCrossScheme => !was_plain || scheme != "https",
    })
}
