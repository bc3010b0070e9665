//! The life of an accepted connection up to its network filters, and what is counted and logged of it as a whole.

use super::{
    accept::Listeners,
    active::{Active, ActiveTls, OpenSocket},
    balance::Place,
    compiled::{Chain, Listener},
    filters::{self, Accepted, Refused},
};
use crate::{
    base::{Address, ConnectionInfo, Drain, ResponseFlag, TlsConnection, next_connection_id},
    http::Thread,
    network::{Connection, FactsSlot},
    observe::{StreamInfo, format::Facts, stream_info::Metadata},
    transport::{
        Io, Meter,
        tls::{DRAIN_ON_TRUST_CHANGE, LAST_WORDS, Trust as _},
    },
};
use std::{cell::Cell, future::Future, pin::Pin, rc::Rc, sync::Arc, time::Instant};

/// A new connection: limited, then served by a task of its own.
pub fn begin(
    listeners: &Rc<Listeners>,
    active: &Rc<Active>,
    io: Io,
    local: Address,
    remote: Address,
    place: Option<Place>,
) {
    let Some(socket) = active.open_socket(&listeners.thread, &listeners.global_limit, place) else { return };
    let info = ConnectionInfo::accepted(next_connection_id(), local, remote);
    // In a box of its own: what is served need not hold the room that its beginnings took.
    let establishing = Box::pin(establish(listeners.clone(), socket, Accepted::new(io, info)));
    tokio::task::spawn_local(async move {
        if let Some(established) = establishing.await {
            established.serve().await;
        }
    });
}

/// A connection that is served. What is first goes first when it ends.
struct Established {
    serving: Pin<Box<dyn Future<Output = ()>>>,
    /// Ends once the client is trusted no longer.
    distrusted: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// The chain's: what is left of it is cut.
    cut: Drain,
    _open: Open,
}

