//! TLS of Weft and of Envoy, seen by OpenSSL: versions, suites, ALPN, certificates, clients' certificates, sessions, and what
//! is said to those who speak no TLS.

use std::{fs, path::PathBuf};
use weft_tests::{
    Client, Kind, Proxy, Upstream,
    certificate_matrix::{Authority, Issued, uris},
    differential, free_port, http,
    openssl::{self, Handshake, s_client},
    tools, yaml,
};

/// Certificates in files that live as long as the test.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("weft-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn write(&self, name: &str, data: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, data).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A certificate with its key, as a context names them: `(YAML, certificate file, key file)`.
    fn identity(&self, name: &str, issued: &Issued) -> (String, String, String) {
        let chain = issued.chain_pem();
        let chain = self.write(&format!("{name}.pem"), chain);
        let key = self.write(&format!("{name}.key"), issued.key_pem());
        (format!("{{certificate_chain: {{filename: {chain}}}, private_key: {{filename: {key}}}}}"), chain, key)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn named(authority: &Authority, common_name: &str, dns: &[&str]) -> Issued {
    authority.leaf(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let names = dns.iter().map(|name| rcgen::SanType::DnsName((*name).try_into().unwrap()));
        params.subject_alt_names = names.collect();
    })
}

const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// A transport socket towards clients; `common` goes into its common context, `fields` beside that.
fn downstream(common: &str, fields: &str) -> String {
    format!(
        "{{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, common_tls_context: {{{common}}}, {fields}}}}}"
    )
}

fn upstream(common: &str, fields: &str) -> String {
    format!(
        "{{name: tls, typed_config: {{\"@type\": {TYPE}.UpstreamTlsContext, common_tls_context: {{{common}}}, {fields}}}}}"
    )
}

/// A listener that answers 200 over TLS.
fn listener(name: &str, port: u16, socket: &str) -> String {
    let hosts = "{name: all, domains: [\"*\"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}";
    secured(&yaml::http_listener(name, port, "", hosts), name, socket)
}

fn secured(listener: &str, name: &str, socket: &str) -> String {
    let with = listener.replacen("filter_chains: [{", &format!("filter_chains: [{{transport_socket: {socket}, "), 1);
    with.replacen(&format!("{{name: {name},"), &format!("{{name: {name}, stat_prefix: {name},"), 1)
}

fn status(port: u16) -> Option<u16> {
    http::at(port, "/").map(|response| response.status)
}

/// True if OpenSSL is there.
fn has_openssl() -> bool {
    let there = openssl::version().is_some();
    if !there {
        tools::skipped("there is no openssl");
    }
    there
}

fn ask(port: u16, arguments: &[&str]) -> Handshake {
    s_client(port, arguments).expect("openssl runs")
}

