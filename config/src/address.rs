//! Addresses, socket options and CIDR ranges (`envoy.config.core.v3`), shared by listeners, clusters and bootstrap.
//!
//! Read by every part of the configuration that names a socket. Protocol numbers and flags are kept as the kernel wants them.

use crate::Context;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use weft_control_api::envoy::config::core::v3 as pb;

/// `core.v3.Address`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Socket(SocketAddress),
    Pipe(Pipe),
    Internal(EnvoyInternalAddress),
}

/// `core.v3.SocketAddress`: a host and port; the host may be a name where DNS is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketAddress {
    pub protocol: Protocol,
    /// An IP address, or a name.
    pub host: String,
    pub port: u16,
    /// Listeners on `::` also accept IPv4.
    pub ipv4_compat: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// `core.v3.Pipe`: a unix socket; `@name` is Linux's abstract namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pipe {
    pub path: String,
    /// The mode of the socket file; 0 leaves it as the umask makes it.
    pub mode: u32,
}

/// `core.v3.EnvoyInternalAddress`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EnvoyInternalAddress {
    pub server_listener_name: String,
    pub endpoint_id: String,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(socket) if socket.host.contains(':') => write!(f, "[{}]:{}", socket.host, socket.port),
            Self::Socket(socket) => write!(f, "{}:{}", socket.host, socket.port),
            Self::Pipe(pipe) => f.write_str(&pipe.path),
            Self::Internal(internal) => write!(f, "envoy://{}/{}", internal.server_listener_name, internal.endpoint_id),
        }
    }
}

impl Address {
    pub fn from_proto(p: pb::Address, cx: &mut Context) -> Option<Self> {
        let pb::Address { address } = p;
        match address {
            Some(pb::address::Address::SocketAddress(p)) => {
                cx.field("socket_address", |cx| SocketAddress::from_proto(p, cx)).map(Self::Socket)
            }
            Some(pb::address::Address::Pipe(p)) => cx.field("pipe", |cx| Pipe::from_proto(p, cx)).map(Self::Pipe),
            Some(pb::address::Address::EnvoyInternalAddress(p)) => {
                cx.field("envoy_internal_address", |cx| EnvoyInternalAddress::from_proto(p, cx)).map(Self::Internal)
            }
            None => {
                cx.problem("one of socket_address, pipe and envoy_internal_address is required");
                None
            }
        }
    }
}

impl SocketAddress {
    pub fn from_proto(p: pb::SocketAddress, cx: &mut Context) -> Option<Self> {
        let pb::SocketAddress {
            protocol,
            address,
            resolver_name,
            ipv4_compat,
            network_namespace_filepath,
            port_specifier,
        } = p;
        cx.unsupported_if("resolver_name", !resolver_name.is_empty());
        cx.unsupported_if("network_namespace_filepath", !network_namespace_filepath.is_empty());
        let protocol = match cx.enumeration("protocol", protocol) {
            pb::socket_address::Protocol::Tcp => Protocol::Tcp,
            pb::socket_address::Protocol::Udp => Protocol::Udp,
        };
        let port = match port_specifier {
            Some(pb::socket_address::PortSpecifier::PortValue(port)) => match u16::try_from(port) {
                Ok(port) => port,
                Err(_) => {
                    cx.problem_at("port_value", format!("found {port}, allowed are 0 to 65535"));
                    return None;
                }
            },
            Some(pb::socket_address::PortSpecifier::NamedPort(_)) => {
                cx.problem_at("named_port", "is not supported: no resolver knows port names");
                return None;
            }
            None => 0,
        };
        if address.is_empty() {
            cx.problem_at("address", "must not be empty");
            return None;
        }
        Some(Self { protocol, host: address, port, ipv4_compat })
    }

    /// The address, if the host is an IP address.
    pub fn ip(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }

    /// The address; a host that is no IP address is a problem.
    pub fn required_ip(&self, cx: &mut Context) -> Option<SocketAddr> {
        let ip = self.ip();
        if ip.is_none() {
            cx.problem_at("address", format!("malformed IP address: {}", self.host));
        }
        ip
    }
}

impl Pipe {
    pub fn from_proto(p: pb::Pipe, cx: &mut Context) -> Option<Self> {
        let pb::Pipe { path, mode } = p;
        // sockaddr_un holds 108 bytes; a path needs its final NUL, an abstract name does not.
        let most = if path.starts_with('@') { 108 } else { 107 };
        if path.is_empty() || path.len() > most {
            cx.problem_at("path", format!("found {} bytes, allowed are 1 to {most}", path.len()));
            return None;
        }
        if mode > 0o777 {
            cx.problem_at("mode", format!("found {mode}, allowed are 0 to 511"));
        }
        Some(Self { path, mode })
    }
}

