//! Listeners: where connections come in, and which filter chain each one gets (`envoy.config.listener.v3`).

use crate::{
    Address, Context,
    access_log::AccessLog,
    address::{CidrRange, EnvoyInternalAddress, Protocol, SocketOption, TcpKeepalive},
    extension_config::{ExtensionConfigSource, FilterConfig},
    metadata::{self, Metadata},
    tls::{self, DownstreamTlsContext},
};
use std::{net::IpAddr, sync::Arc, time::Duration};
use weft_control_api::envoy::config::{core::v3 as core, listener::v3 as pb};

/// A listener.
#[derive(Clone, Debug)]
pub struct Listener {
    pub name: String,
    /// The first address, then the additional ones.
    pub addresses: Vec<ListenerAddress>,
    /// Empty: the address.
    pub stat_prefix: String,
    pub filter_chains: Vec<FilterChain>,
    pub default_filter_chain: Option<FilterChain>,
    pub use_original_dst: bool,
    /// Bytes; default 1 MiB.
    pub per_connection_buffer_limit: u32,
    pub metadata: Metadata,
    /// Only `/drain_listeners` and the listener's removal drain it, not a failed health check.
    pub drain_modify_only: bool,
    pub listener_filters: Vec<ListenerFilter>,
    /// Default 15 s; zero: none.
    pub listener_filters_timeout: Duration,
    pub continue_on_listener_filters_timeout: bool,
    pub transparent: bool,
    pub freebind: bool,
    pub socket_options: Vec<SocketOption>,
    pub tcp_fast_open_queue_length: Option<u32>,
    pub traffic_direction: TrafficDirection,
    /// Not bound: read by gRPC clients only.
    pub is_api_listener: bool,
    /// One socket for each worker.
    pub reuse_port: bool,
    pub access_log: Vec<AccessLog>,
    pub tcp_backlog_size: i32,
    pub max_connections_to_accept_per_socket_event: Option<u32>,
    pub bind_to_port: bool,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Sockets of MPTCP.
    pub enable_mptcp: bool,
    /// The deprecated way to ask for the PROXY protocol: the first chain's `use_proxy_proto`.
    pub use_proxy_proto: bool,
    /// The limit for connections of all listeners together does not hold here.
    pub ignore_global_limit: bool,
    /// A connection goes to the worker that has the fewest.
    pub exact_balance: bool,
    /// Connections come from clusters of this very process.
    pub is_internal: bool,
}

pub use core::TrafficDirection;

/// One of a listener's addresses.
#[derive(Clone, Debug)]
pub struct ListenerAddress {
    pub address: Address,
    /// In place of the listener's own.
    pub socket_options: Option<Vec<SocketOption>>,
    /// In place of the listener's own.
    pub tcp_keepalive: Option<TcpKeepalive>,
}

/// A filter that sees a connection before its chain is chosen.
#[derive(Clone, Debug)]
pub struct ListenerFilter {
    pub name: String,
    pub config: FilterConfig,
    pub disabled: Option<Predicate>,
}

/// When a listener filter stays out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Predicate {
    Or(Vec<Predicate>),
    And(Vec<Predicate>),
    Not(Box<Predicate>),
    Any,
    /// From the first, below the second.
    DestinationPort(i32, i32),
}

/// Filters for the connections that it matches.
#[derive(Clone, Debug)]
pub struct FilterChain {
    pub name: String,
    pub matching: FilterChainMatch,
    pub filters: Vec<NetworkFilter>,
    /// `None`: bytes go as they are.
    pub tls: Option<Arc<DownstreamTlsContext>>,
    /// Zero: none.
    pub transport_socket_connect_timeout: Duration,
    pub metadata: Metadata,
}

/// A network filter.
#[derive(Clone, Debug)]
pub struct NetworkFilter {
    pub name: String,
    pub config: FilterConfig,
}

/// What a chain asks of a connection; empty lists ask nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FilterChainMatch {
    pub destination_port: Option<u16>,
    pub prefix_ranges: Vec<CidrRange>,
    pub direct_source_prefix_ranges: Vec<CidrRange>,
    pub source_type: SourceType,
    pub source_prefix_ranges: Vec<CidrRange>,
    pub source_ports: Vec<u16>,
    /// Lower case; `*.x` for anything below x.
    pub server_names: Vec<String>,
    /// Empty: any.
    pub transport_protocol: String,
    pub application_protocols: Vec<String>,
}

