//! An HTTP filter whose configuration is discovered: to the chain it is a filter as any other, which becomes what sits in its
//! seat for each stream anew.

use super::{stream::Stream, thread::Thread};
use crate::{
    base::ResponseFlag,
    filters::{Action, ActiveFilter, FilterConfig, FilterScope, HttpFilter, LocalReply, RouteFilterConfig},
    network::discovered::Discovered,
};
use http::StatusCode;
use std::{cell::RefCell, rc::Rc, sync::Arc};

/// A seat for an HTTP filter.
pub type FilterSeat = Discovered<Arc<dyn FilterConfig>>;

/// What sits in a seat, and one worker's part of it.
type Sitting = (Arc<Arc<dyn FilterConfig>>, Rc<dyn ActiveFilter>);

/// One worker's part of a seat: made anew when something else sits in it.
pub struct ActiveSeat {
    seat: Arc<FilterSeat>,
    active: RefCell<Option<Sitting>>,
    thread: Rc<Thread>,
    stat_prefix: Box<str>,
}

impl ActiveSeat {
    pub fn filter(seat: &Arc<FilterSeat>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        Rc::new(Self {
            seat: seat.clone(),
            active: RefCell::default(),
            thread: scope.thread.clone(),
            stat_prefix: scope.stat_prefix.into(),
        })
    }

    /// The filter of this moment; `None` if its configuration has not been found.
    fn get(&self) -> Option<Rc<dyn ActiveFilter>> {
        let current = self.seat.get()?;
        let mut cached = self.active.borrow_mut();
        if let Some((of, active)) = &*cached
            && Arc::ptr_eq(of, &current)
        {
            return Some(active.clone());
        }
        let scope = FilterScope { thread: &self.thread, stat_prefix: &self.stat_prefix };
        let active = Arc::clone(&*current).activate(&scope);
        *cached = Some((current, active.clone()));
        Some(active)
    }
}

impl ActiveFilter for ActiveSeat {
    fn create(&self, stream: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        match self.get() {
            Some(filter) => filter.create(stream, routes),
            None => Some(Box::new(Missing)),
        }
    }
}

/// In the place of a filter whose configuration has not been found: the request goes no further.
struct Missing;

impl HttpFilter for Missing {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        stream.info.set_flag(ResponseFlag::NoFilterConfigFound);
        Action::Reply(LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "", ""))
    }
}
