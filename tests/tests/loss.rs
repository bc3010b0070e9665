//! Requests that each carry an id, while everything around them changes: hosts come, go, fail and start again, priorities take over, and
//! policies, clusters, routes and the listener are pushed. Each request has one outcome, and it is its own; what must not be repeated
//! reaches one upstream at most; and nobody fails while there is a host that could answer.
//!
//! A few seconds, or as long as one likes: `WEFT_LOSS_SECONDS=600`. `WEFT_LOSS_SEED` repeats a run's changes.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use weft_tests::{Client, Control, Kind, Proxy, free_port, until};

const HOSTS: usize = 6;
const CLIENTS: usize = 8;
/// Requests of each client that must not be repeated: every so many.
const POSTS: u64 = 4;

/// How often each id came to an upstream.
type Arrivals = Arc<Mutex<HashMap<u64, u32>>>;

/// An upstream that can be cut off in the midst of everything, and started again at its port.
struct Server {
    port: u16,
    arrivals: Arrivals,
    running: Option<Running>,
}

struct Running {
    is_over: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    accepts: JoinHandle<()>,
}

impl Server {
    fn start(arrivals: &Arrivals) -> Self {
        let mut server = Self { port: free_port(), arrivals: arrivals.clone(), running: None };
        server.go_on();
        server
    }

    fn go_on(&mut self) {
        let listener = until("its port", || TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).ok());
        let (is_over, connections) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (over, all, arrivals) = (is_over.clone(), connections.clone(), self.arrivals.clone());
        let accepts = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut all = all.lock().expect("no thread panics");
                if over.load(SeqCst) {
                    break;
                }
                all.push(stream.try_clone().expect("a descriptor"));
                let arrivals = arrivals.clone();
                thread::spawn(move || _ = serve(&stream, &arrivals));
            }
        });
        self.running = Some(Running { is_over, connections, accepts });
    }

    /// Ends it at once, whatever it is doing.
    fn cut(&mut self) {
        let Some(Running { is_over, connections, accepts }) = self.running.take() else { return };
        is_over.store(true, SeqCst);
        connections.lock().expect("no thread panics").iter().for_each(|stream| _ = stream.shutdown(Shutdown::Both));
        // So that the listener looks.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        accepts.join().expect("it only accepts");
    }
}

/// Answers each request with its id.
fn serve(stream: &TcpStream, arrivals: &Arrivals) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let (mut id, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("x-id", value)) => id = value.parse().ok(),
                Some(("content-length", value)) => length = value.parse().ok()?,
                _ => {}
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let id: u64 = id?;
        *arrivals.lock().ok()?.entry(id).or_default() += 1;
        let text = format!("{id} ").repeat(usize::try_from(id % 40).ok()? + 1);
        // In one piece: an answer that was begun cannot be taken back.
        let answer = format!("HTTP/1.1 200 OK\r\nx-id: {id}\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        writer.write_all(answer.as_bytes()).ok()?;
    }
}

