//! Moves the bytes of a connection both ways at once, half-closes included.
//!
//! Called by the TCP proxy's session. A direction holds one buffer, and only while there are bytes to move: what the
//! far side does not take is not read, so a slow reader costs no more than that. No knowledge of clusters or logs.

use crate::{observe::stats::Counter, transport::Io};
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
        self.to_upstream.read_done && self.to_downstream.shut && self.to_upstream.start < self.to_upstream.end
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

/// One direction: what was read and not yet written.
pub struct Direction<'a> {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes read at once.
    most: usize,
    /// Bytes that may wait at the far side; 0: any number.
    limit: usize,
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
            limit: write_limit,
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

    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<Result<(), End>> {
        loop {
            while self.start < self.end {
                let write = Pin::new(&mut *to).poll_write(cx, &self.buffer[self.start..self.end]);
                let Poll::Ready(result) = write else {
                    // Nothing is read until this is gone.
                    self.pause();
                    return Poll::Pending;
                };
                match result {
                    Ok(0) => return Poll::Ready(Err(End::Write(io::ErrorKind::WriteZero.into()))),
                    Err(e) => return Poll::Ready(Err(End::Write(e))),
                    Ok(n) => {
                        self.start += n;
                        self.written.set(self.written.get() + n as u64);
                        self.counters.written.add(n as u64);
                    }
                }
            }
            self.resume();
            if self.read_done {
                give_back(&mut self.buffer);
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
            if self.buffer.is_empty() {
                // No buffer is held while there is nothing to read; an error shows when reading.
                let _ = ready!(from.poll_read_ready(cx));
                self.buffer = take_buffer();
            }
            let mut buf = ReadBuf::new(&mut self.buffer[..self.most]);
            match Pin::new(&mut *from).poll_read(cx, &mut buf) {
                Poll::Pending => {
                    give_back(&mut self.buffer);
                    return Poll::Pending;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(End::Read(e))),
                Poll::Ready(Ok(())) => {
                    let n = buf.filled().len();
                    (self.start, self.end, self.read_done) = (0, n, n == 0);
                    self.read.set(self.read.get() + n as u64);
                    self.counters.read.add(n as u64);
                    if self.limit > 0 && n > self.limit {
                        self.pause();
                    }
                }
            }
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
