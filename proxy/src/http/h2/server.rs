//! The downstream side: one connection, its streams served by a [`StreamService`] in the same task.
//!
//! Streams live in the connection's task, so that what they send in one turn leaves in one write, without a wake-up in
//! between. The end of the connection reaches every stream through `poll_closed`; a stream that does not end on that is
//! dropped.

use super::{
    BodyReader, Responder,
    body::Owner,
    connection::{Link, Shared},
    core::{Core, Fatal},
    error,
    frame::Code,
    head::{Incoming, Refusal},
    keepalive::KeepaliveTimer,
    options::ServerOptions,
    receive::Step,
};
use crate::{
    base::{Drain, ResetReason, Timer, clock, drain::DrainWatch},
    http::{BadRequest, Body, RequestHead, StreamService, codec::ConnectionEvent, service},
    transport::Io,
};
use futures_util::{StreamExt, stream::FuturesUnordered, task::AtomicWaker};
use http::StatusCode;
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Requests that are begun before those that were begun are looked at.
const HEADS_AT_ONCE: usize = 8;
/// Reads of one connection before others of this thread have their turn.
const TURNS: usize = 16;

/// Serves one connection to its end. `event` is called when something happens to the connection as a whole.
pub async fn serve<S: StreamService + 'static>(
    io: Io,
    options: Rc<ServerOptions>,
    service: S,
    drain: Drain,
    event: impl Fn(ConnectionEvent),
) {
    options.stats.nghttp2_downstream_connections.inc();
    let limits = (options.max_request_headers_kb, options.max_headers_count);
    let core = Core::new(false, &options.http2, limits, options.stats.clone());
    let mut connection = Connection::new(io, Rc::new(Shared::new(core)), options.clone(), drain.watch(), &event);
    let serve =
        |request, body, responder| -> Served { clock::hold(|| Box::pin(service.serve(request, body, responder))) };
    let reject = |bad, responder| -> Served { Box::pin(service.reject(bad, responder)) };
    let linger = connection.run(serve, reject).await;
    if connection.stage != Stage::Open {
        event(ConnectionEvent::ClosedByUs);
    }
    if linger && let Some(limit) = options.delayed_close_timeout.filter(|limit| !limit.is_zero()) {
        let Connection { link, shared, .. } = &mut connection;
        let linger = poll_fn(|cx| link.poll_linger(&mut shared.core.borrow_mut(), cx));
        let _ = tokio::time::timeout(limit, linger).await;
    }
}

/// A stream while it is served: in a box, so that what is left of it while something may still wake it is small.
type Served = Pin<Box<dyn Future<Output = ()>>>;

struct Running(Served);

impl Future for Running {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        clock::hold(|| self.0.as_mut().poll(cx))
    }
}

struct Connection<'a, E> {
    link: Link,
    shared: Rc<Shared>,
    options: Rc<ServerOptions>,
    drain: DrainWatch,
    stage: Stage,
    drain_timer: Timer,
    idle: Timer,
    age: Timer,
    keepalive: Option<KeepaliveTimer>,
    /// While what is left is written before the end.
    close_timer: Timer,
    /// What was left when it was looked at last.
    unwritten: usize,
    /// While a head is incomplete.
    head_timer: Timer,
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

/// What came of reading.
enum Read {
    /// Nothing more is there.
    Idle,
    /// There may be more.
    Again,
    /// There is more, but what was begun comes first.
    Heads,
}

