//! The upstream side of HTTP/1: a connection that serves one exchange at a time.
//!
//! A pool makes a [`ClientConnection`] of a connected stream, starts exchanges on it, and is told through [`OnDone`] when
//! one is over and whether the connection may be used again. Invariant: it may be only if both messages were whole and
//! as declared, the upstream wants to keep the connection, and no byte came after the response.

use super::{
    BodyReader,
    body::BodyDecoder,
    details::CODEC_ERROR,
    encode::{self, BodyEncoder},
    exchange::{Count, Exchange},
    options::ClientOptions,
    parse::{self, Asked, HeadScan, Kind},
};
use crate::{
    base::{ResetReason, Side, StreamError},
    http::{Body, BodySink, RequestHead, ResponseEvent, body::PipeRoom},
    transport::{Io, Pipe},
};
use bytes::{Buf, Bytes};
use http::{HeaderMap, Method};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll},
};

/// Whether a connection may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Reusable,
    Close,
}

/// Called once for each exchange, when it is over. The connection is closed by dropping it.
pub type OnDone = Rc<dyn Fn(ClientConnection, Outcome)>;

/// A connection to an upstream host. Cheap to clone; closes when the last clone and the last stream are gone.
#[derive(Clone)]
pub struct ClientConnection(Rc<Shared>);

pub(super) struct Shared {
    pub exchange: RefCell<Exchange>,
    options: Rc<ClientOptions>,
    state: RefCell<State>,
    /// The present exchange's stream and body that are still held.
    users: Cell<u8>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.exchange.get_mut().wire.shutdown();
    }
}

#[derive(Default)]
struct State {
    on_done: Option<OnDone>,
    asked: Asked,
    scan: HeadScan,
    keep_alive: bool,
    /// The response's head was given out.
    answered: bool,
    /// Any byte of a response came.
    touched: bool,
    /// The request may be sent twice (RFC 9110 section 9.2.2).
    is_idempotent: bool,
    closed: bool,
}

/// One exchange on a [`ClientConnection`].
pub struct ClientStream {
    shared: Rc<Shared>,
    serial: u64,
    sent: Count,
}

impl ClientConnection {
    pub fn new(io: Io, options: Rc<ClientOptions>) -> Self {
        let exchange = Exchange::new(io, Side::Upstream, options.buffer_limit, options.http1.enable_trailers);
        Self(Rc::new(Shared { exchange: exchange.into(), options, state: RefCell::default(), users: Cell::new(0) }))
    }

    /// True while no exchange is going on.
    pub fn is_idle(&self) -> bool {
        self.0.state.borrow().on_done.is_none()
    }

    /// True once the connection cannot take another exchange.
    pub fn is_closed(&self) -> bool {
        self.0.state.borrow().closed
    }

    /// Ends the connection, and the exchange that is going on with it.
    pub fn abort(&self) {
        self.0.state.borrow_mut().closed = true;
        let mut exchange = self.0.exchange.borrow_mut();
        exchange.fail_closed();
        exchange.wire.break_off();
    }

    /// Begins an exchange; an error if one is going on or the connection was found closed.
    pub fn start(&self, on_done: OnDone) -> Result<ClientStream, StreamError> {
        let mut state = self.0.state.borrow_mut();
        if state.closed || state.on_done.is_some() {
            let error = StreamError::new(Side::Upstream, ResetReason::ConnectionTermination, "");
            return Err(error.retry_safe());
        }
        *state = State { on_done: Some(on_done), keep_alive: true, ..State::default() };
        let mut exchange = self.0.exchange.borrow_mut();
        exchange.begin();
        exchange.incoming = BodyDecoder::until_close();
        self.0.users.set(1);
        Ok(ClientStream { shared: self.0.clone(), serial: exchange.serial, sent: (0, 0) })
    }

