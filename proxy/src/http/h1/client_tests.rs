//! The upstream connection against scripted servers.

use super::*;
use crate::http::{BodySource, Frame, ResponseHead};
use std::future::poll_fn;
use std::task::Waker;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

struct Peer {
    io: DuplexStream,
    connection: ClientConnection,
    outcomes: Rc<RefCell<Vec<Outcome>>>,
}

impl Peer {
    fn new(options: ClientOptions) -> Self {
        let (io, client) = tokio::io::duplex(64 * 1024);
        let connection = ClientConnection::new(Io::Boxed(Box::new(client)), Rc::new(options));
        Self { io, connection, outcomes: Rc::default() }
    }

    fn start(&self) -> ClientStream {
        let outcomes = self.outcomes.clone();
        let on_done: OnDone = Rc::new(move |_, outcome| outcomes.borrow_mut().push(outcome));
        self.connection.start(on_done).expect("the connection is free")
    }

    async fn answer(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.expect("open");
    }

    async fn got(&mut self, text: &str) {
        let mut got = vec![0; text.len()];
        self.io.read_exact(&mut got).await.expect("open");
        assert_eq!(String::from_utf8_lossy(&got), text);
    }
}

fn get(method: Method) -> RequestHead {
    let mut head = RequestHead::new(method, "/");
    head.authority = Bytes::from_static(b"a");
    head
}

async fn response(stream: &mut ClientStream) -> Result<(ResponseHead, Body), StreamError> {
    loop {
        if let ResponseEvent::Head(head, body) = poll_fn(|cx| stream.poll_response(cx)).await? {
            return Ok((head, body));
        }
    }
}

async fn text(mut body: Body) -> Result<String, StreamError> {
    let mut text = String::new();
    while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
        match frame? {
            Frame::Data(data) => text += &String::from_utf8_lossy(&data),
            Frame::Trailers(trailers) => text += &format!("+{}", trailers.len()),
        }
    }
    Ok(text)
}

fn run(test: impl AsyncFnOnce(Peer)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let test = test(Peer::new(ClientOptions::default()));
    runtime.block_on(async { tokio::time::timeout(std::time::Duration::from_secs(10), test).await.expect("in time") });
}

/// Status and body, or how it failed.
type Answer = Result<(u16, String), (ResetReason, String)>;

/// What comes of one GET that is answered by `raw`, and whether the connection may be used again.
fn one(method: Method, raw: &str, close: bool) -> (Answer, Outcome) {
    let mut result = None;
    run(async |mut peer: Peer| {
        let mut stream = peer.start();
        stream.send_head(&get(method), true).expect("free");
        peer.answer(raw).await;
        if close {
            peer.io.shutdown().await.expect("open");
        }
        let answer = async {
            let (head, body) = response(&mut stream).await?;
            Ok((head.status.as_u16(), text(body).await?))
        };
        let answer = answer.await.map_err(|e: StreamError| (e.reason, e.details.into_owned()));
        drop(stream);
        let outcomes = peer.outcomes.take();
        assert_eq!(outcomes.len(), 1, "told once");
        assert_eq!(peer.connection.is_closed(), outcomes[0] == Outcome::Close);
        result = Some((answer, outcomes[0]));
    });
    result.expect("it ran")
}

