//! `envoy.filters.network.connection_limit`: at most so many connections at a time, over all workers.

use super::{Admission, CompileContext, Connection, Gate, GateFilter};
use crate::{http::Thread, stats};
use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use weft_config::Context;
use weft_control_api::{
    Any,
    envoy::{config::core::v3 as core, extensions::filters::network::connection_limit::v3 as pb},
};

pub const TYPE: &str = "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";

stats! {
    /// `connection_limit.PREFIX.*`
    pub struct ConnectionLimitStats {
        counter limited_connections,
        gauge active_connections,
    }
}

/// Compiled once and shared, so that the limit holds for all workers together.
struct ConnectionLimit {
    stat_prefix: String,
    most: u64,
    /// How long a connection over the limit is left open.
    delay: Duration,
    /// The runtime key that says whether there is a limit, and what holds without it.
    enabled: (String, bool),
    active: AtomicU64,
}

pub fn compile(any: &Any, _: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn GateFilter>> {
    let pb::ConnectionLimit { stat_prefix, max_connections, delay, runtime_enabled } = cx.unpack("", any)?;
    let enabled = match runtime_enabled {
        Some(core::RuntimeFeatureFlag { default_value, runtime_key }) => (runtime_key, default_value.unwrap_or(true)),
        None => (String::new(), true),
    };
    Some(Arc::new(ConnectionLimit {
        stat_prefix,
        most: cx.required("max_connections", max_connections)?,
        delay: cx.duration("delay", delay).unwrap_or_default(),
        enabled,
        active: AtomicU64::new(0),
    }))
}

/// One worker's part.
struct Active {
    limit: Arc<ConnectionLimit>,
    stats: Arc<ConnectionLimitStats>,
}

impl GateFilter for ConnectionLimit {
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Gate> {
        let stats = thread.registry.attach(&format!("connection_limit.{}", self.stat_prefix));
        Rc::new(Active { stats, limit: self })
    }
}

impl Gate for Active {
    fn admit<'a>(&'a self, connection: &'a mut Connection) -> Pin<Box<dyn Future<Output = Admission> + 'a>> {
        let (key, default) = &self.limit.enabled;
        let enabled = if key.is_empty() { None } else { connection.thread.runtime().boolean(key) };
        if !enabled.unwrap_or(*default) {
            return Box::pin(std::future::ready(Admission::Pass));
        }
        let counted = Counted::new(&self.stats);
        match Seat::take(&self.limit) {
            Some(seat) => Box::pin(std::future::ready(Admission::Hold(Box::new((counted, seat))))),
            None => {
                self.stats.limited_connections.inc();
                let delay = self.limit.delay;
                Box::pin(async move {
                    if !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                    drop(counted);
                    Admission::Close
                })
            }
        }
    }
}

/// A connection within the limit.
struct Seat(Arc<ConnectionLimit>);

impl Seat {
    fn take(limit: &Arc<ConnectionLimit>) -> Option<Self> {
        let more = |active| (active < limit.most).then_some(active + 1);
        limit.active.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Self(limit.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// A connection that the filter sees, within the limit or not.
struct Counted(Arc<ConnectionLimitStats>);

impl Counted {
    fn new(stats: &Arc<ConnectionLimitStats>) -> Self {
        stats.active_connections.inc();
        Self(stats.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.active_connections.dec();
    }
}
