//! One connection's bytes: the stream, what was read of it and not yet used, what waits to be written.
//!
//! Used by both connections. A connection that waits without data holds no read buffer: buffers come from a small
//! pool of this thread when there is something to read, and go back when they are empty.

use super::outbox::Outbox;
use crate::transport::{Io, Pipe};
use bytes::BytesMut;
use std::{
    cell::RefCell,
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};
use tokio::io::{AsyncReadExt, AsyncWrite};

/// What is read at once at first, and at most when much comes.
const READ: usize = 16 * 1024;
const READ_MOST: usize = 64 * 1024;
/// Room below this is not worth a read.
const READ_LEAST: usize = 2 * 1024;
/// How many idle buffers a thread keeps.
const SPARE: usize = 32;
/// Bodies of which so much is still to come, as far as that is known, are moved by the kernel (measured).
const SPLICE_FROM: u64 = 128 * 1024;
/// The most that is spliced at once.
const SPLICE: usize = 1 << 20;
/// So many reads in turn that found little, and bytes are copied; so many that found much, and they are spliced again.
const STREAK: u8 = 4;
/// How many pieces go into one write.
const VECTORS: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// A connection's stream with its buffers.
pub(super) struct Wire {
    io: Io,
    pub read: BytesMut,
    pub out: Outbox,
    read_size: usize,
    splice: Splice,
    /// Bytes that the kernel (or TLS) took.
    written: u64,
    flushed: bool,
}

/// Whether what is read of a connection is worth splicing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Splice {
    /// Where much is to come. So many reads in turn filled their buffer.
    MayBe(u8),
    /// It is. So many in turn found little.
    Does(u8),
    /// It was not: once so many reads in turn have filled their buffer it is again.
    DidNot(u8),
    /// The kernel cannot.
    Cannot,
}

