//! Hosts by DNS: the discovery of STRICT_DNS and LOGICAL_DNS clusters. Runs on the control thread.
//!
//! Each name of a cluster has a task that asks again and again. STRICT_DNS: every address is a host. LOGICAL_DNS: only
//! the first is. Invariant: when nobody answers, the last good answer stands.

mod hickory;

pub use hickory::Hickory;

use super::Cluster;
use crate::observe::stats::Registry;
use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::task::AbortHandle;
use weft_config::{
    ClusterLoadAssignment,
    address::Address,
    cluster::{Discovery, Dns, DnsLookupFamily},
    endpoint::LbEndpoint,
};

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// None, if the name is known to have no address.
    pub addresses: Vec<IpAddr>,
    pub ttl: Duration,
}

/// Nobody answered, or not so that it could be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer;

pub type Resolving = Pin<Box<dyn Future<Output = Result<Answer, NoAnswer>>>>;

/// Asks for the addresses of names.
pub trait Resolve {
    fn resolve(&self, name: &str, family: DnsLookupFamily) -> Resolving;
}

crate::stats! {
    /// What DNS adds to a cluster's stats, below the same prefix.
    pub struct DnsStats {
        counter update_attempt,
        counter update_failure,
        counter update_no_rebuild,
        counter update_success,
    }
}

/// What discovery found.
pub struct Found {
    /// The cluster's load assignment with addresses in place of names; for [`Cluster::with_assignment`].
    pub assignment: ClusterLoadAssignment,
    /// Every name was asked for at least once: the cluster is warm.
    pub is_warm: bool,
}

/// The discovery of one cluster; ends when it is dropped.
pub struct DnsDiscovery {
    tasks: Vec<AbortHandle>,
}

struct State {
    cluster: Arc<Cluster>,
    dns: Box<Dns>,
    is_logical: bool,
    resolver: Rc<dyn Resolve>,
    stats: Arc<DnsStats>,
    /// The addresses of each endpoint, by its position among all.
    answers: RefCell<Vec<Option<Vec<IpAddr>>>>,
    /// Endpoints that were not asked for yet.
    unasked: Cell<usize>,
    on_found: Box<dyn Fn(Found)>,
}

impl DnsDiscovery {
    /// Begins to resolve the names of `cluster`, if it is one with names. `on_found` is told of every change, and once when all
    /// names were asked for. It is called from tasks of this thread, never from within this function.
    pub fn start(
        cluster: &Arc<Cluster>,
        resolver: Rc<dyn Resolve>,
        registry: &Registry,
        on_found: impl Fn(Found) + 'static,
    ) -> Option<Self> {
        let config = &cluster.info.config;
        let (dns, is_logical) = match &config.discovery {
            Discovery::StrictDns(dns) => (dns.clone(), false),
            Discovery::LogicalDns(dns) => (dns.clone(), true),
            _ => return None,
        };
        let endpoints: Vec<_> = config.load_assignment.localities.iter().flat_map(|l| &l.endpoints).cloned().collect();
        let state = Rc::new(State {
            cluster: cluster.clone(),
            dns,
            is_logical,
            resolver,
            stats: registry.attach(&cluster.info.stat_prefix),
            answers: RefCell::new(vec![None; endpoints.len()]),
            unasked: Cell::new(endpoints.len()),
            on_found: Box::new(on_found),
        });
        if endpoints.is_empty() {
            let task = tokio::task::spawn_local(async move { state.tell() });
            return Some(Self { tasks: vec![task.abort_handle()] });
        }
        let tasks = endpoints.into_iter().enumerate().map(|(i, endpoint)| {
            let asking = state.clone().keep_asking(i, endpoint);
            tokio::task::spawn_local(asking).abort_handle()
        });
        Some(Self { tasks: tasks.collect() })
    }
}

