//! The upstream side of one thread: its clusters, their hosts, the way to a stream.
//!
//! Each worker has one [`Upstreams`], and the control thread, whose own streams (xDS) go the same way. Invariant: a cluster whose
//! configuration is unchanged keeps its pools and its place in round robin when its hosts change.

mod thread_host;

pub use thread_host::ThreadHost;

use super::{
    ClusterId, Names,
    aggregate::Aggregate,
    balancer::{Balancer, LocalHosts, PickContext, PriorityLoads, RetryContext, TableKind},
    cluster::{Cluster, ClusterInfo, ClusterTable, LocalZone},
    connect::{Connect, Connected, Sockets},
    connection::{Tally, UpstreamConnection},
    health::Health,
    host::HostSet,
    metadata_match::MetadataMatch,
    original_dst::OriginalDstHosts,
    override_host::{self, Choice, OverrideHost},
    pool::{self, Opened, PoolKey},
    server_names::ServerNames,
    shared::{Alpn, Context, Shared},
    stats::{BreakerStats, ClusterStats, MaglevStats, RingHashStats, SubsetStats},
};
use crate::{
    base::{ConnectionInfo, RuntimeSnapshot, StreamError},
    http::{Protocol, RequestHead, header_names::ENVOY_UPSTREAM_CANARY},
    observe::{
        stats::Registry,
        stream_info::{Metadata, StreamInfo},
    },
    transport::{
        Internals, Io,
        tls::{ClientOptions, DRAIN_ON_TRUST_CHANGE, Guarded},
    },
};
use foldhash::{HashMap, HashSet};
use http::HeaderMap;
use std::{
    cell::{OnceCell, RefCell},
    future::Future,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use weft_config::{cluster::Discovery, http_protocol_options::UpstreamProtocol, route::Priority};

/// All clusters as one thread has them.
pub struct Upstreams {
    context: Rc<Context>,
    clusters: RefCell<Vec<Option<Rc<ThreadCluster>>>>,
    names: RefCell<Arc<Names>>,
    internals: Rc<Internals>,
    /// The local cluster as it is now, with its hosts by zone.
    local: RefCell<Option<(Arc<Cluster>, Arc<LocalHosts>)>>,
}

impl Upstreams {
    /// `is_control`: for the control thread, which shows the stats of clusters that were not used yet.
    pub fn new(registry: Registry, is_control: bool) -> Rc<Self> {
        let internals = Rc::<Internals>::default();
        Self::build(registry, is_control, Rc::new(Sockets(internals.clone())), internals)
    }

    /// How connections are made here.
    pub fn connector(&self) -> Rc<dyn Connect> {
        self.context.connector.clone()
    }

    /// The internal listeners that clusters of this thread connect to.
    pub fn internals(&self) -> &Rc<Internals> {
        &self.internals
    }

    /// The same with another way to make connections.
    pub fn with_connector(registry: Registry, is_control: bool, connector: Rc<dyn Connect>) -> Rc<Self> {
        Self::build(registry, is_control, connector, Rc::default())
    }

    fn build(registry: Registry, is_control: bool, connector: Rc<dyn Connect>, internals: Rc<Internals>) -> Rc<Self> {
        let context = Rc::new(Context::new(registry, connector, is_control));
        Rc::new(Self {
            context,
            clusters: RefCell::default(),
            names: RefCell::default(),
            internals,
            local: RefCell::default(),
        })
    }

    /// Takes over what runtime keys say of connections that are made from now on.
    pub fn set_runtime(&self, runtime: &RuntimeSnapshot) {
        self.context.looks_again.set(runtime.boolean(DRAIN_ON_TRUST_CHANGE).unwrap_or(false));
    }

    /// Takes over a snapshot's clusters: keeps what stayed, drains what went.
    pub fn apply(&self, table: &ClusterTable) {
        *self.names.borrow_mut() = table.names().clone();
        let before = self.clusters.take();
        let mut after = Vec::with_capacity(table.len());
        for index in 0..table.len().max(before.len()) {
            let old = before.get(index).and_then(Option::as_ref);
            let new = table.get(ClusterId(index as u32));
            after.push(match (old, new) {
                (None, None) => None,
                (Some(old), Some(new)) if Arc::ptr_eq(&old.shared.info, &new.info) => {
                    old.update(new);
                    Some(old.clone())
                }
                (old, Some(new)) => {
                    let next = ThreadCluster::new(new, &self.context, old.map(|old| &**old));
                    if let Some(old) = old {
                        old.retire(next.info().stat_prefix != old.info().stat_prefix);
                    }
                    Some(next)
                }
                (Some(old), None) => {
                    old.retire(true);
                    None
                }
            });
        }
        *self.clusters.borrow_mut() = after;
        self.set_local(table.iter().find_map(|cluster| cluster.info.zone.as_ref()));
        self.aggregate();
    }

    /// Takes over clusters whose hosts changed their health.
    pub fn update(&self, clusters: &[Arc<Cluster>]) {
        for next in clusters {
            let cluster = self.get(next.info.id).filter(|cluster| Arc::ptr_eq(&cluster.shared.info, &next.info));
            if let Some(cluster) = cluster {
                cluster.update(next);
            }
        }
        self.set_local(clusters.iter().find_map(|cluster| cluster.info.zone.as_ref()));
        self.aggregate();
    }

    /// Makes aggregates anew of what their members are now.
    fn aggregate(&self) {
        for cluster in self.clusters.borrow().iter().flatten() {
            if let (Discovery::Aggregate(names), Some(seat)) = (&cluster.info().config.discovery, &cluster.aggregate) {
                let members = names.iter().filter_map(|name| self.by_name(name));
                let threshold = cluster.info().config.load_balancing.healthy_panic_threshold;
                *seat.borrow_mut() = Rc::new(Aggregate::new(members, threshold));
            }
        }
    }

    /// Tells all clusters who is in which zone of the local one.
    fn set_local(&self, zone: Option<&Arc<LocalZone>>) {
        let Some(cluster) = zone.and_then(|zone| self.by_name(&zone.cluster)) else { return };
        let now = cluster.cluster.borrow().clone();
        let mut local = self.local.borrow_mut();
        let hosts = match &*local {
            Some((before, hosts)) if Arc::ptr_eq(before, &now) => hosts.clone(),
            _ => Arc::new(now.picks.local_hosts()),
        };
        *local = Some((now, hosts.clone()));
        drop(local);
        self.clusters().iter().for_each(|cluster| cluster.set_local(&hosts));
    }

    pub fn get(&self, id: ClusterId) -> Option<Rc<ThreadCluster>> {
        self.clusters.borrow().get(id.0 as usize)?.clone()
    }

    /// For names that come with requests.
    pub fn by_name(&self, name: &str) -> Option<Rc<ThreadCluster>> {
        let id = self.names.borrow().get(name)?;
        self.get(id)
    }

    /// The name of a cluster, whether or not it is there.
    pub fn name(&self, id: ClusterId) -> String {
        self.names.borrow().name(id).to_owned()
    }

    /// All clusters, in the order of their numbers.
    pub fn clusters(&self) -> Vec<Rc<ThreadCluster>> {
        self.clusters.borrow().iter().flatten().cloned().collect()
    }
}

/// One cluster as one thread has it.
pub struct ThreadCluster {
    shared: Rc<Shared>,
    cluster: RefCell<Arc<Cluster>>,
    balancer: RefCell<Balancer>,
    /// By priority and index in it; made when first picked.
    hosts: RefCell<Vec<Vec<Option<Rc<ThreadHost>>>>>,
    original_dst: Option<Rc<OriginalDstHosts>>,
    /// Other clusters, where it is made of such.
    aggregate: Option<RefCell<Rc<Aggregate>>>,
    breaker_stats: Option<Arc<BreakerStats>>,
    ring_stats: OnceCell<Arc<RingHashStats>>,
    maglev_stats: OnceCell<Arc<MaglevStats>>,
    subset_stats: OnceCell<Arc<SubsetStats>>,
}

/// What a pick may depend on.
#[derive(Clone, Copy, Default)]
pub struct LbContext<'a> {
    pub connection: Option<&'a Rc<ConnectionInfo>>,
    pub request: Option<&'a RequestHead>,
    pub dynamic_metadata: Option<&'a Metadata>,
    /// What the request hashes to; computed where [`ThreadCluster::wants_hash`] only.
    pub hash: Option<u64>,
    /// What the host's metadata must have.
    pub metadata_match: Option<&'a MetadataMatch>,
    /// What a retry asks for.
    pub retry: Option<RetryContext<'a>>,
    /// The host to take if it is there and its health allows it.
    pub override_host: Option<OverrideHost<'a>>,
    /// Tries before this one.
    pub attempt: u32,
}

