//! `weft-control` with clients that were not written for it: the real Envoy, gRPC's own xDS client; and with Weft.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};
use weft_tests::{Control, Kind, Proxy, Upstream, free_port, http, tools, until};

const ROUTER: &str =
    "{name: router, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// How resources name their sources.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Transport {
    Ads,
    AdsDelta,
    Single,
    SingleDelta,
}

const TRANSPORTS: [Transport; 4] = [Transport::Ads, Transport::AdsDelta, Transport::Single, Transport::SingleDelta];

impl Transport {
    fn source(self) -> String {
        let api = match self {
            Self::Ads | Self::AdsDelta => return "{ads: {}, resource_api_version: V3}".to_owned(),
            Self::Single => "GRPC",
            Self::SingleDelta => "DELTA_GRPC",
        };
        format!(
            "{{api_config_source: {{api_type: {api}, transport_api_version: V3, grpc_services: \
             [{{envoy_grpc: {{cluster_name: xds}}}}]}}, resource_api_version: V3}}"
        )
    }

    /// A bootstrap that takes everything from the control plane at an address.
    fn bootstrap(self, id: &str, address: &str) -> String {
        let source = self.source();
        let ads = match self {
            Self::Ads => "GRPC",
            Self::AdsDelta => "DELTA_GRPC",
            _ => "",
        };
        let ads = if ads.is_empty() {
            String::new()
        } else {
            let services = "grpc_services: [{envoy_grpc: {cluster_name: xds}}]";
            format!("  ads_config: {{api_type: {ads}, transport_api_version: V3, {services}}}\n")
        };
        format!(
            "node: {{id: {id}, cluster: tests}}\ndynamic_resources:\n{ads}  cds_config: {source}\n  lds_config: \
             {source}\nstatic_resources:\n  clusters:\n  - name: xds\n    connect_timeout: 1s\n    \
             typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
             \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
             explicit_http_config: {{http2_protocol_options: {{}}}}\n    load_assignment: {{cluster_name: xds, endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]}}\n"
        )
    }

    fn tcp(self, id: &str, port: u16) -> String {
        self.bootstrap(id, &format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}"))
    }

    fn listener(self, port: u16) -> String {
        format!(
            "\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\nname: main\naddress: {{socket_address: \
             {{address: 127.0.0.1, port_value: {port}}}}}\nfilter_chains:\n- filters:\n  - name: http\n    typed_config: \
             {{\"@type\": {HCM}, stat_prefix: http, http_filters: [{ROUTER}], rds: {{route_config_name: r, config_source: \
             {}}}}}\n",
            self.source()
        )
    }

    fn cluster(self, name: &str) -> String {
        format!(
            "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: {name}\ntype: EDS\nconnect_timeout: \
             1s\neds_cluster_config: {{eds_config: {}}}\n",
            self.source()
        )
    }
}

fn endpoints(name: &str, port: u16) -> String {
    format!(
        "\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: {name}\nendpoints: \
         [{{locality: {{region: here}}, load_balancing_weight: 1, lb_endpoints: [{{endpoint: {{address: {{socket_address: \
         {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]\n"
    )
}

fn routes(to: &str) -> String {
    format!(
        "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: r\nvirtual_hosts: [{{name: v, \
         domains: [\"*\"], routes: [{{match: {{prefix: /}}, {to}}}]}}]\n"
    )
}

fn says(text: &str) -> String {
    routes(&format!("direct_response: {{status: 200, body: {{inline_string: {text}}}}}"))
}

fn body(port: u16) -> Option<String> {
    http::at(port, "/").map(|response| response.text())
}

fn wait_for(port: u16, text: &str) {
    until(&format!("{text:?} at the listener"), || (body(port).as_deref() == Some(text)).then_some(()));
}

/// Envoy where there is one, and Weft.
fn clients() -> Vec<Kind> {
    tools::envoy().map(Kind::Envoy).into_iter().chain([Kind::Weft]).collect()
}

