//! Outlier detection beside Envoy: who is ejected for what, what is counted, and who comes back.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};
use weft_tests::{Client, Proxy, Reply, Upstream, differential, free_port, until, yaml};

/// Three servers; the second answers as `bad` says: a status, 0 for as the others, 1 for the end of the connection.
fn servers(bad: &Arc<AtomicU16>) -> Vec<Upstream> {
    let one = |index: usize| {
        let bad = bad.clone();
        Upstream::start(move |_| match (index, bad.load(Ordering::SeqCst)) {
            (1, 1) => Reply::Close(Vec::new()),
            (1, status @ 2..) => Reply::Message(status, Vec::new(), Vec::new()),
            _ => Reply::text("ok"),
        })
    };
    (0..3).map(one).collect()
}

fn cluster(servers: &[Upstream], detection: &str) -> String {
    let endpoint = |server: &Upstream| {
        format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}", server.port())
    };
    let endpoints: Vec<_> = servers.iter().map(endpoint).collect();
    format!(
        "{{name: u, outlier_detection: {{{detection}}}, load_assignment: {{cluster_name: u, endpoints: [{{lb_endpoints: [{}]}}]}}}}",
        endpoints.join(", ")
    )
}

fn config(port: u16, cluster: &str) -> String {
    let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u}}]}";
    yaml::bootstrap(&[yaml::http_listener("l", port, "", host)], &[cluster.to_owned()])
}

/// Asks so often; how many answers were good. What one request leads to is decided by the thread that serves the admin
/// interface, and has happened before the next.
fn ask(proxy: &Proxy, port: u16, times: usize) -> usize {
    let mut good = 0;
    for _ in 0..times {
        // What was told to that thread before the first answer is done before the second.
        (0..2).for_each(|_| drop(proxy.page("/ready")));
        let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
        client.send("GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n");
        good += usize::from(client.response().is_some_and(|response| response.status == 200));
    }
    good
}

fn stats(proxy: &Proxy) -> Vec<String> {
    let page = proxy.page("/stats");
    page.lines().filter(|line| line.contains("outlier_detection.")).map(str::to_owned).collect()
}

fn flags(proxy: &Proxy, servers: &[Upstream]) -> Vec<String> {
    let page = proxy.page("/clusters");
    let flags = |server: &Upstream| {
        let wanted = format!("u::127.0.0.1:{}::health_flags::", server.port());
        page.lines().find_map(|line| line.strip_prefix(&wanted)).unwrap_or_default().to_owned()
    };
    servers.iter().map(flags).collect()
}

#[test]
fn runs_of_failures_are_alike() {
    let detections = [
        "max_ejection_percent: 100",
        "max_ejection_percent: 10",
        "max_ejection_percent: 10, always_eject_one_host: true",
        "max_ejection_percent: 100, consecutive_5xx: 2",
        "max_ejection_percent: 100, consecutive_5xx: 2, enforcing_consecutive_5xx: 0",
        "max_ejection_percent: 100, consecutive_5xx: 20, consecutive_gateway_failure: 3, enforcing_consecutive_gateway_failure: 100",
        "max_ejection_percent: 100, consecutive_5xx: 3, consecutive_local_origin_failure: 2, split_external_local_origin_errors: true",
    ];
    for detection in detections {
        for status in [500, 503, 1, 404] {
            let bad = Arc::new(AtomicU16::new(status));
            let servers = servers(&bad);
            let port = free_port();
            let cluster = cluster(&servers, detection);
            differential(
                || config(port, &cluster),
                |proxy| {
                    servers.iter().for_each(|server| drop(server.take()));
                    // Nine for the bad one: what is detected last is not the last that happens.
                    let good = ask(proxy, port, 27);
                    let got = servers[1].take().len();
                    (detection, status, good, got, stats(proxy), flags(proxy, &servers))
                },
            );
        }
    }
}

#[test]
fn an_ejected_host_comes_back() {
    let bad = Arc::new(AtomicU16::new(0));
    let servers = servers(&bad);
    let port = free_port();
    let detection = "max_ejection_percent: 100, consecutive_5xx: 2, interval: 0.1s, base_ejection_time: 0.4s";
    let cluster = cluster(&servers, detection);
    differential(
        || config(port, &cluster),
        |proxy| {
            bad.store(500, Ordering::SeqCst);
            ask(proxy, port, 6);
            proxy.wait_for_stat("cluster.u.outlier_detection.ejections_active", 1);
            bad.store(0, Ordering::SeqCst);
            proxy.wait_for_stat("cluster.u.outlier_detection.ejections_active", 0);
            servers.iter().for_each(|server| drop(server.take()));
            until("all take part again", || {
                ask(proxy, port, 1);
                (!servers[1].take().is_empty()).then_some(())
            });
            (flags(proxy, &servers), stats(proxy), ask(proxy, port, 9))
        },
    );
}

#[test]
fn hosts_that_cannot_be_reached_are_outliers() {
    let bad = Arc::new(AtomicU16::new(0));
    let servers = servers(&bad);
    let (port, dead) = (free_port(), free_port());
    for detection in
        ["consecutive_5xx: 2", "consecutive_local_origin_failure: 2, split_external_local_origin_errors: true"]
    {
        let cluster = cluster(&servers, &format!("max_ejection_percent: 100, {detection}")).replacen(
            "lb_endpoints: [",
            &format!("lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {dead}}}}}}}}}, "),
            1,
        );
        differential(|| config(port, &cluster), |proxy| (ask(proxy, port, 24), stats(proxy)));
        let tcp = || yaml::bootstrap(&[yaml::tcp_listener("l", port, "u")], std::slice::from_ref(&cluster));
        differential(tcp, |proxy| {
            // Each connection is to one host.
            let good = ask(proxy, port, 24);
            (good, stats(proxy))
        });
    }
}