pub use pb::filter_chain_match::ConnectionSourceType as SourceType;

impl Listener {
    pub fn from_proto(p: pb::Listener, cx: &mut Context) -> Option<Self> {
        let pb::Listener {
            name,
            address,
            additional_addresses,
            stat_prefix,
            stats_matcher,
            filter_chains,
            fcds_config,
            filter_chain_matcher,
            use_original_dst,
            default_filter_chain,
            per_connection_buffer_limit_bytes,
            per_connection_buffer_high_watermark_timeout,
            metadata,
            deprecated_v1,
            drain_type,
            listener_filters,
            listener_filters_timeout,
            continue_on_listener_filters_timeout,
            transparent,
            freebind,
            socket_options,
            tcp_fast_open_queue_length,
            traffic_direction,
            udp_listener_config,
            api_listener,
            connection_balance_config,
            reuse_port,
            enable_reuse_port,
            access_log,
            tcp_backlog_size,
            max_connections_to_accept_per_socket_event,
            bind_to_port,
            enable_mptcp,
            ignore_global_conn_limit,
            bypass_overload_manager,
            tcp_keepalive,
            listener_specifier,
        } = p;
        cx.unsupported_if("stats_matcher", stats_matcher.is_some());
        cx.unsupported_if("fcds_config", fcds_config.is_some());
        cx.unsupported_if("filter_chain_matcher", filter_chain_matcher.is_some());
        cx.unsupported_if(
            "per_connection_buffer_high_watermark_timeout",
            per_connection_buffer_high_watermark_timeout.is_some(),
        );
        cx.unsupported_if("udp_listener_config", udp_listener_config.is_some());
        let is_internal = listener_specifier.is_some();
        use pb::listener::connection_balance_config::BalanceType;
        let balance = connection_balance_config.and_then(|p| p.balance_type);
        // Without one the kernel balances over REUSEPORT sockets.
        let exact_balance = matches!(balance, Some(BalanceType::ExactBalance(_)));
        cx.field("connection_balance_config", |cx| {
            cx.unsupported_if("extend_balance", matches!(balance, Some(BalanceType::ExtendBalance(_))));
            cx.unsupported_if("cpu_locality_balance", matches!(balance, Some(BalanceType::CpuLocalityBalance(_))));
        });
        cx.ignored_if("bypass_overload_manager", bypass_overload_manager);
        let is_api_listener = api_listener.is_some();
        let mut addresses = Vec::new();
        match address {
            Some(p) => {
                addresses.extend(cx.field("address", |cx| Address::from_proto(p, cx)).map(|address| ListenerAddress {
                    address,
                    socket_options: None,
                    tcp_keepalive: None,
                }))
            }
            None if is_internal => addresses.push(ListenerAddress {
                address: Address::Internal(EnvoyInternalAddress {
                    server_listener_name: name.clone(),
                    endpoint_id: String::new(),
                }),
                socket_options: None,
                tcp_keepalive: None,
            }),
            None if is_api_listener => {}
            None => cx.problem_at("address", "is required"),
        }
        addresses.extend(cx.elements("additional_addresses", additional_addresses, |cx, p| {
            let pb::AdditionalAddress { address, socket_options, tcp_keepalive } = p;
            let address = cx.required("address", address)?;
            Some(ListenerAddress {
                address: cx.field("address", |cx| Address::from_proto(address, cx))?,
                socket_options: socket_options.map(|p| {
                    cx.field("socket_options", |cx| {
                        cx.elements("socket_options", p.socket_options, |cx, p| SocketOption::from_proto(p, cx))
                    })
                }),
                tcp_keepalive: tcp_keepalive.map(TcpKeepalive::from_proto),
            })
        }));
        for (i, address) in addresses.iter().enumerate() {
            let field = match i.checked_sub(1) {
                None => "address".to_owned(),
                Some(i) => format!("additional_addresses[{i}].address"),
            };
            match &address.address {
                Address::Socket(socket) if socket.protocol == Protocol::Udp => {
                    cx.problem_at(&field, "UDP is not supported");
                }
                Address::Socket(socket) => {
                    cx.field(&field, |cx| cx.field("socket_address", |cx| socket.required_ip(cx)));
                }
                Address::Pipe(_) if enable_mptcp => {
                    cx.problem_at("enable_mptcp", "can only be used with IP addresses");
                }
                Address::Pipe(_) => {}
                Address::Internal(_) if is_internal && i == 0 => {}
                Address::Internal(_) => cx.problem_at(&field, "found an internal address, which cannot be listened on"),
            }
        }
        if filter_chains.is_empty() && default_filter_chain.is_none() && !is_api_listener {
            cx.problem("no filter chains specified");
        }
        let use_proxy_proto = match filter_chains.first().or(default_filter_chain.as_ref()) {
            Some(first) => first.use_proxy_proto.unwrap_or(false),
            None => false,
        };
        let filter_chains = cx.elements("filter_chains", filter_chains, |cx, p| FilterChain::from_proto(p, cx));
        // What a default chain matches is never asked.
        let default_filter_chain =
            default_filter_chain.and_then(|p| cx.field("default_filter_chain", |cx| FilterChain::from_proto(p, cx)));
        let deprecated_bind = deprecated_v1.and_then(|v1| v1.bind_to_port);
        Some(Self {
            name,
            addresses,
            stat_prefix,
            filter_chains,
            default_filter_chain,
            use_original_dst: use_original_dst.unwrap_or(false),
            per_connection_buffer_limit: per_connection_buffer_limit_bytes.unwrap_or(1 << 20),
            metadata: metadata::from_proto("metadata", metadata, cx),
            drain_modify_only: cx.enumeration::<pb::listener::DrainType>("drain_type", drain_type)
                == pb::listener::DrainType::ModifyOnly,
            listener_filters: cx
                .elements("listener_filters", listener_filters, |cx, p| ListenerFilter::from_proto(p, cx)),
            listener_filters_timeout: cx
                .duration("listener_filters_timeout", listener_filters_timeout)
                .unwrap_or(Duration::from_secs(15)),
            continue_on_listener_filters_timeout,
            transparent: transparent.unwrap_or(false),
            freebind: freebind.unwrap_or(false),
            socket_options: cx.elements("socket_options", socket_options, |cx, p| SocketOption::from_proto(p, cx)),
            tcp_fast_open_queue_length,
            traffic_direction: cx.enumeration("traffic_direction", traffic_direction),
            is_api_listener,
            reuse_port: enable_reuse_port.unwrap_or(true) || reuse_port,
            access_log: cx.elements("access_log", access_log, |cx, p| AccessLog::from_proto(p, cx)),
            tcp_backlog_size: tcp_backlog_size.map_or(128, |n| i32::try_from(n).unwrap_or(i32::MAX)),
            max_connections_to_accept_per_socket_event,
            bind_to_port: bind_to_port.or(deprecated_bind).unwrap_or(true) && !is_api_listener && !is_internal,
            tcp_keepalive: tcp_keepalive.map(TcpKeepalive::from_proto),
            enable_mptcp,
            use_proxy_proto,
            ignore_global_limit: ignore_global_conn_limit,
            exact_balance,
            is_internal,
        })
    }

