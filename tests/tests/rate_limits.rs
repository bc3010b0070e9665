//! Rate limits: buckets beside Envoy's, exactly as many as there are tokens over all workers, and limits that several proxies
//! share through `weft-control`, with and without a Redis behind it.

use std::{
    process::{Child, Command, Stdio},
    thread,
};
use weft_tests::{Client, Control, Kind, PATIENCE, Proxy, Upstream, differential, free_port, tools, until, yaml};

const FULL: &str = "{default_value: {numerator: 100}}";

/// A local rate limit filter.
fn local(bucket: &str, more: &str) -> String {
    let bucket = if bucket.is_empty() { String::new() } else { format!("token_bucket: {bucket}, ") };
    format!(
        "{{name: limit, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.\
         LocalRateLimit, stat_prefix: l, {bucket}filter_enabled: {FULL}, filter_enforced: {FULL}{more}}}}}"
    )
}

fn bucket(tokens: u32) -> String {
    format!("{{max_tokens: {tokens}, tokens_per_fill: {tokens}, fill_interval: 3600s}}")
}

/// A global one, of the cluster `limits`.
fn global(more: &str) -> String {
    format!(
        "{{name: limit, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit, \
         domain: shop, timeout: 5s, rate_limit_service: {{transport_api_version: V3, grpc_service: {{envoy_grpc: \
         {{cluster_name: limits}}}}}}{more}}}}}"
    )
}

fn listener(name: &str, port: u16, filter: &str, route: &str) -> String {
    let host =
        format!("{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: u{route}}}}}]}}");
    let plain = yaml::http_listener(name, port, "", &host);
    plain.replace("http_filters: [", &format!("http_filters: [{filter}, "))
}

fn h2_cluster(name: &str, port: u16) -> String {
    let options = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
                   type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
                   {http2_protocol_options: {}}}}";
    yaml::cluster(name, port).replacen('{', &format!("{{{options}, "), 1)
}

/// The status of an answer, and what it says of limits; times in begun hundreds of seconds, as machines may be slow.
fn ask(port: u16, headers: &[(&str, &str)]) -> (u16, Vec<(String, String)>) {
    let response = Client::connect(("127.0.0.1", port)).and_then(|mut client| client.get("/", headers));
    let response = response.expect("an answer");
    let told = |name: &str| name.starts_with("x-ratelimit") || ["retry-after", "x-limited"].contains(&name);
    let rounded = |(name, value): (String, String)| match value.parse::<u64>() {
        Ok(seconds) if ["x-ratelimit-reset", "retry-after"].contains(&name.as_str()) => {
            (name, seconds.div_ceil(100).to_string())
        }
        _ => (name, value),
    };
    (response.status, response.headers.into_iter().filter(|(name, _)| told(name)).map(rounded).collect())
}

fn statuses(port: u16, headers: &[(&str, &str)], times: usize) -> Vec<u16> {
    (0..times).map(|_| ask(port, headers).0).collect()
}

