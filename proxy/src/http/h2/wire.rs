//! Between the `h2` crate and the socket: sees every frame head pass, and steps in where Envoy's connection behaves
//! as the crate's does not.
//!
//! * The preface's SETTINGS are Envoy's, in its order.
//! * Floods of frames that cost the sender nothing end the connection.
//! * The crate answers an invalid request by resetting its stream, unseen by us; Envoy closes the connection. Such
//!   resets are held until the server knows whether the stream was ever accepted.
//! * The second GOAWAY of a drain waits for [`Wire::finish_drain`]: the crate sends it when its PING is answered, so that
//!   PING is kept from the peer and answered here.
//!
//! Invariant: frames are cut out of or put into the streams of bytes at frame boundaries only.

use super::{chunk::Chunk, options::Http2Options, stats::Http2Stats};
use crate::{
    base::{ResetReason, Side, StreamError},
    transport::Io,
};
use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, SendStream, server::SendResponse};
use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const HEAD: usize = 9;
/// The crate's PING that asks whether the first GOAWAY arrived.
const SHUTDOWN_PING: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
/// Request heads that are read before the server accepted some of them.
const HEADS_AT_ONCE: u32 = 8;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

/// What the connection's owner shares with the crate's transport.
pub(super) struct Wire {
    inner: RefCell<Inner>,
    stats: Arc<Http2Stats>,
    client: bool,
    /// Output is thrown away and input has ended.
    killed: Cell<bool>,
    closed: RefCell<Option<(ResetReason, &'static str)>>,
    frames: Cell<u64>,
    heads: Cell<u32>,
    paused: Cell<bool>,
    goaway: Cell<Option<u32>>,
    too_many_resets: Cell<bool>,
    settings_acked: Cell<bool>,
    drain_requested: Cell<bool>,
    resets: RefCell<Vec<PendingReset>>,
    owner: RefCell<Option<Waker>>,
}

/// A stream that the server resets once what it sent before had its chance to be written.
pub(super) enum PendingReset {
    Head(SendResponse<Chunk>, Reason),
    Body(SendStream<Chunk>, Reason),
}

struct Inner {
    io: Io,
    input: Scan,
    output: Scan,
    settings: Option<Bytes>,
    inject: Bytes,
    insert: BytesMut,
    /// The peer sent a frame whose length is wrong for its kind.
    wrong_length: bool,
    hold_resets: bool,
    held: Vec<(u32, u32)>,
    /// Streams whose resets are ours and go out as they are.
    ours: Vec<u32>,
    budget: Budget,
}

/// The crate's transport.
pub(super) struct WireIo(pub Rc<Wire>);

#[derive(Clone, Copy)]
struct FrameHead {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHead {
    fn parse(b: &[u8; HEAD]) -> Self {
        Self {
            length: usize::from(b[0]) << 16 | usize::from(b[1]) << 8 | usize::from(b[2]),
            kind: b[3],
            flags: b[4],
            stream: u32::from_be_bytes([b[5] & 0x7f, b[6], b[7], b[8]]),
        }
    }
}

impl FrameHead {
    /// False if frames of this kind have another length.
    fn length_fits(self) -> bool {
        match self.kind {
            kind::PRIORITY => self.length == 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => self.length == 4,
            kind::SETTINGS if self.flags & ACK != 0 => self.length == 0,
            kind::SETTINGS => self.length.is_multiple_of(6),
            kind::PING => self.length == 8,
            kind::GOAWAY => self.length >= 8,
            _ => true,
        }
    }
}

/// Follows frames in a stream of bytes.
struct Scan {
    head: [u8; HEAD],
    have: usize,
    rest: usize,
    /// Wanted beginning of the payload of the frame under way.
    payload: [u8; 8],
    kept: usize,
    keep: usize,
}

/// Envoy's limits on frames, over the life of the connection.
struct Budget {
    max_empty: u32,
    max_priority: u64,
    max_window_update: u64,
    empty: u32,
    priority: u64,
    window_update: u64,
    opened: u64,
    data_sent: u64,
    resets: f64,
    resets_at: Instant,
    reset_burst: f64,
    reset_rate: f64,
}

impl Scan {
    /// `skip` bytes come before the first frame.
    fn new(skip: usize) -> Self {
        Self { head: [0; HEAD], have: 0, rest: skip, payload: [0; 8], kept: 0, keep: 0 }
    }

    fn at_boundary(&self) -> bool {
        self.have == 0 && self.rest == 0
    }

