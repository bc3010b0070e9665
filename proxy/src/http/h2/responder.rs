//! The sending half of a downstream stream.

use super::{connection::Shared, core::Left, error, frame::Code, send::gone, streams::Over};
use crate::{
    base::{ResetReason, StreamError},
    http::{BodySink, ResponseHead},
};
use bytes::Bytes;
use http::HeaderMap;
use std::{
    rc::Rc,
    task::{Context, Poll},
};

/// Answers one stream. Dropped before the response is whole, it resets the stream.
pub struct Responder {
    shared: Rc<Shared>,
    /// `None`: there is nobody to answer.
    key: Option<u32>,
    stage: Stage,
    /// The request was an extended CONNECT.
    upgraded: bool,
    sent: (u64, u64),
}

#[derive(PartialEq)]
enum Stage {
    Head,
    Body,
    /// Everything was given to the connection.
    Ended,
}

impl Responder {
    /// The key is held already.
    pub(super) fn new(shared: Rc<Shared>, key: u32, upgraded: bool) -> Self {
        shared.core.borrow().stats.streams_active.inc();
        Self { shared, key: Some(key), stage: Stage::Head, upgraded, sent: (0, 0) }
    }

    /// For a stream that ended before it could be served.
    pub(super) fn gone(shared: Rc<Shared>) -> Self {
        Self { shared, key: None, stage: Stage::Head, upgraded: false, sent: (0, 0) }
    }

    fn gone_error(&self) -> StreamError {
        self.shared.core.borrow().closed().unwrap_or_else(gone)
    }

    /// The key, in this stage.
    fn at(&self, stage: Stage) -> Result<u32, StreamError> {
        self.key.filter(|_| self.stage == stage).ok_or_else(|| self.gone_error())
    }

    /// Sends a 1xx response.
    pub fn send_informational(&mut self, head: ResponseHead) -> Result<(), StreamError> {
        let key = self.at(Stage::Head)?;
        self.shared.core.borrow_mut().send_response(key, &head, false, false)?;
        self.shared.touch();
        Ok(())
    }

    /// Sends the response's head.
    pub fn send_head(&mut self, head: ResponseHead, end: bool) -> Result<(), StreamError> {
        let key = self.at(Stage::Head)?;
        let size = self.shared.core.borrow_mut().send_response(key, &head, self.upgraded, end)?;
        self.sent.0 += size as u64;
        self.stage = if end { Stage::Ended } else { Stage::Body };
        self.shared.touch();
        Ok(())
    }

    /// Ready once the client reset the stream or the connection ended.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let Some(key) = self.key else { return Poll::Ready(self.gone_error()) };
        let mut core = self.shared.core.borrow_mut();
        if let Some(error) = core.error(key) {
            return Poll::Ready(error);
        }
        core.streams[key].watcher.set(cx);
        Poll::Pending
    }

    /// Starts the drain of the connection. A stream that was refused ends alone.
    pub fn close_connection(&mut self) {
        if self.key.is_some() {
            self.shared.request_drain();
        }
    }

    /// (headers, body): bytes of names and values, and of data, given to the connection.
    pub fn bytes_sent(&self) -> (u64, u64) {
        self.sent
    }

    /// Gives the stream up; what is not whole is reset with `code`.
    fn end(&mut self, code: Code) {
        let Some(key) = self.key.take() else { return };
        let mut core = self.shared.core.borrow_mut();
        core.stats.streams_active.dec();
        if self.stage != Stage::Ended || code != Code::NO_ERROR {
            core.abandon(key, code);
        }
        if core.let_go(key) == Left::UnderWay {
            core.abandon(key, Code::NO_ERROR);
        }
        drop(core);
        self.shared.touch();
    }
}

impl BodySink for Responder {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self.key {
            Some(key) => self.shared.core.borrow_mut().poll_room(key, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        let length = data.len() as u64;
        if length == 0 && !end {
            return Ok(());
        }
        let key = self.at(Stage::Body)?;
        self.shared.core.borrow_mut().send_data(key, data, end)?;
        self.sent.1 += length;
        if end {
            self.stage = Stage::Ended;
        }
        self.shared.touch();
        Ok(())
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), StreamError> {
        if trailers.is_empty() {
            return self.send_data(Bytes::new(), true);
        }
        let key = self.at(Stage::Body)?;
        let size = super::head::size(&trailers) as u64;
        self.shared.core.borrow_mut().send_trailers(key, trailers)?;
        self.sent.0 += size;
        self.stage = Stage::Ended;
        self.shared.touch();
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self.key {
            Some(key) => self.shared.core.borrow_mut().poll_flushed(key, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn reset(&mut self, reason: ResetReason) {
        let code = error::reset_code(reason);
        if let Some(key) = self.key {
            // At once, whatever of the response waits for the client's window.
            self.shared.core.borrow_mut().reset(key, code, Over::Local);
        }
        self.end(code);
    }
}

impl Drop for Responder {
    /// After a whole response the client is asked to stop sending (NO_ERROR), once the request's body is dropped too.
    fn drop(&mut self) {
        let whole = self.stage == Stage::Ended;
        self.end(if whole { Code::NO_ERROR } else { Code::INTERNAL_ERROR });
    }
}
