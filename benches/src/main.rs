//! Weft and its peers under the same load, alternating in one run: `make bench`.
//!
//! A round measures every proxy once, each freshly started, one after the other and each round beginning with another
//! one, so that what the machine does meanwhile meets all of them; what counts is the median of the rounds' ratios to
//! Envoy. The load generator is the main thread, the backends are two more. README.md beside this folder says what is
//! measured and how.
#![allow(clippy::print_stdout)] // the table is what this program is for

mod backend;
mod certificates;
mod http1;
mod http2;
mod load;
mod machine;
mod mtls;
mod peer;
mod process;
mod report;
mod rotation;
mod samples;
mod tcp;
mod tls;
mod wire;

use certificates::Files;
use clap::Parser;
use load::{Outcome, Plan};
use machine::Machine;
use peer::Peer;
use process::Process;
use report::{DIRECT, Report};
use samples::{Measure, Samples};
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};
use tls::{Ends, Secure};

/// The fixed rate, as a part of what the slowest proxy can do.
const RATE: f64 = 0.4;
const CONNECTIONS: usize = 64;
const STREAMS: usize = 100;
/// How long a proxy is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(500);

#[derive(Parser)]
#[command(about = "Weft and its peers under the same load, alternating in one run")]
struct Options {
    /// A short run: about a minute, more noise
    #[arg(long)]
    quick: bool,
    /// Exit with 1 when a floor of Weft against Envoy is missed
    #[arg(long)]
    check: bool,
    /// Only these proxies, by name, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only the closed loops, start and memory; without the latency at a fixed rate
    #[arg(long)]
    no_latency: bool,
    /// Without mTLS
    #[arg(long, conflicts_with = "only_mtls")]
    no_mtls: bool,
    /// Nothing but mTLS
    #[arg(long)]
    only_mtls: bool,
    /// Nothing but TCP
    #[arg(long, conflicts_with_all = ["only_mtls", "no_mtls"])]
    only_tcp: bool,
    #[arg(long)]
    rounds: Option<usize>,
    /// The Weft binary to measure
    #[arg(long)]
    weft: Option<PathBuf>,
    /// Another Weft binary to measure beside it: what a change brings
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Only load, so many seconds a measurement, on what listens of a proxy that was started by hand (under a profiler,
    /// say)
    #[arg(long, value_name = "SECONDS")]
    by_hand: Option<f64>,
}

/// How long things take.
struct Lengths {
    rounds: usize,
    warm: Duration,
    closed: Duration,
    open: Duration,
    /// Starts a round.
    starts: usize,
}

impl Lengths {
    fn of(options: &Options) -> Self {
        let ms = Duration::from_millis;
        let lengths = if options.quick {
            Self { rounds: 3, warm: ms(200), closed: ms(600), open: ms(1200), starts: 1 }
        } else {
            Self { rounds: 7, warm: ms(500), closed: ms(1500), open: ms(4000), starts: 3 }
        };
        Self { rounds: options.rounds.unwrap_or(lengths.rounds), ..lengths }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft-benches: {error}");
            ExitCode::from(2)
        }
    }
}

struct Bench {
    lengths: Lengths,
    peers: Vec<Peer>,
    samples: Samples,
    results: PathBuf,
    ends: Ends,
    files: Files,
    /// The control plane, which lies where Weft does.
    control: PathBuf,
}

