//! One request and its response on one connection, seen from either side: a message comes in, another goes out.
//!
//! Both connections keep one [`Exchange`] in a `RefCell` that the reader and the writer of the stream share; it is
//! borrowed within one call only. Invariant: `serial` grows with each exchange, so that a reader or writer that outlives
//! its own can do nothing to the next.

use super::{
    body::{BodyDecoder, Piece},
    details::CODEC_ERROR,
    encode::BodyEncoder,
    wire::Wire,
};
use crate::{
    base::{ResetReason, Side, StreamError},
    http::{Frame, body::PipeRoom},
    transport::{Io, Pipe},
};
use bytes::Bytes;
use http::HeaderMap;
use std::task::{Context, Poll, Waker, ready};

/// Nothing is spliced where buffers may not hold so much.
const LEAST_PIPED: usize = 64 * 1024;

/// (header lines, everything else) in bytes; their sum is what was on the wire.
pub(super) type Count = (u64, u64);

/// The state of a connection's present exchange.
pub(super) struct Exchange {
    pub wire: Wire,
    /// Whose the other end is.
    pub peer: Side,
    pub serial: u64,
    pub incoming: BodyDecoder,
    pub outgoing: BodyEncoder,
    /// Set once, when nothing more can come of this exchange.
    pub failure: Option<StreamError>,
    /// What was sent is not what was declared, or was cut: no other message may follow.
    pub broken: bool,
    pub buffer_limit: usize,
    pub send_trailers: bool,
    pub received: Count,
    pub sent_headers: u64,
    /// Woken when what waits was written by another than the writer, and when the exchange fails.
    pub writer: Option<Waker>,
    /// Woken when the exchange fails.
    pub watcher: Option<Waker>,
    /// [`super::outbox::Outbox::total`] when the exchange began.
    sent_before: u64,
}

impl Exchange {
    pub fn new(io: Io, peer: Side, buffer_limit: usize, send_trailers: bool) -> Self {
        Self {
            wire: Wire::new(io),
            peer,
            serial: 0,
            incoming: BodyDecoder::none(),
            outgoing: BodyEncoder::Done,
            failure: None,
            broken: false,
            buffer_limit,
            send_trailers,
            received: (0, 0),
            sent_headers: 0,
            writer: None,
            watcher: None,
            sent_before: 0,
        }
    }

    /// Begins the next exchange; what comes in is none until its head is read.
    pub fn begin(&mut self) {
        self.serial += 1;
        self.incoming = BodyDecoder::none();
        self.outgoing = BodyEncoder::Waiting;
        self.received = (0, 0);
        self.sent_headers = 0;
        self.sent_before = self.wire.out.total();
    }

    /// True once any byte of this exchange left.
    pub fn is_written(&self) -> bool {
        self.wire.written() > self.sent_before
    }

    /// True if the peer's TCP acknowledged nothing of this exchange's request, as when the connection was closed at that end already.
    pub fn is_untouched(&self) -> bool {
        self.wire.took_no_more_than(self.sent_before)
    }

    pub fn sent(&self) -> Count {
        (self.sent_headers, self.wire.out.total() - self.sent_before - self.sent_headers)
    }

    /// The error for a user whose exchange is over.
    pub fn stale(&self) -> StreamError {
        StreamError::new(self.peer, ResetReason::ConnectionTermination, "")
    }

    /// Ends the exchange; the first error stays.
    pub fn fail(&mut self, error: StreamError) -> StreamError {
        self.broken = true;
        self.writer.take().into_iter().chain(self.watcher.take()).for_each(Waker::wake);
        self.failure.get_or_insert(error).clone()
    }

    /// The failure, unless it leaves the way out open: a client whose request was malformed is still answered.
    pub fn lost(&self) -> Option<&StreamError> {
        let answerable = self.peer == Side::Downstream;
        self.failure.as_ref().filter(|error| !(answerable && error.reason == ResetReason::ProtocolError))
    }

    /// Ends the exchange because the peer closed or the connection broke.
    pub fn fail_closed(&mut self) -> StreamError {
        let error = self.stale();
        self.fail(error)
    }

