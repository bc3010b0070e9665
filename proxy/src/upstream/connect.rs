//! Making connections to hosts: sockets, their options, where they are bound, the PROXY header.
//!
//! Called by the pools and for TCP, through [`Connect`], so that tests put their own ends in place of sockets.

mod proxy_protocol;
mod socket;

use super::{host::Host, transport_socket::UpstreamSocket};
use crate::{
    base::{Address, ConnectionInfo, ResetReason, TlsConnection},
    transport::{
        Internals, Io, internal,
        tls::{ClientContext, ClientOptions, Distrusted, SslStats, stats::ClientSocketFactoryStats},
    },
};
use std::{borrow::Cow, future::Future, io, pin::Pin, rc::Rc, sync::Arc};
use tokio::{io::AsyncWriteExt, net::UnixStream};
use weft_config::address::{BindConfig, TcpKeepalive};

/// What to connect to, and how.
pub struct Target {
    pub host: Arc<Host>,
    pub bind: Option<Arc<BindConfig>>,
    pub keepalive: Option<TcpKeepalive>,
    /// On whose behalf, where that is told to the host.
    pub downstream: Option<Rc<ConnectionInfo>>,
    pub tls: TargetTls,
}

/// What TLS towards a host needs, where its transport socket speaks it.
pub struct TargetTls {
    pub options: Rc<ClientOptions>,
    pub ssl: Arc<SslStats>,
    pub factory: Arc<ClientSocketFactoryStats>,
    /// The host is watched: it is cut when it is trusted no longer.
    pub looks_again: bool,
}

/// A connection that is made.
pub struct Connected {
    pub io: Io,
    pub local: Option<Address>,
    pub remote: Option<Address>,
    /// Bytes that were sent ahead of all others.
    pub sent: usize,
    pub tls: Option<Rc<TlsConnection>>,
    /// Ends once the host is trusted no longer, where that is watched.
    pub distrusted: Option<Distrusted>,
}

impl Connected {
    /// A connection that nothing was sent on and nothing was agreed.
    pub fn bare(io: Io, local: Option<Address>, remote: Address) -> Self {
        Self { io, local, remote: Some(remote), sent: 0, tls: None, distrusted: None }
    }
}

/// A connection that could not be made.
#[derive(Debug)]
pub struct ConnectError {
    pub reason: ResetReason,
    /// Envoy's transport failure reason.
    pub details: Cow<'static, str>,
    /// The socket could not be bound.
    pub bind: bool,
}

pub type Connecting = Pin<Box<dyn Future<Output = Result<Connected, ConnectError>>>>;

/// Makes connections. Knows no timeout: whoever calls drops the future.
pub trait Connect {
    fn connect(&self, target: Target) -> Connecting;
}

/// Connects by sockets, and to internal listeners.
pub struct Sockets(pub Rc<Internals>);

impl Connect for Sockets {
    fn connect(&self, target: Target) -> Connecting {
        Box::pin(connect(target, self.0.clone()))
    }
}

async fn connect(target: Target, internals: Rc<Internals>) -> Result<Connected, ConnectError> {
    let mut result = one(&target, &target.host.address, &internals).await;
    for address in &target.host.additional_addresses {
        if result.is_ok() {
            break;
        }
        result = one(&target, address, &internals).await;
    }
    let mut connected = result?;
    let mut transport = &*target.host.transport_socket;
    while let UpstreamSocket::ProxyProtocol(proxy, inner) = transport {
        let header = proxy_protocol::header(proxy, target.downstream.as_deref());
        connected.io.write_all(&header).await.map_err(|e| delayed(&e))?;
        connected.sent += header.len();
        transport = inner;
    }
    match transport {
        UpstreamSocket::Tls(context) => secure(context, connected, &target).await,
        _ => Ok(connected),
    }
}

/// The connection under TLS.
async fn secure(context: &Arc<ClientContext>, made: Connected, target: &Target) -> Result<Connected, ConnectError> {
    let failed = |details: String| ConnectError {
        reason: ResetReason::RemoteConnectionFailure,
        details: details.into(),
        bind: false,
    };
    let Some(revision) = context.revisions.now() else {
        target.tls.factory.upstream_context_secrets_not_ready.inc();
        return Err(failed("TLS_error:_Secret_is_not_supplied_by_SDS".into()));
    };
    let Connected { io, local, remote, sent, .. } = made;
    let (options, stats) = (&target.tls.options, &target.tls.ssl);
    let addresses = (local.as_ref(), remote.as_ref());
    let hostname = &target.host.hostname;
    match context.connect(&revision, io, options, hostname, addresses, stats).await {
        Ok((io, tls)) => {
            let tls = Rc::new(tls);
            let watch = || context.distrusts(&revision, &tls, options, hostname, stats);
            let distrusted = target.tls.looks_again.then(watch);
            Ok(Connected { io, local, remote, sent, tls: Some(tls), distrusted })
        }
        Err(failure) => {
            stats.failed(failure.cause);
            tracing::debug!(target: "connection", "upstream {}: {}", target.host.address, failure.words());
            Err(failed(failure.details))
        }
    }
}

async fn one(target: &Target, address: &Address, internals: &Internals) -> Result<Connected, ConnectError> {
    match address {
        Address::Ip(ip) => {
            let stream = socket::connect(*ip, target.bind.as_deref(), target.keepalive).await?;
            let local = stream.local_addr().ok().map(Address::from);
            Ok(Connected::bare(Io::Tcp(stream), local, address.clone()))
        }
        Address::Unix(path) => {
            // tokio takes a leading NUL for the abstract namespace.
            let name = path.strip_prefix('@').map_or_else(|| path.to_string(), |name| format!("\0{name}"));
            let stream = UnixStream::connect(name).await.map_err(|e| immediate(&e, path))?;
            Ok(Connected::bare(Io::Unix(stream), None, address.clone()))
        }
        Address::Internal { .. } => match internals.connect(address) {
            Some(io) => Ok(Connected::bare(io, Some(internal::client()), address.clone())),
            None => Err(immediate(&io::Error::from_raw_os_error(libc::EINVAL), address)),
        },
    }
}

/// The system's words for an error.
fn words(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The attempt was under way when it failed.
fn delayed(e: &io::Error) -> ConnectError {
    ConnectError {
        reason: ResetReason::RemoteConnectionFailure,
        details: format!("delayed connect error: {}", words(e)).into(),
        bind: false,
    }
}

/// The attempt could not even begin.
fn immediate(e: &io::Error, to: impl std::fmt::Display) -> ConnectError {
    ConnectError {
        reason: ResetReason::RemoteConnectionFailure,
        details: format!("immediate connect error: {}|remote address:{to}", words(e)).into(),
        bind: false,
    }
}
