//! The scale of configuration: thousands of clusters with their endpoints, thousands of routes, from one control plane over one
//! aggregated stream of deltas; what they cost in memory and until the proxy is ready, and what a change costs after that.
//!
//! The control plane is `weft-control`. What changes is in files of its own, so that a change is as quick there as it can be; until a
//! change is in force is from before its file is renamed into place until a request goes where the change says. CPU time is taken in
//! another change that nobody asks about, until the proxy is quiet again.

use crate::{
    bench::Bench,
    control::{Control, put},
    ports,
    process::Process,
    row::{Figure, Group, How, Load, MS, RSS, Rounds, Row},
    talk::{backend, http1::Exchange},
};
use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

const FIGURES: &[Figure] = &[
    RSS,
    MS.key("ready").unit("ms from exec to first response"),
    MS.key("ready-cpu").unit("CPU ms until then"),
    MS.key("eds").unit("EDS change: ms until in force"),
    MS.key("eds-cpu").unit("EDS change: CPU ms"),
    MS.key("rds").unit("RDS change: ms until in force"),
    MS.key("rds-cpu").unit("RDS change: CPU ms"),
    MS.key("all-cpu").unit("all clusters change: CPU ms"),
];

/// The same with what memory is to be.
const MOST: &[Figure] =
    &[RSS.goal(0.15).floor(0.15), FIGURES[1], FIGURES[2], FIGURES[3], FIGURES[4], FIGURES[5], FIGURES[6], FIGURES[7]];

pub const SCALE: Group = Group {
    name: "scale",
    files: &[("weft", "scale.yaml"), ("envoy", "scale.yaml")],
    workers: 1,
    rounds: Rounds::Few,
    how: How::ByItself(all),
    rows: &[
        Row { name: "scale-1000", title: "1,000 clusters of 10 endpoints", load: Load::Own, figures: FIGURES },
        Row { name: "scale-10000", title: "10,000 clusters of 10 endpoints", load: Load::Own, figures: MOST },
        Row { name: "scale-routes", title: "10,000 routes", load: Load::Own, figures: FIGURES },
    ],
};

/// Of the rows above: clusters and routes.
const SIZES: [(usize, usize); 3] = [(1_000, 10), (10_000, 10), (10, 10_000)];
const ENDPOINTS: usize = backend::HOSTS;
/// No change for so long, and a proxy is quiet.
const QUIET: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

fn all(bench: &mut Bench, group: &'static Group) -> Result<(), String> {
    backend::more_hosts().map_err(|e| format!("backend: {e}"))?;
    for round in 0..bench.lengths.of(group.rounds) {
        for (row, (clusters, routes)) in group.rows.iter().zip(SIZES) {
            if !bench.wants(row) || clusters > bench.lengths.most {
                continue;
            }
            let world = World { folder: &bench.folders.results.join("scale"), clusters, routes };
            world.write()?;
            for which in 0..bench.peers.len() {
                let peer = &bench.peers[which];
                let name = peer.name;
                let Some(command) = peer.command(group, &bench.folders)? else { continue };
                if bench.failed.contains(&(name, row.name)) {
                    continue;
                }
                println!("{}: round {}: {name}", row.name, round + 1);
                match world.measure(bench, name, &command) {
                    Ok(found) => found.into_iter().for_each(|(key, value)| bench.add(name, row, key, value)),
                    Err(why) => bench.fail(name, row.name, &why),
                }
            }
        }
    }
    Ok(())
}

/// What the control plane serves.
struct World<'a> {
    folder: &'a Path,
    clusters: usize,
    routes: usize,
}

