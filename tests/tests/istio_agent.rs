//! What Istio's sidecars and gateways are configured with: secrets by an agent's names over its socket, and the chains of the modes
//! DISABLE, PERMISSIVE and STRICT with Istio's ALPNs, beside Envoy. `weft-control` stands for the agent.

use std::path::PathBuf;
use weft_tests::{
    Control, Proxy, Reply, Upstream,
    certificate_matrix::{Authority, Issued, uris},
    differential, free_port, http,
    openssl::{self, Handshake, s_client},
    tools, until, yaml,
};

const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
/// Not a host's name by the book, and yet what Istio's clients send.
const SNI: &str = "outbound_.80_._.app.ns.svc.cluster.local";

fn workload(ca: &Authority, common_name: &str) -> Issued {
    ca.leaf(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        params.subject_alt_names = uris(&["spiffe://cluster.local/ns/ns/sa/app"]);
    })
}

/// What the agent serves: the workload's own identity, and that of files.
fn secrets(default: &Issued, file: &Issued, ca: &Authority) -> String {
    let identity = |name: &str, issued: &Issued| {
        format!(
            "- {{\"@type\": {TYPE}.Secret, name: {name:?}, tls_certificate: {{certificate_chain: {{inline_string: {:?}}}, \
             private_key: {{inline_string: {:?}}}}}}}\n",
            issued.chain_pem(),
            issued.key_pem()
        )
    };
    let root = |name: &str| {
        format!(
            "- {{\"@type\": {TYPE}.Secret, name: {name:?}, validation_context: {{trusted_ca: {{inline_string: {:?}}}}}}}\n",
            ca.pem
        )
    };
    format!(
        "resources:\n{}{}{}{}",
        identity("default", default),
        identity("file-cert:/etc/certs/tls.crt~/etc/certs/tls.key", file),
        root("ROOTCA"),
        root("file-root:/etc/certs/root.crt")
    )
}

/// A secret of the agent's, as istiod names it.
fn secret(name: &str) -> String {
    format!(
        "{{name: {name:?}, sds_config: {{api_config_source: {{api_type: GRPC, set_node_on_first_message_only: true, \
         transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: sds-grpc}}}}]}}, initial_fetch_timeout: 0s, \
         resource_api_version: V3}}}}"
    )
}

/// A context; `alpn` as YAML.
fn common(identity: &str, root: &str, alpn: &str) -> String {
    format!(
        "common_tls_context: {{tls_params: {{tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3, \
         cipher_suites: [ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-RSA-AES256-GCM-SHA384, ECDHE-ECDSA-AES128-GCM-SHA256, \
         ECDHE-RSA-AES128-GCM-SHA256, AES256-GCM-SHA384, AES128-GCM-SHA256]}}, tls_certificate_sds_secret_configs: [{}], \
         combined_validation_context: {{default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, \
         matcher: {{prefix: \"spiffe://cluster.local/\"}}}}]}}, validation_context_sds_secret_config: {}}}, \
         alpn_protocols: [{alpn}]}}",
        secret(identity),
        secret(root)
    )
}

fn server(alpn: &str) -> String {
    let context = common("default", "ROOTCA", alpn);
    format!(
        "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, \
         {context}, require_client_certificate: true}}}}, "
    )
}

/// A chain that answers over HTTP with this status.
fn http_chain(criteria: &str, socket: &str, status: u16) -> String {
    format!(
        "{{filter_chain_match: {{{criteria}}}, {socket}filters: [{{name: http, typed_config: {{\"@type\": \
         {FILTERS}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h{status}, route_config: \
         {{virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, direct_response: {{status: \
         {status}}}}}]}}]}}, http_filters: [{{name: router, typed_config: {{\"@type\": {FILTERS}.http.router.v3.Router}}}}]}}}}]}}"
    )
}

/// A chain that hands what comes to a cluster.
fn tcp_chain(criteria: &str, socket: &str, cluster: &str) -> String {
    format!(
        "{{filter_chain_match: {{{criteria}}}, {socket}filters: [{{name: tcp, typed_config: {{\"@type\": \
         {FILTERS}.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {cluster}}}}}]}}"
    )
}

