//! Secrets that change while the proxy runs: in files, beside Envoy, and from `weft-control` under load.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};
use weft_tests::{
    Client, Control, Kind, Proxy, Reply, Upstream,
    certificate_matrix::{Authority, Issued, uris},
    differential, free_port, http,
    openssl::s_client,
    tools, until, yaml,
};

const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

fn named(authority: &Authority, common_name: &str) -> Issued {
    authority.leaf(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    })
}

/// A directory that goes away with the test.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("weft-secrets-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    /// Moves a file into place.
    fn put(&self, name: &str, content: &str) -> String {
        let (path, whole) = (self.0.join(name), self.0.join(format!(".{name}")));
        fs::write(&whole, content).unwrap();
        fs::rename(whole, &path).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A listener with a transport socket.
fn secured(listener: &str, socket: &str) -> String {
    listener.replacen("filter_chains: [{", &format!("filter_chains: [{{transport_socket: {socket}, "), 1)
}

/// The secret `srv`, as a file of resources that names a certificate's and a key's.
fn in_files(certificate: &str, private: &str) -> String {
    format!(
        "resources: [{{\"@type\": {TYPE}.Secret, name: srv, tls_certificate: {{certificate_chain: {{filename: \
         {certificate}}}, private_key: {{filename: {private}}}}}}}]"
    )
}

/// A transport socket that presents the secret `srv` of a file of resources.
fn by_file(sds: &str) -> String {
    format!(
        "{{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, common_tls_context: \
         {{tls_certificate_sds_secret_configs: [{{name: srv, sds_config: {{path_config_source: {{path: {sds}}}, \
         resource_api_version: V3}}}}]}}}}}}"
    )
}

fn all(action: &str) -> String {
    format!("{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, {action}}}]}}")
}

#[test]
fn files_of_secrets_rotate_and_bad_ones_change_nothing_as_with_envoy() {
    let ca = Authority::root("ca");
    let [one, two, three] = ["one", "two", "three"].map(|name| named(&ca, name));
    let port = free_port();
    let observe = |proxy: &Proxy, files: &Files| {
        let subject = || s_client(port, &[]).and_then(|handshake| handshake.subject);
        let mut seen = vec![subject()];
        let failed = || proxy.stat("sds.srv.key_rotation_failed").unwrap_or_default();
        let mut put = |certificate: &Issued, of: &Issued, is_good: bool| {
            let before = failed();
            files.put("tls.key", &of.key_pem());
            files.put("tls.crt", &certificate.chain_pem());
            if is_good {
                let wanted = seen.len();
                until("the certificate to change", || subject().filter(|now| Some(now) != seen[wanted - 1].as_ref()));
            } else {
                until("the rotation to fail", || (failed() > before).then_some(()));
            }
            seen.push(subject());
        };
        put(&two, &two, true);
        put(&three, &one, false);
        put(&three, &three, true);
        let counted = ["sds.srv.update_success", "sds.srv.update_rejected", "sds.srv.init_fetch_timeout"];
        (seen, counted.map(|name| proxy.stat(name)))
    };
    let Some(envoy) = tools::envoy() else { return };
    let [theirs, ours] = [Kind::Envoy(envoy), Kind::Weft].map(|kind| {
        let files = Files::new(if kind == Kind::Weft { "weft" } else { "envoy" });
        let (certificate, private) = (files.put("tls.crt", &one.chain_pem()), files.put("tls.key", &one.key_pem()));
        let sds = files.put("sds.yaml", &in_files(&certificate, &private));
        let socket = by_file(&sds);
        let listener = yaml::http_listener("l", port, "", &all("direct_response: {status: 200}"));
        let proxy = Proxy::start(&kind, &yaml::bootstrap(&[secured(&listener, &socket)], &[]));
        observe(&proxy, &files)
    });
    assert_eq!(ours, theirs, "left: Weft, right: Envoy");
    assert!(ours.0.iter().all(Option::is_some), "{ours:?}");
}

#[test]
fn a_file_with_another_secret_than_the_one_asked_for_is_rejected_as_by_envoy() {
    let (ca, port, files) = (Authority::root("ca"), free_port(), Files::new("other"));
    let issued = named(&ca, "one");
    let sds = files.put(
        "sds.yaml",
        &format!(
            "resources: [{{\"@type\": {TYPE}.Secret, name: other, tls_certificate: {{certificate_chain: {{inline_string: \
             {:?}}}, private_key: {{inline_string: {:?}}}}}}}]",
            issued.chain_pem(),
            issued.key_pem()
        ),
    );
    let socket = by_file(&sds);
    let listener = yaml::http_listener("l", port, "", &all("direct_response: {status: 200}"));
    let bootstrap = || yaml::bootstrap(&[secured(&listener, &socket)], &[]);
    differential(bootstrap, |proxy| {
        assert!(proxy.log().contains("Unexpected SDS secret (expecting srv): other"), "{}", proxy.log());
        let counted = ["update_attempt", "update_success", "update_rejected", "update_failure", "init_fetch_timeout"];
        counted.map(|name| proxy.stat(&format!("sds.srv.{name}")))
    });
}

#[test]
fn an_unknown_static_secret_is_refused_as_by_envoy() {
    let (ca, port) = (Authority::root("ca"), free_port());
    let issued = named(&ca, "one");
    let socket = format!(
        "{{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, common_tls_context: \
         {{tls_certificate_sds_secret_configs: [{{name: srv}}]}}}}}}"
    );
    let listener = yaml::http_listener("l", port, "", &all("direct_response: {status: 200}"));
    let bootstrap = yaml::bootstrap(&[secured(&listener, &socket)], &[]);
    let secrets = format!(
        "  secrets: [{{name: srv, tls_certificate: {{certificate_chain: {{inline_string: {:?}}}, private_key: \
         {{inline_string: {:?}}}}}}}]\n",
        issued.chain_pem(),
        issued.key_pem()
    );
    let with = || format!("{bootstrap}{secrets}");
    differential(with, |_| s_client(port, &[]).and_then(|handshake| handshake.subject));
    let problem = std::process::Command::new(tools::binary("weft"))
        .args(["--mode", "validate", "--config-yaml", &bootstrap])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&problem.stderr).contains("Unknown static secret: srv"), "{problem:?}");
}

