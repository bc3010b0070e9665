//! Retries and hedging beside Envoy: what is tried again and how often, what the tries say of themselves, what is counted,
//! where they go.

use std::{
    collections::HashMap,
    net::TcpListener,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use weft_tests::{Client, Proxy, Reply, Response, Seen, Upstream, differential, free_port, until, yaml};

const PREVIOUS_HOSTS: &str = "{name: p, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.\
                              PreviousHostsPredicate}}";
const OMIT_CANARY: &str = "{name: p, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.host.omit_canary_hosts.v3.\
                           OmitCanaryHostsPredicate}}";

/// Answers the n-th try of a request (header `id`) by the n-th word of its header `script`, and the last word from then on:
/// a status, with headers after semicolons; `reset`; `wait MILLISECONDS STATUS`.
fn scripted() -> Upstream {
    let tries = Mutex::<HashMap<String, usize>>::default();
    Upstream::start(move |seen| {
        let id = seen.header("id").unwrap_or_default().to_owned();
        let nth = {
            let mut tries = tries.lock().expect("no thread panicked");
            let nth = tries.entry(id).or_default();
            *nth += 1;
            *nth
        };
        let words: Vec<&str> = seen.header("script").unwrap_or("200").split('|').collect();
        answer(words[(nth - 1).min(words.len() - 1)], seen)
    })
}

fn answer(word: &str, seen: &Seen) -> Reply {
    if word == "reset" {
        return Reply::Close(Vec::new());
    }
    let word = match word.strip_prefix("wait ").and_then(|rest| rest.split_once(' ')) {
        Some((milliseconds, rest)) => {
            thread::sleep(Duration::from_millis(milliseconds.parse().expect("a number")));
            rest
        }
        None => word,
    };
    let mut parts = word.split(';');
    let status = parts.next().and_then(|status| status.parse().ok()).expect("a status");
    let headers =
        parts.filter_map(|part| part.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned()));
    Reply::Message(status, headers.collect(), seen.body.clone())
}

/// Sends one request with this script, under an id of its own.
fn ask(port: u16, path: &str, script: &str, headers: &str, body: &str) -> Option<Response> {
    ask_as(&new_id(), port, path, script, headers, body)
}

fn new_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