#[test]
fn versions_suites_and_protocols_are_agreed_on_alike() {
    if !has_openssl() {
        return;
    }
    let files = Files::new("versions");
    let ca = Authority::root("root");
    let (identity, ..) = files.identity("srv", &named(&ca, "srv", &["a.test"]));
    let ports: [u16; 4] = std::array::from_fn(|_| free_port());
    let certificates = format!("tls_certificates: [{identity}]");
    let params = |text: &str| format!("{certificates}, tls_params: {{{text}}}");
    let contexts = [
        downstream(&format!("{certificates}, alpn_protocols: [h2, http/1.1]"), ""),
        downstream(
            &params(
                "tls_maximum_protocol_version: TLSv1_2, cipher_suites: [ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-ECDSA-CHACHA20-POLY1305]",
            ),
            "",
        ),
        downstream(&params("tls_minimum_protocol_version: TLSv1_3, ecdh_curves: [P-256]"), ""),
        downstream(&format!("{certificates}, alpn_protocols: [http/1.1]"), "prefer_client_ciphers: true"),
    ];
    let listeners: Vec<_> = contexts
        .iter()
        .zip(ports)
        .enumerate()
        .map(|(i, (socket, port))| listener(&format!("l{i}"), port, socket))
        .collect();
    let clients: [&[&str]; 10] = [
        &[],
        &["-tls1_2"],
        &["-tls1_3"],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        &["-alpn", "http/1.1,h2"],
        &["-alpn", "other"],
        &["-alpn", "other,http/1.1"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        &["-tls1_3", "-groups", "X25519"],
    ];
    differential(
        || yaml::bootstrap(&listeners, &[]),
        |proxy| {
            let seen: Vec<_> = ports
                .iter()
                .flat_map(|port| clients.iter().map(move |arguments| (*port, *arguments)))
                // Speaking HTTP/1.1 where HTTP/2 was agreed on shows nothing.
                .map(|(port, arguments)| Handshake { status: None, ..ask(port, arguments) })
                .collect();
            let stats = ["handshake", "connection_error", "no_certificate", "versions.TLSv1.2", "versions.TLSv1.3"];
            let stats: Vec<_> = (0..ports.len())
                .flat_map(|i| stats.map(|name| proxy.stat(&format!("listener.l{i}.ssl.{name}"))))
                .collect();
            (seen, stats)
        },
    );
}

#[test]
fn certificates_are_chosen_by_name_and_kind_alike() {
    if !has_openssl() {
        return;
    }
    let files = Files::new("choice");
    let ca = Authority::root("root");
    let names: [(&str, &[&str]); 4] =
        [("first", &["first.test"]), ("exact", &["a.test"]), ("wild", &["*.w.test"]), ("common.test", &[])];
    let identities: Vec<_> = names.iter().map(|(name, dns)| files.identity(name, &named(&ca, name, dns)).0).collect();
    let certificates = format!("tls_certificates: [{}]", identities.join(", "));
    let (port, scanned) = (free_port(), free_port());
    let listeners = [
        listener("l", port, &downstream(&certificates, "")),
        listener("s", scanned, &downstream(&certificates, "full_scan_certs_on_sni_mismatch: true")),
    ];
    let asked = ["a.test", "x.w.test", "y.x.w.test", "w.test", "common.test", "other.test"];
    differential(
        || yaml::bootstrap(&listeners, &[]),
        |_| {
            let with = |port| asked.map(|name| ask(port, &["-servername", name]).subject);
            (with(port), with(scanned), ask(port, &["-noservername"]).subject)
        },
    );
}

/// What a listener makes of clients' certificates.
struct Clients {
    files: Files,
    ca: Authority,
    port: u16,
    listener: String,
}

impl Clients {
    /// With `fields` in the validation context beside the authority.
    fn new(name: &str, fields: &str) -> Self {
        let files = Files::new(name);
        let ca = Authority::root("root");
        let trusted = files.write("ca.pem", &ca.pem);
        let (identity, ..) = files.identity("srv", &named(&ca, "srv", &["a.test"]));
        let common = format!(
            "tls_certificates: [{identity}], validation_context: {{trusted_ca: {{filename: {trusted}}}, {fields}}}"
        );
        let port = free_port();
        let listener = listener("l", port, &downstream(&common, "require_client_certificate: true"));
        Self { files, ca, port, listener }
    }

    fn ask(&self, client: Option<&(String, String, String)>, more: &[&str]) -> Handshake {
        let identity = client.map(|(_, chain, key)| ["-cert", chain, "-cert_chain", chain, "-key", key]);
        let arguments: Vec<&str> = identity.into_iter().flatten().chain(more.iter().copied()).collect();
        ask(self.port, &arguments)
    }
}

#[test]
fn clients_are_verified_and_told_why_not_alike() {
    if !has_openssl() {
        return;
    }
    let test = Clients::new("clients", "");
    let other = Authority::root("other");
    let expired = test.ca.leaf(|params| params.not_after = params.not_before + std::time::Duration::from_secs(60));
    let identities = [
        test.files.identity("good", &test.ca.leaf(|_| ())),
        test.files.identity("below", &test.ca.below("below", |_| ()).leaf(|_| ())),
        test.files.identity("other", &other.leaf(|_| ())),
        test.files.identity("expired", &expired),
        test.files.identity("server", &test.ca.leaf(|p| p.extended_key_usages.truncate(0))),
    ];
    differential(
        || yaml::bootstrap(std::slice::from_ref(&test.listener), &[]),
        |proxy| {
            let mut seen = Vec::new();
            for version in ["-tls1_2", "-tls1_3"] {
                seen.push(test.ask(None, &[version]));
                seen.extend(identities.iter().map(|identity| test.ask(Some(identity), &[version])));
            }
            let stats =
                ["handshake", "fail_verify_no_cert", "fail_verify_error", "fail_verify_san", "connection_error"];
            (seen, stats.map(|name| proxy.stat(&format!("listener.l.ssl.{name}"))))
        },
    );
}

#[test]
fn who_must_present_a_certificate_is_as_with_envoy() {
    let files = Files::new("demands");
    let ca = Authority::root("root");
    let (identity, chain, key) = files.identity("srv", &named(&ca, "srv", &["a.test"]));
    let trusted = files.write("ca.pem", &ca.pem);
    let ca = format!("trusted_ca: {{filename: {trusted}}}");
    let san = "match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: a.test}}]";
    let pin = format!("verify_certificate_hash: [\"{}\"]", "ab".repeat(32));
    let key_pin = "verify_certificate_spki: [\"NvqYIYSbgK2vCJpQhObf77vv+bQWtc5ek5RIOwPiC9A=\"]";
    let untrusted = "trust_chain_verification: ACCEPT_UNTRUSTED";
    let spiffe = format!(
        "custom_validator_config: {{name: envoy.tls.cert_validator.spiffe, typed_config: {{\"@type\": \
         {TYPE}.SPIFFECertValidatorConfig, trust_domains: [{{name: example.org, trust_bundle: {{filename: {trusted}}}}}]}}}}"
    );
    let contexts = [
        ca.clone(),
        format!("{ca}, {san}"),
        pin.clone(),
        key_pin.to_owned(),
        format!("{ca}, {untrusted}"),
        format!("{ca}, {san}, {untrusted}"),
        format!("{pin}, {untrusted}"),
        untrusted.to_owned(),
        String::new(),
        spiffe.clone(),
        format!("{spiffe}, {untrusted}"),
    ];
    let contexts: Vec<_> =
        contexts.iter().flat_map(|c| ["", "require_client_certificate: false"].map(|r| (c, r))).collect();
    let ports: Vec<_> = contexts.iter().map(|_| free_port()).collect();
    let listeners: Vec<_> = contexts
        .iter()
        .zip(&ports)
        .map(|((context, require), port)| {
            let common = format!("tls_certificates: [{identity}], validation_context: {{{context}}}");
            listener("l", *port, &downstream(&common, require)).replacen("name: l,", &format!("name: l{port},"), 1)
        })
        .collect();
    let observe = |_: &Proxy| {
        let with = ["-cert", &chain, "-key", &key];
        let statuses = |port: &u16| [ask(*port, &[]).status, ask(*port, &with).status];
        contexts.iter().zip(&ports).map(|(context, port)| (*context, statuses(port))).collect::<Vec<_>>()
    };
    if has_openssl() {
        differential(|| yaml::bootstrap(&listeners, &[]), observe);
    }
}

#[test]
fn a_certificate_that_is_required_must_be_verified_by_something() {
    let files = Files::new("nothing");
    let (identity, ..) = files.identity("srv", &named(&Authority::root("root"), "srv", &["a.test"]));
    for context in ["", ", validation_context: {}", ", validation_context: {max_verify_depth: 2}"] {
        let common = format!("tls_certificates: [{identity}]{context}");
        let socket = downstream(&common, "require_client_certificate: true");
        let output = std::process::Command::new(tools::binary("weft"))
            .args([
                "--mode",
                "validate",
                "--config-yaml",
                &yaml::bootstrap(&[listener("l", free_port(), &socket)], &[]),
            ])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("nothing is said to verify it by"), "{said}");
    }
}