/// The file of secrets that `weft-control` serves.
fn secrets(identity: &Issued, authority: &str) -> String {
    format!(
        "resources:\n- {{\"@type\": {TYPE}.Secret, name: default, tls_certificate: {{certificate_chain: {{inline_string: \
         {:?}}}, private_key: {{inline_string: {:?}}}}}}}\n- {{\"@type\": {TYPE}.Secret, name: ROOTCA, validation_context: \
         {{trusted_ca: {{inline_string: {authority:?}}}}}}}\n",
        identity.chain_pem(),
        identity.key_pem()
    )
}

/// A proxy whose listener `plain` goes by mTLS to its listener `secure`; only the latter gets its secrets over SDS.
fn mesh(plain: u16, secure: u16, upstream: u16, control: u16, client: &Issued, delta: bool) -> String {
    let kind = if delta { "DELTA_GRPC" } else { "GRPC" };
    let source = format!(
        "{{api_config_source: {{api_type: {kind}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: \
         control}}}}]}}, resource_api_version: V3}}"
    );
    let socket = format!(
        "{{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, require_client_certificate: true, \
         common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: default, sds_config: {source}}}], \
         validation_context_sds_secret_config: {{name: ROOTCA, sds_config: {source}}}}}}}}}"
    );
    let to_mesh = format!(
        "{{transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPE}.UpstreamTlsContext, common_tls_context: \
         {{tls_certificates: [{{certificate_chain: {{inline_string: {:?}}}, private_key: {{inline_string: {:?}}}}}]}}}}}}, ",
        client.chain_pem(),
        client.key_pem()
    );
    let http2 = "{typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
                 type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
                 {http2_protocol_options: {}}}}, ";
    let runtime = "layered_runtime: {layers: [{name: l, static_layer: {weft.tls.drain_on_trust_change: true}}]}\n";
    let inbound = yaml::http_listener("secure", secure, "", &all("route: {cluster: app}"));
    let bootstrap = yaml::bootstrap(
        &[secured(&inbound, &socket), yaml::http_listener("plain", plain, "", &all("route: {cluster: mesh}"))],
        &[
            yaml::cluster("app", upstream),
            yaml::cluster("mesh", secure).replacen('{', &to_mesh, 1),
            yaml::cluster("control", control).replacen('{', http2, 1),
        ],
    );
    format!("{bootstrap}{runtime}")
}

