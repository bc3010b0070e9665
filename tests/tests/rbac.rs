//! Who may do what, beside Envoy: rules of both filters, trees, routes of their own, identities over mTLS, and what upstreams
//! and logs are told.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};
use weft_tests::{
    Client, Kind, Proxy, Upstream,
    certificate_matrix::{Authority, Issued, uris},
    differential, free_port,
    openssl::{self, s_client},
    tools, yaml,
};

const ANY: &str = "{any: true}";

fn log(format: &str) -> String {
    format!(
        "{{name: stderr, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog, \
         log_format: {{text_format_source: {{inline_string: \"LOG {format}\\n\"}}}}}}}}"
    )
}

fn rules(action: &str, permission: &str, principal: &str) -> String {
    format!("{{action: {action}, policies: {{p: {{permissions: [{permission}], principals: [{principal}]}}}}}}")
}

fn filter(fields: &str) -> String {
    format!(
        "{{name: rbac, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, {fields}}}}}"
    )
}

/// A connection manager with this filter in front of routes.
fn listener(name: &str, port: u16, filter: &str, fields: &str, routes: &str) -> String {
    let hosts = format!("{{name: v, domains: [\"*\"], routes: [{routes}]}}");
    yaml::http_listener(name, port, fields, &hosts)
        .replacen("http_filters: [", &format!("http_filters: [{filter}, "), 1)
        .replacen("stat_prefix: http", &format!("stat_prefix: {name}"), 1)
}

const DIRECT: &str = "{match: {prefix: /}, direct_response: {status: 200}}";

fn status(port: u16, request: &str) -> Option<u16> {
    let mut client = Client::connect(("127.0.0.1", port))?;
    client.send(request);
    client.response().map(|response| response.status)
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n{headers}connection: close\r\n\r\n")
}

/// The lines of `/stats` that speak of RBAC.
fn stats(proxy: &Proxy) -> Vec<String> {
    proxy.page("/stats").lines().filter(|line| line.contains(".rbac.")).map(str::to_owned).collect()
}

#[test]
fn requests_are_allowed_and_denied_alike() {
    let header = |test: &str| format!("{{header: {{name: x-a, {test}}}}}");
    let path = |test: &str| format!("{{url_path: {{path: {{{test}}}}}}}");
    let permissions = [
        header("string_match: {exact: v}"),
        header("string_match: {prefix: v}"),
        header("string_match: {safe_regex: {regex: \"v.\"}}"),
        header("string_match: {exact: v}, invert_match: true"),
        header("string_match: {exact: \"\"}, treat_missing_header_as_empty: true"),
        header("present_match: false"),
        header("present_match: true, treat_missing_header_as_empty: true"),
        header("present_match: false, treat_missing_header_as_empty: true"),
        "{sourced_metadata: {metadata_source: ROUTE, metadata_matcher: {filter: f, path: [{key: k}], value: \
         {string_match: {exact: v}}, invert: true}}}"
            .to_owned(),
        header("range_match: {start: 1, end: 9}"),
        path("exact: /a"),
        path("prefix: /a, ignore_case: false"),
        path("suffix: B, ignore_case: true"),
        "{not_rule: {url_path: {path: {safe_regex: {regex: \"/a.*\"}}}}}".to_owned(),
        "{header: {name: \":method\", string_match: {exact: GET}}}".to_owned(),
        "{header: {name: \":authority\", string_match: {exact: a.test}}}".to_owned(),
        "{uri_template: {name: t, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: \"/a/{x}\"}}}".to_owned(),
        "{requested_server_name: {exact: \"\"}}".to_owned(),
        "{destination_ip: {address_prefix: 127.0.0.0, prefix_len: 8}}".to_owned(),
        "{destination_port_range: {start: 1, end: 65536}}".to_owned(),
        format!("{{and_rules: {{rules: [{}, {}]}}}}", path("prefix: /a"), header("present_match: true")),
    ];
    let principals = [
        "{authenticated: {}}",
        "{direct_remote_ip: {address_prefix: 127.0.0.1, prefix_len: 32}}",
        "{remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}",
        "{source_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}",
        "{not_id: {header: {name: x-forwarded-for, string_match: {contains: \"10.1\"}}}}",
        "{or_ids: {ids: [{url_path: {path: {exact: /b}}}, {header: {name: x-a, string_match: {contains: v}}}]}}",
    ];
    let mut cases: Vec<_> = permissions.iter().map(|permission| rules("ALLOW", permission, ANY)).collect();
    cases.extend(principals.iter().map(|principal| rules("DENY", ANY, principal)));
    cases.extend(["{}".to_owned(), "{action: DENY}".to_owned(), rules("LOG", ANY, ANY)]);
    let ports: Vec<_> = cases.iter().map(|_| free_port()).collect();
    let config = || {
        let listener = |(i, case): (usize, &String)| {
            let fields = "use_remote_address: true, xff_num_trusted_hops: 1";
            listener(&format!("l{i}"), ports[i], &filter(&format!("rules: {case}")), fields, DIRECT)
        };
        yaml::bootstrap(&cases.iter().enumerate().map(listener).collect::<Vec<_>>(), &[])
    };
    let requests = [
        get("/a", ""),
        get("/a?q=/b", "x-a: v\r\n"),
        get("/b", "x-a: v1\r\n"),
        get("/a/B", "x-a: 5\r\n"),
        get("/", "x-a: \r\n"),
        get("/a", "x-forwarded-for: 10.1.2.3\r\n"),
        get("/aB/", "x-a: w\r\nx-a: v\r\n"),
        "POST /a HTTP/1.1\r\nhost: b.test\r\ncontent-length: 0\r\n\r\n".to_owned(),
    ];
    differential(config, |proxy| {
        let ask = |port: &u16| requests.iter().map(|request| status(*port, request)).collect::<Vec<_>>();
        (ports.iter().map(ask).collect::<Vec<_>>(), stats(proxy))
    });
}

