//! Hosts as all threads see them, and the sets that discovery makes of them.
//!
//! Made on the control thread, immutable but for the atomics in [`HostState`]. Invariant: an endpoint that stays keeps its
//! state, and keeps its very [`Host`] if nothing about it changed.

use super::{
    health::{Health, HealthFlags, SharedHealth},
    health_check::is_checked,
    orca::Report,
    outlier::Monitor,
    transport_socket::UpstreamSocket,
};
use crate::{base::Address, observe::stream_info::Metadata, stats};
use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;
use std::{
    ops::Range,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use weft_config::{
    ClusterLoadAssignment,
    address::Address as ConfigAddress,
    cluster::TransportSocketMatch,
    endpoint::{
        AssignmentChanges, DropOverload, GroupChanges, HealthCheckConfig, HealthStatus, LbEndpoint, Locality,
        MOST_WEIGHT,
    },
};

/// One endpoint of a cluster.
#[derive(Debug)]
pub struct Host {
    pub address: Address,
    /// Tried in turn when the first one cannot be connected to.
    pub additional_addresses: Vec<Address>,
    /// For `auto_host_rewrite`; may be empty.
    pub hostname: Arc<str>,
    pub metadata: Option<Arc<Metadata>>,
    pub locality: Arc<Locality>,
    pub priority: u32,
    /// At least 1.
    pub weight: u32,
    /// What EDS says of its health.
    pub eds_health: HealthStatus,
    pub transport_socket: Arc<UpstreamSocket>,
    /// How it is checked, where that is said.
    pub checks: Option<Box<HealthCheckConfig>>,
    pub state: Arc<HostState>,
}

/// What outlives changes of an endpoint's weight, health and metadata.
#[derive(Debug, Default)]
pub struct HostState {
    /// What active checks and outlier detection found.
    pub health: SharedHealth,
    pub cx_active: AtomicU32,
    pub cx_total: AtomicU64,
    pub cx_connect_fail: AtomicU64,
    pub rq_active: AtomicU32,
    pub rq_pending_active: AtomicU32,
    pub rq_total: AtomicU64,
    pub rq_success: AtomicU64,
    pub rq_error: AtomicU64,
    pub rq_timeout: AtomicU64,
    /// The weight that follows from the host's own reports (client-side weighted round robin); 0: none.
    pub reported_weight: AtomicU32,
    /// What it reported last.
    pub report: Report,
    /// Since when it is healthy.
    healthy_since: Moment,
    /// An active check of it was made.
    was_checked: AtomicBool,
    /// What becomes of requests, where outlier detection asks.
    outlier: OnceLock<Box<Monitor>>,
}

/// A moment that threads share, in milliseconds since the first one; at first the present one.
#[derive(Debug)]
struct Moment(AtomicU64);

static FIRST_MOMENT: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Default for Moment {
    fn default() -> Self {
        Self(AtomicU64::new(now()))
    }
}

/// Milliseconds since the first moment.
pub(super) fn now() -> u64 {
    FIRST_MOMENT.elapsed().as_millis() as u64
}

impl HostState {
    /// The moment from which the host is healthy: when it was found, or when a check found it so again.
    pub fn healthy_since(&self) -> Instant {
        *FIRST_MOMENT + Duration::from_millis(self.healthy_since.0.load(Relaxed))
    }

    /// An active check was made now; true if it was the first.
    pub fn was_checked_now(&self) -> bool {
        !self.was_checked.swap(true, Relaxed)
    }

    pub fn was_checked(&self) -> bool {
        self.was_checked.load(Relaxed)
    }

    /// What outlier detection sees of the host.
    pub fn outlier(&self) -> Option<&Monitor> {
        self.outlier.get().map(|monitor| &**monitor)
    }

    /// The same, made if there is none.
    pub fn monitor(&self, new: impl FnOnce() -> Monitor) -> &Monitor {
        self.outlier.get_or_init(|| Box::new(new()))
    }

    /// The host has become healthy now: slow start begins.
    pub fn becomes_healthy(&self) {
        self.healthy_since.0.store(now(), Relaxed);
    }
}

impl Host {
    pub fn health(&self) -> Health {
        self.health_flags().health()
    }

    /// Neither its checks nor EDS say that it is not well.
    fn health_is_known_good(&self) -> bool {
        !self.health_flags().has(HealthFlags::FAILED_ACTIVE_HC | HealthFlags::FAILED_EDS_HEALTH)
    }

    /// What EDS, active checks and outlier detection say together.
    pub fn health_flags(&self) -> HealthFlags {
        HealthFlags::of_eds(self.eds_health) | self.state.health.get()
    }

    /// Its health in the words of EDS, with what checks and outlier detection found.
    pub fn status(&self) -> HealthStatus {
        let flags = self.health_flags();
        if flags.has(HealthFlags::FAILED_ACTIVE_HC | HealthFlags::FAILED_OUTLIER_CHECK) {
            return HealthStatus::Unhealthy;
        }
        match (self.eds_health, flags.health()) {
            (HealthStatus::Unknown | HealthStatus::Healthy, Health::Degraded) => HealthStatus::Degraded,
            (HealthStatus::Unknown, Health::Healthy) => HealthStatus::Healthy,
            (eds, _) => eds,
        }
    }

    /// Hosts that do not count when the share of available hosts is computed.
    pub fn is_excluded(&self) -> bool {
        self.health_flags().is_excluded()
    }

    /// `canary: true` in the metadata `envoy.lb`.
    pub fn is_canary(&self) -> bool {
        let canary = self.metadata.as_ref().and_then(|m| m.get("envoy.lb")?.get("canary"));
        canary.and_then(serde_json::Value::as_bool).unwrap_or_default()
    }

    /// True if the host's metadata `envoy.lb` has all of `labels`; of a list, one element is enough.
    pub fn has_labels(&self, labels: &serde_json::Map<String, serde_json::Value>) -> bool {
        let own = self.metadata.as_ref().and_then(|metadata| metadata.get("envoy.lb"));
        labels.iter().all(|(key, wanted)| match own.and_then(|own| own.get(key)) {
            Some(serde_json::Value::Array(list)) => list.contains(wanted),
            found => found == Some(wanted),
        })
    }

    fn is_as(&self, other: &Self) -> bool {
        let Self {
            address,
            additional_addresses,
            hostname,
            metadata,
            locality,
            priority,
            weight,
            eds_health,
            transport_socket,
            checks,
            state,
        } = self;
        Arc::ptr_eq(state, &other.state)
            && *address == other.address
            && *additional_addresses == other.additional_addresses
            && *hostname == other.hostname
            && *metadata == other.metadata
            && *locality == other.locality
            && *priority == other.priority
            && *weight == other.weight
            && *eds_health == other.eds_health
            && Arc::ptr_eq(transport_socket, &other.transport_socket)
            && *checks == other.checks
    }
}

/// The hosts of a cluster, by priority.
#[derive(Debug, Default)]
pub struct HostSet {
    /// By priority; without gaps.
    pub priorities: Vec<PrioritySet>,
    /// Percent.
    pub overprovisioning_factor: u32,
    pub weighted_priority_health: bool,
    /// Requests that no host gets.
    pub drop_overload: Option<Arc<DropOverload>>,
    /// Where hosts stand by their addresses: (priority, index). Made when it is first asked for.
    by_address: OnceLock<HashMap<Address, (u32, u32)>>,
    /// Tells it from any other.
    id: u64,
    /// Stands for who its hosts are: a set of the same hosts, in whatever order, has the same.
    members: u64,
    /// Where the endpoints of each group of its assignment stand, if each has its place there; else nothing.
    groups: Box<[Group]>,
    /// In what it differs from the set that it was made of, by that one's number.
    since: Option<(u64, Box<[Splice]>)>,
}

/// Where the endpoints of one group stand: in a row, and nobody else of their locality.
#[derive(Clone, Copy, Debug)]
struct Group {
    priority: u32,
    first: u32,
    count: u32,
}

/// Places in which two sets of hosts differ. The others hold the same hosts, in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splice {
    pub priority: usize,
    pub before: Range<usize>,
    pub now: Range<usize>,
}