#[test]
fn weft_control_rotates_under_load_and_who_is_trusted_no_longer_is_cut() {
    let workload = |ca: &Authority| ca.leaf(|params| params.subject_alt_names = uris(&["spiffe://example.org/a"]));
    for delta in [false, true] {
        let (ca, other) = (Authority::root("ca"), Authority::root("other"));
        let control = Control::start(&[("secrets.yaml", &secrets(&named(&ca, "start"), &ca.pem))]);
        let upstream = Upstream::start(|_| Reply::text("ok"));
        let (plain, secure) = (free_port(), free_port());
        let config = mesh(plain, secure, upstream.port(), control.port(), &workload(&ca), delta);
        let proxy = Proxy::start(&Kind::Weft, &config);
        let mut client = Client::connect(("127.0.0.1", plain)).expect("it listens");
        let mut request = move || client.get("/", &[]).map(|response| response.status);
        assert_eq!(request(), Some(200));
        for turn in 0..3 {
            let name = format!("turn-{turn}");
            control.write("secrets.yaml", &secrets(&named(&ca, &name), &ca.pem));
            let updates = || {
                proxy.stat(&format!("listener.127.0.0.1_{secure}.server_ssl_socket_factory.ssl_context_update_by_sds"))
            };
            let before = updates();
            until("the new certificate to be served", || {
                assert_eq!(request(), Some(200));
                s_client(secure, &[])?.subject.filter(|subject| subject.contains(&name))
            });
            assert!(updates() >= before);
        }
        // A key of another: refused, and the old one stays.
        let (certificate, of) = (named(&ca, "bad"), named(&ca, "another"));
        let bad = Issued { key: of.key, chain: certificate.chain, serial: certificate.serial };
        control.write("secrets.yaml", &secrets(&bad, &ca.pem));
        proxy.wait_for_stat("sds.default.update_rejected", 1);
        let line = control.wait_for_line(&["default", "private_key"]);
        assert!(!line.contains("BEGIN"), "{line}");
        assert_eq!(request(), Some(200));
        let dump = proxy.page("/config_dump?resource=dynamic_active_secrets");
        assert!(dump.contains("error_state") && dump.contains("[redacted]"), "{dump}");
        assert!(!dump.contains("PRIVATE KEY"), "{dump}");

        // Both authorities, then the other alone: the connection that stands is cut, and no new one is let in.
        let last = named(&ca, "last");
        control.write("secrets.yaml", &secrets(&last, &format!("{}{}", ca.pem, other.pem)));
        until("the certificate to be served", || s_client(secure, &[])?.subject.filter(|s| s.contains("last")));
        assert_eq!(request(), Some(200));
        assert_eq!(proxy.stat(&format!("listener.127.0.0.1_{secure}.ssl.distrusted")), None);
        let begin = Instant::now();
        control.write("secrets.yaml", &secrets(&last, &other.pem));
        proxy.wait_for_stat(&format!("listener.127.0.0.1_{secure}.ssl.distrusted"), 1);
        until("the client to be refused", || http::at(plain, "/").filter(|response| response.status == 503));
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn servers_that_are_dead_or_silent_or_talk_nonsense_are_waited_for_as_by_envoy() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nonsense = Upstream::start(|_| Reply::text("nonsense"));
    for server in [free_port(), silent.local_addr().unwrap().port(), nonsense.port()] {
        let port = free_port();
        let socket = format!(
            "{{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, common_tls_context: \
             {{tls_certificate_sds_secret_configs: [{{name: srv, sds_config: {{initial_fetch_timeout: 0.5s, \
             api_config_source: {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: \
             control}}}}]}}, resource_api_version: V3}}}}]}}}}}}"
        );
        let http2 = "{typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
                     {\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
                     explicit_http_config: {http2_protocol_options: {}}}}, ";
        let listener = yaml::http_listener("l", port, "", &all("direct_response: {status: 200}"));
        let control = yaml::cluster("control", server).replacen('{', http2, 1);
        let config = || yaml::bootstrap(&[secured(&listener, &socket)], std::slice::from_ref(&control));
        differential(config, |proxy| {
            let shown = s_client(port, &[]).and_then(|handshake| handshake.subject);
            let factory = format!("listener.127.0.0.1_{port}.server_ssl_socket_factory");
            proxy.wait_for_stat(&format!("{factory}.downstream_context_secrets_not_ready"), 1);
            let counted = ["init_fetch_timeout", "update_success", "update_rejected", "key_rotation_failed"];
            (shown, counted.map(|name| proxy.stat(&format!("sds.srv.{name}"))))
        });
    }
}

