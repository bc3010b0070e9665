//! Network filters: what a filter chain does with a connection. The last one is terminal and runs it to its end.
//!
//! Adding one is its file and one line in [`TABLE`].

pub mod connection_limit;
pub mod direct_response;
pub mod discovered;
pub mod echo;
pub mod ext_authz;
pub mod http_connection_manager;
pub mod local_ratelimit;
pub mod ratelimit;
pub mod rbac;
pub mod sni_cluster;
pub mod tcp_proxy;

use crate::{
    base::{ConnectionInfo, Drain},
    http::{Thread, scopes::ScopeSeat, thread::RouteSlot},
    observe::{
        StreamInfo,
        access_log::LogWriter,
        stream_info::{FilterState, Metadata},
    },
    transport::Io,
    upstream::Names,
};
use discovered::{Category, CompileFor, Discovered, Seat};
use std::{
    any::Any as Guard,
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Weak},
};
use weft_config::{
    Context, config_source::ConfigSource, extension_config::FilterConfig, listener::NetworkFilter as Config,
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
    /// Seats for configurations that are discovered.
    pub seats: &'a mut Vec<Arc<dyn Seat>>,
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
#[derive(Default)]
pub struct RouteSlots {
    slots: HashMap<String, WantedRoutes>,
    /// Those that were asked for since [`RouteSlots::take_wanted`].
    wanted: Vec<String>,
    /// Connection managers' scopes, for as long as they live.
    scoped: Vec<Weak<ScopeSeat>>,
    /// Those that were added since [`RouteSlots::take_scoped`].
    new_scoped: Vec<Arc<ScopeSeat>>,
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

    /// A connection manager with scopes.
    pub fn add_scoped(&mut self, seat: &Arc<ScopeSeat>) {
        self.scoped.retain(|seat| seat.strong_count() > 0);
        self.scoped.push(Arc::downgrade(seat));
        self.new_scoped.push(seat.clone());
    }

    /// The scopes added since the last call: those of one chain.
    pub fn take_scoped(&mut self) -> Vec<Arc<ScopeSeat>> {
        std::mem::take(&mut self.new_scoped)
    }

    /// All scopes that are in use.
    pub fn scoped(&self) -> Vec<Arc<ScopeSeat>> {
        self.scoped.iter().filter_map(Weak::upgrade).collect()
    }

    /// Names that were asked for, besides those since [`RouteSlots::take_wanted`].
    pub fn want(&mut self, names: Vec<String>) {
        self.wanted.extend(names);
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

/// A filter of either kind.
enum Compiled {
    Gate(Arc<dyn GateFilter>),
    Terminal(Arc<dyn NetworkFilter>),
}

/// A place in a chain.
enum Place {
    Fixed(Compiled),
    Discovered(Arc<Discovered<Compiled>>),
}

/// A chain's compiled filters.
pub struct Filters {
    gates: Vec<Place>,
    terminal: Place,
}

/// One worker's part of a filter of either kind.
#[derive(Clone)]
enum Active {
    Gate(Rc<dyn Gate>),
    Terminal(Rc<dyn Terminal>),
}

/// One worker's part of a place in a chain.
enum ActivePlace {
    Fixed(Active),
    Discovered { seat: Arc<Discovered<Compiled>>, active: RefCell<Option<(Arc<Compiled>, Active)>>, thread: Rc<Thread> },
}

/// One worker's part of a chain's filters.
pub struct ActiveFilters {
    gates: Vec<ActivePlace>,
    terminal: ActivePlace,
}

impl Compiled {
    fn activate(&self, thread: &Rc<Thread>) -> Active {
        match self {
            Self::Gate(gate) => Active::Gate(gate.clone().activate(thread)),
            Self::Terminal(terminal) => Active::Terminal(terminal.clone().activate(thread)),
        }
    }
}

impl Place {
    fn activate(&self, thread: &Rc<Thread>) -> ActivePlace {
        match self {
            Self::Fixed(compiled) => ActivePlace::Fixed(compiled.activate(thread)),
            Self::Discovered(seat) => {
                ActivePlace::Discovered { seat: seat.clone(), active: RefCell::default(), thread: thread.clone() }
            }
        }
    }
}

impl ActivePlace {
    /// The filter of this moment; `None` if its configuration has not been found.
    fn get(&self) -> Option<Active> {
        match self {
            Self::Fixed(active) => Some(active.clone()),
            Self::Discovered { seat, active, thread } => {
                let current = seat.get()?;
                let mut cached = active.borrow_mut();
                if let Some((of, active)) = &*cached
                    && Arc::ptr_eq(of, &current)
                {
                    return Some(active.clone());
                }
                let active = current.activate(thread);
                *cached = Some((current, active.clone()));
                Some(active)
            }
        }
    }

    fn gate(&self) -> Option<Rc<dyn Gate>> {
        match self.get()? {
            Active::Gate(gate) => Some(gate),
            Active::Terminal(_) => None,
        }
    }

    fn terminal(&self) -> Option<Rc<dyn Terminal>> {
        match self.get()? {
            Active::Terminal(terminal) => Some(terminal),
            Active::Gate(_) => None,
        }
    }
}

impl Filters {
    pub fn activate(&self, thread: &Rc<Thread>) -> ActiveFilters {
        ActiveFilters {
            gates: self.gates.iter().map(|gate| gate.activate(thread)).collect(),
            terminal: self.terminal.activate(thread),
        }
    }
}

impl ActiveFilters {
    /// The transport refused a connection; the terminal filter may count what it would have served.
    pub fn missed(&self, connection: Connection) {
        if let Some(terminal) = self.terminal.terminal() {
            terminal.missed(connection);
        }
    }

    /// Runs a connection to its end; `None` if a filter's configuration has not been found: it is to be closed. Dropping
    /// the future closes it.
    pub fn serve(self: Rc<Self>, connection: Connection) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let terminal = self.terminal.terminal()?;
        if self.gates.is_empty() {
            return Some(terminal.serve(connection));
        }
        let gates = self.gates.iter().map(ActivePlace::gate).collect::<Option<Vec<_>>>()?;
        // In a box of its own: a connection that was admitted need not hold the room that the gates took.
        let admitting = Box::pin(admit(gates, terminal, connection));
        Some(Box::pin(async move {
            if let Some((serving, _held)) = admitting.await {
                serving.await;
            }
        }))
    }
}

async fn admit(
    gates: Vec<Rc<dyn Gate>>,
    terminal: Rc<dyn Terminal>,
    mut connection: Connection,
) -> Option<(Pin<Box<dyn Future<Output = ()>>>, Vec<Box<dyn Guard>>)> {
    let mut held = Vec::new();
    for gate in &gates {
        match gate.admit(&mut connection).await {
            Admission::Pass => {}
            Admission::Hold(guard) => held.push(guard),
            Admission::Close => {
                terminal.missed(connection);
                return None;
            }
        }
    }
    Some((terminal.serve(connection), held))
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
    Factory {
        name: "envoy.filters.network.local_ratelimit",
        type_name: local_ratelimit::TYPE,
        compile: Compile::Gate(local_ratelimit::compile),
    },
    Factory {
        name: "envoy.filters.network.ratelimit",
        type_name: ratelimit::TYPE,
        compile: Compile::Gate(ratelimit::compile),
    },
    Factory {
        name: "envoy.filters.network.ext_authz",
        type_name: ext_authz::TYPE,
        compile: Compile::Gate(ext_authz::compile),
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
        let place = cx.element("filters", i, |cx| match &filter.config {
            FilterConfig::Typed(any) => compile_one(&filter.name, any, i == last, compile, cx).map(Place::Fixed),
            FilterConfig::Discovery(source) => {
                let compile_for: CompileFor<Compiled> = match i == last {
                    true => |any, compile, cx| compile_one("", any, true, compile, cx),
                    false => |any, compile, cx| compile_one("", any, false, compile, cx),
                };
                Discovered::new(Category::Network, &filter.name, source, compile_for, compile, cx)
                    .map(Place::Discovered)
            }
        });
        match place {
            Some(place) if i == last => terminal = Some(place),
            place => gates.extend(place),
        }
    }
    Some(Filters { gates, terminal: terminal? })
}

/// Compiles one filter, which is the last of its chain or not.
fn compile_one(
    name: &str,
    any: &Any,
    is_last: bool,
    compile: &mut CompileContext<'_>,
    cx: &mut Context,
) -> Option<Compiled> {
    let type_name = any.type_url.rsplit('/').next().unwrap_or_default();
    let Some(factory) = TABLE.iter().find(|factory| factory.type_name == type_name) else {
        let known: Vec<_> = TABLE.iter().map(|factory| factory.type_name).collect();
        cx.problem_at(
            "typed_config",
            format!("found {type_name}, which is not supported; allowed: {}", known.join(", ")),
        );
        return None;
    };
    let named = || format!("named {name} of type {}", factory.name);
    match factory.compile {
        Compile::Gate(_) if is_last => {
            cx.problem(format!("non-terminal filter {} is the last filter in a network filter chain", named()));
            None
        }
        Compile::Terminal(_) if !is_last => {
            cx.problem(format!("terminal filter {} must be the last filter in a network filter chain", named()));
            None
        }
        Compile::Gate(read) => cx.field("typed_config", |cx| read(any, compile, cx)).map(Compiled::Gate),
        Compile::Terminal(read) => cx.field("typed_config", |cx| read(any, compile, cx)).map(Compiled::Terminal),
    }
}