    /// Bytes until something is complete.
    fn wanted(&self) -> usize {
        if self.rest > 0 { self.rest } else { HEAD - self.have }
    }

    /// Moves on over `bytes`; `frame` gets each head, and again with the payload's beginning for GOAWAY.
    fn feed(&mut self, mut bytes: &[u8], mut frame: impl FnMut(FrameHead, Option<&[u8; 8]>)) {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let n = self.rest.min(bytes.len());
                if self.kept < self.keep {
                    let kept = n.min(self.keep - self.kept);
                    self.payload[self.kept..self.kept + kept].copy_from_slice(&bytes[..kept]);
                    self.kept += kept;
                    if self.kept == self.keep {
                        frame(FrameHead::parse(&self.head), Some(&self.payload));
                    }
                }
                self.rest -= n;
                bytes = &bytes[n..];
            } else {
                let n = (HEAD - self.have).min(bytes.len());
                self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
                self.have += n;
                bytes = &bytes[n..];
                if self.have == HEAD {
                    self.have = 0;
                    let head = FrameHead::parse(&self.head);
                    self.rest = head.length;
                    self.kept = 0;
                    self.keep = if head.kind == kind::GOAWAY && head.length >= 8 { 8 } else { 0 };
                    frame(head, None);
                }
            }
        }
    }
}

impl Budget {
    fn new(options: &Http2Options) -> Self {
        Self {
            max_empty: options.max_consecutive_inbound_frames_with_empty_payload,
            max_priority: options.max_inbound_priority_frames_per_stream.into(),
            max_window_update: options.max_inbound_window_update_frames_per_data_frame_sent.into(),
            empty: 0,
            priority: 0,
            window_update: 0,
            opened: 0,
            data_sent: 0,
            resets: options.stream_reset_burst as f64,
            resets_at: Instant::now(),
            reset_burst: options.stream_reset_burst as f64,
            reset_rate: options.stream_reset_rate as f64,
        }
    }

    /// Counts a frame from the peer; false when that is one too many.
    fn received(&mut self, frame: FrameHead, stats: &Http2Stats) -> bool {
        match frame.kind {
            kind::DATA | kind::HEADERS | kind::CONTINUATION => {
                let empty = frame.length == 0 && frame.flags & END_STREAM == 0;
                self.empty = if empty { self.empty + 1 } else { 0 };
                if self.empty > self.max_empty {
                    stats.inbound_empty_frames_flood.inc();
                    return false;
                }
            }
            kind::PRIORITY => {
                self.priority += 1;
                if self.priority > self.max_priority.saturating_mul(1 + self.opened) {
                    stats.inbound_priority_frames_flood.inc();
                    return false;
                }
            }
            kind::WINDOW_UPDATE => {
                self.window_update += 1;
                let per_data = self.max_window_update.saturating_mul(self.data_sent);
                if self.window_update > per_data.saturating_add(self.opened).saturating_mul(2).saturating_add(5) {
                    stats.inbound_window_update_frames_flood.inc();
                    return false;
                }
            }
            _ => {}
        }
        true
    }

    /// Takes a token for an RST_STREAM at `now`; false when there is none left.
    fn reset(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.resets_at).as_secs_f64();
        self.resets = (self.resets + passed * self.reset_rate).min(self.reset_burst);
        self.resets_at = now;
        self.resets -= 1.0;
        self.resets >= 0.0
    }
}

impl Wire {
    pub fn new(io: Io, options: &Http2Options, client: bool, stats: Arc<Http2Stats>) -> Rc<Self> {
        let preface = 24;
        let (input, output) = if client { (0, preface) } else { (preface, 0) };
        Rc::new(Self {
            inner: RefCell::new(Inner {
                io,
                input: Scan::new(input),
                output: Scan::new(output),
                settings: Some(settings_frame(&options.settings(client))),
                inject: Bytes::new(),
                insert: BytesMut::new(),
                wrong_length: false,
                hold_resets: !client,
                held: Vec::new(),
                ours: Vec::new(),
                budget: Budget::new(options),
            }),
            stats,
            client,
            killed: Cell::new(false),
            closed: RefCell::new(None),
            frames: Cell::new(0),
            heads: Cell::new(0),
            paused: Cell::new(false),
            goaway: Cell::new(None),
            too_many_resets: Cell::new(false),
            settings_acked: Cell::new(false),
            drain_requested: Cell::new(false),
            resets: RefCell::new(Vec::new()),
            owner: RefCell::new(None),
        })
    }

    pub fn stats(&self) -> &Http2Stats {
        &self.stats
    }

