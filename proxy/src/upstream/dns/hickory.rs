//! DNS as hickory speaks it: resolv.conf or configured servers, /etc/hosts, search domains. Nothing is cached here: the
//! refresh rate says when to ask.

use super::{Answer, NoAnswer, Resolve, Resolving};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::read_system_conf,
};
use std::{net::SocketAddr, time::Instant};
use weft_config::{DnsResolver, address::Address, cluster::DnsLookupFamily};

/// Resolvers for every lookup family that is asked for.
pub struct Hickory {
    config: ResolverConfig,
    options: ResolverOpts,
}

impl Hickory {
    /// Resolvers as configured; as the system has them where nothing is.
    pub fn new(config: &DnsResolver) -> Self {
        let DnsResolver {
            resolvers,
            resolvers_are_fallback,
            use_tcp,
            no_default_search_domain,
            query_timeout,
            query_tries,
        } = config;
        let (system, mut options) = read_system_conf().unwrap_or_default();
        let (mut domain, mut search, mut servers) = system.into_parts();
        let ours: Vec<SocketAddr> = resolvers
            .iter()
            .filter_map(|address| match address {
                Address::Socket(socket) => socket.ip(),
                _ => None,
            })
            .collect();
        if !ours.is_empty() && (servers.is_empty() || !*resolvers_are_fallback) {
            servers = ours.into_iter().map(server).collect();
        }
        if *use_tcp {
            for server in &mut servers {
                let port = server.connections.first().map_or(53, |connection| connection.port);
                server.connections = vec![at(ConnectionConfig::tcp(), port)];
            }
        }
        if *no_default_search_domain {
            (domain, search) = (None, Vec::new());
        }
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Always;
        if let Some(timeout) = query_timeout {
            options.timeout = *timeout;
        }
        if let Some(tries) = query_tries {
            options.attempts = *tries as usize;
        }
        Self { config: ResolverConfig::from_parts(domain, search, servers), options }
    }

    fn resolver(&self, family: DnsLookupFamily) -> Result<TokioResolver, NetError> {
        let mut options = self.options.clone();
        options.ip_strategy = match family {
            DnsLookupFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
            DnsLookupFamily::V4Only => LookupIpStrategy::Ipv4Only,
            DnsLookupFamily::V6Only => LookupIpStrategy::Ipv6Only,
            DnsLookupFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
            DnsLookupFamily::All => LookupIpStrategy::Ipv4AndIpv6,
        };
        Resolver::builder_with_config(self.config.clone(), TokioRuntimeProvider::default())
            .with_options(options)
            .build()
    }
}

fn server(address: SocketAddr) -> NameServerConfig {
    let port = if address.port() == 0 { 53 } else { address.port() };
    let connections = vec![at(ConnectionConfig::udp(), port), at(ConnectionConfig::tcp(), port)];
    NameServerConfig::new(address.ip(), true, connections)
}

fn at(mut connection: ConnectionConfig, port: u16) -> ConnectionConfig {
    connection.port = port;
    connection
}

impl Resolve for Hickory {
    fn resolve(&self, name: &str, family: DnsLookupFamily) -> Resolving {
        let (resolver, name) = (self.resolver(family), name.to_owned());
        Box::pin(async move {
            let lookup = resolver.map_err(|_| NoAnswer)?.lookup_ip(name).await;
            match lookup {
                Ok(found) => Ok(Answer {
                    addresses: found.iter().collect(),
                    ttl: found.valid_until().saturating_duration_since(Instant::now()),
                }),
                // The name is known to have no address. A server that failed says so in another way.
                Err(e) if e.is_nx_domain() || is_empty(&e) => {
                    Ok(Answer { addresses: Vec::new(), ttl: Default::default() })
                }
                Err(_) => Err(NoAnswer),
            }
        })
    }
}

/// The name exists, without addresses of the family.
fn is_empty(e: &NetError) -> bool {
    use hickory_resolver::{net::DnsError, proto::op::ResponseCode};
    matches!(e, NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NoError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::UdpSocket, time::Duration};
    use weft_config::address::{Protocol, SocketAddress};

    /// Answers any question for an A record with 127.0.0.9, for an AAAA record with nothing, and for `gone.` with NXDOMAIN.
    fn serve() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((n, from)) = socket.recv_from(&mut query) {
                let name_end = 12 + query[12..n].iter().position(|b| *b == 0).unwrap();
                let question = &query[12..name_end + 5];
                let (is_a, gone) = (query[name_end + 2] == 1, question.starts_with(b"\x04gone"));
                let has_answer = is_a && !gone;
                let mut answer = query[..2].to_vec();
                answer.extend([0x81, if gone { 0x83 } else { 0x80 }, 0, 1, 0, u8::from(has_answer), 0, 0, 0, 0]);
                answer.extend(question);
                if has_answer {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 127, 0, 0, 9]);
                }
                let _ = socket.send_to(&answer, from);
            }
        });
        address
    }

    #[test]
    fn answers_come_from_the_configured_server() {
        let server = serve();
        let resolver = Address::Socket(SocketAddress {
            protocol: Protocol::Udp,
            host: server.ip().to_string(),
            port: server.port(),
            ipv4_compat: false,
        });
        let config = DnsResolver { resolvers: vec![resolver], no_default_search_domain: true, ..Default::default() };
        let hickory = Hickory::new(&config);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ask = |name: &str, family| runtime.block_on(hickory.resolve(name, family));
        let answer = ask("svc.test", DnsLookupFamily::V4Only).unwrap();
        assert_eq!(answer.addresses, ["127.0.0.9".parse::<std::net::IpAddr>().unwrap()]);
        assert!(answer.ttl > Duration::from_secs(20));
        assert_eq!(ask("svc.test", DnsLookupFamily::Auto).unwrap().addresses.len(), 1);
        assert!(ask("svc.test", DnsLookupFamily::V6Only).unwrap().addresses.is_empty());
        assert!(ask("gone.test", DnsLookupFamily::V4Only).unwrap().addresses.is_empty());
    }
}
