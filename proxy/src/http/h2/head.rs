//! Heads between fields and our form of them, with the rules that a message in HTTP/2 has to keep (RFC 9113 section 8) as
//! Envoy's codec sees them.

use super::{
    error,
    hpack::{Encoder, Field, Pseudo},
    options::{ServerOptions, UnderscoreAction},
};
use crate::http::{Protocol, RequestHead, ResponseHead, header_names};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};

/// Why a head is not served.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    /// Against HTTP's rules: ends the connection, or the stream if so configured.
    Messaging,
    /// Against a limit or policy of ours: ends the stream. Envoy's response code details.
    Policy(&'static str),
}

/// A request's head and the length that it declares; or why it is refused, and what could be read of it.
pub(super) type Checked = Result<(RequestHead, Option<u64>), (Refusal, Option<Box<RequestHead>>)>;

/// A head of the peer's while its fields come in.
pub(super) struct Incoming {
    pub headers: HeaderMap,
    method: Option<Bytes>,
    scheme: Option<Bytes>,
    authority: Option<Bytes>,
    path: Option<Bytes>,
    protocol: Option<Bytes>,
    status: Option<Bytes>,
    host: Option<HeaderValue>,
    /// Cookies come split into one field each, for HPACK's sake.
    cookies: Option<BytesMut>,
    content_length: Option<u64>,
    malformed: bool,
    /// Fields and bytes that may still be kept.
    room: (usize, usize),
    /// There was more than that.
    too_large: bool,
}

impl Incoming {
    /// Keeps no more than a little over the limits, whatever comes.
    pub fn new(max_kb: u32, max_count: u32) -> Self {
        let room = (max_count as usize * 2 + 64, max_kb as usize * 2048 + 4096);
        Self {
            headers: HeaderMap::with_capacity(12),
            method: None,
            scheme: None,
            authority: None,
            path: None,
            protocol: None,
            status: None,
            host: None,
            cookies: None,
            content_length: None,
            malformed: false,
            room,
            too_large: false,
        }
    }

    pub fn is_too_large(&self) -> bool {
        self.too_large
    }

    fn has_pseudo(&self) -> bool {
        [&self.method, &self.scheme, &self.authority, &self.path, &self.protocol, &self.status]
            .iter()
            .any(|pseudo| pseudo.is_some())
    }

    /// Takes a field.
    pub fn take(&mut self, field: Field) {
        match field {
            Field::Header(name, value) => self.header(name, value),
            Field::Pseudo(name, value) => self.pseudo(name, value),
            Field::Malformed => self.malformed = true,
        }
    }

    fn pseudo(&mut self, name: Pseudo, value: Bytes) {
        let fits = self.headers.is_empty() && self.host.is_none() && self.cookies.is_none();
        let (place, valid) = match name {
            Pseudo::Method => (&mut self.method, !value.is_empty()),
            Pseudo::Scheme => (&mut self.scheme, is_scheme(&value)),
            Pseudo::Authority => (&mut self.authority, is_authority(&value)),
            Pseudo::Path => (&mut self.path, value.iter().all(|c| *c > b' ' && *c != 0x7f)),
            Pseudo::Protocol => (&mut self.protocol, HeaderValue::from_bytes(&value).is_ok()),
            Pseudo::Status => (&mut self.status, true),
        };
        self.malformed |= !fits || !valid || place.replace(value).is_some();
    }

    fn header(&mut self, name: HeaderName, value: HeaderValue) {
        let size = name.as_str().len() + value.len();
        if self.room.0 == 0 || self.room.1 < size {
            self.too_large = true;
            return;
        }
        self.room = (self.room.0 - 1, self.room.1 - size);
        // All that is special has one of these lengths.
        match name.as_str().len() {
            2 if name == TE => self.malformed |= !value.as_bytes().eq_ignore_ascii_case(b"trailers"),
            4 if name == HOST => {
                self.malformed |= !is_authority(value.as_bytes()) || self.host.replace(value).is_some();
                return;
            }
            6 if name == COOKIE => return self.cookie(&value),
            7 if name == UPGRADE => self.malformed = true,
            10 if name == CONNECTION || name == header_names::KEEP_ALIVE => self.malformed = true,
            14 if name == CONTENT_LENGTH => {
                self.malformed |= self.content_length.is_some();
                self.content_length = length(value.as_bytes());
                self.malformed |= self.content_length.is_none();
            }
            16 if name == header_names::PROXY_CONNECTION => self.malformed = true,
            17 if name == TRANSFER_ENCODING => self.malformed = true,
            _ => {}
        }
        self.too_large |= self.headers.try_append(name, value).is_err();
    }

