//! Finds the policies that can take a request, without a walk over all of them.
//!
//! A policy that asks for an exact name of the peer, an exact path, a prefix, a port and so on can take only requests
//! that have it: each policy is filed under one such set of [`Key`]s, the one that it shares with the fewest others.
//! What asks for nothing of that kind (a regular expression, a negation) is looked at every time. Candidates come out in
//! the policies' order.

use super::Facts;
use foldhash::{HashMap, HashMapExt};
use ipnet::IpNet;
use smallvec::SmallVec;
use std::net::IpAddr;
use weft_config::{
    header_matcher::{HeaderMatcher, HeaderTest},
    header_value::HeaderKey,
    rbac::Rule,
    string_matcher::StringMatcher,
};

/// With fewer policies than this, a walk is cheaper than the look-ups.
const FEW: usize = 4;
/// A set of more keys than this is not worth its memory.
const MOST_KEYS: usize = 1024;

/// Something that a policy asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Identity(Box<str>),
    ServerName(Box<str>),
    Path(Box<[u8]>),
    PathPrefix(Box<[u8]>),
    /// Index into [`Index::header_keys`].
    Header(usize, Box<[u8]>),
    Port(u32),
    Address(Which, IpNet),
}

/// One of the addresses of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Which {
    Source,
    DirectRemote,
    Remote,
    Destination,
}

/// Places of policies, in order.
type Places = Vec<u32>;

type ByText = HashMap<Box<[u8]>, Places>;

/// Policies by what they ask for.
#[derive(Default)]
pub struct Index {
    /// Few policies are walked: how many there are.
    walk: Option<u32>,
    identities: HashMap<Box<str>, Places>,
    server_names: HashMap<Box<str>, Places>,
    paths: ByText,
    /// By length.
    prefixes: Vec<(usize, ByText)>,
    header_keys: Vec<HeaderKey>,
    headers: Vec<ByText>,
    ports: HashMap<u32, Places>,
    /// By prefix length.
    addresses: Vec<(Which, u8, HashMap<IpNet, Places>)>,
    rest: Places,
}

/// Sets of keys; a request that none of a set's keys fits is not taken.
type Alternatives = Vec<Vec<Key>>;

impl Index {
    pub fn new<'r>(rules: impl ExactSizeIterator<Item = &'r Rule>) -> Self {
        let mut index = Self::default();
        if rules.len() < FEW {
            index.walk = Some(rules.len() as u32);
            return index;
        }
        let all: Vec<_> = rules.map(|rule| alternatives(rule, &mut index.header_keys)).collect();
        index.headers = index.header_keys.iter().map(|_| HashMap::new()).collect();
        let mut shared: HashMap<&Key, u64> = HashMap::new();
        all.iter().flatten().flatten().for_each(|key| *shared.entry(key).or_default() += 1);
        for (place, alternatives) in (0u32..).zip(&all) {
            // How many policies are looked at for its sake.
            let cost =
                |set: &&Vec<Key>| set.iter().map(|key| shared.get(key).copied().unwrap_or_default()).sum::<u64>();
            match alternatives.iter().min_by_key(cost) {
                Some(set) => set.iter().for_each(|key| index.add(key, place)),
                None => index.rest.push(place),
            }
        }
        index
    }

    /// Every policy is looked at.
    #[cfg(test)]
    pub fn walk_all(count: u32) -> Self {
        Self { walk: Some(count), ..Self::default() }
    }

    /// The first policy, in order, that `takes` says takes it. It is asked only for those that can.
    pub fn first(&self, facts: &Facts<'_>, mut takes: impl FnMut(u32) -> bool) -> Option<u32> {
        if let Some(count) = self.walk {
            return (0..count).find(|place| takes(*place));
        }
        let mut lists = SmallVec::<[&[u32]; 8]>::new();
        self.look_up(facts, &mut |places| lists.extend(places.map(Vec::as_slice)));
        let mut last = None;
        loop {
            let (at, place) =
                lists.iter().enumerate().filter_map(|(i, list)| Some((i, *list.first()?))).min_by_key(|(_, n)| *n)?;
            // One policy may be filed under several keys that fit.
            if last != Some(place) && takes(place) {
                return Some(place);
            }
            last = Some(place);
            lists[at] = &lists[at][1..];
        }
    }

    fn look_up<'i>(&'i self, facts: &Facts<'_>, found: &mut impl FnMut(Option<&'i Places>)) {
        if !self.identities.is_empty() {
            facts.identities().for_each(|name| found(self.identities.get(name)));
        }
        if !self.server_names.is_empty() {
            found(self.server_names.get(facts.server_name()));
        }
        if let Some(path) = facts.path() {
            if !self.paths.is_empty() {
                found(self.paths.get(path));
            }
            for (length, prefixes) in &self.prefixes {
                found(path.get(..*length).and_then(|start| prefixes.get(start)));
            }
        }
        for (key, by_value) in self.header_keys.iter().zip(&self.headers).filter(|(_, map)| !map.is_empty()) {
            let values = facts.values(key);
            values.iter().for_each(|value| found(by_value.get(*value)));
            if values.len() > 1 {
                found(by_value.get(&*values.join(&b","[..])));
            }
        }
        if !self.ports.is_empty() {
            found(facts.destination_port().and_then(|port| self.ports.get(&port)));
        }
        for (which, length, by_net) in &self.addresses {
            let net = which.of(facts).and_then(|ip| IpNet::new(ip, *length).ok());
            found(net.and_then(|net| by_net.get(&net.trunc())));
        }
        found(Some(&self.rest));
    }

    fn add(&mut self, key: &Key, place: u32) {
        let places = match key {
            Key::Identity(name) => self.identities.entry(name.clone()).or_default(),
            Key::ServerName(name) => self.server_names.entry(name.clone()).or_default(),
            Key::Path(path) => self.paths.entry(path.clone()).or_default(),
            Key::PathPrefix(prefix) => {
                let at = match self.prefixes.iter().position(|(length, _)| *length == prefix.len()) {
                    Some(at) => at,
                    None => {
                        self.prefixes.push((prefix.len(), HashMap::new()));
                        self.prefixes.len() - 1
                    }
                };
                self.prefixes[at].1.entry(prefix.clone()).or_default()
            }
            Key::Header(key, value) => self.headers[*key].entry(value.clone()).or_default(),
            Key::Port(port) => self.ports.entry(*port).or_default(),
            Key::Address(which, net) => {
                let same = |(w, length, _): &(Which, u8, _)| (w, *length) == (which, net.prefix_len());
                let at = match self.addresses.iter().position(same) {
                    Some(at) => at,
                    None => {
                        self.addresses.push((*which, net.prefix_len(), HashMap::new()));
                        self.addresses.len() - 1
                    }
                };
                self.addresses[at].2.entry(*net).or_default()
            }
        };
        // A policy may ask for one key twice.
        if places.last() != Some(&place) {
            places.push(place);
        }
    }
}

