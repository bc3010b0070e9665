//! The downstream side of HTTP/1: one connection, one stream at a time.
//!
//! [`serve`] reads a head, lets the [`StreamService`] serve the stream, writes what it answers, and goes on with the
//! next head until something says that the connection closes. The loop writes out what the service sent whenever the
//! service waits, so that head and first data leave in one write. Invariant: a response whose request was not read to
//! its end, or that was cut, is the connection's last.

use super::{
    BodyReader,
    body::BodyDecoder,
    details::*,
    encode::{self, BodyEncoder, Reply},
    exchange::{Count, Exchange},
    fields::has_token,
    options::ServerOptions,
    parse::{self, HeadScan, Kind, Rejected},
};
use crate::{
    base::{Drain, ResetReason, Side, StreamError, Timer, clock},
    http::{
        BadRequest, Body, BodySink, Protocol, RequestHead, ResponseHead, StreamService, body::PipeRoom,
        service::Responder as AnyResponder,
    },
    transport::{Io, Pipe},
};
use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, header::CONNECTION};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The client closed it.
    Remote,
    /// `idle_timeout` passed without a stream.
    IdleTimeout,
    /// `max_connection_duration` passed.
    MaxDuration,
    /// It served as many requests as it may.
    MaxRequests,
    /// While draining.
    Drained,
    /// The client asked for it, or the response did.
    Local,
    /// The client spoke no acceptable HTTP.
    ProtocolError,
}

pub(super) struct Shared {
    pub exchange: RefCell<Exchange>,
    options: Rc<ServerOptions>,
    drain: Drain,
    started: Instant,
    facts: Cell<Facts>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.exchange.get_mut().wire.shutdown();
    }
}

/// What decides how the present response is written and what comes after it.
#[derive(Clone, Copy)]
struct Facts {
    reply: Reply,
    /// Set as soon as anything forbids another exchange.
    close: Option<Closed>,
    /// The connection became a tunnel.
    tunnel: bool,
}

/// Serves a downstream connection until it closes. Dropping the future closes it at once.
pub fn serve<S: StreamService + 'static>(
    io: Io,
    options: Rc<ServerOptions>,
    service: S,
    drain: Drain,
) -> impl Future<Output = Closed> {
    // Not in the future, which would keep room for what it was given.
    let shared = Rc::new(Shared {
        exchange: Exchange::new(io, Side::Downstream, options.buffer_limit, options.http1.enable_trailers).into(),
        started: Instant::now(),
        facts: Cell::new(Facts::new(Protocol::Http11)),
        options,
        drain,
    });
    serve_all(shared, service)
}

async fn serve_all<S: StreamService + 'static>(shared: Rc<Shared>, service: S) -> Closed {
    let mut timer = Timer::new();
    let mut served = 0;
    let closed = loop {
        let head = match poll_head(&shared, &mut timer).await {
            Ok(head) => head,
            Err(closed) => break closed,
        };
        run(&shared, begin(&shared, head, &service, &mut served)).await;
        if let Some(closed) = finish(&shared, &mut timer).await {
            break closed;
        }
    };
    shared.exchange.borrow_mut().wire.shutdown();
    closed
}

/// The stream of a request, or of what was none.
fn begin<S: StreamService + 'static>(
    shared: &Rc<Shared>,
    head: Head,
    service: &S,
    served: &mut u32,
) -> Pin<Box<dyn Future<Output = ()>>> {
    match head {
        Head::Request(request) => {
            *served = served.saturating_add(1);
            let facts = Facts {
                close: if !request.keep_alive {
                    Some(Closed::Local)
                } else if shared.options.max_requests_per_connection.is_some_and(|max| *served >= max) {
                    Some(Closed::MaxRequests)
                } else {
                    None
                },
                ..Facts::of(&request.head)
            };
            let parse::Request { head, body, size, has_host, .. } = *request;
            let (body, responder) = shared.begin(facts, body, size);
            if has_host {
                return clock::hold(|| Box::pin(service.serve(head, body, responder)));
            }
            if shared.options.http1.override_stream_error_on_invalid_http_message != Some(true) {
                shared.close(Closed::ProtocolError);
            }
            Box::pin(service.reject(bad(MISSING_HOST, Some(Box::new(head))), responder))
        }
        Head::Bad(rejected) => {
            let responder = shared.begin_rejected();
            if rejected.bad == DISCONNECTED {
                shared.exchange.borrow_mut().fail_closed();
            }
            Box::pin(service.reject(bad(rejected.bad, rejected.head), responder))
        }
    }
}