impl Established {
    async fn serve(mut self) {
        tokio::select! {
            biased;
            () = &mut self.serving => {}
            () = self.cut.cut() => {}
            () = async {
                match &mut self.distrusted {
                    Some(distrusted) => distrusted.await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}

/// Takes a connection through listener filters and handshake to its chain's filters; `None` if it ended on the way.
async fn establish(listeners: Rc<Listeners>, mut socket: OpenSocket, mut accepted: Accepted) -> Option<Established> {
    let thread = &listeners.thread;
    let mut handed_over = false;
    let (active, listener) = loop {
        let active = socket.listener().clone();
        if !run_filters(&active, &mut accepted).await {
            accepted.refuse();
            log(&active.listener(), thread, accepted.info, Ended::InListenerFilters);
            return None;
        }
        let listener = active.listener();
        if handed_over || !listener.config.use_original_dst || !accepted.restored_destination {
            break (active, listener);
        }
        // Handed over once, and seen by the other listener's filters as if it had come there.
        match listeners.listener_for(&accepted.info.local, &active) {
            Some(other) => socket = socket.hand_to(other),
            None => break (active, listener),
        }
        handed_over = true;
    };
    let Some(found) = active.chain_for(&accepted.info) else {
        active.stats.no_filter_chain_match.inc();
        accepted.refuse();
        log(&listener, thread, accepted.info, Ended::WithoutChain);
        return None;
    };
    accepted.info.filter_chain = Some(found.chain.name.clone());
    let dynamic_metadata = tlv_metadata(&accepted.metadata);
    let (io, info) = accepted.into_io();
    let mut open = Open::new(active, listener, thread.clone(), info, dynamic_metadata.clone(), socket);
    let filters = found.filters?;
    let cut = found.drain.clone();
    let secured = match &found.tls {
        Some(tls) => tokio::select! {
            // Boxed: connections without TLS need not have room for it.
            secured = Box::pin(handshake(&mut open, tls, &found.chain, io)) => secured,
            () = cut.cut() => return None,
        },
        None => Ok(io),
    };
    let (io, is_secured) = match secured {
        Ok(io) => (io, true),
        // Nobody reads or writes any more; what is left is to count it.
        Err(Refusal) => (Io::Boxed(Box::new(tokio::io::empty())), false),
    };
    let io = match &open.facts {
        Some(_) => io.metered(open.bytes.clone()),
        None => io,
    };
    let looks_again = thread.runtime().boolean(DRAIN_ON_TRUST_CHANGE).unwrap_or(false);
    let watched = found.tls.clone().filter(|_| looks_again).zip(open.info.tls.clone()).zip(open.trust);
    let drain = if watched.is_some() { found.drain.child() } else { found.drain };
    let distrusted = watched.map(|((tls, client), trust)| -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(distrusted(tls, client, trust, drain.clone()))
    });
    let connection = Connection {
        io,
        info: open.info.clone(),
        is_tls: found.tls.is_some(),
        drain,
        thread: thread.clone(),
        dynamic_metadata,
        filter_state: Default::default(),
        facts: open.facts.clone(),
    };
    if !is_secured {
        filters.missed(connection);
        return None;
    }
    let Some(serving) = filters.serve(connection) else {
        open.active.stats.network_extension_config_missing.inc();
        return None;
    };
    Some(Established { serving, distrusted, cut, _open: open })
}

/// Ends once the client is trusted no longer and was told to go.
async fn distrusted(tls: Rc<ActiveTls>, client: Rc<TlsConnection>, trust: u64, drain: Drain) {
    tls.context.revisions.distrusts(&client.peer_chain, None, trust).await;
    tls.stats.ssl.distrusted.inc();
    drain.start();
    tokio::time::sleep(LAST_WORDS).await;
}

/// The transport refused the connection.
struct Refusal;

/// The connection under TLS, which `open` knows of then.
async fn handshake(open: &mut Open, tls: &ActiveTls, chain: &Chain, io: Io) -> Result<Io, Refusal> {
    let Some(revision) = tls.context.revisions.now() else {
        tls.stats.factory.downstream_context_secrets_not_ready.inc();
        *open.info.transport_failure.borrow_mut() = Some("TLS_error:_Secret_is_not_supplied_by_SDS".into());
        return Err(Refusal);
    };
    let accept = tls.context.accept(&revision, io, &open.info, &tls.stats.ssl);
    let timeout = chain.transport_socket_connect_timeout;
    let result = match timeout.is_zero() {
        true => accept.await,
        false => match tokio::time::timeout(timeout, accept).await {
            Ok(result) => result,
            Err(_) => {
                open.active.stats.downstream_cx_transport_socket_connect_timeout.inc();
                return Err(Refusal);
            }
        },
    };
    match result {
        Ok((io, facts)) => {
            if let Some(info) = Rc::get_mut(&mut open.info) {
                info.tls = Some(Rc::new(facts));
            }
            open.trust = Some(revision.trust());
            Ok(io)
        }
        Err(failure) => {
            tls.stats.ssl.failed(failure.cause);
            tracing::debug!(
                target: "connection",
                "[C{}] remote address:{},{}",
                open.info.id,
                open.info.remote,
                failure.words()
            );
            if !failure.details.is_empty() {
                *open.info.transport_failure.borrow_mut() = Some(failure.details);
            }
            Err(Refusal)
        }
    }
}

/// True if the connection may go on.
async fn run_filters(active: &Active, accepted: &mut Accepted) -> bool {
    let listener = active.listener();
    if listener.filters.is_empty() {
        return true;
    }
    let filter_stats = active.filter_stats();
    let waiting = PreConnection::new(active);
    let run = filters::run(&listener.filters, &filter_stats, accepted);
    let timeout = listener.config.listener_filters_timeout;
    let result = if timeout.is_zero() { Ok(run.await) } else { tokio::time::timeout(timeout, run).await };
    drop(waiting);
    match result {
        Ok(Ok(())) => true,
        Ok(Err(refused)) => {
            match refused {
                Refused::RemoteClose => active.stats.downstream_listener_filter_remote_close.inc(),
                Refused::Error => active.stats.downstream_listener_filter_error.inc(),
                Refused::WithoutConfig => active.stats.extension_config_missing.inc(),
                Refused::ByFilter => {}
            }
            false
        }
        Err(_) => {
            active.stats.downstream_pre_cx_timeout.inc();
            listener.config.continue_on_listener_filters_timeout
        }
    }
}

/// Counts a connection while listener filters have it.
struct PreConnection<'a>(&'a Active);

impl<'a> PreConnection<'a> {
    fn new(active: &'a Active) -> Self {
        active.stats.downstream_pre_cx_active.inc();
        Self(active)
    }
}

impl Drop for PreConnection<'_> {
    fn drop(&mut self) {
        self.0.stats.downstream_pre_cx_active.dec();
    }
}

fn tlv_metadata(found: &[(String, String, Vec<u8>)]) -> Metadata {
    let mut metadata = Metadata::default();
    for (namespace, key, value) in found {
        // As Envoy has it: a byte that is no text is an exclamation mark.
        let mut text = String::with_capacity(value.len());
        for chunk in value.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| '!'));
        }
        metadata.entry(namespace.as_str().into()).or_default().insert(key.clone(), text.into());
    }
    metadata
}

