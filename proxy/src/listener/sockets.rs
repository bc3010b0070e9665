//! Binding: sockets for every address of a listener, one for each worker where the kernel is to balance.
//!
//! Invariant: bound on the control thread before workers hear of the listener, so that an address in use is an error
//! of the configuration and not of a worker.

use super::balance::Balancer;
use crate::base::Address;
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    time::Duration,
};
use weft_config::{
    Address as ConfigAddress,
    address::{IpVersion, Pipe, SocketOption, SocketState, TcpKeepalive},
    listener::{Listener as Config, ListenerAddress},
};

/// The bound sockets of one listener.
#[derive(Debug)]
pub struct Sockets {
    /// What was bound, port 0 resolved.
    pub addresses: Vec<Address>,
    /// By address, then by worker. Empty once closed.
    sockets: Mutex<Vec<Vec<Socket>>>,
    backlog: i32,
    /// To be set once they listen.
    options: Vec<SocketOption>,
    /// Shares connections out to workers, where that is asked for.
    pub(super) balancer: Arc<Balancer>,
}

/// Why an address could not be bound, in Envoy's words.
#[derive(Debug)]
pub struct BindError {
    pub address: String,
    pub error: io::Error,
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let why = match self.error.raw_os_error() {
            Some(_) => self.error.to_string().split(" (os error").next().unwrap_or_default().to_owned(),
            None => self.error.to_string(),
        };
        write!(f, "cannot bind '{}': {why}", self.address)
    }
}

impl Sockets {
    /// Binds all addresses for `workers` workers.
    pub fn bind(config: &Config, workers: usize) -> Result<Self, BindError> {
        let mut bound = Self {
            addresses: Vec::new(),
            sockets: Mutex::default(),
            backlog: config.tcp_backlog_size,
            options: config.socket_options.iter().filter(|o| o.state == SocketState::Listening).cloned().collect(),
            balancer: Arc::default(),
        };
        let mut all = Vec::new();
        for address in &config.addresses {
            let (local, sockets) = match &address.address {
                ConfigAddress::Socket(socket) => {
                    let name = match socket.ip() {
                        Some(ip) => ip.to_string(),
                        None => format!("{}:{}", socket.host, socket.port),
                    };
                    let ip = socket.ip().ok_or_else(|| BindError {
                        address: name.clone(),
                        error: io::Error::new(io::ErrorKind::InvalidInput, "not an IP address"),
                    })?;
                    bind_ip(config, address, ip, socket.ipv4_compat, workers)
                        .map_err(|error| BindError { address: name, error })?
                }
                ConfigAddress::Pipe(pipe) => {
                    let sockets = bind_pipe(pipe).map_err(|error| BindError { address: pipe.path.clone(), error })?;
                    (Address::Unix(pipe.path.as_str().into()), sockets)
                }
                ConfigAddress::Internal(internal) => {
                    return Err(BindError {
                        address: internal.server_listener_name.clone(),
                        error: io::Error::new(io::ErrorKind::Unsupported, "internal addresses cannot be bound"),
                    });
                }
            };
            bound.addresses.push(local);
            all.push(sockets);
        }
        bound.sockets = Mutex::new(all);
        Ok(bound)
    }

    /// The addresses of a listener that is never bound.
    pub fn unbound(config: &Config) -> Self {
        let addresses = config.addresses.iter().filter_map(|a| match &a.address {
            ConfigAddress::Socket(socket) => socket.ip().map(Address::Ip),
            ConfigAddress::Pipe(pipe) => Some(Address::Unix(pipe.path.as_str().into())),
            ConfigAddress::Internal(internal) => Some(Address::Internal {
                listener: internal.server_listener_name.as_str().into(),
                endpoint_id: "".into(),
            }),
        });
        Self {
            addresses: addresses.collect(),
            sockets: Mutex::default(),
            backlog: 0,
            options: Vec::new(),
            balancer: Arc::default(),
        }
    }

    /// Lets clients in. Until then they are refused, as before the address was bound.
    ///
    /// # Errors
    /// Another process took the address meanwhile.
    pub fn listen(&self) -> io::Result<()> {
        let sockets = self.sockets.lock().map_err(|_| io::Error::other("a thread panicked while it held sockets"))?;
        for (address, sockets) in self.addresses.iter().zip(sockets.iter()) {
            for socket in sockets {
                socket.listen(self.backlog)?;
                if let Address::Ip(ip) = address {
                    apply(socket, &self.options, SocketState::Listening, *ip)?;
                }
            }
        }
        Ok(())
    }

