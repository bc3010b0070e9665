//! Heads of requests and responses: finding their end, and taking them apart.
//!
//! Used by both connections. Sans-I/O: [`HeadScan`] looks for the end of a head in what was read so far, and checks the
//! start line as soon as it is there; [`request`] and [`response`] take the whole head. A head is copied once, and the
//! values in it are slices of that copy. Which malformed messages are accepted is what Envoy accepts.

use super::{
    body::BodyDecoder,
    details::*,
    fields::{self, has_token, is_forbidden, join, tokens},
    options::{HeadLimits, HeaderKeyFormat, Http1ProtocolOptions},
    target,
};
use crate::http::{Protocol, RequestHead, ResponseHead, message::OriginalNames};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

/// Room for so many headers is made at once.
const USUAL_HEADERS: usize = 12;
/// How many names `Connection` may have.
const MAX_NOMINATED: usize = 9;

/// Which start line to expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request { custom_methods: bool },
    Response,
}

/// Looks for the end of a head; remembers how far it came.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    at: usize,
    line: usize,
    started: bool,
    /// Bytes of empty lines that were skipped.
    pub skipped: usize,
}

impl HeadScan {
    /// True once the start line was seen.
    pub fn started(&self) -> bool {
        self.started
    }

    /// The length of the head at the front of `buf` once it is whole.
    pub fn scan(&mut self, buf: &mut BytesMut, kind: Kind, max: usize) -> Result<Option<usize>, BadMessage> {
        if self.at == 0 {
            // Only requests may have empty lines before them.
            let request = kind != Kind::Response;
            let skip = buf.iter().take_while(|c| request && matches!(c, b'\r' | b'\n')).count();
            buf.advance(skip);
            self.skipped += skip;
            // No response begins with anything else; why wait for the end of its line.
            if buf.first().is_some_and(|c| if request { *c <= b' ' } else { *c != b'H' }) {
                return Err(CODEC_ERROR);
            }
        }
        while let Some(n) = memchr::memchr(b'\n', &buf[self.at..]) {
            let line = &buf[self.line..self.at + n];
            self.at += n + 1;
            self.line = self.at;
            if self.at > max {
                return Err(HEADERS_TOO_LARGE);
            }
            if !self.started {
                self.started = true;
                if check_start_line(line, kind)? {
                    return Ok(Some(self.at));
                }
            } else if line.is_empty() || line == b"\r" {
                return Ok(Some(self.at));
            }
        }
        self.at = buf.len();
        if buf.len() >= max { Err(HEADERS_TOO_LARGE) } else { Ok(None) }
    }
}

/// The three words of a start line. The last one takes the rest of the line.
fn words(line: &[u8]) -> [&[u8]; 3] {
    let word = |line: &mut &[u8], whole: bool| {
        let rest = *line;
        let begin = rest.iter().position(|c| *c > b' ').unwrap_or(rest.len());
        let rest = &rest[begin..];
        let end = if whole { rest.len() } else { rest.iter().position(|c| *c <= b' ').unwrap_or(rest.len()) };
        let (word, rest) = (&rest[..end], &rest[end..]);
        *line = rest;
        let trimmed = word.iter().rposition(|c| *c > b' ').map_or(0, |n| n + 1);
        (begin, end.min(trimmed))
    };
    let mut at = 0;
    let mut rest = line;
    let mut out: [&[u8]; 3] = [&[]; 3];
    for (i, slot) in out.iter_mut().enumerate() {
        let before = rest.len();
        let (begin, len) = word(&mut rest, i == 2);
        *slot = &line[at + begin..at + begin + len];
        at += before - rest.len();
    }
    out
}

/// Checks what can be told from the start line alone; true if the head ends with it (HTTP/0.9).
fn check_start_line(line: &[u8], kind: Kind) -> Result<bool, BadMessage> {
    let [first, second, third] = words(line);
    let version =
        |v: &[u8]| matches!(v, [b'H', b'T', b'T', b'P', b'/', a, b'.', b] if a.is_ascii_digit() && b.is_ascii_digit());
    let ok = match kind {
        Kind::Request { custom_methods } => {
            let known = if custom_methods { Method::from_bytes(first).is_ok() } else { is_known_method(first) };
            known && target::is_valid(second, first == b"CONNECT") && (third.is_empty() || version(third))
        }
        Kind::Response => version(first) && status(second).is_some(),
    };
    if !ok {
        return Err(CODEC_ERROR);
    }
    Ok(third.is_empty() && kind != Kind::Response)
}

fn status(word: &[u8]) -> Option<StatusCode> {
    StatusCode::from_bytes(word).ok()
}