/// How far a connection came that no chain took.
enum Ended {
    InListenerFilters,
    WithoutChain,
}

fn log(listener: &Listener, thread: &Thread, info: ConnectionInfo, ended: Ended) {
    if listener.access_logs.is_empty() {
        return;
    }
    let mut stream = StreamInfo::new(Rc::new(info));
    if matches!(ended, Ended::WithoutChain) {
        stream.set_flag(ResponseFlag::NoRouteFound);
        stream.set_details("filter_chain_not_found");
    }
    write_log(listener, thread, &mut stream);
}

fn write_log(listener: &Listener, thread: &Thread, stream: &mut StreamInfo) {
    stream.points.end = Some(Instant::now());
    stream.listener_metadata = listener.facts.metadata.clone();
    listener.access_logs.log(&Facts::new(stream), &thread.runtime());
}

/// A connection that found its chain: counted for as long as this lives, then logged.
struct Open {
    active: Rc<Active>,
    listener: Arc<Listener>,
    thread: Rc<Thread>,
    info: Rc<ConnectionInfo>,
    /// Of the revision by which the client was verified.
    trust: Option<u64>,
    /// What the terminal filter leaves for the listener's log.
    facts: Option<FactsSlot>,
    /// Counted only if there is a log to show them.
    bytes: Rc<Bytes>,
    /// What listener filters found.
    metadata: Metadata,
    _socket: OpenSocket,
}

impl Open {
    fn new(
        active: Rc<Active>,
        listener: Arc<Listener>,
        thread: Rc<Thread>,
        info: ConnectionInfo,
        metadata: Metadata,
        socket: OpenSocket,
    ) -> Self {
        active.stats.downstream_cx_total.inc();
        active.stats.downstream_cx_active.inc();
        active.worker_stats.downstream_cx_total.inc();
        active.worker_stats.downstream_cx_active.inc();
        let facts = (!listener.access_logs.is_empty()).then(FactsSlot::default);
        let info = Rc::new(info);
        Self { active, listener, thread, info, trust: None, facts, bytes: Rc::default(), metadata, _socket: socket }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let stats = &self.active.stats;
        stats.downstream_cx_active.dec();
        self.active.worker_stats.downstream_cx_active.dec();
        stats.downstream_cx_destroy.inc();
        stats.downstream_cx_length_ms.record(self.info.start.elapsed().as_millis() as u64);
        if let Some(facts) = &self.facts {
            let mut stream = facts.take().unwrap_or_else(|| {
                let mut stream = StreamInfo::new(self.info.clone());
                (stream.bytes.received, stream.bytes.sent) = (self.bytes.received.get(), self.bytes.sent.get());
                stream.bytes.downstream_wire_received = stream.bytes.received;
                stream.bytes.downstream_wire_sent = stream.bytes.sent;
                Box::new(stream)
            });
            stream.dynamic_metadata.extend(std::mem::take(&mut self.metadata));
            write_log(&self.listener, &self.thread, &mut stream);
        }
    }
}

/// What passed on a connection as a whole.
#[derive(Default)]
struct Bytes {
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl Meter for Bytes {
    fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }
}
