//! Weft and its peers under the same load, alternating in one run: `make bench`.
//!
//! A round measures every proxy once, each freshly started, one after the other and each round beginning with another
//! one, so that what the machine does meanwhile meets all of them; what counts is the median of the rounds' ratios to
//! Envoy. The load generator is the main thread, the backends are two more. README.md beside this folder says what is
//! measured and how.
#![allow(clippy::print_stdout)] // the table is what this program is for

mod backend;
mod http1;
mod http2;
mod load;
mod machine;
mod peer;
mod process;
mod report;
mod samples;
mod wire;

use clap::Parser;
use load::{Outcome, Plan};
use machine::Machine;
use peer::Peer;
use process::Process;
use report::{DIRECT, Report};
use samples::{Measure, Samples};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

/// The fixed rate, as a part of what the slowest proxy can do.
const RATE: f64 = 0.4;
const CONNECTIONS: usize = 64;
const STREAMS: usize = 100;
/// How long a proxy is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(500);

#[derive(Parser)]
#[command(about = "Weft and its peers under the same load, alternating in one run")]
struct Options {
    /// A short run: less than a minute, more noise
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
    #[arg(long)]
    rounds: Option<usize>,
    /// The Weft binary to measure
    #[arg(long)]
    weft: Option<PathBuf>,
    /// Another Weft binary to measure beside it: what a change brings
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Only load, so many seconds a protocol, on a proxy that was started by hand (under a profiler, say)
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
}

fn run(options: &Options) -> Result<bool, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results = here.join("results");
    fs::create_dir_all(&results).map_err(|e| format!("{}: {e}", results.display()))?;
    let weft = match &options.weft {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("weft"),
    };
    let (mut peers, missing) = peer::find(&weft, options.baseline.as_deref(), &here.join("configs"));
    for name in missing {
        println!("not installed, left out: {name}");
    }
    if !options.only.is_empty() {
        peers.retain(|peer| options.only.iter().any(|name| name == peer.name));
    }
    backend::start::<http1::Server>(peer::HTTP1_BACKEND.port()).map_err(|e| format!("backend: {e}"))?;
    backend::start::<http2::Server>(peer::HTTP2_BACKEND.port()).map_err(|e| format!("backend: {e}"))?;

    if let Some(seconds) = options.by_hand {
        return by_hand(Duration::from_secs_f64(seconds)).map(|()| true);
    }
    let machine = Machine::this();
    let busy = Machine::busy();
    if busy > 0.5 {
        println!("the machine is busy (load {busy:.1}): ratios of CPU time still say something, latencies do not");
    }
    let mut bench = Bench { lengths: Lengths::of(options), peers, samples: Samples::default(), results };
    for round in 0..bench.lengths.rounds {
        println!("round {} of {}", round + 1, bench.lengths.rounds);
        bench.throughput(round)?;
    }
    let rate = bench.fixed_rate();
    if !options.no_latency {
        for round in 0..bench.lengths.rounds {
            println!("round {} of {} at {rate:.0} requests a second", round + 1, bench.lengths.rounds);
            bench.latency(round, rate)?;
        }
    }

    let report =
        Report { machine: &machine, peers: &bench.peers, samples: &bench.samples, rate, rounds: bench.lengths.rounds };
    let file = bench.results.join("latest.json");
    fs::write(&file, format!("{:#}\n", report.raw())).map_err(|e| format!("{}: {e}", file.display()))?;
    let (floors, holds) = report.floors();
    println!("\n{}\n{floors}", report.table());
    Ok(holds || !options.check)
}

/// Loads whatever listens, and says how much it was.
fn by_hand(length: Duration) -> Result<(), String> {
    let plan = |to, connections, depth| Plan { to, connections, depth, warm: Duration::ZERO, length };
    let none = || Duration::ZERO;
    let http1 = load::closed::<http1::Client>(&plan(peer::HTTP1, CONNECTIONS, 1), &none)?;
    let http2 = load::closed::<http2::Client>(&plan(peer::HTTP2, 1, STREAMS), &none)?;
    for (name, outcome) in [("HTTP/1.1", http1), ("h2c", http2)] {
        println!("{name}: {} requests in {:.2} s", outcome.requests, outcome.elapsed.as_secs_f64());
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
        Process::start(&peer.command, peer::HTTP1, &self.results.join(format!("{}.log", peer.name)))
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
        let outcome = load::closed::<http1::Client>(&plan, cpu)?;
        self.add(name, &outcome, Measure::CpuHttp1, Some(Measure::RateHttp1));
        if let Some(to) = http2 {
            let outcome = load::closed::<http2::Client>(&self.plan(to, 1, STREAMS), cpu)?;
            self.add(name, &outcome, Measure::CpuHttp2, Some(Measure::RateHttp2));
        }
        Ok(())
    }

    fn plan(&self, to: SocketAddr, connections: usize, depth: usize) -> Plan {
        Plan { to, connections, depth, warm: self.lengths.warm, length: self.lengths.closed }
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
            let (outcome, latencies) = load::open(&plan, rate, &cpu).map_err(|e| format!("{name}: {e}"))?;
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