/// What a stream is wanted for.
pub struct StreamRequest {
    pub downstream_protocol: Protocol,
    pub priority: Priority,
    pub protocol: ProtocolChoice,
    /// The client's connection, if there is one.
    pub connection: Option<Rc<ConnectionInfo>>,
    /// Names that TLS takes from the request.
    pub names: ServerNames,
}

/// How the host is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolChoice {
    /// HTTP, in the version that the cluster says.
    Http,
    /// The payload of a CONNECT, bare.
    Tcp,
}

impl ThreadCluster {
    fn new(cluster: &Arc<Cluster>, context: &Rc<Context>, before: Option<&Self>) -> Rc<Self> {
        let before = before.filter(|old| old.info().stat_prefix == cluster.info.stat_prefix);
        let stats = before.and_then(|old| old.shared.stats_if_used().cloned());
        let shared = Shared::new(cluster.info.clone(), context.clone(), stats);
        let breaker_stats = context.is_control.then(|| {
            let stats = before.and_then(|old| old.breaker_stats.clone());
            let stats = stats.unwrap_or_else(|| context.registry.attach(&cluster.info.stat_prefix));
            stats.set(cluster.info.breakers.clone());
            stats
        });
        let config = &cluster.info.config;
        let original_dst = match &config.discovery {
            Discovery::OriginalDst(rules) => Some(OriginalDstHosts::new(rules.clone(), shared.clone())),
            _ => None,
        };
        let stats = || shared.stats().clone();
        let this = Self {
            balancer: RefCell::new(Balancer::new(cluster, None, fastrand::Rng::new(), &stats)),
            hosts: RefCell::new(vacant(&cluster.hosts)),
            cluster: RefCell::new(cluster.clone()),
            shared,
            original_dst,
            aggregate: matches!(&config.discovery, Discovery::Aggregate(_)).then(RefCell::default),
            breaker_stats,
            ring_stats: OnceCell::new(),
            maglev_stats: OnceCell::new(),
            subset_stats: OnceCell::new(),
        };
        if context.is_control {
            this.shared.show_tls_stats();
            for (name, stats) in cluster.info.match_stats() {
                let prefix = format!("{}.{name}", cluster.info.stat_prefix);
                context.registry.detach(&prefix);
                context.registry.attach_group(&prefix, stats.clone());
            }
            if cluster.hosts.hosts().next().is_some() {
                this.stats().membership_change.inc();
            }
            this.show_membership(&cluster.hosts);
            this.show_tables(cluster);
        }
        let subsets_before = before.map(|old| old.cluster.borrow().clone());
        this.count_subsets(subsets_before.as_deref(), Some(cluster));
        Rc::new(this)
    }

