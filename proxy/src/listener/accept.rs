//! One worker's listeners: which there are, and the loops that accept for them.
//!
//! Called by the worker with each snapshot. What happens to an accepted connection is in [`super::connection`].

use super::{
    active::Active,
    balance::{Given, Joined},
    compiled::Listener,
    connection,
    global_limit::GlobalLimit,
};
use crate::{base::Address, http::Thread, transport::Io};
use foldhash::HashMap;
use socket2::Socket;
use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::{TcpListener, UnixListener};

/// The listeners of one worker.
pub struct Listeners {
    pub(super) thread: Rc<Thread>,
    active: RefCell<HashMap<Box<str>, Rc<Active>>>,
    /// How long a removed listener's connections may go on.
    drain_time: Duration,
    /// Of all workers together.
    pub(super) global_limit: Arc<GlobalLimit>,
}

impl Listeners {
    pub fn new(thread: Rc<Thread>, drain_time: Duration, global_limit: Arc<GlobalLimit>) -> Rc<Self> {
        Rc::new(Self { thread, active: RefCell::default(), drain_time, global_limit })
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
                active.end(self.drain_time, false);
                self.thread.upstreams.internals().close(&name);
            }
        }
        for listener in listeners {
            let existing = self.active.borrow().get(listener.config.name.as_str()).cloned();
            match existing.map(|active| (active.listener(), active)) {
                Some((old, _)) if Arc::ptr_eq(&old, listener) => {}
                Some((old, active)) if Arc::ptr_eq(&old.sockets, &listener.sockets) && goes_on_as(&old, listener) => {
                    active.update(listener, &self.thread, self.drain_time);
                }
                Some((old, active)) => {
                    active.end(self.drain_time, Arc::ptr_eq(&old.sockets, &listener.sockets));
                    self.start(listener);
                }
                None => self.start(listener),
            }
        }
    }

    fn start(self: &Rc<Self>, listener: &Arc<Listener>) {
        let active = Active::new(listener, &self.thread);
        if listener.config.is_internal {
            let (listeners, of) = (Rc::downgrade(self), Rc::downgrade(&active));
            let accept = move |io: Io, local: Address, remote: Address| {
                if let (Some(listeners), Some(active)) = (listeners.upgrade(), of.upgrade())
                    && !active.is_stopped()
                {
                    connection::begin(&listeners, &active, io, local, remote, None);
                }
            };
            self.thread.upstreams.internals().listen(&listener.config.name, Rc::new(accept));
        }
        if listener.config.exact_balance {
            let joined = listener.sockets.balancer.join(self.thread.index);
            active.accepts_by(tokio::task::spawn_local(self.clone().take_handed(active.clone(), joined)));
        }
        match listener.sockets.of_worker(self.thread.index) {
            Ok(sockets) => {
                for (address, socket) in sockets {
                    let task = tokio::task::spawn_local(self.clone().accept(active.clone(), address, socket));
                    active.accepts_by(task);
                }
            }
            Err(error) => tracing::error!(target: "config", "listener '{}': {error}", listener.config.name),
        }
        self.active.borrow_mut().insert(listener.config.name.as_str().into(), active);
    }

    /// Begins a connection that was accepted, here or on the worker that is to have it.
    fn begin(self: &Rc<Self>, active: &Rc<Active>, io: Io, local: Address, remote: Address) {
        let listener = active.listener();
        if !listener.config.exact_balance {
            return connection::begin(self, active, io, local, remote, None);
        }
        match listener.sockets.balancer.give(self.thread.index, io, &local, &remote) {
            Ok(Given::Own(io, place)) => connection::begin(self, active, io, local, remote, Some(place)),
            Ok(Given::Other) => {}
            Err(error) => tracing::error!(target: "connection", "a connection cannot be handed over: {error}"),
        }
    }

    /// Begins connections that other workers accepted for this one.
    async fn take_handed(self: Rc<Self>, active: Rc<Active>, mut joined: Joined) {
        while let Some(handed) = joined.next().await {
            let (local, remote) = (handed.local.clone(), handed.remote.clone());
            match handed.open() {
                Ok((io, place)) => connection::begin(&self, &active, io, local, remote, Some(place)),
                Err(error) => tracing::error!(target: "connection", "a connection cannot be taken over: {error}"),
            }
        }
    }

    /// Stops accepting on the listeners that `which` takes; connections go on.
    pub fn stop_accepting(&self, which: impl Fn(&Listener) -> bool) {
        self.each(which, |active| active.stop_accepting());
    }

    /// Tells the connections of the listeners that `which` takes to end when they can.
    pub fn drain(&self, which: impl Fn(&Listener) -> bool) {
        self.each(which, |active| active.drain());
    }

    fn each(&self, which: impl Fn(&Listener) -> bool, act: impl Fn(&Active)) {
        self.active.borrow().values().filter(|active| which(&active.listener())).for_each(|active| act(active));
    }

    /// The listener that a restored destination belongs to: its very address, else any address with that port.
    /// Listeners that stopped take nothing.
    pub(super) fn listener_for(&self, destination: &Address, own: &Rc<Active>) -> Option<Rc<Active>> {
        let active = self.active.borrow();
        let others = || active.values().filter(|active| !Rc::ptr_eq(active, own) && !active.is_stopped());
        let exact = others().find(|active| active.listener().has_address(destination));
        let any = || {
            let wanted = destination.ip()?;
            others().find(|active| active.listener().has_any_address(wanted))
        };
        exact.or_else(any).cloned()
    }

    async fn accept(self: Rc<Self>, active: Rc<Active>, address: Address, socket: Socket) {
        let result = match &address {
            Address::Unix(_) => match UnixListener::from_std(socket.into()) {
                Ok(listener) => {
                    let unnamed = || Address::Unix("".into());
                    let accept = |cx: &mut Context<'_>| {
                        listener.poll_accept(cx).map_ok(|(stream, _)| (Io::Unix(stream), address.clone(), unnamed()))
                    };
                    self.accept_all(&active, accept).await
                }
                Err(error) => Err(error),
            },
            _ => match TcpListener::from_std(socket.into()) {
                Ok(listener) => {
                    let accept = |cx: &mut Context<'_>| {
                        listener.poll_accept(cx).map_ok(|(stream, peer)| {
                            let _ = stream.set_nodelay(true);
                            let local = stream.local_addr().map_or_else(|_| address.clone(), Address::from);
                            (Io::Tcp(stream), local, Address::from(peer))
                        })
                    };
                    self.accept_all(&active, accept).await
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = result {
            tracing::error!(target: "connection", "accepting on {address} failed: {error}");
        }
    }

    /// Accepts for ever, as many at a time as the listener allows.
    async fn accept_all(
        self: &Rc<Self>,
        active: &Rc<Active>,
        accept: impl Fn(&mut Context<'_>) -> Poll<io::Result<(Io, Address, Address)>>,
    ) -> io::Result<()> {
        loop {
            let most = active.listener().config.max_connections_to_accept_per_socket_event.unwrap_or(u32::MAX);
            let mut accepted = 0;
            let failed = poll_fn(|cx| {
                while accepted < most {
                    match accept(cx) {
                        Poll::Ready(Ok((io, local, remote))) => {
                            accepted += 1;
                            self.begin(active, io, local, remote);
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Some(error)),
                        Poll::Pending if accepted == 0 => return Poll::Pending,
                        Poll::Pending => break,
                    }
                }
                Poll::Ready(None)
            });
            let failed = failed.await;
            if accepted > 0 {
                active.stats.connections_accepted_per_socket_event.record(u64::from(accepted));
            }
            match failed {
                Some(error) => recover(&error).await?,
                None if accepted == most => tokio::task::yield_now().await,
                None => {}
            }
        }
    }
}

/// True if an update can count on with the same stats, and get its connections as before.
fn goes_on_as(old: &Listener, new: &Listener) -> bool {
    old.facts.stat_name == new.facts.stat_name && old.config.exact_balance == new.config.exact_balance
}

/// Without descriptors the kernel keeps the connection waiting; so does the worker, for a moment.
fn recover(error: &io::Error) -> impl Future<Output = io::Result<()>> + use<> {
    let (pause, result) = match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => (true, Ok(())),
        Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO | libc::EPERM) => (false, Ok(())),
        _ => (false, Err(io::Error::new(error.kind(), error.to_string()))),
    };
    async move {
        if pause {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        result
    }
}
