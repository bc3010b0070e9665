//! What is discovered after listeners, routes and clusters: configurations of filters, scopes of routes, what requests ask for, and
//! what control planes ask to be dropped. The real Envoy beside Weft.

use weft_tests::{Client, Control, Kind, Proxy, Upstream, free_port, http, tools, until};

const TYPE: &str = "type.googleapis.com";
const ADS: &str = "{ads: {}, resource_api_version: V3}";
const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// A bootstrap whose listeners, clusters and everything else come over one stream.
fn bootstrap(api: &str, control: &Control, more: &str) -> String {
    let services = "transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]";
    format!(
        "node: {{id: n1, cluster: tests}}\n{more}dynamic_resources: {{ads_config: {{api_type: {api}, {services}}}, cds_config: \
         {ADS}, lds_config: {ADS}}}\nstatic_resources:\n  clusters:\n  - {{name: xds, connect_timeout: 1s, \
         typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": \
         {TYPE}/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http2_protocol_options: \
         {{}}}}}}}}, load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]}}}}\n",
        address(control.port())
    )
}

fn address(port: u16) -> String {
    format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}")
}

/// Weft, and Envoy where there is one.
fn proxies() -> Vec<Kind> {
    [Kind::Weft].into_iter().chain(tools::envoy().map(Kind::Envoy)).collect()
}

/// The same observation of both.
fn alike<T: PartialEq + std::fmt::Debug>(observe: impl Fn(&Kind) -> T) {
    let seen: Vec<T> = proxies().iter().map(observe).collect();
    if let [ours, theirs] = &seen[..] {
        assert_eq!(ours, theirs, "left: Weft, right: Envoy");
    }
}

/// A listener file.
fn listener(name: &str, port: u16, more: &str, filter: &str) -> String {
    format!(
        "\"@type\": {TYPE}/envoy.config.listener.v3.Listener\nname: {name}\naddress: {}\n{more}filter_chains: \
         [{{filters: [{filter}]}}]\n",
        address(port)
    )
}

/// A connection manager that answers `ok`, with one more HTTP filter.
fn manager(filter: &str) -> String {
    format!(
        "{{name: http, typed_config: {{\"@type\": {TYPE}/envoy.extensions.filters.network.http_connection_manager.v3.\
         HttpConnectionManager, stat_prefix: http, http_filters: [{filter}, {{name: router, typed_config: {{\"@type\": \
         {TYPE}/envoy.extensions.filters.http.router.v3.Router}}}}], access_log: [{{name: log, typed_config: {{\"@type\": \
         {TYPE}/envoy.extensions.access_loggers.stream.v3.StderrAccessLog, log_format: {{text_format_source: \
         {{inline_string: \"LOG %RESPONSE_CODE% %RESPONSE_FLAGS%\\n\"}}}}}}}}], route_config: \
         {{name: r, virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, direct_response: \
         {{status: 200}}}}]}}]}}}}}}"
    )
}

/// A filter whose configuration is discovered.
fn discovered(name: &str, of: &str, fields: &str) -> String {
    format!(
        "{{name: {name}, config_discovery: {{config_source: {{ads: {{}}, resource_api_version: V3, \
         initial_fetch_timeout: 1s}}, type_urls: [{TYPE}/{of}]{fields}}}}}"
    )
}

/// A configuration of an RBAC filter that lets nobody in, or everybody.
fn rbac(denies: bool) -> String {
    let action = if denies { "DENY" } else { "ALLOW" };
    format!(
        "{{\"@type\": {TYPE}/{RBAC}, rules: {{action: {action}, policies: {{p: {{permissions: [{{any: true}}], \
         principals: [{{any: true}}]}}}}}}}}"
    )
}

fn extension(name: &str, config: &str) -> String {
    format!("\"@type\": {TYPE}/envoy.config.core.v3.TypedExtensionConfig\nname: {name}\ntyped_config: {config}\n")
}

fn status(port: u16) -> Option<u16> {
    http::at(port, "/").map(|response| response.status)
}

fn wait_for(port: u16, code: u16) {
    until(&format!("{code} at {port}"), || (status(port) == Some(code)).then_some(()));
}

const STATS: [&str; 7] = [
    "config_reload",
    "config_fail",
    "config_conflict",
    "update_success",
    "update_rejected",
    "init_fetch_timeout",
    "update_failure",
];