#[test]
fn hosts_that_are_trusted_no_longer_are_cut() {
    let (ca, other) = (Authority::root("ca"), Authority::root("other"));
    let files = Files::new("hosts");
    let trusted = |authority: &Authority| {
        let pem = &authority.pem;
        let resource = format!(
            "resources: [{{\"@type\": {TYPE}.Secret, name: ROOTCA, validation_context: {{trusted_ca: {{inline_string: \
             {pem:?}}}}}}}]"
        );
        files.put("sds.yaml", &resource)
    };
    let sds = trusted(&ca);
    let (plain, tcp, secure) = (free_port(), free_port(), free_port());
    let server = named(&ca, "server");
    let presents = format!(
        "{{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, common_tls_context: {{tls_certificates: \
         [{{certificate_chain: {{inline_string: {:?}}}, private_key: {{inline_string: {:?}}}}}]}}}}}}",
        server.chain_pem(),
        server.key_pem()
    );
    let trusts = format!(
        "{{transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPE}.UpstreamTlsContext, common_tls_context: \
         {{validation_context_sds_secret_config: {{name: ROOTCA, sds_config: {{path_config_source: {{path: {sds}}}, \
         resource_api_version: V3}}}}}}}}}}, "
    );
    // It begins an answer and says no more.
    let slow = Upstream::start(|_| Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegin".to_vec()));
    let hosts = "{name: v, domains: [\"*\"], routes: [{match: {path: /slow}, route: {cluster: slow, timeout: 0s}}, {match: \
                 {prefix: /}, direct_response: {status: 200}}]}";
    let inbound = yaml::http_listener("secure", secure, "", hosts);
    let bootstrap = yaml::bootstrap(
        &[
            secured(&inbound, &presents),
            yaml::http_listener("plain", plain, "", &all("route: {cluster: mesh}")),
            yaml::tcp_listener("tcp", tcp, "mesh"),
        ],
        &[yaml::cluster("mesh", secure).replacen('{', &trusts, 1), yaml::cluster("slow", slow.port())],
    );
    let runtime = "layered_runtime: {layers: [{name: l, static_layer: {weft.tls.drain_on_trust_change: true}}]}\n";
    let proxy = Proxy::start(&Kind::Weft, &format!("{bootstrap}{runtime}"));
    let [mut over_http, mut over_tcp] =
        [plain, tcp].map(|port| Client::connect(("127.0.0.1", port)).expect("it listens"));
    for client in [&mut over_http, &mut over_tcp] {
        assert_eq!(client.get("/", &[]).map(|response| response.status), Some(200));
    }
    let mut waiting = Client::connect(("127.0.0.1", plain)).expect("it listens");
    waiting.send("GET /slow HTTP/1.1\r\nhost: test\r\n\r\n");
    assert!(waiting.head().is_some_and(|head| head.starts_with("HTTP/1.1 200")));
    trusted(&other);
    // A connection that is in the midst of an answer, and one that is handed on as it is.
    proxy.wait_for_stat("cluster.mesh.ssl.distrusted", 2);
    assert_eq!(waiting.rest(), b"begin", "the answer is cut");
    proxy.wait_for_stat("cluster.mesh.upstream_rq_active", 0);
    until("the connection through it to end", || over_tcp.is_closed().then_some(()));
    proxy.wait_for_stat("cluster.mesh.upstream_cx_active", 0);
    assert_eq!(over_http.get("/", &[]).map(|response| response.status), Some(503));
    trusted(&ca);
    until("the host to be trusted again", || http::at(plain, "/").filter(|response| response.status == 200));
}

#[test]
fn keys_beside_or_in_place_of_certificates_are_not_shown() {
    let ca = Authority::root("ca");
    let issued = named(&ca, "combined");
    let (port, inline) = (free_port(), free_port());
    let files = Files::new("combined");
    let combined = files.put("combined.pem", &format!("{}{}", issued.chain_pem(), issued.key_pem()));
    let sds = |name: &str, fields: &str| {
        files.put(name, &format!("resources: [{{\"@type\": {TYPE}.Secret, name: {name}, {fields}}}]"))
    };
    let source = |path: &str| format!("sds_config: {{path_config_source: {{path: {path}}}, resource_api_version: V3}}");
    let certificate = |chain: &str| {
        format!("tls_certificate: {{certificate_chain: {{{chain}}}, private_key: {{filename: {combined}}}}}")
    };
    let authority = |pem: &str| format!("validation_context: {{trusted_ca: {{inline_string: {pem:?}}}}}");
    let own = sds("own.yaml", &certificate(&format!("filename: {combined}")));
    let trusted = sds("trusted.yaml", &authority(&ca.pem));
    let socket = |common: &str| {
        format!(
            "{{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, common_tls_context: {{{common}}}}}}}"
        )
    };
    let streamed = socket(&format!(
        "tls_certificate_sds_secret_configs: [{{name: own.yaml, {}}}], validation_context_sds_secret_config: {{name: \
         trusted.yaml, {}}}",
        source(&own),
        source(&trusted)
    ));
    let both = format!("{}{}", issued.chain_pem(), issued.key_pem());
    let standing = socket(&format!(
        "tls_certificates: [{{certificate_chain: {{inline_string: {both:?}}}, private_key: {{inline_string: {both:?}}}}}]"
    ));
    let listener = |name: &str, port| yaml::http_listener(name, port, "", &all("direct_response: {status: 200}"));
    let listeners = [secured(&listener("l", port), &streamed), secured(&listener("i", inline), &standing)];
    let proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&listeners, &[]));
    let subject = || s_client(port, &[]).and_then(|handshake| handshake.subject);
    assert!(subject().is_some_and(|subject| subject.contains("combined")));

    // A part of the key that is in no certificate, as it stands and at each place that base64 can put it.
    let text = issued.key_pem();
    let middle = &text[60..100];
    let needles: Vec<String> = (0..3).map(|skip| STANDARD.encode(&middle[skip..skip + 30])).collect();
    let look = |what: &str| {
        for page in ["/config_dump", "/config_dump?include_eds", "/config_dump?resource=dynamic_active_secrets"] {
            let dump = proxy.page(page);
            let found = needles.iter().map(String::as_str).chain([middle, "PRIVATE KEY"]).find(|n| dump.contains(n));
            assert_eq!(found, None, "{what}: {page}");
        }
    };
    let public = STANDARD.encode(&issued.chain_pem()[..60]);
    assert!(proxy.page("/config_dump").contains(&public), "the certificate itself is shown");
    look("in force");

    // A key in the wrong field is refused, and not shown as what was refused either.
    sds("own.yaml", &certificate(&format!("inline_string: {text:?}")));
    proxy.wait_for_stat("sds.own.yaml.update_rejected", 1);
    sds("trusted.yaml", &authority(&text));
    proxy.wait_for_stat("sds.trusted.yaml.update_rejected", 1);
    assert!(proxy.page("/config_dump").contains("error_state"));
    look("refused");
    assert!(!proxy.log().contains(middle), "{}", proxy.log());
    assert!(proxy.log().contains("found a private key and no PEM certificate"), "{}", proxy.log());
    assert!(subject().is_some_and(|subject| subject.contains("combined")), "the old one stays");
}

