//! What goes out of a connection: heads, data as far as windows and room allow, in turn; trailers and resets behind them.

use super::{
    core::Core,
    frame::{self, MAX_FRAME, kind},
    head,
    output::ROOM,
    streams::Over,
};
use crate::{
    base::{ResetReason, Side, StreamError},
    http::{RequestHead, ResponseHead},
};
use bytes::{Buf, Bytes};
use http::HeaderMap;
use std::task::{Context, Poll};

/// Bytes of a stream that may wait before its sender is told to wait.
pub const HIGH_WATERMARK: usize = 64 * 1024;

/// The last id that a client may use.
const LAST_ID: u32 = 0x7fff_ffff;

/// There is no stream to send on.
pub(super) fn gone() -> StreamError {
    StreamError::new(Side::Ours, ResetReason::LocalReset, "")
}

impl Core {
    fn sendable(&self, key: u32) -> Result<(), StreamError> {
        let stream = &self.streams[key];
        if stream.over.is_some() || self.is_closed() {
            return Err(self.error(key).unwrap_or_else(gone));
        }
        if stream.end_queued { Err(gone()) } else { Ok(()) }
    }

    /// Sends a 1xx head, or the response's; its size.
    pub fn send_response(
        &mut self,
        key: u32,
        head: &ResponseHead,
        upgraded: bool,
        end: bool,
    ) -> Result<usize, StreamError> {
        self.sendable(key)?;
        let informational = head.status.is_informational() && !(upgraded && head.status == 101);
        let id = self.streams[key].id;
        let (encoder, mut size) = (&mut self.encoder, 0);
        frame::put_headers(self.out.buf(), id, end && !informational, |out| {
            size = head::put_response(out, encoder, head, upgraded);
        });
        self.out.frame(false);
        if !informational {
            self.head_sent(key, end);
        }
        Ok(size)
    }

    fn head_sent(&mut self, key: u32, end: bool) {
        let stream = &mut self.streams[key];
        stream.head_sent = true;
        if end {
            stream.end_queued = true;
            self.end_sent(key);
        }
    }

    fn end_sent(&mut self, key: u32) {
        let stream = &mut self.streams[key];
        stream.end_sent = true;
        if let Some(code) = stream.reset_after.take() {
            return self.reset(key, code, Over::Local);
        }
        self.tidy(key);
    }

    /// Sends a request's head, or keeps it until the peer takes another stream; its size.
    pub fn send_request(&mut self, key: u32, head: &RequestHead, end: bool) -> Result<usize, StreamError> {
        self.sendable(key).map_err(StreamError::retry_safe)?;
        if self.goaway.is_some() || self.last > LAST_ID {
            self.ended(key, Over::Refused);
            return Err(self.error(key).unwrap_or_else(gone));
        }
        let stream = &mut self.streams[key];
        stream.is_head_request = head.method == http::Method::HEAD;
        stream.end_queued = end;
        if self.open >= self.peer_streams || !self.waiting.is_empty() {
            stream.waits = Some(Box::new((head.clone(), end)));
            self.waiting.push_back(key);
            return Ok(head::size(&head.headers));
        }
        Ok(self.open_request(key, head, end))
    }

    fn open_request(&mut self, key: u32, head: &RequestHead, end: bool) -> usize {
        let id = self.last;
        self.last += 2;
        self.opened(key, id);
        let (encoder, mut size) = (&mut self.encoder, 0);
        frame::put_headers(self.out.buf(), id, end, |out| size = head::put_request(out, encoder, head));
        self.out.frame(false);
        self.budget.opened += 1;
        self.streams[key].window = self.peer_window;
        self.head_sent(key, end);
        size
    }

    /// Begins the requests that have waited, as far as the peer takes them.
    fn open_waiting(&mut self) {
        while self.open < self.peer_streams
            && self.goaway.is_none()
            && let Some(key) = self.waiting.pop_front()
        {
            if let Some(waited) = self.streams[key].waits.take() {
                self.open_request(key, &waited.0, waited.1);
                self.line_up(key);
            }
        }
    }

