//! What the encoder takes and refuses; the verdicts are those of Envoy 1.40 on the same text.

use super::*;
use crate::{envoy::config::bootstrap::v3::Bootstrap, yaml};
use prost::Message as _;

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

fn read(text: &str) -> Result<Encoded, Vec<Problem>> {
    encode(yaml::parse(text).map_err(|p| vec![p])?, BOOTSTRAP, EncodeOptions::default())
}

fn bootstrap(text: &str) -> Bootstrap {
    let encoded = read(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
    Bootstrap::decode(&*encoded.bytes).unwrap()
}

fn problems(text: &str) -> Vec<String> {
    read(text).map_or_else(|e| e.iter().map(Problem::to_string).collect(), |_| panic!("{text} is accepted"))
}

/// A cluster with this field.
fn cluster(field: &str) -> String {
    format!("static_resources: {{clusters: [{{name: a, {field}}}]}}")
}

#[test]
fn what_envoy_accepts() {
    for text in [
        "node: {id: a, id: b}",
        "!ignore x: &a {id: q}\nnode: *a\n",
        "node: {id: 12345678901}",
        "node: {id: 1.5}",
        "enable_dispatcher_stats: 'true'",
        "enable_dispatcher_stats: On",
        &cluster("per_connection_buffer_limit_bytes: '12'"),
        &cluster("per_connection_buffer_limit_bytes: 0x10"),
        &cluster("per_connection_buffer_limit_bytes: 1.0"),
        &cluster("per_connection_buffer_limit_bytes: 1e3"),
        &cluster("per_connection_buffer_limit_bytes: {value: 1}"),
        &cluster("type: static"),
        &cluster("type: 0"),
        &cluster("type: '0'"),
        &cluster("type: 99"),
        &cluster("type: STATIC, cluster_type: null"),
        &cluster("connect_timeout: 1.5s"),
        &cluster("connect_timeout: {seconds: 1}"),
        &cluster("connectTimeout: 1s"),
        "static_resources: {clusters: null}",
        "static_resources: {clusters: [null]}",
        "static_resources: {clusters: {name: a}}",
        "static_resources: {clusters: [[{name: a}, []], {name: b}]}",
        "static_resources: {listeners: [{filter_chains: [{filter_chain_match: {server_names: [null], source_ports: [null]}}]}]}",
        "node: {dynamic_parameters: {a: null}}",
        &cluster("per_connection_buffer_limit_bytes: '+5'"),
        &cluster("per_connection_buffer_limit_bytes: '05'"),
        &cluster("common_lb_config: {healthy_panic_threshold: {value: .5}}"),
        "bootstrap_extensions: [{name: x, typed_config: {}}]",
        "bootstrap_extensions: [{name: x, typed_config: {'@type': type.googleapis.com/google.protobuf.Struct, value: {a: 1}}}]",
    ] {
        bootstrap(text);
    }
}

#[test]
fn what_envoy_refuses() {
    for text in [
        "node: {id: yes}",
        "node: {id: y}",
        "node: {id: 12}",
        "enable_dispatcher_stats: 1",
        &cluster("per_connection_buffer_limit_bytes: -1"),
        &cluster("per_connection_buffer_limit_bytes: 1.5"),
        &cluster("per_connection_buffer_limit_bytes: ' 5'"),
        &cluster("common_lb_config: {healthy_panic_threshold: {value: .inf}}"),
        "node: {dynamic_parameters: []}",
        "static_resources: {secrets: [{name: a, generic_secret: {secret: {inline_bytes: '*&'}}}]}",
        &cluster("type: STATIC, cluster_type: {name: b}"),
        &cluster("connect_timeout: 1"),
        &cluster("connect_timeout: 100ms"),
        &cluster("connect_timeout: .5s"),
        &cluster("connect_timeout: 1.0000000001s"),
        "static_resources: []",
        "- a",
        "abc",
        "",
        "foo: {bar: 1}",
        "bootstrap_extensions: [{name: x, typed_config: {a: 1}}]",
        "bootstrap_extensions: [{name: x, typed_config: {'@type': type.googleapis.com/foo.Bar}}]",
        "bootstrap_extensions: [{name: x, typed_config: {'@type': foo.Bar}}]",
        "bootstrap_extensions: [{name: x, typed_config: {'@type': /google.protobuf.Struct, value: {}}}]",
        "bootstrap_extensions: [{name: x, typed_config: {'@type': type.googleapis.com/google.protobuf.Struct, a: 1}}]",
        "bootstrap_extensions: [{name: x, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty, value: {}}}]",
    ] {
        problems(text);
    }
}

#[test]
fn all_problems_at_once_with_paths_and_places() {
    let found = problems(
        "node:\n  id: 5\n  clutser: x\nstatic_resources:\n  clusters:\n  - name: a\n    type: STRICT_DSN\n    load_assignment:\n      endpoints:\n      - lb_endpoints:\n        - endpoint: {address: {socket_address: {port_value: 70000000000}}}\n",
    );
    assert_eq!(found[0], "2:7: node.id: found 5, allowed: text (put it in quotes)");
    assert_eq!(found[1], "3:3: node.clutser: is not a field of envoy.config.core.v3.Node; did you mean \"cluster\"?");
    assert_eq!(
        found[2],
        "7:11: static_resources.clusters[0].type: found \"STRICT_DSN\", did you mean STRICT_DNS? allowed: STATIC, STRICT_DNS, \
         LOGICAL_DNS, EDS, ORIGINAL_DST"
    );
    assert!(found[3].starts_with(
        "11:61: static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: \
         found \"70000000000\", allowed: a whole number from 0 to 4294967295"
    ));
    assert_eq!(found.len(), 4);
}

#[test]
fn unknown_fields_are_left_out_on_request() {
    let node = yaml::parse("node: {id: a, nope: {}}\nnope2: 1\n").unwrap();
    let encoded = encode(node, BOOTSTRAP, EncodeOptions { allow_unknown: true }).unwrap();
    assert_eq!(encoded.unknown.len(), 2);
    assert_eq!(Bootstrap::decode(&*encoded.bytes).unwrap().node.unwrap().id, "a");
}

#[test]
fn values_arrive_as_they_should() {
    let b = bootstrap(
        r#"
node:
  id: node
  metadata: {a: 1, b: 1.5, c: yes, d: null, e: [x, {f: "2"}], big: 12345678901}
  dynamicParameters: {k: {params: {x: z}}}
stats_flush_interval: 0.25s
static_resources:
  secrets:
  - name: s
    generic_secret: {secret: {inline_bytes: aGk_}}
  listeners:
  - name: l
    per_connection_buffer_limit_bytes: 0
    filter_chains:
    - filters:
      - name: t
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: p
          access_log:
          - name: a
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/null
"#,
    );
    let node = b.node.unwrap();
    let fields = &node.metadata.as_ref().unwrap().fields;
    use prost_types::value::Kind::*;
    assert_eq!(fields["a"].kind, Some(NumberValue(1.0)));
    assert_eq!(fields["b"].kind, Some(StringValue("1.5".into())));
    assert_eq!(fields["c"].kind, Some(BoolValue(true)));
    assert_eq!(fields["d"].kind, Some(NullValue(0)));
    assert_eq!(fields["big"].kind, Some(StringValue("12345678901".into())));
    assert!(matches!(&fields["e"].kind, Some(ListValue(l)) if l.values.len() == 2));
    assert_eq!(node.dynamic_parameters["k"].params["x"], "z");
    assert_eq!(b.stats_flush_interval.unwrap().nanos, 250_000_000);
    let resources = b.static_resources.unwrap();
    let listener = &resources.listeners[0];
    assert_eq!(listener.per_connection_buffer_limit_bytes, Some(0));
    let chain = &listener.filter_chains[0];
    let Some(crate::envoy::config::listener::v3::filter::ConfigType::TypedConfig(any)) = &chain.filters[0].config_type
    else {
        panic!("typed_config")
    };
    let tcp = crate::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy::decode(&*any.value).unwrap();
    assert_eq!((&*tcp.stat_prefix, tcp.access_log.len()), ("p", 1));
}

#[test]
fn deep_texts_end_in_a_problem() {
    let deep = format!("node: {{metadata: {{a: {}{}}}}}", "[".repeat(90), "]".repeat(90));
    assert!(problems(&deep)[0].contains("nested too deep"));
}

#[test]
fn any_text_ends_in_a_verdict() {
    let good = "node: &n {id: a, metadata: {x: [1, *n, {y: 'z'}]}}\nstatic_resources:\n  clusters:\n  - name: a\n    type: EDS\n    \
        connect_timeout: 1.5s\n    typed_extension_protocol_options:\n      k: {'@type': type.googleapis.com/google.protobuf.Any, \
        value: {'@type': type.googleapis.com/google.protobuf.Struct, value: {q: ~}}}\n";
    let alphabet: Vec<char> = "{}[]:,-'\"&*!|>?#~ \n\t019aés@<".chars().collect();
    for seed in 0..3000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut text: Vec<char> = good.chars().collect();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(..text.len());
            match rng.u8(..3) {
                0 => text[at] = alphabet[rng.usize(..alphabet.len())],
                1 => _ = text.remove(at),
                _ => text.insert(at, alphabet[rng.usize(..alphabet.len())]),
            }
        }
        let text: String = text.into_iter().collect();
        let _ = read(&text);
        if let Ok(node) = crate::json::parse(&text) {
            let _ = encode(node, BOOTSTRAP, EncodeOptions::default());
        }
    }
    for deep in ["[".repeat(100_000), "{a: ".repeat(50_000), "- ".repeat(50_000)] {
        assert!(read(&deep).is_err());
    }
}

