//! One listener on one worker: its chains, its stats, its share of the drain.

use super::{
    balance::Place,
    compiled::{Chain, Listener},
    filters::FilterStats,
    global_limit::{GlobalLimit, Seat},
    stats::{ListenerStats, WorkerListenerStats},
};
use crate::{
    base::{ConnectionInfo, Drain},
    http::Thread,
    network::ActiveFilters,
    transport::tls::{
        ServerContext, SslStats,
        stats::{Expirations, ServerSocketFactoryStats},
    },
};
use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::JoinHandle;

/// One listener on one worker. An update in place changes what it holds; it stays as long as the sockets do.
pub struct Active {
    listener: RefCell<Arc<Listener>>,
    /// As the listener has them, the default chain last.
    chains: RefCell<Vec<ActiveChain>>,
    pub stats: Arc<ListenerStats>,
    pub worker_stats: Arc<WorkerListenerStats>,
    filter_stats: RefCell<Rc<FilterStats>>,
    /// From the first chain with TLS on.
    tls_stats: OnceCell<Rc<TlsStats>>,
    /// The TLS of the chains of now, for stats.
    tls_contexts: Arc<Mutex<Vec<Arc<ServerContext>>>>,
    drain: Drain,
    accepting: RefCell<Vec<JoinHandle<()>>>,
    stopped: Cell<bool>,
    /// Sockets that are open, those in listener filters included.
    sockets: Cell<u64>,
    /// The runtime key of the limit for them.
    limit_key: Box<str>,
}

/// A chain's TLS and where this worker counts it.
pub struct ActiveTls {
    pub context: Arc<ServerContext>,
    pub stats: Rc<TlsStats>,
}

/// What all chains of a listener count together on this worker.
pub struct TlsStats {
    pub ssl: Arc<SslStats>,
    pub factory: Arc<ServerSocketFactoryStats>,
}

impl ActiveTls {
    fn new(context: &Arc<ServerContext>, stats: &Rc<TlsStats>) -> Self {
        Self { context: context.clone(), stats: stats.clone() }
    }
}

/// A chain and what this worker has of it.
#[derive(Clone)]
pub struct ActiveChain {
    pub chain: Arc<Chain>,
    /// `None`: the chain has none, its connections are closed.
    pub filters: Option<Rc<ActiveFilters>>,
    pub tls: Option<Rc<ActiveTls>>,
    pub drain: Drain,
}

impl Active {
    /// A listener that does not accept yet.
    pub fn new(listener: &Arc<Listener>, thread: &Rc<Thread>) -> Rc<Self> {
        let prefix = format!("listener.{}", listener.facts.stat_name);
        let name = &listener.config.name;
        let active = Rc::new(Self {
            stats: thread.registry.attach(&prefix),
            worker_stats: thread.registry.attach(&format!("{prefix}.worker_{}", thread.index)),
            filter_stats: RefCell::new(Rc::new(FilterStats::new(&listener.filters, thread))),
            chains: RefCell::default(),
            tls_stats: OnceCell::new(),
            tls_contexts: Arc::default(),
            listener: RefCell::new(listener.clone()),
            drain: thread.drain.child(),
            accepting: RefCell::default(),
            stopped: Cell::new(false),
            sockets: Cell::new(0),
            limit_key: format!("envoy.resource_limits.listener.{name}.connection_limit").into(),
        });
        active.take_chains(listener, thread, Duration::ZERO);
        active
    }

    /// What it is now.
    pub fn listener(&self) -> Arc<Listener> {
        self.listener.borrow().clone()
    }

    pub fn filter_stats(&self) -> Rc<FilterStats> {
        self.filter_stats.borrow().clone()
    }

    /// The chain for a connection.
    pub fn chain_for(&self, info: &ConnectionInfo) -> Option<ActiveChain> {
        let number = self.listener.borrow().chain_for(info)?;
        self.chains.borrow().get(number).cloned()
    }

    /// Changes to another version with the same sockets; chains that are gone drain.
    pub fn update(&self, listener: &Arc<Listener>, thread: &Rc<Thread>, drain_time: Duration) {
        *self.filter_stats.borrow_mut() = Rc::new(FilterStats::new(&listener.filters, thread));
        *self.listener.borrow_mut() = listener.clone();
        self.take_chains(listener, thread, drain_time);
    }