fn bad(bad: BadMessage, head: Option<Box<RequestHead>>) -> BadRequest {
    BadRequest { status: bad.status, details: bad.details, head }
}

enum Head {
    Request(Box<parse::Request>),
    Bad(Rejected),
}

/// Waits for the next head.
async fn poll_head(shared: &Shared, timer: &mut Timer) -> Result<Head, Closed> {
    let options = &shared.options;
    let kind = Kind::Request { custom_methods: options.http1.allow_custom_methods };
    let mut scan = HeadScan::default();
    // While nothing of a head came, the connection is idle.
    let now = Instant::now();
    let idle = options.idle_timeout.map(|idle| (now + idle, Closed::IdleTimeout));
    let ends = options
        .max_connection_duration
        .filter(|_| !options.safe_max_connection_duration)
        .map(|max| shared.started + max + options.drain_timeout);
    let ends = ends.map(|at| (at.max(now), Closed::MaxDuration));
    let (deadline, why) = idle.into_iter().chain(ends).min_by_key(|(at, _)| *at).unzip();
    match deadline {
        Some(at) => timer.set(at),
        None => timer.clear(),
    }
    let mut receiving = false;
    poll_fn(|cx| {
        let exchange = &mut *shared.exchange.borrow_mut();
        loop {
            let wire = &mut exchange.wire;
            match scan.scan(&mut wire.read, kind, options.limits.bytes) {
                Ok(Some(len)) => {
                    let request = parse::request(&wire.read[..len], &options.limits, &options.http1);
                    wire.read.advance(len);
                    exchange.received = (0, (len + scan.skipped) as u64);
                    return Poll::Ready(Ok(match request {
                        Ok(request) => Head::Request(Box::new(request)),
                        Err(rejected) => Head::Bad(rejected),
                    }));
                }
                Ok(None) => {}
                Err(bad) => return Poll::Ready(Ok(Head::Bad(bad.into()))),
            }
            if !receiving && !wire.read.is_empty() {
                receiving = true;
                timer.set_after(options.request_headers_timeout.or(options.stream_idle_timeout));
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) if scan.started() => return Poll::Ready(Ok(Head::Bad(DISCONNECTED.into()))),
                Poll::Ready(_) => return Poll::Ready(Err(Closed::Remote)),
                Poll::Pending => {
                    wire.release();
                    return timer.poll(cx).map(|()| match why {
                        Some(why) if !receiving => Err(why),
                        _ if options.request_headers_timeout.is_some() => Ok(Head::Bad(HEADER_TIMEOUT.into())),
                        _ => Ok(Head::Bad(STREAM_TIMEOUT.into())),
                    });
                }
            }
        }
    })
    .await
}

/// Polls the stream to its end, writing what it sends and watching for the client's going away.
async fn run(shared: &Shared, mut stream: Pin<Box<dyn Future<Output = ()>>>) {
    poll_fn(|cx| {
        loop {
            if clock::hold(|| stream.as_mut().poll(cx)).is_ready() {
                return Poll::Ready(());
            }
            let exchange = &mut *shared.exchange.borrow_mut();
            if is_gone(exchange) {
                // It was polled with the failure to be seen, and did not end by itself: it is dropped.
                return Poll::Ready(());
            }
            exchange.write_aside(cx);
            // With nothing left to read of the request, what can come is the client's end, or its next request.
            if exchange.failure.is_none() && exchange.incoming.is_end() && exchange.wire.read.is_empty() {
                match exchange.wire.poll_fill(cx) {
                    Poll::Ready(Ok(n)) if n > 0 => {}
                    Poll::Ready(_) => drop(exchange.fail_closed()),
                    Poll::Pending => {}
                }
            }
            if !is_gone(exchange) {
                return Poll::Pending;
            }
        }
    })
    .await
}

fn is_gone(exchange: &Exchange) -> bool {
    exchange.failure.as_ref().is_some_and(|error| error.reason == ResetReason::ConnectionTermination)
}

