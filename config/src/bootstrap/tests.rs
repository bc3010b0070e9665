//! Whole bootstraps, from text to meaning.

use super::*;
use crate::{Address, LoadOptions, Sources, config_source::Specifier, load};

fn read(yaml: &str) -> Result<(Bootstrap, Vec<String>), Vec<String>> {
    let loaded = load(Sources { path: None, yaml: Some(yaml) }, LoadOptions::default())
        .map_err(|e| e.problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let mut cx = Context::new();
    let read = Bootstrap::from_proto(loaded.proto.clone(), &mut cx);
    cx.finish(read).map_err(|mut problems| {
        loaded.locate(&mut problems);
        problems.iter().map(ToString::to_string).collect()
    })
}

#[test]
fn a_sidecars_bootstrap() {
    let (bootstrap, ignored) = read(
        r#"
node:
  id: sidecar~10.0.0.1~a.b~b.svc.cluster.local
  cluster: a.b
  locality: {region: r, zone: z}
  metadata: {LABELS: {app: a}}
watchdogs: {main_thread_watchdog: {miss_timeout: 1s}}
layered_runtime:
  layers:
  - name: global
    static_layer: {envoy.reloadable_features.x: "true", overload: {max: 5}}
  - {name: admin, admin_layer: {}}
stats_config:
  use_all_default_tags: false
  stats_tags:
  - {tag_name: cluster_name, regex: '^cluster\.((.+?)\.)'}
  stats_matcher: {inclusion_list: {patterns: [{prefix: cluster}, {suffix: ssl}]}}
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 15000}}
  profile_path: /tmp/x
dynamic_resources:
  lds_config: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
  ads_config:
    api_type: GRPC
    set_node_on_first_message_only: true
    transport_api_version: V3
    grpc_services: [{envoy_grpc: {cluster_name: xds-grpc}}]
static_resources:
  clusters: [{name: xds-grpc, connect_timeout: 1s}]
  listeners: [{name: probe}, {}]
bootstrap_extensions:
- name: envoy.bootstrap.internal_listener
  typed_config: {"@type": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener}
"#,
    )
    .unwrap();
    assert_eq!(bootstrap.node.locality.zone, "z");
    assert!(bootstrap.node.metadata.is_some());
    let Some(Address::Socket(admin)) = bootstrap.admin.unwrap().address else { panic!("a socket address") };
    assert_eq!((&*admin.host, admin.port), ("127.0.0.1", 15000));
    let lds = bootstrap.dynamic_resources.lds.unwrap();
    assert_eq!((lds.specifier, lds.initial_fetch_timeout), (Specifier::Ads, None));
    let ads = bootstrap.dynamic_resources.ads.unwrap();
    assert!(ads.set_node_on_first_message_only && !ads.delta);
    assert_eq!(ads.service.cluster, "xds-grpc");
    assert_eq!(bootstrap.static_resources.listeners.len(), 2);
    assert_eq!(bootstrap.static_resources.clusters[0].type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    assert_eq!(bootstrap.runtime_layers.len(), 2);
    assert!(matches!(&bootstrap.stats.matcher, StatsMatcher::Inclusion(patterns) if patterns.len() == 2));
    assert_eq!(bootstrap.internal_listener, Some(InternalListener { buffer_size: 1 << 20 }));
    assert_eq!(bootstrap.stats_flush_interval, Some(Duration::from_secs(5)));
    assert_eq!(ignored, ["watchdogs", "admin.profile_path"]);
}

#[test]
fn what_is_not_supported_is_named_with_its_line() {
    let problems = read(
        "node: {id: a}\noverload_manager: {resource_monitors: [{name: x}]}\nstats_sinks: [{name: s}]\n\
         dynamic_resources:\n  lds_config: {ads: {}}\nbootstrap_extensions:\n- name: w\n  typed_config: {'@type': \
         type.googleapis.com/google.protobuf.Empty}\n",
    )
    .unwrap_err();
    assert_eq!(
        problems,
        [
            "3:1: stats_sinks: is not supported",
            "5:3: dynamic_resources.lds_config: uses ADS, but there is no ads_config",
            "8:3: bootstrap_extensions[0].typed_config: type.googleapis.com/google.protobuf.Empty is not supported, allowed: \
             envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            "2:40: overload_manager.resource_monitors[0].typed_config: is required",
        ]
    );
}

#[test]
fn refused_as_envoy_refuses() {
    for yaml in [
        "layered_runtime: {layers: [{name: a, static_layer: {}}, {name: a, admin_layer: {}}]}",
        "layered_runtime: {layers: [{name: a, admin_layer: {}}, {name: b, admin_layer: {}}]}",
        "layered_runtime: {layers: [{admin_layer: {}}]}",
        "layered_runtime: {layers: [{name: a}]}",
        "layered_runtime: {layers: [{name: a, static_layer: {x: [1]}}]}",
        "layered_runtime: {layers: [{name: a, static_layer: {x: null}}]}",
        "stats_config: {stats_tags: [{tag_name: a, regex: '('}]}",
        "stats_flush_interval: 0s",
        "stats_config: {stats_tags: [{fixed_value: a}]}",
        "cluster_manager: {local_cluster_name: x}",
        "admin: {address: {socket_address: {address: localhost, port_value: 0}}}",
    ] {
        assert!(read(yaml).is_err(), "{yaml}");
    }
    assert!(read("node: {id: a}").is_ok());
    assert_eq!(read("stats_flush_on_admin: true").unwrap().0.stats_flush_interval, None);
}

#[test]
fn control_planes_are_reachable_and_know_who_asks() {
    let with = |cluster: &str, node: &str| {
        read(&format!(
            "node: {node}\nstatic_resources: {{clusters: [{{name: x, connect_timeout: 1s}}]}}\ndynamic_resources:\n  ads_config: \
             {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: {cluster}}}}}]}}\n"
        ))
    };
    assert_eq!(
        with("zz", "{id: a, cluster: c}").unwrap_err(),
        [
            "4:89: dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name: found \"zz\", which is no cluster of \
          static_resources"
        ]
    );
    assert_eq!(with("x", "{id: a, cluster: c}").unwrap().0.missing_identity(), []);
    let missing = with("x", "{id: a}").unwrap().0.missing_identity();
    assert_eq!(missing.iter().map(|p| &*p.path).collect::<Vec<_>>(), ["node.cluster"]);
    assert_eq!(read("node: {}").unwrap().0.missing_identity(), []);
}
