//! The admin API over a server that is not there: its texts are Envoy's.

use super::{
    message::{Reply, Request},
    view::*,
};
use crate::{
    base::{Address, RuntimeSnapshot},
    observe::{access_log::AccessLogs, stats::Registry, stats_text::Bounds, tags::TagExtractors},
    upstream::Cluster,
};
use http::Method;
use serde_json::{Value, json};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use weft_config::{
    Context,
    bootstrap::{StatsConfig, StatsMatcher},
    cluster,
};
use weft_control_api::{
    Any, EncodeOptions, Message as _,
    envoy::config::{cluster::v3 as pb, core::v3::Node},
    text::{self, Format},
};

crate::stats! {
    struct FakeStats {
        counter hits,
        gauge level,
        histogram(Milliseconds) time,
    }
}

struct Fake {
    registry: Registry,
    settings: StatsSettings,
    state: Cell<State>,
    is_identity_withdrawn: Cell<bool>,
    commands: RefCell<Vec<Command>>,
    level: RefCell<&'static str>,
}

impl Fake {
    fn new() -> Rc<Self> {
        let config = StatsConfig {
            use_all_default_tags: true,
            tags: Vec::new(),
            allow_default_tag_overrides: false,
            matcher: StatsMatcher::All,
            histogram_buckets: Vec::new(),
        };
        Rc::new(Self {
            registry: Registry::new(),
            settings: StatsSettings { tags: TagExtractors::new(&config, &[]), bounds: Bounds::default() },
            state: Cell::new(State::Live),
            is_identity_withdrawn: Cell::new(false),
            commands: RefCell::default(),
            level: RefCell::new("info"),
        })
    }
}

/// A message written as YAML.
fn any(name: &str, yaml: &str) -> Any {
    let encoded = text::read(yaml.as_bytes(), Format::Yaml, name, EncodeOptions::default()).expect("valid");
    Any { type_url: format!("type.googleapis.com/{name}"), value: encoded.bytes }
}

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const C1: &str = "{name: c1, connect_timeout: 1s, load_assignment: {cluster_name: c1, endpoints: [{locality: {region: r, \
    zone: z}, lb_endpoints: [{endpoint: {hostname: hh, address: {socket_address: {address: 127.0.0.1, port_value: 81}}}}]}]}}";

fn resource(name: &str, config: Any) -> Resource {
    Resource { name: name.into(), config, last_updated: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500) }
}

