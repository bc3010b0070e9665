//! Moves the bytes of a connection both ways at once, half-closes included.
//!
//! Called by the TCP proxy's session. A direction holds one buffer or pipe, and only while there are bytes to move: what the
//! far side does not take is not read, so a slow reader costs no more than that. Bytes are copied at first; where many
//! flow from socket to socket, the kernel moves them ([`Pipe`]). No knowledge of clusters or logs.

use crate::{
    observe::stats::Counter,
    transport::{Io, Pipe},
};
use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Copying wants this many bytes at a time (measured).
const BUFFER: usize = 64 << 10;
/// Reads are never smaller, however low the limit of the connection.
const LEAST: usize = 16 << 10;

/// So many reads in turn that fill the buffer, and bytes are spliced from then on.
const FULL_READS: u32 = 4;
/// So many in turn that would not have filled a quarter of it, and they are copied again.
const SMALL_READS: u32 = 8;
/// The most that is spliced at once (measured), and before others have their turn.
const SPLICE: usize = 1 << 20;
const TURN: usize = 2 << 20;

/// What one direction counts.
pub struct Counters<'a> {
    pub read: &'a Counter,
    pub written: &'a Counter,
    /// Reading waited because the far side held more than it may.
    pub paused: &'a Counter,
    pub resumed: &'a Counter,
}

/// Which side ended the transfer before both had said all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    Downstream { reset: bool },
    Upstream { reset: bool },
}

/// Both directions of a connection, ended together when one fails.
pub struct Transfer<'a> {
    pub downstream: &'a mut Io,
    pub upstream: &'a mut Io,
    pub to_upstream: Direction<'a>,
    pub to_downstream: Direction<'a>,
}

impl Transfer<'_> {
    /// Moves what can be moved. Ready once both sides have ended and everything was written; true if the client was
    /// the last to end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Failed>> {
        let upstream_was_done = self.to_downstream.read_done;
        let up = self.to_upstream.poll(cx, self.downstream, self.upstream);
        let down = self.to_downstream.poll(cx, self.upstream, self.downstream);
        let failed = match (up, down) {
            (Poll::Ready(Err(End::Read(e))), _) | (_, Poll::Ready(Err(End::Write(e)))) => {
                Failed::Downstream { reset: is_reset(&e) }
            }
            (_, Poll::Ready(Err(End::Read(e)))) | (Poll::Ready(Err(End::Write(e))), _) => {
                Failed::Upstream { reset: is_reset(&e) }
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(upstream_was_done)),
            _ => return Poll::Pending,
        };
        Poll::Ready(Err(failed))
    }

    /// Bytes that were read and not yet written, of both directions.
    pub fn is_flushing_upstream(&self) -> bool {
        self.to_upstream.read_done && self.to_downstream.shut && self.to_upstream.holds_bytes()
    }
}

fn is_reset(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset
}

/// Which end of a direction failed.
enum End {
    Read(io::Error),
    Write(io::Error),
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Copy,
    Splice,
    /// One that cannot be spliced.
    CopyAlways,
}

/// One direction: what was read and not yet written.
pub struct Direction<'a> {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes read at once.
    most: usize,
    /// Bytes spliced at once.
    splice_most: usize,
    /// Bytes that may wait at the far side; 0: any number.
    limit: usize,
    way: Way,
    /// Held only while bytes are on their way.
    pipe: Option<Pipe>,
    /// Reads in turn that speak for the other way.
    streak: u32,
    paused: bool,
    read_done: bool,
    shut: bool,
    read: Cell<u64>,
    written: Cell<u64>,
    counters: Counters<'a>,
}

