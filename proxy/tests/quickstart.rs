//! `weft quickstart` as its user meets it: started, asked, edited under load, ended.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// A running mesh.
struct Mesh {
    process: Child,
    dir: PathBuf,
    port: u16,
    said: Arc<Mutex<String>>,
}

impl Mesh {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("weft-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let port = free_ports();
        let mut process = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["quickstart", "--port", &port.to_string(), "--dir"])
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary was just built");
        let said = Arc::new(Mutex::new(String::new()));
        let (out, copy) = (process.stdout.take().expect("it is piped"), said.clone());
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let mut said = copy.lock().unwrap();
                *said += &line;
                *said += "\n";
            }
        });
        let mesh = Self { process, dir, port, said };
        mesh.wait_for("The mesh is up");
        mesh
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn wait_for(&self, text: &str) {
        until(&format!("{text:?} is said"), || self.said().contains(text), || self.said());
    }

    fn get(&self, path: &str) -> String {
        get(self.port, path).map_err(|e| format!("{e}; {}", self.said())).unwrap()
    }

    /// Replaces text in one of the files, which must be there.
    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.dir.join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from:?}: {text}");
        fs::write(&path, text.replace(from, to)).unwrap();
    }

    fn is_gone(&self) -> bool {
        [0, 1, 2, 10, 12, 13, 20, 22, 23]
            .iter()
            .all(|n| TcpStream::connect((Ipv4Addr::LOCALHOST, self.port + n)).is_err())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A port with 24 free ones from there on. Each call gives others.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 200) as u16 * 30;
    let mut candidates = (0..300).map(|_| start + NEXT.fetch_add(1, Relaxed) % 300 * 24);
    candidates
        .find(|base| (*base..base + 24).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()))
        .expect("24 free ports")
}

fn until(what: &str, done: impl Fn() -> bool, state: impl Fn() -> String) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "not after 30 s: {what}; {}", state());
        thread::sleep(Duration::from_millis(10));
    }
}

/// A client that keeps its connection.
struct Client {
    port: u16,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    fn get(&mut self, path: &str) -> Result<String, String> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream =
                    TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).map_err(|e| format!("connect: {e}"))?;
                stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(|e| e.to_string())?;
                BufReader::new(stream)
            }
        };
        let (answer, stream) = exchange(stream, path).map_err(|e| format!("{path}: {e}"))?;
        self.stream = stream;
        answer
    }
}

fn get(port: u16, path: &str) -> Result<String, String> {
    Client { port, stream: None }.get(path)
}

type Exchanged = (Result<String, String>, Option<BufReader<TcpStream>>);

/// One request; the body of a response with a good status, and the connection unless it is closed.
fn exchange(mut stream: BufReader<TcpStream>, path: &str) -> std::io::Result<Exchanged> {
    stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nhost: mesh\r\n\r\n").as_bytes())?;
    let (mut status, mut length, mut chunked, mut close) = (String::new(), None, false, false);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(": ") {
            None if line.is_empty() => break,
            None => status = line,
            Some(("content-length", n)) => length = n.parse().ok(),
            Some(("transfer-encoding", _)) => chunked = true,
            Some(("connection", "close")) => close = true,
            Some(_) => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut size = String::new();
            stream.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim_end(), 16).map_err(std::io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else {
        body.resize(length.unwrap_or(0), 0);
        stream.read_exact(&mut body)?;
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    let answer = if status.contains(" 200") { Ok(body) } else { Err(format!("{status}: {body}")) };
    Ok((answer, Some(stream).filter(|_| !close)))
}

/// Clients that ask all the time.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |path: &'static str| {
            let (stop, answered) = (stop.clone(), answered.clone());
            thread::spawn(move || {
                let (mut client, mut failures) = (Client { port, stream: None }, Vec::new());
                while !stop.load(Relaxed) {
                    match client.get(path) {
                        Ok(_) => drop(answered.fetch_add(1, Relaxed)),
                        Err(failure) => failures.push(failure),
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                failures
            })
        };
        let clients = ["/", "/", "/b/", "/chain"].map(client).into();
        Self { stop, answered, clients }
    }

    /// The requests that were answered, and those that failed.
    fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, Relaxed);
        let failures = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (self.answered.load(Relaxed), failures)
    }
}