/// A host's name is demanded (`auto_san_validation`): who vouches for it must be known, whatever the validator.
#[test]
fn hosts_are_known_by_their_names_as_with_envoy() {
    let files = Files::new("hosts");
    let ca = Authority::root("root");
    let trusted = files.write("ca.pem", &ca.pem);
    let both = |ca: &Authority| {
        ca.leaf(|params| {
            params.subject_alt_names = uris(&["spiffe://example.org/app"]);
            params.subject_alt_names.push(rcgen::SanType::DnsName("a.test".try_into().unwrap()));
        })
    };
    let (good, forged) = (both(&ca), both(&Authority::root("forged")));
    let ca = format!("trusted_ca: {{filename: {trusted}}}");
    let spiffe = format!(
        "custom_validator_config: {{name: envoy.tls.cert_validator.spiffe, typed_config: {{\"@type\": \
         {TYPE}.SPIFFECertValidatorConfig, trust_domains: [{{name: example.org, trust_bundle: {{filename: {trusted}}}}}]}}}}"
    );
    let contexts = [
        "".to_owned(),
        "validation_context: {}".to_owned(),
        format!("validation_context: {{{ca}}}"),
        format!("validation_context: {{{spiffe}}}"),
    ];
    let servers = [free_port(), free_port()];
    let (mut listeners, mut clusters, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for (name, (port, issued)) in ["good", "forged"].iter().zip(servers.iter().zip([&good, &forged])) {
        let (identity, ..) = files.identity(name, issued);
        listeners.push(listener(name, *port, &downstream(&format!("tls_certificates: [{identity}]"), "")));
        for (n, context) in contexts.iter().enumerate() {
            let (cluster, port_in) = (format!("{name}{n}"), free_port());
            let options = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
                           type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
                           {http_protocol_options: {}}, upstream_http_protocol_options: {auto_sni: true, auto_san_validation: \
                           true}}}";
            let socket = upstream(context, "");
            clusters.push(yaml::cluster(&cluster, *port).replacen(
                '{',
                &format!("{{transport_socket: {socket}, {options}, "),
                1,
            ));
            let hosts = format!(
                "{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}"
            );
            listeners.push(yaml::http_listener(&format!("to_{cluster}"), port_in, "", &hosts));
            ports.push((cluster, port_in));
        }
    }
    let observe = |_: &Proxy| {
        let ask = |port: u16, host: &str| {
            let mut client = Client::connect(("127.0.0.1", port))?;
            client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
            client.response().map(|response| response.status)
        };
        let all =
            ports.iter().map(|(cluster, port)| (cluster.clone(), ["a.test", "b.test"].map(|host| ask(*port, host))));
        all.collect::<Vec<_>>()
    };
    differential(|| yaml::bootstrap(&listeners, &clusters), observe);
}

