//! What is printed, and that it reads back as the same message.

use super::*;
use crate::{EncodeOptions, encode, json, yaml};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

fn bytes(name: &str, text: &str) -> Vec<u8> {
    encode(yaml::parse(text).unwrap(), name, EncodeOptions::default()).unwrap().bytes
}

fn shown(name: &str, text: &str) -> Value {
    print(name, &bytes(name, text), PrintOptions::default()).unwrap()
}

#[test]
fn fields_are_shown_as_envoy_shows_them() {
    let value = shown(
        "envoy.config.cluster.v3.Cluster",
        r#"
name: a
type: EDS
connectTimeout: 0.25s
per_connection_buffer_limit_bytes: 0
lb_policy: ROUND_ROBIN
wait_for_warm_on_init: false
max_requests_per_connection: 5
common_lb_config: {healthy_panic_threshold: {value: 12.5}}
metadata: {filter_metadata: {z: {n: 1, t: x}, a: {l: [true, null]}}}
dns_refresh_rate: 90s
"#,
    );
    assert_eq!(
        value.to_string(),
        r#"{"name":"a","type":"EDS","connect_timeout":"0.250s","per_connection_buffer_limit_bytes":0,"max_requests_per_connection":5,"dns_refresh_rate":"90s","metadata":{"filter_metadata":{"a":{"l":[true,null]},"z":{"n":1,"t":"x"}}},"common_lb_config":{"healthy_panic_threshold":{"value":12.5}},"wait_for_warm_on_init":false}"#
    );
    assert!(pretty(&value).starts_with("{\n \"name\": \"a\",\n \"type\""));
}

#[test]
fn printed_messages_read_back() {
    for (name, text) in [
        (BOOTSTRAP, "node: {id: a, metadata: {x: [1, 'b', {c: null}]}, dynamic_parameters: {k: {params: {p: q}}}}"),
        (BOOTSTRAP, "stats_server_version_override: 18446744073709551615\nstats_flush_interval: 1.000000001s"),
        ("google.protobuf.Timestamp", "'2024-02-29T12:30:00.5Z'"),
        ("google.protobuf.FieldMask", "'a.bC,d'"),
        ("google.protobuf.Any", "{'@type': type.googleapis.com/google.protobuf.Duration, value: 1s}"),
        (
            "google.protobuf.Any",
            "{'@type': type.googleapis.com/google.protobuf.Any, value: {'@type': type.googleapis.com/google.protobuf.BoolValue, value: true}}",
        ),
        ("envoy.type.v3.Int64Range", "{start: '-9223372036854775808', end: 5}"),
        ("envoy.type.v3.DoubleRange", "{start: '-Infinity', end: 1e300}"),
        ("envoy.config.core.v3.DataSource", "inline_bytes: aGVsbG8="),
        (
            "envoy.config.core.v3.HealthCheck",
            "{timeout: 1s, interval: 1s, healthy_threshold: 0, tcp_health_check: {receive: [{text: 'ff'}]}}",
        ),
    ] {
        let (bytes, value) = (bytes(name, text), shown(name, text));
        let again = encode(json::parse(&value.to_string()).unwrap(), name, EncodeOptions::default()).unwrap().bytes;
        assert_eq!(print(name, &again, PrintOptions::default()).unwrap(), value, "{text}");
        assert_eq!(bytes.len(), again.len(), "{text}");
    }
}

#[test]
fn every_message_prints_when_empty() {
    for message in crate::schema::messages() {
        assert!(print(message.full_name(), &[], PrintOptions { redact: true }).is_ok(), "{message:?}");
    }
}

#[test]
fn secrets_do_not_come_out() {
    let secret = "{name: s, tls_certificate: {certificate_chain: {inline_string: public}, private_key: {inline_string: hush}, \
        password: {inline_bytes: aHVzaA==}}}";
    let name = "envoy.extensions.transport_sockets.tls.v3.Secret";
    let value = print(name, &bytes(name, secret), PrintOptions { redact: true }).unwrap().to_string();
    assert_eq!(
        value,
        r#"{"name":"s","tls_certificate":{"certificate_chain":{"inline_string":"public"},"private_key":{"inline_string":"[redacted]"},"password":{"inline_bytes":"W3JlZGFjdGVkXQ=="}}}"#
    );

    let url = format!("type.googleapis.com/{name}");
    for text in [
        format!("{{'@type': {url}, {}", &secret[1..]),
        format!("{{'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: {url}, value: {secret}}}"),
        format!("{{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: {url}, value: {secret}}}"),
    ] {
        let bytes = bytes("google.protobuf.Any", &text);
        let value = print("google.protobuf.Any", &bytes, PrintOptions { redact: true }).unwrap().to_string();
        assert!(!value.contains("hush") && !value.contains("aHVzaA=="), "{value}");
        assert!(value.contains("public") && value.contains(REDACTED), "{value}");
        let open = print("google.protobuf.Any", &bytes, PrintOptions::default()).unwrap().to_string();
        assert!(open.contains("hush"));
    }
}

#[test]
fn malformed_bytes_are_an_error() {
    assert_eq!(print(BOOTSTRAP, b"\x0a\xff", PrintOptions::default()), Err(Malformed));
    // Inside an `Any` they are shown as they are.
    let mut any = Vec::new();
    crate::wire::put_bytes(&mut any, 1, b"type.googleapis.com/envoy.config.cluster.v3.Cluster");
    crate::wire::put_bytes(&mut any, 2, b"\x0a\xff");
    let value = print("google.protobuf.Any", &any, PrintOptions::default()).unwrap();
    assert_eq!(value["value"], "Cv8=");
}
