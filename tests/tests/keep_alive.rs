//! Connections to upstreams that end without saying so.

use weft_tests::{Client, Kind, Proxy, Reply, Upstream, free_port, yaml};

/// No request may fail because a connection that waited in the pool was closed under it.
#[test]
fn a_connection_that_was_just_closed_costs_no_request() {
    let upstream = Upstream::start(|seen| {
        // As if there were more to come; but there is not.
        let length = seen.body.len();
        Reply::Close(format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-length: {length}\r\n\r\nok").into_bytes())
    });
    let port = free_port();
    let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u}}]}";
    let listener = yaml::http_listener("l", port, "", host);
    let proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&[listener], &[yaml::cluster("u", upstream.port())]));
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    for i in 0..1000 {
        if i % 2 == 0 {
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        } else {
            client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc");
        }
        let response = client.response().expect("a response");
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "request {i}: {}", proxy.log());
        assert_eq!(response.header("x-length"), Some(if i % 2 == 0 { "0" } else { "3" }));
    }
    assert_eq!(upstream.take().len(), 1000, "each request is processed once");
}

/// A request that an upstream may have processed is not sent again.
#[test]
fn a_request_that_may_have_been_processed_is_not_repeated() {
    let upstream = Upstream::start(|seen| match seen.header("x-die") {
        Some(_) => Reply::Close(Vec::new()),
        None => Reply::text("ok"),
    });
    let port = free_port();
    let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u}}]}";
    let listener = yaml::http_listener("l", port, "", host);
    let _proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&[listener], &[yaml::cluster("u", upstream.port())]));
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    assert_eq!(client.get("/", &[]).map(|r| r.status), Some(200));
    let response = client.get("/", &[("x-die", "1")]).expect("a response");
    assert_eq!(response.status, 503);
    assert!(response.text().contains("connection termination"), "{}", response.text());
    assert_eq!(upstream.take().len(), 2);
}
