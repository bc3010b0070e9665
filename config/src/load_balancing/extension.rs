//! `load_balancing_policy`: a list of policies, of which the first that is known counts.

use super::{
    ClientSideWeightedRoundRobin, ConsistentHashing, HashFunction, LbPolicy, LeastRequest, LocalityLb, Maglev,
    OverrideHost, OverrideSource, PolicyKind, RingHash, SlowStart, Subset, ZoneAware, bias, choices,
};
use crate::{Context, cluster::metadata_path, http_protocol_options::percent, route::HashPolicy};
use std::time::Duration;
use weft_control_api::{
    Any,
    envoy::{
        config::{cluster::v3 as pb, core::v3 as core},
        extensions::load_balancing_policies::{
            client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin as ClientSide,
            cluster_provided::v3::ClusterProvided,
            common::v3::{
                ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig, locality_lb_config,
                locality_lb_config::zone_aware_lb_config,
            },
            least_request::v3 as least_request,
            maglev::v3 as maglev,
            override_host::v3::{self as override_host},
            random::v3::Random,
            ring_hash::v3 as ring_hash,
            round_robin::v3::RoundRobin,
            wrr_locality::v3::WrrLocality,
        },
    },
};

/// Where the names and the packages of policies begin.
const NAMES: &str = "envoy.load_balancing_policies.";
const PACKAGES: &str = "envoy.extensions.load_balancing_policies.";
/// Policies that Envoy knows and Weft does not: they must not be passed over in favour of a later one.
const UNSUPPORTED: [&str; 2] = ["dynamic_modules", "load_aware_locality"];

/// The first policy of the list that is known.
pub(super) fn read(p: pb::LoadBalancingPolicy, cx: &mut Context) -> Option<LbPolicy> {
    let pb::LoadBalancingPolicy { policies } = p;
    let mut names = Vec::new();
    for (i, pb::load_balancing_policy::Policy { typed_extension_config }) in policies.into_iter().enumerate() {
        let read = cx.element("policies", i, |cx| {
            let config = cx.required("typed_extension_config", typed_extension_config)?;
            cx.field("typed_extension_config", |cx| {
                let core::TypedExtensionConfig { name, typed_config } = config;
                let read = known(&name, typed_config.unwrap_or_default(), cx);
                names.push(name);
                read
            })
        });
        if let Some(read) = read {
            return read;
        }
    }
    if !cx.has_problems() {
        cx.problem(format!("Didn't find a registered load balancer factory with names from [{}]", names.join(", ")));
    }
    None
}

/// The policy, if it is one that is known; `Some(None)` if it is and something is wrong with it.
fn known(name: &str, any: Any, cx: &mut Context) -> Option<Option<LbPolicy>> {
    let type_name = any.type_url.rsplit('/').next().unwrap_or_default();
    let package = type_name.strip_prefix(PACKAGES).and_then(|rest| rest.split('.').next());
    let is_message = !matches!(type_name, "" | "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct");
    let policy = if is_message { package } else { name.strip_prefix(NAMES) };
    let unpacked = &any;
    let policy = policy?;
    Some(match policy {
        "round_robin" => round_robin(unpacked, cx),
        "least_request" => least_request(unpacked, cx),
        "random" => unpack(unpacked, cx).map(|Random { locality_lb_config }| LbPolicy {
            kind: PolicyKind::Random,
            locality: locality(locality_lb_config, cx),
        }),
        "ring_hash" => ring_hash(unpacked, cx),
        "maglev" => maglev(unpacked, cx),
        "subset" => unpack(unpacked, cx).and_then(|p| {
            let subset = cx.field("typed_config", |cx| Subset::from_extension(p, cx))?;
            Some(of(PolicyKind::Subset(Box::new(subset))))
        }),
        "override_host" => override_host(unpacked, cx),
        "client_side_weighted_round_robin" => client_side(unpacked, cx),
        "cluster_provided" => unpack(unpacked, cx).map(|ClusterProvided {}| of(PolicyKind::ClusterProvided)),
        "wrr_locality" => unpack(unpacked, cx).and_then(|WrrLocality { endpoint_picking_policy }| {
            cx.field("typed_config", |cx| {
                let child = cx.required("endpoint_picking_policy", endpoint_picking_policy)?;
                let LbPolicy { kind, .. } = cx.field("endpoint_picking_policy", |cx| read(child, cx))?;
                if !matches!(kind, PolicyKind::ClientSideWeightedRoundRobin(_)) {
                    cx.problem_at(
                        "endpoint_picking_policy",
                        "Currently WrrLocalityLoadBalancer only supports ClientSideWeightedRoundRobinLoadBalancer as its \
                         endpoint picking policy.",
                    );
                }
                Some(LbPolicy { kind, locality: LocalityLb::Weighted })
            })
        }),
        other if UNSUPPORTED.contains(&other) => {
            cx.problem(format!("{NAMES}{other} is not supported"));
            None
        }
        _ => return None,
    })
}