#[test]
fn every_service_in_both_protocols_serves_envoy_and_weft() {
    let (first, second) = (Upstream::named("first"), Upstream::named("second"));
    for client in clients() {
        for transport in TRANSPORTS {
            let port = free_port();
            let control = Control::start(&[
                ("listener.yaml", &transport.listener(port)),
                ("cluster.yaml", &transport.cluster("c")),
                ("endpoints.yaml", &endpoints("c", first.port())),
                ("routes.yaml", &routes("route: {cluster: c}")),
            ]);
            let proxy = Proxy::start(&client, &transport.tcp("n1", control.port()));
            wait_for(port, "first");
            let start = Instant::now();
            control.write("endpoints.yaml", &endpoints("c", second.port()));
            wait_for(port, "second");
            let took = start.elapsed();
            assert!(took < Duration::from_secs(3), "{client:?} {transport:?}: endpoints took {took:?}");
            control.write("routes.yaml", &says("third"));
            wait_for(port, "third");
            let rejected: u64 = ["cluster_manager.cds", "listener_manager.lds"]
                .iter()
                .filter_map(|s| proxy.stat(&format!("{s}.update_rejected")))
                .sum();
            assert_eq!(rejected, 0);
        }
    }
}

#[test]
fn a_clients_refusal_is_its_own_and_is_told_with_its_reason() {
    // Both are good by the schema; only a proxy can know that the regex is none.
    let bad = routes("direct_response: {status: 200}").replace("prefix: /", "safe_regex: {regex: \"(\"}");
    for client in clients() {
        let (mine, other) = (free_port(), free_port());
        let control = Control::start(&[
            ("n1/listener.yaml", &Transport::Ads.listener(mine)),
            ("n2/listener.yaml", &Transport::Ads.listener(other)),
            ("n1/routes.yaml", &says("n1")),
            ("n2/routes.yaml", &says("n2")),
        ]);
        let first = Proxy::start(&client, &Transport::Ads.tcp("n1", control.port()));
        let _second = Proxy::start(&client, &Transport::Ads.tcp("n2", control.port()));
        wait_for(mine, "n1");
        wait_for(other, "n2");
        control.write("n1/routes.yaml", &bad);
        let line = control.wait_for_line(&["node \"n1\" refused", "route configuration"]);
        assert!(line.ends_with("missing ): (") || line.contains("safe_regex"), "{line}");
        first.wait_for_stat("http.http.rds.r.update_rejected", 1);
        assert_eq!((body(mine).as_deref(), body(other).as_deref()), (Some("n1"), Some("n2")));
        control.write("n2/routes.yaml", &says("n2-again"));
        wait_for(other, "n2-again");
        control.write("n1/routes.yaml", &says("n1-again"));
        wait_for(mine, "n1-again");
        assert!(!control.log().contains("node \"n2\" refused"));
    }
}

#[test]
fn a_file_with_mistakes_is_named_and_changes_nothing() {
    let port = free_port();
    let control = Control::start(&[("l.yaml", &Transport::AdsDelta.listener(port)), ("r.yaml", &says("good"))]);
    let _proxy = Proxy::start(&Kind::Weft, &Transport::AdsDelta.tcp("n1", control.port()));
    wait_for(port, "good");
    control.write("r.yaml", &says("bad").replace("domains", "domain"));
    let line = control.wait_for_line(&["r.yaml:", "virtual_hosts[0].domain"]);
    assert!(line.contains("domains"), "{line}");
    control.write("r.yaml", "virtual_hosts: [");
    control.wait_for_line(&["r.yaml: refused"]);
    assert_eq!(body(port).as_deref(), Some("good"));
    control.write("r.yaml", &says("better"));
    wait_for(port, "better");
}

