//! Listeners of Weft and of Envoy: which chain a connection gets, what listener filters make of first bytes, limits.

use std::time::Duration;
use weft_tests::{
    Client, Kind, Proxy, Upstream, differential, free_port,
    hello::{Hello, extension, protocols, records, server_names, vector},
    http, yaml,
};

/// A chain that says its name to whoever is matched.
fn chain(name: &str, matching: &str) -> String {
    format!(
        "{{name: \"{name}\", filter_chain_match: {{{matching}}}, filters: [{{name: say, typed_config: {{\"@type\": type.\
         googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config, response: {{inline_string: \
         \"{name}\"}}}}}}]}}"
    )
}

fn filter(name: &str, message: &str, fields: &str) -> String {
    format!(
        "{{name: envoy.filters.listener.{name}, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.listener.{name}.v3.{message}, {fields}}}}}"
    )
}

fn listener(port: u16, fields: &str, filters: &[String], chains: &[String]) -> String {
    format!(
        "{{name: l, stat_prefix: l, {fields} address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, \
         listener_filters: [{}], filter_chains: [{}]}}",
        filters.join(", "),
        chains.join(", ")
    )
}

/// What a client gets that sends these bytes.
fn answer(port: u16, bytes: impl AsRef<[u8]>) -> String {
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    client.send(bytes);
    String::from_utf8_lossy(&client.rest()).into_owned()
}

#[test]
fn the_same_chain_is_chosen() {
    let port = free_port();
    let chains = [
        chain("port", "destination_port: 443"),
        chain("net", "prefix_ranges: [{address_prefix: 10.1.0.0, prefix_len: 16}]"),
        chain("narrow", "prefix_ranges: [{address_prefix: 10.1.2.0, prefix_len: 24}]"),
        chain("source", "source_prefix_ranges: [{address_prefix: 10.9.0.0, prefix_len: 16}]"),
        chain("sport", "source_prefix_ranges: [{address_prefix: 10.9.0.0, prefix_len: 16}], source_ports: [7]"),
        chain("same", "source_type: SAME_IP_OR_LOOPBACK"),
        chain("direct", "direct_source_prefix_ranges: [{address_prefix: 127.0.0.2, prefix_len: 32}]"),
    ];
    let filters = [filter("proxy_protocol", "ProxyProtocol", "")];
    let config = || yaml::bootstrap(&[listener(port, "", &filters, &chains)], &[]);
    let headers = [
        "10.9.1.1 10.1.2.3 7 443",
        "10.9.1.1 10.1.2.3 7 80",
        "10.9.1.1 10.1.3.3 7 80",
        "10.9.1.1 10.2.0.1 7 80",
        "10.9.1.1 10.2.0.1 8 80",
        "10.2.0.1 10.2.0.1 8 80",
        "10.3.0.1 10.2.0.1 8 80",
    ];
    differential(config, |proxy| {
        let chosen = headers.map(|header| answer(port, format!("PROXY TCP4 {header}\r\n")));
        (chosen, proxy.stat("listener.l.no_filter_chain_match"))
    });
}

