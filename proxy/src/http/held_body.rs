//! A body of which a part was read ahead: what was read, then the rest.

use super::{Body, BodySource, Frame};
use crate::base::StreamError;
use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

pub struct HeldBody {
    frames: VecDeque<Frame>,
    rest: Body,
}

impl HeldBody {
    /// `frames`, then `rest`.
    #[allow(clippy::new_ret_no_self)] // Nobody wants more of it than a body.
    pub fn new(frames: impl IntoIterator<Item = Frame>, rest: Body) -> Body {
        let frames: VecDeque<_> = frames.into_iter().collect();
        if frames.is_empty() { rest } else { Body::Boxed(Box::new(Self { frames, rest })) }
    }
}

impl BodySource for HeldBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.rest.poll_frame(cx),
        }
    }

    fn is_end(&self) -> bool {
        self.frames.is_empty() && self.rest.is_end()
    }

    fn remaining(&self) -> Option<u64> {
        let size = |frame: &Frame| if let Frame::Data(data) = frame { data.len() as u64 } else { 0 };
        Some(self.frames.iter().map(size).sum::<u64>() + self.rest.remaining()?)
    }
}