fn inbound(name: &str, port: u16, chains: &[String]) -> String {
    let filter = |name: &str| {
        format!(
            "{{name: {name}, typed_config: {{\"@type\": {FILTERS}.listener.{name}.v3.{}}}}}",
            match name {
                "tls_inspector" => "TlsInspector",
                _ => "HttpInspector",
            }
        )
    };
    format!(
        "{{name: {name}, traffic_direction: INBOUND, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, \
         listener_filters: [{}, {}], listener_filters_timeout: 1s, continue_on_listener_filters_timeout: true, filter_chains: \
         [{}]}}",
        filter("tls_inspector"),
        filter("http_inspector"),
        chains.join(", ")
    )
}

const HTTP_SERVER: &str = "h2, http/1.1";
const TCP_SERVER: &str = "istio-peer-exchange, h2, http/1.1";

/// The five chains that istiod makes for a port of which it knows nothing.
fn permissive() -> Vec<String> {
    vec![
        http_chain(
            "transport_protocol: tls, application_protocols: [istio-http/1.0, istio-http/1.1, istio-h2]",
            &server(HTTP_SERVER),
            201,
        ),
        http_chain("transport_protocol: raw_buffer, application_protocols: [http/1.1, h2c]", "", 202),
        tcp_chain(
            "transport_protocol: tls, application_protocols: [istio-peer-exchange, istio]",
            &server(TCP_SERVER),
            "mesh",
        ),
        tcp_chain("transport_protocol: raw_buffer", "", "plain"),
        tcp_chain("transport_protocol: tls", "", "app"),
    ]
}

fn strict() -> Vec<String> {
    vec![
        http_chain(
            "transport_protocol: tls, application_protocols: [istio-http/1.0, istio-http/1.1, istio-h2]",
            &server(HTTP_SERVER),
            201,
        ),
        tcp_chain("transport_protocol: tls", &server(TCP_SERVER), "mesh"),
    ]
}

fn disable() -> Vec<String> {
    vec![http_chain("application_protocols: [http/1.1, h2c]", "", 202), tcp_chain("", "", "plain")]
}

/// What an application that terminates TLS itself, or a gateway, has: certificates of files, by the agent's names for them.
fn gateway() -> Vec<String> {
    let context =
        common("file-cert:/etc/certs/tls.crt~/etc/certs/tls.key", "file-root:/etc/certs/root.crt", HTTP_SERVER);
    let socket = format!(
        "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, \
         {context}}}}}, "
    );
    vec![http_chain("server_names: [\"*.example.com\", \"*.svc.cluster.local\"]", &socket, 207)]
}

/// A cluster whose hosts with a sidecar are spoken to in mTLS, and others not.
fn outbound(name: &str, port: u16, mode: &str) -> String {
    let context = common("default", "ROOTCA", "istio-http/1.1, istio, http/1.1");
    format!(
        "{{name: {name}, connect_timeout: 1s, type: STATIC, transport_socket_matches: [{{name: tlsMode-istio, match: {{tlsMode: \
         istio}}, transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": {TYPE}.UpstreamTlsContext, \
         {context}, sni: {SNI}}}}}}}, {{name: tlsMode-disabled, match: {{}}, transport_socket: {{name: \
         envoy.transport_sockets.raw_buffer, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}], load_assignment: \
         {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, \
         port_value: {port}}}}}}}, metadata: {{filter_metadata: {{envoy.transport_socket_match: {{tlsMode: {mode}}}}}}}}}]}}]}}}}"
    )
}

/// Ports of the listeners.
struct Ports {
    modes: [u16; 3],
    gateway: u16,
    outbound: [u16; 3],
}

fn bootstrap(ports: &Ports, [mesh, plain]: [u16; 2], socket: &str) -> String {
    let all = |cluster: &str| {
        format!("{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}")
    };
    let [disabled, permissive_port, strict_port] = ports.modes;
    let [to_strict, to_disabled, to_permissive] = ports.outbound;
    let agent = format!(
        "{{name: sds-grpc, connect_timeout: 1s, type: STATIC, typed_extension_protocol_options: \
         {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
         {{http2_protocol_options: {{}}}}}}}}, load_assignment: {{cluster_name: sds-grpc, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{pipe: {{path: {socket}}}}}}}}}]}}]}}}}"
    );
    yaml::bootstrap(
        &[
            inbound("disabled", disabled, &disable()),
            inbound("permissive", permissive_port, &permissive()),
            inbound("strict", strict_port, &strict()),
            inbound("gateway", ports.gateway, &gateway()),
            yaml::http_listener("to_strict", to_strict, "", &all("to_strict")),
            yaml::http_listener("to_disabled", to_disabled, "", &all("to_disabled")),
            yaml::http_listener("to_permissive", to_permissive, "", &all("to_permissive")),
        ],
        &[
            yaml::cluster("app", ports.gateway),
            yaml::cluster("mesh", mesh),
            yaml::cluster("plain", plain),
            outbound("to_strict", strict_port, "istio"),
            outbound("to_disabled", disabled, "disabled"),
            outbound("to_permissive", permissive_port, "istio"),
            agent,
        ],
    )
}

