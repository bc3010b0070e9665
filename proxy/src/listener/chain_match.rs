//! Which filter chain a connection gets: Envoy's nested look-up, which never goes back.
//!
//! Compiled from the chains' matches, asked once a connection. At each step only the branch of the most specific value
//! that fits is followed: destination port, destination address, server name, transport protocol, application
//! protocol, direct source, kind of source, source address, source port.

use crate::base::ConnectionInfo;
use foldhash::HashMap;
use ipnet::IpNet;
use std::{
    net::{IpAddr, Ipv4Addr},
    ops::ControlFlow,
};
use weft_config::{
    Context,
    address::CidrRange,
    listener::{FilterChainMatch, SourceType},
};

/// The look-up of one listener.
#[derive(Debug, Default)]
pub struct ChainMatcher {
    ports: Keyed<u16, Destinations>,
}

type Destinations = Prefixes<Names>;
type Protocols = Keyed<Box<str>, Keyed<Box<[u8]>, DirectSources>>;
type DirectSources = Prefixes<Sources>;
type SourcePrefixes = Prefixes<Keyed<u16, Leaf>>;

/// The number of a chain.
type Leaf = Option<usize>;

/// A step by exact values.
#[derive(Debug)]
struct Keyed<K, T> {
    values: HashMap<K, T>,
    any: Option<Box<T>>,
}

/// A step by the longest prefix.
#[derive(Debug)]
struct Prefixes<T> {
    nets: HashMap<IpNet, T>,
    /// The lengths that there are, longest first: of IPv4, of IPv6.
    lengths: [Vec<u8>; 2],
    any: Option<Box<T>>,
}

/// The step by server name.
#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Box<str>, Protocols>,
    /// By what follows the star: `.example.com`.
    wildcards: HashMap<Box<str>, Protocols>,
    any: Option<Box<Protocols>>,
}

/// The step by kind of source.
#[derive(Debug, Default)]
struct Sources {
    local: Option<SourcePrefixes>,
    external: Option<SourcePrefixes>,
    any: Option<SourcePrefixes>,
}

impl ChainMatcher {
    /// Compiles the matches of chains, given with their names; two that could take the same connection are a problem.
    pub fn compile<'a>(chains: impl Iterator<Item = (&'a str, &'a FilterChainMatch)>, cx: &mut Context) -> Self {
        let mut matcher = Self::default();
        let mut seen: HashMap<&FilterChainMatch, &str> = HashMap::default();
        for (number, (name, matching)) in chains.enumerate() {
            cx.element("filter_chains", number, |cx| {
                if let Some(other) = seen.insert(matching, name) {
                    cx.problem_at(
                        "filter_chain_match",
                        format!("filter chain '{name}' has the same matching rules defined as '{other}'"),
                    );
                } else if matcher.insert(matching, number).is_break() {
                    cx.problem_at(
                        "filter_chain_match",
                        "multiple filter chains with overlapping matching rules are defined",
                    );
                }
            });
        }
        matcher
    }

    /// Breaks if the place of a combination is taken.
    fn insert(&mut self, m: &FilterChainMatch, number: usize) -> ControlFlow<()> {
        let protocols: Vec<Box<[u8]>> = m.application_protocols.iter().map(|p| p.as_bytes().into()).collect();
        let transport = Some(m.transport_protocol.as_str()).filter(|p| !p.is_empty()).map(Box::<str>::from);
        self.ports.at(m.destination_port.as_slice(), |destinations| {
            destinations.at(&m.prefix_ranges, |names| {
                names.at(&m.server_names, |transports| {
                    transports.at(transport.as_slice(), |applications| {
                        applications.at(&protocols, |direct| {
                            direct.at(&m.direct_source_prefix_ranges, |kinds| {
                                kinds.at(m.source_type).at(&m.source_prefix_ranges, |ports| {
                                    ports.at(&m.source_ports, |leaf| match leaf.replace(number) {
                                        None => ControlFlow::Continue(()),
                                        Some(_) => ControlFlow::Break(()),
                                    })
                                })
                            })
                        })
                    })
                })
            })
        })
    }

    /// The number of the chain that fits; `None` if none does.
    pub fn find(&self, info: &ConnectionInfo) -> Option<usize> {
        // Sockets without an IP address fit only where every address does.
        const NO_IP: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);
        let (local, remote) = (info.local.ip(), info.remote.ip());
        let ip = |address: Option<std::net::SocketAddr>| address.map_or(NO_IP, |address| address.ip());
        let transports = self
            .ports
            .get(local.map(|local| local.port()).as_ref())?
            .get(ip(local))?
            .get(info.requested_server_name.as_deref().unwrap_or_default())?;
        let applications = transports.get(Some(info.transport_protocol))?;
        // What the client offers first decides.
        let offered = info.application_protocols.iter().find_map(|offered| applications.values.get(offered));
        let direct = offered.or(applications.any.as_deref())?.get(ip(info.direct_remote.ip()))?;
        let is_local = || {
            let kind = FilterChainMatch::source_type_of(local.map(|a| a.ip()), remote.map(|a| a.ip()));
            kind == SourceType::SameIpOrLoopback
        };
        let sources = direct.get(is_local)?.get(ip(remote))?;
        *sources.get(remote.map(|remote| remote.port()).as_ref())?
    }
}