#[test]
fn paths_are_decided_as_the_upstream_sees_them() {
    let upstream = Upstream::named("u");
    let options = [
        "",
        "normalize_path: true, merge_slashes: true",
        "normalize_path: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD",
    ];
    let ports = options.map(|_| free_port());
    let deny = filter(&format!("rules: {}", rules("DENY", "{url_path: {path: {prefix: /admin}}}", ANY)));
    let route = "{match: {prefix: /}, route: {cluster: u}}";
    let config = || {
        let listener = |(i, fields): (usize, &&str)| listener(&format!("l{i}"), ports[i], &deny, fields, route);
        let listeners: Vec<_> = options.iter().enumerate().map(listener).collect();
        yaml::bootstrap(&listeners, &[yaml::cluster("u", upstream.port())])
    };
    let paths = [
        "/admin",
        "/admin/x",
        "/ADMIN",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/x/..//admin",
        "/%61dmin",
        "/%2fadmin",
        "/x%2f..%2fadmin",
        "/admin?x",
        "/x?/../admin",
        "/admi%6e",
        "/%5cadmin",
        "/x%5c..%5cadmin",
        "/..%2fadmin",
        "/a;/admin",
        "/admin;x",
        "/%2e/admin",
        "/x/%2e%2e/admin",
        "/%2E%2E/admin",
    ];
    differential(config, |_| {
        let mut all = Vec::new();
        for port in ports {
            for path in paths {
                let status = status(port, &get(path, ""));
                let seen = upstream.take().into_iter().map(|seen| seen.line).collect::<Vec<_>>();
                all.push((path, status, seen));
            }
        }
        all
    });
}

