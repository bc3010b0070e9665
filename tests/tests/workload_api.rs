//! A SPIFFE agent that says odd things, and settings that do not fit together.
//!
//! The agent is written here, so that it can say what no agent would.

use bytes::Bytes;
use h2::server;
use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};
use tokio::sync::watch;
use weft_control_api::{
    client::encode_frame,
    workload::{X509Svid, X509SvidResponse},
};
use weft_tests::{
    Kind, Proxy,
    certificate_matrix::{Authority, Issued, uris},
    free_port, http,
    openssl::s_client,
    tools, until, yaml,
};

const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// What the agent says to whoever asks; `None`: that there is nothing for them.
type Word = Option<X509SvidResponse>;

/// An agent; it ends with the test.
struct Agent {
    port: u16,
    says: watch::Sender<Word>,
    _runtime: tokio::runtime::Runtime,
}

impl Agent {
    fn start(word: X509SvidResponse) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (says, heard) = watch::channel(Some(word));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let heard = heard.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = server::handshake(tcp).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        assert_eq!(request.headers()["workload.spiffe.io"], "true");
                        tokio::spawn(answer(respond, heard.clone()));
                    }
                });
            }
        });
        Self { port, says, _runtime: runtime }
    }

    fn say(&self, word: Word) {
        self.says.send_replace(word);
    }

    fn endpoint(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }
}

async fn answer(mut respond: server::SendResponse<Bytes>, mut heard: watch::Receiver<Word>) {
    let head = ::http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    loop {
        let word = heard.borrow_and_update().clone();
        let Some(word) = word else {
            let trailers = [("grpc-status", "7"), ("grpc-message", "no identity issued")];
            let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let _ = stream.send_trailers(trailers.into_iter().collect());
            return;
        };
        if stream.send_data(encode_frame(&word), false).is_err() || heard.changed().await.is_err() {
            return;
        }
    }
}

/// Two trust domains, and a workload of each.
struct World {
    ca: Authority,
    other: Authority,
    identity: Issued,
    directory: PathBuf,
}

impl World {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("weft-workload-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (ca, other) = (Authority::root("ca"), Authority::root("other"));
        for (who, issued) in [
            ("own", ca.leaf(|_| {})),
            ("other", other.leaf(|params| params.subject_alt_names = uris(&["spiffe://other.org/workload"]))),
        ] {
            let chain = issued.chain_pem();
            fs::write(directory.join(format!("{who}.crt")), chain).unwrap();
            fs::write(directory.join(format!("{who}.key")), issued.key_pem()).unwrap();
        }
        let identity = ca.leaf(|_| {});
        Self { ca, other, identity, directory }
    }

    /// What a good agent says.
    fn word(&self) -> X509SvidResponse {
        X509SvidResponse {
            svids: vec![X509Svid {
                spiffe_id: "spiffe://example.org/workload".into(),
                x509_svid: self.identity.chain.concat(),
                x509_svid_key: self.identity.key.clone(),
                bundle: self.ca.der.clone(),
                hint: String::new(),
            }],
            crl: Vec::new(),
            federated_bundles: BTreeMap::from([("spiffe://other.org".to_owned(), self.other.der.clone())]),
        }
    }

