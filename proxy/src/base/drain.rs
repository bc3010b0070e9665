//! The drain signal of one worker: connections ask it, and are woken by it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Told once to drain, stays so. Cheap to clone; a parent's drain drains its children.
#[derive(Clone, Default)]
pub struct Drain(Rc<State>);

#[derive(Default)]
struct State {
    draining: Cell<bool>,
    wakers: RefCell<slab::Slab<Waker>>,
    children: RefCell<Vec<std::rc::Weak<State>>>,
    cut: Cell<bool>,
    cut_wakers: RefCell<slab::Slab<Waker>>,
}

/// One waiter's seat; keep it for as long as the drain is of interest.
pub struct DrainWatch {
    drain: Drain,
    key: Option<usize>,
}

impl Drain {
    pub fn new() -> Self {
        Self::default()
    }

    /// A signal of its own that also fires when `self` does.
    pub fn child(&self) -> Self {
        let child = Self::new();
        child.0.draining.set(self.is_draining());
        let mut children = self.0.children.borrow_mut();
        children.retain(|c| c.strong_count() > 0);
        children.push(Rc::downgrade(&child.0));
        drop(children);
        child
    }

    /// Starts the drain: every watcher wakes.
    pub fn start(&self) {
        if self.0.draining.replace(true) {
            return;
        }
        let wakers = std::mem::take(&mut *self.0.wakers.borrow_mut());
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
        let children: Vec<_> = self.0.children.borrow_mut().drain(..).collect();
        children.iter().filter_map(std::rc::Weak::upgrade).for_each(|state| Drain(state).start());
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    /// Cuts what is left `after` from now: [`Drain::cut`] then returns for everybody who waits for it.
    pub fn cut_after(self, after: std::time::Duration) {
        tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            self.0.cut.set(true);
            let wakers = std::mem::take(&mut *self.0.cut_wakers.borrow_mut());
            wakers.into_iter().for_each(|(_, waker)| waker.wake());
        });
    }

    /// Waits until what still goes on is to be cut.
    pub async fn cut(&self) {
        let mut seat = CutSeat { state: &self.0, key: None };
        std::future::poll_fn(|cx| {
            if seat.state.cut.get() {
                return Poll::Ready(());
            }
            let mut wakers = seat.state.cut_wakers.borrow_mut();
            match seat.key.and_then(|key| wakers.get_mut(key)) {
                Some(waker) => waker.clone_from(cx.waker()),
                None => seat.key = Some(wakers.insert(cx.waker().clone())),
            }
            Poll::Pending
        })
        .await;
    }

    pub fn watch(&self) -> DrainWatch {
        DrainWatch { drain: self.clone(), key: None }
    }
}

impl DrainWatch {
    /// Ready once draining.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.drain.is_draining() {
            return Poll::Ready(());
        }
        let mut wakers = self.drain.0.wakers.borrow_mut();
        match self.key.and_then(|key| wakers.get_mut(key)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.key = Some(wakers.insert(cx.waker().clone())),
        }
        Poll::Pending
    }

    pub fn is_draining(&self) -> bool {
        self.drain.is_draining()
    }
}

impl Drop for DrainWatch {
    fn drop(&mut self) {
        if let Some(key) = self.key.filter(|_| !self.drain.is_draining()) {
            self.drain.0.wakers.borrow_mut().try_remove(key);
        }
    }
}

struct CutSeat<'a> {
    state: &'a State,
    key: Option<usize>,
}

impl Drop for CutSeat<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.filter(|_| !self.state.cut.get()) {
            self.state.cut_wakers.borrow_mut().try_remove(key);
        }
    }
}
