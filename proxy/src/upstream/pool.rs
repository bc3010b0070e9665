//! A pool: the connections of one thread to one host in one protocol and priority, and the requests that wait for one.
//!
//! HTTP/1 connections carry one stream at a time and are taken last in, first out; HTTP/2 connections carry many, and another
//! is opened when all are full. Waiting requests are served first in, first out. Invariants: a waiter that is dropped leaves no
//! trace; each connection has exactly one task, which ends with it; no borrow is held while foreign code runs.

mod client;
mod waiter;

use super::{
    connection::{Tally, UpstreamConnection},
    health::Health,
    host::Host,
    shared::Shared,
};
use crate::{
    base::{ConnectionInfo, ResetReason, Side, StreamError},
    http::service::UpstreamStream,
    transport::tls::ClientOptions,
};
use client::Client;
use foldhash::HashMap;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use waiter::{Opening, Waiter};
use weft_config::route::Priority;

/// A stream, and the connection that carries it.
pub type Opened = (UpstreamStream, Rc<UpstreamConnection>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    Http1,
    Http2,
    /// What TLS agrees on.
    Auto,
}

/// What tells the pools of one host apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PoolKey {
    pub protocol: Protocol,
    pub priority: Priority,
    /// The downstream connection that this pool is for; `None`: for all.
    pub downstream: Option<u64>,
    pub tls: Rc<ClientOptions>,
}

impl PoolKey {
    /// True if there may be any number of such pools: an empty one is not kept.
    fn is_passing(&self) -> bool {
        self.downstream.is_some() || self.tls.sni.is_some() || self.tls.san.is_some()
    }
}

/// All pools of a host on one thread.
pub(super) struct Pools {
    pub shared: Rc<Shared>,
    /// The host as it is now; new connections go by it.
    pub host: RefCell<Arc<Host>>,
    pools: RefCell<HashMap<PoolKey, Rc<Pool>>>,
    /// The host is gone: no connection is kept.
    gone: Cell<bool>,
}

pub(super) struct Pool {
    owner: Rc<Pools>,
    key: PoolKey,
    downstream: Option<Rc<ConnectionInfo>>,
    /// Connections that can take a stream, the next one last.
    ready: RefCell<Vec<Rc<Client>>>,
    /// All connections that are made.
    clients: RefCell<Vec<Rc<Client>>>,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
    /// Connections that are being made.
    connecting: Cell<usize>,
}

impl Pools {
    pub fn new(shared: Rc<Shared>, host: Arc<Host>) -> Rc<Self> {
        Rc::new(Self { shared, host: RefCell::new(host), pools: RefCell::default(), gone: Cell::new(false) })
    }

    /// A stream from the pool of `key`.
    pub fn open(
        self: &Rc<Self>,
        key: PoolKey,
        downstream: Option<Rc<ConnectionInfo>>,
    ) -> impl Future<Output = Result<Opened, StreamError>> + use<> {
        self.pool(key, downstream).open()
    }

    fn pool(self: &Rc<Self>, key: PoolKey, downstream: Option<Rc<ConnectionInfo>>) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        let new = || {
            Rc::new(Pool {
                owner: self.clone(),
                key: key.clone(),
                downstream,
                ready: RefCell::default(),
                clients: RefCell::default(),
                waiting: RefCell::default(),
                connecting: Cell::new(0),
            })
        };
        match pools.get(&key) {
            Some(pool) => pool.clone(),
            None => pools.entry(key.clone()).or_insert_with(new).clone(),
        }
    }

    /// Closes idle connections now and the others when their streams end.
    pub fn drain(&self) {
        let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
        for pool in pools {
            let clients = pool.clients.borrow().clone();
            clients.iter().for_each(Client::drain);
            pool.tidy();
        }
    }

    /// The host is gone: drains, and keeps no connection from now on.
    pub fn retire(&self) {
        self.gone.set(true);
        self.drain();
    }

    /// True while there is any connection or waiting request.
    pub fn is_in_use(&self) -> bool {
        !self.pools.borrow().values().all(|pool| pool.is_empty())
    }
}

