//! Network filters: what a filter chain does with a connection. The last one is terminal and runs it to its end.
//!
//! Adding one is its file and one line in [`TABLE`].

pub mod connection_limit;
pub mod direct_response;
pub mod echo;
pub mod http_connection_manager;
pub mod rbac;
pub mod sni_cluster;
pub mod tcp_proxy;

use crate::{
    base::{ConnectionInfo, Drain},
    http::{Thread, thread::RouteSlot},
    observe::{
        StreamInfo,
        access_log::LogWriter,
        stream_info::{FilterState, Metadata},
    },
    transport::Io,
    upstream::Names,
};
use std::{any::Any as Guard, cell::Cell, collections::HashMap, future::Future, pin::Pin, rc::Rc, sync::Arc};
use weft_config::{
    Context, config_source::ConfigSource, http_connection_manager::FilterConfig, listener::NetworkFilter as Config,
};
use weft_control_api::Any;

/// A connection that passed the listener filters and found its chain.
pub struct Connection {
    pub io: Io,
    pub info: Rc<ConnectionInfo>,
    /// Fires when the listener, its chain or the server drains.
    pub drain: Drain,
    pub thread: Rc<Thread>,
    /// The chain speaks TLS, whether or not the handshake succeeded.
    pub is_tls: bool,
    /// What listener filters found.
    pub dynamic_metadata: Metadata,
    /// What filters leave for those after them.
    pub filter_state: foldhash::HashMap<Box<str>, FilterState>,
    /// Where a terminal filter that keeps facts of the whole connection leaves them at its end; `None` if nobody asks.
    pub facts: Option<FactsSlot>,
}

/// A place for a connection's facts, read by the listener's access log.
pub type FactsSlot = Rc<Cell<Option<Box<StreamInfo>>>>;

/// What filters need to know of their listener.
#[derive(Clone, Debug)]
pub struct ListenerFacts {
    /// `listener.<this>.*`
    pub stat_name: Arc<str>,
    pub metadata: Option<Arc<Metadata>>,
    /// Bytes that may wait in a connection's buffers.
    pub buffer_limit: usize,
    pub is_inbound: bool,
    /// Drains only when it is changed or removed, not while health checks are made to fail.
    pub drain_modify_only: bool,
}

/// What compiling a filter may use and leave.
pub struct CompileContext<'a> {
    pub names: &'a mut Names,
    pub log_writer: &'a LogWriter,
    pub listener: ListenerFacts,
    /// Route configurations that the listener refers to, with their slots.
    pub routes: &'a mut RouteSlots,
    /// Says which clusters there are.
    pub cluster_exists: &'a dyn Fn(&str) -> bool,
}

/// A route configuration that a connection manager refers to.
#[derive(Debug)]
pub struct WantedRoutes {
    pub slot: RouteSlot,
    pub source: ConfigSource,
    /// Of the connection manager.
    pub stat_prefix: String,
}

/// Slots of route configurations by name, given once and kept.
#[derive(Debug, Default)]
pub struct RouteSlots {
    slots: HashMap<String, WantedRoutes>,
    /// Those that were asked for since [`RouteSlots::take_wanted`].
    wanted: Vec<String>,
}

