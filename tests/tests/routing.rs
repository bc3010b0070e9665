//! Which route a request takes and what becomes of it there, beside Envoy.

use weft_tests::{Client, Proxy, Reply, Upstream, both, differential, free_port, until, yaml};

/// Headers that differ from run to run.
const VARYING: [&str; 4] = ["date", "x-envoy-upstream-service-time", "x-request-id", "x-envoy-expected-rq-timeout-ms"];

/// What the client and the upstream see of one request, a line for each thing.
fn observe(port: u16, upstream: &Upstream, request: &str) -> Vec<String> {
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    client.send(request);
    let mut lines = match client.response() {
        Some(response) => shown("response", &response.status.to_string(), &response.headers, &response.body),
        None => vec!["no response".to_owned()],
    };
    for seen in upstream.take() {
        lines.extend(shown("upstream", &seen.line, &seen.headers, &seen.body));
    }
    lines
}

fn shown(who: &str, first: &str, headers: &[(String, String)], body: &[u8]) -> Vec<String> {
    let headers = headers.iter().filter(|(name, _)| !VARYING.contains(&name.as_str()));
    let mut headers: Vec<_> = headers.collect();
    // The order of different names says nothing; that of values of one name does.
    headers.sort_by_key(|(name, _)| name);
    let headers = headers.into_iter().map(|(name, value)| format!("{who} {name}: {value}"));
    let ends = [format!("{who} {first}"), format!("{who} body {}", String::from_utf8_lossy(body))];
    ends.into_iter().chain(headers).collect()
}

fn upstream() -> Upstream {
    Upstream::start(|seen| match seen.header("x-answer") {
        Some("teapot") => Reply::Message(418, vec![("x-up".to_owned(), "1".to_owned())], b"short".to_vec()),
        _ => Reply::Message(200, vec![("x-up".to_owned(), "1".to_owned())], b"up".to_vec()),
    })
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n{headers}\r\n")
}

