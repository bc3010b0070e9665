//! The seams between codecs and the connection manager.
//!
//! Downstream: a server codec reads a request head and calls [`StreamService::serve`] with the head, the body and a
//! responder. Upstream: a pool gives an [`UpstreamStream`], which takes the request and yields response events.

use super::{Body, BodySink, RequestHead, ResponseHead, body::PipeRoom};
use crate::{
    base::{ResetReason, StreamError},
    transport::Pipe,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::{
    future::Future,
    task::{Context, Poll},
};

/// Bytes that are no acceptable request, found by a codec. The service answers through the responder if there is one
/// to be had, and the codec closes the connection (HTTP/1) or resets the stream.
#[derive(Debug)]
pub struct BadRequest {
    /// 400, 408, 426, 431, ...
    pub status: StatusCode,
    /// Envoy's response code detail, such as `http1.codec_error`.
    pub details: &'static str,
    /// What was readable of the request, for logs.
    pub head: Option<Box<RequestHead>>,
}

/// What a server codec needs of the connection manager. One per connection.
pub trait StreamService {
    /// Serves one stream to its end. The codec polls it (HTTP/1: inline; HTTP/2: beside the other streams), and drops it
    /// when the client went away and the codec knows; the service notices its own drop.
    fn serve(&self, request: RequestHead, body: Body, responder: Responder) -> impl Future<Output = ()> + use<Self>
    where
        Self: Sized;

    /// Answers a request that was no HTTP.
    fn reject(&self, bad: BadRequest, responder: Responder) -> impl Future<Output = ()> + use<Self>
    where
        Self: Sized;
}

/// The way back to the client of one stream.
pub enum Responder {
    H1(super::h1::Responder),
    H2(super::h2::Responder),
}

/// What an upstream answers before the body.
pub enum ResponseEvent {
    /// 1xx, but 101.
    Informational(ResponseHead),
    Head(ResponseHead, Body),
}

/// A request's stream on an upstream connection.
pub enum UpstreamStream {
    H1(super::h1::ClientStream),
    H2(super::h2::ClientStream),
    /// The payload of a CONNECT without HTTP around it.
    Raw(crate::upstream::RawStream),
}

macro_rules! both {
    (UpstreamStream, $self:ident, $s:ident => $call:expr) => {
        match $self {
            UpstreamStream::H1($s) => $call,
            UpstreamStream::H2($s) => $call,
            UpstreamStream::Raw($s) => $call,
        }
    };
    ($t:ident, $self:ident, $s:ident => $call:expr) => {
        match $self {
            $t::H1($s) => $call,
            $t::H2($s) => $call,
        }
    };
}

impl Responder {
    /// Sends a 1xx response (not 101) ahead of the final one. Dropped where the protocol has none (HTTP/1.0).
    pub fn send_informational(&mut self, head: ResponseHead) -> Result<(), StreamError> {
        both!(Responder, self, s => s.send_informational(head))
    }

    /// Sends the response head. `end`: there is no body. `body_length`: its exact length where it is known and
    /// the head has no `content-length`. Written out with the first data, or at [`BodySink::poll_flush`].
    pub fn send_head(&mut self, head: ResponseHead, end: bool) -> Result<(), StreamError> {
        both!(Responder, self, s => s.send_head(head, end))
    }

    /// Ready with the reason once the client has gone or reset the stream.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        both!(Responder, self, s => s.poll_closed(cx))
    }

    /// After this response no other request is served on the connection (`Connection: close`, GOAWAY).
    pub fn close_connection(&mut self) {
        both!(Responder, self, s => s.close_connection())
    }

    /// Bytes of header block and body written to the client on this stream so far: (headers, body).
    pub fn bytes_sent(&self) -> (u64, u64) {
        both!(Responder, self, s => s.bytes_sent())
    }
}

impl UpstreamStream {
    /// Sends the request head; `end`: there is no body.
    pub fn send_head(&mut self, head: &RequestHead, end: bool) -> Result<(), StreamError> {
        both!(UpstreamStream, self, s => s.send_head(head, end))
    }

    /// The next event of the response; after [`ResponseEvent::Head`] it is not called again.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseEvent, StreamError>> {
        both!(UpstreamStream, self, s => s.poll_response(cx))
    }

    /// Bytes of header block and body written to the upstream on this stream so far: (headers, body).
    pub fn bytes_sent(&self) -> (u64, u64) {
        both!(UpstreamStream, self, s => s.bytes_sent())
    }
}

macro_rules! sink {
    ($t:ident) => {
        impl BodySink for $t {
            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
                both!($t, self, s => s.poll_ready(cx))
            }
            fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
                both!($t, self, s => s.send_data(data, end))
            }
            fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), StreamError> {
                both!($t, self, s => s.send_trailers(trailers))
            }
            fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
                both!($t, self, s => s.poll_flush(cx))
            }
            fn reset(&mut self, reason: ResetReason) {
                both!($t, self, s => s.reset(reason))
            }
            fn pipe_room(&self) -> Option<PipeRoom> {
                both!($t, self, s => s.pipe_room())
            }
            fn send_pipe(&mut self, pipe: Pipe, end: bool) -> Result<(), StreamError> {
                both!($t, self, s => s.send_pipe(pipe, end))
            }
            fn waiting(&self) -> usize {
                both!($t, self, s => s.waiting())
            }
        }
    };
}

sink!(Responder);
sink!(UpstreamStream);
