//! What is known and counted of one connection to a host.

use super::{host::HostState, shared::Shared};
use crate::base::{Address, TlsConnection, next_connection_id};
use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};
use weft_config::route::Priority;

/// A connection to a host, as streams and access logs see it.
pub struct UpstreamConnection {
    id: u64,
    local: Option<Address>,
    remote: Option<Address>,
    protocol: Option<&'static str>,
    tls: Option<Rc<TlsConnection>>,
    streams: Cell<u64>,
    tally: Tally,
}

impl UpstreamConnection {
    pub(super) fn new(
        tally: Tally,
        local: Option<Address>,
        remote: Option<Address>,
        protocol: Option<&'static str>,
        tls: Option<Rc<TlsConnection>>,
    ) -> Rc<Self> {
        let id = next_connection_id();
        Rc::new(Self { id, local, remote, protocol, tls, streams: Cell::new(0), tally })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn local(&self) -> Option<&Address> {
        self.local.as_ref()
    }

    pub fn remote(&self) -> Option<&Address> {
        self.remote.as_ref()
    }

    /// `HTTP/1.1`, `HTTP/2`; `None` for TCP.
    pub fn protocol(&self) -> Option<&'static str> {
        self.protocol
    }

    /// What TLS established, where the connection speaks it.
    pub fn tls(&self) -> Option<&Rc<TlsConnection>> {
        self.tls.as_ref()
    }

    /// True once it carried more than one stream.
    pub fn was_reused(&self) -> bool {
        self.streams.get() > 1
    }

    pub(super) fn stream_starts(&self) {
        self.streams.set(self.streams.get() + 1);
    }

    /// The connection is over; later calls have no effect. Dropping it does the same as a close of ours.
    pub fn closed(&self, by: ClosedBy, with_active_stream: bool) {
        if self.tally.close(by, with_active_stream) && self.protocol.is_some() {
            self.tally.shared.stats().upstream_rq_per_cx.record(self.streams.get());
        }
    }
}

/// Who closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    Us,
    Peer,
}

/// Counts a connection from the moment at which it is begun: stats, the host's numbers, the breakers.
pub(super) struct Tally {
    shared: Rc<Shared>,
    host: Arc<HostState>,
    priority: Priority,
    start: Instant,
    open: Cell<bool>,
    /// The connection as a whole is one request (TCP).
    is_request: Cell<bool>,
}

impl Tally {
    /// Counts a connection whose place with the breakers was taken already.
    pub fn begin(shared: Rc<Shared>, host: Arc<HostState>, priority: Priority) -> Self {
        let stats = shared.stats();
        stats.upstream_cx_total.inc();
        stats.upstream_cx_active.inc();
        host.cx_total.fetch_add(1, Relaxed);
        host.cx_active.fetch_add(1, Relaxed);
        Self { shared, host, priority, start: Instant::now(), open: Cell::new(true), is_request: Cell::new(false) }
    }

    pub fn connected(&self) {
        self.shared.stats().upstream_cx_connect_ms.record(self.start.elapsed().as_millis() as u64);
    }

    /// Counts the connection as one request too, until it is closed.
    pub fn is_request(&self) {
        self.is_request.set(true);
        let stats = self.shared.stats();
        stats.upstream_rq_total.inc();
        stats.upstream_rq_active.inc();
        self.host.rq_total.fetch_add(1, Relaxed);
        self.host.rq_active.fetch_add(1, Relaxed);
    }

    /// It could not be made, by whose doing.
    pub fn failed(&self, by: ClosedBy) {
        self.shared.stats().upstream_cx_connect_fail.inc();
        self.host.cx_connect_fail.fetch_add(1, Relaxed);
        self.close(by, false);
    }

    /// True the first time.
    fn close(&self, by: ClosedBy, with_active_stream: bool) -> bool {
        if !self.open.replace(false) {
            return false;
        }
        let stats = self.shared.stats();
        stats.upstream_cx_active.dec();
        stats.upstream_cx_destroy.inc();
        let (side, side_active) = match by {
            ClosedBy::Us => (&stats.upstream_cx_destroy_local, &stats.upstream_cx_destroy_local_with_active_rq),
            ClosedBy::Peer => (&stats.upstream_cx_destroy_remote, &stats.upstream_cx_destroy_remote_with_active_rq),
        };
        side.inc();
        if with_active_stream {
            side_active.inc();
            stats.upstream_cx_destroy_with_active_rq.inc();
        }
        stats.upstream_cx_length_ms.record(self.start.elapsed().as_millis() as u64);
        self.host.cx_active.fetch_sub(1, Relaxed);
        if self.is_request.get() {
            stats.upstream_rq_active.dec();
            self.host.rq_active.fetch_sub(1, Relaxed);
        }
        self.shared.info.breakers.of(self.priority).connections.release();
        true
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.close(ClosedBy::Us, false);
    }
}
