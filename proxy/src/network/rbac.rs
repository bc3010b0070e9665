//! `envoy.filters.network.rbac`: lets through the connections that policies or a tree allow.
//!
//! As Envoy's, it counts, and closes what it denies, once the client's first bytes are there or its end. The decision
//! itself is made before: a connection that is denied never reaches the filters behind this one, so that the upstream
//! is not connected to and no greeting of it goes out.

use super::{Admission, CompileContext, Connection, Gate, GateFilter};
use crate::{
    http::Thread,
    observe::StreamInfo,
    rbac::{Decision, Engine, Facts, Mode, Recorder, RuleStats},
    transport::{Io, Meter},
};
use std::{cell::Cell, future::Future, pin::Pin, rc::Rc, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, time};
use weft_config::{Context, rbac::NetworkRbac};
use weft_control_api::{Any, envoy::extensions::filters::network::rbac::v3 as pb};

pub const TYPE: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";

/// How long a denied connection that says nothing is kept.
const SILENCE: Duration = Duration::from_secs(60);

struct Rbac {
    rules: Option<Engine>,
    shadow_rules: Option<Engine>,
    recorder: Recorder,
    stat_prefix: String,
    shadow_rules_prefix: String,
    continuous: bool,
    delay_deny: Duration,
}

pub fn compile(any: &Any, _: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn GateFilter>> {
    let config: pb::Rbac = cx.unpack("", any)?;
    let NetworkRbac { rbac, stat_prefix, continuous, delay_deny } = NetworkRbac::from_proto(config, cx);
    Some(Arc::new(Rbac {
        recorder: Recorder::new("envoy.filters.network.rbac", &rbac.rules_stat_prefix, &rbac.shadow_rules_stat_prefix),
        rules: rbac.rules.map(Engine::new),
        shadow_rules: rbac.shadow_rules.map(Engine::new),
        stat_prefix,
        shadow_rules_prefix: rbac.shadow_rules_stat_prefix,
        continuous,
        delay_deny,
    }))
}

impl GateFilter for Rbac {
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Gate> {
        let stats = RuleStats::attach(&thread.registry, &self.stat_prefix, "", &self.shadow_rules_prefix);
        Rc::new(Active { rbac: self, stats: Rc::new(stats) })
    }
}

/// One worker's part.
struct Active {
    rbac: Arc<Rbac>,
    stats: Rc<RuleStats>,
}

impl Gate for Active {
    fn admit<'a>(&'a self, connection: &'a mut Connection) -> Pin<Box<dyn Future<Output = Admission> + 'a>> {
        let (shadow, enforced) = self.decide(connection);
        let denied = enforced.clone().filter(|decision| !decision.allowed);
        let seen = Seen {
            stats: self.stats.clone(),
            shadow,
            enforced,
            continuous: self.rbac.continuous,
            once: Cell::new(false),
        };
        let Some(denied) = denied else {
            let io = std::mem::replace(&mut connection.io, Io::Boxed(Box::new(tokio::io::empty())));
            connection.io = io.metered(Rc::new(seen));
            return Box::pin(std::future::ready(Admission::Pass));
        };
        let delay = self.rbac.delay_deny;
        Box::pin(async move {
            let mut first = [0; 1024];
            if let Ok(Ok(read)) = time::timeout(SILENCE, connection.io.read(&mut first)).await {
                seen.received(read);
                connection.info.termination_details.replace(Some(Recorder::details(&denied).into()));
                if !delay.is_zero() {
                    time::sleep(delay).await;
                }
            }
            Admission::Close
        })
    }
}

impl Active {
    /// What shadow rules and rules say, written down in the connection's metadata.
    fn decide(&self, connection: &mut Connection) -> (Option<Decision>, Option<Decision>) {
        let rbac = &*self.rbac;
        let mut info = StreamInfo::new(connection.info.clone());
        info.dynamic_metadata = std::mem::take(&mut connection.dynamic_metadata);
        info.filter_state = std::mem::take(&mut connection.filter_state);
        let decide = |engine: &Engine, info: &StreamInfo| engine.decide(&Facts { info, request: None });
        let shadow = rbac.shadow_rules.as_ref().map(|engine| decide(engine, &info));
        if let Some(shadow) = &shadow {
            rbac.recorder.record(shadow, Mode::Shadow, &mut info.dynamic_metadata);
        }
        let enforced = rbac.rules.as_ref().map(|engine| decide(engine, &info));
        if let Some(enforced) = &enforced {
            Recorder::hint(enforced, &mut info.dynamic_metadata);
        }
        connection.dynamic_metadata = info.dynamic_metadata;
        connection.filter_state = info.filter_state;
        (shadow, enforced)
    }
}

/// Counts the decisions about a connection once the client's first bytes or its end are there, or each time.
struct Seen {
    stats: Rc<RuleStats>,
    shadow: Option<Decision>,
    enforced: Option<Decision>,
    continuous: bool,
    once: Cell<bool>,
}

impl Meter for Seen {
    fn received(&self, _: usize) {
        if self.once.replace(true) && !self.continuous {
            return;
        }
        for (decision, mode) in [(&self.shadow, Mode::Shadow), (&self.enforced, Mode::Enforced)] {
            if let Some(decision) = decision {
                self.stats.count(decision, mode, false);
            }
        }
    }

    fn sent(&self, _: usize) {}
}