#[test]
fn what_is_sensitive_is_not_repeated() {
    let secret = "MIGHAgEAMBMGByqGSM49";
    let pem = format!("'-----BEGIN PRIVATE KEY-----{secret}'");
    for (field, kind) in [
        (format!("tls_certificate: {{private_key: {secret}}}"), "a text, [redacted]"),
        (format!("tls_certificate: {{private_key: {{{secret}: 1}}}}"), "[redacted]: is not a field"),
        (format!("tls_certificate: {{private_key: {{inline_string: [{secret}]}}}}"), "found a list"),
        (format!("tls_certificate: {{private_key: {{inline_bytes: '{secret}!'}}}}"), "inline_bytes: is not base64"),
        ("tls_certificate: {password: {inline_string: 4711}}".into(), "found a number, [redacted]"),
        (format!("tls_certificate: {secret}"), "a text, [redacted]"),
        (format!("tls_certificate: {{certificate_chain: {pem}}}"), "a PEM text"),
        (format!("session_ticket_keys: {{keys: [{secret}]}}"), "a text, [redacted]"),
        (format!("session_ticket_keys: {{keys: {secret}}}"), "a text, [redacted]"),
        (format!("generic_secret: {{secret: {secret}}}"), "a text, [redacted]"),
    ] {
        let found = problems(&format!("static_resources: {{secrets: [{{name: a, {field}}}]}}")).join("\n");
        assert!(!found.contains(secret) && !found.contains("4711"), "{found}");
        assert!(found.contains(kind), "{found}");
    }
    let misspelt = problems("static_resources: {secrets: [{name: a, tls_certificate: {private_key: {filname: x}}}]}");
    assert!(misspelt[0].contains("private_key.filname: is not a field"), "{misspelt:?}");
    // What stands beside is shown.
    let beside = problems("static_resources: {secrets: [{tls_certificate: {private_key: x}, name: [y]}], clusters: z}");
    assert!(beside.iter().any(|p| p.contains("found \"z\"")), "{beside:?}");
}
