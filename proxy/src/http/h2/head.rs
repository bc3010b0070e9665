//! Heads between the crate's form (`http::Request`, `http::Response`) and ours, with the checks that the crate leaves out.

use super::{
    error,
    options::{ServerOptions, UnderscoreAction},
};
use crate::http::{Protocol, RequestHead, ResponseHead, header_names};
use bytes::{Bytes, BytesMut};
use h2::ext;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    uri,
};

/// Why a head that the crate let pass is not served.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    /// Against HTTP's rules: ends the connection, or the stream if so configured.
    Messaging,
    /// Against a limit or policy of ours: ends the stream. Envoy's response code details.
    Policy(&'static str),
}

/// A request as the connection manager gets it, and the length that its `content-length` declares.
pub(super) fn request(
    request: Request<()>,
    options: &ServerOptions,
) -> Result<(RequestHead, Option<u64>), (Refusal, Box<RequestHead>)> {
    let (mut parts, ()) = request.into_parts();
    let protocol = parts.extensions.remove::<ext::Protocol>();
    let mut head = RequestHead::new(parts.method, Bytes::new());
    head.protocol = Protocol::Http2;
    head.scheme = scheme(parts.uri.scheme());
    head.authority = copy(parts.uri.authority().map(uri::Authority::as_str));
    head.path = copy(parts.uri.path_and_query().map(uri::PathAndQuery::as_str));
    head.headers = parts.headers;
    let checked = check(&mut head, protocol.is_some(), options);
    if let Some(protocol) = protocol {
        upgrade(&mut head, protocol.as_str());
    }
    match checked {
        Ok(length) => Ok((head, length)),
        Err(refusal) => Err((refusal, Box::new(head))),
    }
}

fn check(head: &mut RequestHead, extended: bool, options: &ServerOptions) -> Result<Option<u64>, Refusal> {
    let host = head.headers.remove(HOST);
    if head.authority.is_empty() {
        head.authority = host.map(|host| Bytes::copy_from_slice(host.as_bytes())).unwrap_or_default();
    }
    if head.authority.is_empty() || head.authority.contains(&b'@') {
        return Err(Refusal::Messaging);
    }
    if head.method != Method::CONNECT || extended {
        let star = head.method == Method::OPTIONS && *head.path == *b"*";
        if head.path.first() != Some(&b'/') && !star {
            return Err(Refusal::Messaging);
        }
    }
    let length = content_length(&head.headers)?;
    join_cookies(&mut head.headers);
    let stats = &options.stats;
    // Pseudo-headers count: `:method`, `:authority`, and `:scheme`, `:path`, `:protocol` where they are.
    let pseudo = [&b":method"[..], b":authority", b":scheme", b":path"];
    let values = [head.method.as_str().len(), head.authority.len(), head.scheme.len(), head.path.len()];
    let bytes =
        size(&head.headers) + pseudo.iter().map(|name| name.len()).sum::<usize>() + values.iter().sum::<usize>();
    if head.headers.len() + pseudo.len() > options.max_headers_count as usize {
        stats.header_overflow.inc();
        return Err(Refusal::Policy(error::TOO_MANY_HEADERS));
    }
    if bytes > options.max_request_headers_kb as usize * 1024 {
        stats.header_list_size_too_large.inc();
        return Err(Refusal::Policy(error::TOO_MANY_HEADERS));
    }
    underscores(head, options)?;
    Ok(length)
}

fn underscores(head: &mut RequestHead, options: &ServerOptions) -> Result<(), Refusal> {
    if options.headers_with_underscores_action == UnderscoreAction::Allow {
        return Ok(());
    }
    let names: Vec<HeaderName> = head.headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    if options.headers_with_underscores_action == UnderscoreAction::RejectRequest && !names.is_empty() {
        options.stats.requests_rejected_with_underscores_in_headers.inc();
        return Err(Refusal::Policy(error::UNDERSCORE));
    }
    for name in names {
        options.stats.dropped_headers_with_underscores.inc();
        head.headers.remove(name);
    }
    Ok(())
}