    /// Frames that came from the peer so far.
    pub fn frames(&self) -> u64 {
        self.frames.get()
    }

    /// The last stream that a GOAWAY of the peer named.
    pub fn goaway(&self) -> Option<u32> {
        self.goaway.get()
    }

    /// The peer acknowledged our SETTINGS.
    pub fn settings_acked(&self) -> bool {
        self.settings_acked.get()
    }

    /// The peer reset more streams than it may.
    pub fn too_many_resets(&self) -> bool {
        self.too_many_resets.get()
    }

    /// A response asked for the connection to be drained.
    pub fn request_drain(&self) {
        self.drain_requested.set(true);
    }

    pub fn drain_requested(&self) -> bool {
        self.drain_requested.get()
    }

    /// Ends the connection: nothing more is read or written. Streams get `reason`.
    pub fn kill(&self, reason: ResetReason, details: &'static str) {
        self.set_closed(reason, details);
        self.killed.set(true);
    }

    pub fn is_killed(&self) -> bool {
        self.killed.get()
    }

    /// Notes why the connection ended, unless that is known already.
    pub fn set_closed(&self, reason: ResetReason, details: &'static str) {
        self.closed.borrow_mut().get_or_insert((reason, details));
    }

    /// What a stream's end of the connection looks like, once it ended.
    pub fn closed(&self, side: Side) -> Option<StreamError> {
        self.closed.borrow().map(|(reason, details)| StreamError::new(side, reason, details))
    }

    /// Lets more request heads be read. True if reading had been stopped for them.
    pub fn accepted(&self) -> bool {
        self.heads.set(0);
        self.paused.replace(false)
    }

    /// Whom to wake for a [`PendingReset`].
    pub fn set_owner(&self, waker: Waker) {
        self.owner.replace(Some(waker));
    }

    /// The crate drops what a stream has queued when it is reset, so that is put off until after the next write.
    pub fn reset_soon(&self, reset: PendingReset) {
        if !self.killed.get() {
            self.resets.borrow_mut().push(reset);
            if let Some(owner) = &*self.owner.borrow() {
                owner.wake_by_ref();
            }
        }
    }

    /// Resets the streams that wait for it; true if there were any.
    pub fn reset_now(&self) -> bool {
        let resets = self.resets.take();
        let any = !resets.is_empty();
        for reset in resets {
            match reset {
                PendingReset::Head(mut send, code) => {
                    self.will_reset(send.stream_id(), code);
                    send.send_reset(code);
                }
                PendingReset::Body(mut stream, code) => {
                    self.will_reset(stream.stream_id(), code);
                    stream.send_reset(code);
                }
            }
        }
        any
    }

    /// The server resets `stream` with `code` itself.
    fn will_reset(&self, stream: h2::StreamId, code: Reason) {
        if is_held(code) {
            self.inner.borrow_mut().ours.push(stream.as_u32());
        }
    }