impl World<'_> {
    /// Everything as it is before the first change.
    fn write(&self) -> Result<(), String> {
        let _ = fs::remove_dir_all(self.folder);
        self.put_clusters(1)?;
        let mut text = "resources:\n".to_owned();
        for i in 1..self.clusters {
            assignment(&mut text, i, ports::HTTP1_BACKEND.port());
        }
        put(self.folder, "endpoints.yaml", &text)?;
        self.put_routes()?;
        self.put_changing(false, false)?;
        let hcm =
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
        let mut text = "resources:\n".to_owned();
        // 28080 asks whether the proxy serves; 28100 has the routes that change.
        for (name, port, routes) in [("scale", ports::SCALE.port(), "changing"), ("many", ports::HTTP1.port(), "many")]
        {
            let _ = writeln!(
                text,
                "- {{'@type': type.googleapis.com/envoy.config.listener.v3.Listener, name: {name}, address: {{socket_address: \
                 {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [{{name: \
                 envoy.filters.network.http_connection_manager, typed_config: {{'@type': {hcm}, stat_prefix: {name}, rds: \
                 {{route_config_name: {routes}, config_source: {{ads: {{}}, resource_api_version: V3}}}}, http_filters: \
                 [{{name: envoy.filters.http.router, typed_config: {{'@type': {router}}}}}]}}}}]}}]}}"
            );
        }
        put(self.folder, "listeners.yaml", &text)
    }

    /// `version` changes each of them.
    fn put_clusters(&self, version: usize) -> Result<(), String> {
        let mut text = "resources:\n".to_owned();
        for i in 0..self.clusters {
            let _ = writeln!(
                text,
                "- {{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: cluster-{i}, type: EDS, \
                 connect_timeout: {version}s, eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}}}"
            );
        }
        put(self.folder, "clusters.yaml", &text)
    }

    /// Ten routes a virtual host; the last one takes whatever else comes.
    fn put_routes(&self) -> Result<(), String> {
        const EACH: usize = 10;
        let mut text =
            "resources:\n- '@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration\n  name: many\n  \
                        virtual_hosts:\n"
                .to_owned();
        for host in 0..self.routes / EACH {
            let _ = write!(text, "  - {{name: host-{host}, domains: [host-{host}.example], routes: [");
            for i in 0..EACH {
                let to = (host * EACH + i) % self.clusters;
                let _ = write!(text, "{{match: {{prefix: /service-{i}/}}, route: {{cluster: cluster-{to}}}}},");
            }
            text += "]}\n";
        }
        let last = self.clusters - 1;
        let _ = writeln!(
            text,
            "  - {{name: others, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: cluster-{last}}}}}]}}"
        );
        put(self.folder, "routes.yaml", &text)
    }

    /// The cluster's endpoints and the route that change: each leads to the one backend or the other.
    fn put_changing(&self, endpoint: bool, route: bool) -> Result<(), String> {
        self.put_endpoint(endpoint)?;
        self.put_route(route)
    }

    fn put_endpoint(&self, other: bool) -> Result<(), String> {
        let mut text = "resources:\n".to_owned();
        assignment(&mut text, 0, if other { ports::OTHER_BACKEND } else { ports::HTTP1_BACKEND }.port());
        put(self.folder, "endpoint.yaml", &text)
    }

    fn put_route(&self, other: bool) -> Result<(), String> {
        // The first cluster is the one whose endpoints change; the second one's do not.
        let to = if other { 1 } else { 0 };
        let text = format!(
            "'@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: changing\nvirtual_hosts:\n\
             - {{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: cluster-{to}}}}}]}}\n"
        );
        put(self.folder, "route.yaml", &text)
    }

    fn measure(&self, bench: &Bench, name: &str, command: &[String]) -> Result<Vec<(&'static str, f64)>, String> {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        self.put_clusters(1)?;
        self.put_changing(false, false)?;
        let control = Control::start(
            &bench.control,
            ports::SCALE_CONTROL,
            self.folder,
            &bench.folders.results.join("control.log"),
        )?;
        let process = bench.start(name, command)?;
        let mut found = vec![("ready", ms(process.start)), ("ready-cpu", ms(process.cpu()))];
        until(false)?;
        quiet(&process);
        found.push(("rss", process.memory()?.rss as f64 / f64::from(1 << 20)));

        found.push(("eds", ms(in_force(|| self.put_endpoint(true), true)?)));
        quiet(&process);
        found.push(("eds-cpu", ms(cost(&process, &control, || self.put_endpoint(false))?)));
        until(false)?;
        // The other route leads to the first backend: the endpoints go to the other one, to tell them apart.
        in_force(|| self.put_endpoint(true), true)?;
        found.push(("rds", ms(in_force(|| self.put_route(true), false)?)));
        quiet(&process);
        found.push(("rds-cpu", ms(cost(&process, &control, || self.put_route(false))?)));
        found.push(("all-cpu", ms(cost(&process, &control, || self.put_clusters(2))?)));
        Ok(found)
    }
}

fn assignment(text: &mut String, i: usize, port: u16) {
    let _ = write!(
        text,
        "- {{'@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: cluster-{i}, \
         endpoints: [{{lb_endpoints: ["
    );
    for n in 0..ENDPOINTS {
        let _ = write!(
            text,
            "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.{}, port_value: {port}}}}}}}}},",
            n + 1
        );
    }
    *text += "]}]}\n";
}

/// From before a change until a request goes where it says.
fn in_force(change: impl FnOnce() -> Result<(), String>, other: bool) -> Result<Duration, String> {
    let begin = Instant::now();
    change()?;
    until(other)?;
    Ok(begin.elapsed())
}

/// Asks until the answer comes from the other backend, or from the first.
fn until(other: bool) -> Result<(), String> {
    const EVERY: Duration = Duration::from_micros(500);
    let begin = Instant::now();
    let mut last = String::new();
    while begin.elapsed() < PATIENCE {
        match ask() {
            Ok(is_other) if is_other == other => return Ok(()),
            Ok(_) => {}
            Err(why) => last = why,
        }
        thread::sleep(EVERY);
    }
    Err(format!("a change is not in force: {last}"))
}

/// Whether the other backend answers.
fn ask() -> Result<bool, String> {
    let text = |e: std::io::Error| e.to_string();
    let mut stream = TcpStream::connect(ports::SCALE).map_err(text)?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).map_err(text)?;
    stream.write_all(&Exchange::Small.request()).map_err(text)?;
    let mut answer = [0; 2048];
    let n = stream.read(&mut answer).map_err(text)?;
    let answer = String::from_utf8_lossy(&answer[..n]);
    if !answer.starts_with("HTTP/1.1 200 ") {
        return Err(answer.lines().next().unwrap_or_default().to_owned());
    }
    Ok(answer.contains("x-backend: other"))
}

/// What a change costs the proxy, until it is quiet again.
fn cost(process: &Process, control: &Control, change: impl FnOnce() -> Result<(), String>) -> Result<Duration, String> {
    let (before, taken) = (process.cpu(), control.taken());
    change()?;
    // The control plane has to read it first.
    let begin = Instant::now();
    while control.taken() == taken {
        if begin.elapsed() > PATIENCE {
            return Err("a change is not taken".into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    quiet(process);
    Ok(process.cpu() - before)
}

fn quiet(process: &Process) {
    const NOTHING: Duration = Duration::from_millis(5);
    let begin = Instant::now();
    let mut before = process.cpu();
    while begin.elapsed() < PATIENCE {
        thread::sleep(QUIET);
        let now = process.cpu();
        if now - before < NOTHING {
            return;
        }
        before = now;
    }
}
