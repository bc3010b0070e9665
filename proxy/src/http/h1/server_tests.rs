//! The downstream connection against scripted clients, with a toy service behind it.

use super::*;
use crate::http::{BodySource, Frame};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Answers by path; notes what ended how.
#[derive(Clone, Default)]
struct Toy(Rc<RefCell<Vec<String>>>);

impl Toy {
    fn note(&self, what: impl Into<String>) {
        self.0.borrow_mut().push(what.into());
    }

    async fn body(&self, mut body: Body) -> Result<Vec<u8>, StreamError> {
        let mut all = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
            match frame? {
                Frame::Data(data) => all.extend_from_slice(&data),
                Frame::Trailers(trailers) => all.extend_from_slice(format!("+{}", trailers.len()).as_bytes()),
            }
        }
        Ok(all)
    }
}

fn head(status: u16, headers: &[(&'static str, &'static str)]) -> ResponseHead {
    let mut head = ResponseHead::new(http::StatusCode::from_u16(status).expect("a status"));
    for (name, value) in headers {
        head.headers.append(*name, http::HeaderValue::from_static(value));
    }
    head
}

struct Ended<'a>(&'a Toy, bool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.note("dropped");
        }
    }
}

impl StreamService for Toy {
    fn serve(&self, request: RequestHead, body: Body, mut to: AnyResponder) -> impl Future<Output = ()> + use<> {
        let toy = self.clone();
        async move {
            let mut ended = Ended(&toy, false);
            let path = String::from_utf8_lossy(&request.path).into_owned();
            match path.as_str() {
                "/echo" => match toy.body(body).await {
                    Ok(body) => {
                        let _ = to.send_head(head(200, &[]), false);
                        let _ = to.send_data(body.into(), true);
                    }
                    Err(error) => {
                        toy.note(error.details.clone());
                        let _ = to.send_head(head(400, &[("content-length", "3")]), false);
                        let _ = to.send_data(Bytes::from_static(b"bad"), true);
                    }
                },
                "/hang" => toy.note(poll_fn(|cx| to.poll_closed(cx)).await.reason.as_str()),
                "/never" => std::future::pending().await,
                "/drop" => drop(to),
                "/half" => {
                    let _ = to.send_head(head(200, &[("content-length", "10")]), false);
                    let _ = to.send_data(Bytes::from_static(b"half"), false);
                    to.reset(ResetReason::LocalReset);
                }
                "/stop" => {
                    to.close_connection();
                    let _ = to.send_head(head(200, &[]), true);
                }
                "/continue" => {
                    let _ = to.send_informational(head(100, &[]));
                    let _ = to.send_head(head(200, &[("x", "y")]), true);
                }
                "/upgrade" => {
                    let _ = to.send_head(head(101, &[("upgrade", "toy")]), false);
                    let mut body = body;
                    while let Some(Ok(Frame::Data(data))) = poll_fn(|cx| body.poll_frame(cx)).await {
                        let end = data.ends_with(b"!");
                        let _ = to.send_data(data, end);
                        if end {
                            break;
                        }
                    }
                }
                "/big" => {
                    let _ = to.send_head(head(200, &[]), false);
                    for _ in 0..64 {
                        if poll_fn(|cx| to.poll_ready(cx)).await.is_err() {
                            break;
                        }
                        let _ = to.send_data(Bytes::from(vec![b'x'; 1024]), false);
                        toy.note("sent");
                    }
                    let _ = to.send_data(Bytes::new(), true);
                }
                _ => {
                    let _ = to.send_head(head(200, &[("content-length", "2")]), false);
                    let _ = to.send_data(Bytes::from_static(b"ok"), true);
                }
            }
            ended.1 = true;
        }
    }

    fn reject(&self, bad: BadRequest, mut to: AnyResponder) -> impl Future<Output = ()> + use<> {
        self.note(bad.details);
        async move {
            let _ = to.send_head(head(bad.status.as_u16(), &[]), true);
        }
    }
}

struct Client {
    io: DuplexStream,
    toy: Toy,
    served: tokio::task::JoinHandle<Closed>,
    drain: Drain,
}