    fn take_chains(&self, listener: &Arc<Listener>, thread: &Rc<Thread>, drain_time: Duration) {
        let mut chains = self.chains.borrow_mut();
        let mut before = std::mem::take(&mut *chains);
        for chain in listener.chains.iter().chain(&listener.default_chain) {
            let kept = before.iter().position(|old| Arc::ptr_eq(&old.chain, chain)).map(|at| before.swap_remove(at));
            chains.push(kept.unwrap_or_else(|| ActiveChain {
                chain: chain.clone(),
                filters: chain.filters.as_ref().map(|filters| Rc::new(filters.activate(thread))),
                tls: chain.tls.as_ref().map(|tls| Rc::new(ActiveTls::new(tls, &self.tls_stats(thread)))),
                drain: self.drain.child(),
            }));
        }
        let contexts = chains.iter().filter_map(|chain| chain.tls.as_ref()).map(|tls| tls.context.clone()).collect();
        *self.tls_contexts.lock().unwrap_or_else(PoisonError::into_inner) = contexts;
        drop(chains);
        before.into_iter().for_each(|old| old.end(drain_time));
    }

    fn tls_stats(&self, thread: &Rc<Thread>) -> Rc<TlsStats> {
        let prefix = format!("listener.{}", self.listener.borrow().facts.stat_name);
        let attach = || {
            // What is the same on all workers is shown by one.
            if thread.index == 0 {
                let contexts = self.tls_contexts.clone();
                let read = move || {
                    let contexts = contexts.lock().unwrap_or_else(PoisonError::into_inner);
                    contexts.iter().flat_map(|context| context.expirations()).collect()
                };
                thread.registry.attach_group(&format!("{prefix}.ssl.certificate"), Arc::new(Expirations::new(read)));
            }
            Rc::new(TlsStats {
                ssl: thread.registry.attach(&format!("{prefix}.ssl")),
                factory: thread.registry.attach(&format!("{prefix}.server_ssl_socket_factory")),
            })
        };
        self.tls_stats.get_or_init(attach).clone()
    }

    pub fn accepts_by(&self, task: JoinHandle<()>) {
        self.accepting.borrow_mut().push(task);
    }

    /// Accepts no more, and closes the sockets; connections go on.
    pub fn stop_accepting(&self) {
        self.leave_sockets();
        self.listener.borrow().sockets.close();
    }

    fn leave_sockets(&self) {
        self.stopped.set(true);
        self.accepting.borrow_mut().drain(..).for_each(|task| task.abort());
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Tells connections to end when they can.
    pub fn drain(&self) {
        self.drain.start();
    }

    /// The listener is gone, and its sockets with it unless another took them over: its connections drain, and what is
    /// left after `drain_time` is cut.
    pub fn end(&self, drain_time: Duration, keeps_sockets: bool) {
        if keeps_sockets {
            self.leave_sockets()
        } else {
            self.stop_accepting()
        };
        self.drain.start();
        self.chains.borrow_mut().drain(..).for_each(|chain| chain.end(drain_time));
    }

    /// Counts a socket that was accepted; `None` if there are as many as are allowed here or of all listeners.
    pub fn open_socket(
        self: &Rc<Self>,
        thread: &Thread,
        global: &Arc<GlobalLimit>,
        place: Option<Place>,
    ) -> Option<OpenSocket> {
        let runtime = thread.runtime();
        let Some(seat) = global.take(&runtime, self.listener.borrow().config.ignore_global_limit) else {
            self.stats.downstream_global_cx_overflow.inc();
            return None;
        };
        let limit = runtime.integer(&self.limit_key);
        if limit.is_some_and(|limit| self.sockets.get() >= limit) {
            self.stats.downstream_cx_overflow.inc();
            return None;
        }
        self.sockets.set(self.sockets.get() + 1);
        Some(OpenSocket { listener: self.clone(), seat: Some(seat), _place: place })
    }
}

impl ActiveChain {
    fn end(self, drain_time: Duration) {
        self.drain.start();
        self.drain.cut_after(drain_time);
    }
}

/// A socket that counts towards its listener's limit, and that of all, for as long as this lives.
pub struct OpenSocket {
    listener: Rc<Active>,
    seat: Option<Seat>,
    /// Where the listener counts its workers' connections.
    _place: Option<Place>,
}

impl OpenSocket {
    pub fn listener(&self) -> &Rc<Active> {
        &self.listener
    }

    /// The socket counts for another listener from now on.
    pub fn hand_to(mut self, listener: Rc<Active>) -> Self {
        listener.sockets.set(listener.sockets.get() + 1);
        Self { seat: self.seat.take(), listener, _place: None }
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.listener.sockets.set(self.listener.sockets.get() - 1);
    }
}
