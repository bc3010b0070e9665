//! HTTP filters that change, refuse or break requests, beside Envoy: header_mutation, cors, fault, buffer.

use std::time::Instant;
use weft_tests::{Client, Proxy, Reply, Response, Upstream, differential, free_port, yaml};

const EX: &str = "type.googleapis.com/envoy.extensions.filters.http";
const LOG: &str = "access_log: [{name: stderr, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.\
                   access_loggers.stream.v3.StderrAccessLog}}]";

fn any(name: &str, fields: &str) -> String {
    format!("{{\"@type\": {EX}.{name}, {fields}}}")
}

fn filter(name: &str, message: &str, fields: &str) -> String {
    format!("{{name: {name}, typed_config: {}}}", any(message, fields))
}

/// A connection manager with these filters before its router; `host` is the virtual host's fields beside name and domains.
fn listener(name: &str, port: u16, filters: &[String], host: &str) -> String {
    let filters: String = filters.iter().map(|filter| format!("{filter}, ")).collect();
    yaml::http_listener(name, port, LOG, &format!("{{name: v, domains: [\"*\"], {host}}}"))
        .replacen("http_filters: [", &format!("http_filters: [{filters}"), 1)
        .replacen("stat_prefix: http", &format!("stat_prefix: {name}"), 1)
}

fn route(prefix: &str, fields: &str) -> String {
    format!("{{match: {{prefix: {prefix}}}, {fields}}}")
}

/// Route fields: to the upstream, with these per-route configurations.
fn forward(configs: &[(&str, String)]) -> String {
    let configs: Vec<_> = configs.iter().map(|(name, config)| format!("{name}: {config}")).collect();
    format!("route: {{cluster: u}}, typed_per_filter_config: {{{}}}", configs.join(", "))
}

fn bootstrap(listeners: &[String], upstream: &Upstream) -> String {
    yaml::bootstrap(listeners, &[yaml::cluster("u", upstream.port())])
}

fn ask(port: u16, request: &str) -> Response {
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    client.send(request);
    client.response().expect("a response")
}

