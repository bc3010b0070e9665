//! A body on its way through a compressor. Each piece comes out when it went in.

use super::DirectionStats;
use crate::{
    base::{ResetReason, Side, StreamError},
    filters::compression::encoder::Encoder,
    http::{Body, BodySource, Frame},
};
use http::HeaderMap;
use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

pub struct CompressedBody {
    body: Body,
    encoder: Option<Encoder>,
    trailers: Option<HeaderMap>,
    stats: Arc<DirectionStats>,
}

impl CompressedBody {
    #[allow(clippy::new_ret_no_self)] // Nobody wants more of it than a body.
    pub fn new(body: Body, encoder: Encoder, stats: Arc<DirectionStats>) -> Body {
        Body::Boxed(Box::new(Self { body, encoder: Some(encoder), trailers: None, stats }))
    }

    /// Compresses a piece; with the last one the encoder goes.
    fn push(&mut self, data: &[u8], end: bool) -> Option<Result<Frame, StreamError>> {
        let encoder = self.encoder.as_mut()?;
        self.stats.total_uncompressed_bytes.add(data.len() as u64);
        let pushed = encoder.push(data, end);
        if end || pushed.is_err() {
            self.encoder = None;
        }
        match pushed {
            Ok(out) => {
                self.stats.total_compressed_bytes.add(out.len() as u64);
                Some(Ok(Frame::Data(out)))
            }
            Err(_) => Some(Err(StreamError::new(Side::Ours, ResetReason::LocalReset, "compression_error"))),
        }
    }
}

impl BodySource for CompressedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.encoder.is_none() {
            return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::Trailers(trailers))));
        }
        Poll::Ready(match ready!(self.body.poll_frame(cx)) {
            Some(Ok(Frame::Data(data))) => {
                let end = self.body.is_end();
                self.push(&data, end)
            }
            Some(Ok(Frame::Trailers(trailers))) => {
                self.trailers = Some(trailers);
                self.push(b"", true)
            }
            Some(Err(error)) => Some(Err(error)),
            None => self.push(b"", true),
        })
    }

    fn is_end(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }

    fn remaining(&self) -> Option<u64> {
        None
    }
}
