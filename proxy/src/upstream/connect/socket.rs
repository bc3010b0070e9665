//! TCP sockets towards hosts.

use super::{ConnectError, delayed, immediate, words};
use crate::base::ResetReason;
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};
use tokio::net::{TcpSocket, TcpStream};
use weft_config::address::{BindConfig, IpVersion, SocketOption, SocketState, TcpKeepalive};

/// Connects a socket with its options set.
pub(super) async fn connect(
    address: SocketAddr,
    bind: Option<&BindConfig>,
    keepalive: Option<TcpKeepalive>,
) -> Result<TcpStream, ConnectError> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|e| immediate(&e, address))?;
    if let Some(bind) = bind {
        self::bind(&socket, bind, address)?;
    }
    if let Some(keepalive) = keepalive {
        keep_alive(&socket, keepalive).map_err(|_| option_failed())?;
    }
    let stream = socket.connect(address).await.map_err(|e| match e.raw_os_error() {
        Some(libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::EINVAL | libc::EACCES | libc::EPERM) => {
            immediate(&e, address)
        }
        _ => delayed(&e),
    })?;
    // Without it small writes wait; it cannot fail on a socket that is connected.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

fn bind(socket: &TcpSocket, bind: &BindConfig, to: SocketAddr) -> Result<(), ConnectError> {
    let first = bind.source_address.map(|source| (source, &bind.socket_options));
    let extra = bind
        .extra_source_addresses
        .iter()
        .map(|extra| (extra.address, extra.socket_options.as_ref().unwrap_or(&bind.socket_options)));
    let source = first.into_iter().chain(extra).find(|(source, _)| source.is_ipv4() == to.is_ipv4());
    let options = source.map_or(&bind.socket_options, |(_, options)| options);
    set(socket, options, SocketState::Prebind, to).map_err(|_| option_failed())?;
    if bind.freebind {
        let (level, name) = if to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_FREEBIND)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND)
        };
        set_option(socket.as_raw_fd(), level, name, &1i32.to_ne_bytes()).map_err(|_| option_failed())?;
    }
    if let Some((source, _)) = source {
        if source.port() != 0 {
            socket.set_reuseaddr(true).map_err(|_| option_failed())?;
        } else {
            // The kernel picks the port when it connects, so that one is not taken up for all destinations.
            let on = 1i32.to_ne_bytes();
            let _ = set_option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &on);
        }
        socket.bind(source).map_err(|e| ConnectError {
            reason: ResetReason::LocalConnectionFailure,
            details: format!("failed to bind to {source}: {}", words(&e)).into(),
            bind: true,
        })?;
    }
    set(socket, options, SocketState::Bound, to).map_err(|_| option_failed())
}

/// A socket option could not be set; Envoy gives no reason for it.
fn option_failed() -> ConnectError {
    ConnectError { reason: ResetReason::LocalConnectionFailure, details: "".into(), bind: false }
}

fn set(socket: &TcpSocket, options: &[SocketOption], state: SocketState, to: SocketAddr) -> io::Result<()> {
    let version = if to.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
    let ours = |option: &&SocketOption| option.state == state && option.ip_version.is_none_or(|v| v == version);
    options
        .iter()
        .filter(ours)
        .try_for_each(|option| set_option(socket.as_raw_fd(), option.level, option.name, &option.value))
}

fn keep_alive(socket: &TcpSocket, keepalive: TcpKeepalive) -> io::Result<()> {
    let TcpKeepalive { probes, time, interval } = keepalive;
    let seconds = |s: u32| Duration::from_secs(s.into());
    let mut settings = socket2::TcpKeepalive::new();
    if let Some(probes) = probes {
        settings = settings.with_retries(probes);
    }
    if let Some(time) = time {
        settings = settings.with_time(seconds(time));
    }
    if let Some(interval) = interval {
        settings = settings.with_interval(seconds(interval));
    }
    socket2::SockRef::from(socket).set_tcp_keepalive(&settings)
}

/// setsockopt(2) with any option.
fn set_option(fd: RawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: `fd` is an open socket for the time of the call, and the pointer and length are those of a live slice.
    let result = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), value.len() as libc::socklen_t) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