impl Client {
    fn new(options: ServerOptions, pipe: usize) -> Self {
        let (io, server) = tokio::io::duplex(pipe);
        let (toy, drain) = (Toy::default(), Drain::new());
        let serving = serve(Io::Boxed(Box::new(server)), Rc::new(options), toy.clone(), drain.clone());
        Self { io, toy, served: tokio::task::spawn_local(serving), drain }
    }

    async fn send(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.expect("the connection is open");
    }

    async fn expect(&mut self, text: &str) {
        let mut got = vec![0; text.len()];
        let mut n = 0;
        while n < got.len() {
            match self.io.read(&mut got[n..]).await.expect("readable") {
                0 => break,
                more => n += more,
            }
        }
        assert_eq!(String::from_utf8_lossy(&got[..n]), text);
    }

    /// The rest until the connection closes, and why it did.
    async fn rest(mut self) -> (String, Closed, Vec<String>) {
        let mut rest = String::new();
        self.io.read_to_string(&mut rest).await.expect("text");
        drop(self.io);
        let closed = self.served.await.expect("no panic");
        (rest, closed, self.toy.0.take())
    }
}

/// Runs `test` with a client of a fresh connection.
fn with<F: Future<Output = ()>>(options: ServerOptions, test: impl FnOnce(Client) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let test = test(Client::new(options, 64 * 1024));
        tokio::time::timeout(Duration::from_secs(10), test).await.expect("in time");
    });
}

