//! The head parser against the messages that Envoy was asked about, at every split, and against noise.

use super::*;
use crate::http::h1::body::Piece;

const LIMITS: HeadLimits = HeadLimits { bytes: 60 * 1024, headers: 100 };

/// Reads a request as a connection would, `split` bytes first.
fn read(raw: &[u8], options: &Http1ProtocolOptions, split: usize) -> Result<Option<Request>, BadMessage> {
    let kind = Kind::Request { custom_methods: options.allow_custom_methods };
    let (mut scan, mut buf) = (HeadScan::default(), BytesMut::new());
    for part in [&raw[..split], &raw[split..]] {
        buf.extend_from_slice(part);
        if let Some(len) = scan.scan(&mut buf, kind, LIMITS.bytes)? {
            return request(&buf[..len], &LIMITS, options).map(Some).map_err(|rejected| rejected.bad);
        }
    }
    Ok(None)
}

fn with(raw: impl AsRef<[u8]>, options: &Http1ProtocolOptions) -> Result<Request, BadMessage> {
    let raw = raw.as_ref();
    let show = |r: &Result<Option<Request>, BadMessage>| format!("{r:?}");
    let whole = read(raw, options, 0);
    for split in 1..raw.len().min(300) {
        assert_eq!(show(&read(raw, options, split)), show(&whole), "split at {split}");
    }
    whole.map(|request| request.expect("the head is whole"))
}

fn ask(raw: impl AsRef<[u8]>) -> Result<Request, BadMessage> {
    with(raw, &Http1ProtocolOptions::default())
}

/// The error of a GET with these lines.
fn lines(lines: &str) -> Result<Request, BadMessage> {
    ask(format!("GET / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n"))
}

fn value(request: &Request, name: &str) -> Option<String> {
    request.head.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
}

#[test]
fn a_plain_request() {
    let r = ask("GET /a?b HTTP/1.1\r\nHost: x:1\r\nX-A:  v \r\nx-a: w\r\n\r\n").expect("valid");
    assert_eq!((&r.head.method, &r.head.path[..], &r.head.authority[..]), (&Method::GET, &b"/a?b"[..], &b"x:1"[..]));
    let all: Vec<_> = r.head.headers.get_all("x-a").iter().map(|v| v.to_str().unwrap()).collect();
    assert_eq!(all, ["v", "w"]);
    assert!(r.keep_alive && r.body.is_end() && r.has_host);
    assert_eq!(r.size, 4 + 3 + 3 + 2 * (3 + 1 + 3));
}

#[test]
fn start_lines_that_are_none() {
    for line in [
        "get / HTTP/1.1",
        "G(T / HTTP/1.1",
        "FOO / HTTP/1.1",
        "GET / HTTP/9",
        "GET / http/1.1",
        "GET noslash HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET / FOOHTTP/1.1",
        "SSH-2.0-x",
        "\x16\x03\x01hello",
        " GET / HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET /\u{ff} HTTP/1.1",
    ] {
        assert_eq!(ask(format!("{line}\r\nhost: a\r\n\r\n")).map(|_| ()), Err(CODEC_ERROR), "{line}");
    }
    // Told as soon as the line is there.
    assert_eq!(read(b"nonsense\r\n", &Http1ProtocolOptions::default(), 0).map(|_| ()), Err(CODEC_ERROR));
    assert_eq!(ask("GET /ctl\x01 HTTP/1.1\r\nhost: a\r\n\r\n").map(|_| ()), Err(INVALID_CHARACTERS));
    for line in ["GET  /  HTTP/1.1", "GET\t/\tHTTP/1.1"] {
        assert!(ask(format!("{line}\r\nhost: a\r\n\r\n")).is_ok(), "{line}");
    }
    assert!(ask("\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").is_ok());
}

#[test]
fn header_lines_that_are_none() {
    for bad in ["x y: 1", "x-a : 1", "nocolon", ": v", "x(y): v", "x\"a: b", "x/a: b", "x\u{ff}: b", ":path: /x"] {
        assert_eq!(lines(bad).map(|_| ()), Err(CODEC_ERROR), "{bad}");
    }
    for bad in ["x-a: a\0b", "x-a: a\x01b", "x-a: a\x7fb", "x\0a: 1", "x-a: \x01"] {
        assert_eq!(lines(bad).map(|_| ()), Err(INVALID_CHARACTERS), "{bad:?}");
    }
    assert_eq!(ask("GET / HTTP/1.1\r\n x: 1\r\nhost: a\r\n\r\n").map(|_| ()), Err(CODEC_ERROR));
}

