//! Heads and bodies onto the wire, with Envoy's choices: what frames a body, how names are spelled.
//!
//! Used by both connections. Sans-I/O: everything goes into an [`Outbox`].

use super::{
    options::{HeaderKeyFormat, Http1ProtocolOptions},
    outbox::Outbox,
};
use crate::{
    http::{Protocol, RequestHead, ResponseHead, message::OriginalNames},
    transport::Pipe,
};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};

/// How the body of an outgoing message is framed, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEncoder {
    /// No head was sent yet.
    Waiting,
    /// There is none, whatever is given.
    Nothing,
    Length(u64),
    Chunked,
    /// Ends with the connection: HTTP/1.0 without a length, or a tunnel.
    Open,
    Done,
}

impl BodyEncoder {
    pub fn is_waiting(&self) -> bool {
        *self == Self::Waiting
    }

    pub fn is_done(&self) -> bool {
        *self == Self::Done
    }

    /// Takes data; more than was declared is dropped. False if that was so.
    pub fn data(&mut self, mut data: Bytes, out: &mut Outbox) -> bool {
        match self {
            Self::Waiting | Self::Done => data.is_empty(),
            Self::Nothing => true,
            _ if data.is_empty() => true,
            Self::Length(left) => {
                let fits = data.len() as u64 <= *left;
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                out.data(data);
                fits
            }
            Self::Chunked => {
                out.chunk_size(data.len());
                out.data(data);
                out.text(b"\r\n");
                true
            }
            Self::Open => {
                out.data(data);
                true
            }
        }
    }

    /// How many bytes it takes in pipes (`Some(None)`: any number).
    pub fn pipe_room(&self) -> Option<Option<u64>> {
        match self {
            Self::Length(left) => Some(Some(*left)),
            Self::Chunked | Self::Open => Some(None),
            Self::Waiting | Self::Nothing | Self::Done => None,
        }
    }

    /// Takes no more than [`BodyEncoder::pipe_room`] bytes in a pipe.
    pub fn pipe(&mut self, pipe: Pipe, out: &mut Outbox) {
        match self {
            Self::Length(left) => {
                *left = left.saturating_sub(pipe.held() as u64);
                out.pipe(pipe);
            }
            Self::Chunked => {
                out.chunk_size(pipe.held());
                out.pipe(pipe);
                out.text(b"\r\n");
            }
            Self::Open => out.pipe(pipe),
            Self::Waiting | Self::Nothing | Self::Done => {}
        }
    }

    /// Ends the body, with trailers if they are to be sent. False if less was given than was declared.
    pub fn end(&mut self, trailers: Option<&HeaderMap>, out: &mut Outbox) -> bool {
        let whole = !matches!(self, Self::Waiting | Self::Length(1..));
        if *self == Self::Chunked {
            out.text(b"0\r\n");
            for (name, value) in trailers.into_iter().flatten() {
                line(out, name.as_str().as_bytes(), value.as_bytes());
            }
            out.text(b"\r\n");
        }
        *self = Self::Done;
        whole
    }
}

fn line(out: &mut Outbox, name: &[u8], value: &[u8]) {
    out.text_with(name.len() + value.len() + 4, |text| {
        text.extend_from_slice(name);
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.extend_from_slice(b"\r\n");
    });
}

/// Writes header lines in the configured spelling.
struct Spelling<'a> {
    format: HeaderKeyFormat,
    original: Option<&'a OriginalNames>,
}

impl Spelling<'_> {
    fn line(&self, out: &mut Outbox, name: &str, value: &[u8]) {
        if let Some(original) = self.original {
            let same = |n: &&Bytes| n.eq_ignore_ascii_case(name.as_bytes());
            if let Some(spelled) = original.names.iter().find(same) {
                return line(out, spelled, value);
            }
        }
        match self.format {
            HeaderKeyFormat::ProperCaseWords | HeaderKeyFormat::PreserveCase { proper_case_on_added: true, .. } => {
                out.text_with(name.len(), |text| {
                    let mut first = true;
                    text.extend(name.bytes().map(|c| {
                        let spelled = if first { c.to_ascii_uppercase() } else { c };
                        first = !c.is_ascii_alphanumeric();
                        spelled
                    }));
                });
                out.text(b": ");
                out.text(value);
                out.text(b"\r\n");
            }
            _ => line(out, name.as_bytes(), value),
        }
    }

    /// All of them, but the framing headers and those of the connection unless they belong to an upgrade.
    fn headers(&self, out: &mut Outbox, headers: &HeaderMap, upgrade: bool) {
        for (name, value) in headers {
            let connection = *name == header::CONNECTION || *name == header::UPGRADE;
            if *name == header::TRANSFER_ENCODING || (connection && !upgrade) {
                continue;
            }
            self.line(out, name.as_str(), value.as_bytes());
        }
    }
}