    /// True if this client is let in there.
    fn passes(&self, port: u16, who: &str) -> bool {
        let file = |ending: &str| self.directory.join(format!("{who}.{ending}")).display().to_string();
        let handshake = s_client(port, &["-cert", &file("crt"), "-key", &file("key")]);
        handshake.expect("openssl").status == Some(200)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn source(kind: &str) -> String {
    format!(
        "{{api_config_source: {{api_type: {kind}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: \
         spiffe_workload_api}}}}]}}, initial_fetch_timeout: 5s, resource_api_version: V3}}"
    )
}

/// A listener that verifies its clients by a secret.
fn listener(port: u16, identity: &str, trust: &str, kind: &str) -> String {
    let source = source(kind);
    let routes = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}";
    let name = format!("l{port}");
    yaml::http_listener(&name, port, "", routes).replacen(
        "filter_chains: [{",
        &format!(
            "filter_chains: [{{transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPE}.DownstreamTlsContext, \
             require_client_certificate: true, common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: \
             {identity:?}, sds_config: {source}}}], validation_context_sds_secret_config: {{name: {trust:?}, sds_config: \
             {source}}}}}}}}}, "
        ),
        1,
    )
}

#[test]
fn what_an_agent_says_no_longer_is_withdrawn_domain_by_domain() {
    let world = World::new("domains");
    if weft_tests::openssl::version().is_none() {
        return;
    }
    let agent = Agent::start(world.word());
    let [root, all, other] = [(); 3].map(|()| free_port());
    let listeners = [(root, "ROOTCA"), (all, "ALL"), (other, "spiffe://other.org")];
    let listeners = listeners.map(|(port, trust)| listener(port, "default", trust, "GRPC"));
    let proxy =
        Proxy::begin(&Kind::Weft, &yaml::bootstrap(&listeners, &[]), &["--spiffe-endpoint-socket", &agent.endpoint()]);
    // Who is let in: by ROOTCA, by ALL, the other domain by ALL, the other domain by its own.
    let passes = || {
        let clients = [(root, "own"), (all, "own"), (all, "other"), (other, "other")];
        clients.map(|(port, who)| world.passes(port, who))
    };
    let becomes = |about: &str, wanted: [bool; 4]| until(about, || (passes() == wanted).then_some(()));
    let ready = || {
        let response = http::get(proxy.admin(), "/ready").unwrap();
        (response.status, response.text())
    };
    let rejected = |name: &str| proxy.stat(&format!("sds.{name}.update_rejected")).unwrap_or_default();
    becomes("everyone to pass", [true; 4]);
    assert_eq!(proxy.page("/certs").matches("\"example.org: <inline>\"").count(), 2, "{}", proxy.page("/certs"));

    let with = |own: Option<&[u8]>, other: Option<&[u8]>| {
        let mut word = world.word();
        own.into_iter().for_each(|bundle| word.svids[0].bundle = bundle.to_vec());
        other
            .into_iter()
            .for_each(|bundle| drop(word.federated_bundles.insert("spiffe://other.org".into(), bundle.to_vec())));
        Some(word)
    };
    agent.say(with(Some(&[]), None));
    becomes("the own domain to have no authorities", [false, false, true, true]);
    agent.say(with(None, Some(&[])));
    becomes("the other domain to have no authorities", [true, true, false, false]);
    assert_eq!((rejected("ALL"), rejected("ROOTCA")), (0, 0));
    // One that cannot be read holds nobody else up.
    agent.say(with(Some(&world.other.der), Some(b"0garbage")));
    becomes("the own domain to rotate", [false; 4]);
    assert_eq!((rejected("ALL"), rejected("spiffe_other.org"), rejected("ROOTCA")), (1, 1, 0));
    assert!(proxy.log().contains("\"other.org\" cannot be read"), "{}", proxy.log());
    agent.say(with(Some(b"0garbage"), None));
    becomes("the own domain to have none", [false, false, true, true]);
    agent.say(Some(world.word()));
    becomes("everyone to pass again", [true; 4]);

    // Without an identity nobody is served, and that is said.
    assert_eq!(ready(), (200, "LIVE\n".into()));
    agent.say(Some(X509SvidResponse { svids: Vec::new(), ..world.word() }));
    becomes("the identity to be gone", [false; 4]);
    assert_eq!(ready(), (503, "NO_OWN_CERTIFICATE\n".into()));
    let said = proxy.log();
    assert!(said.contains("vouches no longer for \"ROOTCA\", \"default\" (spiffe://example.org/workload)"), "{said}");
    agent.say(Some(world.word()));
    becomes("everyone to pass once more", [true; 4]);
    assert_eq!(ready(), (200, "LIVE\n".into()));

    // An agent that was started anew does not know yet.
    let failures = || proxy.stat("sds.default.update_failure").unwrap_or_default();
    let before = failures();
    agent.say(None);
    until("the agent to deny it twice", || (failures() >= before + 2).then_some(()));
    assert_eq!((passes(), ready()), ([true; 4], (200, "LIVE\n".into())));
    let updates = || proxy.stat("sds.default.update_success").unwrap_or_default();
    let before = updates();
    agent.say(Some(world.word()));
    until("the agent to know again", || (updates() > before).then_some(()));
    assert_eq!(passes(), [true; 4]);
}

#[test]
fn secrets_that_an_agent_does_not_issue_are_named() {
    let world = World::new("names");
    if weft_tests::openssl::version().is_none() {
        return;
    }
    let agent = Agent::start(world.word());
    let [wrong, delta] = [(); 2].map(|()| free_port());
    let listeners = [listener(wrong, "server", "ROOTCA", "GRPC"), listener(delta, "default", "ROOTCA", "DELTA_GRPC")];
    let proxy =
        Proxy::begin(&Kind::Weft, &yaml::bootstrap(&listeners, &[]), &["--spiffe-endpoint-socket", &agent.endpoint()]);
    until("a client to pass", || world.passes(delta, "own").then_some(()));
    let says = "does not issue the secret \"server\"; it issues [\"default\", \"ROOTCA\", \"ALL\", \
                \"spiffe://example.org/workload\", \"spiffe://example.org\", \"spiffe://other.org\"]";
    assert_eq!(proxy.log().matches(says).count(), 1, "{}", proxy.log());
    assert_eq!(proxy.stat("sds.server.update_rejected"), Some(1));
    assert!(!world.passes(wrong, "own"));
}

#[test]
fn settings_that_do_not_fit_are_refused_with_their_place() {
    let validate = |bootstrap: &str, endpoint: Option<&str>, variable: &str| {
        let mut command = Command::new(tools::binary("weft"));
        command.args(["--mode", "validate", "--config-yaml", bootstrap]).env("SPIFFE_ENDPOINT_SOCKET", variable);
        command.args(endpoint.into_iter().flat_map(|endpoint| ["--spiffe-endpoint-socket", endpoint]));
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let asks = |kind: &str| yaml::bootstrap(&[listener(1, "default", "ROOTCA", kind)], &[]);
    let (is_ok, why) = validate(&asks("GRPC"), None, "");
    let path =
        "tls_certificate_sds_secret_configs[0].sds_config.api_config_source.grpc_services[0].envoy_grpc.cluster_name";
    assert!(!is_ok && why.contains(path) && why.contains("--spiffe-endpoint-socket"), "{why}");
    assert!(
        why.contains("validation_context_sds_secret_config.sds_config.api_config_source.grpc_services[0]"),
        "{why}"
    );
    assert!(validate(&asks("GRPC"), None, "unix:///a").0);
    assert!(validate(&asks("DELTA_GRPC"), Some("unix:///a"), "").0);
    let (is_ok, why) = validate(&asks("AGGREGATED_GRPC"), Some("unix:///a"), "");
    assert!(!is_ok && why.contains("api_config_source.api_type"), "{why}");

    let has = yaml::bootstrap(&[listener(1, "default", "ROOTCA", "GRPC")], &[yaml::cluster("spiffe_workload_api", 1)]);
    assert!(validate(&has, None, "").0);
    let (is_ok, why) = validate(&has, Some("unix:///a"), "");
    assert!(!is_ok && why.contains("static_resources.clusters[0].name"), "{why}");

    let (is_ok, why) = validate(&yaml::bootstrap(&[], &[]), Some("unix:relative"), "");
    let line = why.lines().find(|line| line.contains("--spiffe-endpoint-socket")).unwrap_or_default();
    assert!(!is_ok && line.trim().starts_with("--spiffe-endpoint-socket"), "{why}");
}