/// A number that no other set has.
fn number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Relaxed) + 1
}

/// The hosts of one priority.
#[derive(Debug, Default)]
pub struct PrioritySet {
    /// All, in the order in which they were given.
    pub hosts: Vec<Arc<Host>>,
    pub localities: Vec<LocalityHosts>,
}

/// The hosts of one locality within a priority.
#[derive(Debug)]
pub struct LocalityHosts {
    pub locality: Arc<Locality>,
    /// 0: none was given.
    pub weight: u32,
    /// Indices into the priority's hosts.
    pub hosts: Vec<u32>,
}

stats! {
    /// `cluster.NAME.RULE.*`, with the rule's name or `default`; written by the control thread.
    pub struct MatchStats {
        counter total_match_count,
    }
}

/// The transport socket of hosts whose metadata a rule matches.
#[derive(Debug)]
pub struct SocketRule {
    pub rule: TransportSocketMatch,
    pub socket: Arc<UpstreamSocket>,
    pub stats: Arc<MatchStats>,
}

/// The parts of a cluster's configuration that shape its hosts.
#[derive(Debug)]
pub struct HostRules {
    pub transport_socket: Arc<UpstreamSocket>,
    /// Counts the hosts that no rule matches.
    pub default_match: Arc<MatchStats>,
    pub matches: Vec<SocketRule>,
    /// An address counts once, at its first place (EDS).
    pub unique: bool,
    /// Hosts take no traffic before they were checked.
    pub checked: bool,
    /// Nor do they count as members till then.
    pub ignores_unchecked: bool,
    /// A host that discovery names no longer stays for as long as its checks are good.
    pub keeps_healthy: bool,
}

