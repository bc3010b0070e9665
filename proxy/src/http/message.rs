//! Heads of requests and responses as every codec reads and writes them.
//!
//! Invariant: `headers` never holds pseudo-headers, `Host` (it is [`RequestHead::authority`]), or the framing headers
//! of a protocol (`transfer-encoding`, `content-length` stays as the sender gave it when it was valid and applies).

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

/// The protocol that a message came by; `%PROTOCOL%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
}

impl Protocol {
    /// As Envoy prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// A request without its body.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub protocol: Protocol,
    pub method: Method,
    /// `:scheme`; empty when the client sent none (HTTP/1 in origin form): the connection manager decides it.
    pub scheme: Bytes,
    /// `Host` or `:authority`; empty when absent. Visible ASCII and obs-text only.
    pub authority: Bytes,
    /// Path with query, as sent (`:path`); empty for CONNECT without a path.
    pub path: Bytes,
    /// `:protocol` of an extended CONNECT, or the `Upgrade` header's value of an HTTP/1 upgrade request
    /// (the codec removes `Connection: upgrade` and keeps the `upgrade` header itself).
    pub upgrade: Option<Bytes>,
    pub headers: HeaderMap,
    /// Original spelling of header names, when `stateful_formatter: preserve_case` is configured.
    pub original_names: Option<Box<OriginalNames>>,
}

/// A response without its body.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub protocol: Protocol,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub original_names: Option<Box<OriginalNames>>,
}

/// Header names as they were spelled on the wire, in order, and the reason phrase if it is to be forwarded.
#[derive(Clone, Debug, Default)]
pub struct OriginalNames {
    pub names: Vec<Bytes>,
    pub reason: Option<Bytes>,
}

impl RequestHead {
    /// An empty request of `method`, for building one up.
    pub fn new(method: Method, path: impl Into<Bytes>) -> Self {
        Self {
            protocol: Protocol::Http11,
            method,
            scheme: Bytes::new(),
            authority: Bytes::new(),
            path: path.into(),
            upgrade: None,
            headers: HeaderMap::new(),
            original_names: None,
        }
    }

    /// True for CONNECT without `:protocol`.
    pub fn is_connect(&self) -> bool {
        self.method == Method::CONNECT && self.upgrade.is_none()
    }

    /// The path without query and fragment.
    pub fn path_only(&self) -> &[u8] {
        let end = memchr::memchr2(b'?', b'#', &self.path).unwrap_or(self.path.len());
        &self.path[..end]
    }
}

impl ResponseHead {
    pub fn new(status: StatusCode) -> Self {
        Self { protocol: Protocol::Http11, status, headers: HeaderMap::new(), original_names: None }
    }
}

/// The query of a path, without `?` and fragment; empty if there is none.
pub fn query_of(path: &[u8]) -> &str {
    let query = memchr::memchr(b'?', path).map_or(&b""[..], |at| &path[at + 1..]);
    let query = &query[..memchr::memchr(b'#', query).unwrap_or(query.len())];
    std::str::from_utf8(query).unwrap_or_default()
}

/// The first value of a query parameter, as it was sent.
pub fn query_parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}