/// An extended CONNECT becomes the upgrade request that it stands for (RFC 8441).
fn upgrade(head: &mut RequestHead, protocol: &str) {
    head.method = Method::GET;
    head.upgrade = Some(Bytes::copy_from_slice(protocol.as_bytes()));
    if let Ok(value) = HeaderValue::from_str(protocol) {
        head.headers.insert(UPGRADE, value);
    }
}

/// The declared length; it may be declared once only. The crate has checked that it is a number.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let length = first.to_str().ok().and_then(|length| length.parse().ok());
    match (length, values.next()) {
        (Some(length), None) => Ok(Some(length)),
        _ => Err(Refusal::Messaging),
    }
}

/// Cookies come split into one header field each, for HPACK's sake.
fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (values.next(), values.next()) else { return };
    let mut joined = BytesMut::from(first.as_bytes());
    for value in std::iter::once(second).chain(values) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(value.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(joined.freeze()) {
        headers.insert(COOKIE, value);
    }
}

/// Names and values together, in bytes.
pub(super) fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// A response as the crate sends it. `upgraded`: the request was an extended CONNECT, whose 101 is a 200.
pub(super) fn send_response(head: ResponseHead, upgraded: bool) -> Response<()> {
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = head.headers;
    *response.status_mut() = match head.status {
        StatusCode::SWITCHING_PROTOCOLS if upgraded => StatusCode::OK,
        status => status,
    };
    remove_connection_headers(response.headers_mut());
    response
}

/// A response as the router gets it. `upgrade`: the request asked for one by extended CONNECT; a 200 grants it.
pub(super) fn response(response: Response<()>, upgrade: Option<&Bytes>) -> ResponseHead {
    let (parts, ()) = response.into_parts();
    let mut head = ResponseHead::new(parts.status);
    head.protocol = Protocol::Http2;
    head.headers = parts.headers;
    if let Some(upgrade) = upgrade.filter(|_| head.status == StatusCode::OK)
        && let Ok(value) = HeaderValue::from_maybe_shared(upgrade.clone())
    {
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.headers.insert(UPGRADE, value);
    }
    head
}

/// A request as the crate sends it. `None` if its target cannot be said in HTTP/2.
pub(super) fn send_request(head: &RequestHead) -> Option<Request<()>> {
    let mut parts = uri::Parts::default();
    let connect = head.is_connect();
    if !head.authority.is_empty() {
        parts.authority = Some(uri::Authority::from_maybe_shared(head.authority.clone()).ok()?);
    }
    if !connect {
        parts.path_and_query = Some(uri::PathAndQuery::from_maybe_shared(head.path.clone()).ok()?);
        if parts.authority.is_some() {
            parts.scheme = Some(match &head.scheme[..] {
                b"https" => uri::Scheme::HTTPS,
                b"http" | b"" => uri::Scheme::HTTP,
                other => other.try_into().ok()?,
            });
        }
    }
    let mut request = Request::new(());
    // The crate takes a request without authority only from HTTP/1.
    *request.version_mut() = if parts.authority.is_some() { Version::HTTP_2 } else { Version::HTTP_11 };
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = head.headers.clone();
    if let Some(upgrade) = &head.upgrade {
        *request.method_mut() = Method::CONNECT;
        let protocol = std::str::from_utf8(upgrade).ok()?;
        request.extensions_mut().insert(ext::Protocol::from(protocol));
        if request.headers().get(CONTENT_LENGTH).is_some_and(|length| length == "0") {
            request.headers_mut().remove(CONTENT_LENGTH);
        }
    }
    let headers = request.headers_mut();
    remove_connection_headers(headers);
    headers.remove(HOST);
    if let Some(te) = headers.get(TE).filter(|te| *te != "trailers") {
        let trailers = te.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
    Some(request)
}

/// HTTP/2 has no connection headers; the crate refuses to send them.
pub(super) fn remove_connection_headers(headers: &mut HeaderMap) {
    if !header_names::has_connection_headers(headers) {
        return;
    }
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, header_names::KEEP_ALIVE, header_names::PROXY_CONNECTION] {
        headers.remove(name);
    }
}

