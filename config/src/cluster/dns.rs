//! How names of hosts are resolved, in all the ways that a cluster can say it.

use crate::{Context, DnsResolver};
use std::time::Duration;
use weft_control_api::{
    Duration as ProtoDuration,
    envoy::{
        config::{cluster::v3::cluster as pb, core::v3 as core},
        extensions::clusters::{
            common::dns::v3 as common,
            dns::v3::{DnsCluster, dns_cluster},
        },
    },
};

/// The DNS part of a STRICT_DNS or LOGICAL_DNS cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Dns {
    /// Default 5 s.
    pub refresh_rate: Duration,
    /// Chance adds up to this much.
    pub jitter: Duration,
    /// After failures, from the first interval up to the second; `None`: at the refresh rate.
    pub failure_refresh_rate: Option<(Duration, Duration)>,
    /// Ask again when the answer's TTL ends.
    pub respect_ttl: bool,
    /// The soonest that a TTL makes us ask again.
    pub min_refresh_rate: Duration,
    pub lookup_family: DnsLookupFamily,
    /// `None`: the bootstrap's.
    pub resolver: Option<DnsResolver>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsLookupFamily {
    /// IPv6, and IPv4 if there is none.
    #[default]
    Auto,
    V4Only,
    V6Only,
    /// IPv4, and IPv6 if there is none.
    V4Preferred,
    All,
}

/// The fields of a cluster that are about DNS.
pub(super) struct Fields {
    pub refresh_rate: Option<ProtoDuration>,
    pub jitter: Option<ProtoDuration>,
    pub failure_refresh_rate: Option<pb::RefreshRate>,
    pub respect_ttl: bool,
    pub lookup_family: i32,
    pub resolvers: Vec<core::Address>,
    pub use_tcp: bool,
    pub resolution_config: Option<core::DnsResolutionConfig>,
    pub typed_resolver_config: Option<core::TypedExtensionConfig>,
}

impl Dns {
    pub(super) fn from_fields(p: Fields, cx: &mut Context) -> Self {
        let Fields {
            refresh_rate,
            jitter,
            failure_refresh_rate,
            respect_ttl,
            lookup_family,
            resolvers,
            use_tcp,
            resolution_config,
            typed_resolver_config,
        } = p;
        let lookup_family = match cx.enumeration("dns_lookup_family", lookup_family) {
            pb::DnsLookupFamily::Auto => DnsLookupFamily::Auto,
            pb::DnsLookupFamily::V4Only => DnsLookupFamily::V4Only,
            pb::DnsLookupFamily::V6Only => DnsLookupFamily::V6Only,
            pb::DnsLookupFamily::V4Preferred => DnsLookupFamily::V4Preferred,
            pb::DnsLookupFamily::All => DnsLookupFamily::All,
        };
        let failure_refresh_rate = failure_refresh_rate
            .and_then(|pb::RefreshRate { base_interval, max_interval }| failure_rate(base_interval, max_interval, cx));
        cx.unsupported_if("dns_resolvers", !resolvers.is_empty());
        let resolver = DnsResolver::from_proto(use_tcp, resolution_config, typed_resolver_config, cx);
        Self {
            refresh_rate: refresh(refresh_rate, cx),
            jitter: cx.duration("dns_jitter", jitter).unwrap_or_default(),
            failure_refresh_rate,
            respect_ttl,
            min_refresh_rate: Duration::ZERO,
            lookup_family,
            resolver,
        }
    }

    pub(super) fn from_extension(p: DnsCluster, cx: &mut Context) -> Self {
        let DnsCluster {
            dns_refresh_rate,
            dns_failure_refresh_rate,
            respect_dns_ttl,
            dns_jitter,
            typed_dns_resolver_config,
            dns_lookup_family,
            all_addresses_in_single_endpoint: _,
            dns_min_refresh_rate,
        } = p;
        Self {
            refresh_rate: refresh(dns_refresh_rate, cx),
            jitter: cx.duration("dns_jitter", dns_jitter).unwrap_or_default(),
            failure_refresh_rate: dns_failure_refresh_rate.and_then(
                |dns_cluster::RefreshRate { base_interval, max_interval }| {
                    failure_rate(base_interval, max_interval, cx)
                },
            ),
            respect_ttl: respect_dns_ttl,
            min_refresh_rate: cx.duration("dns_min_refresh_rate", dns_min_refresh_rate).unwrap_or_default(),
            lookup_family: match cx.enumeration("dns_lookup_family", dns_lookup_family) {
                common::DnsLookupFamily::Unspecified | common::DnsLookupFamily::Auto => DnsLookupFamily::Auto,
                common::DnsLookupFamily::V4Only => DnsLookupFamily::V4Only,
                common::DnsLookupFamily::V6Only => DnsLookupFamily::V6Only,
                common::DnsLookupFamily::V4Preferred => DnsLookupFamily::V4Preferred,
                common::DnsLookupFamily::All => DnsLookupFamily::All,
            },
            resolver: DnsResolver::from_proto(false, None, typed_dns_resolver_config, cx),
        }
    }
}

fn refresh(value: Option<ProtoDuration>, cx: &mut Context) -> Duration {
    let value = cx.duration("dns_refresh_rate", value);
    if value.is_some_and(|value| value < Duration::from_millis(1)) {
        cx.problem_at("dns_refresh_rate", "must be at least 1 ms");
    }
    value.unwrap_or(Duration::from_secs(5))
}

fn failure_rate(
    base: Option<ProtoDuration>,
    most: Option<ProtoDuration>,
    cx: &mut Context,
) -> Option<(Duration, Duration)> {
    cx.field("dns_failure_refresh_rate", |cx| {
        let base = cx.required("base_interval", base)?;
        let base = cx.duration("base_interval", Some(base))?;
        let most = cx.duration("max_interval", most).unwrap_or(base * 10);
        if base < Duration::from_millis(1) {
            cx.problem_at("base_interval", "must be at least 1 ms");
        }
        if most < base {
            cx.problem_at("max_interval", "dns_failure_refresh_rate must have max_interval >= base_interval");
        }
        Some((base, most))
    })
}