/// Stricter than Envoy on purpose: a rule that denies reads all values of a header together, too, and one that denies all but
/// a value wants each of them to be it.
#[test]
fn a_value_in_two_parts_is_denied() {
    let port = free_port();
    let deny = rules("DENY", "{header: {name: x-a, string_match: {exact: \"v,w\"}}}", ANY);
    let listener = listener("l", port, &filter(&format!("rules: {deny}")), "", DIRECT);
    let proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&[listener], &[]));
    assert_eq!(status(port, &get("/", "x-a: v,w\r\n")), Some(403));
    assert_eq!(status(port, &get("/", "x-a: v\r\nx-a: w\r\n")), Some(403));
    assert_eq!(status(port, &get("/", "x-a: v\r\n")), Some(200));

    let but = rules("DENY", ANY, "{not_id: {header: {name: x-a, string_match: {exact: v}}}}");
    let listener = self::listener("l", port, &filter(&format!("rules: {but}")), "", DIRECT);
    drop(proxy);
    let _proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&[listener], &[]));
    assert_eq!(status(port, &get("/", "x-a: v\r\n")), Some(200));
    assert_eq!(status(port, &get("/", "x-a: w\r\nx-a: v\r\n")), Some(403));
}

fn action(name: &str, action: &str) -> String {
    format!(
        "{{action: {{name: a, typed_config: {{\"@type\": type.googleapis.com/envoy.config.rbac.v3.Action, name: {name}, action: {action}}}}}}}"
    )
}

fn input(name: &str, fields: &str) -> String {
    format!("{{name: i, typed_config: {{\"@type\": type.googleapis.com/envoy.{name}, {fields}}}}}")
}

#[test]
fn trees_end_alike() {
    let header = input("type.matcher.v3.HttpRequestHeaderMatchInput", "header_name: x-a");
    let source = input("extensions.matching.common_inputs.network.v3.SourceIPInput", "");
    let inner = format!(
        "{{matcher: {{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {}, value_match: {{exact: '1'}}}}}}, on_match: {}}}]}}}}}}",
        input("type.matcher.v3.HttpRequestHeaderMatchInput", "header_name: x-b"),
        action("inner", "ALLOW")
    );
    let one = |predicate: &str, on_match: &str| format!("{{predicate: {predicate}, on_match: {on_match}}}");
    let is = |test: &str| format!("{{single_predicate: {{input: {header}, value_match: {{{test}}}}}}}");
    let range = |net: &str, len: u8| format!("{{address_prefix: {net}, prefix_len: {len}}}");
    let trees = [
        format!(
            "{{matcher_list: {{matchers: [{}, {}]}}, on_no_match: {}}}",
            one(&is("prefix: a"), &inner),
            one(&is("exact: ab"), &action("second", "ALLOW")),
            action("none", "DENY")
        ),
        format!(
            "{{matcher_list: {{matchers: [{}]}}}}",
            one(&format!("{{not_matcher: {}}}", is("exact: a")), &action("not", "ALLOW"))
        ),
        format!(
            "{{matcher_tree: {{input: {header}, prefix_match_map: {{map: {{a: {}, ab: {inner}, abc: {}}}}}}}, on_no_match: {}}}",
            action("a", "ALLOW"),
            action("abc", "DENY"),
            action("none", "DENY")
        ),
        format!(
            "{{matcher_tree: {{input: {header}, exact_match_map: {{map: {{a: {inner}, b: {}}}}}}}, on_no_match: {}}}",
            action("b", "DENY"),
            action("none", "LOG")
        ),
        format!(
            "{{matcher_tree: {{input: {source}, custom_match: {{name: ip, typed_config: {{\"@type\": type.googleapis.com/xds.type.matcher.v3.IPMatcher, range_matchers: [\
             {{ranges: [{}], on_match: {}, exclusive: true}}, {{ranges: [{}], on_match: {inner}}}]}}}}}}}}",
            range("127.0.0.0", 8),
            action("wide", "ALLOW"),
            range("127.0.0.1", 32)
        ),
        "{}".to_owned(),
    ];
    let ports = trees.each_ref().map(|_| free_port());
    let config = || {
        let log = format!(
            "access_log: [{}]",
            log(
                "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(envoy.filters.http.rbac)% %DYNAMIC_METADATA(envoy.common)%"
            )
        );
        let listener = |(i, tree): (usize, &String)| {
            listener(
                &format!("l{i}"),
                ports[i],
                &filter(&format!("matcher: {tree}, shadow_matcher: {tree}")),
                &log,
                DIRECT,
            )
        };
        yaml::bootstrap(&trees.iter().enumerate().map(listener).collect::<Vec<_>>(), &[])
    };
    let headers = [
        "",
        "x-a: a\r\n",
        "x-a: ab\r\n",
        "x-a: abc\r\n",
        "x-a: b\r\n",
        "x-a: a\r\nx-b: 1\r\n",
        "x-a: ab\r\nx-b: 1\r\n",
        "x-b: 1\r\n",
    ];
    differential(config, |proxy| {
        let ask = |port: u16| headers.map(|headers| status(port, &get("/", headers)));
        (ports.map(ask), proxy.log_lines(ports.len() * headers.len()))
    });
}

