//! Bodies, pulled by whoever forwards them.
//!
//! Backpressure is not polling: a [`BodySource`] reads from its connection only when it is polled, and a
//! [`BodySink`] takes data only after it said ready. Data are the `Bytes` that were read.

use crate::{
    base::{ResetReason, Side, StreamError},
    transport::Pipe,
};
use bytes::Bytes;
use http::HeaderMap;
use std::task::{Context, Poll};

/// A piece of a body.
#[derive(Debug)]
pub enum Frame {
    Data(Bytes),
    /// Always the last.
    Trailers(HeaderMap),
}

/// Where a body comes from. Dropping it before its end tells the peer that the rest is not wanted.
pub trait BodySource {
    /// The next piece; `None` once the message is whole.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>>;

    /// True if it is known without polling that no piece is left.
    fn is_end(&self) -> bool;

    /// The bytes still to come, where the sender declared them.
    fn remaining(&self) -> Option<u64>;
}

/// Where a body goes.
pub trait BodySink {
    /// Ready when more data may be sent; writes out what is buffered as far as that is needed to become so.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>>;

    /// Takes `data`; `end` says that nothing follows. Does not wait; call after [`BodySink::poll_ready`].
    fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError>;

    /// Ends the message with trailers (empty ones are a plain end).
    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), StreamError>;

    /// Ready when everything taken was handed to the kernel (or to the connection's writer).
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>>;

    /// Ends the message in the middle: RST_STREAM, or closing the connection.
    fn reset(&mut self, reason: ResetReason);

    /// What it takes in pipes at present; `None`: nothing.
    fn pipe_room(&self) -> Option<PipeRoom> {
        None
    }

    /// Takes what a pipe holds, within the [`BodySink::pipe_room`]; `end` as above. Call after [`BodySink::poll_flush`].
    fn send_pipe(&mut self, _pipe: Pipe, _end: bool) -> Result<(), StreamError> {
        Err(StreamError::new(Side::Ours, ResetReason::LocalReset, "no room for a pipe"))
    }

    /// Bytes that were taken and not yet written, where that is known.
    fn waiting(&self) -> usize {
        0
    }
}

/// What goes into a sink in pipes: bytes that never leave the kernel.
#[derive(Clone, Copy, Debug)]
pub struct PipeRoom {
    /// What is left of the message, where that was declared.
    pub left: Option<u64>,
    /// What one pipe may hold.
    pub most: usize,
}

/// A body. The codecs' own are named so that they cost neither an allocation nor a virtual call.
pub enum Body {
    Empty,
    Full(Bytes),
    H1(super::h1::BodyReader),
    H2(super::h2::BodyReader),
    /// A filter's, or a raw connection's.
    Boxed(Box<dyn BodySource>),
}

impl BodySource for Body {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then_some(Ok(Frame::Data(bytes))))
            }
            Self::H1(body) => body.poll_frame(cx),
            Self::H2(body) => body.poll_frame(cx),
            Self::Boxed(body) => body.poll_frame(cx),
        }
    }

    fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::H1(body) => body.is_end(),
            Self::H2(body) => body.is_end(),
            Self::Boxed(body) => body.is_end(),
        }
    }

    fn remaining(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::H1(body) => body.remaining(),
            Self::H2(body) => body.remaining(),
            Self::Boxed(body) => body.remaining(),
        }
    }
}
