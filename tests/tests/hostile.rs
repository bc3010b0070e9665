//! Peers that mean harm, or are broken: what Weft does with them is what Envoy does, or less.

use std::{thread::sleep, time::Duration};
use weft_tests::{Client, Kind, Proxy, Reply, Upstream, differential, free_port, yaml};

const HOST: &str = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u}}]}";

#[test]
fn a_body_that_is_no_http_is_answered_as_by_envoy() {
    let upstream = Upstream::named("never whole");
    let port = free_port();
    let config =
        || yaml::bootstrap(&[yaml::http_listener("l", port, "", HOST)], &[yaml::cluster("u", upstream.port())]);
    differential(config, |proxy| {
        let answers =
            ["g\r\n", "5\nhello\n0\n\n", "10000000000000005\r\nhello", "0\r\nno trailer\r\n\r\n"].map(|bad| {
                let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
                client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
                // The request is on its way already.
                sleep(Duration::from_millis(50));
                client.send(bad);
                let answer = client
                    .response()
                    .map(|answer| (answer.status, answer.header("connection").map(str::to_owned), answer.text()));
                (bad, answer)
            });
        let stats = ["downstream_cx_protocol_error", "downstream_rq_rx_reset", "downstream_rq_4xx"]
            .map(|name| proxy.stat(&format!("http.http.{name}")));
        (answers, stats)
    });
    assert!(upstream.take().is_empty(), "a request that was never whole was taken for one");
}

/// What follows an upgrade or CONNECT that nobody accepted yet could be a request past all routes and policies.
#[test]
fn what_is_sent_before_a_tunnel_is_accepted_waits() {
    for (head, options) in [
        ("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", ""),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", ", route: {cluster: u}"),
    ] {
        let upstream = Upstream::start(|seen| match seen.line.contains("admin") {
            true => Reply::text("secret"),
            false => Reply::Message(400, Vec::new(), b"no".to_vec()),
        });
        let port = free_port();
        let routes = match options.is_empty() {
            true => "{match: {prefix: /}, route: {cluster: u}}",
            false => "{match: {connect_matcher: {}}, route: {cluster: u}}",
        };
        let host = format!("{{name: v, domains: [\"*\"], routes: [{routes}]}}");
        let upgrades = "upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: CONNECT}]";
        let config = || {
            yaml::bootstrap(&[yaml::http_listener("l", port, upgrades, &host)], &[yaml::cluster("u", upstream.port())])
        };
        differential(config, |_| {
            upstream.take();
            let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
            client.send(format!("{head}GET /admin HTTP/1.1\r\nhost: evil\r\n\r\n"));
            let status = client.response().map(|response| response.status);
            let rest = String::from_utf8_lossy(&client.rest()).into_owned();
            let lines: Vec<_> = upstream.take().into_iter().map(|seen| seen.line).collect();
            (status, rest, lines)
        });
    }
}

#[test]
fn of_many_1xx_the_client_gets_one() {
    let many = "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n".repeat(1000);
    let upstream = Upstream::start(move |_| {
        Reply::Raw(format!("{many}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").into_bytes())
    });
    let port = free_port();
    let config = yaml::bootstrap(&[yaml::http_listener("l", port, "", HOST)], &[yaml::cluster("u", upstream.port())]);
    let _proxy = Proxy::start(&Kind::Weft, &config);
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    let statuses = [client.get("/", &[]), client.response()].map(|response| response.map(|r| r.status));
    assert_eq!(statuses, [Some(103), Some(200)]);
}