fn of(kind: PolicyKind) -> LbPolicy {
    LbPolicy { kind, locality: LocalityLb::default() }
}

/// The policy's configuration; without any, all its defaults.
fn unpack<M: prost::Message + prost::Name + Default>(any: &Any, cx: &mut Context) -> Option<M> {
    if any.type_url.is_empty() { Some(M::default()) } else { cx.unpack("typed_config", any) }
}

fn round_robin(any: &Any, cx: &mut Context) -> Option<LbPolicy> {
    let RoundRobin { slow_start_config, locality_lb_config } = unpack(any, cx)?;
    let slow_start = slow_start_config.and_then(|p| slow_start(p, cx));
    Some(LbPolicy { kind: PolicyKind::RoundRobin { slow_start }, locality: locality(locality_lb_config, cx) })
}

fn least_request(any: &Any, cx: &mut Context) -> Option<LbPolicy> {
    let least_request::LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config,
        locality_lb_config,
        enable_full_scan,
        selection_method,
    } = unpack(any, cx)?;
    use least_request::least_request::SelectionMethod;
    let method: SelectionMethod = cx.enumeration("selection_method", selection_method);
    let full = enable_full_scan.unwrap_or_default() || method == SelectionMethod::FullScan;
    let count = choices(choice_count, cx);
    let least = LeastRequest {
        choice_count: (!full).then_some(count),
        active_request_bias: bias(active_request_bias, cx),
        slow_start: slow_start_config.and_then(|p| slow_start(p, cx)),
    };
    Some(LbPolicy { kind: PolicyKind::LeastRequest(least), locality: locality(locality_lb_config, cx) })
}

fn ring_hash(any: &Any, cx: &mut Context) -> Option<LbPolicy> {
    let ring_hash::RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = unpack(any, cx)?;
    use ring_hash::ring_hash::HashFunction as Function;
    let function = match cx.enumeration("hash_function", hash_function) {
        Function::DefaultHash | Function::XxHash => HashFunction::XxHash64,
        Function::MurmurHash2 => HashFunction::MurmurHash2,
    };
    let hashing = match consistent_hashing_lb_config {
        Some(p) => hashing(p, cx),
        None => ConsistentHashing {
            use_hostname: use_hostname_for_hashing,
            balance_factor: hash_balance_factor.filter(|factor| *factor > 0),
            hash_policies: Vec::new(),
        },
    };
    let ring = RingHash::new(function, minimum_ring_size, maximum_ring_size, hashing, cx);
    Some(LbPolicy { kind: PolicyKind::RingHash(ring), locality: weighted_if(locality_weighted_lb_config.is_some()) })
}

fn maglev(any: &Any, cx: &mut Context) -> Option<LbPolicy> {
    let maglev::Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } = unpack(any, cx)?;
    let hashing = consistent_hashing_lb_config.map(|p| hashing(p, cx)).unwrap_or_default();
    let maglev = Maglev::new(table_size, hashing, cx);
    Some(LbPolicy { kind: PolicyKind::Maglev(maglev), locality: weighted_if(locality_weighted_lb_config.is_some()) })
}

fn weighted_if(is_weighted: bool) -> LocalityLb {
    if is_weighted { LocalityLb::Weighted } else { LocalityLb::default() }
}

fn hashing(p: ConsistentHashingLbConfig, cx: &mut Context) -> ConsistentHashing {
    let ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } = p;
    ConsistentHashing {
        use_hostname: use_hostname_for_hashing,
        balance_factor: hash_balance_factor.filter(|factor| *factor > 0),
        hash_policies: cx.field("consistent_hashing_lb_config", |cx| {
            cx.elements("hash_policy", hash_policy, |cx, p| HashPolicy::from_proto(p, cx))
        }),
    }
}