#[test]
fn buckets_and_what_is_told_of_them() {
    let upstream = Upstream::named("u");
    let by = |header: &str| format!("{{actions: [{{request_headers: {{header_name: {header}, descriptor_key: k}}}}]}}");
    let descriptor = |value: &str, tokens: u32, more: &str| {
        format!("{{entries: [{{key: k, value: \"{value}\"}}], token_bucket: {}{more}}}", bucket(tokens))
    };
    let shown = ", enable_x_ratelimit_headers: DRAFT_VERSION_03";
    let descriptors = |all: &[String]| format!(", descriptors: [{}]", all.join(", "));
    let limits = format!(", rate_limits: [{}]", by("x-k"));
    let variants = [
        (local(&bucket(3), shown), String::new()),
        (local(&bucket(9), &format!("{shown}{}", descriptors(&[descriptor("a", 1, "")]))), limits.clone()),
        (
            local(
                "{max_tokens: 1, fill_interval: 3600s}",
                ", enable_retry_after_header: true, status: {code: 200}, response_headers_to_add: [{header: {key: x-limited, \
                 value: '%REQ(x-k)%'}}]",
            ),
            String::new(),
        ),
        (
            local(&bucket(9), &format!("{shown}{}", descriptors(&[descriptor("a", 1, ", shadow_mode: true")]))),
            limits.clone(),
        ),
        (
            local("", &format!(", max_dynamic_descriptors: 1{}{limits}", descriptors(&[descriptor("", 1, "")]))),
            String::new(),
        ),
        (
            local(&bucket(3), &format!("{shown}{}", descriptors(&[descriptor("a", 1, ", shadow_mode: true")]))),
            limits.clone(),
        ),
        (local(&bucket(1), ", local_rate_limit_per_downstream_connection: true"), String::new()),
        (
            local(
                &bucket(2),
                &format!("{}, always_consume_default_token_bucket: false", descriptors(&[descriptor("a", 3, "")])),
            ),
            limits,
        ),
    ];
    let ports: Vec<u16> = variants.iter().map(|_| free_port()).collect();
    let listeners: Vec<_> = variants
        .iter()
        .zip(&ports)
        .enumerate()
        .map(|(i, ((filter, route), port))| listener(&format!("l{i}"), *port, filter, route))
        .collect();
    let config = || yaml::bootstrap(&listeners, &[yaml::cluster("u", upstream.port())]);
    differential(config, |proxy| {
        let asked = |port: &u16| ["a", "a", "b", "a", "b"].map(|value| ask(*port, &[("x-k", value)]));
        let all: Vec<_> = ports.iter().map(asked).collect();
        let page = proxy.page("/stats?filter=http_local_rate_limit");
        (all, page)
    });
}

#[test]
fn as_many_requests_as_tokens_over_all_workers() {
    let upstream = Upstream::named("u");
    let port = free_port();
    let config =
        yaml::bootstrap(&[listener("l", port, &local(&bucket(300), ""), "")], &[yaml::cluster("u", upstream.port())]);
    let _proxy = Proxy::start_with(&Kind::Weft, &config, &["--concurrency", "4"]);
    let client = move || {
        let all = statuses(port, &[], 60);
        all.iter().filter(|status| **status == 200).count()
    };
    let clients: Vec<_> = (0..8).map(|_| thread::spawn(client)).collect();
    let admitted: usize = clients.into_iter().map(|client| client.join().expect("answers")).sum();
    assert_eq!(admitted, 300);
}

#[test]
fn connections_by_the_bucket() {
    let upstream = Upstream::named("u");
    let ports = [free_port(), free_port()];
    let gate = |key: &str| {
        format!(
            "{{name: limit, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.\
             v3.LocalRateLimit, stat_prefix: net, share_key: {key}, token_bucket: {}}}}}",
            bucket(3)
        )
    };
    let gated = |(i, port): (usize, &u16)| {
        yaml::tcp_listener(&format!("l{i}"), *port, "u").replace("filters: [", &format!("filters: [{}, ", gate("both")))
    };
    let listeners: Vec<_> = ports.iter().enumerate().map(gated).collect();
    let config = || yaml::bootstrap(&listeners, &[yaml::cluster("u", upstream.port())]);
    differential(config, |proxy| {
        let connected = |port: u16| Client::connect(("127.0.0.1", port))?.get("/", &[]).map(|response| response.status);
        let all = [0, 1, 0, 1, 0].map(|at: usize| connected(ports[at]));
        proxy.wait_for_stat("local_rate_limit.net.rate_limited", 2);
        all
    });
}

const LIMITS: &str = "
domain: shop
descriptors:
- {key: user, rate_limit: {unit: year, requests_per_unit: 3}}
- {key: user, value: vip, rate_limit: {unlimited: true}}
- {key: user, value: watched, shadow_mode: true, rate_limit: {unit: year, requests_per_unit: 1}}
";

fn limited(port: u16, upstream: &Upstream, limits: u16, more: &str) -> String {
    let route = ", rate_limits: [{actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]}]";
    let clusters = [yaml::cluster("u", upstream.port()), h2_cluster("limits", limits)];
    yaml::bootstrap(&[listener("l", port, &global(more), route)], &clusters)
}

