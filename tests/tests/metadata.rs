//! Dynamic metadata that filters make of headers, cookies and configuration, beside Envoy: what is written, who sees it, what is
//! counted, and which configurations are refused.

use std::process::Command;
use weft_tests::{Client, Proxy, Response, Upstream, differential, free_port, tools, yaml};

const H2M: &str = "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config";
const SET: &str = "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const OFF: &str = "{\"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}";
const DIRECT: &str = "{match: {prefix: /}, direct_response: {status: 200}}";
const NAMESPACE: &str = "envoy.filters.http.header_to_metadata";

fn filter(name: &str, type_url: &str, fields: &str) -> String {
    format!("{{name: {name}, typed_config: {{\"@type\": {type_url}, {fields}}}}}")
}

/// A connection manager with these filters, that logs in this format to the standard error stream.
fn listener(name: &str, port: u16, filters: &[String], format: &str, routes: &[String]) -> String {
    let log = format!(
        "access_log: [{{name: stderr, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.\
         StderrAccessLog, log_format: {{text_format_source: {{inline_string: \"LOG {name} {format}\\n\"}}}}}}}}]"
    );
    let hosts = format!("{{name: v, domains: [\"*\"], routes: [{}]}}", routes.join(", "));
    let filters: String = filters.iter().map(|filter| format!("{filter}, ")).collect();
    yaml::http_listener(name, port, &log, &hosts)
        .replacen("http_filters: [", &format!("http_filters: [{filters}"), 1)
        .replacen("stat_prefix: http", &format!("stat_prefix: {name}"), 1)
}

fn ask(port: u16, path: &str, headers: &str) -> Option<Response> {
    let mut client = Client::connect(("127.0.0.1", port))?;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n{headers}connection: close\r\n\r\n"));
    client.response()
}

/// Status and body.
fn answer(port: u16, path: &str, headers: &str) -> Option<(u16, String)> {
    ask(port, path, headers).map(|response| (response.status, String::from_utf8_lossy(&response.body).into_owned()))
}

/// The counters of these filters that are not zero: Weft has those of routes once they are used.
fn stats(proxy: &Proxy) -> Vec<String> {
    let ours =
        |line: &&str| (line.contains("http_filter_name.") || line.contains("set_metadata.")) && !line.ends_with(": 0");
    proxy.page("/stats").lines().filter(ours).map(str::to_owned).collect()
}

fn present(header: &str, key: &str, fields: &str) -> String {
    format!("{{header: \"{header}\", on_header_present: {{key: {key}{fields}}}}}")
}

fn rewrite(pattern: &str, substitution: &str) -> String {
    format!(", regex_value_rewrite: {{pattern: {{regex: \"{pattern}\"}}, substitution: '{substitution}'}}")
}

#[test]
fn headers_become_values_alike() {
    let port = free_port();
    let rules = [
        present("x-s", "s", ""),
        present("x-n", "num", ", type: NUMBER"),
        present("x-b", "b", ", encode: BASE64"),
        present("x-bn", "bn", ", encode: BASE64, type: NUMBER"),
        present("x-p", "p", ", encode: BASE64, type: PROTOBUF_VALUE"),
        present("x-r", "r", &rewrite("a(.)", "<\\1>")),
        present("x-r2", "r2", &rewrite("a", "\\3")),
        present("x-r3", "r3", &rewrite("a", "x\\qy")),
        present("x-r4", "r4", &rewrite("a", "")),
        present("x-v", "v", ", value: const"),
        present("x-ns", "k", ", metadata_namespace: other"),
        "{header: x-m, on_header_present: {key: m}, on_header_missing: {key: m, value: none}}".to_owned(),
        "{header: x-rm, on_header_present: {key: rm}, remove: true}".to_owned(),
        "{header: x-rm, on_header_missing: {key: rm-gone, value: '1'}}".to_owned(),
        "{cookie: c, on_header_present: {key: c}, on_header_missing: {key: c-gone, value: '1'}}".to_owned(),
        present(":path", "path", ""),
        present("host", "host", ""),
        present("X-Upper", "upper", ""),
        "{header: a b, on_header_missing: {key: ab, value: '1'}}".to_owned(),
        "{header: x-mb, on_header_missing: {key: mb, value: 'YWI=', encode: BASE64}}".to_owned(),
        present("x-other", "s", ""),
    ];
    let fields = format!("request_rules: [{}], stat_prefix: own.", rules.join(", "));
    let format = format!(
        "%DYNAMIC_METADATA({NAMESPACE})% %DYNAMIC_METADATA(other)% %DYNAMIC_METADATA({NAMESPACE}:num)% %REQ(x-rm)%"
    );
    let config =
        || yaml::bootstrap(&[listener("l", port, &[filter("h2m", H2M, &fields)], &format, &[DIRECT.to_owned()])], &[]);
    let mut requests: Vec<String> = [
        "",
        "x-s: v",
        "x-s: ",
        "x-s: a\r\nx-s: b",
        "x-s: a\r\nx-other: d",
        "x-s: caf\u{e9} \\\"q\\\"",
        "x-r: ab-ac",
        "x-r: zz",
        "x-r2: bab",
        "x-r3: bab",
        "x-r4: a",
        "x-r4: ab",
        "x-r4: ",
        "x-v: anything",
        "x-v: ",
        "x-ns: o",
        "x-m: ",
        "x-m: yes",
        "x-rm: r",
        "x-rm: r\r\nx-rm: s",
        "cookie: c=1",
        "cookie: b=2; c=1; c=3",
        "cookie: c=",
        "cookie: c=\"q\"",
        "cookie: b=1\r\ncookie: c=2",
        "cookie: C=1",
        "cookie:  c = 1 ",
        "cookie: c= v ; d=1",
        "cookie: c=a=b;x",
        "cookie: b=1,c=2",
        "cookie: c",
        "cookie: x;c=5;",
        "cookie: c=\"",
        "cookie: c=\"\"",
        "cookie: b=\u{e9}; c=1",
        "x-upper: u",
    ]
    .map(str::to_owned)
    .into();
    let numbers = [
        "1",
        "1.5",
        " 2 ",
        "+3",
        "-0",
        "1e3",
        "0x10",
        "0x1.8p1",
        "1a",
        ".5",
        "5.",
        "1e",
        "1_0",
        "12345678901234567890",
        "0.1",
        "1e21",
        "1e-7",
        "100000",
        "120000",
        "0.0001",
        "9007199254740993",
        "1,2",
        "+-1",
        "1e-400",
        "1 2",
    ];
    requests.extend(numbers.map(|n| format!("x-n: {n}")));
    let encoded = [
        "aGk=", "aGk", "aGk==", "aGk===", "!!!", "aGl=", "a", "aG k=", "YQpi", "aGVsAGxv", "_-__", "YQ", "YR", "=",
        "aGk=aGk=", "w6k=",
    ];
    requests.extend(encoded.map(|text| format!("x-b: {text}")));
    requests.extend(["NDI=", "IDQyCg==", "eA=="].map(|text| format!("x-bn: {text}")));
    // A text, a number, a boolean, a null, a list in a structure, what is no value, and none.
    let values =
        ["GgFz", "EQAAAAAAAPQ/", "IAE=", "CAA=", "KhUKEwoBYhIOMgwKAyABCggaAXgKAggA", "anVuaw==", "+AEB", "GgH/"];
    requests.extend(values.map(|text| format!("x-p: {text}")));
    requests.extend([8191, 8192, 9000].map(|length| format!("x-s: {}", "x".repeat(length))));
    differential(config, |proxy| {
        for request in &requests {
            let headers = if request.is_empty() { String::new() } else { format!("{request}\r\n") };
            assert!(ask(port, "/p?q", &headers).is_some(), "{request}");
        }
        let lines = proxy.log_lines(requests.len());
        (requests.iter().cloned().zip(lines).collect::<Vec<_>>(), stats(proxy))
    });
}

#[test]
fn responses_become_values_whoever_gives_them() {
    let upstream = Upstream::named("u");
    let rules = "response_rules: [{header: ':status', on_header_present: {key: status, type: NUMBER}}, \
         {header: x-r, on_header_present: {key: r}, on_header_missing: {key: none, value: '1'}, remove: true}, \
         {cookie: c, on_header_present: {key: c}}, {header: x-gone, on_header_present: {key: gone}}], stat_prefix: own";
    let h2m = filter("h2m", H2M, rules);
    let deny = filter("rbac", RBAC, "rules: {}");
    let routes = [
        "{match: {path: /direct}, direct_response: {status: 204}, response_headers_to_add: [{header: {key: x-r, value: '1'}}, \
         {header: {key: cookie, value: c=2}}]}"
            .to_owned(),
        "{match: {prefix: /up}, route: {cluster: u}, response_headers_to_add: [{header: {key: x-r, value: 'v%DYNAMIC_METADATA(a)%'}}]}".to_owned(),
    ];
    let ports = [free_port(), free_port(), free_port()];
    let format = format!("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA({NAMESPACE})%");
    let config = || {
        let chains = [vec![h2m.clone()], vec![deny.clone(), h2m.clone()], vec![h2m.clone(), deny.clone()]];
        let listeners: Vec<_> =
            (0..3).map(|i| listener(&format!("l{i}"), ports[i], &chains[i], &format, &routes)).collect();
        yaml::bootstrap(&listeners, &[yaml::cluster("u", upstream.port())])
    };
    differential(config, |proxy| {
        let mut seen = Vec::new();
        for port in ports {
            for (path, headers) in
                [("/direct", ""), ("/up", ""), ("/none", ""), ("/up", "upgrade: x\r\nconnection: upgrade\r\n")]
            {
                let response = ask(port, path, headers);
                seen.push(response.map(|r| (r.status, r.header("x-r").map(str::to_owned))));
            }
        }
        upstream.take();
        (seen, proxy.log_lines(12), stats(proxy))
    });
}

#[test]
fn requests_without_what_was_removed() {
    let upstream = Upstream::named("u");
    let headers = [":path", ":method", ":authority", ":scheme", "host", "x-a"];
    let ports = headers.map(|_| free_port());
    let status = free_port();
    let config = || {
        let routes = [
            "{match: {path: /direct}, direct_response: {status: 200}}".to_owned(),
            "{match: {prefix: /}, route: {cluster: u}}".to_owned(),
        ];
        let rule = |header: &str| format!("[{{header: '{header}', on_header_present: {{key: k}}, remove: true}}]");
        let format =
            format!("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA({NAMESPACE})%");
        let mut listeners: Vec<_> = headers
            .iter()
            .zip(ports)
            .map(|(header, port)| {
                let h2m = filter("h2m", H2M, &format!("request_rules: {}", rule(header)));
                listener(&format!("l{port}"), port, &[h2m], &format, &routes)
            })
            .collect();
        let h2m = filter("h2m", H2M, &format!("response_rules: {}", rule(":status")));
        listeners.push(listener("status", status, &[h2m], &format, &routes));
        yaml::bootstrap(&listeners, &[yaml::cluster("u", upstream.port())])
    };
    differential(config, |proxy| {
        let mut seen = Vec::new();
        for port in ports.into_iter().chain([status]) {
            for path in ["/direct", "/up"] {
                let answer = answer(port, path, "x-a: 1\r\n");
                let lines = upstream.take().into_iter().map(|seen| {
                    (
                        seen.line.clone(),
                        seen.header("host").unwrap_or_default().to_owned(),
                        seen.header("x-a").map(str::to_owned),
                    )
                });
                seen.push((answer, lines.collect::<Vec<_>>()));
            }
        }
        (seen, proxy.log_lines(2 * headers.len() + 2))
    });
}

#[test]
fn routes_have_rules_of_their_own() {
    let ports = [free_port(), free_port()];
    let of_route = |name: &str, type_url: &str, fields: &str| {
        format!("typed_per_filter_config: {{{name}: {{\"@type\": {type_url}, {fields}}}}}")
    };
    let route =
        |path: &str, config: &str| format!("{{match: {{path: {path}}}, direct_response: {{status: 200}}, {config}}}");
    let off = |name: &str| format!("typed_per_filter_config: {{{name}: {OFF}}}");
    let rules = |direction: &str, header: &str| {
        format!("{direction}: [{{header: '{header}', on_header_present: {{metadata_namespace: a, key: k}}}}]")
    };
    let h2m_routes = [
        route("/own", &of_route("h2m", H2M, &format!("{}, stat_prefix: route", rules("request_rules", "x-b")))),
        route("/response", &of_route("h2m", H2M, &rules("response_rules", ":status"))),
        route("/off", &off("h2m")),
        DIRECT.to_owned(),
    ];
    let entry = |namespace: &str, fields: &str| format!("metadata: [{{metadata_namespace: {namespace}, {fields}}}]");
    let set_routes = [
        route("/denied", &of_route("set", SET, &entry("a", "value: {k: route}"))),
        route("/merged", &of_route("set", SET, &entry("a", "value: {k: route, l: [2]}, allow_overwrite: true"))),
        route("/other", &of_route("set", SET, &entry("b", "value: {k: route}"))),
        route("/empty", &of_route("set", SET, "")),
        route("/off", &off("set")),
        DIRECT.to_owned(),
    ];
    let format = "%REQ(:path)% %DYNAMIC_METADATA(a)% %DYNAMIC_METADATA(b)%";
    let config = || {
        let h2m = filter("h2m", H2M, &format!("{}, stat_prefix: main", rules("request_rules", "x-a")));
        let set = filter("set", SET, &entry("a", "value: {k: main, l: [1]}"));
        let listeners = [
            listener("h2m", ports[0], &[h2m], format, &h2m_routes),
            listener("set", ports[1], &[set], format, &set_routes),
        ];
        yaml::bootstrap(&listeners, &[])
    };
    let paths = ["/", "/own", "/response", "/off", "/denied", "/merged", "/other", "/empty"];
    differential(config, |proxy| {
        for port in ports {
            for path in paths {
                for headers in ["", "x-a: 1\r\nx-b: 2\r\n"] {
                    assert_eq!(ask(port, path, headers).map(|response| response.status), Some(200));
                }
            }
        }
        (proxy.log_lines(4 * paths.len()), stats(proxy))
    });
}

#[test]
fn metadata_is_set_and_merged_alike() {
    let entry = |namespace: &str, value: &str, overwrite: bool| {
        format!("{{metadata_namespace: {namespace}, value: {value}, allow_overwrite: {overwrite}}}")
    };
    let typed = |overwrite: bool| {
        format!(
            "{{metadata_namespace: b, typed_value: {{\"@type\": type.googleapis.com/google.protobuf.Duration, value: 1s}}, \
             allow_overwrite: {overwrite}}}"
        )
    };
    let list = |entries: &[String]| format!("metadata: [{}]", entries.join(", "));
    let configs = [
        list(&[
            entry("a", "{k: 1, d: {x: 1, o: {p: 1}}, l: [1, {z: 1}], t: s, n: null, b: true, e: [], f: {}}", false),
            entry("a", "{k: 2, d: {y: 2, o: {q: 2}}, l: [2], t: 5, n: 7, b: null, e: {w: 1}, f: [1]}", true),
        ]),
        list(&[entry("a", "{k: 1}", false), entry("a", "{k: 2}", false), entry("a", "{}", false)]),
        list(&[typed(false), typed(false), typed(true), typed(false)]),
        list(&["{metadata_namespace: a}".to_owned(), entry("a", "{}", false), entry("a", "{k: 1}", false)]),
        "metadata_namespace: a, value: {k: 1, m: 1}, metadata: [{metadata_namespace: a, value: {k: 2}}, \
         {metadata_namespace: a, value: {j: 2}, allow_overwrite: true}]"
            .to_owned(),
        "metadata_namespace: a".to_owned(),
        list(&[entry(
            "a",
            "{k: 100000, i: 123456, m: -1000000, t: \"t\\u00e9\\\"/<>\", z: 0, l: [10000, 99999]}",
            false,
        )]),
        String::new(),
    ];
    let ports = configs.each_ref().map(|_| free_port());
    let config = || {
        let format = "%DYNAMIC_METADATA(a)% %DYNAMIC_METADATA(b)% %DYNAMIC_METADATA(a:k)% %DYNAMIC_METADATA(a:d:x)%";
        let again = filter("again", SET, &list(&[entry("a", "{k: last}", false)]));
        let listener = |(i, fields): (usize, &String)| {
            listener(
                &format!("l{i}"),
                ports[i],
                &[filter("set", SET, fields), again.clone()],
                format,
                &[DIRECT.to_owned()],
            )
        };
        yaml::bootstrap(&configs.iter().enumerate().map(listener).collect::<Vec<_>>(), &[])
    };
    differential(config, |proxy| {
        for port in ports {
            assert_eq!(ask(port, "/", "").map(|response| response.status), Some(200));
        }
        (proxy.log_lines(ports.len()), stats(proxy))
    });
}

#[test]
fn others_see_it() {
    let upstream = Upstream::named("u");
    let port = free_port();
    let h2m = filter(
        "h2m",
        H2M,
        "request_rules: [{header: x-role, on_header_present: {metadata_namespace: jwt, key: role}, remove: true}, \
         {header: x-n, on_header_present: {metadata_namespace: jwt, key: num, type: NUMBER}}]",
    );
    let test = |key: &str, value: &str| format!("{{filter: jwt, path: [{{key: {key}}}], value: {value}}}");
    let rbac = filter(
        "rbac",
        RBAC,
        &format!(
            "rules: {{policies: {{p: {{permissions: [{{metadata: {}}}, {{metadata: {}}}], principals: [{{metadata: {}}}]}}}}}}",
            test("role", "{string_match: {exact: admin}}"),
            test("num", "{double_match: {range: {start: 5, end: 10}}}"),
            test("role", "{present_match: true}"),
        ),
    );
    // Routes are chosen before the filters run: this one never is.
    let by_metadata = format!(
        "{{match: {{prefix: /, dynamic_metadata: [{}]}}, direct_response: {{status: 201}}}}",
        test("role", "{string_match: {exact: admin}}")
    );
    let forward = "{match: {prefix: /}, route: {cluster: u}, request_headers_to_add: [{header: {key: x-seen, value: \"%DYNAMIC_METADATA(jwt:role)% %DYNAMIC_METADATA(jwt)%\"}}]}";
    let cluster = yaml::cluster("u", upstream.port()).replacen(
        "[{endpoint:",
        "[{metadata: {filter_metadata: {own: {k: 1}}}, endpoint:",
        1,
    );
    let config = || {
        let routes = [by_metadata.clone(), forward.to_owned()];
        let format = "%DYNAMIC_METADATA(jwt)% %METADATA(UPSTREAM_HOST:own:k)% %METADATA(VIRTUAL_HOST:own:k)% %DYNAMIC_METADATA(jwt:role):2%";
        let listener = listener("l", port, &[h2m.clone(), rbac.clone()], format, &routes).replacen(
            "{name: v, ",
            "{name: v, metadata: {filter_metadata: {own: {k: host}}}, ",
            1,
        );
        let only = format!(
            "metadata_filter: {{matcher: {}, match_if_key_not_found: false}}",
            test("role", "{string_match: {prefix: a}}")
        );
        let listener = listener.replacen("{name: stderr, ", &format!("{{name: stderr, filter: {{{only}}}, "), 1);
        yaml::bootstrap(&[listener], std::slice::from_ref(&cluster))
    };
    let requests = [
        "",
        "x-role: admin\r\n",
        "x-role: user\r\n",
        "x-role: user\r\nx-n: 7\r\n",
        "x-n: 7\r\n",
        "x-role: adept\r\nx-n: 10\r\n",
    ];
    differential(config, |proxy| {
        let seen = requests.map(|headers| {
            let status = ask(port, "/", headers).map(|response| response.status);
            let told = upstream
                .take()
                .into_iter()
                .map(|seen| (seen.header("x-seen").map(str::to_owned), seen.header("x-role").map(str::to_owned)));
            (status, told.collect::<Vec<_>>())
        });
        (seen, proxy.log_lines(2))
    });
}

#[test]
fn the_same_configurations_are_refused() {
    let Some(envoy) = tools::envoy() else { return };
    let one = |rule: &str| filter("f", H2M, &format!("request_rules: [{{{rule}}}]"));
    let cases = [
        filter("f", H2M, ""),
        one("on_header_present: {key: k}"),
        one("header: a, cookie: b, on_header_present: {key: k}"),
        one("header: a"),
        one("cookie: a, on_header_present: {key: k}, remove: true"),
        one("cookie: a, on_header_missing: {key: k, value: v}"),
        one("header: a, on_header_missing: {key: k}"),
        one(
            "header: a, on_header_missing: {key: k, value: v, regex_value_rewrite: {pattern: {regex: '('}, substitution: b}}",
        ),
        one(
            "header: a, on_header_present: {key: k, value: v, regex_value_rewrite: {pattern: {regex: a}, substitution: b}}",
        ),
        one("header: a, on_header_present: {key: k, regex_value_rewrite: {pattern: {regex: '('}, substitution: b}}"),
        one("header: a, on_header_present: {key: k, regex_value_rewrite: {pattern: {regex: a}, substitution: '\\'}}"),
        one("header: a, on_header_present: {key: k, regex_value_rewrite: {substitution: b}}"),
        one("header: a, on_header_present: {value: v}"),
        one("header: a b, on_header_present: {key: k}"),
        one("header: a, on_header_present: {key: k, type: 7}"),
        one("header: a, on_header_present: {key: k, encode: 7}"),
        filter("f", H2M, "response_rules: [{header: a}]"),
        filter("f", SET, "metadata: [{metadata_namespace: a}]"),
        filter("f", SET, "metadata: [{value: {k: 1}}]"),
        filter("f", SET, "value: {k: 1}"),
    ];
    let routes = [
        format!("{{\"@type\": {H2M}}}"),
        format!("{{\"@type\": {H2M}, stat_prefix: x}}"),
        format!("{{\"@type\": {H2M}, request_rules: [{{header: a}}]}}"),
        format!("{{\"@type\": {SET}}}"),
        OFF.to_owned(),
    ];
    let direct = [DIRECT.to_owned()];
    let of_filters = cases.into_iter().map(|case| listener("l", 1, &[case], "x", &direct));
    let of_routes = routes.map(|config| {
        let route = format!(
            "{{match: {{prefix: /}}, direct_response: {{status: 200}}, typed_per_filter_config: {{f: {config}}}}}"
        );
        listener("l", 1, &[filter("f", H2M, "")], "x", &[route])
    });
    for case in of_filters.chain(of_routes) {
        let config = yaml::bootstrap(&[case], &[]);
        let [ours, theirs] = [tools::binary("weft"), envoy.clone()].map(|binary| {
            let validate = ["--mode", "validate", "-l", "off", "--config-yaml", &config];
            Command::new(binary).args(validate).output().map(|output| output.status.success()).ok()
        });
        assert_eq!(ours, theirs, "{config}");
    }
}