fn get(port: u16, path: &str, headers: &str) -> Response {
    ask(port, &format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n{headers}connection: close\r\n\r\n"))
}

/// Without what differs from run to run.
fn steady(response: &Response) -> (u16, Vec<(String, String)>, String) {
    let varies = ["date", "x-envoy-upstream-service-time", "x-request-id"];
    let mut headers: Vec<_> = response.headers.iter().filter(|(n, _)| !varies.contains(&n.as_str())).cloned().collect();
    headers.sort();
    (response.status, headers, response.text())
}

fn stats(proxy: &Proxy, part: &str) -> Vec<String> {
    let page = proxy.page("/stats");
    page.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
}

/// What the upstream saw, without the headers of every request.
fn seen(upstream: &Upstream) -> Vec<(String, Vec<(String, String)>)> {
    let usual = ["x-request-id", "x-forwarded-proto", "x-envoy-expected-rq-timeout-ms"];
    let headers = |headers: Vec<(String, String)>| {
        let mut headers: Vec<_> = headers.into_iter().filter(|(n, _)| !usual.contains(&n.as_str())).collect();
        headers.sort();
        headers
    };
    upstream.take().into_iter().map(|seen| (seen.line, headers(seen.headers))).collect()
}

#[test]
fn mutations_of_every_level_act_in_envoys_order() {
    let upstream = Upstream::start(|_| {
        let trailers = "HTTP/1.1 200 OK\r\nx-own: 1\r\nx-drop: 1\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n\
                        3\r\nabc\r\n0\r\nx-t: v\r\nx-t2: w\r\n\r\n";
        Reply::Raw(trailers.into())
    });
    let (first, last) = (free_port(), free_port());
    let add = |key: &str, value: &str, action: &str| {
        format!("{{append: {{header: {{key: {key}, value: \"{value}\"}}, append_action: {action}}}}}")
    };
    let level = |name: &str| {
        let set = add("x-level", name, "OVERWRITE_IF_EXISTS_OR_ADD");
        let all = add("x-all", name, "APPEND_IF_EXISTS_OR_ADD");
        format!(
            "mutations: {{request_mutations: [{set}, {all}], response_mutations: [{set}, {all}, {}], \
             query_parameter_mutations: [{{append: {{record: {{key: l, value: {name}}}, action: \
             APPEND_IF_EXISTS_OR_ADD}}}}]}}",
            add("x-code", "%RESPONSE_CODE%-%REQ(x-all)%", "APPEND_IF_EXISTS_OR_ADD")
        )
    };
    let per = |name: &str| any("header_mutation.v3.HeaderMutationPerRoute", &level(name));
    let hosts = format!(
        "typed_per_filter_config: {{hm: {}}}, routes: [{}, {}]",
        per("host"),
        route("/none", "route: {cluster: u}"),
        route("/", &forward(&[("hm", per("route"))]))
    );
    let own = |wins: bool| {
        let fields = format!("{}, most_specific_header_mutations_wins: {wins}", level("own"));
        [filter("hm", "header_mutation.v3.HeaderMutation", &fields)]
    };
    let config = || {
        let listeners = [listener("a", first, &own(false), &hosts), listener("b", last, &own(true), &hosts)];
        bootstrap(&listeners, &upstream)
    };
    differential(config, |_| {
        let answers: Vec<_> = [first, last]
            .iter()
            .flat_map(|port| {
                ["/", "/none", "/?q=1&l=x", "/p?b=%41&a&c=+"].map(|path| steady(&get(*port, path, "x-all: c\r\n")))
            })
            .collect();
        (answers, seen(&upstream))
    });
}

#[test]
fn mutations_of_headers_and_parameters_are_envoys() {
    let upstream = Upstream::start(|_| Reply::Message(200, vec![("x-pre-a".into(), "1".into())], b"ok".to_vec()));
    let port = free_port();
    let fields = "mutations: {request_mutations: [{remove: x-gone}, {remove_on_match: {key_matcher: {prefix: x-pre-}}}, \
                  {append: {header: {key: x-empty, value: \"%REQ(x-none)%\"}}}, {append: {header: {key: x-kept, value: \
                  \"%REQ(x-none)%\"}, keep_empty_value: true}}, {append: {header: {key: x-m, value: \"%REQ(:method)% \
                  %PROTOCOL%\"}, append_action: ADD_IF_ABSENT}}], response_mutations: [{remove_on_match: {key_matcher: \
                  {prefix: x-pre-}}}], query_parameter_mutations: [{remove: gone}, {append: {record: {key: tok, value: \
                  \"%REQ(x-a)%\"}, action: APPEND_IF_EXISTS_OR_ADD}}, {append: {record: {key: one, value: uno}, action: \
                  OVERWRITE_IF_EXISTS}}, {append: {record: {key: abs, value: nil}, action: ADD_IF_ABSENT}}]}";
    let own = [filter("hm", "header_mutation.v3.HeaderMutation", fields)];
    let routes = format!("routes: [{}]", route("/", &forward(&[])));
    let config = || bootstrap(&[listener("a", port, &own, &routes)], &upstream);
    differential(config, |_| {
        let paths = ["/", "/?gone=1&tok=a&one=0&abs=o", "/?one=0&one=2&keep=1", "/?&&a=&=b&c", "/?x=%41%2f", "/p?"];
        let answers = paths.map(|path| steady(&get(port, path, "x-gone: 1\r\nx-pre-b: 1\r\nx-a: v\r\nx-m: 0\r\n")));
        (answers, seen(&upstream))
    });
}

#[test]
fn cors_answers_and_says_what_envoy_does() {
    let upstream = Upstream::named("ok");
    let port = free_port();
    let policy = |fields: &str| any("cors.v3.CorsPolicy", fields);
    let full = "allow_origin_string_match: [{exact: \"http://a.com\"}, {suffix: .s.com}], allow_methods: \"GET,PUT\", \
                allow_headers: x-h, expose_headers: x-e, max_age: \"60\", allow_credentials: true, \
                allow_private_network_access: true";
    let off = "filter_enabled: {default_value: {numerator: 0}}";
    let routes = [
        route("/full", &forward(&[("cors", policy(full))])),
        route("/part", &forward(&[("cors", policy("allow_methods: POST"))])),
        route("/any", &forward(&[("cors", policy("allow_origin_string_match: [{exact: \"*\"}]"))])),
        route("/off", &forward(&[("cors", policy(off))])),
        route(
            "/shadow",
            &forward(&[("cors", policy(&format!("{off}, shadow_enabled: {{default_value: {{numerator: 100}}}}")))]),
        ),
        route("/stop", &forward(&[("cors", policy(&format!("{full}, forward_not_matching_preflights: false")))])),
        route("/direct", "direct_response: {status: 403}"),
        route("/", &forward(&[])),
    ];
    let host = format!(
        "typed_per_filter_config: {{cors: {}}}, routes: [{}]",
        policy("allow_origin_string_match: [{prefix: \"http://host\"}], max_age: \"5\""),
        routes.join(", ")
    );
    let config = || bootstrap(&[listener("a", port, &[filter("cors", "cors.v3.Cors", "")], &host)], &upstream);
    differential(config, |proxy| {
        let mut answers = Vec::new();
        for path in ["/full", "/part", "/any", "/off", "/shadow", "/stop", "/direct", "/"] {
            for origin in [
                "origin: http://a.com\r\n",
                "origin: http://host.b\r\n",
                "origin: http://x.org\r\n",
                "origin: \r\n",
                "",
            ] {
                for (method, asks) in [
                    ("GET", ""),
                    ("OPTIONS", ""),
                    (
                        "OPTIONS",
                        "access-control-request-method: GET\r\naccess-control-request-private-network: true\r\n",
                    ),
                ] {
                    let request =
                        format!("{method} {path} HTTP/1.1\r\nhost: a\r\n{origin}{asks}connection: close\r\n\r\n");
                    answers.push((path, origin, method, steady(&ask(port, &request))));
                }
            }
        }
        (answers, stats(proxy, ".cors."), seen(&upstream))
    });
}

#[test]
fn faults_hit_the_requests_that_envoy_hits() {
    let upstream = Upstream::named("ok");
    let ports = [0; 6].map(|_| free_port());
    let all = "percentage: {numerator: 100}";
    let faults = [
        format!("abort: {{http_status: 418, {all}}}, headers: [{{name: x-f, present_match: true}}]"),
        format!("abort: {{grpc_status: 5, {all}}}, downstream_nodes: [n1, n2], filter_metadata: {{a: b}}"),
        format!("abort: {{header_abort: {{}}, {all}}}, delay: {{header_delay: {{}}, {all}}}"),
        format!("abort: {{http_status: 503, {all}, response_body: gone}}, upstream_cluster: u"),
        format!("abort: {{http_status: 503, {all}}}, upstream_cluster: other"),
        format!("delay: {{fixed_delay: 0.3s, {all}}}, max_active_faults: 0"),
    ];
    let off = any("fault.v3.HTTPFault", "");
    let routes = format!("routes: [{}, {}]", route("/off", &forward(&[("fault", off)])), route("/", &forward(&[])));
    let config = || {
        let listeners: Vec<_> = faults
            .iter()
            .zip(ports)
            .enumerate()
            .map(|(i, (fault, port))| {
                listener(&format!("l{i}"), port, &[filter("fault", "fault.v3.HTTPFault", fault)], &routes)
            })
            .collect();
        bootstrap(&listeners, &upstream)
    };
    differential(config, |proxy| {
        let mut answers = Vec::new();
        for port in ports {
            for headers in [
                "",
                "x-f: 1\r\n",
                "x-f: 1\r\ncontent-type: application/grpc\r\n",
                "x-envoy-downstream-service-node: n2\r\nx-envoy-downstream-service-cluster: dc\r\n",
                "x-envoy-fault-abort-request: 429\r\n",
                "x-envoy-fault-abort-request: 999\r\n",
                "x-envoy-fault-abort-request: junk\r\nx-envoy-fault-abort-grpc-request: 7\r\n",
                "x-envoy-fault-abort-grpc-request: 7\r\ncontent-type: application/grpc\r\n",
                "x-envoy-fault-abort-request: 429\r\nx-envoy-fault-abort-request-percentage: 0\r\n",
                "x-envoy-fault-delay-request: 1\r\n",
                "x-envoy-fault-delay-request: 1\r\nx-envoy-fault-abort-request: 400\r\n",
                "x-envoy-fault-delay-request: 1\r\nx-envoy-fault-delay-request-percentage: 0\r\n",
            ] {
                answers.push((headers, steady(&get(port, "/", headers)), get(port, "/off", headers).status));
            }
        }
        (answers, stats(proxy, ".fault."))
    });
}

#[test]
fn a_response_that_is_limited_takes_its_time() {
    let upstream = Upstream::start(|_| Reply::text(&"x".repeat(40_000)));
    let port = free_port();
    let limit = "response_rate_limit: {fixed_limit: {limit_kbps: 100}, percentage: {numerator: 100}}";
    let routes = format!("routes: [{}]", route("/", &forward(&[])));
    let config =
        || bootstrap(&[listener("a", port, &[filter("fault", "fault.v3.HTTPFault", limit)], &routes)], &upstream);
    differential(config, |proxy| {
        let start = Instant::now();
        let response = get(port, "/", "");
        let took = start.elapsed().as_millis();
        (response.status, response.body.len(), took > 250, stats(proxy, "response_rl_injected"))
    });
}

#[test]
fn requests_are_held_until_they_are_whole() {
    let upstream = Upstream::named("ok");
    let port = free_port();
    let per = |fields: &str| any("buffer.v3.BufferPerRoute", fields);
    let routes = format!(
        "routes: [{}, {}, {}]",
        route("/off", &forward(&[("buf", per("disabled: true"))])),
        route("/more", &forward(&[("buf", per("buffer: {max_request_bytes: 1000}"))])),
        route("/", &forward(&[])),
    );
    let own = [filter("buf", "buffer.v3.Buffer", "max_request_bytes: 100")];
    let config = || bootstrap(&[listener("a", port, &own, &routes)], &upstream);
    differential(config, |proxy| {
        let mut answers = Vec::new();
        for (path, n) in [("/", 0), ("/", 100), ("/", 101), ("/off", 5000), ("/more", 1000), ("/more", 1001)] {
            let body = "x".repeat(n);
            let plain = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {n}\r\n\r\n{body}");
            answers.push((path, n, steady(&ask(port, &plain))));
            if n > 0 {
                let chunked = format!(
                    "POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{n:x}\r\n{body}\r\n0\r\n\r\n"
                );
                answers.push((path, n, steady(&ask(port, &chunked))));
            }
        }
        answers.push(("/get", 0, steady(&get(port, "/get", ""))));
        (answers, seen(&upstream), proxy.stat("http.a.downstream_rq_too_large"))
    });
}
