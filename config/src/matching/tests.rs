//! Trees from text to what they find.

use super::*;
use crate::Context;
use weft_control_api::{Any, EncodeOptions, Message, encode, xds::r#type::matcher::v3 as pb, yaml};

/// Values by name: of headers, and of the client's address (`ip`).
struct Values(&'static [(&'static str, &'static str)]);

impl Inputs for Values {
    fn text<'s>(&'s self, input: &'s Input) -> Option<Cow<'s, [u8]>> {
        let name = match input {
            Input::RequestHeader(HeaderKey::Name(name)) => name.as_str(),
            Input::SourceIp => "ip",
            Input::ServerName => "sni",
            _ => return None,
        };
        self.0.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_bytes().into())
    }

    fn metadata(&self, _: &str, _: &[String]) -> Option<&Value> {
        None
    }
}

fn action(any: &Any, cx: &mut Context) -> Option<String> {
    let pb: weft_control_api::envoy::config::rbac::v3::Action = cx.unpack("", any)?;
    Some(pb.name)
}

fn read(text: &str) -> Result<Matcher<String>, Vec<String>> {
    let node = yaml::parse(text).expect("YAML");
    let encoded = encode(node, "xds.type.matcher.v3.Matcher", EncodeOptions::default()).expect("a matcher");
    let p = pb::Matcher::decode(&*encoded.bytes).expect("a matcher");
    let mut cx = Context::new();
    let matcher = Matcher::from_proto(p, Scope::Http, action, &mut cx);
    let problems = |all: Vec<weft_control_api::Problem>| all.iter().map(ToString::to_string).collect();
    cx.finish(matcher).map(|(matcher, _)| matcher).map_err(problems)
}

const HEADER: &str = "{name: i, typed_config: {'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x}}";
const IP: &str = "{name: i, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.SourceIPInput}}";
const SNI: &str = "{name: i, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.ServerNameInput}}";

fn act(name: &str) -> String {
    format!(
        "{{action: {{name: a, typed_config: {{'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: {name}}}}}}}"
    )
}

fn found(tree: &str, values: &'static [(&'static str, &'static str)]) -> String {
    let matcher = read(tree).unwrap_or_else(|problems| panic!("{problems:?}"));
    matcher.find(&Values(values)).cloned().unwrap_or_default()
}

#[test]
fn a_list_goes_on_behind_a_branch_that_ends_in_nothing() {
    let inner = format!(
        "{{matcher: {{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {IP}, value_match: {{exact: '1.2.3.4'}}}}}}, on_match: {}}}]}}}}}}",
        act("inner")
    );
    let tree = format!(
        "{{matcher_list: {{matchers: [\
         {{predicate: {{single_predicate: {{input: {HEADER}, value_match: {{prefix: a}}}}}}, on_match: {inner}}}, \
         {{predicate: {{not_matcher: {{single_predicate: {{input: {HEADER}, value_match: {{exact: b}}}}}}}}, on_match: {}}}]}}, \
         on_no_match: {}}}",
        act("second"),
        act("none")
    );
    assert_eq!(found(&tree, &[("x", "ab"), ("ip", "1.2.3.4")]), "inner");
    assert_eq!(found(&tree, &[("x", "ab"), ("ip", "1.2.3.5")]), "second");
    assert_eq!(found(&tree, &[("x", "b")]), "none");
    // A header that is not there matches nothing, so that its negation holds.
    assert_eq!(found(&tree, &[]), "second");
}

#[test]
fn maps_by_prefix_and_exact_text() {
    let map = |kind: &str| {
        format!(
            "{{matcher_tree: {{input: {HEADER}, {kind}: {{map: {{/a: {}, /a/b: {}}}}}}}, on_no_match: {}}}",
            act("short"),
            act("long"),
            act("none")
        )
    };
    let prefix = map("prefix_match_map");
    assert_eq!(found(&prefix, &[("x", "/a/b/c")]), "long");
    assert_eq!(found(&prefix, &[("x", "/a/c")]), "short");
    assert_eq!(found(&prefix, &[("x", "/c")]), "none");
    assert_eq!(found(&prefix, &[]), "none");
    let exact = map("exact_match_map");
    assert_eq!(found(&exact, &[("x", "/a/b")]), "long");
    assert_eq!(found(&exact, &[("x", "/a/b/")]), "none");
}

#[test]
fn the_narrowest_range_wins_and_exclusive_ones_only_so() {
    let range = |net: &str, len: u8| format!("{{address_prefix: {net}, prefix_len: {len}}}");
    let none = "{matcher: {matcher_list: {matchers: []}}}";
    let tree = |exclusive: bool| {
        format!(
            "{{matcher_tree: {{input: {IP}, custom_match: {{name: ip, typed_config: {{'@type': type.googleapis.com/xds.type.matcher.v3.IPMatcher, range_matchers: [\
             {{ranges: [{}], on_match: {}, exclusive: {exclusive}}}, {{ranges: [{}], on_match: {none}}}]}}}}}}, on_no_match: {}}}",
            range("10.0.0.0", 8),
            act("wide"),
            range("10.1.0.0", 16),
            act("none")
        )
    };
    assert_eq!(found(&tree(false), &[("ip", "10.2.0.1")]), "wide");
    assert_eq!(found(&tree(true), &[("ip", "10.2.0.1")]), "wide");
    assert_eq!(found(&tree(false), &[("ip", "10.1.0.1")]), "wide");
    assert_eq!(found(&tree(true), &[("ip", "10.1.0.1")]), "none");
    assert_eq!(found(&tree(false), &[("ip", "11.1.0.1")]), "none");
}

#[test]
fn server_names_by_their_labels() {
    let tree = format!(
        "{{matcher_tree: {{input: {SNI}, custom_match: {{name: sni, typed_config: {{'@type': type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher, domain_matchers: [\
         {{domains: [a.test], on_match: {}}}, {{domains: ['*.a.test'], on_match: {}}}, {{domains: ['*.b.a.test'], on_match: {}}}]}}}}}}}}",
        act("exact"),
        act("below"),
        act("deeper")
    );
    assert_eq!(found(&tree, &[("sni", "A.test")]), "exact");
    assert_eq!(found(&tree, &[("sni", "x.y.a.test")]), "below");
    assert_eq!(found(&tree, &[("sni", "x.b.a.test")]), "deeper");
    assert_eq!(found(&tree, &[("sni", "xa.test")]), "");
}

#[test]
fn what_cannot_be_asked_or_done_is_refused() {
    let keep = act("a").replacen('{', "{keep_matching: true, ", 1);
    let list = |input: &str, on_match: &str| {
        format!(
            "{{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {input}, value_match: {{exact: b}}}}}}, on_match: {on_match}}}]}}}}"
        )
    };
    let problems = read(&list(HEADER, &keep)).unwrap_err();
    assert!(problems[0].contains("matcher_list.matchers[0].on_match.keep_matching"), "{problems:?}");
    let source_type = IP.replace("SourceIPInput", "SourceTypeInput");
    let problems = read(&list(&source_type, &act("a"))).unwrap_err();
    assert!(problems[0].contains("cannot match on"), "{problems:?}");
}
