//! A deadline that moves often and seldom fires, at the cost of a comparison.
//!
//! The timer below is armed once; when it fires before the deadline (which has moved on meanwhile) it is armed again.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use tokio::time::Sleep;

/// A lazily armed deadline. Set and cleared without touching the runtime's timer wheel.
#[derive(Default)]
pub struct Timer {
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Fires at `deadline`. Takes effect at the next [`Timer::poll`].
    pub fn set(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Fires `after` from now; `None` clears it.
    pub fn set_after(&mut self, after: Option<Duration>) {
        self.deadline = after.map(|after| tokio::time::Instant::now().into_std() + after);
    }

    pub fn clear(&mut self) {
        self.deadline = None;
    }

    /// Clears it and forgets whom to wake. It stays armed underneath, so that its next use costs less than a new one.
    pub fn rest(&mut self) {
        self.deadline = None;
        if let Some(sleep) = &mut self.sleep
            && sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        {
            self.sleep = None;
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Ready once the deadline has passed; the deadline is then cleared. Pending for ever without one.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        if sleep.deadline().into_std() > deadline {
            sleep.as_mut().reset(deadline.into());
        }
        loop {
            std::task::ready!(sleep.as_mut().poll(cx));
            if sleep.deadline().into_std() >= deadline {
                self.deadline = None;
                self.sleep = None;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline.into());
        }
    }
}
