//! What all HTTP connections of one thread share. The control thread has one too: its gRPC clients are streams as any other.

use super::{demand::Demands, request_headers::LocalInfo};
use crate::{
    base::{Drain, RuntimeSnapshot},
    observe::stats::Registry,
    route::RouteTable,
    upstream::Upstreams,
};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

/// A route configuration's number: an index into [`RouteTables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteSlot(pub u32);

/// The route configurations that came over RDS, by slot; `None` while one has not come.
pub type RouteTables = Vec<Option<Arc<RouteTable>>>;

/// One thread's shared state.
pub struct Thread {
    pub index: usize,
    pub upstreams: Rc<Upstreams>,
    pub registry: Registry,
    pub local: Arc<LocalInfo>,
    /// Fires when the whole server drains.
    pub drain: Drain,
    routes: RefCell<Arc<RouteTables>>,
    runtime: RefCell<Arc<RuntimeSnapshot>>,
    /// What this thread's requests wait for.
    pub demands: Demands,
    /// `/healthcheck/fail` was called.
    pub health_check_failed: Cell<bool>,
}

impl Thread {
    pub fn new(
        index: usize,
        upstreams: Rc<Upstreams>,
        registry: Registry,
        local: Arc<LocalInfo>,
        drain: Drain,
        runtime: Arc<RuntimeSnapshot>,
        demands: Demands,
    ) -> Rc<Self> {
        Rc::new(Self {
            index,
            upstreams,
            registry,
            local,
            drain,
            routes: RefCell::default(),
            runtime: RefCell::new(runtime),
            demands,
            health_check_failed: Cell::new(false),
        })
    }

    pub fn set_routes(&self, routes: Arc<RouteTables>) {
        *self.routes.borrow_mut() = routes;
    }

    pub fn set_runtime(&self, runtime: Arc<RuntimeSnapshot>) {
        *self.runtime.borrow_mut() = runtime;
    }

    pub fn route_table(&self, slot: RouteSlot) -> Option<Arc<RouteTable>> {
        self.routes.borrow().get(slot.0 as usize).cloned().flatten()
    }

    pub fn runtime(&self) -> Arc<RuntimeSnapshot> {
        self.runtime.borrow().clone()
    }
}