    /// Takes data of a stream.
    pub fn send_data(&mut self, key: u32, data: Bytes, end: bool) -> Result<(), StreamError> {
        self.sendable(key)?;
        let n = data.len();
        let direct = self.row.is_empty()
            && n <= MAX_FRAME
            && n as i64 <= self.window.min(self.streams[key].window)
            && self.out.pending() < ROOM;
        let stream = &mut self.streams[key];
        stream.end_queued = end;
        if stream.head_sent && stream.unsent.is_empty() && (direct || n == 0) {
            self.put_data(key, data, end);
            return Ok(());
        }
        if n > 0 {
            stream.unsent_bytes += n;
            stream.unsent.push_back(data);
        }
        self.line_up(key);
        Ok(())
    }

    /// Takes the trailers of a stream, which end it.
    pub fn send_trailers(&mut self, key: u32, trailers: HeaderMap) -> Result<(), StreamError> {
        self.sendable(key)?;
        let stream = &mut self.streams[key];
        stream.end_queued = true;
        if stream.head_sent && stream.unsent.is_empty() {
            self.put_trailers(key, &trailers);
        } else {
            stream.trailers = Some(Box::new(trailers));
        }
        Ok(())
    }

    fn put_data(&mut self, key: u32, data: Bytes, end: bool) {
        let stream = &mut self.streams[key];
        let n = data.len();
        stream.window -= n as i64;
        self.window -= n as i64;
        let flags = if end { frame::flag::END_STREAM } else { 0 };
        frame::put_head(self.out.buf(), n, kind::DATA, flags, stream.id);
        self.out.payload(data);
        self.out.frame(false);
        self.budget.data_sent += 1;
        if end {
            self.end_sent(key);
        }
    }

    fn put_trailers(&mut self, key: u32, trailers: &HeaderMap) {
        let (id, encoder) = (self.streams[key].id, &mut self.encoder);
        frame::put_headers(self.out.buf(), id, true, |out| {
            encoder.begin(out);
            head::put_fields(out, encoder, trailers);
        });
        self.out.frame(false);
        self.end_sent(key);
    }

    /// Puts a stream where it is served, if it can be.
    pub fn line_up(&mut self, key: u32) {
        let stream = &mut self.streams[key];
        if stream.in_row || !stream.head_sent || stream.over.is_some() || stream.end_sent {
            return;
        }
        if stream.unsent.is_empty() {
            // Its request has waited for its turn; the end came meanwhile.
            if stream.end_queued {
                match stream.trailers.take() {
                    Some(trailers) => self.put_trailers(key, &trailers),
                    None => self.put_data(key, Bytes::new(), true),
                }
            }
        } else if stream.window > 0 {
            stream.in_row = true;
            self.row.push_back(key);
        }
    }

    /// Moves data of streams into the output as far as windows and room allow, a frame each in turn.
    pub fn pump(&mut self) {
        self.open_waiting();
        while self.window > 0
            && self.out.pending() < ROOM
            && let Some(key) = self.row.pop_front()
        {
            let window = self.window;
            let stream = &mut self.streams[key];
            stream.in_row = false;
            let Some(front) = stream.unsent.front_mut() else { continue };
            let most = usize::try_from(window.min(stream.window)).unwrap_or(0).min(MAX_FRAME);
            if most == 0 {
                continue;
            }
            let data = if front.len() <= most {
                stream.unsent.pop_front().unwrap_or_default()
            } else {
                let data = front.slice(..most);
                front.advance(most);
                data
            };
            stream.unsent_bytes -= data.len();
            if stream.unsent_bytes <= stream.level {
                stream.sender.wake();
            }
            let last = stream.unsent.is_empty();
            let trailers = if last { stream.trailers.take() } else { None };
            let end = last && stream.end_queued && trailers.is_none();
            self.put_data(key, data, end);
            if let Some(trailers) = trailers {
                self.put_trailers(key, &trailers);
            } else if !last {
                self.line_up(key);
            }
        }
    }

    /// Ready when a stream may send more; once it may not, half of what waits has to leave first.
    pub fn poll_room(&mut self, key: u32, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        let stream = &mut self.streams[key];
        if stream.unsent_bytes < HIGH_WATERMARK {
            return Poll::Ready(Ok(()));
        }
        stream.level = HIGH_WATERMARK / 2;
        stream.sender.set(cx);
        Poll::Pending
    }

    /// Ready when everything that a stream took is on its way.
    pub fn poll_flushed(&mut self, key: u32, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        let stream = &mut self.streams[key];
        if stream.unsent_bytes == 0 {
            return Poll::Ready(Ok(()));
        }
        stream.level = 0;
        stream.sender.set(cx);
        Poll::Pending
    }
}
