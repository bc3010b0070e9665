//! Where every proxy listens and where the backends are; the files in `configs/` say the same.

use std::net::{Ipv4Addr, SocketAddr};

/// HTTP/1.1, or whatever a group asks whether the proxy serves.
pub const HTTP1: SocketAddr = local(28080);
/// HTTP/2 without TLS.
pub const HTTP2: SocketAddr = local(28081);
pub const MTLS: SocketAddr = local(28082);
/// The same with a new connection to the backend for each request.
pub const MTLS_ONCE: SocketAddr = local(28083);
pub const MTLS_DEFAULT_GROUPS: SocketAddr = local(28084);
pub const ROTATION: SocketAddr = local(28085);
pub const ROTATION_CONTROL: SocketAddr = local(28086);
pub const TCP_SMALL: SocketAddr = local(28087);
pub const TCP_BULK: SocketAddr = local(28088);
pub const UNARY: SocketAddr = local(28094);
pub const STREAMING: SocketAddr = local(28095);
pub const WEBSOCKET: SocketAddr = local(28096);
/// TLS to clients only.
pub const TLS: SocketAddr = local(28097);
pub const TLS_HTTP2: SocketAddr = local(28098);
/// The control plane of the configuration's scale, and the proxy's listener that comes from it.
pub const SCALE_CONTROL: SocketAddr = local(28099);
pub const SCALE: SocketAddr = local(28100);

/// Says which worker has how many connections.
pub const ADMIN: SocketAddr = local(28110);
/// Of the stages of a request whose instructions are counted.
pub const DIRECT_RESPONSE: SocketAddr = local(28111);
pub const ROUTES: SocketAddr = local(28112);
pub const RULES: SocketAddr = local(28113);
pub const RBAC: SocketAddr = local(28114);
pub const HOSTS: SocketAddr = local(28115);

pub const HTTP1_BACKEND: SocketAddr = local(28090);
pub const HTTP2_BACKEND: SocketAddr = local(28091);
pub const MTLS_BACKEND: SocketAddr = local(28092);
pub const SOURCE: SocketAddr = local(28093);
pub const UNARY_BACKEND: SocketAddr = local(28104);
pub const STREAMING_BACKEND: SocketAddr = local(28105);
pub const WEBSOCKET_BACKEND: SocketAddr = local(28106);
pub const TLS_BACKEND: SocketAddr = local(28107);
pub const TLS_HTTP2_BACKEND: SocketAddr = local(28108);
/// HTTP/1.1 again, from one that says that it is another.
pub const OTHER_BACKEND: SocketAddr = local(28109);

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