fn stats(proxy: &Proxy, kind: &str, name: &str) -> Vec<(String, Option<u64>)> {
    let named = |stat: &&str| {
        let name = format!("extension_config_discovery.{kind}.{name}.{stat}");
        (name.clone(), proxy.stat(&name))
    };
    STATS.iter().map(named).collect()
}

#[test]
fn an_http_filters_configuration_comes_changes_and_goes() {
    // In delta, Envoy waits for ever once it was told that there is no such configuration yet.
    alike(|kind| {
        let [now, later, bare] = [(); 3].map(|()| free_port());
        let default = format!(", default_config: {}", rbac(true));
        let at_once = format!("{default}, apply_default_config_without_warming: true");
        let control = Control::start(&[
            ("a.yaml", &listener("a", now, "", &manager(&discovered("one", RBAC, &at_once)))),
            ("b.yaml", &listener("b", later, "", &manager(&discovered("two", RBAC, &default)))),
            ("c.yaml", &listener("c", bare, "", &manager(&discovered("three", RBAC, "")))),
        ]);
        let proxy = Proxy::start(kind, &bootstrap("GRPC", &control, ""));
        // Nothing comes: the defaults hold, and where there is none the request is not let through.
        wait_for(now, 403);
        wait_for(later, 403);
        wait_for(bare, 500);
        let mut log = proxy.log_lines(3);
        log.sort();
        log.dedup();
        let timed_out = [("one", "http_filter"), ("two", "http_filter"), ("three", "http_filter")]
            .map(|(name, kind)| stats(&proxy, kind, name));
        let mut kept = Client::connect(("127.0.0.1", bare)).expect("it listens");
        assert_eq!(kept.get("/", &[]).map(|r| r.status), Some(500));
        for name in ["one", "two", "three"] {
            control.write(&format!("{name}.yaml"), &extension(name, &rbac(false)));
        }
        [now, later, bare].into_iter().for_each(|port| wait_for(port, 200));
        // The connection stood all the while.
        let stood = kept.get("/", &[]).map(|r| r.status);
        // What is of a type that is not allowed changes nothing.
        let router = format!("{{\"@type\": {TYPE}/envoy.extensions.filters.http.router.v3.Router}}");
        control.write("three.yaml", &extension("three", &router));
        proxy.wait_for_stat("extension_config_discovery.http_filter.three.update_rejected", 1);
        let after_nack = status(bare);
        control.write("three.yaml", &extension("three", &rbac(true)));
        wait_for(bare, 403);
        let changed = kept.get("/", &[]).map(|r| r.status);
        let dump = proxy.page("/config_dump?resource=ecds_filters");
        let dumped = dump.matches("TypedExtensionConfig").count();
        (log, timed_out, stood, after_nack, changed, dumped, stats(&proxy, "http_filter", "three"))
    });
}

#[test]
fn what_is_removed_leaves_the_default() {
    alike(|kind| {
        let (with, bare) = (free_port(), free_port());
        let default = format!(", default_config: {}", rbac(true));
        let control = Control::start(&[
            ("a.yaml", &listener("a", with, "", &manager(&discovered("one", RBAC, &default)))),
            ("b.yaml", &listener("b", bare, "", &manager(&discovered("two", RBAC, "")))),
            ("one.yaml", &extension("one", &rbac(false))),
            ("two.yaml", &extension("two", &rbac(false))),
        ]);
        let proxy = Proxy::start(kind, &bootstrap("DELTA_GRPC", &control, ""));
        wait_for(with, 200);
        wait_for(bare, 200);
        for name in ["one.yaml", "two.yaml"] {
            std::fs::remove_file(control.resources().join(name)).expect("it is there");
        }
        wait_for(with, 403);
        wait_for(bare, 500);
        let gone = [stats(&proxy, "http_filter", "one"), stats(&proxy, "http_filter", "two")];
        control.write("two.yaml", &extension("two", &rbac(false)));
        wait_for(bare, 200);
        (gone, stats(&proxy, "http_filter", "two"))
    });
}

/// What an upstream says to a connection; `None` if it is closed without a word.
fn says(port: u16) -> Option<String> {
    let mut client = Client::connect(("127.0.0.1", port))?;
    client.get("/", &[]).map(|response| response.text())
}

