//! Rules, and which configurations are refused.

use super::*;
use crate::http::RequestHead;
use bytes::Bytes;
use http::HeaderValue;
use serde_json::json;
use weft_control_api::envoy::r#type::matcher::v3 as matcher;

fn entry(key: &str, value: &str) -> pb::config::KeyValuePair {
    pb::config::KeyValuePair { key: key.into(), value: value.into(), ..Default::default() }
}

fn rewrite(pattern: &str, substitution: &str) -> Option<matcher::RegexMatchAndSubstitute> {
    let pattern = Some(matcher::RegexMatcher { regex: pattern.into(), ..Default::default() });
    Some(matcher::RegexMatchAndSubstitute { pattern, substitution: substitution.into() })
}

fn rule(header: &str) -> pb::config::Rule {
    pb::config::Rule { header: header.into(), ..Default::default() }
}

fn read(rules: Vec<pb::config::Rule>) -> Result<HeaderToMetadata, Vec<String>> {
    let mut cx = Context::new();
    let config = pb::Config { request_rules: rules, ..Default::default() };
    let config = HeaderToMetadata::from_proto(config, &mut cx);
    cx.finish(Some(config)).map(|(config, _)| config).map_err(|all| all.into_iter().map(|p| p.path).collect())
}

#[test]
fn rules_that_say_nothing_or_too_much_are_refused() {
    let present = Some(entry("k", ""));
    let bad = [
        (rule(""), "request_rules[0]"),
        (pb::config::Rule { on_header_present: None, ..rule("a") }, "request_rules[0]"),
        (pb::config::Rule { cookie: "c".into(), on_header_present: present.clone(), ..rule("a") }, "request_rules[0]"),
        (
            pb::config::Rule { cookie: "c".into(), on_header_present: present.clone(), remove: true, ..rule("") },
            "request_rules[0].remove",
        ),
        (
            pb::config::Rule { on_header_missing: present.clone(), ..rule("a") },
            "request_rules[0].on_header_missing.value",
        ),
        (
            pb::config::Rule {
                on_header_present: Some(pb::config::KeyValuePair {
                    regex_value_rewrite: rewrite("a", "b"),
                    ..entry("k", "v")
                }),
                ..rule("a")
            },
            "request_rules[0].on_header_present",
        ),
        (
            pb::config::Rule {
                on_header_present: Some(pb::config::KeyValuePair {
                    regex_value_rewrite: rewrite("(", ""),
                    ..entry("k", "")
                }),
                ..rule("a")
            },
            "request_rules[0].on_header_present.regex_value_rewrite.pattern.regex",
        ),
    ];
    for (rule, path) in bad {
        let problems = read(vec![rule]).err().unwrap_or_default();
        assert!(problems.iter().any(|problem| problem == path), "{problems:?}, wanted {path}");
    }
    // A rewrite of what is missing is not even looked at.
    let missing = pb::config::KeyValuePair { regex_value_rewrite: rewrite("(", ""), ..entry("k", "v") };
    assert!(read(vec![pb::config::Rule { on_header_missing: Some(missing), ..rule("a b") }]).is_ok());
}

#[test]
fn rules_apply_in_order() {
    let there = |header: &str, key: &str| pb::config::Rule { on_header_present: Some(entry(key, "")), ..rule(header) };
    let gone = |header: &str, key: &str| pb::config::Rule { on_header_missing: Some(entry(key, "-")), ..rule(header) };
    let config = read(vec![
        there("X-A", "a"),
        pb::config::Rule { remove: true, ..there("x-b", "b") },
        gone("x-b", "b-gone"),
        gone("x-a", "a-gone"),
        there(":path", "path"),
        there("host", "authority"),
        there("x-long", "long"),
        pb::config::Rule { cookie: "c".into(), ..there("", "cookie") },
    ])
    .expect("valid");
    let mut head = RequestHead::new(http::Method::GET, "/p");
    head.authority = Bytes::from_static(b"h.test");
    let long = "x".repeat(8192);
    for (name, value) in [("x-a", "1"), ("x-a", "2"), ("x-b", "3"), ("x-long", &*long), ("cookie", "b=1; c=\"q\"")] {
        let name = http::HeaderName::try_from(name).expect("a name");
        head.headers.append(name, HeaderValue::try_from(value).expect("a value"));
    }
    let (stats, mut metadata) = (RuleStats::default(), Metadata::default());
    assert_eq!(apply(&config.request, &mut head, &mut metadata, Some(Counts::request(&stats))), None);
    let all = json!({"a": "1,2", "authority": "h.test", "b": "3", "b-gone": "-", "cookie": "q", "path": "/p"});
    assert_eq!(json!(metadata[NAMESPACE]).to_string(), all.to_string());
    assert!(!head.headers.contains_key("x-b"));
    let counts = [
        &stats.request_rules_processed,
        &stats.request_metadata_added,
        &stats.request_header_not_found,
        &stats.header_value_too_long,
    ];
    assert_eq!(counts.map(Counter::get), [8, 6, 1, 1]);
}