    fn cookie(&mut self, value: &HeaderValue) {
        match &mut self.cookies {
            Some(cookies) => {
                cookies.extend_from_slice(b"; ");
                cookies.extend_from_slice(value.as_bytes());
            }
            none => *none = Some(BytesMut::from(value.as_bytes())),
        }
    }

    /// What is special beside pseudo-headers goes where it belongs.
    fn settle(&mut self) {
        if let Some(cookies) = self.cookies.take()
            && let Ok(value) = HeaderValue::from_maybe_shared(cookies.freeze())
        {
            self.headers.insert(COOKIE, value);
        }
    }

    /// A request as the connection manager gets it, and the length that its `content-length` declares.
    pub fn request(mut self, options: &ServerOptions) -> Checked {
        self.settle();
        let method = self.method.as_deref().and_then(|method| Method::from_bytes(method).ok());
        let Some(method) = method.filter(|_| !self.malformed && self.status.is_none()) else {
            return Err((Refusal::Messaging, None));
        };
        let (connect, extended) = (method == Method::CONNECT, self.protocol.is_some());
        let plain_connect = connect && !extended;
        let wants_both = self.scheme.is_some() && self.path.is_some();
        let wants_none = self.scheme.is_none() && self.path.is_none();
        if (extended && !(connect && options.http2.allow_connect))
            || !(if plain_connect { wants_none } else { wants_both })
        {
            return Err((Refusal::Messaging, None));
        }
        let length = self.content_length;
        let too_large = self.too_large;
        let mut head = RequestHead::new(method, self.path.take().unwrap_or_default());
        head.protocol = Protocol::Http2;
        head.scheme = self.scheme.take().unwrap_or_default();
        head.authority = self.authority.take().unwrap_or_default();
        if head.authority.is_empty() {
            let host = self.host.take();
            head.authority = host.map(|host| Bytes::copy_from_slice(host.as_bytes())).unwrap_or_default();
        }
        head.headers = self.headers;
        let checked = check(&mut head, plain_connect, too_large, options);
        if let Some(protocol) = self.protocol {
            upgrade(&mut head, protocol);
        }
        match checked {
            Ok(()) => Ok((head, length)),
            Err(refusal) => Err((refusal, Some(Box::new(head)))),
        }
    }

    /// A response as the router gets it, and the length that it declares. `None` if it is malformed.
    pub fn response(mut self) -> Option<(ResponseHead, Option<u64>)> {
        self.settle();
        let status = self.status.take().filter(|status| status.len() == 3)?;
        let status = StatusCode::from_bytes(&status).ok()?;
        if self.malformed || self.has_pseudo() {
            return None;
        }
        if let Some(host) = self.host.take() {
            self.headers.insert(HOST, host);
        }
        let mut head = ResponseHead::new(status);
        head.protocol = Protocol::Http2;
        head.headers = self.headers;
        Some((head, self.content_length))
    }

    /// Trailers. `None` if they are malformed.
    pub fn trailers(mut self) -> Option<HeaderMap> {
        self.settle();
        (!self.malformed && !self.has_pseudo()).then_some(self.headers)
    }
}

fn check(head: &mut RequestHead, connect: bool, too_large: bool, options: &ServerOptions) -> Result<(), Refusal> {
    if head.authority.is_empty() || head.authority.contains(&b'@') {
        return Err(Refusal::Messaging);
    }
    if !connect {
        let star = head.method == Method::OPTIONS && *head.path == *b"*";
        if head.path.first() != Some(&b'/') && !star {
            return Err(Refusal::Messaging);
        }
    }
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
    if too_large || bytes > options.max_request_headers_kb as usize * 1024 {
        stats.header_list_size_too_large.inc();
        return Err(Refusal::Policy(error::TOO_MANY_HEADERS));
    }
    underscores(head, options)
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
fn upgrade(head: &mut RequestHead, protocol: Bytes) {
    head.method = Method::GET;
    if let Ok(value) = HeaderValue::from_maybe_shared(protocol.clone()) {
        head.headers.insert(UPGRADE, value);
    }
    head.upgrade = Some(protocol);
}

/// A number of bytes; no more digits than surely fit.
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0, |all, digit| digit.is_ascii_digit().then(|| all * 10 + u64::from(digit - b'0')))
}