fn scheme(scheme: Option<&uri::Scheme>) -> Bytes {
    match scheme.map(uri::Scheme::as_str) {
        None => Bytes::new(),
        Some("http") => Bytes::from_static(b"http"),
        Some("https") => Bytes::from_static(b"https"),
        Some(other) => Bytes::copy_from_slice(other.as_bytes()),
    }
}

fn copy(part: Option<&str>) -> Bytes {
    part.map(|part| Bytes::copy_from_slice(part.as_bytes())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(headers: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::builder().uri("http://example.com/a?b");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("valid")
    }

    #[test]
    fn requests_lose_nothing() {
        let (head, length) = request(
            get(&[("cookie", "a=1"), ("cookie", "b=2"), ("host", "other"), ("content-length", "7")]),
            &ServerOptions::default(),
        )
        .expect("valid");
        assert_eq!(
            (&head.authority[..], &head.path[..], &head.scheme[..]),
            (&b"example.com"[..], &b"/a?b"[..], &b"http"[..])
        );
        assert_eq!(head.headers["cookie"], "a=1; b=2");
        assert!(!head.headers.contains_key("host"));
        assert_eq!(length, Some(7));
    }

    #[test]
    fn limits_are_of_the_stream() {
        let options = ServerOptions { max_headers_count: 5, max_request_headers_kb: 1, ..Default::default() };
        let refusal = |headers: &[(&'static str, &'static str)]| {
            request(get(headers), &options).map_err(|(refusal, _)| refusal).err()
        };
        assert_eq!(refusal(&[("x-a", "1")]), None);
        assert_eq!(refusal(&[("x-a", "1"), ("x-b", "1")]), Some(Refusal::Policy(error::TOO_MANY_HEADERS)));
        let long: &'static str = "x".repeat(1024).leak();
        assert_eq!(refusal(&[("x-a", long)]), Some(Refusal::Policy(error::TOO_MANY_HEADERS)));
        assert_eq!((options.stats.header_overflow.get(), options.stats.header_list_size_too_large.get()), (1, 1));
    }

    #[test]
    fn rules_are_of_the_connection() {
        let refusal = |r: Request<()>| request(r, &ServerOptions::default()).map_err(|(refusal, _)| refusal).err();
        assert_eq!(refusal(get(&[("content-length", "1"), ("content-length", "1")])), Some(Refusal::Messaging));
        assert_eq!(refusal(Request::builder().uri("/x").body(()).expect("valid")), Some(Refusal::Messaging));
        assert_eq!(refusal(Request::builder().uri("http://u@h/").body(()).expect("valid")), Some(Refusal::Messaging));
        assert_eq!(refusal(Request::builder().uri("http://h").method("CONNECT").body(()).expect("valid")), None);
    }

    #[test]
    fn upgrades_are_connects_on_the_wire() {
        let mut head = RequestHead::new(Method::GET, "/chat");
        head.authority = Bytes::from_static(b"h");
        head.upgrade = Some(Bytes::from_static(b"websocket"));
        head.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        head.headers.insert(TE, HeaderValue::from_static("gzip, trailers"));
        let sent = send_request(&head).expect("sayable");
        assert_eq!(sent.method(), Method::CONNECT);
        assert_eq!(sent.extensions().get::<ext::Protocol>().map(|p| p.as_str()), Some("websocket"));
        assert!(!sent.headers().contains_key(UPGRADE));
        assert_eq!(sent.headers()[TE], "trailers");
        let granted = response(Response::new(()), Some(&Bytes::from_static(b"websocket")));
        assert_eq!(granted.status, StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(send_response(granted, true).status(), StatusCode::OK);
    }
}
