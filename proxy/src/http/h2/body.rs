//! The receiving half of a stream: a request's body downstream, a response's upstream.

use super::{client::Life, error, wire::Wire};
use crate::{
    base::{Side, StreamError},
    http::{BodySource, Frame},
};
use h2::{Reason, RecvStream};
use std::{
    rc::Rc,
    task::{Context, Poll, ready},
};

/// Reads a body. The flow-control windows grow when a piece is handed out.
pub struct BodyReader {
    recv: RecvStream,
    stage: Stage,
    /// From `content-length`, less what came.
    remaining: Option<u64>,
    wire: Rc<Wire>,
    /// Upstream: what the stream owes when nobody holds it any more.
    life: Option<Rc<Life>>,
}

#[derive(PartialEq)]
enum Stage {
    Data,
    Trailers,
    End,
}

impl BodyReader {
    pub(super) fn new(recv: RecvStream, length: Option<u64>, wire: Rc<Wire>, life: Option<Rc<Life>>) -> Self {
        let reader = Self { recv, stage: Stage::Data, remaining: length, wire, life };
        if reader.recv.is_end_stream() {
            reader.ended();
        }
        reader
    }

    fn side(&self) -> Side {
        if self.life.is_some() { Side::Upstream } else { Side::Downstream }
    }

    fn ended(&self) {
        if let Some(life) = &self.life {
            life.remote_ended();
        }
    }

    /// An error, or the end: RST_STREAM with NO_ERROR after a whole message only says that the rest of *ours* is unwanted.
    fn fail(&mut self, error: h2::Error) -> Option<Result<Frame, StreamError>> {
        self.stage = Stage::End;
        let unwanted = error.is_reset() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
        if unwanted && self.remaining.unwrap_or(0) == 0 {
            self.ended();
            return None;
        }
        Some(Err(error::stream_error(self.side(), error, self.wire.closed(self.side()))))
    }
}

impl BodySource for BodyReader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        while self.stage == Stage::Data {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    if let Err(e) = self.recv.flow_control().release_capacity(data.len()) {
                        return Poll::Ready(self.fail(e));
                    }
                    if data.is_empty() {
                        continue;
                    }
                    if let Some(remaining) = &mut self.remaining {
                        *remaining = remaining.saturating_sub(data.len() as u64);
                    }
                    if self.recv.is_end_stream() {
                        self.ended();
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Some(Err(e)) => return Poll::Ready(self.fail(e)),
                None => self.stage = Stage::Trailers,
            }
        }
        if self.stage == Stage::End {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.recv.poll_trailers(cx));
        match trailers {
            Ok(trailers) => {
                self.stage = Stage::End;
                self.ended();
                Poll::Ready(trailers.map(|trailers| {
                    self.wire.stats().trailers.inc();
                    Ok(Frame::Trailers(trailers))
                }))
            }
            Err(e) => Poll::Ready(self.fail(e)),
        }
    }

    fn is_end(&self) -> bool {
        self.stage == Stage::End || self.recv.is_end_stream()
    }

    fn remaining(&self) -> Option<u64> {
        if self.is_end() { Some(0) } else { self.remaining }
    }
}