fn is_scheme(value: &[u8]) -> bool {
    value.first().is_some_and(u8::is_ascii_alphabetic)
        && value.iter().all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(c))
}

/// The characters that RFC 3986 has for a host, a port and user information.
fn is_authority(value: &[u8]) -> bool {
    value.iter().all(|c| c.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@[]".contains(c))
}

/// Names and values together, in bytes.
pub(super) fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// HTTP/2 has no connection headers. `te` is not among them: it may say that its sender takes trailers.
fn is_sent(name: &HeaderName) -> bool {
    let name = name.as_str();
    !matches!(name.len(), 7 | 10 | 16 | 17)
        || !matches!(name, "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade")
}

/// Writes a response's head; its size. `upgraded`: the request was an extended CONNECT, whose 101 is a 200.
pub(super) fn put_response(out: &mut Vec<u8>, encoder: &mut Encoder, head: &ResponseHead, upgraded: bool) -> usize {
    let status = match head.status {
        StatusCode::SWITCHING_PROTOCOLS if upgraded => StatusCode::OK,
        status => status,
    };
    encoder.begin(out);
    encoder.status(out, status.as_str());
    put_fields(out, encoder, &head.headers)
}

/// Writes header lines, as far as HTTP/2 has them; their size.
pub(super) fn put_fields(out: &mut Vec<u8>, encoder: &mut Encoder, headers: &HeaderMap) -> usize {
    let mut size = 0;
    for (name, value) in headers {
        if is_sent(name) {
            size += name.as_str().len() + value.len();
            encoder.header(out, name, value);
        }
    }
    size
}

/// Writes a request's head; its size.
pub(super) fn put_request(out: &mut Vec<u8>, encoder: &mut Encoder, head: &RequestHead) -> usize {
    encoder.begin(out);
    let connect = head.is_connect();
    encoder.method(out, if head.upgrade.is_some() { "CONNECT" } else { head.method.as_str() });
    if let Some(protocol) = &head.upgrade {
        encoder.protocol(out, protocol);
    }
    if !connect {
        encoder.scheme(out, if head.scheme.is_empty() { b"http" } else { &head.scheme });
        encoder.path(out, if head.path.is_empty() { b"/" } else { &head.path });
    }
    if !head.authority.is_empty() {
        encoder.authority(out, &head.authority);
    }
    let mut size = 0;
    for (name, value) in &head.headers {
        if !is_sent(name) || name == HOST || (name == CONTENT_LENGTH && head.upgrade.is_some() && value == "0") {
            continue;
        }
        if name.as_str() == "te" && value != "trailers" {
            let trailers =
                value.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"));
            if trailers {
                size += 10;
                encoder.header(out, &TE, &HeaderValue::from_static("trailers"));
            }
            continue;
        }
        size += name.as_str().len() + value.len();
        encoder.header(out, name, value);
    }
    size
}

#[cfg(test)]
mod tests {
    use super::{super::hpack::Decoder, *};

    fn incoming(fields: &[(&str, &str)]) -> Incoming {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.extend_from_slice(&[0, name.len() as u8]);
            block.extend_from_slice(name.as_bytes());
            if value.len() < 127 {
                block.push(value.len() as u8);
            } else {
                block.extend_from_slice(&[
                    127,
                    ((value.len() - 127) & 127) as u8 | 128,
                    ((value.len() - 127) >> 7) as u8,
                ]);
            }
            block.extend_from_slice(value.as_bytes());
        }
        let mut incoming = Incoming::new(60, 100);
        Decoder::new(4096).decode(&block, |field| incoming.take(field)).expect("HPACK");
        incoming
    }

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "http"), (":authority", "example.com"), (":path", "/a?b")];

    fn get(headers: &[(&'static str, &'static str)]) -> Incoming {
        incoming(&[&GET, headers].concat())
    }

    #[test]
    fn requests_lose_nothing() {
        let request = get(&[("cookie", "a=1"), ("cookie", "b=2"), ("host", "other"), ("content-length", "7")]);
        let (head, length) = request.request(&ServerOptions::default()).expect("valid");
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
            get(headers).request(&options).map_err(|(refusal, _)| refusal).err()
        };
        assert_eq!(refusal(&[("x-a", "1")]), None);
        assert_eq!(refusal(&[("x-a", "1"), ("x-b", "1")]), Some(Refusal::Policy(error::TOO_MANY_HEADERS)));
        let long: &'static str = "x".repeat(1024).leak();
        assert_eq!(refusal(&[("x-a", long)]), Some(Refusal::Policy(error::TOO_MANY_HEADERS)));
        assert_eq!((options.stats.header_overflow.get(), options.stats.header_list_size_too_large.get()), (1, 1));
    }

    #[test]
    fn rules_are_of_the_connection() {
        let is_valid = |fields: &[(&str, &str)]| match incoming(fields).request(&ServerOptions::default()) {
            Ok(_) => true,
            Err((refusal, _)) => {
                assert_eq!(refusal, Refusal::Messaging);
                false
            }
        };
        let with = |more: &[(&'static str, &'static str)]| is_valid(&[&GET, more].concat());
        assert!(with(&[]) && with(&[("te", "trailers")]) && with(&[("x-a", " v ")]));
        for bad in [
            &[("content-length", "1"), ("content-length", "1")][..],
            &[("content-length", "a")],
            &[("connection", "close")],
            &[("transfer-encoding", "chunked")],
            &[("keep-alive", "1")],
            &[("proxy-connection", "1")],
            &[("upgrade", "h2c")],
            &[("te", "gzip")],
            &[("x-a", "1"), (":path", "/")],
            &[(":path", "/")],
            &[(":status", "200")],
            &[(":protocol", "websocket")],
            &[("X", "1")],
            &[("host", "a b")],
            &[("host", "a"), ("host", "a")],
        ] {
            assert!(!with(bad), "{bad:?}");
        }
        for missing in [0, 1, 2, 3] {
            let mut fields = GET.to_vec();
            fields.remove(missing);
            assert!(!is_valid(&fields));
        }
        for (at, value) in [(0, "G T"), (1, "1"), (2, "u@h"), (2, ""), (3, ""), (3, "x"), (3, "*"), (3, "/a b")] {
            let mut fields = GET;
            fields[at].1 = value;
            assert!(!is_valid(&fields), "{value}");
        }
        assert!(is_valid(&[(":method", "OPTIONS"), GET[1], GET[2], (":path", "*")]));
        assert!(is_valid(&[(":method", "CONNECT"), (":authority", "h:1")]));
        assert!(!is_valid(&[(":method", "CONNECT"), (":authority", "h:1"), (":path", "/")]));
    }

    #[test]
    fn responses_have_a_status_and_nothing_of_a_request() {
        let status = |fields: &[(&str, &str)]| incoming(fields).response().map(|(head, _)| head.status.as_u16());
        assert_eq!(status(&[(":status", "200"), ("server", "x")]), Some(200));
        assert_eq!(status(&[("server", "x")]), None);
        assert_eq!(status(&[(":status", "2x0")]), None);
        assert_eq!(status(&[(":status", "200"), (":path", "/")]), None);
        assert!(incoming(&[(":status", "200")]).trailers().is_none());
        assert!(incoming(&[("x-t", "1")]).trailers().is_some());
    }

    fn sent(put: impl FnOnce(&mut Vec<u8>, &mut Encoder)) -> Vec<Field> {
        let (mut out, mut fields) = (Vec::new(), Vec::new());
        put(&mut out, &mut Encoder::default());
        Decoder::new(4096).decode(&out, |field| fields.push(field)).expect("HPACK");
        fields
    }

    #[test]
    fn upgrades_are_connects_on_the_wire() {
        let mut head = RequestHead::new(Method::GET, "/chat");
        head.authority = Bytes::from_static(b"h");
        head.upgrade = Some(Bytes::from_static(b"websocket"));
        head.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        head.headers.insert(TE, HeaderValue::from_static("gzip, trailers"));
        let fields = sent(|out, encoder| {
            put_request(out, encoder, &head);
        });
        assert_eq!(fields[0], Field::Pseudo(Pseudo::Method, Bytes::from_static(b"CONNECT")));
        assert_eq!(fields[1], Field::Pseudo(Pseudo::Protocol, Bytes::from_static(b"websocket")));
        assert_eq!(fields[5..], [Field::Header(TE, HeaderValue::from_static("trailers"))]);
        let granted = ResponseHead::new(StatusCode::SWITCHING_PROTOCOLS);
        let fields = sent(|out, encoder| {
            put_response(out, encoder, &granted, true);
        });
        assert_eq!(fields, [Field::Pseudo(Pseudo::Status, Bytes::from_static(b"200"))]);
    }
}