    /// The same in the middle of a body: an upstream that does that broke the protocol, a client went away.
    fn fail_cut(&mut self) -> StreamError {
        match self.peer {
            Side::Upstream if !self.incoming.is_raw() => self.fail(CODEC_ERROR.error(Side::Upstream)),
            _ => self.fail_closed(),
        }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        loop {
            let before = self.wire.read.len();
            let piece =
                if self.incoming.is_end() { Ok(Some(Piece::End)) } else { self.incoming.decode(&mut self.wire.read) };
            self.received.1 += (before - self.wire.read.len()) as u64;
            match piece {
                Ok(Some(Piece::Data(data))) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Some(Piece::Trailers(trailers))) => return Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
                Ok(Some(Piece::End)) => return Poll::Ready(None),
                Err(bad) => {
                    let error = bad.error(self.peer);
                    return Poll::Ready(Some(Err(self.fail(error))));
                }
                Ok(None) => {}
            }
            if let Some(error) = &self.failure {
                return Poll::Ready(Some(Err(error.clone())));
            }
            if let Some(left @ 1..) = self.incoming.plain() {
                self.wire.expect(left);
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) if self.incoming.is_until_close() => {
                    self.incoming = BodyDecoder::none();
                    return Poll::Ready(None);
                }
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(self.fail_cut()))),
            }
        }
    }

    /// True if what comes next of the message is worth reading into pipes that go to `room`.
    pub fn gives_pipes(&self, room: PipeRoom) -> bool {
        self.failure.is_none()
            && self.wire.gives_pipes(match (self.incoming.plain(), room.left) {
                (Some(left), Some(room)) => Some(left.min(room)),
                (left, room) => left.or(room),
            })
    }

    /// Reads what comes next into a pipe; `None`: as it is read ever.
    pub fn poll_pipe(&mut self, cx: &mut Context<'_>, room: PipeRoom) -> Poll<Result<Option<Pipe>, StreamError>> {
        let left = self.incoming.plain().into_iter().chain(room.left).min();
        let most = left.and_then(|left| left.try_into().ok()).map_or(room.most, |left: usize| left.min(room.most));
        let pipe = match ready!(self.wire.poll_fill_pipe(cx, most)) {
            Ok(pipe) => pipe,
            Err(_) => return Poll::Ready(Err(self.fail_cut())),
        };
        if let Some(pipe) = &pipe {
            self.received.1 += pipe.held() as u64;
            self.incoming.skip(pipe.held() as u64);
        }
        Poll::Ready(Ok(pipe))
    }

    /// What may be sent in pipes now; `None`: nothing.
    pub fn pipe_room(&self) -> Option<PipeRoom> {
        let left = self.outgoing.pipe_room()?;
        let may = self.lost().is_none() && self.buffer_limit >= LEAST_PIPED && self.wire.takes_pipes();
        may.then_some(PipeRoom { left, most: self.buffer_limit })
    }

    /// Sends what a pipe holds, no more than [`Exchange::pipe_room`].
    pub fn send_pipe(&mut self, pipe: Pipe, end: bool) -> Result<(), StreamError> {
        if let Some(error) = self.lost() {
            return Err(error.clone());
        }
        self.outgoing.pipe(pipe, &mut self.wire.out);
        if end {
            self.end(None);
        }
        Ok(())
    }

    /// Writes out what waits, for the writer of the message.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if let Some(error) = self.lost() {
            return Poll::Ready(Err(error.clone()));
        }
        match self.wire.poll_write(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.fail_closed())),
            Poll::Pending => {
                self.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Writes out what waits, for anybody who is polled anyway; the writer is woken if it waits for that.
    pub fn write_aside(&mut self, cx: &mut Context<'_>) {
        if self.wire.is_clear() || self.lost().is_some() {
            return;
        }
        let before = self.wire.written();
        match self.wire.poll_write(cx) {
            Poll::Ready(Err(_)) => drop(self.fail_closed()),
            _ if self.wire.written() > before => self.writer.take().into_iter().for_each(Waker::wake),
            _ => {}
        }
    }

    /// Ready when more may be sent.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.wire.out.len() < self.buffer_limit && self.lost().is_none() {
            return Poll::Ready(Ok(()));
        }
        match self.poll_write(cx) {
            Poll::Pending if self.wire.out.len() < self.buffer_limit => Poll::Ready(Ok(())),
            polled => polled,
        }
    }

    pub fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        if let Some(error) = self.lost() {
            return Err(error.clone());
        }
        if self.outgoing.is_waiting() || (self.outgoing.is_done() && !data.is_empty()) {
            return Err(StreamError::new(Side::Ours, ResetReason::LocalReset, "data out of place"));
        }
        self.broken |= !self.outgoing.data(data, &mut self.wire.out);
        if end {
            self.end(None);
        }
        Ok(())
    }

    pub fn send_trailers(&mut self, trailers: &HeaderMap) -> Result<(), StreamError> {
        self.send_data(Bytes::new(), false)?;
        self.end(Some(trailers).filter(|_| self.send_trailers));
        Ok(())
    }

    pub fn end(&mut self, trailers: Option<&HeaderMap>) {
        if !self.outgoing.is_done() {
            self.broken |= !self.outgoing.end(trailers, &mut self.wire.out);
        }
    }

    /// True once both messages are whole.
    pub fn is_complete(&self) -> bool {
        self.incoming.is_end() && self.outgoing.is_done()
    }
}