impl EnvoyInternalAddress {
    pub fn from_proto(p: pb::EnvoyInternalAddress, cx: &mut Context) -> Option<Self> {
        let pb::EnvoyInternalAddress { endpoint_id, address_name_specifier } = p;
        let name = cx.required("server_listener_name", address_name_specifier)?;
        let pb::envoy_internal_address::AddressNameSpecifier::ServerListenerName(server_listener_name) = name;
        Some(Self { server_listener_name, endpoint_id })
    }
}

/// `core.v3.CidrRange`, with the bits beyond the prefix cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CidrRange(pub IpNet);

impl CidrRange {
    pub fn from_proto(p: pb::CidrRange, cx: &mut Context) -> Option<Self> {
        let pb::CidrRange { address_prefix, prefix_len } = p;
        let Ok(ip) = address_prefix.parse::<IpAddr>() else {
            cx.problem_at("address_prefix", format!("malformed IP address: {address_prefix}"));
            return None;
        };
        let most = if ip.is_ipv4() { 32 } else { 128 };
        // As Envoy does, longer prefixes than the family has mean the whole address.
        let prefix = prefix_len.unwrap_or(0);
        if prefix > 128 {
            cx.problem_at("prefix_len", format!("found {prefix}, allowed are 0 to 128"));
            return None;
        }
        let net = IpNet::new(ip, u8::try_from(prefix.min(most)).unwrap_or(32)).ok()?;
        Some(Self(net.trunc()))
    }

    /// The same of `xds.core.v3`.
    pub fn from_xds(p: weft_control_api::xds::core::v3::CidrRange, cx: &mut Context) -> Option<Self> {
        let weft_control_api::xds::core::v3::CidrRange { address_prefix, prefix_len } = p;
        Self::from_proto(pb::CidrRange { address_prefix, prefix_len }, cx)
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip)
    }
}

/// `core.v3.SocketOption`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    /// The bytes handed to setsockopt(2); integers are C ints.
    pub value: Vec<u8>,
    pub state: SocketState,
    /// For sockets of this family only; without it for both.
    pub ip_version: Option<IpVersion>,
}

/// When an option is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketState {
    Prebind,
    Bound,
    Listening,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    V4,
    V6,
}

impl SocketOption {
    /// Reads one option; `None` too for an option of datagram sockets, which no socket of ours is.
    pub fn from_proto(p: pb::SocketOption, cx: &mut Context) -> Option<Self> {
        let pb::SocketOption { description: _, level, name, state, r#type, ip_version, value } = p;
        let mut int = |field: &str, value: i64| match i32::try_from(value) {
            Ok(value) => Some(value),
            Err(_) => {
                cx.problem_at(field, format!("found {value}, allowed are C ints"));
                None
            }
        };
        let (level, name) = (int("level", level), int("name", name));
        let value = match value {
            Some(pb::socket_option::Value::IntValue(value)) => {
                int("int_value", value).map(|v| v.to_ne_bytes().to_vec())
            }
            Some(pb::socket_option::Value::BufValue(value)) => Some(value),
            None => {
                cx.problem("one of int_value and buf_value is required");
                None
            }
        };
        let state = match cx.enumeration("state", state) {
            pb::socket_option::SocketState::StatePrebind => SocketState::Prebind,
            pb::socket_option::SocketState::StateBound => SocketState::Bound,
            pb::socket_option::SocketState::StateListening => SocketState::Listening,
        };
        let ip_version = match cx.enumeration("ip_version", ip_version) {
            pb::socket_option::SocketIpVersion::Unspecified => None,
            pb::socket_option::SocketIpVersion::Ipv4 => Some(IpVersion::V4),
            pb::socket_option::SocketIpVersion::Ipv6 => Some(IpVersion::V6),
        };
        if let Some(pb::socket_option::SocketType { stream, datagram }) = r#type
            && stream.is_none()
            && datagram.is_some()
        {
            return None;
        }
        Some(Self { level: level?, name: name?, value: value?, state, ip_version })
    }
}

/// `core.v3.BindConfig`: where sockets towards upstreams are bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindConfig {
    pub source_address: Option<SocketAddr>,
    pub freebind: bool,
    pub socket_options: Vec<SocketOption>,
    /// Used for destinations of the family that `source_address` does not have.
    pub extra_source_addresses: Vec<ExtraSourceAddress>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraSourceAddress {
    pub address: SocketAddr,
    /// In place of the options of the whole, where given.
    pub socket_options: Option<Vec<SocketOption>>,
}

impl BindConfig {
    pub fn from_proto(p: pb::BindConfig, cx: &mut Context) -> Self {
        let pb::BindConfig {
            source_address,
            freebind,
            socket_options,
            extra_source_addresses,
            additional_source_addresses,
            local_address_selector,
            validate_network_namespaces: _,
        } = p;
        cx.unsupported_if("local_address_selector", local_address_selector.is_some());
        if !additional_source_addresses.is_empty() && !extra_source_addresses.is_empty() {
            cx.problem("can't specify both `extra_source_addresses` and `additional_source_addresses`");
        }
        let source = |p, cx: &mut Context| SocketAddress::from_proto(p, cx)?.required_ip(cx);
        let source_address = source_address.and_then(|p| cx.field("source_address", |cx| source(p, cx)));
        let mut extra = cx.elements("extra_source_addresses", extra_source_addresses, |cx, p| {
            let pb::ExtraSourceAddress { address, socket_options } = p;
            let address = cx.required("address", address)?;
            let address = cx.field("address", |cx| source(address, cx))?;
            let socket_options = socket_options.map(|pb::SocketOptionsOverride { socket_options }| {
                cx.field("socket_options", |cx| {
                    cx.elements("socket_options", socket_options, |cx, p| SocketOption::from_proto(p, cx))
                })
            });
            Some(ExtraSourceAddress { address, socket_options })
        });
        extra.extend(
            cx.elements("additional_source_addresses", additional_source_addresses, |cx, p| source(p, cx))
                .into_iter()
                .map(|address| ExtraSourceAddress { address, socket_options: None }),
        );
        if extra.len() > 1 {
            cx.problem("only one extra source address is allowed");
        }
        if let (Some(first), Some(second)) = (source_address, extra.first())
            && first.is_ipv4() == second.address.is_ipv4()
        {
            cx.problem("the two source addresses must be of different IP versions");
        }
        if source_address.is_none() && !extra.is_empty() {
            cx.problem_at("source_address", "is required when there are extra source addresses");
        }
        Self {
            source_address,
            freebind: freebind.unwrap_or_default(),
            socket_options: cx.elements("socket_options", socket_options, |cx, p| SocketOption::from_proto(p, cx)),
            extra_source_addresses: extra,
        }
    }
}

/// `core.v3.TcpKeepalive`; what is not given stays as the system has it. Times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<u32>,
    pub interval: Option<u32>,
}