    /// All chains, the default one last.
    pub fn chains(&self) -> impl Iterator<Item = &FilterChain> {
        self.filter_chains.iter().chain(&self.default_filter_chain)
    }
}

/// What of a listener's chains an update leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unchanged {
    /// For each new chain the old one that is the same.
    pub chains: Vec<Option<usize>>,
    /// The default chain is the same.
    pub default_chain: bool,
}

impl Unchanged {
    /// Compares two versions of a listener. `None` if more than chains differ: the listener as a whole is then new.
    pub fn between(old: &pb::Listener, new: &pb::Listener) -> Option<Self> {
        let without_chains =
            |p: &pb::Listener| pb::Listener { filter_chains: Vec::new(), default_filter_chain: None, ..p.clone() };
        let first = |p: &pb::Listener| p.filter_chains.first().is_some_and(|chain| chain.use_proxy_proto == Some(true));
        if new.filter_chains.is_empty() || first(old) != first(new) || without_chains(old) != without_chains(new) {
            return None;
        }
        let same = |chain| old.filter_chains.iter().position(|other| other == chain);
        Some(Self {
            chains: new.filter_chains.iter().map(same).collect(),
            default_chain: old.default_filter_chain == new.default_filter_chain,
        })
    }
}

impl ListenerFilter {
    fn from_proto(p: pb::ListenerFilter, cx: &mut Context) -> Option<Self> {
        let pb::ListenerFilter { name, filter_disabled, config_type } = p;
        let config = match config_type {
            Some(pb::listener_filter::ConfigType::TypedConfig(any)) => FilterConfig::Typed(any),
            Some(pb::listener_filter::ConfigType::ConfigDiscovery(p)) => {
                let source = cx.field("config_discovery", |cx| ExtensionConfigSource::from_proto(p, cx))?;
                FilterConfig::Discovery(Box::new(source))
            }
            None => {
                cx.problem_at("typed_config", "is required");
                return None;
            }
        };
        let disabled = match filter_disabled {
            Some(p) => Some(cx.field("filter_disabled", |cx| Predicate::from_proto(p, cx))?),
            None => None,
        };
        Some(Self { name, config, disabled })
    }
}