#[test]
fn sessions_are_resumed_where_trust_is_the_same() {
    if !has_openssl() {
        return;
    }
    let test = Clients::new("sessions", "");
    let good = test.files.identity("good", &test.ca.leaf(|_| ()));
    let session = test.files.0.join("session").to_str().unwrap().to_owned();
    // The same keys for tickets, another authority.
    let keys = test.files.write("keys", [7; 80]);
    let other = Authority::root("other");
    let others = test.files.write("others.pem", format!("{}{}", test.ca.pem, other.pem));
    let shared = format!("session_ticket_keys: {{keys: [{{filename: {keys}}}]}}, require_client_certificate: true");
    let (identity, ..) = test.files.identity("shared", &named(&test.ca, "srv", &["a.test"]));
    let context = |trusted: &str| {
        let trusted = format!("validation_context: {{trusted_ca: {{filename: {trusted}}}}}");
        downstream(&format!("tls_certificates: [{identity}], {trusted}"), &shared)
    };
    let ca = test.files.0.join("ca.pem").to_str().unwrap().to_owned();
    let (one, same, another) = (free_port(), free_port(), free_port());
    let listeners = [
        test.listener.clone(),
        listener("one", one, &context(&ca)),
        listener("same", same, &context(&ca)),
        listener("another", another, &context(&others)),
    ];
    let proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&listeners, &[]));
    let with = |port: u16, more: &[&str]| {
        let (_, chain, key) = &good;
        ask(port, &[&["-cert", chain, "-cert_chain", chain, "-key", key], more].concat())
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let first = with(test.port, &[version, "-sess_out", &session]);
        assert_eq!((first.resumed, first.status), (false, Some(200)));
        let again = with(test.port, &[version, "-sess_in", &session]);
        assert_eq!((again.resumed, again.status), (true, Some(200)), "{version}");
        let elsewhere = with(one, &[version, "-sess_in", &session]);
        assert_eq!((elsewhere.resumed, elsewhere.status), (false, Some(200)), "a ticket of another context");

        let shared = with(one, &[version, "-sess_out", &session]);
        assert_eq!((shared.resumed, shared.status), (false, Some(200)));
        assert!(with(same, &[version, "-sess_in", &session]).resumed, "the same keys and the same trust");
        assert!(!with(another, &[version, "-sess_in", &session]).resumed, "the same keys under another trust");
    }
    assert_eq!(proxy.stat("listener.l.ssl.session_reused"), Some(2));
}