    /// Takes over the hosts of `next`, which has the same configuration.
    fn update(&self, next: &Arc<Cluster>) {
        let before = self.cluster.replace(next.clone());
        if Arc::ptr_eq(&before.picks, &next.picks) {
            return;
        }
        let config = &self.shared.info.config;
        let local = self.balancer.borrow().local().cloned();
        self.balance(next, local);
        self.count_subsets(Some(&before), Some(next));
        if self.shared.context.is_control {
            self.show_tables(next);
        }
        if Arc::ptr_eq(&before.hosts, &next.hosts) {
            self.health_changed();
            return;
        }
        let mut known: HashMap<_, _> = self
            .hosts
            .take()
            .into_iter()
            .flatten()
            .flatten()
            .map(|host| (Arc::as_ptr(&host.host.state), host))
            .collect();
        let mut hosts = vacant(&next.hosts);
        for (set, seats) in next.hosts.priorities.iter().zip(&mut hosts) {
            for (host, seat) in set.hosts.iter().zip(seats) {
                *seat = known.remove(&Arc::as_ptr(&host.state)).map(|there| there.now(host));
            }
        }
        *self.hosts.borrow_mut() = hosts;
        known.values().for_each(|gone| gone.pools.retire());
        let members = |set: &HostSet| set.hosts().map(|host| Arc::as_ptr(&host.state)).collect::<HashSet<_>>();
        let changed = members(&before.hosts) != members(&next.hosts);
        if changed && config.load_balancing.close_connections_on_host_set_change {
            self.hosts.borrow().iter().flatten().flatten().for_each(|host| host.pools.drain());
        }
        if self.shared.context.is_control {
            if changed {
                self.stats().membership_change.inc();
            }
            self.show_membership(&next.hosts);
        }
    }