impl<K, T> Default for Keyed<K, T> {
    fn default() -> Self {
        Self { values: HashMap::default(), any: None }
    }
}

impl<K: std::hash::Hash + Eq, T> Keyed<K, T> {
    /// Visits the branches of all `keys`, or the one of any value if there are none.
    fn at(&mut self, keys: &[K], mut visit: impl FnMut(&mut T) -> ControlFlow<()>) -> ControlFlow<()>
    where
        K: Clone,
        T: Default,
    {
        if keys.is_empty() {
            return visit(self.any.get_or_insert_default());
        }
        keys.iter().try_for_each(|key| visit(self.values.entry(key.clone()).or_default()))
    }

    fn get<Q>(&self, key: Option<&Q>) -> Option<&T>
    where
        K: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ?Sized,
    {
        key.and_then(|key| self.values.get(key)).or(self.any.as_deref())
    }
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { nets: HashMap::default(), lengths: Default::default(), any: None }
    }
}

impl<T> Prefixes<T> {
    fn at(&mut self, ranges: &[CidrRange], mut visit: impl FnMut(&mut T) -> ControlFlow<()>) -> ControlFlow<()>
    where
        T: Default,
    {
        if ranges.is_empty() {
            return visit(self.any.get_or_insert_default());
        }
        ranges.iter().try_for_each(|CidrRange(net)| {
            let lengths = &mut self.lengths[usize::from(net.addr().is_ipv6())];
            if let Err(at) = lengths.binary_search_by(|length| net.prefix_len().cmp(length)) {
                lengths.insert(at, net.prefix_len());
            }
            visit(self.nets.entry(*net).or_default())
        })
    }

    fn get(&self, ip: IpAddr) -> Option<&T> {
        let of_length = |length: &u8| self.nets.get(&IpNet::new(ip, *length).ok()?.trunc());
        self.lengths[usize::from(ip.is_ipv6())].iter().find_map(of_length).or(self.any.as_deref())
    }
}

impl Names {
    fn at(&mut self, names: &[String], mut visit: impl FnMut(&mut Protocols) -> ControlFlow<()>) -> ControlFlow<()> {
        if names.is_empty() {
            return visit(self.any.get_or_insert_default());
        }
        names.iter().try_for_each(|name| {
            visit(match name.strip_prefix('*') {
                Some(suffix) => self.wildcards.entry(suffix.into()).or_default(),
                None => self.exact.entry(name.as_str().into()).or_default(),
            })
        })
    }

    /// The name itself, then the longest wildcard, which a name that begins with a dot may be whole, as with Envoy. `name` is
    /// in lower case.
    fn get(&self, name: &str) -> Option<&Protocols> {
        let dots = || memchr::memchr_iter(b'.', name.as_bytes());
        let wildcard = || dots().find_map(|at| self.wildcards.get(name.get(at..)?));
        self.exact
            .get(name)
            .or_else(|| if self.wildcards.is_empty() { None } else { wildcard() })
            .or(self.any.as_deref())
    }
}

impl Sources {
    fn at(&mut self, kind: SourceType) -> &mut SourcePrefixes {
        match kind {
            SourceType::SameIpOrLoopback => &mut self.local,
            SourceType::External => &mut self.external,
            SourceType::Any => &mut self.any,
        }
        .get_or_insert_default()
    }