/// The methods that are known unless custom ones are allowed: http-parser's list and QUERY, as Envoy has it.
fn is_known_method(method: &[u8]) -> bool {
    matches!(
        method,
        b"GET"
            | b"POST"
            | b"PUT"
            | b"HEAD"
            | b"DELETE"
            | b"OPTIONS"
            | b"PATCH"
            | b"CONNECT"
            | b"TRACE"
            | b"ACL"
            | b"BIND"
            | b"CHECKOUT"
            | b"COPY"
            | b"LINK"
            | b"LOCK"
            | b"MERGE"
            | b"MKACTIVITY"
            | b"MKCALENDAR"
            | b"MKCOL"
            | b"MOVE"
            | b"MSEARCH"
            | b"NOTIFY"
            | b"PROPFIND"
            | b"PROPPATCH"
            | b"PURGE"
            | b"QUERY"
            | b"REBIND"
            | b"REPORT"
            | b"SEARCH"
            | b"SOURCE"
            | b"SUBSCRIBE"
            | b"UNBIND"
            | b"UNLINK"
            | b"UNLOCK"
            | b"UNSUBSCRIBE"
    )
}

/// The header lines with those that frame the message or concern the connection taken out.
#[derive(Default)]
struct Lines {
    headers: HeaderMap,
    host: Option<Bytes>,
    connection: Option<Bytes>,
    upgrade: Option<Bytes>,
    te: Option<Bytes>,
    transfer_encoding: Option<Bytes>,
    proxy_connection: Option<Bytes>,
    content_length: Option<Result<u64, ()>>,
    size: u64,
}

impl Lines {
    fn parse(
        head: &Bytes,
        request: bool,
        limits: &HeadLimits,
        names: Option<&mut Vec<Bytes>>,
    ) -> Result<Self, BadMessage> {
        let start = memchr::memchr(b'\n', head).map_or(head.len(), |n| n + 1);
        if head[..start].iter().any(|c| is_forbidden(*c)) {
            return Err(INVALID_CHARACTERS);
        }
        let mut lines = Self { headers: HeaderMap::with_capacity(USUAL_HEADERS), ..Self::default() };
        lines.size = fields::parse(head, start, limits.headers, names, |name, value, at| {
            lines.take(name, value, || head.slice(at), request)
        })?;
        Ok(lines)
    }

    /// `raw` gives the value as it stands in the head; folded ones still have their line breaks there.
    fn take(
        &mut self,
        name: HeaderName,
        value: HeaderValue,
        raw: impl FnOnce() -> Bytes,
        request: bool,
    ) -> Result<(), BadMessage> {
        let slot = match name.as_str() {
            "host" if request => &mut self.host,
            "te" if request => &mut self.te,
            "connection" => &mut self.connection,
            "upgrade" => &mut self.upgrade,
            "transfer-encoding" => &mut self.transfer_encoding,
            "proxy-connection" => &mut self.proxy_connection,
            "keep-alive" => return Ok(()),
            "content-length" => {
                // A second one is an error even where it is the same (Envoy disallows it).
                let repeated = self.content_length.is_some();
                self.content_length = Some(content_length(value.as_bytes()));
                if repeated {
                    return Err(CODEC_ERROR);
                }
                return self.append(name, value);
            }
            _ => return self.append(name, value),
        };
        join(slot, &value, raw);
        Ok(())
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), BadMessage> {
        self.headers.try_append(name, value).map_err(|_| TOO_MANY_HEADERS).map(|_| ())
    }

    /// Sets one of the headers taken out again.
    fn restore(&mut self, name: HeaderName, value: Option<Bytes>) {
        if let Some(value) = value.and_then(|value| HeaderValue::from_maybe_shared(value).ok()) {
            self.headers.insert(name, value);
        }
    }

    fn connection_has(&self, token: &str) -> bool {
        self.connection.as_deref().is_some_and(|list| has_token(list, token))
    }

    fn is_upgrade(&self) -> bool {
        self.upgrade.is_some() && self.connection_has("upgrade")
    }

    /// How the body is framed, by headers alone; `None` if they say nothing.
    fn framing(&mut self, connect: bool, options: &Http1ProtocolOptions) -> Result<Option<BodyDecoder>, BadMessage> {
        let chunked = self.transfer_encoding.as_deref().is_some_and(|te| te.eq_ignore_ascii_case(b"chunked"));
        if self.content_length == Some(Err(())) && !chunked {
            return Err(CODEC_ERROR);
        }
        if self.transfer_encoding.is_some() && self.content_length.is_some() {
            if !(chunked && options.allow_chunked_length) {
                return Err(CHUNKED_CONTENT_LENGTH);
            }
            self.headers.remove(header::CONTENT_LENGTH);
            self.content_length = None;
        }
        if self.transfer_encoding.is_some() && (!chunked || connect) {
            return Err(TRANSFER_ENCODING);
        }
        Ok(match self.content_length {
            _ if chunked => Some(BodyDecoder::chunked(options.enable_trailers)),
            Some(Ok(length)) => Some(BodyDecoder::length(length)),
            _ => None,
        })
    }