    /// Takes the resets that the crate meant to send: (stream, code).
    pub fn take_held(&self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.inner.borrow_mut().held)
    }

    /// Sends a reset that was held; call [`Wire::poll_insert`] afterwards.
    pub fn release(&self, stream: u32, code: u32) {
        let insert = &mut self.inner.borrow_mut().insert;
        insert.extend_from_slice(&[0, 0, 4, kind::RST_STREAM, 0]);
        insert.extend_from_slice(&stream.to_be_bytes());
        insert.extend_from_slice(&code.to_be_bytes());
        self.stats.tx_reset.inc();
    }

    /// Writes what [`Wire::release`] left, if a frame boundary is there; the next write does so otherwise.
    pub fn poll_insert(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.borrow_mut().poll_insert(cx)
    }

    /// Makes the crate send the GOAWAY that names the last stream. Wake the crate afterwards.
    pub fn finish_drain(&self) {
        let mut pong = BytesMut::with_capacity(HEAD + 8);
        pong.extend_from_slice(&[0, 0, 8, kind::PING, ACK, 0, 0, 0, 0]);
        pong.extend_from_slice(&SHUTDOWN_PING);
        self.inner.borrow_mut().inject = pong.freeze();
    }

    /// Lets the socket go, whoever still holds on to the connection.
    pub fn close(&self) {
        self.killed.set(true);
        self.resets.take();
        self.inner.borrow_mut().io = Io::Boxed(Box::new(tokio::io::empty()));
    }

    /// Reads and drops what the peer still sends; ready when it closed.
    pub fn poll_linger(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; 4096];
        let inner = &mut *self.inner.borrow_mut();
        loop {
            let mut buf = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut inner.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    fn received(&self, budget: &mut Budget, frame: FrameHead, payload: Option<&[u8; 8]>) {
        if let Some(p) = payload {
            self.goaway.set(Some(u32::from_be_bytes([p[0] & 0x7f, p[1], p[2], p[3]])));
            return;
        }
        self.frames.set(self.frames.get() + 1);
        match frame.kind {
            kind::HEADERS => self.heads.set(self.heads.get() + 1),
            kind::RST_STREAM => {
                self.stats.rx_reset.inc();
                if !self.client && !budget.reset(Instant::now()) {
                    self.too_many_resets.set(true);
                }
            }
            kind::SETTINGS if frame.flags & ACK != 0 => self.settings_acked.set(true),
            _ => {}
        }
        if !budget.received(frame, &self.stats) {
            self.kill(ResetReason::ConnectionTermination, "http2.inbound_frames_flood");
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.killed.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if !self.client && self.heads.get() >= HEADS_AT_ONCE {
            self.paused.set(true);
            return Poll::Pending;
        }
        let Inner { io, input, inject, budget, wrong_length, .. } = &mut *self.inner.borrow_mut();
        let mut received = |frame: FrameHead, payload: Option<&[u8; 8]>| {
            *wrong_length |= !frame.length_fits();
            self.received(budget, frame, payload);
        };
        if inject.is_empty() {
            let before = buf.filled().len();
            ready!(Pin::new(io).poll_read(cx, buf))?;
            input.feed(&buf.filled()[before..], &mut received);
        } else if input.at_boundary() {
            let n = inject.len().min(buf.remaining());
            buf.put_slice(&inject.split_to(n));
        } else {
            // The frame under way has to end first.
            let mut space = [0; 4096];
            let limit = input.wanted().min(space.len()).min(buf.remaining());
            let mut part = ReadBuf::new(&mut space[..limit]);
            ready!(Pin::new(io).poll_read(cx, &mut part))?;
            input.feed(part.filled(), &mut received);
            buf.put_slice(part.filled());
        }
        if self.killed.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.killed.get() {
            return Poll::Ready(Ok(bufs.iter().map(|b| b.len()).sum()));
        }
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.poll_insert(cx))?;
        let n = match inner.inspect(bufs) {
            Some((0, frame)) => return Poll::Ready(Ok(inner.cut(bufs, frame))),
            Some((limit, _)) => {
                let first = bufs.iter().find(|b| !b.is_empty()).map(|b| &b[..]).unwrap_or_default();
                ready!(Pin::new(&mut inner.io).poll_write(cx, &first[..limit.min(first.len())]))?
            }
            None => ready!(Pin::new(&mut inner.io).poll_write_vectored(cx, bufs))?,
        };
        let Inner { output, budget, ours, .. } = inner;
        let mut left = n;
        for buf in bufs {
            let part = left.min(buf.len());
            left -= part;
            output.feed(&buf[..part], |frame, payload| {
                if payload.is_some() {
                    return;
                }
                match frame.kind {
                    kind::DATA => budget.data_sent += 1,
                    kind::HEADERS => budget.opened += 1,
                    kind::RST_STREAM => {
                        self.stats.tx_reset.inc();
                        ours.retain(|id| *id != frame.stream);
                    }
                    kind::GOAWAY => self.stats.goaway_sent.inc(),
                    _ => {}
                }
            });
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.killed.get() {
            return Poll::Ready(Ok(()));
        }
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.poll_insert(cx))?;
        Pin::new(&mut inner.io).poll_flush(cx)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.killed.get() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner.borrow_mut().io).poll_shutdown(cx)
    }
}

