//! One worker's listeners: accepting, running listener filters, handing connections to their chains, draining.

use super::{
    compiled::{Chain, Listener},
    filters::{self, Accepted, FilterStats, Refused},
    stats::{ListenerStats, WorkerListenerStats},
};
use crate::{
    base::{Address, ConnectionInfo, Drain, ResponseFlag},
    http::Thread,
    network::{Connection, Terminal},
    observe::{StreamInfo, format::Facts, stream_info::Metadata},
    transport::Io,
};
use bytes::BytesMut;
use foldhash::HashMap;
use socket2::Socket;
use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};

/// The connections of the process are numbered.
static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// The listeners of one worker.
pub struct Listeners {
    thread: Rc<Thread>,
    active: RefCell<HashMap<Box<str>, Rc<Active>>>,
    /// How long a removed listener's connections may go on.
    drain_time: Duration,
}

/// One listener on one worker.
struct Active {
    listener: RefCell<Arc<Listener>>,
    chains: RefCell<Vec<ActiveChain>>,
    stats: Rc<Stats>,
    filter_stats: RefCell<Rc<FilterStats>>,
    drain: Drain,
    accepting: RefCell<Vec<JoinHandle<()>>>,
    connections: Cell<u64>,
}

struct ActiveChain {
    chain: Arc<Chain>,
    terminal: Option<Rc<dyn Terminal>>,
    drain: Drain,
}

struct Stats {
    listener: Arc<ListenerStats>,
    worker: Arc<WorkerListenerStats>,
}

impl Listeners {
    pub fn new(thread: Rc<Thread>, drain_time: Duration) -> Rc<Self> {
        Rc::new(Self { thread, active: RefCell::default(), drain_time })
    }

    /// Makes the worker's listeners those given: what is the same stays, what changed in its chains is changed in
    /// place, what went drains.
    pub fn apply(self: &Rc<Self>, listeners: &[Arc<Listener>]) {
        let gone: Vec<Box<str>> = {
            let active = self.active.borrow();
            active.keys().filter(|name| !listeners.iter().any(|l| *l.config.name == ***name)).cloned().collect()
        };
        for name in gone {
            if let Some(active) = self.active.borrow_mut().remove(&name) {
                active.stop(self.drain_time);
            }
        }
        for listener in listeners {
            let existing = self.active.borrow().get(listener.config.name.as_str()).cloned();
            match existing {
                Some(active) if Arc::ptr_eq(&active.listener.borrow(), listener) => {}
                Some(active) if Arc::ptr_eq(&active.listener.borrow().sockets, &listener.sockets) => {
                    active.update(listener, &self.thread, self.drain_time);
                }
                Some(active) => {
                    active.stop(self.drain_time);
                    self.start(listener);
                }
                None => self.start(listener),
            }
        }
    }

    fn start(self: &Rc<Self>, listener: &Arc<Listener>) {
        let prefix = format!("listener.{}", listener.facts.stat_name);
        let registry = &self.thread.registry;
        let active = Rc::new(Active {
            stats: Rc::new(Stats {
                listener: registry.attach(&prefix),
                worker: registry.attach(&format!("{prefix}.worker_{}", self.thread.index)),
            }),
            filter_stats: RefCell::new(Rc::new(FilterStats::new(&listener.filters, &self.thread, &prefix))),
            chains: RefCell::default(),
            listener: RefCell::new(listener.clone()),
            drain: self.thread.drain.child(),
            accepting: RefCell::default(),
            connections: Cell::new(0),
        });
        active.update(listener, &self.thread, self.drain_time);
        match listener.sockets.of_worker(self.thread.index) {
            Ok(sockets) => {
                for (address, socket) in sockets {
                    let task = tokio::task::spawn_local(self.clone().accept(active.clone(), address, socket));
                    active.accepting.borrow_mut().push(task);
                }
            }
            Err(error) => tracing::error!(target: "config", "listener '{}': {error}", listener.config.name),
        }
        self.active.borrow_mut().insert(listener.config.name.as_str().into(), active);
    }

    /// Stops accepting on the listeners that `which` takes; connections go on.
    pub fn stop_accepting(&self, which: impl Fn(&Listener) -> bool) {
        for active in self.active.borrow().values().filter(|active| which(&active.listener.borrow())) {
            active.accepting.borrow_mut().drain(..).for_each(|task| task.abort());
        }
    }

    /// Tells the connections of the listeners that `which` takes to end when they can.
    pub fn drain(&self, which: impl Fn(&Listener) -> bool) {
        for active in self.active.borrow().values().filter(|active| which(&active.listener.borrow())) {
            active.drain.start();
        }
    }