/// Writes out the rest of a response. `None` if the connection goes on.
async fn finish(shared: &Shared, timer: &mut Timer) -> Option<Closed> {
    let facts = shared.facts.get();
    let (complete, whole_request) = {
        let mut exchange = shared.exchange.borrow_mut();
        if is_gone(&exchange) {
            return Some(Closed::Remote);
        }
        if !exchange.outgoing.is_done() {
            exchange.broken = true;
        }
        (!exchange.broken, exchange.incoming.is_end())
    };
    let close = facts.close.or((!complete || !whole_request || facts.tunnel).then_some(Closed::Local));
    let patience = if close.is_some() { shared.options.delayed_close_timeout } else { shared.options.idle_timeout };
    timer.clear();
    let flushed = poll_fn(|cx| {
        let exchange = &mut *shared.exchange.borrow_mut();
        let before = exchange.wire.written();
        match exchange.wire.poll_write(cx) {
            Poll::Ready(result) => Poll::Ready(result.is_ok()),
            Poll::Pending => {
                if timer.deadline().is_none() || exchange.wire.written() > before {
                    timer.set_after(patience);
                }
                timer.poll(cx).map(|()| false)
            }
        }
    })
    .await;
    if !flushed {
        return Some(close.unwrap_or(Closed::Remote));
    }
    let close = close?;
    if whole_request || facts.tunnel || shared.options.delayed_close_timeout.is_none() {
        return Some(close);
    }
    // The client is still sending: closing now would reset the connection and might take the response with it.
    timer.set_after(patience);
    poll_fn(|cx| {
        let exchange = &mut *shared.exchange.borrow_mut();
        loop {
            exchange.wire.read.clear();
            match exchange.wire.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return timer.poll(cx),
            }
        }
    })
    .await;
    Some(close)
}

impl Facts {
    fn new(protocol: Protocol) -> Self {
        let reply = Reply { protocol, to_head: false, to_connect: false, to_upgrade: false, close: false };
        Self { reply, close: None, tunnel: false }
    }

    fn of(head: &RequestHead) -> Self {
        let mut facts = Self::new(head.protocol);
        facts.reply.to_head = head.method == Method::HEAD;
        facts.reply.to_connect = head.is_connect();
        facts.reply.to_upgrade = head.upgrade.is_some();
        facts
    }
}

impl Shared {
    fn begin(self: &Rc<Self>, facts: Facts, body: BodyDecoder, size: u64) -> (Body, AnyResponder) {
        self.facts.set(facts);
        let mut exchange = self.exchange.borrow_mut();
        let wire = exchange.received.1;
        exchange.begin();
        exchange.received = (size, wire.saturating_sub(size));
        exchange.incoming = body;
        let body = if exchange.incoming.is_end() {
            Body::Empty
        } else {
            Body::H1(BodyReader::downstream(self.clone(), exchange.serial))
        };
        (body, AnyResponder::H1(Responder::new(self.clone(), exchange.serial)))
    }

    fn begin_rejected(self: &Rc<Self>) -> AnyResponder {
        self.facts.set(Facts { close: Some(Closed::ProtocolError), ..Facts::new(Protocol::Http11) });
        let mut exchange = self.exchange.borrow_mut();
        let wire = exchange.received.1.max(exchange.wire.read.len() as u64);
        exchange.begin();
        // Nothing that follows can be trusted to be where it seems.
        exchange.incoming = BodyDecoder::raw();
        exchange.received = (0, wire);
        AnyResponder::H1(Responder::new(self.clone(), exchange.serial))
    }

    fn close(&self, why: Closed) {
        let mut facts = self.facts.get();
        facts.close.get_or_insert(why);
        self.facts.set(facts);
    }

    /// Whether the connection has reached the age at which it is drained.
    fn is_old(&self) -> bool {
        self.options.max_connection_duration.is_some_and(|max| self.started.elapsed() >= max)
    }
}

/// The way back to the client of one stream.
pub struct Responder {
    shared: Rc<Shared>,
    serial: u64,
    sent: Count,
}