#[test]
fn routes_have_rules_of_their_own_and_logs_tell() {
    let port = free_port();
    let per_route = |name: &str, rbac: &str| {
        format!(
            "{{match: {{prefix: /{name}}}, direct_response: {{status: 200}}, metadata: {{filter_metadata: {{f: {{k: {name}}}}}}}, typed_per_filter_config: {{rbac: \
             {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute, {rbac}}}}}}}"
        )
    };
    let of_route = |value: &str| {
        format!(
            "{{sourced_metadata: {{metadata_source: ROUTE, metadata_matcher: {{filter: f, path: [{{key: k}}], value: {{string_match: {{exact: {value}}}}}}}}}}}"
        )
    };
    let own = format!(
        "rbac: {{rules: {}, rules_stat_prefix: own_, shadow_rules: {}, shadow_rules_stat_prefix: osh_, track_per_rule_stats: true}}",
        rules("DENY", "{header: {name: x-a, present_match: true}}", ANY),
        rules("ALLOW", &of_route("own"), ANY)
    );
    // It says nothing of prefixes.
    let bare = format!("rbac: {{rules: {}}}", rules("DENY", "{header: {name: x-a, present_match: true}}", ANY));
    let routes = [per_route("off", ""), per_route("own", &own), per_route("bare", &bare), DIRECT.to_owned()].join(", ");
    let main = filter(&format!(
        "rules: {{policies: {{\"the main\": {{permissions: [{{header: {{name: x-a, string_match: {{exact: a}}}}}}], principals: [{ANY}]}}}}}}, \
         shadow_rules: {}, rules_stat_prefix: mn_, shadow_rules_stat_prefix: sh_, track_per_rule_stats: true",
        rules("DENY", "{url_path: {path: {prefix: /dry}}}", ANY)
    ));
    let format = "%REQ(:path)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(envoy.filters.http.rbac)%";
    let config =
        || yaml::bootstrap(&[listener("l", port, &main, &format!("access_log: [{}]", log(format)), &routes)], &[]);
    differential(config, |proxy| {
        let requests = ["/off", "/own", "/bare", "/", "/dry"]
            .map(|path| ["", "x-a: a\r\n"].map(|headers| status(port, &get(path, headers))));
        (requests, proxy.log_lines(10), stats(proxy))
    });
}

/// What a client gets that connects from an address and sends something.
fn talk(port: u16, from: [u8; 4], bytes: &[u8]) -> String {
    let socket = socket_from(from, port);
    let mut socket: TcpStream = socket;
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.write_all(bytes).unwrap();
    let mut buffer = [0; 64];
    match socket.read(&mut buffer) {
        Ok(0) | Err(_) => "closed".to_owned(),
        Ok(n) => String::from_utf8_lossy(&buffer[..n]).into_owned(),
    }
}

fn socket_from(from: [u8; 4], port: u16) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let socket = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(([127, 0, 0, 1], port).into()).await.unwrap()
    });
    let socket = socket.into_std().unwrap();
    socket.set_nonblocking(false).unwrap();
    socket
}