impl Predicate {
    fn from_proto(p: pb::ListenerFilterChainMatchPredicate, cx: &mut Context) -> Option<Self> {
        use pb::listener_filter_chain_match_predicate::{MatchSet, Rule};
        let set = |name, MatchSet { rules }, cx: &mut Context| {
            cx.field(name, |cx| cx.elements("rules", rules, |cx, p| Self::from_proto(p, cx)))
        };
        Some(match cx.required("rule", p.rule)? {
            Rule::OrMatch(p) => Self::Or(set("or_match", p, cx)),
            Rule::AndMatch(p) => Self::And(set("and_match", p, cx)),
            Rule::NotMatch(p) => Self::Not(Box::new(cx.field("not_match", |cx| Self::from_proto(*p, cx))?)),
            Rule::AnyMatch(_) => Self::Any,
            Rule::DestinationPortRange(range) => Self::DestinationPort(range.start, range.end),
        })
    }

    /// True if a connection to `port` (none for sockets without ports) is meant.
    pub fn holds(&self, port: Option<u16>) -> bool {
        match self {
            Self::Or(rules) => rules.iter().any(|rule| rule.holds(port)),
            Self::And(rules) => rules.iter().all(|rule| rule.holds(port)),
            Self::Not(rule) => !rule.holds(port),
            Self::Any => true,
            Self::DestinationPort(start, end) => port.is_some_and(|port| (*start..*end).contains(&i32::from(port))),
        }
    }
}

/// Reads a transport socket towards clients; the inner `None` is the raw buffer, the outer one a problem.
fn transport_socket_from_proto(
    p: core::TransportSocket,
    cx: &mut Context,
) -> Option<Option<Arc<DownstreamTlsContext>>> {
    let core::TransportSocket { name: _, config_type } = p;
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = config_type else {
        cx.problem_at("typed_config", "is required");
        return None;
    };
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Some(None),
        tls::DOWNSTREAM => DownstreamTlsContext::from_any(&any, cx).map(|context| Some(Arc::new(context))),
        found => {
            cx.problem_at(
                "typed_config",
                format!("found {found}, which is not supported; allowed: raw_buffer, {}", tls::DOWNSTREAM),
            );
            None
        }
    }
}

impl FilterChain {
    fn from_proto(p: pb::FilterChain, cx: &mut Context) -> Option<Self> {
        let pb::FilterChain {
            filter_chain_match,
            filters,
            // Read of the first chain, for the listener as a whole.
            use_proxy_proto: _,
            metadata,
            transport_socket,
            transport_socket_connect_timeout,
            name,
        } = p;
        let tls = match transport_socket {
            Some(p) => cx.field("transport_socket", |cx| transport_socket_from_proto(p, cx))?,
            None => None,
        };
        Some(Self {
            name,
            matching: match filter_chain_match {
                Some(p) => cx.field("filter_chain_match", |cx| FilterChainMatch::from_proto(p, cx)),
                None => FilterChainMatch::default(),
            },
            tls,
            filters: cx.elements("filters", filters, |cx, p| {
                let pb::Filter { name, config_type } = p;
                let config = match config_type {
                    Some(pb::filter::ConfigType::TypedConfig(any)) => FilterConfig::Typed(any),
                    Some(pb::filter::ConfigType::ConfigDiscovery(p)) => {
                        let source = cx.field("config_discovery", |cx| ExtensionConfigSource::from_proto(p, cx))?;
                        FilterConfig::Discovery(Box::new(source))
                    }
                    None => {
                        cx.problem_at("typed_config", "is required");
                        return None;
                    }
                };
                Some(NetworkFilter { name, config })
            }),
            transport_socket_connect_timeout: cx
                .duration("transport_socket_connect_timeout", transport_socket_connect_timeout)
                .unwrap_or_default(),
            metadata: metadata::from_proto("metadata", metadata, cx),
        })
    }
}

