//! What is known of a downstream connection, shared by all its streams.

use super::{Address, TlsConnection};
use std::{
    borrow::Cow,
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

/// The number of the next connection of this process, from 1: downstream and upstream ones share the row.
pub fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// The facts of one downstream connection. Listener filters and the transport fill it before the network filters run;
/// after that only the connection's termination details change.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// By [`next_connection_id`].
    pub id: u64,
    pub start: Instant,
    /// The destination: where the client meant to go (after original_dst and PROXY protocol).
    pub local: Address,
    /// The address that the connection was accepted on.
    pub direct_local: Address,
    /// The source, after PROXY protocol.
    pub remote: Address,
    /// The peer of the socket.
    pub direct_remote: Address,
    /// TLVs of its PROXY header that are passed on.
    pub tlvs: Vec<(u8, Vec<u8>)>,
    /// `raw_buffer` or `tls`, as detected or used.
    pub transport_protocol: &'static str,
    /// SNI, if any.
    pub requested_server_name: Option<Box<str>>,
    /// What TLS established, where the connection speaks it.
    pub tls: Option<Rc<TlsConnection>>,
    /// ALPN values that the client offered or that http_inspector detected.
    pub application_protocols: Vec<Box<[u8]>>,
    /// `%FILTER_CHAIN_NAME%`; empty for a chain without one.
    pub filter_chain: Option<Arc<str>>,
    /// Details for `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: RefCell<Option<Cow<'static, str>>>,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure: RefCell<Option<String>>,
}

impl ConnectionInfo {
    /// A connection accepted now on `local` from `remote`, before any listener filter ran.
    pub fn accepted(id: u64, local: Address, remote: Address) -> Self {
        Self {
            id,
            start: Instant::now(),
            direct_local: local.clone(),
            local,
            direct_remote: remote.clone(),
            remote,
            tlvs: Vec::new(),
            transport_protocol: "raw_buffer",
            requested_server_name: None,
            tls: None,
            application_protocols: Vec::new(),
            filter_chain: None,
            termination_details: RefCell::new(None),
            transport_failure: RefCell::new(None),
        }
    }
}