#[test]
fn a_service_out_of_the_box() {
    let upstream = Upstream::named("u");
    let control = Control::with_limits(LIMITS, None);
    let port = free_port();
    let shown = ", enable_x_ratelimit_headers: DRAFT_VERSION_03";
    let proxy = Proxy::start(&Kind::Weft, &limited(port, &upstream, control.port(), shown));
    let user = |name: &'static str, times| statuses(port, &[("x-user", name)], times);
    assert_eq!(user("ann", 4), [200, 200, 200, 429]);
    assert_eq!(user("bob", 1), [200]);
    assert_eq!(user("vip", 5), [200; 5]);
    assert_eq!(user("watched", 3), [200; 3]);
    let (status, told) = ask(port, &[("x-user", "ann")]);
    assert_eq!((status, told[0].1.as_str()), (429, "3, 3;w=31536000"));
    assert_eq!(proxy.stat("cluster.u.ratelimit.over_limit"), Some(2));
    // A file with mistakes changes nothing.
    control.write_limits("domain: shop\ndescriptors: [{key: user, rate_limit: {unit: eon, requests_per_unit: 9}}]\n");
    control.wait_for_line(&["limits.yaml:2:", "descriptors[0].rate_limit.unit", "eon"]);
    assert_eq!(user("ann", 1), [429]);
    control.write_limits(&LIMITS.replace("requests_per_unit: 3", "requests_per_unit: 100000"));
    until("the new limit", || (user("ann", 1) == [200]).then_some(()));
}

/// A Redis; ends with the test.
struct Redis(Child);

impl Redis {
    fn start(port: u16) -> Option<Self> {
        let server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn();
        match server {
            Ok(child) => Some(Self(child)),
            Err(_) => {
                tools::skipped("there is no redis-server (make tools)");
                None
            }
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn several_share_a_limit_through_redis() {
    let (upstream, redis_port) = (Upstream::named("u"), free_port());
    let Some(redis) = Redis::start(redis_port) else { return };
    let url = format!("redis://127.0.0.1:{redis_port}/1");
    let controls = [(); 2].map(|()| Control::with_limits(LIMITS, Some(&url)));
    controls.iter().for_each(|control| drop(control.wait_for_line(&["Redis at", "connected"])));
    let mut kinds = vec![Kind::Weft, Kind::Weft];
    kinds.extend(tools::envoy().map(Kind::Envoy));
    let proxies: Vec<_> = kinds
        .iter()
        .enumerate()
        .map(|(i, kind)| {
            let port = free_port();
            let deny = if i == 0 { ", failure_mode_deny: true, status_on_error: {code: 503}" } else { "" };
            (port, Proxy::start(kind, &limited(port, &upstream, controls[i % 2].port(), deny)))
        })
        .collect();
    let ports: Vec<u16> = proxies.iter().map(|(port, _)| *port).collect();
    let turns = |user: &str, times: usize| -> Vec<u16> {
        (0..times).map(|i| ask(ports[i % ports.len()], &[("x-user", user)]).0).collect()
    };
    assert_eq!(turns("ann", 5), [200, 200, 200, 429, 429]);
    drop(redis);
    // Nobody can count: each goes by its own failure mode.
    controls.iter().for_each(|control| drop(control.wait_for_line(&["Redis at", "answered with an error"])));
    assert_eq!(ask(ports[0], &[("x-user", "ann")]).0, 503);
    assert!(ports[1..].iter().all(|port| ask(*port, &[("x-user", "ann")]).0 == 200));
    let _redis = Redis::start(redis_port);
    // It comes back empty.
    until("Redis to be back", || (ask(ports[0], &[("x-user", "probe")]).0 == 200).then_some(()));
    until("Redis to be back for all", || {
        let said = controls.iter().map(|control| control.log().matches(": connected").count());
        said.min().filter(|count| *count >= 2)
    });
    assert_eq!(turns("bob", 5), [200, 200, 200, 429, 429]);
    assert!(PATIENCE.as_secs() > 5, "longer than the longest back-off");
}