/// What went wrong with requests, and how many there were.
#[derive(Default)]
struct Outcomes {
    next: AtomicU64,
    answered: AtomicUsize,
    /// Those that may not be repeated, and were told that they failed.
    posts_failed: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Outcomes {
    fn wrong(&self, what: String) {
        self.wrong.lock().expect("no thread panics").push(what);
    }
}

fn ask(port: u16, is_over: &AtomicBool, outcomes: &Outcomes) {
    let mut client = None;
    while !is_over.load(SeqCst) {
        let mut connection =
            client.take().or_else(|| Client::connect((Ipv4Addr::LOCALHOST, port))).expect("it listens");
        let id = outcomes.next.fetch_add(1, SeqCst);
        let is_post = id.is_multiple_of(POSTS);
        let (method, body) = if is_post { ("POST", format!("body of {id}")) } else { ("GET", String::new()) };
        let length = if is_post { format!("content-length: {}\r\n", body.len()) } else { String::new() };
        connection.send(format!("{method} /{id} HTTP/1.1\r\nhost: a.test\r\nx-id: {id}\r\n{length}\r\n{body}"));
        let Some(response) = connection.response() else {
            outcomes.wrong(format!("{method} {id} has no outcome"));
            continue;
        };
        let details = response.header("x-details").unwrap_or_default();
        match response.status {
            200 if response.header("x-id") != Some(&*id.to_string())
                || !response.text().starts_with(&format!("{id} ")) =>
            {
                outcomes.wrong(format!("{method} {id} got another's answer: {:?}", response.headers));
            }
            200 => _ = outcomes.answered.fetch_add(1, SeqCst),
            503 if is_post => _ = outcomes.posts_failed.fetch_add(1, SeqCst),
            status => outcomes.wrong(format!("{method} {id} failed with {status}: {details}")),
        }
        if response.header("connection").is_none_or(|value| value != "close") {
            client = Some(connection);
        }
    }
}

/// What the control plane serves; each field is one of the things that change.
struct Mesh {
    control: Control,
    ports: Vec<u16>,
    listener: u16,
    /// Of each host: in which priority it is, or not at all.
    places: Vec<Option<u32>>,
    policy: usize,
    timeout: u32,
    stat_prefix: usize,
}

impl Mesh {
    fn push_endpoints(&self) {
        let of = |priority: u32| {
            let here = self.places.iter().zip(&self.ports).filter(|(place, _)| **place == Some(priority));
            let hosts: Vec<_> = here
                .map(|(_, port)| {
                    format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
                })
                .collect();
            format!("{{priority: {priority}, lb_endpoints: [{}]}}", hosts.join(", "))
        };
        let text = format!(
            "\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: u\nendpoints: [{}, {}]\n",
            of(0),
            of(1)
        );
        self.control.write("endpoints.yaml", &text);
    }

    fn push_cluster(&self) {
        let policy = ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"][self.policy % 3];
        let text = format!(
            "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: u\ntype: EDS\nlb_policy: {policy}\n\
             connect_timeout: 1s\neds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}\n\
             circuit_breakers: {{thresholds: [{{max_retries: {}}}]}}\n",
            100 + self.policy
        );
        self.control.write("cluster.yaml", &text);
    }

    fn push_routes(&self) {
        let retry = |on: &str| {
            format!(
                "{{retry_on: \"{on}\", num_retries: 10, retry_back_off: {{base_interval: 0.005s}}, \
                 retry_host_predicate: [{{name: p, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.retry.host.\
                 previous_hosts.v3.PreviousHostsPredicate}}}}], host_selection_retry_max_attempts: 5}}"
            )
        };
        let text = format!(
            "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: r\nvirtual_hosts:\n- name: v\n  \
             domains: ['*']\n  routes:\n  - match: {{prefix: /, headers: [{{name: ':method', string_match: {{exact: POST}}}}]}}\n    \
             route: {{cluster: u, timeout: {0}s, retry_policy: {1}}}\n  - match: {{prefix: /}}\n    route: {{cluster: u, \
             timeout: {0}s, retry_policy: {2}}}\n  response_headers_to_add: [{{header: {{key: x-details, value: \
             \"%RESPONSE_CODE_DETAILS%\"}}}}]\n",
            self.timeout,
            retry("connect-failure,refused-stream"),
            retry("5xx,reset,connect-failure")
        );
        self.control.write("routes.yaml", &text);
    }

    fn push_listener(&self) {
        let text = format!(
            "\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\nname: l\naddress: {{socket_address: {{address: \
             127.0.0.1, port_value: {}}}}}\nfilter_chains:\n- filters:\n  - name: http\n    typed_config:\n      \"@type\": \
             type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n      \
             stat_prefix: http{}\n      rds: {{route_config_name: r, config_source: {{ads: {{}}, resource_api_version: V3}}}}\n      \
             http_filters:\n      - name: router\n        typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}\n",
            self.listener, self.stat_prefix
        );
        self.control.write("listener.yaml", &text);
    }

