//! Which messages the checker refuses; the verdicts are those of Envoy 1.40 on the same configuration.

use super::*;
use crate::{
    encode::{EncodeOptions, encode},
    yaml,
};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

fn checked(name: &str, text: &str) -> Checked {
    let encoded = encode(yaml::parse(text).unwrap(), name, EncodeOptions::default())
        .unwrap_or_else(|e| panic!("{text} does not encode: {e:?}"));
    let mut checked = check(name, &encoded.bytes, CheckOptions::default());
    encoded.locate(&mut checked.problems);
    checked
}

fn problems(name: &str, text: &str) -> Vec<String> {
    checked(name, text).problems.iter().map(Problem::to_string).collect()
}

/// A listener with this HTTP connection manager.
fn listener(manager: &str) -> String {
    format!(
        "static_resources: {{listeners: [{{name: l, filter_chains: [{{filters: [{{name: h, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         {manager}}}}}]}}]}}]}}"
    )
}

fn route(virtual_host: &str) -> String {
    listener(&format!("stat_prefix: p, route_config: {{virtual_hosts: [{virtual_host}]}}"))
}

#[test]
fn accepted() {
    for text in [
        &route("{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: u}}]}"),
        "node: {id: a, cluster: c}",
        "static_resources: {clusters: [{name: a, connect_timeout: 1s}]}",
        &listener("stat_prefix: p, route_config: {}, max_request_headers_kb: 8192"),
    ] {
        assert_eq!(problems(BOOTSTRAP, text), [""; 0], "{text}");
    }
}

#[test]
fn refused() {
    let chain = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";
    let hosts = format!("{chain}.route_config.virtual_hosts[0]");
    for (text, path, about) in [
        (
            listener("route_config: {}"),
            format!("{chain}.stat_prefix"),
            "is empty, allowed: text of at least 1 character",
        ),
        (
            listener("stat_prefix: p"),
            chain.to_owned(),
            "route_specifier is required: one of rds, route_config, scoped_routes",
        ),
        (
            route("{name: v, domains: ['*'], routes: [{route: {cluster: u}}]}"),
            format!("{hosts}.routes[0].match"),
            "is required",
        ),
        (route("{name: v, domains: []}"), format!("{hosts}.domains"), "found 0, allowed: at least 1"),
        (
            route("{name: v, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 42}}]}"),
            format!("{hosts}.routes[0].direct_response.status"),
            "found 42, allowed: at least 200 and less than 600",
        ),
        (
            route("{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {}}]}"),
            format!("{hosts}.routes[0].route"),
            "cluster_specifier is required: one of cluster, cluster_header, weighted_clusters, cluster_specifier_plugin, \
             inline_cluster_specifier_plugin",
        ),
        (
            listener("stat_prefix: p, route_config: {}, max_request_headers_kb: 99999999"),
            format!("{chain}.max_request_headers_kb"),
            "found 99999999, allowed: more than 0 and at most 8192",
        ),
        (
            listener("stat_prefix: p, route_config: {}, tracing: {random_sampling: {value: 101}}"),
            format!("{chain}.tracing.random_sampling.value"),
            "found 101, allowed: at least 0 and at most 100",
        ),
        (
            listener("stat_prefix: p, route_config: {}, codec_type: 77"),
            format!("{chain}.codec_type"),
            "found 77, allowed: AUTO, HTTP1, HTTP2, HTTP3",
        ),
        (
            listener("stat_prefix: p, route_config: {}, server_name: \"a\\nb\""),
            format!("{chain}.server_name"),
            "found \"a\\nb\", allowed: text without NUL, CR and LF",
        ),
        (
            route("{name: v, domains: ['*'], routes: [{match: {path_separated_prefix: /a/}, route: {cluster: u}}]}"),
            format!("{hosts}.routes[0].match.path_separated_prefix"),
            "found \"/a/\", allowed: text that matches ^[^?#]+[^?#/]$",
        ),
    ] {
        let found = checked(BOOTSTRAP, &text).problems;
        let found: Vec<_> = found.iter().map(|p| (&*p.path, &*p.message)).collect();
        assert_eq!(found, [(&*path, about)], "{text}");
    }
}

#[test]
fn problems_of_the_wire_get_lines() {
    let text = "static_resources:\n  clusters:\n  - name: a\n    connect_timeout: 0s\n  - name: ''\n";
    assert_eq!(
        problems(BOOTSTRAP, text),
        [
            "4:5: static_resources.clusters[0].connect_timeout: found 0s, allowed: more than 0s",
            "5:5: static_resources.clusters[1].name: is empty, allowed: text of at least 1 character",
        ]
    );
}

#[test]
fn unknown_fields_are_listed_or_refused() {
    let mut bytes = Vec::new();
    crate::wire::put_bytes(&mut bytes, 5000, b"x");
    let lenient = check(BOOTSTRAP, &bytes, CheckOptions::default());
    assert_eq!((lenient.problems.len(), lenient.unknown.len()), (0, 1));
    let strict = check(BOOTSTRAP, &bytes, CheckOptions { reject_unknown: true, ..CheckOptions::default() });
    assert_eq!(
        strict.problems[0].message,
        "has fields that envoy.config.bootstrap.v3.Bootstrap does not have: number 5000"
    );
}

#[test]
fn deprecated_fields_are_listed_with_paths() {
    let found = checked(
        BOOTSTRAP,
        "static_resources: {clusters: [{name: a, dns_lookup_family: V4_ONLY, track_timeout_budgets: true}]}",
    );
    assert_eq!(found.problems, []);
    let paths: Vec<_> = found.deprecated.iter().map(|p| &*p.path).collect();
    assert_eq!(paths, ["static_resources.clusters[0].track_timeout_budgets"]);
}

#[test]
fn any_bytes_end_in_a_verdict() {
    let good = encode(
        yaml::parse(&route("{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: u}}]}")).unwrap(),
        BOOTSTRAP,
        EncodeOptions::default(),
    )
    .unwrap()
    .bytes;
    for seed in 0..3000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bytes = good.clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..bytes.len());
            match rng.u8(..3) {
                0 => bytes[at] = rng.u8(..),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, rng.u8(..)),
            }
        }
        check(BOOTSTRAP, &bytes, CheckOptions::default());
    }
    // Lists in lists, deeper than any parser follows.
    let mut bytes = Vec::new();
    for _ in 0..300 {
        let mut outer = Vec::new();
        crate::wire::put_bytes(&mut outer, 1, &bytes);
        bytes.clear();
        crate::wire::put_bytes(&mut bytes, 6, &outer);
    }
    let verdict = check("google.protobuf.Value", &bytes, CheckOptions::default());
    assert!(verdict.problems[0].message.contains("deeper"));
}

#[test]
fn the_least_duration_is_out_of_range() {
    // Field 1, seconds: the least of an i64, which has no positive counterpart.
    let mut duration = vec![8];
    duration.extend([0x80; 9]);
    duration.push(1);
    let mut cluster = Vec::new();
    crate::wire::put_bytes(&mut cluster, 1, b"a");
    crate::wire::put_bytes(&mut cluster, 4, &duration);
    let found = check("envoy.config.cluster.v3.Cluster", &cluster, CheckOptions::default()).problems;
    assert!(found.iter().any(|p| p.message.contains("out of a duration's range")), "{found:?}");
}