#[test]
fn rotated_files_that_are_no_good_are_named_and_ended_certificates_are_warned_of() {
    let ca = Authority::root("ca");
    let (good, port, files) = (named(&ca, "good"), free_port(), Files::new("named"));
    let old = ca.leaf(|params| {
        params.not_before = (SystemTime::now() - Duration::from_secs(10 * 86_400)).into();
        params.not_after = (SystemTime::now() - Duration::from_secs(5 * 86_400)).into();
    });
    let (certificate, private) = (files.put("tls.crt", &good.chain_pem()), files.put("tls.key", &good.key_pem()));
    let sds = files.put("sds.yaml", &in_files(&certificate, &private));
    let socket = by_file(&sds);
    let listener = yaml::http_listener("l", port, "", &all("direct_response: {status: 200}"));
    let proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&[secured(&listener, &socket)], &[]));
    let says = |texts: &[&str]| {
        until(&format!("the log to say {texts:?}"), || {
            proxy.log().lines().any(|line| texts.iter().all(|text| line.contains(text))).then_some(())
        });
    };
    files.put("tls.crt", &good.chain_pem()[..200]);
    says(&["files of secret", &certificate, "a PEM block without its end"]);
    files.put("tls.crt", &named(&ca, "other").chain_pem());
    says(&["private_key", &private, "not the key of the first certificate"]);
    assert!(!proxy.log().contains("KeyMismatch") && !proxy.log().contains("<inline>"), "{}", proxy.log());
    files.put("tls.key", &old.key_pem());
    files.put("tls.crt", &old.chain_pem());
    says(&["secret \"srv\"", "has expired 5 days ago"]);
}