impl HostRules {
    /// The state of a host that was not known before.
    fn new_state(&self, endpoint: &LbEndpoint) -> HostState {
        let state = HostState::default();
        if self.checked && !endpoint.health_check.disable_active_health_check {
            state.health.set(HealthFlags::FAILED_ACTIVE_HC);
            if self.ignores_unchecked {
                state.health.set(HealthFlags::PENDING_ACTIVE_HC);
            }
        }
        state
    }
}

impl HostSet {
    /// The hosts of an assignment whose addresses are all resolved; those that `before` had too keep their state.
    pub fn build(assignment: &ClusterLoadAssignment, rules: &HostRules, before: Option<&HostSet>) -> Self {
        let mut known = HashMap::<&Address, Vec<&Arc<Host>>>::default();
        for host in before.into_iter().flat_map(HostSet::hosts) {
            known.entry(&host.address).or_default().push(host);
        }
        let mut set = Self {
            overprovisioning_factor: assignment.policy.overprovisioning_factor,
            weighted_priority_health: assignment.policy.weighted_priority_health,
            drop_overload: assignment.policy.drop_overload.clone().map(Arc::new),
            id: number(),
            ..Self::default()
        };
        let priorities = assignment.localities.iter().map(|group| group.priority as usize + 1).max().unwrap_or(0);
        set.priorities.reserve_exact(priorities);
        set.priorities.resize_with(priorities, PrioritySet::default);
        let mut groups = Vec::with_capacity(assignment.localities.len());
        let (mut is_plain, mut are_the_same) = (true, true);
        let mut seen = HashSet::default();
        for group in &assignment.localities {
            let in_priority = &mut set.priorities[group.priority as usize];
            let locality = shared(&group.locality);
            let first = in_priority.hosts.len() as u32;
            in_priority.hosts.reserve_exact(group.endpoints.len());
            for endpoint in &group.endpoints {
                let Some(address) = resolved(&endpoint.address) else { continue };
                if rules.unique && !seen.insert(address.clone()) {
                    continue;
                }
                let before = known.get_mut(&address).filter(|list| !list.is_empty()).map(|list| list.remove(0));
                let host = Host::new(endpoint, address, locality.clone(), group, rules, before);
                are_the_same &= before.is_some_and(|before| Arc::ptr_eq(&before.state, &host.state));
                host.state.health.clear(HealthFlags::PENDING_DYNAMIC_REMOVAL);
                in_priority.hosts.push(host);
            }
            let indices = first..in_priority.hosts.len() as u32;
            is_plain &= indices.len() == group.endpoints.len();
            groups.push(Group { priority: group.priority, first, count: indices.len() as u32 });
            match in_priority.localities.iter_mut().find(|l| *l.locality == *locality) {
                Some(there) => {
                    there.hosts.extend(indices);
                    is_plain = false;
                }
                None => {
                    in_priority.localities.reserve_exact(1);
                    in_priority.localities.push(LocalityHosts {
                        locality,
                        weight: group.load_balancing_weight.unwrap_or_default(),
                        hosts: indices.collect(),
                    });
                }
            }
        }
        let mut gone = known.into_values().flatten().peekable();
        are_the_same &= gone.peek().is_none();
        if rules.checked && rules.keeps_healthy {
            for host in gone.filter(|host| is_checked(host) && host.health_is_known_good()) {
                host.state.health.set(HealthFlags::PENDING_DYNAMIC_REMOVAL);
                set.keep(host);
                is_plain = false;
            }
        }
        set.members = if are_the_same { before.map_or(0, |before| before.members) } else { set.id };
        if is_plain && rules.unique {
            set.groups = groups.into();
        }
        set
    }