impl RouteSlots {
    /// The slot of a route configuration.
    pub fn slot(&mut self, name: &str, source: &ConfigSource, stat_prefix: &str) -> RouteSlot {
        self.wanted.push(name.to_owned());
        let next = RouteSlot(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        let wanted = || WantedRoutes { slot: next, source: source.clone(), stat_prefix: stat_prefix.to_owned() };
        self.slots.entry(name.to_owned()).or_insert_with(wanted).slot
    }

    /// The names asked for since the last call: what one listener refers to.
    pub fn take_wanted(&mut self) -> Vec<String> {
        std::mem::take(&mut self.wanted)
    }

    pub fn get(&self, name: &str) -> Option<&WantedRoutes> {
        self.slots.get(name)
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// A terminal filter's compiled configuration, shared by all workers.
pub trait NetworkFilter: Send + Sync {
    /// One worker's part: its stats, options and caches.
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Terminal>;
}

/// One worker's part of a terminal filter.
pub trait Terminal {
    /// Runs a connection to its end. Dropping the future closes it.
    fn serve(self: Rc<Self>, connection: Connection) -> Pin<Box<dyn Future<Output = ()>>>;

    /// A gate closes the connection. Its turn never comes, but it may count what it would have served.
    fn missed(&self, _connection: Connection) {}
}

/// A non-terminal filter's compiled configuration, shared by all workers.
pub trait GateFilter: Send + Sync {
    /// One worker's part: its stats, options and caches.
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Gate>;
}

/// One worker's part of a filter that decides about a connection before the terminal filter runs it.
pub trait Gate {
    /// Asked once a connection, in the order of the chain.
    fn admit<'a>(&'a self, connection: &'a mut Connection) -> Pin<Box<dyn Future<Output = Admission> + 'a>>;
}

/// A gate's answer.
pub enum Admission {
    Pass,
    /// Pass, and drop this when the connection ends.
    Hold(Box<dyn Guard>),
    Close,
}

/// A chain's compiled filters.
pub struct Filters {
    gates: Vec<Arc<dyn GateFilter>>,
    terminal: Arc<dyn NetworkFilter>,
}

/// One worker's part of a chain's filters.
pub struct ActiveFilters {
    gates: Vec<Rc<dyn Gate>>,
    terminal: Rc<dyn Terminal>,
}

impl Filters {
    pub fn activate(&self, thread: &Rc<Thread>) -> ActiveFilters {
        ActiveFilters {
            gates: self.gates.iter().map(|gate| gate.clone().activate(thread)).collect(),
            terminal: self.terminal.clone().activate(thread),
        }
    }
}

impl ActiveFilters {
    /// The transport refused a connection; the terminal filter may count what it would have served.
    pub fn missed(&self, connection: Connection) {
        self.terminal.missed(connection);
    }

    /// Runs a connection to its end. Dropping the future closes it.
    pub fn serve(self: Rc<Self>, connection: Connection) -> Pin<Box<dyn Future<Output = ()>>> {
        if self.gates.is_empty() {
            return self.terminal.clone().serve(connection);
        }
        // In a box of its own: a connection that was admitted need not hold the room that the gates took.
        let admitting = Box::pin(self.admit(connection));
        Box::pin(async move {
            if let Some((serving, _held)) = admitting.await {
                serving.await;
            }
        })
    }

    async fn admit(
        self: Rc<Self>,
        mut connection: Connection,
    ) -> Option<(Pin<Box<dyn Future<Output = ()>>>, Vec<Box<dyn Guard>>)> {
        let mut held = Vec::new();
        for gate in &self.gates {
            match gate.admit(&mut connection).await {
                Admission::Pass => {}
                Admission::Hold(guard) => held.push(guard),
                Admission::Close => {
                    self.terminal.missed(connection);
                    return None;
                }
            }
        }
        Some((self.terminal.clone().serve(connection), held))
    }
}

/// How a filter's configuration is read.
struct Factory {
    /// Envoy's name for it.
    name: &'static str,
    /// Full name of the configuration's message type.
    type_name: &'static str,
    compile: Compile,
}

type CompileFn<T> = fn(&Any, &mut CompileContext<'_>, &mut Context) -> Option<Arc<T>>;

enum Compile {
    Gate(CompileFn<dyn GateFilter>),
    Terminal(CompileFn<dyn NetworkFilter>),
}

/// Every network filter there is.
const TABLE: &[Factory] = &[
    Factory {
        name: "envoy.filters.network.http_connection_manager",
        type_name: http_connection_manager::TYPE,
        compile: Compile::Terminal(http_connection_manager::compile),
    },
    Factory {
        name: "envoy.filters.network.tcp_proxy",
        type_name: tcp_proxy::TYPE,
        compile: Compile::Terminal(tcp_proxy::compile),
    },
    Factory {
        name: "envoy.filters.network.connection_limit",
        type_name: connection_limit::TYPE,
        compile: Compile::Gate(connection_limit::compile),
    },
    Factory {
        name: "envoy.filters.network.sni_cluster",
        type_name: sni_cluster::TYPE,
        compile: Compile::Gate(sni_cluster::compile),
    },
    Factory { name: "envoy.filters.network.rbac", type_name: rbac::TYPE, compile: Compile::Gate(rbac::compile) },
    Factory { name: "envoy.filters.network.echo", type_name: echo::TYPE, compile: Compile::Terminal(echo::compile) },
    Factory {
        name: "envoy.filters.network.direct_response",
        type_name: direct_response::TYPE,
        compile: Compile::Terminal(direct_response::compile),
    },
];

/// Compiles a chain's filters; `None` with problems reported, or if there are none (the connection is then closed).
pub fn compile(filters: &[Config], compile: &mut CompileContext<'_>, cx: &mut Context) -> Option<Filters> {
    let last = filters.len().checked_sub(1)?;
    let mut gates = Vec::new();
    let mut terminal = None;
    for (i, filter) in filters.iter().enumerate() {
        cx.element("filters", i, |cx| {
            let FilterConfig::Typed(any) = &filter.config else {
                cx.problem_at("config_discovery", "is not supported");
                return;
            };
            let type_name = any.type_url.rsplit('/').next().unwrap_or_default();
            let Some(factory) = TABLE.iter().find(|factory| factory.type_name == type_name) else {
                let known: Vec<_> = TABLE.iter().map(|factory| factory.type_name).collect();
                cx.problem_at(
                    "typed_config",
                    format!("found {type_name}, which is not supported; allowed: {}", known.join(", ")),
                );
                return;
            };
            let named = || format!("named {} of type {}", filter.name, factory.name);
            match factory.compile {
                Compile::Gate(read) => {
                    if i == last {
                        cx.problem(format!(
                            "non-terminal filter {} is the last filter in a network filter chain",
                            named()
                        ));
                    }
                    gates.extend(cx.field("typed_config", |cx| read(any, compile, cx)));
                }
                Compile::Terminal(read) => {
                    if i < last {
                        cx.problem(format!(
                            "terminal filter {} must be the last filter in a network filter chain",
                            named()
                        ));
                    }
                    terminal = cx.field("typed_config", |cx| read(any, compile, cx));
                }
            }
        });
    }
    Some(Filters { gates, terminal: terminal? })
}