/// Connections outlive the configuration by which they were made; so does the watch over them.
#[test]
fn a_changed_cluster_does_not_forget_whom_it_trusted() {
    let (ca, other) = (Authority::root("ca"), Authority::root("other"));
    let files = Files::new("changed");
    let trusted = |authority: &Authority| {
        let resource = format!(
            "resources: [{{\"@type\": {TYPE}.Secret, name: ROOTCA, validation_context: {{trusted_ca: {{inline_string: \
             {:?}}}}}}}]",
            authority.pem
        );
        files.put("sds.yaml", &resource)
    };
    let sds = trusted(&ca);
    let (tcp, secure) = (free_port(), free_port());
    let server = named(&ca, "server");
    let presents = format!(
        "{{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, common_tls_context: {{tls_certificates: \
         [{{certificate_chain: {{inline_string: {:?}}}, private_key: {{inline_string: {:?}}}}}]}}}}}}",
        server.chain_pem(),
        server.key_pem()
    );
    let cluster = |fields: &str| {
        let trusts = format!(
            "{{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, {fields} transport_socket: {{name: tls, \
             typed_config: {{\"@type\": {TYPE}.UpstreamTlsContext, common_tls_context: \
             {{validation_context_sds_secret_config: {{name: ROOTCA, sds_config: {{path_config_source: {{path: {sds}}}, \
             resource_api_version: V3}}}}}}}}}}, "
        );
        let cluster = yaml::cluster("mesh", secure).replacen('{', &trusts, 1);
        files.put("cds.yaml", &format!("resources: [{cluster}]"))
    };
    let cds = cluster("");
    let inbound = yaml::http_listener("secure", secure, "", &all("direct_response: {status: 200}"));
    let bootstrap = yaml::bootstrap(&[secured(&inbound, &presents), yaml::tcp_listener("tcp", tcp, "mesh")], &[]);
    let proxy = Proxy::start(
        &Kind::Weft,
        &format!(
            "{bootstrap}dynamic_resources: {{cds_config: {{path_config_source: {{path: {cds}}}, resource_api_version: V3}}}}\n\
             layered_runtime: {{layers: [{{name: l, static_layer: {{weft.tls.drain_on_trust_change: true}}}}]}}\n"
        ),
    );
    let mut client = Client::connect(("127.0.0.1", tcp)).expect("it listens");
    assert_eq!(client.get("/", &[]).map(|response| response.status), Some(200));
    cluster("per_connection_buffer_limit_bytes: 50000,");
    proxy.wait_for_stat("cluster_manager.cluster_modified", 1);
    assert_eq!(client.get("/", &[]).map(|response| response.status), Some(200), "connections of before go on");
    trusted(&other);
    proxy.wait_for_stat("cluster.mesh.ssl.distrusted", 1);
    assert!(client.is_closed());
}
