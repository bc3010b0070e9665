//! What waits to be written on one connection: heads and chunk framing in one side buffer, payload as it was read, or in a pipe.
//!
//! Used by both connections. Payload is never copied, except pieces so small that a segment of their own costs more.

use crate::transport::Pipe;
use bytes::{Buf, Bytes};
use std::{cell::RefCell, collections::VecDeque, io::IoSlice};

/// Payload below this is copied beside the head that goes before it.
pub(super) const COPY_BELOW: usize = 512;
/// The largest side buffer, and the longest queue, that is kept for another connection; and how many of them.
const KEEP: usize = 4096;
const KEEP_SEGMENTS: usize = 64;
const SPARE: usize = 64;
/// A queue that never runs empty gives back what it wrote in steps of this.
const COMPACT_AT: usize = 16 * 1024;

thread_local! {
    static BUFFERS: RefCell<Vec<(Vec<u8>, VecDeque<Segment>)>> = const { RefCell::new(Vec::new()) };
}

/// A queue of bytes to write. Its buffers come from a small pool of this thread, and go back while nothing waits.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    side: Vec<u8>,
    /// How much of `side` was written.
    side_at: usize,
    queue: VecDeque<Segment>,
    len: usize,
    total: u64,
}

#[derive(Debug)]
enum Segment {
    /// The next bytes of the side buffer.
    Side(usize),
    Data(Bytes),
    /// What the kernel holds of it.
    Pipe(Pipe),
}

impl Outbox {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that were ever put in.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn text(&mut self, text: &[u8]) {
        self.text_with(text.len(), |side| side.extend_from_slice(text));
    }

    /// Appends `len` bytes that `write` puts at the end of the side buffer.
    pub fn text_with(&mut self, len: usize, write: impl FnOnce(&mut Vec<u8>)) {
        if len == 0 {
            return;
        }
        self.take_buffers();
        write(&mut self.side);
        match self.queue.back_mut() {
            Some(Segment::Side(n)) => *n += len,
            _ => self.queue.push_back(Segment::Side(len)),
        }
        self.len += len;
        self.total += len as u64;
    }

    /// A chunk-size line.
    pub fn chunk_size(&mut self, size: usize) {
        let mut digits = [0; 18];
        let mut at = digits.len() - 2;
        digits[at..].copy_from_slice(b"\r\n");
        let mut rest = size;
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[rest & 15];
            rest >>= 4;
            if rest == 0 {
                break;
            }
        }
        self.text(&digits[at..]);
    }

    pub fn data(&mut self, data: Bytes) {
        if data.len() < COPY_BELOW {
            return self.text(&data);
        }
        self.take_buffers();
        self.len += data.len();
        self.total += data.len() as u64;
        self.queue.push_back(Segment::Data(data));
    }

    pub fn pipe(&mut self, pipe: Pipe) {
        self.len += pipe.held();
        self.total += pipe.held() as u64;
        self.queue.push_back(Segment::Pipe(pipe));
    }

    /// The pipe whose bytes are to be written next. What was drained of it is to be told by [`Outbox::drained`].
    pub fn first_pipe(&mut self) -> Option<&mut Pipe> {
        match self.queue.front_mut() {
            Some(Segment::Pipe(pipe)) => Some(pipe),
            _ => None,
        }
    }

    /// `n` bytes of the first pipe were written.
    pub fn drained(&mut self, n: usize) {
        self.len -= n.min(self.len);
        if let Some(Segment::Pipe(pipe)) =
            self.queue.pop_front_if(|segment| matches!(segment, Segment::Pipe(pipe) if pipe.held() == 0))
        {
            pipe.give_back();
        }
        if self.queue.is_empty() {
            self.clear();
        }
    }

    /// Fills `slices` with what is to be written next, up to a pipe; returns how many it filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut side = &self.side[self.side_at..];
        let mut n = 0;
        for (slot, segment) in slices.iter_mut().zip(&self.queue) {
            *slot = IoSlice::new(match segment {
                Segment::Side(len) => {
                    let (text, rest) = side.split_at(*len);
                    side = rest;
                    text
                }
                Segment::Data(data) => data,
                Segment::Pipe(_) => break,
            });
            n += 1;
        }
        n
    }

    /// Drops the first `n` bytes, which were written.
    pub fn advance(&mut self, mut n: usize) {
        self.len -= n.min(self.len);
        while n > 0 {
            let Some(first) = self.queue.front_mut() else { break };
            let len = match first {
                Segment::Side(len) => *len,
                Segment::Data(data) => data.len(),
                Segment::Pipe(_) => break,
            };
            let written = len.min(n);
            match first {
                Segment::Side(len) => {
                    *len -= written;
                    self.side_at += written;
                }
                Segment::Data(data) => data.advance(written),
                Segment::Pipe(_) => {}
            }
            n -= written;
            if written == len {
                self.queue.pop_front();
            }
        }
        if self.queue.is_empty() {
            self.clear();
        } else if self.side_at >= COMPACT_AT {
            self.side.drain(..self.side_at);
            self.side_at = 0;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.side.clear();
        self.side_at = 0;
        self.len = 0;
    }

    #[inline]
    fn take_buffers(&mut self) {
        if self.queue.capacity() == 0 {
            self.take_spare();
        }
    }

    /// Apart, so that what is asked with each piece of text stays small.
    #[inline(never)]
    fn take_spare(&mut self) {
        if let Some((side, queue)) = BUFFERS.with_borrow_mut(Vec::pop) {
            (self.side, self.queue) = (side, queue);
        }
    }

    /// Gives memory back while nothing waits.
    pub fn release(&mut self) {
        if !self.is_empty() || self.queue.capacity() == 0 {
            return;
        }
        let (side, queue) = (std::mem::take(&mut self.side), std::mem::take(&mut self.queue));
        if side.capacity() <= KEEP && queue.capacity() <= KEEP_SEGMENTS {
            // The thread may be ending: then there is no pool any more.
            let _ = BUFFERS.try_with(|buffers| {
                let mut buffers = buffers.borrow_mut();
                if buffers.len() < SPARE {
                    buffers.push((side, queue));
                }
            });
        }
    }
}
