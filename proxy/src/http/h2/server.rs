//! The downstream side: one connection, its streams served by a [`StreamService`] in the same task.
//!
//! Streams live in the connection's task, so that what they send in one turn leaves in one write, without a wake-up in
//! between. The end of the connection reaches every stream through `poll_closed`; a stream that does not end on that is
//! dropped.

use super::{
    BodyReader, Responder,
    chunk::{Chunk, HIGH_WATERMARK},
    error,
    head::{self, Refusal},
    keepalive::KeepaliveTimer,
    options::{Http2Options, ServerOptions},
    wire::{PendingReset, Wire, WireIo},
};
use crate::{
    base::{Drain, ResetReason, Timer, clock, drain::DrainWatch},
    http::{BadRequest, Body, RequestHead, StreamService, codec::ConnectionEvent, service},
    transport::Io,
};
use foldhash::{HashSet, HashSetExt};
use futures_util::{StreamExt, stream::FuturesUnordered, task::AtomicWaker};
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, StatusCode};
use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// How many streams are remembered after they were served.
const RECENT: usize = 16;

/// Serves one connection to its end. `event` is called when something happens to the connection as a whole.
pub async fn serve<S: StreamService + 'static>(
    io: Io,
    options: Rc<ServerOptions>,
    service: S,
    drain: Drain,
    event: impl Fn(ConnectionEvent),
) {
    let http2 = &options.http2;
    options.stats.nghttp2_downstream_connections.inc();
    let wire = Wire::new(io, http2, false, options.stats.clone());
    let handshake = builder(http2, &options).handshake::<_, Chunk>(WireIo(wire.clone()));
    // The client's preface is owed like a first request is.
    let handshake = match options.idle_timeout {
        Some(limit) => tokio::time::timeout(limit, handshake).await,
        None => Ok(handshake.await),
    };
    let linger = match handshake {
        Ok(Ok(h2)) => {
            let mut connection = Connection::new(h2, wire.clone(), options.clone(), drain.watch(), &event);
            let serve = |request, body, responder| -> Served {
                clock::hold(|| Box::pin(service.serve(request, body, responder)))
            };
            let reject = |bad, responder| -> Served { Box::pin(service.reject(bad, responder)) };
            let linger = connection.run(serve, reject).await;
            if connection.stage != Stage::Open {
                event(ConnectionEvent::ClosedByUs);
            }
            linger
        }
        Ok(Err(e)) => {
            if e.get_io().is_none() {
                event(ConnectionEvent::ProtocolError);
            }
            true
        }
        Err(_) => {
            event(ConnectionEvent::IdleTimeout);
            false
        }
    };
    if linger && let Some(limit) = options.delayed_close_timeout.filter(|limit| !limit.is_zero()) {
        let _ = tokio::time::timeout(limit, poll_fn(|cx| wire.poll_linger(cx))).await;
    }
    wire.close();
}

fn builder(http2: &Http2Options, options: &ServerOptions) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .header_table_size(http2.hpack_table_size)
        .max_concurrent_streams(http2.max_concurrent_streams)
        .initial_window_size(http2.initial_stream_window_size)
        .initial_connection_window_size(http2.initial_connection_window_size)
        .max_header_list_size(Http2Options::crate_header_list_size(
            options.max_request_headers_kb,
            options.max_headers_count,
        ))
        .max_send_buffer_size(HIGH_WATERMARK * 2)
        // Envoy's own limits on resets and on empty frames are kept by `Wire`; the crate's may not come before them.
        .max_concurrent_reset_streams(1024)
        .max_pending_accept_reset_streams(usize::try_from(http2.stream_reset_burst).unwrap_or(usize::MAX))
        .data_frame_budget(usize::MAX);
    if http2.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// A stream while it is served: in a box, so that what is left of it while something may still wake it is small.
type Served = Pin<Box<dyn Future<Output = ()>>>;

struct Running {
    id: u32,
    future: Served,
}

impl Future for Running {
    type Output = u32;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u32> {
        clock::hold(|| self.future.as_mut().poll(cx)).map(|()| self.id)
    }
}

struct Connection<'a, E> {
    h2: h2::server::Connection<WireIo, Chunk>,
    wire: Rc<Wire>,
    options: Rc<ServerOptions>,
    drain: DrainWatch,
    stage: Stage,
    drain_timer: Timer,
    idle: Timer,
    age: Timer,
    keepalive: Option<KeepaliveTimer>,
    /// Streams that are being served.
    active: HashSet<u32>,
    /// Streams that were served last: a reset of theirs may still be under way.
    recent: VecDeque<u32>,
    accepted: u64,
    event: &'a E,
}

/// How far the drain is.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Open,
    /// The GOAWAY that names no stream is out.
    Warned,
    /// The GOAWAY that names the last stream is out.
    Draining,
    /// A GOAWAY with an error is out.
    Aborting,
}

