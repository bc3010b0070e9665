//! One downstream HTTP connection: what its streams share, and the seam that the codecs call.

use super::{
    BadRequest, Body, Protocol, RequestHead, StreamService,
    connection_manager::{ConnectionManager, Routes},
    filter_chain::ActiveFilters,
    h1::CodecStats,
    scopes::ScopeRoutes,
    service::Responder,
    stats::{ConnectionManagerStats, ListenerHttpStats},
    stream,
    thread::Thread,
};
use crate::{
    base::{ConnectionInfo, Drain, Timer, clock},
    filters::local_ratelimit::Limiter,
    observe::{StreamInfo, stream_info::Metadata},
    route::RouteTable,
};
use std::{
    cell::{Cell, OnceCell, RefCell},
    future::Future,
    rc::Rc,
    sync::Arc,
};

/// A downstream connection of a connection manager.
pub struct HttpConnection {
    pub thread: Rc<Thread>,
    pub manager: Arc<ConnectionManager>,
    /// This worker's part of the manager's HTTP filters.
    pub filters: Rc<ActiveFilters>,
    pub info: Rc<ConnectionInfo>,
    pub stats: Arc<ConnectionManagerStats>,
    pub listener_stats: Arc<ListenerHttpStats>,
    /// `http1.*`
    pub codec_stats: Arc<CodecStats>,
    /// That of the listener's filter chain.
    chain_drain: Drain,
    /// Its own: it is to end.
    pub drain: Drain,
    /// What listener filters found; every stream begins with it.
    pub dynamic_metadata: Metadata,
    /// Streams that have not ended.
    pub active: Cell<u32>,
    /// Its own buckets, where local rate limits are by connection.
    pub limiter: OnceCell<Rc<Limiter>>,
    told_of_drain: Cell<bool>,
    /// Timers of streams that have ended.
    timers: RefCell<Vec<Timer>>,
}

/// How many timers a connection keeps: as many as streams often run at a time.
const TIMERS: usize = 128;

/// The service that codecs call: cheap to clone.
#[derive(Clone)]
pub struct Service(pub Rc<HttpConnection>);

impl StreamService for Service {
    fn serve(&self, request: RequestHead, body: Body, responder: Responder) -> impl Future<Output = ()> + use<> {
        stream::serve(self.0.clone(), request, body, responder)
    }

    fn reject(&self, bad: BadRequest, responder: Responder) -> impl Future<Output = ()> + use<> {
        stream::reject(self.0.clone(), bad, responder)
    }
}

impl HttpConnection {
    pub fn new(
        thread: Rc<Thread>,
        filters: Rc<ActiveFilters>,
        info: Rc<ConnectionInfo>,
        stats: Arc<ConnectionManagerStats>,
        listener_stats: Arc<ListenerHttpStats>,
        codec_stats: Arc<CodecStats>,
        chain_drain: Drain,
        dynamic_metadata: Metadata,
    ) -> Rc<Self> {
        Rc::new(Self {
            thread,
            manager: filters.manager.clone(),
            filters,
            info,
            stats,
            listener_stats,
            codec_stats,
            chain_drain,
            drain: Drain::new(),
            dynamic_metadata,
            active: Cell::new(0),
            limiter: OnceCell::new(),
            told_of_drain: Cell::new(false),
            timers: RefCell::default(),
        })
    }

    /// The route table of this moment; a stream keeps the one that it began with.
    pub fn route_table(&self, head: &RequestHead) -> Option<Arc<RouteTable>> {
        match &self.manager.routes {
            Routes::Inline(table) => Some(table.clone()),
            Routes::Rds(slot) => self.thread.route_table(*slot),
            Routes::Scoped(seat) => match seat.find(head)? {
                ScopeRoutes::Inline(table) => Some(table),
                ScopeRoutes::Rds { slot, .. } => self.thread.route_table(slot),
            },
        }
    }

    /// The name of the route configuration of a request's scope, if it has to be asked for.
    pub fn routes_on_demand(&self, head: &RequestHead) -> Option<Arc<str>> {
        let Routes::Scoped(seat) = &self.manager.routes else { return None };
        match seat.find(head)? {
            ScopeRoutes::Rds { on_demand, .. } => on_demand,
            ScopeRoutes::Inline(_) => None,
        }
    }

    pub fn begin_stream(&self, protocol: Protocol) {
        self.active.set(self.active.get() + 1);
        let stats = &self.stats;
        stats.downstream_rq_total.inc();
        stats.downstream_rq_active.inc();
        if protocol == Protocol::Http2 { &stats.downstream_rq_http2_total } else { &stats.downstream_rq_http1_total }
            .inc();
    }

    /// A timer for a stream.
    pub fn take_timer(&self) -> Timer {
        self.timers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a timer for another stream.
    pub fn keep_timer(&self, timer: Timer) {
        let mut timers = self.timers.borrow_mut();
        if timers.len() < TIMERS {
            timers.push(timer);
        }
    }

    /// True if the server or listener drains, or fails its health check, so that this response is the connection's last.
    pub fn should_close_after_response(&self) -> bool {
        let fails_health_check = self.thread.health_check_failed.get() && !self.manager.drain_modify_only;
        let drains = self.drain.is_draining() || fails_health_check || self.chain_drain.ends_connection();
        if drains && !self.told_of_drain.replace(true) {
            self.stats.downstream_cx_drain_close.inc();
            self.drain.start();
        }
        drains
    }

    /// Counts a response once its head goes out.
    pub fn count_response(&self, code: u16, info: &StreamInfo) {
        if !info.is_health_check {
            self.stats.downstream_rq.inc(code);
            self.listener_stats.downstream_rq.inc(code);
        }
    }

    pub fn end_stream(&self, info: &StreamInfo) {
        self.active.set(self.active.get() - 1);
        self.stats.downstream_rq_active.dec();
        self.stats.downstream_rq_time.record(clock::now().saturating_duration_since(info.start).as_millis() as u64);
    }
}
