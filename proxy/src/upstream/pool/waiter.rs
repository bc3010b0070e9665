//! A request that waits for a connection.

use super::{Opened, Pool};
use crate::base::StreamError;
use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// One seat in a pool's queue.
#[derive(Default)]
pub(super) struct Waiter {
    given: RefCell<Option<Result<Opened, StreamError>>>,
    waker: RefCell<Option<Waker>>,
}

impl Waiter {
    pub fn give(&self, result: Result<Opened, StreamError>) {
        *self.given.borrow_mut() = Some(result);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The future of a stream. Dropped before it is ready, it gives up its seat; a stream that it has but did not hand out is
/// dropped with it.
pub(super) enum Opening {
    Done(Option<Result<Opened, StreamError>>),
    Waiting(Rc<Pool>, Rc<Waiter>),
}

impl Opening {
    pub fn done(result: Result<Opened, StreamError>) -> Self {
        Self::Done(Some(result))
    }

    pub fn waiting(pool: Rc<Pool>, waiter: Rc<Waiter>) -> Self {
        Self::Waiting(pool, waiter)
    }
}

impl Future for Opening {
    type Output = Result<Opened, StreamError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let given = match &mut *self {
            Self::Done(result) => result.take(),
            Self::Waiting(_, waiter) => waiter.given.take(),
        };
        match (given, &*self) {
            (Some(result), _) => {
                *self = Self::Done(None);
                Poll::Ready(result)
            }
            (None, Self::Waiting(_, waiter)) => {
                waiter.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
            (None, Self::Done(_)) => Poll::Pending,
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Self::Waiting(pool, waiter) = self {
            pool.cancel(waiter);
        }
    }
}