impl Drop for DnsDiscovery {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl State {
    /// Asks for one endpoint's name for ever.
    async fn keep_asking(self: Rc<Self>, index: usize, endpoint: LbEndpoint) {
        let Address::Socket(socket) = &endpoint.address else { return };
        let mut failures = 0;
        loop {
            self.stats.update_attempt.inc();
            let answer = match socket.ip() {
                Some(ip) => Ok(Answer { addresses: vec![ip.ip()], ttl: Duration::ZERO }),
                None => self.resolver.resolve(&socket.host, self.dns.lookup_family).await,
            };
            // A logical host is not without an address: that is a failure.
            let answer = answer.and_then(|answer| {
                if self.is_logical && answer.addresses.is_empty() { Err(NoAnswer) } else { Ok(answer) }
            });
            let wait = match &answer {
                Ok(answer) => {
                    failures = 0;
                    self.stats.update_success.inc();
                    self.after_answer(answer)
                }
                Err(NoAnswer) => {
                    self.stats.update_failure.inc();
                    failures += 1;
                    self.after_failure(failures)
                }
            };
            self.take(index, answer.ok());
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes over an answer, and tells of it if it changed anything.
    fn take(&self, index: usize, answer: Option<Answer>) {
        let is_last = self.unasked.get() == 1;
        let mut answers = self.answers.borrow_mut();
        let Some(seat) = answers.get_mut(index) else { return };
        let first = seat.is_none();
        let mut changed = false;
        if let Some(Answer { mut addresses, .. }) = answer {
            // The order of answers means nothing, but where there is one host.
            if !self.is_logical {
                addresses.sort_unstable();
                addresses.dedup();
            }
            changed = seat.as_ref() != Some(&addresses);
            if !changed {
                self.stats.update_no_rebuild.inc();
            }
            *seat = Some(addresses);
        }
        if first {
            seat.get_or_insert_default();
            self.unasked.set(self.unasked.get() - 1);
        }
        drop(answers);
        if changed || (first && is_last) {
            self.tell();
        }
    }

    fn tell(&self) {
        let mut assignment = self.cluster.info.config.load_assignment.clone();
        let answers = self.answers.borrow();
        let mut answers = answers.iter();
        for locality in &mut assignment.localities {
            let endpoints = std::mem::take(&mut locality.endpoints);
            for endpoint in endpoints {
                let addresses = answers.next().and_then(Option::as_ref).map(Vec::as_slice).unwrap_or_default();
                locality.endpoints.extend(hosts(&endpoint, addresses, self.is_logical));
            }
        }
        (self.on_found)(Found { assignment, is_warm: self.unasked.get() == 0 });
    }

    fn after_answer(&self, answer: &Answer) -> Duration {
        let Dns { refresh_rate, jitter, respect_ttl, min_refresh_rate, .. } = &*self.dns;
        let mut wait = *refresh_rate;
        if *respect_ttl && !answer.addresses.is_empty() && !answer.ttl.is_zero() {
            wait = answer.ttl.max(*min_refresh_rate);
        }
        wait + jitter.mul_f64(fastrand::f64())
    }

    /// Backs off with full jitter, where failures have a rate of their own.
    fn after_failure(&self, failures: u32) -> Duration {
        let Some((base, most)) = self.dns.failure_refresh_rate else { return self.dns.refresh_rate };
        let window = base.saturating_mul(2u32.saturating_pow(failures.min(31)) - 1).min(most);
        window.mul_f64(fastrand::f64()).max(Duration::from_millis(1))
    }
}

/// The hosts that an endpoint stands for.
fn hosts(endpoint: &LbEndpoint, addresses: &[IpAddr], is_logical: bool) -> Vec<LbEndpoint> {
    let Address::Socket(socket) = &endpoint.address else { return Vec::new() };
    let at = |ip: &IpAddr| {
        let mut socket = socket.clone();
        socket.host = ip.to_string();
        Address::Socket(socket)
    };
    let hostname = if endpoint.hostname.is_empty() { socket.host.clone() } else { endpoint.hostname.clone() };
    let host = |ip, others: &[IpAddr]| LbEndpoint {
        address: at(ip),
        hostname: hostname.clone(),
        additional_addresses: others.iter().map(at).collect(),
        ..endpoint.clone()
    };
    match addresses.split_first() {
        Some((first, others)) if is_logical => vec![host(first, others)],
        _ => addresses.iter().map(|ip| host(ip, &[])).collect(),
    }
}

#[cfg(test)]
mod tests;
