//! Endpoints come and go under traffic: a tenth of a thousand with every update. No request fails, and none goes to a host after the
//! control plane was told that the update without it is in force.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, TcpListener, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Instant,
};
use weft_tests::{Client, Control, Kind, PATIENCE, Proxy, free_port, until, yaml};

const ENDPOINTS: usize = 1000;
const EACH: usize = ENDPOINTS / 10;
const UPDATES: usize = 8;
const CLIENTS: usize = 4;

/// The address of the n-th endpoint that there ever was: all of them are this machine.
fn address(n: usize) -> String {
    format!("127.1.{}.{}", n / 250, n % 250 + 1)
}

fn assignment(endpoints: &[usize], port: u16, weighted: bool) -> String {
    let endpoint = |n: &usize| {
        let weight = if weighted { format!(", load_balancing_weight: {}", n % 5 + 1) } else { String::new() };
        let address = address(*n);
        format!("{{endpoint: {{address: {{socket_address: {{address: {address}, port_value: {port}}}}}}}{weight}}}")
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    format!(
        "\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: u\nendpoints: \
         [{{lb_endpoints: [{}]}}]\n",
        endpoints.join(", ")
    )
}

/// Answers with the address that it was asked at, once a connection; one server at all addresses.
fn serve() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    for _ in 0..CLIENTS {
        let listener = listener.try_clone().expect("a descriptor");
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| _ = answer(&stream)));
    }
    port
}

fn answer(mut stream: &TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut lines = BufReader::new(stream).lines();
    while !lines.next()?.ok()?.is_empty() {}
    let text = stream.local_addr().ok()?.ip().to_string();
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len());
    stream.write_all(format!("{head}{text}").as_bytes()).ok()
}

fn bootstrap(port: u16, control: &Control, policy: &str) -> String {
    let xds = "{name: xds, connect_timeout: 1s, typed_extension_protocol_options: \
               {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
               type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
               {http2_protocol_options: {}}}}, load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: \
               {address: {socket_address: {address: 127.0.0.1, port_value: XDS}}}}]}]}}";
    let cluster = format!(
        "{{name: u, type: EDS, connect_timeout: 5s, {policy}eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: \
         V3}}}}}}"
    );
    let hosts = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u}}]}";
    let listeners = [yaml::http_listener("in", port, "", hosts)];
    let ads = "dynamic_resources: {ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: \
               {cluster_name: xds}}]}}\n";
    let xds = xds.replace("XDS", &control.port().to_string());
    format!("{ads}{}", yaml::bootstrap(&listeners, &[xds, cluster]))
}

fn churn(policy: &str, weighted: bool) {
    let upstream = serve();
    let mut endpoints: Vec<usize> = (0..ENDPOINTS).collect();
    let control = Control::start(&[("u.yaml", &assignment(&endpoints, upstream, weighted))]);
    let port = free_port();
    let proxy = Proxy::start(&Kind::Weft, &bootstrap(port, &control, policy));
    let taken = || control.log().lines().filter(|line| line.contains(" took ")).count();
    until("the first endpoints", || (taken() > 0).then_some(()));

    // When the control plane knew that a host was gone.
    let gone = Mutex::new(HashMap::<IpAddr, Instant>::new());
    let (done, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
                while !done.load(SeqCst) {
                    let begin = Instant::now();
                    let response = client.get("/", &[("host", "u.test")]).expect("a response");
                    assert_eq!(response.status, 200, "{}", response.text());
                    let host: IpAddr = response.text().parse().expect("an address");
                    let since = gone.lock().expect("no thread panicked").get(&host).copied();
                    assert!(since.is_none_or(|since| begin < since), "{host} was gone");
                    served.fetch_add(1, SeqCst);
                }
            });
        }
        let mut next = ENDPOINTS;
        let mut random = 1usize;
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..UPDATES {
                let before = (taken(), served.load(SeqCst));
                let mut removed = Vec::with_capacity(EACH);
                for _ in 0..EACH {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    removed.push(endpoints.remove((random >> 33) % endpoints.len()));
                    // Some where others were, some behind the last.
                    let place = if next.is_multiple_of(2) { endpoints.len() } else { (random >> 43) % endpoints.len() };
                    endpoints.insert(place, next);
                    next += 1;
                }
                // One that came in this very update may be gone again: it never was anywhere.
                control.write("u.yaml", &assignment(&endpoints, upstream, weighted));
                until("the update to be taken", || (taken() > before.0).then_some(()));
                let now = Instant::now();
                let mut gone = gone.lock().expect("no thread panicked");
                gone.extend(removed.iter().map(|n| (address(*n).parse::<IpAddr>().expect("an address"), now)));
                drop(gone);
                until("some traffic", || (served.load(SeqCst) > before.1 + 50).then_some(()));
            }
        }));
        done.store(true, SeqCst);
        if let Err(panic) = run {
            std::panic::resume_unwind(panic);
        }
    });
    // What is there in the end is what was said last.
    assert_eq!(proxy.stat("cluster.u.membership_total"), Some(ENDPOINTS as u64));
    assert_eq!(proxy.stat("cluster.u.membership_healthy"), Some(ENDPOINTS as u64));
    assert_eq!(proxy.stat("cluster.u.membership_change"), Some(1 + UPDATES as u64));
    assert_eq!(proxy.stat("cluster.u.upstream_rq_total"), Some(served.load(SeqCst) as u64));
    let clusters = proxy.page("/clusters");
    let shown = |n: &usize| clusters.contains(&format!("u::{}:{upstream}::cx_active::", address(*n)));
    assert!(endpoints.iter().all(shown));
    assert_eq!(
        clusters.lines().filter(|line| line.contains("::cx_active::") && line.starts_with("u::")).count(),
        ENDPOINTS
    );
}

#[test]
fn round_robin() {
    churn("", false);
}

#[test]
fn weighted_least_request() {
    churn("lb_policy: LEAST_REQUEST, ", true);
}
