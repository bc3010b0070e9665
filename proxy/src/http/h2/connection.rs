//! What both sides of the codec share around the [`Core`]: the bytes in and out, and waking the one task that moves them.

use super::core::Core;
use crate::transport::Io;
use bytes::BytesMut;
use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::pin,
    task::{Context, Poll, Waker, ready},
};
use tokio::io::{AsyncReadExt, AsyncWrite};

/// How much is read at once, and how much room there has to be for a read.
const READ: usize = 32 * 1024;
const ROOM: usize = 8 * 1024;

thread_local! {
    /// A buffer that the next connection of this thread reads into.
    static SPARE: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// A connection, as its task and its streams share it. Streams act on the core and then [`Shared::touch`] it.
pub(super) struct Shared {
    pub core: RefCell<Core>,
    /// The task has something to do.
    dirty: Cell<bool>,
    /// The task is at work, and will look at `dirty` before it ends.
    at_work: Cell<bool>,
    task: RefCell<Option<Waker>>,
    drain_requested: Cell<bool>,
}

impl Shared {
    pub fn new(core: Core) -> Self {
        Self {
            core: RefCell::new(core),
            dirty: Cell::new(true),
            at_work: Cell::new(false),
            task: RefCell::new(None),
            drain_requested: Cell::new(false),
        }
    }

    /// There may be something to write, or the connection may be at its end.
    pub fn touch(&self) {
        if !self.dirty.replace(true)
            && !self.at_work.get()
            && let Some(task) = &*self.task.borrow()
        {
            task.wake_by_ref();
        }
    }

    /// The task begins to work, until [`Shared::pause`].
    pub fn resume(&self, cx: &Context<'_>) {
        self.at_work.set(true);
        match &mut *self.task.borrow_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    pub fn pause(&self) {
        self.at_work.set(false);
    }

    /// True if anything was touched since it was asked last.
    pub fn take_dirty(&self) -> bool {
        self.dirty.replace(false)
    }

    /// A response asked for the connection to be drained.
    pub fn request_drain(&self) {
        self.drain_requested.set(true);
        self.touch();
    }

    pub fn drain_requested(&self) -> bool {
        self.drain_requested.get()
    }
}

/// The socket and what was read from it.
pub(super) struct Link {
    io: Io,
    pub input: BytesMut,
}

impl Link {
    pub fn new(io: Io) -> Self {
        Self { io, input: BytesMut::new() }
    }

    /// Reads once; how much it was. 0: the peer sends nothing more.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() == 0 {
            self.input = SPARE.take().unwrap_or_default();
        }
        if self.input.capacity() - self.input.len() < ROOM {
            self.input.reserve(READ);
        }
        pin!(self.io.read_buf(&mut self.input)).poll(cx)
    }

    /// Writes what the core has, and moves data of streams up as that makes room.
    pub fn poll_write(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            core.pump();
            if core.check_waiting().is_err() || core.out.pending() == 0 {
                return pin!(&mut self.io).as_mut().poll_flush(cx);
            }
            ready!(core.out.poll_write(&mut self.io, cx))?;
        }
    }

    /// Gives the buffer back while there is nothing to read.
    pub fn rest(&mut self) {
        if self.input.is_empty() && self.input.capacity() > 0 {
            SPARE.set(Some(std::mem::take(&mut self.input)));
        }
    }

    /// Writes what is left, and reads and drops what the peer still sends; ready when it closed.
    pub fn poll_linger(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Poll<()> {
        if !core.is_killed() && core.out.pending() > 0 {
            // If it cannot be written, the peer is gone or the time will run out.
            let _ = core.out.poll_write(&mut self.io, cx);
        }
        loop {
            self.input.clear();
            match ready!(self.poll_fill(cx)) {
                Ok(n) if n > 0 => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}
