//! The sending half of a downstream stream.

use super::{
    chunk::{Chunk, Unsent},
    error, head,
    wire::{PendingReset, Wire},
};
use crate::{
    base::{ResetReason, Side, StreamError},
    http::{BodySink, ResponseHead},
};
use bytes::Bytes;
use h2::{Reason, SendStream, server::SendResponse};
use http::HeaderMap;
use std::{
    rc::Rc,
    task::{Context, Poll, ready},
};

/// Answers one stream. Dropped before the response is whole, it resets the stream.
pub struct Responder {
    stage: Stage,
    unsent: Rc<Unsent>,
    wire: Rc<Wire>,
    /// The request was an extended CONNECT.
    upgraded: bool,
    sent: (u64, u64),
}

enum Stage {
    Head(SendResponse<Chunk>),
    Body(SendStream<Chunk>),
    /// Everything was given to the crate.
    Ended(SendStream<Chunk>),
    /// There is nobody to answer.
    Gone,
}

impl Responder {
    pub(super) fn new(send: SendResponse<Chunk>, upgraded: bool, wire: Rc<Wire>) -> Self {
        wire.stats().streams_active.inc();
        Self { stage: Stage::Head(send), unsent: Rc::default(), wire, upgraded, sent: (0, 0) }
    }

    /// For a stream that ended before it could be served.
    pub(super) fn gone(wire: Rc<Wire>) -> Self {
        Self { stage: Stage::Gone, unsent: Rc::default(), wire, upgraded: false, sent: (0, 0) }
    }

    fn fail(&self, error: h2::Error) -> StreamError {
        error::stream_error(Side::Downstream, error, self.wire.closed(Side::Downstream))
    }

    fn gone_error(&self) -> StreamError {
        let closed = self.wire.closed(Side::Downstream);
        closed.unwrap_or_else(|| StreamError::new(Side::Ours, ResetReason::LocalReset, ""))
    }

    /// Sends a 1xx response.
    pub fn send_informational(&mut self, head: ResponseHead) -> Result<(), StreamError> {
        let Stage::Head(send) = &mut self.stage else { return Err(self.gone_error()) };
        send.send_informational(head::send_response(head, false)).map_err(|e| self.fail(e))
    }

    /// Sends the response's head.
    pub fn send_head(&mut self, head: ResponseHead, end: bool) -> Result<(), StreamError> {
        let Stage::Head(send) = &mut self.stage else { return Err(self.gone_error()) };
        let response = head::send_response(head, self.upgraded);
        self.sent.0 += head::size(response.headers()) as u64;
        let stream = send.send_response(response, end).map_err(|e| self.fail(e))?;
        self.stage = if end { Stage::Ended(stream) } else { Stage::Body(stream) };
        Ok(())
    }

    /// Ready once the client reset the stream or the connection ended.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let reset = match &mut self.stage {
            Stage::Head(send) => send.poll_reset(cx),
            Stage::Body(stream) | Stage::Ended(stream) => stream.poll_reset(cx),
            Stage::Gone => return Poll::Ready(self.gone_error()),
        };
        let reset = ready!(reset);
        Poll::Ready(match (self.wire.closed(Side::Downstream), reset) {
            (Some(closed), _) => closed,
            (None, Ok(code)) => error::remote_reset(Side::Downstream, code),
            (None, Err(e)) => self.fail(e),
        })
    }

    /// Starts the drain of the connection.
    pub fn close_connection(&mut self) {
        self.wire.request_drain();
    }

    /// (headers, body): bytes of names and values, and of data, given to the connection.
    pub fn bytes_sent(&self) -> (u64, u64) {
        self.sent
    }

    fn body(&mut self) -> Result<&mut SendStream<Chunk>, StreamError> {
        if matches!(self.stage, Stage::Body(_)) {
            let Stage::Body(stream) = &mut self.stage else { unreachable!("just seen") };
            return Ok(stream);
        }
        Err(self.gone_error())
    }

    fn ended(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Body(stream) => Stage::Ended(stream),
            stage => stage,
        };
    }
}

impl BodySink for Responder {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.unsent.poll_room(cx).map(Ok)
    }

    fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        let length = data.len() as u64;
        if length == 0 && !end {
            return Ok(());
        }
        let chunk = Chunk::new(data, &self.unsent);
        if let Err(e) = self.body()?.send_data(chunk, end) {
            return Err(self.fail(e));
        }
        self.sent.1 += length;
        if end {
            self.ended();
        }
        Ok(())
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), StreamError> {
        if trailers.is_empty() {
            return self.send_data(Bytes::new(), true);
        }
        let size = head::size(&trailers) as u64;
        if let Err(e) = self.body()?.send_trailers(trailers) {
            return Err(self.fail(e));
        }
        self.sent.0 += size;
        self.ended();
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.unsent.poll_empty(cx).map(Ok)
    }

    fn reset(&mut self, reason: ResetReason) {
        self.end(Some(error::reset_code(reason)));
    }
}

impl Responder {
    /// Gives the stream up, with an RST_STREAM of `code`.
    fn end(&mut self, code: Option<Reason>) {
        match (std::mem::replace(&mut self.stage, Stage::Gone), code) {
            (Stage::Gone, _) => return,
            (Stage::Head(send), Some(code)) => self.wire.reset_soon(PendingReset::Head(send, code)),
            (Stage::Body(stream) | Stage::Ended(stream), Some(code)) => {
                self.wire.reset_soon(PendingReset::Body(stream, code));
            }
            (_, None) => {}
        }
        self.wire.stats().streams_active.dec();
    }
}

impl Drop for Responder {
    /// After a whole response the crate asks the client to stop sending (NO_ERROR), once the request's body is dropped too.
    fn drop(&mut self) {
        let whole = matches!(self.stage, Stage::Ended(_));
        self.end((!whole).then_some(Reason::INTERNAL_ERROR));
    }
}
