//! Hosts of ORIGINAL_DST clusters: made when a request or connection names them, gone when no one does any more.

use super::{
    host::Host,
    shared::Shared,
    thread::{LbContext, ThreadHost},
};
use foldhash::HashMap;
use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};
use weft_config::{cluster::OriginalDst, endpoint::HealthStatus};

/// The hosts of one cluster on one thread.
pub(super) struct OriginalDstHosts {
    rules: OriginalDst,
    shared: Rc<Shared>,
    hosts: RefCell<HashMap<SocketAddr, Seat>>,
    cleaning: Cell<bool>,
}

struct Seat {
    host: Rc<ThreadHost>,
    /// Chosen since the last cleanup.
    used: bool,
}

impl OriginalDstHosts {
    pub fn new(rules: OriginalDst, shared: Rc<Shared>) -> Rc<Self> {
        Rc::new(Self { rules, shared, hosts: RefCell::default(), cleaning: Cell::new(false) })
    }

    /// The host that the request or its connection names.
    pub fn choose(self: &Rc<Self>, context: &LbContext<'_>) -> Option<Rc<ThreadHost>> {
        let mut address = self.address(context)?;
        if let Some(port) = self.rules.upstream_port_override {
            address.set_port(port);
        }
        if let Some(seat) = self.hosts.borrow_mut().get_mut(&address) {
            seat.used = true;
            return Some(seat.host.clone());
        }
        let config = &self.shared.info.config;
        let host = Host {
            address: address.into(),
            additional_addresses: Vec::new(),
            hostname: "".into(),
            metadata: None,
            locality: Arc::default(),
            priority: 0,
            weight: 1,
            eds_health: HealthStatus::Unknown,
            transport_socket: self.shared.info.transport_socket().clone(),
            checks: None,
            state: Arc::default(),
        };
        let host = ThreadHost::new(Arc::new(host), self.shared.clone());
        self.hosts.borrow_mut().insert(address, Seat { host: host.clone(), used: true });
        let stats = self.shared.stats();
        stats.membership_total.inc();
        stats.membership_healthy.inc();
        stats.membership_change.inc();
        if !self.cleaning.replace(true) {
            let (weak, every) = (Rc::downgrade(self), config.cleanup_interval);
            tokio::task::spawn_local(async move {
                loop {
                    tokio::time::sleep(every).await;
                    let Some(hosts) = weak.upgrade() else { return };
                    hosts.clean();
                }
            });
        }
        Some(host)
    }

    fn address(&self, context: &LbContext<'_>) -> Option<SocketAddr> {
        if let Some(name) = &self.rules.http_header_name
            && let Some(value) = context.request.and_then(|request| request.headers.get(name))
        {
            return self.parsed(value.to_str().unwrap_or_default());
        }
        if let Some((filter, path)) = &self.rules.metadata_key
            && let Some((first, rest)) = path.split_first()
        {
            let first = context.dynamic_metadata.and_then(|all| all.get(filter.as_str())?.get(first));
            let found = rest.iter().fold(first, |value, key| value?.get(key));
            if let Some(text) = found.and_then(|value| value.as_str()) {
                return self.parsed(text);
            }
        }
        // Without a listener filter that found another destination the address is our own.
        let connection = context.connection?;
        (connection.local != connection.direct_local).then(|| connection.local.ip()).flatten()
    }

    fn parsed(&self, text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            self.shared.stats().original_dst_host_invalid.inc();
        }
        address
    }

    /// Forgets the hosts that were not chosen since the last time and have no connection left.
    fn clean(&self) {
        let stats = self.shared.stats();
        self.hosts.borrow_mut().retain(|_, seat| {
            let stays = std::mem::take(&mut seat.used) || seat.host.pools().is_in_use();
            if !stays {
                seat.host.pools().retire();
                stats.membership_total.dec();
                stats.membership_healthy.dec();
                stats.membership_change.inc();
            }
            stays
        });
    }

    /// The cluster is gone.
    pub fn retire(&self) {
        let hosts = self.hosts.take();
        let stats = self.shared.stats();
        for seat in hosts.into_values() {
            seat.host.pools().retire();
            stats.membership_total.dec();
            stats.membership_healthy.dec();
        }
    }
}