    /// Picks go by what `cluster` has from now on.
    fn balance(&self, cluster: &Arc<Cluster>, local: Option<Arc<LocalHosts>>) {
        let balancer = self.balancer.borrow().next(cluster, local, &|| self.shared.stats().clone());
        *self.balancer.borrow_mut() = balancer;
    }

    /// The local cluster's hosts are these.
    fn set_local(&self, hosts: &Arc<LocalHosts>) {
        let is_known = self.balancer.borrow().local().is_some_and(|known| Arc::ptr_eq(known, hosts));
        if !is_known {
            let cluster = self.cluster.borrow().clone();
            self.balance(&cluster, Some(hosts.clone()));
        }
    }

    /// Counts the subsets that came and went.
    fn count_subsets(&self, before: Option<&Cluster>, after: Option<&Cluster>) {
        fn subsets(cluster: Option<&Cluster>) -> Option<&HashSet<u64>> {
            cluster.and_then(|c| c.picks.subsets.as_ref()).map(|s| &s.identities)
        }
        let (before, after) = (subsets(before), subsets(after));
        if before.is_none() && after.is_none() {
            return;
        }
        let beyond = |these: Option<&HashSet<u64>>, those: Option<&HashSet<u64>>| {
            let is_new = |id: &&u64| those.is_none_or(|those| !those.contains(id));
            these.into_iter().flatten().filter(is_new).count() as u64
        };
        let stats = self.stats();
        let (created, removed) = (beyond(after, before), beyond(before, after));
        stats.lb_subsets_created.add(created);
        stats.lb_subsets_removed.add(removed);
        stats.lb_subsets_active.set(after.map_or(0, |after| after.len() as u64));
    }

    /// Shows how large the tables of consistent hashing are, and which hosts subsets leave out.
    fn show_tables(&self, cluster: &Cluster) {
        let registry = &self.shared.context.registry;
        if let Some(subsets) = &cluster.picks.subsets {
            let stats = self.subset_stats.get_or_init(|| registry.attach(&self.shared.info.stat_prefix));
            stats.lb_subsets_single_host_per_subset_duplicate.set(subsets.duplicates);
        }
        let tables = cluster.picks.any.priorities.iter().filter_map(|priority| priority.table.as_ref());
        for table in tables {
            match &table.kind {
                TableKind::Ring(ring) => {
                    let attach = || registry.attach(&format!("{}.ring_hash_lb", self.shared.info.stat_prefix));
                    let stats = self.ring_stats.get_or_init(attach);
                    stats.size.set(ring.len() as u64);
                    stats.min_hashes_per_host.set(ring.per_host.0);
                    stats.max_hashes_per_host.set(ring.per_host.1);
                }
                TableKind::Maglev(maglev) => {
                    let attach = || registry.attach(&format!("{}.maglev_lb", self.shared.info.stat_prefix));
                    let stats = self.maglev_stats.get_or_init(attach);
                    stats.min_entries_per_host.set(maglev.per_host.0);
                    stats.max_entries_per_host.set(maglev.per_host.1);
                }
            }
        }
    }

    /// Hosts changed their health: what follows from it but for the picks.
    fn health_changed(&self) {
        let hosts = self.host_set();
        let config = &self.shared.info.config;
        if config.close_connections_on_host_health_failure {
            let unhealthy = |host: &&Rc<ThreadHost>| host.host.health() == Health::Unhealthy;
            self.hosts.borrow().iter().flatten().flatten().filter(unhealthy).for_each(|host| host.pools.drain());
        }
        if self.shared.context.is_control {
            self.show_membership(&hosts);
        }
    }

    fn show_membership(&self, hosts: &HostSet) {
        let stats = self.stats();
        let count = |health| hosts.hosts().filter(|host| host.health() == health).count() as u64;
        stats.membership_total.set(hosts.hosts().count() as u64);
        stats.membership_healthy.set(count(Health::Healthy));
        stats.membership_degraded.set(count(Health::Degraded));
        stats.membership_excluded.set(hosts.hosts().filter(|host| host.is_excluded()).count() as u64);
        stats.max_host_weight.set(hosts.hosts().map(|host| host.weight).max().unwrap_or_default().into());
    }

