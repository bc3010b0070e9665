//! Harness for behaviours seen through sockets: it knows the binaries and their API, never proxy internals.
//!
//! A test writes a bootstrap, starts [`Proxy`] (Weft, or the real Envoy), talks to it with [`http`] and looks at what
//! [`Upstream`] saw. [`differential`] does the same thing to both and compares. What the tests run beside Weft is
//! fetched by `make tools`; where it could not be had, a test says `skipped: why` and passes.

pub mod bulk;
pub mod certificate_matrix;
mod control;
pub mod hello;
pub mod http;
pub mod openssl;
pub mod pem;
mod proxy;
pub mod tools;
mod upstream;

pub use control::Control;
pub use http::{Client, Response, get};
pub use proxy::{Kind, Proxy};
pub use upstream::{Reply, Seen, Upstream};

use std::{
    fmt::Debug,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// How long anything may take that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `what` gives something.
///
/// # Panics
/// It does not within [`PATIENCE`].
pub fn until<T>(about: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for: {about}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A TCP port of 127.0.0.1 that nobody listens at, each time another one. It is below those that the kernel gives to
/// connections, so that nobody's connection gets it before a proxy listens.
///
/// # Panics
/// There is none.
pub fn free_port() -> u16 {
    const PORTS: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(61);
    until("a free port", || {
        let n = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 12_000 + u16::try_from(n % PORTS).expect("few enough");
        // Test programs that run at the same time tell each other which ports are theirs.
        let name = SocketAddr::from_abstract_name(format!("weft-tests-{port}")).expect("a short name");
        let mine = UnixListener::bind_addr(&name).ok()?;
        TcpListener::bind(("127.0.0.1", port)).ok()?;
        std::mem::forget(mine);
        Some(port)
    })
}

/// Runs Weft and the real Envoy on the same configuration; gives what `observe` makes of each, Weft first. `None` if there
/// is no Envoy. `config` is called for each, so that it can choose ports; otherwise both must get the same.
///
/// # Panics
/// One of them does not start.
pub fn both<T>(config: impl Fn() -> String, observe: impl Fn(&Proxy) -> T) -> Option<(T, T)> {
    let envoy = tools::envoy()?;
    let theirs = observe(&Proxy::start(&Kind::Envoy(envoy), &config()));
    let ours = observe(&Proxy::start(&Kind::Weft, &config()));
    Some((ours, theirs))
}

/// The same, and compares.
///
/// # Panics
/// They differ, or one of them does not start.
pub fn differential<T: PartialEq + Debug>(config: impl Fn() -> String, observe: impl Fn(&Proxy) -> T) {
    if let Some((ours, theirs)) = both(config, observe) {
        assert_eq!(ours, theirs, "left: Weft, right: Envoy");
    }
}

/// The parts of a bootstrap that tests vary, written briefly.
pub mod yaml {
    /// A cluster with one endpoint.
    pub fn cluster(name: &str, port: u16) -> String {
        format!(
            "{{name: {name}, connect_timeout: 1s, type: STATIC, load_assignment: {{cluster_name: {name}, endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}"
        )
    }

    /// A listener with a connection manager; `fields` go into the latter, `virtual_hosts` into its route configuration.
    pub fn http_listener(name: &str, port: u16, fields: &str, virtual_hosts: &str) -> String {
        let router = "{name: envoy.filters.http.router, typed_config: \
                      {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
        let fields = if fields.is_empty() { String::new() } else { format!("{fields}, ") };
        format!(
            "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: \
             [{{filters: [{{name: http, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.\
             http_connection_manager.v3.HttpConnectionManager, stat_prefix: http, {fields}route_config: {{name: r, \
             virtual_hosts: [{virtual_hosts}]}}, http_filters: [{router}]}}}}]}}]}}"
        )
    }

    /// A listener that hands connections to a cluster.
    pub fn tcp_listener(name: &str, port: u16, cluster: &str) -> String {
        format!(
            "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: \
             [{{filters: [{{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.\
             tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {cluster}}}}}]}}]}}"
        )
    }

    /// A bootstrap of static listeners and clusters.
    pub fn bootstrap(listeners: &[String], clusters: &[String]) -> String {
        format!(
            "node: {{id: test-node, cluster: test-cluster}}\nstatic_resources:\n  listeners: [{}]\n  clusters: [{}]\n",
            listeners.join(",\n    "),
            clusters.join(",\n    ")
        )
    }
}