#[test]
fn what_is_no_hello_is_answered_alike() {
    let files = Files::new("hello");
    let ca = Authority::root("root");
    let (identity, ..) = files.identity("srv", &named(&ca, "srv", &["a.test"]));
    let port = free_port();
    let socket = downstream(&format!("tls_certificates: [{identity}]"), "");
    let long = [&[22, 3, 1, 0xff, 0xff][..], &[b'x'; 100]].concat();
    let inputs: [&[u8]; 9] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"CONNECT a HTTP/1.1\r\n\r\n",
        b"hello world!",
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        &[21, 3, 1, 0, 2, 2, 40],
        &long,
        &[23, 3, 3, 0, 4, 1, 0, 0, 0],
        &[20, 3, 3, 0, 1, 1],
        &[22, 3, 1, 0, 6, 2, 0, 0, 2, 3, 3],
    ];
    differential(
        || yaml::bootstrap(&[listener("l", port, &socket)], &[]),
        |proxy| {
            let answer = |input: &&[u8]| {
                let mut client = Client::connect(("127.0.0.1", port)).unwrap();
                client.send(input);
                // The version in the record of an alert is anybody's guess before one is agreed on.
                let mut answer = client.rest();
                answer.drain(..answer.len().min(3));
                answer
            };
            let answers: Vec<_> = inputs.iter().map(answer).collect();
            (answers, proxy.stat("listener.l.ssl.connection_error"))
        },
    );
}

/// Hellos that say what the TLS library does not look at, or that name no server.
#[test]
fn odd_hellos_are_answered_alike() {
    use weft_tests::hello::{Hello, extension, server_names};
    let files = Files::new("hellos");
    let (identity, ..) = files.identity("srv", &named(&Authority::root("root"), "srv", &["a.test"]));
    let ports: [u16; 2] = std::array::from_fn(|_| free_port());
    let certificates = format!("tls_certificates: [{identity}]");
    let old = format!("{certificates}, tls_params: {{tls_maximum_protocol_version: TLSv1_2}}");
    let with = |content: &[u8]| Hello::with(&extension(0xff01, content));
    let fallback = Hello { suites: vec![0xc0, 0x2b, 0x56, 0], ..Hello::with(&[]) };
    let hellos = [
        Hello::with(&server_names(&[b"a.test"])),
        fallback.clone(),
        Hello { extensions: with(b"\x05hello").extensions, ..fallback.clone() },
        Hello { version: [3, 2], ..fallback },
        with(&[0]),
        with(b"\x05hello"),
        with(b"\x05he"),
        with(&[]),
        Hello::with(&server_names(&[b"a.test\0"])),
        Hello::with(&server_names(&[b""])),
        Hello::with(&server_names(&[&[b'a'; 256]])),
        Hello::with(&server_names(&[b"a.test", b"b.test"])),
        Hello::with(&server_names(&[])),
    ];
    let config = || {
        let listeners = [(0, "new", &certificates), (1, "old", &old)];
        yaml::bootstrap(&listeners.map(|(at, name, common)| listener(name, ports[at], &downstream(common, ""))), &[])
    };
    differential(config, |proxy| {
        let answer = |port: u16, hello: &Hello| {
            let mut client = Client::connect(("127.0.0.1", port)).unwrap();
            client.send(hello.records());
            // A record's kind says whether it is the handshake; an alert is there whole.
            let mut answer = client.exactly(7).unwrap_or_default();
            answer.drain(answer.len().min(1)..answer.len().min(5));
            answer.truncate(if answer.first() == Some(&21) { 3 } else { 1 });
            answer
        };
        ["new", "old"].map(|name| {
            let port = ports[usize::from(name == "old")];
            let answers: Vec<_> = hellos.iter().map(|hello| answer(port, hello)).collect();
            // Each alert is counted, if perhaps after the client has it.
            let alerts = answers.iter().filter(|answer| answer.first() == Some(&21)).count();
            proxy.wait_for_stat(&format!("listener.{name}.ssl.connection_error"), alerts as u64);
            answers
        })
    });
}

