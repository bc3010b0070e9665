//! A network address as configuration and connections have it: IP, unix path, or an internal listener.

use std::{fmt, net::SocketAddr, sync::Arc};

/// An address that a socket is bound to, connected to or accepted from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(SocketAddr),
    /// A filesystem path, or `@name` for Linux's abstract namespace; empty for an unnamed peer.
    Unix(Arc<str>),
    /// `envoy://listener_name/endpoint_id`.
    Internal {
        listener: Arc<str>,
        endpoint_id: Arc<str>,
    },
}

impl Address {
    /// The IP address and port, if it is one.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            _ => None,
        }
    }
}

impl From<SocketAddr> for Address {
    /// IPv4-mapped IPv6 addresses become plain IPv4.
    fn from(address: SocketAddr) -> Self {
        Self::Ip(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

/// As Envoy prints it: `1.2.3.4:80`, `[::1]:80`, `/path`, `envoy://name/id`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => f.write_str(path),
            Self::Internal { listener, endpoint_id } => write!(f, "envoy://{listener}/{endpoint_id}"),
        }
    }
}