#[test]
fn network_and_listener_filters_find_their_configuration() {
    let (first, second) = (Upstream::named("first"), Upstream::named("second"));
    let cluster = |name: &str, port: u16| {
        format!("\"@type\": {TYPE}/envoy.config.cluster.v3.Cluster\n{}", cluster_fields(name, port))
    };
    alike(|kind| {
        let (tcp, inspected) = (free_port(), free_port());
        let to = |cluster: &str| format!("{{\"@type\": {TYPE}/{TCP_PROXY}, stat_prefix: t, cluster: {cluster}}}");
        let inspector = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
        let listener_filters = format!("listener_filters: [{}]\n", discovered("look", inspector, ""));
        let chain = format!("{{name: tcp, typed_config: {}}}", to("first"));
        let control = Control::start(&[
            ("c1.yaml", &cluster("first", first.port())),
            ("c2.yaml", &cluster("second", second.port())),
            ("a.yaml", &listener("a", tcp, "stat_prefix: a\n", &discovered("net", TCP_PROXY, ""))),
            ("b.yaml", &listener("b", inspected, &format!("stat_prefix: b\n{listener_filters}"), &chain)),
        ]);
        let proxy = Proxy::start(kind, &bootstrap("GRPC", &control, ""));
        // Nothing came in time: connections are closed.
        until("the listener", || Client::connect(("127.0.0.1", inspected)));
        until("the listener", || Client::connect(("127.0.0.1", tcp)));
        let closed = (says(tcp), says(inspected));
        until("missing configuration", || {
            (proxy.stat("listener.a.network_extension_config_missing")? > 0).then_some(())
        });
        until("missing configuration", || (proxy.stat("listener.b.extension_config_missing")? > 0).then_some(()));
        control.write("net.yaml", &extension("net", &to("first")));
        control.write("look.yaml", &extension("look", &format!("{{\"@type\": {TYPE}/{inspector}}}")));
        until("the first", || (says(tcp).as_deref() == Some("first")).then_some(()));
        until("the first", || (says(inspected).as_deref() == Some("first")).then_some(()));
        let mut kept = Client::connect(("127.0.0.1", tcp)).expect("it listens");
        let before = kept.get("/", &[]).map(|r| r.text());
        control.write("net.yaml", &extension("net", &to("second")));
        until("the second", || (says(tcp).as_deref() == Some("second")).then_some(()));
        let after = kept.get("/", &[]).map(|r| r.text());
        let counted = [stats(&proxy, "network_filter", "net"), stats(&proxy, "tcp_listener_filter", "look")];
        (closed, before, after, counted, proxy.stat("tls_inspector.tls_not_found").is_some())
    });
}

fn cluster_fields(name: &str, port: u16) -> String {
    format!(
        "name: {name}\nconnect_timeout: 1s\nload_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {}}}}}]}}]}}\n",
        address(port)
    )
}

/// A bootstrap with these listeners; the cluster of the control plane is all that it knows.
fn with_listeners(control: &Control, listeners: &str) -> String {
    let whole = bootstrap("DELTA_GRPC", control, "");
    let (node, rest) = (whole.lines().next().unwrap_or_default(), whole.split("static_resources:\n").nth(1));
    format!("{node}\nstatic_resources:\n  listeners: [{listeners}]\n{}", rest.unwrap_or_default())
}

const DELTA: &str = "{resource_api_version: V3, api_config_source: {api_type: DELTA_GRPC, transport_api_version: V3, \
                     grpc_services: [{envoy_grpc: {cluster_name: xds}}]}}";

fn host_says(port: u16, host: &str) -> Option<(u16, String)> {
    let response = Client::connect(("127.0.0.1", port))?.get("/", &[("host", host)])?;
    Some((response.status, response.text()))
}

