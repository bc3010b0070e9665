//! What is written is read back as the same message, however it is cut; and the framing that Envoy chooses.

use super::*;
use crate::http::h1::{
    body::{BodyDecoder, Piece},
    options::HeadLimits,
    parse::{self, Asked, HeadScan, Kind},
};
use bytes::{Buf, BytesMut};
use http::{HeaderName, HeaderValue};
use std::io::IoSlice;

const LIMITS: HeadLimits = HeadLimits { bytes: 1 << 20, headers: 100 };

/// Takes everything out, in steps.
fn drain(out: &mut Outbox, rng: &mut fastrand::Rng) -> BytesMut {
    let mut all = BytesMut::new();
    while !out.is_empty() {
        let mut slices = [IoSlice::new(&[]); 3];
        let n = out.slices(&mut slices);
        let next: Vec<u8> = slices[..n].iter().flat_map(|slice| slice.iter().copied()).collect();
        let step = rng.usize(1..=next.len());
        all.extend_from_slice(&next[..step]);
        out.advance(step);
    }
    all
}

fn headers(rng: &mut fastrand::Rng) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for _ in 0..rng.usize(..6) {
        let name = HeaderName::from_bytes(format!("x-{}", rng.u8(..9)).as_bytes()).expect("a name");
        let value: String = (0..rng.usize(..30)).map(|_| rng.alphanumeric()).collect();
        headers.append(name, HeaderValue::from_str(&value).expect("a value"));
    }
    headers
}

fn body(decoder: &mut BodyDecoder, raw: &mut BytesMut) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Piece::Data(data)) = decoder.decode(raw).expect("valid") {
        all.extend_from_slice(&data);
    }
    all
}

#[test]
fn messages_are_read_back_as_they_were_written() {
    let mut rng = fastrand::Rng::with_seed(11);
    let options = Http1ProtocolOptions::default();
    let mut out = Outbox::default();
    for _ in 0..500 {
        let mut data: Vec<Bytes> = (0..rng.usize(..5)).map(|_| vec![rng.u8(..); rng.usize(..2000)].into()).collect();
        data.retain(|piece| !piece.is_empty());
        let sent = data.concat();
        let mut headers = headers(&mut rng);
        if rng.bool() {
            headers.insert("content-length", sent.len().into());
        }
        let mut request = RequestHead::new(Method::POST, "/x");
        request.authority = Bytes::from_static(b"a");
        request.headers = headers.clone();
        let mut response = ResponseHead::new(StatusCode::OK);
        response.headers = headers.clone();
        let is_request = rng.bool();
        let (mut encoder, size) = if is_request {
            super::request(&request, false, &options, &mut out)
        } else {
            super::response(&response, false, reply(Protocol::Http11), &options, &mut out)
        };
        assert!(size > 0 || headers.is_empty());
        assert!(data.iter().all(|piece| encoder.data(piece.clone(), &mut out)) && encoder.end(None, &mut out));
        let mut raw = drain(&mut out, &mut rng);
        let kind = if is_request { Kind::Request { custom_methods: false } } else { Kind::Response };
        let len = HeadScan::default().scan(&mut raw, kind, LIMITS.bytes).expect("valid").expect("whole");
        let (got, mut decoder) = if is_request {
            let request = parse::request(&raw[..len], &LIMITS, &options).expect("valid");
            (request.head.headers, request.body)
        } else {
            let response = parse::response(&raw[..len], Asked::default(), &LIMITS, &options).expect("valid");
            (response.head.headers, response.body)
        };
        raw.advance(len);
        assert_eq!(got, headers);
        assert_eq!(body(&mut decoder, &mut raw), sent);
        assert!(decoder.is_end() && raw.is_empty());
    }
}

fn reply(protocol: Protocol) -> Reply {
    Reply { protocol, to_head: false, to_connect: false, to_upgrade: false, close: false }
}