#[test]
fn connections_are_closed_alike() {
    let from = |last: u8| format!("{{direct_remote_ip: {{address_prefix: 127.0.0.{last}, prefix_len: 32}}}}");
    let cases = [
        format!("rules: {}, shadow_rules: {}", rules("ALLOW", ANY, &from(2)), rules("DENY", ANY, &from(2))),
        format!("rules: {}, delay_deny: 0.2s", rules("DENY", ANY, &from(3))),
        format!("rules: {}", rules("LOG", ANY, &from(2))),
        "shadow_rules: {}, shadow_rules_stat_prefix: sh_".to_owned(),
        "rules: {}, enforcement_type: CONTINUOUS".to_owned(),
    ];
    let ports = cases.each_ref().map(|_| free_port());
    let config = || {
        let listener = |(i, case): (usize, &String)| {
            let log = log(
                "%CONNECTION_TERMINATION_DETAILS% %DYNAMIC_METADATA(envoy.filters.network.rbac)% %DYNAMIC_METADATA(envoy.common)%",
            );
            format!(
                "{{name: l{i}, address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}, access_log: [{log}], filter_chains: [{{filters: [\
                 {{name: rbac, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: l{i}, {case}}}}}, \
                 {{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: u}}}}]}}]}}",
                ports[i]
            )
        };
        yaml::bootstrap(&cases.iter().enumerate().map(listener).collect::<Vec<_>>(), &[yaml::cluster("u", echo())])
    };
    differential(config, |proxy| {
        let mut seen = Vec::new();
        for (i, port) in ports.into_iter().enumerate() {
            for last in 1..4 {
                seen.push(talk(port, [127, 0, 0, last], b"hi"));
                proxy.log_lines(i * 3 + usize::from(last));
            }
        }
        (seen, proxy.log_lines(15), stats(proxy).into_iter().filter(|line| !line.contains(": 0")).count() > 0)
    });
}

/// A server that says again what it is told, once.
fn echo() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..n]);
                }
            });
        }
    });
    port
}

/// Certificates in files that live as long as the test.
struct Files(PathBuf);

impl Files {
    fn write(&self, name: &str, data: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, data).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The files of a certificate and its key.
    fn identity(&self, name: &str, issued: &Issued) -> (String, String) {
        let chain = issued.chain_pem();
        (self.write(&format!("{name}.pem"), &chain), self.write(&format!("{name}.key"), &issued.key_pem()))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn named(authority: &Authority, common_name: &str, uri: &[&str], dns: &[&str]) -> Issued {
    authority.leaf(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "A, \"B\" Ltd");
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let dns = dns.iter().map(|name| rcgen::SanType::DnsName((*name).try_into().unwrap()));
        params.subject_alt_names = uris(uri).into_iter().chain(dns).collect();
    })
}