#[test]
fn virtual_hosts_come_when_they_are_asked_for() {
    let on_demand = "envoy.filters.http.on_demand";
    let filter = format!(
        "{{name: {on_demand}, typed_config: {{\"@type\": {TYPE}/envoy.extensions.filters.http.on_demand.v3.OnDemand}}}}"
    );
    let host = |name: &str, domain: &str, text: &str| {
        format!(
            "name: {name}\ndomains: [{domain}]\nroutes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: \
             {{inline_string: {text}}}}}}}]\n"
        )
    };
    let resource = |domain: &str, text: &str| {
        let host = host(&format!("r/{domain}"), domain, text);
        format!("\"@type\": {TYPE}/envoy.config.route.v3.VirtualHost\n{host}")
    };
    alike(|kind| {
        let port = free_port();
        let from_rds = format!("rds: {{route_config_name: r, config_source: {ADS}}}");
        let manager = manager(&filter);
        let (before, after) = manager.split_at(manager.find("route_config: ").expect("it has one"));
        let manager = format!("{before}{from_rds}{}", &after[after.len() - 2..]);
        let routes = |text: &str| {
            let own = host("own", "own.test", text).replace('\n', ", ");
            format!(
                "\"@type\": {TYPE}/envoy.config.route.v3.RouteConfiguration\nname: r\nvhds: {{config_source: \
                 {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 1s}}}}\nvirtual_hosts: [{{{}}}]\n",
                own.trim_end_matches(", ")
            )
        };
        let control = Control::start(&[
            ("l.yaml", &listener("l", port, "", &manager)),
            ("r.yaml", &routes("own")),
            ("a.yaml", &resource("a.test", "a1")),
            ("b.yaml", &resource("b.test", "b1")),
        ]);
        let proxy = Proxy::start(kind, &bootstrap("DELTA_GRPC", &control, ""));
        until("the listener", || host_says(port, "own.test"));
        let first = ["own.test", "A.test", "b.test", "a.test"].map(|host| host_says(port, host));
        control.write("a.yaml", &resource("a.test", "a2"));
        until("the update", || (host_says(port, "a.test")?.1 == "a2").then_some(()));
        control.write("r.yaml", &routes("changed"));
        until("the routes", || (host_says(port, "own.test")?.1 == "changed").then_some(()));
        // What came on demand is still there beside them.
        let second = ["a.test", "b.test"].map(|host| host_says(port, host));
        let counted = ["config_reload", "update_success", "update_rejected", "update_empty"]
            .map(|what| proxy.stat(&format!("http.http.rds.vhds.r.{what}")));
        (first, second, counted)
    });
}

#[test]
fn clusters_come_when_they_are_asked_for() {
    let (first, second) = (Upstream::named("first"), Upstream::named("second"));
    let cluster = |name: &str, port: u16| {
        format!("\"@type\": {TYPE}/envoy.config.cluster.v3.Cluster\n{}", cluster_fields(name, port))
    };
    alike(|kind| {
        let (http_port, tcp_port, bare) = (free_port(), free_port(), free_port());
        let filter = format!(
            "{{name: envoy.filters.http.on_demand, typed_config: {{\"@type\": {TYPE}/envoy.extensions.filters.http.\
             on_demand.v3.OnDemand, odcds: {{source: {DELTA}, timeout: 1s}}}}}}"
        );
        let to_header =
            |filter: &str| manager(filter).replace("direct_response: {status: 200}", "route: {cluster_header: x-c}");
        let tcp = format!(
            "{{name: tcp, typed_config: {{\"@type\": {TYPE}/{TCP_PROXY}, stat_prefix: t, cluster: c2, on_demand: \
             {{odcds_config: {DELTA}}}}}}}"
        );
        let flow = |name: &str, port: u16, filter: &str| {
            format!("{{name: {name}, address: {}, filter_chains: [{{filters: [{filter}]}}]}}", address(port))
        };
        let control =
            Control::start(&[("c1.yaml", &cluster("c1", first.port())), ("c2.yaml", &cluster("c2", second.port()))]);
        let listeners = [
            flow("h", http_port, &to_header(&filter)),
            flow("t", tcp_port, &tcp),
            flow("b", bare, &to_header(&rbac_filter())),
        ];
        let proxy = Proxy::start(kind, &with_listeners(&control, &listeners.join(", ")));
        let ask = |port: u16, cluster: &str| {
            let response = Client::connect(("127.0.0.1", port))?.get("/", &[("x-c", cluster)])?;
            Some((response.status, response.text()))
        };
        // Nobody asks for it where there is no such filter.
        let unasked = ask(bare, "c1");
        let answers = ["c1", "c1", "c2", "nope"].map(|cluster| ask(http_port, cluster));
        let known = ask(bare, "c1");
        let over_tcp = says(tcp_port);
        control.write("c1.yaml", &cluster("c1", second.port()));
        until("the update", || (ask(http_port, "c1")?.1 == "second").then_some(()));
        let mut log = proxy.log_lines(5);
        log.retain(|line| !line.contains("200"));
        log.sort();
        let counted = ["attempt", "success", "missing", "timeout"]
            .map(|what| proxy.stat(&format!("tcp.t.on_demand_cluster_{what}")));
        (unasked, answers, known, over_tcp, log, counted)
    });
}