fn ask_as(id: &str, port: u16, path: &str, script: &str, headers: &str, body: &str) -> Option<Response> {
    let mut client = Client::connect(("127.0.0.1", port))?;
    let method = if body.is_empty() { "GET" } else { "POST" };
    client.send(format!(
        "{method} {path} HTTP/1.1\r\nhost: a.test\r\nid: {id}\r\nscript: {script}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ));
    client.response()
}

/// What one request comes to: the status, the client's headers of interest, and what each try said.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    case: String,
    status: u16,
    told: Vec<Option<String>>,
    tries: Vec<String>,
}

const TOLD: [&str; 3] = ["x-flags", "x-envoy-attempt-count", "x-envoy-overloaded"];

/// Path, script, headers.
type Case = (&'static str, &'static str, &'static str);

/// Sends all the requests at once, so that those that wait do so together.
fn outcomes(upstream: &Upstream, port: u16, cases: &[Case]) -> Vec<Outcome> {
    let responses: Vec<(String, Response)> = thread::scope(|scope| {
        let ask = |(path, script, headers): Case| {
            let id = new_id();
            let response = ask_as(&id, port, path, script, headers, "").expect("an answer");
            (id, response)
        };
        let all: Vec<_> = cases.iter().map(|case| scope.spawn(move || ask(*case))).collect();
        all.into_iter().map(|one| one.join().expect("it asked")).collect()
    });
    let seen = upstream.take();
    let own = ["x-envoy-attempt-count", "x-envoy-is-timeout-retry", "x-envoy-retry-on", "x-envoy-max-retries"];
    let say = |seen: &Seen| own.map(|name| seen.header(name).unwrap_or("-").to_owned()).join(" ");
    let outcome = |((path, script, headers), (id, response)): (&Case, (String, Response))| Outcome {
        case: format!("{path} {script} {headers}"),
        status: response.status,
        told: TOLD.map(|name| response.header(name).map(str::to_owned)).to_vec(),
        tries: seen.iter().filter(|seen| seen.header("id") == Some(&id)).map(say).collect(),
    };
    cases.iter().zip(responses).map(outcome).collect()
}

/// The cluster's counters about retries, those that are not zero.
fn counters(proxy: &Proxy) -> Vec<String> {
    let named = |line: &&str| {
        ["retry", "per_try", "upstream_rq_timeout", "upstream_rq_5", "upstream_rq_2", "upstream_rq_total"]
            .iter()
            .any(|word| line.starts_with("cluster.u.") && line.contains(word))
    };
    let page = proxy.page("/stats");
    page.lines()
        .filter(named)
        .filter(|line| !line.ends_with(": 0") && !line.contains("No recorded"))
        .map(str::to_owned)
        .collect()
}

fn route(path: &str, fields: &str) -> String {
    format!(
        "{{match: {{prefix: {path}}}, route: {{cluster: u, {fields}}}, response_headers_to_add: [{{header: {{key: x-flags, value: \
         \"%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\"}}}}]}}"
    )
}

fn retry(path: &str, on: &str, fields: &str) -> String {
    route(path, &format!("retry_policy: {{retry_on: \"{on}\", {fields}}}"))
}

/// A connection manager with these routes, whose clients are internal ones, and these clusters.
fn config(port: u16, routes: &[String], host_fields: &str, clusters: &[String]) -> String {
    let host = format!("{{name: v, domains: [\"*\"], {host_fields} routes: [{}]}}", routes.join(", "));
    let fields = "use_remote_address: true, internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}";
    yaml::bootstrap(&[yaml::http_listener("l", port, fields, &host)], clusters)
}

/// Asks for each case and compares with Envoy, counters too.
fn compare(routes: &[String], host_fields: &str, cases: &[Case]) {
    let upstream = scripted();
    let port = free_port();
    let breakers = "circuit_breakers: {thresholds: [{max_retries: 1000}]}, connect_timeout";
    let cluster = yaml::cluster("u", upstream.port()).replacen("connect_timeout", breakers, 1);
    differential(
        || config(port, routes, host_fields, std::slice::from_ref(&cluster)),
        |proxy| (outcomes(&upstream, port, cases), counters(proxy)),
    );
}

#[test]
fn conditions_are_alike() {
    let routes = [
        retry("/5xx", "5xx", ""),
        retry("/gateway", "gateway-error", ""),
        retry("/reset", "reset", ""),
        retry("/before", "reset-before-request", ""),
        retry("/connect", "connect-failure", ""),
        retry("/4xx", "retriable-4xx", ""),
        retry("/limited", "envoy-ratelimited", ""),
        retry("/refused", "refused-stream", ""),
        retry("/codes", "retriable-status-codes", "retriable_status_codes: [200, 404, 503]"),
        retry(
            "/headers",
            "retriable-headers",
            "retriable_headers: [{name: x-again, string_match: {exact: \"yes\"}}, {name: x-more}]",
        ),
        retry("/invert", "retriable-headers", "retriable_headers: [{name: x-again, invert_match: true}]"),
        retry(
            "/status",
            "retriable-headers",
            "retriable_headers: [{name: \":status\", string_match: {prefix: \"4\"}}]",
        ),
        retry("/grpc", "cancelled,deadline-exceeded,internal,resource-exhausted,unavailable", ""),
        retry("/mixed", " 5xx , unknown,reset,cancelled ", "num_retries: 2"),
        retry("/zero", "5xx", "num_retries: 0"),
        retry(
            "/asks",
            "5xx,reset",
            "retriable_request_headers: [{name: x-may}, {name: \":path\", string_match: {suffix: \"!\"}}]",
        ),
        retry("/http3", "http3-post-connect-failure", ""),
        route("/", "timeout: 10s"),
    ];
    let mut cases = Vec::new();
    let paths = [
        "/5xx", "/gateway", "/reset", "/before", "/connect", "/4xx", "/limited", "/refused", "/codes", "/mixed",
        "/zero", "/asks", "/http3", "/",
    ];
    for path in paths {
        for script in
            ["500|200", "503|200", "504|200", "409|200", "404|200", "reset|200", "503;x-envoy-ratelimited=true|200"]
        {
            cases.push((path, script, ""));
        }
    }
    for path in ["/headers", "/invert", "/status"] {
        for script in ["200;x-again=yes|200", "200;x-again=no|200", "200;x-more=|200", "404|200", "503|200"] {
            cases.push((path, script, ""));
        }
    }
    for script in [
        "200;grpc-status=0|200",
        "200;grpc-status=1|200",
        "200;grpc-status=4|200",
        "200;grpc-status=8|200",
        "200;grpc-status=13|200",
        "200;grpc-status=14|200",
        "200;grpc-status=2|200",
        "200;grpc-status=x|200",
        "503|200",
        "reset|200",
    ] {
        cases.push(("/grpc", script, ""));
    }
    cases.extend([
        ("/mixed", "503|reset|200", ""),
        ("/mixed", "503|reset|503|200", ""),
        ("/mixed", "200;grpc-status=1|200", ""),
        ("/asks", "503|200", "x-may: 1\r\n"),
        ("/asks!", "503|200", ""),
        ("/asks", "reset|200", "x-may: 1\r\n"),
    ]);
    compare(&routes, "include_request_attempt_count: true, include_attempt_count_in_response: true,", &cases);
}

#[test]
fn requests_ask_for_retries_alike() {
    let routes = [
        retry("/policy", "5xx", "num_retries: 2"),
        retry("/only", "5xx", "retriable_request_headers: [{name: x-may}]"),
        retry("/rules", "", ""),
        route("/", "timeout: 10s"),
    ];
    let cases = [
        ("/", "503|200", "x-envoy-retry-on: 5xx\r\n"),
        ("/", "503|503|200", "x-envoy-retry-on: 5xx\r\n"),
        ("/", "503|503|200", "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 2\r\n"),
        ("/", "503|200", "x-envoy-max-retries: 2\r\n"),
        ("/", "503|200", "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 0\r\n"),
        ("/", "503|200", "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: many\r\n"),
        ("/", "503|200", "x-envoy-retry-on: nonsense\r\n"),
        ("/", "409|200", "x-envoy-retry-on: nonsense, retriable-4xx\r\n"),
        ("/", "200;grpc-status=14|200", "x-envoy-retry-grpc-on: unavailable\r\n"),
        ("/", "200;grpc-status=14|200", "x-envoy-retry-on: unavailable\r\n"),
        ("/", "503|200", "x-envoy-retry-grpc-on: 5xx\r\n"),
        ("/", "418|200", "x-envoy-retry-on: retriable-status-codes\r\nx-envoy-retriable-status-codes: 418\r\n"),
        ("/", "419|200", "x-envoy-retry-on: retriable-status-codes\r\nx-envoy-retriable-status-codes: x, 419,\r\n"),
        ("/", "418|200", "x-envoy-retriable-status-codes: 418\r\n"),
        ("/", "200;x-a=1|200", "x-envoy-retry-on: retriable-headers\r\nx-envoy-retriable-header-names: x-b, X-A\r\n"),
        ("/", "200;x-a=1|200", "x-envoy-retriable-header-names: x-a\r\n"),
        ("/policy", "503|503|503|200", "x-envoy-max-retries: 3\r\n"),
        ("/policy", "503|503|200", "x-envoy-max-retries: 1\r\n"),
        ("/policy", "reset|409|200", "x-envoy-retry-on: retriable-4xx\r\n"),
        ("/only", "409|200", "x-envoy-retry-on: retriable-4xx\r\n"),
        ("/only", "409|200", "x-envoy-retry-on: retriable-4xx\r\nx-may: 1\r\n"),
        ("/only", "503|503|200", "x-may: 1\r\nx-envoy-max-retries: 2\r\n"),
        ("/rules", "503|200", "x-envoy-retry-on: 5xx\r\n"),
    ];
    compare(&routes, "include_request_attempt_count: true,", &cases);
}

#[test]
fn a_virtual_hosts_policy_is_inherited() {
    let routes = [retry("/own", "reset", ""), route("/none", "retry_policy: {}"), route("/", "timeout: 10s")];
    let cases = [
        ("/own", "503|200", ""),
        ("/own", "reset|200", ""),
        ("/none", "503|200", ""),
        ("/", "503|200", ""),
        ("/", "409|200", ""),
    ];
    compare(&routes, "retry_policy: {retry_on: 5xx, num_retries: 1},", &cases);
}

#[test]
fn timeouts_of_tries_are_alike() {
    let routes = [
        retry("/hedged", "5xx", "num_retries: 1, per_try_timeout: 1s").replacen(
            "route: {",
            "route: {hedge_policy: {hedge_on_per_try_timeout: true}, ",
            1,
        ),
        retry("/last", "5xx", "num_retries: 0, per_try_timeout: 1s").replacen(
            "route: {",
            "route: {hedge_policy: {hedge_on_per_try_timeout: true}, ",
            1,
        ),
        retry("/idle", "5xx", "num_retries: 1, per_try_idle_timeout: 1s"),
        retry("/connect", "connect-failure", "num_retries: 1, per_try_timeout: 1s"),
        retry("/whole", "5xx", "num_retries: 9, per_try_timeout: 1s, retry_back_off: {base_interval: 0.001s}")
            .replacen("route: {", "route: {timeout: 2.2s, ", 1),
        retry("/", "5xx", "num_retries: 1, per_try_timeout: 1s"),
    ];
    let cases = [
        ("/", "wait 2500 200|200", ""),
        ("/", "wait 2500 200", ""),
        ("/", "wait 100 503|200", ""),
        ("/connect", "wait 2500 200|200", ""),
        ("/idle", "wait 2500 200|200", ""),
        ("/idle", "wait 2500 200", ""),
        // The first try answers before the second does.
        ("/hedged", "wait 1600 200;x-envoy-overloaded=first|wait 6000 200", ""),
        ("/hedged", "wait 3500 200|200;x-envoy-overloaded=second", ""),
        ("/hedged", "wait 3500 200;x-envoy-overloaded=first|503", ""),
        ("/hedged", "wait 1600 503|wait 2500 200;x-envoy-overloaded=second", ""),
        ("/hedged", "wait 1600 503|wait 2500 503", ""),
        ("/hedged", "wait 1600 404;x-envoy-overloaded=first|wait 2500 200", ""),
        ("/last", "wait 1600 200;x-envoy-overloaded=first", ""),
        ("/last", "wait 1600 503", ""),
        ("/", "wait 2500 200|200", "x-envoy-hedge-on-per-try-timeout: true\r\n"),
        ("/hedged", "wait 2500 200|200", "x-envoy-hedge-on-per-try-timeout: false\r\n"),
        ("/", "wait 1300 200|200", "x-envoy-upstream-rq-per-try-timeout-ms: 5000\r\n"),
        ("/", "wait 1300 200|200", "x-envoy-upstream-rq-per-try-timeout-ms: 400\r\n"),
    ];
    compare(&routes, "include_request_attempt_count: true, include_is_timeout_retry_header: true,", &cases);
    // How many tries there is time for is chance: what counts is that the route's timeout ends them.
    let upstream = scripted();
    let port = free_port();
    differential(
        || config(port, &routes, "", &[yaml::cluster("u", upstream.port())]),
        |proxy| {
            let response = ask(port, "/whole", "wait 5000 200", "", "").expect("an answer");
            (
                response.status,
                response.header("x-flags").map(str::to_owned),
                proxy.stat("cluster.u.upstream_rq_timeout"),
            )
        },
    );
}

#[test]
fn waits_that_an_upstream_asks_for() {
    let upstream = scripted();
    let port = free_port();
    let policy = "retriable_status_codes: [429], rate_limited_retry_back_off: {max_interval: 2s, reset_headers: [{name: Retry-After, \
                  format: SECONDS}, {name: x-reset, format: UNIX_TIMESTAMP}]}, retry_back_off: {base_interval: 0.001s, max_interval: 0.001s}";
    let config =
        || config(port, &[retry("/", "retriable-status-codes", policy)], "", &[yaml::cluster("u", upstream.port())]);
    differential(config, |proxy| {
        let took = |script: &str| {
            let start = Instant::now();
            let status = ask(port, "/", script, "", "").map(|response| response.status);
            // One second, and up to half as much again.
            (status, (start.elapsed().as_secs_f64() > 0.95, start.elapsed().as_secs_f64() > 1.9))
        };
        let scripts = [
            "429;retry-after=1|200",
            "429;retry-after=100|200",
            "429;retry-after=0|200",
            "429;retry-after=soon|200",
            "429|200",
            "429;x-reset=1|200",
            "429;retry-after=100;x-reset=1|200",
            "429;retry-after=1.5|200",
        ];
        (scripts.map(took), counters(proxy))
    });
}

#[test]
fn bodies_are_sent_again_while_they_are_small() {
    let upstream = scripted();
    let port = free_port();
    let routes = [
        retry("/small", "5xx", "").replacen("{match", "{per_request_buffer_limit_bytes: 10, match", 1),
        retry("/", "5xx", "num_retries: 3"),
    ];
    let config = || config(port, &routes, "", &[yaml::cluster("u", upstream.port())]);
    differential(config, |proxy| {
        let sent = |path: &str, script: &str, size: usize| {
            drop(upstream.take());
            let body = "0123456789abcdef".repeat(size / 16 + 1);
            let response = ask(port, path, script, "", &body[..size]).expect("an answer");
            (
                response.status,
                response.body.len(),
                upstream.take().iter().map(|seen| seen.body.len()).collect::<Vec<_>>(),
            )
        };
        let all = [
            sent("/", "503|200", 5),
            sent("/", "503|503|503|200", 100_000),
            sent("/", "reset|200", 100_000),
            sent("/small", "503|200", 10),
            sent("/small", "503|200", 11),
            sent("/small", "200", 100_000),
        ];
        (all, counters(proxy))
    });
}

fn endpoints(upstreams: &[(&Upstream, &str)]) -> String {
    let endpoint = |(upstream, fields): &(&Upstream, &str)| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}, {fields}}}",
            upstream.port()
        )
    };
    format!("[{}]", upstreams.iter().map(endpoint).collect::<Vec<_>>().join(", "))
}

