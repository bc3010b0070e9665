//! A CONNECT request whose payload goes to the host bare: a stream that answers 200 itself and carries bytes both ways.

use super::connection::{ClosedBy, UpstreamConnection};
use crate::{
    base::{ResetReason, Side, StreamError},
    http::{Body, BodySink, BodySource, Frame, RequestHead, ResponseEvent, ResponseHead, service::UpstreamStream},
    transport::Io,
};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at once.
const PIECE: usize = 16 * 1024;
/// Bytes that may wait to be written.
const MOST_UNSENT: usize = 64 * 1024;

/// The request's side.
pub struct RawStream {
    shared: Rc<RefCell<Shared>>,
    connection: Rc<UpstreamConnection>,
    /// The 200 was not given yet.
    fresh: bool,
    sent: u64,
}

struct Shared {
    io: Io,
    unsent: VecDeque<Bytes>,
    unsent_bytes: usize,
    end: bool,
    shut: bool,
    failed: Option<StreamError>,
}

struct RawBody {
    shared: Rc<RefCell<Shared>>,
    connection: Rc<UpstreamConnection>,
    buffer: BytesMut,
    end: bool,
}

/// A stream on a connection that is made for it alone.
pub(super) fn open(io: Io, connection: Rc<UpstreamConnection>) -> UpstreamStream {
    let shared = Shared { io, unsent: VecDeque::new(), unsent_bytes: 0, end: false, shut: false, failed: None };
    UpstreamStream::Raw(RawStream { shared: Rc::new(RefCell::new(shared)), connection, fresh: true, sent: 0 })
}

impl Shared {
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        while let Some(first) = self.unsent.front_mut() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, first)) {
                Ok(n) => {
                    first.advance(n);
                    self.unsent_bytes -= n;
                    if first.is_empty() {
                        self.unsent.pop_front();
                    }
                }
                Err(_) => return Poll::Ready(Err(self.fail())),
            }
        }
        if self.end && !self.shut {
            self.shut = ready!(Pin::new(&mut self.io).poll_shutdown(cx)).is_ok();
        }
        Poll::Ready(Ok(()))
    }

    fn fail(&mut self) -> StreamError {
        let error = StreamError::new(Side::Upstream, ResetReason::ConnectionTermination, "");
        self.failed = Some(error.clone());
        error
    }
}

impl RawStream {
    /// Nothing of the head goes to the host.
    pub fn send_head(&mut self, _: &RequestHead, end: bool) -> Result<(), StreamError> {
        self.shared.borrow_mut().end |= end;
        Ok(())
    }

    pub fn poll_response(&mut self, _: &mut Context<'_>) -> Poll<Result<ResponseEvent, StreamError>> {
        if !std::mem::take(&mut self.fresh) {
            return Poll::Pending;
        }
        let body = RawBody {
            shared: self.shared.clone(),
            connection: self.connection.clone(),
            buffer: BytesMut::new(),
            end: false,
        };
        Poll::Ready(Ok(ResponseEvent::Head(ResponseHead::new(StatusCode::OK), Body::Boxed(Box::new(body)))))
    }

    pub fn bytes_sent(&self) -> (u64, u64) {
        (0, self.sent)
    }
}

impl BodySink for RawStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut shared = self.shared.borrow_mut();
        match shared.poll_write(cx) {
            Poll::Pending if shared.unsent_bytes < MOST_UNSENT => Poll::Ready(Ok(())),
            other => other,
        }
    }

    fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        let mut shared = self.shared.borrow_mut();
        self.sent += data.len() as u64;
        shared.unsent_bytes += data.len();
        shared.unsent.extend((!data.is_empty()).then_some(data));
        shared.end |= end;
        Ok(())
    }

    fn send_trailers(&mut self, _: HeaderMap) -> Result<(), StreamError> {
        self.send_data(Bytes::new(), true)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.shared.borrow_mut().poll_write(cx)
    }

    fn reset(&mut self, _: ResetReason) {
        self.shared.borrow_mut().fail();
        self.connection.closed(ClosedBy::Us, true);
    }
}

impl BodySource for RawBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let mut shared = self.shared.borrow_mut();
        if self.end {
            return Poll::Ready(None);
        }
        if let Some(error) = &shared.failed {
            return Poll::Ready(Some(Err(error.clone())));
        }
        self.buffer.resize(PIECE, 0);
        let mut buffer = ReadBuf::new(&mut self.buffer);
        match ready!(Pin::new(&mut shared.io).poll_read(cx, &mut buffer)) {
            Ok(()) => {
                let n = buffer.filled().len();
                if n == 0 {
                    self.end = true;
                    self.connection.closed(ClosedBy::Peer, false);
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Ok(Frame::Data(self.buffer.split_to(n).freeze()))))
            }
            Err(_) => Poll::Ready(Some(Err(shared.fail()))),
        }
    }

    fn is_end(&self) -> bool {
        self.end
    }

    fn remaining(&self) -> Option<u64> {
        None
    }
}