    /// Whether the connection may serve another exchange after this one.
    fn keep_alive(&self, protocol: Protocol) -> bool {
        let says = |list: &Option<Bytes>, token| list.as_deref().is_some_and(|list| has_token(list, token));
        if says(&self.connection, "close") || says(&self.proxy_connection, "close") {
            return false;
        }
        protocol != Protocol::Http10
            || says(&self.connection, "keep-alive")
            || says(&self.proxy_connection, "keep-alive")
    }

    /// Removes the headers that `Connection` names.
    fn drop_nominated(&mut self) -> Result<(), BadMessage> {
        let Some(list) = self.connection.clone() else { return Ok(()) };
        if tokens(&list).count() > MAX_NOMINATED {
            return Err(CONNECTION_HEADER);
        }
        for token in tokens(&list) {
            match token.to_ascii_lowercase().as_slice() {
                b"close" | b"keep-alive" | b"connection" | b"upgrade" => {}
                // What a client may not have removed, since those behind rely on it.
                b"x-forwarded-for" | b"x-forwarded-host" | b"x-forwarded-proto" => return Err(CONNECTION_HEADER),
                [b':', ..] => return Err(CONNECTION_HEADER),
                b"host" => self.host = None,
                b"te" if self.te.as_ref().is_some_and(|te| te.len() >= 256) => return Err(CONNECTION_HEADER),
                // `trailers` is hop-by-hop too, but gRPC upstreams want it: Envoy keeps it, as it does without a nomination.
                b"te" => {}
                name => {
                    if let Ok(name) = HeaderName::from_bytes(name) {
                        self.headers.remove(name);
                    }
                }
            }
        }
        Ok(())
    }
}

fn content_length(value: &[u8]) -> Result<u64, ()> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(());
    }
    std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).ok_or(())
}

fn original_names(format: HeaderKeyFormat) -> Option<Box<OriginalNames>> {
    matches!(format, HeaderKeyFormat::PreserveCase { .. }).then(Box::default)
}

/// A request head taken apart.
#[derive(Debug)]
pub(super) struct Request {
    pub head: RequestHead,
    pub body: BodyDecoder,
    pub keep_alive: bool,
    /// Bytes of names and values as Envoy counts them.
    pub size: u64,
    /// `Host` (or an absolute URL's) was there, if only empty.
    pub has_host: bool,
}

/// What is wrong with a request head, and what was readable of it.
#[derive(Debug)]
pub(super) struct Rejected {
    pub bad: BadMessage,
    pub head: Option<Box<RequestHead>>,
}

impl From<BadMessage> for Rejected {
    fn from(bad: BadMessage) -> Self {
        Self { bad, head: None }
    }
}

