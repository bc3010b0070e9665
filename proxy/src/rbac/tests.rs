//! Decisions, and that the index never changes one.

use super::*;
use crate::{
    base::{Address, ConnectionInfo},
    http::RequestHead,
    observe::StreamInfo,
};
use ::http::{HeaderName, HeaderValue, Method};
use std::{collections::BTreeMap, rc::Rc};
use weft_config::{Context, rbac};
use weft_control_api::{EncodeOptions, Message, encode, envoy::extensions::filters::http::rbac::v3 as pb, yaml};

fn rules(text: &str) -> Rules {
    let node = yaml::parse(&format!("{{rules: {text}}}")).expect("YAML");
    let encoded = encode(node, "envoy.extensions.filters.http.rbac.v3.RBAC", EncodeOptions::default()).expect("rules");
    let p = pb::Rbac::decode(&*encoded.bytes).expect("rules");
    let mut cx = Context::new();
    let rbac = rbac::Rbac::from_http(p, &mut cx);
    let (rbac, _) = cx.finish(Some(rbac)).expect("no problems");
    rbac.rules.expect("rules")
}

fn info(port: u16, client: &str) -> StreamInfo {
    let address = |text: String| Address::Ip(text.parse().expect("an address"));
    let info = ConnectionInfo::accepted(1, address(format!("10.0.0.1:{port}")), address(format!("{client}:1234")));
    StreamInfo::new(Rc::new(info))
}

fn request(path: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new(Method::GET, path.to_owned());
    for (name, value) in headers {
        let name = HeaderName::try_from(*name).expect("a name");
        head.headers.append(name, HeaderValue::try_from(*value).expect("a value"));
    }
    head
}

fn decide(engine: &Engine, path: &str, headers: &[(&str, &str)]) -> (bool, Option<String>) {
    let head = request(path, headers);
    let decision = engine.decide(&Facts { info: &info(80, "1.2.3.4"), request: Some(&head) });
    (decision.allowed, decision.policy.map(|policy| policy.to_string()))
}

const ANY: &str = "{any: true}";

fn one(action: &str, permission: &str) -> Engine {
    Engine::new(rules(&format!(
        "{{action: {action}, policies: {{p: {{permissions: [{permission}], principals: [{ANY}]}}}}}}"
    )))
}

#[test]
fn actions() {
    let permission = "{url_path: {path: {exact: /a}}}";
    let taken = (true, Some("p".to_owned()));
    assert_eq!(decide(&one("ALLOW", permission), "/a?q", &[]), taken);
    assert_eq!(decide(&one("ALLOW", permission), "/a/", &[]), (false, None));
    assert_eq!(decide(&one("DENY", permission), "/a", &[]), (false, Some("p".to_owned())));
    assert_eq!(decide(&one("DENY", permission), "/b", &[]), (true, None));
    assert_eq!(decide(&one("LOG", permission), "/a", &[]), taken);
    assert!(!Engine::new(rules("{}")).decide(&Facts { info: &info(80, "1.2.3.4"), request: None }).allowed);
}

#[test]
fn where_a_headers_values_disagree_what_denies_wins() {
    let two: &[_] = &[("x", "v"), ("x", "w")];
    let header = |test: &str| format!("{{header: {{name: x, {test}}}}}");
    let not = |rule: &str| format!("{{not_rule: {rule}}}");
    for test in
        ["string_match: {exact: v}", "string_match: {exact: 'v,w'}", "string_match: {exact: v}, invert_match: true"]
    {
        assert!(!decide(&one("DENY", &header(test)), "/", two).0, "{test}");
    }
    assert!(!decide(&one("DENY", &not(&header("string_match: {exact: v}"))), "/", two).0);
    assert!(decide(&one("DENY", &header("string_match: {exact: x}")), "/", two).0);
    // What allows asks one of the values, and none of them where the test is inverted.
    assert!(decide(&one("ALLOW", &header("string_match: {exact: w}")), "/", two).0);
    assert!(!decide(&one("ALLOW", &header("string_match: {exact: 'v,w'}")), "/", two).0);
    assert!(!decide(&one("ALLOW", &header("string_match: {exact: v}, invert_match: true")), "/", two).0);
}