fn plain<F: Future<Output = ()>>(test: impl FnOnce(Client) -> F) {
    with(ServerOptions::default(), test);
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const OK_CLOSE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

#[test]
fn pipelined_requests_are_served_in_order() {
    plain(|mut client| async move {
        let echo = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
        client
            .send(&format!(
                "GET / HTTP/1.1\r\nhost: a\r\n\r\n{echo}GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
            ))
            .await;
        client.expect(OK).await;
        client.expect("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
        client.expect(OK_CLOSE).await;
        assert_eq!(client.rest().await, (String::new(), Closed::Local, vec![]));
    });
}

#[test]
fn chunks_with_trailers_arrive_byte_by_byte() {
    let mut options = ServerOptions::default();
    options.http1.enable_trailers = true;
    with(options, |mut client| async move {
        for byte in
            "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n".chars()
        {
            client.send(&byte.to_string()).await;
            tokio::task::yield_now().await;
        }
        client.expect("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc+1\r\n0\r\n\r\n").await;
    });
}

#[test]
fn head_requests_get_no_body() {
    plain(|mut client| async move {
        client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\nHEAD /echo HTTP/1.1\r\nhost: a\r\n\r\nGET /continue HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.expect("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await;
        client.expect("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        client.expect("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 0\r\n\r\n").await;
    });
}

#[test]
fn malformed_requests_are_rejected_and_the_connection_closed() {
    for (raw, status, details) in [
        ("nonsense\r\n\r\n", "400 Bad Request", "http1.codec_error"),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", "426 Upgrade Required", "low_version"),
        ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request", "missing_host_header"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "400 Bad Request",
            "http1.content_length_and_chunked_not_allowed",
        ),
    ] {
        let options = ServerOptions { delayed_close_timeout: None, ..Default::default() };
        with(options, |mut client| async move {
            client.send(raw).await;
            let (got, closed, notes) = client.rest().await;
            assert_eq!(got, format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"));
            assert_eq!((closed, notes), (Closed::ProtocolError, vec![details.to_owned()]));
        });
    }
}

#[test]
fn a_malformed_body_is_answered_by_the_service() {
    plain(|mut client| async move {
        client.send("POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await;
        client.expect("HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbad").await;
        let (rest, closed, notes) = client.rest().await;
        assert_eq!((rest.as_str(), closed, notes), ("", Closed::Local, vec!["http1.codec_error".to_owned()]));
    });
}

#[test]
fn an_early_response_closes_once_the_client_has_had_time() {
    let options = ServerOptions { delayed_close_timeout: Some(Duration::from_millis(50)), ..Default::default() };
    with(options, |mut client| async move {
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nxxx").await;
        client.expect(OK_CLOSE).await;
        // More of the body is taken and forgotten.
        client.send(&"x".repeat(200_000)).await;
        assert_eq!(client.rest().await.1, Closed::Local);
    });
}

#[test]
fn a_client_that_goes_away_ends_the_stream() {
    for (raw, note) in [
        ("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n", "connection termination"),
        ("GET /never HTTP/1.1\r\nhost: a\r\n\r\n", "dropped"),
        ("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc", ""),
        ("GET / HTTP/1.1\r\nho", "downstream_remote_disconnect"),
    ] {
        plain(|mut client| async move {
            client.send(raw).await;
            client.io.shutdown().await.expect("open");
            let (rest, closed, notes) = client.rest().await;
            assert_eq!((rest.as_str(), closed, notes), ("", Closed::Remote, vec![note.to_owned()]), "{raw}");
        });
    }
}

#[test]
fn unfinished_responses_close_the_connection() {
    for (path, expected) in [("/drop", ""), ("/half", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")] {
        plain(|mut client| async move {
            client.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            let (rest, closed, _) = client.rest().await;
            assert_eq!((rest.as_str(), closed), (expected, Closed::Local));
        });
    }
}

#[test]
fn draining_and_limits_close_after_a_whole_response() {
    plain(|mut client| async move {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.expect(OK).await;
        client.drain.start();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(client.rest().await, (OK_CLOSE.to_owned(), Closed::Drained, vec![]));
    });
    let options = ServerOptions { max_requests_per_connection: Some(2), ..Default::default() };
    with(options, |mut client| async move {
        client.send(&"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3)).await;
        assert_eq!(client.rest().await, (format!("{OK}{OK_CLOSE}"), Closed::MaxRequests, vec![]));
    });
    plain(|mut client| async move {
        client.send("GET /stop HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.expect("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(client.rest().await.1, Closed::Local);
    });
}

#[test]
fn timeouts() {
    let short = Some(Duration::from_millis(20));
    let options = ServerOptions { idle_timeout: short, ..Default::default() };
    with(options, |client| async move { assert_eq!(client.rest().await.1, Closed::IdleTimeout) });
    let options = ServerOptions { request_headers_timeout: short, delayed_close_timeout: None, ..Default::default() };
    with(options, |mut client| async move {
        client.send("GET / HTTP/1.1\r\n").await;
        let (rest, closed, notes) = client.rest().await;
        assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
        assert_eq!((closed, notes), (Closed::ProtocolError, vec!["request_header_timeout".to_owned()]));
    });
    let options = ServerOptions { max_connection_duration: short, drain_timeout: Duration::ZERO, ..Default::default() };
    with(options, |client| async move { assert_eq!(client.rest().await.1, Closed::MaxDuration) });
}

#[test]
fn an_upgrade_makes_a_tunnel() {
    plain(|mut client| async move {
        client.send("GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: toy\r\n\r\nfirst").await;
        client.expect("HTTP/1.1 101 Switching Protocols\r\nupgrade: toy\r\nconnection: upgrade\r\n\r\nfirst").await;
        client.send("bye!").await;
        let (rest, closed, _) = client.rest().await;
        assert_eq!((rest.as_str(), closed), ("bye!", Closed::Local));
    });
}

#[test]
fn http_10_ends_with_the_connection_unless_kept() {
    let old = || {
        let mut options = ServerOptions::default();
        options.http1.accept_http_10 = true;
        options
    };
    with(old(), |mut client| async move {
        client.send("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n").await;
        client.expect("HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok").await;
        client.send("GET /big HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n").await;
        let (rest, _, _) = client.rest().await;
        assert_eq!(rest, format!("HTTP/1.0 200 OK\r\nconnection: close\r\n\r\n{}", "x".repeat(65536)));
    });
}

#[test]
fn a_slow_client_holds_the_stream_back() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut client = Client::new(ServerOptions { buffer_limit: 4096, ..Default::default() }, 1024);
        client.send("GET /big HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let sent = client.toy.0.borrow().len();
        assert!(sent < 8, "{sent} KiB were taken");
        let (rest, _, notes) = client.rest().await;
        assert!(rest.ends_with("\r\n0\r\n\r\n") && notes.len() == 64);
    });
}

#[test]
fn an_idle_connection_is_small() {
    let (_io, server) = tokio::io::duplex(64);
    let options = Rc::new(ServerOptions::default());
    let serving = serve(Io::Boxed(Box::new(server)), options, Toy::default(), Drain::new());
    let (future, shared) = (size_of_val(&serving), size_of::<Shared>());
    assert!(future < 1024 && shared < 768, "{future} and {shared} bytes");
}
