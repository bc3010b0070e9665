//! Rules from text to meaning.

use super::*;
use weft_control_api::{EncodeOptions, Message, encode, yaml};

fn read(text: &str) -> Result<Rbac, Vec<String>> {
    let node = yaml::parse(text).expect("YAML");
    let name = "envoy.extensions.filters.http.rbac.v3.RBAC";
    let encoded = encode(node, name, EncodeOptions::default()).expect("a configuration");
    let p = http::Rbac::decode(&*encoded.bytes).expect("a configuration");
    let mut cx = Context::new();
    let rbac = Rbac::from_http(p, &mut cx);
    let problems = |all: Vec<weft_control_api::Problem>| all.iter().map(ToString::to_string).collect();
    cx.finish(Some(rbac)).map(|(rbac, _)| rbac).map_err(problems)
}

fn policy(permission: &str, principal: &str) -> String {
    format!("{{rules: {{policies: {{p: {{permissions: [{permission}], principals: [{principal}]}}}}}}}}")
}

#[test]
fn everything_at_once() {
    let permission = "{and_rules: {rules: [{any: true}, {not_rule: {header: {name: x, string_match: {exact: a}}}}, \
        {or_rules: {rules: [{destination_port: 80}, {destination_port_range: {start: 1, end: 3}}, {url_path: {path: {prefix: /}}}]}}, \
        {sourced_metadata: {metadata_source: ROUTE, metadata_matcher: {filter: f, path: [{key: k}], value: {present_match: true}}}}, \
        {requested_server_name: {suffix: .test}}, {destination_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}]}}";
    let principal = "{and_ids: {ids: [{authenticated: {}}, {authenticated: {principal_name: {exact: 'spiffe://a/b'}}}, \
        {source_ip: {address_prefix: '::1'}}, {not_id: {remote_ip: {address_prefix: 1.2.3.4}}}, \
        {filter_state: {key: k, address_match: {ranges: [{address_prefix: 1.2.3.4, prefix_len: 24}]}}}, \
        {custom: {name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config, any_validated_client_certificate: true}}}]}}";
    let rbac = read(&policy(permission, principal)).unwrap();
    let Some(Rules::Policies(Policies { action: Action::Allow, policies })) = rbac.rules else { panic!() };
    let [Rule::And(permissions)] = &policies["p"].permissions[..] else { panic!() };
    let [Rule::And(principals)] = &policies["p"].principals[..] else { panic!() };
    assert_eq!((permissions.len(), principals.len()), (6, 6));
    assert!(matches!(principals[5], Rule::Verified(None)));
}

#[test]
fn what_is_not_applied_is_refused() {
    let any = "{any: true}";
    for (text, place) in [
        (policy("{destination_port_range: {start: 3, end: 3}}", any), "permissions[0].destination_port_range"),
        (policy("{matcher: {name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.matchers.upstream_ip_port.v3.UpstreamIpPortMatcher}}}", any), "permissions[0].matcher"),
        (policy(any, "{custom: {name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config}}}"), "principals[0].custom"),
        ("{rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}], condition: {const_expr: {bool_value: false}}}}}}".into(), r#"rules.policies["p"].condition"#),
        ("{shadow_rules: {audit_logging_options: {audit_condition: ON_DENY, logger_configs: [{audit_logger: {name: x}}]}}}".into(), "shadow_rules.audit_logging_options.logger_configs[0]"),
    ] {
        let problems = read(&text).unwrap_err();
        assert!(problems[0].contains(place), "{problems:?}");
    }
}