/// Weft and Envoy speak mTLS with each other, each as client and as server, and know whom they speak with.
#[test]
fn weft_and_envoy_know_each_other() {
    let Some(envoy) = tools::envoy() else { return };
    let files = Files::new("peers");
    let ca = Authority::root("root");
    let trusted = files.write("ca.pem", &ca.pem);
    let id = |name: &str| {
        let uri = format!("spiffe://example.org/{name}");
        files.identity(name, &ca.leaf(|params| params.subject_alt_names = uris(&[&uri]))).0
    };
    let (server, client) = (id("server"), id("client"));
    let trusts = |who: &str| {
        format!(
            "validation_context: {{trusted_ca: {{filename: {trusted}}}, match_typed_subject_alt_names: [{{san_type: URI, \
             matcher: {{exact: \"spiffe://example.org/{who}\"}}}}]}}"
        )
    };
    let app = Upstream::named("app");
    for kinds in [[Kind::Weft, Kind::Envoy(envoy.clone())], [Kind::Envoy(envoy.clone()), Kind::Weft]] {
        let [near, far] = &kinds;
        let (inbound, outbound, wrong, anonymous) = (free_port(), free_port(), free_port(), free_port());
        let hosts = "{name: all, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: app}}]}";
        let cluster = |name: &str, presents: &str, expects: &str| {
            let common = format!("tls_certificates: [{presents}], {}, alpn_protocols: [http/1.1]", trusts(expects));
            let max = ", tls_params: {tls_maximum_protocol_version: TLSv1_3}";
            let socket = upstream(&format!("{common}{max}"), "sni: server.test");
            yaml::cluster(name, inbound).replacen('{', &format!("{{transport_socket: {socket}, "), 1)
        };
        let xfcc = "forward_client_cert_details: SANITIZE_SET, set_current_client_cert_details: {uri: true}";
        let socket = downstream(
            &format!("tls_certificates: [{server}], {}, alpn_protocols: [h2, http/1.1]", trusts("client")),
            "require_client_certificate: true",
        );
        let back = secured(&yaml::http_listener("in", inbound, xfcc, hosts), "in", &socket);
        let far = Proxy::start(far, &yaml::bootstrap(&[back], &[yaml::cluster("app", app.port())]));
        let front = [
            yaml::http_listener("out", outbound, "", &hosts.replace("cluster: app", "cluster: far")),
            yaml::http_listener("wrong", wrong, "", &hosts.replace("cluster: app", "cluster: imposter")),
            yaml::http_listener("anonymous", anonymous, "", &hosts.replace("cluster: app", "cluster: anonymous")),
        ];
        let clusters = [
            cluster("far", &client, "server"),
            cluster("imposter", &client, "somebody"),
            cluster("anonymous", "", "server"),
        ];
        let near = Proxy::start(near, &yaml::bootstrap(&front, &clusters));
        assert_eq!(status(outbound), Some(200), "{kinds:?}");
        let seen = app.take();
        let header = seen.first().and_then(|seen| seen.header("x-forwarded-client-cert")).unwrap_or_default();
        assert!(header.ends_with("URI=spiffe://example.org/client"), "{kinds:?}: {header}");
        assert_eq!(status(wrong), Some(503), "{kinds:?}: the server is not who is expected");
        assert!(app.take().is_empty(), "nothing came through");
        assert_eq!(near.stat("cluster.imposter.ssl.fail_verify_san"), Some(1));
        assert_eq!(far.stat("listener.in.ssl.fail_verify_san"), Some(0));
        // The server's refusal comes after the client's handshake.
        assert_eq!(status(anonymous), Some(503), "{kinds:?}");
        near.wait_for_stat("cluster.anonymous.ssl.connection_error", 1);
        far.wait_for_stat("listener.in.ssl.fail_verify_no_cert", 1);
    }
}

#[test]
fn a_key_that_may_not_sign_is_refused_as_by_envoy() {
    let files = Files::new("usage");
    let ca = Authority::root("root");
    for (usages, is_good) in [
        (vec![rcgen::KeyUsagePurpose::DigitalSignature], true),
        (Vec::new(), true),
        (vec![rcgen::KeyUsagePurpose::KeyAgreement], false),
    ] {
        let (identity, ..) = files.identity("srv", &ca.leaf(|params| params.key_usages.clone_from(&usages)));
        let socket = downstream(&format!("tls_certificates: [{identity}]"), "");
        let config = yaml::bootstrap(&[listener("l", free_port(), &socket)], &[]);
        for binary in [Some(tools::binary("weft")), tools::envoy()].into_iter().flatten() {
            let output = std::process::Command::new(&binary)
                .args(["--mode", "validate", "--config-yaml", &config])
                .output()
                .unwrap();
            assert_eq!(output.status.success(), is_good, "{binary:?}, {usages:?}: {output:?}");
        }
    }
}