fn signal(process: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &process.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

const TO_A: &str = "gateway -> sidecar-a -> service-a\n";
const TO_B: &str = "gateway -> sidecar-b -> service-b\n";

#[test]
fn edits_good_and_bad_under_load() {
    let mut mesh = Mesh::start("edits");
    assert_eq!(mesh.get("/"), TO_A);
    assert_eq!(mesh.get("/b/"), TO_B);
    assert_eq!(
        mesh.get("/chain"),
        "gateway -> sidecar-a -> service-a -> sidecar-a (outbound) -> sidecar-b -> service-b\n"
    );
    // From proxy to proxy with identities of the mesh, and not without.
    let sidecar = |what: &str| get(mesh.port + 12, what).unwrap();
    let secrets = sidecar("/config_dump?resource=dynamic_active_secrets");
    assert!(["\"default\"", "\"ROOTCA\"", "[redacted]"].iter().all(|text| secrets.contains(text)), "{secrets}");
    let handshakes = sidecar(&format!("/stats?filter=listener.127.0.0.1_{}.ssl.handshake", mesh.port + 10));
    assert!(!handshakes.contains(": 0\n") && handshakes.contains(": "), "{handshakes}");
    get(mesh.port + 10, "/").unwrap_err();
    let load = Load::start(mesh.port);
    let routes = "gateway/routes.yaml";
    let changes = |to: &str| until(&format!("/ goes {to}"), || mesh.get("/") == to, || mesh.said());

    mesh.edit(routes, "route: {cluster: service-a}", "route: {cluster: service-b}");
    changes(TO_B);

    // What only the proxy can see: refused by it, said here and by its admin API.
    mesh.edit(routes, "prefix: /b/", "safe_regex: {regex: \"(\"}");
    let path = "virtual_hosts[0].routes[0].match.safe_regex.regex";
    mesh.wait_for(path);
    let admin = Client { port: mesh.port + 1, stream: None };
    let ask = |what: &str| get(admin.port, what).unwrap();
    let dump = || ask("/config_dump?resource=dynamic_route_configs");
    assert!(dump().contains("error_state") && dump().contains(path), "{}", dump());
    let stats = ask("/stats?filter=rds");
    assert!(stats.contains("http.gateway.rds.gateway.update_rejected: 1\n"), "{stats}");
    assert_eq!(mesh.get("/b/"), TO_B);

    mesh.edit(routes, "domains: ['*']", "domains: []");
    mesh.wait_for("virtual_hosts[0].domains: found 0, allowed: at least 1");
    until("the admin API says it", || dump().contains("virtual_hosts[0].domains: found 0"), dump);
    mesh.edit(routes, "domains: []", "domains: ['*']");

    // What is no field never leaves the control plane.
    mesh.edit(routes, "route: {cluster: service-b}", "route: {clustre: service-a}");
    mesh.wait_for("routes[2].route.clustre: is not a field of envoy.config.route.v3.RouteAction");
    assert_eq!(mesh.get("/"), TO_B);

    // Put right, all of it is in use.
    mesh.edit(routes, "safe_regex: {regex: \"(\"}", "prefix: /b/");
    mesh.edit(routes, "clustre", "cluster");
    changes(TO_A);
    until("the refusal is past", || !dump().contains("error_state"), dump);

    // A listener, a cluster and the hosts, each while requests go through it.
    mesh.edit("gateway/listeners.yaml", "stat_prefix: gateway", "stat_prefix: edge");
    until(
        "the listener is updated",
        || ask("/stats?filter=http.edge.downstream_rq_total").contains(": "),
        || mesh.said(),
    );
    mesh.edit("sidecar-a/clusters.yaml", "connect_timeout: 1s", "connect_timeout: 2s");
    mesh.wait_for("sidecar-a/clusters.yaml: taken");
    let (a, b) = ((mesh.port + 10).to_string(), (mesh.port + 20).to_string());
    mesh.edit("endpoints.yaml", &a, "swapped");
    mesh.wait_for("endpoints.yaml: refused");
    mesh.edit("endpoints.yaml", "swapped", &b);
    changes(TO_B);

    let (answered, failures) = load.stop();
    assert_eq!(failures, Vec::<String>::new(), "of {answered} requests; {}", mesh.said());
    assert!(answered > 50, "{answered} requests is no load");

    signal(&mesh.process, "TERM");
    assert!(mesh.process.wait().unwrap().success());
    assert!(mesh.is_gone());
}

/// What the files' comments tell to try.
#[test]
fn policies_act_as_the_files_say() {
    let mesh = Mesh::start("policies");
    let stat = |name: &str| {
        let page = get(mesh.port + 1, &format!("/stats?filter=^{name}$")).unwrap();
        page.trim().rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default()
    };
    let of_both = || (0..20).map(|_| mesh.get("/")).collect::<std::collections::BTreeSet<_>>();
    let taken_over = |what: &str| {
        until("all requests go there", || of_both().iter().eq([what]), || mesh.said());
    };
    let failures = |path: &str| (0..20).filter(|_| get(mesh.port, path).is_err()).count();

    // A retry that saves requests.
    assert_eq!(failures("/flaky"), 10);
    let flaky = "{path: /flaky}\n      # It fails every other time. With a retry nobody notices: ";
    let retry = "{cluster: service-a, retry_policy: {retry_on: 5xx, num_retries: 2}}\n      route: ";
    mesh.edit(
        "gateway/routes.yaml",
        &format!("{flaky}{retry}{{cluster: service-a}}"),
        &format!("{{path: /flaky}}\n      route: {}", retry.trim_end_matches("\n      route: ")),
    );
    until("the retry is in use", || failures("/flaky") == 0, || mesh.said());
    assert!(stat("cluster.service-a.upstream_rq_retry_success") >= 20);

    // A breaker that opens: of two at the same time one is refused.
    mesh.edit("gateway/clusters.yaml", "{max_requests: 1024}", "{max_requests: 1}");
    let port = mesh.port;
    let both = || {
        let other = thread::spawn(move || get(port, "/slow"));
        [get(port, "/slow"), other.join().unwrap()]
    };
    until("the breaker opens", || both().iter().any(Result::is_err), || mesh.said());
    assert!(stat("cluster.service-a.upstream_rq_active_overflow") >= 1);
    mesh.edit("gateway/clusters.yaml", "{max_requests: 1}", "{max_requests: 1024}");

    // A host that is left out while it fails, and comes back.
    let host =
        |b: u16| format!("- endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {b}}}}}}}\n");
    let b = host(mesh.port + 20);
    let second = "    # A second host, which shares the requests:\n";
    mesh.edit("endpoints.yaml", &format!("{second}    # {b}"), &format!("{second}    {b}"));
    until("both take part", || of_both().len() == 2, || mesh.said());
    get(mesh.port + 23, "/break").unwrap();
    until("it is left out", || failures("/") == 0, || mesh.said());
    assert_eq!(stat("cluster.service-a.outlier_detection.ejections_active"), 1);
    assert_eq!(of_both().len(), 1);
    get(mesh.port + 23, "/mend").unwrap();
    until("it comes back", || of_both().len() == 2, || mesh.said());
    mesh.edit("endpoints.yaml", &format!("{second}    {b}"), &format!("{second}    # {b}"));

    // One that takes over.
    let comment = format!("  # - priority: 1\n  #   lb_endpoints:\n  #   {b}");
    mesh.edit("endpoints.yaml", &comment, &format!("  - priority: 1\n    lb_endpoints:\n    {b}"));
    mesh.wait_for("endpoints.yaml: taken");
    taken_over(TO_A);
    let a = host(mesh.port + 10);
    let unhealthy = a.replacen("- endpoint", "- health_status: UNHEALTHY\n      endpoint", 1);
    mesh.edit("endpoints.yaml", &a, &unhealthy);
    taken_over(TO_B);
    mesh.edit("endpoints.yaml", &unhealthy, &a);
    taken_over(TO_A);

    // Requests that are shared with a canary.
    let shared = "{weighted_clusters: {clusters: [{name: service-a, weight: 90}, {name: service-b, weight: 10}]}}\n      route: ";
    let to = "      # Try: service-b. Or share the requests: ";
    mesh.edit(
        "gateway/routes.yaml",
        &format!("{to}{shared}{{cluster: service-a}}"),
        &format!("      route: {}", shared.trim_end_matches("\n      route: ")),
    );
    until("both clusters get requests", || of_both().len() == 2, || mesh.said());
}

#[test]
fn nothing_outlives_it_and_a_taken_port_is_named() {
    let mut mesh = Mesh::start("end");
    let second = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["quickstart", "--port", &mesh.port.to_string(), "--dir"])
        .arg(Path::new("/nonexistent/quickstart"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(why.contains(&format!("port {} is not free for the gateway", mesh.port)), "{why}");

    signal(&mesh.process, "KILL");
    mesh.process.wait().unwrap();
    until("everything is gone", || mesh.is_gone(), || mesh.said());
}
