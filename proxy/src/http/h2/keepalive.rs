//! Keepalive PINGs of one connection: are they due, were they answered in time.

use super::{options::Keepalive, wire::Wire};
use crate::base::Timer;
use h2::{Ping, PingPong};
use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// Polled by the connection's task beside the connection.
pub(super) struct KeepaliveTimer {
    options: Keepalive,
    pings: PingPong,
    timer: Timer,
    /// A PING is out; the count of frames read when its deadline was last moved.
    waiting: Option<u64>,
    last_frame: (u64, Instant),
}

impl KeepaliveTimer {
    /// `None` if nothing is configured or the crate gave its PINGs away before.
    pub fn new(options: Option<&Keepalive>, pings: Option<PingPong>) -> Option<Self> {
        let (options, pings) = (options?.clone(), pings?);
        let mut keepalive =
            Self { options, pings, timer: Timer::new(), waiting: None, last_frame: (0, Instant::now()) };
        keepalive.schedule();
        Some(keepalive)
    }

    fn schedule(&mut self) {
        self.timer.set_after(self.options.interval.map(|interval| jittered(interval, self.options.interval_jitter)));
    }

    fn send(&mut self, frames: u64) {
        if self.waiting.is_none() && self.pings.send_ping(Ping::opaque()).is_ok() {
            self.waiting = Some(frames);
            self.timer.set_after(Some(self.options.timeout));
        }
    }

    /// A stream is about to start: asks first if the connection still lives, after a long silence.
    pub fn stream_starts(&mut self, wire: &Wire) {
        self.note_frames(wire);
        if let Some(idle) = self.options.connection_idle_interval
            && self.last_frame.1.elapsed() >= idle
        {
            self.send(wire.frames());
        }
    }

    fn note_frames(&mut self, wire: &Wire) {
        if wire.frames() != self.last_frame.0 {
            self.last_frame = (wire.frames(), Instant::now());
        }
    }

    /// Ready when the peer did not answer in time.
    pub fn poll_dead(&mut self, cx: &mut Context<'_>, wire: &Wire) -> Poll<()> {
        self.note_frames(wire);
        loop {
            if let Some(frames) = &mut self.waiting {
                if let Poll::Ready(pong) = self.pings.poll_pong(cx) {
                    if pong.is_err() {
                        return Poll::Pending; // The connection is ending anyway.
                    }
                    self.waiting = None;
                    self.schedule();
                } else if *frames != wire.frames() {
                    *frames = wire.frames();
                    self.timer.set_after(Some(self.options.timeout));
                }
            }
            if self.timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.waiting.is_some() {
                return Poll::Ready(());
            }
            self.send(wire.frames());
            if self.waiting.is_none() {
                return Poll::Pending;
            }
        }
    }
}

fn jittered(interval: Duration, percent: f64) -> Duration {
    interval + interval.mul_f64((percent / 100.0).clamp(0.0, 1.0) * fastrand::f64())
}
