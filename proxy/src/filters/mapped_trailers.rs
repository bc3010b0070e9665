//! A body whose trailers a filter changes on their way.

use crate::{
    base::StreamError,
    http::{Body, BodySource, Frame},
};
use http::HeaderMap;
use std::task::{Context, Poll};

struct MappedTrailers<F> {
    body: Body,
    map: F,
}

/// `body` with its trailers, if there will be any, as `map` leaves them.
pub fn map_trailers(body: Body, map: impl FnMut(&mut HeaderMap) + 'static) -> Body {
    if body.is_end() { body } else { Body::Boxed(Box::new(MappedTrailers { body, map })) }
}

impl<F: FnMut(&mut HeaderMap)> BodySource for MappedTrailers<F> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        self.body.poll_frame(cx).map(|frame| {
            let mut frame = frame?;
            if let Ok(Frame::Trailers(trailers)) = &mut frame {
                (self.map)(trailers);
            }
            Some(frame)
        })
    }

    fn is_end(&self) -> bool {
        self.body.is_end()
    }

    fn remaining(&self) -> Option<u64> {
        self.body.remaining()
    }
}
