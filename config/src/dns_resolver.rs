//! How host names are resolved: by which servers, over what. Said by the bootstrap, and by clusters for themselves.

use crate::{Address, Context};
use std::time::Duration;
use weft_control_api::{
    Message as _, Name,
    envoy::{
        config::core::v3 as pb,
        extensions::network::dns_resolver::{
            apple::v3::AppleDnsResolverConfig, cares::v3::CaresDnsResolverConfig,
            getaddrinfo::v3::GetAddrInfoDnsResolverConfig, hickory::v3::HickoryDnsResolverConfig,
        },
    },
};

/// Resolver settings; the default is the system's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DnsResolver {
    /// Name servers to ask; empty: the system's.
    pub resolvers: Vec<Address>,
    /// The servers above are asked only if the system has none.
    pub resolvers_are_fallback: bool,
    pub use_tcp: bool,
    /// Names are not tried with the system's search domains.
    pub no_default_search_domain: bool,
    /// Of one query; `None`: the resolver's own.
    pub query_timeout: Option<Duration>,
    /// How often a query is tried; `None`: the resolver's own.
    pub query_tries: Option<u32>,
}

impl DnsResolver {
    /// Reads the three places where settings may stand, of which the typed one counts before the others.
    /// `None`: none of them is set.
    pub fn from_proto(
        use_tcp_for_dns_lookups: bool,
        dns_resolution_config: Option<pb::DnsResolutionConfig>,
        typed_dns_resolver_config: Option<pb::TypedExtensionConfig>,
        cx: &mut Context,
    ) -> Option<Self> {
        if let Some(typed) = typed_dns_resolver_config {
            cx.ignored_if("dns_resolution_config", dns_resolution_config.is_some());
            return cx.field("typed_dns_resolver_config", |cx| Self::typed(typed, cx));
        }
        if let Some(pb::DnsResolutionConfig { resolvers, dns_resolver_options }) = dns_resolution_config {
            return cx.field("dns_resolution_config", |cx| {
                let resolvers = cx.elements("resolvers", resolvers, |cx, pb| Address::from_proto(pb, cx));
                Some(Self { resolvers, ..Self::options(dns_resolver_options) })
            });
        }
        use_tcp_for_dns_lookups.then(|| Self { use_tcp: true, ..Self::default() })
    }

    fn options(pb: Option<pb::DnsResolverOptions>) -> Self {
        let pb::DnsResolverOptions { use_tcp_for_dns_lookups, no_default_search_domain } = pb.unwrap_or_default();
        Self { use_tcp: use_tcp_for_dns_lookups, no_default_search_domain, ..Self::default() }
    }

    fn typed(pb: pb::TypedExtensionConfig, cx: &mut Context) -> Option<Self> {
        let pb::TypedExtensionConfig { name: _, typed_config } = pb;
        let any = cx.required("typed_config", typed_config)?;
        let is = |name: String| any.type_url.rsplit_once('/').is_some_and(|(_, n)| n == name);
        cx.field("typed_config", |cx| {
            if is(CaresDnsResolverConfig::full_name()) {
                let cares = CaresDnsResolverConfig::decode(&*any.value).ok();
                cares.and_then(|cares| Self::cares(cares, cx))
            } else if is(GetAddrInfoDnsResolverConfig::full_name())
                || is(AppleDnsResolverConfig::full_name())
                || is(HickoryDnsResolverConfig::full_name()) && any.value.is_empty()
            {
                Some(Self::default())
            } else {
                cx.problem(format!("{} is not supported here", any.type_url));
                None
            }
        })
    }

    fn cares(pb: CaresDnsResolverConfig, cx: &mut Context) -> Option<Self> {
        let CaresDnsResolverConfig {
            resolvers,
            use_resolvers_as_fallback,
            filter_unroutable_families,
            dns_resolver_options,
            udp_max_queries,
            query_timeout_seconds,
            query_tries,
            rotate_nameservers,
            edns0_max_payload_size,
            max_udp_channel_duration,
            reinit_channel_on_timeout,
            qcache_max_ttl,
        } = pb;
        // All of these tune c-ares; a name resolves to the same addresses without them.
        cx.ignored_if("filter_unroutable_families", filter_unroutable_families);
        cx.ignored_if("udp_max_queries", udp_max_queries.is_some());
        cx.ignored_if("rotate_nameservers", rotate_nameservers);
        cx.ignored_if("edns0_max_payload_size", edns0_max_payload_size.is_some());
        cx.ignored_if("max_udp_channel_duration", max_udp_channel_duration.is_some());
        cx.ignored_if("reinit_channel_on_timeout", reinit_channel_on_timeout);
        cx.ignored_if("qcache_max_ttl", qcache_max_ttl.is_some());
        Some(Self {
            resolvers: cx.elements("resolvers", resolvers, |cx, pb| Address::from_proto(pb, cx)),
            resolvers_are_fallback: use_resolvers_as_fallback,
            query_timeout: query_timeout_seconds.map(Duration::from_secs),
            query_tries,
            ..Self::options(dns_resolver_options)
        })
    }
}
