//! The timeouts of one stream, behind one timer.

use crate::base::{Timer, clock};
use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// Which timeout passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Deadline {
    /// The connection manager's `request_timeout`: the whole request must have arrived.
    Request,
    /// No byte moved on the stream for too long.
    StreamIdle,
    /// `max_stream_duration` of the connection manager or the route.
    MaxStreamDuration,
    /// The route's timeout, from the end of the request.
    Route,
    PerTry,
    PerTryIdle,
    /// `max_stream_duration` of the cluster.
    UpstreamMaxStreamDuration,
    /// A retry's back-off is over.
    BackOff,
}

const COUNT: usize = 8;
const ALL: [Deadline; COUNT] = [
    Deadline::Request,
    Deadline::StreamIdle,
    Deadline::MaxStreamDuration,
    Deadline::Route,
    Deadline::PerTry,
    Deadline::PerTryIdle,
    Deadline::UpstreamMaxStreamDuration,
    Deadline::BackOff,
];

/// The deadlines of one stream. Setting one costs a store; the timer is armed lazily for the earliest.
#[derive(Default)]
pub struct Deadlines {
    at: [Option<Instant>; COUNT],
    timer: Timer,
    idle: Option<Duration>,
}

impl Deadlines {
    /// With a timer that another stream of the connection has done with.
    pub fn with_timer(timer: Timer) -> Self {
        Self { timer, ..Self::default() }
    }

    /// Takes the timer out, for another stream.
    pub fn into_timer(self) -> Timer {
        let mut timer = self.timer;
        timer.rest();
        timer
    }

    /// Sets or clears (`None`, or zero as Envoy's "off") one deadline, from now.
    pub fn set(&mut self, which: Deadline, after: Option<Duration>) {
        self.at[which as usize] = after.filter(|d| !d.is_zero()).map(|d| clock::now() + d);
    }

    pub fn clear(&mut self, which: Deadline) {
        self.at[which as usize] = None;
    }

    pub fn is_set(&self, which: Deadline) -> bool {
        self.at[which as usize].is_some()
    }

    /// The stream's idle timeout (zero: off), counted from now and from each [`Deadlines::touch`].
    pub fn set_idle(&mut self, after: Duration) {
        self.idle = Some(after).filter(|d| !d.is_zero());
        self.touch();
    }

    /// Something moved on the stream.
    pub fn touch(&mut self) {
        if let Some(idle) = self.idle {
            self.at[Deadline::StreamIdle as usize] = Some(clock::now() + idle);
        }
    }

    /// Ready with the deadline that passed, which is then cleared.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Deadline> {
        // Not an iterator's minimum: this is asked at every turn of a stream.
        let mut first: Option<(Instant, Deadline)> = None;
        for which in ALL {
            if let Some(at) = self.at[which as usize]
                && first.is_none_or(|(earliest, _)| at < earliest)
            {
                first = Some((at, which));
            }
        }
        let Some((at, which)) = first else {
            self.timer.clear();
            return Poll::Pending;
        };
        self.timer.set(at);
        std::task::ready!(self.timer.poll(cx));
        self.at[which as usize] = None;
        Poll::Ready(which)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn the_earliest_fires_first() {
        let mut deadlines = Deadlines::default();
        deadlines.set(Deadline::Route, Some(Duration::from_secs(15)));
        deadlines.set(Deadline::PerTry, Some(Duration::from_secs(2)));
        deadlines.set(Deadline::Request, Some(Duration::ZERO));
        // Time is tokio's here, the deadlines are real: only the order can be asked for.
        assert_eq!(deadlines.at[Deadline::Request as usize], None);
        assert_eq!(poll_fn(|cx| deadlines.poll(cx)).await, Deadline::PerTry);
        assert_eq!(poll_fn(|cx| deadlines.poll(cx)).await, Deadline::Route);
    }
}