    /// Ready once an idle connection is of no more use: the upstream closed it, or sent what nobody asked for.
    /// Wakes the waker of the last call only. Pending while an exchange is going on.
    pub fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_closed() {
            return Poll::Ready(());
        }
        if !self.is_idle() {
            return Poll::Pending;
        }
        let mut exchange = self.0.exchange.borrow_mut();
        let ready = exchange.wire.poll_fill(cx).is_ready();
        exchange.wire.release();
        if !ready {
            return Poll::Pending;
        }
        self.0.state.borrow_mut().closed = true;
        Poll::Ready(())
    }
}

impl Shared {
    /// One user of the present exchange less.
    pub fn leave(self: &Rc<Self>, serial: u64) {
        if self.exchange.borrow().serial == serial {
            self.users.set(self.users.get().saturating_sub(1));
            self.settle();
        }
    }

    /// Ends the exchange if it is over.
    pub fn settle(self: &Rc<Self>) {
        let done = {
            let mut state = self.state.borrow_mut();
            let mut exchange = self.exchange.borrow_mut();
            let complete = state.answered && exchange.is_complete();
            if state.on_done.is_none() || !(complete || self.users.get() == 0 || exchange.failure.is_some()) {
                return;
            }
            let clean = !exchange.broken && exchange.wire.read.is_empty() && exchange.wire.out.is_empty();
            state.closed = !(complete && clean && state.keep_alive);
            if !state.closed {
                exchange.wire.release();
            }
            let outcome = if state.closed { Outcome::Close } else { Outcome::Reusable };
            state.on_done.take().map(|on_done| (on_done, outcome))
        };
        if let Some((on_done, outcome)) = done {
            on_done(ClientConnection(self.clone()), outcome);
        }
    }

    /// Reads the head of the response, or of a 1xx that goes before it.
    fn poll_head(
        self: &Rc<Self>,
        exchange: &mut Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Result<parse::Response, StreamError>> {
        // What the upstream answered before it closed still counts: a failed write is told only if nothing came.
        exchange.write_aside(cx);
        let state = &mut *self.state.borrow_mut();
        let options = &*self.options;
        loop {
            state.touched |= !exchange.wire.read.is_empty();
            let found = state.scan.scan(&mut exchange.wire.read, Kind::Response, options.limits.bytes);
            let response = found.and_then(|found| {
                let Some(len) = found else { return Ok(None) };
                let head = &exchange.wire.read[..len];
                let response = parse::response(head, state.asked, &options.limits, &options.http1)?;
                Ok(Some((response, len)))
            });
            match response {
                Ok(Some((response, len))) => {
                    exchange.wire.read.advance(len);
                    exchange.received.0 += response.size;
                    exchange.received.1 += ((len + state.scan.skipped) as u64).saturating_sub(response.size);
                    state.scan = HeadScan::default();
                    return Poll::Ready(Ok(response));
                }
                Ok(None) => {}
                Err(bad) => return Poll::Ready(Err(exchange.fail(bad.error(Side::Upstream)))),
            }
            let error = match exchange.wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) if !state.touched => {
                    let error = exchange.stale();
                    // That the peer acknowledged nothing proves only that it did not tell: a reset tells of no bytes before it.
                    let is_safe = !exchange.is_written() || (state.is_idempotent && exchange.is_untouched());
                    if is_safe { error.retry_safe() } else { error }
                }
                Poll::Ready(Ok(1..)) => continue,
                // A head cut short is malformed.
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => CODEC_ERROR.error(Side::Upstream),
                Poll::Pending => match &exchange.failure {
                    Some(error) => error.clone(),
                    None => return Poll::Pending,
                },
            };
            exchange.failure = None;
            return Poll::Ready(Err(exchange.fail(error)));
        }
    }
}