    async fn accept(self: Rc<Self>, active: Rc<Active>, address: Address, socket: Socket) {
        let result = match &address {
            Address::Unix(_) => self.accept_unix(&active, &address, socket).await,
            _ => self.accept_tcp(&active, &address, socket).await,
        };
        if let Err(error) = result {
            tracing::error!(target: "connection", "accepting on {address} failed: {error}");
        }
    }

    async fn accept_tcp(self: &Rc<Self>, active: &Rc<Active>, address: &Address, socket: Socket) -> io::Result<()> {
        let listener = TcpListener::from_std(socket.into())?;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    active.stats.listener.connections_accepted_per_socket_event_total.inc();
                    let _ = stream.set_nodelay(true);
                    let local = stream.local_addr().map_or_else(|_| address.clone(), Address::from);
                    self.begin(active, Io::Tcp(stream), local, Address::from(peer));
                }
                Err(error) => out_of_descriptors(&error).await?,
            }
        }
    }

    async fn accept_unix(self: &Rc<Self>, active: &Rc<Active>, address: &Address, socket: Socket) -> io::Result<()> {
        let listener = UnixListener::from_std(socket.into())?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.begin(active, Io::Unix(stream), address.clone(), Address::Unix("".into())),
                Err(error) => out_of_descriptors(&error).await?,
            }
        }
    }

    /// A new connection: counted, limited, and served by a task of its own.
    fn begin(self: &Rc<Self>, active: &Rc<Active>, io: Io, local: Address, remote: Address) {
        let stats = &active.stats;
        let name = &active.listener.borrow().config.name;
        let limit = self.thread.runtime().integer(&format!("envoy.resource_limits.listener.{name}.connection_limit"));
        if limit.is_some_and(|limit| active.connections.get() >= limit) {
            stats.listener.downstream_cx_overflow.inc();
            return;
        }
        stats.listener.downstream_cx_total.inc();
        stats.worker.downstream_cx_total.inc();
        let id = NEXT_CONNECTION.fetch_add(1, Relaxed);
        let info = ConnectionInfo::accepted(id, local, remote);
        let counted = Counted::new(active.clone());
        tokio::task::spawn_local(self.clone().serve(counted, io, info));
    }

    async fn serve(self: Rc<Self>, counted: Counted, io: Io, info: ConnectionInfo) {
        let mut active = counted.0.clone();
        let mut accepted =
            Accepted { io, info, buffer: BytesMut::new(), metadata: Vec::new(), restored_destination: false };
        let listener = active.listener.borrow().clone();
        if !listener.filters.is_empty() && !self.run_filters(&active, &listener, &mut accepted).await {
            return;
        }
        let mut listener = listener;
        let mut _handed_over = None;
        if listener.config.use_original_dst
            && accepted.restored_destination
            && let Some(other) = self.listener_for(&accepted.info.local, &listener)
        {
            active = other;
            listener = active.listener.borrow().clone();
            active.stats.listener.downstream_cx_total.inc();
            active.stats.worker.downstream_cx_total.inc();
            _handed_over = Some(Counted::new(active.clone()));
        }
        let Some(chain) = listener.chain_for(&accepted.info) else {
            active.stats.listener.no_filter_chain_match.inc();
            self.log_no_chain(&listener, accepted.info);
            return;
        };
        let (terminal, drain) = {
            let chains = active.chains.borrow();
            let Some(found) = chains.iter().find(|active| Arc::ptr_eq(&active.chain, chain)) else { return };
            (found.terminal.clone(), found.drain.clone())
        };
        let dynamic_metadata = tlv_metadata(&accepted.metadata);
        let (io, info) = accepted.into_io();
        let Some(terminal) = terminal else { return };
        let cut = drain.clone();
        let connection = Connection { io, info: Rc::new(info), drain, thread: self.thread.clone(), dynamic_metadata };
        tokio::select! {
            () = terminal.serve(connection) => {}
            () = cut.cut() => {}
        }
    }

    /// True if the connection may go on.
    async fn run_filters(&self, active: &Rc<Active>, listener: &Listener, accepted: &mut Accepted) -> bool {
        let stats = active.stats.clone();
        let filter_stats = active.filter_stats.borrow().clone();
        stats.listener.downstream_pre_cx_active.inc();
        let run = filters::run(&listener.filters, &filter_stats, accepted);
        let timeout = listener.config.listener_filters_timeout;
        let result = if timeout.is_zero() { Ok(run.await) } else { tokio::time::timeout(timeout, run).await };
        stats.listener.downstream_pre_cx_active.dec();
        match result {
            Ok(Ok(())) => true,
            Ok(Err(Refused::RemoteClose)) => {
                stats.listener.downstream_listener_filter_remote_close.inc();
                false
            }
            Ok(Err(Refused::Error)) => {
                stats.listener.downstream_listener_filter_error.inc();
                false
            }
            Err(_) => {
                stats.listener.downstream_pre_cx_timeout.inc();
                listener.config.continue_on_listener_filters_timeout
            }
        }
    }

    /// The listener that a restored destination belongs to: its very address, else any address with that port.
    fn listener_for(&self, destination: &Address, own: &Listener) -> Option<Rc<Active>> {
        let active = self.active.borrow();
        let others = || active.values().filter(|a| a.listener.borrow().config.name != own.config.name);
        let exact = others().find(|a| a.listener.borrow().has_address(destination));
        let port = destination.ip()?.port();
        let any = || {
            others().find(|a| {
                a.listener
                    .borrow()
                    .sockets
                    .addresses
                    .iter()
                    .any(|a| a.ip().is_some_and(|ip| ip.ip().is_unspecified() && ip.port() == port))
            })
        };
        exact.or_else(any).cloned()
    }

    fn log_no_chain(&self, listener: &Listener, info: ConnectionInfo) {
        if listener.access_logs.is_empty() {
            return;
        }
        let mut stream = StreamInfo::new(Rc::new(info));
        stream.set_flag(ResponseFlag::NoRouteFound);
        stream.set_details("filter_chain_not_found");
        stream.points.end = Some(Instant::now());
        stream.listener_metadata = listener.facts.metadata.clone();
        listener.access_logs.log(&Facts::new(&stream), &self.thread.runtime());
    }
}