impl<'a, E: Fn(ConnectionEvent)> Connection<'a, E> {
    fn new(io: Io, shared: Rc<Shared>, options: Rc<ServerOptions>, drain: DrainWatch, event: &'a E) -> Self {
        let keepalive = KeepaliveTimer::new(options.http2.connection_keepalive.as_ref());
        let (mut idle, mut age) = (Timer::new(), Timer::new());
        idle.set_after(options.idle_timeout);
        age.set_after(options.max_connection_duration);
        Self {
            link: Link::new(io),
            shared,
            options,
            drain,
            stage: Stage::Open,
            drain_timer: Timer::new(),
            idle,
            age,
            keepalive,
            close_timer: Timer::new(),
            unwritten: 0,
            head_timer: Timer::new(),
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
        let mut streams = FuturesUnordered::new();
        poll_fn(|cx| {
            signal.task.register(cx.waker());
            signal.busy.store(true, Ordering::Relaxed);
            self.shared.resume(cx);
            let mut turns = 0;
            let turn = loop {
                signal.woken.store(false, Ordering::Relaxed);
                self.shared.take_dirty();
                let read = self.read(cx, |admitted| {
                    streams.push(Running(match admitted {
                        Admitted::Serve(request, body, responder) => serve(request, body, responder),
                        Admitted::Reject(bad) => reject(bad.0, bad.1),
                    }));
                });
                while let Poll::Ready(Some(())) = streams.poll_next_unpin(&mut Context::from_waker(&waker)) {
                    if streams.is_empty() {
                        self.idle.set_after(self.options.idle_timeout);
                    }
                }
                if matches!(read, Read::Heads) {
                    continue;
                }
                let timed = self.poll_timers(cx);
                let over = self.write(streams.is_empty(), cx);
                if over.is_ready() {
                    // Those who waited for something else learn of the end.
                    while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {}
                    break over;
                }
                turns += 1;
                if turns == TURNS {
                    cx.waker().wake_by_ref();
                    break Poll::Pending;
                }
                let idle = matches!(read, Read::Idle) && !timed;
                if idle && !self.shared.take_dirty() && !signal.woken.load(Ordering::Acquire) {
                    self.link.rest();
                    self.shared.core.borrow_mut().rest();
                    break Poll::Pending;
                }
            };
            self.shared.pause();
            signal.busy.store(false, Ordering::Release);
            if turn.is_pending() && signal.woken.load(Ordering::Acquire) {
                cx.waker().wake_by_ref();
            }
            turn
        })
        .await
    }

    /// Takes what came, and reads once if that was everything.
    fn read(&mut self, cx: &mut Context<'_>, mut start: impl FnMut(Admitted)) -> Read {
        let (mut filled, mut heads) = (false, 0);
        loop {
            if self.shared.core.borrow().is_closed() {
                return Read::Idle;
            }
            let step = self.shared.core.borrow_mut().receive(&mut self.link.input);
            match step {
                Ok(Step::More) if filled => return Read::Again,
                Ok(Step::More) => match self.link.poll_fill(cx) {
                    Poll::Ready(Ok(n)) if n > 0 => filled = true,
                    Poll::Ready(_) => self.shared.core.borrow_mut().close(ResetReason::ConnectionTermination, ""),
                    Poll::Pending => return Read::Idle,
                },
                Ok(Step::Request(id, incoming, end)) => {
                    start(self.admit(id, incoming, end));
                    heads += 1;
                    if heads == HEADS_AT_ONCE {
                        return Read::Heads;
                    }
                }
                Ok(Step::TooMany(id)) => self.too_many(id),
                Ok(Step::Malformed) | Err(Fatal::Killed) => {}
                Err(Fatal::Error(code)) => self.abort(code),
            }
            if self.shared.core.borrow().too_many_resets {
                self.abort(Code::INTERNAL_ERROR);
            }
        }
    }

    /// The client began a stream that is one too many. It may not know better before it has read our SETTINGS.
    fn too_many(&mut self, id: u32) {
        self.options.stats.stream_refused_errors.inc();
        if !self.shared.core.borrow().settings_acked {
            return self.shared.core.borrow_mut().put_reset(id, Code::REFUSED_STREAM);
        }
        self.abort(Code::PROTOCOL_ERROR);
    }

    /// Writes what there is; ready when the connection is over.
    fn write(&mut self, is_idle: bool, cx: &mut Context<'_>) -> Poll<bool> {
        let core = &mut *self.shared.core.borrow_mut();
        if core.is_killed() {
            return Poll::Ready(true);
        }
        let written = self.link.poll_write(core, cx);
        if let Poll::Ready(Err(_)) = written {
            core.close(ResetReason::ConnectionTermination, "");
            return Poll::Ready(false);
        }
        if core.is_closed() {
            return Poll::Ready(self.stage == Stage::Aborting);
        }
        if self.stage == Stage::Draining && is_idle && core.streams.is_empty() && written.is_ready() {
            core.close(ResetReason::ConnectionTermination, "");
            return Poll::Ready(true);
        }
        if self.stage == Stage::Draining && is_idle {
            // Nobody is served any more. Who does not take what is left, or gives no window for it, has so long.
            let unwritten = core.out.pending() + core.streams.keys().len();
            if self.close_timer.deadline().is_none() || unwritten != self.unwritten {
                self.unwritten = unwritten;
                self.close_timer.set_after(self.options.delayed_close_timeout.filter(|limit| !limit.is_zero()));
            }
            if self.close_timer.poll(cx).is_ready() {
                core.kill(ResetReason::ConnectionTermination, "");
                return Poll::Ready(false);
            }
        }
        Poll::Pending
    }

    fn admit(&mut self, id: u32, incoming: Incoming, end: bool) -> Admitted {
        self.idle.clear();
        self.accepted += 1;
        if self.options.max_requests_per_connection.is_some_and(|max| self.accepted == u64::from(max)) {
            (self.event)(ConnectionEvent::MaxRequests);
            self.shared.request_drain();
        }
        let request = incoming.request(&self.options).and_then(|(head, length)| {
            let belied = end && length.is_some_and(|length| length > 0);
            if belied { Err((Refusal::Messaging, Some(Box::new(head)))) } else { Ok((head, length)) }
        });
        let refused = match request {
            Ok((head, length)) => {
                let key = self.shared.core.borrow_mut().accept(id, end, length, if end { 1 } else { 2 });
                let body =
                    if end { Body::Empty } else { Body::H2(BodyReader::new(Owner::Server(self.shared.clone()), key)) };
                let responder = Responder::new(self.shared.clone(), key, head.upgrade.is_some());
                return Admitted::Serve(head, body, service::Responder::H2(responder));
            }
            Err(refused) => refused,
        };
        let (status, details) = match refused.0 {
            Refusal::Policy(details) => {
                self.shared.core.borrow_mut().put_reset(id, Code::INTERNAL_ERROR);
                let large = details == error::TOO_MANY_HEADERS;
                (if large { StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE } else { StatusCode::BAD_REQUEST }, details)
            }
            Refusal::Messaging => {
                self.messaging_error(id);
                (StatusCode::BAD_REQUEST, error::MESSAGING)
            }
        };
        let responder = service::Responder::H2(Responder::gone(self.shared.clone()));
        Admitted::Reject(Box::new((BadRequest { status, details, head: refused.1 }, responder)))
    }

    /// The peer broke HTTP's rules on a stream: that may end the connection.
    fn messaging_error(&self, id: u32) {
        self.options.stats.rx_messaging_error.inc();
        if self.options.http2.stream_error_on_invalid_http_message {
            self.shared.core.borrow_mut().put_reset(id, Code::PROTOCOL_ERROR);
        } else {
            self.shared.core.borrow_mut().kill(ResetReason::ConnectionTermination, error::MESSAGING);
            (self.event)(ConnectionEvent::ProtocolError);
        }
    }

    /// Ends the connection with a GOAWAY of `code`.
    fn abort(&mut self, code: Code) {
        if self.stage != Stage::Aborting {
            self.stage = Stage::Aborting;
            (self.event)(ConnectionEvent::ProtocolError);
            self.shared.core.borrow_mut().fail(code, ResetReason::ConnectionTermination, "");
        }
    }

    /// True if the connection has to be seen to (again).
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(keepalive) = &mut self.keepalive {
            let core = &mut *self.shared.core.borrow_mut();
            let before = core.out.pending();
            if keepalive.poll_dead(cx, core).is_ready() {
                self.options.stats.keepalive_timeout.inc();
                core.kill(ResetReason::ConnectionTermination, error::PING_TIMEOUT);
                return true;
            }
            if core.out.pending() != before {
                return true;
            }
        }
        match (self.shared.core.borrow().is_in_head(), self.head_timer.deadline()) {
            (false, None) => {}
            (false, Some(_)) => self.head_timer.clear(),
            (true, None) => self.head_timer.set_after(self.options.head_timeout),
            (true, Some(_)) => {}
        }
        if self.head_timer.poll(cx).is_ready() {
            self.abort(Code::NO_ERROR);
            return true;
        }
        let stage = self.stage;
        match stage {
            Stage::Open if self.poll_drain(cx) => {
                self.stage = Stage::Warned;
                self.shared.core.borrow_mut().put_goaway(0x7fff_ffff, Code::NO_ERROR);
                self.drain_timer.set_after(Some(self.options.drain_timeout));
                true
            }
            Stage::Warned if self.drain_timer.poll(cx).is_ready() => {
                self.stage = Stage::Draining;
                let core = &mut *self.shared.core.borrow_mut();
                core.put_goaway(core.last, Code::NO_ERROR);
                true
            }
            _ => false,
        }
    }

    /// True when the drain has to start.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> bool {
        if self.shared.drain_requested() || self.drain.poll(cx).is_ready() {
            return true;
        }
        if self.age.poll(cx).is_ready() {
            (self.event)(ConnectionEvent::MaxDuration);
            return true;
        }
        if self.idle.poll(cx).is_ready() {
            (self.event)(ConnectionEvent::IdleTimeout);
            let core = &mut *self.shared.core.borrow_mut();
            if core.frames == 0 {
                // Who has not even begun to speak HTTP/2 needs no GOAWAY.
                core.close(ResetReason::ConnectionTermination, "");
            }
            return true;
        }
        false
    }
}

/// What becomes of a request.
#[expect(clippy::large_enum_variant, reason = "moved once, straight into the stream's future")]
enum Admitted {
    Serve(RequestHead, Body, service::Responder),
    Reject(Box<(BadRequest, service::Responder)>),
}

/// The streams' waker. While the connection's task runs, it only notes that they are to be looked at once more.
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