/// Where the tries of 40 requests that always fail go: for each number of a try, the hosts by their place in `upstreams`.
fn places(upstreams: &[Upstream], port: u16) -> Vec<Vec<bool>> {
    let mut places = Vec::new();
    for _ in 0..40 {
        upstreams.iter().for_each(|upstream| drop(upstream.take()));
        let _ = ask(port, "/", "503", "", "");
        for (host, upstream) in upstreams.iter().enumerate() {
            for seen in upstream.take() {
                let nth: usize = seen.header("x-envoy-attempt-count").and_then(|n| n.parse().ok()).expect("a number");
                places.resize(places.len().max(nth), vec![false; upstreams.len()]);
                places[nth - 1][host] = true;
            }
        }
    }
    places
}

#[test]
fn retries_go_elsewhere() {
    let canary = "metadata: {filter_metadata: {envoy.lb: {canary: true, kind: [spot, cheap]}}}";
    let predicates = [
        format!("retry_host_predicate: [{PREVIOUS_HOSTS}], host_selection_retry_max_attempts: 100, num_retries: 2"),
        format!("retry_host_predicate: [{OMIT_CANARY}], host_selection_retry_max_attempts: 100, num_retries: 1"),
        format!("retry_host_predicate: [{PREVIOUS_HOSTS}, {OMIT_CANARY}], host_selection_retry_max_attempts: 100, num_retries: 1"),
        "retry_host_predicate: [{name: m, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.host.\
         omit_host_metadata.v3.OmitHostMetadataConfig, metadata_match: {filter_metadata: {envoy.lb: {kind: cheap}}}}}], \
         host_selection_retry_max_attempts: 100, num_retries: 1".to_owned(),
        "num_retries: 1".to_owned(),
    ];
    for fields in predicates {
        let upstreams = [scripted(), scripted(), scripted()];
        let port = free_port();
        let cluster = format!(
            "{{name: u, lb_policy: RANDOM, load_assignment: {{cluster_name: u, endpoints: [{{lb_endpoints: {}}}]}}}}",
            endpoints(&[(&upstreams[0], ""), (&upstreams[1], canary), (&upstreams[2], "")])
        );
        let config = || {
            config(
                port,
                &[retry("/", "5xx", &fields)],
                "include_request_attempt_count: true,",
                std::slice::from_ref(&cluster),
            )
        };
        differential(config, |_| places(&upstreams, port));
    }
}