/// Takes apart a request head that [`HeadScan`] found.
pub(super) fn request(head: &[u8], limits: &HeadLimits, options: &Http1ProtocolOptions) -> Result<Request, Rejected> {
    let head = Bytes::copy_from_slice(head);
    let mut names = original_names(options.header_key_format);
    let mut lines = Lines::parse(&head, true, limits, names.as_deref_mut().map(|n| &mut n.names))?;
    let line = &head[..memchr::memchr(b'\n', &head).unwrap_or(head.len())];
    let [method, url, version] = words(line);
    let method = Method::from_bytes(method).map_err(|_| CODEC_ERROR)?;
    let protocol = if version == b"HTTP/1.1" { Protocol::Http11 } else { Protocol::Http10 };
    let connect = method == Method::CONNECT;

    let mut upgrading = lines.is_upgrade();
    if upgrading {
        let value = lines.upgrade.as_deref().unwrap_or_default();
        if value.eq_ignore_ascii_case(b"h2c") {
            lines.headers.remove("http2-settings");
            upgrading = false;
        } else if !options.ignore_http_11_upgrade.is_empty() {
            let value = String::from_utf8_lossy(value);
            upgrading = !options.ignore_http_11_upgrade.iter().any(|ignored| ignored.matches(&*value));
        }
    }
    if connect {
        match lines.content_length {
            Some(Ok(0)) => {
                lines.headers.remove(header::CONTENT_LENGTH);
                lines.content_length = None;
            }
            Some(Ok(_)) => return Err(BODY_DISALLOWED.into()),
            _ => {}
        }
    }
    let framing = lines.framing(connect, options)?;
    let keep_alive = lines.keep_alive(protocol);
    if !upgrading {
        lines.drop_nominated()?;
    }
    let target = target::parse(head.slice_ref(url), &method, options.allow_absolute_url)?;
    if protocol == Protocol::Http10 && !options.accept_http_10 {
        return Err(LOW_VERSION.into());
    }
    let mut host = target.authority.or(lines.host.take());
    if host.is_none() && protocol == Protocol::Http10 && !options.default_host_for_http_10.is_empty() {
        host = Some(options.default_host_for_http_10.clone().into());
    }
    if host.as_deref().is_some_and(|host| !host.iter().all(|c| target::is_authority_char(*c) || *c == b',')) {
        return Err(INVALID_AUTHORITY.into());
    }
    let is_trailers =
        |word: &[u8]| word.split(|b| *b == b';').next().is_some_and(|word| word.trim_ascii() == b"trailers");
    if lines.te.take().is_some_and(|te| te.split(|b| *b == b',').any(is_trailers)) {
        lines.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let upgrade = if upgrading {
        // They go on as they came.
        let connection = lines.connection.take();
        lines.restore(header::CONNECTION, connection);
        let upgrade = lines.upgrade.clone();
        lines.restore(header::UPGRADE, upgrade);
        lines.upgrade.take()
    } else {
        None
    };
    let body = match framing {
        _ if upgrading || connect => BodyDecoder::raw(),
        Some(framing) => framing,
        None => BodyDecoder::none(),
    };
    Ok(Request {
        has_host: host.is_some(),
        head: RequestHead {
            protocol,
            method,
            scheme: target.scheme,
            authority: host.unwrap_or_default(),
            path: target.path,
            upgrade,
            headers: lines.headers,
            original_names: names,
        },
        body,
        keep_alive,
        size: lines.size,
    })
}

/// What of the request decides how its response is framed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    pub head: bool,
    pub connect: bool,
    pub upgrade: bool,
}

/// A response head taken apart.
#[derive(Debug)]
pub(super) struct Response {
    pub head: ResponseHead,
    pub body: BodyDecoder,
    pub keep_alive: bool,
    /// Bytes of names and values as Envoy counts them.
    pub size: u64,
}

/// Takes apart a response head that [`HeadScan`] found.
pub(super) fn response(
    head: &[u8],
    asked: Asked,
    limits: &HeadLimits,
    options: &Http1ProtocolOptions,
) -> Result<Response, BadMessage> {
    let head = Bytes::copy_from_slice(head);
    let mut names = original_names(options.header_key_format);
    let mut lines = Lines::parse(&head, false, limits, names.as_deref_mut().map(|n| &mut n.names))?;
    let line = &head[..memchr::memchr(b'\n', &head).unwrap_or(head.len())];
    let [version, code, reason] = words(line);
    let status = status(code).ok_or(CODEC_ERROR)?;
    let protocol = if version == b"HTTP/1.1" { Protocol::Http11 } else { Protocol::Http10 };
    if let (Some(names), HeaderKeyFormat::PreserveCase { forward_reason_phrase: true, .. }) =
        (&mut names, options.header_key_format)
    {
        names.reason = Some(head.slice_ref(reason)).filter(|reason| !reason.contains(&b'\r'));
    }
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    if switching && !asked.upgrade {
        return Err(CODEC_ERROR);
    }
    let bodiless = status.is_informational() || status == StatusCode::NO_CONTENT;
    let framing = lines.framing(false, options)?;
    if bodiless && lines.transfer_encoding.is_some() {
        return Err(TRANSFER_ENCODING_NOT_ALLOWED);
    }
    if bodiless && lines.content_length.is_some() {
        if lines.content_length != Some(Ok(0)) {
            return Err(CONTENT_LENGTH_NOT_ALLOWED);
        }
        lines.headers.remove(header::CONTENT_LENGTH);
    }
    let raw = switching || (asked.connect && status.is_success());
    let body = match framing {
        // A tunnel's end may be half a close; an upgraded connection ends as a whole.
        _ if raw && asked.connect => BodyDecoder::until_close(),
        _ if raw => BodyDecoder::raw(),
        _ if bodiless || asked.head || status == StatusCode::NOT_MODIFIED => BodyDecoder::none(),
        Some(framing) => framing,
        None => BodyDecoder::until_close(),
    };
    if switching {
        let (connection, upgrade) = (lines.connection.clone(), lines.upgrade.take());
        lines.restore(header::CONNECTION, connection);
        lines.restore(header::UPGRADE, upgrade);
    }
    let keep_alive = lines.keep_alive(protocol) && !raw && !body.is_until_close();
    let head = ResponseHead { protocol, status, headers: lines.headers, original_names: names };
    Ok(Response { head, body, keep_alive, size: lines.size })
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