    /// The cluster is gone, or has another configuration.
    fn retire(&self, forget_stats: bool) {
        if let Some(aggregate) = &self.aggregate {
            aggregate.take();
        }
        self.hosts.take().iter().flatten().flatten().for_each(|host| host.pools.retire());
        if forget_stats {
            let cluster = self.cluster.borrow().clone();
            self.count_subsets(Some(&cluster), None);
        }
        if let Some(hosts) = &self.original_dst {
            hosts.retire();
        }
        if forget_stats && self.shared.context.is_control {
            self.shared.context.registry.detach(&self.shared.info.stat_prefix);
            let rules = self.shared.info.match_stats().map(|(name, _)| name);
            for part in ["ring_hash_lb", "maglev_lb", "http2", "ssl", "ssl.certificate", "client_ssl_socket_factory"]
                .into_iter()
                .chain(rules)
            {
                self.shared.context.registry.detach(&format!("{}.{part}", self.shared.info.stat_prefix));
            }
        }
    }

    pub fn info(&self) -> &Arc<ClusterInfo> {
        &self.shared.info
    }

    /// This thread's part of the cluster's stats.
    pub fn stats(&self) -> &ClusterStats {
        self.shared.stats()
    }

    /// The cluster as it is now.
    pub(super) fn current(&self) -> Arc<Cluster> {
        self.cluster.borrow().clone()
    }

    /// The hosts of this moment.
    pub fn host_set(&self) -> Arc<HostSet> {
        self.cluster.borrow().hosts.clone()
    }

    /// The host for the next request or connection.
    pub fn choose_host(&self, context: &LbContext<'_>) -> Option<Rc<ThreadHost>> {
        let chosen = match (&self.original_dst, &self.aggregate) {
            (Some(hosts), _) => hosts.choose(context),
            (None, Some(aggregate)) => {
                let (aggregate, loads) = (aggregate.borrow().clone(), context.retry.and_then(|retry| retry.loads));
                let member = aggregate.pick(fastrand::u32(0..100), loads);
                member.and_then(|(cluster, loads)| cluster.choose(context, Some(loads)))
            }
            (None, None) => self.choose(context, None),
        };
        if chosen.is_none() {
            self.stats().upstream_cx_none_healthy.inc();
        }
        chosen
    }

    /// True if the pick depends on [`LbContext::hash`].
    pub fn wants_hash(&self) -> bool {
        let own = self.shared.info.config.load_balancing.policy.hashing().is_some();
        own || self.of_members(|member| member.wants_hash())
    }

    fn of_members(&self, is: impl Fn(&Self) -> bool) -> bool {
        self.aggregate.as_ref().is_some_and(|aggregate| aggregate.borrow().members().any(|member| is(member)))
    }

    /// True if the pick depends on [`LbContext::metadata_match`].
    pub fn wants_metadata(&self) -> bool {
        self.cluster.borrow().picks.subsets.is_some() || self.of_members(|member| member.wants_metadata())
    }

    /// Shares of priorities for a retry: those in `excluded` (by priority) take nothing for as long as there are others;
    /// then `excluded` is emptied. `None`: nothing is available, and the usual shares hold.
    pub fn loads_without(&self, excluded: &mut Vec<bool>) -> Option<PriorityLoads> {
        match &self.aggregate {
            Some(aggregate) => aggregate.borrow().loads_without(excluded),
            None => self.balancer.borrow().loads_without(excluded),
        }
    }

    /// The priority of a host that this cluster chose, as [`ThreadCluster::loads_without`] counts them.
    pub fn priority_of(&self, host: &ThreadHost) -> Option<usize> {
        match &self.aggregate {
            Some(aggregate) => aggregate.borrow().place(host.cluster().name(), host.host.priority),
            None => Some(host.host.priority as usize),
        }
    }