impl Pool {
    fn shared(&self) -> &Rc<Shared> {
        &self.owner.shared
    }

    fn is_empty(&self) -> bool {
        self.clients.borrow().is_empty() && self.connecting.get() == 0 && self.waiting.borrow().is_empty()
    }

    fn open(self: Rc<Self>) -> Opening {
        if let Some(client) = self.next_ready() {
            let started = client.start(&self);
            self.connect_ahead();
            return Opening::done(started);
        }
        let stats = self.shared().stats();
        let breakers = self.shared().info.breakers.of(self.key.priority);
        if !breakers.pending_requests.try_take() {
            stats.upstream_rq_pending_overflow.inc();
            return Opening::done(Err(overflow()));
        }
        stats.upstream_rq_pending_total.inc();
        stats.upstream_rq_pending_active.inc();
        self.owner.host.borrow().state.rq_pending_active.fetch_add(1, Relaxed);
        let waiter = Rc::<Waiter>::default();
        self.waiting.borrow_mut().push_back(waiter.clone());
        self.connect_if_needed();
        Opening::waiting(self, waiter)
    }

    /// A connection that can take a stream now.
    fn next_ready(&self) -> Option<Rc<Client>> {
        let mut ready = self.ready.borrow_mut();
        while let Some(client) = ready.last() {
            if client.can_take_stream() {
                let client = client.clone();
                if client.is_full_with_one_more() {
                    ready.pop();
                }
                return Some(client);
            }
            // It comes back when one of its streams ends.
            ready.pop();
        }
        None
    }

    /// Puts a connection where the next stream finds it.
    fn is_ready(&self, client: &Rc<Client>) {
        let mut ready = self.ready.borrow_mut();
        if !ready.iter().any(|other| Rc::ptr_eq(other, client)) {
            ready.push(client.clone());
        }
    }

    fn forget(self: &Rc<Self>, client: &Rc<Client>) {
        self.ready.borrow_mut().retain(|other| !Rc::ptr_eq(other, client));
        self.clients.borrow_mut().retain(|other| !Rc::ptr_eq(other, client));
        self.connect_if_needed();
        self.tidy();
    }

    /// Takes the pool out of its host's, if nothing is left in it and nothing comes back to it.
    fn tidy(self: &Rc<Self>) {
        if (self.key.is_passing() || self.owner.gone.get()) && self.is_empty() {
            self.owner.pools.borrow_mut().remove(&self.key);
        }
    }

    /// A connection stops being ready without being closed.
    fn not_ready(&self, client: &Rc<Client>) {
        self.ready.borrow_mut().retain(|other| !Rc::ptr_eq(other, client));
    }

    /// Begins as many connections as the waiting requests need, and those that are made ahead.
    fn connect_if_needed(self: &Rc<Self>) {
        while self.waiting.borrow().len() > self.connecting.get() * self.streams_per_connection() {
            if !self.connect() {
                return;
            }
        }
        self.connect_ahead();
    }

    /// Begins connections for streams that are to come, where the cluster wants more of them than there are streams.
    fn connect_ahead(self: &Rc<Self>) {
        let ratio = self.shared().info.config.per_upstream_preconnect_ratio;
        if ratio <= 1.0 || self.owner.gone.get() || self.owner.host.borrow().health() == Health::Unhealthy {
            return;
        }
        // A few at a time.
        for _ in 0..3 {
            let per_connection = self.streams_per_connection();
            let (mut active, mut free) = (0usize, self.connecting.get().saturating_mul(per_connection));
            for client in self.clients.borrow().iter() {
                active += client.active();
                free = free.saturating_add(per_connection.saturating_sub(client.active()));
            }
            let wanted = (self.waiting.borrow().len() + active) as f64 * ratio;
            if wanted <= free.saturating_add(active) as f64 || !self.connect() {
                return;
            }
        }
    }

