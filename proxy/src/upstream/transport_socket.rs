//! What stands between a cluster's bytes and its sockets, compiled.
//!
//! Made with the cluster on the control thread; hosts refer to the one that is theirs, and tell by pointer whether they
//! are still reached in the same way.

use crate::transport::tls::{ClientContext, Secrets};
use std::sync::Arc;
use weft_config::{
    Context,
    cluster::{ProxyProtocol, TransportSocket},
};

/// A transport socket towards hosts.
#[derive(Debug)]
pub enum UpstreamSocket {
    Raw,
    Tls(Arc<ClientContext>),
    /// A PROXY header goes ahead of what the inner one sends.
    ProxyProtocol(ProxyProtocol, Box<UpstreamSocket>),
}

impl UpstreamSocket {
    /// Compiles a socket; a context that waits for secrets has no revision yet.
    pub fn compile(config: &TransportSocket, secrets: &dyn Secrets, cx: &mut Context) -> Self {
        match config {
            TransportSocket::RawBuffer => Self::Raw,
            TransportSocket::Tls(tls) => {
                let compile = |cx: &mut Context| ClientContext::compile(tls.clone(), secrets, cx);
                Self::Tls(Arc::new(cx.field("typed_config", compile)))
            }
            TransportSocket::ProxyProtocol(proxy) => {
                let inner = cx.field("typed_config.transport_socket", |cx| Self::compile(&proxy.inner, secrets, cx));
                Self::ProxyProtocol(proxy.clone(), Box::new(inner))
            }
        }
    }

    /// The TLS of it, if there is.
    pub fn tls(&self) -> Option<&Arc<ClientContext>> {
        match self {
            Self::Raw => None,
            Self::Tls(context) => Some(context),
            Self::ProxyProtocol(_, inner) => inner.tls(),
        }
    }

    /// True if it tells the host about the client: its connections are for one client's alone.
    pub fn tells_client(&self) -> bool {
        matches!(self, Self::ProxyProtocol(..))
    }
}
