//! Which filter chain a connection gets: Envoy's nested look-up, which never goes back.
//!
//! At each step only the chains with the most specific value that fits stay: destination port, destination address,
//! server name, transport protocol, application protocol, direct source, kind of source, source address, source port.

use crate::base::ConnectionInfo;
use smallvec::SmallVec;
use std::net::IpAddr;
use weft_config::{
    address::CidrRange,
    listener::{FilterChainMatch, SourceType},
};

/// The number of the chain that fits; `None` if none does.
pub fn find<'a>(chains: impl Iterator<Item = &'a FilterChainMatch>, info: &ConnectionInfo) -> Option<usize> {
    let mut left: SmallVec<[(usize, &FilterChainMatch); 16]> = chains.enumerate().collect();
    let (local, remote, direct) = (info.local.ip(), info.remote.ip(), info.direct_remote.ip());
    let ip = |address: Option<std::net::SocketAddr>| address.map(|a| a.ip());
    keep_best(&mut left, |m| match (m.destination_port, local) {
        (None, _) => Some(0),
        (Some(port), Some(local)) if port == local.port() => Some(1),
        _ => None,
    });
    keep_best(&mut left, |m| prefix(&m.prefix_ranges, ip(local)));
    let name = info.requested_server_name.as_deref().map(str::to_ascii_lowercase).unwrap_or_default();
    keep_best(&mut left, |m| server_name(&m.server_names, &name));
    keep_best(&mut left, |m| match m.transport_protocol.as_str() {
        "" => Some(0),
        wanted if wanted == info.transport_protocol => Some(1),
        _ => None,
    });
    keep_best(&mut left, |m| {
        if m.application_protocols.is_empty() {
            return Some(0);
        }
        // What the client offers first decides.
        let offered = &info.application_protocols;
        offered
            .iter()
            .position(|p| m.application_protocols.iter().any(|w| w.as_bytes() == &**p))
            .map(|at| offered.len() - at)
    });
    keep_best(&mut left, |m| prefix(&m.direct_source_prefix_ranges, ip(direct)));
    let kind = FilterChainMatch::source_type_of(ip(local), ip(remote));
    keep_best(&mut left, |m| match m.source_type {
        SourceType::Any => Some(0),
        wanted => (wanted == kind).then_some(1),
    });
    keep_best(&mut left, |m| prefix(&m.source_prefix_ranges, ip(remote)));
    keep_best(&mut left, |m| {
        if m.source_ports.is_empty() {
            return Some(0);
        }
        remote.is_some_and(|remote| m.source_ports.contains(&remote.port())).then_some(1)
    });
    left.first().map(|(number, _)| *number)
}

/// Keeps the chains with the highest score; those without one do not fit.
fn keep_best(
    left: &mut SmallVec<[(usize, &FilterChainMatch); 16]>,
    score: impl Fn(&FilterChainMatch) -> Option<usize>,
) {
    let best = left.iter().filter_map(|(_, m)| score(m)).max();
    left.retain(|(_, m)| best.is_some() && score(m) == best);
}

/// The longest prefix that holds the address.
fn prefix(ranges: &[CidrRange], ip: Option<IpAddr>) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges
        .iter()
        .filter(|range| ip.is_some_and(|ip| range.contains(ip)))
        .map(|range| usize::from(range.0.prefix_len()) + 1)
        .max()
}

fn server_name(names: &[String], name: &str) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    let fits = |wanted: &String| match wanted.strip_prefix('*') {
        Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len()),
        None => (wanted == name && !name.is_empty()).then_some(usize::MAX),
    };
    names.iter().filter_map(fits).max()
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

    #[test]
    fn the_more_specific_step_wins_and_never_goes_back() {
        let chains = [
            FilterChainMatch { destination_port: Some(80), server_names: vec!["a.com".into()], ..plain() },
            FilterChainMatch { prefix_ranges: vec![cidr("10.0.0.0/8")], ..plain() },
            FilterChainMatch { prefix_ranges: vec![cidr("10.1.0.0/16")], ..plain() },
            FilterChainMatch { server_names: vec!["*.com".into()], ..plain() },
            FilterChainMatch { server_names: vec!["*.b.com".into()], ..plain() },
            plain(),
        ];
        let find = |info: &ConnectionInfo| find(chains.iter(), info);
        // Port 80 keeps only the first chain, whose server name then does not fit.
        assert_eq!(find(&connection("10.1.2.3:80", "1.1.1.1:5")), None);
        assert_eq!(find(&connection("10.1.2.3:81", "1.1.1.1:5")), Some(2));
        assert_eq!(find(&connection("10.2.2.3:81", "1.1.1.1:5")), Some(1));
        assert_eq!(find(&connection("9.2.2.3:81", "1.1.1.1:5")), Some(5));
        let mut named = connection("9.2.2.3:81", "1.1.1.1:5");
        named.requested_server_name = Some("X.b.com".into());
        assert_eq!(find(&named), Some(4));
        named.requested_server_name = Some("b.com".into());
        assert_eq!(find(&named), Some(3));
    }

    #[test]
    fn sources_and_protocols() {
        let chains = [
            FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..plain() },
            FilterChainMatch { source_type: SourceType::External, source_ports: vec![7], ..plain() },
            FilterChainMatch { application_protocols: vec!["h2c".into()], ..plain() },
            FilterChainMatch { application_protocols: vec!["http/1.1".into()], ..plain() },
        ];
        let find = |info: &ConnectionInfo| find(chains.iter(), info);
        assert_eq!(find(&connection("127.0.0.1:1", "127.0.0.1:2")), Some(0));
        assert_eq!(find(&connection("9.9.9.9:1", "8.8.8.8:7")), Some(1));
        assert_eq!(find(&connection("9.9.9.9:1", "8.8.8.8:8")), None);
        let mut http = connection("9.9.9.9:1", "8.8.8.8:8");
        http.application_protocols = vec![b"http/1.1"[..].into(), b"h2c"[..].into()];
        assert_eq!(find(&http), Some(3));
    }
}
