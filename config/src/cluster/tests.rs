//! What a cluster reads as, and what is refused.

use super::*;
use crate::endpoint::HealthStatus;
use weft_control_api::envoy::config::{core::v3::socket_address::PortSpecifier, endpoint::v3 as endpoint};

fn host(address: &str) -> endpoint::LocalityLbEndpoints {
    let socket = core::SocketAddress {
        address: address.into(),
        port_specifier: Some(PortSpecifier::PortValue(80)),
        ..Default::default()
    };
    let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
    let endpoint = endpoint::Endpoint { address: Some(address), ..Default::default() };
    endpoint::LocalityLbEndpoints {
        lb_endpoints: vec![endpoint::LbEndpoint {
            health_status: core::HealthStatus::Degraded.into(),
            host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn cluster(kind: parts::DiscoveryType, hosts: Vec<endpoint::LocalityLbEndpoints>) -> pb::Cluster {
    let load_assignment =
        endpoint::ClusterLoadAssignment { cluster_name: "c".into(), endpoints: hosts, ..Default::default() };
    pb::Cluster {
        name: "a:b".into(),
        cluster_discovery_type: Some(parts::ClusterDiscoveryType::Type(kind.into())),
        load_assignment: (!load_assignment.endpoints.is_empty()).then_some(load_assignment),
        ..Default::default()
    }
}

fn read(p: pb::Cluster) -> Result<Cluster, Vec<String>> {
    let mut cx = Context::new();
    let read = Cluster::from_proto(p, &mut cx);
    cx.finish(read).map(|(cluster, _)| cluster).map_err(|all| all.iter().map(ToString::to_string).collect())
}

#[test]
fn defaults_are_envoys() {
    let cluster = read(cluster(parts::DiscoveryType::Static, vec![host("127.0.0.1")])).unwrap();
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.per_connection_buffer_limit_bytes, 1 << 20);
    assert_eq!(cluster.circuit_breakers.high.max_retries, 3);
    assert_eq!(cluster.http.common.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!(cluster.load_assignment.policy.overprovisioning_factor, 140);
    let endpoint = &cluster.load_assignment.localities[0].endpoints[0];
    assert_eq!((endpoint.load_balancing_weight, endpoint.health_status), (1, HealthStatus::Degraded));
    assert_eq!(cluster.stat_name(), "a_b");
}

#[test]
fn hosts_fit_the_type() {
    use parts::DiscoveryType::*;
    assert!(read(cluster(Static, vec![])).is_ok());
    assert_eq!(
        read(cluster(Static, vec![host("a.b")])).unwrap_err(),
        ["load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: malformed IP address: a.b. Consider setting \
          resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'"]
    );
    assert!(read(cluster(StrictDns, vec![host("a.b"), host("c.d")])).is_ok());
    assert_eq!(read(cluster(LogicalDns, vec![host("a.b"), host("c.d")])).unwrap_err().len(), 1);
    assert_eq!(
        read(cluster(Eds, vec![])).unwrap_err(),
        ["eds_cluster_config: cannot create an EDS cluster without an EDS config"]
    );
    let original_dst = |lb: parts::LbPolicy| pb::Cluster { lb_policy: lb.into(), ..cluster(OriginalDst, vec![]) };
    assert!(read(original_dst(parts::LbPolicy::ClusterProvided)).is_ok());
    assert_eq!(read(original_dst(parts::LbPolicy::RoundRobin)).unwrap_err().len(), 1);
}

#[test]
fn what_is_not_done_is_refused_with_its_path() {
    let p = pb::Cluster {
        lb_policy: parts::LbPolicy::ClusterProvided.into(),
        transport_socket_matcher: Some(Default::default()),
        transport_socket: Some(core::TransportSocket {
            name: "tls".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(Any {
                type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tap.v3.Tap".into(),
                value: Vec::new(),
            })),
        }),
        typed_extension_protocol_options: HashMap::from([("x".to_owned(), Any::default())]),
        ..cluster(parts::DiscoveryType::Static, vec![])
    };
    let problems = read(p).unwrap_err();
    let paths: Vec<_> = problems.iter().map(|p| p.split(": ").next().unwrap()).collect();
    assert_eq!(
        paths,
        [
            "transport_socket_matcher",
            "lb_policy",
            "typed_extension_protocol_options[\"x\"]",
            "transport_socket.typed_config"
        ]
    );
}

#[test]
fn http2_by_the_deprecated_field() {
    let p = pb::Cluster {
        http2_protocol_options: Some(core::Http2ProtocolOptions::default()),
        ..cluster(parts::DiscoveryType::Static, vec![])
    };
    assert!(matches!(read(p.clone()).unwrap().http.protocol, UpstreamProtocol::Http2(_)));
    let both = pb::Cluster { http_protocol_options: Some(core::Http1ProtocolOptions::default()), ..p };
    assert_eq!(read(both.clone()).unwrap_err().len(), 1);
    let chosen = pb::Cluster { protocol_selection: 1, ..both };
    assert!(matches!(read(chosen).unwrap().http.protocol, UpstreamProtocol::UseDownstream { http2: Some(_), .. }));
}
