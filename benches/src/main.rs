//! Weft and its peers under the same load, alternating in one run: `make bench`.
//!
//! A round measures every proxy once, each freshly started, one after the other and each round beginning with another
//! one, so that what the machine does meanwhile meets all of them; what counts is the median of the rounds' ratios to
//! Envoy. The load generator is the main thread, the backends are threads beside it. `rows/` is what is measured; README.md beside
//! this folder says how.
#![allow(clippy::print_stdout)] // the table is what this program is for

mod bench;
mod control;
mod load;
mod machine;
mod peers;
mod ports;
mod process;
mod report;
mod row;
mod rows;
mod samples;
mod stages;
mod strace;
mod talk;

use bench::{Bench, Lengths};
use clap::Parser;
use machine::Machine;
use peers::Folders;
use report::Report;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use samples::Samples;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};
use talk::{
    backend,
    certificates::Files,
    http1,
    http2::{self, Shape},
    tls::{Ends, Secure},
    websocket,
};

#[derive(Parser)]
#[command(about = "Weft and its peers under the same load, alternating in one run")]
struct Options {
    /// A short run: more noise, and less of what takes long
    #[arg(long)]
    quick: bool,
    /// Exit with 1 when a floor of Weft against Envoy is missed
    #[arg(long)]
    check: bool,
    /// Only rows whose names begin so, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    only: Vec<String>,
    /// Only these proxies, separated by commas
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Say which rows there are
    #[arg(long)]
    list: bool,
    #[arg(long)]
    rounds: Option<usize>,
    /// The Weft binary to measure
    #[arg(long)]
    weft: Option<PathBuf>,
    /// Another Weft binary to measure beside it: what a change brings
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Put the table into the README, and the rounds beside it where they are kept
    #[arg(long)]
    write_readme: bool,
    /// Count the instructions of a request's stages instead; with --check, exit with 1 where one grew by more than 5 %
    #[arg(long)]
    instructions: bool,
    /// Write down what was counted: what --check compares with from then on
    #[arg(long, requires = "instructions")]
    record: bool,
    /// Only load, so many seconds a row, on what listens of a proxy that was started by hand (under a profiler, say)
    #[arg(long, value_name = "SECONDS")]
    by_hand: Option<f64>,
}

impl Options {
    fn lengths(&self) -> Lengths {
        let ms = Duration::from_millis;
        let lengths = if self.quick {
            Lengths { rounds: 2, few: 1, warm: ms(50), closed: ms(150), open: ms(500), starts: 1, most: 1_000 }
        } else {
            Lengths { rounds: 5, few: 2, warm: ms(200), closed: ms(800), open: ms(2500), starts: 3, most: 10_000 }
        };
        Lengths { rounds: self.rounds.unwrap_or(lengths.rounds), ..lengths }
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

fn run(options: &Options) -> Result<bool, String> {
    if options.list {
        for row in rows::GROUPS.iter().flat_map(|group| group.rows) {
            println!("{:22}{}", row.name, row.title);
        }
        return Ok(true);
    }
    let begin = Instant::now();
    many_files();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = Folders {
        configs: here.join("configs"),
        certificates: here.join("results/certificates"),
        results: here.join("results"),
    };
    fs::create_dir_all(&folders.results).map_err(|e| format!("{}: {e}", folders.results.display()))?;
    let ours = std::env::current_exe().map_err(|e| e.to_string())?;
    let weft = options.weft.clone().unwrap_or_else(|| ours.with_file_name("weft"));
    let files = Files::in_folder(&folders.certificates)?;
    let ends = Ends::new(&files)?;
    if options.instructions {
        backends(&ends).map_err(|e| format!("backend: {e}"))?;
        return stages::run(&weft, &folders, &ends, options.check, options.record);
    }
    let (mut found, missing) = peers::find(&weft, &ours, options.baseline.as_deref());
    for name in missing {
        println!("not installed, left out: {name}");
    }
    if !options.peers.is_empty() {
        found.retain(|peer| options.peers.iter().any(|name| name == peer.name));
    }
    backends(&ends).map_err(|e| format!("backend: {e}"))?;
    let machine = Machine::this();
    let mut bench = Bench {
        lengths: options.lengths(),
        peers: found,
        samples: Samples::default(),
        folders,
        ends,
        files,
        control: ours.with_file_name("weft-control"),
        only: options.only.clone(),
        notes: BTreeSet::new(),
        failed: BTreeSet::new(),
    };
    if let Some(seconds) = options.by_hand {
        bench::by_hand(&mut bench, Duration::from_secs_f64(seconds));
        return Ok(true);
    }
    let busy = Machine::busy();
    if busy > 0.5 {
        println!("the machine is busy (load {busy:.1}): ratios of CPU time still say something, latencies do not");
    }
    bench.run()?;
    let report = Report { machine: &machine, bench: &bench };
    let file = bench.folders.results.join("latest.json");
    fs::write(&file, format!("{:#}\n", report.raw())).map_err(|e| format!("{}: {e}", file.display()))?;
    let (goals, holds) = report.goals();
    println!("\n{}\n{goals}\n{:.1} minutes", report.table(), begin.elapsed().as_secs_f64() / 60.0);
    if options.write_readme {
        report.publish(&here.join("../README.md"), &bench.folders.results.join("published.json"))?;
    }
    Ok(holds || !options.check)
}

/// As many open files as may be: there are thousands of connections, at both ends. The proxies inherit it.
fn many_files() {
    // HAProxy wants two for each connection that it may have.
    const WANTED: Option<u64> = Some(1 << 16);
    let most = getrlimit(Resource::Nofile).maximum;
    for limit in [WANTED, most] {
        if setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: most.max(limit) }).is_ok() {
            return;
        }
    }
}

/// What the proxies forward to, each a thread.
fn backends(ends: &Ends) -> std::io::Result<()> {
    backend::start(ports::HTTP1_BACKEND, http1::Server::default)?;
    backend::start(ports::OTHER_BACKEND, || http1::Server::named("other"))?;
    backend::start(ports::HTTP2_BACKEND, || http2::Server::new(Shape::Plain))?;
    backend::start(ports::UNARY_BACKEND, || http2::Server::new(Shape::Unary))?;
    backend::start(ports::STREAMING_BACKEND, || http2::Server::new(Shape::Streaming))?;
    backend::start(ports::WEBSOCKET_BACKEND, websocket::Server::default)?;
    let server = ends.server.clone();
    backend::start(ports::MTLS_BACKEND, move || Secure::server(&server, http1::Server::default()))?;
    let server = ends.open_server.clone();
    backend::start(ports::TLS_BACKEND, move || Secure::server(&server, http1::Server::default()))?;
    let server = ends.open_server.clone();
    backend::start(ports::TLS_HTTP2_BACKEND, move || Secure::server(&server, http2::Server::new(Shape::Plain)))?;
    load::bulk::start_source(ports::SOURCE)
}