/// An RBAC filter that lets everybody in.
fn rbac_filter() -> String {
    format!("{{name: rbac, typed_config: {}}}", rbac(false))
}

/// A scope whose routes have a name.
fn scope_resource(name: &str, key: &str, routes: &str, fields: &str) -> String {
    format!(
        "{{\"@type\": {TYPE}/envoy.config.route.v3.ScopedRouteConfiguration, name: {name}, route_configuration_name: \
         {routes}, key: {{fragments: [{{string_key: {key}}}]}}{fields}}}\n"
    )
}

fn routes(name: &str, text: &str) -> String {
    format!(
        "\"@type\": {TYPE}/envoy.config.route.v3.RouteConfiguration\nname: {name}\nvirtual_hosts: [{{name: v, domains: \
         [\"*\"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {text}}}}}}}]}}]\n"
    )
}

#[test]
fn scopes_say_which_routes_a_request_has() {
    alike(|kind| {
        let (found, inline) = (free_port(), free_port());
        let with = |scopes: &str| {
            let manager = manager(&rbac_filter());
            let (before, after) = manager.split_at(manager.find("route_config: ").expect("it has one"));
            let fragment = "{header_value_extractor: {name: x-scope, element_separator: \";\", element: {separator: \"=\", \
                            key: s}}}";
            format!(
                "{before}scoped_routes: {{name: scopes, scope_key_builder: {{fragments: [{fragment}]}}, \
                 rds_config_source: {ADS}, {scopes}}}{}",
                &after[after.len() - 2..]
            )
        };
        let srds = format!("scoped_rds: {{scoped_rds_config_source: {ADS}}}");
        let list = format!(
            "scoped_route_configurations_list: {{scoped_route_configurations: [{{name: i, key: {{fragments: \
             [{{string_key: inline}}]}}, route_configuration: {{{}}}}}]}}",
            routes("ra", "a1").trim().split_once('\n').map(|(_, rest)| rest.replace('\n', ", ")).unwrap_or_default()
        );
        let control = Control::start(&[
            ("l1.yaml", &listener("l1", found, "", &with(&srds))),
            ("l2.yaml", &listener("l2", inline, "", &with(&list))),
            ("sa.yaml", &scope_resource("sa", "a", "ra", "")),
            ("sb.yaml", &scope_resource("sb", "b", "rb", "")),
            ("ra.yaml", &routes("ra", "a1")),
            ("rb.yaml", &routes("rb", "b1")),
            ("rc.yaml", &routes("rc", "c1")),
        ]);
        let proxy = Proxy::start(kind, &bootstrap("GRPC", &control, ""));
        let ask = |port: u16, value: &str| {
            let response = Client::connect(("127.0.0.1", port))?.get("/", &[("x-scope", value)])?;
            Some((response.status, response.text()))
        };
        until("the listeners", || (ask(found, "s=a")?.1 == "a1").then_some(()));
        until("the listeners", || (ask(inline, "s=inline")?.1 == "a1").then_some(()));
        let keys = ["s=a", "x=1;s=a", "a", "s=", "s=b", "s=c", ""].map(|value| ask(found, value));
        let others = ["s=a", "s=inline"].map(|value| ask(inline, value));
        let stat = |name: &str| proxy.stat(&format!("http.http.scoped_rds.scopes.{name}"));
        let names = ["all_scopes", "on_demand_scopes", "config_reload", "update_success", "update_rejected"];
        let before = names.map(stat);
        // A second scope with a key that is taken: nothing of it counts.
        control.write("sc.yaml", &scope_resource("sc", "a", "rc", ""));
        until("the refusal", || (stat("update_rejected") > Some(0)).then_some(()));
        let refused = ["s=a", "s=b"].map(|value| ask(found, value));
        control.write("sc.yaml", &scope_resource("sc", "c", "rc", ""));
        until("the new scope", || (ask(found, "s=c")?.1 == "c1").then_some(()));
        std::fs::remove_file(control.resources().join("sa.yaml")).expect("it is there");
        until("the old scope to go", || (ask(found, "s=a")?.0 == 404).then_some(()));
        control.write("sb.yaml", &scope_resource("sb", "b", "rc", ""));
        until("the changed scope", || (ask(found, "s=b")?.1 == "c1").then_some(()));
        let dump = proxy.page("/config_dump?resource=dynamic_scoped_route_configs");
        let dumped = dump.matches("string_key").count();
        (keys, others, before, refused, dumped, ["all_scopes", "on_demand_scopes"].map(stat))
    });
}