    /// The hosts that get requests: those of the first priority that has any.
    fn in_use(&self) -> Vec<usize> {
        let of = |priority| (0..HOSTS).filter(|i| self.places[*i] == Some(priority)).collect::<Vec<_>>();
        if of(0).is_empty() { of(1) } else { of(0) }
    }
}

fn bootstrap(control: &Control) -> String {
    format!(
        "node: {{id: n1, cluster: tests}}\ndynamic_resources: {{ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, \
         grpc_services: [{{envoy_grpc: {{cluster_name: control}}}}]}}, cds_config: {{ads: {{}}, resource_api_version: V3}}, \
         lds_config: {{ads: {{}}, resource_api_version: V3}}}}\nstatic_resources: {{clusters: [{{name: control, connect_timeout: \
         1s, type: STATIC, typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
         {{\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
         {{http2_protocol_options: {{}}}}}}}}, load_assignment: {{cluster_name: control, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}}}]}}\n",
        control.port()
    )
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_request_has_one_outcome_whatever_changes() {
    let seed = setting("WEFT_LOSS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let length = Duration::from_secs(setting("WEFT_LOSS_SECONDS").unwrap_or(8));
    eprintln!("WEFT_LOSS_SEED={seed}");
    let mut random = Random(seed | 1);

    let arrivals = Arrivals::default();
    let mut servers: Vec<_> = (0..HOSTS).map(|_| Server::start(&arrivals)).collect();
    let mut mesh = Mesh {
        control: Control::start(&[]),
        ports: servers.iter().map(|server| server.port).collect(),
        listener: free_port(),
        places: vec![Some(0); HOSTS],
        policy: 0,
        timeout: 30,
        stat_prefix: 0,
    };
    mesh.push_endpoints();
    mesh.push_cluster();
    mesh.push_routes();
    mesh.push_listener();
    let proxy = Proxy::start(&Kind::Weft, &bootstrap(&mesh.control));
    until("the listener", || Client::connect((Ipv4Addr::LOCALHOST, mesh.listener)));

    let (is_over, outcomes) = (Arc::new(AtomicBool::new(false)), Arc::new(Outcomes::default()));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (port, is_over, outcomes) = (mesh.listener, is_over.clone(), outcomes.clone());
            thread::spawn(move || ask(port, &is_over, &outcomes))
        })
        .collect();

    let begin = Instant::now();
    let (mut changes, mut cuts) = ([0; 6], 0);
    while begin.elapsed() < length {
        let change = random.below(6);
        changes[change] += 1;
        match change {
            // Hosts come and go; two stay.
            0 => {
                let place = random.below(HOSTS);
                mesh.places[place] = if mesh.places[place].is_none() { Some(0) } else { None };
                if mesh.in_use().len() < 3 {
                    mesh.places = vec![Some(0); HOSTS];
                }
                mesh.push_endpoints();
            }
            // One priority takes over from the other.
            1 => {
                let to = if mesh.places.contains(&Some(0)) { 1 } else { 0 };
                mesh.places = vec![Some(to); HOSTS];
                mesh.push_endpoints();
            }
            2 => {
                mesh.policy += 1;
                mesh.push_cluster();
            }
            3 => {
                mesh.timeout += 1;
                mesh.push_routes();
            }
            4 => {
                mesh.stat_prefix += 1;
                mesh.push_listener();
            }
            // An upstream dies in the midst of its requests, and starts again.
            _ => {
                let which = random.below(HOSTS);
                servers[which].cut();
                cuts += 1;
                let before = outcomes.next.load(SeqCst);
                until("requests without it", || (outcomes.next.load(SeqCst) > before + 50).then_some(()));
                servers[which].go_on();
            }
        }
        let before = outcomes.next.load(SeqCst);
        until("requests after the change", || (outcomes.next.load(SeqCst) > before + 20).then_some(()));
    }
    is_over.store(true, SeqCst);
    clients.into_iter().for_each(|client| client.join().expect("clients only ask"));

    let asked = outcomes.next.load(SeqCst);
    let (answered, failed) = (outcomes.answered.load(SeqCst), outcomes.posts_failed.load(SeqCst));
    eprintln!(
        "{asked} requests, {answered} answered, {failed} that may not be repeated failed; changes {changes:?}, {cuts} cuts"
    );
    let wrong = outcomes.wrong.lock().expect("no thread panics").clone();
    assert!(wrong.is_empty(), "{} of {asked}: {:#?}\n{}", wrong.len(), &wrong[..wrong.len().min(20)], proxy.log());
    assert_eq!(answered + failed, usize::try_from(asked).expect("not so many"));
    // Whoever was at an upstream when it was cut cannot know whether it did its work.
    assert!(failed <= cuts * CLIENTS, "{failed} failed at {cuts} cuts");
    let arrivals = arrivals.lock().expect("no thread panics");
    let repeated: Vec<_> = arrivals.iter().filter(|(id, times)| id.is_multiple_of(POSTS) && **times > 1).collect();
    assert!(repeated.is_empty(), "came twice, and must not: {repeated:?}");
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(number).expect("32 bits") % end
    }
}
