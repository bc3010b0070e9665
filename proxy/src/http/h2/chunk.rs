//! Data on their way through the `h2` crate, counted until they are written: what backpressure on senders stands on.
//!
//! The crate queues whatever it is given and offers only its *flow-control capacity* to wait for, which would have to be
//! reserved from the connection's window before data exist and would starve other streams. So a sender asks its
//! [`Unsent`] instead. Invariant: a [`Chunk`] owns no handle of the crate, since the crate drops it under its lock.

use bytes::{Buf, Bytes};
use std::{
    cell::{Cell, RefCell},
    io::IoSlice,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Bytes of a stream that may wait to be written before its sender is told to wait.
pub const HIGH_WATERMARK: usize = 64 * 1024;

/// How many bytes of one stream wait to be written, and who waits for that to become less.
#[derive(Default)]
pub(super) struct Unsent {
    bytes: Cell<usize>,
    /// The level that the waiter waits for.
    level: Cell<usize>,
    waiter: RefCell<Option<Waker>>,
}

/// A piece of a body as the crate holds it.
pub(super) struct Chunk {
    data: Bytes,
    unsent: Rc<Unsent>,
}

impl Unsent {
    /// Ready when there is room; once there was none, half of it has to become free first.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes.get() < HIGH_WATERMARK { Poll::Ready(()) } else { self.wait(cx, HIGH_WATERMARK / 2) }
    }

    /// Ready when everything is written.
    pub fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes.get() == 0 { Poll::Ready(()) } else { self.wait(cx, 0) }
    }

    fn wait(&self, cx: &mut Context<'_>, level: usize) -> Poll<()> {
        self.level.set(level);
        match &mut *self.waiter.borrow_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn written(&self, n: usize) {
        self.bytes.set(self.bytes.get() - n);
        if self.bytes.get() <= self.level.get()
            && let Some(waker) = self.waiter.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

impl Chunk {
    pub fn new(data: Bytes, unsent: &Rc<Unsent>) -> Self {
        unsent.bytes.set(unsent.bytes.get() + data.len());
        Self { data, unsent: unsent.clone() }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.data.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.data
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(dst)
    }

    fn advance(&mut self, n: usize) {
        self.data.advance(n);
        self.unsent.written(n);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if !self.data.is_empty() {
            self.unsent.written(self.data.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_wait_between_the_watermarks() {
        let unsent = Rc::new(Unsent::default());
        let waker = futures_util::task::noop_waker();
        let cx = &mut Context::from_waker(&waker);
        assert!(unsent.poll_room(cx).is_ready());
        let mut chunk = Chunk::new(Bytes::from(vec![0; HIGH_WATERMARK]), &unsent);
        assert!(unsent.poll_room(cx).is_pending());
        chunk.advance(HIGH_WATERMARK / 2 - 1);
        assert!(unsent.waiter.borrow().is_some(), "not woken yet");
        chunk.advance(1);
        assert!(unsent.waiter.borrow().is_none(), "woken at half");
        assert!(unsent.poll_room(cx).is_ready());
        assert!(unsent.poll_empty(cx).is_pending());
        drop(chunk);
        assert!(unsent.poll_empty(cx).is_ready());
    }
}
