//! A listener as workers use it: bound sockets, listener filters, filter chains.

use super::{
    chain_match::ChainMatcher,
    filters::{self, ListenerFilter},
    sockets::Sockets,
};
use crate::{
    base::{Address, ConnectionInfo},
    http::scopes::ScopeSeat,
    network::{
        self, Filters, ListenerFacts, RouteSlots,
        discovered::{Seat, reached},
    },
    observe::access_log::{AccessLogs, LogWriter},
    route::shared_metadata,
    transport::tls::{Secrets, ServerContext},
    upstream::Names,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use weft_config::{
    Address as ConfigAddress, Context,
    listener::{FilterChain as ChainConfig, Listener as Config, TrafficDirection, Unchanged},
};

/// A compiled listener. Immutable; an update makes another that may share sockets and chains with this one.
pub struct Listener {
    pub config: Config,
    pub sockets: Arc<Sockets>,
    pub filters: Vec<ListenerFilter>,
    pub chains: Vec<Arc<Chain>>,
    pub default_chain: Option<Arc<Chain>>,
    matcher: ChainMatcher,
    pub access_logs: AccessLogs,
    pub facts: ListenerFacts,
    /// Names of the route configurations that its chains refer to.
    routes: Vec<String>,
    /// For configurations of its filters that are discovered.
    pub seats: Vec<Arc<dyn Seat>>,
}

/// A compiled filter chain. An update that leaves it as it is keeps the very same.
pub struct Chain {
    pub name: Arc<str>,
    /// `None`: no filters, the connection is closed.
    pub filters: Option<Filters>,
    /// `None`: bytes go as they are.
    pub tls: Option<Arc<ServerContext>>,
    pub transport_socket_connect_timeout: Duration,
    /// Names of the route configurations that it refers to.
    routes: Vec<String>,
    seats: Vec<Arc<dyn Seat>>,
    scoped: Vec<Arc<ScopeSeat>>,
}

/// What compiling may use and leave.
pub struct CompileContext<'a> {
    pub names: &'a mut Names,
    pub log_writer: &'a LogWriter,
    pub routes: &'a mut RouteSlots,
    /// Says which clusters there are.
    pub cluster_exists: &'a dyn Fn(&str) -> bool,
    pub secrets: &'a dyn Secrets,
    /// The listener that this one updates, if nothing but chains changed.
    pub before: Option<(&'a Listener, Unchanged)>,
}

impl Listener {
    /// Compiles all but the sockets.
    pub fn compile(config: Config, sockets: Arc<Sockets>, context: &mut CompileContext<'_>, cx: &mut Context) -> Self {
        let facts = ListenerFacts {
            stat_name: stat_name(&config).into(),
            metadata: shared_metadata(&config.metadata),
            buffer_limit: config.per_connection_buffer_limit as usize,
            is_inbound: config.traffic_direction == TrafficDirection::Inbound,
            drain_modify_only: config.drain_modify_only,
        };
        let (before, unchanged) = match &context.before {
            Some((before, unchanged)) => (Some(*before), unchanged.clone()),
            None => (None, Unchanged::default()),
        };
        let secrets = context.secrets;
        let mut chain = |config: &ChainConfig, cx: &mut Context| {
            context.routes.take_wanted();
            let mut seats = Vec::new();
            let mut context = network::CompileContext {
                names: context.names,
                log_writer: context.log_writer,
                listener: facts.clone(),
                routes: context.routes,
                cluster_exists: context.cluster_exists,
                seats: &mut seats,
            };
            let filters = network::compile(&config.filters, &mut context, cx);
            let tls = config.tls.as_ref().map(|config| {
                let compile = |cx: &mut Context| ServerContext::compile(config.clone(), secrets, cx);
                Arc::new(cx.field("transport_socket.typed_config", compile))
            });
            Arc::new(Chain {
                name: config.name.as_str().into(),
                filters,
                tls,
                transport_socket_connect_timeout: config.transport_socket_connect_timeout,
                routes: context.routes.take_wanted(),
                scoped: context.routes.take_scoped(),
                seats,
            })
        };
        let kept = |at: usize| before?.chains.get((*unchanged.chains.get(at)?)?).cloned();
        let chains: Vec<_> = (config.filter_chains.iter().enumerate())
            .map(|(i, c)| kept(i).unwrap_or_else(|| cx.element("filter_chains", i, |cx| chain(c, cx))))
            .collect();
        let default_chain = match before.filter(|_| unchanged.default_chain) {
            Some(before) => before.default_chain.clone(),
            None => config.default_filter_chain.as_ref().map(|c| cx.field("default_filter_chain", |cx| chain(c, cx))),
        };
        let matcher = ChainMatcher::compile(config.filter_chains.iter().map(|c| (c.name.as_str(), &c.matching)), cx);
        let mut seats = chains.iter().chain(&default_chain).flat_map(|chain| chain.seats.clone()).collect();
        let mut filter_context = network::CompileContext {
            names: context.names,
            log_writer: context.log_writer,
            listener: facts.clone(),
            routes: context.routes,
            cluster_exists: context.cluster_exists,
            seats: &mut seats,
        };
        let filters = filters::compile(&config, &mut filter_context, cx);
        let access_logs = AccessLogs::compile("access_log", &config.access_log, context.log_writer, cx);
        let mut routes: Vec<_> = chains.iter().chain(&default_chain).flat_map(|chain| chain.routes.clone()).collect();
        routes.sort();
        routes.dedup();
        Self { sockets, filters, chains, default_chain, matcher, access_logs, facts, routes, seats, config }
    }

    /// Names of the route configurations that it refers to now, by way of what was discovered too.
    pub fn routes(&self) -> Vec<String> {
        let mut routes = self.routes.clone();
        routes.extend(reached(&self.seats).routes);
        routes
    }

    /// The connection managers with scopes.
    pub fn scoped(&self) -> impl Iterator<Item = &Arc<ScopeSeat>> {
        self.chains.iter().chain(&self.default_chain).flat_map(|chain| &chain.scoped)
    }

    /// The number of the chain for a connection; the default chain comes after all others.
    pub fn chain_for(&self, info: &ConnectionInfo) -> Option<usize> {
        self.matcher.find(info).or(self.default_chain.is_some().then_some(self.chains.len()))
    }

    /// An address that this listener and `other` both claim, as Envoy's complaint names it. Port 0 is claimed by nobody.
    pub fn duplicate_address(&self, other: &Self) -> Option<String> {
        let others: Vec<_> = other.config.addresses.iter().map(|a| &a.address).collect();
        let own = self.config.addresses.iter().map(|a| &a.address);
        own.filter(|address| others.contains(address)).find_map(|address| match address {
            ConfigAddress::Socket(socket) => Some(socket.ip()?).filter(|ip| ip.port() != 0).map(|ip| ip.to_string()),
            ConfigAddress::Pipe(pipe) => Some(pipe.path.clone()),
            ConfigAddress::Internal(_) => None,
        })
    }

    /// True if the listener's own address is `address`, port 0 resolved.
    pub fn has_address(&self, address: &Address) -> bool {
        self.sockets.addresses.contains(address)
    }

    /// True if it listens on every address of the family of `wanted`, at that port.
    pub fn has_any_address(&self, wanted: SocketAddr) -> bool {
        let all = self.config.addresses.iter().zip(&self.sockets.addresses);
        all.filter_map(|(config, bound)| Some((config, bound.ip()?))).any(|(config, bound)| {
            let is_compatible = match &config.address {
                ConfigAddress::Socket(socket) => socket.ipv4_compat,
                _ => false,
            };
            bound.ip().is_unspecified()
                && bound.port() == wanted.port()
                && (bound.is_ipv4() == wanted.is_ipv4() || is_compatible)
        })
    }
}

/// The name in `listener.NAME.*`: the first address with colons replaced.
fn stat_name(config: &Config) -> String {
    if !config.stat_prefix.is_empty() {
        return config.stat_prefix.replace(':', "_");
    }
    let name = match config.addresses.first().map(|a| &a.address) {
        Some(ConfigAddress::Socket(socket)) if socket.host.contains(':') => {
            format!("[{}]:{}", socket.host, socket.port)
        }
        Some(ConfigAddress::Socket(socket)) => format!("{}:{}", socket.host, socket.port),
        Some(ConfigAddress::Pipe(pipe)) => pipe.path.clone(),
        Some(ConfigAddress::Internal(internal)) => format!("envoy_internal_{}", internal.server_listener_name),
        None => config.name.clone(),
    };
    name.replace(':', "_")
}