fn run(options: &Options) -> Result<bool, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results = here.join("results");
    fs::create_dir_all(&results).map_err(|e| format!("{}: {e}", results.display()))?;
    let weft = match &options.weft {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("weft"),
    };
    let configs = here.join("configs");
    let folder = results.join("certificates");
    let files = Files::in_folder(&folder)?;
    let ends = Ends::new(&files)?;
    let mtls = mtls::configure(&configs, &folder, &results)?;
    let (mut peers, missing) = peer::find(&weft, options.baseline.as_deref(), &configs, &mtls);
    for name in missing {
        println!("not installed, left out: {name}");
    }
    if !options.only.is_empty() {
        peers.retain(|peer| options.only.iter().any(|name| name == peer.name));
    }
    let server = ends.server.clone();
    backend::start(peer::HTTP1_BACKEND.port(), http1::Server::default)
        .and_then(|()| backend::start(peer::HTTP2_BACKEND.port(), http2::Server::default))
        .and_then(|()| {
            backend::start(peer::MTLS_BACKEND.port(), move || Secure::server(&server, http1::Server::default()))
        })
        .and_then(|()| tcp::start_source(peer::SOURCE.port()))
        .map_err(|e| format!("backend: {e}"))?;

    if let Some(seconds) = options.by_hand {
        return by_hand(&ends, Duration::from_secs_f64(seconds)).map(|()| true);
    }
    let machine = Machine::this();
    let busy = Machine::busy();
    if busy > 0.5 {
        println!("the machine is busy (load {busy:.1}): ratios of CPU time still say something, latencies do not");
    }
    let mut bench = Bench {
        lengths: Lengths::of(options),
        peers,
        samples: Samples::default(),
        results,
        ends,
        files,
        control: weft.with_file_name("weft-control"),
    };
    let rounds = bench.lengths.rounds;
    let of = |parts: bool| 0..if parts { rounds } else { 0 };
    let (http, mtls) = (!options.only_mtls && !options.only_tcp, !options.no_mtls && !options.only_tcp);
    for round in of(http) {
        println!("round {} of {rounds}", round + 1);
        bench.throughput(round)?;
    }
    let rate = bench.fixed_rate();
    for round in of(http && !options.no_latency) {
        println!("round {} of {rounds} at {rate:.0} requests a second", round + 1);
        bench.latency(round, rate)?;
    }
    for round in of(!options.only_mtls) {
        println!("round {} of {rounds} over TCP", round + 1);
        bench.tcp(round)?;
    }
    for round in of(mtls) {
        println!("round {} of {rounds} with mTLS", round + 1);
        bench.mtls(round)?;
    }
    if mtls {
        bench.rotations()?;
    }

    let report =
        Report { machine: &machine, peers: &bench.peers, samples: &bench.samples, rate, rounds: bench.lengths.rounds };
    let file = bench.results.join("latest.json");
    fs::write(&file, format!("{:#}\n", report.raw())).map_err(|e| format!("{}: {e}", file.display()))?;
    let (floors, holds) = report.floors();
    println!("\n{}\n{floors}", report.tables());
    Ok(holds || !options.check)
}

/// Loads what listens, and says how much it was.
fn by_hand(ends: &Ends, length: Duration) -> Result<(), String> {
    let plan = |to, connections, depth| Plan { to, connections, depth, once: false, warm: Duration::ZERO, length };
    let none = || Duration::ZERO;
    let listens = |to: SocketAddr| TcpStream::connect(to).is_ok();
    let say = |name: &str, outcome: Outcome| {
        println!("{name}: {} requests in {:.2} s", outcome.requests, outcome.elapsed.as_secs_f64());
    };
    if listens(peer::HTTP1) {
        say("HTTP/1.1", load::closed(&plan(peer::HTTP1, CONNECTIONS, 1), &|_| http1::Client, &none)?);
    }
    if listens(peer::HTTP2) {
        say("h2c", load::closed(&plan(peer::HTTP2, 1, STREAMS), &http2::Client::new, &none)?);
    }
    for case in mtls::CASES.iter().filter(|case| listens(case.to)) {
        say(case.name, load::closed(&case.plan(Duration::ZERO, length), &case.open(ends), &none)?);
    }
    Ok(())
}

impl Bench {
    /// The proxies in this round's order; the last one is none.
    fn order(&self, round: usize) -> impl Iterator<Item = Option<usize>> + use<> {
        let count = self.peers.len() + 1;
        (0..count).map(move |i| (i + round) % count).map(move |i| (i + 1 < count).then_some(i))
    }

    fn start(&self, peer: usize) -> Result<Process, String> {
        let peer = &self.peers[peer];
        self.process(peer, &peer.command)
    }

    fn process(&self, peer: &Peer, command: &[String]) -> Result<Process, String> {
        Process::start(command, peer::HTTP1, &self.results.join(format!("{}.log", peer.name)))
    }