/// Without descriptors the kernel keeps the connection waiting; so does the worker, for a moment.
async fn out_of_descriptors(error: &io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        }
        Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => Ok(()),
        _ => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

fn tlv_metadata(found: &[(String, String, Vec<u8>)]) -> Metadata {
    let mut metadata = Metadata::default();
    for (namespace, key, value) in found {
        let text = String::from_utf8_lossy(value).into_owned();
        metadata.entry(namespace.as_str().into()).or_default().insert(key.clone(), text.into());
    }
    metadata
}

impl Active {
    /// Takes over a listener's chains; those that are gone drain.
    fn update(self: &Rc<Self>, listener: &Arc<Listener>, thread: &Rc<Thread>, drain_time: Duration) {
        let mut chains = self.chains.borrow_mut();
        let mut before = std::mem::take(&mut *chains);
        for chain in listener.chains.iter().chain(&listener.default_chain) {
            let kept = before.iter().position(|old| Arc::ptr_eq(&old.chain, chain)).map(|at| before.swap_remove(at));
            chains.push(kept.unwrap_or_else(|| ActiveChain {
                chain: chain.clone(),
                terminal: chain.terminal.clone().map(|terminal| terminal.activate(thread)),
                drain: self.drain.child(),
            }));
        }
        for old in before {
            old.end(drain_time);
        }
        if !Arc::ptr_eq(&self.listener.borrow(), listener) {
            let prefix = format!("listener.{}", listener.facts.stat_name);
            *self.filter_stats.borrow_mut() = Rc::new(FilterStats::new(&listener.filters, thread, &prefix));
        }
        *self.listener.borrow_mut() = listener.clone();
    }

    fn stop(&self, drain_time: Duration) {
        self.accepting.borrow_mut().drain(..).for_each(|task| task.abort());
        self.drain.start();
        for chain in self.chains.borrow_mut().drain(..) {
            chain.end(drain_time);
        }
    }
}

impl ActiveChain {
    /// Drains the chain's connections; what is left after the drain time is cut by its terminal, which watches for that.
    fn end(self, drain_time: Duration) {
        self.drain.start();
        self.drain.cut_after(drain_time);
    }
}

/// Counts a connection as active for as long as it lives.
struct Counted(Rc<Active>, Instant);

impl Counted {
    fn new(active: Rc<Active>) -> Self {
        active.connections.set(active.connections.get() + 1);
        active.stats.listener.downstream_cx_active.inc();
        active.stats.worker.downstream_cx_active.inc();
        Self(active, Instant::now())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let active = &self.0;
        active.connections.set(active.connections.get() - 1);
        active.stats.listener.downstream_cx_active.dec();
        active.stats.worker.downstream_cx_active.dec();
        active.stats.listener.downstream_cx_destroy.inc();
        active.stats.listener.downstream_cx_length_ms.record(self.1.elapsed().as_millis() as u64);
    }
}