/// A request as the crate accepted it.
type Accepted = (Request<RecvStream>, SendResponse<Chunk>);

impl<'a, E: Fn(ConnectionEvent)> Connection<'a, E> {
    fn new(
        mut h2: h2::server::Connection<WireIo, Chunk>,
        wire: Rc<Wire>,
        options: Rc<ServerOptions>,
        drain: DrainWatch,
        event: &'a E,
    ) -> Self {
        let keepalive = KeepaliveTimer::new(options.http2.connection_keepalive.as_ref(), h2.ping_pong());
        let (mut idle, mut age) = (Timer::new(), Timer::new());
        idle.set_after(options.idle_timeout);
        age.set_after(options.max_connection_duration);
        Self {
            h2,
            wire,
            options,
            drain,
            stage: Stage::Open,
            drain_timer: Timer::new(),
            idle,
            age,
            keepalive,
            active: HashSet::new(),
            recent: VecDeque::new(),
            accepted: 0,
            event,
        }
    }

    /// Runs the connection; true if the peer may still have to read what was written last.
    async fn run(
        &mut self,
        serve: impl Fn(RequestHead, Body, service::Responder) -> Served,
        reject: impl Fn(BadRequest, service::Responder) -> Served,
    ) -> bool {
        let signal = Arc::new(Signal::default());
        let waker = Waker::from(signal.clone());
        self.wire.set_owner(waker.clone());
        let mut streams = FuturesUnordered::new();
        poll_fn(|cx| {
            signal.task.register(cx.waker());
            signal.busy.store(true, Ordering::Release);
            let turn = loop {
                let mut over = Poll::Pending;
                if signal.woken.swap(false, Ordering::AcqRel) {
                    over = self.poll_connection(&mut Context::from_waker(&waker), |id, admitted| {
                        let future = match admitted {
                            Admitted::Serve(request, body, responder) => serve(request, body, responder),
                            Admitted::Reject(bad) => reject(bad.0, bad.1),
                        };
                        streams.push(Running { id, future });
                    });
                }
                while let Poll::Ready(Some(id)) = streams.poll_next_unpin(cx) {
                    self.ended(id);
                }
                if over.is_ready() {
                    break over;
                }
                if self.poll_timers(cx) {
                    signal.woken.store(true, Ordering::Release);
                }
                if !signal.woken.load(Ordering::Acquire) {
                    break Poll::Pending;
                }
            };
            signal.busy.store(false, Ordering::Release);
            if turn.is_pending() && signal.woken.load(Ordering::Acquire) {
                cx.waker().wake_by_ref();
            }
            turn
        })
        .await
    }