#[test]
fn retries_leave_priorities_that_were_tried() {
    for frequency in [1, 2] {
        let upstreams = [scripted(), scripted()];
        let port = free_port();
        let cluster = format!(
            "{{name: u, load_assignment: {{cluster_name: u, endpoints: [{{priority: 0, lb_endpoints: {}}}, {{priority: 1, lb_endpoints: {}}}]}}}}",
            endpoints(&[(&upstreams[0], "")]),
            endpoints(&[(&upstreams[1], "")])
        );
        let policy = format!(
            "num_retries: 4, retry_priority: {{name: p, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.retry.priority.\
             previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: {frequency}}}}}"
        );
        let config = || {
            config(
                port,
                &[retry("/", "5xx", &policy)],
                "include_request_attempt_count: true,",
                std::slice::from_ref(&cluster),
            )
        };
        differential(config, |_| places(&upstreams, port));
    }
}

#[test]
fn a_dead_host_is_left_for_another() {
    let upstream = scripted();
    let (port, dead) = (free_port(), free_port());
    let cluster = format!(
        "{{name: u, connect_timeout: 1s, load_assignment: {{cluster_name: u, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {dead}}}}}}}}}, {{endpoint: {{address: {{socket_address: {{address: \
         127.0.0.1, port_value: {}}}}}}}}}]}}]}}}}",
        upstream.port()
    );
    for on in ["connect-failure", "reset-before-request", "reset", "5xx", "gateway-error", "refused-stream"] {
        let config = || config(port, &[retry("/", on, "")], "", std::slice::from_ref(&cluster));
        differential(config, |proxy| {
            let statuses: Vec<_> = (0..10).filter_map(|_| ask(port, "/", "200", "", "")).map(|r| r.status).collect();
            let ok = statuses.iter().filter(|status| **status == 200).count();
            (ok == 10, ok >= 4, proxy.stat("cluster.u.upstream_rq_retry_overflow"))
        });
    }
}