impl<'a> Direction<'a> {
    /// From a side whose buffers hold `read_limit` bytes to one whose buffers hold `write_limit`.
    pub fn new(read_limit: usize, write_limit: usize, counters: Counters<'a>) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            most: if read_limit == 0 { BUFFER } else { read_limit.clamp(LEAST, BUFFER) },
            splice_most: if read_limit == 0 { SPLICE } else { read_limit.min(SPLICE) },
            limit: write_limit,
            // A limit below the buffer's size is kept by copying.
            way: if read_limit > 0 && read_limit < BUFFER { Way::CopyAlways } else { Way::Copy },
            pipe: None,
            streak: 0,
            paused: false,
            read_done: false,
            shut: false,
            read: Cell::new(0),
            written: Cell::new(0),
            counters,
        }
    }

    /// Bytes read so far.
    pub fn read(&self) -> u64 {
        self.read.get()
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    fn holds_bytes(&self) -> bool {
        self.start < self.end || self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
    }

    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<Result<(), End>> {
        let mut moved = 0;
        loop {
            ready!(self.poll_write(cx, to))?;
            self.resume();
            if self.read_done {
                self.let_go();
                if !self.shut {
                    // A peer that is gone already is told nothing more.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            // What carries the bytes may keep some for itself until it is asked.
            if let Poll::Ready(Err(e)) = Pin::new(&mut *to).poll_flush(cx) {
                return Poll::Ready(Err(End::Write(e)));
            }
            if moved >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let n = match self.way {
                Way::Splice => match self.poll_splice(cx, from, to) {
                    Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => {
                        self.let_go();
                        self.way = Way::CopyAlways;
                        continue;
                    }
                    result => result,
                },
                Way::Copy | Way::CopyAlways => self.poll_copy(cx, from),
            };
            let Poll::Ready(n) = n else {
                self.let_go();
                return Poll::Pending;
            };
            let n = n.map_err(End::Read)?;
            moved += n;
            self.read_done = n == 0;
            self.read.set(self.read.get() + n as u64);
            self.counters.read.add(n as u64);
            if self.limit > 0 && n > self.limit {
                self.pause();
            }
            self.choose_way(n, from, to);
        }
    }

    /// Writes what was read.
    fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut Io) -> Poll<Result<(), End>> {
        while self.holds_bytes() {
            let write = match &mut self.pipe {
                Some(pipe) if pipe.held() > 0 => to.poll_drain(cx, pipe),
                _ => Pin::new(&mut *to).poll_write(cx, &self.buffer[self.start..self.end]),
            };
            let Poll::Ready(result) = write else {
                // Nothing is read until this is gone.
                self.pause();
                return Poll::Pending;
            };
            match result {
                Ok(0) => return Poll::Ready(Err(End::Write(io::ErrorKind::WriteZero.into()))),
                Err(e) => return Poll::Ready(Err(End::Write(e))),
                Ok(n) => {
                    // What a pipe holds is not in the buffer, and the other way round.
                    self.start = (self.start + n).min(self.end);
                    self.written.set(self.written.get() + n as u64);
                    self.counters.written.add(n as u64);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into the buffer.
    fn poll_copy(&mut self, cx: &mut Context<'_>, from: &mut Io) -> Poll<io::Result<usize>> {
        if self.buffer.is_empty() {
            // No buffer is held while there is nothing to read; an error shows when reading.
            let _ = ready!(from.poll_read_ready(cx));
            self.buffer = take_buffer();
        }
        let mut buf = ReadBuf::new(&mut self.buffer[..self.most]);
        ready!(Pin::new(&mut *from).poll_read(cx, &mut buf))?;
        (self.start, self.end) = (0, buf.filled().len());
        Poll::Ready(Ok(self.end))
    }

    /// Reads into a pipe.
    fn poll_splice(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &Io) -> Poll<io::Result<usize>> {
        let (Some(socket), Some(_)) = (from.socket(), to.socket()) else {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        };
        loop {
            ready!(socket.poll_read_ready(cx))?;
            let Some(pipe) = self.pipe.take().or_else(Pipe::take) else {
                return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
            };
            match self.pipe.insert(pipe).fill(socket, self.splice_most) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(0) => return self.poll_copy(cx, from),
                Ok(n) => {
                    from.was_received(n);
                    return Poll::Ready(Ok(n));
                }
            }
        }
    }

    /// Looks at a read of `n` bytes: how the next ones are moved.
    fn choose_way(&mut self, n: usize, from: &Io, to: &Io) {
        let (speaks_against, most, other) = match self.way {
            Way::Copy => (n == self.most, FULL_READS, Way::Splice),
            Way::Splice => (n < BUFFER / 4, SMALL_READS, Way::Copy),
            Way::CopyAlways => return,
        };
        self.streak = if speaks_against { self.streak + 1 } else { 0 };
        if self.streak < most {
            return;
        }
        self.streak = 0;
        self.let_go();
        let can_be_spliced = from.socket().is_some() && to.socket().is_some();
        self.way = if other == Way::Splice && !can_be_spliced { Way::CopyAlways } else { other };
    }

    /// Holds nothing while there is nothing to move.
    fn let_go(&mut self) {
        if self.start == self.end {
            give_back(&mut self.buffer);
        }
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.held() == 0) {
            pipe.give_back();
        }
    }

    fn pause(&mut self) {
        if !self.paused {
            self.paused = true;
            self.counters.paused.inc();
        }
    }

    fn resume(&mut self) {
        if self.paused {
            self.paused = false;
            self.counters.resumed.inc();
        }
    }
}

impl Drop for Direction<'_> {
    fn drop(&mut self) {
        give_back(&mut self.buffer);
        self.let_go();
    }
}

thread_local! {
    /// Buffers that no connection has now: as many as were in use at once, up to a few.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> Vec<u8> {
    SPARE.with(|spare| spare.borrow_mut().pop()).unwrap_or_else(|| vec![0; BUFFER])
}

fn give_back(buffer: &mut Vec<u8>) {
    let buffer = std::mem::take(buffer);
    if !buffer.is_empty() {
        SPARE.with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < 4 {
                spare.push(buffer);
            }
        });
    }
}
