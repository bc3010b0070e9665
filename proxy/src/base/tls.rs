//! What TLS established on one connection, downstream or upstream, for all who ask later: logs, matchers, RBAC, XFCC.

use super::Certificate;
use std::{rc::Rc, sync::Arc};

/// The facts of a connection's TLS. Filled after the handshake, unchanged after that.
#[derive(Debug)]
pub struct TlsConnection {
    /// As Envoy writes it: `TLSv1.2`, `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL's name of the cipher suite.
    pub cipher: &'static str,
    /// The key exchange group's name as the TLS registry has it, e.g. `X25519MLKEM768`.
    pub group: &'static str,
    /// Lower-case hex; empty where there is none (TLS 1.3).
    pub session_id: Box<str>,
    /// What ALPN agreed on.
    pub alpn: Option<Box<[u8]>>,
    /// The certificate of ours that was presented.
    pub local: Option<Arc<Certificate>>,
    /// The peer's own certificate; `None` if it presented none.
    pub peer: Option<Rc<Certificate>>,
    /// All that the peer presented, DER, its own first.
    pub peer_chain: Rc<[Box<[u8]>]>,
    /// The peer's certificate was verified against something that is trusted.
    pub peer_validated: bool,
    /// The session was resumed.
    pub resumed: bool,
}
