//! Both sides against each other, over a pipe.

use super::{client::ClientEvents, *};
use crate::{
    base::{Drain, ResetReason, StreamError},
    http::{
        BadRequest, Body, BodySink, BodySource, Frame, RequestHead, ResponseEvent, ResponseHead, StreamService,
        service::Responder,
    },
    transport::Io,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    rc::Rc,
    time::Duration,
};
use tokio::task::{LocalSet, spawn_local};

/// What the service saw, and the drain that it may start.
#[derive(Clone, Default)]
struct Toy(Rc<ToyState>);

#[derive(Default)]
struct ToyState {
    resets: RefCell<Vec<ResetReason>>,
    rejected: RefCell<Vec<&'static str>>,
    received: Cell<u64>,
    gate: tokio::sync::Notify,
}

async fn frame(body: &mut Body) -> Option<Result<Frame, StreamError>> {
    poll_fn(|cx| body.poll_frame(cx)).await
}

async fn send<S: BodySink>(sink: &mut S, data: impl Into<Bytes>, end: bool) -> Result<(), StreamError> {
    poll_fn(|cx| sink.poll_ready(cx)).await?;
    sink.send_data(data.into(), end)
}

fn head(status: u16) -> ResponseHead {
    ResponseHead::new(StatusCode::from_u16(status).expect("a status"))
}

impl Toy {
    async fn run(self, request: RequestHead, mut body: Body, mut responder: Responder) -> Result<(), StreamError> {
        match &request.path[..] {
            b"/echo" => {
                responder.send_head(head(200), false)?;
                while let Some(piece) = frame(&mut body).await {
                    match piece? {
                        Frame::Data(data) => {
                            self.0.received.set(self.0.received.get() + data.len() as u64);
                            send(&mut responder, data, false).await?;
                        }
                        Frame::Trailers(trailers) => return responder.send_trailers(trailers),
                    }
                }
                responder.send_data(Bytes::new(), true)
            }
            b"/hints" => {
                responder.send_informational(head(103))?;
                let mut answer = head(200);
                answer.headers.insert("connection", HeaderValue::from_static("close"));
                responder.send_head(answer, true)
            }
            b"/hang" => {
                let reset = poll_fn(|cx| responder.poll_closed(cx)).await;
                self.0.resets.borrow_mut().push(reset.reason);
                self.0.gate.notify_one();
                Ok(())
            }
            b"/gate" => {
                self.0.gate.notified().await;
                responder.send_head(head(200), true)
            }
            b"/refuse" => {
                responder.reset(ResetReason::LocalRefusedStreamReset);
                Ok(())
            }
            b"/half" => {
                responder.send_head(head(200), false)?;
                send(&mut responder, "half", false).await
            }
            b"/upgrade" => {
                let asked = request.upgrade.as_deref() == Some(b"websocket") && request.method == Method::GET;
                responder.send_head(head(if asked { 101 } else { 400 }), true)
            }
            b"/drain" => {
                responder.close_connection();
                responder.send_head(head(200), true)
            }
            _ => responder.send_head(head(200), true),
        }
    }
}

impl StreamService for Toy {
    fn serve(&self, request: RequestHead, body: Body, responder: Responder) -> impl Future<Output = ()> + use<> {
        let run = self.clone().run(request, body, responder);
        async {
            let _ = run.await;
        }
    }

    fn reject(&self, bad: BadRequest, _: Responder) -> impl Future<Output = ()> + use<> {
        self.0.rejected.borrow_mut().push(bad.details);
        std::future::ready(())
    }
}

#[derive(Default)]
struct Events {
    goaway: Cell<bool>,
    closed: Cell<bool>,
}

impl ClientEvents for Events {
    fn goaway(&self) {
        self.goaway.set(true);
    }
    fn closed(&self) {
        self.closed.set(true);
    }
    fn stream_ended(&self) {}
}

struct World {
    toy: Toy,
    client: ClientConnection,
    events: Rc<Events>,
    drain: Drain,
    server_options: Rc<ServerOptions>,
}

