//! The upstream side of one thread: its clusters, their hosts, the way to a stream.
//!
//! Each worker has one [`Upstreams`], and the control thread, whose own streams (xDS) go the same way. What a thread has of a
//! cluster is made when it is first used: thousands that a thread never sends to cost it a pointer each. Invariant: a cluster whose
//! configuration is unchanged keeps its pools and its place in round robin when its hosts change.

mod thread_host;

pub use thread_host::ThreadHost;

use super::{
    Changed, ClusterId, ClusterTable,
    aggregate::Aggregate,
    balancer::{Balancer, LocalHosts, PickContext, PriorityLoads, RetryContext},
    cluster::{Cluster, ClusterInfo, LocalZone},
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
    shown::Shown,
    stats::ClusterStats,
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
use std::{cell::RefCell, future::Future, ops::Range, rc::Rc, sync::Arc, time::Duration};
use weft_config::{
    cluster::Discovery, endpoint::DropOverload, http_protocol_options::UpstreamProtocol, route::Priority,
};

/// All clusters as one thread has them.
pub struct Upstreams {
    context: Rc<Context>,
    table: RefCell<ClusterTable>,
    /// Those that this thread has used, by number.
    clusters: RefCell<Vec<Option<Rc<ThreadCluster>>>>,
    /// Those of them that are made of others.
    aggregates: RefCell<Vec<Rc<ThreadCluster>>>,
    /// By number; on the control thread.
    shown: Option<RefCell<Vec<Option<Shown>>>>,
    internals: Rc<Internals>,
    /// Where we are, if a local cluster is named.
    zone: RefCell<Option<Arc<LocalZone>>>,
    /// The local cluster as it is now, with its hosts by zone.
    local: RefCell<Option<(Arc<Cluster>, Arc<LocalHosts>)>>,
}

impl Upstreams {
    /// `is_control`: for the control thread, which shows the stats of all clusters.
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
        Rc::new(Self {
            context: Rc::new(Context::new(registry, connector)),
            table: RefCell::default(),
            clusters: RefCell::default(),
            aggregates: RefCell::default(),
            shown: is_control.then(RefCell::default),
            internals,
            zone: RefCell::default(),
            local: RefCell::default(),
        })
    }

    /// Takes over what runtime keys say of connections that are made from now on.
    pub fn set_runtime(&self, runtime: &RuntimeSnapshot) {
        self.context.looks_again.set(runtime.boolean(DRAIN_ON_TRUST_CHANGE).unwrap_or(false));
    }

    /// Takes over a snapshot's clusters: keeps what stayed, drains what went.
    pub fn apply(&self, table: &ClusterTable) {
        let before = self.table.replace(table.clone());
        let mut is_new = false;
        for changed in table.changes(&before) {
            self.change(changed);
            is_new = true;
        }
        if is_new {
            self.follow_members();
        }
    }

    /// Takes over clusters whose hosts changed their health.
    pub fn update(&self, clusters: &[Arc<Cluster>]) {
        for next in clusters {
            let id = next.info.id;
            let before = self.table.borrow().get(id).cloned();
            if before.as_ref().is_some_and(|before| Arc::ptr_eq(&before.info, &next.info)) {
                self.table.borrow_mut().set(id, Some(next.clone()));
                self.change(Changed { id, before: before.as_ref(), now: Some(next) });
            }
        }
        self.follow_members();
    }

    /// One cluster came, went or is another now.
    fn change(&self, changed: Changed<'_>) {
        let used = self.used(changed.id);
        let next = match (&used, changed.now) {
            (Some(used), Some(now)) if Arc::ptr_eq(&used.shared.info, &now.info) => {
                used.update(now);
                used.clone()
            }
            (None, Some(now)) if !now.counts_unused() => return self.show(changed),
            (_, Some(now)) => {
                let next = ThreadCluster::new(now, &self.context, used.as_deref());
                if let Some(used) = used {
                    used.retire(next.info().stat_prefix != used.info().stat_prefix);
                }
                self.seat(next.clone());
                next
            }
            (Some(used), None) => {
                used.retire(true);
                if let Some(seat) = self.clusters.borrow_mut().get_mut(changed.id.0 as usize) {
                    *seat = None;
                }
                used.clone()
            }
            (None, None) => return self.show(changed),
        };
        if next.aggregate.is_some() {
            let mut aggregates = self.aggregates.borrow_mut();
            aggregates.retain(|other| other.info().id != changed.id);
            if changed.now.is_some() {
                aggregates.push(next);
            }
        }
        self.show(changed);
    }

    /// Shows what is new of a cluster, on the thread that shows them.
    fn show(&self, Changed { id, before, now }: Changed<'_>) {
        let Some(shown) = &self.shown else { return };
        let (mut shown, registry) = (shown.borrow_mut(), &self.context.registry);
        let index = id.0 as usize;
        if shown.len() <= index {
            shown.resize_with(index + 1, || None);
        }
        let seat = &mut shown[index];
        match (seat.as_mut(), before, now) {
            (Some(there), Some(before), Some(now)) if before.info.stat_prefix == now.info.stat_prefix => {
                there.follow(before, now, registry);
            }
            (_, before, now) => {
                if let (Some(there), Some(before)) = (seat.take(), before) {
                    there.retire(&before.info.stat_prefix, registry);
                }
                *seat = now.map(|now| Shown::new(now, registry));
            }
        }
    }

    /// Takes over what follows from clusters for others.
    fn follow_members(&self) {
        self.set_local();
        let aggregates = self.aggregates.borrow().clone();
        aggregates.iter().for_each(|cluster| self.aggregate(cluster));
    }

    /// Makes an aggregate anew of what its members are now.
    fn aggregate(&self, cluster: &ThreadCluster) {
        if let (Discovery::Aggregate(names), Some(seat)) = (&cluster.info().config.discovery, &cluster.aggregate) {
            let members = names.iter().filter_map(|name| self.by_name(name));
            let threshold = cluster.info().config.load_balancing.healthy_panic_threshold;
            let aggregate = Rc::new(Aggregate::new(members, threshold));
            *seat.borrow_mut() = aggregate;
        }
    }

    /// Tells all clusters who is in which zone of the local one.
    fn set_local(&self) {
        let zone = self.zone.borrow().clone();
        let now = zone.and_then(|zone| self.table.borrow().by_name(&zone.cluster).cloned());
        let Some(now) = now else { return };
        let hosts = match &*self.local.borrow() {
            Some((before, _)) if Arc::ptr_eq(before, &now) => return,
            _ => Arc::new(now.picks.local_hosts()),
        };
        *self.local.borrow_mut() = Some((now, hosts.clone()));
        self.clusters().iter().for_each(|cluster| cluster.set_local(&hosts));
    }

    fn used(&self, id: ClusterId) -> Option<Rc<ThreadCluster>> {
        self.clusters.borrow().get(id.0 as usize)?.clone()
    }

    /// Puts a cluster where it is found by its number; what is said to all of them is said to it.
    fn seat(&self, cluster: Rc<ThreadCluster>) {
        let info = cluster.info();
        if info.zone.is_some() {
            self.zone.borrow_mut().clone_from(&info.zone);
        }
        if let Some((_, hosts)) = &*self.local.borrow() {
            cluster.set_local(hosts);
        }
        let mut clusters = self.clusters.borrow_mut();
        let index = info.id.0 as usize;
        if clusters.len() <= index {
            clusters.resize(index + 1, None);
        }
        clusters[index] = Some(cluster.clone());
    }

    /// The cluster of this number, made if it is used for the first time.
    pub fn get(&self, id: ClusterId) -> Option<Rc<ThreadCluster>> {
        if let Some(used) = self.clusters.borrow().get(id.0 as usize)
            && let Some(used) = used
        {
            return Some(used.clone());
        }
        self.first_use(id)
    }

    #[cold]
    fn first_use(&self, id: ClusterId) -> Option<Rc<ThreadCluster>> {
        let cluster = self.table.borrow().get(id)?.clone();
        let new = ThreadCluster::new(&cluster, &self.context, None);
        self.seat(new.clone());
        if new.aggregate.is_some() {
            self.aggregates.borrow_mut().push(new.clone());
            self.aggregate(&new);
        }
        Some(new)
    }

    /// For names that come with requests.
    pub fn by_name(&self, name: &str) -> Option<Rc<ThreadCluster>> {
        let id = self.table.borrow().id(name)?;
        self.get(id)
    }

    /// The name of a cluster, whether or not it is there.
    pub fn name(&self, id: ClusterId) -> String {
        self.table.borrow().name(id).to_owned()
    }

    /// The clusters that this thread has used, in the order of their numbers.
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
        let shared = Shared::new(cluster.info.clone(), context.clone(), before.map(|old| &*old.shared));
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
        };
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
        if Arc::ptr_eq(&before.hosts, &next.hosts) {
            self.health_changed();
            return;
        }
        self.seat_hosts(&before.hosts, &next.hosts);
        if before.hosts.members() != next.hosts.members() && config.load_balancing.close_connections_on_host_set_change
        {
            self.hosts.borrow().iter().flatten().flatten().for_each(|host| host.pools.drain());
        }
    }

    /// The hosts that stay keep what this thread has of them; the others are done with.
    fn seat_hosts(&self, before: &HostSet, next: &HostSet) {
        let mut seats = self.hosts.borrow_mut();
        let mut gone: Vec<Rc<ThreadHost>> = Vec::new();
        let splices = next.splices_since(before);
        match splices {
            // From the last on: places before it are still those that they were.
            Some(splices) => {
                for splice in splices.iter().rev() {
                    let Some(set) = seats.get_mut(splice.priority) else { continue };
                    let removed = set.splice(splice.before.clone(), std::iter::repeat_n(None, splice.now.len()));
                    gone.extend(removed.flatten());
                }
            }
            None => {
                gone.extend(std::mem::take(&mut *seats).into_iter().flatten().flatten());
                *seats = vacant(next);
            }
        }
        let mut known: HashMap<_, _> = gone.into_iter().map(|host| (Arc::as_ptr(&host.host.state), host)).collect();
        let mut look = |priority: usize, places: Range<usize>| {
            let (Some(set), Some(seats)) = (next.priorities.get(priority), seats.get_mut(priority)) else { return };
            for (host, seat) in set.hosts.iter().zip(seats).take(places.end).skip(places.start) {
                *seat = known.remove(&Arc::as_ptr(&host.state)).map(|there| there.now(host));
            }
        };
        match splices {
            Some(splices) => splices.iter().for_each(|splice| look(splice.priority, splice.now.clone())),
            None => next.priorities.iter().enumerate().for_each(|(i, set)| look(i, 0..set.hosts.len())),
        }
        drop(seats);
        known.values().for_each(|gone| gone.pools.retire());
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

    /// Hosts changed their health: what follows from it but for the picks.
    fn health_changed(&self) {
        if self.shared.info.config.close_connections_on_host_health_failure {
            let unhealthy = |host: &&Rc<ThreadHost>| host.host.health() == Health::Unhealthy;
            self.hosts.borrow().iter().flatten().flatten().filter(unhealthy).for_each(|host| host.pools.drain());
        }
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

    /// What share of requests is dropped, if the control plane asks for that.
    pub fn drop_overload(&self) -> Option<Arc<DropOverload>> {
        self.cluster.borrow().hosts.drop_overload.clone()
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