#[test]
fn lenient_lines() {
    for (line, expected) in [
        ("x-a: 1\r\n folded", "1 folded"),
        ("x-a: 1\r\n\tfolded", "1\tfolded"),
        ("x-a: a\tb", "a\tb"),
        ("x-a:", ""),
        ("x-a: \t v \t", "v"),
        ("x-a:v", "v"),
        ("x-a: a\rb", "ab"),
        ("x-a:\r\n v", "v"),
    ] {
        assert_eq!(value(&lines(line).expect(line), "x-a").as_deref(), Some(expected), "{line:?}");
    }
    assert_eq!(value(&ask("GET / HTTP/1.1\nhost: a\nx-a: b\n\n").expect("bare LF"), "x-a").as_deref(), Some("b"));
    let high = ask(b"GET / HTTP/1.1\r\nhost: a\r\nx-a: \xff\xfe\r\n\r\n").expect("obs-text");
    assert_eq!(high.head.headers["x-a"].as_bytes(), b"\xff\xfe");
}

#[test]
fn hosts() {
    let host = |lines: &str| ask(format!("GET / HTTP/1.1\r\n{lines}\r\n")).map(|r| (r.has_host, r.head.authority));
    assert_eq!(host(""), Ok((false, Bytes::new())));
    assert_eq!(host("host:\r\n"), Ok((true, Bytes::new())));
    assert_eq!(host("host: a\r\nhost: b\r\n"), Ok((true, Bytes::from_static(b"a,b"))));
    assert_eq!(host("host: u@a\r\n"), Ok((true, Bytes::from_static(b"u@a"))));
    for bad in ["a/b", "a b", "a\u{ff}"] {
        assert_eq!(host(&format!("host: {bad}\r\n")), Err(INVALID_AUTHORITY), "{bad}");
    }
    let absolute = ask("GET http://x.com/p HTTP/1.1\r\nhost: a\r\n\r\n").expect("valid").head;
    assert_eq!(
        (&absolute.scheme[..], &absolute.authority[..], &absolute.path[..]),
        (&b"http"[..], &b"x.com"[..], &b"/p"[..])
    );
}

