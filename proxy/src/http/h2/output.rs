//! What a connection has still to write: small frames and heads in one buffer, large payloads beside it as they are.
//!
//! Everything that is put here leaves in this order. Invariant: `large` is in the order of `buf`, and each of its pieces
//! belongs before the byte of `buf` that it names.

use crate::transport::Io;
use bytes::{Buf, Bytes};
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// How much may wait here before streams keep their data to themselves.
pub(super) const ROOM: usize = 64 * 1024;
/// Payloads from here on are not copied.
const LARGE: usize = 2048;
/// What an idle connection may keep.
const KEPT: usize = 1024;
const SLICES: usize = 32;

#[derive(Default)]
pub(super) struct Output {
    buf: Vec<u8>,
    written: usize,
    large: VecDeque<(usize, Bytes)>,
    large_bytes: usize,
    /// Frames put here that are not known to be written, and how many of them are replies that the peer can call for.
    frames: u32,
    control: u32,
    /// All of both that was put since the last of `marks`.
    fresh: (u32, u32),
    /// Up to where (counted from the connection's beginning) how many of both are.
    marks: VecDeque<(u64, u32, u32)>,
    /// Bytes that were written.
    sent: u64,
}

impl Output {
    /// Bytes that wait.
    pub fn pending(&self) -> usize {
        self.buf.len() - self.written + self.large_bytes
    }

    /// Where a frame is written. Call [`Output::frame`] for each.
    pub fn buf(&mut self) -> &mut Vec<u8> {
        &mut self.buf
    }

    /// Counts a frame; `control`: a peer can make us send such without end.
    pub fn frame(&mut self, control: bool) {
        self.fresh.0 += 1;
        self.fresh.1 += u32::from(control);
        self.frames += 1;
        self.control += u32::from(control);
    }

    /// (all, control): frames that wait.
    pub fn waiting(&self) -> (u32, u32) {
        (self.frames, self.control)
    }

    /// Adds a payload.
    pub fn payload(&mut self, data: Bytes) {
        if data.len() < LARGE {
            self.buf.extend_from_slice(&data);
        } else {
            self.large_bytes += data.len();
            self.large.push_back((self.buf.len(), data));
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Gives back memory that is not in use.
    pub fn rest(&mut self) {
        if self.pending() == 0 && self.buf.capacity() > KEPT {
            self.clear();
        }
    }

    /// Takes everything, as a socket would.
    #[cfg(test)]
    pub fn take(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while self.pending() > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.slices(&mut slices);
            let before = all.len();
            slices[..count].iter().for_each(|slice| all.extend_from_slice(slice));
            let n = all.len() - before;
            self.wrote(n);
        }
        all
    }

    fn mark(&mut self) {
        let (frames, control) = std::mem::take(&mut self.fresh);
        if frames > 0 {
            self.marks.push_back((self.sent + self.pending() as u64, frames, control));
        }
    }

    fn wrote(&mut self, mut n: usize) {
        self.sent += n as u64;
        while n > 0 {
            let until = self.large.front().map_or(self.buf.len(), |(at, _)| *at);
            let part = n.min(until - self.written);
            self.written += part;
            n -= part;
            if n > 0
                && let Some((_, data)) = self.large.front_mut()
            {
                let part = n.min(data.len());
                data.advance(part);
                n -= part;
                self.large_bytes -= part;
                if data.is_empty() {
                    self.large.pop_front();
                }
            }
        }
        if self.pending() == 0 {
            self.buf.clear();
            self.written = 0;
            self.marks.clear();
            self.fresh = (0, 0);
            (self.frames, self.control) = (0, 0);
            return;
        }
        while let Some((_, frames, control)) = self.marks.front().copied().filter(|mark| mark.0 <= self.sent) {
            self.frames -= frames;
            self.control -= control;
            self.marks.pop_front();
        }
        if self.written > ROOM {
            self.buf.drain(..self.written);
            for (at, _) in &mut self.large {
                *at -= self.written;
            }
            self.written = 0;
        }
    }

    /// Writes until nothing is left.
    pub fn poll_write(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.pending() > 0 {
            self.mark();
            let io = Pin::new(&mut *io);
            let n = if self.large.is_empty() {
                ready!(io.poll_write(cx, &self.buf[self.written..]))?
            } else if io.is_write_vectored() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = self.slices(&mut slices);
                ready!(io.poll_write_vectored(cx, &slices[..count]))?
            } else {
                let mut slices = [IoSlice::new(&[])];
                self.slices(&mut slices);
                ready!(io.poll_write(cx, &slices[0]))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(n);
        }
        Poll::Ready(Ok(()))
    }

    fn slices<'o>(&'o self, slices: &mut [IoSlice<'o>]) -> usize {
        let (mut count, mut at) = (0, self.written);
        let mut put = |slice: &'o [u8]| {
            if slice.is_empty() {
                return true;
            }
            let Some(place) = slices.get_mut(count) else { return false };
            *place = IoSlice::new(slice);
            count += 1;
            true
        };
        for (until, data) in &self.large {
            if !put(&self.buf[at..*until]) || !put(data) {
                return count;
            }
            at = *until;
        }
        put(&self.buf[at..]);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_leaves_in_order_however_it_is_cut() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut output, mut expected, mut written, mut frames) = (Output::default(), Vec::new(), Vec::new(), 0);
            for _ in 0..60 {
                let small: Vec<u8> = (0..random.usize(1..20)).map(|_| random.u8(..)).collect();
                output.buf().extend_from_slice(&small);
                output.frame(random.bool());
                frames += 1;
                expected.extend_from_slice(&small);
                let large = Bytes::from(vec![random.u8(..); random.usize(..6000)]);
                expected.extend_from_slice(&large);
                output.payload(large);
                if random.bool() {
                    output.mark();
                    let mut slices = [IoSlice::new(&[]); 5];
                    let count = output.slices(&mut slices);
                    let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                    let n = random.usize(1..=all.len());
                    written.extend_from_slice(&all[..n]);
                    output.wrote(n);
                }
                assert_eq!(output.pending(), expected.len() - written.len());
                assert!(output.waiting().0 <= frames && output.waiting().1 <= output.waiting().0);
            }
            while output.pending() > 0 {
                let mut slices = [IoSlice::new(&[]); 5];
                let count = output.slices(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                written.extend_from_slice(&all);
                output.wrote(all.len());
            }
            assert_eq!(written, expected, "seed {seed}");
            assert_eq!(output.waiting(), (0, 0));
        }
    }
}