    /// One of this cluster's own hosts. `loads`: shares of priorities in place of all others.
    fn choose(&self, context: &LbContext<'_>, loads: Option<&PriorityLoads>) -> Option<Rc<ThreadHost>> {
        // Nothing is counted up that all threads share: this is done for each request.
        let choice = {
            let cluster = self.cluster.borrow();
            override_host::choose(&cluster.hosts, &cluster.info.config.load_balancing, context)
        };
        match choice {
            Choice::Host(priority, index) => self.host_at(priority, index),
            Choice::Nothing => None,
            Choice::Policy => self.picked(context, loads),
        }
    }

    fn picked(&self, context: &LbContext<'_>, loads: Option<&PriorityLoads>) -> Option<Rc<ThreadHost>> {
        let LbContext { hash, metadata_match, retry, .. } = *context;
        let context = PickContext { hash, metadata_match, retry, loads };
        let picked = self.balancer.borrow().pick(&context, self.stats())?;
        self.host_at(picked.priority, picked.index)
    }

    fn host_at(&self, priority: usize, index: usize) -> Option<Rc<ThreadHost>> {
        let mut hosts = self.hosts.borrow_mut();
        let seat = hosts.get_mut(priority)?.get_mut(index)?;
        if let Some(host) = seat {
            return Some(host.clone());
        }
        let cluster = self.cluster.borrow();
        let host = cluster.hosts.priorities.get(priority)?.hosts.get(index)?;
        Some(seat.insert(ThreadHost::new(host.clone(), self.shared.clone())).clone())
    }

    /// A stream to `host`; waits for a connection if none is free. Dropping the future gives the wait up.
    pub fn http_stream(
        &self,
        host: &Rc<ThreadHost>,
        wanted: StreamRequest,
    ) -> impl Future<Output = Result<Opened, StreamError>> + use<> {
        let StreamRequest { downstream_protocol, priority, protocol, connection, names } = wanted;
        // Of an aggregate the host is another cluster's.
        let shared = host.pools.shared.clone();
        let config = &shared.info.config;
        let wire = match &config.http.protocol {
            UpstreamProtocol::Http1(_) => pool::Protocol::Http1,
            UpstreamProtocol::Auto { .. } => pool::Protocol::Auto,
            UpstreamProtocol::Http2(_) => pool::Protocol::Http2,
            UpstreamProtocol::UseDownstream { http2: Some(_), .. } if downstream_protocol == Protocol::Http2 => {
                pool::Protocol::Http2
            }
            UpstreamProtocol::UseDownstream { .. } => pool::Protocol::Http1,
        };
        let tls = self.tls_options(wire, protocol, names);
        // A PROXY header speaks for one client's connection only.
        let tells_client = host.host.transport_socket.tells_client();
        let own_pool = tells_client || config.connection_pool_per_downstream_connection;
        let key = PoolKey {
            protocol: wire,
            priority,
            downstream: connection.as_ref().filter(|_| own_pool).map(|connection| connection.id),
            tls: tls.clone(),
        };
        let raw = (protocol == ProtocolChoice::Tcp).then(|| (shared.clone(), host.clone()));
        let pooled = raw.is_none().then(|| host.pools.open(key, connection.clone().filter(|_| tells_client)));
        async move {
            match (raw, pooled) {
                (Some((shared, host)), _) => {
                    let (io, connection) = tcp_connect(&shared, &host, connection, tls, priority).await?;
                    Ok((super::raw_stream::open(io, connection.clone()), connection))
                }
                (None, Some(pooled)) => pooled.await,
                (None, None) => Err(pool::overflow()),
            }
        }
    }

    /// What TLS is told for a connection; shared where nothing comes from the request.
    fn tls_options(&self, wire: pool::Protocol, choice: ProtocolChoice, names: ServerNames) -> Rc<ClientOptions> {
        let alpn = match (choice, wire) {
            (ProtocolChoice::Tcp, _) => Alpn::None,
            (_, pool::Protocol::Http1) => Alpn::Http1,
            (_, pool::Protocol::Http2) => Alpn::Http2,
            (_, pool::Protocol::Auto) => Alpn::Both,
        };
        if names == ServerNames::default() {
            return self.shared.context.tls_options(alpn);
        }
        let ServerNames { sni, san } = names;
        Rc::new(ClientOptions { sni, san, alpn_fallback: alpn.offer() })
    }

