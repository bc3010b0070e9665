//! Keepalive PINGs of one connection: are they due, were they answered in time.

use super::{core::Core, frame::put_ping, options::Keepalive};
use crate::base::Timer;
use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// What our PINGs carry.
const PAYLOAD: [u8; 8] = *b"weftping";

/// Polled by the connection's task beside the connection.
pub(super) struct KeepaliveTimer {
    options: Keepalive,
    timer: Timer,
    /// A PING is out; the count of frames read when its deadline was last moved.
    waiting: Option<u64>,
    last_frame: (u64, Instant),
}

impl KeepaliveTimer {
    /// `None` if nothing is configured.
    pub fn new(options: Option<&Keepalive>) -> Option<Self> {
        let options = options?.clone();
        let mut keepalive = Self { options, timer: Timer::new(), waiting: None, last_frame: (0, Instant::now()) };
        keepalive.schedule();
        Some(keepalive)
    }

    fn schedule(&mut self) {
        self.timer.set_after(self.options.interval.map(|interval| jittered(interval, self.options.interval_jitter)));
    }

    fn send(&mut self, core: &mut Core) {
        if self.waiting.is_none() {
            put_ping(core.out.buf(), 0, &PAYLOAD);
            core.out.frame(true);
            core.pong = None;
            self.waiting = Some(core.frames);
            self.timer.set_after(Some(self.options.timeout));
        }
    }

    /// A stream is about to start: asks first if the connection still lives, after a long silence.
    pub fn stream_starts(&mut self, core: &mut Core) {
        self.note_frames(core);
        if let Some(idle) = self.options.connection_idle_interval
            && self.last_frame.1.elapsed() >= idle
        {
            self.send(core);
        }
    }

    fn note_frames(&mut self, core: &Core) {
        if core.frames != self.last_frame.0 {
            self.last_frame = (core.frames, Instant::now());
        }
    }

    /// Ready when the peer did not answer in time. What it puts into the core is still to be written.
    pub fn poll_dead(&mut self, cx: &mut Context<'_>, core: &mut Core) -> Poll<()> {
        self.note_frames(core);
        loop {
            if let Some(frames) = &mut self.waiting {
                if core.pong.take() == Some(PAYLOAD) {
                    self.waiting = None;
                    self.schedule();
                } else if *frames != core.frames {
                    *frames = core.frames;
                    self.timer.set_after(Some(self.options.timeout));
                }
            }
            if self.timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.waiting.is_some() {
                return Poll::Ready(());
            }
            self.send(core);
        }
    }
}

fn jittered(interval: Duration, percent: f64) -> Duration {
    interval + interval.mul_f64((percent / 100.0).clamp(0.0, 1.0) * fastrand::f64())
}