impl ClientStream {
    /// Runs `f` on the exchange if it is still this stream's, and settles what follows from it.
    fn with<T>(&mut self, f: impl FnOnce(&mut Exchange) -> Result<T, StreamError>) -> Result<T, StreamError> {
        let result = {
            let mut exchange = self.shared.exchange.borrow_mut();
            if exchange.serial != self.serial {
                return Err(exchange.stale());
            }
            let result = f(&mut exchange);
            self.sent = exchange.sent();
            result
        };
        self.shared.settle();
        result
    }

    fn poll_with<T>(
        &mut self,
        f: impl FnOnce(&mut Exchange) -> Poll<Result<T, StreamError>>,
    ) -> Poll<Result<T, StreamError>> {
        match self.with(|exchange| match f(exchange) {
            Poll::Ready(result) => result.map(Some),
            Poll::Pending => Ok(None),
        }) {
            Ok(Some(value)) => Poll::Ready(Ok(value)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Sends the request head; `end`: there is no body.
    pub fn send_head(&mut self, head: &RequestHead, end: bool) -> Result<(), StreamError> {
        let shared = self.shared.clone();
        self.with(|exchange| {
            if let Some(error) = &exchange.failure {
                return Err(error.clone());
            }
            let words = [&head.path, &head.authority, &head.scheme].into_iter().chain(&head.upgrade);
            if !words.into_iter().all(|word| word.iter().all(|c| *c > b' ' && *c != 0x7f)) {
                // It would end the request line or add another.
                return Err(exchange.fail(StreamError::new(
                    Side::Ours,
                    ResetReason::LocalReset,
                    "invalid request target",
                )));
            }
            let mut state = shared.state.borrow_mut();
            state.is_idempotent = head.method.is_idempotent();
            state.asked = Asked {
                head: head.method == Method::HEAD,
                connect: head.is_connect(),
                upgrade: head.upgrade.is_some(),
            };
            let close = head.headers.get(http::header::CONNECTION);
            state.keep_alive = !close.is_some_and(|v| super::fields::has_token(v.as_bytes(), "close"));
            let (encoder, size) = encode::request(head, end, &shared.options.http1, &mut exchange.wire.out);
            exchange.outgoing = encoder;
            exchange.sent_headers += size;
            if end && encoder != BodyEncoder::Open {
                exchange.end(None);
            }
            Ok(())
        })
    }

    /// The next event of the response; after [`ResponseEvent::Head`] it is not called again.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseEvent, StreamError>> {
        let shared = self.shared.clone();
        self.poll_with(|exchange| {
            let response = std::task::ready!(shared.poll_head(exchange, cx))?;
            if response.head.status.is_informational() && response.head.status != http::StatusCode::SWITCHING_PROTOCOLS
            {
                return Poll::Ready(Ok(ResponseEvent::Informational(response.head)));
            }
            let mut state = shared.state.borrow_mut();
            state.answered = true;
            state.keep_alive &= response.keep_alive;
            exchange.incoming = response.body;
            let body = if exchange.incoming.is_end() {
                Body::Empty
            } else {
                shared.users.set(shared.users.get() + 1);
                Body::H1(BodyReader::upstream(shared.clone(), exchange.serial))
            };
            Poll::Ready(Ok(ResponseEvent::Head(response.head, body)))
        })
    }

    /// Bytes written to the upstream in this exchange so far: (header lines, everything else); their sum is what was
    /// on the wire.
    pub fn bytes_sent(&self) -> Count {
        self.sent
    }
}

impl BodySink for ClientStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_with(|exchange| exchange.poll_ready(cx))
    }

    fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        self.with(|exchange| exchange.send_data(data, end))
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), StreamError> {
        self.with(|exchange| exchange.send_trailers(&trailers))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_with(|exchange| exchange.poll_write(cx))
    }

    fn reset(&mut self, reason: ResetReason) {
        let _ = self.with(|exchange| {
            exchange.fail(StreamError::new(Side::Ours, reason, ""));
            Ok(())
        });
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

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.shared.leave(self.serial);
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