impl TcpKeepalive {
    pub fn from_proto(p: pb::TcpKeepalive) -> Self {
        let pb::TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = p;
        Self { probes: keepalive_probes, time: keepalive_time, interval: keepalive_interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems<T>(read: impl FnOnce(&mut Context) -> T) -> Vec<String> {
        let mut cx = Context::new();
        read(&mut cx);
        cx.finish(None::<()>).unwrap_err().iter().map(ToString::to_string).collect()
    }

    fn socket(host: &str, port: u32) -> pb::SocketAddress {
        pb::SocketAddress {
            address: host.into(),
            port_specifier: Some(pb::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        }
    }

    #[test]
    fn socket_addresses() {
        let mut cx = Context::new();
        let address = SocketAddress::from_proto(socket("::1", 80), &mut cx).unwrap();
        assert_eq!(address.ip(), Some("[::1]:80".parse().unwrap()));
        assert_eq!(SocketAddress::from_proto(socket("a.b", 80), &mut cx).unwrap().ip(), None);
        assert!(!cx.has_problems());
        assert_eq!(
            problems(|cx| SocketAddress::from_proto(socket("a", 65536), cx)),
            ["port_value: found 65536, allowed are 0 to 65535"]
        );
        assert_eq!(
            problems(|cx| SocketAddress::from_proto(socket("a.b", 1), cx).unwrap().required_ip(cx)),
            ["address: malformed IP address: a.b"]
        );
    }

    #[test]
    fn cidr_ranges_are_truncated() {
        let mut cx = Context::new();
        let p = |prefix: &str, len| pb::CidrRange { address_prefix: prefix.into(), prefix_len: Some(len) };
        let range = CidrRange::from_proto(p("10.1.2.3", 8), &mut cx).unwrap();
        assert_eq!(range.0.to_string(), "10.0.0.0/8");
        assert!(range.contains("10.9.9.9".parse().unwrap()));
        assert_eq!(CidrRange::from_proto(p("10.1.2.3", 128), &mut cx).unwrap().0.to_string(), "10.1.2.3/32");
        assert_eq!(problems(|cx| CidrRange::from_proto(p("x", 8), cx)), ["address_prefix: malformed IP address: x"]);
    }

    #[test]
    fn one_source_address_a_family() {
        let bind = |a, b| pb::BindConfig {
            source_address: Some(socket(a, 0)),
            additional_source_addresses: vec![socket(b, 0)],
            ..Default::default()
        };
        let mut cx = Context::new();
        assert_eq!(BindConfig::from_proto(bind("127.0.0.1", "::1"), &mut cx).extra_source_addresses.len(), 1);
        assert!(!cx.has_problems());
        assert_eq!(problems(|cx| BindConfig::from_proto(bind("127.0.0.1", "127.0.0.2"), cx)).len(), 1);
    }
}
