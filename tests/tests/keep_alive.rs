//! Connections to upstreams that end without saying so.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use weft_tests::{Client, Kind, Proxy, Reply, Upstream, bulk::server, differential, free_port, yaml};

/// No request that may be repeated fails because a connection that waited in the pool was closed under it.
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
            client.send("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc");
        }
        let response = client.response().expect("a response");
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "request {i}: {}", proxy.log());
        assert_eq!(response.header("x-length"), Some(if i % 2 == 0 { "0" } else { "3" }));
    }
    assert_eq!(upstream.take().len(), 1000, "each request is processed once");
}

/// An upstream that acts on a request before it has read all of it, and then resets the connection: TCP tells that nothing arrived.
#[test]
fn what_may_not_be_repeated_is_not() {
    const BODY: usize = 100_000;
    differential_posts(|stream| {
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    });
    differential_posts(|_| ());

    fn differential_posts(before_end: impl Fn(&TcpStream) + Send + Sync + Clone + 'static) {
        let posts = Arc::new(AtomicUsize::new(0));
        let counted = posts.clone();
        let upstream = server(move |stream| {
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
                let is_post = line.starts_with("POST");
                while line != "\r\n" {
                    line.clear();
                    if reader.read_line(&mut line).is_ok_and(|n| n == 0) {
                        return;
                    }
                }
                if is_post {
                    counted.fetch_add(1, SeqCst);
                    return before_end(&stream);
                }
                line.clear();
                let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            }
        });
        let port = free_port();
        let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u}}]}";
        let config = || yaml::bootstrap(&[yaml::http_listener("l", port, "", host)], &[yaml::cluster("u", upstream)]);
        differential(config, |_| {
            posts.store(0, SeqCst);
            // Several connections wait for more.
            let mut clients: Vec<_> =
                (0..5).map(|_| Client::connect(("127.0.0.1", port)).expect("it listens")).collect();
            clients.iter_mut().for_each(|client| {
                client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            });
            let warm = clients.iter_mut().map(|client| client.response().map(|r| r.status)).collect::<Vec<_>>();
            let body = "x".repeat(BODY);
            clients[0].send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY}\r\n\r\n{body}"));
            (warm, clients[0].response().map(|r| r.status), posts.load(SeqCst))
        });
    }
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