    /// Begins a connection; false if the breakers have no place for it.
    fn connect(self: &Rc<Self>) -> bool {
        let host = self.owner.host.borrow().clone();
        let needed = self.clients.borrow().is_empty() && self.connecting.get() == 0;
        if !self.shared().may_connect(&host, self.key.priority, needed) {
            return false;
        }
        let tally = Tally::begin(self.shared().clone(), host.state.clone(), self.key.priority);
        let stats = self.shared().stats();
        match self.key.protocol {
            Protocol::Http1 => stats.upstream_cx_http1_total.inc(),
            Protocol::Http2 => stats.upstream_cx_http2_total.inc(),
            // Not known yet.
            Protocol::Auto => {}
        }
        self.connecting.set(self.connecting.get() + 1);
        tokio::task::spawn_local(self.clone().connection(host, tally));
        true
    }

    fn streams_per_connection(&self) -> usize {
        let config = &self.shared().info.config;
        let most = config.max_requests_per_connection.map_or(usize::MAX, |n| n as usize);
        match self.key.protocol {
            Protocol::Http1 | Protocol::Auto => 1,
            Protocol::Http2 => most.min(self.shared().http2().http2.max_concurrent_streams as usize),
        }
    }

    /// One connection from its beginning to its end.
    async fn connection(self: Rc<Self>, host: Arc<Host>, tally: Tally) {
        let connected = self.shared().connect(host, self.downstream.clone(), self.key.tls.clone(), &tally).await;
        self.connecting.set(self.connecting.get() - 1);
        match connected {
            Ok(connected) => Client::run(self, connected, tally).await,
            Err(error) => {
                drop(tally);
                self.fail_waiting(&error);
                self.tidy();
            }
        }
    }

    /// A host that cannot be connected to keeps no one waiting.
    fn fail_waiting(self: &Rc<Self>, error: &StreamError) {
        let waiting = self.waiting.take();
        for waiter in waiting {
            self.no_longer_pending();
            self.shared().stats().upstream_rq_pending_failure_eject.inc();
            waiter.give(Err(error.clone()));
        }
    }

    /// Gives streams to those who wait, as far as there are connections.
    fn serve_waiting(self: &Rc<Self>) {
        while !self.waiting.borrow().is_empty() {
            let Some(client) = self.next_ready() else { break };
            let Some(waiter) = self.waiting.borrow_mut().pop_front() else { break };
            self.no_longer_pending();
            waiter.give(client.start(self));
        }
        self.connect_if_needed();
    }

    fn no_longer_pending(&self) {
        self.shared().info.breakers.of(self.key.priority).pending_requests.release();
        self.shared().stats().upstream_rq_pending_active.dec();
        self.owner.host.borrow().state.rq_pending_active.fetch_sub(1, Relaxed);
    }

    /// The request that waits was given up.
    fn cancel(&self, waiter: &Rc<Waiter>) {
        let mut waiting = self.waiting.borrow_mut();
        let Some(at) = waiting.iter().position(|other| Rc::ptr_eq(other, waiter)) else { return };
        waiting.remove(at);
        drop(waiting);
        self.no_longer_pending();
        self.shared().stats().upstream_rq_cancelled.inc();
    }

    /// Takes a request's place with the breakers and counts it.
    fn begin_request(&self) -> Result<(), StreamError> {
        if !self.shared().info.breakers.of(self.key.priority).requests.try_take() {
            self.shared().stats().upstream_rq_active_overflow.inc();
            return Err(overflow());
        }
        let stats = self.shared().stats();
        stats.upstream_rq_total.inc();
        stats.upstream_rq_active.inc();
        let host = self.owner.host.borrow();
        host.state.rq_total.fetch_add(1, Relaxed);
        host.state.rq_active.fetch_add(1, Relaxed);
        Ok(())
    }

    fn end_request(&self) {
        self.shared().info.breakers.of(self.key.priority).requests.release();
        self.shared().stats().upstream_rq_active.dec();
        self.owner.host.borrow().state.rq_active.fetch_sub(1, Relaxed);
    }
}

/// A breaker is open.
pub(super) fn overflow() -> StreamError {
    StreamError::new(Side::Ours, ResetReason::Overflow, "").retry_safe()
}

#[cfg(test)]
pub(super) mod tests;
