//! The drain signal of one worker: connections ask it, and are woken by it.
//!
//! A server, listener or filter chain that drains does not end its connections: each of their responses is asked
//! whether it is to be the last of its connection, and how many are grows with the time. A connection's own drain ends it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

/// How fast connections are told to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// With their next response.
    #[default]
    Immediate,
    /// Each with a chance that grows from none to certainty over this time.
    Gradual(Duration),
}

impl Pace {
    /// True if a response this long after the drain began is to be its connection's last; `random` is any number.
    fn ends(self, since: Duration, random: u64) -> bool {
        match self {
            // Whole seconds, as Envoy counts: in the first one nobody has to go.
            Self::Gradual(time) if since < time => {
                let (elapsed, all) = (since.as_secs_f64().ceil() as u64, time.as_secs().max(1));
                elapsed > random % all
            }
            _ => true,
        }
    }
}

/// Told once to drain, stays so. Cheap to clone; a parent's drain drains its children.
#[derive(Clone, Default)]
pub struct Drain(Rc<State>);

#[derive(Default)]
struct State {
    draining: Cell<bool>,
    since: Cell<Option<Instant>>,
    pace: Pace,
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

    /// A signal whose children, too, go at this pace.
    pub fn paced(pace: Pace) -> Self {
        Self(Rc::new(State { pace, ..State::default() }))
    }

    /// A signal of its own that also fires when `self` does.
    pub fn child(&self) -> Self {
        let child = Self::paced(self.0.pace);
        child.0.draining.set(self.is_draining());
        child.0.since.set(self.0.since.get());
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
        self.0.since.set(Some(Instant::now()));
        let wakers = std::mem::take(&mut *self.0.wakers.borrow_mut());
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
        let children: Vec<_> = self.0.children.borrow_mut().drain(..).collect();
        children.iter().filter_map(std::rc::Weak::upgrade).for_each(|state| Drain(state).start());
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    /// True if a response of this moment is to be the last of its connection; another may be spared.
    pub fn ends_connection(&self) -> bool {
        self.is_draining()
            && self.0.since.get().is_none_or(|since| self.0.pace.ends(since.elapsed(), fastrand::u64(..)))
    }

    /// Cuts what is left `after` from now: [`Drain::cut`] then returns for everybody who waits for it.
    pub fn cut_after(self, after: Duration) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradual_drain_takes_more_and_more() {
        let pace = Pace::Gradual(Duration::from_secs(100));
        let ended = |at: u64| (0..100).filter(|random| pace.ends(Duration::from_secs(at), *random)).count();
        assert_eq!([0, 1, 50, 99, 100, 1000].map(ended), [0, 1, 50, 99, 100, 100]);
        assert!(Pace::Gradual(Duration::ZERO).ends(Duration::ZERO, 7));
        assert!(Pace::Immediate.ends(Duration::ZERO, 7));
    }

    #[test]
    fn children_go_at_the_pace_of_their_parent() {
        let gradual = Drain::paced(Pace::Gradual(Duration::from_secs(1 << 40)));
        let (early, kept) = (gradual.child(), Drain::new().child());
        assert!(!early.ends_connection());
        gradual.start();
        assert!(early.is_draining() && gradual.child().is_draining());
        let ends = (0..100).filter(|_| early.ends_connection()).count();
        assert!(ends < 10, "{ends} of 100 end at once");
        kept.start();
        assert!(kept.ends_connection());
    }
}