#[test]
fn proxy_headers_good_and_bad() {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let v2 = |command: u8, family: u8, body: &[u8]| {
        [SIGNATURE, &[0x20 | command, family], &(body.len() as u16).to_be_bytes(), body].concat()
    };
    let ips = [10, 9, 8, 7, 10, 1, 1, 1, 4, 210, 1, 187];
    let mut inputs: Vec<Vec<u8>> = [
        "PROXY TCP4 10.9.8.7 10.1.1.1 1234 443\r\n",
        "PROXY TCP6 2001:db8::1 2001:db8::2 1234 443\r\n",
        "PROXY UNKNOWN\r\n",
        "PROXY TCP4 10.9.8.777 10.1.1.1 1 2\r\n",
        "PROXY TCP4 10.9.8.7 10.1.1.1 70000 443\r\n",
        "PROXY UDP4 10.9.8.7 10.1.1.1 1 2\r\n",
        "PROXY  TCP4 10.9.8.7 10.1.1.1 1 2\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "short\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    inputs.push([&b"PROXY TCP4 "[..], &[b'1'; 200], b"\r\n"].concat());
    inputs.extend([v2(1, 0x11, &ips), v2(0, 0, b""), v2(1, 0x11, &ips[..8]), v2(2, 0x11, &ips), v2(1, 0, b"")]);
    inputs.extend([v2(1, 0x31, &[0; 216]), v2(1, 0x11, &[&ips[..], &[0xea, 0, 9, 1]].concat())]);
    for fields in ["", "allow_requests_without_proxy_protocol: true", "disallowed_versions: [V1]"] {
        let port = free_port();
        let filters = [filter("proxy_protocol", "ProxyProtocol", fields)];
        let chains = [chain("far", "destination_port: 443"), chain("other", "")];
        let config = || yaml::bootstrap(&[listener(port, "", &filters, &chains)], &[]);
        differential(config, |proxy| {
            let answers: Vec<_> = inputs.iter().map(|bytes| answer(port, bytes)).collect();
            let stats = ["v1.found", "v1.error", "v1.disallowed", "v2.found", "v2.error", "v2.disallowed"]
                .map(|name| proxy.stat(&format!("proxy_proto.versions.{name}")));
            let absent =
                ["not_found_allowed", "not_found_disallowed"].map(|name| proxy.stat(&format!("proxy_proto.{name}")));
            (answers, stats, absent, proxy.stat("downstream_cx_proxy_proto_error"))
        });
    }
}

#[test]
fn http_is_told_from_its_first_line() {
    let port = free_port();
    let filters = [filter("http_inspector", "HttpInspector", "")];
    let protocols = ["http/1.0", "http/1.1", "h2c"];
    let mut chains: Vec<_> =
        protocols.iter().map(|name| chain(name, &format!("application_protocols: [\"{name}\"]"))).collect();
    chains.push(chain("none", ""));
    let config = || yaml::bootstrap(&[listener(port, "", &filters, &chains)], &[]);
    differential(config, |_| {
        [
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.0\n",
            "GET / HTTP/3.0\r\n",
            "GET /\r\n",
            "GET / HTTP/1.11\r\n",
            "GET a HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "SSH-2.0-x\r\n",
            "\0",
        ]
        .map(|line| answer(port, line))
    });
}

/// Hellos, and the records that they may come in, that one reader may take for another thing than the next.
fn odd_hellos() -> Vec<(&'static str, Vec<u8>)> {
    let with = |extensions: &[u8]| Hello::with(extensions).records();
    let name = server_names(&[b"a.test"]);
    let named = Hello::with(&name);
    let message = Hello::with(&[name.clone(), protocols(&[b"h2"])].concat()).message();
    let whole = records(22, &message, 1 << 14);
    let alert = |level: u8, alert: u8| records(21, &[level, alert], 2);
    let empty = records(22, &[], 1);
    let version = |major, minor| Hello { version: [major, minor], ..named.clone() }.records();
    let encrypted = |content: &[u8]| with(&[&name[..], &extension(0xfe0d, content)].concat());
    let old = |minor: u8, kind: u8| {
        let suites = [kind, 0, 0x2f].repeat(3);
        let hello = [&[1, 3, minor, 0, 9, 0, 0, 0, 16][..], &suites, &[7; 16]].concat();
        [&[0x80, hello.len() as u8][..], &hello].concat()
    };
    vec![
        ("a name", with(&name)),
        ("in capitals", with(&server_names(&[b"X.B.Test"]))),
        ("two names", with(&server_names(&[b"a.test", b"x.b.test"]))),
        ("two extensions of names", with(&[name.clone(), server_names(&[b"x.b.test"])].concat())),
        ("no name", with(&server_names(&[]))),
        ("an empty name", with(&server_names(&[b""]))),
        ("a name of another kind", with(&extension(0, &vector(2, &[&[1][..], &vector(2, b"a.test")].concat())))),
        ("more after the names", with(&extension(0, &[&vector(2, &name[6..]), &b"x"[..]].concat()))),
        ("no text", with(&server_names(&[b"\xff.b.test"]))),
        ("no text at the end", with(&server_names(&[b"a.test\xff"]))),
        ("a zero", with(&server_names(&[b"a.test\0.b.test"]))),
        ("a dot first", with(&server_names(&[b".b.test"]))),
        ("a dot first, exact", with(&server_names(&[b".a.test"]))),
        ("a star", with(&server_names(&[b"*.b.test"]))),
        ("255 bytes", with(&server_names(&[&[b'a'; 255]]))),
        ("256 bytes", with(&server_names(&[&[b'a'; 256]]))),
        ("a long session", Hello { session: vec![1; 33], ..named.clone() }.records()),
        ("no suites", Hello { suites: vec![], ..named.clone() }.records()),
        ("odd suites", Hello { suites: vec![0xc0, 0x2b, 0xc0], ..named.clone() }.records()),
        ("no compression", Hello { compressions: vec![], ..named.clone() }.records()),
        ("more after the extensions", Hello { rest: vec![0], ..named.clone() }.records()),
        ("an unknown extension twice", with(&[&name[..], &extension(9999, &[]).repeat(2)].concat())),
        ("SSL 3", version(3, 0)),
        ("TLS 1.0", version(3, 1)),
        ("TLS 1.3 where no hello says it", version(3, 4)),
        ("TLS 1.4", version(3, 5)),
        ("a version of another protocol", version(4, 0)),
        ("an encrypted hello", encrypted(&[0, 0, 1, 0, 1, 7, 0, 0, 0, 0])),
        ("an empty encrypted hello", encrypted(&[])),
        ("a short encrypted hello", encrypted(&[0, 0])),
        ("protocols", with(&[&name[..], &protocols(&[b"h2"])].concat())),
        ("an empty protocol", with(&[&name[..], &protocols(&[b"", b"h2"])].concat())),
        ("no protocols", with(&[&name[..], &protocols(&[])].concat())),
        ("protocols of no length", with(&[&name[..], &extension(16, &[])].concat())),
        ("more after the protocols", with(&[&name[..], &extension(16, &[0, 3, 2, b'h', b'2', 0])].concat())),
        ("in pieces", records(22, &message, 7)),
        ("an empty record first", [&empty[..], &whole].concat()),
        ("32 empty records", [&empty.repeat(32)[..], &whole].concat()),
        ("33 empty records", [&empty.repeat(33)[..], &whole].concat()),
        ("two hellos", whole.repeat(2)),
        ("two hellos in one record", records(22, &message.repeat(2), 1 << 14)),
        ("more in the record", records(22, &[&message[..], &[1]].concat(), 1 << 14)),
        ("another message", records(22, &[2, 0, 0, 1, 0], 9)),
        ("an endless message", records(22, &[1, 0xff, 0xff, 0xff, 0], 9)),
        ("a record too long", [&[22, 3, 1, 0x41, 0x41][..], &message].concat()),
        ("a warning first", [&alert(1, 90)[..], &whole].concat()),
        ("five warnings", [&alert(1, 90).repeat(5)[..], &whole].concat()),
        ("a fatal alert", [&alert(2, 40)[..], &whole].concat()),
        ("a goodbye", [&alert(1, 0)[..], &whole].concat()),
        ("another record between", [&records(22, &message[..20], 20)[..], &records(20, &[1], 1), &whole].concat()),
        ("as long as may be", with(&[&extension(30_000, &[b'z'; 16_000])[..], &name].concat())),
        ("too long", with(&[&extension(30_000, &[b'z'; 17_000])[..], &name].concat())),
        ("much too long", with(&extension(30_000, &[b'z'; 65_000]))),
        ("SSL 2", old(3, 0)),
        ("SSL 2, of SSL 3", old(0, 0)),
        ("SSL 2, of its own suites", old(3, 1)),
    ]
}

#[test]
fn odd_hellos_choose_the_same_chains() {
    let refuse = "close_connection_on_client_hello_parsing_errors: true,";
    for options in ["", "max_client_hello_size: 256,", refuse] {
        let port = free_port();
        let filters = [filter("tls_inspector", "TlsInspector", options)];
        let chains = [
            chain("a", "server_names: [a.test]"),
            chain("b", "server_names: [\"*.b.test\"]"),
            chain("test", "server_names: [\"*.test\"]"),
            chain("a h2", "server_names: [a.test], application_protocols: [h2]"),
            chain("tls", "transport_protocol: tls"),
            chain("raw", "transport_protocol: raw_buffer"),
        ];
        let config = || yaml::bootstrap(&[listener(port, "", &filters, &chains)], &[]);
        differential(config, |proxy| {
            let names = [
                "tls_found",
                "tls_not_found",
                "sni_found",
                "sni_not_found",
                "alpn_found",
                "alpn_not_found",
                "client_hello_too_large",
            ];
            let seen = |(what, hello)| {
                (what, answer(port, hello), names.map(|name| proxy.stat(&format!("tls_inspector.{name}"))))
            };
            odd_hellos().into_iter().map(seen).collect::<Vec<_>>()
        });
    }
}

/// A hello that comes byte by byte is looked at once, whatever its length.
#[test]
fn a_slow_hello_is_found() {
    let port = free_port();
    let filters = [filter("tls_inspector", "TlsInspector", "")];
    let chains = [chain("a", "server_names: [a.test]"), chain("other", "")];
    let config = || yaml::bootstrap(&[listener(port, "", &filters, &chains)], &[]);
    differential(config, |_| {
        let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
        for byte in Hello::with(&server_names(&[b"a.test"])).records() {
            client.send([byte]);
        }
        String::from_utf8_lossy(&client.rest()).into_owned()
    });
}

#[test]
fn first_bytes_that_never_come() {
    for go_on in [false, true] {
        let port = free_port();
        let filters = [filter("tls_inspector", "TlsInspector", "")];
        let fields = format!("listener_filters_timeout: 0.3s, continue_on_listener_filters_timeout: {go_on},");
        let config = || yaml::bootstrap(&[listener(port, &fields, &filters, &[chain("x", "")])], &[]);
        differential(config, |proxy| (answer(port, ""), proxy.stat("listener.l.downstream_pre_cx_timeout")));
    }
}

#[test]
fn connections_over_a_limit_are_closed() {
    let inspector = [filter("http_inspector", "HttpInspector", "")];
    let runtime = |key: &str| format!("layered_runtime: {{layers: [{{name: a, static_layer: {{{key}: 1}}}}]}}\n");
    let overload = "overload_manager: {resource_monitors: [{name: envoy.resource_monitors.global_downstream_max_connections, typed_config: {\"@type\": type.googleapis.com/envoy.\
                    extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, \
                    max_active_downstream_connections: 1}}]}\n";
    for more in [runtime("envoy.resource_limits.listener.l.connection_limit"), overload.to_owned()] {
        let port = free_port();
        let config = || more.clone() + &yaml::bootstrap(&[listener(port, "", &inspector, &[chain("x", "")])], &[]);
        differential(config, |proxy| {
            let first = Client::connect(("127.0.0.1", port)).expect("it listens");
            proxy.wait_for_stat("listener.l.downstream_pre_cx_active", 1);
            let second = answer(port, "GET /\r\n");
            drop(first);
            proxy.wait_for_stat("listener.l.downstream_pre_cx_active", 0);
            std::thread::sleep(Duration::from_millis(50));
            let third = answer(port, "GET /\r\n");
            let stats = ["downstream_cx_overflow", "downstream_global_cx_overflow"];
            (second, third, stats.map(|name| proxy.stat(&format!("listener.l.{name}"))))
        });
    }
}

#[test]
fn an_internal_listener_takes_what_a_cluster_sends() {
    let upstream = Upstream::named("inside");
    let port = free_port();
    let tcp = |fields: &str, cluster: &str| {
        format!(
            "{{{fields}, filter_chains: [{{filters: [{{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.\
             extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {cluster}}}}}]}}]}}"
        )
    };
    let address = format!("name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    let listeners = [tcp(&address, "inner"), tcp("name: inner, internal_listener: {}", "u")];
    let cluster = "{name: inner, load_assignment: {cluster_name: inner, endpoints: [{lb_endpoints: [{endpoint: {address: \
                   {envoy_internal_address: {server_listener_name: inner}}}}]}]}}";
    let extension = "bootstrap_extensions: [{name: envoy.bootstrap.internal_listener, typed_config: {\"@type\": type.\
                     googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener}}]\n";
    let clusters = [cluster.to_owned(), yaml::cluster("u", upstream.port())];
    let config = || extension.to_owned() + &yaml::bootstrap(&listeners, &clusters);
    differential(config, |proxy| {
        let said = http::at(port, "/").map(|response| response.text());
        (said, proxy.stat("listener.envoy_internal_inner.downstream_cx_total"))
    });
}

/// Few connections that stay long are what the kernel's own balance fails at.
#[test]
fn exact_balance_gives_each_worker_as_many_connections() {
    let port = free_port();
    let listener = yaml::http_listener("l", port, "", "{name: v, domains: [\"*\"], routes: []}").replacen(
        '{',
        "{connection_balance_config: {exact_balance: {}}, ",
        1,
    );
    let proxy = Proxy::start_with(&Kind::Weft, &yaml::bootstrap(&[listener], &[]), &["--concurrency", "2"]);
    let open = || {
        let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        let hello = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        std::io::Write::write_all(&mut client, &hello).expect("it is taken");
        client
    };
    let wait = |connections: [u64; 2]| {
        for (worker, count) in connections.into_iter().enumerate() {
            proxy.wait_for_stat(&format!("listener.127.0.0.1_{port}.worker_{worker}.downstream_cx_active"), count);
        }
    };
    let mut clients: Vec<_> = (0..8).map(|_| open()).collect();
    wait([4, 4]);
    clients.truncate(3);
    proxy.wait_for_stat(&format!("listener.127.0.0.1_{port}.downstream_cx_active"), 3);
    clients.extend((0..7).map(|_| open()));
    wait([5, 5]);
    assert_eq!(proxy.stat("http.http.downstream_cx_http2_active"), Some(10));
}