/// The index finds what a walk finds, for any policies.
#[test]
fn the_index_changes_no_decision() {
    let mut random = fastrand::Rng::with_seed(7);
    let leaf = |random: &mut fastrand::Rng| match random.u8(..10) {
        0 => format!("{{url_path: {{path: {{exact: /{}}}}}}}", random.u8(..4)),
        1 => format!("{{url_path: {{path: {{prefix: /{}}}}}}}", random.u8(..4)),
        2 => format!("{{url_path: {{path: {{suffix: '{}'}}}}}}", random.u8(..4)),
        3 => format!("{{header: {{name: x-a, string_match: {{exact: '{}'}}}}}}", random.u8(..3)),
        4 => format!("{{header: {{name: x-b, string_match: {{exact: '{}'}}, invert_match: true}}}}", random.u8(..3)),
        5 => format!("{{destination_port: {}}}", random.u8(80..84)),
        6 => format!(
            "{{destination_ip: {{address_prefix: 10.0.0.{}, prefix_len: {}}}}}",
            random.u8(..3),
            random.u8(30..33)
        ),
        7 => format!("{{requested_server_name: {{exact: '{}'}}}}", if random.bool() { "" } else { "a" }),
        8 => format!(
            "{{header: {{name: ':method', string_match: {{exact: {}}}}}}}",
            if random.bool() { "GET" } else { "PUT" }
        ),
        _ => ANY.to_owned(),
    };
    fn rule(random: &mut fastrand::Rng, depth: u8, leaf: &impl Fn(&mut fastrand::Rng) -> String) -> String {
        let many = |random: &mut fastrand::Rng| {
            let rules: Vec<_> = (0..random.u8(1..4)).map(|_| rule(random, depth - 1, leaf)).collect();
            rules.join(", ")
        };
        match if depth == 0 { 9 } else { random.u8(..6) } {
            0 => format!("{{and_rules: {{rules: [{}]}}}}", many(random)),
            1 => format!("{{or_rules: {{rules: [{}]}}}}", many(random)),
            2 => format!("{{not_rule: {}}}", rule(random, depth - 1, leaf)),
            _ => leaf(random),
        }
    }
    for _ in 0..60 {
        let mut text = BTreeMap::new();
        for name in 0..random.u8(4..12) {
            let permissions: Vec<_> = (0..random.u8(1..3)).map(|_| rule(&mut random, 2, &leaf)).collect();
            text.insert(
                name,
                format!("p{name:02}: {{permissions: [{}], principals: [{ANY}]}}", permissions.join(", ")),
            );
        }
        let text = text.into_values().collect::<Vec<_>>().join(", ");
        let action = if random.bool() { "ALLOW" } else { "DENY" };
        let Engine::Policies(mut engine) = Engine::new(rules(&format!("{{action: {action}, policies: {{{text}}}}}")))
        else {
            panic!("policies make policies")
        };
        for _ in 0..40 {
            let headers: Vec<_> = (0..random.u8(..4))
                .map(|_| (if random.bool() { "x-a" } else { "x-b" }, ["0", "1", "2"][random.usize(..3)]))
                .collect();
            let head = request(&format!("/{}", random.u8(..24)), &headers);
            let info = info(random.u16(80..84), "1.2.3.4");
            let facts = Facts { info: &info, request: Some(&head) };
            let indexed = engine.decide(&facts);
            let index = std::mem::replace(&mut engine.index, Index::walk_all(engine.policies.len() as u32));
            let walked = engine.decide(&facts);
            engine.index = index;
            assert_eq!(indexed, walked, "{text}\n{} {headers:?}", String::from_utf8_lossy(&head.path));
        }
    }
}
