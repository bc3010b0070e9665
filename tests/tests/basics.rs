//! Weft and Envoy on the same small configurations.

use weft_tests::{Client, Reply, Upstream, differential, free_port, http, yaml};

#[test]
fn a_request_reaches_the_upstream_as_with_envoy() {
    let upstream = Upstream::start(|seen| Reply::text(&format!("{} {:?}", seen.line, seen.body.len())));
    let port = free_port();
    let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u, prefix_rewrite: /up/}}]}";
    let config = || {
        yaml::bootstrap(
            &[yaml::http_listener("l", port, "generate_request_id: false", host)],
            &[yaml::cluster("u", upstream.port())],
        )
    };
    differential(config, |_| {
        let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
        client.send("POST /a?b=c HTTP/1.1\r\nHost: Example.COM\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 3\r\n\r\nabc");
        let mut response = client.response().expect("a response");
        response.headers.retain(|(name, _)| name != "date" && name != "x-envoy-upstream-service-time");
        let seen = upstream.take();
        (response, seen)
    });
}

#[test]
fn bytes_that_are_no_request_are_refused_as_by_envoy() {
    let port = free_port();
    let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}";
    let config = || yaml::bootstrap(&[yaml::http_listener("l", port, "", host)], &[]);
    differential(config, |proxy| {
        let requests: [&[u8]; 6] = [
            b"nonsense\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\nbad name: 1\r\n\r\n",
            b"\x16\x03\x01\x00\x05hello",
        ];
        let answers = requests.map(|bytes| {
            let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
            client.send(bytes);
            let status = client.response().map(|response| response.status);
            (status, client.is_closed())
        });
        assert_eq!(http::at(port, "/").map(|r| r.status), Some(200));
        (answers, proxy.stat("http.http.downstream_cx_protocol_error"))
    });
}