impl Which {
    fn of(self, facts: &Facts<'_>) -> Option<IpAddr> {
        let connection = &facts.info.connection;
        let address = match self {
            Self::Source => &connection.remote,
            Self::DirectRemote => &connection.direct_remote,
            Self::Remote => &facts.info.downstream_remote,
            Self::Destination => &connection.local,
        };
        address.ip().map(|ip| ip.ip())
    }
}

/// The sets of keys of which a request must fit one key each, if `rule` is to take it.
fn alternatives(rule: &Rule, headers: &mut Vec<HeaderKey>) -> Alternatives {
    let one = |key| vec![vec![key]];
    let address = |which, net| one(Key::Address(which, net));
    match rule {
        Rule::And(rules) => rules.iter().flat_map(|rule| alternatives(rule, headers)).collect(),
        Rule::Or(rules) => any_of(rules, headers),
        Rule::Authenticated(Some(matcher)) => {
            exact(matcher).map(|name| one(Key::Identity(name.into()))).unwrap_or_default()
        }
        Rule::RequestedServerName(matcher) => {
            exact(matcher).map(|name| one(Key::ServerName(name.into()))).unwrap_or_default()
        }
        Rule::Path(matcher) => {
            let exact = exact(matcher).map(|path| Key::Path(path.as_bytes().into()));
            let key = exact.or_else(|| matcher.prefix().map(|prefix| Key::PathPrefix(prefix.as_bytes().into())));
            key.map(one).unwrap_or_default()
        }
        Rule::Header(matcher) => header_value(matcher)
            .map(|value| {
                let at = headers.iter().position(|key| *key == matcher.key).unwrap_or_else(|| {
                    headers.push(matcher.key.clone());
                    headers.len() - 1
                });
                one(Key::Header(at, value.as_bytes().into()))
            })
            .unwrap_or_default(),
        Rule::DestinationPort(port) => one(Key::Port(*port)),
        Rule::DestinationIp(range) => address(Which::Destination, range.0),
        Rule::SourceIp(range) => address(Which::Source, range.0),
        Rule::DirectRemoteIp(range) => address(Which::DirectRemote, range.0),
        Rule::RemoteIp(range) => address(Which::Remote, range.0),
        Rule::Any
        | Rule::Not(_)
        | Rule::Template(_)
        | Rule::DestinationPorts(_)
        | Rule::Metadata(..)
        | Rule::Authenticated(None)
        | Rule::Verified(_)
        | Rule::FilterState(..) => Vec::new(),
    }
}

/// The one text that passes.
fn exact(matcher: &StringMatcher) -> Option<&str> {
    matcher.exact().filter(|_| !matcher.ignores_case())
}

/// The value that a header must have.
fn header_value(matcher: &HeaderMatcher) -> Option<&str> {
    match &matcher.test {
        HeaderTest::Text(text) if !matcher.invert && !matcher.treat_missing_as_empty => exact(text),
        _ => None,
    }
}

/// A set for a choice of rules has a set of each of them in it: one of the same kind of keys if all have one.
fn any_of(rules: &[Rule], headers: &mut Vec<HeaderKey>) -> Alternatives {
    let all: Vec<_> = rules.iter().map(|rule| alternatives(rule, headers)).collect();
    let [first, rest @ ..] = &all[..] else {
        // A choice of nothing takes nothing.
        return vec![Vec::new()];
    };
    let kind = |set: &Vec<Key>| set.first().map(std::mem::discriminant);
    let alike = |set: &Vec<Key>| {
        let others = rest.iter().map(|sets| sets.iter().find(|other| kind(other) == kind(set)).or(sets.first()));
        let sets: Option<Vec<_>> = std::iter::once(Some(set)).chain(others).collect();
        let keys: Vec<_> = sets?.into_iter().flatten().cloned().collect();
        (keys.len() <= MOST_KEYS).then_some(keys)
    };
    first.iter().filter_map(alike).collect()
}