    fn get(&self, is_local: impl Fn() -> bool) -> Option<&SourcePrefixes> {
        let specific = if self.local.is_none() && self.external.is_none() {
            None
        } else if is_local() {
            self.local.as_ref()
        } else {
            self.external.as_ref()
        };
        specific.or(self.any.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Address;

    fn connection(local: &str, remote: &str) -> ConnectionInfo {
        let address = |text: &str| Address::from(text.parse::<std::net::SocketAddr>().expect("an address"));
        ConnectionInfo::accepted(1, address(local), address(remote))
    }

    fn cidr(text: &str) -> CidrRange {
        CidrRange(text.parse().expect("a range"))
    }

    fn plain() -> FilterChainMatch {
        FilterChainMatch::default()
    }

    fn compile(chains: &[FilterChainMatch]) -> Result<ChainMatcher, Vec<String>> {
        let mut cx = Context::new();
        let matcher = ChainMatcher::compile(chains.iter().map(|m| ("x", m)), &mut cx);
        cx.finish(Some(matcher)).map(|(matcher, _)| matcher).map_err(|p| p.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_more_specific_step_wins_and_never_goes_back() {
        let matcher = compile(&[
            FilterChainMatch { destination_port: Some(80), server_names: vec!["a.com".into()], ..plain() },
            FilterChainMatch { prefix_ranges: vec![cidr("10.0.0.0/8")], ..plain() },
            FilterChainMatch { prefix_ranges: vec![cidr("10.1.0.0/16")], ..plain() },
            FilterChainMatch { server_names: vec!["*.com".into()], ..plain() },
            FilterChainMatch { server_names: vec!["*.b.com".into(), "c.com".into()], ..plain() },
            plain(),
        ]);
        let matcher = matcher.expect("no overlap");
        let find = |info: &ConnectionInfo| matcher.find(info);
        // Port 80 has only the first chain, whose server name then does not fit.
        assert_eq!(find(&connection("10.1.2.3:80", "1.1.1.1:5")), None);
        assert_eq!(find(&connection("10.1.2.3:81", "1.1.1.1:5")), Some(2));
        assert_eq!(find(&connection("10.2.2.3:81", "1.1.1.1:5")), Some(1));
        assert_eq!(find(&connection("9.2.2.3:81", "1.1.1.1:5")), Some(5));
        let mut named = connection("9.2.2.3:81", "1.1.1.1:5");
        for (name, chain) in
            [("x.b.com", 4), ("x.y.b.com", 4), ("b.com", 3), ("c.com", 4), ("d.org", 5), (".com", 3), (".b.com", 4)]
        {
            named.requested_server_name = Some(name.into());
            assert_eq!(find(&named), Some(chain), "{name}");
        }
        let mut pipe = connection("10.1.2.3:80", "1.1.1.1:5");
        (pipe.local, pipe.remote) = (Address::Unix("/x".into()), Address::Unix("".into()));
        assert_eq!(find(&pipe), Some(5));
    }

    #[test]
    fn sources_and_protocols() {
        let matcher = compile(&[
            FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..plain() },
            FilterChainMatch { source_type: SourceType::External, source_ports: vec![7], ..plain() },
            FilterChainMatch { application_protocols: vec!["h2c".into()], ..plain() },
            FilterChainMatch { application_protocols: vec!["http/1.1".into()], ..plain() },
            FilterChainMatch { transport_protocol: "tls".into(), ..plain() },
            FilterChainMatch {
                direct_source_prefix_ranges: vec![cidr("8.8.0.0/16")],
                source_ports: vec![9],
                ..plain()
            },
        ]);
        let matcher = matcher.expect("no overlap");
        let find = |info: &ConnectionInfo| matcher.find(info);
        assert_eq!(find(&connection("127.0.0.1:1", "127.0.0.1:2")), Some(0));
        assert_eq!(find(&connection("9.9.9.9:1", "8.7.8.8:7")), Some(1));
        assert_eq!(find(&connection("9.9.9.9:1", "8.7.8.8:8")), None);
        assert_eq!(find(&connection("9.9.9.9:1", "8.8.8.8:9")), Some(5));
        assert_eq!(find(&connection("9.9.9.9:1", "8.8.8.8:7")), None);
        let mut http = connection("9.9.9.9:1", "8.8.8.8:8");
        http.application_protocols = vec![b"x"[..].into(), b"http/1.1"[..].into(), b"h2c"[..].into()];
        assert_eq!(find(&http), Some(3));
        http.transport_protocol = "tls";
        assert_eq!(find(&http), Some(4));
    }

    #[test]
    fn overlaps_are_problems() {
        let ports = |ports: &[u16]| FilterChainMatch { source_ports: ports.into(), ..plain() };
        assert_eq!(
            compile(&[ports(&[1, 2]), ports(&[2, 3])]).expect_err("they overlap"),
            ["filter_chains[1].filter_chain_match: multiple filter chains with overlapping matching rules are defined"]
        );
        assert_eq!(
            compile(&[plain(), plain()]).expect_err("they are the same"),
            ["filter_chains[1].filter_chain_match: filter chain 'x' has the same matching rules defined as 'x'"]
        );
        assert!(compile(&[ports(&[1]), plain()]).is_ok());
    }
}
