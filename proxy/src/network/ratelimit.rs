//! `envoy.filters.network.ratelimit`: asks a rate limit service whether a connection may go on.

use super::{Admission, CompileContext, Connection, Gate, GateFilter};
use crate::{
    http::Thread,
    observe::{
        StreamInfo,
        format::{Facts, Format},
    },
    stats,
    upstream::rate_limit_call,
};
use std::{future::Future, pin::Pin, rc::Rc, sync::Arc};
use weft_config::{Context, rate_limit::NetworkRateLimit};
use weft_control_api::{
    Any,
    envoy::{
        extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
        service::ratelimit::v3::RateLimitRequest,
    },
};

pub const TYPE: &str = "envoy.extensions.filters.network.ratelimit.v3.RateLimit";

stats! {
    /// `ratelimit.PREFIX.*`
    pub struct RateLimitStats {
        counter cx_closed,
        counter error,
        counter failure_mode_allowed,
        counter ok,
        counter over_limit,
        counter total,
        gauge active,
    }
}

struct RateLimit {
    config: NetworkRateLimit,
    /// Keys and values.
    descriptors: Vec<Vec<(String, Format)>>,
}

pub fn compile(any: &Any, _: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn GateFilter>> {
    let config = NetworkRateLimit::from_proto(cx.unpack("", any)?, cx)?;
    let descriptors = config.descriptors.iter().enumerate().map(|(i, entries)| {
        let mut format = |(j, (key, value)): (usize, &(String, String))| {
            let format = |cx: &mut Context| cx.field("value", |cx| Format::compile_text(value, cx));
            cx.element("descriptors", i, |cx| cx.element("entries", j, format)).map(|format| (key.clone(), format))
        };
        entries.iter().enumerate().filter_map(&mut format).collect()
    });
    Some(Arc::new(RateLimit { descriptors: descriptors.collect(), config }))
}

impl GateFilter for RateLimit {
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Gate> {
        let stats = thread.registry.attach(&format!("ratelimit.{}", self.config.stat_prefix));
        Rc::new(Active { stats, limit: self })
    }
}

/// One worker's part.
struct Active {
    limit: Arc<RateLimit>,
    stats: Arc<RateLimitStats>,
}

impl Active {
    fn question(&self, connection: &Connection) -> RateLimitRequest {
        let info = StreamInfo::new(connection.info.clone());
        let facts = Facts::new(&info);
        let descriptor = |entries: &Vec<(String, Format)>| RateLimitDescriptor {
            entries: entries.iter().map(|(key, value)| Entry { key: key.clone(), value: value.text(&facts) }).collect(),
            ..Default::default()
        };
        RateLimitRequest {
            domain: self.limit.config.domain.clone(),
            descriptors: self.limit.descriptors.iter().map(descriptor).collect(),
            hits_addend: 0,
        }
    }

    fn close(&self) -> Admission {
        self.stats.cx_closed.inc();
        Admission::Close
    }
}

impl Gate for Active {
    fn admit<'a>(&'a self, connection: &'a mut Connection) -> Pin<Box<dyn Future<Output = Admission> + 'a>> {
        let (thread, stats, config) = (&connection.thread, &self.stats, &self.limit.config);
        let runtime = thread.runtime();
        if !runtime.enables("ratelimit.tcp_filter_enabled", 100, fastrand::u64(..)) {
            return Box::pin(std::future::ready(Admission::Pass));
        }
        let question = self.question(connection);
        let call =
            rate_limit_call::ask(&thread.upstreams, thread.local.address, &config.service, &question, config.timeout);
        Box::pin(async move {
            stats.total.inc();
            let answer = {
                let _active = Counted::new(stats);
                call.await
            };
            match answer {
                Err(_) => {
                    stats.error.inc();
                    if config.failure_mode_deny {
                        return self.close();
                    }
                    stats.failure_mode_allowed.inc();
                }
                Ok(answer) if rate_limit_call::is_over_limit(&answer) => {
                    stats.over_limit.inc();
                    if runtime.enables("ratelimit.tcp_filter_enforcing", 100, fastrand::u64(..)) {
                        return self.close();
                    }
                }
                Ok(_) => stats.ok.inc(),
            }
            Admission::Pass
        })
    }
}

/// A connection that waits for an answer.
struct Counted<'a>(&'a RateLimitStats);

impl<'a> Counted<'a> {
    fn new(stats: &'a RateLimitStats) -> Self {
        stats.active.inc();
        Self(stats)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.active.dec();
    }
}
