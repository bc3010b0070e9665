//! A body that passes no faster than so many KiB a second, in slices of 50 ms.

use crate::{
    base::{StreamError, Timer, clock},
    http::{Body, BodySource, Frame},
};
use bytes::Bytes;
use http::HeaderMap;
use std::{
    collections::VecDeque,
    task::{Context, Poll},
    time::{Duration, Instant},
};

const SLICE: Duration = Duration::from_millis(50);

pub struct SlowBody {
    body: Body,
    /// Bytes of one slice of time.
    slice: u64,
    /// Bytes that may wait here.
    most: usize,
    waiting: VecDeque<Bytes>,
    size: usize,
    trailers: Option<HeaderMap>,
    /// What is left of the present slice, and when the next one begins.
    left: u64,
    next: Instant,
    timer: Timer,
}

impl SlowBody {
    #[allow(clippy::new_ret_no_self)] // Nobody wants more of it than a body.
    pub fn new(body: Body, kilobytes_per_second: u64, most: usize) -> Body {
        if body.is_end() {
            return body;
        }
        let slice = (kilobytes_per_second.saturating_mul(1024) / 20).max(1);
        Body::Boxed(Box::new(Self {
            body,
            slice,
            most,
            waiting: VecDeque::new(),
            size: 0,
            trailers: None,
            left: slice,
            next: clock::now() + SLICE,
            timer: Timer::new(),
        }))
    }

    /// Reads as much as may wait.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), StreamError> {
        while self.size < self.most.max(1) && self.trailers.is_none() && !self.body.is_end() {
            match self.body.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    self.size += data.len();
                    self.waiting.push_back(data);
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => self.trailers = Some(trailers),
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Ok(())
    }
}

impl BodySource for SlowBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if let Err(error) = self.fill(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        let Some(first) = self.waiting.front_mut() else {
            return match self.trailers.take() {
                Some(trailers) => Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
                None if self.body.is_end() => Poll::Ready(None),
                None => Poll::Pending,
            };
        };
        let now = clock::now();
        if now >= self.next {
            // Time without anything to send is not made up for.
            self.left = self.slice;
            self.next = now + SLICE;
        }
        if self.left == 0 {
            self.timer.set(self.next);
            if self.timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.left = self.slice;
            self.next += SLICE;
        }
        let n = first.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let data = first.split_to(n);
        if first.is_empty() {
            self.waiting.pop_front();
        }
        self.size -= n;
        self.left -= n as u64;
        Poll::Ready(Some(Ok(Frame::Data(data))))
    }

    fn is_end(&self) -> bool {
        self.waiting.is_empty() && self.trailers.is_none() && self.body.is_end()
    }

    fn remaining(&self) -> Option<u64> {
        Some(self.size as u64 + self.body.remaining()?)
    }
}
