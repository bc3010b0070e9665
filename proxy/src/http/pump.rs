//! Moves a body from where it comes to where it goes, no faster than both allow.

use super::{Body, BodySink, BodySource, Frame, body::PipeRoom, h1::BodyReader, held_body::HeldBody, kept};
use crate::base::StreamError;
use bytes::Bytes;
use http::HeaderMap;
use std::task::{Context, Poll};

/// A body on its way. One for the request, one for the response of an exchange.
pub struct Pump {
    source: Body,
    state: State,
    /// Payload bytes that passed.
    pub bytes: u64,
    /// What was read so far, if the message may have to be sent again.
    replay: Option<Replay>,
    /// A second receiver of everything that passes.
    tees: Vec<Tee>,
    keeps_trailers: bool,
    trailers: Option<Box<HeaderMap>>,
    splicing: Splicing,
}

/// What of the message never leaves the kernel.
#[derive(Default)]
struct Splicing {
    /// Bytes since others had their turn.
    turn: usize,
    /// What waited to be written when it was looked at last.
    waiting: usize,
}

/// So much is spliced before others have their turn.
const TURN: usize = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Moving,
    /// Everything was handed to the sink; it may still have to write it out.
    Flushing,
    Done,
}

/// The part of a message that was already read.
#[derive(Default)]
struct Replay {
    data: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    size: u64,
    limit: u64,
    /// How many entries of `data` the current receiver has got.
    sent: usize,
    is_whole: bool,
}