    /// The same as [`HostSet::build`] of an assignment that differs by `changes` from the one that this set was made of, at the cost
    /// of what changed: `new` holds the new endpoints. `None`: it cannot be made in this way.
    pub fn changed(&self, changes: &AssignmentChanges, new: &ClusterLoadAssignment, rules: &HostRules) -> Option<Self> {
        // Rules are looked at, and hosts kept for their health, for all together.
        let is_plain = rules.matches.is_empty() && rules.unique && !(rules.checked && rules.keeps_healthy);
        let fits = |(group, changes): (&Group, &GroupChanges)| group.count as usize == changes.before;
        if !is_plain
            || [changes.groups.len(), new.localities.len()] != [self.groups.len(); 2]
            || !self.groups.iter().zip(&changes.groups).all(fits)
        {
            return None;
        }
        let mut set = Self {
            overprovisioning_factor: self.overprovisioning_factor,
            weighted_priority_health: self.weighted_priority_health,
            drop_overload: self.drop_overload.clone(),
            id: number(),
            ..Self::default()
        };
        set.priorities.reserve_exact(self.priorities.len());
        set.priorities.resize_with(self.priorities.len(), PrioritySet::default);
        let removed = self.groups.iter().zip(&changes.groups).flat_map(|(group, changes)| {
            let hosts = &self.priorities[group.priority as usize].hosts[group.first as usize..];
            changes.splices.iter().flat_map(|(before, _)| &hosts[before.clone()])
        });
        let mut known: HashMap<&Address, &Arc<Host>> = removed.map(|host| (&host.address, host)).collect();
        let mut added = Added::default();
        let mut splices = Vec::new();
        let mut groups = Vec::with_capacity(self.groups.len());
        let mut are_the_same = true;
        for ((group, changes), new) in self.groups.iter().zip(&changes.groups).zip(&new.localities) {
            let priority = group.priority as usize;
            let (before, in_priority) = (self.priorities.get(priority)?, set.priorities.get_mut(priority)?);
            let before = before.hosts.get(group.first as usize..)?.get(..group.count as usize)?;
            let locality = shared(&new.locality);
            let first = in_priority.hosts.len();
            let hosts = &mut in_priority.hosts;
            hosts.reserve_exact(changes.now);
            let mut endpoints = new.endpoints.iter();
            let mut kept_from = 0;
            for (old, now) in &changes.splices {
                hosts.extend_from_slice(before.get(kept_from..old.start)?);
                kept_from = old.end;
                for endpoint in endpoints.by_ref().take(now.len()) {
                    let address = resolved(&endpoint.address)?;
                    added.insert(&address).then_some(())?;
                    let known = known.remove(&address);
                    let host = Host::new(endpoint, address, locality.clone(), new, rules, known);
                    are_the_same &= known.is_some_and(|known| Arc::ptr_eq(&known.state, &host.state));
                    hosts.push(host);
                }
                let (was, is) = (group.first as usize, first);
                splices.push(Splice {
                    priority,
                    before: was + old.start..was + old.end,
                    now: is + now.start..is + now.end,
                });
            }
            hosts.extend_from_slice(before.get(kept_from..)?);
            let of_group = hosts.get(first..)?;
            // As the reader of the whole would have it.
            let weight = of_group.iter().map(|host| u64::from(host.weight)).sum::<u64>();
            if of_group.len() != changes.now || weight > MOST_WEIGHT {
                return None;
            }
            groups.push(Group { priority: group.priority, first: first as u32, count: of_group.len() as u32 });
            in_priority.localities.reserve_exact(1);
            in_priority.localities.push(LocalityHosts {
                locality,
                weight: new.load_balancing_weight.unwrap_or_default(),
                hosts: (first as u32..hosts.len() as u32).collect(),
            });
        }
        // An address counts once.
        if !added.is_empty() && set.hosts().filter(|host| added.contains(&host.address)).count() != added.len() {
            return None;
        }
        are_the_same &= known.is_empty();
        set.members = if are_the_same { self.members } else { set.id };
        // Those that stay are found by their rule again.
        rules.default_match.total_match_count.add((set.hosts().count() - added.len()) as u64);
        set.groups = groups.into();
        set.since = Some((self.id, splices.into()));
        Some(set)
    }