impl World {
    async fn new(server: ServerOptions, client: ClientOptions) -> Self {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let (toy, drain, events) = (Toy::default(), Drain::new(), Rc::new(Events::default()));
        let server_options = Rc::new(ServerOptions { delayed_close_timeout: None, ..server });
        let (options, drained, service) = (server_options.clone(), drain.clone(), toy.clone());
        spawn_local(server::serve(Io::Boxed(Box::new(far)), options, service, drained, |_| {}));
        let (client, driver) =
            ClientConnection::handshake(Io::Boxed(Box::new(near)), Rc::new(client), events.clone()).await.expect("up");
        spawn_local(driver);
        Self { toy, client, events, drain, server_options }
    }

    fn start(&self, path: &'static str, end: bool) -> ClientStream {
        let mut stream = self.client.start();
        let mut request = RequestHead::new(Method::POST, path);
        request.scheme = Bytes::from_static(b"http");
        request.authority = Bytes::from_static(b"example.com");
        stream.send_head(&request, end).expect("sendable");
        stream
    }

    async fn get(&self, path: &'static str) -> Result<(ResponseHead, Body), StreamError> {
        answer(&mut self.start(path, true)).await
    }
}

async fn event(stream: &mut ClientStream) -> Result<ResponseEvent, StreamError> {
    poll_fn(|cx| stream.poll_response(cx)).await
}

async fn answer(stream: &mut ClientStream) -> Result<(ResponseHead, Body), StreamError> {
    loop {
        if let ResponseEvent::Head(head, body) = event(stream).await? {
            return Ok((head, body));
        }
    }
}

async fn collect(mut body: Body) -> Result<(Vec<u8>, Option<HeaderMap>), StreamError> {
    let mut all = Vec::new();
    while let Some(piece) = frame(&mut body).await {
        match piece? {
            Frame::Data(data) => all.extend_from_slice(&data),
            Frame::Trailers(trailers) => return Ok((all, Some(trailers))),
        }
    }
    Ok((all, None))
}

/// Runs until nothing moves any more.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    let test = async move { tokio::time::timeout(Duration::from_secs(60), test()).await.expect("no hang") };
    LocalSet::new().block_on(&runtime, test);
}

fn plain() -> impl Future<Output = World> {
    World::new(ServerOptions::default(), ClientOptions::default())
}

#[test]
fn messages_pass_whole_both_ways() {
    run(|| async {
        let world = plain().await;
        let mut stream = world.start("/echo", false);
        send(&mut stream, "abc", false).await.expect("open");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-t", HeaderValue::from_static("1"));
        stream.send_trailers(trailers.clone()).expect("open");
        let (head, body) = answer(&mut stream).await.expect("answered");
        assert_eq!(head.status, 200);
        assert_eq!(collect(body).await.expect("whole"), (b"abc".to_vec(), Some(trailers)));
        drop(stream);
        assert_eq!(world.client.active_streams(), 0);

        let mut stream = world.start("/hints", true);
        let ResponseEvent::Informational(hints) = event(&mut stream).await.expect("hints") else { panic!("no hints") };
        assert_eq!(hints.status, 103);
        let (head, body) = answer(&mut stream).await.expect("answered");
        assert!(!head.headers.contains_key("connection"));
        assert!(body.is_end());
    });
}

#[test]
fn grpc_streams_of_many_small_messages_live() {
    run(|| async {
        let world = plain().await;
        let mut stream = world.start("/echo", false);
        let (_, mut body) = answer(&mut stream).await.expect("answered");
        for i in 0..20_000_u32 {
            send(&mut stream, Bytes::copy_from_slice(&i.to_be_bytes()), false).await.expect("open");
            let mut got = 0;
            while got < 4 {
                let Some(Ok(Frame::Data(data))) = frame(&mut body).await else { panic!("ended at {i}") };
                got += data.len();
            }
        }
    });
}