fn override_host(any: &Any, cx: &mut Context) -> Option<LbPolicy> {
    let override_host::OverrideHost { override_host_sources, selected_host_key, fallback_policy } = unpack(any, cx)?;
    cx.field("typed_config", |cx| {
        cx.unsupported_if("selected_host_key", selected_host_key.is_some());
        let sources = cx.elements("override_host_sources", override_host_sources, |cx, p| {
            let override_host::override_host::OverrideHostSource { header, metadata } = p;
            match (header.is_empty(), metadata) {
                (false, None) => http::HeaderName::try_from(&header)
                    .map_err(|_| cx.problem_at("header", format!("found {header:?}, which is no header name")))
                    .ok()
                    .map(OverrideSource::Header),
                (true, Some(key)) => {
                    let (filter, path) = cx.field("metadata", |cx| metadata_path(key, cx));
                    Some(OverrideSource::Metadata(filter, path))
                }
                _ => {
                    cx.problem("exactly one of header, metadata is required");
                    None
                }
            }
        });
        let fallback = cx.required("fallback_policy", fallback_policy)?;
        let fallback = cx.field("fallback_policy", |cx| read(fallback, cx))?;
        let locality = fallback.locality;
        Some(LbPolicy { kind: PolicyKind::OverrideHost(Box::new(OverrideHost { sources, fallback })), locality })
    })
}

fn client_side(any: &Any, cx: &mut Context) -> Option<LbPolicy> {
    let ClientSide {
        enable_oob_load_report,
        oob_reporting_period,
        blackout_period,
        weight_expiration_period,
        weight_update_period,
        error_utilization_penalty,
        metric_names_for_computing_utilization,
        slow_start_config,
        oob_reporting_config,
    } = unpack(any, cx)?;
    cx.field("typed_config", |cx| {
        let wants_streams = enable_oob_load_report.unwrap_or_default();
        cx.unsupported_if("enable_oob_load_report", wants_streams);
        cx.ignored_if("oob_reporting_period", oob_reporting_period.is_some());
        cx.ignored_if("oob_reporting_config", oob_reporting_config.is_some());
        let update = cx.duration("weight_update_period", weight_update_period).unwrap_or(Duration::from_secs(1));
        let client_side = ClientSideWeightedRoundRobin {
            blackout_period: cx.duration("blackout_period", blackout_period).unwrap_or(Duration::from_secs(10)),
            weight_expiration_period: cx
                .duration("weight_expiration_period", weight_expiration_period)
                .unwrap_or(Duration::from_secs(180)),
            weight_update_period: update.max(Duration::from_millis(100)),
            error_utilization_penalty: f64::from(error_utilization_penalty.unwrap_or(1.0)),
            metric_names: metric_names_for_computing_utilization,
            slow_start: slow_start_config.and_then(|p| slow_start(p, cx)),
        };
        Some(of(PolicyKind::ClientSideWeightedRoundRobin(Box::new(client_side))))
    })
}

fn slow_start(p: SlowStartConfig, cx: &mut Context) -> Option<SlowStart> {
    let SlowStartConfig { slow_start_window, aggression, min_weight_percent } = p;
    SlowStart::new(slow_start_window, aggression, min_weight_percent, cx)
}

fn locality(p: Option<LocalityLbConfig>, cx: &mut Context) -> LocalityLb {
    use locality_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig};
    let Some(LocalityLbConfig { locality_config_specifier }) = p else { return LocalityLb::default() };
    match locality_config_specifier {
        None => LocalityLb::default(),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => LocalityLb::Weighted,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(p)) => {
            cx.field("typed_config.locality_lb_config.zone_aware_lb_config", |cx| {
                let ZoneAwareLbConfig {
                    routing_enabled,
                    min_cluster_size,
                    fail_traffic_on_panic,
                    force_locality_direct_routing,
                    force_local_zone,
                    locality_basis,
                } = p;
                use zone_aware_lb_config::{ForceLocalZone, LocalityBasis};
                let basis: LocalityBasis = cx.enumeration("locality_basis", locality_basis);
                LocalityLb::ZoneAware(ZoneAware {
                    routing_enabled: percent("routing_enabled", routing_enabled, cx).unwrap_or(100.0),
                    min_cluster_size: min_cluster_size.unwrap_or(6),
                    fail_traffic_on_panic,
                    force_locality_direct_routing,
                    force_local_zone_min_size: force_local_zone
                        .map(|ForceLocalZone { min_size }| min_size.unwrap_or(1)),
                    by_weight: basis == LocalityBasis::HealthyHostsWeight,
                })
            })
        }
    }
}
