//! The command line beside Envoy's: exit codes, what is printed, and how the parts of a configuration are put together.

use std::{
    path::PathBuf,
    process::{Command, Output},
};
use weft_tests::tools;

/// A file that goes when the test does.
struct File(PathBuf);

impl File {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-command-line-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("the temporary directory can be written to");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("it is text")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn weft(arguments: &[&str]) -> Output {
    Command::new(tools::binary("weft")).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn exit_codes_are_envoys() {
    let Some(envoy) = tools::envoy() else { return };
    let file = File::new("ok.yaml", "node: {id: a}\n");
    let json = File::new("ok.json", "{\"node\": {\"id\": \"a\"}}");
    let (good, json) = (file.path(), json.path());
    let validate = |more: &[&'static str]| [&["--mode", "validate", "-l", "off"][..], more].concat();
    let cases: Vec<Vec<&str>> = vec![
        [validate(&[]), vec!["-c", good]].concat(),
        [validate(&[]), vec!["-c", json]].concat(),
        [validate(&["--config-yaml", "{node: {id: b}}"]), vec!["-c", good]].concat(),
        validate(&["--config-yaml", "{node: {id: b}}"]),
        validate(&["--config-yaml", "{nope: 1}"]),
        validate(&["--config-yaml", "{nope: 1}", "--allow-unknown-static-fields"]),
        validate(&["--config-yaml", "{static_resources: {clusters: [{name: ''}]}}"]),
        validate(&["-c", "/nonexistent.yaml"]),
        validate(&[]),
        [validate(&["--log-path", "/nonexistent/log"]), vec!["-c", good]].concat(),
        [validate(&["--concurrency", "0", "--base-id", "7", "--restart-epoch", "1"]), vec!["-c", good]].concat(),
        vec!["--mode", "nope", "-c", good],
        vec!["-l", "nope"],
        vec!["--component-log-level", "nope:debug"],
        vec!["--component-log-level", "http:debug", "--enable-fine-grain-logging"],
        vec!["--drain-strategy", "nope"],
        vec!["--local-address-ip-version", "v5"],
        vec!["--restart-epoch", "1", "--use-dynamic-base-id"],
        vec!["--no-such-flag"],
        vec!["--version"],
        vec!["--help"],
        vec!["--hot-restart-version"],
        vec!["--hot-restart-version", "--disable-hot-restart"],
    ];
    for arguments in cases {
        let theirs = Command::new(&envoy).args(&arguments).output().expect("it runs");
        let ours = weft(&arguments);
        assert_eq!(ours.status.code(), theirs.status.code(), "{arguments:?}: {}", text(&ours.stderr));
        // These two are read by programs.
        if arguments.contains(&"--hot-restart-version") || arguments.contains(&"validate") && ours.status.success() {
            let last = |bytes: &[u8]| text(bytes).trim_end().lines().last().map(str::to_owned);
            assert_eq!(last(&ours.stdout), last(&theirs.stdout), "{arguments:?}");
            assert_eq!(last(&ours.stderr), last(&theirs.stderr), "{arguments:?}");
        }
    }
}

#[test]
fn every_problem_is_said_at_once_with_its_line() {
    let file = File::new(
        "bad.yaml",
        "\
node: {id: [x]}
admin: {addres: 1}
hds_config: {}
static_resources:
  clusters:
  - name: one
    connect_timeout: 0s
    health_checks: []
    lb_policy: ROUND_ROBBIN
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 99999}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          tracing: {}
          route_config:
            virtual_hosts:
            - name: v
              domains: [a]
              routes:
              - match: {safe_regex: {regex: '('}}
                route: {cluster: one}
              - match: {prefix: /}
                route: {cluster: nobody}
",
    );
    let output = weft(&["-c", file.path(), "--mode", "validate", "-l", "off"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    let manager = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";
    let expected = [
        "1:12: node.id: found a list, allowed: text".to_owned(),
        "2:9: admin.addres: is not a field of envoy.config.bootstrap.v3.Admin; did you mean \"address\"?".to_owned(),
        "3:1: hds_config: is not supported".to_owned(),
        "7:5: static_resources.clusters[0].connect_timeout: found 0s, allowed: more than 0s".to_owned(),
        "9:16: static_resources.clusters[0].lb_policy: ".to_owned(),
        "12:52: static_resources.listeners[0].address.socket_address.port_value: found 99999, allowed: at most 65535"
            .to_owned(),
        format!("{manager}.stat_prefix: is empty"),
        format!("18:11: {manager}.tracing: is not supported"),
        format!("{manager}.route_config.virtual_hosts[0].routes[0].match.safe_regex.regex: found \"(\""),
    ];
    for problem in expected {
        assert!(said.contains(&problem), "not said: {problem}\n{said}");
    }
    let lines: Vec<u32> = said.lines().skip(1).filter_map(|l| l.trim().split(':').next()?.parse().ok()).collect();
    assert!(lines.is_sorted() && lines.len() >= 9, "{said}");
}

#[test]
fn a_route_to_no_cluster_names_the_route() {
    let text_of = |cluster: &str| {
        format!(
            "{{static_resources: {{clusters: [{cluster}], listeners: [{{name: l, address: {{socket_address: {{address: \
             127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: http, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
             stat_prefix: h, route_config: {{virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: \
             /}}, route: {{cluster: one}}}}]}}]}}, http_filters: [{{name: r, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}]}}}}"
        )
    };
    let said = |cluster: &str| text(&weft(&["--mode", "validate", "--config-yaml", &text_of(cluster)]).stderr);
    let path = "typed_config.route_config.virtual_hosts[0].routes[0].route: route: unknown cluster 'one'";
    assert!(said("").contains(path), "{}", said(""));
    // One that is there, but wrong, is the problem; not the route to it.
    let wrong = said("{name: one, type: STATIC, hidden_envoy_deprecated: 1, health_checks: [{}]}");
    assert!(wrong.contains("clusters[0]") && !wrong.contains("unknown cluster"), "{wrong}");
}