#[test]
fn a_budget_holds_retries_back() {
    let upstream = scripted();
    let port = free_port();
    let breakers =
        "circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 0}, min_retry_concurrency: 0}}]}, ";
    let cluster =
        yaml::cluster("u", upstream.port()).replacen("connect_timeout", &format!("{breakers}connect_timeout"), 1);
    let config = || config(port, &[retry("/", "5xx", "")], "", std::slice::from_ref(&cluster));
    differential(config, |proxy| {
        (outcomes(&upstream, port, &[("/", "503|200", ""), ("/", "reset|200", "")]), counters(proxy))
    });
}

#[test]
fn a_client_that_leaves_ends_the_tries() {
    let upstream = scripted();
    let port = free_port();
    let config = || {
        config(
            port,
            &[retry("/", "5xx", "num_retries: 5, retry_back_off: {base_interval: 10s, max_interval: 10s}")],
            "",
            &[yaml::cluster("u", upstream.port())],
        )
    };
    differential(config, |proxy| {
        let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
        client.send("GET / HTTP/1.1\r\nhost: a\r\nid: leaves\r\nscript: 503\r\n\r\n");
        proxy.wait_for_stat("cluster.u.retry.upstream_rq_503", 1);
        drop(client);
        until("the request is over", || (proxy.stat("http.http.downstream_rq_active") == Some(0)).then_some(()));
        // Its place with the breakers is free again.
        (counters(proxy), proxy.stat("cluster.u.circuit_breakers.default.rq_retry_open"))
    });
}

/// The request is here, and waits for a connection that is not made: its time runs.
#[test]
fn the_routes_timeout_counts_while_a_connection_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mute = listener.local_addr().expect("it is bound").port();
    // It takes connections and never says a word of TLS.
    thread::spawn(move || listener.incoming().flatten().collect::<Vec<_>>());
    let port = free_port();
    let tls = "transport_socket: {name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.\
               UpstreamTlsContext}}, connect_timeout: 15s";
    let cluster = yaml::cluster("u", mute).replacen("connect_timeout: 1s", tls, 1);
    let routes = [route("/", "timeout: 0.5s")];
    differential(
        || config(port, &routes, "", std::slice::from_ref(&cluster)),
        |proxy| {
            let start = Instant::now();
            let outcome = outcomes(&Upstream::named("nobody"), port, &[("/", "200", "")]);
            (outcome, start.elapsed() < Duration::from_secs(8), counters(proxy))
        },
    );
}