impl FilterChainMatch {
    fn from_proto(p: pb::FilterChainMatch, cx: &mut Context) -> Self {
        let pb::FilterChainMatch {
            destination_port,
            prefix_ranges,
            address_suffix,
            suffix_len,
            direct_source_prefix_ranges,
            source_type,
            source_prefix_ranges,
            source_ports,
            server_names,
            transport_protocol,
            application_protocols,
        } = p;
        cx.unsupported_if("address_suffix", !address_suffix.is_empty());
        cx.unsupported_if("suffix_len", suffix_len.is_some());
        let port = |cx: &mut Context, name: &str, port: u32| match u16::try_from(port) {
            Ok(port) => Some(port),
            Err(_) => {
                cx.problem_at(name, format!("found {port}, allowed: 0 to 65535"));
                None
            }
        };
        Self {
            destination_port: destination_port.and_then(|p| port(cx, "destination_port", p)),
            prefix_ranges: cx.elements("prefix_ranges", prefix_ranges, |cx, p| CidrRange::from_proto(p, cx)),
            direct_source_prefix_ranges: cx.elements(
                "direct_source_prefix_ranges",
                direct_source_prefix_ranges,
                |cx, p| CidrRange::from_proto(p, cx),
            ),
            source_type: cx.enumeration("source_type", source_type),
            source_prefix_ranges: cx
                .elements("source_prefix_ranges", source_prefix_ranges, |cx, p| CidrRange::from_proto(p, cx)),
            source_ports: cx.elements("source_ports", source_ports, |cx, p| port(cx, "", p)),
            server_names: cx.elements("server_names", server_names, |cx, name| {
                if name == "*" || (name.contains('*') && (!name.starts_with("*.") || name[1..].contains('*'))) {
                    cx.problem(format!("found {name:?}: partial wildcards are not supported in \"server_names\""));
                    return None;
                }
                Some(name.to_ascii_lowercase())
            }),
            transport_protocol,
            application_protocols,
        }
    }

    /// Where the connection comes from: `source_type` asks of both ends.
    pub fn source_type_of(local: Option<IpAddr>, remote: Option<IpAddr>) -> SourceType {
        match (local, remote) {
            (Some(local), Some(remote)) if remote.is_loopback() || local == remote => SourceType::SameIpOrLoopback,
            (None, _) | (_, None) => SourceType::SameIpOrLoopback,
            _ => SourceType::External,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str, port: u32) -> pb::FilterChain {
        pb::FilterChain {
            name: name.into(),
            filter_chain_match: Some(pb::FilterChainMatch { destination_port: Some(port), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn only_chains_changed() {
        let old = pb::Listener { filter_chains: vec![chain("a", 1), chain("b", 2)], ..Default::default() };
        let new = pb::Listener { filter_chains: vec![chain("b", 2), chain("a", 3)], ..Default::default() };
        let unchanged = Unchanged { chains: vec![Some(1), None], default_chain: true };
        assert_eq!(Unchanged::between(&old, &new), Some(unchanged));
        assert_eq!(Unchanged::between(&old, &pb::Listener { stat_prefix: "x".into(), ..new }), None);
    }

    #[test]
    fn balances() {
        use pb::listener::{
            ConnectionBalanceConfig,
            connection_balance_config::{BalanceType, ExactBalance},
        };
        let read = |balance_type| {
            let mut cx = Context::new();
            let connection_balance_config = Some(ConnectionBalanceConfig { balance_type: Some(balance_type) });
            let listener = pb::Listener {
                api_listener: Some(Default::default()),
                connection_balance_config,
                ..Default::default()
            };
            let read = Listener::from_proto(listener, &mut cx);
            cx.finish(read.map(|listener| listener.exact_balance)).map(|(exact, _)| exact)
        };
        assert_eq!(read(BalanceType::ExactBalance(ExactBalance {})).ok(), Some(true));
        let problems = read(BalanceType::ExtendBalance(Default::default())).err().unwrap_or_default();
        let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["connection_balance_config.extend_balance"]);
    }

    #[test]
    fn predicates() {
        let range = Predicate::DestinationPort(10, 12);
        let not = Predicate::Not(Box::new(Predicate::Or(vec![range.clone(), Predicate::DestinationPort(1, 2)])));
        assert!(range.holds(Some(11)) && !range.holds(Some(12)) && !range.holds(None));
        assert!(not.holds(Some(2)) && !not.holds(Some(1)));
        assert!(Predicate::And(vec![Predicate::Any, range]).holds(Some(10)));
    }
}
