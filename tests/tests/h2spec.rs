//! h2spec, the conformance test of HTTP/2, against a listener that forwards.

use std::process::Command;
use weft_tests::{Kind, Proxy, Upstream, free_port, tools, yaml};

#[test]
fn every_case_passes() {
    let Some(h2spec) = tools::h2spec() else { return };
    let upstream = Upstream::named("something to say");
    let port = free_port();
    let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u}}]}";
    let listener = yaml::http_listener("l", port, "codec_type: HTTP2", host);
    let _proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&[listener], &[yaml::cluster("u", upstream.port())]));
    let output = Command::new(h2spec).args(["-h", "127.0.0.1", "-p", &port.to_string(), "-o", "5"]).output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(" 0 failed"), "{said}");
}