/// Each request against one listener of both proxies; every difference is shown with its request.
fn compare(fields: &str, hosts: &str, requests: &[String]) {
    let upstream = upstream();
    let port = free_port();
    let config = || {
        yaml::bootstrap(
            &[yaml::http_listener("l", port, fields, hosts)],
            &[yaml::cluster("u", upstream.port()), yaml::cluster("v", upstream.port())],
        )
    };
    let observe = |_: &Proxy| requests.iter().map(|request| observe(port, &upstream, request)).collect::<Vec<_>>();
    let Some((ours, theirs)) = both(config, observe) else { return };
    let mut differences = String::new();
    for ((request, ours), theirs) in requests.iter().zip(ours).zip(theirs) {
        let only = |mine: &[String], other: &[String]| -> Vec<String> {
            mine.iter().filter(|line| !other.contains(line)).cloned().collect()
        };
        if ours != theirs {
            let (ours, theirs) = (only(&ours, &theirs), only(&theirs, &ours));
            differences += &format!("{fields}\n{request:?}\n  Weft:  {ours:?}\n  Envoy: {theirs:?}\n");
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn virtual_hosts_by_domain() {
    let host = |name: &str, domains: &str| {
        format!(
            "{{name: {name}, domains: [{domains}], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, \
             body: {{inline_string: {name}}}}}}}]}}"
        )
    };
    let hosts = [
        host("exact", "a.test, \"a.test:81\""),
        host("suffix", "\"*.test\""),
        host("longer-suffix", "\"*.b.test\""),
        host("dash-suffix", "\"*-x.b.test\""),
        host("prefix", "\"a.*\""),
        host("longer-prefix", "\"a.b.*\""),
        host("all", "\"*\""),
    ];
    let names = [
        "a.test",
        "A.TEST",
        "a.test:81",
        "a.test:82",
        "b.test",
        ".test",
        "x.b.test",
        "y-x.b.test",
        "-x.b.test",
        "a.com",
        "a.b.com",
        "a.",
        "other",
        "other:1",
        "[::1]:80",
        "a.test.",
        "",
    ];
    let requests: Vec<String> = names.iter().map(|name| format!("GET / HTTP/1.1\r\nhost: {name}\r\n\r\n")).collect();
    compare("", &hosts.join(", "), &requests);
    compare("strip_any_host_port: true", &hosts.join(", "), &requests);
    compare("strip_trailing_host_dot: true", &hosts.join(", "), &requests);
}

#[test]
fn routes_by_path_headers_and_queries() {
    let matches = [
        "path: /exact",
        "path: /Case, case_sensitive: false",
        "prefix: /headers, headers: [{name: x-a, string_match: {exact: one}}, {name: x-b, present_match: true}]",
        "prefix: /headers, headers: [{name: x-a, string_match: {safe_regex: {regex: \"t[a-z]+\"}}}]",
        "prefix: /headers, headers: [{name: x-n, range_match: {start: -5, end: 10}}]",
        "prefix: /headers, headers: [{name: x-a, string_match: {suffix: end}, invert_match: true}]",
        "prefix: /query, query_parameters: [{name: q, string_match: {prefix: ab}}]",
        "prefix: /query, query_parameters: [{name: flag, present_match: true}]",
        "safe_regex: {regex: \"/r/[0-9]+(/x)?\"}",
        "path_separated_prefix: /sep",
        "prefix: /grpc, grpc: {}",
        "path_match_policy: {name: p, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.path.match.\
         uri_template.v3.UriTemplateMatchConfig, path_template: \"/t/{one}/*/{rest=**}\"}}",
        "prefix: /post, headers: [{name: \":method\", string_match: {exact: POST}}]",
        "prefix: /",
    ];
    let routes: Vec<String> = matches
        .iter()
        .enumerate()
        .map(|(i, m)| format!("{{match: {{{m}}}, direct_response: {{status: 200, body: {{inline_string: \"{i}\"}}}}}}"))
        .collect();
    let host = format!("{{name: v, domains: [\"*\"], routes: [{}]}}", routes.join(", "));
    let paths = [
        "/exact",
        "/exact?x",
        "/exact#f",
        "/exact/",
        "/EXACT",
        "/case",
        "/CASE?1",
        "/query?q=abc",
        "/query?q=a",
        "/query?flag",
        "/query?x=1&flag=",
        "/query?q=x&q=ab",
        "/query?q=%61b",
        "/r/12",
        "/r/12/x",
        "/r/12/xy",
        "/r/",
        "/sep",
        "/sep/",
        "/separate",
        "/sep?x",
        "/t/1/2/3/4",
        "/t/1/2/",
        "/t/1/2",
        "/grpc",
        "/post",
        "//exact",
        "/",
        "/a%2fb",
        "/a/../exact",
        "/%65xact",
    ];
    let mut requests: Vec<String> = paths.iter().map(|path| get(path, "")).collect();
    for headers in [
        "x-a: one\r\n",
        "x-a: one\r\nx-b:\r\n",
        "x-a: two\r\n",
        "x-a: two2\r\n",
        "x-n: -5\r\n",
        "x-n: 10\r\n",
        "x-n: 9x\r\n",
        "x-a: the end\r\n",
        "x-a: one\r\nx-a: two\r\n",
        "",
    ] {
        requests.push(get("/headers", headers));
    }
    requests.push(get("/grpc", "content-type: application/grpc+x\r\n"));
    requests.push("POST /post HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".to_owned());
    requests.push("GET http://other.test/exact HTTP/1.1\r\nhost: a\r\n\r\n".to_owned());
    compare("", &host, &requests);
    compare("normalize_path: true, merge_slashes: true", &host, &requests);
    compare("path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT", &host, &requests);
}

#[test]
fn rewrites_and_redirects() {
    let routes = [
        "{match: {prefix: /p/}, route: {cluster: u, prefix_rewrite: /new/}}",
        "{match: {path: /whole}, route: {cluster: u, prefix_rewrite: \"/other?k=v\"}}",
        "{match: {prefix: /re/}, route: {cluster: u, regex_rewrite: {pattern: {regex: \"/re/([^/]+)/(.*)\"}, substitution: \
         \"/\\\\2/\\\\1\"}}}",
        "{match: {prefix: /host}, route: {cluster: u, host_rewrite_literal: new.test, append_x_forwarded_host: true}}",
        "{match: {prefix: /from-header}, route: {cluster: u, host_rewrite_header: x-host}}",
        "{match: {prefix: /from-path/}, route: {cluster: u, host_rewrite_path_regex: {pattern: {regex: \
         \"/from-path/([^/]+).*\"}, substitution: \"\\\\1.test\"}}}",
        "{match: {prefix: /to-https}, redirect: {https_redirect: true}}",
        "{match: {prefix: /to-host}, redirect: {host_redirect: b.test, port_redirect: 8080, response_code: FOUND}}",
        "{match: {prefix: /to-path}, redirect: {path_redirect: \"/there?x=1\"}}",
        "{match: {prefix: /to-prefix/}, redirect: {prefix_rewrite: /q/, strip_query: true, response_code: \
         TEMPORARY_REDIRECT}}",
        "{match: {prefix: /to-regex}, redirect: {regex_rewrite: {pattern: {regex: \"^/to-(.*)$\"}, substitution: \
         \"/\\\\1\"}, response_code: PERMANENT_REDIRECT}}",
        "{match: {prefix: /by-header}, route: {cluster_header: x-cluster}}",
        "{match: {prefix: /direct}, direct_response: {status: 201, body: {inline_string: made}}}",
        "{match: {prefix: /non-forwarding}, non_forwarding_action: {}}",
    ];
    let host = format!("{{name: v, domains: [\"*\"], routes: [{}]}}", routes.join(", "));
    let mut requests: Vec<String> = [
        "/p/a?b=c",
        "/p/",
        "/whole",
        "/whole?x=y",
        "/re/a/b/c?d",
        "/re/a",
        "/host",
        "/from-header",
        "/from-path/sub/x",
        "/to-https/a?b",
        "/to-host/a?b",
        "/to-path/a?b",
        "/to-prefix/a?b",
        "/to-regex?b",
        "/by-header",
        "/direct",
        "/non-forwarding",
        "/nothing",
    ]
    .iter()
    .map(|path| get(path, ""))
    .collect();
    requests.push(get("/from-header", "x-host: from.header\r\n"));
    requests.push(get("/by-header", "x-cluster: v\r\n"));
    requests.push(get("/by-header", "x-cluster: none\r\n"));
    requests.push("GET /to-https HTTP/1.1\r\nhost: a.test:8443\r\n\r\n".to_owned());
    requests.push("GET /to-host HTTP/1.0\r\n\r\n".to_owned());
    compare("generate_request_id: false", &host, &requests);
    compare(
        "generate_request_id: false, http_protocol_options: {accept_http_10: true, default_host_for_http_10: ten.test}",
        &host,
        &requests,
    );
}

#[test]
fn headers_at_every_level() {
    let header = |key: &str, value: &str, action: &str| {
        format!("{{header: {{key: {key}, value: \"{value}\"}}, append_action: {action}}}")
    };
    let level = |name: &str| {
        let request = [
            header("x-order", name, "APPEND_IF_EXISTS_OR_ADD"),
            header("x-last", name, "OVERWRITE_IF_EXISTS_OR_ADD"),
            header("x-first", name, "ADD_IF_ABSENT"),
            header("x-only", name, "OVERWRITE_IF_EXISTS"),
        ];
        format!(
            "request_headers_to_add: [{}], response_headers_to_add: [{}], request_headers_to_remove: [x-drop-{name}], \
             response_headers_to_remove: [x-up]",
            request.join(", "),
            header("x-order", name, "APPEND_IF_EXISTS_OR_ADD")
        )
    };
    let formats = [
        "%REQ(x-a)%",
        "%REQ(x-none?x-a):2%",
        "%REQ(:PATH)%",
        "%PROTOCOL%",
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
        "%REQUEST_HEADERS_BYTES%",
        "%ROUTE_NAME%",
        "%HOSTNAME%%%",
        "%UPSTREAM_CLUSTER%",
        "%VIRTUAL_CLUSTER_NAME%",
        "%REQUESTED_SERVER_NAME%",
        "%DYNAMIC_METADATA(a:b)%",
        "%RESPONSE_FLAGS%",
    ];
    let formatted: Vec<String> = formats
        .iter()
        .enumerate()
        .map(|(i, format)| header(&format!("x-f{i}"), format, "OVERWRITE_IF_EXISTS_OR_ADD"))
        .collect();
    let host = format!(
        "{{name: v, domains: [\"*\"], {}, routes: [{{name: formats, match: {{prefix: /formats}}, route: {{cluster: u}}, \
         request_headers_to_add: [{}]}}, {{match: {{prefix: /}}, {}, route: {{weighted_clusters: {{clusters: [{{name: u, \
         weight: 1, {}}}]}}}}}}]}}",
        level("vhost"),
        formatted.join(", "),
        level("route"),
        level("cluster"),
    );
    let requests = [
        get("/", "x-drop-vhost: 1\r\nx-drop-route: 1\r\nx-drop-cluster: 1\r\nx-only: 1\r\n"),
        get("/", "x-first: client\r\nx-last: client\r\nx-order: client\r\n"),
        get("/formats?q", "x-a: abc\r\n"),
        get("/formats", "x-answer: teapot\r\n"),
        get("/", "x-forwarded-for: 1.2.3.4, 10.0.0.1\r\nx-forwarded-proto: https\r\nvia: 1.1 other\r\n"),
        get(
            "/",
            "connection: x-hop, keep-alive\r\nx-hop: 1\r\nkeep-alive: 5\r\nte: trailers\r\nproxy-connection: x\r\n",
        ),
        get("/", "x-envoy-internal: true\r\nx-envoy-upstream-rq-timeout-ms: 500\r\nx-envoy-original-path: /x\r\n"),
        get("/", "x-request-id: mine\r\nuser-agent: me\r\nserver: mine\r\n"),
    ];
    compare("generate_request_id: false", &host, &requests);
    compare(
        "generate_request_id: false, use_remote_address: true, xff_num_trusted_hops: 1, via: weft",
        &host,
        &requests,
    );
    compare(
        "generate_request_id: false, skip_xff_append: true, server_header_transformation: PASS_THROUGH",
        &host,
        &requests,
    );
    compare(
        "generate_request_id: false, use_remote_address: true, internal_address_config: {cidr_ranges: [{address_prefix: \
         127.0.0.0, prefix_len: 8}]}, server_name: us, server_header_transformation: APPEND_IF_ABSENT",
        &host,
        &requests,
    );
}

/// A mirror gets the whole request, and its failure is nobody's.
#[test]
fn mirrors_get_bodies_too() {
    let (upstream, mirror) = (Upstream::named("ours"), Upstream::named("the mirror's"));
    let port = free_port();
    let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u, request_mirror_policies: \
                [{cluster: m}, {cluster: nowhere}]}}]}";
    let clusters =
        [yaml::cluster("u", upstream.port()), yaml::cluster("m", mirror.port()), yaml::cluster("nowhere", free_port())];
    differential(
        || yaml::bootstrap(&[yaml::http_listener("l", port, "", host)], &clusters),
        |_| {
            drop((upstream.take(), mirror.take()));
            let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
            let mut seen = Vec::new();
            for length in [0, 10, 100_000] {
                let body = "x".repeat(length);
                client.send(format!("POST /{length} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}"));
                let answer = client.response().map(|response| response.text());
                let copy = until("the mirror's copy", || mirror.take().pop());
                seen.push((answer, copy.line.clone(), copy.header("host").map(str::to_owned), copy.body.len()));
            }
            seen
        },
    );
}