impl Inner {
    fn poll_insert(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.insert.is_empty() && self.output.at_boundary() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.insert))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.insert.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    /// The first whole frame in `bufs` that must not go out as it is, and where it begins.
    fn inspect(&self, bufs: &[IoSlice<'_>]) -> Option<(usize, FrameHead)> {
        if self.output.have > 0 {
            return None;
        }
        let mut at = self.output.rest;
        let mut head = [0; HEAD];
        while copy_at(bufs, at, &mut head) {
            let frame = FrameHead::parse(&head);
            let mut payload = [0; 8];
            let wanted = match frame.kind {
                kind::SETTINGS => self.settings.is_some() && frame.flags & ACK == 0,
                kind::PING if frame.flags & ACK == 0 => {
                    copy_at(bufs, at + HEAD, &mut payload) && payload == SHUTDOWN_PING
                }
                // The crate calls every malformed frame a PROTOCOL_ERROR.
                kind::GOAWAY => {
                    self.wrong_length && copy_at(bufs, at + HEAD, &mut payload) && payload[4..] == [0, 0, 0, 1]
                }
                kind::RST_STREAM if self.hold_resets => {
                    let mut code = [0; 4];
                    copy_at(bufs, at + HEAD, &mut code)
                        && is_held(u32::from_be_bytes(code).into())
                        && !self.ours.contains(&frame.stream)
                }
                _ => false,
            };
            if wanted {
                return Some((at, frame));
            }
            at += HEAD + frame.length;
        }
        None
    }

    /// Takes the frame at the beginning of `bufs` out of the output; its size.
    fn cut(&mut self, bufs: &[IoSlice<'_>], frame: FrameHead) -> usize {
        match frame.kind {
            kind::SETTINGS => self.insert.extend(self.settings.take().unwrap_or_default()),
            kind::GOAWAY => {
                let mut goaway = vec![0; HEAD + frame.length];
                copy_at(bufs, 0, &mut goaway);
                if let Some(code) = goaway.get_mut(HEAD + 4..HEAD + 8) {
                    code.copy_from_slice(&u32::from(Reason::FRAME_SIZE_ERROR).to_be_bytes());
                }
                self.wrong_length = false;
                self.insert.extend(goaway);
            }
            kind::RST_STREAM => {
                let mut code = [0; 4];
                copy_at(bufs, HEAD, &mut code);
                self.held.push((frame.stream, u32::from_be_bytes(code)));
            }
            _ => {}
        }
        HEAD + frame.length
    }
}

/// True for the codes by which the crate resets streams that it does not let us see.
fn is_held(code: Reason) -> bool {
    matches!(code, Reason::PROTOCOL_ERROR | Reason::REFUSED_STREAM)
}

/// Fills `to` with the bytes of `bufs` from `at` on; false if there are too few.
fn copy_at(bufs: &[IoSlice<'_>], mut at: usize, to: &mut [u8]) -> bool {
    let mut done = 0;
    for buf in bufs {
        if at >= buf.len() {
            at -= buf.len();
            continue;
        }
        let n = (buf.len() - at).min(to.len() - done);
        to[done..done + n].copy_from_slice(&buf[at..at + n]);
        done += n;
        at = 0;
        if done == to.len() {
            return true;
        }
    }
    false
}

fn settings_frame(settings: &[(u16, u32)]) -> Bytes {
    let length = settings.len() * 6;
    let mut frame = BytesMut::with_capacity(HEAD + length);
    frame.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(&[kind::SETTINGS, 0, 0, 0, 0, 0]);
    for (id, value) in settings {
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(&value.to_be_bytes());
    }
    frame.freeze()
}

impl AsyncRead for WireIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.inner.borrow().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    #[test]
    fn frames_are_seen_however_they_are_cut() {
        let mut bytes = vec![0; 24];
        bytes.extend(frame(kind::HEADERS, 5, 1, b"abc"));
        bytes.extend(frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 7, 0, 0, 0, 2, 9, 9]));
        bytes.extend(frame(kind::DATA, 1, 3, b""));
        for size in 1..bytes.len() {
            let (mut scan, mut seen) = (Scan::new(24), Vec::new());
            for piece in bytes.chunks(size) {
                scan.feed(piece, |frame, payload| seen.push((frame.kind, frame.stream, payload.map(|p| p[3]))));
            }
            assert_eq!(seen, [(1, 1, None), (7, 0, None), (7, 0, Some(7)), (0, 3, None)], "pieces of {size}");
            assert!(scan.at_boundary());
        }
    }

    #[test]
    fn floods_end_where_envoy_ends_them() {
        let stats = Http2Stats::default();
        let head = |kind, length| FrameHead { length, kind, flags: 0, stream: 1 };
        let mut budget = Budget::new(&Http2Options::default());
        let mut allowed =
            |kind, length| (0..10_000).take_while(|_| budget.received(head(kind, length), &stats)).count();
        assert_eq!(allowed(kind::DATA, 0), 1);
        assert_eq!(allowed(kind::PRIORITY, 5), 100);
        assert_eq!(allowed(kind::WINDOW_UPDATE, 4), 5);
        assert_eq!(allowed(kind::DATA, 1), 10_000);
        let now = budget.resets_at;
        assert_eq!((0..2000).take_while(|_| budget.reset(now)).count(), 1000);
        assert!(budget.reset(now + std::time::Duration::from_secs(40)));
    }
}