/// Gets copies of the frames: a request mirror.
pub type Tee = Box<dyn FnMut(TeeFrame<'_>)>;

pub enum TeeFrame<'a> {
    Data(&'a Bytes),
    Trailers(&'a HeaderMap),
    End,
    /// The message will never be whole.
    Abort,
}

/// Which end failed.
#[derive(Debug)]
pub enum PumpError {
    Source(StreamError),
    Sink(StreamError),
}

impl Pump {
    pub fn new(source: Body) -> Self {
        Self {
            source,
            state: State::Moving,
            bytes: 0,
            replay: None,
            tees: Vec::new(),
            keeps_trailers: false,
            trailers: None,
            splicing: Splicing::default(),
        }
    }

    /// Keeps what passes, up to `limit` bytes, so that the message can be sent again. Too late once something has passed.
    pub fn keep_for_replay(&mut self, limit: u64) {
        if self.bytes > 0 {
            return;
        }
        self.replay.get_or_insert_with(|| Replay { limit, ..Replay::default() });
    }

    /// Keeps a copy of the trailers, for [`Pump::take_trailers`].
    pub fn keep_trailers(&mut self) {
        self.keeps_trailers = true;
    }

    /// The trailers, if they passed and were to be kept.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take().map(|trailers| *trailers)
    }

    pub fn add_tee(&mut self, tee: Tee) {
        self.tees.push(tee);
    }

    /// True if the message can be sent again: nothing of it has passed, or all that has was kept.
    pub fn can_replay(&self) -> bool {
        self.replay.is_some()
            || (self.bytes == 0 && self.state == State::Moving)
            || (self.bytes == 0 && self.source.is_end())
    }

    /// Starts again for a new receiver.
    pub fn rewind(&mut self) {
        if let Some(replay) = &mut self.replay {
            replay.sent = 0;
        }
        self.state = State::Moving;
    }

    /// The message again, of which all was kept (it may be empty).
    pub fn take_kept(&mut self) -> Body {
        let Some(Replay { data, trailers, .. }) = self.replay.take() else { return Body::Empty };
        HeldBody::new(data.into_iter().map(Frame::Data).chain(trailers.map(Frame::Trailers)), Body::Empty)
    }

    /// The body itself, to read ahead from. Only before anything has passed.
    pub fn source(&mut self) -> &mut Body {
        &mut self.source
    }

    /// Drops what was kept: the message will not be sent again.
    pub fn forget_replay(&mut self) {
        if self.replay.as_ref().is_some_and(|replay| replay.sent == replay.data.len() && !replay.is_whole) {
            self.replay = None;
        }
    }

    /// True if there is no body at all.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
            && self.source.is_end()
            && self.replay.as_ref().is_none_or(|r| r.data.is_empty() && r.trailers.is_none())
    }

    /// True once all of the message was read from its source.
    pub fn is_read(&self) -> bool {
        self.source.is_end() || self.state != State::Moving || self.replay.as_ref().is_some_and(|r| r.is_whole)
    }

    /// Nothing is left to send: the head said already that there is no body, or an earlier receiver got all of it and is the
    /// one that counts.
    pub fn finish(&mut self) {
        self.state = State::Done;
        self.tees.drain(..).for_each(|mut tee| tee(TeeFrame::End));
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The body itself, for a filter to wrap. Only before anything has passed.
    pub fn map_source(&mut self, wrap: impl FnOnce(Body) -> Body) {
        let source = std::mem::replace(&mut self.source, Body::Empty);
        self.source = wrap(source);
    }

    /// Moves what can be moved. Ready once the message is whole and flushed. `moved` is called for each piece.
    pub fn poll<S: BodySink>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut S,
        mut moved: impl FnMut(),
    ) -> Poll<Result<(), PumpError>> {
        while self.state == State::Moving {
            match sink.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(PumpError::Sink(e))),
                Poll::Pending => return Poll::Pending,
            }
            if self.send_kept(sink)? {
                continue;
            }
            match self.splice(cx, sink, &mut moved)? {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(true) => continue,
                Poll::Ready(false) => {}
            }
            match self.source.poll_frame(cx) {
                Poll::Pending => {
                    return match sink.poll_flush(cx) {
                        Poll::Ready(Err(e)) => Poll::Ready(Err(PumpError::Sink(e))),
                        _ => Poll::Pending,
                    };
                }
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    moved();
                    self.bytes += data.len() as u64;
                    let end = self.source.is_end();
                    self.keep(&data, end);
                    self.tees.iter_mut().for_each(|tee| tee(TeeFrame::Data(&data)));
                    if end {
                        self.end();
                    }
                    sink.send_data(data, end).map_err(PumpError::Sink)?;
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    moved();
                    if let Some(replay) = &mut self.replay {
                        replay.trailers = Some(trailers.clone());
                        replay.is_whole = true;
                    }
                    if self.keeps_trailers {
                        self.trailers = Some(Box::new(trailers.clone()));
                    }
                    self.tees.iter_mut().for_each(|tee| tee(TeeFrame::Trailers(&trailers)));
                    self.end();
                    sink.send_trailers(trailers).map_err(PumpError::Sink)?;
                }
                Poll::Ready(None) => {
                    moved();
                    if let Some(replay) = &mut self.replay {
                        replay.is_whole = true;
                    }
                    self.end();
                    sink.send_data(Bytes::new(), true).map_err(PumpError::Sink)?;
                }
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(PumpError::Source(e))),
            }
        }
        if self.state == State::Flushing {
            match sink.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.state = State::Done,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(PumpError::Sink(e))),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Moves what comes next through a pipe, if both ends can and it is worth it. Ready with false: it must be read. A pipe is
    /// filled once the one before it is empty, so that there is one at most.
    fn splice<S: BodySink>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut S,
        moved: &mut impl FnMut(),
    ) -> Result<Poll<bool>, PumpError> {
        let Self { source: Body::H1(reader), replay: None, splicing, .. } = self else { return Ok(Poll::Ready(false)) };
        let Some(room) = room_for(reader, sink).filter(|_| self.tees.is_empty()) else { return Ok(Poll::Ready(false)) };
        let flushed = sink.poll_flush(cx);
        let waiting = sink.waiting();
        match flushed {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(e)) => return Err(PumpError::Sink(e)),
            Poll::Pending => {
                // However slowly its reader takes it, it does move.
                if waiting != std::mem::replace(&mut splicing.waiting, waiting) {
                    moved();
                }
                return Ok(Poll::Pending);
            }
        }
        if splicing.turn >= TURN {
            splicing.turn = 0;
            cx.waker().wake_by_ref();
            return Ok(Poll::Pending);
        }
        let pipe = match reader.poll_pipe(cx, room) {
            Poll::Ready(Ok(Some(pipe))) => pipe,
            Poll::Ready(Ok(None)) => return Ok(Poll::Ready(false)),
            Poll::Ready(Err(e)) => return Err(PumpError::Source(e)),
            Poll::Pending => {
                splicing.turn = 0;
                return Ok(Poll::Pending);
            }
        };
        moved();
        splicing.turn += pipe.held();
        self.bytes += pipe.held() as u64;
        let end = reader.is_end();
        if end {
            self.end();
        }
        sink.send_pipe(pipe, end).map_err(PumpError::Sink)?;
        Ok(Poll::Ready(true))
    }

    fn end(&mut self) {
        self.state = State::Flushing;
        self.tees.drain(..).for_each(|mut tee| tee(TeeFrame::End));
    }

    /// Sends the next kept piece, if there is one to send.
    fn send_kept<S: BodySink>(&mut self, sink: &mut S) -> Result<bool, PumpError> {
        let Some(replay) = &mut self.replay else { return Ok(false) };
        if let Some(data) = replay.data.get(replay.sent) {
            replay.sent += 1;
            let end = replay.is_whole && replay.trailers.is_none() && replay.sent == replay.data.len();
            if end {
                self.state = State::Flushing;
            }
            sink.send_data(data.clone(), end).map_err(PumpError::Sink)?;
            return Ok(true);
        }
        if !replay.is_whole {
            return Ok(false);
        }
        self.state = State::Flushing;
        match replay.trailers.clone() {
            Some(trailers) => sink.send_trailers(trailers),
            None => sink.send_data(Bytes::new(), true),
        }
        .map_err(PumpError::Sink)?;
        Ok(true)
    }

    fn keep(&mut self, data: &Bytes, end: bool) {
        let Some(replay) = &mut self.replay else { return };
        replay.size += data.len() as u64;
        if replay.size > replay.limit {
            self.replay = None;
            return;
        }
        let (before, last) = kept::join(replay.data.pop(), data.clone());
        replay.data.extend(before.into_iter().chain([last]));
        replay.sent = replay.data.len();
        replay.is_whole = end;
    }
}

fn room_for<S: BodySink>(reader: &BodyReader, sink: &S) -> Option<PipeRoom> {
    sink.pipe_room().filter(|room| reader.gives_pipes(*room))
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.tees.drain(..).for_each(|mut tee| tee(TeeFrame::Abort));
    }
}