#[test]
fn a_slow_reader_holds_its_sender_back_and_nobody_else() {
    run(|| async {
        let mut options = ClientOptions::default();
        options.http2.initial_stream_window_size = 65_535;
        let world = World::new(ServerOptions::default(), options).await;
        let mut stream = world.start("/echo", false);
        let (_, mut body) = answer(&mut stream).await.expect("answered");
        let piece = Bytes::from(vec![7; 16 * 1024]);
        let total = 64 << 20;
        let mut sent = 0;
        let writer = spawn_local(async move {
            while sent < total {
                send(&mut stream, piece.clone(), sent + piece.len() == total).await.expect("open");
                sent += piece.len();
            }
        });
        settle().await;
        // Our window, the server's unsent bytes, and what is being moved.
        let held = world.toy.0.received.get();
        assert!(held < 65_535 + 3 * send::HIGH_WATERMARK as u64, "{held}");
        assert_eq!(world.get("/other").await.expect("answered").0.status, 200);
        let mut read = 0;
        while let Some(piece) = frame(&mut body).await {
            let Frame::Data(data) = piece.expect("whole") else { panic!("no trailers were sent") };
            read += data.len();
        }
        writer.await.expect("done");
        assert_eq!(read, total);
    });
}

#[test]
fn resets_say_who_and_why() {
    run(|| async {
        let world = plain().await;
        let refused = world.get("/refuse").await.err().expect("refused");
        assert_eq!((refused.reason, refused.retry_is_safe), (ResetReason::RemoteRefusedStreamReset, true));
        assert_eq!(refused.details, "http2.remote_refuse");

        let (_, body) = world.get("/half").await.expect("a head");
        let reset = collect(body).await.expect_err("cut");
        assert_eq!((reset.reason, &*reset.details), (ResetReason::RemoteReset, "http2.remote_reset"));

        drop(world.start("/hang", true));
        settle().await;
        let stream = world.start("/hang", true);
        settle().await;
        drop(stream);
        world.toy.0.gate.notified().await;
        assert_eq!(world.toy.0.resets.take(), [ResetReason::RemoteReset]);
        assert!(world.client.can_take_stream());
    });
}

#[test]
fn the_end_of_a_connection_reaches_both_sides() {
    run(|| async {
        let world = plain().await;
        let mut stream = world.start("/hang", true);
        settle().await;
        world.client.close();
        let error = event(&mut stream).await.err().expect("ended");
        assert_eq!(error.reason, ResetReason::ConnectionTermination);
        world.toy.0.gate.notified().await;
        assert_eq!(world.toy.0.resets.take(), [ResetReason::ConnectionTermination]);
        settle().await;
        assert!(world.events.closed.get() && world.client.is_closing());
    });
}

#[test]
fn a_drain_warns_waits_and_ends_when_streams_have() {
    run(|| async {
        let world = plain().await;
        let mut slow = world.start("/gate", true);
        settle().await;
        world.drain.start();
        settle().await;
        assert!(world.events.goaway.get() && !world.events.closed.get());
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(world.server_options.stats.goaway_sent.get(), 2);
        assert!(!world.events.closed.get());
        world.toy.0.gate.notify_one();
        assert_eq!(answer(&mut slow).await.expect("answered").0.status, 200);
        drop(slow);
        settle().await;
        assert!(world.events.closed.get());
    });
}

#[test]
fn limits_drain_the_connection() {
    run(|| async {
        let idle = ServerOptions { idle_timeout: Some(Duration::from_secs(2)), ..Default::default() };
        let age = ServerOptions { max_connection_duration: Some(Duration::from_secs(2)), ..Default::default() };
        let count = ServerOptions { max_requests_per_connection: Some(1), ..Default::default() };
        for (options, after) in [(idle, 3), (age, 3), (count, 1), (ServerOptions::default(), 1)] {
            let world = World::new(options, ClientOptions::default()).await;
            let path = if after == 3 { "/" } else { "/drain" };
            assert_eq!(world.get(path).await.expect("answered").0.status, 200);
            tokio::time::sleep(Duration::from_secs(after)).await;
            assert!(world.events.goaway.get());
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert!(world.events.closed.get());
        }
    });
}