impl Wire {
    pub fn new(io: Io) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            out: Outbox::default(),
            read_size: READ,
            splice: Splice::MayBe(0),
            written: 0,
            flushed: true,
        }
    }

    /// True if what is written may come in a pipe.
    pub fn takes_pipes(&self) -> bool {
        self.io.socket().is_some()
    }

    /// True if `left` bytes that are still to come (`None`: any number) are worth reading into a pipe.
    pub fn gives_pipes(&self, left: Option<u64>) -> bool {
        if !self.read.is_empty() {
            return false;
        }
        let worth = match self.splice {
            Splice::Cannot => false,
            Splice::Does(_) => left.is_none_or(|left| left >= READ_MOST as u64),
            Splice::MayBe(full) => left.map_or(full >= STREAK, |left| left >= SPLICE_FROM),
            Splice::DidNot(full) => full >= STREAK && left.is_none_or(|left| left >= SPLICE_FROM),
        };
        worth && self.io.socket().is_some()
    }

    /// Reads up to `most` bytes into a pipe; `None`: it must be tried as ever.
    pub fn poll_fill_pipe(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<Option<Pipe>>> {
        let Some(socket) = self.io.socket() else { return Poll::Ready(Ok(None)) };
        let most = most.min(SPLICE);
        loop {
            ready!(socket.poll_read_ready(cx))?;
            let Some(mut pipe) = Pipe::take() else {
                self.splice = Splice::Cannot;
                return Poll::Ready(Ok(None));
            };
            let filled = pipe.fill(socket, most);
            match filled {
                Ok(n @ 1..) => {
                    self.io.was_received(n);
                    self.splice = match self.splice {
                        _ if n >= READ || n == most => Splice::Does(0),
                        Splice::Does(little) if little + 1 == STREAK => Splice::DidNot(0),
                        Splice::Does(little) => Splice::Does(little + 1),
                        _ => Splice::Does(1),
                    };
                    return Poll::Ready(Ok(Some(pipe)));
                }
                filled => {
                    pipe.give_back();
                    match filled {
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                            self.splice = Splice::Cannot;
                            return Poll::Ready(Ok(None));
                        }
                        Err(e) => return Poll::Ready(Err(e)),
                        Ok(_) => return Poll::Ready(Ok(None)),
                    }
                }
            }
        }
    }

    pub fn written(&self) -> u64 {
        self.written
    }

    /// True if the peer's TCP certainly took nothing after the first `bytes` that were written.
    pub fn took_no_more_than(&self, bytes: u64) -> bool {
        // One more for the SYN. Where more goes over the wire than is written here (TLS), this is never true.
        self.io.bytes_acked().is_some_and(|acked| acked <= bytes + 1)
    }

    /// True if nothing waits to be written or flushed.
    pub fn is_clear(&self) -> bool {
        self.flushed && self.out.is_empty()
    }

    /// Says that so much is still to come, and to be read at once as far as that goes.
    pub fn expect(&mut self, bytes: u64) {
        self.read_size = usize::try_from(bytes).unwrap_or(READ_MOST).clamp(READ, READ_MOST);
    }

    /// Reads more; ready with 0 when the peer sends nothing more.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let least = if self.read_size > READ { self.read_size / 2 } else { READ_LEAST };
        if self.read.capacity() - self.read.len() < least {
            if self.read.capacity() == 0 {
                ready!(self.io.poll_read_ready(cx))?;
                self.read = take_buffer();
            }
            self.read.reserve(self.read_size);
        }
        let room = self.read.capacity() - self.read.len();
        let result = pin!(self.io.read_buf(&mut self.read)).poll(cx);
        match &result {
            Poll::Ready(Ok(n)) => {
                let full = *n == room;
                if full {
                    self.read_size = (self.read_size * 2).min(READ_MOST);
                }
                self.splice = match self.splice {
                    Splice::MayBe(count) => Splice::MayBe(if full { count.saturating_add(1) } else { 0 }),
                    Splice::DidNot(count) => Splice::DidNot(if full { count.saturating_add(1) } else { 0 }),
                    other => other,
                };
            }
            _ => self.release_read(),
        }
        result
    }

    /// Writes out what waits; ready when all of it was taken.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            if let Some(pipe) = self.out.first_pipe() {
                let written = ready!(self.io.poll_drain(cx, pipe))?;
                self.written += written as u64;
                self.out.drained(written);
                continue;
            }
            let mut slices = [IoSlice::new(&[]); VECTORS];
            let n = self.out.slices(&mut slices);
            let written = match &slices[..n] {
                [one] => ready!(Pin::new(&mut self.io).poll_write(cx, one))?,
                many => ready!(Pin::new(&mut self.io).poll_write_vectored(cx, many))?,
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written as u64;
            self.flushed = false;
            self.out.advance(written);
        }
        if !self.flushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends the end of the stream (TLS: close_notify) as far as that goes without waiting.
    pub fn shutdown(&mut self) {
        let _ = Pin::new(&mut self.io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }

    /// Ends the connection in both directions at once.
    pub fn break_off(&self) {
        self.io.break_off();
    }

    /// Gives back what an idle connection needs not hold.
    pub fn release(&mut self) {
        self.release_read();
        self.out.release();
    }

    fn release_read(&mut self) {
        if self.read.is_empty() && self.read.capacity() > 0 {
            give_buffer(std::mem::take(&mut self.read));
            self.read_size = READ;
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.read.clear();
        self.release_read();
    }
}

fn take_buffer() -> BytesMut {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(READ))
}

/// Keeps `buffer` if nobody else holds a part of it.
fn give_buffer(mut buffer: BytesMut) {
    if buffer.try_reclaim(READ) && buffer.capacity() <= READ_MOST {
        // The thread may be ending: then there is no pool any more.
        let _ = BUFFERS.try_with(|buffers| {
            let mut buffers = buffers.borrow_mut();
            if buffers.len() < SPARE {
                buffers.push(buffer);
            }
        });
    }
}