    /// Stands for who the hosts are: sets of the same hosts have the same.
    pub fn members(&self) -> u64 {
        self.members
    }

    /// In what this set differs from `before`, priority by priority and in ascending order, if it was made of it; all else are the same
    /// hosts.
    pub fn splices_since(&self, before: &Self) -> Option<&[Splice]> {
        self.since.as_ref().filter(|(id, _)| *id == before.id).map(|(_, splices)| &**splices)
    }

    /// Adds a host at the end of its priority and locality.
    fn keep(&mut self, host: &Arc<Host>) {
        let priority = host.priority as usize;
        if self.priorities.len() <= priority {
            self.priorities.resize_with(priority + 1, PrioritySet::default);
        }
        let in_priority = &mut self.priorities[priority];
        let index = in_priority.hosts.len() as u32;
        in_priority.hosts.push(host.clone());
        match in_priority.localities.iter_mut().find(|l| *l.locality == *host.locality) {
            Some(there) => there.hosts.push(index),
            None => {
                let locality = host.locality.clone();
                in_priority.localities.push(LocalityHosts { locality, weight: 0, hosts: vec![index] });
            }
        }
    }

    /// The set without the hosts that stayed for their health alone, and lost it; `None` if there are none.
    pub(super) fn without_lost(&self) -> Option<Self> {
        let lost = |host: &Host| {
            let flags = host.state.health.get();
            flags.has(HealthFlags::PENDING_DYNAMIC_REMOVAL) && flags.has(HealthFlags::FAILED_ACTIVE_HC)
        };
        if !self.hosts().any(|host| lost(host)) {
            return None;
        }
        let id = number();
        let mut next = Self {
            overprovisioning_factor: self.overprovisioning_factor,
            weighted_priority_health: self.weighted_priority_health,
            drop_overload: self.drop_overload.clone(),
            id,
            members: id,
            ..Self::default()
        };
        for set in &self.priorities {
            let mut places = Vec::with_capacity(set.hosts.len());
            let mut kept = PrioritySet::default();
            for host in &set.hosts {
                places.push((!lost(host)).then_some(kept.hosts.len() as u32));
                if !lost(host) {
                    kept.hosts.push(host.clone());
                }
            }
            kept.localities = set
                .localities
                .iter()
                .map(|locality| LocalityHosts {
                    locality: locality.locality.clone(),
                    weight: locality.weight,
                    hosts: locality.hosts.iter().filter_map(|i| places.get(*i as usize).copied().flatten()).collect(),
                })
                .collect();
            next.priorities.push(kept);
        }
        Some(next)
    }

    /// The host with this address, with its priority and index; the first of several.
    pub fn find(&self, address: &Address) -> Option<(usize, usize, &Arc<Host>)> {
        let by_address = self.by_address.get_or_init(|| {
            let mut all = HashMap::default();
            for (priority, set) in self.priorities.iter().enumerate() {
                for (index, host) in set.hosts.iter().enumerate() {
                    all.entry(host.address.clone()).or_insert((priority as u32, index as u32));
                }
            }
            all
        });
        let (priority, index) = *by_address.get(address)?;
        let host = self.priorities.get(priority as usize)?.hosts.get(index as usize)?;
        Some((priority as usize, index as usize, host))
    }

    /// True if this host, whatever is new about it, is one of them.
    pub fn holds(&self, host: &Host) -> bool {
        let is = |other: &Arc<Host>| Arc::ptr_eq(&other.state, &host.state);
        // Of several with one address the first is found.
        self.find(&host.address).is_some_and(|(_, _, found)| is(found)) || self.hosts().any(is)
    }

    /// All hosts, the highest priority first.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flat_map(|priority| &priority.hosts)
    }
}