#[test]
fn responses_and_what_becomes_of_the_connection() {
    use Outcome::{Close, Reusable};
    let ok = |status, text: &str| Ok((status, text.to_owned()));
    let get = |raw| one(Method::GET, raw, false);
    assert_eq!(get("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), (ok(200, "ok"), Reusable));
    assert_eq!(
        get("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        (ok(200, "ok"), Reusable)
    );
    assert_eq!(get("HTTP/1.1 204 No\r\n\r\n"), (ok(204, ""), Reusable));
    assert_eq!(
        get("HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 E\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        (ok(200, ""), Reusable)
    );
    assert_eq!(one(Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", false), (ok(200, ""), Reusable));
    assert_eq!(get("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"), (ok(200, "ok"), Close));
    assert_eq!(get("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"), (ok(200, "ok"), Close));
    assert_eq!(get("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokEXTRA"), (ok(200, "ok"), Close));
    assert_eq!(one(Method::GET, "HTTP/1.1 200 OK\r\n\r\nto the end", true), (ok(200, "to the end"), Close));
}

#[test]
fn responses_that_are_none() {
    let end = |raw| one(Method::GET, raw, true);
    let bad = |reason, details: &str| (Err((reason, details.to_owned())), Outcome::Close);
    assert_eq!(end(""), bad(ResetReason::ConnectionTermination, ""));
    assert_eq!(end("HTTP/1.1 200 OK\r\ncontent-"), bad(ResetReason::ProtocolError, ""));
    assert_eq!(end("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc"), bad(ResetReason::ProtocolError, ""));
    assert_eq!(
        end("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"),
        bad(ResetReason::ProtocolError, "")
    );
    assert_eq!(end("hello world\r\n\r\n"), bad(ResetReason::ProtocolError, ""));
}

#[test]
fn a_connection_serves_one_exchange_after_another() {
    run(async |mut peer: Peer| {
        for (n, end) in [(1, true), (2, false)] {
            let mut stream = peer.start();
            assert!(peer.connection.start(Rc::new(|_, _| {})).is_err(), "one at a time");
            stream.send_head(&get(Method::POST), end).expect("free");
            if !end {
                stream.send_data(Bytes::from_static(b"abc"), false).expect("free");
                stream.send_data(Bytes::new(), true).expect("free");
            }
            poll_fn(|cx| stream.poll_flush(cx)).await.expect("written");
            let body = if end {
                "content-length: 0\r\n\r\n"
            } else {
                "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            };
            peer.got(&format!("POST / HTTP/1.1\r\nhost: a\r\n{body}")).await;
            peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            let (_, body) = response(&mut stream).await.expect("answered");
            assert_eq!(text(body).await.expect("whole"), "ok");
            // Told as soon as both messages are whole, though the stream is still held.
            assert_eq!(*peer.outcomes.borrow(), vec![Outcome::Reusable; n]);
            assert!(stream.bytes_sent().0 > 0 && peer.connection.is_idle());
        }
    });
}

#[test]
fn an_early_response_leaves_the_connection_unusable() {
    run(async |mut peer: Peer| {
        let mut stream = peer.start();
        stream.send_head(&get(Method::POST), false).expect("free");
        peer.answer("HTTP/1.1 413 Big\r\ncontent-length: 2\r\n\r\nno").await;
        let (_, body) = response(&mut stream).await.expect("answered");
        assert_eq!(text(body).await.expect("whole"), "no");
        assert!(peer.outcomes.borrow().is_empty(), "the request may still go on");
        drop(stream);
        assert_eq!(*peer.outcomes.borrow(), [Outcome::Close]);
    });
}

#[test]
fn a_dropped_body_closes() {
    run(async |mut peer: Peer| {
        let mut stream = peer.start();
        stream.send_head(&get(Method::GET), true).expect("free");
        peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab").await;
        let (_, body) = response(&mut stream).await.expect("answered");
        drop((body, stream));
        assert_eq!(*peer.outcomes.borrow(), [Outcome::Close]);
    });
}

#[test]
fn idle_connections_notice_what_the_upstream_does() {
    for bytes in [None, Some("HTTP/1.1 408 T\r\n\r\n")] {
        run(async |mut peer: Peer| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(peer.connection.poll_idle(&mut cx).is_pending());
            match bytes {
                Some(bytes) => peer.answer(bytes).await,
                None => peer.io.shutdown().await.expect("open"),
            }
            poll_fn(|cx| peer.connection.poll_idle(cx)).await;
            assert!(peer.connection.is_closed());
            let refused = peer.connection.start(Rc::new(|_, _| {})).err().expect("closed");
            assert!(refused.retry_is_safe);
        });
    }
}

#[test]
fn only_an_unwritten_request_is_safe_to_retry() {
    run(async |mut peer: Peer| {
        let mut stream = peer.start();
        stream.send_head(&get(Method::GET), true).expect("free");
        poll_fn(|cx| stream.poll_flush(cx)).await.expect("written");
        peer.io.shutdown().await.expect("open");
        assert!(!response(&mut stream).await.err().expect("closed").retry_is_safe);
    });
    run(async |peer: Peer| {
        let mut stream = peer.start();
        drop(peer.io);
        stream.send_head(&get(Method::GET), true).expect("free");
        assert!(response(&mut stream).await.err().expect("closed").retry_is_safe);
    });
}

#[test]
fn upgrades_are_raw_both_ways() {
    run(async |mut peer: Peer| {
        let mut stream = peer.start();
        let mut head = get(Method::GET);
        head.upgrade = Some(Bytes::from_static(b"toy"));
        stream.send_head(&head, false).expect("free");
        stream.send_data(Bytes::from_static(b"hi"), false).expect("free");
        poll_fn(|cx| stream.poll_flush(cx)).await.expect("written");
        peer.got("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: toy\r\n\r\nhi").await;
        peer.answer("HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: toy\r\n\r\nyo").await;
        let (head, mut body) = response(&mut stream).await.expect("answered");
        assert_eq!((head.status.as_u16(), head.headers.len()), (101, 2));
        let first = poll_fn(|cx| body.poll_frame(cx)).await.expect("open").expect("data");
        assert!(matches!(first, Frame::Data(data) if &data[..] == b"yo"));
        drop((body, stream));
        assert_eq!(*peer.outcomes.borrow(), [Outcome::Close]);
    });
}

#[test]
fn trailers_and_spelling_are_options() {
    let mut options = ClientOptions::default();
    options.http1.enable_trailers = true;
    options.http1.send_fully_qualified_url = true;
    options.http1.header_key_format = super::super::HeaderKeyFormat::ProperCaseWords;
    run(async |_: Peer| {
        let mut peer = Peer::new(options);
        let mut stream = peer.start();
        let mut head = get(Method::POST);
        head.headers.insert("x-foo-bar", http::HeaderValue::from_static("1"));
        stream.send_head(&head, false).expect("free");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-t", http::HeaderValue::from_static("1"));
        stream.send_trailers(trailers).expect("free");
        poll_fn(|cx| stream.poll_flush(cx)).await.expect("written");
        peer.got("POST http://a/ HTTP/1.1\r\nHost: a\r\nX-Foo-Bar: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx-t: 1\r\n\r\n").await;
    });
}

#[test]
fn a_target_that_would_split_the_request_is_refused() {
    run(async |peer: Peer| {
        for path in ["/a b", "/a\r\nx: y", "/a\0"] {
            let mut stream = peer.connection.start(Rc::new(|_, _| {})).ok();
            if let Some(stream) = &mut stream {
                let mut head = get(Method::GET);
                head.path = Bytes::copy_from_slice(path.as_bytes());
                assert!(stream.send_head(&head, true).is_err(), "{path:?}");
            }
        }
        assert!(peer.connection.is_closed());
    });
}

#[test]
fn an_idle_socket_is_watched_between_exchanges() {
    run(async |_: Peer| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let io = tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (mut server, _) = listener.accept().await.expect("accepted");
        let connection = ClientConnection::new(Io::Tcp(io), Rc::new(ClientOptions::default()));
        for _ in 0..3 {
            let mut stream = connection.start(Rc::new(|_, _| {})).expect("free");
            stream.send_head(&get(Method::GET), true).expect("free");
            poll_fn(|cx| stream.poll_flush(cx)).await.expect("written");
            let mut request = [0; 64];
            assert!(server.read(&mut request).await.expect("a request") > 0);
            server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("open");
            let (_, body) = response(&mut stream).await.expect("answered");
            assert_eq!(text(body).await.expect("whole"), "ok");
            assert!(connection.poll_idle(&mut Context::from_waker(Waker::noop())).is_pending());
            assert_eq!(connection.0.exchange.borrow().wire.read.capacity(), 0, "no buffer while idle");
        }
        drop(server);
        poll_fn(|cx| connection.poll_idle(cx)).await;
        assert!(connection.is_closed());
    });
}