    /// A connection of its own to `host`.
    pub fn tcp_connect(
        &self,
        host: &Rc<ThreadHost>,
        context: &LbContext<'_>,
    ) -> impl Future<Output = Result<(Io, Rc<UpstreamConnection>), StreamError>> + use<> {
        let (shared, host, connection) = (host.pools.shared.clone(), host.clone(), context.connection.cloned());
        let tls = shared.context.tls_options(Alpn::None);
        async move { tcp_connect(&shared, &host, connection, tls, Priority::Default).await }
    }

    /// Counts a response's code. `internal`: the request came with `x-envoy-internal`; `detailed`: the router is to
    /// count at all (`dynamic_stats`).
    pub fn count_response(&self, info: &StreamInfo, status: u16, headers: &HeaderMap, detailed: bool, internal: bool) {
        if !detailed || info.is_health_check {
            return;
        }
        self.count_code(status, internal);
        if headers.get(ENVOY_UPSTREAM_CANARY).is_some_and(|v| v == "true") {
            self.stats().canary_upstream_rq.inc(status);
        }
    }

    /// Counts the code of an answer that the router gave in the upstream's place.
    pub fn count_local(&self, status: u16, detailed: bool, internal: bool) {
        if detailed {
            self.count_code(status, internal);
        }
    }

    fn count_code(&self, status: u16, internal: bool) {
        let stats = self.stats();
        stats.upstream_rq.inc(status);
        if internal { &stats.internal_upstream_rq } else { &stats.external_upstream_rq }.inc(status);
    }

    /// Counts how long a request took, from its end to the end of the response.
    pub fn count_time(&self, took: Duration, internal: bool) {
        let (stats, took) = (self.stats(), took.as_millis() as u64);
        stats.upstream_rq_time.record(took);
        if internal { &stats.internal_upstream_rq_time } else { &stats.external_upstream_rq_time }.record(took);
    }

    /// The same for a mirrored request.
    pub fn count_shadow_response(&self, status: u16) {
        self.count_code(status, true);
    }
}

async fn tcp_connect(
    shared: &Rc<Shared>,
    host: &Rc<ThreadHost>,
    downstream: Option<Rc<ConnectionInfo>>,
    tls: Rc<ClientOptions>,
    priority: Priority,
) -> Result<(Io, Rc<UpstreamConnection>), StreamError> {
    let stats = shared.stats();
    let breakers = shared.info.breakers.of(priority);
    if !breakers.pending_requests.try_take() {
        stats.upstream_rq_pending_overflow.inc();
        return Err(pool::overflow());
    }
    stats.upstream_rq_pending_total.inc();
    stats.upstream_rq_pending_active.inc();
    let mut pending = Pending { shared, priority, cancelled: true };
    let target = host.pools.host.borrow().clone();
    if !shared.may_connect(&target, priority, false) {
        pending.cancelled = false;
        return Err(pool::overflow());
    }
    let tally = Tally::begin(shared.clone(), target.state.clone(), priority);
    let result = shared.connect(target, downstream, tls, &tally).await;
    pending.cancelled = false;
    match result {
        Ok(connected) => {
            tally.is_request();
            let Connected { io, local, remote, sent: _, tls, distrusted } = connected;
            let connection = UpstreamConnection::new(tally, local, remote, None, tls);
            connection.stream_starts();
            let io = match distrusted {
                Some(distrusted) => Io::Boxed(Box::new(Guarded::new(io, distrusted))),
                None => io,
            };
            Ok((io, connection))
        }
        Err(error) => {
            stats.upstream_rq_pending_failure_eject.inc();
            Err(error)
        }
    }
}

/// A connection that is waited for counts as a pending request.
struct Pending<'a> {
    shared: &'a Rc<Shared>,
    priority: Priority,
    cancelled: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let stats = self.shared.stats();
        self.shared.info.breakers.of(self.priority).pending_requests.release();
        stats.upstream_rq_pending_active.dec();
        if self.cancelled {
            stats.upstream_rq_cancelled.inc();
        }
    }
}

/// Seats for all hosts, none of which was picked yet.
fn vacant(hosts: &HostSet) -> Vec<Vec<Option<Rc<ThreadHost>>>> {
    hosts.priorities.iter().map(|set| vec![None; set.hosts.len()]).collect()
}

impl Drop for ThreadCluster {
    fn drop(&mut self) {
        self.hosts.get_mut().iter().flatten().flatten().for_each(|host| host.pools.retire());
    }
}