    /// Copies of one worker's sockets, with the addresses they are bound to.
    pub fn of_worker(&self, worker: usize) -> io::Result<Vec<(Address, Socket)>> {
        let sockets = self.sockets.lock().map_err(|_| io::Error::other("a thread panicked while it held sockets"))?;
        let one = |(address, sockets): (&Address, &Vec<Socket>)| {
            // One socket that all share, or one for each.
            let socket = sockets.get(worker).or(sockets.first().filter(|_| sockets.len() == 1))?;
            Some(socket.try_clone().map(|socket| (address.clone(), socket)))
        };
        self.addresses.iter().zip(sockets.iter()).filter_map(one).collect()
    }

    /// Stops listening, once workers have closed their copies too: what the kernel still hands to a socket that nobody
    /// accepts from would wait for ever.
    pub fn close(&self) {
        if let Ok(mut sockets) = self.sockets.lock() {
            sockets.clear();
        }
    }
}

fn bind_ip(
    config: &Config,
    address: &ListenerAddress,
    ip: SocketAddr,
    ipv4_compat: bool,
    workers: usize,
) -> io::Result<(Address, Vec<Socket>)> {
    let count = if config.reuse_port { workers.max(1) } else { 1 };
    let mut target = ip;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let protocol = if config.enable_mptcp { socket2::Protocol::MPTCP } else { socket2::Protocol::TCP };
        let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking().cloexec(), Some(protocol))?;
        socket.set_reuse_address(true)?;
        if config.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if target.is_ipv6() {
            socket.set_only_v6(!ipv4_compat)?;
        }
        if config.freebind {
            if target.is_ipv6() { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) }?;
        }
        if config.transparent {
            transparent(&socket, target.is_ipv6())?;
        }
        if let Some(keepalive) = address.tcp_keepalive.or(config.tcp_keepalive) {
            // Accepted sockets inherit it.
            socket.set_tcp_keepalive(&system_keepalive(keepalive))?;
        }
        let options = address.socket_options.as_ref().unwrap_or(&config.socket_options);
        apply(&socket, options, SocketState::Prebind, target)?;
        socket.bind(&SockAddr::from(target))?;
        apply(&socket, options, SocketState::Bound, target)?;
        if let Some(length) = config.tcp_fast_open_queue_length {
            set_option(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &(length as i32).to_ne_bytes())?;
        }
        if target.port() == 0
            && let Some(resolved) = socket.local_addr()?.as_socket()
        {
            target = resolved;
        }
        sockets.push(socket);
    }
    Ok((Address::Ip(target), sockets))
}

fn system_keepalive(config: TcpKeepalive) -> socket2::TcpKeepalive {
    let seconds = |n: u32| Duration::from_secs(u64::from(n));
    let TcpKeepalive { probes, time, interval } = config;
    let keepalive = socket2::TcpKeepalive::new();
    let keepalive = time.map_or(keepalive.clone(), |n| keepalive.with_time(seconds(n)));
    let keepalive = interval.map_or(keepalive.clone(), |n| keepalive.with_interval(seconds(n)));
    probes.map_or(keepalive.clone(), |n| keepalive.with_retries(n))
}

fn transparent(socket: &Socket, is_v6: bool) -> io::Result<()> {
    const IPV6_TRANSPARENT: libc::c_int = 75;
    let (level, name) =
        if is_v6 { (libc::IPPROTO_IPV6, IPV6_TRANSPARENT) } else { (libc::IPPROTO_IP, libc::IP_TRANSPARENT) };
    set_option(socket, level, name, &1i32.to_ne_bytes())
}

fn apply(socket: &Socket, options: &[SocketOption], state: SocketState, address: SocketAddr) -> io::Result<()> {
    let fits = |option: &&SocketOption| {
        option.state == state
            && option.ip_version.is_none_or(|version| match version {
                IpVersion::V4 => address.is_ipv4(),
                IpVersion::V6 => address.is_ipv6(),
            })
    };
    options.iter().filter(fits).try_for_each(|option| set_option(socket, option.level, option.name, &option.value))
}

/// setsockopt(2) with an option that only a configuration knows.
pub fn set_option(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and `value` is readable for `length` bytes.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind_pipe(pipe: &Pipe) -> io::Result<Vec<Socket>> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    let address = match pipe.path.strip_prefix('@') {
        Some(name) => SockAddr::unix(format!("\0{name}"))?,
        None => {
            // What a process that is gone left behind.
            let _ = std::fs::remove_file(&pipe.path);
            SockAddr::unix(&pipe.path)?
        }
    };
    socket.bind(&address)?;
    if pipe.mode != 0 && !pipe.path.starts_with('@') {
        std::fs::set_permissions(&pipe.path, std::fs::Permissions::from_mode(pipe.mode))?;
    }
    Ok(vec![socket])
}