/// The client's certificate, as files that go away with the test.
struct Client(PathBuf);

impl Client {
    fn new(issued: &Issued) -> Self {
        let folder = std::env::temp_dir().join(format!("weft-istio-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("crt"), issued.chain_pem()).unwrap();
        std::fs::write(folder.join("key"), issued.key_pem()).unwrap();
        Self(folder)
    }

    fn connect(&self, port: u16, alpn: &str, has_certificate: bool) -> Handshake {
        let [certificate, key] = ["crt", "key"].map(|name| self.0.join(name).display().to_string());
        let mut arguments = vec!["-servername", SNI];
        if !alpn.is_empty() {
            arguments.extend(["-alpn", alpn]);
        }
        if has_certificate {
            arguments.extend(["-cert", &certificate, "-key", &key]);
        } else {
            // The refusal is part of the handshake then: nothing can overtake the alert.
            arguments.push("-tls1_2");
        }
        s_client(port, &arguments).expect("openssl runs")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn modes_protocols_and_names_of_secrets_are_as_with_envoy() {
    if openssl::version().is_none() {
        return tools::skipped("there is no openssl");
    }
    let ca = Authority::root("istio");
    let client = Client::new(&workload(&ca, "client"));
    let socket = std::env::temp_dir().join(format!("weft-istio-agent-{}", std::process::id()));
    let socket = socket.to_str().unwrap();
    let secrets = |default: &str| secrets(&workload(&ca, default), &workload(&ca, "file"), &ca);
    let agent = Control::start_at(&format!("unix:{socket}"), &[("secrets.yaml", &secrets("default"))]);
    let backends =
        [203, 206].map(|status| Upstream::start(move |_| Reply::Close(format!("HTTP/1.1 {status} OK\r\n\r\n").into())));
    let apps = [backends[0].port(), backends[1].port()];
    let port = free_port;
    let ports = Ports { modes: [port(), port(), port()], gateway: port(), outbound: [port(), port(), port()] };
    let observe = |proxy: &Proxy| {
        proxy.wait_for_stat("listener_manager.listener_create_success", 7);
        let mut seen = Vec::new();
        for port in ports.modes.into_iter().chain([ports.gateway]) {
            let mut plain = weft_tests::Client::connect(("127.0.0.1", port)).expect("it listens");
            let status = plain.get("/", &[]).map(|response| response.status);
            seen.push((port, "plain", false, Handshake { status, ..Handshake::default() }));
        }
        let [_, permissive, strict] = ports.modes;
        let offers = [
            "istio-http/1.1,istio,http/1.1",
            "istio-http/1.0,istio,http/1.0",
            "istio-peer-exchange,istio",
            "istio",
            "h2,http/1.1",
            "http/1.1",
            "",
        ];
        for port in [permissive, strict, ports.gateway] {
            for alpn in offers {
                for has_certificate in [true, false] {
                    seen.push((port, alpn, has_certificate, client.connect(port, alpn, has_certificate)));
                }
            }
        }
        let through = ports.outbound.map(|port| http::at(port, "/").map(|response| response.status));
        // The workload's certificate rotates; that of files stays.
        agent.write("secrets.yaml", &secrets("rotated"));
        until("the new certificate to be served", || {
            let subject = client.connect(strict, "istio-http/1.1", true).subject?;
            subject.contains("rotated").then_some(())
        });
        let after = client.connect(ports.gateway, "http/1.1", false);
        let again = ports.outbound.map(|port| http::at(port, "/").map(|response| response.status));
        agent.write("secrets.yaml", &secrets("default"));
        (seen, through, after, again)
    };
    differential(|| bootstrap(&ports, apps, socket), observe);
}
