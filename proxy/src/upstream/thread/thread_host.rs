//! One host as one thread has it: its pools, and what is counted of it.

use crate::{
    base::Address,
    upstream::{
        cluster::ClusterInfo,
        host::{self, Host},
        orca,
        outlier::Report,
        pool::Pools,
        shared::Shared,
    },
};
use http::HeaderMap;
use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use weft_config::load_balancing::{ClientSideWeightedRoundRobin, PolicyKind};

/// One host as one thread has it.
pub struct ThreadHost {
    pub(super) host: Arc<Host>,
    pub(super) pools: Rc<Pools>,
}

impl ThreadHost {
    pub(in crate::upstream) fn new(host: Arc<Host>, shared: Rc<Shared>) -> Rc<Self> {
        Rc::new(Self { pools: Pools::new(shared, host.clone()), host })
    }

    /// The same host with what is new about it.
    pub(super) fn now(self: Rc<Self>, host: &Arc<Host>) -> Rc<Self> {
        if Arc::ptr_eq(&self.host, host) {
            return self;
        }
        *self.pools.host.borrow_mut() = host.clone();
        Rc::new(Self { host: host.clone(), pools: self.pools.clone() })
    }

    pub(in crate::upstream) fn pools(&self) -> &Rc<Pools> {
        &self.pools
    }

    pub fn address(&self) -> &Address {
        &self.host.address
    }

    /// True if the cluster weighs its hosts by what they report.
    pub fn wants_reports(&self) -> bool {
        self.reports().is_some()
    }

    fn reports(&self) -> Option<&ClientSideWeightedRoundRobin> {
        match &self.cluster().config.load_balancing.policy.innermost().kind {
            PolicyKind::ClientSideWeightedRoundRobin(config) => Some(config),
            _ => None,
        }
    }

    /// Takes the load report in a response's headers or trailers; true if there was one.
    pub fn take_report(&self, headers: &HeaderMap) -> bool {
        let weight = self.reports().and_then(|config| orca::reported(headers, config));
        if let Some(weight) = weight {
            self.host.state.report.set(weight, host::now());
        }
        weight.is_some()
    }

    /// The cluster that it is a host of.
    pub fn cluster(&self) -> &Arc<ClusterInfo> {
        &self.pools.shared.info
    }

    /// The host as all threads share it.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Counts a response, or a local one in its place, for the host.
    pub fn count_response(&self, status: u16) {
        let state = &self.host.state;
        if status >= 500 { &state.rq_error } else { &state.rq_success }.fetch_add(1, Relaxed);
    }

    /// Tells outlier detection, where there is one, what became of a try.
    pub fn report(&self, report: Report) {
        if let Some(monitor) = self.host.state.outlier() {
            monitor.report(report);
        }
    }

    /// Counts a request that failed, or whose answer was not good enough.
    pub fn count_error(&self) {
        self.host.state.rq_error.fetch_add(1, Relaxed);
    }

    /// Counts a request that the host did not answer in time.
    pub fn count_timeout(&self) {
        self.host.state.rq_timeout.fetch_add(1, Relaxed);
    }
}