impl ServerView for Fake {
    fn info(&self) -> ServerInfo {
        ServerInfo {
            version: "0/1.40.0/Clean/RELEASE/weft".into(),
            state: self.state.get(),
            uptime: Duration::from_millis(3_900),
            uptime_all_epochs: Duration::from_secs(3),
            hot_restart_version: "disabled".into(),
            command_line_options: json!({ "concurrency": 1 }),
            node: Node { id: "n".into(), ..Node::default() },
        }
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn stats_settings(&self) -> &StatsSettings {
        &self.settings
    }

    fn refresh_stats(&self) {}

    fn listeners(&self) -> Vec<ListenerStatus> {
        let ip = |text: &str| Address::Ip(text.parse().expect("valid"));
        vec![
            ListenerStatus { name: "l1".into(), addresses: vec![ip("127.0.0.1:80"), ip("[::1]:81")] },
            ListenerStatus { name: "l2".into(), addresses: vec![Address::Unix("/s".into())] },
        ]
    }

    fn clusters(&self) -> Vec<Arc<Cluster>> {
        let pb = pb::Cluster::decode(&any(CLUSTER, C1).value[..]).expect("valid");
        let config = cluster::Cluster::from_proto(pb, &mut Context::new()).expect("valid");
        let mut names = crate::upstream::Names::default();
        vec![Cluster::compile(
            names.intern("c1"),
            Arc::new(config),
            None,
            None,
            false,
            &crate::transport::tls::secrets::NoSecrets,
            &mut Context::new(),
        )]
    }

    fn config_dump(&self) -> ConfigDump {
        let secret = any(
            "envoy.extensions.transport_sockets.tls.v3.Secret",
            "{name: s, generic_secret: {secret: {inline_string: hidden}}}",
        );
        let failed = any("envoy.config.listener.v3.Listener", "{name: bad}");
        ConfigDump {
            bootstrap: Some(resource("", any("envoy.config.bootstrap.v3.Bootstrap", "{node: {id: n1, cluster: c}}"))),
            clusters: VersionedResources {
                version_info: "7".into(),
                fixed: vec![resource("c2", any(CLUSTER, "{name: c2}")), resource("c1", any(CLUSTER, "{name: c1}"))],
                ..VersionedResources::default()
            },
            listeners: vec![DynamicListener {
                name: "bad".into(),
                error: Some(UpdateFailure {
                    failed_configuration: Some(failed),
                    last_update_attempt: SystemTime::UNIX_EPOCH,
                    details: "no filter chains".into(),
                    version_info: String::new(),
                }),
                ..DynamicListener::default()
            }],
            secrets: VersionedResources { fixed: vec![resource("s", secret)], ..VersionedResources::default() },
            ..ConfigDump::default()
        }
    }

    fn unready_targets(&self) -> Vec<UnreadyTargets> {
        Vec::new()
    }

    fn is_identity_expired(&self) -> bool {
        false
    }

    fn is_identity_withdrawn(&self) -> bool {
        self.is_identity_withdrawn.get()
    }

    fn certificates(&self) -> Vec<Value> {
        Vec::new()
    }

    fn runtime(&self) -> RuntimeDump {
        let entry = |key: &str, values: [&str; 2]| (key.to_owned(), values.map(str::to_owned).to_vec());
        let entries = vec![entry("b", ["1", ""]), entry("a", ["100", "0"])];
        RuntimeDump { layers: vec!["s".into(), "adm".into()], entries }
    }

    fn runtime_snapshot(&self) -> Arc<RuntimeSnapshot> {
        Arc::default()
    }

    fn modify_runtime(&self, changes: &[(String, String)]) -> Result<(), String> {
        if changes[0].0 == "none" { Err("No admin layer specified".into()) } else { Ok(()) }
    }

    fn log_levels(&self) -> Vec<(&'static str, &'static str)> {
        vec![("http", *self.level.borrow()), ("pool", "info")]
    }

    fn set_log_level(&self, _: Option<&str>, level: &str) -> bool {
        *self.level.borrow_mut() = if level == "debug" { "debug" } else { "info" };
        true
    }

    fn command(&self, command: Command) {
        self.commands.borrow_mut().push(command);
    }
}

fn ask(view: &Rc<Fake>, method: Method, target: &str) -> (u16, String) {
    let admin = Admin::new(view.clone(), Vec::new(), AccessLogs::default());
    let Reply { status, body, .. } = admin.answer(&Request::new(method, target, None));
    (status.as_u16(), body)
}

use super::serve::Admin;

fn get(view: &Rc<Fake>, target: &str) -> (u16, String) {
    ask(view, Method::GET, target)
}

fn json_of(view: &Rc<Fake>, target: &str) -> Value {
    serde_json::from_str(&get(view, target).1).expect("JSON")
}

#[test]
fn life_and_commands() {
    let view = Fake::new();
    assert_eq!(get(&view, "/ready"), (200, "LIVE\n".into()));
    view.is_identity_withdrawn.set(true);
    assert_eq!(get(&view, "/ready"), (503, "NO_OWN_CERTIFICATE\n".into()));
    view.state.set(State::PreInitializing);
    assert_eq!(get(&view, "/ready?x"), (503, "PRE_INITIALIZING\n".into()));
    assert_eq!(get(&view, "/quitquitquit"), (405, "Method GET not allowed, POST required.".into()));
    assert!(view.commands.borrow().is_empty());
    assert_eq!(ask(&view, Method::POST, "/drain_listeners?inboundonly&graceful"), (200, "OK\n".into()));
    assert_eq!(ask(&view, Method::POST, "/quitquitquit"), (200, "OK\n".into()));
    let drain = Command::DrainListeners { inbound_only: true, graceful: true, skip_exit: false };
    assert_eq!(*view.commands.borrow(), [drain, Command::Quit]);
    let (status, body) = get(&view, "/nope");
    assert_eq!(status, 404);
    assert!(body.starts_with("invalid path. admin commands are:\n  /: "), "{body}");
    let info = json_of(&view, "/server_info");
    assert_eq!((&info["uptime_current_epoch"], &info["node"]["extensions"]), (&json!("3s"), &json!([])));
    assert_eq!(get(&view, "/certs").1, "{\n \"certificates\": []\n}\n");
    assert_eq!(get(&view, "/init_dump").1, "{}\n");
    assert_eq!(get(&view, "/hot_restart_version").1, "disabled");
    assert!(get(&view, "/").1.contains("<form action='quitquitquit' method='post'"));
}

#[test]
fn stats_by_name_kind_and_format() {
    let view = Fake::new();
    let stats = view.registry.attach::<FakeStats>("cluster.c");
    stats.hits.add(2);
    stats.time.record(7);
    assert_eq!(get(&view, "/stats?filter=cluster.c.[hl]").1, "cluster.c.hits: 2\ncluster.c.level: 0\n");
    assert_eq!(get(&view, "/stats?usedonly&filter=cluster.c&type=Counters").1, "cluster.c.hits: 2\n");
    assert_eq!(get(&view, "/stats?filter=%5Ecluster&invert_filter&type=Gauges&usedonly").1, "");
    let json = json_of(&view, "/stats?format=json&filter=cluster.c.hits");
    assert_eq!(json, json!({ "stats": [{ "name": "cluster.c.hits", "value": 2 }] }));
    let prometheus = get(&view, "/stats/prometheus?filter=hits").1;
    assert_eq!(prometheus, "# TYPE envoy_cluster_hits counter\nenvoy_cluster_hits{envoy_cluster_name=\"c\"} 2\n");
    assert_eq!(get(&view, "/stats?format=bad").1, "usage: /stats?format=(html|active-html|json|prometheus|text)\n\n");
    assert_eq!(get(&view, "/stats?type=bad"), (400, "invalid &type= param".into()));
    assert_eq!(get(&view, "/stats?filter=(").0, 400);
    assert!(get(&view, "/stats?histogram_buckets=detailed&filter=time").1.contains("\n  totals=7,0.1:1\n"));
    assert_eq!(ask(&view, Method::POST, "/reset_counters").1, "OK\n");
    assert_eq!(get(&view, "/stats?filter=hits").1, "cluster.c.hits: 0\n");
}

#[test]
fn clusters_and_listeners() {
    let view = Fake::new();
    let text = get(&view, "/clusters").1;
    let start = "c1::observability_name::c1\nc1::default_priority::max_connections::1024\n";
    assert!(text.starts_with(start), "{text}");
    let host = "c1::added_via_api::false\nc1::127.0.0.1:81::cx_active::0\nc1::127.0.0.1:81::cx_connect_fail::0\n\
        c1::127.0.0.1:81::cx_total::0\nc1::127.0.0.1:81::rq_active::0\nc1::127.0.0.1:81::rq_error::0\n\
        c1::127.0.0.1:81::rq_pending_active::0\nc1::127.0.0.1:81::rq_success::0\nc1::127.0.0.1:81::rq_timeout::0\n\
        c1::127.0.0.1:81::rq_total::0\nc1::127.0.0.1:81::hostname::hh\nc1::127.0.0.1:81::health_flags::healthy\n\
        c1::127.0.0.1:81::weight::1\nc1::127.0.0.1:81::region::r\nc1::127.0.0.1:81::zone::z\n\
        c1::127.0.0.1:81::sub_zone::\nc1::127.0.0.1:81::canary::false\nc1::127.0.0.1:81::priority::0\n\
        c1::127.0.0.1:81::success_rate::-1\nc1::127.0.0.1:81::local_origin_success_rate::-1\n";
    assert!(text.ends_with(host), "{text}");
    let json = json_of(&view, "/clusters?format=json");
    let host = &json["cluster_statuses"][0]["host_statuses"][0];
    assert_eq!(host["address"], json!({ "socket_address": { "address": "127.0.0.1", "port_value": 81 } }));
    assert_eq!(host["health_status"], json!({ "eds_health_status": "HEALTHY" }));
    assert_eq!(host["stats"][0], json!({ "name": "cx_connect_fail" }));
    assert_eq!(host["locality"], json!({ "region": "r", "zone": "z" }));
    assert_eq!(get(&view, "/clusters?filter=no").1, "");
    assert_eq!(get(&view, "/clusters?filter=(").0, 400);
    assert_eq!(get(&view, "/listeners").1, "l1::127.0.0.1:80\nl1::[::1]:81\nl2::/s\n");
    let json = json_of(&view, "/listeners?format=json");
    assert_eq!(json["listener_statuses"][1], json!({ "name": "l2", "local_address": { "pipe": { "path": "/s" } } }));
}

#[test]
fn configuration_with_masks_names_and_without_secrets() {
    let view = Fake::new();
    let configs = json_of(&view, "/config_dump?include_eds")["configs"].take();
    let types: Vec<&str> = configs.as_array().expect("a list").iter().filter_map(|c| c["@type"].as_str()).collect();
    let types: Vec<&str> = types.into_iter().filter_map(|name| name.rsplit('.').next()).collect();
    let expected = [
        "BootstrapConfigDump",
        "ClustersConfigDump",
        "EndpointsConfigDump",
        "ListenersConfigDump",
        "SecretsConfigDump",
    ];
    assert_eq!(types, expected);
    assert_eq!(
        configs[1]["static_clusters"][0],
        json!({ "cluster": { "@type": format!("type.googleapis.com/{CLUSTER}"), "name": "c1" }, "last_updated": "1970-01-01T00:00:01.500Z" })
    );
    let endpoint = &configs[2]["static_endpoint_configs"][0]["endpoint_config"];
    assert_eq!(
        endpoint["endpoints"][0],
        json!({
            "locality": { "region": "r", "zone": "z" },
            "lb_endpoints": [{
                "endpoint": {
                    "address": { "socket_address": { "address": "127.0.0.1", "port_value": 81 } },
                    "health_check_config": {},
                    "hostname": "hh",
                },
                "health_status": "HEALTHY",
                "load_balancing_weight": 1,
            }],
            "load_balancing_weight": 0,
        })
    );
    assert_eq!(endpoint["policy"]["overprovisioning_factor"], 140);
    assert_eq!(configs[3]["dynamic_listeners"][0]["error_state"]["details"], "no filter chains");
    assert!(!configs.to_string().contains("hidden"));
    let one = json_of(&view, "/config_dump?resource=static_clusters&mask=cluster.name&name_regex=c2");
    assert_eq!(
        one,
        json!({ "configs": [{
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
            "cluster": { "@type": format!("type.googleapis.com/{CLUSTER}"), "name": "c2" },
        }] })
    );
    let masked = json_of(&view, "/config_dump?mask=bootstrap.node.id");
    assert_eq!(masked["configs"].as_array().map(Vec::len), Some(1));
    assert_eq!(masked["configs"][0]["bootstrap"], json!({ "node": { "id": "n1" } }));
    assert_eq!(json_of(&view, "/config_dump?resource=static_clusters&name_regex=c"), json!({}));
    for (query, status) in [
        ("resource=nope", 404),
        ("mask=nope.nope", 400),
        ("name_regex=(", 400),
        ("resource=static_clusters&mask=nope", 400),
        ("resource=version_info", 400),
    ] {
        assert_eq!(get(&view, &format!("/config_dump?{query}")).0, status, "{query}");
    }
}

#[test]
fn runtime_and_log_levels() {
    let view = Fake::new();
    let runtime = json_of(&view, "/runtime");
    assert_eq!(runtime["layers"], json!(["s", "adm"]));
    assert_eq!(runtime["entries"]["a"], json!({ "final_value": "0", "layer_values": ["100", "0"] }));
    assert_eq!(ask(&view, Method::POST, "/runtime_modify?a=1"), (200, "OK\n".into()));
    assert_eq!(ask(&view, Method::POST, "/runtime_modify").0, 400);
    assert_eq!(ask(&view, Method::POST, "/runtime_modify?none=1").0, 503);
    let post = |target: &str| ask(&view, Method::POST, target);
    assert_eq!(post("/logging?http=debug"), (200, "active loggers:\n  http: debug\n  pool: info\n\n".into()));
    for (target, problem) in [
        ("/logging?level=bad", "unknown logger level"),
        ("/logging?foo=debug", "unknown logger name"),
        ("/logging?http=debug&pool=info", "invalid number of parameters"),
        ("/logging?paths=http", "empty logger name or empty logger level"),
        ("/logging?paths=http:info,pool:bad", "unknown logger level"),
    ] {
        let (status, body) = post(target);
        assert_eq!(status, 400);
        assert!(body.starts_with(&format!("error: {problem}\n\nusage: /logging?<name>=<level>")), "{body}");
    }
}

#[test]
fn over_a_socket_it_looks_like_envoy() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (reply, paths) = tokio::task::LocalSet::new().block_on(&runtime, async {
        let address = weft_config::Address::Socket(weft_config::address::SocketAddress {
            protocol: weft_config::address::Protocol::Tcp,
            host: "127.0.0.1".into(),
            port: 0,
            ipv4_compat: false,
        });
        let socket = super::AdminSocket::bind(&address).expect("a free port");
        let peer = socket.address().ip().expect("an IP address");
        let view = Fake::new();
        let exact = weft_control_api::envoy::r#type::matcher::v3::StringMatcher {
            match_pattern: Some(weft_control_api::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Exact(
                "/ready".into(),
            )),
            ..Default::default()
        };
        let allowed =
            weft_config::string_matcher::StringMatcher::from_proto(exact, &mut Context::new()).expect("valid");
        let admin = Admin::new(view.clone(), vec![allowed], AccessLogs::default());
        tokio::task::spawn_local(admin.serve(socket));
        let mut client = tokio::net::TcpStream::connect(peer).await.expect("it listens");
        let requests =
            b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\nGET /stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        client.write_all(requests).await.expect("it reads");
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.expect("it answers");
        let mut paths = Vec::new();
        view.registry.visit(&mut |name, stat| {
            if let crate::observe::stats::StatRef::Counter(counter) = stat
                && counter.get() > 0
            {
                paths.push(format!("{name}={}", counter.get()));
            }
        });
        (reply, paths)
    });
    let date = reply.find("date: ").expect("a date");
    let end = date + reply[date..].find("\r\n").expect("an end");
    let first = format!("{}{}", &reply[..date], &reply[end + 2..]);
    let expected = "HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=UTF-8\r\ncache-control: no-cache, max-age=0\r\n\
        x-content-type-options: nosniff\r\nserver: envoy\r\ntransfer-encoding: chunked\r\n\r\n5\r\nLIVE\n\r\n0\r\n\r\n\
        HTTP/1.1 403 Forbidden\r\n";
    assert!(first.starts_with(expected), "{first}");
    for count in
        ["http.admin.downstream_rq_2xx=1", "http.admin.downstream_rq_4xx=1", "listener.admin.downstream_cx_total=1"]
    {
        assert!(paths.iter().any(|path| path == count), "{paths:?}");
    }
}