/// Envoy 1.40 ends when a scope's routes are asked for and a scope is refused then: this is Weft alone.
#[test]
fn a_scopes_routes_can_wait_for_a_request() {
    let filter = format!(
        "{{name: envoy.filters.http.on_demand, typed_config: {{\"@type\": {TYPE}/envoy.extensions.filters.http.\
         on_demand.v3.OnDemand}}}}"
    );
    let port = free_port();
    let manager = manager(&filter);
    let (before, after) = manager.split_at(manager.find("route_config: ").expect("it has one"));
    let manager = format!(
        "{before}scoped_routes: {{name: scopes, scope_key_builder: {{fragments: [{{header_value_extractor: {{name: x-scope, \
         index: 0}}}}]}}, rds_config_source: {ADS}, scoped_rds: {{scoped_rds_config_source: {ADS}}}}}{}",
        &after[after.len() - 2..]
    );
    let control = Control::start(&[
        ("l.yaml", &listener("l", port, "", &manager)),
        ("sa.yaml", &scope_resource("sa", "a", "ra", ", on_demand: true")),
        ("ra.yaml", &routes("ra", "a1")),
    ]);
    let proxy = Proxy::start(&Kind::Weft, &bootstrap("GRPC", &control, ""));
    until("the listener", || Client::connect(("127.0.0.1", port)));
    assert_eq!(proxy.stat("http.http.rds.ra.update_success"), None);
    let ask = |value: &str| {
        let response = Client::connect(("127.0.0.1", port))?.get("/", &[("x-scope", value)])?;
        Some((response.status, response.text()))
    };
    assert_eq!(ask("b").map(|answer| answer.0), Some(404));
    assert_eq!(ask("a"), Some((200, "a1".into())));
    assert_eq!(proxy.stat("http.http.rds.ra.update_success"), Some(1));
}

#[test]
fn requests_are_dropped_as_the_control_plane_says() {
    let upstream = Upstream::named("up");
    alike(|kind| {
        let (all, none) = (free_port(), free_port());
        let to = |cluster: &str| {
            manager(&rbac_filter()).replace("direct_response: {status: 200}", &format!("route: {{cluster: {cluster}}}"))
        };
        let eds = |name: &str| {
            let source = format!("eds_cluster_config: {{eds_config: {ADS}}}");
            let fields =
                format!("name: {name}\ntype: EDS\nconnect_timeout: 1s\nlrs_server: {{self: {{}}}}\n{source}\n");
            format!("\"@type\": {TYPE}/envoy.config.cluster.v3.Cluster\n{fields}")
        };
        let endpoints = |name: &str, percent: u32| {
            format!(
                "\"@type\": {TYPE}/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: {name}\nendpoints: \
                 [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]\npolicy: {{drop_overloads: [{{category: c, \
                 drop_percentage: {{numerator: {percent}}}}}]}}\n",
                address(upstream.port())
            )
        };
        let control = Control::start(&[
            ("c1.yaml", &eds("all")),
            ("c2.yaml", &eds("none")),
            ("e1.yaml", &endpoints("all", 100)),
            ("e2.yaml", &endpoints("none", 0)),
            ("l1.yaml", &listener("l1", all, "", &to("all"))),
            ("l2.yaml", &listener("l2", none, "", &to("none"))),
        ]);
        let proxy = Proxy::start(kind, &bootstrap("GRPC", &control, ""));
        wait_for(none, 200);
        until("the other listener", || Client::connect(("127.0.0.1", all)));
        let ask = |port: u16| {
            let mut response = Client::connect(("127.0.0.1", port))?.get("/", &[])?;
            response.headers.retain(|(name, _)| name != "date" && name != "x-envoy-upstream-service-time");
            response.headers.sort();
            Some(response)
        };
        let dropped = ask(all);
        let log = proxy.log_lines(2);
        let dropped_log: Vec<_> = log.into_iter().filter(|line| line.contains("503")).collect();
        let counted = ["upstream_rq_503", "upstream_rq_total"].map(|name| proxy.stat(&format!("cluster.all.{name}")));
        // Taken back while the proxy runs; Envoy goes on until a host changes.
        if *kind == Kind::Weft {
            control.write("e1.yaml", &endpoints("all", 0));
            wait_for(all, 200);
        }
        (dropped, dropped_log, counted)
    });
}