#[test]
fn a_socket_file_will_do() {
    for client in clients() {
        let port = free_port();
        let path = std::env::temp_dir().join(format!("weft-control-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listen = format!("unix:{}", path.display());
        let files = [("l.yaml", &*Transport::Ads.listener(port)), ("r.yaml", &says("over a file"))];
        let control = Control::start_at(&listen, &files);
        assert_eq!(control.address(), listen);
        let address = format!("{{pipe: {{path: {}}}}}", path.display());
        let _proxy = Proxy::start(&client, &Transport::Ads.bootstrap("n1", &address));
        wait_for(port, "over a file");
    }
}

#[test]
fn what_was_served_is_served_on_while_the_control_plane_is_away() {
    for client in clients() {
        let port = free_port();
        let files = [("l.yaml", &*Transport::Ads.listener(port)), ("r.yaml", &says("before"))];
        let control = Control::start(&files);
        let (address, xds) = (control.address().to_owned(), control.port());
        let proxy = Proxy::start(&client, &Transport::Ads.tcp("n1", xds));
        wait_for(port, "before");
        drop(control);
        proxy.wait_for_stat("control_plane.connected_state", 0);
        assert_eq!(body(port).as_deref(), Some("before"));
        let control =
            Control::start_at(&address, &[("l.yaml", &Transport::Ads.listener(port)), ("r.yaml", &says("after"))]);
        wait_for(port, "after");
        proxy.wait_for_stat("control_plane.connected_state", 1);
        drop(control);
    }
}

/// A Python process that says lines.
struct Script {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Script {
    fn start(python: &Path, name: &str, argument: &str, bootstrap: Option<&Path>) -> Self {
        let script = tools::repository().join("tests/scripts").join(name);
        let mut command = Command::new(python);
        command.arg(script).arg(argument).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(path) = bootstrap {
            command.env("GRPC_XDS_BOOTSTRAP", path);
        }
        let mut child = command.spawn().expect("python runs");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("it says something");
        line.trim().to_owned()
    }

    fn ask(&mut self) -> String {
        self.child.stdin.as_mut().expect("it is piped").write_all(b"\n").expect("it reads");
        self.line()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn grpcs_own_xds_client_calls_what_the_directory_says() {
    let Some(python) = tools::python() else { return };
    let mut servers = ["first", "second"].map(|name| Script::start(&python, "grpc_echo.py", name, None));
    let [first, second] = servers.each_mut().map(|server| server.line().parse::<u16>().expect("a port"));
    let listener = format!(
        "\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\nname: echo\napi_listener: {{api_listener: \
         {{\"@type\": {HCM}, stat_prefix: echo, http_filters: [{ROUTER}], rds: {{route_config_name: r, config_source: {{ads: {{}}}}}}}}}}\n"
    );
    let control = Control::start(&[
        ("l.yaml", &listener),
        ("r.yaml", &routes("route: {cluster: c}").replace("{prefix: /}", "{prefix: \"\"}")),
        ("c.yaml", &Transport::Ads.cluster("c")),
        ("e.yaml", &endpoints("c", first)),
    ]);
    let bootstrap = std::env::temp_dir().join(format!("weft-grpc-{}.json", std::process::id()));
    let server = format!("127.0.0.1:{}", control.port());
    let features = "\"server_features\": [\"xds_v3\"], \"channel_creds\": [{\"type\": \"insecure\"}]";
    let text =
        format!("{{\"xds_servers\": [{{\"server_uri\": \"{server}\", {features}}}], \"node\": {{\"id\": \"g\"}}}}");
    std::fs::write(&bootstrap, text).expect("a file");
    let mut client = Script::start(&python, "grpc_xds_client.py", "echo", Some(&bootstrap));
    assert_eq!(client.ask(), "first");
    control.write("e.yaml", &endpoints("c", second));
    until("the other server", || (client.ask() == "second").then_some(()));
    control.wait_for_line(&["node \"g\" took", "cluster load assignment"]);
    std::fs::remove_file(bootstrap).expect("it was made above");
}

#[test]
fn what_changes_is_in_use_at_once_though_what_it_refers_to_is_the_same() {
    let upstream = Upstream::named("up");
    for client in clients() {
        for transport in TRANSPORTS {
            let port = free_port();
            let control = Control::start(&[
                ("listener.yaml", &transport.listener(port)),
                ("cluster.yaml", &transport.cluster("c")),
                ("endpoints.yaml", &endpoints("c", upstream.port())),
                ("routes.yaml", &routes("route: {cluster: c}")),
            ]);
            let proxy = Proxy::start(&client, &transport.tcp("n1", control.port()));
            wait_for(port, "up");
            let start = Instant::now();
            control.write("cluster.yaml", &transport.cluster("c").replace("1s", "2s"));
            until("the changed cluster", || {
                let clusters = proxy.page("/config_dump?resource=dynamic_active_clusters");
                clusters.contains("\"2s\"").then_some(())
            });
            let took = start.elapsed();
            assert!(took < Duration::from_secs(3), "{client:?} {transport:?}: {took:?}");
            wait_for(port, "up");
            control.write("listener.yaml", &transport.listener(port).replace("stat_prefix: http", "stat_prefix: two"));
            until("the changed listener", || {
                http::at(port, "/");
                (proxy.stat("http.two.downstream_rq_2xx") > Some(0)).then_some(())
            });
            let took = start.elapsed();
            assert!(took < Duration::from_secs(6), "{client:?} {transport:?}: {took:?}");
        }
    }
}

#[test]
fn a_directory_whose_links_are_swapped_or_that_is_replaced_is_followed() {
    let port = free_port();
    let control = Control::start(&[("l.yaml", &Transport::AdsDelta.listener(port))]);
    let root = control.resources();
    let link = |to: &str, from: &Path| {
        let draft = root.join(".draft");
        std::os::unix::fs::symlink(to, &draft).expect("a link");
        std::fs::rename(draft, from).expect("it is put in place");
    };
    // As a ConfigMap is mounted: the file is a link through a link, and the latter is swapped.
    control.write("..1/r.yaml", &says("one"));
    link("..1", &root.join("..data"));
    link("..data/r.yaml", &root.join("r.yaml"));
    let _proxy = Proxy::start(&Kind::Weft, &Transport::AdsDelta.tcp("n1", control.port()));
    wait_for(port, "one");
    control.write("..2/r.yaml", &says("two"));
    link("..2", &root.join("..data"));
    std::fs::remove_dir_all(root.join("..1")).expect("it is there");
    wait_for(port, "two");

    let old = root.with_extension("old");
    std::fs::rename(&root, &old).expect("it is moved away");
    control.wait_for_line(&["resources: refused"]);
    assert_eq!(body(port).as_deref(), Some("two"));
    control.write("l.yaml", &Transport::AdsDelta.listener(port));
    control.write("r.yaml", &says("three"));
    wait_for(port, "three");
    control.write("r.yaml", &says("four"));
    wait_for(port, "four");
}

#[test]
fn it_ends_when_asked_to_and_says_why_it_cannot_start() {
    let control = Control::start(&[]);
    let run = |arguments: &[&str]| {
        let output = Command::new(tools::binary("weft-control")).args(arguments).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&["--dir", "/nowhere/at/all", "--listen", "127.0.0.1:0"]);
    assert!(code == Some(1) && said.contains("/nowhere/at/all: "), "{said}");
    let (code, said) = run(&["--dir", ".", "--listen", control.address()]);
    assert!(code == Some(1) && said.contains(&format!("cannot listen at {}", control.address())), "{said}");
    let (code, said) = run(&["--listen", "127.0.0.1:0"]);
    assert!(code == Some(2) && said.contains("--dir"), "{said}");
    assert_eq!(control.terminate().code(), Some(0));
}