    /// Moves the connection on; ready when it is over.
    fn poll_connection(&mut self, cx: &mut Context<'_>, mut start: impl FnMut(u32, Admitted)) -> Poll<bool> {
        loop {
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok(accepted))) => {
                    let id = accepted.1.stream_id().as_u32();
                    start(id, self.admit(id, accepted));
                }
                Poll::Ready(Some(Err(e))) => return Poll::Ready(self.failed(&e)),
                Poll::Ready(None) => {
                    self.wire.set_closed(ResetReason::ConnectionTermination, "");
                    return Poll::Ready(true);
                }
                // Reading may have been stopped only until the heads read so far were accepted.
                Poll::Pending if self.wire.accepted() => {}
                Poll::Pending if self.wire.reset_now() => {}
                Poll::Pending => break,
            }
        }
        for (id, code) in self.wire.take_held() {
            self.settle(id, code, &mut start);
        }
        if self.wire.is_killed() {
            return Poll::Ready(true);
        }
        if self.wire.too_many_resets() && self.stage != Stage::Aborting {
            self.abort(Reason::INTERNAL_ERROR);
            return self.poll_connection(cx, start);
        }
        match self.wire.poll_insert(cx) {
            Poll::Ready(Err(_)) => {
                self.wire.kill(ResetReason::ConnectionTermination, "");
                Poll::Ready(false)
            }
            _ => Poll::Pending,
        }
    }

    fn admit(&mut self, id: u32, (request, send): Accepted) -> Admitted {
        self.active.insert(id);
        self.idle.clear();
        self.accepted += 1;
        if self.options.max_requests_per_connection.is_some_and(|max| self.accepted == u64::from(max)) {
            (self.event)(ConnectionEvent::MaxRequests);
            self.wire.request_drain();
        }
        let (parts, recv) = request.into_parts();
        let refused = match head::request(Request::from_parts(parts, ()), &self.options) {
            Ok((head, length)) => {
                let body = if recv.is_end_stream() {
                    Body::Empty
                } else {
                    Body::H2(BodyReader::new(recv, length, self.wire.clone(), None))
                };
                let responder = Responder::new(send, head.upgrade.is_some(), self.wire.clone());
                return Admitted::Serve(head, body, service::Responder::H2(responder));
            }
            Err(refused) => refused,
        };
        let (status, details) = match refused.0 {
            Refusal::Policy(details) => {
                self.wire.reset_soon(PendingReset::Head(send, Reason::INTERNAL_ERROR));
                let large = details == error::TOO_MANY_HEADERS;
                (if large { StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE } else { StatusCode::BAD_REQUEST }, details)
            }
            Refusal::Messaging => {
                self.messaging_error();
                if !self.wire.is_killed() {
                    self.wire.reset_soon(PendingReset::Head(send, Reason::PROTOCOL_ERROR));
                }
                (StatusCode::BAD_REQUEST, error::MESSAGING)
            }
        };
        self.reject(status, details, Some(refused.1))
    }

    fn reject(&self, status: StatusCode, details: &'static str, head: Option<Box<RequestHead>>) -> Admitted {
        let responder = service::Responder::H2(Responder::gone(self.wire.clone()));
        Admitted::Reject(Box::new((BadRequest { status, details, head }, responder)))
    }

    /// The peer broke HTTP's rules on a stream: that may end the connection.
    fn messaging_error(&self) {
        self.options.stats.rx_messaging_error.inc();
        if !self.options.http2.stream_error_on_invalid_http_message {
            self.wire.kill(ResetReason::ConnectionTermination, error::MESSAGING);
            (self.event)(ConnectionEvent::ProtocolError);
        }
    }

    /// Decides about a reset that the crate wants to send.
    fn settle(&mut self, id: u32, code: u32, start: &mut impl FnMut(u32, Admitted)) {
        if self.active.contains(&id) || self.recent.contains(&id) {
            // Of a stream that was accepted: ours, or a body that belies its content-length.
            self.wire.release(id, code);
        } else if code == u32::from(Reason::REFUSED_STREAM) {
            self.options.stats.stream_refused_errors.inc();
            if self.wire.settings_acked() {
                self.abort(Reason::PROTOCOL_ERROR);
            } else {
                self.wire.release(id, code);
            }
        } else {
            self.messaging_error();
            if !self.wire.is_killed() {
                self.wire.release(id, code);
            }
            start(id, self.reject(StatusCode::BAD_REQUEST, error::MESSAGING, None));
        }
    }

    /// Ends the connection with a GOAWAY of `code`.
    fn abort(&mut self, code: Reason) {
        if self.stage != Stage::Aborting {
            self.stage = Stage::Aborting;
            (self.event)(ConnectionEvent::ProtocolError);
            self.h2.abrupt_shutdown(code);
        }
    }

    /// The connection ended with an error; true if the peer should get the chance to read our GOAWAY.
    fn failed(&self, e: &h2::Error) -> bool {
        self.wire.set_closed(ResetReason::ConnectionTermination, "");
        let ours = e.is_go_away() && e.is_library();
        if ours {
            (self.event)(ConnectionEvent::ProtocolError);
        }
        ours || self.wire.is_killed()
    }

    fn ended(&mut self, id: u32) {
        self.active.remove(&id);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(id);
        if self.active.is_empty() {
            self.idle.set_after(self.options.idle_timeout);
        }
    }

    /// True if the connection has to be polled (again).
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll_dead(cx, &self.wire).is_ready()
        {
            self.options.stats.keepalive_timeout.inc();
            self.wire.kill(ResetReason::ConnectionTermination, error::PING_TIMEOUT);
            return true;
        }
        let stage = self.stage;
        match stage {
            Stage::Open if self.poll_drain(cx) => {
                self.stage = Stage::Warned;
                self.h2.graceful_shutdown();
                self.drain_timer.set_after(Some(self.options.drain_timeout));
                true
            }
            Stage::Warned if self.drain_timer.poll(cx).is_ready() => {
                self.stage = Stage::Draining;
                self.wire.finish_drain();
                true
            }
            _ => false,
        }
    }

    /// True when the drain has to start.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> bool {
        if self.wire.drain_requested() || self.drain.poll(cx).is_ready() {
            return true;
        }
        if self.age.poll(cx).is_ready() {
            (self.event)(ConnectionEvent::MaxDuration);
            return true;
        }
        if self.idle.poll(cx).is_ready() {
            (self.event)(ConnectionEvent::IdleTimeout);
            return true;
        }
        false
    }
}

/// What becomes of an accepted request.
#[expect(clippy::large_enum_variant, reason = "moved once, straight into the stream's future")]
enum Admitted {
    Serve(RequestHead, Body, service::Responder),
    Reject(Box<(BadRequest, service::Responder)>),
}

/// The crate's waker. While the connection's task runs, it only notes that the connection is to be polled once more.
struct Signal {
    task: AtomicWaker,
    busy: AtomicBool,
    woken: AtomicBool,
}

impl Default for Signal {
    fn default() -> Self {
        Self { task: AtomicWaker::new(), busy: AtomicBool::new(false), woken: AtomicBool::new(true) }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        if !self.busy.load(Ordering::Acquire) {
            self.task.wake();
        }
    }
}