fn declared(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Encodes a request head; `end`: it has no body. Returns how the body goes, and the bytes of header lines.
pub(super) fn request(
    head: &RequestHead,
    end: bool,
    options: &Http1ProtocolOptions,
    out: &mut Outbox,
) -> (BodyEncoder, u64) {
    let spelling = Spelling { format: options.header_key_format, original: head.original_names.as_deref() };
    let connect = head.is_connect();
    let upgrade = head.upgrade.as_ref();
    // An extended CONNECT becomes an upgrade, which is a GET.
    let method = if upgrade.is_some() && head.method == Method::CONNECT { "GET" } else { head.method.as_str() };
    out.text(method.as_bytes());
    out.text(b" ");
    if connect {
        out.text(&head.authority);
    } else {
        if options.send_fully_qualified_url {
            out.text(if head.scheme.is_empty() { b"http" } else { &head.scheme });
            out.text(b"://");
            out.text(&head.authority);
        }
        out.text(&head.path);
    }
    out.text(b" HTTP/1.1\r\n");
    let before = out.total();
    spelling.line(out, "host", &head.authority);
    spelling.headers(out, &head.headers, upgrade.is_some());
    if let Some(protocol) = upgrade {
        if !head.headers.contains_key(header::CONNECTION) {
            spelling.line(out, "connection", b"upgrade");
        }
        if !head.headers.contains_key(header::UPGRADE) {
            spelling.line(out, "upgrade", protocol);
        }
    }
    let encoder = if connect || upgrade.is_some() {
        BodyEncoder::Open
    } else if let Some(length) = declared(&head.headers) {
        BodyEncoder::Length(length)
    } else if end {
        let bodiless = [Method::GET, Method::HEAD, Method::DELETE, Method::TRACE].contains(&head.method);
        if !bodiless {
            spelling.line(out, "content-length", b"0");
        }
        BodyEncoder::Nothing
    } else {
        spelling.line(out, "transfer-encoding", b"chunked");
        BodyEncoder::Chunked
    };
    let size = out.total() - before;
    out.text(b"\r\n");
    (encoder, size)
}

/// What of the request and the connection decides how a response is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub protocol: Protocol,
    pub to_head: bool,
    pub to_connect: bool,
    pub to_upgrade: bool,
    /// The connection closes after it.
    pub close: bool,
}

impl Reply {
    /// True if `status` turns the connection into a tunnel.
    pub fn tunnels(&self, status: StatusCode) -> bool {
        (self.to_upgrade && status == StatusCode::SWITCHING_PROTOCOLS) || (self.to_connect && status.is_success())
    }
}

/// Encodes a response head; `end`: it has no body. Returns how the body goes, and the bytes of header lines.
pub(super) fn response(
    head: &ResponseHead,
    end: bool,
    reply: Reply,
    options: &Http1ProtocolOptions,
    out: &mut Outbox,
) -> (BodyEncoder, u64) {
    let status = head.status;
    let spelling = Spelling { format: options.header_key_format, original: head.original_names.as_deref() };
    let http10 = reply.protocol == Protocol::Http10 && options.accept_http_10;
    out.text(if http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.text(status.as_str().as_bytes());
    out.text(b" ");
    let spelled = spelling.original.and_then(|names| names.reason.as_deref()).filter(|reason| !reason.is_empty());
    out.text(spelled.unwrap_or(reason(status).as_bytes()));
    out.text(b"\r\n");
    let before = out.total();
    let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
    spelling.headers(out, &head.headers, upgraded);
    if upgraded && !head.headers.contains_key(header::CONNECTION) {
        spelling.line(out, "connection", b"upgrade");
    }
    let tunnel = reply.tunnels(status);
    if !tunnel && !status.is_informational() {
        if reply.close {
            spelling.line(out, "connection", b"close");
        } else if http10 {
            spelling.line(out, "connection", b"keep-alive");
        }
    }
    let encoder = if tunnel {
        BodyEncoder::Open
    } else if status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        BodyEncoder::Nothing
    } else if let Some(length) = declared(&head.headers) {
        if reply.to_head { BodyEncoder::Nothing } else { BodyEncoder::Length(length) }
    } else if end && !reply.to_head {
        spelling.line(out, "content-length", b"0");
        BodyEncoder::Nothing
    } else if reply.protocol == Protocol::Http10 {
        if reply.to_head { BodyEncoder::Nothing } else { BodyEncoder::Open }
    } else {
        spelling.line(out, "transfer-encoding", b"chunked");
        if reply.to_head { BodyEncoder::Nothing } else { BodyEncoder::Chunked }
    };
    let size = out.total() - before;
    out.text(b"\r\n");
    (encoder, size)
}

/// True if a body of unknown length can only end with the connection.
pub(super) fn needs_close(headers: &HeaderMap, status: StatusCode, end: bool, reply: &Reply) -> bool {
    reply.protocol == Protocol::Http10
        && !end
        && !reply.to_head
        && declared(headers).is_none()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The reason phrase in Envoy's words, which are not the `http` crate's for some; `Unknown` where it has none.
fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        203 => "Non-Authoritative Information",
        418 | 451 => "Unknown",
        599 => "Last Unassigned Server Error Code",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