#[test]
fn identities_are_decided_by_handed_on_and_logged_alike() {
    if openssl::version().is_none() {
        tools::skipped("there is no openssl");
        return;
    }
    let files = Files(std::env::temp_dir().join(format!("weft-rbac-{}", std::process::id())));
    fs::create_dir_all(&files.0).unwrap();
    let ca = Authority::root("root");
    let ca_file = files.write("ca.pem", &ca.pem);
    let server = files.identity("srv", &named(&ca, "srv", &["spiffe://example.org/srv"], &["srv.test"]));
    let clients = [
        ("one", named(&ca, "one", &["spiffe://example.org/ns/a/sa/one"], &[])),
        ("two", named(&ca, "two", &["spiffe://example.org/ns/a/sa/two"], &["two.test", "*.two.test"])),
        ("cn", named(&ca, "cn", &[], &[])),
    ]
    .map(|(name, issued)| files.identity(name, &issued));
    let name = |test: &str| format!("{{authenticated: {{principal_name: {{{test}}}}}}}");
    let verified = |config: &str| {
        format!(
            "{{custom: {{name: m, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config, {config}}}}}}}"
        )
    };
    let ssl = |kind: &str, value: &str| {
        format!(
            "{{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {}, value_match: {{exact: '{value}'}}}}}}, on_match: {}}}]}}}}",
            input(&format!("extensions.matching.common_inputs.ssl.v3.{kind}"), ""),
            action("a", "ALLOW")
        )
    };
    let mut cases: Vec<String> = [
        "{authenticated: {}}".to_owned(),
        name("exact: \"spiffe://example.org/ns/a/sa/one\""),
        name("exact: \"spiffe://example.org/ns/a/sa/on\""),
        name("exact: \"spiffe://example.org/ns/./sa/one\""),
        name("suffix: /sa/one"),
        name("prefix: \"spiffe://example.org/ns/a/\""),
        name("safe_regex: {regex: \".*/sa/t\"}"),
        name("exact: two.test"),
        name("exact: x.two.test"),
        name("exact: 'CN=cn,O=A\\, \\\"B\\\" Ltd'"),
        name("contains: \"CN=one\""),
        verified("any_validated_client_certificate: true"),
        verified("san_matcher: {san_type: URI, matcher: {exact: \"spiffe://example.org/ns/a/sa/two\"}}"),
        verified("san_matcher: {san_type: DNS, matcher: {exact: x.two.test}}"),
        "{not_id: {authenticated: {principal_name: {exact: \"spiffe://example.org/ns/a/sa/one\"}}}}".to_owned(),
    ]
    .iter()
    .map(|principal| format!("rules: {}", rules("ALLOW", ANY, principal)))
    .collect();
    cases.push(format!("matcher: {}", ssl("UriSanInput", "spiffe://example.org/ns/a/sa/one")));
    cases.push(format!("matcher: {}", ssl("DnsSanInput", "two.test,*.two.test")));
    let upstream = Upstream::named("u");
    let ports: Vec<_> = cases.iter().map(|_| free_port()).collect();
    let config = || {
        let socket = format!(
            "{{name: tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
             common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}], \
             validation_context: {{trusted_ca: {{filename: {ca_file}}}}}}}}}}}",
            server.0, server.1
        );
        let format = "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_PEER_SUBJECT% %DOWNSTREAM_PEER_ISSUER% %DOWNSTREAM_PEER_SERIAL% \
                      %DOWNSTREAM_PEER_FINGERPRINT_256% %DOWNSTREAM_PEER_FINGERPRINT_1% %DOWNSTREAM_PEER_CERT_V_START% %DOWNSTREAM_PEER_CERT_V_END(%s)% \
                      %DOWNSTREAM_PEER_CERT% %DOWNSTREAM_PEER_CHAIN_SERIALS% %DOWNSTREAM_LOCAL_URI_SAN% %DOWNSTREAM_LOCAL_SUBJECT% %DOWNSTREAM_TLS_VERSION% \
                      %DOWNSTREAM_TLS_CIPHER% %REQUESTED_SERVER_NAME% %REQUESTED_SERVER_NAME(HOST_FIRST)%";
        let listener = |(i, case): (usize, &String)| {
            let fields = format!(
                "forward_client_cert_details: {}, set_current_client_cert_details: {{subject: true, uri: true, dns: {}, cert: true, chain: true, issuer: {}}}, access_log: [{}]",
                ["SANITIZE_SET", "APPEND_FORWARD", "FORWARD_ONLY", "SANITIZE"][i % 4],
                i % 2 == 0,
                i % 3 == 0,
                log(format)
            );
            let route = "{match: {prefix: /}, route: {cluster: u}}";
            listener(&format!("l{i}"), ports[i], &filter(case), &fields, route).replacen(
                "filter_chains: [{",
                &format!("filter_chains: [{{transport_socket: {socket}, "),
                1,
            )
        };
        let listeners: Vec<_> = cases.iter().enumerate().map(listener).collect();
        yaml::bootstrap(&listeners, &[yaml::cluster("u", upstream.port())])
    };
    differential(config, |proxy| {
        let mut seen = Vec::new();
        for (i, port) in ports.iter().enumerate() {
            // Without a certificate there is little to tell apart.
            for client in clients.iter().map(Some).chain((i < 2).then_some(None)) {
                let mut arguments = vec!["-tls1_3", "-servername", "srv.test"];
                arguments.extend(client.into_iter().flat_map(|(chain, key)| ["-cert", chain, "-key", key]));
                let status = s_client(*port, &arguments).expect("openssl runs").status;
                let told =
                    upstream.take().into_iter().map(|seen| seen.header("x-forwarded-client-cert").map(str::to_owned));
                seen.push((status, told.collect::<Vec<_>>()));
            }
        }
        (seen, proxy.log_lines(ports.len() * clients.len() + 2))
    });
}