#[test]
fn framing_is_never_ambiguous() {
    let post = |lines: &str| ask(format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n")).map(|r| r.body.remaining());
    assert_eq!(post("content-length: 3"), Ok(Some(3)));
    assert_eq!(post("content-length:\r\n 3"), Ok(Some(3)));
    assert_eq!(post("transfer-encoding: CHUNKED"), Ok(None));
    assert_eq!(post("transfer-encoding: \tchunked"), Ok(None));
    assert_eq!(post("x: y"), Ok(Some(0)));
    for bad in [
        "3\r\ncontent-length: 3",
        "3\r\ncontent-length: 4",
        "3, 3",
        "abc",
        "-1",
        "+3",
        "0x3",
        "",
        "99999999999999999999999",
    ] {
        assert_eq!(post(&format!("content-length: {bad}")), Err(CODEC_ERROR), "{bad}");
    }
    for bad in [
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "xchunked",
        "chunked\r\ntransfer-encoding: chunked",
        "identity",
        "chunked\r\ntransfer-encoding: identity",
        "",
    ] {
        assert_eq!(post(&format!("transfer-encoding: {bad}")), Err(TRANSFER_ENCODING), "{bad}");
    }
    for both in [
        "content-length: 3\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 3",
        "content-length: 3\r\ntransfer-encoding: identity",
    ] {
        assert_eq!(post(both), Err(CHUNKED_CONTENT_LENGTH), "{both}");
    }
    let lenient = Http1ProtocolOptions { allow_chunked_length: true, ..Default::default() };
    let r = with("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", &lenient)
        .expect("allowed");
    assert_eq!((r.body.remaining(), value(&r, "content-length")), (None, None));
}

#[test]
fn versions() {
    assert_eq!(ask("GET / HTTP/1.0\r\nhost: a\r\n\r\n").map(|_| ()), Err(LOW_VERSION));
    assert_eq!(ask("GET / HTTP/2.0\r\nhost: a\r\n\r\n").map(|_| ()), Err(LOW_VERSION));
    let old = Http1ProtocolOptions {
        accept_http_10: true,
        default_host_for_http_10: "dflt".to_owned(),
        ..Default::default()
    };
    let bare = with("GET /x\r\n", &old).expect("HTTP/0.9");
    assert_eq!(
        (bare.head.protocol, &bare.head.authority[..], bare.keep_alive),
        (Protocol::Http10, &b"dflt"[..], false)
    );
    assert!(with("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", &old).expect("valid").keep_alive);
}

#[test]
fn the_connection_header() {
    let keeps = |l: &str| lines(l).map(|r| r.keep_alive);
    assert_eq!(keeps("connection: x, Close"), Ok(false));
    assert_eq!(keeps("connection: x\r\nconnection: close"), Ok(false));
    assert_eq!(keeps("proxy-connection: close"), Ok(false));
    assert_eq!(keeps("connection: keep-alive"), Ok(true));
    let r = lines("connection: x-a, keep-alive\r\nx-a: 1\r\nkeep-alive: timeout=5\r\nx-b: 2").expect("valid");
    assert_eq!((r.head.headers.len(), value(&r, "x-b").as_deref()), (1, Some("2")));
    for bad in ["x-forwarded-for", "X-Forwarded-Proto", "x-forwarded-host", ":authority"] {
        assert_eq!(keeps(&format!("connection: {bad}")), Err(CONNECTION_HEADER), "{bad}");
    }
    assert_eq!(keeps(&format!("connection: {}", "x,".repeat(9))), Ok(true));
    assert_eq!(keeps(&format!("connection: {}", "x,".repeat(10))), Err(CONNECTION_HEADER));
    assert!(!lines("connection: host").expect("valid").has_host);
    let te = |l: &str| value(&lines(l).expect("valid"), "te");
    assert_eq!(te("te: gzip, trailers").as_deref(), Some("trailers"));
    assert_eq!(te("connection: te\r\nte: trailers").as_deref(), Some("trailers"));
    assert_eq!(te("te: gzip"), None);
}

#[test]
fn upgrades_and_tunnels() {
    let r = lines("connection: keep-alive\r\nconnection: Upgrade\r\nupgrade: WebSocket").expect("valid");
    assert_eq!(r.head.upgrade.as_deref(), Some(&b"WebSocket"[..]));
    assert_eq!(value(&r, "connection").as_deref(), Some("keep-alive,Upgrade"));
    assert!(r.body.is_raw());
    assert!(lines("upgrade: websocket").expect("valid").head.upgrade.is_none());
    let h2c = lines("connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAA").expect("valid");
    assert!(h2c.head.upgrade.is_none() && h2c.head.headers.is_empty());
    let connect = |l: &str| {
        ask(format!("CONNECT a.com:443 HTTP/1.1\r\nhost: a\r\n{l}\r\n")).map(|r| (r.head.authority, r.body.is_raw()))
    };
    assert_eq!(connect(""), Ok((Bytes::from_static(b"a.com:443"), true)));
    assert!(connect("content-length: 0\r\n").is_ok());
    assert_eq!(connect("content-length: 3\r\n"), Err(BODY_DISALLOWED));
    assert_eq!(connect("transfer-encoding: chunked\r\n"), Err(TRANSFER_ENCODING));
}

#[test]
fn limits() {
    let many = |n: usize| lines(&(0..n).map(|i| format!("x-{i}: 1")).collect::<Vec<_>>().join("\r\n")).map(|_| ());
    assert_eq!(many(99), Ok(()));
    assert_eq!(many(100), Err(TOO_MANY_HEADERS));
    assert_eq!(lines(&format!("x-a: {}", "b".repeat(62000))).map(|_| ()), Err(HEADERS_TOO_LARGE));
    assert_eq!(
        read("GET /".repeat(20000).as_bytes(), &Http1ProtocolOptions::default(), 70000).map(|_| ()),
        Err(HEADERS_TOO_LARGE)
    );
}

#[test]
fn original_spelling_is_kept_on_request() {
    let keep = Http1ProtocolOptions {
        header_key_format: HeaderKeyFormat::PreserveCase { forward_reason_phrase: true, proper_case_on_added: false },
        ..Default::default()
    };
    let r = with("GET / HTTP/1.1\r\nHost: a\r\nX-CaSe: 1\r\n\r\n", &keep).expect("valid");
    assert_eq!(r.head.original_names.expect("kept").names, [&b"Host"[..], b"X-CaSe"]);
}

fn answer(raw: &str, asked: Asked) -> Result<Response, BadMessage> {
    let (mut scan, mut buf) = (HeadScan::default(), BytesMut::from(raw));
    let len = scan.scan(&mut buf, Kind::Response, LIMITS.bytes)?.expect("the head is whole");
    response(&buf[..len], asked, &LIMITS, &Http1ProtocolOptions::default())
}

#[test]
fn responses() {
    let get = Asked::default();
    let head = Asked { head: true, ..get };
    let plain = |raw: &str| answer(&format!("HTTP/1.1 {raw}\r\n\r\n"), get);
    assert_eq!(plain("200\r\ncontent-length: 2").expect("no reason").body.remaining(), Some(2));
    assert!(plain("200 OK").expect("valid").body.is_until_close());
    assert!(!plain("200 OK").expect("valid").keep_alive);
    assert!(plain("204 No\r\ncontent-length: 0").expect("valid").head.headers.is_empty());
    assert_eq!(plain("204 No\r\ncontent-length: 2").map(|_| ()), Err(CONTENT_LENGTH_NOT_ALLOWED));
    assert_eq!(plain("204 No\r\ntransfer-encoding: chunked").map(|_| ()), Err(TRANSFER_ENCODING_NOT_ALLOWED));
    assert!(plain("304 N\r\ncontent-length: 55").expect("valid").body.is_end());
    assert!(answer("HTTP/1.1 200 OK\r\ncontent-length: 55\r\n\r\n", head).expect("valid").body.is_end());
    for bad in [
        "abc OK",
        "1000 X",
        "99 X",
        "200 OK\r\ncontent-length: 2\r\ncontent-length: 3",
        "101 S\r\nupgrade: x\r\nconnection: upgrade",
    ] {
        assert!(plain(bad).is_err(), "{bad}");
    }
    assert_eq!(plain("600 X").expect("any three digits").head.status.as_u16(), 600);
    assert_eq!(answer("\r\nHTTP/1.1 200 OK\r\n\r\n", get).map(|_| ()), Err(CODEC_ERROR));
    assert_eq!(answer("hello world\r\n\r\n", get).map(|_| ()), Err(CODEC_ERROR));
    let upgrade = Asked { upgrade: true, ..get };
    let switched =
        answer("HTTP/1.1 101 S\r\nConnection: uPgrade\r\nUpgrade: websocket\r\n\r\n", upgrade).expect("valid");
    assert!(switched.body.is_raw() && switched.head.headers.len() == 2);
    assert!(!answer("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n", get).expect("valid").keep_alive);
}

/// Decodes a chunked body, `split` bytes first: its data and trailers.
fn chunks(raw: &[u8], split: usize) -> Result<Option<(Vec<u8>, usize)>, BadMessage> {
    let (mut decoder, mut buf, mut data, mut trailers) = (BodyDecoder::chunked(true), BytesMut::new(), Vec::new(), 0);
    for part in [&raw[..split], &raw[split..]] {
        buf.extend_from_slice(part);
        while let Some(piece) = decoder.decode(&mut buf)? {
            match piece {
                Piece::Data(piece) => data.extend_from_slice(&piece),
                Piece::Trailers(map) => trailers = map.len(),
                Piece::End => return Ok(Some((data, trailers))),
            }
        }
    }
    Ok(None)
}

#[test]
fn chunked_bodies() {
    let all = |raw: &str| {
        let whole = chunks(raw.as_bytes(), 0);
        for split in 1..raw.len() {
            assert_eq!(chunks(raw.as_bytes(), split), whole, "{raw:?} split at {split}");
        }
        whole
    };
    let abc = Ok(Some((b"abc".to_vec(), 0)));
    for good in [
        "3\r\nabc\r\n0\r\n\r\n",
        "3;a=b\r\nabc\r\n0;x\r\n\r\n",
        "0003\r\nabc\r\n000\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r\r\n0\r\n\r\n",
        "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
    ] {
        assert_eq!(all(good), abc, "{good:?}");
    }
    assert_eq!(all("A\r\n0123456789\r\n0\r\nx: y\r\n\r\n"), Ok(Some((b"0123456789".to_vec(), 1))));
    for bad in [
        "zz\r\nabc",
        "-3\r\nabc",
        "fffffffffffffffff\r\n",
        "3\nabc\n0\n\n",
        "3\r\nabcX0\r\n\r\n",
        "3;a\nabc",
        "3;a\rb\r\nabc",
        "\r\nabc",
        "3\r\nabc\r\n0\r\nbad trailer\r\n\r\n",
        ";\r\n",
    ] {
        assert_eq!(all(bad), Err(CODEC_ERROR), "{bad:?}");
    }
}

#[test]
fn noise_never_panics() {
    let mut rng = fastrand::Rng::with_seed(7);
    let words: &[&[u8]] = &[
        b"GET ",
        b"/",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"host: a",
        b":",
        b" ",
        b"\0",
        b"content-length: ",
        b"5",
        b"chunked",
        b"transfer-encoding:",
        b"\xff",
        b"CONNECT a:1",
        b"http://[",
        b"]",
        b"@",
        b"0\r\n",
        b"ffffffffffffffff",
    ];
    let options = Http1ProtocolOptions { accept_http_10: true, allow_custom_methods: true, ..Default::default() };
    for _ in 0..20_000 {
        let mut raw = Vec::new();
        for _ in 0..rng.usize(..20) {
            match rng.u8(..8) {
                0 => raw.push(rng.u8(..)),
                _ => raw.extend_from_slice(words[rng.usize(..words.len())]),
            }
        }
        let split = rng.usize(..=raw.len());
        let _ = read(&raw, &options, split);
        let _ = chunks(&raw, split);
        let mut buf = BytesMut::from(&raw[..]);
        if let Ok(Some(len)) = HeadScan::default().scan(&mut buf, Kind::Response, LIMITS.bytes) {
            let _ = response(&buf[..len], Asked::default(), &LIMITS, &options);
        }
    }
}
