//! Active health checks beside Envoy: what counts as healthy, what is counted, who takes requests.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};
use weft_tests::{Client, Proxy, Reply, Upstream, differential, free_port, until, yaml};

/// A server whose `/check` answers with the status of the moment (1: the end of the connection).
fn server(status: &Arc<AtomicU16>) -> Upstream {
    let status = status.clone();
    Upstream::start(move |seen| match status.load(Ordering::SeqCst) {
        _ if !seen.line.contains("/check") => Reply::text("ok"),
        1 => Reply::Close(Vec::new()),
        status => {
            let name = ("x-envoy-upstream-healthchecked-cluster".to_owned(), "front-7".to_owned());
            Reply::Message(status, vec![name], b"all is well".to_vec())
        }
    })
}

fn config(port: u16, hosts: &[u16], check: &str) -> String {
    let endpoint = |port: &u16| {
        format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
    };
    let endpoints: Vec<_> = hosts.iter().map(endpoint).collect();
    let cluster = format!(
        "{{name: u, connect_timeout: 1s, common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}, health_checks: [{{timeout: 5s, interval: \
         0.05s, no_traffic_interval: 0.05s, {check}}}], load_assignment: {{cluster_name: u, endpoints: [{{lb_endpoints: [{}]}}]}}}}",
        endpoints.join(", ")
    );
    let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u}}]}";
    yaml::bootstrap(&[yaml::http_listener("l", port, "", host)], &[cluster])
}

fn http(fields: &str) -> String {
    format!("unhealthy_threshold: 3, healthy_threshold: 2, http_health_check: {{path: /check, {fields}}}")
}

fn status(port: u16) -> Option<u16> {
    let mut client = Client::connect(("127.0.0.1", port))?;
    client.send("GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n");
    client.response().map(|response| response.status)
}

fn flags(proxy: &Proxy, port: u16) -> String {
    let wanted = format!("u::127.0.0.1:{port}::health_flags::");
    let page = proxy.page("/clusters");
    page.lines().find_map(|line| line.strip_prefix(&wanted)).unwrap_or_default().to_owned()
}

#[test]
fn what_is_healthy_is_alike() {
    let kinds = [
        http(""),
        http("expected_statuses: [{start: 200, end: 205}, {start: 500, end: 501}]"),
        http("retriable_statuses: [{start: 500, end: 600}]"),
        http("receive: [{text: '616c6c'}, {text: '77656c6c'}]"),
        http("receive: [{text: '77656c6c'}, {text: '616c6c'}]"),
        http("response_buffer_size: 6, receive: [{text: '77656c6c'}]"),
        http("service_name_matcher: {prefix: front}"),
        http("service_name_matcher: {prefix: back}"),
        http("method: HEAD"),
        http("method: POST"),
        "unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {}".to_owned(),
    ];
    for kind in kinds {
        for answer in [200, 204, 404, 500, 1] {
            let moment = Arc::new(AtomicU16::new(answer));
            let server = server(&moment);
            let port = free_port();
            differential(
                || config(port, &[server.port()], &kind),
                |proxy| {
                    // It listens only when each host was checked once.
                    let first = (status(port), flags(proxy, server.port()));
                    (kind.clone(), answer, first, proxy.stat("cluster.u.health_check.healthy"))
                },
            );
        }
    }
}

#[test]
fn hosts_come_and_go_with_their_health() {
    let moments = [200, 200].map(|status| Arc::new(AtomicU16::new(status)));
    let servers = [server(&moments[0]), server(&moments[1])];
    let (port, dead) = (free_port(), free_port());
    let hosts = [servers[0].port(), servers[1].port(), dead];
    differential(
        || config(port, &hosts, &http("")),
        |proxy| {
            let wait = |healthy| proxy.wait_for_stat("cluster.u.membership_healthy", healthy);
            let all = |proxy: &Proxy| hosts.map(|host| flags(proxy, host));
            let mut seen = vec![(all(proxy), status(port))];
            moments[1].store(503, Ordering::SeqCst);
            wait(1);
            seen.push((all(proxy), status(port)));
            moments[0].store(1, Ordering::SeqCst);
            wait(0);
            // Workers hear of it a moment later.
            let none = until("nobody takes requests", || status(port).filter(|status| *status == 503));
            seen.push((all(proxy), Some(none)));
            moments[1].store(200, Ordering::SeqCst);
            wait(1);
            let one = until("one takes requests", || status(port).filter(|status| *status == 200));
            seen.push((all(proxy), Some(one)));
            moments[0].store(200, Ordering::SeqCst);
            wait(2);
            seen.push((all(proxy), status(port)));
            let total = |name: &str| proxy.stat(&format!("cluster.u.health_check.{name}"));
            until("checks go on", || (total("attempt")? > 40).then_some(()));
            (
                seen,
                total("healthy"),
                total("degraded"),
                total("failure").map(|n| n > 3),
                total("network_failure").map(|n| n > 3),
            )
        },
    );
}