fn written(status: u16, length: Option<usize>, end: bool, reply: Reply) -> String {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).expect("a status"));
    if let Some(length) = length {
        head.headers.insert("content-length", length.into());
    }
    let options = Http1ProtocolOptions { accept_http_10: true, ..Default::default() };
    let mut out = Outbox::default();
    super::response(&head, end, reply, &options, &mut out);
    String::from_utf8_lossy(&drain(&mut out, &mut fastrand::Rng::with_seed(1))).into_owned()
}

#[test]
fn framing_headers_are_those_that_envoy_writes() {
    let h11 = reply(Protocol::Http11);
    let head = Reply { to_head: true, ..h11 };
    let connect = Reply { to_connect: true, close: true, ..h11 };
    for (status, length, end, reply, expected) in [
        (200, None, true, h11, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        (200, None, false, h11, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        (200, Some(2), false, h11, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"),
        (200, None, true, head, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        (204, None, true, h11, "HTTP/1.1 204 No Content\r\n\r\n"),
        (304, None, true, h11, "HTTP/1.1 304 Not Modified\r\n\r\n"),
        (304, Some(5), true, h11, "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
        (203, Some(0), true, h11, "HTTP/1.1 203 Non-Authoritative Information\r\ncontent-length: 0\r\n\r\n"),
        (418, None, true, h11, "HTTP/1.1 418 Unknown\r\ncontent-length: 0\r\n\r\n"),
        (600, None, true, h11, "HTTP/1.1 600 Unknown\r\ncontent-length: 0\r\n\r\n"),
        (200, None, false, connect, "HTTP/1.1 200 OK\r\n\r\n"),
        (403, None, true, connect, "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"),
        (200, None, false, reply(Protocol::Http10), "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\n"),
    ] {
        assert_eq!(written(status, length, end, reply), expected);
    }
}

#[test]
fn what_does_not_fit_the_declared_length_is_told() {
    let mut out = Outbox::default();
    let mut encoder = BodyEncoder::Length(3);
    assert!(!encoder.data(Bytes::from_static(b"abcd"), &mut out));
    assert_eq!(out.len(), 3);
    assert!(encoder.end(None, &mut out));
    assert!(!BodyEncoder::Length(3).end(None, &mut out));
}

#[test]
fn names_are_spelled_as_configured() {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.insert("x-foo_bar", HeaderValue::from_static("1"));
    head.headers.insert("x-added", HeaderValue::from_static("2"));
    head.original_names = Some(Box::new(OriginalNames {
        names: vec![Bytes::from_static(b"X-FOO_bar")],
        reason: Some(Bytes::from_static(b"Great")),
    }));
    let text = |format, original: bool| {
        let options = Http1ProtocolOptions { header_key_format: format, ..Default::default() };
        let mut out = Outbox::default();
        let mut head = head.clone();
        head.original_names = head.original_names.filter(|_| original);
        super::response(&head, true, reply(Protocol::Http11), &options, &mut out);
        String::from_utf8_lossy(&drain(&mut out, &mut fastrand::Rng::with_seed(1))).into_owned()
    };
    assert_eq!(
        text(HeaderKeyFormat::ProperCaseWords, false),
        "HTTP/1.1 200 OK\r\nX-Foo_Bar: 1\r\nX-Added: 2\r\nContent-Length: 0\r\n\r\n"
    );
    let preserve = |added| HeaderKeyFormat::PreserveCase { forward_reason_phrase: true, proper_case_on_added: added };
    assert_eq!(
        text(preserve(false), true),
        "HTTP/1.1 200 Great\r\nX-FOO_bar: 1\r\nx-added: 2\r\ncontent-length: 0\r\n\r\n"
    );
    assert_eq!(
        text(preserve(true), true),
        "HTTP/1.1 200 Great\r\nX-FOO_bar: 1\r\nX-Added: 2\r\nContent-Length: 0\r\n\r\n"
    );
}