impl Responder {
    fn new(shared: Rc<Shared>, serial: u64) -> Self {
        Self { shared, serial, sent: (0, 0) }
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Exchange) -> Result<T, StreamError>) -> Result<T, StreamError> {
        let mut exchange = self.shared.exchange.borrow_mut();
        if exchange.serial != self.serial {
            return Err(exchange.stale());
        }
        let result = f(&mut exchange);
        self.sent = exchange.sent();
        result
    }

    /// Fails if nobody can get a response any more. A malformed request still can be answered.
    fn check(exchange: &Exchange) -> Result<(), StreamError> {
        match exchange.lost() {
            Some(error) => Err(error.clone()),
            None if !exchange.outgoing.is_waiting() => {
                Err(StreamError::new(Side::Ours, ResetReason::LocalReset, "a second response"))
            }
            None => Ok(()),
        }
    }

    /// Sends a 1xx response (not 101) ahead of the final one. Dropped for HTTP/1.0.
    pub fn send_informational(&mut self, head: ResponseHead) -> Result<(), StreamError> {
        let shared = self.shared.clone();
        let reply = shared.facts.get().reply;
        self.with(|exchange| {
            Self::check(exchange)?;
            if reply.protocol != Protocol::Http10 {
                let (_, size) = encode::response(&head, true, reply, &shared.options.http1, &mut exchange.wire.out);
                exchange.sent_headers += size;
            }
            Ok(())
        })
    }

    /// Sends the response head; `end`: there is no body. Written out with the first data, or when the stream waits.
    pub fn send_head(&mut self, head: ResponseHead, end: bool) -> Result<(), StreamError> {
        let shared = self.shared.clone();
        self.with(|exchange| {
            Self::check(exchange)?;
            let mut facts = shared.facts.get();
            let tunnel = facts.reply.tunnels(head.status);
            if !tunnel && facts.close.is_none() {
                facts.close = if !exchange.incoming.is_end() || exchange.broken {
                    Some(Closed::Local)
                } else if shared.drain.is_draining() {
                    Some(Closed::Drained)
                } else if shared.is_old() {
                    Some(Closed::MaxDuration)
                } else if head.headers.get(CONNECTION).is_some_and(|v| has_token(v.as_bytes(), "close"))
                    || encode::needs_close(&head.headers, head.status, end, &facts.reply)
                {
                    Some(Closed::Local)
                } else {
                    None
                };
            }
            facts.tunnel = tunnel;
            facts.reply.close = facts.close.is_some();
            shared.facts.set(facts);
            let (encoder, size) =
                encode::response(&head, end, facts.reply, &shared.options.http1, &mut exchange.wire.out);
            exchange.outgoing = encoder;
            exchange.sent_headers += size;
            if end && encoder != BodyEncoder::Open {
                exchange.end(None);
            }
            Ok(())
        })
    }

    /// Ready with the reason once the client has gone.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut exchange = self.shared.exchange.borrow_mut();
        if exchange.serial != self.serial {
            return Poll::Ready(exchange.stale());
        }
        if let Some(error) = exchange.lost() {
            return Poll::Ready(error.clone());
        }
        // The connection's loop is what finds out.
        exchange.watcher = Some(cx.waker().clone());
        Poll::Pending
    }

    /// After this response no other request is served on the connection.
    pub fn close_connection(&mut self) {
        if self.shared.exchange.borrow().serial == self.serial {
            self.shared.close(Closed::Local);
        }
    }

    /// Bytes written to the client in this stream so far: (header lines, everything else); their sum is what was on
    /// the wire.
    pub fn bytes_sent(&self) -> (u64, u64) {
        self.sent
    }

    /// Bytes of the request so far: (header lines, everything else); their sum is what was on the wire.
    pub fn bytes_received(&self) -> (u64, u64) {
        let exchange = self.shared.exchange.borrow();
        if exchange.serial == self.serial { exchange.received } else { (0, 0) }
    }
}

impl BodySink for Responder {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut exchange = self.shared.exchange.borrow_mut();
        if exchange.serial != self.serial {
            return Poll::Ready(Err(exchange.stale()));
        }
        exchange.poll_ready(cx)
    }

    fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        self.with(|exchange| exchange.send_data(data, end))
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), StreamError> {
        self.with(|exchange| exchange.send_trailers(&trailers))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut exchange = self.shared.exchange.borrow_mut();
        if exchange.serial != self.serial {
            return Poll::Ready(Err(exchange.stale()));
        }
        exchange.poll_write(cx)
    }

    fn reset(&mut self, _: ResetReason) {
        let _ = self.with(|exchange| {
            exchange.broken = true;
            Ok(())
        });
        self.close_connection();
    }

    fn pipe_room(&self) -> Option<PipeRoom> {
        let exchange = self.shared.exchange.borrow();
        if exchange.serial == self.serial { exchange.pipe_room() } else { None }
    }

    fn send_pipe(&mut self, pipe: Pipe, end: bool) -> Result<(), StreamError> {
        self.with(|exchange| exchange.send_pipe(pipe, end))
    }

    fn waiting(&self) -> usize {
        self.shared.exchange.borrow().wire.out.len()
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
