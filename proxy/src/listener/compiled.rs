//! A listener as workers use it: bound sockets, listener filters, filter chains.

use super::{chain_match, filters::ListenerFilter, sockets::Sockets};
use crate::{
    base::{Address, ConnectionInfo},
    network::{self, ListenerFacts, NetworkFilter, RouteSlots},
    observe::access_log::{AccessLogs, LogWriter},
    route::shared_metadata,
    upstream::Names,
};
use std::sync::Arc;
use weft_config::{
    Address as ConfigAddress, Context,
    listener::{FilterChain as ChainConfig, FilterChainMatch, Listener as Config, TrafficDirection},
};

/// A compiled listener. Immutable; an update makes another that may share sockets and chains with this one.
pub struct Listener {
    pub config: Config,
    pub sockets: Arc<Sockets>,
    pub filters: Vec<ListenerFilter>,
    pub chains: Vec<Arc<Chain>>,
    pub default_chain: Option<Arc<Chain>>,
    pub access_logs: AccessLogs,
    pub facts: ListenerFacts,
    /// Names of the route configurations that its chains refer to.
    pub routes: Vec<String>,
}

/// A compiled filter chain.
pub struct Chain {
    pub name: Arc<str>,
    pub matching: FilterChainMatch,
    /// `None`: no filters, the connection is closed.
    pub terminal: Option<Arc<dyn NetworkFilter>>,
}

/// What compiling may use and leave.
pub struct CompileContext<'a> {
    pub names: &'a mut Names,
    pub log_writer: &'a LogWriter,
    pub routes: &'a mut RouteSlots,
    /// Says which clusters there are.
    pub cluster_exists: &'a dyn Fn(&str) -> bool,
}

impl Listener {
    /// Compiles all but the sockets.
    pub fn compile(config: Config, sockets: Arc<Sockets>, context: &mut CompileContext<'_>, cx: &mut Context) -> Self {
        let facts = ListenerFacts {
            stat_name: stat_name(&config).into(),
            metadata: shared_metadata(&config.metadata),
            buffer_limit: config.per_connection_buffer_limit as usize,
            is_inbound: config.traffic_direction == TrafficDirection::Inbound,
        };
        context.routes.take_wanted();
        let mut chain = |config: &ChainConfig, cx: &mut Context| {
            let mut context = network::CompileContext {
                names: context.names,
                log_writer: context.log_writer,
                listener: facts.clone(),
                routes: context.routes,
                cluster_exists: context.cluster_exists,
            };
            Arc::new(Chain {
                name: config.name.as_str().into(),
                matching: config.matching.clone(),
                terminal: network::compile(&config.filters, &mut context, cx),
            })
        };
        let chains: Vec<_> = config
            .filter_chains
            .iter()
            .enumerate()
            .map(|(i, c)| cx.element("filter_chains", i, |cx| chain(c, cx)))
            .collect();
        let default_chain =
            config.default_filter_chain.as_ref().map(|c| cx.field("default_filter_chain", |cx| chain(c, cx)));
        let filters = config
            .listener_filters
            .iter()
            .enumerate()
            .filter_map(|(i, filter)| cx.element("listener_filters", i, |cx| ListenerFilter::compile(filter, cx)))
            .collect();
        let access_logs = AccessLogs::compile("access_log", &config.access_log, context.log_writer, cx);
        let mut routes = context.routes.take_wanted();
        routes.sort();
        routes.dedup();
        Self { sockets, filters, chains, default_chain, access_logs, facts, routes, config }
    }

    /// Takes over the chains of an earlier version that are the same, with the connections they have.
    pub fn keep_chains_of(&mut self, before: &Self) {
        if format!("{:?}", self.facts) != format!("{:?}", before.facts) {
            return;
        }
        let old: Vec<(String, &Arc<Chain>)> = before
            .config
            .chains()
            .zip(before.chains.iter().chain(&before.default_chain))
            .map(|(c, chain)| (format!("{c:?}"), chain))
            .collect();
        let texts: Vec<String> = self.config.chains().map(|c| format!("{c:?}")).collect();
        for (chain, text) in self.chains.iter_mut().chain(&mut self.default_chain).zip(texts) {
            if let Some((_, same)) = old.iter().find(|(t, _)| *t == text) {
                *chain = (*same).clone();
            }
        }
    }

    /// The chain for a connection.
    pub fn chain_for(&self, info: &ConnectionInfo) -> Option<&Arc<Chain>> {
        let found = chain_match::find(self.chains.iter().map(|chain| &chain.matching), info);
        found.and_then(|at| self.chains.get(at)).or(self.default_chain.as_ref())
    }

    /// True if the listener's own address is `address`, port 0 resolved.
    pub fn has_address(&self, address: &Address) -> bool {
        self.sockets.addresses.contains(address)
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
        Some(ConfigAddress::Internal(internal)) => internal.server_listener_name.clone(),
        None => config.name.clone(),
    };
    name.replace(':', "_")
}
