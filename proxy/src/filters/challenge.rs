//! What a client is told whose request lacks credentials: `www-authenticate` with the URL that it asked for as the realm.

use crate::http::{header_names::*, stream::Stream};
use http::HeaderValue;

/// Bytes of a path that challenges repeat.
const LONGEST_PATH: usize = 256;

/// `SCHEME realm="..."` and what follows; `realm` in place of the URL.
pub fn challenge(stream: &Stream, scheme: &str, realm: Option<&str>, rest: &str) -> Option<HeaderValue> {
    let realm = realm.map_or_else(|| original_uri(stream), |realm| realm.as_bytes().to_vec());
    HeaderValue::from_bytes(&[scheme.as_bytes(), b" realm=\"", &realm, b"\"", rest.as_bytes()].concat()).ok()
}

/// The URL that the client asked for.
fn original_uri(stream: &Stream) -> Vec<u8> {
    let request = &stream.request;
    let path = request.headers.get(ENVOY_ORIGINAL_PATH).map_or(&request.path[..], HeaderValue::as_bytes);
    let scheme = request.headers.get(FORWARDED_PROTO).map_or(&b"http"[..], HeaderValue::as_bytes);
    [scheme, b"://", &request.authority, &path[..path.len().min(LONGEST_PATH)]].concat()
}