impl Host {
    fn new(
        endpoint: &LbEndpoint,
        address: Address,
        locality: Arc<Locality>,
        group: &weft_config::endpoint::LocalityLbEndpoints,
        rules: &HostRules,
        before: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let matched = rules.matches.iter().find(|m| m.rule.takes(&endpoint.metadata) || m.rule.takes(&group.metadata));
        matched.map_or(&rules.default_match, |m| &m.stats).total_match_count.inc();
        let transport_socket = matched.map_or(&rules.transport_socket, |m| &m.socket);
        // Where connections to it were made in another way it is a different host.
        let known = before.filter(|before| Arc::ptr_eq(transport_socket, &before.transport_socket));
        let this = Self {
            additional_addresses: endpoint.additional_addresses.iter().filter_map(resolved).collect(),
            hostname: if endpoint.hostname.is_empty() { Arc::default() } else { endpoint.hostname.as_str().into() },
            metadata: metadata(&endpoint.metadata),
            locality,
            priority: group.priority,
            weight: endpoint.load_balancing_weight,
            eds_health: endpoint.health_status,
            transport_socket: transport_socket.clone(),
            checks: (endpoint.health_check != HealthCheckConfig::default())
                .then(|| Box::new(endpoint.health_check.clone())),
            state: known.map_or_else(|| Arc::new(rules.new_state(endpoint)), |known| known.state.clone()),
            address,
        };
        match before {
            Some(same) if this.is_as(same) => same.clone(),
            _ => Arc::new(this),
        }
    }

    /// True if what is found of one by checks holds for the other: the same host, checked in the same way.
    pub fn is_checked_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state) && self.checks == other.checks
    }

    /// The same host where its checks go: another address or port, where the endpoint or the check says so.
    pub fn for_checks(self: &Arc<Self>, alt_port: Option<u16>) -> Arc<Self> {
        let mut address = self.address.clone();
        let checks = self.checks.as_deref();
        if let Some(other) = checks.and_then(|checks| checks.address.as_ref()).and_then(resolved) {
            address = other;
        }
        let port = checks.map(|checks| checks.port).filter(|port| *port > 0).or(alt_port);
        if let (Some(port), Address::Ip(ip)) = (port, &mut address) {
            ip.set_port(port);
        }
        if address == self.address {
            return self.clone();
        }
        Arc::new(Self {
            address,
            additional_addresses: Vec::new(),
            hostname: self.hostname.clone(),
            metadata: self.metadata.clone(),
            locality: self.locality.clone(),
            priority: self.priority,
            weight: self.weight,
            eds_health: self.eds_health,
            transport_socket: self.transport_socket.clone(),
            checks: self.checks.clone(),
            state: self.state.clone(),
        })
    }
}

/// The addresses of the endpoints that are new: few as a rule, so that it is quicker to compare than to hash.
#[derive(Default)]
struct Added {
    few: SmallVec<[Address; 4]>,
    many: HashSet<Address>,
}

impl Added {
    /// False if it is there.
    fn insert(&mut self, address: &Address) -> bool {
        if self.contains(address) {
            return false;
        }
        match self.few.len() < self.few.inline_size() {
            true => self.few.push(address.clone()),
            false => drop(self.many.insert(address.clone())),
        }
        true
    }

    fn contains(&self, address: &Address) -> bool {
        self.few.contains(address) || !self.many.is_empty() && self.many.contains(address)
    }

    fn len(&self) -> usize {
        self.few.len() + self.many.len()
    }

    fn is_empty(&self) -> bool {
        self.few.is_empty()
    }
}

/// Most hosts are in no locality, which is one for all of them.
fn shared(locality: &Locality) -> Arc<Locality> {
    static NOWHERE: LazyLock<Arc<Locality>> = LazyLock::new(Arc::default);
    if locality.is_empty() { NOWHERE.clone() } else { Arc::new(locality.clone()) }
}

/// Metadata as streams carry it.
pub(super) fn metadata(config: &weft_config::metadata::Metadata) -> Option<Arc<Metadata>> {
    let values = config.iter().map(|(name, values)| (name.as_str().into(), values.clone()));
    (!config.is_empty()).then(|| Arc::new(values.collect()))
}

/// The address, if it needs no DNS.
fn resolved(address: &ConfigAddress) -> Option<Address> {
    Some(match address {
        ConfigAddress::Socket(socket) => socket.ip()?.into(),
        ConfigAddress::Pipe(pipe) => Address::Unix(pipe.path.as_str().into()),
        ConfigAddress::Internal(internal) => Address::Internal {
            listener: internal.server_listener_name.as_str().into(),
            endpoint_id: internal.endpoint_id.as_str().into(),
        },
    })
}

#[cfg(test)]
#[path = "host_tests.rs"]
pub(super) mod tests;
