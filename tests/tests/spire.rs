//! Weft with the identities that a real SPIRE issues: its server and agent run here, and Weft is the workload.
//!
//! Every request goes through Weft twice: it comes in plain, goes out over mTLS to another listener of the same proxy, and so
//! each makes a handshake in which both sides are verified.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use weft_tests::{Kind, Proxy, Reply, Upstream, free_port, http, tools, until, yaml};

const ENTRY: &str = "spiffe://example.org/weft";

/// A server and an agent; both end with the test.
struct Spire {
    server: PathBuf,
    agent: PathBuf,
    directory: PathBuf,
    running: Vec<(&'static str, Child)>,
}

impl Spire {
    fn start(name: &str) -> Option<Self> {
        let (server, agent) = tools::spire()?;
        let directory = std::env::temp_dir().join(format!("weft-spire-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let mut spire = Self { server, agent, directory, running: Vec::new() };
        let (port, at) = (free_port(), spire.directory.display().to_string());
        let server = format!(
            "server {{\n bind_address = \"127.0.0.1\"\n bind_port = \"{port}\"\n socket_path = \"{at}/server.sock\"\n \
             trust_domain = \"example.org\"\n data_dir = \"{at}/server\"\n log_level = \"WARN\"\n ca_ttl = \"24h\"\n}}\n\
             plugins {{\n DataStore \"sql\" {{ plugin_data {{ database_type = \"sqlite3\"\n connection_string = \
             \"{at}/sqlite\" }} }}\n NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n KeyManager \"memory\" {{ \
             plugin_data {{}} }}\n}}\n"
        );
        fs::write(spire.directory.join("server.conf"), server).unwrap();
        spire.run("server");
        until("SPIRE's server to be healthy", || spire.ask(&["healthcheck"]));
        let node = ["token", "generate", "-spiffeID", "spiffe://example.org/node"];
        let token = spire.ask(&node).unwrap();
        let token = token.lines().find_map(|line| line.strip_prefix("Token: ")).expect("a token").trim().to_owned();
        let agent = format!(
            "agent {{\n data_dir = \"{at}/agent\"\n server_address = \"127.0.0.1\"\n server_port = \"{port}\"\n \
             socket_path = \"{at}/agent.sock\"\n trust_domain = \"example.org\"\n insecure_bootstrap = true\n join_token = \
             \"{token}\"\n log_level = \"WARN\"\n experimental {{ sync_interval = \"1s\" }}\n}}\nplugins {{\n NodeAttestor \
             \"join_token\" {{ plugin_data {{}} }}\n KeyManager \"disk\" {{ plugin_data {{ directory = \"{at}/agent\" }} \
             }}\n WorkloadAttestor \"unix\" {{ plugin_data {{}} }}\n}}\n"
        );
        fs::create_dir_all(spire.directory.join("agent")).unwrap();
        fs::write(spire.directory.join("agent.conf"), agent).unwrap();
        spire.run("agent");
        spire.register(12);
        Some(spire)
    }

    fn run(&mut self, what: &'static str) {
        let program = if what == "server" { &self.server } else { &self.agent };
        let log = File::options().create(true).append(true).open(self.directory.join(format!("{what}.log"))).unwrap();
        let mut command = Command::new(program);
        command.args(["run", "-config"]).arg(self.directory.join(format!("{what}.conf")));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.running.push((what, command.spawn().unwrap()));
    }

    fn kill(&mut self, what: &str) {
        for (_, child) in self.running.iter_mut().filter(|(name, _)| *name == what) {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.running.retain(|(name, _)| *name != what);
    }

    /// What the server's command line says; `None` if it fails.
    fn ask(&self, words: &[&str]) -> Option<String> {
        let mut command = Command::new(&self.server);
        let (what, rest) = match words {
            [a, b, rest @ ..] => (vec![*a, *b], rest),
            _ => (words.to_vec(), &[][..]),
        };
        let output = command.args(what).arg("-socketPath").arg(self.directory.join("server.sock")).args(rest).output();
        let output = output.unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Gives this user's processes an identity that lives for seconds.
    fn register(&self, seconds: u64) {
        let uid = fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
        let selector = format!("unix:uid:{uid}");
        let created = self.ask(&[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/node",
            "-spiffeID",
            ENTRY,
            "-selector",
            &selector,
            "-x509SVIDTTL",
            &seconds.to_string(),
        ]);
        created.expect("an entry");
    }

    fn unregister(&self) {
        let shown = self.ask(&["entry", "show", "-spiffeID", ENTRY]).unwrap();
        let id = shown.lines().find_map(|line| line.strip_prefix("Entry ID")?.split_once(": ")).expect("an entry").1;
        self.ask(&["entry", "delete", "-entryID", id.trim()]).expect("it is deleted");
    }

    fn socket(&self) -> String {
        self.directory.join("agent.sock").display().to_string()
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        for (what, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
            if thread::panicking() {
                let log = fs::read_to_string(self.directory.join(format!("{what}.log"))).unwrap_or_default();
                eprintln!("SPIRE's {what} said:\n{log}");
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A proxy whose listener `plain` goes by mTLS to its listener `secure`, which goes to the upstream. `source` is where its
/// secrets are from.
fn bootstrap(plain: u16, secure: u16, upstream: u16, source: &str, clusters: &[String]) -> String {
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let common = format!(
        "common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: default, sds_config: {source}}}], \
         combined_validation_context: {{default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, \
         matcher: {{exact: \"{ENTRY}\"}}}}]}}, validation_context_sds_secret_config: {{name: ROOTCA, sds_config: {source}}}}}}}"
    );
    let all = |cluster: &str| {
        format!("{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}")
    };
    let inbound = yaml::http_listener("secure", secure, "", &all("app")).replacen(
        "filter_chains: [{",
        &format!(
            "filter_chains: [{{transport_socket: {{name: tls, typed_config: {{\"@type\": {tls}.DownstreamTlsContext, \
             require_client_certificate: true, {common}}}}}, "
        ),
        1,
    );
    let outbound = yaml::cluster("mesh", secure).replacen(
        "{",
        &format!(
            "{{transport_socket: {{name: tls, typed_config: {{\"@type\": {tls}.UpstreamTlsContext, {common}}}}}, \
             max_requests_per_connection: 1, "
        ),
        1,
    );
    let clusters: Vec<String> =
        [yaml::cluster("app", upstream), outbound].into_iter().chain(clusters.iter().cloned()).collect();
    yaml::bootstrap(&[inbound, yaml::http_listener("plain", plain, "", &all("mesh"))], &clusters)
}

/// The agent's SDS, as Envoy is told of it.
fn agent_cluster(socket: &str) -> String {
    format!(
        "{{name: agent, connect_timeout: 1s, type: STATIC, typed_extension_protocol_options: \
         {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": type.googleapis.com/envoy.extensions.upstreams.\
         http.v3.HttpProtocolOptions, explicit_http_config: {{http2_protocol_options: {{}}}}}}}}, load_assignment: \
         {{cluster_name: agent, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: \"{socket}\"}}}}}}}}]}}]}}}}"
    )
}

const BY_SDS: &str = "{api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: \
                      {cluster_name: agent}}]}, resource_api_version: V3}";

/// A client that asks all the time.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    client: thread::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_over, count) = (stop.clone(), answered.clone());
        let client = thread::spawn(move || {
            let mut failures = Vec::new();
            while !is_over.load(Relaxed) {
                match http::at(port, "/") {
                    Some(response) if response.status == 200 => drop(count.fetch_add(1, Relaxed)),
                    other => failures.push(format!("{:?}", other.map(|r| (r.status, r.text())))),
                }
                thread::sleep(Duration::from_millis(5));
            }
            failures
        });
        Self { stop, answered, client }
    }

    fn stop(self) {
        self.stop.store(true, Relaxed);
        let failures = self.client.join().unwrap();
        assert_eq!(failures, Vec::<String>::new(), "of {} requests", self.answered.load(Relaxed));
        assert!(self.answered.load(Relaxed) > 10);
    }
}

#[test]
fn identities_by_sds_rotate_under_load_and_outlive_the_agent() {
    let Some(mut spire) = Spire::start("sds") else { return };
    let upstream = Upstream::start(|_| Reply::text("ok"));
    let (plain, secure) = (free_port(), free_port());
    let config = bootstrap(plain, secure, upstream.port(), BY_SDS, &[agent_cluster(&spire.socket())]);
    let proxy = Proxy::begin(&Kind::Weft, &config, &[]);
    until("a request to pass", || http::at(plain, "/").filter(|response| response.status == 200));

    let load = Load::start(plain);
    let updates = || proxy.stat("sds.default.update_success").unwrap_or_default();
    let begin = updates();
    until("the identity to rotate twice", || (updates() >= begin + 2).then_some(()));
    // Without the agent what it gave is good for as long as it says.
    let failures = proxy.stat("sds.default.update_failure").unwrap_or_default();
    spire.kill("agent");
    until("the stream to end", || proxy.stat("sds.default.update_failure").filter(|n| *n > failures));
    let lost = updates();
    spire.run("agent");
    until("the agent to be heard again", || (updates() > lost).then_some(()));
    load.stop();
    assert_eq!(proxy.stat("sds.default.update_rejected"), Some(0));
    assert!(proxy.stat(&format!("listener.127.0.0.1_{secure}.ssl.handshake")) > Some(10));

    // Nobody vouches for it any more: what it has is not renewed.
    spire.unregister();
    until("the identity to end", || http::at(plain, "/").filter(|response| response.status == 503));
    let expired = format!("listener.127.0.0.1_{secure}.ssl.own_certificate_expired");
    until("the listener to count it", || proxy.stat(&expired).filter(|n| *n > 0));
    let ready = http::get(proxy.admin(), "/ready").unwrap();
    assert_eq!((ready.status, ready.text().as_str()), (503, "OWN_CERTIFICATE_EXPIRED\n"));
}

const BY_WORKLOAD_API: &str = "{api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: \
                               [{envoy_grpc: {cluster_name: spiffe_workload_api}}]}, resource_api_version: V3}";

#[test]
fn identities_by_the_workload_api_rotate_and_cease() {
    let Some(mut spire) = Spire::start("workload") else { return };
    let upstream = Upstream::start(|_| Reply::text("ok"));
    let (plain, secure) = (free_port(), free_port());
    let config = bootstrap(plain, secure, upstream.port(), BY_WORKLOAD_API, &[]);
    let endpoint = format!("unix://{}", spire.socket());
    let proxy = Proxy::begin(&Kind::Weft, &config, &["--spiffe-endpoint-socket", &endpoint]);
    let passes = || http::at(plain, "/").filter(|response| response.status == 200);
    until("a request to pass", passes);

    let load = Load::start(plain);
    let updates = || proxy.stat("sds.default.update_success").unwrap_or_default();
    let begin = updates();
    until("the identity to rotate", || (updates() > begin).then_some(()));
    let failures = proxy.stat("sds.default.update_failure").unwrap_or_default();
    spire.kill("agent");
    until("the stream to end", || proxy.stat("sds.default.update_failure").filter(|n| *n > failures));
    let lost = updates();
    spire.run("agent");
    until("the agent to be heard again", || (updates() > lost).then_some(()));
    load.stop();

    // Nobody vouches for it any more: it is used no longer, though it has not ended yet.
    let before = updates();
    spire.unregister();
    spire.register(600);
    until("an identity that lasts", || (updates() > before).then_some(()));
    spire.unregister();
    let not_ready = "cluster.mesh.client_ssl_socket_factory.upstream_context_secrets_not_ready";
    until("the identity to be unloaded", || {
        http::at(plain, "/");
        proxy.stat(not_ready).filter(|n| *n > 0)
    });
    let ready = || http::get(proxy.admin(), "/ready").map(|response| (response.status, response.text()));
    assert_eq!(ready(), Some((503, "NO_OWN_CERTIFICATE\n".into())));
    assert_eq!(proxy.log().matches("vouches no longer for").count(), 1, "{}", proxy.log());
    spire.register(12);
    until("a request to pass again", passes);
    assert_eq!(ready(), Some((200, "LIVE\n".into())));
}