    /// One round of start, memory, and as much load as goes.
    fn throughput(&mut self, round: usize) -> Result<(), String> {
        for which in self.order(round) {
            let Some(index) = which else {
                self.closed_loops(DIRECT, peer::HTTP1_BACKEND, Some(peer::HTTP2_BACKEND), &|| Duration::ZERO)?;
                continue;
            };
            let mut starts = Vec::new();
            let mut process = self.start(index)?;
            for _ in 1..self.lengths.starts {
                starts.push(process.start);
                drop(process);
                process = self.start(index)?;
            }
            starts.push(process.start);
            starts.sort();
            let (name, http2) = (self.peers[index].name, self.peers[index].http2);
            self.samples.add(name, Measure::Start, starts[starts.len() / 2].as_secs_f64() * 1e3);
            thread::sleep(SETTLE);
            let memory = process.memory()?;
            self.samples.add(name, Measure::Rss, memory.rss as f64);
            self.samples.add(name, Measure::Pss, memory.pss as f64);
            self.closed_loops(name, peer::HTTP1, http2.then_some(peer::HTTP2), &|| process.cpu())
                .map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    }

    fn closed_loops(
        &mut self,
        name: &str,
        http1: SocketAddr,
        http2: Option<SocketAddr>,
        cpu: &dyn Fn() -> Duration,
    ) -> Result<(), String> {
        let plan = self.plan(http1, CONNECTIONS, 1);
        let outcome = load::closed(&plan, &|_| http1::Client, cpu)?;
        self.add(name, &outcome, Measure::CpuHttp1, Some(Measure::RateHttp1));
        if let Some(to) = http2 {
            let outcome = load::closed(&self.plan(to, 1, STREAMS), &http2::Client::new, cpu)?;
            self.add(name, &outcome, Measure::CpuHttp2, Some(Measure::RateHttp2));
        }
        Ok(())
    }

    fn plan(&self, to: SocketAddr, connections: usize, depth: usize) -> Plan {
        Plan { to, connections, depth, once: false, warm: self.lengths.warm, length: self.lengths.closed }
    }

    fn add(&mut self, name: &str, outcome: &Outcome, cpu: Measure, rate: Option<Measure>) {
        let requests = outcome.requests as f64;
        if name != DIRECT {
            self.samples.add(name, cpu, outcome.cpu.as_secs_f64() * 1e6 / requests);
        }
        if let Some(rate) = rate {
            self.samples.add(name, rate, requests / outcome.elapsed.as_secs_f64());
        }
    }

    /// What all proxies can keep up with.
    fn fixed_rate(&self) -> f64 {
        let rates = self.peers.iter().filter_map(|peer| self.samples.middle(peer.name, Measure::RateHttp1));
        RATE * rates.map(|rate| rate.median).fold(f64::INFINITY, f64::min)
    }

    /// One round at a fixed rate.
    fn latency(&mut self, round: usize, rate: f64) -> Result<(), String> {
        for which in self.order(round) {
            let (name, to, process) = match which {
                None => (DIRECT, peer::HTTP1_BACKEND, None),
                Some(index) => (self.peers[index].name, peer::HTTP1, Some(self.start(index)?)),
            };
            let plan = Plan { length: self.lengths.open, ..self.plan(to, CONNECTIONS, 1) };
            let cpu = || process.as_ref().map_or(Duration::ZERO, Process::cpu);
            let (outcome, latencies) =
                load::open(&plan, rate, &|_| http1::Client, &cpu).map_err(|e| format!("{name}: {e}"))?;
            self.add(name, &outcome, Measure::CpuFixed, None);
            let at = |part: f64| {
                let index = (latencies.len() as f64 * part) as usize;
                latencies.get(index.min(latencies.len().saturating_sub(1))).map_or(0.0, |l| l.as_secs_f64() * 1e6)
            };
            self.samples.add(name, Measure::P50, at(0.5));
            self.samples.add(name, Measure::P99, at(0.99));
        }
        Ok(())
    }
}