#[test]
fn too_large_heads_end_their_stream_only() {
    run(|| async {
        let world = plain().await;
        for (i, error) in [(97, None), (200, Some("http2.remote_reset"))] {
            let mut stream = world.client.start();
            let mut request = RequestHead::new(Method::GET, "/");
            request.authority = Bytes::from_static(b"h");
            for n in 0..i - 1 {
                let name = http::HeaderName::from_bytes(format!("x-{n}").as_bytes()).expect("a name");
                request.headers.insert(name, HeaderValue::from_static("v"));
            }
            stream.send_head(&request, true).expect("sendable");
            assert_eq!(answer(&mut stream).await.err().map(|e| e.details.into_owned()).as_deref(), error);
        }
        assert_eq!(world.toy.0.rejected.take(), ["http2.too_many_headers"]);
        assert_eq!(world.get("/").await.expect("answered").0.status, 200);
    });
}

#[test]
fn extended_connect_is_an_upgrade() {
    run(|| async {
        let mut options = ServerOptions::default();
        options.http2.allow_connect = true;
        let world = World::new(options, ClientOptions::default()).await;
        world.get("/").await.expect("answered");
        let mut stream = world.client.start();
        let mut request = RequestHead::new(Method::GET, "/upgrade");
        request.authority = Bytes::from_static(b"h");
        request.upgrade = Some(Bytes::from_static(b"websocket"));
        stream.send_head(&request, false).expect("sendable");
        let (head, _) = answer(&mut stream).await.expect("answered");
        assert_eq!(
            (head.status, &head.headers["upgrade"]),
            (StatusCode::SWITCHING_PROTOCOLS, &HeaderValue::from_static("websocket"))
        );
    });
}

#[test]
fn a_thousand_streams_at_once() {
    run(|| async {
        let world = plain().await;
        let mut streams: Vec<_> = (0..1000).map(|_| world.start("/echo", false)).collect();
        assert_eq!(world.client.active_streams(), 1000);
        for stream in &mut streams {
            send(stream, "x", true).await.expect("open");
        }
        for mut stream in streams {
            let (_, body) = answer(&mut stream).await.expect("answered");
            assert_eq!(collect(body).await.expect("whole").0, b"x");
        }
        assert_eq!(world.client.active_streams(), 0);
        assert_eq!(world.server_options.stats.streams_active.get(), 0);
    });
}

#[test]
fn silent_peers_are_found_by_ping() {
    run(|| async {
        let keepalive = Keepalive {
            interval: Some(Duration::from_secs(1)),
            timeout: Duration::from_secs(1),
            interval_jitter: 0.0,
            connection_idle_interval: None,
        };
        let mut options = ServerOptions::default();
        options.http2.connection_keepalive = Some(keepalive.clone());
        let world = World::new(options, ClientOptions::default()).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(world.get("/").await.expect("alive").0.status, 200);

        let (near, _far) = tokio::io::duplex(1 << 16);
        let (mut options, events) = (ClientOptions::default(), Rc::new(Events::default()));
        options.http2.connection_keepalive = Some(keepalive);
        let options = Rc::new(options);
        let handshake = ClientConnection::handshake(Io::Boxed(Box::new(near)), options.clone(), events.clone());
        let (_client, driver) = handshake.await.expect("a pipe");
        tokio::time::timeout(Duration::from_secs(3), driver).await.expect("noticed");
        assert!(events.closed.get());
        assert_eq!(options.stats.keepalive_timeout.get(), 1);
    });
}

#[test]
fn invalid_messages_end_the_connection_or_their_stream() {
    for stream_error in [false, true] {
        run(|| async move {
            let mut options = ServerOptions::default();
            options.http2.stream_error_on_invalid_http_message = stream_error;
            let world = World::new(options, ClientOptions::default()).await;
            world.get("/").await.expect("answered");
            let mut stream = world.client.start();
            let mut request = RequestHead::new(Method::GET, "/");
            request.authority = Bytes::from_static(b"user@h");
            stream.send_head(&request, true).expect("sendable");
            let error = answer(&mut stream).await.err().expect("refused");
            let reason = if stream_error { ResetReason::RemoteReset } else { ResetReason::ConnectionTermination };
            assert_eq!(error.reason, reason);
            assert_eq!(world.toy.0.rejected.take(), ["http2.violation.of.messaging.rule"]);
            assert_eq!(world.client.can_take_stream(), stream_error);
        });
    }
}
